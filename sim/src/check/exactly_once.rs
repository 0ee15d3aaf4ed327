//! Every request completes exactly once.
//!
//! A used element must name the head of a chain that the device has; the same head again before it was made available
//! again is a double completion, which in a real guest kernel is memory corruption. Requests that never complete are
//! found by `stuck`, which is the run itself, and by `progress`.

use super::Verdict;
use super::observation::{Observation, RequestId};

/// The checker.
#[derive(Debug, Default)]
pub struct ExactlyOnce {
    /// By queue and head: who has the chain, and who had it last.
    queues: Vec<Vec<Slot>>,
    evaluations: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    out: Option<RequestId>,
    last: Option<RequestId>,
}

impl ExactlyOnce {
    pub(super) fn observe(&mut self, observation: &Observation<'_>) -> Verdict {
        match *observation {
            Observation::QueueReady { queue, size, .. } => {
                let queue = usize::from(queue);
                if self.queues.len() <= queue {
                    self.queues.resize_with(queue + 1, Vec::new);
                }
                self.queues[queue].clear();
                self.queues[queue].resize(usize::from(size), Slot::default());
            }
            Observation::Submitted { id, queue, head, .. } => {
                let slot = &mut self.queues[usize::from(queue)][usize::from(head)];
                assert!(slot.out.is_none(), "the guest itself made head {head} available twice");
                slot.out = Some(id);
            }
            Observation::Used { queue, index, id, .. } => {
                self.evaluations += 1;
                let slots = &mut self.queues[usize::from(queue)];
                let Some(slot) = usize::try_from(id).ok().and_then(|head| slots.get_mut(head)) else {
                    return Err(format!(
                        "queue {queue}, used element {index}: id {id} is not a descriptor of a ring of {} entries",
                        slots.len()
                    ));
                };
                let Some(out) = slot.out.take() else {
                    return Err(match slot.last {
                        Some(last) => format!(
                            "queue {queue}, used element {index}: head {id} completed again; request {last} had it and \
                             has already completed"
                        ),
                        None => format!(
                            "queue {queue}, used element {index}: id {id} is the head of no request that was ever made \
                             available"
                        ),
                    });
                };
                slot.last = Some(out);
            }
            Observation::DeviceReset | Observation::PowerLost => self.queues.clear(),
            _ => {}
        }
        Ok(())
    }

    /// Used elements judged.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }
}
