//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use runtime::PciAddress;
use std::path::PathBuf;

/// Where a target listens for calls when nothing else is said; the systemd unit has it so.
const RPC_SOCKET: &str = "/run/reprise/rpc.sock";

/// A storage target in user space that survives its own death.
#[derive(Debug, Parser)]
#[command(name = "reprise", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the block devices of a state directory until SIGTERM
    Serve(Serve),
    /// Call a method of a running target
    Rpc(Rpc),
    /// Print the events of a flight recorder's file
    Recorder(Recorder),
    /// The host's NVMe drives: list them, give one to the target, give it back to the kernel
    Device(Device),
    /// Whether this host has what the target needs, and what mends it; exit code 0 if it has
    Doctor(Doctor),
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// Where to listen for calls (JSON-RPC 2.0)
    #[arg(long, value_name = "PATH", default_value = RPC_SOCKET)]
    pub(crate) rpc_socket: PathBuf,

    /// Directory of the controllers' sockets: controller NAME listens at DIR/NAME
    #[arg(long, value_name = "DIR", default_value = "/run/reprise/vhost")]
    pub(crate) vhost_dir: PathBuf,

    /// Directory of what outlives the process: the configuration, and the flight recorders
    #[arg(long, value_name = "DIR", default_value = "/var/lib/reprise")]
    pub(crate) state: PathBuf,

    /// Processors to run on, one core each: 0x3, or a list such as 0,2-3 [default: the first one available]
    #[arg(long, value_name = "MASK")]
    pub(crate) cores: Option<String>,

    /// Never sleep: poll even when there is nothing to do
    #[arg(long)]
    pub(crate) poll: bool,

    /// Directory of the machine's named memory, on a memory file system (tmpfs or hugetlbfs)
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub(crate) memory_dir: PathBuf,

    /// Permissions of the sockets, octal [default: as the umask has it]
    #[arg(long, value_name = "MODE", value_parser = mode)]
    pub(crate) socket_mode: Option<u32>,

    /// Owner of the sockets, by names or numbers [default: the target's own]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub(crate) socket_owner: Option<String>,

    /// Form of the log, which goes to standard error; what is logged is set by REPRISE_LOG (such as "debug")
    #[arg(long, value_name = "FORM", value_enum, default_value_t = LogFormat::Human)]
    pub(crate) log_format: LogFormat,

    /// Keep no flight recorder
    #[arg(long)]
    pub(crate) no_recorder: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines to read
    Human,
    /// One JSON object a line
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct Rpc {
    /// The method; `rpc_get_methods` lists them
    pub(crate) method: String,

    /// Parameters: a value is JSON where it can be read as such and a string otherwise; a.b=1 is {"a": {"b": 1}}
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) parameters: Vec<String>,

    /// Where the target listens for calls
    #[arg(long, value_name = "PATH", default_value = RPC_SOCKET)]
    pub(crate) rpc_socket: PathBuf,

    /// How long to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: u64,
}

#[derive(Args, Debug)]
pub(crate) struct Recorder {
    /// The file: recorder-CORE in a state directory, or recorder-CORE.previous of the life before
    pub(crate) file: PathBuf,

    /// One JSON object an event
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Device {
    #[command(subcommand)]
    pub(crate) command: DeviceCommand,

    /// Where the host's /sys, /proc and /dev are seen
    #[arg(long, value_name = "DIR", hide = true, global = true)]
    pub(crate) root: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// List the NVMe drives, with who drives and uses each
    List {
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Take a drive that nobody uses from the kernel, for the target
    Bind {
        /// Where it sits, such as 0000:3b:00.0
        address: PciAddress,
    },
    /// Give a drive that nobody uses back to the kernel
    Unbind {
        /// Where it sits, such as 0000:3b:00.0
        address: PciAddress,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// One JSON array
    #[arg(long)]
    pub(crate) json: bool,

    /// Where the host's /sys, /proc and /dev are seen
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) root: Option<PathBuf>,
}

/// Permission bits, octal with or without a leading 0.
fn mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("give octal permission bits between 0 and 777, such as 0660".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(mode("0660"), Ok(0o660));
        assert_eq!(mode("600"), Ok(0o600));
        assert_eq!(mode("0o7"), Ok(7));
        for bad in ["", "0888", "-1", "1000", "rw"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }
}
