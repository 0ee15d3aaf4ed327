//! How long a guest waits when the target was killed and starts again: from exec to the first used entry.
//!
//!     cargo bench -p tests --bench restart [-- --rounds N]
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

/// Bytes of the disks.
const DISK: u64 = 64 << 20;
/// The bar for the median, with a malloc disk.
const BAR: Duration = Duration::from_millis(50);
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

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let rounds = arguments
        .iter()
        .position(|argument| argument == "--rounds")
        .and_then(|at| arguments.get(at + 1))
        .map_or(20, |text| text.parse().expect("--rounds takes a number"));
    let image = Image::on_disk(DISK);
    println!("kill -9, exec, reconnect with one request out; {rounds} rounds, milliseconds");
    println!(
        "{:<7} {:>22} {:>8} {:>8} {:>24}",
        "disk", "first used entry: median", "least", "most", "first RPC answer: median"
    );
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
        let (mut served, mut answered): (Vec<Duration>, Vec<Duration>) =
            (0..rounds).map(|_| round(&mut target, &mut frontend, &requester)).unzip();
        served.sort();
        answered.sort();
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let median = served[served.len() / 2];
        println!(
            "{bdev:<7} {:>24.1} {:>8.1} {:>8.1} {:>24.1}",
            ms(median),
            ms(served[0]),
            ms(served[served.len() - 1]),
            ms(answered[answered.len() / 2])
        );
        let mut waits = fence_waits(&target);
        if !waits.is_empty() {
            waits.sort();
            println!(
                "        of it the fence: {} of {rounds} starts waited, median {:.1}, most {:.1}",
                waits.len(),
                ms(waits[waits.len() / 2]),
                ms(waits[waits.len() - 1])
            );
        }
        if bdev == "malloc" {
            let verdict = if median < BAR { "met" } else { "missed" };
            println!("        the bar for malloc is {} ms: {verdict}", BAR.as_millis());
        }
    }
}
