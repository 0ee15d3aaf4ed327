//! The driver's side of a virtqueue of either layout, as a queue works with it.
//!
//! A chain has a number below the ring's size, under which the driver finds it again: in a split ring its head, in a
//! packed one its id (without what the ring adds to it on the wire).

use super::memory::{Memory, RingAddresses};
use super::packed::{Habits, PackedRing};
use super::split::SplitRing;
use crate::check::observation::{Buffer, RingPlace};
use runtime::Window;
use std::sync::atomic::Ordering;

/// What was negotiated for the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_RING_PACKED.
    pub packed: bool,
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
}

/// A used element as the device wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedElement {
    /// Its free-running index.
    pub index: u16,
    /// Elements that were waiting, this one included; in a packed ring only this one can be seen.
    pub waiting: u16,
    /// Number of the chain, if the device is right.
    pub id: u32,
    /// Bytes that the device says it wrote.
    pub len: u32,
    /// Packed: whether the device says that it wrote anything.
    pub written: Option<bool>,
    /// Packed: the places of the ring that are the driver's again, address and length; two where they wrap.
    pub places: [(u64, u64); 2],
}

/// The driver's side of one virtqueue.
#[derive(Debug)]
pub enum DriverRing<W> {
    /// Section 2.7.
    Split(SplitRing<W>),
    /// Section 2.8.
    Packed(PackedRing<W>),
}

/// Calls the same method of either layout.
macro_rules! either {
    ($self:ident, $ring:ident => $call:expr) => {
        match $self {
            DriverRing::Split($ring) => $call,
            DriverRing::Packed($ring) => $call,
        }
    };
}

impl<W: Window> DriverRing<W> {
    /// Lays out a ring of `size` entries and zeroes it. `order` is the order in which the numbers of chains will be used
    /// first: a permutation of all of them. `habits` are those of a packed ring's driver. `first`: entries that were used
    /// before, on another host, which the machine has left since.
    pub fn new(
        memory: &Memory<W>,
        addresses: RingAddresses,
        size: u16,
        features: RingFeatures,
        order: Vec<u16>,
        habits: Option<Habits>,
        first: u16,
    ) -> Self {
        match habits {
            Some(habits) => Self::Packed(PackedRing::new(
                memory,
                addresses,
                size,
                features.event_idx,
                order,
                habits,
                first,
            )),
            None => Self::Split(SplitRing::new(memory, addresses, size, features, order, first)),
        }
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }

    /// Where it lies.
    pub fn addresses(&self) -> RingAddresses {
        either!(self, ring => ring.addresses())
    }

    /// The same, with the lengths of its parts.
    pub fn place(&self) -> RingPlace {
        either!(self, ring => ring.place())
    }

    /// The base of the ring as it is laid out (SET_VRING_BASE).
    pub fn first_base(&self) -> u32 {
        either!(self, ring => ring.first_base())
    }

    /// Free descriptors.
    pub fn free(&self) -> u16 {
        either!(self, ring => ring.free())
    }

    /// Whether a chain was added that the device cannot see yet.
    pub fn has_unpublished(&self) -> bool {
        either!(self, ring => ring.has_unpublished())
    }

    /// Adds a chain: the pieces up to `direct` as descriptors of the ring, what is left (where `table` is given) in an
    /// indirect table there. Returns its number, or `None` when too few descriptors are free.
    pub fn add(
        &mut self,
        memory: &Memory<W>,
        pieces: &[Buffer],
        direct: usize,
        table: Option<u64>,
    ) -> Option<u16> {
        match self {
            Self::Split(ring) => ring.add(memory, pieces, direct, table),
            Self::Packed(ring) => ring.add(memory, pieces, table),
        }
    }

    /// Packed: the places of the ring that publishing will make the device's, address and length.
    pub fn unpublished_places(&self) -> [(u64, u64); 2] {
        match self {
            Self::Split(_) => [(0, 0); 2],
            Self::Packed(ring) => ring.unpublished_places(),
        }
    }

    /// Lets the device see what was added.
    pub fn publish(&mut self) {
        either!(self, ring => ring.publish());
    }

    /// Whether the device wants to be told of what was published since the last call.
    pub fn must_notify(&mut self) -> bool {
        either!(self, ring => ring.must_notify())
    }

    /// Whether used elements wait.
    pub fn has_used(&self) -> bool {
        either!(self, ring => ring.has_used())
    }

    /// Takes the next used element.
    pub fn take_used(&mut self) -> Option<UsedElement> {
        either!(self, ring => ring.take_used())
    }

    /// Gives a chain's number, and what it occupied, back to the free ones.
    pub fn release(&mut self, number: u16) {
        either!(self, ring => ring.release(number));
    }

    /// Asks for an interrupt at the next used element but `skip` (0: at the next). After it the driver must look at the
    /// ring again, [`DriverRing::has_used`] after [`DriverRing::fence`].
    pub fn enable_interrupts(&mut self, skip: u16) {
        either!(self, ring => ring.enable_interrupts(skip));
    }

    /// Asks for no interrupts.
    pub fn disable_interrupts(&mut self) {
        either!(self, ring => ring.disable_interrupts());
    }

    /// Between a wish for an interrupt and the last look: pairs with the device's fence between what it gives back and its
    /// look at the wish.
    pub fn fence() {
        W::fence(Ordering::SeqCst);
    }
}
