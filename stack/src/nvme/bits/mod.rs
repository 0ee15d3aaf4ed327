//! The wire of NVMe: registers, commands, completions and data structures, as far as this project uses them.
//!
//! Shared by the driver and by those who play a controller. The names of fields are the specification's own mnemonics.
//! Nothing here judges a value: a field holds whatever the other side put there. Every layout is checked when it is
//! compiled: fields lie inside their structure, in the specification's order, and do not overlap.

mod command;
mod completion;
mod fabrics;
mod features;
mod identify;
mod layout;
mod logs;
mod registers;
mod sgl;
mod status;
mod tcp;

pub use command::{Command, PSDT_PRP, PSDT_SGL, SQE_LEN, admin, cns, io};
pub use completion::{CQE_LEN, Completion};
pub use fabrics::{
    CNTLID_DYNAMIC, Connect, ConnectData, Connected, DISCOVERY_NQN, DiscoveryEntry, DiscoveryHeader,
    InvalidParameter, NQN_MAX, fctype,
};
pub use features::{AsyncEventConfig, QueueCount, feature};
pub use identify::{
    DSM_RANGES_MAX, DsmRange, IDENTIFY_LEN, IdDescriptor, IdDescriptors, IdentifyController,
    IdentifyNamespace, IdentifyNvmController, IndependentNamespace, LbaFormat, NAMESPACE_LIST_ENTRIES,
    NSID_ALL, NSID_MAX,
};
pub use logs::{AsyncEvent, ErrorEntry, FirmwareSlots, Health, LogPage, event, log};
pub use registers::{
    AdminQueueAttributes, Capabilities, Configuration, ControllerStatus, DOORBELLS, NSSR_RESET,
    ReadyTimeouts, Version, doorbell, register,
};
pub use sgl::{SGL_DESCRIPTOR_LEN, SglDescriptor};
pub use status::{Status, code_type};
pub use tcp::{
    CAPSULE_CMD_LEN, CAPSULE_RESP_LEN, DataPdu, IcReq, IcResp, PduHeader, R2t, TermReq, digest, pdu,
};

/// Bytes of a memory page, the smallest that a controller may be configured for (CC.MPS 0, section 3.1.3.5), and the only
/// one that this project uses.
pub const PAGE: u64 = 4096;

/// Bytes of a PRP entry (section 4.1.1).
pub const PRP_LEN: u64 = 8;
