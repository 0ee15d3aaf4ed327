//! The vhost-user front-end of a virtual machine: it connects, hands over the guest's rings, reconnects when the target
//! dies, resets when the guest does, and adds and removes memory, as QEMU and others were seen to.
//!
//! What may go wrong with it, here: nothing, it keeps to the protocol in every order that it draws. What a bad one does
//! is in `hostile`. What it promises its guest is what QEMU promises: rings, memory and what was in flight outlive the
//! back-end, and the inflight region is passed to the next one unseen.

mod inflight;
pub mod message;
pub mod order;

use self::inflight::Inflight;
use self::message::{Bytes, HEADER_BYTES, Header, feature, protocol, request};
use self::order::{Handover, Manners, Op};
use crate::check::{CacheMode, Observation};
use crate::guest::Witness;
use crate::guest::ring::RingFeatures;
use crate::guest::vm::Shared;
use crate::rng::Rng;
use crate::supervisor::CurrentLife;
use crate::unix::SimHandle;
use crate::world::{self, Model, Step};
use runtime::{ErrorKind, Instant};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Longest wait before a front-end tries to connect again; QEMU's `reconnect` is whole seconds, which would only make
/// simulated time longer.
const RETRY_NS_MAX: u64 = 400_000;
/// Messages sent in one step at most.
const SEND_BURST: u64 = 3;
/// How often a front-end looks whether the guest is through with a region.
const UNPLUG_LOOK_NS: u64 = 5_000;
/// Number of the first of the streams that front-ends draw from, one each.
const STREAM_FIRST: u64 = 30_000;

/// Where a packed ring begins, as its base has it: index 0 and wrap counter 1, of the next available descriptor and of the
/// next used one.
const PACKED_START: u32 = 0x8000_8000;

/// How a front-end is built.
#[derive(Clone, Debug)]
pub struct VmmOptions {
    /// The machine that target and front-end run on.
    pub machine: u32,
    /// Where the controller listens.
    pub path: String,
    /// Its manners.
    pub manners: Manners,
    /// Protocol features that it knows.
    pub protocol_features: u64,
    /// Virtio features that its guest knows.
    pub features: u64,
    /// Entries of each queue's ring.
    pub ring_sizes: Vec<u16>,
    /// The life of the target that there is: who closed a connection.
    pub life: CurrentLife,
    /// The run's seed.
    pub seed: u64,
}

/// What a front-end is asked to do, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The guest's driver starts: on this many queues, with these virtio features.
    Start {
        /// Queues.
        queues: u16,
        /// Features that the driver accepts.
        features: u64,
    },
    /// The guest resets its device at once.
    Reset,
    /// The guest's driver waits until nothing is out, then resets its device.
    Unload,
    /// The machine is paused: what is out is finished, the rings stop.
    Pause,
    /// The machine goes on, with a new inflight region on rings that are not at 0.
    Resume,
    /// The guest gives a region back, and it is removed.
    Unplug(usize),
    /// The region comes back.
    Plug(usize),
    /// The driver sets the write cache.
    Cache(bool),
    /// The configuration space is read again.
    ReadConfig,
}

/// The driver that the guest runs.
#[derive(Clone, Copy, Debug)]
struct Driver {
    queues: u16,
    features: u64,
}

impl Driver {
    fn is_packed(&self) -> bool {
        self.features & feature::RING_PACKED != 0
    }
}

/// A connection.
struct Link {
    end: u32,
    /// The life of the target that it was made to.
    life: u32,
    received: Vec<u8>,
    handles: Vec<SimHandle>,
    unsent: Vec<u8>,
    unsent_handles: Vec<SimHandle>,
    /// The end of the channel back that the front-end keeps.
    backend_end: Option<u32>,
    backend_received: Vec<u8>,
    /// Regions that were added over it: QEMU adds each once, whatever drivers come and go.
    added: Vec<usize>,
}

/// What is being said.
#[derive(Default)]
struct Script {
    ops: VecDeque<Op>,
    /// Said, and an answer awaited: the op, and the request.
    awaited: Option<(Op, u32)>,
}

/// The front-end of one virtual machine.
pub struct Vmm<W> {
    options: VmmOptions,
    vm: Shared,
    witness: W,
    rng: Rng,
    model: Option<u32>,
    link: Option<Link>,
    retry_at: Instant,
    script: Script,
    /// The task that the script carries out.
    task: Option<Task>,
    tasks: VecDeque<Task>,
    greeted_once: bool,
    offered: u64,
    protocol: u64,
    driver: Option<Driver>,
    /// The rings are with the target (or would be, if it lived).
    running: bool,
    paused: bool,
    inflight: Option<Inflight>,
    /// Bases that the last stop gave.
    bases: Vec<u32>,
    /// A reset while nobody was there: the guest's memory is its own again once a back-end answers.
    reset_unseen: bool,
    /// A region that the guest is giving back.
    emptying: Option<usize>,
    /// The connection is to be dropped, and made again after so long.
    drop_for: Option<u64>,
}

/// The front-end as everybody holds it.
pub type SharedVmm<W> = Rc<RefCell<Vmm<W>>>;

/// The front-end as a model of the world.
struct VmmModel<W>(SharedVmm<W>);

impl<W: Witness> Model for VmmModel<W> {
    fn step(&mut self) -> Step {
        self.0.borrow_mut().step()
    }
}

impl<W: Witness + 'static> Vmm<W> {
    /// A front-end for a machine, in the world.
    pub fn build(options: VmmOptions, vm: Shared, witness: W) -> SharedVmm<W> {
        let number = u64::from(vm.borrow().number);
        let shared = Rc::new(RefCell::new(Self {
            rng: Rng::new(options.seed, STREAM_FIRST + number),
            options,
            vm,
            witness,
            model: None,
            link: None,
            retry_at: Instant(0),
            script: Script::default(),
            task: None,
            tasks: VecDeque::new(),
            greeted_once: false,
            offered: 0,
            protocol: 0,
            driver: None,
            running: false,
            paused: false,
            inflight: None,
            bases: Vec::new(),
            reset_unseen: false,
            emptying: None,
            drop_for: None,
        }));
        let model = world::with(|world| world.add_model(Box::new(VmmModel(Rc::clone(&shared))), false));
        shared.borrow_mut().model = Some(model);
        shared
    }
}

impl<W: Witness> Vmm<W> {
    /// Asks for something; done after what was asked before.
    pub fn ask(&mut self, task: Task) {
        self.tasks.push_back(task);
        let model = self.model;
        world::with(|world| model.into_iter().for_each(|model| world.wake_model(model)));
    }

    /// Whether everything that was asked is done and the rings are with a target.
    pub fn is_settled(&self) -> bool {
        self.tasks.is_empty() && self.task.is_none() && self.link.is_some() && self.script.is_over()
    }

    /// Whether the rings are with a target that answers.
    pub fn is_running(&self) -> bool {
        self.running && self.link.is_some() && self.script.is_over()
    }

    /// Whether the target can tell it of changes of the configuration space.
    pub fn hears_changes(&self) -> bool {
        self.has(protocol::BACKEND_REQ) && self.has(protocol::CONFIG)
    }

    /// Tells the checkers what each queue has left, when nothing is out.
    pub fn report_quiet(&mut self) {
        let vm = self.vm.borrow();
        for queue in 0..self.driver.map_or(0, |driver| driver.queues) {
            let tracked = self
                .inflight
                .and_then(|inflight| inflight.part(queue))
                .map(|part| (part.marked(), part.used().is_none_or(|used| used == vm.used(queue))));
            vm.queues[usize::from(queue)].report_quiet(tracked, &mut self.witness);
        }
    }

    /// Drops the connection at once, whatever is being said, and makes it again after `delay_ns`.
    pub fn reconnect_after(&mut self, delay_ns: u64) {
        self.drop_for = Some(delay_ns);
        let model = self.model;
        world::with(|world| model.into_iter().for_each(|model| world.wake_model(model)));
    }

    /// The machine lost its power: nothing is left of what front-end and guest had. It is back at `back_at`.
    pub fn lose_power(&mut self, back_at: Instant) {
        self.close();
        self.script = Script::default();
        self.task = None;
        self.tasks.clear();
        self.driver_gone();
        (self.paused, self.greeted_once, self.reset_unseen, self.emptying) = (false, false, false, None);
        self.drop_for = None;
        self.retry_at = back_at;
        let regions = self.vm.borrow().backings.len();
        for region in 0..regions {
            self.vm.borrow_mut().backings[region].plugged = true;
            self.vm.borrow_mut().use_region(region, true);
            self.observe_region(region, true);
        }
    }

    /// What it is doing, for people.
    pub fn describe(&self) -> String {
        let link = if self.link.is_some() { "connected" } else { "not connected" };
        let rings = if self.running { "rings handed over" } else { "rings not handed over" };
        let awaited = match self.script.awaited {
            Some((op, _)) => format!(", waits for the answer to {op:?}"),
            None => String::new(),
        };
        let task = self.task.map_or(String::new(), |task| format!(", at {task:?}"));
        format!("its front-end is {link}, {rings}{awaited}{task}, {} tasks to come", self.tasks.len())
    }

    fn step(&mut self) -> Step {
        let now = world::with(|world| world.now());
        if self.link.is_some()
            && let Some(delay_ns) = self.drop_for.take()
        {
            self.close();
            self.lost(now);
            self.retry_at = Instant(now.0 + delay_ns);
            return Step::Worked;
        }
        if self.link.is_none() {
            if self.task.is_none() && self.tasks.front() == Some(&Task::Reset) {
                // Nobody has the rings; the guest forgets them, and the next back-end never hears of them.
                self.tasks.pop_front();
                self.driver_gone();
                self.reset_unseen = true;
            }
            if now < self.retry_at {
                return Step::Idle { until: Some(self.retry_at) };
            }
            return self.connect(now);
        }
        match self.talk(now) {
            Ok(step) => step,
            Err(()) => {
                self.lost(now);
                Step::Worked
            }
        }
    }

    fn connect(&mut self, now: Instant) -> Step {
        let connected = world::with(|world| world.connect(self.options.machine, &self.options.path));
        let Ok(end) = connected else {
            self.retry_at = Instant(now.0 + 1 + self.rng.below(RETRY_NS_MAX));
            return Step::Idle { until: Some(self.retry_at) };
        };
        let model = self.model;
        world::with(|world| model.into_iter().for_each(|model| world.wait_for_end(end, model)));
        self.link = Some(Link {
            end,
            life: self.options.life.get(),
            received: Vec::new(),
            handles: Vec::new(),
            unsent: Vec::new(),
            unsent_handles: Vec::new(),
            backend_end: None,
            backend_received: Vec::new(),
            added: Vec::new(),
        });
        let queues = self.vm.borrow().queues.len() as u16;
        self.script = Script { ops: order::greeting(queues, !self.greeted_once).into(), awaited: None };
        Step::Worked
    }

    /// The connection is gone: what was being said is forgotten, what the guest has stays.
    fn lost(&mut self, now: Instant) {
        if let Some(life) = self.close()
            && world::with(|world| world.is_alive(life) && !world.stops(life))
        {
            self.witness.saw(&Observation::ClosedByTarget);
        }
        self.witness.saw(&Observation::Disconnected);
        self.script = Script::default();
        self.retry_at = Instant(now.0 + self.rng.below(RETRY_NS_MAX));
        match self.task.take() {
            // The rings stop with the back-end; whether their last life is over is known once the next one answers.
            Some(Task::Reset | Task::Unload) => {
                self.driver_gone();
                self.reset_unseen = true;
            }
            // What is out stays tracked, and the next back-end finishes it when the machine goes on.
            Some(Task::Pause) => {
                (self.running, self.paused) = (false, true);
                self.bases_from_rings();
            }
            // Nobody was told yet: the guest goes on emptying the region.
            Some(task @ Task::Unplug(region)) if self.vm.borrow().backings[region].plugged => {
                self.tasks.push_front(task);
            }
            // The next hand-over does not have the region.
            Some(Task::Unplug(region)) => self.unplugged(region),
            // Asked again of the next back-end.
            Some(task @ Task::Cache(_)) => self.tasks.push_front(task),
            // The next hand-over has what these ask for.
            Some(Task::Start { .. } | Task::Resume | Task::Plug(_) | Task::ReadConfig) | None => {}
        }
    }

    /// Closes the connection, if there is one; the life of the target that it led to.
    fn close(&mut self) -> Option<u32> {
        let link = self.link.take()?;
        world::with(|world| {
            world.close_end(link.end);
            link.backend_end.into_iter().for_each(|end| world.close_end(end));
        });
        Some(link.life)
    }

    fn talk(&mut self, now: Instant) -> Result<Step, ()> {
        let mut worked = self.flush()?;
        worked |= self.receive()?;
        worked |= self.receive_from_backend()?;
        if self.script.is_over() {
            match self.next_task(now) {
                Next::Began => worked = true,
                Next::Wait(until) => return Ok(Step::Idle { until: Some(until) }),
                Next::Nothing => {}
            }
        }
        for _ in 0..=self.rng.below(SEND_BURST) {
            if self.script.awaited.is_some() || !self.link().unsent.is_empty() {
                break;
            }
            let Some(op) = self.script.ops.pop_front() else { break };
            self.perform(op);
            self.flush()?;
            worked = true;
        }
        Ok(if worked { Step::Worked } else { Step::Idle { until: None } })
    }

    fn link(&mut self) -> &mut Link {
        self.link.as_mut().expect("connected")
    }

    /// Sends what is left to send.
    fn flush(&mut self) -> Result<bool, ()> {
        let link = self.link.as_mut().expect("connected");
        let mut worked = false;
        while !link.unsent.is_empty() {
            let handles = std::mem::take(&mut link.unsent_handles);
            match world::with(|world| world.send_on(link.end, &link.unsent, handles)) {
                Ok(sent) => {
                    link.unsent.drain(..sent);
                    worked = true;
                }
                Err(error) if error.kind == ErrorKind::WouldBlock => break,
                Err(_) => return Err(()),
            }
        }
        Ok(worked)
    }

    /// Receives what is there, and acts on whole messages.
    fn receive(&mut self) -> Result<bool, ()> {
        let link = self.link.as_mut().expect("connected");
        let mut bytes = [0; 512];
        let got = match world::with(|world| world.receive_on(link.end, &mut bytes, &mut link.handles)) {
            Ok(0) => return Err(()),
            Ok(got) => got,
            Err(error) if error.kind == ErrorKind::WouldBlock => return Ok(false),
            Err(_) => return Err(()),
        };
        link.received.extend_from_slice(&bytes[..got]);
        loop {
            match message::take(&mut self.link().received) {
                Ok(None) => return Ok(true),
                Ok(Some((header, payload))) => {
                    let handles = std::mem::take(&mut self.link().handles);
                    self.answered(header, &payload, handles);
                }
                Err(what) => {
                    world::with(|world| world.fail("session", what));
                    return Err(());
                }
            }
        }
    }

    /// Receives on the channel back.
    fn receive_from_backend(&mut self) -> Result<bool, ()> {
        let link = self.link.as_mut().expect("connected");
        let Some(end) = link.backend_end else { return Ok(false) };
        let (mut bytes, mut handles) = ([0; 256], Vec::new());
        let got = match world::with(|world| world.receive_on(end, &mut bytes, &mut handles)) {
            Ok(0) => {
                link.backend_end = None;
                return Ok(false);
            }
            Ok(got) => got,
            Err(_) => return Ok(false),
        };
        link.backend_received.extend_from_slice(&bytes[..got]);
        while let Ok(Some((header, _))) = message::take(&mut link.backend_received) {
            let known = header.request == message::backend_request::CONFIG_CHANGE;
            let good =
                known && header.flags & message::VERSION_MASK == message::VERSION && handles.is_empty();
            self.witness.saw(&Observation::BackendMessage { request: header.request, good });
            if header.flags & message::NEED_REPLY != 0 {
                let reply = Bytes::new(header.request, message::REPLY).u64(u64::from(!known));
                // The channel is far larger than all acknowledgements that can be under way.
                let _ = world::with(|world| world.send_on(end, &reply.0, Vec::new()));
            }
            if known && !self.tasks.contains(&Task::ReadConfig) {
                self.tasks.push_back(Task::ReadConfig);
            }
        }
        Ok(true)
    }

    /// Begins the next task, if there is one and it can begin.
    fn next_task(&mut self, now: Instant) -> Next {
        if let Some(task) = self.task {
            return self.go_on(task, now);
        }
        let Some(task) = self.tasks.pop_front() else { return Next::Nothing };
        self.task = Some(task);
        let queues = self.vm.borrow().queues.len() as u16;
        let started = self.driver.map_or(0, |driver| driver.queues);
        let ops = match task {
            Task::Start { queues: started, features } => {
                let features = features & self.offered;
                let driver = Driver { queues: started, features };
                let start = if driver.is_packed() { PACKED_START } else { 0 };
                self.bases = vec![start; usize::from(queues)];
                // A region is laid out for one of the layouts.
                self.inflight = self.inflight.filter(|inflight| inflight.packed == driver.is_packed());
                let ring = RingFeatures {
                    packed: driver.is_packed(),
                    event_idx: features & feature::EVENT_IDX != 0,
                    indirect: features & feature::INDIRECT != 0,
                };
                let mut vm = self.vm.borrow_mut();
                let sizes = &self.options.ring_sizes;
                vm.start_driver(started, sizes, ring, &mut self.rng, &mut self.witness);
                let offer = &mut vm.device.offer;
                offer.flush = features & feature::FLUSH != 0;
                offer.discard = features & feature::DISCARD != 0;
                offer.write_zeroes = features & feature::WRITE_ZEROES != 0;
                offer.read_only = features & feature::RO != 0;
                let writeback = features & (feature::FLUSH | feature::CONFIG_WCE) != 0;
                vm.device.set_cache(if writeback { CacheMode::Writeback } else { CacheMode::Writethrough });
                drop(vm);
                self.driver = Some(driver);
                self.handover()
            }
            Task::Reset => {
                self.vm.borrow_mut().reset_driver();
                order::takeback(queues, started)
            }
            Task::Unload | Task::Unplug(_) => return self.go_on(task, now),
            Task::Pause => {
                self.vm.borrow_mut().run(false);
                order::takeback(queues, started)
            }
            Task::Resume => {
                if !self.paused {
                    self.task = None;
                    return Next::Began;
                }
                self.paused = false;
                self.handover()
            }
            Task::Plug(region) if self.vm.borrow().backings[region].plugged => {
                self.task = None;
                return Next::Began;
            }
            Task::Plug(region) => {
                self.vm.borrow_mut().backings[region].plugged = true;
                self.observe_region(region, true);
                let op = if self.has(protocol::CONFIGURE_MEM_SLOTS) {
                    Op::AddRegion(region)
                } else {
                    Op::SetMemTable
                };
                if self.running { vec![op, Op::Plugged(region)] } else { vec![Op::Plugged(region)] }
            }
            Task::Cache(writeback) => {
                let wce = self.driver.is_some_and(|driver| driver.features & feature::CONFIG_WCE != 0);
                if !(wce && self.has(protocol::CONFIG)) {
                    self.task = None;
                    return Next::Began;
                }
                self.vm.borrow_mut().device.set_cache(CacheMode::Changing);
                vec![Op::SetWriteback(writeback), Op::CacheSet(writeback)]
            }
            Task::ReadConfig => vec![Op::GetConfig],
        };
        self.script.ops = ops.into();
        Next::Began
    }

    /// A task that waits for the guest, or whose script is through.
    fn go_on(&mut self, task: Task, now: Instant) -> Next {
        match task {
            Task::Unload if self.driver.is_some() => {
                let mut vm = self.vm.borrow_mut();
                if vm.outstanding() > 0 {
                    vm.device.hold(true);
                    return Next::Wait(Instant(now.0 + UNPLUG_LOOK_NS));
                }
                vm.device.hold(false);
                vm.reset_driver();
                drop(vm);
                let queues = self.vm.borrow().queues.len() as u16;
                let started = self.driver.map_or(0, |driver| driver.queues);
                self.script.ops = order::takeback(queues, started).into();
            }
            Task::Unplug(region) if self.vm.borrow().backings[region].plugged => {
                if self.emptying != Some(region) {
                    self.vm.borrow_mut().use_region(region, false);
                    self.emptying = Some(region);
                }
                if self.vm.borrow().touches(region) {
                    return Next::Wait(Instant(now.0 + UNPLUG_LOOK_NS));
                }
                self.vm.borrow_mut().backings[region].plugged = false;
                let op = if self.has(protocol::CONFIGURE_MEM_SLOTS) {
                    Op::RemoveRegion(region)
                } else {
                    Op::SetMemTable
                };
                let has_it = self.link().added.contains(&region) || self.running && op == Op::SetMemTable;
                let said = if has_it { vec![op] } else { Vec::new() };
                self.script.ops = said.into_iter().chain([Op::Unplugged(region)]).collect();
            }
            _ => self.task = None,
        }
        Next::Began
    }

    /// What hands the rings over, as the manners have it.
    fn handover(&mut self) -> Vec<Op> {
        let vm = self.vm.borrow();
        let added = self.link.as_ref().map_or(&[][..], |link| &link.added);
        let plugged: Vec<usize> =
            (0..vm.backings.len()).filter(|at| vm.backings[*at].plugged && !added.contains(at)).collect();
        let about = Handover {
            queues: vm.queues.len() as u16,
            started: self.driver.map_or(0, |driver| driver.queues),
            fresh_inflight: self.inflight.is_none(),
            inflight: self.protocol & protocol::INFLIGHT_SHMFD != 0,
            regions: (self.protocol & protocol::CONFIGURE_MEM_SLOTS != 0).then_some(&plugged[..]),
        };
        order::handover(self.options.manners, &about, &mut self.rng)
    }

    fn has(&self, protocol: u64) -> bool {
        self.protocol & protocol != 0
    }

    /// Whether an acknowledgement is asked for.
    fn wants_reply(&mut self, op: Op) -> bool {
        if !self.has(protocol::REPLY_ACK) {
            return false;
        }
        let about_memory = matches!(
            op,
            Op::SetMemTable
                | Op::AddRegion(_)
                | Op::RemoveRegion(_)
                | Op::SetWriteback(_)
                | Op::SetBackendReqFd
        );
        match self.options.manners {
            Manners::Qemu7 | Manners::CloudHypervisor => about_memory,
            Manners::Qemu11 => {
                about_memory || matches!(op, Op::Call(_) | Op::Error(_) | Op::Kick(_) | Op::Enable(_, _))
            }
            Manners::Any => about_memory || self.rng.chance(1, 3),
        }
    }

    /// Says one thing, or does what stands between two of them.
    fn perform(&mut self, op: Op) {
        if let Some((bytes, handles, always)) = self.compose(op) {
            let asked = message::u32_at(&bytes.0, 0);
            let mut bytes = bytes.0;
            let need = !always && self.wants_reply(op);
            if need {
                bytes[4..8].copy_from_slice(&(message::VERSION | message::NEED_REPLY).to_le_bytes());
            }
            world::with(|world| {
                world.say(|| format!("front-end: {op:?}{}", if need { " (acknowledge)" } else { "" }))
            });
            self.script.awaited = (always || need).then_some((op, asked));
            let link = self.link();
            link.unsent = bytes;
            link.unsent_handles = handles;
        } else {
            self.effect(op);
        }
    }

    /// The message of an op, the handles with it, and whether it is answered in any case.
    fn compose(&mut self, op: Op) -> Option<(Bytes, Vec<SimHandle>, bool)> {
        let vm = self.vm.borrow();
        let plain = |request: u32| Bytes::new(request, 0);
        let state = |request: u32, queue: u16, value: u32| plain(request).u32(queue.into()).u32(value);
        let said = |bytes| Some((bytes, Vec::new(), false));
        let asked = |bytes| Some((bytes, Vec::new(), true));
        let eventfd = |request: u32, queue: u16, eventfd: u32| {
            Some((plain(request).u64(queue.into()), vec![SimHandle::eventfd(eventfd)], false))
        };
        let status = self.protocol & protocol::STATUS != 0;
        match op {
            Op::GetFeatures => asked(plain(request::GET_FEATURES)),
            Op::GetProtocolFeatures => asked(plain(request::GET_PROTOCOL_FEATURES)),
            Op::SetProtocolFeatures => said(plain(request::SET_PROTOCOL_FEATURES).u64(self.protocol)),
            Op::GetQueueNum => asked(plain(request::GET_QUEUE_NUM)),
            Op::GetMaxMemSlots if self.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 => {
                asked(plain(request::GET_MAX_MEM_SLOTS))
            }
            Op::SetBackendReqFd if self.protocol & protocol::BACKEND_REQ != 0 => {
                let (near, far) = world::with(world::World::socket_pair);
                let model = self.model;
                world::with(|world| model.into_iter().for_each(|model| world.wait_for_end(near, model)));
                let link = self.link.as_mut().expect("connected");
                link.backend_end = Some(near);
                Some((plain(request::SET_BACKEND_REQ_FD), vec![SimHandle::end(far)], false))
            }
            Op::SetOwner => said(plain(request::SET_OWNER)),
            Op::GetConfig if self.protocol & protocol::CONFIG != 0 => asked(
                plain(request::GET_CONFIG)
                    .u32(0)
                    .u32(message::CONFIG_BYTES)
                    .u32(0)
                    .bytes(&[0; message::CONFIG_BYTES as usize]),
            ),
            Op::SetWriteback(writeback) => said(
                plain(request::SET_CONFIG)
                    .u32(message::CONFIG_WRITEBACK)
                    .u32(1)
                    .u32(0)
                    .bytes(&[u8::from(writeback)]),
            ),
            Op::SetFeatures => {
                let driver = self.driver.map_or(0, |driver| driver.features);
                said(plain(request::SET_FEATURES).u64(driver | self.offered & feature::PROTOCOL_FEATURES))
            }
            Op::GetInflight => {
                let queues = vm.queues.len() as u16;
                let size = self.options.ring_sizes.iter().copied().max().unwrap_or(0);
                asked(
                    plain(request::GET_INFLIGHT_FD)
                        .u64(0)
                        .u64(0)
                        .u32(u32::from(size) << 16 | u32::from(queues))
                        .u32(0),
                )
            }
            Op::SetInflight => {
                let inflight = self.inflight.as_ref()?;
                let shape = u32::from(inflight.queue_size) << 16 | u32::from(inflight.queues);
                let bytes =
                    plain(request::SET_INFLIGHT_FD).u64(inflight.size).u64(inflight.offset).u32(shape).u32(0);
                Some((bytes, vec![SimHandle::memory(inflight.object)], false))
            }
            Op::SetMemTable => {
                let plugged: Vec<_> = vm.backings.iter().filter(|backing| backing.plugged).collect();
                let mut bytes = plain(request::SET_MEM_TABLE).u32(plugged.len() as u32).u32(0);
                for backing in &plugged {
                    bytes = bytes
                        .u64(backing.address)
                        .u64(backing.len)
                        .u64(backing.user_address)
                        .u64(backing.offset);
                }
                let handles = plugged.iter().map(|backing| SimHandle::memory(backing.object)).collect();
                Some((bytes, handles, false))
            }
            Op::AddRegion(region) | Op::RemoveRegion(region) => {
                let backing = vm.backings[region];
                let adds = matches!(op, Op::AddRegion(_));
                if !adds {
                    self.witness.saw(&Observation::RemovalAsked { outstanding: vm.outstanding() });
                }
                let request = if adds { request::ADD_MEM_REG } else { request::REM_MEM_REG };
                if let Some(link) = &mut self.link {
                    link.added.retain(|&other| other != region);
                    link.added.extend(adds.then_some(region));
                }
                let bytes = plain(request)
                    .u64(0)
                    .u64(backing.address)
                    .u64(backing.len)
                    .u64(backing.user_address)
                    .u64(if adds { backing.offset } else { 0 });
                Some((bytes, if adds { vec![SimHandle::memory(backing.object)] } else { Vec::new() }, false))
            }
            Op::Num(queue) => {
                let size = vm.queues[usize::from(queue)].ring().map_or(0, |ring| ring.size());
                said(state(request::SET_VRING_NUM, queue, size.into()))
            }
            Op::Base(queue) => {
                // What QEMU does: the base that the stop gave, or after a back-end's death the used index; of a packed
                // ring what it knew last, since nothing in memory tells it more.
                let base = self.bases.get(usize::from(queue)).copied().unwrap_or(0);
                said(state(request::SET_VRING_BASE, queue, base))
            }
            Op::Address(queue) => {
                let addresses = vm.queues[usize::from(queue)].ring()?.addresses();
                said(
                    plain(request::SET_VRING_ADDR)
                        .u32(queue.into())
                        .u32(0)
                        .u64(vm.user_address(addresses.desc))
                        .u64(vm.user_address(addresses.used))
                        .u64(vm.user_address(addresses.avail))
                        .u64(addresses.used),
                )
            }
            Op::Kick(queue) => {
                eventfd(request::SET_VRING_KICK, queue, vm.queues[usize::from(queue)].bells().0.0)
            }
            Op::Call(queue) => {
                eventfd(request::SET_VRING_CALL, queue, vm.queues[usize::from(queue)].bells().1.0)
            }
            Op::Error(queue) => eventfd(request::SET_VRING_ERR, queue, world::with(world::World::eventfd)),
            Op::Enable(queue, on) => said(state(request::SET_VRING_ENABLE, queue, on.into())),
            Op::Stop(queue) => asked(state(request::GET_VRING_BASE, queue, 0)),
            Op::GetStatus if status => asked(plain(request::GET_STATUS)),
            Op::SetStatus(value) if status => said(plain(request::SET_STATUS).u64(value)),
            _ => None,
        }
    }

    /// What an op does besides talking.
    fn effect(&mut self, op: Op) {
        match op {
            Op::Greeted => {
                self.greeted_once = true;
                if self.reset_unseen {
                    self.reset_unseen = false;
                    self.witness.saw(&Observation::DeviceReset);
                }
                if self.driver.is_some() && !self.paused {
                    self.bases_from_rings();
                    self.observe_inheritance();
                    self.script.ops = self.handover().into();
                }
            }
            Op::Started => {
                self.running = true;
                self.witness.saw(&Observation::Connected);
                let mut vm = self.vm.borrow_mut();
                for region in 0..vm.backings.len() {
                    let in_use = vm.backings[region].plugged && self.emptying != Some(region);
                    vm.use_region(region, in_use);
                }
                vm.run(true);
            }
            Op::Stopped => match self.task {
                Some(Task::Pause) => {
                    self.running = false;
                    self.paused = true;
                    // The region served its rings' life; the next start asks for a new one.
                    self.inflight = None;
                }
                _ => {
                    // The target was there to end the tracking of every split ring, so the next driver may be given the
                    // region of this one. That of a packed ring goes on knowing where it was.
                    let inflight = self.inflight.filter(|inflight| !inflight.packed && self.rng.chance(1, 2));
                    self.driver_gone();
                    self.inflight = inflight;
                    self.witness.saw(&Observation::DeviceReset);
                }
            },
            Op::Unplugged(region) => self.unplugged(region),
            Op::Plugged(region) => self.vm.borrow_mut().use_region(region, true),
            Op::CacheSet(writeback) => {
                let mode = if writeback { CacheMode::Writeback } else { CacheMode::Writethrough };
                self.vm.borrow_mut().device.set_cache(mode);
            }
            // Nothing was negotiated that these could say.
            _ => {}
        }
    }

    /// After a back-end's death split rings go on where the used index is.
    fn bases_from_rings(&mut self) {
        if self.driver.is_some_and(|driver| driver.is_packed()) {
            return;
        }
        let vm = self.vm.borrow();
        self.bases = (0..vm.queues.len() as u16).map(|queue| vm.used(queue).into()).collect();
    }

    /// What the back-end before had taken and not given back, where the next one is given it.
    fn observe_inheritance(&mut self) {
        let Some(inflight) = self.inflight else { return };
        for part in
            (0..self.driver.map_or(0, |driver| driver.queues)).filter_map(|queue| inflight.part(queue))
        {
            let (packed, requests) = (inflight.packed, part.marked());
            if requests > 0 && part.used().is_some() {
                self.witness.saw(&Observation::Inherited { packed, requests });
            }
        }
    }

    fn driver_gone(&mut self) {
        self.vm.borrow_mut().reset_driver();
        self.vm.borrow_mut().device.hold(false);
        self.driver = None;
        self.running = false;
        self.inflight = None;
    }

    fn unplugged(&mut self, region: usize) {
        let mut vm = self.vm.borrow_mut();
        vm.use_region(region, false);
        vm.backings[region].plugged = false;
        drop(vm);
        self.emptying = None;
        self.observe_region(region, false);
    }

    fn observe_region(&mut self, region: usize, added: bool) {
        let backing = self.vm.borrow().backings[region];
        let (address, len) = (backing.address, backing.len);
        self.witness.saw(&if added {
            Observation::RegionAdded { address, len }
        } else {
            Observation::RegionRemoved { address, len }
        });
    }

    /// An answer came.
    fn answered(&mut self, header: Header, payload: &[u8], handles: Vec<SimHandle>) {
        let awaited = self.script.awaited.take();
        self.witness.saw(&Observation::Answer {
            asked: awaited.map(|(_, request)| request),
            request: header.request,
            flags: header.flags,
            size: header.size,
            handles: handles.len() as u32,
            value: message::u64_at(payload, 0),
        });
        let Some((op, _)) = awaited else { return };
        match op {
            Op::GetFeatures => self.offered = message::u64_at(payload, 0) & self.options.features,
            Op::GetProtocolFeatures => {
                self.protocol = message::u64_at(payload, 0) & self.options.protocol_features;
            }
            Op::GetConfig => {
                let capacity = message::u64_at(payload, 12);
                self.vm.borrow_mut().device.resized(capacity);
                self.vm.borrow().wake();
            }
            Op::GetInflight => {
                let shape = message::u32_at(payload, 16);
                self.inflight = handles.first().and_then(SimHandle::memory_object).map(|object| Inflight {
                    object,
                    size: message::u64_at(payload, 0),
                    offset: message::u64_at(payload, 8),
                    queues: shape as u16,
                    queue_size: (shape >> 16) as u16,
                    packed: self.driver.is_some_and(|driver| driver.is_packed()),
                });
            }
            Op::Stop(queue) => {
                let base = message::u32_at(payload, 4);
                let used = u32::from(self.vm.borrow().used(queue));
                let packed = self.driver.is_some_and(|driver| driver.is_packed());
                let drained = if packed { used | used << 16 } else { used };
                let pausing = self.task == Some(Task::Pause);
                self.witness.saw(&Observation::RingStopped { queue, base, drained, pausing });
                if let Some(kept) = self.bases.get_mut(usize::from(queue)) {
                    *kept = base;
                }
            }
            _ => {}
        }
    }
}

impl Script {
    fn is_over(&self) -> bool {
        self.ops.is_empty() && self.awaited.is_none()
    }
}

enum Next {
    /// There is a script to carry out, or a task has ended.
    Began,
    /// The guest has to do something first.
    Wait(Instant),
    /// Nothing was asked.
    Nothing,
}

/// The length of a message's header, for whoever forges one.
pub const MESSAGE_HEADER_BYTES: usize = HEADER_BYTES;
