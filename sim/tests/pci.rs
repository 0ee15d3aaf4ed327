//! The simulated PCI platform: the order of stores, the IOMMU, bus mastering, interrupts, removal, and the functions of the
//! dead. The device behind the function copies eight bytes when it is told to.

mod common;

use common::{Does, once, program, spawn};
use runtime::{
    Access, Dma, ErrorKind, Instant, Memory, Notifier, Pci, PciAddress, PciFunction, Platform, Poll,
    Registers, Window,
};
use sim::faults::{FaultKind, Faults, Rate};
use sim::pci::{Device, Shape, SimFunction};
use sim::platform::SimPlatform;
use sim::scheduler;
use sim::world::{self, Step, Temper, World};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

const AT: PciAddress = PciAddress { domain: 0, bus: 3, device: 0, function: 0 };
/// Registers: what to copy, and its start; then how many copies failed, and a word that is only kept.
const FROM: u64 = 0;
const GO: u64 = 8;
const FAILED: u64 = 12;
const KEPT: u64 = 16;

/// Copies the eight bytes at `FROM` to the eight behind them, `GO` times, one a step, and interrupts after each.
#[derive(Default)]
struct Copier {
    function: u32,
    from: u64,
    left: u64,
    failed: u64,
    kept: u64,
}

impl Device for Copier {
    fn load(&mut self, _: &mut World, offset: u64, _: u8) -> u64 {
        match offset {
            FAILED => self.failed,
            KEPT => self.kept,
            _ => 0,
        }
    }
    fn store(&mut self, world: &mut World, offset: u64, len: u8, value: u64) {
        match (offset, len) {
            (FROM, 8) => self.from = value,
            (FROM, _) => self.from = self.from >> 32 << 32 | value,
            (4, _) => self.from = self.from & u64::from(u32::MAX) | value << 32,
            (GO, _) => {
                self.left = value;
                // What the register announces is in memory already.
                let mut bytes = [0; 8];
                let seen = world.dma_read(self.function, self.from, &mut bytes).is_ok();
                assert!(!seen || bytes != [0; 8], "a store to a register overtook one to memory");
            }
            (KEPT, _) => self.kept = value,
            _ => {}
        }
    }
    fn step(&mut self, world: &mut World) -> Step {
        if self.left == 0 {
            return Step::Idle { until: None };
        }
        self.left -= 1;
        let mut bytes = [0; 8];
        let copied = world
            .dma_read(self.function, self.from, &mut bytes)
            .and_then(|()| world.dma_write(self.function, self.from + 8, &bytes));
        self.failed += u64::from(copied.is_err());
        world.interrupt(self.function, 0);
        Step::Worked
    }
    fn reset(&mut self, _: &mut World) {
        *self = Self { function: self.function, ..Self::default() };
    }
    fn power_loss(&mut self, world: &mut World) {
        self.reset(world);
    }
}

/// A world with the function plugged in, where one kind of fault always strikes.
fn create(seed: u64, kind: Option<FaultKind>) -> (u32, u32) {
    let rate = move |asked| match Some(asked) == kind {
        true => Rate { of_65536: 65536, most: u64::MAX },
        false => Rate::default(),
    };
    world::create(seed, Temper { interleave_every: 3, ..Temper::default() }, Faults::drawn(seed, rate));
    world::with(|world| {
        let machine = world.machine();
        (machine, plug(world, machine, seed & 1 == 0))
    })
}

fn plug(world: &mut World, machine: u32, wide: bool) -> u32 {
    let shape = Shape { ids: (0x1b36, 0x10), class: 0x01_08_02, registers_len: 4096, vectors: 2, wide };
    world.plug(machine, AT, shape, |function| Box::new(Copier { function, ..Copier::default() }))
}

fn set_master(function: &SimFunction) {
    let mut command = [0; 2];
    function.load_config(4, &mut command);
    function.store_config(4, &(u16::from_le_bytes(command) | 4).to_le_bytes());
}

/// A world in which one process does one thing with the open function.
fn with_function(seed: u64, act: impl Fn(&SimPlatform, SimFunction, u32) + Send + Sync + 'static) {
    let (machine, number) = create(seed, None);
    once(machine, move |platform| act(platform, platform.pci().open(AT).expect("a function"), number));
    common::finish();
    world::clear();
}

/// Copies once: whether the copy came, by the time of the interrupt.
fn copied(seed: u64, mastered: bool, access: Access) -> (bool, bool, u32) {
    let (machine, _) = create(seed, None);
    let seen = Arc::new(Mutex::new((false, false, 0)));
    let tells = Arc::clone(&seen);
    let program = program(move |platform: SimPlatform| {
        let function = platform.pci().open(AT).expect("a function");
        let registers = function.registers(0).expect("registers");
        let vectors = function.enable_vectors(2).expect("vectors");
        let memory = platform.shared_memory("m", 8192).expect("memory");
        let dma = platform.pci().dma();
        let mapping = dma.map(memory.window(), access).expect("mapped");
        let (tells, mut polls) = (Arc::clone(&tells), 0);
        move || {
            let _held = &mapping;
            let window = memory.window().slice(4096, 16).expect("inside");
            polls += 1;
            if polls == 1 {
                if mastered {
                    set_master(&function);
                }
                registers.store_u64(FROM, dma.address(&window).expect("mapped"));
                window.store_u64(0, 7, Relaxed);
                registers.store_u32(GO, 1);
            }
            let rung = vectors[0].take();
            assert!(!vectors[1].take(), "nobody rang the other");
            if rung || polls == 400 {
                let copied = window.load_u64(8, Relaxed) == 7;
                *tells.lock().expect("one thread") = (rung, copied, registers.load_u32(FAILED));
                world::with(|world| world.finish());
            }
            Poll::Busy
        }
    });
    spawn(machine, &program);
    common::finish();
    world::clear();
    *seen.lock().expect("one thread")
}

#[test]
fn a_function_reaches_what_is_mapped_and_interrupts_behind_it() {
    for seed in 0..60 {
        assert_eq!(copied(seed, true, Access::ReadWrite), (true, true, 0), "seed {seed}");
    }
    assert_eq!(copied(1, true, Access::Read), (true, false, 1), "mapped for reading");
    assert_eq!(copied(1, false, Access::ReadWrite), (false, false, 1), "bus mastering is off");
}

#[test]
fn a_load_brings_earlier_stores_to_the_registers_there_first() {
    for seed in 0..60 {
        with_function(seed, |_, function, _| {
            let registers = function.registers(0).expect("registers");
            for value in 1..20 {
                registers.store_u32(KEPT, value);
                assert_eq!(registers.load_u32(KEPT), value);
            }
        });
    }
}

#[test]
fn addresses_keep_clear_of_each_other_and_of_what_is_reserved() {
    let mut all = BTreeSet::new();
    for seed in 0..40 {
        let found = Arc::new(Mutex::new(Vec::new()));
        let tells = Arc::clone(&found);
        with_function(seed, move |platform, _, _| {
            let dma = platform.pci().dma();
            let mut held = Vec::new();
            for len in [4096, 64 << 10, 1 << 20, 100] {
                let memory = platform.shared_memory("m", len).expect("memory");
                let window = memory.window();
                assert_eq!(dma.address(&window), None, "not mapped yet");
                let part = window.slice(4, len - 4).expect("inside");
                assert_eq!(dma.map(part, Access::Read).map(drop), Err(ErrorKind::Invalid.into()));
                let mapping = dma.map(window, Access::Read).expect("mapped");
                assert_eq!(dma.map(window, Access::Read).map(drop), Err(ErrorKind::AlreadyExists.into()));
                let address = dma.address(&window).expect("mapped");
                assert_eq!(dma.address(&part), Some(address + 4));
                assert!(address.is_multiple_of(4096));
                held.push((memory, mapping));
                tells.lock().expect("one thread").push((address, address + len));
            }
            let (memory, mapping) = held.pop().expect("the last");
            drop(mapping);
            assert_eq!(dma.address(&memory.window()), None, "not mapped any more");
        });
        let mut found = found.lock().expect("one thread").clone();
        found.push((0xfee0_0000, 0xfef0_0000));
        found.sort_unstable();
        assert!(found.is_sorted_by(|one, next| one.1 <= next.0), "{found:x?}");
        all.extend(found);
    }
    assert!(all.iter().any(|(start, _)| *start == 0xfef0_0000), "some must step over the reserved range");
    assert!(all.iter().any(|(start, _)| *start > 1 << 32));
}

#[test]
fn a_function_that_was_pulled_out_is_all_ones() {
    with_function(1, |platform, function, number| {
        let registers = function.registers(0).expect("registers");
        let mut class = [0; 4];
        function.load_config(8, &mut class);
        assert_eq!(class, [0, 2, 8, 1]);
        world::with(|world| world.unplug(number));
        function.load_config(8, &mut class);
        assert_eq!(class, [0xff; 4]);
        registers.store_u32(GO, 1);
        assert_eq!((registers.load_u32(KEPT), registers.load_u64(FROM)), (u32::MAX, u64::MAX));
        assert_eq!(function.reset(), Err(ErrorKind::NotFound.into()));
        assert_eq!(platform.pci().open(AT).expect_err("gone").kind, ErrorKind::NotFound);
        // Another one in its place is not the one that is open.
        world::with(|world| plug(world, 0, true));
        assert_eq!(registers.load_u32(KEPT), u32::MAX);
        let again = platform.pci().open(AT).expect("the new one");
        assert_eq!(again.registers(0).expect("registers").load_u32(KEPT), 0);
    });
}

#[test]
fn a_function_is_one_process_s_until_it_is_given_back() {
    with_function(1, |platform, function, _| {
        let pci = platform.pci();
        let registers = function.registers(0).expect("registers");
        registers.store_u32(KEPT, 5);
        set_master(&function);
        drop(function);
        assert_eq!(pci.open(AT).expect_err("the registers hold it").kind, ErrorKind::Busy);
        drop(registers);
        let again = pci.open(AT).expect("given back");
        let mut command = [0; 2];
        again.load_config(4, &mut command);
        assert_eq!(u16::from_le_bytes(command) & 6, 2, "memory space is on, bus mastering is not");
        assert_eq!(again.registers(0).expect("registers").load_u32(KEPT), 5, "it was not reset");
        again.reset().expect("reset");
        assert_eq!(again.registers(0).expect("registers").load_u32(KEPT), 0);
    });
}

/// A life lets the function copy for ever and is killed; whether it went on to write for some time after the death, and
/// whether it still wrote when the next life had opened it.
fn after_death(seed: u64) -> (bool, bool) {
    let (machine, _) = create(seed, Some(FaultKind::LateDma));
    let (object, window) = world::with(|world| world.memory_object(4096));
    let started = Arc::new(AtomicBool::new(false));
    let tells = Arc::clone(&started);
    let first = program(move |platform: SimPlatform| {
        let function = platform.pci().open(AT).expect("a function");
        let handle = sim::unix::SimHandle::memory(object);
        let memory = runtime::Handle::map(&handle, 0, 4096, Access::ReadWrite).expect("memory");
        let dma = platform.pci().dma();
        let mapping = dma.map(memory.window(), Access::ReadWrite).expect("mapped");
        let tells = Arc::clone(&tells);
        move || {
            let _held = &mapping;
            if !tells.load(Relaxed) {
                set_master(&function);
                let registers = function.registers(0).expect("registers");
                registers.store_u64(FROM, dma.address(&memory.window()).expect("mapped"));
                memory.window().store_u64(0, 7, Relaxed);
                registers.store_u32(GO, u32::MAX);
                assert_eq!(registers.load_u32(FAILED), 0);
                tells.store(true, Relaxed);
            }
            Poll::Idle { until: None }
        }
    });
    let opened = Arc::new(AtomicBool::new(false));
    let tells = Arc::clone(&opened);
    let second = program(move |platform: SimPlatform| {
        let function = platform.pci().open(AT).expect("the dead one gave it back");
        tells.store(true, Relaxed);
        move || {
            let _held = &function;
            Poll::Idle { until: None }
        }
    });
    let process = spawn(machine, &first);
    // Each look: has it written since the last one?
    let written = move || {
        let was = window.load_u64(8, Relaxed) == 7;
        window.store_u64(8, 0, Relaxed);
        was
    };
    let (late, after) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (late_too, after_too) = (Arc::clone(&late), Arc::clone(&after));
    let looks = AtomicU32::new(0);
    world::with(|world| {
        world.add_model(
            Box::new(Does(move || {
                if world::with(|world| world.is_alive(process)) {
                    if started.load(Relaxed) {
                        scheduler::kill(process);
                        written();
                    }
                } else {
                    let look = looks.fetch_add(1, Relaxed);
                    let was = written();
                    if opened.load(Relaxed) {
                        after_too.fetch_or(was && look > 40, Relaxed);
                    } else {
                        late_too.fetch_or(was, Relaxed);
                    }
                    if look == 20 {
                        spawn(machine, &second);
                    } else if look == 200 {
                        world::with(|world| world.finish());
                    }
                }
                Step::Idle { until: Some(Instant(common::now_ns() + 5_000)) }
            })),
            false,
        )
    });
    common::finish();
    world::clear();
    (late.load(Relaxed), after.load(Relaxed))
}

#[test]
fn a_dead_process_s_function_goes_on_until_somebody_opens_it() {
    let outcomes: BTreeSet<_> = (0..40).map(after_death).collect();
    assert!(outcomes.contains(&(true, false)), "{outcomes:?}");
    assert!(outcomes.iter().all(|(_, after)| !after), "{outcomes:?}");
}
