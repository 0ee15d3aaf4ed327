//! What a front-end without sense or manners may do, and that nobody else is hurt.

use proptest::prelude::*;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tests::message::request;
use tests::vhost::front_end::{Memory, NEED_REPLY, PLAIN, Wire, inflight_description, longs, take, words};
use tests::vhost::guest::kind;

use crate::rig::{FEATURES, FrontEnd, LOG_ALL, QUEUE_SIZE, Rig, running};

#[test]
fn a_ring_that_cannot_be_believed_ends_alone() {
    let (mut rig, mut front) = running(2);
    let next = front.rings[0].available;
    front.rings[0].corrupt_available(&front.memory, next + QUEUE_SIZE + 1);
    rig.run();
    assert!(take(&front.errors[0]) > 0, "the front-end is told");
    front.check_works(&mut rig, 1, 1);
    assert_eq!(front.get_base(&mut rig, 0), u32::from(next));

    // An inflight region of garbage: the ring does not start, the front-end is told, the other one runs.
    front.get_base(&mut rig, 1);
    let (_, handle) = front.inflight.as_ref().unwrap();
    rustix::io::pwrite(handle, &[0xee; 64], 0).unwrap();
    front.give_inflight();
    front.describe_ring(0, next);
    front.describe_ring(1, front.rings[1].used);
    rig.run();
    assert_eq!(rig.running(), 1);
    assert!(take(&front.errors[0]) > 0);
    front.check_works(&mut rig, 1, 2);
}

#[test]
fn a_front_end_that_shrinks_its_memory_loses_its_connection_and_nothing_else() {
    let mut rig = Rig::new();
    // Guest memory, the inflight region (the target's own is sealed; this one is not), the log.
    for which in 0..3 {
        let mut front = FrontEnd::connect(&mut rig, 1);
        front.greet(&mut rig, true);
        let region = Memory::new(0, 0, 1 << 16);
        front.inflight =
            Some((inflight_description(1 << 15, 1, QUEUE_SIZE), region.file.try_clone().unwrap()));
        front.give_inflight();
        front.start(&mut rig, &[0]);
        let log = Memory::new(0, 0, 4096);
        front.ask(&mut rig, request::SET_LOG_BASE, &longs(&[4096, 0]), &[&log.file]);
        front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES | LOG_ALL]), &[]);
        front.check_works(&mut rig, 0, 1);
        rig.gate.set_open(false);
        front.put(0, 0, kind::OUT, 0, 1);
        front.put(0, 1, kind::IN, 0, 1);
        rig.run();
        rustix::fs::ftruncate([&front.memory.file, &region.file, &log.file][which], 0).unwrap();
        rig.gate.set_open(true);
        rig.run();
        rig.pass(Duration::from_millis(1));
        assert!(front.is_closed(), "{which}");
        let mut next = FrontEnd::running(&mut rig, 1);
        next.check_works(&mut rig, 0, 2);
    }
}

/// What a front-end may do wrong, how it is answered, and that the next one is served.
#[test]
fn a_wrong_message_is_answered_in_its_own_way_or_ends_the_connection() {
    enum Answered {
        /// With a number that is not 0, where it was asked for; else the connection ends.
        Refused,
        /// With this number, asked for or not.
        Always(u64),
        /// By the end of the connection.
        Closed,
    }
    use Answered::{Always, Closed, Refused};
    let file = Memory::new(0, 0, 4096).file;
    let spare = Memory::new(0, 0, 1 << 16).file;
    let mut misaligned = inflight_description(1 << 15, 1, 64);
    misaligned[8] = 4;
    let ring_128 = words(&[128, 0]);
    type Case<'a> = (&'a str, u32, Vec<u8>, Vec<&'a OwnedFd>, Answered);
    let cases: Vec<Case<'_>> = vec![
        ("unknown", 45, vec![], vec![], Refused),
        ("inflight misaligned", request::SET_INFLIGHT_FD, misaligned, vec![&spare], Refused),
        ("unknown 0", 0, vec![], vec![], Refused),
        ("features not offered", request::SET_FEATURES, longs(&[1 << 34]), vec![], Refused),
        ("protocol features", request::SET_PROTOCOL_FEATURES, longs(&[1 << 20]), vec![], Refused),
        ("ring 128", request::SET_VRING_NUM, words(&[128, 64]), vec![], Refused),
        ("ring 128", request::SET_VRING_ENABLE, ring_128.clone(), vec![], Refused),
        ("ring 128", request::GET_VRING_BASE, ring_128.clone(), vec![], Closed),
        ("kick without handle", request::SET_VRING_KICK, longs(&[0]), vec![], Refused),
        ("kick that is a file", request::SET_VRING_KICK, longs(&[0]), vec![&file], Refused),
        ("channel that is a file", request::SET_BACKEND_REQ_FD, vec![], vec![&file], Refused),
        ("handle with no use", request::SET_OWNER, vec![], vec![&file], Refused),
        ("log beyond its file", request::SET_LOG_BASE, longs(&[8192, 0]), vec![&file], Closed),
        ("log of no bytes", request::SET_LOG_BASE, longs(&[0, 0]), vec![&file], Closed),
        (
            "inflight too small",
            request::SET_INFLIGHT_FD,
            inflight_description(64, 2, 64),
            vec![&file],
            Refused,
        ),
        (
            "inflight beyond",
            request::SET_INFLIGHT_FD,
            inflight_description(1 << 30, 128, 128),
            vec![&file],
            Refused,
        ),
        ("inflight of no rings", request::GET_INFLIGHT_FD, inflight_description(0, 0, 64), vec![], Closed),
        ("region of no bytes", request::ADD_MEM_REG, longs(&[0, 0, 0, 0, 0]), vec![&file], Refused),
        ("region that wraps", request::ADD_MEM_REG, longs(&[0, u64::MAX, 4096, 0, 0]), vec![&file], Refused),
        ("region beyond", request::ADD_MEM_REG, longs(&[0, 0, 4096, 0, u64::MAX]), vec![&file], Refused),
        ("RARP", 19, longs(&[0]), vec![], Refused),
        ("IOTLB", 22, vec![0; 32], vec![], Always(1)),
        ("crypto", 26, vec![0; 64], vec![], Closed),
        ("postcopy advise", 28, vec![], vec![], Closed),
        ("postcopy end", 30, vec![], vec![], Always(1)),
        ("GPU", 33, vec![], vec![&file], Refused),
        ("in-band kick, not agreed upon", 35, words(&[0, 0]), vec![], Refused),
        ("shared object", 41, vec![0; 16], vec![], Closed),
        ("device state", 42, words(&[0, 0]), vec![&file], Always(0x101)),
        ("device state", 43, vec![], vec![], Always(1)),
    ];
    let mut rig = Rig::new();
    for (name, number, payload, handles, answered) in cases {
        for flags in [PLAIN, NEED_REPLY] {
            let mut front = FrontEnd::connect(&mut rig, 1);
            front.greet(&mut rig, true);
            assert!(front.wire.send(number, flags, &payload, &handles));
            rig.run();
            match answered {
                Refused if flags == PLAIN => assert!(front.is_closed(), "{name}"),
                Refused => assert_ne!(front.reply(number).number(), 0, "{name}"),
                Always(value) => assert_eq!(front.reply(number).number(), value, "{name}"),
                Closed => assert!(front.is_closed(), "{name}"),
            }
            let goes_on = match answered {
                Refused => flags == NEED_REPLY,
                Always(_) => true,
                Closed => false,
            };
            if goes_on {
                front.track(&mut rig);
                front.start(&mut rig, &[0]);
                front.check_works(&mut rig, 0, 1);
            }
        }
    }
    // Framing that cannot be believed.
    let framings: [&[u32]; 4] = [&[1, 2, 0], &[1, 5, 0], &[1, 1, 4097], &[1, 1, u32::MAX]];
    for header in framings {
        let mut front = FrontEnd::connect(&mut rig, 1);
        assert!(front.wire.send_bytes(&words(header), &[]));
        rig.run();
        assert!(front.is_closed(), "{header:?}");
    }
    let mut front = FrontEnd::running(&mut rig, 1);
    front.check_works(&mut rig, 0, 2);
}

/// One thing that a front-end without sense may do.
#[derive(Clone, Debug)]
enum Move {
    /// A message, mostly well formed on the outside.
    Message { number: u32, flags: u32, payload: Vec<u8>, handles: Vec<u8> },
    /// A message that a front-end may really send, at any time. 0 to 255.
    Sane(u8),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Requests in the ring, sane ones or with anything at all in the descriptors.
    Request { slot: u16, garbage: Option<[u8; 16]> },
    /// The gate of the device.
    Gate(bool),
    /// Time.
    Pass(u16),
    /// A new connection.
    Reconnect,
}

/// Payloads in which numbers are often in range.
fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    let small = prop_oneof![Just(0_u32), Just(1), Just(2), Just(64), Just(128), Just(0x100), any::<u32>()];
    prop_oneof![
        4 => proptest::collection::vec(small, 0..12).prop_map(|numbers| words(&numbers)),
        1 => proptest::collection::vec(any::<u8>(), 0..300),
    ]
}

fn any_move() -> impl Strategy<Value = Move> {
    let flags = prop_oneof![4 => Just(PLAIN), 4 => Just(NEED_REPLY), 1 => any::<u32>()];
    prop_oneof![
        12 => (1..45_u32, flags, any_payload(), proptest::collection::vec(0..4_u8, 0..3)).prop_map(
            |(number, flags, payload, handles)| Move::Message { number, flags, payload, handles }
        ),
        20 => any::<u8>().prop_map(Move::Sane),
        1 => proptest::collection::vec(any::<u8>(), 1..64).prop_map(Move::Bytes),
        12 => (0..20_u16, proptest::option::weighted(0.3, any::<[u8; 16]>()))
            .prop_map(|(slot, garbage)| Move::Request { slot, garbage }),
        2 => any::<bool>().prop_map(Move::Gate),
        1 => any::<u16>().prop_map(Move::Pass),
        1 => Just(Move::Reconnect),
    ]
}

/// Sends one well-formed message for the front-end's ring, with an answer asked for every other time.
fn sane(front: &FrontEnd, spare: &Memory, which: u8) {
    let flags = if which.is_multiple_of(2) { PLAIN } else { NEED_REPLY };
    let memory = &front.memory;
    let ring = &front.rings[0];
    let (number, payload, handle) = match which / 2 % 20 {
        0 => (request::SET_VRING_NUM, words(&[0, QUEUE_SIZE.into()]), None),
        1 => (request::SET_VRING_BASE, words(&[0, ring.used.into()]), None),
        2 => (request::SET_VRING_ADDR, ring.addresses(memory, 0), None),
        3 => (request::SET_VRING_ADDR, ring.addresses(memory, 1), None),
        4 | 5 => (request::SET_VRING_KICK, longs(&[0]), Some(&front.kicks[0])),
        6 => (request::SET_VRING_KICK, longs(&[0x100]), None),
        7 | 8 => (request::SET_VRING_ENABLE, words(&[0, 1]), None),
        9 => (request::SET_VRING_ENABLE, words(&[0, 0]), None),
        10 => (request::GET_VRING_BASE, words(&[0, 0]), None),
        11 => (request::SET_MEM_TABLE, memory.table(), Some(&memory.file)),
        12 => (request::ADD_MEM_REG, memory.single_region(), Some(&memory.file)),
        13 => (request::REM_MEM_REG, memory.single_region(), None),
        14 => (request::SET_INFLIGHT_FD, inflight_description(1 << 15, 1, QUEUE_SIZE), Some(&spare.file)),
        15 => (request::SET_FEATURES, longs(&[FEATURES | if which < 128 { LOG_ALL } else { 0 }]), None),
        16 => (request::SET_LOG_BASE, longs(&[4096, 0]), Some(&spare.file)),
        17 => (request::RESET_DEVICE, vec![], None),
        18 => (request::SET_STATUS, longs(&[0]), None),
        _ => (request::RESET_OWNER, vec![], None),
    };
    front.wire.send(number, flags, &payload, handle.as_slice());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a front-end does, nothing panics, nothing spins, and the next front-end is served.
    #[test]
    fn no_front_end_harms_the_next(moves in proptest::collection::vec(any_move(), 1..60), start in any::<bool>()) {
        let mut rig = Rig::new();
        let mut front = if start { FrontEnd::running(&mut rig, 1) } else { FrontEnd::connect(&mut rig, 1) };
        let spare = Memory::new(0, 0, 1 << 16);
        let (_near, far) = Wire::pair();
        for step in moves {
            match step {
                Move::Message { number, flags, payload, handles } => {
                    let objects = [&front.memory.file, &spare.file, &front.kicks[0], &far];
                    let handles: Vec<_> = handles.iter().map(|handle| objects[usize::from(*handle)]).collect();
                    front.wire.send(number, flags, &payload, &handles);
                }
                Move::Sane(which) => sane(&front, &spare, which),
                Move::Bytes(bytes) => {
                    front.wire.send_bytes(&bytes, &[]);
                }
                Move::Request { slot, garbage } => {
                    front.put(0, slot, kind::OUT, slot.into(), 1);
                    if let Some(bytes) = garbage {
                        front.memory.write(front.rings[0].at + 48 * u64::from(slot), &bytes);
                    }
                }
                Move::Gate(open) => rig.gate.set_open(open),
                Move::Pass(micros) => rig.platform.pass(Duration::from_micros(micros.into())),
                Move::Reconnect => front.reconnect(&mut rig),
            }
            rig.run();
            while let Ok(Some(_)) = front.wire.receive() {}
        }
        rig.gate.set_open(true);
        drop(front);
        rig.pass(Duration::from_secs(1));
        let mut next = FrontEnd::running(&mut rig, 2);
        next.check_works(&mut rig, 0, 0x12);
        next.check_works(&mut rig, 1, 0x13);
    }
}
