//! The blocking file operations, over the system calls of the same name. Nothing is retried (but a lock, see
//! [`crate::lock`]) and nothing is made durable that was not asked for: the order of the calls, and so what survives a power loss, is the stack's.

use super::file::HostFile;
use super::machine_memory;
use crate::error::{from_errno, os_error, with_errno};
use crate::lock::lock_soon;
use crate::memory::{HostMemory, map_file};
use runtime::{Access, Directory, ErrorKind, FileOptions, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

/// Permissions of the files that the target makes: they are nobody else's business.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Permissions of the directories that the target makes.
const DIRECTORY_MODE: u32 = 0o700;

/// The host's files, and where the machine's memory is named.
#[derive(Clone, Debug)]
pub struct HostDirectory {
    memory_directory: Arc<Path>,
}

/// The lock of a file, held until it is dropped.
#[derive(Debug)]
pub struct HostLock {
    /// The open file description that holds it; its end, or its process's, ends the lock.
    _held: OwnedFd,
}

impl HostDirectory {
    /// `memory_directory` is an existing directory of a memory file system, usually `/dev/shm`.
    #[must_use]
    pub fn new(memory_directory: &Path) -> Self {
        Self { memory_directory: memory_directory.into() }
    }
}

impl Directory for HostDirectory {
    type Memory = HostMemory;
    type File = HostFile;
    type Lock = HostLock;

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let file = open(path, OFlags::RDONLY)?;
        let mut bytes = Vec::new();
        // One byte more than allowed: the length in the file's own data may change while it is read.
        std::fs::File::from(file).take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > limit {
            return Err(with_errno(ErrorKind::Invalid, Errno::FBIG));
        }
        Ok(bytes)
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let file = open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
        std::fs::File::from(file).write_all(bytes).map_err(failed)
    }

    fn sync(&self, path: &str) -> Result<()> {
        rustix::fs::fsync(open(path, OFlags::RDONLY)?).map_err(from_errno)
    }

    fn sync_directory(&self, path: &str) -> Result<()> {
        rustix::fs::fsync(open(path, OFlags::RDONLY | OFlags::DIRECTORY)?).map_err(from_errno)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        rustix::fs::rename(from, to).map_err(from_errno)
    }

    fn remove(&self, path: &str) -> Result<()> {
        rustix::fs::unlink(path).map_err(from_errno)
    }

    fn list(&self, path: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            // A name that is no UTF-8 was not given by the target, and cannot be named to it.
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_directory(&self, path: &str) -> Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path).map_err(failed)
    }

    fn lock(&self, path: &str) -> Result<HostLock> {
        let file = open(path, OFlags::RDWR | OFlags::CREATE)?;
        lock_soon(&file)?;
        Ok(HostLock { _held: file })
    }

    fn open(&self, path: &str, options: FileOptions) -> Result<HostFile> {
        HostFile::open(path, options)
    }

    fn machine_memory(&self, name: &str, len: u64) -> Result<(HostMemory, bool)> {
        let found = machine_memory::open(&self.memory_directory, name, len)?;
        let memory = map_file(found.object, 0, len, Access::ReadWrite)?;
        Ok((memory, found.existed))
    }

    fn remove_machine_memory(&self, name: &str) -> Result<()> {
        machine_memory::remove(&self.memory_directory, name)
    }
}

fn open(path: &str, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, FILE_MODE).map_err(from_errno)
}

fn failed(error: io::Error) -> runtime::Error {
    from_errno(os_error(&error))
}
