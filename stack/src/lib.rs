//! The Reprise target, written once and generic over [`runtime::Platform`]: the same code serves real hosts (`hw`) and
//! runs in the deterministic simulator (`sim`).
//!
//! Data path, from guest to medium: a [`vhost_user`] controller owns a virtio-blk device ([`virtio`]) with its rings
//! and their inflight regions; the device submits to one channel of a block device ([`block`]). All of it lives on one
//! core and is driven by polling; state machines are plain data. Control path: `control` (JSON-RPC, durable state).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod block;
pub mod control;
pub mod events;
pub mod nvme;
mod outbox;
pub mod reached;
pub mod recording;
pub mod target;
pub mod vhost_user;
pub mod virtio;
