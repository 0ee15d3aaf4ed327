//! What a guest and its QEMU print, line by line, and waiting for it.
//!
//! A thread for each pipe gathers the lines. [`Console::wait`] reads on from where the last wait ended, so that the same
//! line never answers two waits.

use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStderr, ChildStdout};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The lines, shared with the threads that read them.
#[derive(Debug)]
pub(super) struct Console {
    shared: Arc<Shared>,
    /// Lines before this one were already looked at by a wait.
    seen: usize,
}

#[derive(Debug, Default)]
struct Shared {
    printed: Mutex<Printed>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Printed {
    lines: Vec<String>,
    /// QEMU has closed its standard output: it is gone.
    closed: bool,
}

impl Shared {
    /// A reader that panicked leaves whole lines behind, so that its lock is still good.
    fn printed(&self) -> MutexGuard<'_, Printed> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Console {
    /// Reads both pipes until QEMU closes them.
    pub(super) fn new(stdout: ChildStdout, stderr: ChildStderr) -> Console {
        let shared = Arc::new(Shared::default());
        let (guest, qemu) = (Arc::clone(&shared), Arc::clone(&shared));
        std::thread::spawn(move || {
            gather(stdout, &guest, "");
            guest.printed().closed = true;
            guest.changed.notify_all();
        });
        std::thread::spawn(move || gather(stderr, &qemu, "qemu: "));
        Console { shared, seen: 0 }
    }

    /// Waits for a line of which `found` makes something, or says why there was none.
    pub(super) fn wait<T>(
        &mut self,
        limit: Duration,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + limit;
        let mut printed = self.shared.printed();
        loop {
            while let Some(line) = printed.lines.get(self.seen) {
                self.seen += 1;
                if let Some(answer) = found(line) {
                    return Ok(answer);
                }
            }
            if printed.closed {
                return Err("QEMU has ended".to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("nothing for {limit:?}"));
            }
            printed =
                self.shared.changed.wait_timeout(printed, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until QEMU has ended.
    pub(super) fn wait_closed(&mut self, limit: Duration) -> Result<(), String> {
        match self.wait(limit, |_| None::<()>) {
            Err(why) if !self.shared.printed().closed => Err(why),
            _ => Ok(()),
        }
    }

    /// Every line so far.
    pub(super) fn lines(&self) -> Vec<String> {
        self.shared.printed().lines.clone()
    }
}

/// Appends every line of `pipe` until its end. A guest may print anything: bytes that are no text become U+FFFD.
fn gather(pipe: impl Read, shared: &Shared, prefix: &str) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
        let text = String::from_utf8_lossy(&line);
        shared.printed().lines.push(format!("{prefix}{}", text.trim_end()));
        shared.changed.notify_all();
        line.clear();
    }
}
