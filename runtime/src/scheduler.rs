//! Cores, the mailboxes between them, and jobs that may block.

use core::fmt;

/// A core of the process's core mask, numbered from 0 without holes (not the host's processor number).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How a core spent its time since the process started, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReactorTimes {
    /// The core.
    pub core: CoreId,
    /// The host's processor that it is pinned to.
    pub processor: u32,
    /// Time in polls that found work.
    pub busy_ns: u64,
    /// Time in polls that found none, and asleep.
    pub idle_ns: u64,
}

/// The sending end of a bounded mailbox. Clones go to any core, and one may be used by several.
pub trait Sender<T>: Clone + Send + Sync + 'static {
    /// Sends, or hands the message back when the box is full or its receiver is gone.
    fn send(&self, message: T) -> Result<(), T>;
}

/// The receiving end of a mailbox; used on one core.
pub trait Receiver<T>: Send + 'static {
    /// The next message, in the order in which each sender sent.
    fn receive(&mut self) -> Option<T>;
}

/// A job given to [`crate::Platform::offload`]. Dropping it lets the job run to its end and drops the result.
pub trait Job<T>: 'static {
    /// The result, once the job has ended; taken once.
    fn take(&mut self) -> Option<T>;
}
