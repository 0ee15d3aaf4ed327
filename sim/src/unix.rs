//! Simulated unix sockets, with handles riding along.
//!
//! Fault model. A send or a receive may be cut to any drawn length; nothing says when a receiver runs. A process that
//! dies closes its ends at once: the peer reads what was sent before, then the end (or, where the dead one had not read
//! everything, that the connection broke). Its socket files stay: connecting to them is refused until somebody listens
//! there again. Connections wait in the backlog while nobody accepts, and a process may lack the handle for one.
//!
//! Never: bytes lost, doubled or reordered, handles parted from their byte.

use crate::faults::FaultKind;
use crate::memory::{self, SimMemory};
use crate::notifier::SimNotifier;
use crate::trace::Record;
use crate::world::{self, Waiter, World};
use runtime::{Access, ErrorKind, Handle, Interest, Listener, Result, Stream};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

/// Bytes that wait in one direction before a sender is told to wait.
const SOCKET_BUFFER: usize = 64 << 10;
/// Connections that wait to be accepted before one more is refused.
const BACKLOG: usize = 128;
/// Most bytes of a socket's path, without the zero at its end (`sun_path`, unix(7)).
const PATH_MAX: usize = 107;

thread_local! {
    /// Ends whose handles were dropped while the world was in use; they are closed before the next step.
    static DROPPED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Forgets them: a new world begins.
pub(crate) fn forget_dropped() {
    DROPPED.with_borrow_mut(Vec::clear);
}

struct Packet {
    bytes: VecDeque<u8>,
    handles: Vec<SimHandle>,
}

/// One end of a connection.
#[derive(Default)]
struct End {
    peer: u32,
    open: bool,
    /// The peer closed before it had read everything.
    reset: bool,
    /// The process that holds it; `None`: a model, or nobody yet.
    process: Option<u32>,
    received: VecDeque<Packet>,
    received_bytes: usize,
    waiter: Waiter,
    sender: Waiter,
}

struct ListenerState {
    process: u32,
    open: bool,
    backlog: VecDeque<u32>,
    waiter: Waiter,
}

/// All sockets of a world.
#[derive(Default)]
pub(crate) struct Sockets {
    ends: Vec<End>,
    listeners: Vec<ListenerState>,
    /// Socket files, by machine and path: the listener that made them.
    paths: BTreeMap<(u32, String), u32>,
}

impl World {
    /// A new connection: two ends.
    pub fn socket_pair(&mut self) -> (u32, u32) {
        let first = self.sockets.ends.len() as u32;
        for peer in [first + 1, first] {
            self.sockets.ends.push(End { peer, open: true, ..End::default() });
        }
        (first, first + 1)
    }

    /// A model connects to a path. Errors: `NotFound` (no such file), `Closed` (nobody listens there).
    pub fn connect(&mut self, machine: u32, path: &str) -> Result<u32> {
        self.connect_to(machine, path).map(|(end, _)| end)
    }

    /// The same, and which life listens there.
    pub(crate) fn connect_to(&mut self, machine: u32, path: &str) -> Result<(u32, u32)> {
        let listener = *self.sockets.paths.get(&(machine, path.to_owned())).ok_or(ErrorKind::NotFound)?;
        let state = &self.sockets.listeners[listener as usize];
        if !state.open || state.backlog.len() >= BACKLOG {
            return Err(ErrorKind::Closed.into());
        }
        let (near, far) = self.socket_pair();
        let state = &mut self.sockets.listeners[listener as usize];
        state.backlog.push_back(far);
        let (waiter, process) = (state.waiter, state.process);
        self.changed();
        self.wake(waiter);
        Ok((near, process))
    }

    /// A model is woken when something reaches an end.
    pub fn wait_for_end(&mut self, end: u32, model: u32) {
        self.sockets.ends[end as usize].waiter = Waiter::Model(model);
    }

    /// A model is woken when an eventfd is rung.
    pub fn wait_for_eventfd(&mut self, eventfd: u32, model: u32) {
        self.eventfds[eventfd as usize].waiter = Waiter::Model(model);
    }

    /// Sends on an end: how many bytes were taken. Handles ride on the first of them.
    pub fn send_on(&mut self, end: u32, bytes: &[u8], handles: Vec<SimHandle>) -> Result<usize> {
        self.drain_acting();
        let peer = self.sockets.ends[end as usize].peer;
        if !self.sockets.ends[end as usize].open || !self.sockets.ends[peer as usize].open {
            return Err(ErrorKind::Closed.into());
        }
        let room = SOCKET_BUFFER.saturating_sub(self.sockets.ends[peer as usize].received_bytes);
        if room == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let len = self.temper.cut(bytes.len().min(room), &mut self.streams.wire, &mut self.trace, 2);
        self.trace.add(Record::Send, u64::from(end), len as u64);
        self.trace.bytes(&bytes[..len]);
        self.changed();
        let target = &mut self.sockets.ends[peer as usize];
        target.received.push_back(Packet { bytes: bytes[..len].iter().copied().collect(), handles });
        target.received_bytes += len;
        let waiter = target.waiter;
        self.wake(waiter);
        Ok(len)
    }

    /// Sends on an end until nothing more goes in; how many bytes went.
    pub fn fill_end(&mut self, end: u32) -> usize {
        let mut filled = 0;
        while let Ok(sent) = self.send_on(end, &[0; 4096], Vec::new()) {
            filled += sent;
        }
        filled
    }

    /// Receives on an end. `Ok(0)`: the other end closed.
    pub fn receive_on(&mut self, end: u32, into: &mut [u8], handles: &mut Vec<SimHandle>) -> Result<usize> {
        let peer_open = self.sockets.ends[self.sockets.ends[end as usize].peer as usize].open;
        let available = self.sockets.ends[end as usize].received_bytes.min(into.len());
        if available == 0 {
            return if peer_open { Err(ErrorKind::WouldBlock.into()) } else { Ok(0) };
        }
        let most = self.temper.cut(available, &mut self.streams.wire, &mut self.trace, 2);
        let state = &mut self.sockets.ends[end as usize];
        let mut got = 0;
        while got < most {
            let Some(packet) = state.received.front_mut() else { break };
            if got > 0 && !packet.handles.is_empty() {
                break;
            }
            let carried = !packet.handles.is_empty();
            handles.append(&mut packet.handles);
            let len = packet.bytes.len().min(most - got);
            for (target, byte) in into[got..].iter_mut().zip(packet.bytes.drain(..len)) {
                *target = byte;
            }
            got += len;
            if packet.bytes.is_empty() {
                state.received.pop_front();
            }
            // Bytes behind those that carried handles come with the next receive.
            if carried {
                break;
            }
        }
        state.received_bytes -= got;
        let peer = state.peer;
        self.changed();
        let sender = self.sockets.ends[peer as usize].sender;
        self.wake(sender);
        Ok(got)
    }

    /// Closes an end; what it had sent may still be read.
    pub fn close_end(&mut self, end: u32) {
        if !std::mem::replace(&mut self.sockets.ends[end as usize].open, false) {
            return;
        }
        let unread: Vec<Packet> = self.sockets.ends[end as usize].received.drain(..).collect();
        let peer = self.sockets.ends[end as usize].peer;
        self.sockets.ends[peer as usize].reset = !unread.is_empty();
        self.sockets.ends[end as usize].received_bytes = 0;
        self.changed();
        for packet in unread {
            for handle in packet.handles {
                self.close_handle(handle);
            }
        }
        let (waiter, sender) =
            (self.sockets.ends[peer as usize].waiter, self.sockets.ends[peer as usize].sender);
        self.wake(waiter);
        self.wake(sender);
    }

    /// Closes the ends whose handles were dropped while the world was in use.
    pub(crate) fn close_dropped(&mut self) {
        while let Some(end) = DROPPED.with_borrow_mut(Vec::pop) {
            self.close_end(end);
        }
    }

    fn close_handle(&mut self, mut handle: SimHandle) {
        if let Some(Object::End(end)) = handle.object.take() {
            self.close_end(end);
        }
    }

    /// Whether both ends are open.
    #[must_use]
    pub fn is_connected(&self, end: u32) -> bool {
        let state = &self.sockets.ends[end as usize];
        state.open && self.sockets.ends[state.peer as usize].open
    }

    /// Whether an end has something to receive, or to learn.
    pub(crate) fn is_readable(&self, end: u32) -> bool {
        let state = &self.sockets.ends[end as usize];
        state.received_bytes > 0 || !self.sockets.ends[state.peer as usize].open
    }

    /// Whether the other end is closed. None is ever half closed.
    pub(crate) fn peer_is_closed(&self, end: u32) -> bool {
        !self.sockets.ends[self.sockets.ends[end as usize].peer as usize].open
    }

    fn has_room(&self, end: u32) -> bool {
        let peer = &self.sockets.ends[self.sockets.ends[end as usize].peer as usize];
        !peer.open || peer.received_bytes < SOCKET_BUFFER
    }

    pub(crate) fn await_end(&mut self, end: u32, waiter: Waiter, interest: Interest) -> bool {
        self.sockets.ends[end as usize].waiter = waiter;
        match interest {
            Interest::Receive => self.is_readable(end),
            Interest::ReceiveAndSend => {
                self.sockets.ends[end as usize].sender = waiter;
                self.is_readable(end) || self.has_room(end)
            }
            Interest::Close => self.peer_is_closed(end),
        }
    }

    pub(crate) fn await_listener(&mut self, listener: u32, waiter: Waiter) -> bool {
        let state = &mut self.sockets.listeners[listener as usize];
        state.waiter = waiter;
        !state.backlog.is_empty()
    }

    pub(crate) fn listen(&mut self, path: &str) -> Result<SimListener> {
        let process = self.acting_process().ok_or(ErrorKind::Invalid)?;
        self.crash_point();
        if path.len() > PATH_MAX {
            return Err(ErrorKind::Invalid.into());
        }
        let machine = self.processes[process as usize].machine;
        if let Some(held) = self.sockets.paths.get(&(machine, path.to_owned()))
            && self.sockets.listeners[*held as usize].open
        {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.sockets.listeners.push(ListenerState {
            process,
            open: true,
            backlog: VecDeque::new(),
            waiter: Waiter::Nobody,
        });
        let listener = self.sockets.listeners.len() as u32 - 1;
        self.sockets.paths.insert((machine, path.to_owned()), listener);
        self.say(|| format!("process {process} listens at {path}"));
        Ok(SimListener { listener, machine, path: path.to_owned() })
    }

    /// A process died: its ends close, its listeners refuse, their files stay.
    pub(crate) fn sockets_of_dead(&mut self, process: u32) {
        for end in 0..self.sockets.ends.len() {
            if self.sockets.ends[end].process == Some(process) {
                self.close_end(end as u32);
            }
        }
        for listener in 0..self.sockets.listeners.len() {
            if self.sockets.listeners[listener].process == process {
                self.close_listener(listener as u32);
            }
        }
    }

    fn close_listener(&mut self, listener: u32) {
        self.sockets.listeners[listener as usize].open = false;
        for end in std::mem::take(&mut self.sockets.listeners[listener as usize].backlog) {
            self.close_end(end);
        }
    }
}

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    Memory(u32),
    Eventfd(u32),
    End(u32),
}

/// A handle on its way. A stream's end that nobody takes out of it is closed when it is dropped.
#[derive(Debug)]
pub struct SimHandle {
    object: Option<Object>,
}

impl SimHandle {
    /// A handle to a memory object.
    #[must_use]
    pub fn memory(object: u32) -> Self {
        Self { object: Some(Object::Memory(object)) }
    }

    /// A handle to an eventfd.
    #[must_use]
    pub fn eventfd(eventfd: u32) -> Self {
        Self { object: Some(Object::Eventfd(eventfd)) }
    }

    /// A handle to an end of a connection.
    #[must_use]
    pub fn end(end: u32) -> Self {
        Self { object: Some(Object::End(end)) }
    }

    /// The memory object that it stands for.
    #[must_use]
    pub fn memory_object(&self) -> Option<u32> {
        match self.object {
            Some(Object::Memory(object)) => Some(object),
            _ => None,
        }
    }
}

impl Drop for SimHandle {
    fn drop(&mut self) {
        if let Some(Object::End(end)) = self.object.take()
            && world::try_with(|world| world.close_end(end)).is_none()
        {
            DROPPED.with_borrow_mut(|dropped| dropped.push(end));
        }
    }
}

impl Handle for SimHandle {
    type Memory = SimMemory;
    type Notifier = SimNotifier;
    type Stream = SimStream;

    fn map(&self, offset: u64, len: u64, access: Access) -> Result<SimMemory> {
        let object = self.memory_object().ok_or(ErrorKind::Invalid)?;
        memory::map_handle(object, offset, len, access)
    }

    fn into_notifier(self) -> Result<SimNotifier> {
        match self.object {
            Some(Object::Eventfd(eventfd)) => Ok(SimNotifier { eventfd }),
            _ => Err(ErrorKind::Invalid.into()),
        }
    }

    fn into_stream(mut self) -> Result<SimStream> {
        match self.object {
            Some(Object::End(end)) => {
                self.object = None;
                Ok(world::with(|world| SimStream::taken(world, end)))
            }
            _ => Err(ErrorKind::Invalid.into()),
        }
    }
}

/// A process's end of a connection.
#[derive(Debug)]
pub struct SimStream {
    pub(crate) end: u32,
}

impl SimStream {
    fn taken(world: &mut World, end: u32) -> Self {
        world.sockets.ends[end as usize].process = world.acting_process();
        Self { end }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        world::try_with(|world| {
            if !world.is_fenced() {
                world.close_end(self.end);
            }
        });
    }
}

impl Stream for SimStream {
    type Handle = SimHandle;

    fn recv(&mut self, into: &mut [u8], handles: &mut Vec<SimHandle>) -> Result<usize> {
        world::with(|world| {
            if world.is_fenced() {
                return Err(ErrorKind::WouldBlock.into());
            }
            if world.is_readable(self.end) {
                world.crash_point();
            }
            let state = &world.sockets.ends[self.end as usize];
            if state.received.front().is_some_and(|packet| packet.handles.len() > Self::MAX_HANDLES) {
                // The kernel cuts the list of handles; what was kept of it is closed, the stream is of no more use.
                world.close_end(self.end);
                return Err(ErrorKind::Invalid.into());
            }
            let reset = state.reset;
            match world.receive_on(self.end, into, handles) {
                Ok(0) if reset => Err(ErrorKind::Closed.into()),
                received => received,
            }
        })
    }

    fn send(&mut self, bytes: &[u8], handles: &[&SimHandle]) -> Result<usize> {
        world::with(|world| {
            world.crash_point();
            if world.is_fenced() {
                return Ok(bytes.len());
            }
            if handles.len() > Self::MAX_HANDLES {
                return Err(ErrorKind::Invalid.into());
            }
            let copies = handles.iter().map(|handle| SimHandle { object: handle.object }).collect();
            world.send_on(self.end, bytes, copies)
        })
    }

    fn is_closed(&self) -> bool {
        world::with(|world| !world.is_fenced() && world.peer_is_closed(self.end))
    }
}

/// A process's listening socket.
#[derive(Debug)]
pub struct SimListener {
    pub(crate) listener: u32,
    machine: u32,
    path: String,
}

impl Drop for SimListener {
    fn drop(&mut self) {
        world::try_with(|world| {
            if !world.is_fenced() {
                world.close_listener(self.listener);
                let key = (self.machine, std::mem::take(&mut self.path));
                if world.sockets.paths.get(&key) == Some(&self.listener) {
                    world.sockets.paths.remove(&key);
                }
            }
        });
    }
}

impl Listener for SimListener {
    type Stream = SimStream;

    fn accept(&mut self) -> Result<Option<SimStream>> {
        world::with(|world| {
            let waiting = !world.sockets.listeners[self.listener as usize].backlog.is_empty();
            if world.is_fenced() || !waiting {
                return Ok(None);
            }
            world.crash_point();
            if world.faults.strike(FaultKind::NoHandles, |_| 0).is_some() {
                return Err(ErrorKind::OutOfResources.into());
            }
            let end = world.sockets.listeners[self.listener as usize].backlog.pop_front();
            Ok(end.map(|end| SimStream::taken(world, end)))
        })
    }
}
