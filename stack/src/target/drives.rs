//! The NVMe controllers that are attached, seen from both ends of the mailboxes between their drivers and the target.
//!
//! Each driver is a poller of its own on the target's core: the panic of one ends that one. It is told what to do by
//! messages and answers by messages ([`Outbox`]).
//!
//! A controller that was attached is wanted until it is detached. One that cannot be had now, or fails, or is pulled out, is
//! let go and tried again and again; meanwhile its bdevs are gone, and who used them gets errors. What it brings when it is
//! there again are other bdevs of the same names.

use crate::block::{Disk, NvmeBdev};
use crate::control::config::{DriveConfig, NvmeOptions, OnTimeout};
use crate::nvme::bits::{LogPage, Status};
use crate::nvme::driver::{
    Controller, ControllerInfo, Failure, Link, Namespace, NamespaceState, Options, Report as DriverReport,
    Standing as DriverStanding,
};
use crate::outbox::Outbox;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;
use runtime::{Instant, Platform, Poll, Poller, Receiver, Wakes};

/// Messages that wait for one driver before its target keeps them.
const COMMANDS_MAX: usize = 16;
/// Messages that wait for the target before the drivers keep them.
const REPORTS_MAX: usize = 256;
/// How long a controller that could not be had is left alone before the next try.
const RETRY: Duration = Duration::from_millis(500);
/// How long a starting target waits for a controller: longer than one takes that is well. What comes later comes later.
const FIRST_WAIT_MAX: Duration = Duration::from_secs(10);

/// A driver of this target's.
type Driver<P> = Controller<P, <P as Platform>::Pci>;

/// What the target tells a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    /// Reset the controller.
    Reset,
    /// Read its health.
    Health,
    /// Let it go.
    Close,
}

/// What a driver tells the target, with its number.
struct Report<P: Platform> {
    number: u32,
    what: Told<P>,
}

/// What there is of a controller that serves.
pub(super) struct Found<P: Platform> {
    /// It has just become ready, for the first time or again.
    is_fresh: bool,
    pub(super) info: ControllerInfo,
    pub(super) namespaces: Vec<Namespace>,
    /// Namespaces that cannot be used, and why.
    pub(super) unusable: Vec<(u32, String)>,
    link: Link<P, P::Pci>,
}

/// What a driver told.
pub(super) enum Told<P: Platform> {
    /// The controller is ready, or its namespaces changed.
    Found(Box<Found<P>>),
    /// It is being reset.
    Resetting(Failure),
    /// It cannot be reset: it is not ready.
    NotReady,
    /// Its health, as the log page has it.
    Health(Result<Vec<u8>, Status>),
    /// It is given up, and let go next.
    Failed(Failure),
    /// It was let go.
    Closed,
    /// The driver is gone without having been asked to.
    Died,
}

/// What the target heard of a controller in one round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It became ready; whether that was for the first time is its entry's to tell.
    Ready,
    /// It cannot be reset: it is not ready.
    NotReady,
    /// Its health, as the log page has it.
    Health(Result<Vec<u8>, Status>),
    /// It is given up.
    Failed(Failure),
    /// It is gone.
    Gone,
}

/// Where a controller stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is not there, for this reason; tried again at that moment.
    Waiting(String, Instant),
    /// It is being brought up.
    Starting,
    /// It serves.
    Ready,
    /// It is being reset, for this reason.
    Resetting(String),
    /// It is being let go: it failed for this reason, or is not wanted any more.
    Closing(Option<String>),
}

/// A bdev of a controller's, and the size that its users know of.
struct Listed {
    name: String,
    state: Arc<NamespaceState>,
    num_blocks: u64,
}

/// The target's end of one controller.
pub(super) struct Entry<P: Platform> {
    pub(super) config: DriveConfig,
    pub(super) standing: Standing,
    /// What was found when it was last ready.
    pub(super) found: Option<Box<Found<P>>>,
    /// It is acknowledged: its bdevs are shown, and it is tried again when it fails.
    pub(super) kept: bool,
    /// It was ready or was found to be impossible for now.
    tried: bool,
    /// It was lost in this life of the target.
    lost: bool,
    options: Options,
    listed: Vec<Listed>,
    number: u32,
    /// While there is a driver.
    commands: Option<Outbox<P, Command>>,
}

impl<P: Platform> Entry<P> {
    fn command(&mut self, command: Command) {
        if let Some(commands) = &mut self.commands {
            commands.push(command);
        }
    }

    /// Whether nothing of it is there that must be waited for.
    pub(super) fn is_gone(&self) -> bool {
        self.commands.is_none()
    }

    /// Why its bdevs are not there.
    pub(super) fn reason(&self) -> String {
        let DriveConfig { name, address } = &self.config;
        match &self.standing {
            Standing::Waiting(why, _) | Standing::Closing(Some(why)) => {
                format!("NVMe controller {name} at {address} is not there: {why}")
            }
            Standing::Starting => format!("NVMe controller {name} at {address} is being brought up"),
            Standing::Closing(None) => format!("NVMe controller {name} at {address} is being let go"),
            Standing::Resetting(why) => format!("NVMe controller {name} at {address} is being reset: {why}"),
            Standing::Ready => {
                let unusable = self.found.iter().flat_map(|found| &found.unusable);
                let why = unusable.map(|(id, why)| format!("; namespace {id} cannot be used: {why}"));
                format!(
                    "NVMe controller {name} at {address} has no such namespace{}",
                    why.collect::<String>()
                )
            }
        }
    }
}

/// What became of a controller's bdevs.
pub(super) enum Change<P: Platform> {
    /// A new one is there.
    Came(Disk<P>),
    /// One is gone.
    Went(String),
    /// One has another size.
    Resized(String),
}

/// All NVMe controllers of the target, in order of attachment.
pub(super) struct Drives<P: Platform> {
    entries: Vec<Entry<P>>,
    reports: P::Receiver<Report<P>>,
    /// Cloned into every driver.
    report_to: P::Sender<Report<P>>,
    next_number: u32,
    /// The start is over then, whatever is missing.
    first_until: Instant,
}

impl<P: Platform> Drives<P> {
    /// These are wanted.
    pub(super) fn new(platform: &P, drives: &[DriveConfig], options: &NvmeOptions) -> Self {
        let (report_to, reports) = platform.mailbox(REPORTS_MAX);
        let first_until = platform.now().after(FIRST_WAIT_MAX);
        let mut new = Self { entries: Vec::new(), reports, report_to, next_number: 0, first_until };
        for drive in drives {
            new.add(drive.clone(), options);
            let entry = new.entries.last_mut().expect("just added");
            entry.kept = true;
        }
        new
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

    /// Whether each was had, or was found to be impossible for now, or took too long.
    pub(super) fn all_tried(&self, now: Instant) -> bool {
        now >= self.first_until || self.entries.iter().all(|entry| entry.tried)
    }

    /// Whether one is being waited for since the target started, and until when.
    pub(super) fn first_wait(&self, now: Instant) -> Option<Instant> {
        (!self.all_tried(now)).then_some(self.first_until)
    }

    /// Adds a controller that is to be started.
    pub(super) fn add(&mut self, config: DriveConfig, options: &NvmeOptions) {
        let standing = Standing::Waiting(String::from("it is being opened"), Instant(0));
        let number = self.next_number;
        self.next_number += 1;
        self.entries.push(Entry {
            config,
            standing,
            found: None,
            kept: false,
            tried: false,
            lost: false,
            options: driver_options(options),
            listed: Vec::new(),
            number,
            commands: None,
        });
    }

    /// Takes out a controller that is gone.
    pub(super) fn remove(&mut self, name: &str) {
        self.entries.retain(|entry| entry.config.name != name);
    }

    /// Starts the driver of a controller that waits.
    pub(super) fn start(&mut self, platform: &P, name: &str) {
        let report_to = self.report_to.clone();
        // A number of its own for each life of a driver: what an older one had still to say is not this one's.
        let number = self.next_number;
        self.next_number += 1;
        let Some(entry) = self.get_mut(name) else { return };
        let (link, commands) = platform.mailbox(COMMANDS_MAX);
        (entry.commands, entry.number) = (Some(Outbox::new(link)), number);
        entry.standing = Standing::Starting;
        let (address, options) = (entry.config.address, entry.options);
        let constructor = move |platform: P| -> Box<dyn Poller<P>> {
            // The recorder's field is narrow; two of 65536 made one after the other share a number.
            let driver = Controller::open(platform.clone(), platform.pci(), address, number as u16, options);
            Box::new(DrivePoller::<P> {
                driver: Some(driver),
                number,
                commands,
                reports: Outbox::new(report_to),
                wants_health: false,
                end_told: false,
            })
        };
        platform.start(platform.here(), Box::new(constructor));
    }

    /// Starts those whose moment has come. Whether there was one.
    pub(super) fn start_due(&mut self, platform: &P, now: Instant, until: &mut Option<Instant>) -> bool {
        let mut due = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.kept && entry.is_gone()) {
            if let Standing::Waiting(_, retry) = entry.standing {
                if retry <= now {
                    due.push(entry.config.name.clone());
                } else {
                    *until = Some(until.map_or(retry, |until| until.min(retry)));
                }
            }
        }
        for name in &due {
            self.start(platform, name);
        }
        !due.is_empty()
    }

    /// Asks a controller to be reset. Whether an answer will come.
    pub(super) fn reset(&mut self, name: &str) -> bool {
        self.ask(name, Command::Reset)
    }

    /// Asks a controller for its health. Whether an answer will come, if the controller stays well.
    pub(super) fn read_health(&mut self, name: &str) -> bool {
        self.ask(name, Command::Health)
    }

    fn ask(&mut self, name: &str, command: Command) -> bool {
        let Some(entry) = self.get_mut(name) else { return false };
        let ready = entry.standing == Standing::Ready;
        if ready {
            entry.command(command);
        }
        ready
    }

    /// Lets a controller go, which takes time where it is there.
    pub(super) fn close(&mut self, name: &str) {
        let Some(entry) = self.get_mut(name) else { return };
        entry.kept = false;
        if entry.is_gone() || entry.standing == Standing::Closing(None) {
            return;
        }
        entry.command(Command::Close);
        entry.standing = Standing::Closing(None);
    }

    /// Lets all go. Whether all are gone.
    pub(super) fn close_all(&mut self) -> bool {
        for name in self.entries.iter().map(|entry| entry.config.name.clone()).collect::<Vec<_>>() {
            self.close(&name);
        }
        self.entries.iter().all(Entry::is_gone)
    }

    /// Sends what was kept and takes what came. Whether there was work; what was heard is pushed to `heard`.
    pub(super) fn poll(&mut self, now: Instant, heard: &mut Vec<(String, Heard)>) -> bool {
        let mut worked = false;
        while let Some(Report { number, what }) = self.reports.receive() {
            worked = true;
            let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) else { continue };
            let name = entry.config.name.clone();
            let closing = matches!(entry.standing, Standing::Closing(_));
            let word = match what {
                Told::Found(found) => {
                    let is_fresh = found.is_fresh;
                    (entry.found, entry.tried) = (Some(found), true);
                    if closing {
                        continue;
                    }
                    if is_fresh {
                        entry.standing = Standing::Ready;
                        tracing::info!(controller = %name, address = %entry.config.address, "the NVMe controller is ready");
                    }
                    if !is_fresh {
                        continue;
                    }
                    Heard::Ready
                }
                Told::Resetting(why) => {
                    if !closing && entry.standing == Standing::Ready {
                        entry.standing = Standing::Resetting(why.to_string());
                    }
                    continue;
                }
                Told::NotReady => Heard::NotReady,
                Told::Health(health) => Heard::Health(health),
                Told::Failed(why) => {
                    // Whatever the cache held may be lost with it.
                    (entry.tried, entry.lost) = (true, entry.lost || entry.found.is_some());
                    entry.found = None;
                    if entry.standing != Standing::Closing(None) {
                        entry.standing = Standing::Closing(Some(why.to_string()));
                    }
                    Heard::Failed(why)
                }
                Told::Closed | Told::Died => {
                    let died = matches!(what, Told::Died);
                    if died {
                        tracing::error!(controller = %name, "the driver of the NVMe controller died");
                    }
                    (entry.commands, entry.found, entry.tried) = (None, None, true);
                    entry.lost |= died;
                    let why = match &entry.standing {
                        Standing::Closing(Some(why)) => why.clone(),
                        _ => String::from("its driver died"),
                    };
                    entry.standing = Standing::Waiting(why, now.after(RETRY));
                    Heard::Gone
                }
            };
            heard.push((name, word));
        }
        for commands in self.entries.iter_mut().filter_map(|entry| entry.commands.as_mut()) {
            worked |= commands.flush();
        }
        worked
    }

    /// What changed of the bdevs of the controllers that are kept, since the last time.
    pub(super) fn changes(&mut self, cores: u16) -> Vec<Change<P>> {
        let mut changes = Vec::new();
        for entry in self.entries.iter_mut().filter(|entry| entry.kept || !entry.listed.is_empty()) {
            let there = entry.found.as_ref().filter(|_| entry.kept);
            let namespaces = there.map_or(&[][..], |found| &found.namespaces);
            let config = &entry.config;
            let name_of = |namespace: &Namespace| format!("{}n{}", config.name, namespace.id);
            entry.listed.retain(|listed| {
                let is_it = |namespace: &Namespace| Arc::ptr_eq(&namespace.state, &listed.state);
                let stays = namespaces.iter().any(is_it) && !listed.state.is_gone();
                if !stays {
                    changes.push(Change::Went(listed.name.clone()));
                }
                stays
            });
            let Some(found) = there else { continue };
            for namespace in &found.namespaces {
                let (name, num_blocks) = (name_of(namespace), namespace.state.num_blocks());
                match entry.listed.iter_mut().find(|listed| Arc::ptr_eq(&listed.state, &namespace.state)) {
                    Some(listed) if listed.num_blocks == num_blocks => {}
                    Some(listed) => {
                        listed.num_blocks = num_blocks;
                        changes.push(Change::Resized(name));
                    }
                    None if namespace.state.is_gone() => {}
                    None => {
                        let disk = NvmeBdev::new(
                            &config.name,
                            config.address,
                            found.info.clone(),
                            namespace.clone(),
                            found.link.clone(),
                            entry.options,
                            entry.lost,
                            cores,
                        );
                        entry.listed.push(Listed { name, state: Arc::clone(&namespace.state), num_blocks });
                        changes.push(Change::Came(Disk::Nvme(Arc::new(disk))));
                    }
                }
            }
        }
        changes
    }

    /// When to try again what found a mailbox full.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        self.entries.iter().find_map(|entry| entry.commands.as_ref()?.retry_at(now))
    }

    pub(super) fn arm(&self, wakes: &mut P::Wakes) {
        wakes.mailbox(&self.reports);
    }
}

/// The driver's options for those that were asked for.
fn driver_options(asked: &NvmeOptions) -> Options {
    let own = Options::default();
    let time = |asked: Option<u64>, own| asked.map_or(own, Duration::from_micros);
    Options {
        io_timeout: time(asked.timeout_us, own.io_timeout),
        admin_timeout: time(asked.timeout_admin_us, own.admin_timeout),
        aborts: asked.action_on_timeout != Some(OnTimeout::Reset),
        retries: asked.bdev_retry_count.unwrap_or(own.retries),
        ..own
    }
}

/// A driver on its core.
struct DrivePoller<P: Platform> {
    /// `None`: the controller was let go.
    driver: Option<Driver<P>>,
    number: u32,
    commands: P::Receiver<Command>,
    reports: Outbox<P, Report<P>>,
    /// The next health log is the target's.
    wants_health: bool,
    /// The target knows, or will know, that this driver is no more.
    end_told: bool,
}

impl<P: Platform> DrivePoller<P> {
    /// Takes what the target commands. Whether there was something.
    fn obey(&mut self, now: Instant) -> bool {
        let mut worked = false;
        while let Some(command) = self.commands.receive() {
            worked = true;
            let Some(driver) = &mut self.driver else { continue };
            match command {
                Command::Reset if driver.standing() == DriverStanding::Ready => driver.reset(),
                Command::Reset => self.reports.push(Report { number: self.number, what: Told::NotReady }),
                Command::Health => self.wants_health |= driver.read_log(now, LogPage::Health),
                Command::Close => driver.close(),
            }
        }
        worked
    }

    /// Takes what the driver reports. Whether there was something.
    fn hear(&mut self) -> bool {
        let mut worked = false;
        while let Some(report) = self.driver.as_mut().and_then(Driver::<P>::take_report) {
            worked = true;
            let Some(driver) = &mut self.driver else { break };
            let told = match report {
                DriverReport::Ready | DriverReport::NamespacesChanged => {
                    let Some(info) = driver.info() else { continue };
                    Told::Found(Box::new(Found {
                        is_fresh: report == DriverReport::Ready,
                        info: info.clone(),
                        namespaces: driver.namespaces().to_vec(),
                        unusable: driver.unusable_namespaces().to_vec(),
                        link: driver.link().clone(),
                    }))
                }
                DriverReport::Resetting(why) => Told::Resetting(why),
                DriverReport::Failed(why) => {
                    driver.close();
                    Told::Failed(why)
                }
                DriverReport::Log(LogPage::Health, page) if core::mem::take(&mut self.wants_health) => {
                    Told::Health(page)
                }
                // The driver has said it in the log.
                DriverReport::Event(_) | DriverReport::Log(..) => continue,
                DriverReport::Closed => {
                    (self.driver, self.end_told) = (None, true);
                    Told::Closed
                }
            };
            self.reports.push(Report { number: self.number, what: told });
        }
        worked
    }

    /// When to poll again: as the driver says, or when a report that found the mailbox full may be sent.
    fn until(&self, driver: Option<Instant>, now: Instant) -> Option<Instant> {
        [driver, self.reports.retry_at(now)].into_iter().flatten().min()
    }
}

impl<P: Platform> Poller<P> for DrivePoller<P> {
    fn poll(&mut self, now: Instant) -> Poll {
        let mut worked = self.obey(now);
        let polled = self.driver.as_mut().map(|driver| driver.poll(now));
        worked |= self.hear();
        worked |= self.reports.flush();
        match polled {
            _ if worked => Poll::Busy,
            None if self.reports.is_empty() => Poll::Done,
            None | Some(Poll::Done) => Poll::Idle { until: self.until(None, now) },
            Some(Poll::Idle { until }) => Poll::Idle { until: self.until(until, now) },
            Some(Poll::Busy) => Poll::Busy,
        }
    }

    fn arm(&mut self, now: Instant, wakes: &mut P::Wakes) -> Poll {
        wakes.mailbox(&self.commands);
        match self.driver.as_mut().map(|driver| driver.arm(now, wakes)) {
            None => Poll::Idle { until: self.until(None, now) },
            Some(Poll::Idle { until }) => Poll::Idle { until: self.until(until, now) },
            Some(busy) => busy,
        }
    }
}

impl<P: Platform> Drop for DrivePoller<P> {
    fn drop(&mut self) {
        if !self.end_told {
            // The core dropped it: it panicked.
            self.reports.last_word(Report { number: self.number, what: Told::Died });
        }
    }
}
