//! A platform to drive pieces of the target by hand: real sockets, memory and eventfds, and a clock that stands still
//! until the test moves it. No reactor, no thread and no file, so that a test decides what happens between two polls.

use hw::{
    HostHandle, HostListener, HostMemory, HostNet, HostNotifier, HostStream, HostTcpListener, HostTcpStream,
    HostWindow,
};
use runtime::{
    Constructor, CoreId, Directory, Event, File, FileChannel, FileCompletion, FileInfo, FileLock, FileOp,
    FileOptions, Full, Instant, Interest, Job, Platform, ReactorTimes, Receiver, Result, Sender,
    SocketOptions, Wakes,
};
use std::cell::Cell;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

/// The platform. Clones share the clock.
#[derive(Clone, Default)]
pub struct ByHand {
    now_ns: Rc<Cell<u64>>,
}

impl ByHand {
    /// Moves the clock.
    pub fn pass(&self, duration: Duration) {
        self.now_ns.set(self.now_ns.get() + duration.as_nanos() as u64);
    }
}

/// What the pieces under test have no use for here: no value of it exists.
#[derive(Clone, Copy, Debug)]
pub enum Nothing {}

/// A mailbox or a job that does not exist.
pub struct NothingOf<T>(Nothing, PhantomData<fn() -> T>);

impl<T> Clone for NothingOf<T> {
    fn clone(&self) -> Self {
        match self.0 {}
    }
}

impl<T: Send + 'static> Sender<T> for NothingOf<T> {
    fn send(&self, _message: T) -> std::result::Result<(), T> {
        match self.0 {}
    }
}

impl<T: Send + 'static> Receiver<T> for NothingOf<T> {
    fn receive(&mut self) -> Option<T> {
        match self.0 {}
    }
}

impl<T: Send + 'static> Job<T> for NothingOf<T> {
    fn take(&mut self) -> Option<T> {
        match self.0 {}
    }
}

impl File for Nothing {
    fn info(&self) -> Result<FileInfo> {
        match *self {}
    }

    fn try_lock(&self) -> Result<FileLock> {
        match *self {}
    }
}

impl FileChannel for Nothing {
    type Window = HostWindow;

    fn submit(
        &mut self,
        _op: FileOp,
        _offset: u64,
        _len: u64,
        _segments: &[HostWindow],
        _token: u64,
    ) -> std::result::Result<(), Full> {
        match *self {}
    }

    fn poll(&mut self, _completions: &mut Vec<FileCompletion>) -> bool {
        match *self {}
    }

    fn bounced_bytes(&self) -> u64 {
        match *self {}
    }
}

impl Directory for Nothing {
    type Memory = HostMemory;
    type File = Self;
    type Lock = Self;

    fn read(&self, _path: &str, _limit: u64) -> Result<Vec<u8>> {
        match *self {}
    }

    fn write(&self, _path: &str, _bytes: &[u8]) -> Result<()> {
        match *self {}
    }

    fn sync(&self, _path: &str) -> Result<()> {
        match *self {}
    }

    fn sync_directory(&self, _path: &str) -> Result<()> {
        match *self {}
    }

    fn rename(&self, _from: &str, _to: &str) -> Result<()> {
        match *self {}
    }

    fn remove(&self, _path: &str) -> Result<()> {
        match *self {}
    }

    fn list(&self, _path: &str) -> Result<Vec<String>> {
        match *self {}
    }

    fn create_directory(&self, _path: &str) -> Result<()> {
        match *self {}
    }

    fn lock(&self, _path: &str) -> Result<Self> {
        match *self {}
    }

    fn open(&self, _path: &str, _options: FileOptions) -> Result<Self> {
        match *self {}
    }

    fn machine_memory(&self, _name: &str, _len: u64) -> Result<(HostMemory, bool)> {
        match *self {}
    }

    fn remove_machine_memory(&self, _name: &str) -> Result<()> {
        match *self {}
    }
}

/// What a core would have been woken by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Armed {
    /// Notifiers.
    pub notifiers: usize,
    /// Listeners.
    pub listeners: usize,
    /// Streams.
    pub streams: usize,
}

impl Wakes<ByHand> for Armed {
    fn notifier(&mut self, _notifier: &HostNotifier) {
        self.notifiers += 1;
    }

    fn listener(&mut self, _listener: &HostListener) {
        self.listeners += 1;
    }

    fn stream(&mut self, _stream: &HostStream, _interest: Interest) {
        self.streams += 1;
    }

    fn tcp_listener(&mut self, _listener: &HostTcpListener) {
        self.listeners += 1;
    }

    fn tcp_stream(&mut self, _stream: &HostTcpStream, _interest: Interest) {
        self.streams += 1;
    }

    fn channel(&mut self, channel: &Nothing) {
        match *channel {}
    }

    fn mailbox<T: Send + 'static>(&mut self, receiver: &NothingOf<T>) {
        match receiver.0 {}
    }

    fn job<T: Send + 'static>(&mut self, job: &NothingOf<T>) {
        match job.0 {}
    }
}

impl Platform for ByHand {
    type Window = HostWindow;
    type Memory = HostMemory;
    type Handle = HostHandle;
    type Notifier = HostNotifier;
    type Listener = HostListener;
    type Stream = HostStream;
    type Net = HostNet;
    type TcpListener = HostTcpListener;
    type TcpStream = HostTcpStream;
    type Directory = Nothing;
    type File = Nothing;
    type Channel = Nothing;
    type Pci = hw::pci::HostPci;
    type Wakes = Armed;
    type Sender<T: Send + 'static> = NothingOf<T>;
    type Receiver<T: Send + 'static> = NothingOf<T>;
    type Job<T: Send + 'static> = NothingOf<T>;

    fn now(&self) -> Instant {
        Instant(self.now_ns.get())
    }

    fn random(&self) -> u64 {
        4
    }

    fn record(&self, _event: Event) {}

    fn is_recording(&self) -> bool {
        false
    }

    fn here(&self) -> CoreId {
        CoreId(0)
    }

    fn cores(&self) -> u16 {
        1
    }

    fn reactors(&self) -> Vec<ReactorTimes> {
        Vec::new()
    }

    fn start(&self, _core: CoreId, _constructor: Constructor<Self>) {
        panic!("there is no core to start a poller on");
    }

    fn mailbox<T: Send + 'static>(&self, _capacity: usize) -> (NothingOf<T>, NothingOf<T>) {
        panic!("there is no core to send to");
    }

    fn offload<T: Send + 'static>(&self, _job: impl FnOnce() -> T + Send + 'static) -> NothingOf<T> {
        panic!("there is nobody to do a job");
    }

    fn directory(&self) -> Nothing {
        panic!("there are no files");
    }

    fn channel(&self, file: &Nothing) -> Result<Nothing> {
        match *file {}
    }

    fn pci(&self) -> Self::Pci {
        panic!("there are no functions");
    }

    fn shared_memory(&self, name: &str, len: u64) -> Result<HostMemory> {
        hw::memory::shared_memory(name, len)
    }

    fn listen(&self, path: &str, options: &SocketOptions) -> Result<HostListener> {
        HostListener::listen(path, options)
    }

    fn net(&self) -> HostNet {
        HostNet
    }

    fn stop_requested(&self) -> bool {
        false
    }

    fn ready(&self) {}
}
