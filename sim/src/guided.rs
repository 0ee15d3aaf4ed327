//! A search among seeds that follows what it finds: half of its runs are plain seeds, the other half neighbours of runs
//! that came to something new.
//!
//! A neighbour shares the seed, and so the plan: the guests, their rings and sizes, which faults are on. One or two of
//! its subjects draw other numbers ([`Numbers`]): the same load and faults under another schedule, or other faults
//! under the same load. New is a point reached more often than ever (by powers of two), after another point or fault than
//! ever, or a death at another distance from one: [`Feature`].
//!
//! Runs are made in rounds of a fixed size, and looked at in their order: the search is the same for any number of
//! threads.

use crate::catalog::Named;
use crate::coverage::Feature;
use crate::plan::Plan;
use crate::rng::{Numbers, Rng};
use crate::run;
use crate::sweep::Ended;
use crate::totals::Totals;
use crate::world::Detail;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Number of the stream that the search draws from.
const STREAM: u64 = 90_000;
/// Runs of a round.
const ROUND: u64 = 16;
/// Of two runs, how many are plain seeds.
const PLAIN_OF_2: u32 = 1;

/// A run that came to something new.
struct Found {
    scenario: usize,
    seed: u64,
    numbers: Numbers,
    /// How much was new in it and in its neighbours, and how many of those were tried.
    news: u64,
    tried: u64,
}

/// What the search knows.
struct Search {
    rng: Rng,
    seen: BTreeSet<Feature>,
    found: Vec<Found>,
    /// Plain seeds given out.
    plain: u64,
}

/// What is run next, and whose neighbour it is.
struct Try {
    scenario: usize,
    seed: u64,
    numbers: Numbers,
    of: Option<usize>,
}

impl Search {
    fn next(&mut self, scenarios: usize, from: u64) -> Try {
        if self.found.is_empty() || self.rng.chance(PLAIN_OF_2, 2) {
            let number = self.plain;
            self.plain += 1;
            let scenario = (number % scenarios as u64) as usize;
            return Try {
                scenario,
                seed: from + number / scenarios as u64,
                numbers: Numbers::default(),
                of: None,
            };
        }
        // Of two, the one whose neighbours brought more for each that was tried.
        let mut pick = || self.rng.below(self.found.len() as u64) as usize;
        let (one, other) = (pick(), pick());
        let worth = |at: usize, by: usize| self.found[at].news * (self.found[by].tried + 1);
        let of = if worth(one, other) >= worth(other, one) { one } else { other };
        let Found { scenario, seed, numbers, .. } = self.found[of];
        let mut numbers = numbers;
        for _ in 0..1 + self.rng.below(2) {
            numbers.redraw(&mut self.rng);
        }
        self.found[of].tried += 1;
        Try { scenario, seed, numbers, of: Some(of) }
    }

    /// Takes in what a run came to. Whether there was something new.
    fn learn(&mut self, tried: &Try, features: &[Feature]) -> bool {
        let news = features.iter().filter(|feature| self.seen.insert(**feature)).count() as u64;
        if news > 0 {
            if let Some(of) = tried.of {
                self.found[of].news += news;
            }
            let Try { scenario, seed, numbers, .. } = *tried;
            self.found.push(Found { scenario, seed, numbers, news, tried: 0 });
        }
        news > 0
    }
}

/// What a search came to.
pub struct Guided {
    /// The sums.
    pub totals: Totals,
    /// How long it took.
    pub wall: Duration,
    /// Different things that were done.
    pub features: usize,
    /// Runs that did something new, and how many of them were neighbours.
    pub news: (u64, u64),
}

/// Makes `count` runs for each scenario, plain seeds from `from` on, on `jobs` threads. `each` is told of every run, in
/// order.
#[expect(
    clippy::disallowed_methods,
    reason = "times and spreads runs; no clock and no thread reaches a world"
)]
pub fn search(
    scenarios: &[Named],
    from: u64,
    count: u64,
    jobs: usize,
    mut each: impl FnMut(&Ended<'_>),
) -> Guided {
    let begun = Instant::now();
    let rng = Rng::new(from, STREAM);
    let mut search = Search { rng, seen: BTreeSet::new(), found: Vec::new(), plain: 0 };
    let (mut totals, mut news) = (Totals::default(), (0, 0));
    let mut left = count * scenarios.len() as u64;
    while left > 0 {
        let tries: Vec<Try> = (0..ROUND.min(left)).map(|_| search.next(scenarios.len(), from)).collect();
        left -= tries.len() as u64;
        let next = AtomicUsize::new(0);
        let ended = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..jobs.max(1) {
                scope.spawn(|| {
                    while let Some((at, tried)) = {
                        let at = next.fetch_add(1, Relaxed);
                        tries.get(at).map(|tried| (at, tried))
                    } {
                        let start = Instant::now();
                        let named = &scenarios[tried.scenario];
                        let plan = Plan { numbers: tried.numbers, ..Plan::draw(&named.scenario, tried.seed) };
                        let outcome = run::run(&plan, None, Detail::Nothing);
                        let run = Ended { named, plan, outcome, wall: start.elapsed() };
                        ended.lock().unwrap_or_else(PoisonError::into_inner).push((at, run));
                    }
                });
            }
        });
        let mut ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        ended.sort_by_key(|(at, _)| *at);
        for (at, run) in &ended {
            totals.add(&run.named.name, &run.plan, &run.outcome);
            if search.learn(&tries[*at], &run.outcome.features) {
                news = (news.0 + 1, news.1 + u64::from(tries[*at].of.is_some()));
            }
            each(run);
        }
    }
    Guided { totals, wall: begun.elapsed(), features: search.seen.len(), news }
}
