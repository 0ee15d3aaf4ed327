//! Submission queue entries (section 3.3.3.1), opcodes, and the commands that the project sends.

use super::layout::Field;
use super::sgl::SglDescriptor;

/// Bytes of a submission queue entry.
pub const SQE_LEN: u64 = 64;

/// PSDT: the data pointer holds PRPs.
pub const PSDT_PRP: u8 = 0;
/// PSDT: the data pointer holds an SGL descriptor, and metadata (of which there is none) one contiguous address.
pub const PSDT_SGL: u8 = 1;

/// Opcodes of admin commands (section 5).
pub mod admin {
    /// Delete I/O Submission Queue (section 5.7).
    pub const DELETE_SQ: u8 = 0x00;
    /// Create I/O Submission Queue (section 5.5).
    pub const CREATE_SQ: u8 = 0x01;
    /// Get Log Page (section 5.16).
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue (section 5.6).
    pub const DELETE_CQ: u8 = 0x04;
    /// Create I/O Completion Queue (section 5.4).
    pub const CREATE_CQ: u8 = 0x05;
    /// Identify (section 5.17).
    pub const IDENTIFY: u8 = 0x06;
    /// Abort (section 5.1).
    pub const ABORT: u8 = 0x08;
    /// Set Features (section 5.27).
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features (section 5.15).
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request (section 5.2).
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Keep Alive (section 5.18).
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Doorbell Buffer Config (section 5.8).
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
    /// All commands of NVMe over Fabrics (section 6), on any queue.
    pub const FABRICS: u8 = 0x7f;
}

/// Opcodes of I/O commands (section 7 and NVM 3.2).
pub mod io {
    /// Flush (section 7.1).
    pub const FLUSH: u8 = 0x00;
    /// Write (NVM 3.2.6).
    pub const WRITE: u8 = 0x01;
    /// Read (NVM 3.2.4).
    pub const READ: u8 = 0x02;
    /// Compare (NVM 3.2.1).
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes (NVM 3.2.8).
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management (NVM 3.2.3).
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// What Identify asks for (section 5.17, CNS).
pub mod cns {
    /// A namespace, as the NVM command set describes it (NVM 4.1.5.1).
    pub const NAMESPACE: u8 = 0x00;
    /// The controller (section 5.17.2.1).
    pub const CONTROLLER: u8 = 0x01;
    /// Identifiers of the active namespaces (section 5.17.2.2).
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// A namespace's identification descriptors (section 5.17.2.3).
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// A namespace, as a command set (CSI in the high byte of dword 11) describes it beyond the NVM command set (NVM 4.1.5.3).
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    /// What a command set (CSI in the high byte of dword 11) adds to the controller (NVM 4.1.5.4).
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    /// Identifiers of the active namespaces of a command set (section 5.17.2.6).
    pub const COMMAND_SET_ACTIVE_NAMESPACES: u8 = 0x07;
    /// A namespace, as no command set describes it (section 5.17.2.8).
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// The command sets that can be used together (section 5.17.2.19).
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// A submission queue entry. Fields that a command does not name are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Command {
    /// Opcode: [`admin`] or [`io`].
    pub opcode: u8,
    /// FUSE in bits 1:0, PSDT in bits 7:6 ([`Command::psdt`]).
    pub flags: u8,
    /// Command Identifier, unique among the commands in flight on the queue.
    pub id: u16,
    /// Namespace Identifier.
    pub nsid: u32,
    /// Dwords 2 and 3.
    pub cdw2: [u32; 2],
    /// Metadata Pointer.
    pub mptr: u64,
    /// Data Pointer: PRP entries 1 and 2, or an SGL descriptor.
    pub dptr: [u64; 2],
    /// Dwords 10 to 15, by their number less ten.
    pub cdw10: [u32; 6],
}

const _: () = assert!(size_of::<Command>() as u64 == SQE_LEN);
const _: () =
    assert!(core::mem::offset_of!(Command, dptr) == 24 && core::mem::offset_of!(Command, cdw10) == 40);

/// Two dwords as one aligned word.
const fn word(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// Both dwords of a word.
const fn dwords(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

impl Command {
    /// FUA in dword 12 of Write and Write Zeroes (NVM 3.2.6): complete only when it is on non-volatile media.
    pub const FUA: u32 = 1 << 30;
    /// DEAC in dword 12 of Write Zeroes (NVM 3.2.8): deallocate.
    pub const DEAC: u32 = 1 << 25;
    /// AD in dword 11 of Dataset Management (NVM 3.2.3): deallocate.
    pub const AD: u32 = 1 << 2;
    /// RAE in dword 10 of Get Log Page (section 5.16): the event stays masked.
    pub const RAE: u32 = 1 << 15;
    /// PC in dword 11 of Create I/O Queue (sections 5.4, 5.5): physically contiguous.
    pub const PC: u32 = 1 << 0;
    /// IEN in dword 11 of Create I/O Completion Queue (section 5.4): interrupts enabled.
    pub const IEN: u32 = 1 << 1;

    /// As eight little-endian words.
    #[must_use]
    #[inline]
    pub const fn words(&self) -> [u64; 8] {
        let [d10, d11, d12, d13, d14, d15] = self.cdw10;
        [
            word(self.opcode as u32 | (self.flags as u32) << 8 | (self.id as u32) << 16, self.nsid),
            word(self.cdw2[0], self.cdw2[1]),
            self.mptr,
            self.dptr[0],
            self.dptr[1],
            word(d10, d11),
            word(d12, d13),
            word(d14, d15),
        ]
    }

    /// From eight little-endian words.
    #[must_use]
    pub const fn from_words(words: [u64; 8]) -> Self {
        let [first, nsid] = dwords(words[0]);
        let ([d10, d11], [d12, d13], [d14, d15]) = (dwords(words[5]), dwords(words[6]), dwords(words[7]));
        Self {
            opcode: first as u8,
            flags: (first >> 8) as u8,
            id: (first >> 16) as u16,
            nsid,
            cdw2: dwords(words[1]),
            mptr: words[2],
            dptr: [words[3], words[4]],
            cdw10: [d10, d11, d12, d13, d14, d15],
        }
    }

    /// Reads it from the first [`SQE_LEN`] bytes of a buffer.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        Self::from_words(Field::load(bytes, 0))
    }

    /// Writes it to the first [`SQE_LEN`] bytes of a buffer.
    pub fn encode(&self, bytes: &mut [u8]) {
        self.words().store(bytes, 0);
    }

    /// Which kind of data pointer it has: [`PSDT_PRP`], [`PSDT_SGL`], or another.
    #[must_use]
    pub const fn psdt(&self) -> u8 {
        self.flags >> 6
    }

    /// With PRP entries.
    #[must_use]
    #[inline]
    pub const fn with_prps(mut self, first: u64, second: u64) -> Self {
        self.dptr = [first, second];
        self
    }

    /// With an SGL descriptor.
    #[must_use]
    #[inline]
    pub const fn with_sgl(mut self, descriptor: SglDescriptor) -> Self {
        self.flags = self.flags & 0x3f | PSDT_SGL << 6;
        self.dptr = descriptor.words();
        self
    }

    const fn new(opcode: u8, nsid: u32, cdw10: [u32; 6]) -> Self {
        Self { opcode, flags: 0, id: 0, nsid, cdw2: [0; 2], mptr: 0, dptr: [0; 2], cdw10 }
    }

    /// Identify (section 5.17) of 4096 bytes.
    #[must_use]
    pub const fn identify(cns: u8, nsid: u32) -> Self {
        Self::new(admin::IDENTIFY, nsid, [cns as u32, 0, 0, 0, 0, 0])
    }

    /// Get Log Page (section 5.16): `len` bytes, a multiple of four and more than none, from the page's start. The event
    /// that the page tells more of is cleared.
    #[must_use]
    pub const fn get_log_page(page: u8, nsid: u32, len: u32) -> Self {
        let dwords = len / 4 - 1;
        Self::new(admin::GET_LOG_PAGE, nsid, [page as u32 | dwords << 16, dwords >> 16, 0, 0, 0, 0])
    }

    /// Set Features (section 5.27), not saved.
    #[must_use]
    pub const fn set_features(feature: u8, value: u32) -> Self {
        Self::new(admin::SET_FEATURES, 0, [feature as u32, value, 0, 0, 0, 0])
    }

    /// Get Features (section 5.15): the current value.
    #[must_use]
    pub const fn get_features(feature: u8) -> Self {
        Self::new(admin::GET_FEATURES, 0, [feature as u32, 0, 0, 0, 0, 0])
    }

    /// Create I/O Completion Queue (section 5.4) of `entries` at device address `at`; with a vector, interrupts are on.
    #[must_use]
    pub const fn create_cq(queue: u16, entries: u16, at: u64, vector: Option<u16>) -> Self {
        let interrupt = match vector {
            Some(vector) => Self::IEN | (vector as u32) << 16,
            None => 0,
        };
        let sizes = queue as u32 | (entries as u32 - 1) << 16;
        Self::new(admin::CREATE_CQ, 0, [sizes, Self::PC | interrupt, 0, 0, 0, 0]).with_prps(at, 0)
    }

    /// Create I/O Submission Queue (section 5.5) of `entries` at device address `at`, completing to the completion queue of
    /// the same number.
    #[must_use]
    pub const fn create_sq(queue: u16, entries: u16, at: u64) -> Self {
        let sizes = queue as u32 | (entries as u32 - 1) << 16;
        Self::new(admin::CREATE_SQ, 0, [sizes, Self::PC | (queue as u32) << 16, 0, 0, 0, 0]).with_prps(at, 0)
    }

    /// Delete I/O Submission Queue (section 5.7).
    #[must_use]
    pub const fn delete_sq(queue: u16) -> Self {
        Self::new(admin::DELETE_SQ, 0, [queue as u32, 0, 0, 0, 0, 0])
    }

    /// Delete I/O Completion Queue (section 5.6), whose submission queue is gone.
    #[must_use]
    pub const fn delete_cq(queue: u16) -> Self {
        Self::new(admin::DELETE_CQ, 0, [queue as u32, 0, 0, 0, 0, 0])
    }

    /// Abort (section 5.1) of command `id` on submission queue `queue`. Bit 0 of the result is 0 when it was aborted.
    #[must_use]
    pub const fn abort(queue: u16, id: u16) -> Self {
        Self::new(admin::ABORT, 0, [queue as u32 | (id as u32) << 16, 0, 0, 0, 0, 0])
    }

    /// Asynchronous Event Request (section 5.2).
    #[must_use]
    pub const fn async_event_request() -> Self {
        Self::new(admin::ASYNC_EVENT_REQUEST, 0, [0; 6])
    }

    /// Doorbell Buffer Config (section 5.8): the device addresses of a page of shadow doorbells and of a page of EventIdx.
    #[must_use]
    pub const fn doorbell_buffer_config(shadow: u64, event_idx: u64) -> Self {
        Self::new(admin::DOORBELL_BUFFER_CONFIG, 0, [0; 6]).with_prps(shadow, event_idx)
    }

    /// Flush (section 7.1).
    #[must_use]
    #[inline]
    pub const fn flush(nsid: u32) -> Self {
        Self::new(io::FLUSH, nsid, [0; 6])
    }

    /// A command on a range of `blocks` (1 to 65536) logical blocks: Read, Write, Compare or Write Zeroes (NVM 3.2), with
    /// what else dword 12 shall hold.
    #[must_use]
    #[inline]
    pub const fn on_range(opcode: u8, nsid: u32, lba: u64, blocks: u32, dword12: u32) -> Self {
        let [low, high] = dwords(lba);
        Self::new(opcode, nsid, [low, high, (blocks - 1) & 0xffff | dword12, 0, 0, 0])
    }

    /// Dataset Management (NVM 3.2.3): deallocate `ranges` (1 to 256) ranges.
    #[must_use]
    pub const fn deallocate(nsid: u32, ranges: u16) -> Self {
        Self::new(io::DATASET_MANAGEMENT, nsid, [ranges as u32 - 1, Self::AD, 0, 0, 0, 0])
    }

    /// Starting LBA of a command on a range.
    #[must_use]
    pub const fn slba(&self) -> u64 {
        word(self.cdw10[0], self.cdw10[1])
    }

    /// Number of logical blocks of a command on a range, 1 to 65536 (the field is 0's based).
    #[must_use]
    pub const fn blocks(&self) -> u32 {
        (self.cdw10[2] & 0xffff) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_comes_back_as_it_was_sent() {
        let mut command =
            Command::on_range(io::WRITE, 7, 0x1_2345_6789, 65536, Command::FUA).with_prps(0xa000, 0xb000);
        command.id = 0xbeef;
        let words = command.words();
        assert_eq!(words[0], 0x0000_0007_beef_0001);
        assert_eq!((words[3], words[4]), (0xa000, 0xb000));
        assert_eq!((words[5], words[6]), (0x1_2345_6789, 0x4000_ffff));
        assert_eq!(Command::from_words(words), command);
        assert_eq!((command.slba(), command.blocks(), command.psdt()), (0x1_2345_6789, 65536, PSDT_PRP));
    }

    #[test]
    fn queues_are_created_with_sizes_less_one() {
        let cq = Command::create_cq(3, 256, 0x10000, Some(5));
        assert_eq!((cq.cdw10[0], cq.cdw10[1], cq.dptr[0]), (0x00ff_0003, 0x0005_0003, 0x10000));
        assert_eq!(Command::create_cq(3, 256, 0, None).cdw10[1], 1);
        assert_eq!(Command::create_sq(3, 2, 0).cdw10[..2], [0x0001_0003, 0x0003_0001]);
        assert_eq!(Command::get_log_page(2, u32::MAX, 512).cdw10[0], 127 << 16 | 2);
    }
}
