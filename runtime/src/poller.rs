//! Units of work on a core, and how a core goes to sleep without losing a wake-up.

use crate::{Instant, Platform};

/// What a poll found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// There was work, or there may be more: poll again.
    Busy,
    /// A promise: nothing to do until something that [`Poller::arm`] registers changes, or until the moment given.
    Idle {
        /// The earliest time to poll again though nothing changed; `None`: never.
        until: Option<Instant>,
    },
    /// The poller is finished and may be dropped.
    Done,
}

/// A unit of work that lives on one core. It never blocks and keeps each poll short (bounded by named constants).
///
/// A core polls all its pollers in turn. When all of them are idle it may sleep: it calls [`Poller::arm`] on each, and
/// sleeps only if none answered `Busy`. The simulator draws, for each core, whether it polls or sleeps; a sleeping core
/// is woken only by what was armed and by the earliest `until` that `arm` answered.
pub trait Poller<P: Platform> {
    /// Does what there is to do. Also undoes, where it matters, what `arm` asked of others (notifications).
    fn poll(&mut self, now: Instant) -> Poll;

    /// Before sleep: asks the others for notifications, fences, looks again (and answers `Busy` when there is work
    /// after all), and registers with `wakes` everything that may wake it. The sleep ends by that or at the `until` of
    /// this answer; that of the last poll counts for a core that polls on, which sees nothing of what was registered.
    fn arm(&mut self, now: Instant, wakes: &mut P::Wakes) -> Poll;
}

/// What a stream is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to receive, or the other end's close.
    Receive,
    /// Those, or room to send.
    ReceiveAndSend,
    /// Only the other end's close for good, as [`crate::Stream::is_closed`] tells it; of unix streams.
    Close,
}

/// Collects what may wake a core. Level-triggered: something that is ready already ends the sleep at once.
pub trait Wakes<P: Platform> {
    /// A ring of the notifier that was not taken yet.
    fn notifier(&mut self, notifier: &P::Notifier);
    /// A connection to accept.
    fn listener(&mut self, listener: &P::Listener);
    /// The stream.
    fn stream(&mut self, stream: &P::Stream, interest: Interest);
    /// A TCP connection to accept.
    fn tcp_listener(&mut self, listener: &P::TcpListener);
    /// A TCP stream: bytes that [`crate::TcpStream::peek`] has not shown yet, the end of the connection or of its making, a
    /// token to take.
    fn tcp_stream(&mut self, stream: &P::TcpStream, interest: Interest);
    /// A completion to take.
    fn channel(&mut self, channel: &P::Channel);
    /// A message to receive.
    fn mailbox<T: Send + 'static>(&mut self, receiver: &P::Receiver<T>);
    /// The end of an offloaded job.
    fn job<T: Send + 'static>(&mut self, job: &P::Job<T>);
}
