//! The driver's side of a split virtqueue (virtio 1.3, 2.7), read from the specification anew: it shares no code and no
//! constant with the device's side in `stack`, so that one misreading does not hide in both.
//!
//! The ring trusts the device in nothing. What the device wrote is handed out as it is found; whether it may be so is
//! for the checkers to say.

use super::memory::{Memory, RingAddresses, avail_bytes, desc_bytes, used_bytes};
use super::ring::{RingFeatures, UsedElement};
use crate::check::observation::{Buffer, RingPlace};
use runtime::Window;
use std::sync::atomic::Ordering;

/// VIRTQ_DESC_F_NEXT: the chain goes on at `next` (2.7.5).
const DESC_NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes this piece.
const DESC_WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT: the piece is a table of descriptors.
const DESC_INDIRECT: u16 = 4;
/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY (2.7.8).
const USED_NO_NOTIFY: u16 = 1;

/// Byte offset of the index in the available and in the used ring.
const INDEX: u64 = 2;
/// Byte offset of the entries in both.
const ENTRIES: u64 = 4;
/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: u64 = 16;
/// Bytes of a used element.
const USED_ELEMENT_BYTES: u64 = 8;

/// The driver's side of one split virtqueue.
#[derive(Debug)]
pub struct SplitRing<W> {
    size: u16,
    features: RingFeatures,
    addresses: RingAddresses,
    desc: W,
    avail: W,
    used: W,
    /// Free descriptors, the next to use last.
    free: Vec<u16>,
    /// By descriptor: the next one of its chain, kept privately since the device's copy of `next` may be overwritten.
    next: Vec<Option<u16>>,
    /// Entries put into the available ring.
    added: u16,
    /// Those of them that the index covers.
    published: u16,
    /// The index at the last look at whether to notify.
    notified: u16,
    /// Used elements taken.
    taken: u16,
}

/// Whether an index that moved from `old` to `new` passed `event` (2.7.7.1, 2.7.10).
const fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl<W: Window> SplitRing<W> {
    /// Lays out a ring of `size` entries (a power of two) and zeroes it. `order` is the order in which the descriptors
    /// will be used first: a permutation of all of them. Both indexes begin at `first`.
    pub fn new(
        memory: &Memory<W>,
        addresses: RingAddresses,
        size: u16,
        features: RingFeatures,
        order: Vec<u16>,
        first: u16,
    ) -> Self {
        assert!(
            size.is_power_of_two() && order.len() == usize::from(size),
            "a split ring's size is a power of two"
        );
        let ring = Self {
            size,
            features,
            addresses,
            desc: memory.window(addresses.desc, desc_bytes(size)),
            avail: memory.window(addresses.avail, avail_bytes(size)),
            used: memory.window(addresses.used, used_bytes(size)),
            free: order,
            next: vec![None; usize::from(size)],
            added: first,
            published: first,
            notified: first,
            taken: first,
        };
        ring.desc.fill(0, ring.desc.len(), 0);
        ring.avail.fill(0, ring.avail.len(), 0);
        ring.used.fill(0, ring.used.len(), 0);
        ring.avail.store_u16(INDEX, first, Ordering::Relaxed);
        ring.used.store_u16(INDEX, first, Ordering::Relaxed);
        ring
    }

    /// Entries.
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
            packed: false,
            desc: (desc, self.desc.len()),
            avail: (avail, self.avail.len()),
            used: (used, self.used.len()),
        }
    }

    /// The base of the ring as it is laid out (SET_VRING_BASE): its available index.
    pub fn first_base(&self) -> u32 {
        self.taken.into()
    }

    /// Free descriptors.
    pub fn free(&self) -> u16 {
        self.free.len() as u16
    }

    /// Whether a chain was added that the device cannot see yet.
    pub fn has_unpublished(&self) -> bool {
        self.added != self.published
    }

    /// Puts a chain into the available ring: the pieces up to `direct` as descriptors of the ring, what is left (where
    /// `table` is given) in an indirect table there, as the chain's last descriptor (2.7.5.3). Returns the head, or
    /// `None` when too few descriptors are free.
    pub fn add(
        &mut self,
        memory: &Memory<W>,
        pieces: &[Buffer],
        direct: usize,
        table: Option<u64>,
    ) -> Option<u16> {
        let needed = if table.is_some() { direct + 1 } else { pieces.len() };
        if self.free.len() < needed {
            return None;
        }
        if let Some(table) = table {
            let window = memory.window(table, (pieces.len() - direct) as u64 * DESCRIPTOR_BYTES);
            let last = pieces.len() - direct - 1;
            for (index, piece) in pieces[direct..].iter().enumerate() {
                let flags = if index < last { DESC_NEXT } else { 0 };
                Self::describe(&window, index as u16, piece, flags, index as u16 + 1);
            }
        }
        let mut head = None;
        let mut previous: Option<u16> = None;
        for step in 0..needed {
            let descriptor = self.free.pop().expect("counted");
            match previous {
                None => head = Some(descriptor),
                Some(before) => self.next[usize::from(before)] = Some(descriptor),
            }
            self.next[usize::from(descriptor)] = None;
            let more = step + 1 < needed;
            let next = if more { self.free[self.free.len() - 1] } else { 0 };
            let flags = if more { DESC_NEXT } else { 0 };
            match table {
                Some(table) if !more => {
                    let len = (pieces.len() - direct) as u32 * DESCRIPTOR_BYTES as u32;
                    let piece = Buffer { address: table, len, writable: false };
                    Self::describe(&self.desc, descriptor, &piece, flags | DESC_INDIRECT, next);
                }
                _ => Self::describe(&self.desc, descriptor, &pieces[step], flags, next),
            }
            previous = Some(descriptor);
        }
        let head = head.expect("a chain has a descriptor");
        let entry = u64::from(self.added % self.size);
        self.avail.store_u16(ENTRIES + 2 * entry, head, Ordering::Relaxed);
        self.added = self.added.wrapping_add(1);
        Some(head)
    }

    fn describe(table: &W, index: u16, piece: &Buffer, flags: u16, next: u16) {
        let at = u64::from(index) * DESCRIPTOR_BYTES;
        let flags = flags | if piece.writable { DESC_WRITE } else { 0 };
        table.store_u64(at, piece.address, Ordering::Relaxed);
        let rest = u64::from(piece.len) | u64::from(flags) << 32 | u64::from(next) << 48;
        table.store_u64(at + 8, rest, Ordering::Relaxed);
    }

    /// Lets the device see what was added (2.7.13.3: a barrier between the entries and the index).
    pub fn publish(&mut self) {
        self.published = self.added;
        self.avail.store_u16(INDEX, self.added, Ordering::Release);
    }

    /// Whether the device wants to be told of what was published since the last call (2.7.13.4).
    pub fn must_notify(&mut self) -> bool {
        // The index must be visible before the device's wish is read: pairs with the device's fence between its wish
        // and its look at the index.
        W::fence(Ordering::SeqCst);
        let (old, new) = (self.notified, self.published);
        self.notified = new;
        if self.features.event_idx {
            let event =
                self.used.load_u16(ENTRIES + USED_ELEMENT_BYTES * u64::from(self.size), Ordering::Relaxed);
            passed(event, new, old)
        } else {
            self.used.load_u16(0, Ordering::Relaxed) & USED_NO_NOTIFY == 0
        }
    }

    /// Whether used elements wait.
    pub fn has_used(&self) -> bool {
        self.used.load_u16(INDEX, Ordering::Acquire) != self.taken
    }

    /// Takes the next used element.
    pub fn take_used(&mut self) -> Option<UsedElement> {
        let index = self.taken;
        let waiting = self.used.load_u16(INDEX, Ordering::Acquire).wrapping_sub(index);
        if waiting == 0 {
            return None;
        }
        let at = ENTRIES + USED_ELEMENT_BYTES * u64::from(index % self.size);
        let id = self.used.load_u32(at, Ordering::Relaxed);
        let len = self.used.load_u32(at + 4, Ordering::Relaxed);
        self.taken = index.wrapping_add(1);
        Some(UsedElement { index, waiting, id, len, written: None, places: [(0, 0); 2] })
    }

    /// Gives a chain's descriptors back to the free ones.
    pub fn release(&mut self, head: u16) {
        let mut descriptor = Some(head);
        while let Some(index) = descriptor {
            descriptor = self.next[usize::from(index)].take();
            self.free.push(index);
        }
    }

    /// Asks for an interrupt at the next used element but `skip` (0: at the next). After it the driver must look at the
    /// used ring again, [`SplitRing::has_used`] after a full fence.
    pub fn enable_interrupts(&mut self, skip: u16) {
        if self.features.event_idx {
            let event = self.taken.wrapping_add(skip);
            self.avail.store_u16(ENTRIES + 2 * u64::from(self.size), event, Ordering::Relaxed);
        } else {
            self.avail.store_u16(0, 0, Ordering::Relaxed);
        }
    }

    /// Asks for no interrupts. With EVENT_IDX there is nothing to say: the event is behind already.
    pub fn disable_interrupts(&mut self) {
        if !self.features.event_idx {
            self.avail.store_u16(0, AVAIL_NO_INTERRUPT, Ordering::Relaxed);
        }
    }
}
