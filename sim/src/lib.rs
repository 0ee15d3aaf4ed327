//! The simulated world: the target's stack over a platform that is drawn from a seed, with fake disks, guests,
//! front-ends and a judge of everything they see.

pub mod catalog;
pub mod check;
pub mod diff;
pub mod disk;
pub mod dma;
pub mod faults;
pub mod files;
pub mod follow;
pub mod guest;
pub mod hostile;
pub mod import;
mod mailbox;
pub mod memory;
pub mod notifier;
mod offload;
pub mod operator;
pub mod pci;
pub mod plan;
pub mod platform;
pub mod process;
pub mod record;
pub mod replay;
pub mod report;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod scheduler;
pub mod shrink;
pub mod subject;
pub mod supervisor;
pub mod sweep;
pub mod timeline;
pub mod trace;
pub mod unix;
pub mod vmm;
pub mod world;
