//! What a front-end has said of each ring, and when a ring starts and stops ("Ring states").
//!
//! A ring has two independent states, started or stopped, enabled or disabled. The messages that describe it may come
//! in any order, and the memory that it lies in may come after it, or go and come again. So nothing is done at a
//! certain message: after each one that may matter, [`Rings::start_ready`] starts the rings that have everything.
//! Recovery from the inflight region is part of a ring's start, and so is final whatever came first.
//!
//! How a ring is to be read follows from the features that the driver accepted (`SET_FEATURES`), so these belong to what
//! a ring needs. A reset (`SET_STATUS` 0, `RESET_DEVICE`) ends them: the next driver says its own.
//!
//! A ring counts as started when it was given its kick (`SET_VRING_KICK`), without waiting for the driver to ring it:
//! after a crash the rings of the kick went to a process that is dead, and the requests that it had taken wait.

use super::inflight_region::InflightRegion;
use super::wire::VringAddress;
use crate::reached::Reached;
use crate::virtio::blk::{BlkDevice, MAX_QUEUES, QueueConfig, QueueError};
use crate::virtio::memory::GuestMemory;
use crate::virtio::{Layout, LogAddresses};
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::fmt;
use runtime::Platform;
use tracing::{error, info, warn};

/// Why a message about a ring was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RingRefusal {
    /// It would change what a running ring stands on.
    Runs,
    /// The ring cannot be started.
    Queue(QueueError),
}

impl fmt::Display for RingRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runs => f.write_str("the ring runs; stop it (GET_VRING_BASE) before it is described anew"),
            Self::Queue(error) => write!(f, "the ring cannot start: {error}"),
        }
    }
}

/// The three areas of a ring, as windows.
struct Areas<P: Platform> {
    descriptors: P::Window,
    available: P::Window,
    used: P::Window,
}

/// One ring, as far as the front-end described it.
struct Ring<P: Platform> {
    size: Option<u16>,
    /// `None`: the beginning.
    base: Option<u32>,
    address: Option<VringAddress>,
    /// It was given a kick since it was stopped last.
    kicked: bool,
    enabled: bool,
    /// It could not start, or stopped itself. What it needs to be tried again is a new description.
    failed: bool,
    /// That its memory is missing was said.
    missing_said: bool,
    /// The region that it was started with.
    inflight: Option<Rc<InflightRegion<P>>>,
}

impl<P: Platform> Default for Ring<P> {
    fn default() -> Self {
        Self {
            size: None,
            base: None,
            address: None,
            kicked: false,
            enabled: false,
            failed: false,
            missing_said: false,
            inflight: None,
        }
    }
}

impl<P: Platform> Ring<P> {
    /// The areas, if the ring was described whole and lies in guest memory. `Err`: not in guest memory.
    fn areas(
        &self,
        layout: Layout,
        memory: &GuestMemory<P>,
    ) -> Result<Option<(u16, VringAddress, Areas<P>)>, ()> {
        let (Some(size), Some(address)) = (self.size, self.address) else { return Ok(None) };
        let window = |at, len| memory.by_user_address(at, len).ok_or(());
        let [descriptors, available, used] = layout.area_lens(size);
        let areas = Areas {
            descriptors: window(address.descriptors, descriptors)?,
            available: window(address.available, available)?,
            used: window(address.used, used)?,
        };
        Ok(Some((size, address, areas)))
    }
}

/// Where writes to a ring are logged, if its front-end asked for it. A split ring's descriptors are never written; those
/// of a packed one lie where guest memory has them, since the front-end's address is that of the device area.
fn log_addresses<P: Platform>(address: &VringAddress, memory: &GuestMemory<P>) -> Option<LogAddresses> {
    let device = address.used_log()?;
    Some(LogAddresses { descriptors: memory.guest_of_user(address.descriptors), device })
}

/// All rings of a session.
pub(super) struct Rings<P: Platform> {
    rings: Box<[Ring<P>]>,
    /// The region for rings that start from now on.
    inflight: Option<Rc<InflightRegion<P>>>,
    /// The controller's name, for logs.
    controller: Rc<str>,
}

impl<P: Platform> Rings<P> {
    pub(super) fn new(controller: Rc<str>) -> Self {
        Self { rings: (0..MAX_QUEUES).map(|_| Ring::default()).collect(), inflight: None, controller }
    }

    fn ring(&mut self, index: u16) -> &mut Ring<P> {
        &mut self.rings[usize::from(index)]
    }

    /// `SET_VRING_NUM`
    pub(super) fn set_size(
        &mut self,
        index: u16,
        size: u16,
        device: &BlkDevice<P>,
    ) -> Result<(), RingRefusal> {
        if device.is_started(index) && self.ring(index).size != Some(size) {
            return Err(RingRefusal::Runs);
        }
        let ring = self.ring(index);
        (ring.size, ring.failed) = (Some(size), false);
        Ok(())
    }

    /// `SET_VRING_BASE`
    pub(super) fn set_base(
        &mut self,
        index: u16,
        base: u32,
        device: &BlkDevice<P>,
    ) -> Result<(), RingRefusal> {
        if device.is_started(index) {
            return Err(RingRefusal::Runs);
        }
        let ring = self.ring(index);
        (ring.base, ring.failed) = (Some(base), false);
        Ok(())
    }

    /// `SET_VRING_ADDR`. On a running ring only the logging of its device area may change, and the ring goes on.
    pub(super) fn set_address(
        &mut self,
        index: u16,
        address: VringAddress,
        memory: &GuestMemory<P>,
        device: &mut BlkDevice<P>,
    ) -> Result<(), RingRefusal> {
        let ring = self.ring(index);
        if device.is_started(index) {
            if !ring.address.is_some_and(|old| old.same_areas(&address)) {
                return Err(RingRefusal::Runs);
            }
            device.set_log_addresses(index, log_addresses(&address, memory));
        }
        (ring.address, ring.failed, ring.missing_said) = (Some(address), false, false);
        Ok(())
    }

    /// `SET_VRING_KICK`
    pub(super) fn set_kick(&mut self, index: u16, kick: Option<P::Notifier>, device: &mut BlkDevice<P>) {
        device.set_kick(index, kick);
        let ring = self.ring(index);
        (ring.kicked, ring.failed) = (true, false);
    }

    /// `VRING_KICK`: starts the ring if nothing has yet; of a running one there is nothing to note, since its device is
    /// polled after every message. It does not make a ring that has failed another one.
    pub(super) fn kick(&mut self, index: u16) {
        self.ring(index).kicked = true;
    }

    /// `SET_VRING_ENABLE`
    pub(super) fn set_enabled(&mut self, index: u16, enabled: bool, device: &mut BlkDevice<P>) {
        self.ring(index).enabled = enabled;
        device.set_enabled(index, enabled);
    }

    /// Enables or disables all rings: `SET_FEATURES` without protocol features, `RESET_OWNER`.
    pub(super) fn set_all_enabled(&mut self, enabled: bool, device: &mut BlkDevice<P>) {
        for index in 0..MAX_QUEUES {
            self.set_enabled(index, enabled, device);
        }
    }

    /// `SET_INFLIGHT_FD`: for rings that start from now on.
    pub(super) fn set_inflight(&mut self, region: InflightRegion<P>) {
        self.inflight = Some(Rc::new(region));
    }

    /// Whether a ring has everything that it needs to start.
    pub(super) fn is_any_ready(&self, memory: &GuestMemory<P>, device: &BlkDevice<P>) -> bool {
        device.has_features()
            && self.rings.iter().any(|ring| {
                ring.kicked
                    && ring.enabled
                    && !ring.failed
                    && matches!(ring.areas(device.layout(), memory), Ok(Some(_)))
            })
    }

    /// Starts every ring that was kicked, is enabled, and has all that it needs. The last refusal, if there was one.
    pub(super) fn start_ready(
        &mut self,
        memory: &GuestMemory<P>,
        device: &mut BlkDevice<P>,
    ) -> Result<(), RingRefusal> {
        let mut result = Ok(());
        for index in 0..MAX_QUEUES {
            let ring = &self.rings[usize::from(index)];
            let waits = ring.kicked && ring.enabled && !ring.failed && !device.is_started(index);
            if waits && let Err(error) = self.start(index, memory, device) {
                result = Err(RingRefusal::Queue(error));
            }
        }
        result
    }

    /// Starts one ring, unless something that it needs is still to come.
    fn start(
        &mut self,
        index: u16,
        memory: &GuestMemory<P>,
        device: &mut BlkDevice<P>,
    ) -> Result<(), QueueError> {
        if !device.has_features() {
            return Ok(());
        }
        let controller = self.controller.clone();
        // A parked ring goes on with the region that it was tracked in.
        let own = self.ring(index).inflight.clone();
        let inflight = own.or_else(|| self.inflight.clone());
        let ring = self.ring(index);
        let (size, address, areas) = match ring.areas(device.layout(), memory) {
            Ok(Some(described)) => described,
            Ok(None) => return Ok(()),
            Err(()) => {
                if !ring.missing_said {
                    ring.missing_said = true;
                    Reached::RingMemoryMissing.mark::<P::Window>();
                    warn!(%controller, queue = index, "the ring is not in guest memory; it starts when it is");
                }
                return Ok(());
            }
        };
        let part = inflight.as_ref().and_then(|region| region.part(index));
        if inflight.is_some() && part.is_none() {
            Reached::RingUntracked.mark::<P::Window>();
            warn!(%controller, queue = index, "the inflight region has no part for the ring; it is not tracked");
        }
        let tracked = part.is_some();
        let Areas { descriptors, available, used } = areas;
        let base = ring.base.unwrap_or(device.layout().first_base());
        let log_addresses = log_addresses(&address, memory);
        let config = QueueConfig { size, base, descriptors, available, used, log_addresses, inflight: part };
        let layouts = (inflight.as_ref().map_or(device.layout(), |region| region.layout()), device.layout());
        let started = match layouts {
            (region, ring) if region != ring => Err(QueueError::InflightLayout { region, ring }),
            _ => device.start_queue(index, config),
        };
        match started {
            Ok(()) => {
                info!(%controller, queue = index, size, base, tracked, "the ring runs");
                (ring.inflight, ring.missing_said) = (inflight, false);
                Ok(())
            }
            Err(error) => {
                Reached::RingNotStarted.mark::<P::Window>();
                error.reached().mark::<P::Window>();
                error!(%controller, queue = index, size, base, tracked, %error, "the ring cannot start");
                ring.failed = true;
                device.signal_error(index);
                Err(error)
            }
        }
    }

    /// A ring stopped itself: it is not started again until the front-end describes it anew.
    pub(super) fn set_failed(&mut self, index: u16) {
        self.ring(index).failed = true;
    }

    /// `GET_VRING_BASE` begins: the ring takes no more. A ring that was kicked and never enabled still owes what a dead
    /// process had taken from it, and is started for that alone.
    pub(super) fn begin_stop(&mut self, index: u16, memory: &GuestMemory<P>, device: &mut BlkDevice<P>) {
        let ring = self.ring(index);
        if ring.kicked && !ring.failed && !device.is_started(index) && self.inflight.is_some() {
            Reached::RingStartedToStop.mark::<P::Window>();
            // A refusal was logged and leaves the ring stopped, which is what is wanted.
            let _ = self.start(index, memory, device);
        }
        device.begin_stop(index);
    }

    /// The ring is drained: stops it, and gives its base. The tracking of a split ring ends with it, since its base can
    /// always be read from the ring. A packed one's cannot: should this process die before the base is said, the region is
    /// all that knows it. A front-end asks for a new region when its driver is reset (`GET_INFLIGHT_FD`), so that the
    /// position never meets another driver's ring.
    pub(super) fn finish_stop(&mut self, index: u16, device: &mut BlkDevice<P>) -> u32 {
        let started = device.is_started(index);
        let ring = self.ring(index);
        ring.kicked = false;
        device.forget_kick(index);
        if started {
            ring.base = Some(device.finish_stop(index));
        }
        let base = ring.base.unwrap_or(device.layout().first_base());
        // Also a ring that was described and never ran: what a dead life had taken from it must not come back in the
        // next one, should the front-end use the region again. Before the features are known no ring can run, and nobody
        // can tell what the region tracks: it stays as it is.
        let region = ring.inflight.take().or_else(|| self.inflight.clone());
        if let Some(region) = region.filter(|_| device.has_features()) {
            if region.layout() == Layout::Split {
                region.retire(index);
            } else if started {
                Reached::PackedPositionKept.mark::<P::Window>();
            }
        }
        base
    }

    /// All rings take no more.
    pub(super) fn begin_stop_all(&mut self, device: &mut BlkDevice<P>) {
        for index in 0..MAX_QUEUES {
            device.begin_stop(index);
        }
    }

    /// All rings are drained: stops them. Their bases are remembered.
    pub(super) fn finish_stop_all(&mut self, device: &mut BlkDevice<P>) {
        for index in 0..MAX_QUEUES {
            self.finish_stop(index, device);
        }
    }

    /// Everything that the front-end said of the rings is forgotten (`RESET_DEVICE`), but for whom to tell (call and
    /// error notifiers, which front-ends set once a session). All rings are stopped.
    pub(super) fn reset(&mut self, device: &mut BlkDevice<P>) {
        if let Some(region) = self.inflight.take() {
            (0..MAX_QUEUES).for_each(|index| region.retire(index));
        }
        for index in 0..MAX_QUEUES {
            *self.ring(index) = Ring::default();
            device.set_enabled(index, false);
        }
    }

    /// Guest memory has changed while the device was paused and idle: running rings are moved to where they lie now.
    /// A ring whose memory is gone is parked; it goes on where it was as soon as its memory is back.
    pub(super) fn rebase(&mut self, memory: &GuestMemory<P>, device: &mut BlkDevice<P>) {
        for index in 0..MAX_QUEUES {
            if !device.is_started(index) {
                continue;
            }
            let controller = self.controller.clone();
            let ring = self.ring(index);
            let moved = match ring.areas(device.layout(), memory) {
                Ok(Some((_, _, areas))) => {
                    device.rebase_queue(index, areas.descriptors, areas.available, areas.used).is_ok()
                }
                Ok(None) | Err(()) => false,
            };
            if !moved {
                Reached::RingParked.mark::<P::Window>();
                warn!(%controller, queue = index, "the ring's memory is gone; the ring waits for it");
                // Nothing is in flight, so the tracking that the ring is started with again agrees with it.
                ring.base = Some(device.finish_stop(index));
                ring.missing_said = true;
            }
        }
    }

    /// The session ends and all rings are drained: takes everything from the device. What the inflight region tracks
    /// stays in it, for the next session.
    pub(super) fn release(&mut self, device: &mut BlkDevice<P>) {
        for index in 0..MAX_QUEUES {
            if device.is_started(index) {
                device.finish_stop(index);
            }
            device.forget_port(index);
        }
        device.set_messages(false);
        self.inflight = None;
    }

    /// Whether the memory below an inflight region in use went away.
    pub(super) fn is_lost(&self) -> bool {
        let of_ring = |ring: &Ring<P>| ring.inflight.as_ref().is_some_and(|region| region.is_lost());
        self.inflight.as_ref().is_some_and(|region| region.is_lost()) || self.rings.iter().any(of_ring)
    }
}
