//! What a sweep adds up: what was run, which faults were on and struck, what was checked, and which points of the stack
//! were reached. What a sweep should have exercised and did not makes it a failure.

use crate::catalog::Named;
use crate::check::due::{due, due_of_any};
use crate::faults::{Fault, FaultKind};
use crate::plan::Plan;
use crate::report::Outcome;
use crate::scenario::{Scenario, Switch};
use stack::reached::{By, Reached};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is added up over a sweep.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Runs.
    pub runs: u64,
    /// Runs that failed.
    pub failed: u64,
    /// Requests completed.
    pub ios: u64,
    /// Lives ended by force.
    pub kills: u64,
    /// Requests submitted again.
    pub replayed: u64,
    /// Steps.
    pub steps: u64,
    /// Simulated time.
    pub virtual_ns: u64,
    /// How often each fault struck, by scenario and kind.
    pub faults: BTreeMap<(String, &'static str), u64>,
    /// Evaluations, by scenario and checker.
    pub checks: BTreeMap<(String, &'static str), u64>,
    /// How often each point of the stack was reached, and in how many runs.
    pub reached: BTreeMap<Reached, Count>,
    /// The points that were reached, by drives that say the truth, though the list says that no scenario does: it is wrong.
    pub unforeseen: BTreeSet<Reached>,
    /// Which faults were on, by scenario.
    pub swarms: BTreeMap<String, Swarm>,
}

/// How often something was, and in how many runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How often.
    pub times: u64,
    /// In how many runs.
    pub runs: u64,
}

/// Which kinds of fault the runs of a scenario had on. Each seed draws a subset of what the scenario allows: a fault may
/// hide what another one does, and some failures need one kind to be there and another not.
#[derive(Clone, Debug, Default)]
pub struct Swarm {
    /// Runs.
    pub runs: u64,
    /// In how many of them each kind was on.
    pub on: BTreeMap<FaultKind, u64>,
    /// Every subset that was on together.
    pub combinations: BTreeSet<Vec<FaultKind>>,
}

impl Swarm {
    /// How many subsets a scenario allows.
    #[must_use]
    pub fn possible(scenario: &Scenario) -> u64 {
        1 << scenario.fault.values().filter(|rate| rate.on == Switch::Drawn).count()
    }
}

impl Totals {
    /// Adds a run.
    pub fn add(&mut self, scenario: &str, plan: &Plan, outcome: &Outcome) {
        self.runs += 1;
        self.failed += u64::from(!outcome.passed());
        self.ios += outcome.ios;
        self.kills += outcome.kills;
        self.replayed += outcome.replayed;
        self.steps += outcome.steps;
        self.virtual_ns += outcome.virtual_ns;
        for (kind, count) in outcome.faults_by_kind() {
            *self.faults.entry((scenario.to_owned(), kind)).or_default() += count;
        }
        for (checker, count) in &outcome.checks {
            *self.checks.entry((scenario.to_owned(), *checker)).or_default() += count;
        }
        for (point, count) in &outcome.reached {
            let sum = self.reached.entry(*point).or_default();
            (sum.times, sum.runs) = (sum.times + count, sum.runs + 1);
        }
        // A drive that lies may lead anywhere, to a place that is no more on its disk for one.
        if !outcome.faults.iter().any(Fault::betrays) {
            let nobody = |point: &Reached| matches!(point.by(), By::Nobody(_));
            self.unforeseen.extend(outcome.reached.iter().map(|(point, _)| *point).filter(nobody));
        }
        let swarm = self.swarms.entry(scenario.to_owned()).or_default();
        swarm.runs += 1;
        for kind in plan.faults.keys() {
            *swarm.on.entry(*kind).or_default() += 1;
        }
        swarm.combinations.insert(plan.faults.keys().copied().collect());
    }

    /// The points that scenarios of these groups come to, and that none of the runs did.
    #[must_use]
    pub fn never(&self, scenarios: &[Named]) -> Vec<Reached> {
        let swept = |group: &str| scenarios.iter().any(|named| named.group == group);
        let wanted = |point: &Reached| matches!(point.by(), By::Group(group) if swept(group));
        Reached::ALL
            .iter()
            .copied()
            .filter(|point| wanted(point) && !self.reached.contains_key(point))
            .collect()
    }

    /// What a sweep should have exercised and did not: kinds of fault that are on and never struck, checkers that are due
    /// and never judged, or never appeared. A sweep that tests nothing is a failure.
    #[must_use]
    pub fn idle(&self, scenarios: &[Named]) -> Vec<String> {
        let mut idle = Vec::new();
        for Named { name, scenario, .. } in scenarios {
            for (kind, _) in scenario.fault.iter().filter(|(_, rate)| rate.on != Switch::Off) {
                let kind = kind.get_ref().as_str();
                let struck = self
                    .faults
                    .iter()
                    .any(|((of, struck), count)| of == name && *struck == kind && *count > 0);
                if !struck {
                    idle.push(format!("the fault `{kind}` of {name} never struck"));
                }
            }
        }
        for Named { name, scenario, .. } in scenarios {
            let judged = |checker| self.checks.get(&(name.clone(), checker)).is_some_and(|count| *count > 0);
            let silent = due(scenario).into_iter().filter(|checker| !judged(checker));
            idle.extend(silent.map(|checker| format!("`{checker}` judged nothing in {name}")));
        }
        for checker in due_of_any(scenarios.iter().map(|named| &named.scenario)) {
            if !self.checks.iter().any(|((_, of), count)| *of == checker && *count > 0) {
                idle.push(format!("no request was recovered: `{checker}`"));
            }
        }
        idle
    }

    /// The last line of a sweep.
    #[must_use]
    pub fn line(&self, wall: Duration, verdict: &str) -> String {
        let seconds = wall.as_secs_f64().max(1e-9);
        format!(
            "{} seeds, {:.1} seeds/s, {} I/Os, {} kills, {} replayed, simulated:real {:.2}, {verdict}",
            self.runs,
            self.runs as f64 / seconds,
            self.ios,
            self.kills,
            self.replayed,
            self.virtual_ns as f64 / 1e9 / seconds,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Totals;
    use crate::catalog;
    use crate::check::due::{due, due_of_any};
    use std::collections::BTreeSet;

    /// The sum of a sweep in which every fault struck and every judge judged.
    fn full(scenarios: &[catalog::Named]) -> Totals {
        let mut totals = Totals::default();
        for named in scenarios {
            for kind in named.scenario.fault.keys() {
                let kind = crate::scenario::kind_named(kind.get_ref()).expect("a kind");
                totals.faults.insert((named.name.clone(), kind.name()), 1);
            }
            let any = due_of_any(std::iter::once(&named.scenario));
            for checker in due(&named.scenario).into_iter().chain(any) {
                totals.checks.insert((named.name.clone(), checker), 1);
            }
        }
        totals
    }

    #[test]
    fn a_judge_that_is_due_and_silent_or_missing_fails_the_sweep_by_name() {
        let scenarios = catalog::all().unwrap_or_else(|refused| panic!("{refused}"));
        let full = full(&scenarios);
        assert_eq!(full.idle(&scenarios), Vec::<String>::new());
        for named in &scenarios {
            for checker in due(&named.scenario) {
                let said = vec![format!("`{checker}` judged nothing in {}", named.name)];
                let (mut silent, mut missing) = (full.clone(), full.clone());
                silent.checks.insert((named.name.clone(), checker), 0);
                assert_eq!(silent.idle(&scenarios), said);
                missing.checks.remove(&(named.name.clone(), checker));
                assert_eq!(missing.idle(&scenarios), said);
            }
        }
        let mut unrecovered = full.clone();
        unrecovered.checks.retain(|(_, checker), _| !checker.starts_with("recovery"));
        assert_eq!(
            unrecovered.idle(&scenarios),
            ["recovery, split", "recovery, packed"].map(|name| format!("no request was recovered: `{name}`"))
        );
    }

    #[test]
    fn a_fault_that_never_struck_fails_the_sweep_by_name() {
        let scenarios = catalog::all().unwrap_or_else(|refused| panic!("{refused}"));
        let full = full(&scenarios);
        for (scenario, kind) in full.faults.keys() {
            let mut less = full.clone();
            less.faults.insert((scenario.clone(), kind), 0);
            assert_eq!(less.idle(&scenarios), [format!("the fault `{kind}` of {scenario} never struck")]);
        }
    }

    #[test]
    fn every_judge_is_due_in_some_scenario() {
        let scenarios = catalog::all().unwrap_or_else(|refused| panic!("{refused}"));
        let due: BTreeSet<_> = scenarios.iter().flat_map(|named| due(&named.scenario)).collect();
        let idle: Vec<_> = crate::check::NAMES.iter().filter(|name| !due.contains(*name)).collect();
        assert!(idle.is_empty(), "no scenario has use for {idle:?}");
    }
}
