//! Why a message of the front-end was refused, as the log tells it.

use super::inflight_region::RegionError;
use super::message::MessageError;
use super::rings::RingRefusal;
use super::wire::ConfigHeader;
use crate::reached::Reached;
use crate::virtio::memory::MemoryError;
use core::fmt;

/// Why a message was refused.
pub(super) enum Refusal {
    /// By what stands in it.
    Message(MessageError),
    /// Feature bits that were not offered.
    Features(u64),
    /// A ring.
    Ring(RingRefusal),
    /// The inflight region.
    Inflight(RegionError),
    /// The memory table.
    Memory(MemoryError),
    /// The memory table has no such region.
    NoSuchRegion,
    /// A handle is not what it should be, or cannot be used.
    Handle(runtime::Error),
    /// The log came without the feature that says how.
    LogFeature,
    /// In-band notifications without what they need.
    InBandAlone,
    /// An in-band kick, where that was not agreed upon.
    InBandKick,
    /// Outside of the configuration space, or not writable.
    Config(ConfigHeader),
}

impl Refusal {
    /// The point that it is.
    pub(super) const fn reached(&self) -> Reached {
        match self {
            Self::Message(error) => error.reached(),
            Self::Features(_) => Reached::RefusedFeatures,
            Self::Ring(RingRefusal::Runs) => Reached::RefusedRunning,
            Self::Ring(RingRefusal::Queue(_)) => Reached::RefusedRing,
            Self::Inflight(error) => error.reached(),
            Self::Memory(error) => error.reached(),
            Self::NoSuchRegion => Reached::RefusedNoRegion,
            Self::Handle(_) => Reached::RefusedHandle,
            Self::LogFeature => Reached::RefusedLog,
            Self::InBandAlone | Self::InBandKick => Reached::RefusedInBand,
            Self::Config(_) => Reached::RefusedConfig,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(error) => error.fmt(f),
            Self::Features(bits) => write!(
                f,
                "feature bits {bits:#x} are not offered (if they were, in an earlier life of the target, the guest's \
                 driver must begin anew)"
            ),
            Self::Ring(error) => error.fmt(f),
            Self::Inflight(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
            Self::NoSuchRegion => {
                f.write_str("the memory table has no region of these addresses and this size")
            }
            Self::Handle(error) => write!(f, "the handle that came with it cannot be used: {error}"),
            Self::LogFeature => {
                f.write_str("the log cannot be shared without the protocol feature LOG_SHMFD")
            }
            Self::InBandAlone => f.write_str(
                "the protocol feature INBAND_NOTIFICATIONS needs BACKEND_REQ and REPLY_ACK beside it",
            ),
            Self::InBandKick => {
                f.write_str("a ring is kicked by message only with the protocol feature INBAND_NOTIFICATIONS")
            }
            Self::Config(ConfigHeader { offset, size, .. }) => {
                write!(f, "{size} bytes at {offset} of the configuration space are not there or not writable")
            }
        }
    }
}

impl From<MessageError> for Refusal {
    fn from(error: MessageError) -> Self {
        Self::Message(error)
    }
}

impl From<RingRefusal> for Refusal {
    fn from(error: RingRefusal) -> Self {
        Self::Ring(error)
    }
}

impl From<RegionError> for Refusal {
    fn from(error: RegionError) -> Self {
        Self::Inflight(error)
    }
}

impl From<MemoryError> for Refusal {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl From<runtime::Error> for Refusal {
    fn from(error: runtime::Error) -> Self {
        Self::Handle(error)
    }
}
