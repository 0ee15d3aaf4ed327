//! What the Reprise stack may ask of the world.
//!
//! The whole target (`stack`) is written against the traits of this crate and nothing else: it has no clock, no
//! thread, no socket and no file of its own. `hw` implements them over a real host, `sim` over a world that is drawn
//! from a seed. The crate holds traits and plain types only; it touches nothing itself, needs no `std` and has no
//! unsafe code, so that anything ambient in the stack is a compile error and not a review comment.
//!
//! # Where things may be called
//!
//! A [`Platform`] value belongs to one core: it is cloned freely on that core and never leaves it. What crosses cores
//! is named `Send` here: windows, memory, handles, files, mailboxes, and the results of offloaded jobs. Everything
//! marked *blocking* may be called only inside a job given to [`Platform::offload`]; all else returns at once and is
//! called from a [`Poller`].
//!
//! # What a crash is
//!
//! A process may die between any two stores to shared memory, and in the middle of every bulk copy. A dead process
//! runs no more code that the world can see: in the simulator its destructors run, but its windows, sockets and
//! notifiers lead nowhere from then on. What it had submitted to a device may still happen later (see [`FileLock`]).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod error;
mod event;
mod files;
mod memory;
mod net;
mod pci;
mod platform;
mod poller;
mod scheduler;
mod segments;
mod time;
mod unix;
mod window;

pub use error::{Error, ErrorKind, Result};
pub use event::Event;
pub use files::{
    Directory, File, FileChannel, FileCompletion, FileEngine, FileInfo, FileLock, FileOp, FileOptions, Full,
};
pub use memory::{Access, Memory};
pub use net::{Net, TcpListener, TcpStream};
pub use pci::{Dma, NotAnAddress, Pci, PciAddress, PciFunction, PciRefused, Registers};
pub use platform::{Constructor, Platform};
pub use poller::{Interest, Poll, Poller, Wakes};
pub use scheduler::{CoreId, Job, ReactorTimes, Receiver, Sender};
pub use segments::Segments;
pub use time::Instant;
pub use unix::{Handle, Listener, Notifier, SocketOptions, Stream};
pub use window::Window;
