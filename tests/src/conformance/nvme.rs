//! A PCI function and the NVMe driver on it: the same on the fake controller and on one behind VFIO. The controller's
//! content is overwritten.
//!
//! The controller has a volatile write cache, all optional commands that the driver uses, log pages, interrupts, and
//! shadow doorbells.

use super::{Task, World, run};
use runtime::{
    Access, Dma, ErrorKind, Memory, Pci, PciAddress, PciFunction, Platform, Poll, Registers, Window,
};
use stack::nvme::bits::{LogPage, Status};
use stack::nvme::driver::{
    Controller, Ended, Failure, IoChannel, IoFailure, Namespace, Operation, Options, PciOf, Report, Standing,
};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// A world with an NVMe controller.
pub trait Functions: World {
    /// The platform's functions.
    type Pci: PciOf<Self::Platform>;

    /// Those of a core's platform.
    fn pci(platform: &Self::Platform) -> Self::Pci;

    /// Where the controller sits.
    fn address() -> PciAddress;

    /// Has it pulled out, sooner or later.
    fn pull();
}

/// Requests of a channel.
const REQUESTS: u32 = 256;
/// Blocks of a namespace that are used, at least.
const BLOCKS_MIN: u64 = 2048;
/// Bytes of the longest transfer here: more than a command may move.
const TRANSFER_MAX: u64 = 512 << 10;
/// Configuration space: the command register, and its bit for bus mastering.
const CONFIG_COMMAND: u16 = 4;
const BUS_MASTER: u16 = 1 << 2;
/// NVMe: version, and controller status with its bit for a controller that is ready.
const REGISTER_VS: u64 = 8;
const REGISTER_CSTS: u64 = 0x1c;

type Driver<W> = Controller<<W as World>::Platform, <W as Functions>::Pci>;
type ChannelOf<W> = IoChannel<<W as World>::Platform, <W as Functions>::Pci>;
type WindowOf<W> = <<W as World>::Platform as Platform>::Window;
type MemoryOf<W> = <<W as World>::Platform as Platform>::Memory;
type MappingOf<W> = <<<W as Functions>::Pci as Pci>::Dma as Dma>::Mapping;

/// A driver with a channel, polled together.
struct Bench<W: Functions> {
    task: Task<W::Platform>,
    driver: Rc<RefCell<Driver<W>>>,
    channel: Rc<RefCell<Option<ChannelOf<W>>>>,
    options: Options,
    ended: RefCell<Vec<Ended>>,
    reports: RefCell<Vec<Report>>,
}

/// Memory that the controller reaches.
struct Mapped<W: Functions> {
    /// Dropped before the memory below it.
    _mapping: MappingOf<W>,
    memory: MemoryOf<W>,
}

impl<W: Functions> Mapped<W> {
    fn window(&self, offset: u64, len: u64) -> WindowOf<W> {
        self.memory.window().slice(offset, len).expect("a part of it")
    }
}

impl<W: Functions> Bench<W> {
    /// A controller that is ready.
    async fn open(task: Task<W::Platform>, options: Options) -> Self {
        let driver =
            Controller::open(task.platform.clone(), W::pci(&task.platform), W::address(), 0, options);
        let bench = Self {
            task,
            driver: Rc::new(RefCell::new(driver)),
            channel: Rc::default(),
            options,
            ended: RefCell::default(),
            reports: RefCell::default(),
        };
        bench.ready().await;
        bench
    }

    fn turn(&self) -> bool {
        let now = self.task.platform.now();
        let mut driver = self.driver.borrow_mut();
        let mut worked = driver.poll(now) == Poll::Busy;
        self.reports.borrow_mut().extend(std::iter::from_fn(|| driver.take_report()));
        if let Some(channel) = &mut *self.channel.borrow_mut() {
            worked |= channel.poll(now, &mut self.ended.borrow_mut());
        }
        worked
    }

    /// Polls until something holds.
    async fn until<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let ask = || {
            self.turn();
            ask()
        };
        self.task.poll(what, ask).await
    }

    async fn ready(&self) {
        let standing = || match self.driver.borrow().standing() {
            Standing::Ready => Some(()),
            Standing::Failed(why) => panic!("the controller failed: {why}"),
            _ => None,
        };
        self.until("readiness", standing).await;
    }

    fn namespaces(&self) -> Vec<Namespace> {
        self.driver.borrow().namespaces().to_vec()
    }

    /// Puts the channel on a namespace.
    fn use_namespace(&self, namespace: &Namespace) {
        // The one before gives its queue back.
        *self.channel.borrow_mut() = None;
        let driver = self.driver.borrow();
        let channel = IoChannel::open(&self.task.platform, driver.link(), namespace, self.options, REQUESTS);
        *self.channel.borrow_mut() = Some(channel.expect("a mailbox"));
    }

    /// Puts the channel on the first namespace. Bytes of its blocks.
    fn use_first_namespace(&self) -> u64 {
        let namespace = self.namespaces().remove(0);
        self.use_namespace(&namespace);
        u64::from(namespace.block_size)
    }

    fn map(&self, len: u64) -> Mapped<W> {
        let memory = self.task.platform.shared_memory("payload", len).expect("memory");
        let mapping = W::pci(&self.task.platform).dma().map(memory.window(), Access::ReadWrite);
        Mapped { _mapping: mapping.expect("mapped"), memory }
    }

    fn submit(&self, token: u32, operation: Operation, lba: u64, len: u64, windows: &[WindowOf<W>]) {
        let now = self.task.platform.now();
        let mut channel = self.channel.borrow_mut();
        channel.as_mut().expect("a channel").submit(now, token, operation, lba, len, windows);
    }

    /// Does one request to its end.
    async fn request(
        &self,
        operation: Operation,
        lba: u64,
        len: u64,
        windows: &[WindowOf<W>],
    ) -> Result<(), IoFailure> {
        self.submit(0, operation, lba, len, windows);
        let ended = self.until("a request's end", || self.ended.borrow_mut().pop()).await;
        assert_eq!(ended.token, 0);
        ended.result
    }

    /// The same, which must do.
    async fn done(&self, operation: Operation, lba: u64, len: u64, windows: &[WindowOf<W>]) {
        let result = self.request(operation, lba, len, windows).await;
        assert_eq!(result, Ok(()), "{operation:?} of {len} bytes at block {lba}");
    }

    /// Waits until so many requests have ended, all of them well.
    async fn drain(&self, count: usize) {
        let all = || (self.ended.borrow().len() >= count).then_some(());
        self.until("the end of all requests", all).await;
        for ended in self.ended.borrow_mut().drain(..) {
            assert_eq!(ended.result, Ok(()), "request {}", ended.token);
        }
    }

    fn copied_bytes(&self) -> u64 {
        self.channel.borrow().as_ref().expect("a channel").counters().copied_bytes
    }

    async fn close(self) -> Task<W::Platform> {
        *self.channel.borrow_mut() = None;
        self.driver.borrow_mut().close();
        self.until("the end", || (self.driver.borrow().standing() == Standing::Closed).then_some(())).await;
        self.task
    }
}

/// What block `lba` holds in its `version`: no two are alike.
fn fill<X: Window>(window: &X, lba: u64, version: u64, block_size: u64) {
    let word = |at: u64| (version << 40) ^ ((lba + at / block_size) << 12) ^ (at % block_size);
    let bytes: Vec<u8> = (0..window.len()).step_by(8).flat_map(|at| word(at).to_le_bytes()).collect();
    window.write(0, &bytes);
}

fn bytes<X: Window>(window: &X) -> Vec<u8> {
    let mut bytes = vec![0; window.len() as usize];
    window.read(0, &mut bytes);
    bytes
}

fn has_bus_master<F: PciFunction>(function: &F) -> bool {
    let mut command = [0; 2];
    function.load_config(CONFIG_COMMAND, &mut command);
    u16::from_le_bytes(command) & BUS_MASTER != 0
}

/// A function comes unable to reach memory, is one process's alone, and is so again after a reset.
pub fn a_function_is_opened_once_and_can_reach_nothing<W: Functions>() {
    run::<W, _>(1, |task| async move {
        let pci = W::pci(&task.platform);
        let function = pci.open(W::address()).expect("it is free");
        assert_eq!(function.address(), W::address());
        let refused = pci.open(W::address()).err().expect("it is open");
        assert_eq!(refused.kind, ErrorKind::Busy, "{}", refused.why);
        let nowhere = PciAddress { bus: 0x7e, ..W::address() };
        let refused = pci.open(nowhere).err().expect("there is none");
        assert_eq!(refused.kind, ErrorKind::NotFound, "{}", refused.why);

        let mut class = [0; 4];
        function.load_config(8, &mut class);
        assert_eq!(u32::from_le_bytes(class) >> 8, 0x01_08_02, "an NVMe I/O controller");
        assert!(!has_bus_master(&function));
        function.store_config(CONFIG_COMMAND, &(BUS_MASTER | 2).to_le_bytes());
        assert!(has_bus_master(&function));
        // Base addresses are not the process's to change.
        let mut before = [0; 4];
        function.load_config(0x10, &mut before);
        function.store_config(0x10, &[0xff; 4]);
        let mut after = [0; 4];
        function.load_config(0x10, &mut after);
        assert_eq!(before, after);

        assert_eq!(function.registers(5).err().map(|error| error.kind), Some(ErrorKind::NotFound));
        assert_eq!(function.registers(6).err().map(|error| error.kind), Some(ErrorKind::NotFound));
        let registers = function.registers(0).expect("it has registers");
        assert!(registers.len() >= 0x1008);
        let version = registers.load_u32(REGISTER_VS);
        assert!(version != 0 && version != u32::MAX, "version {version:#x}");
        assert_eq!(registers.load_u64(0), registers.load_u64(0));

        let vectors = function.vectors();
        assert!(vectors > 1);
        let many = function.enable_vectors(vectors + 1);
        assert_eq!(many.err().map(|error| error.kind), Some(ErrorKind::Invalid));
        for count in [1, vectors, 2, 0, 2] {
            assert_eq!(function.enable_vectors(count).expect("vectors").len(), usize::from(count));
        }
        function.reset().expect("a reset");
        assert!(!has_bus_master(&function), "a reset ends bus mastering");
        assert_eq!(registers.load_u32(REGISTER_CSTS) & 1, 0, "it is not enabled");
        drop(function);
        // The registers keep it open.
        let refused = pci.open(W::address()).err().expect("it is open");
        assert_eq!(refused.kind, ErrorKind::Busy, "{}", refused.why);
        drop(registers);
        pci.open(W::address()).expect("it was given back");
    });
}

/// Memory that is mapped has addresses as it has pages, before a function is open, with it, and after.
pub fn what_is_mapped_has_device_addresses<W: Functions>() {
    fn check<W: Functions>(task: &Task<W::Platform>, when: &str) {
        let dma = W::pci(&task.platform).dma();
        let memory = task.platform.shared_memory("test", 40_000).expect("memory");
        let window = memory.window();
        assert_eq!(dma.address(&window), None, "{when}");
        let part = window.slice(0, 4096).expect("a part");
        assert_eq!(dma.map(part, Access::Read).err().map(|error| error.kind), Some(ErrorKind::Invalid));
        let mapping = dma.map(window, Access::ReadWrite).expect("mapped");
        let again = dma.map(window, Access::ReadWrite);
        assert_eq!(again.err().map(|error| error.kind), Some(ErrorKind::AlreadyExists), "{when}");
        let first = dma.address(&window).expect("an address");
        for at in [0, 1, 4095, 4096, 39_999] {
            let part = window.slice(at, 40_000 - at).expect("a part");
            assert_eq!(dma.address(&part), Some(first + at), "{when}");
            assert_eq!((first + at).is_multiple_of(4096), part.is_aligned(4096), "{when}");
        }
        drop(mapping);
        assert_eq!(dma.address(&window), None, "{when}");
    }
    run::<W, _>(1, |task| async move {
        check::<W>(&task, "before a function is open");
        let bench = Bench::<W>::open(task, Options::default()).await;
        check::<W>(&bench.task, "with a function open");
        let task = bench.close().await;
        check::<W>(&task, "after the last function was closed");
    });
}

/// What the controller says of itself.
pub fn a_controller_is_identified<W: Functions>() {
    run::<W, _>(1, |task| async move {
        let bench = Bench::<W>::open(task, Options::default()).await;
        {
            let driver = bench.driver.borrow();
            let info = driver.info().expect("it is ready");
            assert!(!info.serial.is_empty() && !info.model.is_empty(), "{info:?}");
            assert!(info.version >= (1, 1, 0), "{info:?}");
            assert!(driver.has_shadow_doorbells());
            assert_eq!(driver.unusable_namespaces(), []);
        }
        let namespaces = bench.namespaces();
        let sizes: Vec<_> = namespaces.iter().map(|namespace| namespace.block_size).collect();
        assert!(sizes.contains(&512) && sizes.contains(&4096), "both formats are wanted: {sizes:?}");
        for namespace in &namespaces {
            assert!(namespace.state.num_blocks() >= BLOCKS_MIN && !namespace.read_only);
            let abilities = namespace.abilities();
            assert!(abilities.volatile_cache && abilities.deallocate && abilities.write_zeroes);
        }
        bench.close().await;
    });
}

/// Transfers of many lengths at many places in memory, in one piece and in several, come back as they went.
pub fn what_is_written_is_read_at_every_length_and_alignment<W: Functions>() {
    run::<W, _>(1, |task| async move {
        let bench = Bench::<W>::open(task, Options::default()).await;
        let memory = bench.map(2 * (TRANSFER_MAX + 8192));
        let mut version = 0;
        for namespace in bench.namespaces() {
            bench.use_namespace(&namespace);
            let block = u64::from(namespace.block_size);
            let lengths = [block, 4096, 4096 + block, 8192, 12288, 65536 - block, 128 << 10, TRANSFER_MAX];
            for len in lengths {
                for (from, to) in [(0, 0), (4, 4092), (512, 2048), (4092, 8), (4096, 0)] {
                    version += 1;
                    let lba = version * 7 % (BLOCKS_MIN - len / block);
                    let source = memory.window(from, len);
                    let target = memory.window(TRANSFER_MAX + 8192 + to, len);
                    fill(&source, lba, version, block);
                    target.fill(0, len, 0xee);
                    // In two pieces that meet anywhere, as a guest's buffers do, and back in one.
                    let cut = (version * 4).min(len - 4);
                    let pieces = [
                        source.slice(0, cut).expect("inside"),
                        source.slice(cut, len - cut).expect("inside"),
                    ];
                    bench.done(Operation::Write { fua: version % 2 == 0 }, lba, len, &pieces).await;
                    bench.done(Operation::Read, lba, len, &[target]).await;
                    assert!(bytes(&source) == bytes(&target), "{len} bytes from {from} to {to}");
                }
            }
            assert_eq!(bench.copied_bytes(), 0, "all of it can be described");
        }
        bench.close().await;
    });
}

/// What the controller cannot reach, or its lists cannot describe, is copied, and counted.
pub fn memory_that_is_not_mapped_is_copied<W: Functions>() {
    run::<W, _>(1, |task| async move {
        let bench = Bench::<W>::open(task, Options::default()).await;
        let block = bench.use_first_namespace();
        let mapped = bench.map(65536);
        let unmapped = bench.task.platform.shared_memory("unmapped", 65536).expect("memory");
        let source = unmapped.window().slice(0, 32768).expect("inside");
        fill(&source, 5, 1, block);
        bench.done(Operation::Write { fua: false }, 5, 32768, &[source]).await;
        assert_eq!(bench.copied_bytes(), 32768);
        // At an odd byte, which only a scatter-gather list describes.
        let target = mapped.window(1, 32768);
        bench.done(Operation::Read, 5, 32768, &[target]).await;
        assert!(bytes(&source) == bytes(&target));
        assert!([32768, 65536].contains(&bench.copied_bytes()));
        bench.close().await;
    });
}

/// Everything but reads and writes.
pub fn flush_zeroes_deallocate_and_compare<W: Functions>() {
    run::<W, _>(1, |task| async move {
        let bench = Bench::<W>::open(task, Options::default()).await;
        for namespace in bench.namespaces() {
            bench.use_namespace(&namespace);
            let block = u64::from(namespace.block_size);
            let memory = bench.map(64 * block);
            let (source, target) = (memory.window(0, 32 * block), memory.window(32 * block, 32 * block));
            fill(&source, 64, 7, block);
            bench.done(Operation::Write { fua: false }, 64, 32 * block, &[source]).await;
            bench.done(Operation::Flush, 0, 0, &[]).await;
            bench.done(Operation::Compare, 64, 32 * block, &[source]).await;
            let zeroes = Operation::WriteZeroes { deallocate: false, fua: true };
            bench.done(zeroes, 68, 8 * block, &[]).await;
            bench.done(Operation::Read, 64, 32 * block, &[target]).await;
            let mut expected = bytes(&source);
            expected[4 * block as usize..12 * block as usize].fill(0);
            assert!(bytes(&target) == expected);
            let differs = bench.request(Operation::Compare, 64, 32 * block, &[source]).await;
            let code = |result| match result {
                Err(IoFailure::Status(status)) => status.code(),
                other => panic!("{other:?}"),
            };
            assert_eq!(code(differs), Status::COMPARE_FAILURE);
            bench.done(Operation::Deallocate, 64, 32 * block, &[]).await;
            fill(&source, 80, 8, block);
            bench.done(Operation::Write { fua: true }, 80, 16 * block, &[memory.window(0, 16 * block)]).await;
            bench.done(Operation::Read, 80, 16 * block, &[memory.window(32 * block, 16 * block)]).await;
            assert!(bytes(&memory.window(0, 16 * block)) == bytes(&memory.window(32 * block, 16 * block)));
            // What the controller refuses harms nothing.
            let beyond = namespace.state.num_blocks();
            let refused = bench.request(Operation::Read, beyond, block, &[memory.window(0, block)]).await;
            assert_eq!(code(refused), Status::LBA_OUT_OF_RANGE);
            bench.done(Operation::Read, 0, block, &[memory.window(0, block)]).await;
        }
        bench.close().await;
    });
}

/// Far more requests than a queue has entries, which wraps many times, with shadow doorbells and without.
pub fn queues_wrap<W: Functions>() {
    run::<W, _>(1, |mut task| async move {
        for shadow_doorbells in [true, false] {
            let options = Options { queue_entries: 8, shadow_doorbells, ..Options::default() };
            let bench = Bench::<W>::open(task, options).await;
            assert_eq!(bench.driver.borrow().has_shadow_doorbells(), shadow_doorbells);
            let block = bench.use_first_namespace();
            let memory = bench.map(2 * u64::from(REQUESTS) * block);
            for round in 0..4 {
                for operation in [Operation::Write { fua: false }, Operation::Read] {
                    for token in 0..REQUESTS {
                        let at = u64::from(token);
                        let half = if operation == Operation::Read { u64::from(REQUESTS) } else { 0 };
                        let window = memory.window((half + at) * block, block);
                        if half == 0 {
                            fill(&window, at, 100 + round, block);
                        }
                        bench.submit(token, operation, at, block, &[window]);
                    }
                    bench.drain(REQUESTS as usize).await;
                }
                let len = u64::from(REQUESTS) * block;
                assert!(bytes(&memory.window(0, len)) == bytes(&memory.window(len, len)), "round {round}");
            }
            let counters = bench.channel.borrow().as_ref().expect("a channel").counters();
            assert_eq!(counters.commands, 8 * u64::from(REQUESTS), "nothing was tried twice");
            task = bench.close().await;
        }
    });
}

/// A reset in the middle of a load: every request ends well, once, and what was written is there.
pub fn requests_outlive_resets<W: Functions>() {
    run::<W, _>(1, |task| async move {
        let bench = Bench::<W>::open(task, Options::default()).await;
        let block = bench.use_first_namespace();
        let count = 64;
        let memory = bench.map(2 * count * block);
        for round in 0..5 {
            for token in 0..count {
                let window = memory.window(token * block, block);
                fill(&window, token, 200 + round, block);
                bench.submit(token as u32, Operation::Write { fua: false }, token, block, &[window]);
            }
            for _ in 0..round * 3 {
                bench.turn();
            }
            bench.driver.borrow_mut().reset();
            bench.drain(count as usize).await;
            bench.ready().await;
            assert!(bench.driver.borrow().has_shadow_doorbells());
            let read = memory.window(count * block, count * block);
            bench.done(Operation::Read, 0, count * block, &[read]).await;
            assert!(bytes(&memory.window(0, count * block)) == bytes(&read), "round {round}");
        }
        bench.close().await;
    });
}

/// A core that sleeps is woken by the controller's interrupt: the next moment at which it would be polled otherwise is
/// when the test has failed.
pub fn an_interrupt_wakes<W: Functions>() {
    run::<W, _>(1, |task| async move {
        let bench = Bench::<W>::open(task, Options::default()).await;
        let block = bench.use_first_namespace();
        let memory = bench.map(block);
        let window = memory.window(0, block);
        // The first one waits for its queue.
        bench.done(Operation::Read, 0, block, &[window]).await;
        for round in 0..50 {
            let operation = if round % 2 == 0 { Operation::Write { fua: true } } else { Operation::Read };
            bench.submit(0, operation, round, block, &[window]);
            let ask = || {
                bench.turn();
                bench.ended.borrow_mut().pop()
            };
            let channel = Rc::clone(&bench.channel);
            let arm = move |wakes: &mut _| channel.borrow().as_ref().expect("a channel").arm(wakes);
            let ended = bench.task.sleep("an interrupt", ask, arm).await;
            assert_eq!(ended.result, Ok(()));
        }
        bench.close().await;
    });
}

/// Health, errors and firmware.
pub fn log_pages_are_read<W: Functions>() {
    run::<W, _>(1, |task| async move {
        let bench = Bench::<W>::open(task, Options::default()).await;
        for page in [LogPage::Health, LogPage::Error, LogPage::Firmware] {
            assert!(bench.driver.borrow_mut().read_log(bench.task.platform.now(), page));
            let log = bench
                .until("a log page", || {
                    bench.reports.borrow_mut().drain(..).find_map(|report| match report {
                        Report::Log(read, log) if read == page => Some(log),
                        _ => None,
                    })
                })
                .await;
            let log = log.unwrap_or_else(|status| panic!("{page:?}: {status}"));
            assert_eq!(log.len(), page.bytes() as usize, "{page:?}");
        }
        bench.close().await;
    });
}

/// What one life of the driver wrote and flushed, the next one reads; it waits until the function is free.
pub fn the_next_life_reads_what_was_written<W: Functions>() {
    run::<W, _>(1, |mut task| async move {
        for life in 0..4 {
            let bench = Bench::<W>::open(task, Options::default()).await;
            let block = bench.use_first_namespace();
            let memory = bench.map(32 * block);
            let (source, target) = (memory.window(0, 16 * block), memory.window(16 * block, 16 * block));
            if life > 0 {
                fill(&source, 300, 300 + life - 1, block);
                bench.done(Operation::Read, 300, 16 * block, &[target]).await;
                assert!(bytes(&source) == bytes(&target), "life {life}");
            }
            fill(&source, 300, 300 + life, block);
            bench.done(Operation::Write { fua: false }, 300, 16 * block, &[source]).await;
            bench.done(Operation::Flush, 0, 0, &[]).await;
            task = bench.close().await;
            let moment = task.platform.now().after(Duration::from_millis(1));
            task.sleep_until(moment).await;
        }
    });
}

/// A controller that is pulled out in the middle of a load: every request ends, its registers give ones, and it is let go.
/// There is none at its address then.
pub fn a_controller_that_is_pulled_out_is_given_up<W: Functions>() {
    run::<W, _>(1, |task| async move {
        let bench = Bench::<W>::open(task, Options::default()).await;
        let block = bench.use_first_namespace();
        let memory = bench.map(block);
        let window = memory.window(0, block);
        bench.done(Operation::Read, 0, block, &[window]).await;
        W::pull();
        loop {
            match bench.request(Operation::Read, 0, block, &[window]).await {
                Ok(()) => {}
                Err(failure) => {
                    assert_eq!(failure, IoFailure::Device);
                    break;
                }
            }
        }
        let standing = bench.driver.borrow().standing();
        assert_eq!(standing, Standing::Failed(Failure::Removed));
        let task = bench.close().await;
        let pci = W::pci(&task.platform);
        let gone = || pci.open(W::address()).err().filter(|refused| refused.kind == ErrorKind::NotFound);
        task.poll("an empty slot", gone).await;
    });
}

/// Memory of a world's own kinds is moved by the controller itself: it writes from one that it may only read, and reads
/// into another. Both are as long, and what is in the first is read into the second.
pub fn memory_is_moved<W: Functions>(memories: impl FnOnce() -> (MemoryOf<W>, MemoryOf<W>) + Send + 'static) {
    run::<W, _>(1, |task| async move {
        let bench = Bench::<W>::open(task, Options::default()).await;
        let block = bench.use_first_namespace();
        let (source, target) = memories();
        let dma = W::pci(&bench.task.platform).dma();
        let mappings = [(&source, Access::Read), (&target, Access::ReadWrite)]
            .map(|(memory, access)| dma.map(memory.window(), access).expect("mapped"));
        let (source_window, target_window) = (source.window(), target.window());
        let expected = bytes(&source_window);
        let mut at = 0;
        while at < source_window.len() {
            let len = TRANSFER_MAX.min(source_window.len() - at);
            let part = |window: &WindowOf<W>| window.slice(at, len).expect("inside");
            bench.done(Operation::Write { fua: false }, at / block, len, &[part(&source_window)]).await;
            part(&target_window).fill(0, len, 0);
            bench.done(Operation::Read, at / block, len, &[part(&target_window)]).await;
            at += len;
        }
        assert!(bytes(&target_window) == expected);
        assert_eq!(bench.copied_bytes(), 0);
        bench.close().await;
        drop(mappings);
        drop((source, target));
    });
}
