//! From windows to what a command points at: PRP entries (section 4.1.1) or SGL descriptors (section 4.1.2), made straight
//! of the windows' device addresses, so that the controller reads and writes a guest's own memory.
//!
//! PRPs describe whole pages: only the first may begin inside of one, only the last may end there. SGLs describe anything,
//! where the controller has them. What neither describes (memory that is not mapped, odd addresses, seams inside of a
//! block) is the caller's to copy.

use super::memory::Part;
use crate::nvme::bits::{Command, PAGE, PRP_LEN, SGL_DESCRIPTOR_LEN, SglDescriptor};
use core::sync::atomic::Ordering::Relaxed;
use runtime::{Dma, Segments, Window};

/// Bytes of a command's list of PRP entries, SGL descriptors or ranges. A list that begins at a multiple of it crosses no
/// page.
pub(super) const LIST_LEN: u64 = 2048;
/// Most bytes that one command transfers: what a list of PRP entries describes, wherever the first page begins.
pub(super) const TRANSFER_MAX: u32 = (LIST_LEN / PRP_LEN * PAGE) as u32;

/// What SGLs a controller takes (section 5.17.2.1, SGLS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sgls {
    /// None.
    No,
    /// Data aligned to four bytes.
    Dword,
    /// Any data.
    Any,
}

impl Sgls {
    const fn takes(self, bits: u64) -> bool {
        match self {
            Self::No => false,
            Self::Dword => bits & 3 == 0,
            Self::Any => true,
        }
    }
}

/// What a command shall point at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pointer {
    Prps(u64, u64),
    Sgl(SglDescriptor),
}

impl Pointer {
    /// The command with it.
    #[inline]
    pub(super) const fn on(self, command: Command) -> Command {
        match self {
            Self::Prps(first, second) => command.with_prps(first, second),
            Self::Sgl(descriptor) => command.with_sgl(descriptor),
        }
    }
}

/// Describes `len` bytes (at most [`TRANSFER_MAX`]) at `offset` of the windows, or as many of them, in whole blocks, as one
/// command can; says how many. `None`: not even one block. The list, if it is asked for, is needed until the command has
/// ended.
#[inline]
pub(super) fn describe<W: Window, D: Dma<Window = W>>(
    dma: &D,
    windows: Segments<'_, W>,
    offset: u64,
    len: u32,
    block: u32,
    sgls: Sgls,
    list: impl FnOnce() -> Part<W>,
) -> Option<(Pointer, u32)> {
    // One window, at most two pages: what nearly all requests are.
    if let ([window], 0) = (windows.0, offset)
        && let Some(address) = dma.address(window)
        && address & 3 == 0
        && window.len() == u64::from(len)
    {
        let first_len = PAGE - address % PAGE;
        if u64::from(len) <= first_len {
            return Some((Pointer::Prps(address, 0), len));
        }
        if u64::from(len) <= first_len + PAGE {
            return Some((Pointer::Prps(address, address + first_len), len));
        }
    }
    describe_by_list(dma, windows, offset, len, block, sgls, &list())
}

fn describe_by_list<W: Window, D: Dma<Window = W>>(
    dma: &D,
    windows: Segments<'_, W>,
    offset: u64,
    len: u32,
    block: u32,
    sgls: Sgls,
    list: &Part<W>,
) -> Option<(Pointer, u32)> {
    let prps = describe_by_prps(dma, windows, offset, len, block, list);
    if prps.is_some_and(|(_, covered)| covered == len) || sgls == Sgls::No {
        return prps;
    }
    // Both are tried in turn, and the list holds the last one tried.
    let prps_len = prps.map_or(0, |(_, covered)| covered);
    match describe_by_sgl(dma, windows, offset, len, block, sgls, list) {
        Some((pointer, covered)) if covered > prps_len => Some((pointer, covered)),
        _ => describe_by_prps(dma, windows, offset, len, block, list),
    }
}

/// `covered` bytes, cut to whole blocks; `None` when there is not one.
const fn whole_blocks(covered: u64, block: u32) -> Option<u32> {
    let covered = covered as u32;
    match covered - covered % block {
        0 => None,
        whole => Some(whole),
    }
}

fn describe_by_prps<W: Window, D: Dma<Window = W>>(
    dma: &D,
    windows: Segments<'_, W>,
    offset: u64,
    len: u32,
    block: u32,
    list: &Part<W>,
) -> Option<(Pointer, u32)> {
    let (mut first, mut second) = (0, 0);
    // Entries so far: `first`, and then those of the list, of which `second` is the first.
    let mut entries = 0;
    let mut covered = 0;
    // Where the last page goes on, and how much of it is left.
    let (mut next, mut page_left) = (0, 0);
    'windows: for window in windows.range(offset, u64::from(len)) {
        let Some(mut address) = dma.address(&window) else { break };
        let mut left = window.len();
        if entries == 0 {
            if address & 3 != 0 {
                return None;
            }
            (first, entries, page_left) = (address, 1, PAGE - address % PAGE);
        } else if address != next && (page_left > 0 || !address.is_multiple_of(PAGE)) {
            break;
        }
        while left > 0 {
            if page_left == 0 {
                let place = (entries - 1) * PRP_LEN;
                if place == LIST_LEN {
                    break 'windows;
                }
                if place == 0 {
                    second = address;
                }
                list.window.store_u64(place, address, Relaxed);
                (entries, page_left) = (entries + 1, PAGE);
            }
            let take = left.min(page_left);
            (address, left, page_left) = (address + take, left - take, page_left - take);
            covered += take;
        }
        next = address;
    }
    let whole = whole_blocks(covered, block)?;
    // The entries that the bytes need may be fewer than were made: the second word depends on their number.
    let pages = (first % PAGE + u64::from(whole)).div_ceil(PAGE);
    let second = match pages {
        1 => 0,
        2 => second,
        _ => list.address,
    };
    Some((Pointer::Prps(first, second), whole))
}

fn describe_by_sgl<W: Window, D: Dma<Window = W>>(
    dma: &D,
    windows: Segments<'_, W>,
    offset: u64,
    len: u32,
    block: u32,
    sgls: Sgls,
    list: &Part<W>,
) -> Option<(Pointer, u32)> {
    let mut descriptors: u64 = 0;
    let mut last = SglDescriptor::default();
    let mut covered = 0;
    for window in windows.range(offset, u64::from(len)) {
        let Some(address) = dma.address(&window) else { break };
        if !sgls.takes(address | window.len()) {
            break;
        }
        let window_len = window.len() as u32;
        if descriptors > 0 && last.address + u64::from(last.len) == address {
            last.len += window_len;
        } else {
            if descriptors * SGL_DESCRIPTOR_LEN == LIST_LEN {
                break;
            }
            last = SglDescriptor::data_block(address, window_len);
            descriptors += 1;
        }
        let place = (descriptors - 1) * SGL_DESCRIPTOR_LEN;
        for (index, word) in last.words().into_iter().enumerate() {
            list.window.store_u64(place + 8 * index as u64, word, Relaxed);
        }
        covered += window.len();
    }
    let whole = whole_blocks(covered, block)?;
    if u64::from(whole) < covered {
        // The descriptors must add up to the command's blocks. The second turn covers exactly those.
        return describe_by_sgl(dma, windows, offset, whole, block, sgls, list);
    }
    let pointer = match descriptors {
        1 => last,
        _ => SglDescriptor::last_segment(list.address, (descriptors * SGL_DESCRIPTOR_LEN) as u32),
    };
    Some((Pointer::Sgl(pointer), whole))
}
