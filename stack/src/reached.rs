//! Points of the stack that a search of failures must come to sometimes: each branch of recovery, each way in which
//! something is refused or fails, each rung of a ladder. The simulator counts them; a real host pays nothing.
//!
//! A point is an event of the flight recorder where there is one that says the same, and else a mark in the code
//! ([`Reached::mark`]). The list is closed, and says of each point where it is and which group of scenarios comes to
//! it, or why none does: a sweep names those that were never reached, and docs/points.md has them all.

use crate::events::Kind;
use runtime::{Event, Window};

/// How a point is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// By a mark in this file of the stack.
    Mark(&'static str),
    /// By an event of the flight recorder.
    Event(Kind, When),
}

/// Which events of a kind count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// All.
    Any,
    /// Those with this detail.
    Detail(u16),
    /// Those whose first operand is not 0.
    Counted,
}

impl When {
    #[inline]
    const fn holds(self, event: &Event) -> bool {
        match self {
            Self::Any => true,
            Self::Detail(detail) => event.detail == detail,
            Self::Counted => event.a != 0,
        }
    }
}

/// Whether scenarios come to a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Those of this group do.
    Group(&'static str),
    /// None does, for this reason.
    Nobody(&'static str),
}

/// Defines the points: the marks by group and file, and the events by group.
macro_rules! points {
    (@by $group:literal) => { By::Group($group) };
    (@by $group:literal $reason:literal) => { By::Nobody($reason) };
    (
        marks {$(
            $mark_group:literal, $file:literal {
                $(#[doc = $mark_about:literal] $mark:ident = $mark_name:literal $(, never: $mark_reason:literal)?;)*
            }
        )*}
        events {$(
            $event_group:literal {
                $(#[doc = $event_about:literal] $point:ident = $event_name:literal: $kind:ident, $when:expr
                    $(, never: $event_reason:literal)?;)*
            }
        )*}
    ) => {
        /// A point.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Reached {
            $($(#[doc = $mark_about] $mark,)*)*
            $($(#[doc = $event_about] $point,)*)*
        }

        impl Reached {
            /// All points, in the order of their numbers.
            pub const ALL: &[Self] = &[$($(Self::$mark,)*)* $($(Self::$point,)*)*];

            /// Its name, as outputs show it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$mark => $mark_name,)*)*
                    $($(Self::$point => $event_name,)*)*
                }
            }

            /// What happens there, in a sentence.
            #[must_use]
            pub fn about(self) -> &'static str {
                match self {
                    $($(Self::$mark => $mark_about,)*)*
                    $($(Self::$point => $event_about,)*)*
                }
                .trim_ascii()
            }

            /// How it is counted.
            #[must_use]
            pub const fn source(self) -> Source {
                match self {
                    $($(Self::$mark => Source::Mark($file),)*)*
                    $($(Self::$point => Source::Event(Kind::$kind, $when),)*)*
                }
            }

            /// Which scenarios come to it.
            #[must_use]
            pub const fn by(self) -> By {
                match self {
                    $($(Self::$mark => points!(@by $mark_group $($mark_reason)?),)*)*
                    $($(Self::$point => points!(@by $event_group $($event_reason)?),)*)*
                }
            }

            /// The point that an event of the flight recorder stands for, if it does for one.
            #[inline]
            #[must_use]
            pub fn of_event(event: &Event) -> Option<Self> {
                match Kind::from_number(event.kind)? {
                    $($(Kind::$kind if const { $when }.holds(event) => Some(Self::$point),)*)*
                    #[allow(unreachable_patterns, reason = "there may be points for all kinds")]
                    _ => None,
                }
            }
        }
    };
}

impl Reached {
    /// The code has come here.
    #[inline(always)]
    pub fn mark<W: Window>(self) {
        W::reached(self as u16);
    }
}

points! {
    marks {
        "vhost", "virtio/inflight/split.rs" {
            /// A split ring's part of an inflight region that was never used is laid out.
            SplitFresh = "split-fresh";
            /// The same for a ring whose used index is not at 0: tracking begins in its middle.
            SplitFreshOnOldRing = "split-fresh-on-old-ring";
            /// A split ring is recovered that has no request out.
            SplitNothingOut = "split-nothing-out";
            /// A split ring's heads are to be submitted again.
            SplitResubmits = "split-resubmits";
            /// The last batch was published, and all flags of its heads are still set.
            SplitBatchNotCleared = "split-batch-not-cleared";
            /// The last batch was published, and some flags of its heads are cleared and some are not.
            SplitBatchHalfCleared = "split-batch-half-cleared";
            /// The last batch was published and its flags are cleared, but the region's used index is behind.
            SplitBatchIndexBehind = "split-batch-index-behind";
        }
        "vhost", "virtio/inflight/packed.rs" {
            /// A packed ring's part of an inflight region that was never used is laid out.
            PackedFresh = "packed-fresh";
            /// The same for a ring that is not at its beginning: tracking begins in its middle.
            PackedFreshOnOldRing = "packed-fresh-on-old-ring";
            /// A packed ring is recovered that has no request out.
            PackedNothingOut = "packed-nothing-out";
            /// A packed ring's requests are to be submitted again.
            PackedResubmits = "packed-resubmits";
            /// A death after a used descriptor reached the ring and before the region says so: it is done.
            PackedCommitted = "packed-committed";
            /// A death after the region's positions moved and before the used descriptor: it never happened.
            PackedRolledBack = "packed-rolled-back";
            /// A death while a request was being taken: its entries are free again.
            PackedTakenBack = "packed-taken-back";
            /// A free entry's inflight flag was still set.
            PackedStaleFlag = "packed-stale-flag";
        }
        "vhost", "virtio/inflight/mod.rs" {
            /// A region is refused: too short for its ring, or misaligned.
            RegionArea = "region-area";
            /// A region is refused: another version.
            RegionVersion = "region-version";
            /// A region is refused: it tracks a ring of another size.
            RegionSize = "region-size";
            /// A region is refused: its last batch would be longer than the ring.
            RegionBatch = "region-batch";
            /// A region is refused: the list of the last batch leaves the table or meets itself.
            RegionBatchList = "region-batch-list";
            /// A region is refused: an inflight flag is neither 0 nor 1.
            RegionFlag = "region-flag";
            /// A region is refused: two requests have one counter, or one is at the counter's end.
            RegionCounter = "region-counter";
            /// A packed region is refused: its used position is none of the ring.
            RegionPosition = "region-position";
            /// A packed region is refused: the list of free entries leaves the table or meets itself.
            RegionFreeList = "region-free-list";
            /// A packed region is refused: a request's entries are not its own.
            RegionRequest = "region-request";
            /// A packed region is refused: entries are neither free nor a request's.
            RegionEntries = "region-entries";
        }
        "vhost", "virtio/ring.rs" {
            /// A split ring's region knows more than the front-end's base, and wins.
            SplitBaseOverruled = "split-base-overruled";
            /// A front-end's base of a split ring is behind what was given back, and is not believed.
            SplitBaseBehind = "split-base-behind";
            /// A packed ring's region knows more than the front-end's base, and wins.
            PackedBaseOverruled = "packed-base-overruled";
        }
        "vhost", "virtio/split.rs" {
            /// A ring is refused: a size that its layout does not allow.
            RingSize = "ring-size";
            /// A ring is refused: an area is too short or misaligned.
            RingArea = "ring-area";
            /// A ring breaks: the available index is further ahead than the ring is long.
            RingAvailableJump = "ring-available-jump";
            /// A ring breaks: a head beyond the table.
            RingHead = "ring-head";
            /// A ring breaks: a head that was not given back yet.
            RingHeadInFlight = "ring-head-in-flight";
            /// A ring is refused: it cannot go on at the base that the front-end gave.
            RingBase = "ring-base";
            /// A packed ring breaks: more descriptors were made available than it has places.
            RingOverrun = "ring-overrun";
        }
        "vhost", "virtio/chain.rs" {
            /// A chain is given back unread: it loops.
            ChainLoop = "chain-loop";
            /// A chain is given back unread: it leaves its table.
            ChainNext = "chain-next";
            /// A chain is given back unread: a buffer or a table is outside of guest memory.
            ChainUnmapped = "chain-unmapped";
            /// A chain is given back unread: a readable buffer follows a writable one.
            ChainOrder = "chain-order";
            /// A chain is given back unread: too many descriptors or segments.
            ChainTooLong = "chain-too-long";
            /// A chain is given back unread: an indirect descriptor where none may be.
            ChainIndirect = "chain-indirect";
            /// A chain is given back unread: no room for a status.
            ChainFrame = "chain-frame";
        }
        "vhost", "virtio/blk/mod.rs" {
            /// A queue is asked for what no session asks: one that is not there, runs already, or has no features.
            QueueMisused = "queue-misused", never: "the session asks for existing queues that do not run, once features are known";
            /// A ring is refused: the inflight region is laid out for rings of the other layout.
            RegionLayout = "region-layout";
            /// The setting of the write cache is taken over from a former life's region.
            WriteCacheRecovered = "write-cache-recovered";
            /// A poll took what one poll may take, and the next one goes on with another queue.
            BudgetSpent = "budget-spent";
            /// All request slots of a device are in use.
            SlotsUsedUp = "slots-used-up";
            /// A stopped queue's driver is told at last of what a dead life published.
            NotificationAtStop = "notification-at-stop";
        }
        "vhost", "virtio/blk/queue.rs" {
            /// A request of a dead life waits for a slot, for room in the channel, or for the next poll's share.
            BacklogWaits = "backlog-waits";
            /// Used entries were published, and the driver does not want to be told.
            NotificationSuppressed = "notification-suppressed";
            /// The driver is told once whatever it asked for, since a dead life may not have told it.
            NotificationOwed = "notification-owed";
            /// Work was found after notifications were asked for, before sleep.
            WorkBeforeSleep = "work-before-sleep";
        }
        "vhost", "virtio/blk/request.rs" {
            /// A request is refused: it has no whole header.
            HeaderShort = "header-short";
            /// A write is refused: the device is read-only.
            WriteReadOnly = "write-read-only", never: "the simulator's operator makes no read-only controllers (`tests/tests/blk_device.rs` does)";
            /// A read or write is refused: outside of the device, not in whole blocks, or longer than a chain may be.
            TransferOutside = "transfer-outside";
            /// A read or write is too long to be done at once, and is done in pieces.
            TransferInPieces = "transfer-in-pieces";
            /// A request is refused: its type is not understood, or was not negotiated.
            TypeUnknown = "type-unknown";
            /// Ranges are refused: none, too many, or not whole.
            RangesLen = "ranges-len";
            /// A range is refused: flags that are not understood.
            RangeFlags = "range-flags";
            /// A range is refused: outside of the device, not in whole blocks, or too long.
            RangeOutside = "range-outside";
        }
        "vhost", "block/mod.rs" {
            /// An I/O fails: it lies outside of its bdev.
            IoOutOfRange = "io-out-of-range", never: "a device checks requests by the bdev's size, and disks only grow, but for drives that lie";
            /// An I/O fails: the bdev cannot do it.
            IoUnsupported = "io-unsupported", never: "a bdev over a file or memory does everything that is offered to drivers";
            /// An I/O fails: the bdev is read-only.
            IoReadOnly = "io-read-only", never: "a device refuses writes to a read-only bdev itself";
            /// An I/O fails: no space is left.
            IoNoSpace = "io-no-space", never: "the simulator's disks are not thin";
            /// An I/O fails: the medium, after the bdev's own retries.
            IoMedium = "io-medium";
        }
        "vhost", "block/file.rs" {
            /// A file cannot do it right now (EAGAIN); it is tried again after a pause.
            FileAgain = "file-again";
            /// A file could not do it right now too often: the I/O fails.
            FileAgainTooOften = "file-again-too-often";
            /// A transfer ended short; the rest is submitted again.
            FileShort = "file-short";
            /// A transfer ended before one block: the file ends there, and the I/O fails.
            FileEnds = "file-ends", never: "a simulated disk does not shrink under its bdev";
            /// A file cannot discard, which is only advice.
            FileNoDiscard = "file-no-discard";
            /// A file cannot write zeroes; they are sent from now on.
            FileNoZeroes = "file-no-zeroes";
            /// A file's channel is full; the I/O waits for room.
            FileFull = "file-full";
        }
        "vhost", "vhost_user/message.rs" {
            /// A message is refused: no such request.
            MessageUnknown = "message-unknown";
            /// A message is refused: it belongs to a feature that is not offered.
            MessageNotOffered = "message-not-offered";
            /// A message is refused: its payload's length.
            MessageLen = "message-len";
            /// A message is refused: the number of its handles.
            MessageHandles = "message-handles";
            /// A message is refused: a field outside of its range.
            MessageField = "message-field";
        }
        "vhost", "vhost_user/refusal.rs" {
            /// A message is refused: feature bits that were not offered.
            RefusedFeatures = "refused-features";
            /// A message is refused: the ring runs.
            RefusedRunning = "refused-running";
            /// A message is refused: it described a ring whole that then could not start.
            RefusedRing = "refused-ring";
            /// A message is refused: the table has no such region.
            RefusedNoRegion = "refused-no-region";
            /// A message is refused: its handle cannot be used.
            RefusedHandle = "refused-handle";
            /// A message is refused: a log without the protocol feature for it.
            RefusedLog = "refused-log";
            /// A message is refused: in-band notifications without what they need, or a kick where they are not agreed upon.
            RefusedInBand = "refused-in-band";
            /// A message is refused: outside of the configuration space, or not writable.
            RefusedConfig = "refused-config";
        }
        "vhost", "vhost_user/inflight_region.rs" {
            /// An inflight region is refused: fewer bytes than its rings need.
            RegionTooSmall = "region-too-small";
            /// An inflight region is refused: it does not begin at a multiple of 8 bytes.
            RegionMisaligned = "region-misaligned";
            /// An inflight region is refused: it cannot be mapped.
            RegionNotMapped = "region-not-mapped";
            /// A ring's tracking ends with the ring: its part is as if it was never used.
            RegionRetired = "region-retired";
        }
        "vhost", "virtio/memory.rs" {
            /// A region of memory is refused: it has no bytes.
            MemoryEmpty = "memory-empty";
            /// A region of memory is refused: it ends beyond the address space.
            MemoryWraps = "memory-wraps";
            /// A region of memory is refused: it overlaps another one.
            MemoryOverlap = "memory-overlap";
            /// A region of memory is refused: there are as many as there may be.
            MemoryTooMany = "memory-too-many";
        }
        "vhost", "vhost_user/connection.rs" {
            /// A connection ends: closed between two messages.
            ConnectionClosed = "connection-closed";
            /// A connection ends: closed inside a message.
            ConnectionCut = "connection-cut";
            /// A connection ends: the socket failed.
            ConnectionFailed = "connection-failed", never: "the simulator's sockets close, and fail in no other way";
            /// A connection ends: a header that cannot be believed.
            ConnectionHeader = "connection-header";
            /// A connection ends: too many handles with a message.
            ConnectionHandles = "connection-handles";
        }
        "vhost", "vhost_user/session.rs" {
            /// A refusal cannot be told to the front-end, and ends the session.
            RefusalUntold = "refusal-untold";
            /// The host has no memory for an inflight region: the front-end goes on without tracking.
            RegionNotMade = "region-not-made", never: "the simulator's host never runs out of memory";
            /// The driver may have turned the write cache off in an earlier life: writes are durable when they complete.
            WriteCacheUnknown = "write-cache-unknown";
            /// Nothing told that a change of memory is over, and its time has passed.
            HoldExpired = "hold-expired";
        }
        "vhost", "vhost_user/rings.rs" {
            /// A ring cannot be started.
            RingNotStarted = "ring-not-started";
            /// A ring lies outside of guest memory, and starts when it does not.
            RingMemoryMissing = "ring-memory-missing";
            /// The inflight region has no part for a ring, which is not tracked.
            RingUntracked = "ring-untracked";
            /// A ring's memory is gone under it: it is parked.
            RingParked = "ring-parked";
            /// A ring that never ran is started for what a dead life had taken, and stopped.
            RingStartedToStop = "ring-started-to-stop";
            /// A packed ring was stopped, and the region keeps its position.
            PackedPositionKept = "packed-position-kept";
        }
        "vhost", "vhost_user/backend_channel.rs" {
            /// The back-end's channel is gone; changes are not told any more.
            BackendChannelGone = "backend-channel-gone";
            /// What was not answered on a channel that broke or was replaced is to be told again.
            BackendToldAgain = "backend-told-again";
        }
        "vhost", "vhost_user/controller.rs" {
            /// The host has no handle left for a connection, which waits.
            AcceptFailed = "accept-failed";
        }
        "vhost", "target/opening.rs" {
            /// A file is another bdev's disk already.
            FileTwice = "file-twice", never: "the simulator's operator gives each bdev a disk of its own";
            /// A file cannot be opened.
            FileNotOpened = "file-not-opened", never: "a simulated disk is there for as long as its machine";
            /// A file's lock is held by a dead life's I/O, or by another target; it is asked for again.
            FenceWaits = "fence-waits";
            /// A file's lock was waited for in vain.
            FenceGivenUp = "fence-given-up";
            /// A file cannot be locked.
            FileNotLocked = "file-not-locked", never: "a simulated lock is held or refused, and does not fail";
        }
        "nvme", "nvme/driver/failure.rs" {
            /// An NVMe controller is reset or given up: its function cannot be opened.
            NvmeRefused = "nvme-refused";
            /// An NVMe controller is given up: the function is something else.
            NvmeNotNvme = "nvme-not-nvme", never: "scenarios attach what is an NVMe controller";
            /// An NVMe controller is reset or given up: the platform refused something.
            NvmeWorld = "nvme-world";
            /// An NVMe controller is given up: it says what the driver cannot work with.
            NvmeUnsupported = "nvme-unsupported";
            /// An NVMe controller is given up: it is gone.
            NvmeRemoved = "nvme-removed";
            /// An NVMe controller is reset or given up: it did not do something in time.
            NvmeTimedOut = "nvme-timed-out";
            /// An NVMe controller is reset or given up: it is fatal.
            NvmeFatal = "nvme-fatal";
            /// An NVMe controller is reset or given up: it failed an admin command.
            NvmeCommandFailed = "nvme-command-failed";
            /// An NVMe controller is reset or given up: it broke the protocol.
            NvmeBroken = "nvme-broken";
            /// An NVMe controller has no I/O queue left.
            NvmeNoQueue = "nvme-no-queue", never: "told to a channel, which is no failure of the controller";
            /// An NVMe controller is reset: an operator asked.
            NvmeResetAsked = "nvme-reset-asked";
            /// An NVMe controller is let go.
            NvmeClosed = "nvme-closed", never: "told to channels, which is no failure of the controller";
        }
        "nvme", "nvme/driver/controller/queues.rs" {
            /// Channels of several cores run on queues of one NVMe controller.
            NvmeSeveralCores = "nvme-several-cores";
            /// A channel waits for a queue that one which is gone has still.
            NvmeQueueNotFree = "nvme-queue-not-free";
            /// Memory for an NVMe queue cannot be mapped; it is tried again.
            NvmeQueueNotMapped = "nvme-queue-not-mapped";
            /// The same, too often: requests fail until there is a queue.
            NvmeQueueRefused = "nvme-queue-refused";
        }
        "nvme", "nvme/driver/controller/ladder.rs" {
            /// Queues of several cores are stopped before an NVMe controller is reset.
            NvmeCoresQuieted = "nvme-cores-quieted";
        }
        "nvme", "nvme/driver/channel.rs" {
            /// An NVMe command failed for now, and is tried again after a pause.
            NvmeRetried = "nvme-retried";
            /// An NVMe command failed for good, or too often.
            NvmeIoFailed = "nvme-io-failed";
            /// NVMe commands that a reset interrupted are given to the new queue.
            NvmeGivenAgain = "nvme-given-again";
            /// An NVMe command was lost in too many resets.
            NvmeLostTooOften = "nvme-lost-too-often";
            /// An NVMe channel has lost its controller: everything fails.
            NvmeChannelFailed = "nvme-channel-failed";
        }
    }
    events {
        "vhost" {
            /// An operation was given to a bdev.
            RequestSubmitted = "request-submitted": RequestSubmitted, When::Any;
            /// A request was answered with success.
            StatusOk = "status-ok": RequestCompleted, When::Detail(0);
            /// A request was answered with an I/O error.
            StatusIoError = "status-io-error": RequestCompleted, When::Detail(1);
            /// A request was answered with "unsupported".
            StatusUnsupported = "status-unsupported": RequestCompleted, When::Detail(2);
            /// A request that a dead life had taken is submitted again.
            RequestReplayed = "request-replayed": RequestReplayed, When::Any;
            /// A chain was malformed.
            ChainMalformed = "chain-malformed": ChainMalformed, When::Any;
            /// A queue runs.
            QueueStarted = "queue-started": QueueStarted, When::Any;
            /// A queue was stopped.
            QueueStopped = "queue-stopped": QueueStopped, When::Any;
            /// A session ends: the front-end closed it.
            SessionEndedByFrontEnd = "session-ended-by-front-end": SessionEnding, When::Detail(0);
            /// A session ends: the front-end broke the protocol.
            SessionEndedByProtocol = "session-ended-by-protocol": SessionEnding, When::Detail(1);
            /// A session ends: memory that the front-end shares went away.
            SessionEndedByMemory = "session-ended-by-memory": SessionEnding, When::Detail(2);
            /// A session ends: the controller stops.
            SessionEndedByStop = "session-ended-by-stop": SessionEnding, When::Detail(3);
            /// A message waits until nothing is in flight.
            MessageWaits = "message-waits": MessageWaits, When::Any;
            /// A message was refused.
            MessageRefused = "message-refused": MessageDone, When::Counted;
            /// The front-end was told that the configuration space has changed.
            ConfigChangeTold = "config-change-told": ConfigChangeTold, When::Any;
            /// A ring's driver is called by a message.
            CallTold = "call-told": CallTold, When::Any;
            /// The front-end is told of a broken ring by a message.
            ErrorTold = "error-told": ErrorTold, When::Any;
            /// A fence was waited for.
            FileFenceWaited = "file-fence-waited": FileFenced, When::Counted;
            /// A changed state was made durable.
            StateSaved = "state-saved": StateSaved, When::Detail(0);
            /// A changed state could not be made durable.
            StateNotSaved = "state-not-saved": StateSaved, When::Detail(1);
            /// A change was answered with an error.
            ChangeRefused = "change-refused": ChangeAnswered, When::Counted;
        }
        "nvme" {
            /// An NVMe controller is ready.
            NvmeReady = "nvme-ready": NvmeReady, When::Any;
            /// First rung: an NVMe command is aborted.
            NvmeAbort = "nvme-abort": NvmeAbort, When::Any;
            /// Second rung: an NVMe controller is reset.
            NvmeReset = "nvme-reset": NvmeReset, When::Any;
            /// Third rung: an NVMe controller's function is reset.
            NvmeFunctionReset = "nvme-function-reset": NvmeFunctionReset, When::Any;
            /// Last rung: an NVMe controller is given up.
            NvmeFailed = "nvme-failed": NvmeFailed, When::Any;
        }
    }
}
