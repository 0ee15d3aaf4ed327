//! The file format of the flight recorder: one file a core and life, written by `hw` while it runs, read after a crash by
//! `reprise recorder` and `reprise-sim import`.
//!
//! A header of one page, then a ring of events. An event is written first and counted afterwards, so whoever reads the
//! file of a dead process finds `written` whole events; when the ring has gone round, the oldest one that the count
//! promises may be the one that was being overwritten, and is left out. All numbers are little-endian.

use alloc::vec::Vec;
use core::fmt;
use runtime::Event;

/// The first bytes of the file.
pub const MAGIC: [u8; 8] = *b"REPRISE\x01";
/// The only version there is. It changes with the layout; kinds of events are only ever added.
pub const VERSION: u32 = 1;
/// Where the events begin, in bytes.
pub const HEADER_LEN: u64 = 4096;
/// Length of one event, in bytes.
pub const EVENT_LEN: u64 = size_of::<Event>() as u64;
/// Most events that a reader accepts the ring to have.
const CAPACITY_MAX: u64 = 1 << 24;

/// Offsets of the header's fields.
mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const CORE: usize = 12;
    pub(super) const CAPACITY: usize = 16;
    pub(super) const STARTED_NS: usize = 24;
    pub(super) const STARTED_UNIX_NS: usize = 32;
    /// On a cache line of its own: it is stored with every event.
    pub(super) const WRITTEN: usize = 64;
}

/// Where the count of events written is, 8 bytes.
pub const WRITTEN_OFFSET: u64 = at::WRITTEN as u64;

/// What a recorder says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The core that it belongs to.
    pub core: u32,
    /// Events that the ring holds.
    pub capacity: u64,
    /// When it was started, on the machine's clock ([`Event::at_ns`]).
    pub started_ns: u64,
    /// The same moment in nanoseconds since 1970, by which an event's moment becomes a time of day.
    pub started_unix_ns: u64,
}

impl Header {
    /// The bytes at the beginning of a file in which nothing was written yet.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN as usize] {
        let mut bytes = [0; HEADER_LEN as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(at::MAGIC, &MAGIC);
        put(at::VERSION, &VERSION.to_le_bytes());
        put(at::CORE, &self.core.to_le_bytes());
        put(at::CAPACITY, &self.capacity.to_le_bytes());
        put(at::STARTED_NS, &self.started_ns.to_le_bytes());
        put(at::STARTED_UNIX_NS, &self.started_unix_ns.to_le_bytes());
        bytes
    }

    /// Length of the whole file, in bytes.
    #[must_use]
    pub const fn file_len(&self) -> u64 {
        HEADER_LEN + self.capacity * EVENT_LEN
    }
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// What it says of itself.
    pub header: Header,
    /// Number of the first event that is still there; the ones before were overwritten.
    pub first: u64,
    /// The events, oldest first.
    pub events: Vec<Event>,
}

/// Why a file cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordingError {
    /// It does not begin as a recording does.
    NoRecording,
    /// It is of another version.
    Version(u32),
    /// It ends before the ring does, or says impossible things of itself.
    Damaged,
}

impl fmt::Display for RecordingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRecording => f.write_str(
                "this is no flight recording of Reprise (it does not begin with \"REPRISE\\x01\")",
            ),
            Self::Version(version) => {
                write!(f, "the recording is of version {version}; this program reads version {VERSION}")
            }
            Self::Damaged => f.write_str(
                "the recording is damaged: it is shorter than it says, or its counts are impossible",
            ),
        }
    }
}

impl core::error::Error for RecordingError {}

/// Reads a whole file.
pub fn decode(bytes: &[u8]) -> Result<Recording, RecordingError> {
    if bytes.get(at::MAGIC..at::MAGIC + MAGIC.len()) != Some(&MAGIC[..]) {
        return Err(RecordingError::NoRecording);
    }
    if (bytes.len() as u64) < HEADER_LEN {
        return Err(RecordingError::Damaged);
    }
    let version = u32_at(bytes, at::VERSION);
    if version != VERSION {
        return Err(RecordingError::Version(version));
    }
    let header = Header {
        core: u32_at(bytes, at::CORE),
        capacity: u64_at(bytes, at::CAPACITY),
        started_ns: u64_at(bytes, at::STARTED_NS),
        started_unix_ns: u64_at(bytes, at::STARTED_UNIX_NS),
    };
    let written = u64_at(bytes, at::WRITTEN);
    let capacity_is_possible = (1..=CAPACITY_MAX).contains(&header.capacity);
    if !capacity_is_possible || (bytes.len() as u64) < header.file_len() {
        return Err(RecordingError::Damaged);
    }
    let first = if written < header.capacity { 0 } else { written - header.capacity + 1 };
    let events: Vec<_> = (first..written)
        .map(|number| event_at(bytes, (HEADER_LEN + number % header.capacity * EVENT_LEN) as usize))
        .collect();
    // 0 is no kind: an event that was counted and never written.
    if events.iter().any(|event| event.kind == 0) {
        return Err(RecordingError::Damaged);
    }
    Ok(Recording { header, first, events })
}

/// An event as four words, the way it lies in the file.
#[must_use]
pub fn event_words(event: &Event) -> [u64; 4] {
    let Event { at_ns, kind, device, queue, detail, a, b } = *event;
    let small = u64::from(kind) | u64::from(device) << 16 | u64::from(queue) << 32 | u64::from(detail) << 48;
    [at_ns, small, a, b]
}

fn event_at(bytes: &[u8], at: usize) -> Event {
    let [at_ns, small, a, b] = [0, 8, 16, 24].map(|field| u64_at(bytes, at + field));
    let part = |shift: u32| (small >> shift) as u16;
    Event { at_ns, kind: part(0), device: part(16), queue: part(32), detail: part(48), a, b }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header { core: 3, capacity: 4, started_ns: 10, started_unix_ns: 20 };

    fn event(number: u64) -> Event {
        Event { at_ns: number, kind: 1, device: 2, queue: 3, detail: 4, a: number * 2, b: u64::MAX - number }
    }

    /// A file in which `written` events were written.
    fn file(written: u64) -> Vec<u8> {
        let mut bytes = HEADER.encode().to_vec();
        bytes.resize(HEADER.file_len() as usize, 0);
        for number in 0..written {
            let at = (HEADER_LEN + number % HEADER.capacity * EVENT_LEN) as usize;
            for (word, value) in event_words(&event(number)).iter().enumerate() {
                bytes[at + word * 8..at + word * 8 + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        bytes[at::WRITTEN..at::WRITTEN + 8].copy_from_slice(&written.to_le_bytes());
        bytes
    }

    #[test]
    fn a_ring_gives_its_events_oldest_first_and_not_the_one_that_may_be_torn() {
        for (written, first) in [(0, 0), (1, 0), (3, 0), (4, 1), (5, 2), (11, 8)] {
            let recording = decode(&file(written)).unwrap();
            assert_eq!((recording.header, recording.first), (HEADER, first), "{written}");
            assert_eq!(recording.events, (first..written).map(event).collect::<Vec<_>>(), "{written}");
        }
    }

    #[test]
    fn what_is_no_recording_is_refused_and_never_a_panic() {
        let good = file(5);
        assert_eq!(decode(b""), Err(RecordingError::NoRecording));
        assert_eq!(decode(&good[1..]), Err(RecordingError::NoRecording));
        for len in 8..good.len() {
            assert_eq!(decode(&good[..len]), Err(RecordingError::Damaged), "{len} bytes");
        }
        let with = |at: usize, value: u64| {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            decode(&bytes)
        };
        assert_eq!(with(at::VERSION, 2), Err(RecordingError::Version(2)));
        for capacity in [0, 5, u64::MAX, u64::MAX / 32] {
            assert_eq!(with(at::CAPACITY, capacity), Err(RecordingError::Damaged), "{capacity}");
        }
        assert!(with(at::WRITTEN, u64::MAX).is_ok());
        // The third of the ring's slots holds event 2, the oldest that counts; its second word holds the kind.
        assert_eq!(with((HEADER_LEN + 2 * EVENT_LEN) as usize + 8, 0), Err(RecordingError::Damaged));
    }
}
