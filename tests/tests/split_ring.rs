//! The split ring against an independent oracle: `virtio-queue` walks the same bytes, a block device of a few lines stands
//! on it, and after each batch all of guest memory, both disks and both wishes to notify must be alike.
//!
//! Chains are drawn as a driver may lay them out: header, data and status cut and merged anywhere, direct or indirect,
//! buffers across the seam of two memory regions, rings that wrap, indices that wrap.

use proptest::prelude::*;
use runtime::{Handle, Instant, Memory, Platform, Window};
use stack::block::Bdev;
use stack::virtio::blk::{BlkDevice, BlkOptions, QueueConfig};
use stack::virtio::features;
use stack::virtio::memory::{GuestMemory, Region};
use std::sync::Arc;
use tests::vhost::by_hand::ByHand;
use tests::vhost::gate::{Gate, GateBdev};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Two regions that meet here.
const SEAM: u64 = 256 << 10;
const MEMORY: u64 = 512 << 10;
const AVAILABLE: u64 = 16 << 10;
const USED: u64 = 32 << 10;
/// Buffers and indirect tables lie from here on: shortly before the seam, so that many lie across it.
const BUFFERS: u64 = SEAM - (12 << 10);
const BLOCKS: u64 = 64;

/// One request, and how its driver lays it out.
#[derive(Clone, Debug)]
struct Request {
    write: bool,
    sector: u64,
    sectors: u64,
    indirect: bool,
    /// Where to cut the readable and the writable bytes, in 1/256 of their length.
    cuts: Vec<u8>,
    /// Bytes left free before each buffer.
    gap: u64,
}

fn request() -> impl Strategy<Value = Request> {
    let sectors = 1_u64..5;
    (
        any::<bool>(),
        0..BLOCKS - 4,
        sectors,
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 0..6),
        0_u64..64,
    )
        .prop_map(|(write, sector, sectors, indirect, cuts, gap)| Request {
            write,
            sector,
            sectors,
            indirect,
            cuts,
            gap,
        })
}

/// A driver that writes guest memory through a function, so that both sides get the same bytes.
struct Driver {
    size: u16,
    available: u16,
    next_buffer: u64,
    free: Vec<u16>,
}

impl Driver {
    fn place(&mut self, gap: u64, len: u64) -> u64 {
        let at = self.next_buffer + gap;
        if at + len > MEMORY {
            self.next_buffer = BUFFERS;
            return self.place(gap, len);
        }
        self.next_buffer = at + len;
        at
    }

    /// A place for an indirect table, in one region.
    fn table(&mut self, len: u64) -> u64 {
        let mut at = self.next_buffer.next_multiple_of(16);
        if at < SEAM && at + len > SEAM {
            at = SEAM;
        }
        if at + len > MEMORY {
            at = BUFFERS;
        }
        self.next_buffer = at + len;
        at
    }

    /// The buffers of one direction: `len` bytes, cut where the request says.
    fn cut(&mut self, request: &Request, len: u64, flags: u16) -> Vec<(u64, u32, u16)> {
        let mut edges: Vec<u64> = request.cuts.iter().map(|cut| u64::from(*cut) * len / 256).collect();
        edges.extend([0, len]);
        edges.sort_unstable();
        edges.dedup();
        edges
            .windows(2)
            .map(|pair| (self.place(request.gap, pair[1] - pair[0]), (pair[1] - pair[0]) as u32, flags))
            .collect()
    }

    /// Makes one request available, if there are descriptors for it.
    fn offer(&mut self, request: &Request, memory: &mut dyn FnMut(u64, &[u8])) -> bool {
        let data = 512 * request.sectors;
        let (readable, writable) = if request.write { (16 + data, 1) } else { (16, data + 1) };
        let mut buffers = self.cut(request, readable, 0);
        let mut header = Vec::from(u32::from(request.write).to_le_bytes());
        header.extend([0; 4]);
        header.extend(request.sector.to_le_bytes());
        header.extend((0..data).map(|at| (at / 7 + request.sector * 3 + u64::from(self.available)) as u8));
        let mut done = 0;
        for (address, len, _) in &buffers {
            memory(*address, &header[done..done + *len as usize]);
            done += *len as usize;
        }
        buffers.extend(self.cut(request, writable, 2));
        let needed = if request.indirect { 1 } else { buffers.len() };
        if needed > self.free.len() {
            return false;
        }
        let indices: Vec<u16> = self.free.drain(self.free.len() - needed..).collect();
        let table = if request.indirect { self.table(16 * buffers.len() as u64) } else { 0 };
        let last = buffers.len() - 1;
        for (number, (address, len, flags)) in buffers.iter().enumerate() {
            let next =
                if request.indirect { number as u16 + 1 } else { *indices.get(number + 1).unwrap_or(&0) };
            let flags = flags | u16::from(number < last);
            let mut bytes = Vec::from(address.to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            let place =
                if request.indirect { table + 16 * number as u64 } else { 16 * u64::from(indices[number]) };
            memory(place, &bytes);
        }
        if request.indirect {
            let mut bytes = Vec::from(table.to_le_bytes());
            bytes.extend((16 * buffers.len() as u32).to_le_bytes());
            bytes.extend(4_u16.to_le_bytes());
            bytes.extend(0_u16.to_le_bytes());
            memory(16 * u64::from(indices[0]), &bytes);
        }
        memory(AVAILABLE + 4 + 2 * u64::from(self.available % self.size), &indices[0].to_le_bytes());
        self.available = self.available.wrapping_add(1);
        memory(AVAILABLE + 2, &self.available.to_le_bytes());
        true
    }
}

/// The oracle: a block device over `virtio-queue`.
struct Oracle {
    queue: Queue,
    memory: GuestMemoryMmap,
    disk: Vec<u8>,
}

impl Oracle {
    fn new(size: u16, first: u16, event_idx: bool) -> Self {
        let regions = [(GuestAddress(0), SEAM as usize), (GuestAddress(SEAM), (MEMORY - SEAM) as usize)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&regions).expect("memory");
        let mut queue = Queue::new(size).expect("a good size");
        queue.set_size(size);
        queue.set_desc_table_address(Some(0), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_event_idx(event_idx);
        queue.set_next_avail(first);
        queue.set_next_used(first);
        queue.set_ready(true);
        Self { queue, memory, disk: vec![0; (BLOCKS * 512) as usize] }
    }

    fn serve(&mut self) -> bool {
        while let Some(chain) = self.queue.pop_descriptor_chain(&self.memory) {
            let head = chain.head_index();
            let (mut readable, mut writable) = (Vec::new(), Vec::new());
            for descriptor in chain {
                if descriptor.is_write_only() {
                    writable.push((descriptor.addr(), descriptor.len() as usize));
                } else {
                    let mut bytes = vec![0; descriptor.len() as usize];
                    self.memory.read_slice(&mut bytes, descriptor.addr()).expect("in memory");
                    readable.extend(bytes);
                }
            }
            let sector = u64::from_le_bytes(readable[8..16].try_into().expect("eight bytes"));
            let at = (sector * 512) as usize;
            let total: usize = writable.iter().map(|(_, len)| len).sum();
            let mut answer = if readable[0] == 1 {
                self.disk[at..at + readable.len() - 16].copy_from_slice(&readable[16..]);
                Vec::new()
            } else {
                self.disk[at..at + total - 1].to_vec()
            };
            answer.push(0);
            let mut done = 0;
            for (address, len) in writable {
                self.memory.write_slice(&answer[done..done + len], address).expect("in memory");
                done += len;
            }
            self.queue.add_used(&self.memory, head, total as u32).expect("a good ring");
        }
        self.queue.needs_notification(&self.memory).expect("a good ring")
    }
}

/// The stack's device on memory of the host.
struct Subject {
    device: BlkDevice<ByHand>,
    memory: GuestMemory<ByHand>,
    windows: [<ByHand as Platform>::Window; 2],
    gate: Arc<Gate>,
    call: std::os::fd::OwnedFd,
}

impl Subject {
    fn new(size: u16, first: u16, event_idx: bool) -> Self {
        let platform = ByHand::default();
        let gate = Gate::new(BLOCKS);
        let bdev: Arc<dyn Bdev<ByHand>> = Arc::new(GateBdev(gate.clone()));
        let channel = bdev.channel(&platform).expect("a channel");
        let options = BlkOptions { read_only: false, packed_ring: false, device: 0 };
        let mut device = BlkDevice::new(platform.clone(), bdev, channel, options);
        let wish = if event_idx { features::EVENT_IDX } else { 0 };
        device.set_features(features::VERSION_1 | features::INDIRECT_DESC | wish).expect("offered");
        let mut memory = GuestMemory::new();
        let windows = [(0, SEAM), (SEAM, MEMORY - SEAM)].map(|(guest_address, len)| {
            let region = platform.shared_memory("guest", len).expect("memory");
            let window = region.window();
            memory
                .insert(Region { guest_address, len, user_address: guest_address, memory: region })
                .expect("apart");
            window
        });
        let part = |at, len| windows[0].slice(at, len).expect("below the seam");
        let size_bytes = u64::from(size);
        windows[0].write(USED + 2, &first.to_le_bytes());
        let config = QueueConfig {
            size,
            base: first.into(),
            descriptors: part(0, 16 * size_bytes),
            available: part(AVAILABLE, 6 + 2 * size_bytes),
            used: part(USED, 6 + 8 * size_bytes),
            log_addresses: None,
            inflight: None,
        };
        let call = tests::vhost::front_end::new_eventfd();
        let handle = hw::HostHandle::from(call.try_clone().expect("a descriptor"));
        device.set_call(0, Some(handle.into_notifier().expect("an eventfd")));
        device.start_queue(0, config).expect("a good ring");
        device.set_enabled(0, true);
        Self { device, memory, windows, gate, call }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        for (offset, byte) in (address..).zip(bytes) {
            let (window, at) = if offset < SEAM { (0, offset) } else { (1, offset - SEAM) };
            self.windows[window].write(at, &[*byte]);
        }
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        let (low, high) = bytes.split_at_mut(SEAM as usize);
        self.windows[0].read(0, low);
        self.windows[1].read(0, high);
        bytes
    }

    fn serve(&mut self) -> bool {
        while self.device.poll(Instant(0), &self.memory) {}
        tests::vhost::front_end::take(&self.call) > 0
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_ring_does_what_virtio_queue_does(
        size_log in 3_u32..8,
        first in prop_oneof![Just(0_u16), 65_500_u16..=65_535, any::<u16>()],
        event_idx in any::<bool>(),
        batches in prop::collection::vec((prop::collection::vec(request(), 1..12), any::<u16>()), 1..12),
    ) {
        let size = 1_u16 << size_log;
        let mut oracle = Oracle::new(size, first, event_idx);
        let mut subject = Subject::new(size, first, event_idx);
        oracle.memory.write_slice(&first.to_le_bytes(), GuestAddress(USED + 2)).expect("in memory");
        let mut driver = Driver { size, available: first, next_buffer: BUFFERS, free: (0..size).collect() };
        let write = |oracle: &Oracle, subject: &Subject, address, bytes: &[u8]| {
            oracle.memory.write_slice(bytes, GuestAddress(address)).expect("in memory");
            subject.write(address, bytes);
        };
        write(&oracle, &subject, AVAILABLE + 2, &first.to_le_bytes());
        let mut first_batch = true;
        for (requests, wish) in batches {
            // What the driver wants to be told of: an event index near the used one, or the flag.
            let used = driver.available.wrapping_add(wish % 16).wrapping_sub(4);
            write(&oracle, &subject, AVAILABLE + 4 + 2 * u64::from(size), &used.to_le_bytes());
            write(&oracle, &subject, AVAILABLE, &(wish & 1).to_le_bytes());
            let mut offered = 0;
            for request in &requests {
                let mut both = |address, bytes: &[u8]| write(&oracle, &subject, address, bytes);
                offered += usize::from(driver.offer(request, &mut both));
            }
            // The oracle does not know the flag (`virtio-queue` ignores VIRTQ_AVAIL_F_NO_INTERRUPT).
            let wants = oracle.serve() && (event_idx || wish & 1 == 0);
            let told = subject.serve();
            // The device that starts on a call notifier rings it once whatever the driver wants.
            prop_assert!(offered == 0 || first_batch || told == wants, "told {told}, the oracle would have {wants}");
            first_batch = false;
            let mut expected = vec![0; MEMORY as usize];
            oracle.memory.read_slice(&mut expected, GuestAddress(0)).expect("in memory");
            let mut found = subject.content();
            // The used ring's flags are each device's own wish.
            for at in [USED as usize, USED as usize + 1] {
                (expected[at], found[at]) = (0, 0);
            }
            let differs = expected.iter().zip(&found).position(|(a, b)| a != b);
            prop_assert_eq!(differs, None, "guest memory differs");
            prop_assert!(subject.gate.content(0, oracle.disk.len()) == oracle.disk, "the disks differ");
            // All came back: every descriptor is free again, and so is every buffer.
            driver.next_buffer = BUFFERS;
            driver.free = (0..size).collect();
        }
    }
}
