//! What can go wrong with a controller, as its users are told.

use crate::nvme::bits::Status;
use crate::reached::Reached;
use alloc::string::String;
use core::fmt;
use runtime::{Error, PciRefused};

/// Why a controller cannot be used, now or ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The function could not be opened.
    Refused(PciRefused),
    /// The function at that address is no NVM Express controller with I/O.
    NotNvme {
        /// The class code found (base class, subclass, programming interface).
        class: u32,
    },
    /// The platform refused something.
    World {
        /// What was asked.
        what: &'static str,
        /// Its error.
        error: Error,
    },
    /// The controller says of itself what this driver cannot work with, or what cannot be.
    Unsupported(String),
    /// The controller is gone: its registers read all ones.
    Removed,
    /// It did not do something in time.
    TimedOut(&'static str),
    /// It reports a fatal status (CSTS.CFS).
    Fatal,
    /// It failed an admin command that it cannot do without.
    Command {
        /// The command.
        what: &'static str,
        /// How it failed.
        status: Status,
    },
    /// It said something that breaks the protocol.
    Broken(&'static str),
    /// All its I/O queues are in use.
    NoQueue {
        /// How many there are.
        queues: u16,
    },
    /// An operator asked for a reset.
    ResetAsked,
    /// It was let go.
    Closed,
}

impl Failure {
    /// The point that it is.
    pub(super) const fn reached(&self) -> Reached {
        match self {
            Self::Refused(_) => Reached::NvmeRefused,
            Self::NotNvme { .. } => Reached::NvmeNotNvme,
            Self::World { .. } => Reached::NvmeWorld,
            Self::Unsupported(_) => Reached::NvmeUnsupported,
            Self::Removed => Reached::NvmeRemoved,
            Self::TimedOut(_) => Reached::NvmeTimedOut,
            Self::Fatal => Reached::NvmeFatal,
            Self::Command { .. } => Reached::NvmeCommandFailed,
            Self::Broken(_) => Reached::NvmeBroken,
            Self::NoQueue { .. } => Reached::NvmeNoQueue,
            Self::ResetAsked => Reached::NvmeResetAsked,
            Self::Closed => Reached::NvmeClosed,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => f.write_str(&refused.why),
            Self::Unsupported(why) => f.write_str(why),
            Self::NotNvme { class } => {
                write!(f, "the function is no NVMe I/O controller: its class code is {class:06x}, not 010802")
            }
            Self::World { what, error } => write!(f, "{what}: {error}"),
            Self::Removed => f.write_str("the controller was removed (its registers read all ones)"),
            Self::TimedOut(what) => write!(f, "the controller did not {what} in time"),
            Self::Fatal => f.write_str("the controller reports a fatal status (CSTS.CFS)"),
            Self::Command { what, status } => write!(f, "{what} failed: {status}"),
            Self::Broken(what) => write!(f, "the controller broke the protocol: {what}"),
            Self::NoQueue { queues } => write!(f, "all {queues} I/O queues of the controller are in use"),
            Self::ResetAsked => f.write_str("a reset was asked for"),
            Self::Closed => f.write_str("the controller was let go"),
        }
    }
}

impl core::error::Error for Failure {}

/// How an I/O ended badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFailure {
    /// The controller said so, after the retries that the driver makes itself.
    Status(Status),
    /// The controller cannot be used any more, or lost the command in every reset.
    Device,
    /// The driver has nothing that can do it (a Compare where the controller has none).
    Unsupported,
}
