//! The vhost-user wire: every structure of a message, with its coding and its limits. Sections are those of the vhost-user
//! specification (QEMU, docs/interop/vhost-user.rst).
//!
//! Both ends run on one machine, so numbers are in its own byte order. What comes is a stranger's: a header that cannot
//! be believed ([`HeaderError`]) ends the connection, since nothing after it can be found.

use alloc::vec::Vec;
use core::fmt;

/// The only version of the protocol ("Header").
pub const VERSION: u32 = 1;
/// The header's flags ("Header").
pub mod flag {
    /// Where the version stands.
    pub const VERSION_MASK: u32 = 0x3;
    /// The message is a reply.
    pub const REPLY: u32 = 0x4;
    /// The sender wants to know how it went (protocol feature `REPLY_ACK`).
    pub const NEED_REPLY: u32 = 0x8;
}

/// Most payload bytes of a message that is read to its end. The longest one that is understood has 268; what is longer
/// than this is no message of the protocol.
pub const MAX_PAYLOAD: usize = 4096;
/// Most handles of one message: one for each region of `SET_MEM_TABLE`.
pub const MAX_HANDLES: usize = MAX_TABLE_REGIONS;
/// Most regions of `SET_MEM_TABLE` ("Memory regions description").
pub const MAX_TABLE_REGIONS: usize = 8;
/// Most bytes of the configuration space in one message (QEMU's `VHOST_USER_MAX_CONFIG_SIZE`).
pub const MAX_CONFIG_LEN: usize = 256;

/// A request that a back-end sends ("Back-end message types"): the configuration space has changed.
pub const BACKEND_CONFIG_CHANGE: u32 = 2;
/// A request that a back-end sends: a ring has something given back.
pub const BACKEND_VRING_CALL: u32 = 4;
/// A request that a back-end sends: a ring is of no use.
pub const BACKEND_VRING_ERR: u32 = 5;

/// The `u64` that tells success.
pub const SUCCESS: u64 = 0;
/// The `u64` that tells failure where the specification asks for no special one.
pub const FAILURE: u64 = 1;

/// Bytes that a C compiler adds to [`InflightDescription`].
pub(super) const INFLIGHT_PADDING: usize = 4;

/// Defines a structure of the wire and its coding; the fields' lengths must add up to the length that is stated.
macro_rules! wire {
    ($(#[$doc:meta])* $name:ident, $len:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        const _: () = assert!(0 $(+ size_of::<$type>())* == $len);

        impl $name {
            /// Bytes on the wire.
            pub const LEN: usize = $len;

            /// Reads the structure.
            #[must_use]
            pub fn decode(bytes: &[u8; $len]) -> Self {
                let mut left = &bytes[..];
                $(let $field = {
                    let (raw, rest) = left.split_first_chunk().unwrap_or_else(|| unreachable!("checked above"));
                    left = rest;
                    <$type>::from_ne_bytes(*raw)
                };)*
                debug_assert!(left.is_empty());
                Self { $($field,)* }
            }

            /// Writes the structure.
            #[must_use]
            pub fn encode(&self) -> [u8; $len] {
                let mut bytes = [0; $len];
                let mut at = 0;
                $({
                    let raw = self.$field.to_ne_bytes();
                    bytes[at..at + raw.len()].copy_from_slice(&raw);
                    at += raw.len();
                })*
                debug_assert_eq!(at, $len);
                bytes
            }
        }
    };
}

wire! {
    /// What every message begins with ("Header").
    Header, 12 {
        /// The request's number; a reply repeats it.
        request: u32,
        /// [`VERSION`] and [`flag`]s.
        flags: u32,
        /// Bytes of payload that follow.
        size: u32,
    }
}

wire! {
    /// "A vring state description".
    VringState, 8 {
        /// The ring.
        index: u32,
        /// Size, base or whether to enable it.
        num: u32,
    }
}

wire! {
    /// "A vring address description". Addresses are the front-end's own.
    VringAddress, 40 {
        /// The ring.
        index: u32,
        /// [`VringAddress::LOG`].
        flags: u32,
        /// The descriptor table.
        descriptors: u64,
        /// The device area.
        used: u64,
        /// The driver area.
        available: u64,
        /// Guest physical address under which writes to the device area are logged.
        log: u64,
    }
}

impl VringAddress {
    /// Writes to the device area are logged (`VHOST_VRING_F_LOG`).
    pub const LOG: u32 = 1;

    /// Whether the areas are the same as another's.
    #[must_use]
    pub const fn same_areas(&self, other: &Self) -> bool {
        self.descriptors == other.descriptors && self.used == other.used && self.available == other.available
    }

    /// Under which address writes to the device area are logged, if they are.
    #[must_use]
    pub const fn used_log(&self) -> Option<u64> {
        if self.flags & Self::LOG != 0 { Some(self.log) } else { None }
    }
}

wire! {
    /// One region of "Memory regions description".
    MemoryRegion, 32 {
        /// First guest physical address.
        guest_address: u64,
        /// Length in bytes.
        size: u64,
        /// First address in the front-end.
        user_address: u64,
        /// Where the region begins in its handle's object.
        mmap_offset: u64,
    }
}

wire! {
    /// "Log description".
    LogDescription, 16 {
        /// Bytes of the log.
        size: u64,
        /// Where the log begins in its handle's object.
        offset: u64,
    }
}

wire! {
    /// The fixed part of "Virtio device config space".
    ConfigHeader, 12 {
        /// First byte in the configuration space.
        offset: u32,
        /// Bytes that follow.
        size: u32,
        /// [`ConfigHeader::LIVE_MIGRATION`] or 0.
        flags: u32,
    }
}

impl ConfigHeader {
    /// The message restores a migrated device, and so may write what a driver may not. A value, not a bit.
    pub const LIVE_MIGRATION: u32 = 1;
}

wire! {
    /// "Inflight description".
    InflightDescription, 20 {
        /// Bytes of the region.
        mmap_size: u64,
        /// Where it begins in its handle's object.
        mmap_offset: u64,
        /// Number of rings.
        num_queues: u16,
        /// Size of the rings.
        queue_size: u16,
    }
}

/// Why a header ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Another version than [`VERSION`].
    Version(u32),
    /// A reply where a request was expected, or the other way round.
    Direction,
    /// More payload than [`MAX_PAYLOAD`].
    Size(u32),
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(found) => write!(f, "version {found} in a header, expected {VERSION}"),
            Self::Direction => {
                f.write_str("a reply where a request belongs, or a request where a reply does")
            }
            Self::Size(found) => {
                write!(f, "a payload of {found} bytes, longer than any message ({MAX_PAYLOAD})")
            }
        }
    }
}

impl Header {
    /// The header of a reply to `request`.
    #[must_use]
    pub const fn reply(request: u32, size: u32) -> Self {
        Self { request, flags: VERSION | flag::REPLY, size }
    }

    /// Checks what must hold for the next message to be found at all. `reply`: whether a reply is expected.
    pub const fn check(&self, reply: bool) -> Result<(), HeaderError> {
        let version = self.flags & flag::VERSION_MASK;
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        if (self.flags & flag::REPLY != 0) != reply {
            return Err(HeaderError::Direction);
        }
        if self.size as usize > MAX_PAYLOAD {
            return Err(HeaderError::Size(self.size));
        }
        Ok(())
    }

    /// Whether the sender wants to know how it went.
    #[must_use]
    pub const fn needs_reply(&self) -> bool {
        self.flags & flag::NEED_REPLY != 0
    }
}

/// The payload of a reply to `GET_INFLIGHT_FD`.
#[must_use]
pub fn encode_inflight(description: &InflightDescription, padded: bool) -> Vec<u8> {
    let mut bytes = description.encode().to_vec();
    if padded {
        bytes.resize(InflightDescription::LEN + INFLIGHT_PADDING, 0);
    }
    bytes
}

/// The payload of a reply to `GET_CONFIG`.
#[must_use]
pub fn encode_config(header: &ConfigHeader, bytes: &[u8]) -> Vec<u8> {
    let mut payload = header.encode().to_vec();
    payload.extend_from_slice(bytes);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_is_read_as_it_was_written() {
        let header = Header { request: 24, flags: VERSION | flag::NEED_REPLY, size: 69 };
        assert_eq!(Header::decode(&header.encode()), header);
        let address =
            VringAddress { index: 1, flags: 1, descriptors: 2 << 40, used: 3 << 40, available: 4, log: 5 };
        assert_eq!(VringAddress::decode(&address.encode()), address);
        let region = MemoryRegion { guest_address: 1, size: 2, user_address: 3, mmap_offset: u64::MAX };
        assert_eq!(MemoryRegion::decode(&region.encode()), region);
        let inflight =
            InflightDescription { mmap_size: 0x1080, mmap_offset: 0, num_queues: 2, queue_size: 128 };
        assert_eq!(InflightDescription::decode(&inflight.encode()), inflight);
        assert_eq!(encode_inflight(&inflight, false).len(), 20);
        assert_eq!(encode_inflight(&inflight, true)[..20], inflight.encode());
        assert_eq!(encode_inflight(&inflight, true).len(), 24);
    }

    #[test]
    fn a_header_that_cannot_be_believed_is_refused() {
        let header = |flags, size| Header { request: 1, flags, size };
        assert_eq!(header(1, 0).check(false), Ok(()));
        assert_eq!(header(1 | flag::NEED_REPLY, MAX_PAYLOAD as u32).check(false), Ok(()));
        assert_eq!(header(0, 0).check(false), Err(HeaderError::Version(0)));
        assert_eq!(header(2, 0).check(false), Err(HeaderError::Version(2)));
        assert_eq!(header(1 | flag::REPLY, 0).check(false), Err(HeaderError::Direction));
        assert_eq!(header(1, 0).check(true), Err(HeaderError::Direction));
        assert_eq!(header(1 | flag::REPLY, 8).check(true), Ok(()));
        let too_long = MAX_PAYLOAD as u32 + 1;
        assert_eq!(header(1, too_long).check(false), Err(HeaderError::Size(too_long)));
        assert_eq!(header(1, u32::MAX).check(false), Err(HeaderError::Size(u32::MAX)));
    }
}
