//! `reprise serve`: from the command line to a running process, and its signals.

use crate::arguments::Serve;
use crate::{Failure, logging};
use hw::{HostPlatform, Options, Process, Stop};
use nix::unistd::{Group, User};
use runtime::{ErrorKind, SocketOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use stack::target::{Ended, Target};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Permissions of a state directory that is made here: it tells which disks there are.
const STATE_MODE: u32 = 0o700;
/// Permissions of a directory of sockets that is made here; the sockets have their own.
const VHOST_MODE: u32 = 0o755;

/// A signal that comes sooner after the first one is the same wish, told twice (by a supervisor to the process and to its
/// group, for one).
const SECOND_SIGNAL: Duration = Duration::from_secs(1);

/// Serves until it is asked to stop.
pub(crate) fn run(arguments: &Serve) -> Result<(), Failure> {
    let target = target_options(arguments)?;
    let processors = match &arguments.cores {
        Some(mask) => hw::cores::parse(mask).map_err(Failure::bad_input)?,
        None => hw::cores::default_processors(),
    };
    make_directory(&arguments.state, STATE_MODE, "state directory")?;
    make_directory(&arguments.vhost_dir, VHOST_MODE, "directory of the controllers' sockets")?;
    hw::memory::check_directory(&arguments.memory_dir).map_err(Failure::bad_input)?;
    let _written_at_the_end = logging::start(arguments.log_format)?;
    raise_descriptor_limit();
    let process = Process::new(&Options {
        processors,
        poll: arguments.poll,
        memory_directory: arguments.memory_dir.clone(),
        recorder_directory: (!arguments.no_recorder).then(|| arguments.state.clone()),
    })
    .map_err(|error| match error.kind() {
        // It is the recorder's file that another process holds.
        ErrorKind::Busy => Failure::refused(format!(
            "the state directory {} is in use by another reprise serve: stop it, or give another --state",
            target.state_dir
        )),
        _ => Failure::refused(error.to_string()),
    })?;
    handle_signals(process.stop())
        .map_err(|error| Failure::refused(format!("cannot handle signals: {error}")))?;
    tracing::info!(version = target.version, state = %target.state_dir, "reprise begins");

    let ended: Arc<Mutex<Option<Ended>>> = Arc::default();
    let tell = ended.clone();
    let first = move |platform: HostPlatform| {
        let on_end = move |how| *tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
        Box::new(Target::new(platform, target, Box::new(on_end))) as _
    };
    process.run(Box::new(first)).map_err(|error| Failure::refused(error.to_string()))?;
    let ended = ended.lock().unwrap_or_else(PoisonError::into_inner).take();
    match ended {
        Some(Ok(())) => {
            tracing::info!("reprise ends");
            Ok(())
        }
        Some(Err(reason)) => Err(Failure::refused(reason)),
        None => Err(Failure::refused("the target ended without saying how")),
    }
}

/// What the stack is started with.
fn target_options(arguments: &Serve) -> Result<stack::target::Options, Failure> {
    let mut sockets = SocketOptions { mode: arguments.socket_mode, user_id: None, group_id: None };
    if let Some(owner) = &arguments.socket_owner {
        (sockets.user_id, sockets.group_id) = read_owner(owner).map_err(Failure::bad_input)?;
    }
    Ok(stack::target::Options {
        rpc_socket: absolute(&arguments.rpc_socket)?,
        rpc_socket_options: sockets.clone(),
        vhost_dir: absolute(&arguments.vhost_dir)?,
        vhost_socket: sockets,
        in_band_notifications: false,
        state_dir: absolute(&arguments.state)?,
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// A path as the stack has it.
fn absolute(path: &Path) -> Result<String, Failure> {
    std::path::absolute(path)
        .ok()
        .and_then(|path| path.into_os_string().into_string().ok())
        .ok_or_else(|| Failure::bad_input(format!("the path {} is empty or no UTF-8", path.display())))
}

/// Makes a directory with these permissions, and above it what is missing with the usual ones: others may have to pass.
fn make_directory(path: &Path, mode: u32, what: &str) -> Result<(), Failure> {
    let parents = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    parents
        .and_then(|()| DirBuilder::new().recursive(true).mode(mode).create(path))
        .map_err(|error| Failure::refused(format!("cannot make the {what} {}: {error}", path.display())))
}

/// Numeric user and group of `USER[:GROUP]`, each a name or a number.
fn read_owner(owner: &str) -> Result<(Option<u32>, Option<u32>), String> {
    let (user, group) = match owner.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (owner, None),
    };
    let user_id = match User::from_name(user) {
        Ok(Some(user)) => Some(user.uid.as_raw()),
        _ if user.is_empty() && group.is_some() => None,
        _ => {
            Some(user.parse().map_err(|_| format!("socket owner {owner:?}: no user {user:?} on this host"))?)
        }
    };
    let group_id = match group {
        None => None,
        Some(group) => Some(match Group::from_name(group) {
            Ok(Some(group)) => group.gid.as_raw(),
            _ => group
                .parse()
                .map_err(|_| format!("socket owner {owner:?}: no group {group:?} on this host"))?,
        }),
    };
    Ok((user_id, group_id))
}

/// A target has a descriptor for each queue's kick and call and for each region of each guest: more than the usual soft
/// limit, which is low only for programs that use select(2).
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = limit.current, "the limit of descriptors stays as it is");
    }
}

/// The first SIGTERM or SIGINT asks for an orderly stop, a later one ends the process where it stands, which is safe: it
/// is what the next start recovers from.
fn handle_signals(stop: Stop) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut asked: Option<Instant> = None;
        for signal in signals.forever() {
            if let Some(asked) = asked {
                if asked.elapsed() < SECOND_SIGNAL {
                    continue;
                }
                eprintln!("reprise: signal {signal} came again: the process ends without draining");
                signal_hook::low_level::exit(1);
            }
            asked = Some(Instant::now());
            tracing::info!(signal, "asked to stop: requests in flight are drained");
            // Nobody may be there to be told.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
            stop.request();
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!(read_owner("root"), Ok((Some(0), None)));
        assert_eq!(read_owner("root:root"), Ok((Some(0), Some(0))));
        assert_eq!(read_owner("123:456"), Ok((Some(123), Some(456))));
        assert_eq!(read_owner(":456"), Ok((None, Some(456))));
        for bad in ["", "no-such-user", "root:no-such-group", "root:", "-1", "1:2:3"] {
            let error = read_owner(bad).unwrap_err();
            assert!(error.contains(&format!("socket owner {bad:?}: no ")), "{error}");
        }
    }
}
