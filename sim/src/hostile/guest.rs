//! A hostile guest: a driver that hands over good rings and then writes into them what no driver may.
//!
//! Each attack is one opportunity of the fault `hostile-guest`; its parameter seeds everything about it, so that a replay
//! file's list holds the attacks themselves. After an attack the guest resets its device, starts a good driver and reads
//! a few sectors: the device must serve it.

use super::{Blind, SECTORS};
use crate::faults::FaultKind;
use crate::guest::memory::RingAddresses;
use crate::guest::packed::DESCRIPTOR_FLAGS;
use crate::guest::ring::DriverRing;
use crate::guest::vm::Shared;
use crate::memory::SimWindow;
use crate::rng::Rng;
use crate::vmm::message::feature;
use crate::vmm::{SharedVmm, Task};
use crate::world::{self, Model, Step};
use runtime::{Instant, Notifier, Window};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

/// How often the guest looks whether its front-end is through.
const LOOK_NS: u64 = 20_000;
/// Longest time that an attack is left to work.
const WORK_NS_MAX: u64 = 150_000;
/// Requests of a probe.
const PROBE_REQUESTS: u64 = 4;
/// Times that an attack that changes descriptors under the device's eyes changes them.
const CHANGES: u32 = 40;
/// Number of the stream that the guest draws from.
const STREAM: u64 = 80_000;

/// Flags of a descriptor (virtio 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Of a descriptor of a packed ring (virtio 2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// The attacks, and on which layout of ring each is made; one of those for the ring is drawn.
const ATTACKS: [(&str, Of, Attack); 43] = [
    ("a head beyond the ring", Of::Split, |a| a.offer(a.size + a.any(60_000) as u16)),
    ("a next beyond the ring", Of::Split, |a| {
        a.desc(0, a.header(0, 0), 16, NEXT, a.size.saturating_add(a.any(9000) as u16));
        a.offer(0);
    }),
    ("a chain that is a loop", Of::Split, |a| {
        let last = a.any(u64::from(a.size)) as u16;
        for at in 0..=last {
            a.desc(
                at,
                a.header(0, 0),
                16,
                NEXT,
                if at == last { a.any(u64::from(last) + 1) as u16 } else { at + 1 },
            );
        }
        a.offer(0);
    }),
    ("an indirect table of odd length", Of::Both, |a| {
        a.desc(0, a.table(), 1 + 16 * a.any(4) as u32 + a.any(15) as u32, INDIRECT, 0);
        a.offer(0);
    }),
    ("an empty indirect table", Of::Both, |a| {
        a.desc(0, a.table(), 0, INDIRECT, 0);
        a.offer(0);
    }),
    ("an indirect table in an indirect table", Of::Both, |a| {
        a.describe(a.table(), 0, a.table(), 64, INDIRECT, 0);
        a.desc(0, a.table(), 64, INDIRECT, 0);
        a.offer(0);
    }),
    ("an indirect descriptor with a next", Of::Both, |a| {
        a.good_request_in_table();
        a.desc(0, a.table(), 48, INDIRECT | NEXT, 1);
        a.desc(1, a.data(), 1, WRITE, 0);
        a.offer(0);
    }),
    ("an indirect table that the device should write", Of::Both, |a| {
        a.good_request_in_table();
        a.desc(0, a.table(), 48, INDIRECT | WRITE, 0);
        a.offer(0);
    }),
    ("an indirect table outside of memory", Of::Both, |a| {
        a.desc(0, a.nowhere(), 48, INDIRECT, 0);
        a.offer(0);
    }),
    ("a huge indirect table", Of::Both, |a| {
        a.desc(0, a.region_end() - 4096, 1 << 20, INDIRECT, 0);
        a.offer(0);
    }),
    ("an indirect table as long as it may be, of buffers that are too many", Of::Both, |a| {
        for at in 0..514 {
            a.describe(a.table(), at, a.header(0, 0), 1, NEXT, at + 1);
        }
        a.desc(0, a.table(), 16 * 514, INDIRECT, 0);
        a.offer(0);
    }),
    ("ranges beyond the device", Of::Both, |a| {
        let kind = [11, 13][a.any(2) as usize];
        a.store_u64(a.data(), [1 << 40, u64::MAX, SECTORS - 6][a.any(3) as usize]);
        a.store_u32(a.data() + 8, [8, u32::MAX, 1 << 23][a.any(3) as usize]);
        a.store_u32(a.data() + 12, 0);
        a.request(kind, 0, &[(a.data(), 16, 0), (a.data() + 8192, 1, WRITE)]);
    }),
    ("a loop in an indirect table", Of::Both, |a| {
        for at in 0..4 {
            a.describe(a.table(), at, a.header(0, 0), 16, NEXT, (at + 1) % 4);
        }
        a.desc(0, a.table(), 64, INDIRECT, 0);
        a.offer(0);
    }),
    ("a loop of buffers of no length", Of::Split, |a| {
        let last = a.any(4) as u16;
        for at in 0..=last {
            a.desc(at, a.data(), 0, NEXT, if at == last { 0 } else { at + 1 });
        }
        a.offer(0);
    }),
    ("a loop of buffers of no length in an indirect table", Of::Both, |a| {
        for at in 0..4 {
            a.describe(a.table(), at, a.data(), 0, NEXT, (at + 1) % 4);
        }
        a.desc(0, a.table(), 64, INDIRECT, 0);
        a.offer(0);
    }),
    ("a next beyond an indirect table", Of::Both, |a| {
        a.describe(a.table(), 0, a.header(0, 0), 16, NEXT, 4 + a.any(u64::from(a.size)) as u16);
        a.desc(0, a.table(), 64, INDIRECT, 0);
        a.offer(0);
    }),
    ("a buffer outside of memory", Of::Both, |a| {
        a.request(0, 0, &[(a.nowhere(), 512, WRITE), (a.data(), 1, WRITE)])
    }),
    ("a buffer over the end of a region", Of::Both, |a| {
        a.request(0, 0, &[(a.region_end() - 100, 512, WRITE), (a.data(), 1, WRITE)]);
    }),
    ("a buffer over the end of all addresses", Of::Both, |a| {
        a.request(0, 0, &[(u64::MAX - 200, 512, WRITE), (a.data(), 1, WRITE)]);
    }),
    ("buffers of no length", Of::Both, |a| {
        a.request(0, 0, &[(a.data(), 0, WRITE), (a.data(), 0, WRITE), (a.data(), 1, WRITE)]);
    }),
    ("buffers of all lengths", Of::Both, |a| {
        a.request(0, 0, &[(a.data(), u32::MAX, WRITE), (a.data(), u32::MAX, WRITE), (a.data(), 1, WRITE)]);
    }),
    ("a transfer of megabytes through one small buffer", Of::Both, |a| {
        let (kind, flags) = if a.any(2) == 0 { (0, WRITE) } else { (1, 0) };
        let buffers = 90 + a.any(120) as u16;
        a.entry(0, a.header(kind, a.any(64)), 16, NEXT);
        (1..=buffers).for_each(|at| a.entry(at, a.data(), 48 << 10, flags | NEXT));
        a.entry(buffers + 1, a.data(), 1, WRITE);
        a.desc(0, a.table(), 16 * (u32::from(buffers) + 2), INDIRECT, 0);
        a.offer(0);
    }),
    ("an available index far ahead", Of::Split, |a| {
        a.set_avail_index(a.size.wrapping_mul(2).wrapping_add(a.any(9000) as u16))
    }),
    ("an available index that goes back", Of::Split, |a| {
        a.set_avail_index(a.avail_index().wrapping_sub(1 + a.any(100) as u16))
    }),
    ("readable after writable", Of::Both, |a| {
        a.desc(0, a.data(), 512, WRITE | NEXT, 1);
        a.desc(1, a.header(0, 0), 16, NEXT, 2);
        a.desc(2, a.data(), 1, WRITE, 0);
        a.offer(0);
    }),
    ("no room for a status", Of::Both, |a| a.request(1, 0, &[(a.data(), 512, 0)])),
    ("half a header", Of::Both, |a| {
        a.desc(0, a.header(0, 0), a.any(16) as u32, NEXT, 1);
        a.desc(1, a.data(), 1, WRITE, 0);
        a.offer(0);
    }),
    ("a request of any type, place and length", Of::Both, |a| {
        let kind = [0, 1, 4, 8, 10, 11, 13, 14, 15, 999][a.any(10) as usize];
        let sector = [0, u64::MAX, u64::MAX / 512, 1 << 55, a.any(4096)][a.any(5) as usize];
        let len = [1, 511, 513, 512, 4096, 20, 19][a.any(7) as usize];
        let flags = if a.any(2) == 0 { 0 } else { WRITE };
        a.fill(a.data(), 4096);
        a.request(kind, sector, &[(a.data(), len, flags), (a.data() + 8192, 1, WRITE)]);
    }),
    ("ranges of any kind", Of::Both, |a| {
        let kind = [11, 13][a.any(2) as usize];
        a.fill(a.data(), 4096);
        let len = [16, 15, 17, 0, 16 * 17, 16 * 256][a.any(6) as usize];
        a.request(kind, 0, &[(a.data(), len, 0), (a.data() + 8192, 1, WRITE)]);
    }),
    ("the same head twice", Of::Split, |a| {
        a.good_request();
        a.offer(0);
        a.offer(0);
    }),
    ("buffers that are the ring itself", Of::Both, |a| {
        a.request(0, 0, &[(a.ring.used, 512, WRITE), (a.ring.desc, 512, WRITE), (a.ring.avail, 1, WRITE)]);
    }),
    ("a used ring full of something", Of::Split, |a| {
        a.fill(a.ring.used, 4 + 8 * u64::from(a.size));
        a.good_request();
        a.offer(0);
    }),
    ("noise everywhere", Of::Split, |a| {
        a.fill(a.ring.desc, 16 * u64::from(a.size));
        a.fill(a.ring.avail, 4 + 2 * u64::from(a.size));
    }),
    ("a chain without an end", Of::Packed, |a| {
        for at in 0..a.size {
            a.desc(at, a.header(0, 0), 16, NEXT, 0);
        }
        a.offer(0);
    }),
    ("a chain longer than the ring", Of::Packed, |a| {
        // The last of them stands where the first one stood.
        for at in 0..a.size {
            a.desc(at, a.header(0, 0), 16, NEXT, 0);
        }
        a.offer(0);
        a.set_flags(0, a.available(a.size));
    }),
    ("more requests than places", Of::Packed, |a| {
        for at in 0..2 * a.size {
            a.desc(at, a.header(0, 0), 16, 0, at);
            a.set_flags(at, a.available(at));
        }
        a.offer(0);
    }),
    ("a request of another lap", Of::Packed, |a| {
        a.good_request();
        a.set_flags(0, NEXT | a.available(a.size));
    }),
    ("a descriptor that is used already", Of::Packed, |a| {
        a.good_request();
        a.set_flags(0, NEXT | AVAIL | USED);
        a.set_flags(1, WRITE | NEXT);
    }),
    ("the same id twice", Of::Packed, |a| {
        a.good_request();
        a.offer(0);
        a.desc(3, a.header(0, 0), 16, NEXT, 0);
        a.desc(4, a.data(), 512, WRITE | NEXT, 0);
        a.desc(5, a.data() + 4096, 1, WRITE, 2);
        a.set_flags(3, NEXT | a.available(3));
    }),
    ("a request that ends in the lap to come", Of::Packed, |a| {
        a.good_request();
        a.set_flags(2, NEXT | a.available(2));
        a.offer(0);
    }),
    ("an indirect table in the middle of a chain", Of::Packed, |a| {
        a.good_request_in_table();
        a.desc(0, a.header(0, 0), 16, NEXT, 0);
        a.desc(1, a.table(), 48, INDIRECT | NEXT, 0);
        a.desc(2, a.data(), 1, WRITE, 0);
        a.offer(0);
    }),
    ("event suppression of any kind", Of::Packed, |a| {
        a.fill(a.ring.avail, 4);
        a.fill(a.ring.used, 4);
        a.good_request();
        a.offer(0);
    }),
    ("noise in all places", Of::Packed, |a| {
        a.fill(a.ring.desc, 16 * u64::from(a.size));
        a.set_flags(0, a.any(8) as u16 | a.available(0));
    }),
];

/// On which layout of ring an attack is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Both,
    Split,
    Packed,
}

type Attack = fn(&Hand);

/// What an attack has its hands on.
struct Hand {
    memory: SimWindow,
    base: u64,
    ring: RingAddresses,
    size: u16,
    /// Packed: the index and the wrap counter of the place that is filled next.
    place: Option<(u16, bool)>,
    rng: std::cell::RefCell<Rng>,
}

impl Hand {
    fn any(&self, bound: u64) -> u64 {
        self.rng.borrow_mut().below(bound)
    }

    /// A place in the guest's memory beyond the rings, for a header, a table and data.
    fn free_place(&self) -> u64 {
        self.base + self.memory.len() - (64 << 10)
    }

    fn header(&self, kind: u32, sector: u64) -> u64 {
        let at = self.free_place();
        self.store_u32(at, kind);
        self.store_u32(at + 4, 0);
        self.store_u64(at + 8, sector);
        at
    }

    fn table(&self) -> u64 {
        self.free_place() + 4096
    }

    fn data(&self) -> u64 {
        self.free_place() + 8192
    }

    fn nowhere(&self) -> u64 {
        [0xdead_0000_0000, self.base + self.memory.len(), u64::MAX - 4096][self.any(3) as usize]
    }

    fn region_end(&self) -> u64 {
        self.base + self.memory.len()
    }

    fn store_u16(&self, at: u64, value: u16) {
        self.memory.store_u16(at - self.base, value, Relaxed);
    }

    fn store_u32(&self, at: u64, value: u32) {
        self.memory.store_u32(at - self.base, value, Relaxed);
    }

    fn store_u64(&self, at: u64, value: u64) {
        self.memory.store_u64(at - self.base, value, Relaxed);
    }

    /// Fills memory with drawn bytes, small numbers more often than large ones.
    fn fill(&self, at: u64, len: u64) {
        for offset in (0..len.min(16 << 10)).step_by(2) {
            let word = self.any(1 << 16) as u16;
            self.store_u16(at + offset, if self.any(3) == 0 { word } else { word & 0x1f });
        }
    }

    fn describe(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.store_u64(at, address);
        self.store_u32(at + 8, len);
        self.store_u16(at + 12, flags);
        self.store_u16(at + 14, next);
    }

    /// Writes an entry of the indirect table, as the ring's layout has it; the next one, if there is one, follows it.
    fn entry(&self, index: u16, address: u64, len: u32, flags: u16) {
        let (first, second) = if self.place.is_some() { (index, flags) } else { (flags, index + 1) };
        self.describe(self.table(), index, address, len, first, second);
    }

    /// Writes a descriptor of the ring. Of a packed one it is the `index`th from the next place on, available but for the
    /// first, and `next` is its id.
    fn desc(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        if self.place.is_none() {
            self.describe(self.ring.desc, index % self.size, address, len, flags, next);
            return;
        }
        let at = self.place_of(index).0;
        self.store_u64(at, address);
        self.store_u32(at + 8, len);
        self.store_u16(at + 12, next);
        let turn = self.available(if index == 0 { self.size } else { index });
        self.set_flags(index, flags | turn);
    }

    /// Packed: the address of the `index`th descriptor from the next place on, and the wrap counter of its lap.
    fn place_of(&self, index: u16) -> (u64, bool) {
        let (first, wrap) = self.place.unwrap_or_default();
        let at = first + index;
        (self.ring.desc + 16 * u64::from(at % self.size), wrap == (at / self.size).is_multiple_of(2))
    }

    /// Packed: the flags that make it available.
    fn available(&self, index: u16) -> u16 {
        if self.place_of(index).1 { AVAIL } else { USED }
    }

    /// Packed: its flags.
    fn set_flags(&self, index: u16, flags: u16) {
        self.store_u16(self.place_of(index).0 + DESCRIPTOR_FLAGS, flags);
    }

    /// A request of a header and these pieces, offered.
    fn request(&self, kind: u32, sector: u64, pieces: &[(u64, u32, u16)]) {
        self.desc(0, self.header(kind, sector), 16, NEXT, 1);
        for (at, &(address, len, flags)) in pieces.iter().enumerate() {
            let last = at + 1 == pieces.len();
            self.desc(at as u16 + 1, address, len, if last { flags } else { flags | NEXT }, at as u16 + 2);
        }
        self.offer(0);
    }

    fn good_request(&self) {
        self.desc(0, self.header(0, 0), 16, NEXT, 1);
        self.desc(1, self.data(), 512, WRITE | NEXT, 2);
        self.desc(2, self.data() + 4096, 1, WRITE, 0);
    }

    fn good_request_in_table(&self) {
        self.describe(self.table(), 0, self.header(0, 0), 16, NEXT, 1);
        self.describe(self.table(), 1, self.data(), 512, WRITE | NEXT, 2);
        self.describe(self.table(), 2, self.data() + 4096, 1, WRITE, 0);
    }

    fn avail_index(&self) -> u16 {
        self.memory.load_u16(self.ring.avail + 2 - self.base, Relaxed)
    }

    fn set_avail_index(&self, index: u16) {
        self.store_u16(self.ring.avail + 2, index);
    }

    /// Puts a head into the available ring; of a packed ring, makes the first descriptor available.
    fn offer(&self, head: u16) {
        if self.place.is_some() {
            let at = self.place_of(head).0 + DESCRIPTOR_FLAGS;
            let flags = self.memory.load_u16(at - self.base, Relaxed) & !(AVAIL | USED);
            self.set_flags(head, flags | self.available(head));
            return;
        }
        let index = self.avail_index();
        self.store_u16(self.ring.avail + 4 + 2 * u64::from(index % self.size), head);
        self.set_avail_index(index.wrapping_add(1));
    }

    /// Changes one field of the first descriptors, under the device's eyes.
    fn change(&self) {
        let at = self.ring.desc + 16 * self.any(4);
        if self.place.is_some() && self.any(4) == 0 {
            // Once more available than there are places: those of the lap to come, over those that the device has.
            (self.size..2 * self.size).for_each(|index| self.set_flags(index, self.available(index)));
            return;
        }
        match self.any(4) {
            0 => self.store_u64(at, if self.any(2) == 0 { self.data() } else { self.nowhere() }),
            1 => self.store_u32(at + 8, self.any(1 << 13) as u32),
            2 => self.store_u16(at + 12, self.any(8) as u16),
            _ => self.store_u16(at + 14, self.any(u64::from(self.size) + 2) as u16),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waiting for the rings to be handed over.
    Starting,
    /// Changing descriptors while the device works; how often still.
    Changing(u32),
    /// The attack works until then.
    Waiting(Instant),
    /// Waiting for the probe's requests.
    Probing,
}

/// The hostile guest.
pub struct HostileGuest {
    vm: Shared,
    vmm: SharedVmm<Blind>,
    rng: Rng,
    attacks: u64,
    /// Each of its drivers may have packed rings.
    packed: bool,
    state: State,
    hand: Option<Hand>,
    through: Rc<Cell<bool>>,
}

impl HostileGuest {
    /// A hostile guest in the world that makes this many attacks; the flag says when it is through.
    pub fn build(vm: Shared, vmm: SharedVmm<Blind>, attacks: u64, packed: bool, seed: u64) -> Rc<Cell<bool>> {
        let through = Rc::new(Cell::new(false));
        let mut guest = Self {
            vm,
            vmm,
            rng: Rng::new(seed, STREAM),
            attacks,
            packed,
            state: State::Starting,
            hand: None,
            through: Rc::clone(&through),
        };
        guest.start();
        world::with(|world| world.add_model(Box::new(guest), true));
        through
    }

    fn start(&mut self) {
        let queues = self.vm.borrow().queues.len() as u16;
        let packed = if self.packed && self.rng.chance(2, 3) { feature::RING_PACKED } else { 0 };
        let features = packed
            | feature::VERSION_1
            | feature::INDIRECT
            | feature::FLUSH
            | feature::DISCARD
            | feature::WRITE_ZEROES;
        self.vmm.borrow_mut().ask(Task::Start { queues, features });
    }

    /// Makes an attack, if one is to be made at this opportunity.
    fn attack(&mut self, now: Instant) {
        let Some(seed) = world::with(|world| world.faults().strike(FaultKind::HostileGuest, Rng::word))
        else {
            self.probe();
            return;
        };
        let mut rng = Rng::new(seed, 0);
        let vm = self.vm.borrow();
        // The queues of a driver are of one layout.
        let other = match vm.queues[0].ring() {
            Some(DriverRing::Packed(_)) => Of::Split,
            _ => Of::Packed,
        };
        let attacks: Vec<_> = ATTACKS.iter().filter(|(_, of, _)| *of != other).collect();
        let (name, _, attack) = attacks[rng.below(attacks.len() as u64) as usize];
        let changes = rng.chance(1, 3);
        let queue = rng.below(vm.queues.len() as u64) as usize;
        let Some(ring) = vm.queues[queue].ring() else { return };
        let place = match ring {
            DriverRing::Split(_) => None,
            DriverRing::Packed(ring) => Some(ring.next_place()),
        };
        let backing = vm.backings[0];
        let hand = Hand {
            memory: backing.window,
            base: backing.address,
            ring: ring.addresses(),
            size: ring.size(),
            place,
            rng: rng.into(),
        };
        let number = vm.number;
        world::with(|world| world.tell(|| format!("guest {number}, hostile: {name}, queue {queue}")));
        attack(&hand);
        vm.queues[queue].bells().0.ring();
        drop(vm);
        self.hand = Some(hand);
        let end = Instant(now.0 + self.rng.below(WORK_NS_MAX));
        self.state = if changes { State::Changing(CHANGES) } else { State::Waiting(end) };
    }

    /// Starts a good driver and lets it read a little.
    fn probe(&mut self) {
        self.hand = None;
        self.vmm.borrow_mut().ask(Task::Reset);
        self.start();
        self.vm.borrow_mut().device.allow(PROBE_REQUESTS);
        self.state = State::Probing;
    }
}

impl Model for HostileGuest {
    fn step(&mut self) -> Step {
        let now = world::with(|world| world.now());
        let look = Step::Idle { until: Some(Instant(now.0 + LOOK_NS)) };
        match self.state {
            State::Starting if self.vmm.borrow().is_settled() && self.vmm.borrow().is_running() => {
                if self.attacks == 0 {
                    self.through.set(true);
                    return Step::Done;
                }
                self.attacks -= 1;
                self.attack(now);
                Step::Worked
            }
            State::Starting => look,
            State::Changing(0) => {
                self.state = State::Waiting(Instant(now.0 + self.rng.below(WORK_NS_MAX)));
                Step::Worked
            }
            State::Changing(left) => {
                if let Some(hand) = &self.hand {
                    hand.change();
                }
                self.state = State::Changing(left - 1);
                Step::Worked
            }
            State::Waiting(end) if now < end => Step::Idle { until: Some(end) },
            State::Waiting(_) => {
                self.probe();
                Step::Worked
            }
            State::Probing => {
                let vm = self.vm.borrow();
                if !vm.device.has_load() && vm.outstanding() == 0 && self.vmm.borrow().is_settled() {
                    self.state = State::Starting;
                    return Step::Worked;
                }
                look
            }
        }
    }
}
