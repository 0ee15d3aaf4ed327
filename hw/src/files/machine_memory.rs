//! Memory of the machine, by name: files in a memory file system (`/dev/shm`, or a hugetlbfs for huge pages) that
//! outlive the process and die with the machine's power.
//!
//! A process may die while it makes one. A file therefore gets its name only once all of its memory is reserved: what
//! has the name is whole, and what has none is gone with its maker. Reserving in full also means that a later store
//! cannot find the file system full, which would kill the process.

use crate::error::{from_errno, with_errno};
use runtime::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What a name begins with in the directory, which is shared with other programs.
const PREFIX: &str = "reprise-";

/// Longest name in bytes; with the prefix it stays below what a file system takes.
const NAME_LEN_MAX: usize = 200;

/// `HUGETLBFS_MAGIC`, linux/magic.h.
const HUGETLBFS: u64 = 0x9584_58f6;

/// A named piece of the machine's memory, open for reading and writing.
pub(super) struct MachineMemory {
    pub(super) object: OwnedFd,
    /// Whether it was there already.
    pub(super) existed: bool,
}

/// Opens the named memory of `len` bytes, or makes it, zeroed. Errors as [`runtime::Directory::machine_memory`] says;
/// also `PermissionDenied` when what is there belongs to another user, and `Unsupported` when the directory's file
/// system cannot hold it (no `O_TMPFILE`).
pub(super) fn open(directory: &Path, name: &str, len: u64) -> Result<MachineMemory> {
    let path = path(directory, name)?;
    if len == 0 {
        return Err(ErrorKind::Invalid.into());
    }
    let unit = allocation_unit(directory)?;
    let file_len = len.checked_next_multiple_of(unit).ok_or(Error::new(ErrorKind::Invalid))?;
    // Twice: another process may make it between our look and our making.
    for _ in 0..2 {
        if let Some(object) = open_existing(&path, file_len)? {
            return Ok(MachineMemory { object, existed: true });
        }
        if let Some(object) = create(directory, &path, file_len)? {
            return Ok(MachineMemory { object, existed: false });
        }
    }
    Err(ErrorKind::Busy.into())
}

/// Gives the memory back (to whoever still maps it, it stays until then).
pub(super) fn remove(directory: &Path, name: &str) -> Result<()> {
    match rustix::fs::unlink(path(directory, name)?) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(from_errno(errno)),
    }
}

fn path(directory: &Path, name: &str) -> Result<PathBuf> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.bytes().all(known) {
        return Err(ErrorKind::Invalid.into());
    }
    Ok(directory.join(format!("{PREFIX}{name}")))
}

/// What file lengths are multiples of: a huge page where the directory gives those.
fn allocation_unit(directory: &Path) -> Result<u64> {
    let found = rustix::fs::statfs(directory).map_err(from_errno)?;
    let is_huge = found.f_type as u64 & 0xffff_ffff == HUGETLBFS;
    Ok(if is_huge { found.f_bsize as u64 } else { 1 })
}

fn open_existing(path: &Path, file_len: u64) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let object = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(object) => object,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(from_errno(errno)),
    };
    let found = rustix::fs::fstat(&object).map_err(from_errno)?;
    if found.st_uid != rustix::process::geteuid().as_raw() {
        // Anybody may make files in /dev/shm: memory that another user can shrink or read is not ours.
        return Err(with_errno(ErrorKind::PermissionDenied, Errno::PERM));
    }
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile || found.st_size as u64 != file_len {
        return Err(ErrorKind::Invalid.into());
    }
    Ok(Some(object))
}

/// Makes the file without a name, reserves it, then names it. `None` when the name was taken in between.
fn create(directory: &Path, path: &Path, file_len: u64) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE;
    let object = match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(object) => object,
        // How file systems say that they have no nameless files.
        Err(errno @ (Errno::ISDIR | Errno::OPNOTSUPP)) => {
            return Err(with_errno(ErrorKind::Unsupported, errno));
        }
        Err(errno) => return Err(from_errno(errno)),
    };
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(&object, FallocateFlags::empty(), 0, file_len))
        .map_err(|errno| match errno {
            // The limits of the process's memory group and of the file system are both "no room" here.
            Errno::NOMEM | Errno::FBIG => with_errno(ErrorKind::NoSpace, errno),
            _ => from_errno(errno),
        })?;
    let nameless = format!("/proc/self/fd/{}", object.as_raw_fd());
    match rustix::fs::linkat(CWD, nameless, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(Some(object)),
        Err(Errno::EXIST) => Ok(None),
        Err(errno) => Err(from_errno(errno)),
    }
}
