//! The connections of one core: polled in turn, over one arena and one set of channels a subsystem.
//!
//! What happens on other cores is told by messages: connections come, the directory is another one, a controller is gone or
//! was reset. The panic of a connection takes its group with it, and the target says so; other cores go on.

use super::LIMITS;
use super::arena::{Arena, ArenaSizes};
use super::connection::{Adopted, Connection, Ending, Role, Standing, Work};
use crate::block::Completion;
use crate::nvme::controller::{Channels, Controller, Directory};
use crate::outbox::Outbox;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use runtime::{CoreId, Instant, Platform, Poll, Poller, Receiver, Sender, Wakes};

/// Messages that wait for a group.
pub(super) const MESSAGES_MAX: usize = 256;
/// How often the stream of a connection is looked at that had nothing to do for [`QUIET`], on a core that never sleeps: a
/// look is a system call.
const LOOK_INTERVAL: Duration = Duration::from_micros(50);
/// After how long without work a connection is looked at less often.
const QUIET: Duration = Duration::from_millis(1);

/// What a group is told.
pub(super) enum Message<P: Platform> {
    /// A connection, accepted and connected.
    Adopt(Box<Adopted<P>>),
    /// What is configured now.
    Directory(Arc<Directory<P>>),
    /// A controller elsewhere is gone, or was reset.
    Look,
    /// Everything ends.
    Stop,
}

/// What a group tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Nothing is left of what was there before this directory.
    Settled(CoreId, u64),
    /// It is over, and holds nothing.
    Stopped(CoreId),
    /// It panicked.
    Died(CoreId),
}

/// What a group is made with.
pub(super) struct GroupConfig<P: Platform> {
    pub(super) directory: Arc<Directory<P>>,
    pub(super) messages: P::Receiver<Message<P>>,
    pub(super) words: P::Sender<Word>,
    /// The other groups'.
    pub(super) peers: Vec<P::Sender<Message<P>>>,
    pub(super) sizes: ArenaSizes,
    pub(super) firmware: &'static str,
    /// The group's connections, those on their way included.
    pub(super) connections: Arc<AtomicU32>,
}

/// A connection, and when it is looked at.
struct Entry<P: Platform> {
    connection: Connection<P>,
    /// When it last had something to do.
    active_at: Instant,
    look_at: Instant,
    /// What peers know of the association, of an admin queue: whether it is over, and its epoch.
    told: (bool, u32),
}

/// A core's connections.
pub(super) struct Group<P: Platform> {
    platform: P,
    config: GroupConfig<P>,
    words: Outbox<P, Word>,
    /// Made with the first connection.
    arena: Option<Arena<P>>,
    entries: Vec<Option<Entry<P>>>,
    channels: BTreeMap<u64, Channels<P>>,
    /// The newest directory of which it was told that it is settled.
    settled: u64,
    is_stopping: bool,
    is_armed: bool,
    is_over: bool,
    completions: Vec<Completion>,
}

impl<P: Platform> Group<P> {
    pub(super) fn new(platform: P, config: GroupConfig<P>) -> Self {
        Self {
            words: Outbox::new(config.words.clone()),
            settled: 0,
            platform,
            config,
            arena: None,
            entries: Vec::new(),
            channels: BTreeMap::new(),
            is_stopping: false,
            is_armed: true,
            is_over: false,
            completions: Vec::new(),
        }
    }

    /// Does what it was told.
    fn obey(&mut self, now: Instant) -> bool {
        let mut worked = false;
        while let Some(message) = self.config.messages.receive() {
            worked = true;
            match message {
                Message::Adopt(adopted) => self.adopt(*adopted, now),
                Message::Directory(directory) => self.reconfigure(directory),
                Message::Look => {}
                Message::Stop => self.is_stopping = true,
            }
        }
        if self.is_stopping {
            for entry in self.entries.iter_mut().flatten() {
                entry.connection.end(Ending::Stopped);
            }
        }
        worked
    }

    fn adopt(&mut self, adopted: Adopted<P>, now: Instant) {
        let Adopted { queue, epoch, connect, .. } = adopted;
        let association = adopted.association.clone();
        let subsystem = association.subsystem;
        let role = if queue.id == 0 {
            let keep_alive_ms = connect.as_connect().keep_alive_ms;
            let directory = self.config.directory.clone();
            let firmware = self.config.firmware;
            let controller =
                Controller::new(association.clone(), directory, LIMITS, firmware, keep_alive_ms, now);
            Role::Admin(Box::new(controller))
        } else {
            Role::Io { association: association.clone(), epoch }
        };
        let number = self.entries.iter().position(Option::is_none).unwrap_or(self.entries.len());
        let made = match &self.arena {
            Some(_) => Ok(()),
            None => Arena::new(&self.platform, self.config.sizes).map(|arena| self.arena = Some(arena)),
        };
        let made = made.and_then(|()| Connection::new(&self.platform, adopted, number as u32, role, now));
        let connection = match made {
            Ok(connection) => connection,
            Err(error) => {
                tracing::error!(host = %association.hostnqn, %error, "no memory for a connection");
                if queue.id != 0 {
                    association.leave(queue.id);
                }
                self.config.connections.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        };
        if queue.id != 0
            && let Some(subsystem) = self.config.directory.numbered(subsystem)
        {
            match self.channels.get_mut(&subsystem.number) {
                Some(channels) => channels.update(Some(subsystem)),
                None => {
                    let channels = Channels::new(self.platform.clone(), subsystem);
                    self.channels.insert(subsystem.number, channels);
                }
            }
        }
        let entry = Entry { connection, active_at: now, look_at: now, told: (false, epoch) };
        if number == self.entries.len() {
            self.entries.push(Some(entry));
        } else {
            self.entries[number] = Some(entry);
        }
    }

    fn reconfigure(&mut self, directory: Arc<Directory<P>>) {
        for entry in self.entries.iter_mut().flatten() {
            entry.connection.reconfigured(&directory);
            let number = entry.connection.association().subsystem;
            if number != 0 && directory.numbered(number).is_none() {
                entry.connection.end(Ending::Stopped);
            }
        }
        for (number, channels) in &mut self.channels {
            channels.update(directory.numbered(*number).map(|subsystem| &**subsystem));
        }
        self.config.directory = directory;
    }

    /// Polls the connections: what came, then what disks have ended, then what is to be sent.
    fn serve(&mut self, now: Instant) -> bool {
        let Some(arena) = &mut self.arena else { return false };
        let mut worked = false;
        let look = core::mem::take(&mut self.is_armed);
        for entry in self.entries.iter_mut().flatten() {
            if !look && now < entry.look_at && !entry.connection.is_busy() {
                continue;
            }
            let number = entry.connection.association().subsystem;
            let channels = self.channels.get_mut(&number);
            if entry.connection.poll(&mut Work { now, arena, channels }) {
                worked = true;
                entry.active_at = now;
            }
            let is_quiet = now >= entry.active_at.after(QUIET);
            entry.look_at = if is_quiet { now.after(LOOK_INTERVAL) } else { now };
        }
        for channels in self.channels.values_mut() {
            worked |= channels.poll(now, &mut self.completions);
            for Completion { token, result } in self.completions.drain(..) {
                let (number, slot) = ((token >> 16) as usize, token as u16);
                let entry =
                    self.entries[number].as_mut().expect("a connection stays while a disk has I/O of it");
                let mut work = Work { now, arena, channels: Some(&mut *channels) };
                entry.connection.completed(&mut work, slot, result);
                worked = true;
            }
        }
        for entry in self.entries.iter_mut().flatten() {
            worked |= entry.connection.flush(now);
        }
        worked
    }

    /// Lets go of what is over, and tells the others of controllers that are.
    fn reap(&mut self) -> bool {
        let Some(arena) = &mut self.arena else { return false };
        let mut worked = false;
        for place in &mut self.entries {
            let Some(entry) = place else { continue };
            if let Role::Admin(controller) = &entry.connection.role {
                let association = controller.association();
                let is = (association.is_over(), association.epoch());
                if is != entry.told {
                    entry.told = is;
                    worked = true;
                    for peer in &self.config.peers {
                        // One that is full has something to look at anyway.
                        let _ = peer.send(Message::Look);
                    }
                }
            }
            if entry.connection.is_gone()
                && let Some(entry) = place.take()
            {
                worked = true;
                entry.connection.dissolve(arena);
                self.config.connections.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let entries = &self.entries;
        self.channels.retain(|number, channels| {
            let mut users = entries.iter().flatten().map(|entry| &entry.connection);
            let used = users.any(|one| one.queue.id != 0 && one.association().subsystem == *number);
            if used {
                return true;
            }
            channels.update(None);
            channels.has_retired()
        });
        worked
    }

    /// Says that nothing of an older directory is left, once it is so.
    fn settle(&mut self) -> bool {
        let generation = self.config.directory.generation;
        if self.settled == generation {
            return false;
        }
        let is_old = |entry: &Entry<P>| {
            let number = entry.connection.association().subsystem;
            number != 0 && self.config.directory.numbered(number).is_none()
        };
        let has_old =
            self.entries.iter().flatten().any(is_old) || self.channels.values().any(Channels::has_retired);
        if has_old {
            return false;
        }
        self.settled = generation;
        self.words.push(Word::Settled(self.platform.here(), generation));
        true
    }

    fn wake_at(&self, now: Instant, is_polled: bool) -> Option<Instant> {
        let connections = self.entries.iter().flatten().flat_map(|entry| {
            // A core that sleeps is woken by the stream.
            let look = (is_polled && entry.connection.standing != Standing::Closed).then_some(entry.look_at);
            look.into_iter().chain(entry.connection.wake_at(now))
        });
        let channels = self.channels.values().filter_map(Channels::wake_at);
        connections.chain(channels).chain(self.words.retry_at(now)).min()
    }
}

impl<P: Platform> Poller<P> for Group<P> {
    fn poll(&mut self, now: Instant) -> Poll {
        let mut worked = self.obey(now);
        worked |= self.serve(now);
        worked |= self.reap();
        worked |= self.settle();
        if self.is_stopping
            && !self.is_over
            && self.entries.iter().all(Option::is_none)
            && self.channels.is_empty()
        {
            self.is_over = true;
            self.words.push(Word::Stopped(self.platform.here()));
        }
        worked |= self.words.flush();
        if self.is_over && self.words.is_empty() {
            return Poll::Done;
        }
        if worked { Poll::Busy } else { Poll::Idle { until: self.wake_at(now, true) } }
    }

    fn arm(&mut self, now: Instant, wakes: &mut P::Wakes) -> Poll {
        self.is_armed = true;
        wakes.mailbox(&self.config.messages);
        for entry in self.entries.iter().flatten() {
            entry.connection.arm(wakes);
        }
        for channels in self.channels.values() {
            channels.arm(wakes);
        }
        Poll::Idle { until: self.wake_at(now, false) }
    }
}

impl<P: Platform> Drop for Group<P> {
    fn drop(&mut self) {
        if !self.is_over {
            // The core dropped it: it panicked.
            self.words.last_word(Word::Died(self.platform.here()));
        }
    }
}
