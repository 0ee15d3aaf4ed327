//! A guest's view of its own physical memory: the regions that are plugged in, and where the driver keeps what.
//!
//! The first region holds the rings and one *area* for each request that can be out; every further region holds one
//! more area for each of them, so that the pieces of a request lie in several regions and a region can be emptied and
//! unplugged. Where the front-end maps the regions (their user addresses) is its own business.

use runtime::Window;

/// Alignment of everything that the driver places, so that no two owners share a granule of the `buffers` checker.
pub const ALIGNMENT: u64 = crate::check::buffers::GRANULE;

/// Bytes of a page of the guest.
pub const PAGE_BYTES: u64 = 4096;

/// A region of guest-physical memory, seen by one CPU of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Region<W> {
    /// Guest-physical address of its first byte.
    pub address: u64,
    /// Its bytes.
    pub window: W,
    /// Whether the driver may place new requests there (not while it is being unplugged, or gone).
    pub in_use: bool,
}

/// Guest memory as one CPU sees it.
#[derive(Clone, Debug, Default)]
pub struct Memory<W> {
    /// The regions, by number; a region that was unplugged keeps its number.
    pub regions: Vec<Region<W>>,
}

impl<W: Window> Memory<W> {
    fn region(&self, address: u64, len: u64) -> &Region<W> {
        self.regions
            .iter()
            .find(|region| {
                address.checked_sub(region.address).is_some_and(|offset| offset + len <= region.window.len())
            })
            .expect("the driver places everything inside its own regions")
    }

    /// The window at a range that the driver placed.
    ///
    /// # Panics
    /// When the range is in no region: a bug of the guest.
    #[must_use]
    pub fn window(&self, address: u64, len: u64) -> W {
        let region = self.region(address, len);
        region.window.slice(address - region.address, len).expect("checked to be inside")
    }

    /// Copies bytes into guest memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let region = self.region(address, bytes.len() as u64);
        region.window.write(address - region.address, bytes);
    }

    /// Copies bytes out of guest memory.
    pub fn read(&self, address: u64, into: &mut [u8]) {
        let region = self.region(address, into.len() as u64);
        region.window.read(address - region.address, into);
    }

    /// Fills guest memory.
    pub fn fill(&self, address: u64, len: u64, byte: u8) {
        let region = self.region(address, len);
        region.window.fill(address - region.address, len, byte);
    }
}

/// Where the driver keeps what, the same at every start of it but for [`Layout::ring`]'s drawn place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Queues that the guest uses at most.
    pub queues: u16,
    /// Entries of a ring at most.
    pub ring_size_max: u16,
    /// Requests that can be out on a queue at most.
    pub depth_max: u16,
    /// Bytes of a request's area in each region.
    pub area_bytes: u64,
}

/// Where the three parts of a ring lie, guest-physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

/// Bytes of a descriptor table (virtio 2.7.5).
#[must_use]
pub const fn desc_bytes(size: u16) -> u64 {
    16 * size as u64
}

/// Bytes of an available ring with its event word (virtio 2.7.6).
#[must_use]
pub const fn avail_bytes(size: u16) -> u64 {
    6 + 2 * size as u64
}

/// Bytes of a used ring with its event word (virtio 2.7.8).
#[must_use]
pub const fn used_bytes(size: u16) -> u64 {
    6 + 8 * size as u64
}

const fn round_up(value: u64, to: u64) -> u64 {
    value.div_ceil(to) * to
}

impl Layout {
    const fn ring_bytes(&self) -> u64 {
        // Room to shift a ring by a few granules at each start.
        round_up(desc_bytes(self.ring_size_max), ALIGNMENT)
            + round_up(avail_bytes(self.ring_size_max), ALIGNMENT)
            + round_up(used_bytes(self.ring_size_max), ALIGNMENT)
            + Self::SHIFT_MAX * ALIGNMENT
    }

    /// Granules by which a ring's place may differ from start to start.
    pub const SHIFT_MAX: u64 = 8;

    /// Bytes of the areas in one region.
    #[must_use]
    pub const fn areas_bytes(&self) -> u64 {
        self.queues as u64 * self.depth_max as u64 * self.area_bytes
    }

    /// Bytes that region `index` needs.
    #[must_use]
    pub const fn region_bytes(&self, index: usize) -> u64 {
        let rings = if index == 0 { round_up(self.queues as u64 * self.ring_bytes(), PAGE_BYTES) } else { 0 };
        round_up(rings + self.areas_bytes(), PAGE_BYTES)
    }

    /// The parts of queue `queue`'s ring of `size` entries in a region at `region`, shifted by `shift` granules (below
    /// [`Self::SHIFT_MAX`]).
    #[must_use]
    pub const fn ring(&self, region: u64, queue: u16, size: u16, shift: u64) -> RingAddresses {
        let desc = region + queue as u64 * self.ring_bytes() + shift * ALIGNMENT;
        let avail = desc + round_up(desc_bytes(size), ALIGNMENT);
        let used = avail + round_up(avail_bytes(size), ALIGNMENT);
        RingAddresses { desc, avail, used }
    }

    /// The area of request slot `slot` of `queue` in region `index` at `region`.
    #[must_use]
    pub const fn area(&self, index: usize, region: u64, queue: u16, slot: u16) -> u64 {
        let areas = region + self.region_bytes(index) - self.areas_bytes();
        areas + (queue as u64 * self.depth_max as u64 + slot as u64) * self.area_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Layout;

    #[test]
    fn rings_and_areas_do_not_meet() {
        let layout = Layout { queues: 3, ring_size_max: 64, depth_max: 5, area_bytes: 6144 };
        let last = layout.ring(0x1000, 2, 64, Layout::SHIFT_MAX);
        assert!(last.used + super::used_bytes(64) <= layout.area(0, 0x1000, 0, 0));
        assert_eq!(layout.area(0, 0x1000, 2, 4) + 6144, 0x1000 + layout.region_bytes(0));
        assert_eq!(layout.area(1, 0, 2, 4) + 6144, layout.region_bytes(1));
        let first = layout.ring(0, 0, 64, Layout::SHIFT_MAX);
        assert!(first.used + super::used_bytes(64) <= layout.ring(0, 1, 64, 0).desc);
    }
}
