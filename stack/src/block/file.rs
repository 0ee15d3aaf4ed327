//! The file bdev: a disk in a regular file or on a block device, through io_uring (the uring bdev) or kernel AIO (the
//! aio bdev). Everything that is decided about a file's I/O is decided here; the platform only carries it out.
//!
//! What may go wrong with a file, and what is done: a transfer ends short (the rest is submitted again, whole blocks at
//! a time); nothing can be done right now (tried again after a growing pause, a bounded number of times); the file
//! cannot write zeroes by itself (zeroes are sent); it cannot discard (nothing happens, a discard is only advice); its
//! space is used up or it failed (told to the front-end as it is). A file that became shorter fails the reads and
//! writes beyond its end and nothing else.

use super::statistics::{Counted, Statistics};
use super::{Bdev, Channel, ChannelFull, Completion, Geometry, Io, IoError, Op};
use crate::reached::Reached;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use runtime::{
    ErrorKind, File, FileChannel, FileCompletion, FileEngine, FileInfo, FileOp, Full, Instant, Memory,
    Platform, Segments, Wakes, Window,
};
use serde_json::{Map, Value, json};

/// The pause before something that could not be done right now is tried again; it doubles each time.
const RETRY_PAUSE_FIRST: Duration = Duration::from_micros(100);
/// The longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);
/// How often it is tried again before the I/O fails: with the pauses above, half a second.
const RETRIES_MAX: u32 = 16;
/// Bytes of the buffer from which zeroes are sent to a file that cannot write zeroes by itself.
const ZEROES_LEN: u64 = 256 << 10;

/// How a file bdev was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileParameters {
    /// The bdev's name.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// The file or block device.
    pub path: String,
    /// What carries its I/O.
    pub engine: FileEngine,
    /// Bytes in a block; `None`: the file's own.
    pub block_size: Option<u32>,
    /// Writes are refused.
    pub read_only: bool,
}

/// A disk in a file.
#[derive(Debug)]
pub struct FileBdev<P: Platform> {
    parameters: FileParameters,
    file: P::File,
    info: FileInfo,
    block_size: u32,
    /// Shared with the channels, so that a resize reaches them at once.
    num_blocks: Arc<AtomicU64>,
    statistics: Statistics,
}

impl<P: Platform> FileBdev<P> {
    /// A disk in `file`, which is open and whose lock is held. Errors: a sentence, when the file's size or the block
    /// size asked for will not do.
    pub fn new(
        parameters: FileParameters,
        file: P::File,
        info: FileInfo,
        cores: u16,
    ) -> Result<Self, String> {
        let (block_size, num_blocks) = blocks(&parameters, &info)?;
        let (num_blocks, statistics) = (Arc::new(AtomicU64::new(num_blocks)), Statistics::new(cores));
        Ok(Self { parameters, file, info, block_size, num_blocks, statistics })
    }

    /// How it was asked for.
    #[must_use]
    pub fn parameters(&self) -> &FileParameters {
        &self.parameters
    }

    /// The object behind the path (see [`FileInfo::identity`]).
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.info.identity
    }

    /// How many blocks the file holds now. Does not change the bdev: see [`FileBdev::resize`].
    pub fn rescan(&self) -> runtime::Result<u64> {
        Ok(self.file.info()?.len / u64::from(self.block_size))
    }

    /// Changes the number of blocks; front-ends are told by the target.
    pub fn resize(&self, num_blocks: u64) {
        self.num_blocks.store(num_blocks, Relaxed);
    }

    fn geometry_now(&self) -> Geometry {
        Geometry {
            block_size: self.block_size,
            physical_block_size: self.info.physical_block_size.max(self.block_size),
            num_blocks: self.num_blocks.load(Relaxed),
            read_only: self.parameters.read_only,
            volatile_cache: true,
            discard: self.info.can_discard && !self.parameters.read_only,
            write_zeroes: self.info.can_write_zeroes && !self.parameters.read_only,
        }
    }
}

/// The block size and the number of blocks of a file, or why there are none.
fn blocks(parameters: &FileParameters, info: &FileInfo) -> Result<(u32, u64), String> {
    let block_size = parameters.block_size.unwrap_or(info.block_size);
    let path = &parameters.path;
    if block_size < info.block_size {
        return Err(format!(
            "block_size {block_size} is smaller than the {} bytes that direct I/O on {path} needs",
            info.block_size
        ));
    }
    let size = u64::from(block_size);
    if info.len < size {
        return Err(format!("{path} holds {} bytes, less than one block of {block_size}", info.len));
    }
    if !info.len.is_multiple_of(size) {
        return Err(format!("{path} holds {} bytes, no multiple of the block size {block_size}", info.len));
    }
    Ok((block_size, info.len / size))
}

impl<P: Platform> Bdev<P> for FileBdev<P> {
    fn name(&self) -> &str {
        &self.parameters.name
    }

    fn uuid(&self) -> [u8; 16] {
        self.parameters.uuid
    }

    fn product_name(&self) -> &'static str {
        match self.parameters.engine {
            FileEngine::Uring => "URING bdev",
            FileEngine::Aio => "AIO disk",
        }
    }

    fn geometry(&self) -> Geometry {
        self.geometry_now()
    }

    fn channel(&self, platform: &P) -> runtime::Result<Box<dyn Channel<P>>> {
        let channel = FileDiskChannel {
            channel: platform.channel(&self.file)?,
            platform: platform.clone(),
            geometry: self.geometry_now(),
            num_blocks: Arc::clone(&self.num_blocks),
            file_block_size: u64::from(self.info.block_size),
            requests: Vec::new(),
            in_flight: 0,
            waiting: Vec::new(),
            done: Vec::new(),
            ended: Vec::new(),
            windows: Vec::with_capacity(super::MAX_SEGMENTS),
            write_zeroes: self.info.can_write_zeroes,
            zeroes: None,
        };
        Ok(Box::new(Counted::new(channel, platform.here(), self.statistics.clone())))
    }

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn driver_specific(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let FileParameters { path, engine, block_size, read_only, .. } = &self.parameters;
        // The keys are those of SPDK's modules (bdev_uring.c and bdev_aio.c, `dump_info_json`).
        match engine {
            FileEngine::Uring => map.insert("uring".into(), json!({ "filename": path })),
            FileEngine::Aio => map.insert(
                "aio".into(),
                json!({
                    "filename": path,
                    "block_size_override": block_size.is_some(),
                    "readonly": read_only,
                    "fallocate": self.info.can_discard,
                    "nowait": false,
                }),
            ),
        };
        map
    }
}

/// What of a request is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The payload of a read or a write.
    Transfer,
    /// Zeroes, written by the file itself.
    WriteZeroes { unmap: bool },
    /// Zeroes, sent from the buffer.
    SendZeroes,
    /// A discard.
    Discard,
    /// A flush, asked for or as the end of zeroes with FUA.
    Flush,
}

/// One I/O on its way. Its place in the list is its token, which [`Counted`] keeps small and unique.
#[derive(Debug)]
struct Request<W> {
    op: Op,
    offset: u64,
    len: u64,
    /// Bytes of the step that are done.
    done: u64,
    step: Step,
    /// Kept for what a short transfer leaves. The list's memory stays with the place, so that it is not made anew.
    segments: Vec<W>,
    retries: u32,
    /// Not to be given to the file earlier.
    not_before: Instant,
}

/// One core's channel on a file.
struct FileDiskChannel<P: Platform> {
    /// Dropped before the zeroes that it may have read from.
    channel: P::Channel,
    platform: P,
    geometry: Geometry,
    num_blocks: Arc<AtomicU64>,
    file_block_size: u64,
    requests: Vec<Request<P::Window>>,
    /// Requests that the file has.
    in_flight: usize,
    /// Requests that wait for room in the file's channel or for the end of a pause, the oldest first.
    waiting: Vec<u32>,
    /// Requests that ended outside of the file's completions.
    done: Vec<Completion>,
    /// What the file's channel has just completed; kept for its memory.
    ended: Vec<FileCompletion>,
    /// The windows of the request that is being submitted; kept for its memory.
    windows: Vec<P::Window>,
    /// Whether the file may write zeroes by itself; found out to be wrong at most once.
    write_zeroes: bool,
    /// The buffer that zeroes are sent from, made when it is first needed.
    zeroes: Option<P::Memory>,
}

/// What to do with a request after a part of it ended.
enum Next {
    Submit,
    Pause,
    End(Result<(), IoError>),
}

impl<P: Platform> FileDiskChannel<P> {
    fn check(&self, io: &Io<'_, P::Window>) -> Result<(), IoError> {
        let geometry = Geometry { num_blocks: self.num_blocks.load(Relaxed), ..self.geometry };
        if !geometry.contains(io.offset, io.len) {
            return Err(IoError::OutOfRange);
        }
        match io.op {
            Op::Read | Op::Write { .. }
                if io.segments.len() != io.len || io.segments.0.len() > super::MAX_SEGMENTS =>
            {
                Err(IoError::Medium(ErrorKind::Invalid))
            }
            Op::Write { .. } | Op::Discard | Op::WriteZeroes { .. } if geometry.read_only => {
                Err(IoError::ReadOnly)
            }
            _ => Ok(()),
        }
    }

    fn first_step(&self, op: Op) -> Step {
        match op {
            Op::Read | Op::Write { .. } => Step::Transfer,
            Op::Flush => Step::Flush,
            Op::Discard => Step::Discard,
            Op::WriteZeroes { unmap, .. } if self.write_zeroes => Step::WriteZeroes { unmap },
            Op::WriteZeroes { .. } => Step::SendZeroes,
        }
    }

    /// Gives the next part of a request to the file. `Err`: it ends here. `Ok(Err(Full))`: there is no room now.
    fn give(&mut self, place: u32) -> Result<Result<(), Full>, IoError> {
        let request = &self.requests[place as usize];
        let left = request.len - request.done;
        self.windows.clear();
        let (op, len) = match request.step {
            Step::Transfer => {
                let op = match request.op {
                    Op::Write { fua } => FileOp::Write { fua },
                    _ => FileOp::Read,
                };
                (op, self.collect(place, left)?)
            }
            Step::SendZeroes => {
                let len = left.min(ZEROES_LEN);
                let zeroes = self.zeroes()?;
                self.windows.extend(zeroes.slice(0, len));
                (FileOp::Write { fua: false }, len)
            }
            Step::WriteZeroes { unmap } => (FileOp::WriteZeroes { unmap }, left),
            Step::Discard => (FileOp::Discard, left),
            Step::Flush => (FileOp::Flush, 0),
        };
        let request = &self.requests[place as usize];
        let offset = if op == FileOp::Flush { 0 } else { request.offset + request.done };
        let given = self.channel.submit(op, offset, len, &self.windows, u64::from(place));
        self.in_flight += usize::from(given.is_ok());
        Ok(given)
    }

    /// Collects the windows of what is left of a transfer, as many as the file's channel takes, in whole blocks of the
    /// file; says how many bytes they are. Fails where not even one block fits.
    fn collect(&mut self, place: u32, left: u64) -> Result<u64, IoError> {
        let limit = <P::Channel as FileChannel>::MAX_SEGMENTS;
        let Request { segments, done, .. } = &self.requests[place as usize];
        let payload = Segments(segments);
        self.windows.extend(payload.range(*done, left).take(limit));
        let len = Segments(&self.windows).len();
        if len == left {
            return Ok(len);
        }
        let whole = len - len % self.file_block_size;
        if whole == 0 {
            return Err(IoError::Unsupported);
        }
        self.windows.clear();
        self.windows.extend(payload.range(*done, whole));
        Ok(whole)
    }

    fn zeroes(&mut self) -> Result<P::Window, IoError> {
        if self.zeroes.is_none() {
            let memory = self.platform.shared_memory("reprise-zeroes", ZEROES_LEN);
            self.zeroes = Some(memory.map_err(|error| IoError::Medium(error.kind))?);
        }
        Ok(self.zeroes.as_ref().expect("made just before").window())
    }

    /// Submits a request, lets it wait, or ends it.
    fn go_on(&mut self, place: u32) {
        match self.give(place) {
            Ok(Ok(())) => {}
            Ok(Err(Full)) => {
                Reached::FileFull.mark::<P::Window>();
                self.waiting.push(place);
            }
            Err(error) => self.done.push(Completion { token: u64::from(place), result: Err(error) }),
        }
    }

    /// Decides what comes after `result` of the request's current step.
    fn next(&mut self, place: u32, result: runtime::Result<u64>) -> Next {
        let block = self.file_block_size;
        let request = &mut self.requests[place as usize];
        let flush_after = matches!(request.op, Op::WriteZeroes { fua: true, .. });
        let bytes = match (result, request.step) {
            (Ok(bytes), _) => bytes,
            (Err(error), _) if error.kind == ErrorKind::WouldBlock => {
                if request.retries == RETRIES_MAX {
                    Reached::FileAgainTooOften.mark::<P::Window>();
                    return Next::End(Err(IoError::Medium(ErrorKind::WouldBlock)));
                }
                Reached::FileAgain.mark::<P::Window>();
                return Next::Pause;
            }
            (Err(error), Step::Discard) if error.kind == ErrorKind::Unsupported => {
                Reached::FileNoDiscard.mark::<P::Window>();
                return Next::End(Ok(()));
            }
            (Err(error), Step::WriteZeroes { unmap }) if error.kind == ErrorKind::Unsupported => {
                request.step = if unmap { Step::WriteZeroes { unmap: false } } else { Step::SendZeroes };
                Reached::FileNoZeroes.mark::<P::Window>();
                // A file that cannot do it without giving space back cannot do it at all: do not ask again.
                self.write_zeroes &= unmap;
                return Next::Submit;
            }
            (Err(error), _) => {
                return Next::End(Err(match error.kind {
                    ErrorKind::NoSpace => IoError::NoSpace,
                    ErrorKind::ReadOnly => IoError::ReadOnly,
                    ErrorKind::Unsupported => IoError::Unsupported,
                    kind => IoError::Medium(kind),
                }));
            }
        };
        request.retries = 0;
        match request.step {
            Step::Flush | Step::Discard => Next::End(Ok(())),
            Step::WriteZeroes { .. } if flush_after => {
                request.step = Step::Flush;
                Next::Submit
            }
            Step::WriteZeroes { .. } => Next::End(Ok(())),
            Step::Transfer | Step::SendZeroes => {
                let left = request.len - request.done;
                // The part of a block that a short transfer may have done is done again.
                request.done += if bytes >= left { left } else { bytes - bytes % block };
                if bytes < block.min(left) {
                    // Not even one block: the file ends here.
                    Reached::FileEnds.mark::<P::Window>();
                    return Next::End(Err(IoError::Medium(ErrorKind::Io)));
                }
                if bytes < left && request.step == Step::Transfer {
                    Reached::FileShort.mark::<P::Window>();
                }
                if request.done < request.len {
                    return Next::Submit;
                }
                if request.step == Step::SendZeroes && flush_after {
                    request.step = Step::Flush;
                    return Next::Submit;
                }
                Next::End(Ok(()))
            }
        }
    }
}

impl<P: Platform> Channel<P> for FileDiskChannel<P> {
    fn submit(&mut self, _now: Instant, io: &Io<'_, P::Window>, token: u64) -> Result<(), ChannelFull> {
        let place = u32::try_from(token).expect("a counted channel's tokens are small");
        if let Err(error) = self.check(io) {
            self.done.push(Completion { token, result: Err(error) });
            return Ok(());
        }
        if io.len == 0 && io.op != Op::Flush {
            self.done.push(Completion { token, result: Ok(()) });
            return Ok(());
        }
        let step = self.first_step(io.op);
        while self.requests.len() <= place as usize {
            self.requests.push(Request {
                op: Op::Flush,
                offset: 0,
                len: 0,
                done: 0,
                step: Step::Flush,
                segments: Vec::new(),
                retries: 0,
                not_before: Instant(0),
            });
        }
        let request = &mut self.requests[place as usize];
        request.segments.clear();
        request.segments.extend_from_slice(io.segments.0);
        (request.op, request.offset, request.len, request.done) = (io.op, io.offset, io.len, 0);
        (request.step, request.retries, request.not_before) = (step, 0, Instant(0));
        if self.waiting.is_empty() {
            self.go_on(place);
        } else {
            // Behind those that wait, or they might wait for ever.
            self.waiting.push(place);
        }
        Ok(())
    }

    fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> bool {
        let mut ended = core::mem::take(&mut self.ended);
        let mut worked = self.channel.poll(&mut ended);
        for FileCompletion { token, result } in ended.drain(..) {
            let place = token as u32;
            self.in_flight -= 1;
            match self.next(place, result) {
                Next::Submit => self.go_on(place),
                Next::Pause => {
                    let request = &mut self.requests[place as usize];
                    let pause = RETRY_PAUSE_FIRST * (1 << request.retries.min(20));
                    request.not_before = now.after(pause.min(RETRY_PAUSE_MAX));
                    request.retries += 1;
                    self.waiting.push(place);
                }
                Next::End(result) => completions.push(Completion { token, result }),
            }
        }
        self.ended = ended;
        let mut index = 0;
        while index < self.waiting.len() {
            let place = self.waiting[index];
            if self.requests[place as usize].not_before > now {
                index += 1;
                continue;
            }
            match self.give(place) {
                Ok(Err(Full)) => break,
                Ok(Ok(())) => {}
                Err(error) => self.done.push(Completion { token: u64::from(place), result: Err(error) }),
            }
            self.waiting.remove(index);
            worked = true;
        }
        worked |= !self.done.is_empty();
        completions.append(&mut self.done);
        worked
    }

    fn wake_at(&self) -> Option<Instant> {
        if !self.done.is_empty() {
            return Some(Instant(0));
        }
        let paused = |place: &&u32| {
            // What waits for room is woken by a completion, unless nothing is left that could complete.
            self.in_flight == 0 || self.requests[**place as usize].not_before > Instant(0)
        };
        self.waiting.iter().filter(paused).map(|&place| self.requests[place as usize].not_before).min()
    }

    fn arm(&self, wakes: &mut P::Wakes) {
        wakes.channel(&self.channel);
    }
}
