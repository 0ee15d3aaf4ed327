//! Kernel objects passed between processes: file descriptors whose kind is not known until somebody asks.

use crate::error::from_errno;
use crate::memory::{self, HostMemory};
use crate::notifier::HostNotifier;
use crate::unix::HostStream;
use runtime::{Access, Handle, Result};
use rustix::io::fcntl_dupfd_cloexec;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A file descriptor on its way between processes; see [`runtime::Handle`].
#[derive(Debug)]
pub struct HostHandle(OwnedFd);

impl From<OwnedFd> for HostHandle {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<HostHandle> for OwnedFd {
    fn from(handle: HostHandle) -> Self {
        handle.0
    }
}

impl AsFd for HostHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Handle for HostHandle {
    type Memory = HostMemory;
    type Notifier = HostNotifier;
    type Stream = HostStream;

    fn map(&self, offset: u64, len: u64, access: Access) -> Result<HostMemory> {
        memory::check_is_memory(self.0.as_fd())?;
        let object = fcntl_dupfd_cloexec(&self.0, 0).map_err(from_errno)?;
        memory::map_file(object, offset, len, access)
    }

    fn into_notifier(self) -> Result<HostNotifier> {
        HostNotifier::from_received(self.0)
    }

    fn into_stream(self) -> Result<HostStream> {
        HostStream::from_received(self.0)
    }
}
