//! What the queues of one guest's device share: what was negotiated, what is still to be asked, and the counts.

use super::listed::Listed;
use super::request::Ask;
use super::request::LayoutStyle;
use super::ring::RingFeatures;
use super::workload::{Offer, Workload};
use crate::check::{CacheMode, Kind, RequestId};
use crate::rng::Rng;
use std::collections::VecDeque;

/// The shared part of a guest's driver.
#[derive(Debug)]
pub struct Device {
    /// Number of the disk, part of every stamp.
    pub disk: u16,
    /// The shape of the load.
    pub workload: Workload,
    /// What the device allows.
    pub offer: Offer,
    /// What was negotiated for the rings.
    pub features: RingFeatures,
    /// The driver is started and no reset is under way.
    pub running: bool,
    /// The cache mode now.
    pub cache: CacheMode,
    /// Counts the changes of it, begun and ended.
    pub cache_epoch: u32,
    /// The disk below may answer errors.
    pub disk_may_fail: bool,
    /// Requests that completed.
    pub completed: u64,
    /// Room for the versions of a torn sector.
    pub parts: Vec<u32>,
    /// Requests still to be made.
    left: u64,
    /// In a replay that lists them: those that each queue still makes.
    listed: Option<Vec<VecDeque<Listed>>>,
    /// Requests that a firmware still has to make, and whether the guest's own load waits for it.
    firmware_left: u64,
    load_held: bool,
    /// No request is made at the moment.
    held: bool,
    /// The next sector of a pass over the whole disk, when one is under way.
    pass: Option<u64>,
    made: u64,
    versions: u32,
    /// The device's size when a request beyond it could last be an error.
    smallest_capacity: u64,
}

impl Device {
    /// A device that was not started yet.
    #[must_use]
    pub fn new(disk: u16, workload: Workload, offer: Offer) -> Self {
        Self {
            disk,
            workload,
            offer,
            features: RingFeatures { packed: false, event_idx: false, indirect: false },
            running: false,
            cache: CacheMode::Writeback,
            cache_epoch: 0,
            disk_may_fail: false,
            completed: 0,
            parts: Vec::new(),
            left: 0,
            listed: None,
            firmware_left: 0,
            load_held: false,
            held: false,
            pass: None,
            made: 0,
            versions: 0,
            smallest_capacity: offer.capacity,
        }
    }

    /// Lets the queues make `requests` more requests. Where they are listed, the list is all there is.
    pub fn allow(&mut self, requests: u64) {
        if self.listed.is_none() {
            self.left += requests;
        }
    }

    /// Makes exactly these requests the load of `queues` queues.
    pub fn list(&mut self, requests: &[Listed], queues: u16) {
        let of = |queue| requests.iter().filter(|listed| listed.queue == queue).copied().collect();
        self.left = requests.len() as u64;
        self.listed = Some((0..queues).map(of).collect());
    }

    /// Makes the queues read the whole disk once, before anything else.
    pub fn read_all(&mut self) {
        self.pass = Some(0);
    }

    /// Makes no new requests while `held`.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Whether there is another request to make for a queue.
    #[must_use]
    pub fn has_more(&self, queue: u16) -> bool {
        if self.held {
            return false;
        }
        if self.load_held {
            return self.firmware_left > 0;
        }
        let listed = self.listed.as_ref().is_none_or(|listed| !listed[usize::from(queue)].is_empty());
        self.pass.is_some() || (self.left > 0 && listed)
    }

    /// Whether anything at all is still to be asked, now or later.
    #[must_use]
    pub fn has_load(&self) -> bool {
        self.pass.is_some() || self.left > 0 || self.firmware_left > 0
    }

    /// The guest's own load waits (for a firmware to be through), or does no more.
    pub fn hold_load(&mut self, held: bool) {
        self.load_held = held;
        self.firmware_left = 0;
    }

    /// Lets a firmware make `requests` reads.
    pub fn allow_firmware(&mut self, requests: u64) {
        self.firmware_left = requests;
    }

    /// Draws the next request of a queue.
    pub fn draw(&mut self, queue: u16, rng: &mut Rng) -> Ask {
        if self.load_held {
            self.firmware_left -= 1;
            let sector = rng.below(self.offer.capacity);
            let block = u64::from(self.offer.block_sectors);
            return self.plain_read(sector / block * block, self.offer.block_sectors);
        }
        if let Some(sector) = self.pass {
            let sectors = u64::from(self.workload.sectors_max).min(self.offer.capacity - sector);
            let next = sector + sectors;
            self.pass = (next < self.offer.capacity).then_some(next);
            return self.plain_read(sector, sectors as u32);
        }
        self.left -= 1;
        // Drawn even where it is listed: the list of everything that was drawn is the very same run.
        let mut ask = self.workload.draw(&self.offer, rng);
        if let Some(listed) = self.listed.as_mut().and_then(|listed| listed[usize::from(queue)].pop_front()) {
            (ask.kind, ask.sector, ask.sectors) = (listed.kind, listed.sector, listed.sectors);
        }
        if ask.kind.changes_content() {
            self.versions += 1;
            ask.version = self.versions;
        }
        ask
    }

    fn plain_read(&self, sector: u64, sectors: u32) -> Ask {
        let (kind, style, block_sectors) = (Kind::Read, LayoutStyle::Plain, self.offer.block_sectors);
        Ask { kind, sector, sectors, block_sectors, version: 0, unmap: false, style, of_load: false }
    }

    /// The next request's id.
    pub fn next_id(&mut self) -> RequestId {
        self.made += 1;
        RequestId(self.made)
    }

    /// Requests made.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made
    }

    /// Whether a request may end badly.
    #[must_use]
    pub fn may_fail(&self, ask: &Ask) -> bool {
        self.disk_may_fail || ask.sector + u64::from(ask.sectors) > self.smallest_capacity
    }

    /// The driver learned of a new size; until it did, requests inside the old one were right.
    pub fn resized(&mut self, capacity: u64) {
        self.smallest_capacity = self.smallest_capacity.min(capacity).max(1);
        self.offer.capacity = capacity;
    }

    /// A change of the cache mode begins (`Changing`) or is acknowledged.
    pub fn set_cache(&mut self, cache: CacheMode) {
        self.cache = cache;
        self.cache_epoch += 1;
    }
}
