//! Aligned memory for payloads that direct I/O cannot reach where they lie.
//!
//! A guest may send a payload from any address; the kernel takes it for direct I/O only at multiples of the file's
//! memory alignment and in whole blocks. Such a payload goes through one of a channel's few bounce buffers. An
//! operation longer than a buffer is done in part: its completion says so, and the stack submits the rest, so the
//! memory spent here is bounded whatever a guest asks for. The pool allocates up to its bound and then never again.

use crate::window::HostWindow;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Bytes in a bounce buffer; a multiple of every block size.
pub(super) const BOUNCE_BYTES: usize = 128 * 1024;

/// Alignment of a bounce buffer: the largest block size, beyond which no memory alignment was ever asked for.
pub(super) const BOUNCE_ALIGNMENT: usize = 64 * 1024;

/// Most bounce buffers of a channel (4 MiB).
pub(super) const BOUNCE_BUFFERS: usize = 32;

/// The bounce buffers of one channel.
pub(super) struct BouncePool {
    buffers: Vec<Buffer>,
    free: Vec<u32>,
    copied_bytes: u64,
}

/// One buffer, and for a read in flight the windows that its bytes go to.
struct Buffer {
    memory: NonNull<u8>,
    segments: Vec<HostWindow>,
}

const LAYOUT: Layout = match Layout::from_size_align(BOUNCE_BYTES, BOUNCE_ALIGNMENT) {
    Ok(layout) => layout,
    Err(_) => panic!("a bounce buffer has a size and an alignment"),
};

/// A buffer in use: its number, where it is, and how many bytes of the payload it stands for.
pub(super) struct Bounce {
    pub(super) index: u32,
    pub(super) pointer: *mut u8,
    pub(super) len: u64,
}

impl BouncePool {
    pub(super) fn new() -> Self {
        Self { buffers: Vec::new(), free: Vec::new(), copied_bytes: 0 }
    }

    /// Payload bytes copied so far.
    pub(super) fn copied_bytes(&self) -> u64 {
        self.copied_bytes
    }

    /// Takes a buffer for (the beginning of) a read's payload; `None` while all are in use.
    pub(super) fn take_for_read(&mut self, segments: &[HostWindow], len: u64) -> Option<Bounce> {
        let bounce = self.take(len)?;
        self.buffers[bounce.index as usize].segments.extend_from_slice(segments);
        Some(bounce)
    }

    /// Takes a buffer and copies (the beginning of) a write's payload into it; `None` while all are in use.
    pub(super) fn take_for_write(&mut self, segments: &[HostWindow], len: u64) -> Option<Bounce> {
        let bounce = self.take(len)?;
        let copied =
            runtime::Segments(segments).read(0, self.buffers[bounce.index as usize].bytes(bounce.len));
        self.copied_bytes += copied as u64;
        Some(bounce)
    }

    /// Ends a buffer's use; after a read, `arrived` bytes are first copied to where they were wanted.
    pub(super) fn give_back(&mut self, index: u32, arrived: u64) {
        let buffer = &mut self.buffers[index as usize];
        // A write keeps no windows, so that there is nothing to copy to.
        if !buffer.segments.is_empty() {
            let segments = std::mem::take(&mut buffer.segments);
            let copied = runtime::Segments(&segments).write(0, buffer.bytes(arrived));
            self.copied_bytes += copied as u64;
            buffer.segments = segments;
            buffer.segments.clear();
        }
        self.free.push(index);
    }

    fn take(&mut self, len: u64) -> Option<Bounce> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.buffers.len() < BOUNCE_BUFFERS => {
                self.buffers.push(Buffer::new());
                self.free.reserve(BOUNCE_BUFFERS);
                (self.buffers.len() - 1) as u32
            }
            None => return None,
        };
        let pointer = self.buffers[index as usize].memory.as_ptr();
        Some(Bounce { index, pointer, len: len.min(BOUNCE_BYTES as u64) })
    }
}

impl Buffer {
    fn new() -> Self {
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(LAYOUT) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(LAYOUT) };
        Self { memory, segments: Vec::new() }
    }

    fn bytes(&mut self, len: u64) -> &mut [u8] {
        assert!(len <= BOUNCE_BYTES as u64, "a bounce of {len} bytes is longer than its buffer");
        // SAFETY: the allocation has `BOUNCE_BYTES` initialised bytes and lives as long as `self`, which is borrowed;
        // the kernel uses it only between `take` and `give_back`, and no slice is made in between.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), len as usize) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout. A channel waits for all of its I/O before its fields drop,
        // so that the kernel no longer knows the address.
        unsafe { dealloc(self.memory.as_ptr(), LAYOUT) }
    }
}
