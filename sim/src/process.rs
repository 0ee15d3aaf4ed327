//! The target as a simulated process: the very code that `reprise serve` runs, reached only through its RPC socket, its
//! controllers' sockets, shared memory and files.

use crate::platform::SimPlatform;
use crate::world::{self, Program};
use runtime::{Poller, SocketOptions};
use stack::target::{Options, Target};
use std::sync::Arc;

/// Where the target listens for calls.
pub const RPC_SOCKET: &str = "/run/reprise/rpc.sock";
/// The directory of the controllers' sockets.
pub const VHOST_DIR: &str = "/run/reprise/vhost";
/// The state directory.
pub const STATE_DIR: &str = "/var/lib/reprise";

/// The program `reprise serve`. A life that cannot begin fails the run: what a scenario does to its state directory it
/// must survive.
#[must_use]
pub fn target() -> Program {
    Arc::new(|platform: SimPlatform| {
        let options = Options {
            rpc_socket: RPC_SOCKET.into(),
            rpc_socket_options: SocketOptions::default(),
            vhost_dir: VHOST_DIR.into(),
            vhost_socket: SocketOptions::default(),
            in_band_notifications: true,
            state_dir: STATE_DIR.into(),
            version: "0.1.0",
        };
        let on_end = |ended: Result<(), String>| {
            if let Err(why) = ended {
                world::with(|world| world.fail("target", format!("the target cannot begin: {why}")));
            }
        };
        Box::new(Target::new(platform, options, Box::new(on_end))) as Box<dyn Poller<SimPlatform>>
    })
}
