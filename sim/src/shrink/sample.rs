//! A small world of the same scenario: a few requests, a few of the faults that struck, and every knob somewhere between
//! its least and what it was.

use super::case::{Case, ends_life};
use crate::faults::{Fault, FaultKind};
use crate::rng::Rng;

/// Faults of a small world at most.
const FAULTS_MAX: u64 = 4;
/// Crash points of a life before its first request, about, and for each request.
const POINTS: (u64, u64) = (600, 40);
/// Sectors of a small disk at most.
const SECTORS_MAX: u64 = 64;

/// Draws a small world of about so many requests a guest.
pub(super) fn draw(original: &Case, requests: u64, rng: &mut Rng) -> Case {
    let mut plan = original.plan.clone();
    plan.seed = rng.word();
    if plan.guests.len() > 1 && rng.chance(3, 4) {
        plan.guests = vec![plan.guests.swap_remove(rng.below(plan.guests.len() as u64) as usize)];
    }
    plan.changes = plan.changes.min(rng.below(3));
    plan.churn = plan.churn.min(rng.below(8));
    plan.guest_attacks = plan.guest_attacks.min(rng.below(4));
    plan.front_end_attacks = plan.front_end_attacks.min(rng.below(4));
    if plan.temper.interleave_every > 4 && rng.chance(1, 2) {
        plan.temper.interleave_every = rng.between(4, plan.temper.interleave_every.into()) as u32;
    }
    for guest in &mut plan.guests {
        guest.requests = None;
        guest.workload.requests = requests;
        guest.workload.depth = rng.between(1, guest.workload.depth.into()) as u16;
        guest.queues = rng.between(1, guest.queues.into()) as u16;
        guest.ring_sizes.truncate(guest.queues.into());
        guest.regions = rng.between(1, guest.regions as u64) as usize;
        let grows = guest.sectors_max - guest.sectors;
        guest.sectors = rng.between(16, guest.sectors.clamp(16, SECTORS_MAX));
        guest.sectors_max = guest.sectors + grows;
        if rng.chance(3, 4) {
            guest.firmware_requests = 0;
        }
    }
    let mut case = Case::new(plan, Vec::new());
    if !original.faults.is_empty() {
        for _ in 0..rng.between(1, FAULTS_MAX) {
            let fault = draw_fault(original, requests, &case.faults, rng);
            case.faults.push(fault);
        }
    }
    case.settle_opportunities();
    case
}

/// Draws a fault: first a kind, so that a rare one is tried as often as a common one, then one of those that struck, at
/// a moment that a small world has.
fn draw_fault(original: &Case, requests: u64, so_far: &[Fault], rng: &mut Rng) -> Fault {
    let mut kinds: Vec<FaultKind> = original.faults.iter().map(|fault| fault.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let kind = kinds[rng.below(kinds.len() as u64) as usize];
    let struck: Vec<&Fault> = original.faults.iter().filter(|fault| fault.kind == kind).collect();
    let mut fault = *struck[rng.below(struck.len() as u64) as usize];
    if ends_life(kind) {
        fault.opportunity = so_far.iter().filter(|fault| ends_life(fault.kind)).count() as u64;
    } else {
        fault.opportunity = rng.below(2 * requests + 8).min(fault.opportunity);
    }
    if kind == FaultKind::Kill {
        fault.parameter = rng.between(1, fault.parameter.min(POINTS.0 + POINTS.1 * requests));
    }
    fault
}
