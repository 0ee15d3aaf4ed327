//! The one range of addresses in which all shared memory is mapped, and the allocator of its parts.
//!
//! A window is a plain value that keeps nothing alive, so one that is used after its memory was let go must not be able
//! to reach anything of ours. All mappings therefore live in one reservation, made once and never given back, in which no
//! Rust object ever lives: an address of it is mapped shared memory or nothing at all. What may go wrong: the kernel can
//! refuse to put the reservation back in place of a mapping (its limit of mappings is reached); such addresses are
//! retired, never handed out again.

use crate::error::{from_errno, with_errno};
use crate::fault;
use crate::free_list::FreeList;
use runtime::{Error, ErrorKind, Result};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Addresses that are asked for at first: 16 TiB, an eighth of a process's.
const RESERVED_BYTES_MAX: usize = 16 << 40;
/// Fewest addresses that are worth starting with. Under a limit of address space (RLIMIT_AS, a memory checker; valgrind
/// has 32 GiB to give) the reservation is halved until it fits.
const RESERVED_BYTES_MIN: usize = 16 << 30;
/// Parts begin and end at multiples of it: a huge page, so that the kernel can map shared memory by huge pages.
pub(crate) const GRANULE: usize = 2 << 20;

/// The reservation.
pub(crate) struct Arena {
    free: Mutex<FreeList>,
    /// The addresses that parts are taken from.
    bounds: Range<usize>,
}

/// Addresses of the arena, given to one mapping, until [`Arena::unmap`].
pub(crate) struct Part {
    /// Address of the first mapped byte.
    pub(crate) start: usize,
    /// Mapped bytes.
    pub(crate) len: usize,
    /// The addresses taken for it, with what lies before and behind: first, and how many.
    taken: (usize, usize),
}

/// What is mapped: bytes of an object, from a page boundary.
pub(crate) struct Mapping<'a> {
    /// The object.
    pub(crate) object: BorrowedFd<'a>,
    /// First byte, a multiple of the object's page.
    pub(crate) offset: u64,
    /// Bytes, a multiple of the object's page.
    pub(crate) len: usize,
    /// The object's page, a power of two.
    pub(crate) page: usize,
    /// Whether stores are allowed.
    pub(crate) writable: bool,
}

impl Arena {
    /// The process's arena, reserved at the first call. Errors: `OutOfResources` when not even the smallest one fits.
    pub(crate) fn get() -> Result<&'static Self> {
        static ARENA: OnceLock<Result<Arena>> = OnceLock::new();
        ARENA.get_or_init(Self::reserve).as_ref().map_err(|error| *error)
    }

    fn reserve() -> Result<Self> {
        let mut len = RESERVED_BYTES_MAX;
        loop {
            // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours.
            let reserved = unsafe {
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
                mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), flags)
            };
            match reserved {
                Ok(base) => {
                    let base = base.expose_provenance();
                    fault::watch(base, len);
                    let (start, end) = (base.next_multiple_of(GRANULE), (base + len) / GRANULE * GRANULE);
                    return Ok(Self { free: Mutex::new(FreeList::new(start, end)), bounds: start..end });
                }
                Err(_) if len / 2 >= RESERVED_BYTES_MIN => len /= 2,
                Err(errno) => return Err(with_errno(ErrorKind::OutOfResources, errno)),
            }
        }
    }

    /// The addresses in which all parts lie, from a granule's start to a granule's end.
    pub(crate) fn bounds(&self) -> Range<usize> {
        self.bounds.clone()
    }

    /// Maps an object, shared. Errors: `OutOfResources`, `PermissionDenied`, `Invalid` (the object cannot be mapped).
    pub(crate) fn map(&self, mapping: &Mapping<'_>) -> Result<Part> {
        // The mapping lies in the huge page as its bytes lie in the object's: only then can shared memory be mapped huge.
        let phase = (mapping.offset % GRANULE as u64) as usize;
        let len = mapping
            .len
            .checked_add(phase)
            .and_then(|len| len.checked_next_multiple_of(GRANULE))
            .ok_or(Error::new(ErrorKind::OutOfResources))?;
        let start = self
            .free_list()
            .take(len, mapping.page.max(GRANULE))
            .ok_or(Error::new(ErrorKind::OutOfResources))?;
        let part = Part { start: start + phase, len: mapping.len, taken: (start, len) };
        let protection = if mapping.writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let map = |address: usize, place: MapFlags| {
            let flags = MapFlags::SHARED | MapFlags::NORESERVE | place;
            // SAFETY: without `FIXED` the kernel chooses addresses that are free; with it, the addresses are the arena's
            // and were just taken from its free list, so that only a stale window, which may see anything, looks there.
            unsafe { mmap(pointer(address), mapping.len, protection, flags, mapping.object, mapping.offset) }
        };
        // A `FIXED` mapping that fails may leave the addresses open to any thread's heap. So what fails because of the
        // object, which a stranger chose, must fail elsewhere first.
        let tried = map(0, MapFlags::empty()).and_then(|trial| {
            // SAFETY: the mapping was made here and nothing was told of it.
            unsafe { munmap(trial, mapping.len) }
        });
        if let Err(errno) = tried {
            self.free_list().give(start, len);
            return Err(match errno {
                Errno::NODEV => with_errno(ErrorKind::Invalid, errno),
                _ => from_errno(errno),
            });
        }
        // Failing now, the addresses are retired: the host is at its limit of mappings, or out of memory.
        map(part.start, MapFlags::FIXED).map_err(from_errno)?;
        Ok(part)
    }

    /// Ends a mapping: its addresses are reserved again and may be given to another.
    pub(crate) fn unmap(&self, part: &Part) {
        // SAFETY: the addresses are the arena's and mapped by it, so no Rust object lives there.
        let reserved = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            mmap_anonymous(pointer(part.start), part.len, ProtFlags::empty(), flags)
        };
        match reserved {
            Ok(_) => self.free_list().give(part.taken.0, part.taken.1),
            Err(errno) => tracing::warn!(
                %errno,
                bytes = part.len,
                "the kernel did not take a mapping back; its addresses are not used again"
            ),
        }
    }

    fn free_list(&self) -> std::sync::MutexGuard<'_, FreeList> {
        // The list is changed by whole steps only, so it is good even after a panic elsewhere.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pointer(address: usize) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address)
}
