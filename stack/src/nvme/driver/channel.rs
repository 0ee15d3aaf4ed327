//! I/O of one core on one namespace: requests in, commands out, on a queue pair of its own.
//!
//! A request is cut into pieces that one command can do each: not longer than the controller transfers, not over its
//! boundary, not over a seam that its lists cannot describe. A piece that the controller fails may be tried again; one
//! that a reset interrupted is. What cannot be described is copied through a bounce buffer, and counted.

use super::commands::Commands;
use super::doorbell::{Doorbell, ShadowPages};
use super::failure::{Failure, IoFailure};
use super::identity::{Limits, Namespace};
use super::memory::Part;
use super::messages::{CHANNEL_MESSAGES, ChannelId, Link, Queue, ToChannel, ToController};
use super::queue::QueuePair;
use super::transfer::{LIST_LEN, Pointer, describe};
use super::{Options, PciOf, RegistersOf};
use crate::nvme::bits::{Command, Completion, DOORBELLS, DsmRange, PAGE, PRP_LEN, Status, doorbell, io};
use crate::reached::Reached;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use runtime::{Instant, Notifier, Platform, Receiver, Segments, Sender, Wakes, Window};

/// Bytes of a bounce buffer, a multiple of every block size.
pub(super) const BOUNCE_LEN: u64 = 32 << 10;
/// Bounce buffers of a queue.
pub(super) const BOUNCES: u16 = 8;
/// The pause before a piece that failed is tried again, where the controller names none; it doubles each time.
const RETRY_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause that a controller may ask for.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often, at the least, a channel with commands out is looked at though nothing told it to: how late an interrupt that
/// got lost makes a command.
const LOOK: Duration = Duration::from_millis(100);

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads into the windows.
    Read,
    /// Writes from the windows.
    Write {
        /// Complete only when it is on non-volatile media.
        fua: bool,
    },
    /// Compares with the windows; a difference is the status "compare failure".
    Compare,
    /// What completed before is on non-volatile media when it completes.
    Flush,
    /// The content is no longer needed.
    Deallocate,
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// It may be deallocated.
        deallocate: bool,
        /// Complete only when it is on non-volatile media.
        fua: bool,
    },
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// As given to [`IoChannel::submit`].
    pub token: u32,
    /// All of it, or nothing that may be relied on.
    pub result: Result<(), IoFailure>,
}

/// What a channel has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelCounters {
    /// Commands given to the controller.
    pub commands: u64,
    /// Of these, how many were tries after the first.
    pub retries: u64,
    /// Payload bytes copied through bounce buffers.
    pub copied_bytes: u64,
    /// Stores to doorbell registers.
    pub doorbell_writes: u64,
}

struct Request<W> {
    operation: Operation,
    lba: u64,
    windows: Vec<W>,
    /// Pieces that wait or are out.
    pieces: u32,
    failure: Option<IoFailure>,
}

impl<W> Request<W> {
    /// Ends one piece; with the last one, the request.
    #[inline]
    fn end_piece(&mut self, token: u32) -> Option<Ended> {
        self.pieces -= 1;
        (self.pieces == 0).then(|| Ended { token, result: self.failure.map_or(Ok(()), Err) })
    }
}

/// A part of a request that is still to be done.
#[derive(Clone, Copy, Debug)]
struct Piece {
    request: u32,
    /// Bytes from the request's start.
    offset: u64,
    /// Bytes; 1 for a flush, which has none.
    len: u64,
    tries: u8,
}

/// A command that is out.
#[derive(Clone, Copy, Debug)]
struct Flight {
    piece: Piece,
    since: Instant,
    bounce: Option<u16>,
    abort_asked: bool,
}

/// The queue that a channel runs on.
struct Running<P: Platform, X: PciOf<P>> {
    id: u16,
    pair: QueuePair<P::Window, RegistersOf<X>>,
    entries: u16,
    lists: Part<P::Window>,
    bounces: Part<P::Window>,
    zeroes: u64,
    dma: X::Dma,
    nsid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No queue yet, or not any more until the controller was reset. Requests wait.
    Waiting,
    /// Commands go out and come back.
    Running,
    /// The queue is of no more use; the controller was told, and will say what comes next.
    Halted,
    /// There is no queue, and none was to be had for long. Requests fail until there is one.
    Refused,
    /// There will be no queue.
    Failed,
}

/// One core's channel on a namespace. Dropped with nothing in flight.
pub struct IoChannel<P: Platform, X: PciOf<P>> {
    id: ChannelId,
    link: Link<P, X>,
    inbox: P::Receiver<ToChannel<P, X>>,
    /// Messages that found no room.
    unsent: VecDeque<ToController<P, X>>,
    options: Options,
    limits: Limits,
    stage: Stage,
    queue: Option<Running<P, X>>,
    notifier: Option<P::Notifier>,
    /// The core may have slept on the notifier since it was last taken.
    armed: Cell<bool>,
    commands: Commands<Flight>,
    free_bounces: Vec<u16>,
    requests: Vec<Request<P::Window>>,
    /// Pieces that wait for room, the oldest first.
    waiting: VecDeque<Piece>,
    /// Pieces that wait for a moment.
    paused: Vec<(Instant, Piece)>,
    ended: Vec<Ended>,
    /// When the commands that are out are looked through next.
    look_at: Instant,
    /// The controller was asked to reset because of this queue.
    reset_asked: bool,
    counters: ChannelCounters,
}

impl<P: Platform, X: PciOf<P>> IoChannel<P, X> {
    /// A channel of this core for at most `requests` requests at a time. Requests wait until the controller has given it a
    /// queue. Errors: `OutOfResources`.
    pub fn open(
        platform: &P,
        link: &Link<P, X>,
        namespace: &Namespace,
        options: Options,
        requests: u32,
    ) -> runtime::Result<Self> {
        let (to, inbox) = platform.mailbox(CHANNEL_MESSAGES);
        let id = link.next_channel();
        link.attach(id, platform.here(), namespace.id, to)?;
        let request = |_| Request {
            operation: Operation::Flush,
            lba: 0,
            windows: Vec::new(),
            pieces: 0,
            failure: None,
        };
        Ok(Self {
            id,
            link: link.clone(),
            inbox,
            unsent: VecDeque::new(),
            options,
            limits: namespace.limits,
            stage: Stage::Waiting,
            queue: None,
            notifier: None,
            armed: Cell::new(false),
            commands: Commands::new(0),
            free_bounces: Vec::with_capacity(usize::from(BOUNCES)),
            requests: (0..requests).map(request).collect(),
            waiting: VecDeque::with_capacity(requests as usize),
            paused: Vec::new(),
            ended: Vec::with_capacity(requests as usize),
            look_at: Instant(0),
            reset_asked: false,
            counters: ChannelCounters::default(),
        })
    }

    /// Submits a request under a token below the number of requests, which no request in flight has: `len` bytes at block
    /// `lba`, whole blocks inside the namespace (0 and 0 for a flush). The windows, together `len` bytes for a transfer,
    /// need not outlive the call; the memory below them stays until the request ended. It ends in a later poll.
    #[inline]
    pub fn submit(
        &mut self,
        now: Instant,
        token: u32,
        operation: Operation,
        lba: u64,
        len: u64,
        windows: &[P::Window],
    ) {
        let request = &mut self.requests[token as usize];
        assert_eq!(request.pieces, 0, "a token is in use by one request at a time");
        (request.operation, request.lba, request.failure, request.pieces) = (operation, lba, None, 1);
        request.windows.clear();
        request.windows.extend_from_slice(windows);
        let nothing = match operation {
            Operation::Flush => !self.limits.volatile_cache,
            Operation::Deallocate => self.limits.deallocate_max == 0 || len == 0,
            _ => len == 0,
        };
        if matches!(self.stage, Stage::Refused | Stage::Failed) {
            return self.end_piece(token, Err(IoFailure::Device));
        }
        if nothing {
            return self.end_piece(token, Ok(()));
        }
        if operation == Operation::Compare && !self.limits.compare {
            return self.end_piece(token, Err(IoFailure::Unsupported));
        }
        let len = if operation == Operation::Flush { 1 } else { len };
        let piece = Piece { request: token, offset: 0, len, tries: 0 };
        let may_go = self.stage == Stage::Running && self.waiting.is_empty();
        match if may_go { self.issue(now, piece) } else { None } {
            // All of it went out at once, as of nearly every request.
            Some(done) if done == len => {}
            Some(done) => {
                self.requests[token as usize].pieces += 1;
                self.waiting.push_back(Piece { offset: done, len: len - done, ..piece });
                self.issue_waiting(now);
            }
            None => self.waiting.push_back(piece),
        }
    }

    /// Sends what was submitted, takes what has ended (pushed to `ended`), and listens to the controller. Whether there was
    /// work.
    #[inline]
    pub fn poll(&mut self, now: Instant, ended: &mut Vec<Ended>) -> bool {
        if self.armed.replace(false)
            && let Some(notifier) = &self.notifier
        {
            // Before the queue is looked at: an interrupt for what comes after the look stays.
            notifier.take();
        }
        let mut worked = self.listen(now);
        if self.stage == Stage::Running {
            worked |= self.reap(now, ended);
            self.resume(now);
            if let Some(queue) = &mut self.queue {
                queue.pair.announce();
                queue.pair.release();
            }
            self.watch(now);
        }
        while let Some(message) = self.unsent.pop_front() {
            if let Err(message) = self.link.to.send(message) {
                self.unsent.push_front(message);
                break;
            }
        }
        worked |= !self.ended.is_empty();
        ended.append(&mut self.ended);
        worked
    }

    /// The earliest moment at which it wants to be polled though nothing told it to.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        if !self.ended.is_empty() || !self.unsent.is_empty() {
            return Some(Instant(0));
        }
        if self.stage != Stage::Running {
            return None;
        }
        let has_news = self.queue.as_ref().is_some_and(|queue| queue.pair.has_news());
        let out = self.commands.len() > 0;
        if has_news || (out && self.notifier.is_none()) {
            return Some(Instant(0));
        }
        let paused = self.paused.iter().map(|(until, _)| *until);
        paused.chain(out.then_some(self.look_at)).min()
    }

    /// Registers what tells that something has ended.
    pub fn arm(&self, wakes: &mut P::Wakes) {
        self.armed.set(true);
        wakes.mailbox(&self.inbox);
        if let Some(notifier) = &self.notifier {
            wakes.notifier(notifier);
        }
    }

    /// Payload bytes that it has copied.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.counters.copied_bytes
    }

    /// What it has counted.
    #[must_use]
    pub fn counters(&self) -> ChannelCounters {
        let now = self.queue.as_ref().map_or(0, |queue| queue.pair.doorbell_writes());
        ChannelCounters { doorbell_writes: self.counters.doorbell_writes + now, ..self.counters }
    }

    /// Ends one piece of a request, and the request with its last.
    fn end_piece(&mut self, token: u32, result: Result<(), IoFailure>) {
        let request = &mut self.requests[token as usize];
        if let Err(failure) = result {
            request.failure.get_or_insert(failure);
        }
        self.ended.extend(request.end_piece(token));
    }

    /// Gives waiting pieces to the controller, as many as there is room for.
    fn issue_waiting(&mut self, now: Instant) {
        if self.stage != Stage::Running {
            return;
        }
        while let Some(&piece) = self.waiting.front() {
            if self.requests[piece.request as usize].failure.is_some() {
                // The request has failed elsewhere: the rest of it need not be done.
                self.waiting.pop_front();
                self.end_piece(piece.request, Ok(()));
                continue;
            }
            let Some(done) = self.issue(now, piece) else { return };
            if done == piece.len {
                self.waiting.pop_front();
            } else {
                self.requests[piece.request as usize].pieces += 1;
                let rest = self.waiting.front_mut().expect("the piece just looked at");
                (rest.offset, rest.len) = (piece.offset + done, piece.len - done);
            }
        }
    }

    /// Gives the first part of a piece to the controller, and says how long it is. `None`: there is no room.
    #[inline]
    fn issue(&mut self, now: Instant, piece: Piece) -> Option<u64> {
        let place = self.commands.next_place()?;
        let queue = self.queue.as_mut().expect("a channel that runs has a queue");
        let request = &self.requests[piece.request as usize];
        let limits = &self.limits;
        let shift = limits.block_shift;
        let lba = request.lba + (piece.offset >> shift);
        let lists = queue.lists;
        let list = || lists.part(u64::from(place) * LIST_LEN, LIST_LEN);
        let cut = |blocks_max: u32| piece.len.min(u64::from(blocks_max) << shift);
        let range = |opcode, len: u64, dword12| {
            Command::on_range(opcode, queue.nsid, lba, (len >> shift) as u32, dword12)
        };
        let fua_bit = |fua| if fua { Command::FUA } else { 0 };
        let mut bounce = None;
        let (mut command, len) = match request.operation {
            Operation::Read | Operation::Write { .. } | Operation::Compare => {
                let writes = matches!(request.operation, Operation::Write { .. });
                let want = transfer_len(limits, lba, piece.len, writes);
                let described = describe(
                    &queue.dma,
                    Segments(&request.windows),
                    piece.offset,
                    want,
                    limits.block_size,
                    limits.sgls,
                    list,
                );
                let (pointer, len) = match described {
                    Some(described) => described,
                    None => {
                        let number = self.free_bounces.pop()?;
                        bounce = Some(number);
                        let buffer = queue.bounces.part(u64::from(number) * BOUNCE_LEN, BOUNCE_LEN);
                        let len = u64::from(want).min(BOUNCE_LEN);
                        if request.operation != Operation::Read {
                            let payload = Segments(&request.windows);
                            let mut at = 0;
                            for window in payload.range(piece.offset, len) {
                                buffer.window.copy_from(at, &window, 0, window.len());
                                at += window.len();
                            }
                        }
                        self.counters.copied_bytes += len;
                        let buffer = [buffer.part(0, len).window];
                        let described = describe(
                            &queue.dma,
                            Segments(&buffer),
                            0,
                            len as u32,
                            limits.block_size,
                            limits.sgls,
                            list,
                        );
                        described.expect("a bounce buffer is described by PRPs")
                    }
                };
                let (opcode, dword12) = match request.operation {
                    Operation::Write { fua } => (io::WRITE, fua_bit(fua)),
                    Operation::Compare => (io::COMPARE, 0),
                    _ => (io::READ, 0),
                };
                (pointer.on(range(opcode, u64::from(len), dword12)), u64::from(len))
            }
            Operation::Flush => (Command::flush(queue.nsid), piece.len),
            Operation::Deallocate => {
                let len = cut(limits.deallocate_max);
                let list = list();
                let mut bytes = [0; DsmRange::LEN];
                DsmRange { attributes: 0, blocks: (len >> shift) as u32, slba: lba }.encode(&mut bytes);
                list.window.write(0, &bytes);
                (Command::deallocate(queue.nsid, 1).with_prps(list.address, 0), len)
            }
            Operation::WriteZeroes { deallocate, fua } if limits.write_zeroes_max > 0 => {
                let len = cut(limits.write_zeroes_max);
                let deac = deallocate && limits.write_zeroes_deallocates;
                let deac_bit = if deac { Command::DEAC } else { 0 };
                (range(io::WRITE_ZEROES, len, fua_bit(fua) | deac_bit), len)
            }
            Operation::WriteZeroes { fua, .. } => {
                let len = u64::from(transfer_len(limits, lba, piece.len, true));
                let pointer = all_one_page(queue.zeroes, len, &list());
                (pointer.on(range(io::WRITE, len, fua_bit(fua))), len)
            }
        };
        if self.commands.len() == 0 {
            self.look_at = now.after(LOOK);
        }
        let flight = Flight { piece: Piece { len, ..piece }, since: now, bounce, abort_asked: false };
        command.id = self.commands.put(flight);
        queue.pair.push(&command);
        self.counters.commands += 1;
        self.counters.retries += u64::from(piece.tries > 0);
        Some(len)
    }

    /// Takes what the controller has completed.
    #[inline]
    fn reap(&mut self, now: Instant, ended: &mut Vec<Ended>) -> bool {
        let Some(entries) = self.queue.as_ref().map(|queue| queue.entries) else { return false };
        let mut count = 0;
        // One turn of the queue at most: a controller that completes for ever does not hold the core.
        while count < entries {
            let queue = self.queue.as_mut().expect("looked at before");
            let Some(completion) = queue.pair.next() else { break };
            count += 1;
            let ours = completion.sq_id == queue.id;
            // A command that another queue's completion names stays out: the reset that follows gives it back.
            match ours.then(|| self.commands.take(completion.id)).flatten() {
                Some(flight) => self.land(now, flight, &completion, ended),
                None => {
                    self.halt(Failure::Broken("it completed a command that is not out"));
                    break;
                }
            }
        }
        count > 0
    }

    /// A command has come back.
    #[inline]
    fn land(&mut self, now: Instant, flight: Flight, completion: &Completion, ended: &mut Vec<Ended>) {
        let Flight { piece, bounce, .. } = flight;
        if let Some(number) = bounce {
            self.unbounce(piece, number, completion.status);
        }
        if completion.status.is_success() {
            ended.extend(self.requests[piece.request as usize].end_piece(piece.request));
        } else {
            self.failed(now, piece, completion.status);
        }
    }

    #[cold]
    fn unbounce(&mut self, piece: Piece, number: u16, status: Status) {
        self.free_bounces.push(number);
        let request = &self.requests[piece.request as usize];
        if request.operation == Operation::Read
            && status.is_success()
            && let Some(queue) = &self.queue
        {
            let buffer = queue.bounces.part(u64::from(number) * BOUNCE_LEN, BOUNCE_LEN);
            let mut at = 0;
            for window in Segments(&request.windows).range(piece.offset, piece.len) {
                window.copy_from(0, &buffer.window, at, window.len());
                at += window.len();
            }
        }
    }

    #[cold]
    fn failed(&mut self, now: Instant, piece: Piece, status: Status) {
        if piece.tries >= self.options.retries || !may_be_retried(status) {
            Reached::NvmeIoFailed.mark::<P::Window>();
            return self.end_piece(piece.request, Err(IoFailure::Status(status)));
        }
        Reached::NvmeRetried.mark::<P::Window>();
        let pause = match status.crd() {
            0 => RETRY_PAUSE * (1 << piece.tries.min(10)),
            number => {
                Duration::from_millis(100) * u32::from(self.limits.retry_delays[usize::from(number) - 1])
            }
        };
        let until = now.after(pause.min(RETRY_PAUSE_MAX));
        self.paused.push((until, Piece { tries: piece.tries + 1, ..piece }));
    }

    /// Goes on with what waits for a moment that has come, and for room.
    #[inline]
    fn resume(&mut self, now: Instant) {
        if !self.paused.is_empty() {
            let mut index = 0;
            while let Some(&(until, piece)) = self.paused.get(index) {
                if until <= now {
                    self.paused.swap_remove(index);
                    self.waiting.push_back(piece);
                } else {
                    index += 1;
                }
            }
        }
        if !self.waiting.is_empty() {
            self.issue_waiting(now);
        }
    }

    /// Looks for commands that take too long, now and then.
    #[inline]
    fn watch(&mut self, now: Instant) {
        if now < self.look_at || self.commands.len() == 0 || self.reset_asked || !self.unsent.is_empty() {
            return;
        }
        self.look_at = now.after(LOOK);
        let oldest = self.commands.iter_mut().min_by_key(|(_, flight)| (flight.abort_asked, flight.since));
        let timeout_ns = Instant(0).after(self.options.io_timeout).0;
        if let Some((id, flight)) = oldest
            && self.options.aborts
            && !flight.abort_asked
            && now.since_ns(flight.since) >= timeout_ns
        {
            flight.abort_asked = true;
            self.unsent.push_back(ToController::Late { channel: self.id, id });
        }
        let patience_ns = if self.options.aborts { 2 * timeout_ns } else { timeout_ns };
        if self.commands.iter_mut().any(|(_, flight)| now.since_ns(flight.since) >= patience_ns) {
            self.reset_asked = true;
            let why = Failure::TimedOut("complete an I/O command, nor abort it,");
            self.unsent.push_back(ToController::Stuck { channel: self.id, why });
        }
    }

    /// The queue is of no more use.
    #[cold]
    fn halt(&mut self, why: Failure) {
        self.stage = Stage::Halted;
        self.unsent.push_back(ToController::Stuck { channel: self.id, why });
    }

    /// Hears what the controller says.
    #[inline]
    fn listen(&mut self, now: Instant) -> bool {
        let mut heard = false;
        while let Some(message) = self.inbox.receive() {
            heard = true;
            match message {
                ToChannel::Start(queue) => self.start(now, *queue),
                ToChannel::BeQuiet => {
                    if self.stage != Stage::Failed {
                        self.stage = Stage::Waiting;
                    }
                    self.unsent.push_back(ToController::Quiet { channel: self.id });
                }
                ToChannel::Refuse(why) => self.fail(&why, Stage::Refused),
                ToChannel::Fail(why) => self.fail(&why, Stage::Failed),
            }
        }
        heard
    }

    /// Begins, or goes on after a reset, with a new queue.
    #[cold]
    fn start(&mut self, now: Instant, queue: Queue<P, X>) {
        self.forget_queue();
        // What was out is lost: the controller was reset since.
        let lost: Vec<Flight> = self.commands.drain().collect();
        self.commands = Commands::new(queue.entries - 1);
        self.free_bounces.clear();
        self.free_bounces.extend(0..BOUNCES);
        let bell = |completion| {
            let slot = doorbell(queue.id, completion, queue.dstrd);
            let shadow = queue.shadow.map(|pages: ShadowPages<P::Window>| (pages, slot));
            Doorbell::new(queue.registers.clone(), DOORBELLS + slot, shadow)
        };
        let pair =
            QueuePair::new(queue.entries, &queue.submissions, &queue.completions, bell(false), bell(true));
        if queue.notifier.is_some() {
            self.notifier = queue.notifier;
        }
        self.limits = queue.limits;
        self.queue = Some(Running {
            id: queue.id,
            pair,
            entries: queue.entries,
            lists: queue.lists,
            bounces: queue.bounces,
            zeroes: queue.zeroes,
            dma: queue.dma,
            nsid: queue.nsid,
        });
        (self.stage, self.reset_asked) = (Stage::Running, false);
        for Flight { piece, .. } in lost {
            if piece.tries >= self.options.retries {
                Reached::NvmeLostTooOften.mark::<P::Window>();
                self.end_piece(piece.request, Err(IoFailure::Device));
            } else {
                Reached::NvmeGivenAgain.mark::<P::Window>();
                self.waiting.push_back(Piece { tries: piece.tries + 1, ..piece });
            }
        }
        self.issue_waiting(now);
    }

    /// Everything fails, now and for as long as it is in this stage.
    #[cold]
    fn fail(&mut self, why: &Failure, stage: Stage) {
        Reached::NvmeChannelFailed.mark::<P::Window>();
        tracing::warn!(channel = self.id.0, %why, "an NVMe channel has no queue: its requests fail");
        self.forget_queue();
        self.stage = stage;
        let flights: Vec<Piece> = self.commands.drain().map(|flight| flight.piece).collect();
        let paused: Vec<Piece> = self.paused.drain(..).map(|(_, piece)| piece).collect();
        let waiting: Vec<Piece> = self.waiting.drain(..).collect();
        for piece in flights.into_iter().chain(paused).chain(waiting) {
            self.end_piece(piece.request, Err(IoFailure::Device));
        }
    }

    fn forget_queue(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.counters.doorbell_writes += queue.pair.doorbell_writes();
        }
    }
}

impl<P: Platform, X: PciOf<P>> Drop for IoChannel<P, X> {
    fn drop(&mut self) {
        let detach = ToController::Detach { channel: self.id, notifier: self.notifier.take() };
        for message in self.unsent.drain(..).chain([detach]) {
            // No room, or the controller is gone: it then has no use for the queue either.
            let _ = self.link.to.send(message);
        }
    }
}

/// How much of a transfer of `len` bytes at `lba` one command may do; `writes`: one that changes the content.
#[inline]
fn transfer_len(limits: &Limits, lba: u64, len: u64, writes: bool) -> u32 {
    let mut len = len.min(u64::from(limits.transfer_max));
    if limits.boundary > 0 {
        let blocks = limits.boundary - lba % limits.boundary;
        len = len.min(blocks * u64::from(limits.block_size));
    }
    if writes && let Some(blocks) = limits.atomic.blocks_left(lba) {
        len = len.min(blocks * u64::from(limits.block_size));
    }
    len as u32
}

/// PRPs that name one page again and again, for `len` bytes.
fn all_one_page<W: Window>(page: u64, len: u64, list: &Part<W>) -> Pointer {
    let pages = len.div_ceil(PAGE);
    if pages <= 2 {
        return Pointer::Prps(page, if pages == 2 { page } else { 0 });
    }
    for entry in 0..pages - 1 {
        list.window.store_u64(entry * PRP_LEN, page, Relaxed);
    }
    Pointer::Prps(page, list.address)
}

/// Whether the same command may end otherwise when it is tried again.
fn may_be_retried(status: Status) -> bool {
    let for_ever = [
        Status::INVALID_OPCODE,
        Status::INVALID_FIELD,
        Status::INVALID_NAMESPACE,
        Status::LBA_OUT_OF_RANGE,
        Status::CAPACITY_EXCEEDED,
        Status::WRITE_PROTECTED,
        Status::RESERVATION_CONFLICT,
        Status::COMPARE_FAILURE,
        Status::ACCESS_DENIED,
        Status::DEALLOCATED_BLOCK,
    ];
    status.dnr() == 0 && !for_ever.contains(&status.code())
}
