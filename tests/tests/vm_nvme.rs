//! The target on a real NVMe driver's other side: QEMU's controller behind an IOMMU, given to our own process inside a
//! guest by VFIO.

use std::path::PathBuf;
use std::time::Duration;

use tests::binaries;
use tests::vm::{Ended, Lab, Machine, NvmeDrive, Qemu};

/// For the suite inside the guest: seconds on an idle machine, far more on one that is building.
const SUITE_WAIT: Duration = Duration::from_secs(600);
/// Bytes of each namespace.
const NAMESPACE_BYTES: u64 = 32 << 20;

/// A machine with a controller whose namespaces have blocks of these sizes; their images are in a directory.
fn machine(
    qemu: Qemu,
    directory: &tempfile::TempDir,
    blocks: [u32; 2],
    programs: Vec<PathBuf>,
    script: &str,
) -> Machine {
    let image = |(number, block)| {
        let image = directory.path().join(format!("namespace-{number}"));
        std::fs::File::create(&image).and_then(|file| file.set_len(NAMESPACE_BYTES)).expect("an image");
        (image, block)
    };
    let nvme = Some(NvmeDrive { namespaces: (1..).zip(blocks).map(image).collect() });
    Machine { qemu, cpus: 2, disks: Vec::new(), nvme, programs, reboots: false, script: script.to_owned() }
}

/// Whether QEMU has said that its controller was given shadow doorbells.
fn has_shadow_doorbells(ended: &Ended) -> bool {
    ended.console.iter().any(|line| line.starts_with("qemu: pci_nvme_dbbuf_config"))
}

/// `reprise doctor`, `device list`, `bind` and `unbind` as an operator uses them, and between them the conformance suite; then
/// the drive is pulled.
fn nvme_conformance(qemu: Qemu) {
    let lab = Lab::open();
    let directory = tempfile::tempdir_in(lab.directory()).expect("a directory for images");
    let programs = vec![binaries::reprise(), binaries::test_program("nvme_hardware")];
    let script = include_str!("../vm/guest/nvme-device.sh");
    let mut guest = machine(qemu, &directory, [512, 4096], programs, script).boot(&lab);
    guest.wait_mark("pull", SUITE_WAIT);
    guest.pull_nvme();
    let ended = guest.end(SUITE_WAIT);
    // A user has too little of it on purpose.
    ended.assert_complained_of("RLIMIT_MEMLOCK");
    assert!(has_shadow_doorbells(&ended), "QEMU's controller was given no shadow doorbells");
    // Not as it stands: these are no results of this run.
    for line in ended.console.iter().filter(|line| line.starts_with("test ")) {
        println!("guest: {line}");
    }
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn nvme_conformance_behind_vfio() {
    nvme_conformance(Qemu::Debian12);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn nvme_conformance_behind_vfio_newer_qemu() {
    nvme_conformance(Qemu::Debian13Backports);
}

/// `reprise serve` has the drive and gives it to vhost-user-blk clients, all inside the guest, through twenty kills.
fn nvme_survives(qemu: Qemu) {
    let lab = Lab::open();
    let directory = tempfile::tempdir_in(lab.directory()).expect("a directory for images");
    let programs = vec![binaries::reprise(), binaries::test_program("kill9")];
    let script = include_str!("../vm/guest/nvme-serve.sh");
    let ended = machine(qemu, &directory, [512, 512], programs, script).boot(&lab).end(SUITE_WAIT);
    ended.assert_clean();
    assert!(has_shadow_doorbells(&ended), "QEMU's controller was given no shadow doorbells");
    for line in ended.console.iter().filter(|line| line.starts_with("Outcome") || line.ends_with("copied")) {
        println!("{line}");
    }
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn nvme_survives_twenty_kills() {
    nvme_survives(Qemu::Debian12);
}

#[test]
#[ignore = "needs QEMU and a guest kernel; run: tests/vm/run"]
fn nvme_survives_twenty_kills_newer_qemu() {
    nvme_survives(Qemu::Debian13Backports);
}
