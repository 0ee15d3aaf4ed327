//! The block device by itself, where only it can be seen: what it does with a region that cannot be, without anybody to
//! notify, and how much of a core and of memory the worst guest gets.

use runtime::{Handle, Instant, Memory, Platform, Window};
use stack::block::Bdev;
use stack::virtio::blk::{BlkDevice, BlkOptions, QueueConfig, QueueError};
use stack::virtio::features;
use stack::virtio::inflight::queue_region_len;
use stack::virtio::memory::{GuestMemory, Region};
use stack::virtio::split::{RingError, available_len, descriptor_table_len, used_len};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tests::vhost::by_hand::ByHand;
use tests::vhost::gate::{Gate, GateBdev};

const SIZE: u16 = 8;
const AVAILABLE: u64 = 4096;
const USED: u64 = 8192;
const REQUEST: u64 = 12288;

/// A device on a ring at index 10, one request laid out at descriptors 0 to 2, and its inflight region.
struct Rig {
    device: BlkDevice<ByHand>,
    memory: GuestMemory<ByHand>,
    guest: <ByHand as Platform>::Window,
    region: <ByHand as Platform>::Memory,
}

impl Rig {
    fn new() -> Self {
        let platform = ByHand::default();
        let bdev: Arc<dyn Bdev<ByHand>> = Arc::new(GateBdev(Gate::new(64)));
        let channel = bdev.channel(&platform).expect("a channel");
        let options = BlkOptions { read_only: false, packed_ring: false, device: 0 };
        let mut device = BlkDevice::new(platform.clone(), bdev, channel, options);
        device.set_features(features::VERSION_1).expect("offered");
        let len = 1 << 16;
        let backing = platform.shared_memory("guest", len).expect("memory");
        let guest = backing.window();
        let mut memory = GuestMemory::new();
        memory
            .insert(Region { guest_address: 0, len, user_address: 0, memory: backing })
            .expect("one region");
        for (index, (address, len, flags)) in
            [(REQUEST, 16_u64, 1_u64), (REQUEST + 512, 512, 3), (REQUEST + 2048, 1, 2)]
                .into_iter()
                .enumerate()
        {
            let index = index as u64;
            guest.store_u64(16 * index, address, Relaxed);
            guest.store_u64(16 * index + 8, len | flags << 32 | (index + 1) << 48, Relaxed);
        }
        guest.store_u16(AVAILABLE + 2, 10, Relaxed);
        guest.store_u16(USED + 2, 10, Relaxed);
        let region = platform.shared_memory("inflight", queue_region_len(SIZE)).expect("memory");
        Self { device, memory, guest, region }
    }

    fn start(&mut self) -> Result<(), QueueError> {
        self.start_at(10)
    }

    fn start_at(&mut self, base: u32) -> Result<(), QueueError> {
        let part = |at, len| self.guest.slice(at, len).expect("inside");
        let config = QueueConfig {
            size: SIZE,
            base,
            descriptors: part(0, 128),
            available: part(AVAILABLE, 22),
            used: part(USED, 70),
            log_addresses: None,
            inflight: Some(self.region.window()),
        };
        self.device.start_queue(0, config)?;
        self.device.set_enabled(0, true);
        Ok(())
    }

    /// The driver makes descriptor 0 available.
    fn offer(&self) {
        let next = self.guest.load_u16(AVAILABLE + 2, Relaxed);
        self.guest.store_u16(AVAILABLE + 4 + 2 * u64::from(next % SIZE), 0, Relaxed);
        self.guest.store_u16(AVAILABLE + 2, next.wrapping_add(1), Relaxed);
    }

    /// A life that took the request and died: as the algorithm leaves the region.
    fn leave_in_flight(&self) {
        let region = self.region.window();
        region.store_u16(8, 1, Relaxed);
        region.store_u16(10, SIZE, Relaxed);
        region.store_u16(14, 10, Relaxed);
        region.store_u8(16, 1, Relaxed);
    }

    /// Polls until there is no work; a device that always has some is spinning.
    fn settle(&mut self, at: u64) {
        let polls = (0..100).take_while(|_| self.device.poll(Instant(at), &self.memory)).count();
        assert!(polls < 100, "a core that could sleep is kept awake");
    }

    fn used(&self) -> u16 {
        self.guest.load_u16(USED + 2, Relaxed)
    }
}

#[test]
fn a_region_that_claims_what_was_never_made_available_is_refused_before_anything_runs() {
    let mut rig = Rig::new();
    rig.leave_in_flight();
    let refused = rig.start();
    let jump = QueueError::Ring(RingError::AvailableJump { next: 11, found: 10 });
    assert_eq!(refused, Err(jump));
    assert!(!rig.device.is_started(0) && !rig.device.poll(Instant(0), &rig.memory));
    assert_eq!(rig.used(), 10, "nothing was executed");
}

/// What QEMU hands over when a connection broke before it was told where a ring stopped is the used index that it saw
/// then, and requests were given back since.
#[test]
fn a_base_behind_the_used_index_gives_nothing_back_twice() {
    for behind in 1..=SIZE {
        let mut rig = Rig::new();
        rig.offer();
        rig.start_at((10 - behind.min(10)).into()).expect("a ring");
        rig.settle(0);
        assert_eq!(rig.used(), 11, "base {behind} behind: one request was out, and no more");
    }
}

#[test]
fn what_is_owed_to_nobody_is_no_work_and_is_paid_when_somebody_comes() {
    let mut rig = Rig::new();
    rig.offer();
    rig.leave_in_flight();
    rig.start().expect("a request that was made available");
    rig.settle(0);
    assert_eq!(rig.used(), 11, "the request was replayed");
    let call = tests::vhost::front_end::new_eventfd();
    let handle = hw::HostHandle::from(call.try_clone().expect("a descriptor"));
    rig.device.set_call(0, Some(handle.into_notifier().expect("an eventfd")));
    rig.settle(2);
    assert_eq!(tests::vhost::front_end::take(&call), 1, "one notification after a recovery");
}

/// A device on many rings, each in guest memory of its own.
struct Rings {
    device: BlkDevice<ByHand>,
    memory: GuestMemory<ByHand>,
    guest: <ByHand as Platform>::Window,
    gate: Arc<Gate>,
    rings: u16,
    size: u16,
}

impl Rings {
    fn new(rings: u16, size: u16) -> Self {
        Self::on_disk(64, rings, size)
    }

    fn on_disk(num_blocks: u64, rings: u16, size: u16) -> Self {
        let (platform, gate) = (ByHand::default(), Gate::new(num_blocks));
        let bdev: Arc<dyn Bdev<ByHand>> = Arc::new(GateBdev(gate.clone()));
        let channel = bdev.channel(&platform).expect("a channel");
        let options = BlkOptions { read_only: false, packed_ring: false, device: 0 };
        let mut device = BlkDevice::new(platform.clone(), bdev, channel, options);
        device.set_features(features::VERSION_1).expect("offered");
        let len = u64::from(rings) * Self::space(size);
        let backing = platform.shared_memory("guest", len).expect("memory");
        let guest = backing.window();
        let mut memory = GuestMemory::new();
        let region = Region { guest_address: 0, len, user_address: 0, memory: backing };
        memory.insert(region).expect("one region");
        let this = Self { device, memory, guest, gate, rings, size };
        (0..rings).fold(this, |mut this, ring| {
            let part = |at, len| this.guest.slice(this.at(ring) + at, len).expect("inside");
            let config = QueueConfig {
                size,
                base: 0,
                descriptors: part(0, descriptor_table_len(size)),
                available: part(Self::available(size), available_len(size)),
                used: part(Self::used_area(size), used_len(size)),
                log_addresses: None,
                inflight: None,
            };
            this.device.start_queue(ring, config).expect("a good ring");
            this.device.set_enabled(ring, true);
            this
        })
    }

    fn available(size: u16) -> u64 {
        descriptor_table_len(size)
    }

    fn used_area(size: u16) -> u64 {
        (Self::available(size) + available_len(size)).next_multiple_of(4)
    }

    /// Where the header and the status of each request lie, the same for all: a FLUSH.
    fn buffers(size: u16) -> u64 {
        (Self::used_area(size) + used_len(size)).next_multiple_of(16)
    }

    fn space(size: u16) -> u64 {
        (Self::buffers(size) + 32).next_multiple_of(4096)
    }

    fn at(&self, ring: u16) -> u64 {
        u64::from(ring) * Self::space(self.size)
    }

    fn descriptor(&self, ring: u16, index: u16, (address, len): (u64, u64), flags: u64, next: u16) {
        let at = self.at(ring) + 16 * u64::from(index);
        self.guest.store_u64(at, address, Relaxed);
        self.guest.store_u64(at + 8, len | flags << 32 | u64::from(next) << 48, Relaxed);
    }

    /// The first `count` requests of each ring, `stride` descriptors apart, become available.
    fn offer(&self, count: u16, stride: u16) {
        for ring in 0..self.rings {
            let available = self.at(ring) + Self::available(self.size);
            for slot in 0..count {
                self.guest.store_u16(available + 4 + 2 * u64::from(slot), stride * slot, Relaxed);
            }
            self.guest.store_u16(available + 2, count, Relaxed);
        }
    }

    /// Each ring's requests are FLUSHes of two descriptors.
    fn flushes(&self, count: u16) {
        for ring in 0..self.rings {
            let buffers = self.at(ring) + Self::buffers(self.size);
            self.guest.store_u32(buffers, 4, Relaxed);
            for head in (0..2 * count).step_by(2) {
                self.descriptor(ring, head, (buffers, 16), 1, head + 1);
                self.descriptor(ring, head + 1, (buffers + 16, 1), 2, 0);
            }
        }
        self.offer(count, 2);
    }

    fn poll(&mut self) -> bool {
        self.device.poll(Instant(0), &self.memory)
    }

    fn used(&self) -> Vec<u16> {
        let used = |ring| self.guest.load_u16(self.at(ring) + Self::used_area(self.size) + 2, Relaxed);
        (0..self.rings).map(used).collect()
    }
}

/// Half of what is available can be taken in a poll; the next one begins where it ended.
#[test]
fn one_poll_takes_a_bounded_number_of_requests_and_every_ring_gets_its_turn() {
    let mut rings = Rings::new(8, 256);
    rings.flushes(128);
    rings.poll();
    assert_eq!(rings.used(), [128, 128, 128, 128, 0, 0, 0, 0]);
    rings.poll();
    assert_eq!(rings.used(), [128; 8]);
    assert!(!rings.poll());
}

/// Empty descriptors cost no segment, but a walk: a chain of them may not be as long as its ring.
#[test]
fn one_poll_walks_a_bounded_number_of_descriptors() {
    const SIZE: u16 = 32768;
    let mut rings = Rings::new(2, SIZE);
    for ring in 0..2 {
        for index in 0..SIZE {
            rings.descriptor(ring, index, (0, 0), 1, (index + 1) % SIZE);
        }
    }
    rings.offer(128, 1);
    rings.poll();
    let first = rings.used();
    assert!(first[0] > 0 && first[0] < 16 && first[1] == 0, "{first:?} chains of one poll");
    rings.poll();
    assert_eq!(rings.used(), [first[0], first[0]], "the other ring is next");
    let polls = (0..100).take_while(|_| rings.poll()).count();
    assert_eq!((rings.used(), polls < 100), (vec![128, 128], true));
}

/// Transfers of 12 MiB, each through buffers that are all the same: a poll does a piece of one, and who waits in another ring
/// does not wait for the whole.
#[test]
fn one_poll_submits_a_bounded_number_of_bytes_of_long_transfers() {
    const MIB: u64 = 1 << 20;
    const BUFFER: u64 = 128 << 10;
    const BUFFERS: u16 = 96;
    const REQUESTS: u16 = 8;
    const SECTOR: u64 = 5;
    let mut rings = Rings::on_disk(32 << 10, 2, 4096);
    rings.flushes(1);
    // The buffers lie over the rings' own memory, which a write only reads.
    let (size, buffers) = (rings.size, Rings::buffers(rings.size));
    let header = buffers + 48;
    assert!(header + 16 <= Rings::space(size) && 2 * Rings::space(size) >= BUFFER);
    rings.guest.store_u32(header, 1, Relaxed);
    rings.guest.store_u64(header + 8, SECTOR, Relaxed);
    let stride = BUFFERS + 2;
    for first in (0..REQUESTS).map(|request| stride * request) {
        rings.descriptor(0, first, (header, 16), 1, first + 1);
        for at in first + 1..=first + BUFFERS {
            rings.descriptor(0, at, (0, BUFFER), 1, at + 1);
        }
        rings.descriptor(0, first + BUFFERS + 1, (buffers + 16, 1), 2, 0);
    }
    let available = Rings::available(size);
    for slot in 0..REQUESTS {
        rings.guest.store_u16(available + 4 + 2 * u64::from(slot), stride * slot, Relaxed);
    }
    rings.guest.store_u16(available + 2, REQUESTS, Relaxed);
    let (mut polls, mut before) = (0, 0);
    while rings.used() != [REQUESTS, 1] {
        assert!(rings.poll() && polls < 1000, "{:?} after {polls} polls", rings.used());
        polls += 1;
        let submitted = rings.gate.submitted_bytes();
        assert!(submitted - before <= 8 * MIB, "{} bytes in one poll", submitted - before);
        before = submitted;
        assert!(polls < 3 || rings.used()[1] == 1, "a FLUSH waits for somebody's long transfers");
    }
    assert_eq!(before, u64::from(BUFFERS) * BUFFER * u64::from(REQUESTS));
    // The descriptors, which nobody changes, are in each buffer.
    let descriptors = |buffer: u64| rings.gate.content((SECTOR * 512 + buffer * BUFFER) as usize, 4096);
    let written = descriptors(0);
    assert!(written.iter().any(|byte| *byte != 0), "nothing was written");
    assert!(
        (1..u64::from(BUFFERS)).all(|buffer| descriptors(buffer) == written),
        "a piece is not at its place"
    );
    assert_eq!(rings.gate.content(((SECTOR - 1) * 512) as usize, 512), [0; 512]);
}

/// What a device keeps of a request is bounded for the device, however many rings its guest has and however long.
#[test]
fn requests_beyond_what_a_device_works_on_at_a_time_stay_in_their_rings_and_none_starves() {
    let mut rings = Rings::new(32, 128);
    rings.flushes(64);
    rings.gate.set_open(false);
    while rings.poll() {}
    assert_eq!(rings.device.in_flight(), 1024);
    // One ends at a time, and what takes its place is another ring's each time.
    for _ in 0..64 {
        rings.gate.pass_youngest();
        while rings.poll() {}
        assert_eq!(rings.device.in_flight(), 1024);
    }
    let used = rings.used();
    let taken = (0..32).map(|ring| rings.device.in_flight_of(ring) + usize::from(used[usize::from(ring)]));
    let taken: Vec<_> = taken.collect();
    assert!(taken.iter().all(|taken| *taken > 0), "{taken:?} of each ring were taken");
    rings.gate.set_open(true);
    while rings.poll() {}
    assert_eq!(rings.used(), [64; 32]);
}
