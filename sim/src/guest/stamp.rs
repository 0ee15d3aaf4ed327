//! The payload of a simulated write: every aligned 8-byte word of it tells which write, sector and place it is of.
//!
//! Word `i` of sector `s` in write `v` holds `v` above and, below, a mix of all three, so that a reader tells a whole
//! sector from a torn one, one sector from another and a stamp from chance; a sector of zeroes is version 0.

use crate::check::Content;

/// Bytes of a sector, the unit of virtio-blk addresses (virtio 5.2.4).
pub const SECTOR_BYTES: usize = 512;

/// Words of a sector.
const WORDS: usize = SECTOR_BYTES / 8;

/// Odd constants that spread what differs little (Knuth's multiplicative hashing).
const SPREAD_SECTOR: u32 = 0x9e37_79b1;
const SPREAD_VERSION: u32 = 0x85eb_ca6b;
const SPREAD_WORD: u32 = 0xc2b2_ae35;

/// The lower halves of the words, but for the word's own share.
fn base(disk: u16, sector: u64, version: u32) -> u32 {
    (sector as u32)
        .wrapping_mul(SPREAD_SECTOR)
        .wrapping_add(version.wrapping_mul(SPREAD_VERSION))
        .rotate_left(13)
        ^ (u32::from(disk) << 16 | 0x5a5a)
}

fn word(base: u32, version: u32, index: usize) -> u64 {
    u64::from(version) << 32 | u64::from(base.wrapping_add((index as u32).wrapping_mul(SPREAD_WORD)))
}

/// Writes the stamp of `version` (not 0) for `sector` of `disk` over one sector's bytes.
pub fn write(disk: u16, sector: u64, version: u32, into: &mut [u8]) {
    assert!(version != 0, "version 0 is a sector of zeroes");
    let base = base(disk, sector, version);
    for (index, bytes) in into.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(base, version, index).to_le_bytes());
    }
}

/// Tells what one sector's bytes are. `parts` is room for the versions of a mixed one.
pub fn read<'a>(disk: u16, sector: u64, bytes: &'a [u8], parts: &'a mut Vec<u32>) -> Content<'a> {
    let at = |index: usize| {
        u64::from_le_bytes(bytes[index * 8..index * 8 + 8].try_into().expect("a slice of eight bytes"))
    };
    let first = at(0);
    let version = (first >> 32) as u32;
    // Most sectors are whole, so that all words are looked at without a decision at each.
    let expected = base(disk, sector, version);
    let (mut other, mut any) = (0, 0);
    for (index, bytes) in bytes.chunks_exact(8).enumerate() {
        let found = u64::from_le_bytes(bytes.try_into().expect("a slice of eight bytes"));
        other |= found ^ word(expected, version, index);
        any |= found;
    }
    if any == 0 {
        return Content::Zero;
    }
    if version != 0 && other == 0 {
        return Content::Whole(version);
    }
    parts.clear();
    for index in 0..WORDS {
        let found = at(index);
        let version = (found >> 32) as u32;
        if found != 0 && (version == 0 || found != word(base(disk, sector, version), version, index)) {
            return Content::Torn { disk, bytes };
        }
        if !parts.contains(&version) {
            parts.push(version);
        }
    }
    Content::Mixed(parts)
}

#[cfg(test)]
mod tests {
    use super::{SECTOR_BYTES, read, write};
    use crate::check::Content;

    #[test]
    fn a_sector_tells_what_it_is() {
        let (mut one, mut two, mut parts) = ([0; SECTOR_BYTES], [0; SECTOR_BYTES], Vec::new());
        assert_eq!(read(0, 9, &one, &mut parts), Content::Zero);
        write(0, 9, 1, &mut one);
        write(0, 9, 2, &mut two);
        assert_eq!(read(0, 9, &one, &mut parts), Content::Whole(1));
        assert!(matches!(read(0, 8, &one, &mut parts), Content::Torn { .. }));
        assert!(matches!(read(1, 9, &one, &mut parts), Content::Torn { .. }));
        one[64..128].copy_from_slice(&two[64..128]);
        one[256..264].fill(0);
        assert_eq!(read(0, 9, &one, &mut parts), Content::Mixed(&[1, 2, 0]));
        one[300] ^= 1;
        assert!(matches!(read(0, 9, &one, &mut parts), Content::Torn { .. }));
    }
}
