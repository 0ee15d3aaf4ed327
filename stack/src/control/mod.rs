//! The control path: JSON-RPC as SPDK's own client speaks it, the calls, and what the target was asked to be.
//!
//! Everything here lives on the first core and may allocate; none of it is on the way of an I/O.

pub mod answers;
pub mod calls;
pub mod config;
pub mod cpumask;
pub mod error;
pub mod json_rpc;
pub mod nvmf;
pub mod params;
pub mod server;
pub mod state;
