//! What idle neighbours on its core cost a disk that works: requests a second beside none, 50 and 200 of them, which
//! nobody is connected to, or a front-end that has nothing to do.
//!
//! Each number of neighbours is a target of its own, all on one processor: one that is not measured sleeps. They are
//! measured in turn.

use serde_json::json;
use std::os::unix::net::UnixStream;
use std::path::Path;
use tests::client::blkio::{Blkio, Options};
use tests::target::Target;

use crate::peer::{pin, processors};
use crate::table::{Bar, Table};
use crate::{Effort, median};

/// Neighbours, and whether a front-end is connected to each. The first is what the others are held against.
const NEIGHBOURS: [(usize, bool); 4] = [(0, false), (50, false), (200, false), (100, true)];
/// Bytes of a request.
const BYTES: usize = 4096;
/// Requests out.
const DEPTH: usize = 64;
/// What is left of the requests a second that there are without neighbours, at least, in percent.
const LEFT_MIN: f64 = 95.0;

fn null(target: &Target, name: &str) {
    target.call("bdev_null_create", json!({"name": name, "num_blocks": 1 << 21, "block_size": 512}));
    target.serve(name, name);
}

fn open(socket: &Path) -> Blkio {
    let options =
        Options { depth: DEPTH, bytes_max: BYTES, queue_size: 512, poll: true, ..Options::default() };
    Blkio::open(socket, options).unwrap_or_else(|error| panic!("{}: {error}", socket.display()))
}

/// Prints a row for each number of neighbours.
pub(crate) fn measure(effort: &Effort, table: &mut Table) {
    let (back_end, client) = processors(table);
    let cores = format!("{:#x}", 1u128 << back_end);
    let mut connections = Vec::new();
    let targets = NEIGHBOURS.map(|(count, connected)| {
        let target = Target::start_with(&["--cores", &cores]);
        null(&target, "busy");
        for number in 0..count {
            let name = format!("idle{number}");
            null(&target, &name);
            if connected {
                let stream = UnixStream::connect(target.path("vhost").join(&name));
                connections.push(stream.expect("it listens"));
            }
        }
        target
    });
    pin(client);
    let mut disks = targets.each_ref().map(|target| open(&target.path("vhost").join("busy")));
    let mut iops = [const { Vec::new() }; NEIGHBOURS.len()];
    for round in 0..effort.rounds {
        for (disk, iops) in disks.iter_mut().zip(&mut iops) {
            let timing = disk.timed(false, BYTES, round as u64, effort.duration);
            iops.push(timing.unwrap_or_else(|error| panic!("{error}")).iops());
        }
    }
    let medians = iops.map(median);
    for ((count, connected), iops) in NEIGHBOURS.into_iter().zip(medians) {
        let what = if connected { "connected" } else { "listening" };
        table.row(&format!("null read, beside {count} {what}"), iops, "IOPS", None);
        if count > 0 {
            let left = 100.0 * iops / medians[0];
            let bar = Bar::at_least(LEFT_MIN, left);
            table.row(&format!("null read, beside {count} {what}"), left, "% of alone", bar);
        }
    }
}
