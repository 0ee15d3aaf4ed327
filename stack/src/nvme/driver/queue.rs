//! A submission queue and the completion queue that belongs to it, as the host runs them (section 3.3.1).
//!
//! The host never has more commands out than the submission queue has entries less one, so neither queue can overrun, and
//! nothing that the controller says of its own progress (SQHD) is needed, or believed.

use super::doorbell::Doorbell;
use super::memory::Part;
use crate::nvme::bits::{CQE_LEN, Command, Completion, SQE_LEN};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use runtime::{Registers, Window};

/// A queue pair of one size.
#[derive(Debug)]
pub(super) struct QueuePair<W, R> {
    submissions: W,
    completions: W,
    /// Entries less one; the number of entries is a power of two.
    mask: u16,
    /// Where the next submission goes.
    tail: u16,
    /// The tail that the controller knows of.
    announced: u16,
    /// Where the next completion comes.
    head: u16,
    /// The head that the controller knows of.
    released: u16,
    /// The phase tag of a new completion.
    phase: bool,
    tail_bell: Doorbell<W, R>,
    head_bell: Doorbell<W, R>,
}

/// Bytes of a submission queue of `entries`.
pub(super) const fn submissions_len(entries: u16) -> u64 {
    entries as u64 * SQE_LEN
}

/// Bytes of a completion queue of `entries`.
pub(super) const fn completions_len(entries: u16) -> u64 {
    entries as u64 * CQE_LEN
}

impl<W: Window, R: Registers> QueuePair<W, R> {
    /// A new pair of `entries` each, a power of two from 2 on. Clears the completion queue: what an older queue left there
    /// could have the phase of a new entry.
    pub(super) fn new(
        entries: u16,
        submissions: &Part<W>,
        completions: &Part<W>,
        tail_bell: Doorbell<W, R>,
        head_bell: Doorbell<W, R>,
    ) -> Self {
        assert!(entries.is_power_of_two() && entries >= 2, "a queue of {entries}");
        assert_eq!(submissions.window.len(), submissions_len(entries), "the queue's memory");
        assert_eq!(completions.window.len(), completions_len(entries), "the queue's memory");
        completions.window.fill(0, completions.window.len(), 0);
        Self {
            submissions: submissions.window,
            completions: completions.window,
            mask: entries - 1,
            tail: 0,
            announced: 0,
            head: 0,
            released: 0,
            phase: true,
            tail_bell,
            head_bell,
        }
    }

    /// Writes a command. The controller sees it after [`QueuePair::announce`]. The caller has fewer commands out than the
    /// queue has entries less one.
    #[inline]
    pub(super) fn push(&mut self, command: &Command) {
        let at = u64::from(self.tail) * SQE_LEN;
        for (index, word) in command.words().into_iter().enumerate() {
            self.submissions.store_u64(at + 8 * index as u64, word, Relaxed);
        }
        self.tail = (self.tail + 1) & self.mask;
    }

    /// Whether there are commands that the controller was not told of.
    #[inline]
    pub(super) const fn has_news(&self) -> bool {
        self.tail != self.announced
    }

    /// Tells the controller of the commands written so far.
    #[inline]
    pub(super) fn announce(&mut self) {
        if self.has_news() {
            self.announced = self.tail;
            self.tail_bell.ring(self.tail);
        }
    }

    /// The next completion, if there is one.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Completion> {
        let at = u64::from(self.head) * CQE_LEN;
        // Acquire: the rest of the entry, and the data that the command brought, are visible with the phase tag, which the
        // controller writes last. Read once: the entry lies in memory that the controller may write again.
        let last = self.completions.load_u32(at + Completion::LAST_DWORD, Acquire);
        if Completion::phase_of(last) != self.phase {
            return None;
        }
        let results = self.completions.load_u64(at, Relaxed);
        let queue = self.completions.load_u32(at + 8, Relaxed);
        self.head = (self.head + 1) & self.mask;
        self.phase ^= self.head == 0;
        Some(Completion::from_dwords([results as u32, (results >> 32) as u32, queue, last]))
    }

    /// Gives the entries taken so far back to the controller.
    #[inline]
    pub(super) fn release(&mut self) {
        if self.head != self.released {
            self.released = self.head;
            self.head_bell.ring(self.head);
        }
    }

    /// Stores to doorbell registers so far.
    pub(super) const fn doorbell_writes(&self) -> u64 {
        self.tail_bell.writes() + self.head_bell.writes()
    }
}
