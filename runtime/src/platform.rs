//! The bundle of everything that the stack may ask for.

use crate::{
    CoreId, Directory, Dma, Event, File, FileChannel, Handle, Instant, Job, Listener, Memory, Net, Notifier,
    Pci, PciFunction, Poller, ReactorTimes, Receiver, Result, Sender, SocketOptions, Stream, TcpListener,
    TcpStream, Wakes, Window,
};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Makes a poller on the core that it will live on.
pub type Constructor<P> = Box<dyn FnOnce(P) -> Box<dyn Poller<P>> + Send>;

/// One core's view of the world. The stack is monomorphised once for hw's platform and once for sim's.
pub trait Platform: Clone + 'static {
    /// Shared memory, looked at.
    type Window: Window;
    /// Shared memory, owned.
    type Memory: Memory<Window = Self::Window, Handle = Self::Handle>;
    /// A kernel-backed object on its way between processes.
    type Handle: Handle<Memory = Self::Memory, Notifier = Self::Notifier, Stream = Self::Stream>;
    /// A doorbell.
    type Notifier: Notifier;
    /// A listening unix socket.
    type Listener: Listener<Stream = Self::Stream>;
    /// A connected unix socket.
    type Stream: Stream<Handle = Self::Handle>;
    /// The host's TCP.
    type Net: Net<Listener = Self::TcpListener, Stream = Self::TcpStream>;
    /// A listening TCP socket.
    type TcpListener: TcpListener<Stream = Self::TcpStream>;
    /// A TCP connection.
    type TcpStream: TcpStream<Window = Self::Window>;
    /// Blocking file operations.
    type Directory: Directory<Memory = Self::Memory, File = Self::File>;
    /// An open payload file.
    type File: File;
    /// A core's I/O channel on a payload file.
    type Channel: FileChannel<Window = Self::Window>;
    /// The machine's PCI functions.
    type Pci: Pci<Function: PciFunction<Notifier = Self::Notifier>, Dma: Dma<Window = Self::Window>>;
    /// Collects what may wake a core.
    type Wakes: Wakes<Self>;
    /// Sending end of a mailbox.
    type Sender<T: Send + 'static>: Sender<T>;
    /// Receiving end of a mailbox.
    type Receiver<T: Send + 'static>: Receiver<T>;
    /// An offloaded job.
    type Job<T: Send + 'static>: Job<T>;

    /// The machine's monotonic clock.
    fn now(&self) -> Instant;

    /// A random word. Good enough for identifiers; not for keys.
    fn random(&self) -> u64;

    /// Writes an event to the flight recorder. A few nanoseconds; never fails.
    fn record(&self, event: Event);

    /// Whether [`Platform::record`] keeps anything, so that the data path need not make events for nobody. Does not
    /// change while the core lives.
    fn is_recording(&self) -> bool;

    /// The core that this value belongs to.
    fn here(&self) -> CoreId;

    /// How many cores there are, at least 1: `CoreId(0)` to `CoreId(cores - 1)`.
    fn cores(&self) -> u16;

    /// How each core spent its time.
    fn reactors(&self) -> Vec<ReactorTimes>;

    /// Starts a poller on a core: the constructor runs there, with that core's platform, before the poller's first
    /// poll. Pollers started from one core on another begin in that order.
    fn start(&self, core: CoreId, constructor: Constructor<Self>);

    /// Makes a mailbox that holds at most `capacity` messages.
    fn mailbox<T: Send + 'static>(&self, capacity: usize) -> (Self::Sender<T>, Self::Receiver<T>);

    /// Runs something that may block, away from every reactor, on a bounded pool; jobs may end in any order. The
    /// simulator delays them by a drawn time.
    fn offload<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Self::Job<T>;

    /// The blocking file operations, to be moved into an offloaded job.
    fn directory(&self) -> Self::Directory;

    /// This core's I/O channel on an open file. Errors: `OutOfResources`, `Unsupported`.
    fn channel(&self, file: &Self::File) -> Result<Self::Channel>;

    /// The machine's PCI functions, and the memory that those of this process reach.
    fn pci(&self) -> Self::Pci;

    /// New zeroed memory that can be handed to another process (`name` is for people who look at a host's mappings).
    /// Errors: `OutOfResources`, `Invalid` for a length of 0.
    fn shared_memory(&self, name: &str, len: u64) -> Result<Self::Memory>;

    /// Listens at a path. A socket file that a dead process left is replaced. Errors: `AlreadyExists` when a live
    /// process answers there or something else than a socket is there; `PermissionDenied`; `NotFound` (no such
    /// directory); `Invalid` (the path is longer than a socket's name may be).
    fn listen(&self, path: &str, options: &SocketOptions) -> Result<Self::Listener>;

    /// The host's TCP.
    fn net(&self) -> Self::Net;

    /// Whether the operator asked the process to stop in an orderly way (SIGTERM). Every core is woken when it is.
    fn stop_requested(&self) -> bool;

    /// Tells whoever started the process that it serves: everything in the state directory is back, and the sockets
    /// listen. Called once.
    fn ready(&self);
}
