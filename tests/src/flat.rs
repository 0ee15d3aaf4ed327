//! The smallest memory that a [`runtime::Window`] can look at: one array a thread, and a death at a chosen store.
//!
//! For tests of rings and of inflight recovery in which every store is a crash point and nothing else matters. The
//! simulator's memory (store buffers, tearing, interleaving) is another, larger thing; here a store happens at once,
//! and [`die_at`] makes the k-th store, and all after it, not happen.

use runtime::Window;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;

thread_local! {
    static MEMORY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Stores that will still happen; `None`: all.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    static STORES: Cell<u64> = const { Cell::new(0) };
}

/// The payload of the unwind that ends a life.
struct Death;

/// Gives the thread `len` zeroed bytes of memory, the old ones gone.
#[must_use]
pub fn memory(len: usize) -> FlatWindow {
    MEMORY.with_borrow_mut(|memory| *memory = vec![0; len]);
    LEFT.set(None);
    FlatWindow { start: 0, len: len as u64 }
}

/// A copy of all bytes.
#[must_use]
pub fn snapshot() -> Vec<u8> {
    MEMORY.with_borrow(Clone::clone)
}

/// Puts a copy back.
pub fn restore(bytes: &[u8]) {
    MEMORY.with_borrow_mut(|memory| memory.copy_from_slice(bytes));
}

/// Runs a life that dies at its `stores`-th store (counted from 0). `None`: it died.
pub fn die_at<T>(stores: u64, life: impl FnOnce() -> T) -> Option<T> {
    LEFT.set(Some(stores));
    let end = catch_unwind(AssertUnwindSafe(life));
    LEFT.set(None);
    match end {
        Ok(value) => Some(value),
        Err(payload) if payload.is::<Death>() => None,
        Err(payload) => resume_unwind(payload),
    }
}

/// Runs something that does not die, and is not counted, in the middle of a life: another one's stores.
pub fn immortal<T>(other: impl FnOnce() -> T) -> T {
    let (left, stores) = (LEFT.take(), STORES.get());
    let value = other();
    LEFT.set(left);
    STORES.set(stores);
    value
}

/// All of the thread's memory.
#[must_use]
pub fn all() -> FlatWindow {
    FlatWindow { start: 0, len: MEMORY.with_borrow(Vec::len) as u64 }
}

/// How many stores `life` makes.
pub fn count_stores<T>(life: impl FnOnce() -> T) -> (u64, T) {
    let before = STORES.get();
    let value = life();
    (STORES.get() - before, value)
}

/// A range of the thread's memory.
#[derive(Clone, Copy, Debug)]
pub struct FlatWindow {
    start: u64,
    len: u64,
}

impl FlatWindow {
    /// The part of `len` bytes at `offset`, which must be there.
    #[must_use]
    pub fn part(&self, offset: u64, len: u64) -> Self {
        self.slice(offset, len).expect("inside the window")
    }

    fn load<const N: usize>(&self, offset: u64) -> [u8; N] {
        assert!(offset + N as u64 <= self.len && (self.start + offset).is_multiple_of(N as u64));
        let at = (self.start + offset) as usize;
        MEMORY.with_borrow(|memory| memory[at..at + N].try_into().expect("N bytes"))
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.len);
        match LEFT.get() {
            Some(0) => resume_unwind(Box::new(Death)),
            Some(left) => LEFT.set(Some(left - 1)),
            None => {}
        }
        STORES.set(STORES.get() + 1);
        let at = (self.start + offset) as usize;
        MEMORY.with_borrow_mut(|memory| memory[at..at + bytes.len()].copy_from_slice(bytes));
    }
}

impl Window for FlatWindow {
    fn len(&self) -> u64 {
        self.len
    }
    fn slice(&self, offset: u64, len: u64) -> Option<Self> {
        (offset.checked_add(len)? <= self.len).then(|| Self { start: self.start + offset, len })
    }
    fn is_aligned(&self, alignment: u64) -> bool {
        self.start.is_multiple_of(alignment)
    }
    fn load_u8(&self, offset: u64, _: Ordering) -> u8 {
        u8::from_le_bytes(self.load(offset))
    }
    fn load_u16(&self, offset: u64, _: Ordering) -> u16 {
        u16::from_le_bytes(self.load(offset))
    }
    fn load_u32(&self, offset: u64, _: Ordering) -> u32 {
        u32::from_le_bytes(self.load(offset))
    }
    fn load_u64(&self, offset: u64, _: Ordering) -> u64 {
        u64::from_le_bytes(self.load(offset))
    }
    fn store_u8(&self, offset: u64, value: u8, _: Ordering) {
        self.store(offset, &value.to_le_bytes());
    }
    fn store_u16(&self, offset: u64, value: u16, _: Ordering) {
        self.store(offset, &value.to_le_bytes());
    }
    fn store_u32(&self, offset: u64, value: u32, _: Ordering) {
        self.store(offset, &value.to_le_bytes());
    }
    fn store_u64(&self, offset: u64, value: u64, _: Ordering) {
        self.store(offset, &value.to_le_bytes());
    }
    fn fetch_or_u8(&self, offset: u64, bits: u8) -> u8 {
        let [before] = self.load(offset);
        self.store(offset, &[before | bits]);
        before
    }
    fn read(&self, offset: u64, into: &mut [u8]) {
        assert!(offset + into.len() as u64 <= self.len);
        let at = (self.start + offset) as usize;
        MEMORY.with_borrow(|memory| into.copy_from_slice(&memory[at..at + into.len()]));
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.store(offset, bytes);
    }
    fn fill(&self, offset: u64, len: u64, byte: u8) {
        self.store(offset, &vec![byte; len as usize]);
    }
    fn copy_from(&self, offset: u64, source: &Self, source_offset: u64, len: u64) {
        let mut bytes = vec![0; len as usize];
        source.read(source_offset, &mut bytes);
        self.store(offset, &bytes);
    }
    fn fence(_: Ordering) {}
}
