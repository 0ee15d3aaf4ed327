//! A host's connection on its core: one queue of a controller, its commands and what it sends.
//!
//! Reading is in [`super::receive`]. A command gets a slot, a buffer if it has data, and goes to the admin controller or to
//! a disk; its data leaves from that very buffer, and its response from memory of the slot. What goes wrong with a
//! connection ends it alone: the stream is closed at once, and the rest is kept until the disks have ended what they were
//! given.

use super::arena::Arena;
use super::outbox::Outbox;
use super::pdu::Fatal;
use super::receive::Receive;
use super::send::{place, term_req};
use super::slots::{Phase, Slots};
use super::{Agreed, CAPSULE_DATA_MAX};
use crate::block::{ChannelFull, Io, IoError, Op};
use crate::nvme::bits::{Command, DsmRange, Status, TermReq, admin};
use crate::nvme::controller::{
    Association, Channels, Controller, Directory, Executed, Plan, deallocation, failure, refused,
};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;
use runtime::{Error, Instant, Interest, Memory, Platform, Segments, TcpStream, Wakes, Window};
use tracing::{debug, info, warn};

/// How long a host may let the connection stand still while something of it is awaited: its data, or that it reads.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How long a host has to close its end after a termination request.
const LINGER: Duration = Duration::from_secs(1);

/// What the queue is for.
pub(super) enum Role<P: Platform> {
    /// The admin queue of a controller.
    Admin(Box<Controller<P>>),
    /// An I/O queue.
    Io {
        association: Arc<Association>,
        /// The epoch that it joined in.
        epoch: u32,
    },
}

/// The queue of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    pub(super) id: u16,
    pub(super) entries: u16,
    pub(super) head: u16,
    pub(super) flow_control: bool,
}

/// A connection on its way to its core.
pub(super) struct Adopted<P: Platform> {
    pub(super) stream: P::TcpStream,
    pub(super) agreed: Agreed,
    pub(super) queue: Queue,
    pub(super) association: Arc<Association>,
    /// The epoch of the association that an I/O queue has joined in.
    pub(super) epoch: u32,
    pub(super) connect: Command,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    /// The host closed it.
    Host,
    /// The host closed it, or it broke, inside a PDU.
    Cut,
    /// It broke.
    Broke(Error),
    /// The host asked for it, for this reason.
    HostRequest { fes: u16, fei: u32 },
    /// The controller is gone, or was reset.
    Association,
    /// The host let it stand still.
    Stalled,
    /// The target stops.
    Stopped,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("closed by the host"),
            Self::Cut => f.write_str("closed by the host inside a PDU"),
            Self::Broke(error) => write!(f, "the connection broke: {error}"),
            Self::HostRequest { fes, fei } => {
                write!(f, "the host terminates it (FES {fes:#x}, FEI {fei:#x})")
            }
            Self::Association => f.write_str("its controller is gone or was reset"),
            Self::Stalled => f.write_str("the host let it stand still"),
            Self::Stopped => f.write_str("the target stops, or its subsystem is gone"),
        }
    }
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It works.
    Open,
    /// It sends its last words, and waits until then for the host's end.
    Closing {
        /// How long it waits.
        until: Instant,
        /// The host was told that nothing more comes.
        is_finished: bool,
    },
    /// Its stream is closed.
    Closed,
}

/// What a connection works with in one poll.
pub(super) struct Work<'a, P: Platform> {
    pub(super) now: Instant,
    pub(super) arena: &'a mut Arena<P>,
    /// The disks of the connection's subsystem; none for discovery.
    pub(super) channels: Option<&'a mut Channels<P>>,
}

/// A connection.
pub(super) struct Connection<P: Platform> {
    /// Before the memory that it sends from.
    pub(super) stream: Option<P::TcpStream>,
    pub(super) memory: P::Memory,
    /// In the group; upper part of its tokens.
    number: u32,
    pub(super) agreed: Agreed,
    pub(super) queue: Queue,
    pub(super) role: Role<P>,
    pub(super) slots: Slots<P::Window>,
    pub(super) outbox: Outbox<P::Window>,
    pub(super) receive: Receive,
    pub(super) standing: Standing,
    /// Slots that wait for a buffer or for the disk, in order.
    waiting: VecDeque<u16>,
    /// Slots whose data is on its way from the host by an R2T.
    pub(super) awaited: usize,
    /// Slots that a disk has.
    executing: usize,
    /// When bytes last came or went.
    moved_at: Instant,
    /// The memory for data in a capsule where the arena has none; some slot has it.
    pub(super) reserve_used: bool,
}

impl<P: Platform> Connection<P> {
    /// A connection whose Connect command, `connect`, is answered with its first words. Errors: those of
    /// [`Platform::shared_memory`].
    pub(super) fn new(
        platform: &P,
        adopted: Adopted<P>,
        number: u32,
        role: Role<P>,
        now: Instant,
    ) -> runtime::Result<Self> {
        let Adopted { stream, agreed, queue, connect, .. } = adopted;
        let slots = Slots::<P::Window>::count(queue.entries);
        // One place more, for a termination request, and the reserve.
        let len = (slots as u64 + 1) * place::SLOT + u64::from(CAPSULE_DATA_MAX);
        let memory = platform.shared_memory("nvme-tcp-connection", len)?;
        let mut connection = Self {
            stream: Some(stream),
            memory,
            number,
            agreed,
            queue,
            role,
            slots: Slots::new(queue.entries),
            outbox: Outbox::new(slots),
            receive: Receive::Header,
            standing: Standing::Open,
            waiting: VecDeque::with_capacity(slots),
            awaited: 0,
            executing: 0,
            moved_at: now,
            reserve_used: false,
        };
        let cntlid = connection.association().cntlid;
        let slot = connection.slots.take(connect, 0);
        connection.advance_head();
        connection.respond(slot, Status::SUCCESS, cntlid.into());
        Ok(connection)
    }

    pub(super) fn association(&self) -> &Arc<Association> {
        match &self.role {
            Role::Admin(controller) => controller.association(),
            Role::Io { association, .. } => association,
        }
    }

    /// A command was taken from the submission queue.
    pub(super) fn advance_head(&mut self) {
        self.queue.head = (self.queue.head + 1) % self.queue.entries;
    }

    /// Whether nothing of it is left.
    pub(super) fn is_gone(&self) -> bool {
        self.standing == Standing::Closed && self.executing == 0
    }

    /// Gives back all that it holds. It is gone.
    pub(super) fn dissolve(mut self, arena: &mut Arena<P>) {
        let used = self.slots.in_use().collect::<alloc::vec::Vec<_>>();
        for slot in used {
            if let Some(buffer) = self.slots.get(slot).buffer.take() {
                arena.give(buffer);
            }
        }
        if let Role::Io { association, .. } = &self.role {
            association.leave(self.queue.id);
        }
    }

    /// The memory for data in a capsule, beside the arena.
    pub(super) fn reserve(&self) -> P::Window {
        let window = self.memory.window();
        let len = u64::from(CAPSULE_DATA_MAX);
        window.slice(window.len() - len, len).expect("the reserve is the memory's end")
    }

    /// A command of an admin queue; what data came with it means nothing.
    pub(super) fn execute_admin(&mut self, work: &mut Work<'_, P>, slot: u16) {
        let entry = self.slots.get(slot);
        let (command, room) = (entry.command, entry.room);
        if command.opcode == admin::ABORT && self.abort(&command) {
            return self.respond(slot, Status::SUCCESS, 0);
        }
        let Role::Admin(controller) = &mut self.role else {
            unreachable!("an I/O queue has no admin commands")
        };
        let answer = match controller.execute(work.now, &command, room.into()) {
            Executed::Waits => {
                self.slots.get(slot).phase = Phase::Executing;
                return;
            }
            Executed::Answered(answer) => answer,
        };
        if answer.data.is_empty() {
            return self.respond(slot, answer.status, answer.result);
        }
        let len = answer.data.len() as u32;
        match work.arena.take(len) {
            Some(buffer) => {
                buffer.window.write(0, &answer.data);
                self.slots.get(slot).buffer = Some(buffer);
                self.send_data(slot, len, answer.result);
            }
            // The host may ask again; it did nothing that cannot be done twice.
            None => self.respond(slot, Status::COMMAND_INTERRUPTED, 0),
        }
    }

    /// Aborts a command that waits for an event; whether it was one.
    fn abort(&mut self, command: &Command) -> bool {
        let (queue, id) = (command.cdw10[0] as u16, (command.cdw10[0] >> 16) as u16);
        let Role::Admin(controller) = &mut self.role else { return false };
        if queue != 0 || !controller.withdraw(id) {
            return false;
        }
        let slot = self.slots.find(id).expect("a command that waits has its slot");
        self.respond(slot, Status::ABORT_REQUESTED, 0);
        true
    }

    /// Does what the controller of an admin queue has to do. Whether there was anything.
    fn tend_controller(&mut self, now: Instant) -> bool {
        let Role::Admin(controller) = &mut self.role else { return false };
        let mut worked = controller.poll(now);
        while let Role::Admin(controller) = &mut self.role
            && let Some((id, told)) = controller.take_event()
        {
            worked = true;
            let slot = self.slots.find(id).expect("a command that waits has its slot");
            match told {
                Ok(event) => self.respond(slot, Status::SUCCESS, event.0.into()),
                Err(status) => self.respond(slot, status, 0),
            }
        }
        worked
    }

    /// What is configured has changed.
    pub(super) fn reconfigured(&mut self, directory: &Arc<Directory<P>>) {
        if let Role::Admin(controller) = &mut self.role {
            controller.reconfigured(directory.clone());
        }
    }

    /// An I/O command whose plan is made and whose data, if it comes with the capsule, is there: gives it a buffer and goes
    /// on, or lets it wait.
    pub(super) fn begin_io(&mut self, work: &mut Work<'_, P>, slot: u16) {
        let entry = self.slots.get(slot);
        let len = entry.plan.transfer_bytes() as u32;
        if len == 0 {
            return self.submit(work, slot);
        }
        let from_host = !matches!(entry.plan, Plan::Io { op: Op::Read, .. });
        entry.phase = Phase::Buffer;
        if from_host && self.awaited >= work.arena.share() {
            self.waiting.push_back(slot);
            return;
        }
        match work.arena.take(len) {
            None => self.waiting.push_back(slot),
            Some(buffer) => {
                self.slots.get(slot).buffer = Some(buffer);
                if from_host { self.request_data(slot) } else { self.submit(work, slot) }
            }
        }
    }

    /// All data of a command has come. `by_r2t`: it was asked for.
    pub(super) fn data_came(&mut self, work: &mut Work<'_, P>, slot: u16, by_r2t: bool) {
        if by_r2t {
            self.awaited -= 1;
        }
        if self.slots.get(slot).is_damaged {
            // It may go well the next time (TCP 3.3.1.1).
            return self.finish(work.arena, slot, Status::TRANSIENT_TRANSPORT);
        }
        self.submit(work, slot);
    }

    /// Gives a command to its disk, with all that it needs in hand.
    pub(super) fn submit(&mut self, work: &mut Work<'_, P>, slot: u16) {
        let token = u64::from(self.number) << 16 | u64::from(slot);
        let reserve = self.reserve();
        let entry = self.slots.get(slot);
        let data = entry.buffer.as_ref().map_or(reserve, |buffer| buffer.window);
        let disk = work.channels.as_mut().and_then(|channels| {
            let at = channels.find(entry.command.nsid)?;
            Some((channels, at))
        });
        let Some((channels, at)) = disk else {
            return self.finish(work.arena, slot, refused(Status::INVALID_NAMESPACE));
        };
        let (op, offset, len) = match entry.plan {
            Plan::Io { op, offset, len } => (op, offset, len),
            Plan::Nothing => return self.finish(work.arena, slot, Status::SUCCESS),
            Plan::Deallocate(ranges) => {
                let mut bytes = [0; DsmRange::LEN];
                loop {
                    if entry.range == ranges {
                        return self.finish(work.arena, slot, Status::SUCCESS);
                    }
                    data.read(u64::from(entry.range) * DsmRange::LEN as u64, &mut bytes);
                    match deallocation(&bytes, 0, channels.geometry(at)) {
                        Err(status) => return self.finish(work.arena, slot, status),
                        Ok(Some((offset, len))) => break (Op::Discard, offset, len),
                        Ok(None) => entry.range += 1,
                    }
                }
            }
        };
        let payload = matches!(op, Op::Read | Op::Write { .. });
        let window = [data.slice(0, if payload { len } else { 0 }).expect("a buffer holds its data")];
        let segments = Segments(if payload { &window[..] } else { &[] });
        match channels.submit(at, work.now, &Io { op, offset, len, segments }, token) {
            Ok(()) => {
                entry.phase = Phase::Executing;
                self.executing += 1;
            }
            Err(ChannelFull) => {
                entry.phase = Phase::Ready;
                self.waiting.push_back(slot);
            }
        }
    }

    /// A disk has ended what it was given.
    pub(super) fn completed(&mut self, work: &mut Work<'_, P>, slot: u16, result: Result<(), IoError>) {
        self.executing -= 1;
        let entry = self.slots.get(slot);
        let (plan, opcode) = (entry.plan, entry.command.opcode);
        if self.standing == Standing::Closed {
            return;
        }
        match (result, plan) {
            (Err(error), _) => self.finish(work.arena, slot, failure(opcode, error)),
            (Ok(()), Plan::Io { op: Op::Read, len, .. }) => self.send_data(slot, len as u32, 0),
            (Ok(()), Plan::Deallocate(_)) => {
                entry.range += 1;
                self.submit(work, slot);
            }
            (Ok(()), _) => self.finish(work.arena, slot, Status::SUCCESS),
        }
    }

    /// Ends an I/O command that has no data for the host; its buffer is of use to others at once.
    pub(super) fn finish(&mut self, arena: &mut Arena<P>, slot: u16, status: Status) {
        let entry = self.slots.get(slot);
        let had_reserve = entry.buffer.is_none() && entry.received > 0;
        if let Some(buffer) = entry.buffer.take() {
            arena.give(buffer);
        }
        if had_reserve {
            self.reserve_used = false;
        }
        self.respond(slot, status, 0);
    }

    /// Goes on with those that wait, in order, as far as it goes. Whether any went on.
    fn retry(&mut self, work: &mut Work<'_, P>) -> bool {
        let mut worked = false;
        for _ in 0..self.waiting.len() {
            let Some(slot) = self.waiting.pop_front() else { break };
            let before = self.waiting.len();
            match self.slots.get(slot).phase {
                Phase::Buffer => self.begin_io(work, slot),
                _ => self.submit(work, slot),
            }
            if self.waiting.len() > before {
                // It waits again; what is behind it waits for the same.
                self.waiting.rotate_right(1);
                break;
            }
            worked = true;
        }
        worked
    }

    /// Takes back what the stream has released. Whether there was anything.
    fn take_released(&mut self, arena: &mut Arena<P>) -> bool {
        let mut worked = false;
        let Some(stream) = &mut self.stream else { return false };
        while let Some(call) = stream.released() {
            worked = true;
            while let Some(slot) = self.outbox.take_released(call) {
                if usize::from(slot) == self.slots.len() {
                    continue;
                }
                let entry = self.slots.get(slot);
                entry.unreleased -= 1;
                if entry.unreleased == 0
                    && entry.phase == Phase::Answered
                    && let Some(buffer) = self.slots.free(slot)
                {
                    arena.give(buffer);
                }
            }
        }
        worked
    }

    /// Takes what came, and begins what it asks for. Whether there was anything.
    pub(super) fn poll(&mut self, work: &mut Work<'_, P>) -> bool {
        if self.standing == Standing::Closed {
            return false;
        }
        let mut worked = self.take_released(work.arena);
        if self.standing == Standing::Open {
            worked |= self.tend_controller(work.now);
            let is_over = match &self.role {
                Role::Admin(controller) => controller.association().is_over(),
                Role::Io { association, epoch } => association.is_over() || association.epoch() != *epoch,
            };
            if is_over {
                self.end(Ending::Association);
                return true;
            }
            worked |= self.retry(work);
        }
        let received = self.receive(work);
        if received > 0 {
            self.moved_at = work.now;
        }
        worked | (received > 0)
    }

    /// Sends what there is to send, and looks whether the host still takes part. Whether there was anything.
    pub(super) fn flush(&mut self, now: Instant) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let mut worked = false;
        if !self.outbox.is_empty() {
            match self.outbox.flush(stream) {
                Ok(0) => {}
                Ok(_) => {
                    worked = true;
                    self.moved_at = now;
                }
                Err(error) => {
                    self.end(Ending::Broke(error));
                    return true;
                }
            }
        }
        match self.standing {
            Standing::Closing { until, .. } if now >= until => self.close(),
            Standing::Closing { until, is_finished: false } if self.outbox.is_empty() => {
                self.standing = Standing::Closing { until, is_finished: true };
                // Where it fails the host has closed it.
                let _ = stream.finish();
            }
            Standing::Open if self.stalls_at().is_some_and(|at| now >= at) => self.end(Ending::Stalled),
            _ => return worked,
        }
        true
    }

    /// When the host has let it stand still for too long, if something of it is awaited.
    fn stalls_at(&self) -> Option<Instant> {
        let awaits = !self.outbox.is_empty() || self.awaited > 0 || !self.receive.is_between();
        awaits.then(|| self.moved_at.after(STALL_MAX))
    }

    /// Ends the connection.
    pub(super) fn end(&mut self, ending: Ending) {
        if self.standing == Standing::Closed {
            return;
        }
        let association = self.association();
        let (subsystem, host) = (&association.subnqn, &association.hostnqn);
        let (controller, queue) = (association.cntlid, self.queue.id);
        match ending {
            Ending::Host | Ending::Stopped => {
                info!(%subsystem, %host, controller, queue, %ending, "a connection ends");
            }
            Ending::Association => debug!(%subsystem, %host, controller, queue, %ending, "a connection ends"),
            _ => warn!(%subsystem, %host, controller, queue, %ending, "a connection ends"),
        }
        self.close();
    }

    /// Closes the stream. What a disk still has is waited for.
    pub(super) fn close(&mut self) {
        if let Role::Admin(controller) = &self.role {
            controller.association().end();
        }
        self.stream = None;
        self.standing = Standing::Closed;
        self.waiting.clear();
    }

    /// Tells the host why the connection ends: in a termination request, with the header that was wrong.
    pub(super) fn terminate(&mut self, fatal: Fatal, quoted: &[u8], now: Instant) {
        let association = self.association();
        warn!(
            subsystem = %association.subnqn,
            host = %association.hostnqn,
            controller = association.cntlid,
            queue = self.queue.id,
            %fatal,
            "the host broke the protocol: its connection is terminated"
        );
        let quoted = &quoted[..quoted.len().min(TermReq::QUOTE_MAX)];
        let place = self.place(self.slots.len(), 0, TermReq::LEN + quoted.len());
        term_req(fatal, quoted, &place);
        self.outbox.push(place, Some(self.slots.len() as u16));
        self.begin_to_close(now);
    }

    /// Takes nothing more, and closes when what there is to say was said.
    pub(super) fn begin_to_close(&mut self, now: Instant) {
        self.standing = Standing::Closing { until: now.after(LINGER), is_finished: false };
        if let Role::Admin(controller) = &self.role {
            controller.association().end();
        }
    }

    /// When to poll again though nothing changed.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let controller = match &self.role {
            Role::Admin(controller) if self.standing == Standing::Open => controller.wake_at(now),
            _ => None,
        };
        let own = match self.standing {
            Standing::Open => self.stalls_at(),
            Standing::Closing { until, .. } => Some(until),
            Standing::Closed => None,
        };
        controller.into_iter().chain(own).min()
    }

    /// Registers what may wake it.
    pub(super) fn arm(&self, wakes: &mut P::Wakes) {
        let Some(stream) = &self.stream else { return };
        let interest = if self.outbox.is_empty() { Interest::Receive } else { Interest::ReceiveAndSend };
        wakes.tcp_stream(stream, interest);
    }

    /// Whether something of it is under way that its core should look for often.
    pub(super) fn is_busy(&self) -> bool {
        !self.outbox.is_empty() || self.slots.live_count() > 0
    }
}
