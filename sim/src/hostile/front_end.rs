//! A hostile front-end: it connects, says a mixture of good and malformed messages with too many, too few or the wrong
//! handles, passes regions of garbage, takes memory away, stops in the middle of a message, and connects again.
//!
//! Each message is an opportunity of the fault `hostile-front-end`; its parameter seeds what is wrong with it. Each
//! connection begins with a question that a target that still serves answers.

use super::region::{self, AVAILABLE, RING_LEN, SIZE, USED};
use crate::faults::FaultKind;
use crate::rng::Rng;
use crate::unix::SimHandle;
use crate::vmm::message::{self, Bytes, HEADER_BYTES, feature, protocol, request};
use crate::world::{self, Model, Step};
use runtime::{ErrorKind, Instant};
use std::cell::Cell;
use std::rc::Rc;

/// Longest wait before the next connection, and between messages.
const PAUSE_NS_MAX: u64 = 60_000;
/// Kicks by messages in one go at most.
const KICKS_MAX: u64 = 200;
/// Messages of a connection at most.
const MESSAGES_MAX: u64 = 30;
/// How long an answer is waited for. Short: most malformed messages have none.
const PATIENCE_NS: u64 = 40_000;
/// How long the answer to a connection's first question is waited for; without it the run is stuck.
const PROBE_NS: u64 = 3_000_000_000;
/// How long it says nothing where it lets the target speak: longer than the target waits before it tells of a change.
const SILENCE_NS: u64 = 110_000_000;
/// Regions of memory with which it fills the target's table, and some more.
const REGIONS: u64 = 520;
/// Bytes of the memory that it passes.
const MEMORY_BYTES: u64 = 256 << 10;
/// Number of the stream that the front-end draws from.
const STREAM: u64 = 81_000;

/// What a good front-end says until its rings run: a connection begins with a part of it, so that what is malformed
/// later meets every state.
const GREETING: [u32; 18] = [
    request::SET_PROTOCOL_FEATURES,
    request::GET_QUEUE_NUM,
    request::SET_BACKEND_REQ_FD,
    request::SET_OWNER,
    request::SET_FEATURES,
    request::GET_INFLIGHT_FD,
    request::SET_INFLIGHT_FD,
    request::SET_MEM_TABLE,
    request::SET_VRING_CALL,
    request::SET_VRING_NUM,
    request::SET_VRING_BASE,
    request::SET_VRING_ADDR,
    request::SET_VRING_KICK,
    request::VRING_KICK,
    request::SET_VRING_ENABLE,
    request::SET_STATUS,
    request::GET_CONFIG,
    request::GET_STATUS,
];

/// What is said of a connection later, beside all of the above.
const TALK: [u32; 13] = [
    request::ADD_MEM_REG,
    request::ADD_MEM_REG,
    request::REM_MEM_REG,
    request::SET_LOG_BASE,
    request::SET_CONFIG,
    request::GET_VRING_BASE,
    request::GET_VRING_BASE,
    request::SET_VRING_NUM,
    request::SET_VRING_ADDR,
    request::SET_VRING_BASE,
    request::SET_VRING_ENABLE,
    request::RESET_DEVICE,
    request::SET_VRING_KICK,
];

/// The last of the requests that there are ("Front-end message types" of the specification: 1 to 44, without a gap).
const REQUEST_LAST: u32 = 44;
/// Some that there are not: one of these ends the connection.
const NO_REQUESTS: [u32; 3] = [0, 99, u32::MAX];

/// Numbers at which things break.
const INTERESTING: [u64; 16] = [
    0,
    1,
    2,
    3,
    8,
    127,
    128,
    255,
    256,
    32_768,
    65_535,
    0xffff_ffff,
    1 << 32,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_f000,
    u64::MAX,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not connected; connects then.
    Away(Instant),
    /// Asked for the features, which a target that serves tells; until then.
    Probing(Instant),
    /// Messages still to be said, and no answer waited for beyond the moment.
    Talking(u64, Instant),
}

/// The hostile front-end.
pub struct HostileFrontEnd {
    machine: u32,
    path: String,
    model: u32,
    rng: Rng,
    attacks: u64,
    state: State,
    end: Option<u32>,
    /// What is left to say of the greeting.
    greeting: std::ops::Range<usize>,
    /// The greeting is a good one, of one ring, and asks for replies: what is wrong comes after it.
    careful: bool,
    /// The ring that a careful connection speaks of.
    queue: u64,
    /// Regions that are still to be added, one after the other.
    regions: u64,
    /// The near end of the back-end's own channel.
    backend: Option<u32>,
    /// It was silent once, which is enough.
    was_silent: bool,
    received: u64,
    /// In-band notifications are agreed upon, if it says so.
    in_band: bool,
    /// Its rings may be packed.
    packed: bool,
    /// Memory that it passes, with rings of zeroes or of garbage.
    memory: u32,
    /// A region of garbage that is passed as the inflight region.
    garbage: u32,
    through: Rc<Cell<bool>>,
}

impl HostileFrontEnd {
    /// A hostile front-end in the world that makes this many connections to a controller; the flag says when it is
    /// through.
    pub fn build(machine: u32, path: String, attacks: u64, packed: bool, seed: u64) -> Rc<Cell<bool>> {
        let through = Rc::new(Cell::new(false));
        let (memory, garbage) = Self::objects();
        let front_end = Self {
            machine,
            path,
            model: 0,
            rng: Rng::new(seed, STREAM),
            attacks,
            state: State::Away(Instant(0)),
            end: None,
            greeting: 0..0,
            careful: false,
            queue: 0,
            regions: 0,
            backend: None,
            was_silent: false,
            received: 0,
            in_band: false,
            packed,
            memory,
            garbage,
            through: Rc::clone(&through),
        };
        let shared = Rc::new(std::cell::RefCell::new(front_end));
        let model = world::with(|world| world.add_model(Box::new(SharedModel(Rc::clone(&shared))), false));
        shared.borrow_mut().model = model;
        through
    }

    fn objects() -> (u32, u32) {
        world::with(|world| (world.memory_object(MEMORY_BYTES).0, world.memory_object(MEMORY_BYTES).0))
    }

    fn connect(&mut self, now: Instant) -> Step {
        if self.attacks == 0 {
            self.through.set(true);
            return Step::Done;
        }
        let connected = world::with(|world| {
            let end = world.connect(self.machine, &self.path).ok()?;
            world.wait_for_end(end, self.model);
            Some(end)
        });
        let Some(end) = connected else { return self.away(now) };
        self.attacks -= 1;
        (self.end, self.received) = (Some(end), 0);
        self.careful = self.rng.chance(1, 2);
        (self.queue, self.regions, self.backend) = (self.rng.below(3), 0, None);
        self.in_band = self.rng.chance(1, 2);
        let greeting = self.rng.below(GREETING.len() as u64 + 1) as usize;
        self.greeting = 0..if self.careful { GREETING.len() } else { greeting };
        self.send(&Bytes::new(request::GET_FEATURES, 0).0, Vec::new());
        self.state = State::Probing(Instant(now.0 + PROBE_NS));
        Step::Worked
    }

    fn away(&mut self, now: Instant) -> Step {
        if let Some(end) = self.end.take() {
            world::with(|world| world.close_end(end));
        }
        let at = Instant(now.0 + 1 + self.rng.below(PAUSE_NS_MAX));
        self.state = State::Away(at);
        Step::Idle { until: Some(at) }
    }

    /// Sends what can be sent; whether the connection stands.
    fn send(&mut self, bytes: &[u8], handles: Vec<SimHandle>) -> bool {
        let Some(end) = self.end else { return false };
        let (mut left, mut handles) = (bytes, handles);
        while !left.is_empty() {
            match world::with(|world| world.send_on(end, left, std::mem::take(&mut handles))) {
                Ok(sent) => left = &left[sent..],
                // A target that does not read a hostile front-end's words loses them.
                Err(error) => return error.kind == ErrorKind::WouldBlock,
            }
        }
        true
    }

    /// Takes what came; whether the connection stands.
    fn receive(&mut self) -> bool {
        let Some(end) = self.end else { return false };
        let (mut bytes, mut handles) = ([0; 512], Vec::new());
        loop {
            match world::with(|world| world.receive_on(end, &mut bytes, &mut handles)) {
                Ok(0) => return false,
                Ok(got) => self.received += got as u64,
                Err(error) => return error.kind == ErrorKind::WouldBlock,
            }
        }
    }

    fn say(&mut self) -> bool {
        if self.regions > 0 {
            return self.add_region();
        }
        // A careful one leaves something out of its greeting, now and then, and spoils nothing.
        let greets = self.careful && !self.greeting.is_empty();
        while greets && self.rng.chance(1, 24) {
            self.greeting.next();
        }
        let strike = || world::with(|world| world.faults().strike(FaultKind::HostileFrontEnd, Rng::word));
        let wrong = if greets { None } else { strike() };
        // Another layout of rings than the region is for.
        let late = greets && GREETING.get(self.greeting.start) == Some(&request::SET_VRING_KICK);
        let request = match if late && self.rng.chance(1, 6) { Some(4) } else { self.greeting.next() } {
            Some(at) => GREETING[at],
            None if self.rng.chance(1, 20) => match self.rng.below(u64::from(REQUEST_LAST) + 3) as u32 {
                number @ 1..=REQUEST_LAST => number,
                other => NO_REQUESTS[other.saturating_sub(REQUEST_LAST) as usize],
            },
            None if self.rng.chance(1, 2) => TALK[self.rng.below(TALK.len() as u64) as usize],
            None => GREETING[self.rng.below(GREETING.len() as u64) as usize],
        };
        let request = match request {
            // It would end the connection, mostly.
            request::VRING_KICK if !self.in_band && self.rng.chance(7, 8) => request::SET_VRING_KICK,
            request => request,
        };
        let (mut bytes, mut handles) = self.good(request);
        if request == request::VRING_KICK && self.rng.chance(1, 8) {
            bytes = bytes.repeat(1 + self.rng.below(KICKS_MAX) as usize);
        }
        if let Some(seed) = wrong {
            let rng = &mut Rng::new(seed, 0);
            self.spoil(&mut bytes, &mut handles, rng);
            world::with(|world| {
                world.tell(|| {
                    format!("front-end, hostile: request {request} with {} handles, spoilt", handles.len())
                })
            });
        } else {
            world::with(|world| world.say(|| format!("front-end, hostile: request {request}")));
        }
        self.send(&bytes, handles)
    }

    /// Adds one more region to the target's table.
    fn add_region(&mut self) -> bool {
        self.regions -= 1;
        let at = (1 << 32) + (self.regions << 20);
        let bytes = Bytes::new(request::ADD_MEM_REG, message::NEED_REPLY);
        let bytes = bytes.u64(0).u64(at).u64(4096).u64(at).u64(0);
        self.send(&bytes.0, vec![SimHandle::memory(self.memory)])
    }

    /// A message that is good by itself, if perhaps not at this moment.
    fn good(&mut self, number: u32) -> (Vec<u8>, Vec<SimHandle>) {
        let queue = if self.careful && !self.rng.chance(1, 16) { self.queue } else { self.rng.below(3) };
        let need = if self.careful || self.rng.chance(1, 3) { message::NEED_REPLY } else { 0 };
        let odd = self.rng.chance(1, 12);
        let plain = Bytes::new(number, need);
        let state = |value: u64| Bytes::new(number, need).u32(queue as u32).u32(value as u32);
        let memory = || vec![SimHandle::memory(self.memory)];
        let user = 0x7f00_0000_0000_u64;
        let region = |bytes: Bytes| bytes.u64(0).u64(MEMORY_BYTES).u64(user).u64(0);
        let bell = || vec![SimHandle::eventfd(world::with(world::World::eventfd))];
        let (bytes, handles) = match number {
            request::SET_FEATURES => {
                let event_idx = self.rng.below(2) << 29;
                // Also between two regions, so that one is met by rings of the other layout.
                let packed = if self.packed && self.rng.chance(3, 4) { feature::RING_PACKED } else { 0 };
                (plain.u64(0x1_5000_0000 | event_idx | packed), Vec::new())
            }
            request::SET_PROTOCOL_FEATURES => {
                let in_band = if self.in_band { protocol::INBAND_NOTIFICATIONS } else { 0 };
                // Without what it needs, the connection ends.
                let without = if self.rng.chance(1, 16) { protocol::BACKEND_REQ } else { 0 };
                (plain.u64((0x1_962b | in_band) & !without), Vec::new())
            }
            request::SET_MEM_TABLE => (region(plain.u32(1).u32(0)), memory()),
            request::ADD_MEM_REG => {
                let at = INTERESTING[self.rng.below(16) as usize];
                let (guest, user) = if self.rng.chance(1, 3) { (0, user) } else { (at, at) };
                let len = if odd { 0 } else { 4096 };
                (plain.u64(0).u64(guest).u64(len).u64(user).u64(0), memory())
            }
            request::REM_MEM_REG if odd => (plain.u64(0).u64(1).u64(2).u64(3).u64(0), Vec::new()),
            request::REM_MEM_REG => (region(plain.u64(0)), Vec::new()),
            // Longer than its region is for, or of a size that only packed rings may have.
            request::SET_VRING_NUM if odd => {
                let size = u64::from(SIZE);
                (state(if self.rng.chance(1, 2) { size << 1 } else { size - 1 }), Vec::new())
            }
            request::SET_VRING_NUM => (state(SIZE.into()), Vec::new()),
            request::SET_VRING_BASE if self.packed => {
                (state(self.position() | self.position() << 16), Vec::new())
            }
            request::SET_VRING_BASE => (state(self.rng.below(4)), Vec::new()),
            request::SET_VRING_ENABLE => (state(1), Vec::new()),
            request::VRING_KICK => (state(0), Vec::new()),
            request::GET_VRING_BASE => (state(0), Vec::new()),
            request::SET_VRING_ADDR => {
                let ring = user + queue * RING_LEN + u64::from(odd);
                let bytes = plain.u32(queue as u32).u32(0).u64(ring).u64(ring + USED).u64(ring + AVAILABLE);
                (bytes.u64(0), Vec::new())
            }
            request::SET_VRING_KICK | request::SET_VRING_CALL | request::SET_VRING_ERR => {
                (plain.u64(queue), bell())
            }
            request::GET_CONFIG => (plain.u32(0).u32(57).u32(0).bytes(&[0; 57]), Vec::new()),
            request::SET_CONFIG => {
                (plain.u32(if odd { 0 } else { 32 }).u32(1).u32(0).bytes(&[1]), Vec::new())
            }
            request::SET_LOG_BASE => (plain.u64(4096).u64(0), memory()),
            request::GET_INFLIGHT_FD => (plain.u64(0).u64(0).u32(64 << 16 | 2).u32(0), Vec::new()),
            request::SET_INFLIGHT_FD => {
                self.fill_garbage();
                let at = if odd { 4 } else { 0 };
                (plain.u64(8192).u64(at).u32(64 << 16 | 2).u32(0), vec![SimHandle::memory(self.garbage)])
            }
            request::SET_BACKEND_REQ_FD => {
                let (near, far) = world::with(world::World::socket_pair);
                self.backend = Some(near);
                // Never read, and full from the start or soon.
                if self.rng.chance(1, 4) {
                    world::with(|world| world.fill_end(far));
                }
                (plain, vec![SimHandle::end(far)])
            }
            request::SET_STATUS => (plain.u64(15), Vec::new()),
            _ => (plain, Vec::new()),
        };
        (bytes.0, handles)
    }

    /// A position of a packed ring of 64 places, or one beyond it.
    fn position(&mut self) -> u64 {
        let index = if self.rng.chance(1, 8) { self.rng.below(1 << 15) } else { self.rng.below(4) };
        index | self.rng.below(2) << 15
    }

    /// An inflight region of packed rings in which some fields are right and others are not: lists without an end, entries
    /// of two requests, positions that are none.
    fn fill_packed_garbage(&mut self) {
        use runtime::Window;
        use std::sync::atomic::Ordering::Relaxed;
        let window = world::with(|world| world.window_onto(self.garbage));
        let careful = self.rng.chance(1, 2);
        for part in 0..2 {
            let at = part * 2112;
            window.store_u64(at, 0, Relaxed);
            window.store_u16(at + 8, self.rng.below(3) as u16, Relaxed);
            window.store_u16(
                at + 10,
                if self.rng.chance(7, 8) { 64 } else { self.rng.word() as u16 },
                Relaxed,
            );
            for field in [12, 14, 16, 18] {
                window.store_u16(at + field, self.rng.below(if careful { 3 } else { 70 }) as u16, Relaxed);
            }
            for wrap in [20, 21] {
                window.store_u8(at + wrap, self.rng.below(if careful { 2 } else { 3 }) as u8, Relaxed);
            }
            for entry in 0..64 {
                let place = at + 32 + entry * 32;
                let odd = !careful || self.rng.chance(1, 40);
                let next = if odd { self.rng.below(80) } else { entry + 1 };
                window.store_u8(place, if odd { self.rng.below(3) as u8 } else { 0 }, Relaxed);
                window.store_u16(place + 2, next as u16, Relaxed);
                window.store_u16(place + 4, self.rng.below(68) as u16, Relaxed);
                window.store_u16(place + 6, self.rng.below(4) as u16, Relaxed);
                window.store_u64(place + 8, INTERESTING[self.rng.below(16) as usize], Relaxed);
                window.store_u64(place + 16, self.rng.word(), Relaxed);
                window.store_u64(place + 24, INTERESTING[self.rng.below(16) as usize], Relaxed);
            }
        }
    }

    /// Rings of anything, and an inflight region in which some fields are right and others are not.
    fn fill_garbage(&mut self) {
        use runtime::Window;
        use std::sync::atomic::Ordering::Relaxed;
        let rings = world::with(|world| world.window_onto(self.memory));
        for at in (0..24_576.min(rings.len() & !1)).step_by(2) {
            rings.store_u16(at, self.rng.below(96) as u16, Relaxed);
        }
        let window = world::with(|world| world.window_onto(self.garbage));
        match (self.packed && self.rng.chance(3, 4), self.careful) {
            (false, true) => return region::write_split(&window, &rings, &mut self.rng),
            (true, true) => return region::write_packed(&window, &mut self.rng),
            (true, false) => return self.fill_packed_garbage(),
            (false, false) => {}
        }
        for queue in 0..2 {
            let at = queue * 1088;
            window.store_u64(at, 0, Relaxed);
            window.store_u16(at + 8, self.rng.below(3) as u16, Relaxed);
            window.store_u16(
                at + 10,
                if self.rng.chance(3, 4) { 64 } else { self.rng.word() as u16 },
                Relaxed,
            );
            window.store_u16(at + 12, self.rng.below(80) as u16, Relaxed);
            window.store_u16(at + 14, self.rng.below(70) as u16, Relaxed);
            for entry in 0..64 {
                let place = at + 16 + entry * 16;
                window.store_u8(place, self.rng.below(3) as u8, Relaxed);
                window.store_u16(place + 6, self.rng.below(80) as u16, Relaxed);
                window.store_u64(place + 8, INTERESTING[self.rng.below(16) as usize], Relaxed);
            }
        }
    }

    /// Makes something of a message that no front-end may send.
    fn spoil(&mut self, bytes: &mut Vec<u8>, handles: &mut Vec<SimHandle>, rng: &mut Rng) {
        let set = |bytes: &mut Vec<u8>, at: usize, value: u64, len: usize| {
            if bytes.len() >= at + len {
                bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
            }
        };
        match rng.below(9) {
            // A size that is not the payload's.
            0 => set(bytes, 8, INTERESTING[rng.below(16) as usize], 4),
            // A payload that is cut or too long, announced as it is.
            1 => {
                let len = rng.below(80) as usize;
                bytes.resize(HEADER_BYTES + len, 0xee);
                set(bytes, 8, len as u64, 4);
            }
            // Flags of no version, of another, or of a reply.
            2 => set(bytes, 4, [0, 2, 3, 5, 0xffff_ffff][rng.below(5) as usize], 4),
            // A field that is one of the numbers at which things break.
            3 | 4 if bytes.len() > HEADER_BYTES => {
                let wide = rng.chance(1, 2);
                let len = if wide { 8 } else { 4 };
                let fields = (bytes.len() - HEADER_BYTES) / len;
                let at = HEADER_BYTES + len * rng.below(fields.max(1) as u64) as usize;
                set(bytes, at, INTERESTING[rng.below(16) as usize], len);
            }
            // Handles that are too many, too few, or of something else.
            3..=5 => {
                handles.clear();
                for _ in 0..rng.below(10) {
                    handles.push(if rng.chance(1, 2) {
                        SimHandle::memory(self.garbage)
                    } else {
                        SimHandle::eventfd(world::with(world::World::eventfd))
                    });
                }
            }
            // Memory that is taken away below the target's feet.
            6 => {
                let len = if rng.chance(1, 2) { 0 } else { rng.below(MEMORY_BYTES) };
                let memory = self.memory;
                world::with(|world| world.shrink_object(memory, len));
                self.memory = Self::objects().0;
            }
            // Half a message, and silence.
            7 => bytes.truncate(1 + rng.below(bytes.len() as u64) as usize),
            // Noise.
            _ => {
                for byte in bytes.iter_mut() {
                    if rng.chance(1, 4) {
                        *byte = rng.word() as u8;
                    }
                }
            }
        }
    }

    fn step(&mut self) -> Step {
        let now = world::with(|world| world.now());
        match self.state {
            State::Away(at) if now < at => Step::Idle { until: Some(at) },
            State::Away(_) => self.connect(now),
            State::Probing(until) => {
                if !self.receive() {
                    return self.away(now);
                }
                if self.received >= HEADER_BYTES as u64 + 8 {
                    let greeting = if self.careful { GREETING.len() as u64 } else { 0 };
                    self.state = State::Talking(greeting + 1 + self.rng.below(MESSAGES_MAX), now);
                    return Step::Worked;
                }
                if now >= until {
                    let what =
                        "a controller that a hostile front-end had used answers nobody any more".to_owned();
                    world::with(|world| world.fail("hostile", what));
                    return Step::Done;
                }
                Step::Idle { until: Some(until) }
            }
            State::Talking(left, until) => {
                if !self.receive() {
                    return self.away(now);
                }
                if now < until {
                    return Step::Idle { until: Some(until) };
                }
                if left == 0 || !self.say() {
                    return self.away(now);
                }
                let mut until = Instant(now.0 + self.rng.below(PATIENCE_NS));
                let mut left = left - 1;
                if self.regions > 0 {
                    until = now;
                } else if self.careful && self.greeting.is_empty() {
                    // The greeting is over, or what followed on it goes on.
                    if self.rng.chance(1, 200) {
                        (self.regions, left) = (REGIONS, REGIONS + 1);
                    } else if self.rng.chance(1, 60)
                        && !self.was_silent
                        && let Some(near) = self.backend.take()
                    {
                        self.was_silent = true;
                        world::with(|world| world.close_end(near));
                        until = Instant(now.0 + SILENCE_NS);
                    }
                }
                self.state = State::Talking(left, until);
                Step::Worked
            }
        }
    }
}

struct SharedModel(Rc<std::cell::RefCell<HostileFrontEnd>>);

impl Model for SharedModel {
    fn step(&mut self) -> Step {
        self.0.borrow_mut().step()
    }
}

#[cfg(test)]
mod tests {
    use super::{NO_REQUESTS, REQUEST_LAST};
    use stack::vhost_user::request::Request;

    #[test]
    fn every_request_that_the_target_knows_is_sent() {
        assert!(Request::ALL.iter().all(|request| (1..=REQUEST_LAST).contains(&(*request as u32))));
        assert_eq!(Request::ALL.len(), REQUEST_LAST as usize);
        assert!(NO_REQUESTS.iter().all(|number| Request::from_number(*number).is_none()));
    }
}
