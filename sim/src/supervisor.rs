//! Whoever starts the targets again: it keeps their processes alive, lets the faults of its own level strike (deaths, power
//! loss, resets, reconnects, memory and size changes), and leads a run through its phases: load under faults, healing,
//! a reading of every disk, quiet, and an orderly stop.

use crate::check::Observation;
use crate::faults::FaultKind;
use crate::guest::Witness;
use crate::guest::vm::Shared;
use crate::operator::{Call, SharedOperator};
use crate::plan::{GuestPlan, Plan};
use crate::process;
use crate::record::Eye;
use crate::rng::Rng;
use crate::run::drive_name;
use crate::scenario::BdevKind;
use crate::scheduler;
use crate::vmm::message::feature;
use crate::vmm::{SharedVmm, Task};
use crate::world::{self, Judged, Model, Program, Step};
use runtime::Instant;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Shortest and longest time between two looks.
const LOOK_NS: (u64, u64) = (10_000, 40_000);
/// While nothing goes on, looks are further apart by a part of that time, and by no more than so much.
const CALM_PARTS: u64 = 16;
const CALM_LOOK_NS_MAX: u64 = 4_000_000;
/// Time without any progress after which a run is stuck, in parts of the scenario's bound.
const STUCK_BOUNDS: u64 = 5;
/// Time after which the operator does something about drives that lied.
const NUDGE_BOUNDS: u64 = 2;
/// A load goes on for faults that have not struck yet, up to so many times its requests.
const LOAD_MAX: u64 = 4;
/// Requests by which it goes on.
const LOAD_STEP: u64 = 64;
/// Longest time in which a region that was unplugged comes back.
const PLUG_NS_MAX: u64 = 500_000;
/// Time after which guest memory is mapped for drives in a world that is mended.
const CALM_NS: u64 = 3_000_000;
/// The same where mappings were refused: the target tries them again each second.
const CALM_AFTER_REFUSALS_NS: u64 = 2_500_000_000;
/// Longest time for which a drive that was pulled out stays away.
const AWAY_NS_MAX: u64 = 3_000_000_000;
/// Number of the stream that the supervisor draws from.
const STREAM: u64 = 60_000;

/// A target, as the supervisor sees it.
struct Target {
    machine: u32,
    program: Program,
    operator: SharedOperator,
    /// The life that there is, or was last (`u32::MAX`: none yet).
    life: u32,
    buried: bool,
    restart_at: Option<Instant>,
    power_at: Option<Instant>,
    stop_at: Option<Instant>,
    deaths: u64,
    /// Failures of small files when the life began.
    file_errors: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A firmware reads a little through queue 0.
    Firmware,
    /// The guest's own driver runs.
    Driver,
}

/// A guest, as the supervisor sees it.
pub struct Guest {
    /// The machine.
    pub vm: Shared,
    /// Its front-end.
    pub vmm: SharedVmm<Eye>,
    /// What it tells.
    pub eye: Eye,
    /// What was drawn.
    pub plan: GuestPlan,
    /// Its disk, if it has one.
    pub disk: Option<u32>,
    /// The drive that the disk is a namespace of, and its identifier.
    pub drive: Option<(u32, u32)>,
    /// Name of its bdev.
    pub bdev: String,
    stage: Stage,
    /// Requests whose opportunities for faults were taken.
    seen: u64,
    /// Requests that it was allowed to make beyond the plan.
    extended: u64,
    resets: Vec<Instant>,
    plugs: Vec<(Instant, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Load,
    /// The faults have stopped; drives come back.
    Mend,
    Verify,
    Stop,
}

/// The supervisor.
pub struct Supervisor {
    plan: Plan,
    rng: Rng,
    targets: Vec<Target>,
    guests: Vec<Guest>,
    /// Something other than guests has to end first: hostile neighbours.
    neighbours: Vec<Rc<Cell<bool>>>,
    /// The drives, and since when each is away.
    drives: Vec<(u32, Option<Instant>)>,
    phase: Phase,
    /// Payload bytes that had been copied before every disk was read, and whether they are counted again.
    copies: (u64, bool),
    /// When everything had been mended for a while.
    calm_at: Option<Instant>,
    /// Faults that ended lives by force.
    deaths: u64,
    deaths_wanted: u64,
    powers_wanted: u64,
    /// Requests done, lives, and faults that struck when one of them last changed, and when that was.
    progress: ((u64, u64, usize), Instant),
    /// When the operator next does something about drives that lied.
    nudge_at: Instant,
}

/// A headline of the run.
fn tell(what: impl FnOnce() -> String) {
    world::with(|world| world.tell(what));
}

/// A target that was not started.
pub struct TargetParts {
    /// Its machine.
    pub machine: u32,
    /// Its operator.
    pub operator: SharedOperator,
}

/// How often a small file has failed.
fn file_errors() -> u64 {
    world::with(|world| world.faults().count(FaultKind::FileError))
}

/// What a supervisor is made of.
pub struct Parts {
    /// The plan.
    pub plan: Plan,
    /// The targets.
    pub targets: Vec<TargetParts>,
    /// The guests.
    pub guests: Vec<Guest>,
    /// Hostile neighbours: whether each is through.
    pub neighbours: Vec<Rc<Cell<bool>>>,
    /// The NVMe drives.
    pub drives: Vec<u32>,
    /// Faults to come of kinds that the load waits for, in a replay.
    pub script: Option<(u64, u64)>,
}

impl Guest {
    /// A guest that was not started.
    #[must_use]
    pub fn new(
        vm: Shared,
        vmm: SharedVmm<Eye>,
        eye: Eye,
        plan: GuestPlan,
        disk: Option<u32>,
        drive: Option<(u32, u32)>,
        bdev: String,
    ) -> Self {
        let (resets, plugs) = (Vec::new(), Vec::new());
        Self {
            vm,
            vmm,
            eye,
            plan,
            disk,
            drive,
            bdev,
            stage: Stage::Driver,
            seen: 0,
            extended: 0,
            resets,
            plugs,
        }
    }

    /// Features that the guest's own driver knows.
    fn features(&self) -> u64 {
        let mut features =
            feature::VERSION_1 | feature::BLK_SIZE | feature::SEG_MAX | feature::MQ | feature::RO;
        features |= feature::DISCARD | feature::WRITE_ZEROES;
        for (on, bit) in [
            (self.plan.packed, feature::RING_PACKED),
            (self.plan.event_idx, feature::EVENT_IDX),
            (self.plan.indirect, feature::INDIRECT),
            (self.plan.flush, feature::FLUSH | feature::CONFIG_WCE),
        ] {
            features |= if on { bit } else { 0 };
        }
        features
    }

    /// The machine was switched on: a firmware first, if it has one.
    fn boot(&mut self) {
        if self.plan.firmware_requests > 0 {
            self.stage = Stage::Firmware;
            self.vm.borrow_mut().device.hold_load(true);
            self.vm.borrow_mut().device.allow_firmware(self.plan.firmware_requests);
            // SeaBIOS knows neither event indexes nor indirect descriptors, and starts queue 0 alone.
            let features = feature::VERSION_1 | feature::BLK_SIZE | feature::SEG_MAX;
            self.vmm.borrow_mut().ask(Task::Start { queues: 1, features });
        } else {
            self.stage = Stage::Driver;
            self.start_driver();
        }
    }

    fn start_driver(&mut self) {
        let task = Task::Start { queues: self.plan.queues, features: self.features() };
        self.vm.borrow_mut().device.hold_load(false);
        self.vmm.borrow_mut().ask(task);
    }

    /// Whether a target serves it, or may.
    fn is_of(&self, target: usize) -> bool {
        self.plan.image || usize::from(self.plan.target) == target
    }

    /// Whether nothing is out and nothing is left to ask.
    fn is_idle(&self) -> bool {
        let vm = self.vm.borrow();
        !vm.device.has_load() && vm.outstanding() == 0
    }

    /// Sectors of its disk, and those that it knows of, where it should have been told of others by now.
    fn untold_size(&self) -> Option<(u64, u64)> {
        let disk = self.disk?;
        let known = self.vm.borrow().device.offer.capacity;
        let is = world::with(|world| world.disk_content(disk).len() as u64 / 512);
        (self.vmm.borrow().hears_changes() && is != known).then_some((is, known))
    }

    fn step(&mut self, now: Instant) {
        if self.stage == Stage::Firmware {
            let vm = self.vm.borrow();
            let through = !vm.device.has_more(0) && vm.outstanding() == 0;
            drop(vm);
            if through && self.vmm.borrow().is_running() {
                self.stage = Stage::Driver;
                self.vmm.borrow_mut().ask(Task::Unload);
                self.start_driver();
            }
        }
        if self.resets.iter().any(|&at| at <= now) {
            self.resets.retain(|&at| at > now);
            self.reset();
        }
        let vmm = &self.vmm;
        self.plugs.retain(|&(at, region)| {
            if at <= now {
                vmm.borrow_mut().ask(Task::Plug(region));
            }
            at > now
        });
    }

    fn reset(&mut self) {
        self.stage = Stage::Driver;
        self.vmm.borrow_mut().ask(Task::Reset);
        self.start_driver();
    }
}

impl Target {
    fn new((number, TargetParts { machine, operator }): (usize, TargetParts)) -> Self {
        Self {
            machine,
            program: process::target_of(number as u16),
            operator,
            life: u32::MAX,
            buried: true,
            restart_at: Some(Instant(0)),
            power_at: None,
            stop_at: None,
            deaths: 0,
            file_errors: 0,
        }
    }
}

impl Supervisor {
    /// A supervisor in the world. The first life begins with its first step.
    pub fn build(parts: Parts) {
        let Parts { plan, targets, mut guests, neighbours, drives, script } = parts;
        for guest in &mut guests {
            guest.vm.borrow_mut().device.allow(guest.plan.workload.requests);
            guest.boot();
        }
        let most = |kind| plan.fault(kind).map_or(0, |fault| fault.rate.most);
        let (deaths_wanted, powers_wanted) =
            script.unwrap_or((most(FaultKind::Kill), most(FaultKind::PowerLoss)));
        let supervisor = Self {
            rng: Rng::new(plan.seed, STREAM),
            plan,
            targets: targets.into_iter().enumerate().map(Target::new).collect(),
            guests,
            neighbours,
            drives: drives.into_iter().map(|drive| (drive, None)).collect(),
            phase: Phase::Load,
            copies: (0, false),
            calm_at: None,
            deaths: 0,
            deaths_wanted,
            powers_wanted,
            progress: ((0, 0, 0), Instant(0)),
            nudge_at: Instant(0),
        };
        world::with(|world| world.add_model(Box::new(supervisor), false));
    }

    /// Looks after the processes.
    fn look_after(&mut self, now: Instant) {
        for at in 0..self.targets.len() {
            self.look_after_one(at, now);
        }
    }

    fn look_after_one(&mut self, at: usize, now: Instant) {
        let life = self.targets[at].life;
        if !self.targets[at].buried && !world::with(|world| world.is_alive(life)) {
            let target = &mut self.targets[at];
            target.buried = true;
            world::with(|world| world.judged.target += 1);
            (target.power_at, target.stop_at) = (None, None);
            if world::with(|world| world.has_exited(life)) {
                if self.phase != Phase::Stop && world::with(|world| world.stops(life)) {
                    for guest in &self.guests {
                        guest.vmm.borrow_mut().report_end(life);
                    }
                    self.restart(at, now);
                } else if file_errors() > self.targets[at].file_errors {
                    // Its state directory failed under it as it began. Whoever looks after the host starts it again.
                    self.targets[at].restart_at = Some(Instant(now.0 + self.plan.down_ns.high));
                } else if self.phase != Phase::Stop {
                    let what = "the target ended by itself, which nobody had asked for".to_owned();
                    world::with(|world| world.fail(Judged::TARGET, what));
                }
                return;
            }
            (self.deaths, target.deaths) = (self.deaths + 1, target.deaths + 1);
            let reset = self.strike(FaultKind::GuestReset, 1000);
            for guest in self.guests.iter_mut().filter(|guest| guest.is_of(at)) {
                guest.resets.extend(reset.map(|delay_ns| Instant(now.0 + delay_ns)));
            }
            self.restart(at, now);
        }
        if self.targets[at].restart_at.is_some_and(|at| at <= now) {
            self.targets[at].restart_at = None;
            self.begin_life(at, now);
        }
        if self.targets[at].power_at.is_some_and(|at| at <= now) {
            self.lose_power(self.targets[at].machine, now);
        }
        if self.targets[at].stop_at.is_some_and(|at| at <= now) && self.phase != Phase::Stop {
            self.targets[at].stop_at = None;
            tell(|| "the target is asked to stop, under load".to_owned());
            world::with(|world| world.request_stop(self.targets[at].life));
        }
    }

    /// A target that has ended begins again after a while.
    fn restart(&mut self, at: usize, now: Instant) {
        let down = self.rng.between(self.plan.down_ns.low, self.plan.down_ns.high);
        self.targets[at].restart_at = Some(Instant(now.0 + down));
    }

    fn begin_life(&mut self, at: usize, now: Instant) {
        let spared = at > 0 && self.plan.spare_others;
        let early = self.targets[at].deaths > 0;
        let (mut points, mut power, mut stop) = (None, None, None);
        if !spared {
            points = self.strike_kill(early);
            power = self.strike(FaultKind::PowerLoss, 1000);
            if points.is_none() && power.is_none() {
                stop = self.strike(FaultKind::Stop, 1000);
            }
        }
        let target = &mut self.targets[at];
        target.buried = false;
        target.file_errors = file_errors();
        let after = |delay_ns| Instant(now.0 + delay_ns);
        (target.power_at, target.stop_at) = (power.map(after), stop.map(after));
        let (machine, cores, sleep) = (target.machine, self.plan.cores, self.plan.sleep);
        let program = &target.program;
        target.life = world::with(|world| {
            let life = world.spawn(machine, program, cores, sleep);
            if let Some(points) = points {
                world.kill_after(life, points);
            }
            life
        });
        if self.targets.len() > 1 {
            tell(|| format!("that is target {at}"));
        }
    }

    /// Whether a life that begins is to be killed, and after how many crash points; `early`: it follows a death.
    fn strike_kill(&self, early: bool) -> Option<u64> {
        let kill = self.plan.fault(FaultKind::Kill).copied();
        world::with(|world| {
            world.faults().strike(FaultKind::Kill, |rng| {
                let kill = kill.expect("a kind that strikes is on");
                let again = rng.chance(kill.again, 256) && early;
                let range = if again { kill.again_range } else { kill.range };
                rng.between(range.low, range.high)
            })
        })
    }

    /// An opportunity of a kind whose parameter the scenario gives, in `unit`s.
    fn strike(&self, kind: FaultKind, unit: u64) -> Option<u64> {
        let range = self.plan.fault(kind).map(|plan| plan.range);
        world::with(|world| {
            world.faults().strike(kind, |rng| {
                let range = range.expect("a kind that strikes is on");
                rng.between(range.low * unit, range.high * unit)
            })
        })
    }

    /// A machine loses its power, and every target and guest on it.
    fn lose_power(&mut self, machine: u32, now: Instant) {
        self.deaths += 1;
        scheduler::power_loss(machine);
        tell(|| "the machine lost its power".to_owned());
        let down = self.rng.between(self.plan.down_ns.low, self.plan.down_ns.high);
        let back_at = Instant(now.0 + down);
        for target in self.targets.iter_mut().filter(|target| target.machine == machine) {
            (target.power_at, target.stop_at) = (None, None);
            (target.buried, target.restart_at) = (true, Some(back_at));
            target.deaths += 1;
        }
        for guest in &mut self.guests {
            if self.plan.machine_of(guest.plan.target) != machine {
                continue;
            }
            guest.resets.clear();
            guest.plugs.clear();
            guest.vmm.borrow_mut().lose_power(back_at);
            guest.eye.saw(&Observation::PowerLost);
            guest.vm.borrow_mut().device.read_all();
            guest.boot();
        }
    }

    /// Drives that were pulled out for good come back after a while: somebody looks after the machine.
    fn plug_drives(&mut self, now: Instant) {
        for (drive, away) in &mut self.drives {
            let plugged = world::with(|world| world.is_plugged(world.nvme(*drive).function));
            let since = *away.get_or_insert(now);
            if plugged {
                *away = None;
            } else if now.since_ns(since) > AWAY_NS_MAX {
                world::with(|world| world.plug_drive(*drive));
            }
        }
    }

    /// The opportunities of the requests that the guests made since the last look.
    fn opportunities(&mut self, now: Instant) {
        for at in 0..self.guests.len() {
            let made = self.guests[at].vm.borrow().device.made();
            if world::with(|world| world.faults().are_any()) {
                for _ in self.guests[at].seen..made {
                    self.opportunity(at, now);
                }
            }
            self.guests[at].seen = made;
        }
    }

    fn opportunity(&mut self, at: usize, now: Instant) {
        if let Some(delay_ns) = self.strike(FaultKind::Disconnect, 1000) {
            tell(|| format!("guest {at}: the front-end drops its connection"));
            self.guests[at].vmm.borrow_mut().reconnect_after(delay_ns);
        }
        if let Some(gently) = self.coin(FaultKind::DriverReload) {
            tell(|| {
                format!("guest {at}: the driver is loaded anew{}", if gently { "" } else { ", by a reset" })
            });
            if gently {
                self.guests[at].vmm.borrow_mut().ask(Task::Unload);
                self.guests[at].start_driver();
            } else {
                self.guests[at].reset();
            }
        }
        if self.coin(FaultKind::Pause).is_some() {
            tell(|| format!("guest {at}: the machine is paused and goes on with a new inflight region"));
            let mut vmm = self.guests[at].vmm.borrow_mut();
            vmm.ask(Task::Pause);
            vmm.ask(Task::Resume);
        }
        if self.coin(FaultKind::Migrate).is_some() {
            tell(|| format!("guest {at}: the machine is migrated, which fails at the end"));
            self.guests[at].vmm.borrow_mut().ask(Task::Migrate);
        }
        if self.coin(FaultKind::Unplug).is_some() {
            let regions = self.guests[at].vm.borrow().backings.len();
            if regions > 1 {
                let region = 1 + self.rng.below(regions as u64 - 1) as usize;
                tell(|| format!("guest {at}: memory region {region} is unplugged"));
                self.guests[at].vmm.borrow_mut().ask(Task::Unplug(region));
                let back = Instant(now.0 + self.rng.below(PLUG_NS_MAX));
                self.guests[at].plugs.push((back, region));
            }
        }
        if let Some(writeback) = self.coin(FaultKind::CacheChange) {
            tell(|| format!("guest {at}: the driver sets the write cache: writeback {writeback}"));
            self.guests[at].vmm.borrow_mut().ask(Task::Cache(writeback));
        }
        if let Some(sectors) = self.strike(FaultKind::Resize, 1) {
            self.grow(at, sectors);
        }
    }

    /// An opportunity of a kind whose parameter is one bit.
    fn coin(&self, kind: FaultKind) -> Option<bool> {
        world::with(|world| world.faults().strike(kind, |rng| rng.below(2)).map(|bit| bit != 0))
    }

    fn grow(&mut self, at: usize, sectors: u64) {
        let guest = &mut self.guests[at];
        let Some(disk) = guest.disk else { return };
        let now = world::with(|world| world.disk_content(disk).len() as u64 / 512);
        let block = u64::from(guest.plan.block_sectors());
        let then = (now + sectors).min(guest.plan.sectors_max) / block * block;
        if let Some((drive, nsid)) = guest.drive {
            world::with(|world| world.change_namespace(drive, nsid, then / block, true));
            tell(|| format!("guest {at}: the namespace grows from {now} to {then} sectors"));
            return;
        }
        world::with(|world| world.resize_disk(disk, then * 512));
        let aio = guest.plan.bdev == BdevKind::Aio;
        for target in
            self.targets.iter().enumerate().filter(|(at, _)| guest.is_of(*at)).map(|(_, target)| target)
        {
            target.operator.borrow_mut().ask(Call::Rescan(guest.bdev.clone(), aio));
        }
        tell(|| format!("guest {at}: the disk grows from {now} to {then} sectors"));
    }

    /// How much later than otherwise it may look again, in a world where nothing goes on.
    fn calm_ns(&self, now: Instant) -> u64 {
        (now.since_ns(self.progress.1) / CALM_PARTS).min(CALM_LOOK_NS_MAX)
    }

    /// The earliest moment that was set for something.
    fn due(&self) -> Option<Instant> {
        let of_targets =
            self.targets.iter().flat_map(|of| [of.restart_at, of.power_at, of.stop_at]).flatten();
        let of_guests = self
            .guests
            .iter()
            .flat_map(|guest| guest.resets.iter().copied().chain(guest.plugs.iter().map(|(at, _)| *at)));
        of_targets.chain(of_guests).min()
    }

    /// Ends the run if nothing has happened for too long.
    fn watch(&mut self, now: Instant) {
        let done: u64 = self.guests.iter().map(|guest| guest.vm.borrow().device.completed).sum();
        let lives = self.targets.iter().map(|target| u64::from(target.life)).sum::<u64>();
        let struck = world::with(|world| world.faults().struck().len());
        let mark = (done, lives, struck);
        if mark != self.progress.0 {
            self.progress = (mark, now);
        }
        let waited = now.since_ns(self.progress.1);
        if waited > NUDGE_BOUNDS * self.plan.bound_ns && now >= self.nudge_at {
            // What a drive said wrongly of itself it is asked again only when somebody makes it begin anew.
            self.nudge_at = Instant(now.0 + self.plan.bound_ns / 4);
            self.reset_liars();
        }
        if waited > STUCK_BOUNDS * self.plan.bound_ns {
            let states: Vec<String> = self
                .guests
                .iter()
                .enumerate()
                .map(|(at, guest)| {
                    let (vm, vmm) = (guest.vm.borrow(), guest.vmm.borrow());
                    let size = guest.untold_size().map_or(String::new(), |(is, known)| {
                        format!(" and was never told that its disk of {known} sectors has {is}")
                    });
                    format!("guest {at} waits for {} requests{size}, {}", vm.outstanding(), vmm.describe())
                })
                .collect();
            let what = format!("nothing happened for {waited} ns: {}", states.join("; "));
            world::with(|world| world.fail("stuck", what));
        }
    }

    /// Reading every disk copied nothing: what a guest reads in one plain piece comes straight from its drive. Whether it
    /// was judged.
    fn judge_copies(&mut self) -> bool {
        let (before, asked) = self.copies;
        if self.drives.is_empty() {
            return true;
        }
        if !asked {
            self.copies.1 = true;
            self.drives_operator().borrow_mut().count_copies();
            return false;
        }
        let Some(after) = self.drives_operator().borrow().copies() else { return false };
        if after != before {
            let what =
                format!("{} bytes of plain reads were copied on their way from a drive", after - before);
            world::with(|world| world.fail("zero copy", what));
        }
        self.drives_operator().borrow().judged_copies();
        true
    }

    fn phase(&mut self, now: Instant) -> bool {
        let idle = self.guests.iter().all(Guest::is_idle);
        let neighbours = self.neighbours.iter().all(|through| through.get());
        let settled = idle
            && neighbours
            && self.targets.iter().all(|target| target.restart_at.is_none())
            && self.guests.iter().all(|guest| {
                guest.plugs.is_empty() && guest.vmm.borrow().is_settled() && guest.untold_size().is_none()
            });
        match self.phase {
            Phase::Load => {
                if idle && self.owes_faults() {
                    for guest in &mut self.guests {
                        guest.extended += LOAD_STEP;
                        guest.vm.borrow_mut().device.allow(LOAD_STEP);
                        guest.vm.borrow().wake();
                    }
                } else if idle && neighbours || self.is_held_up(now) {
                    self.heal();
                }
            }
            Phase::Mend => {
                if !self.drives_operator().borrow().is_mended() || !settled {
                    return false;
                }
                let refused = world::with(|world| world.faults().count(FaultKind::NoMappings) > 0);
                let calm_ns = if refused { CALM_AFTER_REFUSALS_NS } else { CALM_NS };
                let calm_at = *self.calm_at.get_or_insert(Instant(now.0 + calm_ns));
                if now < calm_at {
                    // What is known of copies is of before.
                    self.drives_operator().borrow_mut().count_copies();
                    return false;
                }
                let copies = self.drives_operator().borrow().copies();
                if let Some(copies) = copies {
                    self.copies = (copies, false);
                    self.verify();
                }
            }
            Phase::Verify
                if settled && self.targets.iter().all(|target| target.operator.borrow().is_settled()) =>
            {
                if !self.judge_copies() {
                    return false;
                }
                for guest in &self.guests {
                    guest.vmm.borrow_mut().report_quiet();
                }
                tell(|| "the guests are quiet; the target is asked to stop".to_owned());
                for target in &self.targets {
                    world::with(|world| world.request_stop(target.life));
                }
                self.phase = Phase::Stop;
            }
            Phase::Verify => {}
            Phase::Stop => {
                if self.targets.iter().all(|target| world::with(|world| world.has_exited(target.life))) {
                    tell(|| "the target has stopped in order".to_owned());
                    world::with(|world| world.finish());
                    return true;
                }
            }
        }
        false
    }

    /// Whose drives there are: only one target has any.
    fn drives_operator(&self) -> &SharedOperator {
        &self.targets[0].operator
    }

    /// Whether faults that the scenario asks for have not struck yet, and the load may go on for them.
    fn owes_faults(&self) -> bool {
        let (kills, powers) = world::with(|world| {
            (world.faults().count(FaultKind::Kill), world.faults().count(FaultKind::PowerLoss))
        });
        let owed = kills + powers > self.deaths || kills < self.deaths_wanted || powers < self.powers_wanted;
        owed && self.guests.iter().all(|guest| guest.extended < LOAD_MAX * guest.plan.workload.requests)
    }

    /// Whether a disk hangs for so long that the faults must end: the load never ends before, and a next life, which may
    /// not have the disk of a dead one while that hangs, gives it up in the end.
    fn is_held_up(&self, now: Instant) -> bool {
        let since = world::with(|world| world.stuck_since());
        since.is_some_and(|since| now.since_ns(since) > self.plan.bound_ns)
    }

    fn heal(&mut self) {
        world::with(|world| world.faults().heal());
        for target in &mut self.targets {
            (target.power_at, target.stop_at) = (None, None);
            target.operator.borrow_mut().finish();
            // A death that was to come later does not.
            world::with(|world| world.kill_after(target.life, u64::MAX));
        }
        for (drive, _) in &self.drives {
            world::with(|world| world.plug_drive(*drive));
        }
        for guest in &mut self.guests {
            guest.resets.clear();
        }
        if self.drives.is_empty() {
            return self.verify();
        }
        tell(|| "the faults stop; the drives come back".to_owned());
        self.phase = Phase::Mend;
        self.reset_liars();
        self.drives_operator().borrow_mut().mend();
    }

    /// Where drives lied, what they say of themselves is asked for once more.
    fn reset_liars(&self) {
        if !world::with(|world| world.faults().struck().iter().any(crate::faults::Fault::betrays)) {
            return;
        }
        let owners: BTreeSet<usize> = (0..self.guests.len())
            .filter_map(|at| self.plan.namespace_of(at))
            .map(|(owner, _)| owner)
            .collect();
        for owner in owners {
            self.drives_operator().borrow_mut().ask_first(Call::ResetDrive(drive_name(owner)));
        }
    }

    fn verify(&mut self) {
        self.phase = Phase::Verify;
        let bad_for_ever = world::with(|world| world.faults().count(FaultKind::DiskBadRange) > 0);
        tell(|| "every disk is read".to_owned());
        for guest in &mut self.guests {
            guest.eye.saw(&Observation::Healed);
            let mut vm = guest.vm.borrow_mut();
            vm.device.disk_may_fail &= bad_for_ever;
            vm.device.read_all();
            vm.wake();
        }
    }
}

impl Model for Supervisor {
    fn step(&mut self) -> Step {
        let now = world::with(|world| world.now());
        self.look_after(now);
        self.plug_drives(now);
        if self.phase == Phase::Load {
            self.opportunities(now);
        }
        for guest in &mut self.guests {
            guest.step(now);
            guest.eye.look();
        }
        self.watch(now);
        if self.phase(now) {
            return Step::Done;
        }
        let look = Instant(now.0 + self.rng.between(LOOK_NS.0, LOOK_NS.1) + self.calm_ns(now));
        Step::Idle { until: self.due().into_iter().chain([look]).min() }
    }
}
