//! `runtime::Platform` over the world: what the target sees of it, from one core.

use crate::disk::SimChannel;
use crate::files::{SimDirectory, SimFile};
use crate::follow::{Followed, LifeChange};
use crate::mailbox::{self, SimReceiver, SimSender};
use crate::memory::{SimMemory, SimWindow};
use crate::net::{SimNet, SimTcpListener, SimTcpStream};
use crate::notifier::SimNotifier;
use crate::offload::SimJob;
use crate::pci::SimPci;
use crate::trace::Record;
use crate::unix::{SimHandle, SimListener, SimStream};
use crate::world::{self, Waiter};
use runtime::{
    Constructor, CoreId, ErrorKind, Event, Instant, Interest, Platform, ReactorTimes, Result, SocketOptions,
    Wakes,
};
use stack::events::Kind;
use stack::reached::Reached;

/// One core of one life of a simulated process.
#[derive(Clone, Debug)]
pub struct SimPlatform {
    core: u32,
}

impl SimPlatform {
    pub(crate) fn of(core: u32) -> Self {
        Self { core }
    }
}

impl Platform for SimPlatform {
    type Window = SimWindow;
    type Memory = SimMemory;
    type Handle = SimHandle;
    type Notifier = SimNotifier;
    type Listener = SimListener;
    type Stream = SimStream;
    type Net = SimNet;
    type TcpListener = SimTcpListener;
    type TcpStream = SimTcpStream;
    type Directory = SimDirectory;
    type File = SimFile;
    type Channel = SimChannel;
    type Pci = SimPci;
    type Wakes = SimWakes;
    type Sender<T: Send + 'static> = SimSender<T>;
    type Receiver<T: Send + 'static> = SimReceiver<T>;
    type Job<T: Send + 'static> = SimJob<T>;

    fn now(&self) -> Instant {
        world::with(|world| world.now)
    }

    fn random(&self) -> u64 {
        world::with(|world| {
            let word = world.streams.process.word();
            world.trace.add(Record::Draw, 3, word);
            word
        })
    }

    fn is_recording(&self) -> bool {
        true
    }

    fn record(&self, event: Event) {
        world::with(|world| {
            if world.is_fenced() {
                return;
            }
            let place =
                u64::from(event.kind) << 48 | u64::from(event.device) << 32 | u64::from(event.queue) << 16;
            world.trace.add(
                Record::Event,
                place | u64::from(event.detail),
                event.a ^ event.b.rotate_left(32),
            );
            if event.kind == Kind::RequestReplayed as u16 {
                world.replayed += 1;
            }
            if let Some(point) = Reached::of_event(&event) {
                world.reach(point);
            }
            let core = self.core;
            world.say(|| format!("core {core}: {}", stack::events::Line(&event)));
            if world.trace.is_followed() {
                world.trace.tell(Followed::Event(core, &event));
            }
        });
    }

    fn here(&self) -> CoreId {
        world::with(|world| CoreId(world.cores[self.core as usize].number))
    }

    fn cores(&self) -> u16 {
        world::with(|world| {
            let process = world.cores[self.core as usize].process;
            world.processes[process as usize].cores.len() as u16
        })
    }

    fn reactors(&self) -> Vec<ReactorTimes> {
        world::with(|world| {
            let process = world.cores[self.core as usize].process;
            let cores = &world.processes[process as usize].cores;
            let times = cores.iter().map(|core| {
                let core = &world.cores[*core as usize];
                ReactorTimes {
                    core: CoreId(core.number),
                    processor: u32::from(core.number),
                    busy_ns: core.busy_ns,
                    idle_ns: world.now.0.saturating_sub(core.busy_ns),
                }
            });
            times.collect()
        })
    }

    fn start(&self, core: CoreId, constructor: Constructor<Self>) {
        world::with(|world| {
            if world.is_fenced() {
                return;
            }
            let process = world.cores[self.core as usize].process;
            let target = world.processes[process as usize].cores[usize::from(core.0)];
            let slot = &mut world.cores[target as usize];
            slot.constructors.push_back(constructor);
            let sleep = slot.sleep;
            world.drain_acting();
            world.changed();
            world.wake(Waiter::Core(target, sleep));
        });
    }

    fn mailbox<T: Send + 'static>(&self, capacity: usize) -> (SimSender<T>, SimReceiver<T>) {
        mailbox::mailbox(capacity)
    }

    fn offload<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> SimJob<T> {
        world::with(|world| world.offload(job))
    }

    fn directory(&self) -> SimDirectory {
        SimDirectory::new(world::with(|world| world.cores[self.core as usize].process))
    }

    fn channel(&self, file: &SimFile) -> Result<SimChannel> {
        SimChannel::open(file)
    }

    fn pci(&self) -> SimPci {
        SimPci::new(world::with(|world| world.cores[self.core as usize].process))
    }

    fn shared_memory(&self, _name: &str, len: u64) -> Result<SimMemory> {
        if len == 0 {
            return Err(ErrorKind::Invalid.into());
        }
        world::with(|world| {
            let object = world.memory.object(len);
            Ok(SimMemory::new(world, object, 0, len))
        })
    }

    fn listen(&self, path: &str, _options: &SocketOptions) -> Result<SimListener> {
        world::with(|world| {
            if world.is_fenced() {
                return Err(ErrorKind::Closed.into());
            }
            world.listen(path)
        })
    }

    fn net(&self) -> SimNet {
        SimNet::of(world::with(|world| {
            let process = world.cores[self.core as usize].process;
            world.processes[process as usize].machine
        }))
    }

    fn stop_requested(&self) -> bool {
        world::with(|world| {
            let process = world.cores[self.core as usize].process;
            world.processes[process as usize].stop_requested
        })
    }

    fn ready(&self) {
        world::with(|world| {
            if !world.is_fenced() {
                let process = world.cores[self.core as usize].process;
                world.processes[process as usize].ready = true;
                world.trace.add(Record::Life, u64::from(process), 2);
                world.tell(|| format!("process {process} is ready"));
                world.trace.tell(Followed::Life(process, LifeChange::Ready));
            }
        });
    }
}

/// Collects what may wake a core from the sleep that it is about to begin.
pub struct SimWakes {
    waiter: Waiter,
    ready: bool,
}

impl SimWakes {
    pub(crate) fn new(core: u32) -> Self {
        let sleep = world::with(|world| world.cores[core as usize].sleep);
        Self { waiter: Waiter::Core(core, sleep), ready: false }
    }

    /// Whether something that was armed is there already.
    pub(crate) fn ready(&self) -> bool {
        self.ready
    }
}

impl Wakes<SimPlatform> for SimWakes {
    fn notifier(&mut self, notifier: &SimNotifier) {
        self.ready |= world::with(|world| {
            let state = &mut world.eventfds[notifier.eventfd as usize];
            state.waiter = self.waiter;
            state.rung
        });
    }

    fn listener(&mut self, listener: &SimListener) {
        self.ready |= world::with(|world| world.await_listener(listener.listener, self.waiter));
    }

    fn stream(&mut self, stream: &SimStream, interest: Interest) {
        self.ready |= world::with(|world| world.await_end(stream.end, self.waiter, interest));
    }

    fn tcp_listener(&mut self, listener: &SimTcpListener) {
        self.ready |= world::with(|world| world.await_tcp_listener(listener.listener, self.waiter));
    }

    fn tcp_stream(&mut self, stream: &SimTcpStream, interest: Interest) {
        let send_too = interest == Interest::ReceiveAndSend;
        self.ready |= world::with(|world| world.await_tcp(stream.end, self.waiter, send_too));
    }

    fn channel(&mut self, channel: &SimChannel) {
        self.ready |= channel.await_completion(self.waiter);
    }

    fn mailbox<T: Send + 'static>(&mut self, receiver: &SimReceiver<T>) {
        self.ready |= receiver.await_message(self.waiter);
    }

    fn job<T: Send + 'static>(&mut self, job: &SimJob<T>) {
        self.ready |= job.await_end(self.waiter);
    }
}
