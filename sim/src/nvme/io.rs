//! Commands under way: how each goes from its entry to its completion, and the I/O commands (NVM 3.2, section 7.1).
//!
//! A write gathers its data from memory, waits its time, and takes effect; a read takes its content in one moment and
//! brings it to memory piece by piece. A write longer than AWUN takes effect in parts, between which others see it half
//! done; one cut off by a reset or an abort has happened, in part, or not.

use super::admin::Outcome;
use super::queues::LOOK_HEALED_NS;
use super::transfer::{Piece, walk};
use super::{Controller, DELAY_NS, Namespace};
use crate::faults::FaultKind;
use crate::trace::Record;
use crate::world::World;
use runtime::Instant;
use stack::nvme::bits::{Command, DSM_RANGES_MAX, DsmRange, NSID_ALL, PAGE, Status, io};

/// Longest additional time of a slow command, in nanoseconds.
const SLOW_NS_MAX: u64 = 20_000_000;
/// Longest time after its process's death at which a write takes effect.
const LATE_NS_MAX: u64 = 3_000_000;
/// Longest time between two pieces of a transfer.
const PIECE_NS_MAX: u64 = 400;

/// What a command does next.
#[derive(Debug)]
pub(super) enum Work {
    /// It is an admin command.
    Admin,
    /// A submission queue was deleted; its completions are still to be posted.
    Deletion(u16),
    /// Brings data from memory.
    Gather { pieces: Vec<Piece>, data: Vec<u8> },
    /// Takes effect, from byte `done` on.
    Effect { data: Vec<u8>, done: usize },
    /// Brings data to memory.
    Scatter { pieces: Vec<Piece>, data: Vec<u8>, done: usize },
    /// Ends.
    Finish(u32),
}

/// A command under way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) queue: u16,
    pub(super) command: Command,
    /// When it goes on.
    at: Instant,
    /// It does not, before it is aborted or the faults are over.
    pub(super) held: bool,
    /// Its process is dead, and what becomes of it was drawn.
    orphaned: bool,
    /// How it ends.
    status: Status,
    /// It fails after so many bytes took effect.
    torn: Option<usize>,
    /// Writes that a flush covers.
    covers: u64,
    /// It has ended, and its entry comes once more.
    echoes: bool,
    work: Work,
}

impl Flight {
    /// When it goes on.
    pub(super) fn due(&self, world: &World) -> Instant {
        if self.held && !world.faults.is_healed() { Instant(world.now.0 + LOOK_HEALED_NS) } else { self.at }
    }
}

/// Bytes of a command's range.
fn range_len(command: &Command, namespace: &Namespace) -> u64 {
    u64::from(command.blocks()) * u64::from(namespace.profile.block_size)
}

impl Controller {
    fn namespace<'a>(&self, world: &'a World, nsid: u32) -> Option<&'a Namespace> {
        let namespaces = &world.nvme(self.drive).namespaces;
        let namespace = namespaces.get(usize::try_from(nsid.checked_sub(1)?).ok()?)?;
        namespace.attached.then_some(namespace)
    }

    /// Bytes that a write has at most to take effect whole: AWUN, or NAWUN.
    fn atomic_bytes(&self, namespace: &Namespace) -> usize {
        let blocks = namespace.profile.atomic_power_fail.unwrap_or(0).max(self.profile.atomic);
        usize::from(blocks) * namespace.profile.block_size as usize
    }

    /// A command was fetched.
    pub(super) fn take_command(&mut self, world: &mut World, queue: u16, command: Command) {
        let id = command.id;
        let is_it = |flight: &Flight| !flight.echoes && (flight.queue, flight.command.id) == (queue, id);
        let is_taken = self.flights.values().any(is_it) || queue == 0 && self.events.requests.contains(&id);
        if is_taken {
            self.complete(world, queue, id, Status::COMMAND_ID_CONFLICT.with_dnr(1), 0);
            return;
        }
        let begun = match queue {
            0 => Ok(Work::Admin),
            _ => self.begin_io(world, &command),
        };
        let (low, high) = DELAY_NS;
        let mut flight = Flight {
            queue,
            command,
            at: Instant(world.now.0 + world.streams.device.between(low, high)),
            held: world.faults.strike(FaultKind::NvmeHeld, |_| 0).is_some(),
            orphaned: false,
            status: Status::SUCCESS,
            torn: None,
            covers: 0,
            echoes: false,
            work: Work::Finish(0),
        };
        match begun {
            Ok(work) => {
                flight.work = work;
                if queue > 0 {
                    self.draw_fate(world, &mut flight);
                }
            }
            Err(status) => flight.status = status,
        }
        self.flights.insert(self.fetched, flight);
        self.fetched += 1;
    }

    /// The entry of a command that ends now comes once more, so many nanoseconds later.
    pub(super) fn echo(&mut self, world: &World, queue: u16, id: u16, status: Status, after_ns: u64) {
        let flight = Flight {
            queue,
            command: Command { id, ..Command::default() },
            at: Instant(world.now.0 + after_ns),
            held: false,
            orphaned: false,
            status,
            torn: None,
            covers: 0,
            echoes: true,
            work: Work::Finish(0),
        };
        self.flights.insert(self.fetched, flight);
        self.fetched += 1;
    }

    /// The memory that commands under way have still to read or write: device addresses, with lengths.
    pub(super) fn memory_to_come(&self) -> Vec<(u64, u64)> {
        let pieces = self.flights.values().flat_map(|flight| match &flight.work {
            Work::Gather { pieces, .. } | Work::Scatter { pieces, .. } => pieces.as_slice(),
            _ => &[],
        });
        pieces.filter(|piece| !piece.bucket).map(|piece| (piece.address, piece.len)).collect()
    }

    /// Judges an I/O command, and says what it does first.
    fn begin_io(&self, world: &mut World, command: &Command) -> Result<Work, Status> {
        let refused = Status::INVALID_FIELD.with_dnr(1);
        let profile = &self.profile;
        let effect = Work::Effect { data: Vec::new(), done: 0 };
        if command.flags & 3 != 0 {
            return Err(refused);
        }
        if command.opcode == io::FLUSH && command.nsid == NSID_ALL {
            return Ok(effect);
        }
        let is_known = match command.opcode {
            io::FLUSH | io::READ | io::WRITE => true,
            io::COMPARE => profile.compare,
            io::WRITE_ZEROES => profile.write_zeroes,
            io::DATASET_MANAGEMENT => profile.deallocate,
            _ => false,
        };
        if !is_known {
            return Err(Status::INVALID_OPCODE.with_dnr(1));
        }
        let namespace =
            self.namespace(world, command.nsid).cloned().ok_or(Status::INVALID_NAMESPACE.with_dnr(1))?;
        let writes = matches!(command.opcode, io::WRITE | io::WRITE_ZEROES | io::DATASET_MANAGEMENT);
        if writes && namespace.profile.read_only {
            return Err(Status::WRITE_PROTECTED.with_dnr(1));
        }
        let on_range = !matches!(command.opcode, io::FLUSH | io::DATASET_MANAGEMENT);
        let end = command.slba().checked_add(command.blocks().into());
        if on_range && end.is_none_or(|end| end > namespace.profile.blocks) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr(1));
        }
        let len = match command.opcode {
            io::READ | io::WRITE | io::COMPARE => range_len(command, &namespace),
            io::DATASET_MANAGEMENT => u64::from((command.cdw10[0] & 0xff) + 1) * DsmRange::LEN as u64,
            _ => 0,
        };
        let (blocks, is_write) = (u64::from(command.blocks()), command.opcode == io::WRITE);
        if matches!(command.opcode, io::READ | io::WRITE | io::COMPARE)
            && namespace.profile.crosses(command.slba(), blocks, is_write)
        {
            world.nvme_counts(self.drive).crossed += 1;
        }
        if profile.mdts > 0 && len > PAGE << profile.mdts {
            return Err(refused);
        }
        if command.opcode == io::WRITE_ZEROES
            && profile.write_zeroes_limit > 0
            && range_len(command, &namespace) > PAGE << profile.write_zeroes_limit
        {
            return Err(refused);
        }
        if len == 0 {
            return Ok(effect);
        }
        let pieces = walk(world, self.me, command, len, profile.sgls)?;
        Ok(match command.opcode {
            io::READ => Work::Scatter { pieces, data: Vec::new(), done: 0 },
            _ => Work::Gather { pieces, data: Vec::new() },
        })
    }

    /// Draws how an I/O command fares.
    fn draw_fate(&mut self, world: &mut World, flight: &mut Flight) {
        let (low, high) = self.profile.latency_ns;
        let mut time = world.streams.device.between(low, high);
        world.trace.add(Record::Draw, 5, time);
        if let Some(slow) = world.faults.strike(FaultKind::NvmeSlow, |rng| rng.between(100_000, SLOW_NS_MAX))
        {
            time += slow;
        }
        flight.at = Instant(world.now.0 + time);
        if let Some(dnr) = world.faults.strike(FaultKind::NvmeMediaError, |rng| rng.below(2)) {
            let status = match flight.command.opcode {
                io::READ | io::COMPARE => Status::UNRECOVERED_READ_ERROR,
                _ => Status::WRITE_FAULT,
            };
            flight.status = status.with_dnr(dnr as u16).with_more(1);
        } else if let Some(which) = world.faults.strike(FaultKind::NvmeTransient, |rng| rng.below(16)) {
            let status = [
                Status::COMMAND_INTERRUPTED,
                Status::NAMESPACE_NOT_READY,
                Status::INTERNAL_ERROR,
                Status::TRANSIENT_TRANSPORT,
            ][which as usize & 3];
            flight.status = status.with_crd(which as u16 >> 2);
        } else if flight.command.opcode == io::WRITE && flight.command.blocks() > 1 {
            let blocks = u64::from(flight.command.blocks());
            let torn = world.faults.strike(FaultKind::NvmeTornWrite, |rng| rng.between(1, blocks - 1));
            if let (Some(torn), Some(namespace)) = (torn, self.namespace(world, flight.command.nsid)) {
                flight.torn = Some(torn as usize * namespace.profile.block_size as usize);
                flight.status = Status::WRITE_FAULT;
            }
        }
        if flight.command.opcode == io::FLUSH {
            // What had completed before is covered, and whatever else is there by now.
            flight.covers = self
                .namespace(world, flight.command.nsid)
                .map_or(0, |namespace| world.storage.disks[namespace.disk as usize].sequence());
        }
    }

    /// A command goes on.
    pub(super) fn advance(&mut self, world: &mut World, number: u64) {
        let Some(mut flight) = self.flights.remove(&number) else { return };
        if !flight.orphaned && flight.queue > 0 && world.is_orphaned(self.me) {
            flight.orphaned = true;
            if let Some(late) = world.faults.strike(FaultKind::LateWrite, |rng| rng.between(1, LATE_NS_MAX)) {
                flight.at = Instant(world.now.0 + late);
                self.flights.insert(number, flight);
                return;
            }
        }
        let soon = Instant(world.now.0 + world.streams.device.below(PIECE_NS_MAX));
        let work = std::mem::replace(&mut flight.work, Work::Finish(0));
        let next = match work {
            Work::Finish(result) => return self.finish(world, &flight, result),
            Work::Deletion(_) if self.is_deleted(&work) => return self.finish(world, &flight, 0),
            Work::Deletion(queue) => Ok(Work::Deletion(queue)),
            Work::Admin => self.administer(world, &flight.command).and_then(|outcome| match outcome {
                Outcome::Done(result) => Ok(Work::Finish(result)),
                Outcome::Deleted(queue) => Ok(Work::Deletion(queue)),
                Outcome::Kept => Err(Status::SUCCESS),
                Outcome::Data(data) => {
                    let pieces = walk(world, self.me, &flight.command, data.len() as u64, 0)?;
                    Ok(Work::Scatter { pieces, data, done: 0 })
                }
            }),
            Work::Gather { pieces, data } => self.gather(world, pieces, data),
            Work::Effect { data, done } => self.take_effect(world, &flight, data, done),
            Work::Scatter { pieces, data, done } => self.scatter(world, &flight, pieces, data, done),
        };
        match next {
            Ok(work) => flight.work = work,
            // An Asynchronous Event Request: it stays outstanding.
            Err(Status::SUCCESS) => return,
            Err(status) => flight.status = status,
        }
        flight.at = soon;
        self.flights.insert(number, flight);
    }

    fn finish(&mut self, world: &mut World, flight: &Flight, result: u32) {
        if !flight.status.is_success() {
            self.note_failure(flight, flight.status);
        }
        let overtakes = self.flights.values().next().is_some_and(|oldest| {
            // The oldest that is still under way was fetched earlier, if it is of the same queue and not held back by order.
            oldest.queue == flight.queue && oldest.queue > 0 && !oldest.echoes && !flight.echoes
        });
        world.nvme_counts(self.drive).overtaken += u64::from(overtakes);
        self.complete(world, flight.queue, flight.command.id, flight.status, result);
    }

    fn gather(&self, world: &mut World, mut pieces: Vec<Piece>, mut data: Vec<u8>) -> Result<Work, Status> {
        let Piece { address, len, bucket } = pieces.remove(0);
        if bucket {
            return Err(Status::SGL_TYPE_INVALID.with_dnr(1));
        }
        let at = data.len();
        data.resize(at + len as usize, 0);
        world.dma_read(self.me, address, &mut data[at..]).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        Ok(match pieces.is_empty() {
            true => Work::Effect { data, done: 0 },
            false => Work::Gather { pieces, data },
        })
    }

    fn scatter(
        &self,
        world: &mut World,
        flight: &Flight,
        mut pieces: Vec<Piece>,
        mut data: Vec<u8>,
        done: usize,
    ) -> Result<Work, Status> {
        if flight.queue > 0 && data.is_empty() {
            // A read takes its content at once.
            if !flight.status.is_success() {
                return Err(flight.status);
            }
            data = self.content(world, &flight.command)?;
        }
        let Piece { address, len, bucket } = pieces.remove(0);
        let end = done + len as usize;
        if !bucket {
            world.dma_write(self.me, address, &data[done..end]).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        }
        Ok(match pieces.is_empty() {
            true => Work::Finish(0),
            false => Work::Scatter { pieces, data, done: end },
        })
    }

    /// The content of a command's range, now.
    fn content(&self, world: &World, command: &Command) -> Result<Vec<u8>, Status> {
        let namespace = self.namespace(world, command.nsid).ok_or(Status::INVALID_NAMESPACE.with_dnr(1))?;
        let at = (command.slba() * u64::from(namespace.profile.block_size)) as usize;
        let end = at + range_len(command, namespace) as usize;
        // The namespace may have become smaller.
        let content = world.disk_content(namespace.disk).get(at..end);
        content.map(<[u8]>::to_vec).ok_or(Status::LBA_OUT_OF_RANGE.with_dnr(1))
    }

    /// A command takes effect on the media.
    fn take_effect(
        &mut self,
        world: &mut World,
        flight: &Flight,
        data: Vec<u8>,
        done: usize,
    ) -> Result<Work, Status> {
        let command = &flight.command;
        if !flight.status.is_success() && flight.torn.is_none() {
            return Err(flight.status);
        }
        if command.opcode == io::FLUSH && command.nsid == NSID_ALL {
            self.flush_all(world);
            return Ok(Work::Finish(0));
        }
        let namespace =
            self.namespace(world, command.nsid).cloned().ok_or(Status::INVALID_NAMESPACE.with_dnr(1))?;
        match command.opcode {
            io::FLUSH => world.storage.disks[namespace.disk as usize].flush(flight.covers),
            io::COMPARE if self.content(world, command)? != data => {
                return Err(Status::COMPARE_FAILURE.with_dnr(1));
            }
            io::DATASET_MANAGEMENT => self.deallocate(world, command, &namespace, &data)?,
            io::WRITE => {
                let unit = self.atomic_bytes(&namespace);
                let wanted = flight.torn.unwrap_or(data.len());
                let left = wanted - done;
                let part = if left > unit && world.streams.device.chance(1, 2) { unit } else { left };
                self.store(world, flight, &namespace, &data, done..done + part)?;
                if done + part < wanted {
                    return Ok(Work::Effect { data, done: done + part });
                }
                world.nvme_counts(self.drive).late_writes += u64::from(flight.orphaned);
            }
            io::WRITE_ZEROES => {
                let zeroes = vec![0; range_len(command, &namespace) as usize];
                self.store(world, flight, &namespace, &zeroes, 0..zeroes.len())?;
            }
            _ => {}
        }
        if flight.status.is_success() { Ok(Work::Finish(0)) } else { Err(flight.status) }
    }

    /// Puts a part of a write's data on the media.
    fn store(
        &self,
        world: &mut World,
        flight: &Flight,
        namespace: &Namespace,
        data: &[u8],
        part: std::ops::Range<usize>,
    ) -> Result<(), Status> {
        let block = u64::from(namespace.profile.block_size);
        let at = flight.command.slba() * block + part.start as u64;
        if at + part.len() as u64 > namespace.profile.blocks * block {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr(1));
        }
        // Within the atomic unit a power failure leaves all or nothing of it; beyond, any of its blocks.
        let unit = namespace.profile.atomic_power_fail.unwrap_or(self.profile.atomic_power_fail);
        let blocks = u64::from(flight.command.blocks());
        let crosses = namespace.profile.crosses(flight.command.slba(), blocks, true);
        let whole = data.len() as u64 <= u64::from(unit) * block && !crosses;
        let durable = flight.command.cdw10[2] & Command::FUA != 0 || !self.cache;
        let unit = if whole { u64::MAX } else { block };
        world.trace.add(Record::Disk, at, part.len() as u64);
        world.storage.disks[namespace.disk as usize].write(at, data[part].to_vec(), durable, unit);
        world.changed();
        Ok(())
    }

    fn deallocate(
        &self,
        world: &mut World,
        command: &Command,
        namespace: &Namespace,
        data: &[u8],
    ) -> Result<(), Status> {
        let block = u64::from(namespace.profile.block_size);
        let ranges: Vec<DsmRange> = data.chunks_exact(DsmRange::LEN).map(DsmRange::decode).collect();
        assert!(ranges.len() <= DSM_RANGES_MAX);
        let limit = self.profile.range_limit;
        for range in &ranges {
            let end = range.slba.checked_add(range.blocks.into());
            if end.is_none_or(|end| end > namespace.profile.blocks) {
                return Err(Status::LBA_OUT_OF_RANGE.with_dnr(1));
            }
            if limit > 0 && range.blocks > limit {
                return Err(Status::INVALID_FIELD.with_dnr(1));
            }
        }
        if command.cdw10[1] & Command::AD != 0 && namespace.profile.deallocated_is_zero {
            let disk = &mut world.storage.disks[namespace.disk as usize];
            for range in ranges.iter().filter(|range| range.blocks > 0) {
                let zeroes = vec![0; (u64::from(range.blocks) * block) as usize];
                disk.write(range.slba * block, zeroes, !self.cache, block);
            }
        }
        Ok(())
    }

    /// Makes everything durable.
    pub(super) fn flush_all(&self, world: &mut World) {
        let disks: Vec<u32> =
            world.nvme(self.drive).namespaces.iter().map(|namespace| namespace.disk).collect();
        for disk in disks {
            world.storage.disks[disk as usize].flush(u64::MAX);
        }
    }

    /// A command is left where it is: a write whose data are there has happened, in part, or not.
    pub(super) fn leave(&self, world: &mut World, flight: &Flight) {
        let (Work::Effect { data, done }, io::WRITE) = (&flight.work, flight.command.opcode) else { return };
        let Some(namespace) = self.namespace(world, flight.command.nsid).cloned() else { return };
        let block = namespace.profile.block_size as usize;
        let left = (data.len() - done) / block;
        let whole = data.len() <= self.atomic_bytes(&namespace);
        let blocks = match world.streams.device.below(3) {
            0 => 0,
            1 => left,
            _ if whole => 0,
            _ => world.streams.device.below(left as u64 + 1) as usize,
        };
        // A failure to do it is nobody's to hear of.
        let _ = self.store(world, flight, &namespace, data, *done..done + blocks * block);
    }

    /// Drops all commands under way.
    pub(super) fn drop_flights(&mut self, world: &mut World) {
        for flight in std::mem::take(&mut self.flights).into_values() {
            self.leave(world, &flight);
        }
    }
}
