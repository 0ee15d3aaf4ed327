//! A front-end's messages: from a payload to what is asked, with every rule that can be checked without knowing the session.
//!
//! A payload of the wrong size, a wrong number of handles or a field outside of its range ([`MessageError`]) costs only
//! its message.

use super::request::{Handles, Payload, Request, SINGLE_REGION_PADDING};
use super::wire::{
    ConfigHeader, InflightDescription, LogDescription, MAX_CONFIG_LEN, MAX_HANDLES, MAX_TABLE_REGIONS,
    MemoryRegion, VringAddress, VringState,
};
use crate::reached::Reached;
use crate::virtio::blk::MAX_QUEUES;
use crate::virtio::split::MAX_QUEUE_SIZE;
use alloc::vec::Vec;
use core::fmt;

/// Bytes before the regions in "Memory regions description": their number and padding.
const TABLE_HEADER_LEN: usize = 8;
/// "Vring index and flags": where the index stands.
const VRING_INDEX_MASK: u64 = 0xff;
/// "Vring index and flags": no handle comes with the message.
const VRING_NO_HANDLE: u64 = 0x100;

/// A request, decoded and checked as far as its own bytes go. The handles stay beside it, in the number that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// `GET_FEATURES`
    GetFeatures,
    /// `SET_FEATURES`: the bits
    SetFeatures(u64),
    /// `SET_OWNER`
    SetOwner,
    /// `RESET_OWNER`
    ResetOwner,
    /// `SET_MEM_TABLE`: the regions, at most [`MAX_TABLE_REGIONS`]
    SetMemTable(Vec<MemoryRegion>),
    /// `SET_LOG_BASE`
    SetLogBase(LogDescription),
    /// `SET_LOG_FD`
    SetLogFd,
    /// `SET_VRING_NUM`: a size that a ring may have
    SetVringNum {
        /// The ring.
        index: u16,
        /// Its number of entries.
        size: u16,
    },
    /// `SET_VRING_ADDR`
    SetVringAddr {
        /// The ring.
        index: u16,
        /// Its addresses.
        address: VringAddress,
    },
    /// `SET_VRING_BASE`
    SetVringBase {
        /// The ring.
        index: u16,
        /// Where it goes on: the next available index; packed, the next available position and, above it, the next used.
        base: u32,
    },
    /// `GET_VRING_BASE`: the ring
    GetVringBase(u16),
    /// `SET_VRING_KICK`, with a handle or without
    SetVringKick(u16),
    /// `SET_VRING_CALL`, with a handle or without
    SetVringCall(u16),
    /// `SET_VRING_ERR`, with a handle or without
    SetVringErr(u16),
    /// `VRING_KICK`: the ring
    VringKick(u16),
    /// `GET_PROTOCOL_FEATURES`
    GetProtocolFeatures,
    /// `SET_PROTOCOL_FEATURES`: the bits
    SetProtocolFeatures(u64),
    /// `GET_QUEUE_NUM`
    GetQueueNum,
    /// `SET_VRING_ENABLE`
    SetVringEnable {
        /// The ring.
        index: u16,
        /// Whether it is enabled from now on.
        enabled: bool,
    },
    /// `SET_BACKEND_REQ_FD`
    SetBackendReqFd,
    /// `GET_CONFIG`
    GetConfig(ConfigHeader),
    /// `SET_CONFIG`: where, and what
    SetConfig(ConfigHeader, Vec<u8>),
    /// `GET_INFLIGHT_FD`: and whether the description came padded, and so is answered padded
    GetInflightFd(InflightDescription, bool),
    /// `SET_INFLIGHT_FD`
    SetInflightFd(InflightDescription),
    /// `RESET_DEVICE`
    ResetDevice,
    /// `GET_MAX_MEM_SLOTS`
    GetMaxMemSlots,
    /// `ADD_MEM_REG`
    AddMemReg(MemoryRegion),
    /// `REM_MEM_REG`
    RemMemReg(MemoryRegion),
    /// `SET_STATUS`: the status
    SetStatus(u8),
    /// `GET_STATUS`
    GetStatus,
}

/// Why a message was refused by what stands in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// The request's number is none that the specification names.
    Unknown(u32),
    /// The request belongs to a feature that is not offered.
    NotOffered,
    /// The payload's length.
    PayloadLen {
        /// Bytes found.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// The number of handles.
    HandleCount {
        /// Handles found.
        found: usize,
        /// Handles expected.
        expected: usize,
    },
    /// A field outside of its range.
    Field {
        /// Its name.
        field: &'static str,
        /// What was found.
        found: u64,
        /// What is allowed.
        allowed: &'static str,
    },
}

impl MessageError {
    /// The point that it is.
    pub(super) const fn reached(self) -> Reached {
        match self {
            Self::Unknown(_) => Reached::MessageUnknown,
            Self::NotOffered => Reached::MessageNotOffered,
            Self::PayloadLen { .. } => Reached::MessageLen,
            Self::HandleCount { .. } => Reached::MessageHandles,
            Self::Field { .. } => Reached::MessageField,
        }
    }
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(number) => write!(f, "request {number} is not known"),
            Self::NotOffered => f.write_str("the request belongs to a feature that was not offered"),
            Self::PayloadLen { found, expected } => {
                write!(f, "the payload has {found} bytes, expected {expected}")
            }
            Self::HandleCount { found, expected } => {
                write!(f, "{found} handles came with it, expected {expected}")
            }
            Self::Field { field, found, allowed } => write!(f, "{field} is {found:#x}, allowed is {allowed}"),
        }
    }
}

/// Checks a ring's index.
fn ring_index(index: u64) -> Result<u16, MessageError> {
    match u16::try_from(index) {
        Ok(index) if index < MAX_QUEUES => Ok(index),
        _ => Err(MessageError::Field { field: "the ring's index", found: index, allowed: "0 to 127" }),
    }
}

/// Checks a number of entries: any that a ring of either layout may have (virtio 1.3, section 2.8.10.1). That a split ring
/// wants a power of two (section 2.7) is looked at when it starts, since which layout it has may be said later.
fn ring_size(field: &'static str, size: u32) -> Result<u16, MessageError> {
    match u16::try_from(size) {
        Ok(size) if size > 0 && size <= MAX_QUEUE_SIZE => Ok(size),
        _ => Err(MessageError::Field { field, found: size.into(), allowed: "1 to 32768" }),
    }
}

/// The whole payload as a structure's bytes.
fn fixed<const N: usize>(payload: &[u8]) -> Result<&[u8; N], MessageError> {
    payload.try_into().map_err(|_| MessageError::PayloadLen { found: payload.len(), expected: N })
}

/// The first bytes of a payload, and the rest.
fn prefix<const N: usize>(payload: &[u8]) -> Result<(&[u8; N], &[u8]), MessageError> {
    payload.split_first_chunk().ok_or(MessageError::PayloadLen { found: payload.len(), expected: N })
}

fn decode_u64(payload: &[u8]) -> Result<u64, MessageError> {
    fixed(payload).map(|bytes| u64::from_ne_bytes(*bytes))
}

/// "Vring index and flags" of `SET_VRING_KICK`, `_CALL` and `_ERR`.
fn decode_vring_handle(payload: &[u8]) -> Result<u16, MessageError> {
    let value = decode_u64(payload)?;
    if value & !(VRING_INDEX_MASK | VRING_NO_HANDLE) != 0 {
        let allowed = "an index in bits 0 to 7, and bit 8";
        return Err(MessageError::Field { field: "the ring's index and flags", found: value, allowed });
    }
    ring_index(value & VRING_INDEX_MASK)
}

fn decode_vring_state(payload: &[u8]) -> Result<(u16, u32), MessageError> {
    let state = VringState::decode(fixed(payload)?);
    Ok((ring_index(state.index.into())?, state.num))
}

fn decode_table(payload: &[u8]) -> Result<Vec<MemoryRegion>, MessageError> {
    let ([n0, n1, n2, n3, ..], regions) = prefix::<TABLE_HEADER_LEN>(payload)?;
    let count = u32::from_ne_bytes([*n0, *n1, *n2, *n3]);
    if count as usize > MAX_TABLE_REGIONS {
        let field = "the number of regions";
        return Err(MessageError::Field { field, found: count.into(), allowed: "0 to 8" });
    }
    let expected = TABLE_HEADER_LEN + MemoryRegion::LEN * count as usize;
    if payload.len() != expected {
        return Err(MessageError::PayloadLen { found: payload.len(), expected });
    }
    let (regions, _) = regions.as_chunks();
    Ok(regions.iter().map(MemoryRegion::decode).collect())
}

fn decode_single_region(payload: &[u8]) -> Result<MemoryRegion, MessageError> {
    let (_padding, region) = prefix::<SINGLE_REGION_PADDING>(payload)?;
    fixed(region).map(MemoryRegion::decode)
}

fn decode_config(payload: &[u8]) -> Result<(ConfigHeader, &[u8]), MessageError> {
    let (header, bytes) = prefix(payload)?;
    let header = ConfigHeader::decode(header);
    if header.size == 0 || header.size as usize > MAX_CONFIG_LEN {
        let field = "the configuration's size";
        return Err(MessageError::Field { field, found: header.size.into(), allowed: "1 to 256" });
    }
    if header.flags > ConfigHeader::LIVE_MIGRATION {
        let field = "the configuration's flags";
        return Err(MessageError::Field { field, found: header.flags.into(), allowed: "0 or 1" });
    }
    let expected = ConfigHeader::LEN + header.size as usize;
    if payload.len() != expected {
        return Err(MessageError::PayloadLen { found: payload.len(), expected });
    }
    Ok((header, bytes))
}

/// The description, and whether it came with a C compiler's padding.
fn decode_inflight(payload: &[u8]) -> Result<(InflightDescription, bool), MessageError> {
    let (bytes, padding) = prefix(payload)?;
    let description = InflightDescription::decode(bytes);
    let field = |field, found, allowed| Err(MessageError::Field { field, found, allowed });
    if description.num_queues == 0 || description.num_queues > MAX_QUEUES {
        return field("the number of rings", description.num_queues.into(), "1 to 128");
    }
    if description.queue_size == 0 || description.queue_size > MAX_QUEUE_SIZE {
        return field("the size of the rings", description.queue_size.into(), "1 to 32768");
    }
    Ok((description, !padding.is_empty()))
}

/// How many handles a request's payload asks for, at least and at most.
fn handle_bounds(request: Request, payload: &[u8]) -> (usize, usize) {
    match request.rule().1 {
        Handles::Exactly(count) => (count, count),
        Handles::AtMost(count) => (0, count),
        Handles::Any => (0, MAX_HANDLES),
        Handles::ByBit8 => {
            let count = decode_u64(payload).map_or(0, |value| usize::from(value & VRING_NO_HANDLE == 0));
            (count, count)
        }
        Handles::PerRegion => {
            let count = decode_table(payload).map_or(0, |regions| regions.len());
            (count, count)
        }
    }
}

fn check_payload_len(request: Request, found: usize) -> Result<(), MessageError> {
    match request.rule().0 {
        Payload::Exactly(expected) if found != expected => Err(MessageError::PayloadLen { found, expected }),
        Payload::Either(expected, other) if found != expected && found != other => {
            Err(MessageError::PayloadLen { found, expected })
        }
        // Their lengths depend on what stands in them.
        Payload::Exactly(_) | Payload::Either(..) | Payload::Table | Payload::Config => Ok(()),
        Payload::Any => Err(MessageError::NotOffered),
    }
}

impl Message {
    /// Decodes a request's payload, that `handles` handles came with.
    pub fn decode(request: Request, payload: &[u8], handles: usize) -> Result<Self, MessageError> {
        check_payload_len(request, payload.len())?;
        let message = Self::decode_payload(request, payload)?;
        let (least, most) = handle_bounds(request, payload);
        if handles < least || handles > most {
            return Err(MessageError::HandleCount { found: handles, expected: most });
        }
        Ok(message)
    }

    fn decode_payload(request: Request, payload: &[u8]) -> Result<Self, MessageError> {
        Ok(match request {
            Request::GetFeatures => Self::GetFeatures,
            Request::SetFeatures => Self::SetFeatures(decode_u64(payload)?),
            Request::SetOwner => Self::SetOwner,
            Request::ResetOwner => Self::ResetOwner,
            Request::SetMemTable => Self::SetMemTable(decode_table(payload)?),
            Request::SetLogBase => Self::SetLogBase(LogDescription::decode(fixed(payload)?)),
            Request::SetLogFd => Self::SetLogFd,
            Request::SetVringNum => {
                let (index, size) = decode_vring_state(payload)?;
                Self::SetVringNum { index, size: ring_size("the ring's size", size)? }
            }
            Request::SetVringAddr => {
                let address = VringAddress::decode(fixed(payload)?);
                let index = ring_index(address.index.into())?;
                if address.flags & !VringAddress::LOG != 0 {
                    let (field, found) = ("the ring's flags", address.flags.into());
                    return Err(MessageError::Field { field, found, allowed: "0 or 1 (log)" });
                }
                Self::SetVringAddr { index, address }
            }
            Request::SetVringBase => {
                // The upper half is zero for a split ring, and the used position for a packed one.
                let (index, base) = decode_vring_state(payload)?;
                Self::SetVringBase { index, base }
            }
            Request::GetVringBase => Self::GetVringBase(decode_vring_state(payload)?.0),
            Request::SetVringKick => Self::SetVringKick(decode_vring_handle(payload)?),
            Request::SetVringCall => Self::SetVringCall(decode_vring_handle(payload)?),
            Request::SetVringErr => Self::SetVringErr(decode_vring_handle(payload)?),
            Request::VringKick => match decode_vring_state(payload)? {
                (index, 0) => Self::VringKick(index),
                (_, other) => {
                    let field = "the reserved number";
                    return Err(MessageError::Field { field, found: other.into(), allowed: "0" });
                }
            },
            Request::GetProtocolFeatures => Self::GetProtocolFeatures,
            Request::SetProtocolFeatures => Self::SetProtocolFeatures(decode_u64(payload)?),
            Request::GetQueueNum => Self::GetQueueNum,
            Request::SetVringEnable => match decode_vring_state(payload)? {
                (index, enabled @ (0 | 1)) => Self::SetVringEnable { index, enabled: enabled == 1 },
                (_, other) => {
                    let field = "whether the ring is enabled";
                    return Err(MessageError::Field { field, found: other.into(), allowed: "0 or 1" });
                }
            },
            Request::SetBackendReqFd => Self::SetBackendReqFd,
            Request::GetConfig => Self::GetConfig(decode_config(payload)?.0),
            Request::SetConfig => {
                let (header, bytes) = decode_config(payload)?;
                Self::SetConfig(header, bytes.to_vec())
            }
            Request::GetInflightFd => {
                let (description, padded) = decode_inflight(payload)?;
                Self::GetInflightFd(description, padded)
            }
            Request::SetInflightFd => Self::SetInflightFd(decode_inflight(payload)?.0),
            Request::ResetDevice => Self::ResetDevice,
            Request::GetMaxMemSlots => Self::GetMaxMemSlots,
            Request::AddMemReg => Self::AddMemReg(decode_single_region(payload)?),
            Request::RemMemReg => Self::RemMemReg(decode_single_region(payload)?),
            Request::SetStatus => {
                let status = decode_u64(payload)?;
                let Ok(status) = u8::try_from(status) else {
                    let field = "the device status";
                    return Err(MessageError::Field { field, found: status, allowed: "0 to 255" });
                };
                Self::SetStatus(status)
            }
            Request::GetStatus => Self::GetStatus,
            Request::SendRarp
            | Request::NetSetMtu
            | Request::IotlbMsg
            | Request::SetVringEndian
            | Request::CreateCryptoSession
            | Request::CloseCryptoSession
            | Request::PostcopyAdvise
            | Request::PostcopyListen
            | Request::PostcopyEnd
            | Request::GpuSetSocket
            | Request::GetSharedObject
            | Request::SetDeviceStateFd
            | Request::CheckDeviceState
            | Request::GetShmemConfig => return Err(MessageError::NotOffered),
        })
    }

    /// The ring that the message is about, if it is about one.
    #[must_use]
    pub const fn ring(&self) -> Option<u16> {
        match self {
            Self::SetVringNum { index, .. }
            | Self::SetVringAddr { index, .. }
            | Self::SetVringBase { index, .. }
            | Self::GetVringBase(index)
            | Self::SetVringKick(index)
            | Self::SetVringCall(index)
            | Self::SetVringErr(index)
            | Self::VringKick(index)
            | Self::SetVringEnable { index, .. } => Some(*index),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    /// A payload of native-endian numbers.
    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn rejected(request: Request, payload: &[u8], handles: usize) -> MessageError {
        Message::decode(request, payload, handles).expect_err("the message is to be refused")
    }

    #[test]
    fn a_request_that_is_not_offered_is_refused_whatever_it_holds() {
        let not_offered: Vec<u32> = Request::ALL
            .iter()
            .filter(|request| !request.is_offered())
            .map(|request| *request as u32)
            .collect();
        assert_eq!(not_offered, [19, 20, 22, 23, 26, 27, 28, 29, 30, 33, 41, 42, 43, 44]);
        for request in Request::ALL.iter().filter(|request| !request.is_offered()) {
            for handles in [0, 1, MAX_HANDLES] {
                assert_eq!(rejected(*request, &[0; 8], handles), MessageError::NotOffered);
            }
        }
    }

    #[test]
    fn every_offered_request_without_a_payload_wants_none_and_the_others_want_theirs() {
        for request in Request::ALL.iter().filter(|request| request.is_offered()) {
            let payload_of_17 = Message::decode(*request, &[0; 17], 0);
            assert!(
                matches!(
                    payload_of_17,
                    Err(MessageError::PayloadLen { .. }
                        | MessageError::Field { field: "the configuration's size", .. })
                ),
                "{request:?} takes 17 bytes: {payload_of_17:?}"
            );
        }
    }

    #[test]
    fn what_qemu_was_seen_to_send_is_understood() {
        // QEMU 7.2: GET_CONFIG of 57 bytes at 0; the padded description of the inflight region.
        let mut payload = bytes(&[0, 57, 0]);
        payload.resize(69, 0);
        let header = ConfigHeader { offset: 0, size: 57, flags: 0 };
        assert_eq!(Message::decode(Request::GetConfig, &payload, 0), Ok(Message::GetConfig(header)));

        let mut payload = vec![0; 16];
        payload.extend_from_slice(&2_u16.to_ne_bytes());
        payload.extend_from_slice(&128_u16.to_ne_bytes());
        payload.extend_from_slice(&[0; 4]);
        let inflight = InflightDescription { mmap_size: 0, mmap_offset: 0, num_queues: 2, queue_size: 128 };
        let asked = Message::decode(Request::GetInflightFd, &payload, 0);
        assert_eq!(asked, Ok(Message::GetInflightFd(inflight, true)));
        let asked = Message::decode(Request::GetInflightFd, &payload[..20], 0);
        assert_eq!(asked, Ok(Message::GetInflightFd(inflight, false)));

        let kick = Message::decode(Request::SetVringKick, &bytes(&[1, 0]), 1);
        assert_eq!(kick, Ok(Message::SetVringKick(1)));
        let no_handle = Message::decode(Request::SetVringKick, &bytes(&[0x101, 0]), 0);
        assert_eq!(no_handle, Ok(Message::SetVringKick(1)));

        // REM_MEM_REG: a stray handle is tolerated, and closed.
        let region = MemoryRegion { guest_address: 0, size: 1 << 30, user_address: 7 << 40, mmap_offset: 0 };
        let mut payload = vec![0; 8];
        payload.extend_from_slice(&region.encode());
        for handles in [0, 1] {
            assert_eq!(
                Message::decode(Request::RemMemReg, &payload, handles),
                Ok(Message::RemMemReg(region))
            );
        }
    }

    #[test]
    fn the_memory_table_has_as_many_regions_and_handles_as_it_says() {
        let table = |count: u32, regions: usize| {
            let mut payload = bytes(&[count, 0]);
            payload.resize(8 + 32 * regions, 0);
            payload
        };
        for count in 0..=8 {
            let message =
                Message::decode(Request::SetMemTable, &table(count, count as usize), count as usize);
            assert!(matches!(message, Ok(Message::SetMemTable(regions)) if regions.len() == count as usize));
        }
        let refusals = [
            (table(9, 9), 9, "the number of regions is 0x9, allowed is 0 to 8"),
            (table(u32::MAX, 1), 1, "the number of regions is 0xffffffff, allowed is 0 to 8"),
            (table(2, 1), 2, "the payload has 40 bytes, expected 72"),
            (table(1, 2), 1, "the payload has 72 bytes, expected 40"),
            (table(2, 2), 1, "1 handles came with it, expected 2"),
            (table(2, 2), 3, "3 handles came with it, expected 2"),
            (vec![0; 7], 0, "the payload has 7 bytes, expected 8"),
        ];
        for (payload, handles, said) in refusals {
            assert_eq!(rejected(Request::SetMemTable, &payload, handles).to_string(), said);
        }
    }

    #[test]
    fn a_field_outside_of_its_range_is_refused_by_name() {
        let config = |offset, size, flags, len: usize| {
            let mut payload = bytes(&[offset, size, flags]);
            payload.resize(12 + len, 0);
            payload
        };
        let inflight = |queues: u16, size: u16| {
            let mut payload = vec![0; 16];
            payload.extend_from_slice(&queues.to_ne_bytes());
            payload.extend_from_slice(&size.to_ne_bytes());
            payload
        };
        let address = |index, flags| {
            let mut payload = bytes(&[index, flags]);
            payload.resize(40, 0);
            payload
        };
        let refusals = [
            (Request::SetVringNum, bytes(&[128, 128]), 0, "the ring's index is 0x80"),
            (Request::SetVringNum, bytes(&[u32::MAX, 128]), 0, "the ring's index is 0xffffffff"),
            (Request::SetVringNum, bytes(&[0, 0]), 0, "the ring's size is 0x0"),
            (Request::SetVringNum, bytes(&[0, 65536]), 0, "the ring's size is 0x10000"),
            (Request::SetVringAddr, address(128, 0), 0, "the ring's index is 0x80"),
            (Request::SetVringAddr, address(0, 2), 0, "the ring's flags is 0x2"),
            (Request::GetVringBase, bytes(&[200, 0]), 0, "the ring's index is 0xc8"),
            (Request::SetVringEnable, bytes(&[0, 2]), 0, "whether the ring is enabled is 0x2"),
            (Request::SetVringKick, bytes(&[0x80, 0]), 1, "the ring's index is 0x80"),
            (Request::SetVringKick, bytes(&[0x200, 0]), 1, "the ring's index and flags is 0x200"),
            (Request::SetVringCall, bytes(&[0, 1]), 1, "the ring's index and flags is 0x100000000"),
            (Request::GetConfig, config(0, 0, 0, 0), 0, "the configuration's size is 0x0"),
            (Request::GetConfig, config(0, 257, 0, 257), 0, "the configuration's size is 0x101"),
            (Request::SetConfig, config(32, 1, 2, 1), 0, "the configuration's flags is 0x2"),
            (Request::GetInflightFd, inflight(0, 128), 0, "the number of rings is 0x0"),
            (Request::GetInflightFd, inflight(129, 128), 0, "the number of rings is 0x81"),
            (Request::SetInflightFd, inflight(1, 0), 1, "the size of the rings is 0x0"),
            (Request::SetInflightFd, inflight(1, 32769), 1, "the size of the rings is 0x8001"),
            (Request::SetStatus, bytes(&[256, 0]), 0, "the device status is 0x100"),
        ];
        for (request, payload, handles, said) in refusals {
            let error = rejected(request, &payload, handles).to_string();
            assert!(error.starts_with(said), "{request:?}: {error}");
        }
    }

    #[test]
    fn payloads_and_handles_are_counted() {
        let len = |found, expected| MessageError::PayloadLen { found, expected };
        let count = |found, expected| MessageError::HandleCount { found, expected };
        let config_of_4 = bytes(&[0, 4, 0]);
        let refusals = [
            (Request::GetFeatures, vec![0; 8], 0, len(8, 0)),
            (Request::SetFeatures, vec![0; 4], 0, len(4, 8)),
            (Request::SetFeatures, vec![0; 8], 1, count(1, 0)),
            (Request::SetVringAddr, vec![0; 39], 0, len(39, 40)),
            (Request::SetLogBase, vec![0; 8], 0, len(8, 16)),
            (Request::SetLogBase, vec![0; 16], 0, count(0, 1)),
            (Request::SetLogFd, vec![], 0, count(0, 1)),
            (Request::SetVringKick, vec![0; 8], 0, count(0, 1)),
            (Request::SetVringKick, vec![0; 8], 2, count(2, 1)),
            (Request::SetVringKick, bytes(&[0x100, 0]), 1, count(1, 0)),
            (Request::SetBackendReqFd, vec![], 0, count(0, 1)),
            (Request::GetConfig, config_of_4.clone(), 0, len(12, 16)),
            (Request::SetInflightFd, vec![0; 19], 1, len(19, 20)),
            (Request::AddMemReg, vec![0; 40], 0, count(0, 1)),
            (Request::AddMemReg, vec![0; 40], 2, count(2, 1)),
            (Request::AddMemReg, vec![0; 32], 1, len(32, 40)),
            (Request::RemMemReg, vec![0; 40], 2, count(2, 1)),
        ];
        for (request, payload, handles, expected) in refusals {
            assert_eq!(rejected(request, &payload, handles), expected, "{request:?}");
        }
    }
}
