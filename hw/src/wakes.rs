//! What may wake a core that goes to sleep: descriptors for `ppoll`, and what is ready already.

use crate::files::{HostChannel, Wake};
use crate::mailbox::HostReceiver;
use crate::net::{HostTcpListener, HostTcpStream};
use crate::notifier::HostNotifier;
use crate::offload::HostJob;
use crate::platform::HostPlatform;
use crate::readiness::{Readiness, Socket};
use crate::unix::{HostListener, HostStream};
use crate::waker::Waker;
use runtime::{CoreId, Instant, Interest, Wakes};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

/// See [`runtime::Wakes`].
pub struct HostWakes {
    core: CoreId,
    /// The core's; `None`: the host had none to give.
    readiness: Option<Arc<Readiness>>,
    descriptors: Vec<libc::pollfd>,
    ready: bool,
    /// The last sleep failed, and it was said.
    sleepless: bool,
}

impl HostWakes {
    pub(crate) fn new(core: CoreId, readiness: Option<Arc<Readiness>>) -> Self {
        Self { core, readiness, descriptors: Vec::new(), ready: false, sleepless: false }
    }

    /// Begins anew, keeping the space.
    pub(crate) fn clear(&mut self) {
        self.descriptors.clear();
        self.ready = false;
    }

    /// Whether something was found ready when it was registered.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Waits for `events` (of poll(2)) on a descriptor.
    fn descriptor(&mut self, descriptor: BorrowedFd<'_>, events: i16) {
        self.descriptors.push(libc::pollfd { fd: descriptor.as_raw_fd(), events, revents: 0 });
    }

    /// Waits for something to receive, and for `more` (of poll(2)). For what comes to a quiet socket, its end included, the
    /// core's epoll instance stands.
    fn socket(&mut self, socket: &Socket, more: i16) {
        if more != 0 || !socket.is_quiet() {
            self.descriptor(socket.as_fd(), libc::POLLIN | more);
        }
    }

    /// Sleeps until something that was registered is ready, the core's waker rings, a signal comes, or `until`, which has
    /// not come at `now`. Whether the waker rang.
    pub(crate) fn sleep(&mut self, waker: &Waker, now: Instant, until: Option<Instant>) -> bool {
        // Last, in this order.
        let readiness = self.readiness.clone();
        if let Some(readiness) = &readiness {
            self.descriptor(readiness.as_fd(), libc::POLLIN);
        }
        self.descriptor(waker.as_fd(), libc::POLLIN);
        let timeout = until.map(|until| {
            let left_ns = until.since_ns(now);
            libc::timespec {
                tv_sec: (left_ns / 1_000_000_000) as libc::time_t,
                tv_nsec: (left_ns % 1_000_000_000) as libc::c_long,
            }
        });
        // SAFETY: the list and the time-out are there for as long as the call lasts. A descriptor that was closed since
        // it was registered is reported as such and nothing else happens.
        let woken = unsafe {
            libc::ppoll(
                self.descriptors.as_mut_ptr(),
                self.descriptors.len() as libc::nfds_t,
                timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
                std::ptr::null(),
            )
        };
        let error = (woken < 0).then(std::io::Error::last_os_error);
        let error = error.filter(|error| error.kind() != std::io::ErrorKind::Interrupted);
        if let Some(error) = &error
            && !self.sleepless
        {
            // More descriptors than RLIMIT_NOFILE, or no memory: the core goes on polling and tries again each time.
            let descriptors = self.descriptors.len();
            tracing::warn!(core = self.core.0, %error, descriptors, "the core cannot sleep");
        }
        self.sleepless = error.is_some();
        let mut ready = self.descriptors.iter().rev().map(|descriptor| woken > 0 && descriptor.revents != 0);
        let rang = ready.next() == Some(true);
        if let Some(readiness) = &readiness
            && ready.next() == Some(true)
        {
            readiness.collect();
        }
        rang
    }
}

impl Wakes<HostPlatform> for HostWakes {
    fn notifier(&mut self, notifier: &HostNotifier) {
        self.descriptor(notifier.as_fd(), libc::POLLIN);
    }

    fn listener(&mut self, listener: &HostListener) {
        self.socket(&listener.socket, 0);
    }

    fn stream(&mut self, stream: &HostStream, interest: Interest) {
        match interest {
            Interest::Receive => self.socket(&stream.0, 0),
            Interest::ReceiveAndSend => self.socket(&stream.0, libc::POLLOUT),
            // POLLHUP is told without being asked for.
            Interest::Close => self.descriptor(stream.0.as_fd(), 0),
        }
    }

    fn tcp_listener(&mut self, listener: &HostTcpListener) {
        self.socket(&listener.socket, 0);
    }

    fn tcp_stream(&mut self, stream: &HostTcpStream, interest: Interest) {
        let send_too = interest == Interest::ReceiveAndSend || stream.is_connecting();
        self.socket(&stream.socket, if send_too { libc::POLLOUT } else { 0 });
    }

    fn channel(&mut self, channel: &HostChannel) {
        match channel.arm() {
            Wake::Ready => self.ready = true,
            Wake::Wait(descriptor) => self.descriptor(descriptor, libc::POLLIN),
        }
    }

    fn mailbox<T: Send + 'static>(&mut self, receiver: &HostReceiver<T>) {
        self.ready |= receiver.arm(self.core);
    }

    fn job<T: Send + 'static>(&mut self, job: &HostJob<T>) {
        self.ready |= job.arm();
    }
}
