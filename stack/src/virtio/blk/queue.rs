//! One running virtqueue of a block device: takes requests, submits them, and gives them back in batches.
//!
//! The life of a request: taken from the ring and marked in the inflight region; its chain walked and decoded into a slot;
//! submitted, or put into the backlog while the channel is full; completed (status byte, used entry, batch list), which
//! frees the slot; published with its batch; only then may its head come again.

use super::budget::{Budget, MAX_TAKEN_PER_RING};
use super::request::{ID_LEN, Request, Rules, Status, decode};
use super::slots::{MAX_IN_FLIGHT, Mark, Slot, Slots};
use super::{Port, QueueConfig, QueueError};
use crate::block::{Channel, Completion, Io, IoError, Op};
use crate::events;
use crate::reached::Reached;
use crate::virtio::chain::ChainError;
use crate::virtio::features as ring_features;
use crate::virtio::log::DirtyLog;
use crate::virtio::memory::Lookup;
use crate::virtio::ring::{Layout, LogAddresses, Ring, RingConfig, Started};
use crate::virtio::split::{Areas, RingError};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use runtime::{Event, Instant, Platform, Window};

/// What a queue works with during one poll.
pub(super) struct Work<'a, P: Platform> {
    pub(super) platform: &'a P,
    pub(super) channel: &'a mut dyn Channel<P>,
    pub(super) budget: Budget,
    pub(super) memory: Lookup<'a, P>,
    pub(super) log: Option<&'a DirtyLog<P>>,
    pub(super) rules: &'a Rules,
    pub(super) id: &'a [u8; ID_LEN],
    pub(super) device: u16,
    /// Whether anybody keeps events.
    pub(super) recording: bool,
    pub(super) now: Instant,
}

/// What came of submitting the next part of a request.
enum Next {
    /// It is with the bdev.
    Submitted,
    /// The channel is full.
    Full,
    /// The bdev need not be asked: the status, and the bytes written.
    Answer(Status, u32),
}

/// A started queue.
pub(super) struct Queue<P: Platform> {
    index: u16,
    ring: Ring<P::Window>,
    indirect: bool,
    /// By number.
    marks: Box<[Mark]>,
    /// Requests to submit, those that have a slot first: those for which the channel had no room, and recovered ones.
    backlog: VecDeque<u16>,
    /// Requests that have ended since the last publication, and the bytes written to each.
    batch: Vec<(u16, u32)>,
    /// Requests taken and not yet published.
    in_flight: u16,
    /// Tell the driver at the next publication, whatever it asked for: it may have been told by a life that is dead, or
    /// on a notifier that is gone.
    notify: bool,
    /// Take no more.
    stopping: bool,
    log_addresses: Option<LogAddresses>,
}

impl<P: Platform> Queue<P> {
    /// Starts the queue, and finalises recovery when there is an inflight region.
    pub(super) fn start(index: u16, config: QueueConfig<P>, features: u64) -> Result<Self, QueueError> {
        let QueueConfig { size, base, descriptors, available, used, log_addresses, inflight } = config;
        let Started { ring, recovered } = Ring::start::<QueueError>(RingConfig {
            layout: Layout::of(features),
            areas: Areas { descriptors, available, used },
            size,
            base,
            event_idx: features & ring_features::EVENT_IDX != 0,
            inflight,
        })?;
        // The driver may not have been told of what a dead life gave back.
        let notify = recovered.is_some();
        let backlog = VecDeque::from(recovered.unwrap_or_default());
        let mut marks = alloc::vec![Mark::FREE; usize::from(size)].into_boxed_slice();
        for head in &backlog {
            marks[usize::from(*head)] = Mark::TAKEN;
        }
        Ok(Self {
            index,
            ring,
            indirect: features & ring_features::INDIRECT_DESC != 0,
            marks,
            in_flight: backlog.len() as u16,
            backlog,
            batch: Vec::with_capacity(usize::from(size).min(MAX_IN_FLIGHT)),
            notify,
            stopping: false,
            log_addresses,
        })
    }

    pub(super) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// How many requests of a dead life wait to be submitted again.
    pub(super) fn backlog(&self) -> &VecDeque<u16> {
        &self.backlog
    }

    /// Where the ring goes on, as vhost-user has it.
    pub(super) fn base(&self) -> u32 {
        self.ring.base()
    }

    pub(super) fn size(&self) -> u16 {
        self.ring.size()
    }

    pub(super) fn stop_taking(&mut self) {
        self.stopping = true;
    }

    pub(super) fn notify_next(&mut self) {
        self.notify = true;
    }

    /// Whether the driver is to be told, whatever it asked for, and was not yet.
    pub(super) fn owes_notification(&self) -> bool {
        self.notify
    }

    pub(super) fn set_log_addresses(&mut self, addresses: Option<LogAddresses>) {
        self.log_addresses = addresses;
    }

    pub(super) fn rebase(&mut self, areas: Areas<P::Window>) -> Result<(), RingError> {
        self.ring.rebase(areas)
    }

    /// Submits the backlog, then takes and submits new requests unless `hold`. Whether there was any; `Err` when the
    /// ring cannot be believed any more.
    #[inline]
    pub(super) fn take(
        &mut self,
        hold: bool,
        slots: &mut Slots<P::Window>,
        work: &mut Work<'_, P>,
    ) -> Result<bool, RingError> {
        let mut any = false;
        if !self.backlog.is_empty() {
            any = self.submit_backlog(slots, work);
            if !self.backlog.is_empty() {
                return Ok(any);
            }
        }
        if hold || self.stopping {
            return Ok(any);
        }
        if self.ring.disable_notifications() {
            self.log_wish(work.log);
        }
        for _ in 0..MAX_TAKEN_PER_RING {
            if work.budget.is_spent() || slots.are_used_up() {
                break;
            }
            let Some(head) = self.ring.take()? else { break };
            let mark = &mut self.marks[usize::from(head)];
            if *mark != Mark::FREE {
                return Err(RingError::HeadInFlight(head));
            }
            self.ring.track(head);
            *mark = Mark::TAKEN;
            self.in_flight += 1;
            any = true;
            if !self.submit_first(head, slots, work) {
                self.backlog.push_back(head);
                break;
            }
        }
        Ok(any)
    }

    /// Submits what waits, in its order, until there is no room. Whether there was any.
    #[cold]
    fn submit_backlog(&mut self, slots: &mut Slots<P::Window>, work: &mut Work<'_, P>) -> bool {
        let mut any = false;
        while let Some(head) = self.backlog.front().copied() {
            if work.budget.is_spent() || !self.submit(head, slots, work) {
                Reached::BacklogWaits.mark::<P::Window>();
                break;
            }
            self.backlog.pop_front();
            any = true;
        }
        any
    }

    /// Decodes the request if it was not yet, and submits what comes next of it. `false`: there is no slot, or the channel
    /// is full.
    fn submit(&mut self, head: u16, slots: &mut Slots<P::Window>, work: &mut Work<'_, P>) -> bool {
        let mark = self.marks[usize::from(head)];
        let Some(slot) = mark.slot() else { return self.submit_first(head, slots, work) };
        match self.submit_next(head, slots.get(slot), work) {
            Next::Answer(status, written) => self.answer(head, mark, status, written, slots, work),
            Next::Submitted => true,
            Next::Full => false,
        }
    }

    /// Decodes a request and submits it, or what comes first of it. `false`: there is no slot, or the channel is full.
    #[inline(always)]
    fn submit_first(&mut self, head: u16, slots: &mut Slots<P::Window>, work: &mut Work<'_, P>) -> bool {
        let Some((mark, slot)) = slots.take() else { return false };
        self.marks[usize::from(head)] = mark;
        let walked = self.ring.walk(head, &mut slot.chain, self.indirect, &mut work.memory);
        work.budget.decoded(slot.chain.walked);
        if let Err(error) = walked.and_then(|()| decode(slot, work.rules)) {
            slots.give_back(mark);
            self.refuse(head, error, work);
            return true;
        }
        match self.submit_next(head, slot, work) {
            Next::Answer(status, written) => self.answer(head, mark, status, written, slots, work),
            Next::Submitted => true,
            Next::Full => false,
        }
    }

    /// Gives a malformed chain back.
    #[cold]
    fn refuse(&mut self, head: u16, error: ChainError, work: &Work<'_, P>) {
        error.reached().mark::<P::Window>();
        tracing::debug!(device = work.device, queue = self.index, head, %error, "malformed chain");
        self.marks[usize::from(head)] = Mark::TAKEN;
        self.record(events::Kind::ChainMalformed, head, 0, 0, work);
        self.give_back(head, 0);
    }

    /// Submits what comes next of a request that is in a slot.
    #[inline(always)]
    fn submit_next(&self, head: u16, slot: &mut Slot<P::Window>, work: &mut Work<'_, P>) -> Next {
        let io = match slot.request {
            Request::Io => slot.whole(),
            _ => match slot.next_of_others(work.id) {
                Ok(io) => io,
                Err((status, written)) => return Next::Answer(status, written),
            },
        };
        let Io { op, offset, len, .. } = io;
        let token = u64::from(self.index) << 16 | u64::from(head);
        if work.channel.submit(work.now, &io, token).is_err() {
            return Next::Full;
        }
        if let Op::Read | Op::Write { .. } = op {
            work.budget.submitted(len);
        }
        slot.submitted += 1;
        if work.recording {
            self.record(events::Kind::RequestSubmitted, head, operation_number(op), offset, work);
        }
        Next::Submitted
    }

    /// An operation of the bdev ended.
    #[inline]
    pub(super) fn completed(
        &mut self,
        head: u16,
        completion: &Completion,
        slots: &mut Slots<P::Window>,
        work: &mut Work<'_, P>,
    ) {
        let mark = self.marks[usize::from(head)];
        let slot = slots.get(mark.slot().expect("a request that is in flight has a slot"));
        let (status, written) = match (completion.result, slot.request) {
            (Ok(()), Request::Ranges | Request::Pieces) if slot.has_more() => {
                self.submit_again(head, slots, work);
                return;
            }
            (Ok(()), Request::Io | Request::Pieces) if slot.io.op == Op::Read => {
                (Status::Ok, slot.io.len as u32)
            }
            (Ok(()), _) => (Status::Ok, 0),
            (Err(error), _) => {
                error.reached().mark::<P::Window>();
                (if error == IoError::Unsupported { Status::Unsupported } else { Status::IoError }, 0)
            }
        };
        self.finish(head, mark, status, written, slots, work);
    }

    /// Submits the next of a request's ranges or pieces; at the next poll, if this one has cost what it may.
    #[cold]
    fn submit_again(&mut self, head: u16, slots: &mut Slots<P::Window>, work: &mut Work<'_, P>) {
        if work.budget.is_spent() || !self.submit(head, slots, work) {
            // Before those that have no slot, which may wait for this one's.
            self.backlog.push_front(head);
        }
    }

    /// Answers a request that the bdev need not be asked about; `true`.
    #[cold]
    fn answer(
        &mut self,
        head: u16,
        mark: Mark,
        status: Status,
        written: u32,
        slots: &mut Slots<P::Window>,
        work: &Work<'_, P>,
    ) -> bool {
        self.finish(head, mark, status, written, slots, work);
        true
    }

    /// Ends the request in a slot: status byte, dirty log, used entry.
    #[inline(always)]
    fn finish(
        &mut self,
        head: u16,
        mark: Mark,
        status: Status,
        written: u32,
        slots: &mut Slots<P::Window>,
        work: &Work<'_, P>,
    ) {
        self.marks[usize::from(head)] = Mark::TAKEN;
        let slot = slots.get(mark.number());
        if let Some(window) = slot.status {
            window.store_u8(0, status as u8, core::sync::atomic::Ordering::Relaxed);
        }
        if let Some(log) = work.log {
            log_request(slot, log);
        }
        slots.give_back(mark);
        if work.recording {
            self.record(events::Kind::RequestCompleted, head, status as u16, u64::from(written), work);
        }
        self.give_back(head, written + 1);
    }

    /// The request goes back to the driver with the batch.
    #[inline]
    fn give_back(&mut self, head: u16, len: u32) {
        self.batch.push((head, len));
    }

    /// Publishes the batch and tells the driver if it wants to know. Whether there was anything.
    #[inline]
    pub(super) fn publish(&mut self, port: &Port<P>, work: &Work<'_, P>) -> bool {
        if self.batch.is_empty() && !self.notify {
            return false;
        }
        let published = !self.batch.is_empty();
        let mut progress = self.ring.no_progress();
        if published {
            progress = self.ring.give_back(&self.batch);
            let marks = &mut self.marks[..];
            for (head, _) in &self.batch {
                marks[usize::from(*head)] = Mark::FREE;
            }
            self.in_flight -= self.batch.len() as u16;
            self.batch.clear();
            if let (Some(log), Some(addresses)) = (work.log, &self.log_addresses) {
                self.ring.log_given_back(progress, log, addresses);
            }
        }
        // Without a notifier there is nobody to tell, and what is owed waits for one; that is no work.
        if !port.call.tells() {
            return published;
        }
        if self.notify {
            Reached::NotificationOwed.mark::<P::Window>();
        }
        if self.notify || self.ring.wants_notification(progress) {
            self.notify = false;
            port.call.ring();
        } else {
            Reached::NotificationSuppressed.mark::<P::Window>();
        }
        true
    }

    /// Asks for notifications before sleep; whether there is work after all.
    pub(super) fn arm(&mut self, log: Option<&DirtyLog<P>>) -> Result<bool, RingError> {
        if self.stopping {
            return Ok(false);
        }
        let found = self.ring.enable_notifications();
        if found == Ok(true) {
            Reached::WorkBeforeSleep.mark::<P::Window>();
        }
        self.log_wish(log);
        found
    }

    /// Logs that the wish to be notified was written. At once: no publication may ever follow.
    fn log_wish(&self, log: Option<&DirtyLog<P>>) {
        if let (Some(log), Some(addresses)) = (log, &self.log_addresses) {
            self.ring.log_wish(log, addresses);
        }
    }

    #[inline(never)]
    fn record(&self, kind: events::Kind, head: u16, detail: u16, b: u64, work: &Work<'_, P>) {
        work.platform.record(Event {
            at_ns: work.now.0,
            kind: kind as u16,
            device: work.device,
            queue: self.index,
            detail,
            a: u64::from(head),
            b,
        });
    }
}

/// Logs what a request wrote to guest memory.
#[cold]
fn log_request<P: Platform>(slot: &Slot<P::Window>, log: &DirtyLog<P>) {
    let all = &slot.chain.writable_ranges;
    // Only a read's payload was written; the status, always.
    if slot.is_read() || matches!(slot.request, Request::GetId) {
        for (address, len) in all {
            log.mark(*address, *len);
        }
    }
    if let Some((address, len)) = all.last() {
        log.mark(address + (len - 1), 1);
    }
}

/// An operation's number in the flight recorder.
const fn operation_number(op: Op) -> u16 {
    match op {
        Op::Read => 0,
        Op::Write { fua: false } => 1,
        Op::Write { fua: true } => 2,
        Op::Flush => 3,
        Op::Discard => 4,
        Op::WriteZeroes { .. } => 5,
    }
}
