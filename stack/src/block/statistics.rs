//! What a bdev counts: operations, bytes, errors and latencies, by kind of operation and by core.
//!
//! Every channel of a core writes that core's counters and nobody else does, so counting is plain loads and stores
//! (relaxed, no read-modify-write); the control path reads them from its own core at any time and may see an I/O's
//! bytes a moment before its latency. Nothing is ever reset by the reader: "since" is a difference of two snapshots, and
//! minimum and maximum begin anew when the reader asks for it by a generation number, which each core notices itself.

use super::{Channel, ChannelFull, Completion, Io, Op};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::{CoreId, Instant, Platform};

/// Most I/Os in flight on one channel; one more is answered [`ChannelFull`]. More than a disk has use for.
pub const CHANNEL_DEPTH: usize = 1024;

/// Latency buckets: bucket `n` counts latencies of less than 2^`n` ns that no lower bucket counts; the last one counts
/// everything from 2^38 ns (some four and a half minutes) up.
pub const LATENCY_BUCKETS: usize = 40;

/// The kinds of operation that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`Op::Read`].
    Read,
    /// [`Op::Write`].
    Write,
    /// [`Op::Discard`].
    Discard,
    /// [`Op::WriteZeroes`].
    WriteZeroes,
    /// [`Op::Flush`].
    Flush,
}

impl Kind {
    /// All kinds, in the order of their counters.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Discard, Self::WriteZeroes, Self::Flush];

    /// The kind of an operation.
    #[must_use]
    pub const fn of(op: Op) -> Self {
        match op {
            Op::Read => Self::Read,
            Op::Write { .. } => Self::Write,
            Op::Discard => Self::Discard,
            Op::WriteZeroes { .. } => Self::WriteZeroes,
            Op::Flush => Self::Flush,
        }
    }
}

/// The latency bucket of `latency_ns`: its number of bits.
fn bucket(latency_ns: u64) -> usize {
    const LAST: u64 = (1 << (LATENCY_BUCKETS - 1)) - 1;
    // With a bit more at the end there is always one, so that the processor's own instruction has an answer.
    (latency_ns.min(LAST) << 1 | 1).ilog2() as usize
}

/// One kind's counters on one core.
#[derive(Debug)]
struct Counters {
    ops: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    latency_ns: AtomicU64,
    latency_ns_min: AtomicU64,
    latency_ns_max: AtomicU64,
    /// The generation that minimum and maximum belong to.
    generation: AtomicU64,
    buckets: [AtomicU64; LATENCY_BUCKETS],
}

impl Counters {
    fn new() -> Self {
        Self {
            ops: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency_ns: AtomicU64::new(0),
            latency_ns_min: AtomicU64::new(u64::MAX),
            latency_ns_max: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; LATENCY_BUCKETS],
        }
    }

    /// Adds without a locked instruction: the calling core is the only writer.
    fn add(counter: &AtomicU64, amount: u64) {
        counter.store(counter.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    fn record(&self, generation: u64, bytes: u64, latency_ns: u64) {
        Self::add(&self.ops, 1);
        Self::add(&self.bytes, bytes);
        Self::add(&self.latency_ns, latency_ns);
        Self::add(&self.buckets[bucket(latency_ns)], 1);
        if self.generation.load(Relaxed) != generation {
            self.latency_ns_min.store(u64::MAX, Relaxed);
            self.latency_ns_max.store(0, Relaxed);
            self.generation.store(generation, Relaxed);
        }
        if latency_ns < self.latency_ns_min.load(Relaxed) {
            self.latency_ns_min.store(latency_ns, Relaxed);
        }
        if latency_ns > self.latency_ns_max.load(Relaxed) {
            self.latency_ns_max.store(latency_ns, Relaxed);
        }
    }

    fn snapshot(&self, generation: u64) -> KindSnapshot {
        let current = self.generation.load(Relaxed) == generation;
        KindSnapshot {
            ops: self.ops.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            errors: self.errors.load(Relaxed),
            latency_ns: self.latency_ns.load(Relaxed),
            latency_ns_min: if current { self.latency_ns_min.load(Relaxed) } else { u64::MAX },
            latency_ns_max: if current { self.latency_ns_max.load(Relaxed) } else { 0 },
            buckets: core::array::from_fn(|bucket| self.buckets[bucket].load(Relaxed)),
        }
    }
}

/// One core's counters, on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
struct CoreCounters {
    kinds: [Counters; Kind::ALL.len()],
    copied_bytes: AtomicU64,
}

impl CoreCounters {
    fn new() -> Self {
        Self { kinds: core::array::from_fn(|_| Counters::new()), copied_bytes: AtomicU64::new(0) }
    }
}

/// The counters of one bdev. Made once with the bdev; cloned into its channels.
#[derive(Clone, Debug)]
pub struct Statistics {
    cores: Arc<[CoreCounters]>,
    /// Raised by the reader when minimum and maximum shall begin anew.
    generation: Arc<AtomicU64>,
}

impl Statistics {
    /// Counters for a process of `cores` cores.
    #[must_use]
    pub fn new(cores: u16) -> Self {
        let cores = (0..cores).map(|_| CoreCounters::new()).collect::<Vec<_>>();
        Self { cores: cores.into(), generation: Arc::new(AtomicU64::new(0)) }
    }

    /// Counts payload that a channel of the calling core copied on its way, since no device could reach it where it was.
    pub fn record_copied(&self, core: CoreId, bytes: u64) {
        Counters::add(&self.cores[usize::from(core.0)].copied_bytes, bytes);
    }

    /// What counts the I/Os of the calling core that have ended by now.
    fn recorder(&self, core: CoreId) -> Recorder<'_> {
        Recorder { kinds: &self.cores[usize::from(core.0)].kinds, generation: self.generation.load(Relaxed) }
    }

    /// What one core has counted since the bdev was made. Called by the control path.
    #[must_use]
    pub fn core(&self, core: CoreId) -> Snapshot {
        let generation = self.generation.load(Relaxed);
        let CoreCounters { kinds, copied_bytes } = &self.cores[usize::from(core.0)];
        Snapshot {
            kinds: core::array::from_fn(|kind| kinds[kind].snapshot(generation)),
            copied_bytes: copied_bytes.load(Relaxed),
        }
    }

    /// What each core has counted since the bdev was made.
    pub fn by_core(&self) -> impl Iterator<Item = (CoreId, Snapshot)> + '_ {
        (0..u16::try_from(self.cores.len()).unwrap_or(u16::MAX))
            .map(|core| (CoreId(core), self.core(CoreId(core))))
    }

    /// What all cores together have counted since the bdev was made.
    #[must_use]
    pub fn total(&self) -> Snapshot {
        self.by_core().fold(Snapshot::default(), |total, (_, core)| total.plus(&core))
    }

    /// Minimum and maximum latencies begin anew from the next I/O on. Called by the control path's core only.
    pub fn restart_extremes(&self) {
        Counters::add(&self.generation, 1);
    }
}

/// Counts what has ended on one core.
struct Recorder<'a> {
    kinds: &'a [Counters; Kind::ALL.len()],
    generation: u64,
}

impl Recorder<'_> {
    /// Counts one ended I/O. `bytes` count only when it succeeded.
    fn record(&self, kind: Kind, bytes: u64, latency_ns: u64, ok: bool) {
        let counters = &self.kinds[kind as usize];
        if ok {
            counters.record(self.generation, bytes, latency_ns);
        } else {
            Counters::add(&counters.errors, 1);
        }
    }
}

/// One kind of operation at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindSnapshot {
    /// Operations that succeeded.
    pub ops: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Operations that failed.
    pub errors: u64,
    /// The sum of the latencies of those that succeeded, in nanoseconds.
    pub latency_ns: u64,
    /// The least of them; `u64::MAX` when there was none.
    pub latency_ns_min: u64,
    /// The greatest of them; 0 when there was none.
    pub latency_ns_max: u64,
    /// How many fell into each bucket (see [`LATENCY_BUCKETS`]).
    pub buckets: [u64; LATENCY_BUCKETS],
}

impl Default for KindSnapshot {
    fn default() -> Self {
        Self {
            ops: 0,
            bytes: 0,
            errors: 0,
            latency_ns: 0,
            latency_ns_min: u64::MAX,
            latency_ns_max: 0,
            buckets: [0; LATENCY_BUCKETS],
        }
    }
}

/// All kinds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    kinds: [KindSnapshot; Kind::ALL.len()],
    copied_bytes: u64,
}

impl Snapshot {
    /// One kind of it.
    #[must_use]
    pub const fn kind(&self, kind: Kind) -> &KindSnapshot {
        &self.kinds[kind as usize]
    }

    /// Payload bytes that were copied on their way.
    #[must_use]
    pub const fn copied_bytes(&self) -> u64 {
        self.copied_bytes
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kinds.iter().all(|kind| kind.ops == 0 && kind.errors == 0)
    }

    /// Operations of every kind that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.errors).sum()
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.combine(other, u64::wrapping_add)
    }

    /// What was counted after `baseline`; minimum and maximum are this snapshot's.
    #[must_use]
    pub fn since(&self, baseline: &Self) -> Self {
        let mut difference = self.combine(baseline, u64::saturating_sub);
        for (kind, own) in difference.kinds.iter_mut().zip(&self.kinds) {
            kind.latency_ns_min = own.latency_ns_min;
            kind.latency_ns_max = own.latency_ns_max;
        }
        difference
    }

    /// This snapshot with another one's errors.
    #[must_use]
    pub fn with_errors_of(&self, other: &Self) -> Self {
        let mut mixed = *self;
        for (kind, other) in mixed.kinds.iter_mut().zip(&other.kinds) {
            kind.errors = other.errors;
        }
        mixed
    }

    fn combine(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        let kinds = core::array::from_fn(|index| {
            let (a, b) = (&self.kinds[index], &other.kinds[index]);
            KindSnapshot {
                ops: with(a.ops, b.ops),
                bytes: with(a.bytes, b.bytes),
                errors: with(a.errors, b.errors),
                latency_ns: with(a.latency_ns, b.latency_ns),
                latency_ns_min: a.latency_ns_min.min(b.latency_ns_min),
                latency_ns_max: a.latency_ns_max.max(b.latency_ns_max),
                buckets: core::array::from_fn(|bucket| with(a.buckets[bucket], b.buckets[bucket])),
            }
        });
        Self { kinds, copied_bytes: with(self.copied_bytes, other.copied_bytes) }
    }
}

/// A place of a [`Counted`] channel's table.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Of an I/O on its way.
    InFlight { token: u64, submitted: Instant, bytes: u64, kind: Kind },
    /// Of none; the next free place after it.
    Free { next: u32 },
}

/// A channel that counts: every bdev wraps its own channel in it, so that all front-ends are counted alike. It gives the
/// channel inside tokens below [`CHANNEL_DEPTH`], each in use once at a time, so that the inner channel may index by
/// them.
#[derive(Debug)]
pub struct Counted<C> {
    inner: C,
    core: CoreId,
    statistics: Statistics,
    /// By the inner channel's tokens.
    places: Box<[Place]>,
    /// The first free place; the table's length when there is none.
    free: u32,
}

impl<C> Counted<C> {
    /// A channel of `core` around `inner`.
    pub fn new(inner: C, core: CoreId, statistics: Statistics) -> Self {
        let places = (1..=CHANNEL_DEPTH as u32).map(|next| Place::Free { next }).collect();
        Self { inner, core, statistics, places, free: 0 }
    }
}

impl<P: Platform, C: Channel<P>> Channel<P> for Counted<C> {
    fn submit(&mut self, now: Instant, io: &Io<'_, P::Window>, token: u64) -> Result<(), ChannelFull> {
        let Some(place) = self.places.get_mut(self.free as usize) else { return Err(ChannelFull) };
        let Place::Free { next } = *place else { unreachable!("a free place has no I/O") };
        *place = Place::InFlight { token, submitted: now, bytes: io.len, kind: Kind::of(io.op) };
        if self.inner.submit(now, io, u64::from(self.free)).is_err() {
            *place = Place::Free { next };
            return Err(ChannelFull);
        }
        self.free = next;
        Ok(())
    }

    fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> bool {
        let first = completions.len();
        let worked = self.inner.poll(now, completions);
        let recorder = self.statistics.recorder(self.core);
        for completion in &mut completions[first..] {
            let place = &mut self.places[completion.token as usize];
            let Place::InFlight { token, submitted, bytes, kind } = *place else {
                panic!("a channel completed an I/O twice");
            };
            *place = Place::Free { next: self.free };
            self.free = completion.token as u32;
            completion.token = token;
            recorder.record(kind, bytes, now.since_ns(submitted), completion.result.is_ok());
        }
        worked
    }

    fn wake_at(&self) -> Option<Instant> {
        self.inner.wake_at()
    }

    fn arm(&self, wakes: &mut P::Wakes) {
        self.inner.arm(wakes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_latencies_below_its_power_of_two() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(1), 1);
        assert_eq!(bucket(1023), 10);
        assert_eq!(bucket(1024), 11);
        assert_eq!(bucket(u64::MAX), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn cores_count_apart_and_add_up() {
        let statistics = Statistics::new(2);
        statistics.recorder(CoreId(0)).record(Kind::Read, 4096, 100, true);
        statistics.recorder(CoreId(1)).record(Kind::Read, 512, 900, true);
        statistics.recorder(CoreId(1)).record(Kind::Write, 512, 900, false);
        assert_eq!(statistics.core(CoreId(0)).kind(Kind::Read).bytes, 4096);
        let total = statistics.total();
        let read = total.kind(Kind::Read);
        assert_eq!((read.ops, read.bytes, read.latency_ns), (2, 4608, 1000));
        assert_eq!((read.latency_ns_min, read.latency_ns_max), (100, 900));
        assert_eq!((total.kind(Kind::Write).ops, total.errors()), (0, 1));
        statistics.record_copied(CoreId(1), 512);
        assert_eq!(statistics.total().copied_bytes(), 512);
        assert_eq!(read.buckets[7] + read.buckets[10], 2);
    }

    #[test]
    fn a_baseline_is_subtracted_and_extremes_begin_anew() {
        let statistics = Statistics::new(1);
        statistics.recorder(CoreId(0)).record(Kind::Write, 512, 5, true);
        let baseline = statistics.total();
        statistics.restart_extremes();
        let nothing = statistics.total().since(&baseline);
        assert!(nothing.is_empty());
        assert_eq!(
            (nothing.kind(Kind::Write).latency_ns_min, nothing.kind(Kind::Write).latency_ns_max),
            (u64::MAX, 0)
        );
        statistics.recorder(CoreId(0)).record(Kind::Write, 512, 50, true);
        let since = statistics.total().since(&baseline);
        let write = since.kind(Kind::Write);
        assert_eq!(
            (write.ops, write.latency_ns, write.latency_ns_min, write.latency_ns_max),
            (1, 50, 50, 50)
        );
    }
}
