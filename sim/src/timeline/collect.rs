//! What a timeline is made of, gathered while the run happens.

use super::{Bar, Group, Lane, Last, Mark, Timeline};
use crate::check::{Observation, Status};
use crate::follow::{DiskChange, Entry, Followed, Follower, Kept, LifeChange};
use crate::plan::Plan;
use crate::report::Outcome;
use crate::scenario::BdevKind;
use crate::subject::Subject;
use crate::trace::Record;
use runtime::{Event, FileOp};
use stack::events::Kind;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Stores, messages and lines that are kept of the end.
const LAST: usize = 400;

/// The follower of a run that becomes a timeline.
pub(super) struct Following(pub(super) Rc<RefCell<Collector>>);

impl Follower for Following {
    fn follow(&mut self, at_ns: u64, what: Followed<'_>) {
        self.0.borrow_mut().follow(at_ns, what);
    }
}

/// What has begun and not ended, by what names it while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Open {
    /// A process.
    Life(u32),
    /// An operation of the target: core, device, queue, head.
    Core(u32, u16, u16, u64),
    /// A guest's request, by guest and number.
    Request(u16, u64),
    /// An operation of a disk.
    Disk(u32),
}

/// Everything so far.
#[derive(Default)]
pub(super) struct Collector {
    lanes: Vec<Lane>,
    bars: Vec<Bar>,
    open: BTreeMap<Open, Bar>,
    marks: Vec<Mark>,
    last: VecDeque<Last>,
    /// Of each process: its machine and the first of its cores.
    processes: BTreeMap<u32, (u32, u32)>,
    /// The process of each core.
    cores: BTreeMap<u32, u32>,
    /// The request that a guest's queue has out under a head, and how many sectors it has.
    heads: BTreeMap<(u16, u16, u16), (u64, u64)>,
    /// The guest of each disk.
    disks: Vec<u32>,
}

impl Collector {
    pub(super) fn new(plan: &Plan) -> Self {
        let on_disk = |(_, guest): &(usize, &crate::plan::GuestPlan)| guest.bdev != BdevKind::Malloc;
        let disks = plan.guests.iter().enumerate().filter(on_disk).map(|(number, _)| number as u32);
        Self { disks: disks.collect(), ..Self::default() }
    }

    fn follow(&mut self, at_ns: u64, what: Followed<'_>) {
        match what {
            Followed::Life(process, change) => self.life(at_ns, process, change),
            Followed::Event(core, event) => self.event(at_ns, core, event),
            Followed::Saw(guest, observation) => self.saw(at_ns, guest as u16, observation),
            Followed::Disk(disk, operation, change) => self.disk(at_ns, disk, operation, change),
            Followed::Fault(fault) => {
                let text = Kept::Fault(fault).to_string();
                self.marks.push(Mark { at_ns, lane: None, kind: "fault", text });
            }
            Followed::Line(_) | Followed::Record(..) | Followed::Bytes(_) => {}
        }
        let class = match what {
            Followed::Line(text) if text.starts_with("front-end") || text.contains("message") => "message",
            Followed::Line(_) | Followed::Fault(_) => "line",
            Followed::Record(Record::Store | Record::Bulk | Record::Disk, ..) => "store",
            Followed::Record(Record::Send | Record::Ring, ..) => "message",
            _ => return,
        };
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        let text = Entry::of(at_ns, what).map_or_else(String::new, |entry| entry.what.to_string());
        self.last.push_back(Last { at_ns, class, text });
    }

    /// The lane of this place; it is made when it is first needed.
    fn lane(&mut self, group: Group, number: u32, queue: u16) -> usize {
        let known = |lane: &Lane| (lane.group, lane.number, lane.queue) == (group, number, queue);
        self.lanes.iter().position(known).unwrap_or_else(|| {
            let name = match group {
                Group::Lives => format!("machine {number}"),
                Group::Cores => format!("core {number}"),
                Group::FrontEnds => format!("guest {number}"),
                Group::Queues => format!("guest {number}, queue {queue}"),
                Group::Disks => format!("disk of guest {number}"),
            };
            self.lanes.push(Lane { group, number, queue, name, rows: 1 });
            self.lanes.len() - 1
        })
    }

    fn begin(&mut self, open: Open, bar: Bar) {
        self.open.insert(open, bar);
    }

    fn end(&mut self, open: Open, at_ns: u64, ended: &str) {
        if let Some(bar) = self.open.remove(&open) {
            self.bars.push(Bar { to_ns: at_ns, ended: ended.to_owned(), ..bar });
        }
    }

    fn end_all(&mut self, at_ns: u64, ended: &str, which: impl Fn(&Open) -> bool) {
        let these: Vec<Open> = self.open.keys().copied().filter(which).collect();
        for open in these {
            self.end(open, at_ns, ended);
        }
    }

    fn mark(&mut self, at_ns: u64, lane: usize, kind: &'static str, text: String) {
        self.marks.push(Mark { at_ns, lane: Some(lane), kind, text });
    }

    fn life(&mut self, at_ns: u64, process: u32, change: LifeChange<'_>) {
        match change {
            LifeChange::Began { machine, first_core, cores } => {
                self.processes.insert(process, (machine, first_core));
                self.cores.extend((first_core..first_core + u32::from(cores)).map(|core| (core, process)));
                for core in 0..u32::from(cores) {
                    self.lane(Group::Cores, core, 0);
                }
                let lane = self.lane(Group::Lives, machine, 0);
                self.begin(Open::Life(process), bar(lane, at_ns, "life"));
            }
            LifeChange::Ready => {
                let machine = self.processes.get(&process).map_or(0, |life| life.0);
                let lane = self.lane(Group::Lives, machine, 0);
                self.mark(at_ns, lane, "ready", format!("process {process} serves"));
            }
            // The world was cleared away with it still alive: the run had ended before.
            LifeChange::Ended("gone") => {}
            LifeChange::Ended(how) => {
                self.end(Open::Life(process), at_ns, &format!("process {process}: {how}"));
                let cores = self.cores.clone();
                let dead = |core: &u32| cores.get(core) == Some(&process);
                self.end_all(
                    at_ns,
                    "cut off by the death",
                    |open| matches!(open, Open::Core(core, ..) if dead(core)),
                );
                if how == "without power" {
                    self.end_all(at_ns, "lost with the power", |open| matches!(open, Open::Disk(_)));
                }
                if how != "ended" {
                    let text = format!("process {process} is {how}");
                    self.marks.push(Mark { at_ns, lane: None, kind: "crash", text });
                }
            }
        }
    }

    fn event(&mut self, at_ns: u64, core: u32, event: &Event) {
        let Some(kind) = Kind::from_number(event.kind) else { return };
        let process = self.cores.get(&core).copied().unwrap_or(0);
        let number = core - self.processes.get(&process).map_or(0, |life| life.1);
        let lane = self.lane(Group::Cores, number, 0);
        let open = Open::Core(core, event.device, event.queue, event.a);
        match kind {
            Kind::RequestSubmitted => {
                const OPS: [&str; 6] = ["read", "write", "write", "flush", "discard", "write-zeroes"];
                let op = OPS.get(usize::from(event.detail)).copied().unwrap_or("other");
                let request = self.heads.get(&(event.device, event.queue, event.a as u16));
                let bar = Bar {
                    request: request.map(|&(number, _)| (event.device, number)),
                    queue: Some(event.queue),
                    sectors: (op != "flush")
                        .then_some((event.b / 512, request.map_or(0, |request| request.1))),
                    ..bar(lane, at_ns, op)
                };
                self.begin(open, bar);
            }
            Kind::RequestCompleted => self.end(open, at_ns, &format!("status {}", event.detail)),
            Kind::RequestReplayed => {
                self.mark(at_ns, lane, "replay", stack::events::Line(event).to_string());
            }
            Kind::FileFenced => {
                self.mark(at_ns, lane, "fence", format!("the lock of a file is had after {} ns", event.a));
            }
            Kind::MessageReceived | Kind::SessionOpened | Kind::SessionEnding | Kind::SessionClosed => {
                let lane = self.lane(Group::FrontEnds, event.device.into(), 0);
                self.mark(at_ns, lane, "message", stack::events::Line(event).to_string());
            }
            _ => {}
        }
    }

    fn saw(&mut self, at_ns: u64, guest: u16, observation: &Observation<'_>) {
        match *observation {
            Observation::Submitted { id, queue, head, kind, sector, sectors, .. } => {
                self.heads.insert((guest, queue, head), (id.0, sectors.into()));
                let lane = self.lane(Group::Queues, guest.into(), queue);
                let bar = Bar {
                    request: Some((guest, id.0)),
                    queue: Some(queue),
                    sectors: (sectors > 0).then_some((sector, sectors.into())),
                    ..bar(lane, at_ns, kind.name())
                };
                self.begin(Open::Request(guest, id.0), bar);
            }
            Observation::Completed { id, status, .. } => {
                let ended = match status {
                    Status::Ok => "ok".to_owned(),
                    other => format!("{other:?}"),
                };
                self.end(Open::Request(guest, id.0), at_ns, &ended);
            }
            Observation::DeviceReset | Observation::PowerLost => {
                self.end_all(
                    at_ns,
                    "forgotten by the guest",
                    |open| matches!(open, Open::Request(of, _) if *of == guest),
                );
                let lane = self.lane(Group::FrontEnds, guest.into(), 0);
                self.mark(at_ns, lane, "state", format!("{observation:?}"));
            }
            Observation::Connected | Observation::Disconnected | Observation::RingStopped { .. } => {
                let lane = self.lane(Group::FrontEnds, guest.into(), 0);
                self.mark(at_ns, lane, "state", format!("{observation:?}"));
            }
            Observation::Answer { .. } | Observation::BackendMessage { .. } => {
                let lane = self.lane(Group::FrontEnds, guest.into(), 0);
                self.mark(at_ns, lane, "message", format!("{observation:?}"));
            }
            Observation::Healed if guest == 0 => {
                let text = "the faults stop".to_owned();
                self.marks.push(Mark { at_ns, lane: None, kind: "healed", text });
            }
            _ => {}
        }
    }

    fn disk(&mut self, at_ns: u64, disk: u32, operation: u32, change: DiskChange) {
        match change {
            DiskChange::Began { op, offset, len } => {
                let guest = self.disks.get(disk as usize).copied().unwrap_or(disk);
                let lane = self.lane(Group::Disks, guest, 0);
                let kind = match op {
                    FileOp::Read => "read",
                    FileOp::Write { .. } => "write",
                    FileOp::Flush => "flush",
                    FileOp::Discard => "discard",
                    FileOp::WriteZeroes { .. } => "write-zeroes",
                };
                let sectors = (op != FileOp::Flush).then_some((offset / 512, len / 512));
                self.begin(Open::Disk(operation), Bar { sectors, ..bar(lane, at_ns, kind) });
            }
            DiskChange::Ended(how) => self.end(Open::Disk(operation), at_ns, how),
        }
    }

    /// The whole picture: what is still under way ends with the run, lanes are in order, and bars that overlap take rows.
    pub(super) fn finish(mut self, subject: &Subject, outcome: &Outcome) -> Timeline {
        let end_ns = outcome.virtual_ns;
        for process in 0..self.processes.len() as u32 {
            self.end(Open::Life(process), end_ns, &format!("process {process}: alive at the end"));
        }
        self.end_all(end_ns, "still under way at the end", |_| true);
        if let Some(failure) = &outcome.failure {
            let text = format!("{}: {}", failure.checker, failure.what);
            self.marks.push(Mark { at_ns: failure.at_ns, lane: None, kind: "failure", text });
        }
        let mut order: Vec<usize> = (0..self.lanes.len()).collect();
        order.sort_by_key(|&at| {
            let Lane { group, number, queue, .. } = self.lanes[at];
            (group, number, queue)
        });
        let mut place = vec![0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            place[old] = new;
        }
        let mut lanes: Vec<Lane> = order.iter().map(|&old| self.lanes[old].clone()).collect();
        for bar in &mut self.bars {
            bar.lane = place[bar.lane];
        }
        for mark in &mut self.marks {
            mark.lane = mark.lane.map(|lane| place[lane]);
        }
        self.bars.sort_by_key(|bar| (bar.lane, bar.from_ns, bar.request));
        self.marks.sort_by_key(|mark| mark.at_ns);
        let mut free_at: Vec<Vec<u64>> = vec![Vec::new(); lanes.len()];
        for bar in &mut self.bars {
            let rows = &mut free_at[bar.lane];
            let row = rows.iter().position(|&until| until <= bar.from_ns).unwrap_or_else(|| {
                rows.push(0);
                rows.len() - 1
            });
            // What takes no time takes its row for a nanosecond, or all of its kind would lie on each other.
            rows[row] = bar.to_ns.max(bar.from_ns + 1);
            bar.row = row as u32;
            lanes[bar.lane].rows = rows.len() as u32;
        }
        Timeline {
            scenario: subject.scenario.clone(),
            title: subject.title.clone(),
            seed: subject.plan.seed_text(),
            lanes,
            bars: self.bars,
            marks: self.marks,
            last: self.last.into(),
            failure: outcome.failure.clone(),
            end_ns,
        }
    }
}

fn bar(lane: usize, from_ns: u64, kind: &'static str) -> Bar {
    Bar {
        lane,
        row: 0,
        from_ns,
        to_ns: from_ns,
        kind,
        ended: String::new(),
        request: None,
        queue: None,
        sectors: None,
    }
}
