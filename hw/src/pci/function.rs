//! An open function: configuration space, interrupts, reset.

use super::registers::HostRegisters;
use super::vfio::Device;
use super::{JoinedGroup, Slot};
use crate::error::{from_errno, with_errno};
use crate::notifier::HostNotifier;
use runtime::{Error, ErrorKind, Notifier, PciAddress, PciFunction, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_RESET, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
};

/// Configuration space: the vendor, the command register, the first base address register.
const CONFIG_VENDOR: u16 = 0x00;
const CONFIG_COMMAND: u16 = 0x04;
const CONFIG_BAR: u16 = 0x10;
/// Its length, as far as the contract goes.
const CONFIG_LEN: usize = 256;
/// Command register: memory space, bus mastering, legacy interrupts off.
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const NO_LEGACY_INTERRUPTS: u16 = 1 << 10;
/// What of it the process may change.
const COMMAND_WRITABLE: u16 = BUS_MASTER | NO_LEGACY_INTERRUPTS;
/// A base address register of ports, not of memory.
const BAR_PORTS: u8 = 1;

/// What is given back when its last clone goes. The device is closed before its group leaves the container.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) device: Device,
    _group: Arc<JoinedGroup>,
    /// Where configuration space lies in the device's descriptor.
    config: u64,
    vectors: u16,
    can_reset: bool,
    /// Changes of the command register and of the interrupts, one at a time.
    changing: Mutex<()>,
    /// The function is treated as pulled out.
    gone: Arc<AtomicBool>,
    /// Rung when the function is given back: nobody needs to wait for its removal any more.
    closed: HostNotifier,
    slot: Slot,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.closed.ring();
    }
}

impl Opened {
    /// Bus mastering is off, memory space on.
    pub(super) fn new(device: Device, group: Arc<JoinedGroup>, slot: Slot) -> Result<Self> {
        let flags = device.flags().map_err(from_errno)?;
        let config = device.region(VFIO_PCI_CONFIG_REGION_INDEX).map_err(from_errno)?;
        let vectors = device.interrupts(VFIO_PCI_MSIX_IRQ_INDEX).map_err(from_errno)?;
        let opened = Self {
            device,
            _group: group,
            config: config.offset,
            vectors: u16::try_from(vectors).unwrap_or(u16::MAX),
            can_reset: flags & VFIO_DEVICE_FLAGS_RESET != 0,
            changing: Mutex::new(()),
            gone: Arc::default(),
            closed: HostNotifier::new()?,
            slot,
        };
        opened.watch()?;
        opened.change_command(|command| command & !BUS_MASTER | MEMORY_SPACE)?;
        Ok(opened)
    }

    /// Waits, on a thread of its own, for the kernel to ask for the function back: it is being pulled out, or unbound. The
    /// kernel lets it go on until the process has let it go, so from then on it is as if it were gone already, and whoever
    /// drives it finds out and does that.
    fn watch(&self) -> Result<()> {
        let asked = HostNotifier::new()?;
        match self.device.set_interrupts(VFIO_PCI_REQ_IRQ_INDEX, &[asked.as_fd()]) {
            Ok(()) => {}
            // A kernel that does not ask.
            Err(Errno::INVAL | Errno::NOTTY) => return Ok(()),
            Err(errno) => return Err(from_errno(errno)),
        }
        let closed = self.closed.as_fd().try_clone_to_owned().map_err(|_| ErrorKind::OutOfResources)?;
        let (gone, address) = (Arc::clone(&self.gone), self.slot.address);
        let wait = move || {
            let mut bells = [PollFd::new(&asked, PollFlags::IN), PollFd::new(&closed, PollFlags::IN)];
            while poll(&mut bells, None) == Err(Errno::INTR) {}
            if asked.take() {
                tracing::warn!(%address, "the host takes a PCI function away; its driver is told that it is gone");
                gone.store(true, Ordering::Relaxed);
            }
        };
        let thread = std::thread::Builder::new().name("pci-removal".into()).spawn(wait);
        thread.map(drop).map_err(|_| ErrorKind::OutOfResources.into())
    }

    /// Whether the function is to be treated as pulled out.
    #[inline]
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn load_config(&self, offset: u16, into: &mut [u8]) {
        if self.is_gone() {
            return into.fill(0xff);
        }
        if self.device.0.read_exact_at(into, self.config + u64::from(offset)).is_err() {
            into.fill(0xff);
        }
    }

    fn load_u16(&self, offset: u16) -> u16 {
        let mut value = [0; 2];
        self.load_config(offset, &mut value);
        u16::from_le_bytes(value)
    }

    fn is_removed(&self) -> bool {
        self.load_u16(CONFIG_VENDOR) == u16::MAX
    }

    /// Errors: `NotFound` when the function was removed.
    fn change_command(&self, change: impl FnOnce(u16) -> u16) -> Result<()> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_gone() {
            // It still reaches memory; as nobody can load what the register holds, it is only ever taken away.
            let _ = self
                .device
                .0
                .write_all_at(&MEMORY_SPACE.to_le_bytes(), self.config + u64::from(CONFIG_COMMAND));
            return Err(Error::new(ErrorKind::NotFound));
        }
        let command = change(self.load_u16(CONFIG_COMMAND)).to_le_bytes();
        let stored = self.device.0.write_all_at(&command, self.config + u64::from(CONFIG_COMMAND));
        if self.is_removed() {
            return Err(Error::new(ErrorKind::NotFound));
        }
        stored.map_err(|error| from_errno(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }

    fn set_vectors(&self, notifiers: &[HostNotifier]) -> Result<()> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // A number that differs from what is on is refused, so all are turned off first.
        let off = self.device.set_interrupts(VFIO_PCI_MSIX_IRQ_INDEX, &[]);
        let eventfds: Vec<_> = notifiers.iter().map(AsFd::as_fd).collect();
        let set = match (self.vectors, notifiers) {
            (0, _) => return Ok(()),
            (_, []) => off,
            _ => self.device.set_interrupts(VFIO_PCI_MSIX_IRQ_INDEX, &eventfds),
        };
        set.map_err(|errno| with_errno(ErrorKind::OutOfResources, errno))
    }
}

/// An open function; see [`runtime::PciFunction`].
#[derive(Clone, Debug)]
pub struct HostFunction(pub(super) Arc<Opened>);

impl PciFunction for HostFunction {
    type Registers = HostRegisters;
    type Notifier = HostNotifier;

    fn address(&self) -> PciAddress {
        self.0.slot.address
    }

    fn load_config(&self, offset: u16, into: &mut [u8]) {
        check_config(offset, into.len());
        self.0.load_config(offset, into);
    }

    fn store_config(&self, offset: u16, bytes: &[u8]) {
        check_config(offset, bytes.len());
        let stored = self.0.change_command(|command| command_of(command, offset, bytes));
        if let Err(error) = stored
            && error.kind != ErrorKind::NotFound
        {
            tracing::warn!(address = %self.address(), %error, "a store to configuration space was refused");
        }
    }

    fn registers(&self, bar: u8) -> Result<HostRegisters> {
        if bar > 5 {
            return Err(Error::new(ErrorKind::NotFound));
        }
        let mut kind = [0];
        self.0.load_config(CONFIG_BAR + 4 * u16::from(bar), &mut kind);
        let region = self.0.device.region(bar.into()).map_err(from_errno)?;
        if region.len == 0 || kind[0] & BAR_PORTS != 0 {
            return Err(Error::new(ErrorKind::NotFound));
        }
        HostRegisters::map(Arc::clone(&self.0), &region)
    }

    fn vectors(&self) -> u16 {
        self.0.vectors
    }

    fn enable_vectors(&self, count: u16) -> Result<Vec<HostNotifier>> {
        if count > self.0.vectors {
            return Err(Error::new(ErrorKind::Invalid));
        }
        let notifiers = (0..count).map(|_| HostNotifier::new()).collect::<Result<Vec<_>>>()?;
        self.0.set_vectors(&notifiers)?;
        Ok(notifiers)
    }

    fn reset(&self) -> Result<()> {
        if !self.0.can_reset {
            return Err(Error::new(ErrorKind::Unsupported));
        }
        // The kernel puts back after the reset what it found before it: interrupts, and the command register.
        let quieted = self.0.set_vectors(&[]).and(self.0.change_command(|command| command & !BUS_MASTER));
        let reset = quieted.and_then(|()| {
            self.0.device.reset().map_err(|errno| match errno {
                Errno::NOTTY | Errno::INVAL => with_errno(ErrorKind::Unsupported, errno),
                _ => with_errno(ErrorKind::Io, errno),
            })
        });
        if self.0.is_removed() {
            return Err(Error::new(ErrorKind::NotFound));
        }
        reset?;
        self.0.change_command(|command| command & !BUS_MASTER | MEMORY_SPACE)
    }
}

/// The command register after a store to configuration space: only what the process may change of it is passed on.
fn command_of(command: u16, offset: u16, bytes: &[u8]) -> u16 {
    let mut wanted = command.to_le_bytes();
    for (at, byte) in (offset..).zip(bytes) {
        if let Some(place) = wanted.get_mut(usize::from(at.wrapping_sub(CONFIG_COMMAND))) {
            *place = *byte;
        }
    }
    command & !COMMAND_WRITABLE | u16::from_le_bytes(wanted) & COMMAND_WRITABLE
}

/// Panics at what is no access to configuration space.
fn check_config(offset: u16, len: usize) {
    let offset = usize::from(offset);
    assert!(
        matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len) && offset + len <= CONFIG_LEN,
        "an access to {len} bytes at {offset} of configuration space"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_configuration_space_only_bus_mastering_and_legacy_interrupts_are_stored() {
        const ALL: u16 = BUS_MASTER | NO_LEGACY_INTERRUPTS;
        for (offset, bytes, expected) in [
            (4, &[0xff, 0xff][..], MEMORY_SPACE | ALL),
            (4, &[0, 0], MEMORY_SPACE),
            (4, &[4], MEMORY_SPACE | BUS_MASTER),
            (5, &[4], MEMORY_SPACE | NO_LEGACY_INTERRUPTS),
            (4, &[4, 0, 0xff, 0xff], MEMORY_SPACE | BUS_MASTER),
            (6, &[4, 4], MEMORY_SPACE),
            // A base address, and the byte before.
            (0x10, &[4, 4, 4, 4], MEMORY_SPACE),
            (0, &[0xff, 0xff, 0xff, 0xff], MEMORY_SPACE),
        ] {
            assert_eq!(command_of(MEMORY_SPACE, offset, bytes), expected, "{bytes:x?} at {offset}");
        }
        assert_eq!(command_of(MEMORY_SPACE | ALL, 8, &[0; 4]), MEMORY_SPACE | ALL);
    }

    #[test]
    #[should_panic(expected = "2 bytes at 255 of configuration space")]
    fn an_access_that_is_none_panics() {
        check_config(255, 2);
    }
}
