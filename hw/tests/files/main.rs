//! Payload files and their channels on this host's own file systems: what a channel did is looked at through the
//! standard library, and what it shall read is written through it. Every test runs with both engines.

mod channel;
mod errors;
mod fence;
mod sleep;
mod support;
