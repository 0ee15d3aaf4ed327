//! TCP: listeners and byte streams between hosts.
//!
//! A stream has its receive buffer in the process, so that one call to the host brings many headers and the payload
//! between them goes straight to where it belongs. Headers are looked at with [`TcpStream::peek`] and given up with
//! [`TcpStream::consume`]; payload is received into [`Segments`] and sent from them, and the memory of what was sent
//! belongs to the stream until it is released.

use crate::{Result, Segments, Window};
use core::net::{IpAddr, SocketAddr};

/// A host's TCP, as a process on it uses it. A plain value.
pub trait Net: Clone + 'static {
    /// The listener type of the platform.
    type Listener: TcpListener<Stream = Self::Stream>;
    /// The stream type of the platform.
    type Stream: TcpStream;

    /// Listens at an address of the host, or at all of its family (`0.0.0.0`, `::`); port 0 is one that is free. IPv4
    /// and IPv6 are apart: `::` takes no IPv4 connection. Connections that a former listener accepted are no hindrance.
    /// Errors: `AlreadyExists` when somebody listens there; `NotFound` when the host has no such address;
    /// `PermissionDenied`; `Unsupported` (no such family on the host); `OutOfResources`.
    fn listen(&self, address: SocketAddr) -> Result<Self::Listener>;

    /// Begins to connect, from an address of the host where one is given. The stream can be used once
    /// [`TcpStream::is_connected`] says so. Errors: `NotFound` when the host has no such address of its own;
    /// `Unsupported`; `OutOfResources`; and those of [`TcpStream::is_connected`], when they are known at once.
    fn connect(&self, to: SocketAddr, from: Option<IpAddr>) -> Result<Self::Stream>;
}

/// A socket that others connect to. Dropping it stops listening and ends what nobody accepted. Belongs to one core.
pub trait TcpListener: 'static {
    /// The stream type of the platform.
    type Stream;

    /// Where it listens, with the port that it got.
    fn address(&self) -> SocketAddr;

    /// Takes the next connection, if there is one. Errors: `OutOfResources` when the host has no handle left; the
    /// connection then waits and the call may be repeated later.
    fn accept(&mut self) -> Result<Option<Self::Stream>>;
}

/// A nonblocking byte stream between two hosts. What is sent leaves at once, not gathered (TCP_NODELAY). May be moved to
/// another core, and is then used only there.
///
/// An error other than `WouldBlock` ends the stream, both ways: every later call answers with an error too, and what was
/// sent and not released is the caller's again. `Closed`: the connection broke (reset by the other end, no answer for a
/// long time, the host cannot be reached). What the other end sent before, and was not received yet, may be lost with it.
///
/// Dropping it ends the connection, after what was sent; at once where not all was received that came. What was sent and
/// not released may then reach the other end altered when its memory is used anew.
pub trait TcpStream: Send + 'static {
    /// The window type of the platform.
    type Window: Window;

    /// This end. Of a stream that is not connected yet it may be an unspecified one.
    fn local(&self) -> SocketAddr;

    /// The other end.
    fn peer(&self) -> SocketAddr;

    /// Whether the connection is there; always for an accepted one. All other calls answer `WouldBlock` before. Errors:
    /// `Refused` when nobody listens there; `Closed` when the host cannot be reached or does not answer.
    fn is_connected(&mut self) -> Result<bool>;

    /// The next bytes, without consuming them: at least `least` of them (at most [`TcpStream::PEEK_MAX`]), and more when
    /// they are there. Fewer than `least`, or none, only when the other end has sent its last byte, and these are all.
    /// Errors: `WouldBlock` when so many are not there yet; `Closed`.
    fn peek(&mut self, least: usize) -> Result<&[u8]>;

    /// Gives up the first `len` of the bytes that the last [`TcpStream::peek`] has shown.
    fn consume(&mut self, len: usize);

    /// Receives what is there, at most the length of `into` (which is not 0). `Ok(0)` says that the other end has sent its
    /// last byte. Errors: `WouldBlock` when nothing is there; `Closed`.
    fn recv_into(&mut self, into: Segments<'_, Self::Window>) -> Result<u64>;

    /// Sends a prefix (at least one byte) and says how long it was; the rest is for a later call. The memory below the
    /// prefix must stay as it is until [`TcpStream::released`] gives this call's token; a call that took nothing has
    /// none. `from` has at most [`TcpStream::MAX_SEGMENTS`] windows, and at least one byte. The core's earlier stores to
    /// windows are sent as they are. Errors: `WouldBlock` when there is no room; `Closed`.
    fn send(&mut self, from: Segments<'_, Self::Window>, token: u64) -> Result<u64>;

    /// The next token whose memory the stream does not look at any more, in the order of the sends.
    fn released(&mut self) -> Option<u64>;

    /// Says that nothing more will be sent: the other end receives what was sent before, and then the end. Receiving goes
    /// on. Errors: `Closed`.
    fn finish(&mut self) -> Result<()>;

    /// Most bytes that [`TcpStream::peek`] can be asked for.
    const PEEK_MAX: usize = 8192;

    /// Most windows of one send or receive.
    const MAX_SEGMENTS: usize = 256;
}
