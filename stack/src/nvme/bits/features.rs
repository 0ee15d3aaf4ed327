//! Features (section 5.27.1).

use super::layout::bit_fields;

/// Feature identifiers.
pub mod feature {
    /// Arbitration (section 5.27.1.1).
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management (section 5.27.1.2).
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// Temperature Threshold (section 5.27.1.3).
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error Recovery (NVM 4.1.3.2).
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache (section 5.27.1.4): bit 0, whether it is on.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues (section 5.27.1.5).
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Write Atomicity Normal (NVM 4.1.3.3).
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    /// Asynchronous Event Configuration (section 5.27.1.8).
    pub const ASYNC_EVENT_CONFIG: u8 = 0x0b;
    /// Keep Alive Timer (section 5.27.1.12): milliseconds.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    /// Host Identifier (section 5.27.1.19).
    pub const HOST_IDENTIFIER: u8 = 0x81;
}

bit_fields! {
    /// Number of Queues: asked for in dword 11, given in dword 0 of the completion.
    QueueCount: u32 {
        /// Submission queues, 0's based.
        submission, with_submission = 0, 16;
        /// Completion queues, 0's based.
        completion, with_completion = 16, 16;
    }
}

bit_fields! {
    /// Asynchronous Event Configuration: which events are reported.
    AsyncEventConfig: u32 {
        /// Critical warnings of the health log, bit by bit.
        health, with_health = 0, 8;
        /// Namespace Attribute Notices.
        namespace_attribute, with_namespace_attribute = 8, 1;
        /// Firmware Activation Notices.
        firmware_activation, with_firmware_activation = 9, 1;
        /// Discovery Log Page Change Notices; of a discovery controller.
        discovery_change, with_discovery_change = 31, 1;
    }
}
