//! Two processes on two machines: one asks, over TCP, and the other answers.

use super::{program, spawn};
use runtime::{Error, ErrorKind, Memory, Net, Platform, Poll, Segments, TcpListener, TcpStream, Window};
use sim::faults::{FaultKind, Faults, Rate};
use sim::net::{SimTcpStream, address_of};
use sim::platform::SimPlatform;
use sim::scheduler::{self, End};
use sim::world::{self, Temper};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;

/// Questions of one exchange.
const QUESTIONS: u64 = 100;
/// Where the one that answers listens.
const PORT: u16 = 4420;

thread_local! {
    /// What the one that asks has seen after its questions.
    static SEEN: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    /// It shall ask one more.
    static ASK: Cell<bool> = const { Cell::new(false) };
}

pub fn seen() -> Vec<&'static str> {
    SEEN.with_borrow(Clone::clone)
}

pub fn ask() {
    ASK.set(true);
}

fn see(what: &'static str) {
    SEEN.with_borrow_mut(|seen| seen.push(what));
}

/// The next byte, if one is there; `None` is the end of the stream.
fn byte(stream: &mut SimTcpStream) -> Result<Option<u8>, Error> {
    let byte = stream.peek(1)?.first().copied();
    stream.consume(usize::from(byte.is_some()));
    Ok(byte)
}

/// A byte in memory of its own, sent again only when it was released.
struct Sending<M> {
    memory: M,
    out: u64,
}

impl<M: Memory<Window = sim::memory::SimWindow>> Sending<M> {
    /// Whether the byte was sent.
    fn send(&mut self, stream: &mut SimTcpStream, byte: u8) -> Result<bool, Error> {
        while stream.released().is_some() {
            self.out -= 1;
        }
        if self.out > 0 {
            return Ok(false);
        }
        self.memory.window().write(0, &[byte]);
        match stream.send(Segments(&[self.memory.window()]), 0) {
            Ok(_) => self.out += 1,
            Err(error) if error.kind == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

fn sending(platform: &SimPlatform) -> Sending<<SimPlatform as Platform>::Memory> {
    Sending { memory: platform.shared_memory("test", 1).unwrap(), out: 0 }
}

/// Answers each byte with the next one.
fn answering(platform: &SimPlatform) -> impl FnMut() -> Poll + use<> {
    let mut listener = platform.net().listen(SocketAddr::new(address_of(0, false), PORT)).unwrap();
    let (mut stream, mut answer, mut sending) = (None, None, sending(platform));
    move || {
        let Some(stream) = &mut stream else {
            stream = listener.accept().unwrap();
            return Poll::Idle { until: None };
        };
        if answer.is_none() {
            answer = byte(stream).ok().flatten();
        }
        if let Some(question) = answer
            && sending.send(stream, question.wrapping_add(1)) == Ok(true)
        {
            answer = None;
        }
        Poll::Idle { until: None }
    }
}

/// Asks its questions, says so, and then what else it sees.
fn asking(platform: &SimPlatform) -> impl FnMut() -> Poll + use<> {
    let to = SocketAddr::new(address_of(0, false), PORT);
    let (mut stream, mut sending) = (None, sending(platform));
    let (mut asked, mut answered, mut ended) = (0, 0, false);
    let net = platform.net();
    move || {
        let Some(stream) = &mut stream else {
            stream = net.connect(to, None).ok();
            return Poll::Idle { until: None };
        };
        if ended {
            return Poll::Idle { until: None };
        }
        match stream.is_connected() {
            Ok(true) => {}
            Ok(false) => return Poll::Idle { until: None },
            // The other one does not listen yet.
            Err(_) => {
                *stream = net.connect(to, None).unwrap();
                return Poll::Idle { until: None };
            }
        }
        let more = asked < QUESTIONS || ASK.get();
        if asked == answered && more {
            match sending.send(stream, asked as u8) {
                Ok(true) => {
                    asked += 1;
                    ASK.set(false);
                }
                Ok(false) => {}
                Err(_) => {
                    see("closed");
                    ended = true;
                }
            }
        }
        match byte(stream) {
            Ok(Some(byte)) => {
                assert_eq!(u64::from(byte), (answered + 1) & 0xff);
                answered += 1;
                if answered == QUESTIONS {
                    see("answered");
                }
            }
            Ok(None) => {
                see("end");
                ended = true;
            }
            Err(error) if error.kind == ErrorKind::WouldBlock => {}
            Err(_) => {
                see("closed");
                ended = true;
            }
        }
        Poll::Idle { until: None }
    }
}

/// A new world with both; its network loses, delays and holds packets. The process that answers.
pub fn begin(seed: u64) -> u32 {
    let faults = Faults::drawn(seed, |kind| match kind {
        FaultKind::PacketLost | FaultKind::PacketLate | FaultKind::PacketHeld => {
            Rate { of_65536: 2000, most: 10 }
        }
        _ => Rate::default(),
    });
    world::create(seed, Temper::default(), faults);
    SEEN.with_borrow_mut(Vec::clear);
    ASK.set(false);
    let machines = world::with(|world| [world.machine(), world.machine()]);
    let answers = spawn(machines[0], &program(|platform| answering(&platform)));
    spawn(machines[1], &program(|platform| asking(&platform)));
    answers
}

/// The trace of a whole exchange.
pub fn exchange(seed: u64) -> u128 {
    begin(seed);
    world::with(|world| {
        world.add_model(
            Box::new(super::Does(|| {
                if seen() == ["answered"] {
                    world::with(|world| world.finish());
                }
                let soon = world::with(|world| runtime::Instant(world.now().0 + 100_000));
                sim::world::Step::Idle { until: Some(soon) }
            })),
            false,
        );
    });
    assert_eq!(scheduler::run(), End::Finished, "{:?}", world::with(|world| world.failure().cloned()));
    let trace = world::with(|world| world.trace().finish());
    world::clear();
    trace
}
