//! How rings start and stop: the orders in which front-ends describe them, and what may come in between.

use tests::message::request;
use tests::vhost::front_end::{PLAIN, longs, take, words};
use tests::vhost::guest::{RING_SPACE, kind};

use crate::rig::{FEATURES, FrontEnd, NONE, PROTOCOL_FEATURES_BIT, Rig, greeted, running};

#[test]
fn a_guest_boots_as_qemu_does_it_firmware_first_and_then_its_kernel() {
    let (mut rig, mut front) = greeted(2);

    // The firmware: one ring described, both enabled.
    front.send(&mut rig, request::SET_FEATURES, &longs(&[1 << 32 | 1 << 30 | 1 << 6]), &[]);
    assert_eq!(front.ask(&mut rig, request::GET_STATUS, &[], &[]).number(), 0);
    front.send(&mut rig, request::SET_STATUS, &longs(&[8]), &[]);
    front.track(&mut rig);
    let (table, file) = (front.memory.table(), front.memory.file.try_clone().unwrap());
    assert_eq!(front.ack(&mut rig, request::SET_MEM_TABLE, &table, &[&file]), 0);
    front.describe_ring(0, 0);
    front.enable(&mut rig, 1);
    assert_eq!(front.ask(&mut rig, request::GET_STATUS, &[], &[]).number(), 8);
    front.send(&mut rig, request::SET_STATUS, &longs(&[0xf]), &[]);
    assert_eq!(rig.running(), 1);
    front.check_works(&mut rig, 0, 0x11);

    // It stops: the status first, then the ring.
    front.send(&mut rig, request::SET_STATUS, &longs(&[0]), &[]);
    front.enable(&mut rig, 0);
    assert_eq!(front.get_base(&mut rig, 0), 2);
    assert_eq!(rig.running(), 0);

    // The kernel: new ring memory, from 0, in a fresh inflight region.
    front.memory.write(front.memory.guest, &[0; 2 * RING_SPACE as usize]);
    (front.rings[0].available, front.rings[0].used) = (0, 0);
    front.track(&mut rig);
    front.start(&mut rig, &[0, 0]);
    front.check_works(&mut rig, 0, 0x22);
    front.check_works(&mut rig, 1, 0x33);
    assert!(take(&front.calls[0]) > 0 && take(&front.calls[1]) > 0);
}

#[test]
fn a_driver_that_was_reset_says_its_features_before_its_rings_start() {
    for (number, payload) in [(request::SET_STATUS, longs(&[0])), (request::RESET_DEVICE, vec![])] {
        let (mut rig, mut front) = running(1);
        assert_eq!(front.ack(&mut rig, number, &payload, &[]), 0);
        front.memory.write(front.memory.guest, &[0; RING_SPACE as usize]);
        (front.rings[0].available, front.rings[0].used) = (0, 0);
        front.describe_ring(0, 0);
        front.enable(&mut rig, 1);
        assert_eq!(rig.running(), 0);
        front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
        assert_eq!(rig.running(), 1);
        front.check_works(&mut rig, 0, 7);
    }
}

#[test]
fn a_kick_that_came_before_the_ring_was_enabled_is_not_lost() {
    let (mut rig, mut front) = greeted(1);
    front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
    let (table, file) = (front.memory.table(), front.memory.file.try_clone().unwrap());
    assert_eq!(front.ack(&mut rig, request::SET_MEM_TABLE, &table, &[&file]), 0);
    front.describe_ring(0, 0);
    front.put(0, 0, kind::OUT, 1, 0x77);
    rustix::io::write(&front.kicks[0], &1_u64.to_ne_bytes()).unwrap();
    rig.run();
    assert_eq!(front.used(0), NONE, "a disabled ring takes nothing");
    front.enable(&mut rig, 1);
    assert_eq!(front.used(0), [0]);
    // Disabled again and enabled again.
    front.enable(&mut rig, 0);
    front.put(0, 1, kind::OUT, 2, 0x78);
    rig.run();
    assert_eq!(front.used(0), NONE);
    front.enable(&mut rig, 1);
    assert_eq!(front.used(0), [1]);
}

#[test]
fn a_split_ring_of_a_size_that_is_no_power_of_two_is_refused_once_it_is_whole() {
    let (mut rig, mut front) = greeted(1);
    front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
    let (table, file) = (front.memory.table(), front.memory.file.try_clone().unwrap());
    assert_eq!(front.ack(&mut rig, request::SET_MEM_TABLE, &table, &[&file]), 0);
    for size in [0, 32_769] {
        assert_eq!(front.ack(&mut rig, request::SET_VRING_NUM, &words(&[0, size]), &[]), 1, "no ring has it");
    }
    front.describe_ring(0, 0);
    // Packed rings may have any size, and the layout may be said after it.
    assert_eq!(front.ack(&mut rig, request::SET_VRING_NUM, &words(&[0, 12]), &[]), 0);
    assert_eq!(
        front.ack(&mut rig, request::SET_VRING_ENABLE, &words(&[0, 1]), &[]),
        1,
        "a split ring has not"
    );
    assert_eq!(rig.running(), 0);
}

#[test]
fn without_protocol_features_the_rings_are_enabled_at_once() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::connect(&mut rig, 1);
    front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES & !PROTOCOL_FEATURES_BIT]), &[]);
    assert!(front.wire.send(request::SET_MEM_TABLE, PLAIN, &front.memory.table(), &[&front.memory.file]));
    front.describe_ring(0, 0);
    rig.run();
    assert_eq!(rig.running(), 1);
    front.put(0, 0, kind::OUT, 0, 1);
    rig.run();
    assert_eq!(front.used(0), [0]);
}

#[test]
fn a_ring_is_stopped_only_when_it_is_drained_and_later_messages_wait_in_order() {
    let (mut rig, mut front) = running(2);
    rig.gate.set_open(false);
    for slot in 0..3 {
        front.put(0, slot, kind::OUT, slot.into(), 9);
    }
    rig.run();
    assert!(front.wire.send(request::GET_VRING_BASE, PLAIN, &words(&[0, 0]), &[]));
    assert!(front.wire.send(request::GET_QUEUE_NUM, PLAIN, &[], &[]));
    rig.run();
    // A request that comes meanwhile is not taken; the other ring goes on.
    front.put(0, 3, kind::OUT, 3, 9);
    front.put(1, 0, kind::FLUSH, 0, 0);
    rig.run();
    assert!(front.nothing_came());
    assert_eq!(rig.in_flight(), 4);
    rig.gate.set_open(true);
    rig.run();
    let state = front.reply(request::GET_VRING_BASE);
    assert_eq!((state.number32(0), state.number32(4)), (0, 3));
    assert_eq!(front.reply(request::GET_QUEUE_NUM).number(), 128);
    assert_eq!(front.used(0), [0, 1, 2]);
    assert_eq!(front.used(1), [0]);
    // It goes on where it was with a new kick alone.
    assert!(front.wire.send(request::SET_VRING_KICK, PLAIN, &longs(&[0]), &[&front.kicks[0]]));
    rig.run();
    assert_eq!(front.used(0), [3]);
}
