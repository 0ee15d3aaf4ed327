//! The guest's memory as its front-end described it: regions by guest physical address, and by the front-end's own
//! addresses. Everything here comes from a stranger: regions are checked against one another when they come, and each
//! address is looked up before a window is made of it.

use crate::reached::Reached;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use runtime::{Access, Dma, Instant, Job, Memory, Pci, Platform, Wakes, Window};

/// Most regions that a front-end may describe (`GET_MAX_MEM_SLOTS`): QEMU's own limit of memory slots is 509.
pub const MAX_REGIONS: usize = 509;
/// When a region that could not be mapped for devices is tried again: whatever stood in the way (the limit of locked memory,
/// a guest that ends on the same host) may be gone by then.
const RETRY: Duration = Duration::from_secs(1);

/// One region of guest memory.
pub struct Region<P: Platform> {
    /// First guest physical address.
    pub guest_address: u64,
    /// Length in bytes.
    pub len: u64,
    /// First address in the front-end's own address space, in which ring addresses are given.
    pub user_address: u64,
    /// The mapping; its window spans exactly `len` bytes.
    pub memory: P::Memory,
}

/// Why a region was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// It has no bytes.
    Empty,
    /// Its end lies beyond 2^64, in guest physical or in user addresses.
    Wraps,
    /// It overlaps a region that is there, in guest physical or in user addresses.
    Overlap,
    /// There are [`MAX_REGIONS`] already.
    TooMany,
}

impl MemoryError {
    /// The point that it is.
    pub(crate) const fn reached(self) -> Reached {
        match self {
            Self::Empty => Reached::MemoryEmpty,
            Self::Wraps => Reached::MemoryWraps,
            Self::Overlap => Reached::MemoryOverlap,
            Self::TooMany => Reached::MemoryTooMany,
        }
    }
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the region has no bytes"),
            Self::Wraps => f.write_str("the region ends beyond the address space"),
            Self::Overlap => f.write_str("the region overlaps another one"),
            Self::TooMany => write!(f, "there are {MAX_REGIONS} regions already"),
        }
    }
}

/// What keeps a region mapped for the process's devices.
type Mapping<P> = <<<P as Platform>::Pci as Pci>::Dma as Dma>::Mapping;

/// Whether the process's devices reach a region.
enum Reach<P: Platform> {
    /// They do not, and nobody asked.
    Unasked,
    /// It is being mapped for them.
    Mapping(P::Job<runtime::Result<Mapping<P>>>),
    /// They do.
    Mapped(Mapping<P>),
    /// They cannot for now.
    Refused,
}

struct Mapped<P: Platform> {
    /// Dropped before the region's memory.
    reach: Reach<P>,
    region: Region<P>,
    /// `region.memory.window()`, kept so that a look-up touches one cache line.
    window: P::Window,
    /// It could not be mapped for devices when that was last tried.
    was_refused: bool,
}

impl<P: Platform> Mapped<P> {
    /// The window of `len` bytes at a guest physical address, if they lie inside the region.
    #[inline]
    fn part(&self, address: u64, len: u64) -> Option<P::Window> {
        self.window.slice(address.checked_sub(self.region.guest_address)?, len)
    }

    fn is_unsettled(&self) -> bool {
        matches!(self.reach, Reach::Unasked | Reach::Mapping(_))
    }
}

/// Regions that nobody uses any more: their mappings for devices go first, which may block, then their memory.
pub struct Retired<P: Platform> {
    regions: Vec<Mapped<P>>,
    /// What is left of them is being given back.
    job: Option<P::Job<()>>,
}

impl<P: Platform> Retired<P> {
    /// Goes on with giving them back. Whether nothing is left; not to be polled again then.
    pub fn poll(&mut self, platform: &P) -> bool {
        if let Some(job) = &mut self.job {
            return job.take().is_some();
        }
        for Mapped { reach, .. } in &mut self.regions {
            if let Reach::Mapping(job) = reach {
                match job.take() {
                    None => return false,
                    Some(Ok(mapping)) => *reach = Reach::Mapped(mapping),
                    Some(Err(_)) => *reach = Reach::Refused,
                }
            }
        }
        let mut held = Vec::new();
        for Mapped { reach, region, .. } in self.regions.drain(..) {
            if let Reach::Mapped(mapping) = reach {
                held.push((mapping, region.memory));
            }
        }
        if held.is_empty() {
            return true;
        }
        self.job = Some(platform.offload(move || {
            for (mapping, memory) in held {
                drop(mapping);
                drop(memory);
            }
        }));
        false
    }

    /// Registers what brings it on.
    pub fn arm(&self, wakes: &mut P::Wakes) {
        if let Some(job) = &self.job {
            wakes.job(job);
        }
        for Mapped { reach, .. } in &self.regions {
            if let Reach::Mapping(job) = reach {
                wakes.job(job);
            }
        }
    }
}

/// The memory table: regions sorted by guest physical address, none overlapping.
pub struct GuestMemory<P: Platform> {
    regions: Vec<Mapped<P>>,
    /// Regions that may still have to be mapped for devices.
    unsettled: usize,
    /// When regions are tried again that could not be mapped.
    retry_at: Option<Instant>,
}

impl<P: Platform> Default for GuestMemory<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform> GuestMemory<P> {
    /// A table with no regions.
    #[must_use]
    pub const fn new() -> Self {
        Self { regions: Vec::new(), unsettled: 0, retry_at: None }
    }

    /// Adds a region. On error the region is dropped, and so unmapped.
    pub fn insert(&mut self, region: Region<P>) -> Result<(), MemoryError> {
        assert_eq!(region.memory.window().len(), region.len, "the mapping of a region must span it");
        let end = |start: u64| start.checked_add(region.len - 1).ok_or(MemoryError::Wraps);
        if region.len == 0 {
            return Err(MemoryError::Empty);
        }
        let (guest_end, user_end) = (end(region.guest_address)?, end(region.user_address)?);
        if self.regions.len() == MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        for Mapped { region: other, .. } in &self.regions {
            let apart = |start: u64, last: u64, other_start: u64| {
                last < other_start || other_start + (other.len - 1) < start
            };
            if !apart(region.guest_address, guest_end, other.guest_address)
                || !apart(region.user_address, user_end, other.user_address)
            {
                return Err(MemoryError::Overlap);
            }
        }
        let at = self.regions.partition_point(|other| other.region.guest_address < region.guest_address);
        let window = region.memory.window();
        self.regions.insert(at, Mapped { reach: Reach::Unasked, region, window, was_refused: false });
        self.unsettled += 1;
        Ok(())
    }

    /// Takes the region that has exactly these addresses and this length out of the table. The caller has made sure
    /// that no I/O is in flight on it.
    pub fn remove(&mut self, guest_address: u64, user_address: u64, len: u64) -> Option<Retired<P>> {
        let at = self.regions.iter().position(|Mapped { region, .. }| {
            (region.guest_address, region.user_address, region.len) == (guest_address, user_address, len)
        })?;
        let removed = self.regions.remove(at);
        self.unsettled -= usize::from(removed.is_unsettled());
        Some(Retired { regions: [removed].into(), job: None })
    }

    /// Gives all regions up. The caller has made sure that no I/O is in flight on any.
    #[must_use]
    pub fn retire(self) -> Retired<P> {
        Retired { regions: self.regions, job: None }
    }

    /// Begins to map the regions for devices that were not asked for yet, and those whose time has come to be tried again.
    pub fn begin_mapping(&mut self, platform: &P, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            for mapped in self.regions.iter_mut().filter(|mapped| matches!(mapped.reach, Reach::Refused)) {
                mapped.reach = Reach::Unasked;
                self.unsettled += 1;
            }
        }
        if self.unsettled == 0 {
            return;
        }
        for Mapped { reach, window, .. } in &mut self.regions {
            if matches!(reach, Reach::Unasked) {
                let (dma, window) = (platform.pci().dma(), *window);
                *reach = Reach::Mapping(platform.offload(move || dma.map(window, Access::ReadWrite)));
            }
        }
    }

    /// Takes over what was mapped. Whether anything was.
    pub fn poll_mapping(&mut self, now: Instant) -> bool {
        if self.unsettled == 0 {
            return false;
        }
        let before = self.unsettled;
        for Mapped { reach, region, was_refused, .. } in &mut self.regions {
            let Reach::Mapping(job) = reach else { continue };
            match job.take() {
                None => continue,
                Some(Ok(mapping)) => {
                    if core::mem::take(was_refused) {
                        let (guest_address, len) = (region.guest_address, region.len);
                        tracing::info!(guest_address, len, "guest memory is mapped for devices at last");
                    }
                    *reach = Reach::Mapped(mapping);
                }
                // Said once, not each time that it is tried again.
                Some(Err(_)) if *was_refused => *reach = Reach::Refused,
                Some(Err(error)) => {
                    *was_refused = true;
                    tracing::warn!(
                        guest_address = region.guest_address,
                        len = region.len,
                        %error,
                        "guest memory cannot be mapped for devices: payload there is copied, and it is tried again each second; \
                         raise the limit of locked memory (ulimit -l)"
                    );
                    *reach = Reach::Refused;
                }
            }
            if matches!(reach, Reach::Refused) {
                self.retry_at = Some(now.after(RETRY));
            }
            self.unsettled -= 1;
        }
        self.unsettled != before
    }

    /// When it wants to be polled though nothing told it to.
    #[must_use]
    pub const fn wake_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Registers what ends when a region is mapped.
    pub fn arm(&self, wakes: &mut P::Wakes) {
        for Mapped { reach, .. } in self.regions.iter().filter(|_| self.unsettled > 0) {
            if let Reach::Mapping(job) = reach {
                wakes.job(job);
            }
        }
    }

    /// The window of `len` bytes at a front-end address; `None` unless it lies inside one region.
    #[must_use]
    pub fn by_user_address(&self, address: u64, len: u64) -> Option<P::Window> {
        self.regions.iter().find_map(|Mapped { region, window, .. }| {
            window.slice(address.checked_sub(region.user_address)?, len)
        })
    }

    /// The guest physical address of a front-end address.
    #[must_use]
    pub fn guest_of_user(&self, address: u64) -> Option<u64> {
        self.regions.iter().find_map(|Mapped { region, .. }| {
            let offset = address.checked_sub(region.user_address)?;
            (offset < region.len).then(|| region.guest_address + offset)
        })
    }

    /// Looks guest physical addresses up.
    #[must_use]
    pub const fn lookup(&self) -> Lookup<'_, P> {
        Lookup { memory: self, near: None }
    }

    /// The region that an address lies in, if it lies in any: the last one that begins there or before.
    fn region_of(&self, address: u64) -> Option<&Mapped<P>> {
        let after = self.regions.partition_point(|mapped| mapped.region.guest_address <= address);
        self.regions.get(after.checked_sub(1)?)
    }

    /// Whether the memory below any region went away (its owner shrank the file).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.regions.iter().any(|mapped| mapped.region.memory.is_lost())
    }

    /// Number of regions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The regions, by guest physical address.
    pub fn regions(&self) -> impl Iterator<Item = &Region<P>> {
        self.regions.iter().map(|mapped| &mapped.region)
    }
}

/// Looks guest physical addresses up, first where it found the last one: a driver's buffers tend to lie in one region.
pub struct Lookup<'a, P: Platform> {
    memory: &'a GuestMemory<P>,
    near: Option<&'a Mapped<P>>,
}

impl<P: Platform> Lookup<'_, P> {
    /// The window of `len` bytes at a guest physical address; `None` unless it lies inside one region.
    #[inline(always)]
    pub fn window(&mut self, address: u64, len: u64) -> Option<P::Window> {
        match self.near.and_then(|near| near.part(address, len)) {
            None => self.window_elsewhere(address, len),
            found => found,
        }
    }

    fn window_elsewhere(&mut self, address: u64, len: u64) -> Option<P::Window> {
        self.near = self.memory.region_of(address);
        self.near?.part(address, len)
    }

    /// Pushes the windows of `len` bytes at a guest physical address, more than one where regions meet in the middle.
    /// Whether all of it is mapped; if not, what was pushed is of no use.
    #[inline(always)]
    pub fn translate(&mut self, address: u64, len: u64, into: &mut Vec<P::Window>) -> bool {
        if let Some(window) = self.window(address, len) {
            into.push(window);
            return true;
        }
        self.translate_across(address, len, into)
    }

    #[cold]
    fn translate_across(&self, mut address: u64, mut len: u64, into: &mut Vec<P::Window>) -> bool {
        while len > 0 {
            let Some(Mapped { region, window, .. }) = self.memory.region_of(address) else { return false };
            let offset = address - region.guest_address;
            if offset >= region.len {
                return false;
            }
            let part = len.min(region.len - offset);
            let Some(piece) = window.slice(offset, part) else { return false };
            into.push(piece);
            len -= part;
            if len > 0 {
                let Some(next) = address.checked_add(part) else { return false };
                address = next;
            }
        }
        true
    }
}
