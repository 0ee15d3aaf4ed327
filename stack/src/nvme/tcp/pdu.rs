//! Headers of PDUs from the host: judged before anything of them is used (TCP 3.6.2).

use super::{Agreed, CAPSULE_DATA_MAX, H2C_DATA_MAX, digest};
use crate::nvme::bits::{CAPSULE_CMD_LEN, DataPdu, PduHeader, TermReq, pdu};
use core::fmt;

/// Why a connection is terminated: what goes into the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fatal {
    /// Fatal Error Status.
    pub(super) fes: u16,
    /// Fatal Error Information.
    pub(super) fei: u32,
}

impl Fatal {
    /// The field at this offset of the header is wrong.
    pub(super) const fn field(offset: u32) -> Self {
        Self { fes: TermReq::INVALID_HEADER_FIELD, fei: offset }
    }

    /// A PDU came where it may not.
    pub(super) const SEQUENCE: Self = Self { fes: TermReq::PDU_SEQUENCE, fei: 0 };
    /// Data is for a place outside of its transfer.
    pub(super) const OUT_OF_RANGE: Self = Self { fes: TermReq::DATA_OUT_OF_RANGE, fei: 0 };
    /// More data than was agreed on.
    pub(super) const LIMIT: Self = Self { fes: TermReq::LIMIT_EXCEEDED, fei: 0 };

    /// A header's digest, as it was received.
    const fn digest(received: u32) -> Self {
        Self { fes: TermReq::HEADER_DIGEST, fei: received }
    }

    /// A parameter at this offset is not supported.
    pub(super) const fn unsupported(offset: u32) -> Self {
        Self { fes: TermReq::UNSUPPORTED_PARAMETER, fei: offset }
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fes, fei } = *self;
        match fes {
            TermReq::INVALID_HEADER_FIELD => write!(f, "the PDU header's field at byte {fei} is invalid"),
            TermReq::PDU_SEQUENCE => f.write_str("a PDU came where it may not"),
            TermReq::HEADER_DIGEST => write!(f, "the header digest is wrong: received {fei:08x}"),
            TermReq::DATA_OUT_OF_RANGE => f.write_str("data for a place outside of its transfer"),
            TermReq::LIMIT_EXCEEDED => f.write_str("more data in a PDU than agreed on"),
            _ => write!(f, "the parameter at byte {fei} of the PDU is not supported"),
        }
    }
}

/// Where the fields of the common header lie.
pub(super) mod at {
    pub(in crate::nvme::tcp) const KIND: u32 = 0;
    pub(in crate::nvme::tcp) const FLAGS: u32 = 1;
    pub(in crate::nvme::tcp) const HLEN: u32 = 2;
    pub(in crate::nvme::tcp) const PDO: u32 = 3;
    pub(in crate::nvme::tcp) const PLEN: u32 = 4;
}

/// How a PDU is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes before the data, or all bytes where there is none.
    pub(super) before_data: usize,
    /// Bytes of data.
    pub(super) data: u32,
    /// The data has a digest.
    pub(super) data_digest: bool,
}

/// Judges a common header on a connection that is agreed on.
pub(super) fn shape(header: &PduHeader, agreed: &Agreed) -> Result<Shape, Fatal> {
    let (hlen, data_max) = match header.kind {
        pdu::CAPSULE_CMD => (CAPSULE_CMD_LEN, CAPSULE_DATA_MAX),
        pdu::H2C_DATA => (DataPdu::LEN, H2C_DATA_MAX),
        pdu::H2C_TERM_REQ => return term_req(header),
        // The connection has been initialized.
        pdu::IC_REQ => return Err(Fatal::SEQUENCE),
        _ => return Err(Fatal::field(at::KIND)),
    };
    if usize::from(header.hlen) != hlen {
        return Err(Fatal::field(at::HLEN));
    }
    if (header.flags & PduHeader::HDGSTF != 0) != agreed.header_digest {
        return Err(Fatal::field(at::FLAGS));
    }
    let head = hlen + if agreed.header_digest { PduHeader::DIGEST_LEN } else { 0 };
    let plen = header.plen as usize;
    if plen == head && header.kind == pdu::CAPSULE_CMD {
        return Ok(Shape { before_data: head, data: 0, data_digest: false });
    }
    // Data follows.
    if (header.flags & PduHeader::DDGSTF != 0) != agreed.data_digest {
        return Err(Fatal::field(at::FLAGS));
    }
    let pdo = usize::from(header.pdo);
    if pdo < head || pdo > usize::from(PduHeader::PDO_MAX) || pdo % 4 != 0 {
        return Err(Fatal::field(at::PDO));
    }
    let tail = if agreed.data_digest { PduHeader::DIGEST_LEN } else { 0 };
    let data = plen.checked_sub(pdo + tail).filter(|data| *data > 0).ok_or(Fatal::field(at::PLEN))?;
    let data = u32::try_from(data).ok().filter(|data| *data <= data_max).ok_or(Fatal::LIMIT)?;
    Ok(Shape { before_data: pdo, data, data_digest: agreed.data_digest })
}

/// A termination request of the host: it has no digest, and what it quotes is of no interest.
fn term_req(header: &PduHeader) -> Result<Shape, Fatal> {
    if usize::from(header.hlen) != TermReq::LEN {
        return Err(Fatal::field(at::HLEN));
    }
    let quoted = header.plen.checked_sub(TermReq::LEN as u32).ok_or(Fatal::field(at::PLEN))?;
    if quoted as usize > TermReq::QUOTE_MAX {
        return Err(Fatal::field(at::PLEN));
    }
    Ok(Shape { before_data: TermReq::LEN, data: quoted, data_digest: false })
}

/// Checks the digest behind a header of `hlen` bytes.
pub(super) fn check_header_digest(bytes: &[u8], hlen: usize) -> Result<(), Fatal> {
    let received = u32::from_le_bytes(bytes[hlen..hlen + 4].try_into().expect("four bytes"));
    if digest::of(&bytes[..hlen]) == received { Ok(()) } else { Err(Fatal::digest(received)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Agreed = Agreed { header_digest: false, data_digest: false, host_alignment: 4 };
    const BOTH: Agreed = Agreed { header_digest: true, data_digest: true, host_alignment: 4 };

    fn header(kind: u8, flags: u8, hlen: u8, pdo: u8, plen: u32) -> PduHeader {
        PduHeader { kind, flags, hlen, pdo, plen }
    }

    #[test]
    fn good_headers_have_their_shape() {
        let none = Shape { before_data: 72, data: 0, data_digest: false };
        assert_eq!(shape(&header(4, 0, 72, 0, 72), &PLAIN), Ok(none));
        let some = Shape { before_data: 72, data: 1024, data_digest: false };
        assert_eq!(shape(&header(4, 0, 72, 72, 1096), &PLAIN), Ok(some));
        let digests = Shape { before_data: 80, data: 512, data_digest: true };
        assert_eq!(shape(&header(4, 3, 72, 80, 80 + 512 + 4), &BOTH), Ok(digests));
        assert_eq!(shape(&header(4, 1, 72, 0, 76), &BOTH).map(|shape| shape.data), Ok(0));
        let most = Shape { before_data: 24, data: H2C_DATA_MAX, data_digest: false };
        assert_eq!(shape(&header(6, 4, 24, 24, 24 + H2C_DATA_MAX), &PLAIN), Ok(most));
        let quote = Shape { before_data: 24, data: 128, data_digest: false };
        assert_eq!(shape(&header(2, 0, 24, 0, 152), &BOTH), Ok(quote));
    }

    #[test]
    fn every_wrong_field_is_named() {
        for (found, agreed, fatal) in [
            (header(0, 0, 128, 0, 128), PLAIN, Fatal::SEQUENCE),
            (header(1, 0, 128, 0, 128), PLAIN, Fatal::field(0)),
            (header(7, 0, 24, 24, 100), PLAIN, Fatal::field(0)),
            (header(0xff, 0, 24, 24, 100), PLAIN, Fatal::field(0)),
            (header(4, 0, 71, 0, 72), PLAIN, Fatal::field(2)),
            (header(4, 1, 72, 0, 76), PLAIN, Fatal::field(1)),
            (header(4, 0, 72, 0, 72), BOTH, Fatal::field(1)),
            (header(4, 1, 72, 76, 1024), BOTH, Fatal::field(1)),
            (header(4, 0, 72, 68, 1024), PLAIN, Fatal::field(3)),
            (header(4, 0, 72, 73, 1024), PLAIN, Fatal::field(3)),
            (header(4, 0, 72, 132, 1024), PLAIN, Fatal::field(3)),
            (header(4, 0, 72, 76, 75), PLAIN, Fatal::field(4)),
            (header(4, 0, 72, 0, 0), PLAIN, Fatal::field(3)),
            (header(4, 3, 72, 76, 80), BOTH, Fatal::field(4)),
            (header(4, 0, 72, 72, u32::MAX), PLAIN, Fatal::LIMIT),
            (header(4, 0, 72, 72, 72 + 8193), PLAIN, Fatal::LIMIT),
            (header(6, 0, 24, 24, 24), PLAIN, Fatal::field(4)),
            (header(6, 0, 24, 24, 25 + H2C_DATA_MAX), PLAIN, Fatal::LIMIT),
            (header(2, 0, 24, 0, 153), PLAIN, Fatal::field(4)),
            (header(2, 0, 23, 0, 24), PLAIN, Fatal::field(2)),
        ] {
            assert_eq!(shape(&found, &agreed), Err(fatal), "{found:?}");
        }
    }

    #[test]
    fn a_header_digest_is_checked() {
        let mut bytes = [7; 28];
        let good = digest::of(&bytes[..24]);
        bytes[24..].copy_from_slice(&good.to_le_bytes());
        assert_eq!(check_header_digest(&bytes, 24), Ok(()));
        bytes[3] ^= 1;
        assert_eq!(check_header_digest(&bytes, 24), Err(Fatal::digest(good)));
    }
}
