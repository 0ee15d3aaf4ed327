//! The one payload type, from ring to bdev, file and stream: a list of windows, scatter-gather everywhere.

use crate::Window;

/// A payload: the bytes of the windows, one after the other. Borrowed, two words long; the windows themselves are
/// plain values, so whoever must keep a payload copies them into its own list.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a, W>(pub &'a [W]);

impl<'a, W: Window> Segments<'a, W> {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().map(Window::len).sum()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Window::is_empty)
    }

    /// The windows that make up `len` bytes at `offset`; they end early where the payload does.
    pub fn range(&self, offset: u64, len: u64) -> impl Iterator<Item = W> + use<'a, W> {
        let (mut skip, mut left) = (offset, len);
        self.0.iter().filter_map(move |window| {
            if left == 0 || skip >= window.len() {
                skip = skip.saturating_sub(window.len());
                return None;
            }
            let take = left.min(window.len() - skip);
            let part = window.slice(skip, take);
            (skip, left) = (0, left - take);
            part
        })
    }

    /// Copies bytes out from `offset`; returns how many there were.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        for window in self.range(offset, into.len() as u64) {
            let len = window.len() as usize;
            window.read(0, &mut into[done..done + len]);
            done += len;
        }
        done
    }

    /// Copies bytes in at `offset`; returns how many found room.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> usize {
        let mut done = 0;
        for window in self.range(offset, bytes.len() as u64) {
            let len = window.len() as usize;
            window.write(0, &bytes[done..done + len]);
            done += len;
        }
        done
    }
}
