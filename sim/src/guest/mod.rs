//! A guest with a virtio-blk driver of its own.
//!
//! The driver is written from the specification and shares nothing with the device in `stack` (two readings, not one
//! misreading twice). It works on simulated guest memory through the store buffers of its own CPUs, one for each queue,
//! and reports everything it does and sees to the checkers. It never resets a device by itself: the front-end
//! (`vmm`) asks for that.
//!
//! What may go wrong with a guest, here: nothing. It is a good driver; what a bad one does is in `hostile`.

pub mod device;
pub mod listed;
pub mod memory;
pub mod packed;
pub mod queue;
pub mod request;
pub mod ring;
pub mod split;
pub mod stamp;
pub mod vm;
pub mod workload;

#[cfg(test)]
mod double;
#[cfg(test)]
mod tests;

use crate::check::Observation;
use runtime::Instant;

/// Who is told what a guest does and sees: the checkers and the log of the run.
pub trait Witness {
    /// Something was seen.
    fn saw(&mut self, observation: &Observation<'_>);
}

/// What a step of an actor came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It did something, and may have more to do.
    Worked,
    /// It has nothing to do until something reaches it, or until the moment given.
    Idle {
        /// When to step again at the latest.
        until: Option<Instant>,
    },
}
