//! A virtqueue with the tracking of its requests, of either layout, as a device runs it.
//!
//! A request has a number below the ring's size, under which it is tracked: in a split ring its head, in a packed one
//! its first entry in the table (`inflight::packed`).

use super::chain::{Chain, ChainError};
use super::inflight::packed::PackedInflight;
use super::inflight::{InflightError, SplitInflight};
use super::log::DirtyLog;
use super::memory::Lookup;
use super::packed::{self, PackedDescriptor, PackedRing, Position};
use super::split::{Areas, RingError, SplitRing};
use crate::reached::Reached;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use runtime::{Platform, Window};

/// How a ring lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Descriptor table, available and used ring.
    Split,
    /// One ring of descriptors, and two event suppression structures.
    Packed,
}

impl Layout {
    /// By the features that the driver accepted.
    #[must_use]
    pub const fn of(features: u64) -> Self {
        if features & super::features::RING_PACKED == 0 { Self::Split } else { Self::Packed }
    }

    /// Bytes of the three areas of a ring of `size`: descriptors, the driver's, the device's.
    #[must_use]
    pub const fn area_lens(self, size: u16) -> [u64; 3] {
        use super::split::{available_len, descriptor_table_len, used_len};
        const EVENT: u64 = packed::EVENT_SUPPRESSION_LEN;
        match self {
            Self::Split => [descriptor_table_len(size), available_len(size), used_len(size)],
            Self::Packed => [packed::descriptor_ring_len(size), EVENT, EVENT],
        }
    }

    /// Bytes of the part of an inflight region for a ring of `size`.
    #[must_use]
    pub const fn inflight_len(self, size: u16) -> u64 {
        match self {
            Self::Split => super::inflight::queue_region_len(size),
            Self::Packed => super::inflight::packed::queue_region_len(size),
        }
    }

    /// The base of a ring that a front-end says none of (`SET_VRING_BASE`): its beginning.
    #[must_use]
    pub const fn first_base(self) -> u32 {
        match self {
            Self::Split => 0,
            Self::Packed => Position::START.bits() as u32 * 0x1_0001,
        }
    }
}

/// Guest physical addresses under which what the device writes to a ring is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogAddresses {
    /// Of the descriptors: written in a packed ring only. `None`: not in guest memory.
    pub descriptors: Option<u64>,
    /// Of the device area.
    pub device: u64,
}

/// What a ring is started with.
pub(super) struct RingConfig<W> {
    pub(super) layout: Layout,
    pub(super) areas: Areas<W>,
    pub(super) size: u16,
    /// As vhost-user has it: the next available index; packed, the next available and the next used position.
    pub(super) base: u32,
    pub(super) event_idx: bool,
    pub(super) inflight: Option<W>,
}

/// A ring that was started.
pub(super) struct Started<W> {
    pub(super) ring: Ring<W>,
    /// The requests of a dead life, by number, in the order in which they were taken. `None`: none was tracked.
    pub(super) recovered: Option<Vec<u16>>,
}

/// How far a ring came by giving back, for [`Ring::wants_notification`] and the dirty log: the used index before;
/// packed, the places that were passed.
#[derive(Clone, Copy, Default)]
pub(super) struct Progress(u16);

/// A request of a packed ring: what the driver calls it, and how many places it takes.
#[derive(Clone, Copy, Default)]
pub(super) struct PackedName {
    id: u16,
    places: u16,
}

impl PackedName {
    /// The id of a chain is that of its last descriptor (section 2.8.6).
    fn of(descriptors: &[PackedDescriptor]) -> Self {
        Self { id: descriptors.last().map_or(0, |last| last.id), places: descriptors.len() as u16 }
    }
}

/// A ring and its tracking.
pub(super) enum Ring<W> {
    Split {
        ring: SplitRing<W>,
        inflight: Option<SplitInflight<W>>,
    },
    Packed {
        ring: PackedRing<W>,
        table: PackedInflight<W>,
        /// What each request in flight is given back as, by its number.
        names: Box<[PackedName]>,
        /// The descriptors of the request that was taken last.
        taken: Vec<PackedDescriptor>,
        /// The descriptors of recovered requests that nobody has walked yet.
        recovered: BTreeMap<u16, Vec<PackedDescriptor>>,
    },
}

impl<W: Window> Ring<W> {
    /// Starts a ring, and finalises recovery when it was tracked.
    pub(super) fn start<E>(config: RingConfig<W>) -> Result<Started<W>, E>
    where
        E: From<RingError> + From<InflightError>,
    {
        match config.layout {
            Layout::Split => Self::start_split(config),
            Layout::Packed => Self::start_packed(config),
        }
    }

    fn start_split<E>(config: RingConfig<W>) -> Result<Started<W>, E>
    where
        E: From<RingError> + From<InflightError>,
    {
        let RingConfig { areas, size, base, event_idx, inflight: region, .. } = config;
        let Ok(next_available) = u16::try_from(base) else {
            return Err(RingError::Base { available: base as u16, used: (base >> 16) as u16 }.into());
        };
        let mut ring = SplitRing::new(areas, size, event_idx, next_available)?;
        let used = ring.used_index();
        if (1..=size).contains(&used.wrapping_sub(next_available)) {
            // A front-end that is not told where the ring stopped reads the used index, and may read it while what was
            // out when its connection ended is still given back. What has been given back must not be taken again.
            Reached::SplitBaseBehind.mark::<W>();
            ring = SplitRing::new(areas, size, event_idx, used)?;
        }
        let Some(region) = region else {
            return Ok(Started { ring: Self::Split { ring, inflight: None }, recovered: None });
        };
        let found = SplitInflight::recover(region, size, ring.used_index())?;
        if found.tracked {
            // What was taken is what was given back and what is in flight; the front-end's number knows less.
            let taken = ring.used_index().wrapping_add(found.heads.len() as u16);
            if taken != next_available {
                Reached::SplitBaseOverruled.mark::<W>();
            }
            ring = SplitRing::new(areas, size, event_idx, taken)?;
            // A region that claims more than the driver ever made available is found out before any of it is done.
            ring.check_available()?;
        }
        let ring = Self::Split { ring, inflight: Some(found.tracking) };
        Ok(Started { ring, recovered: found.tracked.then_some(found.heads) })
    }

    fn start_packed<E>(config: RingConfig<W>) -> Result<Started<W>, E>
    where
        E: From<RingError> + From<InflightError>,
    {
        let RingConfig { areas, size, base, event_idx, inflight: region, .. } = config;
        let (available, used) = (Position::from_bits(base as u16), Position::from_bits((base >> 16) as u16));
        let mut ring = PackedRing::new(areas, size, event_idx, available, used)?;
        let mut names = alloc::vec![PackedName::default(); usize::from(size)].into_boxed_slice();
        let (mut table, mut heads, mut recovered) = (None, None, BTreeMap::new());
        if let Some(region) = region {
            let found = PackedInflight::recover(region, &areas.descriptors, size, used)?;
            if found.tracked {
                // The front-end's base is of no use: it cannot know where the dead life stood.
                let taken = found.requests.iter().map(|request| request.descriptors.len() as u16).sum();
                let (front_end, available) = (available, found.used.advance(taken, size));
                if (available, found.used) != (front_end, used) {
                    Reached::PackedBaseOverruled.mark::<W>();
                }
                ring = PackedRing::new(areas, size, event_idx, available, found.used)?;
                heads = Some(found.requests.iter().map(|request| request.head).collect());
            }
            for request in found.requests {
                names[usize::from(request.head)] = PackedName::of(&request.descriptors);
                recovered.insert(request.head, request.descriptors);
            }
            table = Some(found.tracking);
        }
        let table = table.unwrap_or_else(|| PackedInflight::untracked(size));
        let ring = Self::Packed { ring, table, names, taken: Vec::new(), recovered };
        Ok(Started { ring, recovered: heads })
    }

    pub(super) fn size(&self) -> u16 {
        match self {
            Self::Split { ring, .. } => ring.size(),
            Self::Packed { ring, .. } => ring.size(),
        }
    }

    /// Where the ring goes on, as vhost-user has it (`GET_VRING_BASE`).
    pub(super) fn base(&self) -> u32 {
        match self {
            Self::Split { ring, .. } => ring.next_available().into(),
            Self::Packed { ring, .. } => {
                u32::from(ring.next_available().bits()) | u32::from(ring.next_used().bits()) << 16
            }
        }
    }

    pub(super) fn rebase(&mut self, areas: Areas<W>) -> Result<(), RingError> {
        match self {
            Self::Split { ring, .. } => ring.rebase(areas),
            Self::Packed { ring, .. } => ring.rebase(areas),
        }
    }

    /// Takes the next request from the ring, if there is one: its number. Nothing knows of it before it is tracked.
    #[inline]
    pub(super) fn take(&mut self) -> Result<Option<u16>, RingError> {
        match self {
            Self::Split { ring, .. } => ring.take(),
            Self::Packed { ring, table, taken, .. } => Ok(ring.take(taken)?.then(|| table.next_number())),
        }
    }

    /// Tracks the request that was taken last. It is walked before the next one is taken.
    #[inline]
    pub(super) fn track(&mut self, number: u16) {
        match self {
            Self::Split { inflight, .. } => {
                if let Some(inflight) = inflight {
                    inflight.taken(number);
                }
            }
            Self::Packed { table, names, taken, .. } => {
                table.taken(taken);
                names[usize::from(number)] = PackedName::of(taken);
            }
        }
    }

    /// Finds the buffers of a request in flight; once for each.
    #[inline(always)]
    pub(super) fn walk<P: Platform<Window = W>>(
        &mut self,
        number: u16,
        chain: &mut Chain<W>,
        indirect_allowed: bool,
        memory: &mut Lookup<'_, P>,
    ) -> Result<(), ChainError> {
        match self {
            Self::Split { ring, .. } => {
                chain.walk_split(ring.descriptors(), ring.size(), number, indirect_allowed, memory)
            }
            Self::Packed { taken, recovered, .. } => match recovered.remove(&number) {
                Some(descriptors) => chain.walk_packed(&descriptors, indirect_allowed, memory),
                None => chain.walk_packed(taken, indirect_allowed, memory),
            },
        }
    }

    /// Gives requests back, by number and with the bytes written to each.
    #[inline]
    pub(super) fn give_back(&mut self, batch: &[(u16, u32)]) -> Progress {
        match self {
            Self::Split { ring, inflight } => {
                for (head, len) in batch {
                    ring.push_used(*head, *len);
                    if let Some(inflight) = inflight {
                        inflight.batched(*head);
                    }
                }
                let before = ring.publish();
                if let Some(inflight) = inflight {
                    inflight.published(batch.iter().map(|(head, _)| *head), ring.used_index());
                }
                Progress(before)
            }
            Self::Packed { ring, table, names, .. } => {
                let mut passed = 0;
                for (head, len) in batch {
                    let PackedName { id, places } = names[usize::from(*head)];
                    let (from, to) = (ring.next_used(), ring.used_after(places));
                    table.completing(*head, from, to);
                    ring.give_back(id, *len, places);
                    table.completed(*head, to);
                    passed += places;
                }
                Progress(passed)
            }
        }
    }

    /// Nothing given back: for a notification that is owed all the same.
    pub(super) fn no_progress(&self) -> Progress {
        match self {
            Self::Split { ring, .. } => Progress(ring.used_index()),
            Self::Packed { .. } => Progress(0),
        }
    }

    /// Whether the driver wants to be told of what was given back.
    #[inline]
    pub(super) fn wants_notification(&self, progress: Progress) -> bool {
        match self {
            Self::Split { ring, .. } => ring.wants_notification(progress.0),
            Self::Packed { ring, .. } => ring.wants_notification(progress.0),
        }
    }

    /// Asks the driver to notify from now on, and looks again; whether there is work after all.
    pub(super) fn enable_notifications(&mut self) -> Result<bool, RingError> {
        match self {
            Self::Split { ring, .. } => ring.enable_notifications(),
            Self::Packed { ring, .. } => Ok(ring.enable_notifications()),
        }
    }

    /// Asks the driver not to notify. Whether something was written.
    #[inline]
    pub(super) fn disable_notifications(&mut self) -> bool {
        match self {
            Self::Split { ring, .. } => ring.disable_notifications(),
            Self::Packed { ring, .. } => ring.disable_notifications(),
        }
    }

    /// Logs what was written by giving back.
    pub(super) fn log_given_back<P: Platform>(
        &self,
        progress: Progress,
        log: &DirtyLog<P>,
        addresses: &LogAddresses,
    ) {
        match self {
            Self::Split { ring, .. } => {
                for (offset, len) in ring.written_since(progress.0) {
                    log.mark(addresses.device.saturating_add(offset), len);
                }
            }
            Self::Packed { ring, .. } => {
                let Some(address) = addresses.descriptors else { return };
                for (offset, len) in ring.written(progress.0) {
                    log.mark(address.saturating_add(offset), len);
                }
            }
        }
    }

    /// Logs that the wish to be notified was written.
    pub(super) fn log_wish<P: Platform>(&self, log: &DirtyLog<P>, addresses: &LogAddresses) {
        let (offset, len) = match self {
            Self::Split { ring, .. } => ring.wish(),
            Self::Packed { .. } => (0, packed::EVENT_SUPPRESSION_LEN),
        };
        log.mark(addresses.device.saturating_add(offset), len);
    }
}
