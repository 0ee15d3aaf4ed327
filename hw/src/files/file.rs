//! An open payload file: how it is opened for direct I/O, what it is, and the lock that fences a dead process.
//!
//! The lock is `flock(LOCK_EX)` on the very open file description that does the I/O. The kernel drops it with the
//! description's last reference, and every request in flight holds one: after a `kill -9` the next process is refused
//! until nothing of the dead one can still reach the medium.
//!
//! Beside it the locks are held by which QEMU's programs know that an image is in use ([`super::image_locks`]).
//!
//! A block device is also claimed (`O_EXCL`), so that it cannot be mounted below us and a mounted one is refused. The
//! claim is a descriptor of its own without I/O, because it must not stand in the way of the lock: a dead process's
//! last I/O would otherwise make the open fail as `Busy`, where a wait for the lock is what is wanted.

use super::bounce::BOUNCE_ALIGNMENT;
use super::{image_locks, uring};
use crate::error::{from_errno, os_error, with_errno};
use runtime::{ErrorKind, FileEngine, FileInfo, FileLock, FileOptions, Result};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

/// Smallest and largest block that the contract knows, in bytes.
const BLOCK_SIZE_MIN: u32 = 512;
const BLOCK_SIZE_MAX: u32 = 65536;

/// What is assumed of a file system that does not say (`STATX_DIOALIGN` came with Linux 6.1) and refuses 512 bytes.
const BLOCK_SIZE_FALLBACK: u32 = 4096;

/// An open payload file, shared by its clones and channels.
#[derive(Clone)]
pub struct HostFile(pub(super) Arc<OpenFile>);

/// The one open file description and what was learnt of it when it was opened.
pub(super) struct OpenFile {
    fd: OwnedFd,
    claim: Mutex<Option<OwnedFd>>,
    engine: FileEngine,
    read_only: bool,
    is_block_device: bool,
    block_size: u32,
    physical_block_size: u32,
    memory_alignment: u32,
    can_discard: bool,
    can_write_zeroes: bool,
    identity: (u64, u64),
}

impl HostFile {
    /// Opens a payload file as [`runtime::Directory::open`] says. Blocking.
    pub(super) fn open(path: &str, options: FileOptions) -> Result<Self> {
        // Looked at before the open: opening a pipe would wait for its other end.
        let found = rustix::fs::stat(path).map_err(from_errno)?;
        let is_block_device = match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => false,
            FileType::BlockDevice => true,
            _ => return Err(ErrorKind::Invalid.into()),
        };
        if options.engine == FileEngine::Uring {
            uring::probe()?;
        }
        let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let fd = rustix::fs::open(path, access | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).map_err(
            |errno| match errno {
                // The file is there and its kind is right, so the file system refuses direct I/O.
                Errno::INVAL => with_errno(ErrorKind::Unsupported, errno),
                _ => from_errno(errno),
            },
        )?;
        let opened = rustix::fs::fstat(&fd).map_err(from_errno)?;
        if FileType::from_raw_mode(opened.st_mode) != FileType::from_raw_mode(found.st_mode) {
            // Replaced between the look and the open.
            return Err(ErrorKind::Invalid.into());
        }
        let direct = DirectLimits::of(&fd, is_block_device)?;
        let (physical_block_size, can_discard, can_write_zeroes) = if is_block_device {
            let physical = rustix::fs::ioctl_blkpbszget(&fd).map_err(from_errno)?;
            let limit = |name| queue_limit(opened.st_rdev, name) > 0;
            (physical, limit("discard_max_bytes"), limit("write_zeroes_max_bytes"))
        } else {
            let (can_discard, can_write_zeroes) = file_system_abilities(&fd)?;
            // The file system's own block: the kernel's word for the unit of efficient I/O.
            (opened.st_blksize as u32, can_discard, can_write_zeroes)
        };
        let file = OpenFile {
            claim: Mutex::new(None),
            engine: options.engine,
            read_only: options.read_only,
            is_block_device,
            block_size: direct.block_size,
            physical_block_size: physical_block_size.clamp(direct.block_size, BLOCK_SIZE_MAX),
            memory_alignment: direct.memory_alignment,
            can_discard: can_discard && !options.read_only,
            can_write_zeroes: can_write_zeroes && !options.read_only,
            identity: if is_block_device {
                // No inode has this number, so that no regular file is taken for a device.
                (opened.st_rdev, u64::MAX)
            } else {
                (opened.st_dev, opened.st_ino)
            },
            fd,
        };
        if is_block_device && let Err(error) = file.claim_device() {
            // Another target, or what is left of our last life, holds the lock along with its claim: the lock is then
            // what to wait for. Anybody else's claim (a mounted file system) is final.
            if error.kind != ErrorKind::Busy || file.flock()? == FileLock::Held {
                return Err(error);
            }
        }
        Ok(Self(Arc::new(file)))
    }

    /// What every channel of the file needs.
    pub(super) fn shared(&self) -> &Arc<OpenFile> {
        &self.0
    }
}

impl runtime::File for HostFile {
    fn info(&self) -> Result<FileInfo> {
        self.0.info()
    }

    fn try_lock(&self) -> Result<FileLock> {
        self.0.try_lock()
    }
}

impl OpenFile {
    /// The descriptor that does the I/O.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The engine asked for.
    pub(super) fn engine(&self) -> FileEngine {
        self.engine
    }

    /// Whether it was opened for reading only.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether it is a block device.
    pub(super) fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// The unit of offsets and lengths in bytes, a power of two.
    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The unit of memory addresses in bytes, a power of two.
    pub(super) fn memory_alignment(&self) -> u32 {
        self.memory_alignment
    }

    fn info(&self) -> Result<FileInfo> {
        let len = if self.is_block_device {
            block_device_len(self.fd.as_fd())?
        } else {
            rustix::fs::fstat(&self.fd).map_err(from_errno)?.st_size as u64
        };
        Ok(FileInfo {
            len,
            block_size: self.block_size,
            physical_block_size: self.physical_block_size,
            is_block_device: self.is_block_device,
            can_discard: self.can_discard,
            can_write_zeroes: self.can_write_zeroes,
            identity: self.identity,
        })
    }

    fn try_lock(&self) -> Result<FileLock> {
        if self.flock()? == FileLock::HeldElsewhere {
            return Ok(FileLock::HeldElsewhere);
        }
        let claimed = if self.is_block_device { self.claim_device() } else { Ok(()) };
        let lock = claimed.and_then(|()| image_locks::take(self.fd.as_fd(), self.read_only));
        if lock != Ok(FileLock::Held) {
            self.unlock();
        }
        lock
    }

    fn flock(&self) -> Result<FileLock> {
        match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(FileLock::Held),
            Err(Errno::WOULDBLOCK) => Ok(FileLock::HeldElsewhere),
            Err(errno) => Err(from_errno(errno)),
        }
    }

    fn unlock(&self) {
        image_locks::give_back(self.fd.as_fd());
        if let Err(error) = rustix::fs::flock(&self.fd, FlockOperation::Unlock) {
            // The descriptor's end unlocks as well, only later.
            tracing::warn!(%error, "a file's lock could not be given back");
        }
    }

    /// Claims a block device against mounts and other exclusive users, if that was not done yet. Errors: `Busy`.
    fn claim_device(&self) -> Result<()> {
        let mut claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        if claim.is_none() {
            // The same device for certain, whatever its path names by now.
            let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
            let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
            *claim = Some(rustix::fs::open(path, flags, Mode::empty()).map_err(from_errno)?);
        }
        Ok(())
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // Every channel is gone, and each waited for its I/O: nothing is in flight. The kernel may hold the file a
        // little longer (a ring's file table is emptied behind our back), the lock must not stay that long.
        self.unlock();
    }
}

/// What direct I/O asks of offsets, lengths and addresses.
struct DirectLimits {
    block_size: u32,
    memory_alignment: u32,
}

impl DirectLimits {
    fn of(fd: &OwnedFd, is_block_device: bool) -> Result<Self> {
        let known = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
            .ok()
            .filter(|found| found.stx_mask & StatxFlags::DIOALIGN.bits() != 0)
            .map(|found| (found.stx_dio_offset_align, found.stx_dio_mem_align));
        if known == Some((0, 0)) {
            // Open, and yet no direct I/O (an encrypted file, data journalling): it would go through the page cache,
            // where a write outlives the process that made it and the lock with it.
            return Err(ErrorKind::Unsupported.into());
        }
        let block_size = if is_block_device {
            rustix::fs::ioctl_blksszget(fd).map_err(from_errno)?
        } else {
            match known {
                Some((offset_alignment, _)) => offset_alignment.max(BLOCK_SIZE_MIN),
                None => smallest_direct_read(fd)?,
            }
        };
        let memory_alignment = known.map_or(block_size, |(_, memory_alignment)| memory_alignment);
        if !block_size.is_power_of_two()
            || !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size)
            || !memory_alignment.is_power_of_two()
            || memory_alignment as usize > BOUNCE_ALIGNMENT
        {
            return Err(ErrorKind::Unsupported.into());
        }
        Ok(Self { block_size, memory_alignment })
    }
}

/// The block size of a file system that does not tell, by trying.
fn smallest_direct_read(fd: &OwnedFd) -> Result<u32> {
    #[repr(align(4096))]
    struct Block([u8; BLOCK_SIZE_MIN as usize]);
    let mut block = Block([0; BLOCK_SIZE_MIN as usize]);
    let file = std::fs::File::from(fd.try_clone().map_err(|error| from_errno(os_error(&error)))?);
    match file.read_at(&mut block.0, 0) {
        Ok(_) => Ok(BLOCK_SIZE_MIN),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(BLOCK_SIZE_FALLBACK),
        Err(error) => Err(from_errno(os_error(&error))),
    }
}

/// Size of a block device in bytes, as it is now.
fn block_device_len(fd: BorrowedFd<'_>) -> Result<u64> {
    /// `_IOR(0x12, 114, size_t)`, linux/fs.h.
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut len = 0_u64;
    // SAFETY: the request writes one u64 to the address, and `len` is one.
    if unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut len) } != 0 {
        return Err(from_errno(os_error(&std::io::Error::last_os_error())));
    }
    Ok(len)
}

/// A limit of a block device's queue as sysfs has it; 0 where it has none. A partition's queue is its disk's.
fn queue_limit(device: u64, name: &str) -> u64 {
    let device = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    [format!("{device}/queue/{name}"), format!("{device}/../queue/{name}")]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok())
        .unwrap_or(0)
}

/// Whether a regular file's file system punches holes, and whether it zeroes ranges without writing them. By its type,
/// not by trying: a try would change somebody's file before its lock is had.
fn file_system_abilities(fd: &OwnedFd) -> Result<(bool, bool)> {
    // f_type values of linux/magic.h (bcachefs: its own header).
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const F2FS: u64 = 0xf2f5_2010;
    const BCACHEFS: u64 = 0xca45_1a4e;
    const TMPFS: u64 = 0x0102_1994;
    let kind = rustix::fs::fstatfs(fd).map_err(from_errno)?.f_type as u64 & 0xffff_ffff;
    Ok(match kind {
        EXT4 | XFS | BTRFS | F2FS | BCACHEFS => (true, true),
        TMPFS => (true, false),
        _ => (false, false),
    })
}
