//! Time as the stack knows it: nanoseconds of a machine's monotonic clock.

use core::time::Duration;

/// A moment, in nanoseconds of the machine's monotonic clock. The clock belongs to the machine and not to a process:
/// it goes on over a process's death and restart, and begins anew only when the machine does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// The moment `duration` later; the clock's end where it would pass it.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Nanoseconds from `earlier` to this moment, 0 when `earlier` is the later one.
    #[must_use]
    pub fn since_ns(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
