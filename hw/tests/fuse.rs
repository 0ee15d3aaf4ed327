//! Descriptors of a file system whose daemon a stranger runs, and which stops answering.

use hw::HostHandle;
use runtime::{Access, ErrorKind, Handle};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

/// FUSE operations. Linux, uapi/linux/fuse.h.
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const INIT: u32 = 26;
/// "Function not implemented", as an answer.
const ENOSYS: i32 = -38;

/// A file system that is one regular file, mounted on one.
struct Hostile {
    path: PathBuf,
    /// From now on nothing is answered.
    silent: Arc<AtomicBool>,
}

impl Hostile {
    fn mount(path: &Path) -> Self {
        File::create(path).unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=100000,user_id=0,group_id=0\0", device.as_raw_fd());
        let at = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: all five are strings that end and live as long as the call, or numbers.
        let mounted = unsafe {
            libc::mount(c"hostile".as_ptr(), at.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast())
        };
        assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
        let silent = Arc::new(AtomicBool::new(false));
        let told = silent.clone();
        std::thread::spawn(move || serve(device, &told));
        Self { path: path.to_owned(), silent }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let at = std::ffi::CString::new(self.path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path lives as long as the call. What still waits for the daemon is given up.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
    }
}

/// The daemon, until the file system is gone.
fn serve(mut device: File, silent: &AtomicBool) {
    let mut request = vec![0; 1 << 17];
    while device.read(&mut request).is_ok() {
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        // struct fuse_in_header: len, opcode, unique (8 bytes).
        let (operation, unique) = (word(4), &request[8..16]);
        if silent.load(Ordering::Relaxed) {
            continue;
        }
        let (error, answer): (i32, Vec<u32>) = match operation {
            // struct fuse_init_out: version 7.31, max_write 64 KiB.
            INIT => (0, vec![7, 31, 0, 0, 0, 1 << 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            // struct fuse_attr_out: valid for no time at all; inode 1 of 1 MiB, a regular file with one name.
            GETATTR => {
                let mut words = vec![0; 26];
                (words[4], words[6], words[8]) = (1, 1 << 20, 2048);
                (words[19], words[20], words[24]) = (0o100_666, 1, 4096);
                (0, words)
            }
            // struct fuse_open_out: a file handle.
            OPEN => (0, vec![1, 0, 0, 0]),
            _ => (ENOSYS, Vec::new()),
        };
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(16 + 4 * answer.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&error.to_le_bytes());
        bytes.extend_from_slice(unique);
        answer.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        // An answer to what was given up meanwhile is refused.
        let _ = device.write(&bytes);
    }
}

#[test]
#[ignore = "mounts a file system; run: tests/root/run"]
fn a_fuse_file_whose_daemon_is_silent_holds_up_nobody() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let hostile = Hostile::mount(&directory.path().join("file"));
    let open = || OwnedFd::from(File::options().read(true).write(true).open(&hostile.path).unwrap());
    let sent = [open(), open(), open()];
    assert_eq!(std::fs::metadata(&hostile.path).unwrap().len(), 1 << 20);
    hostile.silent.store(true, Ordering::Relaxed);
    let (done, is_done) = channel();
    std::thread::spawn(move || {
        let [memory, bell, stream] = sent.map(HostHandle::from);
        let refused = [
            memory.map(0, 4096, Access::ReadWrite).err(),
            bell.into_notifier().err(),
            stream.into_stream().err(),
        ];
        drop(memory);
        done.send(refused.map(|error| error.map(|error| error.kind))).unwrap();
    });
    let refused = is_done.recv_timeout(Duration::from_secs(5)).expect("the core waits for the daemon");
    assert_eq!(refused, [Some(ErrorKind::Invalid); 3]);
}
