//! How the small controller walks what a command points at: PRP entries (section 4.1.1) and SGL descriptors (section
//! 4.1.2), read as strictly as the sections allow.

use super::host::Host;
use stack::nvme::bits::{Command, PAGE, PSDT_PRP, SglDescriptor, Status};

/// The pieces of memory, address and length, that a command's `len` bytes lie in.
pub(super) fn pieces(host: &Host, command: &Command, len: u64) -> Result<Vec<(u64, u64)>, Status> {
    if command.psdt() == PSDT_PRP { prps(host, command, len) } else { sgl(host, command, len) }
}

fn prps(host: &Host, command: &Command, len: u64) -> Result<Vec<(u64, u64)>, Status> {
    let [first, second] = command.dptr;
    if !first.is_multiple_of(4) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let first_len = len.min(PAGE - first % PAGE);
    let mut pieces = vec![(first, first_len)];
    let mut left = len - first_len;
    let mut push = |address: u64, left: &mut u64| {
        if !address.is_multiple_of(PAGE) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let take = (*left).min(PAGE);
        pieces.push((address, take));
        *left -= take;
        Ok(())
    };
    if left > 0 && left <= PAGE {
        push(second, &mut left)?;
    } else if left > 0 {
        let mut list = second;
        if !list.is_multiple_of(8) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        while left > 0 {
            // The last entry of a page leads to the next page of the list, if there is more than it can describe.
            let at_end = (list + 8).is_multiple_of(PAGE);
            let entry = u64::from_le_bytes(host.read(list).ok_or(Status::DATA_TRANSFER_ERROR)?);
            if at_end && left > PAGE {
                if !entry.is_multiple_of(PAGE) {
                    return Err(Status::PRP_OFFSET_INVALID);
                }
                list = entry;
                continue;
            }
            push(entry, &mut left)?;
            list += 8;
        }
    }
    Ok(pieces)
}

fn sgl(host: &Host, command: &Command, len: u64) -> Result<Vec<(u64, u64)>, Status> {
    let first = SglDescriptor::from_words(command.dptr);
    let descriptors = match first.identifier {
        SglDescriptor::DATA_BLOCK => vec![first],
        SglDescriptor::LAST_SEGMENT => {
            if !first.len.is_multiple_of(16) || first.len == 0 {
                return Err(Status::INVALID_SGL_SEGMENT);
            }
            let at = |index: u64| -> Option<SglDescriptor> {
                let low = u64::from_le_bytes(host.read(first.address + 16 * index)?);
                let high = u64::from_le_bytes(host.read(first.address + 16 * index + 8)?);
                Some(SglDescriptor::from_words([low, high]))
            };
            let all: Option<Vec<_>> = (0..u64::from(first.len) / 16).map(at).collect();
            all.ok_or(Status::DATA_TRANSFER_ERROR)?
        }
        _ => return Err(Status::SGL_TYPE_INVALID),
    };
    let mut pieces = Vec::new();
    for descriptor in descriptors {
        if descriptor.identifier != SglDescriptor::DATA_BLOCK {
            return Err(Status::SGL_TYPE_INVALID);
        }
        pieces.push((descriptor.address, u64::from(descriptor.len)));
    }
    let total: u64 = pieces.iter().map(|(_, len)| len).sum();
    if total == len { Ok(pieces) } else { Err(Status::SGL_LENGTH_INVALID) }
}
