//! TCP of the host, nonblocking.
//!
//! The other end is a stranger, and the network between loses whole connections. Bytes are received into a buffer of the
//! stream, many headers with one call; payload goes straight to where it belongs, and what comes behind it in the same
//! call to the buffer. What is sent the kernel copies, so it is released at once; a stream that sends without copying
//! (MSG_ZEROCOPY) would release it when the socket's error queue says so, in the order of the sends.

use crate::error::{from_errno, os_error, with_errno};
use crate::readiness::Socket;
use crate::window::HostWindow;
use runtime::{Error, ErrorKind, Net, Result, Segments, TcpListener, TcpStream, Window};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, accept_with, bind, connect, getsockname, ipproto,
    listen, shutdown, socket_with, sockopt,
};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Bytes of a stream's receive buffer: some hundred headers.
const BUFFER_BYTES: usize = 32 << 10;
const _: () = assert!(BUFFER_BYTES >= 2 * HostTcpStream::PEEK_MAX);

/// The host's TCP; see [`runtime::Net`].
#[derive(Clone, Copy, Debug)]
pub struct HostNet;

impl Net for HostNet {
    type Listener = HostTcpListener;
    type Stream = HostTcpStream;

    fn listen(&self, address: SocketAddr) -> Result<HostTcpListener> {
        let socket = socket(address.ip())?;
        // Connections of a former listener, and what is left of them, do not keep the next one from listening.
        sockopt::set_socket_reuseaddr(&socket, true).map_err(from_errno)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true).map_err(from_errno)?;
        }
        bind(&socket, &address).map_err(of_network)?;
        listen(&socket, BACKLOG).map_err(of_network)?;
        let address = getsockname(&socket).map_err(from_errno)?;
        let address = SocketAddr::try_from(address).map_err(from_errno)?;
        Ok(HostTcpListener { socket: socket.into(), address })
    }

    fn connect(&self, to: SocketAddr, from: Option<IpAddr>) -> Result<HostTcpStream> {
        let socket = socket(to.ip())?;
        if let Some(from) = from {
            bind(&socket, &SocketAddr::new(from, 0)).map_err(of_network)?;
        }
        let mut stream = HostTcpStream::new(socket, to)?;
        stream.connected = match connect(&stream.socket, &to) {
            Ok(()) => true,
            // Interrupted, it goes on all the same.
            Err(Errno::INPROGRESS | Errno::INTR) => false,
            Err(errno) => return Err(of_network(errno)),
        };
        Ok(stream)
    }
}

fn socket(address: IpAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP)).map_err(of_network)
}

/// What the numbers mean for a connection.
fn of_network(errno: Errno) -> Error {
    let kind = match errno {
        Errno::CONNREFUSED => ErrorKind::Refused,
        Errno::TIMEDOUT
        | Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::NETDOWN
        | Errno::HOSTDOWN
        | Errno::NETRESET => ErrorKind::Closed,
        Errno::ADDRNOTAVAIL => ErrorKind::NotFound,
        Errno::AFNOSUPPORT => ErrorKind::Unsupported,
        errno => return from_errno(errno),
    };
    with_errno(kind, errno)
}

/// A listening TCP socket; see [`runtime::TcpListener`].
#[derive(Debug)]
pub struct HostTcpListener {
    pub(crate) socket: Socket,
    address: SocketAddr,
}

impl AsFd for HostTcpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl TcpListener for HostTcpListener {
    type Stream = HostTcpStream;

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn accept(&mut self) -> Result<Option<HostTcpStream>> {
        if self.socket.is_quiet() {
            return Ok(None);
        }
        loop {
            let accepted = match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => {
                    self.socket.found_empty();
                    return Ok(None);
                }
                // The connection ended while it waited; the next one may be there. The kernel also passes on what it had
                // learnt of the network meanwhile (accept(2)).
                Err(
                    Errno::INTR
                    | Errno::CONNABORTED
                    | Errno::NETDOWN
                    | Errno::PROTO
                    | Errno::NOPROTOOPT
                    | Errno::HOSTDOWN
                    | Errno::NONET
                    | Errno::HOSTUNREACH
                    | Errno::NETUNREACH,
                ) => continue,
                Err(errno) => return Err(from_errno(errno)),
            };
            let peer = rustix::net::getpeername(&accepted).ok().flatten();
            // Without a peer it has ended already.
            let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) else { continue };
            let mut stream = HostTcpStream::new(accepted, peer)?;
            stream.connected = true;
            return Ok(Some(stream));
        }
    }
}

/// A TCP connection; see [`runtime::TcpStream`].
#[derive(Debug)]
pub struct HostTcpStream {
    pub(crate) socket: Socket,
    peer: SocketAddr,
    connected: bool,
    /// Why it is of no more use.
    failed: Option<Error>,
    /// What was received and not consumed, from `start` to `end`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    released: VecDeque<u64>,
}

impl HostTcpStream {
    fn new(socket: OwnedFd, peer: SocketAddr) -> Result<Self> {
        sockopt::set_tcp_nodelay(&socket, true).map_err(from_errno)?;
        Ok(Self {
            socket: socket.into(),
            peer,
            connected: false,
            failed: None,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            released: VecDeque::new(),
        })
    }

    /// Whether its making goes on.
    pub(crate) fn is_connecting(&self) -> bool {
        !self.connected && self.failed.is_none()
    }

    /// Whether it can be used.
    fn usable(&mut self) -> Result<()> {
        match self.is_connected() {
            Ok(true) => Ok(()),
            Ok(false) => Err(ErrorKind::WouldBlock.into()),
            Err(error) => Err(error),
        }
    }

    /// Keeps the error that ends the stream: the kernel tells it once.
    fn ended<T>(&mut self, errno: Errno) -> Result<T> {
        let error = of_network(errno);
        if error.kind != ErrorKind::WouldBlock {
            self.failed = Some(error);
        }
        Err(error)
    }

    /// What a call for received bytes failed with.
    fn not_received<T>(&mut self, errno: Errno) -> Result<T> {
        if errno == Errno::AGAIN {
            self.socket.found_empty();
        }
        self.ended(errno)
    }

    /// Receives into the windows of a range and then into the (empty) buffer; how many bytes in all.
    fn receive(&mut self, windows: impl Iterator<Item = HostWindow>) -> Result<usize> {
        if self.socket.is_quiet() {
            return Err(ErrorKind::WouldBlock.into());
        }
        assert_eq!(self.start, self.end, "what was received first is taken first");
        (self.start, self.end) = (0, 0);
        let mut iovecs = Vectors::new(windows);
        iovecs.push(self.buffer.as_mut_ptr(), self.buffer.len());
        loop {
            // SAFETY: the array has so many entries. Each names shared memory of the arena, which nobody holds a reference
            // to, or the buffer, which this call alone has.
            let received = unsafe {
                libc::readv(self.socket.as_raw_fd(), iovecs.entries.as_ptr(), iovecs.used as libc::c_int)
            };
            match usize::try_from(received) {
                Ok(received) => return Ok(received),
                Err(_) => match os_error(&std::io::Error::last_os_error()) {
                    Errno::INTR => {}
                    errno => return self.not_received(errno),
                },
            }
        }
    }
}

/// The vectors of one call, filled from their beginning.
struct Vectors {
    entries: [libc::iovec; HostTcpStream::MAX_SEGMENTS + 1],
    used: usize,
}

impl Vectors {
    fn new(windows: impl Iterator<Item = HostWindow>) -> Self {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut vectors = Self { entries: [empty; HostTcpStream::MAX_SEGMENTS + 1], used: 0 };
        for window in windows {
            assert!(vectors.used < HostTcpStream::MAX_SEGMENTS, "too many segments");
            vectors.push(window.as_ptr(), window.len() as usize);
        }
        vectors
    }

    fn push(&mut self, start: *mut u8, len: usize) {
        self.entries[self.used] = libc::iovec { iov_base: start.cast(), iov_len: len };
        self.used += 1;
    }
}

impl AsFd for HostTcpStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl TcpStream for HostTcpStream {
    type Window = HostWindow;

    fn local(&self) -> SocketAddr {
        let name = getsockname(&self.socket).ok().and_then(|name| SocketAddr::try_from(name).ok());
        name.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn is_connected(&mut self) -> Result<bool> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if !self.connected {
            let mut socket = [PollFd::new(&self.socket, PollFlags::OUT)];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            match poll(&mut socket, Some(&at_once)) {
                Ok(0) | Err(Errno::INTR) => return Ok(false),
                Ok(_) => {}
                Err(errno) => return Err(from_errno(errno)),
            }
            match sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => self.connected = true,
                Ok(Err(errno)) | Err(errno) => return self.ended(errno),
            }
        }
        Ok(true)
    }

    fn peek(&mut self, least: usize) -> Result<&[u8]> {
        assert!((1..=Self::PEEK_MAX).contains(&least), "{least} bytes to peek at");
        self.usable()?;
        while self.end - self.start < least {
            if BUFFER_BYTES - self.start < least {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            }
            if self.socket.is_quiet() {
                return Err(ErrorKind::WouldBlock.into());
            }
            match rustix::io::read(&self.socket, &mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(received) => self.end += received,
                Err(Errno::INTR) => {}
                Err(errno) => return self.not_received(errno),
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, len: usize) {
        assert!(len <= self.end - self.start, "{len} bytes were never shown");
        self.start += len;
    }

    fn recv_into(&mut self, into: Segments<'_, HostWindow>) -> Result<u64> {
        let wanted = into.len();
        assert!(wanted > 0, "something is received into some room");
        self.usable()?;
        let buffered = into.write(0, &self.buffer[self.start..self.end]);
        self.start += buffered;
        let left = wanted - buffered as u64;
        if left == 0 {
            return Ok(wanted);
        }
        match self.receive(into.range(buffered as u64, left)) {
            Ok(received) => {
                let direct = left.min(received as u64);
                self.end = received - direct as usize;
                Ok(buffered as u64 + direct)
            }
            // What ended the stream is told when everything before it was.
            Err(_) if buffered > 0 => Ok(buffered as u64),
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, from: Segments<'_, HostWindow>, token: u64) -> Result<u64> {
        let vectors = Vectors::new(from.0.iter().copied());
        assert!(!from.is_empty(), "a stream sends at least one byte");
        self.usable()?;
        let message = libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: vectors.entries.as_ptr().cast_mut(),
            msg_iovlen: vectors.used,
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        loop {
            // SAFETY: the message and what it points at are there for as long as the call lasts; the kernel reads the
            // windows' memory, which no Rust object lives in, and fails the call where nothing is mapped.
            let sent =
                unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
            match u64::try_from(sent) {
                Ok(sent) => {
                    self.released.push_back(token);
                    return Ok(sent);
                }
                Err(_) => match os_error(&std::io::Error::last_os_error()) {
                    Errno::INTR => {}
                    errno => return self.ended(errno),
                },
            }
        }
    }

    fn released(&mut self) -> Option<u64> {
        self.released.pop_front()
    }

    fn finish(&mut self) -> Result<()> {
        self.usable()?;
        match shutdown(&self.socket, Shutdown::Write) {
            Ok(()) => Ok(()),
            Err(errno) => self.ended(errno),
        }
    }
}
