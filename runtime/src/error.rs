//! The one error type of the contract: a kind that the stack decides by, and the operating system's number for people.

use core::fmt;

/// A result of the contract.
pub type Result<T> = core::result::Result<T, Error>;

/// What went wrong, in the few kinds that the stack acts upon differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// Nothing is there by that name.
    NotFound,
    /// The user that the process runs as may not do it.
    PermissionDenied,
    /// Something is there already (a socket that a live process answers on, a file that must be new).
    AlreadyExists,
    /// Held by another open file description: a live process, or I/O of a dead one that has not ended.
    Busy,
    /// The file system, or the host's memory for a named region, has no room left.
    NoSpace,
    /// The medium or the file was opened for reading only.
    ReadOnly,
    /// The host has no memory, no handle or no mapping left to give.
    OutOfResources,
    /// What was asked is malformed, out of range or of the wrong type.
    Invalid,
    /// The object cannot do this at all; asking again will not help.
    Unsupported,
    /// Nothing could be done right now; asking again may succeed (EAGAIN, EINTR).
    WouldBlock,
    /// The other end of a stream is gone.
    Closed,
    /// The host is there, and nobody listens at that port.
    Refused,
    /// The device or the file system failed the operation.
    Io,
}

/// An error of the world: a kind and, where there is one, the operating system's error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Error {
    /// The kind that the stack decides by.
    pub kind: ErrorKind,
    /// The operating system's `errno`, 0 where the error has none. For people only; the stack never decides by it.
    pub errno: i32,
}

impl Error {
    /// An error of `kind` with no number of the operating system.
    pub const fn new(kind: ErrorKind) -> Self {
        Self { kind, errno: 0 }
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            ErrorKind::NotFound => "not found",
            ErrorKind::PermissionDenied => "permission denied",
            ErrorKind::AlreadyExists => "already exists",
            ErrorKind::Busy => "held by another process",
            ErrorKind::NoSpace => "no space left",
            ErrorKind::ReadOnly => "read-only",
            ErrorKind::OutOfResources => "the host is out of memory, handles or mappings",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Unsupported => "not supported",
            ErrorKind::WouldBlock => "not ready",
            ErrorKind::Closed => "closed by the other end",
            ErrorKind::Refused => "connection refused",
            ErrorKind::Io => "input/output error",
        })?;
        if self.errno != 0 {
            write!(f, " (errno {})", self.errno)?;
        }
        Ok(())
    }
}

impl core::error::Error for Error {}
