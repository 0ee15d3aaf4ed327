//! A small NVMe controller in memory, and the PCI function that it is. It acts when it is told to ([`Fake::step`]), on the
//! thread of the test; what it shall do wrong stands in [`Orders`].
//!
//! It holds the driver to the rules: a command outside of what is legal, an address that is not mapped, a doorbell value
//! beyond its queue, memory touched while bus mastering is off, all are faults of the test ([`Fake::wrongs`]).

mod admin;
mod function;
mod host;
mod io;
mod transfer;

pub use function::{FakePci, FakeRegisters};
pub use host::{FakeDma, FakeMapping, Host};

use function::DOORBELLS_MAX;
use hw::HostWindow;
use runtime::Window;
use stack::nvme::bits::{
    AdminQueueAttributes, AsyncEvent, Capabilities, Command, Completion, Configuration, ControllerStatus,
    IdentifyController, IdentifyNamespace, IdentifyNvmController, LbaFormat, PAGE, Status, doorbell,
};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A doorbell register was stored to.
const STORED: u32 = 1 << 31;

/// What the controller shall do wrong.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// CSTS.RDY never comes.
    pub never_ready: bool,
    /// CSTS.RDY never goes; a function reset helps.
    pub never_stops: bool,
    /// CSTS.CFS is set.
    pub fatal: bool,
    /// Every register reads all ones.
    pub removed: bool,
    /// Function resets fail.
    pub no_function_reset: bool,
    /// Opening the function is refused.
    pub held: bool,
    /// I/O commands are taken and never answered.
    pub hold_io: bool,
    /// Admin commands are taken and never answered.
    pub hold_admin: bool,
    /// Abort commands abort nothing.
    pub abort_nothing: bool,
    /// The next I/O commands end so.
    pub statuses: VecDeque<Status>,
    /// Admin commands of an opcode end so.
    pub refuse_admin: Option<(u8, Status)>,
    /// The next completion comes twice.
    pub complete_twice: bool,
    /// The next I/O completion names this command.
    pub wrong_id: Option<u16>,
    /// Bits that are wrong in what the controller says.
    pub lies: Vec<Lie>,
    /// EventIdx is kept far away, and the shadow is looked at all the time: a controller that polls.
    pub polls_shadow: bool,
}

/// What a controller says, each counted by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A value of a register.
    Register,
    /// A completion queue entry.
    Completion,
    /// Data: of Identify, of a log page, of a read.
    Data,
}

/// Some bits of what the controller says are turned over.
#[derive(Clone, Copy, Debug)]
pub struct Lie {
    /// Of what.
    pub of: Said,
    /// Of the so many-th thing of that kind, from 0.
    pub at: u32,
    /// From this byte on, counted round where there are not so many.
    pub offset: u16,
    /// The bits.
    pub bits: u64,
}

/// A disk of the controller's.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What Identify says of it.
    pub identity: IdentifyNamespace,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Disk {
    /// A disk of `blocks` blocks of 2^`shift` bytes.
    #[must_use]
    pub fn new(shift: u32, blocks: u64) -> Self {
        let mut identity = IdentifyNamespace { nsze: blocks, ncap: blocks, dlfeat: 9, ..Default::default() };
        identity.lbaf[0] = LbaFormat::default().with_lbads(shift).0;
        Self { identity, uuid: [shift as u8; 16], bytes: vec![0xee; (blocks << shift) as usize] }
    }

    fn block_size(&self) -> u64 {
        1 << LbaFormat(self.identity.lbaf[0]).lbads()
    }
}

struct Queue {
    base: u64,
    entries: u16,
    /// Submissions: next to be taken. Completions: next to be given back.
    head: u16,
    /// Submissions: behind the last announced. Completions: next to be written.
    tail: u16,
    /// Completions: the phase that is being written.
    phase: bool,
    vector: Option<u16>,
    /// Submissions with a shadow: it was rung, and has not yet found its queue empty.
    awake: bool,
}

/// The controller's inside.
pub struct State {
    /// What it shall do wrong.
    pub orders: Orders,
    /// Capabilities register.
    pub capabilities: Capabilities,
    /// What it says of itself.
    pub identity: IdentifyController,
    /// What it says of its NVM command set.
    pub nvm_identity: IdentifyNvmController,
    /// Its disks, by namespace.
    pub disks: BTreeMap<u32, Disk>,
    /// How many I/O queues it grants.
    pub queues: u16,
    /// Bytes of configuration space.
    pub config: [u8; 64],
    /// Opcodes of the I/O commands taken, in order, with their blocks.
    pub taken: Vec<Command>,
    /// How often it was enabled.
    pub enables: u32,
    /// How often its function was reset.
    pub function_resets: u32,
    /// Normal shutdowns.
    pub shutdowns: u32,
    /// Aborts asked for.
    pub aborts: u32,
    cc: Configuration,
    csts: ControllerStatus,
    aqa: AdminQueueAttributes,
    asq: u64,
    acq: u64,
    submissions: BTreeMap<u16, Queue>,
    completions: BTreeMap<u16, Queue>,
    shadow: Option<(u64, u64)>,
    events: Vec<u16>,
    pending_events: VecDeque<AsyncEvent>,
    held: Vec<(u16, u16)>,
    bells: Vec<OwnedFd>,
    wrongs: Vec<String>,
    /// How much was said so far, of each kind.
    said: [u32; 3],
}

/// The controller, shared by its function and by the test.
pub struct Fake {
    state: Mutex<State>,
    host: Arc<Host>,
    /// What was stored to doorbell registers and not yet seen, by their number.
    doorbells: [AtomicU32; DOORBELLS_MAX],
}

impl Default for Fake {
    fn default() -> Self {
        let mut identity = IdentifyController {
            vid: 0x1b36,
            mdts: 5,
            ver: 0x0002_0000,
            oaes: 1 << 8,
            oacs: IdentifyController::OACS_DOORBELL_BUFFER,
            acl: 3,
            aerl: 3,
            sqes: 0x66,
            cqes: 0x44,
            nn: 8,
            oncs: 0x000d,
            vwc: 1,
            cntrltype: 1,
            ..Default::default()
        };
        identity.sn[..4].copy_from_slice(b"FAKE");
        identity.mn[..10].copy_from_slice(b"Small disk");
        let mut config = [0; 64];
        config[9..12].copy_from_slice(&[2, 8, 1]);
        let capabilities =
            Capabilities::default().with_mqes(255).with_to(4).with_css(1).with_cqr(1).with_mpsmax(4);
        let state = State {
            orders: Orders::default(),
            capabilities,
            identity,
            nvm_identity: IdentifyNvmController::default(),
            disks: BTreeMap::from([(1, Disk::new(9, 4096))]),
            queues: 4,
            config,
            taken: Vec::new(),
            enables: 0,
            function_resets: 0,
            shutdowns: 0,
            aborts: 0,
            cc: Configuration(0),
            csts: ControllerStatus(0),
            aqa: AdminQueueAttributes(0),
            asq: 0,
            acq: 0,
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
            shadow: None,
            events: Vec::new(),
            pending_events: VecDeque::new(),
            held: Vec::new(),
            bells: Vec::new(),
            wrongs: Vec::new(),
            said: [0; 3],
        };
        let doorbells = [const { AtomicU32::new(0) }; DOORBELLS_MAX];
        Self { state: Mutex::new(state), host: Arc::default(), doorbells }
    }
}

impl Fake {
    /// The controller's inside.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mappings of the process.
    #[must_use]
    pub fn dma(&self) -> FakeDma {
        FakeDma(Arc::clone(&self.host))
    }

    /// What the driver did that it must not.
    #[must_use]
    pub fn wrongs(&self) -> Vec<String> {
        self.state().wrongs.clone()
    }

    /// Does what there is to do. Whether there was anything.
    pub fn step(&self) -> bool {
        let mut state = self.state();
        state.follow_configuration();
        let bus_master = state.config[4] & 4 != 0;
        if state.csts.rdy() == 0 || state.orders.removed || !bus_master {
            return false;
        }
        let mut worked = false;
        let stride = 1 << state.capabilities.dstrd();
        for (place, doorbell) in self.doorbells.iter().enumerate() {
            if doorbell.load(Relaxed) & STORED != 0 {
                let (number, value) = (place / stride, doorbell.swap(0, Acquire) & !STORED);
                state.doorbell((number / 2) as u16, number % 2 == 1, value as u16);
                if let Some(queue) = state.submissions.get_mut(&((number / 2) as u16)) {
                    queue.awake |= number % 2 == 0;
                }
            }
        }
        let numbers: Vec<u16> = state.submissions.keys().copied().collect();
        for number in numbers {
            worked |= state.serve(&self.host, number);
        }
        worked | state.report_events(&self.host)
    }

    /// The memory of an I/O queue pair, submissions and completions, and how many entries each has.
    #[must_use]
    pub fn queue_pair(&self, number: u16) -> (HostWindow, HostWindow, u16) {
        let state = self.state();
        let (submissions, completions) = (&state.submissions[&number], &state.completions[&number]);
        let window = |queue: &Queue, len: u64| {
            self.host.find(queue.base, u64::from(queue.entries) * len).expect("a queue's memory is mapped")
        };
        (window(submissions, 64), window(completions, 16), submissions.entries)
    }

    /// The pages of shadow doorbells and EventIdx, where they are in use.
    #[must_use]
    pub fn shadow_pages(&self) -> Option<(HostWindow, HostWindow)> {
        let find = |address| self.host.find(address, PAGE).expect("the shadow pages are mapped");
        self.state().shadow.map(|(shadow, event)| (find(shadow), find(event)))
    }

    /// An event happens.
    pub fn happen(&self, event: AsyncEvent) {
        self.state().pending_events.push_back(event);
    }

    /// Ends the I/O commands that were held back.
    pub fn let_go(&self) {
        let mut state = self.state();
        state.orders.hold_io = false;
        for (queue, id) in std::mem::take(&mut state.held) {
            state.complete(&self.host, queue, id, Status::SUCCESS, 0);
        }
    }
}

impl State {
    fn wrong(&mut self, what: String) {
        self.wrongs.push(what);
    }

    fn follow_configuration(&mut self) {
        if self.orders.fatal {
            self.csts = self.csts.with_cfs(1);
        }
        if self.cc.en() == 1 && self.csts.rdy() == 0 && !self.orders.never_ready {
            self.csts = ControllerStatus(0).with_rdy(1);
            self.enables += 1;
            let queue = |base, entries| Queue {
                base,
                entries,
                head: 0,
                tail: 0,
                phase: true,
                vector: Some(0),
                awake: true,
            };
            self.submissions.insert(0, queue(self.asq, self.aqa.asqs() as u16 + 1));
            self.completions.insert(0, queue(self.acq, self.aqa.acqs() as u16 + 1));
            if self.config[4] & 4 == 0 {
                self.wrong("it was enabled without bus mastering".into());
            }
            if (self.cc.iosqes(), self.cc.iocqes(), self.cc.mps(), self.cc.css()) != (6, 4, 0, 0) {
                self.wrong(format!("CC {:08x} is not what the controller offers", self.cc.0));
            }
        }
        if self.cc.en() == 0 && !self.orders.never_stops {
            self.forget();
        }
        if self.cc.shn() == Configuration::SHN_NORMAL && self.csts.shst() == 0 {
            self.csts = self.csts.with_shst(ControllerStatus::SHST_COMPLETE);
            self.shutdowns += 1;
        }
    }

    fn forget(&mut self) {
        self.csts = ControllerStatus(0).with_cfs(u32::from(self.orders.fatal));
        self.submissions.clear();
        self.completions.clear();
        self.shadow = None;
        self.events.clear();
        self.held.clear();
    }

    fn shadow_slot(&self, queue: u16, completion: bool) -> Option<(u64, u64)> {
        let slot = doorbell(queue, completion, self.capabilities.dstrd());
        self.shadow.filter(|_| queue > 0).map(|(shadow, event)| (shadow + slot, event + slot))
    }

    /// Takes the commands of a queue.
    fn serve(&mut self, host: &Host, number: u16) -> bool {
        let mut worked = false;
        loop {
            if let Some((shadow, event)) = self.shadow_slot(number, false) {
                // Asks to be told of what comes behind the tail, fences, and looks again.
                let Some(queue) = self.submissions.get(&number) else { return worked };
                let tail = queue.tail;
                if !queue.awake && !self.orders.polls_shadow {
                    return worked;
                }
                let park = if self.orders.polls_shadow { tail.wrapping_add(0x8000) } else { tail };
                let window = host.find(event, 4).expect("EventIdx is mapped");
                window.store_u32(0, u32::from(park), Relaxed);
                HostWindow::fence(SeqCst);
                let seen = host.find(shadow, 4).expect("the shadow is mapped").load_u32(0, Acquire) as u16;
                self.doorbell(number, false, seen);
            }
            let Some(queue) = self.submissions.get_mut(&number) else { return worked };
            if queue.head == queue.tail {
                queue.awake = false;
                return worked;
            }
            let at = queue.base + 64 * u64::from(queue.head);
            queue.head = (queue.head + 1) % queue.entries;
            let Some(bytes) = host.read::<64>(at) else {
                self.wrong(format!("a command at {at:#x}, which is not mapped"));
                return worked;
            };
            let words = std::array::from_fn(|word| {
                u64::from_le_bytes(bytes[8 * word..8 * word + 8].try_into().expect("eight bytes"))
            });
            worked = true;
            let command = Command::from_words(words);
            if number == 0 { self.administer(host, &command) } else { self.transfer(host, number, &command) }
        }
    }

    fn doorbell(&mut self, number: u16, completion: bool, value: u16) {
        let queues = if completion { &mut self.completions } else { &mut self.submissions };
        let Some(queue) = queues.get_mut(&number) else {
            return self.wrong(format!("the doorbell of queue {number}, which is not there"));
        };
        let entries = queue.entries;
        if value >= entries {
            return self.wrong(format!("doorbell value {value} of a queue of {entries}"));
        }
        if completion {
            queue.head = value;
        } else {
            queue.tail = value;
        }
    }

    /// Turns over what is to be wrong in the next thing of a kind that is said.
    fn lie(&mut self, of: Said, bytes: &mut [u8]) {
        let at = self.said[of as usize];
        self.said[of as usize] += 1;
        for lie in self.orders.lies.iter().filter(|lie| (lie.of, lie.at) == (of, at)) {
            for (index, bits) in lie.bits.to_le_bytes().into_iter().enumerate() {
                let place = (usize::from(lie.offset) + index) % bytes.len();
                bytes[place] ^= bits;
            }
        }
    }

    /// Completes a command. The completion queue always has room: the driver sees to it.
    fn complete(&mut self, host: &Host, number: u16, id: u16, status: Status, result: u32) {
        let twice = number > 0 && std::mem::take(&mut self.orders.complete_twice);
        let id = if number > 0 { self.orders.wrong_id.take().unwrap_or(id) } else { id };
        for _ in 0..=u8::from(twice) {
            if let Some((shadow, event)) = self.shadow_slot(number, true) {
                let head = host.find(shadow, 4).expect("the shadow is mapped").load_u32(0, Acquire) as u16;
                self.doorbell(number, true, head);
                host.find(event, 4).expect("EventIdx is mapped").store_u32(0, u32::from(head), Relaxed);
            }
            let sq_head = self.submissions.get(&number).map_or(0, |queue| queue.head);
            let Some(queue) = self.completions.get_mut(&number) else { return };
            let (tail, phase, vector) = (queue.tail, queue.phase, queue.vector);
            let full = (tail + 1) % queue.entries == queue.head;
            queue.tail = (tail + 1) % queue.entries;
            queue.phase ^= queue.tail == 0;
            let at = queue.base + 16 * u64::from(tail);
            if full {
                self.wrong(format!("completion queue {number} would overrun"));
            }
            let entry =
                Completion { result, result_high: 0, sq_head, sq_id: number, id, status, phase }.dwords();
            let Some(window) = host.find(at, 16) else {
                return self.wrong(format!("a completion queue at {at:#x}, which is not mapped"));
            };
            let mut bytes = [0; 16];
            for (index, dword) in entry.into_iter().enumerate() {
                bytes[4 * index..4 * index + 4].copy_from_slice(&dword.to_le_bytes());
            }
            self.lie(Said::Completion, &mut bytes);
            for (index, dword) in bytes.chunks_exact(4).enumerate() {
                let dword = u32::from_le_bytes([dword[0], dword[1], dword[2], dword[3]]);
                window.store_u32(4 * index as u64, dword, Release);
            }
            if let Some(bell) = vector.and_then(|vector| self.bells.get(usize::from(vector))) {
                rustix::io::write(bell, &1u64.to_ne_bytes()).expect("an eventfd takes a ring");
            }
        }
    }
}
