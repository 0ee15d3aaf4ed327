//! The suites of `tests::conformance`, over each world.

/// The real host.
mod host {
    use hw::{HostHandle, HostNet, HostPlatform, Options, Process};
    use runtime::Constructor;
    use rustix::event::{EventfdFlags, eventfd};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tests::conformance::{Place, World};

    struct Host;

    impl World for Host {
        type Platform = HostPlatform;

        fn run(cores: u16, first: Constructor<HostPlatform>) {
            // Cores may share a processor: what is asked for here is that it works, not that it is fast.
            let available = hw::cores::available();
            let processors = available.iter().copied().cycle().take(usize::from(cores)).collect();
            let options = Options {
                processors,
                poll: false,
                memory_directory: "/dev/shm".into(),
                recorder_directory: None,
            };
            Process::new(&options).unwrap().run(first).unwrap();
        }

        fn socket_path() -> String {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("reprise-conformance-{}-{number}", std::process::id());
            std::env::temp_dir().join(name).into_os_string().into_string().unwrap()
        }

        fn connect(path: &str) -> runtime::Result<HostHandle> {
            let stream = UnixStream::connect(path).map_err(|_| runtime::ErrorKind::NotFound)?;
            Ok(HostHandle::from(OwnedFd::from(stream)))
        }

        fn another_host(_platform: &HostPlatform) -> HostNet {
            HostNet
        }

        fn host_address(is_ipv6: bool) -> IpAddr {
            if is_ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
        }

        fn eventfd() -> (HostHandle, HostHandle) {
            let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            (HostHandle::from(fd.try_clone().unwrap()), HostHandle::from(fd))
        }

        fn directory() -> Place {
            // On the file system of the build: direct I/O is not for every /tmp.
            let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let path = directory.path().join("new").to_str().unwrap().to_owned();
            Place { path, keep: Box::new(directory) }
        }

        fn payload_file(len: u64) -> Place {
            let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            file.as_file().set_len(len).unwrap();
            Place { path: file.path().to_str().unwrap().to_owned(), keep: Box::new(file) }
        }
    }

    tests::conformance!(Host);
}

/// The simulator, a module for each temper of it. Its machine has an NVMe controller; that of the real host is in
/// nvme_hardware.rs.
mod simulated {
    use runtime::{Constructor, Instant, PciAddress, Platform, Poll, Poller};
    use sim::faults::{FaultKind, Faults, Rate};
    use sim::net::{SimNet, address_of};
    use sim::nvme::{NamespaceProfile, Profile, ShadowStyle};
    use sim::pci::SimPci;
    use sim::platform::{SimPlatform, SimWakes};
    use sim::scheduler::{self, End};
    use sim::unix::SimHandle;
    use sim::world::{self, Model, Step, Temper};
    use std::cell::Cell;
    use std::net::IpAddr;
    use std::rc::Rc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};
    use tests::conformance::nvme::Functions;
    use tests::conformance::{Place, World};

    /// How often it is looked whether the first poller is done.
    const LOOK_NS: u64 = 100_000;

    /// A simulated world: its seed, whether its cores sleep, and whether its network is a bad one.
    struct Simulated<const SEED: u64, const SLEEPS: bool, const BAD_NETWORK: bool = false>;

    /// The first poller, and the word that it is done.
    struct First {
        poller: Box<dyn Poller<SimPlatform>>,
        done: Rc<Cell<bool>>,
    }

    impl Poller<SimPlatform> for First {
        fn poll(&mut self, now: Instant) -> Poll {
            let poll = self.poller.poll(now);
            self.done.set(poll == Poll::Done);
            poll
        }

        fn arm(&mut self, now: Instant, wakes: &mut SimWakes) -> Poll {
            self.poller.arm(now, wakes)
        }
    }

    /// Ends the run when the first poller is done.
    struct Watcher(Rc<Cell<bool>>);

    impl Model for Watcher {
        fn step(&mut self) -> Step {
            if self.0.get() {
                world::with(|world| world.finish());
                return Step::Done;
            }
            Step::Idle { until: Some(Instant(world::with(|world| world.now().0 + LOOK_NS))) }
        }
    }

    thread_local! {
        static DONE: Rc<Cell<bool>> = Rc::default();
    }

    impl<const SEED: u64, const SLEEPS: bool, const BAD_NETWORK: bool> World
        for Simulated<SEED, SLEEPS, BAD_NETWORK>
    {
        type Platform = SimPlatform;

        fn run(cores: u16, first: Constructor<SimPlatform>) {
            let faults = Faults::drawn(SEED, |kind| match kind {
                FaultKind::PacketLost | FaultKind::PacketLate if BAD_NETWORK => {
                    Rate { of_65536: 3000, most: 40 }
                }
                FaultKind::PacketHeld if BAD_NETWORK => Rate { of_65536: 300, most: 10 },
                _ => Rate::default(),
            });
            world::create(SEED, Temper { cut_streams: 128, ..Temper::default() }, faults);
            let profile = controller();
            let first = Mutex::new(Some(first));
            let program: world::Program = Arc::new(move |platform| {
                let first = first.lock().unwrap().take().expect("there is one life");
                let done = DONE.with(Rc::clone);
                done.set(false);
                Box::new(First { poller: first(platform), done })
            });
            world::with(|world| {
                let machine = world.machine();
                world.plug_nvme(machine, CONTROLLER, profile);
                world.spawn(machine, &program, cores, Some(SLEEPS));
                world.add_model(Box::new(Watcher(DONE.with(Rc::clone))), true);
            });
            let end = scheduler::run();
            let failure = world::with(|world| world.failure().cloned());
            world::clear();
            assert_eq!(end, End::Finished, "{failure:?}");
        }

        fn socket_path() -> String {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            format!("/run/{}", NEXT.fetch_add(1, Ordering::Relaxed))
        }

        fn connect(path: &str) -> runtime::Result<SimHandle> {
            world::with(|world| world.connect(0, path)).map(SimHandle::end)
        }

        fn another_host(_platform: &SimPlatform) -> SimNet {
            SimNet::of(1)
        }

        fn host_address(is_ipv6: bool) -> IpAddr {
            address_of(0, is_ipv6)
        }

        fn eventfd() -> (SimHandle, SimHandle) {
            let eventfd = world::with(|world| world.eventfd());
            (SimHandle::eventfd(eventfd), SimHandle::eventfd(eventfd))
        }

        fn directory() -> Place {
            Place { path: Self::socket_path(), keep: Box::new(()) }
        }

        fn payload_file(len: u64) -> Place {
            let path = Self::socket_path();
            world::with(|world| world.create_disk(0, &path, len, 512, 4096));
            Place { path, keep: Box::new(()) }
        }
    }

    impl<const SEED: u64, const SLEEPS: bool, const BAD_NETWORK: bool> Functions
        for Simulated<SEED, SLEEPS, BAD_NETWORK>
    {
        type Pci = SimPci;

        fn pci(platform: &SimPlatform) -> SimPci {
            platform.pci()
        }

        fn address() -> PciAddress {
            CONTROLLER
        }

        fn pull() {
            // The machine has no other function.
            world::with(|world| world.unplug(0));
        }
    }

    /// Where the machine's NVMe controller sits.
    const CONTROLLER: PciAddress = PciAddress { domain: 0, bus: 3, device: 0, function: 0 };

    /// One with all that the suite asks for.
    fn controller() -> Profile {
        let namespaces = vec![NamespaceProfile::plain(2048, 512), NamespaceProfile::plain(2048, 4096)];
        let shadow = Some(ShadowStyle { mirrors: true, zeroes: false, looks: 4 });
        Profile { shadow, ..Profile::plain(namespaces) }
    }

    mod sleeping_cores {
        type World = super::Simulated<1, true>;
        tests::conformance!(World);

        mod nvme {
            use super::World;
            tests::nvme_conformance!(World);

            #[test]
            fn a_controller_that_is_pulled_out_is_given_up() {
                tests::conformance::nvme::a_controller_that_is_pulled_out_is_given_up::<World>();
            }
        }
    }

    mod a_bad_network {
        type World = super::Simulated<3, true, true>;
        tests::conformance!(World);
    }

    mod polling_cores {
        type World = super::Simulated<2, false>;
        tests::conformance!(World);

        mod nvme {
            use super::World;
            tests::nvme_conformance!(World);

            #[test]
            fn a_controller_that_is_pulled_out_is_given_up() {
                tests::conformance::nvme::a_controller_that_is_pulled_out_is_given_up::<World>();
            }
        }
    }
}
