//! Inflight tracking of a packed virtqueue.
//!
//! A packed ring's descriptors are overwritten as requests come back, so the region keeps copies: a table of as many
//! entries as the ring has places, where each request has a list of entries, one a descriptor, and the others form a
//! free list. A request's number, here and in the queue, is the index of its first entry.
//!
//! `free_head` and the used position stand in the header twice: as they are, and as they were when the last step was
//! whole ("old"). Taking a request becomes fact when `old_free_head` leaves its entries behind; giving one back, when
//! the flags of its used descriptor reach the ring. Each request is given back by itself: in a batch, a death between
//! the flags of its second and those of its first would leave used flags in the ring that no life remembers.
//!
//! The four fields of the two used positions are stored as one word. In separate stores, as the specification lists
//! them, a death between the position and its wrap counter would leave a position on the wrong lap.

use super::{ALIGNMENT, InflightError, VERSION, header};
use crate::reached::Reached;
use crate::virtio::packed::{PackedDescriptor, Position, descriptor_flags};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Relaxed, Release};
use runtime::Window;

/// Bytes of `QueueRegionPacked` before its entries: the fields end at 29, the entries are aligned to 8.
const HEADER_SIZE: u64 = 32;
/// Bytes of one `DescStatePacked`.
const ENTRY_SIZE: u64 = 32;

/// `QueueRegionPacked`, after what all layouts begin with: `u16 free_head, old_free_head, used_idx, old_used_idx; u8
/// used_wrap_counter, old_used_wrap_counter`.
const FREE_HEAD: u64 = 12;
const OLD_FREE_HEAD: u64 = 14;
/// `used_idx`, `old_used_idx`, the two wrap counters and two bytes of padding, as one word.
const USED: u64 = 16;

/// `DescStatePacked`: `u8 inflight; u8 padding; u16 next, last, num; u64 counter; u16 id, flags; u32 len; u64 addr`.
mod entry {
    pub(super) const INFLIGHT: u64 = 0;
    pub(super) const NEXT: u64 = 2;
    /// `last` and `num`, as one word.
    pub(super) const LAST_AND_NUM: u64 = 4;
    pub(super) const COUNTER: u64 = 8;
    /// `id`, `flags` and `len`, as one word.
    pub(super) const ID_FLAGS_LEN: u64 = 16;
    pub(super) const ADDR: u64 = 24;
}

/// Bytes of the region part of one packed queue of `size` places.
#[must_use]
pub const fn queue_region_len(size: u16) -> u64 {
    (HEADER_SIZE + ENTRY_SIZE * size as u64).next_multiple_of(ALIGNMENT)
}

/// The table of a running packed ring's requests, in memory of its own and, where the ring is tracked, in the region.
/// The region is written only; what was read from it at the start was checked once.
#[derive(Debug)]
pub struct PackedInflight<W> {
    region: Option<W>,
    /// The next request's counter.
    counter: u64,
    /// The first free entry; the table's length when there is none.
    free_head: u16,
    /// For each entry the next one of its list, free or a request's.
    next: Box<[u16]>,
    /// For the first entry of each request its last one.
    last: Box<[u16]>,
}

/// A request of a dead life.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Its number: its first entry.
    pub head: u16,
    /// What the driver made available.
    pub descriptors: Vec<PackedDescriptor>,
}

/// What a region says about the life before.
#[derive(Debug)]
pub struct Recovered<W> {
    /// The table, ready to go on.
    pub tracking: PackedInflight<W>,
    /// Whether the region tracked a ring before (and the rest counts).
    pub tracked: bool,
    /// Where the next request is given back.
    pub used: Position,
    /// The requests to submit again, in the order in which they were taken.
    pub requests: Vec<Request>,
}

/// The header's two used positions.
#[derive(Clone, Copy)]
struct UsedWord {
    now: Position,
    old: Position,
}

impl UsedWord {
    fn load<W: Window>(region: &W, size: u16) -> Result<Self, InflightError> {
        let [n0, n1, o0, o1, now_wrap, old_wrap, _, _] = region.load_u64(USED, Relaxed).to_le_bytes();
        let position = |index, wrap| match wrap {
            0 | 1 if index < size => Ok(Position { index, wrap: wrap == 1 }),
            _ => Err(InflightError::Position(index)),
        };
        Ok(Self {
            now: position(u16::from_le_bytes([n0, n1]), now_wrap)?,
            old: position(u16::from_le_bytes([o0, o1]), old_wrap)?,
        })
    }

    fn store<W: Window>(self, region: &W) {
        let (now, old) = (self.now.index.to_le_bytes(), self.old.index.to_le_bytes());
        let bytes = [now[0], now[1], old[0], old[1], self.now.wrap.into(), self.old.wrap.into(), 0, 0];
        region.store_u64(USED, u64::from_le_bytes(bytes), Release);
    }
}

impl<W: Window> PackedInflight<W> {
    /// The table of a ring of `size` places that is not tracked.
    #[must_use]
    pub fn untracked(size: u16) -> Self {
        Self { region: None, counter: 0, free_head: 0, next: (1..=size).collect(), last: (0..size).collect() }
    }

    /// Takes over the region of a ring of `size` places: a new region is initialised with the used position that the
    /// front-end knows, a used one recovered (specification: "when reconnecting").
    pub fn recover(region: W, ring: &W, size: u16, used: Position) -> Result<Recovered<W>, InflightError> {
        if region.len() < HEADER_SIZE + ENTRY_SIZE * u64::from(size) || !region.is_aligned(8) {
            return Err(InflightError::Area);
        }
        match region.load_u16(header::VERSION, Relaxed) {
            0 => {
                region.store_u64(header::FEATURES, 0, Release);
                region.store_u16(header::DESC_NUM, size, Release);
                region.store_u16(FREE_HEAD, 0, Release);
                region.store_u16(OLD_FREE_HEAD, 0, Release);
                // The ring need not be at its beginning when tracking begins.
                UsedWord { now: used, old: used }.store(&region);
                for index in 0..size {
                    region.store_u16(offset_of(index) + entry::NEXT, index + 1, Release);
                    region.store_u8(offset_of(index) + entry::INFLIGHT, 0, Release);
                }
                // Last: a death before it leaves a region that was never used.
                region.store_u16(header::VERSION, VERSION, Release);
                Reached::PackedFresh.mark::<W>();
                if used != Position::START {
                    Reached::PackedFreshOnOldRing.mark::<W>();
                }
                let tracking = Self { region: Some(region), ..Self::untracked(size) };
                Ok(Recovered { tracking, tracked: false, used, requests: Vec::new() })
            }
            VERSION => Self::recover_used(region, ring, size),
            other => Err(InflightError::Version(other)),
        }
    }

    fn recover_used(region: W, ring: &W, size: u16) -> Result<Recovered<W>, InflightError> {
        let found = region.load_u16(header::DESC_NUM, Relaxed);
        if found != size {
            return Err(InflightError::Size { found, ring: size });
        }
        let (free_head, old_free_head) =
            (region.load_u16(FREE_HEAD, Relaxed), region.load_u16(OLD_FREE_HEAD, Relaxed));
        let used = UsedWord::load(&region, size)?;
        // Something was being given back. If the ring does not say "available" any more where that was, the driver may
        // have seen it, and it is done; else it never happened. (The driver may have used the place again since: on
        // its next lap, whose available flags are others.)
        let committed =
            used.now != used.old && !used.old.is_available(descriptor_flags(ring, used.old.index));
        let (free, at) = if committed { (free_head, used.now) } else { (old_free_head, used.old) };

        // Nothing is stored before all of it was checked; each field is read once.
        let table = Table::read(&region, size, free)?;
        let counter = table.requests.last().map_or(Some(0), |found| found.counter.checked_add(1));
        let twice = table.requests.windows(2).find(|pair| pair[0].counter == pair[1].counter);
        let (None, Some(counter)) = (twice, counter) else {
            return Err(InflightError::Counter(twice.map_or(u64::MAX, |pair| pair[0].counter)));
        };

        match (committed, used.now != used.old, free_head != old_free_head) {
            (true, ..) => Reached::PackedCommitted.mark::<W>(),
            (false, true, _) => Reached::PackedRolledBack.mark::<W>(),
            (false, false, true) => Reached::PackedTakenBack.mark::<W>(),
            (false, false, false) => {}
        }
        if !table.stale.is_empty() {
            Reached::PackedStaleFlag.mark::<W>();
        }
        let any_out = !table.requests.is_empty();
        if any_out { Reached::PackedResubmits } else { Reached::PackedNothingOut }.mark::<W>();

        let head = if committed { OLD_FREE_HEAD } else { FREE_HEAD };
        region.store_u16(head, free, Release);
        UsedWord { now: at, old: at }.store(&region);
        for index in table.stale {
            region.store_u8(offset_of(index) + entry::INFLIGHT, 0, Release);
        }
        let mut last: Box<[u16]> = (0..size).collect();
        let mut requests = Vec::with_capacity(table.requests.len());
        for found in table.requests {
            last[usize::from(found.request.head)] = found.last;
            requests.push(found.request);
        }
        let tracking = Self { region: Some(region), counter, free_head: free, next: table.next, last };
        Ok(Recovered { tracking, tracked: true, used: at, requests })
    }

    /// The number that the next request will have.
    #[inline]
    #[must_use]
    pub const fn next_number(&self) -> u16 {
        self.free_head
    }

    /// A request was taken ("when receiving available buffers"): it gets entries, and its number.
    #[inline]
    pub fn taken(&mut self, descriptors: &[PackedDescriptor]) -> u16 {
        let head = self.free_head;
        if let Some(region) = &self.region {
            region.store_u64(offset_of(head) + entry::COUNTER, self.counter, Release);
            region.store_u8(offset_of(head) + entry::INFLIGHT, 1, Release);
        }
        self.counter += 1;
        let (mut at, mut last) = (head, head);
        for descriptor in descriptors {
            if let Some(region) = &self.region {
                let word = u64::from(descriptor.id)
                    | u64::from(descriptor.flags) << 16
                    | u64::from(descriptor.len) << 32;
                region.store_u64(offset_of(at) + entry::ID_FLAGS_LEN, word, Release);
                region.store_u64(offset_of(at) + entry::ADDR, descriptor.address, Release);
            }
            (last, at) = (at, self.next[usize::from(at)]);
        }
        self.last[usize::from(head)] = last;
        self.free_head = at;
        if let Some(region) = &self.region {
            let word = u32::from(last) | (descriptors.len() as u32) << 16;
            region.store_u32(offset_of(head) + entry::LAST_AND_NUM, word, Release);
            region.store_u16(FREE_HEAD, at, Release);
            // From here on the request is taken.
            region.store_u16(OLD_FREE_HEAD, at, Release);
        }
        head
    }

    /// A request is about to be given back, which moves the used position ("when supplying used buffers", steps 1 to 6).
    #[inline]
    pub fn completing(&mut self, head: u16, from: Position, to: Position) {
        let last = self.last[usize::from(head)];
        if let Some(region) = &self.region {
            region.store_u16(offset_of(last) + entry::NEXT, self.free_head, Release);
            region.store_u16(FREE_HEAD, head, Release);
            UsedWord { now: to, old: from }.store(region);
        }
        self.next[usize::from(last)] = self.free_head;
        self.free_head = head;
    }

    /// The request was given back, and the used position is `to` (steps 8 and 9).
    #[inline]
    pub fn completed(&mut self, head: u16, to: Position) {
        if let Some(region) = &self.region {
            region.store_u8(offset_of(head) + entry::INFLIGHT, 0, Release);
            region.store_u16(OLD_FREE_HEAD, head, Release);
            UsedWord { now: to, old: to }.store(region);
        }
    }
}

/// A region's entries, read once and checked: each is free, or one request's.
struct Table {
    next: Box<[u16]>,
    /// Free entries whose inflight flag is set.
    stale: Vec<u16>,
    /// In the order of their counters.
    requests: Vec<Found>,
}

/// A request in flight, its counter and its last entry.
struct Found {
    counter: u64,
    last: u16,
    request: Request,
}

impl Table {
    fn read<W: Window>(region: &W, size: u16, free_head: u16) -> Result<Self, InflightError> {
        let next: Box<[u16]> =
            (0..size).map(|index| region.load_u16(offset_of(index) + entry::NEXT, Relaxed)).collect();
        let mut known = alloc::vec![false; usize::from(size)];
        let mut at = free_head;
        while at != size {
            match known.get_mut(usize::from(at)) {
                Some(seen @ false) => *seen = true,
                _ => return Err(InflightError::FreeList(at)),
            }
            at = next[usize::from(at)];
        }
        let (mut stale, mut requests) = (Vec::new(), Vec::new());
        let free = known.clone();
        for head in 0..size {
            match (region.load_u8(offset_of(head) + entry::INFLIGHT, Relaxed), free[usize::from(head)]) {
                (0, _) => {}
                (1, true) => stale.push(head),
                (1, false) => {
                    let last_and_num = region.load_u32(offset_of(head) + entry::LAST_AND_NUM, Relaxed);
                    let (last, count) = (last_and_num as u16, (last_and_num >> 16) as u16);
                    let mut descriptors = Vec::new();
                    let (mut at, mut end) = (head, None);
                    for _ in 0..count {
                        match known.get_mut(usize::from(at)) {
                            Some(seen @ false) => *seen = true,
                            _ => return Err(InflightError::Request(head)),
                        }
                        descriptors.push(load_descriptor(region, at));
                        end = Some(at);
                        at = next[usize::from(at)];
                    }
                    if end != Some(last) {
                        return Err(InflightError::Request(head));
                    }
                    let counter = region.load_u64(offset_of(head) + entry::COUNTER, Relaxed);
                    requests.push(Found { counter, last, request: Request { head, descriptors } });
                }
                (found, _) => return Err(InflightError::Flag { head, found }),
            }
        }
        let strays = known.iter().filter(|known| !**known).count();
        if strays > 0 {
            return Err(InflightError::Entries(strays as u16));
        }
        requests.sort_unstable_by_key(|found| found.counter);
        Ok(Self { next, stale, requests })
    }
}

fn load_descriptor<W: Window>(region: &W, index: u16) -> PackedDescriptor {
    let word = region.load_u64(offset_of(index) + entry::ID_FLAGS_LEN, Relaxed);
    PackedDescriptor {
        address: region.load_u64(offset_of(index) + entry::ADDR, Relaxed),
        len: (word >> 32) as u32,
        id: word as u16,
        flags: (word >> 16) as u16,
    }
}

/// Where an entry stands in the region.
#[inline]
const fn offset_of(index: u16) -> u64 {
    HEADER_SIZE + ENTRY_SIZE * index as u64
}
