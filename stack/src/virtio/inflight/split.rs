//! Inflight tracking of a split virtqueue.

use super::{ALIGNMENT, InflightError, VERSION};
use crate::reached::Reached;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Relaxed, Release};
use runtime::Window;

/// Bytes of `QueueRegionSplit` before its descriptor states.
const HEADER_SIZE: u64 = 16;
/// Bytes of one `DescStateSplit`.
const STATE_SIZE: u64 = 16;
/// `QueueRegionSplit`: `u64 features; u16 version; u16 desc_num; u16 last_batch_head; u16 used_idx; desc[]`.
mod header {
    pub(super) use super::super::header::{DESC_NUM, FEATURES, VERSION};
    pub(super) const LAST_BATCH_HEAD: u64 = 12;
    pub(super) const USED_IDX: u64 = 14;
}

/// `DescStateSplit`: `u8 inflight; u8 padding[5]; u16 next; u64 counter`.
mod state {
    pub(super) const INFLIGHT: u64 = 0;
    pub(super) const NEXT: u64 = 6;
    pub(super) const COUNTER: u64 = 8;
}

/// Bytes of the region part of one queue of `size` entries.
#[must_use]
pub const fn queue_region_len(size: u16) -> u64 {
    (HEADER_SIZE + STATE_SIZE * size as u64).next_multiple_of(ALIGNMENT)
}

/// The tracking of one running split ring.
#[derive(Debug)]
pub struct SplitInflight<W> {
    region: W,
    /// The next request's counter.
    counter: u64,
    /// Mirrors the region's field, which only this side writes.
    last_batch_head: u16,
}

/// What a region says about the life before.
#[derive(Debug)]
pub struct Recovered<W> {
    /// The tracking, ready to go on.
    pub tracking: SplitInflight<W>,
    /// Whether the region tracked a ring before (and `heads` counts).
    pub tracked: bool,
    /// The heads to submit again, in the order in which they were taken.
    pub heads: Vec<u16>,
}

impl<W: Window> SplitInflight<W> {
    /// Takes over the region of a ring of `size` entries whose used index in memory is `used_index`: a new region is
    /// initialised, a used one recovered (specification: "when reconnecting").
    pub fn recover(region: W, size: u16, used_index: u16) -> Result<Recovered<W>, InflightError> {
        if region.len() < HEADER_SIZE + STATE_SIZE * u64::from(size) || !region.is_aligned(8) {
            return Err(InflightError::Area);
        }
        match region.load_u16(header::VERSION, Relaxed) {
            0 => {
                region.store_u64(header::FEATURES, 0, Release);
                region.store_u16(header::DESC_NUM, size, Release);
                region.store_u16(header::LAST_BATCH_HEAD, 0, Release);
                // The ring need not be at 0 when tracking begins.
                region.store_u16(header::USED_IDX, used_index, Release);
                for head in 0..size {
                    region.store_u8(offset_of(head) + state::INFLIGHT, 0, Release);
                }
                // Last: a death before it leaves a region that was never used.
                region.store_u16(header::VERSION, VERSION, Release);
                Reached::SplitFresh.mark::<W>();
                if used_index != 0 {
                    Reached::SplitFreshOnOldRing.mark::<W>();
                }
                let tracking = Self { region, counter: 0, last_batch_head: 0 };
                Ok(Recovered { tracking, tracked: false, heads: Vec::new() })
            }
            VERSION => Self::recover_used(region, size, used_index),
            other => Err(InflightError::Version(other)),
        }
    }

    fn recover_used(region: W, size: u16, used_index: u16) -> Result<Recovered<W>, InflightError> {
        let found = region.load_u16(header::DESC_NUM, Relaxed);
        if found != size {
            return Err(InflightError::Size { found, ring: size });
        }
        let last_batch_head = region.load_u16(header::LAST_BATCH_HEAD, Relaxed);
        let region_used_index = region.load_u16(header::USED_IDX, Relaxed);

        // The last batch was published and its flags may still be set: walk the whole batch, then clear it. Nothing is
        // stored before all of it was checked.
        let batch = used_index.wrapping_sub(region_used_index);
        if batch > size {
            return Err(InflightError::Batch(batch));
        }
        let mut published = alloc::vec![false; usize::from(size)];
        let mut at = last_batch_head;
        for _ in 0..batch {
            match published.get_mut(usize::from(at)) {
                Some(seen @ false) => *seen = true,
                _ => return Err(InflightError::BatchList(at)),
            }
            at = region.load_u16(offset_of(at) + state::NEXT, Relaxed);
        }

        let (mut requests, mut not_cleared) = (Vec::new(), 0);
        for head in 0..size {
            match region.load_u8(offset_of(head) + state::INFLIGHT, Relaxed) {
                0 => {}
                1 if published[usize::from(head)] => not_cleared += 1,
                1 => requests.push((region.load_u64(offset_of(head) + state::COUNTER, Relaxed), head)),
                found => return Err(InflightError::Flag { head, found }),
            }
        }
        requests.sort_unstable();
        let twice = requests.windows(2).find(|pair| pair[0].0 == pair[1].0);
        let counter = requests.last().map_or(Some(0), |(counter, _)| counter.checked_add(1));
        let (None, Some(counter)) = (twice, counter) else {
            return Err(InflightError::Counter(twice.map_or(u64::MAX, |pair| pair[0].0)));
        };

        for head in (0..size).filter(|head| published[usize::from(*head)]) {
            region.store_u8(offset_of(head) + state::INFLIGHT, 0, Release);
        }
        region.store_u16(header::USED_IDX, used_index, Release);
        if batch > 0 {
            match not_cleared {
                0 => Reached::SplitBatchIndexBehind,
                all if all == batch => Reached::SplitBatchNotCleared,
                _ => Reached::SplitBatchHalfCleared,
            }
            .mark::<W>();
        }
        if requests.is_empty() { Reached::SplitNothingOut } else { Reached::SplitResubmits }.mark::<W>();
        Ok(Recovered {
            tracking: Self { region, counter, last_batch_head },
            tracked: true,
            heads: requests.into_iter().map(|(_, head)| head).collect(),
        })
    }

    /// A head was taken from the available ring ("when receiving available buffers").
    #[inline]
    pub fn taken(&mut self, head: u16) {
        let state = offset_of(head);
        self.region.store_u64(state + state::COUNTER, self.counter, Release);
        self.counter += 1;
        self.region.store_u8(state + state::INFLIGHT, 1, Release);
    }

    /// A head's used entry was written, but not published: it joins the batch ("when completing", steps 1 to 3).
    #[inline]
    pub fn batched(&mut self, head: u16) {
        self.region.store_u16(offset_of(head) + state::NEXT, self.last_batch_head, Release);
        self.region.store_u16(header::LAST_BATCH_HEAD, head, Release);
        self.last_batch_head = head;
    }

    /// The batch was published up to `used_index` (steps 6 and 7).
    #[inline]
    pub fn published(&mut self, batch: impl Iterator<Item = u16>, used_index: u16) {
        for head in batch {
            self.region.store_u8(offset_of(head) + state::INFLIGHT, 0, Release);
        }
        self.region.store_u16(header::USED_IDX, used_index, Release);
    }
}

/// Where the state of a descriptor stands in the region.
#[inline]
const fn offset_of(head: u16) -> u64 {
    HEADER_SIZE + STATE_SIZE * head as u64
}
