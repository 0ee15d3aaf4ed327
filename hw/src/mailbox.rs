//! Bounded mailboxes between cores: a lock-free queue, and the receiving core's waker.
//!
//! A receiver may move to another core, so it says where it is each time that core goes to sleep ([`arm`]). A sender
//! that still reads the old place sent before that, and the new place then sees the message before it sleeps: the same
//! two fences as in [`crate::waker`].
//!
//! [`arm`]: HostReceiver::arm

use crate::process::Shared;
use crossbeam_queue::ArrayQueue;
use runtime::{CoreId, Receiver, Sender};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering, fence};

struct Mailbox<T> {
    messages: ArrayQueue<T>,
    /// The core that the receiver was on when it last went to sleep.
    core: AtomicU16,
    /// The receiver is gone.
    closed: AtomicBool,
    process: Arc<Shared>,
}

/// The sending end; see [`runtime::Sender`].
pub struct HostSender<T>(Arc<Mailbox<T>>);

/// The receiving end; see [`runtime::Receiver`].
pub struct HostReceiver<T>(Arc<Mailbox<T>>);

/// A mailbox whose receiver is on `core` at first.
pub(crate) fn mailbox<T>(
    process: &Arc<Shared>,
    core: CoreId,
    capacity: usize,
) -> (HostSender<T>, HostReceiver<T>) {
    let mailbox = Arc::new(Mailbox {
        messages: ArrayQueue::new(capacity),
        core: AtomicU16::new(core.0),
        closed: AtomicBool::new(false),
        process: process.clone(),
    });
    (HostSender(mailbox.clone()), HostReceiver(mailbox))
}

impl<T> Clone for HostSender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Send + 'static> Sender<T> for HostSender<T> {
    fn send(&self, message: T) -> Result<(), T> {
        if self.0.closed.load(Ordering::Acquire) {
            return Err(message);
        }
        self.0.messages.push(message)?;
        // Fence B of the waker: between the push and both loads, of the receiver's place and of that core's sleep.
        fence(Ordering::SeqCst);
        let core = CoreId(self.0.core.load(Ordering::Relaxed));
        self.0.process.waker(core).wake_fenced();
        Ok(())
    }
}

impl<T> HostReceiver<T> {
    /// Before the calling core sleeps, after its waker's `fall_asleep`: whether there is a message.
    pub(crate) fn arm(&self, here: CoreId) -> bool {
        self.0.core.store(here.0, Ordering::Relaxed);
        // Fence A once more, for the place.
        fence(Ordering::SeqCst);
        !self.0.messages.is_empty()
    }
}

impl<T: Send + 'static> Receiver<T> for HostReceiver<T> {
    #[inline]
    fn receive(&mut self) -> Option<T> {
        // Asked in every poll: looking is two loads, while taking from an empty queue costs a fence.
        if self.0.messages.is_empty() { None } else { self.0.messages.pop() }
    }
}

impl<T> Drop for HostReceiver<T> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        // The messages end here and not on whatever core the last sender is. One that is sent at this very moment ends
        // with the mailbox.
        while self.0.messages.pop().is_some() {}
    }
}
