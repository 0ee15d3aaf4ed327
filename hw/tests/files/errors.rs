//! What cannot be done, and how precisely that is said; and what a file says of itself.

use crate::support::{ENGINES, Fixture, KIB, MIB, bytes, directory, host, open, pattern, wait};
use hw::files::CoreFiles;
use runtime::{Directory, ErrorKind, File, FileChannel, FileEngine, FileOp, FileOptions, Memory, Window};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[test]
fn what_cannot_be_opened_is_said_precisely() {
    let directory = directory();
    for engine in ENGINES {
        let missing = open(&directory.path().join("missing"), engine);
        assert_eq!(missing.err().unwrap().kind, ErrorKind::NotFound);
        assert_eq!(open(directory.path(), engine).err().unwrap().kind, ErrorKind::Invalid);
        assert_eq!(open(Path::new("/dev/null"), engine).err().unwrap().kind, ErrorKind::Invalid);
        let pipe = directory.path().join("pipe");
        if !pipe.exists() {
            rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        }
        // And it does not wait for the pipe's other end.
        assert_eq!(open(&pipe, engine).err().unwrap().kind, ErrorKind::Invalid);
    }
}

#[test]
fn a_file_without_permission_is_refused() {
    if rustix::process::geteuid().is_root() {
        // Root may open anything.
        return;
    }
    let directory = directory();
    let path = directory.path().join("closed");
    std::fs::write(&path, [0; 4096]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(open(&path, FileEngine::Aio).err().unwrap().kind, ErrorKind::PermissionDenied);
}

#[test]
fn a_file_says_what_it_is_and_sees_its_resize() {
    for engine in ENGINES {
        let fixture = Fixture::new(engine, MIB);
        let info = fixture.file.info().unwrap();
        assert_eq!(info.len, MIB);
        assert!(!info.is_block_device);
        assert!(info.block_size.is_power_of_two() && (512..=4096).contains(&info.block_size), "{info:?}");
        assert!(info.physical_block_size >= info.block_size);
        let path = std::fs::OpenOptions::new().write(true).open(&fixture.path).unwrap();
        path.set_len(3 * MIB).unwrap();
        assert_eq!(fixture.file.info().unwrap().len, 3 * MIB);
        // The same object by another name, and another object.
        let alias = fixture.directory.path().join("alias");
        std::fs::hard_link(&fixture.path, &alias).unwrap();
        assert_eq!(open(&alias, engine).unwrap().info().unwrap().identity, info.identity);
        let other = fixture.directory.path().join("other");
        std::fs::write(&other, [0; 4096]).unwrap();
        assert_ne!(open(&other, engine).unwrap().info().unwrap().identity, info.identity);
    }
}

#[test]
fn a_read_only_file_reads_and_refuses_changes() {
    for engine in ENGINES {
        let directory = directory();
        let path = directory.path().join("disk");
        std::fs::write(&path, pattern(1, 0, MIB)).unwrap();
        let options = FileOptions { engine, read_only: true };
        let file = host().open(path.to_str().unwrap(), options).unwrap();
        let info = file.info().unwrap();
        assert!(!info.can_discard && !info.can_write_zeroes);
        let core = CoreFiles::new();
        let mut channel = core.channel(&file).unwrap();
        let memory = hw::memory::shared_memory("payload", MIB).unwrap();
        let window = memory.window().slice(0, 4 * KIB).unwrap();
        channel.submit(FileOp::Read, 0, 4 * KIB, &[window], 1).unwrap();
        assert_eq!(wait(&mut channel, 1)[0].result, Ok(4 * KIB));
        assert_eq!(bytes(window), pattern(1, 0, 4 * KIB));
        channel.submit(FileOp::Flush, 0, 0, &[], 1).unwrap();
        assert_eq!(wait(&mut channel, 1)[0].result, Ok(0));
        for op in [FileOp::Write { fua: false }, FileOp::Discard, FileOp::WriteZeroes { unmap: true }] {
            let segments: &[_] = if matches!(op, FileOp::Write { .. }) { &[window] } else { &[] };
            channel.submit(op, 0, 4 * KIB, segments, 1).unwrap();
            let error = wait(&mut channel, 1)[0].result.unwrap_err();
            assert_eq!(error.kind, ErrorKind::ReadOnly, "{engine:?} {op:?}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), pattern(1, 0, MIB));
    }
}

#[test]
fn misplaced_operations_are_invalid_and_the_channel_goes_on() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let window = fixture.window(0, 4 * KIB);
        let error = fixture.run(FileOp::Read, 1, &[window]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{engine:?}");
        // In one batch with good ones on both sides, which the kernel's refusal of one must not take along.
        for (token, offset) in [(0, 0), (1, 3), (2, 4 * KIB), (3, 5), (4, 8 * KIB)] {
            fixture.channel.submit(FileOp::Read, offset, 4 * KIB, &[window], token).unwrap();
        }
        for completion in wait(&mut fixture.channel, 5) {
            let refused = completion.result.map_err(|error| error.kind) == Err(ErrorKind::Invalid);
            assert_eq!(refused, completion.token % 2 == 1, "{engine:?}: {completion:?}");
        }
    }
}

#[test]
fn memory_that_its_owner_took_away_fails_the_operation_alone() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let guest = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&guest, MIB).unwrap();
        let copy = guest.try_clone().unwrap();
        let memory = hw::memory::map_file(copy, 0, MIB, runtime::Access::ReadWrite).unwrap();
        let window = memory.window().slice(512 * KIB, 4 * KIB).unwrap();
        rustix::fs::ftruncate(&guest, 4 * KIB).unwrap();
        for op in [FileOp::Read, FileOp::Write { fua: false }] {
            assert!(fixture.run(op, 0, &[window]).is_err(), "{engine:?} {op:?}");
        }
        assert_eq!(fixture.content(0, MIB), pattern(1, 0, MIB));
        let own = fixture.window(0, 4 * KIB);
        assert_eq!(fixture.run(FileOp::Read, 0, &[own]), Ok(4 * KIB));
    }
}

#[test]
fn a_file_that_may_not_grow_further_has_no_space() {
    // A limit of the process: in a child, because it is for the whole process and cannot be lifted again.
    const CHILD: &str = "REPRISE_TEST_FILE_SIZE_LIMIT";
    if std::env::var_os(CHILD).is_none() {
        let name = "errors::a_file_that_may_not_grow_further_has_no_space";
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    // SAFETY: the disposition of one signal of this child; no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // Before the limit, which counts for their payload memory too.
    let mut fixtures = ENGINES.map(|engine| Fixture::new(engine, MIB));
    let limit = libc::rlimit { rlim_cur: 4 * MIB, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is read from the address.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
    for (engine, fixture) in ENGINES.iter().zip(&mut fixtures) {
        let window = fixture.window(0, 4 * KIB);
        let error = fixture.run(FileOp::Write { fua: false }, 4 * MIB, &[window]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSpace, "{engine:?}");
        assert_eq!(fixture.run(FileOp::Write { fua: false }, 0, &[window]), Ok(4 * KIB));
    }
}

#[test]
#[ignore = "needs root, to mount a small file system; run: tests/root/run"]
fn a_write_to_a_full_file_system_has_no_space() {
    let outside = directory();
    let (image, mount) = (outside.path().join("image"), outside.path().join("mount"));
    std::fs::File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    std::fs::create_dir(&mount).unwrap();
    command("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
    command("mount", &["-o", "loop", image.to_str().unwrap(), mount.to_str().unwrap()]);
    for engine in ENGINES {
        let mut fixture = Fixture::in_directory(tempfile::tempdir_in(&mount).unwrap(), engine, MIB);
        let window = fixture.window(0, MIB);
        let mut offset = MIB;
        let found = loop {
            match fixture.run(FileOp::Write { fua: false }, offset, &[window]) {
                // The last one that fits is short.
                Ok(len) => offset += len,
                Err(found) => break found.kind,
            }
        };
        assert_eq!(found, ErrorKind::NoSpace, "{engine:?} after {offset} bytes");
    }
    command("umount", &[mount.to_str().unwrap()]);
}

pub(crate) fn command(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
