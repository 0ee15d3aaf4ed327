//! The vhost-user socket without manners: any bytes, any flags, any number of descriptors.
//!
//! For messages that the `vhost` crate does not send (GET_STATUS, SET_STATUS), and for all that no front-end should send.
//! Every receive has the stream's read timeout, so that a silent back-end is an error and not a hang.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::{ClientError, Result};
use crate::message::{HEADER_SIZE, NEED_REPLY, REPLY, VERSION};

/// The most descriptors that one send can carry (SCM_MAX_FD of Linux).
pub const DESCRIPTORS_MAX: usize = 253;
/// More than any message of the protocol holds; a longer answer is a violation.
const REPLY_PAYLOAD_MAX: usize = 1 << 16;

/// A message as it was received.
#[derive(Debug)]
pub struct Message {
    /// Message number.
    pub request: u32,
    /// Header flags.
    pub flags: u32,
    /// Everything behind the header.
    pub payload: Vec<u8>,
    /// Descriptors that came along.
    pub descriptors: Vec<OwnedFd>,
}

impl Message {
    /// The payload as one u64; a violation when it has another size.
    pub fn as_u64(&self) -> Result<u64> {
        let bytes: [u8; 8] = self.payload.as_slice().try_into().map_err(|_| {
            ClientError::Violation(format!(
                "the reply to message {} has {} bytes of payload, a u64 was expected",
                self.request,
                self.payload.len()
            ))
        })?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// The twelve bytes before every payload.
pub fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER_SIZE] {
    let mut bytes = [0; HEADER_SIZE];
    bytes[0..4].copy_from_slice(&request.to_ne_bytes());
    bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&size.to_ne_bytes());
    bytes
}

/// Sends bytes and descriptors as they are, in one sendmsg. A back-end that has closed is an error of kind BrokenPipe.
pub fn send_bytes(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors)),
            "at most {DESCRIPTORS_MAX} descriptors fit"
        );
    }
    let mut sent = rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    while sent < bytes.len() {
        sent += rustix::net::send(stream, &bytes[sent..], SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Sends one message with a correct header.
pub fn send(
    stream: &UnixStream,
    request: u32,
    flags: u32,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> std::io::Result<()> {
    let mut bytes = header(request, VERSION | flags, payload.len() as u32).to_vec();
    bytes.extend_from_slice(payload);
    send_bytes(stream, &bytes, descriptors)
}

/// Receives one message. None when the back-end has closed the connection.
pub fn receive(stream: &UnixStream) -> Result<Option<Message>> {
    let mut descriptors = Vec::new();
    let mut head = [0; HEADER_SIZE];
    if !receive_exactly(stream, &mut head, &mut descriptors)? {
        return Ok(None);
    }
    let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let (request, flags, size) = (word(0), word(4), word(8) as usize);
    if size > REPLY_PAYLOAD_MAX {
        return Err(ClientError::Violation(format!("a reply to message {request} claims {size} bytes")));
    }
    let mut payload = vec![0; size];
    if size > 0 && !receive_exactly(stream, &mut payload, &mut descriptors)? {
        return Err(ClientError::Violation(format!("the reply to message {request} ended after its header")));
    }
    Ok(Some(Message { request, flags, payload, descriptors }))
}

/// Sends a message that is always answered, and returns the answer's payload.
pub fn ask(stream: &UnixStream, request: u32, payload: &[u8]) -> Result<Message> {
    send(stream, request, 0, payload, &[])
        .map_err(ClientError::io(format!("sending vhost-user message {request}")))?;
    let reply = receive(stream)?.ok_or_else(|| {
        ClientError::Violation(format!("the connection was closed instead of answering {request}"))
    })?;
    if reply.request != request || reply.flags != VERSION | REPLY {
        return Err(ClientError::Violation(format!(
            "asked {request}, was answered with message {} and flags {:#x}",
            reply.request, reply.flags
        )));
    }
    Ok(reply)
}

/// Sends a message with NEED_REPLY and returns the u64 of its REPLY_ACK (0 is success).
pub fn ask_ack(
    stream: &UnixStream,
    request: u32,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<u64> {
    send(stream, request, NEED_REPLY, payload, descriptors)
        .map_err(ClientError::io(format!("sending vhost-user message {request}")))?;
    let reply = receive(stream)?.ok_or_else(|| {
        ClientError::Violation(format!("the connection was closed instead of acknowledging {request}"))
    })?;
    if reply.request != request || reply.flags & (VERSION | REPLY) != VERSION | REPLY {
        return Err(ClientError::Violation(format!(
            "message {request} was acknowledged with message {} and flags {:#x}",
            reply.request, reply.flags
        )));
    }
    reply.as_u64()
}

/// Fills `buffer`, collecting descriptors. False when the peer closed before the first byte.
fn receive_exactly(stream: &UnixStream, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut buffer[filled..])],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        match received {
            Ok(message) if message.bytes == 0 => {
                if filled == 0 {
                    return Ok(false);
                }
                return Err(ClientError::Violation(format!(
                    "the connection was closed after {filled} bytes"
                )));
            }
            Ok(message) => filled += message.bytes,
            Err(rustix::io::Errno::CONNRESET) if filled == 0 => return Ok(false),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(ClientError::io("receiving a vhost-user message")(errno.into())),
        }
    }
    Ok(true)
}
