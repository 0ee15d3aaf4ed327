//! The inflight region as a front-end keeps it, and what there is to see in it: the layouts are those of the vhost-user
//! specification ("Inflight I/O tracking"), read anew.

use crate::memory::SimWindow;
use crate::world;
use runtime::Window;
use std::sync::atomic::Ordering::Relaxed;

/// Alignment of a queue's part.
const ALIGNMENT: u64 = 64;
/// Offset of the version in a part of either layout; 0: never used.
const VERSION: u64 = 8;

/// Bytes of `QueueRegionSplit` before its entries, and of an entry; of `QueueRegionPacked`.
const SPLIT_BYTES: (u64, u64) = (16, 16);
const PACKED_BYTES: (u64, u64) = (32, 32);

/// Offset of `used_idx`.
const SPLIT_USED: u64 = 14;

/// Offset of `used_idx`.
const PACKED_USED: u64 = 16;
/// Offset of `used_wrap_counter`.
const PACKED_USED_WRAP: u64 = 20;

/// The region, as the front-end keeps it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inflight {
    pub(super) object: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
    pub(super) queues: u16,
    pub(super) queue_size: u16,
    /// The layout that it was asked for.
    pub(super) packed: bool,
}

/// The part of one queue.
pub(super) struct Part {
    window: SimWindow,
    entries: u64,
    packed: bool,
}

const fn bytes(packed: bool) -> (u64, u64) {
    if packed { PACKED_BYTES } else { SPLIT_BYTES }
}

impl Inflight {
    /// The part of a queue, if the region has it.
    pub(super) fn part(&self, queue: u16) -> Option<Part> {
        let (header, entry) = bytes(self.packed);
        let entries = u64::from(self.queue_size);
        let len = (header + entries * entry).next_multiple_of(ALIGNMENT);
        let region: SimWindow = world::with(|world| world.window_onto(self.object));
        let window = region.slice(self.offset + len * u64::from(queue), len)?;
        Some(Part { window, entries, packed: self.packed })
    }
}

impl Part {
    /// Entries that are marked: each stands for a request in flight.
    pub(super) fn marked(&self) -> u16 {
        let (header, entry) = bytes(self.packed);
        let is_marked = |index: &u64| self.window.load_u8(header + index * entry, Relaxed) != 0;
        (0..self.entries).filter(is_marked).count() as u16
    }

    /// The used index, or the used position with its wrap counter as the highest bit. A ring that never took a request has
    /// none.
    pub(super) fn used(&self) -> Option<u16> {
        if self.window.load_u16(VERSION, Relaxed) == 0 {
            return None;
        }
        Some(if self.packed {
            let wrap = u16::from(self.window.load_u8(PACKED_USED_WRAP, Relaxed));
            self.window.load_u16(PACKED_USED, Relaxed) | wrap << 15
        } else {
            self.window.load_u16(SPLIT_USED, Relaxed)
        })
    }
}
