//! A packed ring, its driver and its device.

use super::{Layout, MEMORY_LEN, Request};
use runtime::Window;
use stack::virtio::inflight::packed::{PackedInflight, queue_region_len};
use stack::virtio::packed::{
    EVENT_SUPPRESSION_LEN, PackedDescriptor, PackedRing, Position, descriptor_ring_len,
};
use stack::virtio::split::Areas;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use tests::flat::{self, FlatWindow};

const NEXT: u16 = 1;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

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
        let driver = align(descriptor_ring_len(size));
        let device = driver + EVENT_SUPPRESSION_LEN;
        let region = align(device + EVENT_SUPPRESSION_LEN);
        Self {
            areas: Areas {
                descriptors: window(0, descriptor_ring_len(size)),
                available: window(driver, EVENT_SUPPRESSION_LEN),
                used: window(device, EVENT_SUPPRESSION_LEN),
            },
            region: window(region, queue_region_len(size)),
        }
    }
}

/// What the driver knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Packed {
    size: u16,
    available: Position,
    used_seen: Position,
    /// Places that are the driver's.
    free: u16,
    /// For each id, the request that has it and its descriptors.
    out: Vec<Option<(Request, u16)>>,
}

impl Packed {
    pub(super) fn shared(&self) -> Shared {
        Shared::of(self.size)
    }

    /// Where the ring begins when recovery has nothing better.
    pub(super) fn start(past: u16, size: u16) -> Position {
        (0..past).fold(Position::START, |at, _| at.advance(1, size))
    }

    fn name_of(&self, id: u16) -> Request {
        self.out[usize::from(id)].unwrap_or_else(|| panic!("id {id} is not out")).0
    }

    /// The ids given back since the driver looked last, and where the ring then stands.
    fn given(&self) -> (Vec<u16>, Position) {
        let ring = self.shared().areas.descriptors;
        let (mut ids, mut at) = (Vec::new(), self.used_seen);
        // The driver never looks further than what it has out.
        while ids.len() < self.out.iter().flatten().count() {
            let flags = ring.load_u16(16 * u64::from(at.index) + 14, Relaxed);
            let turn = if at.wrap { AVAIL | USED } else { 0 };
            if flags & (AVAIL | USED) != turn {
                break;
            }
            let id = ring.load_u16(16 * u64::from(at.index) + 12, Relaxed);
            let (_, descriptors) = self.out[usize::from(id)].expect("an id that is out");
            at = at.advance(descriptors, self.size);
            ids.push(id);
        }
        (ids, at)
    }
}

/// What a life of the device knows.
pub(super) struct Life {
    ring: PackedRing<FlatWindow>,
    tracking: PackedInflight<FlatWindow>,
    /// By request: number in the table, id, descriptors.
    in_flight: HashMap<Request, (u16, u16, u16)>,
}

impl Life {
    /// Remembers a request, and holds its descriptors against what the driver wrote.
    fn know(&mut self, head: u16, descriptors: &[PackedDescriptor], out: &Packed) -> Request {
        let id = descriptors.last().expect("at least one").id;
        let request = out.name_of(id);
        let last = descriptors.len() - 1;
        for (index, descriptor) in descriptors.iter().enumerate() {
            assert_eq!(descriptor.address, u64::from(request) << 16 | index as u64);
            assert_eq!(descriptor.len, request + 512);
            assert_eq!(descriptor.flags & NEXT != 0, index < last);
        }
        self.in_flight.insert(request, (head, id, descriptors.len() as u16));
        request
    }
}

impl Layout for Packed {
    type Life = Life;
    const BATCHES_ARE_ATOMIC: bool = false;

    fn new(size: u16, past: u16) -> Self {
        _ = flat::memory(MEMORY_LEN);
        let start = Self::start(past, size);
        let this =
            Self { size, available: start, used_seen: start, free: size, out: vec![None; usize::from(size)] };
        // What the laps before left: used descriptors.
        let ring = this.shared().areas.descriptors;
        for index in 0..size {
            let wrap = start.wrap == (index < start.index);
            let flags = if wrap { AVAIL | USED } else { 0 };
            ring.store_u16(16 * u64::from(index) + 14, flags, Relaxed);
        }
        this
    }

    fn offer(&mut self, request: Request, descriptors: u16) -> bool {
        let Some(id) = self.out.iter().position(Option::is_none).filter(|_| descriptors <= self.free) else {
            return false;
        };
        let ring = self.shared().areas.descriptors;
        for index in 0..descriptors {
            let at = 16 * u64::from(self.available.index);
            let next = if index + 1 < descriptors { NEXT } else { 0 };
            ring.store_u64(at, u64::from(request) << 16 | u64::from(index), Relaxed);
            ring.store_u32(at + 8, request + 512, Relaxed);
            ring.store_u16(at + 12, id as u16, Relaxed);
            ring.store_u16(at + 14, next | if self.available.wrap { AVAIL } else { USED }, Relaxed);
            self.available = self.available.advance(1, self.size);
        }
        self.free -= descriptors;
        self.out[id] = Some((request, descriptors));
        true
    }

    fn visible(&self) -> Vec<Request> {
        self.given().0.into_iter().map(|id| self.name_of(id)).collect()
    }

    fn reap(&mut self) -> Vec<Request> {
        let (ids, at) = self.given();
        self.used_seen = at;
        let mut requests = Vec::new();
        for id in ids {
            let (request, descriptors) = self.out[usize::from(id)].take().expect("an id that is out");
            self.free += descriptors;
            requests.push(request);
        }
        requests
    }

    fn begin(&self) -> (Life, Vec<Request>) {
        let Shared { areas, region } = self.shared();
        // A front-end that saw the other process die knows where the ring began, and nothing later; the region was
        // made then.
        let recovered = PackedInflight::recover(region, &areas.descriptors, self.size, self.used_seen)
            .expect("what the algorithm left");
        let taken = recovered.requests.iter().map(|request| request.descriptors.len() as u16).sum();
        let available = recovered.used.advance(taken, self.size);
        let ring = PackedRing::new(areas, self.size, false, available, recovered.used).expect("a good ring");
        let mut life = Life { ring, tracking: recovered.tracking, in_flight: HashMap::new() };
        let requests = recovered.requests.iter();
        let found = requests.map(|request| life.know(request.head, &request.descriptors, self)).collect();
        (life, found)
    }

    fn take(&self, life: &mut Life) -> Option<Request> {
        let mut descriptors = Vec::new();
        if !life.ring.take(&mut descriptors).expect("a good driver") {
            return None;
        }
        let head = life.tracking.taken(&descriptors);
        Some(life.know(head, &descriptors, self))
    }

    fn give_back(&self, life: &mut Life, batch: &[Request]) {
        for request in batch {
            let (head, id, descriptors) = life.in_flight.remove(request).expect("in flight");
            let (from, to) = (life.ring.next_used(), life.ring.used_after(descriptors));
            life.tracking.completing(head, from, to);
            life.ring.give_back(id, 1, descriptors);
            life.tracking.completed(head, to);
        }
    }
}
