//! The target beside qemu-storage-daemon: the same `blkio` client, the same disks, in one run.
//!
//! The back-end under measurement has one processor and the client another, which it never leaves (a polled queue), so that
//! the client costs the back-end nothing. Each figure is the median of interleaved pairs: target, peer, peer, target, and so
//! on. qemu-storage-daemon has an iothread, which polls adaptively as the target does. Where a ratio is bounded by the
//! client's processor, the time that a back-end is busy with an I/O tells more: the target's by its own reactors' counters,
//! both by the processor time of their process. Without qemu-storage-daemon the target is measured alone.
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

use crate::table::Table;
use crate::{Effort, median};

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

/// The first two processors that this program may use: the back-end's and the client's.
pub(crate) fn processors(table: &mut Table) -> (usize, usize) {
    let allowed = sched_getaffinity(None).expect("this thread's processors");
    let mut usable = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor));
    let first = usable.next().expect("a processor");
    let Some(second) = usable.next() else {
        table
            .note("only one processor: client and back-end share it, and the figures mean little".to_owned());
        return (first, first);
    };
    (first, second)
}

pub(crate) fn pin(processor: usize) {
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

/// What the peer must not be better at: by depth, the least ratio of IOPS with null disks.
fn ratio_min(disk: &str, depth: usize) -> Option<f64> {
    match (disk, depth) {
        ("null", 1) => Some(1.0),
        ("null", 128) => Some(1.5),
        _ => None,
    }
}

/// Prints IOPS and the time of an I/O of both, for each disk, direction and depth.
pub(crate) fn measure(effort: &Effort, table: &mut Table) {
    let (back_end, client) = processors(table);
    let cores = format!("{:#x}", 1u128 << back_end);
    // Children begin on this thread's processor: the peer stays there, the target pins itself.
    pin(back_end);
    let target = Target::start_with(&["--cores", &cores]);
    let (image, peer_image) = (preallocated(), preallocated());
    target
        .call("bdev_null_create", json!({"name": "null", "num_blocks": NULL_DISK / 512, "block_size": 512}));
    target.call("bdev_uring_create", json!({"name": "file", "filename": image.name(), "block_size": 512}));
    let backings = [
        ("null", Backing::Null { size: NULL_DISK }),
        ("file", Backing::File(peer_image.path().to_path_buf())),
    ];
    let has_peer = Peer::available();
    if !has_peer {
        table.note(format!("{} is not installed, so the target is alone: {}", Peer::PROGRAM, Peer::INSTALL));
    }
    for (disk, backing) in &backings {
        pin(back_end);
        let peer = has_peer.then(|| Peer::start(backing, 1));
        let socket = target.serve(disk, disk);
        pin(client);
        for write in [false, true] {
            for depth in DEPTHS {
                let mut ours =
                    Side { disk: open(&socket, depth), process: target.process_id(), target: Some(&target) };
                let mut theirs = peer.as_ref().map(|peer| Side {
                    disk: open(peer.socket(), depth),
                    process: peer.process_id(),
                    target: None,
                });
                let (ours, theirs) = pairs(&mut ours, theirs.as_mut(), write, effort);
                let what = |figure: &str| {
                    format!("{disk} {}, depth {depth}{figure}", if write { "write" } else { "read" })
                };
                let of = |of: fn(&Sample) -> f64| {
                    let middle = |samples: &[Sample]| median(samples.iter().map(of).collect());
                    (middle(&ours), (!theirs.is_empty()).then(|| middle(&theirs)))
                };
                let (our_iops, their_iops) = of(|sample| sample.iops);
                table.beside(&what(""), our_iops, their_iops, "IOPS", ratio_min(disk, depth));
                table.row(&what(", reactors busy"), of(|sample| sample.busy_ns).0, "ns/IO", None);
                let (our_processor, their_processor) = of(|sample| sample.processor_ns);
                table.beside(&what(", processor time"), our_processor, their_processor, "ns/IO", None);
            }
        }
    }
    cross_check(&target, "null", effort.duration * 3, table);
}

/// The samples of both sides in turn, after a warm-up.
fn pairs(
    ours: &mut Side<'_>,
    mut theirs: Option<&mut Side<'_>>,
    write: bool,
    effort: &Effort,
) -> (Vec<Sample>, Vec<Sample>) {
    ours.measure(write, 0, WARM_UP);
    if let Some(theirs) = &mut theirs {
        theirs.measure(write, 0, WARM_UP);
    }
    let (mut our_samples, mut their_samples) = (Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        let mut turn = |our_turn: bool| match &mut theirs {
            _ if our_turn => our_samples.push(ours.measure(write, round as u64, effort.duration)),
            Some(theirs) => their_samples.push(theirs.measure(write, round as u64, effort.duration)),
            None => {}
        };
        turn(round % 2 == 0);
        turn(round % 2 != 0);
    }
    (our_samples, their_samples)
}

/// The reactors' counters are the target's own word: held once against the kernel's, in a run that leaves it time to sleep.
/// The kernel's figure also has what the reactors count as idle: looking for work before they sleep, and going to sleep.
fn cross_check(target: &Target, disk: &str, duration: Duration, table: &mut Table) {
    let socket = target.path("vhost").join(disk);
    let options = Options { depth: 1, bytes_max: BYTES, ..Options::default() };
    let blkio = Blkio::open(&socket, options).unwrap_or_else(|error| panic!("{error}"));
    let mut side = Side { disk: blkio, process: target.process_id(), target: Some(target) };
    let sample = side.measure(false, 1, duration);
    let what = |figure: &str| format!("{disk} read, depth 1, client sleeps, {figure}");
    table.row(&what("reactors busy"), sample.busy_ns, "ns/IO", None);
    table.row(&what("processor time"), sample.processor_ns, "ns/IO", None);
}
