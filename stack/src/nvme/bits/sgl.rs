//! Scatter gather lists (section 4.1.2).

/// Bytes of an SGL descriptor.
pub const SGL_DESCRIPTOR_LEN: u64 = 16;

/// An SGL descriptor with an address and a length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SglDescriptor {
    /// Device address of the data, or of the segment of further descriptors.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Reserved.
    pub reserved: [u8; 3],
    /// Type in bits 7:4, subtype in bits 3:0.
    pub identifier: u8,
}

const _: () = assert!(size_of::<SglDescriptor>() as u64 == SGL_DESCRIPTOR_LEN);

impl SglDescriptor {
    /// Identifier of a data block at an address.
    pub const DATA_BLOCK: u8 = 0x00;
    /// Identifier of a segment that is not the last.
    pub const SEGMENT: u8 = 0x20;
    /// Identifier of the last segment.
    pub const LAST_SEGMENT: u8 = 0x30;

    /// A data block.
    #[must_use]
    #[inline]
    pub const fn data_block(address: u64, len: u32) -> Self {
        Self { address, len, reserved: [0; 3], identifier: Self::DATA_BLOCK }
    }

    /// The last segment: `len` bytes of descriptors.
    #[must_use]
    #[inline]
    pub const fn last_segment(address: u64, len: u32) -> Self {
        Self { address, len, reserved: [0; 3], identifier: Self::LAST_SEGMENT }
    }

    /// As two little-endian words.
    #[must_use]
    #[inline]
    pub const fn words(&self) -> [u64; 2] {
        let [a, b, c] = self.reserved;
        let high = u32::from_le_bytes([a, b, c, self.identifier]);
        [self.address, self.len as u64 | (high as u64) << 32]
    }

    /// From two little-endian words.
    #[must_use]
    pub const fn from_words(words: [u64; 2]) -> Self {
        let [a, b, c, identifier] = ((words[1] >> 32) as u32).to_le_bytes();
        Self { address: words[0], len: words[1] as u32, reserved: [a, b, c], identifier }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_comes_back_as_it_was_written() {
        let last = SglDescriptor::last_segment(0x1000, 48);
        assert_eq!(last.words(), [0x1000, 0x3000_0000_0000_0030]);
        assert_eq!(SglDescriptor::from_words(last.words()), last);
    }
}
