//! What the NVMe driver costs a command: 4 KiB reads submitted and polled on one core, on real shared memory, against a
//! controller in memory.
//!
//! Two figures. The driver's: only `submit` and `poll` are timed, and the completions are written before the timed poll
//! begins. The raw one: the whole loop with the controller in it, which takes each command and writes its completion (and
//! moves no data). What reading the clock costs is measured and taken off the first. Instructions are counted by callgrind,
//! of the timed part alone.
//!
//! With shadow doorbells the controller keeps EventIdx far away, as one that polls does.

use hw::HostWindow;
use runtime::Window;
use stack::nvme::bits::{CQE_LEN, Completion, SQE_LEN, Status, doorbell};
use stack::nvme::driver::{Ended, Operation, Options};
use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::{Duration, Instant};
use tests::core::on_core;
use tests::nvme::fake::Fake;
use tests::nvme::rig::{Channel, Rig};

use crate::table::{Bar, Table};
use crate::{Effort, median};

/// Bytes of one request.
const PAYLOAD: u64 = 4096;
/// Commands of one measurement.
const COMMANDS: u64 = 2_000_000;
/// Measurements of each kind.
const MEASUREMENTS: usize = 9;
/// Commands out.
const DEPTHS: [u32; 3] = [1, 32, 128];
/// At this depth, a command takes at most so many nanoseconds of the driver's.
const BAR_DEPTH: u32 = 128;
const BAR_NS: f64 = 60.0;
/// Commands of a run under callgrind.
const COUNTED_COMMANDS: u64 = 40_000;
/// The queue that the only channel has.
const QUEUE: u16 = 1;

/// The controller's side of one queue pair, by hand.
struct Controller {
    submissions: HostWindow,
    completions: HostWindow,
    entries: u16,
    head: u16,
    tail: u16,
    phase: bool,
    events: Option<HostWindow>,
}

impl Controller {
    /// Takes over from the fake one after a single command.
    fn new(fake: &Fake) -> Self {
        let (submissions, completions, entries) = fake.queue_pair(QUEUE);
        let events = fake.shadow_pages().map(|(_, events)| events);
        Self { submissions, completions, entries, head: 1, tail: 1, phase: true, events }
    }

    /// Completes `count` commands.
    fn complete(&mut self, count: u32) {
        for _ in 0..count {
            let id = self.submissions.load_u16(u64::from(self.head) * SQE_LEN + 2, Relaxed);
            self.head = (self.head + 1) % self.entries;
            let completion = Completion {
                sq_head: self.head,
                sq_id: QUEUE,
                id,
                status: Status::SUCCESS,
                phase: self.phase,
                ..Default::default()
            };
            let [a, b, c, d] = completion.dwords();
            let at = u64::from(self.tail) * CQE_LEN;
            self.completions.store_u64(at, u64::from(a) | u64::from(b) << 32, Relaxed);
            self.completions.store_u64(at + 8, u64::from(c) | u64::from(d) << 32, Release);
            self.tail = (self.tail + 1) % self.entries;
            self.phase ^= self.tail == 0;
        }
        if let Some(events) = &self.events {
            for completion in [false, true] {
                let far = u32::from(self.head.wrapping_add(0x8000));
                events.store_u32(doorbell(QUEUE, completion, 0), far, Relaxed);
            }
        }
    }
}

/// A channel that is up, and its controller.
struct Bench {
    rig: Rig,
    channel: Channel,
    controller: Controller,
    windows: Vec<HostWindow>,
    ended: Vec<Ended>,
    _mapping: Box<dyn std::any::Any>,
}

/// What was measured.
#[derive(Clone, Copy)]
struct Measured {
    driver_ns: f64,
    raw_ns: f64,
    doorbells: f64,
}

impl Bench {
    fn new(platform: &hw::HostPlatform, shadow_doorbells: bool) -> Self {
        // No interrupts: a core that polls.
        let options = Options { shadow_doorbells, interrupts: false, ..Options::default() };
        let mut rig = Rig::new(platform, Arc::new(Fake::default()), options);
        rig.ready();
        let mut channel = rig.channel(0);
        let (memory, mapping) = rig.memory(PAYLOAD * 128);
        let windows: Vec<HostWindow> =
            (0..128).map(|at| memory.slice(at * PAYLOAD, PAYLOAD).expect("inside")).collect();
        rig.run(&mut channel, Operation::Read, 0, PAYLOAD, &windows[..1]).expect("it reads");
        let controller = Controller::new(&rig.fake);
        Self { rig, channel, controller, windows, ended: Vec::with_capacity(128), _mapping: mapping }
    }

    /// The part that is timed: submits `count` reads, and polls once.
    #[inline(never)]
    fn timed_part(&mut self, count: u32) {
        for token in 0..count {
            let window = &self.windows[token as usize..=token as usize];
            let lba = u64::from(token) * 8;
            self.channel.submit(self.rig.now, token, Operation::Read, lba, PAYLOAD, window);
        }
        self.channel.poll(self.rig.now, &mut self.ended);
    }

    fn measure(&mut self, depth: u32, commands: u64) -> Measured {
        let rounds = commands / u64::from(depth);
        let clock = clock_cost();
        let doorbells = self.channel.counters().doorbell_writes;
        let mut timed = Duration::ZERO;
        for _ in 0..rounds {
            let begun = Instant::now();
            self.timed_part(depth);
            timed += begun.elapsed();
            self.controller.complete(depth);
            let begun = Instant::now();
            self.timed_part(0);
            timed += begun.elapsed();
            assert_eq!(self.ended.len(), depth as usize, "all of them, at once");
            self.ended.clear();
        }
        let doorbells = self.channel.counters().doorbell_writes - doorbells;
        let begun = Instant::now();
        for _ in 0..rounds {
            self.timed_part(depth);
            self.controller.complete(depth);
            self.timed_part(0);
            black_box(&self.ended);
            self.ended.clear();
        }
        let raw = begun.elapsed();
        let commands = (rounds * u64::from(depth)) as f64;
        Measured {
            driver_ns: (timed.as_nanos() as f64 - clock * 2.0 * rounds as f64) / commands,
            raw_ns: raw.as_nanos() as f64 / commands,
            doorbells: doorbells as f64 / commands,
        }
    }
}

/// Nanoseconds that a timed part of nothing lasts.
fn clock_cost() -> f64 {
    let rounds = 100_000;
    let mut timed = Duration::ZERO;
    for _ in 0..rounds {
        let begun = Instant::now();
        timed += black_box(begun).elapsed();
    }
    timed.as_nanos() as f64 / f64::from(rounds)
}

/// The first argument of this program under callgrind; then depth and whether there are shadow doorbells.
const COUNTED: &str = "--counted-nvme";

/// Runs what callgrind counts, if that is what this program was started for.
pub(crate) fn run_counted() -> bool {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(COUNTED) {
        return false;
    }
    let mut number = || arguments.next().and_then(|text| text.parse().ok()).expect("depth and shadow");
    let (depth, shadow): (u32, u32) = (number(), number());
    on_core(None, move |platform| Bench::new(&platform, shadow == 1).measure(depth, COUNTED_COMMANDS).raw_ns);
    true
}

/// Instructions of the timed part per command, by callgrind. An error says what to do.
fn instructions(depth: u32, shadow: bool) -> Result<f64, String> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*timed_part*"])
        .arg(std::env::current_exe().expect("this program's path"))
        .args([COUNTED, &depth.to_string(), &u32::from(shadow).to_string()])
        .output()
        .map_err(|_| "valgrind is not installed, so no instructions: apt-get install valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let collected = text.lines().find_map(|line| line.split("Collected : ").nth(1));
    let collected: Option<f64> =
        collected.filter(|_| output.status.success()).and_then(|count| count.trim().parse().ok());
    let collected =
        collected.ok_or_else(|| format!("callgrind counted nothing ({}): {text}", output.status))?;
    // Both loops of a measurement are in it.
    Ok(collected / (2 * (COUNTED_COMMANDS / u64::from(depth)) * u64::from(depth)) as f64)
}

/// Prints each depth's figures per command, with and without shadow doorbells.
pub(crate) fn measure(_: &Effort, table: &mut Table) {
    for depth in DEPTHS {
        let (mut off, mut on) = (Vec::new(), Vec::new());
        for _ in 0..MEASUREMENTS {
            off.push(on_core(None, move |platform| Bench::new(&platform, false).measure(depth, COMMANDS)));
            on.push(on_core(None, move |platform| Bench::new(&platform, true).measure(depth, COMMANDS)));
        }
        for (shadow, measured) in [(false, off), (true, on)] {
            let of = |value: fn(&Measured) -> f64| median(measured.iter().map(value).collect());
            let name =
                format!("NVMe driver, depth {depth}{}", if shadow { ", shadow doorbells" } else { "" });
            let driver_ns = of(|measured| measured.driver_ns);
            let bar = if depth == BAR_DEPTH { Bar::at_most(BAR_NS, driver_ns) } else { None };
            table.row(&name, driver_ns, "ns/command", bar);
            table.row(
                &format!("{name}, with its controller"),
                of(|measured| measured.raw_ns),
                "ns/command",
                None,
            );
            table.row(&name, of(|measured| measured.doorbells), "doorbell writes/command", None);
            match instructions(depth, shadow) {
                Ok(count) => table.row(&name, count, "instructions/command", None),
                Err(why) => table.note(why),
            }
        }
    }
}
