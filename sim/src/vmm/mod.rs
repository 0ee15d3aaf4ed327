//! The vhost-user front-end of a virtual machine: it connects, hands over the guest's rings, reconnects when the target
//! dies, resets when the guest does, and adds and removes memory, as QEMU and others were seen to.
//!
//! What may go wrong with it, here: nothing, it keeps to the protocol in every order that it draws. What a bad one does
//! is in `hostile`. What it promises its guest is what QEMU promises: rings, memory and what was in flight outlive the
//! back-end, and the inflight region is passed to the next one unseen.

mod in_band;
mod inflight;
mod link;
mod log;
pub mod message;
pub mod order;
mod say;
mod tasks;

pub use self::tasks::Task;

use self::in_band::InBand;
use self::inflight::Inflight;
use self::link::{Link, Lost, Message};
use self::log::Log;
pub use self::log::LogReader;
use self::message::{Header, feature, protocol};
use self::order::{Manners, Op};
use self::tasks::Next;
use crate::check::{CacheMode, Observation};
use crate::faults::FaultKind;
use crate::guest::Witness;
use crate::guest::vm::Shared;
use crate::rng::Rng;
use crate::unix::SimHandle;
use crate::world::{self, Model, Step};
use runtime::{Instant, Notifier};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Longest wait before a front-end tries to connect again; QEMU's `reconnect` is whole seconds, which would only make
/// simulated time longer.
const RETRY_NS_MAX: u64 = 400_000;
/// Messages sent in one step at most.
const SEND_BURST: u64 = 3;
/// Number of the first of the streams that front-ends draw from, one each.
const STREAM_FIRST: u64 = 30_000;

/// How a front-end is built.
#[derive(Clone, Debug)]
pub struct VmmOptions {
    /// The machine that target and front-end run on.
    pub machine: u32,
    /// Where the controller listens: at one of these, where several targets have one on the same image.
    pub paths: Vec<String>,
    /// Its manners.
    pub manners: Manners,
    /// Protocol features that it knows.
    pub protocol_features: u64,
    /// Virtio features that its guest knows.
    pub features: u64,
    /// Of 256 kicks and calls of queues, how many go by messages, where that is negotiated.
    pub in_band: u32,
    /// Entries of each queue's ring.
    pub ring_sizes: Vec<u16>,
    /// The run's seed.
    pub seed: u64,
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
    in_band: InBand,
    /// All rings are stopped, and everything is read that the target said before: it says nothing now.
    suspended: bool,
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
    /// Mappings that the target's host had refused when the connection was made.
    unmapped_before: u64,
    /// Bases that the last stop gave.
    bases: Vec<u32>,
    /// A reset while nobody was there: the guest's memory is its own again once a back-end answers.
    reset_unseen: bool,
    /// A region that the guest is giving back.
    emptying: Option<usize>,
    /// The connection is to be dropped, and made again after so long.
    drop_for: Option<u64>,
    /// The log of a migration, and whether it is written.
    log: Option<Log>,
    logging: bool,
    log_reader: Option<u32>,
    /// The life of the target that the rings were handed to last, and which queues had nothing to be recovered then: a life
    /// may be asked to stop before it has read as far as a ring's start.
    handed_to: Option<u32>,
    handed_clean: Vec<u16>,
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
            in_band: InBand::default(),
            suspended: false,
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
            unmapped_before: 0,
            bases: Vec::new(),
            reset_unseen: false,
            emptying: None,
            drop_for: None,
            log: None,
            logging: false,
            log_reader: None,
            handed_to: None,
            handed_clean: Vec::new(),
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

    /// Tells the checkers what is left of each queue, and what the target keeps of the memory, when nothing is out.
    pub fn report_quiet(&mut self) {
        self.report_regions();
        let vm = self.vm.borrow();
        for queue in 0..self.driver.map_or(0, |driver| driver.queues) {
            let tracked = self
                .inflight
                .and_then(|inflight| inflight.part(queue))
                .map(|part| (part.marked(), part.used().is_none_or(|used| used == vm.used(queue))));
            vm.queues[usize::from(queue)].report_quiet(tracked, &mut self.witness);
        }
    }

    fn report_regions(&mut self) {
        let Some(life) = self.link.as_ref().map(|link| link.life) else { return };
        let vm = self.vm.borrow();
        let plugged = vm.backings.iter().filter(|backing| backing.plugged).count() as u64;
        let mapped = world::with(|world| {
            vm.backings.iter().map(|backing| world.memory.mappings_of(life, backing.object)).sum()
        });
        drop(vm);
        self.witness.saw(&Observation::RegionsKept { mapped, plugged });
    }

    /// Tells the checkers what a target that ended in order left of the rings that it had.
    pub fn report_end(&mut self, life: u32) {
        let Some(inflight) = self.inflight.filter(|_| self.handed_to == Some(life)) else { return };
        for &queue in &self.handed_clean {
            if let Some(part) = inflight.part(queue) {
                self.witness.saw(&Observation::EndedInOrder { queue, tracked: part.marked() });
            }
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
            Err(Lost) => {
                self.lost(now);
                Step::Worked
            }
        }
    }

    fn connect(&mut self, now: Instant) -> Step {
        let connected = world::with(|world| {
            let mut paths = self.options.paths.iter();
            paths.find_map(|path| world.connect_to(self.options.machine, path).ok())
        });
        let Some((end, life)) = connected else {
            self.retry_at = Instant(now.0 + 1 + self.rng.below(RETRY_NS_MAX));
            return Step::Idle { until: Some(self.retry_at) };
        };
        self.link = Some(Link::new(end, life, self.model));
        self.unmapped_before = mappings_refused();
        let queues = self.vm.borrow().queues.len() as u16;
        self.in_band = InBand::draw(queues.into(), self.options.in_band, &mut self.rng);
        self.suspended = false;
        self.script = Script { ops: order::greeting(queues, !self.greeted_once).into(), awaited: None };
        Step::Worked
    }

    /// The connection is gone: what was being said is forgotten, what the guest has stays.
    fn lost(&mut self, now: Instant) {
        // A target that cannot map what it is given, and has no other way to say so, closes the connection.
        if let Some(life) = self.close()
            && world::with(|world| world.is_alive(life) && !world.stops(life))
            && mappings_refused() == self.unmapped_before
        {
            self.witness.saw(&Observation::ClosedByTarget);
        }
        self.witness.saw(&Observation::Disconnected);
        (self.log, self.logging) = (None, false);
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
            // It has failed.
            Some(Task::Migrate) => {}
        }
    }

    /// Closes the connection, if there is one; the life of the target that it led to.
    fn close(&mut self) -> Option<u32> {
        self.link.take().map(Link::close)
    }

    fn talk(&mut self, now: Instant) -> Result<Step, Lost> {
        let mut worked = self.link().flush()?;
        worked |= self.receive()?;
        worked |= self.receive_from_backend(now);
        let mut until = self.link().unread_until(now);
        if self.script.is_over() {
            match self.next_task(now) {
                Next::Began => worked = true,
                Next::Wait(at) => (worked, until) = (false, Some(until.map_or(at, |until| until.min(at)))),
                Next::Nothing => {}
            }
        }
        if self.gives_handover_up() {
            self.script.ops.clear();
            worked = true;
        }
        for _ in 0..=self.rng.below(SEND_BURST) {
            if self.script.awaited.is_some() || !self.link().is_flushed() {
                break;
            }
            let Some(op) = self.next_op() else { break };
            self.perform(op);
            self.link().flush()?;
            worked = true;
        }
        Ok(if worked { Step::Worked } else { Step::Idle { until } })
    }

    /// Whether a hand-over after a death goes no further, since the guest resets its device meanwhile: rings are stopped
    /// that were described in part and never ran. The region was passed, so that the target ends their tracking.
    fn gives_handover_up(&mut self) -> bool {
        let Script { ops, awaited } = &self.script;
        let passed = ops.contains(&Op::Started) && !ops.contains(&Op::SetInflight) && awaited.is_none();
        let resets = self.task.is_none() && self.tasks.front() == Some(&Task::Reset);
        passed && resets && self.has(protocol::INFLIGHT_SHMFD) && self.rng.chance(1, 4)
    }

    /// What is to be said next: of the script, or that the guest kicked a ring.
    fn next_op(&mut self) -> Option<Op> {
        if !self.script.ops.is_empty() && (self.in_band.started().is_empty() || self.rng.chance(1, 2)) {
            return self.script.ops.pop_front();
        }
        let kick = self.take_kick().map(Op::Kick);
        kick.or_else(|| self.script.ops.pop_front())
    }

    fn link(&mut self) -> &mut Link {
        self.link.as_mut().expect("connected")
    }

    /// Acts on what the target has answered.
    fn receive(&mut self) -> Result<bool, Lost> {
        let Some(received) = self.link().receive()? else { return Ok(false) };
        for Message { header, payload, handles } in received {
            self.answered(header, &payload, handles);
        }
        Ok(true)
    }

    /// Acts on what the target says by itself.
    fn receive_from_backend(&mut self, now: Instant) -> bool {
        let Some(received) = self.link().receive_from_backend(now) else { return false };
        for Message { header, payload, handles } in received {
            let asks = header.flags & message::NEED_REPLY != 0;
            let understood = match header.request {
                message::backend_request::CONFIG_CHANGE => payload.is_empty(),
                message::backend_request::VRING_CALL => asks && self.called(&payload),
                _ => false,
            };
            let may = understood && !self.suspended;
            let good = may && header.flags & message::VERSION_MASK == message::VERSION && handles.is_empty();
            self.witness.saw(&Observation::BackendMessage { request: header.request, good });
            if asks {
                self.link().reply_to_backend(header.request, u64::from(!understood));
            }
            if header.request == message::backend_request::CONFIG_CHANGE
                && !self.tasks.contains(&Task::ReadConfig)
            {
                self.tasks.push_back(Task::ReadConfig);
            }
        }
        true
    }

    /// A ring has something given back, the target says; whether it may say so.
    fn called(&mut self, payload: &[u8]) -> bool {
        let (queue, reserved) = (message::u32_at(payload, 0) as u16, message::u32_at(payload, 4));
        let may = payload.len() == 8 && reserved == 0 && self.in_band.calls(queue);
        if may {
            self.vm.borrow().queues[usize::from(queue)].bells().1.ring();
        }
        may
    }

    fn has(&self, protocol: u64) -> bool {
        self.protocol & protocol != 0
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
            Op::Logging => {
                self.logging = true;
                self.witness.saw(&Observation::Logging);
                let reader = self.log_reader;
                world::with(|world| reader.into_iter().for_each(|model| world.wake_model(model)));
            }
            Op::Started => {
                self.running = true;
                self.handed_to = self.link.as_ref().map(|link| link.life);
                self.handed_clean = self.clean_queues();
                self.witness.saw(&Observation::Connected);
                let mut vm = self.vm.borrow_mut();
                for region in 0..vm.backings.len() {
                    let in_use = vm.backings[region].plugged && self.emptying != Some(region);
                    vm.use_region(region, in_use);
                }
                vm.run(true);
            }
            Op::Stopped => self.stopped(),
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

    /// The target has given all rings back.
    fn stopped(&mut self) {
        let now = world::with(|world| world.now());
        while self.receive_from_backend(now) {}
        self.suspended = self.link().is_backend_read();
        match self.task {
            Some(Task::Pause) => {
                self.running = false;
                self.paused = true;
                if let Some(mut log) = self.log.take().filter(|_| std::mem::take(&mut self.logging)) {
                    log.read(&self.vm, &mut self.witness);
                    self.witness.saw(&Observation::LogRead);
                }
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

    /// Queues whose inflight region marks nothing.
    fn clean_queues(&self) -> Vec<u16> {
        let Some(inflight) = self.inflight else { return Vec::new() };
        let is_clean = |queue: &u16| inflight.part(*queue).is_some_and(|part| part.marked() == 0);
        (0..self.driver.map_or(0, |driver| driver.queues)).filter(is_clean).collect()
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
        (self.log, self.logging) = (None, false);
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
        if let Some((Op::SetMemTable | Op::AddRegion(_) | Op::SetInflight, _)) = awaited
            && message::u64_at(payload, 0) != 0
            && mappings_refused() > self.unmapped_before
        {
            // The target's host has no mapping left for what was passed: connected again, it may have.
            self.drop_for = Some(self.rng.below(RETRY_NS_MAX));
            return;
        }
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

/// How often the target's host had no mapping left.
fn mappings_refused() -> u64 {
    world::with(|world| world.faults().count(FaultKind::NoMappings))
}

impl Script {
    fn is_over(&self) -> bool {
        self.ops.is_empty() && self.awaited.is_none()
    }
}
