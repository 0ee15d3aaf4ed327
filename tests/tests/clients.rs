//! The clients against somebody else's back-end: a client that only ever met our target proves nothing about it.
//!
//! qemu-storage-daemon has no inflight tracking, so reconnecting is not part of this; everything else is. It is
//! unpacked from Debian's packages by `tests/peer/run`, which a plain run does not do.

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use tests::client::ClientError;
use tests::client::blkio::{Blkio, Options as BlkioOptions};
use tests::client::frontend::{Frontend, Options};
use tests::client::load::{Load, LoadOptions};
use tests::client::memory::HIGH_MEMORY_BASE;
use tests::client::model::Model;
use tests::image::Image;
use tests::peer::{Backing, Peer};
use tests::target::Target;

const DISK: u64 = 16 << 20;

/// An exported file.
fn peer(queues: u16) -> (Image, Peer) {
    let image = Image::in_memory(DISK);
    let peer = Peer::start(&Backing::File(image.path().to_path_buf()), queues);
    (image, peer)
}

#[test]
#[ignore = "needs qemu-storage-daemon; run: tests/peer/run"]
fn the_front_end_verifies_a_load_on_the_peer() {
    let (image, peer) = peer(2);
    let options = Options { queues: 2, memory_slots: true, ..Options::default() };
    let mut frontend = Frontend::connect_and_start(peer.socket(), options.clone()).expect("a connection");
    let load = LoadOptions { sectors: DISK / 512, ..LoadOptions::default() };
    let mut load = Load::new(&mut frontend, load).expect("a load");
    load.run(&mut frontend, 5_000, Duration::from_secs(60)).expect("a correct load");
    load.drain(&mut frontend, Duration::from_secs(10)).expect("all requests complete");
    load.verify_all(&mut frontend, Duration::from_secs(10)).expect("the disk is as written");
    assert!(load.model.compared() > DISK / 512);

    frontend.stop().expect("an orderly stop");
    frontend.start().expect("a second driver's start");

    // And the judge is awake: one changed byte of the 16 MiB is found.
    let file = std::fs::OpenOptions::new().write(true).open(image.path()).expect("the image");
    file.write_at(&[0x5a], DISK / 2 + 77).expect("one byte");
    let verdict = load.verify_all(&mut frontend, Duration::from_secs(10));
    assert!(matches!(verdict, Err(ClientError::Violation(_))), "{verdict:?}");

    drop((load, frontend));

    // So is one byte in a buffer that no request has lent to the device.
    let mut frontend = Frontend::connect_and_start(peer.socket(), options).expect("another connection");
    let load = LoadOptions { sectors: DISK / 512, percent_reads: 100, ..LoadOptions::default() };
    let mut load = Load::new(&mut frontend, load).expect("a load");
    frontend.memory.write(HIGH_MEMORY_BASE + 5000, &[0]);
    let verdict = load.run(&mut frontend, 100, Duration::from_secs(10));
    assert!(format!("{verdict:?}").contains("after its request had completed"), "{verdict:?}");
}

#[test]
#[ignore = "needs qemu-storage-daemon; run: tests/peer/run"]
fn blkio_verifies_a_load_on_the_peer() {
    let (_image, peer) = peer(2);
    let options = BlkioOptions { queues: 2, ..BlkioOptions::default() };
    let mut disk = Blkio::open(peer.socket(), options).expect("a connection");
    let mut model = Model::zeroed(disk.capacity_bytes().expect("a capacity") / 512);
    disk.verified_load(&mut model, 1, 5_000).expect("a correct load");
    disk.verify_all(&mut model).expect("the disk is as written");
}

#[test]
#[ignore = "needs qemu-storage-daemon; run: tests/peer/run"]
fn a_disk_of_the_peer_is_refused_and_the_peer_refuses_ours() {
    let image = Image::on_disk(DISK);
    let target = Target::start();
    let parameters = json!({"name": "disk0", "filename": image.path(), "block_size": 512});
    let peer = Peer::start(&Backing::File(image.path().to_path_buf()), 1);
    let refused = target.rpc("bdev_aio_create", parameters.clone()).expect_err("the peer has it").to_string();
    assert!(refused.contains("held by another process"), "{refused}");
    drop(peer);
    target.call("bdev_aio_create", parameters);

    let node = format!("driver=file,node-name=disk,filename={}", image.path().display());
    let home = tempfile::tempdir().expect("a directory");
    let socket = home.path().join("blk.sock");
    let export = format!(
        "type=vhost-user-blk,id=x,node-name=disk,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    );
    let output = Command::new(Peer::PROGRAM).args(["--blockdev", &node, "--export", &export]).output();
    let output = output.expect("the peer can be started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("lock"), "{said}");
}
