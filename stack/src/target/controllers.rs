//! The controllers on their cores, seen from both ends of the mailboxes between them and the target.
//!
//! Each controller is a poller of its own, so that the panic of one ends that one and the core goes on. It is started on
//! its core, told what to do by messages, and answers by messages ([`Outbox`]). A controller that ends without having been
//! asked to says so from its destructor.

use crate::block::Bdev;
use crate::control::config::ControllerConfig;
use crate::outbox::Outbox;
use crate::vhost_user::{self, Controller};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use runtime::{CoreId, Instant, Platform, Poll, Poller, Receiver, Wakes};
use serde_json::Value;

/// Messages that wait for one controller before its target keeps them.
const COMMANDS_MAX: usize = 16;
/// Messages that wait for the target before their controllers keep them.
const REPORTS_MAX: usize = 1024;

/// What the target tells a controller.
enum Command<P: Platform> {
    /// Its bdev has another size now.
    Resized,
    /// Its bdev is gone, and this one is there in its place.
    Rebind(Arc<dyn Bdev<P>>),
    /// Answer this question with what there is to tell.
    Describe(u64),
    /// Drain, close, end.
    Stop,
}

/// What a controller tells the target, with its number.
#[derive(Debug)]
struct Report {
    number: u32,
    what: Told,
}

/// What a controller told.
#[derive(Debug)]
pub(super) enum Told {
    /// It listens; or why it does not, and it is gone.
    Started(runtime::Result<()>),
    /// The answer to a question: its sessions.
    Described(u64, Value),
    /// It was stopped as asked: drained, closed, gone.
    Stopped,
    /// It is gone without having been asked to.
    Died,
}

/// Where a controller stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is not there yet, for this reason; tried again when its bdev comes, or at the moment given.
    Waiting(String, Option<Instant>),
    /// Started, not heard of yet.
    Starting,
    /// It listens.
    Serving,
    /// Asked to stop.
    Stopping,
    /// It died; only deleting it or a restart of the target helps.
    Dead,
}

/// The target's end of one controller.
pub(super) struct Entry<P: Platform> {
    pub(super) config: ControllerConfig,
    pub(super) standing: Standing,
    pub(super) core: CoreId,
    number: u32,
    /// While there is a controller.
    commands: Option<Outbox<P, Command<P>>>,
}

impl<P: Platform> Entry<P> {
    fn command(&mut self, command: Command<P>) {
        let again = |kept: &Command<P>| matches!((kept, &command), (Command::Resized, Command::Resized));
        if let Some(commands) = self.commands.as_mut().filter(|commands| !commands.kept().any(again)) {
            commands.push(command);
        }
    }
}

/// All controllers of the target, in order of creation.
pub(super) struct Controllers<P: Platform> {
    entries: Vec<Entry<P>>,
    reports: P::Receiver<Report>,
    /// Cloned into every controller.
    report_to: P::Sender<Report>,
    in_band_notifications: bool,
    next_number: u32,
}

impl<P: Platform> Controllers<P> {
    pub(super) fn new(platform: &P, in_band_notifications: bool) -> Self {
        let (report_to, reports) = platform.mailbox(REPORTS_MAX);
        Self { entries: Vec::new(), reports, report_to, in_band_notifications, next_number: 0 }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry<P>> + '_ {
        self.entries.iter()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Entry<P>> {
        self.entries.iter().find(|entry| entry.config.name == name)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Entry<P>> {
        self.entries.iter_mut().find(|entry| entry.config.name == name)
    }

    /// Whether none is left that must still be waited for.
    pub(super) fn all_gone(&self) -> bool {
        self.entries.iter().all(|entry| entry.commands.is_none())
    }

    /// Adds a controller that is to be started on `core`.
    pub(super) fn add(&mut self, config: ControllerConfig, core: CoreId, reason: String) {
        let number = self.next_number;
        self.next_number += 1;
        let standing = Standing::Waiting(reason, None);
        self.entries.push(Entry { config, standing, core, number, commands: None });
    }

    /// Takes out a controller that is gone, or was never started.
    pub(super) fn remove(&mut self, name: &str) {
        self.entries.retain(|entry| entry.config.name != name);
    }

    /// How many controllers live on a core.
    pub(super) fn on_core(&self, core: CoreId) -> usize {
        self.entries.iter().filter(|entry| entry.core == core).count()
    }

    /// Starts a controller that waits, on `bdev`, listening at `socket_path`.
    pub(super) fn start(
        &mut self,
        platform: &P,
        name: &str,
        bdev: Arc<dyn Bdev<P>>,
        socket_path: String,
        socket_options: runtime::SocketOptions,
    ) {
        let report_to = self.report_to.clone();
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.config.name == name) else { return };
        let (link, commands) = platform.mailbox(COMMANDS_MAX);
        entry.commands = Some(Outbox::new(link));
        entry.standing = Standing::Starting;
        let number = entry.number;
        let config = vhost_user::ControllerConfig {
            name: entry.config.name.clone(),
            socket_path,
            socket_options,
            bdev,
            read_only: entry.config.read_only,
            packed_ring: entry.config.packed_ring,
            in_band_notifications: self.in_band_notifications,
            // The recorder's field is narrow; two of 65536 controllers made one after the other share a number.
            device: number as u16,
        };
        let constructor = move |platform: P| -> Box<dyn Poller<P>> {
            Box::new(ControllerPoller::new(platform, config, number, commands, report_to))
        };
        platform.start(entry.core, Box::new(constructor));
    }

    /// Tells the controllers on a bdev that its size changed.
    pub(super) fn resized(&mut self, bdev: &str) {
        for entry in self.entries.iter_mut().filter(|entry| entry.config.bdev == bdev) {
            entry.command(Command::Resized);
        }
    }

    /// Asks a controller for its sessions; whether an answer will come.
    pub(super) fn describe(&mut self, name: &str, question: u64) -> bool {
        let Some(entry) = self.get_mut(name) else { return false };
        let lives = entry.standing == Standing::Serving;
        if lives {
            entry.command(Command::Describe(question));
        }
        lives
    }

    /// Asks a controller to end; whether its end must be waited for.
    pub(super) fn stop(&mut self, name: &str) -> bool {
        let Some(entry) = self.get_mut(name) else { return false };
        if entry.commands.is_some() && entry.standing != Standing::Stopping {
            entry.standing = Standing::Stopping;
            entry.command(Command::Stop);
        }
        entry.commands.is_some()
    }

    /// A bdev is another one now: the controllers that run on the one that was there before go over to it.
    pub(super) fn rebind(&mut self, name: &str, bdev: Arc<dyn Bdev<P>>) {
        if let Some(entry) = self.get_mut(name) {
            entry.command(Command::Rebind(bdev));
        }
    }

    /// Sends what was kept and takes what came. Whether there was work; what was told is pushed to `told`.
    pub(super) fn poll(&mut self, told: &mut Vec<(String, Told)>) -> bool {
        let mut worked = false;
        while let Some(Report { number, what }) = self.reports.receive() {
            worked = true;
            let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) else { continue };
            match &what {
                Told::Started(Ok(())) if entry.standing == Standing::Starting => {
                    entry.standing = Standing::Serving
                }
                Told::Started(Ok(())) | Told::Described(..) => {}
                Told::Started(Err(_)) | Told::Stopped => entry.commands = None,
                Told::Died => {
                    entry.commands = None;
                    entry.standing = Standing::Dead;
                    tracing::error!(controller = %entry.config.name, "the controller died; the others go on");
                }
            }
            told.push((entry.config.name.clone(), what));
        }
        for commands in self.entries.iter_mut().filter_map(|entry| entry.commands.as_mut()) {
            worked |= commands.flush();
        }
        worked
    }

    /// When to try again what found a mailbox full.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        self.entries.iter().find_map(|entry| entry.commands.as_ref()?.retry_at(now))
    }

    pub(super) fn arm(&self, wakes: &mut P::Wakes) {
        wakes.mailbox(&self.reports);
    }
}

/// A controller on its core.
struct ControllerPoller<P: Platform> {
    /// `None`: it could not be made, or has ended.
    controller: Option<Controller<P>>,
    number: u32,
    commands: P::Receiver<Command<P>>,
    reports: Outbox<P, Report>,
    stopping: bool,
    /// The target knows, or will know, that this controller is no more.
    end_told: bool,
}

impl<P: Platform> ControllerPoller<P> {
    fn new(
        platform: P,
        config: vhost_user::ControllerConfig<P>,
        number: u32,
        commands: P::Receiver<Command<P>>,
        report_to: P::Sender<Report>,
    ) -> Self {
        let (controller, started) = match Controller::new(platform, config) {
            Ok(controller) => (Some(controller), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let end_told = controller.is_none();
        let reports = Outbox::new(report_to);
        let mut poller = Self { controller, number, commands, reports, stopping: false, end_told };
        poller.tell(Told::Started(started));
        poller
    }

    fn tell(&mut self, what: Told) {
        self.reports.push(Report { number: self.number, what });
    }

    /// Sends what there is to report, and takes what the target commands.
    fn exchange(&mut self) -> bool {
        let mut worked = false;
        while let Some(command) = self.commands.receive() {
            worked = true;
            let Some(controller) = &mut self.controller else { continue };
            match command {
                Command::Resized => controller.resized(),
                Command::Rebind(bdev) => controller.rebind(bdev),
                Command::Describe(question) => {
                    let told = Told::Described(question, controller.describe());
                    self.tell(told);
                }
                Command::Stop => {
                    self.stopping = true;
                    controller.begin_stop();
                }
            }
        }
        self.reports.flush() || worked
    }

    /// When to poll again: as the controller says, or when a report that found the mailbox full may be sent.
    fn until(&self, controller: Option<Instant>, now: Instant) -> Option<Instant> {
        [controller, self.reports.retry_at(now)].into_iter().flatten().min()
    }
}

impl<P: Platform> Poller<P> for ControllerPoller<P> {
    fn poll(&mut self, now: Instant) -> Poll {
        let worked = self.exchange();
        let Some(controller) = &mut self.controller else {
            return if self.reports.is_empty() {
                Poll::Done
            } else {
                Poll::Idle { until: self.until(None, now) }
            };
        };
        let polled = controller.poll(now);
        if self.stopping && controller.is_stopped() {
            self.controller = None;
            self.tell(Told::Stopped);
            self.end_told = true;
            return Poll::Busy;
        }
        match polled {
            Poll::Idle { .. } if worked => Poll::Busy,
            Poll::Idle { until } => Poll::Idle { until: self.until(until, now) },
            Poll::Done => {
                self.controller = None;
                self.tell(Told::Died);
                self.end_told = true;
                Poll::Busy
            }
            Poll::Busy => Poll::Busy,
        }
    }

    fn arm(&mut self, now: Instant, wakes: &mut P::Wakes) -> Poll {
        wakes.mailbox(&self.commands);
        let armed = match &mut self.controller {
            Some(controller) => controller.arm(now, wakes),
            None => Poll::Idle { until: None },
        };
        match armed {
            Poll::Idle { until } => Poll::Idle { until: self.until(until, now) },
            busy => busy,
        }
    }
}

impl<P: Platform> Drop for ControllerPoller<P> {
    fn drop(&mut self) {
        if !self.end_told {
            // The core dropped it: it panicked.
            self.reports.last_word(Report { number: self.number, what: Told::Died });
        }
    }
}
