//! A file, its open form and a channel on it; and the small things that every test does with them.

use hw::HostMemory;
use hw::files::{CoreFiles, HostChannel, HostDirectory, HostFile};
use runtime::{
    Directory, FileChannel, FileCompletion, FileEngine, FileOp, FileOptions, Full, Memory, Result, Window,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) const KIB: u64 = 1024;
pub(crate) const MIB: u64 = 1024 * KIB;

pub(crate) const ENGINES: [FileEngine; 2] = [FileEngine::Uring, FileEngine::Aio];

/// Long after everything that a healthy host does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A directory on the file system of the build, which is a real one; `/tmp` need not be.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub(crate) fn host() -> HostDirectory {
    HostDirectory::new(Path::new("/dev/shm"))
}

pub(crate) fn open(path: &Path, engine: FileEngine) -> Result<HostFile> {
    host().open(path.to_str().unwrap(), FileOptions { engine, read_only: false })
}

/// Bytes that tell their own place: each 8-byte word is its offset, mixed with `seed`.
pub(crate) fn pattern(seed: u64, offset: u64, len: u64) -> Vec<u8> {
    assert!(offset.is_multiple_of(8) && len.is_multiple_of(8));
    (offset..offset + len)
        .step_by(8)
        .flat_map(|at| (at ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect()
}

/// One channel on one file, and payload memory.
pub(crate) struct Fixture {
    pub(crate) channel: HostChannel,
    pub(crate) core: CoreFiles,
    pub(crate) file: HostFile,
    pub(crate) memory: HostMemory,
    pub(crate) path: PathBuf,
    pub(crate) directory: tempfile::TempDir,
}

impl Fixture {
    /// A file of `len` bytes that begins as `pattern(1, ..)`.
    pub(crate) fn new(engine: FileEngine, len: u64) -> Self {
        Self::in_directory(directory(), engine, len)
    }

    pub(crate) fn in_directory(directory: tempfile::TempDir, engine: FileEngine, len: u64) -> Self {
        let path = directory.path().join("disk");
        std::fs::write(&path, pattern(1, 0, len)).unwrap();
        let file = open(&path, engine).unwrap();
        let core = CoreFiles::new();
        let channel = core.channel(&file).unwrap();
        let memory = hw::memory::shared_memory("payload", 8 * MIB).unwrap();
        Self { channel, core, file, memory, path, directory }
    }

    /// Payload memory at `offset`.
    pub(crate) fn window(&self, offset: u64, len: u64) -> hw::HostWindow {
        self.memory.window().slice(offset, len).unwrap()
    }

    /// Submits one operation and waits for its end.
    pub(crate) fn run(&mut self, op: FileOp, offset: u64, segments: &[hw::HostWindow]) -> Result<u64> {
        let len = segments.iter().map(Window::len).sum();
        self.run_range(op, offset, len, segments)
    }

    /// The same for a range without payload.
    pub(crate) fn run_range(
        &mut self,
        op: FileOp,
        offset: u64,
        len: u64,
        segments: &[hw::HostWindow],
    ) -> Result<u64> {
        assert_eq!(self.channel.submit(op, offset, len, segments, 42), Ok(()));
        let completions = wait(&mut self.channel, 1);
        assert_eq!(completions[0].token, 42);
        completions[0].result
    }

    /// What the file holds, as everybody else sees it.
    pub(crate) fn content(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        File::open(&self.path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

/// Polls until `count` operations have ended.
pub(crate) fn wait(channel: &mut HostChannel, count: usize) -> Vec<FileCompletion> {
    let mut completions = Vec::new();
    let begin = Instant::now();
    while completions.len() < count {
        let before = completions.len();
        let worked = channel.poll(&mut completions);
        assert_eq!(worked, completions.len() > before);
        assert!(begin.elapsed() < PATIENCE, "{} of {count} operations ended", completions.len());
        if !worked {
            std::thread::yield_now();
        }
    }
    assert_eq!(completions.len(), count);
    completions
}

/// Submits, polling for room where there is none; how often there was none.
pub(crate) fn submit(
    channel: &mut HostChannel,
    (op, offset, segments, token): (FileOp, u64, &[hw::HostWindow], u64),
    completions: &mut Vec<FileCompletion>,
) -> usize {
    let len = segments.iter().map(Window::len).sum();
    let (begin, mut refused) = (Instant::now(), 0);
    while let Err(Full) = channel.submit(op, offset, len, segments, token) {
        channel.poll(completions);
        refused += 1;
        assert!(begin.elapsed() < PATIENCE, "no room for a submission");
    }
    refused
}

pub(crate) fn bytes(window: hw::HostWindow) -> Vec<u8> {
    let mut bytes = vec![0; window.len() as usize];
    window.read(0, &mut bytes);
    bytes
}

/// Lets time pass in which something must *not* happen (a write of the dead), for which there is no event to wait for.
#[expect(clippy::disallowed_methods, reason = "an absence is waited for")]
pub(crate) fn let_pass(time: Duration) {
    std::thread::sleep(time);
}
