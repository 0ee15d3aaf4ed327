//! Payload I/O through kernel AIO: a context of its own for each channel, for hosts where io_uring is forbidden.
//!
//! Submits gather control blocks; a poll gives all of them to the kernel in one call and takes completions from the
//! ring that the kernel maps into the process, without a call. That ring's layout is stable but officially opaque: it is
//! used only when its magic number and feature flags are the known ones, else `io_getevents` does it.
//!
//! Every operation also rings an eventfd, which a sleeping core waits for; a busy core never reads it. Kernel AIO knows
//! no discard and no write-zeroes: those go to [`super::blocking`].

use super::blocking::{self, Replies};
use super::file::{HostFile, OpenFile};
use super::in_flight::{InFlight, Payload, without_the_kernel};
use super::iovecs::Iovecs;
use super::{Wake, drain_event, new_event};
use crate::error::{from_errno, os_error};
use crate::window::HostWindow;
use runtime::{Error, ErrorKind, FileChannel, FileCompletion, FileOp, Full, Result};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Operations that one channel may have in flight. The host has a budget for all of its processes
/// (`/proc/sys/fs/aio-max-nr`, 65536 by default), of which each channel takes this much.
const CHANNEL_DEPTH: u32 = 256;

/// Segments that may be queued on a channel between two polls.
const IOVECS: usize = 4096;

/// A control block (`struct iocb`, linux/aio_abi.h, little-endian).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ControlBlock {
    data: u64,
    /// The kernel's.
    key: u32,
    /// `RWF_*`.
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    /// Address of the bytes, or of the `iovec`s.
    buffer: u64,
    /// Number of bytes, or of `iovec`s.
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}
const _: () = assert!(size_of::<ControlBlock>() == 64);

/// `IOCB_CMD_*`, linux/aio_abi.h.
const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const FDSYNC: u16 = 3;
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;

/// `IOCB_FLAG_RESFD`: ring `event_fd` at the end.
const RING_EVENT_FD: u32 = 1;

/// A completion (`struct io_event`, linux/aio_abi.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    control_block: u64,
    result: i64,
    result2: i64,
}
const _: () = assert!(size_of::<Event>() == 32);

/// The head of the kernel's completion ring (`struct aio_ring`, linux fs/aio.c), which lies at the context's address.
#[repr(C)]
struct RingHeader {
    id: u32,
    /// Number of events in the ring.
    entries: u32,
    /// Next event to take; written by us.
    head: AtomicU32,
    /// Where the kernel writes next.
    tail: AtomicU32,
    magic: u32,
    compatible_features: u32,
    incompatible_features: u32,
    header_len: u32,
}
const _: () = assert!(size_of::<RingHeader>() == 32);

const RING_MAGIC: u32 = 0xa10a_10a1;

/// A kernel AIO context.
struct Context {
    id: usize,
    /// The completion ring, when its layout is the known one.
    ring: Option<NonNull<RingHeader>>,
}

impl Context {
    /// Errors: `OutOfResources` when the host's budget is used up, `Unsupported` where AIO is forbidden or missing.
    fn new(depth: u32) -> Result<Self> {
        let mut id = 0_usize;
        // SAFETY: the call writes the context's number to the address, and `id` has its size.
        if unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut id) } != 0 {
            let error = from_errno(os_error(&io::Error::last_os_error()));
            return Err(match error.kind {
                // EAGAIN here is the budget, which does not come back by asking.
                ErrorKind::WouldBlock => Error { kind: ErrorKind::OutOfResources, ..error },
                ErrorKind::PermissionDenied => Error { kind: ErrorKind::Unsupported, ..error },
                _ => error,
            });
        }
        let ring = NonNull::new(std::ptr::with_exposed_provenance_mut::<RingHeader>(id)).filter(|ring| {
            // SAFETY: the context's number is the address of its ring, mapped until `io_destroy`.
            let header = unsafe { ring.as_ref() };
            header.magic == RING_MAGIC
                && header.incompatible_features == 0
                && header.header_len as usize == size_of::<RingHeader>()
        });
        Ok(Self { id, ring })
    }

    /// Gives control blocks to the kernel; how many of them it took. Errors are about the first.
    fn submit(&self, blocks: &[*mut ControlBlock]) -> io::Result<usize> {
        // SAFETY: every pointer leads to a control block of the channel. The kernel copies it and what it points to, but
        // for the payload, which stays until the completion (the contract of `submit`, and the channel's drop waits).
        let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.id, blocks.len(), blocks.as_ptr()) };
        if taken < 0 { Err(io::Error::last_os_error()) } else { Ok(taken as usize) }
    }

    /// Whether there is something to take; `false` where that cannot be known.
    fn has_events(&self) -> bool {
        self.ring.is_some_and(|ring| {
            // SAFETY: mapped until `io_destroy`, which only the drop of `self` calls.
            let header = unsafe { ring.as_ref() };
            header.head.load(Ordering::Relaxed) != header.tail.load(Ordering::Acquire)
        })
    }

    /// Takes what has ended: slot and the kernel's result.
    fn reap(&self, mut each: impl FnMut(u32, i64)) {
        let Some(ring) = self.ring else {
            self.wait(0, each);
            return;
        };
        // SAFETY: as in `has_events`.
        let header = unsafe { ring.as_ref() };
        // SAFETY: the events follow the header.
        let events = unsafe { ring.add(1).cast::<Event>() };
        let mut head = header.head.load(Ordering::Relaxed);
        // Pairs with the kernel's release of the tail after it wrote the events.
        let tail = header.tail.load(Ordering::Acquire);
        assert!(
            head < header.entries && tail < header.entries,
            "the AIO ring of {} events has its head at {head} and its tail at {tail}",
            header.entries
        );
        while head != tail {
            // SAFETY: `head` is below the ring's number of entries, and the kernel wrote that event before the tail.
            let event = unsafe { events.add(head as usize).read() };
            head = if head + 1 == header.entries { 0 } else { head + 1 };
            each(event.data as u32, event.result);
        }
        // The events were read before the kernel may write over them.
        header.head.store(head, Ordering::Release);
    }

    /// Takes what has ended by the system call, waiting for at least `at_least`.
    fn wait(&self, at_least: usize, mut each: impl FnMut(u32, i64)) {
        const BATCH: usize = 64;
        let mut events = [Event::default(); BATCH];
        // SAFETY: the call writes at most `BATCH` events; a null time-out waits as long as it takes.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                at_least,
                BATCH,
                events.as_mut_ptr(),
                // Waiting for none needs no time-out: the call returns at once.
                std::ptr::null::<libc::timespec>(),
            )
        };
        // EINTR is the only way in which this fails on a context of ours; the caller asks again.
        let taken = usize::try_from(taken).unwrap_or(0);
        events[..taken].iter().for_each(|event| each(event.data as u32, event.result));
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `io_setup`, destroyed once; nothing is in flight, and nobody looks at the ring afterwards.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

/// A core's channel on one file, through kernel AIO.
pub struct AioChannel {
    context: Context,
    file: Arc<OpenFile>,
    in_flight: InFlight,
    /// One for each slot.
    blocks: Box<[ControlBlock]>,
    /// Slots whose control blocks the kernel was not given yet, in order.
    queued: Vec<u32>,
    /// Scratch: the addresses of their control blocks.
    pointers: Vec<*mut ControlBlock>,
    iovecs: Iovecs,
    /// Operations that ended without the kernel.
    ended: Vec<FileCompletion>,
    replies: Arc<Replies>,
}

impl AioChannel {
    pub(super) fn new(file: &HostFile) -> Result<Self> {
        Ok(Self {
            context: Context::new(CHANNEL_DEPTH)?,
            file: Arc::clone(file.shared()),
            in_flight: InFlight::new(CHANNEL_DEPTH),
            blocks: vec![ControlBlock::default(); CHANNEL_DEPTH as usize].into_boxed_slice(),
            queued: Vec::with_capacity(CHANNEL_DEPTH as usize),
            pointers: Vec::with_capacity(CHANNEL_DEPTH as usize),
            iovecs: Iovecs::new(IOVECS),
            ended: Vec::new(),
            replies: Replies::new(new_event()?),
        })
    }

    /// Has `io_getevents` take the completions, as where the ring's layout is another.
    #[cfg(test)]
    pub(super) fn forget_the_ring(&mut self) {
        self.context.ring = None;
    }

    /// See [`super::HostChannel::arm`].
    pub(super) fn arm(&self) -> Wake<'_> {
        // The rings of completions that were taken long ago; what they might still tell of is looked for below. Where
        // looking is not possible, the polls have emptied the counter before they looked.
        if self.context.ring.is_some() {
            drain_event(self.replies.event());
        }
        fence(Ordering::SeqCst);
        let in_kernel = self.in_flight.len() > self.queued.len();
        if !self.queued.is_empty()
            || !self.ended.is_empty()
            || !self.replies.is_empty()
            || (in_kernel && self.context.has_events())
        {
            return Wake::Ready;
        }
        Wake::Wait(self.replies.event())
    }

    fn queue(&mut self, slot: u32, block: ControlBlock) {
        self.blocks[slot as usize] = ControlBlock {
            data: slot.into(),
            fd: self.file.fd().as_raw_fd() as u32,
            flags: RING_EVENT_FD,
            event_fd: self.replies.event().as_raw_fd() as u32,
            ..block
        };
        self.queued.push(slot);
    }

    fn transfer(
        &mut self,
        write: bool,
        fua: bool,
        offset: u64,
        len: u64,
        segments: &[HostWindow],
        token: u64,
    ) -> core::result::Result<(), Full> {
        if !self.iovecs.has_room(segments.len()) {
            return Err(Full);
        }
        let (slot, payload) = self.in_flight.begin_transfer(&self.file, write, segments, len, token)?;
        let (buffer, len, vectored) = match (payload, segments) {
            (Payload::Bounced { pointer, len }, _) => (pointer.expose_provenance(), len, false),
            (Payload::Direct, [segment]) => (segment.as_ptr().expose_provenance(), len, false),
            (Payload::Direct, _) => {
                (self.iovecs.push(segments).expose_provenance(), segments.len() as u64, true)
            }
        };
        let opcode = match (write, vectored) {
            (false, false) => PREAD,
            (true, false) => PWRITE,
            (false, true) => PREADV,
            (true, true) => PWRITEV,
        };
        let rw_flags = if fua { libc::RWF_DSYNC } else { 0 };
        let offset = offset as i64;
        self.queue(
            slot,
            ControlBlock { opcode, rw_flags, buffer: buffer as u64, len, offset, ..Default::default() },
        );
        Ok(())
    }

    /// Gives the kernel what is queued. An operation that it refuses ends with its error.
    fn send(&mut self) {
        self.pointers.clear();
        self.pointers.extend(self.queued.iter().map(|slot| &raw mut self.blocks[*slot as usize]));
        let mut sent = 0;
        while sent < self.pointers.len() {
            match self.context.submit(&self.pointers[sent..]) {
                Ok(0) => break,
                Ok(taken) => sent += taken,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                    // The kernel has no room for a request now: the rest waits for the next poll.
                    break;
                }
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    let slot = self.queued[sent];
                    self.ended.push(self.in_flight.finish(slot, -i64::from(errno)));
                    sent += 1;
                }
            }
        }
        self.queued.drain(..sent);
        if self.queued.is_empty() {
            self.iovecs.clear();
        }
    }
}

impl FileChannel for AioChannel {
    type Window = HostWindow;

    fn submit(
        &mut self,
        op: FileOp,
        offset: u64,
        len: u64,
        segments: &[HostWindow],
        token: u64,
    ) -> core::result::Result<(), Full> {
        if let Some(ended) = without_the_kernel(&self.file, op, len, token) {
            self.ended.push(ended);
            return Ok(());
        }
        match op {
            FileOp::Read => self.transfer(false, false, offset, len, segments, token),
            FileOp::Write { fua } => self.transfer(true, fua, offset, len, segments, token),
            FileOp::Flush => {
                let slot = self.in_flight.begin_whole(len, token)?;
                self.queue(slot, ControlBlock { opcode: FDSYNC, ..Default::default() });
                Ok(())
            }
            FileOp::Discard | FileOp::WriteZeroes { .. } => {
                let slot = self.in_flight.begin_whole(len, token)?;
                blocking::submit(&self.replies, &self.file, op, offset, len, slot);
                Ok(())
            }
        }
    }

    fn poll(&mut self, completions: &mut Vec<FileCompletion>) -> bool {
        let before = completions.len();
        if !self.queued.is_empty() {
            self.send();
        }
        completions.append(&mut self.ended);
        if self.in_flight.len() > self.queued.len() {
            if self.context.ring.is_none() {
                drain_event(self.replies.event());
            }
            let in_flight = &mut self.in_flight;
            self.context.reap(|slot, result| completions.push(in_flight.finish(slot, result)));
            self.replies.take(|slot, result| completions.push(in_flight.finish(slot, result)));
        }
        completions.len() > before
    }

    fn bounced_bytes(&self) -> u64 {
        self.in_flight.bounced_bytes()
    }
}

impl Drop for AioChannel {
    fn drop(&mut self) {
        if self.in_flight.len() > 0 {
            tracing::error!(
                in_flight = self.in_flight.len(),
                "a file channel was dropped with operations in flight; waiting for them"
            );
        }
        // What the kernel was never given touches no memory.
        for slot in std::mem::take(&mut self.queued) {
            let _ = self.in_flight.finish(slot, -i64::from(libc::ECANCELED));
        }
        let in_flight = &mut self.in_flight;
        self.replies.wait_for_all(|slot, result| _ = in_flight.finish(slot, result));
        while in_flight.len() > 0 {
            self.context.wait(1, |slot, result| _ = in_flight.finish(slot, result));
        }
    }
}
