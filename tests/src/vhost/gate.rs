//! A block device in memory whose completions wait at a gate that the test opens and shuts.

use super::by_hand::{Armed, ByHand};
use hw::HostWindow;
use runtime::{Instant, Segments};
use stack::block::{Bdev, Channel, ChannelFull, Completion, Geometry, Io, Op, Statistics};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes of a block.
pub const BLOCK_SIZE: u32 = 512;

/// The shared part, and what the test holds.
pub struct Gate {
    content: Mutex<Vec<u8>>,
    num_blocks: AtomicU64,
    open: AtomicBool,
    /// Whether the youngest that waits may pass a gate that is shut.
    pass_youngest: AtomicBool,
    /// Writes that were asked to be durable when they complete.
    durable_writes: AtomicU64,
    /// Bytes of all operations that were submitted.
    submitted_bytes: AtomicU64,
    statistics: Statistics,
}

impl Gate {
    /// A device of `num_blocks` blocks, its gate open.
    #[must_use]
    pub fn new(num_blocks: u64) -> Arc<Self> {
        Arc::new(Self {
            content: Mutex::new(vec![0; (num_blocks * u64::from(BLOCK_SIZE)) as usize]),
            num_blocks: AtomicU64::new(num_blocks),
            open: AtomicBool::new(true),
            pass_youngest: AtomicBool::new(false),
            durable_writes: AtomicU64::new(0),
            submitted_bytes: AtomicU64::new(0),
            statistics: Statistics::new(1),
        })
    }

    /// Opens or shuts the gate.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }

    /// Lets the youngest I/O that waits pass, and no other.
    pub fn pass_youngest(&self) {
        self.pass_youngest.store(true, Ordering::Relaxed);
    }

    /// Changes the size that the device tells; its content stays.
    pub fn resize(&self, num_blocks: u64) {
        self.num_blocks.store(num_blocks, Ordering::Relaxed);
    }

    /// What stands at an offset.
    #[must_use]
    pub fn content(&self, offset: usize, len: usize) -> Vec<u8> {
        self.content.lock().expect("no test panics while it holds this")[offset..offset + len].to_vec()
    }

    /// Puts zeroes at an offset.
    pub fn content_clear(&self, offset: usize, len: usize) {
        self.content.lock().expect("no test panics while it holds this")[offset..offset + len].fill(0);
    }

    /// How many writes were asked to be durable when they complete.
    #[must_use]
    pub fn durable_writes(&self) -> u64 {
        self.durable_writes.load(Ordering::Relaxed)
    }

    /// Bytes of all operations that were submitted so far.
    #[must_use]
    pub fn submitted_bytes(&self) -> u64 {
        self.submitted_bytes.load(Ordering::Relaxed)
    }
}

/// The device as the target holds it.
pub struct GateBdev(pub Arc<Gate>);

impl Bdev<ByHand> for GateBdev {
    fn name(&self) -> &str {
        "gate"
    }

    fn uuid(&self) -> [u8; 16] {
        [7; 16]
    }

    fn product_name(&self) -> &'static str {
        "Gate"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: BLOCK_SIZE,
            physical_block_size: BLOCK_SIZE,
            num_blocks: self.0.num_blocks.load(Ordering::Relaxed),
            read_only: false,
            volatile_cache: true,
            discard: true,
            write_zeroes: true,
        }
    }

    fn channel(&self, _platform: &ByHand) -> runtime::Result<Box<dyn Channel<ByHand>>> {
        Ok(Box::new(GateChannel { gate: self.0.clone(), waiting: Vec::new() }))
    }

    fn statistics(&self) -> &Statistics {
        &self.0.statistics
    }

    fn driver_specific(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }
}

struct Waiting {
    token: u64,
    op: Op,
    offset: usize,
    len: usize,
    windows: Vec<HostWindow>,
}

struct GateChannel {
    gate: Arc<Gate>,
    waiting: Vec<Waiting>,
}

impl Channel<ByHand> for GateChannel {
    fn submit(&mut self, _now: Instant, io: &Io<'_, HostWindow>, token: u64) -> Result<(), ChannelFull> {
        if let Op::Write { fua: true } = io.op {
            self.gate.durable_writes.fetch_add(1, Ordering::Relaxed);
        }
        self.gate.submitted_bytes.fetch_add(io.len, Ordering::Relaxed);
        let (offset, len) = (io.offset as usize, io.len as usize);
        self.waiting.push(Waiting { token, op: io.op, offset, len, windows: io.segments.0.to_vec() });
        Ok(())
    }

    fn poll(&mut self, _now: Instant, completions: &mut Vec<Completion>) -> bool {
        let open = self.gate.open.load(Ordering::Relaxed);
        if self.waiting.is_empty() || !(open || self.gate.pass_youngest.swap(false, Ordering::Relaxed)) {
            return false;
        }
        let from = if open { 0 } else { self.waiting.len() - 1 };
        let mut content = self.gate.content.lock().expect("no test panics while it holds this");
        for Waiting { token, op, offset, len, windows } in self.waiting.drain(from..) {
            let range = &mut content[offset..offset + len];
            match op {
                Op::Read => assert_eq!(Segments(&windows).write(0, range), len),
                Op::Write { .. } => assert_eq!(Segments(&windows).read(0, range), len),
                Op::Discard | Op::WriteZeroes { .. } => range.fill(0),
                Op::Flush => {}
            }
            completions.push(Completion { token, result: Ok(()) });
        }
        true
    }

    fn wake_at(&self) -> Option<Instant> {
        None
    }

    fn arm(&self, _wakes: &mut Armed) {}
}
