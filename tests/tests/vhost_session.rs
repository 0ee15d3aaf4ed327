//! The vhost-user session, message by message: the orders in which QEMU and SPDK's peers were seen to speak, what the
//! specification asks in between, and what a hostile front-end may try. Everything is driven by hand
//! ([`tests::vhost`]): the test decides what is in flight when a message comes.

use proptest::prelude::*;
use runtime::{Poll, SocketOptions};
use stack::vhost_user::{Controller, ControllerConfig};
use stack::virtio::inflight::queue_region_len;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tests::message::request;
use tests::vhost::by_hand::{Armed, ByHand};
use tests::vhost::front_end::{
    Closed, Memory, NEED_REPLY, PLAIN, REPLY, Received, Wire, inflight_description, longs, message,
    new_eventfd, take, words,
};
use tests::vhost::gate::{Gate, GateBdev};
use tests::vhost::guest::{PAYLOAD, RING_SPACE, Ring, kind};

/// Virtio features as a Linux guest's driver accepts them: FLUSH, CONFIG_WCE, MQ, INDIRECT, EVENT_IDX, VERSION_1 and
/// what else there is, with vhost-user's PROTOCOL_FEATURES.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 12 | 1 << 11 | 1 << 9 | 1 << 6;
const PROTOCOL_FEATURES_BIT: u64 = 1 << 30;
const LOG_ALL: u64 = 1 << 26;
const EVENT_IDX: u64 = 1 << 29;
/// Everything that is offered.
const PROTOCOL_FEATURES: u64 =
    1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16;
const QUEUE_SIZE: u16 = 64;
const NUM_BLOCKS: u64 = 1024;
/// Polls after which a controller that still has something to do is spinning.
const POLLS_MAX: usize = 10_000;
/// No request came back.
const NONE: [u16; 0] = [];

/// A controller, and what it stands on.
struct Rig {
    platform: ByHand,
    gate: Arc<Gate>,
    controller: Controller<ByHand>,
    path: PathBuf,
    _directory: TempDir,
}

impl Rig {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("vhost.0");
        let (platform, gate) = (ByHand::default(), Gate::new(NUM_BLOCKS));
        let controller = Self::controller(&platform, &gate, &path);
        Self { platform, gate, controller, path, _directory: directory }
    }

    fn controller(platform: &ByHand, gate: &Arc<Gate>, path: &std::path::Path) -> Controller<ByHand> {
        let config = ControllerConfig {
            name: "vhost.0".to_owned(),
            socket_path: path.to_str().expect("a path of text").to_owned(),
            socket_options: SocketOptions::default(),
            bdev: Arc::new(GateBdev(gate.clone())),
            read_only: false,
            device: 0,
        };
        Controller::new(platform.clone(), config).expect("the controller listens")
    }

    /// The target dies and lives again: what it had in flight is gone, what it had written is there.
    fn kill_and_restart(&mut self) {
        // The old one goes first, as a dead process's sockets do; it gets no chance to drain.
        let gate = Gate::new(1);
        let nowhere = self.path.with_extension("dead");
        let old = std::mem::replace(&mut self.controller, Self::controller(&self.platform, &gate, &nowhere));
        drop(old);
        self.controller = Self::controller(&self.platform, &self.gate, &self.path);
    }

    /// Polls until there is nothing to do for a while.
    fn run(&mut self) {
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
    fn arm(&mut self) {
        self.controller.arm(runtime::Platform::now(&self.platform), &mut Armed::default());
    }

    fn pass(&mut self, duration: Duration) {
        self.platform.pass(duration);
        self.run();
    }

    fn describe(&self) -> serde_json::Value {
        self.controller.describe()
    }

    fn in_flight(&self) -> u64 {
        self.describe()[0]["inflight_task_cnt"].as_u64().unwrap_or(0)
    }

    fn running(&self) -> u64 {
        self.describe()[0]["running_queues"].as_u64().unwrap_or(0)
    }
}

/// A front-end with a guest behind it.
struct FrontEnd {
    wire: Wire,
    memory: Memory,
    rings: Vec<Ring>,
    kicks: Vec<OwnedFd>,
    calls: Vec<OwnedFd>,
    errors: Vec<OwnedFd>,
    /// The inflight region as the front-end keeps it: its description and its handle.
    inflight: Option<(Vec<u8>, OwnedFd)>,
}

impl FrontEnd {
    fn connect(rig: &mut Rig, rings: u32) -> Self {
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
    fn reconnect(&mut self, rig: &mut Rig) {
        self.wire = Wire::connect(&rig.path);
        rig.run();
    }

    fn send(&self, rig: &mut Rig, number: u32, payload: &[u8], handles: &[&OwnedFd]) {
        assert!(self.wire.send(number, PLAIN, payload, handles), "the connection is open");
        rig.run();
    }

    fn reply(&mut self, number: u32) -> Received {
        let reply = self.wire.receive().expect("the connection is open").expect("an answer is there");
        assert_eq!((reply.request, reply.flags), (number, REPLY));
        reply
    }

    fn ask(&mut self, rig: &mut Rig, number: u32, payload: &[u8], handles: &[&OwnedFd]) -> Received {
        self.send(rig, number, payload, handles);
        self.reply(number)
    }

    /// Sends with NEED_REPLY and gives the answer: 0 is success.
    fn ack(&mut self, rig: &mut Rig, number: u32, payload: &[u8], handles: &[&OwnedFd]) -> u64 {
        assert!(self.wire.send(number, NEED_REPLY, payload, handles), "the connection is open");
        rig.run();
        self.reply(number).number()
    }

    fn nothing_came(&mut self) -> bool {
        matches!(self.wire.receive(), Ok(None))
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.wire.receive(), Err(Closed))
    }

    /// What QEMU says when it connects (`lab/traces`): `first` with the configuration, a reconnect without.
    fn greet(&mut self, rig: &mut Rig, first: bool) {
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
    fn track(&mut self, rig: &mut Rig) {
        let asked = inflight_description(0, self.rings.len() as u16, QUEUE_SIZE);
        let mut reply = self.ask(rig, request::GET_INFLIGHT_FD, &asked, &[]);
        assert_eq!(reply.payload.len(), 24);
        assert_eq!(reply.payload[16..20], asked[16..20]);
        let handle = reply.handles.pop().expect("the region's handle");
        self.inflight = Some((reply.payload, handle));
        self.give_inflight();
    }

    fn give_inflight(&self) {
        let (description, handle) = self.inflight.as_ref().expect("a region");
        assert!(self.wire.send(request::SET_INFLIGHT_FD, PLAIN, description, &[handle]));
    }

    /// Describes ring `index` and gives its kick, in QEMU's order.
    fn describe_ring(&mut self, index: usize, base: u16) {
        let number = index as u32;
        let addresses = self.rings[index].addresses(&self.memory, 0);
        let send = |request, payload: &[u8]| assert!(self.wire.send(request, PLAIN, payload, &[]));
        send(request::SET_VRING_NUM, &words(&[number, QUEUE_SIZE.into()]));
        send(request::SET_VRING_BASE, &words(&[number, base.into()]));
        send(request::SET_VRING_ADDR, &addresses);
        let kick = longs(&[number.into()]);
        assert!(self.wire.send(request::SET_VRING_KICK, PLAIN, &kick, &[&self.kicks[index]]));
    }

    fn enable(&mut self, rig: &mut Rig, enabled: u32) {
        for index in 0..self.rings.len() as u32 {
            self.send(rig, request::SET_VRING_ENABLE, &words(&[index, enabled]), &[]);
        }
    }

    /// Starts the driver as QEMU does after [`FrontEnd::greet`] and [`FrontEnd::track`].
    fn start(&mut self, rig: &mut Rig, bases: &[u16]) {
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

    /// A front-end whose rings all run.
    fn running(rig: &mut Rig, rings: u32) -> Self {
        let mut front = Self::connect(rig, rings);
        front.greet(rig, true);
        front.track(rig);
        front.start(rig, &vec![0; rings as usize]);
        front
    }

    fn put(&mut self, ring: usize, slot: u16, kind: u32, sector: u64, byte: u8) {
        self.rings[ring].put(&self.memory, slot, kind, sector, &[byte; PAYLOAD as usize]);
    }

    fn used(&mut self, ring: usize) -> Vec<u16> {
        self.rings[ring].take_used(&self.memory)
    }

    /// Writes and reads a block through a ring, to see that it works.
    fn check_works(&mut self, rig: &mut Rig, ring: usize, byte: u8) {
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

    fn get_base(&mut self, rig: &mut Rig, ring: u32) -> u32 {
        let reply = self.ask(rig, request::GET_VRING_BASE, &words(&[ring, 0]), &[]);
        assert_eq!(reply.number32(0), ring);
        reply.number32(4)
    }
}

#[test]
fn a_guest_boots_as_qemu_does_it_firmware_first_and_then_its_kernel() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::connect(&mut rig, 2);
    front.greet(&mut rig, true);

    // The firmware: one ring described, both enabled.
    front.send(&mut rig, request::SET_FEATURES, &longs(&[1 << 32 | 1 << 30 | 1 << 6]), &[]);
    assert_eq!(front.ask(&mut rig, request::GET_STATUS, &[], &[]).number(), 0);
    front.send(&mut rig, request::SET_STATUS, &longs(&[8]), &[]);
    front.track(&mut rig);
    let (table, file) = (front.memory.table(), front.memory.file.try_clone().unwrap());
    assert_eq!(front.ack(&mut rig, request::SET_MEM_TABLE, &table, &[&file]), 0);
    front.describe_ring(0, 0);
    front.enable(&mut rig, 1);
    assert_eq!(front.ask(&mut rig, request::GET_STATUS, &[], &[]).number(), 8);
    front.send(&mut rig, request::SET_STATUS, &longs(&[0xf]), &[]);
    assert_eq!(rig.running(), 1);
    front.check_works(&mut rig, 0, 0x11);

    // It stops: the status first, then the ring.
    front.send(&mut rig, request::SET_STATUS, &longs(&[0]), &[]);
    front.enable(&mut rig, 0);
    assert_eq!(front.get_base(&mut rig, 0), 2);
    assert_eq!(rig.running(), 0);

    // The kernel: new ring memory, from 0, in a fresh inflight region.
    front.memory.write(front.memory.guest, &[0; 2 * RING_SPACE as usize]);
    (front.rings[0].available, front.rings[0].used) = (0, 0);
    front.track(&mut rig);
    front.start(&mut rig, &[0, 0]);
    front.check_works(&mut rig, 0, 0x22);
    front.check_works(&mut rig, 1, 0x33);
    assert!(take(&front.calls[0]) > 0 && take(&front.calls[1]) > 0);
}

#[test]
fn what_a_dead_target_had_taken_completes_once_in_the_next_life() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::running(&mut rig, 2);
    front.check_works(&mut rig, 0, 0x44);
    rig.gate.set_open(false);
    for slot in 0..5 {
        front.put(0, slot, kind::OUT, slot.into(), 0x50 + slot as u8);
    }
    front.put(1, 7, kind::OUT, 7, 0x57);
    rig.run();
    // One of them completes before those that were taken before it: the ring alone does not tell what is in flight.
    front.put(0, 5, kind::OUT, 5, 0x55);
    rig.run();
    rig.gate.pass_youngest();
    rig.run();
    assert_eq!(front.used(0), [5]);
    assert_eq!(rig.in_flight(), 6);
    rig.gate.content_clear(512 * 5, 512);
    rig.kill_and_restart();
    rig.gate.set_open(true);

    // QEMU tells its used indices as bases; the region knows better. No ring of the kick comes.
    front.reconnect(&mut rig);
    front.greet(&mut rig, false);
    front.give_inflight();
    front.start(&mut rig, &[3, 0]);
    assert!(take(&front.calls[0]) > 0, "the guest is told, whatever it asked the dead life");
    rig.run();
    let mut slots = front.used(0);
    slots.sort_unstable();
    assert_eq!(slots, [0, 1, 2, 3, 4]);
    assert_eq!(front.used(1), [7]);
    for slot in 0..5 {
        assert_eq!(rig.gate.content(512 * slot, 1), [0x50 + slot as u8]);
    }
    assert_eq!(rig.gate.content(512 * 5, 1), [0], "what had come back is not done again");
    front.check_works(&mut rig, 0, 0x66);
    // The region knows that nothing is in flight now.
    rig.kill_and_restart();
    front.reconnect(&mut rig);
    front.greet(&mut rig, false);
    front.give_inflight();
    front.start(&mut rig, &[front.rings[0].used, front.rings[1].used]);
    assert_eq!(front.used(0), NONE);
    front.check_works(&mut rig, 0, 0x67);
}

#[test]
fn a_ring_that_is_stopped_before_it_was_enabled_still_ends_what_a_dead_target_had_taken() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::running(&mut rig, 1);
    rig.gate.set_open(false);
    front.put(0, 0, kind::OUT, 0, 0x61);
    front.put(0, 1, kind::OUT, 1, 0x62);
    rig.run();
    rig.gate.pass_youngest();
    rig.run();
    rig.kill_and_restart();
    rig.gate.set_open(true);
    front.reconnect(&mut rig);
    front.greet(&mut rig, false);
    front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
    front.give_inflight();
    assert!(front.wire.send(request::SET_MEM_TABLE, PLAIN, &front.memory.table(), &[&front.memory.file]));
    front.describe_ring(0, 1);
    assert_eq!(front.get_base(&mut rig, 0), 2);
    assert_eq!(front.used(0), [1, 0]);
}

/// The dead life may have published and not told. Its heir tells the driver, also when the front-end stops the ring with
/// the very next message (a machine that is paused as soon as it is back).
#[test]
fn a_ring_that_is_stopped_at_once_still_tells_the_driver_what_the_dead_may_not_have_told() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::running(&mut rig, 1);
    front.check_works(&mut rig, 0, 0x63);
    rig.kill_and_restart();
    front.reconnect(&mut rig);
    front.greet(&mut rig, false);
    rig.run();
    take(&front.calls[0]);
    // All of it is there before the target looks.
    let send = |request, payload: &[u8]| assert!(front.wire.send(request, PLAIN, payload, &[]));
    send(request::SET_FEATURES, &longs(&[FEATURES]));
    front.give_inflight();
    assert!(front.wire.send(request::SET_MEM_TABLE, PLAIN, &front.memory.table(), &[&front.memory.file]));
    front.describe_ring(0, 2);
    assert!(front.wire.send(request::SET_VRING_ENABLE, PLAIN, &words(&[0, 1]), &[]));
    assert_eq!(front.get_base(&mut rig, 0), 2);
    assert_eq!(take(&front.calls[0]), 1, "the guest is told once");
}

#[test]
fn recovery_waits_for_the_whole_description_whatever_its_order() {
    // Every order of the messages that a ring needs.
    let mut orders = vec![vec![]];
    for step in 0..7 {
        orders = orders
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                (0..=order.len()).map(move |at| {
                    let mut order = order.clone();
                    order.insert(at, step);
                    order
                })
            })
            .collect();
    }
    assert_eq!(orders.len(), 5040);
    // A ring starts with all but its base, so the base is not last. One order in 23 meets every pair both ways.
    for order in orders.iter().filter(|order| order.last() != Some(&1)).step_by(23) {
        let mut rig = Rig::new();
        let mut front = FrontEnd::running(&mut rig, 1);
        rig.gate.set_open(false);
        front.put(0, 3, kind::OUT, 3, 0x33);
        rig.run();
        rig.kill_and_restart();
        rig.gate.set_open(true);
        front.reconnect(&mut rig);
        front.greet(&mut rig, false);
        // The region before whatever makes the ring start; it may be first or last but one of the others.
        front.give_inflight();
        for step in order {
            match step {
                0 => front.send(&mut rig, request::SET_VRING_NUM, &words(&[0, QUEUE_SIZE.into()]), &[]),
                1 => front.send(&mut rig, request::SET_VRING_BASE, &words(&[0, 0]), &[]),
                2 => {
                    let addresses = front.rings[0].addresses(&front.memory, 0);
                    front.send(&mut rig, request::SET_VRING_ADDR, &addresses, &[]);
                }
                3 => {
                    let (region, file) = (front.memory.single_region(), &front.memory.file);
                    assert!(front.wire.send(request::ADD_MEM_REG, PLAIN, &region, &[file]));
                    rig.run();
                }
                4 => {
                    assert!(front.wire.send(
                        request::SET_VRING_KICK,
                        PLAIN,
                        &longs(&[0]),
                        &[&front.kicks[0]]
                    ));
                    rig.run();
                }
                5 => front.send(&mut rig, request::SET_VRING_ENABLE, &words(&[0, 1]), &[]),
                _ => front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES | EVENT_IDX]), &[]),
            }
        }
        assert_eq!(front.used(0), [3], "order {order:?}");
        assert!(take(&front.calls[0]) > 0, "order {order:?}: the guest was told");
        // With EVENT_IDX the driver is told when used_event is crossed, whatever its flags say; it stands at 0.
        front.put(0, 4, kind::OUT, 4, 0x44);
        rig.run();
        assert_eq!(front.used(0), [4], "order {order:?}");
        assert_eq!(take(&front.calls[0]), 0, "order {order:?}: the ring was read without its features");
    }
}

#[test]
fn a_driver_that_was_reset_says_its_features_before_its_rings_start() {
    for (number, payload) in [(request::SET_STATUS, longs(&[0])), (request::RESET_DEVICE, vec![])] {
        let mut rig = Rig::new();
        let mut front = FrontEnd::running(&mut rig, 1);
        assert_eq!(front.ack(&mut rig, number, &payload, &[]), 0);
        front.memory.write(front.memory.guest, &[0; RING_SPACE as usize]);
        (front.rings[0].available, front.rings[0].used) = (0, 0);
        front.describe_ring(0, 0);
        front.enable(&mut rig, 1);
        assert_eq!(rig.running(), 0);
        front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
        assert_eq!(rig.running(), 1);
        front.check_works(&mut rig, 0, 7);
    }
}

#[test]
fn a_kick_that_came_before_the_ring_was_enabled_is_not_lost() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::connect(&mut rig, 1);
    front.greet(&mut rig, true);
    front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
    let (table, file) = (front.memory.table(), front.memory.file.try_clone().unwrap());
    assert_eq!(front.ack(&mut rig, request::SET_MEM_TABLE, &table, &[&file]), 0);
    front.describe_ring(0, 0);
    front.put(0, 0, kind::OUT, 1, 0x77);
    rustix::io::write(&front.kicks[0], &1_u64.to_ne_bytes()).unwrap();
    rig.run();
    assert_eq!(front.used(0), NONE, "a disabled ring takes nothing");
    front.enable(&mut rig, 1);
    assert_eq!(front.used(0), [0]);
    // Disabled again and enabled again.
    front.enable(&mut rig, 0);
    front.put(0, 1, kind::OUT, 2, 0x78);
    rig.run();
    assert_eq!(front.used(0), NONE);
    front.enable(&mut rig, 1);
    assert_eq!(front.used(0), [1]);
}

#[test]
fn without_protocol_features_the_rings_are_enabled_at_once() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::connect(&mut rig, 1);
    front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES & !PROTOCOL_FEATURES_BIT]), &[]);
    assert!(front.wire.send(request::SET_MEM_TABLE, PLAIN, &front.memory.table(), &[&front.memory.file]));
    front.describe_ring(0, 0);
    rig.run();
    assert_eq!(rig.running(), 1);
    front.put(0, 0, kind::OUT, 0, 1);
    rig.run();
    assert_eq!(front.used(0), [0]);
}

#[test]
fn a_ring_is_stopped_only_when_it_is_drained_and_later_messages_wait_in_order() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::running(&mut rig, 2);
    rig.gate.set_open(false);
    for slot in 0..3 {
        front.put(0, slot, kind::OUT, slot.into(), 9);
    }
    rig.run();
    assert!(front.wire.send(request::GET_VRING_BASE, PLAIN, &words(&[0, 0]), &[]));
    assert!(front.wire.send(request::GET_QUEUE_NUM, PLAIN, &[], &[]));
    rig.run();
    // A request that comes meanwhile is not taken; the other ring goes on.
    front.put(0, 3, kind::OUT, 3, 9);
    front.put(1, 0, kind::FLUSH, 0, 0);
    rig.run();
    assert!(front.nothing_came());
    assert_eq!(rig.in_flight(), 4);
    rig.gate.set_open(true);
    rig.run();
    let state = front.reply(request::GET_VRING_BASE);
    assert_eq!((state.number32(0), state.number32(4)), (0, 3));
    assert_eq!(front.reply(request::GET_QUEUE_NUM).number(), 128);
    assert_eq!(front.used(0), [0, 1, 2]);
    assert_eq!(front.used(1), [0]);
    // It goes on where it was with a new kick alone.
    assert!(front.wire.send(request::SET_VRING_KICK, PLAIN, &longs(&[0]), &[&front.kicks[0]]));
    rig.run();
    assert_eq!(front.used(0), [3]);
}

#[test]
fn the_memory_table_is_replaced_only_when_nothing_is_in_flight() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::running(&mut rig, 1);
    rig.gate.set_open(false);
    front.put(0, 0, kind::OUT, 5, 0xaa);
    rig.run();
    // The same memory, at other addresses of the front-end's. The ring is found through its old ones no more.
    let table = front.memory.table();
    let file = front.memory.file.try_clone().unwrap();
    assert!(front.wire.send(request::SET_MEM_TABLE, NEED_REPLY, &table, &[&file]));
    rig.run();
    front.put(0, 1, kind::OUT, 6, 0xbb);
    rig.run();
    assert!(front.nothing_came());
    assert_eq!(rig.in_flight(), 1, "no request is taken meanwhile");
    rig.gate.set_open(true);
    rig.run();
    assert_eq!(front.reply(request::SET_MEM_TABLE).number(), 0);
    assert_eq!(front.used(0), [0, 1]);
    front.check_works(&mut rig, 0, 0xcc);

    // A table that cannot be used changes nothing.
    let hostile = [words(&[2, 0]), front.memory.region(), front.memory.region()].concat();
    assert_ne!(front.ack(&mut rig, request::SET_MEM_TABLE, &hostile, &[&file, &file]), 0);
    let beyond = [words(&[1, 0]), longs(&[0, 1 << 21, 0, 0])].concat();
    assert_ne!(front.ack(&mut rig, request::SET_MEM_TABLE, &beyond, &[&file]), 0);
    assert_ne!(
        front.ack(&mut rig, request::SET_MEM_TABLE, &table, &[&front.kicks[0].try_clone().unwrap()]),
        0
    );
    front.check_works(&mut rig, 0, 0xdd);

    // A table without the ring: it waits, and goes on when the memory is back.
    let other = Memory::new(0, 0x1000, 4096);
    assert_eq!(front.ack(&mut rig, request::SET_MEM_TABLE, &other.table(), &[&other.file]), 0);
    assert_eq!(rig.running(), 0);
    front.put(0, 2, kind::OUT, 7, 0xee);
    rig.run();
    assert_eq!(front.used(0), NONE);
    assert_eq!(front.ack(&mut rig, request::SET_MEM_TABLE, &table, &[&file]), 0);
    assert_eq!(rig.running(), 1);
    assert_eq!(front.used(0), [2]);
}

#[test]
fn memory_comes_and_goes_under_load() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::running(&mut rig, 1);
    let more = Memory::new(0x4000_0000, 0x7e00_0000_0000, 1 << 20);
    assert_eq!(front.ack(&mut rig, request::ADD_MEM_REG, &more.single_region(), &[&more.file]), 0);
    assert_ne!(front.ack(&mut rig, request::ADD_MEM_REG, &more.single_region(), &[&more.file]), 0, "twice");
    rig.gate.set_open(false);
    front.put(0, 0, kind::OUT, 0, 1);
    rig.run();
    assert!(front.wire.send(request::REM_MEM_REG, NEED_REPLY, &more.single_region(), &[&more.file]));
    rig.run();
    assert!(front.nothing_came(), "not while something is in flight");
    rig.gate.set_open(true);
    rig.run();
    assert_eq!(front.reply(request::REM_MEM_REG).number(), 0);
    assert_ne!(front.ack(&mut rig, request::REM_MEM_REG, &more.single_region(), &[]), 0, "it is gone");
    rig.pass(Duration::from_millis(6));
    front.used(0);
    front.check_works(&mut rig, 0, 2);

    // QEMU reshapes a region by taking it away and adding its parts. The ring lies in the first part, the request in
    // the second: the ring is back before its buffers are.
    let (first, second) = (RING_SPACE / 2, front.memory.len - RING_SPACE / 2);
    let part = |offset: u64, len: u64| {
        longs(&[0, front.memory.guest + offset, len, front.memory.user + offset, offset])
    };
    let parts = [part(0, first), part(first, second)];
    let whole = front.memory.single_region();
    let file = front.memory.file.try_clone().unwrap();
    assert_eq!(rig.running(), 1);
    assert_eq!(front.ack(&mut rig, request::REM_MEM_REG, &whole, &[]), 0);
    assert_eq!(rig.running(), 0, "the ring's memory is gone");
    front.put(0, 17, kind::OUT, 33, 0x99);
    assert!(front.rings[0].payload_at(17) < front.memory.guest + first, "the buffers of slot 17 are near");
    let far = front.memory.guest + first + 64;
    front.memory.write(far, &[0x98; PAYLOAD as usize]);
    front.memory.write(front.rings[0].at + 16 * (3 * 17 + 1), &far.to_le_bytes());
    assert_eq!(front.ack(&mut rig, request::ADD_MEM_REG, &parts[0], &[&file]), 0);
    assert_eq!(rig.running(), 1);
    assert_eq!(front.used(0), NONE, "no request is taken while memory changes");
    assert_eq!(front.ack(&mut rig, request::ADD_MEM_REG, &parts[1], &[&file]), 0);
    rig.pass(Duration::from_millis(6));
    assert_eq!(front.used(0), [17]);
    assert_eq!(front.rings[0].status(&front.memory, 17), 0);
    assert_eq!(rig.gate.content(33 * 512, 1), [0x98]);
}

#[test]
fn a_migration_logs_what_it_writes_and_does_not_restart_the_rings() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::running(&mut rig, 1);
    front.check_works(&mut rig, 0, 1);
    let log = Memory::new(0, 0, 4096);
    let written = new_eventfd();
    let reply = front.ask(&mut rig, request::SET_LOG_BASE, &longs(&[4096, 0]), &[&log.file]);
    assert_eq!(reply.payload, longs(&[4096, 0]), "the description comes back");
    assert_eq!(front.ack(&mut rig, request::SET_LOG_FD, &[], &[&written]), 0);
    assert_eq!(front.ack(&mut rig, request::SET_FEATURES, &longs(&[FEATURES | LOG_ALL]), &[]), 0);
    let addresses = front.rings[0].addresses(&front.memory, 1);
    assert_eq!(front.ack(&mut rig, request::SET_VRING_ADDR, &addresses, &[]), 0);
    assert_eq!(rig.running(), 1);
    let is_dirty = |guest: u64| {
        let page = guest / 4096;
        log.read::<1>(page / 8)[0] & 1 << (page % 8) != 0
    };
    let (payload_at, used_at) = (front.rings[0].payload_at(0), front.rings[0].used_at());
    assert!(!is_dirty(payload_at) && !is_dirty(used_at));
    front.put(0, 0, kind::IN, 100, 0);
    rig.run();
    assert_eq!(front.used(0), [0]);
    assert!(is_dirty(payload_at) && is_dirty(used_at));
    assert!(take(&written) > 0);

    // So does a wish to be notified, at once: no request may ever follow it. Before sleep it is written on, after it off.
    for _ in 0..2 {
        log.write(0, &[0; 64]);
        rig.arm();
        assert!(is_dirty(used_at) && take(&written) > 0, "the wish to be notified");
        log.write(0, &[0; 64]);
        rig.run();
        assert!(is_dirty(used_at), "the wish to be left alone");
        assert!(!is_dirty(payload_at));
    }

    // Cancelled: QEMU drops the log on running rings.
    front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
    let addresses = front.rings[0].addresses(&front.memory, 0);
    front.send(&mut rig, request::SET_VRING_ADDR, &addresses, &[]);
    log.write(0, &[0; 64]);
    front.check_works(&mut rig, 0, 3);
    assert!(!is_dirty(payload_at) && !is_dirty(used_at));

    // Other addresses are another matter.
    let mut elsewhere = addresses.clone();
    elsewhere[8] ^= 0x40;
    assert_ne!(front.ack(&mut rig, request::SET_VRING_ADDR, &elsewhere, &[]), 0);
    front.check_works(&mut rig, 0, 4);
    assert_eq!(front.get_base(&mut rig, 0), 7);
}

#[test]
fn a_reset_drains_forgets_the_rings_and_keeps_the_memory() {
    for with_status in [false, true] {
        let mut rig = Rig::new();
        let mut front = FrontEnd::running(&mut rig, 1);
        rig.gate.set_open(false);
        front.put(0, 0, kind::IN, 0, 0);
        rig.run();
        let (number, payload) =
            if with_status { (request::SET_STATUS, longs(&[0])) } else { (request::RESET_DEVICE, vec![]) };
        assert!(front.wire.send(number, NEED_REPLY, &payload, &[]));
        rig.run();
        assert!(front.nothing_came(), "not while the guest's memory may still be written");
        rig.gate.set_open(true);
        rig.run();
        assert_eq!(front.reply(number).number(), 0);
        assert_eq!(rig.running(), 0);
        assert_eq!(front.ask(&mut rig, request::GET_STATUS, &[], &[]).number(), 0);
        // Only a migration's source cares for this: the status 0 comes first there, too.
        assert_eq!(front.get_base(&mut rig, 0), if with_status { 1 } else { 0 });
        // The guest begins anew, with the same region of inflight memory.
        front.memory.write(front.memory.guest, &[0; RING_SPACE as usize]);
        (front.rings[0].available, front.rings[0].used) = (0, 0);
        front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES]), &[]);
        front.give_inflight();
        front.describe_ring(0, 0);
        front.enable(&mut rig, 1);
        front.check_works(&mut rig, 0, 5);
    }
}

#[test]
fn the_front_end_is_told_of_a_resize_once_and_never_while_suspended() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::connect(&mut rig, 1);
    front.greet(&mut rig, true);
    let (mut backend, far) = Wire::pair();
    assert_eq!(front.ack(&mut rig, request::SET_BACKEND_REQ_FD, &[], &[&far]), 0);
    drop(far);
    rig.gate.resize(2 * NUM_BLOCKS);
    rig.controller.resized();
    rig.pass(Duration::from_millis(200));
    assert!(matches!(backend.receive(), Ok(None)), "no ring runs: the device is suspended");
    front.track(&mut rig);
    front.start(&mut rig, &[0]);
    assert!(matches!(backend.receive(), Ok(None)), "not amid the front-end's own messages");
    rig.pass(Duration::from_millis(150));
    let change = backend.receive().unwrap().expect("a message");
    assert_eq!((change.request, change.flags, change.payload.len()), (2, NEED_REPLY, 0));
    let config = front.ask(&mut rig, request::GET_CONFIG, &[words(&[0, 8, 0]), vec![0; 8]].concat(), &[]);
    assert_eq!(u64::from(config.number32(12)), 2 * NUM_BLOCKS);

    // A second and a third change wait for the answer and are then told as one.
    rig.controller.resized();
    rig.controller.resized();
    rig.pass(Duration::from_millis(200));
    assert!(matches!(backend.receive(), Ok(None)));
    assert!(backend.send(2, REPLY, &longs(&[0]), &[]));
    rig.pass(Duration::from_millis(200));
    assert_eq!(backend.receive().unwrap().expect("a message").request, 2);
    assert!(backend.send(2, REPLY, &longs(&[0]), &[]));
    rig.pass(Duration::from_millis(200));
    assert!(matches!(backend.receive(), Ok(None)));

    // The channel breaks: the session goes on.
    rig.controller.resized();
    rig.pass(Duration::from_millis(200));
    drop(backend);
    rig.pass(Duration::from_millis(200));
    rig.controller.resized();
    rig.pass(Duration::from_millis(200));
    front.check_works(&mut rig, 0, 6);
}

#[test]
fn the_write_cache_is_what_the_front_end_last_heard_or_said() {
    let write_through = [words(&[32, 1, 0]), vec![0]].concat();
    let mut rig = Rig::new();
    let mut front = FrontEnd::running(&mut rig, 1);
    front.check_works(&mut rig, 0, 1);
    rig.kill_and_restart();
    front.reconnect(&mut rig);
    front.greet(&mut rig, false);
    front.give_inflight();
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 1);
    assert_eq!(rig.gate.durable_writes(), 0, "on, as it was before the death");
    assert_eq!(front.ack(&mut rig, request::SET_CONFIG, &write_through, &[]), 0);
    front.check_works(&mut rig, 0, 2);
    assert_eq!(rig.gate.durable_writes(), 1);
    // Not writable, not there, not a value.
    let refused = [(0, 8, vec![1; 8]), (96, 1, vec![0]), (95, 2, vec![0; 2]), (32, 1, vec![2])];
    for (offset, len, bytes) in refused {
        let payload = [words(&[offset, len, 0]), bytes].concat();
        assert_ne!(front.ack(&mut rig, request::SET_CONFIG, &payload, &[]), 0, "{offset}");
    }
    let outside = front.ask(&mut rig, request::GET_CONFIG, &[words(&[96, 1, 0]), vec![0]].concat(), &[]);
    assert_eq!(outside.payload, [0_u8; 0], "an error is told by an empty payload");

    // The guest restarts: QEMU shows its driver what it was told last.
    front.send(&mut rig, request::SET_STATUS, &longs(&[0]), &[]);
    let base = front.get_base(&mut rig, 0) as u16;
    front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES & !(1 << 11)]), &[]);
    front.track(&mut rig);
    front.start(&mut rig, &[base]);
    front.check_works(&mut rig, 0, 3);
    assert_eq!(rig.gate.durable_writes(), 2);

    // The target restarts: the front-end repeats nothing, the inflight region tells.
    rig.kill_and_restart();
    front.reconnect(&mut rig);
    front.greet(&mut rig, false);
    front.give_inflight();
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 4);
    assert_eq!(rig.gate.durable_writes(), 3);

    // Where nothing tells, writes are durable.
    rig.kill_and_restart();
    front.reconnect(&mut rig);
    front.greet(&mut rig, false);
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 5);
    assert_eq!(rig.gate.durable_writes(), 4);
}

/// A front-end that reconnects may ask for the configuration as one that begins does, before it gives back its region.
#[test]
fn the_write_cache_stays_off_when_a_front_end_that_reconnects_asks_for_the_configuration() {
    let write_through = [words(&[32, 1, 0]), vec![0]].concat();
    let mut rig = Rig::new();
    let mut front = FrontEnd::running(&mut rig, 1);
    assert_eq!(front.ack(&mut rig, request::SET_CONFIG, &write_through, &[]), 0);
    front.check_works(&mut rig, 0, 1);
    assert_eq!(rig.gate.durable_writes(), 1);

    // The target lives, and nothing is tracked: it remembers, and shows it.
    front.reconnect(&mut rig);
    front.greet(&mut rig, true);
    let shown = front.ask(&mut rig, request::GET_CONFIG, &[words(&[32, 1, 0]), vec![9]].concat(), &[]);
    assert_eq!(shown.payload[12..], [0]);
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 2);
    assert_eq!(rig.gate.durable_writes(), 2);

    // It is another process: the region tells it, and it tells the front-end, which it had shown something else.
    rig.kill_and_restart();
    front.reconnect(&mut rig);
    front.greet(&mut rig, true);
    let (mut backend, far) = Wire::pair();
    assert_eq!(front.ack(&mut rig, request::SET_BACKEND_REQ_FD, &[], &[&far]), 0);
    front.give_inflight();
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 3);
    assert_eq!(rig.gate.durable_writes(), 3);
    rig.pass(Duration::from_millis(150));
    assert_eq!(backend.receive().unwrap().expect("a message").request, 2);

    // It is another process, and the region another back-end's.
    let (mut description, region) = front.inflight.take().expect("a region");
    description[..8].copy_from_slice(&queue_region_len(QUEUE_SIZE).to_ne_bytes());
    front.inflight = Some((description, region));
    rig.kill_and_restart();
    front.reconnect(&mut rig);
    front.greet(&mut rig, true);
    front.give_inflight();
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 4);
    assert_eq!(rig.gate.durable_writes(), 4);

    // The driver ends. The next one begins with the cache on.
    front.get_base(&mut rig, 0);
    front.reconnect(&mut rig);
    front.greet(&mut rig, true);
    front.track(&mut rig);
    front.start(&mut rig, &[front.rings[0].used]);
    front.check_works(&mut rig, 0, 5);
    assert_eq!(rig.gate.durable_writes(), 4);
}

#[test]
fn messages_come_and_go_in_any_pieces() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::connect(&mut rig, 1);
    front.greet(&mut rig, true);
    let bytes = message(request::ADD_MEM_REG, NEED_REPLY, &front.memory.single_region());
    for (index, byte) in bytes.iter().enumerate() {
        assert!(front.nothing_came());
        // The handle rides on the first byte.
        let handles: &[&OwnedFd] = if index == 0 { &[&front.memory.file] } else { &[] };
        assert!(front.wire.send_bytes(&[*byte], handles));
        rig.run();
    }
    assert_eq!(front.reply(request::ADD_MEM_REG).number(), 0);
    // Many in one piece, and the handles of the second are not the first's.
    let kick = message(request::SET_VRING_KICK, NEED_REPLY, &longs(&[0]));
    let one = message(request::GET_QUEUE_NUM, PLAIN, &[]);
    assert!(front.wire.send_bytes(&one, &[]));
    assert!(front.wire.send_bytes(&[kick.clone(), one.clone(), one].concat(), &[&front.kicks[0]]));
    rig.run();
    assert_eq!(front.reply(request::GET_QUEUE_NUM).number(), 128);
    assert_eq!(front.reply(request::SET_VRING_KICK).number(), 0);
    assert_eq!(front.reply(request::GET_QUEUE_NUM).number(), 128);
    assert_eq!(front.reply(request::GET_QUEUE_NUM).number(), 128);
}

#[test]
fn the_next_front_end_waits_until_the_one_before_is_gone() {
    let mut rig = Rig::new();
    let mut first = FrontEnd::running(&mut rig, 1);
    let mut second = FrontEnd::connect(&mut rig, 1);
    assert!(second.wire.send(request::GET_QUEUE_NUM, PLAIN, &[], &[]));
    rig.run();
    assert!(second.nothing_came());
    first.check_works(&mut rig, 0, 1);
    rig.gate.set_open(false);
    first.put(0, 0, kind::OUT, 0, 0x5a);
    rig.run();
    let FrontEnd { wire, memory, mut rings, .. } = first;
    drop(wire);
    rig.run();
    assert!(second.nothing_came(), "what the first one had in flight still ends");
    rig.gate.set_open(true);
    rig.run();
    assert_eq!(rings[0].take_used(&memory), [18, 19, 0][2..], "into its ring");
    assert_eq!(second.reply(request::GET_QUEUE_NUM).number(), 128);
    second.greet(&mut rig, true);
    second.start(&mut rig, &[0]);
    second.check_works(&mut rig, 0, 2);
}

#[test]
fn a_controller_that_stops_listens_no_more_drains_and_then_closes() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::running(&mut rig, 1);
    rig.gate.set_open(false);
    front.put(0, 0, kind::OUT, 0, 1);
    rig.run();
    rig.controller.begin_stop();
    rig.run();
    assert!(!rig.path.exists(), "nobody can connect");
    assert!(front.nothing_came() && !rig.controller.is_stopped());
    rig.gate.set_open(true);
    rig.run();
    assert_eq!(front.used(0), [0]);
    assert!(front.is_closed() && rig.controller.is_stopped());
    assert_eq!(rig.controller.poll(runtime::Platform::now(&rig.platform)), Poll::Done);
}

#[test]
fn a_ring_that_cannot_be_believed_ends_alone() {
    let mut rig = Rig::new();
    let mut front = FrontEnd::running(&mut rig, 2);
    let next = front.rings[0].available;
    front.rings[0].corrupt_available(&front.memory, next + QUEUE_SIZE + 1);
    rig.run();
    assert!(take(&front.errors[0]) > 0, "the front-end is told");
    front.check_works(&mut rig, 1, 1);
    assert_eq!(front.get_base(&mut rig, 0), u32::from(next));

    // An inflight region of garbage: the ring does not start, the front-end is told, the other one runs.
    front.get_base(&mut rig, 1);
    let (_, handle) = front.inflight.as_ref().unwrap();
    rustix::io::pwrite(handle, &[0xee; 64], 0).unwrap();
    front.give_inflight();
    front.describe_ring(0, next);
    front.describe_ring(1, front.rings[1].used);
    rig.run();
    assert_eq!(rig.running(), 1);
    assert!(take(&front.errors[0]) > 0);
    front.check_works(&mut rig, 1, 2);
}

#[test]
fn a_front_end_that_shrinks_its_memory_loses_its_connection_and_nothing_else() {
    let mut rig = Rig::new();
    // Guest memory, the inflight region (the target's own is sealed; this one is not), the log.
    for which in 0..3 {
        let mut front = FrontEnd::connect(&mut rig, 1);
        front.greet(&mut rig, true);
        let region = Memory::new(0, 0, 1 << 16);
        front.inflight =
            Some((inflight_description(1 << 15, 1, QUEUE_SIZE), region.file.try_clone().unwrap()));
        front.give_inflight();
        front.start(&mut rig, &[0]);
        let log = Memory::new(0, 0, 4096);
        front.ask(&mut rig, request::SET_LOG_BASE, &longs(&[4096, 0]), &[&log.file]);
        front.send(&mut rig, request::SET_FEATURES, &longs(&[FEATURES | LOG_ALL]), &[]);
        front.check_works(&mut rig, 0, 1);
        rig.gate.set_open(false);
        front.put(0, 0, kind::OUT, 0, 1);
        front.put(0, 1, kind::IN, 0, 1);
        rig.run();
        rustix::fs::ftruncate([&front.memory.file, &region.file, &log.file][which], 0).unwrap();
        rig.gate.set_open(true);
        rig.run();
        rig.pass(Duration::from_millis(1));
        assert!(front.is_closed(), "{which}");
        let mut next = FrontEnd::running(&mut rig, 1);
        next.check_works(&mut rig, 0, 2);
    }
}

#[test]
fn a_sleeping_core_is_woken_by_the_kick_and_by_the_socket() {
    let mut rig = Rig::new();
    let mut armed = Armed::default();
    let now = runtime::Platform::now(&rig.platform);
    assert_eq!(rig.controller.arm(now, &mut armed), Poll::Idle { until: None });
    assert_eq!(armed, Armed { listeners: 1, ..Armed::default() });
    let mut front = FrontEnd::running(&mut rig, 2);
    let mut armed = Armed::default();
    let now = runtime::Platform::now(&rig.platform);
    assert_eq!(rig.controller.arm(now, &mut armed), Poll::Idle { until: None });
    assert_eq!(armed, Armed { streams: 1, notifiers: 2, listeners: 0 });
    front.put(0, 0, kind::OUT, 0, 1);
    assert_eq!(rig.controller.arm(now, &mut Armed::default()), Poll::Busy);
    // While a message waits, what comes behind it must not end every sleep at once.
    rig.gate.set_open(false);
    rig.run();
    assert!(front.wire.send(request::GET_VRING_BASE, PLAIN, &words(&[0, 0]), &[]));
    assert!(front.wire.send(request::GET_QUEUE_NUM, PLAIN, &[], &[]));
    rig.run();
    let mut armed = Armed::default();
    rig.controller.arm(now, &mut armed);
    assert_eq!(armed.streams, 0);
}

/// What a front-end may do wrong, how it is answered, and that the next one is served.
#[test]
fn a_wrong_message_is_answered_in_its_own_way_or_ends_the_connection() {
    enum Answered {
        /// With a number that is not 0, where it was asked for; else the connection ends.
        Refused,
        /// With this number, asked for or not.
        Always(u64),
        /// By the end of the connection.
        Closed,
    }
    use Answered::{Always, Closed, Refused};
    let file = Memory::new(0, 0, 4096).file;
    let spare = Memory::new(0, 0, 1 << 16).file;
    let mut misaligned = inflight_description(1 << 15, 1, 64);
    misaligned[8] = 4;
    let ring_128 = words(&[128, 0]);
    type Case<'a> = (&'a str, u32, Vec<u8>, Vec<&'a OwnedFd>, Answered);
    let cases: Vec<Case<'_>> = vec![
        ("unknown", 45, vec![], vec![], Refused),
        ("inflight misaligned", request::SET_INFLIGHT_FD, misaligned, vec![&spare], Refused),
        ("unknown 0", 0, vec![], vec![], Refused),
        ("features not offered", request::SET_FEATURES, longs(&[1 << 34]), vec![], Refused),
        ("protocol features", request::SET_PROTOCOL_FEATURES, longs(&[1 << 20]), vec![], Refused),
        ("ring 128", request::SET_VRING_NUM, words(&[128, 64]), vec![], Refused),
        ("ring 128", request::SET_VRING_ENABLE, ring_128.clone(), vec![], Refused),
        ("ring 128", request::GET_VRING_BASE, ring_128.clone(), vec![], Closed),
        ("kick without handle", request::SET_VRING_KICK, longs(&[0]), vec![], Refused),
        ("kick that is a file", request::SET_VRING_KICK, longs(&[0]), vec![&file], Refused),
        ("channel that is a file", request::SET_BACKEND_REQ_FD, vec![], vec![&file], Refused),
        ("handle with no use", request::SET_OWNER, vec![], vec![&file], Refused),
        ("log beyond its file", request::SET_LOG_BASE, longs(&[8192, 0]), vec![&file], Closed),
        ("log of no bytes", request::SET_LOG_BASE, longs(&[0, 0]), vec![&file], Closed),
        (
            "inflight too small",
            request::SET_INFLIGHT_FD,
            inflight_description(64, 2, 64),
            vec![&file],
            Refused,
        ),
        (
            "inflight beyond",
            request::SET_INFLIGHT_FD,
            inflight_description(1 << 30, 128, 128),
            vec![&file],
            Refused,
        ),
        ("inflight of no rings", request::GET_INFLIGHT_FD, inflight_description(0, 0, 64), vec![], Closed),
        ("region of no bytes", request::ADD_MEM_REG, longs(&[0, 0, 0, 0, 0]), vec![&file], Refused),
        ("region that wraps", request::ADD_MEM_REG, longs(&[0, u64::MAX, 4096, 0, 0]), vec![&file], Refused),
        ("region beyond", request::ADD_MEM_REG, longs(&[0, 0, 4096, 0, u64::MAX]), vec![&file], Refused),
        ("RARP", 19, longs(&[0]), vec![], Refused),
        ("IOTLB", 22, vec![0; 32], vec![], Always(1)),
        ("crypto", 26, vec![0; 64], vec![], Closed),
        ("postcopy advise", 28, vec![], vec![], Closed),
        ("postcopy end", 30, vec![], vec![], Always(1)),
        ("GPU", 33, vec![], vec![&file], Refused),
        ("in-band kick", 35, words(&[0, 0]), vec![], Refused),
        ("shared object", 41, vec![0; 16], vec![], Closed),
        ("device state", 42, words(&[0, 0]), vec![&file], Always(0x101)),
        ("device state", 43, vec![], vec![], Always(1)),
    ];
    let mut rig = Rig::new();
    for (name, number, payload, handles, answered) in cases {
        for flags in [PLAIN, NEED_REPLY] {
            let mut front = FrontEnd::connect(&mut rig, 1);
            front.greet(&mut rig, true);
            assert!(front.wire.send(number, flags, &payload, &handles));
            rig.run();
            match answered {
                Refused if flags == PLAIN => assert!(front.is_closed(), "{name}"),
                Refused => assert_ne!(front.reply(number).number(), 0, "{name}"),
                Always(value) => assert_eq!(front.reply(number).number(), value, "{name}"),
                Closed => assert!(front.is_closed(), "{name}"),
            }
            let goes_on = match answered {
                Refused => flags == NEED_REPLY,
                Always(_) => true,
                Closed => false,
            };
            if goes_on {
                front.track(&mut rig);
                front.start(&mut rig, &[0]);
                front.check_works(&mut rig, 0, 1);
            }
        }
    }
    // Framing that cannot be believed.
    let framings: [&[u32]; 4] = [&[1, 2, 0], &[1, 5, 0], &[1, 1, 4097], &[1, 1, u32::MAX]];
    for header in framings {
        let mut front = FrontEnd::connect(&mut rig, 1);
        assert!(front.wire.send_bytes(&words(header), &[]));
        rig.run();
        assert!(front.is_closed(), "{header:?}");
    }
    let mut front = FrontEnd::running(&mut rig, 1);
    front.check_works(&mut rig, 0, 2);
}

/// One thing that a front-end without sense may do.
#[derive(Clone, Debug)]
enum Move {
    /// A message, mostly well formed on the outside.
    Message { number: u32, flags: u32, payload: Vec<u8>, handles: Vec<u8> },
    /// A message that a front-end may really send, at any time. 0 to 255.
    Sane(u8),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Requests in the ring, sane ones or with anything at all in the descriptors.
    Request { slot: u16, garbage: Option<[u8; 16]> },
    /// The gate of the device.
    Gate(bool),
    /// Time.
    Pass(u16),
    /// A new connection.
    Reconnect,
}

/// Payloads in which numbers are often in range.
fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    let small = prop_oneof![Just(0_u32), Just(1), Just(2), Just(64), Just(128), Just(0x100), any::<u32>()];
    prop_oneof![
        4 => proptest::collection::vec(small, 0..12).prop_map(|numbers| words(&numbers)),
        1 => proptest::collection::vec(any::<u8>(), 0..300),
    ]
}

fn any_move() -> impl Strategy<Value = Move> {
    let flags = prop_oneof![4 => Just(PLAIN), 4 => Just(NEED_REPLY), 1 => any::<u32>()];
    prop_oneof![
        12 => (1..45_u32, flags, any_payload(), proptest::collection::vec(0..4_u8, 0..3)).prop_map(
            |(number, flags, payload, handles)| Move::Message { number, flags, payload, handles }
        ),
        20 => any::<u8>().prop_map(Move::Sane),
        1 => proptest::collection::vec(any::<u8>(), 1..64).prop_map(Move::Bytes),
        12 => (0..20_u16, proptest::option::weighted(0.3, any::<[u8; 16]>()))
            .prop_map(|(slot, garbage)| Move::Request { slot, garbage }),
        2 => any::<bool>().prop_map(Move::Gate),
        1 => any::<u16>().prop_map(Move::Pass),
        1 => Just(Move::Reconnect),
    ]
}

/// Sends one well-formed message for the front-end's ring, with an answer asked for every other time.
fn sane(front: &FrontEnd, spare: &Memory, which: u8) {
    let flags = if which.is_multiple_of(2) { PLAIN } else { NEED_REPLY };
    let memory = &front.memory;
    let ring = &front.rings[0];
    let (number, payload, handle) = match which / 2 % 20 {
        0 => (request::SET_VRING_NUM, words(&[0, QUEUE_SIZE.into()]), None),
        1 => (request::SET_VRING_BASE, words(&[0, ring.used.into()]), None),
        2 => (request::SET_VRING_ADDR, ring.addresses(memory, 0), None),
        3 => (request::SET_VRING_ADDR, ring.addresses(memory, 1), None),
        4 | 5 => (request::SET_VRING_KICK, longs(&[0]), Some(&front.kicks[0])),
        6 => (request::SET_VRING_KICK, longs(&[0x100]), None),
        7 | 8 => (request::SET_VRING_ENABLE, words(&[0, 1]), None),
        9 => (request::SET_VRING_ENABLE, words(&[0, 0]), None),
        10 => (request::GET_VRING_BASE, words(&[0, 0]), None),
        11 => (request::SET_MEM_TABLE, memory.table(), Some(&memory.file)),
        12 => (request::ADD_MEM_REG, memory.single_region(), Some(&memory.file)),
        13 => (request::REM_MEM_REG, memory.single_region(), None),
        14 => (request::SET_INFLIGHT_FD, inflight_description(1 << 15, 1, QUEUE_SIZE), Some(&spare.file)),
        15 => (request::SET_FEATURES, longs(&[FEATURES | if which < 128 { LOG_ALL } else { 0 }]), None),
        16 => (request::SET_LOG_BASE, longs(&[4096, 0]), Some(&spare.file)),
        17 => (request::RESET_DEVICE, vec![], None),
        18 => (request::SET_STATUS, longs(&[0]), None),
        _ => (request::RESET_OWNER, vec![], None),
    };
    front.wire.send(number, flags, &payload, handle.as_slice());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a front-end does, nothing panics, nothing spins, and the next front-end is served.
    #[test]
    fn no_front_end_harms_the_next(moves in proptest::collection::vec(any_move(), 1..60), start in any::<bool>()) {
        let mut rig = Rig::new();
        let mut front = if start { FrontEnd::running(&mut rig, 1) } else { FrontEnd::connect(&mut rig, 1) };
        let spare = Memory::new(0, 0, 1 << 16);
        let (_near, far) = Wire::pair();
        for step in moves {
            match step {
                Move::Message { number, flags, payload, handles } => {
                    let objects = [&front.memory.file, &spare.file, &front.kicks[0], &far];
                    let handles: Vec<_> = handles.iter().map(|handle| objects[usize::from(*handle)]).collect();
                    front.wire.send(number, flags, &payload, &handles);
                }
                Move::Sane(which) => sane(&front, &spare, which),
                Move::Bytes(bytes) => {
                    front.wire.send_bytes(&bytes, &[]);
                }
                Move::Request { slot, garbage } => {
                    front.put(0, slot, kind::OUT, slot.into(), 1);
                    if let Some(bytes) = garbage {
                        front.memory.write(front.rings[0].at + 48 * u64::from(slot), &bytes);
                    }
                }
                Move::Gate(open) => rig.gate.set_open(open),
                Move::Pass(micros) => rig.platform.pass(Duration::from_micros(micros.into())),
                Move::Reconnect => front.reconnect(&mut rig),
            }
            rig.run();
            while let Ok(Some(_)) = front.wire.receive() {}
        }
        rig.gate.set_open(true);
        drop(front);
        rig.pass(Duration::from_secs(1));
        let mut next = FrontEnd::running(&mut rig, 2);
        next.check_works(&mut rig, 0, 0x12);
        next.check_works(&mut rig, 1, 0x13);
    }
}
