//! What one poll of a device may cost its core.
//!
//! A core serves many devices in turn, and a guest may fill 128 rings of 32768 entries with the longest chains there are.
//! So a poll takes requests only until one of the limits below is reached, which is some hundred microseconds; the next
//! one goes on with the queue after it. The last request may go past a limit by what one request can be.

/// Most requests that one poll takes from one ring, so that the other rings of the device get their turn.
pub(super) const MAX_TAKEN_PER_RING: u16 = 128;
/// Most requests that one poll decodes.
const MAX_REQUESTS: i64 = 512;
/// Most descriptors that one poll walks.
const MAX_DESCRIPTORS: i64 = 4096;
/// Most bytes of payload that one poll submits: a bdev in memory copies them at once.
const MAX_BYTES: i64 = 4 << 20;

/// What is left of one poll's share; what was gone past is less than 0.
pub(super) struct Budget {
    requests: i64,
    descriptors: i64,
    bytes: i64,
}

impl Budget {
    pub(super) const fn new() -> Self {
        Self { requests: MAX_REQUESTS, descriptors: MAX_DESCRIPTORS, bytes: MAX_BYTES }
    }

    /// A request of so many descriptors was decoded, well or not.
    #[inline]
    pub(super) fn decoded(&mut self, descriptors: u32) {
        self.requests -= 1;
        self.descriptors -= i64::from(descriptors);
    }

    /// So many bytes of payload were submitted.
    #[inline]
    pub(super) fn submitted(&mut self, bytes: u64) {
        self.bytes -= bytes as i64;
    }

    /// Whether the poll takes no more.
    #[inline]
    pub(super) const fn is_spent(&self) -> bool {
        self.requests <= 0 || self.descriptors <= 0 || self.bytes <= 0
    }
}
