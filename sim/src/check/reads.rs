//! Reads return the last acknowledged write or one concurrent with the read, sector by sector.
//!
//! Every sector that a read brings carries the stamp of the write that left it (`guest::stamp`), so that the checker
//! can tell which write it sees: lost, late, repeated, misplaced and torn writes all show as a stamp that this sector
//! cannot have at this moment. The first read of a sector after a power loss is `durability`'s to judge.

use super::Verdict;
use super::history::History;
use super::observation::Observation;

/// The checker.
#[derive(Debug, Default)]
pub struct Reads {
    evaluations: u64,
}

impl Reads {
    pub(super) fn observe(&mut self, history: &History, observation: &Observation<'_>) -> Verdict {
        if let Observation::Read { id, sector, content } = *observation
            && !history.lost_power(sector)
        {
            self.evaluations += 1;
            return history.judge(id, sector, content);
        }
        Ok(())
    }

    /// Sectors judged.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }
}
