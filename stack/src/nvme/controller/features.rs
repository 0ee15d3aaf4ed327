//! Features (section 5.27.1): which there are, and their values.

use super::refused;
use crate::nvme::bits::{AsyncEventConfig, QueueCount, Status, feature};

/// Select in dword 10 of Get Features (section 5.15).
mod select {
    pub(super) const CURRENT: u32 = 0;
    pub(super) const DEFAULT: u32 = 1;
    pub(super) const SAVED: u32 = 2;
    pub(super) const CAPABILITIES: u32 = 3;
}

/// Capability bit 2: the feature can be changed. None can be saved (bit 0) or is a namespace's own (bit 1).
const CHANGEABLE: u32 = 1 << 2;

/// The values that a host may set, and has set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) arbitration: u32,
    pub(super) power: u32,
    pub(super) temperature: u32,
    pub(super) error_recovery: u32,
    pub(super) write_atomicity: u32,
    pub(super) events: AsyncEventConfig,
    pub(super) queues: QueueCount,
    pub(super) keep_alive_ms: u32,
}

impl Features {
    /// What they are before anything was set.
    pub(super) fn new(io_queues: u16, keep_alive_ms: u32) -> Self {
        let queues = u32::from(io_queues.max(1)) - 1;
        Self {
            arbitration: 0,
            power: 0,
            temperature: 0xffff,
            error_recovery: 0,
            write_atomicity: 0,
            events: AsyncEventConfig(0),
            queues: QueueCount::default().with_submission(queues).with_completion(queues),
            keep_alive_ms,
        }
    }

    /// Get Features: dword 0 of the completion.
    pub(super) fn get(&self, dword10: u32, default: &Self) -> Result<u32, Status> {
        let (id, chosen) = (dword10 as u8, dword10 >> 8 & 7);
        let from = match chosen {
            select::CURRENT => self,
            select::DEFAULT | select::SAVED => default,
            select::CAPABILITIES => {
                let fixed = matches!(id, feature::VOLATILE_WRITE_CACHE);
                return self.value(id).map(|_| if fixed { 0 } else { CHANGEABLE });
            }
            _ => return Err(refused(Status::INVALID_FIELD)),
        };
        from.value(id)
    }

    fn value(&self, id: u8) -> Result<u32, Status> {
        Ok(match id {
            feature::ARBITRATION => self.arbitration,
            feature::POWER_MANAGEMENT => self.power,
            feature::TEMPERATURE_THRESHOLD => self.temperature,
            feature::ERROR_RECOVERY => self.error_recovery,
            // Whatever the disks below have, the host is to flush: a namespace may come that needs it.
            feature::VOLATILE_WRITE_CACHE => 1,
            feature::NUMBER_OF_QUEUES => self.queues.0,
            feature::WRITE_ATOMICITY => self.write_atomicity,
            feature::ASYNC_EVENT_CONFIG => self.events.0,
            feature::KEEP_ALIVE_TIMER => self.keep_alive_ms,
            _ => return Err(refused(Status::INVALID_FIELD)),
        })
    }

    /// Set Features of one that is no more than its value. `events_known`: the events that may be asked for.
    pub(super) fn set(&mut self, id: u8, value: u32, events_known: AsyncEventConfig) -> Result<(), Status> {
        match id {
            feature::ARBITRATION => self.arbitration = value,
            // There is one power state, 0, and one workload hint that means nothing.
            feature::POWER_MANAGEMENT if value & 0x1f == 0 => self.power = value,
            feature::TEMPERATURE_THRESHOLD => self.temperature = value,
            // Deallocated blocks are no errors here (DULBE).
            feature::ERROR_RECOVERY if value >> 16 & 1 == 0 => self.error_recovery = value,
            feature::WRITE_ATOMICITY => self.write_atomicity = value & 1,
            feature::ASYNC_EVENT_CONFIG if value & !events_known.0 == 0 => {
                self.events = AsyncEventConfig(value);
            }
            // The cache cannot be turned off: it is not the controller's.
            feature::VOLATILE_WRITE_CACHE if value & 1 == 1 => {}
            feature::VOLATILE_WRITE_CACHE => return Err(refused(Status::FEATURE_NOT_CHANGEABLE)),
            // Fabrics: it came with Connect (section 5.27.1.19).
            feature::HOST_IDENTIFIER => return Err(refused(Status::SEQUENCE_ERROR)),
            _ => return Err(refused(Status::INVALID_FIELD)),
        }
        Ok(())
    }
}
