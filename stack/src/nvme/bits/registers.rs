//! Controller registers in BAR 0 (section 3.1.3) and the doorbells behind them (PCIe 3.1.2).

use super::layout::bit_fields;

/// Offsets of the registers, in bytes (section 3.1.3, figure "Property Definition").
pub mod register {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: u64 = 0x00;
    /// Version.
    pub const VS: u64 = 0x08;
    /// Interrupt Mask Set. Not with MSI-X.
    pub const INTMS: u64 = 0x0c;
    /// Interrupt Mask Clear. Not with MSI-X.
    pub const INTMC: u64 = 0x10;
    /// Controller Configuration.
    pub const CC: u64 = 0x14;
    /// Controller Status.
    pub const CSTS: u64 = 0x1c;
    /// NVM Subsystem Reset.
    pub const NSSR: u64 = 0x20;
    /// Admin Queue Attributes.
    pub const AQA: u64 = 0x24;
    /// Admin Submission Queue Base Address, 8 bytes.
    pub const ASQ: u64 = 0x28;
    /// Admin Completion Queue Base Address, 8 bytes.
    pub const ACQ: u64 = 0x30;
    /// Controller Ready Timeouts.
    pub const CRTO: u64 = 0x68;
}

/// Where the doorbells begin (PCIe 3.1.2).
pub const DOORBELLS: u64 = 0x1000;

/// What is written to NSSR to reset the whole subsystem, "NVMe" (section 3.1.3.7).
pub const NSSR_RESET: u32 = 0x4e56_4d65;

/// Where a queue's doorbell lies, in bytes from [`DOORBELLS`], and from the start of a shadow doorbell or EventIdx buffer
/// (PCIe 3.1.2.1 and 3.1.2.2; section 5.8): tail of submission queue `queue`, or head of completion queue `queue`.
#[must_use]
pub const fn doorbell(queue: u16, completion: bool, dstrd: u64) -> u64 {
    (2 * queue as u64 + completion as u64) * (4 << dstrd)
}

bit_fields! {
    /// Controller Capabilities, CAP (section 3.1.3.1).
    Capabilities: u64 {
        /// Maximum Queue Entries Supported, 0's based: of I/O queues.
        mqes, with_mqes = 0, 16;
        /// Contiguous Queues Required.
        cqr, with_cqr = 16, 1;
        /// Arbitration Mechanism Supported.
        ams, with_ams = 17, 2;
        /// Timeout, in 500 ms: the longest time for CSTS.RDY to follow CC.EN.
        to, with_to = 24, 8;
        /// Doorbell Stride: 2^(2 + DSTRD) bytes.
        dstrd, with_dstrd = 32, 4;
        /// NVM Subsystem Reset Supported.
        nssrs, with_nssrs = 36, 1;
        /// Command Sets Supported: bit 0 NVM, bit 6 others too, bit 7 none.
        css, with_css = 37, 8;
        /// Boot Partition Support.
        bps, with_bps = 45, 1;
        /// Controller Power Scope.
        cps, with_cps = 46, 2;
        /// Memory Page Size Minimum: 2^(12 + MPSMIN) bytes.
        mpsmin, with_mpsmin = 48, 4;
        /// Memory Page Size Maximum: 2^(12 + MPSMAX) bytes.
        mpsmax, with_mpsmax = 52, 4;
        /// Persistent Memory Region Supported.
        pmrs, with_pmrs = 56, 1;
        /// Controller Memory Buffer Supported.
        cmbs, with_cmbs = 57, 1;
        /// NVM Subsystem Shutdown Supported.
        nsss, with_nsss = 58, 1;
        /// Controller Ready With Media Support: CRTO.CRWMT counts.
        crwms, with_crwms = 59, 1;
        /// Controller Ready Independent of Media Support: CRTO.CRIMT counts.
        crims, with_crims = 60, 1;
    }
}

impl Capabilities {
    /// CSS: the NVM command set.
    pub const CSS_NVM: u64 = 1 << 0;
    /// CSS: no I/O command set at all.
    pub const CSS_NONE: u64 = 1 << 7;
}

bit_fields! {
    /// Version, VS (section 3.1.3.2).
    Version: u32 {
        /// Tertiary.
        ter, with_ter = 0, 8;
        /// Minor.
        mnr, with_mnr = 8, 8;
        /// Major.
        mjr, with_mjr = 16, 16;
    }
}

bit_fields! {
    /// Controller Configuration, CC (section 3.1.3.5).
    Configuration: u32 {
        /// Enable.
        en, with_en = 0, 1;
        /// I/O Command Set Selected: 0 NVM, 6 all that are supported, 7 admin only.
        css, with_css = 4, 3;
        /// Memory Page Size: 2^(12 + MPS) bytes.
        mps, with_mps = 7, 4;
        /// Arbitration Mechanism Selected: 0 round robin.
        ams, with_ams = 11, 3;
        /// Shutdown Notification.
        shn, with_shn = 14, 2;
        /// I/O Submission Queue Entry Size, 2^n bytes.
        iosqes, with_iosqes = 16, 4;
        /// I/O Completion Queue Entry Size, 2^n bytes.
        iocqes, with_iocqes = 20, 4;
        /// Controller Ready Independent of Media Enable.
        crime, with_crime = 24, 1;
    }
}

impl Configuration {
    /// SHN: a normal shutdown.
    pub const SHN_NORMAL: u32 = 1;
    /// SHN: an abrupt shutdown.
    pub const SHN_ABRUPT: u32 = 2;
}

bit_fields! {
    /// Controller Status, CSTS (section 3.1.3.6).
    ControllerStatus: u32 {
        /// Ready.
        rdy, with_rdy = 0, 1;
        /// Controller Fatal Status.
        cfs, with_cfs = 1, 1;
        /// Shutdown Status.
        shst, with_shst = 2, 2;
        /// NVM Subsystem Reset Occurred.
        nssro, with_nssro = 4, 1;
        /// Processing Paused.
        pp, with_pp = 5, 1;
    }
}

impl ControllerStatus {
    /// SHST: nothing of the kind.
    pub const SHST_NORMAL: u32 = 0;
    /// SHST: shutdown is going on.
    pub const SHST_OCCURRING: u32 = 1;
    /// SHST: shutdown is complete.
    pub const SHST_COMPLETE: u32 = 2;
}

bit_fields! {
    /// Admin Queue Attributes, AQA (section 3.1.3.8).
    AdminQueueAttributes: u32 {
        /// Admin Submission Queue Size, 0's based.
        asqs, with_asqs = 0, 12;
        /// Admin Completion Queue Size, 0's based.
        acqs, with_acqs = 16, 12;
    }
}

bit_fields! {
    /// Controller Ready Timeouts, CRTO (section 3.1.3.22), in 500 ms.
    ReadyTimeouts: u32 {
        /// Controller Ready With Media Timeout.
        crwmt, with_crwmt = 0, 16;
        /// Controller Ready Independent of Media Timeout.
        crimt, with_crimt = 16, 16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_set_and_read_where_it_lies() {
        // What QEMU's controller says of itself: 2048 entries, 15 × 500 ms, NVM and others, pages up to 64 KiB.
        let qemu = Capabilities(0x0040_0020_0f01_07ff | 1 << 43 | 1 << 37);
        assert_eq!((qemu.mqes(), qemu.cqr(), qemu.to(), qemu.dstrd()), (2047, 1, 15, 0));
        assert_eq!((qemu.mpsmin(), qemu.mpsmax(), qemu.css() & Capabilities::CSS_NVM), (0, 4, 1));
        let cc = Configuration::default().with_en(1).with_iosqes(6).with_iocqes(4);
        assert_eq!(cc.0, 0x0046_0001);
        assert_eq!(cc.with_shn(Configuration::SHN_NORMAL).with_en(0).0, 0x0046_4000);
        assert_eq!(cc.with_en(2).en(), 0, "a value is cut to its field");
        assert_eq!(AdminQueueAttributes::default().with_asqs(31).with_acqs(63).0, 0x003f_001f);
    }

    #[test]
    fn doorbells_follow_one_another_at_the_stride() {
        assert_eq!(doorbell(0, false, 0), 0);
        assert_eq!(doorbell(0, true, 0), 4);
        assert_eq!(doorbell(3, true, 2), 7 * 16);
    }
}
