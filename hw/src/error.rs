//! The operating system's error numbers, as the few kinds that the stack decides by.

use runtime::{Error, ErrorKind};
use rustix::io::Errno;

/// The contract's error for an error number. What a call means by a number of its own (a refused connect, for one) is
/// for that call to say; this is what the numbers mean everywhere.
pub(crate) fn from_errno(errno: Errno) -> Error {
    let kind = match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::NXIO => ErrorKind::NotFound,
        Errno::ACCESS | Errno::PERM => ErrorKind::PermissionDenied,
        Errno::EXIST | Errno::ADDRINUSE => ErrorKind::AlreadyExists,
        Errno::BUSY | Errno::TXTBSY => ErrorKind::Busy,
        Errno::NOSPC | Errno::DQUOT => ErrorKind::NoSpace,
        Errno::ROFS => ErrorKind::ReadOnly,
        Errno::NOMEM | Errno::NFILE | Errno::MFILE | Errno::NOBUFS | Errno::TOOMANYREFS => {
            ErrorKind::OutOfResources
        }
        Errno::INVAL
        | Errno::BADF
        | Errno::NAMETOOLONG
        | Errno::ISDIR
        | Errno::LOOP
        | Errno::OVERFLOW
        | Errno::NOTSOCK => ErrorKind::Invalid,
        Errno::OPNOTSUPP | Errno::NOSYS => ErrorKind::Unsupported,
        Errno::AGAIN | Errno::INTR => ErrorKind::WouldBlock,
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNABORTED => ErrorKind::Closed,
        _ => ErrorKind::Io,
    };
    with_errno(kind, errno)
}

/// An error of `kind`, with the number for people.
pub(crate) fn with_errno(kind: ErrorKind, errno: Errno) -> Error {
    Error { kind, errno: errno.raw_os_error() }
}

/// The number in an error of the standard library that came from a system call.
pub(crate) fn os_error(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
