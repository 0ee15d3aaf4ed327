//! The suite of `tests::conformance::nvme` over a real controller behind VFIO.
//!
//! tests/vm/run does it inside a guest, on QEMU's controller. By hand, on a drive whose content is lost:
//!
//!     reprise device bind 0000:3b:00.0
//!     REPRISE_NVME=0000:3b:00.0 cargo test -p tests --test nvme_hardware -- --ignored --test-threads=1

use std::io::Write;
use std::net::IpAddr;

use hw::{HostHandle, HostNet, HostPci, HostPlatform, Options, Process};
use runtime::{
    Access, Constructor, Dma, ErrorKind, Handle, Memory, Pci, PciAddress, PciRefused, Platform, Window,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use tests::conformance::nvme::Functions;
use tests::conformance::{Place, World};

/// A host with a controller at the address in `REPRISE_NVME`.
struct Host;

impl World for Host {
    type Platform = HostPlatform;

    fn run(cores: u16, first: Constructor<HostPlatform>) {
        let available = hw::cores::available();
        let options = Options {
            processors: available.iter().copied().cycle().take(usize::from(cores)).collect(),
            poll: false,
            memory_directory: "/dev/shm".into(),
            recorder_directory: None,
        };
        Process::new(&options).unwrap().run(first).unwrap();
    }

    fn socket_path() -> String {
        unreachable!("the suite has no sockets")
    }

    fn connect(_: &str) -> runtime::Result<HostHandle> {
        unreachable!("the suite has no sockets")
    }

    fn another_host(_: &HostPlatform) -> HostNet {
        unreachable!("the suite has no connections")
    }

    fn host_address(_: bool) -> IpAddr {
        unreachable!("the suite has no connections")
    }

    fn eventfd() -> (HostHandle, HostHandle) {
        unreachable!("the suite has no eventfds of others")
    }

    fn directory() -> Place {
        unreachable!("the suite has no directories")
    }

    fn payload_file(_: u64) -> Place {
        unreachable!("the suite has no files")
    }
}

impl Functions for Host {
    type Pci = HostPci;

    fn pci(platform: &HostPlatform) -> HostPci {
        platform.pci()
    }

    fn address() -> PciAddress {
        let address = std::env::var("REPRISE_NVME").expect("REPRISE_NVME is the address of a controller");
        address.parse().expect("REPRISE_NVME is an address")
    }

    fn pull() {
        // For whoever can; on a line of its own, and not for the harness.
        writeln!(std::io::stdout(), "\nMARK pull").expect("somebody reads");
    }
}

tests::nvme_conformance!(
    Host,
    ignore = "overwrites the NVMe controller at REPRISE_NVME, which vfio-pci must have; run: tests/vm/run nvme_conformance"
);

#[test]
#[ignore = "waits until somebody pulls the controller at REPRISE_NVME out of its slot; run: tests/vm/run nvme_conformance"]
fn a_controller_that_is_pulled_out_is_given_up() {
    tests::conformance::nvme::a_controller_that_is_pulled_out_is_given_up::<Host>();
}

/// Runs a part of a test with the host's functions, on a core.
fn on_a_core(part: impl FnOnce(HostPlatform) + Send + 'static) {
    tests::conformance::run::<Host, _>(1, |task| async move { part(task.platform) });
}

fn refused(platform: &HostPlatform) -> PciRefused {
    platform.pci().open(Host::address()).expect_err("it must be refused")
}

/// Huge pages, and memory that may only be read: the drive moves what is in them, and nothing is copied.
#[test]
#[ignore = "overwrites the NVMe controller at REPRISE_NVME, and needs huge pages; run: tests/vm/run nvme_conformance"]
fn memory_of_other_kinds_is_moved() {
    tests::conformance::nvme::memory_is_moved::<Host>(|| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let huge = memfd_create("huge", flags).expect("a file of huge pages");
        ftruncate(&huge, 4 << 20).expect("huge pages");
        let huge = HostHandle::from(huge);
        let memory = huge.map(0, 4 << 20, Access::ReadWrite).expect("memory");
        memory.window().fill(0, 4 << 20, 0x5a);
        // The same pages again, not to be written: by the process, and so by no function for it.
        (huge.map(0, 4 << 20, Access::Read).expect("memory"), memory)
    });
}

/// A user who may not open the group hears which, and of what to do.
#[test]
#[ignore = "must run as a user who may not open the group of REPRISE_NVME; run: tests/vm/run nvme_conformance"]
fn a_user_without_rights_is_refused() {
    on_a_core(|platform| {
        let refused = refused(&platform);
        assert_eq!(refused.kind, ErrorKind::PermissionDenied, "{}", refused.why);
        assert!(
            refused.why.contains("may not open /dev/vfio/") && refused.why.contains("chown"),
            "{refused:?}"
        );
    });
}

/// Memory that the kernel does not hold keeps a function from being opened, and is refused once one is.
#[test]
#[ignore = "must run as a user with a low limit of locked memory, and REPRISE_NVME; run: tests/vm/run nvme_conformance"]
fn too_little_locked_memory_is_said() {
    on_a_core(|platform| {
        let (pci, dma) = (platform.pci(), platform.pci().dma());
        let large = platform.shared_memory("large", 64 << 20).expect("memory");
        let small = platform.shared_memory("small", 1 << 20).expect("memory");
        let mapping = dma.map(large.window(), Access::ReadWrite).expect("no function is open yet");
        let refused = refused(&platform);
        assert_eq!(refused.kind, ErrorKind::OutOfResources, "{}", refused.why);
        assert!(refused.why.contains("RLIMIT_MEMLOCK") && refused.why.contains("ulimit -l"), "{refused:?}");
        drop(mapping);
        let _function = pci.open(Host::address()).expect("nothing of it is left behind");
        let refused = dma.map(large.window(), Access::ReadWrite).expect_err("it is too large");
        assert_eq!(refused.kind, ErrorKind::OutOfResources);
        assert_eq!(dma.address(&large.window()), None);
        let _mapping = dma.map(small.window(), Access::ReadWrite).expect("it is small");
    });
}
