//! The NVMe driver's bench: a reactor's platform, a small controller in memory, and a clock that the test winds.
//!
//! The controller ([`fake`]) shares the wire structures with the driver and no more; it does what a test tells it, at once
//! or not at all. (The simulator's controller is another, larger thing.)

pub mod fake;
pub mod rig;
