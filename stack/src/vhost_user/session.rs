//! One front-end's connection: its messages, carried out strictly one after the other on a block device.
//!
//! The session never blocks. A message that has to wait (a ring to be drained, memory to be taken away) is kept until
//! nothing is in flight any more, and those behind it stay in the socket. I/O in flight therefore never loses its
//! memory, and a reply is the truth when it is sent.
//!
//! The front-end is a stranger. What is wrong inside a message is answered in the message's own way, if it has one and
//! the front-end asked; otherwise the front-end could not know that it was not heard, and the connection is closed.
//! Closing, for whatever reason, drains first: requests complete into the rings of a guest that may live on. Those that
//! were never taken, or that a death interrupts, are in the ring and in the inflight region for the next session.

use super::backend_channel::{BackendChannel, Word};
use super::connection::{Connection, ConnectionError, Incoming};
use super::inflight_region::{self, InflightRegion};
use super::message::{Message, MessageError};
use super::protocol_features;
use super::refusal::Refusal;
use super::request::{Answer, Request};
use super::rings::{RingRefusal, Rings};
use super::wire::{
    ConfigHeader, FAILURE, Header, InflightDescription, LogDescription, MAX_CONFIG_LEN, MemoryRegion,
    SUCCESS, VringState, encode_config, encode_inflight,
};
use crate::events;
use crate::reached::Reached;
use crate::virtio::blk::{BlkDevice, Due, MAX_QUEUES};
use crate::virtio::features;
use crate::virtio::log::DirtyLog;
use crate::virtio::memory::{GuestMemory, MAX_REGIONS, MemoryError, Region, Retired};
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::time::Duration;
use runtime::{Access, Event, Handle, Instant, Interest, Notifier, Platform, Wakes};
use tracing::{debug, error, info, warn};

/// Most messages carried out in one poll, so that a front-end that never stops sending does not hold up its core.
const MAX_MESSAGES_PER_POLL: usize = 16;

/// How long the device takes no new request after a region was removed, unless a message tells that the change is over.
/// A front-end that reshapes a region removes it and adds its parts; a request taken in between would find its buffers
/// nowhere. Long enough for the next message to come, short enough for a guest not to notice a plain removal.
const REMOVAL_HOLD: Duration = Duration::from_millis(5);

/// How long the front-end must have been silent before it is told of a changed configuration. QEMU reads the
/// configuration at once when told, and takes the reply for that of a message which it has under way.
const CONFIG_CHANGE_QUIET: Duration = Duration::from_millis(100);

/// When to try again to send to a front-end that does not read. It is not waited for by its socket, since the bytes
/// that it sends meanwhile would end that wait at once, over and over.
const SEND_RETRY: Duration = Duration::from_millis(1);

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Ending {
    /// The front-end closed the connection.
    FrontEnd = 0,
    /// It broke the protocol, or could not be told of a failure.
    Protocol = 1,
    /// Memory that it shares went away.
    MemoryLost = 2,
    /// The controller stops.
    Stopped = 3,
}

/// What is left to do of a message once nothing is in flight.
enum Action<P: Platform> {
    /// `GET_VRING_BASE`: waits for this ring only.
    StopRing(u16),
    /// `SET_STATUS` 0
    StopAll,
    /// `RESET_DEVICE`
    Reset,
    /// `RESET_OWNER`: the rings are disabled, and that was all.
    Drain,
    /// `SET_MEM_TABLE`
    ReplaceMemory(GuestMemory<P>),
    /// `REM_MEM_REG`
    RemoveRegion(MemoryRegion),
}

/// How a message ended.
enum Outcome<P: Platform> {
    /// Well, and nothing else is to be said.
    Done,
    /// With a number to reply.
    Value(u64),
    /// With a payload to reply, and a handle.
    Payload(Vec<u8>, Option<P::Handle>),
    /// Not yet.
    Wait(Action<P>),
}

type Carried<P> = Result<Outcome<P>, Refusal>;

/// A message that waits.
struct Pending<P: Platform> {
    header: Header,
    request: Request,
    action: Action<P>,
}

/// What a session is made with.
pub(super) struct SessionConfig {
    /// The controller's name, for logs.
    pub(super) controller: Rc<str>,
    /// The controller's number in the flight recorder.
    pub(super) device: u16,
    /// Whether the write cache's mode is the one that the front-end's driver goes by: a ring ran with it in this process,
    /// or the front-end said it.
    pub(super) write_cache_known: bool,
    /// In-band notifications are offered.
    pub(super) in_band_notifications: bool,
}

/// One connection of a front-end.
pub(super) struct Session<P: Platform> {
    platform: P,
    config: SessionConfig,
    connection: Connection<P>,
    backend: BackendChannel<P>,
    protocol_features: u64,
    /// The virtio device status, kept for the front-end.
    status: u8,
    rings: Rings<P>,
    memory: GuestMemory<P>,
    /// Regions that were given up and are still mapped for devices.
    retired: Vec<Retired<P>>,
    /// Rung when the dirty log was written.
    log_notifier: Option<P::Notifier>,
    pending: Option<Pending<P>>,
    ending: Option<Ending>,
    over: bool,
    /// The device is paused until then, because a region was removed ([`REMOVAL_HOLD`]).
    held_until: Option<Instant>,
    last_message: Instant,
    /// The write cache's mode as the front-end last read or wrote it in this session.
    write_cache_shown: Option<bool>,
    /// The inflight region is another back-end's, and so tells nothing of the write cache.
    foreign_region: bool,
    /// A ring has run in this session.
    has_run: bool,
    now: Instant,
}

impl<P: Platform> Session<P> {
    /// A session on a new connection. `retired`: what the one before has left.
    pub(super) fn new(
        platform: P,
        config: SessionConfig,
        stream: P::Stream,
        retired: Vec<Retired<P>>,
        now: Instant,
    ) -> Self {
        let rings = Rings::new(config.controller.clone());
        let session = Self {
            platform,
            config,
            connection: Connection::new(stream, false),
            backend: BackendChannel::new(),
            protocol_features: 0,
            status: 0,
            rings,
            memory: GuestMemory::new(),
            retired,
            log_notifier: None,
            pending: None,
            ending: None,
            over: false,
            held_until: None,
            last_message: now,
            write_cache_shown: None,
            foreign_region: false,
            has_run: false,
            now,
        };
        info!(controller = %session.config.controller, "a front-end connected");
        session.record(events::Kind::SessionOpened, 0, 0, 0, 0);
        session
    }

    /// Whether the session is over: it holds nothing of the device any more and may be dropped, which closes it.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn write_cache_known(&self) -> bool {
        self.config.write_cache_known
    }

    pub(super) fn protocol_features(&self) -> u64 {
        self.protocol_features
    }

    /// What is left of the memory of a session that is over.
    pub(super) fn into_retired(self) -> Vec<Retired<P>> {
        let Self { mut retired, memory, .. } = self;
        retired.push(memory.retire());
        retired
    }

    pub(super) fn memory(&self) -> &GuestMemory<P> {
        &self.memory
    }

    /// The device's configuration space has changed.
    pub(super) fn config_changed(&mut self) {
        self.backend.owe(Word::ConfigChange);
    }

    fn has(&self, protocol_features: u64) -> bool {
        self.protocol_features & protocol_features == protocol_features
    }

    fn offered(&self) -> u64 {
        let in_band = self.config.in_band_notifications;
        protocol_features::OFFERED | if in_band { protocol_features::INBAND_NOTIFICATIONS } else { 0 }
    }

    /// Runs the device, carries out messages (with `look`: looks whether some came), and ends what waited. Whether
    /// there was anything to do.
    pub(super) fn poll(&mut self, now: Instant, device: &mut BlkDevice<P>, look: bool) -> bool {
        self.now = now;
        let mut any = device.poll(now, &self.memory);
        if any {
            self.after_work(device);
        }
        if let Some(ending) = self.ending {
            return any | self.finish_ending(ending, device);
        }
        if look && (self.memory.is_lost() || self.rings.is_lost() || device.is_log_lost()) {
            error!(controller = %self.config.controller, "memory that the front-end shares went away under the device");
            self.end(Ending::MemoryLost, device);
            return true;
        }
        any |= self.advance(device);
        if look {
            any |= self.receive(device);
        }
        any |= self.reach_memory(now, device);
        if self.held_until.is_some_and(|until| now >= until) {
            Reached::HoldExpired.mark::<P::Window>();
            self.release_hold(device);
            any = true;
        }
        any | self.tell(device)
    }

    /// Lets devices reach guest memory, where they do. What was given up goes first: both together may be more than the
    /// host allows. Whether there was anything to do.
    fn reach_memory(&mut self, now: Instant, device: &BlkDevice<P>) -> bool {
        let before = self.retired.len();
        self.retired.retain_mut(|retired| !retired.poll(&self.platform));
        let any = self.retired.len() != before;
        if !device.is_reached_by_devices() {
            return any;
        }
        if self.retired.is_empty() {
            self.memory.begin_mapping(&self.platform, now);
        }
        any | self.memory.poll_mapping(now)
    }

    /// What the device's work asks of the session: rings that stopped themselves, and the log's reader.
    fn after_work(&mut self, device: &mut BlkDevice<P>) {
        while let Some((index, _)) = device.take_broken() {
            self.rings.set_failed(index);
        }
        self.ring_log(device);
    }

    /// Tells the log's reader that it may have been written.
    fn ring_log(&self, device: &BlkDevice<P>) {
        if let Some(notifier) = self.log_notifier.as_ref().filter(|_| device.logs()) {
            notifier.ring();
        }
    }

    /// Tells the front-end the next thing that there is to tell, if it may be told now. Whether something was.
    fn tell(&mut self, device: &BlkDevice<P>) -> bool {
        if self.has(protocol_features::INBAND_NOTIFICATIONS) {
            device.take_due(|due| self.backend.owe(Word::Ring(due)));
        }
        // A device whose rings are all stopped is suspended, and says nothing ("Suspended device state").
        if !self.backend.has_work() || !self.backend.poll(&self.config.controller) || device.running() == 0 {
            return false;
        }
        let config_too = self.has(protocol_features::BACKEND_REQ | protocol_features::CONFIG)
            && self.pending.is_none()
            && self.now >= self.last_message.after(CONFIG_CHANGE_QUIET);
        let Some(word) = self.backend.next(config_too) else { return false };
        self.backend.say(word, self.has(protocol_features::REPLY_ACK));
        match word {
            Word::ConfigChange => self.record(events::Kind::ConfigChangeTold, 0, 0, 0, 0),
            Word::Ring(Due::Call(ring)) => self.record(events::Kind::CallTold, ring, 0, 0, 0),
            Word::Ring(Due::Error(ring)) => self.record(events::Kind::ErrorTold, ring, 0, 0, 0),
        }
        true
    }

    /// Receives and carries out messages, as long as none waits and replies go out.
    fn receive(&mut self, device: &mut BlkDevice<P>) -> bool {
        let mut any = false;
        for _ in 0..MAX_MESSAGES_PER_POLL {
            if self.pending.is_some() || self.ending.is_some() {
                break;
            }
            match self
                .connection
                .flush()
                .and_then(|sent| if sent { self.connection.receive() } else { Ok(None) })
            {
                Ok(Some(message)) => self.carry_out(message, device),
                Ok(None) => break,
                Err(error) => {
                    self.connection_failed(error, device);
                    return true;
                }
            }
            any = true;
        }
        if let Err(error) = self.connection.flush() {
            self.connection_failed(error, device);
        }
        any
    }

    fn connection_failed(&mut self, error: ConnectionError, device: &mut BlkDevice<P>) {
        error.reached().mark::<P::Window>();
        let controller = &self.config.controller;
        if error == ConnectionError::Closed {
            info!(%controller, in_flight = device.in_flight(), "the front-end closed the connection");
            self.end(Ending::FrontEnd, device);
        } else {
            error!(%controller, %error, in_flight = device.in_flight(), "the connection is given up");
            let is_stream = matches!(error, ConnectionError::Cut { .. } | ConnectionError::Stream(_));
            self.end(if is_stream { Ending::FrontEnd } else { Ending::Protocol }, device);
        }
    }

    /// Decodes one message, carries it out, and answers unless it waits.
    fn carry_out(&mut self, incoming: Incoming<P::Handle>, device: &mut BlkDevice<P>) {
        let Incoming { header, payload, handles } = incoming;
        let request = Request::from_number(header.request);
        if request != Some(Request::VringKick) {
            self.last_message = self.now;
        }
        let decoded = match request {
            None => Err(MessageError::Unknown(header.request)),
            Some(request) => Message::decode(request, &payload, handles.len()),
        };
        let ring = decoded.as_ref().ok().and_then(Message::ring).unwrap_or(0);
        let (number, flags, count) = (header.request as u16, header.flags.into(), handles.len() as u64);
        self.record(events::Kind::MessageReceived, ring, number, flags, count);
        let name = request.map_or("unknown", Request::name);
        debug!(controller = %self.config.controller, message = name, flags = header.flags, ?decoded, "message");

        let carried = decoded.map_err(Refusal::from).and_then(|message| {
            self.end_hold_unless_memory(&message, device);
            self.apply(message, handles, device)
        });
        match (carried, request) {
            (Ok(Outcome::Wait(action)), Some(request)) => {
                let in_flight = device.in_flight() as u64;
                self.record(events::Kind::MessageWaits, ring, number, in_flight, 0);
                self.pending = Some(Pending { header, request, action });
                self.advance(device);
            }
            (carried, request) => self.answer(&header, request, carried, device),
        }
    }

    /// Carries out one message; its handles are as many as it needs.
    fn apply(
        &mut self,
        message: Message,
        mut handles: Vec<P::Handle>,
        device: &mut BlkDevice<P>,
    ) -> Carried<P> {
        match message {
            Message::GetFeatures => return Ok(Outcome::Value(device.offered_features())),
            Message::SetFeatures(bits) => {
                device.set_features(bits).map_err(Refusal::Features)?;
                if bits & features::PROTOCOL_FEATURES == 0 {
                    self.rings.set_all_enabled(true, device);
                }
            }
            Message::SetOwner => return Ok(Outcome::Done),
            Message::ResetOwner => {
                self.rings.set_all_enabled(false, device);
                return Ok(Outcome::Wait(Action::Drain));
            }
            Message::SetMemTable(regions) => {
                let mut memory = GuestMemory::new();
                for (region, handle) in regions.iter().zip(&handles) {
                    insert_region(&mut memory, region, handle)?;
                }
                device.pause();
                return Ok(Outcome::Wait(Action::ReplaceMemory(memory)));
            }
            Message::SetLogBase(description) => {
                if !self.has(protocol_features::LOG_SHMFD) {
                    return Err(Refusal::LogFeature);
                }
                let LogDescription { size, offset } = description;
                let memory = first(&handles)?.map(offset, size, Access::ReadWrite)?;
                device.set_log(Some(DirtyLog::new(memory)));
                // The specification asks for a reply and not for its content; the vhost crate wants the description.
                return Ok(Outcome::Payload(description.encode().to_vec(), None));
            }
            Message::SetLogFd => self.log_notifier = take_notifier(&mut handles)?,
            Message::SetVringNum { index, size } => self.rings.set_size(index, size, device)?,
            Message::SetVringAddr { index, address } => {
                self.rings.set_address(index, address, &self.memory, device)?;
            }
            Message::SetVringBase { index, base } => self.rings.set_base(index, base, device)?,
            Message::GetVringBase(index) => {
                self.rings.begin_stop(index, &self.memory, device);
                return Ok(Outcome::Wait(Action::StopRing(index)));
            }
            Message::SetVringKick(index) => {
                let kick = take_notifier(&mut handles)?;
                self.rings.set_kick(index, kick, device);
            }
            Message::SetVringCall(index) => device.set_call(index, take_notifier(&mut handles)?),
            Message::SetVringErr(index) => device.set_error(index, take_notifier(&mut handles)?),
            Message::VringKick(index) => {
                if !self.has(protocol_features::INBAND_NOTIFICATIONS) {
                    return Err(Refusal::InBandKick);
                }
                self.rings.kick(index);
            }
            Message::GetProtocolFeatures => return Ok(Outcome::Value(self.offered())),
            Message::SetProtocolFeatures(bits) => self.set_protocol_features(bits, device)?,
            Message::GetQueueNum => return Ok(Outcome::Value(MAX_QUEUES.into())),
            Message::SetVringEnable { index, enabled } => self.rings.set_enabled(index, enabled, device),
            Message::SetBackendReqFd => {
                let stream = handles.pop().map(Handle::into_stream).transpose()?;
                self.backend.set(stream);
            }
            Message::GetConfig(header) => return self.get_config(header, device),
            Message::SetConfig(header, bytes) => {
                let migrated = header.flags == ConfigHeader::LIVE_MIGRATION;
                if !device.write_config(header.offset, &bytes, migrated) {
                    return Err(Refusal::Config(header));
                }
                self.write_cache_shown = Some(device.writeback());
                self.config.write_cache_known = true;
            }
            Message::GetInflightFd(description, padded) => {
                return Ok(self.get_inflight(&description, padded, device));
            }
            Message::SetInflightFd(description) => {
                let region = InflightRegion::map(&description, device.layout(), first(&handles)?)?;
                let known = &mut self.config.write_cache_known;
                *known |= device.keep_writeback_in(region.kept(), *known);
                self.foreign_region = region.kept().is_none();
                self.rings.set_inflight(region);
            }
            Message::ResetDevice => {
                self.rings.begin_stop_all(device);
                return Ok(Outcome::Wait(Action::Reset));
            }
            Message::GetMaxMemSlots => return Ok(Outcome::Value(MAX_REGIONS as u64)),
            Message::AddMemReg(region) => insert_region(&mut self.memory, &region, first(&handles)?)?,
            Message::RemMemReg(region) => {
                device.pause();
                return Ok(Outcome::Wait(Action::RemoveRegion(region)));
            }
            Message::SetStatus(status) => {
                self.status = status;
                if status == 0 {
                    self.rings.begin_stop_all(device);
                    return Ok(Outcome::Wait(Action::StopAll));
                }
            }
            Message::GetStatus => return Ok(Outcome::Value(self.status.into())),
        }
        self.start_rings(device)?;
        Ok(Outcome::Done)
    }

    fn set_protocol_features(&mut self, bits: u64, device: &mut BlkDevice<P>) -> Result<(), Refusal> {
        use protocol_features::{BACKEND_REQ, INBAND_NOTIFICATIONS, REPLY_ACK};
        let strange = bits & !self.offered();
        if strange != 0 {
            return Err(Refusal::Features(strange));
        }
        let in_band = bits & INBAND_NOTIFICATIONS != 0;
        if in_band && bits & (BACKEND_REQ | REPLY_ACK) != BACKEND_REQ | REPLY_ACK {
            return Err(Refusal::InBandAlone);
        }
        self.protocol_features = bits;
        device.set_messages(in_band);
        Ok(())
    }

    /// Starts the rings that have everything since the last message.
    fn start_rings(&mut self, device: &mut BlkDevice<P>) -> Result<(), RingRefusal> {
        if !self.has_run && self.rings.is_any_ready(&self.memory, device) {
            self.has_run = true;
            self.before_first_ring(device);
        }
        self.rings.start_ready(&self.memory, device)
    }

    /// The first ring of the session is about to run, and the write cache's mode is settled. What is known stands. A
    /// front-end that asked for the configuration space, and brings no region that says otherwise, begins: its driver goes
    /// by what it was shown. Any other has its configuration from an earlier life of the target, in which its driver may
    /// have turned the cache off.
    ///
    /// What the front-end was not shown, it is told of: the mode, and the size, which may have changed since.
    fn before_first_ring(&mut self, device: &mut BlkDevice<P>) {
        let begins = self.write_cache_shown.is_some() && !self.foreign_region;
        let known = core::mem::replace(&mut self.config.write_cache_known, true);
        if !known && !begins {
            Reached::WriteCacheUnknown.mark::<P::Window>();
            info!(
                controller = %self.config.controller,
                "the front-end keeps a configuration of an earlier life; if its driver controls the write cache, \
                 writes are durable when they complete until it says otherwise"
            );
        }
        device.set_writeback(device.writeback() && (known || begins));
        if self.write_cache_shown != Some(device.writeback()) {
            self.config_changed();
        }
    }

    /// Asking changes nothing: a front-end that reconnects may ask before it gives back the region that knows more.
    fn get_config(&mut self, header: ConfigHeader, device: &BlkDevice<P>) -> Carried<P> {
        let mut bytes = [0; MAX_CONFIG_LEN];
        let bytes = bytes.get_mut(..header.size as usize).ok_or(Refusal::Config(header))?;
        if !device.read_config(header.offset, bytes) {
            return Err(Refusal::Config(header));
        }
        self.write_cache_shown = Some(device.writeback());
        Ok(Outcome::Payload(encode_config(&header, bytes), None))
    }

    /// A fresh inflight region. Where the host has no memory for one, the reply says a size of 0, and the front-end goes
    /// on without tracking.
    fn get_inflight(
        &mut self,
        asked: &InflightDescription,
        padded: bool,
        device: &BlkDevice<P>,
    ) -> Outcome<P> {
        let name = format!("reprise-inflight-{}", self.config.controller);
        match inflight_region::create(&self.platform, &name, asked, device.layout()) {
            Ok((description, handle)) => {
                Outcome::Payload(encode_inflight(&description, padded), Some(handle))
            }
            Err(error) => {
                Reached::RegionNotMade.mark::<P::Window>();
                warn!(controller = %self.config.controller, %error, "no inflight region; a crash will lose requests");
                let none = InflightDescription { mmap_size: 0, mmap_offset: 0, ..*asked };
                Outcome::Payload(encode_inflight(&none, padded), None)
            }
        }
    }

    /// Ends the message that waits, if nothing is in flight any more. Whether it did.
    fn advance(&mut self, device: &mut BlkDevice<P>) -> bool {
        let in_flight = match &self.pending {
            None => return false,
            Some(Pending { action: Action::StopRing(index), .. }) => device.in_flight_of(*index),
            Some(_) => device.in_flight(),
        };
        if in_flight > 0 {
            return false;
        }
        let Some(Pending { header, request, action }) = self.pending.take() else { return false };
        // The front-end waited, and goes on now: it was not silent.
        self.last_message = self.now;
        let carried = self.finish(action, device);
        self.answer(&header, Some(request), carried, device);
        true
    }

    /// Does what a message waited for.
    fn finish(&mut self, action: Action<P>, device: &mut BlkDevice<P>) -> Carried<P> {
        match action {
            Action::StopRing(index) => {
                let num = self.rings.finish_stop(index, device);
                let state = VringState { index: index.into(), num };
                return Ok(Outcome::Payload(state.encode().to_vec(), None));
            }
            Action::StopAll => {
                self.rings.finish_stop_all(device);
                device.forget_features();
            }
            Action::Drain => {}
            Action::Reset => {
                self.rings.finish_stop_all(device);
                device.keep_writeback_in(None, false);
                self.rings.reset(device);
                device.set_log(None);
                device.forget_features();
                (self.log_notifier, self.status) = (None, 0);
            }
            Action::ReplaceMemory(memory) => {
                self.retired.push(core::mem::replace(&mut self.memory, memory).retire());
                self.rings.rebase(&self.memory, device);
                device.resume();
                self.start_rings(device)?;
            }
            Action::RemoveRegion(MemoryRegion { guest_address, user_address, size, .. }) => {
                // Held also when it was not there: the change that it belongs to may go on.
                self.held_until = Some(self.now.after(REMOVAL_HOLD));
                let removed = self.memory.remove(guest_address, user_address, size);
                self.retired.push(removed.ok_or(Refusal::NoSuchRegion)?);
                self.rings.rebase(&self.memory, device);
            }
        }
        Ok(Outcome::Done)
    }

    /// A message that does not go on with a change of memory tells that the change is over. A kick is the driver's.
    fn end_hold_unless_memory(&mut self, message: &Message, device: &mut BlkDevice<P>) {
        if self.held_until.is_none() {
            return;
        }
        match message {
            Message::AddMemReg(_) | Message::RemMemReg(_) => {
                self.held_until = Some(self.now.after(REMOVAL_HOLD));
            }
            Message::VringKick(_) => {}
            _ => self.release_hold(device),
        }
    }

    fn release_hold(&mut self, device: &mut BlkDevice<P>) {
        self.held_until = None;
        device.resume();
    }

    /// Answers a message in the way that it wants.
    fn answer(
        &mut self,
        header: &Header,
        request: Option<Request>,
        carried: Carried<P>,
        device: &mut BlkDevice<P>,
    ) {
        let number = header.request;
        let asked = header.needs_reply() && self.has(protocol_features::REPLY_ACK);
        self.record(events::Kind::MessageDone, 0, number as u16, u64::from(carried.is_err()), 0);
        match carried {
            Ok(Outcome::Wait(_)) => unreachable!("a message that waits is answered when it has ended"),
            Ok(Outcome::Value(value)) => self.reply(number, &value.to_ne_bytes(), None),
            Ok(Outcome::Payload(payload, handle)) => self.reply(number, &payload, handle),
            Ok(Outcome::Done) if asked => self.reply(number, &SUCCESS.to_ne_bytes(), None),
            Ok(Outcome::Done) => {}
            Err(refusal) => {
                refusal.reached().mark::<P::Window>();
                let controller = &self.config.controller;
                let message = request.map_or("unknown", Request::name);
                warn!(%controller, message, number, error = %refusal, "the message is refused");
                // A ring that cannot start has told so by its error notifier; the other rings go on.
                let is_told = matches!(refusal, Refusal::Ring(RingRefusal::Queue(_)));
                let answer = match refusal {
                    // The specification has it so, whatever was asked ("In-band notifications").
                    Refusal::InBandAlone => Answer::AlwaysOrClose,
                    _ => request.map_or(Answer::IfAsked, Request::answer),
                };
                match answer {
                    Answer::Always(failure) => self.reply(number, &failure.to_ne_bytes(), None),
                    Answer::AlwaysOrEmpty => self.reply(number, &[], None),
                    Answer::IfAsked if asked => self.reply(number, &FAILURE.to_ne_bytes(), None),
                    Answer::IfAsked if is_told => {}
                    Answer::IfAsked | Answer::AlwaysOrClose => {
                        Reached::RefusalUntold.mark::<P::Window>();
                        error!(
                            %controller, message,
                            "the front-end cannot be told that its message was refused: the connection is given up"
                        );
                        self.end(Ending::Protocol, device);
                    }
                }
            }
        }
    }

    fn reply(&mut self, request: u32, payload: &[u8], handle: Option<P::Handle>) {
        self.connection.put(&Header::reply(request, payload.len() as u32), payload, handle);
    }

    /// Begins to end the session: no ring takes more, and what is in flight is drained.
    pub(super) fn end(&mut self, ending: Ending, device: &mut BlkDevice<P>) {
        if self.ending.is_some() {
            return;
        }
        self.record(events::Kind::SessionEnding, 0, ending as u16, device.in_flight() as u64, 0);
        (self.ending, self.pending) = (Some(ending), None);
        self.rings.begin_stop_all(device);
    }

    /// Ends the session once nothing is in flight. Whether it did.
    fn finish_ending(&mut self, ending: Ending, device: &mut BlkDevice<P>) -> bool {
        if device.in_flight() > 0 || self.over {
            return false;
        }
        // What was answered before the end is still sent, if the socket has room for it.
        let _ = self.connection.flush();
        device.keep_writeback_in(None, false);
        if self.has_run && device.running() == 0 {
            // The front-end stopped its driver before it went. The next driver begins with the cache on, unless it is the
            // same one after all, and its region says otherwise.
            device.set_writeback(true);
            self.config.write_cache_known = false;
        }
        self.rings.release(device);
        device.set_log(None);
        device.forget_features();
        device.resume();
        self.over = true;
        self.record(events::Kind::SessionClosed, 0, 0, 0, 0);
        info!(controller = %self.config.controller, ?ending, "the connection is closed");
        true
    }

    /// The earliest moment at which the session wants to be polled though nothing changed.
    pub(super) fn wake_at(&self, device: &BlkDevice<P>) -> Option<Instant> {
        if self.ending.is_some() {
            // Nothing but the device's work goes on.
            return device.wake_at();
        }
        let change = self.backend.is_changed() && device.running() > 0;
        let change = change.then(|| self.last_message.after(CONFIG_CHANGE_QUIET)).filter(|at| *at > self.now);
        let stuck = (!self.connection.is_flushed()).then(|| self.now.after(SEND_RETRY));
        let backend_stuck = self.backend.is_stuck().then(|| self.now.after(SEND_RETRY));
        let memory = device.is_reached_by_devices().then(|| self.memory.wake_at()).flatten();
        let times = [device.wake_at(), self.held_until, change, stuck, backend_stuck, memory];
        times.into_iter().flatten().min()
    }

    /// Before sleep: registers what may wake the session. Whether there is work after all.
    pub(super) fn arm(&mut self, device: &mut BlkDevice<P>, wakes: &mut P::Wakes) -> bool {
        let any = device.arm(wakes);
        self.ring_log(device);
        if self.ending.is_some() {
            // What else has come is taken when nothing is in flight; it would only end every sleep at once.
            return any;
        }
        // While a message waits, or a reply does not go out, nothing is received; a socket with something to receive
        // would do the same.
        if self.pending.is_none() && self.connection.is_flushed() {
            wakes.stream(self.connection.stream(), Interest::Receive);
        }
        self.backend.arm(wakes);
        self.memory.arm(wakes);
        for retired in &self.retired {
            retired.arm(wakes);
        }
        any
    }

    fn record(&self, kind: events::Kind, queue: u16, detail: u16, a: u64, b: u64) {
        let device = self.config.device;
        self.platform.record(Event { at_ns: self.now.0, kind: kind as u16, device, queue, detail, a, b });
    }
}

/// Maps a region and puts it into a table.
fn insert_region<P: Platform>(
    memory: &mut GuestMemory<P>,
    region: &MemoryRegion,
    handle: &P::Handle,
) -> Result<(), Refusal> {
    let MemoryRegion { guest_address, size, user_address, mmap_offset } = *region;
    if size == 0 {
        return Err(MemoryError::Empty.into());
    }
    let mapping = handle.map(mmap_offset, size, Access::ReadWrite)?;
    memory.insert(Region { guest_address, len: size, user_address, memory: mapping })?;
    Ok(())
}

/// The handle of a message that must have one.
fn first<H>(handles: &[H]) -> Result<&H, Refusal> {
    handles.first().ok_or(Refusal::Message(MessageError::HandleCount { found: 0, expected: 1 }))
}

/// The notifier that came with a message, or none where it said that there is none.
fn take_notifier<H: Handle>(handles: &mut Vec<H>) -> Result<Option<H::Notifier>, Refusal> {
    Ok(handles.pop().map(Handle::into_notifier).transpose()?)
}
