//! The disk and the directory over the deaths of processes: what was queued and not sent never happens, what was sent may
//! still happen until the lock is had, and never after; memory that is let go under a disk's operation is told of.

mod common;

use common::{Does, create, fail, finish, program, spawn};
use runtime::{
    Directory, ErrorKind, File, FileChannel, FileCompletion, FileEngine, FileLock, FileOp, FileOptions, Job,
    Memory, Platform, Poll, Window,
};
use sim::disk::SimChannel;
use sim::faults::{FaultKind, Faults, Rate};
use sim::files::SimFile;
use sim::memory::SimMemory;
use sim::platform::SimPlatform;
use sim::scheduler;
use sim::unix::SimHandle;
use sim::world::{self, Program, Step, Temper};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

const BLOCK: u64 = 512;
const OPTIONS: FileOptions = FileOptions { engine: FileEngine::Uring, read_only: false };

/// A world with one disk of 16 blocks at `/disk`, in which the faults of `kind` always strike.
fn world_with(seed: u64, kind: Option<FaultKind>) -> (u32, u32) {
    let rate = move |asked| match Some(asked) == kind {
        true => Rate { of_65536: 65536, most: u64::MAX },
        false => Rate::default(),
    };
    world::create(seed, Temper::default(), Faults::drawn(seed, rate));
    world::with(|world| {
        let machine = world.machine();
        (machine, world.create_disk(machine, "/disk", 16 * BLOCK, BLOCK as u32, BLOCK as u32))
    })
}

/// A program that opens the disk, takes its lock, and then does as `act` says with its channel at each poll; `act` has a
/// payload of one block of `fill`.
fn on_disk(
    fill: u8,
    act: impl Fn(&mut SimChannel, &mut Option<SimMemory>, u64) -> Poll + Send + Sync + 'static,
) -> Program {
    let act = Arc::new(act);
    program(move |platform: SimPlatform| {
        let act = Arc::clone(&act);
        let directory = platform.directory();
        let mut opening = platform.offload(move || directory.open("/disk", OPTIONS).expect("a disk"));
        let payload = platform.shared_memory("payload", BLOCK).expect("memory");
        payload.window().fill(0, BLOCK, fill);
        let (mut payload, mut file, mut channel, mut polls) = (Some(payload), None::<SimFile>, None, 0);
        move || {
            if let Some(opened) = opening.take() {
                file = Some(opened);
            }
            if let (Some(file), None) = (&file, &channel)
                && file.try_lock() == Ok(FileLock::Held)
            {
                channel = Some(platform.channel(file).expect("a channel"));
            }
            let Some(channel) = &mut channel else { return Poll::Busy };
            polls += 1;
            act(channel, &mut payload, polls - 1)
        }
    })
}

fn write(channel: &mut SimChannel, payload: &Option<SimMemory>, block: u64) {
    let window = payload.as_ref().expect("a payload").window();
    channel.submit(FileOp::Write { fua: false }, block * BLOCK, BLOCK, &[window], block).expect("room");
}

/// The first byte of a block, as a reader sees it.
fn block(disk: u32, block: u64) -> u8 {
    world::with(|world| world.disk_content(disk)[(block * BLOCK) as usize])
}

/// One life writes block 0 (sent) and block 1 (queued only) and is killed; the next one takes the lock. What the blocks
/// held at the death, when the lock was had, and at the end.
fn lives(seed: u64, kind: Option<FaultKind>) -> [[u8; 2]; 3] {
    let (machine, disk) = world_with(seed, kind);
    let sent = Arc::new(AtomicBool::new(false));
    let tells = Arc::clone(&sent);
    let first = on_disk(7, move |channel, payload, poll| {
        if poll == 0 {
            write(channel, payload, 0);
            channel.poll(&mut Vec::new());
            write(channel, payload, 1);
            tells.store(true, Relaxed);
        }
        Poll::Busy
    });
    let blocks = move || [block(disk, 0), block(disk, 1)];
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = Arc::clone(&seen);
    let second = on_disk(9, move |_, _, poll| {
        if poll == 0 {
            sees.lock().expect("one thread").push(blocks());
        }
        Poll::Idle { until: None }
    });
    let process = spawn(machine, &first);
    let sees = Arc::clone(&seen);
    let mut end = u64::MAX;
    let supervisor = Does(move || {
        let now = common::now_ns();
        if world::with(|world| world.is_alive(process)) && sent.load(Relaxed) {
            scheduler::kill(process);
            sees.lock().expect("one thread").push(blocks());
            spawn(machine, &second);
        }
        if sees.lock().expect("one thread").len() == 2 && end == u64::MAX {
            // Longer than anything late can be.
            end = now + 10_000_000;
        }
        if now >= end {
            sees.lock().expect("one thread").push(blocks());
            world::with(|world| world.finish());
        }
        Step::Idle { until: Some(runtime::Instant(now + 2000)) }
    });
    world::with(|world| world.add_model(Box::new(supervisor), false));
    finish();
    world::clear();
    let seen = seen.lock().expect("one thread");
    [seen[0], seen[1], seen[2]]
}

#[test]
fn a_dead_process_writes_until_the_lock_is_had_and_never_after() {
    let outcomes: BTreeSet<_> = (0..100).map(|seed| lives(seed, Some(FaultKind::LateWrite))).collect();
    for [_, locked, end] in &outcomes {
        assert_eq!(locked, end, "nothing changes once the lock is had");
        assert_eq!(locked[1], 0, "what was only queued never happens");
    }
    assert!(outcomes.contains(&[[0, 0], [7, 0], [7, 0]]), "some writes come after the death: {outcomes:?}");
    assert!(outcomes.contains(&[[0, 0], [0, 0], [0, 0]]), "some are cancelled by it: {outcomes:?}");
}

#[test]
fn memory_let_go_under_an_operation_is_a_failure() {
    let (machine, _) = world_with(1, None);
    let program = on_disk(7, |channel, payload, poll| {
        if poll == 0 {
            write(channel, payload, 0);
            channel.poll(&mut Vec::new());
            *payload = None;
        }
        Poll::Busy
    });
    spawn(machine, &program);
    assert_eq!(fail(), "memory");
    world::clear();
}

#[test]
fn a_file_whose_lock_is_not_held_takes_no_operation() {
    let (machine, _) = world_with(1, None);
    let program = program(move |platform: SimPlatform| {
        let directory = platform.directory();
        let mut opening = platform.offload(move || directory.open("/disk", OPTIONS).expect("a disk"));
        move || {
            if let Some(file) = opening.take() {
                let mut channel = platform.channel(&file).expect("a channel");
                channel.submit(FileOp::Flush, 0, 0, &[], 0).expect("room");
            }
            Poll::Busy
        }
    });
    spawn(machine, &program);
    assert_eq!(fail(), "fence");
    world::clear();
}

/// What one write of a block gives.
fn outcome(kind: Option<FaultKind>, heal_at: Option<u64>) -> (FileCompletion, u64) {
    let (machine, disk) = world_with(1, kind);
    let ended = Arc::new(Mutex::new(None));
    let tells = Arc::clone(&ended);
    let program = on_disk(7, move |channel, payload, poll| {
        if poll == 0 {
            write(channel, payload, 0);
        }
        let mut done = Vec::new();
        if channel.poll(&mut done) {
            *tells.lock().expect("one thread") = Some((done[0], common::now_ns()));
            world::with(|world| world.finish());
        }
        Poll::Busy
    });
    spawn(machine, &program);
    if let Some(at) = heal_at {
        let heals = Does(move || {
            if common::now_ns() < at {
                return Step::Idle { until: Some(runtime::Instant(at)) };
            }
            world::with(|world| world.faults().heal());
            Step::Done
        });
        world::with(|world| world.add_model(Box::new(heals), false));
    }
    finish();
    let (completion, at) = ended.lock().expect("one thread").expect("it ended");
    assert_eq!(block(disk, 0), if completion.result.is_ok() { 7 } else { 0 });
    world::clear();
    (completion, at)
}

#[test]
fn an_operation_ends_as_its_fault_says() {
    let result = |kind| outcome(kind, None).0.result;
    assert_eq!(result(None), Ok(BLOCK));
    assert_eq!(result(Some(FaultKind::DiskAgain)), Err(ErrorKind::WouldBlock.into()));
    assert_eq!(result(Some(FaultKind::DiskError)), Err(ErrorKind::Io.into()));
    let healed_at = 50_000_000;
    let (completion, at) = outcome(Some(FaultKind::DiskStuck), Some(healed_at));
    assert_eq!(completion.result, Ok(BLOCK));
    assert!(at >= healed_at, "stuck until the faults are over");
}

#[test]
fn memory_that_shrinks_under_an_operation_fails_it() {
    let (machine, _) = world_with(1, None);
    let object = world::with(|world| world.memory_object(4096).0);
    let program = on_disk(7, move |channel, payload, poll| {
        if poll == 0 {
            let mapped = SimHandle::memory(object);
            let mapped = runtime::Handle::map(&mapped, 0, 4096, runtime::Access::ReadWrite).expect("mapped");
            let window = mapped.window().slice(4096 - BLOCK, BLOCK).expect("inside");
            channel.submit(FileOp::Read, 0, BLOCK, &[window], 0).expect("room");
            channel.poll(&mut Vec::new());
            *payload = Some(mapped);
            world::with(|world| world.shrink_object(object, 1024));
        }
        let mut done = Vec::new();
        if channel.poll(&mut done) {
            assert_eq!(done[0].result, Err(ErrorKind::Io.into()));
            world::with(|world| world.finish());
        }
        Poll::Busy
    });
    spawn(machine, &program);
    finish();
    world::clear();
}

/// Kills a process at its `point`-th point while it replaces the content of a small file; what is there then.
fn file_after_death(seed: u64, point: u64) -> Option<Vec<u8>> {
    let machine = create(seed, Temper::default());
    let program = program(move |platform: SimPlatform| {
        let directory = platform.directory();
        let mut job = platform.offload(move || {
            directory.create_directory("/d").expect("made");
            directory.write("/d/x", b"old").expect("written");
            directory.write("/d/x", b"newer").expect("written");
        });
        move || {
            if job.take().is_some() {
                world::with(|world| world.finish());
            }
            Poll::Busy
        }
    });
    let process = spawn(machine, &program);
    world::with(|world| world.kill_after(process, point));
    scheduler::run();
    let content = world::with(|world| world.small_file(machine, "/d/x").map(<[u8]>::to_vec));
    world::clear();
    content
}

#[test]
fn a_death_in_a_write_leaves_any_part_of_the_new_bytes() {
    let contents: BTreeSet<_> =
        (0..40).flat_map(|seed| (1..12).map(move |point| file_after_death(seed, point))).collect();
    for expected in [&b"old"[..], b"newer", b"", b"ne", b"o"] {
        assert!(contents.contains(&Some(expected.to_vec())), "{expected:?} in {contents:?}");
    }
    assert!(contents.contains(&None));
}
