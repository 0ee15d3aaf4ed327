//! The record of a run: its checkers, and who reports to them.

use crate::check::observation::Buffer;
use crate::check::state::State;
use crate::check::{DeviceCheckers, Observation, Status, Violation};
use crate::follow::Followed;
use crate::guest::Witness;
use crate::world::{self, Agent, Observer};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What is recorded of a run.
#[derive(Default)]
pub struct Record {
    /// The checkers of each guest's device.
    devices: Vec<DeviceCheckers>,
    /// The checkers of the targets' configurations.
    pub states: Vec<State>,
    /// Controllers on images of several targets that were acknowledged by one. What such a target shows of them depends on
    /// who holds the image: no checker of its configuration judges that.
    pub on_images: BTreeSet<String>,
    /// How often it was judged that plain reads of a drive are not copied.
    pub zero_copies: u64,
}

impl Record {
    /// How often each checker judged something.
    #[must_use]
    pub fn checks(&self) -> BTreeMap<&'static str, u64> {
        let mut checks = BTreeMap::new();
        for device in &self.devices {
            device.count_into(&mut checks);
        }
        *checks.entry("state").or_default() += self.states.iter().map(State::evaluations).sum::<u64>();
        if self.zero_copies > 0 {
            checks.insert("zero copy", self.zero_copies);
        }
        checks
    }

    /// Whether a target has acknowledged this controller, and is not asked to remove it.
    fn keeps(&self, controller: &str) -> bool {
        self.on_images.contains(controller) || self.states.iter().any(|state| state.keeps(controller))
    }
}

/// Whoever reports to the record, for one device.
#[derive(Clone)]
pub struct Eye {
    record: Rc<RefCell<Record>>,
    device: usize,
    /// The drive below the device, and how often it had been pulled out when that was last looked at.
    drive: Option<(u32, Rc<Cell<u64>>)>,
    /// Requests that were completed.
    completed: Rc<Cell<u64>>,
}

/// Of so many requests that completed well, one is looked at: whether a drive may still reach its memory.
const COMPLETIONS_PER_LOOK: u64 = 8;

impl Eye {
    /// The device is on this drive.
    pub fn watch_drive(&mut self, drive: u32) {
        self.drive = Some((drive, Rc::default()));
    }

    /// What became of the drive since the last observation: it was pulled out, or what it says can be believed no more.
    fn look_at_drive(&self) {
        let Some((drive, seen)) = &self.drive else { return };
        let (removals, betrayed) = world::with(|world| {
            let betrayed = world.faults().struck().iter().any(crate::faults::Fault::betrays);
            (world.nvme(*drive).counts.removals, betrayed)
        });
        let device = &mut self.record.borrow_mut().devices[self.device];
        if betrayed {
            device.distrust();
        }
        if removals > seen.replace(removals) {
            device.disk_lost_power();
        }
    }

    /// Whoever completes a request has seen to it that no drive reaches its memory any more, late as that may be. It matters
    /// where requests fail; of the others some are looked at.
    fn look_at_reach(&self, status: Status, buffers: &[Buffer]) {
        let looks = self.completed.get().is_multiple_of(COMPLETIONS_PER_LOOK) || status != Status::Ok;
        self.completed.set(self.completed.get() + 1);
        if self.drive.is_none() || !looks {
            return;
        }
        world::with(|world| {
            if world.faults().struck().iter().any(crate::faults::Fault::betrays) {
                return;
            }
            let guest = self.device as u32;
            let overlaps = |(place, len): &(u64, u64)| {
                let meets = |buffer: &Buffer| {
                    buffer.address < place + len && *place < buffer.address + u64::from(buffer.len)
                };
                buffers.iter().any(meets)
            };
            if let Some((place, len)) = world.reach_into(guest).into_iter().find(overlaps) {
                let what = format!(
                    "guest {guest}: a request is completed, and a drive can still reach {len} bytes at {place:#x} for it"
                );
                world.fail("buffers", what);
            }
        });
    }

    /// Looks whether what is out is out for too long.
    pub fn look(&self) {
        let now = world::with(|world| world.now());
        self.judge(self.record.borrow().devices[self.device].look(now));
    }

    fn judge(&self, verdict: Result<(), Violation>) {
        if let Err(violation) = verdict {
            world::with(|world| {
                world.fail(violation.checker, format!("guest {}: {}", self.device, violation.text))
            });
        }
    }

    /// A reporter for a new device with these checkers.
    pub fn new(record: &Rc<RefCell<Record>>, checkers: DeviceCheckers) -> Self {
        let mut inner = record.borrow_mut();
        inner.devices.push(checkers);
        Self {
            record: Rc::clone(record),
            device: inner.devices.len() - 1,
            drive: None,
            completed: Rc::default(),
        }
    }
}

impl Witness for Eye {
    fn saw(&mut self, observation: &Observation<'_>) {
        let now = world::with(|world| {
            world.say(|| format!("guest {}: {}", self.device, line(observation)));
            if world.trace().is_followed() {
                world.trace().tell(Followed::Saw(self.device, observation));
            }
            world.now()
        });
        self.look_at_drive();
        if let Observation::Completed { status, buffers, .. } = observation {
            self.look_at_reach(*status, buffers);
        }
        let mut record = self.record.borrow_mut();
        if matches!(observation, Observation::ClosedByTarget)
            && !record.keeps(&format!("controller disk.{}", self.device))
        {
            // It listens before its creation is durable, goes away when that fails, and when it is removed.
            return;
        }
        let verdict = record.devices[self.device].observe(now, observation);
        drop(record);
        self.judge(verdict);
    }
}

/// The record's ear for accesses to guest memory.
pub struct Ear(pub Rc<RefCell<Record>>);

impl Observer for Ear {
    fn allows(&mut self, guest: u32, address: u64, len: u64, store: bool) -> bool {
        // Guests without checkers are the hostile ones, whose memory is anybody's.
        match self.0.borrow_mut().devices.get_mut(guest as usize) {
            Some(device) => device.allows(address, len, store),
            None => true,
        }
    }

    fn objection(&self, guest: u32, agent: Agent, address: u64, len: u64, store: bool) -> String {
        let what = self.0.borrow().devices[guest as usize].objection(agent, address, len, store);
        format!("guest {guest}: {what}")
    }
}

/// An observation as a line of the log.
fn line(observation: &Observation<'_>) -> String {
    match observation {
        Observation::Submitted { id, queue, head, kind, sector, sectors, .. } => {
            format!("{id} submitted: {} sector {sector} +{sectors}, queue {queue} head {head}", kind.name())
        }
        Observation::Completed { id, queue, kind, status, len, .. } => {
            format!("{id} completed: {} {status:?}, queue {queue}, used length {len}", kind.name())
        }
        Observation::Used { queue, index, id, len, .. } => {
            format!("queue {queue}: used element {index} is head {id}, length {len}")
        }
        Observation::Read { id, sector, content } => format!("{id} read sector {sector}: {content:?}"),
        other => format!("{other:?}"),
    }
}
