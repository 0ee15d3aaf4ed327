//! PCI functions by the kernel's VFIO; see [`runtime::Pci`].
//!
//! What may go wrong: a function that is not ours to open ([`opening`] says why and what to do), one that is pulled out
//! ([`registers`] gives ones from then on), one that cannot be reset. What the process dies with, the kernel takes back:
//! it closes the device, which ends its bus mastering and resets it, then its group, and then the mappings; nobody can
//! open it before.

mod function;
mod opening;
mod registers;
pub mod sysfs;
pub(crate) mod vfio;

pub use function::HostFunction;
pub use registers::HostRegisters;

use crate::dma::HostDma;
use function::Opened;
use runtime::{ErrorKind, Pci, PciAddress, PciRefused, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use sysfs::Root;
use vfio::Group;

/// The machine's PCI functions; see [`runtime::Pci`].
#[derive(Clone)]
pub struct HostPci(Arc<Inner>);

struct Inner {
    root: Root,
    dma: HostDma,
    taken: Mutex<Taken>,
}

/// What the process has.
#[derive(Default)]
struct Taken {
    groups: BTreeMap<u32, Weak<JoinedGroup>>,
    functions: BTreeSet<PciAddress>,
}

/// A group in the process's container.
#[derive(Debug)]
struct JoinedGroup {
    group: Group,
    dma: HostDma,
}

impl Drop for JoinedGroup {
    fn drop(&mut self) {
        self.dma.detach(&self.group);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        // It is changed by whole steps only.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group, opened and in the container.
    fn join(&self, address: PciAddress, group: u32) -> std::result::Result<Arc<JoinedGroup>, PciRefused> {
        let mut taken = self.lock();
        if let Some(joined) = taken.groups.get(&group).and_then(Weak::upgrade) {
            return Ok(joined);
        }
        let opened = opening::open_group(&self.root, address, group)?;
        opening::attach(&self.root, address, &self.dma, &opened)?;
        let joined = Arc::new(JoinedGroup { group: opened, dma: self.dma.clone() });
        taken.groups.insert(group, Arc::downgrade(&joined));
        Ok(joined)
    }
}

impl HostPci {
    /// The host's functions, and nothing mapped for them. Errors: `OutOfResources`.
    pub(crate) fn new() -> Result<Self> {
        let inner = Inner { root: Root::default(), dma: HostDma::new()?, taken: Mutex::default() };
        Ok(Self(Arc::new(inner)))
    }
}

impl fmt::Debug for HostPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostPci").field("functions", &self.0.lock().functions).finish_non_exhaustive()
    }
}

impl Pci for HostPci {
    type Function = HostFunction;
    type Dma = HostDma;

    fn open(&self, address: PciAddress) -> std::result::Result<HostFunction, PciRefused> {
        let group = opening::check(&self.0.root, address)?;
        if !self.0.lock().functions.insert(address) {
            let why = format!("the function at {address} is open in this process already");
            return Err(PciRefused { kind: ErrorKind::Busy, why });
        }
        let slot = Slot { pci: Arc::clone(&self.0), address };
        let group = self.0.join(address, group)?;
        let device = opening::open_device_of(&group.group, address)?;
        let opened = Opened::new(device, group, slot).map_err(|error| PciRefused {
            kind: error.kind,
            why: format!("the function at {address} was opened and does not answer: {error}"),
        })?;
        Ok(HostFunction(Arc::new(opened)))
    }

    fn dma(&self) -> HostDma {
        self.0.dma.clone()
    }
}

/// The process's word that it has a function open, until dropped.
#[derive(Debug)]
struct Slot {
    pci: Arc<Inner>,
    address: PciAddress,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pci.lock().functions.remove(&self.address);
    }
}
