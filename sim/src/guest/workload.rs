//! What a guest asks for: a drawn mix of requests over a small disk, so that they overlap and meet again.

use super::request::{Ask, LayoutStyle};
use crate::check::Kind;
use crate::rng::Rng;
use serde::{Deserialize, Serialize};

/// The shape of a guest's load. Drawn once for a run; the requests are drawn from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Workload {
    /// Requests that the guest makes in all, over all its queues.
    pub requests: u64,
    /// Requests out at once on one queue, at most.
    pub depth: u16,
    /// Sectors of one request, at most.
    pub sectors_max: u32,
    /// How often which request is made, in parts of their sum.
    pub mix: Mix,
    /// Longest pause before the next request, when one is made.
    pub think_ns_max: u64,
    /// How often there is a pause, in parts of 256.
    pub think: u32,
    /// How often a chain is laid out anyhow, in parts of 256; half of the others are cut into sectors.
    pub odd_layout: u32,
    /// How often a chain goes through an indirect table, in parts of 256, where that was negotiated.
    pub indirect: u32,
}

/// How often which request is made, in parts of their sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mix {
    /// VIRTIO_BLK_T_IN.
    pub read: u32,
    /// VIRTIO_BLK_T_OUT.
    pub write: u32,
    /// VIRTIO_BLK_T_FLUSH.
    pub flush: u32,
    /// VIRTIO_BLK_T_GET_ID.
    pub get_id: u32,
    /// VIRTIO_BLK_T_DISCARD.
    pub discard: u32,
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    pub write_zeroes: u32,
}

/// What the device allows, as negotiated and read from its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Sectors of the disk.
    pub capacity: u64,
    /// Sectors of one of its blocks, which requests keep to.
    pub block_sectors: u32,
    /// VIRTIO_BLK_F_FLUSH was negotiated.
    pub flush: bool,
    /// VIRTIO_BLK_F_DISCARD was negotiated.
    pub discard: bool,
    /// VIRTIO_BLK_F_WRITE_ZEROES was negotiated.
    pub write_zeroes: bool,
    /// The device is read-only.
    pub read_only: bool,
}

impl Workload {
    /// Draws the next request, whose version is the device's to give.
    pub fn draw(&self, offer: &Offer, rng: &mut Rng) -> Ask {
        let kind = self.draw_kind(offer, rng);
        let style = if rng.chance(self.odd_layout, 256) {
            LayoutStyle::Anyhow
        } else if rng.chance(1, 2) {
            LayoutStyle::Sectors
        } else {
            LayoutStyle::Plain
        };
        let (sector, sectors) = match kind {
            Kind::Flush | Kind::GetId => (0, 0),
            Kind::Read | Kind::Write | Kind::Discard | Kind::WriteZeroes => {
                let block = u64::from(offer.block_sectors);
                let blocks = 1 + rng.below(u64::from(self.sectors_max).min(offer.capacity) / block);
                let first = rng.below(offer.capacity / block - blocks + 1);
                (first * block, (blocks * block) as u32)
            }
        };
        let (unmap, block_sectors) = (rng.chance(1, 2), offer.block_sectors);
        Ask { kind, sector, sectors, block_sectors, version: 0, unmap, style, of_load: true }
    }

    fn draw_kind(&self, offer: &Offer, rng: &mut Rng) -> Kind {
        let writable = !offer.read_only;
        let weigh = |allowed: bool, weight: u32| if allowed { weight } else { 0 };
        let weights = [
            (Kind::Read, self.mix.read),
            (Kind::Write, weigh(writable, self.mix.write)),
            (Kind::Flush, weigh(offer.flush, self.mix.flush)),
            (Kind::GetId, self.mix.get_id),
            (Kind::Discard, weigh(writable && offer.discard, self.mix.discard)),
            (Kind::WriteZeroes, weigh(writable && offer.write_zeroes, self.mix.write_zeroes)),
        ];
        let sum: u32 = weights.iter().map(|&(_, weight)| weight).sum();
        let mut drawn = rng.below(u64::from(sum.max(1))) as u32;
        for (kind, weight) in weights {
            if drawn < weight {
                return kind;
            }
            drawn -= weight;
        }
        Kind::Read
    }
}
