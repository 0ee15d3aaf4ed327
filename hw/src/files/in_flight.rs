//! The operations that a channel has given to the kernel, whichever engine it has: a fixed table of slots, and from the
//! kernel's result the completion that the contract promises.
//!
//! A slot is the number that travels through the kernel and back. A result for a slot that is not in use would mean
//! that somebody's buffer was touched after its completion; it is asserted against, in release builds too.

use super::bounce::{Bounce, BouncePool};
use super::file::OpenFile;
use crate::error::{from_errno, with_errno};
use crate::window::HostWindow;
use runtime::{Error, ErrorKind, FileCompletion, FileOp, Full, Window};
use rustix::io::Errno;

/// The operations in flight on one channel.
pub(super) struct InFlight {
    slots: Box<[Slot]>,
    free: Vec<u32>,
    bounce: BouncePool,
}

#[derive(Clone, Copy)]
struct Slot {
    token: u64,
    /// Bytes asked for.
    len: u64,
    state: SlotState,
    bounce: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Free,
    /// The kernel's result is the number of bytes done.
    Transfer,
    /// The operation is done whole or not at all.
    Whole,
}

/// How a transfer's memory is given to the kernel.
pub(super) enum Payload {
    /// The segments themselves.
    Direct,
    /// One aligned buffer in their place.
    Bounced { pointer: *mut u8, len: u64 },
}

impl InFlight {
    /// Room for `depth` operations.
    pub(super) fn new(depth: u32) -> Self {
        let slot = Slot { token: 0, len: 0, state: SlotState::Free, bounce: None };
        Self {
            slots: vec![slot; depth as usize].into_boxed_slice(),
            free: (0..depth).rev().collect(),
            bounce: BouncePool::new(),
        }
    }

    /// How many operations are in flight.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The slots of the operations in flight.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.slots).filter(|(_, slot)| slot.state != SlotState::Free).map(|(index, _)| index)
    }

    /// Payload bytes that went through a bounce buffer.
    pub(super) fn bounced_bytes(&self) -> u64 {
        self.bounce.copied_bytes()
    }

    /// Begins a read or write and says where its bytes lie; the kernel gets the slot's number along.
    pub(super) fn begin_transfer(
        &mut self,
        file: &OpenFile,
        write: bool,
        segments: &[HostWindow],
        len: u64,
        token: u64,
    ) -> Result<(u32, Payload), Full> {
        if self.free.is_empty() {
            return Err(Full);
        }
        let (mut addresses, mut lens, mut total) = (0_usize, 0_u64, 0_u64);
        for segment in segments {
            addresses |= segment.as_ptr() as usize;
            lens |= segment.len();
            total += segment.len();
        }
        assert_eq!(total, len, "an operation of {len} bytes came with {total} bytes of segments");
        let aligned = addresses & (file.memory_alignment() as usize - 1) == 0
            && lens & (u64::from(file.block_size()) - 1) == 0;
        let bounce = if aligned {
            None
        } else if write {
            Some(self.bounce.take_for_write(segments, len).ok_or(Full)?)
        } else {
            Some(self.bounce.take_for_read(segments, len).ok_or(Full)?)
        };
        let slot = self.occupy(token, len, SlotState::Transfer, bounce.as_ref().map(|bounce| bounce.index));
        Ok((
            slot,
            match bounce {
                None => Payload::Direct,
                Some(Bounce { pointer, len, .. }) => Payload::Bounced { pointer, len },
            },
        ))
    }

    /// Begins an operation that has no payload.
    pub(super) fn begin_whole(&mut self, len: u64, token: u64) -> Result<u32, Full> {
        if self.free.is_empty() {
            return Err(Full);
        }
        Ok(self.occupy(token, len, SlotState::Whole, None))
    }

    /// Ends the operation of a slot. `result` is the kernel's: bytes done (0 for an operation without payload), or a
    /// negated `errno`.
    pub(super) fn finish(&mut self, slot: u32, result: i64) -> FileCompletion {
        let Slot { token, len, state, bounce } = self.slots[slot as usize];
        assert!(state != SlotState::Free, "the kernel completed operation {slot}, which is not in flight");
        let done = u64::try_from(result).unwrap_or(0);
        assert!(done <= len, "the kernel did {done} bytes of an operation of {len}");
        if let Some(bounce) = bounce {
            self.bounce.give_back(bounce, done);
        }
        self.slots[slot as usize].state = SlotState::Free;
        self.free.push(slot);
        let result = if result < 0 {
            // Every errno fits: the kernel's largest is 4095.
            Err(io_error(Errno::from_raw_os_error(-result as i32)))
        } else if state == SlotState::Whole {
            Ok(len)
        } else {
            Ok(done)
        };
        FileCompletion { token, result }
    }

    fn occupy(&mut self, token: u64, len: u64, state: SlotState, bounce: Option<u32>) -> u32 {
        let slot = self.free.pop().expect("room was looked for before");
        self.slots[slot as usize] = Slot { token, len, state, bounce };
        slot
    }
}

/// What an errno means as the end of an I/O, where that is not what it means everywhere.
fn io_error(errno: Errno) -> Error {
    let kind = match errno {
        // The device went away below an open file.
        Errno::NODEV | Errno::NXIO => ErrorKind::Io,
        // Beyond what the file system, or the process's limit, allows a file to grow to.
        Errno::FBIG => ErrorKind::NoSpace,
        // A driver without the ioctl.
        Errno::NOTTY => ErrorKind::Unsupported,
        _ => return from_errno(errno),
    };
    with_errno(kind, errno)
}

/// The end of an operation that the kernel need not be asked for: a change of a file that was opened for reading, or
/// nothing to be done.
pub(super) fn without_the_kernel(
    file: &OpenFile,
    op: FileOp,
    len: u64,
    token: u64,
) -> Option<FileCompletion> {
    let result = match op {
        FileOp::Write { .. } | FileOp::Discard | FileOp::WriteZeroes { .. } if file.is_read_only() => {
            Err(ErrorKind::ReadOnly.into())
        }
        FileOp::Flush => return None,
        _ if len == 0 => Ok(0),
        _ => return None,
    };
    Some(FileCompletion { token, result })
}
