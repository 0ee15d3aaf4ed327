//! Registers: the memory of a base address register, mapped into the [arena](crate::arena), uncached.
//!
//! Where the kernel does not let a part of it be mapped (a table of interrupts, less than a page), the accesses to that
//! part are system calls. What may go wrong: the function is pulled out, and the host says so, gives ones for every load, or
//! SIGBUS. The [fault handler](crate::fault) then puts ordinary memory in place of the mapping and marks it lost; from then on
//! every load here gives ones, and stores lead nowhere.

use super::function::Opened;
use super::vfio::DeviceRegion;
use crate::arena::{Arena, Mapping, Part};
use crate::fault::Watched;
use runtime::{Error, ErrorKind, Registers, Result};
use std::arch::asm;
use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};
use vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_MMAP;

/// Bytes of a page, of which mappings are made.
const PAGE: u64 = 4096;

/// The memory of one base address register; see [`runtime::Registers`].
#[derive(Clone)]
pub struct HostRegisters(Arc<Bar>);

struct Bar {
    /// What of it is mapped. Unmapped before the function is closed.
    areas: Vec<Area>,
    len: u64,
    /// Where it lies in the device's descriptor.
    offset: u64,
    function: Arc<Opened>,
}

/// A part that is mapped.
struct Area {
    /// First byte and one behind the last, in the registers.
    start: u64,
    end: u64,
    memory: Part,
    /// Taken from the handler's table before the mapping goes.
    watched: Option<Watched>,
}

impl Drop for Area {
    fn drop(&mut self) {
        self.watched = None;
        if let Ok(arena) = Arena::get() {
            arena.unmap(&self.memory);
        }
    }
}

impl Area {
    fn map(device: impl AsFd, offset: u64, (start, len): (u64, u64)) -> Result<Self> {
        let too_large = Error::new(ErrorKind::OutOfResources);
        let mapped_len = len.checked_next_multiple_of(PAGE).and_then(|len| usize::try_from(len).ok());
        let arena = Arena::get()?;
        let memory = arena.map(&Mapping {
            object: device.as_fd(),
            offset: offset + start,
            len: mapped_len.ok_or(too_large)?,
            page: PAGE as usize,
            writable: true,
        })?;
        let Some(watched) = Watched::new(memory.start, memory.len) else {
            arena.unmap(&memory);
            return Err(too_large);
        };
        Ok(Self { start, end: start + len, memory, watched: Some(watched) })
    }

    /// The address of a register that lies inside.
    #[inline]
    fn at(&self, offset: u64) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.memory.start + (offset - self.start) as usize)
    }

    #[inline]
    fn is_lost(&self) -> bool {
        // The handler ran on this thread between the load and here, if at all.
        compiler_fence(Ordering::SeqCst);
        self.watched.as_ref().is_some_and(Watched::is_lost)
    }

    #[inline]
    fn load_u32(&self, offset: u64) -> u32 {
        let at = self.at(offset);
        let value: u32;
        // SAFETY: the address is aligned and of a mapping in the arena, where no Rust object lives; the handler deals with
        // a function that is gone. It is one access, and for the compiler behind all accesses to memory before it.
        unsafe {
            asm!("mov {value:e}, [{at}]", at = in(reg) at, value = out(reg) value, options(nostack, preserves_flags));
        }
        if self.is_lost() { u32::MAX } else { value }
    }

    #[inline]
    fn load_u64(&self, offset: u64) -> u64 {
        let at = self.at(offset);
        let value: u64;
        // SAFETY: as for four bytes.
        unsafe {
            asm!("mov {value}, [{at}]", at = in(reg) at, value = out(reg) value, options(nostack, preserves_flags));
        }
        if self.is_lost() { u64::MAX } else { value }
    }

    #[inline]
    fn store_u32(&self, offset: u64, value: u32) {
        let at = self.at(offset);
        // SAFETY: as for the loads. x86 has a store to uncached memory wait for all stores before it.
        unsafe {
            asm!("mov [{at}], {value:e}", at = in(reg) at, value = in(reg) value, options(nostack, preserves_flags));
        }
    }

    #[inline]
    fn store_u64(&self, offset: u64, value: u64) {
        let at = self.at(offset);
        // SAFETY: as for four bytes.
        unsafe {
            asm!("mov [{at}], {value}", at = in(reg) at, value = in(reg) value, options(nostack, preserves_flags));
        }
    }
}

/// The parts of a region to map: what the kernel lets be mapped, inside of it and whole pages.
fn mappable(region: &DeviceRegion) -> Vec<(u64, u64)> {
    if region.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
        return Vec::new();
    }
    let whole = vec![(0, region.len)];
    let mut parts = region.parts.clone().unwrap_or(whole);
    parts.retain(|&(start, len)| {
        len > 0 && start.is_multiple_of(PAGE) && start.checked_add(len).is_some_and(|end| end <= region.len)
    });
    parts
}

impl HostRegisters {
    /// Maps what can be mapped.
    pub(super) fn map(function: Arc<Opened>, region: &DeviceRegion) -> Result<Self> {
        let areas = mappable(region)
            .into_iter()
            .map(|part| Area::map(&function.device, region.offset, part))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self(Arc::new(Bar { areas, len: region.len, offset: region.offset, function })))
    }

    /// Where an access goes: to a part that is mapped, or by a system call. Panics at what is no access.
    #[inline]
    #[track_caller]
    fn area(&self, offset: u64, len: u64) -> Option<&Area> {
        let bar = &*self.0;
        let inside = offset.checked_add(len).is_some_and(|end| end <= bar.len);
        assert!(
            inside && offset.is_multiple_of(len),
            "an access to {len} bytes at {offset:#x} of {:#x} bytes of registers",
            bar.len
        );
        bar.areas.iter().find(|area| area.start <= offset && offset + len <= area.end)
    }

    #[cold]
    fn load_by_call<const LEN: usize>(&self, offset: u64) -> [u8; LEN] {
        let mut value = [0xff; LEN];
        let bar = &*self.0;
        match bar.function.device.0.read_exact_at(&mut value, bar.offset + offset) {
            Ok(()) => value,
            Err(_) => [0xff; LEN],
        }
    }

    #[cold]
    fn store_by_call(&self, offset: u64, value: &[u8]) {
        let bar = &*self.0;
        // Nothing is told of a store that did not arrive, as of one that did.
        let _ = bar.function.device.0.write_all_at(value, bar.offset + offset);
    }
}

impl fmt::Debug for HostRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostRegisters").field("len", &self.0.len).finish_non_exhaustive()
    }
}

impl Registers for HostRegisters {
    fn len(&self) -> u64 {
        self.0.len
    }

    #[inline]
    fn load_u32(&self, offset: u64) -> u32 {
        match self.area(offset, 4) {
            _ if self.0.function.is_gone() => u32::MAX,
            Some(area) => area.load_u32(offset),
            None => u32::from_le_bytes(self.load_by_call(offset)),
        }
    }

    #[inline]
    fn load_u64(&self, offset: u64) -> u64 {
        match self.area(offset, 8) {
            _ if self.0.function.is_gone() => u64::MAX,
            Some(area) => area.load_u64(offset),
            None => u64::from_le_bytes(self.load_by_call(offset)),
        }
    }

    #[inline]
    fn store_u32(&self, offset: u64, value: u32) {
        match self.area(offset, 4) {
            _ if self.0.function.is_gone() => {}
            Some(area) => area.store_u32(offset, value),
            None => self.store_by_call(offset, &value.to_le_bytes()),
        }
    }

    #[inline]
    fn store_u64(&self, offset: u64, value: u64) {
        match self.area(offset, 8) {
            _ if self.0.function.is_gone() => {}
            Some(area) => area.store_u64(offset, value),
            None => self.store_by_call(offset, &value.to_le_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    #[test]
    fn registers_that_are_gone_give_ones_and_swallow_stores() {
        let bar = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&bar, 0x4000).unwrap();
        let area = Area::map(&bar, 0x1000, (0x1000, 0x2000)).unwrap();
        area.store_u32(0x1004, 0xaabb_ccdd);
        area.store_u64(0x2ff8, 0x1122_3344_5566_7788);
        assert_eq!((area.load_u32(0x1004), area.load_u64(0x1000)), (0xaabb_ccdd, 0xaabb_ccdd_0000_0000));
        assert_eq!((area.load_u32(0x2ffc), area.load_u64(0x2ff8)), (0x1122_3344, 0x1122_3344_5566_7788));
        ftruncate(&bar, 0).unwrap();
        assert_eq!((area.load_u32(0x2ffc), area.load_u64(0x2ff8)), (u32::MAX, u64::MAX));
        area.store_u32(0x1004, 0);
        area.store_u64(0x2ff8, 0);
        assert_eq!((area.load_u32(0x1004), area.load_u64(0x2ff8)), (u32::MAX, u64::MAX));
    }

    #[test]
    fn only_whole_pages_inside_that_the_kernel_offers_are_mapped() {
        let region = |flags, parts| DeviceRegion { len: 0x8000, offset: 0, flags, parts };
        assert_eq!(mappable(&region(0, None)), vec![]);
        let flags = VFIO_REGION_INFO_FLAG_MMAP;
        assert_eq!(mappable(&region(flags, None)), vec![(0, 0x8000)]);
        let parts =
            vec![(0, 0x2000), (0x3000, 0x5000), (0x2800, 0x800), (0x7000, 0x2000), (0, 0), (u64::MAX, 2)];
        assert_eq!(mappable(&region(flags, Some(parts))), vec![(0, 0x2000), (0x3000, 0x5000)]);
    }
}
