//! The block device by itself, where only it can be seen: what it does with a region that cannot be, and without anybody
//! to notify.

use runtime::{Handle, Instant, Memory, Platform, Window};
use stack::block::Bdev;
use stack::virtio::blk::{BlkDevice, BlkOptions, QueueConfig, QueueError};
use stack::virtio::features;
use stack::virtio::inflight::queue_region_len;
use stack::virtio::memory::{GuestMemory, Region};
use stack::virtio::split::RingError;
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
        let options = BlkOptions { read_only: false, device: 0 };
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
        let part = |at, len| self.guest.slice(at, len).expect("inside");
        let config = QueueConfig {
            size: SIZE,
            base: 10,
            descriptors: part(0, 128),
            available: part(AVAILABLE, 22),
            used: part(USED, 70),
            used_log: None,
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
