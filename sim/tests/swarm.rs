//! Which faults are on is drawn for each seed, each kind by itself, and a sweep says what came up.

use sim::catalog;
use sim::faults::FaultKind;
use sim::plan::Plan;
use sim::scenario::{Scenario, Switch};
use sim::sweep::sweep;
use sim::totals::Swarm;
use std::collections::BTreeSet;

const SEEDS: u64 = 400;

fn swarm() -> Scenario {
    catalog::find("swarm").unwrap_or_else(|refused| panic!("{refused}")).scenario
}

#[test]
fn each_kind_is_on_in_half_of_the_seeds_and_nearly_every_seed_has_a_combination_of_its_own() {
    let scenario = swarm();
    let plans: Vec<Plan> = (0..SEEDS).map(|seed| Plan::draw(&scenario, seed)).collect();
    for name in scenario.fault.keys() {
        let kind = FaultKind::from_name(name.get_ref()).expect("a kind");
        let on = plans.iter().filter(|plan| plan.faults.contains_key(&kind)).count() as u64;
        assert!((SEEDS * 2 / 5..SEEDS * 3 / 5).contains(&on), "{name:?} was on in {on} of {SEEDS}");
    }
    let combinations: BTreeSet<Vec<FaultKind>> =
        plans.iter().map(|plan| plan.faults.keys().copied().collect()).collect();
    assert!(combinations.len() as u64 > SEEDS * 9 / 10, "{} combinations", combinations.len());
}

#[test]
fn turning_a_kind_off_changes_nothing_else() {
    let scenario = swarm();
    for seed in 0..50 {
        let all = Plan::draw(&scenario, seed);
        for name in scenario.fault.keys() {
            let mut without = scenario.clone();
            without.fault.get_mut(name).expect("it is there").on = Switch::Off;
            let kind = FaultKind::from_name(name.get_ref()).expect("a kind");
            let (mut wanted, mut plan) = (all.clone(), Plan::draw(&without, seed));
            wanted.faults.remove(&kind);
            if kind == FaultKind::Resize {
                // A disk that cannot grow has no sectors to grow into.
                for guest in wanted.guests.iter_mut().chain(&mut plan.guests) {
                    guest.sectors_max = 0;
                }
            }
            assert_eq!(plan, wanted, "seed {seed} without {name:?}");
        }
    }
}

#[test]
fn a_sweep_says_what_was_on() {
    let named = catalog::find("reset-after-crash").unwrap_or_else(|refused| panic!("{refused}"));
    let plans: Vec<Plan> = (1..9).map(|seed| Plan::draw(&named.scenario, seed)).collect();
    let (totals, _) = sweep(std::slice::from_ref(&named), 1, 8, 1, |_| ());
    let Swarm { runs, on, combinations } = &totals.swarms["reset-after-crash"];
    assert_eq!((*runs, on[&FaultKind::Kill]), (8, 8));
    let resets = plans.iter().filter(|plan| plan.faults.contains_key(&FaultKind::GuestReset)).count() as u64;
    assert_eq!(on[&FaultKind::GuestReset], resets);
    let wanted: BTreeSet<Vec<FaultKind>> =
        plans.iter().map(|plan| plan.faults.keys().copied().collect()).collect();
    assert_eq!((combinations, Swarm::possible(&named.scenario)), (&wanted, 8));
}
