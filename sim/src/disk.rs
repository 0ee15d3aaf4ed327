//! A simulated disk behind a payload file.
//!
//! Fault model. Operations take drawn times and end in any order. Writes go to a volatile cache; a flush makes durable
//! what had completed before it was submitted, a write with FUA makes itself durable. At a power loss every other write
//! since is kept, lost, or torn at the atomic unit, as drawn. An operation may be slow, fail once, not be possible right
//! now, end short, or hang until the faults are over; a range may fail until then; a disk may be able to do nothing for a
//! while, and may turn out not to write zeroes or discard by itself. Of what a dead process had submitted, some is cancelled and the rest still happens, later, and its memory is read and written then; the file's lock is free
//! only when nothing of it is left. What it had queued and not yet submitted (by a poll) never happens.
//!
//! Never: a durable write lost, a write in a place where none was sent, two halves of one atomic unit.

use crate::faults::FaultKind;
use crate::files::SimFile;
use crate::follow::{DiskChange, Followed};
use crate::memory::SimWindow;
use crate::scheduler::Event;
use crate::trace::Record;
use crate::world::{self, Agent, Judged, Waiter, World};
use runtime::{
    ErrorKind, File, FileChannel, FileCompletion, FileInfo, FileLock, FileOp, Full, Instant, Result, Window,
};

/// Operations that one channel takes before it is full.
const CHANNEL_DEPTH: u32 = 128;
/// Shortest and longest ordinary time of an operation, in nanoseconds.
const LATENCY_NS: (u64, u64) = (4_000, 80_000);
/// Longest additional time of a slow one.
const SLOW_NS_MAX: u64 = 20_000_000;
/// Longest time for which a disk can do nothing.
const BUSY_NS_MAX: u64 = 1_500_000_000;
/// Longest time after its process's death at which an operation takes effect.
const LATE_NS_MAX: u64 = 3_000_000;
/// How often a stuck operation looks whether the faults are over.
const STUCK_NS: u64 = 1_000_000;
/// Of four operations of a dead process, how many are cancelled by its death.
const CANCELLED_OF_4: u32 = 1;
/// Blocks of a range that fails.
const BAD_RANGE_BLOCKS: u64 = 8;

/// A write that is not durable yet.
struct Cached {
    offset: u64,
    bytes: Vec<u8>,
    /// Written with FUA: durable by itself, and kept here only for its place in the order.
    durable: bool,
    /// Completed, so that a flush covers it.
    sequence: u64,
    /// Bytes that a power loss does not tear, aligned to as many.
    unit: u64,
}

/// The medium and its cache.
pub(crate) struct Disk {
    block_size: u32,
    atomic_bytes: u32,
    /// What reads see.
    now: Vec<u8>,
    /// What is durable, less `cached` on top of it.
    durable: Vec<u8>,
    cached: Vec<Cached>,
    /// Writes completed so far.
    sequence: u64,
    bad: Option<(u64, u64)>,
    /// Nothing can be done right now before this moment.
    busy_until: Instant,
    /// The open file description that holds the lock.
    pub(crate) lock: Option<u32>,
}

impl Disk {
    pub(crate) fn new(len: u64, block_size: u32, atomic_bytes: u32) -> Self {
        let bytes = vec![0; len as usize];
        Self {
            block_size,
            atomic_bytes,
            now: bytes.clone(),
            durable: bytes,
            cached: Vec::new(),
            sequence: 0,
            bad: None,
            busy_until: Instant(0),
            lock: None,
        }
    }

    /// Writes completed so far.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Puts bytes into the cache; they lie inside the file. A power loss tears them at multiples of `unit` bytes.
    pub(crate) fn write(&mut self, offset: u64, bytes: Vec<u8>, durable: bool, unit: u64) {
        let at = offset as usize;
        self.now[at..at + bytes.len()].copy_from_slice(&bytes);
        self.sequence += 1;
        self.cached.push(Cached { offset, bytes, durable, sequence: self.sequence, unit });
    }

    /// Makes durable what had completed up to `sequence`.
    pub(crate) fn flush(&mut self, sequence: u64) {
        let covered = self.cached.partition_point(|cached| cached.sequence <= sequence);
        for cached in self.cached.drain(..covered) {
            let at = cached.offset as usize;
            self.durable[at..at + cached.bytes.len()].copy_from_slice(&cached.bytes);
        }
    }
}

/// One operation under way.
pub(crate) struct Operation {
    open: u32,
    channel: u32,
    op: FileOp,
    offset: u64,
    len: u64,
    /// Where its payload lies: objects, since the kernel holds the pages and not the process. The mapping is kept to tell
    /// when a living process lets go of memory that a disk still uses.
    places: Vec<Place>,
    token: u64,
    /// Writes that a flush covers: those completed when it was submitted.
    covers: u64,
    fate: Fate,
    /// It hangs until the faults are over.
    stuck: Option<Instant>,
    /// Its process is dead, and what becomes of it was drawn.
    orphaned: bool,
}

/// A piece of a payload.
struct Place {
    mapping: u32,
    object: u32,
    at: u64,
    len: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    Short(u64),
    Fails(ErrorKind),
}

/// A channel's state in the world.
pub(crate) struct ChannelState {
    open: u32,
    /// Taken, and not yet sent to the disk by a poll.
    queued: Vec<Operation>,
    done: Vec<FileCompletion>,
    in_flight: u32,
    waiter: Waiter,
}

impl World {
    /// Changes the size of a disk; new bytes are zero.
    pub fn resize_disk(&mut self, disk: u32, len: u64) {
        let disk = &mut self.storage.disks[disk as usize];
        disk.flush(u64::MAX);
        disk.now.resize(len as usize, 0);
        disk.durable.resize(len as usize, 0);
    }

    /// What a read of the disk would see now.
    #[must_use]
    pub fn disk_content(&self, disk: u32) -> &[u8] {
        &self.storage.disks[disk as usize].now
    }

    /// Draws the fate of an operation.
    fn draw_fate(&mut self, disk: u32, op: FileOp, offset: u64, len: u64) -> (Fate, u64) {
        let state = &self.storage.disks[disk as usize];
        let (block, blocks) =
            (u64::from(state.block_size), state.now.len() as u64 / u64::from(state.block_size));
        let mut latency = self.streams.device.between(LATENCY_NS.0, LATENCY_NS.1);
        self.trace.add(Record::Draw, 4, latency);
        if let Some(slow) = self.faults.strike(FaultKind::DiskSlow, |rng| rng.between(100_000, SLOW_NS_MAX)) {
            latency += slow;
        }
        if let Some(first) = self.faults.strike(FaultKind::DiskBadRange, |rng| rng.below(blocks.max(1))) {
            self.storage.disks[disk as usize].bad = Some((first * block, (first + BAD_RANGE_BLOCKS) * block));
        }
        let bad = self.storage.disks[disk as usize].bad.filter(|_| !self.faults.is_healed());
        if bad.is_some_and(|(from, to)| offset < to && from < offset + len) {
            return (Fate::Fails(ErrorKind::Io), latency);
        }
        if self.faults.strike(FaultKind::DiskError, |_| 0).is_some() {
            return (Fate::Fails(ErrorKind::Io), latency);
        }
        if let Some(busy) = self.faults.strike(FaultKind::DiskBusy, |rng| rng.between(1, BUSY_NS_MAX)) {
            self.storage.disks[disk as usize].busy_until = Instant(self.now.0 + busy);
        }
        let busy = self.now < self.storage.disks[disk as usize].busy_until && !self.faults.is_healed();
        if busy || self.faults.strike(FaultKind::DiskAgain, |_| 0).is_some() {
            return (Fate::Fails(ErrorKind::WouldBlock), latency);
        }
        if matches!(op, FileOp::Discard | FileOp::WriteZeroes { .. })
            && self.faults.strike(FaultKind::DiskCannot, |_| 0).is_some()
        {
            return (Fate::Fails(ErrorKind::Unsupported), latency);
        }
        if matches!(op, FileOp::Read | FileOp::Write { .. }) && len > block {
            let done = self.faults.strike(FaultKind::DiskShort, |rng| 1 + rng.below(len / block - 1));
            if let Some(done) = done {
                return (Fate::Short((done * block).min(len)), latency);
            }
        }
        (Fate::Done, latency)
    }

    /// A queued operation reaches the disk.
    fn begin_operation(&mut self, mut operation: Operation) {
        let open = operation.open;
        let disk = self.storage.opens[open as usize].disk;
        let (fate, latency) = self.draw_fate(disk, operation.op, operation.offset, operation.len);
        operation.fate = fate;
        operation.stuck = self.faults.strike(FaultKind::DiskStuck, |_| 0).map(|_| self.now);
        self.storage.opens[open as usize].in_flight += 1;
        let number = match self.storage.free_operations.pop() {
            Some(number) => number,
            None => {
                self.storage.operations.push(None);
                self.storage.operations.len() as u32 - 1
            }
        };
        let began = DiskChange::Began { op: operation.op, offset: operation.offset, len: operation.len };
        self.trace.tell(Followed::Disk(disk, number, began));
        self.storage.operations[number as usize] = Some(operation);
        let at = Instant(self.now.0 + latency);
        self.schedule(at, Event::Disk(number));
    }

    /// Since when an operation hangs that will until the faults are over.
    pub(crate) fn stuck_since(&self) -> Option<Instant> {
        let hanging = self.storage.operations.iter().flatten().filter_map(|operation| operation.stuck);
        hanging.min().filter(|_| !self.faults.is_healed())
    }

    /// The moment of an operation has come.
    pub(crate) fn disk_event(&mut self, number: u32) {
        let Some(operation) = &mut self.storage.operations[number as usize] else { return };
        if operation.stuck.is_some() && !self.faults.is_healed() {
            let at = Instant(self.now.0 + STUCK_NS);
            self.schedule(at, Event::Disk(number));
            return;
        }
        let open = operation.open;
        let alive = self.processes[self.storage.opens[open as usize].process as usize].alive;
        let mut cancelled = false;
        if !alive && !std::mem::replace(&mut operation.orphaned, true) {
            cancelled = self.streams.device.chance(CANCELLED_OF_4, 4);
            let late = self.faults.strike(FaultKind::LateWrite, |rng| rng.between(1, LATE_NS_MAX));
            if let Some(late) = late.filter(|_| !cancelled) {
                let at = Instant(self.now.0 + late);
                self.schedule(at, Event::Disk(number));
                return;
            }
        }
        let Some(operation) = self.storage.operations[number as usize].take() else { return };
        self.storage.free_operations.push(number);
        let result = if cancelled { Ok(0) } else { self.take_effect(&operation) };
        let how = match (&result, cancelled, operation.orphaned) {
            (_, true, _) => "cancelled by the death",
            (Ok(_), false, true) => "done late, after the death",
            (Ok(_), false, false) => "done",
            (Err(_), false, _) => "failed",
        };
        self.trace.tell(Followed::Disk(
            self.storage.opens[open as usize].disk,
            number,
            DiskChange::Ended(how),
        ));
        self.storage.opens[open as usize].in_flight -= 1;
        self.trace.add(Record::Disk, operation.token, operation.offset);
        let channel = &mut self.storage.channels[operation.channel as usize];
        channel.in_flight -= 1;
        channel.done.push(FileCompletion { token: operation.token, result });
        let waiter = channel.waiter;
        self.changed();
        self.wake(waiter);
        self.close_if_done(open);
    }

    fn take_effect(&mut self, operation: &Operation) -> Result<u64> {
        let disk = self.storage.opens[operation.open as usize].disk;
        let len = match operation.fate {
            Fate::Fails(kind) => return Err(kind.into()),
            Fate::Short(len) => len,
            Fate::Done => operation.len,
        };
        let Disk { ref now, atomic_bytes, .. } = self.storage.disks[disk as usize];
        let (size, unit) = (now.len() as u64, u64::from(atomic_bytes));
        match operation.op {
            FileOp::Read => {
                let len = len.min(size.saturating_sub(operation.offset));
                let mut done = 0;
                for place in &operation.places {
                    let part = place.len.min(len - done);
                    if part == 0 {
                        break;
                    }
                    let from = (operation.offset + done) as usize;
                    let (at, to) = (place.at as usize, (place.at + part) as usize);
                    self.dma(operation, place, part, true);
                    let bytes = &self.storage.disks[disk as usize].now[from..from + part as usize];
                    // The owner of the memory may have shrunk it: the kernel then answers EFAULT.
                    let target = self.memory.bytes_mut(place.object).get_mut(at..to).ok_or(ErrorKind::Io)?;
                    target.copy_from_slice(bytes);
                    self.trace.add(Record::Bulk, u64::from(place.object) << 40 | place.at, part);
                    self.trace.bytes(bytes);
                    done += part;
                }
                Ok(done)
            }
            FileOp::Write { fua } => {
                if operation.offset >= size {
                    return Err(ErrorKind::NoSpace.into());
                }
                let len = len.min(size - operation.offset);
                let mut bytes = Vec::with_capacity(len as usize);
                for place in &operation.places {
                    let part = place.len.min(len - bytes.len() as u64);
                    if part == 0 {
                        break;
                    }
                    let (at, to) = (place.at as usize, (place.at + part) as usize);
                    self.dma(operation, place, part, false);
                    bytes
                        .extend_from_slice(self.memory.bytes(place.object).get(at..to).ok_or(ErrorKind::Io)?);
                }
                let done = bytes.len() as u64;
                self.storage.disks[disk as usize].write(operation.offset, bytes, fua, unit);
                Ok(done)
            }
            FileOp::Flush => {
                self.storage.disks[disk as usize].flush(operation.covers);
                Ok(0)
            }
            FileOp::Discard | FileOp::WriteZeroes { .. } => {
                let len = len.min(size.saturating_sub(operation.offset));
                if len < operation.len {
                    return Err(ErrorKind::Invalid.into());
                }
                self.storage.disks[disk as usize].write(operation.offset, vec![0; len as usize], false, unit);
                Ok(operation.len)
            }
        }
    }

    /// A device touches `len` bytes of a place; whoever watches it is told.
    fn dma(&mut self, operation: &Operation, place: &Place, len: u64, store: bool) {
        let process = self.storage.opens[operation.open as usize].process;
        if self.is_alive(process) && self.memory.is_unmapped(place.mapping) {
            let object = place.object;
            self.fail(
                "memory",
                format!("object {object} was unmapped while a disk's operation on it was under way"),
            );
        }
        if let Some((guest, address)) = self.memory.watcher(place.object, place.at) {
            self.observe(guest, Agent::Disk, address, len, store);
        }
    }

    /// A process died: what it had sent to the disk goes on, and nobody hears of its end; what was queued never happens.
    pub(crate) fn operations_of_dead(&mut self, process: u32) {
        for channel in &mut self.storage.channels {
            if self.storage.opens[channel.open as usize].process == process {
                channel.waiter = Waiter::Nobody;
                channel.queued.clear();
            }
        }
    }

    /// Sends what is queued on a channel to its disk; the process may die before each.
    fn send_queued(&mut self, channel: u32) {
        let mut queued = std::mem::take(&mut self.storage.channels[channel as usize].queued);
        for operation in queued.drain(..) {
            self.crash_point();
            self.begin_operation(operation);
        }
        self.storage.channels[channel as usize].queued = queued;
    }

    /// The power is gone: of the writes that were not durable, each unit is there or not, as drawn; those under way may
    /// have reached the medium in part.
    pub(crate) fn disk_power_loss(&mut self, disk: u32) {
        for number in 0..self.storage.operations.len() {
            let ours = |operation: &Operation| self.storage.opens[operation.open as usize].disk == disk;
            if !self.storage.operations[number].as_ref().is_some_and(ours) {
                continue;
            }
            // Its number is not given out again: the event that names it is still in the queue.
            let Some(operation) = self.storage.operations[number].take() else { continue };
            self.storage.opens[operation.open as usize].in_flight -= 1;
            if matches!(operation.op, FileOp::Write { .. }) && self.streams.device.chance(1, 2) {
                let durable = Operation { op: FileOp::Write { fua: false }, fate: Fate::Done, ..operation };
                let _ = self.take_effect(&durable);
            }
        }
        let cached = std::mem::take(&mut self.storage.disks[disk as usize].cached);
        for Cached { offset, bytes, durable, unit, .. } in cached {
            // All, nothing, or each unit by itself.
            let mode = if durable { 0 } else { self.streams.device.below(3) };
            let mut at = 0;
            while at < bytes.len() as u64 {
                let part = (unit - (offset + at) % unit).min(bytes.len() as u64 - at);
                if mode == 0 || (mode == 1 && self.streams.device.chance(1, 2)) {
                    let to = (offset + at) as usize;
                    let from = &bytes[at as usize..(at + part) as usize];
                    self.storage.disks[disk as usize].durable[to..to + part as usize].copy_from_slice(from);
                }
                at += part;
            }
        }
        let disk = &mut self.storage.disks[disk as usize];
        disk.now.clone_from(&disk.durable);
        disk.lock = None;
    }
}

impl File for SimFile {
    fn info(&self) -> Result<FileInfo> {
        world::with(|world| {
            let open = &world.storage.opens[self.open as usize];
            let disk = &world.storage.disks[open.disk as usize];
            Ok(FileInfo {
                len: disk.now.len() as u64,
                block_size: disk.block_size,
                physical_block_size: disk.atomic_bytes.max(disk.block_size),
                is_block_device: false,
                can_discard: true,
                can_write_zeroes: true,
                identity: (0, u64::from(open.disk)),
            })
        })
    }

    fn try_lock(&self) -> Result<FileLock> {
        world::with(|world| {
            let open = &world.storage.opens[self.open as usize];
            let alive = world.processes[open.process as usize].alive;
            let disk = open.disk as usize;
            let lock = &mut world.storage.disks[disk].lock;
            if alive && (lock.is_none() || *lock == Some(self.open)) {
                *lock = Some(self.open);
                return Ok(FileLock::Held);
            }
            Ok(FileLock::HeldElsewhere)
        })
    }
}

/// One core's channel on a simulated file.
#[derive(Debug)]
pub struct SimChannel {
    channel: u32,
    /// Keeps the open file description.
    file: SimFile,
}

impl SimChannel {
    pub(crate) fn open(file: &SimFile) -> Result<Self> {
        let channel = world::with(|world| {
            world.storage.channels.push(ChannelState {
                open: file.open,
                queued: Vec::new(),
                done: Vec::new(),
                in_flight: 0,
                waiter: Waiter::Nobody,
            });
            world.storage.channels.len() as u32 - 1
        });
        Ok(Self { channel, file: SimFile::another(file.open) })
    }

    pub(crate) fn await_completion(&self, waiter: Waiter) -> bool {
        world::with(|world| {
            let state = &mut world.storage.channels[self.channel as usize];
            state.waiter = waiter;
            !state.done.is_empty()
        })
    }
}

impl FileChannel for SimChannel {
    type Window = SimWindow;

    fn submit(
        &mut self,
        op: FileOp,
        offset: u64,
        len: u64,
        segments: &[SimWindow],
        token: u64,
    ) -> std::result::Result<(), Full> {
        world::with(|world| {
            world.crash_point();
            if world.is_fenced() {
                return Ok(());
            }
            if world.storage.channels[self.channel as usize].in_flight >= CHANNEL_DEPTH {
                return Err(Full);
            }
            let open = self.file.open;
            let disk = world.storage.opens[open as usize].disk;
            let block = u64::from(world.storage.disks[disk as usize].block_size);
            if !(offset | len).is_multiple_of(block) {
                world.fail(
                    "disk",
                    format!("{op:?} of {len} bytes at {offset} is not in whole blocks of {block}"),
                );
            }
            world.judged.fence += 1;
            if world.storage.disks[disk as usize].lock != Some(open) {
                world.fail(Judged::FENCE, format!("{op:?} was submitted to a file whose lock is not held"));
            }
            if world.storage.opens[open as usize].read_only && !matches!(op, FileOp::Read | FileOp::Flush) {
                world.fail("disk", format!("{op:?} was submitted to a file that was opened for reading"));
            }
            let places = segments
                .iter()
                .map(|window| {
                    let (object, at) = world.memory.place(window);
                    Place { mapping: window.mapping, object, at, len: window.len() }
                })
                .collect();
            let channel = &mut world.storage.channels[self.channel as usize];
            channel.in_flight += 1;
            channel.queued.push(Operation {
                open,
                channel: self.channel,
                op,
                offset,
                len,
                places,
                token,
                covers: world.storage.disks[disk as usize].sequence,
                fate: Fate::Done,
                stuck: None,
                orphaned: false,
            });
            Ok(())
        })
    }

    fn poll(&mut self, completions: &mut Vec<FileCompletion>) -> bool {
        world::with(|world| {
            if world.is_fenced() {
                return false;
            }
            if !world.storage.channels[self.channel as usize].queued.is_empty() {
                world.drain_acting();
                world.send_queued(self.channel);
            }
            let done = &mut world.storage.channels[self.channel as usize].done;
            let any = !done.is_empty();
            completions.append(done);
            any
        })
    }

    fn bounced_bytes(&self) -> u64 {
        0
    }
}
