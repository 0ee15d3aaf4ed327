//! Cores as threads: what a panic ends, what a stop wakes, what sleep costs, and what a dead process leaves recorded.

use hw::{HostPlatform, HostWakes, Options, Process};
use runtime::{Constructor, CoreId, Event, Instant, Platform, Poll, Poller};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Set in a child process of these tests, to the name of what it shall do.
const CHILD: &str = "REPRISE_TEST_CHILD";
/// Where that child has its files.
const CHILD_DIRECTORY: &str = "REPRISE_TEST_DIRECTORY";

/// A poller of two functions; `arm` answers idle until the moment that the last poll gave.
struct Functions<F> {
    poll: F,
    last: Poll,
}

impl<F: FnMut(Instant) -> Poll> Poller<HostPlatform> for Functions<F> {
    fn poll(&mut self, now: Instant) -> Poll {
        self.last = (self.poll)(now);
        self.last
    }

    fn arm(&mut self, _now: Instant, _wakes: &mut HostWakes) -> Poll {
        self.last
    }
}

fn poller(poll: impl FnMut(Instant) -> Poll + 'static) -> Box<dyn Poller<HostPlatform>> {
    Box::new(Functions { poll, last: Poll::Busy })
}

fn constructor<F: FnMut(Instant) -> Poll + 'static>(
    make: impl FnOnce(HostPlatform) -> F + Send + 'static,
) -> Constructor<HostPlatform> {
    Box::new(move |platform| poller(make(platform)))
}

fn options(cores: usize) -> Options {
    // Cores may share a processor.
    let available = hw::cores::available();
    Options {
        processors: available.iter().copied().cycle().take(cores).collect(),
        poll: false,
        memory_directory: "/dev/shm".into(),
        recorder_directory: None,
    }
}

/// Runs a test of this file as a process of its own.
fn child(test: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1", test])
        .env(CHILD, test)
        .env(CHILD_DIRECTORY, directory)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn is_child(test: &str) -> bool {
    std::env::var(CHILD).is_ok_and(|child| child == test)
}

#[test]
fn a_pollers_panic_ends_it_and_nobody_else() {
    let process = Process::new(&options(2)).unwrap();
    let first = constructor(|platform| {
        let gone = Arc::new(AtomicU64::new(0));
        for core in [0, 1, 1] {
            let told = CountDrop(gone.clone());
            platform.start(
                CoreId(core),
                constructor(move |_| {
                    let mut polls = 0;
                    move |_| {
                        let _ended_with_the_poller = &told;
                        polls += 1;
                        assert!(polls < 3, "this panic belongs to the test");
                        Poll::Busy
                    }
                }),
            );
        }
        move |_| if gone.load(Ordering::Relaxed) == 3 { Poll::Done } else { Poll::Busy }
    });
    process.run(first).unwrap();
}

/// Counts when it is dropped.
struct CountDrop(Arc<AtomicU64>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn the_first_pollers_panic_ends_the_process_where_it_stands() {
    const NAME: &str = "the_first_pollers_panic_ends_the_process_where_it_stands";
    if is_child(NAME) {
        let process = Process::new(&options(2)).unwrap();
        // Nothing is dropped: a destructor that ran would print.
        let first = constructor(|_| {
            struct Loud;
            impl Drop for Loud {
                fn drop(&mut self) {
                    eprintln!("a destructor ran");
                }
            }
            let loud = Loud;
            move |_| {
                let _kept = &loud;
                panic!("this panic belongs to the test");
            }
        });
        process.run(first).unwrap();
        return;
    }
    let output = child(NAME, Path::new("")).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{said}");
    assert!(said.contains("this panic belongs to the test"), "{said}");
    assert!(said.contains("the target itself panicked") && !said.contains("a destructor ran"), "{said}");
}

#[test]
fn a_stop_wakes_every_sleeping_core() {
    let process = Process::new(&options(3)).unwrap();
    let stop = process.stop();
    let seen = Arc::new(AtomicU64::new(0));
    let asleep = Arc::new(AtomicU64::new(0));
    let watchers = (seen.clone(), asleep.clone());
    let first = constructor(move |platform: HostPlatform| {
        for core in 1..3 {
            let (seen, asleep) = watchers.clone();
            platform.start(
                CoreId(core),
                constructor(move |platform: HostPlatform| {
                    asleep.fetch_add(1, Ordering::Relaxed);
                    move |_| {
                        if platform.stop_requested() {
                            seen.fetch_add(1, Ordering::Relaxed);
                            return Poll::Done;
                        }
                        // Nothing but the stop will ever wake it.
                        Poll::Idle { until: None }
                    }
                }),
            );
        }
        let seen = watchers.0.clone();
        move |now| {
            if platform.stop_requested() && seen.load(Ordering::Relaxed) == 2 {
                return Poll::Done;
            }
            Poll::Idle { until: platform.stop_requested().then(|| now.after(Duration::from_micros(100))) }
        }
    });
    let asker = std::thread::spawn(move || {
        while asleep.load(Ordering::Relaxed) < 2 {
            std::thread::yield_now();
        }
        // All three are idle now, and soon asleep.
        std::thread::park_timeout(Duration::from_millis(20));
        stop.request();
    });
    process.run(first).unwrap();
    asker.join().unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 2);
}

#[test]
fn pollers_end_on_their_own_core_with_the_process() {
    struct Here(std::thread::ThreadId, Arc<AtomicU64>);
    impl Drop for Here {
        fn drop(&mut self) {
            if std::thread::current().id() == self.0 {
                self.1.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    let ended = Arc::new(AtomicU64::new(0));
    let counted = ended.clone();
    let process = Process::new(&options(2)).unwrap();
    let first = constructor(move |platform: HostPlatform| {
        let running = Arc::new(AtomicU64::new(0));
        for core in [0, 1, 1] {
            let (ended, running) = (counted.clone(), running.clone());
            platform.start(
                CoreId(core),
                constructor(move |_| {
                    let here = Here(std::thread::current().id(), ended);
                    running.fetch_add(1, Ordering::Relaxed);
                    move |_| {
                        let _ended_with_the_poller = &here;
                        Poll::Idle { until: None }
                    }
                }),
            );
        }
        move |_| if running.load(Ordering::Relaxed) == 3 { Poll::Done } else { Poll::Busy }
    });
    process.run(first).unwrap();
    assert_eq!(ended.load(Ordering::Relaxed), 3);
}

#[test]
fn an_idle_core_sleeps() {
    let polls = Arc::new(AtomicU64::new(0));
    let counted = polls.clone();
    let process = Process::new(&options(1)).unwrap();
    let first = constructor(|platform: HostPlatform| {
        let end = platform.now().after(Duration::from_millis(200));
        move |now| {
            counted.fetch_add(1, Ordering::Relaxed);
            if now < end { Poll::Idle { until: Some(end) } } else { Poll::Done }
        }
    });
    process.run(first).unwrap();
    // It polls on for 30 µs at the beginning, and may be woken early now and then.
    let polls = polls.load(Ordering::Relaxed);
    assert!(polls < 20_000, "an idle core polled {polls} times in 200 ms");
}

#[test]
fn a_core_that_was_asked_to_poll_never_sleeps() {
    let process = Process::new(&Options { poll: true, ..options(1) }).unwrap();
    let first = constructor(|platform: HostPlatform| {
        let never = platform.now().after(Duration::from_secs(3600));
        let mut polls = 0;
        move |now| {
            polls += 1;
            assert!(now < never);
            // A core that slept would be woken in an hour.
            if polls < 1_000_000 { Poll::Idle { until: Some(never) } } else { Poll::Done }
        }
    });
    process.run(first).unwrap();
}

#[test]
fn quiet_pollers_leave_a_busy_core_to_the_one_that_works() {
    const QUIET: u64 = 200;
    const LONG: Duration = Duration::from_millis(300);
    let process = Process::new(&options(1)).unwrap();
    let polls: Vec<_> = (0..QUIET).map(|_| Arc::new(AtomicU64::new(0))).collect();
    let counted = polls.clone();
    let first = constructor(move |platform: HostPlatform| {
        for polls in counted {
            let quiet = constructor(move |_| {
                move |now| {
                    polls.fetch_add(1, Ordering::Relaxed);
                    // As one with sockets to look at.
                    Poll::Idle { until: Some(now) }
                }
            });
            platform.start(CoreId(0), quiet);
        }
        let end = platform.now().after(LONG);
        move |now| if now < end { Poll::Busy } else { Poll::Done }
    });
    process.run(first).unwrap();
    let polls: Vec<_> = polls.iter().map(|polls| polls.load(Ordering::Relaxed)).collect();
    let (least, all) = (polls.iter().min().unwrap(), polls.iter().sum::<u64>());
    // Those that they had before they counted as quiet, and one for each 4 µs: 75,000. If each had its turn in every turn of
    // the core, it were millions.
    assert!(all < 300_000, "{all} polls of quiet pollers in {LONG:?}");
    assert!(*least >= 20, "a quiet poller was polled {least} times in {LONG:?}");
}

fn event(number: u64) -> Event {
    Event { at_ns: number, kind: 1, device: 2, queue: 3, detail: 4, a: number, b: !number }
}

#[test]
fn what_was_recorded_survives_a_kill_and_the_life_before_is_kept() {
    const NAME: &str = "what_was_recorded_survives_a_kill_and_the_life_before_is_kept";
    if is_child(NAME) {
        let directory = std::env::var_os(CHILD_DIRECTORY).unwrap();
        let options = Options { recorder_directory: Some(directory.into()), ..options(1) };
        let first = constructor(|platform: HostPlatform| {
            // It serves, so its recording is kept.
            platform.ready();
            let mut number = 0;
            move |_| {
                platform.record(event(number));
                number += 1;
                Poll::Busy
            }
        });
        Process::new(&options).unwrap().run(first).unwrap();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("recorder-0");
    let read = |path: &Path| stack::recording::decode(&std::fs::read(path).unwrap());
    // While a life goes on its file may be anything.
    let written = || {
        let recording = std::fs::read(&file).ok().and_then(|bytes| stack::recording::decode(&bytes).ok());
        recording.map_or(0, |recording| recording.first + recording.events.len() as u64)
    };
    let mut last = 0;
    // One life that fills the ring and one that does not.
    for enough in [100_000, 1_000] {
        let mut process = child(NAME, directory.path());
        loop {
            let seen = written();
            // At first the file is the last life's still.
            if seen >= enough && seen != last {
                break;
            }
            std::thread::yield_now();
        }
        // A second one is kept out, and leaves the files as they are.
        let second = Options { recorder_directory: Some(directory.path().into()), ..options(1) };
        let refused = Process::new(&second).err().expect("another process records there");
        assert_eq!(refused.kind(), runtime::ErrorKind::Busy, "{refused}");
        process.kill().unwrap();
        assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGKILL));
        let recording = read(&file).unwrap();
        assert!(recording.first + recording.events.len() as u64 >= enough);
        for (number, found) in (recording.first..).zip(&recording.events) {
            assert_eq!(*found, event(number));
        }
        last = written();
    }
    let previous = read(&directory.path().join("recorder-0.previous")).unwrap();
    assert!(
        previous.first > 0 && previous.events.len() == 65535,
        "{} {}",
        previous.first,
        previous.events.len()
    );
}
