//! Randomness by named stream: each subject of a run draws from a ChaCha8 stream of its own, so that a draw in one never
//! shifts another, and removing one fault does not roll a new world. Integers only.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use std::cell::Cell;

thread_local! {
    /// A running digest of every word drawn on this thread; the trace of a run takes it in at each step.
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

/// The digest of the words drawn on this thread since [`forget_drawn`].
pub(crate) fn drawn() -> u64 {
    DRAWN.get()
}

/// Takes a word into the digest.
pub(crate) fn note(word: u64) {
    // An odd multiplier and a rotation: every bit of every word, and their order, end up in the digest.
    DRAWN.with(|drawn| drawn.set((drawn.get().rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
}

/// Begins the digest anew.
pub(crate) fn forget_drawn() {
    DRAWN.set(0);
}

/// One stream of draws.
#[derive(Clone, Debug)]
pub struct Rng {
    words: ChaCha8Rng,
    /// Its words go into the digest.
    noted: bool,
}

impl Rng {
    /// The stream `stream` of a seed.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { words: rng, noted: true }
    }

    /// A stream whose words stay out of the digest: that of a kind of fault, since a replay, which draws no faults, is
    /// the same run. What strikes is noted instead.
    #[must_use]
    pub(crate) fn unnoted(seed: u64, stream: u64) -> Self {
        Self { noted: false, ..Self::new(seed, stream) }
    }

    /// A word.
    #[inline]
    pub fn word(&mut self) -> u64 {
        let word = self.words.next_u64();
        if self.noted {
            note(word);
        }
        word
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a draw among nothing");
        // Multiply and shift: the bias is far below what any checker could see, and one word is drawn whatever the bound.
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// True `times` out of `of` times.
    pub fn chance(&mut self, times: u32, of: u32) -> bool {
        self.below(of.into()) < times.into()
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }
}
