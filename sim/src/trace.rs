//! The trace of a run: one number that two runs share exactly when they did the same things in the same order, and,
//! where it was asked for, a readable log.
//!
//! The hash covers every draw, every store to shared memory (region, offset, length, value), every message, ring, wake-up and
//! completion. Host facts (addresses, times, handles) never reach it.

use crate::follow::{Followed, Follower};
use xxhash_rust::xxh3::Xxh3;

/// Words that are gathered before they are hashed.
const GATHERED: usize = 1024;

/// What a hashed record is about. The numbers are part of the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Record {
    /// A word drawn from a stream.
    Draw = 1,
    /// A store that reached memory: object, length and offset in the first word, the value in the second.
    Store = 2,
    /// A bulk store that reached memory.
    Bulk = 3,
    /// Bytes sent on a stream.
    Send = 4,
    /// A notifier rung.
    Ring = 5,
    /// A step of an actor.
    Step = 6,
    /// An operation of a disk that took effect.
    Disk = 7,
    /// A process or a machine began or ended.
    Life = 8,
    /// An event of the target's flight recorder.
    Event = 9,
    /// An offloaded job ended.
    Job = 10,
    /// Something that a guest or a front-end did.
    Model = 11,
    /// A fault that struck.
    Fault = 12,
    /// A store to a register that reached its function.
    Register = 13,
    /// A packet that left: ports and sequence number in the first word, acknowledgment and length in the second.
    Packet = 14,
    /// Bytes sent on a TCP stream.
    TcpSend = 15,
}

/// The running hash.
pub struct Trace {
    hash: Xxh3,
    gathered: Vec<u8>,
    records: u64,
    /// The world's clock, for whoever follows.
    at_ns: u64,
    follower: Option<Box<dyn Follower>>,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            hash: Xxh3::new(),
            gathered: Vec::with_capacity(8 * GATHERED + 64),
            records: 0,
            at_ns: 0,
            follower: None,
        }
    }
}

impl Trace {
    /// Adds a record.
    #[inline]
    pub fn add(&mut self, record: Record, a: u64, b: u64) {
        self.records += 1;
        self.gathered.push(record as u8);
        self.gathered.extend_from_slice(&a.to_le_bytes());
        self.gathered.extend_from_slice(&b.to_le_bytes());
        if self.gathered.len() >= 8 * GATHERED {
            self.gather();
        }
        if self.is_followed() {
            self.tell(Followed::Record(record, a, b));
        }
    }

    /// Adds bytes to the last record.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.gather();
        self.hash.update(bytes);
        self.tell(Followed::Bytes(bytes));
    }

    /// Lets somebody follow from now on.
    pub fn follow(&mut self, at_ns: u64, follower: Box<dyn Follower>) {
        (self.at_ns, self.follower) = (at_ns, Some(follower));
    }

    /// Whether somebody follows.
    #[inline]
    pub(crate) fn is_followed(&self) -> bool {
        self.follower.is_some()
    }

    /// The clock has moved on.
    #[inline]
    pub(crate) fn set_clock(&mut self, at_ns: u64) {
        self.at_ns = at_ns;
    }

    /// Tells whoever follows; nothing of it is hashed.
    #[cold]
    pub(crate) fn tell(&mut self, what: Followed<'_>) {
        if let Some(follower) = &mut self.follower {
            follower.follow(self.at_ns, what);
        }
    }

    fn gather(&mut self) {
        self.hash.update(&self.gathered);
        self.gathered.clear();
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn finish(&mut self) -> u128 {
        self.gather();
        self.hash.digest128()
    }

    /// How many records there were.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }
}
