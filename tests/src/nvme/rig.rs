//! A controller's driver on a bench: polled by hand, with a clock that goes a millisecond a turn.

use super::fake::{Fake, FakePci};
use hw::{HostMemory, HostPlatform, HostWindow};
use runtime::{Access, Dma, Instant, Memory, Platform};
use stack::nvme::driver::{Controller, Ended, IoChannel, IoFailure, Operation, Options, Standing};
use std::sync::Arc;
use std::time::Duration;

/// Requests of a channel.
pub const REQUESTS: u32 = 512;

/// The driver under test.
pub type Driver = Controller<HostPlatform, FakePci>;
/// One of its channels.
pub type Channel = IoChannel<HostPlatform, FakePci>;

/// A driver, its controller, and time.
pub struct Rig {
    /// The controller.
    pub fake: Arc<Fake>,
    /// The driver.
    pub driver: Driver,
    /// Now.
    pub now: Instant,
    platform: HostPlatform,
    options: Options,
}

impl Rig {
    /// A driver that begins to open the controller.
    #[must_use]
    pub fn new(platform: &HostPlatform, fake: Arc<Fake>, options: Options) -> Self {
        let pci = FakePci(Arc::clone(&fake));
        let driver = Controller::open(platform.clone(), pci, FakePci::ADDRESS, 0, options);
        Self { fake, driver, now: Instant(1), platform: platform.clone(), options }
    }

    /// The core's platform.
    #[must_use]
    pub fn platform(&self) -> &HostPlatform {
        &self.platform
    }

    /// Lets a millisecond pass.
    pub fn turn(&mut self) {
        self.now = self.now.after(Duration::from_millis(1));
        self.fake.step();
        self.driver.poll(self.now);
        // Offloaded jobs run on threads of their own.
        std::thread::yield_now();
    }

    /// Lets time pass until something holds. Panics when it does not hold in ten minutes of the bench's time.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        for turn in 0..600_000 {
            if holds(self) {
                return;
            }
            self.turn();
            if turn > 1000 && turn % 100 == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        panic!("{what} did not come to pass: {:?}, {:?}", self.driver.standing(), self.fake.wrongs());
    }

    /// Until the controller is ready.
    pub fn ready(&mut self) {
        self.until("readiness", |rig| rig.driver.standing() == Standing::Ready);
    }

    /// Until the controller is given up; says why.
    pub fn failed(&mut self) -> String {
        self.until("failure", |rig| matches!(rig.driver.standing(), Standing::Failed(_)));
        match self.driver.standing() {
            Standing::Failed(why) => why.to_string(),
            other => unreachable!("{other:?}"),
        }
    }

    /// A channel on the `at`-th namespace.
    #[must_use]
    pub fn channel(&self, at: usize) -> Channel {
        let namespace = &self.driver.namespaces()[at];
        IoChannel::open(&self.platform, self.driver.link(), namespace, self.options, REQUESTS)
            .expect("a mailbox")
    }

    /// Memory that the controller reaches, and what keeps it so.
    pub fn memory(&self, len: u64) -> (HostWindow, Box<dyn std::any::Any>) {
        let memory: HostMemory = self.platform.shared_memory("payload", len).expect("memory");
        let window = memory.window();
        let mapping = self.fake.dma().map(window, Access::ReadWrite).expect("a mapping");
        (window, Box::new((mapping, memory)))
    }

    /// Memory that it does not reach.
    pub fn unmapped_memory(&self, len: u64) -> HostMemory {
        self.platform.shared_memory("unmapped", len).expect("memory")
    }

    /// Does one request to its end.
    pub fn run(
        &mut self,
        channel: &mut Channel,
        operation: Operation,
        lba: u64,
        len: u64,
        windows: &[HostWindow],
    ) -> Result<(), IoFailure> {
        channel.submit(self.now, 0, operation, lba, len, windows);
        let mut ended = Vec::new();
        self.until("the end of a request", |rig| {
            channel.poll(rig.now, &mut ended);
            !ended.is_empty()
        });
        assert_eq!((ended.len(), ended[0].token), (1, 0), "one end for one request");
        ended[0].result
    }

    /// Lets time pass, with a channel that is polled, until so many requests have ended.
    pub fn drain(&mut self, channel: &mut Channel, count: usize) -> Vec<Ended> {
        let mut ended = Vec::new();
        self.until("the end of all requests", |rig| {
            channel.poll(rig.now, &mut ended);
            ended.len() >= count
        });
        ended
    }

    /// Closes the driver, and checks that it did nothing that it must not.
    pub fn end(mut self) {
        self.driver.close();
        self.until("the end", |rig| rig.driver.standing() == Standing::Closed);
        assert_eq!(self.fake.wrongs(), Vec::<String>::new());
    }
}
