//! How one side of a queue tells the other that there is something to do.
//!
//! A transport may pass notifiers, may carry what is to be told in messages of its own, or may leave it to the other side
//! to look. A ring of a bell is never lost: where a message carries it, it is due until the transport has taken it.

use core::cell::Cell;
use runtime::Notifier;

/// A way to tell.
pub(super) enum Bell<N> {
    /// Nothing was said of it.
    Unset,
    /// The other side looks by itself.
    Polling,
    /// A notifier.
    Notifier(N),
    /// A message of the transport, and whether one is due.
    Message(Cell<bool>),
}

impl<N: Notifier> Bell<N> {
    /// What was given: a notifier, or word that the other side looks by itself.
    pub(super) fn given(notifier: Option<N>) -> Self {
        notifier.map_or(Self::Polling, Self::Notifier)
    }

    /// What holds while nothing is said: with `messages`, the transport's.
    pub(super) const fn unsaid(messages: bool) -> Self {
        if messages { Self::Message(Cell::new(false)) } else { Self::Unset }
    }

    /// The transport carries messages from now on, or no more.
    pub(super) fn set_messages(&mut self, messages: bool) {
        if matches!((&*self, messages), (Self::Unset, true) | (Self::Message(_), false)) {
            *self = Self::unsaid(messages);
        }
    }

    /// Whether somebody is told by it.
    #[inline]
    pub(super) const fn tells(&self) -> bool {
        matches!(self, Self::Notifier(_) | Self::Message(_))
    }

    /// Whether it is a message.
    pub(super) const fn is_message(&self) -> bool {
        matches!(self, Self::Message(_))
    }

    /// Tells.
    #[inline]
    pub(super) fn ring(&self) {
        match self {
            Self::Notifier(notifier) => notifier.ring(),
            Self::Message(due) => due.set(true),
            Self::Unset | Self::Polling => {}
        }
    }

    /// Takes the message that is due; whether one was.
    pub(super) fn take_due(&self) -> bool {
        matches!(self, Self::Message(due) if due.take())
    }
}
