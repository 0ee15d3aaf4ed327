//! NVMe/TCP: the target's front and groups on a process's cores, and a small host of its own reading on another host.
//!
//! The host here knows bytes: it makes each PDU by hand, so that it can make wrong ones, and looks at every byte that comes.

use super::{NetOf, Task, TcpStreamOf, World, ready, run};
use runtime::{CoreId, ErrorKind, Memory, Net, Platform, Receiver, Segments, Sender, TcpStream, Window};
use stack::block::{Bdev, MallocBdev};
use stack::nvme::bits::{
    AsyncEventConfig, CNTLID_DYNAMIC, Command, Completion, Connect, ConnectData, DISCOVERY_NQN,
    DiscoveryHeader, IdentifyController, IdentifyNamespace, QueueCount, SglDescriptor, Status, cns, feature,
    io, log, register,
};
use stack::nvme::controller::{Hosts, Namespace, Port, Subsystem};
use stack::nvme::tcp::{ArenaSizes, Front, Order, Report, Wanted};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const NQN: &str = "nqn.2026-11.io.reprise:disks";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
const PORT: u16 = 4420;
const BLOCKS: u64 = 1024;
const BLOCK: usize = 512;
/// Few buffers, so that commands have to wait for them.
const SIZES: ArenaSizes = ArenaSizes { small: 4, middle: 2, large: 2 };

type PlatformOf<W> = <W as World>::Platform;
type SenderOf<W> = <PlatformOf<W> as Platform>::Sender<Order<PlatformOf<W>>>;
type ReceiverOf<W> = <PlatformOf<W> as Platform>::Receiver<Report>;

/// A target.
struct Target<W: World> {
    orders: SenderOf<W>,
    reports: ReceiverOf<W>,
    address: SocketAddr,
    disks: Vec<Arc<dyn Bdev<PlatformOf<W>>>>,
    version: u64,
}

impl<W: World> Target<W> {
    /// One that serves two disks to any host, over two cores.
    async fn start(task: &Task<PlatformOf<W>>) -> Self {
        let (orders, order) = task.platform.mailbox(8);
        let (report, reports) = task.platform.mailbox(8);
        task.platform.start(
            CoreId(0),
            Box::new(move |platform| Box::new(Front::new(platform, order, report, SIZES, "0.1.0"))),
        );
        let disk = |name: &str| {
            let memory = task.platform.shared_memory(name, BLOCKS * BLOCK as u64).expect("there is memory");
            let disk = MallocBdev::new(name.into(), [7; 16], BLOCK as u32, BLOCK as u32, BLOCKS, memory, 2);
            Arc::new(disk) as Arc<dyn Bdev<PlatformOf<W>>>
        };
        let disks = vec![disk("one"), disk("two")];
        let address = free_address::<W>(task);
        let mut target = Self { orders, reports, address, disks, version: 0 };
        target.want(task, Hosts::Any, &[1, 2]).await;
        target
    }

    /// Changes what it serves.
    async fn want(&mut self, task: &Task<PlatformOf<W>>, hosts: Hosts, namespaces: &[u32]) {
        let namespace = |id: &u32| Namespace {
            id: *id,
            version: 1,
            bdev: Some(self.disks[*id as usize - 1].clone()),
            uuid: [*id as u8; 16],
            nguid: [9; 16],
            eui64: [0; 8],
        };
        let subsystem = Subsystem {
            nqn: NQN.into(),
            number: 1,
            serial: "S3RIAL".into(),
            model: "Reprise".into(),
            firmware: "0.1.0",
            hosts,
            namespaces: namespaces.iter().map(namespace).collect(),
            namespaces_max: 32,
        };
        let port = Port { subnqn: NQN.into(), address: self.address, advertised: self.address, id: 1 };
        self.version += 1;
        let wanted = Wanted { version: self.version, subsystems: vec![subsystem], ports: vec![port] };
        assert!(self.orders.send(Order::Want(wanted)).is_ok(), "the front takes orders");
        match task.poll("what is wanted", || self.reports.receive()).await {
            Report::Settled { version, refused } if version == self.version && refused.is_empty() => {}
            other => panic!("{other:?}"),
        }
    }

    /// Ends it.
    async fn stop(mut self, task: &Task<PlatformOf<W>>) {
        assert!(self.orders.send(Order::Stop).is_ok(), "the front takes orders");
        match task.poll("the end", || self.reports.receive()).await {
            Report::Stopped => {}
            other => panic!("{other:?}"),
        }
    }
}

fn free_address<W: World>(task: &Task<PlatformOf<W>>) -> SocketAddr {
    use runtime::TcpListener;
    let any = SocketAddr::new(W::host_address(false), 0);
    let port = match task.platform.net().listen(any) {
        Ok(listener) => listener.address().port(),
        Err(_) => PORT,
    };
    SocketAddr::new(W::host_address(false), port)
}

fn crc(bytes: &[u8]) -> u32 {
    // By the bit: another way than the target's.
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ 0x82f6_3b78 & (crc & 1).wrapping_neg())
    })
}

/// A PDU as it came.
#[derive(Debug)]
struct Pdu {
    kind: u8,
    flags: u8,
    header: Vec<u8>,
    data: Vec<u8>,
}

impl Pdu {
    fn completion(&self) -> Completion {
        assert_eq!((self.kind, self.header.len()), (5, 24), "a response: {self:?}");
        Completion::decode(&self.header[8..])
    }

    fn field(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.header[at..at + 4].try_into().unwrap())
    }
}

/// A host's connection.
struct Host<W: World> {
    stream: TcpStreamOf<W>,
    header_digest: bool,
    data_digest: bool,
    /// Bytes that data to the host is aligned to.
    alignment: usize,
    sends: u64,
}

impl<W: World> Host<W> {
    async fn reach(task: &Task<PlatformOf<W>>, net: &NetOf<W>, to: SocketAddr) -> Self {
        let mut stream = net.connect(to, None).expect("it begins");
        task.poll("the connection", || stream.is_connected().expect("nobody refuses").then_some(())).await;
        Self { stream, header_digest: false, data_digest: false, alignment: 4, sends: 0 }
    }

    /// A connection that is initialized.
    async fn initialized(task: &Task<PlatformOf<W>>, to: SocketAddr, digests: u8, hpda: u8) -> Self {
        let net = W::another_host(&task.platform);
        let mut host = Self::reach(task, &net, to).await;
        let mut request = [0; 128];
        request[..16].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0, 0, 0, hpda, digests, 3, 0, 0, 0]);
        host.send(task, &request).await;
        let response = host.receive(task, 128).await;
        assert_eq!(response[..12], [1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, digests]);
        assert_eq!(u32::from_le_bytes(response[12..16].try_into().unwrap()), 131_072);
        host.header_digest = digests & 1 != 0;
        host.data_digest = digests & 2 != 0;
        host.alignment = (usize::from(hpda) + 1) * 4;
        host
    }

    async fn send(&mut self, task: &Task<PlatformOf<W>>, bytes: &[u8]) {
        let memory = task.platform.shared_memory("test", bytes.len() as u64).expect("there is memory");
        memory.window().write(0, bytes);
        let mut done = 0;
        while done < bytes.len() as u64 {
            let rest = memory.window().slice(done, bytes.len() as u64 - done).expect("inside");
            done +=
                task.poll("room to send", || ready(self.stream.send(Segments(&[rest]), self.sends))).await;
            task.poll("a release", || self.stream.released()).await;
            self.sends += 1;
        }
    }

    async fn receive(&mut self, task: &Task<PlatformOf<W>>, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let least = (len - bytes.len()).min(TcpStreamOf::<W>::PEEK_MAX);
            let part = task.poll("bytes", || ready(self.stream.peek(least)).map(<[u8]>::to_vec)).await;
            assert!(part.len() >= least, "the target closed after {} bytes of {len}", bytes.len());
            bytes.extend(&part[..least]);
            self.stream.consume(least);
        }
        bytes
    }

    /// Whether the target closes, with nothing more before.
    async fn is_closed(&mut self, task: &Task<PlatformOf<W>>) {
        let end = || match self.stream.peek(1) {
            Ok(bytes) => Some(bytes.to_vec()),
            Err(error) if error.kind == ErrorKind::WouldBlock => None,
            Err(_) => Some(Vec::new()),
        };
        let last: Vec<u8> = task.poll("the end", end).await;
        assert!(last.is_empty(), "nothing comes before the end: {last:?}");
    }

    /// The bytes of a PDU.
    fn pdu(&self, kind: u8, flags: u8, rest: &[u8], data: &[u8]) -> Vec<u8> {
        let hlen = 8 + rest.len();
        let head = hlen + if self.header_digest { 4 } else { 0 };
        let has_data = !data.is_empty();
        let tail = if has_data && self.data_digest { 4 } else { 0 };
        let flags = flags | u8::from(self.header_digest) | if tail > 0 { 2 } else { 0 };
        let pdo = if has_data { head as u8 } else { 0 };
        let mut bytes = vec![kind, flags, hlen as u8, pdo];
        bytes.extend(((head + data.len() + tail) as u32).to_le_bytes());
        bytes.extend(rest);
        if self.header_digest {
            bytes.extend(crc(&bytes).to_le_bytes());
        }
        bytes.extend(data);
        if tail > 0 {
            bytes.extend(crc(data).to_le_bytes());
        }
        bytes
    }

    fn capsule(&self, command: &Command, data: &[u8]) -> Vec<u8> {
        let mut entry = [0; 64];
        command.encode(&mut entry);
        self.pdu(4, 0, &entry, data)
    }

    /// The next PDU, whose every length, digest and alignment is right.
    async fn next(&mut self, task: &Task<PlatformOf<W>>) -> Pdu {
        let common = self.receive(task, 8).await;
        let (kind, flags, hlen, pdo) = (common[0], common[1], usize::from(common[2]), usize::from(common[3]));
        let plen = u32::from_le_bytes(common[4..8].try_into().unwrap()) as usize;
        let mut header = common;
        header.extend(self.receive(task, hlen - 8).await);
        let mut at = hlen;
        // Termination requests have no digest.
        if self.header_digest && kind != 3 {
            assert_eq!(flags & 1, 1, "the header's digest was agreed on");
            let digest = self.receive(task, 4).await;
            assert_eq!(digest, crc(&header).to_le_bytes(), "the digest of {header:?}");
            at += 4;
        }
        let mut data = Vec::new();
        if plen > at {
            let begin = if kind == 3 { at } else { pdo };
            assert!(kind == 3 || pdo % self.alignment == 0 && pdo >= at, "data at {pdo}");
            self.receive(task, begin - at).await;
            let tail = if self.data_digest && kind != 3 { 4 } else { 0 };
            data = self.receive(task, plen - begin - tail).await;
            if tail > 0 {
                assert_eq!(self.receive(task, 4).await, crc(&data).to_le_bytes(), "the digest of data");
            }
        }
        Pdu { kind, flags, header, data }
    }

    /// Connects a queue; the answer to it.
    async fn connect(&mut self, task: &Task<PlatformOf<W>>, request: &Request<'_>) -> Completion {
        let command = Command::connect(&Connect {
            queue: request.queue,
            sq_size: request.entries - 1,
            attributes: if request.flow_control { 0 } else { Connect::NO_FLOW_CONTROL },
            keep_alive_ms: request.keep_alive_ms,
            record_format: 0,
        });
        let command = Command { id: 0x1000, ..command }.with_sgl(SglDescriptor::in_capsule(1024));
        let mut data =
            ConnectData { hostid: [5; 16], cntlid: request.cntlid, subnqn: [0; 256], hostnqn: [0; 256] };
        data.subnqn[..request.subnqn.len()].copy_from_slice(request.subnqn.as_bytes());
        data.hostnqn[..request.hostnqn.len()].copy_from_slice(request.hostnqn.as_bytes());
        let mut bytes = [0; 1024];
        data.encode(&mut bytes);
        let pdu = self.capsule(&command, &bytes);
        self.send(task, &pdu).await;
        let answer = self.next(task).await.completion();
        assert_eq!(answer.id, 0x1000);
        answer
    }

    /// Runs a command whose data, if any, comes from the target; the completion and the data.
    async fn run(&mut self, task: &Task<PlatformOf<W>>, command: Command, len: u32) -> (Completion, Vec<u8>) {
        let command = command.with_sgl(SglDescriptor::transport(len));
        let pdu = self.capsule(&command, &[]);
        self.send(task, &pdu).await;
        self.answer(task, command.id).await
    }

    /// What comes of a command that has no data to send any more.
    async fn answer(&mut self, task: &Task<PlatformOf<W>>, id: u16) -> (Completion, Vec<u8>) {
        let pdu = self.next(task).await;
        if pdu.kind == 5 {
            assert_eq!(pdu.completion().id, id);
            return (pdu.completion(), Vec::new());
        }
        assert_eq!((pdu.kind, pdu.header.len(), pdu.flags & 4), (7, 24, 4), "data: {pdu:?}");
        assert_eq!((pdu.field(8) as u16, pdu.field(12), pdu.field(16)), (id, 0, pdu.data.len() as u32));
        if pdu.flags & 8 != 0 {
            return (Completion { id, ..Completion::default() }, pdu.data);
        }
        let completion = self.next(task).await.completion();
        assert_eq!(completion.id, id);
        (completion, pdu.data)
    }

    /// Writes by an R2T, in PDUs of at most `piece` bytes.
    async fn write(
        &mut self,
        task: &Task<PlatformOf<W>>,
        id: u16,
        lba: u64,
        bytes: &[u8],
        piece: usize,
    ) -> Status {
        let blocks = (bytes.len() / BLOCK) as u32;
        let command = Command { id, ..Command::on_range(io::WRITE, 1, lba, blocks, 0) };
        let pdu = self.capsule(&command.with_sgl(SglDescriptor::transport(bytes.len() as u32)), &[]);
        self.send(task, &pdu).await;
        let r2t = self.next(task).await;
        assert_eq!((r2t.kind, r2t.header.len(), r2t.field(8) as u16), (9, 24, id), "{r2t:?}");
        assert_eq!((r2t.field(12), r2t.field(16)), (0, bytes.len() as u32));
        let tag = [r2t.header[10], r2t.header[11]];
        let mut at = 0;
        for part in bytes.chunks(piece) {
            let last = if at + part.len() == bytes.len() { 4 } else { 0 };
            let pdu = self.pdu(6, last, &data_fields(id, tag, at as u32, part.len() as u32), part);
            self.send(task, &pdu).await;
            at += part.len();
        }
        let (completion, data) = self.answer(task, id).await;
        assert!(data.is_empty());
        completion.status
    }

    /// Writes with the data in the capsule.
    async fn write_along(&mut self, task: &Task<PlatformOf<W>>, id: u16, lba: u64, bytes: &[u8]) -> Status {
        let blocks = (bytes.len() / BLOCK) as u32;
        let command = Command { id, ..Command::on_range(io::WRITE, 1, lba, blocks, 0) };
        let command = command.with_sgl(SglDescriptor::in_capsule(bytes.len() as u32));
        let pdu = self.capsule(&command, bytes);
        self.send(task, &pdu).await;
        self.answer(task, id).await.0.status
    }

    async fn read(&mut self, task: &Task<PlatformOf<W>>, id: u16, lba: u64, blocks: u32) -> Vec<u8> {
        let command = Command { id, ..Command::on_range(io::READ, 1, lba, blocks, 0) };
        let (completion, data) = self.run(task, command, blocks * BLOCK as u32).await;
        assert!(completion.status.is_success(), "{}", completion.status);
        data
    }

    async fn set_property(&mut self, task: &Task<PlatformOf<W>>, cc: u64) {
        let command = Command::property_set(register::CC as u32, false, cc);
        assert!(self.run(task, command, 0).await.0.status.is_success());
    }

    async fn csts(&mut self, task: &Task<PlatformOf<W>>) -> u32 {
        self.run(task, Command::property_get(register::CSTS as u32, false), 0).await.0.result
    }
}

/// The fields of H2CData behind the common header.
fn data_fields(id: u16, tag: [u8; 2], offset: u32, len: u32) -> [u8; 16] {
    let mut fields = [0; 16];
    fields[..2].copy_from_slice(&id.to_le_bytes());
    fields[2..4].copy_from_slice(&tag);
    fields[4..8].copy_from_slice(&offset.to_le_bytes());
    fields[8..12].copy_from_slice(&len.to_le_bytes());
    fields
}

/// What a host connects to.
#[derive(Clone, Copy)]
struct Request<'a> {
    subnqn: &'a str,
    hostnqn: &'a str,
    cntlid: u16,
    queue: u16,
    entries: u16,
    flow_control: bool,
    keep_alive_ms: u32,
}

const ADMIN: Request<'static> = Request {
    subnqn: NQN,
    hostnqn: HOST,
    cntlid: CNTLID_DYNAMIC,
    queue: 0,
    entries: 32,
    flow_control: true,
    keep_alive_ms: 0,
};

const ENABLE: u64 = 0x46_0001;

/// The admin queue of a controller that works, and its identifier.
async fn admin<W: World>(task: &Task<PlatformOf<W>>, to: SocketAddr, digests: u8) -> (Host<W>, u16) {
    let mut host = Host::<W>::initialized(task, to, digests, 0).await;
    let answer = host.connect(task, &ADMIN).await;
    assert!(answer.status.is_success(), "{}", answer.status);
    host.set_property(task, ENABLE).await;
    assert_eq!(host.csts(task).await, 1);
    (host, answer.result as u16)
}

/// An I/O queue of a controller.
async fn io_queue<W: World>(
    task: &Task<PlatformOf<W>>,
    to: SocketAddr,
    cntlid: u16,
    queue: u16,
    digests: u8,
    hpda: u8,
) -> Host<W> {
    let mut host = Host::<W>::initialized(task, to, digests, hpda).await;
    let flow_control = queue.is_multiple_of(2);
    let answer = host.connect(task, &Request { cntlid, queue, flow_control, ..ADMIN }).await;
    assert!(answer.status.is_success(), "{}", answer.status);
    host
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_add(seed).wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

/// What was written is read: in the capsule, by R2T in many pieces, at every kind of digest and alignment.
pub fn what_is_written_is_read<W: World>() {
    run::<W, _>(2, |task| async move {
        let target = Target::<W>::start(&task).await;
        for (digests, hpda) in [(0, 0), (3, 7), (1, 31), (2, 1)] {
            let (mut admin, cntlid) = admin::<W>(&task, target.address, digests).await;
            let (done, told) = admin.run(&task, Command::identify(cns::CONTROLLER, 0), 4096).await;
            assert!(done.status.is_success());
            assert_eq!(IdentifyController::decode(&told).cntlid, cntlid);
            let (_, told) = admin.run(&task, Command::identify(cns::NAMESPACE, 2), 4096).await;
            assert_eq!(IdentifyNamespace::decode(&told).nsze, BLOCKS);
            let mut queue =
                io_queue::<W>(&task, target.address, cntlid, 1 + u16::from(hpda), digests, hpda).await;
            let (small, large) = (pattern(2 * BLOCK, 1), pattern(131_072, u32::from(hpda)));
            assert_eq!(queue.write_along(&task, 1, 10, &small).await, Status::SUCCESS);
            assert_eq!(queue.read(&task, 2, 10, 2).await, small);
            assert_eq!(queue.write(&task, 3, 100, &large, 50_000).await, Status::SUCCESS);
            assert_eq!(queue.read(&task, 4, 100, 256).await, large);
            let (done, _) = queue.run(&task, Command { id: 5, ..Command::flush(1) }, 0).await;
            assert!(done.status.is_success());
            let zeroes = Command { id: 6, ..Command::on_range(io::WRITE_ZEROES, 1, 10, 1, 0) };
            assert!(queue.run(&task, zeroes, 0).await.0.status.is_success());
            let expected = [vec![0; BLOCK], small[BLOCK..].to_vec()].concat();
            assert_eq!(queue.read(&task, 7, 10, 2).await, expected);
            // Deallocated, in two ranges, and read as zeroes: this disk does that.
            let mut ranges = [0; 32];
            for (range, lba) in ranges.chunks_mut(16).zip([11_u64, 100]) {
                range[4] = 1;
                range[8..].copy_from_slice(&lba.to_le_bytes());
            }
            let command =
                Command { id: 8, ..Command::deallocate(1, 2) }.with_sgl(SglDescriptor::in_capsule(32));
            let pdu = queue.capsule(&command, &ranges);
            queue.send(&task, &pdu).await;
            assert!(queue.answer(&task, 8).await.0.status.is_success());
            assert_eq!(queue.read(&task, 9, 11, 1).await, [0; BLOCK]);
            assert_eq!(queue.read(&task, 10, 100, 2).await, [&[0; BLOCK], &large[BLOCK..2 * BLOCK]].concat());
        }
        target.stop(&task).await;
    });
}

/// Commands that cannot be are answered, each with its status, and the queue goes on.
pub fn a_refused_command_ends_alone<W: World>() {
    run::<W, _>(2, |task| async move {
        let target = Target::<W>::start(&task).await;
        let (_admin, cntlid) = admin::<W>(&task, target.address, 0).await;
        let mut queue = io_queue::<W>(&task, target.address, cntlid, 2, 3, 0).await;
        for (command, len, expected) in [
            (Command::on_range(io::READ, 1, BLOCKS, 1, 0), 512, Status::LBA_OUT_OF_RANGE),
            (Command::on_range(io::READ, 3, 0, 1, 0), 512, Status::INVALID_NAMESPACE),
            (Command::on_range(io::READ, 1, 0, 2, 0), 512, Status::SGL_LENGTH_INVALID),
            (Command::on_range(io::COMPARE, 1, 0, 1, 0), 512, Status::INVALID_OPCODE),
            (Command::identify(0, 1), 512, Status::INVALID_OPCODE),
        ] {
            let (done, _) = queue.run(&task, Command { id: 7, ..command }, len).await;
            assert_eq!(done.status.code(), expected, "{command:?}");
            assert_eq!(done.status.dnr(), 1);
        }
        // What comes along with a refused write is no next PDU.
        let bytes = pattern(BLOCK, 3);
        assert_eq!(queue.write_along(&task, 8, BLOCKS, &bytes).await.code(), Status::LBA_OUT_OF_RANGE);
        // A range outside of the disk, of two: nothing says so before the data is there.
        let mut ranges = [0; 16];
        ranges[4] = 1;
        ranges[8..].copy_from_slice(&BLOCKS.to_le_bytes());
        let command = Command { id: 9, ..Command::deallocate(1, 1) }.with_sgl(SglDescriptor::in_capsule(16));
        let pdu = queue.capsule(&command, &ranges);
        queue.send(&task, &pdu).await;
        assert_eq!(queue.answer(&task, 9).await.0.status.code(), Status::LBA_OUT_OF_RANGE);
        // A wrong digest of data: that command, and it may be sent again.
        let command = Command { id: 10, ..Command::on_range(io::WRITE, 1, 0, 1, 0) };
        let mut pdu = queue.capsule(&command.with_sgl(SglDescriptor::in_capsule(512)), &bytes);
        *pdu.last_mut().unwrap() ^= 1;
        queue.send(&task, &pdu).await;
        let done = queue.answer(&task, 10).await.0;
        assert_eq!((done.status, done.status.dnr()), (Status::TRANSIENT_TRANSPORT, 0));
        assert_eq!(queue.write_along(&task, 11, 0, &bytes).await, Status::SUCCESS);
        assert_eq!(queue.read(&task, 12, 0, 1).await, bytes);
        target.stop(&task).await;
    });
}

/// Many at a time, more than there are buffers for: all end, once, with their own data.
pub fn commands_wait_for_buffers_and_all_end<W: World>() {
    run::<W, _>(2, |task| async move {
        let target = Target::<W>::start(&task).await;
        let (_admin, cntlid) = admin::<W>(&task, target.address, 0).await;
        let mut queue = io_queue::<W>(&task, target.address, cntlid, 1, 0, 0).await;
        let large = pattern(65_536, 9);
        assert_eq!(queue.write(&task, 1, 0, &large, 65_536).await, Status::SUCCESS);
        let mut sent = Vec::new();
        for id in 0..31_u16 {
            let command = if id % 4 == 0 {
                let command = Command { id, ..Command::on_range(io::WRITE, 1, 512 + u64::from(id), 1, 0) };
                (command.with_sgl(SglDescriptor::in_capsule(512)), pattern(BLOCK, u32::from(id)))
            } else {
                let command = Command { id, ..Command::on_range(io::READ, 1, u64::from(id), 64, 0) };
                (command.with_sgl(SglDescriptor::transport(32_768)), Vec::new())
            };
            sent.extend(queue.capsule(&command.0, &command.1));
        }
        queue.send(&task, &sent).await;
        let mut ended = [false; 31];
        for _ in 0..31 {
            let pdu = queue.next(&task).await;
            let id = pdu.header[8] as usize;
            let id = if pdu.kind == 7 { id } else { usize::from(pdu.completion().id) };
            assert!(!core::mem::replace(&mut ended[id], true), "{id} ends once");
            if pdu.kind == 7 {
                assert_eq!(pdu.flags & 12, 12, "without flow control the data says that it is done");
                assert!(pdu.data == large[id * BLOCK..][..32_768], "the data of {id}");
            } else {
                assert!(id % 4 == 0 && pdu.completion().status.is_success());
            }
        }
        for id in (0..31_u16).step_by(4) {
            assert_eq!(queue.read(&task, id, 512 + u64::from(id), 1).await, pattern(BLOCK, u32::from(id)));
        }
        target.stop(&task).await;
    });
}

/// PDUs that cannot be: a termination request says where, the connection ends, and its neighbours go on.
pub fn a_malformed_pdu_ends_its_connection_alone<W: World>() {
    run::<W, _>(2, |task| async move {
        let target = Target::<W>::start(&task).await;
        let (mut admin, cntlid) = admin::<W>(&task, target.address, 0).await;
        let read = Command::on_range(io::READ, 1, 0, 1, 0).with_sgl(SglDescriptor::transport(512));
        let write = Command { id: 3, ..Command::on_range(io::WRITE, 1, 0, 2, 0) };
        let write = write.with_sgl(SglDescriptor::transport(1024));
        // What is changed of a good capsule, and what the target says of it.
        let wrong: [(usize, u8, u16, u32); 5] =
            [(0, 5, 1, 0), (0, 0, 2, 0), (1, 1, 1, 1), (2, 71, 1, 2), (3, 9, 5, 0)];
        let mut number = 1;
        for (at, value, fes, fei) in wrong {
            let mut queue = io_queue::<W>(&task, target.address, cntlid, number, 0, 0).await;
            number += 1;
            let mut pdu = queue.capsule(&read, &[]);
            pdu[at] = value;
            if at == 3 {
                // Data of an unbelievable length.
                pdu[3..8].copy_from_slice(&[72, 0, 0, 0, 1]);
            }
            queue.send(&task, &pdu).await;
            terminated(&task, &mut queue, fes, fei, &pdu).await;
        }
        // Data for an R2T: of another tag, command, place and length, and as the last where it is not.
        for (id, tag, offset, len, flags, fes, fei) in [
            (3, 1, 0, 512, 0, 1, 10),
            (4, 0, 0, 512, 0, 1, 8),
            (3, 0, 512, 512, 4, 4, 0),
            (3, 0, 0, 1536, 4, 4, 0),
            (3, 0, 0, 512, 4, 1, 1),
            (3, 0, 0, 1024, 0, 1, 1),
        ] {
            let mut queue = io_queue::<W>(&task, target.address, cntlid, number, 0, 0).await;
            number += 1;
            let pdu = queue.capsule(&write, &[]);
            queue.send(&task, &pdu).await;
            let r2t = queue.next(&task).await;
            let tag = (u16::from(r2t.header[10]) + tag).to_le_bytes();
            let pdu = queue.pdu(6, flags, &data_fields(id, tag, offset, len), &vec![1; len as usize]);
            queue.send(&task, &pdu).await;
            terminated(&task, &mut queue, fes, fei, &pdu).await;
        }
        // A wrong digest of a header is quoted.
        let mut queue = io_queue::<W>(&task, target.address, cntlid, number, 1, 0).await;
        let mut pdu = queue.capsule(&read, &[]);
        pdu[20] ^= 1;
        queue.send(&task, &pdu).await;
        let digest = u32::from_le_bytes(pdu[72..76].try_into().unwrap());
        terminated(&task, &mut queue, 3, digest, &pdu).await;
        // More commands than the queue has entries.
        let mut queue = io_queue::<W>(&task, target.address, cntlid, number + 1, 0, 0).await;
        for id in 0..33 {
            let pdu = queue.capsule(&Command { id, ..write }, &[]);
            queue.send(&task, &pdu).await;
        }
        loop {
            let pdu = queue.next(&task).await;
            if pdu.kind != 9 {
                assert_eq!((pdu.kind, pdu.header[8]), (3, 2));
                break;
            }
        }
        // Nothing of that disturbed the controller.
        assert_eq!(admin.csts(&task).await, 1);
        let mut queue = io_queue::<W>(&task, target.address, cntlid, number + 2, 0, 0).await;
        assert_eq!(queue.read(&task, 1, 0, 1).await.len(), BLOCK);
        target.stop(&task).await;
    });
}

/// A termination request with this reason, that quotes the header, and then the end.
async fn terminated<W: World>(
    task: &Task<PlatformOf<W>>,
    host: &mut Host<W>,
    fes: u16,
    fei: u32,
    sent: &[u8],
) {
    let pdu = host.next(task).await;
    assert_eq!((pdu.kind, pdu.header.len()), (3, 24), "{pdu:?}");
    assert_eq!((pdu.field(8) as u16, pdu.field(10)), (fes, fei), "{:?}", &sent[..8]);
    assert!(!pdu.data.is_empty() && sent.starts_with(&pdu.data), "it quotes the header");
    host.is_closed(task).await;
}

/// Before there is a queue: what is no such protocol, and who may not connect.
pub fn who_may_not_connect_is_told_why<W: World>() {
    run::<W, _>(2, |task| async move {
        let mut target = Target::<W>::start(&task).await;
        for (at, value, fes, fei) in
            [(0, 4, 2, 0), (0, 7, 1, 0), (2, 127, 1, 2), (4, 129, 1, 4), (8, 1, 6, 8), (10, 32, 1, 10)]
        {
            let net = W::another_host(&task.platform);
            let mut host = Host::<W>::reach(&task, &net, target.address).await;
            let mut request = [0; 128];
            (request[2], request[4]) = (128, 128);
            request[at] = value;
            host.send(&task, &request).await;
            terminated(&task, &mut host, fes, fei, &request).await;
        }
        let data = |offset: u32| (Status::CONNECT_INVALID_PARAMETERS, offset | 1 << 16);
        let sequence = (Status::SEQUENCE_ERROR, 0);
        for (request, (status, result)) in [
            (Request { subnqn: "nqn.2026-11.io.reprise:none", ..ADMIN }, data(256)),
            (Request { subnqn: "disks", ..ADMIN }, data(256)),
            (Request { hostnqn: "me", ..ADMIN }, data(512)),
            (Request { cntlid: 7, ..ADMIN }, data(16)),
            (Request { entries: 129, ..ADMIN }, (Status::CONNECT_INVALID_PARAMETERS, 44)),
            (Request { entries: 1, ..ADMIN }, (Status::CONNECT_INVALID_PARAMETERS, 44)),
            (Request { queue: 1, cntlid: 999, ..ADMIN }, data(16)),
        ] {
            let mut host = Host::<W>::initialized(&task, target.address, 3, 0).await;
            let answer = host.connect(&task, &request).await;
            assert_eq!((answer.status, answer.result), (status, result));
            host.is_closed(&task).await;
        }
        // A Connect as long as may be looked at, and its digest beyond.
        let mut host = Host::<W>::initialized(&task, target.address, 3, 0).await;
        let connect = Command::connect(&Connect { sq_size: 31, ..Connect::default() });
        let pdu = host.capsule(&connect.with_sgl(SglDescriptor::in_capsule(8116)), &[0; 8116]);
        host.send(&task, &pdu).await;
        let answer = host.next(&task).await.completion();
        assert_eq!(answer.status.code(), Status::SGL_LENGTH_INVALID);
        // Queues of a controller that does not work yet, of another host, of a number that was not granted, and twice.
        let mut admin = Host::<W>::initialized(&task, target.address, 0, 0).await;
        let cntlid = admin.connect(&task, &ADMIN).await.result as u16;
        let queue = Request { queue: 1, cntlid, ..ADMIN };
        let try_queue = async |request: Request<'_>| {
            let mut host = Host::<W>::initialized(&task, target.address, 0, 0).await;
            let answer = host.connect(&task, &request).await;
            ((answer.status.code(), answer.result), host)
        };
        assert_eq!(try_queue(queue).await.0, sequence);
        admin.set_property(&task, ENABLE).await;
        let two = QueueCount(0).with_submission(1).with_completion(1);
        let (done, _) = admin.run(&task, Command::set_features(feature::NUMBER_OF_QUEUES, two.0), 0).await;
        assert_eq!((done.status, done.result), (Status::SUCCESS, two.0));
        assert_eq!(
            try_queue(Request { queue: 3, ..queue }).await.0,
            (Status::CONNECT_INVALID_PARAMETERS, 42)
        );
        let other = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555";
        assert_eq!(try_queue(Request { hostnqn: other, ..queue }).await.0, (Status::CONNECT_INVALID_HOST, 0));
        let (answer, first) = try_queue(queue).await;
        assert_eq!(answer, (Status::SUCCESS, u32::from(cntlid)));
        assert_eq!(try_queue(queue).await.0, sequence);
        drop(first);
        // Only some hosts from here on: who is none of them goes.
        target.want(&task, Hosts::Named([other.into()].into()), &[1]).await;
        admin.is_closed(&task).await;
        let mut host = Host::<W>::initialized(&task, target.address, 0, 0).await;
        assert_eq!(host.connect(&task, &ADMIN).await.status, Status::CONNECT_INVALID_HOST);
        let mut host = Host::<W>::initialized(&task, target.address, 0, 0).await;
        assert!(host.connect(&task, &Request { hostnqn: other, ..ADMIN }).await.status.is_success());
        target.stop(&task).await;
    });
}

/// The end of a controller, by its host's silence, its connection or a reset, is that of its I/O queues on other cores.
pub fn queues_end_with_their_controller<W: World>() {
    run::<W, _>(2, |task| async move {
        let target = Target::<W>::start(&task).await;
        let (mut host, cntlid) = admin::<W>(&task, target.address, 0).await;
        let mut queues = Vec::new();
        for queue in 1..=3 {
            queues.push(io_queue::<W>(&task, target.address, cntlid, queue, 0, 0).await);
        }
        // A reset: quiet only when they are gone.
        host.set_property(&task, 0x46_0000).await;
        for queue in &mut queues {
            queue.is_closed(&task).await;
        }
        while host.csts(&task).await != 0 {}
        host.set_property(&task, ENABLE).await;
        let mut queue = io_queue::<W>(&task, target.address, cntlid, 1, 0, 0).await;
        assert_eq!(queue.read(&task, 1, 0, 1).await.len(), BLOCK);
        drop(host);
        queue.is_closed(&task).await;

        let mut silent = Host::<W>::initialized(&task, target.address, 0, 0).await;
        let answer = silent.connect(&task, &Request { keep_alive_ms: 1000, ..ADMIN }).await;
        let began = task.platform.now();
        silent.set_property(&task, ENABLE).await;
        let mut queue = io_queue::<W>(&task, target.address, answer.result as u16, 1, 0, 0).await;
        silent.is_closed(&task).await;
        assert!(task.platform.now() >= began.after(Duration::from_secs(1)), "not before its time");
        queue.is_closed(&task).await;
        target.stop(&task).await;
    });
}

/// A namespace that goes is told of, and is in no use when that is in force; discovery tells of subsystems.
pub fn changes_are_told_and_settled<W: World>() {
    run::<W, _>(2, |task| async move {
        let mut target = Target::<W>::start(&task).await;
        let (mut host, cntlid) = admin::<W>(&task, target.address, 0).await;
        let mut queue = io_queue::<W>(&task, target.address, cntlid, 1, 0, 0).await;
        let wanted = AsyncEventConfig(0).with_namespace_attribute(1).0;
        host.run(&task, Command::set_features(feature::ASYNC_EVENT_CONFIG, wanted), 0).await;
        let event =
            Command { id: 77, ..Command::async_event_request() }.with_sgl(SglDescriptor::transport(0));
        let pdu = host.capsule(&event, &[]);
        host.send(&task, &pdu).await;
        assert_eq!(queue.read(&task, 1, 0, 1).await.len(), BLOCK);
        target.want(&task, Hosts::Any, &[2]).await;
        let (told, _) = host.answer(&task, 77).await;
        assert_eq!((told.status, told.result), (Status::SUCCESS, 0x0004_0002));
        let (_, page) = host.run(&task, Command::get_log_page(log::CHANGED_NAMESPACES, 0, 4096), 4096).await;
        assert_eq!(page[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
        let read = Command { id: 2, ..Command::on_range(io::READ, 1, 0, 1, 0) };
        assert_eq!(queue.run(&task, read, 512).await.0.status.code(), Status::INVALID_NAMESPACE);
        // Nobody but the target and this test has it.
        assert_eq!(Arc::strong_count(&target.disks[0]), 1);

        // An event request that waits is aborted.
        let pdu = host.capsule(&event, &[]);
        host.send(&task, &pdu).await;
        let abort = Command { id: 78, ..Command::abort(0, 77) }.with_sgl(SglDescriptor::transport(0));
        let pdu = host.capsule(&abort, &[]);
        host.send(&task, &pdu).await;
        assert_eq!(host.answer(&task, 77).await.0.status, Status::ABORT_REQUESTED);
        assert_eq!(host.answer(&task, 78).await.0.result, 0);

        let mut discovery = Host::<W>::initialized(&task, target.address, 0, 0).await;
        let request = Request { subnqn: DISCOVERY_NQN, ..ADMIN };
        assert!(discovery.connect(&task, &request).await.status.is_success());
        discovery.set_property(&task, ENABLE).await;
        let (_, page) = discovery.run(&task, Command::get_log_page(log::DISCOVERY, 0, 2048), 2048).await;
        assert_eq!(DiscoveryHeader::decode(&page).numrec, 1);
        assert!(page[1024 + 256..].starts_with(NQN.as_bytes()));
        target.stop(&task).await;
    });
}
