//! The judge judged: what the virtual machine tests rely on, shown against QEMU's own storage daemon as the back-end.
//!
//! A guest that verifies on a sound disk ends well; a disk that changes by itself, or that fails, is noticed. Without the
//! latter two, a guest that verifies nothing would pass every other test here.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tests::vm::{Disk, Lab, Machine, Qemu};

/// From power-on to the script's first mark: 3 s on an idle machine, far more on one that is building.
const BOOT_WAIT: Duration = Duration::from_secs(120);
/// For one round of verified writes: 2 s on an idle machine.
const ROUND_WAIT: Duration = Duration::from_secs(60);
/// Bytes of the disks here.
const DISK_BYTES: u64 = 64 << 20;
/// The unit in which the guest writes, bytes; each block has a checksum of its own.
const BLOCK_BYTES: u64 = 4096;

/// QEMU's storage daemon, with one disk over vhost-user-blk.
struct StorageDaemon {
    process: Child,
    socket: PathBuf,
    image: PathBuf,
    _files: tempfile::TempDir,
}

impl StorageDaemon {
    /// Serves an empty image through `filter`, block drivers of QEMU's between the image (node `image`) and the export
    /// (node `disk`).
    fn start(lab: &Lab, filter: &str) -> StorageDaemon {
        // Not in the lab: its path may be too long for a socket.
        let files = tempfile::tempdir().expect("a directory for an image");
        let (image, socket) = (files.path().join("image"), files.path().join("socket"));
        std::fs::File::create(&image).and_then(|file| file.set_len(DISK_BYTES)).expect("an image");
        let process = Command::new(lab.storage_daemon())
            .args(["--blockdev", &format!("driver=file,node-name=image,filename={}", image.display())])
            .args(["--blockdev", filter])
            .args([
                "--export",
                &format!(
                    "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=4,addr.type=unix,addr.path={}",
                    socket.display()
                ),
            ])
            .spawn()
            .expect("qemu-storage-daemon starts");
        wait_for_socket(&socket);
        StorageDaemon { process, socket, image, _files: files }
    }

    /// A guest that writes and verifies on two queues until it hears `enough`.
    fn verifying_guest(&self) -> Machine {
        Machine {
            qemu: Qemu::Debian12,
            cpus: 2,
            disks: vec![Disk { socket: self.socket.clone(), queues: 2, packed: false }],
            nvme: None,
            programs: Vec::new(),
            reboots: false,
            script: concat!("DISK=vda QUEUES=2 MIB=8\n", include_str!("../vm/guest/fio-rounds.sh"))
                .to_owned(),
        }
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        // Both fail only if it has ended and was waited for already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait_for_socket(socket: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "nobody listens at {}", socket.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn a_sound_disk_passes() {
    let lab = Lab::open();
    let daemon = StorageDaemon::start(&lab, "driver=raw,node-name=disk,file=image");
    let mut guest = daemon.verifying_guest().boot(&lab);
    assert_eq!(guest.wait_mark("queues", BOOT_WAIT), "2");
    guest.wait_mark("round 2", 2 * ROUND_WAIT);
    guest.say("enough");
    guest.end(ROUND_WAIT).assert_clean();
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn a_disk_that_changes_by_itself_is_noticed() {
    let lab = Lab::open();
    let daemon = StorageDaemon::start(&lab, "driver=raw,node-name=disk,file=image");
    let mut guest = daemon.verifying_guest().boot(&lab);
    guest.wait_mark("round 1", BOOT_WAIT + ROUND_WAIT);
    // One byte of every block, again and again: some block is hit between its write and its verification.
    let image = OpenOptions::new().write(true).open(&daemon.image).expect("the image");
    let corrupt = std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                for block in 0..DISK_BYTES / BLOCK_BYTES {
                    image
                        .write_all_at(&[0xff], block * BLOCK_BYTES + 2048)
                        .expect("the image can be written");
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        guest.end(3 * ROUND_WAIT)
    });
    assert_eq!(corrupt.exit_code, 4, "fio did not notice: {:#?}", corrupt.console);
    assert!(
        corrupt.console.iter().any(|line| line.contains("crc32c: verify failed")),
        "{:#?}",
        corrupt.console
    );
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn a_disk_that_fails_is_noticed_in_the_kernel_log() {
    let lab = Lab::open();
    let daemon = StorageDaemon::start(
        &lab,
        "driver=blkdebug,node-name=disk,image=image,inject-error.0.event=none,inject-error.0.iotype=write,\
         inject-error.0.sector=8192",
    );
    let failed = daemon.verifying_guest().boot(&lab).end(BOOT_WAIT + ROUND_WAIT);
    assert_eq!(failed.exit_code, 4, "fio did not notice: {:#?}", failed.console);
    let complaints = failed.complaints();
    assert!(complaints.iter().any(|message| message.text.contains("I/O error, dev vda")), "{complaints:#?}");
}
