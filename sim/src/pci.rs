//! Simulated PCI functions: configuration space, registers, interrupts, and who has them open.
//!
//! Fault model. A function steps when it likes, also between any two accesses of the target. A store to a register waits
//! in its processor's store buffer behind all earlier stores, in order, and reaches the function at a drawn moment; a load
//! brings the same processor's earlier stores to that function there first. A function may vanish at any moment: its
//! loads then give all ones, its stores lead nowhere, and what is plugged in there later is another function. A reset of
//! a function may fail. Of a dead process the function goes on, and reaches its memory ([`crate::dma`]), for a drawn time
//! or until somebody opens it; what it was told is then still in it until it is reset.
//!
//! Never: a store to a register seen before what the same processor stored earlier, an interrupt seen before what the
//! function had written before it, memory reached or an interrupt sent while bus mastering is off.

use crate::dma::{SimDma, Space};
use crate::faults::FaultKind;
use crate::notifier::SimNotifier;
use crate::scheduler::Event;
use crate::trace::Record;
use crate::world::{self, Model, Step, World};
use runtime::{ErrorKind, Instant, Pci, PciAddress, PciFunction, PciRefused, Registers, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of configuration space.
const CONFIG_LEN: usize = 256;
/// Where the command register lies.
const COMMAND: usize = 4;
/// What of the command register a process may change: bus mastering, and legacy interrupts off.
const COMMAND_WRITABLE: u16 = BUS_MASTER | 1 << 10;
/// Command: memory space is on.
const MEMORY_SPACE: u16 = 1 << 1;
/// Command: the function may reach memory and interrupt.
const BUS_MASTER: u16 = 1 << 2;
/// Longest time for which a dead process's function goes on to reach memory.
const LATE_DMA_NS_MAX: u64 = 3_000_000;

/// What sits behind a function's registers. Called while the world is borrowed: it uses the world that it is given.
pub trait Device {
    /// Loads four or eight bytes of its registers.
    fn load(&mut self, world: &mut World, offset: u64, len: u8) -> u64;
    /// Stores four or eight bytes.
    fn store(&mut self, world: &mut World, offset: u64, len: u8, value: u64);
    /// Does one small thing.
    fn step(&mut self, world: &mut World) -> Step;
    /// The memory that it has still to reach for what it was told: device addresses, with lengths.
    fn memory_to_come(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }
    /// The function is reset as a whole.
    fn reset(&mut self, world: &mut World);
    /// The power is gone, the function with it: only what is durable stays.
    fn power_loss(&mut self, world: &mut World);
}

/// What a function is, apart from what sits behind it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Vendor and device.
    pub ids: (u16, u16),
    /// Base class, subclass and programming interface.
    pub class: u32,
    /// Bytes of the registers in base address register 0.
    pub registers_len: u64,
    /// MSI-X vectors.
    pub vectors: u16,
    /// Eight bytes of registers are accessed at once, and not as two halves.
    pub wide: bool,
}

impl Shape {
    /// Configuration space as it is at first: the command register is 0.
    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[0..2].copy_from_slice(&self.ids.0.to_le_bytes());
        config[2..4].copy_from_slice(&self.ids.1.to_le_bytes());
        config[8..12].copy_from_slice(&(self.class << 8).to_le_bytes());
        config
    }
}

/// A function; when one is plugged in again it is another.
pub(crate) struct Function {
    machine: u32,
    address: PciAddress,
    shape: Shape,
    config: [u8; CONFIG_LEN],
    present: bool,
    /// Whose memory it reaches: the process that has it open, alive or dead.
    holder: Option<u32>,
    /// The eventfds of the vectors that are on.
    vectors: Vec<u32>,
    /// The model that steps it.
    model: u32,
    /// Taken out while it acts.
    device: Option<Box<dyn Device>>,
}

impl Function {
    fn command(&self) -> u16 {
        u16::from_le_bytes([self.config[COMMAND], self.config[COMMAND + 1]])
    }

    fn set_command(&mut self, command: u16) {
        self.config[COMMAND..COMMAND + 2].copy_from_slice(&command.to_le_bytes());
    }

    /// As it is when nobody has it.
    fn quiesce(&mut self) {
        self.set_command(MEMORY_SPACE);
        self.vectors.clear();
    }
}

/// All functions of a world, and what their processes have mapped for them.
#[derive(Default)]
pub(crate) struct Functions {
    pub(crate) functions: Vec<Function>,
    /// By process.
    pub(crate) spaces: BTreeMap<u32, Space>,
    /// Accesses that the IOMMU judged.
    pub(crate) judged: u64,
    /// Accesses that the IOMMU refused.
    pub(crate) refused: u64,
    /// No memory is mapped before, unless the faults are over.
    pub(crate) refuses_until: Instant,
}

/// Steps a function as a model of the world.
struct Stepper(u32);

impl Model for Stepper {
    fn step(&mut self) -> Step {
        world::with(|world| {
            if !world.pci.functions[self.0 as usize].present {
                return Step::Done;
            }
            world.on_device(self.0, |device, world| device.step(world))
        })
    }
}

impl World {
    /// Plugs a function in at an address of a machine; what `device` makes sits behind it and knows its number.
    pub fn plug(
        &mut self,
        machine: u32,
        address: PciAddress,
        shape: Shape,
        device: impl FnOnce(u32) -> Box<dyn Device>,
    ) -> u32 {
        let number = self.pci.functions.len() as u32;
        let model = self.add_model(Box::new(Stepper(number)), true);
        let mut function = Function {
            machine,
            address,
            shape,
            config: shape.config(),
            present: true,
            holder: None,
            vectors: Vec::new(),
            model,
            device: Some(device(number)),
        };
        function.quiesce();
        self.pci.functions.push(function);
        self.trace.add(Record::Life, u64::from(number), 4);
        self.tell(|| format!("function {address} is plugged in"));
        number
    }

    /// Pulls a function out, with no warning; it loses its power.
    pub fn unplug(&mut self, function: u32) {
        let slot = &mut self.pci.functions[function as usize];
        if !std::mem::take(&mut slot.present) {
            return;
        }
        slot.vectors.clear();
        let (address, acts) = (slot.address, slot.device.is_none());
        if !acts {
            self.on_device(function, |device, world| device.power_loss(world));
        }
        self.trace.add(Record::Life, u64::from(function), 5);
        self.changed();
        self.tell(|| format!("function {address} is pulled out"));
    }

    /// Whether a function is still plugged in.
    #[must_use]
    pub fn is_plugged(&self, function: u32) -> bool {
        self.pci.functions[function as usize].present
    }

    /// Accesses of functions to memory so far.
    #[must_use]
    pub fn device_accesses(&self) -> u64 {
        self.pci.judged
    }

    /// Accesses of functions to memory that was not mapped for them, so far; each was refused.
    #[must_use]
    pub fn refused_accesses(&self) -> u64 {
        self.pci.refused
    }

    /// Lets what sits behind a function act.
    fn on_device<T>(&mut self, function: u32, act: impl FnOnce(&mut dyn Device, &mut Self) -> T) -> T {
        let slot = &mut self.pci.functions[function as usize];
        let mut device = slot.device.take().expect("a function does one thing at a time");
        let result = act(&mut *device, self);
        self.pci.functions[function as usize].device = Some(device);
        result
    }

    /// A store to a register reaches its function.
    pub(crate) fn land_in_function(&mut self, function: u32, offset: u64, len: u8, value: u64) {
        if !self.pci.functions[function as usize].present {
            return;
        }
        let place = u64::from(function) << 40 | u64::from(len) << 36 | offset;
        self.trace.add(Record::Register, place, value);
        self.on_device(function, |device, world| device.store(world, offset, len, value));
        self.changed();
        self.wake_function(function);
    }

    /// The process that has a function open, whose memory it reaches; `None` where it may not reach any.
    pub(crate) fn mastered_for(&self, function: u32) -> Option<u32> {
        let slot = &self.pci.functions[function as usize];
        slot.holder.filter(|_| slot.present && slot.command() & BUS_MASTER != 0)
    }

    /// What a function has still to reach, may reach, and finds in the memory of a guest: places in that, with lengths.
    pub(crate) fn reach_into(&self, guest: u32) -> Vec<(u64, u64)> {
        let numbers = 0..self.pci.functions.len() as u32;
        let masters = numbers.filter_map(|function| Some((function, self.mastered_for(function)?)));
        masters
            .filter_map(|(function, process)| {
                let device = self.pci.functions[function as usize].device.as_ref()?;
                Some(device.memory_to_come().into_iter().map(move |place| (process, place)))
            })
            .flatten()
            .filter_map(|(process, (address, len))| self.place_in_guest(process, address, len, guest))
            .collect()
    }

    /// Whether what a function was told comes from a process that does not live any more.
    pub(crate) fn is_orphaned(&self, function: u32) -> bool {
        let holder = self.pci.functions[function as usize].holder;
        holder.is_none_or(|process| !self.is_alive(process))
    }

    /// Wakes a function that has something new to do.
    pub(crate) fn wake_function(&mut self, function: u32) {
        let model = self.pci.functions[function as usize].model;
        self.wake_model(model);
    }

    /// A function interrupts by one of its vectors.
    pub fn interrupt(&mut self, function: u32, vector: u16) {
        let rung = self.pci.functions[function as usize].vectors.get(usize::from(vector)).copied();
        if let (Some(eventfd), Some(_)) = (rung, self.mastered_for(function)) {
            self.ring(eventfd);
        }
    }

    /// A process died: its functions go on for a drawn time, and are given back then.
    pub(crate) fn functions_of_dead(&mut self, process: u32) {
        for function in 0..self.pci.functions.len() as u32 {
            if self.pci.functions[function as usize].holder != Some(process) {
                continue;
            }
            let late = self.faults.strike(FaultKind::LateDma, |rng| rng.between(1, LATE_DMA_NS_MAX));
            match late {
                Some(late) => {
                    let at = Instant(self.now.0 + late);
                    self.schedule(at, Event::GiveBack(function, process));
                }
                None => self.give_back(function, process),
            }
        }
        self.unmap_unheld(process);
    }

    /// What a process had open is given back: the function reaches no memory any more, and knows nothing of it.
    pub(crate) fn give_back(&mut self, function: u32, process: u32) {
        let slot = &mut self.pci.functions[function as usize];
        if slot.holder != Some(process) {
            return;
        }
        slot.holder = None;
        slot.quiesce();
        self.trace.add(Record::Life, u64::from(function), 6);
        if !self.is_alive(process) {
            self.unmap_unheld(process);
        }
    }

    /// A dead process's mappings go with its last function.
    fn unmap_unheld(&mut self, process: u32) {
        if self.pci.functions.iter().all(|function| function.holder != Some(process)) {
            self.pci.spaces.remove(&process);
        }
    }

    /// A machine loses its power, its functions with it. Its processes are dead.
    pub(crate) fn functions_power_loss(&mut self, machine: u32) {
        for function in 0..self.pci.functions.len() as u32 {
            let slot = &mut self.pci.functions[function as usize];
            if slot.machine != machine || !slot.present {
                continue;
            }
            let holder = slot.holder;
            self.on_device(function, |device, world| device.power_loss(world));
            if let Some(process) = holder {
                self.give_back(function, process);
            }
        }
    }

    /// Opens a function for the acting process.
    fn open_function(&mut self, process: u32, address: PciAddress) -> std::result::Result<u32, PciRefused> {
        let machine = self.processes[process as usize].machine;
        let here = |function: &Function| {
            function.present && (function.machine, function.address) == (machine, address)
        };
        let Some(number) = self.pci.functions.iter().position(here) else {
            let why = format!("there is no PCI function at {address}: look at `lspci -D`");
            return Err(PciRefused { kind: ErrorKind::NotFound, why });
        };
        if let Some(holder) = self.pci.functions[number].holder {
            if self.is_alive(holder) {
                let why = format!("the function at {address} is held by process {holder}: stop it first");
                return Err(PciRefused { kind: ErrorKind::Busy, why });
            }
            // Nobody opens it before the dead one's files are closed.
            self.give_back(number as u32, holder);
        }
        self.pci.functions[number].holder = Some(process);
        self.trace.add(Record::Life, number as u64, 7);
        Ok(number as u32)
    }
}

/// The functions as one process sees them.
#[derive(Clone, Debug)]
pub struct SimPci {
    process: u32,
}

impl SimPci {
    pub(crate) fn new(process: u32) -> Self {
        Self { process }
    }
}

impl Pci for SimPci {
    type Function = SimFunction;
    type Dma = SimDma;

    fn open(&self, address: PciAddress) -> std::result::Result<SimFunction, PciRefused> {
        world::with(|world| {
            world.crash_point();
            if !world.is_alive(self.process) {
                return Err(PciRefused { kind: ErrorKind::Io, why: "the process is dead".into() });
            }
            let number = world.open_function(self.process, address)?;
            Ok(SimFunction(Arc::new(Opened { number, process: self.process })))
        })
    }

    fn dma(&self) -> SimDma {
        SimDma::new(self.process)
    }
}

/// What is given back when its last clone goes.
#[derive(Debug)]
struct Opened {
    number: u32,
    process: u32,
}

impl Opened {
    /// The world and the function, if this is still its function, and the process is alive.
    fn with<T>(&self, use_it: impl FnOnce(&mut World, u32) -> T) -> Option<T> {
        world::with(|world| {
            world.crash_point();
            let there = world.is_alive(self.process) && world.is_plugged(self.number);
            there.then(|| use_it(world, self.number))
        })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        world::try_with(|world| {
            if world.is_alive(self.process) {
                world.give_back(self.number, self.process);
            }
        });
    }
}

/// An open function.
#[derive(Clone, Debug)]
pub struct SimFunction(Arc<Opened>);

impl PciFunction for SimFunction {
    type Registers = SimRegisters;
    type Notifier = SimNotifier;

    fn address(&self) -> PciAddress {
        world::with(|world| world.pci.functions[self.0.number as usize].address)
    }

    fn load_config(&self, offset: u16, into: &mut [u8]) {
        let range = config_range(offset, into.len());
        into.fill(0xff);
        self.0.with(|world, number| {
            into.copy_from_slice(&world.pci.functions[number as usize].config[range]);
        });
    }

    fn store_config(&self, offset: u16, bytes: &[u8]) {
        let range = config_range(offset, bytes.len());
        self.0.with(|world, number| {
            world.drain_acting();
            let slot = &mut world.pci.functions[number as usize];
            let before = slot.command();
            slot.config[range].copy_from_slice(bytes);
            // Only the command register has something to change; what else was written is not kept.
            let command = before & !COMMAND_WRITABLE | slot.command() & COMMAND_WRITABLE;
            slot.config = slot.shape.config();
            slot.set_command(command);
            let model = slot.model;
            world.trace.add(Record::Register, u64::from(number) << 40 | 1 << 35, command.into());
            world.wake_model(model);
        });
    }

    fn registers(&self, bar: u8) -> Result<SimRegisters> {
        let shape = world::with(|world| world.pci.functions[self.0.number as usize].shape);
        if bar != 0 {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(SimRegisters { function: self.clone(), len: shape.registers_len, wide: shape.wide })
    }

    fn vectors(&self) -> u16 {
        world::with(|world| world.pci.functions[self.0.number as usize].shape.vectors)
    }

    fn enable_vectors(&self, count: u16) -> Result<Vec<SimNotifier>> {
        if count > self.vectors() {
            return Err(ErrorKind::Invalid.into());
        }
        let enabled = self.0.with(|world, number| {
            let vectors: Vec<u32> = (0..count).map(|_| world.eventfd()).collect();
            world.pci.functions[number as usize].vectors.clone_from(&vectors);
            vectors.into_iter().map(|eventfd| SimNotifier { eventfd }).collect()
        });
        enabled.ok_or(ErrorKind::NotFound.into())
    }

    fn reset(&self) -> Result<()> {
        let reset = self.0.with(|world, number| {
            if world.faults.strike(FaultKind::FunctionResetFails, |_| 0).is_some() {
                return Err(ErrorKind::Io.into());
            }
            world.drain_acting();
            world.pci.functions[number as usize].quiesce();
            world.on_device(number, |device, world| device.reset(world));
            world.trace.add(Record::Life, number.into(), 8);
            world.changed();
            Ok(())
        });
        reset.unwrap_or(Err(ErrorKind::NotFound.into()))
    }
}

/// The place of an access to configuration space.
fn config_range(offset: u16, len: usize) -> std::ops::Range<usize> {
    let offset = usize::from(offset);
    assert!(
        matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len) && offset + len <= CONFIG_LEN,
        "an access to {len} bytes at {offset} of configuration space"
    );
    offset..offset + len
}

/// A function's registers.
#[derive(Clone, Debug)]
pub struct SimRegisters {
    function: SimFunction,
    len: u64,
    wide: bool,
}

impl SimRegisters {
    fn check(&self, offset: u64, len: u8) {
        let inside = offset.checked_add(len.into()).is_some_and(|end| end <= self.len);
        assert!(
            inside && offset.is_multiple_of(len.into()),
            "an access to {len} bytes at {offset:#x} of {:#x} bytes of registers",
            self.len
        );
    }

    fn load(&self, offset: u64, len: u8) -> u64 {
        self.check(offset, len);
        world::interleave();
        world::with(|world| {
            let Opened { number, process } = *self.function.0;
            let gone = u64::MAX >> (64 - 8 * u32::from(len));
            if !world.is_alive(process) {
                return gone;
            }
            world.drain_to_function(number);
            if !world.is_plugged(number) {
                return gone;
            }
            let value = world.on_device(number, |device, world| device.load(world, offset, len));
            value & gone
        })
    }

    fn store(&self, offset: u64, len: u8, value: u64) {
        self.check(offset, len);
        world::interleave();
        world::with(|world| {
            world.crash_point();
            if world.is_alive(self.function.0.process) {
                world.store_to_function(self.function.0.number, offset, len, value);
            }
        });
    }
}

impl Registers for SimRegisters {
    fn len(&self) -> u64 {
        self.len
    }

    fn load_u32(&self, offset: u64) -> u32 {
        self.load(offset, 4) as u32
    }

    fn load_u64(&self, offset: u64) -> u64 {
        if self.wide {
            return self.load(offset, 8);
        }
        let low = self.load(offset, 4);
        low | self.load(offset + 4, 4) << 32
    }

    fn store_u32(&self, offset: u64, value: u32) {
        self.store(offset, 4, value.into());
    }

    fn store_u64(&self, offset: u64, value: u64) {
        if self.wide {
            return self.store(offset, 8, value);
        }
        self.store(offset, 4, value & u64::from(u32::MAX));
        self.store(offset + 4, 4, value >> 32);
    }
}
