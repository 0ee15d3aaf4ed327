//! After a power loss everything is there that was acknowledged before a flush was submitted which then succeeded, or
//! that was acknowledged while the device wrote through. Other writes may be there or not, whole sectors of them, and
//! nothing else may be.
//!
//! Judged at the first read of each sector after the loss; what that read finds is then taken to be on the medium.

use super::Verdict;
use super::history::History;
use super::observation::Observation;

/// The checker.
#[derive(Debug, Default)]
pub struct Durability {
    evaluations: u64,
}

impl Durability {
    pub(super) fn observe(&mut self, history: &History, observation: &Observation<'_>) -> Verdict {
        if let Observation::Read { id, sector, content } = *observation
            && history.lost_power(sector)
        {
            self.evaluations += 1;
            return history
                .judge(id, sector, content)
                .map_err(|text| format!("after the power loss, {text}"));
        }
        Ok(())
    }

    /// Sectors judged.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }
}
