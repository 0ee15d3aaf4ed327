//! What the queues of one controller share, on whatever cores they are: a few atomics, never a lock.
//!
//! A host's connection of the admin queue makes the association, and its end is everybody's end. I/O queues join it by the
//! controller's identifier. A reset of the controller begins a new epoch: queues of the one before end themselves, and the
//! controller is not ready again before the last of them is gone.

use alloc::string::String;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// One host's use of one controller.
#[derive(Debug)]
pub struct Association {
    /// The controller's identifier, unique in the subsystem.
    pub cntlid: u16,
    /// The subsystem's name.
    pub subnqn: String,
    /// The subsystem's number ([`super::Subsystem::number`]); 0 for discovery.
    pub subsystem: u64,
    /// The host's name.
    pub hostnqn: String,
    /// The host's identifier.
    pub hostid: [u8; 16],
    over: AtomicBool,
    ready: AtomicBool,
    epoch: AtomicU32,
    granted: AtomicU32,
    queues: [AtomicU64; QUEUE_WORDS],
}

const QUEUE_WORDS: usize = 4;

impl Association {
    /// Highest identifier of an I/O queue.
    pub const QUEUES_MAX: u16 = QUEUE_WORDS as u16 * 64 - 1;

    /// An association that nothing has joined yet.
    #[must_use]
    pub fn new(cntlid: u16, subnqn: String, subsystem: u64, hostnqn: String, hostid: [u8; 16]) -> Self {
        Self {
            cntlid,
            subnqn,
            subsystem,
            hostnqn,
            hostid,
            over: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            epoch: AtomicU32::new(0),
            granted: AtomicU32::new(0),
            queues: [const { AtomicU64::new(0) }; QUEUE_WORDS],
        }
    }

    /// Ends it, for good.
    pub fn end(&self) {
        self.ready.store(false, Ordering::Release);
        self.over.store(true, Ordering::Release);
    }

    /// Whether it has ended.
    #[must_use]
    #[inline]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// The epoch that it is in. A queue that joined in another one must end.
    #[must_use]
    #[inline]
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether I/O queues may join.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.is_over()
    }

    /// I/O queues may join.
    pub(super) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// The controller was reset: its I/O queues end.
    pub(super) fn begin_epoch(&self) {
        self.ready.store(false, Ordering::Release);
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// How many I/O queues the host was given.
    #[must_use]
    pub fn granted(&self) -> u16 {
        self.granted.load(Ordering::Acquire) as u16
    }

    pub(super) fn grant(&self, queues: u16) {
        self.granted.store(queues.into(), Ordering::Release);
    }

    fn bit(&self, queue: u16) -> (&AtomicU64, u64) {
        (&self.queues[usize::from(queue / 64)], 1 << (queue % 64))
    }

    /// An I/O queue joins; `false`: there is one of that number already.
    #[must_use]
    pub fn join(&self, queue: u16) -> bool {
        assert!((1..=Self::QUEUES_MAX).contains(&queue), "the number of a queue is checked before");
        let (word, bit) = self.bit(queue);
        word.fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// An I/O queue is gone, with all that it had in flight.
    pub fn leave(&self, queue: u16) {
        let (word, bit) = self.bit(queue);
        word.fetch_and(!bit, Ordering::AcqRel);
    }

    /// Whether it has I/O queues.
    #[must_use]
    pub fn has_queues(&self) -> bool {
        self.queues.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }
}
