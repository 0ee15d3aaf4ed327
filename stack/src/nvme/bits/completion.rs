//! Completion queue entries (section 3.3.3.2).

use super::layout::Field;
use super::status::Status;

/// Bytes of a completion queue entry.
pub const CQE_LEN: u64 = 16;

/// A completion queue entry. The phase tag, bit 16 of dword 3, tells whether an entry is new; whoever writes one writes
/// dword 3 last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// Dword 0, specific to the command.
    pub result: u32,
    /// Dword 1, specific to the command.
    pub result_high: u32,
    /// SQ Head Pointer: where the controller is in the submission queue.
    pub sq_head: u16,
    /// SQ Identifier.
    pub sq_id: u16,
    /// Command Identifier.
    pub id: u16,
    /// Status.
    pub status: Status,
    /// Phase Tag.
    pub phase: bool,
}

impl Completion {
    /// Offset in bytes of dword 3, which tells whether the entry is new.
    pub const LAST_DWORD: u64 = 12;

    /// As four little-endian dwords.
    #[must_use]
    pub const fn dwords(&self) -> [u32; 4] {
        [
            self.result,
            self.result_high,
            self.sq_head as u32 | (self.sq_id as u32) << 16,
            self.id as u32 | (self.phase as u32) << 16 | (self.status.0 as u32) << 17,
        ]
    }

    /// From four little-endian dwords.
    #[must_use]
    #[inline]
    pub const fn from_dwords([result, result_high, queue, last]: [u32; 4]) -> Self {
        Self {
            result,
            result_high,
            sq_head: queue as u16,
            sq_id: (queue >> 16) as u16,
            id: last as u16,
            status: Status((last >> 17) as u16),
            phase: Self::phase_of(last),
        }
    }

    /// Reads it from the first [`CQE_LEN`] bytes of a buffer.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        Self::from_dwords(Field::load(bytes, 0))
    }

    /// Writes it to the first [`CQE_LEN`] bytes of a buffer.
    pub fn encode(&self, bytes: &mut [u8]) {
        self.dwords().store(bytes, 0);
    }

    /// The phase tag in dword 3.
    #[must_use]
    #[inline]
    pub const fn phase_of(last_dword: u32) -> bool {
        last_dword >> 16 & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back_as_it_was_written() {
        let entry = Completion {
            result: 1,
            result_high: 2,
            sq_head: 3,
            sq_id: 4,
            id: 5,
            status: Status::LBA_OUT_OF_RANGE.with_dnr(1),
            phase: true,
        };
        let dwords = entry.dwords();
        assert_eq!(dwords, [1, 2, 0x0004_0003, 0x8101_0005]);
        assert_eq!(Completion::from_dwords(dwords), entry);
    }
}
