//! The lock that a replay waits for: nothing of a dead process may reach the file once it is had.

use crate::support::{ENGINES, Fixture, KIB, MIB, PATIENCE, directory, let_pass, open, wait};
use hw::files::CoreFiles;
use runtime::{ErrorKind, File, FileChannel, FileEngine, FileLock, FileOp, Memory, Window};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn one_open_file_holds_the_lock_and_its_clones_share_it() {
    for engine in ENGINES {
        let fixture = Fixture::new(engine, MIB);
        let other = open(&fixture.path, engine).unwrap();
        assert_eq!(fixture.file.try_lock(), Ok(FileLock::Held));
        assert_eq!(fixture.file.clone().try_lock(), Ok(FileLock::Held), "again");
        assert_eq!(other.try_lock(), Ok(FileLock::HeldElsewhere));
        // The last of file, clones and channels ends it, at once.
        let Fixture { mut channel, core, file, memory, directory: _directory, .. } = fixture;
        let clone = file.clone();
        drop(file);
        assert_eq!(other.try_lock(), Ok(FileLock::HeldElsewhere));
        drop(clone);
        assert_eq!(other.try_lock(), Ok(FileLock::HeldElsewhere), "{engine:?}: the channel's");
        let window = memory.window().slice(0, 4 * KIB).unwrap();
        channel.submit(FileOp::Read, 0, 4 * KIB, &[window], 1).unwrap();
        wait(&mut channel, 1);
        drop(channel);
        assert_eq!(other.try_lock(), Ok(FileLock::Held), "{engine:?}");
        drop(core);
    }
}

/// A lock on one byte by somebody else, as QEMU's programs have them: `F_OFD_SETLK`.
fn byte_lock(file: &std::fs::File, kind: i32, byte: i64) {
    let range = libc::flock { l_type: kind as i16, l_whence: 0, l_start: byte, l_len: 1, l_pid: 0 };
    // SAFETY: the descriptor is open, and the request reads one `flock`.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) }, 0);
}

/// Whether somebody has a lock on a byte.
fn is_locked(file: &std::fs::File, byte: i64) -> bool {
    let mut range =
        libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: byte, l_len: 1, l_pid: 0 };
    // SAFETY: the descriptor is open, and the request reads and writes one `flock`.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) }, 0);
    i32::from(range.l_type) != libc::F_UNLCK
}

#[test]
fn an_image_that_qemu_uses_is_held_elsewhere_and_qemu_sees_ours() {
    for engine in ENGINES {
        let fixture = Fixture::new(engine, MIB);
        let qemu = std::fs::OpenOptions::new().read(true).write(true).open(&fixture.path).unwrap();
        // It writes (101), it resizes (103), or lets nobody read (200) or write (201).
        for byte in [101, 103, 200, 201] {
            byte_lock(&qemu, libc::F_RDLCK, byte);
            assert_eq!(fixture.file.try_lock(), Ok(FileLock::HeldElsewhere), "{byte}");
            // What was tried leaves nothing behind.
            assert!(!is_locked(&qemu, 100) && !is_locked(&qemu, 201), "{byte}");
            byte_lock(&qemu, libc::F_UNLCK, byte);
        }
        // It reads what others may change.
        byte_lock(&qemu, libc::F_RDLCK, 100);
        assert_eq!(fixture.file.try_lock(), Ok(FileLock::Held));
        byte_lock(&qemu, libc::F_UNLCK, 100);
        for byte in [100, 101, 201, 202, 203] {
            assert!(is_locked(&qemu, byte), "{byte}");
        }
        drop(fixture.channel);
        drop(fixture.file);
        assert!(![100, 101, 201, 202, 203].into_iter().any(|byte| is_locked(&qemu, byte)));
    }
}

/// Set in a child process of these tests: the engine and the path of the file that it writes to until it is killed.
const CHILD: &str = "REPRISE_TEST_FENCE_CHILD";
const FILE_BYTES: u64 = 256 * MIB;
const WRITE_BYTES: u64 = MIB / 2;
const DEPTH: u64 = 128;

/// Writes until it is killed.
fn child(engine: FileEngine, path: &Path) -> ! {
    let file = open(path, engine).unwrap();
    assert_eq!(file.try_lock(), Ok(FileLock::Held));
    let core = CoreFiles::new();
    let mut channel = core.channel(&file).unwrap();
    let memory = hw::memory::shared_memory("payload", DEPTH * WRITE_BYTES).unwrap();
    let (mut completions, mut begun) = (Vec::new(), 0_u64);
    let mut idle: Vec<u64> = (0..DEPTH).collect();
    let (begin, mut told) = (Instant::now(), false);
    // Not for ever, should the parent be gone.
    while begin.elapsed() < PATIENCE {
        while let Some(token) = idle.pop() {
            let window = memory.window().slice(token * WRITE_BYTES, WRITE_BYTES).unwrap();
            begun += 1;
            // So that every write changes what is there.
            window.fill(0, WRITE_BYTES, begun as u8);
            let offset = begun * WRITE_BYTES % FILE_BYTES;
            channel.submit(FileOp::Write { fua: false }, offset, WRITE_BYTES, &[window], token).unwrap();
        }
        channel.poll(&mut completions);
        for completion in completions.drain(..) {
            completion.result.unwrap();
            idle.push(completion.token);
        }
        if begun > 2 * DEPTH && !told {
            // On a line of its own, whatever the test runner wrote before.
            println!("\nfull");
            told = true;
        }
    }
    panic!("nobody killed the child");
}

#[test]
fn the_lock_is_refused_until_nothing_of_a_killed_process_is_in_flight() {
    if let Some(job) = std::env::var_os(CHILD) {
        let (engine, path) = job.to_str().unwrap().split_once(' ').unwrap();
        child(if engine == "uring" { FileEngine::Uring } else { FileEngine::Aio }, Path::new(path));
    }
    for (engine, name) in [(FileEngine::Uring, "uring"), (FileEngine::Aio, "aio")] {
        let directory = directory();
        let path = directory.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(FILE_BYTES).unwrap();
        for turn in 0..3 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "fence::the_lock_is_refused_until_nothing_of_a_killed_process_is_in_flight",
                ])
                .arg("--nocapture")
                .env(CHILD, format!("{name} {}", path.display()))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap() == "full"), "the child ended early");
            let file = open(&path, engine).unwrap();
            assert_eq!(file.try_lock(), Ok(FileLock::HeldElsewhere), "the child lives");
            child.kill().unwrap();
            child.wait().unwrap();
            let (begin, mut refused) = (Instant::now(), 0);
            while file.try_lock().unwrap() == FileLock::HeldElsewhere {
                refused += 1;
                assert!(begin.elapsed() < PATIENCE, "the lock was never given up");
                let_pass(Duration::from_micros(100));
            }
            let waited = begin.elapsed();
            println!("{name}, turn {turn}: {waited:?} after the process was gone, refused {refused} times");
            // What is on the medium now is what stays.
            let before = content(&path);
            let_pass(Duration::from_millis(200));
            assert!(before == content(&path), "{name}: a dead process wrote after the lock was had");
        }
    }
}

/// A sum over the file as the medium has it: read directly, past the page cache.
fn content(path: &Path) -> Vec<u64> {
    use std::os::unix::fs::OpenOptionsExt;
    const PIECE: usize = 1 << 20;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let mut space = vec![0_u8; PIECE + 4096];
    let skip = space.as_ptr().align_offset(4096);
    let piece = &mut space[skip..skip + PIECE];
    (0..FILE_BYTES / PIECE as u64)
        .map(|number| {
            file.read_exact_at(piece, number * PIECE as u64).unwrap();
            piece.chunks_exact(512).fold(number, |sum, sector| {
                sum.wrapping_mul(31).wrapping_add(u64::from_le_bytes(sector[..8].try_into().unwrap()))
            })
        })
        .collect()
}

#[test]
#[ignore = "needs root and a loop device; run: tests/root/run"]
fn a_block_device_is_claimed_and_does_every_operation() {
    use crate::errors::command;
    for engine in ENGINES {
        let directory = directory();
        let image = directory.path().join("image");
        std::fs::write(&image, crate::support::pattern(1, 0, 64 * MIB)).unwrap();
        let device = command("losetup", &["--find", "--show", "--direct-io=on", image.to_str().unwrap()]);
        let path = Path::new(&device);
        let file = open(path, engine).unwrap();
        let info = file.info().unwrap();
        assert!(info.is_block_device && info.len == 64 * MIB, "{info:?}");
        assert!(info.can_discard && info.can_write_zeroes, "{info:?}");
        // A second open of a device in use is told so: by its claim while nobody has the lock, by the lock later.
        assert_eq!(open(path, engine).err().unwrap().kind, ErrorKind::Busy);
        assert_eq!(file.try_lock(), Ok(FileLock::Held));
        assert_eq!(open(path, engine).unwrap().try_lock(), Ok(FileLock::HeldElsewhere));

        let core = CoreFiles::new();
        let mut channel = core.channel(&file).unwrap();
        let memory = hw::memory::shared_memory("payload", MIB).unwrap();
        let window = memory.window().slice(0, 64 * KIB).unwrap();
        window.fill(0, 64 * KIB, 7);
        for (op, offset, expected) in [
            (FileOp::Write { fua: true }, 0, 7),
            (FileOp::WriteZeroes { unmap: false }, MIB, 0),
            (FileOp::WriteZeroes { unmap: true }, 2 * MIB, 0),
            (FileOp::Discard, 3 * MIB, 0),
        ] {
            let segments: &[_] = if matches!(op, FileOp::Write { .. }) { &[window] } else { &[] };
            channel.submit(op, offset, 64 * KIB, segments, 1).unwrap();
            assert_eq!(wait(&mut channel, 1)[0].result, Ok(64 * KIB), "{engine:?} {op:?}");
            let read = memory.window().slice(512 * KIB, 64 * KIB).unwrap();
            channel.submit(FileOp::Read, offset, 64 * KIB, &[read], 2).unwrap();
            assert_eq!(wait(&mut channel, 1)[0].result, Ok(64 * KIB));
            assert!(crate::support::bytes(read).iter().all(|byte| *byte == expected), "{engine:?} {op:?}");
        }
        // A flush and a write with FUA reach the device's cache; other writes leave it alone.
        let flushes = || -> u64 {
            let name = path.file_name().unwrap().to_str().unwrap();
            let counters = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
            counters.split_whitespace().nth(15).unwrap().parse().unwrap()
        };
        for (op, flushed) in [
            (FileOp::Write { fua: false }, false),
            (FileOp::Write { fua: true }, true),
            (FileOp::Flush, true),
        ] {
            let before = flushes();
            let segments: &[_] = if op == FileOp::Flush { &[] } else { &[window] };
            let len = if op == FileOp::Flush { 0 } else { 64 * KIB };
            channel.submit(op, 0, len, segments, 1).unwrap();
            assert_eq!(wait(&mut channel, 1)[0].result, Ok(len));
            assert_eq!(flushes() > before, flushed, "{engine:?} {op:?}");
        }
        drop((channel, file));

        // A mounted one is refused, and one of ours is not mounted.
        command("mkfs.ext4", &["-q", &device]);
        let mount = directory.path().join("mount");
        std::fs::create_dir(&mount).unwrap();
        command("mount", &[&device, mount.to_str().unwrap()]);
        assert_eq!(open(path, engine).err().unwrap().kind, ErrorKind::Busy);
        command("umount", &[mount.to_str().unwrap()]);
        let file = open(path, engine).unwrap();
        let mounted = Command::new("mount").args([&device, mount.to_str().unwrap()]).output().unwrap();
        assert!(!mounted.status.success());
        drop(file);
        command("losetup", &["--detach", &device]);
    }
}
