//! The packed virtqueue (section 2.8) as the device side runs it, over windows.
//!
//! One ring of descriptors serves both directions: the driver writes a descriptor as available, the device writes over
//! it as used, and two bits of its flags say whose turn it is, by comparison with a wrap counter that flips each time
//! around. There is no index in memory; where a device stands is its own knowledge ([`Position`]), which a dead life
//! takes along unless an inflight region keeps it (`inflight::packed`).
//!
//! The driver is a stranger: each field that it writes is read once, checked, and only then used. What can go wrong
//! with the ring itself: more descriptors made available than it has places ([`RingError::Overrun`]), a chain without
//! an end among them. A malformed chain is the chain's own business.
//!
//! The orders that matter, each with its pair on the driver's side:
//! - a descriptor's flags are loaded with Acquire: the rest of it, and of its chain, is then visible (pairs with the
//!   driver's write barrier before it writes the flags of the first descriptor, section 2.8.21.1);
//! - the flags of a used descriptor are stored with Release after its id and length (pairs with the driver's read
//!   barrier after it finds them used, section 2.8.22.1);
//! - "publish, then look whether to notify" and "ask for notifications, then look for work" each need a full fence.

use super::split::{Areas, MAX_QUEUE_SIZE, RingError, crossed};
use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use runtime::Window;

/// Bytes of one descriptor (section 2.8.13).
pub const DESCRIPTOR_SIZE: u64 = 16;
/// Bytes of an event suppression structure (section 2.8.14): `le16 off_wrap; le16 flags`.
pub const EVENT_SUPPRESSION_LEN: u64 = 4;

/// Where a descriptor's flags stand in it.
const FLAGS_OFFSET: u64 = 14;

/// `VIRTQ_DESC_F_AVAIL`
const AVAIL: u16 = 1 << 7;
/// `VIRTQ_DESC_F_USED`
const USED: u16 = 1 << 15;

/// `RING_EVENT_FLAGS_ENABLE`: notify always.
const EVENT_ENABLE: u16 = 0;
/// `RING_EVENT_FLAGS_DISABLE`: do not notify.
const EVENT_DISABLE: u16 = 1;
/// `RING_EVENT_FLAGS_DESC`: notify when the given position was passed; with `EVENT_IDX` only.
const EVENT_DESC: u16 = 2;
/// The two bits of a structure's flags that mean something.
const EVENT_MASK: u16 = 3;

/// Bytes of the descriptor ring of `size` places.
#[must_use]
pub const fn descriptor_ring_len(size: u16) -> u64 {
    DESCRIPTOR_SIZE * size as u64
}

/// A place in the ring and the lap in which it is visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The descriptor's index, below the ring's size.
    pub index: u16,
    /// The wrap counter: true on the first lap, then flipping.
    pub wrap: bool,
}

impl Position {
    /// Where a new ring begins.
    pub const START: Self = Self { index: 0, wrap: true };

    /// From the 16 bits that vhost-user and the event suppression structures have for it.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self { index: bits & 0x7fff, wrap: bits >> 15 == 1 }
    }

    /// The same as bits: index, and the wrap counter as bit 15.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.index | (self.wrap as u16) << 15
    }

    /// `count` places further in a ring of `size`, at most once around.
    #[inline]
    #[must_use]
    pub const fn advance(self, count: u16, size: u16) -> Self {
        let index = self.index as u32 + count as u32;
        if index >= size as u32 {
            Self { index: (index - size as u32) as u16, wrap: !self.wrap }
        } else {
            Self { index: index as u16, wrap: self.wrap }
        }
    }

    /// The two bits that a descriptor made available at this position has.
    const fn available_bits(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// Whether flags found at this position say that the driver made the descriptor available on this lap.
    #[inline]
    #[must_use]
    pub const fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == self.available_bits()
    }

    /// How many places `later` is ahead, when it is at most once around. `None`: it is not.
    #[must_use]
    pub const fn distance_to(self, later: Self, size: u16) -> Option<u16> {
        match (self.wrap == later.wrap, later.index as i32 - self.index as i32) {
            (true, ahead) if ahead >= 0 => Some(ahead as u16),
            (false, ahead) if ahead <= 0 => Some((size as i32 + ahead) as u16),
            _ => None,
        }
    }
}

/// One descriptor, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedDescriptor {
    /// Guest physical address of the buffer.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// The driver's name for the request; that of a chain's last descriptor counts.
    pub id: u16,
    /// As the split ring's: `NEXT` 1, `WRITE` 2, `INDIRECT` 4; and whose turn it is.
    pub flags: u16,
}

impl PackedDescriptor {
    /// Reads the descriptor at `index`, whose flags were loaded before.
    #[inline]
    fn load<W: Window>(ring: &W, index: u16, flags: u16) -> Self {
        let mut bytes = [0; FLAGS_OFFSET as usize];
        ring.read(DESCRIPTOR_SIZE * u64::from(index), &mut bytes);
        Self::decode(&bytes, flags)
    }

    #[inline]
    const fn decode(bytes: &[u8; FLAGS_OFFSET as usize], flags: u16) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, i0, i1] = *bytes;
        Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            id: u16::from_le_bytes([i0, i1]),
            flags,
        }
    }

    /// Reads the descriptor at `index` of an indirect table (section 2.8.7): of its flags only `WRITE` means something.
    #[inline]
    pub fn load_indirect<W: Window>(table: &W, index: u16) -> Self {
        let mut bytes = [0; DESCRIPTOR_SIZE as usize];
        table.read(DESCRIPTOR_SIZE * u64::from(index), &mut bytes);
        let [front @ .., f0, f1] = bytes;
        Self::decode(&front, u16::from_le_bytes([f0, f1]))
    }
}

/// The device's side of a packed virtqueue.
#[derive(Debug)]
pub struct PackedRing<W> {
    areas: Areas<W>,
    size: u16,
    event_idx: bool,
    /// The next place to take from.
    next_available: Position,
    /// The next place to give back at.
    next_used: Position,
    /// Descriptors between the two: taken and not given back.
    outstanding: u16,
    /// Whether the driver was asked to notify.
    notifications_on: bool,
}

impl<W: Window> PackedRing<W> {
    /// A ring that goes on where a former device left it. The areas are, in this order, the descriptor ring, the
    /// driver's event suppression and the device's.
    pub fn new(
        areas: Areas<W>,
        size: u16,
        event_idx: bool,
        next_available: Position,
        next_used: Position,
    ) -> Result<Self, RingError> {
        if size == 0 || size > MAX_QUEUE_SIZE {
            return Err(RingError::Size(size));
        }
        check(&areas, size)?;
        let within = next_available.index < size && next_used.index < size;
        let Some(outstanding) = next_used.distance_to(next_available, size).filter(|_| within) else {
            return Err(RingError::Base { available: next_available.bits(), used: next_used.bits() });
        };
        Ok(Self { areas, size, event_idx, next_available, next_used, outstanding, notifications_on: true })
    }

    /// Number of places.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// The place that will be taken from next.
    #[must_use]
    pub const fn next_available(&self) -> Position {
        self.next_available
    }

    /// The place at which the next request will be given back.
    #[must_use]
    pub const fn next_used(&self) -> Position {
        self.next_used
    }

    /// Moves the ring to other windows onto the same memory (the front-end described its memory anew).
    pub fn rebase(&mut self, areas: Areas<W>) -> Result<(), RingError> {
        check(&areas, self.size)?;
        self.areas = areas;
        Ok(())
    }

    /// Takes the next request's descriptors, if there is one, into `chain` (emptied first). Whether there was.
    #[inline]
    pub fn take(&mut self, chain: &mut Vec<PackedDescriptor>) -> Result<bool, RingError> {
        chain.clear();
        let mut at = self.next_available;
        let mut flags = self.flags_at(at);
        if !at.is_available(flags) {
            return Ok(false);
        }
        loop {
            if usize::from(self.outstanding) + chain.len() == usize::from(self.size) {
                return Err(RingError::Overrun(self.size));
            }
            chain.push(PackedDescriptor::load(&self.areas.descriptors, at.index, flags));
            at = at.advance(1, self.size);
            if flags & super::split::Descriptor::NEXT == 0 {
                break;
            }
            flags = self.flags_at(at);
        }
        self.outstanding += chain.len() as u16;
        self.next_available = at;
        Ok(true)
    }

    #[inline]
    fn flags_at(&self, at: Position) -> u16 {
        descriptor_flags(&self.areas.descriptors, at.index)
    }

    /// Where the ring stands after a request of `descriptors` was given back.
    #[inline]
    #[must_use]
    pub const fn used_after(&self, descriptors: u16) -> Position {
        self.next_used.advance(descriptors, self.size)
    }

    /// Gives a request of `descriptors` descriptors back; the driver sees it at once. `len`: bytes written to it.
    #[inline]
    pub fn give_back(&mut self, id: u16, len: u32, descriptors: u16) {
        assert!(descriptors <= self.outstanding, "more is given back than was taken");
        let at = DESCRIPTOR_SIZE * u64::from(self.next_used.index);
        let turn = if self.next_used.wrap { AVAIL | USED } else { 0 };
        let write = if len > 0 { super::split::Descriptor::WRITE } else { 0 };
        self.areas.descriptors.store_u32(at + 8, len, Relaxed);
        self.areas.descriptors.store_u16(at + 12, id, Relaxed);
        // Release: pairs with the driver's read barrier between the flags and the rest.
        self.areas.descriptors.store_u16(at + FLAGS_OFFSET, turn | write, Release);
        self.next_used = self.used_after(descriptors);
        self.outstanding -= descriptors;
    }

    /// Whether the driver wants to be told, now that `count` places were passed since it was last asked.
    #[inline]
    #[must_use]
    pub fn wants_notification(&self, count: u16) -> bool {
        // What was given back must be visible before the driver's wish is read: pairs with the driver's full barrier
        // between writing its event suppression and looking at the ring again.
        W::fence(SeqCst);
        let event = self.areas.available.load_u32(0, Relaxed);
        let (position, flags) = (Position::from_bits(event as u16), (event >> 16) as u16 & EVENT_MASK);
        match flags {
            EVENT_DISABLE => false,
            EVENT_DESC if self.event_idx => {
                // A position of the lap before counts backwards from this one's beginning.
                let lap = if position.wrap == self.next_used.wrap { 0 } else { self.size };
                let event = position.index.wrapping_sub(lap);
                crossed(event, self.next_used.index, self.next_used.index.wrapping_sub(count))
            }
            _ => true,
        }
    }

    /// Asks the driver to notify from now on, and looks again; whether there is work after all.
    pub fn enable_notifications(&mut self) -> bool {
        self.notifications_on = true;
        let flags = if self.event_idx { EVENT_DESC } else { EVENT_ENABLE };
        self.suppress(self.next_available.bits(), flags);
        // The wish must be visible before the ring is read: pairs with the driver's full barrier between making
        // descriptors available and reading the device's event suppression (section 2.8.21.3).
        W::fence(SeqCst);
        self.next_available.is_available(self.flags_at(self.next_available))
    }

    /// Asks the driver not to notify: the ring is polled. Whether something was written.
    #[inline]
    pub fn disable_notifications(&mut self) -> bool {
        let writes = core::mem::replace(&mut self.notifications_on, false);
        if writes {
            self.suppress(0, EVENT_DISABLE);
        }
        writes
    }

    /// The byte ranges of the descriptor ring in which the last `count` places were given back, for the dirty log: two
    /// where they wrap.
    pub fn written(&self, count: u16) -> impl Iterator<Item = (u64, u64)> {
        let before_wrap = count.saturating_sub(self.next_used.index);
        let end = u64::from(self.next_used.index);
        let (tail, front) = (u64::from(before_wrap), u64::from(count - before_wrap));
        [(u64::from(self.size) - tail, tail), (end - front, front)]
            .into_iter()
            .filter(|(_, places)| *places > 0)
            .map(|(first, places)| (DESCRIPTOR_SIZE * first, DESCRIPTOR_SIZE * places))
    }

    /// Both fields at once, so that the driver never sees one without the other.
    fn suppress(&self, off_wrap: u16, flags: u16) {
        self.areas.used.store_u32(0, u32::from(off_wrap) | u32::from(flags) << 16, Relaxed);
    }
}

/// The flags of the descriptor at `index`. Acquire: pairs with the driver's write barrier before it writes the flags of
/// a chain's first descriptor.
#[inline]
pub(super) fn descriptor_flags<W: Window>(ring: &W, index: u16) -> u16 {
    ring.load_u16(DESCRIPTOR_SIZE * u64::from(index) + FLAGS_OFFSET, Acquire)
}

/// Checks lengths and alignments (section 2.8: descriptor ring 16, event suppression 4 bytes).
fn check<W: Window>(areas: &Areas<W>, size: u16) -> Result<(), RingError> {
    areas.check_each([
        ("descriptor", descriptor_ring_len(size), 16),
        ("driver event suppression", EVENT_SUPPRESSION_LEN, 4),
        ("device event suppression", EVENT_SUPPRESSION_LEN, 4),
    ])
}

#[cfg(test)]
mod tests {
    use super::Position;

    #[test]
    fn a_position_goes_around_and_flips() {
        let at = Position::START.advance(3, 4);
        assert_eq!(at, Position { index: 3, wrap: true });
        assert_eq!(at.advance(1, 4), Position { index: 0, wrap: false });
        assert_eq!(at.advance(4, 4), Position { index: 3, wrap: false });
        assert_eq!(Position::from_bits(at.bits()), at);
    }

    #[test]
    fn a_distance_is_what_was_advanced() {
        for size in [1, 2, 5, 32768] {
            for start in
                [Position::START, Position::START.advance(size - 1, size), Position { index: 0, wrap: false }]
            {
                for count in [0, 1, size / 2, size] {
                    assert_eq!(start.distance_to(start.advance(count, size), size), Some(count));
                }
            }
        }
        let (early, late) = (Position { index: 1, wrap: true }, Position { index: 3, wrap: true });
        assert_eq!(late.distance_to(early, 4), None);
        assert_eq!(early.distance_to(Position { index: 2, wrap: false }, 4), None);
    }
}
