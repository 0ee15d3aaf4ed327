//! One virtio-blk request, from a chain's windows to what the bdev is asked (section 5.2.6).
//!
//! The layout is the driver's choice: header, data and status may share descriptors or be split anywhere. The header
//! is the first 16 readable bytes, the status the last writable one, and data what lies between.

use super::super::chain::{Chain, ChainError};
use super::config::{MAX_RANGE_SECTORS, MAX_RANGES, SECTOR_SIZE};
use super::slots::Slot;
use crate::block::{Geometry, Op};
use crate::reached::Reached;
use alloc::vec::Vec;
use runtime::Window;

/// Most bytes of one read or write: the whole sectors of the longest chain that a driver may make, 2^32 bytes with header
/// and status (section 2.7.5.2). A driver's buffers may overlap, so that a short chain can describe terabytes.
const MAX_TRANSFER: u64 = (1 << 32) - SECTOR_SIZE;
/// Most bytes of a read or write that the bdev is asked for at once: a bdev in memory copies them at once, and they are what
/// a poll may cost its core. More is done in pieces, one after the other. Linux sends at most 1.25 MiB unless its
/// administrator raises it; firmware sends whole files. To announce a limit by `size_max` instead would not do: firmware
/// does not look at it, and FreeBSD's driver refuses a disk whose limit is below its own.
const MAX_PIECE: u64 = 4 << 20;
/// Bytes of the identifier that GET_ID returns.
pub(super) const ID_LEN: usize = 20;
/// Bytes of one range of DISCARD and WRITE_ZEROES: `le64 sector; le32 num_sectors; le32 flags`.
const RANGE_LEN: u64 = 16;
/// The range's `unmap` flag; all others are reserved.
const RANGE_UNMAP: u32 = 1;

/// Request types.
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// The status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// Done.
    Ok = 0,
    /// Failed.
    IoError = 1,
    /// Not understood.
    Unsupported = 2,
}

/// One operation of the bdev, read once from the guest and checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) op: Op,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Range {
    /// The `number`th piece of a transfer; `None`: it has no more.
    #[cold]
    pub(super) fn piece(&self, number: usize) -> Option<Self> {
        let past = MAX_PIECE.checked_mul(number as u64).filter(|past| *past < self.len)?;
        Some(Self { op: self.op, offset: self.offset + past, len: MAX_PIECE.min(self.len - past) })
    }
}

/// What a request asks for. `u8`: a tag in the niche of a field would have to be computed at each look.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Request {
    /// The one operation of the bdev that was put into the slot, on the chain's payload.
    Io,
    /// The same, too long to be done at once.
    Pieces,
    /// The ranges that were put into the slot, one after the other.
    Ranges,
    /// The device's identifier.
    GetId,
    /// Nothing can be done but answer.
    Answer(Status),
}

/// What a driver negotiated and a device is, as far as a request depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) geometry: Geometry,
    pub(super) read_only: bool,
    pub(super) write_through: bool,
    pub(super) discard: bool,
    pub(super) write_zeroes: bool,
}

/// Takes the frame (header and status) off a slot's chain, which is then the payload, and decodes the header.
#[inline(always)]
pub(super) fn decode<W: Window>(slot: &mut Slot<W>, rules: &Rules) -> Result<(), ChainError> {
    let Slot { chain, io, .. } = slot;
    slot.status = Some(chain.take_last_writable().ok_or(ChainError::Frame)?);
    slot.submitted = 0;
    // `le32 type; le32 reserved; le64 sector`
    let Some(header) = chain.take_u128() else {
        slot.request = refuse::<W>(Reached::HeaderShort);
        return Ok(());
    };
    let (kind, sector) = (header as u32, (header >> 64) as u64);
    slot.request = match kind {
        kind::IN => transfer::<W>(Op::Read, sector, chain.writable_len(), rules, io),
        kind::OUT if !rules.read_only => {
            transfer::<W>(Op::Write { fua: rules.write_through }, sector, chain.readable_len(), rules, io)
        }
        _ => {
            decode_rarer(kind, slot, rules);
            return Ok(());
        }
    };
    Ok(())
}

/// Decodes what is neither a read nor a write that is allowed.
#[inline(never)]
fn decode_rarer<W: Window>(kind: u32, slot: &mut Slot<W>, rules: &Rules) {
    let Slot { chain, io, .. } = slot;
    slot.request = match kind {
        kind::OUT => refuse::<W>(Reached::WriteReadOnly),
        kind::FLUSH => {
            *io = Range { op: Op::Flush, offset: 0, len: 0 };
            Request::Io
        }
        kind::GET_ID => Request::GetId,
        kind::DISCARD if rules.discard => decode_ranges(Op::Discard, chain, &mut slot.ranges, rules),
        kind::WRITE_ZEROES if rules.write_zeroes => {
            let op = Op::WriteZeroes { unmap: false, fua: rules.write_through };
            decode_ranges(op, chain, &mut slot.ranges, rules)
        }
        _ => {
            Reached::TypeUnknown.mark::<W>();
            Request::Answer(Status::Unsupported)
        }
    };
}

/// The answer to what cannot be done.
#[cold]
fn refuse<W: Window>(why: Reached) -> Request {
    why.mark::<W>();
    Request::Answer(Status::IoError)
}

/// A read or a write of the whole payload.
#[inline(always)]
fn transfer<W: Window>(op: Op, sector: u64, len: u64, rules: &Rules, io: &mut Range) -> Request {
    match sector.checked_mul(SECTOR_SIZE) {
        Some(offset) if len <= MAX_TRANSFER && rules.geometry.contains(offset, len) => {
            *io = Range { op, offset, len };
            if len <= MAX_PIECE { Request::Io } else { in_pieces::<W>() }
        }
        _ => refuse::<W>(Reached::TransferOutside),
    }
}

#[cold]
fn in_pieces<W: Window>() -> Request {
    Reached::TransferInPieces.mark::<W>();
    Request::Pieces
}

/// Reads and checks all ranges before the first is done, so that a bad one leaves the device as it was.
#[cold]
fn decode_ranges<W: Window>(op: Op, chain: &Chain<W>, ranges: &mut Vec<Range>, rules: &Rules) -> Request {
    ranges.clear();
    if rules.read_only {
        return refuse::<W>(Reached::WriteReadOnly);
    }
    let (payload, len) = (chain.readable(), chain.readable_len());
    if len == 0 || !len.is_multiple_of(RANGE_LEN) || len > RANGE_LEN * u64::from(MAX_RANGES) {
        return refuse::<W>(Reached::RangesLen);
    }
    for at in (0..len).step_by(RANGE_LEN as usize) {
        let mut bytes = [0; RANGE_LEN as usize];
        payload.read(at, &mut bytes);
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let op = match op {
            // Section 5.2.6.2: an unknown flag, and unmap on a DISCARD, are answered UNSUPP.
            Op::WriteZeroes { fua, .. } if flags & !RANGE_UNMAP == 0 => {
                Op::WriteZeroes { unmap: flags & RANGE_UNMAP != 0, fua }
            }
            Op::Discard if flags == 0 => op,
            _ => {
                Reached::RangeFlags.mark::<W>();
                return Request::Answer(Status::Unsupported);
            }
        };
        let len = u64::from(sectors) * SECTOR_SIZE;
        match sector.checked_mul(SECTOR_SIZE) {
            Some(offset) if sectors <= MAX_RANGE_SECTORS && rules.geometry.contains(offset, len) => {
                ranges.push(Range { op, offset, len });
            }
            _ => return refuse::<W>(Reached::RangeOutside),
        }
    }
    Request::Ranges
}
