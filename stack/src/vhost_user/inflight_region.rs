//! The inflight region of a device: one shared mapping, a part for each ring ("Inflight I/O tracking").
//!
//! What the parts mean is [`crate::virtio::inflight`]'s business; here the region is made (zeroed, for a front-end that
//! asks for one), or mapped again as the front-end gives it back. A description that does not fit is refused before
//! anything is mapped. A ring keeps the region alive that it was started with, whatever the front-end sets later.
//!
//! Which layout of rings the parts are for follows from the features that the driver has accepted by then, which the
//! specification does not say and QEMU, since version 5.2, makes sure of.
//!
//! Behind the parts of the rings stands what else the device keeps for its next life ([`KEPT_LEN`] bytes). A region of
//! another back-end, which a front-end may bring along, ends before it.

use super::wire::InflightDescription;
use crate::reached::Reached;
use crate::virtio::blk::KEPT_LEN;
use crate::virtio::{Layout, inflight};
use core::fmt;
use runtime::{Access, Handle, Memory, Platform, Window};

/// Why a region is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegionError {
    /// The description promises fewer bytes than its rings need.
    TooSmall {
        /// Bytes promised.
        found: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// It does not begin at a multiple of [`ALIGNMENT`] bytes.
    Misaligned,
    /// The platform cannot make or map it.
    Platform(runtime::Error),
}

impl RegionError {
    /// The point that it is.
    pub(super) const fn reached(self) -> Reached {
        match self {
            Self::TooSmall { .. } => Reached::RegionTooSmall,
            Self::Misaligned => Reached::RegionMisaligned,
            Self::Platform(_) => Reached::RegionNotMapped,
        }
    }
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { found, needed } => {
                write!(f, "the inflight region has {found} bytes, its rings need {needed}")
            }
            Self::Misaligned => {
                write!(f, "the inflight region does not begin at a multiple of {ALIGNMENT} bytes")
            }
            Self::Platform(error) => write!(f, "the inflight region cannot be made or mapped: {error}"),
        }
    }
}

/// The largest field of a region has 8 bytes, so that its parts and all their fields are then aligned.
const ALIGNMENT: u64 = 8;

/// Bytes that the rings of a description need.
fn needed(description: &InflightDescription, layout: Layout) -> u64 {
    layout.inflight_len(description.queue_size) * u64::from(description.num_queues)
}

/// Makes a fresh region for a front-end: its description, and the handle to send. The front-end keeps it and gives it
/// back; until then this process has no use for it.
pub(super) fn create<P: Platform>(
    platform: &P,
    name: &str,
    asked: &InflightDescription,
    layout: Layout,
) -> Result<(InflightDescription, P::Handle), RegionError> {
    let mmap_size = needed(asked, layout) + KEPT_LEN;
    let memory = platform.shared_memory(name, mmap_size).map_err(RegionError::Platform)?;
    let handle = memory.handle().map_err(RegionError::Platform)?;
    Ok((InflightDescription { mmap_size, mmap_offset: 0, ..*asked }, handle))
}

/// A region that the front-end gave.
pub(super) struct InflightRegion<P: Platform> {
    memory: P::Memory,
    num_queues: u16,
    part_len: u64,
    layout: Layout,
}

impl<P: Platform> InflightRegion<P> {
    /// Maps what the rings of the description need, what the device keeps behind them if it is there, and no more.
    pub(super) fn map(
        description: &InflightDescription,
        layout: Layout,
        handle: &P::Handle,
    ) -> Result<Self, RegionError> {
        let (found, needed) = (description.mmap_size, needed(description, layout));
        if found < needed {
            return Err(RegionError::TooSmall { found, needed });
        }
        let len = if found - needed < KEPT_LEN { needed } else { needed + KEPT_LEN };
        let memory =
            handle.map(description.mmap_offset, len, Access::ReadWrite).map_err(RegionError::Platform)?;
        if !memory.window().is_aligned(ALIGNMENT) {
            return Err(RegionError::Misaligned);
        }
        let part_len = layout.inflight_len(description.queue_size);
        Ok(Self { memory, num_queues: description.num_queues, part_len, layout })
    }

    /// The layout of rings that it was made for.
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// The part of a ring; `None` for a ring that the region was not made for.
    pub(super) fn part(&self, ring: u16) -> Option<P::Window> {
        if ring >= self.num_queues {
            return None;
        }
        self.memory.window().slice(self.part_len * u64::from(ring), self.part_len)
    }

    /// What the device keeps behind the rings' parts, where the region is long enough.
    pub(super) fn kept(&self) -> Option<P::Window> {
        self.memory.window().slice(self.part_len * u64::from(self.num_queues), KEPT_LEN)
    }

    /// Ends the tracking of a ring that was drained because the front-end asked so: it has nothing in flight, and if
    /// it starts again, then where the front-end says.
    pub(super) fn retire(&self, ring: u16) {
        if let Some(part) = self.part(ring) {
            Reached::RegionRetired.mark::<P::Window>();
            inflight::retire(&part);
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.memory.is_lost()
    }
}
