//! The status field of a completion (section 3.3.3.2.1), without the phase tag below it.

use super::layout::bit_fields;
use core::fmt;

/// Status code types (section 3.3.3.2.1.1).
pub mod code_type {
    /// Generic command status.
    pub const GENERIC: u16 = 0;
    /// Specific to the command.
    pub const COMMAND: u16 = 1;
    /// Media and data integrity errors.
    pub const MEDIA: u16 = 2;
    /// Path related.
    pub const PATH: u16 = 3;
    /// Vendor specific.
    pub const VENDOR: u16 = 7;
}

bit_fields! {
    /// How a command ended: bits 31:17 of dword 3.
    Status: u16 {
        /// Status Code.
        sc, with_sc = 0, 8;
        /// Status Code Type.
        sct, with_sct = 8, 3;
        /// Command Retry Delay: which of the controller's retry delays to keep, 0 none.
        crd, with_crd = 11, 2;
        /// More: the error log tells more.
        more, with_more = 13, 1;
        /// Do Not Retry.
        dnr, with_dnr = 14, 1;
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $type:ident, $code:literal, $text:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Self = Self(code_type::$type << 8 | $code);)*

            /// The specification's name of type and code, where this project knows it.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.code() {
                    $(Self::$name => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// It is done.
    SUCCESS = GENERIC, 0x00, "successful completion";
    /// The opcode is not supported.
    INVALID_OPCODE = GENERIC, 0x01, "invalid command opcode";
    /// A field is not supported or out of range.
    INVALID_FIELD = GENERIC, 0x02, "invalid field in command";
    /// The identifier is in use.
    COMMAND_ID_CONFLICT = GENERIC, 0x03, "command ID conflict";
    /// Data or metadata could not be transferred.
    DATA_TRANSFER_ERROR = GENERIC, 0x04, "data transfer error";
    /// Power was about to be lost.
    ABORTED_POWER_LOSS = GENERIC, 0x05, "aborted due to power loss notification";
    /// An internal error.
    INTERNAL_ERROR = GENERIC, 0x06, "internal error";
    /// An Abort command did it.
    ABORT_REQUESTED = GENERIC, 0x07, "command abort requested";
    /// Its submission queue was deleted.
    ABORTED_SQ_DELETION = GENERIC, 0x08, "command aborted due to SQ deletion";
    /// The namespace or its format is invalid.
    INVALID_NAMESPACE = GENERIC, 0x0b, "invalid namespace or format";
    /// A command came out of sequence.
    SEQUENCE_ERROR = GENERIC, 0x0c, "command sequence error";
    /// An SGL's last segment is not its last, or the other way round.
    INVALID_SGL_SEGMENT = GENERIC, 0x0d, "invalid SGL segment descriptor";
    /// Wrong number of SGL descriptors.
    INVALID_SGL_COUNT = GENERIC, 0x0e, "invalid number of SGL descriptors";
    /// The SGL is too short or too long.
    SGL_LENGTH_INVALID = GENERIC, 0x0f, "data SGL length invalid";
    /// An SGL descriptor's type is not supported.
    SGL_TYPE_INVALID = GENERIC, 0x11, "SGL descriptor type invalid";
    /// A PRP entry has an offset where none may be.
    PRP_OFFSET_INVALID = GENERIC, 0x13, "PRP offset invalid";
    /// The namespace is write protected.
    WRITE_PROTECTED = GENERIC, 0x20, "namespace is write protected";
    /// It was interrupted and may be submitted again.
    COMMAND_INTERRUPTED = GENERIC, 0x21, "command interrupted";
    /// A transient error of the transport.
    TRANSIENT_TRANSPORT = GENERIC, 0x22, "transient transport error";
    /// The media are not ready for an admin command.
    ADMIN_MEDIA_NOT_READY = GENERIC, 0x24, "admin command media not ready";
    /// The range ends beyond the namespace.
    LBA_OUT_OF_RANGE = GENERIC, 0x80, "LBA out of range";
    /// More than the namespace's capacity would be allocated.
    CAPACITY_EXCEEDED = GENERIC, 0x81, "capacity exceeded";
    /// The namespace is not ready.
    NAMESPACE_NOT_READY = GENERIC, 0x82, "namespace not ready";
    /// The keep alive timeout may not be this.
    KEEP_ALIVE_TIMEOUT_INVALID = GENERIC, 0x1a, "keep alive timeout invalid";
    /// A reservation stands against it.
    RESERVATION_CONFLICT = GENERIC, 0x83, "reservation conflict";
    /// No such completion queue.
    CQ_INVALID = COMMAND, 0x00, "completion queue invalid";
    /// No such queue identifier may be used.
    INVALID_QUEUE_ID = COMMAND, 0x01, "invalid queue identifier";
    /// No such queue size may be used.
    INVALID_QUEUE_SIZE = COMMAND, 0x02, "invalid queue size";
    /// Too many Abort commands.
    ABORT_LIMIT_EXCEEDED = COMMAND, 0x03, "abort command limit exceeded";
    /// Too many Asynchronous Event Requests.
    EVENT_LIMIT_EXCEEDED = COMMAND, 0x05, "asynchronous event request limit exceeded";
    /// No such vector.
    INVALID_VECTOR = COMMAND, 0x08, "invalid interrupt vector";
    /// No such log page.
    INVALID_LOG_PAGE = COMMAND, 0x09, "invalid log page";
    /// The completion queue still has submission queues.
    INVALID_QUEUE_DELETION = COMMAND, 0x0c, "invalid queue deletion";
    /// The feature's value cannot be saved.
    FEATURE_NOT_SAVEABLE = COMMAND, 0x0d, "feature identifier not saveable";
    /// The feature cannot be changed.
    FEATURE_NOT_CHANGEABLE = COMMAND, 0x0e, "feature not changeable";
    /// A Connect of a format that is not supported.
    CONNECT_INCOMPATIBLE_FORMAT = COMMAND, 0x80, "connect incompatible format";
    /// The controller has a connection already, or there are too many.
    CONNECT_CONTROLLER_BUSY = COMMAND, 0x81, "connect controller busy";
    /// A parameter of a Connect is wrong; dword 0 says which.
    CONNECT_INVALID_PARAMETERS = COMMAND, 0x82, "connect invalid parameters";
    /// The host should ask the discovery controller again.
    CONNECT_RESTART_DISCOVERY = COMMAND, 0x83, "connect restart discovery";
    /// The host may not use the subsystem.
    CONNECT_INVALID_HOST = COMMAND, 0x84, "connect invalid host";
    /// The queue is none that may be disconnected.
    INVALID_QUEUE_TYPE = COMMAND, 0x85, "invalid queue type";
    /// The discovery log page changed while it was read.
    DISCOVERY_RESTART = COMMAND, 0x90, "discover restart";
    /// The queue must authenticate first.
    AUTHENTICATION_REQUIRED = COMMAND, 0x91, "authentication required";
    /// The media did not take the data.
    WRITE_FAULT = MEDIA, 0x80, "write fault";
    /// The media did not give the data.
    UNRECOVERED_READ_ERROR = MEDIA, 0x81, "unrecovered read error";
    /// A Compare found a difference.
    COMPARE_FAILURE = MEDIA, 0x85, "compare failure";
    /// Access is denied.
    ACCESS_DENIED = MEDIA, 0x86, "access denied";
    /// A deallocated or unwritten block was read.
    DEALLOCATED_BLOCK = MEDIA, 0x87, "deallocated or unwritten logical block";
    /// The controller failed on its path to the media.
    INTERNAL_PATH_ERROR = PATH, 0x00, "internal path error";
}

impl Status {
    /// Type and code alone, to be compared with the constants.
    #[must_use]
    #[inline]
    pub const fn code(self) -> Self {
        Self(self.0 & 0x7ff)
    }

    /// Whether it ended well.
    #[must_use]
    #[inline]
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => f.write_str("status")?,
        }
        write!(f, " (type {:x}h, code {:02x}h", self.sct(), self.sc())?;
        f.write_str(if self.dnr() == 1 { ", do not retry)" } else { ")" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_status_says_its_name() {
        assert_eq!(
            Status::UNRECOVERED_READ_ERROR.with_dnr(1).to_string(),
            "unrecovered read error (type 2h, code 81h, do not retry)"
        );
        assert_eq!(Status(0x7c5).to_string(), "status (type 7h, code c5h)");
        assert!(Status::SUCCESS.with_more(1).is_success() && !Status::INVALID_FIELD.is_success());
    }
}
