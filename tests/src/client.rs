//! The clients, from the bottom up.
//!
//! * [`memory`]: guest memory in memfds, and [`ring`]: the driver's side of a split virtqueue in it.
//! * [`frontend`]: a front-end over the `vhost` crate that connects, reconnects and stops in the order QEMU was seen to;
//!   [`raw`]: the same socket for bytes that no well-behaved library would send.
//! * [`model`]: what each sector may hold, and [`load`]: a seeded, verified load on all queues of a front-end.
//! * [`request`]: single requests with any chain.
//! * [`blkio`]: the same judgement through the `blkio` crate, and its timing loop for the benchmark.

pub mod blkio;
pub mod frontend;
pub mod load;
pub mod memory;
pub mod model;
pub mod raw;
pub mod request;
pub mod ring;

use std::time::Duration;

/// What a client found wrong. A client never guesses on: the first violation ends its run.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The operating system refused something.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The `vhost` crate's front-end refused the back-end's answer, or the connection broke.
    #[error("vhost-user {message}: {source}")]
    Message {
        /// The message that was sent.
        message: &'static str,
        /// The crate's own error.
        source: vhost::Error,
    },
    /// The back-end does not offer what the test needs.
    #[error("the back-end does not offer {0}")]
    NotOffered(String),
    /// The target broke a promise: a request completed twice, a wrong byte, a buffer written after its completion.
    #[error("violation: {0}")]
    Violation(String),
    /// Something that had to happen did not.
    #[error("nothing for {waited:?} while waiting for {what}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        waited: Duration,
    },
}

impl ClientError {
    /// An I/O error with what was being done.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> ClientError {
        let doing = doing.into();
        move |source| ClientError::Io { doing, source }
    }

    /// A `vhost` crate error with the message that was sent.
    pub fn message(message: &'static str) -> impl FnOnce(vhost::Error) -> ClientError {
        move |source| ClientError::Message { message, source }
    }
}

/// The clients' result.
pub type Result<T> = std::result::Result<T, ClientError>;

/// A small seeded generator (SplitMix64), so that a failing run can be repeated with the seed it printed.
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// A generator that gives the same words for the same seed.
    pub fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    /// The next word.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound
    }

    /// True in `numerator` of `denominator` draws.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }
}

/// SplitMix64's output function: a good mix of one word.
pub(crate) fn mix(word: u64) -> u64 {
    let mut mixed = word;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
