//! Simulated mailboxes between cores. Fault model: a message is seen when the scheduler lets the receiver run, and a
//! sleeping receiver only if it armed the box. Never: a message lost, doubled or reordered.

use crate::world::{self, Waiter};
use runtime::{Receiver, Sender};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by both ends. The lock is never contended: a world runs on one thread.
struct Box<T> {
    messages: VecDeque<T>,
    capacity: usize,
    open: bool,
    waiter: Waiter,
}

/// The sending end.
pub struct SimSender<T>(Arc<Mutex<Box<T>>>);

impl<T> Clone for SimSender<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The receiving end.
pub struct SimReceiver<T>(Arc<Mutex<Box<T>>>);

/// Makes a mailbox.
pub(crate) fn mailbox<T>(capacity: usize) -> (SimSender<T>, SimReceiver<T>) {
    let messages = VecDeque::new();
    let shared = Arc::new(Mutex::new(Box { messages, capacity, open: true, waiter: Waiter::Nobody }));
    (SimSender(Arc::clone(&shared)), SimReceiver(shared))
}

impl<T: Send + 'static> Sender<T> for SimSender<T> {
    fn send(&self, message: T) -> Result<(), T> {
        let waiter = {
            let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if !shared.open || shared.messages.len() >= shared.capacity {
                return Err(message);
            }
            shared.messages.push_back(message);
            shared.waiter
        };
        world::with(|world| {
            if !world.is_fenced() {
                // Handing a message over is an atomic operation: what was stored before is seen with it.
                world.drain_acting();
                world.changed();
                world.wake(waiter);
            }
        });
        Ok(())
    }
}

impl<T: Send + 'static> Receiver<T> for SimReceiver<T> {
    fn receive(&mut self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).messages.pop_front()
    }
}

impl<T> SimReceiver<T> {
    /// Registers who is woken by the next message; whether there is one.
    pub(crate) fn await_message(&self, waiter: Waiter) -> bool {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.waiter = waiter;
        !shared.messages.is_empty()
    }
}

impl<T> Drop for SimReceiver<T> {
    fn drop(&mut self) {
        let left = {
            let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            shared.open = false;
            std::mem::take(&mut shared.messages)
        };
        // Messages may hold ends of mailboxes, this one's sender among them: dropped with the lock released.
        drop(left);
    }
}
