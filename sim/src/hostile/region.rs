//! Rings and inflight regions as a front-end may bring them along from a dead back-end: whole, or with one thing wrong
//! that no back-end can have left there. A region that is noise all over is refused at its first field; these are
//! refused at every field there is.

use crate::memory::SimWindow;
use crate::rng::Rng;
use runtime::Window;
use std::sync::atomic::Ordering::Relaxed;

/// Entries of the rings that the regions are for.
pub(super) const SIZE: u16 = 64;
/// Bytes between two rings' areas in memory, and where in them the driver's and the device's area stand.
pub(super) const RING_LEN: u64 = 8192;
pub(super) const AVAILABLE: u64 = 2048;
pub(super) const USED: u64 = 4096;
/// Bytes of a part of a region of split and of packed rings.
const SPLIT_PART: u64 = 1088;
const PACKED_PART: u64 = 2112;
/// Most requests that a region says are out.
const OUT_MAX: u64 = 5;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Nothing,
    Version,
    Size,
    /// Split: the used index is far away. Packed: the used position is none.
    Used,
    /// Split: the list of the last batch. Packed: the list of free entries.
    List,
    Flag,
    CounterTwice,
    CounterAtEnd,
    /// Packed: a request's last entry is not its last.
    Request,
    /// Packed: an entry is nobody's.
    Entry,
}

impl Wrong {
    const ALL: [Self; 10] = [
        Self::Nothing,
        Self::Version,
        Self::Size,
        Self::Used,
        Self::List,
        Self::Flag,
        Self::CounterTwice,
        Self::CounterAtEnd,
        Self::Request,
        Self::Entry,
    ];

    fn draw(rng: &mut Rng) -> Self {
        if rng.chance(1, 3) { Self::Nothing } else { Self::ALL[rng.below(Self::ALL.len() as u64) as usize] }
    }
}

/// Writes the parts of two split rings, and moves the rings' indexes to where the regions say.
pub(super) fn write_split(region: &SimWindow, rings: &SimWindow, rng: &mut Rng) {
    for queue in 0..2 {
        let (part, ring, wrong) = (SPLIT_PART * queue, RING_LEN * queue, Wrong::draw(rng));
        let (batch, out) = (rng.below(OUT_MAX) as u16, 2 + rng.below(OUT_MAX) as u16);
        let used = rng.word() as u16;
        let behind = if wrong == Wrong::Used { SIZE + 1 + rng.below(1000) as u16 } else { batch };
        header(region, part, wrong, rng);
        region.store_u16(part + 12, 0, Relaxed);
        region.store_u16(part + 14, used.wrapping_sub(behind), Relaxed);
        for head in 0..SIZE {
            let state = part + 16 + 16 * u64::from(head);
            // The last batch are the first heads, and those that are out follow.
            let is_out = (batch..batch + out).contains(&head);
            let flag = if head < batch { rng.below(2) as u8 } else { is_out.into() };
            let next = if wrong == Wrong::List { [0, SIZE][rng.below(2) as usize] } else { head + 1 };
            let counter = counter(wrong, head - batch.min(head), out, rng);
            region.store_u8(state, if wrong == Wrong::Flag && is_out { 2 } else { flag }, Relaxed);
            region.store_u16(state + 6, next, Relaxed);
            region.store_u64(state + 8, counter, Relaxed);
        }
        if rings.len() >= ring + RING_LEN {
            let made = used.wrapping_add(out).wrapping_add(rng.below(4) as u16);
            rings.store_u16(ring + AVAILABLE + 2, made, Relaxed);
            rings.store_u16(ring + USED + 2, used, Relaxed);
        }
    }
}

/// Writes the parts of two packed rings.
pub(super) fn write_packed(region: &SimWindow, rng: &mut Rng) {
    for queue in 0..2 {
        let (part, wrong) = (PACKED_PART * queue, Wrong::draw(rng));
        header(region, part, wrong, rng);
        let requests: Vec<u16> = (0..2 + rng.below(OUT_MAX)).map(|_| 1 + rng.below(3) as u16).collect();
        let free: u16 = requests.iter().sum();
        let used = rng.below(SIZE.into()) as u16 + if wrong == Wrong::Used { SIZE } else { 0 };
        for (at, value) in [(12, free), (14, free), (16, used), (18, used)] {
            region.store_u16(part + at, value, Relaxed);
        }
        let wrap = rng.below(2) as u8;
        region.store_u8(part + 20, wrap, Relaxed);
        region.store_u8(part + 21, wrap, Relaxed);
        for entry in 0..SIZE {
            let place = part + 32 + 32 * u64::from(entry);
            let next = match wrong {
                Wrong::List if entry >= free => free,
                // The list passes over the last but one.
                Wrong::Entry if entry == SIZE - 3 => SIZE - 1,
                _ => entry + 1,
            };
            region.store_u8(place, 0, Relaxed);
            region.store_u16(place + 2, next, Relaxed);
            region.store_u64(place + 16, rng.word(), Relaxed);
            region.store_u64(place + 24, rng.word(), Relaxed);
        }
        let mut head = 0;
        for (number, len) in requests.iter().enumerate() {
            let place = part + 32 + 32 * u64::from(head);
            let last = head + len - 1;
            region.store_u8(place, if wrong == Wrong::Flag { 2 } else { 1 }, Relaxed);
            region.store_u16(place + 4, if wrong == Wrong::Request { last + 1 } else { last }, Relaxed);
            region.store_u16(place + 6, *len, Relaxed);
            let counter = counter(wrong, number as u16, requests.len() as u16, rng);
            region.store_u64(place + 8, counter, Relaxed);
            head += len;
        }
    }
}

fn header(region: &SimWindow, part: u64, wrong: Wrong, rng: &mut Rng) {
    let version = if wrong == Wrong::Version { 2 + rng.below(100) as u16 } else { 1 };
    let size = if wrong == Wrong::Size { SIZE / 2 } else { SIZE };
    region.store_u64(part, 0, Relaxed);
    region.store_u16(part + 8, version, Relaxed);
    region.store_u16(part + 10, size, Relaxed);
}

/// The counter of the `number`th of `count` requests.
fn counter(wrong: Wrong, number: u16, count: u16, rng: &mut Rng) -> u64 {
    match wrong {
        Wrong::CounterTwice => 7,
        Wrong::CounterAtEnd if number + 1 == count => u64::MAX,
        _ => u64::from(number) * 10 + rng.below(10),
    }
}
