//! The checkers: pure observers that judge a run, one file each.
//!
//! Nothing here draws, schedules or touches memory: the guests, the front-ends, the operator and the memory of the
//! world report what they saw as [`Observation`]s, and each checker counts how often it judged something. A checker
//! that is due in a scenario ([`due`]) and judged nothing over a whole sweep of it fails the sweep, since it then proves
//! nothing. The first violation ends the run; it says what was expected, what was seen and when.
//!
//! | checker | judges |
//! | --- | --- |
//! | [`exactly_once`] | every request completes exactly once |
//! | [`virtqueue`] | what the device leaves in the used ring and in the status byte |
//! | [`reads`] | each block read is the last acknowledged write or one concurrent with the read |
//! | [`durability`] | what a power loss may take away |
//! | [`buffers`] | no access to a buffer after its completion or its region's removal |
//! | [`leaks`] | no tracked entry and no mapping of a guest's memory is left behind |
//! | [`progress`] | after the faults stop, everything ends, in bounded time |
//! | [`session`] | the back-end's answers to a front-end that keeps to the protocol |
//! | [`dirty_log`] | what a live migration would leave behind |
//! | [`state`] | every acknowledged configuration change is in force after a restart, no half of one |
//! | `iommu` (`run`) | no drive is let to touch memory that is not mapped for it |
//! | `boundaries` (`run`) | no command lies across a boundary of its namespace |
//! | `zero copy` (`supervisor`) | plain reads from a drive are not copied |
//! | [`ladder`] | a driver mends nothing about a drive that is well |
//! | `memory` (`memory`, `disk`, `dma`) | nothing that was unmapped is touched |
//! | `fence` (`disk`) | no operation goes to a file whose lock is not held |
//! | `target` (`supervisor`, `process`) | a life begins, and ends only when it is asked to |
//! | `spin` (`world`) | a poll comes back, and a core with nothing to do can sleep |
//! | `coverage` (`run`) | the run did as much as the scenario asks for |

pub mod buffers;
pub mod dirty_log;
pub mod due;
pub mod durability;
pub mod exactly_once;
pub mod history;
pub mod ladder;
pub mod leaks;
pub mod observation;
pub mod progress;
pub mod reads;
pub mod session;
pub mod state;
pub mod virtqueue;

pub use observation::{CacheMode, Content, Kind, Observation, RequestId, Status};

use crate::world::Agent;
use runtime::Instant;
use std::collections::BTreeMap;

/// Names of the checkers, as reports and replay files spell them.
pub const NAMES: [&str; 19] = [
    "exactly_once",
    "virtqueue",
    "reads",
    "durability",
    "buffers",
    "leaks",
    "progress",
    "session",
    "dirty_log",
    "state",
    "iommu",
    "zero copy",
    "ladder",
    "boundaries",
    "memory",
    "fence",
    "target",
    "spin",
    "coverage",
];

/// Names under which the requests are counted that a life of the target left to the next one, in split and in packed rings.
pub const RECOVERIES: [&str; 2] = ["recovery, split", "recovery, packed"];

/// Name under which removals of a region are counted that were asked for under I/O.
pub const REMOVAL_UNDER_IO: &str = "removal under I/O";

/// Name under which the messages are counted by which the target told of a ring.
pub const CALLS_BY_MESSAGE: &str = "calls by message";

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which checker found it, one of [`NAMES`] (or `stuck`, the scheduler's own verdict).
    pub checker: &'static str,
    /// When it was found.
    pub at: Instant,
    /// What was expected and what was seen.
    pub text: String,
}

/// What one checker says of one observation.
pub(crate) type Verdict = Result<(), String>;

/// The checkers of one guest's device.
#[derive(Debug)]
pub struct DeviceCheckers {
    once: exactly_once::ExactlyOnce,
    virtqueue: virtqueue::Virtqueue,
    history: history::History,
    reads: reads::Reads,
    durability: durability::Durability,
    buffers: buffers::Buffers,
    leaks: leaks::Leaks,
    progress: progress::Progress,
    session: session::Session,
    dirty_log: dirty_log::DirtyLog,
    /// Whether regions of memory are unplugged in this run.
    unplug: bool,
    /// Whether queues may be told by messages in this run.
    in_band: bool,
    /// The disk may bring anything from now on.
    distrusted: bool,
}

impl DeviceCheckers {
    /// Checkers of a device of `sectors` sectors of zeroes. `power_loss`: whether the power may be lost in this run;
    /// `unplug`: whether memory is unplugged in it; `in_band`: whether queues are told by messages; `bound_ns`: how long a
    /// request may take once the world has healed.
    #[must_use]
    pub fn new(sectors: u64, power_loss: bool, unplug: bool, in_band: bool, bound_ns: u64) -> Self {
        Self {
            once: exactly_once::ExactlyOnce::default(),
            virtqueue: virtqueue::Virtqueue::default(),
            history: history::History::new(sectors, power_loss),
            reads: reads::Reads::default(),
            durability: durability::Durability::default(),
            buffers: buffers::Buffers::default(),
            leaks: leaks::Leaks::default(),
            progress: progress::Progress::new(bound_ns),
            session: session::Session::default(),
            dirty_log: dirty_log::DirtyLog::default(),
            unplug,
            in_band,
            distrusted: false,
        }
    }

    /// From now on the disk may bring anything: its content is judged no more. All else is.
    pub fn distrust(&mut self) {
        self.distrusted = true;
    }

    /// The disk, and not the guest, lost its power.
    pub fn disk_lost_power(&mut self) {
        self.history.disk_loses_power();
    }

    /// Judges one observation; the first checker that objects speaks.
    ///
    /// # Errors
    /// The violation.
    pub fn observe(&mut self, at: Instant, observation: &Observation<'_>) -> Result<(), Violation> {
        let found = |checker| move |text| Violation { checker, at, text };
        self.once.observe(observation).map_err(found("exactly_once"))?;
        self.virtqueue.observe(observation).map_err(found("virtqueue"))?;
        self.buffers.observe(observation).map_err(found("buffers"))?;
        if !self.distrusted {
            self.durability.observe(&self.history, observation).map_err(found("durability"))?;
            self.reads.observe(&self.history, observation).map_err(found("reads"))?;
            self.history.observe(observation);
        }
        self.leaks.observe(observation).map_err(found("leaks"))?;
        // A drive that says that it is another one has not the features that a front-end accepted on it.
        if !(self.distrusted && matches!(observation, Observation::ClosedByTarget)) {
            self.session.observe(observation).map_err(found("session"))?;
        }
        self.dirty_log.observe(observation).map_err(found("dirty_log"))?;
        self.progress.observe(at, observation).map_err(found("progress"))
    }

    /// Judges an access to guest memory, which the world asks about before it lets the access happen: whether it may.
    #[inline]
    pub fn allows(&mut self, address: u64, len: u64, store: bool) -> bool {
        if store {
            self.dirty_log.stored(address, len);
        }
        self.buffers.allows(address, len, store)
    }

    /// What an access breaks that is not allowed.
    #[must_use]
    pub fn objection(&self, agent: Agent, address: u64, len: u64, store: bool) -> String {
        self.buffers.objection(agent, address, len, store)
    }

    /// Judges what is out, at any moment.
    ///
    /// # Errors
    /// The violation.
    pub fn look(&self, at: Instant) -> Result<(), Violation> {
        self.progress.look(at).map_err(|text| Violation { checker: "progress", at, text })
    }

    /// Adds how often each checker judged something.
    pub fn count_into(&self, checks: &mut BTreeMap<&'static str, u64>) {
        for (name, evaluations) in [
            ("exactly_once", self.once.evaluations()),
            ("virtqueue", self.virtqueue.evaluations()),
            ("reads", self.reads.evaluations()),
            ("buffers", self.buffers.evaluations()),
            ("leaks", self.leaks.evaluations()),
            ("progress", self.progress.evaluations()),
            ("session", self.session.evaluations()),
        ] {
            *checks.entry(name).or_default() += evaluations;
        }
        // Where the power is never lost there is nothing to judge, and nothing is claimed.
        if self.history.knows_power_loss() {
            *checks.entry("durability").or_default() += self.durability.evaluations();
        }
        for (name, requests) in RECOVERIES.into_iter().zip(self.virtqueue.inherited()) {
            if requests > 0 {
                *checks.entry(name).or_default() += requests;
            }
        }
        if self.dirty_log.logged() {
            *checks.entry("dirty_log").or_default() += self.dirty_log.evaluations();
        }
        // Judged by `buffers`, and counted by itself: a removal at rest proves little.
        if self.unplug {
            *checks.entry(REMOVAL_UNDER_IO).or_default() += self.buffers.removals();
        }
        // Judged by `session`, and by the requests that would not end without them.
        if self.in_band {
            *checks.entry(CALLS_BY_MESSAGE).or_default() += self.session.calls();
        }
    }
}
