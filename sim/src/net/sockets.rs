//! Listeners and ends of connections: turmoil's sockets, who holds them and who waits for them.
//!
//! Two ways of turmoil's TCP would stop a connection that a real one keeps going, and are kept from it here. It tells a
//! sender of new room only when half of the receive buffer is taken at once: so all of it is taken at once, whenever what
//! was taken before is used up. And what is left of a listener's connections keeps its port: so a listener that is closed
//! keeps turmoil's socket, behind which nobody is, for the next one on that port.

use super::{MACHINES_MAX, Packets, address_of};
use crate::faults::FaultKind;
use crate::memory::SimWindow;
use crate::rng::Rng;
use crate::scheduler::Event;
use crate::trace::Record;
use crate::world::{Waiter, World};
use runtime::{Error, ErrorKind, Instant, Result, Window};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil_net::shim::tokio::net::{TcpListener, TcpStream};
use turmoil_net::{EnterGuard, HostId, KernelConfig, Net};

/// Bytes of turmoil's receive buffer; all of them are taken at once.
const RECEIVE_BUFFER: usize = 64 << 10;
/// Most bytes that one send takes.
pub(super) const SENT_AT_ONCE: u64 = 64 << 10;
/// Passes over all hosts, with something unacknowledged, until it is sent again. They are 2 to 20 µs apart while anything
/// is sent, and 100 µs when nothing is.
const PASSES_TO_RETRANSMISSION: u32 = 32;
/// Retransmissions until a connection is given up: some three seconds of an idle network.
const RETRANSMISSIONS_MAX: u32 = 1000;
/// A send's memory is released after so many nanoseconds, most often and at the longest.
const RELEASE_NS: (u64, u64) = (50_000, 5_000_000);

thread_local! {
    /// Sockets that turmoil said to look at again; it does so in the middle of its own work.
    static WOKEN: RefCell<Vec<Woken>> = const { RefCell::new(Vec::new()) };
}

/// Forgets them: a new world begins.
pub(crate) fn forget_woken() {
    WOKEN.with_borrow_mut(Vec::clear);
}

/// A socket, and what has come for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// Bytes, the end, or the connection itself.
    Receive(u32),
    /// Room to send.
    Send(u32),
    /// A connection to accept.
    Accept(u32),
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        WOKEN.with_borrow_mut(|woken| woken.push(*self));
    }
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>>>>;

/// One end of a connection.
struct End {
    machine: u32,
    /// The process that holds it; `None`: a model.
    process: Option<u32>,
    connecting: Option<Connecting>,
    stream: Option<TcpStream>,
    local: SocketAddr,
    peer: SocketAddr,
    /// What was taken from turmoil and not received yet.
    arrived: VecDeque<u8>,
    /// The other end has sent its last byte, and all are in `arrived`.
    ended: bool,
    failed: Option<Error>,
    held: VecDeque<Held>,
    released: VecDeque<u64>,
    waiter: Waiter,
    sender: Waiter,
    wakers: [Waker; 2],
}

/// What was sent and not released.
struct Held {
    token: u64,
    until: Instant,
    windows: Vec<SimWindow>,
    bytes: Vec<u8>,
}

/// A listener, or what is left of one.
struct Listener {
    machine: u32,
    process: Option<u32>,
    open: bool,
    address: SocketAddr,
    socket: Option<TcpListener>,
    backlog: VecDeque<(TcpStream, SocketAddr)>,
    waiter: Waiter,
    waker: Waker,
}

/// The network of a world, made when it is first used.
pub(crate) struct Sockets {
    ends: Vec<End>,
    listeners: Vec<Listener>,
    pub(super) packets: Packets,
    hosts: Vec<HostId>,
    /// Dropped last: turmoil's sockets close themselves in it.
    pub(super) turmoil: EnterGuard,
}

impl Sockets {
    fn new(rng: &mut Rng) -> Self {
        // Mostly Ethernet's; sometimes jumbo frames, and sometimes segments of a few dozen bytes.
        let mtu = *[1500, 1500, 1500, 9000, 9000, 128, 128, 72].get(rng.below(8) as usize).unwrap_or(&1500);
        let config = KernelConfig::default()
            .mtu(mtu)
            .recv_buf_cap(RECEIVE_BUFFER)
            .retx_threshold(PASSES_TO_RETRANSMISSION)
            .retx_max(RETRANSMISSIONS_MAX);
        let mut net = Net::with_config(config);
        let hosts =
            (0..MACHINES_MAX).map(|machine| net.add_host([false, true].map(|v6| address_of(machine, v6))));
        let hosts = hosts.collect();
        Self {
            ends: Vec::new(),
            listeners: Vec::new(),
            packets: Packets::default(),
            hosts,
            turmoil: net.enter(),
        }
    }

    fn enter(&self, machine: u32) {
        self.turmoil.set_current(self.hosts[machine as usize]);
    }

    /// Where the end looks at turmoil's socket, with the waker for `which` (0: receive, 1: send).
    fn at_end<T>(
        &mut self,
        end: u32,
        which: usize,
        look: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> T,
    ) -> Result<T> {
        self.enter(self.ends[end as usize].machine);
        let end = &mut self.ends[end as usize];
        if let Some(error) = end.failed {
            return Err(error);
        }
        let Some(stream) = &mut end.stream else { return Err(ErrorKind::WouldBlock.into()) };
        let waker = &end.wakers[which];
        Ok(look(Pin::new(stream), &mut Context::from_waker(waker)))
    }

    fn fails<T>(&mut self, end: u32, error: &io::Error) -> Result<T> {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => ErrorKind::Refused,
            _ => ErrorKind::Closed,
        };
        let end = &mut self.ends[end as usize];
        end.failed = Some(kind.into());
        end.held.clear();
        Err(kind.into())
    }

    /// Goes on with the making of a connection; whether it is there.
    fn connected(&mut self, end: u32) -> Result<bool> {
        self.enter(self.ends[end as usize].machine);
        let state = &mut self.ends[end as usize];
        if let Some(error) = state.failed {
            return Err(error);
        }
        let Some(connecting) = &mut state.connecting else { return Ok(true) };
        match connecting.as_mut().poll(&mut Context::from_waker(&state.wakers[0])) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(stream)) => {
                state.connecting = None;
                state.local = stream.local_addr().unwrap_or(state.local);
                state.stream = Some(stream);
                Ok(true)
            }
            Poll::Ready(Err(error)) => {
                state.connecting = None;
                self.fails(end, &error)
            }
        }
    }

    /// Takes what has come, all of it, if nothing is left of what was taken before.
    fn fill(&mut self, end: u32) -> Result<()> {
        let state = &self.ends[end as usize];
        if !state.arrived.is_empty() || state.ended {
            return Ok(());
        }
        let mut space = vec![0; RECEIVE_BUFFER];
        let mut buffer = ReadBuf::new(&mut space);
        match self.at_end(end, 0, |stream, context| stream.poll_read(context, &mut buffer))? {
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
            Poll::Ready(Err(error)) => self.fails(end, &error),
            Poll::Ready(Ok(())) => {
                let state = &mut self.ends[end as usize];
                state.arrived.extend(buffer.filled());
                state.ended = buffer.filled().is_empty();
                Ok(())
            }
        }
    }

    fn has_room(&mut self, end: u32) -> bool {
        let looked = self.at_end(end, 1, |stream, context| stream.poll_write(context, &[]));
        !matches!(looked, Ok(Poll::Pending))
    }

    /// Takes the connections that have come to a listener.
    fn accept_all(&mut self, listener: u32) {
        self.enter(self.listeners[listener as usize].machine);
        let state = &mut self.listeners[listener as usize];
        let Some(socket) = &state.socket else { return };
        while let Poll::Ready(Ok(connection)) = socket.poll_accept(&mut Context::from_waker(&state.waker)) {
            state.backlog.push_back(connection);
        }
    }

    /// Whether somebody listens at an address of a machine.
    pub(super) fn is_listened_at(&self, machine: u32, address: SocketAddr) -> bool {
        self.listeners.iter().any(|listener| {
            let at = listener.address;
            let reaches =
                at.ip() == address.ip() || (at.ip().is_unspecified() && at.is_ipv4() == address.is_ipv4());
            listener.open && listener.machine == machine && at.port() == address.port() && reaches
        })
    }

    /// The machine of an address that is one's.
    pub(super) fn machine_of(address: SocketAddr) -> Option<u32> {
        (0..MACHINES_MAX).find(|machine| address.ip() == address_of(*machine, address.is_ipv6()))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // Each closes itself on the host that turmoil has as its current one.
        for mut end in std::mem::take(&mut self.ends) {
            self.enter(end.machine);
            (end.stream, end.connecting) = (None, None);
        }
        for mut listener in std::mem::take(&mut self.listeners) {
            self.enter(listener.machine);
            listener.backlog.clear();
            listener.socket = None;
        }
    }
}

impl World {
    /// The network, made at its first use.
    pub(super) fn network(&mut self) -> &mut Sockets {
        let rng = &mut self.streams.network;
        self.network.get_or_insert_with(|| Box::new(Sockets::new(rng)))
    }

    /// Begins to listen on a machine.
    pub(super) fn tcp_listen(&mut self, machine: u32, address: SocketAddr) -> Result<u32> {
        let process = self.acting_process();
        let network = self.network();
        network.enter(machine);
        let left = network.listeners.iter().position(|listener| {
            !listener.open
                && listener.machine == machine
                && listener.address == address
                && address.port() != 0
        });
        if let Some(left) = left {
            let listener = &mut network.listeners[left];
            (listener.open, listener.process) = (true, process);
            return Ok(left as u32);
        }
        // What is left of listeners at other addresses of the port is in nobody's way.
        for listener in &mut network.listeners {
            let same = listener.machine == machine && listener.address.port() == address.port();
            if !listener.open && same && listener.address.is_ipv4() == address.is_ipv4() {
                listener.socket = None;
            }
        }
        let bind = pin!(TcpListener::bind(address)).poll(&mut Context::from_waker(Waker::noop()));
        let socket = match bind {
            Poll::Ready(Ok(socket)) => socket,
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(ErrorKind::AlreadyExists.into());
            }
            Poll::Ready(Err(_)) | Poll::Pending => return Err(ErrorKind::NotFound.into()),
        };
        let number = network.listeners.len() as u32;
        let address = socket.local_addr().map_err(|_| ErrorKind::Io)?;
        network.listeners.push(Listener {
            machine,
            process,
            open: true,
            address,
            socket: Some(socket),
            backlog: VecDeque::new(),
            waiter: Waiter::Nobody,
            waker: Waker::from(Arc::new(Woken::Accept(number))),
        });
        self.say(|| format!("machine {machine} listens at {address}"));
        Ok(number)
    }

    /// Where a listener listens.
    pub(super) fn tcp_address(&mut self, listener: u32) -> SocketAddr {
        self.network().listeners[listener as usize].address
    }

    /// A listener is closed: what nobody accepted ends.
    pub(super) fn tcp_stop_listening(&mut self, listener: u32) {
        let network = self.network();
        network.accept_all(listener);
        let state = &mut network.listeners[listener as usize];
        state.open = false;
        let machine = state.machine;
        for (stream, peer) in std::mem::take(&mut network.listeners[listener as usize].backlog) {
            if let Ok(local) = stream.local_addr() {
                network.packets.forget(local, peer);
            }
            network.enter(machine);
            drop(stream);
        }
        self.network_works();
    }

    /// Whether there is a connection to accept.
    pub(super) fn tcp_has_connection(&mut self, listener: u32) -> bool {
        let network = self.network();
        network.accept_all(listener);
        !network.listeners[listener as usize].backlog.is_empty()
    }

    /// Accepts a connection.
    pub(super) fn tcp_accept(&mut self, listener: u32) -> Result<Option<(u32, SocketAddr)>> {
        if self.faults.strike(FaultKind::NoHandles, |_| 0).is_some() {
            return Err(ErrorKind::OutOfResources.into());
        }
        let process = self.acting_process();
        let network = self.network();
        let state = &mut network.listeners[listener as usize];
        let (machine, address) = (state.machine, state.address);
        let Some((stream, peer)) = state.backlog.pop_front() else { return Ok(None) };
        network.enter(machine);
        let local = stream.local_addr().unwrap_or(address);
        let end = self.tcp_end(machine, process, local, peer);
        self.network().ends[end as usize].stream = Some(stream);
        self.say(|| format!("machine {machine} accepts {peer} at {local}"));
        Ok(Some((end, peer)))
    }

    fn tcp_end(&mut self, machine: u32, process: Option<u32>, local: SocketAddr, peer: SocketAddr) -> u32 {
        let network = self.network();
        let end = network.ends.len() as u32;
        network.ends.push(End {
            machine,
            process,
            connecting: None,
            stream: None,
            local,
            peer,
            arrived: VecDeque::new(),
            ended: false,
            failed: None,
            held: VecDeque::new(),
            released: VecDeque::new(),
            waiter: Waiter::Nobody,
            sender: Waiter::Nobody,
            wakers: [Waker::from(Arc::new(Woken::Receive(end))), Waker::from(Arc::new(Woken::Send(end)))],
        });
        end
    }

    /// Begins to connect from a machine.
    pub(super) fn tcp_connect(&mut self, machine: u32, to: SocketAddr) -> Result<u32> {
        let process = self.acting_process();
        let local = SocketAddr::new(address_of(machine, to.is_ipv6()), 0);
        let network = self.network();
        let is_local = to.ip().is_loopback() || Sockets::machine_of(to) == Some(machine);
        // Between two ends of one machine there are no packets that could be answered.
        if is_local && !network.is_listened_at(machine, to) {
            return Err(ErrorKind::Refused.into());
        }
        let end = self.tcp_end(machine, process, local, to);
        let network = self.network();
        network.ends[end as usize].connecting = Some(Box::pin(TcpStream::connect(to)));
        network.connected(end)?;
        self.network_works();
        Ok(end)
    }

    pub(super) fn tcp_is_connected(&mut self, end: u32) -> Result<bool> {
        self.network().connected(end)
    }

    pub(super) fn tcp_local(&mut self, end: u32) -> SocketAddr {
        self.network().ends[end as usize].local
    }

    /// Receives a drawn part of what is there. An empty one is the end of the stream.
    pub(super) fn tcp_receive(&mut self, end: u32, most: usize) -> Result<Vec<u8>> {
        if !self.network().connected(end)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.network().fill(end)?;
        // Taking it may have made room that the sender is told of.
        self.network_works();
        let available = self.network().ends[end as usize].arrived.len().min(most);
        if available == 0 {
            return Ok(Vec::new());
        }
        let len = self.temper.cut(available, &mut self.streams.network, &mut self.trace, 4);
        Ok(self.network().ends[end as usize].arrived.drain(..len).collect())
    }

    /// Sends a drawn part of some bytes.
    pub(super) fn tcp_send(&mut self, end: u32, bytes: &[u8]) -> Result<usize> {
        if !self.network().connected(end)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        let len = self.temper.cut(bytes.len(), &mut self.streams.network, &mut self.trace, 4);
        let network = self.network();
        let sent =
            match network.at_end(end, 1, |stream, context| stream.poll_write(context, &bytes[..len]))? {
                Poll::Pending => return Err(ErrorKind::WouldBlock.into()),
                Poll::Ready(Err(error)) => return network.fails(end, &error),
                Poll::Ready(Ok(sent)) => sent,
            };
        self.trace.add(Record::TcpSend, u64::from(end), sent as u64);
        self.trace.bytes(&bytes[..sent]);
        self.network_works();
        Ok(sent)
    }

    /// Keeps an eye on the memory of a send until it is released.
    pub(super) fn tcp_hold(&mut self, end: u32, windows: Vec<SimWindow>, bytes: Vec<u8>, token: u64) {
        let rng = &mut self.streams.network;
        let most = if rng.chance(1, 16) { RELEASE_NS.1 } else { RELEASE_NS.0 };
        let until = Instant(self.now.0 + rng.below(most));
        let held = &mut self.network().ends[end as usize].held;
        // In the order of the sends.
        let until = held.back().map_or(until, |last| last.until.max(until));
        held.push_back(Held { token, until, windows, bytes });
        self.schedule(until, Event::Release(end));
    }

    /// The moment has come at which the memory of a send is released.
    pub(crate) fn release_event(&mut self, end: u32) {
        let now = self.now;
        let state = &mut self.network().ends[end as usize];
        let due = state.held.iter().take_while(|held| held.until <= now).count();
        let due: Vec<Held> = state.held.drain(..due).collect();
        for held in due {
            let mut bytes = &held.bytes[..];
            for window in &held.windows {
                let (mine, rest) = bytes.split_at(window.len() as usize);
                bytes = rest;
                if self.memory.is_unmapped_window(window) {
                    self.fail(
                        "net",
                        format!("the memory of send {} was let go before its release", held.token),
                    );
                    return;
                }
                if self.memory.content(window) != Some(mine) {
                    self.fail(
                        "net",
                        format!("the memory of send {} was used anew before its release", held.token),
                    );
                    return;
                }
            }
            self.network().ends[end as usize].released.push_back(held.token);
            self.changed();
            let waiter = self.network().ends[end as usize].waiter;
            self.wake(waiter);
        }
    }

    pub(super) fn tcp_released(&mut self, end: u32) -> Option<u64> {
        self.network().ends[end as usize].released.pop_front()
    }

    /// Says that nothing more will be sent.
    pub(super) fn tcp_finish(&mut self, end: u32) -> Result<()> {
        if !self.network().connected(end)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        let network = self.network();
        match network.at_end(end, 1, |stream, context| stream.poll_shutdown(context))? {
            Poll::Ready(Err(error)) => return network.fails(end, &error),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        self.network_works();
        Ok(())
    }

    /// Closes an end, as its process's kernel does.
    pub(super) fn tcp_close(&mut self, end: u32) {
        let network = self.network();
        network.enter(network.ends[end as usize].machine);
        let state = &mut network.ends[end as usize];
        state.connecting = None;
        state.held.clear();
        state.arrived.clear();
        let Some(stream) = state.stream.take() else { return };
        drop(stream);
        let (local, peer) = (state.local, state.peer);
        network.packets.forget(local, peer);
        // Whoever still has its number finds it closed.
        state.failed = Some(ErrorKind::Closed.into());
        self.network_works();
    }

    /// A process died: its ends close, its listeners refuse.
    pub(crate) fn network_of_dead(&mut self, process: u32) {
        let Some(network) = &self.network else { return };
        let of_process = |holder: Option<u32>| holder == Some(process);
        let ends: Vec<u32> = (0..network.ends.len())
            .filter(|end| of_process(network.ends[*end].process))
            .map(|end| end as u32)
            .collect();
        let listeners: Vec<u32> = (0..network.listeners.len())
            .filter(|listener| {
                network.listeners[*listener].open && of_process(network.listeners[*listener].process)
            })
            .map(|listener| listener as u32)
            .collect();
        ends.into_iter().for_each(|end| self.tcp_close(end));
        listeners.into_iter().for_each(|listener| self.tcp_stop_listening(listener));
    }

    /// A machine lost its power: nobody hears of what its kernel would have said.
    pub(crate) fn network_power_loss(&mut self, machine: u32) {
        let Some(network) = &mut self.network else { return };
        for end in network.ends.iter().filter(|end| end.machine == machine && end.stream.is_some()) {
            network.packets.silence(end.local, end.peer);
        }
    }

    /// Registers who is woken; whether something is there already.
    pub(crate) fn await_tcp(&mut self, end: u32, waiter: Waiter, send_too: bool) -> bool {
        let network = self.network();
        let state = &mut network.ends[end as usize];
        state.waiter = waiter;
        if send_too {
            state.sender = waiter;
        }
        let released = !state.released.is_empty();
        let connecting = state.connecting.is_some();
        match network.connected(end) {
            Ok(false) => return released,
            Ok(true) if !connecting => {}
            Ok(true) | Err(_) => return true,
        }
        let received = !matches!(network.fill(end), Err(error) if error.kind == ErrorKind::WouldBlock);
        let room = send_too && network.has_room(end);
        self.network_works();
        released || received || room
    }

    pub(crate) fn await_tcp_listener(&mut self, listener: u32, waiter: Waiter) -> bool {
        self.network().listeners[listener as usize].waiter = waiter;
        self.tcp_has_connection(listener)
    }

    /// Wakes whoever waits for the sockets that turmoil has something for.
    pub(super) fn wake_network(&mut self) {
        for woken in WOKEN.with_borrow_mut(std::mem::take) {
            self.changed();
            let network = self.network();
            let waiter = match woken {
                Woken::Receive(end) => network.ends[end as usize].waiter,
                Woken::Send(end) => network.ends[end as usize].sender,
                Woken::Accept(listener) if network.listeners[listener as usize].open => {
                    network.listeners[listener as usize].waiter
                }
                // It was on its way to a listener that is closed by now.
                Woken::Accept(listener) => {
                    self.tcp_stop_listening(listener);
                    continue;
                }
            };
            self.wake(waiter);
        }
    }
}
