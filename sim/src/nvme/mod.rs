//! The fake NVMe controller: one, for every scenario and test; what it is comes from a [`Profile`], what goes wrong with it
//! from the list of faults. It shares with the driver the structures of the wire and nothing else.
//!
//! Fault model. Commands take drawn times, so that they overtake each other within and across queues; a read's data comes
//! in pieces, at any time between submission and completion. A command may be slow, be held until it is aborted, fail for
//! good or for now (with or without DNR, with or without a retry delay), or leave a part of its blocks written. A queue
//! may get stuck, the controller fatal; it may be slow to get ready or to stop, or never do it. An abort may come too
//! late. Interrupts are lost or come too often; entries are written in two halves; a completion may be wrong, double, or
//! never come. Any field that it says of itself may be wrong. It reports events of its own. It may be pulled out, and
//! plugged in again with its media as they were. Of a dead process it goes on with what it took, media included, until it
//! is reset. What is not durable is lost with the power, kept, or torn: writes within AWUPF whole, others block by block.
//!
//! Never: a completion before its command's data were read or written (but by a fault, and with an error), a phase tag
//! before the rest of its entry, an entry in a full queue, an interrupt before its entry, memory or media touched by what
//! was taken before a reset once the reset is seen to be over, a durable block lost.

mod admin;
mod events;
mod identify;
mod io;
mod lies;
mod profile;
mod queues;
mod registers;
mod shadow;
mod transfer;

pub use profile::{NamespaceProfile, Profile, ShadowStyle};

use crate::disk::Disk;
use crate::faults::FaultKind;
use crate::pci::{Device, Shape};
use crate::rng::Rng;
use crate::scheduler::Event;
use crate::world::{Step, World};
use events::Events;
use io::Flight;
use queues::{CompletionQueue, SubmissionQueue};
use registers::{Life, RegisterFile};
use runtime::{Instant, PciAddress};
use shadow::Shadow;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Shortest and longest time of small things: an admin command, an interrupt on its way.
const DELAY_NS: (u64, u64) = (200, 20_000);
/// Longest time until a controller that was pulled out is plugged in again.
const PLUG_NS_MAX: u64 = 2_000_000_000;
/// Class code: mass storage, non-volatile memory, NVM Express with I/O (PCIe 3.1.1).
const CLASS: u32 = 0x01_08_02;

/// What a controller has done and met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Commands fetched.
    pub commands: u64,
    /// I/O commands that ended before one of the same queue that was fetched earlier.
    pub overtaken: u64,
    /// Writes to doorbell registers.
    pub doorbells: u64,
    /// Values taken from shadow doorbells.
    pub shadow_moves: u64,
    /// Times that EventIdx was written.
    pub armed: u64,
    /// Of these, how often the shadow had moved when it was looked at once more.
    pub races: u64,
    /// Times that a completion queue became full.
    pub full_queues: u64,
    /// Interrupts sent.
    pub interrupts: u64,
    /// Commands that were aborted.
    pub aborted: u64,
    /// Resets of the controller: by CC.EN, of the function.
    pub resets: (u64, u64),
    /// Times that it was pulled out.
    pub removals: u64,
    /// Transfers that lay across a boundary which the driver was told of.
    pub crossed: u64,
    /// Writes that took effect after the process that had sent them was dead.
    pub late_writes: u64,
}

/// A namespace of a drive.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// What it is, at its present size.
    pub profile: NamespaceProfile,
    /// The disk that keeps it ([`World::disk_content`]).
    pub disk: u32,
    /// It is attached.
    pub attached: bool,
}

/// What stays of a controller when it is pulled out: its namespaces.
pub struct Drive {
    machine: u32,
    address: PciAddress,
    profile: Rc<Profile>,
    /// By identifier less one.
    pub namespaces: Vec<Namespace>,
    /// Namespaces that changed and that the controller was not told of yet.
    changed: BTreeSet<u32>,
    /// The function that it is at present.
    pub function: u32,
    /// What it has done so far.
    pub counts: Counts,
}

impl World {
    /// Plugs an NVMe drive in, its namespaces zeroed; its number.
    pub fn plug_nvme(&mut self, machine: u32, address: PciAddress, profile: Profile) -> u32 {
        let number = self.drives.len() as u32;
        let controller_unit = profile.atomic_power_fail;
        assert!(controller_unit <= profile.atomic, "AWUPF is at most AWUN");
        let namespaces = profile
            .namespaces
            .iter()
            .map(|&profile| {
                let unit = profile.atomic_power_fail.unwrap_or(controller_unit);
                let block = profile.block_size;
                let len = profile.blocks * u64::from(block);
                let disk = self.add_disk(Disk::new(len, block, u32::from(unit) * block));
                Namespace { profile, disk, attached: true }
            })
            .collect();
        self.drives.push(Drive {
            machine,
            address,
            profile: Rc::new(profile),
            namespaces,
            changed: BTreeSet::new(),
            function: u32::MAX,
            counts: Counts::default(),
        });
        self.plug_drive(number);
        number
    }

    /// Plugs a drive in that is not.
    pub fn plug_drive(&mut self, drive: u32) {
        let Drive { machine, address, ref profile, function, .. } = self.drives[drive as usize];
        if function != u32::MAX && self.is_plugged(function) {
            return;
        }
        let profile = Rc::clone(profile);
        let shape = Shape {
            ids: (identify::VENDOR, identify::DEVICE),
            class: CLASS,
            registers_len: profile.registers_len(),
            vectors: profile.vectors,
            wide: profile.wide,
        };
        let controller = |me| Box::new(Controller::new(me, drive, profile)) as Box<dyn Device>;
        self.drives[drive as usize].function = self.plug(machine, address, shape, controller);
    }

    /// A drive.
    #[must_use]
    pub fn nvme(&self, drive: u32) -> &Drive {
        &self.drives[drive as usize]
    }

    /// A namespace gets another size (new blocks are zero), or is attached or detached; the controller reports it.
    pub fn change_namespace(&mut self, drive: u32, nsid: u32, blocks: u64, attached: bool) {
        let Drive { namespaces, changed, function, .. } = &mut self.drives[drive as usize];
        let namespace = &mut namespaces[nsid as usize - 1];
        namespace.attached = attached;
        namespace.profile.blocks = blocks;
        changed.insert(nsid);
        let (disk, len, function) =
            (namespace.disk, blocks * u64::from(namespace.profile.block_size), *function);
        self.resize_disk(disk, len);
        self.wake_function(function);
    }

    /// One of the counts, of all drives together.
    pub(crate) fn nvme_total(&self, of: impl Fn(&Counts) -> u64) -> u64 {
        self.drives.iter().map(|drive| of(&drive.counts)).sum()
    }

    pub(crate) fn nvme_counts(&mut self, drive: u32) -> &mut Counts {
        &mut self.drives[drive as usize].counts
    }
}

/// A controller, plugged in.
pub(crate) struct Controller {
    /// Its function.
    me: u32,
    drive: u32,
    profile: Rc<Profile>,
    registers: RegisterFile,
    submissions: BTreeMap<u16, SubmissionQueue>,
    completions: BTreeMap<u16, CompletionQueue>,
    /// I/O queues that were granted, if it was asked for some.
    granted: Option<u16>,
    shadow: Option<Shadow>,
    /// Interrupts of I/O queues wait for more than so many entries, or so many nanoseconds.
    coalescing: (u32, u64),
    /// The write cache is on.
    cache: bool,
    /// Commands that were fetched and have not ended, in the order in which they were fetched.
    flights: BTreeMap<u64, Flight>,
    fetched: u64,
    events: Events,
}

/// What can be done in a step.
#[derive(Clone, Copy)]
enum Deed {
    Fetch(u16),
    Look(u16, bool),
    Advance(u64),
    Post(u16),
    Tell(u16),
    Report,
}

impl Controller {
    fn new(me: u32, drive: u32, profile: Rc<Profile>) -> Self {
        let cache = profile.write_cache;
        Self {
            me,
            drive,
            profile,
            registers: RegisterFile::new(),
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
            granted: None,
            shadow: None,
            coalescing: (0, 0),
            cache,
            flights: BTreeMap::new(),
            fetched: 0,
            events: Events::default(),
        }
    }

    /// It gets ready: the admin queues are there.
    fn begin(&mut self) {
        let RegisterFile { admin, submissions, completions, .. } = self.registers;
        let bell = queues::Doorbell { value: 0, watch: queues::Watch::Register };
        let (asqs, acqs) = (admin.asqs() + 1, admin.acqs() + 1);
        self.submissions.insert(0, SubmissionQueue::new(submissions, asqs, 0, bell));
        self.completions.insert(0, CompletionQueue::new(completions, acqs, Some(0), bell));
    }

    /// It forgets everything that it was told; of writes under way a part may have happened.
    fn forget(&mut self, world: &mut World) {
        world.nvme_counts(self.drive).resets.0 += 1;
        self.drop_flights(world);
        let registers = self.registers;
        *self = Self {
            registers,
            fetched: self.fetched,
            ..Self::new(self.me, self.drive, Rc::clone(&self.profile))
        };
    }

    /// Everything that could be done now, and the earliest moment at which there is more.
    fn deeds(&self, world: &World, deeds: &mut Vec<Deed>) -> Option<Instant> {
        let (now, mut next) = (world.now, None::<Instant>);
        let mut due = |at: Option<Instant>, deed: Deed| match at {
            Some(at) if at <= now => deeds.push(deed),
            Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
            None => {}
        };
        for (number, flight) in &self.flights {
            due(Some(flight.due(world)), Deed::Advance(*number));
        }
        // What was taken goes on while the controller stops, and when it reaches no memory; nothing else does.
        if !self.runs() || world.mastered_for(self.me).is_none() {
            return next;
        }
        for queue in self.submissions.keys() {
            due(self.can_fetch(world, *queue).then_some(Instant(0)), Deed::Fetch(*queue));
            due(self.look_due(*queue, false), Deed::Look(*queue, false));
        }
        for (queue, slot) in &self.completions {
            due(slot.post_due(), Deed::Post(*queue));
            due(slot.tell_due(), Deed::Tell(*queue));
            due(self.look_due(*queue, true), Deed::Look(*queue, true));
        }
        due(self.events.can_report().then_some(Instant(0)), Deed::Report);
        if self.is_stuck() && !world.faults.is_healed() {
            let look = Instant(now.0 + queues::LOOK_HEALED_NS);
            next = Some(next.map_or(look, |next| next.min(look)));
        }
        next
    }
}

impl Device for Controller {
    fn load(&mut self, world: &mut World, offset: u64, len: u8) -> u64 {
        self.load_register(world, offset, len)
    }

    fn store(&mut self, world: &mut World, offset: u64, len: u8, value: u64) {
        self.store_register(world, offset, len, value);
    }

    fn step(&mut self, world: &mut World) -> Step {
        if self.live(world) {
            return Step::Worked;
        }
        let life = self.life_due();
        let (runs, stops) = (self.runs(), matches!(self.registers.life, Life::Disabling(_)));
        if !runs && !stops {
            return Step::Idle { until: life };
        }
        if runs {
            self.notice_changes(world);
        }
        let mut deeds = Vec::new();
        let next = self.deeds(world, &mut deeds);
        if deeds.is_empty() {
            return Step::Idle { until: [life, next].into_iter().flatten().min() };
        }
        match deeds[world.streams.device.below(deeds.len() as u64) as usize] {
            Deed::Fetch(queue) => {
                if self.breaks(world) {
                    return Step::Worked;
                }
                self.fetch(world, queue);
            }
            Deed::Look(queue, completion) => self.look(world, queue, completion),
            Deed::Advance(number) => self.advance(world, number),
            Deed::Post(queue) => self.post(world, queue),
            Deed::Tell(queue) => self.tell(world, queue),
            Deed::Report => self.report(world),
        }
        Step::Worked
    }

    fn memory_to_come(&self) -> Vec<(u64, u64)> {
        Self::memory_to_come(self)
    }

    fn reset(&mut self, world: &mut World) {
        world.nvme_counts(self.drive).resets.1 += 1;
        self.forget(world);
        self.registers = RegisterFile::new();
    }

    fn power_loss(&mut self, world: &mut World) {
        self.reset(world);
        let disks: Vec<u32> =
            world.drives[self.drive as usize].namespaces.iter().map(|namespace| namespace.disk).collect();
        for disk in disks {
            world.disk_power_loss(disk);
        }
    }
}

impl Controller {
    /// Before a command is fetched: whether the controller breaks, or is pulled out.
    fn breaks(&mut self, world: &mut World) -> bool {
        if world.faults.strike(FaultKind::NvmeFatal, |_| 0).is_some() {
            self.fatal(world);
            return true;
        }
        // Of four that are pulled out one stays away.
        let time = |rng: &mut Rng| rng.below(4).min(1) * rng.between(1, PLUG_NS_MAX);
        if let Some(time) = world.faults.strike(FaultKind::NvmeRemoval, time) {
            world.nvme_counts(self.drive).removals += 1;
            self.power_loss(world);
            world.unplug(self.me);
            if time > 0 {
                let at = Instant(world.now.0 + time);
                world.schedule(at, Event::Plug(self.drive));
            }
            return true;
        }
        if let Some(what) = world.faults.strike(FaultKind::NvmeEvent, Rng::word) {
            self.happen(what);
        }
        false
    }
}
