//! Asynchronous events (section 5.2): requests that wait for them, and events that wait for requests.
//!
//! An event is told once, and not again before the host read the log page that says more: a host that never reads costs one
//! completion and no more. What it missed meanwhile is in the page.

use super::EVENT_REQUESTS_MAX;
use crate::nvme::bits::{AsyncEvent, event, log};
use alloc::collections::VecDeque;

/// The events that a controller may tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Namespaces changed.
    Namespaces,
    /// The discovery log page changed.
    Discovery,
}

impl Notice {
    const ALL: [Self; 2] = [Self::Namespaces, Self::Discovery];

    const fn event(self) -> AsyncEvent {
        let (information, page) = match self {
            Self::Namespaces => (event::NAMESPACE_ATTRIBUTE, log::CHANGED_NAMESPACES),
            Self::Discovery => (event::DISCOVERY_CHANGE, log::DISCOVERY),
        };
        AsyncEvent(0).with_kind(event::NOTICE).with_information(information).with_log_page(page as u32)
    }
}

/// What is known of a kind of event.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// It happened and was not told.
    pending: bool,
    /// It was told, and the page not read since.
    masked: bool,
}

/// Requests and events of a controller.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// The commands that wait, oldest first.
    requests: VecDeque<u16>,
    states: [State; 2],
}

impl Events {
    /// Keeps a request; `false`: there are too many.
    pub(super) fn request(&mut self, command: u16) -> bool {
        let has_room = self.requests.len() < EVENT_REQUESTS_MAX;
        if has_room {
            self.requests.push_back(command);
        }
        has_room
    }

    /// Something happened that the host wants to know.
    pub(super) fn happened(&mut self, notice: Notice) {
        self.states[notice as usize].pending = true;
    }

    /// The page that tells more was read.
    pub(super) fn read(&mut self, notice: Notice) {
        self.states[notice as usize] = State::default();
    }

    /// The next event to be told, and the command that it completes.
    pub(super) fn tell(&mut self) -> Option<(u16, AsyncEvent)> {
        let due = |notice: &Notice| {
            let state = self.states[*notice as usize];
            state.pending && !state.masked
        };
        let notice = Notice::ALL.into_iter().find(due)?;
        let command = self.requests.pop_front()?;
        self.states[notice as usize] = State { pending: false, masked: true };
        Some((command, notice.event()))
    }

    /// Takes a request back: the oldest, or that of a command.
    pub(super) fn withdraw(&mut self, command: Option<u16>) -> Option<u16> {
        match command {
            None => self.requests.pop_front(),
            Some(command) => {
                let at = self.requests.iter().position(|request| *request == command)?;
                self.requests.remove(at)
            }
        }
    }

    /// Forgets what happened.
    pub(super) fn reset(&mut self) {
        self.states = Default::default();
    }
}
