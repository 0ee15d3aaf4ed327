//! The life of a controller, on its home core: from a function that anybody may have left in any state to one that serves
//! queues, through every reset, to an orderly end or a failure.
//!
//! The ladder: an I/O command that takes too long is aborted; when that does not help, or the controller breaks the
//! protocol, reports a fatal status or leaves an admin command unanswered, the controller is reset; when that does not make
//! it well, its function is; when that does not either, it is given up: its bus mastering is taken away and its users are
//! told. A controller that has been well for a while starts at the bottom again. One that is gone, or says of itself what
//! cannot be worked with, is given up at once.

mod bring_up;
mod health;
mod introduction;
mod ladder;
mod queues;

use super::admin::{self, AdminQueue, Purpose};
use super::doorbell::ShadowPages;
use super::failure::Failure;
use super::identity::{ControllerInfo, Namespace};
use super::memory::{DeviceMemory, Part};
use super::messages::{ChannelId, INBOX, Link, ToChannel, ToController};
use super::scan::Scan;
use super::{Options, PciOf, RegistersOf};
use crate::events::Kind;
use crate::nvme::bits::{
    AsyncEvent, Capabilities, Command, ControllerStatus, LogPage, NSID_ALL, PAGE, Status, register,
};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::time::Duration;
use runtime::{
    CoreId, Event, Instant, Job, Notifier, PciAddress, Platform, Poll, Receiver, Registers, Sender, Wakes,
};

/// How often registers are looked at while something is awaited in them.
const REGISTER_LOOK: Duration = Duration::from_millis(1);
/// How often the status of a controller that runs is looked at.
const STATUS_LOOK: Duration = Duration::from_secs(1);
/// Reports that wait for the owner; an owner that does not take them misses events and logs.
const REPORTS_MAX: usize = 64;
/// The admin queue's memory, then a page of zeroes, the shadow doorbells and their EventIdx.
const ADMIN_MEMORY_LEN: u64 = admin::MEMORY_LEN + 3 * PAGE;

/// How a controller stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is being brought up for the first time, or again after a failure.
    Starting,
    /// It serves.
    Ready,
    /// It is given up; [`Controller::close`] is all that can be done.
    Failed(Failure),
    /// It is being closed.
    Closing,
    /// It was let go: the function was given back, and all memory unmapped.
    Closed,
}

/// What the owner of a controller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// It is ready, for the first time or again: see [`Controller::namespaces`].
    Ready,
    /// Namespaces came, went, or changed their size.
    NamespacesChanged,
    /// It failed and is being reset.
    Resetting(Failure),
    /// It is given up.
    Failed(Failure),
    /// It has something to say of its health: the event's dword.
    Event(AsyncEvent),
    /// A log page, as the controller gave it; or how it refused.
    Log(LogPage, Result<Vec<u8>, Status>),
    /// It was let go.
    Closed,
}

/// What is done when all channels are quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Reset,
    ResetFunction,
    ShutDown,
    Release,
}

/// The next thing that is done about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rung {
    Reset,
    ResetFunction,
    GiveUp,
}

/// What opening a function gave.
struct Opened<P: Platform, X: PciOf<P>> {
    function: X::Function,
    registers: RegistersOf<X>,
    dma: X::Dma,
    memory: DeviceMemory<P, X>,
}

type Outcome<P, T> = <P as Platform>::Job<T>;

enum Phase<P: Platform, X: PciOf<P>> {
    /// The function is being opened.
    Opening(Outcome<P, Result<Opened<P, X>, Failure>>),
    /// The controller must stop: CC.EN is cleared once it may be, then CSTS.RDY goes.
    Disabling { until: Instant, cleared: bool },
    /// Interrupts are being turned on.
    Vectors(Outcome<P, runtime::Result<Vec<P::Notifier>>>),
    /// CC.EN is set; CSTS.RDY comes.
    Enabling { until: Instant },
    /// The controller tells of itself, one admin command after the other.
    Introduction,
    /// It serves.
    Running,
    /// Channels are told to be quiet.
    Quieting(Then),
    /// The function is being reset.
    ResettingFunction(Outcome<P, runtime::Result<()>>),
    /// CC.SHN is set; CSTS.SHST comes.
    ShuttingDown { until: Instant },
    /// Everything is being given back.
    Releasing(Outcome<P, ()>),
    /// It is given up.
    Failed(Failure),
    /// Nothing is left.
    Closed,
}

/// Where a channel stands.
enum Stage<P: Platform, X: PciOf<P>> {
    /// It has no queue yet: the controller is not ready.
    Unassigned,
    /// Its queue's memory is being mapped.
    Mapping(Outcome<P, Result<DeviceMemory<P, X>, Failure>>),
    /// Its queue's memory is there; the queue is not.
    Mapped,
    /// Its queue is being created.
    Creating,
    /// It runs on its queue.
    Running,
    /// It was told to be quiet.
    Quieting,
}

/// A channel as the controller sees it.
struct Remote<P: Platform, X: PciOf<P>> {
    id: ChannelId,
    core: CoreId,
    nsid: u32,
    to: P::Sender<ToChannel<P, X>>,
    /// Its queue, once it has one.
    queue: Option<u16>,
    /// How often its queue's memory could not be mapped, and when that is tried again.
    refusals: u8,
    retry_at: Instant,
    stage: Stage<P, X>,
}

impl<P: Platform, X: PciOf<P>> Remote<P, X> {
    /// Sends a message, for which there is room: a channel that runs has heard all before. One that is gone hears nothing,
    /// and says so by itself.
    fn tell(&self, message: ToChannel<P, X>) {
        let _ = self.to.send(message);
    }
}

/// An I/O queue's number: what belongs to it, whoever uses it.
struct QueueSlot<P: Platform, X: PciOf<P>> {
    /// Taken by a channel, or being deleted.
    taken: bool,
    memory: Option<DeviceMemory<P, X>>,
    notifier: Option<P::Notifier>,
}

/// A controller and its driver.
pub struct Controller<P: Platform, X: PciOf<P>> {
    platform: P,
    address: PciAddress,
    device: u16,
    options: Options,
    link: Link<P, X>,
    inbox: P::Receiver<ToController<P, X>>,
    phase: Phase<P, X>,
    opened: Option<Opened<P, X>>,
    capabilities: Capabilities,
    /// Entries of its I/O queues.
    entries: u16,
    /// Interrupts are on, for so many vectors.
    vectors: u16,
    notifier: Option<P::Notifier>,
    armed: Cell<bool>,
    admin: Option<AdminQueue<P::Window, RegistersOf<X>>>,
    info: Option<ControllerInfo>,
    shadow: Option<ShadowPages<P::Window>>,
    scan: Option<Scan>,
    /// When namespaces are looked at again, since some could not be.
    scan_at: Option<Instant>,
    namespaces: Vec<Namespace>,
    /// Namespaces that cannot be used, and why.
    unusable: Vec<(u32, String)>,
    /// I/O queues, from number 1 on: those that there are, or were, or have an interrupt.
    queues: Vec<QueueSlot<P, X>>,
    /// How many of them the controller grants.
    granted: u16,
    remotes: Vec<Remote<P, X>>,
    aborts_out: u16,
    /// Event requests to be sent, and when.
    events_owed: u16,
    events_at: Instant,
    look_at: Instant,
    running_since: Instant,
    rung: Rung,
    closing: bool,
    reports: VecDeque<Report>,
}

impl<P: Platform, X: PciOf<P>> Controller<P, X> {
    /// Begins to open the function and to bring its controller up. `device` is its number in the flight recorder.
    pub fn open(platform: P, pci: X, address: PciAddress, device: u16, options: Options) -> Self {
        let (to, inbox) = platform.mailbox(INBOX);
        let memory = platform.shared_memory("reprise-nvme", ADMIN_MEMORY_LEN);
        let opening = platform.offload(move || {
            let memory =
                memory.map_err(|error| Failure::World { what: "memory for the admin queue", error })?;
            bring_up::open_function(&pci, address, memory)
        });
        Self {
            platform,
            address,
            device,
            options,
            link: Link::new(to),
            inbox,
            phase: Phase::Opening(opening),
            opened: None,
            capabilities: Capabilities(0),
            entries: 0,
            vectors: 0,
            notifier: None,
            armed: Cell::new(false),
            admin: None,
            info: None,
            shadow: None,
            scan: None,
            scan_at: None,
            namespaces: Vec::new(),
            unusable: Vec::new(),
            queues: Vec::new(),
            granted: 0,
            remotes: Vec::new(),
            aborts_out: 0,
            events_owed: 0,
            events_at: Instant(0),
            look_at: Instant(0),
            running_since: Instant(0),
            rung: Rung::Reset,
            closing: false,
            reports: VecDeque::new(),
        }
    }

    /// Where the function sits.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &self.phase {
            Phase::Closed => Standing::Closed,
            _ if self.closing => Standing::Closing,
            Phase::Running => Standing::Ready,
            Phase::Failed(why) => Standing::Failed(why.clone()),
            _ => Standing::Starting,
        }
    }

    /// What is known of it, once it has been ready.
    #[must_use]
    pub fn info(&self) -> Option<&ControllerInfo> {
        self.info.as_ref()
    }

    /// Its namespaces that can be used.
    #[must_use]
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// Its namespaces that cannot be used: identifier, and why.
    #[must_use]
    pub fn unusable_namespaces(&self) -> &[(u32, String)] {
        &self.unusable
    }

    /// Whether it uses shadow doorbells.
    #[must_use]
    pub fn has_shadow_doorbells(&self) -> bool {
        self.shadow.is_some()
    }

    /// The way for channels to it.
    #[must_use]
    pub fn link(&self) -> &Link<P, X> {
        &self.link
    }

    /// The next thing that the owner is told.
    pub fn take_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// Resets it: it is disabled, and what was out is submitted again. Nothing where it is not ready.
    pub fn reset(&mut self) {
        if matches!(self.phase, Phase::Running) {
            self.begin_reset(Failure::ResetAsked, Then::Reset);
        }
    }

    /// Reads a log page; it comes as a [`Report::Log`]. Whether it was asked for: not where the controller is not ready.
    pub fn read_log(&mut self, now: Instant, page: LogPage) -> bool {
        let ready = matches!(self.phase, Phase::Running);
        if ready {
            self.submit_log(now, page);
        }
        ready
    }

    /// Lets it go, orderly: its channels, of which there should be none by now, fail; its cache is flushed by a normal
    /// shutdown. Poll until the standing is `Closed`.
    pub fn close(&mut self) {
        if self.closing {
            return;
        }
        self.closing = true;
        let then = match self.phase {
            Phase::Running => Then::ShutDown,
            // A job ends first; see `advance`.
            Phase::Opening(_) | Phase::Vectors(_) | Phase::ResettingFunction(_) | Phase::Closed => return,
            _ => Then::Release,
        };
        self.quiet(then);
    }

    /// Goes on with its life. Never blocks.
    pub fn poll(&mut self, now: Instant) -> Poll {
        if self.armed.replace(false)
            && let Some(notifier) = &self.notifier
        {
            notifier.take();
        }
        let mut busy = false;
        while let Some(message) = self.inbox.receive() {
            busy = true;
            self.hear(now, message);
        }
        busy |= self.take_answers(now);
        busy |= self.advance(now);
        if busy { Poll::Busy } else { Poll::Idle { until: self.until(now) } }
    }

    /// Before the core sleeps.
    pub fn arm(&mut self, now: Instant, wakes: &mut P::Wakes) -> Poll {
        self.armed.set(true);
        wakes.mailbox(&self.inbox);
        if let Some(notifier) = &self.notifier {
            wakes.notifier(notifier);
        }
        match &self.phase {
            Phase::Opening(job) => wakes.job(job),
            Phase::Vectors(job) => wakes.job(job),
            Phase::ResettingFunction(job) => wakes.job(job),
            Phase::Releasing(job) => wakes.job(job),
            // Elsewhere nobody takes them; one that has ended would end every sleep at once.
            Phase::Running => self.remotes.iter().for_each(|remote| {
                if let Stage::Mapping(job) = &remote.stage {
                    wakes.job(job);
                }
            }),
            _ => {}
        }
        Poll::Idle { until: self.until(now) }
    }

    /// When it wants to be polled though nothing told it to.
    fn until(&self, now: Instant) -> Option<Instant> {
        match &self.phase {
            Phase::Disabling { .. } | Phase::Enabling { .. } | Phase::ShuttingDown { .. } => {
                Some(now.after(REGISTER_LOOK))
            }
            // Without an interrupt the admin queue is looked at as often as registers.
            Phase::Introduction | Phase::Running if self.notifier.is_none() => Some(now.after(REGISTER_LOOK)),
            Phase::Introduction => Some(now.after(STATUS_LOOK)),
            Phase::Running => {
                let events = (self.events_owed > 0).then_some(self.events_at);
                let retries =
                    self.remotes.iter().filter(|remote| remote.refusals > 0 && remote.queue.is_none());
                let times = retries.map(|remote| remote.retry_at).chain(events);
                Some(times.fold(self.look_at, Instant::min))
            }
            _ => None,
        }
    }

    fn report(&mut self, report: Report) {
        if self.reports.len() == REPORTS_MAX {
            self.reports.pop_front();
        }
        self.reports.push_back(report);
    }

    fn record(&self, kind: Kind, queue: u16, a: u64, b: u64) {
        let at_ns = self.platform.now().0;
        self.platform.record(Event { at_ns, kind: kind as u16, device: self.device, queue, detail: 0, a, b });
    }

    fn opened(&self) -> &Opened<P, X> {
        self.opened.as_ref().expect("this is done with an open function")
    }

    fn registers(&self) -> &RegistersOf<X> {
        &self.opened().registers
    }

    /// The part of the admin memory behind the admin queue: 0 zeroes, 1 shadow doorbells, 2 EventIdx.
    fn page(&self, number: u64) -> Part<P::Window> {
        self.opened().memory.whole().part(admin::MEMORY_LEN + number * PAGE, PAGE)
    }

    fn status(&self) -> ControllerStatus {
        ControllerStatus(self.registers().load_u32(register::CSTS))
    }

    /// What the phase waits for. Whether something happened.
    fn advance(&mut self, now: Instant) -> bool {
        match &mut self.phase {
            Phase::Opening(job) => match job.take() {
                None => false,
                Some(Err(why)) => {
                    self.give_up(why);
                    true
                }
                Some(Ok(opened)) => {
                    self.opened = Some(opened);
                    if self.closing {
                        self.quiet(Then::Release)
                    } else {
                        self.disable(now)
                    }
                    true
                }
            },
            Phase::Disabling { until, cleared } => {
                let (until, cleared) = (*until, *cleared);
                self.go_on_disabling(now, until, cleared)
            }
            Phase::Vectors(job) => match job.take() {
                None => false,
                Some(Err(error)) => {
                    self.give_up(Failure::World { what: "turning interrupts on", error });
                    true
                }
                Some(Ok(notifiers)) => {
                    self.vectors = notifiers.len() as u16;
                    let mut notifiers = notifiers.into_iter();
                    self.notifier = notifiers.next();
                    for (index, notifier) in notifiers.enumerate() {
                        self.queue_slot(index).notifier = Some(notifier);
                    }
                    if self.closing {
                        self.quiet(Then::Release)
                    } else {
                        self.enable(now)
                    }
                    true
                }
            },
            Phase::Enabling { until } => {
                let until = *until;
                let status = self.status();
                if status.0 == u32::MAX {
                    self.trouble(Failure::Removed);
                } else if status.cfs() == 1 {
                    self.trouble(Failure::Fatal);
                } else if status.rdy() == 1 {
                    self.introduce(now);
                } else if now >= until {
                    self.trouble(Failure::TimedOut("become ready"));
                } else {
                    return false;
                }
                true
            }
            Phase::Introduction => self.watch(now),
            Phase::Running => {
                let worked = self.create_queues(now);
                self.ask_for_events(now);
                if self.scan_at.is_some_and(|at| now >= at) {
                    self.scan_at = None;
                    self.begin_scan(now);
                }
                self.watch(now) || worked
            }
            Phase::Quieting(then) => {
                let then = *then;
                let quiet = !self.remotes.iter().any(|remote| matches!(remote.stage, Stage::Quieting));
                if quiet {
                    self.when_quiet(now, then);
                }
                quiet
            }
            Phase::ResettingFunction(job) => match job.take() {
                None => false,
                Some(Err(error)) => {
                    self.give_up(Failure::World { what: "resetting the function", error });
                    true
                }
                Some(Ok(())) => {
                    // Interrupts went with the reset.
                    (self.vectors, self.notifier) = (0, None);
                    if self.closing {
                        self.quiet(Then::Release)
                    } else {
                        self.disable(now)
                    }
                    true
                }
            },
            Phase::ShuttingDown { until } => {
                let until = *until;
                let status = self.status();
                let over = status.shst() == ControllerStatus::SHST_COMPLETE || status.0 == u32::MAX;
                if over || now >= until {
                    if !over {
                        tracing::warn!(address = %self.address, "an NVMe controller did not shut down in time");
                    }
                    self.registers().store_u32(register::CC, 0);
                    self.release();
                }
                over
            }
            Phase::Releasing(job) => {
                let over = job.take().is_some();
                if over {
                    self.phase = Phase::Closed;
                    self.report(Report::Closed);
                }
                over
            }
            Phase::Failed(_) | Phase::Closed => false,
        }
    }

    fn submit(&mut self, now: Instant, command: Command, purpose: Purpose) {
        if let Some(admin) = &mut self.admin {
            admin.submit(now, command, purpose);
        }
    }

    fn submit_log(&mut self, now: Instant, page: LogPage) {
        let command = Command::get_log_page(page.id(), NSID_ALL, page.bytes());
        self.submit(now, command, Purpose::Log(page));
    }
}

impl<P: Platform, X: PciOf<P>> Drop for Controller<P, X> {
    fn drop(&mut self) {
        // Dropped in the middle of its life: its poller panicked. The function is kept from memory before that is given
        // back, and whoever waits for a channel is told.
        if self.opened.is_some() {
            self.set_bus_master(false);
        }
        for remote in self.remotes.drain(..) {
            remote.tell(ToChannel::Fail(Failure::Closed));
        }
    }
}
