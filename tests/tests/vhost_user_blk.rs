//! A whole virtio disk through real sockets, descriptors and memory, used by clients that share no code with the target.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tests::client::ClientError;
use tests::client::blkio::{Blkio, Options as BlkioOptions, Single};
use tests::client::frontend::{Frontend, Options, feature, status};
use tests::client::load::{Load, LoadOptions, STATUS_IOERR, STATUS_OK, STATUS_UNSUPPORTED, kind};
use tests::client::memory::{HIGH_MEMORY_BASE, Region};
use tests::client::model::{Model, SECTOR};
use tests::client::request::{Requester, wait_used};
use tests::image::Image;
use tests::target::Target;
use vhost::VhostBackend;
use vhost::VhostUserDirtyLogRegion;

/// Bytes of the disks.
const DISK: u64 = 16 << 20;
/// A bound for whole runs; each takes a second or two.
const RUN_WAIT: Duration = Duration::from_secs(60);

fn malloc_target() -> Target {
    let target = Target::start();
    target.call("bdev_malloc_create", json!({"name": "disk", "num_blocks": DISK / 512, "block_size": 512}));
    target
}

fn verified(frontend: &mut Frontend, load: LoadOptions, count: u64) -> Load {
    let mut load = Load::new(frontend, load).expect("a load");
    load.run(frontend, count, RUN_WAIT).unwrap_or_else(|error| panic!("{error}"));
    load.drain(frontend, RUN_WAIT).unwrap_or_else(|error| panic!("{error}"));
    load.verify_all(frontend, RUN_WAIT).unwrap_or_else(|error| panic!("{error}"));
    assert!(load.model.compared() > count, "{} sectors compared", load.model.compared());
    assert_eq!(load.missed_calls(), 0, "completions without the call that was asked for");
    load
}

fn sectors() -> LoadOptions {
    LoadOptions { sectors: DISK / 512, ..LoadOptions::default() }
}

#[test]
fn blkio_verifies_every_bdev() {
    let image = [Image::in_memory(DISK), Image::in_memory(DISK)];
    let target = malloc_target();
    target.call("bdev_uring_create", json!({"name": "uring", "filename": image[0].name()}));
    target.call("bdev_aio_create", json!({"name": "aio", "filename": image[1].name()}));
    for bdev in ["disk", "uring", "aio"] {
        let socket = target.serve(bdev, &format!("vhost.{bdev}"));
        let options = BlkioOptions { queues: 2, ..BlkioOptions::default() };
        let mut disk = Blkio::open(&socket, options).expect("a connection");
        let mut model = Model::zeroed(disk.capacity_bytes().expect("a capacity") / 512);
        assert_eq!(model.sectors(), DISK / 512);
        disk.verified_load(&mut model, 7, 5_000).unwrap_or_else(|error| panic!("{bdev}: {error}"));
        disk.verify_all(&mut model).unwrap_or_else(|error| panic!("{bdev}: {error}"));
        assert!(model.compared() > DISK / 512);
    }
}

#[test]
fn every_kind_of_front_end_is_served() {
    let target = malloc_target();
    let socket = target.serve("disk", "vhost.0");
    let linux = Options { queues: 4, ..Options::default() };
    for options in [
        linux.clone(),
        Options { memory_slots: true, need_reply: true, ..linux.clone() },
        Options { features: feature::LINUX_DISK & !feature::EVENT_IDX, ..linux.clone() },
        Options {
            features: feature::LINUX_DISK & !feature::INDIRECT_DESC,
            first_index: 65_530,
            ..linux.clone()
        },
        Options { features: 0, queues: 1, queue_size: 16, ..linux.clone() },
    ] {
        let depth = options.queue_size / 16;
        let mut frontend = Frontend::connect_and_start(&socket, options).expect("a connection");
        // What the front-end before left on the disk is unknown to this model: begin with zeroes.
        zero(&mut frontend);
        verified(&mut frontend, LoadOptions { depth: depth.max(1), ..sectors() }, 3_000);
        frontend.stop().expect("an orderly stop");
    }
}

/// Makes the whole disk zeroes, by WRITE_ZEROES or (where it was not negotiated) by writes.
fn zero(frontend: &mut Frontend) {
    const CHUNK: u64 = 1 << 20;
    let requester = Requester::new(frontend, 0, CHUNK).expect("buffers");
    for sector in (0..DISK / 512).step_by((CHUNK / 512) as usize) {
        let answer = requester.send(frontend, 0, kind::OUT, sector, &[0; CHUNK as usize]).expect("a write");
        assert_eq!((answer.status, answer.written), (STATUS_OK, 1));
    }
}

#[test]
fn one_request_of_each_kind_and_each_mistake() {
    let target = malloc_target();
    let socket = target.serve("disk", "vhost.0");
    let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
    let fe = &mut frontend;
    let requester = Requester::new(fe, 1, 64 << 10).expect("buffers");
    let last = DISK / 512 - 1;
    let range = |sector: u64, count: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };

    let id = requester.fetch(fe, 0, kind::GET_ID, 0, 20).expect("GET_ID");
    assert_eq!((id.status, id.written), (STATUS_OK, 21));
    assert_ne!(id.data[0], 0, "the identity is empty");
    assert_eq!(id, requester.fetch(fe, 0, kind::GET_ID, 0, 20).expect("GET_ID"), "it is the same each time");

    let write = requester.send(fe, 0, kind::OUT, last, &[0x42; SECTOR]).expect("OUT");
    assert_eq!((write.status, write.written), (STATUS_OK, 1));
    let read = requester.fetch(fe, 0, kind::IN, last, 512).expect("IN");
    assert_eq!((read.status, read.written), (STATUS_OK, 513));
    assert_eq!(read.data, [0x42; SECTOR]);
    for (kind, payload) in [
        (kind::FLUSH, vec![]),
        (kind::DISCARD, range(8, 8, 0)),
        (kind::WRITE_ZEROES, range(last, 1, 0)),
        (kind::WRITE_ZEROES, range(0, 1, 1)),
    ] {
        let answer = requester.send(fe, 0, kind, 0, &payload).expect("an answer");
        assert_eq!((answer.status, answer.written), (STATUS_OK, 1), "type {kind} {payload:?}");
    }
    assert_eq!(requester.fetch(fe, 0, kind::IN, last, 512).expect("IN").data, [0; SECTOR]);

    let many = range(0, 1, 0).repeat(17);
    for (what, expected, answer) in [
        ("a read past the end", STATUS_IOERR, requester.fetch(fe, 0, kind::IN, last, 1024)),
        ("a read far past the end", STATUS_IOERR, requester.fetch(fe, 0, kind::IN, u64::MAX, 512)),
        ("a read whose end overflows", STATUS_IOERR, requester.fetch(fe, 0, kind::IN, u64::MAX / 512, 1024)),
        ("a write past the end", STATUS_IOERR, requester.send(fe, 0, kind::OUT, last, &[1; 1024])),
        ("half a sector", STATUS_IOERR, requester.send(fe, 0, kind::OUT, 0, &[1; 256])),
        ("a discard past the end", STATUS_IOERR, requester.send(fe, 0, kind::DISCARD, 0, &range(last, 2, 0))),
        (
            "a discard with unmap",
            STATUS_UNSUPPORTED,
            requester.send(fe, 0, kind::DISCARD, 0, &range(0, 8, 1)),
        ),
        (
            "an unknown flag",
            STATUS_UNSUPPORTED,
            requester.send(fe, 0, kind::WRITE_ZEROES, 0, &range(0, 8, 2)),
        ),
        ("part of a range", STATUS_IOERR, requester.send(fe, 0, kind::DISCARD, 0, &range(0, 8, 0)[..15])),
        ("too many ranges", STATUS_IOERR, requester.send(fe, 0, kind::DISCARD, 0, &many)),
        ("an unknown type", STATUS_UNSUPPORTED, requester.fetch(fe, 0, 77, 0, 512)),
        ("SECURE_ERASE, not offered", STATUS_UNSUPPORTED, requester.send(fe, 0, 14, 0, &range(0, 8, 0))),
    ] {
        let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(answer.status, expected, "{what}");
    }
    assert_eq!(
        requester.fetch(fe, 0, kind::IN, last, 512).expect("IN").data,
        [0; SECTOR],
        "nothing was written"
    );
}

/// A driver announces no limit but the number of its buffers, and none is announced to it: a read or write of whatever
/// length a chain may have is done, in one piece or in many. Firmware reads whole files at once.
#[test]
fn a_transfer_of_any_length_is_done() {
    const LARGE: usize = 48 << 20;
    const MIB: usize = 1 << 20;
    let image = Image::in_memory(LARGE as u64);
    let target = Target::start();
    target
        .call("bdev_malloc_create", json!({"name": "malloc", "num_blocks": LARGE / 512, "block_size": 512}));
    target.call("bdev_uring_create", json!({"name": "uring", "filename": image.name()}));
    for bdev in ["malloc", "uring"] {
        let socket = target.serve(bdev, &format!("vhost.{bdev}"));
        let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
        let fe = &mut frontend;
        let requester = Requester::new(fe, 1, 40 << 20).expect("buffers");
        let mut model = vec![0; LARGE];
        for (number, (sector, len)) in
            [(9, 4 * MIB), (3, 4 * MIB + 512), (1000, 8 * MIB), (1, 33 * MIB + 1536), (2, 40 * MIB)]
                .into_iter()
                .enumerate()
        {
            let words = (0..len as u32 / 4).map(|word| word.wrapping_mul(0x9e37_79b1) ^ number as u32);
            let payload: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
            let write = requester.send(fe, 0, kind::OUT, sector, &payload).expect("OUT");
            assert_eq!((write.status, write.written), (STATUS_OK, 1), "{bdev}: {len} bytes");
            model[sector as usize * SECTOR..][..len].copy_from_slice(&payload);
            let read = requester.fetch(fe, 0, kind::IN, sector, len as u32).expect("IN");
            assert_eq!((read.status, read.written), (STATUS_OK, len as u32 + 1), "{bdev}: {len} bytes");
            assert!(read.data == payload, "{bdev}: {len} bytes at sector {sector} are not what was written");
        }
        for (first, len) in [(0, 40 * MIB), (40 * MIB, 8 * MIB)] {
            let read = requester.fetch(fe, 0, kind::IN, (first / SECTOR) as u64, len as u32).expect("IN");
            assert!(read.data == model[first..first + len], "{bdev}: something else was written");
        }
        let beyond =
            requester.fetch(fe, 0, kind::IN, (LARGE / SECTOR - 8 * MIB / SECTOR + 1) as u64, 8 << 20);
        assert_eq!(beyond.expect("IN").status, STATUS_IOERR, "{bdev}: the last piece lies beyond the disk");
    }
}

/// No chain may be longer than 2^32 bytes (virtio 1.3, section 2.7.5.2): up to there a read is done.
#[test]
fn a_transfer_as_long_as_a_chain_may_be() {
    const BUFFER: u32 = 32 << 20;
    let target = Target::start();
    target.call("bdev_null_create", json!({"name": "null", "num_blocks": 16 << 20, "block_size": 512}));
    let socket = target.serve("null", "vhost.null");
    let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
    let fe = &mut frontend;
    let requester = Requester::new(fe, 1, u64::from(BUFFER)).expect("buffers");
    for (buffers, last, expected) in [(127, BUFFER - 512, STATUS_OK), (127, BUFFER, STATUS_IOERR)] {
        requester.write_header(fe, kind::IN, 0);
        let mut chain = requester.chain(BUFFER, true);
        let buffer = chain[1];
        chain.splice(1..1, std::iter::repeat_n(buffer, buffers));
        chain[buffers + 1].length = last;
        fe.rings[0].push(&fe.memory, &chain, Some(requester.table)).expect("a free descriptor");
        fe.publish(0);
        let used = wait_used(fe, 0, RUN_WAIT).expect("an answer");
        assert_eq!(requester.status(fe), expected, "{buffers} buffers and one of {last} bytes");
        let payload = if expected == STATUS_OK { u32::MAX - 511 } else { 0 };
        assert_eq!(used.written, payload + 1);
    }
}

#[test]
fn a_read_only_controller_refuses_writes_and_the_disk_stays() {
    let target = malloc_target();
    let socket = target.serve("disk", "vhost.rw");
    let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
    let requester = Requester::new(&mut frontend, 1, 4096).expect("buffers");
    requester.send(&mut frontend, 0, kind::OUT, 0, &[7; 4096]).expect("a write");
    drop(frontend);
    target.call("vhost_delete_controller", json!({"ctrlr": "vhost.rw"}));
    target.call(
        "vhost_create_blk_controller",
        json!({"ctrlr": "vhost.ro", "dev_name": "disk", "readonly": true}),
    );
    let socket = target.path("vhost").join("vhost.ro");

    // RO need not be acknowledged to be in force.
    let options = Options { features: feature::LINUX_DISK & !feature::RO, ..Options::default() };
    let mut frontend = Frontend::connect_and_start(&socket, options).expect("a connection");
    assert_ne!(frontend.offered() & feature::RO, 0);
    let requester = Requester::new(&mut frontend, 1, 4096).expect("buffers");
    let fe = &mut frontend;
    let range = [&0u64.to_le_bytes()[..], &8u32.to_le_bytes(), &0u32.to_le_bytes()].concat();
    for (kind, payload) in
        [(kind::OUT, vec![9; 4096]), (kind::DISCARD, range.clone()), (kind::WRITE_ZEROES, range)]
    {
        let answer = requester.send(fe, 0, kind, 0, &payload).expect("an answer");
        // A read-only disk does not offer DISCARD and WRITE_ZEROES, and need not know them.
        let expected = if kind == kind::OUT { STATUS_IOERR } else { STATUS_UNSUPPORTED };
        assert_eq!(answer.status, expected, "type {kind}");
    }
    assert_eq!(requester.fetch(fe, 0, kind::IN, 0, 4096).expect("a read").data, [7; 4096]);
    drop(frontend);

    let options = BlkioOptions { read_only: true, ..BlkioOptions::default() };
    let mut disk = Blkio::open(&socket, options).expect("blkio opens it read-only");
    assert_eq!(disk.single(Single::Read { byte: 0, bytes: 4096 }).expect("a read"), 0);
    drop(disk);
    let refused = Blkio::open(&socket, BlkioOptions::default());
    assert!(refused.is_err(), "blkio opens a read-only disk for writing");
}

#[test]
fn the_configuration_space_is_read_in_any_piece_and_written_only_where_it_may() {
    const WRITEBACK: u32 = 32;
    let target = malloc_target();
    let socket = target.serve("disk", "vhost.0");
    let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
    assert_eq!(frontend.capacity_bytes().expect("a capacity"), DISK);
    let whole = frontend.config(0, 60).expect("60 bytes, as in the specification");
    for (offset, size) in [(0, 57), (20, 4), (34, 2), (36, 24), (59, 1)] {
        let piece = frontend.config(offset, size).expect("a piece");
        assert_eq!(piece, whole[offset as usize..(offset + size) as usize], "{size} bytes at {offset}");
    }
    assert_eq!(u16::from_le_bytes([whole[34], whole[35]]), 128, "num_queues");
    assert_eq!(whole[WRITEBACK as usize], 1, "the write cache is on");

    frontend.set_config(WRITEBACK, &[0]).expect("writethrough");
    assert_eq!(frontend.config(WRITEBACK, 1).expect("a byte"), [0]);
    verified(&mut frontend, LoadOptions { percent_flushes: 0, ..sectors() }, 500);
    frontend.set_config(WRITEBACK, &[1]).expect("writeback");
    assert_eq!(frontend.config(WRITEBACK, 1).expect("a byte"), [1]);

    for (offset, bytes) in [(0, vec![0; 8]), (20, vec![0; 4]), (WRITEBACK, vec![0; 2]), (31, vec![0; 2])] {
        let answer = frontend.set_config(offset, &bytes);
        assert!(answer.is_err(), "{} bytes at {offset} may not be written", bytes.len());
    }
    assert_eq!(frontend.config(0, 60).expect("the whole"), whole, "a refused write changed something");
}

#[test]
fn a_resized_disk_is_announced_and_usable() {
    let image = Image::in_memory(DISK);
    let target = Target::start();
    target.call("bdev_null_create", json!({"name": "null", "num_blocks": DISK / 512, "block_size": 512}));
    target.call("bdev_uring_create", json!({"name": "uring", "filename": image.name()}));
    for bdev in ["null", "uring"] {
        let socket = target.serve(bdev, &format!("vhost.{bdev}"));
        let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
        assert_eq!(frontend.capacity_bytes().expect("a capacity"), DISK);
        let before = frontend.config_changes(Duration::from_millis(300)).expect("the channel");
        if bdev == "null" {
            target.call("bdev_null_resize", json!({"name": bdev, "new_size": (2 * DISK) >> 20}));
        } else {
            image.resize(2 * DISK);
            target.call("bdev_uring_rescan", json!({"name": bdev}));
        }
        let changes = frontend.config_changes(RUN_WAIT).expect("the channel");
        assert_eq!(changes, before + 1, "{bdev}: CONFIG_CHANGE");
        assert_eq!(frontend.capacity_bytes().expect("a capacity"), 2 * DISK, "{bdev}");
        let requester = Requester::new(&mut frontend, 1, 4096).expect("buffers");
        let sector = 2 * DISK / 512 - 8;
        let answer = requester.send(&mut frontend, 0, kind::OUT, sector, &[3; 4096]).expect("an answer");
        assert_eq!(answer.status, STATUS_OK, "{bdev}: a write into the new part");
    }
}

#[test]
fn front_ends_come_and_go() {
    let target = malloc_target();
    let socket = target.serve("disk", "vhost.0");
    for round in 0..10u8 {
        let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
        let requester = Requester::new(&mut frontend, 1, 4096).expect("buffers");
        if round > 0 {
            let read = requester.fetch(&mut frontend, 0, kind::IN, 0, 4096).expect("a read");
            assert_eq!(read.data, [round; 4096], "what the front-end before wrote");
        }
        let write = requester.send(&mut frontend, 0, kind::OUT, 0, &[round + 1; 4096]).expect("a write");
        assert_eq!(write.status, STATUS_OK);
        match round % 3 {
            // Dropped with a running ring, as a killed QEMU does; after an orderly stop; restarted before that.
            0 => {}
            1 => drop(frontend.stop().expect("an orderly stop")),
            _ => {
                let bases = frontend.stop().expect("an orderly stop");
                assert_eq!(bases, [2], "the ring was used twice");
                frontend.start().expect("the driver's second start");
                requester.fetch(&mut frontend, 0, kind::IN, 0, 512).expect("a read after the second start");
            }
        }
    }
}

#[test]
fn all_128_queues_work_at_once() {
    let target = malloc_target();
    let socket = target.serve("disk", "vhost.0");
    let options = Options { queues: 128, queue_size: 64, ..Options::default() };
    let mut frontend = Frontend::connect_and_start(&socket, options).expect("a connection");
    assert_eq!(frontend.queues_max(), 128);
    verified(&mut frontend, LoadOptions { depth: 3, sectors_max: 16, ..sectors() }, 5_000);
    for ring in &frontend.rings {
        assert!(ring.available_index() > 0, "a queue was never used");
    }
    assert_eq!(frontend.stop().expect("an orderly stop").len(), 128);
}

#[test]
fn memory_is_plugged_and_unplugged_under_io() {
    const SIZE: u64 = 1 << 20;
    let target = malloc_target();
    let socket = target.serve("disk", "vhost.0");
    let options = Options { memory_slots: true, ..Options::default() };
    let mut frontend = Frontend::connect_and_start(&socket, options).expect("a connection");
    let mut load = Load::new(&mut frontend, sectors()).expect("a load");
    for round in 0..40 {
        load.run(&mut frontend, 50, RUN_WAIT).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let region = Region::new(HIGH_MEMORY_BASE * (2 + round % 3), SIZE, 8192).expect("a region");
        let index = frontend.memory.plug(region);
        load.submit(&mut frontend).expect("requests under way");
        frontend.add_region(index).expect("ADD_MEM_REG");
        load.submit(&mut frontend).expect("requests under way");
        frontend.remove_region(index).expect("REM_MEM_REG");
        frontend.memory.unplug_last().expect("the region");
    }
    load.drain(&mut frontend, RUN_WAIT).unwrap_or_else(|error| panic!("{error}"));
    load.verify_all(&mut frontend, RUN_WAIT).unwrap_or_else(|error| panic!("{error}"));
    let region = frontend.memory.plug(Region::new(HIGH_MEMORY_BASE * 9, SIZE, 0).expect("a region"));
    assert!(frontend.remove_region(region).is_err(), "a region that was never added is removed");
}

/// Once REM_MEM_REG is acknowledged nothing is written there any more, though reads into it were under way.
#[test]
fn a_removed_region_is_not_touched() {
    const READS: u16 = 32;
    const BYTES: u32 = 128 << 10;
    // A real disk, and no holes: reads must be under way when the region goes.
    let image = Image::on_disk(DISK);
    std::fs::write(image.path(), vec![1; DISK as usize]).expect("the image");
    let target = Target::start();
    target.call("bdev_uring_create", json!({"name": "disk", "filename": image.name()}));
    let socket = target.serve("disk", "vhost.0");
    let options = Options { memory_slots: true, ..Options::default() };
    let mut frontend = Frontend::connect_and_start(&socket, options).expect("a connection");
    let fe = &mut frontend;
    let requester = Requester::new(fe, 1, 4096).expect("buffers");
    for round in 0..20 {
        let index = fe.memory.plug(Region::new(2 * HIGH_MEMORY_BASE, 8 << 20, 0).expect("a region"));
        fe.add_region(index).expect("ADD_MEM_REG");
        requester.write_header(fe, kind::IN, 0);
        for read in 0..READS {
            let mut chain = requester.chain(BYTES, true);
            chain[1].address = 2 * HIGH_MEMORY_BASE + u64::from(read) * u64::from(BYTES);
            fe.rings[0].push(&fe.memory, &chain, None).expect("free descriptors");
        }
        fe.publish(0);
        fe.remove_region(index).expect("REM_MEM_REG");
        let pattern = vec![0x3c; (8 << 20) as usize];
        fe.memory.write(2 * HIGH_MEMORY_BASE, &pattern);
        for _ in 0..READS {
            wait_used(fe, 0, RUN_WAIT).unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        let mut now = vec![0; pattern.len()];
        fe.memory.read(2 * HIGH_MEMORY_BASE, &mut now);
        assert!(now == pattern, "round {round}: the device wrote into memory that it had given back");
        fe.memory.unplug_last();
    }
    let answer = requester.fetch(fe, 0, kind::IN, 0, 4096).expect("the ring goes on");
    assert_eq!(answer.status, STATUS_OK);
}

#[test]
fn the_dirty_log_has_what_was_written_and_nothing_else() {
    const PAGE: u64 = 4096;
    let target = malloc_target();
    let socket = target.serve("disk", "vhost.0");
    let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
    let fe = &mut frontend;
    let requester = Requester::new(fe, 1, 64 << 10).expect("buffers");
    let end = HIGH_MEMORY_BASE + fe.options().high_memory;
    let mmap_size = (end / PAGE / 8).next_multiple_of(PAGE);
    let log = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    let log = std::fs::File::from(log);
    log.set_len(mmap_size).expect("the log's size");
    let dirty = |log: &std::fs::File| {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; mmap_size as usize];
        log.read_exact_at(&mut bytes, 0).expect("the log");
        log.write_all_at(&vec![0; mmap_size as usize], 0).expect("the log");
        let bit = |page: &u64| bytes[(page / 8) as usize] >> (page % 8) & 1 == 1;
        (0..mmap_size * 8).filter(bit).collect::<Vec<u64>>()
    };

    // As when a migration begins: the log, the feature, then the addresses again with the used ring's log.
    let region = VhostUserDirtyLogRegion { mmap_size, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    fe.send("SET_LOG_BASE", |messages| messages.set_log_base(0, Some(region))).expect("SET_LOG_BASE");
    let features = fe.acknowledged();
    fe.change_features(features | feature::LOG_ALL).expect("SET_FEATURES");
    fe.set_addresses(0, true).expect("SET_VRING_ADDR on a running ring");
    fe.settle().expect("all carried out");

    let used_page = fe.rings[0].used / PAGE;
    let used_pages = used_page..=(fe.rings[0].used + 6 + 8 * 128 - 1) / PAGE;
    let (data, status_page) = (requester.data / PAGE, requester.status / PAGE);
    let answer = requester.fetch(fe, 0, kind::IN, 0, 3 * 4096).expect("a read");
    assert_eq!(answer.status, STATUS_OK);
    let pages = dirty(&log);
    for page in [data, data + 1, data + 2, status_page] {
        assert!(pages.contains(&page), "page {page:#x} was written and is not in the log: {pages:x?}");
    }
    assert!(pages.iter().any(|page| used_pages.contains(page)), "the used ring is not in the log");
    let known =
        |page: &u64| (data..data + 3).contains(page) || *page == status_page || used_pages.contains(page);
    assert!(pages.iter().all(known), "pages in the log that nothing wrote: {pages:x?}");

    requester.send(fe, 0, kind::OUT, 0, &[1; 4096]).expect("a write");
    let pages = dirty(&log);
    assert!(!pages.contains(&data), "a write only reads its data");
    assert!(pages.contains(&status_page));

    // The migration was cancelled.
    fe.change_features(features).expect("SET_FEATURES");
    fe.set_addresses(0, false).expect("SET_VRING_ADDR");
    fe.settle().expect("all carried out");
    // The core may have gone to sleep before that, and logged its wish to be woken.
    dirty(&log);
    requester.fetch(fe, 0, kind::IN, 0, 4096).expect("a read");
    assert_eq!(dirty(&log), [0u64; 0], "logged without LOG_ALL");
}

#[test]
fn device_status_and_reset() {
    let target = malloc_target();
    let socket = target.serve("disk", "vhost.0");
    let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
    let fe = &mut frontend;
    let requester = Requester::new(fe, 1, 4096).expect("buffers");
    let running = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    fe.set_device_status(running).expect("SET_STATUS");
    assert_eq!(fe.device_status().expect("GET_STATUS"), running);
    requester.send(fe, 0, kind::OUT, 0, &[1; 512]).expect("a write");

    // The driver resets the device: nothing runs until it starts again.
    fe.set_device_status(0).expect("SET_STATUS");
    assert_eq!(fe.device_status().expect("GET_STATUS"), 0);
    requester.write_header(fe, kind::IN, 0);
    let chain = requester.chain(512, true);
    fe.rings[0].push(&fe.memory, &chain, None).expect("free descriptors");
    fe.rings[0].publish(&fe.memory);
    fe.kick(0);
    let silent = wait_used(fe, 0, Duration::from_millis(300));
    assert!(matches!(silent, Err(ClientError::Timeout { .. })), "a stopped ring was served: {silent:?}");
    fe.start().expect("the driver's second start");
    assert_eq!(requester.fetch(fe, 0, kind::IN, 0, 512).expect("a read").data, [1; 512]);

    // RESET_DEVICE does the same, and forgets the features.
    fe.send("RESET_DEVICE", vhost::vhost_user::VhostUserFrontend::reset_device).expect("RESET_DEVICE");
    assert_eq!(fe.device_status().expect("GET_STATUS"), 0);
    fe.start().expect("the driver's third start");
    assert_eq!(requester.fetch(fe, 0, kind::IN, 0, 512).expect("a read").data, [1; 512]);
}

/// A kick that arrives before SET_VRING_ENABLE, as QEMU sends it, is not lost; nor is one that was never sent.
#[test]
fn requests_that_are_there_before_the_ring_is_enabled_are_served() {
    let target = malloc_target();
    let socket = target.serve("disk", "vhost.0");
    let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
    let fe = &mut frontend;
    let requester = Requester::new(fe, 1, 4096).expect("buffers");
    for kicked in [true, false] {
        fe.enable(0, false).expect("SET_VRING_ENABLE");
        fe.settle().expect("all carried out");
        requester.write_header(fe, kind::IN, 0);
        let chain = requester.chain(512, true);
        fe.rings[0].push(&fe.memory, &chain, None).expect("free descriptors");
        fe.rings[0].publish(&fe.memory);
        if kicked {
            fe.kick(0);
        }
        let silent = wait_used(fe, 0, Duration::from_millis(100));
        assert!(silent.is_err(), "a disabled ring was served: {silent:?}");
        fe.enable(0, true).expect("SET_VRING_ENABLE");
        wait_used(fe, 0, RUN_WAIT).unwrap_or_else(|error| panic!("kicked: {kicked}: {error}"));
    }
}

#[test]
fn a_fresh_inflight_region_is_empty_and_sized_as_told() {
    let target = malloc_target();
    let socket = target.serve("disk", "vhost.0");
    let options = Options { queues: 2, queue_size: 128, ..Options::default() };
    let mut frontend = Frontend::connect_and_start(&socket, options).expect("a connection");
    let (description, file) = frontend.inflight().expect("INFLIGHT_SHMFD is offered");
    let length = file.metadata().expect("a memfd").len();
    assert!(description.mmap_offset + description.mmap_size <= length, "the region ends after its file");
    assert_eq!((description.num_queues, description.queue_size), (2, 128));
    // 16 bytes of header and 16 per descriptor, each queue rounded up to 64; the back-end may keep more behind them.
    let (size, queues) = (description.mmap_size, 2 * (16 + 16 * 128u64).next_multiple_of(64));
    assert!((queues..queues + 64).contains(&size), "{size} bytes, expected about {queues}");
    let requester = Requester::new(&mut frontend, 1, 4096).expect("buffers");
    requester.fetch(&mut frontend, 0, kind::IN, 0, 512).expect("a read");
    let used: u16 = frontend.memory.load(frontend.rings[0].used + 2, Ordering::Acquire);
    assert_eq!(used, 1);
}
