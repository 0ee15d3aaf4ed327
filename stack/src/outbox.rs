//! The sending end of a mailbox between the target and a poller of its own. A full mailbox hands a message back: it is kept
//! here, with those behind it, and sent later, in order.

use alloc::collections::VecDeque;
use core::time::Duration;
use runtime::{Instant, Platform, Sender};

/// How long whoever found a mailbox full waits before the next try.
const FULL_RETRY: Duration = Duration::from_millis(1);

/// Messages on their way into a mailbox.
pub(crate) struct Outbox<P: Platform, T: Send + 'static> {
    to: P::Sender<T>,
    kept: VecDeque<T>,
}

impl<P: Platform, T: Send + 'static> Outbox<P, T> {
    pub(crate) const fn new(to: P::Sender<T>) -> Self {
        Self { to, kept: VecDeque::new() }
    }

    /// Adds a message; it goes out with the next [`Outbox::flush`].
    pub(crate) fn push(&mut self, message: T) {
        self.kept.push_back(message);
    }

    /// What did not go out yet, in order.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &T> {
        self.kept.iter()
    }

    /// Whether everything went out.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Sends what the mailbox has room for. Whether anything went out.
    pub(crate) fn flush(&mut self) -> bool {
        let mut worked = false;
        while let Some(message) = self.kept.pop_front() {
            if let Err(message) = self.to.send(message) {
                self.kept.push_front(message);
                break;
            }
            worked = true;
        }
        worked
    }

    /// When to try again, if something is kept.
    pub(crate) fn retry_at(&self, now: Instant) -> Option<Instant> {
        (!self.is_empty()).then(|| now.after(FULL_RETRY))
    }

    /// Says one more thing, at once, whatever is kept, from whoever is being dropped. If the mailbox is full nobody hears
    /// it, which is no worse than the death that it tells of.
    pub(crate) fn last_word(&self, message: T) {
        let _ = self.to.send(message);
    }
}
