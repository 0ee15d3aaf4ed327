//! Unix sockets that carry handles, and notifiers (eventfds).
//!
//! A handle is a kernel-backed object on its way between processes: a received handle becomes memory, a notifier or a
//! stream, and is closed when dropped, so an unexpected one is refused by dropping it.

use crate::{Access, Result};
use alloc::vec::Vec;

/// Who may connect to a socket that the process listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// Permission bits of the socket's file, e.g. `0o660`; `None`: as the process's umask has it.
    pub mode: Option<u32>,
    /// Numeric owner of the socket's file; `None`: the process's user.
    pub user_id: Option<u32>,
    /// Numeric group of the socket's file; `None`: the process's group.
    pub group_id: Option<u32>,
}

/// A socket that others connect to. Dropping it stops listening and removes the path. Belongs to one core.
pub trait Listener: 'static {
    /// The stream type of the platform.
    type Stream;

    /// Takes the next connection, if there is one. Errors: `OutOfResources` when the host has no handle left; the
    /// connection then waits and the call may be repeated later.
    fn accept(&mut self) -> Result<Option<Self::Stream>>;
}

/// A nonblocking byte stream between two processes of a machine, with handles riding along. Dropping it closes it.
/// May be moved to another core, and is then used only there.
///
/// A host asks for all sockets of a core together, so what came in this moment may be seen some microseconds later, after
/// a ring or a store that followed it; a core that sleeps is woken by it as by anything else.
pub trait Stream: Send + 'static {
    /// The handle type of the platform.
    type Handle;

    /// Receives what has come: at most `into.len()` bytes, and the handles that ride on them are pushed to `handles`.
    /// `Ok(0)` says that the other end closed. A call never returns bytes from beyond the next handle-carrying
    /// boundary. Errors: `WouldBlock` when nothing is there; `Closed` when the connection broke; `Invalid` when more
    /// than [`Stream::MAX_HANDLES`] came with one message, `OutOfResources` when the process has no room for one that
    /// came (all of that message are then closed, and the stream is of no more use).
    fn recv(&mut self, into: &mut [u8], handles: &mut Vec<Self::Handle>) -> Result<usize>;

    /// Sends a prefix of `bytes` (at least one) and says how long it was; all `handles` ride on its first byte, so the
    /// rest is sent without them. The core's earlier stores to windows are visible to the receiver.
    /// Errors: `WouldBlock` when there is no room; `Closed`.
    fn send(&mut self, bytes: &[u8], handles: &[&Self::Handle]) -> Result<usize>;

    /// Whether the other end is closed for good, so that nobody would receive what is sent. An other end that only sends no
    /// more is open.
    fn is_closed(&self) -> bool;

    /// Most handles that one message may carry, either way.
    const MAX_HANDLES: usize = 16;
}

/// A kernel-backed object passed between processes.
pub trait Handle: Send + 'static {
    /// The memory type of the platform.
    type Memory;
    /// The notifier type of the platform.
    type Notifier;
    /// The stream type of the platform.
    type Stream;

    /// Maps `len` bytes at byte `offset` of the handle's object. Errors: `Invalid` when the object is no memory or the
    /// range does not lie inside it (checked by the object's size, so that a later access cannot fault by itself);
    /// `OutOfResources`; `PermissionDenied`.
    fn map(&self, offset: u64, len: u64, access: Access) -> Result<Self::Memory>;

    /// Makes a notifier of it. Errors: `Invalid` when it is not one.
    fn into_notifier(self) -> Result<Self::Notifier>;

    /// Makes a stream of it. Errors: `Invalid` when it is not a unix stream socket.
    fn into_stream(self) -> Result<Self::Stream>;
}

/// A doorbell between two parties (an eventfd): kick, call, error. Belongs to one core at a time.
pub trait Notifier: Send + 'static {
    /// Rings. Never blocks, however often it is rung; the core's earlier stores to windows are visible to whoever the
    /// ring wakes.
    fn ring(&self);

    /// Takes the rings so far; whether there was one.
    fn take(&self) -> bool;
}
