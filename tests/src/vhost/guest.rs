//! A guest's side of one split ring, by hand: it makes requests available and looks at what came back.

use super::front_end::Memory;

/// Request types.
pub mod kind {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
}

/// Bytes of payload of each request: one block.
pub const PAYLOAD: u64 = 512;
/// Bytes that a ring and its buffers take in guest memory.
pub const RING_SPACE: u64 = 0x10_000;
/// Where the parts stand in a ring's space.
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x4000;
/// Bytes of one request's buffers: header, payload, status.
const BUFFER: u64 = 16 + PAYLOAD + 16;

/// A ring of a guest. Request number n of it uses descriptors 3n, 3n + 1 and 3n + 2.
pub struct Ring {
    /// Its number.
    pub index: u32,
    /// Its number of entries.
    pub size: u16,
    /// Guest physical address of its space.
    pub at: u64,
    /// The next available index.
    pub available: u16,
    /// The used index up to which was looked.
    pub used: u16,
}

impl Ring {
    /// A ring at a guest physical address, empty.
    #[must_use]
    pub fn new(index: u32, size: u16, at: u64) -> Self {
        Self { index, size, at, available: 0, used: 0 }
    }

    /// The payload of `SET_VRING_ADDR`.
    #[must_use]
    pub fn addresses(&self, memory: &Memory, flags: u32) -> Vec<u8> {
        let user = memory.user + (self.at - memory.guest);
        let mut payload = super::front_end::words(&[self.index, flags]);
        let log = self.at + USED;
        payload.extend(super::front_end::longs(&[user, user + USED, user + AVAILABLE, log]));
        payload
    }

    fn buffers(&self, slot: u16) -> u64 {
        self.at + BUFFERS + BUFFER * u64::from(slot)
    }

    /// Makes a request available under the head `3 * slot`, without telling anybody.
    pub fn put(&mut self, memory: &Memory, slot: u16, kind: u32, sector: u64, payload: &[u8]) {
        let (head, at) = (3 * slot, self.buffers(slot));
        assert!(head + 2 < self.size, "the ring has room for the slot");
        let descriptor = |index: u16, address: u64, len: u32, flags: u16| {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((index + 1).to_le_bytes());
            memory.write(self.at + 16 * u64::from(index), &bytes);
        };
        let written = if kind == self::kind::IN { 2 } else { 0 };
        descriptor(head, at, 16, 1);
        descriptor(
            head + 1,
            at + 16,
            if kind == self::kind::FLUSH { 0 } else { PAYLOAD as u32 },
            1 | written,
        );
        descriptor(head + 2, at + 16 + PAYLOAD, 1, 2);
        memory.write(at, &[&kind.to_le_bytes()[..], &0_u32.to_le_bytes(), &sector.to_le_bytes()].concat());
        memory.write(at + 16, payload);
        memory.write(at + 16 + PAYLOAD, &[0xff]);
        let entry = self.at + AVAILABLE + 4 + 2 * u64::from(self.available % self.size);
        memory.write(entry, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        memory.write(self.at + AVAILABLE + 2, &self.available.to_le_bytes());
    }

    /// The slots that came back since the last look, in order.
    pub fn take_used(&mut self, memory: &Memory) -> Vec<u16> {
        let index = u16::from_le_bytes(memory.read(self.at + USED + 2));
        let mut slots = Vec::new();
        while self.used != index {
            let entry = self.at + USED + 4 + 8 * u64::from(self.used % self.size);
            let head = u32::from_le_bytes(memory.read(entry)) as u16;
            assert_eq!(head % 3, 0, "only heads come back");
            slots.push(head / 3);
            self.used = self.used.wrapping_add(1);
        }
        slots
    }

    /// A request's status byte; 0xff until the device wrote it.
    #[must_use]
    pub fn status(&self, memory: &Memory, slot: u16) -> u8 {
        memory.read::<1>(self.buffers(slot) + 16 + PAYLOAD)[0]
    }

    /// A request's payload.
    #[must_use]
    pub fn payload(&self, memory: &Memory, slot: u16) -> [u8; PAYLOAD as usize] {
        memory.read(self.buffers(slot) + 16)
    }

    /// Guest physical address of a request's payload.
    #[must_use]
    pub fn payload_at(&self, slot: u16) -> u64 {
        self.buffers(slot) + 16
    }

    /// Guest physical address of the used area.
    #[must_use]
    pub fn used_at(&self) -> u64 {
        self.at + USED
    }

    /// Overwrites the available index with anything.
    pub fn corrupt_available(&mut self, memory: &Memory, index: u16) {
        memory.write(self.at + AVAILABLE + 2, &index.to_le_bytes());
    }
}
