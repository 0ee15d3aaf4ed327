//! A live migration copies every page that the device wrote to.
//!
//! While the front-end logs, each page of guest memory that somebody below the guest stores to must be copied after that
//! store: its bit must be found set in a look at the log that comes later. A bit that is set before the store, found and
//! cleared, and not set again leaves the page stale on the other host. Judged once the rings are stopped and the log was
//! looked at for the last time. What a page holds does not matter, nor how often it is logged for nothing.

use super::Verdict;
use super::observation::Observation;
use std::collections::BTreeMap;

/// Bytes of a page of the log (`VHOST_LOG_PAGE`).
pub const PAGE: u64 = 4096;

/// The checker.
#[derive(Debug, Default)]
pub struct DirtyLog {
    logging: bool,
    /// Whether the run ever logged.
    logged: bool,
    /// Pages that were stored to and not copied since, and where the last store was.
    stale: BTreeMap<u64, u64>,
    evaluations: u64,
}

impl DirtyLog {
    pub(super) fn observe(&mut self, observation: &Observation<'_>) -> Verdict {
        match *observation {
            Observation::Logging => {
                (self.logging, self.logged) = (true, true);
                self.stale.clear();
            }
            Observation::Disconnected | Observation::DeviceReset | Observation::PowerLost => {
                self.logging = false;
            }
            Observation::Access { address, len, store: true, .. } => self.stored(address, len),
            Observation::PageCopied { page } => {
                self.evaluations += 1;
                self.stale.remove(&page);
            }
            Observation::LogRead => {
                self.evaluations += 1;
                if !std::mem::take(&mut self.logging) {
                    return Ok(());
                }
                if let Some((page, address)) = self.stale.first_key_value() {
                    return Err(format!(
                        "the rings are stopped and the dirty log was read to its end, and {address:#x} (page {page:#x}) was \
                         written after its page had been copied last"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Somebody below the guest stored to its memory.
    #[inline]
    pub(super) fn stored(&mut self, address: u64, len: u64) {
        if self.logging && len > 0 {
            for page in address / PAGE..=(address + len - 1) / PAGE {
                self.stale.insert(page, address.max(page * PAGE));
            }
        }
    }

    /// Whether the run ever logged.
    pub(super) fn logged(&self) -> bool {
        self.logged
    }

    /// Pages copied, and logs read to their end.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }
}
