//! Simulated eventfds. Fault model: none of their own. A ring is never lost; when it is seen is the scheduler's draw.

use crate::trace::Record;
use crate::world::{self, Waiter, World};
use runtime::Notifier;

#[derive(Default)]
pub(crate) struct Eventfd {
    pub(crate) rung: bool,
    pub(crate) waiter: Waiter,
}

impl World {
    /// Makes an eventfd that lives as long as the world.
    pub fn eventfd(&mut self) -> u32 {
        self.eventfds.push(Eventfd::default());
        self.eventfds.len() as u32 - 1
    }

    /// Rings one; the acting processor's earlier stores land first, as a system call does.
    pub fn ring(&mut self, eventfd: u32) {
        self.drain_acting();
        self.changed();
        self.trace.add(Record::Ring, u64::from(eventfd), 0);
        let state = &mut self.eventfds[eventfd as usize];
        state.rung = true;
        let waiter = state.waiter;
        self.wake(waiter);
    }

    /// Takes its rings; whether there were any.
    pub fn take_rings(&mut self, eventfd: u32) -> bool {
        std::mem::take(&mut self.eventfds[eventfd as usize].rung)
    }
}

/// A process's notifier.
#[derive(Debug)]
pub struct SimNotifier {
    pub(crate) eventfd: u32,
}

impl Notifier for SimNotifier {
    fn ring(&self) {
        world::with(|world| {
            world.crash_point();
            if !world.is_fenced() {
                world.ring(self.eventfd);
            }
        });
    }

    fn take(&self) -> bool {
        world::with(|world| !world.is_fenced() && world.take_rings(self.eventfd))
    }
}
