//! The null bdev: a disk of any size that keeps nothing. It completes everything at once and touches no memory, so it
//! measures everything but a medium.
//!
//! A read leaves the payload as it was, as SPDK's null bdev does: with vhost-user the payload is the guest's own memory,
//! so nothing leaks. A front-end that reads into memory of the target's must clear it first.

use super::statistics::{CHANNEL_DEPTH, Counted, Statistics};
use super::{Bdev, Channel, ChannelFull, Completion, Geometry, Io, IoError};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::{Instant, Platform};
use serde_json::{Map, Value};

/// A disk that keeps nothing.
#[derive(Debug)]
pub struct NullBdev {
    name: String,
    uuid: [u8; 16],
    block_size: u32,
    physical_block_size: u32,
    /// Shared with the channels, so that a resize reaches them at once.
    num_blocks: Arc<AtomicU64>,
    statistics: Statistics,
}

impl NullBdev {
    /// A disk of `num_blocks` blocks of `block_size` bytes (a power of two from 512 to 65536), for a process of `cores`.
    #[must_use]
    pub fn new(
        name: String,
        uuid: [u8; 16],
        block_size: u32,
        physical_block_size: u32,
        num_blocks: u64,
        cores: u16,
    ) -> Self {
        let (num_blocks, statistics) = (Arc::new(AtomicU64::new(num_blocks)), Statistics::new(cores));
        Self { name, uuid, block_size, physical_block_size, num_blocks, statistics }
    }

    /// Changes the number of blocks; front-ends are told by the target.
    pub fn resize(&self, num_blocks: u64) {
        self.num_blocks.store(num_blocks, Relaxed);
    }

    fn geometry_of(block_size: u32, physical_block_size: u32, num_blocks: u64) -> Geometry {
        Geometry {
            block_size,
            physical_block_size,
            num_blocks,
            read_only: false,
            volatile_cache: false,
            discard: true,
            write_zeroes: true,
        }
    }
}

impl<P: Platform> Bdev<P> for NullBdev {
    fn name(&self) -> &str {
        &self.name
    }

    fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    fn product_name(&self) -> &'static str {
        "Null disk"
    }

    fn geometry(&self) -> Geometry {
        Self::geometry_of(self.block_size, self.physical_block_size, self.num_blocks.load(Relaxed))
    }

    fn channel(&self, platform: &P) -> runtime::Result<Box<dyn Channel<P>>> {
        let channel = NullChannel {
            block_size: self.block_size,
            num_blocks: Arc::clone(&self.num_blocks),
            done: Vec::with_capacity(CHANNEL_DEPTH),
        };
        Ok(Box::new(Counted::new(channel, platform.here(), self.statistics.clone())))
    }

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn driver_specific(&self) -> Map<String, Value> {
        Map::new()
    }
}

/// A channel whose I/Os are all done at the next poll.
struct NullChannel {
    block_size: u32,
    num_blocks: Arc<AtomicU64>,
    done: Vec<Completion>,
}

impl<P: Platform> Channel<P> for NullChannel {
    fn submit(&mut self, _now: Instant, io: &Io<'_, P::Window>, token: u64) -> Result<(), ChannelFull> {
        // As many as there is room for; [`Counted`] sends no more.
        if self.done.len() == self.done.capacity() {
            return Err(ChannelFull);
        }
        let geometry = NullBdev::geometry_of(self.block_size, self.block_size, self.num_blocks.load(Relaxed));
        let result = if geometry.contains(io.offset, io.len) {
            Ok(())
        } else {
            core::hint::cold_path();
            Err(IoError::OutOfRange)
        };
        self.done.push(Completion { token, result });
        Ok(())
    }

    fn poll(&mut self, _now: Instant, completions: &mut Vec<Completion>) -> bool {
        let worked = !self.done.is_empty();
        completions.append(&mut self.done);
        worked
    }

    fn wake_at(&self) -> Option<Instant> {
        // What was submitted is done already: poll at once.
        (!self.done.is_empty()).then_some(Instant(0))
    }

    fn arm(&self, _wakes: &mut P::Wakes) {}
}
