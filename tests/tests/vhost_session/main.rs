//! The vhost-user session, message by message: the orders in which QEMU and SPDK's peers were seen to speak, what the
//! specification asks in between, and what a hostile front-end may try. Everything is driven by hand
//! ([`tests::vhost`]): the test decides what is in flight when a message comes. `rig` is what all of them begin with.

mod changing;
mod connection;
mod hostile;
mod in_band;
mod recovery;
mod rig;
mod starting;
