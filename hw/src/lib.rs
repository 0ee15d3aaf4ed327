//! The real host: [`runtime::Platform`] over Linux on x86-64, for the binary `reprise`.
//!
//! Everything that touches the world or needs unsafe code is here, and nothing that knows a protocol or decides a
//! recovery.

mod arena;
mod clock;
mod closer;
pub mod cores;
mod dma;
mod error;
mod fault;
pub mod files;
mod free_list;
mod handle;
mod lock;
mod mailbox;
pub mod memory;
mod net;
mod notifier;
mod offload;
pub mod pci;
mod platform;
mod process;
mod reactor;
mod readiness;
mod recorder;
mod unix;
mod waker;
mod wakes;
mod window;

pub use dma::{HostDma, HostMapping};
pub use files::{HostChannel, HostDirectory, HostFile};
pub use handle::HostHandle;
pub use mailbox::{HostReceiver, HostSender};
pub use memory::HostMemory;
pub use net::{HostNet, HostTcpListener, HostTcpStream};
pub use notifier::HostNotifier;
pub use offload::HostJob;
pub use pci::{HostFunction, HostPci, HostRegisters};
pub use platform::HostPlatform;
pub use process::{Options, Process, StartError, Stop};
pub use unix::{HostListener, HostStream};
pub use wakes::HostWakes;
pub use window::HostWindow;
