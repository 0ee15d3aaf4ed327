//! A front-end's connection: its messages sent in whatever pieces go and received in whatever pieces come, and beside it
//! the channel on which the back-end speaks by itself.
//!
//! What is said over it is no business of this file; one message is sent at a time.

use super::message::{self, Bytes, Header};
use crate::unix::SimHandle;
use crate::world;
use runtime::{ErrorKind, Instant};
use std::collections::VecDeque;

/// The connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

/// A message that was received.
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
    pub(super) handles: Vec<SimHandle>,
}

/// What comes in on an end.
struct Incoming {
    end: u32,
    bytes: Vec<u8>,
    handles: Vec<SimHandle>,
}

impl Incoming {
    /// Received on `end`, whose arrivals wake the model.
    fn on(end: u32, model: Option<u32>) -> Self {
        world::with(|world| model.into_iter().for_each(|model| world.wait_for_end(end, model)));
        Self { end, bytes: Vec::new(), handles: Vec::new() }
    }

    /// The messages that are whole now; `None`: nothing came.
    fn receive<const MOST: usize>(&mut self) -> Result<Option<Vec<Message>>, Lost> {
        let mut piece = [0; MOST];
        let got = match world::with(|world| world.receive_on(self.end, &mut piece, &mut self.handles)) {
            Ok(0) => return Err(Lost),
            Ok(got) => got,
            Err(error) if error.kind == ErrorKind::WouldBlock => return Ok(None),
            Err(_) => return Err(Lost),
        };
        self.bytes.extend_from_slice(&piece[..got]);
        let mut messages = Vec::new();
        loop {
            match message::take(&mut self.bytes) {
                Ok(None) => return Ok(Some(messages)),
                Ok(Some((header, payload))) => {
                    messages.push(Message { header, payload, handles: std::mem::take(&mut self.handles) });
                }
                Err(what) => {
                    world::with(|world| world.fail("session", what));
                    return Err(Lost);
                }
            }
        }
    }
}

/// The end of the channel back that the front-end keeps.
struct BackendChannel {
    incoming: Incoming,
    /// Acknowledgements that are still to be sent.
    unsent: VecDeque<u8>,
    /// It was full when the target was given it, of so many bytes, and is left unread until then.
    filled: Option<(usize, Instant)>,
}

impl BackendChannel {
    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            let end = self.incoming.end;
            match world::with(|world| world.send_on(end, self.unsent.make_contiguous(), Vec::new())) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                // The target takes acknowledgements as long as it lives.
                Err(_) => return,
            }
        }
    }

    fn receive(&mut self, now: Instant) -> Result<Option<Vec<Message>>, Lost> {
        self.flush();
        match &mut self.filled {
            Some((_, until)) if now < *until => Ok(None),
            Some((filled, _)) => {
                let mut bytes = vec![0; *filled];
                let got = world::with(|world| {
                    world.receive_on(self.incoming.end, &mut bytes, &mut self.incoming.handles)
                });
                *filled -= got.unwrap_or(0);
                if *filled == 0 {
                    self.filled = None;
                }
                Ok(Some(Vec::new()))
            }
            None => self.incoming.receive::<256>(),
        }
    }
}

/// A connection.
pub(super) struct Link {
    end: u32,
    /// The life of the target that it was made to.
    pub(super) life: u32,
    incoming: Incoming,
    unsent: Vec<u8>,
    unsent_handles: Vec<SimHandle>,
    backend: Option<BackendChannel>,
    /// Regions that were added over it: QEMU adds each once, whatever drivers come and go.
    pub(super) added: Vec<usize>,
}

impl Link {
    /// A connection that was made to a life of the target; what arrives wakes the model.
    pub(super) fn new(end: u32, life: u32, model: Option<u32>) -> Self {
        Self {
            end,
            life,
            incoming: Incoming::on(end, model),
            unsent: Vec::new(),
            unsent_handles: Vec::new(),
            backend: None,
            added: Vec::new(),
        }
    }

    /// Closes it; the life of the target that it led to.
    pub(super) fn close(self) -> u32 {
        world::with(|world| {
            world.close_end(self.end);
            self.backend.into_iter().for_each(|backend| world.close_end(backend.incoming.end));
        });
        self.life
    }

    /// The message to send next; the one before is gone.
    pub(super) fn put(&mut self, bytes: Vec<u8>, handles: Vec<SimHandle>) {
        (self.unsent, self.unsent_handles) = (bytes, handles);
    }

    /// Whether everything that was put has been sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Sends what is left to send; whether something went.
    pub(super) fn flush(&mut self) -> Result<bool, Lost> {
        let mut worked = false;
        while !self.unsent.is_empty() {
            let handles = std::mem::take(&mut self.unsent_handles);
            match world::with(|world| world.send_on(self.end, &self.unsent, handles)) {
                Ok(sent) => {
                    self.unsent.drain(..sent);
                    worked = true;
                }
                Err(error) if error.kind == ErrorKind::WouldBlock => break,
                Err(_) => return Err(Lost),
            }
        }
        Ok(worked)
    }

    /// The answers that have come; `None`: nothing came.
    pub(super) fn receive(&mut self) -> Result<Option<Vec<Message>>, Lost> {
        self.incoming.receive::<512>()
    }

    /// Makes the channel back: the end that the target is given. With `full_until` nothing more goes into it, and it is not
    /// read before then.
    pub(super) fn open_backend(&mut self, model: Option<u32>, full_until: Option<Instant>) -> SimHandle {
        let (near, far) = world::with(world::World::socket_pair);
        let incoming = Incoming::on(near, model);
        let filled = full_until.map(|until| (world::with(|world| world.fill_end(far)), until));
        self.backend = Some(BackendChannel { incoming, unsent: VecDeque::new(), filled });
        SimHandle::end(far)
    }

    /// Until when the channel back is left unread, if it is.
    pub(super) fn unread_until(&self, now: Instant) -> Option<Instant> {
        let (_, until) = self.backend.as_ref()?.filled?;
        Some(until).filter(|&until| now < until)
    }

    /// Whether no message of the target, and no part of one, is left in the channel back.
    pub(super) fn is_backend_read(&self) -> bool {
        self.backend.as_ref().is_none_or(|back| back.filled.is_none() && back.incoming.bytes.is_empty())
    }

    /// What the target has said by itself; `None`: nothing came. Where it has closed the channel, the front-end goes on.
    pub(super) fn receive_from_backend(&mut self, now: Instant) -> Option<Vec<Message>> {
        let received = self.backend.as_mut()?.receive(now);
        if received.is_err() {
            self.backend = None;
        }
        received.unwrap_or(None)
    }

    /// Acknowledges what the target said by itself.
    pub(super) fn reply_to_backend(&mut self, request: u32, value: u64) {
        let Some(backend) = &mut self.backend else { return };
        backend.unsent.extend(Bytes::new(request, message::REPLY).u64(value).0);
        backend.flush();
    }
}
