//! Faults are data. Each kind has its opportunities, counted; a fault is a kind, the number of the opportunity at which
//! it strikes, and a parameter. In a drawn run each opportunity draws whether it is taken, and what struck is written
//! down; a replay executes such a list and draws nothing; shrinking deletes from it.
//!
//! Each kind draws from a stream of its own, so that a fault taken away does not move the others.

use crate::rng::Rng;
use serde::{Deserialize, Serialize};

/// Defines the kinds with their names, as scenarios and replay files write them.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum FaultKind {
            $($(#[$doc])* #[serde(rename = $name)] $kind,)*
        }

        impl FaultKind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The kind of this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|kind| kind.name() == name)
            }

            /// Its name in files.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// A life of the target ends at a crash point. Opportunity: a life. Parameter: crash points from its start.
    Kill = "kill",
    /// A machine loses its power. Opportunity: a life of the target. Parameter: nanoseconds from its start.
    PowerLoss = "power-loss",
    /// An operation of a disk takes long. Opportunity: an operation. Parameter: additional nanoseconds.
    DiskSlow = "disk-slow",
    /// An operation of a disk fails for this time. Opportunity: an operation. Parameter: unused.
    DiskError = "disk-error",
    /// An operation of a disk cannot be done right now (EAGAIN). Opportunity: an operation. Parameter: unused.
    DiskAgain = "disk-again",
    /// An operation of a disk does not end before the faults are over. Opportunity: an operation. Parameter: unused.
    DiskStuck = "disk-stuck",
    /// A transfer of a disk ends short. Opportunity: a transfer of more than a block. Parameter: blocks done.
    DiskShort = "disk-short",
    /// A range of a disk fails for ever from now on. Opportunity: an operation. Parameter: its first block.
    DiskBadRange = "disk-bad-range",
    /// What a dead process had submitted to a disk takes effect late. Opportunity: such an operation. Parameter:
    /// nanoseconds after the death.
    LateWrite = "late-write",
    /// A small file's operation finds no space. Opportunity: an operation that needs some. Parameter: unused.
    NoSpace = "no-space",
    /// A small file's or a directory's sync, or a rename, fails. Opportunity: such a call. Parameter: unused.
    FileError = "file-error",
    /// The process has no handle left for a connection, which waits on. Opportunity: an accept. Parameter: unused.
    NoHandles = "no-handles",
    /// The process has no mapping left for memory that it was sent, or for functions. Opportunity: a mapping. Parameter:
    /// nanoseconds for which it has none for functions.
    NoMappings = "no-mappings",
    /// The front-end's connection breaks. Opportunity: a request that a guest makes. Parameter: nanoseconds until it
    /// connects again.
    Disconnect = "disconnect",
    /// The guest resets its device. Opportunity: a death of the target. Parameter: nanoseconds from the death.
    GuestReset = "guest-reset",
    /// The guest's driver starts anew. Opportunity: a request. Parameter: 0 at once, 1 when nothing is out.
    DriverReload = "driver-reload",
    /// The machine is paused and goes on, with a new inflight region. Opportunity: a request. Parameter: unused.
    Pause = "pause",
    /// A region of guest memory is unplugged under I/O. Opportunity: a request. Parameter: unused.
    Unplug = "unplug",
    /// The bdev changes its size. Opportunity: a request. Parameter: sectors added.
    Resize = "resize",
    /// The driver changes the write cache. Opportunity: a request. Parameter: the new setting.
    CacheChange = "cache-change",
    /// A guest does something malformed. Opportunity: a request. Parameter: which.
    HostileGuest = "hostile-guest",
    /// A front-end does something malformed. Opportunity: a message. Parameter: which.
    HostileFrontEnd = "hostile-front-end",
    /// A dead process's function goes on to reach memory. Opportunity: a death with a function open. Parameter:
    /// nanoseconds after the death.
    LateDma = "late-dma",
    /// A reset of a PCI function fails. Opportunity: such a reset. Parameter: unused.
    FunctionResetFails = "function-reset-fails",
    /// An NVMe command takes long. Opportunity: an I/O command. Parameter: additional nanoseconds.
    NvmeSlow = "nvme-slow",
    /// An NVMe command does not end before it is aborted or the faults are over. Opportunity: a command. Parameter: unused.
    NvmeHeld = "nvme-held",
    /// An NVMe queue is not fetched from any more. Opportunity: an I/O command to be fetched. Parameter: unused.
    NvmeQueueStuck = "nvme-queue-stuck",
    /// An NVMe controller becomes fatal. Opportunity: a command to be fetched. Parameter: unused.
    NvmeFatal = "nvme-fatal",
    /// The media fail an NVMe command. Opportunity: an I/O command. Parameter: DNR.
    NvmeMediaError = "nvme-media-error",
    /// An NVMe command fails for now. Opportunity: an I/O command. Parameter: which status, and four times CRD.
    NvmeTransient = "nvme-transient",
    /// An NVMe write fails with a part of it written. Opportunity: a write of several blocks. Parameter: blocks written.
    NvmeTornWrite = "nvme-torn-write",
    /// An NVMe admin command fails. Opportunity: such a command. Parameter: DNR.
    NvmeAdminError = "nvme-admin-error",
    /// An NVMe Abort comes too late. Opportunity: an Abort of a command under way. Parameter: unused.
    NvmeAbortLate = "nvme-abort-late",
    /// An NVMe interrupt is lost. Opportunity: an interrupt. Parameter: unused.
    NvmeInterruptLost = "nvme-interrupt-lost",
    /// An NVMe interrupt comes several times. Opportunity: an interrupt. Parameter: how often too often.
    NvmeInterruptExtra = "nvme-interrupt-extra",
    /// An NVMe completion queue entry is written in two halves. Opportunity: an entry. Parameter: nanoseconds between.
    NvmeSplitCompletion = "nvme-split-completion",
    /// An NVMe completion queue entry is wrong, double or missing. Opportunity: an entry. Parameter: how.
    NvmeBadCompletion = "nvme-bad-completion",
    /// An NVMe controller gets ready late or never. Opportunity: an enable. Parameter: additional nanoseconds, 0 never.
    NvmeEnable = "nvme-enable",
    /// An NVMe controller stops late or never. Opportunity: a disable. Parameter: additional nanoseconds, 0 never.
    NvmeDisable = "nvme-disable",
    /// An NVMe drive is pulled out. Opportunity: a command to be fetched. Parameter: nanoseconds until it is plugged in
    /// again, 0 never.
    NvmeRemoval = "nvme-removal",
    /// An NVMe controller has an event to report. Opportunity: a command to be fetched. Parameter: which.
    NvmeEvent = "nvme-event",
    /// An NVMe controller says something wrong of itself. Opportunity: a register loaded, an identification, a log page or
    /// a count of queues given. Parameter: where, and what.
    NvmeLie = "nvme-lie",
    /// A disk can do nothing for a while (EAGAIN). Opportunity: an operation. Parameter: nanoseconds.
    DiskBusy = "disk-busy",
    /// A disk cannot write zeroes or discard by itself. Opportunity: such an operation. Parameter: unused.
    DiskCannot = "disk-cannot",
    /// The target is asked to stop under load, and started again. Opportunity: a life that nothing else is to end.
    /// Parameter: nanoseconds from its start.
    Stop = "stop",
    /// The machine is migrated, which fails at its very end: a dirty log, read again and again, and a pause. Opportunity:
    /// a request. Parameter: unused.
    Migrate = "migrate",
    /// A packet is lost. Opportunity: a packet with more than an acknowledgment. Parameter: unused.
    PacketLost = "packet-lost",
    /// A packet is late, and others overtake it. Opportunity: a packet with more than an acknowledgment. Parameter:
    /// additional nanoseconds.
    PacketLate = "packet-late",
    /// A packet is held, with all that come behind it. Opportunity: a packet. Parameter: nanoseconds.
    PacketHeld = "packet-held",
}

impl FaultKind {
    /// Whether it is a fault of an NVMe drive.
    #[must_use]
    pub fn is_of_drive(self) -> bool {
        self.name().starts_with("nvme-") || self == Self::FunctionResetFails
    }

    /// Whether a drive may not be had because of it.
    #[must_use]
    pub fn touches_drives(self) -> bool {
        self.is_of_drive() || self == Self::NoMappings
    }
}

/// One fault that struck or shall strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// Which opportunity of that kind, from 0.
    pub opportunity: u64,
    /// Its parameter.
    pub parameter: u64,
}

/// How a completion queue entry may be wrong: bits 2:0 of the parameter of [`FaultKind::NvmeBadCompletion`].
pub mod bad_completion {
    /// The entry comes twice.
    pub const TWICE: u64 = 0;
    /// With [`TWICE`]: the second time not at once, but when others have come.
    pub const LATER: u64 = 1 << 7;
    /// It names a drawn command.
    pub const COMMAND: u64 = 1;
    /// It names a drawn queue.
    pub const QUEUE: u64 = 2;
    /// It names a drawn head of the submission queue.
    pub const HEAD: u64 = 3;
    /// It has a drawn status.
    pub const STATUS: u64 = 4;
    /// It has a drawn result.
    pub const RESULT: u64 = 5;
    /// Its phase tag is the old one.
    pub const PHASE: u64 = 6;
    /// It never comes.
    pub const MISSING: u64 = 7;
    /// The bits.
    pub const MASK: u64 = 7;
}

impl Fault {
    /// Whether what a drive brings, and when it touches memory, cannot be judged any more once it has struck: the drive
    /// says that it is another one, or ends a command before it has done it. (An entry that comes twice, names another
    /// queue or never comes, a driver must see through.)
    #[must_use]
    pub const fn betrays(&self) -> bool {
        use bad_completion::{COMMAND, MASK, RESULT, STATUS};
        match self.kind {
            FaultKind::NvmeLie => true,
            FaultKind::NvmeBadCompletion => matches!(self.parameter & MASK, COMMAND | STATUS | RESULT),
            _ => false,
        }
    }
}

/// How often a kind strikes in a drawn run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rate {
    /// Of 65536 opportunities, how many are taken.
    pub of_65536: u32,
    /// At most so many in a run.
    pub most: u64,
}

struct Kind {
    rng: Rng,
    rate: Rate,
    opportunities: u64,
    struck: u64,
}

/// The faults of one run.
pub struct Faults {
    kinds: Vec<Kind>,
    /// In a replay: what shall strike.
    script: Option<Vec<Fault>>,
    struck: Vec<Fault>,
    healed: bool,
    /// Something may strike at some time.
    any: bool,
}

/// Numbers of the faults' streams begin here.
const STREAM_FIRST: u64 = 1000;

impl Faults {
    fn new(seed: u64, rates: impl Fn(FaultKind) -> Rate, script: Option<Vec<Fault>>) -> Self {
        let kinds: Vec<Kind> = FaultKind::ALL
            .iter()
            .map(|kind| Kind {
                rng: Rng::unnoted(seed, STREAM_FIRST + *kind as u64),
                rate: rates(*kind),
                opportunities: 0,
                struck: 0,
            })
            .collect();
        let any = match &script {
            Some(script) => !script.is_empty(),
            None => kinds.iter().any(|kind| kind.rate.of_65536 > 0),
        };
        Self { kinds, script, struck: Vec::new(), healed: false, any }
    }

    /// Faults drawn at these rates.
    pub fn drawn(seed: u64, rates: impl Fn(FaultKind) -> Rate) -> Self {
        Self::new(seed, rates, None)
    }

    /// Exactly these faults.
    #[must_use]
    pub fn replayed(seed: u64, mut script: Vec<Fault>) -> Self {
        script.sort_unstable();
        Self::new(seed, |_| Rate::default(), Some(script))
    }

    /// No faults.
    #[must_use]
    pub fn none(seed: u64) -> Self {
        Self::new(seed, |_| Rate::default(), None)
    }

    /// An opportunity of `kind` has come: whether a fault strikes, and with which parameter. `parameter` draws it.
    pub fn strike(&mut self, kind: FaultKind, parameter: impl FnOnce(&mut Rng) -> u64) -> Option<u64> {
        let state = &mut self.kinds[kind as usize];
        let opportunity = state.opportunities;
        state.opportunities += 1;
        if self.healed {
            return None;
        }
        let parameter = match &self.script {
            Some(script) => {
                let at = script
                    .binary_search_by_key(&(kind, opportunity), |fault| (fault.kind, fault.opportunity));
                script[at.ok()?].parameter
            }
            None => {
                let Rate { of_65536, most } = state.rate;
                if of_65536 == 0 || state.struck >= most || !state.rng.chance(of_65536, 65536) {
                    return None;
                }
                parameter(&mut state.rng)
            }
        };
        state.struck += 1;
        for word in [kind as u64, opportunity, parameter] {
            crate::rng::note(word);
        }
        self.struck.push(Fault { kind, opportunity, parameter });
        Some(parameter)
    }

    /// No fault strikes from now on.
    pub fn heal(&mut self) {
        self.healed = true;
    }

    /// Whether any fault may strike in this run.
    #[must_use]
    pub fn are_any(&self) -> bool {
        self.any
    }

    /// Whether the fault phase is over.
    #[must_use]
    pub fn is_healed(&self) -> bool {
        self.healed
    }

    /// What struck, in order.
    #[must_use]
    pub fn struck(&self) -> &[Fault] {
        &self.struck
    }

    /// How often a kind struck.
    #[must_use]
    pub fn count(&self, kind: FaultKind) -> u64 {
        self.kinds[kind as usize].struck
    }
}
