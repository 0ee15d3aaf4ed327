//! What the process's functions reach: device addresses for regions of shared memory, and the container that maps them.
//!
//! One container and one space of addresses for all functions. A region gets an address of our choice: above 4 GiB, where
//! no machine reserves anything for its firmware and no address is 0; where the kernel says it may be (the width of the
//! IOMMU, what is reserved for interrupts); and as far into a huge page as its memory is, so that the IOMMU can map by
//! huge pages where the memory has them and by small ones where not. What may go wrong: the kernel refuses to hold more
//! memory (RLIMIT_MEMLOCK), or another function's IOMMU cannot have an address that is in use already; both are said with
//! what to do.
//!
//! The kernel drops a container's mappings with its last group. So what is to be mapped is kept here, is mapped when the
//! first function is opened, and its pages are held as long as a function is open.
//!
//! An address is found by a table of the arena's granules, of which a region never shares one: one load, no lock.

use crate::arena::{Arena, GRANULE};
use crate::error::{from_errno, with_errno};
use crate::free_list::FreeList;
use crate::memory::{self, Region};
use crate::pci::vfio::{Container, Group};
use crate::window::HostWindow;
use runtime::{Access, Dma, Error, ErrorKind, PciRefused, Result, Window};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where our device addresses begin.
const ADDRESSES_START: u64 = 4 << 30;
/// Where they end as long as no IOMMU has said otherwise: the narrowest one in use (Intel's with three levels) has 39 bits.
const ADDRESSES_END: u64 = 1 << 39;
/// In an entry of the table: there is a mapping.
const MAPPED: u64 = 1;

/// The mappings of a process; see [`runtime::Dma`].
#[derive(Clone)]
pub struct HostDma(Arc<Space>);

/// The process's mappings.
struct Space {
    /// By granule of the arena: what is added to an address of it to get the device's, and [`MAPPED`]; else 0.
    table: Box<[AtomicU64]>,
    /// Number of the arena's first granule.
    first_granule: usize,
    state: Mutex<State>,
}

/// What changes under the lock.
struct State {
    /// Addresses that may be given.
    free: FreeList,
    /// By the address of their memory.
    regions: BTreeMap<usize, Mapped>,
    /// The container, while a group is in it, and how many are.
    attached: Option<(Container, usize)>,
}

/// A region that has an address.
#[derive(Clone, Copy)]
struct Mapped {
    region: Region,
    writable: bool,
    /// Addresses taken for it: whole granules.
    taken: (u64, u64),
    /// The device address of its first page.
    address: u64,
}

/// Why a group could not be put into the container.
#[derive(Debug)]
pub(crate) enum NotAttached {
    /// There is no container.
    NoContainer(PciRefused),
    /// The kernel does not turn this IOMMU on.
    NoIommu(Errno),
    /// The group does not go into the container.
    Group(Errno),
    /// What is mapped has an address that this IOMMU cannot map.
    Address(Range<u64>),
    /// What is to be mapped cannot be; a sentence.
    Map(Error, String),
}

impl HostDma {
    /// Nothing mapped, and no function yet. Errors: `OutOfResources`.
    pub(crate) fn new() -> Result<Self> {
        let arena = Arena::get()?.bounds();
        let granules = arena.len() / GRANULE;
        // Zeroed pages of the kernel, of which only those are ever touched that hold the entry of a mapping.
        let table = Box::<[AtomicU64]>::new_zeroed_slice(granules);
        // SAFETY: a word of zeroes is a value of it.
        let table = unsafe { table.assume_init() };
        let free = FreeList::new(ADDRESSES_START as usize, ADDRESSES_END as usize);
        let state = State { free, regions: BTreeMap::new(), attached: None };
        let first_granule = arena.start / GRANULE;
        Ok(Self(Arc::new(Space { table, first_granule, state: Mutex::new(state) })))
    }

    /// Puts a group into the container, and maps for the first one what is to be mapped. `open`: how to open a container.
    pub(crate) fn attach(
        &self,
        group: &Group,
        open: impl FnOnce() -> std::result::Result<Container, PciRefused>,
    ) -> std::result::Result<(), NotAttached> {
        let mut state = self.0.lock();
        if let Some((container, groups)) = &mut state.attached {
            group.enter(container).map_err(NotAttached::Group)?;
            *groups += 1;
            let ranges = container.address_ranges();
            return match ranges.map_err(NotAttached::NoIommu).and_then(|ranges| state.limit(ranges)) {
                Ok(()) => Ok(()),
                Err(why) => {
                    self.leave(&mut state, group);
                    Err(why)
                }
            };
        }
        let container = open().map_err(NotAttached::NoContainer)?;
        group.enter(&container).map_err(NotAttached::Group)?;
        let begun = container
            .set_iommu()
            .and_then(|()| container.address_ranges())
            .map_err(NotAttached::NoIommu)
            .and_then(|ranges| state.limit(ranges))
            .and_then(|()| state.map_all(&container));
        if let Err(why) = begun {
            // Nothing of it is left in the kernel: what was mapped goes with the group.
            let _ = group.leave();
            return Err(why);
        }
        state.attached = Some((container, 1));
        Ok(())
    }

    /// Takes a group, all of whose functions are closed, out of the container.
    pub(crate) fn detach(&self, group: &Group) {
        let mut state = self.0.lock();
        self.leave(&mut state, group);
    }

    fn leave(&self, state: &mut State, group: &Group) {
        if let Err(errno) = group.leave() {
            tracing::warn!(%errno, "the kernel keeps an IOMMU group of a function that was closed");
        }
        if let Some((_, groups)) = &mut state.attached {
            *groups -= 1;
            if *groups == 0 {
                state.attached = None;
            }
        }
    }
}

impl State {
    /// Addresses may lie where the kernel says.
    fn limit(&mut self, ranges: Option<Vec<(u64, u64)>>) -> std::result::Result<(), NotAttached> {
        let Some(ranges) = ranges else { return Ok(()) };
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|(first, last)| {
                let start = first.max(ADDRESSES_START).next_multiple_of(GRANULE as u64);
                start..last.saturating_add(1) / GRANULE as u64 * GRANULE as u64
            })
            .filter(|range| range.start < range.end)
            .collect();
        let taken: Vec<_> = self.regions.values().map(|mapped| mapped.taken).collect();
        for &(start, len) in &taken {
            if !ranges.iter().any(|range| range.start <= start && start + len <= range.end) {
                return Err(NotAttached::Address(start..start + len));
            }
        }
        self.free = free_of(&ranges, &taken);
        Ok(())
    }

    fn map_all(&self, container: &Container) -> std::result::Result<(), NotAttached> {
        for (&memory, mapped) in &self.regions {
            map(container, memory, mapped).map_err(|errno| {
                NotAttached::Map(from_errno(errno), why_not_mapped(errno, mapped.region.pages.1))
            })?;
        }
        Ok(())
    }
}

/// The addresses of some ranges without those that are taken (start and length).
fn free_of(ranges: &[Range<u64>], taken: &[(u64, u64)]) -> FreeList {
    let mut taken: Vec<_> = taken.to_vec();
    taken.sort_unstable();
    let mut free = FreeList::default();
    for range in ranges {
        let mut start = range.start;
        for &(at, len) in taken.iter().filter(|(at, _)| range.contains(at)) {
            if start < at {
                free.give(start as usize, (at - start) as usize);
            }
            start = at + len;
        }
        if start < range.end {
            free.give(start as usize, (range.end - start) as usize);
        }
    }
    free
}

/// Has a region mapped by the kernel.
fn map(container: &Container, pages: usize, mapped: &Mapped) -> std::result::Result<(), Errno> {
    // SAFETY: the pages are those of a region, which is mapped in the arena.
    unsafe { container.map((pages, mapped.region.pages.1), mapped.address, mapped.writable) }
}

/// What to tell people of a mapping that the kernel refused.
fn why_not_mapped(errno: Errno, len: usize) -> String {
    let mib = len.div_ceil(1 << 20);
    match errno {
        Errno::NOMEM => {
            let limit = getrlimit(Resource::Memlock).current;
            let limit = limit.map_or("unlimited".into(), |bytes| format!("{} KiB", bytes / 1024));
            format!(
                "the kernel does not hold {mib} MiB more in memory for the drives: the limit of locked memory \
                 (RLIMIT_MEMLOCK) is {limit}; it must be as large as all guests' memory together: \
                 LimitMEMLOCK=infinity in the systemd unit, or ulimit -l unlimited"
            )
        }
        Errno::NOSPC => "the kernel has no entry left for a mapping: raise dma_entry_limit of the module \
                         vfio_iommu_type1"
            .into(),
        _ => format!("the kernel does not map {mib} MiB of memory for the drives: {errno}"),
    }
}

impl Space {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is done under the lock leaves a whole state wherever it may panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the table has an address.
    #[inline]
    fn entry(&self, address: usize) -> u64 {
        let entry = self.table.get((address / GRANULE).wrapping_sub(self.first_granule));
        // Whoever has a window learned of its mapping by way of a mailbox, which orders the two.
        entry.map_or(0, |entry| entry.load(Ordering::Relaxed))
    }

    /// Enters a region in the table, or takes it out.
    fn enter(&self, pages: (usize, usize), entry: u64) {
        let first = pages.0 / GRANULE - self.first_granule;
        let last = (pages.0 + pages.1 - 1) / GRANULE - self.first_granule;
        for slot in &self.table[first..=last] {
            slot.store(entry, Ordering::Relaxed);
        }
    }
}

impl Dma for HostDma {
    type Window = HostWindow;
    type Mapping = HostMapping;

    fn map(&self, window: HostWindow, access: Access) -> Result<HostMapping> {
        let region = memory::region(&window).ok_or(Error::new(ErrorKind::Invalid))?;
        let (start, len) = region.pages;
        let phase = start % GRANULE;
        let taken_len = (phase + len).next_multiple_of(GRANULE);
        let mut state = self.0.lock();
        if state.regions.contains_key(&start) {
            return Err(Error::new(ErrorKind::AlreadyExists));
        }
        let taken = state
            .free
            .take(taken_len, region.page.max(GRANULE))
            .ok_or(Error::new(ErrorKind::OutOfResources))?;
        let address = (taken + phase) as u64;
        let mapped = Mapped {
            region,
            writable: access == Access::ReadWrite,
            taken: (taken as u64, taken_len as u64),
            address,
        };
        if let Some((container, _)) = &state.attached
            && let Err(errno) = map(container, start, &mapped)
        {
            state.free.give(taken, taken_len);
            tracing::warn!(%errno, bytes = len, "{}", why_not_mapped(errno, len));
            return Err(match errno {
                Errno::NOMEM | Errno::NOSPC => with_errno(ErrorKind::OutOfResources, errno),
                // Memory that may not be written.
                Errno::FAULT | Errno::PERM => with_errno(ErrorKind::Invalid, errno),
                _ => from_errno(errno),
            });
        }
        state.regions.insert(start, mapped);
        // Both are as far into a granule, so that the difference has room for a mark.
        self.0.enter(region.pages, address.wrapping_sub(start as u64) | MAPPED);
        drop(state);
        Ok(HostMapping { space: Arc::clone(&self.0), pages: start })
    }

    #[inline]
    fn address(&self, window: &HostWindow) -> Option<u64> {
        let start = window.as_ptr().addr();
        let entry = self.0.entry(start);
        let last = start + (window.len() as usize).max(1) - 1;
        // A window lies in one region, or was let go. The last granule has the first one's entry or is another's.
        let whole = start / GRANULE == last / GRANULE || self.0.entry(last) == entry;
        (whole && entry & MAPPED != 0).then(|| (entry & !MAPPED).wrapping_add(start as u64))
    }
}

impl fmt::Debug for HostDma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        let groups = state.attached.as_ref().map_or(0, |(_, groups)| *groups);
        f.debug_struct("HostDma").field("regions", &state.regions.len()).field("groups", &groups).finish()
    }
}

/// Keeps a region mapped; see [`runtime::Dma::Mapping`].
pub struct HostMapping {
    space: Arc<Space>,
    /// The address of the region's first page.
    pages: usize,
}

impl fmt::Debug for HostMapping {
    /// Without addresses, which are facts of the host.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMapping").finish_non_exhaustive()
    }
}

impl Drop for HostMapping {
    fn drop(&mut self) {
        let mut state = self.space.lock();
        let Some(mapped) = state.regions.remove(&self.pages) else { return };
        self.space.enter(mapped.region.pages, 0);
        if let Some((container, _)) = &state.attached
            && let Err(errno) = container.unmap(mapped.address, mapped.region.pages.1)
        {
            // The addresses are not used again: what is mapped there may still be.
            tracing::warn!(%errno, bytes = mapped.region.pages.1, "the kernel did not unmap memory of the drives");
            return;
        }
        let (start, len) = mapped.taken;
        state.free.give(start as usize, len as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::HostHandle;
    use crate::memory::shared_memory;
    use runtime::{Handle, Memory};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn kind<T: fmt::Debug>(result: Result<T>) -> ErrorKind {
        result.expect_err("must be refused").kind
    }

    #[test]
    fn a_region_has_contiguous_addresses_as_aligned_as_its_memory() {
        let dma = HostDma::new().unwrap();
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 16 << 20).unwrap();
        let handle = HostHandle::from(fd);
        for (offset, len) in [(0, 1), (0, 16 << 20), (4096, 8 << 20), (6 << 20, 4096), (5000, (3 << 20) + 7)]
        {
            let memory = handle.map(offset, len, Access::Read).unwrap();
            let window = memory.window();
            assert_eq!(dma.address(&window), None);
            let mapping = dma.map(window, Access::Read).unwrap();
            let first = dma.address(&window).unwrap();
            assert!((ADDRESSES_START..ADDRESSES_END).contains(&first));
            assert_eq!(first % (2 << 20), offset % (2 << 20));
            for at in [0, len / 3, len / 2, len - 1] {
                let part = window.slice(at, len - at).unwrap();
                assert_eq!(dma.address(&part), Some(first + at));
                assert_eq!((first + at) % 4096 == 0, part.is_aligned(4096));
            }
            assert_eq!(kind(dma.map(window, Access::Read)), ErrorKind::AlreadyExists);
            drop(mapping);
            assert_eq!(dma.address(&window), None);
        }
    }

    #[test]
    fn only_a_whole_region_is_mapped_and_only_what_is_mapped_has_an_address() {
        let dma = HostDma::new().unwrap();
        let memories = [(); 3].map(|()| shared_memory("test", 3 << 20).unwrap());
        let [one, other, unmapped] = memories.each_ref().map(Memory::window);
        for part in [one.slice(0, 4096).unwrap(), one.slice(4096, (3 << 20) - 4096).unwrap()] {
            assert_eq!(kind(dma.map(part, Access::ReadWrite)), ErrorKind::Invalid);
        }
        let mappings = [one, other].map(|window| dma.map(window, Access::ReadWrite).unwrap());
        let [first, second] = [one, other].map(|window| dma.address(&window).unwrap());
        assert!(first.abs_diff(second) >= 3 << 20, "{first:#x} and {second:#x} overlap");
        assert_eq!(dma.address(&unmapped), None);
        drop(mappings);
        let window = one;
        drop(memories);
        assert_eq!(kind(dma.map(window, Access::ReadWrite)), ErrorKind::Invalid, "it was let go");
    }

    #[test]
    fn addresses_lie_where_the_kernel_says_and_what_lies_elsewhere_is_no_place_for_a_function() {
        let dma = HostDma::new().unwrap();
        let memories = [(); 2].map(|()| shared_memory("test", 2 << 20).unwrap());
        let windows = memories.each_ref().map(Memory::window);
        // As of a narrow IOMMU, with a hole: the second MiB of each range is no whole granule.
        let ranges = vec![(0, 0xfedf_ffff), (5 << 30, (5 << 30) + (3 << 20) - 1), (6 << 30, u64::MAX)];
        dma.0.lock().limit(Some(ranges.clone())).unwrap();
        let _first = dma.map(windows[0], Access::Read).unwrap();
        assert_eq!(dma.address(&windows[0]), Some(5 << 30));
        let second = dma.map(windows[1], Access::Read).unwrap();
        assert_eq!(dma.address(&windows[1]), Some(6 << 30));
        // Another function is opened, of an IOMMU that has not all of them.
        let narrow = dma.0.lock().limit(Some(vec![(0, (6 << 30) - 1)]));
        assert!(matches!(&narrow, Err(NotAttached::Address(range)) if range.start == 6 << 30), "{narrow:?}");
        drop(second);
        dma.0.lock().limit(Some(vec![(0, (6 << 30) - 1)])).unwrap();
        let second = dma.map(windows[1], Access::Read).unwrap();
        assert_ne!(dma.address(&windows[1]), dma.address(&windows[0]));
        drop(second);
        dma.0.lock().limit(Some(vec![(5 << 30, (5 << 30) + (2 << 20) - 1)])).unwrap();
        assert_eq!(kind(dma.map(windows[1], Access::Read)), ErrorKind::OutOfResources);
    }

    #[test]
    fn addresses_that_were_given_back_are_given_again() {
        let dma = HostDma::new().unwrap();
        let memory = shared_memory("test", 4096).unwrap();
        let mut seen = None;
        for _ in 0..1000 {
            let _mapping = dma.map(memory.window(), Access::ReadWrite).unwrap();
            let address = dma.address(&memory.window()).unwrap();
            assert_eq!(*seen.get_or_insert(address), address);
        }
    }

    #[test]
    fn what_the_kernel_does_not_hold_is_said_with_what_to_do() {
        let why = why_not_mapped(Errno::NOMEM, 3 << 20);
        assert!(why.contains("3 MiB") && why.contains("LimitMEMLOCK=infinity"), "{why}");
        assert!(why_not_mapped(Errno::NOSPC, 1).contains("dma_entry_limit"));
    }
}
