//! The malloc bdev: a disk in the machine's memory.
//!
//! The memory is the *machine's* and not the process's ([`runtime::Directory::machine_memory`]): it outlives a
//! `kill -9` of the target, so a guest that lives through a restart finds every acknowledged write, and it is gone with
//! the machine's power. In between every write is as durable as it will ever be, so there is no volatile cache to flush
//! and FUA costs nothing. A crash in the middle of a copy leaves the block torn, as a disk would; the write was not
//! acknowledged then and is replayed.

use super::statistics::{CHANNEL_DEPTH, Counted, Statistics};
use super::{Bdev, Channel, ChannelFull, Completion, Geometry, Io, IoError, Op};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use runtime::{ErrorKind, Instant, Memory, Platform, Window};
use serde_json::{Map, Value};

/// A disk in the machine's memory.
pub struct MallocBdev<P: Platform> {
    name: String,
    uuid: [u8; 16],
    geometry: Geometry,
    /// Keeps the window below usable: dropped with the bdev, when no channel is left.
    memory: P::Memory,
    statistics: Statistics,
}

impl<P: Platform> MallocBdev<P> {
    /// A disk of `num_blocks` blocks in `memory`, which holds exactly that much.
    #[must_use]
    pub fn new(
        name: String,
        uuid: [u8; 16],
        block_size: u32,
        physical_block_size: u32,
        num_blocks: u64,
        memory: P::Memory,
        cores: u16,
    ) -> Self {
        let geometry = Geometry {
            block_size,
            physical_block_size,
            num_blocks,
            read_only: false,
            volatile_cache: false,
            discard: true,
            write_zeroes: true,
        };
        assert_eq!(
            memory.window().len(),
            geometry.capacity(),
            "the memory of a malloc bdev is as long as the bdev"
        );
        Self { name, uuid, geometry, memory, statistics: Statistics::new(cores) }
    }
}

impl<P: Platform> Bdev<P> for MallocBdev<P> {
    fn name(&self) -> &str {
        &self.name
    }

    fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    fn product_name(&self) -> &'static str {
        "Malloc disk"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn channel(&self, platform: &P) -> runtime::Result<Box<dyn Channel<P>>> {
        let channel = MallocChannel::<P> {
            geometry: self.geometry,
            disk: self.memory.window(),
            done: Vec::with_capacity(CHANNEL_DEPTH),
            zeroing: VecDeque::with_capacity(CHANNEL_DEPTH),
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

/// Most bytes that are zeroed in one poll: some hundred microseconds of a core. What is left goes on in the next poll.
const ZEROED_PER_POLL: u64 = 1 << 20;

/// A range that is being zeroed.
#[derive(Clone, Copy)]
struct Zeroing {
    token: u64,
    offset: u64,
    end: u64,
}

/// A channel that copies in `submit` and zeroes in pieces; what is copied is done at the next poll.
struct MallocChannel<P: Platform> {
    geometry: Geometry,
    disk: P::Window,
    done: Vec<Completion>,
    zeroing: VecDeque<Zeroing>,
}

impl<P: Platform> MallocChannel<P> {
    fn execute(&self, io: &Io<'_, P::Window>) -> Result<(), IoError> {
        if !self.geometry.contains(io.offset, io.len) {
            return Err(IoError::OutOfRange);
        }
        match io.op {
            Op::Read | Op::Write { .. } => {
                if io.segments.len() != io.len {
                    return Err(IoError::Medium(ErrorKind::Invalid));
                }
                let mut offset = io.offset;
                for segment in io.segments.0 {
                    let len = segment.len();
                    match io.op {
                        Op::Read => segment.copy_from(0, &self.disk, offset, len),
                        _ => self.disk.copy_from(offset, segment, 0, len),
                    }
                    offset += len;
                }
            }
            // Zeroing goes on in poll.
            Op::Discard | Op::WriteZeroes { .. } | Op::Flush => {}
        }
        Ok(())
    }
}

impl<P: Platform> Channel<P> for MallocChannel<P> {
    fn submit(&mut self, _now: Instant, io: &Io<'_, P::Window>, token: u64) -> Result<(), ChannelFull> {
        let result = self.execute(io);
        if result.is_ok() && matches!(io.op, Op::Discard | Op::WriteZeroes { .. }) {
            self.zeroing.push_back(Zeroing { token, offset: io.offset, end: io.offset + io.len });
        } else {
            self.done.push(Completion { token, result });
        }
        Ok(())
    }

    fn poll(&mut self, _now: Instant, completions: &mut Vec<Completion>) -> bool {
        let worked = !self.done.is_empty() || !self.zeroing.is_empty();
        completions.append(&mut self.done);
        let mut budget = ZEROED_PER_POLL;
        while let Some(range) = self.zeroing.front_mut() {
            let len = budget.min(range.end - range.offset);
            self.disk.fill(range.offset, len, 0);
            range.offset += len;
            budget -= len;
            if range.offset < range.end {
                break;
            }
            completions.push(Completion { token: range.token, result: Ok(()) });
            self.zeroing.pop_front();
        }
        worked
    }

    fn wake_at(&self) -> Option<Instant> {
        // What was submitted is done already, or goes on in poll: poll at once.
        (!self.done.is_empty() || !self.zeroing.is_empty()).then_some(Instant(0))
    }

    fn arm(&self, _wakes: &mut P::Wakes) {}
}
