//! Descriptor chains: from a head to the windows of its buffers.
//!
//! A chain is the driver's, and may be anything: it may loop, leave the table, point outside of guest memory, or put
//! a readable buffer behind a writable one. Each of these makes the chain malformed, and only the chain: it is given
//! back with a used length of 0 and the ring goes on. A walk is bounded by [`MAX_DESCRIPTORS`] in each table.

use super::memory::Lookup;
use super::packed::PackedDescriptor;
use super::split::{DESCRIPTOR_SIZE, Descriptor};
use crate::block::MAX_SEGMENTS;
use crate::reached::Reached;
use alloc::vec::Vec;
use core::fmt;
use runtime::{Platform, Segments};

/// Most descriptors of a chain in one table: a payload of [`MAX_SEGMENTS`], a header and a status. Empty ones count, or a
/// chain could be as long as its ring.
const MAX_DESCRIPTORS: u32 = MAX_SEGMENTS as u32 + 2;

/// What makes a chain malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChainError {
    /// It has more descriptors than its table, so it loops.
    Loop,
    /// It goes on at an index outside of its table.
    Next,
    /// A buffer or an indirect table does not lie in guest memory (an indirect table: in one region).
    Unmapped,
    /// A readable buffer follows a writable one.
    Order,
    /// More than [`MAX_DESCRIPTORS`] in one table, or more than [`MAX_SEGMENTS`] windows in one direction.
    TooManySegments,
    /// An indirect descriptor where none may be: not negotiated, inside an indirect table, with NEXT, or with a length
    /// that is no table's.
    Indirect,
    /// No room for the request's header and status.
    Frame,
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loop => "the chain loops",
            Self::Next => "the chain leaves its table",
            Self::Unmapped => "a buffer or table is outside of guest memory",
            Self::Order => "a readable buffer follows a writable one",
            Self::TooManySegments => "the chain has too many segments",
            Self::Indirect => "an indirect descriptor where none may be",
            Self::Frame => "the chain has no room for a header and a status",
        })
    }
}

impl ChainError {
    /// The point that it is.
    pub(super) const fn reached(self) -> Reached {
        match self {
            Self::Loop => Reached::ChainLoop,
            Self::Next => Reached::ChainNext,
            Self::Unmapped => Reached::ChainUnmapped,
            Self::Order => Reached::ChainOrder,
            Self::TooManySegments => Reached::ChainTooLong,
            Self::Indirect => Reached::ChainIndirect,
            Self::Frame => Reached::ChainFrame,
        }
    }
}

/// The buffers of one chain. Kept and reused by its request slot, so that a walk allocates nothing.
#[derive(Debug)]
pub(super) struct Chain<W> {
    /// What the device may read, in order; the first `taken` windows no more.
    readable: Vec<W>,
    taken: usize,
    /// Bytes of what the device may read.
    readable_len: u64,
    /// What the device may write, in order.
    writable: Vec<W>,
    /// Bytes of it.
    writable_len: u64,
    /// The guest physical ranges of `writable`, for the dirty log: kept always, since a log may begin at any time.
    pub(super) writable_ranges: Vec<(u64, u64)>,
    /// Descriptors that the last walk read.
    pub(super) walked: u32,
}

impl<W> Default for Chain<W> {
    fn default() -> Self {
        Self {
            readable: Vec::new(),
            taken: 0,
            readable_len: 0,
            writable: Vec::new(),
            writable_len: 0,
            writable_ranges: Vec::new(),
            walked: 0,
        }
    }
}

impl<W: runtime::Window> Chain<W> {
    /// Walks the chain of a split ring that begins at `head`, replacing what was here.
    #[inline(always)]
    pub(super) fn walk_split<P: Platform<Window = W>>(
        &mut self,
        descriptors: &W,
        size: u16,
        head: u16,
        indirect_allowed: bool,
        memory: &mut Lookup<'_, P>,
    ) -> Result<(), ChainError> {
        self.clear();
        let (mut table, mut table_size, mut index) = (*descriptors, u32::from(size), head);
        let mut left = table_size.min(MAX_DESCRIPTORS);
        let mut indirect_allowed = indirect_allowed;
        loop {
            if left == 0 {
                let whole_table = table_size <= MAX_DESCRIPTORS;
                return Err(if whole_table { ChainError::Loop } else { ChainError::TooManySegments });
            }
            left -= 1;
            self.walked += 1;
            let descriptor = Descriptor::load(&table, index);
            if descriptor.flags & Descriptor::INDIRECT != 0 {
                let Descriptor { address, len, flags, .. } = descriptor;
                let count = indirect_count(indirect_allowed, len, flags)?;
                table = memory.window(address, u64::from(len)).ok_or(ChainError::Unmapped)?;
                (table_size, left, index, indirect_allowed) = (count, count, 0, false);
                continue;
            }
            self.add(descriptor.address, descriptor.len, descriptor.flags, memory)?;
            if descriptor.flags & Descriptor::NEXT == 0 {
                return Ok(());
            }
            if u32::from(descriptor.next) >= table_size {
                return Err(ChainError::Next);
            }
            index = descriptor.next;
        }
    }

    /// Goes through the descriptors of a packed ring's request, replacing what was here. Only the last one may be
    /// indirect; its table is used whole, in its order (section 2.8.7).
    #[inline(never)]
    pub(super) fn walk_packed<P: Platform<Window = W>>(
        &mut self,
        descriptors: &[PackedDescriptor],
        indirect_allowed: bool,
        memory: &mut Lookup<'_, P>,
    ) -> Result<(), ChainError> {
        self.clear();
        if descriptors.len() > MAX_DESCRIPTORS as usize {
            return Err(ChainError::TooManySegments);
        }
        for PackedDescriptor { address, len, flags, .. } in descriptors.iter().copied() {
            self.walked += 1;
            if flags & Descriptor::INDIRECT == 0 {
                self.add(address, len, flags, memory)?;
                continue;
            }
            let count = indirect_count(indirect_allowed, len, flags)?;
            let table = memory.window(address, u64::from(len)).ok_or(ChainError::Unmapped)?;
            for index in 0..count {
                self.walked += 1;
                let PackedDescriptor { address, len, flags, .. } =
                    PackedDescriptor::load_indirect(&table, index as u16);
                if flags & Descriptor::INDIRECT != 0 {
                    return Err(ChainError::Indirect);
                }
                self.add(address, len, flags, memory)?;
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.readable.clear();
        self.taken = 0;
        self.readable_len = 0;
        self.writable.clear();
        self.writable_len = 0;
        self.writable_ranges.clear();
        self.walked = 0;
    }

    /// What the device may read and was not taken yet.
    #[inline]
    pub(super) fn readable(&self) -> Segments<'_, W> {
        Segments(&self.readable[self.taken..])
    }

    /// Its length in bytes.
    #[inline]
    pub(super) const fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// What the device may write and was not taken yet.
    #[inline]
    pub(super) fn writable(&self) -> Segments<'_, W> {
        Segments(&self.writable)
    }

    /// Its length in bytes.
    #[inline]
    pub(super) const fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// Takes the last writable byte.
    #[inline(always)]
    pub(super) fn take_last_writable(&mut self) -> Option<W> {
        let last = self.writable.pop()?;
        self.writable_len -= 1;
        // What nearly every driver sends: a descriptor of its own for the status.
        if last.len() == 1 {
            return Some(last);
        }
        let rest = last.len() - 1;
        self.writable.push(last.slice(0, rest)?);
        last.slice(rest, 1)
    }

    /// Takes the first 16 readable bytes, as a number; `None`: there are fewer.
    #[inline(always)]
    pub(super) fn take_u128(&mut self) -> Option<u128> {
        match self.readable.first() {
            // What nearly every driver sends: a descriptor of its own for the header.
            Some(first) if first.len() == 16 => {
                let mut bytes = [0; 16];
                first.read(0, &mut bytes);
                self.taken = 1;
                self.readable_len -= 16;
                Some(u128::from_le_bytes(bytes))
            }
            _ => self.take_split_u128(),
        }
    }

    #[cold]
    fn take_split_u128(&mut self) -> Option<u128> {
        let mut bytes = [0; 16];
        if Segments(&self.readable).read(0, &mut bytes) < bytes.len() {
            return None;
        }
        let mut left = 16;
        self.readable_len -= left;
        while left > 0 {
            let first = self.readable[self.taken];
            let part = left.min(first.len());
            match first.slice(part, first.len() - part) {
                Some(rest) if !rest.is_empty() => self.readable[self.taken] = rest,
                _ => self.taken += 1,
            }
            left -= part;
        }
        Some(u128::from_le_bytes(bytes))
    }

    #[inline(always)]
    fn add<P: Platform<Window = W>>(
        &mut self,
        address: u64,
        len: u32,
        flags: u16,
        memory: &mut Lookup<'_, P>,
    ) -> Result<(), ChainError> {
        if len == 0 {
            return Ok(());
        }
        let len = u64::from(len);
        let windows = if flags & Descriptor::WRITE != 0 {
            self.writable_ranges.push((address, len));
            self.writable_len += len;
            &mut self.writable
        } else if self.writable.is_empty() {
            self.readable_len += len;
            &mut self.readable
        } else {
            return Err(ChainError::Order);
        };
        if !memory.translate(address, len, windows) {
            return Err(ChainError::Unmapped);
        }
        // Room for the header or the status beside the payload.
        if windows.len() > MAX_SEGMENTS + 1 {
            return Err(ChainError::TooManySegments);
        }
        Ok(())
    }
}

/// Entries of the table that an indirect descriptor names.
#[inline]
fn indirect_count(allowed: bool, len: u32, flags: u16) -> Result<u32, ChainError> {
    let count = len / DESCRIPTOR_SIZE as u32;
    let whole = len.is_multiple_of(DESCRIPTOR_SIZE as u32);
    if !allowed || flags & Descriptor::NEXT != 0 || !whole || count == 0 || count > MAX_DESCRIPTORS {
        return Err(ChainError::Indirect);
    }
    Ok(count)
}
