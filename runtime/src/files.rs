//! Files: small ones that hold state (blocking, inside offloaded jobs), and large ones that hold payload
//! (opened once, then a submit-and-poll channel for each core).

use crate::{Result, Window};
use alloc::string::String;
use alloc::vec::Vec;

/// How payload I/O of a file reaches the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileEngine {
    /// io_uring.
    Uring,
    /// Kernel AIO (`io_submit`).
    Aio,
}

/// How a payload file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// The engine of its channels.
    pub engine: FileEngine,
    /// Open for reading only.
    pub read_only: bool,
}

/// What a payload file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Size in bytes.
    pub len: u64,
    /// Smallest unit of direct I/O in bytes: offsets and lengths must be multiples of it. A power of two, 512 to 65536.
    pub block_size: u32,
    /// The medium's own block in bytes (writes smaller than it cost a read).
    pub physical_block_size: u32,
    /// Whether it is a block device (and no regular file).
    pub is_block_device: bool,
    /// Whether [`FileOp::Discard`] does anything.
    pub can_discard: bool,
    /// Whether [`FileOp::WriteZeroes`] is done below without sending zeroes.
    pub can_write_zeroes: bool,
    /// The object behind the path, for one question only: are two open files the same. Never traced or printed.
    pub identity: (u64, u64),
}

/// One operation on a payload file. Offsets and lengths are in bytes, multiples of [`FileInfo::block_size`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOp {
    /// Reads into the segments.
    Read,
    /// Writes from the segments; with `fua` it completes only when the data is on stable media.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Everything that completed before this was submitted is on stable media when it completes.
    Flush,
    /// The range's content is no longer needed; it then reads as zeroes or as it was.
    Discard,
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// Whether the space may be given back (the range deallocated).
        unmap: bool,
    },
}

/// The end of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileCompletion {
    /// As given to [`FileChannel::submit`].
    pub token: u64,
    /// Bytes done, which may be fewer than asked (the rest of the file was not touched; after a short read the rest of
    /// the memory holds anything), or why none were. For `Flush`, `Discard` and `WriteZeroes` the bytes asked for.
    /// `WouldBlock` is transient: the same operation may be submitted again.
    pub result: Result<u64>,
}

/// The channel has no room; the operation was not taken, and may be given again after the next poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The answer of [`File::try_lock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLock {
    /// This open file is the only one that may do I/O from now on. No write of a dead process that held the lock can
    /// still reach the file: a dead process's lock is released only when its last I/O has ended. This is the fence
    /// that a replay waits for.
    Held,
    /// Another open file holds it: a live process, this process, or a dead one's I/O that has not ended.
    HeldElsewhere,
}

/// An open payload file: a regular file or a block device, opened for direct I/O. Cheap to clone; the clones are the
/// same open file (and one lock), closed when the last clone and the last channel are gone.
pub trait File: Clone + Send + Sync + 'static {
    /// What it is, asked anew (a file or a device may have been resized since). Not blocking.
    fn info(&self) -> Result<FileInfo>;

    /// Takes the exclusive lock of the file, without waiting. Read-only files take it too: they must not read what a
    /// dead process is still writing.
    fn try_lock(&self) -> Result<FileLock>;
}

/// Payload I/O of one core on one file. Submit and poll; completions come in any order. Dropping a channel with
/// operations in flight is a bug of the stack.
pub trait FileChannel: 'static {
    /// The window type of the platform.
    type Window: Window;

    /// Queues one operation on `len` bytes at byte `offset`. `segments` (for `Read` and `Write`, together `len` bytes,
    /// at most [`Self::MAX_SEGMENTS`]) need not outlive the call, the memory below them must stay until the completion.
    /// Nothing needs to reach the kernel before the next poll. A payload whose memory is not aligned as direct I/O
    /// wants it is bounced, and counted by [`FileChannel::bounced_bytes`].
    fn submit(
        &mut self,
        op: FileOp,
        offset: u64,
        len: u64,
        segments: &[Self::Window],
        token: u64,
    ) -> core::result::Result<(), Full>;

    /// Sends what was queued and takes what has ended, pushed to `completions`. Whether anything ended.
    fn poll(&mut self, completions: &mut Vec<FileCompletion>) -> bool;

    /// Payload bytes copied because their memory was misaligned, since the channel was made.
    fn bounced_bytes(&self) -> u64;

    /// Most segments that one operation may have.
    const MAX_SEGMENTS: usize = 512;
}

/// Small files, as the state directory needs them, and what else must not be done on a reactor. All *blocking*: only
/// inside [`crate::Platform::offload`]. Paths are absolute. The order of the calls, and what they promise over a power
/// loss, is the stack's business: here each call does what it says and no more.
pub trait Directory: Clone + Send + 'static {
    /// The memory type of the platform.
    type Memory;
    /// The file type of the platform.
    type File: File;
    /// What [`Directory::lock`] gives; the lock ends when it is dropped (or its process dies).
    type Lock: Send + 'static;

    /// The whole of a small file. Errors: `NotFound`; `Invalid` when it is longer than `limit` bytes.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>>;

    /// Creates or truncates a file and writes it. It is durable only after [`Directory::sync`], and its name only after
    /// [`Directory::sync_directory`]. Errors: `NoSpace`, `PermissionDenied`, `ReadOnly`; what is there then is undefined.
    fn write(&self, path: &str, bytes: &[u8]) -> Result<()>;

    /// Makes a file's content durable.
    fn sync(&self, path: &str) -> Result<()>;

    /// Makes a directory's entries durable.
    fn sync_directory(&self, path: &str) -> Result<()>;

    /// Renames a file over another, as one step to every observer of the running machine.
    fn rename(&self, from: &str, to: &str) -> Result<()>;

    /// Removes a file. Errors: `NotFound`.
    fn remove(&self, path: &str) -> Result<()>;

    /// The names in a directory, sorted.
    fn list(&self, path: &str) -> Result<Vec<String>>;

    /// Makes a directory (and what leads to it) if it is not there.
    fn create_directory(&self, path: &str) -> Result<()>;

    /// Takes the exclusive lock of a file, made if it is not there. Errors: `Busy` when another process holds it.
    fn lock(&self, path: &str) -> Result<Self::Lock>;

    /// Opens a payload file. Errors: `NotFound`, `PermissionDenied`, `Unsupported` (direct I/O is not possible there, or
    /// the engine is not allowed on this host), `Invalid` (it is no regular file and no block device).
    fn open(&self, path: &str, options: FileOptions) -> Result<Self::File>;

    /// Memory of the *machine*, by name (letters, digits, `-`): it outlives the process and dies with the machine's
    /// power. Reserved in full. The flag says whether it was there already, with its content; a new one is zeroed.
    /// Errors: `NoSpace`; `Invalid` when it is there with another length.
    fn machine_memory(&self, name: &str, len: u64) -> Result<(Self::Memory, bool)>;

    /// Gives the named memory back. `Ok` when it was not there.
    fn remove_machine_memory(&self, name: &str) -> Result<()>;
}
