//! What a run came to: how often each point of the stack (`stack::reached`), and in which company. Counting draws
//! nothing and leaves no trace; two runs are the same whether anybody reads this or not.

use crate::faults::Fault;
use stack::reached::Reached;
use std::collections::BTreeSet;

/// Something that a run did which a search may have been looking for, as a number: that a point was reached so many
/// times (by powers of two), that one was reached after another, after which fault, or how far from it a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Feature(u32);

impl Feature {
    const COUNT: u32 = 1 << 24;
    const PAIR: u32 = 2 << 24;
    const FAULT: u32 = 3 << 24;
    const DEATH: u32 = 4 << 24;

    const fn of(what: u32, a: u32, b: u32) -> Self {
        Self(what | a << 12 | b)
    }
}

/// The counters of one run.
#[derive(Debug)]
pub(crate) struct Coverage {
    counts: Vec<u64>,
    /// The last point that is not one of everyday.
    last: Option<Reached>,
    /// Crash points since then.
    since: u64,
    /// Faults that were paired with the point after them.
    faults: usize,
    company: BTreeSet<Feature>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            counts: vec![0; Reached::ALL.len()],
            last: None,
            since: 0,
            faults: 0,
            company: BTreeSet::new(),
        }
    }
}

/// Points of every request: what follows on them says nothing.
const fn is_everyday(point: Reached) -> bool {
    matches!(
        point,
        Reached::RequestSubmitted
            | Reached::StatusOk
            | Reached::NotificationSuppressed
            | Reached::WorkBeforeSleep
            | Reached::BacklogWaits
            | Reached::FileFull
    )
}

impl Coverage {
    /// A point was reached, with these faults so far.
    #[inline]
    pub(crate) fn reach(&mut self, point: Reached, struck: &[Fault]) {
        self.counts[point as usize] += 1;
        if !is_everyday(point) {
            self.pair(point, struck);
        }
    }

    #[inline(never)]
    fn pair(&mut self, point: Reached, struck: &[Fault]) {
        if let Some(last) = self.last {
            self.company.insert(Feature::of(Feature::PAIR, last as u32, point as u32));
        }
        for fault in &struck[self.faults..] {
            self.company.insert(Feature::of(Feature::FAULT, fault.kind as u32, point as u32));
        }
        (self.last, self.since, self.faults) = (Some(point), 0, struck.len());
    }

    /// The process whose code runs passed a point at which it may die.
    #[inline]
    pub(crate) fn crash_point(&mut self) {
        self.since += 1;
    }

    /// A life ended by force.
    pub(crate) fn death(&mut self) {
        let last = self.last.map_or(0, |last| last as u32 + 1);
        self.company.insert(Feature::of(Feature::DEATH, last, bucket(self.since)));
    }

    /// How often each point was reached; those that were not are left out.
    pub(crate) fn reached(&self) -> Vec<(Reached, u64)> {
        let all = Reached::ALL.iter().copied().zip(self.counts.iter().copied());
        all.filter(|(_, count)| *count > 0).collect()
    }

    /// Everything that a search may have been looking for.
    pub(crate) fn features(&self) -> Vec<Feature> {
        let counted = self
            .reached()
            .into_iter()
            .map(|(point, count)| Feature::of(Feature::COUNT, point as u32, bucket(count)));
        counted.chain(self.company.iter().copied()).collect()
    }
}

/// How many bits a number has.
const fn bucket(number: u64) -> u32 {
    u64::BITS - number.leading_zeros()
}
