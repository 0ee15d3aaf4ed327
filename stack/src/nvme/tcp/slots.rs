//! The commands that a connection works on, one slot each: from the capsule until the stream has released the response.
//!
//! A host has at most as many commands out as its queue has entries; but it may use an identifier again as soon as it saw
//! the response, which may be before the stream has released it. So there are some slots more than entries, and a capsule
//! that finds none stays in the stream.

use super::arena::Buffer;
use crate::nvme::bits::Command;
use crate::nvme::controller::Plan;
use alloc::vec::Vec;

/// Slots beyond the entries of the queue.
const SPARE: usize = 32;

/// How far a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is none.
    Free,
    /// It waits for a buffer.
    Buffer,
    /// Its data is on its way from the host.
    Data,
    /// It waits for its turn on the disk.
    Ready,
    /// The disk has it, or, an event request, the controller.
    Executing,
    /// It is answered; the stream has the answer.
    Answered,
}

/// A command.
pub(super) struct Slot<W> {
    pub(super) phase: Phase,
    pub(super) command: Command,
    pub(super) plan: Plan,
    /// Bytes that the host has room for, or has to send.
    pub(super) room: u32,
    pub(super) buffer: Option<Buffer<W>>,
    /// Bytes of its data that came.
    pub(super) received: u32,
    /// A digest of its data was wrong.
    pub(super) is_damaged: bool,
    /// The next range of a deallocation.
    pub(super) range: u16,
    /// PDUs that the stream has not released.
    pub(super) unreleased: u8,
}

/// The slots of a connection.
pub(super) struct Slots<W> {
    slots: Vec<Slot<W>>,
    free: Vec<u16>,
    /// Identifiers of the commands that are not answered; of other slots a number that is no identifier.
    live: Vec<u32>,
    live_count: usize,
}

const NOT_LIVE: u32 = u32::MAX;

impl<W> Slots<W> {
    /// How many slots a queue of so many entries has.
    pub(super) fn count(entries: u16) -> usize {
        usize::from(entries) + SPARE
    }

    pub(super) fn new(entries: u16) -> Self {
        let count = Self::count(entries);
        let slot = || Slot {
            phase: Phase::Free,
            command: Command::default(),
            plan: Plan::Nothing,
            room: 0,
            buffer: None,
            received: 0,
            is_damaged: false,
            range: 0,
            unreleased: 0,
        };
        Self {
            slots: (0..count).map(|_| slot()).collect(),
            free: (0..count as u16).rev().collect(),
            live: alloc::vec![NOT_LIVE; count],
            live_count: 0,
        }
    }

    /// How many slots there are, used or not.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Commands that are not answered.
    pub(super) fn live_count(&self) -> usize {
        self.live_count
    }

    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether a command of this identifier is not answered yet.
    pub(super) fn is_live(&self, id: u16) -> bool {
        self.live.contains(&u32::from(id))
    }

    /// The slot of a command that is not answered.
    pub(super) fn find(&self, id: u16) -> Option<u16> {
        self.live.iter().position(|live| *live == u32::from(id)).map(|at| at as u16)
    }

    /// A slot for a command; one must be free.
    pub(super) fn take(&mut self, command: Command, room: u32) -> u16 {
        let index = self.free.pop().expect("a slot is free");
        self.live[usize::from(index)] = command.id.into();
        self.live_count += 1;
        let slot = self.get(index);
        debug_assert!(slot.phase == Phase::Free && slot.buffer.is_none() && slot.unreleased == 0);
        (slot.phase, slot.command, slot.room) = (Phase::Ready, command, room);
        (slot.plan, slot.received, slot.is_damaged, slot.range) = (Plan::Nothing, 0, false, 0);
        index
    }

    #[inline]
    pub(super) fn get(&mut self, index: u16) -> &mut Slot<W> {
        &mut self.slots[usize::from(index)]
    }

    /// The slot of a number that a host named.
    pub(super) fn named(&self, index: u16) -> Option<&Slot<W>> {
        self.slots.get(usize::from(index))
    }

    /// The command is answered: its identifier may be used again.
    pub(super) fn answered(&mut self, index: u16) {
        debug_assert!(self.live[usize::from(index)] != NOT_LIVE, "a command is answered once");
        self.live[usize::from(index)] = NOT_LIVE;
        self.live_count -= 1;
        self.get(index).phase = Phase::Answered;
    }

    /// The slot is of use again. Gives back its buffer.
    pub(super) fn free(&mut self, index: u16) -> Option<Buffer<W>> {
        let slot = self.get(index);
        slot.phase = Phase::Free;
        slot.unreleased = 0;
        let buffer = slot.buffer.take();
        self.free.push(index);
        buffer
    }

    /// All slots that are in use.
    pub(super) fn in_use(&self) -> impl Iterator<Item = u16> + use<'_, W> {
        let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.phase != Phase::Free);
        used.map(|(index, _)| index as u16)
    }
}
