//! One core's channels to the disks of a subsystem, shared by the queues of that core.
//!
//! A namespace that is taken away, or whose disk is another one now, takes no more commands; its channel goes when its last
//! I/O has ended. A disk that cannot be used on this core fails its commands, and is tried again with the next change.

use super::Subsystem;
use crate::block::{Bdev, Channel, ChannelFull, Completion, Geometry, Io};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use runtime::{Instant, Platform};

/// A disk in use.
struct Open<P: Platform> {
    namespace: u32,
    bdev: Arc<dyn Bdev<P>>,
    geometry: Geometry,
    channel: Box<dyn Channel<P>>,
    in_flight: usize,
    /// Takes no more.
    is_retired: bool,
}

/// The channels of one subsystem on one core.
pub struct Channels<P: Platform> {
    platform: P,
    open: Vec<Open<P>>,
}

impl<P: Platform> Channels<P> {
    /// Opens the disks of a subsystem.
    pub fn new(platform: P, subsystem: &Subsystem<P>) -> Self {
        let mut channels = Self { platform, open: Vec::new() };
        channels.update(Some(subsystem));
        channels
    }

    /// Takes over what the subsystem has now; `None`: it is no more.
    pub fn update(&mut self, subsystem: Option<&Subsystem<P>>) {
        for open in &mut self.open {
            let same = subsystem.and_then(|subsystem| subsystem.namespace(open.namespace));
            match same.filter(|(_, bdev)| Arc::ptr_eq(bdev, &open.bdev)) {
                Some((_, bdev)) => open.geometry = bdev.geometry(),
                None => open.is_retired = true,
            }
        }
        self.drop_retired();
        let Some(subsystem) = subsystem else { return };
        for id in subsystem.active() {
            if self.find(id).is_some() {
                continue;
            }
            let Some((_, bdev)) = subsystem.namespace(id) else { continue };
            match bdev.channel(&self.platform) {
                Ok(channel) => self.open.push(Open {
                    namespace: id,
                    geometry: bdev.geometry(),
                    bdev: bdev.clone(),
                    channel,
                    in_flight: 0,
                    is_retired: false,
                }),
                Err(error) => tracing::error!(
                    subsystem = %subsystem.nqn,
                    namespace = id,
                    bdev = bdev.name(),
                    %error,
                    "the bdev cannot be used on this core"
                ),
            }
        }
    }

    fn drop_retired(&mut self) {
        self.open.retain(|open| !open.is_retired || open.in_flight > 0);
    }

    /// Where the disk of a namespace is, for [`Channels::geometry`] and [`Channels::submit`] before the next poll.
    #[must_use]
    #[inline]
    pub fn find(&self, namespace: u32) -> Option<usize> {
        self.open.iter().position(|open| open.namespace == namespace && !open.is_retired)
    }

    /// The geometry of a disk.
    #[must_use]
    #[inline]
    pub fn geometry(&self, at: usize) -> &Geometry {
        &self.open[at].geometry
    }

    /// Submits an I/O to a disk.
    #[inline]
    pub fn submit(
        &mut self,
        at: usize,
        now: Instant,
        io: &Io<'_, P::Window>,
        token: u64,
    ) -> Result<(), ChannelFull> {
        let open = &mut self.open[at];
        open.channel.submit(now, io, token)?;
        open.in_flight += 1;
        Ok(())
    }

    /// Takes what has ended, pushed to `completions`. Whether there was work.
    pub fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> bool {
        let mut worked = false;
        for open in &mut self.open {
            let before = completions.len();
            worked |= open.channel.poll(now, completions);
            open.in_flight -= completions.len() - before;
        }
        if self.open.iter().any(|open| open.is_retired) {
            self.drop_retired();
        }
        worked
    }

    /// Whether a disk that was taken away is still in use, or, without a subsystem, any.
    #[must_use]
    pub fn has_retired(&self) -> bool {
        self.open.iter().any(|open| open.is_retired)
    }

    /// The earliest moment at which a disk wants to be polled though nothing changed.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.open.iter().filter_map(|open| open.channel.wake_at()).min()
    }

    /// Registers what tells that something has ended.
    pub fn arm(&self, wakes: &mut P::Wakes) {
        for open in &self.open {
            open.channel.arm(wakes);
        }
    }
}
