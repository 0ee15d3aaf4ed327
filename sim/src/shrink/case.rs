//! A failure as shrinking sees it: the plan, with its requests one by one, and the faults.

use crate::check::{Kind, Observation};
use crate::faults::{Fault, FaultKind};
use crate::follow::{Followed, Follower};
use crate::guest::listed::Listed;
use crate::plan::{GuestPlan, Plan};
use crate::report::Outcome;
use crate::rng::Rng;
use crate::run::{run, run_followed};
use crate::world::Detail;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// What makes two failures the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Signature {
    checker: String,
    /// Of what has no checker's name to tell it from others (a panic): the text, less its numbers.
    text: String,
}

impl Signature {
    pub(super) fn of(outcome: &Outcome) -> Option<Self> {
        let failure = outcome.failure.as_ref()?;
        let says_all = crate::check::NAMES.contains(&failure.checker.as_str()) || failure.checker == "stuck";
        let text = failure.what.chars().filter(|letter| !says_all && !letter.is_ascii_digit()).collect();
        Some(Self { checker: failure.checker.clone(), text })
    }
}

/// A run to be made smaller.
#[derive(Clone, Debug)]
pub struct Case {
    /// What was drawn.
    pub plan: Plan,
    /// The faults.
    pub faults: Vec<Fault>,
    /// Requests made up to the failure, verifying reads included.
    pub operations: u64,
    /// Steps up to the failure.
    pub steps: u64,
}

/// Two cases are the same where their runs are.
impl PartialEq for Case {
    fn eq(&self, other: &Self) -> bool {
        (&self.plan, &self.faults) == (&other.plan, &other.faults)
    }
}

/// Writes down the requests of each guest's load.
struct Listener(Rc<RefCell<Vec<Vec<Listed>>>>);

impl Follower for Listener {
    fn follow(&mut self, _: u64, what: Followed<'_>) {
        if let Followed::Saw(
            guest,
            &Observation::Submitted { queue, kind, sector, sectors, of_load: true, .. },
        ) = what
            && let Some(list) = self.0.borrow_mut().get_mut(guest)
        {
            list.push(Listed { queue, kind, sector, sectors });
        }
    }
}

impl Case {
    /// A run whose faults are known.
    #[must_use]
    pub fn new(plan: Plan, faults: Vec<Fault>) -> Self {
        Self { plan, faults, operations: 0, steps: 0 }
    }

    /// Runs it.
    #[must_use]
    pub fn run(&self) -> Outcome {
        run(&self.plan, Some(&self.faults), Detail::Nothing)
    }

    /// Of a case that fails: what of it happened, and how it fails. What had not struck and what was not asked by then
    /// is left out, and the requests are written down one by one; where it would then be another run, they stay drawn.
    pub(super) fn failing(mut self) -> Option<(Self, Signature)> {
        let lists = Rc::new(RefCell::new(vec![Vec::new(); self.plan.guests.len()]));
        let outcome = run_followed(&self.plan, Some(&self.faults), Box::new(Listener(Rc::clone(&lists))));
        let signature = Signature::of(&outcome)?;
        self.faults.clone_from(&outcome.faults);
        (self.operations, self.steps) = (outcome.requests, outcome.steps);
        for more in [0, 1] {
            let mut listed = self.clone();
            for (guest, list) in listed.plan.guests.iter_mut().zip(lists.borrow().iter()) {
                guest.list(list.clone(), more);
            }
            let again = listed.run();
            if Signature::of(&again).as_ref() == Some(&signature) {
                (listed.operations, listed.steps) = (again.requests, again.steps);
                return Some((listed, signature));
            }
        }
        Some((self, signature))
    }

    /// Requests that are listed, over all guests.
    pub(super) fn listed(&self) -> usize {
        self.plan.guests.iter().flat_map(|guest| &guest.requests).map(Vec::len).sum()
    }

    /// Less these requests, counted over all guests.
    pub(super) fn without_requests(&self, range: Range<usize>) -> Self {
        let mut fewer = self.clone();
        let mut first = 0;
        for list in fewer.plan.guests.iter_mut().filter_map(|guest| guest.requests.as_mut()) {
            let len = list.len();
            let cut = |at: usize| at.saturating_sub(first).min(len);
            list.drain(cut(range.start)..cut(range.end));
            first += len;
        }
        fewer
    }

    /// Less these faults.
    pub(super) fn without_faults(&self, range: Range<usize>) -> Self {
        let mut fewer = self.clone();
        fewer.faults.drain(range);
        fewer
    }

    /// The case itself (`number` 0), or one near it: lives without a death between others closed up, then other seeds,
    /// and faults at other moments no later than their own.
    pub(super) fn near(&self, number: u64, rng: &mut Rng) -> Self {
        let mut near = self.clone();
        if number > 0 {
            near.close_up();
        }
        if number > 1 {
            near.plan.seed = rng.word();
        }
        if number > 2 && number % 2 == 1 {
            for fault in &mut near.faults {
                if is_timed(fault.kind) && rng.chance(3, 4) {
                    fault.parameter = rng.between(1, fault.parameter.max(1));
                } else if !ends_life(fault.kind) && rng.chance(3, 4) {
                    fault.opportunity = rng.between(0, fault.opportunity);
                }
            }
            near.settle_opportunities();
        }
        near
    }

    /// Lives that end by a fault come first, one after the other.
    fn close_up(&mut self) {
        let mut lives: Vec<u64> =
            self.faults.iter().filter(|fault| ends_life(fault.kind)).map(|fault| fault.opportunity).collect();
        lives.sort_unstable();
        lives.dedup();
        for fault in self.faults.iter_mut().filter(|fault| ends_life(fault.kind)) {
            fault.opportunity = lives.binary_search(&fault.opportunity).unwrap_or(0) as u64;
        }
    }

    /// No two faults of a kind at one opportunity.
    pub(super) fn settle_opportunities(&mut self) {
        self.faults.sort_unstable();
        self.faults.dedup_by_key(|fault| (fault.kind, fault.opportunity));
    }

    /// The fault `at` strikes earlier, by one part of `cut`; `None`: it cannot.
    pub(super) fn earlier(&self, at: usize, cut: u64) -> Option<Self> {
        let mut earlier = self.clone();
        let fault = earlier.faults.get_mut(at)?;
        let moment = if is_timed(fault.kind) { &mut fault.parameter } else { &mut fault.opportunity };
        let floor = u64::from(is_timed(fault.kind));
        let less = (*moment - *moment / cut).min(moment.saturating_sub(1)).max(floor);
        if less >= *moment || (ends_life(fault.kind) && !is_timed(fault.kind)) {
            return None;
        }
        *moment = less;
        earlier.settle_opportunities();
        (earlier.faults.len() == self.faults.len()).then_some(earlier)
    }
}

impl GuestPlan {
    /// Makes `list` the load, with `more` times a queue's depth of reads after it: what a queue was about to ask when the
    /// run failed is in no list, and a queue that has nothing left to ask behaves in another way.
    fn list(&mut self, mut list: Vec<Listed>, more: u16) {
        let (kind, sector, sectors) = (Kind::Read, 0, 1);
        for _ in 0..more * self.workload.depth {
            list.extend((0..self.queues).map(|queue| Listed { queue, kind, sector, sectors }));
        }
        self.workload.requests = list.len() as u64;
        self.requests = Some(list);
    }
}

/// Whether the kind's opportunity is a life of the target, which it ends.
pub(super) const fn ends_life(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::Kill | FaultKind::PowerLoss)
}

/// Whether the kind's parameter is a moment.
const fn is_timed(kind: FaultKind) -> bool {
    matches!(
        kind,
        FaultKind::Kill
            | FaultKind::PowerLoss
            | FaultKind::Disconnect
            | FaultKind::GuestReset
            | FaultKind::LateWrite
            | FaultKind::DiskSlow
    )
}
