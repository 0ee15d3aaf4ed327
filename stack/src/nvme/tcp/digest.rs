//! Digests: CRC32C of headers and of data (TCP 3.3.1.1).

use crc::{CRC_32_ISCSI, Crc, Digest, Table};
use runtime::Window;

/// The polynomial's tables: sixteen bytes are looked up at a time.
static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);
/// Bytes of a window that are looked at at a time.
const PIECE: usize = 1024;

/// The digest of some bytes.
pub(super) fn of(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes)
}

/// The digest of data that comes in pieces.
#[derive(Clone)]
pub(super) struct Running(Digest<'static, u32, Table<16>>);

impl Running {
    pub(super) fn new() -> Self {
        Self(CRC32C.digest())
    }

    /// Goes on with a part of a window.
    pub(super) fn update<W: Window>(&mut self, window: &W, offset: u64, len: u64) {
        let mut piece = [0; PIECE];
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let bytes = &mut piece[..PIECE.min((end - at) as usize)];
            window.read(at, bytes);
            self.0.update(bytes);
            at += bytes.len() as u64;
        }
    }

    pub(super) fn finish(self) -> u32 {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_iscsi_standard() {
        // RFC 7143, appendix A.4.
        let ascending = core::array::from_fn::<u8, 32, _>(|at| at as u8);
        assert_eq!(of(&[0; 32]), 0x8a91_36aa);
        assert_eq!(of(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(of(&ascending), 0x46dd_794e);
    }
}
