//! A connection's beginning: what both ends agree on (TCP 3.4.1), and the Connect command, which says who the host is and
//! which queue of which controller it wants (section 6.3).
//!
//! The host has [`PATIENCE`] for all of it. A Connect that cannot be is answered with its status, and the connection ends;
//! what is no such protocol at all is terminated.

use super::connection::Queue;
use super::digest;
use super::pdu::{Fatal, at, check_header_digest, shape};
use super::send::term_req;
use super::{Agreed, H2C_DATA_MAX, QUEUE_ENTRIES_MAX};
use crate::nvme::bits::{
    CAPSULE_RESP_LEN, Command, Completion, ConnectData, IcReq, IcResp, PduHeader, SglDescriptor, Status,
    TermReq, admin, digest as digests, fctype, pdu,
};
use crate::nvme::controller::refused;
use alloc::string::String;
use core::time::Duration;
use runtime::{Error, ErrorKind, Instant, Interest, Platform, Segments, TcpStream, Wakes, Window};
use tracing::{debug, warn};

/// How long a host has from its connection to its Connect command.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a refused host has to close its end.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of memory that a handshake sends from.
pub(super) const PLACE_BYTES: u64 = 256;
/// Greatest alignment that a host may want, dwords, 0's based (TCP 3.6.2.2).
const HPDA_MAX: u8 = 31;

/// Where fields lie.
mod field {
    pub(super) const PFV: u32 = 8;
    pub(super) const HPDA: u32 = 10;
}

/// What a host asks for with Connect.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) hostid: [u8; 16],
    pub(super) cntlid: u16,
    pub(super) subnqn: String,
    pub(super) hostnqn: String,
    pub(super) queue: Queue,
}

/// Where a handshake stands.
enum Step {
    /// ICReq is awaited.
    Initialize,
    /// ICResp is sent; Connect is awaited.
    Connect,
    /// Last words are sent, and the host's end is awaited until then.
    Refused { until: Instant, is_finished: bool },
}

/// What became of a handshake.
pub(super) enum Progress {
    /// It goes on.
    Waits,
    /// The host wants this.
    Wants(Request),
    /// It is over.
    Over,
}

/// A connection that has no queue yet.
pub(super) struct Handshake<P: Platform> {
    /// Given to its core in the end.
    pub(super) stream: P::TcpStream,
    pub(super) agreed: Agreed,
    /// Memory to send from.
    place: P::Window,
    /// Its number among the front's places.
    pub(super) number: usize,
    step: Step,
    began: Instant,
    /// What is to be sent, from the beginning of the place.
    to_send: u64,
    sent: u64,
    calls: u64,
    unreleased: u64,
}

fn ended(error: Error) -> Option<Error> {
    (error.kind != ErrorKind::WouldBlock).then_some(error)
}

impl<P: Platform> Handshake<P> {
    pub(super) fn new(stream: P::TcpStream, place: P::Window, number: usize, now: Instant) -> Self {
        Self {
            stream,
            agreed: Agreed::default(),
            place,
            number,
            step: Step::Initialize,
            began: now,
            to_send: 0,
            sent: 0,
            calls: 0,
            unreleased: 0,
        }
    }

    /// When it is given up.
    pub(super) fn wake_at(&self) -> Instant {
        match self.step {
            Step::Refused { until, .. } => until,
            _ => self.began.after(PATIENCE),
        }
    }

    pub(super) fn arm(&self, wakes: &mut P::Wakes) {
        let interest = if self.sent < self.to_send { Interest::ReceiveAndSend } else { Interest::Receive };
        wakes.tcp_stream(&self.stream, interest);
    }

    /// Goes on. Whether there was work is told by `worked`.
    pub(super) fn poll(&mut self, now: Instant, worked: &mut bool) -> Progress {
        if now >= self.wake_at() {
            debug!(host = %self.stream.peer(), "a host did not connect in time");
            return Progress::Over;
        }
        match self.try_poll(now, worked) {
            Ok(progress) => progress,
            Err(error) => {
                debug!(host = %self.stream.peer(), %error, "a connection broke before it was made");
                Progress::Over
            }
        }
    }

    fn try_poll(&mut self, now: Instant, worked: &mut bool) -> Result<Progress, Error> {
        self.flush(worked)?;
        if self.sent < self.to_send || self.unreleased > 0 {
            // The place is not to be written before, and another core would not know of the release.
            return Ok(Progress::Waits);
        }
        match self.step {
            Step::Initialize => self.initialize(now, worked),
            Step::Connect => self.connect(now, worked),
            Step::Refused { until, is_finished } => {
                if !is_finished {
                    self.stream.finish()?;
                    self.step = Step::Refused { until, is_finished: true };
                }
                let Some(len) = self.peek(1)?.map(<[u8]>::len) else { return Ok(Progress::Waits) };
                *worked = true;
                self.stream.consume(len);
                Ok(if len == 0 { Progress::Over } else { Progress::Waits })
            }
        }
    }

    fn flush(&mut self, worked: &mut bool) -> Result<(), Error> {
        while self.stream.released().is_some() {
            self.unreleased -= 1;
            *worked = true;
        }
        while self.sent < self.to_send {
            let rest = self.place.slice(self.sent, self.to_send - self.sent);
            let rest = rest.expect("what is sent lies in the place");
            match self.stream.send(Segments(&[rest]), self.calls) {
                Ok(sent) => self.sent += sent,
                Err(error) => return ended(error).map_or(Ok(()), Err),
            }
            self.calls += 1;
            self.unreleased += 1;
            *worked = true;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) {
        self.place.write(0, bytes);
        (self.sent, self.to_send) = (0, bytes.len() as u64);
    }

    /// The next bytes, at least so many unless the host has closed; `None`: not yet.
    fn peek(&mut self, least: usize) -> Result<Option<&[u8]>, Error> {
        match self.stream.peek(least) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => ended(error).map_or(Ok(None), Err),
        }
    }

    /// ICReq.
    fn initialize(&mut self, now: Instant, worked: &mut bool) -> Result<Progress, Error> {
        // The common header first: who sends less is not waited for.
        let Some(bytes) = self.peek(PduHeader::LEN)? else { return Ok(Progress::Waits) };
        if bytes.len() < PduHeader::LEN {
            return Ok(Progress::Over);
        }
        let header = PduHeader::decode(bytes);
        if let Err(fatal) = check_ic_req(&header) {
            *worked = true;
            return self.terminate(fatal, PduHeader::LEN, now);
        }
        let Some(bytes) = self.peek(IcReq::LEN)? else { return Ok(Progress::Waits) };
        if bytes.len() < IcReq::LEN {
            return Ok(Progress::Over);
        }
        *worked = true;
        let request = IcReq::decode(bytes);
        if request.pfv != 0 {
            return self.terminate(Fatal::unsupported(field::PFV), IcReq::LEN, now);
        }
        if request.hpda > HPDA_MAX {
            return self.terminate(Fatal::field(field::HPDA), IcReq::LEN, now);
        }
        self.stream.consume(IcReq::LEN);
        let dgst = request.dgst & (digests::HEADER | digests::DATA);
        self.agreed = Agreed {
            header_digest: dgst & digests::HEADER != 0,
            data_digest: dgst & digests::DATA != 0,
            host_alignment: (usize::from(request.hpda) + 1) * 4,
        };
        let header = PduHeader {
            kind: pdu::IC_RESP,
            hlen: IcResp::LEN as u8,
            plen: IcResp::LEN as u32,
            ..Default::default()
        };
        let mut bytes = [0; IcResp::LEN];
        IcResp { header, dgst, maxh2cdata: H2C_DATA_MAX, ..IcResp::default() }.encode(&mut bytes);
        self.put(&bytes);
        self.step = Step::Connect;
        self.flush(worked)?;
        Ok(Progress::Waits)
    }

    /// Connect, with its data.
    fn connect(&mut self, now: Instant, worked: &mut bool) -> Result<Progress, Error> {
        let agreed = self.agreed;
        let Some(bytes) = self.peek(PduHeader::LEN)? else { return Ok(Progress::Waits) };
        if bytes.len() < PduHeader::LEN {
            return Ok(Progress::Over);
        }
        let header = PduHeader::decode(bytes);
        let form = match shape(&header, &agreed) {
            Ok(_) if header.kind == pdu::H2C_TERM_REQ => return Ok(Progress::Over),
            // Nothing was asked for.
            Ok(_) if header.kind != pdu::CAPSULE_CMD => Err(Fatal::SEQUENCE),
            other => other,
        };
        let form = match form {
            Ok(form) => form,
            Err(fatal) => {
                *worked = true;
                return self.terminate(fatal, PduHeader::LEN, now);
            }
        };
        let tail = if form.data_digest { PduHeader::DIGEST_LEN } else { 0 };
        // Who connects sends no more than Connect has.
        let whole = form.before_data + form.data as usize + tail;
        let least = whole.min(<P::TcpStream as TcpStream>::PEEK_MAX);
        let Some(bytes) = self.peek(least)? else { return Ok(Progress::Waits) };
        if bytes.len() < least {
            return Ok(Progress::Over);
        }
        *worked = true;
        if agreed.header_digest
            && let Err(fatal) = check_header_digest(bytes, usize::from(header.hlen))
        {
            return self.terminate(fatal, usize::from(header.hlen), now);
        }
        let command = Command::decode(&bytes[PduHeader::LEN..]);
        let data = &bytes[form.before_data..least];
        let judged = judge(&command, data, form.data as usize, form.data_digest);
        match judged {
            Ok(request) => {
                self.stream.consume(least);
                Ok(Progress::Wants(request))
            }
            Err((status, result)) => {
                self.stream.consume(least);
                self.refuse(&command, status, result, now);
                self.flush(worked)?;
                Ok(Progress::Waits)
            }
        }
    }

    /// Answers Connect with a status; the connection then ends.
    pub(super) fn refuse(&mut self, command: &Command, status: Status, result: u32, now: Instant) {
        warn!(host = %self.stream.peer(), %status, result, "a host was refused");
        let digest_len = if self.agreed.header_digest { PduHeader::DIGEST_LEN } else { 0 };
        let header = PduHeader {
            kind: pdu::CAPSULE_RESP,
            flags: if self.agreed.header_digest { PduHeader::HDGSTF } else { 0 },
            hlen: CAPSULE_RESP_LEN as u8,
            pdo: 0,
            plen: (CAPSULE_RESP_LEN + digest_len) as u32,
        };
        let mut bytes = [0; CAPSULE_RESP_LEN + PduHeader::DIGEST_LEN];
        header.encode(&mut bytes);
        let completion = Completion { result, id: command.id, status, sq_head: 1, ..Completion::default() };
        completion.encode(&mut bytes[PduHeader::LEN..]);
        let digest = digest::of(&bytes[..CAPSULE_RESP_LEN]);
        bytes[CAPSULE_RESP_LEN..].copy_from_slice(&digest.to_le_bytes());
        self.put(&bytes[..CAPSULE_RESP_LEN + digest_len]);
        self.step = Step::Refused { until: now.after(LINGER), is_finished: false };
    }

    fn terminate(&mut self, fatal: Fatal, quoted: usize, now: Instant) -> Result<Progress, Error> {
        warn!(host = %self.stream.peer(), %fatal, "a connection is terminated before it was made");
        let mut quote = [0; TermReq::QUOTE_MAX];
        let len = match self.peek(quoted)? {
            Some(bytes) => {
                let len = quoted.min(bytes.len());
                quote[..len].copy_from_slice(&bytes[..len]);
                len
            }
            None => 0,
        };
        term_req(fatal, &quote[..len], &self.place);
        (self.sent, self.to_send) = (0, (TermReq::LEN + len) as u64);
        self.step = Step::Refused { until: now.after(LINGER), is_finished: false };
        Ok(Progress::Waits)
    }
}

fn check_ic_req(header: &PduHeader) -> Result<(), Fatal> {
    let PduHeader { kind, hlen, plen, .. } = *header;
    match kind {
        pdu::IC_REQ if usize::from(hlen) != IcReq::LEN => Err(Fatal::field(at::HLEN)),
        pdu::IC_REQ if plen as usize != IcReq::LEN => Err(Fatal::field(at::PLEN)),
        pdu::IC_REQ => Ok(()),
        pdu::CAPSULE_CMD | pdu::H2C_DATA | pdu::H2C_TERM_REQ => Err(Fatal::SEQUENCE),
        _ => Err(Fatal::field(at::KIND)),
    }
}

/// Dword 0 of a refusal for an invalid parameter: where in the command, or in its data, it is.
pub(super) const fn in_command(offset: u32) -> (Status, u32) {
    (Status::CONNECT_INVALID_PARAMETERS, offset)
}

/// Likewise, in the data.
pub(super) const fn in_data(offset: u32) -> (Status, u32) {
    (Status::CONNECT_INVALID_PARAMETERS, offset | 1 << 16)
}

/// Offsets of what Connect says (section 6.3).
pub(super) mod parameter {
    pub(in crate::nvme::tcp) const QUEUE: u32 = 42;
    pub(in crate::nvme::tcp) const SQ_SIZE: u32 = 44;
    pub(in crate::nvme::tcp) const CNTLID: u32 = 16;
    pub(in crate::nvme::tcp) const SUBNQN: u32 = 256;
    pub(in crate::nvme::tcp) const HOSTNQN: u32 = 512;
}

/// Judges a host's first command, and Connect by itself.
fn judge(
    command: &Command,
    data: &[u8],
    data_len: usize,
    data_digest: bool,
) -> Result<Request, (Status, u32)> {
    if command.opcode != admin::FABRICS || command.fabrics_type() != fctype::CONNECT {
        return Err((refused(Status::SEQUENCE_ERROR), 0));
    }
    let connect = command.as_connect();
    if connect.record_format != 0 {
        return Err((Status::CONNECT_INCOMPATIBLE_FORMAT, 0));
    }
    let sgl = SglDescriptor::from_words(command.dptr);
    if sgl.identifier != SglDescriptor::IN_CAPSULE {
        return Err((refused(Status::SGL_TYPE_INVALID), 0));
    }
    let tail = if data_digest { PduHeader::DIGEST_LEN } else { 0 };
    let in_place = sgl.address == 0 && sgl.len as usize <= data_len && data_len + tail <= data.len();
    if !in_place || (sgl.len as usize) < ConnectData::LEN {
        return Err((refused(Status::SGL_LENGTH_INVALID), 0));
    }
    if data_digest {
        let received = &data[data_len..][..PduHeader::DIGEST_LEN];
        if digest::of(&data[..data_len]).to_le_bytes() != *received {
            return Err((Status::TRANSIENT_TRANSPORT, 0));
        }
    }
    let entries = u32::from(connect.sq_size) + 1;
    if !(2..=u32::from(QUEUE_ENTRIES_MAX)).contains(&entries) {
        return Err(in_command(parameter::SQ_SIZE));
    }
    let ConnectData { hostid, cntlid, subnqn, hostnqn } = ConnectData::decode(data);
    Ok(Request {
        command: *command,
        hostid,
        cntlid,
        subnqn: name(&subnqn).ok_or(in_data(parameter::SUBNQN))?,
        hostnqn: name(&hostnqn).ok_or(in_data(parameter::HOSTNQN))?,
        queue: Queue {
            id: connect.queue,
            entries: entries as u16,
            head: 0,
            flow_control: connect.attributes & crate::nvme::bits::Connect::NO_FLOW_CONTROL == 0,
        },
    })
}

/// A name that ends with a zero inside of its field.
fn name(field: &[u8; 256]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0)?;
    let name = core::str::from_utf8(&field[..end]).ok()?;
    crate::nvme::controller::nqn_is_valid(name).then(|| String::from(name))
}
