//! A run as a picture: what happened when, in a lane for each process life, core, guest queue, front-end and disk.
//!
//! A run is followed ([`collect`]) and becomes a [`Timeline`]: lanes, bars on them, marks, and the last stores and messages.
//! From it a page is made that a browser shows from disk ([`page`]), or trace events for a viewer of one's own
//! ([`perfetto`]).

mod collect;
pub mod page;
pub mod perfetto;

use crate::report::Outcome;
use crate::run::run_followed;
use crate::subject::Subject;
use crate::world::Failure;
use std::cell::RefCell;
use std::rc::Rc;

/// Lanes that are shown together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Lives of the target's processes, by machine.
    Lives,
    /// What the target's cores have under way.
    Cores,
    /// What front-ends and target say to each other, by guest.
    FrontEnds,
    /// Requests as the guests see them, by guest and queue.
    Queues,
    /// Operations of disks.
    Disks,
}

impl Group {
    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lives => "lives of the target",
            Self::Cores => "cores of the target",
            Self::FrontEnds => "front-ends",
            Self::Queues => "guest queues",
            Self::Disks => "disks",
        }
    }
}

/// A lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Where it belongs.
    pub group: Group,
    /// Guest, machine, core or disk.
    pub number: u32,
    /// Queue of a guest.
    pub queue: u16,
    /// What it is called.
    pub name: String,
    /// Rows that bars take which overlap.
    pub rows: u32,
}

/// Something that took time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Index of its lane.
    pub lane: usize,
    /// Row in it.
    pub row: u32,
    /// When it began, in nanoseconds of the world's clock.
    pub from_ns: u64,
    /// When it ended.
    pub to_ns: u64,
    /// `read`, `write`, …, or `life`.
    pub kind: &'static str,
    /// How it ended.
    pub ended: String,
    /// The guest's request, where it is one or belongs to one.
    pub request: Option<(u16, u64)>,
    /// Queue, where it has one.
    pub queue: Option<u16>,
    /// First sector and sectors, where it has some.
    pub sectors: Option<(u64, u64)>,
}

/// A moment that matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When.
    pub at_ns: u64,
    /// Index of its lane; `None`: all of them.
    pub lane: Option<usize>,
    /// `crash`, `ready`, `fault`, `fence`, `replay`, `message`, `state`, `healed` or `failure`.
    pub kind: &'static str,
    /// What happened.
    pub text: String,
}

/// One of the last things that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    /// When.
    pub at_ns: u64,
    /// `store`, `message` or `line`.
    pub class: &'static str,
    /// What.
    pub text: String,
}

/// A run as a picture.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The scenario's name, what it is, and the seed.
    pub scenario: String,
    /// What the scenario is.
    pub title: String,
    /// The seed.
    pub seed: String,
    /// Lanes, from top to bottom.
    pub lanes: Vec<Lane>,
    /// Bars, by lane and beginning.
    pub bars: Vec<Bar>,
    /// Marks, by time.
    pub marks: Vec<Mark>,
    /// The last stores, messages and lines, by time.
    pub last: Vec<Last>,
    /// Why the run failed, if it did.
    pub failure: Option<Failure>,
    /// When the run ended, in nanoseconds of the world's clock.
    pub end_ns: u64,
}

/// Runs, and draws what happened.
#[must_use]
pub fn of(subject: &Subject) -> (Timeline, Outcome) {
    let collector = Rc::new(RefCell::new(collect::Collector::new(&subject.plan)));
    let follower = Box::new(collect::Following(Rc::clone(&collector)));
    let outcome = run_followed(&subject.plan, subject.script.as_deref(), follower);
    let timeline = collector.take().finish(subject, &outcome);
    (timeline, outcome)
}

impl Timeline {
    /// The guest's requests that the failed check names (`#17`).
    #[must_use]
    pub fn accused(&self) -> Vec<u64> {
        let what = self.failure.as_ref().map_or("", |failure| &failure.what);
        let digits = |text: &str| {
            text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>().ok()
        };
        what.split('#').skip(1).filter_map(digits).collect()
    }
}
