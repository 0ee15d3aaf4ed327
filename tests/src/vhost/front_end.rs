//! A front-end's end of the vhost-user connection, from bytes: it knows the header and the payloads of the
//! specification by itself, and sends whatever a test wants.

use crate::message::{self, HEADER_SIZE};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, pread, pwrite};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg,
    socket_with, socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Version 1, no flags.
pub const PLAIN: u32 = message::VERSION;
/// Version 1, and an answer is asked for.
pub const NEED_REPLY: u32 = message::VERSION | message::NEED_REPLY;
/// Version 1, a reply.
pub const REPLY: u32 = message::VERSION | message::REPLY;
/// Room for the handles of one message.
const HANDLES_MAX: usize = 16;

/// A message that came.
#[derive(Debug)]
pub struct Received {
    /// The request's number.
    pub request: u32,
    /// Its flags.
    pub flags: u32,
    /// Its payload.
    pub payload: Vec<u8>,
    /// What rode on it.
    pub handles: Vec<OwnedFd>,
}

impl Received {
    /// The payload as one number.
    #[must_use]
    pub fn number(&self) -> u64 {
        u64::from_ne_bytes(self.payload[..].try_into().expect("a payload of 8 bytes"))
    }

    /// A part of the payload as a number.
    #[must_use]
    pub fn number32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.payload[at..at + 4].try_into().expect("4 bytes"))
    }
}

/// One end of a connection.
pub struct Wire {
    socket: OwnedFd,
    incoming: Vec<u8>,
    handles: Vec<OwnedFd>,
}

impl Wire {
    /// Connects to a path.
    #[must_use]
    pub fn connect(path: &Path) -> Self {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let socket = socket.expect("a socket");
        connect(&socket, &SocketAddrUnix::new(path).expect("a path")).expect("somebody listens");
        Self::over(socket)
    }

    /// A connected pair: one end, and the other to give away.
    #[must_use]
    pub fn pair() -> (Self, OwnedFd) {
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (near, far) = pair.expect("a pair");
        (Self::over(near), far)
    }

    fn over(socket: OwnedFd) -> Self {
        Self { socket, incoming: Vec::new(), handles: Vec::new() }
    }

    /// Sends bytes as they are, with handles on the first. Whether the other end still takes them.
    pub fn send_bytes(&self, bytes: &[u8], handles: &[&OwnedFd]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDLES_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = handles.iter().map(|handle| handle.as_fd()).collect();
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)), "room for the handles");
        }
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).is_ok()
    }

    /// Sends a message.
    pub fn send(&self, request: u32, flags: u32, payload: &[u8], handles: &[&OwnedFd]) -> bool {
        self.send_bytes(&message(request, flags, payload), handles)
    }

    /// Takes up to `most` bytes away unread; how many there were.
    pub fn skip(&self, most: usize) -> usize {
        let mut bytes = vec![0; most];
        let flags = RecvFlags::DONTWAIT;
        rustix::net::recv(&self.socket, &mut bytes[..], flags).map_or(0, |(received, _)| received)
    }

    /// The next message, if all of it is there. `Err`: the other end closed.
    pub fn receive(&mut self) -> Result<Option<Received>, Closed> {
        loop {
            if let Some(header) = self.incoming.first_chunk::<HEADER_SIZE>() {
                let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
                let (request, flags, len) = (word(0), word(4), word(8) as usize);
                if self.incoming.len() >= HEADER_SIZE + len {
                    let payload = self.incoming[HEADER_SIZE..HEADER_SIZE + len].to_vec();
                    self.incoming.drain(..HEADER_SIZE + len);
                    let handles = std::mem::take(&mut self.handles);
                    return Ok(Some(Received { request, flags, payload, handles }));
                }
            }
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDLES_MAX))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(Closed),
                Ok(received) if received.bytes == 0 => return Err(Closed),
                Ok(received) => self.incoming.extend_from_slice(&bytes[..received.bytes]),
            }
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(handles) = message {
                    self.handles.extend(handles);
                }
            }
        }
    }
}

/// The other end closed the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// A message's bytes.
#[must_use]
pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = words(&[request, flags, payload.len() as u32]);
    bytes.extend_from_slice(payload);
    bytes
}

/// Numbers of 32 bits, one after the other.
#[must_use]
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Numbers of 64 bits, one after the other.
#[must_use]
pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// The inflight description as QEMU sends it, with its padding.
#[must_use]
pub fn inflight_description(mmap_size: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let mut payload = longs(&[mmap_size, 0]);
    payload.extend_from_slice(&queues.to_ne_bytes());
    payload.extend_from_slice(&queue_size.to_ne_bytes());
    payload.extend_from_slice(&[0; 4]);
    payload
}

/// A piece of guest memory, looked at through its file: never mapped, so never torn by a bug of the test.
pub struct Memory {
    /// The file.
    pub file: OwnedFd,
    /// First guest physical address.
    pub guest: u64,
    /// First address in the front-end.
    pub user: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Memory {
    /// Zeroed memory.
    #[must_use]
    pub fn new(guest: u64, user: u64, len: u64) -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, len).expect("room");
        Self { file, guest, user, len }
    }

    /// The region's description.
    #[must_use]
    pub fn region(&self) -> Vec<u8> {
        longs(&[self.guest, self.len, self.user, 0])
    }

    /// The payload of `ADD_MEM_REG` and `REM_MEM_REG`.
    #[must_use]
    pub fn single_region(&self) -> Vec<u8> {
        [longs(&[0]), self.region()].concat()
    }

    /// The payload of a `SET_MEM_TABLE` with this region alone.
    #[must_use]
    pub fn table(&self) -> Vec<u8> {
        [words(&[1, 0]), self.region()].concat()
    }

    /// Reads at a guest physical address.
    #[must_use]
    pub fn read<const N: usize>(&self, guest: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert_eq!(pread(&self.file, &mut bytes, guest - self.guest), Ok(N));
        bytes
    }

    /// Writes at a guest physical address.
    pub fn write(&self, guest: u64, bytes: &[u8]) {
        assert_eq!(pwrite(&self.file, bytes, guest - self.guest), Ok(bytes.len()));
    }
}

/// A new eventfd.
#[must_use]
pub fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

/// Takes the rings of an eventfd.
pub fn take(eventfd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(eventfd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}
