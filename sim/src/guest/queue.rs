//! One queue of the guest's driver and the CPU that works on it.
//!
//! The CPU takes small steps, so that the device's accesses fall between any two of them: add, publish, look whether to
//! notify; take completions; wish for an interrupt, look again, sleep. A sleeping CPU is woken by the queue's interrupt
//! alone: an interrupt that the device owes and does not send leaves the guest asleep, which the scheduler finds.

use super::device::Device;
use super::memory::{Layout, Memory};
use super::packed::Habits;
use super::request::{Slot, Table};
use super::ring::{DriverRing, RingFeatures};
use super::stamp::{self, SECTOR_BYTES};
use super::{Step, Witness};
use crate::check::{CacheMode, Kind, Observation, Status};
use crate::rng::Rng;
use runtime::{Instant, Notifier, Window};

/// Completions taken in one step at most.
const TAKE_MAX: u64 = 4;

/// How a driver starts a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueStart {
    /// Entries.
    pub size: u16,
    /// What was negotiated.
    pub features: RingFeatures,
    /// Granules by which the ring's place is shifted.
    pub shift: u64,
    /// Entries that the ring had used before this host.
    pub first: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Working.
    Awake,
    /// Something was published, and the device may want to be told.
    Telling,
    /// The wish for an interrupt is written, the last look is not done.
    Dozing,
    /// Waiting for the interrupt.
    Asleep,
}

/// A queue and its CPU.
#[derive(Debug)]
pub struct Queue<W, N> {
    index: u16,
    memory: Memory<W>,
    layout: Layout,
    kick: N,
    call: N,
    rng: Rng,
    ring: Option<DriverRing<W>>,
    slots: Vec<Slot>,
    free_slots: Vec<u16>,
    /// By number of a chain: its slot.
    by_head: Vec<Option<u16>>,
    /// A request that is laid out and waits for descriptors: its slot, its direct pieces, its table.
    waiting: Option<(u16, usize, Option<u64>)>,
    outstanding: u16,
    state: State,
    pause_until: Instant,
}

impl<W: Window, N: Notifier> Queue<W, N> {
    /// A queue that is not started. `memory` is the view of the CPU that works on it; `kick` leads to the device and
    /// `call` comes from it.
    pub fn new(
        index: u16,
        memory: Memory<W>,
        layout: Layout,
        sectors_max: u32,
        kick: N,
        call: N,
        rng: Rng,
    ) -> Self {
        let slots = (0..layout.depth_max)
            .map(|slot| {
                let areas = memory
                    .regions
                    .iter()
                    .enumerate()
                    .map(|(at, region)| layout.area(at, region.address, index, slot))
                    .collect();
                Slot::new(slot, areas, sectors_max)
            })
            .collect();
        Self {
            index,
            memory,
            layout,
            kick,
            call,
            rng,
            ring: None,
            slots,
            free_slots: Vec::new(),
            by_head: Vec::new(),
            waiting: None,
            outstanding: 0,
            state: State::Awake,
            pause_until: Instant(0),
        }
    }

    /// Lays out the ring and makes all slots free.
    pub fn start(&mut self, start: QueueStart, witness: &mut impl Witness) {
        let QueueStart { size, features, shift, first } = start;
        let addresses = self.layout.ring(self.memory.regions[0].address, self.index, size, shift);
        let mut order: Vec<u16> = (0..size).rev().collect();
        if self.rng.chance(1, 2) {
            // A ring that was used for long has its free descriptors in no order at all.
            for at in (1..order.len()).rev() {
                order.swap(at, self.rng.below(at as u64 + 1) as usize);
            }
        }
        let habits = features.packed.then(|| Habits::draw(&mut self.rng));
        let ring = DriverRing::new(&self.memory, addresses, size, features, order, habits, first);
        let place = ring.place();
        self.ring = Some(ring);
        self.free_slots = (0..self.layout.depth_max).rev().collect();
        self.by_head.clear();
        self.by_head.resize(usize::from(size), None);
        self.waiting = None;
        self.outstanding = 0;
        self.state = State::Awake;
        witness.saw(&Observation::QueueReady { queue: self.index, size, place });
    }

    /// Forgets the ring and all that is out.
    pub fn reset(&mut self) {
        self.ring = None;
        self.outstanding = 0;
        self.waiting = None;
    }

    /// The ring, while the queue is started.
    pub fn ring(&self) -> Option<&DriverRing<W>> {
        self.ring.as_ref()
    }

    /// The queue's notifiers: to the device, from the device.
    pub fn bells(&self) -> (&N, &N) {
        (&self.kick, &self.call)
    }

    /// Requests that the device has, or that wait for descriptors.
    pub fn outstanding(&self) -> u16 {
        self.outstanding + u16::from(self.waiting.is_some())
    }

    /// Whether a request that is out, or laid out, has a piece in the range.
    pub fn touches(&self, address: u64, len: u64) -> bool {
        let waiting = self.waiting.map(|(slot, _, _)| slot);
        self.by_head
            .iter()
            .flatten()
            .chain(&waiting)
            .any(|&slot| self.slots[usize::from(slot)].touches(address, len))
    }

    /// Whether new requests may use a region (not while it is unplugged).
    pub fn use_region(&mut self, region: usize, in_use: bool) {
        self.memory.regions[region].in_use = in_use;
    }

    /// One step of the CPU.
    pub fn step(&mut self, device: &mut Device, now: Instant, witness: &mut impl Witness) -> Step {
        if self.ring.is_none() || !device.running {
            return Step::Idle { until: None };
        }
        match self.state {
            State::Awake => self.work(device, now, witness),
            State::Telling => {
                if self.ring_mut().must_notify() {
                    self.kick.ring();
                }
                self.state = State::Awake;
                Step::Worked
            }
            State::Dozing => {
                DriverRing::<W>::fence();
                if self.ring_mut().has_used() {
                    self.wake();
                } else {
                    self.state = State::Asleep;
                }
                Step::Worked
            }
            State::Asleep => {
                if self.call.take() {
                    self.wake();
                    return Step::Worked;
                }
                if self.may_submit(device, now) {
                    self.state = State::Awake;
                    return Step::Worked;
                }
                let pausing = now < self.pause_until && device.has_more(self.index);
                if pausing && self.rng.chance(1, 2) {
                    // Stepped before its time, so the world is between two accesses of the device: a pause may end there
                    // as well as anywhere, and a kick at that very place is what a sleeping device must not lose.
                    self.pause_until = now;
                    return Step::Worked;
                }
                Step::Idle { until: pausing.then_some(self.pause_until) }
            }
        }
    }

    fn ring_mut(&mut self) -> &mut DriverRing<W> {
        self.ring.as_mut().expect("the queue is started")
    }

    fn wake(&mut self) {
        self.ring_mut().disable_interrupts();
        self.state = State::Awake;
    }

    fn may_submit(&self, device: &Device, now: Instant) -> bool {
        let room = self.outstanding < device.workload.depth.min(self.layout.depth_max);
        let ready = match self.waiting {
            Some((slot, direct, table)) => {
                let pieces = self.slots[usize::from(slot)].pieces().len();
                let needed = if table.is_some() { direct + 1 } else { pieces };
                self.ring.as_ref().is_some_and(|ring| usize::from(ring.free()) >= needed)
            }
            None => device.has_more(self.index),
        };
        now >= self.pause_until && room && ready
    }

    fn work(&mut self, device: &mut Device, now: Instant, witness: &mut impl Witness) -> Step {
        if self.ring_mut().has_used() {
            for _ in 0..=self.rng.below(TAKE_MAX) {
                if !self.complete(device, witness) {
                    break;
                }
            }
            return Step::Worked;
        }
        if self.may_submit(device, now) && self.submit(device, now, witness) {
            let workload = &device.workload;
            if self.rng.chance(workload.think, 256) {
                self.pause_until = Instant(now.0 + self.rng.below(workload.think_ns_max + 1));
            }
            if self.rng.chance(1, 2) {
                self.publish(witness);
            }
            return Step::Worked;
        }
        if self.ring_mut().has_unpublished() {
            self.publish(witness);
            return Step::Worked;
        }
        let skip = if self.outstanding > 1 && self.rng.chance(1, 4) {
            self.rng.below(u64::from(self.outstanding)) as u16
        } else {
            0
        };
        self.ring_mut().enable_interrupts(skip);
        self.state = State::Dozing;
        Step::Worked
    }

    fn publish(&mut self, witness: &mut impl Witness) {
        Self::saw_places(self.ring_mut().unpublished_places(), true, witness);
        self.ring_mut().publish();
        self.state = State::Telling;
    }

    fn saw_places(places: [(u64, u64); 2], lent: bool, witness: &mut impl Witness) {
        for (address, len) in places.into_iter().filter(|(_, len)| *len > 0) {
            witness.saw(&Observation::Places { address, len, lent });
        }
    }

    /// Adds one request to the ring; whether there was room.
    fn submit(&mut self, device: &mut Device, now: Instant, witness: &mut impl Witness) -> bool {
        let ring = self.ring.as_mut().expect("the queue is started");
        let (slot, direct, table) = match self.waiting.take() {
            Some(waiting) => waiting,
            None => {
                let slot = self.free_slots.pop().expect("fewer are out than there are slots");
                let ask = device.draw(self.index, &mut self.rng);
                let indirect = device.features.indirect && self.rng.chance(device.workload.indirect, 256);
                let table = match (indirect, device.features.packed) {
                    (false, _) => Table::None,
                    (true, false) => Table::OfTheEnd,
                    (true, true) => Table::OfAll,
                };
                let (direct, table) = self.slots[usize::from(slot)].prepare(
                    &self.memory,
                    device.disk,
                    ask,
                    ring.size(),
                    table,
                    &mut self.rng,
                );
                (slot, direct, table)
            }
        };
        let request = &mut self.slots[usize::from(slot)];
        let Some(head) = ring.add(&self.memory, request.pieces(), direct, table) else {
            self.waiting = Some((slot, direct, table));
            return false;
        };
        self.by_head[usize::from(head)] = Some(slot);
        self.outstanding += 1;
        request.id = device.next_id();
        request.submitted_at = now;
        request.cache = device.cache;
        request.cache_epoch = device.cache_epoch;
        request.may_fail = device.may_fail(&request.ask);
        witness.saw(&Observation::Submitted {
            id: request.id,
            queue: self.index,
            head,
            kind: request.ask.kind,
            sector: request.ask.sector,
            sectors: request.ask.sectors,
            version: request.ask.version,
            of_load: request.ask.of_load,
            writable: request.writable_bytes,
            cache: request.cache,
            buffers: &request.buffers,
        });
        true
    }

    /// Takes one completion; whether there was one.
    fn complete(&mut self, device: &mut Device, witness: &mut impl Witness) -> bool {
        let ring = self.ring.as_mut().expect("the queue is started");
        let Some(used) = ring.take_used() else { return false };
        let queue = self.index;
        witness.saw(&Observation::Used {
            queue,
            index: used.index,
            waiting: used.waiting,
            id: used.id,
            len: used.len,
            written: used.written,
        });
        Self::saw_places(used.places, false, witness);
        let head = used.id as u16;
        let Some(slot) = self.by_head.get_mut(used.id as usize).and_then(Option::take) else {
            // The checkers have objected to it already; there is nothing to finish.
            return false;
        };
        let request = &mut self.slots[usize::from(slot)];
        let status = request.status(&self.memory);
        if status == Status::Ok {
            let (id, ask) = (request.id, request.ask);
            match ask.kind {
                Kind::Read => {
                    let data = request.gather(&self.memory);
                    for (index, bytes) in data.chunks_exact(SECTOR_BYTES).enumerate() {
                        let sector = ask.sector + index as u64;
                        let content = stamp::read(device.disk, sector, bytes, &mut device.parts);
                        witness.saw(&Observation::Read { id, sector, content });
                    }
                }
                Kind::GetId => {
                    let bytes = request.gather(&self.memory);
                    witness.saw(&Observation::Identity { id, bytes });
                }
                Kind::Write | Kind::Flush | Kind::Discard | Kind::WriteZeroes => {}
            }
        }
        let request = &self.slots[usize::from(slot)];
        let changed = request.cache_epoch != device.cache_epoch;
        witness.saw(&Observation::Completed {
            id: request.id,
            queue,
            head,
            kind: request.ask.kind,
            sector: request.ask.sector,
            sectors: request.ask.sectors,
            version: request.ask.version,
            status,
            len: used.len,
            writable: request.writable_bytes,
            may_fail: request.may_fail || device.may_fail(&request.ask),
            submitted_at: request.submitted_at,
            cache: if changed { CacheMode::Changing } else { request.cache },
            buffers: &request.buffers,
        });
        self.ring_mut().release(head);
        self.free_slots.push(slot);
        self.outstanding -= 1;
        device.completed += 1;
        true
    }

    /// Tells the checkers what is left when the guest is quiet. `tracked` is what the inflight region says.
    ///
    /// # Panics
    /// When the guest itself lost a request or a descriptor: it is called quiet when it waits for none.
    pub fn report_quiet(&self, tracked: Option<(u16, bool)>, witness: &mut impl Witness) {
        if let Some(ring) = &self.ring {
            assert_eq!((self.outstanding(), ring.free()), (0, ring.size()), "the guest waits for nothing");
            witness.saw(&Observation::QueueQuiet { queue: self.index, tracked });
        }
    }
}
