//! Memory that somebody else (a guest, a device, the next life of the process) reads and writes at the same time.

use core::fmt::Debug;
use core::sync::atomic::Ordering;

/// A range of shared memory. A window is a plain value, copied freely between cores; it keeps nothing alive. The
/// memory below it is there while its [`crate::Memory`] is held: the stack counts the I/O in flight on a region and
/// lets the region go only at zero. Using a window after that is a bug of the stack: the simulator reports it, and on
/// a host it reads and writes memory in which no Rust object ever lives, so that it is wrong but not undefined.
///
/// Values are little-endian, as on x86-64, the architecture that Reprise claims. A typed access must lie inside the
/// window and be aligned to its size *in the window's memory*; both are asserted, since the stack validates every
/// address of a stranger when it makes the window from it. `Ordering` is one that the C++ memory model allows for the
/// access (`Relaxed` or `Acquire` for a load, `Relaxed` or `Release` for a store).
///
/// Everything may be called on any core, at any time; nothing blocks. Each store is a point where the process may die.
pub trait Window: Copy + Debug + Send + Sync + 'static {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether the window has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part of `len` bytes at `offset`, or `None` where it does not lie inside the window.
    fn slice(&self, offset: u64, len: u64) -> Option<Self>;

    /// Whether the window's first byte lies at a multiple of `alignment` bytes (a power of two, at most 4096).
    fn is_aligned(&self, alignment: u64) -> bool;

    /// Loads one byte.
    fn load_u8(&self, offset: u64, order: Ordering) -> u8;
    /// Loads two bytes, aligned.
    fn load_u16(&self, offset: u64, order: Ordering) -> u16;
    /// Loads four bytes, aligned.
    fn load_u32(&self, offset: u64, order: Ordering) -> u32;
    /// Loads eight bytes, aligned.
    fn load_u64(&self, offset: u64, order: Ordering) -> u64;

    /// Stores one byte.
    fn store_u8(&self, offset: u64, value: u8, order: Ordering);
    /// Stores two bytes, aligned.
    fn store_u16(&self, offset: u64, value: u16, order: Ordering);
    /// Stores four bytes, aligned.
    fn store_u32(&self, offset: u64, value: u32, order: Ordering);
    /// Stores eight bytes, aligned.
    fn store_u64(&self, offset: u64, value: u64, order: Ordering);

    /// Sets `bits` in one byte as one sequentially consistent operation and returns what was there before.
    fn fetch_or_u8(&self, offset: u64, bits: u8) -> u8;

    /// Copies bytes out. No order among the bytes, and each is read once.
    fn read(&self, offset: u64, into: &mut [u8]);

    /// Copies bytes in. No order among the bytes: a crash in the middle leaves any subset of the aligned 8-byte words
    /// written, so nothing that recovery relies on is ever written this way.
    fn write(&self, offset: u64, bytes: &[u8]);

    /// Sets `len` bytes to `byte`; torn by a crash like [`Window::write`].
    fn fill(&self, offset: u64, len: u64, byte: u8);

    /// Copies `len` bytes from another window; torn by a crash like [`Window::write`]. Overlap gives any mixture.
    fn copy_from(&self, offset: u64, source: &Self, source_offset: u64, len: u64);

    /// A fence of the calling core over all windows: `SeqCst` drains the core's store buffer before any later load;
    /// `Acquire` and `Release` as in the C++ memory model.
    fn fence(order: Ordering);

    /// The code has come to a point that a search of failures must come to sometimes; the stack gives the numbers their
    /// meaning (`stack::reached`). The simulator counts them. On a real host it is nothing.
    #[inline(always)]
    fn reached(_point: u16) {}
}
