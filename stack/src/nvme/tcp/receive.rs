//! What comes on a connection: PDUs, judged header first, their data straight into the memory that it is for.
//!
//! One PDU is read at a time, and so much of a poll's time that others get theirs. A capsule for which there is no slot or
//! no memory stays in the stream, with all behind it, until there is; data for it then can only be its own, since commands
//! whose data is asked for wait beside the stream.

use super::connection::{Connection, Ending, Role, Standing, Work};
use super::digest::Running;
use super::pdu::{Fatal, Shape, check_header_digest, shape};
use super::slots::Phase;
use crate::nvme::bits::{Command, DataPdu, PduHeader, SglDescriptor, Status, TermReq, admin, fctype, pdu};
use crate::nvme::controller::{Direction, Plan, decode, direction, refused};
use runtime::{ErrorKind, Platform, Segments, TcpStream, Window};

/// Most PDUs of a poll.
const PDUS_PER_POLL: u32 = 64;
/// Most bytes of data of a poll.
const BYTES_PER_POLL: u64 = 1 << 20;

/// Where in a PDU the stream is.
pub(super) enum Receive {
    /// Before one.
    Header,
    /// In its data.
    Data(Incoming),
    /// In data that nobody wants.
    Discard(u64),
}

impl Receive {
    /// Whether it is between PDUs.
    pub(super) const fn is_between(&self) -> bool {
        matches!(self, Self::Header)
    }
}

/// The data of a PDU on its way.
pub(super) struct Incoming {
    slot: u16,
    /// Bytes to come.
    left: u32,
    /// Goes on over what comes, if there is a digest.
    digest: Option<Running>,
    /// The command has all of its data then.
    is_last: bool,
    /// It was asked for.
    by_r2t: bool,
}

/// Why nothing more is received now.
enum Stop {
    /// Nothing is there, or nothing can be taken.
    Blocked,
    /// The connection ends.
    Ended(Ending),
    /// The host broke the protocol.
    Fatal(Fatal),
}

impl From<Fatal> for Stop {
    fn from(fatal: Fatal) -> Self {
        Self::Fatal(fatal)
    }
}

fn of_stream(error: runtime::Error) -> Stop {
    match error.kind {
        ErrorKind::WouldBlock => Stop::Blocked,
        _ => Stop::Ended(Ending::Broke(error)),
    }
}

/// Where fields of a data PDU lie.
mod at {
    pub(super) const FLAGS: u32 = 1;
    pub(super) const CCCID: u32 = 8;
    pub(super) const TTAG: u32 = 10;
    pub(super) const DATAL: u32 = 16;
}

impl<P: Platform> Connection<P> {
    /// Takes what came. How many bytes that was.
    pub(super) fn receive(&mut self, work: &mut Work<'_, P>) -> u64 {
        let mut total = 0;
        if let Standing::Closing { .. } = self.standing {
            return self.drain();
        }
        for _ in 0..PDUS_PER_POLL {
            if total >= BYTES_PER_POLL || self.standing != Standing::Open {
                break;
            }
            let received = match &self.receive {
                Receive::Header => self.header_came(work),
                Receive::Data(_) => self.data_comes(work),
                Receive::Discard(left) => {
                    let left = *left;
                    self.discard(left)
                }
            };
            match received {
                Ok(bytes) => total += bytes,
                Err(Stop::Blocked) => break,
                Err(Stop::Ended(ending)) => {
                    self.end(ending);
                    return total + 1;
                }
                Err(Stop::Fatal(fatal)) => {
                    self.quote_and_terminate(fatal, work);
                    return total + 1;
                }
            }
        }
        total
    }

    /// The next bytes, at least so many.
    fn peek(&mut self, least: usize) -> Result<&[u8], Stop> {
        let Some(stream) = &mut self.stream else { return Err(Stop::Blocked) };
        let bytes = stream.peek(least).map_err(of_stream)?;
        if bytes.len() < least {
            let ending = if bytes.is_empty() { Ending::Host } else { Ending::Cut };
            return Err(Stop::Ended(ending));
        }
        Ok(bytes)
    }

    fn consume(&mut self, len: usize) {
        if let Some(stream) = &mut self.stream {
            stream.consume(len);
        }
    }

    /// Terminates the connection with the header that is in the stream's view.
    fn quote_and_terminate(&mut self, fatal: Fatal, work: &Work<'_, P>) {
        let mut quoted = [0; TermReq::QUOTE_MAX];
        let mut len = 0;
        if let Receive::Header = self.receive
            && let Ok(bytes) = self.peek(PduHeader::LEN)
        {
            let hlen = usize::from(bytes[2]).clamp(PduHeader::LEN, TermReq::QUOTE_MAX).min(bytes.len());
            quoted[..hlen].copy_from_slice(&bytes[..hlen]);
            len = hlen;
        }
        self.terminate(fatal, &quoted[..len], work.now);
    }

    /// Throws away what a host sends after its last words were said to it, until it closes.
    fn drain(&mut self) -> u64 {
        match self.peek(1).map(<[u8]>::len) {
            Ok(len) => {
                self.consume(len);
                len as u64
            }
            Err(Stop::Blocked) => 0,
            Err(_) => {
                self.close();
                1
            }
        }
    }

    fn discard(&mut self, left: u64) -> Result<u64, Stop> {
        let there = match self.peek(1) {
            Err(Stop::Ended(_)) => return Err(Stop::Ended(Ending::Cut)),
            other => other?.len() as u64,
        };
        let taken = there.min(left);
        self.consume(taken as usize);
        self.receive = if taken == left { Receive::Header } else { Receive::Discard(left - taken) };
        Ok(taken)
    }

    /// Takes the next header, and begins what it says.
    fn header_came(&mut self, work: &mut Work<'_, P>) -> Result<u64, Stop> {
        let agreed = self.agreed;
        let header = PduHeader::decode(self.peek(PduHeader::LEN)?);
        let form = shape(&header, &agreed)?;
        let hlen = usize::from(header.hlen);
        let bytes = self.peek(form.before_data)?;
        if agreed.header_digest && header.kind != pdu::H2C_TERM_REQ {
            check_header_digest(bytes, hlen)?;
        }
        match header.kind {
            pdu::CAPSULE_CMD => {
                let command = Command::decode(&bytes[PduHeader::LEN..]);
                self.capsule_came(work, command, form)
            }
            pdu::H2C_DATA => {
                let data = DataPdu::decode(bytes);
                self.data_begins(data, form)
            }
            _ => {
                let TermReq { fes, fei, .. } = TermReq::decode(bytes);
                Err(Stop::Ended(Ending::HostRequest { fes, fei }))
            }
        }
    }

    /// A command.
    fn capsule_came(&mut self, work: &mut Work<'_, P>, command: Command, form: Shape) -> Result<u64, Stop> {
        if self.slots.live_count() >= usize::from(self.queue.entries) {
            // More commands than its queue has entries.
            return Err(Fatal::SEQUENCE.into());
        }
        if !self.slots.has_free() {
            return Err(Stop::Blocked);
        }
        let judged = self.judge(work, &command, form.data);
        // Data in the capsule needs its memory before anything of it is taken.
        let wants_data = form.data > 0 && judged.as_ref().is_ok_and(|plan| plan.transfer_bytes() > 0);
        let mut buffer = None;
        if wants_data {
            buffer = work.arena.take(form.data);
            if buffer.is_none() {
                if self.reserve_used {
                    return Err(Stop::Blocked);
                }
                self.reserve_used = true;
            }
        }
        let sgl = SglDescriptor::from_words(command.dptr);
        self.consume(form.before_data);
        self.advance_head();
        let slot = self.slots.take(command, sgl.len);
        let tail = if form.data_digest { PduHeader::DIGEST_LEN as u64 } else { 0 };
        if form.data > 0 {
            self.receive = Receive::Discard(u64::from(form.data) + tail);
        }
        let plan = match judged {
            Ok(plan) => plan,
            Err(status) => {
                self.respond(slot, status, 0);
                return Ok(form.before_data as u64);
            }
        };
        self.slots.get(slot).plan = plan;
        if wants_data {
            self.slots.get(slot).buffer = buffer;
            self.slots.get(slot).phase = Phase::Data;
            let digest = form.data_digest.then(Running::new);
            let incoming = Incoming { slot, left: form.data, digest, is_last: true, by_r2t: false };
            self.receive = Receive::Data(incoming);
        } else if let Role::Admin(_) = self.role {
            self.execute_admin(work, slot);
        } else if command.opcode == admin::FABRICS {
            // Disconnect, the only one that was not refused.
            self.respond(slot, Status::SUCCESS, 0);
            self.begin_to_close(work.now);
        } else {
            self.begin_io(work, slot);
        }
        Ok(form.before_data as u64)
    }

    /// Judges a command before it has a slot: what it asks for, or the status that it ends with. `in_capsule`: bytes of data
    /// that came with it.
    fn judge(&self, work: &Work<'_, P>, command: &Command, in_capsule: u32) -> Result<Plan, Status> {
        if self.slots.is_live(command.id) {
            return Err(refused(Status::COMMAND_ID_CONFLICT));
        }
        let sgl = SglDescriptor::from_words(command.dptr);
        let kind = if command.opcode == admin::FABRICS { command.fabrics_type() } else { command.opcode };
        let way = direction(kind);
        match sgl.identifier {
            // Only what goes to the controller is in a capsule, from its start (ICDOFF 0).
            SglDescriptor::IN_CAPSULE if way == Direction::FromHost => {
                if sgl.address != 0 || sgl.len > in_capsule {
                    return Err(refused(Status::SGL_LENGTH_INVALID));
                }
            }
            SglDescriptor::TRANSPORT => {}
            // A command without data has no descriptor that means anything.
            _ if matches!(way, Direction::Nothing) => {}
            _ => return Err(refused(Status::SGL_TYPE_INVALID)),
        }
        if let Role::Admin(_) = self.role {
            return Ok(Plan::Nothing);
        }
        if command.opcode == admin::FABRICS {
            return match command.fabrics_type() {
                fctype::DISCONNECT => Ok(Plan::Nothing),
                fctype::CONNECT => Err(refused(Status::SEQUENCE_ERROR)),
                _ => Err(refused(Status::INVALID_FIELD)),
            };
        }
        let channels = work.channels.as_ref().ok_or(refused(Status::INVALID_NAMESPACE))?;
        let at = channels.find(command.nsid).ok_or(refused(Status::INVALID_NAMESPACE))?;
        let plan = decode(command, channels.geometry(at), super::TRANSFER_BYTES_MAX)?;
        let needed = plan.transfer_bytes();
        let comes_along = sgl.identifier == SglDescriptor::IN_CAPSULE;
        if needed > u64::from(sgl.len) || comes_along && needed > u64::from(in_capsule) {
            return Err(refused(Status::SGL_LENGTH_INVALID));
        }
        if !comes_along && in_capsule > 0 {
            return Err(refused(Status::INVALID_FIELD));
        }
        Ok(plan)
    }

    /// Data that was asked for.
    fn data_begins(&mut self, data: DataPdu, form: Shape) -> Result<u64, Stop> {
        let DataPdu { header, cccid, ttag, datao, datal } = data;
        if datal != form.data {
            return Err(Fatal::field(at::DATAL).into());
        }
        let Some(slot) = self.slots.named(ttag).filter(|slot| slot.phase == Phase::Data) else {
            return Err(Fatal::field(at::TTAG).into());
        };
        if slot.command.id != cccid {
            return Err(Fatal::field(at::CCCID).into());
        }
        let whole = slot.plan.transfer_bytes();
        let end = u64::from(datao) + u64::from(datal);
        if datao != slot.received || end > whole {
            return Err(Fatal::OUT_OF_RANGE.into());
        }
        let is_last = header.flags & PduHeader::LAST_PDU != 0;
        if is_last != (end == whole) {
            return Err(Fatal::field(at::FLAGS).into());
        }
        self.consume(form.before_data);
        let digest = form.data_digest.then(Running::new);
        self.receive = Receive::Data(Incoming { slot: ttag, left: datal, digest, is_last, by_r2t: true });
        Ok(form.before_data as u64)
    }

    /// Data, on its way into the memory of its command.
    fn data_comes(&mut self, work: &mut Work<'_, P>) -> Result<u64, Stop> {
        let reserve = self.reserve();
        let (Receive::Data(incoming), Some(stream)) = (&mut self.receive, &mut self.stream) else {
            return Err(Stop::Blocked);
        };
        let entry = self.slots.get(incoming.slot);
        let window = entry.buffer.as_ref().map_or(reserve, |buffer| buffer.window);
        let mut taken = 0;
        if incoming.left > 0 {
            let rest = window.slice(entry.received.into(), incoming.left.into());
            let rest = rest.expect("a buffer holds its data");
            let received = stream.recv_into(Segments(&[rest])).map_err(of_stream)?;
            if received == 0 {
                return Err(Stop::Ended(Ending::Cut));
            }
            if let Some(digest) = &mut incoming.digest {
                digest.update(&rest, 0, received);
            }
            entry.received += received as u32;
            incoming.left -= received as u32;
            taken += received;
            if incoming.left > 0 {
                return Ok(taken);
            }
        }
        if incoming.digest.is_some() {
            let bytes = match stream.peek(PduHeader::DIGEST_LEN) {
                Ok(bytes) if bytes.len() >= PduHeader::DIGEST_LEN => bytes,
                Ok(_) => return Err(Stop::Ended(Ending::Cut)),
                Err(error) if taken > 0 && error.kind == ErrorKind::WouldBlock => return Ok(taken),
                Err(error) => return Err(of_stream(error)),
            };
            let sent = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            stream.consume(PduHeader::DIGEST_LEN);
            taken += PduHeader::DIGEST_LEN as u64;
            let computed = incoming.digest.take().map(Running::finish);
            entry.is_damaged |= computed != Some(sent);
        }
        let (slot, is_last, by_r2t) = (incoming.slot, incoming.is_last, incoming.by_r2t);
        self.receive = Receive::Header;
        if is_last {
            self.data_came(work, slot, by_r2t);
        }
        Ok(taken)
    }
}
