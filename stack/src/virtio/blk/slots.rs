//! The requests that a device works on at a time, one slot each, shared by all of its queues.
//!
//! A guest chooses how many rings there are and how long they are, up to 128 of 32768 entries. What a request needs is
//! therefore not kept by head: there are [`MAX_IN_FLIGHT`] slots, and a request that finds none stays in its ring. By
//! head there is one [`Mark`], two bytes.

use super::request::{ID_LEN, Range, Request, Status};
use crate::block::{CHANNEL_DEPTH, Io, Op};
use crate::virtio::chain::Chain;
use alloc::vec::Vec;
use runtime::{Segments, Window};

/// Most requests of a device between their decoding and their used entry: what its channel takes. A slot grows with the
/// chains that it held, at most to some 30 KiB ([`MAX_SEGMENTS`](crate::block::MAX_SEGMENTS) each way), so that the worst
/// guest costs 30 MiB.
pub(super) const MAX_IN_FLIGHT: usize = CHANNEL_DEPTH;

/// A request that was decoded. What the guest wrote is never read again.
pub(super) struct Slot<W> {
    pub(super) chain: Chain<W>,
    pub(super) ranges: Vec<Range>,
    /// Of [`Request::Ranges`] and [`Request::Pieces`]: how many were submitted.
    pub(super) submitted: usize,
    /// The payload of the piece that was submitted last.
    pub(super) piece: Vec<W>,
    pub(super) status: Option<W>,
    pub(super) request: Request,
    /// Of [`Request::Io`], and the whole of [`Request::Pieces`].
    pub(super) io: Range,
}

impl<W> Slot<W> {
    fn new() -> Self {
        Self {
            chain: Chain::default(),
            ranges: Vec::new(),
            submitted: 0,
            piece: Vec::new(),
            status: None,
            request: Request::Answer(Status::IoError),
            io: Range { op: Op::Flush, offset: 0, len: 0 },
        }
    }

    /// Whether the request has more to submit when what was submitted has ended.
    pub(super) fn has_more(&self) -> bool {
        match self.request {
            Request::Ranges => self.submitted < self.ranges.len(),
            Request::Pieces => self.io.piece(self.submitted).is_some(),
            Request::Io | Request::GetId | Request::Answer(_) => false,
        }
    }

    /// Whether the payload is what the bdev writes.
    pub(super) fn is_read(&self) -> bool {
        matches!(self.request, Request::Io | Request::Pieces) && self.io.op == Op::Read
    }
}

impl<W: Window> Slot<W> {
    /// The operation of [`Request::Io`].
    #[inline(always)]
    pub(super) fn whole(&self) -> Io<'_, W> {
        let Range { op, offset, len } = self.io;
        // The operation is made anew, since copied it would be loaded wider than it was stored, which waits for the
        // core's store buffer.
        let (op, segments) = match op {
            Op::Read => (Op::Read, self.chain.writable()),
            Op::Write { fua } => (Op::Write { fua }, self.chain.readable()),
            other => (other, Segments(&[])),
        };
        Io { op, offset, len, segments }
    }

    /// What the bdev is asked next for a request. An error is the answer of one that it need not be asked about: the
    /// status, and the bytes written.
    #[inline(never)]
    pub(super) fn next_of_others(&mut self, id: &[u8; ID_LEN]) -> Result<Io<'_, W>, (Status, u32)> {
        match self.request {
            Request::Io => Ok(self.whole()),
            Request::Ranges => {
                let Range { op, offset, len } = self.ranges[self.submitted];
                Ok(Io { op, offset, len, segments: Segments(&[]) })
            }
            Request::Pieces => Ok(self.next_piece()),
            Request::GetId => Err((Status::Ok, self.chain.writable().write(0, id) as u32)),
            Request::Answer(status) => Err((status, 0)),
        }
    }

    /// The next piece of a transfer, with its part of the payload.
    #[cold]
    pub(super) fn next_piece(&mut self) -> Io<'_, W> {
        let Range { op, offset, len } =
            self.io.piece(self.submitted).expect("a transfer has a piece to submit");
        let payload = if op == Op::Read { self.chain.writable() } else { self.chain.readable() };
        self.piece.clear();
        self.piece.extend(payload.range(offset - self.io.offset, len));
        Io { op, offset, len, segments: Segments(&self.piece) }
    }
}

/// What is known of a head of a ring: not taken, taken, or in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u16);

const _: () = assert!(MAX_IN_FLIGHT <= Mark::TAKEN.0 as usize);

impl Mark {
    /// The driver's.
    pub(super) const FREE: Self = Self(u16::MAX);
    /// The device's, and in no slot: not decoded yet, or its used entry is written and not published.
    pub(super) const TAKEN: Self = Self(u16::MAX - 1);

    /// The slot's number; of a mark that [`Slots::take`] gave.
    #[inline]
    pub(super) const fn number(self) -> usize {
        self.0 as usize
    }

    /// The slot's number, if there is one.
    #[inline]
    pub(super) const fn slot(self) -> Option<usize> {
        if self.0 < Self::TAKEN.0 { Some(self.0 as usize) } else { None }
    }
}

/// The slots of a device. They are made as they are needed and reused with the memory that they have grown to, so that
/// nothing is allocated for a request in the long run.
pub(super) struct Slots<W> {
    slots: Vec<Slot<W>>,
    free: Vec<Mark>,
}

impl<W> Slots<W> {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// A slot to use; `None` while all are in use.
    #[inline]
    pub(super) fn take(&mut self) -> Option<(Mark, &mut Slot<W>)> {
        let mark = match self.free.pop() {
            Some(mark) => mark,
            None if self.slots.len() < MAX_IN_FLIGHT => {
                self.slots.push(Slot::new());
                Mark(self.slots.len() as u16 - 1)
            }
            None => return None,
        };
        Some((mark, &mut self.slots[usize::from(mark.0)]))
    }

    /// Whether all are in use.
    #[inline]
    pub(super) fn are_used_up(&self) -> bool {
        self.free.is_empty() && self.slots.len() == MAX_IN_FLIGHT
    }

    #[inline]
    pub(super) fn get(&mut self, slot: usize) -> &mut Slot<W> {
        &mut self.slots[slot]
    }

    /// The request of a slot has its used entry, or never began.
    #[inline]
    pub(super) fn give_back(&mut self, mark: Mark) {
        self.free.push(mark);
    }
}
