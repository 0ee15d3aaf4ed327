//! What an enabled controller is asked, one admin command after the other, and what its answers lead to.

use super::super::PciOf;
use super::super::admin::{self, Answer, Purpose};
use super::super::doorbell::ShadowPages;
use super::super::failure::Failure;
use super::super::identity::{ControllerInfo, Namespace};
use super::super::scan::{Scan, ScanEnd};
use super::{Controller, Phase, Report, STATUS_LOOK};
use crate::events::Kind;
use crate::nvme::bits::{
    AsyncEvent, AsyncEventConfig, Command, DOORBELLS, IdentifyController, IdentifyNvmController, LogPage,
    PAGE, QueueCount, Status, cns, doorbell, feature,
};
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;
use runtime::{Instant, Platform, Registers};

/// When namespaces are looked at again of which the controller could not say what they are.
const SCAN_RETRY: Duration = Duration::from_secs(1);
/// Asynchronous Event Requests that are kept out, where the controller takes so many.
const EVENT_REQUESTS: u16 = 4;

impl<P: Platform, X: PciOf<P>> Controller<P, X> {
    pub(super) fn introduce(&mut self, now: Instant) {
        self.phase = Phase::Introduction;
        self.look_at = now.after(STATUS_LOOK);
        self.submit(now, Command::identify(cns::CONTROLLER, 0), Purpose::Controller);
    }

    pub(super) fn take_answers(&mut self, now: Instant) -> bool {
        let mut worked = false;
        // One turn of the queue at most.
        for _ in 0..admin::ENTRIES {
            // Once a reset is on its way, it puts an end to all commands that are out.
            let up = matches!(self.phase, Phase::Introduction | Phase::Running);
            let Some(admin) = self.admin.as_mut().filter(|_| up) else { break };
            match admin.poll(now) {
                Ok(None) => break,
                Ok(Some(answer)) => self.answer(now, &answer),
                Err(why) => self.trouble(why),
            }
            worked = true;
        }
        worked
    }

    /// An admin command has come back.
    pub(super) fn answer(&mut self, now: Instant, answer: &Answer) {
        let status = answer.completion.status;
        let result = answer.completion.result;
        if !status.is_success() {
            return self.refused(now, answer.purpose, status);
        }
        match answer.purpose {
            Purpose::Controller => self.identified(now, &answer.data),
            Purpose::NvmController => {
                if let Some(info) = &mut self.info {
                    info.narrow(&IdentifyNvmController::decode(&answer.data));
                }
                self.ask_for_queues(now);
            }
            Purpose::QueueCount => self.count_queues(now, QueueCount(result)),
            Purpose::Events => self.offer_shadow(now),
            Purpose::DoorbellBuffers => {
                self.shadow =
                    Some(ShadowPages { shadow: self.page(1).window, event_idx: self.page(2).window });
                self.begin_scan(now);
            }
            Purpose::NamespaceList | Purpose::Namespace | Purpose::NamespaceDescriptors => {
                self.go_on_scanning(now, Ok(&answer.data));
            }
            Purpose::CreateCompletions(queue) => self.create_submissions(now, queue),
            Purpose::CreateSubmissions(queue) => self.start_channel(now, queue),
            Purpose::DeleteSubmissions(queue) => {
                self.submit(now, Command::delete_cq(queue), Purpose::DeleteCompletions(queue));
            }
            Purpose::DeleteCompletions(queue) => self.queues[usize::from(queue) - 1].taken = false,
            Purpose::Abort => self.aborts_out -= 1,
            Purpose::Event => self.happened(now, AsyncEvent(result)),
            Purpose::Log(page) => {
                if page == LogPage::ChangedNamespaces {
                    self.begin_scan(now);
                } else {
                    let mut data = answer.data.clone();
                    data.truncate(page.bytes() as usize);
                    self.report(Report::Log(page, Ok(data)));
                }
            }
        }
    }

    /// The controller refused an admin command.
    pub(super) fn refused(&mut self, now: Instant, purpose: Purpose, status: Status) {
        let command = purpose.name();
        tracing::warn!(address = %self.address, command, %status, "an NVMe controller refused a command");
        match purpose {
            // What a controller may lack.
            Purpose::NvmController => self.ask_for_queues(now),
            Purpose::Events => self.offer_shadow(now),
            Purpose::DoorbellBuffers => self.begin_scan(now),
            Purpose::Namespace | Purpose::NamespaceDescriptors => self.go_on_scanning(now, Err(status)),
            Purpose::Abort => self.aborts_out -= 1,
            // It takes fewer of them than it said: there are those that it took.
            Purpose::Event => {}
            Purpose::Log(page) => {
                if page == LogPage::ChangedNamespaces {
                    self.begin_scan(now);
                } else {
                    self.report(Report::Log(page, Err(status)));
                }
            }
            // A queue that cannot be, its channel cannot have. All else may be otherwise the next time.
            Purpose::CreateCompletions(_) | Purpose::CreateSubmissions(_)
                if ![Status::INVALID_QUEUE_ID, Status::INVALID_QUEUE_SIZE].contains(&status.code()) =>
            {
                self.trouble(Failure::Command { what: command, status });
            }
            Purpose::CreateCompletions(queue) => {
                self.refuse_channel(queue, Failure::Command { what: command, status });
                self.queues[usize::from(queue) - 1].taken = false;
            }
            Purpose::CreateSubmissions(queue) => {
                self.refuse_channel(queue, Failure::Command { what: command, status });
                self.submit(now, Command::delete_cq(queue), Purpose::DeleteCompletions(queue));
            }
            // What nothing goes without.
            Purpose::Controller
            | Purpose::QueueCount
            | Purpose::NamespaceList
            | Purpose::DeleteSubmissions(_)
            | Purpose::DeleteCompletions(_) => self.trouble(Failure::Command { what: command, status }),
        }
    }

    pub(super) fn identified(&mut self, now: Instant, data: &[u8]) {
        let info = match ControllerInfo::new(&IdentifyController::decode(data)) {
            Ok(info) => info,
            Err(why) => return self.give_up(Failure::Unsupported(why)),
        };
        if let Some(before) = &self.info
            && (&before.serial, &before.model) != (&info.serial, &info.model)
        {
            let why = format!(
                "another drive is there after a reset: {} {} was {} {}",
                info.model, info.serial, before.model, before.serial
            );
            return self.give_up(Failure::Unsupported(why));
        }
        let command_sets = info.version >= (2, 0, 0);
        self.info = Some(info);
        if command_sets {
            let command = Command::identify(cns::COMMAND_SET_CONTROLLER, 0);
            self.submit(now, command, Purpose::NvmController);
        } else {
            self.ask_for_queues(now);
        }
    }

    pub(super) fn ask_for_queues(&mut self, now: Instant) {
        let count = u32::from(self.options.queues.max(1) - 1);
        let count = QueueCount::default().with_submission(count).with_completion(count);
        self.submit(now, Command::set_features(feature::NUMBER_OF_QUEUES, count.0), Purpose::QueueCount);
    }

    /// The controller said how many queues there are: fewer are used where their doorbells do not fit.
    pub(super) fn count_queues(&mut self, now: Instant, count: QueueCount) {
        let granted = count.submission().min(count.completion()) + 1;
        let granted = granted.min(u32::from(self.options.queues.max(1))) as u16;
        let dstrd = self.capabilities.dstrd();
        let doorbells = self.registers().len() - DOORBELLS;
        let fits = |queue: &u16| doorbell(*queue, true, dstrd) + 4 <= doorbells;
        let queues = (1..=granted).take_while(fits).count();
        if queues < self.queues.iter().rposition(|slot| slot.taken).map_or(0, |last| last + 1) {
            return self.trouble(Failure::Broken("it grants fewer queues than before the reset"));
        }
        self.queue_slot(queues - 1);
        self.granted = queues as u16;
        let offered = AsyncEventConfig(self.info.as_ref().map_or(0, |info| info.events));
        let wanted = AsyncEventConfig::default()
            .with_health(0x1f)
            .with_namespace_attribute(offered.namespace_attribute())
            .with_firmware_activation(offered.firmware_activation());
        self.submit(now, Command::set_features(feature::ASYNC_EVENT_CONFIG, wanted.0), Purpose::Events);
    }

    pub(super) fn offer_shadow(&mut self, now: Instant) {
        self.shadow = None;
        let offered = self.options.shadow_doorbells
            && self.info.as_ref().is_some_and(|info| info.doorbell_buffers)
            // One page holds the doorbells of all queues, or there are none.
            && doorbell(self.granted, true, self.capabilities.dstrd()) + 4 <= PAGE;
        if offered {
            let command = Command::doorbell_buffer_config(self.page(1).address, self.page(2).address);
            self.submit(now, command, Purpose::DoorbellBuffers);
        } else {
            self.begin_scan(now);
        }
    }

    /// Begins to look at the namespaces, or to look once more when that is going on.
    pub(super) fn begin_scan(&mut self, now: Instant) {
        if let Some(scan) = &mut self.scan {
            scan.again();
            return;
        }
        self.scan = Some(Scan::new());
        self.submit(now, Command::identify(cns::ACTIVE_NAMESPACES, 0), Purpose::NamespaceList);
    }

    pub(super) fn go_on_scanning(&mut self, now: Instant, data: Result<&[u8], Status>) {
        let (Some(mut scan), Some(info)) = (self.scan.take(), &self.info) else { return };
        match scan.next(info, data) {
            Err(why) => self.trouble(why),
            Ok(ScanEnd::Ask(command, purpose)) => {
                self.scan = Some(scan);
                self.submit(now, command, purpose);
            }
            Ok(ScanEnd::Done { found, unusable, again, failed }) => {
                self.scan_at = failed.then(|| now.after(SCAN_RETRY));
                let changed = self.merge(found);
                for (id, why) in &unusable {
                    tracing::warn!(address = %self.address, namespace = id, why, "a namespace cannot be used");
                }
                self.unusable = unusable;
                if changed && matches!(self.phase, Phase::Running) {
                    self.report(Report::NamespacesChanged);
                }
                if again {
                    self.begin_scan(now);
                } else if matches!(self.phase, Phase::Introduction) {
                    self.run(now);
                }
            }
        }
    }

    /// Takes over what a scan found. Whether anything changed.
    pub(super) fn merge(&mut self, found: Vec<Namespace>) -> bool {
        let mut changed = false;
        let mut merged = Vec::with_capacity(found.len());
        let mut before = core::mem::take(&mut self.namespaces);
        for mut namespace in found {
            let old = before.iter().position(|old| old.is_same_disk(&namespace));
            match old.map(|at| before.swap_remove(at)) {
                Some(old) => {
                    let num_blocks = namespace.state.num_blocks();
                    changed |= old.state.num_blocks() != num_blocks;
                    old.set_num_blocks(num_blocks);
                    namespace.state = old.state;
                }
                None => changed = true,
            }
            merged.push(namespace);
        }
        changed |= !before.is_empty();
        for gone in before {
            gone.set_gone();
        }
        self.namespaces = merged;
        changed
    }

    pub(super) fn run(&mut self, now: Instant) {
        self.phase = Phase::Running;
        self.running_since = now;
        self.events_owed = self.info.as_ref().map_or(0, |info| info.event_requests.min(EVENT_REQUESTS));
        self.events_at = now;
        self.record(Kind::NvmeReady, 0, u64::from(self.granted), self.namespaces.len() as u64);
        self.report(Report::Ready);
    }
}
