//! Memory regions: what keeps the windows into them usable.

use crate::{Result, Window};

/// What the process may do with a region that somebody else gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// A mapped region of memory, owned. Dropping it unmaps; the stack does so only when no I/O is in flight on it.
/// Made from a [`crate::Handle`], by [`crate::Platform::shared_memory`] or by [`crate::Directory::machine_memory`].
pub trait Memory: Send + Sync + 'static {
    /// The window type of the platform.
    type Window: Window;
    /// The handle type of the platform.
    type Handle;

    /// The whole region.
    fn window(&self) -> Self::Window;

    /// Whether the memory below went away while mapped (its owner shrank the file): the region then reads as zeroes
    /// and swallows stores, and whoever it belongs to must be told. One relaxed load; meant to be asked in every poll.
    fn is_lost(&self) -> bool;

    /// A handle to the region's backing, to be passed to another process. Errors: `Unsupported` for memory that has
    /// none, `OutOfResources`.
    fn handle(&self) -> Result<Self::Handle>;
}
