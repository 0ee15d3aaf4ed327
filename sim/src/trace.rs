//! The trace of a run: one number that two runs share exactly when they did the same things in the same order, and,
//! where it was asked for, a readable log.
//!
//! The hash covers every draw, every store to shared memory (region, offset, length, value), every message, ring, wake-up and
//! completion. Host facts (addresses, times, handles) never reach it.

use crate::follow::{Followed, Follower};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

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

/// The running hash: two lanes of a word, into which each record is mixed by a multiplication. It tells runs apart that differ
/// by chance or by a bug, and is safe against nobody who means harm.
#[derive(Default)]
pub struct Trace {
    lanes: [u64; 2],
    records: u64,
    /// The world's clock, for whoever follows.
    at_ns: u64,
    follower: Option<Box<dyn Follower>>,
}

/// Odd, and without pattern: the fractions of the golden ratio and of the square root of three.
const MULTIPLIERS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xbb67_ae85_84ca_a73b];

impl Trace {
    /// Adds a record.
    #[inline]
    pub fn add(&mut self, record: Record, a: u64, b: u64) {
        self.records += 1;
        // Kinds are spread over all bits, of which the words of some kinds use every one.
        self.mix(a ^ (record as u64).wrapping_mul(MULTIPLIERS[1]), b);
        if self.is_followed() {
            self.tell(Followed::Record(record, a, b));
        }
    }

    /// Takes two words in. What a lane becomes is another one for each word and for each state before, so that what once
    /// differed does not become the same by itself.
    #[inline]
    fn mix(&mut self, a: u64, b: u64) {
        let [first, second] = self.lanes;
        let first = (first.rotate_left(23) ^ a).wrapping_mul(MULTIPLIERS[0]);
        let second = (second.rotate_left(29) ^ b).wrapping_mul(MULTIPLIERS[1]);
        self.lanes = [first, second ^ first];
    }

    /// Adds bytes to the last record.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.mix(xxh3_64(bytes), bytes.len() as u64);
        if self.is_followed() {
            self.tell(Followed::Bytes(bytes));
        }
    }

    /// Adds bytes to the last record that one word tells of as well as they do.
    pub(crate) fn known_bytes(&mut self, by: u64, bytes: &[u8]) {
        self.mix(by, bytes.len() as u64);
        if self.is_followed() {
            self.tell(Followed::Bytes(bytes));
        }
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

    /// The hash of everything so far.
    #[must_use]
    pub fn finish(&self) -> u128 {
        let mut bytes = [0; 24];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip([self.lanes[0], self.lanes[1], self.records]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        xxh3_128(&bytes)
    }

    /// How many records there were.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }
}
