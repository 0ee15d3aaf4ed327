//! Scenario files: what surrounds the target, in ranges, and which faults may be drawn. A seed draws inside them.
//!
//! A wrong file is refused with its name, the line, the field and what is allowed; nothing is guessed at.

use crate::faults::FaultKind;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range as Bytes;
use toml::Spanned;

/// A number, or a range of which a seed draws one, both ends included. Written as `[low, high]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "[u64; 2]")]
pub struct Range {
    /// The lowest.
    pub low: u64,
    /// The highest.
    pub high: u64,
}

impl Range {
    const fn new(low: u64, high: u64) -> Self {
        Self { low, high }
    }
}

impl From<Range> for [u64; 2] {
    fn from(range: Range) -> Self {
        [range.low, range.high]
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl<'de> Visitor<'de> for Numbers {
            type Value = Range;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a range [lowest, highest]")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Range, E> {
                let value = u64::try_from(value).map_err(|_| E::custom("allowed: numbers from 0"))?;
                Ok(Range::new(value, value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Range, E> {
                Ok(Range::new(value, value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Range, A::Error> {
                let low = sequence.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let high = sequence.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                if sequence.next_element::<u64>()?.is_some() {
                    return Err(de::Error::invalid_length(3, &self));
                }
                if low > high {
                    return Err(de::Error::custom("allowed: a range whose lowest is not above its highest"));
                }
                Ok(Range::new(low, high))
            }
        }
        deserializer.deserialize_any(Numbers)
    }
}

/// Something that is on, off, or drawn by the seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// In every run.
    On,
    /// In none.
    Off,
    /// As the seed has it.
    #[default]
    Drawn,
}

/// What a device stores to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BdevKind {
    /// Memory of the machine.
    Malloc,
    /// A disk through io_uring.
    Uring,
    /// A disk through kernel AIO.
    Aio,
    /// A namespace of an NVMe drive.
    Nvme,
}

/// Whose manners a front-end has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manners {
    /// QEMU 7.2's.
    Qemu7,
    /// QEMU 11.1's.
    Qemu11,
    /// cloud-hypervisor's.
    CloudHypervisor,
    /// Any order that the specification allows.
    Any,
}

/// The target's processes and the machine's temper.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct World {
    /// Cores of the target.
    pub cores: Spanned<Range>,
    /// Whether cores sleep when idle (drawn: each core by itself).
    pub sleep: Switch,
    /// Whether stores wait in store buffers.
    pub store_buffers: Switch,
    /// Accesses of the target between which another actor may take a step, on average; 0: never.
    pub interleave_every: Spanned<Range>,
    /// Of 256 sends and receives on a stream, how many are cut short.
    pub cut_streams: Spanned<Range>,
    /// Microseconds for which the target is down after a death.
    pub down_us: Spanned<Range>,
    /// Configuration changes that the operator makes beside the load.
    pub changes: Spanned<Range>,
    /// Changes of spare controllers and bdevs, and removals of the guests' own controllers, which come back at once.
    pub churn: Spanned<Range>,
    /// Longest time for which a message between cores is under way, in microseconds.
    pub message_delay_us: Spanned<Range>,
    /// Targets, each with its own processes, state directory and operator; the guests are theirs in turn.
    pub targets: Spanned<Range>,
    /// Whether each target and its guests have a machine of their own; otherwise they share one, and its disks.
    pub apart: Switch,
    /// Whether deaths, stops and lost power strike only the first target (and what is on its machine).
    pub spare_others: Switch,
}

impl Default for World {
    fn default() -> Self {
        Self {
            cores: spanned(1, 3),
            sleep: Switch::Drawn,
            store_buffers: Switch::On,
            interleave_every: spanned(8, 64),
            cut_streams: spanned(0, 64),
            down_us: spanned(1, 500),
            changes: spanned(0, 0),
            churn: spanned(0, 0),
            message_delay_us: spanned(0, 20),
            targets: spanned(1, 1),
            apart: Switch::Off,
            spare_others: Switch::Off,
        }
    }
}

/// A well-behaved guest, its front-end, and its disk.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Guest {
    /// Guests like this, each with a controller and a bdev of its own.
    pub count: Spanned<Range>,
    /// What their bdevs are; a seed draws one.
    pub bdev: Spanned<Vec<BdevKind>>,
    /// Sectors of 512 bytes of a bdev.
    pub sectors: Spanned<Range>,
    /// Queues.
    pub queues: Spanned<Range>,
    /// Entries of a ring, as a power of two.
    pub ring_size_log2: Spanned<Range>,
    /// Requests out at once on a queue.
    pub depth: Spanned<Range>,
    /// Requests in all, over all queues.
    pub requests: Spanned<Range>,
    /// Sectors of a request.
    pub request_sectors: Spanned<Range>,
    /// Regions of memory.
    pub regions: Spanned<Range>,
    /// VIRTIO_F_RING_PACKED.
    pub packed: Switch,
    /// The machine came from another host, with rings that are not at their beginning.
    pub migrated: Switch,
    /// Kicks and calls of queues may go by messages.
    pub in_band: Switch,
    /// Every target of the machine has a controller on the guest's disk, if that is a file: the one that holds the lock serves, and the next
    /// one takes over when it dies.
    pub image: Switch,
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: Switch,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: Switch,
    /// Whether a firmware drives queue 0 first.
    pub firmware: Switch,
    /// Of 256 requests, how many are followed by a pause.
    pub pauses: Spanned<Range>,
    /// Longest pause, in microseconds.
    pub pause_us: Spanned<Range>,
    /// Manners of the front-end; a seed draws one.
    pub front_end: Spanned<Vec<Manners>>,
    /// How often which request is made, in parts of their sum.
    pub mix: Mix,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            count: spanned(1, 1),
            bdev: Spanned::new(0..0, vec![BdevKind::Malloc, BdevKind::Uring, BdevKind::Aio]),
            sectors: spanned(64, 1024),
            queues: spanned(1, 4),
            ring_size_log2: spanned(4, 7),
            depth: spanned(2, 24),
            requests: spanned(500, 800),
            request_sectors: spanned(1, 8),
            regions: spanned(1, 3),
            packed: Switch::Drawn,
            migrated: Switch::Drawn,
            in_band: Switch::Off,
            image: Switch::Off,
            event_idx: Switch::Drawn,
            indirect: Switch::Drawn,
            firmware: Switch::Drawn,
            pauses: spanned(0, 16),
            pause_us: spanned(1, 50),
            front_end: Spanned::new(
                0..0,
                vec![Manners::Qemu7, Manners::Qemu11, Manners::CloudHypervisor, Manners::Any],
            ),
            mix: Mix::default(),
        }
    }
}

/// How often which request is made, in parts of their sum.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Mix {
    /// Reads.
    pub read: u32,
    /// Writes.
    pub write: u32,
    /// Flushes.
    pub flush: u32,
    /// Identity.
    pub get_id: u32,
    /// Discards.
    pub discard: u32,
    /// Zeroes.
    pub write_zeroes: u32,
}

impl Default for Mix {
    fn default() -> Self {
        Self { read: 44, write: 44, flush: 4, get_id: 1, discard: 3, write_zeroes: 4 }
    }
}

/// A fault that may be drawn.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FaultRate {
    /// Every so many opportunities one is taken, on average (see `FaultKind` for what an opportunity is).
    #[serde(default = "every_one")]
    pub one_in: Spanned<Range>,
    /// At most so many in a run.
    pub most: Spanned<Range>,
    /// The parameter, where the kind has one to be drawn here.
    #[serde(default)]
    pub range: Option<Spanned<Range>>,
    /// Of 256 lives that follow a death, how many die in the crash points of `again-range` (kind `kill`).
    #[serde(default = "never")]
    pub again: Spanned<Range>,
    /// Crash points from the start of such a life.
    #[serde(default)]
    pub again_range: Option<Spanned<Range>>,
    /// Whether the kind is on at all; drawn: in half of the seeds.
    #[serde(default = "always")]
    pub on: Switch,
}

fn every_one() -> Spanned<Range> {
    spanned(1, 1)
}

fn never() -> Spanned<Range> {
    spanned(0, 0)
}

fn always() -> Switch {
    Switch::On
}

fn spanned(low: u64, high: u64) -> Spanned<Range> {
    Spanned::new(0..0, Range::new(low, high))
}

/// The NVMe drives: one for each guest whose bdev is a namespace, each drawn by itself, or one for all of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Drives {
    /// Whether they have shadow doorbells.
    pub shadow_doorbells: Switch,
    /// Most entries of an I/O queue, as a power of two.
    pub queue_entries_log2: Spanned<Range>,
    /// How long the target gives an I/O command, in milliseconds.
    pub timeout_ms: Spanned<Range>,
    /// How long it gives an admin command.
    pub admin_timeout_ms: Spanned<Range>,
    /// Whether it aborts a late command before it resets the controller.
    pub aborts: Switch,
    /// How often it tries a command again that the controller failed, or that a reset interrupted.
    pub retries: Spanned<Range>,
    /// Whether all guests have namespaces of one drive.
    pub shared: Switch,
    /// Resets that the operator asks for beside the load.
    pub resets: Spanned<Range>,
    /// How often the operator attaches or detaches a drive that no guest uses, and asks to detach one that is in use.
    pub swaps: Spanned<Range>,
    /// Of the kinds of fault of a drive that may be on, each seed has one.
    pub one_kind: bool,
}

/// The target's own choice of retries: what a drive that is well does not use up.
pub(crate) const RETRIES: u64 = 4;

impl Default for Drives {
    fn default() -> Self {
        Self {
            shadow_doorbells: Switch::Drawn,
            queue_entries_log2: spanned(1, 10),
            timeout_ms: spanned(20, 60),
            admin_timeout_ms: spanned(20, 200),
            aborts: Switch::On,
            retries: spanned(RETRIES, RETRIES),
            shared: Switch::Off,
            resets: spanned(0, 0),
            swaps: spanned(0, 0),
            one_kind: false,
        }
    }
}

/// What a run must have had, or it proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AtLeast {
    /// Requests completed.
    pub ios: u64,
    /// Deaths of the target.
    pub kills: u64,
    /// Requests replayed.
    pub replayed: u64,
}

/// A hostile neighbour of the guests: it must be harmless to them and to the target.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Hostile {
    /// Malformed rings that a hostile guest builds.
    pub guest_attacks: Option<Spanned<Range>>,
    /// Connections that a hostile front-end makes.
    pub front_end_attacks: Option<Spanned<Range>>,
}

/// A scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// What it is, in a line.
    pub title: String,
    /// What it breaks, and what must hold.
    pub about: String,
    /// The world.
    #[serde(default)]
    pub world: World,
    /// The guests.
    #[serde(default)]
    pub guest: Guest,
    /// The NVMe drives.
    #[serde(default)]
    pub drive: Drives,
    /// Hostile neighbours.
    #[serde(default)]
    pub hostile: Hostile,
    /// Faults by kind.
    #[serde(default)]
    pub fault: BTreeMap<Spanned<String>, FaultRate>,
    /// What a run must have had.
    #[serde(default)]
    pub at_least: AtLeast,
    /// Milliseconds in which a request must end once the faults have stopped.
    #[serde(default = "default_bound")]
    pub bound_ms: Spanned<Range>,
}

/// Far above what anything takes in a healed world, and below the target's own timers, which would hide a wake-up that
/// was lost.
fn default_bound() -> Spanned<Range> {
    spanned(50, 50)
}

/// Why a scenario was refused: a sentence with file, line, field and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Kinds of fault whose parameter a scenario gives, what it is, and its bounds.
const RANGED: [(FaultKind, &str, u64, u64); 6] = [
    (FaultKind::Kill, "crash points from the start of a life", 1, 1_000_000),
    (FaultKind::Stop, "microseconds from the start of a life", 1, 1_000_000),
    (FaultKind::PowerLoss, "microseconds from the start of a life", 1, 1_000_000),
    (FaultKind::Disconnect, "microseconds until the front-end connects again", 0, 100_000),
    (FaultKind::GuestReset, "microseconds from a death of the target to the reset", 0, 100_000),
    (FaultKind::Resize, "sectors added", 8, 4096),
];

impl Scenario {
    /// Reads a scenario. `file` names it in errors.
    ///
    /// # Errors
    /// What is wrong, where, and what is allowed.
    pub fn parse(file: &str, text: &str) -> Result<Self, Refused> {
        let scenario: Self = toml::from_str(text).map_err(|error| bad_toml(file, text, &error))?;
        scenario.check(file, text)?;
        Ok(scenario)
    }

    fn check(&self, file: &str, text: &str) -> Result<(), Refused> {
        let (world, guest) = (&self.world, &self.guest);
        let bounds = [
            ("world.cores", &world.cores, 1, 16),
            ("world.interleave-every", &world.interleave_every, 0, 1_000_000),
            ("world.cut-streams", &world.cut_streams, 0, 256),
            ("world.down-us", &world.down_us, 0, 1_000_000),
            ("world.changes", &world.changes, 0, 1000),
            ("world.churn", &world.churn, 0, 1000),
            ("world.message-delay-us", &world.message_delay_us, 0, 10_000),
            ("world.targets", &world.targets, 1, 4),
            ("guest.count", &guest.count, 0, 8),
            ("guest.sectors", &guest.sectors, 16, 65_536),
            ("guest.queues", &guest.queues, 1, 64),
            ("guest.ring-size-log2", &guest.ring_size_log2, 3, 10),
            ("guest.depth", &guest.depth, 1, 256),
            ("guest.requests", &guest.requests, 1, 10_000_000),
            ("guest.request-sectors", &guest.request_sectors, 1, 16),
            ("guest.regions", &guest.regions, 1, 8),
            ("guest.pauses", &guest.pauses, 0, 256),
            ("guest.pause-us", &guest.pause_us, 0, 10_000_000),
            ("drive.queue-entries-log2", &self.drive.queue_entries_log2, 1, 16),
            ("drive.timeout-ms", &self.drive.timeout_ms, 1, 60_000),
            ("drive.admin-timeout-ms", &self.drive.admin_timeout_ms, 1, 60_000),
            ("drive.retries", &self.drive.retries, 0, RETRIES),
            ("drive.resets", &self.drive.resets, 0, 1000),
            ("drive.swaps", &self.drive.swaps, 0, 1000),
            ("bound-ms", &self.bound_ms, 1, 100_000),
        ];
        for (field, range, low, high) in bounds {
            within(file, text, field, range, low, high)?;
        }
        for (field, span, empty) in [
            ("guest.bdev", guest.bdev.span(), guest.bdev.get_ref().is_empty()),
            ("guest.front-end", guest.front_end.span(), guest.front_end.get_ref().is_empty()),
        ] {
            if empty {
                return Err(refuse(
                    file,
                    text,
                    field,
                    span,
                    "is empty; allowed: one or more, of which a seed draws",
                ));
            }
        }
        let several = world.targets.get_ref().high > 1;
        if several && guest.bdev.get_ref().contains(&BdevKind::Nvme) {
            let what = "has nvme, and world.targets several; allowed: drives of one target";
            return Err(refuse(file, text, "guest.bdev", guest.bdev.span(), what));
        }
        if guest.image != Switch::Off && !several {
            let what = "is one, and guest.image on; allowed: 2 to 4 targets, which share images";
            return Err(refuse(file, text, "world.targets", world.targets.span(), what));
        }
        let Mix { read, write, flush, get_id, discard, write_zeroes } = guest.mix;
        if [read, write, flush, get_id, discard, write_zeroes].iter().all(|&weight| weight == 0) {
            return Err(refuse(
                file,
                text,
                "guest.mix",
                0..0,
                "has no request; allowed: at least one weight above 0",
            ));
        }
        for (name, rate) in &self.fault {
            self.check_fault(file, text, name, rate)?;
        }
        for (field, attacks) in [
            ("hostile.guest-attacks", &self.hostile.guest_attacks),
            ("hostile.front-end-attacks", &self.hostile.front_end_attacks),
        ] {
            if let Some(attacks) = attacks {
                within(file, text, field, attacks, 1, 10_000)?;
            }
        }
        Ok(())
    }

    fn check_fault(
        &self,
        file: &str,
        text: &str,
        name: &Spanned<String>,
        rate: &FaultRate,
    ) -> Result<(), Refused> {
        let field = format!("fault.{}", name.get_ref());
        let Some(kind) = kind_named(name.get_ref()) else {
            let names: Vec<&str> = FaultKind::ALL.iter().map(|kind| kind.name()).collect();
            let what = format!("is no kind of fault; allowed: {}", names.join(", "));
            return Err(refuse(file, text, &field, name.span(), &what));
        };
        within(file, text, &format!("{field}.one-in"), &rate.one_in, 1, 65_536)?;
        within(file, text, &format!("{field}.most"), &rate.most, 1, 1_000_000)?;
        within(file, text, &format!("{field}.again"), &rate.again, 0, 256)?;
        let ranged = RANGED.iter().find(|(ranged, ..)| *ranged == kind);
        match (ranged, &rate.range) {
            (Some((_, _, low, high)), Some(range)) => {
                within(file, text, &format!("{field}.range"), range, *low, *high)?;
            }
            (Some((_, what, low, high)), None) => {
                let what = format!("has no range; needed: {what}, {low} to {high}");
                return Err(refuse(file, text, &field, name.span(), &what));
            }
            (None, Some(range)) => {
                let what = "is not allowed: the kind draws its parameter by itself";
                return Err(refuse(file, text, &format!("{field}.range"), range.span(), what));
            }
            (None, None) => {}
        }
        match (kind, rate.again.get_ref().high, &rate.again_range) {
            (FaultKind::Kill, 1.., Some(range)) => {
                within(file, text, &format!("{field}.again-range"), range, 1, 1_000_000)
            }
            (FaultKind::Kill, 1.., None) => {
                let what = "is needed with `again`: crash points, 1 to 1000000";
                Err(refuse(file, text, &format!("{field}.again-range"), name.span(), what))
            }
            (_, 0, None) => Ok(()),
            _ => {
                let what = "belong together, in fault.kill only";
                Err(refuse(file, text, &format!("{field}: again and again-range"), name.span(), what))
            }
        }
    }

    /// The rate of a kind, if it may be drawn.
    #[must_use]
    pub fn rate(&self, kind: FaultKind) -> Option<&FaultRate> {
        self.fault.iter().find(|(name, _)| name.get_ref() == kind.name()).map(|(_, rate)| rate)
    }
}

/// What the reader of TOML objects to, with file, line and field.
pub(crate) fn bad_toml(file: &str, text: &str, error: &toml::de::Error) -> Refused {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    let field = error.span().map_or("", |span| field_of(text, span.start));
    let colon = if field.is_empty() { "" } else { ": " };
    Refused(format!("{file}:{line}: {field}{colon}{}", error.message()))
}

/// The kind of fault with this name.
#[must_use]
pub fn kind_named(name: &str) -> Option<FaultKind> {
    FaultKind::ALL.iter().copied().find(|kind| kind.name() == name)
}

fn within(
    file: &str,
    text: &str,
    field: &str,
    range: &Spanned<Range>,
    low: u64,
    high: u64,
) -> Result<(), Refused> {
    let value = range.get_ref();
    if value.low < low || value.high > high {
        let found = if value.low == value.high {
            value.low.to_string()
        } else {
            format!("[{}, {}]", value.low, value.high)
        };
        return Err(refuse(
            file,
            text,
            field,
            range.span(),
            &format!("is {found}; allowed: {low} to {high}"),
        ));
    }
    Ok(())
}

fn refuse(file: &str, text: &str, field: &str, span: Bytes<usize>, what: &str) -> Refused {
    Refused(format!("{file}:{}: {field} {what}", line_of(text, span.start)))
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// The key before a place of the text, for an error that names only the value.
fn field_of(text: &str, at: usize) -> &str {
    let line = text[..at.min(text.len())].rfind('\n').map_or(0, |end| end + 1);
    let end = text[line..].find('\n').map_or(text.len(), |end| line + end);
    text[line..end].split_once('=').map_or("", |(key, _)| key.trim())
}

#[cfg(test)]
mod tests {
    use super::Scenario;

    const GOOD: &str = "title = \"t\"\nabout = \"a\"\n";

    fn refused(text: &str) -> String {
        Scenario::parse("x.toml", &format!("{GOOD}{text}")).expect_err("this is wrong").0
    }

    #[test]
    fn a_wrong_file_is_refused_by_line_field_and_what_is_allowed() {
        assert!(Scenario::parse("x.toml", GOOD).is_ok());
        assert_eq!(
            refused("[guest]\nqueues = [0, 4]\n"),
            "x.toml:4: guest.queues is [0, 4]; allowed: 1 to 64"
        );
        let unknown = refused("[guest]\nqueue = 4\n");
        assert!(unknown.starts_with("x.toml:4: queue: unknown field `queue`, expected one of"), "{unknown}");
        let typed = refused("[guest]\nqueues = \"four\"\n");
        assert!(typed.contains("x.toml:4: queues: ") && typed.contains("a number, or a range"), "{typed}");
        let reversed = refused("[guest]\nqueues = [4, 1]\n");
        assert!(reversed.starts_with("x.toml:4: queues: allowed: a range whose lowest"), "{reversed}");
        let kind = refused("[fault.kil]\nmost = 3\n");
        assert!(
            kind.starts_with("x.toml:3: fault.kil is no kind of fault; allowed: kill, power-loss"),
            "{kind}"
        );
        let ranged = refused("[fault.kill]\nmost = 3\n");
        assert!(ranged.starts_with("x.toml:3: fault.kill has no range; needed: crash points"), "{ranged}");
        let switch = refused("[guest]\nindirect = \"maybe\"\n");
        assert!(switch.contains("x.toml:4: indirect: unknown variant `maybe`, expected one of"), "{switch}");
        assert_eq!(
            refused(
                "[guest.mix]\nread = 0\nwrite = 0\nflush = 0\nget-id = 0\ndiscard = 0\nwrite-zeroes = 0\n"
            ),
            "x.toml:1: guest.mix has no request; allowed: at least one weight above 0"
        );
        assert!(Scenario::parse("x.toml", "title =").expect_err("torn").0.starts_with("x.toml:1: "));
    }
}
