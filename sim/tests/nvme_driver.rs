//! The stack's NVMe driver on the fake controller: any controller that may be drawn, under each fault and under drawn
//! mixtures of them. Every block read is one that may be there, nothing unmapped is reached, every request ends, and what a
//! dead life had sent is over when the next one is ready.

mod common;

use common::nvme::{AT, world_with};
use common::{Does, finish};
use runtime::{Access, Dma, Instant, Memory, Pci, Platform, Poll, Poller, Window};
use sim::dma::SimMapping;
use sim::faults::FaultKind;
use sim::memory::{SimMemory, SimWindow};
use sim::nvme::{Counts, NamespaceProfile, Profile};
use sim::pci::SimPci;
use sim::platform::{SimPlatform, SimWakes};
use sim::rng::Rng;
use sim::scheduler;
use sim::world::{self, Program, Step};
use stack::nvme::driver::{Controller, IoChannel, Operation, Options, Standing};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Requests that are out at a time; each has blocks and memory of its own.
const SLOTS: u32 = 6;
/// Blocks of a slot.
const BLOCKS: u64 = 40;
/// Bytes of memory of a slot: room for its blocks of 4096 bytes at an odd place.
const ROOM: u64 = (BLOCKS + 2) * 4096;

/// Mixtures of faults.
const SEEDS: u64 = 50;

type Driver = Controller<SimPlatform, SimPci>;

/// What a load is to do, and whether it may not come to its end.
#[derive(Clone, Copy)]
struct Wish {
    requests: u64,
    /// The content is checked: nothing was on that changes it behind the driver's back.
    checked: bool,
    /// The controller may be given up, or refused.
    may_fail: bool,
    namespace: usize,
    seed: u64,
}

/// What a slot has out.
#[derive(Clone, Copy)]
struct Out {
    operation: Operation,
    first: u64,
    blocks: u64,
    version: u64,
}

/// A load on a controller, polled as one.
struct Load {
    driver: Driver,
    platform: SimPlatform,
    channel: Option<IoChannel<SimPlatform, SimPci>>,
    memory: SimMemory,
    _mapping: SimMapping,
    wish: Wish,
    rng: Rng,
    block_size: u64,
    capacity: u64,
    versions: u64,
    begun: u64,
    done: u64,
    slots: Vec<Option<Out>>,
    /// The versions that each block may have; 0: zeroes.
    allowed: BTreeMap<u64, Vec<u64>>,
    seen: Arc<Mutex<Seen>>,
}

/// What a load came to.
#[derive(Clone, Debug, Default)]
struct Seen {
    ended: u64,
    failed: u64,
    given_up: Option<String>,
    counts: Counts,
}

impl Load {
    fn new(platform: SimPlatform, wish: Wish, options: Options, seen: Arc<Mutex<Seen>>) -> Self {
        let memory = platform.shared_memory("load", u64::from(SLOTS) * ROOM).expect("memory");
        let pci = platform.pci();
        let mapping = pci.dma().map(memory.window(), Access::ReadWrite).expect("mapped");
        let driver = Controller::open(platform.clone(), pci, AT, 0, options);
        Self {
            driver,
            platform,
            channel: None,
            memory,
            _mapping: mapping,
            wish,
            rng: Rng::new(wish.seed, 99),
            block_size: 0,
            capacity: 0,
            versions: 0,
            begun: 0,
            done: 0,
            slots: vec![None; SLOTS as usize],
            allowed: BTreeMap::new(),
            seen,
        }
    }

    /// Memory of a request: its blocks at a place that is a multiple of four, in two windows when they begin at an odd one.
    fn windows(&self, slot: u32, blocks: u64) -> Vec<SimWindow> {
        let len = blocks * self.block_size;
        let odd = 4 * (u64::from(slot) * 37 % 512) * u64::from(slot & 1);
        let whole = self.memory.window().slice(u64::from(slot) * ROOM + odd, len).expect("room");
        if slot % 3 < 2 {
            return vec![whole];
        }
        let cut = self.block_size / 2;
        vec![whole.slice(0, cut).expect("inside"), whole.slice(cut, len - cut).expect("inside")]
    }

    fn word(block: u64, version: u64) -> u64 {
        if version == 0 { 0 } else { version << 20 | block }
    }

    fn submit(&mut self, now: Instant, slot: u32) {
        let blocks = 1 + self.rng.below(BLOCKS.min(self.capacity / u64::from(SLOTS)));
        let per_slot = BLOCKS.min(self.capacity / u64::from(SLOTS));
        let first = u64::from(slot) * per_slot + self.rng.below(per_slot - blocks.min(per_slot) + 1);
        self.versions += 1;
        let version = self.versions;
        let operation = match self.rng.below(12) {
            0..5 => Operation::Write { fua: self.rng.chance(1, 4) },
            5..9 => Operation::Read,
            9 => Operation::Flush,
            10 => Operation::WriteZeroes { deallocate: false, fua: false },
            _ => Operation::Deallocate,
        };
        let windows = match operation {
            Operation::Read | Operation::Write { .. } => self.windows(slot, blocks),
            _ => Vec::new(),
        };
        let mut at = 0;
        for window in &windows {
            for offset in (0..window.len()).step_by(8) {
                let word = match operation {
                    Operation::Read => u64::MAX,
                    _ => Self::word(first + (at + offset) / self.block_size, version),
                };
                window.write(offset, &word.to_le_bytes());
            }
            at += window.len();
        }
        match operation {
            Operation::Write { .. } => self.allow(first, blocks, version),
            Operation::WriteZeroes { .. } | Operation::Deallocate => self.allow(first, blocks, 0),
            _ => {}
        }
        let (len, lba) = match operation {
            Operation::Flush => (0, 0),
            _ => (blocks * self.block_size, first),
        };
        self.slots[slot as usize] = Some(Out { operation, first, blocks, version });
        let channel = self.channel.as_mut().expect("a channel");
        channel.submit(now, slot, operation, lba, len, &windows);
    }

    fn allow(&mut self, first: u64, blocks: u64, version: u64) {
        for block in first..first + blocks {
            self.allowed.entry(block).or_insert_with(|| vec![0]).push(version);
        }
    }

    /// A request has ended: what is there now is known better.
    fn end(&mut self, slot: u32, succeeded: bool) {
        let Out { operation, first, blocks, version } = self.slots[slot as usize].take().expect("it was out");
        self.done += 1;
        {
            let mut seen = self.seen.lock().expect("one thread");
            seen.ended += 1;
            seen.failed += u64::from(!succeeded);
        }
        if !succeeded {
            return;
        }
        match operation {
            Operation::Write { .. } => {
                for block in first..first + blocks {
                    self.allowed.insert(block, vec![version]);
                }
            }
            Operation::WriteZeroes { .. } => {
                for block in first..first + blocks {
                    self.allowed.insert(block, vec![0]);
                }
            }
            Operation::Read if self.wish.checked => {
                let mut bytes = Vec::new();
                for window in self.windows(slot, blocks) {
                    let at = bytes.len();
                    bytes.resize(at + window.len() as usize, 0);
                    window.read(0, &mut bytes[at..]);
                }
                for (index, content) in bytes.chunks_exact(self.block_size as usize).enumerate() {
                    let block = first + index as u64;
                    let allowed = self.allowed.entry(block).or_insert_with(|| vec![0]);
                    let is = |version: &u64| {
                        let word = Self::word(block, *version).to_le_bytes();
                        content.chunks_exact(8).all(|here| here == word)
                    };
                    let found = allowed.iter().copied().find(is);
                    let Some(found) = found else {
                        panic!("block {block} is none of {allowed:?}: {:x?}", &content[..16]);
                    };
                    *allowed = vec![found];
                }
            }
            _ => {}
        }
    }

    /// The load has come to its end, or cannot.
    fn over(&mut self, why: Option<String>) {
        assert!(why.is_none() || self.wish.may_fail, "{why:?}");
        self.seen.lock().expect("one thread").given_up = why;
        world::with(|world| world.finish());
    }
}

impl Poller<SimPlatform> for Load {
    fn poll(&mut self, now: Instant) -> Poll {
        let mut poll = self.driver.poll(now);
        while self.driver.take_report().is_some() {}
        if let Standing::Failed(why) = self.driver.standing() {
            let out = self.slots.iter().flatten().count();
            if out == 0 || self.channel.is_none() {
                self.over(Some(why.to_string()));
                return Poll::Idle { until: None };
            }
        }
        if self.channel.is_none() && self.driver.standing() == Standing::Ready {
            let Some(namespace) = self.driver.namespaces().get(self.wish.namespace) else {
                self.over(Some("no namespace".into()));
                return Poll::Idle { until: None };
            };
            self.block_size = namespace.block_size.into();
            self.capacity = namespace.state.num_blocks();
            if self.capacity < u64::from(SLOTS) {
                self.over(Some("too small".into()));
                return Poll::Idle { until: None };
            }
            let options = options();
            let channel = IoChannel::open(&self.platform, self.driver.link(), namespace, options, SLOTS);
            self.channel = Some(channel.expect("a mailbox"));
        }
        if let Some(channel) = &mut self.channel {
            let mut ended = Vec::new();
            if channel.poll(now, &mut ended) {
                poll = Poll::Busy;
            }
            for end in ended {
                self.end(end.token, end.result.is_ok());
            }
            for slot in 0..SLOTS {
                if self.slots[slot as usize].is_none() && self.begun < self.wish.requests {
                    self.begun += 1;
                    self.submit(now, slot);
                    poll = Poll::Busy;
                }
            }
            if self.done >= self.wish.requests && self.slots.iter().all(Option::is_none) {
                self.over(None);
            }
        }
        match (poll, self.channel.as_ref().and_then(IoChannel::wake_at)) {
            (Poll::Idle { until }, wake) => Poll::Idle { until: [until, wake].into_iter().flatten().min() },
            (other, _) => other,
        }
    }

    fn arm(&mut self, now: Instant, wakes: &mut SimWakes) -> Poll {
        if let Some(channel) = &self.channel {
            channel.arm(wakes);
        }
        let wake = self.channel.as_ref().and_then(IoChannel::wake_at);
        match self.driver.arm(now, wakes) {
            Poll::Idle { until } => Poll::Idle { until: [until, wake].into_iter().flatten().min() },
            other => other,
        }
    }
}

/// Time-outs that a run of seconds meets.
fn options() -> Options {
    Options {
        io_timeout: Duration::from_millis(60),
        admin_timeout: Duration::from_millis(200),
        ..Options::default()
    }
}

fn load(wish: Wish, seen: &Arc<Mutex<Seen>>) -> Program {
    let seen = Arc::clone(seen);
    Arc::new(move |platform| {
        Box::new(Load::new(platform, wish, options(), Arc::clone(&seen))) as Box<dyn Poller<SimPlatform>>
    })
}

/// A controller that any driver can work with in the time of a test.
fn drawn(seed: u64) -> Profile {
    let namespaces = vec![NamespaceProfile::plain(300, 512), NamespaceProfile::plain(240, 4096)];
    let profile = Profile::draw(namespaces, &mut Rng::new(seed, 77));
    let ready_ns = (profile.ready_ns.0, profile.ready_ns.1.min(2_000_000));
    Profile { ready_ns, timeout: profile.timeout.min(4), ..profile }
}

/// Kinds that may end a controller, or change content behind the driver's back.
const MAY_FAIL: &[FaultKind] = &[
    FaultKind::NvmeLie,
    FaultKind::NvmeBadCompletion,
    FaultKind::NvmeRemoval,
    FaultKind::NvmeAdminError,
    FaultKind::NvmeEnable,
    FaultKind::NvmeDisable,
    FaultKind::FunctionResetFails,
    FaultKind::NvmeFatal,
    FaultKind::NvmeHeld,
    FaultKind::NvmeQueueStuck,
];
const MAY_CHANGE: &[FaultKind] = &[FaultKind::NvmeLie, FaultKind::NvmeBadCompletion];

/// Each kind, how rarely it strikes and how often at most.
const KINDS: &[(FaultKind, u32, u64)] = &[
    (FaultKind::NvmeSlow, 20, 20),
    (FaultKind::NvmeHeld, 60, 3),
    (FaultKind::NvmeQueueStuck, 80, 2),
    (FaultKind::NvmeFatal, 80, 2),
    (FaultKind::NvmeMediaError, 20, 10),
    (FaultKind::NvmeTransient, 8, 40),
    (FaultKind::NvmeTornWrite, 10, 10),
    (FaultKind::NvmeAdminError, 20, 2),
    (FaultKind::NvmeAbortLate, 2, 2),
    (FaultKind::NvmeInterruptLost, 4, 100),
    (FaultKind::NvmeInterruptExtra, 4, 100),
    (FaultKind::NvmeSplitCompletion, 4, 100),
    (FaultKind::NvmeEnable, 2, 2),
    (FaultKind::NvmeDisable, 2, 2),
    (FaultKind::NvmeRemoval, 200, 1),
    (FaultKind::NvmeEvent, 40, 10),
    (FaultKind::NvmeLie, 6, 3),
    (FaultKind::NvmeBadCompletion, 60, 2),
    (FaultKind::FunctionResetFails, 2, 1),
];

/// One run under these kinds; what the load came to, and how often each kind struck.
fn run(seed: u64, kinds: &[(FaultKind, u32, u64)], requests: u64) -> (Seen, Vec<u64>) {
    let has = |among: &[FaultKind]| kinds.iter().any(|(kind, ..)| among.contains(kind));
    let wish = Wish {
        requests,
        checked: !has(MAY_CHANGE),
        may_fail: has(MAY_FAIL),
        namespace: (seed & 1) as usize,
        seed,
    };
    let (machine, drive) = world_with(seed, drawn(seed), kinds);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let program = load(wish, &seen);
    world::with(|world| world.spawn(machine, &program, 1, None));
    let end = scheduler::run();
    let failure = world::with(|world| world.failure().cloned());
    let kinds: Vec<_> = kinds.iter().map(|(kind, ..)| kind.name()).collect();
    assert_eq!(end, scheduler::End::Finished, "seed {seed} under {kinds:?}: {failure:?}");
    let refused = world::with(|world| world.refused_accesses());
    assert_eq!(refused, 0, "seed {seed} under {kinds:?}: unmapped memory was given to the controller");
    let counts = world::with(|world| KINDS.iter().map(|(kind, ..)| world.faults().count(*kind)).collect());
    let mut seen = seen.lock().expect("one thread").clone();
    seen.counts = world::with(|world| world.nvme(drive).counts);
    world::clear();
    (seen, counts)
}

#[test]
fn any_controller_is_driven() {
    for seed in 0..60 {
        let (seen, _) = run(seed, &[], 150);
        assert_eq!((seen.ended, seen.failed), (150, 0), "seed {seed}");
        let Counts { aborted, resets, .. } = seen.counts;
        assert_eq!((aborted, resets), (0, (0, 0)), "seed {seed}: nothing is late");
    }
}

#[test]
fn each_fault_by_itself_is_lived_through() {
    for kind in KINDS {
        let mut struck = 0;
        for seed in 0..6 {
            let others: &[_] = match kind.0 {
                // There is nothing to abort without a command that takes too long, nothing to reset without a failure.
                FaultKind::NvmeAbortLate | FaultKind::FunctionResetFails => {
                    &[(FaultKind::NvmeHeld, 60, 3), (FaultKind::NvmeDisable, 2, 2)]
                }
                FaultKind::NvmeDisable => &[(FaultKind::NvmeFatal, 80, 2)],
                _ => &[],
            };
            let kinds: Vec<_> = [*kind].into_iter().chain(others.iter().copied()).collect();
            let (_, counts) = run(seed, &kinds, 150);
            struck += counts[KINDS.iter().position(|known| known.0 == kind.0).expect("known")];
        }
        assert!(struck > 0, "{}", kind.0.name());
    }
}

#[test]
fn mixtures_of_faults_are_lived_through() {
    let mut sum = vec![0; KINDS.len()];
    let (mut ended, mut failed, mut given_up) = (0, 0, 0);
    for seed in 0..SEEDS {
        let mut rng = Rng::new(seed, 55);
        let kinds: Vec<_> = KINDS.iter().copied().filter(|_| rng.chance(1, 3)).collect();
        let (seen, counts) = run(seed, &kinds, 150);
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        ended += seen.ended;
        failed += seen.failed;
        given_up += u64::from(seen.given_up.is_some());
    }
    let table: Vec<_> = KINDS.iter().zip(&sum).map(|((kind, ..), count)| (kind.name(), *count)).collect();
    println!("{ended} requests, {failed} failed, {given_up} controllers given up; {table:?}");
    assert!(sum.iter().all(|count| *count > 0), "{table:?}");
    assert!(ended > 0 && given_up < SEEDS);
}

#[test]
fn completions_that_are_wrong_end_no_request_twice_and_none_never() {
    for seed in 0..40 {
        run(seed, &[(FaultKind::NvmeBadCompletion, 60, 2)], 150);
    }
}

/// A life under load is killed; when the next one is ready, nothing of the first changes the media any more.
fn killed(seed: u64) -> u64 {
    let faults = [(FaultKind::LateWrite, 1, u64::MAX), (FaultKind::LateDma, 1, u64::MAX)];
    let profile = drawn(seed);
    let (machine, drive) = world_with(seed, profile, &faults);
    let wish = Wish { requests: u64::MAX, checked: true, may_fail: false, namespace: 0, seed };
    let first = load(wish, &Arc::default());
    // The second life only comes up.
    let second: Program = Arc::new(|platform: SimPlatform| {
        let pci = platform.pci();
        let driver = Controller::open(platform, pci, AT, 0, options());
        Box::new(Idles(driver)) as Box<dyn Poller<SimPlatform>>
    });
    READY.with(|ready| ready.store(0, Relaxed));
    let process = world::with(|world| world.spawn(machine, &first, 1, None));
    let points = Rng::new(seed, 33).between(500, 6_000);
    world::with(|world| world.kill_after(process, points));
    let media = move || {
        world::with(|world| {
            let disk = world.nvme(drive).namespaces[0].disk;
            world.disk_content(disk).to_vec()
        })
    };
    let mut at_ready: Option<(u64, Vec<u8>)> = None;
    let mut begun = false;
    let supervisor = Does(move || {
        let now = common::now_ns();
        if !begun && !world::with(|world| world.is_alive(process)) {
            begun = true;
            world::with(|world| world.spawn(machine, &second, 1, None));
        }
        if READY.with(|ready| ready.load(Relaxed)) == 1 && at_ready.is_none() {
            at_ready = Some((now, media()));
        }
        if let Some((since, content)) = &at_ready
            && now > since + 20_000_000
        {
            assert!(media() == *content, "seed {seed}: the dead one still writes");
            world::with(|world| world.finish());
            return Step::Done;
        }
        Step::Idle { until: Some(Instant(now + 3_000)) }
    });
    world::with(|world| world.add_model(Box::new(supervisor), false));
    finish();
    let late = world::with(|world| world.nvme(drive).counts.late_writes);
    world::clear();
    late
}

thread_local! {
    static READY: AtomicU32 = const { AtomicU32::new(0) };
}

/// A driver with nothing to do.
struct Idles(Driver);

impl Poller<SimPlatform> for Idles {
    fn poll(&mut self, now: Instant) -> Poll {
        let poll = self.0.poll(now);
        while self.0.take_report().is_some() {}
        if self.0.standing() == Standing::Ready {
            READY.with(|ready| ready.store(1, Relaxed));
        }
        poll
    }
    fn arm(&mut self, now: Instant, wakes: &mut SimWakes) -> Poll {
        self.0.arm(now, wakes)
    }
}

#[test]
fn nothing_of_a_dead_life_happens_once_the_next_is_ready() {
    let late: u64 = (0..60).map(killed).sum();
    assert!(late > 0, "some writes come after the death");
}
