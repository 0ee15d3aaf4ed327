//! Simulated offloaded jobs. Fault model: a job runs at a drawn moment, jobs in any order; its process may die at any of
//! its file operations. Never: a job of a dead process runs.

use crate::trace::Record;
use crate::world::{self, Actor, Death, Waiter, World};
use runtime::{Instant, Job};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// Shortest and longest delay of a job, in nanoseconds.
const DELAY_NS: (u64, u64) = (2_000, 300_000);

/// A job that has not run.
pub(crate) struct PendingJob {
    process: u32,
    run: Box<dyn FnOnce()>,
}

struct Slot<T> {
    result: Option<T>,
    waiter: Waiter,
}

/// A job as its owner holds it.
pub struct SimJob<T>(Rc<RefCell<Slot<T>>>);

impl World {
    pub(crate) fn offload<T: 'static>(&mut self, job: impl FnOnce() -> T + 'static) -> SimJob<T> {
        let slot = Rc::new(RefCell::new(Slot { result: None, waiter: Waiter::Nobody }));
        let Some(process) = self.acting_process().filter(|_| !self.is_fenced()) else { return SimJob(slot) };
        let shared = Rc::clone(&slot);
        let run = Box::new(move || {
            let result = job();
            let waiter = {
                let mut slot = shared.borrow_mut();
                slot.result = Some(result);
                slot.waiter
            };
            world::with(|world| {
                world.changed();
                world.wake(waiter);
            });
        });
        self.jobs.push(Some(PendingJob { process, run }));
        let delay = self.streams.process.between(DELAY_NS.0, DELAY_NS.1);
        let event = crate::scheduler::Event::Job(self.jobs.len() as u32 - 1);
        self.schedule(Instant(self.now.0 + delay), event);
        SimJob(slot)
    }
}

/// The moment of a job has come.
pub(crate) fn run_job(number: u32) {
    let Some(PendingJob { process, run }) = world::with(|world| world.jobs[number as usize].take()) else {
        return;
    };
    let alive = world::with(|world| {
        world.trace.add(Record::Job, u64::from(number), u64::from(process));
        world.set_actor(Actor::Job(process));
        world.is_alive(process)
    });
    let end = catch_unwind(AssertUnwindSafe(|| {
        if alive {
            run();
        } else {
            drop(run);
        }
    }));
    world::with(|world| world.set_actor(Actor::World));
    if let Err(payload) = end {
        if !payload.is::<Death>() {
            let text = crate::scheduler::panic_text(&*payload);
            world::with(|world| world.fail("panic", text));
        }
        crate::scheduler::bury(process);
    }
}

impl<T: Send + 'static> Job<T> for SimJob<T> {
    fn take(&mut self) -> Option<T> {
        self.0.borrow_mut().result.take()
    }
}

impl<T> SimJob<T> {
    /// Registers who is woken by its end; whether it has ended.
    pub(crate) fn await_end(&self, waiter: Waiter) -> bool {
        let mut slot = self.0.borrow_mut();
        slot.waiter = waiter;
        slot.result.is_some()
    }
}
