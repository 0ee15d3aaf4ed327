//! An NVMe controller as the target plays it for fabrics and for virtual machines: free of any transport.
//!
//! A [`Subsystem`] is what an operator configured: a name, namespaces, the hosts that may come. Cores share it, and all
//! that is configured, as one immutable [`Directory`] that is replaced as a whole. A host that connects gets an
//! [`Association`], the few facts that its queues on different cores share, as atomics. The [`Controller`] behind it lives
//! with its admin queue on one core: properties, admin commands, events, the keep alive timer. I/O commands are decoded
//! ([`decode`]) and carried out on the [`Channels`] of their own core, and meet nothing of other cores.
//!
//! Who moves commands and data (NVMe/TCP, vfio-user) is a stranger's agent: every field of a command is judged here.

mod admin;
mod association;
mod channels;
mod discovery;
mod events;
mod features;
mod identify;
mod io;
mod logs;
mod properties;
mod subsystem;

pub use admin::{Answer, Controller, Executed};
pub use association::Association;
pub use channels::Channels;
pub use discovery::{Directory, Port};
pub use io::{Direction, Plan, deallocation, decode, direction, failure};
pub use subsystem::{Disk, Hosts, Namespace, Subsystem, nqn_is_valid};

use super::bits::Status;

/// What a transport lets its controllers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most entries of an I/O queue.
    pub queue_entries: u16,
    /// Most I/O queues of a controller, at most [`Association::QUEUES_MAX`].
    pub io_queues: u16,
    /// Most bytes of a transfer: a power of two, at least a page.
    pub transfer_bytes: u32,
    /// Most bytes of data in the capsule of an I/O command; a multiple of 16.
    pub capsule_bytes: u32,
}

/// Asynchronous Event Requests that a controller keeps.
pub const EVENT_REQUESTS_MAX: usize = 4;

/// A refusal that the same command will meet again.
#[must_use]
pub const fn refused(status: Status) -> Status {
    status.with_dnr(1)
}
