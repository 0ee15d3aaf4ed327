//! What a seed draws of a scenario before anything happens: the shape of the world, of the guests and of the faults.
//! Everything later draws from streams of its own, so that the same plan meets every list of faults. A replay file keeps
//! the plan as it was drawn, and stays the same run when scenarios, or the drawing from them, change.

use crate::faults::{Fault, FaultKind, Faults, Rate};
use crate::guest::listed::Listed;
use crate::guest::workload::{Mix, Workload};
use crate::nvme::{NamespaceProfile, Profile};
use crate::rng::{Numbers, Rng};
use crate::scenario::{AtLeast, BdevKind, FaultRate, Manners, RETRIES, Range, Scenario, Switch};
use crate::world::Temper;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use toml::Spanned;

/// Number of the stream that the plan is drawn from.
const STREAM: u64 = 40_000;
/// Number of the first of the streams that the layouts of rings are drawn from, one a guest: whether a guest's rings are
/// packed changes nothing else about it.
const STREAM_LAYOUTS: u64 = 41_000;
/// Number of the first of the streams that the first indexes of rings are drawn from, one a guest.
const STREAM_FIRST_INDEXES: u64 = 42_000;
/// Entries within which the index of a ring wraps that soon does.
const FIRST_INDEX_SOON: u64 = 300;
/// Number of the first of the streams that in-band notifications are drawn from, one a guest.
const STREAM_IN_BAND: u64 = 43_000;
/// Number of the first of the streams that images are drawn from, one a guest; the one before it is that of the targets, and
/// of what their cores say to each other.
const STREAM_IMAGES: u64 = 45_000;
/// Number of the first of the streams that drives are drawn from, one a guest.
const STREAM_DRIVES: u64 = 44_000;
/// Number of the first of the streams that the block sizes of drives are drawn from, one a guest.
const STREAM_BLOCKS: u64 = 46_000;
/// Number of the first of the streams that sizes of packed rings are drawn from, one a guest.
const STREAM_RING_SIZES: u64 = 47_000;
/// Fewest entries of a ring: a request of some pieces must fit.
const RING_SIZE_MIN: u16 = 8;
/// Largest CAP.TO of a drive, in 500 ms: what never gets ready is found out in a time that a run can spend.
const READY_TIMEOUT_MAX: u8 = 4;
/// Longest ordinary time for a drive to get ready, in nanoseconds.
const READY_NS_MAX: u64 = 2_000_000;
/// Sectors by which a disk may grow in a run at most.
const GROWTH_MAX: u64 = 65_536;
/// Steps after which a run is given up, for each request that it makes.
const STEPS_PER_REQUEST: u64 = 20_000;

/// Simulated time after which a run is given up: far beyond what any scenario needs.
const TIME_MAX_NS: u64 = 600_000_000_000;

/// A guest as drawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GuestPlan {
    /// What its bdev is.
    pub bdev: BdevKind,
    /// Sectors of it at first.
    pub sectors: u64,
    /// Sectors of it at last, at most.
    pub sectors_max: u64,
    /// Queues.
    pub queues: u16,
    /// Entries of each ring.
    pub ring_sizes: Vec<u16>,
    /// Its load.
    pub workload: Workload,
    /// Regions of memory.
    pub regions: usize,
    /// RING_PACKED is offered and accepted.
    #[serde(default, skip_serializing_if = "is_off")]
    pub packed: bool,
    /// Entries that its rings have used before: not 0 where the machine was migrated to this host.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_index: u16,
    /// Of 256 kicks and calls of its queues, how many go by messages; 0: that is not negotiated.
    #[serde(default, skip_serializing_if = "is_none")]
    pub in_band: u32,
    /// EVENT_IDX is accepted.
    pub event_idx: bool,
    /// Indirect descriptors are accepted.
    pub indirect: bool,
    /// FLUSH and CONFIG_WCE are accepted.
    pub flush: bool,
    /// Requests of a firmware before.
    pub firmware_requests: u64,
    /// Manners of the front-end.
    pub manners: Manners,
    /// The target that serves it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub target: u16,
    /// Every target of the machine has a controller on its disk.
    #[serde(default, skip_serializing_if = "is_off")]
    pub image: bool,
    /// The drive that the bdev is a namespace of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drive: Option<Profile>,
    /// Its namespace lies on the drive of the first guest for which this is on, instead of on one of its own.
    #[serde(default, skip_serializing_if = "is_off")]
    pub shares_drive: bool,
    /// The requests of its load one by one, where they are not drawn: what shrinking deletes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Vec<Listed>>,
}

/// A kind of fault as drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FaultPlan {
    /// Its rate.
    pub rate: Rate,
    /// Its parameter's range.
    pub range: Range,
    /// Of 256 lives after a death, how many die early.
    pub again: u32,
    /// Where.
    pub again_range: Range,
}

/// What is asked of the target about NVMe drives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DrivesPlan {
    /// How long an I/O command is given, in microseconds.
    pub timeout_us: u64,
    /// How long an admin command is given.
    pub admin_timeout_us: u64,
    /// A late command is aborted before the controller is reset.
    pub aborts: bool,
    /// How often a command is tried again.
    #[serde(default = "own_retries", skip_serializing_if = "are_own_retries")]
    pub retries: u64,
    /// Resets asked for beside the load.
    pub resets: u64,
    /// Attachments and detachments of the spare drive, and attempts to detach one in use.
    pub swaps: u64,
    /// A drive that no guest uses.
    pub spare: Profile,
}

/// A run as drawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// What draws other numbers than the seed's: [`Plan::seed_text`].
    #[serde(default, skip_serializing_if = "Numbers::are_plain")]
    pub numbers: Numbers,
    /// Cores of a target.
    pub cores: u16,
    /// Targets beside the first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub other_targets: u16,
    /// Each target has a machine of its own.
    #[serde(default, skip_serializing_if = "is_off")]
    pub apart: bool,
    /// Deaths, stops and lost power strike the first target only.
    #[serde(default, skip_serializing_if = "is_off")]
    pub spare_others: bool,
    /// Whether cores sleep; `None`: each draws for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<bool>,
    /// The world's temper.
    pub temper: Temper,
    /// Nanoseconds for which the target is down after a death.
    pub down_ns: Range,
    /// Changes of the configuration beside the load.
    pub changes: u64,
    /// Changes of spare controllers and bdevs, and removals of the guests' controllers, beside the load.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub churn: u64,
    /// The faults, by kind; those that are off are not there.
    pub faults: BTreeMap<FaultKind, FaultPlan>,
    /// The guests.
    pub guests: Vec<GuestPlan>,
    /// The NVMe drives, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drives: Option<DrivesPlan>,
    /// Malformed rings of a hostile guest.
    pub guest_attacks: u64,
    /// Connections of a hostile front-end.
    pub front_end_attacks: u64,
    /// The hostile neighbours' rings may be packed.
    #[serde(default, skip_serializing_if = "is_off")]
    pub hostile_packed: bool,
    /// What the bdevs of the hostile neighbours are.
    pub hostile_bdev: BdevKind,
    /// Nanoseconds in which a request must end in a healed world.
    pub bound_ns: u64,
    /// What a run with drawn faults must have had, or it proves nothing.
    pub at_least: AtLeast,
}

fn draw(range: &Spanned<Range>, rng: &mut Rng) -> u64 {
    let range = range.get_ref();
    rng.between(range.low, range.high)
}

fn toss(switch: Switch, rng: &mut Rng) -> bool {
    // Drawn whatever the switch says, so that turning one does not shift what follows.
    let drawn = rng.chance(1, 2);
    match switch {
        Switch::On => true,
        Switch::Off => false,
        Switch::Drawn => drawn,
    }
}

/// What a plan that was written before there was a choice leaves out.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
const fn is_off(switch: &bool) -> bool {
    !*switch
}

/// The same.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
const fn is_zero(number: &u16) -> bool {
    *number == 0
}

/// The same.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
const fn is_nothing(number: &u64) -> bool {
    *number == 0
}

/// Where the rings of a machine begin that may have come from another host: mostly so that their indexes soon wrap.
fn draw_first_index(migrated: Switch, rng: &mut Rng) -> u16 {
    let migrated = toss(migrated, rng);
    let soon = rng.chance(3, 4);
    let below = rng.below(if soon { FIRST_INDEX_SOON } else { 1 << 16 });
    if migrated { 0_u16.wrapping_sub(below as u16) } else { 0 }
}

/// Retries where a plan does not say them.
const fn own_retries() -> u64 {
    RETRIES
}

/// As [`is_off`].
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
const fn are_own_retries(retries: &u64) -> bool {
    *retries == RETRIES
}

/// As [`is_off`].
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
const fn is_none(count: &u32) -> bool {
    *count == 0
}

fn pick<T: Copy>(choices: &Spanned<Vec<T>>, rng: &mut Rng) -> T {
    let choices = choices.get_ref();
    choices[rng.below(choices.len() as u64) as usize]
}

impl Plan {
    /// Draws a run.
    #[must_use]
    pub fn draw(scenario: &Scenario, seed: u64) -> Self {
        let rng = &mut Rng::new(seed, STREAM);
        let world = &scenario.world;
        let cores = draw(&world.cores, rng) as u16;
        let sleep = match world.sleep {
            Switch::On => Some(true),
            Switch::Off => Some(false),
            Switch::Drawn => None,
        };
        let store_buffers = toss(world.store_buffers, rng);
        let interleave_every = draw(&world.interleave_every, rng) as u32;
        let cut_streams = draw(&world.cut_streams, rng) as u32;
        let changes = draw(&world.changes, rng);
        let mut faults: BTreeMap<FaultKind, FaultPlan> = FaultKind::ALL
            .iter()
            .filter_map(|&kind| {
                let rate = scenario.rate(kind)?;
                let plan = draw_fault(rate, rng);
                toss(rate.on, rng).then_some((kind, plan))
            })
            .collect();
        if scenario.drive.one_kind {
            let kinds: Vec<FaultKind> = FaultKind::ALL
                .iter()
                .copied()
                .filter(|kind| kind.is_of_drive() && scenario.rate(*kind).is_some())
                .collect();
            let chosen = kinds[Rng::new(seed, STREAM_DRIVES - 1).below(kinds.len() as u64) as usize];
            faults.retain(|kind, _| !kind.is_of_drive() || *kind == chosen);
        }
        let grows = faults
            .get(&FaultKind::Resize)
            .map_or(0, |plan| (plan.rate.most * plan.range.high).min(GROWTH_MAX));
        let packed = |of: u64| toss(scenario.guest.packed, &mut Rng::new(seed, STREAM_LAYOUTS + of));
        let first_index = |of: u64| {
            draw_first_index(scenario.guest.migrated, &mut Rng::new(seed, STREAM_FIRST_INDEXES + of))
        };
        let of_targets = &mut Rng::new(seed, STREAM_IMAGES - 1);
        let targets = draw(&world.targets, of_targets);
        let apart = toss(world.apart, of_targets);
        let spare_others = toss(world.spare_others, of_targets);
        let churn = draw(&world.churn, of_targets);
        let message_delay_ns = draw(&world.message_delay_us, of_targets) * 1000;
        let image = |of: u64| toss(scenario.guest.image, &mut Rng::new(seed, STREAM_IMAGES + of));
        let guests: Vec<GuestPlan> = (0..draw(&scenario.guest.count, rng))
            .map(|number| {
                let guest = draw_guest(scenario, seed, number, packed(number), grows, rng);
                GuestPlan {
                    target: (number % targets) as u16,
                    image: targets > 1 && !apart && guest.has_file() && image(number),
                    first_index: first_index(number),
                    in_band: draw_in_band(scenario, &mut Rng::new(seed, STREAM_IN_BAND + number)),
                    ..guest
                }
            })
            .enumerate()
            .map(|(number, guest)| {
                with_odd_sizes(guest, &mut Rng::new(seed, STREAM_RING_SIZES + number as u64))
            })
            .collect();
        let attacks = |range: &Option<Spanned<Range>>, rng: &mut Rng| {
            range.as_ref().map_or(0, |range| draw(range, rng))
        };
        let guest_attacks = attacks(&scenario.hostile.guest_attacks, rng);
        let front_end_attacks = attacks(&scenario.hostile.front_end_attacks, rng);
        let work = guests.iter().map(|guest| guest.workload.requests).sum::<u64>() + 1000;
        let steps_max = (work + guest_attacks * 100 + front_end_attacks * 100) * STEPS_PER_REQUEST;
        Self {
            seed,
            numbers: Numbers::default(),
            cores,
            other_targets: targets as u16 - 1,
            apart,
            spare_others,
            sleep,
            temper: Temper {
                store_buffers,
                interleave_every,
                cut_streams,
                message_delay_ns,
                steps_max,
                time_max_ns: TIME_MAX_NS,
            },
            down_ns: scaled(world.down_us.get_ref(), 1000),
            changes,
            churn,
            faults,
            hostile_packed: guest_attacks + front_end_attacks > 0 && packed(guests.len() as u64),
            drives: guests.iter().any(|guest| guest.drive.is_some()).then(|| draw_drives(scenario, seed)),
            guests,
            guest_attacks,
            front_end_attacks,
            hostile_bdev: pick(&scenario.guest.bdev, rng),
            bound_ns: draw(&scenario.bound_ms, rng) * 1_000_000,
            at_least: scenario.at_least,
        }
    }

    /// The seed as `run --seed` takes it: a number, and after a point what draws other numbers.
    #[must_use]
    pub fn seed_text(&self) -> String {
        let Self { seed, numbers, .. } = self;
        if numbers.are_plain() { seed.to_string() } else { format!("{seed}.{numbers}") }
    }

    /// Draws the run of a seed that is written so.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn draw_text(scenario: &Scenario, text: &str) -> Result<Self, String> {
        let (seed, numbers) = text.split_once('.').unwrap_or((text, ""));
        let seed = seed.parse().map_err(|_| {
            format!("`{text}` is no seed; allowed: a number, or one with neighbours' numbers (7.schedule3.faults9)")
        })?;
        let numbers = Numbers::try_from(numbers.to_owned())?;
        Ok(Self { numbers, ..Self::draw(scenario, seed) })
    }

    /// Whether a plan that was read from a file can be run: what the drawing of one holds by itself.
    ///
    /// # Errors
    /// Which field is impossible, and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        within("cores", self.cores, 1, 16)?;
        within("temper.interleave-every", self.temper.interleave_every, 0, 1_000_000)?;
        within("temper.cut-streams", self.temper.cut_streams, 0, 256)?;
        within("guests", self.guests.len() as u64, 0, 8)?;
        within("other-targets", self.other_targets, 0, 3)?;
        for (at, guest) in self.guests.iter().enumerate() {
            guest.check().map_err(|what| format!("guests[{at}].{what}"))?;
            within(&format!("guests[{at}].target"), guest.target, 0, self.other_targets.into())?;
            if guest.image && (self.apart || !guest.has_file()) {
                let what = "is on; allowed: for files, on a machine of several targets";
                return Err(format!("guests[{at}].image {what}"));
            }
        }
        Ok(())
    }

    /// The machine of a target, of those that the run has.
    #[must_use]
    pub fn machine_of(&self, target: u16) -> u32 {
        if self.apart { target.into() } else { 0 }
    }

    /// The guest whose drive the namespace of guest `number` lies on, and which namespace that is; `None`: on no drive.
    #[must_use]
    pub fn namespace_of(&self, number: usize) -> Option<(usize, u32)> {
        let guest = &self.guests[number];
        guest.drive.as_ref()?;
        let shares = |(at, guest): (usize, &GuestPlan)| guest.shares_drive.then_some(at);
        let sharers: Vec<usize> = self.guests.iter().enumerate().filter_map(shares).collect();
        match sharers.iter().position(|at| *at == number) {
            Some(rank) => Some((sharers[0], 1 + rank as u32)),
            None => Some((number, 1)),
        }
    }

    /// The drive of guest `number`, with the namespaces of all guests that share it; `None`: it has none, or another's.
    #[must_use]
    pub fn drive_of(&self, number: usize) -> Option<Profile> {
        let (_, own) = self.namespace_of(number).filter(|(owner, _)| *owner == number)?;
        let mut drive = self.guests[number].drive.clone()?;
        let on_it = |at: usize| self.namespace_of(at).is_some_and(|(owner, _)| owner == number);
        let others = (0..self.guests.len()).filter(|at| *at != number && on_it(*at));
        let atomic = drive.atomic;
        let namespaces: Vec<NamespaceProfile> = others
            .filter_map(|at| self.guests[at].drive.as_ref()?.namespaces.first().copied())
            // No boundary is nearer to the next than this controller's atomic unit is long (NVM 4.1.5.1).
            .map(|namespace| match namespace.atomic_boundary < atomic {
                true => NamespaceProfile { atomic_boundary: 0, atomic_offset: 0, ..namespace },
                false => namespace,
            })
            .collect();
        // Each guest has a queue: no more than that, where there are fewer, so that one that goes makes room for the next.
        drive.queues = drive.queues.max(1 + namespaces.len() as u16);
        drive.namespaces.splice(own as usize..own as usize, namespaces);
        Some(drive)
    }

    /// Whether nothing that may strike reaches a guest: it is of a target that is spared, which nobody else's death may slow
    /// down. With a `script`: what it names may strike too.
    #[must_use]
    pub fn is_undisturbed(&self, script: Option<&[Fault]>, guest: &GuestPlan) -> bool {
        let spared = self.spare_others && guest.target > 0 && !guest.image;
        let reaches_others = |kind: FaultKind| match kind {
            FaultKind::Kill | FaultKind::Stop | FaultKind::LateWrite | FaultKind::GuestReset => false,
            FaultKind::PowerLoss => !self.apart,
            _ => true,
        };
        spared && !FaultKind::ALL.iter().any(|&kind| reaches_others(kind) && self.may_strike(script, kind))
    }

    /// The plan of a kind, if it is on.
    #[must_use]
    pub fn fault(&self, kind: FaultKind) -> Option<&FaultPlan> {
        self.faults.get(&kind)
    }

    /// Whether a kind of fault may strike: it is on, or in the `script`.
    #[must_use]
    pub fn may_strike(&self, script: Option<&[Fault]>, kind: FaultKind) -> bool {
        self.fault(kind).is_some()
            || script.is_some_and(|script| script.iter().any(|fault| fault.kind == kind))
    }

    /// The faults of the run: drawn at the plan's rates, or the `script`.
    #[must_use]
    pub fn faults(&self, script: Option<&[Fault]>) -> Faults {
        match script {
            Some(script) => Faults::replayed(self.seed, script.to_vec()),
            None => {
                Faults::drawn(self.seed, |kind| self.fault(kind).map_or(Rate::default(), |plan| plan.rate))
            }
        }
    }
}

impl GuestPlan {
    /// Whether its disk is one that a process locks.
    pub(crate) fn has_file(&self) -> bool {
        matches!(self.bdev, BdevKind::Uring | BdevKind::Aio)
    }

    /// Sectors of a block of its disk.
    #[must_use]
    pub fn block_sectors(&self) -> u32 {
        let namespace = self.drive.as_ref().and_then(|drive| drive.namespaces.first());
        namespace.map_or(1, |namespace| namespace.block_size / 512)
    }

    fn check(&self) -> Result<(), String> {
        if self.bdev == BdevKind::Nvme && self.drive.is_none() {
            return Err("drive is missing: a guest on an NVMe bdev has one".into());
        }
        let load = &self.workload;
        within("sectors", self.sectors, 16, 65_536)?;
        within("sectors-max", self.sectors_max, self.sectors, self.sectors + GROWTH_MAX)?;
        within("queues", self.queues, 1, 64)?;
        within(
            "ring-sizes, their count",
            self.ring_sizes.len() as u64,
            self.queues.into(),
            self.queues.into(),
        )?;
        for &size in &self.ring_sizes {
            within("ring-sizes", size, RING_SIZE_MIN.into(), 1024)?;
            if !self.packed && !size.is_power_of_two() {
                return Err(format!("ring-sizes is {size}; allowed: powers of two, but for packed rings"));
            }
        }
        within("regions", self.regions as u64, 1, 8)?;
        within("in-band", self.in_band, 0, 256)?;
        within("firmware-requests", self.firmware_requests, 0, 1000)?;
        within("workload.depth", load.depth, 1, 256)?;
        within("workload.sectors-max", load.sectors_max, 1, 16)?;
        for listed in self.requests.iter().flatten() {
            let named = |field| format!("requests, `{listed}`: its {field}");
            within(&named("queue"), listed.queue, 0, u64::from(self.queues) - 1)?;
            within(&named("sectors"), listed.sectors, 0, load.sectors_max.into())?;
            within(&named("first sector"), listed.sector, 0, self.sectors_max - u64::from(listed.sectors))?;
        }
        Ok(())
    }
}

fn within(field: &str, value: impl Into<u64>, low: u64, high: u64) -> Result<(), String> {
    let value = value.into();
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(format!("{field} is {value}; allowed: {low} to {high}"))
}

fn scaled(range: &Range, by: u64) -> Range {
    Range { low: range.low * by, high: range.high * by }
}

fn draw_fault(fault: &FaultRate, rng: &mut Rng) -> FaultPlan {
    let one_in = draw(&fault.one_in, rng);
    let nothing = Range { low: 0, high: 0 };
    FaultPlan {
        rate: Rate { of_65536: (65_536 / one_in) as u32, most: draw(&fault.most, rng) },
        range: fault.range.as_ref().map_or(nothing, |range| *range.get_ref()),
        again: draw(&fault.again, rng) as u32,
        again_range: fault.again_range.as_ref().map_or(nothing, |range| *range.get_ref()),
    }
}

/// How many kicks and calls of a guest go by messages, where some do: all of them in a quarter of the seeds.
fn draw_in_band(scenario: &Scenario, rng: &mut Rng) -> u32 {
    let of_256 = rng.between(64, 340).min(256) as u32;
    if toss(scenario.guest.in_band, rng) { of_256 } else { 0 }
}

/// Half of the guests with packed rings have some that are no power of two long (virtio 1.3, section 2.8.10.1): not those
/// with a firmware, which drives a split ring of the same size.
fn with_odd_sizes(mut guest: GuestPlan, rng: &mut Rng) -> GuestPlan {
    if guest.packed && guest.firmware_requests == 0 && rng.chance(1, 2) {
        for size in &mut guest.ring_sizes {
            *size = RING_SIZE_MIN.max(rng.between(u64::from(*size / 2 + 1), u64::from(*size)) as u16);
        }
    }
    guest
}

/// Draws a drive with a namespace of so many sectors, in blocks of `block_sectors`, and perhaps another.
fn draw_drive(scenario: &Scenario, sectors: u64, block_sectors: u64, rng: &mut Rng) -> Profile {
    let mut namespaces = vec![NamespaceProfile::plain(sectors / block_sectors, 512 * block_sectors as u32)];
    if rng.chance(1, 3) {
        namespaces.push(NamespaceProfile::plain(rng.between(8, 64), 4096));
    }
    let profile = Profile::draw(namespaces, rng);
    let style = crate::nvme::ShadowStyle::draw(rng);
    let shadow = toss(scenario.drive.shadow_doorbells, rng).then(|| profile.shadow.unwrap_or(style));
    let (first_ns, last_ns) = profile.ready_ns;
    Profile {
        shadow,
        queue_entries_max: 1 << draw(&scenario.drive.queue_entries_log2, rng),
        timeout: profile.timeout.min(READY_TIMEOUT_MAX),
        ready_ns: (first_ns, last_ns.min(READY_NS_MAX)),
        ..profile
    }
}

fn draw_drives(scenario: &Scenario, seed: u64) -> DrivesPlan {
    let rng = &mut Rng::new(seed, STREAM_DRIVES - 2);
    let drive = &scenario.drive;
    DrivesPlan {
        timeout_us: draw(&drive.timeout_ms, rng) * 1000,
        admin_timeout_us: draw(&drive.admin_timeout_ms, rng) * 1000,
        aborts: toss(drive.aborts, rng),
        resets: draw(&drive.resets, rng),
        swaps: draw(&drive.swaps, rng),
        spare: draw_drive(scenario, 64, 1, rng),
        // Last: it shifts nothing.
        retries: draw(&drive.retries, rng),
    }
}

fn draw_guest(
    scenario: &Scenario,
    seed: u64,
    number: u64,
    packed: bool,
    grows: u64,
    rng: &mut Rng,
) -> GuestPlan {
    let guest = &scenario.guest;
    let bdev = pick(&guest.bdev, rng);
    let queues = draw(&guest.queues, rng) as u16;
    let ring_size = 1_u16 << draw(&guest.ring_size_log2, rng);
    // Queues of one device usually have one size, which a driver may lower for each.
    let ring_sizes = (0..queues)
        .map(|_| if rng.chance(1, 4) { (ring_size / 2).max(RING_SIZE_MIN) } else { ring_size })
        .collect();
    // A third of the drives have blocks of 4096 bytes.
    let large = bdev == BdevKind::Nvme && Rng::new(seed, STREAM_BLOCKS + number).chance(1, 3);
    let block_sectors = if large { 8 } else { 1 };
    let sectors = draw(&guest.sectors, rng).next_multiple_of(block_sectors);
    let mix = guest.mix;
    let workload = Workload {
        requests: draw(&guest.requests, rng),
        depth: draw(&guest.depth, rng) as u16,
        sectors_max: draw(&guest.request_sectors, rng).next_multiple_of(block_sectors) as u32,
        mix: Mix {
            read: mix.read,
            write: mix.write,
            flush: mix.flush,
            get_id: mix.get_id,
            discard: mix.discard,
            write_zeroes: mix.write_zeroes,
        },
        think_ns_max: draw(&guest.pause_us, rng) * 1000,
        think: draw(&guest.pauses, rng) as u32,
        odd_layout: rng.below(128) as u32,
        indirect: rng.below(257) as u32,
    };
    let event_idx = toss(guest.event_idx, rng);
    let indirect = toss(guest.indirect, rng);
    let firmware_requests = rng.between(4, 24);
    let firmware_requests = if toss(guest.firmware, rng) { firmware_requests } else { 0 };
    GuestPlan {
        bdev,
        sectors,
        sectors_max: (sectors + grows).next_multiple_of(block_sectors),
        queues,
        ring_sizes,
        workload,
        regions: draw(&guest.regions, rng) as usize,
        packed,
        first_index: 0,
        in_band: 0,
        target: 0,
        image: false,
        event_idx,
        indirect,
        flush: !rng.chance(1, 8),
        firmware_requests,
        manners: pick(&guest.front_end, rng),
        drive: (bdev == BdevKind::Nvme).then(|| {
            draw_drive(scenario, sectors, block_sectors, &mut Rng::new(seed, STREAM_DRIVES + number))
        }),
        shares_drive: bdev == BdevKind::Nvme
            && toss(scenario.drive.shared, &mut Rng::new(seed, STREAM_DRIVES - 3)),
        requests: None,
    }
}
