//! I/O commands (NVM 3.2): judged, and turned into what a bdev does.

use super::refused;
use crate::block::{Geometry, IoError, Op};
use crate::nvme::bits::{Command, DSM_RANGES_MAX, DsmRange, PSDT_SGL, Status, io};
use runtime::ErrorKind;

/// Which way a command's data goes (section 3.3.3.1: the lowest bits of every opcode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It has none.
    Nothing,
    /// From the host.
    FromHost,
    /// To the host.
    ToHost,
    /// Both, which no command does.
    Both,
}

/// Which way the data of a command goes that has this opcode.
#[must_use]
#[inline]
pub const fn direction(opcode: u8) -> Direction {
    match opcode & 3 {
        0 => Direction::Nothing,
        1 => Direction::FromHost,
        2 => Direction::ToHost,
        _ => Direction::Both,
    }
}

/// What a command asks of a bdev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// One operation.
    Io {
        /// Which.
        op: Op,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Deallocation of so many ranges, which are the command's data ([`deallocation`]).
    Deallocate(u16),
    /// Nothing: it is done.
    Nothing,
}

impl Plan {
    /// Bytes of data that go with it, either way.
    #[must_use]
    #[inline]
    pub const fn transfer_bytes(&self) -> u64 {
        match *self {
            Self::Io { op: Op::Read | Op::Write { .. }, len, .. } => len,
            Self::Deallocate(ranges) => ranges as u64 * DsmRange::LEN as u64,
            _ => 0,
        }
    }
}

/// FUSE in the flags of a command: a part of a fused operation.
const FUSE: u8 = 3;

/// Judges an I/O command on a namespace of a geometry. `transfer_max`: most bytes of a transfer.
#[inline]
pub fn decode(command: &Command, geometry: &Geometry, transfer_max: u32) -> Result<Plan, Status> {
    if command.flags & FUSE != 0 || command.psdt() != PSDT_SGL {
        return Err(refused(Status::INVALID_FIELD));
    }
    let fua = command.cdw10[2] & Command::FUA != 0;
    match command.opcode {
        io::READ => on_range(command, geometry, Op::Read, transfer_max),
        io::WRITE => on_range(command, geometry, Op::Write { fua }, transfer_max),
        io::FLUSH => Ok(Plan::Io { op: Op::Flush, offset: 0, len: 0 }),
        io::WRITE_ZEROES => {
            let unmap = command.cdw10[2] & Command::DEAC != 0;
            on_range(command, geometry, Op::WriteZeroes { unmap, fua }, u32::MAX)
        }
        io::DATASET_MANAGEMENT => {
            let ranges = command.cdw10[0] as u8;
            if geometry.read_only {
                return Err(refused(Status::WRITE_PROTECTED));
            }
            // All that is no deallocation is advice.
            let deallocates = command.cdw10[1] & Command::AD != 0 && geometry.discard;
            Ok(if deallocates { Plan::Deallocate(u16::from(ranges) + 1) } else { Plan::Nothing })
        }
        _ => Err(refused(Status::INVALID_OPCODE)),
    }
}

#[inline]
fn on_range(command: &Command, geometry: &Geometry, op: Op, len_max: u32) -> Result<Plan, Status> {
    let (slba, blocks) = (command.slba(), u64::from(command.blocks()));
    let block_size = u64::from(geometry.block_size);
    if blocks * block_size > u64::from(len_max) && len_max != u32::MAX {
        return Err(refused(Status::INVALID_FIELD));
    }
    if slba.checked_add(blocks).is_none_or(|end| end > geometry.num_blocks) {
        return Err(refused(Status::LBA_OUT_OF_RANGE));
    }
    if geometry.read_only && op != Op::Read {
        return Err(refused(Status::WRITE_PROTECTED));
    }
    Ok(Plan::Io { op, offset: slba * block_size, len: blocks * block_size })
}

/// The range with an index of a Deallocate, in bytes, from the command's data; empty ranges are none.
pub fn deallocation(ranges: &[u8], index: usize, geometry: &Geometry) -> Result<Option<(u64, u64)>, Status> {
    debug_assert!(index < DSM_RANGES_MAX);
    let DsmRange { blocks, slba, .. } = DsmRange::decode(&ranges[index * DsmRange::LEN..]);
    let blocks = u64::from(blocks);
    if slba.checked_add(blocks).is_none_or(|end| end > geometry.num_blocks) {
        return Err(refused(Status::LBA_OUT_OF_RANGE));
    }
    let block_size = u64::from(geometry.block_size);
    Ok((blocks > 0).then_some((slba * block_size, blocks * block_size)))
}

/// How a command ends whose I/O failed.
#[must_use]
#[cold]
pub fn failure(opcode: u8, error: IoError) -> Status {
    match error {
        IoError::OutOfRange => refused(Status::LBA_OUT_OF_RANGE),
        IoError::Unsupported => refused(Status::INVALID_OPCODE),
        IoError::ReadOnly => refused(Status::WRITE_PROTECTED),
        IoError::NoSpace => Status::CAPACITY_EXCEEDED,
        // The disk is gone: another path may have it.
        IoError::Medium(ErrorKind::NotFound) => Status::INTERNAL_PATH_ERROR,
        IoError::Medium(_) if opcode == io::READ => Status::UNRECOVERED_READ_ERROR,
        IoError::Medium(_) if opcode == io::FLUSH => Status::INTERNAL_ERROR,
        IoError::Medium(_) => Status::WRITE_FAULT,
    }
}
