//! What the runs of a scenario must have judged, by name: a judge that has nothing to say all through a sweep may be one
//! that nobody asks any more.
//!
//! Beside the checkers these are the verdicts that the world, the supervisor and the run give by themselves, which count
//! how often they looked: each access to shared memory, each operation on a locked file, each life, poll and run.

use super::{CALLS_BY_MESSAGE, RECOVERIES, REMOVAL_UNDER_IO};
use crate::faults::FaultKind;
use crate::scenario::{BdevKind, Scenario, Switch};
use crate::world::Judged;

/// Checkers and verdicts that every run has use for.
const ALWAYS: [&str; 12] = [
    "exactly_once",
    "virtqueue",
    "reads",
    "buffers",
    "leaks",
    "progress",
    "session",
    "state",
    Judged::MEMORY,
    Judged::TARGET,
    Judged::SPIN,
    Judged::COVERAGE,
];

/// What the runs of a scenario must have judged, each by itself.
#[must_use]
pub fn due(scenario: &Scenario) -> Vec<&'static str> {
    let on = |kind| scenario.rate(kind).is_some_and(|rate| rate.on != Switch::Off);
    let guest = &scenario.guest;
    let has = |kinds: &[BdevKind]| guest.bdev.get_ref().iter().any(|bdev| kinds.contains(bdev));
    let drives = has(&[BdevKind::Nvme]);
    let also = [
        ("durability", on(FaultKind::PowerLoss) || drives && on(FaultKind::NvmeRemoval)),
        ("dirty_log", on(FaultKind::Migrate)),
        (REMOVAL_UNDER_IO, on(FaultKind::Unplug)),
        (CALLS_BY_MESSAGE, guest.in_band != Switch::Off),
        (Judged::FENCE, has(&[BdevKind::Uring, BdevKind::Aio])),
        ("iommu", drives),
        ("boundaries", drives),
        // It judges drives that are well.
        ("ladder", drives && !FaultKind::ALL.iter().any(|kind| kind.touches_drives() && on(*kind))),
        ("zero copy", drives),
    ];
    let also = also.into_iter().filter(|(_, due)| *due).map(|(name, _)| name);
    ALWAYS.into_iter().chain(also).collect()
}

/// What at least one run of these scenarios must have judged: how many requests a death leaves is not a scenario's own.
#[must_use]
pub fn due_of_any<'a>(scenarios: impl Iterator<Item = &'a Scenario> + Clone) -> Vec<&'static str> {
    let kills_with_rings_not = |never: Switch| {
        scenarios.clone().any(|scenario| {
            let kills = scenario.rate(FaultKind::Kill).is_some_and(|rate| rate.on != Switch::Off);
            kills && scenario.guest.packed != never
        })
    };
    let wanted = [kills_with_rings_not(Switch::On), kills_with_rings_not(Switch::Off)];
    RECOVERIES.into_iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(name, _)| name).collect()
}
