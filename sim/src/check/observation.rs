//! What the checkers are told: the words in which guests, front-ends and the world report what they saw.
//!
//! An observation carries no host address and no host time, so that it can go into a trace as it is.

pub use crate::world::Agent;

use runtime::Instant;
use std::fmt;

/// A request of one guest, numbered from 1 in the order in which the guest made them available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What a request asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// VIRTIO_BLK_T_IN.
    Read,
    /// VIRTIO_BLK_T_OUT.
    Write,
    /// VIRTIO_BLK_T_FLUSH.
    Flush,
    /// VIRTIO_BLK_T_GET_ID.
    GetId,
    /// VIRTIO_BLK_T_DISCARD.
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    WriteZeroes,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Read, Self::Write, Self::Flush, Self::GetId, Self::Discard, Self::WriteZeroes];

    /// Whether a completion changes what reads may return.
    #[must_use]
    pub fn changes_content(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes)
    }

    /// The kind's name in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::GetId => "get-id",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
        }
    }
}

/// The status byte of a completed request (virtio 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok,
    /// VIRTIO_BLK_S_IOERR.
    IoError,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported,
    /// The device left the byte as the driver had set it before.
    Untouched,
    /// A value that the specification does not have.
    Unknown(u8),
}

/// Whether a completed write may be lost with the power (virtio 5.2.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// Durable after a flush.
    Writeback,
    /// Durable at completion.
    Writethrough,
    /// The mode changed while the request was out: nothing is promised before a flush.
    Changing,
}

/// What one 512-byte sector held when a read brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// All zeroes.
    Zero,
    /// Every word is of this write.
    Whole(u32),
    /// Aligned 8-byte words of several writes (0 stands for zeroes), each named once, in order of appearance.
    Mixed(&'a [u32]),
    /// At least one word is of no write: torn inside of a word (where a piece of a chain ended there), or garbage.
    Torn {
        /// The disk that the guest took it for, part of every stamp.
        disk: u16,
        /// The sector as it is.
        bytes: &'a [u8],
    },
}

/// Bytes of guest memory that belong to a request while the device has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device may write it (else it may read it).
    pub writable: bool,
}

/// A virtqueue as the guest laid it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlace {
    /// Whether it is a packed one.
    pub packed: bool,
    /// Descriptor table, or the ring of descriptors: address, size in bytes.
    pub desc: (u64, u64),
    /// Available ring, or the driver's event suppression: address, size in bytes.
    pub avail: (u64, u64),
    /// Used ring, or the device's event suppression: address, size in bytes.
    pub used: (u64, u64),
}

/// One thing that was seen.
#[derive(Clone, Copy, Debug)]
pub enum Observation<'a> {
    /// The driver set up a queue of `size` entries, all of them free.
    QueueReady {
        /// The queue.
        queue: u16,
        /// Entries.
        size: u16,
        /// Where its three parts are.
        place: RingPlace,
    },
    /// The driver put a request into the available ring (the device may see it from now on).
    Submitted {
        /// The request.
        id: RequestId,
        /// The queue.
        queue: u16,
        /// Number of its chain: its head, or its id.
        head: u16,
        /// What it asks.
        kind: Kind,
        /// First sector, 0 where the kind has none.
        sector: u64,
        /// Sectors, 0 where the kind has none.
        sectors: u32,
        /// The version that a content-changing request gives to its sectors, 0 otherwise.
        version: u32,
        /// Whether it is of the guest's load, and no firmware's or verifying read.
        of_load: bool,
        /// Bytes that the device may write, the status byte included.
        writable: u32,
        /// The cache mode at this moment.
        cache: CacheMode,
        /// Its pieces of memory, indirect table included.
        buffers: &'a [Buffer],
    },
    /// The driver took one element from the used ring. `id` and `len` are as the device wrote them.
    Used {
        /// The queue.
        queue: u16,
        /// Index of the used element, free running.
        index: u16,
        /// Elements that were waiting, this one included.
        waiting: u16,
        /// The element's id.
        id: u32,
        /// The element's len.
        len: u32,
        /// Packed: whether the device says that it wrote anything.
        written: Option<bool>,
    },
    /// Descriptors of a packed ring change hands: the driver makes them available, or takes them back.
    Places {
        /// Address of the first.
        address: u64,
        /// Their length in bytes.
        len: u64,
        /// Whether they are the device's from now on.
        lent: bool,
    },
    /// The driver matched that element with a request and read its status.
    Completed {
        /// The request.
        id: RequestId,
        /// The queue.
        queue: u16,
        /// Number of its chain: its head, or its id.
        head: u16,
        /// What it asked.
        kind: Kind,
        /// First sector.
        sector: u64,
        /// Sectors.
        sectors: u32,
        /// The version of a content-changing request.
        version: u32,
        /// How it ended.
        status: Status,
        /// The used element's len.
        len: u32,
        /// Bytes that the device may have written.
        writable: u32,
        /// Whether the device may answer an error: its disk has faults on, or the request lies outside of it.
        may_fail: bool,
        /// When it was made available.
        submitted_at: Instant,
        /// The cache mode over the whole life of the request.
        cache: CacheMode,
        /// Its pieces of memory, as they were submitted.
        buffers: &'a [Buffer],
    },
    /// A sector that a successful read brought. Comes before the read's `Completed`.
    Read {
        /// The read.
        id: RequestId,
        /// The sector.
        sector: u64,
        /// What was there.
        content: Content<'a>,
    },
    /// The answer of a successful GET_ID. Comes before the request's `Completed`.
    Identity {
        /// The request.
        id: RequestId,
        /// The string, zero padded.
        bytes: &'a [u8],
    },
    /// Somebody below the guest touched guest memory.
    Access {
        /// Who.
        agent: Agent,
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
        /// Whether it stored.
        store: bool,
    },
    /// A range of guest memory is there from now on.
    RegionAdded {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The front-end asks the back-end to give a region up (`REM_MEM_REG`).
    RemovalAsked {
        /// Requests that the guest has out, in its other regions.
        outstanding: u64,
    },
    /// The back-end acknowledged that it gave the region up.
    RegionRemoved {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The device was reset and its rings are no more: requests that were out never complete.
    DeviceReset,
    /// The machine lost its power, and the guest with it.
    PowerLost,
    /// No fault happens from now on.
    Healed,
    /// The target process is gone, or the front-end is: nothing can complete until both are back.
    Disconnected,
    /// The front-end finished the hand-over of its rings to a back-end.
    Connected,
    /// The front-end got an answer.
    Answer {
        /// The request that was asked, if one was.
        asked: Option<u32>,
        /// The request that the answer names.
        request: u32,
        /// Its flags.
        flags: u32,
        /// Bytes of its payload.
        size: u32,
        /// Handles that came with it.
        handles: u32,
        /// The first eight bytes of the payload.
        value: u64,
    },
    /// A message came on the channel back.
    BackendMessage {
        /// Its request.
        request: u32,
        /// Whether it is one that a back-end may send, in good form.
        good: bool,
    },
    /// The target gave a ring back.
    RingStopped {
        /// The queue.
        queue: u16,
        /// The base that it gave.
        base: u32,
        /// The base of a ring in which all is given back that was taken, as far as guest memory shows it.
        drained: u32,
        /// Whether the guest's requests were to be finished (they go on later) and not forgotten.
        pausing: bool,
    },
    /// A next back-end is given a ring whose inflight region marks requests of the one before.
    Inherited {
        /// Whether it is a packed ring.
        packed: bool,
        /// Requests.
        requests: u16,
    },
    /// The target writes every page that it stores to into the front-end's log from now on.
    Logging,
    /// The front-end found a page in the log, cleared it there, and copies the page.
    PageCopied {
        /// Its number, guest-physical.
        page: u64,
    },
    /// The rings are stopped, and the log was read for the last time.
    LogRead,
    /// The target ended in order, and had run a queue.
    EndedInOrder {
        /// The queue.
        queue: u16,
        /// Requests that the inflight region still marks.
        tracked: u16,
    },
    /// A living target that was not asked to stop closed a front-end's connection.
    ClosedByTarget,
    /// The run is over and the guest is quiet: what is left of a queue.
    QueueQuiet {
        /// The queue.
        queue: u16,
        /// Entries that the inflight region still marks as in flight, and whether its used index (or position) is the
        /// ring's; `None` where there is no region.
        tracked: Option<(u16, bool)>,
    },
    /// The run is over and the guest is quiet: what the target keeps of the guest's memory.
    RegionsKept {
        /// Mappings that it has.
        mapped: u64,
        /// Regions that it was given and that were not removed.
        plugged: u64,
    },
}
