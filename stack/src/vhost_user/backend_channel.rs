//! The back-end's own channel to the front-end ("Back-end communication"): one kind of message goes there, that the
//! configuration space has changed.
//!
//! The front-end may be slow to read or to reply, or never do either: one message is out at a time, changes meanwhile
//! are told by one more message after it, and nothing here ever holds up the session. A channel that breaks is dropped
//! alone: the front-end then does not learn of changes, and the session goes on.

use super::connection::{Connection, Incoming};
use super::wire::{BACKEND_CONFIG_CHANGE, Header, VERSION, flag};
use crate::reached::Reached;
use runtime::{Interest, Platform, Wakes};
use tracing::{debug, warn};

/// The channel, if the front-end gave one, and what is to be told over it.
pub(super) struct BackendChannel<P: Platform> {
    connection: Option<Connection<P>>,
    /// A change was not told yet.
    changed: bool,
    /// A message is out and its reply has not come.
    awaits_reply: bool,
}

impl<P: Platform> BackendChannel<P> {
    pub(super) const fn new() -> Self {
        Self { connection: None, changed: false, awaits_reply: false }
    }

    /// Takes a new channel in the place of the old one. A reply on the old one is waited for no more.
    pub(super) fn set(&mut self, stream: Option<P::Stream>) {
        self.connection = stream.map(|stream| Connection::new(stream, true));
        self.awaits_reply = false;
    }

    /// The configuration space has changed: to be told as soon as it may be.
    pub(super) fn config_changed(&mut self) {
        self.changed = true;
    }

    /// Takes replies, and sends when there is something to tell and `may_send` (features agreed upon, not suspended).
    /// Whether a message went out.
    pub(super) fn poll(&mut self, controller: &str, may_send: bool, wants_reply: bool) -> bool {
        if !self.changed && !self.awaits_reply && self.connection.as_ref().is_none_or(Connection::is_flushed)
        {
            return false;
        }
        let Some(connection) = &mut self.connection else { return false };
        let flushed = connection.flush();
        let received = if self.awaits_reply { connection.receive() } else { Ok(None) };
        let flushed = match flushed.and_then(|flushed| Ok((flushed, received?))) {
            Ok((flushed, reply)) => {
                if let Some(Incoming { header, payload, .. }) = reply {
                    self.awaits_reply = false;
                    debug!(controller, request = header.request, ?payload, "the front-end took the change");
                }
                flushed
            }
            Err(error) => {
                Reached::BackendChannelGone.mark::<P::Window>();
                warn!(controller, %error, "the back-end's channel is gone; changes will not be told");
                (self.connection, self.awaits_reply) = (None, false);
                return false;
            }
        };
        if !self.changed || self.awaits_reply || !may_send || !flushed {
            return false;
        }
        let flags = VERSION | if wants_reply { flag::NEED_REPLY } else { 0 };
        let header = Header { request: BACKEND_CONFIG_CHANGE, flags, size: 0 };
        connection.put(&header, &[], None);
        (self.changed, self.awaits_reply) = (false, wants_reply);
        // What does not go out now, or fails, is seen by the next poll.
        let _ = connection.flush();
        true
    }

    /// Whether there is anything to send or to wait for.
    pub(super) fn has_work(&self) -> bool {
        (self.changed || self.awaits_reply || self.is_stuck()) && self.connection.is_some()
    }

    /// Whether a change is still to be told, and there is somebody to tell.
    pub(super) fn is_changed(&self) -> bool {
        self.changed && !self.awaits_reply && self.connection.is_some()
    }

    /// Whether a message could not be sent whole.
    pub(super) fn is_stuck(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| !connection.is_flushed())
    }

    /// Registers what may let the channel go on.
    pub(super) fn arm(&self, wakes: &mut P::Wakes) {
        if let Some(connection) = self.connection.as_ref().filter(|_| self.awaits_reply) {
            wakes.stream(connection.stream(), Interest::Receive);
        }
    }
}
