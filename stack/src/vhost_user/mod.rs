//! The vhost-user back-end: how a virtual machine's front-end (QEMU and others) reaches a block device. Sections are
//! those of the vhost-user specification (QEMU, docs/interop/vhost-user.rst).
//!
//! From the outside in: a [`Controller`] listens at a path and serves one front-end at a time; its session carries out
//! the front-end's messages, one after the other, on a virtio device; [`message`] is what stands on the wire.

mod backend_channel;
mod connection;
mod controller;
mod inflight_region;
pub mod message;
mod rings;
mod session;

pub use controller::{Controller, ControllerConfig};
