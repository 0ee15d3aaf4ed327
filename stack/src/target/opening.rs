//! Opening a file for a bdev: the open, which may block, and then the lock, which is the fence.
//!
//! The lock belongs to the open file description that does the I/O, and the kernel lets go of a dead process's only when
//! its last I/O has ended. So nothing is read or written through the new description before the lock is had, and a write
//! that a dead life had under way cannot land on top of a replayed one. The lock is asked for again and again, each time
//! without waiting, because a reactor must not.

use crate::control::error::{Errno, RpcError};
use crate::events::Kind;
use crate::reached::Reached;
use alloc::format;
use alloc::string::String;
use core::time::Duration;
use runtime::{
    Directory, ErrorKind, Event, File, FileInfo, FileLock, FileOptions, Instant, Job, Platform, Wakes,
};

/// How often the lock of a file is asked for. What a dead process left was measured to end after 19 to 72 ms.
const LOCK_RETRY: Duration = Duration::from_millis(2);
/// How long the lock of a file is waited for before the attempt is given up: far longer than a dead process's last I/O
/// takes, so that whoever holds it then is alive.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(1);

/// An attempt to open a file.
pub(super) struct Opening<P: Platform> {
    path: String,
    step: Step<P>,
}

enum Step<P: Platform> {
    Open(P::Job<runtime::Result<P::File>>),
    Lock { file: P::File, info: FileInfo, since: Instant, not_before: Instant },
    Ended,
}

/// Where an attempt stands.
pub(super) enum Opened<P: Platform> {
    /// Something else must happen first.
    Waiting,
    /// The lock is asked for again at this time.
    Until(Instant),
    /// The file is open and its lock held. The attempt is over.
    Held(P::File, FileInfo),
    /// The attempt is over.
    Failed(RpcError),
}

impl<P: Platform> Opening<P> {
    /// Begins to open the file at `path`.
    pub(super) fn begin(platform: &P, path: &str, options: FileOptions) -> Self {
        let (directory, name) = (platform.directory(), String::from(path));
        let job = platform.offload(move || directory.open(&name, options));
        Self { path: path.into(), step: Step::Open(job) }
    }

    /// Goes on. `owner` names the bdev of this target that is in the file with an identity, if one is.
    pub(super) fn poll(
        &mut self,
        platform: &P,
        now: Instant,
        owner: impl Fn((u64, u64)) -> Option<String>,
    ) -> Opened<P> {
        let path = &self.path;
        let failed = |errno, what: String| Opened::Failed(RpcError::errno(errno, what));
        if let Step::Open(job) = &mut self.step {
            let info = match job.take() {
                None => return Opened::Waiting,
                Some(Ok(file)) => file.info().map(|info| (file, info)),
                Some(Err(error)) => Err(error),
            };
            let (file, info) = match info {
                Ok(opened) => opened,
                Err(error) => {
                    Reached::FileNotOpened.mark::<P::Window>();
                    let what = match error.kind {
                        ErrorKind::Invalid => {
                            format!("cannot open {path}: it is no regular file and no block device")
                        }
                        _ => format!("cannot open {path}: {error}"),
                    };
                    return failed(Errno::of(error.kind), what);
                }
            };
            if let Some(owner) = owner(info.identity) {
                Reached::FileTwice.mark::<P::Window>();
                // Without this the lock would be waited for in vain: this process holds it.
                return failed(Errno::Busy, format!("{path} is the disk of bdev {owner} already"));
            }
            self.step = Step::Lock { file, info, since: now, not_before: now };
        }
        let Step::Lock { file, info, since, not_before } = &mut self.step else { return Opened::Waiting };
        if now < *not_before {
            return Opened::Until(*not_before);
        }
        match file.try_lock() {
            Ok(FileLock::HeldElsewhere) if now.since_ns(*since) < LOCK_WAIT_MAX.as_nanos() as u64 => {
                Reached::FenceWaits.mark::<P::Window>();
                *not_before = now.after(LOCK_RETRY);
                Opened::Until(*not_before)
            }
            Ok(FileLock::HeldElsewhere) => {
                Reached::FenceGivenUp.mark::<P::Window>();
                let what = format!(
                    "{path} has been held by another process for {} s: stop what uses it (lslocks tells), then try again",
                    LOCK_WAIT_MAX.as_secs()
                );
                self.step = Step::Ended;
                failed(Errno::Busy, what)
            }
            Err(error) => {
                Reached::FileNotLocked.mark::<P::Window>();
                let what = format!("cannot lock {path}: {error}");
                self.step = Step::Ended;
                failed(Errno::of(error.kind), what)
            }
            Ok(FileLock::Held) => {
                let waited_ns = now.since_ns(*since);
                platform.record(Event {
                    at_ns: now.0,
                    kind: Kind::FileFenced as u16,
                    a: waited_ns,
                    ..Event::default()
                });
                if waited_ns > 0 {
                    let waited_us = waited_ns / 1000;
                    tracing::info!(path = %path, waited_us, "waited for the end of another process's I/O");
                }
                // Its size may have changed while it was somebody else's.
                let (file, info) = (file.clone(), file.info().unwrap_or(*info));
                self.step = Step::Ended;
                Opened::Held(file, info)
            }
        }
    }

    /// Registers what may bring the attempt on.
    pub(super) fn arm(&self, wakes: &mut P::Wakes) {
        if let Step::Open(job) = &self.step {
            wakes.job(job);
        }
    }
}
