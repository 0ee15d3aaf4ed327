//! Unix stream sockets that carry descriptors, nonblocking.
//!
//! The other end is a stranger: it may send descriptors that nobody asked for, more than a message may carry, or so many
//! that the process has no room for them. All that are not handed to the caller are closed. Nonblocking is asked for in
//! each call, since a received socket's flags are shared with whoever sent it.

use crate::error::{from_errno, with_errno};
use crate::handle::HostHandle;
use crate::readiness::Socket;
use runtime::{Error, ErrorKind, Listener, Result, SocketOptions, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Gid, Mode, Stat, Uid, chmod, chownat, lstat, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    recvmsg, sendmsg, socket_with, sockopt,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Longest path of a socket, in bytes: with the zero that ends it, what sun_path holds. The kernel takes one byte more, but
/// not every client does.
const PATH_BYTES_MAX: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Most descriptors that the kernel passes with one message (SCM_MAX_FD), so that room for them always suffices.
const KERNEL_HANDLES_MAX: usize = 253;

/// A connected unix socket; see [`runtime::Stream`].
#[derive(Debug)]
pub struct HostStream(pub(crate) Socket);

impl HostStream {
    /// Whether a received descriptor is a stream. Errors: `Invalid` when it is no unix stream socket.
    pub(crate) fn check(fd: BorrowedFd<'_>) -> Result<()> {
        let is_stream = sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(fd) == Ok(SocketType::STREAM);
        if is_stream { Ok(()) } else { Err(Error::new(ErrorKind::Invalid)) }
    }

    /// A stream from a received descriptor that was checked.
    pub(crate) fn from_received(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl AsFd for HostStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Stream for HostStream {
    type Handle = HostHandle;

    fn recv(&mut self, into: &mut [u8], handles: &mut Vec<HostHandle>) -> Result<usize> {
        if self.0.is_quiet() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_HANDLES_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(into)], &mut ancillary, flags) {
                Err(Errno::INTR) => {}
                Err(errno) => {
                    if errno == Errno::AGAIN {
                        self.0.found_empty();
                    }
                    return Err(from_errno(errno));
                }
                Ok(received) => break received,
            }
        };
        let before = handles.len();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                handles.extend(descriptors.map(HostHandle::from));
            }
        }
        let too_many = handles.len() - before > Self::MAX_HANDLES;
        if too_many || received.flags.contains(ReturnFlags::CTRUNC) {
            handles.truncate(before);
            // The kernel had room for all of them, so it was short of descriptors.
            let kind = if too_many { ErrorKind::Invalid } else { ErrorKind::OutOfResources };
            return Err(Error::new(kind));
        }
        Ok(received.bytes)
    }

    fn send(&mut self, bytes: &[u8], handles: &[&HostHandle]) -> Result<usize> {
        assert!(!bytes.is_empty(), "a stream sends at least one byte");
        assert!(handles.len() <= Self::MAX_HANDLES, "{} handles in one message", handles.len());
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(<HostStream as Stream>::MAX_HANDLES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let mut descriptors = [self.0.as_fd(); Self::MAX_HANDLES];
        for (descriptor, handle) in descriptors.iter_mut().zip(handles) {
            *descriptor = handle.as_fd();
        }
        if !handles.is_empty() {
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors[..handles.len()]));
            assert!(fits, "there is room for the most that a message carries");
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, flags) {
                Err(Errno::INTR) => {}
                other => return other.map_err(from_errno),
            }
        }
    }

    fn is_closed(&self) -> bool {
        let mut socket = [PollFd::new(&self.0, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A call that fails is made again with the next look.
        matches!(poll(&mut socket, Some(&at_once)), Ok(1..)) && socket[0].revents().contains(PollFlags::HUP)
    }
}

/// A listening unix socket; see [`runtime::Listener`].
#[derive(Debug)]
pub struct HostListener {
    pub(crate) socket: Socket,
    path: String,
    /// The socket's file, by device and number: what is at the path later may be another's.
    file: (u64, u64),
}

impl HostListener {
    /// Listens at a path; see [`runtime::Platform::listen`].
    ///
    /// Two processes that replace the same dead socket at the same moment may both believe to have it, and the later one
    /// has. What must not be served twice is protected by a lock of its own.
    pub fn listen(path: &str, options: &SocketOptions) -> Result<Self> {
        if path.len() > PATH_BYTES_MAX {
            return Err(with_errno(ErrorKind::Invalid, Errno::NAMETOOLONG));
        }
        let address = SocketAddrUnix::new(path).map_err(|errno| with_errno(ErrorKind::Invalid, errno))?;
        remove_dead_socket(path, &address)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(from_errno)?;
        bind(&socket, &address).map_err(from_errno)?;
        // From here on the file is removed again when something fails.
        let listener = Self {
            socket: socket.into(),
            path: path.to_owned(),
            file: identity(&lstat(path).map_err(from_errno)?),
        };
        // Connecting is refused until it listens, so nobody gets in by the permissions that the umask left.
        if options.user_id.is_some() || options.group_id.is_some() {
            let (user, group) = (options.user_id.map(Uid::from_raw), options.group_id.map(Gid::from_raw));
            chownat(CWD, path, user, group, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map_err(from_errno)?;
        }
        if let Some(mode) = options.mode {
            chmod(path, Mode::from_raw_mode(mode)).map_err(from_errno)?;
        }
        rustix::net::listen(&listener.socket, BACKLOG).map_err(from_errno)?;
        Ok(listener)
    }
}

impl AsFd for HostListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Listener for HostListener {
    type Stream = HostStream;

    fn accept(&mut self) -> Result<Option<HostStream>> {
        if self.socket.is_quiet() {
            return Ok(None);
        }
        loop {
            match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(stream) => return Ok(Some(HostStream(stream.into()))),
                Err(Errno::AGAIN) => {
                    self.socket.found_empty();
                    return Ok(None);
                }
                // The connection ended while it waited; the next one may be there.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(from_errno(errno)),
            }
        }
    }
}

impl Drop for HostListener {
    fn drop(&mut self) {
        if lstat(&self.path).is_ok_and(|stat| identity(&stat) == self.file) {
            // A socket file that stays behind is replaced at the next start.
            let _ = unlink(&self.path);
        }
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Removes a socket file that nobody answers on. Errors: `AlreadyExists` when somebody does, or when it is no socket.
fn remove_dead_socket(path: &str, address: &SocketAddrUnix) -> Result<()> {
    match lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(from_errno(errno)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(Error::new(ErrorKind::AlreadyExists));
        }
        Ok(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(from_errno)?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => unlink(path).map_err(from_errno),
        // Gone in the meantime.
        Err(Errno::NOENT) => Ok(()),
        Err(errno @ Errno::ACCESS) => Err(from_errno(errno)),
        // It listens (EAGAIN: with a full backlog), or it is a socket of another type.
        Ok(()) | Err(_) => Err(Error::new(ErrorKind::AlreadyExists)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::{Access, Handle, Memory, Window};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::sync::atomic::Ordering::Relaxed;

    fn pair() -> (HostStream, HostStream) {
        let (left, right) = UnixStream::pair().unwrap();
        (HostStream(OwnedFd::from(left).into()), HostStream(OwnedFd::from(right).into()))
    }

    fn listen(path: &std::path::Path) -> Result<HostListener> {
        HostListener::listen(path.to_str().unwrap(), &SocketOptions::default())
    }

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn handles_ride_on_the_bytes_that_they_were_sent_with() {
        let (mut left, mut right) = pair();
        let memory = crate::memory::shared_memory("test", 4096).unwrap();
        let handle = memory.handle().unwrap();
        assert_eq!(left.send(b"ab", &[&handle, &handle]), Ok(2));
        assert_eq!(left.send(b"cd", &[&handle]), Ok(2));
        let (mut bytes, mut handles) = ([0; 16], Vec::new());
        // Never beyond the boundary of a message with handles.
        assert_eq!(right.recv(&mut bytes, &mut handles), Ok(2));
        assert_eq!((&bytes[..2], handles.len()), (&b"ab"[..], 2));
        assert_eq!(right.recv(&mut bytes[..1], &mut handles), Ok(1));
        assert_eq!((&bytes[..1], handles.len()), (&b"c"[..], 3));
        assert_eq!(right.recv(&mut bytes, &mut handles), Ok(1));
        assert_eq!(handles.len(), 3);
        memory.window().store_u8(9, 5, Relaxed);
        assert_eq!(handles[1].map(0, 4096, Access::Read).unwrap().window().load_u8(9, Relaxed), 5);
        assert_eq!(right.recv(&mut bytes, &mut handles).unwrap_err().kind, ErrorKind::WouldBlock);
        drop(left);
        assert_eq!(right.recv(&mut bytes, &mut handles), Ok(0));
        assert_eq!(right.send(b"x", &[]).unwrap_err().kind, ErrorKind::Closed);
    }

    #[test]
    fn an_end_that_only_sends_no_more_is_open() {
        let (left, right) = UnixStream::pair().unwrap();
        let ours = HostStream(OwnedFd::from(left).into());
        assert!(!ours.is_closed());
        right.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!ours.is_closed());
        drop(right);
        assert!(ours.is_closed());
    }

    #[test]
    fn what_was_found_empty_is_not_asked_before_its_core_has_seen_an_event() {
        crate::readiness::on_a_core(|core| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let mut listener = listen(&path).unwrap();
            assert!(listener.accept().unwrap().is_none());
            let mut client = UnixStream::connect(&path).unwrap();
            // It is there, and no system call has said so.
            assert!(listener.accept().unwrap().is_none());
            core.collect();
            let mut stream = listener.accept().unwrap().unwrap();
            let mut receive = || stream.recv(&mut [0; 4], &mut Vec::new()).map_err(|error| error.kind);
            assert_eq!(receive(), Err(ErrorKind::WouldBlock));
            std::io::Write::write_all(&mut client, b"abcdef").unwrap();
            assert_eq!(receive(), Err(ErrorKind::WouldBlock));
            core.collect();
            assert_eq!([receive(), receive(), receive()], [Ok(4), Ok(2), Err(ErrorKind::WouldBlock)]);
            drop(client);
            core.collect();
            assert_eq!(receive(), Ok(0));
        });
    }

    #[test]
    fn a_full_socket_takes_a_prefix_and_then_says_so() {
        let (mut left, mut right) = pair();
        let payload = vec![3; 1 << 20];
        let mut sent = 0;
        let error = loop {
            match left.send(&payload, &[]) {
                Ok(bytes) => sent += bytes,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind, ErrorKind::WouldBlock);
        let (mut received, mut into) = (0, vec![0; 1 << 16]);
        while let Ok(bytes) = right.recv(&mut into, &mut Vec::new()) {
            received += bytes;
        }
        assert!(sent > 0 && sent == received, "{sent} {received}");
    }

    #[test]
    fn too_many_handles_end_the_stream_and_are_closed() {
        let (left, mut right) = pair();
        let before = open_descriptors();
        for count in [17, KERNEL_HANDLES_MAX] {
            let many = vec![left.as_fd(); count];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_HANDLES_MAX))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&many)));
            sendmsg(&left, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).unwrap();
            let mut handles = Vec::new();
            let error = right.recv(&mut [0; 4], &mut handles).unwrap_err();
            assert_eq!((error.kind, handles.len()), (ErrorKind::Invalid, 0));
        }
        // Another thread closes them. Other tests of this process open and close their own.
        let begun = std::time::Instant::now();
        while open_descriptors() >= before + 100 {
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "they are never closed");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let first = listen(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind, ErrorKind::AlreadyExists);
        drop(first);
        assert!(!path.exists());
        // Dead: the descriptor is closed and the file is still there.
        let dead = directory.path().join("dead");
        drop(UnixListener::bind(&dead).unwrap());
        assert!(dead.exists());
        let mut second = listen(&dead).unwrap();
        assert!(second.accept().unwrap().is_none());
        let mut client = UnixStream::connect(&dead).unwrap();
        std::io::Write::write_all(&mut client, b"hello").unwrap();
        let mut stream = second.accept().unwrap().unwrap();
        let mut bytes = [0; 8];
        assert_eq!(stream.recv(&mut bytes, &mut Vec::new()), Ok(5));
        drop(second);
        assert!(!dead.exists());
    }

    #[test]
    fn what_is_no_stream_socket_of_ours_stays_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(listen(&file).unwrap_err().kind, ErrorKind::AlreadyExists);
        let datagram = directory.path().join("datagram");
        let _live = UnixDatagram::bind(&datagram).unwrap();
        assert_eq!(listen(&datagram).unwrap_err().kind, ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");

        // The listener's file was replaced by somebody else's, which its end must not remove.
        let path = directory.path().join("socket");
        let listener = listen(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_cannot_be_a_socket_is_refused_precisely() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("x".repeat(108));
        assert_eq!(listen(&long).unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(listen(&directory.path().join("no/socket")).unwrap_err().kind, ErrorKind::NotFound);
    }

    #[test]
    fn mode_and_owner_are_as_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let group = rustix::process::getgid().as_raw();
        let options = SocketOptions { mode: Some(0o620), user_id: None, group_id: Some(group) };
        let _listener = HostListener::listen(path.to_str().unwrap(), &options).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (0o620, group));
    }

    #[test]
    fn only_stream_sockets_become_streams() {
        let (datagram, _) = UnixDatagram::pair().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for fd in [OwnedFd::from(datagram), OwnedFd::from(tcp)] {
            assert_eq!(HostHandle::from(fd).into_stream().unwrap_err().kind, ErrorKind::Invalid);
        }
        let (stream, _) = UnixStream::pair().unwrap();
        assert!(HostHandle::from(OwnedFd::from(stream)).into_stream().is_ok());
    }
}
