//! Hostile neighbours: a guest that builds malformed rings and a front-end that sends malformed messages, each with a
//! controller and a bdev of its own.
//!
//! They have no checkers of their own content; what is judged is the harm that they do to others. The target must not
//! die of them (a panic fails the run), must not spin or stop (the well-behaved guests beside them are held to all that
//! is promised, in time), must not touch the others' memory, and must serve the very controller that was attacked again
//! once a front-end connects that keeps to the rules: each attack ends with a probe of that.

pub mod front_end;
pub mod guest;
mod region;

use crate::check::Observation;
use crate::guest::Witness;

/// Sectors of a neighbour's disk: 12 MiB, so that a transfer may be longer than what the target does at once.
pub const SECTORS: u64 = 24 << 10;

/// A witness that sees nothing: nobody vouches for what a hostile guest finds in its own memory.
#[derive(Clone, Copy, Debug)]
pub struct Blind;

impl Witness for Blind {
    fn saw(&mut self, _: &Observation<'_>) {}
}
