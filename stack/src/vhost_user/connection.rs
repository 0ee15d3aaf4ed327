//! Messages over a byte stream: received in whatever pieces they come, sent in whatever pieces go.
//!
//! A message is received by exactly its own bytes (first the header, then the payload that the header announces), so
//! that the handles that come meanwhile belong to it and to no other. One message is held at a time in each direction,
//! which bounds what a stranger can make us keep: [`MAX_PAYLOAD`](super::wire::MAX_PAYLOAD) bytes and [`MAX_HANDLES`] handles.

use super::wire::{Header, HeaderError, MAX_HANDLES};
use crate::reached::Reached;
use alloc::vec::Vec;
use core::fmt;
use runtime::{Error, ErrorKind, Platform, Stream};

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionError {
    /// The other end closed it, between two messages.
    Closed,
    /// The other end closed it inside a message.
    Cut {
        /// Bytes of the message that had come.
        received: usize,
    },
    /// The stream broke.
    Stream(Error),
    /// A header that cannot be believed.
    Header(HeaderError),
    /// More handles than a message may have.
    Handles,
}

impl ConnectionError {
    /// The point that it is.
    pub(super) const fn reached(self) -> Reached {
        match self {
            Self::Closed => Reached::ConnectionClosed,
            Self::Cut { .. } => Reached::ConnectionCut,
            Self::Stream(_) => Reached::ConnectionFailed,
            Self::Header(_) => Reached::ConnectionHeader,
            Self::Handles => Reached::ConnectionHandles,
        }
    }
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the front-end"),
            Self::Cut { received } => {
                write!(f, "closed by the front-end inside a message, after {received} of its bytes")
            }
            Self::Stream(error) => write!(f, "the socket failed: {error}"),
            Self::Header(error) => error.fmt(f),
            Self::Handles => write!(f, "more than {MAX_HANDLES} handles came with one message"),
        }
    }
}

/// A message as it came, its header believable and all else unchecked.
pub(super) struct Incoming<H> {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
    pub(super) handles: Vec<H>,
}

/// A stream of messages in both directions.
pub(super) struct Connection<P: Platform> {
    stream: P::Stream,
    /// Whether what comes are replies (on the back-end's own channel) and not requests.
    receives_replies: bool,
    incoming: Vec<u8>,
    handles: Vec<P::Handle>,
    outgoing: Vec<u8>,
    sent: usize,
    /// Rides on the first byte of `outgoing`.
    outgoing_handle: Option<P::Handle>,
}

impl<P: Platform> Connection<P> {
    pub(super) fn new(stream: P::Stream, receives_replies: bool) -> Self {
        Self {
            stream,
            receives_replies,
            incoming: Vec::with_capacity(Header::LEN),
            handles: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            outgoing_handle: None,
        }
    }

    pub(super) fn stream(&self) -> &P::Stream {
        &self.stream
    }

    /// Receives more of the current message. `Some` once it is whole.
    pub(super) fn receive(&mut self) -> Result<Option<Incoming<P::Handle>>, ConnectionError> {
        if !self.fill(Header::LEN)? {
            return Ok(None);
        }
        let header = self.incoming.first_chunk().map(Header::decode);
        let header = header.unwrap_or_else(|| unreachable!("a header's bytes are there"));
        header.check(self.receives_replies).map_err(ConnectionError::Header)?;
        if !self.fill(Header::LEN + header.size as usize)? {
            return Ok(None);
        }
        let payload = self.incoming.split_off(Header::LEN);
        self.incoming.clear();
        Ok(Some(Incoming { header, payload, handles: core::mem::take(&mut self.handles) }))
    }

    /// Receives until `len` bytes of the message are there; whether they are.
    fn fill(&mut self, len: usize) -> Result<bool, ConnectionError> {
        while self.incoming.len() < len {
            let before = self.incoming.len();
            self.incoming.resize(len, 0);
            let received = self.stream.recv(&mut self.incoming[before..], &mut self.handles);
            self.incoming.truncate(before + received.as_ref().map_or(0, |received| *received));
            match received {
                Ok(0) if before == 0 => return Err(ConnectionError::Closed),
                Ok(0) => return Err(ConnectionError::Cut { received: before }),
                Ok(_) => {}
                Err(error) => match error.kind {
                    ErrorKind::WouldBlock => return Ok(false),
                    ErrorKind::Closed if before == 0 => return Err(ConnectionError::Closed),
                    ErrorKind::Closed => return Err(ConnectionError::Cut { received: before }),
                    ErrorKind::Invalid => return Err(ConnectionError::Handles),
                    _ => return Err(ConnectionError::Stream(error)),
                },
            }
            if self.handles.len() > MAX_HANDLES {
                return Err(ConnectionError::Handles);
            }
        }
        Ok(true)
    }

    /// Puts a message into the outbox, which must be empty.
    pub(super) fn put(&mut self, header: &Header, payload: &[u8], handle: Option<P::Handle>) {
        assert!(self.is_flushed(), "one message at a time is sent");
        debug_assert_eq!(header.size as usize, payload.len());
        self.outgoing.clear();
        self.outgoing.extend_from_slice(&header.encode());
        self.outgoing.extend_from_slice(payload);
        (self.sent, self.outgoing_handle) = (0, handle);
    }

    /// Whether everything that was put has been sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.sent == self.outgoing.len()
    }

    /// Sends what can be sent; whether everything is.
    pub(super) fn flush(&mut self) -> Result<bool, ConnectionError> {
        while self.sent < self.outgoing.len() {
            let riding: &[&P::Handle] = match &self.outgoing_handle {
                Some(handle) if self.sent == 0 => &[handle],
                _ => &[],
            };
            match self.stream.send(&self.outgoing[self.sent..], riding) {
                Ok(sent) => self.sent += sent,
                Err(error) => match error.kind {
                    ErrorKind::WouldBlock => return Ok(false),
                    ErrorKind::Closed => return Err(ConnectionError::Closed),
                    _ => return Err(ConnectionError::Stream(error)),
                },
            }
        }
        self.outgoing_handle = None;
        Ok(true)
    }
}
