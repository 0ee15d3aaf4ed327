//! Shared memory that the process owns a mapping of: a guest's, an inflight region, a named piece of the machine's.
//!
//! What may go wrong: a stranger's object may be no memory at all, may be smaller than it says, and may shrink later. The
//! first two are refused here, the last is dealt with by the [fault handler](crate::fault).

use crate::arena::{Arena, Mapping, Part};
use crate::error::from_errno;
use crate::fault::Watched;
use crate::handle::HostHandle;
use crate::window::HostWindow;
use runtime::{Access, Error, ErrorKind, Memory, Result, Window};
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, fstatfs, ftruncate,
    memfd_create,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The kind of file system that gives huge pages. Linux, uapi/linux/magic.h.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
/// The kind of file system that memfd, shared memory and tmpfs files are of.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// A mapping of shared memory; see [`runtime::Memory`].
pub struct HostMemory {
    window: HostWindow,
    part: Part,
    /// Taken from the handler's table before the mapping goes.
    watched: Option<Watched>,
    object: OwnedFd,
}

impl fmt::Debug for HostMemory {
    /// Without addresses, which are facts of the host and mean nothing to a reader.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.window.len();
        f.debug_struct("HostMemory").field("len", &len).field("lost", &self.is_lost()).finish_non_exhaustive()
    }
}

impl Memory for HostMemory {
    type Window = HostWindow;
    type Handle = HostHandle;

    fn window(&self) -> HostWindow {
        self.window
    }

    #[inline]
    fn is_lost(&self) -> bool {
        self.watched.as_ref().is_some_and(Watched::is_lost)
    }

    fn handle(&self) -> Result<HostHandle> {
        fcntl_dupfd_cloexec(&self.object, 0).map(HostHandle::from).map_err(from_errno)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        self.watched = None;
        regions().remove(&self.window.as_ptr().addr());
        if let Ok(arena) = Arena::get() {
            arena.unmap(&self.part);
        }
    }
}

/// A region as it is mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    /// Bytes of its window.
    pub(crate) len: u64,
    /// Address and length of the whole pages that hold it.
    pub(crate) pages: (usize, usize),
    /// The page that they are made of.
    pub(crate) page: usize,
}

/// All regions, by the address of the first byte.
static REGIONS: Mutex<BTreeMap<usize, Region>> = Mutex::new(BTreeMap::new());

fn regions() -> MutexGuard<'static, BTreeMap<usize, Region>> {
    // It is changed by whole steps only.
    REGIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The region that a window is the whole of.
pub(crate) fn region(window: &HostWindow) -> Option<Region> {
    regions().get(&window.as_ptr().addr()).copied().filter(|region| region.len == window.len())
}

/// Maps `len` bytes at byte `offset` (of any alignment) of an object and keeps the object open. Errors: `Invalid` when
/// the length is 0, when the object cannot be mapped, or when the range does not lie inside it; `PermissionDenied`;
/// `OutOfResources`.
pub fn map_file(object: OwnedFd, offset: u64, len: u64, access: Access) -> Result<HostMemory> {
    let size = u64::try_from(fstat(&object).map_err(from_errno)?.st_size).unwrap_or(0);
    let end = offset.checked_add(len).filter(|end| *end <= size && len > 0);
    let page = page_size(object.as_fd())?;
    let first = offset / page * page;
    let mapped_len = end.and_then(|end| end.checked_next_multiple_of(page)).map(|end| end - first);
    let Some(mapped_len) = mapped_len.and_then(|len| usize::try_from(len).ok()) else {
        return Err(Error::new(ErrorKind::Invalid));
    };
    let arena = Arena::get()?;
    let part = arena.map(&Mapping {
        object: object.as_fd(),
        offset: first,
        len: mapped_len,
        page: page as usize,
        writable: access == Access::ReadWrite,
    })?;
    let Some(watched) = Watched::new(part.start, part.len) else {
        arena.unmap(&part);
        return Err(Error::new(ErrorKind::OutOfResources));
    };
    let start = std::ptr::with_exposed_provenance_mut::<u8>(part.start);
    // A core file of the target is for its developers; the guests' memory does not belong in it.
    // SAFETY: the range is the mapping just made; the advice changes no byte of it. Where it is not taken, nothing breaks.
    let _ = unsafe { rustix::mm::madvise(start.cast(), part.len, rustix::mm::Advice::LinuxDontDump) };
    // SAFETY: the range lies inside the mapping, which lies in the arena.
    let window = unsafe { HostWindow::new(start.wrapping_add((offset - first) as usize), len) };
    let region = Region { len, pages: (part.start, part.len), page: page as usize };
    regions().insert(window.as_ptr().addr(), region);
    Ok(HostMemory { window, part, watched: Some(watched), object })
}

/// Whether an object is memory: only regular files of memory file systems are. A file of a disk or of a user's own file
/// system would let whoever serves it hold up a core, in a page fault, for as long as they like; and so would the question
/// of its kind or size, for which the kernel asks that file system. Seals are asked of nobody: the kernel has them in the
/// files of tmpfs (memfd, shm) and hugetlbfs, and refuses for any other. Linux, mm/memfd.c.
pub(crate) fn is_memory(object: BorrowedFd<'_>) -> bool {
    fcntl_get_seals(object).is_ok()
}

/// Refuses what is no memory.
pub(crate) fn check_is_memory(object: BorrowedFd<'_>) -> Result<()> {
    if is_memory(object) {
        return Ok(());
    }
    tracing::warn!(
        "what came as memory is no file of a memory file system (memfd, tmpfs, hugetlbfs) and is not mapped"
    );
    Err(Error::new(ErrorKind::Invalid))
}

/// Whether named memory can be in a directory: it must be there, on a memory file system. Errors: a sentence that says what
/// is wrong with it.
pub fn check_directory(path: &Path) -> core::result::Result<(), String> {
    let shown = path.display();
    let directory = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| format!("the directory for named memory {shown} cannot be used: {errno}"))?;
    match file_system(directory.as_fd()) {
        Ok(TMPFS_MAGIC | HUGETLBFS_MAGIC) => Ok(()),
        _ => Err(format!(
            "the directory for named memory {shown} is not on a memory file system (tmpfs, hugetlbfs)"
        )),
    }
}

/// New zeroed memory without a name in any file system, of a fixed size that nobody can change; `name` is for people.
/// Errors: `Invalid` for a length of 0 (or a name that is longer than 249 bytes); `OutOfResources`.
pub fn shared_memory(name: &str, len: u64) -> Result<HostMemory> {
    if len == 0 {
        return Err(Error::new(ErrorKind::Invalid));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let object = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag.
        Err(Errno::INVAL) => memfd_create(name, flags),
        other => other,
    }
    .map_err(from_errno)?;
    ftruncate(&object, len).map_err(|_| Error::new(ErrorKind::OutOfResources))?;
    fcntl_add_seals(&object, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(from_errno)?;
    map_file(object, 0, len, Access::ReadWrite)
}

/// The page that mappings of an object are made of, in bytes.
fn page_size(object: BorrowedFd<'_>) -> Result<u64> {
    let huge = file_system(object)? == HUGETLBFS_MAGIC;
    let size = if huge { block_size(object)? } else { rustix::param::page_size() as u64 };
    assert!(size.is_power_of_two(), "a page of {size} bytes");
    Ok(size)
}

fn file_system(object: BorrowedFd<'_>) -> Result<u64> {
    // The field is signed on some targets; the magic numbers are 32 bits wide.
    Ok(fstatfs(object).map_err(from_errno)?.f_type as u64 & 0xffff_ffff)
}

fn block_size(object: BorrowedFd<'_>) -> Result<u64> {
    Ok(fstatfs(object).map_err(from_errno)?.f_bsize as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::Handle;
    use std::sync::atomic::Ordering::Relaxed;

    fn memfd(len: u64) -> HostHandle {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        HostHandle::from(fd)
    }

    fn kind(result: Result<HostMemory>) -> ErrorKind {
        result.expect_err("must be refused").kind
    }

    #[test]
    fn two_mappings_of_one_object_are_the_same_memory_at_any_offset() {
        let handle = memfd(5 << 20);
        let memory = handle.map(0, 5 << 20, Access::ReadWrite).unwrap();
        let whole = memory.window();
        // Beyond a huge page, not at a page's start, to the last byte.
        for (offset, len) in [(0, 1), (4095, 2), ((2 << 20) + 24, 8), ((3 << 20) - 1, (2 << 20) + 1)] {
            let part = handle.map(offset, len, Access::Read).unwrap();
            assert_eq!(part.window().len(), len);
            whole.store_u8(offset, 7, Relaxed);
            whole.store_u8(offset + len - 1, 9, Relaxed);
            assert_eq!(part.window().load_u8(len - 1, Relaxed), 9);
            assert!(len == 1 || part.window().load_u8(0, Relaxed) == 7);
            assert_eq!(part.window().is_aligned(8), offset % 8 == 0);
        }
    }

    #[test]
    fn a_range_outside_the_object_is_refused() {
        let handle = memfd(8192);
        for (offset, len) in
            [(0, 0), (0, 8193), (8192, 1), (8191, 2), (u64::MAX, 1), (1, u64::MAX), (0, u64::MAX)]
        {
            assert_eq!(kind(handle.map(offset, len, Access::Read)), ErrorKind::Invalid, "{len} at {offset}");
        }
        assert!(handle.map(8191, 1, Access::Read).is_ok());
    }

    #[test]
    fn what_is_no_memory_is_refused() {
        let on_disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        on_disk.set_len(4096).unwrap();
        let zero = std::fs::File::options().read(true).write(true).open("/dev/zero").unwrap();
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        for fd in [OwnedFd::from(on_disk), OwnedFd::from(zero), OwnedFd::from(socket)] {
            assert_eq!(kind(HostHandle::from(fd).map(0, 4096, Access::Read)), ErrorKind::Invalid);
        }
    }

    #[test]
    fn memory_that_may_not_be_written_is_mapped_for_reading_only() {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, 4096).unwrap();
        fcntl_add_seals(&fd, SealFlags::WRITE).unwrap();
        let handle = HostHandle::from(fd);
        assert_eq!(kind(handle.map(0, 4096, Access::ReadWrite)), ErrorKind::PermissionDenied);
        assert_eq!(handle.map(0, 4096, Access::Read).unwrap().window().load_u8(4095, Relaxed), 0);
    }

    #[test]
    fn more_memory_than_there_are_addresses_is_refused_and_costs_none() {
        let handle = memfd(1 << 50);
        for _ in 0..100 {
            assert_eq!(kind(handle.map(0, 1 << 50, Access::Read)), ErrorKind::OutOfResources);
        }
        assert!(handle.map(1 << 49, 4096, Access::Read).is_ok());
    }

    #[test]
    fn shared_memory_is_zeroed_passed_on_by_its_handle_and_of_fixed_size() {
        let memory = shared_memory("test", 10_000).unwrap();
        assert_eq!(memory.window().len(), 10_000);
        assert_eq!(memory.window().load_u64(9992, Relaxed), 0);
        memory.window().store_u64(0, 42, Relaxed);
        let handle = memory.handle().unwrap();
        assert!(ftruncate(&handle, 4096).is_err());
        drop(memory);
        assert_eq!(handle.map(0, 10_000, Access::Read).unwrap().window().load_u64(0, Relaxed), 42);
        assert_eq!(kind(shared_memory("test", 0)), ErrorKind::Invalid);
    }

    #[test]
    fn regions_of_many_threads_do_not_meet() {
        std::thread::scope(|scope| {
            for thread in 1..=4u64 {
                scope.spawn(move || {
                    for turn in 0..200 {
                        let memory = shared_memory("test", 4096 * (1 + (turn * thread) % 700)).unwrap();
                        let last = memory.window().len() - 8;
                        assert_eq!(memory.window().load_u64(last, Relaxed), 0);
                        memory.window().store_u64(last, thread, Relaxed);
                        assert_eq!(memory.window().load_u64(last, Relaxed), thread);
                    }
                });
            }
        });
    }
}
