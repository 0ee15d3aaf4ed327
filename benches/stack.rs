//! What the stack alone costs: from a split ring to the null bdev and back, on real shared memory, with inflight tracking,
//! no socket and no front-end.
//!
//! The driver's part (making requests available) is not timed. Each depth is measured in many rounds, the flight recorder
//! on and off in turn. Instructions are counted by callgrind, as the difference of two runs of this program that differ in
//! their number of requests only.

use hw::HostPlatform;
use runtime::{Memory, Platform, Window};
use stack::block::{Bdev, NullBdev};
use stack::virtio::blk::{BlkDevice, BlkOptions, QueueConfig};
use stack::virtio::features::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use stack::virtio::inflight::queue_region_len;
use stack::virtio::memory::{GuestMemory, Region};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Instant;
use tests::core::on_core;

use crate::table::{Bar, Table};
use crate::{Effort, median};

/// Bytes of one request's payload.
const PAYLOAD: u64 = 4096;
/// Entries of the ring: three descriptors a request, 128 requests.
const RING: u16 = 512;
/// Where things lie in the guest's memory.
const AVAILABLE: u64 = 64 << 10;
const USED: u64 = 128 << 10;
const HEADERS: u64 = 192 << 10;
const PAYLOADS: u64 = 1 << 20;
const MEMORY: u64 = 4 << 20;
/// The guest's memory begins here.
const BASE: u64 = 1 << 30;
/// Requests of one measurement.
const REQUESTS: u64 = 2_000_000;
/// Measurements of each kind.
const MEASUREMENTS: usize = 9;
/// Requests out.
const DEPTHS: [u16; 3] = [1, 32, 128];
/// At this depth, an I/O takes at most so many nanoseconds, the recorder off.
const BAR_DEPTH: u16 = 128;
const BAR_NS: f64 = 60.0;
/// Requests of the two runs under callgrind.
const COUNTED_FEW: u64 = 20_000;
const COUNTED_MANY: u64 = 60_000;

/// A ring with its device, and a driver that writes memory by hand.
struct Bench {
    device: BlkDevice<HostPlatform>,
    memory: GuestMemory<HostPlatform>,
    window: <HostPlatform as Platform>::Window,
    platform: HostPlatform,
    available: u16,
}

impl Bench {
    fn new(platform: &HostPlatform) -> Self {
        let region = platform.shared_memory("guest", MEMORY).expect("memory");
        let window = region.window();
        let part = |at, len| window.slice(at, len).expect("inside");
        let inflight = platform.shared_memory("inflight", queue_region_len(RING)).expect("memory");
        let bdev: Arc<dyn Bdev<HostPlatform>> =
            Arc::new(NullBdev::new("Null0".into(), [0; 16], 512, 512, 1 << 21, platform.cores()));
        let channel = bdev.channel(platform).expect("a channel");
        let options = BlkOptions { read_only: false, packed_ring: false, device: 0 };
        let mut device = BlkDevice::new(platform.clone(), bdev, channel, options);
        device.set_features(VERSION_1 | EVENT_IDX | INDIRECT_DESC).expect("offered");
        let config = QueueConfig {
            size: RING,
            base: 0,
            descriptors: part(0, 16 * u64::from(RING)),
            available: part(AVAILABLE, 6 + 2 * u64::from(RING)),
            used: part(USED, 6 + 8 * u64::from(RING)),
            log_addresses: None,
            inflight: Some(inflight.window()),
        };
        // The region must stay mapped as long as the queue runs: to the end of the process.
        std::mem::forget(inflight);
        device.start_queue(0, config).expect("a good ring");
        device.set_enabled(0, true);
        let mut memory = GuestMemory::new();
        let region = Region { guest_address: BASE, len: MEMORY, user_address: 0, memory: region };
        memory.insert(region).expect("one region");
        // Three descriptors a request: header, payload, status.
        for request in 0..u64::from(RING / 3) {
            let header = HEADERS + 64 * request;
            window.store_u64(header + 8, request * 8, Relaxed);
            let descriptor = |index: u64, address: u64, len: u64, flags: u64, next: u64| {
                window.store_u64(16 * index, BASE + address, Relaxed);
                window.store_u64(16 * index + 8, len | flags << 32 | next << 48, Relaxed);
            };
            let first = 3 * request;
            descriptor(first, header, 16, 1, first + 1);
            descriptor(first + 1, PAYLOADS + PAYLOAD * request, PAYLOAD, 3, first + 2);
            descriptor(first + 2, header + 32, 1, 2, 0);
        }
        // Event suppression as a driver that polls does it: far behind.
        window.store_u16(AVAILABLE + 4 + 2 * u64::from(RING), u16::MAX / 2, Relaxed);
        Self { device, memory, window, platform: platform.clone(), available: 0 }
    }

    /// Nanoseconds per I/O at a depth.
    fn measure(&mut self, depth: u16, requests: u64) -> f64 {
        let mut timed = 0;
        for _ in 0..requests / u64::from(depth) {
            for request in 0..depth {
                let slot = u64::from(self.available.wrapping_add(request) % RING);
                self.window.store_u16(AVAILABLE + 4 + 2 * slot, 3 * request, Relaxed);
            }
            self.available = self.available.wrapping_add(depth);
            self.window.store_u16(AVAILABLE + 2, self.available, Release);
            let begun = Instant::now();
            let now = self.platform.now();
            while self.window.load_u16(USED + 2, Relaxed) != self.available {
                self.device.poll(now, &self.memory);
            }
            timed += begun.elapsed().as_nanos();
        }
        timed as f64 / requests as f64
    }
}

/// The first argument of this program under callgrind; then requests and depth.
const COUNTED: &str = "--counted";

/// Runs what callgrind counts, if that is what this program was started for.
pub(crate) fn run_counted() -> bool {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(COUNTED) {
        return false;
    }
    let mut number = || arguments.next().and_then(|text| text.parse().ok()).expect("requests and depth");
    let (requests, depth): (u64, u64) = (number(), number());
    on_core(None, move |platform| Bench::new(&platform).measure(depth as u16, requests));
    true
}

/// Instructions per I/O at a depth, by callgrind, the driver's own few stores included. An error says what to do.
fn instructions(depth: u16) -> Result<f64, String> {
    let run = |requests: u64| {
        let program = std::env::current_exe().expect("this program's path");
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(program)
            .args([COUNTED, &requests.to_string(), &depth.to_string()])
            .output()
            .map_err(|_| "valgrind is not installed, so no instructions: apt-get install valgrind")?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let collected = text.lines().find_map(|line| line.split("Collected : ").nth(1));
        let collected =
            collected.filter(|_| output.status.success()).and_then(|count| count.trim().parse().ok());
        collected.ok_or_else(|| format!("callgrind counted nothing ({}): {text}", output.status))
    };
    let (few, many): (f64, f64) = (run(COUNTED_FEW)?, run(COUNTED_MANY)?);
    Ok((many - few) / (COUNTED_MANY - COUNTED_FEW) as f64)
}

/// Prints each depth's nanoseconds and instructions per I/O.
pub(crate) fn measure(_: &Effort, table: &mut Table) {
    let directory = tempfile::tempdir().expect("a directory");
    for depth in DEPTHS {
        let (mut off, mut on) = (Vec::new(), Vec::new());
        for _ in 0..MEASUREMENTS {
            off.push(on_core(None, move |platform| Bench::new(&platform).measure(depth, REQUESTS)));
            let path = Some(directory.path().to_path_buf());
            on.push(on_core(path, move |platform| Bench::new(&platform).measure(depth, REQUESTS)));
        }
        let (off, on) = (median(off), median(on));
        let bar = if depth == BAR_DEPTH { Bar::at_most(BAR_NS, off) } else { None };
        table.row(&format!("ring to null and back, depth {depth}"), off, "ns/IO", bar);
        table.row(&format!("ring to null and back, depth {depth}, recorder on"), on, "ns/IO", None);
        match instructions(depth) {
            Ok(count) => {
                table.row(&format!("ring to null and back, depth {depth}"), count, "instructions/IO", None)
            }
            Err(why) => table.note(why),
        }
    }
}
