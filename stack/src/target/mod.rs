//! The target: everything that serves, put together, and its life from the state directory to the last drained request.
//!
//! It is the poller of the first core. It locks the state directory and reads it, makes the bdevs (the fence before each
//! file is in [`opening`]), starts each controller on its core as soon as its bdev is there, then listens for calls. No
//! socket listens before it can answer: a front-end that finds one and is then turned away may never come back. A bdev
//! that cannot be made now holds up nobody but its own controllers. Asked to stop, it refuses new changes, lets every
//! controller drain, and ends.

mod change;
mod controllers;
mod drives;
mod inventory;
mod nvmf;
mod opening;
mod pending;
mod questions;

use self::change::Change;
use self::controllers::{Controllers, Standing, Told};
use self::drives::{Drives, Heard};
use self::inventory::Inventory;
use self::pending::Pending;
use self::questions::Questions;
use crate::block::{Registry, uuid};
use crate::control::calls::{Call, parse};
use crate::control::config::Config;
use crate::control::error::{INVALID_STATE, RpcError, RpcResult};
use crate::control::server::{ConnectionId, Incoming, Server};
use crate::control::state::{PlatformState, State, StatePaths};
use crate::events::Kind;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use runtime::{ErrorKind, Instant, Job, Platform, Poll, Poller, SocketOptions, Wakes};
use serde_json::Value;

/// How often the RPC socket is looked at while the core is busy with other things: a look is some system calls.
const SOCKET_LOOK: Duration = Duration::from_millis(1);
/// How long a controller that could not listen is left alone before the next try.
const LISTEN_RETRY: Duration = Duration::from_secs(1);
/// How long a stopping target goes without saying what it waits for.
const STOP_REPORT: Duration = Duration::from_secs(5);
/// How long a stopping target tries to send the last answers.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(1);

/// How the target ended: orderly, or a sentence on why it could not begin.
pub type Ended = Result<(), String>;

/// What the target is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where it listens for calls, an absolute path.
    pub rpc_socket: String,
    /// Who may call.
    pub rpc_socket_options: SocketOptions,
    /// The directory of the controllers' sockets, an absolute path.
    pub vhost_dir: String,
    /// Who may connect to the controllers.
    pub vhost_socket: SocketOptions,
    /// Offer front-ends in-band notifications, which are made for simulations.
    pub in_band_notifications: bool,
    /// The state directory, an absolute path.
    pub state_dir: String,
    /// The release, such as `0.1.0`.
    pub version: &'static str,
}

/// The target. Started on the first core by `hw` or `sim`, which know nothing of what it does.
pub struct Target<P: Platform> {
    phase: Phase<P>,
    /// Told once how it ended.
    on_end: Option<Box<dyn FnOnce(Ended)>>,
}

/// What opening the state directory gives.
type OpenJob<P> = <P as Platform>::Job<Result<(PlatformState<P>, Config), String>>;

enum Phase<P: Platform> {
    /// The state directory is being locked and read.
    Opening {
        platform: P,
        options: Options,
        job: OpenJob<P>,
    },
    /// Everything else.
    Running(Box<Running<P>>),
    Over,
}

/// A target whose state is known.
struct Running<P: Platform> {
    inventory: Inventory<P>,
    /// Listens once everything that can be there is there.
    server: Option<Server<P>>,
    /// Why it cannot serve, and ends.
    failure: Option<String>,
    change: Option<(ConnectionId, Change<P>)>,
    /// Changes that wait for their turn; at most one a client.
    changes: VecDeque<(ConnectionId, Call)>,
    questions: Questions,
    /// Memory of the machine that a dead life left behind, being given back.
    reclaiming: Vec<P::Job<runtime::Result<()>>>,
    /// When the RPC socket was last looked at, while nothing pointed at it.
    look_at: Instant,
    /// The core wanted to sleep: whatever woke it may have been the RPC socket.
    was_armed: bool,
    /// Since when it stops, and when it next says what it waits for.
    stopping: Option<(Instant, Instant)>,
    /// Since when only the last answers are under way.
    drained: Option<Instant>,
    /// Whether the last round found work.
    worked: bool,
    /// When the last round wanted to be polled again.
    until: Option<Instant>,
    told: Vec<(String, Told)>,
    heard: Vec<(String, Heard)>,
    incoming: Vec<Incoming>,
}

impl<P: Platform> Target<P> {
    /// A target on the first core. `on_end` is called once, on that core, when it ended or could not begin.
    pub fn new(platform: P, options: Options, on_end: Box<dyn FnOnce(Ended)>) -> Self {
        let (directory, paths) = (platform.directory(), StatePaths::new(&options.state_dir));
        let instance = uuid::random([platform.random(), platform.random()]);
        let job = platform.offload(move || State::open(directory, paths, instance));
        Self { phase: Phase::Opening { platform, options, job }, on_end: Some(on_end) }
    }

    fn end(&mut self, ended: Ended) -> Poll {
        self.phase = Phase::Over;
        if let Some(on_end) = self.on_end.take() {
            on_end(ended);
        }
        Poll::Done
    }
}

impl<P: Platform> Poller<P> for Target<P> {
    fn poll(&mut self, now: Instant) -> Poll {
        match &mut self.phase {
            Phase::Opening { platform, options, job } => match job.take() {
                None => Poll::Idle { until: None },
                Some(Err(reason)) => self.end(Err(reason)),
                Some(Ok((state, config))) => {
                    let running = Running::new(platform.clone(), options.clone(), state, config);
                    self.phase = Phase::Running(Box::new(running));
                    Poll::Busy
                }
            },
            Phase::Running(running) => match running.poll(now) {
                Ok(poll) => poll,
                Err(ended) => self.end(ended),
            },
            Phase::Over => Poll::Done,
        }
    }

    fn arm(&mut self, now: Instant, wakes: &mut P::Wakes) -> Poll {
        match &mut self.phase {
            Phase::Opening { job, .. } => {
                wakes.job(job);
                Poll::Idle { until: None }
            }
            Phase::Running(running) => running.arm(now, wakes),
            Phase::Over => Poll::Done,
        }
    }
}

/// Why nobody can listen at a path.
fn not_listening(error: &runtime::Error) -> String {
    let reason = match error.kind {
        ErrorKind::AlreadyExists => "another process answers there, or it is no socket",
        ErrorKind::NotFound => "its directory is missing",
        ErrorKind::Invalid => "the path is too long for a socket",
        _ => "the host refuses",
    };
    format!("{reason} ({error})")
}

/// The earlier of two moments, of which the first may not be.
fn earlier(until: &mut Option<Instant>, moment: Option<Instant>) {
    *until = (*until).into_iter().chain(moment).min();
}

impl<P: Platform> Running<P> {
    fn new(platform: P, options: Options, state: PlatformState<P>, config: Config) -> Self {
        let mut inventory = Inventory {
            pending: Pending::new(&config.bdevs),
            controllers: Controllers::new(&platform, options.in_band_notifications),
            drives: Drives::new(&platform, &config.drives, &config.nvme_options),
            nvmf: nvmf::Nvmf::default(),
            registry: Registry::default(),
            state: Some(state),
            platform,
            options,
            config,
        };
        for controller in inventory.config.controllers.clone() {
            let place = inventory.place(&controller).unwrap_or_else(|error| {
                tracing::warn!(controller = %controller.name, error = %error.message, "the mask fits no core now");
                inventory.platform.here()
            });
            inventory.controllers.add(controller, place, String::from("its bdev is not there yet"));
        }
        let reclaim = core::mem::take(&mut inventory.config.reclaim);
        let reclaiming = reclaim.into_iter().map(|name| change::free(&inventory, name)).collect();
        inventory.record_state(Kind::StateRead, 0, &inventory.config);
        tracing::info!(
            bdevs = inventory.config.bdevs.len(),
            nvme_controllers = inventory.config.drives.len(),
            controllers = inventory.config.controllers.len(),
            "the state directory was read"
        );
        Self {
            inventory,
            server: None,
            failure: None,
            change: None,
            changes: VecDeque::new(),
            questions: Questions::default(),
            reclaiming,
            look_at: Instant(0),
            was_armed: true,
            stopping: None,
            drained: None,
            worked: true,
            until: None,
            told: Vec::new(),
            heard: Vec::new(),
            incoming: Vec::new(),
        }
    }

    /// One round. `Err`: the target has ended.
    fn poll(&mut self, now: Instant) -> Result<Poll, Ended> {
        self.told.clear();
        self.heard.clear();
        let mut worked = self.inventory.controllers.poll(&mut self.told);
        worked |= self.inventory.drives.poll(now, &mut self.heard);
        worked |= self.inventory.nvmf.poll(now);
        if !worked && self.is_quiet(now) {
            let mut until = self.until;
            earlier(&mut until, self.server.is_some().then_some(self.look_at));
            return Ok(Poll::Idle { until });
        }
        let mut until = None;
        if self.stopping.is_none() {
            worked |= pending::poll(&mut self.inventory, now, &mut until);
            let Inventory { drives, platform, .. } = &mut self.inventory;
            worked |= drives.start_due(platform, now, &mut until);
        }
        self.reclaiming.retain_mut(|job| match job.take() {
            None => true,
            Some(freed) => {
                if let Err(error) = freed {
                    tracing::warn!(%error, "memory that a deleted malloc bdev left was not given back");
                }
                false
            }
        });
        worked |= self.poll_change(now, &mut until);
        worked |= self.inventory.settle_drives();
        worked |= self.settle_controllers(now, &mut until);
        if self.stopping.is_none() && self.change.is_none() && self.inventory.nvmf.take_retry(now) {
            self.inventory.serve_nvmf();
            worked = true;
        }
        let mut answers = Vec::new();
        worked |= self.questions.poll(&self.inventory, now, &self.told, &self.heard, &mut answers);
        for (connection, answer) in answers {
            self.answer(connection, answer);
        }
        worked |= self.begin_to_serve(now);
        if self.server.is_none() {
            earlier(&mut until, self.inventory.drives.first_wait(now));
        }
        worked |= self.poll_server(now, &mut until);
        if self.inventory.platform.stop_requested() || self.failure.is_some() {
            worked |= self.poll_stop(now, &mut until)?;
        }
        earlier(&mut until, self.inventory.controllers.wake_at(now));
        earlier(&mut until, self.inventory.drives.wake_at(now));
        earlier(&mut until, self.inventory.nvmf.wake_at(now));
        earlier(&mut until, self.questions.wake_at());
        self.until = until;
        self.worked = worked;
        Ok(if worked { Poll::Busy } else { Poll::Idle { until } })
    }

    /// Whether a round would find nothing to do. The core of a busy target asks this far more often than anything else.
    fn is_quiet(&self, now: Instant) -> bool {
        let looks = self.was_armed || now >= self.look_at;
        let due = self.until.is_some_and(|until| now >= until);
        let waits = self.change.is_some()
            || !self.changes.is_empty()
            || !self.inventory.pending.is_empty()
            || !self.reclaiming.is_empty();
        let stops =
            self.stopping.is_some() || self.failure.is_some() || self.inventory.platform.stop_requested();
        self.server.is_some() && !(self.worked || looks || due || waits || stops)
    }

    fn answer(&mut self, connection: ConnectionId, answer: RpcResult<Value>) {
        // An answer is sent now and not at the next look.
        self.was_armed = true;
        if let Some(server) = &mut self.server {
            server.answer(connection, answer);
        }
    }

    /// Goes on with the change under way, or begins the next.
    fn poll_change(&mut self, now: Instant, until: &mut Option<Instant>) -> bool {
        let mut worked = false;
        if self.change.is_none()
            && let Some((connection, call)) = self.changes.pop_front()
        {
            self.change = Some((connection, Change::begin(&mut self.inventory, call)));
            worked = true;
        }
        let Some((connection, change)) = &mut self.change else { return worked };
        match change.poll(&mut self.inventory, now, &self.told, &self.heard, until) {
            Err(more) => worked | more,
            Ok(answer) => {
                let connection = *connection;
                self.change = None;
                let code = answer.as_ref().err().map_or(0, |error| u64::from(error.code.unsigned_abs()));
                self.inventory.record(Kind::ChangeAnswered, 0, code, 0);
                self.answer(connection, answer);
                true
            }
        }
    }

    /// Sees to controllers that could not listen when the target started: they are tried again.
    fn settle_controllers(&mut self, now: Instant, until: &mut Option<Instant>) -> bool {
        let mut worked = false;
        for (name, what) in &self.told {
            let path = self.inventory.socket_path(name);
            let Some(entry) = self.inventory.controllers.get_mut(name) else { continue };
            if let (Told::Started(Err(error)), Standing::Starting) = (what, &entry.standing) {
                let reason = format!("cannot listen at {path}: {}", not_listening(error));
                tracing::error!(controller = %name, %reason, "the controller does not listen; it is tried again");
                entry.standing = Standing::Waiting(reason, Some(now.after(LISTEN_RETRY)));
            }
        }
        let stopping = self.stopping.is_some();
        let mut due = Vec::new();
        for entry in self.inventory.controllers.iter().filter(|_| !stopping) {
            if let Standing::Waiting(_, Some(retry)) = entry.standing {
                if retry <= now {
                    due.push(entry.config.name.clone());
                } else {
                    earlier(until, Some(retry));
                }
            }
        }
        for name in due {
            self.inventory.start_controller(&name);
            worked = true;
        }
        worked
    }

    /// Listens for calls once every bdev was tried, and says so once every controller was heard of.
    fn begin_to_serve(&mut self, now: Instant) -> bool {
        if self.server.is_some() || self.stopping.is_some() || !self.inventory.pending.all_tried() {
            return false;
        }
        if !self.inventory.drives.all_tried(now) {
            return false;
        }
        // Memory that is given back must not be taken for a new bdev's.
        if !self.reclaiming.is_empty()
            || self.inventory.controllers.iter().any(|entry| entry.standing == Standing::Starting)
        {
            return false;
        }
        // Hosts come back as soon as somebody listens, and must find the namespaces that they know.
        if !self.inventory.nvmf.was_told() {
            self.inventory.serve_nvmf();
            return true;
        }
        if !self.inventory.nvmf.is_quiet() {
            return false;
        }
        let Options { rpc_socket, rpc_socket_options, .. } = &self.inventory.options;
        match self.inventory.platform.listen(rpc_socket, rpc_socket_options) {
            Ok(listener) => {
                tracing::info!(%rpc_socket, "the target serves");
                self.server = Some(Server::new(listener));
                self.look_at = now;
                self.inventory.record(Kind::TargetServes, 0, 0, 0);
                self.inventory.platform.ready();
            }
            Err(error) => {
                // The controllers may serve guests already: they are drained, as in any other stop.
                self.failure =
                    Some(format!("cannot listen for calls at {rpc_socket}: {}", not_listening(&error)));
            }
        }
        true
    }

    /// Looks at the RPC socket, when it is time or when it may be what woke the core.
    fn poll_server(&mut self, now: Instant, until: &mut Option<Instant>) -> bool {
        let Some(server) = &mut self.server else { return false };
        if !self.was_armed && now < self.look_at {
            earlier(until, Some(self.look_at));
            return false;
        }
        self.was_armed = false;
        self.look_at = now.after(SOCKET_LOOK);
        let mut worked = server.poll(now, &mut self.incoming);
        if worked {
            self.questions.retain(|connection| server.is_waiting(connection));
        }
        earlier(until, server.wake_at(now));
        let mut incoming = core::mem::take(&mut self.incoming);
        for Incoming { connection, request } in incoming.drain(..) {
            worked = true;
            let call = match parse(&request.method, request.params) {
                Ok(call) => call,
                Err(error) => {
                    self.answer(connection, Err(error));
                    continue;
                }
            };
            if !call.is_change() {
                match self.questions.ask(&mut self.inventory, connection, call, now) {
                    Some(answer) => self.answer(connection, answer),
                    None => {
                        if let Some(server) = &mut self.server {
                            server.wait(connection);
                        }
                    }
                }
            } else if self.stopping.is_some() {
                self.answer(connection, Err(RpcError::new(INVALID_STATE, "The target is stopping")));
            } else {
                tracing::info!(method = %request.method, "a change was called for");
                self.changes.push_back((connection, call));
            }
        }
        self.incoming = incoming;
        // While there is work the next look comes soon; what is answered now goes out at once.
        self.was_armed |= worked;
        worked
    }

    /// Stops in order: the change under way, the controllers, the last answers.
    fn poll_stop(&mut self, now: Instant, until: &mut Option<Instant>) -> Result<bool, Ended> {
        let mut worked = false;
        let (_, report_at) = self.stopping.get_or_insert_with(|| {
            worked = true;
            self.inventory.record(Kind::TargetStops, 0, 0, 0);
            match &self.failure {
                None => tracing::info!("the target was asked to stop: it drains"),
                Some(_) => tracing::info!("the target cannot serve: it stops"),
            }
            (now, now.after(STOP_REPORT))
        });
        let report = now >= *report_at;
        if report {
            *report_at = now.after(STOP_REPORT);
        }
        earlier(until, Some(*report_at));
        for (connection, _) in core::mem::take(&mut self.changes) {
            self.answer(connection, Err(RpcError::new(INVALID_STATE, "The target is stopping")));
        }
        if self.change.is_some() {
            return Ok(worked);
        }
        let names =
            self.inventory.controllers.iter().map(|entry| entry.config.name.clone()).collect::<Vec<_>>();
        for name in &names {
            let standing = self.inventory.controllers.get(name).map(|entry| entry.standing.clone());
            if self.inventory.controllers.stop(name) {
                worked |= standing != Some(Standing::Stopping);
                if report {
                    tracing::warn!(controller = %name, "still draining");
                }
            }
        }
        let nvmf_is_gone = self.inventory.nvmf.stop();
        if !self.inventory.controllers.all_gone() || !nvmf_is_gone || !self.inventory.drives.close_all() {
            return Ok(worked);
        }
        if let Some(failure) = self.failure.take() {
            return Err(Err(failure));
        }
        let Some(server) = &mut self.server else { return Err(Ok(())) };
        server.refuse_all();
        self.was_armed = true;
        let drained = *self.drained.get_or_insert_with(|| {
            worked = true;
            now
        });
        let last = drained.after(LAST_ANSWERS_MAX);
        if server.is_drained() || now >= last {
            return Err(Ok(()));
        }
        earlier(until, Some(last));
        Ok(worked)
    }

    fn arm(&mut self, now: Instant, wakes: &mut P::Wakes) -> Poll {
        self.was_armed = true;
        self.inventory.controllers.arm(wakes);
        self.inventory.drives.arm(wakes);
        self.inventory.nvmf.arm(wakes);
        self.inventory.pending.arm(wakes);
        for job in &self.reclaiming {
            wakes.job(job);
        }
        if let Some((_, change)) = &self.change {
            change.arm(wakes);
        }
        if let Some(server) = &self.server {
            server.arm(now, wakes);
        }
        Poll::Idle { until: self.until }
    }
}
