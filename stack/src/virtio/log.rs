//! The dirty log of a live migration: a bitmap, shared with the front-end, of guest pages that the device wrote to
//! (vhost-user specification, "Migration": one bit a page of 4096 bytes, set atomically *after* the write).

use runtime::{Memory, Platform, Window};

/// Bytes of guest memory that one bit stands for (`VHOST_LOG_PAGE`).
pub const LOG_PAGE_SIZE: u64 = 4096;

/// A mapped log.
pub struct DirtyLog<P: Platform> {
    window: P::Window,
    /// Keeps the window usable.
    memory: P::Memory,
}

impl<P: Platform> DirtyLog<P> {
    /// A log over a mapping that the front-end gave (`SET_LOG_BASE`).
    #[must_use]
    pub fn new(memory: P::Memory) -> Self {
        Self { window: memory.window(), memory }
    }

    /// Marks the pages that `len` bytes at a guest physical address touch. Pages beyond the log are passed over: the
    /// front-end sized it for the memory that it migrates.
    pub fn mark(&self, guest_address: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = guest_address.saturating_add(len - 1) / LOG_PAGE_SIZE;
        let mut page = guest_address / LOG_PAGE_SIZE;
        while page <= last && page / 8 < self.window.len() {
            // All bits of this byte that belong to the range, in one atomic operation.
            let first_bit = page % 8;
            let bits_here = (8 - first_bit).min(last - page + 1);
            let mask = ((1_u16 << bits_here) - 1) << first_bit;
            self.window.fetch_or_u8(page / 8, mask as u8);
            page += bits_here;
        }
    }

    /// Whether the memory below the log went away.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.memory.is_lost()
    }
}
