//! A controller: its properties, and the commands of its admin queue.
//!
//! It lives on the core of that queue. A transport gives it commands, and gets answers with their data; what a host asks
//! for in vain is answered with the specification's status. A host that falls silent loses the controller, and with it all
//! of its queues (section 3.9, keep alive).

use super::events::{Events, Notice};
use super::features::Features;
use super::identify::{discovery, events_known, identify};
use super::properties::{Asked, Properties};
use super::{Association, Directory, Limits, Subsystem, logs, refused};
use crate::nvme::bits::{
    AsyncEvent, Command, IDENTIFY_LEN, PSDT_SGL, QueueCount, Status, admin, cns, fctype, feature, log,
};
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;
use runtime::{Instant, Platform};

/// How often a controller that waits for queues of other cores looks.
const QUIET_LOOK: Duration = Duration::from_millis(1);
/// Longest keep alive time that is taken: a day.
const KEEP_ALIVE_MS_MAX: u32 = 86_400_000;
/// The keep alive timer counts whole seconds, as Identify says.
const KEEP_ALIVE_GRAIN_MS: u32 = 1000;

/// The answer to a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// How it ended.
    pub status: Status,
    /// Dwords 0 and 1 of the completion.
    pub result: u64,
    /// What goes to the host.
    pub data: Vec<u8>,
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self { status, ..Self::default() }
    }
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Executed {
    /// It is done.
    Answered(Answer),
    /// It waits for an event ([`Controller::take_event`]).
    Waits,
}

/// What the controller is for.
enum Role<P: Platform> {
    /// The namespaces of a subsystem.
    Io(Arc<Subsystem<P>>),
    /// Telling hosts where subsystems are.
    Discovery,
}

/// A controller of one host.
pub struct Controller<P: Platform> {
    association: Arc<Association>,
    directory: Arc<Directory<P>>,
    role: Role<P>,
    limits: Limits,
    firmware: &'static str,
    properties: Properties,
    features: Features,
    defaults: Features,
    events: Events,
    changed: BTreeSet<u32>,
    /// When the host was last heard of.
    heard: Instant,
    /// It was reset, or shut down, and waits for its I/O queues to end.
    waits: Option<Asked>,
}

impl<P: Platform> Controller<P> {
    /// The controller of an association, whose subsystem is in the directory. `keep_alive_ms`: as Connect had it.
    pub fn new(
        association: Arc<Association>,
        directory: Arc<Directory<P>>,
        limits: Limits,
        firmware: &'static str,
        keep_alive_ms: u32,
        now: Instant,
    ) -> Self {
        let role = match directory.numbered(association.subsystem) {
            Some(subsystem) => Role::Io(subsystem.clone()),
            None => Role::Discovery,
        };
        let io_queues = if let Role::Io(_) = role { limits.io_queues } else { 0 };
        let features = Features::new(io_queues, whole_seconds(keep_alive_ms));
        association.grant(io_queues);
        Self {
            association,
            directory,
            role,
            limits,
            firmware,
            properties: Properties::new(&limits),
            features,
            defaults: features,
            events: Events::default(),
            changed: BTreeSet::new(),
            heard: now,
            waits: None,
        }
    }

    /// The association that it serves.
    #[must_use]
    pub fn association(&self) -> &Arc<Association> {
        &self.association
    }

    /// Executes a command of the admin queue. `room`: bytes that the host has for what goes to it.
    pub fn execute(&mut self, now: Instant, command: &Command, room: u64) -> Executed {
        self.heard = now;
        let answer = match self.answer(command, room) {
            Ok(None) => return Executed::Waits,
            Ok(Some(answer)) => answer,
            Err(status) => status.into(),
        };
        Executed::Answered(answer)
    }

    fn answer(&mut self, command: &Command, room: u64) -> Result<Option<Answer>, Status> {
        if command.flags & 3 != 0 || command.psdt() != PSDT_SGL {
            return Err(refused(Status::INVALID_FIELD));
        }
        if command.opcode == admin::FABRICS {
            return self.fabrics(command).map(|result| Some(Answer { result, ..Answer::default() }));
        }
        if !self.properties.is_enabled() {
            return Err(refused(Status::SEQUENCE_ERROR));
        }
        // Whatever room a host has: no transfer is longer.
        let room = room.min(self.limits.transfer_bytes.into());
        let data = |data| Some(Answer { data, ..Answer::default() });
        let result = |result: u32| Some(Answer { result: result.into(), ..Answer::default() });
        match command.opcode {
            admin::IDENTIFY if room < IDENTIFY_LEN as u64 => Err(refused(Status::SGL_LENGTH_INVALID)),
            admin::IDENTIFY => self.identify(command).map(data),
            admin::GET_LOG_PAGE => self.log_page(command, room).map(data),
            admin::KEEP_ALIVE => Ok(Some(Answer::default())),
            admin::ASYNC_EVENT_REQUEST if self.events.request(command.id) => Ok(None),
            admin::ASYNC_EVENT_REQUEST => Err(refused(Status::EVENT_LIMIT_EXCEEDED)),
            admin::SET_FEATURES => self.set_features(command).map(result),
            admin::GET_FEATURES => self.get_features(command, room).map(Some),
            // Of other queues nothing is aborted: they end their commands by themselves (bit 0: not aborted). Event
            // requests are taken back by the transport, which asks for it first.
            admin::ABORT if !self.is_discovery() => Ok(result(1)),
            _ => Err(refused(Status::INVALID_OPCODE)),
        }
    }

    const fn is_discovery(&self) -> bool {
        matches!(self.role, Role::Discovery)
    }

    fn fabrics(&mut self, command: &Command) -> Result<u64, Status> {
        let wide = match command.property_size() {
            0 => false,
            1 => true,
            _ => return Err(refused(Status::INVALID_FIELD)),
        };
        let offset = u64::from(command.property_offset());
        match command.fabrics_type() {
            fctype::PROPERTY_GET => self.properties.get(offset, wide),
            fctype::PROPERTY_SET => {
                let asked = self.properties.set(offset, wide, command.property_value())?;
                self.reconfigure(asked);
                Ok(0)
            }
            // The queue has its connection (section 6.3).
            fctype::CONNECT => Err(refused(Status::SEQUENCE_ERROR)),
            // The admin queue ends with its connection (section 6.2).
            fctype::DISCONNECT => Err(refused(Status::INVALID_QUEUE_TYPE)),
            _ => Err(refused(Status::INVALID_OPCODE)),
        }
    }

    fn reconfigure(&mut self, asked: Asked) {
        match asked {
            Asked::Nothing => {}
            Asked::Enable => {
                self.properties.csts = self.properties.csts.with_rdy(1).with_shst(0);
                if !self.is_discovery() && self.properties.has_entry_sizes() {
                    self.association.set_ready();
                }
            }
            Asked::Reset | Asked::Shutdown => {
                self.association.begin_epoch();
                if asked == Asked::Shutdown {
                    // Section 3.6: occurring, until all is quiet.
                    self.properties.csts = self.properties.csts.with_shst(1);
                }
                self.waits = Some(asked);
            }
        }
    }

    fn identify(&self, command: &Command) -> Result<Vec<u8>, Status> {
        match &self.role {
            Role::Io(subsystem) => identify(command, &self.association, &self.limits, subsystem),
            Role::Discovery if command.cdw10[0] as u8 == cns::CONTROLLER => {
                Ok(discovery(&self.association, &self.limits, self.firmware))
            }
            Role::Discovery => Err(refused(Status::INVALID_FIELD)),
        }
    }

    fn log_page(&mut self, command: &Command, room: u64) -> Result<Vec<u8>, Status> {
        let id = command.cdw10[0] as u8;
        let page = match (&self.role, id) {
            (Role::Discovery, log::DISCOVERY) => self.directory.log_page(&self.association.hostnqn),
            (Role::Io(_), log::ERROR) => logs::errors(),
            (Role::Io(_), log::HEALTH) => logs::health(),
            (Role::Io(_), log::FIRMWARE) => logs::firmware(self.firmware),
            (Role::Io(_), log::CHANGED_NAMESPACES) => logs::changed(&self.changed),
            (Role::Io(_), log::COMMAND_EFFECTS) => logs::effects(),
            _ => return Err(refused(Status::INVALID_LOG_PAGE)),
        };
        let bytes = logs::part(command, &page, room)?;
        if command.cdw10[0] & Command::RAE == 0 {
            match id {
                log::CHANGED_NAMESPACES => {
                    self.changed.clear();
                    self.events.read(Notice::Namespaces);
                }
                log::DISCOVERY => self.events.read(Notice::Discovery),
                _ => {}
            }
        }
        Ok(bytes)
    }

    fn set_features(&mut self, command: &Command) -> Result<u32, Status> {
        let [dword10, value, ..] = command.cdw10;
        let id = dword10 as u8;
        if dword10 >> 31 == 1 {
            // Nothing is saved: what a host sets ends with its controller.
            return Err(refused(Status::FEATURE_NOT_SAVEABLE));
        }
        match id {
            feature::KEEP_ALIVE_TIMER => {
                if value > KEEP_ALIVE_MS_MAX {
                    return Err(refused(Status::KEEP_ALIVE_TIMEOUT_INVALID));
                }
                self.features.keep_alive_ms = whole_seconds(value);
                return Ok(0);
            }
            feature::ASYNC_EVENT_CONFIG => {}
            _ if self.is_discovery() => return Err(refused(Status::INVALID_FIELD)),
            feature::NUMBER_OF_QUEUES => return self.set_queues(QueueCount(value)),
            _ => {}
        }
        self.features.set(id, value, events_known(self.is_discovery()))?;
        Ok(0)
    }

    /// Number of Queues (section 5.27.1.5): as many pairs as both sides want, and not again while queues are there.
    fn set_queues(&mut self, asked: QueueCount) -> Result<u32, Status> {
        if asked.submission() == 0xffff || asked.completion() == 0xffff {
            return Err(refused(Status::INVALID_FIELD));
        }
        if self.association.has_queues() {
            return Err(refused(Status::SEQUENCE_ERROR));
        }
        let pairs = asked.submission().min(asked.completion()).min(u32::from(self.limits.io_queues) - 1);
        let granted = QueueCount::default().with_submission(pairs).with_completion(pairs);
        self.association.grant(pairs as u16 + 1);
        self.features.queues = granted;
        Ok(granted.0)
    }

    fn get_features(&self, command: &Command, room: u64) -> Result<Answer, Status> {
        let dword10 = command.cdw10[0];
        let id = dword10 as u8;
        if id == feature::HOST_IDENTIFIER && !self.is_discovery() {
            // EXHID, dword 11 bit 0: 128 bits, as fabrics have it.
            if command.cdw10[1] & 1 == 0 {
                return Err(refused(Status::INVALID_FIELD));
            }
            let data = self.association.hostid.to_vec();
            if room < data.len() as u64 {
                return Err(refused(Status::SGL_LENGTH_INVALID));
            }
            return Ok(Answer { data, ..Answer::default() });
        }
        let known = matches!(id, feature::KEEP_ALIVE_TIMER | feature::ASYNC_EVENT_CONFIG);
        if self.is_discovery() && !known {
            return Err(refused(Status::INVALID_FIELD));
        }
        let result = self.features.get(dword10, &self.defaults)?;
        Ok(Answer { result: result.into(), ..Answer::default() })
    }

    /// Takes back the event request that is command `id`, to be answered as aborted (section 5.1).
    pub fn withdraw(&mut self, id: u16) -> bool {
        self.events.withdraw(Some(id)).is_some()
    }

    /// What is configured has changed.
    pub fn reconfigured(&mut self, directory: Arc<Directory<P>>) {
        let before = core::mem::replace(&mut self.directory, directory);
        let Role::Io(known) = &mut self.role else {
            if before.log_generation != self.directory.log_generation {
                self.events.happened(Notice::Discovery);
            }
            return;
        };
        let Some(subsystem) = self.directory.numbered(self.association.subsystem) else {
            self.association.end();
            return;
        };
        if !subsystem.hosts.allow(&self.association.hostnqn) {
            self.association.end();
            return;
        }
        let before = core::mem::replace(known, subsystem.clone());
        let changed = changes(&before, subsystem);
        if !changed.is_empty() {
            self.changed.extend(changed);
            self.events.happened(Notice::Namespaces);
        }
    }

    /// Goes on with what waits, and looks whether the host is still there. Whether anything changed.
    pub fn poll(&mut self, now: Instant) -> bool {
        if self.association.is_over() {
            return false;
        }
        if self.keep_alive_at().is_some_and(|at| now >= at) {
            tracing::warn!(
                subsystem = %self.association.subnqn,
                host = %self.association.hostnqn,
                controller = self.association.cntlid,
                keep_alive_ms = self.features.keep_alive_ms,
                "the host was silent for too long: its controller ends"
            );
            self.properties.csts = self.properties.csts.with_cfs(1);
            self.association.end();
            return true;
        }
        let Some(asked) = self.waits.filter(|_| !self.association.has_queues()) else { return false };
        self.waits = None;
        match asked {
            Asked::Shutdown => self.properties.csts = self.properties.csts.with_shst(2),
            _ => {
                self.properties.csts = Default::default();
                self.features = Features {
                    keep_alive_ms: self.features.keep_alive_ms,
                    queues: self.features.queues,
                    ..self.defaults
                };
                self.events.reset();
                self.changed.clear();
            }
        }
        true
    }

    /// An event, if one is due, and the command that it completes with its dword 0; or, after a reset or shutdown, a command
    /// that no event will complete any more.
    pub fn take_event(&mut self) -> Option<(u16, Result<AsyncEvent, Status>)> {
        if !self.properties.is_enabled() || self.properties.cc.shn() != 0 {
            return self.events.withdraw(None).map(|id| (id, Err(Status::ABORTED_SQ_DELETION)));
        }
        let wanted = self.features.events;
        let (told, unwanted) = match self.role {
            Role::Io(_) => (wanted.namespace_attribute() == 1, Notice::Namespaces),
            Role::Discovery => (wanted.discovery_change() == 1, Notice::Discovery),
        };
        if !told {
            self.events.read(unwanted);
            return None;
        }
        self.events.tell().map(|(id, event)| (id, Ok(event)))
    }

    fn keep_alive_at(&self) -> Option<Instant> {
        let ms = self.features.keep_alive_ms;
        (ms > 0).then(|| self.heard.after(Duration::from_millis(ms.into())))
    }

    /// When to poll again though nothing changed.
    #[must_use]
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.association.is_over() {
            return None;
        }
        let quiet = self.waits.map(|_| now.after(QUIET_LOOK));
        quiet.into_iter().chain(self.keep_alive_at()).min()
    }
}

impl<P: Platform> Drop for Controller<P> {
    fn drop(&mut self) {
        self.association.end();
    }
}

const fn whole_seconds(ms: u32) -> u32 {
    let ms = if ms < KEEP_ALIVE_MS_MAX { ms } else { KEEP_ALIVE_MS_MAX };
    ms.div_ceil(KEEP_ALIVE_GRAIN_MS) * KEEP_ALIVE_GRAIN_MS
}

/// The namespaces that are not what they were.
fn changes<P: Platform>(before: &Subsystem<P>, after: &Subsystem<P>) -> BTreeSet<u32> {
    let facts = |subsystem: &Subsystem<P>| {
        let active = subsystem.namespaces.iter().filter(|namespace| namespace.bdev.is_some());
        active.map(|namespace| (namespace.id, namespace.version)).collect::<BTreeSet<_>>()
    };
    facts(before).symmetric_difference(&facts(after)).map(|(id, _)| *id).collect()
}
