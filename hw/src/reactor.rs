//! A core: one pinned thread that polls its pollers in turn, and sleeps when none has anything to do.
//!
//! **Sleep.** When every poller is idle, the core polls on for [`SPIN`], since a sleep and a wake-up cost more than that
//! and the next request of a busy guest comes sooner. Then it says that it sleeps, lets each poller arm, and sleeps in
//! `ppoll` unless one of them found work after all. How a wake-up from another core is not lost is in [`crate::waker`].
//!
//! **Panics.** A panic of a poller ends that poller and nothing else: what one guest could provoke must not reach the
//! others, again after each restart. The first poller is the exception. It is the target itself, without which nothing
//! can be configured, drained or saved, so its panic ends the process at once, by abort: no destructor runs on what may
//! be inconsistent, a core file shows the place, and the next life recovers as from any other death. The same goes for a
//! panic while a poller is made or dropped.

use crate::clock;
use crate::platform::{Core, HostPlatform};
use crate::process::Shared;
use crate::recorder::Recorder;
use crate::wakes::HostWakes;
use runtime::{CoreId, Instant, Poll, Poller};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a core without work goes on polling before it sleeps. Falling asleep and being woken costs about 10 µs
/// together; a guest at depth 1 answers a completion within about 20 µs.
const SPIN: Duration = Duration::from_micros(30);

/// How late the kernel may end a sleep that has a time, in nanoseconds (its default is 50 µs).
const TIMER_SLACK_NS: std::num::NonZeroU64 = std::num::NonZeroU64::new(1_000).unwrap();

/// One core.
pub(crate) struct Reactor {
    core: Rc<Core>,
    pollers: Vec<Box<dyn Poller<HostPlatform>>>,
    /// Whether the first of the pollers is the process's first.
    has_first: bool,
    wakes: HostWakes,
    /// What was last seen of the operator's wish, so that the change of it is noticed.
    stop_seen: bool,
}

/// What one turn over all pollers found.
struct Turn {
    busy: bool,
    until: Option<Instant>,
}

impl Turn {
    const QUIET: Self = Self { busy: false, until: None };

    fn add(&mut self, poll: Poll) {
        match poll {
            Poll::Idle { until: None } => {}
            Poll::Idle { until: Some(until) } => {
                self.until = Some(self.until.map_or(until, |earlier| earlier.min(until)));
            }
            Poll::Busy | Poll::Done => self.busy = true,
        }
    }
}

impl Reactor {
    /// On the core's own thread.
    pub(crate) fn new(id: CoreId, process: Arc<Shared>, recorder: Option<Recorder>) -> Self {
        Self {
            core: Rc::new(Core::new(id, process, recorder)),
            pollers: Vec::new(),
            has_first: id == CoreId(0),
            wakes: HostWakes::new(id),
            stop_seen: false,
        }
    }

    /// Runs until the process ends.
    pub(crate) fn run(mut self) {
        self.pin();
        let process = self.core.process.clone();
        let mine = process.core(self.core.id);
        let spin_ns = SPIN.as_nanos() as u64;
        let mut now = clock::now();
        let mut last_busy = now;
        while !process.ended.load(Ordering::Relaxed) {
            let started = self.start_pollers();
            let mut turn = self.poll(now);
            turn.busy |= started;
            if !turn.busy && !process.poll && now.since_ns(last_busy) >= spin_ns {
                self.sleep();
            }
            let next = clock::now();
            let spent = if turn.busy { &mine.busy_ns } else { &mine.idle_ns };
            // The core is the only one that writes its times.
            spent.store(spent.load(Ordering::Relaxed) + next.since_ns(now), Ordering::Relaxed);
            now = next;
            if turn.busy {
                last_busy = now;
            } else {
                std::hint::spin_loop();
            }
        }
        while let Some(poller) = self.pollers.pop() {
            drop_poller(poller);
        }
    }

    /// Binds the thread to its processor.
    fn pin(&self) {
        let processor = self.core.process.core(self.core.id).processor;
        let mut set = rustix::thread::CpuSet::new();
        set.set(processor as usize);
        if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
            tracing::warn!(core = self.core.id.0, processor, %error, "the core is not pinned to its processor");
        }
        // Only makes timed sleeps end later when it fails.
        let _ = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK_NS));
    }

    /// Makes the pollers that were started here; whether there were any.
    fn start_pollers(&mut self) -> bool {
        // Asked in every turn: looking is two loads, while taking from an empty queue costs a fence.
        if self.core.process.core(self.core.id).started.is_empty() {
            return false;
        }
        let process = self.core.process.clone();
        while let Some(constructor) = process.core(self.core.id).started.pop() {
            let platform = HostPlatform(self.core.clone());
            match catch_unwind(AssertUnwindSafe(|| constructor(platform))) {
                Ok(poller) => self.pollers.push(poller),
                Err(_) => die("a poller panicked while it was made"),
            }
        }
        true
    }

    /// One turn over all pollers.
    fn poll(&mut self, now: Instant) -> Turn {
        let mut turn = Turn::QUIET;
        let mut index = 0;
        while index < self.pollers.len() {
            let poll = self.guarded(index, |poller, _| poller.poll(now));
            if poll == Poll::Done {
                self.remove(index);
            } else {
                index += 1;
            }
            turn.add(poll);
        }
        turn
    }

    /// Calls a poller. One that panics is done.
    #[inline]
    fn guarded(
        &mut self,
        index: usize,
        call: impl FnOnce(&mut dyn Poller<HostPlatform>, &mut HostWakes) -> Poll,
    ) -> Poll {
        let (poller, wakes) = (&mut self.pollers[index], &mut self.wakes);
        match catch_unwind(AssertUnwindSafe(|| call(poller.as_mut(), wakes))) {
            Ok(poll) => poll,
            Err(_) if self.has_first && index == 0 => die("the target itself panicked"),
            Err(_) => {
                tracing::error!(core = self.core.id.0, "a poller panicked and ends; the others go on");
                Poll::Done
            }
        }
    }

    /// Drops a poller that is done; with the first one the process ends.
    fn remove(&mut self, index: usize) {
        drop_poller(self.pollers.remove(index));
        if self.has_first && index == 0 {
            self.has_first = false;
            self.core.process.end();
        }
    }

    /// Lets the pollers arm and sleeps if nothing is to be done, until something is.
    fn sleep(&mut self) {
        let process = self.core.process.clone();
        let mine = process.core(self.core.id);
        mine.waker.fall_asleep();
        self.wakes.clear();
        let now = clock::now();
        let mut turn = Turn::QUIET;
        let stop = process.stop.load(Ordering::Relaxed);
        turn.busy |= stop != self.stop_seen;
        self.stop_seen = stop;
        turn.busy |= process.ended.load(Ordering::Relaxed) || !mine.started.is_empty();
        for index in 0..self.pollers.len() {
            if turn.busy {
                break;
            }
            let poll = self.guarded(index, |poller, wakes| poller.arm(now, wakes));
            turn.add(poll);
            if poll == Poll::Done {
                self.remove(index);
                break;
            }
        }
        let now = clock::now();
        let may_sleep = !turn.busy && !self.wakes.is_ready() && turn.until.is_none_or(|until| until > now);
        if may_sleep && self.wakes.sleep(&mine.waker, now, turn.until) {
            mine.waker.take();
        }
        mine.waker.stay_awake();
    }
}

/// Drops a poller on its core.
fn drop_poller(poller: Box<dyn Poller<HostPlatform>>) {
    if catch_unwind(AssertUnwindSafe(|| drop(poller))).is_err() {
        die("a poller panicked while it was dropped");
    }
}

/// Ends the process where it stands. The panic was printed already.
fn die(what: &str) -> ! {
    // Not by the log, which a thread of its own may write later than the process lives.
    eprintln!("reprise: {what}: the process ends");
    std::process::abort()
}
