//! A core's memory for the data of commands: buffers of a few sizes, shared by all connections of the core.
//!
//! A command holds one buffer, as large as its data or larger. When none is free, commands wait, each in its connection; a
//! connection that waits for data which only its host can send keeps its buffer, but no more than its share
//! ([`Arena::share`]).

use super::TRANSFER_BYTES_MAX;
use alloc::vec::Vec;
use runtime::{Memory, Platform, Window};

/// How many buffers of each size a core has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaSizes {
    /// Of 4 KiB.
    pub small: u32,
    /// Of 16 KiB.
    pub middle: u32,
    /// Of the longest transfer, 128 KiB.
    pub large: u32,
}

impl Default for ArenaSizes {
    fn default() -> Self {
        Self { small: 1024, middle: 256, large: 96 }
    }
}

/// Bytes of the buffers.
const SIZES: [u32; 3] = [4 << 10, 16 << 10, TRANSFER_BYTES_MAX];

/// A buffer on loan. It must come back to its arena.
#[derive(Debug)]
pub(super) struct Buffer<W> {
    pub(super) window: W,
    class: u8,
    index: u32,
}

struct Class<P: Platform> {
    memory: P::Memory,
    bytes: u32,
    count: u32,
    free: Vec<u32>,
}

/// A core's buffers.
pub(super) struct Arena<P: Platform> {
    classes: Vec<Class<P>>,
}

impl<P: Platform> Arena<P> {
    /// Errors: those of [`Platform::shared_memory`].
    pub(super) fn new(platform: &P, sizes: ArenaSizes) -> runtime::Result<Self> {
        let counts = [sizes.small, sizes.middle, sizes.large];
        let mut classes = Vec::new();
        for (bytes, count) in SIZES.into_iter().zip(counts) {
            let count = count.max(1);
            let memory = platform.shared_memory("nvme-tcp-data", u64::from(bytes) * u64::from(count))?;
            classes.push(Class { memory, bytes, count, free: (0..count).rev().collect() });
        }
        Ok(Self { classes })
    }

    /// A buffer of at least `len` bytes, at most [`TRANSFER_BYTES_MAX`].
    pub(super) fn take(&mut self, len: u32) -> Option<Buffer<P::Window>> {
        let fits = self.classes.iter_mut().enumerate().filter(|(_, class)| class.bytes >= len);
        for (number, class) in fits {
            if let Some(index) = class.free.pop() {
                let bytes = u64::from(class.bytes);
                let window = class.memory.window().slice(u64::from(index) * bytes, bytes);
                let window = window.expect("a buffer lies inside its memory");
                return Some(Buffer { window, class: number as u8, index });
            }
        }
        None
    }

    pub(super) fn give(&mut self, buffer: Buffer<P::Window>) {
        let class = &mut self.classes[usize::from(buffer.class)];
        class.free.push(buffer.index);
        debug_assert!(class.free.len() <= class.count as usize, "a buffer comes back once");
    }

    /// Most buffers that one connection may hold for data which its host has still to send.
    pub(super) fn share(&self) -> usize {
        let count = self.classes.iter().map(|class| class.count).min().unwrap_or(1);
        (count as usize / 2).max(1)
    }
}
