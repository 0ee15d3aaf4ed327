//! The configuration space of virtio-blk and what is offered (sections 5.2.3 and 5.2.4).

use crate::block::Geometry;

/// Feature bits of the device (section 5.2.3).
pub mod features {
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device is read-only.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// FLUSH is understood.
    pub const FLUSH: u64 = 1 << 9;
    /// `topology` is valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// `writeback` may be read and set.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// `num_queues` is valid.
    pub const MQ: u64 = 1 << 12;
    /// DISCARD is understood.
    pub const DISCARD: u64 = 1 << 13;
    /// WRITE_ZEROES is understood.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Most queues of a device, and so of a vhost-user connection.
pub const MAX_QUEUES: u16 = 128;
/// Bytes of the configuration space (`struct virtio_blk_config`, with the zoned part).
pub const CONFIG_LEN: usize = 96;
/// Where `writeback` stands: the only field that a driver may write.
pub const WRITEBACK_OFFSET: u32 = 32;
/// Bytes of a sector: the unit of capacity and of request positions, whatever the block size.
pub const SECTOR_SIZE: u64 = 512;
/// Most data segments of a request that drivers are told of: QEMU's ring of 128 entries less header and status.
const SEG_MAX: u32 = 126;
/// Most ranges of one DISCARD or WRITE_ZEROES request.
pub(super) const MAX_RANGES: u32 = 16;
/// Most sectors of one such range: 2 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;

/// The configuration space for a bdev, as bytes.
pub(super) fn encode(geometry: &Geometry, writeback: bool) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
    let exponent = (geometry.physical_block_size / geometry.block_size).max(1).ilog2() as u8;
    put(0, &(geometry.capacity() / SECTOR_SIZE).to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &geometry.block_size.to_le_bytes());
    put(24, &[exponent]);
    put(26, &1_u16.to_le_bytes()); // min_io_size, in blocks
    put(WRITEBACK_OFFSET as usize, &[u8::from(writeback)]);
    put(34, &MAX_QUEUES.to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &(geometry.block_size / SECTOR_SIZE as u32).to_le_bytes()); // discard_sector_alignment
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[u8::from(geometry.discard)]); // write_zeroes_may_unmap
    config
}
