//! The exclusive lock of a small file (state directory, flight recorder), with a little patience: a process that was killed
//! a moment ago holds its locks until the kernel has taken it apart, and whoever starts the next life at once must not be
//! refused for that.

use crate::error::{from_errno, with_errno};
use runtime::{ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long a lock is tried for: far longer than taking a process apart takes, and short for whoever is refused.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// Takes the lock of an open file description. Errors: `Busy` when another one held it all the while. Blocks: at the start,
/// or in an offloaded job.
#[expect(
    clippy::disallowed_methods,
    reason = "never on a reactor; the kernel tells nobody when a lock is free"
)]
pub(crate) fn lock_soon(file: impl AsFd) -> Result<()> {
    let begun = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            Err(errno @ Errno::WOULDBLOCK) => return Err(with_errno(ErrorKind::Busy, errno)),
            Err(errno) => return Err(from_errno(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_lock_that_is_freed_soon_is_had_and_another_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let first = File::create(&path).expect("a file");
        lock_soon(&first).expect("free");
        let second = File::open(&path).expect("the file");
        assert_eq!(lock_soon(&second).map_err(|error| error.kind), Err(ErrorKind::Busy));
        let dying = std::thread::spawn(move || {
            // As if the kernel took its time with a dead process.
            for _ in 0..1000 {
                std::thread::yield_now();
            }
            drop(first);
        });
        lock_soon(&second).expect("freed soon");
        dying.join().expect("it ends");
    }
}
