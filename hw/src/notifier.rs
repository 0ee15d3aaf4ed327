//! Doorbells: eventfds that a stranger made and shares with us.
//!
//! The stranger holds the same open file description and may do to it what we may: fill the counter up, empty it, or
//! clear O_NONBLOCK. None of it may stop a core. Taking asks for not blocking in the call itself. For ringing, eventfd
//! knows no such call: O_NONBLOCK is set when the doorbell comes, and a ring on a full counter is then dropped, which
//! loses nothing, since whoever waits finds a ring there. What stays open is a stranger who fills the counter *and*
//! clears the flag in the moment between; the kernel offers nothing against it.

use crate::error::from_errno;
use runtime::{Error, ErrorKind, Notifier, Result};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, readlink};
use rustix::io::{Errno, ReadWriteFlags, preadv2, write};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What the kernel calls an eventfd. Linux, fs/eventfd.c.
const EVENTFD_NAME: &[u8] = b"anon_inode:[eventfd]";
/// "Wherever the file stands": the offset of a read from something that has no offsets. preadv2(2).
const CURRENT_OFFSET: u64 = u64::MAX;

/// An eventfd; see [`runtime::Notifier`].
#[derive(Debug)]
pub struct HostNotifier(OwnedFd);

impl HostNotifier {
    /// A doorbell of our own. Errors: `OutOfResources`.
    pub(crate) fn new() -> Result<Self> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self).map_err(from_errno)
    }

    /// Whether a received descriptor is a doorbell, and makes rings of it not wait. Errors: `Invalid` when it is no eventfd.
    pub(crate) fn check(fd: BorrowedFd<'_>) -> Result<()> {
        let name = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new()).map_err(from_errno)?;
        if name.as_bytes() != EVENTFD_NAME {
            return Err(Error::new(ErrorKind::Invalid));
        }
        fcntl_getfl(fd).and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK)).map_err(from_errno)
    }

    /// A doorbell from a received descriptor that was checked.
    pub(crate) fn from_received(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for HostNotifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Notifier for HostNotifier {
    fn ring(&self) {
        while write(&self.0, &1u64.to_ne_bytes()) == Err(Errno::INTR) {}
    }

    fn take(&self) -> bool {
        let mut count = [0; size_of::<u64>()];
        loop {
            let into = &mut [IoSliceMut::new(&mut count)];
            match preadv2(&self.0, into, CURRENT_OFFSET, ReadWriteFlags::NOWAIT) {
                Err(Errno::INTR) => {}
                taken => return taken.is_ok(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::HostHandle;
    use runtime::Handle;

    fn received(fd: OwnedFd) -> Result<HostNotifier> {
        HostHandle::from(fd).into_notifier()
    }

    #[test]
    fn rings_are_taken_together_and_once() {
        let bell = received(eventfd(0, EventfdFlags::CLOEXEC).unwrap()).unwrap();
        assert!(!bell.take());
        bell.ring();
        bell.ring();
        assert!(bell.take());
        assert!(!bell.take());
    }

    #[test]
    fn a_full_counter_stops_neither_a_ring_nor_a_take() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let bell = received(fd.try_clone().unwrap()).unwrap();
        write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        bell.ring();
        assert!(bell.take());
        assert!(!bell.take());
        // The stranger clears the flag: taking still does not block.
        fcntl_setfl(&fd, OFlags::empty()).unwrap();
        assert!(!bell.take());
    }

    #[test]
    fn what_is_no_eventfd_is_refused() {
        let (pipe, _) = std::io::pipe().unwrap();
        let refused = received(pipe.into());
        assert_eq!(refused.expect_err("a pipe is no eventfd").kind, ErrorKind::Invalid);
    }
}
