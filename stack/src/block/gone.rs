//! The channel of a bdev that is gone: everything fails at once.

use super::{Channel, ChannelFull, Completion, Io, IoError};
use alloc::vec::Vec;
use runtime::{ErrorKind, Instant, Platform};

/// What a front-end has while its bdev is gone and no other one is there.
#[derive(Debug, Default)]
pub struct GoneChannel(Vec<Completion>);

impl<P: Platform> Channel<P> for GoneChannel {
    fn submit(&mut self, _: Instant, _: &Io<'_, P::Window>, token: u64) -> Result<(), ChannelFull> {
        self.0.push(Completion { token, result: Err(IoError::Medium(ErrorKind::NotFound)) });
        Ok(())
    }

    fn poll(&mut self, _: Instant, completions: &mut Vec<Completion>) -> bool {
        let worked = !self.0.is_empty();
        completions.append(&mut self.0);
        worked
    }

    fn wake_at(&self) -> Option<Instant> {
        (!self.0.is_empty()).then_some(Instant(0))
    }

    fn arm(&self, _: &mut P::Wakes) {}
}
