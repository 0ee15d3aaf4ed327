//! What the flight recorder's events mean: a number, a name and the meaning of the operands for each kind.

use core::fmt;
use runtime::Event;

/// Prints an event as logs do, without its time: `request-submitted device 1 queue 0: op 1, head 7, offset 4096`.
pub struct Line<'a>(pub &'a Event);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event { kind, device, queue, detail, a, b, .. } = *self.0;
        let Some(kind) = Kind::from_number(kind) else {
            return write!(f, "unknown event {kind} device {device} queue {queue}: {detail}, {a}, {b}");
        };
        write!(f, "{} device {device} queue {queue}", kind.name())?;
        let operands = kind.operands().into_iter().zip([u64::from(detail), a, b]);
        for (index, (name, value)) in operands.filter(|(name, _)| !name.is_empty()).enumerate() {
            write!(f, "{} {name} {value}", if index == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

/// Defines the kinds once, with number, name and the names of detail and operands.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal, $name:literal, [$detail:literal, $a:literal, $b:literal];)*) => {
        /// A kind of event. Numbers are part of the recorder's file format: they are never used again for another kind.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Kind {
            $($(#[$doc])* $kind = $number,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The kind with this number.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$kind),)*
                    _ => None,
                }
            }

            /// The name, as logs print it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// What `detail`, `a` and `b` are; empty where they are not used.
            #[must_use]
            pub const fn operands(self) -> [&'static str; 3] {
                match self {
                    $(Self::$kind => [$detail, $a, $b],)*
                }
            }
        }
    };
}

kinds! {
    /// An operation was given to the bdev. Detail: 0 read, 1 write, 2 write with FUA, 3 flush, 4 discard, 5 write zeroes.
    RequestSubmitted = 1, "request-submitted", ["op", "head", "offset"];
    /// A request was answered. Detail: the virtio-blk status.
    RequestCompleted = 2, "request-completed", ["status", "head", "bytes"];
    /// A request that a dead life had taken will be submitted again.
    RequestReplayed = 3, "request-replayed", ["", "head", ""];
    /// A chain could not be walked and was given back with length 0.
    ChainMalformed = 4, "chain-malformed", ["", "head", ""];
    /// A queue runs.
    QueueStarted = 5, "queue-started", ["size", "next", ""];
    /// A queue was drained and stopped.
    QueueStopped = 6, "queue-stopped", ["size", "next", ""];
    /// A front-end connected.
    SessionOpened = 16, "session-opened", ["", "", ""];
    /// The connection to a front-end will be closed once nothing is in flight. Detail: 0 the front-end closed it,
    /// 1 it broke the protocol, 2 its memory went away, 3 the controller stops.
    SessionEnding = 17, "session-ending", ["reason", "in-flight", ""];
    /// The connection is closed; the next front-end may come.
    SessionClosed = 18, "session-closed", ["", "", ""];
    /// A message of the front-end. Detail: the request's number.
    MessageReceived = 19, "message-received", ["request", "flags", "handles"];
    /// A message waits until nothing is in flight (of its queue, or at all).
    MessageWaits = 20, "message-waits", ["request", "in-flight", ""];
    /// A message was carried out or refused. `refused`: 0 or 1.
    MessageDone = 21, "message-done", ["request", "refused", ""];
    /// The front-end was told that the configuration space has changed.
    ConfigChangeTold = 22, "config-change-told", ["", "", ""];
    /// The front-end was told, by a message, that a ring has something given back.
    CallTold = 23, "call-told", ["", "", ""];
    /// The front-end was told, by a message, that a ring is of no use.
    ErrorTold = 24, "error-told", ["", "", ""];
    /// The lock of a file was had, which fences off a dead life's I/O.
    FileFenced = 32, "file-fenced", ["", "waited-ns", ""];
    /// The state directory was read.
    StateRead = 33, "state-read", ["", "bdevs", "controllers"];
    /// A changed state was made durable, or was not. `failed`: 0 or 1.
    StateSaved = 34, "state-saved", ["failed", "bdevs", "controllers"];
    /// A change was answered. `code` is the error's with its sign taken off, 0 when it was made.
    ChangeAnswered = 35, "change-answered", ["", "code", ""];
    /// The target listens for calls.
    TargetServes = 36, "target-serves", ["", "", ""];
    /// The target was asked to stop, or cannot go on.
    TargetStops = 37, "target-stops", ["", "", ""];
    /// An NVMe controller is ready, for the first time or again.
    NvmeReady = 48, "nvme-ready", ["", "queues", "namespaces"];
    /// An I/O command takes too long, and the controller was asked to abort it.
    NvmeAbort = 49, "nvme-abort", ["", "command", ""];
    /// An NVMe controller is reset: it is disabled and enabled again.
    NvmeReset = 50, "nvme-reset", ["", "", ""];
    /// An NVMe controller's function is reset.
    NvmeFunctionReset = 51, "nvme-function-reset", ["", "", ""];
    /// An NVMe controller is given up.
    NvmeFailed = 52, "nvme-failed", ["", "", ""];
}
