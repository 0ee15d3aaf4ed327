//! A process of the target: its cores and what they share, started, asked to stop, and waited for.

use crate::arena::Arena;
use crate::error::with_errno;
use crate::offload::Pool;
use crate::pci::HostPci;
use crate::platform::HostPlatform;
use crate::reactor::Reactor;
use crate::recorder::{self, Recorder};
use crate::waker::Waker;
use crossbeam_queue::SegQueue;
use runtime::{Constructor, CoreId, Error, ErrorKind, ReactorTimes};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How a process is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The host's processors, one core each, at least one: the core mask.
    pub processors: Vec<u32>,
    /// Cores never sleep.
    pub poll: bool,
    /// Where the machine's named memory is: a directory of a memory file system.
    pub memory_directory: PathBuf,
    /// Where the flight recorders are; `None`: nothing is recorded.
    pub recorder_directory: Option<PathBuf>,
}

/// Why a process cannot be started.
#[derive(Debug)]
pub struct StartError {
    what: String,
    source: Error,
}

impl StartError {
    /// The kind of what went wrong; `Busy`: another process has its flight recorders in this directory.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.source.kind
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// What one core shows to the others.
pub(crate) struct SharedCore {
    pub(crate) processor: u32,
    pub(crate) waker: Waker,
    /// Pollers to be started there.
    pub(crate) started: SegQueue<Constructor<HostPlatform>>,
    pub(crate) busy_ns: AtomicU64,
    pub(crate) idle_ns: AtomicU64,
}

/// What the cores of a process share.
pub(crate) struct Shared {
    cores: Vec<SharedCore>,
    pool: Pool,
    pub(crate) pci: HostPci,
    pub(crate) memory_directory: PathBuf,
    recorder_directory: Option<PathBuf>,
    pub(crate) poll: bool,
    /// The operator asked for an orderly stop.
    pub(crate) stop: AtomicBool,
    /// The first poller is done: the cores end.
    pub(crate) ended: AtomicBool,
}

impl Shared {
    pub(crate) fn core(&self, core: CoreId) -> &SharedCore {
        &self.cores[usize::from(core.0)]
    }

    pub(crate) fn waker(&self, core: CoreId) -> &Waker {
        &self.core(core).waker
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How many cores there are.
    pub(crate) fn len(&self) -> u16 {
        u16::try_from(self.cores.len()).expect("the number was checked at the start")
    }

    pub(crate) fn times(&self) -> Vec<ReactorTimes> {
        let times = |(number, core): (u16, &SharedCore)| ReactorTimes {
            core: CoreId(number),
            processor: core.processor,
            busy_ns: core.busy_ns.load(Ordering::Relaxed),
            idle_ns: core.idle_ns.load(Ordering::Relaxed),
        };
        (0..).zip(&self.cores).map(times).collect()
    }

    /// The process serves: what its cores record is kept from now on.
    pub(crate) fn serves(&self) {
        for core in (0..self.len()).map(CoreId) {
            let Some(directory) = &self.recorder_directory else { return };
            if let Err(error) = recorder::serves(directory, core) {
                tracing::warn!(%error, core = core.0, ?directory, "the flight recorder's file could not be renamed");
            }
        }
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.wake_all();
    }

    fn wake_all(&self) {
        for core in &self.cores {
            core.waker.wake();
        }
    }
}

/// A process, not yet running.
pub struct Process {
    shared: Arc<Shared>,
    recorders: Vec<Option<Recorder>>,
}

/// Asks a running process to stop; from any thread.
#[derive(Clone)]
pub struct Stop(Arc<Shared>);

impl Stop {
    /// Asks for an orderly stop, as [`runtime::Platform::stop_requested`] then says; every core is woken.
    pub fn request(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
        self.0.wake_all();
    }
}

impl Process {
    /// Gets what the process needs before any of its code runs. Errors: a sentence that names what cannot be had.
    pub fn new(options: &Options) -> Result<Self, StartError> {
        let cores = u16::try_from(options.processors.len()).unwrap_or(0);
        if cores == 0 {
            let what =
                format!("{} cores were asked for, between 1 and {}", options.processors.len(), u16::MAX);
            return Err(StartError { what, source: Error::new(ErrorKind::Invalid) });
        }
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| StartError { what, source }
        };
        let _reserved = Arena::get()
            .map_err(failed("cannot reserve 16 GiB of addresses for shared memory (is RLIMIT_AS set?)"))?;
        let shared_core = |processor: &u32| {
            Ok(SharedCore {
                processor: *processor,
                waker: Waker::new()?,
                started: SegQueue::new(),
                busy_ns: AtomicU64::new(0),
                idle_ns: AtomicU64::new(0),
            })
        };
        let pool =
            Pool::new().map_err(io_error).map_err(failed("cannot start the threads for blocking work"))?;
        let shared = Shared {
            cores: options
                .processors
                .iter()
                .map(shared_core)
                .collect::<Result<_, _>>()
                .map_err(failed("cannot make an eventfd for each core"))?,
            pool,
            pci: HostPci::new().map_err(failed("cannot keep a table of the drives' mappings"))?,
            memory_directory: options.memory_directory.clone(),
            recorder_directory: options.recorder_directory.clone(),
            poll: options.poll,
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        };
        let recorder = |core: u16| match &options.recorder_directory {
            Some(directory) => start_recorder(directory, CoreId(core)),
            None => Ok(None),
        };
        let recorders = (0..cores).map(recorder).collect::<Result<_, _>>()?;
        Ok(Self { shared: Arc::new(shared), recorders })
    }

    /// For asking it to stop later.
    #[must_use]
    pub fn stop(&self) -> Stop {
        Stop(self.shared.clone())
    }

    /// Runs the cores, the first poller on core 0, until that poller is done; all others are dropped then, each on its
    /// core. Errors: those of starting a thread, before anything ran.
    pub fn run(self, first: Constructor<HostPlatform>) -> Result<(), StartError> {
        self.shared.core(CoreId(0)).started.push(first);
        let mut threads = Vec::new();
        for (core, recorder) in (0..).map(CoreId).zip(self.recorders) {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("reactor-{core}"))
                .spawn(move || Reactor::new(core, shared, recorder).run());
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.shared.end();
                    join(threads);
                    let what = format!("cannot start the thread of core {core}");
                    return Err(StartError { what, source: io_error(error) });
                }
            }
        }
        join(threads);
        Ok(())
    }
}

fn join(threads: Vec<std::thread::JoinHandle<()>>) {
    for thread in threads {
        // A reactor ends the process rather than its own thread alone.
        thread.join().expect("a reactor does not panic");
    }
}

/// `None`, said in the log: there is no room for it. A target that died on a full disk must come back all the same.
fn start_recorder(directory: &Path, core: CoreId) -> Result<Option<Recorder>, StartError> {
    match Recorder::start(directory, core) {
        Ok(recorder) => Ok(Some(recorder)),
        Err(Error { kind: ErrorKind::NoSpace, .. }) => {
            tracing::warn!(
                core = core.0,
                ?directory,
                "no room for a flight recorder: this life goes without"
            );
            Ok(None)
        }
        Err(source) => {
            let directory = directory.display();
            let what = format!("cannot start the flight recorder of core {core} in {directory}");
            Err(StartError { what, source })
        }
    }
}

fn io_error(error: std::io::Error) -> Error {
    let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
    with_errno(ErrorKind::OutOfResources, errno)
}
