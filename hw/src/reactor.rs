//! A core: one pinned thread that polls its pollers in turn, and sleeps when none has anything to do.
//!
//! **Sleep.** When every poller is idle, the core polls on for [`SPIN`], since a sleep and a wake-up cost more than that
//! and the next request of a busy guest comes sooner. Then it says that it sleeps, lets each poller arm, and sleeps in
//! `ppoll` unless one of them found work after all. How a wake-up from another core is not lost is in [`crate::waker`].
//!
//! **Sockets.** None is asked by a system call of its own while nothing came to it; see [`crate::readiness`].
//!
//! **Quiet pollers.** Hundreds of idle controllers must not take a core from the one that works: even a poll that finds
//! nothing is cache lines to load. While a core is busy, a poller that has had nothing to do for [`QUIET_AFTER`] has its turn
//! only as [`QUIET_PACE`] allows, all of them one after the other; after any turn that found no work, and after each sleep,
//! all are polled.
//!
//! **Panics.** A panic of a poller ends that poller and nothing else: what one guest could provoke must not reach the
//! others, again after each restart. The first poller is the exception. It is the target itself, without which nothing
//! can be configured, drained or saved, so its panic ends the process at once, by abort: no destructor runs on what may
//! be inconsistent, a core file shows the place, and the next life recovers as from any other death. The same goes for a
//! panic while a poller is made or dropped.

use crate::clock;
use crate::platform::{Core, HostPlatform};
use crate::process::Shared;
use crate::readiness::{self, Readiness};
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

/// How long a poller has had nothing to do when it counts as quiet. Longer than the pauses of a guest that works.
const QUIET_AFTER: Duration = Duration::from_millis(1);

/// While the core is busy, one quiet poller is polled for each such time: at some 80 ns a poll, 2 % of it. Of 200 quiet
/// pollers each is polled every 0.8 ms then, of ten every 40 µs.
const QUIET_PACE: Duration = Duration::from_micros(4);

/// How late the kernel may end a sleep that has a time, in nanoseconds (its default is 50 µs).
const TIMER_SLACK_NS: std::num::NonZeroU64 = std::num::NonZeroU64::new(1_000).unwrap();

/// One core.
pub(crate) struct Reactor {
    core: Rc<Core>,
    /// Those that are not quiet come first.
    pollers: Vec<Slot>,
    /// The process's first poller is yet to be started here.
    awaits_first: bool,
    /// How many are not quiet.
    lively: usize,
    /// The quiet one whose turn is next, as a place in `pollers`, and until when the last one's turn lasts.
    quiet_next: usize,
    quiet_at: Instant,
    wakes: HostWakes,
    readiness: Option<Arc<Readiness>>,
    /// When events of the sockets are collected next, if the core does not sleep before.
    collect_at: Instant,
    /// What was last seen of the operator's wish, so that the change of it is noticed.
    stop_seen: bool,
}

/// A poller at its place.
struct Slot {
    poller: Box<dyn Poller<HostPlatform>>,
    /// It is the target itself.
    is_first: bool,
    /// When it last had something to do.
    worked_at: Instant,
}

/// What one turn over the pollers found.
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
        let readiness = Readiness::of_this_thread().inspect_err(|error| {
            tracing::warn!(core = id.0, %error, "no epoll instance: each socket is asked for itself, which costs more");
        });
        let readiness = readiness.ok();
        Self {
            core: Rc::new(Core::new(id, process, recorder)),
            pollers: Vec::new(),
            awaits_first: id == CoreId(0),
            lively: 0,
            quiet_next: 0,
            quiet_at: Instant(0),
            wakes: HostWakes::new(id, readiness.clone()),
            readiness,
            collect_at: clock::now(),
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
        // Whether the next turn is over all pollers.
        let mut all = true;
        while !process.ended.load(Ordering::Relaxed) {
            if let Some(readiness) = &self.readiness
                && now >= self.collect_at
            {
                self.collect_at = now.after(readiness::INTERVAL);
                readiness.collect();
            }
            let started = self.start_pollers(now);
            let mut turn = self.poll(now, all);
            turn.busy |= started;
            if all && !turn.busy && !process.poll && now.since_ns(last_busy) >= spin_ns {
                self.sleep();
            }
            all = !turn.busy;
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
        while let Some(slot) = self.pollers.pop() {
            drop_poller(slot.poller);
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
    fn start_pollers(&mut self, now: Instant) -> bool {
        // Asked in every turn: looking is two loads, while taking from an empty queue costs a fence.
        if self.core.process.core(self.core.id).started.is_empty() {
            return false;
        }
        let process = self.core.process.clone();
        while let Some(constructor) = process.core(self.core.id).started.pop() {
            let platform = HostPlatform(self.core.clone());
            match catch_unwind(AssertUnwindSafe(|| constructor(platform))) {
                Ok(poller) => {
                    let is_first = std::mem::take(&mut self.awaits_first);
                    self.pollers.push(Slot { poller, is_first, worked_at: now });
                    let last = self.pollers.len() - 1;
                    self.pollers.swap(self.lively, last);
                    self.lively += 1;
                }
                Err(_) => die("a poller panicked while it was made"),
            }
        }
        true
    }

    /// One turn over all pollers, or over those that are not quiet and as many of the others as is their due.
    fn poll(&mut self, now: Instant, all: bool) -> Turn {
        let mut turn = Turn::QUIET;
        // From the last to the first: one that becomes quiet, or goes, changes places with the last lively one.
        for index in (0..self.lively).rev() {
            let poll = self.poll_one(index, now);
            turn.add(poll);
            if poll != Poll::Done
                && now.since_ns(self.pollers[index].worked_at) > QUIET_AFTER.as_nanos() as u64
            {
                self.lively -= 1;
                self.pollers.swap(index, self.lively);
            }
        }
        let mut due = self.pollers.len() - self.lively;
        if all {
            // Each once, whatever changes places meanwhile.
            self.quiet_next = self.lively;
        } else {
            let pace_ns = QUIET_PACE.as_nanos() as u64;
            due = due.min((now.since_ns(self.quiet_at) / pace_ns) as usize);
        }
        for _ in 0..due {
            self.quiet_at = now;
            if self.quiet_next < self.lively || self.quiet_next >= self.pollers.len() {
                self.quiet_next = self.lively;
            }
            let index = self.quiet_next;
            let poll = self.poll_one(index, now);
            turn.add(poll);
            match poll {
                Poll::Idle { .. } => self.quiet_next += 1,
                Poll::Busy => {
                    self.pollers.swap(index, self.lively);
                    self.lively += 1;
                    self.quiet_next += 1;
                }
                Poll::Done => {}
            }
        }
        turn
    }

    /// Polls the poller at a place. One that is done is gone afterwards.
    fn poll_one(&mut self, index: usize, now: Instant) -> Poll {
        let poll = self.guarded(index, |poller, _| poller.poll(now));
        match poll {
            Poll::Busy => self.pollers[index].worked_at = now,
            Poll::Idle { .. } => {}
            Poll::Done => self.remove(index),
        }
        poll
    }

    /// Calls a poller. One that panics is done.
    #[inline]
    fn guarded(
        &mut self,
        index: usize,
        call: impl FnOnce(&mut dyn Poller<HostPlatform>, &mut HostWakes) -> Poll,
    ) -> Poll {
        let (slot, wakes) = (&mut self.pollers[index], &mut self.wakes);
        match catch_unwind(AssertUnwindSafe(|| call(slot.poller.as_mut(), wakes))) {
            Ok(poll) => poll,
            Err(_) if slot.is_first => die("the target itself panicked"),
            Err(_) => {
                tracing::error!(core = self.core.id.0, "a poller panicked and ends; the others go on");
                Poll::Done
            }
        }
    }

    /// Drops a poller that is done; with the first one the process ends.
    fn remove(&mut self, index: usize) {
        let slot = if index < self.lively {
            self.lively -= 1;
            self.pollers.swap(index, self.lively);
            self.pollers.swap_remove(self.lively)
        } else {
            self.pollers.swap_remove(index)
        };
        drop_poller(slot.poller);
        if slot.is_first {
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
