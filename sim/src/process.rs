//! The target as a simulated process: the very code that `reprise serve` runs, reached only through its RPC socket, its
//! controllers' sockets, shared memory and files.

use crate::faults::FaultKind;
use crate::platform::SimPlatform;
use crate::world::{self, Judged, Program};
use runtime::{Poller, SocketOptions};
use stack::target::{Options, Target};
use std::sync::Arc;

/// Where the first target listens for calls.
pub const RPC_SOCKET: &str = "/run/reprise/rpc.sock";

/// Where a target listens for calls. Several targets of a machine share nothing but its disks.
#[must_use]
pub fn rpc_socket(target: u16) -> String {
    match target {
        0 => RPC_SOCKET.into(),
        other => format!("/run/reprise-{other}/rpc.sock"),
    }
}

/// The directory of its controllers' sockets.
#[must_use]
pub fn vhost_dir(target: u16) -> String {
    match target {
        0 => "/run/reprise/vhost".into(),
        other => format!("/run/reprise-{other}/vhost"),
    }
}

/// Its state directory.
fn state_dir(target: u16) -> String {
    match target {
        0 => "/var/lib/reprise".into(),
        other => format!("/var/lib/reprise-{other}"),
    }
}

/// The program `reprise serve`. A life that cannot begin fails the run: what a scenario does to its state directory it
/// must survive, unless that fails under it just then.
#[must_use]
pub fn target() -> Program {
    target_of(0)
}

/// The same of one of several targets.
#[must_use]
pub fn target_of(number: u16) -> Program {
    Arc::new(move |platform: SimPlatform| {
        let options = Options {
            rpc_socket: rpc_socket(number),
            rpc_socket_options: SocketOptions::default(),
            vhost_dir: vhost_dir(number),
            vhost_socket: SocketOptions::default(),
            in_band_notifications: true,
            state_dir: state_dir(number),
            version: "0.1.0",
        };
        let file_errors = || world::with(|world| world.faults().count(FaultKind::FileError));
        world::with(|world| world.judged.target += 1);
        let before = file_errors();
        let on_end = move |ended: Result<(), String>| {
            if let Err(why) = ended
                && file_errors() == before
            {
                world::with(|world| world.fail(Judged::TARGET, format!("the target cannot begin: {why}")));
            }
        };
        Box::new(Target::new(platform, options, Box::new(on_end))) as Box<dyn Poller<SimPlatform>>
    })
}
