//! The knobs of a plan, each with what turns it down. A knob that is down already gives the case back as it was.

use super::case::Case;
use crate::plan::{GuestPlan, Plan};
use crate::scenario::{BdevKind, Range};

/// Turns a knob down by one notch; `None`: there is none.
type Knob = fn(&Case) -> Option<Case>;

/// All of them, in the order in which they are tried: what makes the rest smaller comes first.
pub(super) const KNOBS: &[Knob] = &[
    |case| fewer_guests(case, 0),
    |case| fewer_guests(case, case.plan.guests.len().checked_sub(1)?),
    |case| world(case, |plan| plan.guest_attacks = 0),
    |case| world(case, |plan| plan.front_end_attacks = 0),
    |case| world(case, |plan| plan.guest_attacks = plan.guest_attacks.saturating_sub(1)),
    |case| world(case, |plan| plan.front_end_attacks = plan.front_end_attacks.saturating_sub(1)),
    |case| world(case, |plan| plan.changes = 0),
    |case| world(case, |plan| plan.churn = 0),
    |case| guests(case, |guest| guest.image = false),
    |case| guests(case, |guest| guest.shares_drive = false),
    |case| world(case, one_target),
    |case| world(case, |plan| plan.apart = false),
    |case| guests(case, |guest| guest.workload.requests = drawn_requests(guest, guest.workload.requests / 2)),
    |case| {
        guests(case, |guest| {
            guest.workload.requests = drawn_requests(guest, guest.workload.requests.saturating_sub(1))
        })
    },
    |case| guests(case, |guest| guest.firmware_requests = 0),
    |case| guests(case, |guest| guest.workload.sectors_max = 16),
    |case| guests(case, |guest| lower_queues(guest, 1)),
    |case| guests(case, |guest| lower_queues(guest, guest.queues.saturating_sub(1).max(1))),
    |case| guests(case, |guest| guest.workload.depth = 1),
    |case| guests(case, |guest| guest.workload.depth = (guest.workload.depth / 2).max(1)),
    |case| guests(case, |guest| guest.regions = 1),
    |case| guests(case, |guest| guest.bdev = BdevKind::Malloc),
    |case| guests(case, |guest| guest.indirect = false),
    |case| guests(case, |guest| guest.event_idx = false),
    |case| guests(case, |guest| guest.packed = false),
    |case| guests(case, |guest| guest.first_index = 0),
    |case| world(case, |plan| plan.hostile_packed = false),
    |case| guests(case, |guest| guest.workload.odd_layout = 0),
    |case| guests(case, |guest| (guest.workload.think, guest.workload.think_ns_max) = (0, 0)),
    |case| guests(case, |guest| guest.ring_sizes.fill(8)),
    |case| world(case, |plan| plan.cores = 1),
    |case| world(case, |plan| plan.sleep = Some(false)),
    |case| world(case, |plan| plan.temper.store_buffers = false),
    |case| world(case, |plan| plan.temper.cut_streams = 0),
    |case| world(case, |plan| plan.temper.message_delay_ns = 0),
    |case| world(case, |plan| plan.temper.interleave_every = 0),
    |case| world(case, |plan| plan.down_ns = Range { low: 1000, high: 1000 }),
];

/// The first target has all guests.
fn one_target(plan: &mut Plan) {
    (plan.other_targets, plan.apart, plan.spare_others) = (0, false, false);
    for guest in &mut plan.guests {
        (guest.target, guest.image) = (0, false);
    }
}

fn world(case: &Case, lower: impl FnOnce(&mut Plan)) -> Option<Case> {
    let mut lowered = case.clone();
    lower(&mut lowered.plan);
    Some(lowered)
}

fn guests(case: &Case, lower: impl Fn(&mut GuestPlan)) -> Option<Case> {
    let mut lowered = case.clone();
    lowered.plan.guests.iter_mut().for_each(lower);
    Some(lowered)
}

fn fewer_guests(case: &Case, at: usize) -> Option<Case> {
    let neighbours = case.plan.guest_attacks + case.plan.front_end_attacks > 0;
    let may_go = case.plan.guests.len() + usize::from(neighbours) > 1;
    (may_go && at < case.plan.guests.len()).then(|| {
        let mut fewer = case.clone();
        fewer.plan.guests.remove(at);
        fewer
    })
}

/// Requests of a guest, where they are drawn.
fn drawn_requests(guest: &GuestPlan, fewer: u64) -> u64 {
    if guest.requests.is_some() { guest.workload.requests } else { fewer.max(1) }
}

fn lower_queues(guest: &mut GuestPlan, queues: u16) {
    guest.queues = guest.queues.min(queues);
    guest.ring_sizes.truncate(guest.queues.into());
    for listed in guest.requests.iter_mut().flatten() {
        listed.queue %= guest.queues;
    }
}

/// The smallest disk on which the same requests overlap in the same way: between the places where requests begin or end
/// nothing needs to be longer than a sector.
pub(super) fn fewer_sectors(case: &Case) -> Case {
    let mut fewer = case.clone();
    for guest in &mut fewer.plan.guests {
        let Some(requests) = &mut guest.requests else { continue };
        let mut ends: Vec<u64> = requests
            .iter()
            .flat_map(|listed| [listed.sector, listed.sector + u64::from(listed.sectors)])
            .collect();
        ends.sort_unstable();
        ends.dedup();
        let place = |sector: u64| ends.binary_search(&sector).unwrap_or(0) as u64;
        for listed in requests.iter_mut().filter(|listed| listed.sectors > 0) {
            let end = place(listed.sector + u64::from(listed.sectors));
            listed.sector = place(listed.sector);
            listed.sectors = (end - listed.sector) as u32;
        }
        let grows = guest.sectors_max - guest.sectors;
        guest.sectors = (ends.len() as u64).clamp(16, guest.sectors);
        guest.sectors_max = guest.sectors + grows;
    }
    fewer
}
