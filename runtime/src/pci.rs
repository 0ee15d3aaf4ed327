//! PCI functions that the process drives itself: configuration space, registers, interrupts, reset, and the memory that
//! they reach.
//!
//! A function is a stranger. It may answer anything in any register, write any memory that is mapped for it at any time,
//! interrupt when nothing happened and not when something did, and be gone from one access to the next. What it can not
//! do is reach memory that is not mapped ([`Dma`]): an IOMMU stands between.
//!
//! # The order of things
//!
//! As on x86-64 with PCI Express, and no more than that:
//! - a store to a register takes effect behind all earlier stores of the same core, to windows and to registers: what a
//!   doorbell announces is in memory when the function sees it;
//! - a load of a register comes back only when the same core's earlier stores to registers of that function have taken
//!   effect. It orders nothing among windows: a store to a window that must be visible before a load needs
//!   [`crate::Window::fence`] with `SeqCst`, as ever;
//! - what a function writes to memory becomes visible in the order in which the function wrote it, aligned words of up to
//!   eight bytes whole. A core that loads (`Acquire`) what was written last then sees what was written before. Nothing
//!   is promised about the order in which the function itself chooses to write;
//! - an interrupt is seen behind what its function had written before it.
//!
//! # Lives
//!
//! When a process dies its functions go on with what they were told, for a time that nobody knows: what they have taken
//! may still reach their media. Their access to memory ends when the dead process's mappings go, which is before anybody
//! can open them again. So a function comes from [`Pci::open`] unable to reach memory, since its bus mastering is off,
//! and whoever opens it sees to it that it has forgotten its old life (by the device's own reset, or by
//! [`PciFunction::reset`]) before bus mastering is turned on, and before anything is replayed.

use crate::{Access, ErrorKind, Notifier, Result, Window};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

/// Where a function sits: domain, bus, device and function, as `0000:3b:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// The domain (segment).
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device, below 32.
    pub device: u8,
    /// The function, below 8.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// A text that is no address of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnAddress;

impl fmt::Display for NotAnAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a PCI address is DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal, such as 0000:3b:00.0")
    }
}

impl core::error::Error for NotAnAddress {}

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    /// `0000:3b:00.0`, or `3b:00.0` in domain 0.
    fn from_str(text: &str) -> core::result::Result<Self, NotAnAddress> {
        let hexadecimal = |part: &str, digits: usize| {
            let right =
                !part.is_empty() && part.len() <= digits && part.bytes().all(|b| b.is_ascii_hexdigit());
            if right { u32::from_str_radix(part, 16).map_err(|_| NotAnAddress) } else { Err(NotAnAddress) }
        };
        let (place, function) = text.rsplit_once('.').ok_or(NotAnAddress)?;
        let (bus, device) = place.rsplit_once(':').ok_or(NotAnAddress)?;
        let (domain, bus) = bus.rsplit_once(':').unwrap_or(("0", bus));
        let (device, function) = (hexadecimal(device, 2)?, hexadecimal(function, 1)?);
        if device >= 32 || function >= 8 {
            return Err(NotAnAddress);
        }
        let (domain, bus) = (hexadecimal(domain, 8)?, hexadecimal(bus, 2)?);
        Ok(Self { domain, bus: bus as u8, device: device as u8, function: function as u8 })
    }
}

/// Why a function could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciRefused {
    /// The kind that the stack decides by: `NotFound` (no function at that address), `Busy` (a driver of the kernel or
    /// another process holds it, or its IOMMU group), `PermissionDenied`, `Unsupported` (no IOMMU, or one that cannot map
    /// what is mapped already), `OutOfResources`.
    pub kind: ErrorKind,
    /// A sentence for people: what was found, who holds it, and what to do next.
    pub why: String,
}

/// The machine's PCI functions, and the address space that those of this process share. Cheap to clone; any core.
pub trait Pci: Clone + Send + 'static {
    /// An open function.
    type Function: PciFunction;
    /// The process's mappings.
    type Dma: Dma;

    /// Opens a function for this process alone, until it dies or the last of its values is dropped. Bus mastering is off
    /// (see the module's text), memory space is on, no interrupt is. *Blocking*.
    fn open(&self, address: PciAddress) -> core::result::Result<Self::Function, PciRefused>;

    /// The mappings, shared by all functions of the process, open now or later.
    fn dma(&self) -> Self::Dma;
}

/// An open function. Cheap to clone; the clones are the same open function, which is given back when the last clone and
/// the last [`Registers`] of it are gone. May be used on any core.
pub trait PciFunction: Clone + Send + Sync + 'static {
    /// Its registers.
    type Registers: Registers;
    /// Its interrupts.
    type Notifier: Notifier;

    /// Where it sits.
    fn address(&self) -> PciAddress;

    /// Loads one, two or four bytes of configuration space at an offset that is a multiple of their number; all ones when
    /// the function was removed. Some microseconds: not for the data path.
    fn load_config(&self, offset: u16, into: &mut [u8]);

    /// Stores one, two or four bytes, as [`PciFunction::load_config`] loads them. What would take the function away from
    /// the process (base addresses, power states) is not passed on.
    fn store_config(&self, offset: u16, bytes: &[u8]);

    /// The memory of a base address register, 0 to 5, mapped. Errors: `NotFound` (no memory there), `OutOfResources`.
    /// Not for the data path.
    fn registers(&self, bar: u8) -> Result<Self::Registers>;

    /// How many MSI-X vectors there are; 0 when the function has none.
    fn vectors(&self) -> u16;

    /// Turns the first `count` MSI-X vectors on (0: all off), each ringing the notifier of its place. Notifiers given
    /// before ring no more. They are turned off by a reset of the function, and not by one of the device's own.
    /// *Blocking*. Errors: `Invalid` for more than [`PciFunction::vectors`], `OutOfResources`.
    fn enable_vectors(&self, count: u16) -> Result<Vec<Self::Notifier>>;

    /// Resets the function as a whole. When it returns `Ok` the function has forgotten everything: nothing that it had
    /// taken before reaches memory or media any more, its registers have their first values, memory space is on, bus
    /// mastering and interrupts are off. On an error nothing may be believed of it. *Blocking*, up to some seconds. Errors: `Unsupported` (it
    /// cannot be reset alone), `Io`, `NotFound` (it was removed).
    fn reset(&self) -> Result<()>;
}

/// The memory of one base address register. Cheap to clone; any core, several at once. Offsets are in bytes, multiples of
/// the size of the access and inside the registers, which is asserted. A load waits for the function (a microsecond and
/// more); a store does not. Of a function that was removed every load gives all ones, and stores are swallowed.
pub trait Registers: Clone + Send + Sync + 'static {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Loads four bytes.
    fn load_u32(&self, offset: u64) -> u32;

    /// Loads eight bytes, as one access or as two of four bytes, the lower first.
    fn load_u64(&self, offset: u64) -> u64;

    /// Stores four bytes.
    fn store_u32(&self, offset: u64, value: u32);

    /// Stores eight bytes, as one access or as two of four bytes, the lower first.
    fn store_u64(&self, offset: u64, value: u64);
}

/// What the process's functions can reach: one space of device addresses, the same for all of them, kept clear of what
/// the machine reserves in it. Cheap to clone; any core.
pub trait Dma: Clone + Send + Sync + 'static {
    /// The window type of the platform.
    type Window: Window;
    /// Keeps a region mapped. Dropping it unmaps the region and is *blocking*; by then nothing that any function was told
    /// may still touch it. A function that does is refused by the IOMMU and harms nobody.
    type Mapping: Send + 'static;

    /// Maps a whole region (what [`crate::Memory::window`] gives) for all functions, and holds its pages in memory.
    /// `Access::Read`: the functions read it and cannot write it. *Blocking*. The region's memory must outlive the
    /// mapping. Errors: `OutOfResources` (the limit of locked memory, no address is left), `AlreadyExists` (it is
    /// mapped), `Invalid` (it is no region).
    fn map(&self, region: Self::Window, access: Access) -> Result<Self::Mapping>;

    /// The device address of a window's first byte, `None` unless all of the window lies in one mapped region. The
    /// addresses of a window are contiguous, and a multiple of 4096 exactly where the memory is
    /// ([`Window::is_aligned`]). For the data path: a few nanoseconds, no lock.
    fn address(&self, window: &Self::Window) -> Option<u64>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for (text, written) in [
            ("0000:3b:00.0", "0000:3b:00.0"),
            ("3b:1f.7", "0000:3b:1f.7"),
            ("10000:e1:0A.1", "10000:e1:0a.1"),
        ] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), written);
        }
        for wrong in [
            "",
            "0000",
            "0000:3b:00",
            "3b:20.0",
            "3b:00.8",
            "100:00.0",
            "3b:00.+1",
            "a:b:c:d.0",
            ":00.0",
            "3b:.0",
        ] {
            assert_eq!(wrong.parse::<PciAddress>(), Err(NotAnAddress), "{wrong}");
        }
    }
}
