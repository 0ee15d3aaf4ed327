//! The world of one run: machines, processes and their cores, the models around them, and the clock.
//!
//! A world lives in a thread-local of the thread that runs it, so that every simulated object is a plain number: it may
//! be copied, sent and dropped anywhere with no unsafe code, and a sweep runs one world a thread. Nobody holds the world
//! while code of the target or of a model runs: each access borrows it for a moment.
//!
//! What is drawn comes from [`crate::rng`]'s streams, one a subject.

use crate::check::ladder;
use crate::coverage::Coverage;
use crate::faults::Faults;
use crate::files::Storage;
use crate::follow::{Followed, Follower};
use crate::memory::{MemoryMap, ProcessorId, SimWindow};
use crate::net;
use crate::notifier::Eventfd;
use crate::nvme::Drive;
use crate::offload::PendingJob;
use crate::pci::Functions;
use crate::platform::SimPlatform;
use crate::rng::Rng;
use crate::scheduler::{Core, Event, Queue};
use crate::trace::{Record, Trace};
use crate::unix::Sockets;
use runtime::Instant;
use serde::{Deserialize, Serialize};
use stack::reached::Reached;
use std::cell::RefCell;
use std::mem::ManuallyDrop;

thread_local! {
    /// Nothing is to be done as a thread ends, so that an access need not ask whether it does: a world that nobody cleared
    /// is left behind.
    static WORLD: RefCell<ManuallyDrop<Option<Box<World>>>> = const { RefCell::new(ManuallyDrop::new(None)) };
}

/// Most steps that an actor takes in a row between two accesses of the target. A driver that is woken, takes completions,
/// goes to sleep, ends a pause, makes the next request, publishes it and looks whether to notify takes some fifteen.
const INTERLEAVED_STEPS_MAX: u32 = 24;

/// How much more often another actor steps in after a load that overtook a store of its own processor: the one
/// reordering that x86 allows, and so the moment at which a fence that is missing can be seen.
const OVERTAKEN_WEIGHT: u32 = 8;

/// What ends a life in the middle of a poll: the payload of the unwind.
pub(crate) struct Death;

/// How often the world judged by itself, by the name of the verdict.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Judged {
    /// Accesses to mappings.
    pub(crate) memory: u64,
    /// Operations given to files that are locked.
    pub(crate) fence: u64,
    /// Lives of the target that began, and that ended.
    pub(crate) target: u64,
    /// Polls, and whatever else of the target runs without coming back in between.
    pub(crate) spin: u64,
    /// Runs of which it was asked whether they did enough.
    pub(crate) coverage: u64,
}

impl Judged {
    pub(crate) const MEMORY: &str = "memory";
    pub(crate) const FENCE: &str = "fence";
    pub(crate) const TARGET: &str = "target";
    pub(crate) const SPIN: &str = "spin";
    pub(crate) const COVERAGE: &str = "coverage";

    /// The counts with their names.
    pub(crate) fn counts(self) -> [(&'static str, u64); 5] {
        let Self { memory, fence, target, spin, coverage } = self;
        [
            (Self::MEMORY, memory),
            (Self::FENCE, fence),
            (Self::TARGET, target),
            (Self::SPIN, spin),
            (Self::COVERAGE, coverage),
        ]
    }
}

/// Who touched a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// The target's own code.
    Target,
    /// A disk, for an I/O that the target had submitted.
    Disk,
}

/// Is told of every access to watched memory. Called while the world is borrowed: it must not touch the world.
pub trait Observer {
    /// Somebody below the guest touches `len` bytes of guest `guest`'s memory: whether that may be.
    fn allows(&mut self, guest: u32, address: u64, len: u64, store: bool) -> bool;

    /// What was broken by an access of `agent` that was not allowed just now.
    fn objection(&self, guest: u32, agent: Agent, address: u64, len: u64, store: bool) -> String;
}

/// Who acts at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The world itself: devices, timers, whoever sets it up.
    World,
    /// A core of a process.
    Core(u32),
    /// A model: a guest, a front-end, an operator.
    Model(u32),
    /// An offloaded job of a process.
    Job(u32),
}

/// Who waits for an object, and since which sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waiter {
    /// Nobody.
    #[default]
    Nobody,
    /// A core, in its sleep of that number.
    Core(u32, u64),
    /// A model, always.
    Model(u32),
}

/// What a step of a model came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It did something, and may have more to do.
    Worked,
    /// It has nothing to do until something that it waits for changes, or until the moment given.
    Idle {
        /// When to step again at the latest.
        until: Option<Instant>,
    },
    /// It has ended.
    Done,
}

/// An actor outside of the target: a guest, a front-end, an operator. A plain state machine; the world is not borrowed
/// while it steps.
pub trait Model {
    /// Does one small thing. The smaller the steps, the finer it interleaves with the target.
    fn step(&mut self) -> Step;
}

/// A model in the world.
pub(crate) struct ModelSlot {
    pub(crate) model: Option<Box<dyn Model>>,
    pub(crate) generation: u64,
    pub(crate) next: Instant,
    pub(crate) done: bool,
}

/// Makes the first poller of a process's every life.
pub type Program = std::sync::Arc<dyn Fn(SimPlatform) -> Box<dyn runtime::Poller<SimPlatform>> + Send + Sync>;

/// One life of a process.
pub(crate) struct Process {
    pub(crate) machine: u32,
    pub(crate) cores: Vec<u32>,
    pub(crate) alive: bool,
    /// It ended by itself.
    pub(crate) exited: bool,
    pub(crate) ready: bool,
    pub(crate) stop_requested: bool,
    /// Crash points passed: stores, rings, sends, file operations.
    pub(crate) points: u64,
    /// The crash point at which it dies; `u64::MAX`: at none.
    pub(crate) die_at: u64,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The checker that failed, or `stuck`, `panic`, `memory`, `limit`.
    pub checker: String,
    /// What was broken.
    pub what: String,
    /// When, in nanoseconds of the world.
    pub at_ns: u64,
}

/// How much of a run is kept as a readable log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Nothing.
    Nothing,
    /// Lives, deaths, faults, connections.
    Headlines,
    /// Those, and each event, message and request.
    Everything,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Nanoseconds of the world's clock.
    pub at_ns: u64,
    /// Whether a verdict shows it.
    pub headline: bool,
    /// What happened.
    pub text: String,
}

/// Streams of draws.
pub(crate) struct Streams {
    pub(crate) schedule: Rng,
    pub(crate) device: Rng,
    pub(crate) process: Rng,
    pub(crate) wire: Rng,
    pub(crate) tear: Rng,
    pub(crate) messages: Rng,
    pub(crate) network: Rng,
}

/// What is drawn once for a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Temper {
    /// Whether stores wait in store buffers.
    pub store_buffers: bool,
    /// A model takes a step between accesses of the target every so many accesses on average; 0: never.
    pub interleave_every: u32,
    /// Of 256 streams' sends and receives, how many are cut short.
    pub cut_streams: u32,
    /// Longest time for which a message between cores is under way, in nanoseconds; 0: all are there at once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub message_delay_ns: u64,
    /// Steps after which the run ends as a failure.
    pub steps_max: u64,
    /// Nanoseconds of the world's clock after which the run ends as a failure.
    pub time_max_ns: u64,
}

impl Temper {
    /// How much of `len` bytes a stream takes or brings at once: at least one, mostly all of them. A cut is drawn from `rng`,
    /// the stream of draws that has this number in the trace.
    pub(crate) fn cut(&self, len: usize, rng: &mut Rng, trace: &mut Trace, number: u64) -> usize {
        if len > 1 && rng.chance(self.cut_streams, 256) {
            let cut = 1 + rng.below(len as u64 - 1) as usize;
            trace.add(Record::Draw, number, cut as u64);
            return cut;
        }
        len
    }
}

/// What a temper that was written before there was a choice leaves out.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Default for Temper {
    fn default() -> Self {
        Self {
            store_buffers: true,
            interleave_every: 16,
            cut_streams: 32,
            message_delay_ns: 0,
            steps_max: 200_000_000,
            time_max_ns: 600_000_000_000,
        }
    }
}

/// Everything there is.
pub struct World {
    pub(crate) now: Instant,
    pub(crate) streams: Streams,
    pub(crate) temper: Temper,
    pub(crate) store_buffers: bool,
    pub(crate) trace: Trace,
    pub(crate) detail: Detail,
    pub(crate) log: Vec<Line>,
    pub(crate) memory: MemoryMap,
    pub(crate) machines: u32,
    pub(crate) storage: Storage,
    pub(crate) pci: Functions,
    pub(crate) drives: Vec<Drive>,
    pub(crate) processes: Vec<Process>,
    pub(crate) cores: Vec<Core>,
    pub(crate) models: Vec<ModelSlot>,
    /// Models that may step between two accesses of the target.
    pub(crate) interleaved: Vec<u32>,
    pub(crate) until_interleave: u32,
    /// Accesses of the acting core since its poll began.
    pub(crate) accesses: u64,
    /// Changes to the world that somebody may be looking for, ever.
    pub(crate) changes: u64,
    /// Idle cores that poll on: they look again when something has changed.
    pub(crate) watching: Vec<u32>,
    pub(crate) queue: Queue,
    pub(crate) eventfds: Vec<Eventfd>,
    pub(crate) sockets: Sockets,
    /// TCP between machines; made at its first use.
    pub(crate) network: Option<Box<net::Sockets>>,
    pub(crate) jobs: Vec<Option<PendingJob>>,
    /// Who waits for each mailbox between cores.
    pub(crate) boxes: Vec<Waiter>,
    pub(crate) faults: Faults,
    /// Faults that whoever follows was told of.
    faults_told: usize,
    actor: Actor,
    /// What an access asks of whoever acts: the process, if one acts, and whether it is dead (or its life ends just now).
    acting_process: Option<u32>,
    fenced: bool,
    pub(crate) processor: Option<ProcessorId>,
    /// Is told of accesses to watched memory.
    pub(crate) observer: Option<Box<dyn Observer>>,
    /// The process whose code runs, or waits while a model steps between two of its accesses.
    pub(crate) on_stack: Option<u32>,
    pub(crate) failure: Option<Failure>,
    pub(crate) finished: bool,
    pub(crate) steps: u64,
    /// Deaths in the middle of a poll, and kills between polls.
    pub(crate) kills: u64,
    /// Requests that a new life found and submits again.
    pub(crate) replayed: u64,
    pub(crate) judged: Judged,
    /// Nobody but a fault pulls out a drive or asks it for what fails.
    pub(crate) only_faults_ail_drives: bool,
    pub(crate) coverage: Coverage,
}

/// Puts a new world into this thread, the old one gone.
pub fn create(seed: u64, temper: Temper, faults: Faults) {
    clear();
    crate::rng::forget_drawn();
    crate::unix::forget_dropped();
    net::forget_woken();
    let stream = |number| Rng::new(seed, number);
    let mut streams = Streams {
        schedule: stream(1),
        device: stream(2),
        process: stream(3),
        wire: stream(4),
        tear: stream(5),
        messages: stream(6),
        network: stream(7),
    };
    let world = World {
        now: Instant(1_000_000),
        temper,
        store_buffers: temper.store_buffers,
        trace: Trace::default(),
        detail: Detail::Nothing,
        log: Vec::new(),
        memory: MemoryMap::new(&mut streams.schedule),
        streams,
        machines: 0,
        storage: Storage::default(),
        pci: Functions::default(),
        drives: Vec::new(),
        processes: Vec::new(),
        cores: Vec::new(),
        models: Vec::new(),
        interleaved: Vec::new(),
        until_interleave: temper.interleave_every,
        accesses: 0,
        changes: 0,
        watching: Vec::new(),
        queue: Queue::default(),
        eventfds: Vec::new(),
        sockets: Sockets::default(),
        network: None,
        jobs: Vec::new(),
        boxes: Vec::new(),
        faults,
        faults_told: 0,
        actor: Actor::World,
        acting_process: None,
        fenced: false,
        processor: None,
        observer: None,
        on_stack: None,
        failure: None,
        finished: false,
        steps: 0,
        kills: 0,
        replayed: 0,
        judged: Judged::default(),
        only_faults_ail_drives: false,
        coverage: Coverage::default(),
    };
    WORLD.with_borrow_mut(|slot| **slot = Some(Box::new(world)));
}

/// Removes this thread's world and observer.
pub fn clear() {
    // What the target holds is dropped while the world is still there, each process as a dead one.
    let processes = try_with(|world| world.processes.len()).unwrap_or(0);
    for process in 0..processes {
        crate::scheduler::bury(process as u32);
    }
    let models = try_with(|world| std::mem::take(&mut world.models));
    drop(models);
    let jobs = try_with(|world| std::mem::take(&mut world.jobs));
    drop(jobs);
    let network = try_with(|world| world.network.take());
    drop(network);
    WORLD.with_borrow_mut(|slot| **slot = None);
}

/// Borrows this thread's world for a moment.
#[inline]
pub fn with<R>(use_it: impl FnOnce(&mut World) -> R) -> R {
    WORLD.with_borrow_mut(|world| {
        use_it(world.as_mut().expect("a simulated object is used only inside of a world"))
    })
}

/// Borrows this thread's world if there is one: for destructors.
pub(crate) fn try_with<R>(use_it: impl FnOnce(&mut World) -> R) -> Option<R> {
    WORLD
        .try_with(|world| {
            world.try_borrow_mut().ok().and_then(|mut world| world.as_mut().map(|world| use_it(world)))
        })
        .ok()
        .flatten()
}

/// Sets who is told of accesses to watched memory.
pub fn set_observer(observer: Box<dyn Observer>) {
    with(|world| world.observer = Some(observer));
}

/// Acts as a virtual processor of a guest: stores wait in that processor's buffer.
pub fn as_processor<R>(processor: ProcessorId, act: impl FnOnce() -> R) -> R {
    let before = with(|world| world.processor.replace(processor));
    let result = act();
    with(|world| {
        world.settle(processor);
        world.processor = before;
    });
    result
}

/// An access of the target or of a model: perhaps another actor takes a step before it. Unwinds when that step ended the
/// life.
#[inline]
pub(crate) fn access<R>(access: impl FnOnce(&mut World) -> R) -> R {
    let undone = with(|world| if world.goes_on() { Ok(access(world)) } else { Err(access) });
    match undone {
        Ok(result) => result,
        Err(access) => {
            interrupt();
            with(access)
        }
    }
}

/// Between two accesses of the target: perhaps another actor takes a step. Unwinds when that step ended the life.
#[inline]
pub(crate) fn interleave() {
    access(|_| ());
}

/// The moment has come at which another actor is drawn to step in, or at which a poll has taken too long.
#[cold]
fn interrupt() {
    let burst = with(|world| {
        if let Actor::Core(core) = world.actor
            && world.accesses >= ACCESSES_MAX
        {
            let process = world.cores[core as usize].process;
            world.fail(
                Judged::SPIN,
                format!("core {core} made {ACCESSES_MAX} accesses in one poll, and goes on"),
            );
            world.end_life(process, "ended, spinning,");
            return Some((0, 0));
        }
        world.accesses += 1;
        world.draw_interleaved()
    });
    if let Some(burst) = burst {
        step_in(burst);
    }
}

/// As [`interleave`], but surely: for the places where it matters most.
pub(crate) fn interleave_here() {
    let burst = with(|world| if world.temper.interleave_every > 0 { world.draw_burst() } else { None });
    if let Some(burst) = burst {
        step_in(burst);
    }
}

/// Accesses in one poll that nothing needs: whoever makes more would never come back. Hundreds of rings of the longest
/// kind begin in fewer.
const ACCESSES_MAX: u64 = 1 << 20;

/// A model, and how many steps it takes in a row at most.
type Burst = (u32, u32);

/// Lets a model step between two accesses of the target, until it is idle. Unwinds when that ended the life.
fn step_in((model, steps): Burst) {
    for _ in 0..steps {
        if !crate::scheduler::step_model(model) {
            break;
        }
    }
    // A dead process runs not one instruction more; only its destructors do.
    if with(|world| world.is_fenced()) && !std::thread::panicking() {
        std::panic::resume_unwind(Box::new(Death));
    }
}

impl World {
    /// The time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Steps taken so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Deaths so far.
    #[must_use]
    pub fn kills(&self) -> u64 {
        self.kills
    }

    /// Requests that new lives found in inflight regions.
    #[must_use]
    pub fn replayed(&self) -> u64 {
        self.replayed
    }

    /// The stack has come to a point.
    #[inline]
    pub(crate) fn reach(&mut self, point: Reached) {
        if !self.is_fenced() {
            self.coverage.reach(point, self.faults.struck());
            if self.only_faults_ail_drives
                && let Err(what) = ladder::judge(point, self.faults.struck())
            {
                self.fail("ladder", what);
            }
        }
    }

    /// The faults, drawn or replayed.
    pub fn faults(&mut self) -> &mut Faults {
        &mut self.faults
    }

    /// The trace.
    pub fn trace(&mut self) -> &mut Trace {
        &mut self.trace
    }

    /// Why the run failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The run has reached its end.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// The run goes on after [`World::finish`]: for tests that look at the world in between.
    pub fn resume(&mut self) {
        self.finished = false;
    }

    /// Something that must hold does not: the run ends with the first such failure.
    pub fn fail(&mut self, checker: &str, what: String) {
        if self.failure.is_none() {
            self.tell(|| format!("FAILED {checker}: {what}"));
            self.failure = Some(Failure { checker: checker.to_owned(), what, at_ns: self.now.0 });
        }
    }

    /// Keeps a readable log of that much detail from now on.
    pub fn keep_log(&mut self, detail: Detail) {
        self.detail = detail;
    }

    /// Takes the log.
    pub fn take_log(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.log)
    }

    /// Adds a headline to the log: something that the verdict tells a person.
    pub fn tell(&mut self, text: impl FnOnce() -> String) {
        if self.detail >= Detail::Headlines {
            self.log_line(true, text());
        }
    }

    /// Adds a line to the log that only those read who follow every step.
    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if self.detail == Detail::Everything {
            self.log_line(false, text());
        }
    }

    /// A line goes to whoever follows the run, else into the log.
    fn log_line(&mut self, headline: bool, text: String) {
        if self.trace.is_followed() {
            self.trace.tell(Followed::Line(&text));
        } else {
            self.log.push(Line { at_ns: self.now.0, headline, text });
        }
    }

    /// Lets somebody follow the run, who is told of everything.
    pub fn follow(&mut self, follower: Box<dyn Follower>) {
        self.detail = Detail::Everything;
        self.trace.follow(self.now.0, follower);
    }

    /// Tells whoever follows of the faults that struck in the step that just ended.
    pub(crate) fn tell_faults(&mut self) {
        while let Some(fault) = self.faults.struck().get(self.faults_told) {
            self.trace.tell(Followed::Fault(*fault));
            self.faults_told += 1;
        }
    }

    /// Adds a machine.
    pub fn machine(&mut self) -> u32 {
        self.storage.add_machine();
        self.machines += 1;
        self.machines - 1
    }

    /// Memory of a guest or a front-end, and a window onto all of it.
    pub fn memory_object(&mut self, len: u64) -> (u32, SimWindow) {
        let object = self.memory.object(len);
        (object, self.memory.map(object, 0, len, None))
    }

    /// A window onto an object, of nobody's process.
    pub fn window_onto(&mut self, object: u32) -> SimWindow {
        let len = self.memory.object_len(object);
        self.memory.map(object, 0, len, None)
    }

    /// Accesses to an object are reported as those to guest memory at `address`.
    pub fn watch(&mut self, object: u32, guest: u32, address: u64) {
        self.memory.watch(object, guest, address);
    }

    /// The owner of an object shrinks it, as `ftruncate` does.
    pub fn shrink_object(&mut self, object: u32, len: u64) {
        self.memory.bytes_mut(object).truncate(len as usize);
    }

    /// A processor for a guest's virtual CPU.
    pub fn processor(&mut self) -> ProcessorId {
        self.memory.processor()
    }

    /// Everything that a processor has stored reaches memory (a full barrier of a guest).
    pub fn barrier(&mut self, processor: ProcessorId) {
        self.drain(processor);
    }

    /// Adds a model; it takes its first step soon. One that is `interleaved` may step between two accesses of the target.
    pub fn add_model(&mut self, model: Box<dyn Model>, interleaved: bool) -> u32 {
        let id = self.models.len() as u32;
        self.models.push(ModelSlot {
            model: Some(model),
            generation: 0,
            next: Instant(u64::MAX),
            done: false,
        });
        if interleaved {
            self.interleaved.push(id);
        }
        let at = Instant(self.now.0 + 1 + self.streams.schedule.below(1000));
        self.schedule_model(id, at);
        id
    }

    /// Adds a record of a model to the trace.
    pub fn note(&mut self, a: u64, b: u64) {
        self.trace.add(Record::Model, a, b);
    }

    /// Whoever acts at the moment.
    pub(crate) fn actor(&self) -> Actor {
        self.actor
    }

    /// Somebody else acts from now on.
    #[inline]
    pub(crate) fn set_actor(&mut self, actor: Actor) {
        let process = match actor {
            Actor::Core(core) => Some(self.cores[core as usize].process),
            Actor::Job(process) => Some(process),
            Actor::World | Actor::Model(_) => None,
        };
        (self.actor, self.acting_process) = (actor, process);
        self.fenced = process.is_some_and(|process| !self.processes[process as usize].alive);
    }

    /// A process is dead from now on.
    pub(crate) fn fence(&mut self, process: u32) {
        self.processes[process as usize].alive = false;
        self.fenced |= self.acting_process == Some(process);
    }

    /// The process that acts, if one does.
    #[inline]
    pub(crate) fn acting_process(&self) -> Option<u32> {
        self.acting_process
    }

    /// Whether whoever acts is dead: nothing that it does has an effect.
    #[inline]
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Whether the next access comes without anybody stepping in. One of the target counts down to when somebody does.
    #[inline(always)]
    fn goes_on(&mut self) -> bool {
        if !matches!(self.actor, Actor::Core(_)) {
            return true;
        }
        if self.until_interleave == 0 || self.accesses >= ACCESSES_MAX {
            return false;
        }
        self.until_interleave -= 1;
        self.accesses += 1;
        true
    }

    /// Somebody touches watched memory: the run fails if it may not.
    #[inline]
    pub(crate) fn observe(&mut self, guest: u32, agent: Agent, address: u64, len: u64, store: bool) {
        if let Some(observer) = &mut self.observer
            && !observer.allows(guest, address, len, store)
        {
            let what = observer.objection(guest, agent, address, len, store);
            self.fail("buffers", what);
        }
    }

    /// A load of the acting core has overtaken a store of its own processor.
    #[inline]
    pub(crate) fn overtook(&mut self) {
        if matches!(self.actor, Actor::Core(_)) {
            self.until_interleave = self.until_interleave.saturating_sub(OVERTAKEN_WEIGHT - 1);
        }
    }

    /// A point at which the acting process may die; whether it dies here.
    #[inline]
    pub(crate) fn dies_here(&mut self) -> bool {
        let Some(process) = self.acting_process else { return false };
        if self.fenced {
            return false;
        }
        let process = &mut self.processes[process as usize];
        process.points += 1;
        self.coverage.crash_point();
        // A panic that unwinds already is a bug of the target, and reported as one; it must not be cut short by a second.
        process.points >= process.die_at && !std::thread::panicking()
    }

    /// Something changed that somebody may be looking for.
    #[inline]
    pub(crate) fn changed(&mut self) {
        self.changes += 1;
        if let Actor::Core(core) = self.actor {
            self.cores[core as usize].own_changes += 1;
        }
    }

    /// Changes to the world that a core did not make itself.
    pub(crate) fn foreign_changes(&self, core: u32) -> u64 {
        self.changes - self.cores[core as usize].own_changes
    }

    /// A point at which the acting process may die.
    #[inline]
    pub(crate) fn crash_point(&mut self) {
        if self.dies_here() {
            self.die();
        }
    }

    /// The acting process dies here.
    pub(crate) fn die(&mut self) -> ! {
        let process = self.acting_process().expect("only a process dies");
        self.end_life(process, "killed");
        std::panic::resume_unwind(Box::new(Death))
    }

    /// A number from 0 to `bound - 1`, of the schedule's stream.
    pub(crate) fn draw_small(&mut self, bound: u32) -> u32 {
        let word = self.streams.schedule.below(u64::from(bound));
        self.trace.add(Record::Draw, 1, word);
        word as u32
    }

    /// Sixty-four coin tosses, of the stream that tears bulk stores.
    pub(crate) fn draw_fault_word(&mut self) -> u64 {
        self.streams.tear.word()
    }

    #[cold]
    fn draw_interleaved(&mut self) -> Option<Burst> {
        let every = self.temper.interleave_every;
        if every == 0 {
            self.until_interleave = u32::MAX;
            return None;
        }
        self.until_interleave = self.draw_small(2 * every);
        self.draw_burst()
    }

    /// Draws who steps in, if somebody can.
    fn draw_burst(&mut self) -> Option<Burst> {
        if self.is_fenced() || self.interleaved.is_empty() {
            return None;
        }
        let pick = self.draw_small(self.interleaved.len() as u32);
        let model = self.interleaved[pick as usize];
        let slot = &self.models[model as usize];
        let may_step = slot.model.is_some() && !slot.done;
        may_step.then(|| (model, 1 + self.draw_small(INTERLEAVED_STEPS_MAX)))
    }

    /// Puts an event into the queue, with a drawn place among those of the same moment.
    pub(crate) fn schedule(&mut self, at: Instant, event: Event) {
        let tie = self.streams.schedule.word() as u32;
        self.queue.push(at.max(self.now), tie, event);
    }
}
