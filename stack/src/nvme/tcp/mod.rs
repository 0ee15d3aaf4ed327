//! NVMe over TCP: the target's side (NVMe/TCP Transport Specification 1.0; "TCP" stands before its sections).
//!
//! A [`front::Front`] listens, agrees with each host on a connection and takes its Connect command. It then hands the
//! connection over to the [`group::Group`] of a core, round robin, where it stays: a [`connection::Connection`] with one
//! queue. What is configured comes as a [`Wanted`] whole, and goes to all cores as one immutable directory.
//!
//! Hosts are strangers. A PDU that cannot be believed ends its connection with a termination request that says where it is
//! wrong; a command that cannot be is answered with its status. Memory, time in a poll and what waits are bounded for each
//! connection, so that one of them is no burden to the others.

mod arena;
mod connection;
mod digest;
mod front;
mod group;
mod handshake;
mod outbox;
mod pdu;
mod receive;
mod send;
mod slots;

pub use arena::ArenaSizes;
pub use front::{Front, Order, Report, Wanted};

use super::controller::Limits;

/// Most bytes of one command's data.
pub const TRANSFER_BYTES_MAX: u32 = 128 << 10;
/// Most bytes of data in one PDU to the controller: any transfer.
const H2C_DATA_MAX: u32 = TRANSFER_BYTES_MAX;
/// Most bytes of data in a capsule. For admin and fabrics commands the specification has no less (TCP 3.3.2).
const CAPSULE_DATA_MAX: u32 = 8192;
/// Most entries of a queue.
const QUEUE_ENTRIES_MAX: u16 = 128;
/// Most I/O queues of a controller.
const IO_QUEUES_MAX: u16 = 64;

/// What controllers over TCP may do.
const LIMITS: Limits = Limits {
    queue_entries: QUEUE_ENTRIES_MAX,
    io_queues: IO_QUEUES_MAX,
    transfer_bytes: TRANSFER_BYTES_MAX,
    capsule_bytes: CAPSULE_DATA_MAX,
};

/// What the two ends of a connection agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Agreed {
    /// PDU headers have digests.
    header_digest: bool,
    /// Data has digests.
    data_digest: bool,
    /// Data to the host begins at a multiple of so many bytes of its PDU.
    host_alignment: usize,
}
