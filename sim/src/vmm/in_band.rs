//! Rings that are kicked and told by messages ("In-band notifications"): which of them, over one connection.
//!
//! The guest rings its doorbell as ever; the front-end, which has kept it, says so. What the target says of a ring rings
//! the guest's interrupt. The channel on which it says so may be full at first, and be read late.

use crate::rng::Rng;

/// Longest time for which a front-end leaves the channel back unread that was full from the start.
const UNREAD_NS_MAX: u64 = 100_000;

/// How the rings of a connection are kicked and told.
#[derive(Default)]
pub(super) struct InBand {
    kicks: Vec<bool>,
    calls: Vec<bool>,
    /// Rings that were started, and so may be kicked.
    started: Vec<u16>,
    /// For how long the channel back stays full and unread.
    unread_ns: Option<u64>,
}

impl InBand {
    /// Draws for each queue's kick and call, of which `of_256` go by messages.
    pub(super) fn draw(queues: usize, of_256: u32, rng: &mut Rng) -> Self {
        if of_256 == 0 {
            return Self::default();
        }
        let mut each = || (0..queues).map(|_| rng.chance(of_256, 256)).collect();
        let (kicks, calls) = (each(), each());
        let unread_ns = rng.chance(1, 4).then(|| rng.below(UNREAD_NS_MAX));
        Self { kicks, calls, started: Vec::new(), unread_ns }
    }

    /// Whether a queue is kicked by messages.
    pub(super) fn kicks(&self, queue: u16) -> bool {
        self.kicks.get(usize::from(queue)).is_some_and(|&by_message| by_message)
    }

    /// Whether a queue is told by messages.
    pub(super) fn calls(&self, queue: u16) -> bool {
        self.calls.get(usize::from(queue)).is_some_and(|&by_message| by_message)
    }

    /// For how long the channel back is left unread, where it is full from the start.
    pub(super) fn unread_ns(&self) -> Option<u64> {
        self.unread_ns
    }

    /// The ring is started by a message; whether it was not yet.
    pub(super) fn start(&mut self, queue: u16) -> bool {
        let newly = !self.started.contains(&queue);
        if newly {
            self.started.push(queue);
        }
        newly
    }

    /// The ring is stopped.
    pub(super) fn stop(&mut self, queue: u16) {
        self.started.retain(|&other| other != queue);
    }

    /// All rings are stopped.
    pub(super) fn stop_all(&mut self) {
        self.started.clear();
    }

    /// The rings that may be kicked by messages.
    pub(super) fn started(&self) -> &[u16] {
        &self.started
    }
}
