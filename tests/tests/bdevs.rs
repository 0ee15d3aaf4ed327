//! Every bdev under a drawn load, over both worlds: what is read is what was written, each I/O ends once, and what was
//! counted is what was done. In the simulator the disk fails, stalls and ends transfers short while it happens.

use runtime::{
    Directory, ErrorKind, File, FileEngine, FileInfo, FileLock, FileOptions, Instant, Job, Memory, Platform,
    Poll, Poller, Segments, Wakes, Window,
};
use sim::rng::Rng;
use stack::block::{
    Bdev, Channel, Completion, FileBdev, FileParameters, Io, IoError, Kind, MallocBdev, NullBdev, Op,
};
use std::sync::{Arc, Mutex};

/// Bytes in a block of the bdevs under test.
const BLOCK: u64 = 512;
/// Blocks of the bdevs under test.
const BLOCKS: u64 = 512;
/// Most blocks of one I/O.
const IO_BLOCKS_MAX: u64 = 32;
/// I/Os in flight.
const DEPTH: usize = 16;
/// Longest run of the load on the world's clock: a disk that hangs fails the test.
const PATIENCE_NS: u64 = 60_000_000_000;

/// What is tested, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Null,
    Malloc,
    File {
        engine: FileEngine,
        /// The bdev is told that the file cannot write zeroes by itself.
        sends_zeroes: bool,
    },
}

/// A load on one bdev.
#[derive(Clone, Debug)]
struct Plan {
    subject: Subject,
    /// The file, where there is one.
    path: String,
    seed: u64,
    ios: u64,
    /// The medium may fail an I/O; what it left behind is unknown then.
    may_fail: bool,
}

/// What came of a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    ended: u64,
    failed: u64,
    blocks_checked: u64,
}

/// What a block holds, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Zeroes,
    Stamp(u64),
    Nothing,
}

/// An I/O in flight.
struct Request {
    op: Op,
    first: u64,
    blocks: u64,
    stamp: u64,
}

enum Stage<P: Platform> {
    Open(P::Job<runtime::Result<P::File>>),
    Lock(P::File),
    Memory(P::Job<runtime::Result<(P::Memory, bool)>>),
    Load(Box<dyn Channel<P>>),
    Over,
}

/// The load as a poller.
struct Load<P: Platform> {
    platform: P,
    plan: Plan,
    rng: Rng,
    stage: Stage<P>,
    bdev: Option<Arc<dyn Bdev<P>>>,
    /// A place for each I/O in flight.
    buffer: P::Memory,
    requests: Vec<Option<Request>>,
    content: Vec<Known>,
    submitted: u64,
    outcome: Outcome,
    by_kind: [u64; Kind::ALL.len()],
    began: Instant,
    tell: Box<dyn FnMut(Outcome)>,
    completions: Vec<Completion>,
}

impl<P: Platform> Load<P> {
    fn new(platform: P, plan: Plan, tell: Box<dyn FnMut(Outcome)>) -> Self {
        let directory = platform.directory();
        let (path, name) = (plan.path.clone(), format!("test-{}-{}", std::process::id(), plan.seed));
        let mut bdev: Option<Arc<dyn Bdev<P>>> = None;
        let stage = match plan.subject {
            Subject::Null => {
                let null =
                    NullBdev::new("n".into(), [1; 16], BLOCK as u32, BLOCK as u32, BLOCKS, platform.cores());
                let null: Arc<dyn Bdev<P>> = Arc::new(null);
                let channel = null.channel(&platform).expect("a channel");
                bdev = Some(null);
                Stage::Load(channel)
            }
            Subject::Malloc => Stage::Memory(platform.offload(move || {
                let memory = directory.machine_memory(&name, BLOCK * BLOCKS);
                // The name is not needed any more, and must not outlive the test.
                directory.remove_machine_memory(&name)?;
                memory
            })),
            Subject::File { engine, .. } => {
                let options = FileOptions { engine, read_only: false };
                Stage::Open(platform.offload(move || directory.open(&path, options)))
            }
        };
        Self {
            buffer: platform.shared_memory("test", DEPTH as u64 * IO_BLOCKS_MAX * BLOCK).expect("memory"),
            rng: Rng::new(plan.seed, 77),
            requests: (0..DEPTH).map(|_| None).collect(),
            content: vec![Known::Zeroes; BLOCKS as usize],
            submitted: 0,
            outcome: Outcome::default(),
            by_kind: [0; Kind::ALL.len()],
            began: platform.now(),
            completions: Vec::new(),
            platform,
            plan,
            stage,
            bdev,
            tell,
        }
    }

    fn begin(&mut self, bdev: Arc<dyn Bdev<P>>) {
        let geometry = bdev.geometry();
        assert_eq!((u64::from(geometry.block_size), geometry.num_blocks), (BLOCK, BLOCKS));
        self.stage = Stage::Load(bdev.channel(&self.platform).expect("a channel"));
        self.bdev = Some(bdev);
    }

    fn file_bdev(&mut self, file: P::File) {
        let Subject::File { engine, sends_zeroes } = self.plan.subject else { unreachable!() };
        let info = file.info().expect("an open file tells its size");
        let info = FileInfo { can_write_zeroes: info.can_write_zeroes && !sends_zeroes, ..info };
        let parameters = FileParameters {
            name: "f".into(),
            uuid: [2; 16],
            path: self.plan.path.clone(),
            engine,
            block_size: Some(BLOCK as u32),
            read_only: false,
        };
        let bdev = FileBdev::<P>::new(parameters, file, info, self.platform.cores()).expect("a good file");
        self.begin(Arc::new(bdev));
    }

    /// The place of request `slot`.
    fn place(&self, slot: usize) -> P::Window {
        let len = IO_BLOCKS_MAX * BLOCK;
        self.buffer.window().slice(slot as u64 * len, len).expect("a place for each request")
    }

    /// The first `len` bytes of a place, in pieces: few or many, of any length that a driver might use.
    fn pieces(&mut self, slot: usize, len: u64) -> Vec<P::Window> {
        let place = self.place(slot);
        let (mut pieces, mut at) = (Vec::new(), 0);
        let whole = self.rng.chance(1, 3);
        while at < len {
            let piece = if whole { len - at } else { (self.rng.between(1, 600) * 8).min(len - at) };
            pieces.push(place.slice(at, piece).expect("inside the place"));
            at += piece;
        }
        pieces
    }

    fn submit_some(&mut self, now: Instant) -> bool {
        let mut worked = false;
        for slot in 0..DEPTH {
            if self.requests[slot].is_some() || self.submitted == self.plan.ios || self.rng.chance(1, 4) {
                continue;
            }
            let blocks = self.rng.between(1, IO_BLOCKS_MAX);
            let first = self.rng.below(BLOCKS - blocks);
            let overlaps =
                |other: &Request| other.first < first + blocks && first < other.first + other.blocks;
            if self.requests.iter().flatten().any(overlaps) {
                continue;
            }
            let stamp = self.rng.word() | 1;
            let (op, first, blocks) = match self.rng.below(16) {
                0 => (Op::Flush, 0, 0),
                1 => (Op::Discard, first, blocks),
                2 | 3 => (
                    Op::WriteZeroes { unmap: self.rng.chance(1, 2), fua: self.rng.chance(1, 2) },
                    first,
                    blocks,
                ),
                4..=9 => (Op::Write { fua: self.rng.chance(1, 4) }, first, blocks),
                _ => (Op::Read, first, blocks),
            };
            let mut pieces = Vec::new();
            if matches!(op, Op::Read | Op::Write { .. }) {
                pieces = self.pieces(slot, blocks * BLOCK);
                for word in 0..blocks * BLOCK / 8 {
                    let value = if op == Op::Read { u64::MAX } else { stamped(stamp, first, word) };
                    self.place(slot).store_u64(word * 8, value, std::sync::atomic::Ordering::Relaxed);
                }
            }
            let io = Io { op, offset: first * BLOCK, len: blocks * BLOCK, segments: Segments(&pieces) };
            let Stage::Load(channel) = &mut self.stage else { unreachable!() };
            channel.submit(now, &io, slot as u64).expect("the load is far below a channel's depth");
            self.requests[slot] = Some(Request { op, first, blocks, stamp });
            self.submitted += 1;
            worked = true;
        }
        worked
    }

    fn ended(&mut self, completion: Completion) {
        let slot = completion.token as usize;
        let request = self.requests[slot].take().expect("an I/O ends once");
        self.outcome.ended += 1;
        let range = request.first as usize..(request.first + request.blocks) as usize;
        if let Err(error) = completion.result {
            let known = matches!(error, IoError::Medium(ErrorKind::Io | ErrorKind::WouldBlock));
            assert!(self.plan.may_fail && known, "{:?} failed: {error:?}", request.op);
            self.outcome.failed += 1;
            if request.op != Op::Read && request.op != Op::Flush {
                self.content[range].fill(Known::Nothing);
            }
            return;
        }
        self.by_kind[Kind::of(request.op) as usize] += 1;
        match request.op {
            Op::Write { .. } => self.content[range].fill(Known::Stamp(request.stamp)),
            Op::WriteZeroes { .. } => self.content[range].fill(Known::Zeroes),
            Op::Discard => self.content[range].fill(Known::Nothing),
            Op::Flush => {}
            Op::Read => self.check(slot, &request),
        }
        if matches!(request.op, Op::Write { .. }) {
            // Where the stamps count from, since reads may begin elsewhere.
            for block in request.first..request.first + request.blocks {
                let offset = (block - request.first) * BLOCK / 8;
                self.content[block as usize] = Known::Stamp(stamped(request.stamp, request.first, offset));
            }
        }
    }

    fn check(&mut self, slot: usize, request: &Request) {
        if self.plan.subject == Subject::Null {
            return;
        }
        let place = self.place(slot);
        for block in 0..request.blocks {
            let expected = self.content[(request.first + block) as usize];
            let words = (0..BLOCK / 8)
                .map(|word| place.load_u64(block * BLOCK + word * 8, std::sync::atomic::Ordering::Relaxed));
            for (word, found) in words.enumerate() {
                let good = match expected {
                    Known::Nothing => true,
                    Known::Zeroes => found == 0,
                    Known::Stamp(first) => found == first.wrapping_add(word as u64),
                };
                let at = request.first + block;
                assert!(
                    good,
                    "block {at}, word {word}: {found:#x} where {expected:x?} should be ({:?})",
                    self.plan
                );
            }
            self.outcome.blocks_checked += u64::from(expected != Known::Nothing);
        }
    }

    fn end(&mut self) -> Poll {
        let bdev = self.bdev.take().expect("the load had a bdev");
        let total = bdev.statistics().total();
        for kind in Kind::ALL {
            assert_eq!(total.kind(kind).ops, self.by_kind[kind as usize], "{kind:?} counted");
        }
        assert_eq!(total.errors(), self.outcome.failed, "errors counted");
        self.stage = Stage::Over;
        (self.tell)(self.outcome);
        Poll::Done
    }
}

/// Word `word` of an I/O that begins at block `first`.
fn stamped(stamp: u64, first: u64, word: u64) -> u64 {
    stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(first << 32).wrapping_add(word)
}

impl<P: Platform> Poller<P> for Load<P> {
    fn poll(&mut self, now: Instant) -> Poll {
        assert!(now.since_ns(self.began) < PATIENCE_NS, "the load does not end: {:?}", self.outcome);
        match &mut self.stage {
            Stage::Over => Poll::Done,
            Stage::Open(job) => match job.take() {
                None => Poll::Idle { until: None },
                Some(file) => {
                    self.stage = Stage::Lock(file.expect("the file opens"));
                    Poll::Busy
                }
            },
            Stage::Lock(file) => {
                assert_eq!(file.try_lock(), Ok(FileLock::Held));
                let file = file.clone();
                self.file_bdev(file);
                Poll::Busy
            }
            Stage::Memory(job) => match job.take() {
                None => Poll::Idle { until: None },
                Some(memory) => {
                    let (memory, was_there) = memory.expect("memory");
                    assert!(!was_there);
                    let (block, cores) = (BLOCK as u32, self.platform.cores());
                    let bdev = MallocBdev::<P>::new("m".into(), [3; 16], block, block, BLOCKS, memory, cores);
                    self.begin(Arc::new(bdev));
                    Poll::Busy
                }
            },
            Stage::Load(_) => {
                let mut worked = self.submit_some(now);
                let mut completions = std::mem::take(&mut self.completions);
                let Stage::Load(channel) = &mut self.stage else { unreachable!() };
                worked |= channel.poll(now, &mut completions);
                let wake_at = channel.wake_at();
                for completion in completions.drain(..) {
                    self.ended(completion);
                }
                self.completions = completions;
                if self.outcome.ended == self.plan.ios {
                    return self.end();
                }
                let more = self.submitted < self.plan.ios && self.requests.iter().any(Option::is_none);
                if worked || more { Poll::Busy } else { Poll::Idle { until: wake_at } }
            }
        }
    }

    fn arm(&mut self, _now: Instant, wakes: &mut P::Wakes) -> Poll {
        match &self.stage {
            Stage::Open(job) => wakes.job(job),
            Stage::Memory(job) => wakes.job(job),
            Stage::Load(channel) => {
                channel.arm(wakes);
                return Poll::Idle { until: channel.wake_at() };
            }
            Stage::Lock(_) | Stage::Over => {}
        }
        Poll::Idle { until: None }
    }
}

mod simulated {
    use super::*;
    use sim::faults::{FaultKind, Faults, Rate};
    use sim::platform::SimPlatform;
    use sim::scheduler::{self, End};
    use sim::world::{self, Program, Temper};

    fn run(plan: &Plan) -> (Outcome, [u64; 4]) {
        let kinds = [FaultKind::DiskError, FaultKind::DiskAgain, FaultKind::DiskShort, FaultKind::DiskSlow];
        let rates = |kind| match kind {
            FaultKind::DiskError if plan.may_fail => Rate { of_65536: 500, most: 20 },
            FaultKind::DiskAgain => Rate { of_65536: 6_000, most: 2_000 },
            FaultKind::DiskShort => Rate { of_65536: 20_000, most: 2_000 },
            FaultKind::DiskSlow => Rate { of_65536: 500, most: 20 },
            _ => Rate::default(),
        };
        world::create(plan.seed, Temper::default(), Faults::drawn(plan.seed, rates));
        let outcome = Arc::new(Mutex::new(None));
        let (told, theirs) = (Arc::clone(&outcome), plan.clone());
        let program: Program = Arc::new(move |platform: SimPlatform| {
            let told = Arc::clone(&told);
            let tell = move |outcome| {
                *told.lock().unwrap() = Some(outcome);
                world::with(|world| world.finish());
            };
            Box::new(Load::new(platform, theirs.clone(), Box::new(tell))) as Box<dyn Poller<SimPlatform>>
        });
        world::with(|world| {
            let machine = world.machine();
            world.create_disk(machine, &plan.path, BLOCK * BLOCKS, BLOCK as u32, BLOCK as u32);
            world.spawn(machine, &program, 1, None);
        });
        let end = scheduler::run();
        let failure = world::with(|world| world.failure().cloned());
        let struck = world::with(|world| kinds.map(|kind| world.faults().count(kind)));
        world::clear();
        assert_eq!(end, End::Finished, "{plan:?}: {failure:?}");
        (outcome.lock().unwrap().take().expect("the load has ended"), struck)
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let file = |engine, sends_zeroes| Subject::File { engine, sends_zeroes };
        let subjects = [
            Subject::Null,
            Subject::Malloc,
            file(FileEngine::Uring, false),
            file(FileEngine::Uring, true),
            file(FileEngine::Aio, true),
        ];
        let mut total = [0; 6];
        for seed in 0..40 {
            let subject = subjects[seed as usize % subjects.len()];
            let may_fail = seed % 2 == 0 && matches!(subject, Subject::File { .. });
            let (outcome, struck) = run(&Plan { subject, path: "/disk".into(), seed, ios: 600, may_fail });
            assert_eq!(outcome.ended, 600);
            for (sum, one) in
                total.iter_mut().zip([outcome.failed, outcome.blocks_checked].iter().chain(&struck))
            {
                *sum += one;
            }
        }
        // failed, blocks checked, errors, not now, short, slow
        println!("{total:?}");
        assert!(total.iter().all(|met| *met >= 20), "{total:?}");
    }
}

mod host {
    use super::*;
    use hw::{HostPlatform, Options, Process};
    use std::fs;

    fn run(plan: Plan) -> Outcome {
        let options = Options {
            processors: hw::cores::available().into_iter().take(1).collect(),
            poll: false,
            memory_directory: "/dev/shm".into(),
            recorder_directory: None,
        };
        let outcome = Arc::new(Mutex::new(None));
        let told = Arc::clone(&outcome);
        let first = move |platform: HostPlatform| {
            let tell = move |outcome| *told.lock().unwrap() = Some(outcome);
            Box::new(Load::new(platform, plan, Box::new(tell))) as Box<dyn Poller<HostPlatform>>
        };
        Process::new(&options).unwrap().run(Box::new(first)).unwrap();
        outcome.lock().unwrap().take().expect("the load has ended")
    }

    fn exercise(subject: Subject, seed: u64) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        fs::File::create(&path).unwrap().set_len(BLOCK * BLOCKS).unwrap();
        let path = path.into_os_string().into_string().unwrap();
        let outcome = run(Plan { subject, path, seed, ios: 2_000, may_fail: false });
        assert_eq!((outcome.ended, outcome.failed), (2_000, 0));
        assert!(outcome.blocks_checked > 1_000 || subject == Subject::Null, "{outcome:?}");
    }

    #[test]
    fn null_ends_everything() {
        exercise(Subject::Null, 1);
    }

    #[test]
    fn malloc_reads_what_was_written() {
        exercise(Subject::Malloc, 2);
    }

    #[test]
    fn uring_reads_what_was_written() {
        exercise(Subject::File { engine: FileEngine::Uring, sends_zeroes: false }, 3);
        exercise(Subject::File { engine: FileEngine::Uring, sends_zeroes: true }, 4);
    }

    #[test]
    fn aio_reads_what_was_written() {
        exercise(Subject::File { engine: FileEngine::Aio, sends_zeroes: false }, 5);
        exercise(Subject::File { engine: FileEngine::Aio, sends_zeroes: true }, 6);
    }
}
