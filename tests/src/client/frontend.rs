//! A vhost-user front-end that behaves as QEMU was seen to behave, over the `vhost` crate.
//!
//! It owns the guest (memory and rings) and the connection apart from each other: when the back-end dies, the rings with
//! their requests stay as they are, and [`Frontend::reconnect`] hands them to the next back-end with the inflight region that
//! the first one gave out, in QEMU's order. Every wait is bounded by [`REPLY_WAIT`] or by the caller.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{
    Frontend as Messages, FrontendReqHandler, HandlerResult, VhostUserFrontend,
    VhostUserFrontendReqHandlerMut,
};
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::memory::{GuestMemory, Pages};
use super::ring::SplitRing;
use super::{ClientError, Result, raw};
use crate::message::request;

/// How long a back-end may take to answer a message. Draining I/O before GET_VRING_BASE's answer is part of it.
pub const REPLY_WAIT: Duration = Duration::from_secs(30);
/// Bytes of the configuration space that QEMU 7.2 reads when it begins.
const CONFIG_SIZE_READ: u32 = 57;
/// The wait between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// Virtio feature bits, from virtio 1.3 sections 5.2.3 and 6, and the vhost-user specification.
pub mod feature {
    #![allow(missing_docs, reason = "the names are the specification's own")]
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    /// What a Linux guest's driver takes of a disk with everything.
    pub const LINUX_DISK: u64 = SEG_MAX
        | BLK_SIZE
        | FLUSH
        | TOPOLOGY
        | CONFIG_WCE
        | MQ
        | DISCARD
        | WRITE_ZEROES
        | INDIRECT_DESC
        | EVENT_IDX
        | RO;
}

/// Device status bits (virtio 1.3 section 2.1).
pub mod status {
    #![allow(missing_docs, reason = "the names are the specification's own")]
    pub const ACKNOWLEDGE: u64 = 1;
    pub const DRIVER: u64 = 2;
    pub const DRIVER_OK: u64 = 4;
    pub const FEATURES_OK: u64 = 8;
    pub const NEEDS_RESET: u64 = 64;
}

/// How a front-end behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Queues that the driver uses.
    pub queues: u16,
    /// Descriptors of each queue.
    pub queue_size: u16,
    /// Virtio features to take where they are offered; VERSION_1 and PROTOCOL_FEATURES always are.
    pub features: u64,
    /// Protocol features to take where they are offered.
    pub protocol: VhostUserProtocolFeatures,
    /// Add memory region by region (when the back-end has slots) instead of a table.
    pub memory_slots: bool,
    /// NEED_REPLY on every message as newer QEMUs do, instead of only where QEMU 7.2 has it.
    pub need_reply: bool,
    /// What guest memory is made of.
    pub pages: Pages,
    /// Bytes of guest memory at 0; rings live here.
    pub low_memory: u64,
    /// Bytes of guest memory above 4 GiB, or 0.
    pub high_memory: u64,
    /// Where both ring indices begin at the first start.
    pub first_index: u16,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            queues: 1,
            queue_size: 128,
            features: feature::LINUX_DISK,
            protocol: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::LOG_SHMFD
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::INFLIGHT_SHMFD
                | VhostUserProtocolFeatures::RESET_DEVICE
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                | VhostUserProtocolFeatures::STATUS,
            memory_slots: false,
            need_reply: false,
            pages: Pages::Small,
            low_memory: 64 << 20,
            high_memory: 64 << 20,
            first_index: 0,
        }
    }
}

/// Counts the CONFIG_CHANGE messages of the back-end.
#[derive(Debug, Default)]
struct ConfigChanges(u64);

impl VhostUserFrontendReqHandlerMut for ConfigChanges {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        self.0 += 1;
        Ok(0)
    }
}

/// The three eventfds of a queue.
#[derive(Debug)]
struct Notifiers {
    kick: EventFd,
    call: EventFd,
    error: EventFd,
}

/// One connection's state: gone when the back-end is.
struct Link {
    messages: Messages,
    stream: UnixStream,
    requests: Option<FrontendReqHandler<Mutex<ConfigChanges>>>,
    config_changes: Arc<Mutex<ConfigChanges>>,
    protocol: VhostUserProtocolFeatures,
    queues_max: u64,
    /// Guest addresses of the regions that this connection's back-end has been given slot by slot.
    slots: Vec<u64>,
}

/// One guest's disk: memory, rings, and the connection to whatever back-end lives just now.
pub struct Frontend {
    path: PathBuf,
    options: Options,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The rings, one per queue.
    pub rings: Vec<SplitRing>,
    notifiers: Vec<Arc<Notifiers>>,
    inflight: Option<(VhostUserInflight, File)>,
    offered: u64,
    acknowledged: u64,
    started: bool,
    link: Option<Link>,
}

impl Frontend {
    /// Connects to the back-end at `path` as QEMU does at its start. No queue runs yet: see [`Frontend::start`].
    pub fn connect(path: &Path, options: Options) -> Result<Frontend> {
        let memory = GuestMemory::with_regions(options.pages, options.low_memory, options.high_memory)?;
        let mut frontend = Frontend {
            path: path.to_path_buf(),
            memory,
            rings: Vec::new(),
            notifiers: Vec::new(),
            inflight: None,
            offered: 0,
            acknowledged: 0,
            started: false,
            link: None,
            options,
        };
        for _ in 0..frontend.options.queues {
            let event =
                || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(ClientError::io("making an eventfd"));
            frontend.notifiers.push(Arc::new(Notifiers { kick: event()?, call: event()?, error: event()? }));
        }
        frontend.handshake(REPLY_WAIT)?;
        if frontend.protocol().contains(VhostUserProtocolFeatures::CONFIG) {
            // As QEMU does when it begins, and not when it reconnects: this is how a back-end can tell them apart.
            frontend.config(0, CONFIG_SIZE_READ)?;
        }
        let event_idx = frontend.wanted_features() & feature::EVENT_IDX != 0;
        for _ in 0..frontend.options.queues {
            let size = frontend.options.queue_size;
            let ring = SplitRing::new(&mut frontend.memory, 0, size, event_idx)?;
            frontend.rings.push(ring);
        }
        Ok(frontend)
    }

    /// [`Frontend::connect`] and [`Frontend::start`] in one.
    pub fn connect_and_start(path: &Path, options: Options) -> Result<Frontend> {
        let mut frontend = Frontend::connect(path, options)?;
        frontend.start()?;
        Ok(frontend)
    }

    /// How this front-end was asked to behave.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Virtio features that the back-end offered.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Virtio features that were acknowledged at the last start.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Protocol features in force.
    pub fn protocol(&self) -> VhostUserProtocolFeatures {
        self.link.as_ref().map_or(VhostUserProtocolFeatures::empty(), |link| link.protocol)
    }

    /// Queues that the back-end says it has.
    pub fn queues_max(&self) -> u64 {
        self.link.as_ref().map_or(0, |link| link.queues_max)
    }

    /// One message by the `vhost` crate's front-end.
    pub fn send<T>(
        &mut self,
        name: &'static str,
        message: impl FnOnce(&mut Messages) -> vhost::Result<T>,
    ) -> Result<T> {
        let link = self.link.as_mut().expect("connected");
        guarded(&link.stream, || message(&mut link.messages)).map_err(ClientError::message(name))
    }

    /// The socket, for raw messages between two of the crate's.
    pub fn stream(&self) -> &UnixStream {
        &self.link.as_ref().expect("connected").stream
    }

    /// A driver's start: rings emptied, a fresh inflight region asked for and set, memory, queues, enable.
    pub fn start(&mut self) -> Result<()> {
        let first_index = self.options.first_index;
        for ring in &mut self.rings {
            ring.reset(&self.memory, first_index);
        }
        self.acknowledged = self.wanted_features();
        self.set_features()?;
        if self.protocol().contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            let wanted = VhostUserInflight {
                mmap_size: 0,
                mmap_offset: 0,
                num_queues: self.options.queues,
                queue_size: self.options.queue_size,
            };
            let given = self.send("GET_INFLIGHT_FD", |messages| messages.get_inflight_fd(&wanted))?;
            self.inflight = Some(given);
            self.set_inflight()?;
        }
        self.set_calls()?;
        self.set_features()?;
        self.set_memory()?;
        let bases = vec![first_index; self.rings.len()];
        self.start_queues(&bases)
    }

    /// Connects to the next back-end and gives it the rings as they are, with their requests out. Waits for the socket for
    /// at most `wait`.
    pub fn reconnect(&mut self, wait: Duration) -> Result<()> {
        self.disconnect();
        self.handshake(wait)?;
        if !self.started {
            return Ok(());
        }
        self.set_features()?;
        if self.inflight.is_some() {
            self.set_inflight()?;
        }
        self.set_calls()?;
        self.set_features()?;
        self.set_memory()?;
        let bases: Vec<u16> = self.rings.iter().map(|ring| ring.used_index(&self.memory)).collect();
        self.start_queues(&bases)
    }

    /// Drops the connection, as a back-end's death does.
    pub fn disconnect(&mut self) {
        self.link = None;
    }

    /// A driver's stop: queues disabled, then stopped. Returns each queue's GET_VRING_BASE.
    pub fn stop(&mut self) -> Result<Vec<u32>> {
        let mut bases = Vec::new();
        for queue in 0..self.rings.len() {
            self.enable(queue, false)?;
        }
        for queue in 0..self.rings.len() {
            let base = self.send("GET_VRING_BASE", |messages| messages.get_vring_base(queue))?;
            bases.push(base);
        }
        self.started = false;
        Ok(bases)
    }

    /// Lets the device see what was pushed on a queue, and kicks it if it wants that.
    pub fn publish(&mut self, queue: usize) {
        if self.rings[queue].publish(&self.memory) {
            self.kick(queue);
        }
    }

    /// True when the back-end has closed the connection (or died): nothing can be read, and nothing ever will.
    pub fn is_closed(&self) -> bool {
        let mut byte = [0];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        match rustix::net::recv(self.stream(), &mut byte, flags) {
            Ok((_, length)) => length == 0,
            Err(errno) => errno != rustix::io::Errno::AGAIN && errno != rustix::io::Errno::INTR,
        }
    }

    /// Waits until the back-end has closed the connection.
    pub fn wait_closed(&self, wait: Duration) -> Result<()> {
        let deadline = Instant::now() + wait;
        while !self.is_closed() {
            if Instant::now() >= deadline {
                return Err(ClientError::Timeout {
                    what: "the connection to be closed".into(),
                    waited: wait,
                });
            }
            std::thread::sleep(CONNECT_PAUSE);
        }
        Ok(())
    }

    /// Kicks a queue.
    pub fn kick(&self, queue: usize) {
        self.notifiers[queue].kick.write(1).expect("an eventfd takes a count of one");
    }

    /// Takes the count of calls of a queue.
    pub fn take_calls(&self, queue: usize) -> u64 {
        self.notifiers[queue].call.read().unwrap_or(0)
    }

    /// True when the back-end signalled the error eventfd of a queue since the last look.
    pub fn take_error(&self, queue: usize) -> bool {
        self.notifiers[queue].error.read().is_ok()
    }

    /// Sleeps until any queue was called, or `wait` is over, and says which. The counts are taken.
    pub fn wait_calls(&self, wait: Duration) -> bool {
        let mut fds: Vec<PollFd<'_>> = self
            .notifiers
            .iter()
            .map(|notifiers| PollFd::from_borrowed_fd(borrow(&notifiers.call), PollFlags::IN))
            .collect();
        let timeout = rustix::time::Timespec::try_from(wait).expect("a short wait");
        // A signal may end the poll early; the caller looks again anyway.
        let _ = poll(&mut fds, Some(&timeout));
        let calls: u64 = (0..self.notifiers.len()).map(|queue| self.take_calls(queue)).sum();
        calls > 0
    }

    /// Reads `size` bytes of the configuration space.
    pub fn config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>> {
        let flags = VhostUserConfigFlags::from_bits_retain(0);
        let asked = vec![0; size as usize];
        let (_, payload) =
            self.send("GET_CONFIG", |messages| messages.get_config(offset, size, flags, &asked))?;
        Ok(payload)
    }

    /// Writes the configuration space as a driver does (flags 0), and waits for the acknowledgement.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<()> {
        let flags = VhostUserConfigFlags::from_bits_retain(0);
        self.acknowledged_message("SET_CONFIG", |messages| messages.set_config(offset, flags, bytes))
    }

    /// The disk's capacity in bytes, as its configuration space says now.
    pub fn capacity_bytes(&mut self) -> Result<u64> {
        let bytes = self.config(0, 8)?;
        Ok(512 * u64::from_le_bytes(bytes.try_into().expect("eight bytes were asked for")))
    }

    /// CONFIG_CHANGE messages seen so far, after waiting at most `wait` for one more.
    pub fn config_changes(&mut self, wait: Duration) -> Result<u64> {
        let link = self.link.as_mut().expect("connected");
        let Some(requests) = link.requests.as_mut() else {
            return Err(ClientError::NotOffered("BACKEND_REQ".into()));
        };
        let timeout = rustix::time::Timespec::try_from(wait).expect("a short wait");
        let ready = {
            let mut fds = [PollFd::from_borrowed_fd(borrow(requests), PollFlags::IN)];
            poll(&mut fds, Some(&timeout)).unwrap_or(0) > 0
        };
        if ready {
            requests.handle_request().map_err(|error| {
                ClientError::Violation(format!("a message of the back-end could not be taken: {error}"))
            })?;
        }
        Ok(link.config_changes.lock().expect("no panic under the lock").0)
    }

    /// Returns when the messages sent so far were carried out: those without a reply may be overtaken by a kick.
    pub fn settle(&self) -> Result<()> {
        raw::ask(self.stream(), request::GET_FEATURES, &[]).map(drop)
    }

    /// GET_STATUS, which the `vhost` crate does not have.
    pub fn device_status(&self) -> Result<u64> {
        raw::ask(self.stream(), request::GET_STATUS, &[])?.as_u64()
    }

    /// SET_STATUS, likewise.
    pub fn set_device_status(&self, status: u64) -> Result<()> {
        raw::send(self.stream(), request::SET_STATUS, 0, &status.to_ne_bytes(), &[])
            .map_err(ClientError::io("sending SET_STATUS"))
    }

    /// Enables or disables a queue.
    pub fn enable(&mut self, queue: usize, enabled: bool) -> Result<()> {
        self.send("SET_VRING_ENABLE", |messages| messages.set_vring_enable(queue, enabled))
    }

    /// Hands a region to the back-end (ADD_MEM_REG, acknowledged).
    pub fn add_region(&mut self, index: usize) -> Result<()> {
        let info = self.memory.regions()[index].info();
        self.acknowledged_message("ADD_MEM_REG", |messages| messages.add_mem_region(&info).map(drop))?;
        self.link.as_mut().expect("connected").slots.push(info.guest_phys_addr);
        Ok(())
    }

    /// Takes a region from the back-end (REM_MEM_REG, acknowledged).
    pub fn remove_region(&mut self, index: usize) -> Result<()> {
        let info = self.memory.regions()[index].info();
        self.acknowledged_message("REM_MEM_REG", |messages| messages.remove_mem_region(&info))?;
        let slots = &mut self.link.as_mut().expect("connected").slots;
        slots.retain(|address| *address != info.guest_phys_addr);
        Ok(())
    }

    /// Sends the whole memory table (acknowledged), as may happen while rings run.
    pub fn set_memory_table(&mut self) -> Result<()> {
        let table: Vec<_> = self.memory.regions().iter().map(|region| region.info()).collect();
        self.acknowledged_message("SET_MEM_TABLE", |messages| messages.set_mem_table(&table).map(drop))
    }

    /// Gives a queue's addresses, with dirty logging of its used ring or without.
    pub fn set_addresses(&mut self, queue: usize, log_used_ring: bool) -> Result<()> {
        let ring = &self.rings[queue];
        let addresses = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: u32::from(log_used_ring),
            desc_table_addr: self.memory.user_address(ring.descriptors),
            used_ring_addr: self.memory.user_address(ring.used),
            avail_ring_addr: self.memory.user_address(ring.available),
            log_addr: log_used_ring.then_some(ring.used),
        };
        self.send("SET_VRING_ADDR", |messages| messages.set_vring_addr(queue, &addresses))
    }

    /// Acknowledges other virtio features while everything runs, as QEMU does when a migration begins and ends.
    pub fn change_features(&mut self, features: u64) -> Result<()> {
        self.acknowledged = features;
        self.set_features()
    }

    /// The inflight region's file and description, when there is one.
    pub fn inflight(&self) -> Option<&(VhostUserInflight, File)> {
        self.inflight.as_ref()
    }

    /// Puts another file in the place of the inflight region, for the next reconnect.
    pub fn replace_inflight(&mut self, description: VhostUserInflight, file: File) {
        self.inflight = Some((description, file));
    }

    fn link_mut(&mut self) -> &mut Link {
        self.link.as_mut().expect("connected")
    }

    fn wanted_features(&self) -> u64 {
        self.offered & (self.options.features | feature::VERSION_1 | feature::PROTOCOL_FEATURES)
    }

    fn handshake(&mut self, wait: Duration) -> Result<()> {
        let stream = connect_until(&self.path, wait)?;
        stream.set_read_timeout(Some(REPLY_WAIT)).map_err(ClientError::io("setting a read timeout"))?;
        let own = stream.try_clone().map_err(ClientError::io("duplicating the socket"))?;
        let messages = Messages::from_stream(own, u64::from(self.options.queues));
        self.link = Some(Link {
            messages,
            stream,
            requests: None,
            config_changes: Arc::default(),
            protocol: VhostUserProtocolFeatures::empty(),
            queues_max: 1,
            slots: Vec::new(),
        });
        self.offered = self.send("GET_FEATURES", |messages| messages.get_features())?;
        if self.offered & feature::PROTOCOL_FEATURES == 0 {
            return Err(ClientError::NotOffered("VHOST_USER_F_PROTOCOL_FEATURES".into()));
        }
        let offered = self.send("GET_PROTOCOL_FEATURES", |messages| messages.get_protocol_features())?;
        let protocol = offered & self.options.protocol;
        self.send("SET_PROTOCOL_FEATURES", |messages| messages.set_protocol_features(protocol))?;
        self.link_mut().protocol = protocol;
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            self.link_mut().queues_max = self.send("GET_QUEUE_NUM", |messages| messages.get_queue_num())?;
        }
        if self.queues_max() < u64::from(self.options.queues) {
            let (wanted, found) = (self.options.queues, self.queues_max());
            return Err(ClientError::NotOffered(format!("{wanted} queues, only {found}")));
        }
        if protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            self.send("GET_MAX_MEM_SLOTS", |messages| messages.get_max_mem_slots())?;
        }
        if protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            let config_changes = self.link_mut().config_changes.clone();
            let mut handler = FrontendReqHandler::new(config_changes).map_err(|error| {
                ClientError::io("making the back-end's channel")(std::io::Error::other(error))
            })?;
            handler.set_reply_ack_flag(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
            let channel = RawDescriptor(handler.get_tx_raw_fd());
            self.link_mut().requests = Some(handler);
            self.acknowledged_message("SET_BACKEND_REQ_FD", |messages| {
                messages.set_backend_request_fd(&channel)
            })?;
        }
        if self.options.need_reply && protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.link_mut().messages.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        self.send("SET_OWNER", |messages| messages.set_owner())?;
        self.send("GET_FEATURES", |messages| messages.get_features())?;
        self.set_calls()?;
        for queue in 0..self.notifiers.len() {
            let notifiers = self.notifiers[queue].clone();
            self.send("SET_VRING_ERR", |messages| messages.set_vring_err(queue, &notifiers.error))?;
        }
        Ok(())
    }

    /// Runs a message with NEED_REPLY where REPLY_ACK is in force.
    fn acknowledged_message(
        &mut self,
        name: &'static str,
        message: impl FnOnce(&mut Messages) -> vhost::Result<()>,
    ) -> Result<()> {
        let always = self.options.need_reply;
        let can = self.protocol().contains(VhostUserProtocolFeatures::REPLY_ACK);
        self.send(name, |messages| {
            if can {
                messages.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
            let result = message(messages);
            if !always {
                messages.set_hdr_flags(VhostUserHeaderFlag::empty());
            }
            result
        })
    }

    fn set_features(&mut self) -> Result<()> {
        let acknowledged = self.acknowledged;
        self.send("SET_FEATURES", |messages| messages.set_features(acknowledged))
    }

    fn set_inflight(&mut self) -> Result<()> {
        let (description, file) = self.inflight.as_ref().expect("the caller has a region");
        let (description, fd) = (*description, file.as_raw_fd());
        self.send("SET_INFLIGHT_FD", |messages| messages.set_inflight_fd(&description, fd))
    }

    fn set_calls(&mut self) -> Result<()> {
        for queue in 0..self.notifiers.len() {
            let notifiers = self.notifiers[queue].clone();
            self.send("SET_VRING_CALL", |messages| messages.set_vring_call(queue, &notifiers.call))?;
        }
        Ok(())
    }

    fn set_memory(&mut self) -> Result<()> {
        let slots = self.protocol().contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);
        if !(self.options.memory_slots && slots) {
            return self.set_memory_table();
        }
        for index in 0..self.memory.regions().len() {
            let address = self.memory.regions()[index].guest_address;
            if !self.link.as_ref().expect("connected").slots.contains(&address) {
                self.add_region(index)?;
            }
        }
        Ok(())
    }

    fn start_queues(&mut self, bases: &[u16]) -> Result<()> {
        for (queue, base) in bases.iter().enumerate() {
            let size = self.rings[queue].size;
            self.send("SET_VRING_NUM", |messages| messages.set_vring_num(queue, size))?;
            self.send("SET_VRING_BASE", |messages| messages.set_vring_base(queue, *base))?;
            self.set_addresses(queue, false)?;
            let notifiers = self.notifiers[queue].clone();
            self.send("SET_VRING_KICK", |messages| messages.set_vring_kick(queue, &notifiers.kick))?;
        }
        for queue in 0..bases.len() {
            self.enable(queue, true)?;
        }
        self.started = true;
        Ok(())
    }
}

/// Runs one exchange, and shuts the socket down when it takes longer than [`REPLY_WAIT`]: the crate retries a receive that
/// timed out for ever.
fn guarded<T>(stream: &UnixStream, exchange: impl FnOnce() -> T) -> T {
    let (done, watched) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if watched.recv_timeout(REPLY_WAIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                // Fails only if it is shut down already.
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        });
        let result = exchange();
        drop(done);
        result
    })
}

/// Connects to a unix socket, again and again until it is there.
pub fn connect_until(path: &Path, wait: Duration) -> Result<UnixStream> {
    let deadline = Instant::now() + wait;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => {
                return Err(ClientError::io(format!("connecting to {}", path.display()))(error));
            }
            Err(_) => std::thread::sleep(CONNECT_PAUSE),
        }
    }
}

/// A descriptor that somebody else owns, as the `vhost` crate wants to see it.
struct RawDescriptor(i32);

impl AsRawFd for RawDescriptor {
    fn as_raw_fd(&self) -> i32 {
        self.0
    }
}

/// Borrows the descriptor of something that the caller keeps alive.
fn borrow(owner: &impl AsRawFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the descriptor belongs to `owner`, which the returned lifetime borrows.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}
