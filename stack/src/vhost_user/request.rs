//! The requests of a front-end: number, name, payload, handles and answer of each, as the specification has them
//! ("Front-end message types"), and whether it belongs to what is offered.

use super::wire::{
    FAILURE, INFLIGHT_PADDING, InflightDescription, LogDescription, MemoryRegion, VringAddress, VringState,
};

/// How long a request's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    /// Exactly so many bytes.
    Exactly(usize),
    /// Either of two lengths: with and without the padding that a C compiler adds.
    Either(usize, usize),
    /// A count, and so many memory regions.
    Table,
    /// A configuration header, and as many bytes as it says.
    Config,
    /// Not looked at: the request is not offered.
    Any,
}

/// How many handles ride on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handles {
    /// Exactly so many.
    Exactly(usize),
    /// None, or one that is closed unused ("VHOST_USER_REM_MEM_REG").
    AtMost(usize),
    /// One, unless bit 8 of the payload says that there is none.
    ByBit8,
    /// One for each region.
    PerRegion,
    /// All are closed unused: the request is not offered.
    Any,
}

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With success or failure as a `u64`, and only when the front-end asked for it (`REPLY_ACK`).
    IfAsked,
    /// Always; a failure by this `u64`.
    Always(u64),
    /// Always; a failure by a reply without payload ("VHOST_USER_GET_CONFIG").
    AlwaysOrEmpty,
    /// Always, and there is no way to tell a failure but to close the connection.
    AlwaysOrClose,
}

/// Defines the front-end's requests once: number, name, payload, handles, answer, and whether it is offered.
macro_rules! requests {
    ($($(#[$doc:meta])* $request:ident = $number:literal, $name:literal, $payload:expr, $handles:expr, $answer:expr;)*) => {
        /// A request of the front-end ("Front-end message types").
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Request {
            $($(#[$doc])* $request = $number,)*
        }

        impl Request {
            /// All requests that the specification names.
            pub const ALL: &[Self] = &[$(Self::$request,)*];

            /// The request with this number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$request),)*
                    _ => None,
                }
            }

            /// The name, as the specification has it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$request => $name,)*
                }
            }

            pub(super) const fn rule(self) -> (Payload, Handles, Answer) {
                use {Answer::*, Handles::*, Payload::*};
                match self {
                    $(Self::$request => ($payload, $handles, $answer),)*
                }
            }
        }
    };
}

requests! {
    /// Which virtio features are offered.
    GetFeatures = 1, "GET_FEATURES", Payload::Exactly(0), Handles::Exactly(0), AlwaysOrClose;
    /// Which the driver accepted.
    SetFeatures = 2, "SET_FEATURES", Payload::Exactly(8), Handles::Exactly(0), IfAsked;
    /// The session begins.
    SetOwner = 3, "SET_OWNER", Payload::Exactly(0), Handles::Exactly(0), IfAsked;
    /// Deprecated: disables all rings.
    ResetOwner = 4, "RESET_OWNER", Payload::Exactly(0), Handles::Exactly(0), IfAsked;
    /// The whole memory table.
    SetMemTable = 5, "SET_MEM_TABLE", Table, PerRegion, IfAsked;
    /// The dirty log.
    SetLogBase = 6, "SET_LOG_BASE", Payload::Exactly(LogDescription::LEN), Handles::Exactly(1), AlwaysOrClose;
    /// What is rung when the dirty log was written.
    SetLogFd = 7, "SET_LOG_FD", Payload::Exactly(0), Handles::Exactly(1), IfAsked;
    /// The size of a ring.
    SetVringNum = 8, "SET_VRING_NUM", Payload::Exactly(VringState::LEN), Handles::Exactly(0), IfAsked;
    /// The addresses of a ring.
    SetVringAddr = 9, "SET_VRING_ADDR", Payload::Exactly(VringAddress::LEN), Handles::Exactly(0), IfAsked;
    /// Where a ring goes on.
    SetVringBase = 10, "SET_VRING_BASE", Payload::Exactly(VringState::LEN), Handles::Exactly(0), IfAsked;
    /// Stops a ring and asks where it goes on.
    GetVringBase = 11, "GET_VRING_BASE", Payload::Exactly(VringState::LEN), Handles::Exactly(0), AlwaysOrClose;
    /// What the driver rings; starts the ring.
    SetVringKick = 12, "SET_VRING_KICK", Payload::Exactly(8), ByBit8, IfAsked;
    /// What the driver is told by.
    SetVringCall = 13, "SET_VRING_CALL", Payload::Exactly(8), ByBit8, IfAsked;
    /// What the front-end is told of a broken ring by.
    SetVringErr = 14, "SET_VRING_ERR", Payload::Exactly(8), ByBit8, IfAsked;
    /// Which protocol features are offered.
    GetProtocolFeatures = 15, "GET_PROTOCOL_FEATURES", Payload::Exactly(0), Handles::Exactly(0), AlwaysOrClose;
    /// Which the front-end accepted.
    SetProtocolFeatures = 16, "SET_PROTOCOL_FEATURES", Payload::Exactly(8), Handles::Exactly(0), IfAsked;
    /// How many rings there may be.
    GetQueueNum = 17, "GET_QUEUE_NUM", Payload::Exactly(0), Handles::Exactly(0), AlwaysOrClose;
    /// Enables or disables a ring.
    SetVringEnable = 18, "SET_VRING_ENABLE", Payload::Exactly(VringState::LEN), Handles::Exactly(0), IfAsked;
    /// Of network devices; not offered.
    SendRarp = 19, "SEND_RARP", Payload::Any, Handles::Any, IfAsked;
    /// Of network devices; not offered.
    NetSetMtu = 20, "NET_SET_MTU", Payload::Any, Handles::Any, IfAsked;
    /// The socket for requests of the back-end.
    SetBackendReqFd = 21, "SET_BACKEND_REQ_FD", Payload::Exactly(0), Handles::Exactly(1), IfAsked;
    /// Of IOMMUs; not offered.
    IotlbMsg = 22, "IOTLB_MSG", Payload::Any, Handles::Any, Always(FAILURE);
    /// Of legacy devices of another byte order; not offered.
    SetVringEndian = 23, "SET_VRING_ENDIAN", Payload::Any, Handles::Any, IfAsked;
    /// Reads the configuration space.
    GetConfig = 24, "GET_CONFIG", Payload::Config, Handles::Exactly(0), AlwaysOrEmpty;
    /// Writes the configuration space.
    SetConfig = 25, "SET_CONFIG", Payload::Config, Handles::Exactly(0), IfAsked;
    /// Of crypto devices; not offered.
    CreateCryptoSession = 26, "CREATE_CRYPTO_SESSION", Payload::Any, Handles::Any, AlwaysOrClose;
    /// Of crypto devices; not offered.
    CloseCryptoSession = 27, "CLOSE_CRYPTO_SESSION", Payload::Any, Handles::Any, IfAsked;
    /// Of postcopy migration; not offered.
    PostcopyAdvise = 28, "POSTCOPY_ADVISE", Payload::Any, Handles::Any, AlwaysOrClose;
    /// Of postcopy migration; not offered.
    PostcopyListen = 29, "POSTCOPY_LISTEN", Payload::Any, Handles::Any, IfAsked;
    /// Of postcopy migration; not offered.
    PostcopyEnd = 30, "POSTCOPY_END", Payload::Any, Handles::Any, Always(FAILURE);
    /// Asks for a fresh inflight region.
    GetInflightFd = 31, "GET_INFLIGHT_FD", INFLIGHT_PAYLOAD, Handles::Exactly(0), AlwaysOrClose;
    /// The inflight region to use.
    SetInflightFd = 32, "SET_INFLIGHT_FD", INFLIGHT_PAYLOAD, Handles::Exactly(1), IfAsked;
    /// Of graphics devices; not offered.
    GpuSetSocket = 33, "GPU_SET_SOCKET", Payload::Any, Handles::Any, IfAsked;
    /// Stops everything and goes back to the start.
    ResetDevice = 34, "RESET_DEVICE", Payload::Exactly(0), Handles::Exactly(0), IfAsked;
    /// There is something new in a ring (in-band notifications).
    VringKick = 35, "VRING_KICK", Payload::Exactly(VringState::LEN), Handles::Exactly(0), IfAsked;
    /// How many memory regions there may be.
    GetMaxMemSlots = 36, "GET_MAX_MEM_SLOTS", Payload::Exactly(0), Handles::Exactly(0), AlwaysOrClose;
    /// One more memory region.
    AddMemReg = 37, "ADD_MEM_REG", SINGLE_REGION_PAYLOAD, Handles::Exactly(1), IfAsked;
    /// One memory region less.
    RemMemReg = 38, "REM_MEM_REG", SINGLE_REGION_PAYLOAD, AtMost(1), IfAsked;
    /// The virtio device status.
    SetStatus = 39, "SET_STATUS", Payload::Exactly(8), Handles::Exactly(0), IfAsked;
    /// The virtio device status.
    GetStatus = 40, "GET_STATUS", Payload::Exactly(0), Handles::Exactly(0), AlwaysOrClose;
    /// Of shared objects; not offered.
    GetSharedObject = 41, "GET_SHARED_OBJECT", Payload::Any, Handles::Any, AlwaysOrClose;
    /// Of device state transfer; not offered. The failure: an error, and no handle returned.
    SetDeviceStateFd = 42, "SET_DEVICE_STATE_FD", Payload::Any, Handles::Any, Always(0x101);
    /// Of device state transfer; not offered.
    CheckDeviceState = 43, "CHECK_DEVICE_STATE", Payload::Any, Handles::Any, Always(FAILURE);
    /// Of shared memory regions of the device; not offered.
    GetShmemConfig = 44, "GET_SHMEM_CONFIG", Payload::Any, Handles::Any, AlwaysOrClose;
}

/// The specification adds the fields up to 20 bytes; QEMU and the vhost crate send the padded C structure.
const INFLIGHT_PAYLOAD: Payload =
    Payload::Either(InflightDescription::LEN, InflightDescription::LEN + INFLIGHT_PADDING);
/// Bytes before the region in "Single memory region description".
pub(super) const SINGLE_REGION_PADDING: usize = 8;
/// `ADD_MEM_REG` and `REM_MEM_REG`.
const SINGLE_REGION_PAYLOAD: Payload = Payload::Exactly(SINGLE_REGION_PADDING + MemoryRegion::LEN);

impl Request {
    /// How it is answered.
    #[must_use]
    pub const fn answer(self) -> Answer {
        self.rule().2
    }

    /// Whether it belongs to what is offered.
    #[must_use]
    pub const fn is_offered(self) -> bool {
        !matches!(self.rule().0, Payload::Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_number_from_1_to_44_is_known_and_no_other() {
        let known: Vec<u32> = (0..100).filter(|number| Request::from_number(*number).is_some()).collect();
        assert_eq!(known, (1..=44).collect::<Vec<_>>());
        assert!(Request::ALL.iter().all(|request| Request::from_number(*request as u32) == Some(*request)));
    }
}
