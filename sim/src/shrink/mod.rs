//! Shrinking: from a failure of thousands of operations to a handful on which the same checker fails.
//!
//! Two ways, one after the other. First the smallest worlds of the same scenario are tried, a few requests and a few of
//! the faults that struck ([`sample`]), then larger ones: most failures need little, and little is quickly tried. Then
//! what was found (or else the failure itself) is taken apart by delta debugging: faults, requests, knobs and moments are
//! taken away one by one or many at once ([`smaller`]), and whatever still fails is kept.
//!
//! A smaller world is another world: what is left of it meets at other moments. Each candidate is therefore tried with a
//! few seeds and moments around its own. All of it is counted in steps of the world and drawn from a stream of its own,
//! so that the same file always shrinks to the same one, on a slow machine too.

mod case;
mod sample;
mod smaller;

pub use case::Case;

use crate::rng::Rng;
use case::Signature;

/// Number of the stream that tries are drawn from.
const STREAM: u64 = 80_000;
/// Steps of all tried worlds together: some ten seconds.
const STEPS_MAX: u64 = 20_000_000;
/// Steps of all small worlds of one size together.
const SAMPLE_STEPS: u64 = 1_000_000;
/// Small worlds are tried up to this part of the operations: above it, taking apart is as quick.
const SAMPLE_PART: u64 = 8;
/// What making a world costs, in steps.
const WORLD_STEPS: u64 = 500;
/// Steps of the tries of one candidate together, and how many there are at most; both times the patience.
const CANDIDATE_STEPS: u64 = 20_000;
const TRIES_MAX: u64 = 12;
/// The last patience.
const PATIENCE_MAX: u64 = 16;

/// How far a shrink is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Worlds tried.
    pub tried: u64,
    /// Steps of them, of `steps_max` in all.
    pub steps: u64,
    /// Steps after which it ends at the latest.
    pub steps_max: u64,
    /// Operations of the smallest failure so far.
    pub operations: u64,
    /// Faults of it.
    pub faults: usize,
}

/// What a shrink came to.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The failure.
    pub from: Case,
    /// The smallest found.
    pub to: Case,
    /// Worlds tried.
    pub tried: u64,
}

/// A shrink under way.
struct Shrink<P> {
    best: Case,
    signature: Signature,
    rng: Rng,
    tried: u64,
    steps: u64,
    patience: u64,
    progress: P,
}

/// Shrinks a case; `None`: it does not fail.
pub fn shrink(case: &Case, progress: impl FnMut(Progress)) -> Option<Shrunk> {
    let (best, signature) = case.clone().failing()?;
    let rng = Rng::new(best.plan.seed, STREAM);
    let from = best.clone();
    let mut shrink = Shrink { best, signature, rng, tried: 1, steps: 0, patience: 1, progress };
    shrink.start_small();
    // What is tried with patience comes last: most of what can go goes at once.
    while shrink.patience <= PATIENCE_MAX && !shrink.is_over() {
        let before = shrink.best.clone();
        shrink.delete(|case| case.faults.len(), Case::without_faults);
        shrink.delete(Case::listed, Case::without_requests);
        shrink.simplify();
        shrink.hasten();
        if shrink.best == before {
            shrink.patience *= 4;
        }
    }
    Some(Shrunk { from, to: shrink.best, tried: shrink.tried })
}

impl<P: FnMut(Progress)> Shrink<P> {
    fn is_over(&self) -> bool {
        self.steps >= STEPS_MAX
    }

    /// Runs a case; what is left of it, where it fails in the same way and is not larger than the best.
    fn fails(&mut self, case: Case) -> Option<Case> {
        self.tried += 1;
        let outcome = case.run();
        self.steps += outcome.steps + WORLD_STEPS;
        let found = (Signature::of(&outcome).as_ref() == Some(&self.signature))
            .then(|| case.failing())
            .flatten()
            .map(|(case, _)| case)
            .filter(|case| case.operations <= self.best.operations);
        (self.progress)(Progress {
            tried: self.tried,
            steps: self.steps.min(STEPS_MAX),
            steps_max: STEPS_MAX,
            operations: self.best.operations,
            faults: self.best.faults.len(),
        });
        found
    }

    /// Tries a candidate, with its own seed and moments and others near them; keeps it if it fails.
    fn keeps(&mut self, candidate: &Case) -> bool {
        let tries = self.patience * CANDIDATE_STEPS / self.best.steps.max(1);
        let tries = tries.clamp(1, self.patience * TRIES_MAX);
        for number in 0..tries {
            if self.is_over() {
                return false;
            }
            let near = candidate.near(number, &mut self.rng);
            if let Some(found) = self.fails(near) {
                self.best = found;
                return true;
            }
        }
        false
    }

    /// Looks for the same failure in small worlds of the same scenario, the smallest first.
    fn start_small(&mut self) {
        let original = self.best.clone();
        let mut requests = 4;
        while SAMPLE_PART * requests < original.operations {
            let until = self.steps + SAMPLE_STEPS;
            while self.steps < until {
                let sample = sample::draw(&original, requests, &mut self.rng);
                if let Some(found) = self.fails(sample) {
                    self.best = found;
                    return;
                }
            }
            requests *= 2;
        }
    }

    /// Delta debugging over a list: takes away its half, then quarters, down to single entries, from the end.
    fn delete(&mut self, len: fn(&Case) -> usize, without: fn(&Case, std::ops::Range<usize>) -> Case) {
        let mut chunk = len(&self.best).div_ceil(2);
        while chunk > 0 {
            let mut end = len(&self.best);
            while end > 0 {
                let start = end.saturating_sub(chunk);
                let candidate = without(&self.best, start..end);
                self.keeps(&candidate);
                end = start.min(len(&self.best));
            }
            chunk = if chunk == 1 { 0 } else { chunk.div_ceil(2) };
        }
    }

    /// Turns every knob down as far as it goes.
    fn simplify(&mut self) {
        for simpler in smaller::KNOBS {
            while let Some(candidate) = simpler(&self.best).filter(|candidate| *candidate != self.best) {
                if !self.keeps(&candidate) {
                    break;
                }
            }
        }
        // The requests' places, once nothing else depends on them.
        let candidate = smaller::fewer_sectors(&self.best);
        self.keeps(&candidate);
    }

    /// Moves each fault to an earlier moment, by halves and then by little.
    fn hasten(&mut self) {
        for at in 0..self.best.faults.len() {
            for cut in [2, 4, 16] {
                while let Some(candidate) = self.best.earlier(at, cut) {
                    if !self.keeps(&candidate) {
                        break;
                    }
                }
            }
        }
    }
}
