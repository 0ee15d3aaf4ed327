//! Looking after a controller that is up: its status, its asynchronous events, commands that take too long.

use super::super::PciOf;
use super::super::admin::Purpose;
use super::super::failure::Failure;
use super::super::messages::ChannelId;
use super::{Controller, Phase, Report, Rung, STATUS_LOOK};
use crate::events::Kind;
use crate::nvme::bits::{AsyncEvent, Command, LogPage, event, log};
use core::time::Duration;
use runtime::{Instant, Platform};

/// How long a controller must have run for its earlier failures to be forgotten.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// How long a request for the next event waits after an event: a controller that has one all the time is heard ten times
/// a second.
const EVENT_PAUSE: Duration = Duration::from_millis(100);
/// Abort commands that are out at a time, where the controller takes so many.
const ABORTS: u16 = 4;

impl<P: Platform, X: PciOf<P>> Controller<P, X> {
    /// Looks after a controller that is up: its status, and its answers.
    pub(super) fn watch(&mut self, now: Instant) -> bool {
        if now < self.look_at {
            return false;
        }
        self.look_at = now.after(STATUS_LOOK);
        let status = self.status();
        let timeout = self.options.admin_timeout;
        let late = self.admin.as_mut().and_then(|admin| admin.late(now, timeout));
        if status.0 == u32::MAX {
            self.trouble(Failure::Removed);
        } else if status.cfs() == 1 {
            self.trouble(Failure::Fatal);
        } else if status.rdy() == 0 {
            self.trouble(Failure::Broken("it stopped by itself (CSTS.RDY is 0)"));
        } else if let Some(name) = late {
            tracing::warn!(address = %self.address, command = name, "an NVMe admin command takes too long");
            self.trouble(Failure::TimedOut("answer an admin command"));
        } else {
            let well = matches!(self.phase, Phase::Running) && now >= self.running_since.after(WELL_AFTER);
            if well {
                self.rung = Rung::Reset;
            }
            return false;
        }
        true
    }

    pub(super) fn ask_for_events(&mut self, now: Instant) {
        if now >= self.events_at {
            for _ in 0..core::mem::take(&mut self.events_owed) {
                self.submit(now, Command::async_event_request(), Purpose::Event);
            }
        }
    }

    /// An asynchronous event: its log page is read, which lets the controller report the next one of that kind.
    pub(super) fn happened(&mut self, now: Instant, event: AsyncEvent) {
        self.events_owed += 1;
        self.events_at = now.after(EVENT_PAUSE);
        let namespaces = event.kind() == event::NOTICE && event.information() == event::NAMESPACE_ATTRIBUTE;
        if namespaces {
            return self.submit_log(now, LogPage::ChangedNamespaces);
        }
        tracing::warn!(
            address = %self.address,
            kind = event.kind(),
            information = event.information(),
            log_page = event.log_page(),
            "an NVMe controller reports an event"
        );
        self.report(Report::Event(event));
        match event.log_page() as u8 {
            log::ERROR => self.submit_log(now, LogPage::Error),
            log::HEALTH => self.submit_log(now, LogPage::Health),
            log::FIRMWARE => self.submit_log(now, LogPage::Firmware),
            _ => {}
        }
    }

    pub(super) fn abort(&mut self, now: Instant, channel: ChannelId, id: u16) {
        let most = self.info.as_ref().map_or(0, |info| info.aborts.min(ABORTS));
        let queue = self.remote(channel).and_then(|remote| remote.queue);
        if let Some(queue) = queue
            && matches!(self.phase, Phase::Running)
            && self.aborts_out < most
        {
            tracing::warn!(address = %self.address, queue, command = id, "an NVMe command takes too long");
            self.aborts_out += 1;
            self.record(Kind::NvmeAbort, queue, u64::from(id), 0);
            self.submit(now, Command::abort(queue, id), Purpose::Abort);
        }
    }
}
