//! Who runs next. A queue of moments: each core and each model has one at which it takes its next step, and what a step
//! costs is drawn, so that every order of steps that the clock allows comes up. Sleeping cores have none until something
//! that they armed wakes them, or their `until` comes.
//!
//! Nothing in the queue and the scenario unfinished is a failure: *stuck*.

use crate::follow::{Followed, LifeChange};
use crate::memory::ProcessorId;
use crate::platform::{SimPlatform, SimWakes};
use crate::trace::Record;
use crate::world::{self, Actor, Death, Judged, Process, Program, Step, Waiter, World};
use runtime::{Constructor, Instant, Poll, Poller};
use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Longest time between two looks of an idle core that polls on.
const LOOK_AGAIN_NS_MAX: u64 = 3000;
/// Longest time between two looks of a core whose pollers want to be polled at once, and find nothing, again and again.
const LOOK_DUE_NS_MAX: u64 = 50_000;

/// Rounds in which no poller of a core that would sleep has anything to do, and something that they armed is there all the
/// same, again and again: nobody takes it, and a host's core would be busy with nothing.
const RESTLESS_MAX: u32 = 1000;

/// What happens at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A core takes a step, unless its generation has moved on.
    Core(u32, u64),
    /// A model takes a step, unless its generation has moved on.
    Model(u32, u64),
    /// An offloaded job ends.
    Job(u32),
    /// A disk does something.
    Disk(u32),
    /// What waits in a processor's store buffer reaches memory.
    Drain(u32),
    /// A function that a dead process had open is given back.
    GiveBack(u32, u32),
    /// An NVMe drive that was pulled out is plugged in again.
    Plug(u32),
    /// A message between cores is in its mailbox.
    Message(u32),
    /// All hosts send the packets that they have.
    Network,
    /// A packet arrives.
    Packet(u64),
    /// The memory of what was sent on a TCP stream is released.
    Release(u32),
}

/// An event, and a number that tells when it comes: the moment, then the place that was drawn among those of the same
/// moment, then how many were pushed before it.
struct Due {
    when: u128,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.when == other.when
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest: a heap gives that first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.when.cmp(&self.when)
    }
}

/// The moments to come.
#[derive(Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Due>,
    pushed: u32,
}

impl Queue {
    pub(crate) fn push(&mut self, at: Instant, tie: u32, event: Event) {
        self.pushed = self.pushed.wrapping_add(1);
        let when = u128::from(at.0) << 64 | u128::from(tie) << 32 | u128::from(self.pushed);
        self.heap.push(Due { when, event });
    }

    fn pop(&mut self) -> Option<(Instant, Event)> {
        self.heap.pop().map(|Due { when, event }| (Instant((when >> 64) as u64), event))
    }
}

/// A core of one life of a process.
pub(crate) struct Core {
    pub(crate) process: u32,
    /// Its number in the process.
    pub(crate) number: u16,
    processor: ProcessorId,
    /// Sleeps when idle; otherwise it polls on.
    sleeps: bool,
    asleep: bool,
    /// Number of the current or last sleep.
    pub(crate) sleep: u64,
    /// Something armed for the sleep that is about to begin has come already.
    woken: bool,
    /// Changes to the world that this core made itself.
    pub(crate) own_changes: u64,
    /// Changes to the world by others when the present round of polls began.
    seen: u64,
    /// How long a watching core has let pass between its last two looks.
    pause_ns: u64,
    pollers: Vec<Option<Box<dyn Poller<SimPlatform>>>>,
    pub(crate) constructors: VecDeque<Constructor<SimPlatform>>,
    /// The request to stop has ended a sleep of this core already.
    stop_seen: bool,
    /// Rounds since it last slept or was busy that something armed has ended.
    restless: u32,
    /// The poller to poll next.
    next: usize,
    /// Whether one of this round was busy, and the earliest `until` of the others.
    busy: bool,
    until: Option<Instant>,
    generation: u64,
    pub(crate) busy_ns: u64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The scenario reached its end.
    Finished,
    /// Something failed: [`World::failure`].
    Failed,
}

impl World {
    /// Starts a life of a process on a machine: its first poller, made by `program`, on core 0. The draws of which cores
    /// sleep are made here, unless `sleeps` says it.
    pub fn spawn(&mut self, machine: u32, program: &Program, cores: u16, sleeps: Option<bool>) -> u32 {
        let process = self.processes.len() as u32;
        let first = self.cores.len() as u32;
        for number in 0..cores {
            let processor = self.memory.processor();
            let drawn = self.streams.process.chance(1, 2);
            self.cores.push(Core {
                process,
                number,
                processor,
                sleeps: sleeps.unwrap_or(drawn),
                asleep: false,
                sleep: 0,
                woken: false,
                own_changes: 0,
                seen: 0,
                pause_ns: 0,
                pollers: Vec::new(),
                constructors: VecDeque::new(),
                stop_seen: false,
                restless: 0,
                next: 0,
                busy: false,
                until: None,
                generation: 0,
                busy_ns: 0,
            });
        }
        self.processes.push(Process {
            machine,
            cores: (first..first + u32::from(cores)).collect(),
            alive: true,
            exited: false,
            ready: false,
            stop_requested: false,
            points: 0,
            die_at: u64::MAX,
        });
        self.trace.add(Record::Life, u64::from(process), 1);
        self.tell(|| format!("process {process} starts on machine {machine}"));
        let began = LifeChange::Began { machine, first_core: first, cores };
        self.trace.tell(Followed::Life(process, began));
        let program = Program::clone(program);
        self.cores[first as usize].constructors.push_back(Box::new(move |platform| program(platform)));
        for core in first..first + u32::from(cores) {
            let at = Instant(self.now.0 + 1 + self.streams.schedule.below(2000));
            self.schedule_core(core, at);
        }
        process
    }

    /// Whether a life goes on.
    #[must_use]
    pub fn is_alive(&self, process: u32) -> bool {
        self.processes[process as usize].alive
    }

    /// Whether the life ended by itself, in order.
    #[must_use]
    pub fn has_exited(&self, process: u32) -> bool {
        self.processes[process as usize].exited
    }

    /// Whether the process said that it serves.
    #[must_use]
    pub fn is_ready(&self, process: u32) -> bool {
        self.processes[process as usize].ready
    }

    /// Crash points that the life has passed.
    #[must_use]
    pub fn points(&self, process: u32) -> u64 {
        self.processes[process as usize].points
    }

    /// The life ends at the crash point that comes `points` from now.
    pub fn kill_after(&mut self, process: u32, points: u64) {
        let process = &mut self.processes[process as usize];
        process.die_at = process.points.saturating_add(points.max(1));
    }

    /// Asks for an orderly stop (SIGTERM); wakes every core.
    pub fn request_stop(&mut self, process: u32) {
        self.processes[process as usize].stop_requested = true;
        for core in self.processes[process as usize].cores.clone() {
            let sleep = self.cores[core as usize].sleep;
            self.changed();
            self.wake(Waiter::Core(core, sleep));
        }
    }

    /// Whether a life was asked to stop.
    #[must_use]
    pub fn stops(&self, process: u32) -> bool {
        self.processes[process as usize].stop_requested
    }

    pub(crate) fn schedule_core(&mut self, core: u32, at: Instant) {
        let slot = &mut self.cores[core as usize];
        slot.generation += 1;
        let event = Event::Core(core, slot.generation);
        self.schedule(at, event);
    }

    pub(crate) fn schedule_model(&mut self, model: u32, at: Instant) {
        let slot = &mut self.models[model as usize];
        slot.generation += 1;
        slot.next = at;
        let event = Event::Model(model, slot.generation);
        self.schedule(at, event);
    }

    /// Something that was waited for has come.
    pub(crate) fn wake(&mut self, waiter: Waiter) {
        match waiter {
            Waiter::Nobody => {}
            Waiter::Core(core, sleep) => {
                let slot = &mut self.cores[core as usize];
                if slot.sleep != sleep {
                    return;
                }
                slot.woken = true;
                if std::mem::take(&mut slot.asleep) {
                    let at = Instant(self.now.0 + 100 + self.streams.schedule.below(4000));
                    self.schedule_core(core, at);
                }
            }
            Waiter::Model(model) => {
                let at = Instant(self.now.0 + 50 + self.streams.schedule.below(2000));
                if self.models[model as usize].next > at {
                    self.schedule_model(model, at);
                }
            }
        }
    }

    /// Wakes a model that has something new to do.
    pub fn wake_model(&mut self, model: u32) {
        self.wake(Waiter::Model(model));
    }

    /// The life of a process ends here and now; its pollers are dropped later, by [`bury`].
    pub(crate) fn end_life(&mut self, process: u32, how: &str) {
        if !self.processes[process as usize].alive {
            return;
        }
        for core in self.processes[process as usize].cores.clone() {
            let processor = self.cores[core as usize].processor;
            self.drain(processor);
        }
        self.fence(process);
        if how == "killed" {
            self.kills += 1;
            self.coverage.death();
        }
        let points = self.processes[process as usize].points;
        self.trace.add(Record::Life, u64::from(process), points << 1);
        self.tell(|| match how {
            "ended" => format!("process {process} ended, after {points} crash points"),
            _ => format!("process {process} is {how} at its crash point {points}"),
        });
        self.trace.tell(Followed::Life(process, LifeChange::Ended(how)));
        let cores = &self.cores;
        self.watching.retain(|core| cores[*core as usize].process != process);
        self.memory.unmap_process(process);
        self.sockets_of_dead(process);
        self.network_of_dead(process);
        self.files_of_dead(process);
        self.functions_of_dead(process);
    }

    /// A step costs this long: mostly a poll's time, sometimes as if the host had run something else.
    fn draw_cost(&mut self) -> u64 {
        let word = self.streams.schedule.word();
        let cost = if word & 0xff == 0 { 1000 + (word >> 8) % 40_000 } else { 40 + (word >> 8) % 360 };
        self.trace.add(Record::Draw, 0, cost);
        cost
    }
}

/// Kills a process from outside. One that is in the middle of a step (a model that interleaves kills it) runs not one
/// access more.
pub fn kill(process: u32) {
    let between_steps = world::with(|world| {
        world.end_life(process, "killed");
        world.on_stack != Some(process)
    });
    // What is in the middle of a step unwinds as soon as the model has stepped, and is buried there.
    if between_steps {
        bury(process);
    }
}

/// A machine loses its power: its processes die at once, and its storage keeps what power loss allows. What else lives on
/// the machine (its guests) is told by the caller.
pub fn power_loss(machine: u32) {
    let processes = world::with(|world| {
        let of_machine: Vec<u32> = (0..world.processes.len() as u32)
            .filter(|process| {
                world.processes[*process as usize].machine == machine && world.is_alive(*process)
            })
            .collect();
        world.network_power_loss(machine);
        for process in &of_machine {
            world.end_life(*process, "without power");
        }
        world.power_loss_of_storage(machine);
        world.functions_power_loss(machine);
        of_machine
    });
    processes.into_iter().for_each(bury);
}

/// Drops what a dead process held; nothing that its destructors do has an effect.
pub(crate) fn bury(process: u32) {
    let cores = world::with(|world| {
        world.end_life(process, "gone");
        world.processes[process as usize].cores.clone()
    });
    for core in cores {
        let (before, pollers, constructors) = world::with(|world| {
            let before = world.enter(Actor::Core(core), None);
            let slot = &mut world.cores[core as usize];
            slot.generation += 1;
            (before, std::mem::take(&mut slot.pollers), std::mem::take(&mut slot.constructors))
        });
        drop((pollers, constructors));
        world::with(|world| world.leave(before));
    }
}

impl World {
    /// Somebody acts from now on; who did before.
    fn enter(&mut self, actor: Actor, processor: Option<ProcessorId>) -> (Actor, Option<ProcessorId>) {
        let before = (self.actor(), self.processor);
        self.leave((actor, processor));
        before
    }

    /// Whoever acted before acts again.
    fn leave(&mut self, (actor, processor): (Actor, Option<ProcessorId>)) {
        self.set_actor(actor);
        self.processor = processor;
    }
}

/// A step of a model. Whether it did something.
pub(crate) fn step_model(model: u32) -> bool {
    let taken = world::with(|world| {
        let slot = &mut world.models[model as usize];
        if slot.next <= world.now {
            slot.next = Instant(u64::MAX);
        }
        let body = slot.model.take()?;
        Some((body, world.enter(Actor::Model(model), None)))
    });
    let Some((mut body, before)) = taken else { return false };
    let step = body.step();
    world::with(|world| {
        world.leave(before);
        world.steps += 1;
        world.trace.add(Record::Step, u64::from(model) << 1 | 1, crate::rng::drawn());
        world.models[model as usize].model = Some(body);
        let at = match step {
            Step::Worked => Instant(world.now.0 + world.draw_cost()),
            Step::Idle { until: Some(until) } => until.max(Instant(world.now.0 + 1)),
            Step::Idle { until: None } => return,
            Step::Done => {
                world.models[model as usize].done = true;
                return;
            }
        };
        if world.models[model as usize].next > at {
            world.schedule_model(model, at);
        }
    });
    step == Step::Worked
}

/// What a step of the target's code came to.
enum Outcome<T> {
    Returned(T),
    Died,
}

/// Runs code of the target on a core. A death unwinds to here; so does a bug, which fails the run.
fn on_core<T>(core: u32, act: impl FnOnce() -> T) -> Outcome<T> {
    let (process, before) = world::with(|world| {
        let slot = &world.cores[core as usize];
        let (processor, process) = (slot.processor, slot.process);
        (world.on_stack, world.accesses) = (Some(process), 0);
        world.judged.spin += 1;
        (process, world.enter(Actor::Core(core), Some(processor)))
    });
    let end = catch_unwind(AssertUnwindSafe(act));
    world::with(|world| {
        world.on_stack = None;
        world.leave(before);
    });
    match end {
        Ok(value) => Outcome::Returned(value),
        Err(payload) => {
            if !payload.is::<Death>() {
                world::with(|world| world.fail("panic", panic_text(&*payload)));
            }
            bury(process);
            Outcome::Died
        }
    }
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text =
        payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    format!("the target panicked: {}", text.unwrap_or("(no text)"))
}

/// A step of a core: one poll of one poller; at the end of a round in which all were idle, perhaps sleep.
fn step_core(core: u32) {
    // What was started on this core begins first.
    while let Some(constructor) = world::with(|world| world.cores[core as usize].constructors.pop_front()) {
        let platform = SimPlatform::of(core);
        match on_core(core, move || constructor(platform)) {
            Outcome::Returned(poller) => {
                world::with(|world| world.cores[core as usize].pollers.push(Some(poller)))
            }
            Outcome::Died => return,
        }
    }
    let taken = world::with(|world| {
        let foreign = world.foreign_changes(core);
        let slot = &mut world.cores[core as usize];
        let at = slot.next;
        if at == 0 {
            slot.seen = foreign;
        }
        slot.pollers
            .get_mut(at)
            .map(|poller| (at, poller.take().expect("a poller is at its place between steps")))
    });
    let cost = world::with(World::draw_cost);
    if let Some((at, mut poller)) = taken {
        let now = world::with(|world| world.now);
        let Outcome::Returned((poll, poller)) = on_core(core, move || {
            let poll = poller.poll(now);
            world::interleave();
            (poll, poller)
        }) else {
            return;
        };
        let poller = world::with(|world| {
            let processor = world.cores[core as usize].processor;
            world.settle(processor);
            let slot = &mut world.cores[core as usize];
            match poll {
                Poll::Busy => {
                    slot.restless = 0;
                    slot.busy = true;
                    slot.busy_ns += cost;
                }
                Poll::Idle { until } => slot.until = [slot.until, until].into_iter().flatten().min(),
                Poll::Done => {
                    slot.pollers.remove(at);
                    slot.busy = true;
                    return Some(poller);
                }
            }
            slot.pollers[at] = Some(poller);
            slot.next = at + 1;
            None
        });
        if poller.is_some() && matches!(on_core(core, move || drop(poller)), Outcome::Died) {
            return;
        }
    }
    let round_ended = world::with(|world| {
        let slot = &world.cores[core as usize];
        slot.next >= slot.pollers.len()
    });
    if round_ended {
        let (busy, until, sleeps) = world::with(|world| {
            let slot = &mut world.cores[core as usize];
            slot.next = 0;

            (std::mem::take(&mut slot.busy), slot.until.take(), slot.sleeps)
        });
        if world::with(|world| world.exits(core)) {
            return;
        }
        let until = match (busy, sleeps) {
            (true, _) => None,
            (false, false) => Some(until),
            (false, true) => match sleep(core) {
                Slept::Asleep | Slept::Died => return,
                Slept::Due(until) => Some(Some(until)),
                Slept::Awake => None,
            },
        };
        if until.is_some_and(|until| world::with(|world| world.watches(core, until))) {
            return;
        }
    }
    world::with(|world| {
        let at = Instant(world.now.0 + cost);
        world.schedule_core(core, at);
    });
}

impl World {
    /// A core that polls on has found nothing to do. Until something changes that it did not change itself, or its time
    /// comes, nothing can be seen of its polls; whether that is so.
    fn watches(&mut self, core: u32, until: Option<Instant>) -> bool {
        if self.foreign_changes(core) != self.cores[core as usize].seen {
            return false;
        }
        self.watching.push(core);
        if let Some(until) = until {
            // It polls on all the same, ever more rarely while nothing changes: who waits for a moment may look at the
            // clock before it has come.
            let now = self.now;
            let slot = &mut self.cores[core as usize];
            slot.pause_ns = slot.pause_ns.saturating_mul(2).max(LOOK_AGAIN_NS_MAX);
            let look = match until <= now {
                true => now.0 + slot.pause_ns.min(LOOK_DUE_NS_MAX),
                false => until.0.min(now.0.saturating_add(slot.pause_ns)),
            };
            self.schedule_core(core, Instant(look));
        }
        true
    }

    /// Lets the watching cores look again for whom something has changed.
    fn look_again(&mut self) {
        let mut at = 0;
        while let Some(core) = self.watching.get(at).copied() {
            if self.foreign_changes(core) == self.cores[core as usize].seen {
                at += 1;
                continue;
            }
            self.watching.swap_remove(at);
            self.cores[core as usize].pause_ns = 0;
            let when = Instant(self.now.0 + 1 + self.streams.schedule.below(LOOK_AGAIN_NS_MAX));
            self.schedule_core(core, when);
        }
    }
}

enum Slept {
    Asleep,
    /// Nothing keeps it awake but that a poller wants to be polled again, since that moment.
    Due(Instant),
    Awake,
    Died,
}

/// Arms every poller of a core, and lets it sleep if none has work after all.
fn sleep(core: u32) -> Slept {
    let (pollers, now, spot) = world::with(|world| {
        let slot = &mut world.cores[core as usize];
        slot.sleep += 1;
        slot.woken = false;
        let pollers = slot.pollers.len();
        // Before one of the pollers arms, after the last, or nowhere does another actor surely step in: what it does between
        // a last look and the sleep is what a lost wake-up is made of, and the core has few accesses there. At one place
        // only, since what was done before one poller's last look cannot be done after it again.
        (pollers, world.now, world.streams.schedule.below(pollers as u64 + 2))
    });
    let mut wakes = SimWakes::new(core);
    let (mut busy, mut until) = (false, None);
    for at in 0..pollers {
        let mut poller =
            world::with(|world| world.cores[core as usize].pollers[at].take()).expect("at its place");
        let wakes = &mut wakes;
        let Outcome::Returned((poll, poller)) = on_core(core, move || {
            if spot == at as u64 {
                world::interleave_here();
            }
            let poll = poller.arm(now, wakes);
            world::interleave();
            if spot == pollers as u64 && at + 1 == pollers {
                world::interleave_here();
            }
            (poll, poller)
        }) else {
            return Slept::Died;
        };
        world::with(|world| world.cores[core as usize].pollers[at] = Some(poller));
        match poll {
            Poll::Busy | Poll::Done => busy = true,
            Poll::Idle { until: earliest } => until = [until, earliest].into_iter().flatten().min(),
        }
    }
    world::with(|world| {
        let processor = world.cores[core as usize].processor;
        world.drain(processor);
        let slot = &mut world.cores[core as usize];
        let stop = world.processes[slot.process as usize].stop_requested && !slot.pollers.is_empty();
        // A process that was asked to stop is not left asleep by the request that came before the sleep.
        slot.restless = if busy || !wakes.ready() { 0 } else { slot.restless + 1 };
        if slot.restless > RESTLESS_MAX {
            let what =
                format!("core {core} cannot sleep: what its pollers armed is there, and none takes it");
            world.fail(Judged::SPIN, what);
            return Slept::Died;
        }
        let slot = &mut world.cores[core as usize];
        if busy
            || wakes.ready()
            || slot.woken
            || !slot.constructors.is_empty()
            || (stop && slot.sleep_after_stop())
        {
            return Slept::Awake;
        }
        if let Some(due) = until.filter(|until| *until <= world.now) {
            return Slept::Due(due);
        }
        slot.asleep = true;
        if let Some(until) = until {
            world.schedule_core(core, until);
        }
        Slept::Asleep
    })
}

impl Core {
    /// Whether this sleep would be the first since the stop was asked for.
    fn sleep_after_stop(&mut self) -> bool {
        !std::mem::replace(&mut self.stop_seen, true)
    }
}

impl World {
    /// Whether the process of a core has nothing left to poll anywhere, and so ends.
    fn exits(&mut self, core: u32) -> bool {
        let process = self.cores[core as usize].process;
        let empty = self.processes[process as usize].cores.iter().all(|core| {
            let slot = &self.cores[*core as usize];
            slot.pollers.is_empty() && slot.constructors.is_empty()
        });
        if empty {
            self.processes[process as usize].exited = true;
            self.end_life(process, "ended");
        }
        empty
    }
}

/// Runs the world to the end of its scenario, to a failure, or until nothing can happen any more.
pub fn run() -> End {
    loop {
        let event = world::with(|world| {
            if world.trace.is_followed() {
                world.tell_faults();
            }
            if world.failure.is_some() {
                return Err(End::Failed);
            }
            if world.finished {
                world.drain_all();
                return Err(End::Finished);
            }
            if world.steps > world.temper.steps_max {
                let steps = world.steps;
                world.fail("limit", format!("not finished after {steps} steps"));
                return Err(End::Failed);
            }
            world.close_dropped();
            world.look_again();
            let Some((at, event)) = world.queue.pop() else {
                world.fail(
                    "stuck",
                    "nothing can run, nothing is awaited, and the scenario has not ended".into(),
                );
                return Err(End::Failed);
            };
            world.now = world.now.max(at);
            world.trace.set_clock(world.now.0);
            if world.now.0 > world.temper.time_max_ns {
                let seconds = world.temper.time_max_ns / 1_000_000_000;
                world.fail("limit", format!("not finished after {seconds} s of the world's clock"));
                return Err(End::Failed);
            }
            Ok(event)
        });
        match event {
            Err(end) => return end,
            Ok(Event::Core(core, generation)) => {
                let current = world::with(|world| {
                    let slot = &mut world.cores[core as usize];
                    let current =
                        slot.generation == generation && world.processes[slot.process as usize].alive;
                    if current {
                        world.watching.retain(|watching| *watching != core);
                        let slot = &mut world.cores[core as usize];
                        slot.asleep = false;
                        world.steps += 1;
                        world.trace.add(Record::Step, u64::from(core) << 1, crate::rng::drawn());
                    }
                    current
                });
                if current {
                    step_core(core);
                }
            }
            Ok(Event::Model(model, generation)) => {
                let current = world::with(|world| world.models[model as usize].generation == generation);
                if current {
                    step_model(model);
                }
            }
            Ok(Event::Job(job)) => crate::offload::run_job(job),
            Ok(Event::Disk(disk)) => world::with(|world| world.disk_event(disk)),
            Ok(Event::Drain(processor)) => world::with(|world| world.drain_event(processor)),
            Ok(Event::GiveBack(function, process)) => {
                world::with(|world| world.give_back(function, process));
            }
            Ok(Event::Plug(drive)) => world::with(|world| world.plug_drive(drive)),
            Ok(Event::Message(number)) => world::with(|world| world.message_came(number)),
            Ok(Event::Network) => world::with(|world| world.network_event()),
            Ok(Event::Packet(packet)) => world::with(|world| world.packet_event(packet)),
            Ok(Event::Release(end)) => world::with(|world| world.release_event(end)),
        }
    }
}
