//! One core's view of the host: [`runtime::Platform`], each call handed to the file that does it.

use crate::clock;
use crate::files::{CoreFiles, HostChannel, HostDirectory, HostFile};
use crate::handle::HostHandle;
use crate::mailbox::{self, HostReceiver, HostSender};
use crate::memory::{self, HostMemory};
use crate::net::{HostNet, HostTcpListener, HostTcpStream};
use crate::notifier::HostNotifier;
use crate::offload::{self, HostJob};
use crate::pci::HostPci;
use crate::process::Shared;
use crate::recorder::Recorder;
use crate::unix::{HostListener, HostStream};
use crate::wakes::HostWakes;
use crate::window::HostWindow;
use runtime::{Constructor, CoreId, Event, Instant, Platform, ReactorTimes, Result, SocketOptions};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a core has for itself.
pub(crate) struct Core {
    pub(crate) id: CoreId,
    pub(crate) process: Arc<Shared>,
    recorder: Option<Recorder>,
    files: CoreFiles,
}

impl Core {
    /// On the core's own thread.
    pub(crate) fn new(id: CoreId, process: Arc<Shared>, recorder: Option<Recorder>) -> Self {
        Self { id, process, recorder, files: CoreFiles::new() }
    }
}

/// The real host; see [`runtime::Platform`]. It belongs to one core's thread.
#[derive(Clone)]
pub struct HostPlatform(pub(crate) Rc<Core>);

impl Platform for HostPlatform {
    type Window = HostWindow;
    type Memory = HostMemory;
    type Handle = HostHandle;
    type Notifier = HostNotifier;
    type Listener = HostListener;
    type Stream = HostStream;
    type Net = HostNet;
    type TcpListener = HostTcpListener;
    type TcpStream = HostTcpStream;
    type Directory = HostDirectory;
    type File = HostFile;
    type Channel = HostChannel;
    type Pci = HostPci;
    type Wakes = HostWakes;
    type Sender<T: Send + 'static> = HostSender<T>;
    type Receiver<T: Send + 'static> = HostReceiver<T>;
    type Job<T: Send + 'static> = HostJob<T>;

    fn now(&self) -> Instant {
        clock::now()
    }

    fn random(&self) -> u64 {
        let mut word = [0; 8];
        let filled = rustix::rand::getrandom(&mut word, rustix::rand::GetRandomFlags::empty());
        assert_eq!(filled, Ok(word.len()), "the kernel gives a few random bytes whole");
        u64::from_ne_bytes(word)
    }

    #[inline]
    fn record(&self, event: Event) {
        if let Some(recorder) = &self.0.recorder {
            recorder.record(&event);
        }
    }

    #[inline]
    fn is_recording(&self) -> bool {
        self.0.recorder.is_some()
    }

    fn here(&self) -> CoreId {
        self.0.id
    }

    fn cores(&self) -> u16 {
        self.0.process.len()
    }

    fn reactors(&self) -> Vec<ReactorTimes> {
        self.0.process.times()
    }

    fn start(&self, core: CoreId, constructor: Constructor<Self>) {
        let core = self.0.process.core(core);
        core.started.push(constructor);
        core.waker.wake();
    }

    fn mailbox<T: Send + 'static>(&self, capacity: usize) -> (HostSender<T>, HostReceiver<T>) {
        mailbox::mailbox(&self.0.process, self.0.id, capacity)
    }

    fn offload<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> HostJob<T> {
        offload::offload(&self.0.process, self.0.id, job)
    }

    fn directory(&self) -> HostDirectory {
        HostDirectory::new(&self.0.process.memory_directory)
    }

    fn channel(&self, file: &HostFile) -> Result<HostChannel> {
        self.0.files.channel(file)
    }

    fn pci(&self) -> HostPci {
        self.0.process.pci.clone()
    }

    fn shared_memory(&self, name: &str, len: u64) -> Result<HostMemory> {
        memory::shared_memory(name, len)
    }

    fn listen(&self, path: &str, options: &SocketOptions) -> Result<HostListener> {
        HostListener::listen(path, options)
    }

    fn net(&self) -> HostNet {
        HostNet
    }

    fn stop_requested(&self) -> bool {
        self.0.process.stop.load(Ordering::Relaxed)
    }

    fn ready(&self) {
        // Two renames a core, once in a life, before the first call is answered.
        self.0.process.serves();
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!(%error, "the service manager could not be told that the target serves");
        }
    }
}
