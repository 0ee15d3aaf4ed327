//! What a controller is: everything that the specification leaves to it, drawn in legal ranges. What it says of itself
//! follows from this, unless a fault makes it lie ([`super::lies`]).

use crate::rng::Rng;
use runtime::Instant;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How a controller treats shadow doorbells, where it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ShadowStyle {
    /// A write to a doorbell counts by its value, and is mirrored into the shadow (QEMU). Otherwise the value is swallowed:
    /// the write only wakes the controller, which then looks at the shadow (QEMU with ioeventfd, SPDK).
    pub mirrors: bool,
    /// A queue's slots are zeroed when it is created (SPDK). Otherwise what lies there is believed.
    pub zeroes: bool,
    /// How often the controller looks at a shadow that does not move before it writes EventIdx and stops looking.
    pub looks: u8,
}

impl ShadowStyle {
    /// Draws one.
    pub fn draw(rng: &mut Rng) -> Self {
        Self {
            mirrors: rng.chance(1, 2),
            zeroes: rng.chance(1, 2),
            looks: [0, 1, 4, 20][rng.below(4) as usize],
        }
    }
}

/// A namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NamespaceProfile {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of a block: 512 or 4096.
    pub block_size: u32,
    /// Optimal I/O boundary in blocks, 0 none.
    pub boundary: u16,
    /// Atomic unit at a power failure in blocks, if it is the namespace's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub atomic_power_fail: Option<u16>,
    /// Blocks from one atomic boundary to the next, in normal operation and over a power failure; 0 none. It counts only
    /// where the atomic unit is the namespace's own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub atomic_boundary: u16,
    /// Where the first one lies, in blocks.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub atomic_offset: u16,
    /// Bytes of metadata that each block has.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub metadata: u16,
    /// Type of its protection information; 0 none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub protection: u16,
    /// What was deallocated reads as zeroes; otherwise it stays as it was.
    pub deallocated_is_zero: bool,
    /// Write protected.
    pub read_only: bool,
}

/// What most namespaces have none of, and their descriptions leave out.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
const fn is_zero(number: &u16) -> bool {
    *number == 0
}

impl NamespaceProfile {
    /// A plain one.
    #[must_use]
    pub const fn plain(blocks: u64, block_size: u32) -> Self {
        Self {
            blocks,
            block_size,
            boundary: 0,
            atomic_power_fail: None,
            atomic_boundary: 0,
            atomic_offset: 0,
            metadata: 0,
            protection: 0,
            deallocated_is_zero: true,
            read_only: false,
        }
    }

    /// Whether `blocks` from `first` on lie across one of its atomic boundaries, or across its optimal one.
    pub(super) fn crosses(&self, first: u64, blocks: u64, writes: bool) -> bool {
        let across = |size: u16, offset: u16| {
            let (size, offset) = (u64::from(size), u64::from(offset));
            size > 0 && (first + size - offset) / size != (first + blocks - 1 + size - offset) / size
        };
        across(self.boundary, 0) || writes && across(self.atomic_boundary, self.atomic_offset)
    }
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Profile {
    /// Major, minor and tertiary.
    pub version: (u16, u8, u8),
    /// Most entries of an I/O queue, from 2 on.
    pub queue_entries_max: u32,
    /// CAP.TO, in 500 ms.
    pub timeout: u8,
    /// CAP.DSTRD.
    pub dstrd: u8,
    /// CAP.MPSMAX.
    pub page_size_max: u8,
    /// Eight bytes of registers are accessed at once.
    pub wide: bool,
    /// I/O queue pairs.
    pub queues: u16,
    /// It gives all its queues, however few are asked for.
    pub gives_all_queues: bool,
    /// MSI-X vectors.
    pub vectors: u16,
    /// MDTS.
    pub mdts: u8,
    /// A volatile write cache.
    pub write_cache: bool,
    /// SGLS bits 1:0.
    pub sgls: u32,
    /// Compare.
    pub compare: bool,
    /// Dataset Management.
    pub deallocate: bool,
    /// Write Zeroes.
    pub write_zeroes: bool,
    /// WZSL, 0 no limit; 0 too where Identify does not tell it.
    pub write_zeroes_limit: u8,
    /// DMRSL, likewise.
    pub range_limit: u32,
    /// Shadow doorbells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowStyle>,
    /// AWUN, blocks.
    pub atomic: u16,
    /// AWUPF, blocks.
    pub atomic_power_fail: u16,
    /// AERL + 1.
    pub events: u8,
    /// ACL + 1.
    pub aborts: u8,
    /// CRDT.
    pub retry_delays: [u16; 3],
    /// Shortest and longest ordinary time to get ready or to stop, in nanoseconds.
    pub ready_ns: (u64, u64),
    /// Shortest and longest ordinary time of an I/O command, in nanoseconds.
    pub latency_ns: (u64, u64),
    /// Namespaces, from identifier 1 on.
    pub namespaces: Vec<NamespaceProfile>,
}

impl Profile {
    /// A controller with nothing special, as tests want it.
    #[must_use]
    pub fn plain(namespaces: Vec<NamespaceProfile>) -> Self {
        Self {
            version: (1, 4, 0),
            queue_entries_max: 256,
            timeout: 10,
            dstrd: 0,
            page_size_max: 0,
            wide: true,
            queues: 8,
            gives_all_queues: false,
            vectors: 9,
            mdts: 5,
            write_cache: true,
            sgls: 0,
            compare: true,
            deallocate: true,
            write_zeroes: true,
            write_zeroes_limit: 0,
            range_limit: 0,
            shadow: None,
            atomic: 1,
            atomic_power_fail: 1,
            events: 4,
            aborts: 4,
            retry_delays: [0; 3],
            ready_ns: (20_000, 2_000_000),
            latency_ns: (4_000, 80_000),
            namespaces,
        }
    }

    /// Draws a controller with these namespaces (their atomic units and boundaries are drawn too).
    #[must_use]
    pub fn draw(namespaces: Vec<NamespaceProfile>, rng: &mut Rng) -> Self {
        let pick = |rng: &mut Rng, choices: &[u64]| choices[rng.below(choices.len() as u64) as usize];
        let version = [(1, 2, 0), (1, 3, 0), (1, 4, 0), (2, 0, 0), (2, 1, 0)][rng.below(5) as usize];
        let style = ShadowStyle::draw(rng);
        let drawn = Self {
            version,
            queue_entries_max: pick(rng, &[2, 4, 16, 64, 256, 1024, 65536]) as u32,
            timeout: pick(rng, &[1, 2, 10, 60, 255]) as u8,
            dstrd: pick(rng, &[0, 0, 0, 1, 4]) as u8,
            page_size_max: rng.below(5) as u8,
            wide: rng.chance(1, 2),
            queues: pick(rng, &[1, 2, 8, 64]) as u16,
            gives_all_queues: rng.chance(1, 2),
            vectors: pick(rng, &[1, 2, 9, 65]) as u16,
            mdts: pick(rng, &[0, 1, 2, 5, 9]) as u8,
            write_cache: rng.chance(3, 4),
            sgls: rng.below(3) as u32,
            compare: rng.chance(1, 2),
            deallocate: rng.chance(3, 4),
            write_zeroes: rng.chance(3, 4),
            write_zeroes_limit: if version.0 >= 2 { pick(rng, &[0, 1, 3]) as u8 } else { 0 },
            range_limit: if version.0 >= 2 { pick(rng, &[0, 8, 64]) as u32 } else { 0 },
            shadow: rng.chance(1, 2).then_some(style),
            atomic: pick(rng, &[1, 8, 256]) as u16,
            atomic_power_fail: 1,
            events: pick(rng, &[1, 4, 16]) as u8,
            aborts: pick(rng, &[1, 4]) as u8,
            retry_delays: [0, pick(rng, &[0, 1]) as u16, pick(rng, &[1, 3]) as u16],
            ready_ns: (20_000, pick(rng, &[100_000, 2_000_000, 300_000_000])),
            latency_ns: (pick(rng, &[1_000, 4_000]), pick(rng, &[20_000, 80_000, 500_000])),
            namespaces: namespaces
                .into_iter()
                .map(|namespace| NamespaceProfile {
                    boundary: pick(rng, &[0, 0, 8, 32]) as u16,
                    atomic_power_fail: rng.chance(1, 4).then_some(pick(rng, &[1, 8]) as u16),
                    deallocated_is_zero: rng.chance(1, 2),
                    ..namespace
                })
                .collect(),
        };
        let atomic_power_fail = pick(rng, &[1, 8]).min(drawn.atomic.into()) as u16;
        let mut drawn = Self { atomic_power_fail, ..drawn };
        for namespace in &mut drawn.namespaces {
            let Some(own) = namespace.atomic_power_fail else { continue };
            // No nearer to each other than the atomic unit is long (NVM 4.1.5.1, NABSN).
            let unit = u64::from(own.max(drawn.atomic));
            // Of one block it cannot be said.
            let boundary = unit * pick(rng, &[0, 1, 2]);
            namespace.atomic_boundary = if boundary == 1 { 2 } else { boundary as u16 };
            namespace.atomic_offset = pick(rng, &[0, 1]).min(u64::from(namespace.atomic_boundary)) as u16;
        }
        drawn
    }

    /// Bytes of the registers: a power of two with room for all doorbells.
    #[must_use]
    pub fn registers_len(&self) -> u64 {
        let doorbells = stack::nvme::bits::doorbell(self.queues + 1, false, self.dstrd.into());
        (stack::nvme::bits::DOORBELLS + doorbells).next_power_of_two().max(16 << 10)
    }

    /// The moment until which it may take to get ready or to stop when it does so from `now` on.
    #[must_use]
    pub fn ready_until(&self, now: Instant) -> Instant {
        now.after(Duration::from_millis(500) * self.timeout.into())
    }
}
