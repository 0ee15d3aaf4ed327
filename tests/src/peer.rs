//! qemu-storage-daemon as a peer: another vhost-user-blk back-end for the same clients.
//!
//! It keeps the clients honest (a client that passes only against our own target proves nothing) and it is what the
//! benchmark is measured beside. Where it is missing [`Peer::available`] says so to the benchmark; a test fails.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take until it listens.
const START_WAIT: Duration = Duration::from_secs(30);

/// A running qemu-storage-daemon with one vhost-user-blk export.
#[derive(Debug)]
pub struct Peer {
    socket: PathBuf,
    process: Child,
    _home: tempfile::TempDir,
}

/// What it exports.
#[derive(Debug, Clone)]
pub enum Backing {
    /// Reads give nothing and writes go nowhere.
    Null {
        /// Bytes.
        size: u64,
    },
    /// A file through io_uring with O_DIRECT.
    File(PathBuf),
}

impl Peer {
    /// The program.
    pub const PROGRAM: &str = "qemu-storage-daemon";
    /// What installs it on Debian: it is in the one or the other package, by release.
    pub const INSTALL: &str = "apt-get install qemu-utils qemu-system-common";

    /// True when the program is installed.
    pub fn available() -> bool {
        Command::new(Self::PROGRAM)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Starts it and waits until its socket listens.
    pub fn start(backing: &Backing, queues: u16) -> Peer {
        let home = tempfile::Builder::new().prefix("peer-").tempdir().expect("a directory for the peer");
        let socket = home.path().join("blk.sock");
        let node = match backing {
            // read-zeroes is off by default: nothing is written into the guest's buffer, as with the target's null bdev.
            Backing::Null { size } => format!("driver=null-co,node-name=disk,size={size}"),
            Backing::File(path) => format!(
                "driver=file,node-name=disk,filename={},aio=io_uring,cache.direct=on,discard=unmap",
                path.display()
            ),
        };
        let process = Command::new(Self::PROGRAM)
            // An iothread polls adaptively before it sleeps; without one the main loop always sleeps.
            .args(["--object", "iothread,id=io", "--blockdev", &node, "--export"])
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,iothread=io,num-queues={queues},\
                 addr.type=unix,addr.path={}",
                socket.display()
            ))
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", Self::PROGRAM));
        let peer = Peer { socket, process, _home: home };
        let started = Instant::now();
        while !peer.socket.exists() {
            assert!(started.elapsed() < START_WAIT, "{} does not listen after {START_WAIT:?}", Self::PROGRAM);
            std::thread::sleep(Duration::from_millis(2));
        }
        peer
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id, for processor time and pinning.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
