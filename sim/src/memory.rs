//! Simulated shared memory: objects (what a memfd is), mappings of them, and the processors that look at them.
//!
//! Fault model. Stores of a processor wait in its store buffer, in order, and reach memory at drawn moments; its own
//! loads see them, nobody else's do; a full fence, an atomic operation, a notifier's ring and a socket's send drain it:
//! what x86-64 promises (total store order) and nothing more. Between any two accesses of the target another actor may
//! take a step. A process may die before any of its stores; what stood in its store buffer then lands. A bulk store
//! that a death cuts off leaves any drawn subset of its aligned 8-byte words written. A mapping that was dropped is
//! gone: touching it is reported.
//!
//! Never: a store torn below its own size, a store lost while its process lives, stores of one processor reordered.

use crate::faults::FaultKind;
use crate::rng::Rng;
use crate::scheduler::Event;
use crate::trace::Record;
use crate::world::{self, Actor, World};
use runtime::{Access, ErrorKind, Instant, Memory, Result, Window};
use stack::reached::Reached;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// Most stores that wait in one processor's buffer (x86 processors have 56 to 72; fewer makes them land more often).
const STORE_BUFFER: usize = 12;

/// Accesses of a processor that has buffered stores until one of them lands by itself: below so many, as drawn.
const DRAIN_EVERY: u32 = 24;

/// Longest time that a store waits after its processor's step has ended, in nanoseconds.
const DRAIN_NS_MAX: u64 = 1000;

/// A piece of memory that exists as long as the world.
pub(crate) struct Object {
    pub(crate) bytes: Vec<u8>,
    /// Which guest watches accesses, and the guest-physical address of the first byte.
    watched: Option<(u32, u64)>,
}

/// A view of an object.
struct Mapping {
    object: u32,
    start: u64,
    len: u64,
    /// The process that made it; `None` for guests and front-ends.
    process: Option<u32>,
    live: bool,
    writable: bool,
    /// The memory below it went away under an access: it reads as zeroes and swallows stores from then on.
    lost: bool,
}

/// Where a store goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Object(u32),
    /// The registers of a function.
    Function(u32),
}

struct Buffered {
    target: Target,
    len: u8,
    offset: u64,
    value: u64,
}

/// One processor's store buffer.
#[derive(Default)]
struct Processor {
    buffer: VecDeque<Buffered>,
    /// A moment is set at which what is in the buffer then reaches memory.
    drains: bool,
}

/// A processor: a core of a process, or a virtual one of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessorId(pub u32);

/// All memory of a world.
pub(crate) struct MemoryMap {
    objects: Vec<Object>,
    mappings: Vec<Mapping>,
    processors: Vec<Processor>,
    /// Accesses of processors that have buffered stores, until one of them lands by itself.
    until_drain: u32,
}

impl MemoryMap {
    /// No memory yet. When the first store lands by itself is drawn.
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let until_drain = rng.below(DRAIN_EVERY.into()) as u32;
        Self { objects: Vec::new(), mappings: Vec::new(), processors: Vec::new(), until_drain }
    }

    pub(crate) fn object(&mut self, len: u64) -> u32 {
        let bytes = vec![0; usize::try_from(len).expect("simulated memory fits into memory")];
        self.objects.push(Object { bytes, watched: None });
        self.objects.len() as u32 - 1
    }

    pub(crate) fn object_len(&self, object: u32) -> u64 {
        self.objects[object as usize].bytes.len() as u64
    }

    pub(crate) fn bytes_mut(&mut self, object: u32) -> &mut Vec<u8> {
        &mut self.objects[object as usize].bytes
    }

    pub(crate) fn bytes(&self, object: u32) -> &[u8] {
        &self.objects[object as usize].bytes
    }

    fn range(&self, object: u32, at: u64, len: u64) -> &[u8] {
        &self.objects[object as usize].bytes[at as usize..(at + len) as usize]
    }

    fn range_mut(&mut self, object: u32, at: u64, len: u64) -> &mut [u8] {
        &mut self.objects[object as usize].bytes[at as usize..(at + len) as usize]
    }

    /// Copies from one place to another, of the same object or not.
    fn copy(&mut self, (from, from_at): (u32, u64), (to, to_at): (u32, u64), len: u64) {
        let range = from_at as usize..(from_at + len) as usize;
        match self.objects.get_disjoint_mut([from as usize, to as usize]) {
            Ok([from, to]) => {
                to.bytes[to_at as usize..(to_at + len) as usize].copy_from_slice(&from.bytes[range]);
            }
            Err(_) => self.objects[to as usize].bytes.copy_within(range, to_at as usize),
        }
    }

    pub(crate) fn watch(&mut self, object: u32, guest: u32, address: u64) {
        self.objects[object as usize].watched = Some((guest, address));
    }

    /// Who watches a range of an object, and the address that it has there.
    pub(crate) fn watcher(&self, object: u32, offset: u64) -> Option<(u32, u64)> {
        self.objects[object as usize].watched.map(|(guest, address)| (guest, address + offset))
    }

    pub(crate) fn map(&mut self, object: u32, start: u64, len: u64, process: Option<u32>) -> SimWindow {
        self.mappings.push(Mapping { object, start, len, process, live: true, writable: true, lost: false });
        SimWindow { mapping: self.mappings.len() as u32 - 1, start: 0, len }
    }

    fn unmap(&mut self, mapping: u32) {
        self.mappings[mapping as usize].live = false;
    }

    /// Drops every mapping of a process that died.
    pub(crate) fn unmap_process(&mut self, process: u32) {
        for mapping in &mut self.mappings {
            mapping.live &= mapping.process != Some(process);
        }
    }

    /// How many mappings of an object a process has.
    pub(crate) fn mappings_of(&self, process: u32, object: u32) -> u64 {
        let has =
            |mapping: &&Mapping| mapping.live && mapping.object == object && mapping.process == Some(process);
        self.mappings.iter().filter(has).count() as u64
    }

    /// Whether the mapping of a window was dropped by a process that lives on (and not ended with its process).
    pub(crate) fn is_unmapped(&self, mapping: u32) -> bool {
        !self.mappings[mapping as usize].live
    }

    /// Whether the mapping of a window was dropped by its process.
    pub(crate) fn is_unmapped_window(&self, window: &SimWindow) -> bool {
        self.is_unmapped(window.mapping)
    }

    /// What is in memory below a window; `None` where its owner has shrunk it.
    pub(crate) fn content(&self, window: &SimWindow) -> Option<&[u8]> {
        let (object, start) = self.place(window);
        let start = start as usize;
        self.objects[object as usize].bytes.get(start..start + window.len as usize)
    }

    /// The object below a window and where it begins there.
    pub(crate) fn place(&self, window: &SimWindow) -> (u32, u64) {
        let mapping = &self.mappings[window.mapping as usize];
        (mapping.object, mapping.start + window.start)
    }

    /// Whether a window is all of a mapping.
    pub(crate) fn is_region(&self, window: &SimWindow) -> bool {
        let mapping = &self.mappings[window.mapping as usize];
        mapping.live && (window.start, window.len) == (0, mapping.len)
    }

    pub(crate) fn processor(&mut self) -> ProcessorId {
        self.processors.push(Processor::default());
        ProcessorId(self.processors.len() as u32 - 1)
    }
}

/// A word of `LEN` bytes at an offset of an object, as memory has it.
#[inline]
fn word_at<const LEN: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word[..LEN].copy_from_slice(&bytes[at..at + LEN]);
    u64::from_le_bytes(word)
}

impl World {
    /// The oldest buffered store of a processor reaches memory.
    fn land_one(&mut self, processor: ProcessorId) -> bool {
        let Some(store) = self.memory.processors[processor.0 as usize].buffer.pop_front() else {
            return false;
        };
        self.land(&store);
        true
    }

    fn land(&mut self, store: &Buffered) {
        let object = match store.target {
            Target::Object(object) => object,
            Target::Function(function) => {
                self.land_in_function(function, store.offset, store.len, store.value);
                return;
            }
        };
        match store.len {
            1 => self.land_word::<1>(object, store.offset, store.value),
            2 => self.land_word::<2>(object, store.offset, store.value),
            4 => self.land_word::<4>(object, store.offset, store.value),
            _ => self.land_word::<8>(object, store.offset, store.value),
        }
    }

    /// A store reaches memory.
    #[inline]
    fn land_word<const LEN: usize>(&mut self, object: u32, offset: u64, value: u64) {
        let at = offset as usize;
        // The owner may have shrunk the memory since the store was made.
        let Some(target) = self.memory.objects[object as usize].bytes.get_mut(at..at + LEN) else {
            return;
        };
        let target: &mut [u8; LEN] = target.try_into().expect("as long as was asked");
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(&value.to_le_bytes()[..LEN]);
        // A value stored again is nothing new to anybody: cores that poll do not look again for it.
        let is_new = *target != bytes;
        *target = bytes;
        if is_new {
            self.changed();
        }
        let place = u64::from(object) << 40 | (LEN as u64) << 36 | offset;
        self.trace.add(Record::Store, place, value);
    }

    /// Everything that a processor has stored reaches memory.
    pub(crate) fn drain(&mut self, processor: ProcessorId) {
        while self.land_one(processor) {}
    }

    /// Everything that any processor has stored reaches memory.
    pub(crate) fn drain_all(&mut self) {
        for processor in 0..self.memory.processors.len() as u32 {
            self.drain(ProcessorId(processor));
        }
    }

    /// At the end of a step: what a processor has stored reaches memory now or, as drawn, a moment later.
    pub(crate) fn settle(&mut self, processor: ProcessorId) {
        let state = &self.memory.processors[processor.0 as usize];
        if state.buffer.is_empty() {
            return;
        }
        if state.drains || self.streams.schedule.chance(3, 4) {
            self.drain(processor);
            return;
        }
        self.memory.processors[processor.0 as usize].drains = true;
        let at = Instant(self.now.0 + 1 + self.streams.schedule.below(DRAIN_NS_MAX));
        self.schedule(at, Event::Drain(processor.0));
    }

    /// The moment set by [`World::settle`] has come.
    pub(crate) fn drain_event(&mut self, processor: u32) {
        self.memory.processors[processor as usize].drains = false;
        self.drain(ProcessorId(processor));
    }

    /// Everything that the acting processor has stored reaches memory.
    #[inline]
    pub(crate) fn drain_acting(&mut self) {
        if let Some(processor) = self.processor {
            self.drain(processor);
        }
    }

    /// Begins an access of the acting processor to `len` bytes of a window: the place in its object, or `None` where
    /// the access leads nowhere (the process is dead, or the mapping gone).
    #[inline(always)]
    fn begin(&mut self, window: &SimWindow, offset: u64, len: u64, store: bool) -> Option<(u32, u64)> {
        if offset > window.len || len > window.len - offset {
            outside(window, offset, len);
        }
        if self.is_fenced() {
            return None;
        }
        self.judged.memory += 1;
        let mapping = &self.memory.mappings[window.mapping as usize];
        let (object, at) = (mapping.object, mapping.start + window.start + offset);
        if !mapping.live || mapping.lost || (store && !mapping.writable) {
            self.refuse(window.mapping, at, len, store);
            return None;
        }
        let Object { bytes, watched } = &self.memory.objects[object as usize];
        if at + len > bytes.len() as u64 {
            // The owner shrank the memory below: a host puts zeroes in place of the whole mapping.
            self.memory.mappings[window.mapping as usize].lost = true;
            return None;
        }
        if let Some((guest, address)) = *watched
            && matches!(self.actor(), Actor::Core(_))
        {
            self.observe(guest, world::Agent::Target, address + at, len, store);
        }
        if self.has_buffered() {
            self.land_sometimes();
        }
        Some((object, at))
    }

    /// Whether stores of the acting processor wait in its buffer.
    #[inline(always)]
    fn has_buffered(&self) -> bool {
        self.processor
            .is_some_and(|processor| !self.memory.processors[processor.0 as usize].buffer.is_empty())
    }

    /// Accesses are counted down to when the oldest store in the acting processor's buffer lands by itself.
    fn land_sometimes(&mut self) {
        if self.memory.until_drain > 0 {
            self.memory.until_drain -= 1;
            return;
        }
        if let Some(processor) = self.processor {
            self.land_one(processor);
        }
        self.memory.until_drain = self.draw_small(DRAIN_EVERY);
    }

    /// An access that leads nowhere: reported, unless it only found memory that went away.
    #[cold]
    fn refuse(&mut self, mapping: u32, at: u64, len: u64, store: bool) {
        let Mapping { object, live, writable, .. } = self.memory.mappings[mapping as usize];
        let what = if store { "a store to" } else { "a load of" };
        if !live {
            self.fail(
                "memory",
                format!("{what} {len} bytes at {at:#x} of object {object}, which was unmapped before"),
            );
        } else if store && !writable {
            self.fail(
                "memory",
                format!(
                    "{what} {len} bytes at {at:#x} of object {object}, which was mapped for reading only"
                ),
            );
        }
    }

    #[inline]
    fn load<const LEN: usize>(&mut self, window: &SimWindow, offset: u64) -> u64 {
        let Some((object, at)) = self.begin(window, offset, LEN as u64, false) else { return 0 };
        if !at.is_multiple_of(LEN as u64) {
            misaligned("load", LEN, at);
        }
        let value = word_at::<LEN>(&self.memory.objects[object as usize].bytes, at as usize);
        if self.has_buffered() { self.forward(value, object, at, LEN as u8) } else { value }
    }

    /// What a load brings of memory, with what its processor has stored there and others do not see yet.
    fn forward(&mut self, mut value: u64, object: u32, at: u64, len: u8) -> u64 {
        self.overtook();
        let Some(processor) = self.processor else { return value };
        for store in &self.memory.processors[processor.0 as usize].buffer {
            if store.target == Target::Object(object)
                && store.offset < at + u64::from(len)
                && at < store.offset + u64::from(store.len)
            {
                if store.offset == at && store.len >= len {
                    let mask = if len == 8 { u64::MAX } else { (1 << (8 * len)) - 1 };
                    value = store.value & mask;
                } else {
                    value = overlay(value, at, len, store);
                }
            }
        }
        value
    }

    #[inline]
    fn store<const LEN: usize>(&mut self, window: &SimWindow, offset: u64, value: u64) {
        self.crash_point();
        let Some((object, offset)) = self.begin(window, offset, LEN as u64, true) else { return };
        if !offset.is_multiple_of(LEN as u64) {
            misaligned("store", LEN, offset);
        }
        if self.store_buffers && self.processor.is_some() {
            self.put(Buffered { target: Target::Object(object), len: LEN as u8, offset, value });
        } else {
            self.land_word::<LEN>(object, offset, value);
        }
    }

    /// A store to a function's registers: it waits behind all that the processor stored before.
    pub(crate) fn store_to_function(&mut self, function: u32, offset: u64, len: u8, value: u64) {
        self.put(Buffered { target: Target::Function(function), len, offset, value });
    }

    /// Everything that the acting processor has stored up to its last store to a function's registers gets there.
    pub(crate) fn drain_to_function(&mut self, function: u32) {
        let Some(processor) = self.processor else { return };
        let is_there = |store: &Buffered| store.target == Target::Function(function);
        let last = self.memory.processors[processor.0 as usize].buffer.iter().rposition(is_there);
        for _ in 0..last.map_or(0, |last| last + 1) {
            self.land_one(processor);
        }
    }

    /// A store of the acting processor, into its store buffer if it has one.
    fn put(&mut self, store: Buffered) {
        match self.processor {
            Some(processor) if self.store_buffers => {
                let buffer = &mut self.memory.processors[processor.0 as usize].buffer;
                buffer.push_back(store);
                if buffer.len() > STORE_BUFFER {
                    self.land_one(processor);
                }
            }
            _ => self.land(&store),
        }
    }

    /// Begins a bulk store: earlier stores land, then these bytes may. A death in the middle leaves a drawn subset of the
    /// aligned words of what would be written.
    fn begin_bulk(
        &mut self,
        window: &SimWindow,
        offset: u64,
        len: u64,
        bytes: impl FnOnce(&MemoryMap) -> Vec<u8>,
    ) -> Option<(u32, u64)> {
        if self.dies_here() {
            self.drain_acting();
            if let Some((object, at)) = self.begin(window, offset, len, true) {
                let bytes = bytes(&self.memory);
                self.tear(object, at, &bytes);
            }
            self.die();
        }
        self.drain_acting();
        self.begin(window, offset, len, true)
    }

    /// A bulk store has reached memory. Its bytes are in the trace already but for what `known_by` says of them; `None`:
    /// they are not.
    fn end_bulk(&mut self, object: u32, at: u64, len: u64, known_by: Option<u64>) {
        self.changed();
        self.trace.add(Record::Bulk, u64::from(object) << 40 | at, len);
        let bytes = self.memory.range(object, at, len);
        match known_by {
            Some(word) => self.trace.known_bytes(word, bytes),
            None => self.trace.bytes(bytes),
        }
    }

    /// Writes a drawn subset of the aligned 8-byte words of a bulk store.
    pub(crate) fn tear(&mut self, object: u32, at: u64, bytes: &[u8]) {
        let mut done = 0;
        let mut word = 0;
        let mut left = 0;
        while done < bytes.len() {
            if left == 0 {
                (word, left) = (self.draw_fault_word(), 64);
            }
            let here = (8 - (at as usize + done) % 8).min(bytes.len() - done);
            if word & 1 == 1 {
                let to = at as usize + done;
                self.memory.objects[object as usize].bytes[to..to + here]
                    .copy_from_slice(&bytes[done..done + here]);
            }
            (word, left) = (word >> 1, left - 1);
            done += here;
        }
        self.trace.add(Record::Bulk, u64::from(object) << 40 | at, bytes.len() as u64);
    }
}

#[cold]
#[inline(never)]
fn outside(window: &SimWindow, offset: u64, len: u64) -> ! {
    panic!("an access to {len} bytes at {offset} of a window of {}", window.len)
}

#[cold]
#[inline(never)]
fn misaligned(what: &str, len: usize, at: u64) -> ! {
    panic!("a {what} of {len} bytes at {at:#x}, which is not aligned to it")
}

/// The bytes of a buffered store laid over those of memory.
#[cold]
fn overlay(value: u64, at: u64, len: u8, store: &Buffered) -> u64 {
    let mut bytes = value.to_le_bytes();
    for (index, byte) in store.value.to_le_bytes()[..usize::from(store.len)].iter().enumerate() {
        let place = store.offset + index as u64;
        if place >= at && place < at + u64::from(len) {
            bytes[(place - at) as usize] = *byte;
        }
    }
    u64::from_le_bytes(bytes)
}

/// A range of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimWindow {
    pub(crate) mapping: u32,
    start: u64,
    len: u64,
}

macro_rules! typed {
    ($load:ident, $store:ident, $type:ty, $len:literal) => {
        #[inline]
        fn $load(&self, offset: u64, _: Ordering) -> $type {
            world::access(|world| world.load::<$len>(self, offset)) as $type
        }
        #[inline]
        fn $store(&self, offset: u64, value: $type, _: Ordering) {
            world::access(|world| world.store::<$len>(self, offset, u64::from(value)));
        }
    };
}

impl Window for SimWindow {
    fn len(&self) -> u64 {
        self.len
    }

    fn slice(&self, offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| Self { mapping: self.mapping, start: self.start + offset, len })
    }

    fn is_aligned(&self, alignment: u64) -> bool {
        world::with(|world| world.memory.place(self).1).is_multiple_of(alignment)
    }

    typed!(load_u8, store_u8, u8, 1);
    typed!(load_u16, store_u16, u16, 2);
    typed!(load_u32, store_u32, u32, 4);
    typed!(load_u64, store_u64, u64, 8);

    fn fetch_or_u8(&self, offset: u64, bits: u8) -> u8 {
        world::access(|world| {
            world.crash_point();
            world.drain_acting();
            let before = world.load::<1>(self, offset) as u8;
            if let Some((object, at)) = world.begin(self, offset, 1, true) {
                world.land_word::<1>(object, at, u64::from(before | bits));
            }
            before
        })
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        world::access(|world| {
            let Some((object, at)) = world.begin(self, offset, into.len() as u64, false) else {
                into.fill(0);
                return;
            };
            let memory = &world.memory;
            into.copy_from_slice(
                &memory.objects[object as usize].bytes[at as usize..at as usize + into.len()],
            );
            let Some(processor) = world.processor else { return };
            for store in &memory.processors[processor.0 as usize].buffer {
                if store.target != Target::Object(object) {
                    continue;
                }
                for (index, byte) in store.value.to_le_bytes()[..usize::from(store.len)].iter().enumerate() {
                    if let Some(place) = (store.offset + index as u64).checked_sub(at)
                        && let Some(target) = into.get_mut(place as usize)
                    {
                        *target = *byte;
                    }
                }
            }
        });
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let len = bytes.len() as u64;
        world::access(|world| {
            let Some((object, at)) = world.begin_bulk(self, offset, len, |_| bytes.to_vec()) else { return };
            world.memory.range_mut(object, at, len).copy_from_slice(bytes);
            world.end_bulk(object, at, len, None);
        });
    }

    fn fill(&self, offset: u64, len: u64, byte: u8) {
        world::access(|world| {
            let bytes = |_: &MemoryMap| vec![byte; len as usize];
            let Some((object, at)) = world.begin_bulk(self, offset, len, bytes) else { return };
            world.memory.range_mut(object, at, len).fill(byte);
            world.end_bulk(object, at, len, Some(byte.into()));
        });
    }

    fn copy_from(&self, offset: u64, source: &Self, source_offset: u64, len: u64) {
        world::access(|world| {
            world.drain_acting();
            let Some((from, from_at)) = world.begin(source, source_offset, len, false) else {
                // What leads nowhere reads as zeroes.
                let bytes = |_: &MemoryMap| vec![0; len as usize];
                if let Some((object, at)) = world.begin_bulk(self, offset, len, bytes) {
                    world.memory.range_mut(object, at, len).fill(0);
                    world.end_bulk(object, at, len, Some(0));
                }
                return;
            };
            let bytes = |memory: &MemoryMap| memory.range(from, from_at, len).to_vec();
            let Some((object, at)) = world.begin_bulk(self, offset, len, bytes) else { return };
            world.memory.copy((from, from_at), (object, at), len);
            // Every store to the place that they were copied from is in the trace.
            world.end_bulk(object, at, len, Some(u64::from(from) << 40 | from_at));
        });
    }

    fn fence(order: Ordering) {
        // Acquire and Release cost nothing on x86: loads stay in order, and so do stores.
        if order == Ordering::SeqCst {
            world::with(World::drain_acting);
        }
    }

    fn reached(point: u16) {
        world::with(|world| world.reach(Reached::ALL[usize::from(point)]));
    }
}

/// A mapping that a process holds.
#[derive(Debug)]
pub struct SimMemory {
    window: SimWindow,
}

impl SimMemory {
    /// Maps a range of an object for the acting process (or for nobody, outside of one).
    pub(crate) fn new(world: &mut World, object: u32, start: u64, len: u64) -> Self {
        let process = world.acting_process();
        Self { window: world.memory.map(object, start, len, process) }
    }
}

impl Drop for SimMemory {
    fn drop(&mut self) {
        world::try_with(|world| {
            if !world.is_fenced() {
                // To unmap is a system call: what was stored before has reached memory.
                world.drain_acting();
                world.memory.unmap(self.window.mapping);
            }
        });
    }
}

impl Memory for SimMemory {
    type Window = SimWindow;
    type Handle = crate::unix::SimHandle;

    fn window(&self) -> SimWindow {
        self.window
    }

    fn is_lost(&self) -> bool {
        world::with(|world| world.memory.mappings[self.window.mapping as usize].lost)
    }

    fn handle(&self) -> Result<Self::Handle> {
        world::with(|world| Ok(crate::unix::SimHandle::memory(world.memory.place(&self.window).0)))
    }
}

/// Maps what a handle stands for; checks the range by the object's size.
pub(crate) fn map_handle(object: u32, offset: u64, len: u64, access: Access) -> Result<SimMemory> {
    world::with(|world| {
        world.crash_point();
        let inside = offset.checked_add(len).is_some_and(|end| end <= world.memory.object_len(object));
        if len == 0 || !inside {
            return Err(ErrorKind::Invalid.into());
        }
        if world.faults.strike(FaultKind::NoMappings, |_| 0).is_some() {
            return Err(ErrorKind::OutOfResources.into());
        }
        let memory = SimMemory::new(world, object, offset, len);
        world.memory.mappings[memory.window.mapping as usize].writable = access == Access::ReadWrite;
        Ok(memory)
    })
}
