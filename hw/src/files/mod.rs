//! Files of a real host: the blocking operations on small ones ([`HostDirectory`]), payload files with the lock that
//! fences a dead process ([`HostFile`]), and a core's I/O channels on them through io_uring or kernel AIO
//! ([`HostChannel`]). What may go wrong is the medium's and the file system's: short transfers, full file systems,
//! operations that a file system lacks; each reaches the stack as what it is, and none is hidden by a retry here.

mod aio;
mod blocking;
mod bounce;
mod directory;
mod file;
mod image_locks;
mod in_flight;
mod iovecs;
mod machine_memory;
#[cfg(test)]
mod tests;
mod uring;

pub use aio::AioChannel;
pub use directory::{HostDirectory, HostLock};
pub use file::HostFile;
pub use uring::UringChannel;

use crate::window::HostWindow;
use runtime::{FileChannel, FileCompletion, FileEngine, FileOp, Full, Result};
use std::cell::RefCell;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};

/// What the channels of one core share: one io_uring, made with the first channel that wants it and closed with the
/// last. Belongs to the core's thread, which alone may submit to the ring.
#[derive(Default)]
pub struct CoreFiles {
    ring: RefCell<Weak<RefCell<uring::CoreRing>>>,
}

impl CoreFiles {
    /// For the calling thread's core.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// This core's channel on an open file, through the engine that the file was opened for. Errors: `Unsupported`
    /// (the host no longer allows the engine), `OutOfResources`.
    pub fn channel(&self, file: &HostFile) -> Result<HostChannel> {
        match file.shared().engine() {
            FileEngine::Uring => {
                let mut shared = self.ring.borrow_mut();
                let ring = match shared.upgrade() {
                    Some(ring) => ring,
                    None => Rc::new(RefCell::new(uring::CoreRing::new()?)),
                };
                *shared = Rc::downgrade(&ring);
                Ok(HostChannel::Uring(UringChannel::new(ring, file)?))
            }
            FileEngine::Aio => Ok(HostChannel::Aio(AioChannel::new(file)?)),
        }
    }
}

/// How a core may wait for a channel.
pub enum Wake<'a> {
    /// There is something for its next poll to do: no sleep.
    Ready,
    /// Nothing yet; the descriptor becomes readable when there is. Good until the next poll of any of the core's
    /// channels.
    Wait(BorrowedFd<'a>),
}

/// One core's I/O channel on a payload file.
pub enum HostChannel {
    /// Through the core's io_uring.
    Uring(UringChannel),
    /// Through a kernel AIO context of its own.
    Aio(AioChannel),
}

impl HostChannel {
    /// Prepares to sleep: asks for notifications, then looks again. To be called after the last poll before the sleep.
    pub fn arm(&self) -> Wake<'_> {
        match self {
            Self::Uring(channel) => channel.arm(),
            Self::Aio(channel) => channel.arm(),
        }
    }
}

impl FileChannel for HostChannel {
    type Window = HostWindow;

    fn submit(
        &mut self,
        op: FileOp,
        offset: u64,
        len: u64,
        segments: &[HostWindow],
        token: u64,
    ) -> core::result::Result<(), Full> {
        assert!(segments.len() <= Self::MAX_SEGMENTS, "an operation of {} segments", segments.len());
        match self {
            Self::Uring(channel) => channel.submit(op, offset, len, segments, token),
            Self::Aio(channel) => channel.submit(op, offset, len, segments, token),
        }
    }

    fn poll(&mut self, completions: &mut Vec<FileCompletion>) -> bool {
        match self {
            Self::Uring(channel) => channel.poll(completions),
            Self::Aio(channel) => channel.poll(completions),
        }
    }

    fn bounced_bytes(&self) -> u64 {
        match self {
            Self::Uring(channel) => channel.bounced_bytes(),
            Self::Aio(channel) => channel.bounced_bytes(),
        }
    }
}

/// A new eventfd, nonblocking and closed on exec.
fn new_event() -> Result<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(crate::error::from_errno)
}

/// Empties an eventfd's counter.
fn drain_event(event: BorrowedFd<'_>) {
    let mut counter = [0; 8];
    // An empty counter answers EAGAIN, which is what was wanted.
    let _ = rustix::io::read(event, &mut counter);
}
