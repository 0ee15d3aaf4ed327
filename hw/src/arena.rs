//! The one range of addresses in which all shared memory is mapped, and the allocator of its parts.
//!
//! A window is a plain value that keeps nothing alive, so one that is used after its memory was let go must not be able
//! to reach anything of ours. All mappings therefore live in one reservation, made once and never given back, in which no
//! Rust object ever lives: an address of it is mapped shared memory or nothing at all. What may go wrong: the kernel can
//! refuse to put the reservation back in place of a mapping (its limit of mappings is reached); such addresses are
//! retired, never handed out again.

use crate::error::{from_errno, with_errno};
use crate::fault;
use runtime::{Error, ErrorKind, Result};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Addresses that are asked for at first: 16 TiB, an eighth of a process's.
const RESERVED_BYTES_MAX: usize = 16 << 40;
/// Fewest addresses that are worth starting with. Under a limit of address space (RLIMIT_AS, a memory checker; valgrind
/// has 32 GiB to give) the reservation is halved until it fits.
const RESERVED_BYTES_MIN: usize = 16 << 30;
/// Parts begin and end at multiples of it: a huge page, so that the kernel can map shared memory by huge pages.
const GRANULE: usize = 2 << 20;

/// The reservation.
pub(crate) struct Arena {
    free: Mutex<FreeList>,
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
                    return Ok(Self { free: Mutex::new(FreeList::new(start, end)) });
                }
                Err(_) if len / 2 >= RESERVED_BYTES_MIN => len /= 2,
                Err(errno) => return Err(with_errno(ErrorKind::OutOfResources, errno)),
            }
        }
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

/// Free addresses: first fit, and neighbours become one again.
struct FreeList {
    /// End of each free range by its start. No two touch.
    ranges: BTreeMap<usize, usize>,
}

impl FreeList {
    fn new(start: usize, end: usize) -> Self {
        Self { ranges: BTreeMap::from([(start, end)]) }
    }

    /// Takes `len` bytes at a multiple of `alignment`.
    fn take(&mut self, len: usize, alignment: usize) -> Option<usize> {
        let (start, end, at) = self.ranges.iter().find_map(|(&start, &end)| {
            let at = start.checked_next_multiple_of(alignment)?;
            (at.checked_add(len)? <= end).then_some((start, end, at))
        })?;
        self.ranges.remove(&start);
        if start < at {
            self.ranges.insert(start, at);
        }
        if at + len < end {
            self.ranges.insert(at + len, end);
        }
        Some(at)
    }

    /// Gives a range back.
    fn give(&mut self, mut start: usize, len: usize) {
        let mut end = start + len;
        if let Some((&after, &after_end)) = self.ranges.range(start..).next() {
            assert!(end <= after, "addresses of the arena were given back twice");
            if after == end {
                end = after_end;
                self.ranges.remove(&after);
            }
        }
        if let Some((&before, &before_end)) = self.ranges.range(..start).next_back() {
            assert!(before_end <= start, "addresses of the arena were given back twice");
            if before_end == start {
                start = before;
            }
        }
        self.ranges.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: usize = GRANULE;

    fn ranges(list: &FreeList) -> Vec<(usize, usize)> {
        list.ranges.iter().map(|(&start, &end)| (start / G, end / G)).collect()
    }

    #[test]
    fn addresses_given_back_become_one_range_again_in_any_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut list = FreeList::new(G, 9 * G);
            let parts: Vec<_> =
                [1, 2, 3].iter().map(|len| (list.take(len * G, G).unwrap(), len * G)).collect();
            assert_eq!(ranges(&list), [(7, 9)]);
            for part in order {
                list.give(parts[part].0, parts[part].1);
            }
            assert_eq!(ranges(&list), [(1, 9)], "{order:?}");
        }
    }

    #[test]
    fn a_range_is_found_by_size_and_alignment_or_not_at_all() {
        let mut list = FreeList::new(G, 16 * G);
        assert_eq!(list.take(G, 8 * G), Some(8 * G));
        assert_eq!(ranges(&list), [(1, 8), (9, 16)]);
        assert_eq!(list.take(8 * G, G), None);
        assert_eq!(list.take(7 * G, G), Some(G));
        assert_eq!(list.take(7 * G, G), Some(9 * G));
        assert_eq!(list.take(G, G), None);
        assert_eq!(list.take(usize::MAX, G), None);
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn addresses_given_back_twice_are_noticed() {
        let mut list = FreeList::new(G, 4 * G);
        let at = list.take(2 * G, G).unwrap();
        list.give(at, 2 * G);
        list.give(at, G);
    }
}
