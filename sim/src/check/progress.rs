//! After the faults stop, the world converges: whatever is out then, and whatever is submitted later, completes within
//! a bounded virtual time. (A world in which nothing is runnable and something is still out is *stuck*, which the
//! scheduler reports by itself.)

use super::Verdict;
use super::observation::Observation;
use runtime::Instant;

/// The checker.
#[derive(Debug)]
pub struct Progress {
    bound_ns: u64,
    healed: Option<Instant>,
    evaluations: u64,
}

impl Progress {
    pub(super) fn new(bound_ns: u64) -> Self {
        Self { bound_ns, healed: None, evaluations: 0 }
    }

    pub(super) fn observe(&mut self, at: Instant, observation: &Observation<'_>) -> Verdict {
        match *observation {
            Observation::Healed => self.healed = Some(at),
            Observation::Completed { id, queue, submitted_at, .. } => {
                let Some(healed) = self.healed else { return Ok(()) };
                self.evaluations += 1;
                let waited_ns = at.since_ns(submitted_at.max(healed));
                if waited_ns > self.bound_ns {
                    return Err(format!(
                        "queue {queue}, request {id} took {waited_ns} ns in a world without faults; the bound is {} ns",
                        self.bound_ns
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Completions judged.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }
}
