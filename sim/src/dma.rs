//! Simulated DMA: what a process has mapped for its functions, and the IOMMU between them and memory.
//!
//! Fault model. Device addresses are drawn: anywhere in the width of the IOMMU, in any order, with holes, kept clear of
//! what is reserved. A mapping may be refused, or all of them for seconds. An access of a function to what is not mapped, or a write to what was
//! mapped for reading, is refused and counted, and the function is told of a failed access. What a dead process had mapped
//! stays mapped until its last function was given back.
//!
//! Never: an access beyond what is mapped, a mapping that overlaps another or a reserved range, an aligned word of up to
//! eight bytes seen in part.

use crate::faults::FaultKind;
use crate::memory::SimWindow;
use crate::rng::Rng;
use crate::trace::Record;
use crate::world::{self, Agent, World};
use runtime::{Access, Dma, ErrorKind, Instant, Result, Window};
use std::collections::BTreeMap;

/// Bytes of an IOMMU's page.
const PAGE: u64 = 4096;
/// Where device addresses end: the narrowest IOMMU in use (Intel's with three levels) has 39 bits.
const END: u64 = 1 << 39;
/// What no function may reach memory at: interrupts are written there (x86).
const INTERRUPTS: (u64, u64) = (0xfee0_0000, 0xfef0_0000);
/// Where a process's addresses may begin: at 0, below the interrupts, below 4 GiB, high up.
const BASES: [u64; 4] = [0, INTERRUPTS.0 - (64 << 10), (1 << 32) - (16 << 10), 1 << 37];

/// Longest time for which no memory can be mapped for functions.
const REFUSES_NS_MAX: u64 = 8_000_000_000;

/// A function's access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// A mapped region.
#[derive(Clone, Copy, Debug)]
struct Mapped {
    mapping: u32,
    object: u32,
    /// Where it begins in its object.
    start: u64,
    len: u64,
    writable: bool,
}

/// The device addresses of a process.
#[derive(Debug)]
pub(crate) struct Space {
    /// Where the next region may begin.
    next: u64,
    /// By the device address of the first byte.
    regions: BTreeMap<u64, Mapped>,
    /// That address, by mapping.
    addresses: BTreeMap<u32, u64>,
}

impl Space {
    /// Finds room for `len` bytes that begin `within` bytes into a page.
    fn place(&mut self, within: u64, len: u64, hole: u64) -> Option<u64> {
        let mut page = self.next + hole * PAGE;
        let end = |page: u64| page + (within + len).next_multiple_of(PAGE);
        if page < INTERRUPTS.1 && end(page) > INTERRUPTS.0 {
            page = INTERRUPTS.1;
        }
        if end(page) > END {
            return None;
        }
        self.next = end(page);
        Some(page + within)
    }

    /// The region at a device address, and how far the address lies in it.
    fn region(&self, address: u64) -> Option<(Mapped, u64)> {
        let (start, mapped) = self.regions.range(..=address).next_back()?;
        let within = address - start;
        (within < mapped.len).then_some((*mapped, within))
    }
}

impl World {
    fn space(&mut self, process: u32) -> &mut Space {
        let base = match self.pci.spaces.contains_key(&process) {
            true => 0,
            false => BASES[self.streams.process.below(BASES.len() as u64) as usize],
        };
        let new = || Space { next: base, regions: BTreeMap::new(), addresses: BTreeMap::new() };
        self.pci.spaces.entry(process).or_insert_with(new)
    }

    /// A function reads memory, at a device address of the process that has it open.
    ///
    /// # Errors
    /// Not all of it is mapped for the function, or its bus mastering is off.
    pub fn dma_read(
        &mut self,
        function: u32,
        address: u64,
        into: &mut [u8],
    ) -> std::result::Result<(), Refused> {
        let mut done = 0;
        while done < into.len() {
            let (object, at, len) =
                self.translate(function, address, done as u64, (into.len() - done) as u64, false)?;
            let part = &mut into[done..done + len];
            match self.memory.bytes(object).get(at..at + len) {
                Some(bytes) => part.copy_from_slice(bytes),
                // The owner shrank it; the pages that the IOMMU still holds are nobody's.
                None => part.fill(0),
            }
            done += len;
        }
        Ok(())
    }

    /// A function writes memory; as it reads it. What lies before a place that it may not write is written.
    ///
    /// # Errors
    /// As for [`World::dma_read`].
    pub fn dma_write(
        &mut self,
        function: u32,
        address: u64,
        bytes: &[u8],
    ) -> std::result::Result<(), Refused> {
        let mut done = 0;
        while done < bytes.len() {
            let (object, at, len) =
                self.translate(function, address, done as u64, (bytes.len() - done) as u64, true)?;
            let part = &bytes[done..done + len];
            done += len;
            let Some(target) = self.memory.bytes_mut(object).get_mut(at..at + len) else { continue };
            let is_new = *target != *part;
            target.copy_from_slice(part);
            if is_new {
                self.changed();
            }
            self.trace.add(Record::Bulk, u64::from(object) << 40 | at as u64, len as u64);
            self.trace.bytes(part);
        }
        Ok(())
    }

    /// What a function reaches at `done` bytes behind an address: the object, the place in it, and how many of `len` bytes.
    fn translate(
        &mut self,
        function: u32,
        address: u64,
        done: u64,
        len: u64,
        store: bool,
    ) -> std::result::Result<(u32, usize, usize), Refused> {
        let process = self.mastered_for(function).ok_or(Refused)?;
        self.pci.judged += 1;
        let region = address
            .checked_add(done)
            .and_then(|address| self.pci.spaces.get(&process)?.region(address))
            .filter(|(mapped, _)| mapped.writable || !store);
        let Some((mapped, within)) = region else {
            self.pci.refused += 1;
            let what = if store { "write" } else { "read" };
            self.tell(|| {
                format!("the IOMMU refuses a {what} of function {function} at {address:#x} + {done:#x}")
            });
            return Err(Refused);
        };
        let len = len.min(mapped.len - within);
        let at = mapped.start + within;
        if self.is_alive(process) && self.memory.is_unmapped(mapped.mapping) {
            let object = mapped.object;
            self.fail("memory", format!("object {object} was let go while it was mapped for functions"));
        }
        if let Some((guest, address)) = self.memory.watcher(mapped.object, at)
            && !self.faults.struck().iter().any(crate::faults::Fault::betrays)
        {
            self.observe(guest, Agent::Disk, address, len, store);
        }
        Ok((mapped.object, at as usize, len as usize))
    }
}

impl World {
    /// Where a device address of a process lies in the memory of a guest, and how much of `len` bytes does.
    pub(crate) fn place_in_guest(
        &self,
        process: u32,
        address: u64,
        len: u64,
        guest: u32,
    ) -> Option<(u64, u64)> {
        let (mapped, within) = self.pci.spaces.get(&process)?.region(address)?;
        let (of, place) = self.memory.watcher(mapped.object, mapped.start + within)?;
        (of == guest).then(|| (place, len.min(mapped.len - within)))
    }
}

/// What a process maps for its functions.
#[derive(Clone, Debug)]
pub struct SimDma {
    process: u32,
}

impl SimDma {
    pub(crate) fn new(process: u32) -> Self {
        Self { process }
    }
}

/// A region that is mapped.
#[derive(Debug)]
pub struct SimMapping {
    process: u32,
    address: u64,
}

impl Dma for SimDma {
    type Window = SimWindow;
    type Mapping = SimMapping;

    fn map(&self, region: SimWindow, access: Access) -> Result<SimMapping> {
        world::with(|world| {
            world.crash_point();
            if !world.is_alive(self.process) || !world.memory.is_region(&region) {
                return Err(ErrorKind::Invalid.into());
            }
            let refuses = world.now < world.pci.refuses_until && !world.faults.is_healed();
            // One in four goes on for a while.
            let time = |rng: &mut Rng| rng.below(4) / 3 * rng.between(1, REFUSES_NS_MAX);
            let struck = if refuses { None } else { world.faults.strike(FaultKind::NoMappings, time) };
            if let Some(time) = struck {
                world.pci.refuses_until = Instant(world.now.0 + time);
            }
            if refuses || struck.is_some() {
                return Err(ErrorKind::OutOfResources.into());
            }
            let (object, start) = world.memory.place(&region);
            let (mapping, len, hole) = (region.mapping, region.len(), world.streams.process.below(4));
            let space = world.space(self.process);
            if space.addresses.contains_key(&mapping) {
                return Err(ErrorKind::AlreadyExists.into());
            }
            let address = space.place(start % PAGE, len, hole).ok_or(ErrorKind::OutOfResources)?;
            let writable = access == Access::ReadWrite;
            space.regions.insert(address, Mapped { mapping, object, start, len, writable });
            space.addresses.insert(mapping, address);
            Ok(SimMapping { process: self.process, address })
        })
    }

    fn address(&self, window: &SimWindow) -> Option<u64> {
        world::with(|world| {
            let space = world.pci.spaces.get(&self.process)?;
            let first = *space.addresses.get(&window.mapping)?;
            let mapped = space.regions.get(&first)?;
            let (_, at) = world.memory.place(window);
            // Of one mapping: the window cannot reach beyond what is mapped.
            Some(first + (at - mapped.start))
        })
    }
}

impl Drop for SimMapping {
    fn drop(&mut self) {
        world::try_with(|world| {
            if !world.is_alive(self.process) {
                return;
            }
            world.drain_acting();
            if let Some(space) = world.pci.spaces.get_mut(&self.process)
                && let Some(mapped) = space.regions.remove(&self.address)
            {
                space.addresses.remove(&mapped.mapping);
            }
        });
    }
}
