//! The `iovec`s of operations that were queued and not yet submitted.
//!
//! Both engines copy an operation's `iovec`s while they submit it (io_uring: `IORING_FEAT_SUBMIT_STABLE`), so one
//! array a ring serves all of a batch and is empty again after each submission. It never grows, and so never moves
//! under an entry that points into it.

use crate::window::HostWindow;
use runtime::Window;

/// A fixed array of `iovec`s, filled from its beginning.
pub(super) struct Iovecs {
    entries: Box<[libc::iovec]>,
    used: usize,
}

impl Iovecs {
    /// Room for `capacity` segments over all operations of a batch.
    pub(super) fn new(capacity: usize) -> Self {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { entries: vec![empty; capacity].into_boxed_slice(), used: 0 }
    }

    /// Whether `segments` more find room.
    pub(super) fn has_room(&self, segments: usize) -> bool {
        segments <= self.entries.len() - self.used
    }

    /// Adds an operation's segments. The pointer is good until [`Iovecs::clear`].
    pub(super) fn push(&mut self, segments: &[HostWindow]) -> *const libc::iovec {
        let into = &mut self.entries[self.used..self.used + segments.len()];
        for (entry, segment) in into.iter_mut().zip(segments) {
            *entry = libc::iovec { iov_base: segment.as_ptr().cast(), iov_len: segment.len() as usize };
        }
        self.used += segments.len();
        into.as_ptr()
    }

    /// Forgets all; only when the kernel has taken every operation that points here.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }
}
