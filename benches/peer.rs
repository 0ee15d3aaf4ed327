//! The target beside qemu-storage-daemon: the same `blkio` client, the same disks, in one run.
//!
//!     cargo bench -p tests --bench peer [-- --seconds S --rounds N --disk null|file]
//!
//! The back-end under measurement has one processor and the client another, which it never leaves (a polled queue), so that
//! the client costs the back-end nothing. Each line is the median of N interleaved pairs of S seconds: target, peer, peer,
//! target, and so on, so that what drifts drifts for both. qemu-storage-daemon has an iothread, which polls adaptively as the
//! target does. Where a ratio is bounded by the client's processor, the time that a back-end is busy with an I/O tells more:
//! the target's by its own reactors' counters, both by the processor time of their process.
//!
//! The file is preallocated, O_DIRECT, io_uring for both; what the disk below can do bounds it.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};
use tests::client::blkio::{Blkio, Options};
use tests::image::Image;
use tests::peer::{Backing, Peer};
use tests::target::{Target, processor_time};

/// Bytes of one request.
const BYTES: usize = 4096;
/// Requests out.
const DEPTHS: [usize; 3] = [1, 32, 128];
/// Bytes of the null disks.
const NULL_DISK: u64 = 1 << 30;
/// Bytes of the files.
const FILE_DISK: u64 = 256 << 20;
/// Before the first measured pair, each side runs for this long.
const WARM_UP: Duration = Duration::from_millis(200);

/// What one measurement gave.
#[derive(Clone, Copy)]
struct Sample {
    iops: f64,
    /// The reactors' busy time per I/O; the peer has no such counter.
    busy_ns: f64,
    /// Processor time of the back-end's process per I/O.
    processor_ns: f64,
}

/// One back-end with its client.
struct Side<'a> {
    disk: Blkio,
    process: u32,
    target: Option<&'a Target>,
}

impl Side<'_> {
    fn measure(&mut self, write: bool, seed: u64, duration: Duration) -> Sample {
        let before = (self.busy_ns(), processor_time(self.process));
        let timing = self.disk.timed(write, BYTES, seed, duration).unwrap_or_else(|error| panic!("{error}"));
        let after = (self.busy_ns(), processor_time(self.process));
        let ios = timing.ios as f64;
        Sample {
            iops: timing.iops(),
            busy_ns: (after.0 - before.0) / ios,
            processor_ns: (after.1 - before.1).as_nanos() as f64 / ios,
        }
    }

    /// Busy time of all reactors so far, in nanoseconds.
    fn busy_ns(&self) -> f64 {
        let Some(target) = self.target else { return 0.0 };
        let told = target.call("framework_get_reactors", Value::Null);
        let rate = told["tick_rate"].as_f64().expect("a rate");
        let reactors = told["reactors"].as_array().expect("reactors");
        let ticks: f64 = reactors.iter().map(|reactor| reactor["busy"].as_f64().expect("ticks")).sum();
        ticks * 1e9 / rate
    }
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The first two processors that this program may use: the back-end's and the client's.
fn processors() -> (usize, usize) {
    let allowed = sched_getaffinity(None).expect("this thread's processors");
    let mut usable = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor));
    let first = usable.next().expect("a processor");
    let Some(second) = usable.next() else {
        println!("only one processor: client and back-end share it, and the figures mean little");
        return (first, first);
    };
    (first, second)
}

fn pin(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).expect("this thread can be pinned");
}

/// A file whose blocks are all there, so that no measurement pays for allocating them.
fn preallocated() -> Image {
    let image = Image::on_disk(0);
    let mut file = std::fs::OpenOptions::new().write(true).open(image.path()).expect("the image");
    let chunk = vec![0x5a; 1 << 20];
    for _ in 0..FILE_DISK >> 20 {
        file.write_all(&chunk).expect("room on the disk");
    }
    file.sync_all().expect("the image on the disk");
    image
}

fn open(socket: &Path, depth: usize) -> Blkio {
    let options = Options { depth, bytes_max: BYTES, queue_size: 512, poll: true, ..Options::default() };
    Blkio::open(socket, options).unwrap_or_else(|error| panic!("{}: {error}", socket.display()))
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        arguments.iter().position(|argument| argument == name).and_then(|at| arguments.get(at + 1)).cloned()
    };
    let number = |name: &str, default: f64| {
        value(name)
            .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} {text}: not a number")))
    };
    let duration = Duration::from_secs_f64(number("--seconds", 1.0));
    let rounds = number("--rounds", 5.0) as u64;
    let disks = value("--disk").map_or_else(|| vec!["null".into(), "file".into()], |disk| vec![disk]);
    assert!(Peer::available(), "qemu-storage-daemon is not installed (Debian: qemu-system-common)");

    let (back_end, client) = processors();
    let cores = format!("{:#x}", 1u128 << back_end);
    // Children begin on this thread's processor: the peer stays there, the target pins itself.
    pin(back_end);
    let target = Target::start_with(&["--cores", &cores]);
    let (image, peer_image) = if disks.iter().any(|disk| disk == "file") {
        (preallocated(), preallocated())
    } else {
        (Image::in_memory(FILE_DISK), Image::in_memory(FILE_DISK))
    };
    target
        .call("bdev_null_create", json!({"name": "null", "num_blocks": NULL_DISK / 512, "block_size": 512}));
    target.call("bdev_uring_create", json!({"name": "file", "filename": image.name(), "block_size": 512}));

    println!(
        "4 KiB random, one queue, medians of {rounds} interleaved pairs of {duration:?}; back-end on processor {back_end}, polling client on {client}"
    );
    println!(
        "{:<5} {:<6} {:>5} {:>12} {:>12} {:>6} {:>14} {:>14} {:>14}",
        "disk",
        "",
        "depth",
        "reprise IOPS",
        "qsd IOPS",
        "ratio",
        "reprise busy",
        "reprise CPU",
        "qsd CPU ns/IO"
    );
    for disk in &disks {
        let backing = match disk.as_str() {
            "null" => Backing::Null { size: NULL_DISK },
            "file" => Backing::File(peer_image.path().to_path_buf()),
            other => panic!("--disk {other}: null or file"),
        };
        pin(back_end);
        let peer = Peer::start(&backing, 1);
        let socket = target.serve(disk, disk);
        pin(client);
        for write in [false, true] {
            for depth in DEPTHS {
                let mut ours =
                    Side { disk: open(&socket, depth), process: target.process_id(), target: Some(&target) };
                let mut theirs =
                    Side { disk: open(peer.socket(), depth), process: peer.process_id(), target: None };
                ours.measure(write, 0, WARM_UP);
                theirs.measure(write, 0, WARM_UP);
                let (mut our_samples, mut their_samples) = (Vec::new(), Vec::new());
                for round in 0..rounds {
                    let mut measure = |our_turn: bool| {
                        if our_turn {
                            our_samples.push(ours.measure(write, round, duration));
                        } else {
                            their_samples.push(theirs.measure(write, round, duration));
                        }
                    };
                    measure(round % 2 == 0);
                    measure(round % 2 != 0);
                }
                let (our_iops, their_iops) =
                    (median(&our_samples, |s| s.iops), median(&their_samples, |s| s.iops));
                println!(
                    "{disk:<5} {:<6} {depth:>5} {our_iops:>12.0} {their_iops:>12.0} {:>6.2} {:>14.0} {:>14.0} {:>14.0}",
                    if write { "write" } else { "read" },
                    our_iops / their_iops,
                    median(&our_samples, |s| s.busy_ns),
                    median(&our_samples, |s| s.processor_ns),
                    median(&their_samples, |s| s.processor_ns),
                );
            }
        }
    }
    cross_check(&target, &disks[0], duration * 3);
}

/// The reactors' counters are the target's own word: held once against the kernel's, in a run that leaves it time to sleep.
fn cross_check(target: &Target, disk: &str, duration: Duration) {
    let socket = target.path("vhost").join(disk);
    let options = Options { depth: 1, bytes_max: BYTES, ..Options::default() };
    let disk = Blkio::open(&socket, options).unwrap_or_else(|error| panic!("{error}"));
    let mut side = Side { disk, process: target.process_id(), target: Some(target) };
    let sample = side.measure(false, 1, duration);
    println!(
        "\ncross-check (depth 1, sleeping client, {:.0} IOPS): busy {:.0} ns/IO by the reactors, {:.0} ns/IO by the kernel",
        sample.iops, sample.busy_ns, sample.processor_ns
    );
    println!(
        "the kernel's figure also has what the reactors count as idle: looking for work before they sleep, and going to sleep"
    );
}
