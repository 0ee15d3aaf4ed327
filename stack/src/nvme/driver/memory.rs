//! Memory of the driver's own that a controller reaches: queues, lists, shadow doorbells, what Identify fills in.

use super::PciOf;
use core::fmt;
use runtime::{Access, Dma, Memory, Pci, Platform, Result, Window};

/// A part of such memory: as the driver and as the controller see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<W> {
    pub(super) window: W,
    pub(super) address: u64,
}

impl<W: Window> Part<W> {
    /// The part of `len` bytes at `offset`, which lies inside.
    #[inline]
    pub(super) fn part(&self, offset: u64, len: u64) -> Self {
        let window = self.window.slice(offset, len).expect("a part lies inside the whole");
        Self { window, address: self.address + offset }
    }
}

/// A region of it. Dropping one is blocking.
pub(super) struct DeviceMemory<P: Platform, X: PciOf<P>> {
    /// Dropped before the memory below it.
    _mapping: <<X as Pci>::Dma as Dma>::Mapping,
    _memory: P::Memory,
    whole: Part<P::Window>,
}

impl<P: Platform, X: PciOf<P>> DeviceMemory<P, X> {
    /// Maps new memory. Blocking. Errors: as [`Dma::map`].
    pub(super) fn map(memory: P::Memory, dma: &X::Dma) -> Result<Self> {
        let window = memory.window();
        let mapping = dma.map(window, Access::ReadWrite)?;
        let address = dma.address(&window).expect("what was mapped has an address");
        Ok(Self { _mapping: mapping, _memory: memory, whole: Part { window, address } })
    }

    /// All of it.
    pub(super) fn whole(&self) -> Part<P::Window> {
        self.whole
    }
}

impl<P: Platform, X: PciOf<P>> fmt::Debug for DeviceMemory<P, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceMemory").field("len", &self.whole.window.len()).finish_non_exhaustive()
    }
}
