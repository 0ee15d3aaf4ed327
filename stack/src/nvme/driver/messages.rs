//! What the controller and its channels say to each other, over mailboxes.
//!
//! A channel asks to be attached and is started with a queue of its own. Before a reset it is told to be quiet, and
//! answers; until it is started anew it touches neither its queue nor its doorbells, and completes nothing. A channel says
//! which command takes too long, and when its queue cannot be trusted any more.

use super::doorbell::ShadowPages;
use super::failure::Failure;
use super::identity::Limits;
use super::memory::Part;
use super::{PciOf, RegistersOf};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use runtime::{CoreId, ErrorKind, Platform, Sender};

/// Messages that wait for the controller. Each channel has at most [`CHANNEL_MESSAGES`] on their way to it.
pub(super) const INBOX: usize = 1024;
/// Messages that one channel may have on their way, in either direction.
pub(super) const CHANNEL_MESSAGES: usize = 8;

/// Names a channel for as long as the controller lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ChannelId(pub(super) u32);

/// A queue for a channel, zeroed and created.
pub(super) struct Queue<P: Platform, X: PciOf<P>> {
    /// Its number, 1 and up.
    pub(super) id: u16,
    pub(super) entries: u16,
    pub(super) submissions: Part<P::Window>,
    pub(super) completions: Part<P::Window>,
    /// A list for each command.
    pub(super) lists: Part<P::Window>,
    pub(super) bounces: Part<P::Window>,
    /// Device address of a page of zeroes.
    pub(super) zeroes: u64,
    pub(super) registers: RegistersOf<X>,
    pub(super) dstrd: u64,
    pub(super) shadow: Option<ShadowPages<P::Window>>,
    pub(super) dma: X::Dma,
    pub(super) nsid: u32,
    pub(super) limits: Limits,
    /// Its interrupt, where that is not the one that the channel has already.
    pub(super) notifier: Option<P::Notifier>,
}

/// From a channel to the controller.
pub(super) enum ToController<P: Platform, X: PciOf<P>> {
    /// A new channel wants a queue.
    Attach { channel: ChannelId, core: CoreId, nsid: u32, to: P::Sender<ToChannel<P, X>> },
    /// The channel is quiet.
    Quiet { channel: ChannelId },
    /// The command takes too long: abort it.
    Late { channel: ChannelId, id: u16 },
    /// The queue is of no more use: reset the controller.
    Stuck { channel: ChannelId, why: Failure },
    /// The channel is gone, with nothing in flight.
    Detach { channel: ChannelId, notifier: Option<P::Notifier> },
}

/// From the controller to a channel.
pub(super) enum ToChannel<P: Platform, X: PciOf<P>> {
    /// Begin, or go on, with this queue. What was out on the old one is lost and harmless.
    Start(Box<Queue<P, X>>),
    /// Be quiet, and say so.
    BeQuiet,
    /// There is no queue, and none to be had soon: what waits fails, and what comes, until there is one after all.
    Refuse(Failure),
    /// There is no queue any more, and there will be none. What was out is harmless.
    Fail(Failure),
}

/// The way to a controller: where channels of a namespace are made, on any core.
pub struct Link<P: Platform, X: PciOf<P>> {
    pub(super) to: P::Sender<ToController<P, X>>,
    next: Arc<AtomicU32>,
}

impl<P: Platform, X: PciOf<P>> Clone for Link<P, X> {
    fn clone(&self) -> Self {
        Self { to: self.to.clone(), next: Arc::clone(&self.next) }
    }
}

impl<P: Platform, X: PciOf<P>> Link<P, X> {
    pub(super) fn new(to: P::Sender<ToController<P, X>>) -> Self {
        Self { to, next: Arc::new(AtomicU32::new(0)) }
    }

    pub(super) fn next_channel(&self) -> ChannelId {
        ChannelId(self.next.fetch_add(1, Relaxed))
    }

    /// Asks for a queue for a channel that receives from the mailbox. Errors: `OutOfResources` when the controller cannot
    /// take the message.
    pub(super) fn attach(
        &self,
        channel: ChannelId,
        core: CoreId,
        nsid: u32,
        to: P::Sender<ToChannel<P, X>>,
    ) -> runtime::Result<()> {
        let message = ToController::Attach { channel, core, nsid, to };
        self.to.send(message).map_err(|_| ErrorKind::OutOfResources.into())
    }
}
