//! Admin commands (section 5).

use super::io::{Flight, Work};
use super::queues::{CompletionQueue, SubmissionQueue};
use super::shadow::Shadow;
use super::{Controller, lies};
use crate::faults::FaultKind;
use crate::world::World;
use lies::Said;
use stack::nvme::bits::{AsyncEventConfig, Command, PAGE, PSDT_PRP, QueueCount, Status, admin, feature};

/// Interrupt Coalescing (section 5.27.1.6): threshold in bits 7:0, time in 100 µs in bits 15:8.
const INTERRUPT_COALESCING: u8 = 0x08;
/// Features that hold a value and do nothing: arbitration, power, temperature, error recovery, vectors, atomicity.
const KEPT: [u8; 6] = [0x01, 0x02, 0x04, 0x05, 0x09, 0x0a];

/// How an admin command goes on.
pub(super) enum Outcome {
    /// It ended well, with this result.
    Done(u32),
    /// Its data are to be written.
    Data(Vec<u8>),
    /// It waits until no completion of that submission queue waits any more.
    Deleted(u16),
    /// It is kept elsewhere.
    Kept,
}

impl Controller {
    /// Does an admin command.
    pub(super) fn administer(&mut self, world: &mut World, command: &Command) -> Result<Outcome, Status> {
        let refused = Status::INVALID_FIELD.with_dnr(1);
        if command.psdt() != PSDT_PRP || command.flags & 3 != 0 {
            return Err(refused);
        }
        if command.opcode != admin::ASYNC_EVENT_REQUEST
            && let Some(dnr) = world.faults.strike(FaultKind::NvmeAdminError, |rng| rng.below(2))
        {
            return Err(Status::INTERNAL_ERROR.with_dnr(dnr as u16));
        }
        let [first, second, ..] = command.cdw10;
        match command.opcode {
            admin::IDENTIFY => self.identify(world, command).map(Outcome::Data),
            admin::GET_LOG_PAGE => {
                let keep = first & Command::RAE != 0;
                let page = self.log_page(world, first as u8, keep);
                let mut bytes = page.ok_or(Status::INVALID_LOG_PAGE.with_dnr(1))?;
                let len = 4 * (u64::from(first >> 16 | second << 16) + 1);
                let offset = u64::from(command.cdw10[2]) | u64::from(command.cdw10[3]) << 32;
                if offset > bytes.len() as u64 {
                    return Err(refused);
                }
                bytes.drain(..offset as usize);
                // What lies behind the page is zero.
                bytes.resize(len.min(64 << 10) as usize, 0);
                self.maybe_lie(world, Said::Log, &mut bytes);
                Ok(Outcome::Data(bytes))
            }
            admin::CREATE_CQ => self.create_completions(world, command),
            admin::CREATE_SQ => self.create_submissions(world, command),
            admin::DELETE_SQ => self.delete_submissions(world, first as u16),
            admin::DELETE_CQ => {
                let queue = first as u16;
                if queue == 0 || !self.completions.contains_key(&queue) {
                    return Err(Status::INVALID_QUEUE_ID.with_dnr(1));
                }
                if self.submissions.values().any(|slot| slot.completions == queue) {
                    return Err(Status::INVALID_QUEUE_DELETION.with_dnr(1));
                }
                self.completions.remove(&queue);
                Ok(Outcome::Done(0))
            }
            admin::ABORT => Ok(Outcome::Done(self.abort(world, first as u16, (first >> 16) as u16))),
            admin::SET_FEATURES => self.set_feature(world, first as u8, second).map(Outcome::Done),
            admin::GET_FEATURES => self.get_feature(first as u8).map(Outcome::Done),
            admin::ASYNC_EVENT_REQUEST => {
                if self.events.requests.len() >= self.profile.events.into() {
                    return Err(Status::EVENT_LIMIT_EXCEEDED.with_dnr(1));
                }
                self.events.requests.push_back(command.id);
                Ok(Outcome::Kept)
            }
            admin::DOORBELL_BUFFER_CONFIG if self.has_shadow() => {
                let [values, events] = command.dptr;
                if !(values | events).is_multiple_of(PAGE) || values == events {
                    return Err(refused);
                }
                let mut page = [0; 4];
                for address in [values, events] {
                    world.dma_read(self.me, address, &mut page).map_err(|_| refused)?;
                }
                self.configure_shadow(world, Shadow { values, events });
                Ok(Outcome::Done(0))
            }
            _ => Err(Status::INVALID_OPCODE.with_dnr(1)),
        }
    }

    /// Checks what the commands that create queues have in common: identifier and entries.
    fn check_new(&self, command: &Command, is_there: bool) -> Result<(u16, u32), Status> {
        let queue = command.cdw10[0] as u16;
        let entries = (command.cdw10[0] >> 16) + 1;
        if queue == 0 || queue > self.granted() || is_there {
            return Err(Status::INVALID_QUEUE_ID.with_dnr(1));
        }
        if entries < 2 || entries > self.profile.queue_entries_max {
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr(1));
        }
        if command.cdw10[1] & Command::PC == 0 {
            return Err(Status::INVALID_FIELD.with_dnr(1));
        }
        if !command.dptr[0].is_multiple_of(PAGE) {
            return Err(Status::PRP_OFFSET_INVALID.with_dnr(1));
        }
        Ok((queue, entries))
    }

    fn granted(&self) -> u16 {
        self.granted.unwrap_or(self.profile.queues)
    }

    fn create_completions(&mut self, world: &mut World, command: &Command) -> Result<Outcome, Status> {
        let is_there = self.completions.contains_key(&(command.cdw10[0] as u16));
        let (queue, entries) = self.check_new(command, is_there)?;
        let vector = (command.cdw10[1] & Command::IEN != 0).then_some((command.cdw10[1] >> 16) as u16);
        if vector.is_some_and(|vector| vector >= self.profile.vectors) {
            return Err(Status::INVALID_VECTOR.with_dnr(1));
        }
        let head = self.new_doorbell(world, queue, true);
        self.completions.insert(queue, CompletionQueue::new(command.dptr[0], entries, vector, head));
        Ok(Outcome::Done(0))
    }

    fn create_submissions(&mut self, world: &mut World, command: &Command) -> Result<Outcome, Status> {
        let is_there = self.submissions.contains_key(&(command.cdw10[0] as u16));
        let (queue, entries) = self.check_new(command, is_there)?;
        let completions = (command.cdw10[1] >> 16) as u16;
        if completions == 0 || !self.completions.contains_key(&completions) {
            return Err(Status::CQ_INVALID.with_dnr(1));
        }
        let tail = self.new_doorbell(world, queue, false);
        self.submissions.insert(queue, SubmissionQueue::new(command.dptr[0], entries, completions, tail));
        Ok(Outcome::Done(0))
    }

    /// Its commands that have not ended are aborted, and completed before the deletion is.
    fn delete_submissions(&mut self, world: &mut World, queue: u16) -> Result<Outcome, Status> {
        if queue == 0 || !self.submissions.contains_key(&queue) {
            return Err(Status::INVALID_QUEUE_ID.with_dnr(1));
        }
        for number in self.flights_where(|flight| flight.queue == queue) {
            self.cut_off(world, number, Status::ABORTED_SQ_DELETION);
        }
        self.submissions.remove(&queue);
        Ok(Outcome::Deleted(queue))
    }

    /// Abort: 0 when the command was aborted, 1 when not.
    fn abort(&mut self, world: &mut World, queue: u16, id: u16) -> u32 {
        let found = self.flights_where(|flight| (flight.queue, flight.command.id) == (queue, id));
        let is_event = queue == 0 && self.events.requests.contains(&id);
        if is_event {
            self.events.requests.retain(|request| *request != id);
            self.complete(world, 0, id, Status::ABORT_REQUESTED, 0);
            return 0;
        }
        let Some(number) = found.first().copied() else { return 1 };
        if world.faults.strike(FaultKind::NvmeAbortLate, |_| 0).is_some() {
            // The command ends by itself after all.
            if let Some(flight) = self.flights.get_mut(&number) {
                flight.held = false;
            }
            return 1;
        }
        self.cut_off(world, number, Status::ABORT_REQUESTED);
        world.nvme_counts(self.drive).aborted += 1;
        0
    }

    fn set_feature(&mut self, world: &mut World, feature: u8, value: u32) -> Result<u32, Status> {
        match feature {
            feature::VOLATILE_WRITE_CACHE if self.profile.write_cache => {
                self.cache = value & 1 == 1;
                if !self.cache {
                    self.flush_all(world);
                }
                Ok(0)
            }
            feature::NUMBER_OF_QUEUES => {
                if self.submissions.len() > 1 || self.completions.len() > 1 {
                    return Err(Status::SEQUENCE_ERROR.with_dnr(1));
                }
                let asked = QueueCount(value);
                if asked.submission() == 0xffff || asked.completion() == 0xffff {
                    return Err(Status::INVALID_FIELD.with_dnr(1));
                }
                let most = asked.submission().max(asked.completion()) + 1;
                let granted = match self.profile.gives_all_queues {
                    true => self.profile.queues,
                    false => most.min(self.profile.queues.into()) as u16,
                };
                self.granted = Some(granted);
                let less = u32::from(granted) - 1;
                let right = QueueCount::default().with_submission(less).with_completion(less).0;
                let lie = world.faults.strike(FaultKind::NvmeLie, lies::draw);
                Ok(lie.map_or(right, |parameter| lies::number(right, parameter)))
            }
            feature::ASYNC_EVENT_CONFIG => {
                self.events.config = AsyncEventConfig(value);
                Ok(0)
            }
            INTERRUPT_COALESCING => {
                self.coalescing = (value & 0xff, u64::from(value >> 8 & 0xff) * 100_000);
                Ok(0)
            }
            _ if KEPT.contains(&feature) => Ok(0),
            _ => Err(Status::INVALID_FIELD.with_dnr(1)),
        }
    }

    fn get_feature(&self, feature: u8) -> Result<u32, Status> {
        match feature {
            feature::VOLATILE_WRITE_CACHE if self.profile.write_cache => Ok(self.cache.into()),
            feature::NUMBER_OF_QUEUES => {
                let less = u32::from(self.granted()) - 1;
                Ok(QueueCount::default().with_submission(less).with_completion(less).0)
            }
            feature::ASYNC_EVENT_CONFIG => Ok(self.events.config.0),
            INTERRUPT_COALESCING => Ok(self.coalescing.0 | ((self.coalescing.1 / 100_000) as u32) << 8),
            _ if KEPT.contains(&feature) => Ok(0),
            _ => Err(Status::INVALID_FIELD.with_dnr(1)),
        }
    }

    /// The numbers of the commands under way that are as `is` says.
    fn flights_where(&self, is: impl Fn(&Flight) -> bool) -> Vec<u64> {
        self.flights.iter().filter(|(_, flight)| is(flight)).map(|(number, _)| *number).collect()
    }

    /// A command ends early; what it writes has happened, in part, or not.
    fn cut_off(&mut self, world: &mut World, number: u64, status: Status) {
        let Some(flight) = self.flights.remove(&number) else { return };
        self.leave(world, &flight);
        self.complete(world, flight.queue, flight.command.id, status, 0);
    }

    /// A command failed: the error log tells of it.
    pub(super) fn note_failure(&mut self, flight: &Flight, status: Status) {
        let lba = if flight.queue == 0 { 0 } else { flight.command.slba() };
        self.log_error(flight.queue, flight.command.id, status, lba);
    }

    /// Whether a deletion may end: what its queue left was posted.
    pub(super) fn is_deleted(&self, work: &Work) -> bool {
        match work {
            Work::Deletion(queue) => !self.completions.values().any(|slot| slot.holds_of(*queue)),
            _ => true,
        }
    }
}
