//! Simulated mailboxes between cores. Fault model: a message is under way for a drawn time, it is seen when the scheduler
//! lets the receiver run, and by a sleeping receiver only if it armed the box. Never: a message lost, doubled or, in one box,
//! reordered.

use crate::scheduler::Event;
use crate::world::{self, Waiter, World};
use runtime::{Instant, Receiver, Sender};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by both ends. The lock is never contended: a world runs on one thread.
struct Box<T> {
    /// Each with the moment at which it is there for the receiver.
    messages: VecDeque<(Instant, T)>,
    capacity: usize,
    open: bool,
    /// Its number in the world.
    number: u32,
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
    let number = world::with(World::add_box);
    let shared = Arc::new(Mutex::new(Box { messages: VecDeque::new(), capacity, open: true, number }));
    (SimSender(Arc::clone(&shared)), SimReceiver(shared))
}

impl<T: Send + 'static> Sender<T> for SimSender<T> {
    fn send(&self, message: T) -> Result<(), T> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !shared.open || shared.messages.len() >= shared.capacity {
            return Err(message);
        }
        let at = world::with(|world| {
            let sent = world.now().0 + world.draw_message_delay();
            // No message overtakes another one of its box.
            let at = shared.messages.back().map_or(sent, |(last, _)| sent.max(last.0));
            if !world.is_fenced() {
                // Handing a message over is an atomic operation: what was stored before is seen with it.
                world.drain_acting();
                world.message_comes(shared.number, Instant(at));
            }
            Instant(at)
        });
        shared.messages.push_back((at, message));
        Ok(())
    }
}

impl<T: Send + 'static> Receiver<T> for SimReceiver<T> {
    fn receive(&mut self) -> Option<T> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = |at: Instant| at <= world::with(|world| world.now());
        shared.messages.pop_front_if(|(at, _)| is_there(*at)).map(|(_, message)| message)
    }
}

impl<T> SimReceiver<T> {
    /// Registers who is woken by the next message; whether there is one.
    pub(crate) fn await_message(&self, waiter: Waiter) -> bool {
        let shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        world::with(|world| {
            world.boxes[shared.number as usize] = waiter;
            shared.messages.front().is_some_and(|(at, _)| *at <= world.now())
        })
    }
}

impl World {
    fn add_box(&mut self) -> u32 {
        self.boxes.push(Waiter::Nobody);
        self.boxes.len() as u32 - 1
    }

    /// How long a message is under way: half of them are there at once.
    fn draw_message_delay(&mut self) -> u64 {
        let max = self.temper.message_delay_ns;
        if max == 0 || self.streams.messages.chance(1, 2) { 0 } else { self.streams.messages.below(max) }
    }

    /// A message is in a box, or will be.
    fn message_comes(&mut self, number: u32, at: Instant) {
        if at > self.now {
            self.schedule(at, Event::Message(number));
        } else {
            self.message_came(number);
        }
    }

    /// A message is in a box.
    pub(crate) fn message_came(&mut self, number: u32) {
        self.changed();
        self.wake(self.boxes[number as usize]);
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
