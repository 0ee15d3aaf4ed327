//! The suite of `tests::conformance::nvme` over a real controller behind VFIO.
//!
//! tests/vm/run does it inside a guest, on QEMU's controller. By hand, on a drive whose content is lost:
//!
//!     reprise device bind 0000:3b:00.0
//!     REPRISE_NVME=0000:3b:00.0 cargo test -p tests --test nvme_hardware -- --ignored --test-threads=1

use std::io::Write;

use hw::{HostHandle, HostPci, HostPlatform, Options, Process};
use runtime::{Constructor, PciAddress};
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
