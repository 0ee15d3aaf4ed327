//! Threads for what may block, so that no core ever does.
//!
//! The pool is bounded: a device that hangs in the kernel holds up a thread of it and, when it has taken them all, every
//! later job, but no core. A job that panics ends the process: whoever waits for its result would wait for ever.

use crate::process::Shared;
use runtime::{CoreId, Job};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Jobs that run at a time.
const THREADS: usize = 4;

type Task = Box<dyn FnOnce() + Send>;

/// The pool's queue. Its threads end with the last reference to it, except those held up by a job.
pub(crate) struct Pool {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    ended: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No task runs under the lock, so a panic leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does until the pool ends.
    fn work(&self) {
        loop {
            let mut state = self.lock();
            let task = loop {
                match state.tasks.pop_front() {
                    Some(task) => break task,
                    None if state.ended => return,
                    None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            if catch_unwind(AssertUnwindSafe(task)).is_err() {
                tracing::error!(
                    "an offloaded job panicked, and nobody can go on without its result: the process ends"
                );
                std::process::abort();
            }
        }
    }
}

impl Pool {
    /// Starts the threads. Errors: those of starting a thread.
    pub(crate) fn new() -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        for number in 0..THREADS {
            let queue = queue.clone();
            std::thread::Builder::new().name(format!("offload-{number}")).spawn(move || queue.work())?;
        }
        Ok(Self { queue })
    }

    fn submit(&self, task: Task) {
        self.queue.lock().tasks.push_back(task);
        self.queue.changed.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.lock().ended = true;
        self.queue.changed.notify_all();
    }
}

/// Where a job leaves its result.
struct Slot<T> {
    ended: AtomicBool,
    result: Mutex<Option<T>>,
}

/// A job given to the pool; see [`runtime::Job`].
pub struct HostJob<T>(Arc<Slot<T>>);

/// Runs something on the pool of a process, and wakes `core` when it has ended.
pub(crate) fn offload<T: Send + 'static>(
    process: &Arc<Shared>,
    core: CoreId,
    job: impl FnOnce() -> T + Send + 'static,
) -> HostJob<T> {
    let slot = Arc::new(Slot { ended: AtomicBool::new(false), result: Mutex::new(None) });
    let (theirs, waking) = (slot.clone(), process.clone());
    process.pool().submit(Box::new(move || {
        let result = job();
        *theirs.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        theirs.ended.store(true, Ordering::Release);
        waking.waker(core).wake();
    }));
    HostJob(slot)
}

impl<T> HostJob<T> {
    /// Before the core sleeps, after its waker's `fall_asleep`: whether there is a result to take.
    pub(crate) fn arm(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
            && self.0.result.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl<T: Send + 'static> Job<T> for HostJob<T> {
    fn take(&mut self) -> Option<T> {
        if !self.0.ended.load(Ordering::Acquire) {
            return None;
        }
        self.0.result.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
