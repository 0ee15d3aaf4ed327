//! Nothing is left behind: when a guest is quiet at the end of a run, all its descriptors are free, it waits for no
//! request, and the inflight region agrees that nothing is in flight.

use super::Verdict;
use super::observation::Observation;

/// The checker.
#[derive(Debug, Default)]
pub struct Leaks {
    /// By queue: how many entries it has.
    sizes: Vec<u16>,
    evaluations: u64,
}

impl Leaks {
    pub(super) fn observe(&mut self, observation: &Observation<'_>) -> Verdict {
        match *observation {
            Observation::QueueReady { queue, size, .. } => {
                let queue = usize::from(queue);
                if self.sizes.len() <= queue {
                    self.sizes.resize(queue + 1, 0);
                }
                self.sizes[queue] = size;
            }
            Observation::DeviceReset | Observation::PowerLost => self.sizes.clear(),
            Observation::QueueQuiet { queue, free, outstanding, tracked } => {
                self.evaluations += 1;
                let size = self.sizes[usize::from(queue)];
                if outstanding != 0 {
                    return Err(format!("queue {queue}: {outstanding} requests never completed"));
                }
                if free != size {
                    return Err(format!(
                        "queue {queue}: {free} of {size} descriptors are free, and none is in use"
                    ));
                }
                match tracked {
                    Some((left, _)) if left != 0 => {
                        return Err(format!(
                            "queue {queue}: the inflight region still marks {left} entries as in flight"
                        ));
                    }
                    Some((_, false)) => {
                        return Err(format!(
                            "queue {queue}: the inflight region's used index is not the ring's, and nothing is out"
                        ));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Queues judged.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }
}
