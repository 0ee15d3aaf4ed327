//! What the world itself promises: x86's memory model and no less, torn bulk stores, deaths at any store, sleeps that only
//! what was armed ends, disks and directories that lose with the power what they may and nothing else, and one trace for
//! one seed.

mod common;

use common::{Does, create, finish, once, program, spawn};
use runtime::{
    Directory, File, FileChannel, FileEngine, FileLock, FileOp, FileOptions, Handle, Instant, Job, Memory,
    Notifier, Platform, Poll, Poller, Wakes, Window,
};
use sim::memory::SimWindow;
use sim::notifier::SimNotifier;
use sim::platform::{SimPlatform, SimWakes};
use sim::scheduler::{self, End};
use sim::unix::SimHandle;
use sim::world::{self, Program, Step, Temper};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex};

/// Two processors each store to one word and then load the other's: on x86 both may read 0, unless each has a full fence
/// in between.
fn store_buffering(fenced: bool, seed: u64) -> (u32, u32) {
    let machine = create(seed, Temper { interleave_every: 2, ..Temper::default() });
    let (_, window) = world::with(|world| world.memory_object(64));
    let processor = world::with(|world| world.processor());
    let guest_saw = Rc::new(Cell::new(None));
    let saw = Rc::clone(&guest_saw);
    let mut at = 0;
    let guest = Does(move || {
        world::as_processor(processor, || match at {
            0 => window.store_u32(32, 1, Relaxed),
            1 if fenced => SimWindow::fence(SeqCst),
            2 => saw.set(Some(window.load_u32(0, Relaxed))),
            _ => {}
        });
        at += 1;
        if at > 3 { Step::Done } else { Step::Worked }
    });
    world::with(|world| world.add_model(Box::new(guest), true));
    let seen = Arc::new(Mutex::new(None));
    let result = Arc::clone(&seen);
    let program = program(move |_| {
        let result = Arc::clone(&result);
        let mut polls = 0;
        move || {
            polls += 1;
            if polls == 1 {
                window.store_u32(0, 1, Relaxed);
                if fenced {
                    SimWindow::fence(SeqCst);
                }
                *result.lock().expect("one thread") = Some(window.load_u32(32, Relaxed));
            }
            if polls > 40 {
                world::with(|world| world.finish());
            }
            Poll::Busy
        }
    });
    spawn(machine, &program);
    finish();
    let pair = (seen.lock().expect("one thread").expect("ran"), guest_saw.get().expect("ran"));
    world::clear();
    pair
}

#[test]
fn store_buffers_are_those_of_x86() {
    let relaxed: BTreeSet<_> = (0..600).map(|seed| store_buffering(false, seed)).collect();
    assert!(relaxed.contains(&(0, 0)), "without fences both may read 0: {relaxed:?}");
    let fenced: BTreeSet<_> = (0..600).map(|seed| store_buffering(true, seed)).collect();
    assert!(!fenced.contains(&(0, 0)), "with fences one of them sees the other: {fenced:?}");
    assert!(fenced.len() >= 2, "both orders come up: {fenced:?}");
}

#[test]
fn a_processor_sees_its_own_stores_in_any_width() {
    let machine = create(1, Temper { interleave_every: 0, ..Temper::default() });
    let (_, window) = world::with(|world| world.memory_object(64));
    once(machine, move |_| {
        window.store_u64(0, 0x1122_3344_5566_7788, Relaxed);
        window.store_u16(2, 0xabcd, Relaxed);
        assert_eq!(window.load_u64(0, Relaxed), 0x1122_3344_abcd_7788);
        assert_eq!(window.load_u32(0, Relaxed), 0xabcd_7788);
        assert_eq!(window.load_u8(3, Relaxed), 0xab);
        let mut bytes = [0; 4];
        window.read(1, &mut bytes);
        assert_eq!(bytes, [0x77, 0xcd, 0xab, 0x44]);
    });
    finish();
    world::clear();
}

/// A life of eight stores that dies at its `point`-th: what memory holds afterwards.
fn stores_before_death(seed: u64, point: u64) -> Vec<u8> {
    let machine = create(seed, Temper::default());
    let (object, window) = world::with(|world| world.memory_object(8));
    let process = once(machine, move |_| (0..8).for_each(|at| window.store_u8(at, 1, Relaxed)));
    let watch = Does(move || {
        if world::with(|world| world.is_alive(process)) {
            return Step::Worked;
        }
        world::with(|world| world.finish());
        Step::Done
    });
    world::with(|world| {
        world.kill_after(process, point);
        world.add_model(Box::new(watch), false);
    });
    finish();
    let window = world::with(|world| {
        assert_eq!(world.kills(), u64::from(point <= 8));
        let processor = world.processor();
        world.barrier(processor);
        world.window_onto(object)
    });
    let mut content = vec![0; 8];
    if point <= 8 {
        window.read(0, &mut content);
    }
    world::clear();
    content
}

#[test]
fn a_death_falls_between_any_two_stores_and_buffered_ones_land() {
    for point in 1..=8 {
        let expected: Vec<u8> = (0..8).map(|at| u8::from(at + 1 < point)).collect();
        assert_eq!(stores_before_death(point, point), expected, "death at point {point}");
    }
    stores_before_death(9, 9);
}

#[test]
fn a_bulk_store_is_torn_by_aligned_words() {
    let mut shapes = BTreeSet::new();
    for seed in 0..64 {
        let machine = create(seed, Temper::default());
        let (object, window) = world::with(|world| world.memory_object(64));
        let process = once(machine, move |_| window.write(4, &[7; 56]));
        world::with(|world| world.kill_after(process, 1));
        scheduler::run();
        let window = world::with(|world| world.window_onto(object));
        let mut bytes = [0; 64];
        window.read(0, &mut bytes);
        assert!(bytes[8..56].chunks(8).all(|word| word == [0; 8] || word == [7; 8]), "{bytes:?}");
        assert!([[0; 4], [7; 4]].iter().any(|whole| bytes[4..8] == *whole) && bytes[..4] == [0; 4]);
        shapes.insert(bytes);
        world::clear();
    }
    assert!(shapes.len() > 20, "many subsets of the words come up: {}", shapes.len());
}

#[test]
fn touching_unmapped_memory_is_a_failure() {
    let machine = create(1, Temper::default());
    once(machine, |platform| {
        let memory = platform.shared_memory("x", 4096).expect("memory");
        let window = memory.window();
        drop(memory);
        window.store_u8(0, 1, Relaxed);
    });
    assert_eq!(scheduler::run(), End::Failed);
    assert_eq!(world::with(|world| world.failure().expect("failed").checker.clone()), "memory");
    world::clear();
}

/// A sleeper that arms its notifier, or forgets to.
struct Sleeper {
    notifier: SimNotifier,
    arms: bool,
}

impl Poller<SimPlatform> for Sleeper {
    fn poll(&mut self, _: Instant) -> Poll {
        if self.notifier.take() {
            world::with(|world| world.finish());
        }
        Poll::Idle { until: None }
    }
    fn arm(&mut self, _: Instant, wakes: &mut SimWakes) -> Poll {
        if self.arms {
            wakes.notifier(&self.notifier);
        }
        Poll::Idle { until: None }
    }
}

/// Whether a core that sleeps notices a ring that comes later.
fn sleeper_wakes(arms: bool, seed: u64) -> bool {
    let machine = create(seed, Temper::default());
    let eventfd = world::with(|world| world.eventfd());
    let program: Program = Arc::new(move |_| {
        let notifier = SimHandle::eventfd(eventfd).into_notifier().expect("an eventfd");
        Box::new(Sleeper { notifier, arms }) as Box<dyn Poller<SimPlatform>>
    });
    let mut waited = false;
    let rings = Does(move || {
        if std::mem::replace(&mut waited, true) {
            world::with(|world| world.ring(eventfd));
            return Step::Done;
        }
        Step::Idle { until: Some(Instant(world::with(|world| world.now()).0 + 100_000)) }
    });
    world::with(|world| {
        world.spawn(machine, &program, 1, Some(true));
        world.add_model(Box::new(rings), false);
    });
    let end = scheduler::run();
    if end == End::Failed {
        assert_eq!(world::with(|world| world.failure().expect("failed").checker.clone()), "stuck");
    }
    world::clear();
    end == End::Finished
}

#[test]
fn a_sleeping_core_is_woken_only_by_what_it_armed() {
    for seed in 0..50 {
        assert!(sleeper_wakes(true, seed));
        assert!(!sleeper_wakes(false, seed), "a wake-up that nobody armed");
    }
}

/// Replaces a small file, with or without syncing the new one; then the power goes. What is there after.
fn file_after_power_loss(seed: u64, synced: bool) -> Option<Vec<u8>> {
    let machine = create(seed, Temper::default());
    let program = program(move |platform: SimPlatform| {
        let directory = platform.directory();
        let mut job = platform.offload(move || {
            directory.create_directory("/d")?;
            directory.write("/d/x", b"old")?;
            directory.sync("/d/x")?;
            directory.sync_directory("/d")?;
            directory.write("/d/x.new", b"new")?;
            if synced {
                directory.sync("/d/x.new")?;
            }
            directory.rename("/d/x.new", "/d/x")
        });
        move || {
            if let Some(result) = job.take() {
                result.expect("all of it");
                world::with(|world| world.finish());
            }
            Poll::Busy
        }
    });
    spawn(machine, &program);
    finish();
    scheduler::power_loss(machine);
    let content = world::with(|world| world.small_file(machine, "/d/x").map(<[u8]>::to_vec));
    world::clear();
    content
}

#[test]
fn a_replaced_file_is_old_or_new_if_it_was_synced_and_may_be_anything_if_not() {
    let synced: BTreeSet<_> = (0..200).map(|seed| file_after_power_loss(seed, true)).collect();
    assert_eq!(synced, BTreeSet::from([Some(b"old".to_vec()), Some(b"new".to_vec())]));
    let unsynced: BTreeSet<_> = (0..200).map(|seed| file_after_power_loss(seed, false)).collect();
    assert!(unsynced.contains(&Some(vec![0; 3])) && unsynced.contains(&Some(Vec::new())), "{unsynced:?}");
}

/// Writes block 0 and flushes, block 1 with FUA, block 2 with neither; then the power goes. Which of them are there.
fn blocks_after_power_loss(seed: u64) -> [bool; 3] {
    let machine = create(seed, Temper::default());
    let disk = world::with(|world| world.create_disk(machine, "/disk", 64 << 10, 512, 512));
    let program = program(move |platform: SimPlatform| {
        let directory = platform.directory();
        let options = FileOptions { engine: FileEngine::Uring, read_only: false };
        let mut opening = Some(platform.offload(move || directory.open("/disk", options).expect("a disk")));
        let payload = platform.shared_memory("payload", 512).expect("memory");
        payload.window().fill(0, 512, 9);
        let (mut channel, mut done, mut step) = (None, Vec::new(), 0);
        move || {
            if let Some(file) = opening.as_mut().and_then(Job::take) {
                opening = None;
                assert_eq!(file.try_lock(), Ok(FileLock::Held));
                channel = Some(platform.channel(&file).expect("a channel"));
            }
            let Some(channel) = &mut channel else { return Poll::Busy };
            channel.poll(&mut done);
            if step == 0 || done.pop().is_some() {
                let write = |fua| (FileOp::Write { fua }, 512, vec![payload.window()]);
                let (op, len, segments) = match step {
                    0 | 3 => write(false),
                    1 => (FileOp::Flush, 0, Vec::new()),
                    2 => write(true),
                    _ => {
                        world::with(|world| world.finish());
                        return Poll::Busy;
                    }
                };
                let offset = [0, 0, 512, 1024][step as usize];
                channel.submit(op, offset, len, &segments, step).expect("room");
                step += 1;
            }
            Poll::Busy
        }
    });
    spawn(machine, &program);
    finish();
    scheduler::power_loss(machine);
    let present = world::with(|world| {
        let content = world.disk_content(disk);
        [0, 512, 1024].map(|at| {
            let block = &content[at..at + 512];
            assert!(block == [0; 512] || block == [9; 512], "torn below the atomic unit");
            block[0] == 9
        })
    });
    world::clear();
    present
}

#[test]
fn power_loss_spares_what_was_flushed_or_written_with_fua() {
    let outcomes: BTreeSet<_> = (0..100).map(blocks_after_power_loss).collect();
    assert_eq!(outcomes, BTreeSet::from([[true, true, true], [true, true, false]]));
}

/// A small run, with one bit of one store or the order of two stores changed.
fn trace_of(seed: u64, flip: u8, swapped: bool) -> u128 {
    let machine = create(seed, Temper::default());
    let (_, window) = world::with(|world| world.memory_object(64));
    once(machine, move |_| {
        let (first, second) = if swapped { (8, 0) } else { (0, 8) };
        window.store_u8(first, 5, Relaxed);
        window.store_u8(second, 5, Relaxed);
        window.store_u8(16, 40 ^ flip, Relaxed);
    });
    finish();
    let trace = world::with(|world| world.trace().finish());
    world::clear();
    trace
}

#[test]
fn the_trace_tells_one_bit_and_one_order_apart() {
    let trace = trace_of(3, 0, false);
    assert_eq!(trace, trace_of(3, 0, false));
    assert_ne!(trace, trace_of(3, 1, false));
    assert_ne!(trace, trace_of(3, 0, true));
    assert_ne!(trace, trace_of(4, 0, false));
}
