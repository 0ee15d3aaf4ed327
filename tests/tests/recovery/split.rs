//! A split ring, its driver and its device.

use super::{Layout, MEMORY_LEN, Request};
use runtime::Window;
use stack::virtio::inflight::{SplitInflight, queue_region_len};
use stack::virtio::split::{Areas, SplitRing, available_len, descriptor_table_len, used_len};
use std::sync::atomic::Ordering::Relaxed;
use tests::flat::{self, FlatWindow};

/// The shared memory of one ring: areas and region.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    pub(super) areas: Areas<FlatWindow>,
    pub(super) region: FlatWindow,
}

impl Shared {
    /// The windows of a ring of `size` onto the thread's memory.
    fn of(size: u16) -> Self {
        let window = |at, len| flat::all().part(at, len);
        let align = |at: u64| at.next_multiple_of(64);
        let available = align(descriptor_table_len(size));
        let used = align(available + available_len(size));
        let region = align(used + used_len(size));
        Self {
            areas: Areas {
                descriptors: window(0, descriptor_table_len(size)),
                available: window(available, available_len(size)),
                used: window(used, used_len(size)),
            },
            region: window(region, queue_region_len(size)),
        }
    }
}

/// What the driver knows. A request has one descriptor, whose index is the head.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Split {
    size: u16,
    available: u16,
    used_seen: u16,
    /// For each head, the request that has it.
    out: Vec<Option<Request>>,
}

impl Split {
    pub(super) fn shared(&self) -> Shared {
        Shared::of(self.size)
    }

    fn used_index(&self) -> u16 {
        self.shared().areas.used.load_u16(2, Relaxed)
    }

    fn name_of(&self, head: u16) -> Request {
        self.out[usize::from(head)].unwrap_or_else(|| panic!("head {head} is not out"))
    }

    fn head_of(&self, request: Request) -> u16 {
        let at = self.out.iter().position(|out| *out == Some(request));
        at.unwrap_or_else(|| panic!("request {request} is not out")) as u16
    }

    /// The heads given back since the driver looked last.
    fn given(&self) -> impl Iterator<Item = u16> {
        let used = self.shared().areas.used;
        let (size, first) = (self.size, self.used_seen);
        (0..self.used_index().wrapping_sub(first)).map(move |after| {
            used.load_u32(4 + 8 * u64::from(first.wrapping_add(after) % size), Relaxed) as u16
        })
    }
}

/// What a life of the device knows.
pub(super) struct Life {
    ring: SplitRing<FlatWindow>,
    tracking: SplitInflight<FlatWindow>,
}

impl Layout for Split {
    type Life = Life;
    const BATCHES_ARE_ATOMIC: bool = true;

    fn new(size: u16, past: u16) -> Self {
        _ = flat::memory(MEMORY_LEN);
        let this = Self { size, available: past, used_seen: past, out: vec![None; usize::from(size)] };
        let Shared { areas, .. } = this.shared();
        areas.available.store_u16(2, past, Relaxed);
        areas.used.store_u16(2, past, Relaxed);
        this
    }

    fn offer(&mut self, request: Request, _: u16) -> bool {
        let Some(head) = self.out.iter().position(Option::is_none) else { return false };
        let Shared { areas, .. } = self.shared();
        let slot = u64::from(self.available % self.size);
        areas.available.store_u16(4 + 2 * slot, head as u16, Relaxed);
        self.available = self.available.wrapping_add(1);
        areas.available.store_u16(2, self.available, Relaxed);
        self.out[head] = Some(request);
        true
    }

    fn visible(&self) -> Vec<Request> {
        self.given().map(|head| self.name_of(head)).collect()
    }

    fn reap(&mut self) -> Vec<Request> {
        let heads: Vec<_> = self.given().collect();
        self.used_seen = self.used_index();
        let take = |head| self.out[usize::from(head)].take();
        heads.into_iter().map(take).map(|request| request.expect("a head that is out")).collect()
    }

    fn begin(&self) -> (Life, Vec<Request>) {
        let Shared { areas, region } = self.shared();
        let used = self.used_index();
        let recovered = SplitInflight::recover(region, self.size, used).expect("what the algorithm left");
        let next = used.wrapping_add(recovered.heads.len() as u16);
        let ring = SplitRing::new(areas, self.size, false, next).expect("a good ring");
        let found = recovered.heads.iter().map(|head| self.name_of(*head)).collect();
        (Life { ring, tracking: recovered.tracking }, found)
    }

    fn take(&self, life: &mut Life) -> Option<Request> {
        let head = life.ring.take().expect("a good driver")?;
        life.tracking.taken(head);
        Some(self.name_of(head))
    }

    fn give_back(&self, life: &mut Life, batch: &[Request]) {
        let heads: Vec<u16> = batch.iter().map(|request| self.head_of(*request)).collect();
        for head in &heads {
            life.ring.push_used(*head, 1);
            life.tracking.batched(*head);
        }
        life.ring.publish();
        life.tracking.published(heads.iter().copied(), life.ring.used_index());
    }
}
