//! From any state to an enabled controller: the fence between a controller's old life and its new one (section 3.5.1).

use super::super::PciOf;
use super::super::admin::{self, AdminQueue};
use super::super::commands::COMMANDS_MAX;
use super::super::failure::Failure;
use super::super::identity::check_capabilities;
use super::super::memory::DeviceMemory;
use super::{Controller, Opened, Phase};
use crate::nvme::bits::{AdminQueueAttributes, Capabilities, Configuration, PAGE, ReadyTimeouts, register};
use alloc::format;
use core::time::Duration;
use runtime::{Instant, PciAddress, PciFunction, Platform, Registers, Window};

/// Class code of an NVMe I/O controller (PCIe 3.8.1.5).
const CLASS_NVME: u32 = 0x01_08_02;
/// Configuration space: command register, and the revision with the class code above it.
const CONFIG_COMMAND: u16 = 0x04;
const CONFIG_CLASS: u16 = 0x08;
/// Command register: memory space and bus master.
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// What CAP.TO and CRTO count in.
const TIMEOUT_UNIT: Duration = Duration::from_millis(500);
/// The longest time that a controller may claim for becoming ready; CAP.TO reaches two minutes.
const READY_TIMEOUT_MAX: Duration = Duration::from_secs(180);

impl<P: Platform, X: PciOf<P>> Controller<P, X> {
    /// Begins to stop the controller, in whatever state it is: the fence between its old life and the new one.
    pub(super) fn disable(&mut self, now: Instant) {
        self.admin = None;
        (self.scan, self.scan_at) = (None, None);
        (self.aborts_out, self.events_owed) = (0, 0);
        // Queues that were being created or deleted for nobody go with the reset.
        for (index, slot) in self.queues.iter_mut().enumerate() {
            slot.taken = self.remotes.iter().any(|remote| remote.queue == Some(index as u16 + 1));
        }
        let registers = self.registers();
        let capabilities = Capabilities(registers.load_u64(register::CAP));
        if capabilities.0 == u64::MAX {
            return self.give_up(Failure::Removed);
        }
        let entries = u64::from(self.options.queue_entries).min(capabilities.mqes() + 1);
        let entries = (entries as u16).clamp(2, COMMANDS_MAX);
        let entries = 1 << entries.ilog2();
        if let Err(why) = check_capabilities(capabilities, self.registers().len()) {
            return self.give_up(Failure::Unsupported(why));
        }
        if self.entries != 0 && self.entries > entries {
            let why = format!("the controller's queues shrank to {entries} entries in a reset");
            return self.give_up(Failure::Unsupported(why));
        }
        self.capabilities = capabilities;
        if self.entries == 0 {
            self.entries = entries;
        }
        self.phase = Phase::Disabling { until: now.after(self.ready_timeout()), cleared: false };
    }

    /// How long CSTS.RDY may take to follow CC.EN (CAP.TO; CRTO.CRWMT where it counts).
    pub(super) fn ready_timeout(&self) -> Duration {
        let mut units = self.capabilities.to() as u32;
        if self.capabilities.crwms() == 1 {
            let timeouts = ReadyTimeouts(self.registers().load_u32(register::CRTO));
            units = units.max(timeouts.crwmt());
        }
        (TIMEOUT_UNIT * units.max(1)).min(READY_TIMEOUT_MAX)
    }

    pub(super) fn go_on_disabling(&mut self, now: Instant, until: Instant, cleared: bool) -> bool {
        let status = self.status();
        if status.0 == u32::MAX {
            self.trouble(Failure::Removed);
            return true;
        }
        let configuration = Configuration(self.registers().load_u32(register::CC));
        if !cleared {
            // EN must not be cleared while an enable is going on (section 3.1.3.5): it ends first, well or badly.
            let enabling = configuration.en() == 1 && status.rdy() == 0 && status.cfs() == 0;
            if !enabling {
                self.registers().store_u32(register::CC, configuration.with_en(0).with_shn(0).0);
                self.phase = Phase::Disabling { until: now.after(self.ready_timeout()), cleared: true };
                return true;
            }
            if now >= until {
                self.trouble(Failure::TimedOut("end an enable that was going on"));
                return true;
            }
        } else if status.rdy() == 0 {
            self.stopped(now);
            return true;
        } else if now >= until {
            self.trouble(Failure::TimedOut("stop"));
            return true;
        }
        false
    }

    /// The controller is stopped: whatever it had taken is over. From here on it may reach memory.
    pub(super) fn stopped(&mut self, now: Instant) {
        self.set_bus_master(true);
        let function = &self.opened().function;
        let wanted = function.vectors().min(self.options.queues.saturating_add(1));
        if self.options.interrupts && self.vectors == 0 && wanted > 0 {
            let function = function.clone();
            self.phase = Phase::Vectors(self.platform.offload(move || function.enable_vectors(wanted)));
        } else {
            self.enable(now);
        }
    }

    /// Lets the function reach memory, or keeps it from it.
    pub(super) fn set_bus_master(&self, on: bool) {
        let function = &self.opened().function;
        let mut command = [0; 2];
        function.load_config(CONFIG_COMMAND, &mut command);
        let command = u16::from_le_bytes(command) & !COMMAND_BUS_MASTER;
        let on = if on { COMMAND_MEMORY | COMMAND_BUS_MASTER } else { 0 };
        function.store_config(CONFIG_COMMAND, &(command | on).to_le_bytes());
    }

    pub(super) fn enable(&mut self, now: Instant) {
        let memory = self.opened().memory.whole();
        memory.window.fill(0, memory.window.len(), 0);
        let dstrd = self.capabilities.dstrd();
        let admin = AdminQueue::new(&memory.part(0, admin::MEMORY_LEN), self.registers(), dstrd);
        self.admin = Some(admin);
        let registers = self.registers();
        let size = u32::from(admin::ENTRIES - 1);
        registers.store_u32(register::AQA, AdminQueueAttributes::default().with_asqs(size).with_acqs(size).0);
        registers.store_u64(register::ASQ, memory.address);
        registers.store_u64(register::ACQ, memory.address + PAGE);
        let configuration = Configuration::default().with_iosqes(6).with_iocqes(4).with_en(1);
        registers.store_u32(register::CC, configuration.0);
        self.phase = Phase::Enabling { until: now.after(self.ready_timeout()) };
    }
}

/// Opens a function, makes sure that it is what it should be, and maps the admin memory. Blocking.
pub(super) fn open_function<P: Platform, X: PciOf<P>>(
    pci: &X,
    address: PciAddress,
    memory: P::Memory,
) -> Result<Opened<P, X>, Failure> {
    let function = pci.open(address).map_err(Failure::Refused)?;
    let mut class = [0; 4];
    function.load_config(CONFIG_CLASS, &mut class);
    let class = u32::from_le_bytes(class) >> 8;
    if class != CLASS_NVME {
        return Err(Failure::NotNvme { class });
    }
    let world = |what| move |error| Failure::World { what, error };
    let registers = function.registers(0).map_err(world("the controller's registers (BAR 0)"))?;
    let dma = pci.dma();
    let memory = DeviceMemory::map(memory, &dma).map_err(world("memory for the admin queue"))?;
    Ok(Opened { function, registers, dma, memory })
}
