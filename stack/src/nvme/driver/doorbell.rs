//! A queue's doorbell: a register, and where the controller offers it a shadow of that register in memory, which spares
//! most of the writes to the register (section 5.8; section B.5 tells the order).
//!
//! With a shadow the new value goes to memory, and the register is written only when it passes the EventIdx that the
//! controller keeps beside it. The controller does the mirror image: it writes EventIdx, fences, and looks at the shadow
//! again before it stops looking. Either the controller sees the value or the driver sees the EventIdx; for that the
//! shadow's store must be visible before EventIdx is loaded, the one order that x86 does not keep by itself.

use core::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use runtime::{Registers, Window};

/// The two pages of Doorbell Buffer Config.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShadowPages<W> {
    /// Written by the driver.
    pub(super) shadow: W,
    /// Written by the controller.
    pub(super) event_idx: W,
}

/// The doorbell of one submission or completion queue.
#[derive(Debug)]
pub(super) struct Doorbell<W, R> {
    registers: R,
    /// The register's place.
    register: u64,
    /// The pages, and the doorbell's place in both.
    shadow: Option<(ShadowPages<W>, u64)>,
    /// The value that the controller was last given.
    rung: u16,
    /// Stores to the register so far.
    writes: u64,
}

impl<W: Window, R: Registers> Doorbell<W, R> {
    /// A doorbell whose queue is new: its value is 0, in the pages too.
    pub(super) fn new(registers: R, register: u64, shadow: Option<(ShadowPages<W>, u64)>) -> Self {
        Self { registers, register, shadow, rung: 0, writes: 0 }
    }

    /// Zeroes a queue's place in the pages: before the queue is created, since what an older queue of that number left
    /// there would be read as the new one's.
    pub(super) fn clear(pages: &ShadowPages<W>, slot: u64) {
        pages.shadow.store_u32(slot, 0, Relaxed);
        pages.event_idx.store_u32(slot, 0, Relaxed);
    }

    /// Gives the controller a new value. What the core stored before is visible to whoever sees it.
    #[inline]
    pub(super) fn ring(&mut self, value: u16) {
        let before = core::mem::replace(&mut self.rung, value);
        if let Some((pages, slot)) = &self.shadow {
            // Release: the entries below the value are visible before it.
            pages.shadow.store_u32(*slot, u32::from(value), Release);
            // Pairs with the controller's fence between writing EventIdx and looking at the shadow again.
            W::fence(SeqCst);
            let event = pages.event_idx.load_u32(*slot, Relaxed) as u16;
            if !passed(event, value, before) {
                return;
            }
        }
        self.registers.store_u32(self.register, u32::from(value));
        self.writes += 1;
    }

    /// Stores to the register so far.
    pub(super) const fn writes(&self) -> u64 {
        self.writes
    }
}

/// Whether going from `before` to `value` passes `event`: `event` lies in `before..value`, counted modulo 2^16. A queue's
/// values wrap earlier than that; at its wrap this says yes, and the register is written once more than needed.
const fn passed(event: u16, value: u16, before: u16) -> bool {
    value.wrapping_sub(event).wrapping_sub(1) < value.wrapping_sub(before)
}

#[cfg(test)]
mod tests {
    use super::passed;

    #[test]
    fn the_register_is_written_when_the_event_is_passed() {
        assert!(passed(5, 6, 5), "the controller waits for what comes after 5");
        assert!(passed(7, 9, 5));
        assert!(!passed(9, 9, 5), "it looks at 9 by itself");
        assert!(!passed(4, 9, 5), "it was woken for 4 before");
        assert!(passed(u16::MAX, 1, u16::MAX - 1), "over the end of 16 bits");
        assert!(passed(u16::MAX, 0, 255), "at the queue's wrap");
    }
}
