//! Independent clients and judges of the target, for the end to end tests in `tests/`.
//!
//! The clients share no code with `stack`, `hw` or `sim`: a misreading of a specification must not be able to hide by
//! being made twice. (`operator` and `console` speak over the simulator's sockets, and know nothing else of it.)

pub mod binaries;
pub mod client;
pub mod conformance;
pub mod console;
pub mod core;
pub mod flat;
pub mod image;
pub mod message;
pub mod nvme;
pub mod operator;
pub mod peer;
pub mod target;
pub mod vhost;
pub mod vm;
