//! The target under a real guest: QEMU connects and reconnects, Linux drives the rings, fio verifies every block.
//!
//! Each kill is SIGKILL at a drawn moment (an orderly stop is SIGTERM), followed by a start on the same state directory and no
//! call at all. The guest must not notice: its script succeeds, and its kernel says nothing of level warning or worse. The draws
//! come from a seed that is printed; `REPRISE_VM_SEED=N` repeats them (the moments, not what the machines were doing just then).

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::Draw;
use tests::target::Target;
use tests::vm::{Disk, Guest, Lab, Machine, Qemu};

/// From power-on to the script's first mark: 3 s on an idle machine, far more on one that is building.
const BOOT_WAIT: Duration = Duration::from_secs(120);
/// For one round of verified writes, with a kill in it: 5 s on an idle machine.
const ROUND_WAIT: Duration = Duration::from_secs(60);
/// From a restart until the guest's requests are served again. QEMU 7.2 tries to reconnect every second.
const SERVE_WAIT: Duration = Duration::from_secs(30);
/// Bytes of the disks here: each of up to 4 queues writes 8 MiB, and the last block is the guest's notebook.
const DISK_BYTES: u64 = 40 << 20;
/// Bytes of a logical block of the disks here.
const BLOCK_BYTES: u64 = 512;
/// How long an idle guest is watched.
const IDLE_WATCH: Duration = Duration::from_secs(30);
/// An idle target may use this part of one core, over all its threads: 1 of this many.
const IDLE_SHARE: u32 = 100;

/// The kinds of disk.
#[derive(Debug, Clone, Copy)]
enum Bdev {
    Malloc,
    Uring,
    Aio,
}

/// What every test here begins with: a lab, a target with one disk, and a guest's machine for it.
struct Scene {
    lab: Lab,
    target: Target,
    socket: PathBuf,
    /// The controller offers packed rings.
    packed: bool,
}

impl Scene {
    fn new(bdev: Bdev) -> Scene {
        Self::with_rings(bdev, false)
    }

    fn with_rings(bdev: Bdev, packed: bool) -> Scene {
        let lab = Lab::open();
        let target = Target::start();
        let image = |target: &Target| target.image("disk", DISK_BYTES).display().to_string();
        let _: Value = match bdev {
            Bdev::Malloc => target.call(
                "bdev_malloc_create",
                json!({ "name": "disk0", "num_blocks": DISK_BYTES / BLOCK_BYTES, "block_size": BLOCK_BYTES }),
            ),
            Bdev::Uring => target.call(
                "bdev_uring_create",
                json!({ "name": "disk0", "filename": image(&target), "block_size": BLOCK_BYTES }),
            ),
            Bdev::Aio => target.call(
                "bdev_aio_create",
                json!({ "name": "disk0", "filename": image(&target), "block_size": BLOCK_BYTES }),
            ),
        };
        target.call(
            "vhost_create_blk_controller",
            json!({ "ctrlr": "vhost.0", "dev_name": "disk0", "packed_ring": packed }),
        );
        let socket = target.path("vhost").join("vhost.0");
        Scene { lab, target, socket, packed }
    }

    /// A machine with as many CPUs as queues, which runs `script` with DISK, QUEUES and MIB set, if its driver uses the
    /// layout of rings that it should (feature bit 34, RING_PACKED).
    fn machine(&self, qemu: Qemu, queues: u16, script: &str) -> Machine {
        Machine {
            qemu,
            cpus: queues,
            disks: vec![Disk { socket: self.socket.clone(), queues, packed: self.packed }],
            nvme: None,
            programs: Vec::new(),
            reboots: false,
            script: format!(
                "DISK=vda QUEUES={queues} MIB=8\n\
                 [ $(cut -c35 /sys/block/vda/device/features) = {} ] || exit 34\n{script}",
                u8::from(self.packed)
            ),
        }
    }

    /// What this incarnation of the target has completed, by one of the counters of `bdev_get_iostat`.
    fn counted(&self, counter: &str) -> u64 {
        let statistics = self.target.call("bdev_get_iostat", json!({ "name": "disk0" }));
        statistics["bdevs"][0][counter].as_u64().expect("a count of requests")
    }

    /// Reads and writes that this incarnation of the target has completed.
    fn requests_served(&self) -> u64 {
        self.counted("num_read_ops") + self.counted("num_write_ops")
    }

    /// Requests that the incarnation that runs or ran last took over from the one before it.
    fn replayed(&self) -> usize {
        self.target.recorded_events().iter().filter(|name| *name == "request-replayed").count()
    }

    /// Waits until this incarnation has begun to serve the rings of a guest that goes on.
    fn wait_rings(&self, guest: &mut Guest) {
        let started = Instant::now();
        while !self.target.recorded_events().iter().any(|name| name == "queue-started") {
            guest.assert_runs();
            assert!(started.elapsed() < SERVE_WAIT, "no ring ran for {SERVE_WAIT:?} after a restart");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until this incarnation has completed a request of a guest that goes on.
    fn wait_served(&self, guest: &mut Guest) {
        let started = Instant::now();
        while self.requests_served() == 0 {
            guest.assert_runs();
            assert!(
                started.elapsed() < SERVE_WAIT,
                "no request was served for {SERVE_WAIT:?} after a restart"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Draws from `REPRISE_VM_SEED`, or from the clock; the seed is printed either way.
fn drawn() -> Draw {
    let seed = match std::env::var("REPRISE_VM_SEED") {
        Ok(seed) => seed.parse().expect("REPRISE_VM_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            u64::from(now.expect("a clock after 1970").subsec_nanos())
        }
    };
    println!("REPRISE_VM_SEED={seed}");
    Draw::new(seed)
}

fn milliseconds_below(draw: &mut Draw, bound: u64) -> Duration {
    Duration::from_millis(draw.below(bound))
}

/// Rounds of verified writes, and no kill.
fn verify(bdev: Bdev, qemu: Qemu, queues: u16) {
    let scene = Scene::new(bdev);
    let mut guest = scene.machine(qemu, queues, include_str!("../vm/guest/fio-rounds.sh")).boot(&scene.lab);
    assert_eq!(guest.wait_mark("queues", BOOT_WAIT), queues.to_string());
    guest.wait_mark("round 2", 2 * ROUND_WAIT);
    guest.say("enough");
    guest.end(ROUND_WAIT).assert_clean();
}

/// How the lives of a target end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By SIGKILL.
    Killed,
    /// By SIGTERM: what is in flight is drained.
    Stopped,
}

/// What several lives of a target came to.
#[derive(Debug, Default)]
struct Lives {
    requests: u64,
    zeroes: u64,
    discards: u64,
    replayed: usize,
}

impl Lives {
    /// Adds what the life that runs now has done.
    fn add(&mut self, scene: &Scene) {
        self.requests += scene.requests_served();
        self.zeroes += scene.counted("num_write_zeroes_ops");
        self.discards += scene.counted("num_unmap_ops");
        self.replayed += scene.replayed();
    }
}

/// Kills that hit nothing in flight, as a multiple of those asked for, before a run gives up.
const KILLS_IN_VAIN: u32 = 5;

/// Runs a script in rounds while the target ends, and is started again, `ends` times. The guest must not notice. A fast disk
/// has nothing in flight at most moments: kills go on until one has hit something, or there is no more hope.
fn lives(mut scene: Scene, qemu: Qemu, queues: u16, script: &str, ends: u32, end: End) -> Lives {
    let mut draw = drawn();
    let mut guest = scene.machine(qemu, queues, script).boot(&scene.lab);
    assert_eq!(guest.wait_mark("queues", BOOT_WAIT), queues.to_string());
    let mut lives = Lives::default();
    for life in 1..=KILLS_IN_VAIN * ends {
        if life > ends {
            scene.wait_served(&mut guest);
            if end == End::Stopped || lives.replayed + scene.replayed() > 0 {
                break;
            }
        }
        // Three incarnations of four do some work first; the fourth may end at any point of its start and of QEMU's
        // reconnection, before it has served anything. Not with the older QEMU, which never comes again when it loses its
        // back-end in the middle of vhost_dev_init (it forgets its handler of the next connection).
        let ran = if draw.chance(3, 4) {
            scene.wait_served(&mut guest);
            milliseconds_below(&mut draw, 800)
        } else if qemu == Qemu::Debian12 {
            scene.wait_rings(&mut guest);
            milliseconds_below(&mut draw, 100)
        } else {
            milliseconds_below(&mut draw, 1500)
        };
        std::thread::sleep(ran);
        lives.add(&scene);
        match end {
            End::Killed => scene.target.kill9(),
            End::Stopped => {
                let status = scene.target.stop();
                assert!(status.success(), "the target stops with {status}");
            }
        }
        let away = milliseconds_below(&mut draw, 300);
        std::thread::sleep(away);
        let start = scene.target.restart();
        println!("life {life} {end:?}: so far {lives:?}; away for {away:?}, answers after {start:?}");
    }
    scene.wait_served(&mut guest);
    guest.say("enough");
    let ended = guest.end(2 * ROUND_WAIT);
    ended.assert_clean();
    lives.add(&scene);
    let rounds = ended.console.iter().filter(|line| line.starts_with("MARK round")).count();
    println!("at least {ends} lives {end:?}, {rounds} rounds, {lives:?}");
    lives
}

/// Rounds of verified writes during which the target is killed and started again `kills` times.
fn verify_through_kills(scene: Scene, qemu: Qemu, queues: u16, kills: u32) {
    let lives = lives(scene, qemu, queues, include_str!("../vm/guest/fio-rounds.sh"), kills, End::Killed);
    assert!(
        lives.replayed > 0,
        "no kill hit a request that the target had taken: this run has shown nothing"
    );
}

/// The same with orderly ends: nothing is in flight at any of them, so nothing is replayed.
fn verify_through_stops(scene: Scene, qemu: Qemu, queues: u16, stops: u32) {
    let lives = lives(scene, qemu, queues, include_str!("../vm/guest/fio-rounds.sh"), stops, End::Stopped);
    assert_eq!(lives.replayed, 0, "requests were left behind by a target that was to drain");
}

/// Zeroes and holes, compared byte by byte, beside a load, through kills.
fn zeroes_through_kills(bdev: Bdev, qemu: Qemu, kills: u32) {
    let lives = lives(Scene::new(bdev), qemu, 2, include_str!("../vm/guest/zeroes.sh"), kills, End::Killed);
    assert!(lives.zeroes > 0 && lives.discards > 0, "the guest asked for neither: {lives:?}");
    assert!(
        lives.replayed > 0,
        "no kill hit a request that the target had taken: this run has shown nothing"
    );
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn verify_malloc_on_two_queues() {
    verify(Bdev::Malloc, Qemu::Debian12, 2);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn verify_malloc_on_four_queues_newer_qemu() {
    verify(Bdev::Malloc, Qemu::Debian13Backports, 4);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn verify_uring_on_two_queues_newer_qemu() {
    verify(Bdev::Uring, Qemu::Debian13Backports, 2);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn verify_uring_on_four_queues() {
    verify(Bdev::Uring, Qemu::Debian12, 4);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn verify_aio_on_two_queues() {
    verify(Bdev::Aio, Qemu::Debian12, 2);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn twenty_kills_on_two_queues() {
    verify_through_kills(Scene::new(Bdev::Uring), Qemu::Debian12, 2, 20);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn twenty_kills_on_four_queues_newer_qemu() {
    verify_through_kills(Scene::new(Bdev::Uring), Qemu::Debian13Backports, 4, 20);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn five_kills_of_an_aio_disk() {
    verify_through_kills(Scene::new(Bdev::Aio), Qemu::Debian12, 2, 5);
}

/// After a kill QEMU knows nothing of where a packed ring stands, so everything comes from the inflight region.
#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn twenty_kills_of_packed_rings() {
    verify_through_kills(Scene::with_rings(Bdev::Uring, true), Qemu::Debian12, 2, 20);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn twenty_kills_of_packed_rings_newer_qemu() {
    verify_through_kills(Scene::with_rings(Bdev::Uring, true), Qemu::Debian13Backports, 4, 20);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn five_stops_of_packed_rings() {
    verify_through_stops(Scene::with_rings(Bdev::Uring, true), Qemu::Debian12, 2, 5);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn ten_stops_on_two_queues() {
    verify_through_stops(Scene::new(Bdev::Uring), Qemu::Debian12, 2, 10);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn ten_stops_of_an_aio_disk_newer_qemu() {
    verify_through_stops(Scene::new(Bdev::Aio), Qemu::Debian13Backports, 2, 10);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn zeroes_and_holes_through_kills() {
    zeroes_through_kills(Bdev::Uring, Qemu::Debian12, 10);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn zeroes_and_holes_of_an_aio_disk_through_kills_newer_qemu() {
    zeroes_through_kills(Bdev::Aio, Qemu::Debian13Backports, 10);
}

/// The guest lets go of its driver and takes it up again: with the target restarted before, restarted in between, and killed
/// with requests under way.
fn reload_after_kill(qemu: Qemu) {
    let mut draw = drawn();
    let mut scene = Scene::new(Bdev::Uring);
    let mut guest = scene.machine(qemu, 2, include_str!("../vm/guest/reload.sh")).boot(&scene.lab);

    guest.wait_mark("idle", BOOT_WAIT + ROUND_WAIT);
    scene.target.kill9();
    scene.target.restart();
    guest.say("reload-1");

    guest.wait_mark("idle", ROUND_WAIT);
    scene.target.kill9();
    guest.say("reload-2");
    std::thread::sleep(milliseconds_below(&mut draw, 1500));
    scene.target.restart();

    guest.wait_mark("busy", ROUND_WAIT);
    std::thread::sleep(milliseconds_below(&mut draw, 500));
    scene.target.kill9();
    guest.say("reload-3");
    std::thread::sleep(milliseconds_below(&mut draw, 1500));
    scene.target.restart();

    guest.end(2 * ROUND_WAIT).assert_clean();
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn driver_reload_after_kill() {
    reload_after_kill(Qemu::Debian12);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn driver_reload_after_kill_newer_qemu() {
    reload_after_kill(Qemu::Debian13Backports);
}

/// The guest is reset with requests in flight, and nothing of its old life may reach the new one: reset just after the target
/// is back (the replay is running), and reset while it is away (the replay must not happen).
fn reboot_after_kill(qemu: Qemu) {
    let mut draw = drawn();
    let mut scene = Scene::new(Bdev::Uring);
    let mut machine = scene.machine(qemu, 2, include_str!("../vm/guest/reboot.sh"));
    machine.reboots = true;
    let mut guest = machine.boot(&scene.lab);
    let busy = |guest: &mut Guest, boot: &str, draw: &mut Draw| {
        guest.wait_mark(boot, BOOT_WAIT + ROUND_WAIT);
        std::thread::sleep(milliseconds_below(draw, 500));
    };

    busy(&mut guest, "boot 1", &mut draw);
    scene.target.kill9();
    scene.target.restart();
    scene.wait_served(&mut guest);
    guest.say("reset");

    busy(&mut guest, "boot 2", &mut draw);
    scene.target.kill9();
    guest.say("reset");
    std::thread::sleep(milliseconds_below(&mut draw, 2000));
    scene.target.restart();

    guest.wait_mark("boot 3", BOOT_WAIT + ROUND_WAIT);
    guest.end(2 * ROUND_WAIT).assert_clean();
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn guest_reset_after_kill() {
    reboot_after_kill(Qemu::Debian12);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn guest_reset_after_kill_newer_qemu() {
    reboot_after_kill(Qemu::Debian13Backports);
}

/// Everything but reads and writes: serial, read-only, discard, write cache, and a resize under load.
fn features(qemu: Qemu) {
    let scene = Scene::new(Bdev::Uring);
    scene.target.call(
        "bdev_malloc_create",
        json!({ "name": "fixed", "num_blocks": DISK_BYTES / BLOCK_BYTES, "block_size": BLOCK_BYTES }),
    );
    scene.target.call(
        "vhost_create_blk_controller",
        json!({ "ctrlr": "vhost.1", "dev_name": "fixed", "readonly": true }),
    );
    let mut machine = scene.machine(qemu, 2, include_str!("../vm/guest/features.sh"));
    let socket = scene.target.path("vhost").join("vhost.1");
    machine.disks.push(Disk { socket, queues: 2, packed: false });
    let mut guest = machine.boot(&scene.lab);
    assert_ne!(guest.wait_mark("serial", BOOT_WAIT), "");

    let sectors = |bytes: u64| (bytes / 512).to_string();
    assert_eq!(guest.wait_mark("size", 2 * ROUND_WAIT), sectors(DISK_BYTES));
    let image = OpenOptions::new().write(true).open(scene.target.path("disk"));
    image.and_then(|image| image.set_len(2 * DISK_BYTES)).expect("the image grows");
    scene.target.call("bdev_uring_rescan", json!({ "name": "disk0" }));
    assert_eq!(guest.wait_mark("size", ROUND_WAIT), sectors(2 * DISK_BYTES));
    guest.end(ROUND_WAIT).assert_clean();
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn disk_features() {
    features(Qemu::Debian12);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn disk_features_newer_qemu() {
    features(Qemu::Debian13Backports);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn an_idle_guest_costs_nothing() {
    let scene = Scene::new(Bdev::Uring);
    let mut guest = scene.machine(Qemu::Debian12, 2, include_str!("../vm/guest/idle.sh")).boot(&scene.lab);
    guest.wait_mark("idle", BOOT_WAIT);
    let (before, started) = (scene.target.processor_time(), Instant::now());
    std::thread::sleep(IDLE_WATCH);
    let (used, watched) = (scene.target.processor_time() - before, started.elapsed());
    println!(
        "an idle guest cost {used:?} of processor time in {watched:?}, over all threads; {before:?} before that"
    );
    assert!(!before.is_zero(), "the clock that this test reads does not run");
    guest.say("enough");
    guest.end(ROUND_WAIT).assert_clean();
    assert!(used < watched / IDLE_SHARE, "{used:?} in {watched:?} is not below 1/{IDLE_SHARE} of a core");
}
