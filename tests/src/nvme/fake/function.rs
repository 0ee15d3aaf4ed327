//! The PCI function that the small controller is, and its registers.

use super::host::FakeDma;
use super::{Fake, STORED, Said};
use hw::{HostHandle, HostNotifier};
use runtime::{Error, ErrorKind, Handle, Pci, PciAddress, PciFunction, PciRefused, Registers, Result};
use rustix::event::{EventfdFlags, eventfd};
use stack::nvme::bits::{AdminQueueAttributes, Configuration, DOORBELLS, PAGE, register};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};

/// Bytes of BAR 0.
const BAR_LEN: u64 = 0x4000;
/// Doorbell registers in it.
pub(super) const DOORBELLS_MAX: usize = ((BAR_LEN - DOORBELLS) / 4) as usize;

/// The machine's functions: one, at `0000:01:00.0`.
#[derive(Clone)]
pub struct FakePci(pub Arc<Fake>);

impl FakePci {
    /// Where the controller sits.
    pub const ADDRESS: PciAddress = PciAddress { domain: 0, bus: 1, device: 0, function: 0 };
}

impl Pci for FakePci {
    type Function = FakePci;
    type Dma = FakeDma;

    fn open(&self, address: PciAddress) -> std::result::Result<Self, PciRefused> {
        if self.0.state().orders.held {
            return Err(PciRefused {
                kind: ErrorKind::Busy,
                why: format!("{address} is held by the kernel's nvme"),
            });
        }
        if address != Self::ADDRESS {
            return Err(PciRefused {
                kind: ErrorKind::NotFound,
                why: format!("there is no function at {address}"),
            });
        }
        Ok(self.clone())
    }

    fn dma(&self) -> FakeDma {
        self.0.dma()
    }
}

impl PciFunction for FakePci {
    type Registers = FakeRegisters;
    type Notifier = HostNotifier;

    fn address(&self) -> PciAddress {
        Self::ADDRESS
    }

    fn load_config(&self, offset: u16, into: &mut [u8]) {
        let at = usize::from(offset);
        into.copy_from_slice(&self.0.state().config[at..at + into.len()]);
    }

    fn store_config(&self, offset: u16, bytes: &[u8]) {
        let at = usize::from(offset);
        self.0.state().config[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn registers(&self, bar: u8) -> Result<FakeRegisters> {
        if bar == 0 { Ok(FakeRegisters(Arc::clone(&self.0))) } else { Err(ErrorKind::NotFound.into()) }
    }

    fn vectors(&self) -> u16 {
        8
    }

    fn enable_vectors(&self, count: u16) -> Result<Vec<HostNotifier>> {
        let bells: Vec<OwnedFd> =
            (0..count).map(|_| eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")).collect();
        let notifiers = bells
            .iter()
            .map(|bell| HostHandle::from(bell.try_clone().expect("a descriptor")).into_notifier())
            .collect();
        self.0.state().bells = bells;
        notifiers
    }

    fn reset(&self) -> Result<()> {
        let mut state = self.0.state();
        state.function_resets += 1;
        if state.orders.no_function_reset {
            return Err(Error::new(ErrorKind::Io));
        }
        (state.orders.never_stops, state.orders.fatal) = (false, false);
        state.forget();
        (state.cc, state.config[4]) = (Configuration(0), 2);
        state.bells.clear();
        Ok(())
    }
}

/// BAR 0.
#[derive(Clone)]
pub struct FakeRegisters(Arc<Fake>);

impl Registers for FakeRegisters {
    fn len(&self) -> u64 {
        BAR_LEN
    }

    fn load_u32(&self, offset: u64) -> u32 {
        let mut state = self.0.state();
        if state.orders.removed {
            return u32::MAX;
        }
        state.follow_configuration();
        let value = match offset {
            register::VS => state.identity.ver,
            register::CC => state.cc.0,
            register::CSTS => state.csts.0,
            register::CRTO => 0,
            _ => {
                state.wrong(format!("a load of register {offset:#x}"));
                0
            }
        };
        let mut bytes = value.to_le_bytes();
        state.lie(Said::Register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn load_u64(&self, offset: u64) -> u64 {
        assert_eq!(offset, register::CAP, "CAP is all that is loaded so");
        let mut state = self.0.state();
        let mut bytes = if state.orders.removed { u64::MAX } else { state.capabilities.0 }.to_le_bytes();
        state.lie(Said::Register, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn store_u32(&self, offset: u64, value: u32) {
        if let Some(place) = offset.checked_sub(DOORBELLS) {
            return self.0.doorbells[(place / 4) as usize].store(value & 0xffff | STORED, Release);
        }
        let mut state = self.0.state();
        if state.orders.removed {
            return;
        }
        match offset {
            register::CC => {
                state.cc = Configuration(value);
                if state.cc.en() == 0 {
                    // What was stored to doorbells before is for queues that are gone.
                    self.0.doorbells.iter().for_each(|doorbell| doorbell.store(0, Relaxed));
                }
            }
            register::AQA => state.aqa = AdminQueueAttributes(value),
            _ => state.wrong(format!("a store to register {offset:#x}")),
        }
    }

    fn store_u64(&self, offset: u64, value: u64) {
        let mut state = self.0.state();
        match offset {
            register::ASQ => state.asq = value,
            register::ACQ => state.acq = value,
            _ => state.wrong(format!("a store to register {offset:#x}")),
        }
        if !value.is_multiple_of(PAGE) {
            state.wrong(format!("a queue at {value:#x}, which begins no page"));
        }
    }
}
