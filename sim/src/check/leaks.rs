//! Nothing is left behind: when a guest is quiet at the end of a run, the inflight region agrees that nothing is in
//! flight, and the target keeps each of the guest's regions mapped once, and none that was removed or handed over before.
//! (That all descriptors are free then is the guest's own doing, who asserts it.)

use super::Verdict;
use super::observation::Observation;

/// The checker.
#[derive(Debug, Default)]
pub struct Leaks {
    evaluations: u64,
}

impl Leaks {
    pub(super) fn observe(&mut self, observation: &Observation<'_>) -> Verdict {
        match *observation {
            Observation::QueueQuiet { queue, tracked } => {
                self.evaluations += 1;
                match tracked {
                    Some((left, _)) if left != 0 => Err(format!(
                        "queue {queue}: the inflight region still marks {left} entries as in flight"
                    )),
                    Some((_, false)) => Err(format!(
                        "queue {queue}: the inflight region's used index is not the ring's, and nothing is out"
                    )),
                    _ => Ok(()),
                }
            }
            Observation::RegionsKept { mapped, plugged } => {
                self.evaluations += 1;
                if mapped == plugged {
                    return Ok(());
                }
                Err(format!(
                    "the target has {mapped} mappings of the guest's memory, which is {plugged} regions"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Queues and memories judged.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }
}
