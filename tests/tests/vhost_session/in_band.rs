//! Rings that are kicked and told by messages: a channel that is slow, full, replaced or gone, and what may not be agreed
//! upon.

use runtime::Poll;
use rustix::net::{SendFlags, send};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tests::message::request;
use tests::vhost::by_hand::Armed;
use tests::vhost::front_end::{NEED_REPLY, PLAIN, REPLY, Received, Wire, longs, take, words};
use tests::vhost::guest::kind;

use crate::rig::{FEATURES, FrontEnd, NUM_BLOCKS, PROTOCOL_FEATURES, QUEUE_SIZE, Rig};

/// In-band notifications, as a protocol feature.
const IN_BAND: u64 = 1 << 14;
/// What else they need.
const BACKEND_REQ: u64 = 1 << 5;
const REPLY_ACK: u64 = 1 << 3;
/// Messages of the back-end.
const CALL: u32 = 4;
const ERROR: u32 = 5;
/// Long enough for a message that could not be sent to be tried again.
const RETRY: Duration = Duration::from_millis(2);

/// A front-end that has agreed upon in-band notifications, and its end of the channel back.
struct InBand {
    rig: Rig,
    front: FrontEnd,
    channel: Wire,
}

impl InBand {
    /// With rings that are described and neither kicked nor enabled.
    fn greeted(rings: u32) -> Self {
        let mut rig = Rig::offering(true);
        let front = FrontEnd::connect(&mut rig, rings);
        let (channel, far) = Wire::pair();
        let mut session = Self { rig, front, channel };
        session.greet(far);
        session.front.rings.iter().for_each(|ring| assert_eq!(ring.used, 0));
        session.describe(0);
        session
    }

    /// With rings that run.
    fn running(rings: u32) -> Self {
        let mut session = Self::greeted(rings);
        session.start();
        session
    }

    fn greet(&mut self, far: OwnedFd) {
        let (rig, front) = (&mut self.rig, &mut self.front);
        let all = PROTOCOL_FEATURES | IN_BAND;
        assert_eq!(front.ask(rig, request::GET_PROTOCOL_FEATURES, &[], &[]).number(), all);
        assert_eq!(front.ack(rig, request::SET_PROTOCOL_FEATURES, &longs(&[all]), &[]), 0);
        assert_eq!(front.ack(rig, request::SET_BACKEND_REQ_FD, &[], &[&far]), 0);
        // What it was shown it is not told of.
        let config = [words(&[0, 8, 0]), vec![0; 8]].concat();
        assert_eq!(u64::from(front.ask(rig, request::GET_CONFIG, &config, &[]).number32(12)), NUM_BLOCKS);
    }

    fn describe(&mut self, base: u16) {
        let (rig, front) = (&mut self.rig, &mut self.front);
        assert_eq!(front.ack(rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]), 0);
        let file = front.memory.file.try_clone().expect("a handle");
        assert_eq!(front.ack(rig, request::SET_MEM_TABLE, &front.memory.table(), &[&file]), 0);
        (0..front.rings.len()).for_each(|ring| front.describe_areas(ring, base));
    }

    fn start(&mut self) {
        let rings = self.front.rings.len();
        (0..rings as u32).for_each(|ring| self.kick(ring));
        self.front.enable(&mut self.rig, 1);
        assert_eq!(self.rig.running(), rings as u64);
    }

    fn kick(&mut self, ring: u32) {
        assert_eq!(self.front.ack(&mut self.rig, request::VRING_KICK, &words(&[ring, 0]), &[]), 0);
    }

    /// The next message of the back-end, if there is one.
    fn told(&mut self) -> Option<Received> {
        self.channel.receive().expect("the channel is open")
    }

    /// The message is a call of this ring; answers it.
    fn take_call(&mut self, ring: u32) {
        let call = self.told().expect("a call");
        assert_eq!((call.request, call.flags, call.payload), (CALL, NEED_REPLY, words(&[ring, 0])));
        self.acknowledge(CALL);
    }

    fn acknowledge(&mut self, number: u32) {
        assert!(self.channel.send(number, REPLY, &longs(&[0]), &[]));
        self.rig.run();
    }

    /// A ring that calls by message is called once when it starts: the calls of its life before may be lost.
    fn take_first_calls(&mut self) {
        for ring in 0..self.front.rings.len() as u32 {
            self.take_call(ring);
        }
        assert!(self.told().is_none());
    }

    /// A write goes through a ring.
    fn write(&mut self, ring: usize, slot: u16) {
        self.front.put(ring, slot, kind::OUT, 5, 0xaa);
        self.rig.run();
        assert_eq!(self.front.used(ring), [slot]);
    }
}

#[test]
fn a_ring_is_started_by_a_message_and_told_by_messages() {
    let mut session = InBand::greeted(2);
    session.front.put(0, 0, kind::OUT, 5, 0xaa);
    session.kick(0);
    assert_eq!(session.rig.running(), 0, "not enabled yet");
    session.front.enable(&mut session.rig, 1);
    assert_eq!(session.rig.running(), 1, "the kick before it is not lost, and the other ring had none");
    assert_eq!(session.front.used(0), [0]);
    session.take_call(0);

    // What ends before the answer is told once, after it.
    session.write(0, 1);
    let call = session.told().expect("a call");
    assert_eq!((call.request, call.payload), (CALL, words(&[0, 0])));
    session.write(0, 2);
    session.write(0, 3);
    assert!(session.told().is_none(), "one message at a time");
    session.acknowledge(CALL);
    session.take_call(0);
    assert!(session.told().is_none());

    // Stopped, it is started by the next kick.
    let base = session.front.get_base(&mut session.rig, 0);
    assert_eq!((base, session.rig.running()), (4, 0));
    session.kick(0);
    assert_eq!(session.rig.running(), 1);
    session.write(0, 4);
    assert!(take(&session.front.calls[0]) == 0, "it was never given a notifier");
}

#[test]
fn a_notifier_or_polling_is_preferred_where_it_was_asked_for() {
    let mut session = InBand::greeted(2);
    let (rig, front) = (&mut session.rig, &mut session.front);
    let (call, kick) = (front.calls[0].try_clone().unwrap(), front.kicks[0].try_clone().unwrap());
    assert_eq!(front.ack(rig, request::SET_VRING_CALL, &longs(&[0]), &[&call]), 0);
    assert_eq!(front.ack(rig, request::SET_VRING_KICK, &longs(&[0]), &[&kick]), 0);
    assert_eq!(front.ack(rig, request::SET_VRING_CALL, &longs(&[0x101]), &[]), 0);
    session.start();
    session.write(0, 0);
    session.write(1, 0);
    assert!(take(&session.front.calls[0]) > 0);
    assert!(session.told().is_none(), "one has its notifier, the other is polled");

    let now = runtime::Platform::now(&session.rig.platform);
    let mut armed = Armed::default();
    assert_eq!(session.rig.controller.arm(now, &mut armed), Poll::Idle { until: None });
    assert_eq!(armed, Armed { streams: 1, notifiers: 1, listeners: 0 }, "ring 1 is kicked by the socket");
    // Without any notifier the front-end asks for a device that looks by itself.
    let (rig, front) = (&mut session.rig, &mut session.front);
    assert_eq!(front.ack(rig, request::SET_VRING_KICK, &longs(&[0x101]), &[]), 0);
    assert_eq!(rig.controller.arm(now, &mut Armed::default()), Poll::Busy);
}

#[test]
fn a_core_sleeps_until_a_kick_or_an_answer_comes() {
    let mut session = InBand::running(1);
    let now = runtime::Platform::now(&session.rig.platform);
    let mut armed = Armed::default();
    assert_eq!(session.rig.controller.arm(now, &mut armed), Poll::Idle { until: None });
    assert_eq!(armed, Armed { streams: 2, notifiers: 0, listeners: 0 }, "the first call's answer is awaited");
    session.take_first_calls();
    let mut armed = Armed::default();
    assert_eq!(session.rig.controller.arm(now, &mut armed), Poll::Idle { until: None });
    assert_eq!(armed, Armed { streams: 1, notifiers: 0, listeners: 0 });
    session.front.put(0, 0, kind::OUT, 5, 0xaa);
    assert_eq!(session.rig.controller.arm(now, &mut Armed::default()), Poll::Busy);
    session.kick(0);
    assert_eq!(session.front.used(0), [0]);
    session.take_call(0);
}

#[test]
fn a_channel_that_is_full_holds_up_nothing_and_loses_nothing() {
    let mut session = InBand::greeted(3);
    let (channel, far) = Wire::pair();
    let mut filled = 0;
    while let Ok(sent) = send(&far, &[0xee; 4096], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        filled += sent;
    }
    assert!(filled > 0);
    assert_eq!(session.front.ack(&mut session.rig, request::SET_BACKEND_REQ_FD, &[], &[&far]), 0);
    drop(far);
    session.channel = channel;
    session.start();
    for slot in 0..18 {
        (0..3).for_each(|ring| session.write(ring, slot));
        session.rig.pass(RETRY);
    }
    // Somebody reads, at last.
    let mut drained = 0;
    while drained < filled {
        let skipped = session.channel.skip(filled - drained);
        assert!(skipped > 0, "{drained} of {filled} bytes came out again");
        drained += skipped;
    }
    session.rig.pass(RETRY);
    // The one that was stuck, and one for each ring, however much has come back.
    [0, 1, 2, 0].into_iter().for_each(|ring| session.take_call(ring));
    assert!(session.told().is_none());
    session.write(1, 18);
    session.take_call(1);
}

#[test]
fn what_a_channel_did_not_answer_is_told_again_on_the_next_one() {
    let mut session = InBand::running(2);
    session.take_first_calls();
    session.write(1, 0);
    assert_eq!(session.told().expect("a call").payload, words(&[1, 0]));
    session.write(0, 0);
    let (channel, far) = Wire::pair();
    assert_eq!(session.front.ack(&mut session.rig, request::SET_BACKEND_REQ_FD, &[], &[&far]), 0);
    session.channel = channel;
    // In turn: the ring after the one that was told last.
    session.take_call(0);
    session.take_call(1);
    assert!(session.told().is_none());

    // A channel that breaks takes nothing with it, and the session goes on.
    session.write(1, 1);
    assert_eq!(session.told().expect("a call").payload, words(&[1, 0]));
    session.channel = Wire::pair().0;
    session.rig.pass(RETRY);
    session.write(1, 2);
    let (channel, far) = Wire::pair();
    assert_eq!(session.front.ack(&mut session.rig, request::SET_BACKEND_REQ_FD, &[], &[&far]), 0);
    session.channel = channel;
    session.rig.run();
    session.take_call(1);
}

/// A call that is out, or due, when a connection ends is lost with it; nothing but the next one's start can make up for
/// it. No inflight region here, which would ask for a notification by itself.
#[test]
fn the_next_connection_is_called_whatever_the_one_before_was_told() {
    let mut session = InBand::running(1);
    session.take_first_calls();
    session.write(0, 0);
    session.write(0, 1);
    session.front.reconnect(&mut session.rig);
    let (channel, far) = Wire::pair();
    session.channel = channel;
    session.greet(far);
    session.describe(2);
    session.start();
    session.take_call(0);
    assert!(session.told().is_none());
    session.write(0, 2);
}

#[test]
fn nothing_is_told_while_all_rings_are_stopped() {
    let mut session = InBand::running(2);
    session.take_call(0);
    // Ring 1's first call is out, and not answered; both have another one due.
    session.write(0, 0);
    session.write(1, 0);
    assert_eq!(session.told().expect("a call").payload, words(&[1, 0]));
    for ring in 0..2 {
        assert_eq!(session.front.get_base(&mut session.rig, ring), 1);
    }
    session.acknowledge(CALL);
    session.rig.pass(RETRY);
    assert!(session.told().is_none(), "the device is suspended");
    session.kick(1);
    session.take_call(0);
    session.take_call(1);
    assert!(session.told().is_none());
}

#[test]
fn a_broken_ring_is_told_by_a_message() {
    let mut session = InBand::running(2);
    session.take_first_calls();
    let next = session.front.rings[0].available;
    session.front.rings[0].corrupt_available(&session.front.memory, next + QUEUE_SIZE + 1);
    session.rig.run();
    let error = session.told().expect("an error");
    assert_eq!((error.request, error.flags, error.payload), (ERROR, NEED_REPLY, words(&[0, 0])));
    session.acknowledge(ERROR);
    // A kick does not make it another ring.
    session.kick(0);
    assert!(session.told().is_none());
    session.write(1, 0);
    session.take_call(1);
}

/// QEMU reshapes memory by taking a region away and adding its parts, and no request is taken meanwhile. The driver, which
/// knows nothing of it, goes on kicking.
#[test]
fn a_kick_does_not_end_a_change_of_memory() {
    let mut session = InBand::running(1);
    let (rig, front) = (&mut session.rig, &mut session.front);
    let more = tests::vhost::front_end::Memory::new(0x4000_0000, 0x7e00_0000_0000, 1 << 20);
    assert_eq!(front.ack(rig, request::ADD_MEM_REG, &more.single_region(), &[&more.file]), 0);
    assert_eq!(front.ack(rig, request::REM_MEM_REG, &more.single_region(), &[]), 0);
    front.put(0, 0, kind::OUT, 5, 0xaa);
    session.kick(0);
    assert!(session.front.used(0).is_empty(), "the region's parts may be still to come");
    session.rig.pass(Duration::from_millis(6));
    assert_eq!(session.front.used(0), [0]);
}

/// A change of the configuration waits until the front-end has nothing of its own under way. A driver's kicks are not its
/// own.
#[test]
fn kicks_do_not_put_off_what_is_to_be_told() {
    let mut session = InBand::running(1);
    session.take_first_calls();
    session.rig.gate.resize(2 * NUM_BLOCKS);
    session.rig.controller.resized();
    let told = (0..20).find(|_| {
        session.kick(0);
        session.rig.pass(Duration::from_millis(20));
        session.told().is_some_and(|message| message.request == 2)
    });
    assert!(told.is_some(), "in 400 ms of kicks");
}

#[test]
fn a_front_end_that_never_answers_bounds_what_is_kept_for_it() {
    let mut session = InBand::running(3);
    let call = session.told().expect("a call");
    assert_eq!(call.payload, words(&[0, 0]));
    for slot in (0..200).map(|at| at % 18) {
        (0..3).for_each(|ring| session.write(ring, slot));
    }
    // A flood of kicks, answered in order.
    for _ in 0..20 {
        for _ in 0..50 {
            assert!(session.front.wire.send(request::VRING_KICK, NEED_REPLY, &words(&[1, 0]), &[]));
        }
        session.rig.run();
        (0..50).for_each(|_| assert_eq!(session.front.reply(request::VRING_KICK).number(), 0));
    }
    assert!(session.told().is_none());
    // It answers after all: one call for each ring, however much has come back.
    session.acknowledge(CALL);
    [1, 2, 0].into_iter().for_each(|ring| session.take_call(ring));
    assert!(session.told().is_none());
}

#[test]
fn what_may_not_be_agreed_upon_is_refused() {
    // Not offered outside of a simulation.
    let mut rig = Rig::new();
    let mut front = FrontEnd::connect(&mut rig, 1);
    assert_eq!(front.ask(&mut rig, request::GET_PROTOCOL_FEATURES, &[], &[]).number() & IN_BAND, 0);
    front.send(&mut rig, request::SET_PROTOCOL_FEATURES, &longs(&[PROTOCOL_FEATURES | IN_BAND]), &[]);
    assert!(front.is_closed());

    // Not without both of what it needs: the connection is closed, whatever was asked.
    let mut rig = Rig::offering(true);
    for without in [BACKEND_REQ, REPLY_ACK, BACKEND_REQ | REPLY_ACK] {
        for (agreed, flags) in [(0, PLAIN), (PROTOCOL_FEATURES, NEED_REPLY)] {
            let mut front = FrontEnd::connect(&mut rig, 1);
            front.send(&mut rig, request::SET_PROTOCOL_FEATURES, &longs(&[agreed]), &[]);
            let bits = longs(&[(PROTOCOL_FEATURES | IN_BAND) & !without]);
            assert!(front.wire.send(request::SET_PROTOCOL_FEATURES, flags, &bits, &[]));
            rig.run();
            assert!(front.is_closed());
        }
    }

    // A kick where it is not agreed upon, and kicks of no ring.
    let mut front = FrontEnd::connect(&mut rig, 1);
    front.send(&mut rig, request::SET_PROTOCOL_FEATURES, &longs(&[PROTOCOL_FEATURES]), &[]);
    assert_ne!(front.ack(&mut rig, request::VRING_KICK, &words(&[0, 0]), &[]), 0);
    drop(front);
    let mut session = InBand::running(1);
    for payload in [words(&[128, 0]), words(&[u32::MAX, 0]), words(&[0, 1])] {
        let answer = session.front.ack(&mut session.rig, request::VRING_KICK, &payload, &[]);
        assert_ne!(answer, 0, "{payload:?}");
    }
    session.write(0, 0);
    session.front.send(&mut session.rig, request::VRING_KICK, &words(&[128, 0]), &[]);
    assert!(session.front.is_closed());
}
