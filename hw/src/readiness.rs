//! Sockets that are not asked for nothing: one system call tells a core which of all its sockets something came to.
//!
//! A call that finds nothing costs as much as several requests do (an accept that finds nobody makes a socket and a file
//! first, 7 to 10 µs), and a core that has work looks at its sockets over and over. So a socket that was found empty is
//! registered with the core's epoll instance, edge-triggered, and is not asked again before an event came for it. The core
//! collects events once an [`INTERVAL`] while it is awake, and sleeps on the epoll instance.
//!
//! An event is lost in no order of things: it stays with the kernel from its moment until it is collected, and a mark that
//! it left is taken away only by a call that found the socket empty after that. A mark for nothing costs one call.
//!
//! A socket that cannot be registered (the user's limit of watches), or is used on another core than it was registered on
//! or on no core at all, is asked each time.

use crate::error::from_errno;
use runtime::Result;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a core that does not sleep collects events: a call takes 0.3 µs.
pub(crate) const INTERVAL: Duration = Duration::from_micros(50);
/// Events of one call. What does not fit comes with the next one, in its turn.
const EVENTS: usize = 64;

thread_local! {
    /// This thread's, if it is a core's.
    static HERE: RefCell<Option<Arc<Readiness>>> = const { RefCell::new(None) };
}

/// A core's epoll instance.
#[derive(Debug)]
pub(crate) struct Readiness {
    epoll: OwnedFd,
    marks: Mutex<Marks>,
}

/// By number, where an event leaves its mark. No number is used again.
#[derive(Debug, Default)]
struct Marks {
    next: u64,
    of: BTreeMap<u64, Arc<AtomicBool>>,
}

impl Readiness {
    /// That of this thread, which is a core's, from now on. Errors: `OutOfResources`.
    pub(crate) fn of_this_thread() -> Result<Arc<Self>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(from_errno)?;
        let readiness = Arc::new(Self { epoll, marks: Mutex::default() });
        HERE.set(Some(readiness.clone()));
        Ok(readiness)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        // It is changed by whole steps only.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the sockets that something came to since the last call.
    pub(crate) fn collect(&self) {
        let mut events = [MaybeUninit::<Event>::uninit(); EVENTS];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // A call that fails (interrupted) loses nothing.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, Some(&at_once)) else { return };
        if events.is_empty() {
            return;
        }
        let marks = self.marks();
        for event in events {
            if let Some(came) = marks.of.get(&event.data.u64()) {
                came.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// Readable while there are events to collect.
impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// A socket's place at a core.
#[derive(Debug)]
struct Watch {
    readiness: Arc<Readiness>,
    number: u64,
    came: Arc<AtomicBool>,
}

impl Watch {
    /// On a core's thread; `None` elsewhere, and where the kernel refuses.
    fn new(socket: &OwnedFd) -> Option<Self> {
        let readiness = HERE.with_borrow(Clone::clone)?;
        let came = Arc::new(AtomicBool::new(false));
        let number = {
            let mut marks = readiness.marks();
            let number = marks.next;
            marks.next += 1;
            marks.of.insert(number, came.clone());
            number
        };
        let events = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        let watch = Self { readiness, number, came };
        match epoll::add(&watch.readiness.epoll, socket, EventData::new_u64(number), events) {
            Ok(()) => Some(watch),
            Err(_) => {
                watch.end(None);
                None
            }
        }
    }

    /// By the call that takes the socket away, or `None` where the kernel does not know it.
    fn end(&self, socket: Option<&OwnedFd>) {
        if let Some(socket) = socket {
            // Closing alone would not do: whoever sent the socket may hold it too. Fails for nothing that is registered.
            let _ = epoll::delete(&self.readiness.epoll, socket);
        }
        self.readiness.marks().of.remove(&self.number);
    }

    fn is_here(&self) -> bool {
        HERE.with_borrow(|here| here.as_ref().is_some_and(|here| Arc::ptr_eq(here, &self.readiness)))
    }
}

/// A nonblocking socket, asked for what came to it only when something may have.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    watch: Option<Watch>,
}

impl Socket {
    /// Whether nothing was seen to come since it was found empty. A core that sleeps is woken by what comes next.
    pub(crate) fn is_quiet(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| !watch.came.load(Ordering::Relaxed) && watch.is_here())
    }

    /// A call for what came has just found nothing.
    pub(crate) fn found_empty(&mut self) {
        match &self.watch {
            Some(watch) if watch.is_here() => watch.came.store(false, Ordering::Relaxed),
            _ => {
                self.end_watch();
                // What came since that call is an event too: registering looks.
                self.watch = Watch::new(&self.fd);
            }
        }
    }

    fn end_watch(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.end(Some(&self.fd));
        }
    }
}

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, watch: None }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.end_watch();
    }
}

/// Runs a test on a thread that is a core's as far as its sockets know.
#[cfg(test)]
pub(crate) fn on_a_core(test: impl FnOnce(&Readiness) + Send) {
    std::thread::scope(|scope| {
        let core = scope.spawn(|| test(&Readiness::of_this_thread().unwrap()));
        core.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// An empty end that was found so on this thread's core, and the other end.
    fn found_empty() -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut socket = Socket::from(OwnedFd::from(ours));
        assert!(!socket.is_quiet());
        socket.found_empty();
        assert!(socket.is_quiet());
        (socket, theirs)
    }

    #[test]
    fn what_comes_is_seen_until_it_was_all_taken() {
        on_a_core(|readiness| {
            let (mut socket, mut theirs) = found_empty();
            readiness.collect();
            assert!(socket.is_quiet());
            theirs.write_all(b"ab").unwrap();
            readiness.collect();
            assert!(!socket.is_quiet());
            // Looked at again without a new event: still there.
            readiness.collect();
            assert!(!socket.is_quiet());
            let mut stream = UnixStream::from(socket.fd.try_clone().unwrap());
            stream.read_exact(&mut [0; 2]).unwrap();
            // Between the call that found nothing and what is noted of it.
            theirs.write_all(b"c").unwrap();
            socket.found_empty();
            readiness.collect();
            assert!(!socket.is_quiet());
        });
    }

    #[test]
    fn what_came_before_the_registration_and_the_end_are_seen() {
        on_a_core(|readiness| {
            for close in [false, true] {
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                if !close {
                    theirs.write_all(b"a").unwrap();
                }
                let mut socket = Socket::from(OwnedFd::from(ours));
                let kept = (!close).then_some(theirs);
                socket.found_empty();
                readiness.collect();
                assert!(!socket.is_quiet(), "{}", kept.is_some());
            }
        });
    }

    #[test]
    fn another_thread_asks_each_time_and_a_socket_that_goes_leaves_nothing() {
        on_a_core(|readiness| {
            let (mut socket, theirs) = found_empty();
            let copy = socket.fd.try_clone().unwrap();
            socket = std::thread::spawn(move || {
                assert!(!socket.is_quiet());
                socket
            })
            .join()
            .unwrap();
            assert!(socket.is_quiet());
            drop(socket);
            // The open file lives on, and so would its registration.
            drop(theirs);
            assert!(readiness.marks().of.is_empty());
            let mut events = [MaybeUninit::<Event>::uninit(); 1];
            let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            assert!(epoll::wait(&readiness.epoll, &mut events, Some(&at_once)).unwrap().0.is_empty());
            drop(copy);
        });
    }
}
