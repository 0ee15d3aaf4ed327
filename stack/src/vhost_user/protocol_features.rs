//! The protocol features of vhost-user, and which of them are offered ("Protocol features").

/// `GET_QUEUE_NUM`.
pub const MQ: u64 = 1 << 0;
/// The dirty log is shared memory.
pub const LOG_SHMFD: u64 = 1 << 1;
/// `need_reply` is honoured.
pub const REPLY_ACK: u64 = 1 << 3;
/// The back-end may send requests of its own.
pub const BACKEND_REQ: u64 = 1 << 5;
/// `GET_CONFIG`, `SET_CONFIG`, `CONFIG_CHANGE`.
pub const CONFIG: u64 = 1 << 9;
/// The back-end may send handles.
pub const BACKEND_SEND_FD: u64 = 1 << 10;
/// Inflight tracking.
pub const INFLIGHT_SHMFD: u64 = 1 << 12;
/// `RESET_DEVICE`.
pub const RESET_DEVICE: u64 = 1 << 13;
/// Kicks, calls and errors as messages; needs [`BACKEND_REQ`] and [`REPLY_ACK`] ("In-band notifications").
pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
/// `GET_MAX_MEM_SLOTS`, `ADD_MEM_REG`, `REM_MEM_REG`.
pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
/// `SET_STATUS`, `GET_STATUS`.
pub const STATUS: u64 = 1 << 16;

/// The protocol features that are always offered. [`INBAND_NOTIFICATIONS`] is made for simulations, and offered in one.
pub const OFFERED: u64 = MQ
    | LOG_SHMFD
    | REPLY_ACK
    | BACKEND_REQ
    | CONFIG
    | BACKEND_SEND_FD
    | INFLIGHT_SHMFD
    | RESET_DEVICE
    | CONFIGURE_MEM_SLOTS
    | STATUS;
