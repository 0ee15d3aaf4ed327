//! The back-end's own channel to the front-end ("Back-end communication"): that the configuration space has changed, and,
//! where rings tell in band, what their devices have to tell.
//!
//! The front-end may be slow to read or to reply, or never do either: one message is out at a time, what there is to tell
//! meanwhile is kept as one word for each that it is about, and nothing here ever holds up the session. A message whose
//! channel goes before its reply has come counts as not told. A channel that breaks is dropped alone: the session goes on,
//! and tells over the next one, if the front-end gives it.

use super::connection::{Connection, Incoming};
use super::wire::{
    BACKEND_CONFIG_CHANGE, BACKEND_VRING_CALL, BACKEND_VRING_ERR, Header, VERSION, VringState, flag,
};
use crate::reached::Reached;
use crate::virtio::blk::{Due, MAX_QUEUES};
use runtime::{Interest, Platform, Wakes};
use tracing::{debug, warn};

/// Something to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The configuration space has changed.
    ConfigChange,
    /// Of a ring.
    Ring(Due),
}

/// Some rings.
#[derive(Clone, Copy, Default)]
struct RingSet(u128);

const _: () = assert!(MAX_QUEUES as u32 <= u128::BITS);

impl RingSet {
    fn insert(&mut self, ring: u16) {
        self.0 |= 1 << ring;
    }

    /// Takes the first ring at or after `from`, or the first of all.
    fn take(&mut self, from: u16) -> Option<u16> {
        let after = self.0 >> from << from;
        let ring = if after == 0 { self.0 } else { after }.trailing_zeros();
        if ring == u128::BITS {
            return None;
        }
        self.0 &= !(1 << ring);
        Some(ring as u16)
    }
}

/// The channel, if the front-end gave one, and what is to be told over it.
pub(super) struct BackendChannel<P: Platform> {
    connection: Option<Connection<P>>,
    /// A change of the configuration space was not told yet.
    changed: bool,
    errors: RingSet,
    calls: RingSet,
    /// The ring whose call is told next, if it has one, so that no ring waits for ever.
    turn: u16,
    /// A message is out and its reply has not come.
    out: Option<Word>,
}

impl<P: Platform> BackendChannel<P> {
    pub(super) fn new() -> Self {
        Self {
            connection: None,
            changed: false,
            errors: RingSet::default(),
            calls: RingSet::default(),
            turn: 0,
            out: None,
        }
    }

    /// Takes a new channel in the place of the old one. What was out on the old one is told again.
    pub(super) fn set(&mut self, stream: Option<P::Stream>) {
        self.connection = stream.map(|stream| Connection::new(stream, true));
        self.tell_again();
    }

    fn tell_again(&mut self) {
        if let Some(word) = self.out.take() {
            Reached::BackendToldAgain.mark::<P::Window>();
            self.owe(word);
        }
    }

    /// There is something to tell, as soon as it may be.
    pub(super) fn owe(&mut self, word: Word) {
        match word {
            Word::ConfigChange => self.changed = true,
            Word::Ring(Due::Error(ring)) => self.errors.insert(ring),
            Word::Ring(Due::Call(ring)) => self.calls.insert(ring),
        }
    }

    /// Takes a reply and sends what is left to send. Whether the next message may go out.
    pub(super) fn poll(&mut self, controller: &str) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let flushed = connection.flush();
        let received = if self.out.is_some() { connection.receive() } else { Ok(None) };
        match flushed.and_then(|flushed| Ok((flushed, received?))) {
            Ok((flushed, reply)) => {
                if let Some(Incoming { header, payload, .. }) = reply {
                    self.out = None;
                    debug!(controller, request = header.request, ?payload, "the front-end was told");
                }
                flushed && self.out.is_none()
            }
            Err(error) => {
                Reached::BackendChannelGone.mark::<P::Window>();
                warn!(controller, %error, "the back-end's channel is gone; what it told of is not told");
                self.connection = None;
                self.tell_again();
                false
            }
        }
    }

    /// Takes what is to be told next; a change of the configuration space only if it may be told now.
    pub(super) fn next(&mut self, config_too: bool) -> Option<Word> {
        if config_too && core::mem::take(&mut self.changed) {
            return Some(Word::ConfigChange);
        }
        if let Some(ring) = self.errors.take(0) {
            return Some(Word::Ring(Due::Error(ring)));
        }
        let ring = self.calls.take(self.turn)?;
        self.turn = (ring + 1) % MAX_QUEUES;
        Some(Word::Ring(Due::Call(ring)))
    }

    /// Tells. Only when the last [`BackendChannel::poll`] said that it may.
    pub(super) fn say(&mut self, word: Word, wants_reply: bool) {
        let Some(connection) = &mut self.connection else { return };
        let (request, ring) = match word {
            Word::ConfigChange => (BACKEND_CONFIG_CHANGE, None),
            Word::Ring(Due::Call(ring)) => (BACKEND_VRING_CALL, Some(ring)),
            Word::Ring(Due::Error(ring)) => (BACKEND_VRING_ERR, Some(ring)),
        };
        let state = ring.map(|ring| VringState { index: ring.into(), num: 0 }.encode());
        let payload = state.as_ref().map_or(&[][..], |state| state);
        let flags = VERSION | if wants_reply { flag::NEED_REPLY } else { 0 };
        connection.put(&Header { request, flags, size: payload.len() as u32 }, payload, None);
        self.out = wants_reply.then_some(word);
        // What does not go out now, or fails, is seen by the next poll.
        let _ = connection.flush();
    }

    /// Whether there is anything to send or to wait for.
    pub(super) fn has_work(&self) -> bool {
        let owes = self.changed || self.errors.0 | self.calls.0 != 0;
        (owes || self.out.is_some() || self.is_stuck()) && self.connection.is_some()
    }

    /// Whether a change of the configuration space is still to be told, and there is somebody to tell.
    pub(super) fn is_changed(&self) -> bool {
        self.changed && self.out.is_none() && self.connection.is_some()
    }

    /// Whether a message could not be sent whole.
    pub(super) fn is_stuck(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| !connection.is_flushed())
    }

    /// Registers what may let the channel go on.
    pub(super) fn arm(&self, wakes: &mut P::Wakes) {
        if let Some(connection) = self.connection.as_ref().filter(|_| self.out.is_some()) {
            wakes.stream(connection.stream(), Interest::Receive);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RingSet;

    #[test]
    fn every_ring_has_its_turn() {
        let mut rings = RingSet::default();
        assert_eq!(rings.take(7), None);
        for ring in [0, 3, 127, 3] {
            rings.insert(ring);
        }
        assert_eq!([rings.take(1), rings.take(4), rings.take(0)], [Some(3), Some(127), Some(0)]);
        rings.insert(2);
        assert_eq!([rings.take(127), rings.take(0)], [Some(2), None]);
    }
}
