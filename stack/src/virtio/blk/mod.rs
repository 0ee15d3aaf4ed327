//! The virtio block device (section 5.2): its queues, on one core, over one channel of a bdev.
//!
//! The device knows nothing of who speaks to the front-end: a transport (vhost-user) sets features, starts and stops
//! queues and lends guest memory for the time of a poll. A queue whose ring cannot be believed stops itself, alone.

mod budget;
mod config;
mod queue;
mod request;
mod slots;

pub use config::{CONFIG_LEN, MAX_QUEUES, SECTOR_SIZE, WRITEBACK_OFFSET, features};

use self::budget::Budget;
use self::config::encode;
use self::queue::{Queue, Work};
use self::request::{ID_LEN, Rules};
use self::slots::Slots;
use super::bell::Bell;
use super::features as ring_features;
use super::inflight::InflightError;
use super::log::DirtyLog;
use super::memory::GuestMemory;
use super::ring::{Layout, LogAddresses};
use super::split::{Areas, RingError};
use crate::block::{Bdev, Channel, Completion, Geometry, GoneChannel};
use crate::events;
use crate::reached::Reached;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;
use runtime::{Event, Instant, Notifier, Platform, Wakes, Window};

/// Bytes that the device keeps beside the inflight region, for its next life: see [`BlkDevice::keep_writeback_in`].
pub const KEPT_LEN: u64 = 8;
/// What a kept word holds beside the driver's `writeback` (bit 0), so that a garbled one is recognised.
const KEPT_MAGIC: u64 = u64::from_le_bytes(*b"\0rpr-wce");

/// What a device is made with.
#[derive(Clone, Copy, Debug)]
pub struct BlkOptions {
    /// Refuse writes, whatever the bdev allows.
    pub read_only: bool,
    /// Offer packed rings.
    pub packed_ring: bool,
    /// The device's number in the flight recorder.
    pub device: u16,
}

/// What a queue is started with. The windows come from the front-end's addresses; their lengths and alignments are
/// checked when the queue starts.
pub struct QueueConfig<P: Platform> {
    /// Number of entries.
    pub size: u16,
    /// Where the ring goes on, as the front-end has it (`SET_VRING_BASE`): split, the next available index; packed, the
    /// next available position and, in the upper half, the next used one. An inflight region that tracked the ring
    /// before knows better and wins.
    pub base: u32,
    /// The descriptor table; packed, the ring.
    pub descriptors: P::Window,
    /// The driver area.
    pub available: P::Window,
    /// The device area.
    pub used: P::Window,
    /// Where writes to the ring are to be logged, if they are.
    pub log_addresses: Option<LogAddresses>,
    /// This queue's part of the inflight region.
    pub inflight: Option<P::Window>,
}

/// Why a queue did not start, or stopped itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// There is no such queue.
    Index(u16),
    /// It runs already.
    Started,
    /// What the driver accepted is not known, and with it how to read the ring.
    Features,
    /// The ring.
    Ring(RingError),
    /// The inflight region.
    Inflight(InflightError),
    /// The inflight region is laid out for other rings: the front-end had it before the driver's features.
    InflightLayout {
        /// What it is for.
        region: Layout,
        /// What the driver accepted.
        ring: Layout,
    },
}

impl From<RingError> for QueueError {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl From<InflightError> for QueueError {
    fn from(error: InflightError) -> Self {
        Self::Inflight(error)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "queue {index}: there are {MAX_QUEUES}"),
            Self::Started => f.write_str("the queue runs already"),
            Self::Features => f.write_str("the features that the driver accepted are not known"),
            Self::Ring(error) => error.fmt(f),
            Self::Inflight(error) => error.fmt(f),
            Self::InflightLayout { region, ring } => {
                write!(f, "the inflight region is for {region:?} rings, the driver uses {ring:?} ones")
            }
        }
    }
}

impl QueueError {
    /// The point that it is.
    pub(crate) const fn reached(self) -> Reached {
        match self {
            Self::Index(_) | Self::Started | Self::Features => Reached::QueueMisused,
            Self::Ring(error) => error.reached(),
            Self::Inflight(error) => error.reached(),
            Self::InflightLayout { .. } => Reached::RegionLayout,
        }
    }
}

/// What a front-end gave for a queue, started or not.
struct Port<P: Platform> {
    kick: Bell<P::Notifier>,
    call: Bell<P::Notifier>,
    error: Bell<P::Notifier>,
    enabled: bool,
}

impl<P: Platform> Default for Port<P> {
    fn default() -> Self {
        Self { kick: Bell::Unset, call: Bell::Unset, error: Bell::Unset, enabled: false }
    }
}

/// What a message of the transport is to tell the front-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The queue has given something back.
    Call(u16),
    /// The queue is of no use.
    Error(u16),
}

/// A queue that runs.
struct Started<P: Platform> {
    index: u16,
    queue: Queue<P>,
    /// It stopped itself and takes no more.
    broken: bool,
}

/// A virtio-blk device.
pub struct BlkDevice<P: Platform> {
    platform: P,
    bdev: Arc<dyn Bdev<P>>,
    channel: Box<dyn Channel<P>>,
    /// What takes the bdev's place once nothing is in flight; no request is taken before.
    successor: Option<Arc<dyn Bdev<P>>>,
    /// It took their place since somebody asked.
    rebound: bool,
    options: BlkOptions,
    id: [u8; ID_LEN],
    /// What the driver accepted; `None` until it is told.
    features: Option<u64>,
    /// The driver's `writeback`, where it may set it.
    writeback: bool,
    /// Where the next life of the target finds it.
    kept: Option<P::Window>,
    rules: Rules,
    ports: Box<[Port<P>]>,
    /// Where no notifier was given, the transport's messages tell.
    messages: bool,
    /// Running queues, by index.
    started: Vec<Started<P>>,
    /// The place in `started` of the queue whose turn it is.
    turn: usize,
    slots: Slots<P::Window>,
    broken: Vec<(u16, QueueError)>,
    log: Option<DirtyLog<P>>,
    paused: bool,
    /// Notifications were asked for: the kicks must be taken.
    armed: bool,
    completions: Vec<Completion>,
}

impl<P: Platform> BlkDevice<P> {
    /// A device over a bdev's channel of this core.
    pub fn new(
        platform: P,
        bdev: Arc<dyn Bdev<P>>,
        channel: Box<dyn Channel<P>>,
        options: BlkOptions,
    ) -> Self {
        let mut id = [0; ID_LEN];
        let name = bdev.name().as_bytes();
        let len = name.len().min(ID_LEN);
        id[..len].copy_from_slice(&name[..len]);
        let rules = Rules {
            geometry: bdev.geometry(),
            read_only: false,
            write_through: true,
            discard: false,
            write_zeroes: false,
        };
        let mut device = Self {
            platform,
            bdev,
            channel,
            successor: None,
            rebound: false,
            options,
            id,
            features: None,
            writeback: true,
            kept: None,
            rules,
            ports: (0..MAX_QUEUES).map(|_| Port::default()).collect(),
            messages: false,
            started: Vec::new(),
            turn: 0,
            slots: Slots::new(),
            broken: Vec::new(),
            log: None,
            paused: false,
            armed: false,
            completions: Vec::new(),
        };
        device.update_rules();
        device
    }

    /// Whether devices reach the payload by themselves, so that guest memory is mapped for them.
    #[must_use]
    pub fn is_reached_by_devices(&self) -> bool {
        self.bdev.is_reached_by_devices()
    }

    fn geometry_read_only(&self, geometry: &Geometry) -> bool {
        self.options.read_only || geometry.read_only
    }

    /// All feature bits that the device offers, those of the rings and of vhost-user included.
    #[must_use]
    pub fn offered_features(&self) -> u64 {
        let geometry = self.bdev.geometry();
        let mut offered = ring_features::LOG_ALL
            | ring_features::ANY_LAYOUT
            | ring_features::INDIRECT_DESC
            | ring_features::EVENT_IDX
            | ring_features::PROTOCOL_FEATURES
            | ring_features::VERSION_1
            | features::SEG_MAX
            | features::BLK_SIZE
            | features::FLUSH
            | features::TOPOLOGY
            | features::CONFIG_WCE
            | features::MQ;
        if self.options.packed_ring {
            offered |= ring_features::RING_PACKED;
        }
        if self.geometry_read_only(&geometry) {
            return offered | features::RO;
        }
        offered |= features::WRITE_ZEROES;
        if geometry.discard {
            offered |= features::DISCARD;
        }
        offered
    }

    /// Takes what the driver accepted. `Err`: bits that were never offered. Running queues keep the ring features that
    /// they were started with; `LOG_ALL` takes effect at once.
    pub fn set_features(&mut self, features: u64) -> Result<(), u64> {
        let strange = features & !self.offered_features();
        if strange != 0 {
            return Err(strange);
        }
        let newly = features & !self.features();
        self.features = Some(features);
        if newly & features::CONFIG_WCE != 0 && features & features::FLUSH == 0 {
            // Section 5.2.5.2: write-through until told otherwise when FLUSH was not accepted with it.
            self.writeback = false;
            self.store_writeback();
        }
        self.update_rules();
        Ok(())
    }

    /// Gives the device [`KEPT_LEN`] bytes of memory that outlive the process, zeroed when the driver starts (they lie
    /// behind the inflight region, which has just that life). A front-end does not tell a restarted back-end what the
    /// driver set `writeback` to; a back-end that forgot it would complete writes that are not durable to a driver that
    /// was promised they are. Garbage there counts as write-through, the mode that promises more.
    ///
    /// A window that holds the setting of a former life: it is taken over, and the answer is `true`. A fresh one is
    /// given the setting as it stands if that is `known` to be what the front-end shows to its driver.
    pub fn keep_writeback_in(&mut self, window: Option<P::Window>, known: bool) -> bool {
        self.kept = window;
        let found = self.kept.map_or(0, |window| window.load_u64(0, Ordering::Relaxed));
        if found != 0 {
            Reached::WriteCacheRecovered.mark::<P::Window>();
            self.set_writeback(found == KEPT_MAGIC | 1);
        } else if known {
            self.store_writeback();
        }
        found != 0
    }

    /// The driver's `writeback` as it stands.
    #[must_use]
    pub fn writeback(&self) -> bool {
        self.writeback
    }

    fn store_writeback(&self) {
        if let Some(window) = &self.kept {
            window.store_u64(0, KEPT_MAGIC | u64::from(self.writeback), Ordering::Release);
        }
    }

    /// What the driver accepted; 0 until it is told.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features.unwrap_or(0)
    }

    /// Whether it is known what the driver accepted. No queue starts before.
    #[must_use]
    pub fn has_features(&self) -> bool {
        self.features.is_some()
    }

    /// The layout of rings that the driver accepted; split until it is told.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout::of(self.features())
    }

    /// The driver is gone, and what it accepted with it. All queues are stopped.
    pub fn forget_features(&mut self) {
        self.features = None;
        self.update_rules();
    }

    /// Whether writes must be durable when they complete (section 5.2.6.2).
    fn write_through(&self) -> bool {
        if self.features() & features::CONFIG_WCE != 0 {
            !self.writeback
        } else {
            self.features() & features::FLUSH == 0
        }
    }

    fn update_rules(&mut self) {
        let geometry = self.bdev.geometry();
        self.rules = Rules {
            geometry,
            read_only: self.geometry_read_only(&geometry),
            write_through: self.write_through(),
            discard: self.features() & features::DISCARD != 0,
            write_zeroes: self.features() & features::WRITE_ZEROES != 0,
        };
    }

    /// Goes over to another bdev in the place of one that is gone, as soon as nothing is in flight.
    pub fn rebind(&mut self, bdev: Arc<dyn Bdev<P>>) {
        self.successor = Some(bdev);
    }

    /// Whether it went over to another bdev since the last call. Telling the driver is the transport's part.
    pub fn take_rebound(&mut self) -> bool {
        core::mem::take(&mut self.rebound)
    }

    fn succeed(&mut self) -> bool {
        if self.successor.is_none() || self.in_flight() > 0 {
            return false;
        }
        let Some(bdev) = self.successor.take() else { return false };
        // The old channel goes first: both may want the same queue of the same drive.
        self.channel = Box::new(GoneChannel::default());
        match bdev.channel(&self.platform) {
            Ok(channel) => self.channel = channel,
            Err(error) => {
                tracing::error!(bdev = bdev.name(), %error, "the bdev that came cannot be used on this core");
            }
        }
        (self.bdev, self.rebound) = (bdev, true);
        self.update_rules();
        true
    }

    /// The bdev changed its size: takes it over. Telling the driver is the transport's part.
    pub fn resized(&mut self) {
        self.update_rules();
    }

    /// Reads the configuration space. `false`: the range does not lie inside of it.
    #[must_use]
    pub fn read_config(&self, offset: u32, into: &mut [u8]) -> bool {
        let config = encode(&self.rules.geometry, self.writeback);
        let Some(from) = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)) else {
            return false;
        };
        if into.len() > from.len() {
            return false;
        }
        into.copy_from_slice(&from[..into.len()]);
        true
    }

    /// Writes the configuration space. A driver may write `writeback` only, and only 0 or 1; a migration may restore
    /// the whole of it, of which `writeback` is taken and all else is the bdev's. `false`: refused, nothing changed.
    pub fn write_config(&mut self, offset: u32, bytes: &[u8], live_migration: bool) -> bool {
        let value = if live_migration {
            let Some(at) = WRITEBACK_OFFSET.checked_sub(offset) else { return true };
            match bytes.get(at as usize) {
                Some(value) => *value,
                None => return true,
            }
        } else {
            match bytes {
                [value] if offset == WRITEBACK_OFFSET => *value,
                _ => return false,
            }
        };
        if value > 1 || (!live_migration && self.features() & features::CONFIG_WCE == 0) {
            return false;
        }
        self.writeback = value == 1;
        self.store_writeback();
        self.update_rules();
        true
    }

    /// Sets `writeback` as it stands before a driver writes it: what the front-end shows to its driver and what the
    /// device does must agree.
    pub fn set_writeback(&mut self, writeback: bool) {
        self.writeback = writeback;
        self.store_writeback();
        self.update_rules();
    }

    /// Starts a queue: checks its areas, and finalises recovery from its inflight region. Requests of a dead life are
    /// submitted again in their order by the next polls, and the driver is notified once whatever happens.
    pub fn start_queue(&mut self, index: u16, config: QueueConfig<P>) -> Result<(), QueueError> {
        if index >= MAX_QUEUES {
            return Err(QueueError::Index(index));
        }
        let Err(at) = self.started.binary_search_by_key(&index, |started| started.index) else {
            return Err(QueueError::Started);
        };
        let features = self.features.ok_or(QueueError::Features)?;
        let mut queue = Queue::start(index, config, features)?;
        if self.ports[usize::from(index)].call.is_message() {
            // The one that told of what was given back last may have gone down with its connection.
            queue.notify_next();
        }
        self.record(events::Kind::QueueStarted, index, queue.size(), u64::from(queue.base()));
        for head in queue.backlog() {
            self.record(events::Kind::RequestReplayed, index, 0, u64::from(*head));
        }
        self.started.insert(at, Started { index, queue, broken: false });
        Ok(())
    }

    /// Whether the queue runs.
    #[must_use]
    pub fn is_started(&self, index: u16) -> bool {
        self.find(index).is_some()
    }

    /// Number of queues that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.started.len()
    }

    fn find(&self, index: u16) -> Option<usize> {
        self.started.binary_search_by_key(&index, |started| started.index).ok()
    }

    fn queue_mut(&mut self, index: u16) -> Option<&mut Queue<P>> {
        self.find(index).map(|at| &mut self.started[at].queue)
    }

    /// Enables or disables a queue, running or not. A disabled queue takes nothing; a kick that came before is not
    /// lost, since the ring itself is looked at as soon as the queue is enabled.
    pub fn set_enabled(&mut self, index: u16, enabled: bool) {
        self.ports[usize::from(index)].enabled = enabled;
    }

    /// Sets what the driver rings; `None`: nothing, the queue is to be looked at all the time.
    pub fn set_kick(&mut self, index: u16, notifier: Option<P::Notifier>) {
        self.ports[usize::from(index)].kick = Bell::given(notifier);
    }

    /// Forgets what the driver rings.
    pub fn forget_kick(&mut self, index: u16) {
        self.ports[usize::from(index)].kick = Bell::unsaid(self.messages);
    }

    /// Sets what the driver is told by; `None`: nothing, it looks by itself. A running queue rings the new one once: what
    /// was told on the old one may have been lost.
    pub fn set_call(&mut self, index: u16, notifier: Option<P::Notifier>) {
        self.ports[usize::from(index)].call = Bell::given(notifier);
        if let Some(queue) = self.queue_mut(index) {
            queue.notify_next();
        }
    }

    /// Sets what the front-end is told of a broken ring by; `None`: nothing.
    pub fn set_error(&mut self, index: u16, notifier: Option<P::Notifier>) {
        self.ports[usize::from(index)].error = Bell::given(notifier);
    }

    /// From now on messages of the transport tell, or no more, both sides of all queues whatever nothing else was said of:
    /// a kick makes the transport poll the device, and what is due to the front-end is taken by [`BlkDevice::take_due`].
    pub fn set_messages(&mut self, messages: bool) {
        self.messages = messages;
        for Port { kick, call, error, .. } in &mut self.ports {
            [kick, call, error].into_iter().for_each(|bell| bell.set_messages(messages));
        }
    }

    /// Takes what messages of the transport are to tell, each once however often it was rung.
    pub fn take_due(&self, mut each: impl FnMut(Due)) {
        for (index, Port { call, error, .. }) in (0..).zip(&self.ports) {
            if error.take_due() {
                each(Due::Error(index));
            }
            if call.take_due() {
                each(Due::Call(index));
            }
        }
    }

    /// Forgets what the front-end gave for a queue.
    pub fn forget_port(&mut self, index: u16) {
        self.ports[usize::from(index)] = Port::default();
    }

    /// Tells the front-end that a queue is of no use.
    pub fn signal_error(&self, index: u16) {
        self.ports[usize::from(index)].error.ring();
    }

    /// Moves a running queue to other windows onto the same memory. Only while the device is paused and idle.
    pub fn rebase_queue(
        &mut self,
        index: u16,
        descriptors: P::Window,
        available: P::Window,
        used: P::Window,
    ) -> Result<(), QueueError> {
        let areas = Areas { descriptors, available, used };
        self.queue_mut(index).ok_or(QueueError::Index(index))?.rebase(areas).map_err(QueueError::from)
    }

    /// Begins or ends logging of writes to a queue's ring.
    pub fn set_log_addresses(&mut self, index: u16, addresses: Option<LogAddresses>) {
        if let Some(queue) = self.queue_mut(index) {
            queue.set_log_addresses(addresses);
        }
    }

    /// Sets or removes the dirty log; it is written while the driver's features have `LOG_ALL`.
    pub fn set_log(&mut self, log: Option<DirtyLog<P>>) {
        self.log = log;
    }

    /// Whether what is written to guest memory is logged.
    #[must_use]
    pub fn logs(&self) -> bool {
        self.log.is_some() && self.features() & ring_features::LOG_ALL != 0
    }

    /// Whether the memory below the dirty log went away.
    #[must_use]
    pub fn is_log_lost(&self) -> bool {
        self.log.as_ref().is_some_and(DirtyLog::is_lost)
    }

    /// Takes no new request from any queue until [`BlkDevice::resume`]; what was taken goes on.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Ends a pause.
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Requests taken and not yet published, over all queues.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.started.iter().map(|started| usize::from(started.queue.in_flight())).sum()
    }

    /// Requests taken and not yet published of one queue.
    #[must_use]
    pub fn in_flight_of(&self, index: u16) -> usize {
        self.find(index).map_or(0, |at| usize::from(self.started[at].queue.in_flight()))
    }

    /// The queue takes no more; what it took is drained by further polls.
    pub fn begin_stop(&mut self, index: u16) {
        if let Some(queue) = self.queue_mut(index) {
            queue.stop_taking();
        }
    }

    /// Removes a queue that is drained, and gives its base. A notification that the driver is owed (it may
    /// not have been told of what a dead life published) is given first: nobody else would give it.
    pub fn finish_stop(&mut self, index: u16) -> u32 {
        let Some(at) = self.find(index) else { return 0 };
        let Started { queue, .. } = self.started.remove(at);
        assert_eq!(queue.in_flight(), 0, "a queue is removed only when it is drained");
        if queue.owes_notification() && self.ports[usize::from(index)].call.tells() {
            Reached::NotificationAtStop.mark::<P::Window>();
            self.ports[usize::from(index)].call.ring();
        }
        self.record(events::Kind::QueueStopped, index, queue.size(), u64::from(queue.base()));
        queue.base()
    }

    /// A queue that stopped itself since the last call, and why.
    pub fn take_broken(&mut self) -> Option<(u16, QueueError)> {
        self.broken.pop()
    }

    /// Takes, submits, completes and publishes what there is. Whether there was anything.
    pub fn poll(&mut self, now: Instant, memory: &GuestMemory<P>) -> bool {
        if self.armed {
            self.armed = false;
            for Started { index, .. } in &self.started {
                if let Bell::Notifier(kick) = &self.ports[usize::from(*index)].kick {
                    kick.take();
                }
            }
        }
        let mut any = self.succeed();
        let holds = self.paused || self.successor.is_some();
        let logs = self.logs();
        let mut work = Work {
            platform: &self.platform,
            channel: &mut *self.channel,
            budget: Budget::new(),
            memory: memory.lookup(),
            log: self.log.as_ref().filter(|_| logs),
            rules: &self.rules,
            id: &self.id,
            device: self.options.device,
            recording: self.platform.is_recording(),
            now,
        };
        let queues = self.started.len();
        let turn = if self.turn < queues { self.turn } else { 0 };
        let (earlier, later) = self.started.split_at_mut(turn);
        let mut missed = None;
        for (place, Started { index, queue, broken }) in (turn..).zip(later.iter_mut().chain(earlier)) {
            if missed.is_none() && (work.budget.is_spent() || self.slots.are_used_up()) {
                let spent = work.budget.is_spent();
                if spent { Reached::BudgetSpent } else { Reached::SlotsUsedUp }.mark::<P::Window>();
                missed = Some(place);
            }
            let port = &self.ports[usize::from(*index)];
            match queue.take(holds || !port.enabled || *broken, &mut self.slots, &mut work) {
                Ok(took) => any |= took,
                Err(error) => {
                    error.reached().mark::<P::Window>();
                    tracing::error!(device = work.device, queue = *index, %error, "the ring is broken and stops");
                    *broken = true;
                    self.broken.push((*index, error.into()));
                    port.error.ring();
                    any = true;
                }
            }
        }
        self.turn = missed.map_or(turn, |place| place % queues);
        any |= work.channel.poll(now, &mut self.completions);
        for completion in self.completions.drain(..) {
            let (index, head) = ((completion.token >> 16) as u16, completion.token as u16);
            let at = self.started.binary_search_by_key(&index, |started| started.index);
            let at = at.unwrap_or_else(|_| unreachable!("a queue is removed only when it is drained"));
            self.started[at].queue.completed(head, &completion, &mut self.slots, &mut work);
            any = true;
        }
        for Started { index, queue, .. } in &mut self.started {
            any |= queue.publish(&self.ports[usize::from(*index)], &work);
        }
        any
    }

    /// Before sleep: asks drivers for notifications and registers what may wake the device. Whether there is work
    /// after all.
    pub fn arm(&mut self, wakes: &mut P::Wakes) -> bool {
        self.armed = true;
        let log = self.log.as_ref().filter(|_| self.logs());
        let mut any = false;
        for Started { index, queue, broken } in &mut self.started {
            let port = &self.ports[usize::from(*index)];
            if !port.enabled || self.paused || *broken {
                continue;
            }
            // An error here is found, and told, by the next poll.
            any |= queue.arm(log).unwrap_or(true);
            match &port.kick {
                Bell::Notifier(kick) => wakes.notifier(kick),
                // It comes to the transport, which registers its own.
                Bell::Message(_) => {}
                Bell::Polling | Bell::Unset => any = true,
            }
        }
        self.channel.arm(wakes);
        any
    }

    /// The earliest moment at which the device wants to be polled though nothing changed.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.channel.wake_at()
    }

    fn record(&self, kind: events::Kind, queue: u16, detail: u16, a: u64) {
        let at_ns = self.platform.now().0;
        let device = self.options.device;
        self.platform.record(Event { at_ns, kind: kind as u16, device, queue, detail, a, b: 0 });
    }
}
