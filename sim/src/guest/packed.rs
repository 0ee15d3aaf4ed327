//! The driver's side of a packed virtqueue (virtio 1.3, 2.8), read from the specification anew: it shares no code and no
//! constant with the device's side in `stack`, so that one misreading does not hide in both.
//!
//! Where the specification's driver counts positions and flips wrap counters, this one counts the places that it has
//! passed since the ring began, and derives both from that.
//!
//! The ring trusts the device in nothing. What the device wrote is handed out as it is found; whether it may be so is
//! for the checkers to say.

use super::memory::{Memory, RingAddresses, desc_bytes};
use super::ring::UsedElement;
use crate::check::observation::{Buffer, RingPlace};
use crate::rng::Rng;
use runtime::Window;
use std::sync::atomic::Ordering;

/// VIRTQ_DESC_F_NEXT: the chain goes on at the next place (2.8.6).
const DESC_NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes this piece; in a used descriptor: it wrote something (2.8.8).
const DESC_WRITE: u16 = 1 << 1;
/// VIRTQ_DESC_F_INDIRECT: the piece is a table of descriptors (2.8.7).
const DESC_INDIRECT: u16 = 1 << 2;
/// VIRTQ_DESC_F_AVAIL (2.8.1).
const DESC_AVAIL: u16 = 1 << 7;
/// VIRTQ_DESC_F_USED.
const DESC_USED: u16 = 1 << 15;

/// RING_EVENT_FLAGS_ENABLE (2.8.10).
const EVENT_ENABLE: u16 = 0;
/// RING_EVENT_FLAGS_DISABLE.
const EVENT_DISABLE: u16 = 1;
/// RING_EVENT_FLAGS_DESC.
const EVENT_DESC: u16 = 2;

/// Bytes of a descriptor: address, length, id, flags (2.8.13).
const DESCRIPTOR_BYTES: u64 = 16;
/// Byte offset of the flags in it.
pub const DESCRIPTOR_FLAGS: u64 = 14;
/// Bytes of an event suppression structure: offset and wrap counter, flags (2.8.14).
const EVENT_BYTES: u64 = 4;
/// Byte offset of its flags.
const EVENT_FLAGS: u64 = 2;

/// What a driver is free to do as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Habits {
    /// Added to each id: the specification bounds them by 16 bits only.
    id_offset: u16,
    /// With EVENT_IDX, wishes no longer meant are left standing, where others disable.
    leaves_wish: bool,
}

impl Habits {
    /// Draws a driver's.
    pub fn draw(rng: &mut Rng) -> Self {
        let id_offset = if rng.chance(1, 2) { rng.word() as u16 } else { 0 };
        Self { id_offset, leaves_wish: rng.chance(1, 2) }
    }
}

/// Places passed since the ring began.
type Count = u64;

/// The driver's side of one packed virtqueue.
#[derive(Debug)]
pub struct PackedRing<W> {
    size: u16,
    event_idx: bool,
    habits: Habits,
    addresses: RingAddresses,
    desc: W,
    /// The driver's event suppression.
    driver_event: W,
    /// The device's.
    device_event: W,
    /// Free numbers of chains, the next to use last.
    free_numbers: Vec<u16>,
    /// By number: the places of a chain that is out.
    places: Vec<Option<u16>>,
    /// Places filled.
    added: Count,
    /// Those of them that the device can see.
    published: Count,
    /// The flags of the first one that it cannot: written last, they publish all that follow.
    held_flags: u16,
    /// Places published at the last look at whether to notify.
    notified: Count,
    /// Places taken back.
    taken: Count,
    /// Used elements taken.
    elements: u16,
}

/// Where a place is: its index, and the wrap counter of the lap (2.8.1), which begins at 1.
const fn position(count: Count, size: u16) -> (u16, bool) {
    ((count % size as u64) as u16, (count / size as u64).is_multiple_of(2))
}

/// The same as 16 bits: the wrap counter is the highest.
const fn position_bits(count: Count, size: u16) -> u16 {
    let (index, wrap) = position(count, size);
    index | (wrap as u16) << 15
}

/// The flags that say that the driver made a place available (2.8.1).
const fn available_flags(count: Count, size: u16) -> u16 {
    if position(count, size).1 { DESC_AVAIL } else { DESC_USED }
}

/// The flags that say that the device gave a place back (2.8.1).
const fn used_flags(count: Count, size: u16) -> u16 {
    if position(count, size).1 { DESC_AVAIL | DESC_USED } else { 0 }
}

/// Whether flags at a place say that the device gave it back.
const fn is_used(count: Count, size: u16, flags: u16) -> bool {
    let wrap = position(count, size).1;
    (flags & DESC_AVAIL != 0) == wrap && (flags & DESC_USED != 0) == wrap
}

/// Whether the way from `old` to `new` passed the place that an event suppression structure names (2.8.14). Places have
/// names for two laps.
const fn passed(event: u16, new: Count, old: Count, size: u16) -> bool {
    let laps = 2 * size as u64;
    let lap = if event >> 15 == 1 { 0 } else { size as u64 };
    let ahead = ((event & 0x7fff) as u64 + lap + laps - old % laps) % laps;
    ahead < new - old
}

impl<W: Window> PackedRing<W> {
    /// Lays out a ring of `size` places and zeroes it. `order` is the order in which numbers are used first. The ring goes
    /// on after `first` places (less whole double laps), each of which the device has given back.
    pub fn new(
        memory: &Memory<W>,
        addresses: RingAddresses,
        size: u16,
        event_idx: bool,
        order: Vec<u16>,
        habits: Habits,
        first: u16,
    ) -> Self {
        let first = Count::from(first) % (2 * Count::from(size));
        assert!(order.len() == usize::from(size), "as many numbers as places");
        let ring = Self {
            size,
            event_idx,
            habits,
            addresses,
            desc: memory.window(addresses.desc, desc_bytes(size)),
            driver_event: memory.window(addresses.avail, EVENT_BYTES),
            device_event: memory.window(addresses.used, EVENT_BYTES),
            free_numbers: order,
            places: vec![None; usize::from(size)],
            added: first,
            published: first,
            held_flags: 0,
            notified: first,
            taken: first,
            elements: 0,
        };
        for area in [&ring.desc, &ring.driver_event, &ring.device_event] {
            area.fill(0, area.len(), 0);
        }
        for count in 0..first {
            let at = ring.descriptor(count) + DESCRIPTOR_FLAGS;
            ring.desc.store_u16(at, used_flags(count, size), Ordering::Relaxed);
        }
        ring
    }

    /// Places.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where it lies.
    pub fn addresses(&self) -> RingAddresses {
        self.addresses
    }

    /// The same, with the lengths of its parts.
    pub fn place(&self) -> RingPlace {
        let RingAddresses { desc, avail, used } = self.addresses;
        RingPlace {
            packed: true,
            desc: (desc, self.desc.len()),
            avail: (avail, EVENT_BYTES),
            used: (used, EVENT_BYTES),
        }
    }

    /// The base of the ring as it is laid out (SET_VRING_BASE): its next available position, and its next used one.
    pub fn first_base(&self) -> u32 {
        u32::from(position_bits(self.taken, self.size)) * 0x1_0001
    }

    /// Free places.
    pub fn free(&self) -> u16 {
        self.size - (self.added - self.taken) as u16
    }

    /// Whether a chain was added that the device cannot see yet.
    pub fn has_unpublished(&self) -> bool {
        self.added != self.published
    }

    /// The place that the driver fills next, for whoever misuses it: its index and wrap counter.
    pub fn next_place(&self) -> (u16, bool) {
        position(self.added, self.size)
    }

    /// Fills the next places with a chain: its pieces, or (where `table` is given) one descriptor of an indirect table of
    /// all of them, since the two do not mix in a packed ring (2.8.19). Returns its number, or `None` when too few places
    /// are free. Only its last descriptor has the id (2.8.6).
    pub fn add(&mut self, memory: &Memory<W>, pieces: &[Buffer], table: Option<u64>) -> Option<u16> {
        let places = if table.is_some() { 1 } else { pieces.len() as u16 };
        if self.free() < places {
            return None;
        }
        let number = self.free_numbers.pop()?;
        let id = number.wrapping_add(self.habits.id_offset);
        if let Some(table) = table {
            let window = memory.window(table, pieces.len() as u64 * DESCRIPTOR_BYTES);
            for (index, piece) in pieces.iter().enumerate() {
                // Of these flags the device knows WRITE alone, and it ignores the ids.
                let at = index as u64 * DESCRIPTOR_BYTES;
                Self::describe(&window, at, piece, !id);
                window.store_u16(at + DESCRIPTOR_FLAGS, Self::write_flag(piece), Ordering::Relaxed);
            }
            let len = window.len() as u32;
            self.fill(&Buffer { address: table, len, writable: false }, id, DESC_INDIRECT);
        } else {
            for (index, piece) in (1..).zip(pieces) {
                if index < places {
                    self.fill(piece, !id, DESC_NEXT);
                } else {
                    self.fill(piece, id, 0);
                }
            }
        }
        self.places[usize::from(number)] = Some(places);
        Some(number)
    }

    /// Fills the next place. The flags of the first place that the device cannot see are held back.
    fn fill(&mut self, piece: &Buffer, id: u16, flags: u16) {
        let flags = flags | Self::write_flag(piece) | available_flags(self.added, self.size);
        let at = self.descriptor(self.added);
        Self::describe(&self.desc, at, piece, id);
        if self.has_unpublished() {
            self.desc.store_u16(at + DESCRIPTOR_FLAGS, flags, Ordering::Relaxed);
        } else {
            self.held_flags = flags;
        }
        self.added += 1;
    }

    fn write_flag(piece: &Buffer) -> u16 {
        if piece.writable { DESC_WRITE } else { 0 }
    }

    fn describe(table: &W, at: u64, piece: &Buffer, id: u16) {
        table.store_u64(at, piece.address, Ordering::Relaxed);
        table.store_u32(at + 8, piece.len, Ordering::Relaxed);
        table.store_u16(at + 12, id, Ordering::Relaxed);
    }

    /// Offset of a place's descriptor.
    fn descriptor(&self, count: Count) -> u64 {
        DESCRIPTOR_BYTES * u64::from(position(count, self.size).0)
    }

    /// Address and length of the places between two counts: two where they wrap.
    fn range(&self, from: Count, to: Count) -> [(u64, u64); 2] {
        let first = u64::from(position(from, self.size).0);
        let until_end = (to - from).min(u64::from(self.size) - first);
        let range =
            |first, places| (self.addresses.desc + DESCRIPTOR_BYTES * first, DESCRIPTOR_BYTES * places);
        [range(first, until_end), range(0, to - from - until_end)]
    }

    /// The places that publishing will make the device's.
    pub fn unpublished_places(&self) -> [(u64, u64); 2] {
        self.range(self.published, self.added)
    }

    /// Lets the device see what was added (2.8.21.1: a barrier between the rest and the first descriptor's flags).
    pub fn publish(&mut self) {
        if self.has_unpublished() {
            let at = self.descriptor(self.published) + DESCRIPTOR_FLAGS;
            self.desc.store_u16(at, self.held_flags, Ordering::Release);
            self.published = self.added;
        }
    }

    /// Whether the device wants to be told of what was published since the last call (2.8.21.3).
    pub fn must_notify(&mut self) -> bool {
        // The flags must be visible before the device's wish is read: pairs with the device's fence between its wish and
        // its look at the ring.
        W::fence(Ordering::SeqCst);
        let (old, new) = (self.notified, self.published);
        self.notified = new;
        let event = self.device_event.load_u32(0, Ordering::Relaxed);
        match (event >> 16) as u16 & 3 {
            EVENT_DISABLE => false,
            EVENT_DESC if self.event_idx => passed(event as u16, new, old, self.size),
            _ => true,
        }
    }

    /// Whether a used element waits.
    pub fn has_used(&self) -> bool {
        is_used(self.taken, self.size, self.flags_at(&self.desc, self.taken))
    }

    fn flags_at(&self, desc: &W, count: Count) -> u16 {
        desc.load_u16(self.descriptor(count) + DESCRIPTOR_FLAGS, Ordering::Acquire)
    }

    fn number_at(&self, desc: &W, count: Count) -> u16 {
        desc.load_u16(self.descriptor(count) + 12, Ordering::Relaxed).wrapping_sub(self.habits.id_offset)
    }

    fn places_of(&self, number: u16) -> Option<u16> {
        self.places.get(usize::from(number)).copied().flatten()
    }

    /// Takes the next used element, and with it the places of its chain.
    pub fn take_used(&mut self) -> Option<UsedElement> {
        let flags = self.flags_at(&self.desc, self.taken);
        if !is_used(self.taken, self.size, flags) {
            return None;
        }
        let id = self.number_at(&self.desc, self.taken);
        let len = self.desc.load_u32(self.descriptor(self.taken) + 8, Ordering::Relaxed);
        let places = self.places_of(id).map_or(0, u64::from);
        let range = self.range(self.taken, self.taken + places);
        self.taken += places;
        let index = self.elements;
        self.elements = index.wrapping_add(1);
        let written = Some(flags & DESC_WRITE != 0);
        Some(UsedElement { index, waiting: 1, id: id.into(), len, written, places: range })
    }

    /// Gives a chain's number back to the free ones.
    pub fn release(&mut self, number: u16) {
        self.places[usize::from(number)] = None;
        self.free_numbers.push(number);
    }

    /// The position up to which the device has given back, as it stands in the ring that `desc` looks at.
    pub fn used_bits(&self, desc: &W) -> u16 {
        let mut count = self.taken;
        while count < self.published && is_used(count, self.size, self.flags_at(desc, count)) {
            let Some(places) = self.places_of(self.number_at(desc, count)) else { break };
            count += u64::from(places);
        }
        position_bits(count, self.size)
    }

    /// Asks for an interrupt at the place after the next `skip`.
    pub fn enable_interrupts(&mut self, skip: u16) {
        let mut flags = EVENT_ENABLE;
        if self.event_idx {
            flags = EVENT_DESC;
            let at = position_bits(self.taken + u64::from(skip), self.size);
            self.driver_event.store_u16(0, at, Ordering::Relaxed);
        }
        self.driver_event.store_u16(EVENT_FLAGS, flags, Ordering::Release);
    }

    /// Asks for no interrupts; with EVENT_IDX a wish that is behind may as well stand.
    pub fn disable_interrupts(&mut self) {
        if !(self.event_idx && self.habits.leaves_wish) {
            self.driver_event.store_u16(EVENT_FLAGS, EVENT_DISABLE, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{available_flags, is_used, passed, position_bits};

    #[test]
    fn a_place_is_used_on_its_own_lap_only() {
        for size in [8, 12] {
            for count in 0..64 {
                let used = |lap: u64| if lap.is_multiple_of(2) { 0x8080 } else { 0 };
                let lap = count / u64::from(size);
                assert!(is_used(count, size, used(lap)));
                assert!(!is_used(count, size, used(lap + 1)));
                assert!(!is_used(count, size, available_flags(count, size)));
            }
        }
        assert_eq!([0, 7, 8, 16].map(|count| position_bits(count, 8)), [0x8000, 0x8007, 0, 0x8000]);
    }

    #[test]
    fn an_event_is_passed_by_the_way_over_its_place() {
        for old in 0..40_u64 {
            for ahead in 0..16 {
                for way in 0..=8 {
                    let event = position_bits(old + ahead, 8);
                    assert_eq!(passed(event, old + way, old, 8), ahead < way, "{old} {ahead} {way}");
                }
            }
        }
    }
}
