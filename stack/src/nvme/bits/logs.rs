//! Log pages (section 5.16.1) and the asynchronous events that lead to them (section 5.2.1).

use super::layout::{bit_fields, structure};

/// Log page identifiers.
pub mod log {
    /// Error Information (section 5.16.1.2).
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information (section 5.16.1.3).
    pub const HEALTH: u8 = 0x02;
    /// Firmware Slot Information (section 5.16.1.4).
    pub const FIRMWARE: u8 = 0x03;
    /// Changed Namespace List (section 5.16.1.5).
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands Supported and Effects (section 5.16.1.6).
    pub const COMMAND_EFFECTS: u8 = 0x05;
    /// Asymmetric Namespace Access (section 5.16.1.13).
    pub const ANA: u8 = 0x0c;
    /// Discovery (section 5.16.1.23).
    pub const DISCOVERY: u8 = 0x70;
}

/// Types and kinds of asynchronous events (section 5.2.1).
pub mod event {
    /// Type: error status.
    pub const ERROR: u32 = 0;
    /// Type: SMART / health status.
    pub const HEALTH: u32 = 1;
    /// Type: notice.
    pub const NOTICE: u32 = 2;
    /// An error: a doorbell of no queue was written.
    pub const INVALID_DOORBELL: u32 = 0;
    /// An error: a doorbell was written with an impossible value.
    pub const INVALID_DOORBELL_VALUE: u32 = 1;
    /// A notice: namespaces changed.
    pub const NAMESPACE_ATTRIBUTE: u32 = 0;
    /// A notice: firmware is being activated.
    pub const FIRMWARE_ACTIVATION: u32 = 1;
    /// A notice: the access to a group of namespaces changed.
    pub const ANA_CHANGE: u32 = 3;
    /// A notice: the discovery log page changed.
    pub const DISCOVERY_CHANGE: u32 = 0xf0;
}

bit_fields! {
    /// Dword 0 of the completion of an Asynchronous Event Request.
    AsyncEvent: u32 {
        /// Type: [`event`].
        kind, with_kind = 0, 3;
        /// What happened, by the type.
        information, with_information = 8, 8;
        /// The log page that tells more.
        log_page, with_log_page = 16, 8;
    }
}

structure! {
    /// An entry of the Error Information log.
    ErrorEntry: 64 {
        /// Error Count; 0: the entry is not in use.
        error_count: u64 = 0,
        /// Submission queue.
        sqid: u16 = 8,
        /// Command.
        cid: u16 = 10,
        /// Status with the phase tag in bit 0.
        status: u16 = 12,
        /// Parameter Error Location.
        parameter: u16 = 14,
        /// First LBA.
        lba: u64 = 16,
        /// Namespace.
        nsid: u32 = 24,
    }
}

structure! {
    /// SMART / Health Information.
    Health: 512 {
        /// Critical Warning, bit by bit: spare, temperature, reliability, read-only, backup failed.
        critical_warning: u8 = 0,
        /// Composite Temperature, kelvin.
        temperature: u16 = 1,
        /// Available Spare, per cent.
        available_spare: u8 = 3,
        /// Available Spare Threshold, per cent.
        available_spare_threshold: u8 = 4,
        /// Percentage Used; may be more than 100.
        percentage_used: u8 = 5,
        /// Data Units Read, 1000 × 512 bytes.
        data_units_read: u128 = 32,
        /// Data Units Written, likewise.
        data_units_written: u128 = 48,
        /// Host Read Commands.
        host_read_commands: u128 = 64,
        /// Host Write Commands.
        host_write_commands: u128 = 80,
        /// Controller Busy Time, minutes.
        controller_busy_time: u128 = 96,
        /// Power Cycles.
        power_cycles: u128 = 112,
        /// Power On Hours.
        power_on_hours: u128 = 128,
        /// Unsafe Shutdowns.
        unsafe_shutdowns: u128 = 144,
        /// Media and Data Integrity Errors.
        media_errors: u128 = 160,
        /// Number of Error Information Log Entries.
        error_log_entries: u128 = 176,
        /// Warning Composite Temperature Time, minutes.
        warning_temperature_time: u32 = 192,
        /// Critical Composite Temperature Time, minutes.
        critical_temperature_time: u32 = 196,
        /// Temperature Sensors 1 to 8, kelvin, 0 none.
        temperature_sensors: [u16; 8] = 200,
    }
}

structure! {
    /// Firmware Slot Information.
    FirmwareSlots: 512 {
        /// Active Firmware Info: the slot in use in bits 2:0, after the next reset in bits 6:4.
        afi: u8 = 0,
        /// Firmware Revisions for slots 1 to 7, ASCII.
        frs: [[u8; 8]; 7] = 8,
    }
}

/// A log page that the project reads: which, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogPage {
    /// The first entry of Error Information.
    Error,
    /// SMART / Health Information of the whole controller.
    Health,
    /// Firmware Slot Information.
    Firmware,
    /// Changed Namespace List.
    ChangedNamespaces,
}

impl LogPage {
    /// Its identifier.
    #[must_use]
    pub const fn id(self) -> u8 {
        match self {
            Self::Error => log::ERROR,
            Self::Health => log::HEALTH,
            Self::Firmware => log::FIRMWARE,
            Self::ChangedNamespaces => log::CHANGED_NAMESPACES,
        }
    }

    /// How many bytes of it are read.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Error => ErrorEntry::LEN as u32,
            Self::Health => Health::LEN as u32,
            Self::Firmware => FirmwareSlots::LEN as u32,
            Self::ChangedNamespaces => super::IDENTIFY_LEN as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_comes_back_as_it_was_written() {
        let health = Health { temperature: 310, media_errors: 1 << 100, ..Default::default() };
        let mut bytes = [0; Health::LEN];
        health.encode(&mut bytes);
        assert_eq!((bytes[1], bytes[2], bytes[172]), (54, 1, 16));
        assert_eq!(Health::decode(&bytes), health);
    }

    #[test]
    fn an_event_names_its_log_page() {
        let event = AsyncEvent(0x0004_0002);
        assert_eq!((event.kind(), event.information()), (event::NOTICE, event::NAMESPACE_ATTRIBUTE));
        assert_eq!(event.log_page(), u32::from(log::CHANGED_NAMESPACES));
    }
}
