//! Guest memory: regions of memfds, mapped here and handed to the back-end.
//!
//! A guest address is what descriptors hold; a user address (where this process mapped it) is what the vhost-user ring
//! addresses hold. Both are computed here and nowhere else. Rings and payload should live in different regions where a test
//! takes a payload region away (REM_MEM_REG, a shrunken file): this process must never touch what it truncated.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::MemfdFlags;
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::{ClientError, Result};

/// Where the second region of [`GuestMemory::with_regions`] begins: above the 32-bit hole, as in a real guest.
pub const HIGH_MEMORY_BASE: u64 = 1 << 32;

/// What a guest's memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// The machine's ordinary pages.
    Small,
    /// Pages of 2 MiB, of hugetlbfs: they must be free, and lengths and offsets be multiples.
    Huge,
}

impl Pages {
    /// Bytes of one.
    pub const fn size(self) -> u64 {
        match self {
            Self::Small => 4096,
            Self::Huge => 2 << 20,
        }
    }
}

/// One region: a memfd mapped whole from `mmap_offset`.
#[derive(Debug)]
pub struct Region {
    /// First guest address.
    pub guest_address: u64,
    /// Length in bytes.
    pub size: u64,
    /// Offset of the region in its file.
    pub mmap_offset: u64,
    map: MmapRegion<()>,
    file: Arc<File>,
    next_free: u64,
}

impl Region {
    /// A new zeroed memfd of `mmap_offset + size` bytes, mapped from `mmap_offset` on.
    pub fn new(guest_address: u64, size: u64, mmap_offset: u64) -> Result<Region> {
        Region::of(Pages::Small, guest_address, size, mmap_offset)
    }

    /// The same, of pages of a kind.
    pub fn of(pages: Pages, guest_address: u64, size: u64, mmap_offset: u64) -> Result<Region> {
        let flags = MemfdFlags::CLOEXEC
            | match pages {
                Pages::Small => MemfdFlags::empty(),
                Pages::Huge => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            };
        let fd = rustix::fs::memfd_create("guest-memory", flags)
            .map_err(|errno| ClientError::io("memfd_create of guest memory")(errno.into()))?;
        let file = Arc::new(File::from(fd));
        file.set_len(mmap_offset + size).map_err(ClientError::io("sizing guest memory"))?;
        let map = MmapRegion::from_file(FileOffset::from_arc(file.clone(), mmap_offset), size as usize)
            .map_err(|error| ClientError::io("mapping guest memory")(std::io::Error::other(error)))?;
        Ok(Region { guest_address, size, mmap_offset, map, file, next_free: guest_address })
    }

    /// Where this process mapped the region.
    pub fn user_address(&self) -> u64 {
        self.map.as_ptr() as u64
    }

    /// The region as the `vhost` crate wants it. The handle stays this region's.
    pub fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.guest_address,
            memory_size: self.size,
            userspace_addr: self.user_address(),
            mmap_offset: self.mmap_offset,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// The memfd, to shrink or to seal it.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// The memory of one guest.
#[derive(Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

impl GuestMemory {
    /// A region at address 0 and, when `high` is not 0, one above 4 GiB whose file begins with a page that isn't guest memory.
    pub fn with_regions(pages: Pages, low: u64, high: u64) -> Result<GuestMemory> {
        let mut memory = GuestMemory::default();
        memory.plug(Region::of(pages, 0, low, 0)?);
        if high != 0 {
            memory.plug(Region::of(pages, HIGH_MEMORY_BASE, high, pages.size())?);
        }
        Ok(memory)
    }

    /// Adds a region and returns its index.
    pub fn plug(&mut self, region: Region) -> usize {
        self.regions.push(region);
        self.regions.len() - 1
    }

    /// Takes the last region away (its mapping here ends when the returned region is dropped).
    pub fn unplug_last(&mut self) -> Option<Region> {
        self.regions.pop()
    }

    /// All regions, in the order they were plugged.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// `size` bytes of region `index`, aligned to `align` (a power of two), for good.
    pub fn allocate(&mut self, index: usize, size: u64, align: u64) -> Result<u64> {
        let region = &mut self.regions[index];
        let start = region.next_free.next_multiple_of(align);
        if start + size > region.guest_address + region.size {
            return Err(ClientError::Violation(format!(
                "the test's guest memory is too small: region {index} of {} bytes has no {size} left",
                region.size
            )));
        }
        region.next_free = start + size;
        Ok(start)
    }

    /// The user address of a guest address.
    pub fn user_address(&self, guest_address: u64) -> u64 {
        let (region, offset) = self.find(guest_address, 1);
        region.user_address() + offset as u64
    }

    /// Copies out of guest memory. Panics when the range is not in one region, as all accessors here: the address is the test's own.
    pub fn read(&self, guest_address: u64, buffer: &mut [u8]) {
        let (region, offset) = self.find(guest_address, buffer.len() as u64);
        region.map.as_volatile_slice().read_slice(buffer, offset).expect("the range was found");
    }

    /// Copies into guest memory.
    pub fn write(&self, guest_address: u64, buffer: &[u8]) {
        let (region, offset) = self.find(guest_address, buffer.len() as u64);
        region.map.as_volatile_slice().write_slice(buffer, offset).expect("the range was found");
    }

    /// One atomic load of a naturally aligned integer.
    pub fn load<T: AtomicAccess>(&self, guest_address: u64, order: Ordering) -> T {
        let (region, offset) = self.find(guest_address, size_of::<T>() as u64);
        region.map.as_volatile_slice().load(offset, order).expect("the address is aligned")
    }

    /// One atomic store of a naturally aligned integer.
    pub fn store<T: AtomicAccess>(&self, guest_address: u64, value: T, order: Ordering) {
        let (region, offset) = self.find(guest_address, size_of::<T>() as u64);
        region.map.as_volatile_slice().store(value, offset, order).expect("the address is aligned");
    }

    fn find(&self, guest_address: u64, length: u64) -> (&Region, usize) {
        self.regions
            .iter()
            .find(|region| {
                guest_address >= region.guest_address
                    && guest_address + length <= region.guest_address + region.size
            })
            .map(|region| (region, (guest_address - region.guest_address) as usize))
            .unwrap_or_else(|| panic!("{length} bytes at guest address {guest_address:#x} are in no region"))
    }
}
