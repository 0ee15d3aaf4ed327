//! A virtio-blk request as the driver lays it out in guest memory (virtio 5.2.6), in every layout that the
//! specification allows: header, data and status split or merged at any byte, any number of pieces, several regions,
//! an indirect table for all of the chain or for its end.

use super::memory::{ALIGNMENT, Memory};
use super::stamp::{self, SECTOR_BYTES};
use crate::check::observation::Buffer;
use crate::check::{CacheMode, Kind, RequestId, Status};
use crate::rng::Rng;
use runtime::{Instant, Window};

/// Bytes of the request header: type, reserved, sector.
pub const HEADER_BYTES: usize = 16;
/// Bytes of the answer to GET_ID.
pub const ID_BYTES: usize = 20;
/// Bytes of a DISCARD or WRITE_ZEROES segment: sector, count, flags.
const SEGMENT_BYTES: usize = 16;
/// Segments of one request at most.
const SEGMENTS_MAX: u32 = 4;
/// Pieces of a request at most, the status included.
pub const PIECES_MAX: usize = 40;
/// Pieces that the shortest ring must have room for.
pub const CHAIN_MIN: u16 = 8;
/// Bytes at the start of an area that hold the indirect table.
const TABLE_BYTES: u64 = PIECES_MAX as u64 * 16;
/// What the status byte holds before the device writes it: no status of the specification.
const STATUS_UNTOUCHED: u8 = 0xff;
/// What a read's buffer holds before the device writes it: no stamp looks like it.
const POISON: u8 = 0xa5;

/// VIRTIO_BLK_T_* and the flag of a WRITE_ZEROES segment (5.2.6).
const fn type_of(kind: Kind) -> u32 {
    match kind {
        Kind::Read => 0,
        Kind::Write => 1,
        Kind::Flush => 4,
        Kind::GetId => 8,
        Kind::Discard => 11,
        Kind::WriteZeroes => 13,
    }
}

/// Bytes that a request's area needs in each region for `sectors` sectors of data.
#[must_use]
pub const fn area_bytes(sectors: u32) -> u64 {
    // The table, the data, and for each piece its rounding to granules and a drawn shift of at most one; a first piece
    // of aligned data may also be moved up to a sector's boundary.
    let data = TABLE_BYTES + sectors as u64 * SECTOR_BYTES as u64 + 2 * SECTOR_BYTES as u64;
    (data + PIECES_MAX as u64 * 2 * ALIGNMENT).div_ceil(SECTOR_BYTES as u64) * SECTOR_BYTES as u64
}

/// How chains look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutStyle {
    /// Header, aligned data in one piece, status: what Linux sends most.
    Plain,
    /// Header, aligned data in pieces of whole sectors, status.
    Sectors,
    /// Cut anywhere, merged anywhere, at any alignment.
    Anyhow,
}

/// Which pieces of a chain go into an indirect table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// None.
    None,
    /// Those from a drawn one on: what a split ring allows (2.7.5.3).
    OfTheEnd,
    /// All of them: what a packed ring allows (2.8.19).
    OfAll,
}

/// What a request asks; the draw's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What.
    pub kind: Kind,
    /// First sector.
    pub sector: u64,
    /// Sectors.
    pub sectors: u32,
    /// Sectors of a block of the disk.
    pub block_sectors: u32,
    /// The stamp of a content-changing request, 0 otherwise.
    pub version: u32,
    /// The unmap flag of WRITE_ZEROES.
    pub unmap: bool,
    /// How its chain looks.
    pub style: LayoutStyle,
    /// Whether it is of the guest's load, and no firmware's or verifying read.
    pub of_load: bool,
}

/// One request that can be out: what it asks, and its memory. Reused, so that an I/O allocates nothing.
#[derive(Debug)]
pub struct Slot {
    /// Its number within its queue.
    index: u16,
    /// Address of its area in each region, by region.
    areas: Vec<u64>,
    /// How far each area is used.
    fill: Vec<u64>,
    /// The pieces of the chain, and after them the indirect table, if there is one.
    pub buffers: Vec<Buffer>,
    /// How many of the buffers are pieces.
    pieces: usize,
    /// Room for the device-readable bytes, header first, and how many there are.
    readable: Vec<u8>,
    readable_bytes: usize,
    /// Room for the device-writable bytes, status last.
    writable: Vec<u8>,
    /// Bytes that the device may write.
    pub writable_bytes: u32,
    /// What it asks.
    pub ask: Ask,
    /// Its id.
    pub id: RequestId,
    /// When it was made available.
    pub submitted_at: Instant,
    /// The cache mode when it was made available, and the count of its changes then.
    pub cache: CacheMode,
    /// See `cache`.
    pub cache_epoch: u32,
    /// Whether an error may be its answer, for what was known when it was submitted.
    pub may_fail: bool,
}

impl Slot {
    /// A slot with its area in each region. `sectors_max`: the most data it will carry.
    #[must_use]
    pub fn new(index: u16, areas: Vec<u64>, sectors_max: u32) -> Self {
        let data = sectors_max as usize * SECTOR_BYTES;
        Self {
            index,
            fill: vec![0; areas.len()],
            areas,
            buffers: Vec::with_capacity(PIECES_MAX + 1),
            pieces: 0,
            readable: vec![0; HEADER_BYTES + data.max(SEGMENTS_MAX as usize * SEGMENT_BYTES)],
            readable_bytes: 0,
            writable: vec![0; data.max(ID_BYTES) + 1],
            writable_bytes: 0,
            ask: Ask {
                kind: Kind::Flush,
                sector: 0,
                sectors: 0,
                block_sectors: 1,
                version: 0,
                unmap: false,
                style: LayoutStyle::Plain,
                of_load: true,
            },
            id: RequestId(0),
            submitted_at: Instant(0),
            cache: CacheMode::Changing,
            cache_epoch: 0,
            may_fail: false,
        }
    }

    /// The slot's number within its queue.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The chain's pieces.
    #[must_use]
    pub fn pieces(&self) -> &[Buffer] {
        &self.buffers[..self.pieces]
    }

    /// Whether a piece lies between `address` and `address + len`.
    #[must_use]
    pub fn touches(&self, address: u64, len: u64) -> bool {
        self.buffers
            .iter()
            .any(|piece| piece.address < address + len && address < piece.address + u64::from(piece.len))
    }

    /// Lays out the request in at most `chain_max` pieces (at least [`CHAIN_MIN`]) and writes what the device will read.
    /// Returns how many of the pieces are to be direct descriptors, and where the indirect table for the others goes
    /// (`None`: no table).
    pub fn prepare<W: Window>(
        &mut self,
        memory: &Memory<W>,
        disk: u16,
        ask: Ask,
        chain_max: u16,
        table: Table,
        rng: &mut Rng,
    ) -> (usize, Option<u64>) {
        self.ask = ask;
        self.buffers.clear();
        self.fill.fill(TABLE_BYTES);
        self.compose(disk);
        let answer_bytes = match ask.kind {
            Kind::Read => ask.sectors as usize * SECTOR_BYTES,
            Kind::GetId => ID_BYTES,
            Kind::Write | Kind::Flush | Kind::Discard | Kind::WriteZeroes => 0,
        };
        self.writable_bytes = answer_bytes as u32 + 1;
        let pieces_max = match ask.style {
            LayoutStyle::Plain => 1,
            LayoutStyle::Sectors | LayoutStyle::Anyhow => {
                // A chain is never longer than its ring (2.7.5.3.1); each half of it gets its share.
                let half = usize::from(chain_max).min(PIECES_MAX) / 2;
                1 + rng.below(half as u64 - 1) as usize
            }
        };
        let readable_bytes = self.readable_bytes;
        if ask.style == LayoutStyle::Anyhow {
            self.cut(memory, readable_bytes, pieces_max, false, rng);
            self.cut(memory, answer_bytes + 1, pieces_max, true, rng);
        } else {
            self.place(memory, HEADER_BYTES, false, ALIGNMENT, 0, rng);
            self.cut_sectors(memory, readable_bytes - HEADER_BYTES, pieces_max, false, rng);
            self.cut_sectors(memory, answer_bytes, pieces_max, true, rng);
            self.place(memory, 1, true, ALIGNMENT, 0, rng);
        }
        self.pieces = self.buffers.len();
        self.scatter(memory);
        if ask.kind == Kind::Read {
            for piece in self.buffers.iter().filter(|piece| piece.writable) {
                memory.fill(piece.address, piece.len.into(), POISON);
            }
        }
        let status = self.buffers[self.pieces - 1];
        memory.write(status.address + u64::from(status.len) - 1, &[STATUS_UNTOUCHED]);
        let direct = match table {
            Table::None => return (self.pieces, None),
            Table::OfTheEnd if rng.chance(1, 4) => rng.below(self.pieces as u64) as usize,
            Table::OfTheEnd | Table::OfAll => 0,
        };
        let table = self.areas[0];
        self.buffers.push(Buffer {
            address: table,
            len: ((self.pieces - direct) * 16) as u32,
            writable: false,
        });
        (direct, Some(table))
    }

    /// Writes the readable bytes into the private copy.
    fn compose(&mut self, disk: u16) {
        let Ask { kind, sector, sectors, block_sectors, version, unmap, .. } = self.ask;
        let (header, data) = self.readable.split_at_mut(HEADER_BYTES);
        header[..4].copy_from_slice(&type_of(kind).to_le_bytes());
        header[4..8].fill(0);
        // The header's sector has no meaning but for these, and Linux sends 0.
        let first = if matches!(kind, Kind::Read | Kind::Write) { sector } else { 0 };
        header[8..].copy_from_slice(&first.to_le_bytes());
        let data_bytes = match kind {
            Kind::Write => {
                let sectors = sectors as usize;
                for (index, bytes) in data.chunks_exact_mut(SECTOR_BYTES).take(sectors).enumerate() {
                    stamp::write(disk, sector + index as u64, version, bytes);
                }
                sectors * SECTOR_BYTES
            }
            Kind::Discard | Kind::WriteZeroes => {
                // In one segment or in several, without a draw: the versions go up by one.
                let blocks = sectors / block_sectors;
                let segments = (1 + version % SEGMENTS_MAX).min(blocks.max(1));
                let first_of = |segment: u32| blocks * segment / segments * block_sectors;
                for (segment, bytes) in (0..segments).zip(data.chunks_exact_mut(SEGMENT_BYTES)) {
                    let (first, end) = (first_of(segment), first_of(segment + 1));
                    bytes[..8].copy_from_slice(&(sector + u64::from(first)).to_le_bytes());
                    bytes[8..12].copy_from_slice(&(end - first).to_le_bytes());
                    bytes[12..].copy_from_slice(&u32::from(unmap && kind == Kind::WriteZeroes).to_le_bytes());
                }
                segments as usize * SEGMENT_BYTES
            }
            Kind::Read | Kind::Flush | Kind::GetId => 0,
        };
        self.readable_bytes = HEADER_BYTES + data_bytes;
    }

    /// Cuts `len` bytes anywhere into at most `pieces` pieces.
    fn cut<W: Window>(
        &mut self,
        memory: &Memory<W>,
        len: usize,
        pieces: usize,
        writable: bool,
        rng: &mut Rng,
    ) {
        let mut left = len;
        for more in (0..pieces).rev() {
            let len = if more == 0 || left == 1 { left } else { 1 + rng.below(left as u64) as usize };
            self.place(memory, len, writable, ALIGNMENT, rng.below(ALIGNMENT), rng);
            left -= len;
            if left == 0 {
                break;
            }
        }
    }

    /// Cuts `len` bytes of data into at most `pieces` pieces of whole sectors, each aligned like direct I/O wants it.
    fn cut_sectors<W: Window>(
        &mut self,
        memory: &Memory<W>,
        len: usize,
        pieces: usize,
        writable: bool,
        rng: &mut Rng,
    ) {
        if !len.is_multiple_of(SECTOR_BYTES) {
            self.place(memory, len, writable, ALIGNMENT, 0, rng);
            return;
        }
        let mut left = len / SECTOR_BYTES;
        for more in (0..pieces).rev() {
            if left == 0 {
                break;
            }
            let sectors = if more == 0 { left } else { 1 + rng.below(left as u64) as usize };
            self.place(memory, sectors * SECTOR_BYTES, writable, SECTOR_BYTES as u64, 0, rng);
            left -= sectors;
        }
    }

    /// Finds room for a piece in a drawn region.
    fn place<W: Window>(
        &mut self,
        memory: &Memory<W>,
        len: usize,
        writable: bool,
        alignment: u64,
        shift: u64,
        rng: &mut Rng,
    ) {
        let drawn = match memory.regions.len() {
            1 => 0,
            regions => rng.below(regions as u64) as usize,
        };
        let region = if memory.regions[drawn].in_use { drawn } else { 0 };
        let address = (self.areas[region] + self.fill[region]).next_multiple_of(alignment) + shift;
        let end = (address + len as u64).next_multiple_of(ALIGNMENT);
        self.fill[region] = end - self.areas[region];
        self.buffers.push(Buffer { address, len: len as u32, writable });
    }

    fn scatter<W: Window>(&self, memory: &Memory<W>) {
        let mut at = 0;
        for piece in self.buffers.iter().filter(|piece| !piece.writable) {
            let end = at + piece.len as usize;
            memory.write(piece.address, &self.readable[at..end]);
            at = end;
        }
        assert_eq!(at, self.readable_bytes, "the readable pieces hold the whole of it");
    }

    /// Reads the status.
    pub fn status<W: Window>(&self, memory: &Memory<W>) -> Status {
        let last = self.buffers[self.pieces - 1];
        let mut byte = [0];
        memory.read(last.address + u64::from(last.len) - 1, &mut byte);
        match byte[0] {
            0 => Status::Ok,
            1 => Status::IoError,
            2 => Status::Unsupported,
            STATUS_UNTOUCHED => Status::Untouched,
            other => Status::Unknown(other),
        }
    }

    /// Brings what the device wrote, without the status.
    pub fn gather<W: Window>(&mut self, memory: &Memory<W>) -> &[u8] {
        let mut at = 0;
        for piece in self.buffers[..self.pieces].iter().filter(|piece| piece.writable) {
            let end = at + piece.len as usize;
            memory.read(piece.address, &mut self.writable[at..end]);
            at = end;
        }
        &self.writable[..at - 1]
    }
}
