//! A live migration, as far as a back-end sees it: the front-end hands over a log, reads it again and again, each time at
//! any moment between two accesses of the target, stops the machine, reads the log for the last time, and then gives up
//! and lets the machine go on here. Nothing is copied: that a page would be is what the checker is told.

use super::SharedVmm;
use crate::check::Observation;
use crate::guest::Witness;
use crate::guest::vm::Shared;
use crate::memory::SimWindow;
use crate::rng::Rng;
use crate::world::{self, Model, Step};
use runtime::{Instant, Window};
use std::sync::atomic::Ordering::Relaxed;

/// Longest time between two reads of a log.
const READ_NS_MAX: u64 = 60_000;
/// Reads of a log before the machine is stopped.
const READS_MAX: u64 = 12;
/// Bytes of guest memory that a bit stands for (`VHOST_LOG_PAGE`).
const PAGE: u64 = 4096;
/// Number of the first of the streams that readers of logs draw from, one a machine.
const STREAM_FIRST: u64 = 35_000;

/// A log that a target writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Log {
    pub(super) object: u32,
    pub(super) len: u64,
    window: SimWindow,
    /// Reads still to come before the machine is stopped.
    reads: u64,
}

impl Log {
    /// A log of all of a machine's memory.
    pub(super) fn new(vm: &Shared, rng: &mut Rng) -> Self {
        let end = vm.borrow().backings.iter().map(|backing| backing.address + backing.len).max().unwrap_or(0);
        let len = end.div_ceil(8 * PAGE).next_multiple_of(PAGE);
        let (object, window) = world::with(|world| world.memory_object(len));
        Self { object, len, window, reads: rng.below(READS_MAX) }
    }

    /// Whether it was read as often as it is to be.
    pub(super) fn is_read_enough(&self) -> bool {
        self.reads == 0
    }

    /// Reads the log and clears it; every page that it names is copied.
    pub(super) fn read(&mut self, vm: &Shared, witness: &mut impl Witness) {
        self.reads = self.reads.saturating_sub(1);
        let vm = vm.borrow();
        for backing in &vm.backings {
            let (first, last) = (backing.address / PAGE, (backing.address + backing.len - 1) / PAGE);
            for byte in first / 8..=last / 8 {
                let bits = self.window.load_u8(byte, Relaxed);
                if bits == 0 {
                    continue;
                }
                self.window.store_u8(byte, 0, Relaxed);
                for bit in (0..8).filter(|bit| bits >> bit & 1 == 1) {
                    witness.saw(&Observation::PageCopied { page: 8 * byte + bit });
                }
            }
        }
    }
}

/// Whoever reads the log while the machine runs.
pub struct LogReader<W>(SharedVmm<W>, Rng);

impl<W: Witness + 'static> LogReader<W> {
    /// A reader of a front-end's logs, in the world: where machines migrate.
    pub fn build(vmm: &SharedVmm<W>, number: u64, seed: u64) {
        let reader = Self(vmm.clone(), Rng::new(seed, STREAM_FIRST + number));
        let model = world::with(|world| world.add_model(Box::new(reader), true));
        vmm.borrow_mut().log_reader = Some(model);
    }
}

impl<W: Witness> Model for LogReader<W> {
    fn step(&mut self) -> Step {
        let mut vmm = self.0.borrow_mut();
        let vmm = &mut *vmm;
        // To the end: what counts is the last store to a page, and those come while the rings stop.
        let Some(log) = vmm.log.as_mut().filter(|_| vmm.logging) else { return Step::Idle { until: None } };
        // Stepped before its time, so the world is between two accesses of the target: a look there is worth the most.
        log.read(&vmm.vm, &mut vmm.witness);
        let now = world::with(|world| world.now());
        Step::Idle { until: Some(Instant(now.0 + 1 + self.1.below(READ_NS_MAX))) }
    }
}
