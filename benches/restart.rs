//! How long a guest waits when the target was killed and starts again: from exec to the first used entry.
//!
//! The front-end tries to connect from the moment of the exec on, has a request out, and reconnects as QEMU does. A malloc disk
//! has no fence to wait for. For a file, the fence (the dead process's I/O must have ended) is part of the time, and what the
//! target says that it waited for it is printed apart.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::client::frontend::{Frontend, Options};
use tests::client::load::{STATUS_OK, kind};
use tests::client::request::{Requester, wait_used};
use tests::image::Image;
use tests::target::Target;

use crate::table::{Bar, Table};
use crate::{Effort, median};

/// Bytes of the disks.
const DISK: u64 = 64 << 20;
/// The bar for the median, with a malloc disk, in milliseconds.
const BAR_MS: f64 = 50.0;
/// Kills and starts of each kind of disk.
const ROUNDS: usize = 20;
const WAIT: Duration = Duration::from_secs(30);

/// One kill and start: from exec to the first used entry, and to the RPC's first answer.
fn round(target: &mut Target, frontend: &mut Frontend, requester: &Requester) -> (Duration, Duration) {
    target.kill9();
    frontend.disconnect();
    requester.write_header(frontend, kind::IN, 0);
    let chain = requester.chain(4096, true);
    frontend.rings[0].push(&frontend.memory, &chain, None).expect("free descriptors");
    frontend.publish(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let front_end = scope.spawn(|| {
            frontend.reconnect(WAIT).unwrap_or_else(|error| panic!("{error}"));
            wait_used(frontend, 0, WAIT).unwrap_or_else(|error| panic!("{error}"));
            let served = started.elapsed();
            assert_eq!(requester.status(frontend), STATUS_OK);
            served
        });
        let answered = target.restart();
        (front_end.join().expect("the front-end"), answered)
    })
}

/// What the target's log says that it waited for other processes' I/O, every time so far.
fn fence_waits(target: &Target) -> Vec<Duration> {
    let log = target.log();
    let numbers = log.split("waited_us=").skip(1).filter_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    numbers.map(Duration::from_micros).collect()
}

/// Prints how long a front-end and an operator wait, for a malloc disk and for a file.
pub(crate) fn measure(_: &Effort, table: &mut Table) {
    let image = Image::on_disk(DISK);
    for bdev in ["malloc", "uring"] {
        let mut target = Target::start();
        if bdev == "malloc" {
            target.call(
                "bdev_malloc_create",
                json!({"name": bdev, "num_blocks": DISK / 512, "block_size": 512}),
            );
        } else {
            target.call("bdev_uring_create", json!({"name": bdev, "filename": image.name()}));
        }
        let socket = target.serve(bdev, "vhost.0");
        let mut frontend = Frontend::connect_and_start(&socket, Options::default())
            .unwrap_or_else(|error| panic!("{error}"));
        let requester = Requester::new(&mut frontend, 1, 4096).unwrap_or_else(|error| panic!("{error}"));
        let (served, answered): (Vec<Duration>, Vec<Duration>) =
            (0..ROUNDS).map(|_| round(&mut target, &mut frontend, &requester)).unzip();
        let ms = |durations: Vec<Duration>| {
            durations.iter().map(|one| one.as_secs_f64() * 1e3).collect::<Vec<_>>()
        };
        let served = ms(served);
        let most = served.iter().copied().fold(0.0, f64::max);
        let served = median(served);
        let bar = if bdev == "malloc" { Bar::at_most(BAR_MS, served) } else { None };
        table.row(&format!("{bdev}, exec to the first used entry"), served, "ms", bar);
        table.row(&format!("{bdev}, the same, slowest of {ROUNDS}"), most, "ms", None);
        let waits = ms(fence_waits(&target));
        if !waits.is_empty() {
            let what = format!("{bdev}, of it the fence, {} of {ROUNDS} starts waited", waits.len());
            table.row(&what, median(waits), "ms", None);
        }
        table.row(&format!("{bdev}, exec to the first RPC answer"), median(ms(answered)), "ms", None);
    }
}
