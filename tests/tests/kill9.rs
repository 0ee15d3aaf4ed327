//! kill -9 under load, again and again: every request that is out completes exactly once, and every sector is right.
//!
//! The front-end is ours, behaves as QEMU does, and lives on. One thread drives a verified load; another kills the target at
//! drawn moments, also while it recovers from the kill before, and starts it again on what it left. Nobody calls an RPC: the
//! state directory must bring everything back. The judge of double completion, lost requests, wrong or stale data, and of
//! buffers written after their completion is [`tests::client::load`]; that a request was really out at a kill is counted.
//! `REPRISE_KILL_SEED=N` repeats the draws of a run (not what the machine was doing just then).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::client::Draw;
use tests::client::blkio::{Blkio, Options as BlkioOptions};
use tests::client::frontend::{Frontend, Options};
use tests::client::load::{Load, LoadOptions};
use tests::client::memory::Pages;
use tests::client::model::Model;
use tests::image::Image;
use tests::target::Target;

/// Bytes of the disks.
const DISK: u64 = 8 << 20;
/// From a kill to a running ring, with the wait for the dead process's I/O in it.
const RECONNECT_WAIT: Duration = Duration::from_secs(30);
/// A life that is not cut short completes this many requests before its kill, or as many as it can in [`LIFE_WAIT`].
const LIFE_REQUESTS: u64 = 100;
/// See [`LIFE_REQUESTS`].
const LIFE_WAIT: Duration = Duration::from_secs(5);
/// Looks at the rings between two looks whether the connection is still there.
const STRIDE: u64 = 16;
/// Nothing completes for this long on a living connection: a request is lost.
const PROGRESS_WAIT: Duration = Duration::from_secs(20);

fn seed() -> u64 {
    let seed =
        std::env::var("REPRISE_KILL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |since| since.as_micros() as u64)
        });
    println!("REPRISE_KILL_SEED={seed}");
    seed
}

/// What a run counted.
#[derive(Debug)]
struct Outcome {
    kills_with_requests_out: u64,
    reconnects: u64,
}

/// Tells the killer that the judge has come to its verdict, also when that is a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs a load on a controller of `bdev` through `kills` kills.
fn survive(target: &mut Target, bdev: &str, kills: u64, options: Options, load: LoadOptions) -> Outcome {
    let socket = target.serve(bdev, "vhost.0");
    let mut frontend = Frontend::connect_and_start(&socket, options).expect("a connection");
    let mut draw = Draw::new(load.seed);
    let mut load = Load::new(&mut frontend, load).expect("a load");
    let (finished, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (out_now, completed_now) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut outcome = Outcome { kills_with_requests_out: 0, reconnects: 0 };
    std::thread::scope(|scope| {
        let (finished, over, out_now, completed_now) = (&finished, &over, &out_now, &completed_now);
        let _over = SetOnDrop(over);
        let killer = scope.spawn(move || {
            let mut with_requests_out = 0;
            for _ in 0..kills {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                // A quarter of the kills come during the recovery, wherever it is; the rest under full load.
                if draw.chance(3, 4) {
                    let begun = Instant::now();
                    let goal = completed_now.load(Ordering::Relaxed) + LIFE_REQUESTS;
                    while completed_now.load(Ordering::Relaxed) < goal && begun.elapsed() < LIFE_WAIT {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
                std::thread::sleep(Duration::from_micros(draw.below(5_000)));
                target.kill9();
                with_requests_out += u64::from(out_now.load(Ordering::Relaxed) > 0);
                target.restart();
            }
            finished.store(true, Ordering::Relaxed);
            with_requests_out
        });
        let mut progress = Instant::now();
        let mut completed = 0;
        while !finished.load(Ordering::Relaxed) || frontend.is_closed() {
            if frontend.is_closed() {
                match frontend.reconnect(RECONNECT_WAIT) {
                    Ok(()) => outcome.reconnects += 1,
                    // The kill came while the messages were under way; the next attempt finds the next incarnation.
                    Err(_) if progress.elapsed() < RECONNECT_WAIT => continue,
                    Err(error) => panic!("no connection: {error}"),
                }
            }
            load.submit(&mut frontend).expect("submitting");
            out_now.store(load.outstanding() as u64, Ordering::Relaxed);
            for _ in 0..STRIDE {
                load.reap(&mut frontend).unwrap_or_else(|error| panic!("{error}"));
                load.submit(&mut frontend).expect("submitting");
            }
            if load.completed() != completed {
                (completed, progress) = (load.completed(), Instant::now());
                completed_now.store(completed, Ordering::Relaxed);
            }
            assert!(progress.elapsed() < PROGRESS_WAIT, "{} requests are lost", load.outstanding());
        }
        outcome.kills_with_requests_out = killer.join().expect("the killer");
    });
    load.run(&mut frontend, 200, PROGRESS_WAIT).unwrap_or_else(|error| panic!("{error}"));
    load.drain(&mut frontend, PROGRESS_WAIT).unwrap_or_else(|error| panic!("{error}"));
    load.verify_all(&mut frontend, PROGRESS_WAIT).unwrap_or_else(|error| panic!("{error}"));
    assert!(load.model.compared() > 0, "nothing was compared");
    println!("{outcome:?}, {} requests, {} sectors compared", load.completed(), load.model.compared());
    frontend.stop().expect("an orderly stop");
    outcome
}

fn two_queues() -> Options {
    Options { queues: 2, queue_size: 64, ..Options::default() }
}

fn load(seed: u64) -> LoadOptions {
    LoadOptions { seed, sectors: DISK / 512, percent_flushes: 2, ..LoadOptions::default() }
}

#[test]
fn malloc_survives_thirty_kills() {
    let mut target = Target::start();
    target.call("bdev_malloc_create", json!({"name": "disk", "num_blocks": DISK / 512, "block_size": 512}));
    let outcome = survive(&mut target, "disk", 30, two_queues(), load(seed()));
    assert!(outcome.kills_with_requests_out >= 15, "{outcome:?}: the kills met no load");
}

#[test]
fn uring_survives_twenty_kills() {
    let image = Image::in_memory(DISK);
    let mut target = Target::start();
    target.call("bdev_uring_create", json!({"name": "disk", "filename": image.name()}));
    let outcome = survive(&mut target, "disk", 20, two_queues(), load(seed()));
    assert!(outcome.kills_with_requests_out >= 10, "{outcome:?}: the kills met no load");
}

#[test]
fn aio_survives_twenty_kills() {
    let image = Image::in_memory(DISK);
    let mut target = Target::start();
    target.call("bdev_aio_create", json!({"name": "disk", "filename": image.name()}));
    let outcome = survive(&mut target, "disk", 20, two_queues(), load(seed()));
    assert!(outcome.kills_with_requests_out >= 10, "{outcome:?}: the kills met no load");
}

/// A real disk has writes of the dead process still under way when the next one starts: the fence must wait for them.
#[test]
fn uring_on_a_real_disk_survives_five_kills() {
    let image = Image::on_disk(DISK);
    let mut target = Target::start();
    target.call("bdev_uring_create", json!({"name": "disk", "filename": image.name()}));
    let load = LoadOptions { percent_reads: 30, percent_writes: 70, percent_flushes: 0, ..load(seed()) };
    survive(&mut target, "disk", 5, two_queues(), load);
}

/// Ring indices near their wrap when tracking begins, no indirect descriptors, no event index, memory by slots, every message
/// acknowledged: the recovery does not depend on the textbook's settings.
#[test]
fn a_plain_driver_in_the_middle_of_its_ring_survives() {
    let mut target = Target::start();
    target.call("bdev_malloc_create", json!({"name": "disk", "num_blocks": DISK / 512, "block_size": 512}));
    let options = Options {
        queues: 1,
        queue_size: 256,
        features: 0,
        memory_slots: true,
        need_reply: true,
        first_index: 65_500,
        ..Options::default()
    };
    let load = LoadOptions { depth: 20, ..load(seed()) };
    survive(&mut target, "disk", 10, options, load);
}

/// A guest whose memory is of huge pages, which most large guests have: both lives map it, each region's file from its
/// second page on.
#[test]
#[ignore = "needs root, to reserve huge pages; run: tests/root/run"]
fn a_guest_of_huge_pages_survives_twenty_kills() {
    let image = Image::in_memory(DISK);
    let mut target = Target::start();
    target.call("bdev_uring_create", json!({"name": "disk", "filename": image.name()}));
    let options = Options { pages: Pages::Huge, low_memory: 32 << 20, high_memory: 32 << 20, ..two_queues() };
    let outcome = survive(&mut target, "disk", 20, options, load(seed()));
    assert!(outcome.kills_with_requests_out >= 10, "{outcome:?}: the kills met no load");
}

/// A drive behind VFIO: the next life has it only after the kernel has taken it from the dead one, resets it, and then
/// replays. Then other people's client has another namespace, and the drive is given back.
#[test]
#[ignore = "overwrites the NVMe controller at REPRISE_NVME, which vfio-pci must have, all zeroes; run: tests/vm/run nvme_survives"]
fn nvme_survives_twenty_kills() {
    let address = std::env::var("REPRISE_NVME").expect("REPRISE_NVME is the address of a controller");
    let mut target = Target::start();
    let drive = json!({"name": "Nvme0", "trtype": "PCIe", "traddr": address});
    let bdevs = target.call("bdev_nvme_attach_controller", drive);
    assert_eq!(bdevs, json!(["Nvme0n1", "Nvme0n2"]));
    let outcome = survive(&mut target, "Nvme0n1", 20, two_queues(), load(seed()));
    assert!(outcome.kills_with_requests_out >= 10, "{outcome:?}: the kills met no load");

    let socket = target.serve("Nvme0n2", "vhost.1");
    let mut client = Blkio::open(&socket, BlkioOptions::default()).expect("a connection");
    let mut model = Model::zeroed(DISK / 512);
    client.verified_load(&mut model, 1, 5_000).expect("a correct load");
    client.verify_all(&mut model).expect("the disk is as written");
    drop(client);
    // Its memory is aligned, so the drive reads and writes it itself.
    let statistics = target.call("bdev_get_iostat", json!({"name": "Nvme0n2"}));
    let counted = |counter: &str| statistics["bdevs"][0][counter].as_u64().expect("a count");
    let (moved, copied) = (counted("bytes_read") + counted("bytes_written"), counted("payload_bytes_copied"));
    println!("{copied} of {moved} bytes were copied");
    assert!(copied * 100 <= moved, "{copied} of {moved} bytes were copied");

    for controller in ["vhost.0", "vhost.1"] {
        target.call("vhost_delete_controller", json!({"ctrlr": controller}));
    }
    target.call("bdev_nvme_detach_controller", json!({"name": "Nvme0"}));
    let status = target.stop();
    assert!(status.success(), "the target stops with {status}");
}
