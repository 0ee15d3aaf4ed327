//! Log pages (section 5.16.1) of an I/O controller, whole; [`part`] cuts out what was asked for.

use super::discovery::padded;
use super::refused;
use crate::nvme::bits::{Command, ErrorEntry, FirmwareSlots, Health, Status, admin, io};
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

/// Entries of the Changed Namespace List (section 5.16.1.5). When more changed, its first one says so.
const CHANGED_MAX: usize = 1024;
/// Bytes of the Commands Supported and Effects log (section 5.16.1.6), where I/O commands begin in it, and of an entry.
const EFFECTS_LEN: usize = 4096;
const EFFECTS_IO: usize = 1024;
const EFFECTS_ENTRY: usize = 4;
/// CSUPP: the command is supported.
const SUPPORTED: u8 = 1 << 0;
/// LBCC: it changes what blocks hold.
const CHANGES_BLOCKS: u8 = 1 << 1;

/// How many bytes Get Log Page asks for, and from where (section 5.16).
fn wanted(command: &Command) -> Result<(u64, u64), Status> {
    let [dword10, dword11, low, high, dword14, _] = command.cdw10;
    let dwords = u64::from(dword10 >> 16) | u64::from(dword11 as u16) << 16;
    let offset = u64::from(low) | u64::from(high) << 32;
    // Offsets count bytes here: OT, dword 14 bit 23, would have them count entries.
    if offset % 4 != 0 || dword14 >> 23 & 1 == 1 {
        return Err(refused(Status::INVALID_FIELD));
    }
    Ok((offset, (dwords + 1) * 4))
}

/// The bytes of a page that Get Log Page asks for, at most `room`; zeroes behind the page's end.
pub(super) fn part(command: &Command, page: &[u8], room: u64) -> Result<Vec<u8>, Status> {
    let (offset, len) = wanted(command)?;
    if len > room {
        return Err(refused(Status::SGL_LENGTH_INVALID));
    }
    let from = usize::try_from(offset).ok().and_then(|offset| page.get(offset..));
    let from = from.ok_or(refused(Status::INVALID_FIELD))?;
    let mut bytes = vec![0; len as usize];
    let there = from.len().min(bytes.len());
    bytes[..there].copy_from_slice(&from[..there]);
    Ok(bytes)
}

/// Error Information: no entry is in use.
pub(super) fn errors() -> Vec<u8> {
    vec![0; ErrorEntry::LEN]
}

/// SMART / Health: nothing wears out here.
pub(super) fn health() -> Vec<u8> {
    let mut page = vec![0; Health::LEN];
    Health { available_spare: 100, ..Health::default() }.encode(&mut page);
    page
}

/// Firmware Slot Information: the release, in the one slot.
pub(super) fn firmware(release: &str) -> Vec<u8> {
    let mut page = vec![0; FirmwareSlots::LEN];
    let mut slots = FirmwareSlots { afi: 1, ..FirmwareSlots::default() };
    slots.frs[0] = padded(release, b' ');
    slots.encode(&mut page);
    page
}

/// Changed Namespace List.
pub(super) fn changed(ids: &BTreeSet<u32>) -> Vec<u8> {
    let mut page = vec![0; CHANGED_MAX * 4];
    if ids.len() > CHANGED_MAX {
        page[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        return page;
    }
    for (entry, id) in page.chunks_exact_mut(4).zip(ids) {
        entry.copy_from_slice(&id.to_le_bytes());
    }
    page
}

/// Commands Supported and Effects.
pub(super) fn effects() -> Vec<u8> {
    let mut page = vec![0; EFFECTS_LEN];
    let admin_commands = [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT_REQUEST,
        admin::KEEP_ALIVE,
    ];
    for opcode in admin_commands {
        page[usize::from(opcode) * EFFECTS_ENTRY] = SUPPORTED;
    }
    for opcode in [io::FLUSH, io::WRITE, io::READ, io::WRITE_ZEROES, io::DATASET_MANAGEMENT] {
        let changes = matches!(opcode, io::WRITE | io::WRITE_ZEROES | io::DATASET_MANAGEMENT);
        page[EFFECTS_IO + usize::from(opcode) * EFFECTS_ENTRY] =
            SUPPORTED | if changes { CHANGES_BLOCKS } else { 0 };
    }
    page
}
