//! Errors of RPC methods: a number that programs decide by, as SPDK's own target gives it, and a sentence for people.
//!
//! The numbers below -32000 are JSON-RPC's (section 5.1 of its specification); the small negative ones are errno values,
//! as SPDK's bdev methods return them. A message of the latter kind begins with the errno's usual text, since scripts
//! look for it, and goes on with what was asked, what was found and what to do.

use alloc::format;
use alloc::string::String;
use core::fmt;
use runtime::ErrorKind;

/// The text could not be read as JSON; the connection is closed after the answer.
pub const PARSE_ERROR: i32 = -32700;
/// It is JSON, but no request.
pub const INVALID_REQUEST: i32 = -32600;
/// There is no such method.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// The parameters are not those of the method.
pub const INVALID_PARAMS: i32 = -32602;
/// The target failed by itself.
pub const INTERNAL_ERROR: i32 = -32603;
/// The method may not be called now (SPDK's own number): the target is stopping.
pub const INVALID_STATE: i32 = -1;

/// The errno values that methods answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// EPERM.
    NotPermitted,
    /// ENOENT.
    NoSuchFile,
    /// EIO.
    InputOutput,
    /// ENOMEM.
    OutOfMemory,
    /// EACCES.
    PermissionDenied,
    /// EBUSY.
    Busy,
    /// EEXIST.
    Exists,
    /// ENODEV.
    NoSuchDevice,
    /// EINVAL.
    Invalid,
    /// ENOSPC.
    NoSpace,
    /// EROFS.
    ReadOnly,
    /// EOPNOTSUPP.
    Unsupported,
}

impl Errno {
    /// The negative number, as x86-64 Linux has it.
    #[must_use]
    pub const fn code(self) -> i32 {
        match self {
            Self::NotPermitted => -1,
            Self::NoSuchFile => -2,
            Self::InputOutput => -5,
            Self::OutOfMemory => -12,
            Self::PermissionDenied => -13,
            Self::Busy => -16,
            Self::Exists => -17,
            Self::NoSuchDevice => -19,
            Self::Invalid => -22,
            Self::NoSpace => -28,
            Self::ReadOnly => -30,
            Self::Unsupported => -95,
        }
    }

    /// The usual text.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotPermitted => "Operation not permitted",
            Self::NoSuchFile => "No such file or directory",
            Self::InputOutput => "Input/output error",
            Self::OutOfMemory => "Cannot allocate memory",
            Self::PermissionDenied => "Permission denied",
            Self::Busy => "Device or resource busy",
            Self::Exists => "File exists",
            Self::NoSuchDevice => "No such device",
            Self::Invalid => "Invalid argument",
            Self::NoSpace => "No space left on device",
            Self::ReadOnly => "Read-only file system",
            Self::Unsupported => "Operation not supported",
        }
    }

    /// What an error of the world is to the caller of a method.
    #[must_use]
    pub const fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound => Self::NoSuchFile,
            ErrorKind::PermissionDenied => Self::PermissionDenied,
            ErrorKind::AlreadyExists => Self::Exists,
            ErrorKind::Busy | ErrorKind::WouldBlock => Self::Busy,
            ErrorKind::NoSpace => Self::NoSpace,
            ErrorKind::ReadOnly => Self::ReadOnly,
            ErrorKind::OutOfResources => Self::OutOfMemory,
            ErrorKind::Invalid => Self::Invalid,
            ErrorKind::Unsupported => Self::Unsupported,
            ErrorKind::Closed | ErrorKind::Refused | ErrorKind::Io => Self::InputOutput,
        }
    }
}

/// The answer to a call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcError {
    /// What programs decide by.
    pub code: i32,
    /// What people read.
    pub message: String,
}

/// What a method gives.
pub type RpcResult<T> = Result<T, RpcError>;

impl RpcError {
    /// An error with one of this module's JSON-RPC numbers.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// An error with an errno's number.
    #[must_use]
    pub fn errno(errno: Errno, detail: impl fmt::Display) -> Self {
        Self { code: errno.code(), message: format!("{}: {detail}", errno.text()) }
    }

    /// An error of a vhost method: SPDK answers those with "invalid parameters" and only the errno's text tells why.
    #[must_use]
    pub fn vhost(errno: Errno, detail: impl fmt::Display) -> Self {
        Self { code: INVALID_PARAMS, message: format!("{}: {detail}", errno.text()) }
    }

    /// The parameters will not do.
    pub fn params(message: impl Into<String>) -> Self {
        Self::new(INVALID_PARAMS, message)
    }
}
