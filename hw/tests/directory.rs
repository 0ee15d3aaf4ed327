//! The blocking operations on small files, and memory of the machine, on this host's own file systems.

use hw::files::HostDirectory;
use runtime::{Directory, ErrorKind, Memory, Result, Window};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

fn host() -> HostDirectory {
    HostDirectory::new(Path::new("/dev/shm"))
}

/// A new directory on the file system of the build, and the path of something in it.
fn scratch() -> (tempfile::TempDir, impl Fn(&str) -> String) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = directory.path().to_str().unwrap().to_owned();
    (directory, move |name: &str| format!("{root}/{name}"))
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("must be refused").kind
}

#[test]
fn a_small_file_is_written_whole_and_for_nobody_else() {
    let (_directory, path) = scratch();
    let (host, file) = (host(), path("state"));
    host.write(&file, b"a longer first content").unwrap();
    host.write(&file, b"second").unwrap();
    assert_eq!(host.read(&file, 100).unwrap(), b"second");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    host.sync(&file).unwrap();
    host.sync_directory(&path("")).unwrap();
}

#[test]
fn a_read_is_limited() {
    let (_directory, path) = scratch();
    let (host, file) = (host(), path("state"));
    host.write(&file, b"12345678").unwrap();
    assert_eq!(host.read(&file, 8).unwrap().len(), 8);
    assert_eq!(kind(host.read(&file, 7)), ErrorKind::Invalid);
    // A file whose length is not known beforehand.
    assert_eq!(kind(host.read("/dev/zero", 1 << 20)), ErrorKind::Invalid);
}

#[test]
fn names_come_and_go() {
    let (_directory, path) = scratch();
    let host = host();
    assert_eq!(host.list(&path("")).unwrap(), Vec::<String>::new());
    for name in ["c", "a", "b"] {
        host.write(&path(name), name.as_bytes()).unwrap();
    }
    host.rename(&path("c"), &path("a")).unwrap();
    assert_eq!(host.list(&path("")).unwrap(), ["a", "b"]);
    assert_eq!(host.read(&path("a"), 9).unwrap(), b"c");
    host.remove(&path("b")).unwrap();
    assert_eq!(host.list(&path("")).unwrap(), ["a"]);
    host.create_directory(&path("one/two")).unwrap();
    host.create_directory(&path("one/two")).unwrap();
    assert_eq!(host.list(&path("")).unwrap(), ["a", "one"]);
    assert_eq!(std::fs::metadata(path("one/two")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn what_is_not_there_or_not_right_is_said_precisely() {
    let (_directory, path) = scratch();
    let host = host();
    let missing = path("missing");
    assert_eq!(kind(host.read(&missing, 1)), ErrorKind::NotFound);
    assert_eq!(kind(host.sync(&missing)), ErrorKind::NotFound);
    assert_eq!(kind(host.sync_directory(&missing)), ErrorKind::NotFound);
    assert_eq!(kind(host.remove(&missing)), ErrorKind::NotFound);
    assert_eq!(kind(host.rename(&missing, &path("x"))), ErrorKind::NotFound);
    assert_eq!(kind(host.list(&missing)), ErrorKind::NotFound);
    assert_eq!(kind(host.write(&path("missing/file"), b"")), ErrorKind::NotFound);
    assert_eq!(kind(host.lock(&path("missing/lock"))), ErrorKind::NotFound);
    assert_eq!(kind(host.write(&path(""), b"")), ErrorKind::Invalid);
    host.write(&path("file"), b"").unwrap();
    assert_eq!(kind(host.create_directory(&path("file"))), ErrorKind::AlreadyExists);
    // A device that is always full.
    assert_eq!(kind(host.write("/dev/full", b"1")), ErrorKind::NoSpace);
}

#[test]
fn a_lock_is_held_once_until_it_is_dropped() {
    let (_directory, path) = scratch();
    let (host, file) = (host(), path("lock"));
    let held = host.lock(&file).unwrap();
    assert_eq!(kind(host.lock(&file)), ErrorKind::Busy);
    drop(held);
    let _again = host.lock(&file).unwrap();
    // A reader of the directory sees it; nobody else may open it.
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

/// A name that no other test, and no other run, has; removed with the value.
struct Name(String);

impl Name {
    fn new(test: &str) -> Self {
        Self(format!("test-{test}-{}", std::process::id()))
    }

    fn path(&self) -> String {
        format!("/dev/shm/reprise-{}", self.0)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        host().remove_machine_memory(&self.0).unwrap();
    }
}

#[test]
fn machine_memory_outlives_its_mapping_and_is_reserved() {
    let name = Name::new("outlives");
    let host = host();
    let (memory, existed) = host.machine_memory(&name.0, 1 << 20).unwrap();
    assert!(!existed);
    let window = memory.window();
    assert_eq!(window.len(), 1 << 20);
    assert!((0..1 << 20).step_by(8).all(|at| window.load_u64(at, Relaxed) == 0));
    window.store_u64(4096, 42, Relaxed);
    let found = std::fs::metadata(name.path()).unwrap();
    assert_eq!((found.len(), found.blocks() * 512), (1 << 20, 1 << 20), "not reserved in full");
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    drop(memory);
    let (memory, existed) = host.machine_memory(&name.0, 1 << 20).unwrap();
    assert!(existed);
    assert_eq!(memory.window().load_u64(4096, Relaxed), 42);
    assert_eq!(kind(host.machine_memory(&name.0, 2 << 20)), ErrorKind::Invalid);
    host.remove_machine_memory(&name.0).unwrap();
    host.remove_machine_memory(&name.0).unwrap();
    let (_new, existed) = host.machine_memory(&name.0, 2 << 20).unwrap();
    assert!(!existed);
}

#[test]
fn machine_memory_of_any_length_is_exactly_that_long() {
    let name = Name::new("length");
    let (memory, _) = host().machine_memory(&name.0, 5000).unwrap();
    assert_eq!(memory.window().len(), 5000);
    assert_eq!(kind(host().machine_memory(&name.0, 5001)), ErrorKind::Invalid);
    assert_eq!(kind(host().machine_memory(&name.0, 0)), ErrorKind::Invalid);
}

#[test]
fn machine_memory_that_does_not_fit_leaves_nothing_behind() {
    let name = Name::new("too-much");
    // More than any /dev/shm.
    assert_eq!(kind(host().machine_memory(&name.0, 1 << 45)), ErrorKind::NoSpace);
    assert!(!Path::new(&name.path()).exists());
    assert!(!host().machine_memory(&name.0, 4096).unwrap().1);
}

#[test]
fn machine_memory_is_refused_where_something_else_has_its_name() {
    for bad in ["", "a/b", "..", "a b", "a_b", &"a".repeat(300)] {
        assert_eq!(kind(host().machine_memory(bad, 4096)), ErrorKind::Invalid, "{bad:?}");
        assert_eq!(kind(host().remove_machine_memory(bad)), ErrorKind::Invalid, "{bad:?}");
    }
    let name = Name::new("link");
    let (_directory, path) = scratch();
    std::fs::write(path("target"), [0; 4096]).unwrap();
    std::os::unix::fs::symlink(path("target"), name.path()).unwrap();
    assert_eq!(kind(host().machine_memory(&name.0, 4096)), ErrorKind::Invalid);
    assert_eq!(std::fs::read(path("target")).unwrap(), [0; 4096]);
}

#[test]
#[ignore = "needs root and a free huge page; run: tests/root/run"]
fn machine_memory_of_huge_pages() {
    let mount = tempfile::tempdir().unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("mount", &["-t", "hugetlbfs", "none", mount.path().to_str().unwrap()]);
    let host = HostDirectory::new(mount.path());
    let (memory, existed) = host.machine_memory("huge", 5000).unwrap();
    assert!(!existed && memory.window().len() == 5000);
    memory.window().store_u64(4096, 42, Relaxed);
    drop(memory);
    let (memory, existed) = host.machine_memory("huge", 5000).unwrap();
    assert!(existed && memory.window().load_u64(4096, Relaxed) == 42);
    drop(memory);
    assert_eq!(kind(host.machine_memory("more", 1 << 40)), ErrorKind::NoSpace);
    assert_eq!(host.list(mount.path().to_str().unwrap()).unwrap(), ["reprise-huge"]);
    run("umount", &[mount.path().to_str().unwrap()]);
}
