//! The vhost-user back-end: how a virtual machine's front-end (QEMU and others) reaches a block device. Sections are
//! those of the vhost-user specification (QEMU, docs/interop/vhost-user.rst).
//!
//! From the outside in: a [`Controller`] listens at a path and serves one front-end at a time; its session carries out
//! the front-end's messages, one after the other, on a virtio device. Of a message, [`wire`] is what stands in the bytes,
//! [`request`] what may be asked, and [`message`] what is.

mod backend_channel;
mod connection;
mod controller;
mod inflight_region;
pub mod message;
pub mod protocol_features;
mod refusal;
pub mod request;
mod rings;
mod session;
pub mod wire;

pub use controller::{Controller, ControllerConfig};
