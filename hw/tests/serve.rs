//! The binary from outside: exit codes, precise errors, its own RPC client.

use rustix::process::{Pid, Signal, kill_process};
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn reprise(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reprise")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A target in a directory of its own; killed when the test ends.
struct Target {
    process: Child,
    home: PathBuf,
}

impl Target {
    fn start(home: &Path, more: &[&str]) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_reprise"))
            .args(arguments(home))
            .args(more)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut target = Self { process, home: home.to_owned() };
        while !target.rpc(&["spdk_get_version"]).status.success() {
            assert_eq!(target.process.try_wait().unwrap(), None, "the target ended while it started");
            std::thread::yield_now();
        }
        target
    }

    fn rpc(&self, arguments: &[&str]) -> Output {
        let socket = self.home.join("rpc.sock");
        let mut all = vec!["rpc", "--rpc-socket", socket.to_str().unwrap()];
        all.extend(arguments);
        reprise(&all)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Fails when it has ended and was waited for, as it should.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn arguments(home: &Path) -> Vec<String> {
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    vec![
        "serve".into(),
        "--rpc-socket".into(),
        path("rpc.sock"),
        "--vhost-dir".into(),
        path("vhost"),
        "--state".into(),
        path("state"),
    ]
}

/// Runs `serve` in a directory where it must not begin, and gives its exit code and reason.
fn refused(home: &Path, more: &[&str]) -> (Option<i32>, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_reprise")).args(arguments(home)).args(more).output().unwrap();
    (output.status.code(), said(&output))
}

#[test]
fn a_target_serves_until_it_is_told_to_stop() {
    let home = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let mut target = Target::start(home.path(), &["--socket-mode", "0600"]);
        assert_eq!(reprise(&["rpc"]).status.code(), Some(2));
        let unknown = target.rpc(&["no_such_method"]);
        assert_eq!(unknown.status.code(), Some(1));
        assert!(said(&unknown).contains("no_such_method") && said(&unknown).contains("code -32601"));
        let malformed = target.rpc(&["bdev_get_bdevs", "name"]);
        assert_eq!(malformed.status.code(), Some(2), "{}", said(&malformed));
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(home.path().join("rpc.sock")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        target.signal(signal);
        assert_eq!(target.process.wait().unwrap().code(), Some(0));
        assert!(!home.path().join("rpc.sock").exists());
    }
    assert_eq!(
        reprise(&["rpc", "spdk_get_version", "--rpc-socket", "/nowhere/rpc.sock"]).status.code(),
        Some(1)
    );
}

#[test]
fn a_second_target_on_the_same_state_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let target = Target::start(home.path(), &[]);
    for more in [&[][..], &["--no-recorder"]] {
        let (code, reason) = refused(home.path(), more);
        assert_eq!(code, Some(1), "{reason}");
        assert!(reason.contains("is in use by another reprise serve"), "{reason}");
    }
    assert!(target.rpc(&["bdev_get_bdevs"]).status.success());
    // The files of the one that serves are its own still.
    let recorder = home.path().join("state/recorder-0");
    assert!(recorder.exists() && !home.path().join("state/recorder-0.previous").exists());
    let printed = reprise(&["recorder", recorder.to_str().unwrap()]);
    assert!(
        printed.status.success() && printed.stdout.starts_with(b"core 0, started 2"),
        "{}",
        said(&printed)
    );
}

#[test]
fn starts_that_fail_take_nothing_from_the_recording_of_a_crash() {
    let home = tempfile::tempdir().unwrap();
    let target = Target::start(home.path(), &[]);
    assert!(target.rpc(&["bdev_null_create", "name=n", "num_blocks=8", "block_size=512"]).status.success());
    drop(target);
    let recorder = home.path().join("state/recorder-0");
    let crashed = std::fs::read(&recorder).unwrap();
    let config = home.path().join("state/config.json");
    let good = std::fs::read(&config).unwrap();
    std::fs::write(&config, "{").unwrap();
    for _ in 0..3 {
        let (code, reason) = refused(home.path(), &[]);
        assert!(code == Some(1) && reason.contains("is damaged"), "{reason}");
    }
    assert!(std::fs::read(&recorder).unwrap() == crashed, "the recording of the crash is gone");
    assert!(!home.path().join("state/recorder-0.previous").exists());
    // The next life that serves displaces it, and keeps it as the one before.
    std::fs::write(&config, good).unwrap();
    let again = Target::start(home.path(), &[]);
    assert!(again.rpc(&["bdev_get_bdevs"]).status.success());
    assert!(std::fs::read(home.path().join("state/recorder-0.previous")).unwrap() == crashed);
}

#[test]
fn what_is_wrong_with_the_input_is_said_precisely() {
    let home = tempfile::tempdir().unwrap();
    for (more, expected) in [
        (&["--cores", "0x"][..], "core mask \"0x\" is malformed"),
        (&["--cores", "1000"], "may not run on: 1000; allowed on this host: "),
        (&["--socket-mode", "888"], "octal permission bits"),
        (&["--socket-owner", "nobody-here"], "no user \"nobody-here\" on this host"),
        (&["--memory-dir", "/nowhere"], "named memory /nowhere cannot be used"),
        (&["--memory-dir", "/"], "named memory / is not on a memory file system"),
        (&["--log-format", "xml"], "[possible values: human, json]"),
        (&["--no-such-option"], "--no-such-option"),
    ] {
        let (code, reason) = refused(home.path(), more);
        assert_eq!(code, Some(2), "{reason}");
        assert!(reason.contains(expected), "{reason}");
    }
    std::fs::write(home.path().join("file"), "no recording").unwrap();
    let file = home.path().join("file");
    let printed = reprise(&["recorder", file.to_str().unwrap()]);
    assert_eq!(printed.status.code(), Some(2));
    assert!(said(&printed).contains("no flight recording of Reprise"), "{}", said(&printed));
}

/// What may be otherwise the next time is no bad input: the service manager tries again.
#[test]
fn what_cannot_be_done_now_is_told_apart_from_bad_input() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("file"), "no directory").unwrap();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    for ([option, value], expected) in [
        (["--state", &path("file/state")], "cannot make the state directory"),
        (["--vhost-dir", &path("file/vhost")], "cannot make the directory of the controllers' sockets"),
        (["--rpc-socket", &path("file/rpc.sock")], "cannot listen"),
        (["--rpc-socket", &path("file")], "cannot listen"),
    ] {
        let mut arguments = arguments(home.path());
        let at = arguments.iter().position(|argument| argument == option).unwrap();
        arguments[at + 1] = value.to_owned();
        let output = Command::new(env!("CARGO_BIN_EXE_reprise")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{option} {value}: {}", said(&output));
        assert!(said(&output).contains(expected), "{option} {value}: {}", said(&output));
    }
    let unit = include_str!("../systemd/reprise.service");
    assert!(unit.lines().any(|line| line == "RestartPreventExitStatus=2"), "bad input is tried once");
}

/// Where a service finds no image is told to whoever runs it: each directory that the unit hides or makes read-only.
#[test]
fn the_unit_and_the_book_agree_on_what_a_service_cannot_reach() {
    let unit = include_str!("../systemd/reprise.service");
    let book = include_str!("../../docs/operating.md");
    let settings = unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    let restricting =
        ["ProtectSystem", "ProtectHome", "PrivateTmp", "Inaccessible", "ReadOnly", "TemporaryFile", "Root"];
    let mut told = 0;
    for (name, value) in settings.filter(|(name, _)| restricting.iter().any(|part| name.starts_with(part))) {
        assert!(
            book.contains(&format!("`{name}={value}`")),
            "docs/operating.md does not have {name}={value}"
        );
        told += 1;
    }
    let rows = book.lines().filter(|line| line.starts_with("| `/") && line.contains('=')).count();
    assert_eq!(told, rows, "docs/operating.md has a line that the unit does not have");
}

#[test]
fn the_service_manager_is_told_and_the_log_is_json_where_asked() {
    let home = tempfile::tempdir().unwrap();
    let manager_path = home.path().join("notify");
    let manager = UnixDatagram::bind(&manager_path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_reprise"))
        .args(arguments(home.path()))
        .args(["--log-format", "json"])
        .env("NOTIFY_SOCKET", &manager_path)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let told = || {
        let mut message = [0; 256];
        let len = manager.recv(&mut message).expect("the target tells how it is");
        String::from_utf8_lossy(&message[..len]).trim().to_owned()
    };
    assert_eq!(told(), "READY=1");
    // Ready means that it answers.
    let socket = home.path().join("rpc.sock");
    let answer = reprise(&["rpc", "rpc_get_methods", "--rpc-socket", socket.to_str().unwrap()]);
    assert!(answer.status.success(), "{}", said(&answer));
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    assert_eq!(told(), "STOPPING=1");
    let mut log = String::new();
    process.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(0));
    assert!(log.lines().count() >= 3, "{log}");
    for line in log.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(entry["message"].is_string() && entry["level"].is_string(), "{line}");
    }
}
