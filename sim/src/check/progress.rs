//! After the faults stop, the world converges: whatever is out then, and whatever is submitted later, completes within
//! a bounded virtual time. A completion that comes later is judged when it comes, and a request that never completes when
//! its time is over. (While faults strike nobody is held to a time; a world that stands still then is *stuck*, which the
//! supervisor says.)

use super::Verdict;
use super::observation::{Observation, RequestId};
use runtime::Instant;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
struct Out {
    id: RequestId,
    queue: u16,
    submitted_at: Instant,
    ended: bool,
}

/// The checker.
#[derive(Debug)]
pub struct Progress {
    bound_ns: u64,
    healed: Option<Instant>,
    /// What is out, the oldest first, and what has ended since; the first one is out.
    out: VecDeque<Out>,
    evaluations: u64,
}

impl Progress {
    pub(super) fn new(bound_ns: u64) -> Self {
        Self { bound_ns, healed: None, out: VecDeque::new(), evaluations: 0 }
    }

    pub(super) fn observe(&mut self, at: Instant, observation: &Observation<'_>) -> Verdict {
        match *observation {
            Observation::Healed => self.healed = Some(at),
            Observation::Submitted { id, queue, .. } => {
                self.out.push_back(Out { id, queue, submitted_at: at, ended: false });
            }
            Observation::Completed { id, queue, submitted_at, .. } => {
                self.end(id);
                let Some(waited_ns) = self.waited_ns(at, submitted_at) else { return Ok(()) };
                self.evaluations += 1;
                if waited_ns > self.bound_ns {
                    return Err(self.late(queue, id, "took", waited_ns));
                }
            }
            Observation::QueueReady { queue, .. } => {
                self.out.retain(|out| out.queue != queue);
                self.forget_ended();
            }
            Observation::DeviceReset | Observation::PowerLost => self.out.clear(),
            _ => {}
        }
        Ok(())
    }

    /// A request has ended. Ids go up: the guest numbers its requests in the order of their submission.
    fn end(&mut self, id: RequestId) {
        if let Ok(at) = self.out.binary_search_by_key(&id, |out| out.id) {
            self.out[at].ended = true;
        }
        self.forget_ended();
    }

    fn forget_ended(&mut self) {
        while self.out.front().is_some_and(|out| out.ended) {
            self.out.pop_front();
        }
    }

    /// Judges what is out, at any moment.
    pub(super) fn look(&self, at: Instant) -> Verdict {
        let Some(Out { id, queue, submitted_at, .. }) = self.out.front().copied() else { return Ok(()) };
        match self.waited_ns(at, submitted_at) {
            Some(waited_ns) if waited_ns > self.bound_ns => {
                Err(self.late(queue, id, "is out after", waited_ns))
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
