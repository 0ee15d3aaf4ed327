//! The driver's side of a split virtqueue, written from virtio 1.3 section 2.7, with indirect descriptors and EVENT_IDX.
//!
//! It trusts nothing that the device writes: a used element must name a head that is out, exactly once, and the used index
//! may not run past what was made available. Each of these is a [`ClientError::Violation`] that says which.

use std::sync::atomic::{Ordering, fence};

use super::memory::GuestMemory;
use super::{ClientError, Result};

/// Descriptor flag: the chain goes on at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the device writes this buffer.
pub const DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;
/// Bytes of one descriptor.
pub const DESC_SIZE: u64 = 16;
/// Used ring flag: the device asks not to be kicked.
pub const USED_F_NO_NOTIFY: u16 = 1;
/// Available ring flag: the driver asks not to be called.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// True when the device writes it.
    pub device_writes: bool,
}

/// A used element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub written: u32,
}

/// One split virtqueue in guest memory.
#[derive(Debug)]
pub struct SplitRing {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    event_idx: bool,
    /// Descriptors that are free, oldest first, so that a head comes again as late as possible.
    free: std::collections::VecDeque<u16>,
    /// The descriptors of the chain that begins at each head, while it is out.
    out: Vec<Option<Vec<u16>>>,
    next_available: u16,
    kicked_available: u16,
    last_used: u16,
}

impl SplitRing {
    /// A ring of `size` descriptors in region `region` of the guest's memory.
    pub fn new(memory: &mut GuestMemory, region: usize, size: u16, event_idx: bool) -> Result<SplitRing> {
        let entries = u64::from(size);
        let descriptors = memory.allocate(region, entries * DESC_SIZE, 16)?;
        let available = memory.allocate(region, 6 + 2 * entries, 2)?;
        let used = memory.allocate(region, 6 + 8 * entries, 4)?;
        let mut ring = SplitRing {
            size,
            descriptors,
            available,
            used,
            event_idx,
            free: (0..size).collect(),
            out: vec![None; usize::from(size)],
            next_available: 0,
            kicked_available: 0,
            last_used: 0,
        };
        ring.reset(memory, 0);
        Ok(ring)
    }

    /// What a driver does when it starts anew: nothing out, indices at `start` (0 in a real driver; another number tests
    /// back-ends that take tracking up on a ring that is not at 0).
    pub fn reset(&mut self, memory: &GuestMemory, start: u16) {
        let entries = u64::from(self.size);
        memory.write(self.descriptors, &vec![0; (entries * DESC_SIZE) as usize]);
        memory.write(self.available, &vec![0; (6 + 2 * entries) as usize]);
        memory.write(self.used, &vec![0; (6 + 8 * entries) as usize]);
        memory.store(self.available + 2, start, Ordering::Release);
        memory.store(self.used + 2, start, Ordering::Release);
        self.free = (0..self.size).collect();
        self.out.fill(None);
        self.next_available = start;
        self.kicked_available = start;
        self.last_used = start;
        self.set_calls(memory, false);
    }

    /// Puts a chain into the descriptor table and the available ring; the device may see it after [`SplitRing::publish`].
    /// `indirect` is the guest address of a table with room for all segments. None when too few descriptors are free.
    pub fn push(&mut self, memory: &GuestMemory, segments: &[Segment], indirect: Option<u64>) -> Option<u16> {
        let needed = if indirect.is_some() { 1 } else { segments.len() };
        if self.free.len() < needed || segments.is_empty() {
            return None;
        }
        let chain: Vec<u16> = self.free.drain(..needed).collect();
        match indirect {
            Some(table) => {
                for (index, segment) in segments.iter().enumerate() {
                    let next = (index + 1 < segments.len()).then_some(index as u16 + 1);
                    write_descriptor(memory, table + index as u64 * DESC_SIZE, segment, next);
                }
                let at = self.descriptors + u64::from(chain[0]) * DESC_SIZE;
                let bytes = (segments.len() as u64 * DESC_SIZE) as u32;
                write_raw_descriptor(memory, at, table, bytes, DESC_F_INDIRECT, 0);
            }
            None => {
                for (index, segment) in segments.iter().enumerate() {
                    let at = self.descriptors + u64::from(chain[index]) * DESC_SIZE;
                    write_descriptor(memory, at, segment, chain.get(index + 1).copied());
                }
            }
        }
        let head = chain[0];
        self.out[usize::from(head)] = Some(chain);
        self.offer(memory, head);
        Some(head)
    }

    /// Writes any head into the next slot of the available ring, checked or not: the hostile driver's entrance.
    pub fn offer(&mut self, memory: &GuestMemory, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        memory.store(self.available + 4 + 2 * slot, head, Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Lets the device see everything pushed, and says whether it wants a kick.
    pub fn publish(&mut self, memory: &GuestMemory) -> bool {
        memory.store(self.available + 2, self.next_available, Ordering::Release);
        // Pairs with the device's fence between its re-enabling of notifications and its last look at the available
        // index: the index store must not pass the load of the device's wish (virtio 1.3, 2.7.13.4.1).
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked_available, self.next_available);
        self.kicked_available = new;
        if self.event_idx {
            let event: u16 = memory.load(self.used + 4 + 8 * u64::from(self.size), Ordering::Acquire);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags: u16 = memory.load(self.used, Ordering::Acquire);
            old != new && flags & USED_F_NO_NOTIFY == 0
        }
    }

    /// Takes the next used element, if the device has published one.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Used>> {
        let used_index: u16 = memory.load(self.used + 2, Ordering::Acquire);
        let ready = used_index.wrapping_sub(self.last_used);
        if ready == 0 {
            return Ok(None);
        }
        let out = self.next_available.wrapping_sub(self.last_used);
        if ready > out {
            return Err(ClientError::Violation(format!(
                "used index {used_index} is {ready} past the last one taken, but only {out} chains are out"
            )));
        }
        let element = self.used + 4 + 8 * u64::from(self.last_used % self.size);
        let id: u32 = memory.load(element, Ordering::Relaxed);
        let written: u32 = memory.load(element + 4, Ordering::Relaxed);
        let chain = usize::try_from(id).ok().and_then(|head| self.out.get_mut(head)).and_then(Option::take);
        let Some(chain) = chain else {
            return Err(ClientError::Violation(format!(
                "used element {} names head {id}, which is not out: completed twice, or never made available",
                self.last_used
            )));
        };
        self.free.extend(chain);
        self.last_used = self.last_used.wrapping_add(1);
        Ok(Some(Used { head: id as u16, written }))
    }

    /// Asks for a call after the next used element (true) or for none (false). Look again after asking for one.
    pub fn set_calls(&self, memory: &GuestMemory, wanted: bool) {
        if self.event_idx {
            let event = if wanted { self.last_used } else { self.last_used.wrapping_sub(1) };
            memory.store(self.available + 4 + 2 * u64::from(self.size), event, Ordering::Release);
        }
        let flags = if wanted || self.event_idx { 0 } else { AVAIL_F_NO_INTERRUPT };
        memory.store(self.available, flags, Ordering::Release);
        // Pairs with the device's fence between its used index store and its look at the driver's wish.
        fence(Ordering::SeqCst);
    }

    /// Chains that are out.
    pub fn outstanding(&self) -> usize {
        self.out.iter().flatten().count()
    }

    /// Free descriptors.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// The used index in guest memory: what QEMU gives to SET_VRING_BASE when it reconnects.
    pub fn used_index(&self, memory: &GuestMemory) -> u16 {
        memory.load(self.used + 2, Ordering::Acquire)
    }

    /// The available index as this driver counts it.
    pub fn available_index(&self) -> u16 {
        self.next_available
    }
}

fn write_descriptor(memory: &GuestMemory, at: u64, segment: &Segment, next: Option<u16>) {
    let mut flags = if segment.device_writes { DESC_F_WRITE } else { 0 };
    if next.is_some() {
        flags |= DESC_F_NEXT;
    }
    write_raw_descriptor(memory, at, segment.address, segment.length, flags, next.unwrap_or(0));
}

/// Writes one descriptor, whatever it says.
pub fn write_raw_descriptor(memory: &GuestMemory, at: u64, address: u64, length: u32, flags: u16, next: u16) {
    let mut bytes = [0; DESC_SIZE as usize];
    bytes[0..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..16].copy_from_slice(&next.to_le_bytes());
    memory.write(at, &bytes);
}

#[cfg(test)]
mod tests {
    use super::super::memory::Pages;
    use super::*;

    /// A ring with one chain out, and what a device would have to write to complete `id`.
    fn ring_with_one_out() -> (GuestMemory, SplitRing, u16) {
        let mut memory = GuestMemory::with_regions(Pages::Small, 1 << 20, 0).expect("memory");
        let mut ring = SplitRing::new(&mut memory, 0, 8, false).expect("a ring");
        let segment = Segment { address: 0x1000, length: 1, device_writes: true };
        let head = ring.push(&memory, &[segment], None).expect("descriptors");
        ring.publish(&memory);
        (memory, ring, head)
    }

    fn complete(memory: &GuestMemory, ring: &SplitRing, index: u16, id: u32) {
        let element = ring.used + 4 + 8 * u64::from(index % ring.size);
        memory.store(element, id, Ordering::Relaxed);
        memory.store(ring.used + 2, index + 1, Ordering::Release);
    }

    #[test]
    fn a_head_that_comes_back_twice_is_found() {
        let (memory, mut ring, head) = ring_with_one_out();
        let segment = Segment { address: 0x1000, length: 1, device_writes: true };
        ring.push(&memory, &[segment], None).expect("descriptors");
        ring.publish(&memory);
        complete(&memory, &ring, 0, head.into());
        assert_eq!(ring.pop(&memory).expect("once is right").map(|used| used.head), Some(head));
        complete(&memory, &ring, 1, head.into());
        assert!(ring.pop(&memory).is_err(), "twice is not");
    }

    #[test]
    fn a_used_index_beyond_what_is_out_is_found() {
        let (memory, mut ring, head) = ring_with_one_out();
        complete(&memory, &ring, 0, head.into());
        memory.store(ring.used + 2, 2u16, Ordering::Release);
        assert!(ring.pop(&memory).is_err());
    }
}
