//! Front-ends and guests without manners against a real target: whatever they do, the process lives, and the disk of a
//! well-behaved neighbour is served as if nothing had happened.
//!
//! The neighbour runs a verified load between the attacks, on a controller of its own on the same core. After each attack the
//! attacked controller must serve a new front-end. What exactly is refused, and how, is the session's tests' business
//! (`vhost_session` and the simulator's hostile scenarios); here it counts that real descriptors, memory and
//! signals do no harm.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::client::frontend::{Frontend, Options, REPLY_WAIT, connect_until, feature};
use tests::client::load::{Load, LoadOptions, STATUS_OK, kind};
use tests::client::memory::{HIGH_MEMORY_BASE, Region};
use tests::client::raw;
use tests::client::request::{Requester, wait_used};
use tests::client::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, write_raw_descriptor};
use tests::client::{ClientError, Draw};
use tests::image::Image;
use tests::message::{NEED_REPLY, REPLY, VERSION, request};
use tests::target::Target;

/// Bytes of the disks.
const DISK: u64 = 4 << 20;
/// A bound for what must happen.
const WAIT: Duration = Duration::from_secs(20);

/// A target with a neighbour's disk and an attacker's.
struct Scene {
    target: Target,
    neighbour: Frontend,
    load: Load,
    victim: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let target = Target::start();
        for disk in ["neighbour", "victim"] {
            target.call(
                "bdev_malloc_create",
                json!({"name": disk, "num_blocks": DISK / 512, "block_size": 512}),
            );
        }
        Scene::with_disks(target)
    }

    fn with_disks(target: Target) -> Scene {
        let socket = target.serve("neighbour", "vhost.neighbour");
        let victim = target.serve("victim", "vhost.victim");
        let mut neighbour = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
        let load = LoadOptions { sectors: DISK / 512, ..LoadOptions::default() };
        let load = Load::new(&mut neighbour, load).expect("a load");
        Scene { target, neighbour, load, victim }
    }

    /// The neighbour noticed nothing, and a new front-end is served where the attack was.
    fn all_is_well(&mut self, attack: &str) {
        self.load
            .run(&mut self.neighbour, 20, WAIT)
            .unwrap_or_else(|error| panic!("the neighbour, after {attack}: {error}"));
        let mut frontend = Frontend::connect_and_start(&self.victim, Options::default())
            .unwrap_or_else(|error| panic!("a new front-end after {attack}: {error}"));
        let requester = Requester::new(&mut frontend, 1, 4096).expect("buffers");
        let answer = requester
            .fetch(&mut frontend, 0, kind::IN, 0, 4096)
            .unwrap_or_else(|error| panic!("a read after {attack}: {error}"));
        assert_eq!(answer.status, STATUS_OK, "a read after {attack}");
    }

    /// What attackers passed along is closed: no more descriptors are held than at some time before.
    fn nothing_is_kept(&self, descriptors_max: usize) {
        let begun = Instant::now();
        while self.target.open_descriptors() > descriptors_max {
            let held = self.target.open_descriptors();
            assert!(begun.elapsed() < WAIT, "{held} descriptors are held, {descriptors_max} were before");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// At the end: everything that the neighbour wrote is there, and the target stops in an orderly way.
    fn end(mut self) {
        self.load.drain(&mut self.neighbour, WAIT).unwrap_or_else(|error| panic!("{error}"));
        self.load.verify_all(&mut self.neighbour, WAIT).unwrap_or_else(|error| panic!("{error}"));
        drop(self.neighbour);
        let status = self.target.stop();
        assert!(status.success(), "the target stops with {status}");
    }
}

/// Connects and negotiates as far as a front-end without rings goes.
fn attach(path: &Path) -> UnixStream {
    let stream = connect_until(path, WAIT).expect("the socket");
    stream.set_read_timeout(Some(REPLY_WAIT)).expect("a timeout");
    let protocol = raw::ask(&stream, request::GET_PROTOCOL_FEATURES, &[])
        .and_then(|reply| reply.as_u64())
        .expect("GET_PROTOCOL_FEATURES");
    raw::send(&stream, request::SET_PROTOCOL_FEATURES, 0, &protocol.to_ne_bytes(), &[]).expect("sending");
    stream
}

/// Sends what may be refused: the back-end may close the connection at any moment.
fn throw(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let _ = raw::send_bytes(stream, bytes, descriptors);
}

fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = raw::header(request, VERSION | flags, payload.len() as u32).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn pair(first: u32, second: u32) -> Vec<u8> {
    [first.to_ne_bytes(), second.to_ne_bytes()].concat()
}

/// A message or a piece of one: what it is, its bytes, and what comes along.
type Attack<'a> = (String, Vec<u8>, Vec<BorrowedFd<'a>>);

struct Attacks<'a>(Vec<Attack<'a>>);

impl<'a> Attacks<'a> {
    fn add(&mut self, name: &str, bytes: Vec<u8>, descriptors: &[BorrowedFd<'a>]) {
        self.0.push((name.to_owned(), bytes, descriptors.to_vec()));
    }
}

fn memfd(size: u64) -> File {
    let fd = rustix::fs::memfd_create("hostile", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    let file = File::from(fd);
    file.set_len(size).expect("its size");
    file
}

#[test]
fn malformed_messages_hurt_only_their_sender() {
    let mut scene = Scene::new();
    let page = memfd(4096);
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let null = File::open("/dev/null").expect("/dev/null");
    let fd = page.as_fd();
    let table = |count: u32, regions: &[[u64; 4]]| {
        let mut bytes = pair(count, 0);
        regions.iter().for_each(|region| bytes.extend(words(*region)));
        bytes
    };
    let inflight = |size: u64, offset: u64, queues: u16, entries: u16| {
        let mut bytes = words([size, offset]);
        bytes.extend(queues.to_ne_bytes());
        bytes.extend(entries.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes
    };
    let config = |offset: u32, size: u32, flags: u32, data: usize| {
        let mut bytes = pair(offset, size);
        bytes.extend(flags.to_ne_bytes());
        bytes.resize(12 + data, 0);
        bytes
    };
    let mut attacks = Attacks(Vec::new());

    // The frame.
    attacks.add("half a header", raw::header(1, 1, 0)[..7].to_vec(), &[]);
    attacks.add("a header whose payload never comes", raw::header(request::SET_FEATURES, 1, 8).to_vec(), &[]);
    attacks.add("a payload of 4 GiB", raw::header(request::SET_MEM_TABLE, 1, u32::MAX).to_vec(), &[]);
    attacks.add("version 0", raw::header(request::GET_FEATURES, 0, 0).to_vec(), &[]);
    attacks.add("version 3", raw::header(request::GET_FEATURES, 3, 0).to_vec(), &[]);
    attacks.add("a reply nobody asked for", message(request::GET_FEATURES, REPLY, &[0; 8]), &[]);
    attacks.add("all flags", message(request::GET_FEATURES, !3, &[]), &[]);
    for number in (0..=request::LAST + 2).chain([100, u32::MAX]) {
        for flags in [0, NEED_REPLY] {
            attacks.add(&format!("message {number} empty, flags {flags}"), message(number, flags, &[]), &[]);
            attacks.add(&format!("message {number} of 3 bytes"), message(number, flags, &[0xff; 3]), &[]);
            attacks.add(
                &format!("message {number} of 256 bytes of ones"),
                message(number, flags, &[0xff; 256]),
                &[],
            );
            attacks.add(
                &format!("message {number} of zeroes and a descriptor"),
                message(number, flags, &[0; 40]),
                &[fd],
            );
        }
    }
    // Descriptors: none, too many, of the wrong kind.
    let many = vec![fd; raw::DESCRIPTORS_MAX];
    attacks.add("253 descriptors", message(request::GET_FEATURES, 0, &[]), &many);
    attacks.add(
        "descriptors with a table of one",
        message(request::SET_MEM_TABLE, 0, &table(1, &[[0, 4096, 0x1000, 0]])),
        &many[..9],
    );
    attacks.add(
        "a table without descriptors",
        message(request::SET_MEM_TABLE, NEED_REPLY, &table(1, &[[0, 4096, 0x1000, 0]])),
        &[],
    );
    for (what, fd) in [("a pipe", reader.as_fd()), ("/dev/null", null.as_fd())] {
        attacks.add(
            &format!("{what} as memory"),
            message(request::ADD_MEM_REG, NEED_REPLY, &words([0, 0, 4096, 0x1000, 0])),
            &[fd],
        );
        attacks.add(
            &format!("{what} as kick"),
            message(request::SET_VRING_KICK, NEED_REPLY, &words([0])),
            &[fd],
        );
        attacks.add(
            &format!("{what} as call"),
            message(request::SET_VRING_CALL, NEED_REPLY, &words([0])),
            &[fd],
        );
        attacks.add(
            &format!("{what} as the back-end's channel"),
            message(request::SET_BACKEND_REQ_FD, NEED_REPLY, &[]),
            &[fd],
        );
        attacks.add(
            &format!("{what} as inflight region"),
            message(request::SET_INFLIGHT_FD, NEED_REPLY, &inflight(4096, 0, 1, 64)),
            &[fd],
        );
        attacks.add(&format!("{what} as log"), message(request::SET_LOG_BASE, 0, &words([4096, 0])), &[fd]);
    }
    // Numbers.
    for index in [128, 255, 256, u32::MAX] {
        for number in [
            request::SET_VRING_NUM,
            request::SET_VRING_BASE,
            request::GET_VRING_BASE,
            request::SET_VRING_ENABLE,
        ] {
            attacks.add(
                &format!("message {number} for ring {index}"),
                message(number, NEED_REPLY, &pair(index, 1)),
                &[],
            );
        }
    }
    for size in [0, 3, 32769, 65536, u32::MAX] {
        attacks.add(
            &format!("a ring of {size}"),
            message(request::SET_VRING_NUM, NEED_REPLY, &pair(0, size)),
            &[],
        );
    }
    let nowhere = [pair(0, 0), words([0xdead_0000, 0xdead_1000, 0xdead_2000, 0])].concat();
    attacks.add("ring addresses in no memory", message(request::SET_VRING_ADDR, NEED_REPLY, &nowhere), &[]);
    let wrapping = [pair(0, 0), words([u64::MAX - 15, u64::MAX - 3, u64::MAX - 1, u64::MAX])].concat();
    attacks.add("ring addresses that wrap", message(request::SET_VRING_ADDR, NEED_REPLY, &wrapping), &[]);
    attacks.add("enable with 2", message(request::SET_VRING_ENABLE, NEED_REPLY, &pair(0, 2)), &[]);
    attacks.add(
        "features that were not offered",
        message(request::SET_FEATURES, NEED_REPLY, &words([u64::MAX])),
        &[],
    );
    attacks.add(
        "protocol features that were not offered",
        message(request::SET_PROTOCOL_FEATURES, NEED_REPLY, &words([u64::MAX])),
        &[],
    );
    // Memory.
    for (what, region) in [
        ("of no bytes", [0, 0, 0x1000, 0]),
        ("that wraps", [u64::MAX - 4095, 8192, 0x1000, 0]),
        ("whose user address wraps", [0, 8192, u64::MAX - 4095, 0]),
        ("longer than its file", [0, 1 << 40, 0x1000, 0]),
        ("beyond its file", [0, 4096, 0x1000, 4096]),
        ("whose offset wraps", [0, 4096, 0x1000, u64::MAX - 4095]),
    ] {
        let [gpa, size, user, offset] = region;
        attacks.add(
            &format!("a region {what}"),
            message(request::ADD_MEM_REG, NEED_REPLY, &words([0, gpa, size, user, offset])),
            &[fd],
        );
        attacks.add(
            &format!("a table with a region {what}"),
            message(request::SET_MEM_TABLE, NEED_REPLY, &table(1, &[region])),
            &[fd],
        );
    }
    let same = [[0, 4096, 0x1000, 0], [0, 4096, 0x1000, 0]];
    attacks.add(
        "a table that overlaps itself",
        message(request::SET_MEM_TABLE, NEED_REPLY, &table(2, &same)),
        &[fd, fd],
    );
    attacks.add(
        "a table of 9",
        message(request::SET_MEM_TABLE, NEED_REPLY, &table(9, &[[0; 4]; 9])),
        &many[..9],
    );
    attacks.add("a table of 4 Gi", message(request::SET_MEM_TABLE, NEED_REPLY, &table(u32::MAX, &[])), &[fd]);
    attacks.add(
        "removal of a region that is not there",
        message(request::REM_MEM_REG, NEED_REPLY, &words([0, 0, 4096, 0x1000, 0])),
        &[],
    );
    // Configuration, inflight, log.
    for (what, payload) in [
        ("of nothing", config(0, 0, 0, 0)),
        ("beyond its end", config(250, 60, 0, 60)),
        ("that wraps", config(u32::MAX, 8, 0, 8)),
        ("whose size is a lie", config(0, 200, 0, 8)),
    ] {
        attacks.add(&format!("GET_CONFIG {what}"), message(request::GET_CONFIG, 0, &payload), &[]);
        attacks.add(&format!("SET_CONFIG {what}"), message(request::SET_CONFIG, NEED_REPLY, &payload), &[]);
    }
    for (what, payload) in [
        ("of no queues", inflight(4096, 0, 0, 64)),
        ("of no descriptors", inflight(4096, 0, 1, 0)),
        ("of 65535 queues", inflight(4096, 0, u16::MAX, u16::MAX)),
        ("longer than its file", inflight(1 << 40, 0, 1, 64)),
        ("that wraps", inflight(4096, u64::MAX - 100, 1, 64)),
        ("too small for its queues", inflight(64, 0, 4, 1024)),
    ] {
        attacks.add(&format!("GET_INFLIGHT_FD {what}"), message(request::GET_INFLIGHT_FD, 0, &payload), &[]);
        attacks.add(
            &format!("SET_INFLIGHT_FD {what}"),
            message(request::SET_INFLIGHT_FD, NEED_REPLY, &payload),
            &[fd],
        );
    }
    for (size, offset) in [(0, 0), (1 << 40, 0), (4096, 4096), (4096, u64::MAX - 100)] {
        attacks.add(
            &format!("a log of {size} at {offset}"),
            message(request::SET_LOG_BASE, 0, &words([size, offset])),
            &[fd],
        );
    }

    assert!(attacks.0.len() > 400, "{} attacks", attacks.0.len());
    scene.all_is_well("nothing");
    let descriptors = scene.target.open_descriptors();
    for (count, (name, bytes, descriptors)) in attacks.0.iter().enumerate() {
        let stream = attach(&scene.victim);
        throw(&stream, bytes, descriptors);
        // Something behind it, so that a truncated message is completed by the wrong bytes, too.
        throw(&stream, &message(request::GET_FEATURES, 0, &[]), &[]);
        drop(stream);
        if count % 10 == 0 {
            scene.all_is_well(name);
        }
    }
    scene.all_is_well("everything");
    scene.nothing_is_kept(descriptors);
    scene.end();
}

/// Regions one by one: over each other, more than there may be, taken away twice; and rings in what is left.
#[test]
fn memory_slots_beyond_all_bounds_hurt_only_their_sender() {
    let mut scene = Scene::new();
    scene.all_is_well("nothing");
    let descriptors = scene.target.open_descriptors();
    let page = memfd(4096);
    let stream = attach(&scene.victim);
    let slots = raw::ask(&stream, request::GET_MAX_MEM_SLOTS, &[]).and_then(|reply| reply.as_u64());
    let slots = slots.expect("GET_MAX_MEM_SLOTS");
    let region = |slot: u64| words([0, slot * 8192, 4096, slot * 8192, 0]);
    let add = |payload: &[u8]| {
        raw::ask_ack(&stream, request::ADD_MEM_REG, payload, &[page.as_fd()]).expect("an acknowledgement")
    };
    let remove = |payload: &[u8]| {
        raw::ask_ack(&stream, request::REM_MEM_REG, payload, &[]).expect("an acknowledgement")
    };
    assert_eq!(add(&region(1)), 0);
    for (what, guest, user) in [
        ("the same region", 8192, 8192),
        ("guest addresses of another region", 8192 + 4095, 1 << 40),
        ("user addresses of another region", 1 << 40, 8192 + 4095),
    ] {
        assert_ne!(add(&words([0, guest, 4096, user, 0])), 0, "{what}");
    }
    for slot in 2..=slots {
        assert_eq!(add(&region(slot)), 0, "slot {slot} of {slots}");
    }
    assert_ne!(add(&region(slots + 1)), 0, "one more than {slots}");
    // Ring areas that begin in a region and end beyond it.
    raw::send(&stream, request::SET_VRING_NUM, 0, &pair(0, 256), &[]).expect("sending");
    let areas = [pair(0, 0), words([8192 + 4080, 8192 + 4092, 8192 + 4094, 0])].concat();
    let _refused_now_or_when_the_ring_starts = raw::ask_ack(&stream, request::SET_VRING_ADDR, &areas, &[]);
    assert_eq!(remove(&region(2)), 0);
    assert_ne!(remove(&region(2)), 0, "a region that is gone");
    assert_ne!(remove(&words([0, 8192, 2048, 8192, 0])), 0, "half of a region");
    drop(stream);
    scene.all_is_well("memory slots");
    scene.nothing_is_kept(descriptors);
    scene.end();
}

/// Bytes at random, and correct messages with single bytes changed.
#[test]
fn random_bytes_hurt_only_their_sender() {
    let mut scene = Scene::new();
    let page = memfd(4096);
    let mut draw = Draw::new(3);
    for round in 0..300 {
        let stream = attach(&scene.victim);
        for _ in 0..draw.below(6) {
            let number = draw.below(u64::from(request::LAST) + 2) as u32;
            let mut bytes = message(number, (draw.below(2) as u32) << 3, &vec![0; draw.below(64) as usize]);
            for _ in 0..draw.below(4) {
                let at = draw.below(bytes.len() as u64) as usize;
                bytes[at] = draw.word() as u8;
            }
            let descriptors = vec![page.as_fd(); draw.below(3) as usize];
            throw(&stream, &bytes, &descriptors);
        }
        drop(stream);
        if round % 20 == 0 {
            scene.all_is_well("random bytes");
        }
    }
    scene.end();
}

/// Connections that do nothing, never read, or come in crowds.
#[test]
fn silent_and_greedy_front_ends_hurt_nobody() {
    let mut scene = Scene::new();
    let crowd: Vec<UnixStream> = (0..50).filter_map(|_| UnixStream::connect(&scene.victim).ok()).collect();
    scene.load.run(&mut scene.neighbour, 200, WAIT).unwrap_or_else(|error| panic!("a crowd: {error}"));
    drop(crowd);
    scene.all_is_well("a crowd");

    let deaf = attach(&scene.victim);
    deaf.set_write_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    let question = message(request::GET_FEATURES, 0, &[]).repeat(1000);
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(2) && (&deaf).write_all(&question).is_ok() {}
    scene.load.run(&mut scene.neighbour, 200, WAIT).unwrap_or_else(|error| panic!("a deaf one: {error}"));
    drop(deaf);
    scene.all_is_well("a front-end that never reads its replies");
    scene.end();
}

/// Every malformed chain and ring that the checklists name. A request may fail and a ring may stop, no more.
#[test]
fn malformed_rings_hurt_only_their_guest() {
    type Mischief = fn(&mut Frontend, &Requester);
    let mut scene = Scene::new();
    let attacks: &[(&str, Mischief)] = &[
        ("a head beyond the table", |fe, _| fe.rings[0].offer(&fe.memory, 1000)),
        ("a head of 65535", |fe, _| fe.rings[0].offer(&fe.memory, u16::MAX)),
        ("the same head twice", |fe, requester| {
            requester.write_header(fe, kind::IN, 0);
            let head = fe.rings[0].push(&fe.memory, &requester.chain(512, true), None).expect("descriptors");
            fe.rings[0].offer(&fe.memory, head);
        }),
        ("a chain that loops", |fe, _| {
            put(fe, 0, HIGH_MEMORY_BASE, 16, DESC_F_NEXT, 1);
            put(fe, 1, HIGH_MEMORY_BASE, 16, DESC_F_NEXT, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("a chain that leaves the table", |fe, _| {
            put(fe, 0, HIGH_MEMORY_BASE, 16, DESC_F_NEXT, 5000);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("a buffer in no memory", |fe, _| {
            put(fe, 0, 0xdead_0000_0000, 16, DESC_F_NEXT, 1);
            put(fe, 1, 0xdead_0000_0000, 1, DESC_F_WRITE, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("a buffer that wraps", |fe, _| {
            put(fe, 0, u64::MAX - 7, u32::MAX, 0, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("a buffer over the end of its region", |fe, requester| {
            requester.write_header(fe, kind::IN, 0);
            put(fe, 0, requester.header, 16, DESC_F_NEXT, 1);
            put(
                fe,
                1,
                HIGH_MEMORY_BASE + fe.options().high_memory - 512,
                4096,
                DESC_F_NEXT | DESC_F_WRITE,
                2,
            );
            put(fe, 2, requester.status, 1, DESC_F_WRITE, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("no status byte", |fe, requester| {
            requester.write_header(fe, kind::OUT, 0);
            put(fe, 0, requester.header, 16, DESC_F_NEXT, 1);
            put(fe, 1, requester.data, 512, 0, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("nothing but a status byte", |fe, requester| {
            put(fe, 0, requester.status, 1, DESC_F_WRITE, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("half a header", |fe, requester| {
            put(fe, 0, requester.header, 8, DESC_F_NEXT, 1);
            put(fe, 1, requester.status, 1, DESC_F_WRITE, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("a readable buffer behind a writable one", |fe, requester| {
            requester.write_header(fe, kind::IN, 0);
            put(fe, 0, requester.status, 1, DESC_F_NEXT | DESC_F_WRITE, 1);
            put(fe, 1, requester.header, 16, 0, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("buffers of no length", |fe, _| {
            put(fe, 0, HIGH_MEMORY_BASE, 0, DESC_F_NEXT, 1);
            put(fe, 1, HIGH_MEMORY_BASE, 0, DESC_F_WRITE, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("four gigabytes of data", |fe, requester| {
            requester.write_header(fe, kind::IN, 0);
            put(fe, 0, requester.header, 16, DESC_F_NEXT, 1);
            for index in 1..100 {
                put(fe, index, HIGH_MEMORY_BASE, 48 << 20, DESC_F_NEXT | DESC_F_WRITE, index + 1);
            }
            put(fe, 100, requester.status, 1, DESC_F_WRITE, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("an indirect table of a length that is no multiple of 16", |fe, requester| {
            put(fe, 0, requester.table, 40, DESC_F_INDIRECT, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("an empty indirect table", |fe, requester| {
            put(fe, 0, requester.table, 0, DESC_F_INDIRECT, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("an indirect table of 4 GiB", |fe, requester| {
            put(fe, 0, requester.table, !15, DESC_F_INDIRECT, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("an indirect table in an indirect table", |fe, requester| {
            write_raw_descriptor(&fe.memory, requester.table, requester.table, 16, DESC_F_INDIRECT, 0);
            put(fe, 0, requester.table, 16, DESC_F_INDIRECT, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("an indirect table that loops", |fe, requester| {
            let flags = DESC_F_NEXT;
            write_raw_descriptor(&fe.memory, requester.table, HIGH_MEMORY_BASE, 16, flags, 1);
            write_raw_descriptor(&fe.memory, requester.table + DESC_SIZE, HIGH_MEMORY_BASE, 16, flags, 0);
            put(fe, 0, requester.table, 32, DESC_F_INDIRECT, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("an indirect table with a next", |fe, requester| {
            put(fe, 0, requester.table, 32, DESC_F_INDIRECT | DESC_F_NEXT, 1);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("an indirect table that the device should write", |fe, requester| {
            put(fe, 0, requester.table, 32, DESC_F_INDIRECT | DESC_F_WRITE, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("an indirect table in no memory", |fe, _| {
            put(fe, 0, 0xdead_0000_0000, 32, DESC_F_INDIRECT, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("unknown descriptor flags", |fe, requester| {
            put(fe, 0, requester.status, 1, 0xfff8 | DESC_F_WRITE, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
        ("an available index far ahead", |fe, _| {
            for _ in 0..30_000 {
                fe.rings[0].offer(&fe.memory, 0);
            }
        }),
        ("an available index that goes back", |fe, _| {
            for _ in 0..u16::MAX - 5 {
                fe.rings[0].offer(&fe.memory, 0);
            }
        }),
        ("data that are the ring itself", |fe, requester| {
            requester.write_header(fe, kind::IN, 0);
            put(fe, 0, requester.header, 16, DESC_F_NEXT, 1);
            put(fe, 1, fe.rings[0].descriptors, 4096, DESC_F_NEXT | DESC_F_WRITE, 2);
            put(fe, 2, requester.status, 1, DESC_F_WRITE, 0);
            fe.rings[0].offer(&fe.memory, 0);
        }),
    ];
    for features in [feature::LINUX_DISK, 0] {
        for (name, attack) in attacks {
            let options = Options { features, ..Options::default() };
            let mut frontend = Frontend::connect_and_start(&scene.victim, options).expect("a connection");
            let requester = Requester::new(&mut frontend, 1, 4096).expect("buffers");
            attack(&mut frontend, &requester);
            frontend.rings[0].publish(&frontend.memory);
            frontend.kick(0);
            scene.load.run(&mut scene.neighbour, 20, WAIT).unwrap_or_else(|error| panic!("{name}: {error}"));
            // Wherever the device stands with this ring, its front-end can stop it and be answered.
            frontend.stop().unwrap_or_else(|error| panic!("stopping after {name}: {error}"));
            frontend.start().unwrap_or_else(|error| panic!("starting again after {name}: {error}"));
            let answer = requester.fetch(&mut frontend, 0, kind::IN, 0, 512).unwrap_or_else(|error| {
                panic!("the ring of a driver that starts anew after {name}: {error}")
            });
            assert_eq!(answer.status, STATUS_OK, "after {name}");
        }
    }
    scene.all_is_well("malformed rings");
    // No core spins over what it refused: the target is quiet when its clients are.
    drop(scene.load);
    scene.neighbour.stop().expect("an orderly stop");
    let begun = Instant::now();
    loop {
        let before = scene.target.processor_time();
        std::thread::sleep(Duration::from_secs(1));
        let busy = scene.target.processor_time() - before;
        if busy < Duration::from_millis(200) {
            break;
        }
        // What was under way on a busy machine comes to its end; a core that spins does not.
        assert!(begun.elapsed() < WAIT, "the idle target used {busy:?} of one second");
    }
}

/// Writes a descriptor of queue 0's table.
fn put(frontend: &Frontend, index: u16, address: u64, length: u32, flags: u16, next: u16) {
    let at = frontend.rings[0].descriptors + u64::from(index) * DESC_SIZE;
    write_raw_descriptor(&frontend.memory, at, address, length, flags, next);
}

/// A guest's memory file is cut short while the device reads and writes in it: SIGBUS in a process that does not expect it.
#[test]
fn a_front_end_that_shrinks_its_memory_under_io_loses_only_its_own_device() {
    const SIZE: u64 = 8 << 20;
    let image = Image::in_memory(DISK);
    let target = Target::start();
    for disk in ["neighbour", "victim"] {
        target.call("bdev_malloc_create", json!({"name": disk, "num_blocks": DISK / 512, "block_size": 512}));
    }
    target.call("bdev_uring_create", json!({"name": "victim.uring", "filename": image.name()}));
    let uring = target.serve("victim.uring", "vhost.victim.uring");
    let mut scene = Scene::with_disks(target);
    let mut closed = 0;
    for round in 0..20 {
        for victim in [scene.victim.clone(), uring.clone()] {
            let options = Options { memory_slots: true, ..Options::default() };
            let mut frontend = Frontend::connect_and_start(&victim, options).expect("a connection");
            let fe = &mut frontend;
            let requester = Requester::new(fe, 1, 4096).expect("buffers");
            let index = fe.memory.plug(Region::new(2 * HIGH_MEMORY_BASE, SIZE, 0).expect("a region"));
            fe.add_region(index).expect("ADD_MEM_REG");
            requester.write_header(fe, if round % 2 == 0 { kind::IN } else { kind::OUT }, 0);
            for request in 0..30u64 {
                let mut chain = requester.chain(256 << 10, round % 2 == 0);
                chain[1].address = 2 * HIGH_MEMORY_BASE + request * (256 << 10);
                fe.rings[0].push(&fe.memory, &chain, None).expect("free descriptors");
            }
            fe.publish(0);
            fe.memory.regions()[index].file().set_len(0).expect("the file is cut");
            scene
                .load
                .run(&mut scene.neighbour, 50, WAIT)
                .unwrap_or_else(|error| panic!("the neighbour in round {round}: {error}"));
            // All of its requests end, or its connection does: none is left out for ever.
            let begun = Instant::now();
            while !fe.is_closed() && fe.rings[0].outstanding() > 0 {
                match wait_used(fe, 0, Duration::from_millis(100)) {
                    Ok(_) | Err(ClientError::Timeout { .. }) => {}
                    Err(error) => panic!("the victim in round {round}: {error}"),
                }
                let left = fe.rings[0].outstanding();
                assert!(
                    begun.elapsed() < WAIT,
                    "round {round}: {left} requests are out, on a connection that stays"
                );
            }
            closed += u32::from(fe.is_closed());
        }
    }
    // Memory that went away under a request ends the session; only a target that was done before the cut goes on.
    assert!(closed >= 20, "{closed} of 40 sessions ended: the cut met no request");
    scene.all_is_well("memory that shrank");
    scene.end();
}
