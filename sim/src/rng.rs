//! Randomness by named stream: each subject of a run draws from a ChaCha8 stream of its own, so that a draw in one never
//! shifts another, and removing one fault does not roll a new world. Integers only.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::fmt;

thread_local! {
    /// A running digest of every word drawn on this thread; the trace of a run takes it in at each step.
    static DRAWN: Cell<u64> = const { Cell::new(0) };
    /// Which numbers the subjects of the run on this thread draw.
    static NUMBERS: Cell<Numbers> = const { Cell::new(Numbers([0; SUBJECTS.len()])) };
}

/// Whether a stream is a subject's.
type HasStream = fn(u64) -> bool;

/// The subjects of a run that may draw other numbers than the seed's, and which streams are theirs. The plan is always the
/// seed's.
const SUBJECTS: [(&str, HasStream); 4] = [
    ("schedule", |stream| matches!(stream, 1 | 3 | 4 | 6 | 7)),
    ("device", |stream| matches!(stream, 2 | 5)),
    ("faults", |stream| matches!(stream, 1000..2000)),
    ("load", |stream| matches!(stream, 10_000..40_000 | 50_000..90_000)),
];

/// For each subject, which numbers it draws: 0, those of the seed; else others, that are no other seed's. Runs with the same
/// seed and other numbers are neighbours: one of them differs from another in nothing but the subjects whose numbers differ.
/// Written `schedule3.faults9`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Numbers([u32; SUBJECTS.len()]);

impl Numbers {
    /// Whether all are the seed's own.
    #[must_use]
    pub fn are_plain(&self) -> bool {
        self.0 == [0; SUBJECTS.len()]
    }

    /// Gives one subject, drawn, other numbers.
    pub fn redraw(&mut self, rng: &mut Rng) {
        let subject = rng.below(self.0.len() as u64) as usize;
        self.0[subject] = 1 + rng.below(999_999) as u32;
    }

    /// The numbers that every stream made on this thread draws from now on.
    pub(crate) fn set(self) {
        NUMBERS.set(self);
    }

    fn of_stream(self, stream: u64) -> u32 {
        SUBJECTS.iter().position(|(_, has)| has(stream)).map_or(0, |subject| self.0[subject])
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others = SUBJECTS.iter().zip(self.0).filter(|(_, number)| *number != 0);
        for (place, ((subject, _), number)) in others.enumerate() {
            write!(f, "{}{subject}{number}", if place == 0 { "" } else { "." })?;
        }
        Ok(())
    }
}

impl From<Numbers> for String {
    fn from(numbers: Numbers) -> Self {
        numbers.to_string()
    }
}

impl TryFrom<String> for Numbers {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut numbers = Self::default();
        for part in text.split('.').filter(|_| !text.is_empty()) {
            let known = SUBJECTS.iter().enumerate().find_map(|(subject, (name, _))| {
                let number = part.strip_prefix(name)?.parse().ok()?;
                Some((subject, number))
            });
            let Some((subject, number)) = known else {
                let names = SUBJECTS.map(|(name, _)| name).join(", ");
                return Err(format!(
                    "`{part}` names no numbers; allowed: one of {names} with a number behind it"
                ));
            };
            numbers.0[subject] = number;
        }
        Ok(numbers)
    }
}

/// The digest of the words drawn on this thread since [`forget_drawn`].
#[inline]
pub(crate) fn drawn() -> u64 {
    DRAWN.get()
}

/// Takes a word into the digest.
#[inline]
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
        let number = u64::from(NUMBERS.get().of_stream(stream));
        // Far from the seeds that people count from.
        let seed = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
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
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a draw among nothing");
        // Multiply and shift: the bias is far below what any checker could see, and one word is drawn whatever the bound.
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// True `times` out of `of` times.
    #[inline]
    pub fn chance(&mut self, times: u32, of: u32) -> bool {
        self.below(of.into()) < times.into()
    }

    /// A number from `low` to `high`, both included.
    #[inline]
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }
}
