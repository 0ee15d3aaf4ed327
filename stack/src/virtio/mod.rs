//! Virtio as a device sees it: guest memory, split virtqueues, the inflight region that outlives the process, and the
//! block device that stands on them. Sections are those of the Virtual I/O Device specification 1.3 unless said.

mod bell;
pub mod blk;
mod chain;
pub mod inflight;
pub mod log;
pub mod memory;
pub mod packed;
mod ring;
pub mod split;

pub use ring::{Layout, LogAddresses};

/// Feature bits that belong to the transport and the rings (section 6).
pub mod features {
    /// Set by a vhost-user front-end while it migrates: log every write (vhost-user specification, "Migration").
    pub const LOG_ALL: u64 = 1 << 26;
    /// Legacy: the driver may frame requests as it likes; always true of version 1.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `used_event` and `avail_event` suppress notifications.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user protocol features are understood (vhost-user specification, "Protocol features").
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Version 1 of the specification, not legacy.
    pub const VERSION_1: u64 = 1 << 32;
    /// Packed virtqueues instead of split ones.
    pub const RING_PACKED: u64 = 1 << 34;
}
