//! Small programs and models for tests of the world.

// Each test's binary uses a part of this.
#![allow(dead_code, unreachable_pub, reason = "one module for several test binaries")]

pub mod calls;
pub mod net;
pub mod nvme;

use runtime::{Instant, Poll, Poller};
use sim::faults::Faults;
use sim::platform::{SimPlatform, SimWakes};
use sim::scheduler::{self, End};
use sim::world::{self, Model, Program, Step, Temper};
use std::sync::Arc;

/// A poller made of one function.
pub struct Act<F>(pub F);

impl<F: FnMut() -> Poll> Poller<SimPlatform> for Act<F> {
    fn poll(&mut self, _: Instant) -> Poll {
        (self.0)()
    }
    fn arm(&mut self, _: Instant, _: &mut SimWakes) -> Poll {
        Poll::Idle { until: None }
    }
}

/// A model made of one function.
pub struct Does<F>(pub F);

impl<F: FnMut() -> Step> Model for Does<F> {
    fn step(&mut self) -> Step {
        (self.0)()
    }
}

pub fn create(seed: u64, temper: Temper) -> u32 {
    world::create(seed, temper, Faults::none(seed));
    world::with(|world| world.machine())
}

/// A program whose only poller is what `act` makes.
pub fn program<F: FnMut() -> Poll + 'static>(
    act: impl Fn(SimPlatform) -> F + Send + Sync + 'static,
) -> Program {
    Arc::new(move |platform| Box::new(Act(act(platform))) as Box<dyn Poller<SimPlatform>>)
}

pub fn spawn(machine: u32, program: &Program) -> u32 {
    world::with(|world| world.spawn(machine, program, 1, Some(false)))
}

/// A process that does one thing in one poll; the run ends when it has.
pub fn once(machine: u32, act: impl Fn(&SimPlatform) + Send + Sync + 'static) -> u32 {
    let act = Arc::new(act);
    let program = program(move |platform| {
        let act = Arc::clone(&act);
        move || {
            act(&platform);
            world::with(|world| world.finish());
            Poll::Idle { until: None }
        }
    });
    spawn(machine, &program)
}

pub fn finish() {
    assert_eq!(scheduler::run(), End::Finished, "{:?}", world::with(|world| world.failure().cloned()));
}

/// Runs to a failure, and says which checker found it.
pub fn fail() -> String {
    assert_eq!(scheduler::run(), End::Failed);
    world::with(|world| world.failure().expect("the run failed").checker.clone())
}

/// Now, in nanoseconds.
pub fn now_ns() -> u64 {
    world::with(|world| world.now().0)
}
