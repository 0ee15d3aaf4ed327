//! The target as a process: really started, really killed with SIGKILL, and started again on what it left behind.
//!
//! A [`Target`] owns a directory that outlives every incarnation of its process: state, vhost sockets, RPC socket, disks, and
//! one log of all incarnations. [`Target::start`] comes back when the RPC socket answers. A test that fails prints the log's
//! end, and no process outlives its [`Target`].

mod rpc;

use std::fs::{File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

pub use rpc::RpcError;

/// How long a process may take until its RPC socket answers. It includes the wait for a dead incarnation's disk writes.
const START_WAIT: Duration = Duration::from_secs(30);
/// How long an orderly stop may take: every request that is in a device has to come back.
const STOP_WAIT: Duration = Duration::from_secs(30);
/// Between two looks at a process that is starting or stopping.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// Of the log, this much is printed when a test fails, bytes.
const LOG_SHOWN_BYTES: usize = 16 << 10;

/// A target process and the directory it lives in.
#[derive(Debug)]
pub struct Target {
    home: tempfile::TempDir,
    /// Where the contents of its malloc bdevs live: they outlive the process by design, but not the test.
    memory: tempfile::TempDir,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Target {
    /// Starts a target in a new directory and waits until it answers.
    pub fn start() -> Target {
        Target::start_with(&[])
    }

    /// As [`Target::start`], with further arguments of `reprise serve`.
    pub fn start_with(arguments: &[&str]) -> Target {
        let home = tempfile::Builder::new().prefix("reprise-").tempdir().expect("a directory for the target");
        for directory in ["state", "vhost"] {
            std::fs::create_dir(home.path().join(directory)).expect("a directory for the target");
        }
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let memory =
            tempfile::Builder::new().prefix("reprise-").tempdir_in("/dev/shm").expect("shared memory");
        let mut target = Target { home, memory, arguments, process: None };
        target.restart();
        target
    }

    /// Starts the process again in the same directory and waits until it answers. Returns how long that took.
    pub fn restart(&mut self) -> Duration {
        assert!(self.process.is_none(), "the target still runs");
        let log =
            OpenOptions::new().create(true).append(true).open(self.log_file()).expect("the target's log");
        // May take minutes, the first time: it is built.
        let program = crate::binaries::reprise();
        let started = Instant::now();
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg("--rpc-socket")
            .arg(self.rpc_socket())
            .arg("--vhost-dir")
            .arg(self.path("vhost"))
            .arg("--state")
            .arg(self.path("state"))
            .arg("--memory-dir")
            .arg(self.memory.path())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the target's log"))
            .stderr(log);
        let process = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        self.process = Some(process);
        while self.rpc("spdk_get_version", Value::Null).is_err() {
            if let Some(status) = self.running().try_wait().expect("the target can be waited for") {
                panic!("the target ended by itself while starting: {status}");
            }
            assert!(started.elapsed() < START_WAIT, "the target does not answer after {START_WAIT:?}");
            std::thread::sleep(LOOK_INTERVAL);
        }
        started.elapsed()
    }

    /// Kills the process with SIGKILL, in whatever it is doing. It must have been running.
    pub fn kill9(&mut self) {
        let mut process = self.process.take().expect("a running target");
        process.kill().expect("the target can be killed");
        let status = process.wait().expect("the target can be waited for");
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "the target had ended by itself: {status}");
    }

    /// Stops the process with SIGTERM and returns what it ended with.
    pub fn stop(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("a running target");
        kill_process(Pid::from_child(&process), Signal::TERM).expect("the target can be signalled");
        let asked = Instant::now();
        loop {
            if let Some(status) = process.try_wait().expect("the target can be waited for") {
                return status;
            }
            if asked.elapsed() > STOP_WAIT {
                self.process = Some(process);
                panic!("the target does not stop within {STOP_WAIT:?}");
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// One JSON-RPC call. `params` is an object, or null for none.
    pub fn rpc(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        rpc::call(&self.rpc_socket(), method, params)
    }

    /// One JSON-RPC call that must succeed.
    pub fn call(&self, method: &str, params: Value) -> Value {
        self.rpc(method, params.clone()).unwrap_or_else(|error| panic!("{method} {params}: {error}"))
    }

    /// Makes a vhost-user-blk controller for a bdev, and returns the socket where it listens.
    pub fn serve(&self, bdev: &str, controller: &str) -> PathBuf {
        self.call("vhost_create_blk_controller", json!({ "ctrlr": controller, "dev_name": bdev }));
        self.path("vhost").join(controller)
    }

    /// Makes a file of zeroes in the target's directory, as a disk.
    pub fn image(&self, name: &str, size_bytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).and_then(|file| file.set_len(size_bytes)).expect("a disk image");
        path
    }

    /// Something in the target's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Where the JSON-RPC socket is.
    pub fn rpc_socket(&self) -> PathBuf {
        self.path("rpc.sock")
    }

    /// Processor time of all threads of this incarnation so far, user and system.
    pub fn processor_time(&self) -> Duration {
        processor_time(self.process_id())
    }

    /// How many descriptors this incarnation holds now (proc(5), `/proc/PID/fd`).
    pub fn open_descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.process_id());
        std::fs::read_dir(&path).unwrap_or_else(|error| panic!("{path}: {error}")).count()
    }

    /// This incarnation's process id.
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().expect("a running target").id()
    }

    /// The names of the events in the flight recorder of the incarnation that runs or ran last, oldest first, over all
    /// its cores. A recorder keeps the last 65,536 of a core.
    pub fn recorded_events(&self) -> Vec<String> {
        let is_recorder = |name: &str| name.starts_with("recorder-") && !name.contains('.');
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.path("state")).expect("the state directory") {
            let path = entry.expect("the state directory").path();
            if !path.file_name().and_then(|name| name.to_str()).is_some_and(is_recorder) {
                continue;
            }
            let printed = Command::new(crate::binaries::reprise())
                .args(["recorder", "--json"])
                .arg(&path)
                .output()
                .expect("the recorder can be printed");
            assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
            for event in serde_json::Deserializer::from_slice(&printed.stdout).into_iter::<Value>() {
                let event = event.expect("an event in JSON");
                names.push(event["name"].as_str().unwrap_or("unknown").to_owned());
            }
        }
        names
    }

    /// What all incarnations have logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    fn log_file(&self) -> PathBuf {
        self.path("log")
    }

    fn running(&mut self) -> &mut Child {
        self.process.as_mut().expect("a running target")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // Both fail only if it has ended and was waited for already.
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let start = log.ceil_char_boundary(log.len().saturating_sub(LOG_SHOWN_BYTES));
            eprintln!("the target's log ends:\n{}", &log[start..]);
        }
    }
}

/// Processor time of all threads of a process so far, also of those that have ended, user and system, in nanoseconds of
/// its own clock (clock_getcpuclockid(3)). `/proc/PID/stat` tells it in ticks of 10 ms, which an idle target uses none
/// of.
pub fn processor_time(process: u32) -> Duration {
    let mut clock = 0;
    // SAFETY: the clock's number is written to the address.
    let errno = unsafe { libc::clock_getcpuclockid(process as libc::pid_t, &raw mut clock) };
    assert_eq!(errno, 0, "process {process} has no clock");
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written to the address.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "the clock of process {process}: {}", std::io::Error::last_os_error());
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::processor_time;

    /// As much as the threads say, the one that has ended included.
    #[test]
    fn processor_time_is_that_of_all_threads() {
        let own = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
        };
        let work = move || {
            let begun = own();
            while own() - begun < std::time::Duration::from_millis(20) {}
        };
        let before = processor_time(std::process::id());
        std::thread::spawn(work).join().expect("a thread");
        work();
        assert!(processor_time(std::process::id()) - before >= std::time::Duration::from_millis(40));
    }
}
