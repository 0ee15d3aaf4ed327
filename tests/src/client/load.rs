//! A seeded load over all queues of a [`Frontend`], with every completion judged.
//!
//! Judged of each request: that its head came back exactly once (by the ring), its status, the written length, the payload by
//! the [`Model`], and that nobody touches its buffers after its completion (they are filled with a pattern that is looked at
//! before they are used again, much later). Chain layouts are drawn: pieces that are not multiples of 512, header and data or
//! data and status in one descriptor, indirect tables. The requests live in guest memory and here, so a kill of the back-end
//! changes nothing: after [`Frontend::reconnect`] the load goes on waiting for the same requests.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::frontend::{Frontend, feature};
use super::model::{Change, Model, SECTOR};
use super::ring::Segment;
use super::{ClientError, Draw, Result};

/// Request types (virtio 1.3 section 5.2.6).
pub mod kind {
    #![allow(missing_docs, reason = "the names are the specification's own")]
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Request status: done.
pub const STATUS_OK: u8 = 0;
/// Request status: the device or the driver erred.
pub const STATUS_IOERR: u8 = 1;
/// Request status: the device doesn't know the request.
pub const STATUS_UNSUPPORTED: u8 = 2;
/// What the status byte holds until the device writes it.
const STATUS_UNWRITTEN: u8 = 0xee;
/// What fills a buffer that no request uses.
const POISON: u8 = 0xa5;
/// Bytes of the request header.
const HEADER: u64 = 16;
/// Bytes of one discard or write-zeroes segment.
const RANGE: u64 = 16;
/// The most descriptors that one request is drawn with.
const SEGMENTS_MAX: u64 = 12;
/// Room before the data of a slot: the header ends where the data begin, so that one descriptor can hold both.
const LEAD: u64 = 4096;
/// Room behind the data: the status may follow them directly.
const TAIL: u64 = 4096;
/// How much later than its used element a call may come before it counts as lost.
const CALL_WAIT: Duration = Duration::from_secs(5);
/// The longest sleep between two looks at the rings: a lost notification shows as a slow test, not as a hang, and
/// [`Load::missed_calls`] counts it.
const LOOK: Duration = Duration::from_millis(20);

/// What the load does.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Seed of every draw.
    pub seed: u64,
    /// Sectors of the disk that it uses, from 0.
    pub sectors: u64,
    /// Requests out per queue.
    pub depth: u16,
    /// The largest payload, in sectors.
    pub sectors_max: u64,
    /// Sector numbers and lengths are multiples of this.
    pub sectors_align: u64,
    /// Of 100 requests: reads; then writes; then flushes; the rest is discards and write-zeroes.
    pub percent_reads: u64,
    /// See `percent_reads`.
    pub percent_writes: u64,
    /// See `percent_reads`.
    pub percent_flushes: u64,
    /// Draw chain layouts, or use the three-descriptor chain of the textbook.
    pub odd_layouts: bool,
    /// Index of the memory region that holds the requests' buffers.
    pub region: usize,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            seed: 1,
            sectors: 16 << 11,
            depth: 16,
            sectors_max: 64,
            sectors_align: 1,
            percent_reads: 45,
            percent_writes: 45,
            percent_flushes: 4,
            odd_layouts: true,
            region: 1,
        }
    }
}

/// Room for one request in guest memory.
#[derive(Debug, Clone, Copy)]
struct Slot {
    lead: u64,
    indirect: u64,
}

impl Slot {
    fn data(self) -> u64 {
        self.lead + LEAD
    }
    fn header(self) -> u64 {
        self.data() - HEADER
    }
}

/// A request that is out.
#[derive(Debug)]
struct Request {
    slot: Slot,
    operation: Operation,
    status: u64,
}

#[derive(Debug)]
enum Operation {
    Read { sector: u64, oldest: Vec<u64> },
    Change { change: Change, sector: u64, count: u64 },
    Flush,
}

/// The load's state: what is out, what each sector may hold, what was counted.
pub struct Load {
    options: LoadOptions,
    /// What the disk may hold.
    pub model: Model,
    draw: Draw,
    slots: Vec<VecDeque<Slot>>,
    requests: Vec<Vec<Option<Request>>>,
    completed: u64,
    missed_calls: u64,
    longest_data: u64,
}

impl Load {
    /// A load for this front-end, which must have been started; buffers are allocated in its memory.
    pub fn new(frontend: &mut Frontend, options: LoadOptions) -> Result<Load> {
        let longest_data = options.sectors_max * SECTOR as u64;
        let mut slots = Vec::new();
        let mut requests = Vec::new();
        for queue in 0..frontend.rings.len() {
            let mut free = VecDeque::new();
            for _ in 0..options.depth {
                let lead = frontend.memory.allocate(options.region, LEAD + longest_data + TAIL, 4096)?;
                let indirect = frontend.memory.allocate(options.region, 16 * SEGMENTS_MAX, 16)?;
                let slot = Slot { lead, indirect };
                frontend.memory.write(lead, &vec![POISON; (LEAD + longest_data + TAIL) as usize]);
                free.push_back(slot);
            }
            slots.push(free);
            requests.push((0..frontend.rings[queue].size).map(|_| None).collect());
        }
        Ok(Load {
            model: Model::zeroed(options.sectors),
            draw: Draw::new(options.seed),
            slots,
            requests,
            completed: 0,
            missed_calls: 0,
            longest_data,
            options,
        })
    }

    /// Requests that completed.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// Requests that are out.
    pub fn outstanding(&self) -> usize {
        self.requests.iter().flatten().flatten().count()
    }

    /// Completions that were found without a call having come: each is a notification that the device owed and lost.
    pub fn missed_calls(&self) -> u64 {
        self.missed_calls
    }

    /// Fills every queue to its depth and kicks where the device wants it. Returns how many requests were submitted.
    pub fn submit(&mut self, frontend: &mut Frontend) -> Result<u64> {
        let mut submitted = 0;
        for queue in 0..self.slots.len() {
            let before = submitted;
            while !self.slots[queue].is_empty() && self.submit_one(frontend, queue)? {
                submitted += 1;
            }
            if submitted != before && frontend.rings[queue].publish(&frontend.memory) {
                frontend.kick(queue);
            }
        }
        Ok(submitted)
    }

    /// Takes and judges what has completed. Returns how many.
    pub fn reap(&mut self, frontend: &mut Frontend) -> Result<u64> {
        let mut reaped = 0;
        for queue in 0..self.slots.len() {
            while let Some(used) = frontend.rings[queue].pop(&frontend.memory)? {
                let request = self.requests[queue][usize::from(used.head)]
                    .take()
                    .expect("the ring knows which heads are out");
                self.judge(frontend, queue, request, used.written)?;
                reaped += 1;
            }
        }
        self.completed += reaped;
        Ok(reaped)
    }

    /// Submits and reaps until `count` more requests have completed, for at most `wait`.
    pub fn run(&mut self, frontend: &mut Frontend, count: u64, wait: Duration) -> Result<()> {
        let target = self.completed + count;
        let deadline = Instant::now() + wait;
        while self.completed < target {
            self.submit(frontend)?;
            self.reap_or_sleep(frontend, deadline, wait)?;
        }
        Ok(())
    }

    /// Reaps until nothing is out.
    pub fn drain(&mut self, frontend: &mut Frontend, wait: Duration) -> Result<()> {
        let deadline = Instant::now() + wait;
        while self.outstanding() > 0 {
            self.reap_or_sleep(frontend, deadline, wait)?;
        }
        Ok(())
    }

    /// Reads the whole range that the load uses and judges it. Nothing may be out before.
    pub fn verify_all(&mut self, frontend: &mut Frontend, wait: Duration) -> Result<()> {
        assert_eq!(self.outstanding(), 0, "drain first");
        let deadline = Instant::now() + wait;
        let mut sector = 0;
        while sector < self.options.sectors || self.outstanding() > 0 {
            while sector < self.options.sectors && !self.slots[0].is_empty() {
                let count = self.options.sectors_max.min(self.options.sectors - sector);
                let operation = Operation::Read { sector, oldest: self.model.begin_read(sector, count) };
                if !self.push(frontend, 0, operation, count)? {
                    break;
                }
                sector += count;
            }
            if frontend.rings[0].publish(&frontend.memory) {
                frontend.kick(0);
            }
            if self.outstanding() > 0 {
                self.reap_or_sleep(frontend, deadline, wait)?;
            }
        }
        Ok(())
    }

    /// Reaps; when there was nothing, asks for calls, looks again, and sleeps until one comes.
    fn reap_or_sleep(&mut self, frontend: &mut Frontend, deadline: Instant, wait: Duration) -> Result<()> {
        if self.reap(frontend)? > 0 {
            return Ok(());
        }
        for ring in &frontend.rings {
            ring.set_calls(&frontend.memory, true);
        }
        if self.reap(frontend)? == 0 {
            let called = frontend.wait_calls(LOOK);
            // What came without a call so far may still be followed by it.
            if self.reap(frontend)? > 0 && !called && !frontend.wait_calls(CALL_WAIT) {
                self.missed_calls += 1;
            }
        }
        for ring in &frontend.rings {
            ring.set_calls(&frontend.memory, false);
        }
        if Instant::now() >= deadline {
            let queues: Vec<_> = frontend.rings.iter().map(|ring| ring.outstanding()).collect();
            return Err(ClientError::Timeout {
                what: format!("completions; out per queue: {queues:?} (seed {})", self.options.seed),
                waited: wait,
            });
        }
        Ok(())
    }

    fn submit_one(&mut self, frontend: &mut Frontend, queue: usize) -> Result<bool> {
        let align = self.options.sectors_align;
        let count = align * (1 + self.draw.below(self.options.sectors_max / align));
        let places = (self.options.sectors - count) / align + 1;
        let sector = align * self.draw.below(places);
        let percent = self.draw.below(100);
        let reads = self.options.percent_reads;
        let writes = reads + self.options.percent_writes;
        let flushes = writes + self.options.percent_flushes;
        let features = frontend.acknowledged();
        let change = if percent < reads {
            let oldest = self.model.begin_read(sector, count);
            let operation = Operation::Read { sector, oldest };
            return self.push(frontend, queue, operation, count);
        } else if percent < writes {
            Change::Write
        } else if percent < flushes && features & feature::FLUSH != 0 {
            return self.push(frontend, queue, Operation::Flush, 0);
        } else if self.draw.chance(1, 2) && features & feature::DISCARD != 0 {
            Change::Discard
        } else if features & feature::WRITE_ZEROES != 0 {
            Change::WriteZeroes
        } else {
            Change::Write
        };
        if !self.model.may_change(sector, count) {
            return Ok(false);
        }
        self.push(frontend, queue, Operation::Change { change, sector, count }, count)
    }

    /// Writes a request into a free slot and pushes its chain. False when the ring has too few descriptors.
    fn push(
        &mut self,
        frontend: &mut Frontend,
        queue: usize,
        operation: Operation,
        count: u64,
    ) -> Result<bool> {
        if frontend.rings[queue].free_descriptors() < SEGMENTS_MAX as usize {
            self.cancel(operation);
            return Ok(false);
        }
        let slot = self.slots[queue].pop_front().expect("the caller saw a free slot");
        self.look_for_late_writes(frontend, slot)?;
        let memory = &frontend.memory;
        let bytes = count * SECTOR as u64;
        let (kind, sector, data, device_writes) = match &operation {
            Operation::Read { sector, .. } => (kind::IN, *sector, bytes, true),
            Operation::Change { change: Change::Write, sector, .. } => (kind::OUT, *sector, bytes, false),
            Operation::Change { change: Change::Discard, .. } => (kind::DISCARD, 0, RANGE, false),
            Operation::Change { change: Change::WriteZeroes, .. } => (kind::WRITE_ZEROES, 0, RANGE, false),
            Operation::Flush => (kind::FLUSH, 0, 0, false),
        };
        if let Operation::Change { change, sector, count } = &operation {
            let mut payload = vec![0; if *change == Change::Write { bytes as usize } else { 0 }];
            self.model.begin_change(*change, *sector, *count, &mut payload);
            if *change != Change::Write {
                let unmap = u32::from(*change == Change::WriteZeroes && self.draw.chance(1, 2));
                payload = sector.to_le_bytes().to_vec();
                payload.extend((*count as u32).to_le_bytes());
                payload.extend(unmap.to_le_bytes());
            }
            memory.write(slot.data(), &payload);
        }
        let mut header = kind.to_le_bytes().to_vec();
        header.extend(0u32.to_le_bytes());
        header.extend(sector.to_le_bytes());
        memory.write(slot.header(), &header);
        let status = slot.data() + data;
        memory.write(status, &[STATUS_UNWRITTEN]);

        let segments = self.layout(slot, data, device_writes);
        let wants_indirect = self.options.odd_layouts && self.draw.chance(1, 2);
        let indirect = (wants_indirect && frontend.acknowledged() & feature::INDIRECT_DESC != 0)
            .then_some(slot.indirect);
        let head = frontend.rings[queue]
            .push(&frontend.memory, &segments, indirect)
            .expect("the number of free descriptors was looked at");
        self.requests[queue][usize::from(head)] = Some(Request { slot, operation, status });
        Ok(true)
    }

    /// Takes back what was begun in the model for a request that found no room.
    fn cancel(&mut self, operation: Operation) {
        if let Operation::Read { sector, oldest } = operation {
            self.model.cancel_read(sector, oldest.len() as u64);
        }
    }

    /// Draws the descriptors of one request: header, data, status, in any pieces.
    fn layout(&mut self, slot: Slot, data: u64, device_writes: bool) -> Vec<Segment> {
        let header = Segment { address: slot.header(), length: HEADER as u32, device_writes: false };
        let status = Segment { address: slot.data() + data, length: 1, device_writes: true };
        let mut segments = vec![header];
        if data > 0 {
            segments.push(Segment { address: slot.data(), length: data as u32, device_writes });
        }
        segments.push(status);
        if !self.options.odd_layouts || self.draw.chance(1, 3) {
            return segments;
        }
        // What is adjacent and goes the same way may share a descriptor.
        if self.draw.chance(1, 2) {
            let mut merged: Vec<Segment> = Vec::new();
            for segment in segments {
                match merged.last_mut() {
                    Some(last)
                        if last.device_writes == segment.device_writes
                            && last.address + u64::from(last.length) == segment.address =>
                    {
                        last.length += segment.length;
                    }
                    _ => merged.push(segment),
                }
            }
            segments = merged;
        }
        let cuts = self.draw.below(SEGMENTS_MAX - segments.len() as u64 + 1);
        for _ in 0..cuts {
            let index = self.draw.below(segments.len() as u64) as usize;
            let segment = segments[index];
            if segment.length < 2 {
                continue;
            }
            let first = 1 + self.draw.below(u64::from(segment.length) - 1) as u32;
            segments[index].length = first;
            segments.insert(
                index + 1,
                Segment {
                    address: segment.address + u64::from(first),
                    length: segment.length - first,
                    device_writes: segment.device_writes,
                },
            );
        }
        segments
    }

    fn judge(&mut self, frontend: &Frontend, queue: usize, request: Request, written: u32) -> Result<()> {
        let Request { slot, operation, status } = request;
        let mut status_byte = [0];
        frontend.memory.read(status, &mut status_byte);
        if status_byte[0] != STATUS_OK {
            return Err(ClientError::Violation(format!(
                "queue {queue}: {operation:?} ended with status {:#x} (seed {})",
                status_byte[0], self.options.seed
            )));
        }
        let expected = match &operation {
            Operation::Read { oldest, .. } => oldest.len() * SECTOR + 1,
            Operation::Change { .. } | Operation::Flush => 1,
        };
        if written as usize != expected {
            return Err(ClientError::Violation(format!(
                "queue {queue}: {operation:?} has used length {written}, expected {expected}"
            )));
        }
        match operation {
            Operation::Read { sector, oldest } => {
                let mut payload = vec![0; oldest.len() * SECTOR];
                frontend.memory.read(slot.data(), &mut payload);
                self.model.end_read(sector, &oldest, &payload)?;
            }
            Operation::Change { sector, count, .. } => self.model.end_change(sector, count),
            Operation::Flush => {}
        }
        let used = (LEAD + self.longest_data + TAIL) as usize;
        frontend.memory.write(slot.lead, &vec![POISON; used]);
        self.slots[queue].push_back(slot);
        Ok(())
    }

    fn look_for_late_writes(&self, frontend: &Frontend, slot: Slot) -> Result<()> {
        let mut bytes = vec![0; (LEAD + self.longest_data + TAIL) as usize];
        frontend.memory.read(slot.lead, &mut bytes);
        match bytes.iter().position(|byte| *byte != POISON) {
            None => Ok(()),
            Some(at) => Err(ClientError::Violation(format!(
                "byte {at} of a buffer at {:#x} was written after its request had completed (seed {})",
                slot.lead, self.options.seed
            ))),
        }
    }
}
