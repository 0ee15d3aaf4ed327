//! The target's front over TCP: it listens, makes connections, and spreads them over the cores.
//!
//! It is told what is wanted as a whole ([`Wanted`]) and answers when that is in force everywhere: nothing that is not
//! wanted any more is listened at, connected, or open on any core. Names of controllers are given here and nowhere else, so
//! that no two have the same.

use super::arena::ArenaSizes;
use super::connection::Adopted;
use super::group::{Group, GroupConfig, MESSAGES_MAX, Message, Word};
use super::handshake::{Handshake, PLACE_BYTES, Progress, Request, in_command, in_data, parameter};
use crate::nvme::bits::{CNTLID_DYNAMIC, DISCOVERY_NQN, Status};
use crate::nvme::controller::{Association, Directory, Port, Subsystem};
use crate::outbox::Outbox;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use runtime::{
    CoreId, Instant, Memory, Net, Platform, Poll, Poller, Receiver, TcpListener, TcpStream, Wakes, Window,
};

/// Most connections of the target; more wait to be accepted.
const CONNECTIONS_MAX: u32 = 1024;
/// Most connections that are being made at a time; more wait to be accepted.
const HANDSHAKES_MAX: usize = 128;
/// Most connections that are accepted in a poll.
const ACCEPTED_PER_POLL: usize = 16;
/// How often the sockets are looked at on a core that never sleeps: a look is a system call.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);
/// When to accept again after the host had no handle left for a connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// The highest name of a controller; those above are reserved (section 6.3).
const CNTLID_MAX: u16 = 0xffef;
/// Words of groups that wait.
const WORDS_MAX: usize = 1024;

/// All that shall be.
pub struct Wanted<P: Platform> {
    /// A number for the answer.
    pub version: u64,
    /// The subsystems.
    pub subsystems: Vec<Subsystem<P>>,
    /// Where they shall be reached.
    pub ports: Vec<Port>,
}

/// What the front is told.
pub enum Order<P: Platform> {
    /// This shall be, and nothing else.
    Want(Wanted<P>),
    /// All connections end, and then it does.
    Stop,
}

/// What the front tells.
#[derive(Debug)]
pub enum Report {
    /// What was wanted is in force, but for these addresses, where nobody can listen.
    Settled {
        /// Of [`Wanted`].
        version: u64,
        /// The addresses, and why not.
        refused: Vec<(SocketAddr, runtime::Error)>,
    },
    /// A core's connections died with a panic; they are gone, and new ones of that core go elsewhere.
    GroupDied(CoreId),
    /// It is over.
    Stopped,
    /// It panicked, and nobody listens any more.
    Died,
}

/// A core's group, seen from here.
struct GroupEntry<P: Platform> {
    core: CoreId,
    messages: Outbox<P, Message<P>>,
    settled: u64,
    is_gone: bool,
    /// Its connections, those on their way to it included.
    connections: Arc<AtomicU32>,
}

/// The front. It lives on one core.
pub struct Front<P: Platform> {
    platform: P,
    orders: P::Receiver<Order<P>>,
    reports: Outbox<P, Report>,
    sizes: ArenaSizes,
    firmware: &'static str,
    directory: Arc<Directory<P>>,
    listeners: BTreeMap<SocketAddr, P::TcpListener>,
    handshakes: Vec<Handshake<P>>,
    /// Memory that handshakes send from, and its places that are free. Before the groups are there, none.
    places: Option<(P::Memory, Vec<usize>)>,
    groups: Vec<GroupEntry<P>>,
    words: Option<P::Receiver<Word>>,
    /// The group that is next.
    turn: usize,
    associations: BTreeMap<u16, Arc<Association>>,
    next_cntlid: u16,
    /// What is being brought in force.
    pending: Option<(u64, Vec<(SocketAddr, runtime::Error)>)>,
    is_stopping: bool,
    is_over: bool,
    look_at: Instant,
    accept_at: Instant,
    is_armed: bool,
}

impl<P: Platform> Front<P> {
    /// A front that listens nowhere yet.
    pub fn new(
        platform: P,
        orders: P::Receiver<Order<P>>,
        reports: P::Sender<Report>,
        sizes: ArenaSizes,
        firmware: &'static str,
    ) -> Self {
        // Another number than in the life before, with whatever was configured then.
        let log_generation = platform.random() >> 32;
        let directory =
            Directory { generation: 1, log_generation, subsystems: Vec::new(), ports: Vec::new() };
        Self {
            orders,
            reports: Outbox::new(reports),
            sizes,
            firmware,
            directory: Arc::new(directory),
            listeners: BTreeMap::new(),
            handshakes: Vec::new(),
            places: None,
            groups: Vec::new(),
            words: None,
            turn: 0,
            associations: BTreeMap::new(),
            next_cntlid: 1,
            pending: None,
            is_stopping: false,
            is_over: false,
            look_at: platform.now(),
            accept_at: platform.now(),
            is_armed: true,
            platform,
        }
    }

    /// Starts a group on every core.
    fn start_groups(&mut self) -> runtime::Result<()> {
        if self.places.is_some() {
            return Ok(());
        }
        let bytes = HANDSHAKES_MAX as u64 * PLACE_BYTES;
        let memory = self.platform.shared_memory("nvme-tcp-handshakes", bytes)?;
        self.places = Some((memory, (0..HANDSHAKES_MAX).rev().collect()));
        let (word_to, words) = self.platform.mailbox(WORDS_MAX);
        self.words = Some(words);
        let cores = (0..self.platform.cores()).map(CoreId);
        let boxes = cores.map(|core| (core, self.platform.mailbox(MESSAGES_MAX))).collect::<Vec<_>>();
        let senders = boxes.iter().map(|(core, (sender, _))| (*core, sender.clone())).collect::<Vec<_>>();
        for (core, (sender, messages)) in boxes {
            let connections = Arc::<AtomicU32>::default();
            let peers = senders.iter().filter(|(other, _)| *other != core);
            let config = GroupConfig {
                directory: self.directory.clone(),
                messages,
                words: word_to.clone(),
                peers: peers.map(|(_, sender)| sender.clone()).collect(),
                sizes: self.sizes,
                firmware: self.firmware,
                connections: connections.clone(),
            };
            self.platform.start(core, Box::new(move |platform| Box::new(Group::new(platform, config))));
            let messages = Outbox::new(sender);
            self.groups.push(GroupEntry { core, messages, settled: 0, is_gone: false, connections });
        }
        Ok(())
    }

    fn obey(&mut self, now: Instant) -> bool {
        let mut worked = false;
        while let Some(order) = self.orders.receive() {
            worked = true;
            match order {
                Order::Want(wanted) => self.want(wanted, now),
                Order::Stop => {
                    self.is_stopping = true;
                    self.listeners.clear();
                    self.handshakes.clear();
                    for group in &mut self.groups {
                        group.messages.push(Message::Stop);
                    }
                }
            }
        }
        worked
    }

    fn want(&mut self, wanted: Wanted<P>, now: Instant) {
        let Wanted { version, subsystems, mut ports } = wanted;
        let mut refused = Vec::new();
        if !ports.is_empty()
            && let Err(error) = self.start_groups()
        {
            refused.extend(ports.drain(..).map(|port| (port.address, error)));
        }
        self.listeners.retain(|address, _| ports.iter().any(|port| port.address == *address));
        for address in ports.iter().map(|port| port.address).collect::<Vec<_>>() {
            if self.listeners.contains_key(&address) || refused.iter().any(|(other, _)| *other == address) {
                continue;
            }
            match self.platform.net().listen(address) {
                Ok(listener) => {
                    tracing::info!(%address, "listening for NVMe/TCP");
                    if !address.ip().is_loopback() {
                        tracing::warn!(%address, "whoever reaches this address can connect: neither TLS nor authentication is configured");
                    }
                    self.listeners.insert(address, listener);
                }
                Err(error) => {
                    tracing::error!(%address, %error, "cannot listen for NVMe/TCP");
                    refused.push((address, error));
                }
            }
        }
        ports.retain(|port| self.listeners.contains_key(&port.address));
        let names = |subsystems: &[Arc<Subsystem<P>>]| {
            let facts = subsystems.iter().map(|one| (one.nqn.clone(), one.hosts.clone()));
            facts.collect::<Vec<_>>()
        };
        let subsystems = subsystems.into_iter().map(Arc::new).collect::<Vec<_>>();
        let log_changed =
            ports != self.directory.ports || names(&subsystems) != names(&self.directory.subsystems);
        let directory = Arc::new(Directory {
            generation: self.directory.generation + 1,
            log_generation: self.directory.log_generation + u64::from(log_changed),
            subsystems,
            ports,
        });
        for group in self.groups.iter_mut().filter(|group| !group.is_gone) {
            group.messages.push(Message::Directory(directory.clone()));
        }
        self.directory = directory;
        self.pending = Some((version, refused));
        self.look_at = now;
    }

    /// Takes what groups say, and says itself what follows.
    fn hear(&mut self) -> bool {
        let mut worked = false;
        while let Some(word) = self.words.as_mut().and_then(|words| words.receive()) {
            worked = true;
            let (Word::Settled(core, _) | Word::Stopped(core) | Word::Died(core)) = word;
            let Some(group) = self.groups.iter_mut().find(|group| group.core == core) else { continue };
            match word {
                Word::Settled(_, generation) => group.settled = generation,
                Word::Stopped(_) => group.is_gone = true,
                Word::Died(_) => {
                    group.is_gone = true;
                    tracing::error!(%core, "the connections of a core died with a panic; the other cores go on");
                    self.reports.push(Report::GroupDied(core));
                }
            }
        }
        let generation = self.directory.generation;
        if self.groups.iter().all(|group| group.is_gone || group.settled == generation)
            && let Some((version, refused)) = self.pending.take()
        {
            worked = true;
            self.reports.push(Report::Settled { version, refused });
        }
        if self.is_stopping && !self.is_over && self.groups.iter().all(|group| group.is_gone) {
            worked = true;
            self.is_over = true;
            self.reports.push(Report::Stopped);
        }
        worked
    }

    /// Accepts connections, if there is room.
    fn accept(&mut self, now: Instant) -> bool {
        let mut worked = false;
        let connected = self.connected();
        let Some((memory, places)) = &mut self.places else { return false };
        if now < self.accept_at {
            return false;
        }
        for (address, listener) in &mut self.listeners {
            for _ in 0..ACCEPTED_PER_POLL {
                if self.handshakes.len() as u32 + connected >= CONNECTIONS_MAX || places.is_empty() {
                    return worked;
                }
                match listener.accept() {
                    Ok(None) => break,
                    Ok(Some(stream)) => {
                        worked = true;
                        let Some(number) = places.pop() else { return worked };
                        let place = memory.window().slice(number as u64 * PLACE_BYTES, PLACE_BYTES);
                        let place = place.expect("a place lies in its memory");
                        self.handshakes.push(Handshake::new(stream, place, number, now));
                    }
                    Err(error) => {
                        tracing::warn!(%address, %error, "a connection cannot be accepted; it waits");
                        self.accept_at = now.after(ACCEPT_RETRY);
                        return worked;
                    }
                }
            }
        }
        worked
    }

    /// Goes on with the connections that are being made.
    fn shake_hands(&mut self, now: Instant) -> bool {
        let mut worked = false;
        let mut at = 0;
        while at < self.handshakes.len() {
            match self.handshakes[at].poll(now, &mut worked) {
                Progress::Waits => at += 1,
                Progress::Over => {
                    worked = true;
                    self.forget_handshake(at);
                }
                Progress::Wants(request) => match self.grant(&request, self.handshakes[at].stream.local()) {
                    Ok((association, epoch)) => {
                        let handshake = self.forget_handshake(at);
                        self.hand_over(handshake, request, association, epoch);
                    }
                    Err((status, result)) => {
                        tracing::warn!(
                            subsystem = %request.subnqn,
                            host = %request.hostnqn,
                            queue = request.queue.id,
                            "a host may not connect"
                        );
                        self.handshakes[at].refuse(&request.command, status, result, now);
                        at += 1;
                    }
                },
            }
        }
        worked
    }

    fn forget_handshake(&mut self, at: usize) -> Handshake<P> {
        let handshake = self.handshakes.swap_remove(at);
        if let Some((_, places)) = &mut self.places {
            places.push(handshake.number);
        }
        handshake
    }

    /// Finds, or makes, the association that a host wants.
    fn grant(
        &mut self,
        request: &Request,
        local: SocketAddr,
    ) -> Result<(Arc<Association>, u32), (Status, u32)> {
        let Request { subnqn, hostnqn, hostid, cntlid, queue, .. } = request;
        self.associations.retain(|_, association| Arc::strong_count(association) > 1);
        if queue.id != 0 {
            let found = self.associations.get(cntlid).filter(|found| found.subnqn == *subnqn);
            let found = found.filter(|found| !found.is_over()).ok_or(in_data(parameter::CNTLID))?;
            if found.hostnqn != *hostnqn || found.hostid != *hostid {
                return Err((Status::CONNECT_INVALID_HOST, 0));
            }
            if queue.id > found.granted() {
                return Err(in_command(parameter::QUEUE));
            }
            // The epoch first: a queue that joins while the controller is reset ends itself.
            let epoch = found.epoch();
            // Before the controller works, or twice (section 6.3).
            if !found.is_ready() || !found.join(queue.id) {
                return Err((Status::SEQUENCE_ERROR, 0));
            }
            return Ok((found.clone(), epoch));
        }
        if !self.reaches(subnqn, local) {
            return Err(in_data(parameter::SUBNQN));
        }
        let number = if subnqn == DISCOVERY_NQN {
            0
        } else {
            let subsystem = self.directory.subsystem(subnqn).ok_or(in_data(parameter::SUBNQN))?;
            if !subsystem.hosts.allow(hostnqn) {
                return Err((Status::CONNECT_INVALID_HOST, 0));
            }
            subsystem.number
        };
        if *cntlid != CNTLID_DYNAMIC {
            return Err(in_data(parameter::CNTLID));
        }
        let cntlid = self.free_cntlid();
        let association = Association::new(cntlid, subnqn.clone(), number, hostnqn.clone(), *hostid);
        let association = Arc::new(association);
        self.associations.insert(cntlid, association.clone());
        Ok((association, 0))
    }

    /// Whether a subsystem is reached by a connection to a local address: that of a listener, or one that a listener at all
    /// addresses covers.
    fn reaches(&self, subnqn: &str, local: SocketAddr) -> bool {
        let all = SocketAddr::new(if local.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, local.port());
        self.directory.is_reached(subnqn, local) || self.directory.is_reached(subnqn, all)
    }

    fn free_cntlid(&mut self) -> u16 {
        loop {
            let cntlid = self.next_cntlid;
            self.next_cntlid = if cntlid == CNTLID_MAX { 1 } else { cntlid + 1 };
            if !self.associations.contains_key(&cntlid) {
                return cntlid;
            }
        }
    }

    /// Gives a connection to the next core.
    fn hand_over(
        &mut self,
        handshake: Handshake<P>,
        request: Request,
        association: Arc<Association>,
        epoch: u32,
    ) {
        let Handshake { stream, agreed, .. } = handshake;
        let count = self.groups.len();
        let alive = (0..count).map(|step| (self.turn + step) % count).find(|at| !self.groups[*at].is_gone);
        let Some(at) = alive else {
            association.end();
            return;
        };
        self.turn = at + 1;
        tracing::info!(
            subsystem = %association.subnqn,
            host = %association.hostnqn,
            address = %stream.peer(),
            controller = association.cntlid,
            queue = request.queue.id,
            core = %self.groups[at].core,
            "a host connected"
        );
        self.groups[at].connections.fetch_add(1, Ordering::Relaxed);
        let adopted =
            Adopted { stream, agreed, queue: request.queue, association, epoch, connect: request.command };
        self.groups[at].messages.push(Message::Adopt(Box::new(adopted)));
    }

    /// Connections on all cores.
    fn connected(&self) -> u32 {
        let alive = self.groups.iter().filter(|group| !group.is_gone);
        alive.map(|group| group.connections.load(Ordering::Relaxed)).sum()
    }

    /// Whether another connection can be accepted.
    fn has_room(&self) -> bool {
        let made = self.handshakes.len() as u32 + self.connected();
        made < CONNECTIONS_MAX && self.handshakes.len() < HANDSHAKES_MAX
    }

    fn wake_at(&self, now: Instant, is_polled: bool) -> Option<Instant> {
        let listens = !self.listeners.is_empty();
        // Nobody says when a connection of another core has ended.
        let room = (listens && !self.has_room()).then(|| now.after(ACCEPT_RETRY));
        let look = (is_polled && listens).then_some(self.look_at);
        let retry = (listens && now < self.accept_at).then_some(self.accept_at);
        let handshakes = self.handshakes.iter().map(Handshake::wake_at);
        let messages = self.groups.iter().filter_map(|group| group.messages.retry_at(now));
        let reports = self.reports.retry_at(now);
        look.into_iter().chain(retry).chain(room).chain(handshakes).chain(messages).chain(reports).min()
    }
}

impl<P: Platform> Poller<P> for Front<P> {
    fn poll(&mut self, now: Instant) -> Poll {
        let mut worked = self.obey(now);
        worked |= self.hear();
        if core::mem::take(&mut self.is_armed) || now >= self.look_at || !self.handshakes.is_empty() {
            self.look_at = now.after(LOOK_INTERVAL);
            worked |= self.accept(now);
            worked |= self.shake_hands(now);
        }
        for group in self.groups.iter_mut().filter(|group| !group.is_gone) {
            worked |= group.messages.flush();
        }
        worked |= self.reports.flush();
        if self.is_over && self.reports.is_empty() {
            return Poll::Done;
        }
        if worked { Poll::Busy } else { Poll::Idle { until: self.wake_at(now, true) } }
    }

    fn arm(&mut self, now: Instant, wakes: &mut P::Wakes) -> Poll {
        self.is_armed = true;
        wakes.mailbox(&self.orders);
        if let Some(words) = &self.words {
            wakes.mailbox(words);
        }
        if now >= self.accept_at && self.has_room() {
            for listener in self.listeners.values() {
                wakes.tcp_listener(listener);
            }
        }
        for handshake in &self.handshakes {
            handshake.arm(wakes);
        }
        Poll::Idle { until: self.wake_at(now, false) }
    }
}

impl<P: Platform> Drop for Front<P> {
    fn drop(&mut self) {
        if !self.is_over {
            // The core dropped it: it panicked.
            self.reports.last_word(Report::Died);
        }
    }
}
