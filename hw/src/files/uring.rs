//! Payload I/O through io_uring: one ring a core, shared by all of the core's channels.
//!
//! A submit writes one entry and makes no system call; a poll makes at most one, and none when nothing was queued and
//! the kernel has nothing to say. The ring is set up so that the kernel never interrupts the core for a completion
//! (`DEFER_TASKRUN`): it raises a flag in shared memory, and the next poll enters once to have the completions written.
//! Kernels that lack this get the older flags; nothing else changes.
//!
//! A completion belongs to one channel, whichever channel's poll finds it: it is put into that channel's inbox. While
//! the core is awake the ring's eventfd is switched off, so that a busy core pays nothing for being able to sleep.
//!
//! The kernel reads and writes the payload's memory until the completion, so a channel that is dropped with operations
//! in flight (a bug of the stack) cancels what can be cancelled and waits for all of it.

use super::blocking::{self, Replies};
use super::file::{HostFile, OpenFile};
use super::in_flight::{InFlight, Payload, without_the_kernel};
use super::iovecs::Iovecs;
use super::{Wake, drain_event, new_event};
use crate::error::{from_errno, os_error};
use crate::window::HostWindow;
use io_uring::types::{CancelBuilder, Fd, Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use runtime::{Error, ErrorKind, FileChannel, FileCompletion, FileOp, Full, Result};
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Entries of a core's submission queue: what its channels may queue between two polls.
const SUBMISSION_ENTRIES: u32 = 1024;

/// Entries of a core's completion queue. More completions than that wait in the kernel and are fetched by later polls.
const COMPLETION_ENTRIES: u32 = 4096;

/// Segments, over all channels of a core, that may be queued between two polls.
const IOVECS: usize = 8192;

/// Operations that one channel may have in flight.
const CHANNEL_DEPTH: u32 = 1024;

/// Places in a core's table of registered files. A channel that finds none uses its descriptor, a little slower.
const REGISTERED_FILES: u32 = 256;

/// Longest transfer given to the kernel at once, so that its length fits the entry; the rest is a short transfer.
const TRANSFER_BYTES_MAX: u64 = 1 << 30;

/// Marks the completion of a cancellation. Not a channel's: their numbers are table indexes.
const CANCEL: u64 = u64::MAX;

/// Whether this host lets the process make a ring. Errors: `Unsupported` when it is forbidden or unknown to the kernel,
/// `OutOfResources`.
pub(super) fn probe() -> Result<()> {
    IoUring::new(1).map(drop).map_err(|error| setup_error(&error))
}

/// Where `io_uring_setup` says "not here": no such call, a seccomp filter, or `kernel.io_uring_disabled`.
fn setup_error(error: &io::Error) -> Error {
    let found = from_errno(os_error(error));
    match found.kind {
        ErrorKind::PermissionDenied => Error { kind: ErrorKind::Unsupported, ..found },
        _ => found,
    }
}

/// The ways to set a ring up, the best first.
pub(super) const SET_UPS: [fn(&mut io_uring::Builder); 3] = [
    // Linux 6.1
    |builder| {
        builder.setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun().setup_taskrun_flag();
        builder.setup_submit_all();
    },
    // Linux 5.19
    |builder| {
        builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
    },
    |_| {},
];

/// Makes a ring of the calling thread.
pub(super) fn build(set_up: fn(&mut io_uring::Builder)) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETION_ENTRIES);
    set_up(&mut builder);
    builder.build(SUBMISSION_ENTRIES)
}

/// One core's ring.
pub(super) struct CoreRing {
    ring: IoUring,
    /// Rung by the kernel, while the core sleeps, when the ring has something to say.
    event: OwnedFd,
    /// Whether the kernel may ring `event`.
    armed: bool,
    /// Entries queued and not yet taken by the kernel.
    queued: u32,
    iovecs: Iovecs,
    inboxes: Vec<Inbox>,
    /// Free places in the table of registered files.
    free_files: Vec<u32>,
}

/// Completions that another channel's poll found: slot and the kernel's result.
#[derive(Default)]
struct Inbox {
    is_open: bool,
    ended: Vec<(u32, i32)>,
}

/// What an entry says of the file: a place in the ring's table, or a plain descriptor.
#[derive(Clone, Copy)]
enum Target {
    Registered(Fixed),
    Plain(Fd),
}

/// Builds an entry for either kind of target; the opcodes are generic over a sealed trait.
macro_rules! entry {
    ($target:expr, |$fd:ident| $build:expr) => {
        match $target {
            Target::Registered($fd) => $build.build(),
            Target::Plain($fd) => $build.build(),
        }
    };
}

impl CoreRing {
    /// A ring of the calling thread. Errors: `Unsupported`, `OutOfResources`.
    pub(super) fn new() -> Result<Self> {
        let mut found = Err(io::Error::from_raw_os_error(libc::EINVAL));
        for set_up in SET_UPS {
            found = build(set_up);
            // Flags that the kernel does not know.
            if !matches!(&found, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
                break;
            }
        }
        Self::over(found.map_err(|error| setup_error(&error))?)
    }

    /// Over a ring that the calling thread just made.
    pub(super) fn over(ring: IoUring) -> Result<Self> {
        if !ring.params().is_feature_nodrop() || !ring.params().is_feature_submit_stable() {
            // Linux before 5.5 loses completions when the queue is full.
            return Err(ErrorKind::Unsupported.into());
        }
        let event = new_event()?;
        ring.submitter().register_eventfd(event.as_raw_fd()).map_err(|error| from_errno(os_error(&error)))?;
        // Refused where the process may open fewer files than that; the channels then use their descriptors.
        let registered = ring.submitter().register_files_sparse(REGISTERED_FILES).is_ok();
        let mut this = Self {
            ring,
            event,
            armed: true,
            queued: 0,
            iovecs: Iovecs::new(IOVECS),
            inboxes: Vec::new(),
            free_files: if registered { (0..REGISTERED_FILES).rev().collect() } else { Vec::new() },
        };
        this.disarm();
        Ok(this)
    }

    #[cfg(test)]
    pub(super) fn is_armed(&self) -> bool {
        self.armed
    }

    /// Leaves the channels to their descriptors, as where a process may open few files.
    #[cfg(test)]
    pub(super) fn forget_registered_files(&mut self) {
        self.free_files.clear();
    }

    /// Whether entries and `segments` find room before the next poll.
    fn has_room(&self, segments: usize) -> bool {
        self.queued < SUBMISSION_ENTRIES && self.iovecs.has_room(segments)
    }

    /// Queues an entry, for which there is room.
    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: what an entry points to (payload memory, bounce buffers, `iovecs`) stays until its completion or, for
        // the `iovecs`, until it was submitted: the contract's duty of the caller of `submit`, and the drop of a
        // channel waits for its operations.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "the submission queue is full with {} entries queued", self.queued);
        self.queued += 1;
    }

    /// One system call if there is something to submit or to fetch, else none.
    fn enter_if_useful(&mut self) {
        if self.queued > 0 || self.kernel_has_news() {
            self.enter(0);
        }
    }

    /// Whether the kernel holds completions that it writes only when entered.
    fn kernel_has_news(&mut self) -> bool {
        let submission = self.ring.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Submits what is queued and has the kernel write the completions that it holds, at least `wait_for`.
    fn enter(&mut self, wait_for: u32) {
        /// `IORING_ENTER_GETEVENTS`, linux/io_uring.h.
        const GET_EVENTS: u32 = 1;
        // SAFETY: no argument is passed along, and the ring's own entries are covered by `push`.
        let entered =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(self.queued, wait_for, GET_EVENTS, None) };
        if let Err(error) = entered {
            // EINTR: a signal; EAGAIN, ENOMEM: no memory for a request now; EBUSY: too many completions not taken. What
            // was not submitted stays queued for the next poll. Anything else is a bug here, and I/O that would be
            // lost silently.
            assert!(
                matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::ENOMEM | libc::EBUSY)),
                "io_uring_enter of {} entries failed: {error}",
                self.queued
            );
        }
        self.queued = self.ring.submission().len() as u32;
        if self.queued == 0 {
            self.iovecs.clear();
        }
    }

    /// Takes every completion: the calling channel's own go to `own`, the others to their inboxes.
    fn reap(&mut self, channel: u32, mut own: impl FnMut(u32, i32)) {
        let mine = &mut self.inboxes[channel as usize].ended;
        mine.drain(..).for_each(|(slot, result)| own(slot, result));
        for entry in self.ring.completion() {
            let data = entry.user_data();
            if data == CANCEL {
                continue;
            }
            let (index, slot) = ((data >> 32) as u32, data as u32);
            if index == channel {
                own(slot, entry.result());
            } else {
                let inbox = &mut self.inboxes[index as usize];
                assert!(inbox.is_open, "the kernel completed an operation of channel {index}, which is gone");
                inbox.ended.push((slot, entry.result()));
            }
        }
    }

    /// Lets the kernel ring the eventfd, then looks whether the ring has something already. The first channel that goes to
    /// sleep forgets the rings that came while the core was awake, of operations that a thread did for a channel; what
    /// they told of is looked for after this.
    fn arm(&mut self) -> bool {
        if !self.armed {
            drain_event(self.event.as_fd());
            self.ring.completion().enable_eventfd();
            self.armed = true;
        }
        // Pairs with the kernel's order of "raise the flag (or the queue's tail), then look whether the eventfd is
        // on": either it sees it on, or we see what it raised.
        fence(Ordering::SeqCst);
        self.queued > 0 || self.kernel_has_news() || !self.ring.completion().is_empty()
    }

    /// Awake again: no more rings.
    fn disarm(&mut self) {
        if self.armed {
            self.ring.completion().disable_eventfd();
            self.armed = false;
        }
    }

    /// A new channel's number, and the file's place in the table.
    fn open_channel(&mut self, file: &OpenFile) -> (u32, Target) {
        let index = match self.inboxes.iter().position(|inbox| !inbox.is_open) {
            Some(index) => index,
            None => {
                self.inboxes.push(Inbox::default());
                self.inboxes.len() - 1
            }
        };
        self.inboxes[index].is_open = true;
        let fd = file.fd().as_raw_fd();
        let target = self
            .free_files
            .pop()
            .filter(|place| self.ring.submitter().register_files_update(*place, &[fd]).is_ok())
            .map_or(Target::Plain(Fd(fd)), |place| Target::Registered(Fixed(place)));
        (index as u32, target)
    }

    fn close_channel(&mut self, index: u32, target: Target) {
        let inbox = &mut self.inboxes[index as usize];
        assert!(inbox.ended.is_empty(), "channel {index} was closed before its completions were taken");
        inbox.is_open = false;
        // A core drops a channel while it is awake. Nobody may be left to find that out by a poll.
        self.disarm();
        if let Target::Registered(Fixed(place)) = target
            && self.ring.submitter().register_files_update(place, &[-1]).is_ok()
        {
            self.free_files.push(place);
        }
    }
}

/// A core's channel on one file, through the core's ring.
pub struct UringChannel {
    ring: Rc<RefCell<CoreRing>>,
    index: u32,
    target: Target,
    file: Arc<OpenFile>,
    in_flight: InFlight,
    /// Operations that ended without the kernel.
    ended: Vec<FileCompletion>,
    replies: Arc<Replies>,
}

impl UringChannel {
    pub(super) fn new(ring: Rc<RefCell<CoreRing>>, file: &HostFile) -> Result<Self> {
        let event =
            ring.borrow().event.as_fd().try_clone_to_owned().map_err(|error| from_errno(os_error(&error)))?;
        let file = Arc::clone(file.shared());
        let (index, target) = ring.borrow_mut().open_channel(&file);
        Ok(Self {
            ring,
            index,
            target,
            file,
            in_flight: InFlight::new(CHANNEL_DEPTH),
            ended: Vec::new(),
            replies: Replies::new(event),
        })
    }

    /// See [`super::HostChannel::arm`].
    pub(super) fn arm(&self) -> Wake<'_> {
        let mut ring = self.ring.borrow_mut();
        let pending = ring.arm();
        if pending
            || !self.ended.is_empty()
            || !self.replies.is_empty()
            || !ring.inboxes[self.index as usize].ended.is_empty()
        {
            return Wake::Ready;
        }
        Wake::Wait(self.replies.event())
    }

    /// Queues a read or write.
    fn transfer(
        &mut self,
        write: bool,
        fua: bool,
        offset: u64,
        len: u64,
        segments: &[HostWindow],
        token: u64,
    ) -> core::result::Result<(), Full> {
        let ring = &mut *self.ring.borrow_mut();
        if !ring.has_room(segments.len()) {
            return Err(Full);
        }
        let (slot, payload) = self.in_flight.begin_transfer(&self.file, write, segments, len, token)?;
        let single = match (payload, segments) {
            (Payload::Bounced { pointer, len }, _) => Some((pointer, len)),
            (Payload::Direct, [segment]) => Some((segment.as_ptr(), len.min(TRANSFER_BYTES_MAX))),
            (Payload::Direct, _) => None,
        };
        let flags = if fua { libc::RWF_DSYNC } else { 0 };
        let entry = if let Some((pointer, len)) = single {
            let len = len as u32;
            if write {
                entry!(self.target, |fd| opcode::Write::new(fd, pointer, len).offset(offset).rw_flags(flags))
            } else {
                entry!(self.target, |fd| opcode::Read::new(fd, pointer, len).offset(offset))
            }
        } else {
            let (iovecs, count) = (ring.iovecs.push(segments), segments.len() as u32);
            if write {
                entry!(self.target, |fd| opcode::Writev::new(fd, iovecs, count)
                    .offset(offset)
                    .rw_flags(flags))
            } else {
                entry!(self.target, |fd| opcode::Readv::new(fd, iovecs, count).offset(offset))
            }
        };
        ring.push(&entry.user_data(user_data(self.index, slot)));
        Ok(())
    }

    /// Queues an operation without payload.
    fn whole(&mut self, op: FileOp, offset: u64, len: u64, token: u64) -> core::result::Result<(), Full> {
        let ring = &mut *self.ring.borrow_mut();
        if !ring.has_room(0) {
            return Err(Full);
        }
        let slot = self.in_flight.begin_whole(len, token)?;
        let entry = match op {
            FileOp::Flush => {
                entry!(self.target, |fd| opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC))
            }
            FileOp::Discard if self.file.is_block_device() => {
                blocking::submit(&self.replies, &self.file, op, offset, len, slot);
                return Ok(());
            }
            _ => {
                let mode = blocking::fallocate_mode(op).bits() as i32;
                entry!(self.target, |fd| opcode::Fallocate::new(fd, len).offset(offset).mode(mode))
            }
        };
        ring.push(&entry.user_data(user_data(self.index, slot)));
        Ok(())
    }
}

fn user_data(channel: u32, slot: u32) -> u64 {
    u64::from(channel) << 32 | u64::from(slot)
}

impl FileChannel for UringChannel {
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
            FileOp::Flush | FileOp::Discard | FileOp::WriteZeroes { .. } => {
                self.whole(op, offset, len, token)
            }
        }
    }

    fn poll(&mut self, completions: &mut Vec<FileCompletion>) -> bool {
        let before = completions.len();
        completions.append(&mut self.ended);
        let Self { in_flight, ring, replies, index, .. } = self;
        let ring = &mut *ring.borrow_mut();
        ring.disarm();
        // With nothing of its own in flight a channel still makes room in the queue: it may have been refused because
        // of what others queued.
        if in_flight.len() > 0 || ring.queued > 0 {
            ring.enter_if_useful();
            ring.reap(*index, |slot, result| completions.push(in_flight.finish(slot, result.into())));
            replies.take(|slot, result| completions.push(in_flight.finish(slot, result)));
        }
        completions.len() > before
    }

    fn bounced_bytes(&self) -> u64 {
        self.in_flight.bounced_bytes()
    }
}

impl Drop for UringChannel {
    fn drop(&mut self) {
        let Self { in_flight, ring, replies, index, target, .. } = self;
        let ring = &mut *ring.borrow_mut();
        if in_flight.len() > 0 {
            tracing::error!(
                in_flight = in_flight.len(),
                "a file channel was dropped with operations in flight; waiting for them"
            );
            // One by one: a cancellation by file would hit the other channels of the same file. Where the queue has no
            // room, or the kernel cannot cancel, the wait is only longer.
            for slot in in_flight.slots() {
                if ring.has_room(0) {
                    let cancel = CancelBuilder::user_data(user_data(*index, slot));
                    ring.push(&opcode::AsyncCancel2::new(cancel).build().user_data(CANCEL));
                }
            }
        }
        replies.wait_for_all(|slot, result| _ = in_flight.finish(slot, result));
        while in_flight.len() > 0 {
            ring.enter(1);
            ring.reap(*index, |slot, result| _ = in_flight.finish(slot, result.into()));
        }
        ring.close_channel(*index, *target);
    }
}
