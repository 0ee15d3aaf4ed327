//! The machine's clock.
//!
//! CLOCK_MONOTONIC: it belongs to the machine and begins anew only when it boots. It stands still while the machine is
//! suspended, and so it should: the devices were suspended as well, and no time-out of theirs has run in the meantime
//! (CLOCK_BOOTTIME would make all of them expire at once).

use runtime::Instant;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Now. About 20 ns, without entering the kernel.
#[inline]
pub(crate) fn now() -> Instant {
    Instant(nanoseconds(clock_gettime(ClockId::Monotonic)))
}

/// The time of day, in nanoseconds since 1970.
pub(crate) fn unix_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

#[inline]
fn nanoseconds(time: Timespec) -> u64 {
    // Neither clock is ever negative, or beyond the year 2554.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
