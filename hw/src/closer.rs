//! Closing what a stranger sent, away from the cores.
//!
//! A close may wait for whoever made the file: a FUSE file's for the answer of its daemon, a TCP socket's (SO_LINGER) for a
//! peer that reads nothing. One thread closes such descriptors, in their order. Whoever makes it wait keeps the descriptors
//! behind it open, and no core.

use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};

/// The thread's queue; `None`: the host gave no thread. Descriptors have no process that they belong to, and neither has it.
static QUEUE: LazyLock<Option<Sender<OwnedFd>>> = LazyLock::new(|| {
    let (sender, descriptors) = channel();
    let thread = std::thread::Builder::new().name("closer".to_owned());
    thread.spawn(move || descriptors.into_iter().for_each(drop)).ok().map(|_| sender)
});

/// Closes a descriptor of which nobody knows what its close waits for. Does not wait.
pub(crate) fn close(descriptor: OwnedFd) {
    match &*QUEUE {
        // The thread lives as long as the process.
        Some(queue) => drop(queue.send(descriptor)),
        None => drop(descriptor),
    }
}
