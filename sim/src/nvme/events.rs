//! Asynchronous events (section 5.2) and the log pages that tell more of them (section 5.16).
//!
//! An event waits until a request for it is outstanding; once reported, its type stays masked until its log page was read.

use super::Controller;
use crate::world::World;
use stack::nvme::bits::{
    AsyncEvent, AsyncEventConfig, ErrorEntry, FirmwareSlots, Health, IDENTIFY_LEN, NAMESPACE_LIST_ENTRIES,
    NSID_ALL, Status, event, log,
};
use std::collections::{BTreeSet, VecDeque};

/// Events that wait to be reported at most; more of them are forgotten.
const WAITING_MAX: usize = 16;
/// Entries of the Error Information log.
const ERRORS: usize = 8;

/// What a controller has to report.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Identifiers of the requests that are outstanding.
    pub(super) requests: VecDeque<u16>,
    waiting: VecDeque<AsyncEvent>,
    /// Types that were reported and whose log page was not read.
    masked: BTreeSet<u32>,
    pub(super) config: AsyncEventConfig,
    /// The Changed Namespace List.
    changed: BTreeSet<u32>,
    /// The Error Information log, the newest first.
    errors: VecDeque<ErrorEntry>,
    error_count: u64,
    critical_warning: u8,
}

impl Events {
    fn next(&self) -> Option<usize> {
        self.waiting.iter().position(|event| !self.masked.contains(&event.kind()))
    }

    /// Whether a request is outstanding for an event that waits.
    pub(super) fn can_report(&self) -> bool {
        !self.requests.is_empty() && self.next().is_some()
    }
}

impl Controller {
    /// An event happens.
    pub(super) fn raise(&mut self, kind: u32, information: u32, page: u8) {
        let event =
            AsyncEvent::default().with_kind(kind).with_information(information).with_log_page(page.into());
        if self.events.waiting.len() < WAITING_MAX && !self.events.waiting.contains(&event) {
            self.events.waiting.push_back(event);
        }
        if kind == event::ERROR {
            self.log_error(0, 0xffff, Status::SUCCESS, 0);
        }
    }

    /// Completes a request with the next event.
    pub(super) fn report(&mut self, world: &mut World) {
        let Some(at) = self.events.next() else { return };
        let (Some(event), Some(id)) = (self.events.waiting.remove(at), self.events.requests.pop_front())
        else {
            return;
        };
        self.events.masked.insert(event.kind());
        self.complete(world, 0, id, Status::SUCCESS, event.0);
    }

    /// Namespaces changed from outside: it is noticed, and reported where that is wished.
    pub(super) fn notice_changes(&mut self, world: &mut World) {
        let changed = std::mem::take(&mut world.drives[self.drive as usize].changed);
        if changed.is_empty() {
            return;
        }
        self.events.changed.extend(changed);
        if self.events.config.namespace_attribute() == 1 {
            self.raise(event::NOTICE, event::NAMESPACE_ATTRIBUTE, log::CHANGED_NAMESPACES);
        }
    }

    /// Something happens in the controller, drawn by a fault: a warning, an error, firmware, or a notice of namespaces that
    /// did not change.
    pub(super) fn happen(&mut self, what: u64) {
        let config = self.events.config;
        match what % 5 {
            0 if config.health() != 0 => {
                self.events.critical_warning = config.health() as u8 & (what >> 8) as u8;
                self.raise(event::HEALTH, (what >> 16) as u32 % 3, log::HEALTH);
            }
            1 => self.raise(event::ERROR, 3 + (what >> 8) as u32 % 2, log::ERROR),
            2 if config.firmware_activation() == 1 => {
                self.raise(event::NOTICE, event::FIRMWARE_ACTIVATION, log::FIRMWARE);
            }
            3 if config.namespace_attribute() == 1 => {
                self.raise(event::NOTICE, event::NAMESPACE_ATTRIBUTE, log::CHANGED_NAMESPACES);
            }
            // Of a type, with information and of a page that nobody knows.
            _ => self.raise((what >> 8) as u32 % 8, (what >> 16) as u32 & 0xff, (what >> 24) as u8),
        }
    }

    /// Adds to the Error Information log.
    pub(super) fn log_error(&mut self, queue: u16, id: u16, status: Status, lba: u64) {
        let events = &mut self.events;
        events.error_count += 1;
        events.errors.truncate(ERRORS - 1);
        events.errors.push_front(ErrorEntry {
            error_count: events.error_count,
            sqid: queue,
            cid: id,
            status: status.0 << 1,
            parameter: 0xffff,
            lba,
            nsid: 0,
        });
    }

    /// A log page from its start; reading it may unmask its events.
    pub(super) fn log_page(&mut self, world: &mut World, page: u8, keep: bool) -> Option<Vec<u8>> {
        let mut bytes = vec![0; IDENTIFY_LEN];
        let kind = match page {
            log::ERROR => {
                for (index, entry) in self.events.errors.iter().enumerate() {
                    entry.encode(&mut bytes[index * ErrorEntry::LEN..]);
                }
                bytes.truncate(ERRORS * ErrorEntry::LEN);
                event::ERROR
            }
            log::HEALTH => {
                let health = Health {
                    critical_warning: self.events.critical_warning,
                    temperature: 310,
                    available_spare: 100,
                    available_spare_threshold: 10,
                    host_read_commands: u128::from(world.nvme_counts(self.drive).commands),
                    error_log_entries: self.events.error_count.into(),
                    ..Health::default()
                };
                health.encode(&mut bytes);
                bytes.truncate(Health::LEN);
                event::HEALTH
            }
            log::FIRMWARE => {
                let mut slots = FirmwareSlots { afi: 1, ..FirmwareSlots::default() };
                slots.frs[0] = *super::identify::FIRMWARE;
                slots.encode(&mut bytes);
                bytes.truncate(FirmwareSlots::LEN);
                event::NOTICE
            }
            log::CHANGED_NAMESPACES => {
                let changed =
                    if keep { self.events.changed.clone() } else { std::mem::take(&mut self.events.changed) };
                if changed.len() > NAMESPACE_LIST_ENTRIES {
                    bytes[..4].copy_from_slice(&NSID_ALL.to_le_bytes());
                } else {
                    for (index, nsid) in changed.into_iter().enumerate() {
                        bytes[4 * index..4 * index + 4].copy_from_slice(&nsid.to_le_bytes());
                    }
                }
                event::NOTICE
            }
            _ => return None,
        };
        if !keep {
            self.events.masked.remove(&kind);
        }
        Some(bytes)
    }
}
