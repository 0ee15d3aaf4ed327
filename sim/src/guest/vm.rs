//! A virtual machine in the world: its memory, its doorbells, its virtual processors, and the driver that runs on them.
//!
//! The front-end (`vmm`) and the processors share it; only one of them acts at a time.

use super::device::Device;
use super::memory::{Layout, Memory, Region};
use super::queue::{Queue, QueueStart};
use super::request::area_bytes;
use super::ring::{DriverRing, RingFeatures};
use super::workload::{Offer, Workload};
use super::{Step, Witness};
use crate::check::Observation;
use crate::memory::{ProcessorId, SimWindow};
use crate::rng::Rng;
use crate::world::{self, Model};
use runtime::{Notifier, Window};
use std::cell::RefCell;
use std::rc::Rc;

/// Where the front-end maps the first region, and how far apart the regions are.
const USER_ADDRESS: u64 = 0x7f00_0000_0000;
const USER_STRIDE: u64 = 0x10_0000_0000;
/// How far apart regions are for the guest.
const GUEST_STRIDE: u64 = 0x1_0000_0000;
/// Numbers of the streams that a machine's draws come from begin here, a hundred a machine.
const STREAM_FIRST: u64 = 10_000;

/// A doorbell of the virtual machine.
#[derive(Clone, Copy, Debug)]
pub struct Bell(pub u32);

impl Notifier for Bell {
    fn ring(&self) {
        world::with(|world| world.ring(self.0));
    }

    fn take(&self) -> bool {
        world::with(|world| world.take_rings(self.0))
    }
}

/// A region of guest memory as the front-end has it.
#[derive(Clone, Copy, Debug)]
pub struct Backing {
    /// The memory object, which a handle is made of.
    pub object: u32,
    /// Where the region begins in it.
    pub offset: u64,
    /// Guest-physical address.
    pub address: u64,
    /// The front-end's own address of it.
    pub user_address: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether it is plugged in.
    pub plugged: bool,
    /// All of it, seen by no processor in particular.
    pub window: SimWindow,
}

/// How a machine is built.
#[derive(Clone, Debug)]
pub struct VmOptions {
    /// Number of the machine, and of its disk.
    pub number: u16,
    /// Queues of its device.
    pub queues: u16,
    /// Regions of memory.
    pub regions: usize,
    /// Entries of a ring at most.
    pub ring_size_max: u16,
    /// Entries that its rings have used when a driver starts, as those of a machine that came from another host.
    pub first_index: u16,
    /// Its load.
    pub workload: Workload,
    /// What its device allows at first.
    pub offer: Offer,
}

/// A virtual machine.
pub struct Vm {
    /// Its number.
    pub number: u16,
    /// Its memory.
    pub backings: Vec<Backing>,
    /// What the queues share.
    pub device: Device,
    /// The queues of the driver.
    pub queues: Vec<Queue<SimWindow, Bell>>,
    /// The models of the processors, for waking them.
    pub models: Vec<u32>,
    first_index: u16,
    processors: Vec<ProcessorId>,
}

/// The machine as everybody holds it.
pub type Shared = Rc<RefCell<Vm>>;

impl Vm {
    /// Builds a machine in the world, with a processor for each queue.
    pub fn build<W: Witness + Clone + 'static>(options: &VmOptions, seed: u64, witness: &W) -> Shared {
        let VmOptions { number, queues, regions, ring_size_max, first_index, workload, offer } =
            options.clone();
        let stream = |index: u64| Rng::new(seed, STREAM_FIRST + 100 * u64::from(number) + index);
        let mut rng = stream(99);
        let area_bytes = area_bytes(workload.sectors_max);
        let layout = Layout { queues, ring_size_max, depth_max: workload.depth, area_bytes };
        let backings: Vec<Backing> = (0..regions)
            .map(|at| {
                let len = layout.region_bytes(at);
                // Guest memory may begin at 0, and a region anywhere in its file.
                let address = at as u64 * GUEST_STRIDE + rng.below(3) * 0x10_0000;
                let offset = rng.below(3) * super::memory::PAGE_BYTES;
                let offset = offset.min(address);
                world::with(|world| {
                    let (object, window) = world.memory_object(offset + len);
                    world.watch(object, number.into(), address - offset);
                    let user_address = USER_ADDRESS + at as u64 * USER_STRIDE;
                    let window = window.slice(offset, len).expect("inside");
                    Backing { object, offset, address, user_address, len, plugged: true, window }
                })
            })
            .collect();
        let memory = Memory {
            regions: backings
                .iter()
                .map(|backing| Region { address: backing.address, window: backing.window, in_use: true })
                .collect(),
        };
        let bell = || Bell(world::with(world::World::eventfd));
        let driver = (0..queues)
            .map(|queue| {
                let rng = stream(queue.into());
                Queue::new(queue, memory.clone(), layout, workload.sectors_max, bell(), bell(), rng)
            })
            .collect();
        let processors = (0..queues).map(|_| world::with(world::World::processor)).collect();
        for backing in &backings {
            let (address, len) = (backing.address, backing.len);
            witness.clone().saw(&Observation::RegionAdded { address, len });
        }
        let vm = Self {
            number,
            backings,
            device: Device::new(number, workload, offer),
            queues: driver,
            models: Vec::new(),
            first_index,
            processors,
        };
        let shared = Rc::new(RefCell::new(vm));
        for queue in 0..usize::from(queues) {
            let vcpu = Vcpu { vm: Rc::clone(&shared), queue, witness: witness.clone() };
            let model = world::with(|world| world.add_model(Box::new(vcpu), true));
            let call = shared.borrow().queues[queue].bells().1.0;
            world::with(|world| world.wait_for_eventfd(call, model));
            shared.borrow_mut().models.push(model);
        }
        shared
    }

    /// The driver starts: lays out the rings of its first `queues` queues.
    pub fn start_driver(
        &mut self,
        queues: u16,
        sizes: &[u16],
        features: RingFeatures,
        rng: &mut Rng,
        witness: &mut impl Witness,
    ) {
        self.device.features = features;
        let first = self.first_index;
        for (queue, &size) in self.queues.iter_mut().zip(sizes).take(queues.into()) {
            let shift = rng.below(Layout::SHIFT_MAX);
            world::as_processor(self.processors[0], || {
                queue.start(QueueStart { size, features, shift, first }, witness);
            });
        }
        // What the driver laid out is there before the device is told to look (a write to the status register).
        world::with(|world| world.barrier(self.processors[0]));
    }

    /// The guest forgets everything that is out.
    pub fn reset_driver(&mut self) {
        self.device.running = false;
        let lost: u64 = self.queues.iter().map(|queue| u64::from(queue.outstanding())).sum();
        for (queue, &processor) in self.queues.iter_mut().zip(&self.processors) {
            queue.reset();
            world::with(|world| world.barrier(processor));
        }
        self.device.allow(lost);
    }

    /// Lets the processors run or stops them (between two of their steps).
    pub fn run(&mut self, running: bool) {
        self.device.running = running;
        if running {
            self.wake();
        }
    }

    /// There is something new to do for the processors.
    pub fn wake(&self) {
        world::with(|world| self.models.iter().for_each(|&model| world.wake_model(model)));
    }

    /// Requests that are out or laid out.
    pub fn outstanding(&self) -> u64 {
        self.queues.iter().map(|queue| u64::from(queue.outstanding())).sum()
    }

    /// Whether a request has a piece in a region.
    pub fn touches(&self, region: usize) -> bool {
        let Backing { address, len, .. } = self.backings[region];
        self.queues.iter().any(|queue| queue.touches(address, len))
    }

    /// Whether new requests may use a region.
    pub fn use_region(&mut self, region: usize, in_use: bool) {
        for queue in &mut self.queues {
            queue.use_region(region, in_use);
        }
    }

    /// How far the device has given back in a queue, as memory has it: the used index, or the used position. What a
    /// front-end knows of a split ring after its back-end has died; of a packed one only the driver knows it.
    pub fn used(&self, queue: u16) -> u16 {
        let backing = &self.backings[0];
        match self.queues[usize::from(queue)].ring() {
            None => 0,
            Some(DriverRing::Split(ring)) => backing
                .window
                .load_u16(ring.addresses().used + 2 - backing.address, std::sync::atomic::Ordering::Acquire),
            Some(DriverRing::Packed(ring)) => {
                let (address, len) = ring.place().desc;
                let desc =
                    backing.window.slice(address - backing.address, len).expect("the driver's own memory");
                ring.used_bits(&desc)
            }
        }
    }

    /// The front-end's address of a guest-physical one.
    pub fn user_address(&self, address: u64) -> u64 {
        let backing = self
            .backings
            .iter()
            .find(|backing| address.checked_sub(backing.address).is_some_and(|at| at < backing.len))
            .expect("the driver places everything in its own memory");
        backing.user_address + (address - backing.address)
    }
}

/// A virtual processor: a queue of the driver as a model of the world.
struct Vcpu<W> {
    vm: Shared,
    queue: usize,
    witness: W,
}

impl<W: Witness> Model for Vcpu<W> {
    fn step(&mut self) -> world::Step {
        let now = world::with(|world| world.now());
        let vm = &mut *self.vm.borrow_mut();
        let processor = vm.processors[self.queue];
        let (queue, device) = (&mut vm.queues[self.queue], &mut vm.device);
        match world::as_processor(processor, || queue.step(device, now, &mut self.witness)) {
            Step::Worked => world::Step::Worked,
            Step::Idle { until } => world::Step::Idle { until },
        }
    }
}
