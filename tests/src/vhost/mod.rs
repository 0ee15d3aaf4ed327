//! A vhost-user controller driven by hand: everything that a front-end and a guest do is done by the test, one step at a
//! time, over real sockets, shared memory and eventfds.

pub mod by_hand;
pub mod front_end;
pub mod gate;
pub mod guest;
