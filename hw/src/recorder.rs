//! The flight recorder: the last events of a core, in a mapped file under the state directory that survives `kill -9`.
//!
//! Writing is five stores to memory of the page cache, which the kernel keeps when the process is gone; over a power
//! loss only what it had written back is there. A store to a page that was just written back faults once: with 48 syncs
//! a second on ext4, one event in 130 took 1 to 10 µs instead of 6 ns, one in 16,000 up to 100 µs, and the rare longer
//! ones were as many as on tmpfs.
//!
//! A life records as `recorder-CORE.starting` until it serves, and as `recorder-CORE` from then on: only then the file of
//! the life that served before becomes `recorder-CORE.previous`. So a target that is started again and again, and fails
//! each time, keeps what is known of the one that crashed. The file is
//! reserved in full, so that a full disk is found at the start (that life goes without a recorder) and does not fault
//! later; should the medium fail under it, the mapping is lost like any other ([`crate::memory`]) and recording goes
//! nowhere, but the target goes on.

use crate::clock;
use crate::error::from_errno;
use crate::lock::lock_soon;
use crate::memory::{HostMemory, map_file};
use crate::window::HostWindow;
use runtime::{Access, CoreId, Error, ErrorKind, Event, Memory, Result, Window};
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, ftruncate, open, rename};
use rustix::io::Errno;
use stack::recording::{EVENT_LEN, HEADER_LEN, Header, WRITTEN_OFFSET, event_words};
use std::cell::Cell;
use std::fs::remove_file;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Events that a core's ring holds.
const CAPACITY: u64 = 65536;
const _: () = assert!(CAPACITY.is_power_of_two(), "a slot is found by masking");

/// Permissions of the file: its events are not for everybody.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// One core's recorder.
pub(crate) struct Recorder {
    window: HostWindow,
    written: Cell<u64>,
    /// Keeps the window usable, and the file's lock.
    _memory: HostMemory,
}

impl Recorder {
    /// Starts a core's recorder in a directory, for a life that does not serve yet. Errors: `Busy` when a live process
    /// records there; `NoSpace`, `NotFound`, `PermissionDenied`.
    pub(crate) fn start(directory: &Path, core: CoreId) -> Result<Self> {
        let Names { serving, starting, previous } = Names::of(directory, core);
        match open_locked(&serving, OFlags::empty()) {
            Ok(_) | Err(Error { kind: ErrorKind::NotFound, .. }) => {}
            Err(error) => return Err(error),
        }
        let file = open_locked(&starting, OFlags::CREATE)?;
        // What a life recorded that never served.
        ftruncate(&file, 0).map_err(from_errno)?;
        let header = Header {
            core: u32::from(core.0),
            capacity: CAPACITY,
            started_ns: clock::now().0,
            started_unix_ns: clock::unix_ns(),
        };
        let reserved = || fallocate(&file, FallocateFlags::empty(), 0, header.file_len());
        let reserved = match reserved() {
            // The oldest one gives way, not that of the last life.
            Err(Errno::NOSPC) if remove_file(&previous).is_ok() => reserved(),
            reserved => reserved,
        };
        if let Err(errno) = reserved {
            // Some file systems keep what they had found; the room may be needed.
            let _ = remove_file(&starting);
            return Err(from_errno(errno));
        }
        let memory = map_file(file, 0, header.file_len(), Access::ReadWrite)?;
        let window = memory.window();
        window.write(0, &header.encode());
        Ok(Self { window, written: Cell::new(0), _memory: memory })
    }

    /// Writes an event.
    #[inline]
    pub(crate) fn record(&self, event: &Event) {
        let number = self.written.get();
        let at = HEADER_LEN + number % CAPACITY * EVENT_LEN;
        for (word, value) in event_words(event).into_iter().enumerate() {
            self.window.store_u64(at + word as u64 * 8, value, Ordering::Relaxed);
        }
        self.written.set(number + 1);
        // After the event: a reader of a dead process's file trusts what the count covers.
        self.window.store_u64(WRITTEN_OFFSET, number + 1, Ordering::Release);
    }
}

/// The files of a core's recorder.
struct Names {
    /// Of a life that serves.
    serving: PathBuf,
    /// Of one that does not serve yet.
    starting: PathBuf,
    /// Of the one that served before.
    previous: PathBuf,
}

impl Names {
    fn of(directory: &Path, core: CoreId) -> Self {
        let named = |suffix: &str| directory.join(format!("recorder-{core}{suffix}"));
        Self { serving: named(""), starting: named(".starting"), previous: named(".previous") }
    }
}

/// The life serves: its recording takes the place of the last one that did, if it has one. Errors: those of renaming.
pub(crate) fn serves(directory: &Path, core: CoreId) -> Result<()> {
    let Names { serving, starting, previous } = Names::of(directory, core);
    if !starting.try_exists().unwrap_or(false) {
        // A life without a recorder.
        return Ok(());
    }
    match rename(&serving, &previous) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(from_errno(errno)),
    }
    rename(&starting, &serving).map_err(from_errno)
}

/// Opens a recorder's file and takes its lock, which lasts as long as its mapping: a second process, which will be
/// refused a moment later, must not take the file away from a live one.
fn open_locked(path: &Path, also: OFlags) -> Result<OwnedFd> {
    let file = open(path, OFlags::RDWR | OFlags::CLOEXEC | also, FILE_MODE).map_err(from_errno)?;
    lock_soon(&file)?;
    Ok(file)
}
