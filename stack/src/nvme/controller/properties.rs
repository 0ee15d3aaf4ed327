//! The registers of a controller, as properties (section 3.1.3): what they are, and what writing them does.

use crate::nvme::bits::{Capabilities, Configuration, ControllerStatus, Status, Version, register};
use crate::nvme::controller::{Limits, refused};

/// Longest that CSTS.RDY follows CC.EN, in 500 ms: long enough for the queues of other cores to end.
const READY_TIMEOUT: u64 = 30;
/// The version that a controller claims: 1.4.
pub(super) const VERSION: Version = Version(0x0001_0400);

/// What a write of the configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nothing that is not done already.
    Nothing,
    /// The controller begins to work.
    Enable,
    /// It is reset.
    Reset,
    /// It is shut down.
    Shutdown,
}

/// The registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Properties {
    pub(super) cap: Capabilities,
    pub(super) cc: Configuration,
    pub(super) csts: ControllerStatus,
}

impl Properties {
    pub(super) fn new(limits: &Limits) -> Self {
        let cap = Capabilities::default()
            .with_mqes(u64::from(limits.queue_entries) - 1)
            .with_cqr(1)
            .with_to(READY_TIMEOUT)
            .with_css(Capabilities::CSS_NVM);
        Self { cap, cc: Configuration::default(), csts: ControllerStatus::default() }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.cc.en() == 1
    }

    /// Reads the property at an offset, as one of 4 or 8 bytes. Errors: no such property, or not of that size.
    pub(super) fn get(&self, offset: u64, wide: bool) -> Result<u64, Status> {
        let value = match (offset, wide) {
            (register::CAP, true) => self.cap.0,
            (register::VS, false) => VERSION.0.into(),
            (register::CC, false) => self.cc.0.into(),
            (register::CSTS, false) => self.csts.0.into(),
            _ => return Err(refused(Status::INVALID_FIELD)),
        };
        Ok(value)
    }

    /// Writes the property at an offset; only CC can be written.
    pub(super) fn set(&mut self, offset: u64, wide: bool, value: u64) -> Result<Asked, Status> {
        if (offset, wide) != (register::CC, false) {
            return Err(refused(Status::INVALID_FIELD));
        }
        let (before, after) = (self.cc, Configuration(value as u32));
        self.cc = after;
        if before.en() == 1 && after.en() == 0 {
            return Ok(Asked::Reset);
        }
        if before.en() == 0 && after.en() == 1 {
            // Pages, arbitration and command sets that CAP does not offer (section 3.1.3.5): it cannot work.
            if after.css() != 0 || after.mps() != 0 || after.ams() != 0 {
                self.csts = self.csts.with_cfs(1);
                return Ok(Asked::Nothing);
            }
            return Ok(Asked::Enable);
        }
        Ok(if before.shn() == 0 && after.shn() != 0 { Asked::Shutdown } else { Asked::Nothing })
    }

    /// Whether I/O queues may be made: their entries have the sizes of the NVM command set (section 3.1.3.5).
    pub(super) fn has_entry_sizes(&self) -> bool {
        self.cc.iosqes() == 6 && self.cc.iocqes() == 4
    }
}
