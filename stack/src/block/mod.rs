//! Block devices: what a front-end submits to, and how many cores share one without a lock.
//!
//! A [`Bdev`] is the shared part: name, geometry, identity. Each core that uses it opens a [`Channel`] of its own and
//! submits and polls there by tokens. A channel allocates nothing for an I/O after its start.

mod file;
mod gone;
mod malloc;
mod null;
mod nvme;
mod registry;
mod statistics;
pub mod uuid;

pub use file::{FileBdev, FileParameters};
pub use gone::GoneChannel;
pub use malloc::MallocBdev;
pub use null::NullBdev;
pub use nvme::NvmeBdev;
pub use registry::{ClaimRefused, Disk, Registry, Reset};
pub use statistics::{CHANNEL_DEPTH, Counted, Kind, KindSnapshot, LATENCY_BUCKETS, Snapshot, Statistics};

use crate::reached::Reached;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use runtime::{ErrorKind, Instant, Platform, Segments};

/// One operation. Offsets and lengths are in bytes, multiples of the bdev's block size, validated by the submitter
/// against [`Geometry`]: an operation out of range is a bug there, and is answered `OutOfRange` all the same. `u8`: a tag in
/// the niche of a field would have to be computed at each look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Reads into the segments.
    Read,
    /// Writes from the segments.
    Write {
        /// Complete only when the data is on stable media.
        fua: bool,
    },
    /// The content is no longer needed; reads then give zeroes or the old content.
    Discard,
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// Whether the space may be given back.
        unmap: bool,
        /// Complete only when it is on stable media.
        fua: bool,
    },
    /// Everything completed before this was submitted is on stable media when it completes. Offset and length are 0.
    Flush,
}

/// An I/O as it is submitted. The segments are copied by the channel if it needs them longer; the memory below them
/// stays until the completion.
#[derive(Clone, Copy, Debug)]
pub struct Io<'a, W> {
    /// The operation.
    pub op: Op,
    /// First byte on the bdev.
    pub offset: u64,
    /// Bytes; equals the segments' total for `Read` and `Write`.
    pub len: u64,
    /// The payload of `Read` and `Write`, empty otherwise. At most [`MAX_SEGMENTS`] windows.
    pub segments: Segments<'a, W>,
}

/// Most segments that one I/O may have: what virtio-blk offers (`seg_max`), with room for segments that are split where
/// guest memory regions meet.
pub const MAX_SEGMENTS: usize = 512;

/// How an I/O ended badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// Not inside the bdev, or not in whole blocks.
    OutOfRange,
    /// The bdev cannot do this operation.
    Unsupported,
    /// The bdev is read-only.
    ReadOnly,
    /// No space left below (a thin file on a full file system).
    NoSpace,
    /// The medium failed, after the retries that the bdev makes itself.
    Medium(ErrorKind),
}

impl IoError {
    /// The point that it is.
    pub(crate) const fn reached(self) -> Reached {
        match self {
            Self::OutOfRange => Reached::IoOutOfRange,
            Self::Unsupported => Reached::IoUnsupported,
            Self::ReadOnly => Reached::IoReadOnly,
            Self::NoSpace => Reached::IoNoSpace,
            Self::Medium(_) => Reached::IoMedium,
        }
    }
}

/// The end of one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As given to [`Channel::submit`].
    pub token: u64,
    /// All of it, or nothing that may be relied on.
    pub result: Result<(), IoError>,
}

/// The channel is full: the I/O was not taken. It will have room after completions were polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelFull;

/// Size and abilities of a bdev; may change while it is open (see [`Bdev::geometry`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes in a block: the unit of offsets and lengths. A power of two, 512 to 65536.
    pub block_size: u32,
    /// Bytes in a block of the medium below, at least `block_size`.
    pub physical_block_size: u32,
    /// Number of blocks.
    pub num_blocks: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Completed writes may be lost with power until a flush.
    pub volatile_cache: bool,
    /// `Discard` does something.
    pub discard: bool,
    /// `WriteZeroes` is cheaper than writing zeroes.
    pub write_zeroes: bool,
}

impl Geometry {
    /// Size in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.num_blocks * u64::from(self.block_size)
    }

    /// Whether `len` bytes at `offset` are whole blocks inside the bdev.
    #[must_use]
    pub fn contains(&self, offset: u64, len: u64) -> bool {
        let mask = u64::from(self.block_size) - 1;
        (offset | len) & mask == 0 && offset.checked_add(len).is_some_and(|end| end <= self.capacity())
    }
}

/// The shared part of a block device. Lives in the target's registry; used from any core, never on the data path.
pub trait Bdev<P: Platform>: Send + Sync {
    /// Its name, unique in the target.
    fn name(&self) -> &str;

    /// Its identity, stable over restarts.
    fn uuid(&self) -> [u8; 16];

    /// What kind of bdev it is, as SPDK's `product_name` says it (`"Null disk"`, `"Malloc disk"`, `"URING bdev"`).
    fn product_name(&self) -> &'static str;

    /// Size and abilities now. Cheap (atomics); front-ends ask again after the target told them of a resize.
    fn geometry(&self) -> Geometry;

    /// Opens this core's channel. Errors as the platform gives them.
    fn channel(&self, platform: &P) -> runtime::Result<Box<dyn Channel<P>>>;

    /// Whether devices read and write a payload by themselves, by its device addresses: whoever submits has its memory
    /// mapped for them ([`runtime::Dma`]). What is not mapped is copied, and counted.
    fn is_reached_by_devices(&self) -> bool {
        false
    }

    /// What its channels have counted.
    fn statistics(&self) -> &Statistics;

    /// What is specific to the driver, as the JSON object that `bdev_get_bdevs` shows, without braces of its own.
    fn driver_specific(&self) -> serde_json::Map<String, serde_json::Value>;
}

/// One core's way into a bdev. Dropped only when nothing is in flight.
pub trait Channel<P: Platform> {
    /// Submits one I/O. It may complete in any order with others, and shows up in a later [`Channel::poll`] (also when
    /// it failed at once). Overlapping I/Os in flight have no order.
    fn submit(&mut self, now: Instant, io: &Io<'_, P::Window>, token: u64) -> Result<(), ChannelFull>;

    /// Takes what has ended, pushed to `completions` (which the caller empties). Whether there was work.
    fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> bool;

    /// The earliest moment at which the channel wants to be polled though nothing changed (a retry's back-off).
    fn wake_at(&self) -> Option<Instant>;

    /// Registers what tells that something has ended.
    fn arm(&self, wakes: &mut P::Wakes);
}
