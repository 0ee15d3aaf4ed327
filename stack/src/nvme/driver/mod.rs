//! The driver of a local NVMe controller.
//!
//! A [`Controller`] lives on one core, the home core, and is polled there: it brings the controller up, keeps its admin
//! queue, watches over it, and climbs the ladder when it fails. Each core that does I/O has [`IoChannel`]s of its own,
//! each with one queue pair; between them and the controller there are mailboxes and nothing else. All of it is plain
//! data that is submitted to and polled; nothing blocks, and no I/O allocates.
//!
//! # What is promised
//!
//! - No command of an earlier life of the function can touch memory or media any more when a controller is first ready:
//!   it was disabled (and that seen), or its function reset, before anything else was done. A replay waits for that.
//! - A command's memory is the controller's until the command's completion came, or the controller was reset. Nothing is
//!   completed to its user before, however long it takes: what takes too long is aborted, then the controller is reset,
//!   then its function, and when that fails too its bus mastering is taken away; only then do the users hear of it.
//! - What a reset interrupted is submitted again, a bounded number of times.
//! - Nothing that the controller says is believed: each word that it writes is read once, each number has a bound
//!   ([`identity`]), a completion that nobody waits for means a reset.
//!
//! # What the controller can still do
//!
//! It can complete a command before it has done it, and bring wrong data. It can write any memory that is mapped for the
//! process's functions: the driver maps its own queues, the target maps its guests' memory. It can interrupt all the time.

mod admin;
mod channel;
mod commands;
mod controller;
mod doorbell;
mod failure;
mod identity;
mod memory;
mod messages;
mod queue;
mod scan;
mod transfer;

pub use channel::{ChannelCounters, Ended, IoChannel, Operation};
pub use controller::{Controller, Report, Standing};
pub use failure::{Failure, IoFailure};
pub use identity::{Abilities, ControllerInfo, Namespace, NamespaceState};
pub use messages::Link;

use core::time::Duration;
use runtime::{Dma, Pci, PciFunction, Platform};

/// The PCI functions of a platform.
pub trait PciOf<P: Platform>:
    Pci<Function: PciFunction<Notifier = <P as Platform>::Notifier>, Dma: Dma<Window = <P as Platform>::Window>>
{
}

impl<P, X> PciOf<P> for X
where
    P: Platform,
    X: Pci,
    X::Function: PciFunction<Notifier = P::Notifier>,
    X::Dma: Dma<Window = P::Window>,
{
}

/// Registers of a platform's functions.
type RegistersOf<X> = <<X as Pci>::Function as PciFunction>::Registers;

/// How a controller is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Entries of an I/O queue, cut to what the controller has and to a power of two. 2 to 1024.
    pub queue_entries: u16,
    /// Most I/O queues that are asked for.
    pub queues: u16,
    /// How long an I/O command may take before it is aborted; and how long the abort may take before the controller is
    /// reset.
    pub io_timeout: Duration,
    /// How long an admin command may take before the controller is reset.
    pub admin_timeout: Duration,
    /// Whether a late I/O command is aborted before the controller is reset; else the controller is reset at once.
    pub aborts: bool,
    /// How often an I/O command that the controller failed, and may be tried again, is tried again.
    pub retries: u8,
    /// Use shadow doorbells where the controller has them.
    pub shadow_doorbells: bool,
    /// Use interrupts, so that a core may sleep. Without them a core that has I/O out never does.
    pub interrupts: bool,
}

impl Default for Options {
    /// As Linux has them, with queues of 256 entries for up to 64 channels.
    fn default() -> Self {
        Self {
            queue_entries: 256,
            queues: 64,
            io_timeout: Duration::from_secs(30),
            admin_timeout: Duration::from_secs(60),
            aborts: true,
            retries: 4,
            shadow_doorbells: true,
            interrupts: true,
        }
    }
}
