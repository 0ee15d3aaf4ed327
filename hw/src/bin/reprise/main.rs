//! The binary `reprise`: serves block devices to virtual machines, speaks to a running target, reads what a dead one left in
//! its flight recorder, and looks after the host's drives.
//!
//! Exit codes: 0 all went well (`serve`: an orderly stop), 1 what was asked for was refused or could not be done (also: the
//! target could not begin), 2 the input was bad, and the same command line will never do; the reason is then on standard
//! error.

mod arguments;
#[cfg(test)]
mod built;
mod device;
mod doctor;
mod logging;
mod recorder;
mod rpc;
mod serve;
mod usage;

use arguments::{Arguments, Command};
use clap::Parser;
use std::process::ExitCode;

/// What a command ends with when it does not do what was asked.
struct Failure {
    code: u8,
    reason: String,
}

impl Failure {
    /// What was asked could not be done.
    fn refused(reason: impl Into<String>) -> Self {
        Self { code: 1, reason: reason.into() }
    }

    /// What was asked makes no sense, or not on this host.
    fn bad_input(reason: impl Into<String>) -> Self {
        Self { code: 2, reason: reason.into() }
    }
}

fn main() -> ExitCode {
    let ended = match Arguments::parse().command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Rpc(arguments) => rpc::run(&arguments),
        Command::Recorder(arguments) => recorder::run(&arguments),
        Command::Device(arguments) => device::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, reason }) => {
            eprintln!("reprise: {reason}");
            ExitCode::from(code)
        }
    }
}
