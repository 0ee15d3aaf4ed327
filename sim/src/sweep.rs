//! Many seeds of many scenarios, on several threads, each with a world of its own.

use crate::catalog::Named;
use crate::plan::Plan;
use crate::report::Outcome;
use crate::run;
use crate::totals::Totals;
use crate::world::Detail;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One run of a sweep, as it ends.
pub struct Ended<'a> {
    /// The scenario.
    pub named: &'a Named,
    /// What the seed drew.
    pub plan: Plan,
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
                    let plan = Plan::draw(&named.scenario, seed);
                    let outcome = run::run(&plan, None, Detail::Nothing);
                    let ended = Ended { named, plan, outcome, wall: start.elapsed() };
                    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
                    sink.0.add(&named.name, &ended.plan, &ended.outcome);
                    (sink.1)(&ended);
                }
            });
        }
    });
    let (totals, _) = sink.into_inner().unwrap_or_else(PoisonError::into_inner);
    (totals, begun.elapsed())
}
