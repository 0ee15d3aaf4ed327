//! NVMe/TCP: the headers of its protocol data units (NVMe/TCP transport specification, section 3.6).
//!
//! A PDU is a header (with a digest if both sides agreed on it), and for some types data: aligned by padding, with a
//! digest of its own.

use super::layout::{Field, structure};

/// Types of PDUs, by the byte that they begin with.
pub mod pdu {
    /// Initialize Connection Request: the host's first.
    pub const IC_REQ: u8 = 0x00;
    /// Initialize Connection Response: the controller's first.
    pub const IC_RESP: u8 = 0x01;
    /// Host to Controller Terminate Connection Request.
    pub const H2C_TERM_REQ: u8 = 0x02;
    /// Controller to Host Terminate Connection Request.
    pub const C2H_TERM_REQ: u8 = 0x03;
    /// Command Capsule.
    pub const CAPSULE_CMD: u8 = 0x04;
    /// Response Capsule.
    pub const CAPSULE_RESP: u8 = 0x05;
    /// Host to Controller Data Transfer.
    pub const H2C_DATA: u8 = 0x06;
    /// Controller to Host Data Transfer.
    pub const C2H_DATA: u8 = 0x07;
    /// Ready to Transfer.
    pub const R2T: u8 = 0x09;
}

structure! {
    /// The common header.
    PduHeader: 8 {
        /// Type: [`pdu`].
        kind: u8 = 0,
        /// Flags: [`PduHeader::HDGSTF`] and its neighbours.
        flags: u8 = 1,
        /// Header Length, bytes, its digest not counted.
        hlen: u8 = 2,
        /// PDU Data Offset, bytes from the PDU's start; 0 where there is no data.
        pdo: u8 = 3,
        /// PDU Length, bytes: header, digests, padding and data.
        plen: u32 = 4,
    }
}

impl PduHeader {
    /// Flag: a header digest follows the header.
    pub const HDGSTF: u8 = 1 << 0;
    /// Flag: a data digest follows the data.
    pub const DDGSTF: u8 = 1 << 1;
    /// Flag of data: the last PDU of an R2T, or of a command's data.
    pub const LAST_PDU: u8 = 1 << 2;
    /// Flag of data to the host: the command is done well, no response capsule follows.
    pub const SUCCESS: u8 = 1 << 3;
    /// Bytes of a digest: CRC32C, little-endian.
    pub const DIGEST_LEN: usize = 4;
    /// Most that PDO may be: an alignment of 32 dwords.
    pub const PDO_MAX: u8 = 128;
}

impl Field for PduHeader {
    fn load(bytes: &[u8], at: usize) -> Self {
        Self::decode(&bytes[at..])
    }
    fn store(&self, bytes: &mut [u8], at: usize) {
        self.encode(&mut bytes[at..]);
    }
}

/// Bits of the digests that the two sides agree on.
pub mod digest {
    /// Headers.
    pub const HEADER: u8 = 1 << 0;
    /// Data.
    pub const DATA: u8 = 1 << 1;
}

structure! {
    /// Initialize Connection Request.
    IcReq: 128 {
        /// The common header.
        header: PduHeader = 0,
        /// PDU Format Version, 0.
        pfv: u16 = 8,
        /// Host PDU Data Alignment: of data to the host, dwords, 0's based, at most 31.
        hpda: u8 = 10,
        /// Digests that the host wants: [`digest`].
        dgst: u8 = 11,
        /// Maximum Number of Outstanding R2T of a command, 0's based.
        maxr2t: u32 = 12,
    }
}

structure! {
    /// Initialize Connection Response.
    IcResp: 128 {
        /// The common header.
        header: PduHeader = 0,
        /// PDU Format Version, 0.
        pfv: u16 = 8,
        /// Controller PDU Data Alignment: of data to the controller, as [`IcReq::hpda`].
        cpda: u8 = 10,
        /// Digests in force: [`digest`].
        dgst: u8 = 11,
        /// Maximum Host to Controller Data length: bytes of data in one PDU, at least 4096.
        maxh2cdata: u32 = 12,
    }
}

structure! {
    /// Terminate Connection Request, of either side. The header of the PDU that was wrong follows.
    TermReq: 24 {
        /// The common header.
        header: PduHeader = 0,
        /// Fatal Error Status: [`TermReq::INVALID_HEADER_FIELD`] and its neighbours.
        fes: u16 = 8,
        /// Fatal Error Information: the offset of a wrong field, or a digest that was seen.
        fei: u32 = 10,
    }
}

impl TermReq {
    /// FES: a header field is invalid; FEI is its offset.
    pub const INVALID_HEADER_FIELD: u16 = 0x01;
    /// FES: a PDU came where it may not.
    pub const PDU_SEQUENCE: u16 = 0x02;
    /// FES: the header digest is wrong; FEI is the digest that was received.
    pub const HEADER_DIGEST: u16 = 0x03;
    /// FES: data for a place outside the transfer.
    pub const DATA_OUT_OF_RANGE: u16 = 0x04;
    /// FES: more data in a PDU, or more R2Ts, than agreed on.
    pub const LIMIT_EXCEEDED: u16 = 0x05;
    /// FES: a parameter that is not supported; FEI is its offset.
    pub const UNSUPPORTED_PARAMETER: u16 = 0x06;
    /// Most bytes of the wrong PDU that follow.
    pub const QUOTE_MAX: usize = 128;
}

/// Bytes of the header of a Command Capsule: the common header and a command.
pub const CAPSULE_CMD_LEN: usize = PduHeader::LEN + super::SQE_LEN as usize;
/// Bytes of the header of a Response Capsule: the common header and a completion, without phase.
pub const CAPSULE_RESP_LEN: usize = PduHeader::LEN + super::CQE_LEN as usize;

structure! {
    /// Data Transfer, either way.
    DataPdu: 24 {
        /// The common header.
        header: PduHeader = 0,
        /// Command Capsule Command ID.
        cccid: u16 = 8,
        /// Transfer Tag of the R2T that is answered; to the host nothing.
        ttag: u16 = 10,
        /// Data Offset from the start of the command's data, bytes.
        datao: u32 = 12,
        /// Data Length, bytes.
        datal: u32 = 16,
    }
}

structure! {
    /// Ready to Transfer.
    R2t: 24 {
        /// The common header.
        header: PduHeader = 0,
        /// Command Capsule Command ID.
        cccid: u16 = 8,
        /// Transfer Tag, for the data that answers.
        ttag: u16 = 10,
        /// Requested Data Offset from the start of the command's data, bytes.
        r2to: u32 = 12,
        /// Requested Data Length, bytes.
        r2tl: u32 = 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_connect_looks_as_linux_was_seen_to_send_it() {
        let header = PduHeader { kind: pdu::IC_REQ, hlen: 128, plen: 128, ..Default::default() };
        let mut bytes = [0xff; 128];
        IcReq { header, dgst: digest::HEADER | digest::DATA, maxr2t: 3, ..Default::default() }
            .encode(&mut bytes);
        assert_eq!(bytes[..16], [0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0]);
        assert!(bytes[16..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_error_information_is_not_aligned() {
        let mut bytes = [0; TermReq::LEN];
        TermReq { fes: TermReq::HEADER_DIGEST, fei: 0x1234_5678, ..Default::default() }.encode(&mut bytes);
        assert_eq!(bytes[8..14], [3, 0, 0x78, 0x56, 0x34, 0x12]);
    }
}
