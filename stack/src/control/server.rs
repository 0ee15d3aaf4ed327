//! The RPC socket: clients that come and go, each answered one request at a time in the order it asked.
//!
//! Clients are only as trusted as whoever may open the socket, and slow ones must not hold up others: everything is
//! nonblocking and bounded. A client's next request is not looked at before the answer to its last one is sent, so what
//! is kept for it is one request, one answer and what came too early.

use super::error::{Errno, INVALID_STATE, RpcError, RpcResult};
use super::json_rpc::{REQUEST_MAX, Read, Reader, Request, answer};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use runtime::{ErrorKind, Instant, Interest, Listener, Platform, Stream, Wakes};
use serde_json::Value;

/// Most clients at a time. One more takes the place of the one that was quiet for longest; where all are being served, of
/// the one whose question has waited for longest. Changes are not given up.
pub const CONNECTIONS_MAX: usize = 64;
/// Bytes received in one poll of a connection.
const RECEIVE_LEN: usize = 16 << 10;
/// Bytes that wait to be read before no more are received: one request and one piece.
const RECEIVED_MAX: usize = REQUEST_MAX + RECEIVE_LEN;
/// How long no connection is accepted after the host had no handle left for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often it is tried to send the rest of an answer to a client from which nothing more is received (it closed its
/// half, or sends without reading): what it sent would end every wait at once.
const UNHEARD_RETRY: Duration = Duration::from_millis(10);

/// What a question is told that gives way.
const TOO_MANY: &str = "The target has no room for more clients, and a new one came: ask again";

/// Which connection a request came over. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(u64);

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Incoming {
    /// The connection.
    pub connection: ConnectionId,
    /// What was asked.
    pub request: Request,
}

/// A request that is not answered yet.
struct Serving {
    id: Value,
    /// It is a question that waits, and may be given up.
    waits: bool,
}

/// One client.
struct Connection<P: Platform> {
    id: ConnectionId,
    stream: P::Stream,
    reader: Reader,
    /// Where bytes are received. Kept, since every poll looks for some.
    received: Vec<u8>,
    /// The request that is being served.
    serving: Option<Serving>,
    outgoing: Vec<u8>,
    sent: usize,
    /// The client sends no more, or what it sends is not read any more.
    receiving_ended: bool,
    last_active: Instant,
}

/// What became of a connection.
#[derive(PartialEq)]
enum Progress {
    Idle,
    Worked,
    Over,
}

impl<P: Platform> Connection<P> {
    fn has_outgoing(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    fn may_receive(&self) -> bool {
        !self.receiving_ended && self.reader.waiting() < RECEIVED_MAX
    }

    /// Whether a question of it waits.
    fn waits(&self) -> bool {
        self.serving.as_ref().is_some_and(|serving| serving.waits)
    }

    fn queue(&mut self, text: &[u8]) {
        if !self.has_outgoing() {
            self.outgoing.clear();
            self.sent = 0;
        }
        self.outgoing.extend_from_slice(text);
    }

    fn send(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        while self.has_outgoing() {
            match self.stream.send(&self.outgoing[self.sent..], &[]) {
                Ok(len) => {
                    self.sent += len;
                    progress = Progress::Worked;
                }
                Err(error) if error.kind == ErrorKind::WouldBlock => break,
                Err(_) => return Progress::Over,
            }
        }
        progress
    }

    fn receive(&mut self) -> Progress {
        let mut handles = Vec::new();
        match self.stream.recv(&mut self.received, &mut handles) {
            Ok(0) => {
                self.receiving_ended = true;
                Progress::Worked
            }
            // Handles mean nothing here: they are closed.
            Ok(len) => {
                self.reader.push(&self.received[..len]);
                Progress::Worked
            }
            Err(error) if error.kind == ErrorKind::WouldBlock => Progress::Idle,
            Err(_) => Progress::Over,
        }
    }

    /// Sends, reads and receives as far as one poll goes; at most one request comes of it.
    fn poll(&mut self, now: Instant, incoming: &mut Vec<Incoming>) -> Progress {
        // Nobody is there to hear the answer, for which it might be long to wait.
        if self.waits() && !self.may_receive() && self.stream.is_closed() {
            return Progress::Over;
        }
        let mut progress = self.send();
        if self.may_receive() && progress != Progress::Over {
            match self.receive() {
                Progress::Idle => {}
                other => progress = other,
            }
        }
        while progress != Progress::Over && self.serving.is_none() && !self.has_outgoing() {
            match self.reader.read() {
                Read::Incomplete => {
                    if self.receiving_ended {
                        progress = Progress::Over;
                    }
                    break;
                }
                Read::Request(request) => {
                    self.serving = Some(Serving { id: request.id.clone(), waits: false });
                    incoming.push(Incoming { connection: self.id, request });
                }
                Read::Invalid(id, error) => self.queue(&answer(&id, Err(error))),
                Read::Broken(error) => {
                    self.queue(&answer(&Value::Null, Err(error)));
                    self.receiving_ended = true;
                    self.reader = Reader::default();
                }
            }
            progress = match self.send() {
                Progress::Over => Progress::Over,
                Progress::Idle | Progress::Worked => Progress::Worked,
            };
        }
        if progress == Progress::Worked {
            self.last_active = now;
        }
        progress
    }
}

/// The RPC socket and its clients. A part of the target's poller.
pub struct Server<P: Platform> {
    listener: P::Listener,
    connections: Vec<Connection<P>>,
    next_id: u64,
    accept_after: Instant,
}

impl<P: Platform> Server<P> {
    /// A server on a socket that listens.
    #[must_use]
    pub fn new(listener: P::Listener) -> Self {
        Self { listener, connections: Vec::new(), next_id: 0, accept_after: Instant(0) }
    }

    /// Serves the clients; their requests are pushed to `incoming`, each to be answered once by [`Server::answer`].
    /// Whether there was work.
    pub fn poll(&mut self, now: Instant, incoming: &mut Vec<Incoming>) -> bool {
        let mut worked = self.accept(now);
        self.connections.retain_mut(|connection| match connection.poll(now, incoming) {
            Progress::Idle => true,
            Progress::Worked => {
                worked = true;
                true
            }
            Progress::Over => {
                worked = true;
                false
            }
        });
        worked
    }

    fn accept(&mut self, now: Instant) -> bool {
        if now < self.accept_after {
            return false;
        }
        if !self.may_accept() {
            return false;
        }
        match self.listener.accept() {
            Ok(None) => false,
            Ok(Some(stream)) => {
                if self.connections.len() == CONNECTIONS_MAX {
                    self.make_room();
                }
                let id = ConnectionId(self.next_id);
                self.next_id += 1;
                self.connections.push(Connection {
                    id,
                    stream,
                    reader: Reader::default(),
                    received: vec![0; RECEIVE_LEN],
                    serving: None,
                    outgoing: Vec::new(),
                    sent: 0,
                    receiving_ended: false,
                    last_active: now,
                });
                true
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an RPC client now");
                self.accept_after = now.after(ACCEPT_PAUSE);
                false
            }
        }
    }

    /// Whether there is room for a client, or one that may give way.
    fn may_accept(&self) -> bool {
        self.connections.len() < CONNECTIONS_MAX
            || self.connections.iter().any(|one| one.serving.is_none() || one.waits())
    }

    /// Ends the connection that may be missed first.
    fn make_room(&mut self) {
        let may_go = self.connections.iter().enumerate();
        let may_go = may_go.filter(|(_, one)| one.serving.is_none() || one.waits());
        let first = may_go.min_by_key(|(_, one)| (one.waits(), one.last_active)).map(|(index, _)| index);
        let mut gone = self.connections.remove(first.expect("there is one, as was just looked up"));
        if let Some(serving) = gone.serving.take() {
            let error = RpcError::errno(Errno::Busy, TOO_MANY);
            gone.queue(&answer(&serving.id, Err(error)));
            // What does not go out at once is not waited for.
            let _ = gone.send();
        }
    }

    /// The request that a connection is waiting for is a question that has to wait, and is given up when its client goes or
    /// its place is needed. Whoever keeps it asks with [`Server::is_waiting`] whether it still is one.
    pub fn wait(&mut self, connection: ConnectionId) {
        if let Some(serving) = self.find(connection).and_then(|connection| connection.serving.as_mut()) {
            serving.waits = true;
        }
    }

    /// Whether a question of this connection waits.
    #[must_use]
    pub fn is_waiting(&self, connection: ConnectionId) -> bool {
        self.connections.iter().any(|one| one.id == connection && one.waits())
    }

    fn find(&mut self, connection: ConnectionId) -> Option<&mut Connection<P>> {
        self.connections.iter_mut().find(|one| one.id == connection)
    }

    /// Answers the request that a connection is waiting for; nothing where the client is gone.
    pub fn answer(&mut self, connection: ConnectionId, result: RpcResult<Value>) {
        if let Some(connection) = self.find(connection)
            && let Some(serving) = connection.serving.take()
        {
            connection.queue(&answer(&serving.id, result));
        }
    }

    /// Refuses what is still being served, as the target stops.
    pub fn refuse_all(&mut self) {
        let waiting = self.connections.iter().filter(|one| one.serving.is_some()).map(|one| one.id);
        for connection in waiting.collect::<Vec<_>>() {
            self.answer(connection, Err(RpcError::new(INVALID_STATE, "The target is stopping")));
        }
    }

    /// Whether every answer was sent.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        !self.connections.iter().any(|one| one.has_outgoing())
    }

    /// When to poll again though nothing changed.
    #[must_use]
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let unheard = self.connections.iter().any(|one| !one.may_receive() && one.has_outgoing());
        let accept = (now < self.accept_after).then_some(self.accept_after);
        let send = unheard.then(|| now.after(UNHEARD_RETRY));
        accept.into_iter().chain(send).min()
    }

    /// Registers what may bring work.
    pub fn arm(&self, now: Instant, wakes: &mut P::Wakes) {
        // A client that cannot be accepted would end every sleep at once.
        if now >= self.accept_after && self.may_accept() {
            wakes.listener(&self.listener);
        }
        for connection in &self.connections {
            if connection.may_receive() {
                let both = connection.has_outgoing();
                wakes.stream(
                    &connection.stream,
                    if both { Interest::ReceiveAndSend } else { Interest::Receive },
                );
            } else if connection.waits() {
                wakes.stream(&connection.stream, Interest::Close);
            }
        }
    }
}
