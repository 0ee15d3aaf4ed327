//! A small NVMe driver for tests of the fake controller, written straight on the wire's structures: no error handling but
//! assertions, one thing after the other. A test is a future that a poller runs on, a step a poll.

use super::Act;
use runtime::{
    Access, Dma, Instant, Job, Memory, Notifier, Pci, PciAddress, PciFunction, Platform, Poll, Poller,
    Registers, Window,
};
use sim::dma::{SimDma, SimMapping};
use sim::faults::{FaultKind, Faults, Rate};
use sim::memory::{SimMemory, SimWindow};
use sim::notifier::SimNotifier;
use sim::nvme::{NamespaceProfile, Profile};
use sim::pci::{SimFunction, SimRegisters};
use sim::platform::SimPlatform;
use sim::world::{self, Program, Temper};
use stack::nvme::bits::{
    AdminQueueAttributes, CQE_LEN, Capabilities, Command, Completion, Configuration, ControllerStatus,
    DOORBELLS, IDENTIFY_LEN, PAGE, SQE_LEN, Status, cns, doorbell, register,
};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::task::{self, Context, Waker};

pub const AT: PciAddress = PciAddress { domain: 0, bus: 3, device: 0, function: 0 };
thread_local! {
    /// Until when a script that waits has nothing to do, unless something changes.
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Entries of the admin queues.
const ADMIN_ENTRIES: u16 = 8;
/// Bytes of memory that a test has.
const MEMORY_LEN: u64 = 4 << 20;

/// A world with a machine and one drive, in which faults of `kind` strike once in `one_in` opportunities, at most `most`
/// times.
pub fn world_with(seed: u64, profile: Profile, faults: &[(FaultKind, u32, u64)]) -> (u32, u32) {
    let faults = faults.to_vec();
    let rate = move |asked| {
        let found = faults.iter().find(|(kind, ..)| *kind == asked);
        found.map_or(Rate::default(), |(_, one_in, most)| Rate { of_65536: 65536 / one_in, most: *most })
    };
    world::create(seed, Temper { interleave_every: 4, ..Temper::default() }, Faults::drawn(seed, rate));
    world::with(|world| {
        let machine = world.machine();
        (machine, world.plug_nvme(machine, AT, profile))
    })
}

/// A namespace of 256 blocks of 512 bytes.
pub fn small() -> Profile {
    Profile::plain(vec![NamespaceProfile::plain(256, 512)])
}

/// A program that does what a future does; the run goes on when that ends.
pub fn script<F: Future<Output = ()> + 'static>(
    act: impl Fn(SimPlatform) -> F + Send + Sync + 'static,
) -> Program {
    Arc::new(move |platform| {
        let mut future: Option<Pin<Box<dyn Future<Output = ()>>>> = Some(Box::pin(act(platform)));
        let run = move || {
            if let Some(running) = &mut future
                && running.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
            {
                future = None;
            }
            match DEADLINE.take() {
                None => Poll::Busy,
                Some(until) => Poll::Idle { until: Some(until) },
            }
        };
        Box::new(Act(run)) as Box<dyn Poller<SimPlatform>>
    })
}

/// Lets a poll end here.
pub async fn pause() {
    let mut paused = false;
    poll_fn(
        |_| if std::mem::replace(&mut paused, true) { task::Poll::Ready(()) } else { task::Poll::Pending },
    )
    .await;
}

/// Waits until something holds, at most `ns` nanoseconds; whether it did.
pub async fn until(platform: &SimPlatform, ns: u64, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant(platform.now().0 + ns);
    loop {
        if holds() {
            return true;
        }
        if platform.now() >= end {
            return false;
        }
        DEADLINE.set(Some(end));
        pause().await;
    }
}

/// A queue pair.
pub struct Pair {
    pub id: u16,
    entries: u16,
    submissions: SimWindow,
    completions: SimWindow,
    tail: u16,
    head: u16,
    phase: bool,
    next_id: u16,
}

/// A driver of one controller.
pub struct Nvme {
    pub platform: SimPlatform,
    pub function: SimFunction,
    pub registers: SimRegisters,
    pub dma: SimDma,
    pub capabilities: Capabilities,
    admin: Option<Pair>,
    memory: SimMemory,
    _mapping: SimMapping,
    used: Cell<u64>,
    shadow: Option<(SimWindow, SimWindow)>,
    /// Whether the shadow's store is fenced, as it must be.
    pub fenced: bool,
}

impl Nvme {
    /// Opens the function, and lets it reach memory.
    pub fn open(platform: &SimPlatform) -> Self {
        let pci = platform.pci();
        let function = pci.open(AT).expect("a function");
        let memory = platform.shared_memory("nvme", MEMORY_LEN).expect("memory");
        let dma = pci.dma();
        let mapping = dma.map(memory.window(), Access::ReadWrite).expect("mapped");
        let registers = function.registers(0).expect("registers");
        let capabilities = Capabilities(registers.load_u64(register::CAP));
        let nvme = Self {
            platform: platform.clone(),
            function,
            registers,
            dma,
            capabilities,
            admin: None,
            memory,
            _mapping: mapping,
            used: Cell::new(0),
            shadow: None,
            fenced: true,
        };
        nvme.master();
        nvme
    }

    /// Lets the function reach memory.
    pub fn master(&self) {
        self.function.store_config(4, &6_u16.to_le_bytes());
    }

    /// Pages of memory.
    pub fn pages(&self, count: u64) -> SimWindow {
        let at = self.used.replace(self.used.get() + count * PAGE);
        self.memory.window().slice(at, count * PAGE).expect("enough memory")
    }

    pub fn address(&self, window: &SimWindow) -> u64 {
        self.dma.address(window).expect("mapped")
    }

    pub fn status(&self) -> ControllerStatus {
        ControllerStatus(self.registers.load_u32(register::CSTS))
    }

    async fn reaches(&self, rdy: u32) -> bool {
        let wait = (self.capabilities.to() + 1) * 500_000_000;
        let is_fatal = || rdy == 1 && self.status().cfs() == 1;
        until(&self.platform, wait, || self.status().rdy() == rdy || is_fatal()).await
            && self.status().rdy() == rdy
    }

    /// Disables the controller; whether it did.
    pub async fn disable(&mut self) -> bool {
        (self.admin, self.shadow) = (None, None);
        self.registers.store_u32(register::CC, 0);
        self.reaches(0).await
    }

    /// Enables it, with admin queues; whether it got ready.
    pub async fn enable(&mut self) -> bool {
        let pair = self.pair(0, ADMIN_ENTRIES);
        let sizes = u32::from(ADMIN_ENTRIES) - 1;
        self.registers
            .store_u32(register::AQA, AdminQueueAttributes::default().with_asqs(sizes).with_acqs(sizes).0);
        self.registers.store_u64(register::ASQ, self.address(&pair.submissions));
        self.registers.store_u64(register::ACQ, self.address(&pair.completions));
        let configuration = Configuration::default().with_en(1).with_iosqes(6).with_iocqes(4);
        self.registers.store_u32(register::CC, configuration.0);
        self.admin = Some(pair);
        self.reaches(1).await
    }

    /// Opens it, and brings it up.
    pub async fn begin(platform: &SimPlatform) -> Self {
        let mut nvme = Self::open(platform);
        assert!(nvme.disable().await, "it stops");
        assert!(nvme.enable().await, "it gets ready");
        nvme
    }

    fn pair(&self, id: u16, entries: u16) -> Pair {
        let pages = |len: u64| self.pages((u64::from(entries) * len).div_ceil(PAGE));
        let (submissions, completions) = (pages(SQE_LEN), pages(CQE_LEN));
        completions.fill(0, completions.len(), 0);
        Pair { id, entries, submissions, completions, tail: 0, head: 0, phase: true, next_id: 0 }
    }

    fn ring(&self, queue: u16, completion: bool, before: u16, value: u16) {
        let place = doorbell(queue, completion, self.capabilities.dstrd());
        if let Some((values, events)) = self.shadow.filter(|_| queue > 0) {
            values.store_u32(place, value.into(), Release);
            if self.fenced {
                SimWindow::fence(SeqCst);
            }
            let event = events.load_u32(place, Relaxed) as u16;
            if value.wrapping_sub(event).wrapping_sub(1) >= value.wrapping_sub(before) {
                return;
            }
        }
        self.registers.store_u32(DOORBELLS + place, value.into());
    }

    /// Writes a command, and tells the controller; its identifier.
    pub fn submit(&self, pair: &mut Pair, mut command: Command) -> u16 {
        command.id = pair.next_id;
        pair.next_id += 1;
        for (index, word) in command.words().into_iter().enumerate() {
            pair.submissions.store_u64(u64::from(pair.tail) * SQE_LEN + 8 * index as u64, word, Relaxed);
        }
        let before = pair.tail;
        pair.tail = (pair.tail + 1) % pair.entries;
        self.ring(pair.id, false, before, pair.tail);
        command.id
    }

    /// The next completion, if there is one, and its place given back.
    pub fn next(&self, pair: &mut Pair) -> Option<Completion> {
        let completion = Self::peek(pair)?;
        let before = pair.head;
        pair.head = (pair.head + 1) % pair.entries;
        pair.phase ^= pair.head == 0;
        self.ring(pair.id, true, before, pair.head);
        Some(completion)
    }

    fn peek(pair: &Pair) -> Option<Completion> {
        let at = u64::from(pair.head) * CQE_LEN;
        let last = pair.completions.load_u32(at + Completion::LAST_DWORD, Acquire);
        if Completion::phase_of(last) != pair.phase {
            return None;
        }
        let dword = |offset| pair.completions.load_u32(at + offset, Relaxed);
        let completion = Completion::from_dwords([dword(0), dword(4), dword(8), last]);
        Some(completion)
    }

    /// One command from its submission to its completion; `None` when that does not come in a second.
    pub async fn attempt(&self, pair: &mut Pair, command: Command) -> Option<Completion> {
        let id = self.submit(pair, command);
        until(&self.platform, 1_000_000_000, || Self::peek(pair).is_some()).await;
        let completion = self.next(pair)?;
        assert_eq!((completion.id, completion.sq_id), (id, pair.id));
        Some(completion)
    }

    pub async fn run(&self, pair: &mut Pair, command: Command) -> Completion {
        self.attempt(pair, command).await.expect("a completion")
    }

    /// An admin command.
    pub async fn admin(&mut self, command: Command) -> Completion {
        let mut admin = self.admin.take().expect("enabled");
        let completion = self.run(&mut admin, command).await;
        self.admin = Some(admin);
        completion
    }

    /// Submits an admin command; its completion is taken by [`Nvme::next_admin`].
    pub fn submit_admin(&mut self, command: Command) -> u16 {
        let mut admin = self.admin.take().expect("enabled");
        let id = self.submit(&mut admin, command);
        self.admin = Some(admin);
        id
    }

    pub fn next_admin(&mut self) -> Option<Completion> {
        let mut admin = self.admin.take().expect("enabled");
        let completion = self.next(&mut admin);
        self.admin = Some(admin);
        completion
    }

    /// What Identify gives, or its status.
    pub async fn identify(&mut self, what: u8, nsid: u32) -> Result<[u8; IDENTIFY_LEN], Status> {
        let page = self.pages(1);
        let command = Command::identify(what, nsid).with_prps(self.address(&page), 0);
        let status = self.admin(command).await.status;
        let mut bytes = [0; IDENTIFY_LEN];
        page.read(0, &mut bytes);
        if status.is_success() { Ok(bytes) } else { Err(status) }
    }

    /// Sets shadow doorbells up, if the controller has them; whether it has.
    pub async fn shadow_doorbells(&mut self) -> bool {
        let controller = self.identify(cns::CONTROLLER, 0).await.expect("identified");
        let oacs = u16::from_le_bytes([controller[256], controller[257]]);
        if oacs & 1 << 8 == 0 {
            return false;
        }
        let (values, events) = (self.pages(1), self.pages(1));
        let command = Command::doorbell_buffer_config(self.address(&values), self.address(&events));
        assert!(self.admin(command).await.status.is_success());
        self.shadow = Some((values, events));
        true
    }

    /// A new I/O queue pair.
    pub async fn create(&mut self, id: u16, entries: u16, vector: Option<u16>) -> Pair {
        self.try_create(id, entries, vector).await.expect("created")
    }

    /// The same; `None` when a command does not end.
    pub async fn try_create(&mut self, id: u16, entries: u16, vector: Option<u16>) -> Option<Pair> {
        let pair = self.pair(id, entries);
        if let Some((values, events)) = self.shadow {
            for completion in [false, true] {
                let place = doorbell(id, completion, self.capabilities.dstrd());
                values.store_u32(place, 0, Relaxed);
                events.store_u32(place, 0, Relaxed);
            }
        }
        let (cq, sq) = (self.address(&pair.completions), self.address(&pair.submissions));
        for command in [Command::create_cq(id, entries, cq, vector), Command::create_sq(id, entries, sq)] {
            let mut admin = self.admin.take().expect("enabled");
            let created = self.attempt(&mut admin, command).await;
            self.admin = Some(admin);
            assert!(created?.status.is_success(), "{created:?}");
        }
        Some(pair)
    }

    /// MSI-X vectors.
    pub fn vectors(&self, count: u16) -> Vec<SimNotifier> {
        self.function.enable_vectors(count).expect("vectors")
    }

    /// Resets the function.
    pub async fn reset_function(&mut self) -> runtime::Result<()> {
        let function = self.function.clone();
        let mut job = self.platform.offload(move || function.reset());
        loop {
            if let Some(result) = job.take() {
                return result;
            }
            pause().await;
        }
    }

    /// Ends the test.
    pub fn end(self) {
        world::with(|world| world.finish());
    }
}

/// Whether any of the vectors rang.
pub fn rang(vectors: &[SimNotifier]) -> bool {
    vectors.iter().any(Notifier::take)
}
