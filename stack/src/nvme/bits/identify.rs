//! What Identify gives (section 5.17.2 and NVM 4.1.5), and the ranges of Dataset Management.

use super::layout::{bit_fields, structure};

/// Bytes of every structure that Identify gives.
pub const IDENTIFY_LEN: usize = 4096;
/// Identifiers in a list of namespaces (section 5.17.2.2), 0 behind the last.
pub const NAMESPACE_LIST_ENTRIES: usize = IDENTIFY_LEN / 4;
/// The namespace identifier that stands for all (section 3.2.1.2).
pub const NSID_ALL: u32 = 0xffff_ffff;
/// The highest identifier that a namespace may have (section 3.2.1.2).
pub const NSID_MAX: u32 = 0xffff_fffe;

structure! {
    /// Identify Controller (section 5.17.2.1).
    IdentifyController: 4096 {
        /// PCI Vendor ID.
        vid: u16 = 0,
        /// PCI Subsystem Vendor ID.
        ssvid: u16 = 2,
        /// Serial Number, ASCII padded with spaces.
        sn: [u8; 20] = 4,
        /// Model Number, likewise.
        mn: [u8; 40] = 24,
        /// Firmware Revision, likewise.
        fr: [u8; 8] = 64,
        /// Recommended Arbitration Burst.
        rab: u8 = 72,
        /// IEEE OUI.
        ieee: [u8; 3] = 73,
        /// Controller Multi-Path I/O and Namespace Sharing Capabilities.
        cmic: u8 = 76,
        /// Maximum Data Transfer Size: 2^MDTS smallest pages, 0 no limit.
        mdts: u8 = 77,
        /// Controller ID.
        cntlid: u16 = 78,
        /// Version.
        ver: u32 = 80,
        /// RTD3 Resume Latency, microseconds.
        rtd3r: u32 = 84,
        /// RTD3 Entry Latency, microseconds: how long a normal shutdown may take.
        rtd3e: u32 = 88,
        /// Optional Asynchronous Events Supported; as [`super::AsyncEventConfig`].
        oaes: u32 = 92,
        /// Controller Attributes.
        ctratt: u32 = 96,
        /// Controller Type: 0 not reported, 1 I/O, 2 discovery, 3 administrative.
        cntrltype: u8 = 111,
        /// Command Retry Delay Times 1 to 3, in 100 ms.
        crdt: [u16; 3] = 128,
        /// Optional Admin Command Support.
        oacs: u16 = 256,
        /// Abort Command Limit, 0's based.
        acl: u8 = 258,
        /// Asynchronous Event Request Limit, 0's based.
        aerl: u8 = 259,
        /// Firmware Updates.
        frmw: u8 = 260,
        /// Log Page Attributes.
        lpa: u8 = 261,
        /// Error Log Page Entries, 0's based.
        elpe: u8 = 262,
        /// Warning Composite Temperature Threshold, kelvin.
        wctemp: u16 = 266,
        /// Critical Composite Temperature Threshold, kelvin.
        cctemp: u16 = 268,
        /// Total NVM Capacity, bytes.
        tnvmcap: u128 = 280,
        /// Keep Alive Support: how fine the timer is, in 100 ms; 0 none.
        kas: u16 = 320,
        /// Submission Queue Entry Size: required in bits 3:0, maximum in bits 7:4, 2^n bytes.
        sqes: u8 = 512,
        /// Completion Queue Entry Size, likewise.
        cqes: u8 = 513,
        /// Maximum Outstanding Commands.
        maxcmd: u16 = 514,
        /// Number of Namespaces: the highest identifier.
        nn: u32 = 516,
        /// Optional NVM Command Support.
        oncs: u16 = 520,
        /// Fused Operation Support.
        fuses: u16 = 522,
        /// Format NVM Attributes.
        fna: u8 = 524,
        /// Volatile Write Cache: bit 0 present.
        vwc: u8 = 525,
        /// Atomic Write Unit Normal, blocks, 0's based.
        awun: u16 = 526,
        /// Atomic Write Unit Power Fail, blocks, 0's based.
        awupf: u16 = 528,
        /// Atomic Compare and Write Unit, blocks, 0's based.
        acwu: u16 = 532,
        /// SGL Support.
        sgls: u32 = 536,
        /// Maximum Number of Allowed Namespaces.
        mnan: u32 = 540,
        /// NVM Subsystem NVMe Qualified Name, ASCII, ended by zero.
        subnqn: [u8; 256] = 768,
        /// I/O Queue Command Capsule Supported Size, 16 bytes each.
        ioccsz: u32 = 1792,
        /// I/O Queue Response Capsule Supported Size, 16 bytes each.
        iorcsz: u32 = 1796,
        /// In Capsule Data Offset, 16 bytes each, behind the command.
        icdoff: u16 = 1800,
        /// Fabrics Controller Attributes: bit 0, only one subsystem per controller by static allocation.
        fcatt: u8 = 1802,
        /// Maximum SGL Data Block Descriptors of a capsule, 0 no limit.
        msdbd: u8 = 1803,
        /// Optional Fabrics Commands Supported: bit 0 Disconnect.
        ofcs: u16 = 1804,
    }
}

impl IdentifyController {
    /// OACS: Doorbell Buffer Config.
    pub const OACS_DOORBELL_BUFFER: u16 = 1 << 8;
    /// ONCS: Compare.
    pub const ONCS_COMPARE: u16 = 1 << 0;
    /// ONCS: Dataset Management.
    pub const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
    /// ONCS: Write Zeroes.
    pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
    /// VWC: a volatile write cache is present.
    pub const VWC_PRESENT: u8 = 1 << 0;
    /// SGLS bits 1:0: SGLs with any alignment of data.
    pub const SGLS_ANY_ALIGNMENT: u32 = 1;
    /// SGLS bits 1:0: SGLs with data aligned to, and in multiples of, four bytes.
    pub const SGLS_DWORD_ALIGNMENT: u32 = 2;
    /// CNTRLTYPE: a controller with I/O.
    pub const TYPE_IO: u8 = 1;
    /// CNTRLTYPE: a discovery controller.
    pub const TYPE_DISCOVERY: u8 = 2;
    /// CMIC: the subsystem may have more than one port.
    pub const CMIC_PORTS: u8 = 1 << 0;
    /// CMIC: the subsystem may have more than one controller.
    pub const CMIC_CONTROLLERS: u8 = 1 << 1;
    /// LPA: the Commands Supported and Effects log is there.
    pub const LPA_EFFECTS: u8 = 1 << 1;
    /// LPA: Get Log Page takes long lengths and offsets.
    pub const LPA_EXTENDED: u8 = 1 << 2;
    /// SGLS: data in the capsule by an offset.
    pub const SGLS_OFFSET: u32 = 1 << 20;
    /// SGLS: transport SGL data blocks.
    pub const SGLS_TRANSPORT: u32 = 1 << 21;
    /// VWC bits 2:1: Flush with the namespace that stands for all is refused.
    pub const VWC_FLUSH_ALL_REFUSED: u8 = 2 << 1;
    /// OFCS: Disconnect.
    pub const OFCS_DISCONNECT: u16 = 1 << 0;
}

bit_fields! {
    /// An LBA format (NVM 4.1.5.1, figure "LBA Format Data Structure").
    LbaFormat: u32 {
        /// Metadata Size, bytes.
        ms, with_ms = 0, 16;
        /// LBA Data Size: 2^n bytes.
        lbads, with_lbads = 16, 8;
        /// Relative Performance.
        rp, with_rp = 24, 2;
    }
}

structure! {
    /// Identify Namespace of the NVM command set (NVM 4.1.5.1).
    IdentifyNamespace: 4096 {
        /// Namespace Size, blocks.
        nsze: u64 = 0,
        /// Namespace Capacity, blocks.
        ncap: u64 = 8,
        /// Namespace Utilization, blocks.
        nuse: u64 = 16,
        /// Namespace Features: bit 1, atomic units of its own; bit 4, preferred sizes.
        nsfeat: u8 = 24,
        /// Number of LBA Formats, 0's based.
        nlbaf: u8 = 25,
        /// Formatted LBA Size: format index in bits 3:0 (and 6:5 where there are more than 16), bit 4 extended.
        flbas: u8 = 26,
        /// Metadata Capabilities.
        mc: u8 = 27,
        /// End-to-end Data Protection Capabilities.
        dpc: u8 = 28,
        /// End-to-end Data Protection Type Settings: type in bits 2:0.
        dps: u8 = 29,
        /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
        nmic: u8 = 30,
        /// Reservation Capabilities.
        rescap: u8 = 31,
        /// Deallocate Logical Block Features: value read in bits 2:0, bit 3 DEAC of Write Zeroes.
        dlfeat: u8 = 33,
        /// Namespace Atomic Write Unit Normal, blocks, 0's based.
        nawun: u16 = 34,
        /// Namespace Atomic Write Unit Power Fail, blocks, 0's based.
        nawupf: u16 = 36,
        /// Namespace Atomic Boundary Size Normal, blocks, 0's based.
        nabsn: u16 = 40,
        /// Namespace Atomic Boundary Offset, blocks.
        nabo: u16 = 42,
        /// Namespace Atomic Boundary Size Power Fail, blocks, 0's based.
        nabspf: u16 = 44,
        /// Namespace Optimal I/O Boundary, blocks, 0 none.
        noiob: u16 = 46,
        /// Namespace Preferred Write Granularity, blocks, 0's based.
        npwg: u16 = 64,
        /// Namespace Preferred Write Alignment, blocks, 0's based.
        npwa: u16 = 66,
        /// ANA Group Identifier.
        anagrpid: u32 = 92,
        /// Namespace Attributes: bit 0, write protected now.
        nsattr: u8 = 99,
        /// Namespace Globally Unique Identifier.
        nguid: [u8; 16] = 104,
        /// IEEE Extended Unique Identifier.
        eui64: [u8; 8] = 120,
        /// LBA Formats, as [`LbaFormat`].
        lbaf: [u32; 64] = 128,
    }
}

impl IdentifyNamespace {
    /// NSFEAT: NAWUN, NAWUPF and the atomic boundaries count.
    pub const NSFEAT_ATOMIC: u8 = 1 << 1;
    /// NSFEAT: NPWG and NPWA count.
    pub const NSFEAT_PREFERRED: u8 = 1 << 4;
    /// DLFEAT: Write Zeroes may deallocate.
    pub const DLFEAT_DEAC: u8 = 1 << 3;
    /// DLFEAT bits 2:0: a deallocated block is read as zeroes.
    pub const DLFEAT_READS_ZEROES: u8 = 1;
    /// NMIC: more than one controller may have it.
    pub const NMIC_SHARED: u8 = 1 << 0;
    /// NSATTR: write protected now.
    pub const NSATTR_WRITE_PROTECTED: u8 = 1 << 0;

    /// Index of the format in use.
    #[must_use]
    pub const fn format_index(&self) -> u8 {
        let low = self.flbas & 0xf;
        if self.nlbaf < 16 { low } else { low | (self.flbas >> 5 & 3) << 4 }
    }
}

structure! {
    /// Identify Namespace as no command set describes it (section 5.17.2.8).
    IndependentNamespace: 4096 {
        /// Common Namespace Features.
        nsfeat: u8 = 0,
        /// As [`IdentifyNamespace::nmic`].
        nmic: u8 = 1,
        /// Reservation Capabilities.
        rescap: u8 = 2,
        /// ANA Group Identifier.
        anagrpid: u32 = 4,
        /// As [`IdentifyNamespace::nsattr`].
        nsattr: u8 = 8,
        /// Namespace Status: [`IndependentNamespace::NSTAT_READY`].
        nstat: u8 = 14,
    }
}

impl IndependentNamespace {
    /// NSTAT: ready.
    pub const NSTAT_READY: u8 = 1 << 0;
}

structure! {
    /// What the NVM command set adds to Identify Controller (NVM 4.1.5.4). Sizes are powers of two of smallest pages; 0
    /// stands for no limit.
    IdentifyNvmController: 4096 {
        /// Verify Size Limit.
        vsl: u8 = 0,
        /// Write Zeroes Size Limit.
        wzsl: u8 = 1,
        /// Write Uncorrectable Size Limit.
        wusl: u8 = 2,
        /// Dataset Management Ranges Limit.
        dmrl: u8 = 3,
        /// Dataset Management Range Size Limit, blocks.
        dmrsl: u32 = 4,
        /// Dataset Management Size Limit, blocks.
        dmsl: u64 = 8,
    }
}

structure! {
    /// A range of Dataset Management (NVM 3.2.3, figure "Range Definition").
    DsmRange: 16 {
        /// Context Attributes.
        attributes: u32 = 0,
        /// Length in blocks.
        blocks: u32 = 4,
        /// Starting LBA.
        slba: u64 = 8,
    }
}

/// Ranges that one Dataset Management command may have.
pub const DSM_RANGES_MAX: usize = 256;

/// One identification descriptor of a namespace (section 5.17.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdDescriptor<'a> {
    /// Namespace Identifier Type.
    pub nidt: u8,
    /// The identifier.
    pub nid: &'a [u8],
}

impl IdDescriptor<'_> {
    /// NIDT: IEEE EUI-64.
    pub const EUI64: u8 = 1;
    /// NIDT: NGUID.
    pub const NGUID: u8 = 2;
    /// NIDT: UUID.
    pub const UUID: u8 = 3;
    /// NIDT: command set identifier.
    pub const CSI: u8 = 4;
    /// Bytes before the identifier.
    pub const HEADER_LEN: usize = 4;

    /// Writes it at the start of a buffer with room for it; says how many bytes it has.
    pub fn encode(&self, bytes: &mut [u8]) -> usize {
        let len = Self::HEADER_LEN + self.nid.len();
        bytes[..Self::HEADER_LEN].copy_from_slice(&[self.nidt, self.nid.len() as u8, 0, 0]);
        bytes[Self::HEADER_LEN..len].copy_from_slice(self.nid);
        len
    }
}

/// The descriptors in what Identify gave, up to the first that is empty or does not fit.
#[derive(Clone, Debug)]
pub struct IdDescriptors<'a>(pub &'a [u8]);

impl<'a> Iterator for IdDescriptors<'a> {
    type Item = IdDescriptor<'a>;

    fn next(&mut self) -> Option<IdDescriptor<'a>> {
        let [nidt, len, _, _, rest @ ..] = self.0 else { return None };
        let (nid, rest) = rest.split_at_checked(usize::from(*len)).filter(|(nid, _)| !nid.is_empty())?;
        self.0 = rest;
        Some(IdDescriptor { nidt: *nidt, nid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_comes_back_as_it_was_written() {
        let mut controller = IdentifyController { mdts: 7, nn: 3, sgls: 2, ..Default::default() };
        controller.sn.copy_from_slice(b"S3RIAL              ");
        let mut bytes = [0xff; IDENTIFY_LEN];
        controller.encode(&mut bytes);
        assert_eq!((bytes[77], bytes[516], bytes[100]), (7, 3, 0));
        assert_eq!(IdentifyController::decode(&bytes), controller);

        let mut namespace = IdentifyNamespace { nsze: 1 << 40, flbas: 0x21, ..Default::default() };
        namespace.lbaf[17] = LbaFormat::default().with_lbads(12).with_ms(8).0;
        namespace.encode(&mut bytes);
        assert_eq!(IdentifyNamespace::decode(&bytes), namespace);
        assert_eq!(namespace.format_index(), 1);
        assert_eq!(IdentifyNamespace { nlbaf: 16, ..namespace }.format_index(), 17);
    }

    #[test]
    fn descriptors_end_at_the_first_that_does_not_fit() {
        let mut bytes = [0; 64];
        let uuid = IdDescriptor { nidt: IdDescriptor::UUID, nid: &[7; 16] };
        let len = uuid.encode(&mut bytes);
        bytes[len..len + 4].copy_from_slice(&[IdDescriptor::NGUID, 200, 0, 0]);
        let mut descriptors = IdDescriptors(&bytes);
        assert_eq!(descriptors.next(), Some(uuid));
        assert_eq!(descriptors.next(), None);
        assert_eq!(IdDescriptors(&[1, 0, 0, 0, 5]).next(), None);
        assert_eq!(IdDescriptors(&[1, 8]).next(), None);
    }
}
