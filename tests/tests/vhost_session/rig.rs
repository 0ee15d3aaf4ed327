//! A controller on a device with a gate, and a front-end with a guest behind it that speaks as QEMU does.

use runtime::{Poll, SocketOptions};
use stack::vhost_user::{Controller, ControllerConfig};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tests::message::request;
use tests::vhost::by_hand::{Armed, ByHand};
use tests::vhost::front_end::{
    Closed, Memory, NEED_REPLY, PLAIN, REPLY, Received, Wire, inflight_description, longs, new_eventfd, words,
};
use tests::vhost::gate::{Gate, GateBdev};
use tests::vhost::guest::{PAYLOAD, RING_SPACE, Ring, kind};

/// Virtio features as a Linux guest's driver accepts them: FLUSH, CONFIG_WCE, MQ, INDIRECT, EVENT_IDX, VERSION_1 and
/// what else there is, with vhost-user's PROTOCOL_FEATURES.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 12 | 1 << 11 | 1 << 9 | 1 << 6;
pub(crate) const PROTOCOL_FEATURES_BIT: u64 = 1 << 30;
pub(crate) const LOG_ALL: u64 = 1 << 26;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
/// Everything that is offered.
pub(crate) const PROTOCOL_FEATURES: u64 =
    1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16;
pub(crate) const QUEUE_SIZE: u16 = 64;
pub(crate) const NUM_BLOCKS: u64 = 1024;
/// Polls after which a controller that still has something to do is spinning.
const POLLS_MAX: usize = 10_000;
/// No request came back.
pub(crate) const NONE: [u16; 0] = [];

/// A controller, and what it stands on.
pub(crate) struct Rig {
    pub(crate) platform: ByHand,
    pub(crate) gate: Arc<Gate>,
    pub(crate) controller: Controller<ByHand>,
    pub(crate) path: PathBuf,
    in_band: bool,
    _directory: TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::offering(false)
    }

    /// A controller that offers in-band notifications, or does not.
    pub(crate) fn offering(in_band: bool) -> Self {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("vhost.0");
        let (platform, gate) = (ByHand::default(), Gate::new(NUM_BLOCKS));
        let controller = Self::controller(&platform, &gate, &path, false, in_band);
        Self { platform, gate, controller, path, in_band, _directory: directory }
    }

    fn controller(
        platform: &ByHand,
        gate: &Arc<Gate>,
        path: &Path,
        read_only: bool,
        in_band_notifications: bool,
    ) -> Controller<ByHand> {
        let config = ControllerConfig {
            name: "vhost.0".to_owned(),
            socket_path: path.to_str().expect("a path of text").to_owned(),
            socket_options: SocketOptions::default(),
            bdev: Arc::new(GateBdev(gate.clone())),
            read_only,
            packed_ring: false,
            in_band_notifications,
            device: 0,
        };
        Controller::new(platform.clone(), config).expect("the controller listens")
    }

    /// The target dies and lives again: what it had in flight is gone, what it had written is there, and the gate of its disk is
    /// open.
    pub(crate) fn kill_and_restart(&mut self) {
        self.kill_and_restart_as(false);
    }

    /// As [`Rig::kill_and_restart`], configured otherwise.
    pub(crate) fn kill_and_restart_as(&mut self, read_only: bool) {
        // The old one goes first, as a dead process's sockets do; it gets no chance to drain.
        let gate = Gate::new(1);
        let nowhere = self.path.with_extension("dead");
        let elsewhere = Self::controller(&self.platform, &gate, &nowhere, false, false);
        drop(std::mem::replace(&mut self.controller, elsewhere));
        self.controller = Self::controller(&self.platform, &self.gate, &self.path, read_only, self.in_band);
        self.gate.set_open(true);
    }

    /// Polls until there is nothing to do for a while.
    pub(crate) fn run(&mut self) {
        for _ in 0..POLLS_MAX {
            match self.controller.poll(runtime::Platform::now(&self.platform)) {
                Poll::Busy => {}
                Poll::Done => return,
                Poll::Idle { until: Some(until) }
                    if until.since_ns(runtime::Platform::now(&self.platform)) <= 100_000 =>
                {
                    self.platform.pass(Duration::from_micros(50));
                }
                Poll::Idle { .. } => return,
            }
        }
        panic!("the controller has not come to rest after {POLLS_MAX} polls");
    }

    /// The core goes to sleep.
    pub(crate) fn arm(&mut self) {
        self.controller.arm(runtime::Platform::now(&self.platform), &mut Armed::default());
    }

    pub(crate) fn pass(&mut self, duration: Duration) {
        self.platform.pass(duration);
        self.run();
    }

    pub(crate) fn describe(&self) -> serde_json::Value {
        self.controller.describe()
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.describe()[0]["inflight_task_cnt"].as_u64().unwrap_or(0)
    }

    pub(crate) fn running(&self) -> u64 {
        self.describe()[0]["running_queues"].as_u64().unwrap_or(0)
    }
}

/// A front-end with a guest behind it.
pub(crate) struct FrontEnd {
    pub(crate) wire: Wire,
    pub(crate) memory: Memory,
    pub(crate) rings: Vec<Ring>,
    pub(crate) kicks: Vec<OwnedFd>,
    pub(crate) calls: Vec<OwnedFd>,
    pub(crate) errors: Vec<OwnedFd>,
    /// The inflight region as the front-end keeps it: its description and its handle.
    pub(crate) inflight: Option<(Vec<u8>, OwnedFd)>,
}

impl FrontEnd {
    pub(crate) fn connect(rig: &mut Rig, rings: u32) -> Self {
        let memory = Memory::new(0x10_0000, 0x7f00_0000_0000, 1 << 20);
        let at = |index: u32| memory.guest + RING_SPACE * u64::from(index);
        let rings: Vec<_> = (0..rings).map(|index| Ring::new(index, QUEUE_SIZE, at(index))).collect();
        let new = || rings.iter().map(|_| new_eventfd()).collect::<Vec<_>>();
        let (kicks, calls, errors) = (new(), new(), new());
        let wire = Wire::connect(&rig.path);
        rig.run();
        Self { wire, memory, rings, kicks, calls, errors, inflight: None }
    }

    /// The same front-end and guest, on a new connection.
    pub(crate) fn reconnect(&mut self, rig: &mut Rig) {
        self.wire = Wire::connect(&rig.path);
        rig.run();
    }

    pub(crate) fn send(&self, rig: &mut Rig, number: u32, payload: &[u8], handles: &[&OwnedFd]) {
        assert!(self.wire.send(number, PLAIN, payload, handles), "the connection is open");
        rig.run();
    }

    pub(crate) fn reply(&mut self, number: u32) -> Received {
        let reply = self.wire.receive().expect("the connection is open").expect("an answer is there");
        assert_eq!((reply.request, reply.flags), (number, REPLY));
        reply
    }

    pub(crate) fn ask(
        &mut self,
        rig: &mut Rig,
        number: u32,
        payload: &[u8],
        handles: &[&OwnedFd],
    ) -> Received {
        self.send(rig, number, payload, handles);
        self.reply(number)
    }

    /// Sends with NEED_REPLY and gives the answer: 0 is success.
    pub(crate) fn ack(&mut self, rig: &mut Rig, number: u32, payload: &[u8], handles: &[&OwnedFd]) -> u64 {
        assert!(self.wire.send(number, NEED_REPLY, payload, handles), "the connection is open");
        rig.run();
        self.reply(number).number()
    }

    pub(crate) fn nothing_came(&mut self) -> bool {
        matches!(self.wire.receive(), Ok(None))
    }

    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.wire.receive(), Err(Closed))
    }

    /// What QEMU says when it connects: `first` with the configuration, a reconnect without.
    pub(crate) fn greet(&mut self, rig: &mut Rig, first: bool) {
        let features = self.ask(rig, request::GET_FEATURES, &[], &[]).number();
        assert_eq!(features & FEATURES, FEATURES);
        assert_eq!(self.ask(rig, request::GET_PROTOCOL_FEATURES, &[], &[]).number(), PROTOCOL_FEATURES);
        self.send(rig, request::SET_PROTOCOL_FEATURES, &longs(&[PROTOCOL_FEATURES]), &[]);
        assert_eq!(self.ask(rig, request::GET_QUEUE_NUM, &[], &[]).number(), 128);
        assert_eq!(self.ask(rig, request::GET_MAX_MEM_SLOTS, &[], &[]).number(), 509);
        self.send(rig, request::SET_OWNER, &[], &[]);
        self.ask(rig, request::GET_FEATURES, &[], &[]);
        for index in 0..self.rings.len() {
            let which = longs(&[index as u64]);
            assert!(self.wire.send(request::SET_VRING_CALL, PLAIN, &which, &[&self.calls[index]]));
            assert!(self.wire.send(request::SET_VRING_ERR, PLAIN, &which, &[&self.errors[index]]));
        }
        if first {
            let mut payload = words(&[0, 57, 0]);
            payload.resize(69, 0);
            let config = self.ask(rig, request::GET_CONFIG, &payload, &[]);
            assert_eq!(config.payload.len(), 69);
            assert_eq!(u64::from(config.number32(12)), NUM_BLOCKS);
        }
    }

    /// Asks for a fresh inflight region and gives it back.
    pub(crate) fn track(&mut self, rig: &mut Rig) {
        let asked = inflight_description(0, self.rings.len() as u16, QUEUE_SIZE);
        let mut reply = self.ask(rig, request::GET_INFLIGHT_FD, &asked, &[]);
        assert_eq!(reply.payload.len(), 24);
        assert_eq!(reply.payload[16..20], asked[16..20]);
        let handle = reply.handles.pop().expect("the region's handle");
        self.inflight = Some((reply.payload, handle));
        self.give_inflight();
    }

    pub(crate) fn give_inflight(&self) {
        let (description, handle) = self.inflight.as_ref().expect("a region");
        assert!(self.wire.send(request::SET_INFLIGHT_FD, PLAIN, description, &[handle]));
    }

    /// Describes ring `index` and gives its kick, in QEMU's order.
    pub(crate) fn describe_ring(&mut self, index: usize, base: u16) {
        self.describe_areas(index, base);
        let kick = longs(&[index as u64]);
        assert!(self.wire.send(request::SET_VRING_KICK, PLAIN, &kick, &[&self.kicks[index]]));
    }

    /// Describes ring `index`.
    pub(crate) fn describe_areas(&mut self, index: usize, base: u16) {
        let number = index as u32;
        let addresses = self.rings[index].addresses(&self.memory, 0);
        let send = |request, payload: &[u8]| assert!(self.wire.send(request, PLAIN, payload, &[]));
        send(request::SET_VRING_NUM, &words(&[number, QUEUE_SIZE.into()]));
        send(request::SET_VRING_BASE, &words(&[number, base.into()]));
        send(request::SET_VRING_ADDR, &addresses);
    }

    pub(crate) fn enable(&mut self, rig: &mut Rig, enabled: u32) {
        for index in 0..self.rings.len() as u32 {
            self.send(rig, request::SET_VRING_ENABLE, &words(&[index, enabled]), &[]);
        }
    }

    /// Starts the driver as QEMU does after [`FrontEnd::greet`] and [`FrontEnd::track`].
    pub(crate) fn start(&mut self, rig: &mut Rig, bases: &[u16]) {
        self.send(rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
        let table = self.memory.table();
        let file = self.memory.file.try_clone().expect("a handle");
        assert_eq!(self.ack(rig, request::SET_MEM_TABLE, &table, &[&file]), 0);
        for (index, base) in bases.iter().enumerate() {
            self.describe_ring(index, *base);
        }
        self.enable(rig, 1);
        assert_eq!(rig.running(), bases.len() as u64);
    }

    /// The target dies, and the front-end greets its next life.
    pub(crate) fn meet_next_life(&mut self, rig: &mut Rig) {
        rig.kill_and_restart();
        self.reconnect(rig);
        self.greet(rig, false);
    }

    /// A front-end whose rings all run.
    pub(crate) fn running(rig: &mut Rig, rings: u32) -> Self {
        let mut front = Self::connect(rig, rings);
        front.greet(rig, true);
        front.track(rig);
        front.start(rig, &vec![0; rings as usize]);
        front
    }

    pub(crate) fn put(&mut self, ring: usize, slot: u16, kind: u32, sector: u64, byte: u8) {
        self.rings[ring].put(&self.memory, slot, kind, sector, &[byte; PAYLOAD as usize]);
    }

    pub(crate) fn used(&mut self, ring: usize) -> Vec<u16> {
        self.rings[ring].take_used(&self.memory)
    }

    /// Writes and reads a block through a ring, to see that it works.
    pub(crate) fn check_works(&mut self, rig: &mut Rig, ring: usize, byte: u8) {
        let sector = 100 + ring as u64;
        self.put(ring, 18, kind::OUT, sector, byte);
        rig.run();
        assert_eq!(self.used(ring), [18], "the write came back");
        self.put(ring, 19, kind::IN, sector, 0);
        rig.run();
        assert_eq!(self.used(ring), [19], "the read came back");
        assert_eq!(self.rings[ring].status(&self.memory, 19), 0);
        assert_eq!(self.rings[ring].payload(&self.memory, 19), [byte; PAYLOAD as usize]);
    }

    pub(crate) fn get_base(&mut self, rig: &mut Rig, ring: u32) -> u32 {
        let reply = self.ask(rig, request::GET_VRING_BASE, &words(&[ring, 0]), &[]);
        assert_eq!(reply.number32(0), ring);
        reply.number32(4)
    }
}

/// A controller, and a front-end that has greeted it.
pub(crate) fn greeted(rings: u32) -> (Rig, FrontEnd) {
    let mut rig = Rig::new();
    let mut front = FrontEnd::connect(&mut rig, rings);
    front.greet(&mut rig, true);
    (rig, front)
}

/// A controller, and a front-end whose rings all run.
pub(crate) fn running(rings: u32) -> (Rig, FrontEnd) {
    let mut rig = Rig::new();
    let front = FrontEnd::running(&mut rig, rings);
    (rig, front)
}
