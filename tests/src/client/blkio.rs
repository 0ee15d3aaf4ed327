//! The `blkio` crate as a client: verified I/O of every kind over several queues, and the benchmark's timing loop.
//!
//! The crate is somebody else's driver with somebody else's front-end: what it cannot do (inflight tracking, reconnecting) is
//! [`super::frontend`]'s part. Its queues take raw pointers; the buffers here live in the crate's own memory region, which
//! outlives the queues because both are fields of [`Blkio`].

use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use ::blkio::{Blkioq, Completion, MemoryRegion, ReqFlags};

use super::model::{Change, Model, SECTOR};
use super::{ClientError, Draw, Result};

/// A request that takes longer has failed.
const COMPLETION_WAIT: Duration = Duration::from_secs(20);
/// Completions taken at once.
const BATCH: usize = 128;
/// Alignment of the crate's memory region and of every buffer in it: a page, so that an O_DIRECT file needs no bounce.
const PAGE: usize = 4096;

/// How to use a disk.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Virtqueues.
    pub queues: u16,
    /// Descriptors of each.
    pub queue_size: u16,
    /// Requests out per queue.
    pub depth: usize,
    /// Bytes of the largest request, a multiple of the page.
    pub bytes_max: usize,
    /// Open the disk read-only, as a read-only one must be.
    pub read_only: bool,
    /// Look at the ring all the time instead of sleeping for a call.
    pub poll: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { queues: 1, queue_size: 256, depth: 32, bytes_max: 32 << 10, read_only: false, poll: false }
    }
}

/// A disk opened through the `blkio` crate.
pub struct Blkio {
    // Dropped in this order: the queues before the device, the device with its memory last.
    queues: Vec<Blkioq>,
    device: ::blkio::Blkio,
    region: MemoryRegion,
    options: Options,
}

/// What a timing run measured.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Requests that completed.
    pub ios: u64,
    /// From the first submission to the last completion.
    pub elapsed: Duration,
}

impl Timing {
    /// Requests per second.
    pub fn iops(&self) -> f64 {
        self.ios as f64 / self.elapsed.as_secs_f64()
    }
}

impl Blkio {
    /// Connects and starts.
    pub fn open(socket: &Path, options: Options) -> Result<Blkio> {
        let mut device =
            ::blkio::Blkio::new("virtio-blk-vhost-user").map_err(refused("making the client"))?;
        let path = socket.to_str().expect("a socket path of the test's own");
        device.set_str("path", path).map_err(refused("setting the path"))?;
        device.set_bool("read-only", options.read_only).map_err(refused("setting read-only"))?;
        device.connect().map_err(refused("connecting"))?;
        let queues = i32::from(options.queues);
        let (ordinary, polled) = if options.poll { (0, queues) } else { (queues, 0) };
        device.set_i32("num-queues", ordinary).map_err(refused("setting num-queues"))?;
        device.set_i32("num-poll-queues", polled).map_err(refused("setting num-poll-queues"))?;
        device.set_i32("queue-size", i32::from(options.queue_size)).map_err(refused("setting queue-size"))?;
        let started = device.start().map_err(refused("starting"))?;
        let length = usize::from(options.queues) * options.depth * options.bytes_max;
        let region = device.alloc_mem_region(length.next_multiple_of(PAGE)).map_err(refused("memory"))?;
        device.map_mem_region(&region).map_err(refused("mapping memory"))?;
        let queues = if options.poll { started.poll_queues } else { started.queues };
        Ok(Blkio { queues, device, region, options })
    }

    /// Bytes of the disk.
    pub fn capacity_bytes(&self) -> Result<u64> {
        self.device.get_u64("capacity").map_err(refused("asking for the capacity"))
    }

    /// A number that the crate read from the configuration space.
    pub fn property(&self, name: &str) -> Result<i32> {
        self.device.get_i32(name).map_err(refused("asking for a property"))
    }

    /// Seeded reads, writes, flushes, discards and write-zeroes over all queues until `count` requests have completed and none
    /// is out, each judged by the model.
    pub fn verified_load(&mut self, model: &mut Model, seed: u64, count: u64) -> Result<()> {
        let mut draw = Draw::new(seed);
        let depth = self.options.depth;
        let mut out: Vec<Option<Operation>> = (0..self.queues.len() * depth).map(|_| None).collect();
        let mut submitted = 0;
        let mut completed = 0;
        while completed < count {
            for queue in 0..self.queues.len() {
                for (offset, place) in out[queue * depth..(queue + 1) * depth].iter_mut().enumerate() {
                    if submitted < count && place.is_none() {
                        *place = self.submit_drawn(queue, queue * depth + offset, model, &mut draw);
                        submitted += u64::from(place.is_some());
                    }
                }
                completed += self.reap(queue, &mut out, model)?;
            }
        }
        Ok(())
    }

    /// Reads the whole disk that the model knows and judges it.
    pub fn verify_all(&mut self, model: &mut Model) -> Result<()> {
        let sectors_max = (self.options.bytes_max / SECTOR) as u64;
        let mut out = vec![None];
        let mut sector = 0;
        while sector < model.sectors() {
            let count = sectors_max.min(model.sectors() - sector);
            let oldest = model.begin_read(sector, count);
            self.submit_read(0, 0, sector, count);
            out[0] = Some(Operation::Read { sector, oldest });
            while out[0].is_some() {
                self.reap(0, &mut out, model)?;
            }
            sector += count;
        }
        Ok(())
    }

    /// One request of `bytes` at `sector` with its errno (0 is success): reads and writes use slot 0's buffer.
    pub fn single(&mut self, request: Single) -> Result<i32> {
        let buffer = self.buffer(0);
        let queue = &mut self.queues[0];
        let none = ReqFlags::empty();
        match request {
            Single::Read { byte, bytes } => queue.read(byte, buffer, bytes, 0, none),
            Single::Write { byte, bytes } => queue.write(byte, buffer, bytes, 0, none),
            Single::Flush => queue.flush(0, none),
            Single::WriteZeroes { byte, bytes } => queue.write_zeroes(byte, bytes, 0, none),
            Single::Discard { byte, bytes } => queue.discard(byte, bytes, 0, none),
        }
        let mut completions = empty_batch::<1>();
        let mut wait = COMPLETION_WAIT;
        queue.do_io(&mut completions, 1, Some(&mut wait), None).map_err(refused("waiting for a request"))?;
        // SAFETY: do_io returned without an error, so it has written the one completion that was asked for.
        Ok(unsafe { completions[0].assume_init_ref() }.ret)
    }

    /// Random 4 KiB-aligned requests of `bytes` at the open depth on queue 0 for `duration`. No verification: for timing.
    pub fn timed(&mut self, write: bool, bytes: usize, seed: u64, duration: Duration) -> Result<Timing> {
        let places = self.capacity_bytes()? / bytes as u64;
        let mut draw = Draw::new(seed);
        let depth = self.options.depth;
        let buffers: Vec<*mut u8> = (0..depth).map(|slot| self.buffer(slot)).collect();
        let queue = &mut self.queues[0];
        let mut submit = |queue: &mut Blkioq, slot: usize| {
            let byte = draw.below(places) * bytes as u64;
            if write {
                queue.write(byte, buffers[slot], bytes, slot, ReqFlags::empty());
            } else {
                queue.read(byte, buffers[slot], bytes, slot, ReqFlags::empty());
            }
        };
        let started = Instant::now();
        for slot in 0..depth {
            submit(queue, slot);
        }
        let mut completions = empty_batch::<BATCH>();
        let (mut ios, mut out, mut running) = (0, depth, true);
        while out > 0 {
            let filled = queue.do_io(&mut completions, 1, None, None).map_err(refused("timed I/O"))?;
            running = running && started.elapsed() < duration;
            for completion in &completions[..filled] {
                // SAFETY: do_io says how many completions it has written.
                let completion = unsafe { completion.assume_init_ref() };
                if completion.ret != 0 {
                    return Err(ClientError::Violation(format!("timed I/O failed with {}", completion.ret)));
                }
                ios += 1;
                if running {
                    submit(queue, completion.user_data);
                } else {
                    out -= 1;
                }
            }
        }
        Ok(Timing { ios, elapsed: started.elapsed() })
    }

    fn submit_drawn(
        &mut self,
        queue: usize,
        slot: usize,
        model: &mut Model,
        draw: &mut Draw,
    ) -> Option<Operation> {
        let sectors_max = (self.options.bytes_max / SECTOR) as u64;
        let count = 1 + draw.below(sectors_max.min(model.sectors()));
        let sector = draw.below(model.sectors() - count + 1);
        let (byte, bytes) = (sector * SECTOR as u64, count * SECTOR as u64);
        let none = ReqFlags::empty();
        let change = match draw.below(100) {
            0..45 => {
                let oldest = model.begin_read(sector, count);
                self.submit_read(queue, slot, sector, count);
                return Some(Operation::Read { sector, oldest });
            }
            45..50 => {
                self.queues[queue].flush(slot, none);
                return Some(Operation::Flush);
            }
            50..55 => Change::Discard,
            55..60 => Change::WriteZeroes,
            _ => Change::Write,
        };
        if !model.may_change(sector, count) {
            return None;
        }
        let mut payload = vec![0; if change == Change::Write { bytes as usize } else { 0 }];
        model.begin_change(change, sector, count, &mut payload);
        let buffer = self.buffer(slot);
        let queue = &mut self.queues[queue];
        match change {
            Change::Write => {
                // SAFETY: the slot's buffer has bytes_max bytes, is not lent to the device now, and does not overlap the Vec.
                unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), buffer, payload.len()) };
                let fua = if draw.chance(1, 8) { ReqFlags::FUA } else { none };
                queue.write(byte, buffer, bytes as usize, slot, fua);
            }
            Change::WriteZeroes => {
                let no_unmap = if draw.chance(1, 2) { ReqFlags::NO_UNMAP } else { none };
                queue.write_zeroes(byte, bytes, slot, no_unmap);
            }
            Change::Discard => queue.discard(byte, bytes, slot, none),
        }
        Some(Operation::Change { sector, count })
    }

    fn submit_read(&mut self, queue: usize, slot: usize, sector: u64, count: u64) {
        let buffer = self.buffer(slot);
        let bytes = count as usize * SECTOR;
        // SAFETY: the slot's buffer has bytes_max bytes and is not lent to the device now.
        unsafe { std::ptr::write_bytes(buffer, 0xa5, bytes) };
        self.queues[queue].read(sector * SECTOR as u64, buffer, bytes, slot, ReqFlags::empty());
    }

    fn reap(&mut self, queue: usize, out: &mut [Option<Operation>], model: &mut Model) -> Result<u64> {
        let depth = self.options.depth;
        let slots = queue * depth..((queue + 1) * depth).min(out.len());
        if out[slots].iter().all(Option::is_none) {
            return Ok(0);
        }
        let mut completions = empty_batch::<BATCH>();
        let mut wait = COMPLETION_WAIT;
        let filled = self.queues[queue]
            .do_io(&mut completions, 1, Some(&mut wait), None)
            .map_err(refused("waiting for requests"))?;
        for completion in &completions[..filled] {
            // SAFETY: do_io says how many completions it has written.
            let completion = unsafe { completion.assume_init_ref() };
            let slot = completion.user_data;
            let operation = out[slot]
                .take()
                .ok_or_else(|| ClientError::Violation(format!("slot {slot} completed twice")))?;
            if completion.ret != 0 {
                return Err(ClientError::Violation(format!("{operation:?} failed with {}", completion.ret)));
            }
            match operation {
                Operation::Read { sector, oldest } => {
                    let mut payload = vec![0; oldest.len() * SECTOR];
                    // SAFETY: as in submit_read; the device has given the buffer back.
                    unsafe {
                        std::ptr::copy_nonoverlapping(self.buffer(slot), payload.as_mut_ptr(), payload.len());
                    }
                    model.end_read(sector, &oldest, &payload)?;
                }
                Operation::Change { sector, count } => model.end_change(sector, count),
                Operation::Flush => {}
            }
        }
        Ok(filled as u64)
    }

    /// The buffer of a slot: `bytes_max` bytes of the mapped region.
    fn buffer(&self, slot: usize) -> *mut u8 {
        (self.region.addr + slot * self.options.bytes_max) as *mut u8
    }
}

/// A request for [`Blkio::single`]; positions and lengths in bytes.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Single {
    Read { byte: u64, bytes: usize },
    Write { byte: u64, bytes: usize },
    Flush,
    WriteZeroes { byte: u64, bytes: u64 },
    Discard { byte: u64, bytes: u64 },
}

/// What a slot's request is.
#[derive(Debug, Clone)]
enum Operation {
    Read { sector: u64, oldest: Vec<u64> },
    Change { sector: u64, count: u64 },
    Flush,
}

fn empty_batch<const N: usize>() -> [MaybeUninit<Completion>; N] {
    [const { MaybeUninit::uninit() }; N]
}

fn refused(doing: &'static str) -> impl FnOnce(::blkio::Error) -> ClientError {
    move |error| ClientError::Io {
        doing: format!("blkio: {doing}"),
        source: std::io::Error::other(error.message().to_owned()),
    }
}
