//! Inflight tracking: which requests a dead life of the target had taken and not given back.
//!
//! The algorithms are those of the vhost-user specification, "Inflight I/O tracking", one for each layout of ring; the
//! region lies in memory that the front-end keeps. Every store is a point where the process may die; recovery itself
//! may die at any of its stores and is then begun again from what is there.
//!
//! The region may be full of garbage after someone else's bug. What the algorithm cannot have left there is refused
//! ([`InflightError`]), never guessed at.
//!
//! Each store is a Release store: on x86 a plain one, kept in program order by the processor and the compiler. A dead
//! process's stores reach memory in that order, which is all that recovery relies on.

pub mod packed;
mod split;

pub use split::{Recovered, SplitInflight, queue_region_len};

use crate::reached::Reached;
use core::fmt;
use core::sync::atomic::Ordering::Release;
use runtime::Window;

/// Each queue's part begins at a multiple of this many bytes: what DPDK and SPDK lay out (`INFLIGHT_ALIGNMENT`); the
/// specification is silent.
const ALIGNMENT: u64 = 64;
/// The only version of the layouts; 0 is a region that was never used.
const VERSION: u16 = 1;

/// What both layouts begin with: `u64 features; u16 version; u16 desc_num`.
mod header {
    pub(super) const FEATURES: u64 = 0;
    pub(super) const VERSION: u64 = 8;
    pub(super) const DESC_NUM: u64 = 10;
}

/// What the algorithm cannot have left in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflightError {
    /// The part is too short for the ring, or misaligned.
    Area,
    /// A version that is neither 0 nor 1.
    Version(u16),
    /// It tracks a ring of another size.
    Size {
        /// What the region says.
        found: u16,
        /// The ring's size.
        ring: u16,
    },
    /// Split: the used index moved further past the region's than the ring is long.
    Batch(u16),
    /// Split: the list of the last batch leaves the table or meets itself.
    BatchList(u16),
    /// An inflight flag that is neither 0 nor 1.
    Flag {
        /// The descriptor.
        head: u16,
        /// What was found.
        found: u8,
    },
    /// Two requests with the same counter, or one at the counter's end.
    Counter(u64),
    /// Packed: a used position outside of the ring, or a wrap counter that is neither 0 nor 1.
    Position(u16),
    /// Packed: the list of free entries leaves the table or meets itself.
    FreeList(u16),
    /// Packed: the entries of a request leave the table, or are another's or free.
    Request(u16),
    /// Packed: entries that are neither free nor a request's.
    Entries(u16),
}

impl fmt::Display for InflightError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("inflight region: ")?;
        match self {
            Self::Area => f.write_str("too short for the ring, or misaligned"),
            Self::Version(found) => write!(f, "version {found}, expected {VERSION}"),
            Self::Size { found, ring } => write!(f, "tracks a ring of {found} entries, this one has {ring}"),
            Self::Batch(count) => write!(f, "the last batch would have {count} entries, more than the ring"),
            Self::BatchList(at) => write!(f, "the list of the last batch is broken at {at}"),
            Self::Flag { head, found } => write!(f, "flag {found} at {head} is neither 0 nor 1"),
            Self::Counter(counter) => write!(f, "counter {counter} cannot be"),
            Self::Position(index) => write!(f, "the used position {index} is not one of the ring"),
            Self::FreeList(at) => write!(f, "the list of free entries is broken at {at}"),
            Self::Request(head) => write!(f, "the entries of the request at {head} are not its own"),
            Self::Entries(count) => write!(f, "{count} entries are neither free nor a request's"),
        }
    }
}

impl InflightError {
    /// The point that it is.
    pub(super) const fn reached(self) -> Reached {
        match self {
            Self::Area => Reached::RegionArea,
            Self::Version(_) => Reached::RegionVersion,
            Self::Size { .. } => Reached::RegionSize,
            Self::Batch(_) => Reached::RegionBatch,
            Self::BatchList(_) => Reached::RegionBatchList,
            Self::Flag { .. } => Reached::RegionFlag,
            Self::Counter(_) => Reached::RegionCounter,
            Self::Position(_) => Reached::RegionPosition,
            Self::FreeList(_) => Reached::RegionFreeList,
            Self::Request(_) => Reached::RegionRequest,
            Self::Entries(_) => Reached::RegionEntries,
        }
    }
}

/// Ends the tracking of a ring that was drained and stopped because the front-end asked so. Nothing of it may be
/// replayed into what the ring becomes next, and the region's used index need not fit that ring: the part is as if it
/// was never used.
pub fn retire<W: Window>(region: &W) {
    region.store_u16(header::VERSION, 0, Release);
}
