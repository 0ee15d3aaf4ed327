//! The split virtqueue (section 2.7) as the device side runs it, over windows.
//!
//! The driver is a stranger: each field that it writes is read once, checked, and only then used. What can go wrong:
//! an available index that jumped further than the ring is long, and a head that is not in the table; both end the
//! ring ([`RingError`]), since nothing after them can be believed. A malformed *chain* is another matter (`chain`).
//!
//! Three orders matter, each with its pair on the driver's side:
//! - the available index is loaded with Acquire: the ring entries and descriptors below it are then visible (pairs
//!   with the driver's write barrier before it publishes the index, section 2.7.13.3);
//! - the used index is stored with Release after the entries (pairs with the driver's read barrier after it reads the
//!   index, section 2.7.14);
//! - "publish, then look whether to notify" and "ask for notifications, then look for work" each need a full fence,
//!   because a store followed by a load of another location is the one order that x86 does not keep.

use crate::reached::Reached;
use core::fmt;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use runtime::Window;

/// Most entries of a split virtqueue (section 2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Bytes of one descriptor (section 2.7.5).
pub const DESCRIPTOR_SIZE: u64 = 16;
/// Bytes before the ring in the available and in the used area: flags and index.
const RING_OFFSET: u64 = 4;
/// Where the index stands in both areas.
const INDEX_OFFSET: u64 = 2;
/// Bytes of one entry of the used ring: id and length.
const USED_ENTRY_SIZE: u64 = 8;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver wants no notification of used buffers.
const AVAIL_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`: the device wants no notification of available buffers.
const USED_NO_NOTIFY: u16 = 1;

/// Bytes of the descriptor table of a ring of `size`.
#[must_use]
pub const fn descriptor_table_len(size: u16) -> u64 {
    DESCRIPTOR_SIZE * size as u64
}

/// Bytes of the available area, `used_event` included.
#[must_use]
pub const fn available_len(size: u16) -> u64 {
    RING_OFFSET + 2 * size as u64 + 2
}

/// Bytes of the used area, `avail_event` included.
#[must_use]
pub const fn used_len(size: u16) -> u64 {
    RING_OFFSET + USED_ENTRY_SIZE * size as u64 + 2
}

/// Why a ring cannot go on, or cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The size is 0, no power of two, or more than [`MAX_QUEUE_SIZE`].
    Size(u16),
    /// An area is too short or not aligned as section 2.7 asks (descriptors 16, available 2, used 4 bytes).
    Area(&'static str),
    /// The available index is further ahead than the ring has entries.
    AvailableJump {
        /// The next index that the device would take.
        next: u16,
        /// The index found.
        found: u16,
    },
    /// The available ring names a head that is not in the table.
    Head {
        /// The head found.
        head: u16,
        /// The ring's size.
        size: u16,
    },
    /// The available ring names a head that the device has not given back yet.
    HeadInFlight(u16),
    /// What is no place to go on at: packed, positions that are not in the ring or further apart than it is long; split,
    /// a used index, which the ring itself has.
    Base {
        /// The next available index, or position as bits.
        available: u16,
        /// The next used position, as bits.
        used: u16,
    },
    /// Packed: the driver made more descriptors available than the ring of this size has places.
    Overrun(u16),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => {
                write!(f, "ring size {size} is not a power of two from 1 to {MAX_QUEUE_SIZE}")
            }
            Self::Area(area) => write!(f, "the {area} area is too short or misaligned"),
            Self::AvailableJump { next, found } => {
                write!(f, "the available index jumped from {next} to {found}, further than the ring is long")
            }
            Self::Head { head, size } => write!(f, "head {head} is not in the table of {size} descriptors"),
            Self::HeadInFlight(head) => write!(f, "head {head} was made available while still in flight"),
            Self::Base { available, used } => {
                write!(f, "a ring cannot go on at available {available:#06x}, used {used:#06x}")
            }
            Self::Overrun(size) => write!(f, "more descriptors were made available than the ring's {size}"),
        }
    }
}

impl RingError {
    /// The point that it is.
    pub(super) const fn reached(self) -> Reached {
        match self {
            Self::Size(_) => Reached::RingSize,
            Self::Area(_) => Reached::RingArea,
            Self::AvailableJump { .. } => Reached::RingAvailableJump,
            Self::Head { .. } => Reached::RingHead,
            Self::HeadInFlight(_) => Reached::RingHeadInFlight,
            Self::Base { .. } => Reached::RingBase,
            Self::Overrun(_) => Reached::RingOverrun,
        }
    }
}

/// One descriptor, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address of the buffer.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// `NEXT` 1, `WRITE` 2, `INDIRECT` 4.
    pub flags: u16,
    /// The next descriptor's index, with `NEXT`.
    pub next: u16,
}

impl Descriptor {
    /// Another descriptor follows.
    pub const NEXT: u16 = 1;
    /// The device writes the buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;

    /// Reads the descriptor at `index` of a table; each byte once.
    #[inline]
    pub fn load<W: Window>(table: &W, index: u16) -> Self {
        let mut bytes = [0; DESCRIPTOR_SIZE as usize];
        table.read(DESCRIPTOR_SIZE * u64::from(index), &mut bytes);
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// The three areas of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Areas<W> {
    /// The descriptor table.
    pub descriptors: W,
    /// The driver area.
    pub available: W,
    /// The device area.
    pub used: W,
}

impl<W: Window> Areas<W> {
    /// Checks lengths and alignments for a split ring of `size`.
    pub fn check(&self, size: u16) -> Result<(), RingError> {
        self.check_each([
            ("descriptor", descriptor_table_len(size), 16),
            ("available", available_len(size), 2),
            ("used", used_len(size), 4),
        ])
    }

    /// Checks the three areas, each by its name in errors, its least length and its alignment in bytes.
    pub(super) fn check_each(&self, needed: [(&'static str, u64, u64); 3]) -> Result<(), RingError> {
        let windows = [&self.descriptors, &self.available, &self.used];
        for (window, (name, len, alignment)) in windows.into_iter().zip(needed) {
            if window.len() < len || !window.is_aligned(alignment) {
                return Err(RingError::Area(name));
            }
        }
        Ok(())
    }
}

/// The device's side of a split virtqueue.
#[derive(Debug)]
pub struct SplitRing<W> {
    areas: Areas<W>,
    size: u16,
    event_idx: bool,
    /// The next available index to take.
    next_available: u16,
    /// The available index as last loaded; entries below it may be taken without looking again.
    available_seen: u16,
    /// Used entries written, published or not.
    used_written: u16,
    /// The used index in memory.
    used_published: u16,
    /// Whether the driver was asked to notify.
    notifications_on: bool,
}

impl<W: Window> SplitRing<W> {
    /// A ring that goes on at `next_available`. The used index is the one in memory: the device is the only one that
    /// writes it, so it is what the dead life of the device left there.
    pub fn new(areas: Areas<W>, size: u16, event_idx: bool, next_available: u16) -> Result<Self, RingError> {
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(RingError::Size(size));
        }
        areas.check(size)?;
        let used = areas.used.load_u16(INDEX_OFFSET, Relaxed);
        Ok(Self {
            areas,
            size,
            event_idx,
            next_available,
            available_seen: next_available,
            used_written: used,
            used_published: used,
            notifications_on: true,
        })
    }

    /// Number of entries.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// The next available index that will be taken.
    #[must_use]
    pub const fn next_available(&self) -> u16 {
        self.next_available
    }

    /// The used index in memory.
    #[must_use]
    pub const fn used_index(&self) -> u16 {
        self.used_published
    }

    /// The descriptor table.
    #[must_use]
    pub const fn descriptors(&self) -> &W {
        &self.areas.descriptors
    }

    /// Moves the ring to other windows onto the same memory (the front-end described its memory anew).
    pub fn rebase(&mut self, areas: Areas<W>) -> Result<(), RingError> {
        areas.check(self.size)?;
        self.areas = areas;
        Ok(())
    }

    /// Takes the next available head, if there is one.
    #[inline]
    pub fn take(&mut self) -> Result<Option<u16>, RingError> {
        if self.next_available == self.available_seen && !self.look()? {
            return Ok(None);
        }
        let slot = u64::from(self.next_available & (self.size - 1));
        let head = self.areas.available.load_u16(RING_OFFSET + 2 * slot, Relaxed);
        if head >= self.size {
            return Err(RingError::Head { head, size: self.size });
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// Whether the available index can be the driver's of this ring: at most a ring's length ahead of what was taken.
    pub fn check_available(&mut self) -> Result<(), RingError> {
        self.look().map(|_| ())
    }

    /// Loads the available index; whether there are entries to take.
    #[inline]
    fn look(&mut self) -> Result<bool, RingError> {
        // Acquire: pairs with the driver's write barrier between the ring entry and the index.
        let found = self.areas.available.load_u16(INDEX_OFFSET, Acquire);
        if found.wrapping_sub(self.next_available) > self.size {
            return Err(RingError::AvailableJump { next: self.next_available, found });
        }
        self.available_seen = found;
        Ok(found != self.next_available)
    }

    /// Writes a used entry; the driver sees it after [`SplitRing::publish`].
    #[inline]
    pub fn push_used(&mut self, head: u16, len: u32) {
        let entry = RING_OFFSET + USED_ENTRY_SIZE * u64::from(self.used_written & (self.size - 1));
        self.areas.used.store_u32(entry, u32::from(head), Relaxed);
        self.areas.used.store_u32(entry + 4, len, Relaxed);
        self.used_written = self.used_written.wrapping_add(1);
    }

    /// Used entries written and not published.
    #[inline]
    #[must_use]
    pub const fn unpublished(&self) -> u16 {
        self.used_written.wrapping_sub(self.used_published)
    }

    /// Publishes the used entries written so far. Returns the used index from before.
    #[inline]
    pub fn publish(&mut self) -> u16 {
        let before = self.used_published;
        self.used_published = self.used_written;
        // Release: pairs with the driver's read barrier between the used index and the entries.
        self.areas.used.store_u16(INDEX_OFFSET, self.used_published, Release);
        before
    }

    /// Whether the driver wants to be told of what was published since the used index was `before` (section 2.7.7.2).
    #[inline]
    #[must_use]
    pub fn wants_notification(&self, before: u16) -> bool {
        // The used index must be visible before the driver's wish is read: pairs with the driver's full barrier
        // between writing used_event (or flags) and looking at the used index again.
        W::fence(SeqCst);
        if self.event_idx {
            let event = self.areas.available.load_u16(RING_OFFSET + 2 * u64::from(self.size), Relaxed);
            crossed(event, self.used_published, before)
        } else {
            self.areas.available.load_u16(0, Relaxed) & AVAIL_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver to notify from now on, and looks again; whether there is work after all.
    pub fn enable_notifications(&mut self) -> Result<bool, RingError> {
        self.notifications_on = true;
        if self.event_idx {
            self.areas.used.store_u16(self.wish().0, self.next_available, Relaxed);
        } else {
            self.areas.used.store_u16(self.wish().0, 0, Relaxed);
        }
        // The wish must be visible before the index is read: pairs with the driver's full barrier between publishing
        // the available index and reading avail_event (or flags), section 2.7.13.4.1.
        W::fence(SeqCst);
        self.look()
    }

    /// Asks the driver not to notify: the ring is polled. With `EVENT_IDX` nothing need be written: an `avail_event`
    /// left behind is crossed once in 65536 buffers. Whether something was written.
    #[inline]
    pub fn disable_notifications(&mut self) -> bool {
        let writes = self.notifications_on && !self.event_idx;
        self.notifications_on = false;
        if writes {
            self.areas.used.store_u16(self.wish().0, USED_NO_NOTIFY, Relaxed);
        }
        writes
    }

    /// Where in the used area the wish to be notified stands (flags or `avail_event`), and its bytes, for the dirty log.
    #[must_use]
    pub const fn wish(&self) -> (u64, u64) {
        (if self.event_idx { RING_OFFSET + USED_ENTRY_SIZE * self.size as u64 } else { 0 }, 2)
    }

    /// The byte ranges of the used area that were published since the used index was `before`, for the dirty log: the
    /// index, and the entries, in two runs where they wrap.
    pub fn written_since(&self, before: u16) -> impl Iterator<Item = (u64, u64)> {
        let count = u64::from(self.used_published.wrapping_sub(before));
        let first = u64::from(before & (self.size - 1));
        let until_wrap = count.min(u64::from(self.size) - first);
        [
            (INDEX_OFFSET, 2),
            (RING_OFFSET + USED_ENTRY_SIZE * first, USED_ENTRY_SIZE * until_wrap),
            (RING_OFFSET, USED_ENTRY_SIZE * (count - until_wrap)),
        ]
        .into_iter()
        .filter(|(_, len)| *len > 0)
    }
}

/// Whether an index that moved from `old` to `new` crossed `event` (`vring_need_event`, section 2.7.7.1).
#[inline]
pub(super) const fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::crossed;

    #[test]
    fn an_event_is_crossed_exactly_when_it_lies_in_the_batch() {
        assert!(crossed(5, 6, 5));
        assert!(!crossed(6, 6, 5));
        assert!(!crossed(4, 6, 5));
        assert!(crossed(0xffff, 0, 0xffff));
        assert!(crossed(0xfffe, 2, 0xfff0));
        assert!(!crossed(2, 2, 0xfff0));
    }
}
