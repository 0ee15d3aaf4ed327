//! Submission and completion queues as the controller runs them (section 3.3): what is fetched, and how entries are posted.
//!
//! An entry of a completion queue is written at once or in two halves, the one with the phase tag last, and never to a full
//! queue. The interrupt follows, at once or coalesced.

use super::{Controller, DELAY_NS};
use crate::faults::{FaultKind, bad_completion};
use crate::world::World;
use runtime::Instant;
use stack::nvme::bits::{CQE_LEN, Command, Completion, SQE_LEN, Status};
use std::collections::VecDeque;

/// Longest time between the two halves of an entry, in nanoseconds.
const HALVES_NS_MAX: u64 = 20_000;
/// Longest time after an entry at which it comes once more. A driver's identifiers are not used again within it.
const ECHO_NS_MAX: u64 = 100_000;
/// Longest time that a stuck queue stays stuck when nobody does anything about it: as long as the faults last.
pub(super) const LOOK_HEALED_NS: u64 = 1_000_000;

/// How a controller follows a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// By its register alone.
    Register,
    /// It looks at the shadow, so many times more before it arms; next then.
    Looks(u8, Instant),
    /// It gives up looking: EventIdx is written then.
    Arms(Instant),
    /// EventIdx is written; it looks once more.
    Armed,
    /// It does not look before the register is written.
    Asleep,
}

/// A doorbell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doorbell {
    /// The value that counts.
    pub(super) value: u16,
    pub(super) watch: Watch,
}

/// A submission queue.
#[derive(Debug)]
pub(super) struct SubmissionQueue {
    base: u64,
    pub(super) size: u32,
    pub(super) head: u16,
    pub(super) tail: Doorbell,
    pub(super) completions: u16,
    /// Nothing is fetched any more.
    stuck: bool,
}

/// A completion that waits to be posted.
#[derive(Clone, Copy, Debug)]
struct Pending {
    completion: Completion,
    /// The phase tag is wrong.
    unseen: bool,
}

/// A completion queue.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    base: u64,
    pub(super) size: u32,
    tail: u16,
    phase: bool,
    pub(super) head: Doorbell,
    vector: Option<u16>,
    pending: VecDeque<Pending>,
    /// The first half of an entry is written; the other follows then.
    half: Option<Instant>,
    /// Entries that no interrupt has told of, and when one shall.
    untold: u32,
    tell_at: Instant,
}

impl SubmissionQueue {
    pub(super) fn new(base: u64, size: u32, completions: u16, tail: Doorbell) -> Self {
        Self { base, size, head: 0, tail, completions, stuck: false }
    }

    /// Whether there is something to fetch.
    pub(super) fn has_entries(&self) -> bool {
        self.head != self.tail.value
    }
}

impl CompletionQueue {
    pub(super) fn new(base: u64, size: u32, vector: Option<u16>, head: Doorbell) -> Self {
        let pending = VecDeque::new();
        Self {
            base,
            size,
            tail: 0,
            phase: true,
            head,
            vector,
            pending,
            half: None,
            untold: 0,
            tell_at: Instant(0),
        }
    }

    /// Whether something waits to be posted.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether there is no room.
    pub(super) fn is_full(&self) -> bool {
        (u32::from(self.tail) + 1) % self.size == u32::from(self.head.value)
    }

    /// Whether a completion of a submission queue waits here.
    pub(super) fn holds_of(&self, queue: u16) -> bool {
        self.pending.iter().any(|pending| pending.completion.sq_id == queue)
    }

    /// When the next thing can be done here, if there is room.
    pub(super) fn post_due(&self) -> Option<Instant> {
        let room = self.half.is_some() || !self.is_full();
        (self.has_pending() && room).then(|| self.half.unwrap_or(Instant(0)))
    }

    /// When an interrupt shall tell of entries.
    pub(super) fn tell_due(&self) -> Option<Instant> {
        (self.untold > 0).then_some(self.tell_at)
    }
}

impl Controller {
    /// Whether a queue can be fetched from.
    pub(super) fn can_fetch(&self, world: &World, queue: u16) -> bool {
        let slot = &self.submissions[&queue];
        slot.has_entries() && (!slot.stuck || world.faults.is_healed())
    }

    /// Whether a queue is stuck with entries in it.
    pub(super) fn is_stuck(&self) -> bool {
        self.submissions.values().any(|queue| queue.stuck && queue.has_entries())
    }

    /// Fetches the next entry of a queue.
    pub(super) fn fetch(&mut self, world: &mut World, queue: u16) {
        let slot = self.submissions.get_mut(&queue).expect("a queue");
        if !slot.stuck && queue > 0 && world.faults.strike(FaultKind::NvmeQueueStuck, |_| 0).is_some() {
            slot.stuck = true;
            return;
        }
        let mut bytes = [0; SQE_LEN as usize];
        if world.dma_read(self.me, slot.base + u64::from(slot.head) * SQE_LEN, &mut bytes).is_err() {
            self.fatal(world);
            return;
        }
        slot.head = ((u32::from(slot.head) + 1) % slot.size) as u16;
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * index..8 * index + 8]);
            u64::from_le_bytes(word)
        };
        let command = Command::from_words(std::array::from_fn(word));
        world.nvme_counts(self.drive).commands += 1;
        self.take_command(world, queue, command);
    }

    /// A command of a queue has ended.
    pub(super) fn complete(&mut self, world: &mut World, queue: u16, id: u16, status: Status, result: u32) {
        let Some(slot) = self.submissions.get(&queue) else { return };
        let (sq_head, its) = (slot.head, slot.completions);
        if !self.completions.contains_key(&its) {
            return;
        }
        let right = Completion { result, result_high: 0, sq_head, sq_id: queue, id, status, phase: false };
        let mut entry = Pending { completion: right, unseen: false };
        let wrong = world.faults.strike(FaultKind::NvmeBadCompletion, |rng| rng.word());
        let comes_later =
            |wrong: u64| wrong & (bad_completion::MASK | bad_completion::LATER) == bad_completion::LATER;
        if let Some(wrong) = wrong.filter(|wrong| comes_later(*wrong)) {
            self.echo(world, queue, id, status, (wrong >> 8) % ECHO_NS_MAX);
        }
        let Some(completions) = self.completions.get_mut(&its) else { return };
        if let Some(wrong) = wrong {
            let word = wrong >> 8;
            match wrong & bad_completion::MASK {
                bad_completion::TWICE if comes_later(wrong) => {}
                bad_completion::TWICE => completions.pending.push_back(entry),
                bad_completion::COMMAND => entry.completion.id = word as u16,
                bad_completion::QUEUE => entry.completion.sq_id = word as u16,
                bad_completion::HEAD => entry.completion.sq_head = word as u16,
                bad_completion::STATUS => entry.completion.status = Status(word as u16 & 0x7fff),
                bad_completion::RESULT => entry.completion.result = word as u32,
                bad_completion::PHASE => entry.unseen = true,
                _ => return,
            }
        }
        completions.pending.push_back(entry);
    }

    /// Writes the next entry of a completion queue, or half of it.
    pub(super) fn post(&mut self, world: &mut World, queue: u16) {
        let slot = self.completions.get_mut(&queue).expect("a queue");
        let Pending { mut completion, unseen } = *slot.pending.front().expect("something to post");
        if slot.half.is_none() {
            // What a queue says of its head is as of now.
            if let Some(submissions) = self.submissions.get(&completion.sq_id) {
                completion.sq_head = submissions.head;
                slot.pending[0].completion = completion;
            }
        }
        completion.phase = slot.phase != unseen;
        let dwords = completion.dwords();
        let mut bytes = [0; CQE_LEN as usize];
        for (index, dword) in dwords.into_iter().enumerate() {
            bytes[4 * index..4 * index + 4].copy_from_slice(&dword.to_le_bytes());
        }
        let at = slot.base + u64::from(slot.tail) * CQE_LEN;
        let split = match slot.half {
            Some(_) => None,
            None => world.faults.strike(FaultKind::NvmeSplitCompletion, |rng| rng.between(1, HALVES_NS_MAX)),
        };
        let written = match (slot.half, split) {
            (None, Some(_)) => world.dma_write(self.me, at, &bytes[..8]),
            (None, None) => world.dma_write(self.me, at, &bytes),
            (Some(_), _) => world.dma_write(self.me, at + 8, &bytes[8..]),
        };
        if written.is_err() {
            self.fatal(world);
            return;
        }
        if let Some(later) = split {
            slot.half = Some(Instant(world.now.0 + later));
            return;
        }
        slot.half = None;
        slot.pending.pop_front();
        slot.tail = ((u32::from(slot.tail) + 1) % slot.size) as u16;
        slot.phase ^= slot.tail == 0;
        if slot.is_full() {
            world.nvme_counts(self.drive).full_queues += 1;
        }
        if slot.vector.is_some() {
            // The admin queue's interrupts are not coalesced (section 5.27.1.6).
            let (threshold, time) = if queue == 0 { (0, 0) } else { self.coalescing };
            slot.untold += 1;
            let soon = Instant(world.now.0 + world.streams.device.between(DELAY_NS.0, DELAY_NS.1));
            if slot.untold > threshold {
                slot.tell_at = soon;
            } else if slot.untold == 1 {
                slot.tell_at = soon.max(Instant(world.now.0 + time));
            }
        }
    }

    /// Interrupts for a completion queue.
    pub(super) fn tell(&mut self, world: &mut World, queue: u16) {
        let slot = self.completions.get_mut(&queue).expect("a queue");
        let Some(vector) = slot.vector else { return };
        slot.untold = 0;
        let lost = world.faults.strike(FaultKind::NvmeInterruptLost, |_| 0);
        let times = match lost {
            Some(_) => 0,
            None => {
                world.faults.strike(FaultKind::NvmeInterruptExtra, |rng| 1 + rng.below(3)).unwrap_or(0) + 1
            }
        };
        for _ in 0..times {
            world.interrupt(self.me, vector);
            world.nvme_counts(self.drive).interrupts += 1;
        }
    }
}
