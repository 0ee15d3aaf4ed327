//! Kernel objects passed between processes: file descriptors whose kind is not known until somebody asks.
//!
//! A stranger may send anything. Nothing is asked of it that the kernel would have to ask of somebody else (of a FUSE
//! daemon, for one), and what is not one of the three kinds that are used is closed away from the cores.

use crate::closer;
use crate::error::from_errno;
use crate::memory::{self, HostMemory};
use crate::notifier::HostNotifier;
use crate::unix::HostStream;
use runtime::{Access, Handle, Result};
use rustix::io::fcntl_dupfd_cloexec;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A file descriptor on its way between processes; see [`runtime::Handle`].
#[derive(Debug)]
pub struct HostHandle {
    /// `None` once it was taken out.
    fd: Option<OwnedFd>,
}

impl HostHandle {
    fn fd(&self) -> &OwnedFd {
        self.fd.as_ref().expect("it is taken with the handle")
    }
}

impl From<OwnedFd> for HostHandle {
    fn from(fd: OwnedFd) -> Self {
        Self { fd: Some(fd) }
    }
}

impl From<HostHandle> for OwnedFd {
    fn from(mut handle: HostHandle) -> Self {
        handle.fd.take().expect("it is taken with the handle")
    }
}

impl AsFd for HostHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd().as_fd()
    }
}

impl Drop for HostHandle {
    fn drop(&mut self) {
        // What was memory is the common case, and closed at once.
        if let Some(fd) = self.fd.take().filter(|fd| !memory::is_memory(fd.as_fd())) {
            closer::close(fd);
        }
    }
}

impl Handle for HostHandle {
    type Memory = HostMemory;
    type Notifier = HostNotifier;
    type Stream = HostStream;

    fn map(&self, offset: u64, len: u64, access: Access) -> Result<HostMemory> {
        memory::check_is_memory(self.as_fd())?;
        let object = fcntl_dupfd_cloexec(self.fd(), 0).map_err(from_errno)?;
        memory::map_file(object, offset, len, access)
    }

    fn into_notifier(self) -> Result<HostNotifier> {
        HostNotifier::check(self.as_fd())?;
        Ok(HostNotifier::from_received(self.into()))
    }

    fn into_stream(self) -> Result<HostStream> {
        HostStream::check(self.as_fd())?;
        Ok(HostStream::from_received(self.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::ErrorKind;
    use rustix::net::sockopt;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    /// A descriptor whose close waits for long.
    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        // More than the other end, which reads nothing, has room for.
        while near.write(&[0; 1 << 16]).is_ok() {}
        near.set_nonblocking(false).unwrap();
        sockopt::set_socket_linger(&near, Some(Duration::from_secs(20))).unwrap();
        (near.into(), far)
    }

    #[test]
    fn what_nobody_takes_is_closed_elsewhere() {
        let begun = Instant::now();
        let mut others = Vec::new();
        for use_it in [
            |handle: HostHandle| assert!(handle.map(0, 1, Access::Read).is_err()),
            |handle: HostHandle| assert_eq!(handle.into_notifier().unwrap_err().kind, ErrorKind::Invalid),
            |handle: HostHandle| assert_eq!(handle.into_stream().unwrap_err().kind, ErrorKind::Invalid),
            drop,
        ] {
            let (fd, other) = lingering();
            use_it(fd.into());
            others.push(other);
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "a close was waited for");
    }
}
