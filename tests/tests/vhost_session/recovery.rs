//! What a dead target had taken, in the next life.

use tests::message::request;
use tests::vhost::front_end::{PLAIN, longs, take, words};
use tests::vhost::guest::kind;

use crate::rig::{EVENT_IDX, FEATURES, NONE, QUEUE_SIZE, running};

#[test]
fn what_a_dead_target_had_taken_completes_once_in_the_next_life() {
    let (mut rig, mut front) = running(2);
    front.check_works(&mut rig, 0, 0x44);
    rig.gate.set_open(false);
    for slot in 0..5 {
        front.put(0, slot, kind::OUT, slot.into(), 0x50 + slot as u8);
    }
    front.put(1, 7, kind::OUT, 7, 0x57);
    rig.run();
    // One of them completes before those that were taken before it: the ring alone does not tell what is in flight.
    front.put(0, 5, kind::OUT, 5, 0x55);
    rig.run();
    rig.gate.pass_youngest();
    rig.run();
    assert_eq!(front.used(0), [5]);
    assert_eq!(rig.in_flight(), 6);
    rig.gate.content_clear(512 * 5, 512);
    front.meet_next_life(&mut rig);

    // QEMU tells its used indices as bases; the region knows better. No ring of the kick comes.

    front.give_inflight();
    front.start(&mut rig, &[3, 0]);
    assert!(take(&front.calls[0]) > 0, "the guest is told, whatever it asked the dead life");
    rig.run();
    let mut slots = front.used(0);
    slots.sort_unstable();
    assert_eq!(slots, [0, 1, 2, 3, 4]);
    assert_eq!(front.used(1), [7]);
    for slot in 0..5 {
        assert_eq!(rig.gate.content(512 * slot, 1), [0x50 + slot as u8]);
    }
    assert_eq!(rig.gate.content(512 * 5, 1), [0], "what had come back is not done again");
    front.check_works(&mut rig, 0, 0x66);
    // The region knows that nothing is in flight now.
    front.meet_next_life(&mut rig);

    front.give_inflight();
    front.start(&mut rig, &[front.rings[0].used, front.rings[1].used]);
    assert_eq!(front.used(0), NONE);
    front.check_works(&mut rig, 0, 0x67);
}

#[test]
fn a_ring_that_is_stopped_before_it_was_enabled_still_ends_what_a_dead_target_had_taken() {
    let (mut rig, mut front) = running(1);
    rig.gate.set_open(false);
    front.put(0, 0, kind::OUT, 0, 0x61);
    front.put(0, 1, kind::OUT, 1, 0x62);
    rig.run();
    rig.gate.pass_youngest();
    rig.run();
    front.meet_next_life(&mut rig);

    front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
    front.give_inflight();
    assert!(front.wire.send(request::SET_MEM_TABLE, PLAIN, &front.memory.table(), &[&front.memory.file]));
    front.describe_ring(0, 1);
    assert_eq!(front.get_base(&mut rig, 0), 2);
    assert_eq!(front.used(0), [1, 0]);
}

/// A front-end may ask for the base of a ring before it says what its driver accepted. No ring has run then, nor can one, and
/// the layout of what the region tracks is not known: it is left as it is.
#[test]
fn a_base_that_is_asked_for_before_the_features_ends_no_tracking() {
    let (mut rig, mut front) = running(1);
    rig.gate.set_open(false);
    front.put(0, 0, kind::OUT, 7, 0x71);
    front.put(0, 1, kind::OUT, 8, 0x72);
    rig.run();
    rig.gate.pass_youngest();
    rig.run();
    assert_eq!(front.used(0), [1]);
    front.meet_next_life(&mut rig);
    front.give_inflight();
    front.get_base(&mut rig, 0);
    front.give_inflight();
    front.start(&mut rig, &[1]);
    rig.run();
    assert_eq!(front.used(0), [0], "what the dead life had taken");
    front.check_works(&mut rig, 0, 0x73);
}

/// The dead life may have published and not told. Its heir tells the driver, also when the front-end stops the ring with
/// the very next message (a machine that is paused as soon as it is back).
#[test]
fn a_ring_that_is_stopped_at_once_still_tells_the_driver_what_the_dead_may_not_have_told() {
    let (mut rig, mut front) = running(1);
    front.check_works(&mut rig, 0, 0x63);
    front.meet_next_life(&mut rig);

    rig.run();
    take(&front.calls[0]);
    // All of it is there before the target looks.
    let send = |request, payload: &[u8]| assert!(front.wire.send(request, PLAIN, payload, &[]));
    send(request::SET_FEATURES, &longs(&[FEATURES]));
    front.give_inflight();
    assert!(front.wire.send(request::SET_MEM_TABLE, PLAIN, &front.memory.table(), &[&front.memory.file]));
    front.describe_ring(0, 2);
    assert!(front.wire.send(request::SET_VRING_ENABLE, PLAIN, &words(&[0, 1]), &[]));
    assert_eq!(front.get_base(&mut rig, 0), 2);
    assert_eq!(take(&front.calls[0]), 1, "the guest is told once");
}

#[test]
fn recovery_waits_for_the_whole_description_whatever_its_order() {
    // Every order of the messages that a ring needs.
    let mut orders = vec![vec![]];
    for step in 0..7 {
        orders = orders
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                (0..=order.len()).map(move |at| {
                    let mut order = order.clone();
                    order.insert(at, step);
                    order
                })
            })
            .collect();
    }
    assert_eq!(orders.len(), 5040);
    // A ring starts with all but its base, so the base is not last. One order in 23 meets every pair both ways.
    for order in orders.iter().filter(|order| order.last() != Some(&1)).step_by(23) {
        let (mut rig, mut front) = running(1);
        rig.gate.set_open(false);
        front.put(0, 3, kind::OUT, 3, 0x33);
        rig.run();
        front.meet_next_life(&mut rig);

        // The region before whatever makes the ring start; it may be first or last but one of the others.
        front.give_inflight();
        for step in order {
            match step {
                0 => front.send(&mut rig, request::SET_VRING_NUM, &words(&[0, QUEUE_SIZE.into()]), &[]),
                1 => front.send(&mut rig, request::SET_VRING_BASE, &words(&[0, 0]), &[]),
                2 => {
                    let addresses = front.rings[0].addresses(&front.memory, 0);
                    front.send(&mut rig, request::SET_VRING_ADDR, &addresses, &[]);
                }
                3 => {
                    let (region, file) = (front.memory.single_region(), &front.memory.file);
                    assert!(front.wire.send(request::ADD_MEM_REG, PLAIN, &region, &[file]));
                    rig.run();
                }
                4 => {
                    assert!(front.wire.send(
                        request::SET_VRING_KICK,
                        PLAIN,
                        &longs(&[0]),
                        &[&front.kicks[0]]
                    ));
                    rig.run();
                }
                5 => front.send(&mut rig, request::SET_VRING_ENABLE, &words(&[0, 1]), &[]),
                _ => front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES | EVENT_IDX]), &[]),
            }
        }
        assert_eq!(front.used(0), [3], "order {order:?}");
        assert!(take(&front.calls[0]) > 0, "order {order:?}: the guest was told");
        // With EVENT_IDX the driver is told when used_event is crossed, whatever its flags say; it stands at 0.
        front.put(0, 4, kind::OUT, 4, 0x44);
        rig.run();
        assert_eq!(front.used(0), [4], "order {order:?}");
        assert_eq!(take(&front.calls[0]), 0, "order {order:?}: the ring was read without its features");
    }
}

/// A driver goes by what it negotiated and is not asked again. Served without a feature of its, it would see requests
/// fail that cannot; so it is not served at all until it begins anew, and what was in flight stays tracked.
#[test]
fn a_driver_whose_features_are_offered_no_more_is_not_served() {
    const WRITE_ZEROES: u64 = 1 << 14;
    let negotiated = longs(&[FEATURES | WRITE_ZEROES]);
    let (mut rig, mut front) = running(1);
    assert_eq!(front.ack(&mut rig, request::SET_FEATURES, &negotiated, &[]), 0);
    rig.gate.set_open(false);
    front.put(0, 0, kind::OUT, 0, 0x71);
    rig.run();
    rig.kill_and_restart_as(true);
    front.reconnect(&mut rig);
    front.greet(&mut rig, false);
    // Where it asks, it is told, and nothing runs; where it does not ask, the connection is closed.
    assert_ne!(front.ack(&mut rig, request::SET_FEATURES, &negotiated, &[]), 0);
    front.give_inflight();
    assert!(front.wire.send(request::SET_MEM_TABLE, PLAIN, &front.memory.table(), &[&front.memory.file]));
    front.describe_ring(0, 0);
    front.enable(&mut rig, 1);
    assert_eq!(rig.running(), 0);
    front.send(&mut rig, request::SET_FEATURES, &negotiated, &[]);
    assert!(front.is_closed());
    assert_eq!(front.used(0), NONE);
    // It is configured as it was again.
    front.meet_next_life(&mut rig);
    front.give_inflight();
    front.start(&mut rig, &[0]);
    assert_eq!(front.used(0), [0]);
}
