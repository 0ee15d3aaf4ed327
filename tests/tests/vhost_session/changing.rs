//! What changes while rings run: memory, the log, features, size, the write cache.

use stack::virtio::inflight::queue_region_len;
use std::time::Duration;
use tests::message::request;
use tests::vhost::front_end::{Memory, NEED_REPLY, REPLY, Wire, longs, new_eventfd, take, words};
use tests::vhost::guest::{PAYLOAD, RING_SPACE, kind};

use crate::rig::{FEATURES, LOG_ALL, NONE, NUM_BLOCKS, QUEUE_SIZE, greeted, running};

#[test]
fn the_memory_table_is_replaced_only_when_nothing_is_in_flight() {
    let (mut rig, mut front) = running(1);
    rig.gate.set_open(false);
    front.put(0, 0, kind::OUT, 5, 0xaa);
    rig.run();
    // The same memory, at other addresses of the front-end's. The ring is found through its old ones no more.
    let table = front.memory.table();
    let file = front.memory.file.try_clone().unwrap();
    assert!(front.wire.send(request::SET_MEM_TABLE, NEED_REPLY, &table, &[&file]));
    rig.run();
    front.put(0, 1, kind::OUT, 6, 0xbb);
    rig.run();
    assert!(front.nothing_came());
    assert_eq!(rig.in_flight(), 1, "no request is taken meanwhile");
    rig.gate.set_open(true);
    rig.run();
    assert_eq!(front.reply(request::SET_MEM_TABLE).number(), 0);
    assert_eq!(front.used(0), [0, 1]);
    front.check_works(&mut rig, 0, 0xcc);

    // A table that cannot be used changes nothing.
    let hostile = [words(&[2, 0]), front.memory.region(), front.memory.region()].concat();
    assert_ne!(front.ack(&mut rig, request::SET_MEM_TABLE, &hostile, &[&file, &file]), 0);
    let beyond = [words(&[1, 0]), longs(&[0, 1 << 21, 0, 0])].concat();
    assert_ne!(front.ack(&mut rig, request::SET_MEM_TABLE, &beyond, &[&file]), 0);
    assert_ne!(
        front.ack(&mut rig, request::SET_MEM_TABLE, &table, &[&front.kicks[0].try_clone().unwrap()]),
        0
    );
    front.check_works(&mut rig, 0, 0xdd);

    // A table without the ring: it waits, and goes on when the memory is back.
    let other = Memory::new(0, 0x1000, 4096);
    assert_eq!(front.ack(&mut rig, request::SET_MEM_TABLE, &other.table(), &[&other.file]), 0);
    assert_eq!(rig.running(), 0);
    front.put(0, 2, kind::OUT, 7, 0xee);
    rig.run();
    assert_eq!(front.used(0), NONE);
    assert_eq!(front.ack(&mut rig, request::SET_MEM_TABLE, &table, &[&file]), 0);
    assert_eq!(rig.running(), 1);
    assert_eq!(front.used(0), [2]);
}

#[test]
fn memory_comes_and_goes_under_load() {
    let (mut rig, mut front) = running(1);
    let more = Memory::new(0x4000_0000, 0x7e00_0000_0000, 1 << 20);
    assert_eq!(front.ack(&mut rig, request::ADD_MEM_REG, &more.single_region(), &[&more.file]), 0);
    assert_ne!(front.ack(&mut rig, request::ADD_MEM_REG, &more.single_region(), &[&more.file]), 0, "twice");
    rig.gate.set_open(false);
    front.put(0, 0, kind::OUT, 0, 1);
    rig.run();
    assert!(front.wire.send(request::REM_MEM_REG, NEED_REPLY, &more.single_region(), &[&more.file]));
    rig.run();
    assert!(front.nothing_came(), "not while something is in flight");
    rig.gate.set_open(true);
    rig.run();
    assert_eq!(front.reply(request::REM_MEM_REG).number(), 0);
    assert_ne!(front.ack(&mut rig, request::REM_MEM_REG, &more.single_region(), &[]), 0, "it is gone");
    rig.pass(Duration::from_millis(6));
    front.used(0);
    front.check_works(&mut rig, 0, 2);

    // QEMU reshapes a region by taking it away and adding its parts. The ring lies in the first part, the request in
    // the second: the ring is back before its buffers are.
    let (first, second) = (RING_SPACE / 2, front.memory.len - RING_SPACE / 2);
    let part = |offset: u64, len: u64| {
        longs(&[0, front.memory.guest + offset, len, front.memory.user + offset, offset])
    };
    let parts = [part(0, first), part(first, second)];
    let whole = front.memory.single_region();
    let file = front.memory.file.try_clone().unwrap();
    assert_eq!(rig.running(), 1);
    assert_eq!(front.ack(&mut rig, request::REM_MEM_REG, &whole, &[]), 0);
    assert_eq!(rig.running(), 0, "the ring's memory is gone");
    front.put(0, 17, kind::OUT, 33, 0x99);
    assert!(front.rings[0].payload_at(17) < front.memory.guest + first, "the buffers of slot 17 are near");
    let far = front.memory.guest + first + 64;
    front.memory.write(far, &[0x98; PAYLOAD as usize]);
    front.memory.write(front.rings[0].at + 16 * (3 * 17 + 1), &far.to_le_bytes());
    assert_eq!(front.ack(&mut rig, request::ADD_MEM_REG, &parts[0], &[&file]), 0);
    assert_eq!(rig.running(), 1);
    assert_eq!(front.used(0), NONE, "no request is taken while memory changes");
    assert_eq!(front.ack(&mut rig, request::ADD_MEM_REG, &parts[1], &[&file]), 0);
    rig.pass(Duration::from_millis(6));
    assert_eq!(front.used(0), [17]);
    assert_eq!(front.rings[0].status(&front.memory, 17), 0);
    assert_eq!(rig.gate.content(33 * 512, 1), [0x98]);
}

#[test]
fn a_migration_logs_what_it_writes_and_does_not_restart_the_rings() {
    let (mut rig, mut front) = running(1);
    front.check_works(&mut rig, 0, 1);
    let log = Memory::new(0, 0, 4096);
    let written = new_eventfd();
    let reply = front.ask(&mut rig, request::SET_LOG_BASE, &longs(&[4096, 0]), &[&log.file]);
    assert_eq!(reply.payload, longs(&[4096, 0]), "the description comes back");
    assert_eq!(front.ack(&mut rig, request::SET_LOG_FD, &[], &[&written]), 0);
    assert_eq!(front.ack(&mut rig, request::SET_FEATURES, &longs(&[FEATURES | LOG_ALL]), &[]), 0);
    let addresses = front.rings[0].addresses(&front.memory, 1);
    assert_eq!(front.ack(&mut rig, request::SET_VRING_ADDR, &addresses, &[]), 0);
    assert_eq!(rig.running(), 1);
    let is_dirty = |guest: u64| {
        let page = guest / 4096;
        log.read::<1>(page / 8)[0] & 1 << (page % 8) != 0
    };
    let (payload_at, used_at) = (front.rings[0].payload_at(0), front.rings[0].used_at());
    assert!(!is_dirty(payload_at) && !is_dirty(used_at));
    front.put(0, 0, kind::IN, 100, 0);
    rig.run();
    assert_eq!(front.used(0), [0]);
    assert!(is_dirty(payload_at) && is_dirty(used_at));
    assert!(take(&written) > 0);

    // So does a wish to be notified, at once: no request may ever follow it. Before sleep it is written on, after it off.
    for _ in 0..2 {
        log.write(0, &[0; 64]);
        rig.arm();
        assert!(is_dirty(used_at) && take(&written) > 0, "the wish to be notified");
        log.write(0, &[0; 64]);
        rig.run();
        assert!(is_dirty(used_at), "the wish to be left alone");
        assert!(!is_dirty(payload_at));
    }

    // Cancelled: QEMU drops the log on running rings.
    front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
    let addresses = front.rings[0].addresses(&front.memory, 0);
    front.send(&mut rig, request::SET_VRING_ADDR, &addresses, &[]);
    log.write(0, &[0; 64]);
    front.check_works(&mut rig, 0, 3);
    assert!(!is_dirty(payload_at) && !is_dirty(used_at));

    // Other addresses are another matter.
    let mut elsewhere = addresses.clone();
    elsewhere[8] ^= 0x40;
    assert_ne!(front.ack(&mut rig, request::SET_VRING_ADDR, &elsewhere, &[]), 0);
    front.check_works(&mut rig, 0, 4);
    assert_eq!(front.get_base(&mut rig, 0), 7);
}

#[test]
fn a_reset_drains_forgets_the_rings_and_keeps_the_memory() {
    for with_status in [false, true] {
        let (mut rig, mut front) = running(1);
        rig.gate.set_open(false);
        front.put(0, 0, kind::IN, 0, 0);
        rig.run();
        let (number, payload) =
            if with_status { (request::SET_STATUS, longs(&[0])) } else { (request::RESET_DEVICE, vec![]) };
        assert!(front.wire.send(number, NEED_REPLY, &payload, &[]));
        rig.run();
        assert!(front.nothing_came(), "not while the guest's memory may still be written");
        rig.gate.set_open(true);
        rig.run();
        assert_eq!(front.reply(number).number(), 0);
        assert_eq!(rig.running(), 0);
        assert_eq!(front.ask(&mut rig, request::GET_STATUS, &[], &[]).number(), 0);
        // Only a migration's source cares for this: the status 0 comes first there, too.
        assert_eq!(front.get_base(&mut rig, 0), if with_status { 1 } else { 0 });
        // The guest begins anew, with the same region of inflight memory.
        front.memory.write(front.memory.guest, &[0; RING_SPACE as usize]);
        (front.rings[0].available, front.rings[0].used) = (0, 0);
        front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
        front.give_inflight();
        front.describe_ring(0, 0);
        front.enable(&mut rig, 1);
        front.check_works(&mut rig, 0, 5);
    }
}

#[test]
fn the_front_end_is_told_of_a_resize_once_and_never_while_suspended() {
    let (mut rig, mut front) = greeted(1);
    let (mut backend, far) = Wire::pair();
    assert_eq!(front.ack(&mut rig, request::SET_BACKEND_REQ_FD, &[], &[&far]), 0);
    drop(far);
    rig.gate.resize(2 * NUM_BLOCKS);
    rig.controller.resized();
    rig.pass(Duration::from_millis(200));
    assert!(matches!(backend.receive(), Ok(None)), "no ring runs: the device is suspended");
    front.track(&mut rig);
    front.start(&mut rig, &[0]);
    assert!(matches!(backend.receive(), Ok(None)), "not amid the front-end's own messages");
    rig.pass(Duration::from_millis(150));
    let change = backend.receive().unwrap().expect("a message");
    assert_eq!((change.request, change.flags, change.payload.len()), (2, NEED_REPLY, 0));
    let config = front.ask(&mut rig, request::GET_CONFIG, &[words(&[0, 8, 0]), vec![0; 8]].concat(), &[]);
    assert_eq!(u64::from(config.number32(12)), 2 * NUM_BLOCKS);

    // A second and a third change wait for the answer and are then told as one.
    rig.controller.resized();
    rig.controller.resized();
    rig.pass(Duration::from_millis(200));
    assert!(matches!(backend.receive(), Ok(None)));
    assert!(backend.send(2, REPLY, &longs(&[0]), &[]));
    rig.pass(Duration::from_millis(200));
    assert_eq!(backend.receive().unwrap().expect("a message").request, 2);
    assert!(backend.send(2, REPLY, &longs(&[0]), &[]));
    rig.pass(Duration::from_millis(200));
    assert!(matches!(backend.receive(), Ok(None)));

    // The channel breaks: the session goes on.
    rig.controller.resized();
    rig.pass(Duration::from_millis(200));
    drop(backend);
    rig.pass(Duration::from_millis(200));
    rig.controller.resized();
    rig.pass(Duration::from_millis(200));
    front.check_works(&mut rig, 0, 6);
}

#[test]
fn the_write_cache_is_what_the_front_end_last_heard_or_said() {
    let write_through = [words(&[32, 1, 0]), vec![0]].concat();
    let (mut rig, mut front) = running(1);
    front.check_works(&mut rig, 0, 1);
    front.meet_next_life(&mut rig);

    front.give_inflight();
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 1);
    assert_eq!(rig.gate.durable_writes(), 0, "on, as it was before the death");
    assert_eq!(front.ack(&mut rig, request::SET_CONFIG, &write_through, &[]), 0);
    front.check_works(&mut rig, 0, 2);
    assert_eq!(rig.gate.durable_writes(), 1);
    // Not writable, not there, not a value.
    let refused = [(0, 8, vec![1; 8]), (96, 1, vec![0]), (95, 2, vec![0; 2]), (32, 1, vec![2])];
    for (offset, len, bytes) in refused {
        let payload = [words(&[offset, len, 0]), bytes].concat();
        assert_ne!(front.ack(&mut rig, request::SET_CONFIG, &payload, &[]), 0, "{offset}");
    }
    let outside = front.ask(&mut rig, request::GET_CONFIG, &[words(&[96, 1, 0]), vec![0]].concat(), &[]);
    assert_eq!(outside.payload, [0_u8; 0], "an error is told by an empty payload");

    // The guest restarts: QEMU shows its driver what it was told last.
    front.send(&mut rig, request::SET_STATUS, &longs(&[0]), &[]);
    let base = front.get_base(&mut rig, 0) as u16;
    front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES & !(1 << 11)]), &[]);
    front.track(&mut rig);
    front.start(&mut rig, &[base]);
    front.check_works(&mut rig, 0, 3);
    assert_eq!(rig.gate.durable_writes(), 2);

    // The target restarts: the front-end repeats nothing, the inflight region tells.
    front.meet_next_life(&mut rig);

    front.give_inflight();
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 4);
    assert_eq!(rig.gate.durable_writes(), 3);

    // Where nothing tells, writes are durable.
    front.meet_next_life(&mut rig);

    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 5);
    assert_eq!(rig.gate.durable_writes(), 4);
}

/// A front-end that reconnects may ask for the configuration as one that begins does, before it gives back its region.
#[test]
fn the_write_cache_stays_off_when_a_front_end_that_reconnects_asks_for_the_configuration() {
    let write_through = [words(&[32, 1, 0]), vec![0]].concat();
    let (mut rig, mut front) = running(1);
    assert_eq!(front.ack(&mut rig, request::SET_CONFIG, &write_through, &[]), 0);
    front.check_works(&mut rig, 0, 1);
    assert_eq!(rig.gate.durable_writes(), 1);

    // The target lives, and nothing is tracked: it remembers, and shows it.
    front.reconnect(&mut rig);
    front.greet(&mut rig, true);
    let shown = front.ask(&mut rig, request::GET_CONFIG, &[words(&[32, 1, 0]), vec![9]].concat(), &[]);
    assert_eq!(shown.payload[12..], [0]);
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 2);
    assert_eq!(rig.gate.durable_writes(), 2);

    // It is another process: the region tells it, and it tells the front-end, which it had shown something else.
    rig.kill_and_restart();
    front.reconnect(&mut rig);
    front.greet(&mut rig, true);
    let (mut backend, far) = Wire::pair();
    assert_eq!(front.ack(&mut rig, request::SET_BACKEND_REQ_FD, &[], &[&far]), 0);
    front.give_inflight();
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 3);
    assert_eq!(rig.gate.durable_writes(), 3);
    rig.pass(Duration::from_millis(150));
    assert_eq!(backend.receive().unwrap().expect("a message").request, 2);

    // It is another process, and the region another back-end's.
    let (mut description, region) = front.inflight.take().expect("a region");
    description[..8].copy_from_slice(&queue_region_len(QUEUE_SIZE).to_ne_bytes());
    front.inflight = Some((description, region));
    rig.kill_and_restart();
    front.reconnect(&mut rig);
    front.greet(&mut rig, true);
    front.give_inflight();
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 4);
    assert_eq!(rig.gate.durable_writes(), 4);

    // The driver ends. The next one begins with the cache on.
    front.get_base(&mut rig, 0);
    front.reconnect(&mut rig);
    front.greet(&mut rig, true);
    front.track(&mut rig);
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 5);
    assert_eq!(rig.gate.durable_writes(), 4);
}
