//! After the faults stop, the world converges: whatever is out then, and whatever is submitted later, completes within
//! a bounded virtual time. A completion that comes later is judged when it comes, and a request that never completes when
//! its time is over. (While faults strike nobody is held to a time; a world that stands still then is *stuck*, which the
//! supervisor says.)

use super::Verdict;
use super::observation::{Observation, RequestId};
use runtime::Instant;
use std::collections::BTreeMap;

/// The checker.
#[derive(Debug)]
pub struct Progress {
    bound_ns: u64,
    healed: Option<Instant>,
    /// What is out, the oldest first: its queue, and when it was submitted.
    out: BTreeMap<RequestId, (u16, Instant)>,
    evaluations: u64,
}

impl Progress {
    pub(super) fn new(bound_ns: u64) -> Self {
        Self { bound_ns, healed: None, out: BTreeMap::new(), evaluations: 0 }
    }

    pub(super) fn observe(&mut self, at: Instant, observation: &Observation<'_>) -> Verdict {
        match *observation {
            Observation::Healed => self.healed = Some(at),
            Observation::Submitted { id, queue, .. } => {
                self.out.insert(id, (queue, at));
            }
            Observation::Completed { id, queue, submitted_at, .. } => {
                self.out.remove(&id);
                let Some(waited_ns) = self.waited_ns(at, submitted_at) else { return Ok(()) };
                self.evaluations += 1;
                if waited_ns > self.bound_ns {
                    return Err(self.late(queue, id, "took", waited_ns));
                }
            }
            Observation::QueueReady { queue, .. } => self.out.retain(|_, (of, _)| *of != queue),
            Observation::DeviceReset | Observation::PowerLost => self.out.clear(),
            _ => {}
        }
        Ok(())
    }

    /// Judges what is out, at any moment.
    pub(super) fn look(&self, at: Instant) -> Verdict {
        let Some((id, (queue, submitted_at))) = self.out.first_key_value() else { return Ok(()) };
        match self.waited_ns(at, *submitted_at) {
            Some(waited_ns) if waited_ns > self.bound_ns => {
                Err(self.late(*queue, *id, "is out after", waited_ns))
            }
            _ => Ok(()),
        }
    }

    /// How long a request has waited in a world without faults; `None` while there are some.
    fn waited_ns(&self, at: Instant, submitted_at: Instant) -> Option<u64> {
        self.healed.map(|healed| at.since_ns(submitted_at.max(healed)))
    }

    fn late(&self, queue: u16, id: RequestId, what: &str, waited_ns: u64) -> String {
        let bound_ns = self.bound_ns;
        format!(
            "queue {queue}, request {id} {what} {waited_ns} ns in a world without faults; the bound is {bound_ns} ns"
        )
    }

    /// Completions judged.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }
}
