//! vhost-user messages as a front-end writes and reads them, from the specification (QEMU's
//! docs/interop/vhost-user.rst); nothing is shared with the back-end in `stack`.

/// Bytes of a message's header: request, flags, size.
pub const HEADER_BYTES: usize = 12;
/// Bytes that a front-end expects in a message at most.
pub const PAYLOAD_MAX: usize = 4096;

/// Version 1, in a message's flags.
pub const VERSION: u32 = 1;
/// Bits of the version.
pub const VERSION_MASK: u32 = 3;
/// The message is a reply.
pub const REPLY: u32 = 1 << 2;
/// The message is to be acknowledged (REPLY_ACK).
pub const NEED_REPLY: u32 = 1 << 3;

/// Requests of the front-end.
pub mod request {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const VRING_KICK: u32 = 35;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
}

/// Requests of the back-end, on its own channel.
pub mod backend_request {
    /// The configuration space has changed.
    pub const CONFIG_CHANGE: u32 = 2;
    /// A ring has something given back.
    pub const VRING_CALL: u32 = 4;
}

/// Protocol features by bit.
pub mod protocol {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const BACKEND_SEND_FD: u64 = 1 << 10;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
}

/// Virtio features that the front-end and its guest know.
pub mod feature {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const FLUSH: u64 = 1 << 9;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const RING_PACKED: u64 = 1 << 34;
}

/// Bytes of virtio-blk's configuration space that QEMU 7.2 asks for.
pub const CONFIG_BYTES: u32 = 57;
/// Offset of `writeback` in it.
pub const CONFIG_WRITEBACK: u32 = 32;
/// Device status bits that a driver sets (virtio 2.1).
pub const STATUS_FEATURES_OK: u64 = 8;
/// Acknowledge, driver, features OK, driver OK.
pub const STATUS_DRIVER_OK: u64 = 15;

/// A message's bytes, header first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Begins a message.
    #[must_use]
    pub fn new(request: u32, flags: u32) -> Self {
        let mut bytes = Vec::with_capacity(64);
        for word in [request, flags | VERSION, 0] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        Self(bytes)
    }

    /// Adds a 32-bit word to the payload.
    #[must_use]
    pub fn u32(self, word: u32) -> Self {
        self.bytes(&word.to_le_bytes())
    }

    /// Adds a 64-bit word to the payload.
    #[must_use]
    pub fn u64(self, word: u64) -> Self {
        self.bytes(&word.to_le_bytes())
    }

    /// Adds bytes to the payload.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        let size = (self.0.len() - HEADER_BYTES) as u32;
        self.0[8..12].copy_from_slice(&size.to_le_bytes());
        self
    }
}

/// A header as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The request.
    pub request: u32,
    /// Its flags.
    pub flags: u32,
    /// Bytes of payload.
    pub size: u32,
}

/// Reads a 32-bit word of a payload.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")))
}

/// Reads a 64-bit word of a payload.
#[must_use]
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}

/// Takes the first whole message out of what was received.
///
/// # Errors
/// What is wrong with its size; the stream cannot be read on.
pub fn take(buffer: &mut Vec<u8>) -> Result<Option<(Header, Vec<u8>)>, String> {
    if buffer.len() < HEADER_BYTES {
        return Ok(None);
    }
    let header = Header { request: u32_at(buffer, 0), flags: u32_at(buffer, 4), size: u32_at(buffer, 8) };
    let size = header.size as usize;
    if size > PAYLOAD_MAX {
        return Err(format!("a message {} announces {size} bytes of payload", header.request));
    }
    if buffer.len() < HEADER_BYTES + size {
        return Ok(None);
    }
    let rest = buffer.split_off(HEADER_BYTES + size);
    let payload = std::mem::replace(buffer, rest).split_off(HEADER_BYTES);
    Ok(Some((header, payload)))
}
