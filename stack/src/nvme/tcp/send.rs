//! What a connection sends: responses, data and requests for data, each from memory of its command.

use super::connection::Connection;
use super::digest::{self, Running};
use super::pdu::Fatal;
use super::slots::Phase;
use crate::nvme::bits::{
    CAPSULE_RESP_LEN, CQE_LEN, Completion, DataPdu, PduHeader, R2t, Status, TermReq, pdu,
};
use runtime::{Memory, Platform, Window};

/// The memory of a slot: where its PDUs lie.
pub(super) mod place {
    /// Bytes of a slot's memory.
    pub(in crate::nvme::tcp) const SLOT: u64 = 256;
    /// The header of data, and the padding behind it.
    pub(in crate::nvme::tcp) const DATA: u64 = 0;
    /// The digest of data.
    pub(in crate::nvme::tcp) const DATA_DIGEST: u64 = 128;
    /// A response.
    pub(in crate::nvme::tcp) const RESPONSE: u64 = 136;
    /// A request for data.
    pub(in crate::nvme::tcp) const R2T: u64 = 176;
}

impl<P: Platform> Connection<P> {
    pub(super) fn place(&self, slot: usize, at: u64, len: usize) -> P::Window {
        let offset = slot as u64 * place::SLOT + at;
        self.memory.window().slice(offset, len as u64).expect("a place lies in the connection's memory")
    }

    /// Writes a header, with its digest, to a slot's place; the window of it.
    fn header(&self, slot: usize, at: u64, bytes: &mut [u8], hlen: usize) -> P::Window {
        let mut len = hlen;
        if self.agreed.header_digest {
            let digest = digest::of(&bytes[..hlen]);
            bytes[hlen..hlen + 4].copy_from_slice(&digest.to_le_bytes());
            len += PduHeader::DIGEST_LEN;
        }
        let window = self.place(slot, at, len);
        window.write(0, &bytes[..len]);
        window
    }

    const fn head_len(&self, hlen: usize) -> usize {
        hlen + if self.agreed.header_digest { PduHeader::DIGEST_LEN } else { 0 }
    }

    const fn flags(&self) -> u8 {
        if self.agreed.header_digest { PduHeader::HDGSTF } else { 0 }
    }

    /// Answers a command. A read that went well has its data first ([`Self::send_data`]).
    pub(super) fn respond(&mut self, slot: u16, status: Status, result: u64) {
        let id = self.slots.get(slot).command.id;
        let plen = self.head_len(CAPSULE_RESP_LEN) as u32;
        let header = PduHeader {
            kind: pdu::CAPSULE_RESP,
            flags: self.flags(),
            hlen: CAPSULE_RESP_LEN as u8,
            pdo: 0,
            plen,
        };
        let completion = Completion {
            result: result as u32,
            result_high: (result >> 32) as u32,
            // Without flow control nobody looks at it.
            sq_head: if self.queue.flow_control { self.queue.head } else { 0xffff },
            // Reserved in fabrics.
            sq_id: 0,
            id,
            status,
            phase: false,
        };
        let mut bytes = [0; CAPSULE_RESP_LEN + PduHeader::DIGEST_LEN];
        header.encode(&mut bytes);
        completion.encode(&mut bytes[PduHeader::LEN..PduHeader::LEN + CQE_LEN as usize]);
        let window = self.header(usize::from(slot), place::RESPONSE, &mut bytes, CAPSULE_RESP_LEN);
        self.outbox.push(window, Some(slot));
        self.slots.get(slot).unreleased += 1;
        self.slots.answered(slot);
    }

    /// Sends `len` bytes of a slot's buffer, and says with them that the command went well where the host lets us.
    pub(super) fn send_data(&mut self, slot: u16, len: u32, result: u64) {
        let command = self.slots.get(slot).command;
        let ends = !self.queue.flow_control && result == 0;
        let head = self.head_len(DataPdu::LEN);
        let pdo = head.next_multiple_of(self.agreed.host_alignment);
        let tail = if self.agreed.data_digest { PduHeader::DIGEST_LEN } else { 0 };
        let mut flags = self.flags() | PduHeader::LAST_PDU;
        if self.agreed.data_digest {
            flags |= PduHeader::DDGSTF;
        }
        if ends {
            flags |= PduHeader::SUCCESS;
        }
        let header = PduHeader {
            kind: pdu::C2H_DATA,
            flags,
            hlen: DataPdu::LEN as u8,
            pdo: pdo as u8,
            plen: (pdo + tail) as u32 + len,
        };
        let mut bytes = [0; DataPdu::LEN + PduHeader::DIGEST_LEN];
        DataPdu { header, cccid: command.id, datal: len, ..DataPdu::default() }.encode(&mut bytes);
        let window = self.header(usize::from(slot), place::DATA, &mut bytes, DataPdu::LEN);
        self.outbox.push(window, None);
        if pdo > head {
            let padding = self.place(usize::from(slot), place::DATA + head as u64, pdo - head);
            padding.fill(0, (pdo - head) as u64, 0);
            self.outbox.push(padding, None);
        }
        let data = self.slots.get(slot).buffer.as_ref().expect("data has a buffer").window;
        let data = data.slice(0, len.into()).expect("data fits its buffer");
        self.outbox.push(data, (tail == 0).then_some(slot));
        if tail > 0 {
            let mut running = Running::new();
            running.update(&data, 0, len.into());
            let window = self.place(usize::from(slot), place::DATA_DIGEST, tail);
            window.write(0, &running.finish().to_le_bytes());
            self.outbox.push(window, Some(slot));
        }
        self.slots.get(slot).unreleased += 1;
        if ends {
            self.slots.answered(slot);
        } else {
            self.respond(slot, Status::SUCCESS, result);
        }
    }

    /// Asks the host for a command's data, all of it.
    pub(super) fn request_data(&mut self, slot: u16) {
        let (id, len) = {
            let entry = self.slots.get(slot);
            entry.phase = Phase::Data;
            entry.unreleased += 1;
            (entry.command.id, entry.plan.transfer_bytes() as u32)
        };
        self.awaited += 1;
        let header = PduHeader {
            kind: pdu::R2T,
            flags: self.flags(),
            hlen: R2t::LEN as u8,
            pdo: 0,
            plen: self.head_len(R2t::LEN) as u32,
        };
        let mut bytes = [0; R2t::LEN + PduHeader::DIGEST_LEN];
        R2t { header, cccid: id, ttag: slot, r2to: 0, r2tl: len }.encode(&mut bytes);
        let window = self.header(usize::from(slot), place::R2T, &mut bytes, R2t::LEN);
        self.outbox.push(window, Some(slot));
    }
}

/// Writes a termination request that quotes a header.
pub(super) fn term_req<W: Window>(fatal: Fatal, quoted: &[u8], into: &W) {
    let header = PduHeader {
        kind: pdu::C2H_TERM_REQ,
        hlen: TermReq::LEN as u8,
        plen: (TermReq::LEN + quoted.len()) as u32,
        ..PduHeader::default()
    };
    let mut bytes = [0; TermReq::LEN];
    TermReq { header, fes: fatal.fes, fei: fatal.fei }.encode(&mut bytes);
    into.write(0, &bytes);
    into.write(TermReq::LEN as u64, quoted);
}
