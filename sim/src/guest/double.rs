//! Test doubles: plain memory, plain doorbells, and a small virtio-blk device that is right, or wrong in one planted way.
//! The guest and the checkers prove themselves on it; the real device is never run here.

use super::memory::{Layout, Memory, Region};
use super::queue::{Queue, QueueStart};
use super::request::area_bytes;
use super::ring::RingFeatures;
use super::workload::{Mix, Offer, Workload};
use super::{Step, Witness, device::Device};
use crate::check::observation::Agent;
use crate::check::{DeviceCheckers, Observation, Violation};
use crate::rng::Rng;
use runtime::{Instant, Notifier, Window};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Nanoseconds in which a request must end.
const BOUND_NS: u64 = 1_000_000;
const SECTORS: u64 = 64;
const RING_SIZE: u16 = 16;
const REQUESTS: u64 = 400;
const MEMORY_AT: [u64; 2] = [0x1_0000, 0x4000_0000];

/// Memory that lives as long as the test's process.
#[derive(Clone, Copy, Debug)]
struct Plain(&'static [AtomicU8]);

impl Plain {
    fn new(len: u64) -> Self {
        Self(Box::leak((0..len).map(|_| AtomicU8::new(0)).collect()))
    }

    fn load(&self, offset: u64, bytes: usize) -> u64 {
        let at = offset as usize;
        self.0[at..at + bytes].iter().rev().fold(0, |sum, b| sum << 8 | u64::from(b.load(Ordering::Relaxed)))
    }

    fn store(&self, offset: u64, value: u64, bytes: usize) {
        self.write(offset, &value.to_le_bytes()[..bytes]);
    }
}

impl Window for Plain {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn slice(&self, offset: u64, len: u64) -> Option<Self> {
        self.0.get(offset as usize..(offset + len) as usize).map(Self)
    }
    fn is_aligned(&self, _: u64) -> bool {
        true
    }
    fn load_u8(&self, offset: u64, _: Ordering) -> u8 {
        self.load(offset, 1) as u8
    }
    fn load_u16(&self, offset: u64, _: Ordering) -> u16 {
        self.load(offset, 2) as u16
    }
    fn load_u32(&self, offset: u64, _: Ordering) -> u32 {
        self.load(offset, 4) as u32
    }
    fn load_u64(&self, offset: u64, _: Ordering) -> u64 {
        self.load(offset, 8)
    }
    fn store_u8(&self, offset: u64, value: u8, _: Ordering) {
        self.store(offset, value.into(), 1);
    }
    fn store_u16(&self, offset: u64, value: u16, _: Ordering) {
        self.store(offset, value.into(), 2);
    }
    fn store_u32(&self, offset: u64, value: u32, _: Ordering) {
        self.store(offset, value.into(), 4);
    }
    fn store_u64(&self, offset: u64, value: u64, _: Ordering) {
        self.store(offset, value, 8);
    }
    fn fetch_or_u8(&self, offset: u64, bits: u8) -> u8 {
        self.0[offset as usize].fetch_or(bits, Ordering::SeqCst)
    }
    fn read(&self, offset: u64, into: &mut [u8]) {
        for (index, byte) in into.iter_mut().enumerate() {
            *byte = self.0[offset as usize + index].load(Ordering::Relaxed);
        }
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            self.0[offset as usize + index].store(*byte, Ordering::Relaxed);
        }
    }
    fn fill(&self, offset: u64, len: u64, byte: u8) {
        self.write(offset, &vec![byte; len as usize]);
    }
    fn copy_from(&self, offset: u64, source: &Self, source_offset: u64, len: u64) {
        let mut bytes = vec![0; len as usize];
        source.read(source_offset, &mut bytes);
        self.write(offset, &bytes);
    }
    fn fence(_: Ordering) {}
}

#[derive(Clone, Debug)]
struct Bell(Arc<AtomicBool>);

impl Notifier for Bell {
    fn ring(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// What the device does wrong, once in a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    Nothing,
    CompletesTwice,
    WrongId,
    WrongLen,
    NoStatus,
    LosesWrite,
    LateWrite,
    StaleRead,
    TouchesAfterCompletion,
    TouchesRing,
    ForgetsRequest,
    LosesInterrupt,
    IndexRunsAhead,
    LosesFlushedWrite,
    ErrorWithoutCause,
    SwapsSectors,
}

/// A piece of a chain: address, length, whether the device writes it.
type Piece = (u64, u32, bool);

/// The device's side, as short as it can be.
struct Double {
    memory: Memory<Plain>,
    ring: super::memory::RingAddresses,
    features: RingFeatures,
    size: u16,
    next_avail: u16,
    used: u16,
    disk: Vec<u8>,
    durable: Vec<u8>,
    late: Option<(usize, Vec<u8>)>,
    taken: Vec<(u16, Vec<Piece>)>,
    last: Option<(u16, Vec<Piece>)>,
    plant: Plant,
    call: Bell,
    kick: Bell,
    rng: Rng,
}

impl Double {
    fn u16(&self, at: u64) -> u16 {
        self.memory.window(at, 2).load_u16(0, Ordering::Relaxed)
    }

    fn chain(&self, table: u64, mut index: u16, out: &mut Vec<Piece>) {
        loop {
            let mut d = [0; 16];
            self.memory.read(table + 16 * u64::from(index), &mut d);
            let address = u64::from_le_bytes(d[..8].try_into().unwrap());
            let len = u32::from_le_bytes(d[8..12].try_into().unwrap());
            let flags = u16::from_le_bytes(d[12..14].try_into().unwrap());
            if flags & 4 != 0 {
                assert!(self.features.indirect && flags & 1 == 0 && len % 16 == 0);
                return self.chain(address, 0, out);
            }
            out.push((address, len, flags & 2 != 0));
            if flags & 1 == 0 {
                return;
            }
            index = u16::from_le_bytes(d[14..].try_into().unwrap());
        }
    }

    fn wrong(&mut self, plant: Plant) -> bool {
        self.plant == plant && self.rng.chance(1, 40)
    }

    fn step(&mut self, witness: &mut Judge) -> bool {
        self.kick.take();
        let mut worked = false;
        if self.u16(self.ring.avail + 2) != self.next_avail {
            let entry = self.ring.avail + 4 + 2 * u64::from(self.next_avail % self.size);
            let head = self.u16(entry);
            self.next_avail = self.next_avail.wrapping_add(1);
            let mut pieces = Vec::new();
            self.chain(self.ring.desc, head, &mut pieces);
            if self.wrong(Plant::ForgetsRequest) {
                return true;
            }
            self.taken.push((head, pieces));
            worked = true;
        }
        if !self.taken.is_empty() && self.rng.chance(1, 2) {
            let at = self.rng.below(self.taken.len() as u64) as usize;
            let (head, pieces) = self.taken.swap_remove(at);
            self.execute(head, &pieces, witness);
            self.last = Some((head, pieces));
            return true;
        }
        if let Some((at, bytes)) = self.late.take() {
            self.disk[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        // Nothing to do: wish to be told of the next one.
        let at = self.ring.used + 4 + 8 * u64::from(self.size);
        self.memory.write(at, &self.next_avail.to_le_bytes());
        worked || !self.taken.is_empty()
    }

    fn touch(&self, witness: &mut Judge, address: u64, len: u64, store: bool) {
        witness.saw(&Observation::Access { agent: Agent::Target, address, len, store });
    }

    fn execute(&mut self, head: u16, pieces: &[Piece], witness: &mut Judge) {
        let mut readable = Vec::new();
        for &(address, len, _) in pieces.iter().filter(|piece| !piece.2) {
            let mut bytes = vec![0; len as usize];
            self.touch(witness, address, len.into(), false);
            self.memory.read(address, &mut bytes);
            readable.extend_from_slice(&bytes);
        }
        let kind = u32::from_le_bytes(readable[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(readable[8..16].try_into().unwrap()) as usize;
        let room: usize = pieces.iter().filter(|piece| piece.2).map(|piece| piece.1 as usize).sum();
        let mut answer = Vec::new();
        let mut status = 0;
        match kind {
            0 => {
                let mut bytes = self.disk[sector * 512..sector * 512 + room - 1].to_vec();
                if self.wrong(Plant::StaleRead) {
                    bytes.fill(0xa5);
                }
                if bytes.len() > 512 && self.wrong(Plant::SwapsSectors) {
                    bytes.rotate_left(512);
                }
                answer = bytes;
            }
            1 => {
                let (at, bytes) = (sector * 512, &readable[16..]);
                if self.plant == Plant::LateWrite && self.rng.chance(1, 4) {
                    self.late = Some((at, bytes.to_vec()));
                }
                if !self.wrong(Plant::LosesWrite) {
                    self.disk[at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
            4 => {
                if !self.wrong(Plant::LosesFlushedWrite) {
                    self.durable.copy_from_slice(&self.disk);
                }
            }
            8 => answer = b"a disk of the test..".to_vec(),
            11 | 13 => {
                let zeroes = kind == 13 || self.rng.chance(1, 2);
                for segment in readable[16..].chunks_exact(16).filter(|_| zeroes) {
                    let sector = u64::from_le_bytes(segment[..8].try_into().unwrap()) as usize;
                    let count = u32::from_le_bytes(segment[8..12].try_into().unwrap()) as usize;
                    self.disk[sector * 512..(sector + count) * 512].fill(0);
                }
            }
            _ => status = 2,
        }
        if self.wrong(Plant::ErrorWithoutCause) {
            status = 1;
        }
        let mut len = answer.len() as u32 + 1;
        answer.push(if self.wrong(Plant::NoStatus) { 0xff } else { status });
        let mut at = 0;
        for &(address, len, _) in pieces.iter().filter(|piece| piece.2) {
            self.touch(witness, address, len.into(), true);
            self.memory.write(address, &answer[at..at + len as usize]);
            at += len as usize;
        }
        if self.wrong(Plant::WrongLen) {
            len += 1;
        }
        if self.wrong(Plant::TouchesRing) {
            self.touch(witness, self.ring.avail, 2, true);
        }
        if self.plant == Plant::TouchesAfterCompletion
            && let Some((_, pieces)) = &self.last
        {
            self.touch(witness, pieces[0].0, pieces[0].1.into(), false);
        }
        let id = if self.wrong(Plant::WrongId) { head ^ 1 } else { head };
        self.push(id, len);
        if self.wrong(Plant::CompletesTwice) {
            self.push(id, len);
        }
        if self.wrong(Plant::IndexRunsAhead) {
            self.used = self.used.wrapping_add(self.size);
            self.memory.write(self.ring.used + 2, &self.used.to_le_bytes());
        }
        if !self.wrong(Plant::LosesInterrupt) {
            self.call.ring();
        }
    }

    fn push(&mut self, id: u16, len: u32) {
        let at = self.ring.used + 4 + 8 * u64::from(self.used % self.size);
        self.memory.write(at, &u32::from(id).to_le_bytes());
        self.memory.write(at + 4, &len.to_le_bytes());
        self.used = self.used.wrapping_add(1);
        self.memory.write(self.ring.used + 2, &self.used.to_le_bytes());
    }
}

struct Judge {
    checkers: DeviceCheckers,
    now: Instant,
    violation: Option<Violation>,
}

impl Witness for Judge {
    fn saw(&mut self, observation: &Observation<'_>) {
        if self.violation.is_none() {
            self.violation = self.checkers.observe(self.now, observation).err();
        }
    }
}

fn workload(rng: &mut Rng) -> Workload {
    Workload {
        requests: REQUESTS,
        depth: 1 + rng.below(12) as u16,
        sectors_max: 1 + rng.below(8) as u32,
        mix: Mix { read: 40, write: 40, flush: 5, get_id: 2, discard: 4, write_zeroes: 6 },
        think_ns_max: 2000,
        think: 10,
        odd_layout: 100,
        indirect: 128,
    }
}

/// Runs a guest on the double; the violation, how many requests completed, and how often each checker judged.
pub(super) fn run(seed: u64, plant: Plant) -> (Option<Violation>, u64, DeviceCheckers) {
    let mut rng = Rng::new(seed, 1);
    let workload = workload(&mut rng);
    let layout = Layout {
        queues: 1,
        ring_size_max: RING_SIZE,
        depth_max: 12,
        area_bytes: area_bytes(workload.sectors_max),
    };
    let regions = MEMORY_AT
        .iter()
        .enumerate()
        .map(|(at, &address)| Region { address, window: Plain::new(layout.region_bytes(at)), in_use: true })
        .collect();
    let memory = Memory { regions };
    let bell = || Bell(Arc::new(AtomicBool::new(false)));
    let (kick, call) = (bell(), bell());
    let offer = Offer {
        capacity: SECTORS,
        block_sectors: 1,
        flush: true,
        discard: true,
        write_zeroes: true,
        read_only: false,
    };
    let mut device = Device::new(0, workload, offer);
    device.features = RingFeatures { packed: false, event_idx: rng.chance(1, 2), indirect: rng.chance(1, 2) };
    device.allow(REQUESTS);
    device.running = true;
    let mut judge = Judge {
        checkers: DeviceCheckers::new(SECTORS, true, false, false, BOUND_NS),
        now: Instant(0),
        violation: None,
    };
    for (at, &address) in MEMORY_AT.iter().enumerate() {
        judge.saw(&Observation::RegionAdded { address, len: layout.region_bytes(at) });
    }
    judge.saw(&Observation::Healed);
    let mut queue = Queue::new(
        0,
        memory.clone(),
        layout,
        workload.sectors_max,
        kick.clone(),
        call.clone(),
        Rng::new(seed, 2),
    );
    queue.start(
        QueueStart { size: RING_SIZE, features: device.features, shift: rng.below(8), first: 0 },
        &mut judge,
    );
    let disk = vec![0; SECTORS as usize * 512];
    let mut double = Double {
        memory,
        ring: queue.ring().unwrap().addresses(),
        features: device.features,
        size: RING_SIZE,
        next_avail: 0,
        used: 0,
        durable: disk.clone(),
        disk,
        late: None,
        taken: Vec::new(),
        last: None,
        plant,
        call,
        kick,
        rng: Rng::new(seed, 3),
    };
    let power_lost_at = 200 + rng.below(300);
    let mut idle = 0;
    let mut step = 0;
    let mut passes = 0;
    while judge.violation.is_none() && idle < 4000 {
        step += 1;
        judge.now = Instant(judge.now.0 + 100);
        if step == power_lost_at && plant != Plant::LosesInterrupt {
            double.disk.copy_from_slice(&double.durable);
            double.taken.clear();
            double.late = None;
            (double.next_avail, double.used) = (0, 0);
            judge.saw(&Observation::PowerLost);
            queue.reset();
            queue.start(
                QueueStart { size: RING_SIZE, features: device.features, shift: 0, first: 0 },
                &mut judge,
            );
            double.ring = queue.ring().unwrap().addresses();
            device.read_all();
        }
        let worked = if rng.chance(1, 2) {
            matches!(queue.step(&mut device, judge.now, &mut judge), Step::Worked)
        } else {
            double.step(&mut judge)
        };
        idle = if worked { 0 } else { idle + 1 };
        if idle == 1000 && passes == 0 {
            passes = 1;
            device.read_all();
        }
    }
    if judge.violation.is_none() && queue.outstanding() > 0 {
        // What is out now is out for good.
        judge.now = Instant(judge.now.0 + BOUND_NS + 1);
        judge.violation = judge.checkers.look(judge.now).err();
    } else if judge.violation.is_none() {
        queue.report_quiet(Some((0, true)), &mut judge);
    }
    (judge.violation, device.completed, judge.checkers)
}
