//! Lives and sleeps: what is dead runs no further, nothing that was armed is slept through, a run in which nothing can
//! happen any more is found, and a seed is one run in every process.

mod common;

use common::{Does, create, fail, finish, now_ns, once, program, spawn};
use runtime::{Handle, Instant, Notifier, Platform, Poll, Poller, Wakes, Window};
use sim::memory::SimWindow;
use sim::notifier::SimNotifier;
use sim::platform::{SimPlatform, SimWakes};
use sim::scheduler;
use sim::unix::SimHandle;
use sim::world::{self, Program, Step, Temper};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Arms its notifier first, and then looks at memory for a while, in which the ring may come.
struct LongArm {
    notifier: SimNotifier,
    window: SimWindow,
}

impl Poller<SimPlatform> for LongArm {
    fn poll(&mut self, _: Instant) -> Poll {
        if self.notifier.take() {
            world::with(|world| world.finish());
        }
        Poll::Idle { until: None }
    }

    fn arm(&mut self, _: Instant, wakes: &mut SimWakes) -> Poll {
        wakes.notifier(&self.notifier);
        for _ in 0..32 {
            self.window.load_u8(0, Relaxed);
        }
        Poll::Idle { until: None }
    }
}

#[test]
fn what_comes_while_a_core_arms_ends_the_sleep() {
    for seed in 0..200 {
        let machine = create(seed, Temper { interleave_every: 8, ..Temper::default() });
        let (eventfd, window) = world::with(|world| (world.eventfd(), world.memory_object(8).1));
        let program: Program = Arc::new(move |_| {
            let notifier = SimHandle::eventfd(eventfd).into_notifier().expect("an eventfd");
            Box::new(LongArm { notifier, window })
        });
        let mut steps = 0;
        let rings = Does(move || {
            steps += 1;
            // Stepped only between two accesses of the target, the first of which is in its first arm.
            if now_ns() > 1_000_000 && steps > 1 {
                world::with(|world| world.ring(eventfd));
                return Step::Done;
            }
            Step::Idle { until: None }
        });
        world::with(|world| {
            world.spawn(machine, &program, 1, Some(true));
            world.add_model(Box::new(rings), true);
        });
        finish();
        world::clear();
    }
}

#[test]
fn a_stuck_run_is_found_whether_its_cores_sleep_or_poll() {
    for sleeps in [false, true] {
        let machine = create(1, Temper::default());
        let idle = program(|_| || Poll::Idle { until: None });
        world::with(|world| world.spawn(machine, &idle, 2, Some(sleeps)));
        assert_eq!(fail(), "stuck");
        assert!(world::with(|world| world.steps()) < 20, "found at once");
        world::clear();
    }
}

#[test]
fn a_core_that_polls_sees_what_others_store() {
    for seed in 0..100 {
        let machine = create(seed, Temper::default());
        let (window, processor) = world::with(|world| (world.memory_object(8).1, world.processor()));
        let looks = program(move |_| {
            move || {
                if window.load_u32(0, Relaxed) == 7 {
                    world::with(|world| world.finish());
                }
                Poll::Idle { until: None }
            }
        });
        spawn(machine, &looks);
        // One store with no barrier behind it, and nothing more: it leaves its buffer all the same.
        let guest = Does(move || {
            world::as_processor(processor, || window.store_u32(0, 7, Relaxed));
            Step::Done
        });
        world::with(|world| world.add_model(Box::new(guest), false));
        finish();
        world::clear();
    }
}

#[test]
fn a_life_that_is_killed_in_the_middle_of_a_poll_runs_not_one_access_more() {
    for seed in 0..50 {
        let machine = create(seed, Temper::default());
        let (_, window) = world::with(|world| world.memory_object(8));
        let passed = Arc::new(AtomicU64::new(0));
        let counts = Arc::clone(&passed);
        let process = once(machine, move |_| {
            for _ in 0..1000 {
                window.load_u8(0, Relaxed);
                counts.fetch_add(1, Relaxed);
            }
        });
        let at_death = Rc::new(Cell::new(None));
        let noted = Rc::clone(&at_death);
        let counts = Arc::clone(&passed);
        let mut steps = 0;
        let killer = Does(move || {
            steps += 1;
            if world::with(|world| world.is_alive(process)) && counts.load(Relaxed) > 100 {
                scheduler::kill(process);
                noted.set(Some(counts.load(Relaxed)));
            }
            if noted.get().is_some() && steps % 8 == 0 {
                world::with(|world| world.finish());
            }
            Step::Worked
        });
        world::with(|world| world.add_model(Box::new(killer), true));
        finish();
        let died_at = at_death.get().expect("killed");
        assert!(died_at < 1000, "in the middle of the poll");
        assert_eq!(passed.load(Relaxed), died_at);
        world::clear();
    }
}

#[test]
fn a_store_through_a_mapping_for_reading_is_a_failure() {
    let machine = create(1, Temper::default());
    once(machine, |platform| {
        let memory = platform.shared_memory("x", 4096).expect("memory");
        let handle = runtime::Memory::handle(&memory).expect("a handle");
        let mapped = handle.map(0, 4096, runtime::Access::Read).expect("mapped");
        runtime::Memory::window(&mapped).store_u8(0, 1, Relaxed);
    });
    assert_eq!(fail(), "memory");
    world::clear();
}

#[test]
fn memory_that_shrinks_is_lost_as_a_whole() {
    let machine = create(1, Temper::default());
    let (object, window) = world::with(|world| world.memory_object(8192));
    window.store_u8(0, 1, Relaxed);
    once(machine, move |_| {
        let mapped = SimHandle::memory(object).map(0, 8192, runtime::Access::ReadWrite).expect("mapped");
        let window = runtime::Memory::window(&mapped);
        assert_eq!(window.load_u8(0, Relaxed), 1);
        // A store that still waits in the buffer finds its memory gone.
        window.store_u8(8191, 1, Relaxed);
        world::with(|world| world.shrink_object(object, 4096));
        assert_eq!((window.load_u8(0, Relaxed), runtime::Memory::is_lost(&mapped)), (1, false));
        assert_eq!((window.load_u8(4096, Relaxed), runtime::Memory::is_lost(&mapped)), (0, true));
        assert_eq!(window.load_u8(0, Relaxed), 0);
    });
    finish();
    world::clear();
}
