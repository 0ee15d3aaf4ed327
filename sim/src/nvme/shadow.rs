//! Doorbells, and their shadows as a virtual controller keeps them (section 5.8 and annex B.5).
//!
//! The controller looks at a shadow while it is busy with the queue, and moves EventIdx only when it is about to stop
//! looking: it writes EventIdx, fences, looks once more, and sleeps until the register is written. A write to the register
//! is legal at any time; by its manner ([`super::ShadowStyle`]) its value counts or is swallowed. Both pages are forgotten
//! at every reset.

use super::Controller;
use super::queues::{Doorbell, Watch};
use crate::world::World;
use runtime::Instant;
use stack::nvme::bits::{PAGE, doorbell, event, log};

/// Shortest and longest time from one look at a shadow to the next, in nanoseconds: about as long as a fast command takes,
/// so that a driver finds the controller looking, arming and asleep.
const LOOK_NS: (u64, u64) = (50, 3_000);

/// The two pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shadow {
    pub(super) values: u64,
    pub(super) events: u64,
}

impl Controller {
    /// Whether Doorbell Buffer Config is there: all doorbells must find room in a page.
    pub(super) fn has_shadow(&self) -> bool {
        let profile = &self.profile;
        profile.shadow.is_some() && doorbell(profile.queues + 1, false, profile.dstrd.into()) <= PAGE
    }

    /// How a doorbell is followed from now on.
    fn looks(&self, world: &mut World) -> Watch {
        let looks = self.profile.shadow.map_or(0, |style| style.looks);
        Watch::Looks(looks, Instant(world.now.0 + world.streams.device.between(LOOK_NS.0, LOOK_NS.1)))
    }

    fn place(&self, queue: u16, completion: bool) -> u64 {
        doorbell(queue, completion, self.profile.dstrd.into())
    }

    /// The doorbell of a new queue. Errors of the IOMMU are fatal, as for any page that the controller was given.
    pub(super) fn new_doorbell(&mut self, world: &mut World, queue: u16, completion: bool) -> Doorbell {
        let Some(shadow) = self.shadow else { return Doorbell { value: 0, watch: Watch::Register } };
        let place = self.place(queue, completion);
        if self.profile.shadow.is_some_and(|style| style.zeroes) {
            self.store_slot(world, shadow.values + place, 0);
            self.store_slot(world, shadow.events + place, 0);
        }
        Doorbell { value: 0, watch: self.looks(world) }
    }

    fn store_slot(&mut self, world: &mut World, at: u64, value: u16) {
        if world.dma_write(self.me, at, &u32::from(value).to_le_bytes()).is_err() {
            self.fatal(world);
        }
    }

    fn load_slot(&mut self, world: &mut World, at: u64) -> Option<u16> {
        let mut bytes = [0; 4];
        if world.dma_read(self.me, at, &mut bytes).is_err() {
            self.fatal(world);
            return None;
        }
        Some(u32::from_le_bytes(bytes) as u16)
    }

    /// Doorbell Buffer Config: the I/O queues there are go on with the values that they have.
    pub(super) fn configure_shadow(&mut self, world: &mut World, shadow: Shadow) {
        self.shadow = Some(shadow);
        let bells: Vec<(u16, bool, u16)> =
            (self.submissions.iter().map(|(q, sq)| (*q, false, sq.tail.value)))
                .chain(self.completions.iter().map(|(q, cq)| (*q, true, cq.head.value)))
                .filter(|(queue, ..)| *queue > 0)
                .collect();
        for (queue, completion, value) in bells {
            let place = self.place(queue, completion);
            self.store_slot(world, shadow.values + place, value);
            self.store_slot(world, shadow.events + place, value);
            let watch = self.looks(world);
            self.bell(queue, completion).expect("a queue").watch = watch;
        }
    }

    fn bell(&mut self, queue: u16, completion: bool) -> Option<&mut Doorbell> {
        match completion {
            true => self.completions.get_mut(&queue).map(|queue| &mut queue.head),
            false => self.submissions.get_mut(&queue).map(|queue| &mut queue.tail),
        }
    }

    /// A doorbell gets a value, if it is a possible one.
    fn set_bell(&mut self, queue: u16, completion: bool, value: u16) {
        let size = match completion {
            true => self.completions[&queue].size,
            false => self.submissions[&queue].size,
        };
        if u32::from(value) >= size {
            self.raise(event::ERROR, event::INVALID_DOORBELL_VALUE, log::ERROR);
            return;
        }
        self.bell(queue, completion).expect("a queue").value = value;
    }

    /// A doorbell register is written.
    pub(super) fn ring(&mut self, world: &mut World, offset: u64, value: u32) {
        world.nvme_counts(self.drive).doorbells += 1;
        if !self.runs() {
            return;
        }
        let stride = doorbell(0, true, self.profile.dstrd.into());
        let (queue, completion) = ((offset / stride / 2) as u16, offset / stride % 2 == 1);
        if !offset.is_multiple_of(stride) || self.bell(queue, completion).is_none() {
            self.raise(event::ERROR, event::INVALID_DOORBELL, log::ERROR);
            return;
        }
        let mirrors = self.profile.shadow.is_some_and(|style| style.mirrors);
        match self.shadow.filter(|_| queue > 0) {
            None => self.set_bell(queue, completion, value as u16),
            Some(shadow) => {
                if mirrors {
                    self.set_bell(queue, completion, value as u16);
                    let place = self.place(queue, completion);
                    self.store_slot(world, shadow.values + place, value as u16);
                }
                let watch = self.looks(world);
                if let Some(bell) = self.bell(queue, completion) {
                    bell.watch = watch;
                }
            }
        }
    }

    /// When the shadow of a doorbell shall be looked at: of a submission queue when nothing is left in it, of a completion
    /// queue when it is full.
    pub(super) fn look_due(&self, queue: u16, completion: bool) -> Option<Instant> {
        let (bell, wanted) = match completion {
            true => self
                .completions
                .get(&queue)
                .map(|cq| (cq.head, cq.has_pending() && cq.post_due().is_none()))?,
            false => self.submissions.get(&queue).map(|sq| (sq.tail, !sq.has_entries()))?,
        };
        match bell.watch {
            Watch::Looks(_, at) | Watch::Arms(at) if wanted => Some(at),
            Watch::Armed if wanted => Some(Instant(0)),
            _ => None,
        }
    }

    /// Looks at the shadow of a doorbell, or gives up looking.
    pub(super) fn look(&mut self, world: &mut World, queue: u16, completion: bool) {
        let Some(shadow) = self.shadow else { return };
        let place = self.place(queue, completion);
        let known = self.bell(queue, completion).map(|bell| (bell.watch, bell.value));
        if let Some((Watch::Arms(_), value)) = known {
            self.store_slot(world, shadow.events + place, value);
            world.nvme_counts(self.drive).armed += 1;
            if let Some(bell) = self.bell(queue, completion) {
                bell.watch = Watch::Armed;
            }
            return;
        }
        let Some(seen) = self.load_slot(world, shadow.values + place) else { return };
        let again = self.looks(world);
        let Some(bell) = self.bell(queue, completion) else { return };
        let (known, watch) = (bell.value, bell.watch);
        let moved = seen != known;
        let next = match watch {
            _ if moved => again,
            Watch::Looks(left, _) => match (left, again) {
                (0, Watch::Looks(_, at)) => Watch::Arms(at),
                (_, Watch::Looks(_, at)) => Watch::Looks(left - 1, at),
                (_, other) => other,
            },
            // The second look, behind a full fence: a device's accesses are in order.
            Watch::Armed => Watch::Asleep,
            other => other,
        };
        if let Some(bell) = self.bell(queue, completion) {
            bell.watch = next;
        }
        if moved {
            let counts = world.nvme_counts(self.drive);
            counts.shadow_moves += 1;
            counts.races += u64::from(watch == Watch::Armed);
            self.set_bell(queue, completion, seen);
        }
    }
}
