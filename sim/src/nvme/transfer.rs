//! Where a command's data lies: PRP entries and lists (section 4.1.1), and SGLs (section 4.1.2), walked through the IOMMU.

use crate::world::World;
use stack::nvme::bits::{
    Command, PAGE, PRP_LEN, PSDT_PRP, PSDT_SGL, SGL_DESCRIPTOR_LEN, SglDescriptor, Status,
};

/// Segments that an SGL may have before it is taken for a circle.
const SEGMENTS_MAX: u32 = 64;
/// Pages that a PRP list may have before it is taken for a circle.
const LISTS_MAX: u32 = 64;
/// Descriptors of one segment.
const DESCRIPTORS_MAX: u32 = 1024;
/// SGL identifier of a bit bucket, which takes what is read and keeps nothing.
const BIT_BUCKET: u8 = 0x10;

/// A contiguous part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) len: u64,
    /// It lies nowhere.
    pub(super) bucket: bool,
}

impl Piece {
    const fn at(address: u64, len: u64) -> Self {
        Self { address, len, bucket: false }
    }
}

/// The places of `len` bytes of a command's data. `sgls`: bits 1:0 of what the controller says of SGLs.
pub(super) fn walk(
    world: &mut World,
    me: u32,
    command: &Command,
    len: u64,
    sgls: u32,
) -> Result<Vec<Piece>, Status> {
    match command.psdt() {
        PSDT_PRP => walk_prps(world, me, command.dptr, len),
        PSDT_SGL if sgls != 0 => walk_sgl(world, me, SglDescriptor::from_words(command.dptr), len, sgls),
        _ => Err(Status::INVALID_FIELD.with_dnr(1)),
    }
}

fn load_words<const N: usize>(world: &mut World, me: u32, address: u64) -> Result<[u64; N], Status> {
    let mut bytes = vec![0; 8 * N];
    world.dma_read(me, address, &mut bytes).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
    Ok(std::array::from_fn(|index| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8 * index..8 * index + 8]);
        u64::from_le_bytes(word)
    }))
}

fn walk_prps(world: &mut World, me: u32, [first, second]: [u64; 2], len: u64) -> Result<Vec<Piece>, Status> {
    let offset = Status::PRP_OFFSET_INVALID.with_dnr(1);
    if !first.is_multiple_of(4) {
        return Err(offset);
    }
    let here = len.min(PAGE - first % PAGE);
    let mut pieces = vec![Piece::at(first, here)];
    let mut left = len - here;
    if left == 0 {
        return Ok(pieces);
    }
    if left <= PAGE {
        if !second.is_multiple_of(PAGE) {
            return Err(offset);
        }
        pieces.push(Piece::at(second, left));
        return Ok(pieces);
    }
    let (mut list, mut lists) = (second, 0);
    if !list.is_multiple_of(PRP_LEN) {
        return Err(offset);
    }
    while left > 0 {
        let last_in_page = list % PAGE == PAGE - PRP_LEN;
        let [entry] = load_words::<1>(world, me, list)?;
        if !entry.is_multiple_of(PAGE) {
            return Err(offset);
        }
        if last_in_page && left > PAGE {
            // The list goes on elsewhere.
            (list, lists) = (entry, lists + 1);
            if lists == LISTS_MAX {
                return Err(Status::INVALID_FIELD.with_dnr(1));
            }
            continue;
        }
        let here = left.min(PAGE);
        pieces.push(Piece::at(entry, here));
        left -= here;
        list += PRP_LEN;
    }
    Ok(pieces)
}

fn walk_sgl(
    world: &mut World,
    me: u32,
    first: SglDescriptor,
    len: u64,
    sgls: u32,
) -> Result<Vec<Piece>, Status> {
    let (mut pieces, mut done) = (Vec::new(), 0);
    let mut segment = None;
    take(first, true, sgls, &mut pieces, &mut done, &mut segment)?;
    let mut segments = 0;
    while let Some((address, bytes, is_last)) = segment.take() {
        segments += 1;
        let count = bytes / SGL_DESCRIPTOR_LEN as u32;
        if segments > SEGMENTS_MAX || count > DESCRIPTORS_MAX {
            return Err(Status::INVALID_SGL_COUNT.with_dnr(1));
        }
        if count == 0 || !bytes.is_multiple_of(SGL_DESCRIPTOR_LEN as u32) {
            return Err(Status::INVALID_SGL_SEGMENT.with_dnr(1));
        }
        for index in 0..count {
            let words = load_words::<2>(world, me, address + u64::from(index) * SGL_DESCRIPTOR_LEN)?;
            let may_chain = index + 1 == count && !is_last;
            take(SglDescriptor::from_words(words), may_chain, sgls, &mut pieces, &mut done, &mut segment)?;
        }
    }
    if done == len { Ok(pieces) } else { Err(Status::SGL_LENGTH_INVALID.with_dnr(1)) }
}

/// Takes one descriptor.
fn take(
    descriptor: SglDescriptor,
    may_chain: bool,
    sgls: u32,
    pieces: &mut Vec<Piece>,
    done: &mut u64,
    segment: &mut Option<(u64, u32, bool)>,
) -> Result<(), Status> {
    let SglDescriptor { address, len, identifier, .. } = descriptor;
    match identifier {
        SglDescriptor::DATA_BLOCK => {
            // Bits 1:0 of SGLS, 10b: aligned to four bytes.
            if sgls == 2 && (address | u64::from(len)) & 3 != 0 {
                return Err(Status::SGL_LENGTH_INVALID.with_dnr(1));
            }
            pieces.push(Piece::at(address, len.into()));
            *done += u64::from(len);
        }
        BIT_BUCKET => {
            pieces.push(Piece { bucket: true, ..Piece::at(0, len.into()) });
            *done += u64::from(len);
        }
        SglDescriptor::SEGMENT | SglDescriptor::LAST_SEGMENT if may_chain => {
            *segment = Some((address, len, identifier == SglDescriptor::LAST_SEGMENT));
        }
        SglDescriptor::SEGMENT | SglDescriptor::LAST_SEGMENT => {
            return Err(Status::INVALID_SGL_SEGMENT.with_dnr(1));
        }
        _ => return Err(Status::SGL_TYPE_INVALID.with_dnr(1)),
    }
    Ok(())
}
