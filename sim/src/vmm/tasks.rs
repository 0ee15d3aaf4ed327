//! What a front-end is asked to do, one thing after the other: when each can begin, and the script that carries it out.
//!
//! A task may have to wait for the guest (a region to be emptied, requests to end); the front-end goes on talking
//! meanwhile.

use super::log::Log;
use super::message::{feature, protocol};
use super::order::{self, Handover, Op};
use super::{Driver, Vmm};
use crate::check::CacheMode;
use crate::guest::Witness;
use crate::guest::ring::RingFeatures;
use runtime::Instant;

/// How often a front-end looks whether the guest is through with a region.
const UNPLUG_LOOK_NS: u64 = 5_000;

/// What a front-end is asked to do, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The guest's driver starts: on this many queues, with these virtio features.
    Start {
        /// Queues.
        queues: u16,
        /// Features that the driver accepts.
        features: u64,
    },
    /// The guest resets its device at once.
    Reset,
    /// The guest's driver waits until nothing is out, then resets its device.
    Unload,
    /// The machine is paused: what is out is finished, the rings stop.
    Pause,
    /// The machine goes on, with a new inflight region on rings that are not at 0.
    Resume,
    /// The guest gives a region back, and it is removed.
    Unplug(usize),
    /// The region comes back.
    Plug(usize),
    /// The driver sets the write cache.
    Cache(bool),
    /// The configuration space is read again.
    ReadConfig,
    /// The machine is migrated to another host, up to the moment at which it would go on there.
    Migrate,
}

/// How the next task stands.
pub(super) enum Next {
    /// There is a script to carry out, or a task has ended.
    Began,
    /// The guest has to do something first.
    Wait(Instant),
    /// Nothing was asked.
    Nothing,
}

impl<W: Witness> Vmm<W> {
    /// Begins the next task, if there is one and it can begin.
    pub(super) fn next_task(&mut self, now: Instant) -> Next {
        if let Some(task) = self.task {
            return self.go_on(task, now);
        }
        let Some(task) = self.tasks.pop_front() else { return Next::Nothing };
        self.task = Some(task);
        let queues = self.vm.borrow().queues.len() as u16;
        let started = self.driver.map_or(0, |driver| driver.queues);
        let ops = match task {
            Task::Start { queues: started, features } => {
                let features = features & self.offered;
                let driver = Driver { queues: started, features };
                // A region is laid out for one of the layouts.
                self.inflight = self.inflight.filter(|inflight| inflight.packed == driver.is_packed());
                let ring = RingFeatures {
                    packed: driver.is_packed(),
                    event_idx: features & feature::EVENT_IDX != 0,
                    indirect: features & feature::INDIRECT != 0,
                };
                let mut vm = self.vm.borrow_mut();
                let sizes = &self.options.ring_sizes;
                vm.start_driver(started, sizes, ring, &mut self.rng, &mut self.witness);
                self.bases =
                    vm.queues.iter().map(|queue| queue.ring().map_or(0, |ring| ring.first_base())).collect();
                let offer = &mut vm.device.offer;
                offer.flush = features & feature::FLUSH != 0;
                offer.discard = features & feature::DISCARD != 0;
                offer.write_zeroes = features & feature::WRITE_ZEROES != 0;
                offer.read_only = features & feature::RO != 0;
                let writeback = features & (feature::FLUSH | feature::CONFIG_WCE) != 0;
                vm.device.set_cache(if writeback { CacheMode::Writeback } else { CacheMode::Writethrough });
                drop(vm);
                self.driver = Some(driver);
                self.handover()
            }
            Task::Reset => {
                self.vm.borrow_mut().reset_driver();
                self.reset_ops(queues, started)
            }
            Task::Unload | Task::Unplug(_) => return self.go_on(task, now),
            Task::Pause => {
                self.vm.borrow_mut().run(false);
                order::takeback(queues, started)
            }
            Task::Resume => {
                if !self.paused {
                    self.task = None;
                    return Next::Began;
                }
                self.paused = false;
                self.handover()
            }
            Task::Plug(region) if self.vm.borrow().backings[region].plugged => {
                self.task = None;
                return Next::Began;
            }
            Task::Plug(region) => {
                self.vm.borrow_mut().backings[region].plugged = true;
                self.observe_region(region, true);
                let op = if self.has(protocol::CONFIGURE_MEM_SLOTS) {
                    Op::AddRegion(region)
                } else {
                    Op::SetMemTable
                };
                if self.running { vec![op, Op::Plugged(region)] } else { vec![Op::Plugged(region)] }
            }
            Task::Cache(writeback) => {
                let wce = self.driver.is_some_and(|driver| driver.features & feature::CONFIG_WCE != 0);
                if !(wce && self.has(protocol::CONFIG)) {
                    self.task = None;
                    return Next::Began;
                }
                self.vm.borrow_mut().device.set_cache(CacheMode::Changing);
                vec![Op::SetWriteback(writeback), Op::CacheSet(writeback)]
            }
            Task::ReadConfig => vec![Op::GetConfig],
            Task::Migrate if self.running && !self.paused && self.has(protocol::LOG_SHMFD) => {
                self.log = Some(Log::new(&self.vm, &mut self.rng));
                order::migration(started)
            }
            Task::Migrate => {
                self.task = None;
                return Next::Began;
            }
        };
        self.script.ops = ops.into();
        Next::Began
    }

    /// A task that waits for the guest, or whose script is through.
    fn go_on(&mut self, task: Task, now: Instant) -> Next {
        match task {
            Task::Unload if self.driver.is_some() => {
                let mut vm = self.vm.borrow_mut();
                if vm.outstanding() > 0 {
                    vm.device.hold(true);
                    return Next::Wait(Instant(now.0 + UNPLUG_LOOK_NS));
                }
                vm.device.hold(false);
                vm.reset_driver();
                drop(vm);
                let queues = self.vm.borrow().queues.len() as u16;
                let started = self.driver.map_or(0, |driver| driver.queues);
                self.script.ops = self.reset_ops(queues, started).into();
            }
            Task::Migrate if self.logging => {
                if self.log.is_some_and(|log| !log.is_read_enough()) {
                    return Next::Wait(Instant(now.0 + UNPLUG_LOOK_NS));
                }
                self.tasks.push_front(Task::Resume);
                self.tasks.push_front(Task::Pause);
                self.task = None;
            }
            Task::Unplug(region) if self.vm.borrow().backings[region].plugged => {
                if self.emptying != Some(region) {
                    self.vm.borrow_mut().use_region(region, false);
                    self.emptying = Some(region);
                }
                if self.vm.borrow().touches(region) {
                    return Next::Wait(Instant(now.0 + UNPLUG_LOOK_NS));
                }
                self.vm.borrow_mut().backings[region].plugged = false;
                let op = if self.has(protocol::CONFIGURE_MEM_SLOTS) {
                    Op::RemoveRegion(region)
                } else {
                    Op::SetMemTable
                };
                let has_it = self.link().added.contains(&region) || self.running && op == Op::SetMemTable;
                let said = if has_it { vec![op] } else { Vec::new() };
                self.script.ops = said.into_iter().chain([Op::Unplugged(region)]).collect();
            }
            _ => self.task = None,
        }
        Next::Began
    }

    /// What resets the device: by a message of its own, or with the rings one by one.
    fn reset_ops(&mut self, queues: u16, started: u16) -> Vec<Op> {
        if self.has(protocol::RESET_DEVICE) && self.rng.chance(1, 2) {
            order::reset()
        } else {
            order::takeback(queues, started)
        }
    }

    /// What hands the rings over, as the manners have it.
    pub(super) fn handover(&mut self) -> Vec<Op> {
        let vm = self.vm.borrow();
        let added = self.link.as_ref().map_or(&[][..], |link| &link.added);
        let plugged: Vec<usize> =
            (0..vm.backings.len()).filter(|at| vm.backings[*at].plugged && !added.contains(at)).collect();
        let about = Handover {
            queues: vm.queues.len() as u16,
            started: self.driver.map_or(0, |driver| driver.queues),
            fresh_inflight: self.inflight.is_none(),
            inflight: self.protocol & protocol::INFLIGHT_SHMFD != 0,
            regions: (self.protocol & protocol::CONFIGURE_MEM_SLOTS != 0).then_some(&plugged[..]),
        };
        order::handover(self.options.manners, &about, &mut self.rng)
    }
}
