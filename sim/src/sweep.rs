//! Many seeds of many scenarios, on several threads, each with a world of its own.

use crate::catalog::Named;
use crate::check::RECOVERIES;
use crate::faults::FaultKind;
use crate::plan::Plan;
use crate::report::Outcome;
use crate::run;
use crate::scenario::Switch;
use crate::world::Detail;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    /// Evaluations, by checker.
    pub checks: BTreeMap<&'static str, u64>,
}

impl Totals {
    fn add(&mut self, scenario: &str, outcome: &Outcome) {
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
            *self.checks.entry(checker).or_default() += count;
        }
    }

    /// What a sweep should have exercised and did not: kinds of fault that are on and never struck, checkers that never
    /// judged. A sweep that tests nothing is a failure.
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
        for (name, never) in RECOVERIES.into_iter().zip([Switch::On, Switch::Off]) {
            let wanted = |named: &&Named| {
                let kills = named.scenario.rate(FaultKind::Kill).is_some_and(|rate| rate.on != Switch::Off);
                kills && named.scenario.guest.packed != never
            };
            if scenarios.iter().find(wanted).is_some() && !self.checks.contains_key(name) {
                idle.push(format!("no request was recovered: `{name}`"));
            }
        }
        idle.extend(
            self.checks
                .iter()
                .filter(|(_, count)| **count == 0)
                .map(|(name, _)| format!("`{name}` judged nothing")),
        );
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

/// One run of a sweep, as it ends.
pub struct Ended<'a> {
    /// The scenario.
    pub named: &'a Named,
    /// The seed.
    pub seed: u64,
    /// What it came to.
    pub outcome: Outcome,
    /// How long it took.
    pub wall: Duration,
}

/// Runs `count` seeds from `from` of each scenario on `jobs` threads. `each` is told of every run as it ends, one at a
/// time.
#[expect(
    clippy::disallowed_methods,
    reason = "times and spreads runs; no clock and no thread reaches a world"
)]
pub fn sweep(
    scenarios: &[Named],
    from: u64,
    count: u64,
    jobs: usize,
    each: impl FnMut(&Ended<'_>) + Send,
) -> (Totals, Duration) {
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let total = count * scenarios.len() as u64;
    let sink = Mutex::new((Totals::default(), each));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= total {
                        break;
                    }
                    let named = &scenarios[(number % scenarios.len() as u64) as usize];
                    let seed = from + number / scenarios.len() as u64;
                    let start = Instant::now();
                    let outcome = run::run(&Plan::draw(&named.scenario, seed), None, Detail::Nothing);
                    let ended = Ended { named, seed, outcome, wall: start.elapsed() };
                    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
                    sink.0.add(&named.name, &ended.outcome);
                    (sink.1)(&ended);
                }
            });
        }
    });
    let (totals, _) = sink.into_inner().unwrap_or_else(PoisonError::into_inner);
    (totals, begun.elapsed())
}
