//! The connection itself: pieces of messages, the next front-end, the end, and sleep.

use runtime::Poll;
use std::os::fd::OwnedFd;
use tests::message::request;
use tests::vhost::by_hand::Armed;
use tests::vhost::front_end::{NEED_REPLY, PLAIN, longs, message, words};
use tests::vhost::guest::kind;

use crate::rig::{FrontEnd, Rig, greeted, running};

#[test]
fn messages_come_and_go_in_any_pieces() {
    let (mut rig, mut front) = greeted(1);
    let bytes = message(request::ADD_MEM_REG, NEED_REPLY, &front.memory.single_region());
    for (index, byte) in bytes.iter().enumerate() {
        assert!(front.nothing_came());
        // The handle rides on the first byte.
        let handles: &[&OwnedFd] = if index == 0 { &[&front.memory.file] } else { &[] };
        assert!(front.wire.send_bytes(&[*byte], handles));
        rig.run();
    }
    assert_eq!(front.reply(request::ADD_MEM_REG).number(), 0);
    // Many in one piece, and the handles of the second are not the first's.
    let kick = message(request::SET_VRING_KICK, NEED_REPLY, &longs(&[0]));
    let one = message(request::GET_QUEUE_NUM, PLAIN, &[]);
    assert!(front.wire.send_bytes(&one, &[]));
    assert!(front.wire.send_bytes(&[kick.clone(), one.clone(), one].concat(), &[&front.kicks[0]]));
    rig.run();
    assert_eq!(front.reply(request::GET_QUEUE_NUM).number(), 128);
    assert_eq!(front.reply(request::SET_VRING_KICK).number(), 0);
    assert_eq!(front.reply(request::GET_QUEUE_NUM).number(), 128);
    assert_eq!(front.reply(request::GET_QUEUE_NUM).number(), 128);
}

#[test]
fn the_next_front_end_waits_until_the_one_before_is_gone() {
    let (mut rig, mut first) = running(1);
    let mut second = FrontEnd::connect(&mut rig, 1);
    assert!(second.wire.send(request::GET_QUEUE_NUM, PLAIN, &[], &[]));
    rig.run();
    assert!(second.nothing_came());
    first.check_works(&mut rig, 0, 1);
    rig.gate.set_open(false);
    first.put(0, 0, kind::OUT, 0, 0x5a);
    rig.run();
    let FrontEnd { wire, memory, mut rings, .. } = first;
    drop(wire);
    rig.run();
    assert!(second.nothing_came(), "what the first one had in flight still ends");
    rig.gate.set_open(true);
    rig.run();
    assert_eq!(rings[0].take_used(&memory), [18, 19, 0][2..], "into its ring");
    assert_eq!(second.reply(request::GET_QUEUE_NUM).number(), 128);
    second.greet(&mut rig, true);
    second.start(&mut rig, &[0]);
    second.check_works(&mut rig, 0, 2);
}

#[test]
fn a_controller_that_stops_listens_no_more_drains_and_then_closes() {
    let (mut rig, mut front) = running(1);
    rig.gate.set_open(false);
    front.put(0, 0, kind::OUT, 0, 1);
    rig.run();
    rig.controller.begin_stop();
    rig.run();
    assert!(!rig.path.exists(), "nobody can connect");
    assert!(front.nothing_came() && !rig.controller.is_stopped());
    rig.gate.set_open(true);
    rig.run();
    assert_eq!(front.used(0), [0]);
    assert!(front.is_closed() && rig.controller.is_stopped());
    assert_eq!(rig.controller.poll(runtime::Platform::now(&rig.platform)), Poll::Done);
}

#[test]
fn a_sleeping_core_is_woken_by_the_kick_and_by_the_socket() {
    let mut rig = Rig::new();
    let mut armed = Armed::default();
    let now = runtime::Platform::now(&rig.platform);
    assert_eq!(rig.controller.arm(now, &mut armed), Poll::Idle { until: None });
    assert_eq!(armed, Armed { listeners: 1, ..Armed::default() });
    let mut front = FrontEnd::running(&mut rig, 2);
    let mut armed = Armed::default();
    let now = runtime::Platform::now(&rig.platform);
    assert_eq!(rig.controller.arm(now, &mut armed), Poll::Idle { until: None });
    assert_eq!(armed, Armed { streams: 1, notifiers: 2, listeners: 0 });
    front.put(0, 0, kind::OUT, 0, 1);
    assert_eq!(rig.controller.arm(now, &mut Armed::default()), Poll::Busy);
    // While a message waits, what comes behind it must not end every sleep at once.
    rig.gate.set_open(false);
    rig.run();
    assert!(front.wire.send(request::GET_VRING_BASE, PLAIN, &words(&[0, 0]), &[]));
    assert!(front.wire.send(request::GET_QUEUE_NUM, PLAIN, &[], &[]));
    rig.run();
    let mut armed = Armed::default();
    rig.controller.arm(now, &mut armed);
    assert_eq!(armed.streams, 0);
}
