//! Following a run while it happens: every line of its log and every record of its trace, in order, as they come.
//!
//! Whoever follows changes nothing: it draws nothing, and the trace's hash does not know of it. It is called while the
//! world is borrowed, and must not touch the world.

use crate::check::Observation;
use crate::faults::Fault;
use crate::trace::Record;
use runtime::{Event, FileOp};
use std::fmt;
use xxhash_rust::xxh3::xxh3_64;

/// Whoever follows a run.
pub trait Follower {
    /// Something happened.
    fn follow(&mut self, at_ns: u64, what: Followed<'_>);
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Followed<'a> {
    /// A record of the trace, with its two words.
    Record(Record, u64, u64),
    /// The bytes that belong to the last record.
    Bytes(&'a [u8]),
    /// A line of the log.
    Line(&'a str),
    /// A fault struck, in the step that just ended.
    Fault(Fault),
    /// Guest so-and-so, or its front-end, saw something; a line of the log says it, too.
    Saw(usize, &'a Observation<'a>),
    /// The target's flight recorder was given an event on this core; a line says it, too.
    Event(u32, &'a Event),
    /// A process, by number, began, was ready, or ended; a line says it, too.
    Life(u32, LifeChange<'a>),
    /// A disk and the number of an operation of it, which began or ended.
    Disk(u32, u32, DiskChange),
}

/// What became of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeChange<'a> {
    /// It began, with these cores, numbered over all processes.
    Began {
        /// Its machine.
        machine: u32,
        /// Its first core.
        first_core: u32,
        /// How many there are.
        cores: u16,
    },
    /// It serves.
    Ready,
    /// It ended, in this way.
    Ended(&'a str),
}

/// What became of an operation of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskChange {
    /// The disk has it.
    Began {
        /// What it does.
        op: FileOp,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// It took effect, or did not.
    Ended(&'static str),
}

/// What a follower keeps of one happening: two that are equal are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, in nanoseconds of the world's clock.
    pub at_ns: u64,
    /// What.
    pub what: Kept,
}

/// What a follower keeps of what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A record of the trace.
    Record(Record, u64, u64),
    /// Bytes of the last record: how many, and their digest.
    Bytes(usize, u64),
    /// A line of the log.
    Line(Box<str>),
    /// A fault.
    Fault(Fault),
}

impl Entry {
    /// What is kept of it, where a line does not say it already.
    #[must_use]
    pub fn of(at_ns: u64, what: Followed<'_>) -> Option<Self> {
        let what = match what {
            Followed::Saw(..) | Followed::Event(..) | Followed::Life(..) | Followed::Disk(..) => return None,
            Followed::Record(record, a, b) => Kept::Record(record, a, b),
            Followed::Bytes(bytes) => Kept::Bytes(bytes.len(), xxh3_64(bytes)),
            Followed::Line(text) => Kept::Line(text.into()),
            Followed::Fault(fault) => Kept::Fault(fault),
        };
        Some(Self { at_ns, what })
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Object and offset, as records of memory pack them.
        const fn place(word: u64) -> (u64, u64) {
            (word >> 40, word & ((1 << 40) - 1))
        }
        match self {
            Self::Line(text) => f.write_str(text),
            Self::Fault(Fault { kind, opportunity, parameter }) => {
                write!(f, "fault {} strikes: opportunity {opportunity}, parameter {parameter}", kind.name())
            }
            Self::Bytes(len, digest) => write!(f, "  its {len} bytes, digest {digest:016x}"),
            Self::Record(record, a, b) => match record {
                Record::Draw => write!(f, "draw {b} of stream {a}"),
                Record::Store => {
                    let (object, rest) = place(*a);
                    let (len, offset) = (rest >> 36, rest & ((1 << 36) - 1));
                    write!(f, "store of {len} bytes to object {object} at {offset:#x}: {b:#x}")
                }
                Record::Bulk => {
                    let (object, offset) = place(*a);
                    write!(f, "bulk store to object {object} at {offset:#x}: {b} bytes")
                }
                Record::Packet => {
                    let (from, to, sequence) = (a >> 48, a >> 32 & 0xffff, a & 0xffff_ffff);
                    write!(f, "packet from port {from} to {to} at {sequence:#x}: {} bytes", b & 0xffff_ffff)
                }
                Record::TcpSend => write!(f, "send on TCP end {a}: {b} bytes"),
                Record::Send => write!(f, "send on socket end {a}: {b} bytes"),
                Record::Ring => write!(f, "eventfd {a} is rung"),
                Record::Step if a & 1 == 0 => {
                    write!(f, "core {} steps; digest of all draws so far {b:016x}", a >> 1)
                }
                Record::Step => write!(f, "model {} steps; digest of all draws so far {b:016x}", a >> 1),
                Record::Disk => write!(f, "disk operation {a} takes effect at byte {b}"),
                Record::Life => write!(f, "life {a} changes: {b}"),
                Record::Event => write!(f, "recorder event {a:#x}: {b:#x}"),
                Record::Job => write!(f, "offloaded job {a} of process {b} ends"),
                Record::Model => write!(f, "model notes {a:#x}, {b:#x}"),
                Record::Fault => write!(f, "fault noted: {a}, {b}"),
                Record::Register => {
                    let (function, rest) = place(*a);
                    let (len, offset) = (rest >> 36, rest & ((1 << 36) - 1));
                    write!(f, "store of {len} bytes to function {function} at {offset:#x}: {b:#x}")
                }
            },
        }
    }
}
