//! Packets on their way: when each leaves and arrives, and which never does.

use super::Sockets;
use crate::faults::FaultKind;
use crate::scheduler::Event;
use crate::trace::Record;
use crate::world::World;
use runtime::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use turmoil_net::{Packet, TcpFlags, TcpSegment, Transport};

/// Between two passes over all hosts that take what they have to send, while there is anything, in nanoseconds.
const PASS_NS: (u64, u64) = (2_000, 20_000);
/// The same while nothing is sent and something may be unacknowledged.
const IDLE_PASS_NS: u64 = 100_000;
/// Passes without a packet after which nothing can be unacknowledged any more: more than a retransmission takes.
const IDLE_PASSES_MAX: u32 = 34;
/// What a packet takes, in nanoseconds.
const LATENCY_NS: (u64, u64) = (5_000, 50_000);
/// What a late one takes longer, at most.
const LATE_NS_MAX: u64 = 2_000_000;
/// How long one is held, with all behind it, at most.
const HELD_NS_MAX: u64 = 50_000_000;

/// An end of a connection, by its own address and the other end's.
type Tuple = (SocketAddr, SocketAddr);

/// The packets of a network.
#[derive(Default)]
pub(crate) struct Packets {
    on_their_way: BTreeMap<u64, Packet>,
    sent: u64,
    /// When the last packet from one address to another arrives: the next one comes after it.
    last: BTreeMap<(IpAddr, IpAddr), Instant>,
    /// Ends that nobody holds any more. Turmoil's TCP would take data for them for ever.
    forgotten: BTreeSet<Tuple>,
    /// Ends of machines without power, which say nothing more.
    silent: BTreeSet<Tuple>,
    pass_is_due: bool,
    idle_passes: u32,
}

impl Packets {
    /// An end is held by nobody any more.
    pub(super) fn forget(&mut self, local: SocketAddr, peer: SocketAddr) {
        self.forgotten.insert((local, peer));
    }

    /// An end says nothing more.
    pub(super) fn silence(&mut self, local: SocketAddr, peer: SocketAddr) {
        self.silent.insert((local, peer));
    }
}

/// A packet that resets the connection of another one: sent back, or as if it had come the same way.
fn reset(packet: &Packet, segment: &TcpSegment, back: bool) -> Packet {
    let mut reset = TcpSegment {
        src_port: segment.src_port,
        dst_port: segment.dst_port,
        seq: segment.ack,
        ack: segment.seq,
        flags: TcpFlags { rst: true, ack: true, ..TcpFlags::default() },
        window: 0,
        payload: Default::default(),
    };
    let (mut src, mut dst) = (packet.src, packet.dst);
    if back {
        std::mem::swap(&mut src, &mut dst);
        std::mem::swap(&mut reset.src_port, &mut reset.dst_port);
    }
    Packet { src, dst, ttl: packet.ttl, payload: Transport::Tcp(reset) }
}

impl World {
    /// Somebody did something that hosts may have packets to send for.
    pub(super) fn network_works(&mut self) {
        self.network().packets.idle_passes = 0;
        let wait = self.streams.network.between(PASS_NS.0, PASS_NS.1);
        self.pass_after(wait);
        self.wake_network();
    }

    fn pass_after(&mut self, wait_ns: u64) {
        if !std::mem::replace(&mut self.network().packets.pass_is_due, true) {
            self.schedule(Instant(self.now.0 + wait_ns), Event::Network);
        }
    }

    /// All hosts send what they have to.
    pub(crate) fn network_event(&mut self) {
        let mut packets = Vec::new();
        let network = self.network();
        network.packets.pass_is_due = false;
        let may_bring = network.packets.idle_passes == 0;
        network.turmoil.egress_all(&mut packets);
        let is_idle = packets.is_empty() && network.packets.on_their_way.is_empty();
        network.packets.idle_passes = if is_idle { network.packets.idle_passes + 1 } else { 0 };
        let goes_on = network.packets.idle_passes <= IDLE_PASSES_MAX;
        if may_bring {
            // Between two ends of one machine nothing else shows that something has come.
            self.changed();
        }
        for packet in packets {
            self.send_packet(packet);
        }
        self.wake_network();
        if goes_on {
            self.pass_after(IDLE_PASS_NS);
        }
    }

    /// A packet leaves.
    fn send_packet(&mut self, packet: Packet) {
        let Transport::Tcp(segment) = &packet.payload else { return };
        let from = SocketAddr::new(packet.src, segment.src_port);
        let to = SocketAddr::new(packet.dst, segment.dst_port);
        let place = u64::from(from.port()) << 48 | u64::from(to.port()) << 32 | u64::from(segment.seq);
        self.trace.add(Record::Packet, place, u64::from(segment.ack) << 32 | segment.payload.len() as u64);
        if self.network().packets.silent.contains(&(from, to)) {
            return;
        }
        let flags = segment.flags;
        let is_acknowledgment = segment.payload.is_empty() && !flags.syn && !flags.fin && !flags.rst;
        if !is_acknowledgment && self.faults.strike(FaultKind::PacketLost, |_| 0).is_some() {
            return;
        }
        let latency = self.streams.network.between(LATENCY_NS.0, LATENCY_NS.1);
        let mut at = Instant(self.now.0 + latency);
        let late = if is_acknowledgment {
            None
        } else {
            self.faults.strike(FaultKind::PacketLate, |rng| rng.between(LATENCY_NS.1, LATE_NS_MAX))
        };
        let held = self.faults.strike(FaultKind::PacketHeld, |rng| rng.between(LATENCY_NS.1, HELD_NS_MAX));
        at.0 += held.unwrap_or(0);
        let last = self.network().packets.last.entry((packet.src, packet.dst)).or_default();
        at.0 = at.0.max(last.0 + 1);
        match late {
            Some(late_ns) => at.0 += late_ns,
            None => *last = at,
        }
        self.packet_arrives_at(at, packet);
    }

    fn packet_arrives_at(&mut self, at: Instant, packet: Packet) {
        let packets = &mut self.network().packets;
        packets.sent += 1;
        let number = packets.sent;
        packets.on_their_way.insert(number, packet);
        self.schedule(at, Event::Packet(number));
    }

    /// A packet arrives.
    pub(crate) fn packet_event(&mut self, number: u64) {
        let network = self.network();
        let Some(packet) = network.packets.on_their_way.remove(&number) else { return };
        let Transport::Tcp(segment) = &packet.payload else { return };
        let from = SocketAddr::new(packet.src, segment.src_port);
        let to = SocketAddr::new(packet.dst, segment.dst_port);
        if segment.flags.syn && !segment.flags.ack {
            network.packets.forgotten.remove(&(to, from));
            network.packets.silent.remove(&(to, from));
            let machine = Sockets::machine_of(to);
            if machine.is_some_and(|machine| !network.is_listened_at(machine, to)) {
                let refusal = reset(&packet, segment, true);
                self.send_packet(refusal);
                return;
            }
        } else if network.packets.forgotten.contains(&(to, from)) && !segment.payload.is_empty() {
            // As a kernel answers data for a socket that nobody holds.
            network.turmoil.deliver(reset(&packet, segment, false));
            let refusal = reset(&packet, segment, true);
            self.packet_arrives_at(Instant(self.now.0 + LATENCY_NS.0), refusal);
            self.network_works();
            return;
        }
        network.turmoil.deliver(packet);
        self.changed();
        self.network_works();
    }
}
