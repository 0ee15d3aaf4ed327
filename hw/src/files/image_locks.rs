//! The byte locks by which QEMU, qemu-img and qemu-storage-daemon keep each other off an image (block/file-posix.c): open
//! file description locks on one byte for each permission that a user has, and on one for each that it lets nobody else
//! have. They are taken here too, so that neither side opens a disk that the other one uses.
//!
//! All locks are shared ones; whether somebody has a byte is asked by testing for an exclusive one. They end with the open
//! file description, like the lock that fences a dead process.

use crate::error::from_errno;
use nix::fcntl::{FcntlArg, fcntl};
use runtime::{FileLock, Result};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// First byte of what users do.
const PERMITTED: i64 = 100;
/// First byte of what they let nobody else do.
const UNSHARED: i64 = 200;
/// Bytes of each, more than there are permissions.
const BYTES: i64 = 64;

/// To read what is consistent.
const READ: i64 = 0;
/// To write.
const WRITE: i64 = 1;
/// To write what is there already.
const WRITE_UNCHANGED: i64 = 2;
/// To change the size.
const RESIZE: i64 = 3;

/// What we let nobody else do.
const OURS_ALONE: [i64; 3] = [WRITE, WRITE_UNCHANGED, RESIZE];

/// Takes the locks of a user that reads, and writes unless `read_only`. `HeldElsewhere`: somebody stands against it, and
/// nothing is locked. A file system without such locks has none to stand against.
pub(super) fn take(file: BorrowedFd<'_>, read_only: bool) -> Result<FileLock> {
    let does = if read_only { &[READ][..] } else { &[READ, WRITE] };
    let ours = does.iter().map(|bit| PERMITTED + bit).chain(OURS_ALONE.map(|bit| UNSHARED + bit));
    let against = does.iter().map(|bit| UNSHARED + bit).chain(OURS_ALONE.map(|bit| PERMITTED + bit));
    match lock_all(file, ours, against) {
        Ok(true) => Ok(FileLock::Held),
        Ok(false) => {
            give_back(file);
            Ok(FileLock::HeldElsewhere)
        }
        Err(Errno::NOLCK | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(FileLock::Held),
        Err(errno) => Err(from_errno(errno)),
    }
}

/// Locks first and looks then: of two who come at once at least one sees the other.
fn lock_all(
    file: BorrowedFd<'_>,
    ours: impl Iterator<Item = i64>,
    mut against: impl Iterator<Item = i64>,
) -> std::result::Result<bool, Errno> {
    for byte in ours {
        // Refused where somebody has an exclusive one, as no user of these locks does.
        match call(file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte, 1))) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => return Ok(false),
            Err(errno) => return Err(errno),
        }
    }
    let taken = |byte| {
        let mut found = range(libc::F_WRLCK, byte, 1);
        call(file, FcntlArg::F_OFD_GETLK(&mut found))?;
        Ok(i32::from(found.l_type) != libc::F_UNLCK)
    };
    against.try_fold(true, |free, byte| Ok(free && !taken(byte)?))
}

/// Gives all of them back.
pub(super) fn give_back(file: BorrowedFd<'_>) {
    for first in [PERMITTED, UNSHARED] {
        // Where it fails there was no lock, and the description's end gives all back.
        let _ = call(file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, first, BYTES)));
    }
}

fn call(file: BorrowedFd<'_>, what: FcntlArg<'_>) -> std::result::Result<(), Errno> {
    fcntl(file, what).map(|_| ()).map_err(|errno| Errno::from_raw_os_error(errno as i32))
}

fn range(kind: libc::c_int, first: i64, len: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: first, l_len: len, l_pid: 0 }
}
