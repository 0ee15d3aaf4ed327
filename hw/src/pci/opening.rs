//! From an address to an open function: what stands in the way, each with who holds what and what to do.

use super::sysfs::{PciFacts, Root};
use super::vfio::{Container, Device, Group};
use crate::dma::{HostDma, NotAttached};
use runtime::{ErrorKind, PciAddress, PciRefused};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// The kernel's driver that gives functions to processes.
const VFIO_DRIVER: &str = "vfio-pci";
/// Where containers are opened.
const CONTAINER: &str = "/dev/vfio/vfio";
/// How long a group that is in use is tried for. A process that was killed holds its groups until the kernel has unmapped
/// its memory and reset its functions, which takes a second and more with many of them.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

type Refused<T> = Result<T, PciRefused>;

fn refuse<T>(kind: ErrorKind, why: String) -> Refused<T> {
    Err(PciRefused { kind, why })
}

/// The IOMMU group of a function that can be opened, as far as sysfs says.
pub(super) fn check(root: &Root, address: PciAddress) -> Refused<u32> {
    let function = root.function(address);
    if !function.is_there() {
        let why = format!("there is no PCI function at {address}: `reprise device list` shows those of NVMe");
        return refuse(ErrorKind::NotFound, why);
    }
    let Some(group) = function.group() else {
        let why = format!(
            "the function at {address} is in no IOMMU group: this host has no IOMMU, or it is off: turn on VT-d or \
             AMD-Vi in the firmware and boot Linux with intel_iommu=on; `reprise doctor` says more"
        );
        return refuse(ErrorKind::Unsupported, why);
    };
    match function.driver() {
        Some(driver) if is_vfio(&driver) => {}
        Some(driver) => {
            let why = format!(
                "the function at {address} is held by the kernel's driver {driver}: \
                 `reprise device bind {address}` gives it to {VFIO_DRIVER} unless it is in use"
            );
            return refuse(ErrorKind::Busy, why);
        }
        None => {
            let why = format!(
                "the function at {address} has no driver, and needs {VFIO_DRIVER}: `reprise device bind {address}`"
            );
            return refuse(ErrorKind::Unsupported, why);
        }
    }
    let others = held_by_the_kernel(root, group);
    if !others.is_empty() {
        return refuse(ErrorKind::Busy, shared_group(address, group, &others));
    }
    Ok(group)
}

/// The functions of a group that other drivers have; bridges may keep theirs.
fn held_by_the_kernel(root: &Root, group: u32) -> Vec<String> {
    let is_bridge = |function: &PciFacts| function.class().is_some_and(|class| class >> 16 == 6);
    let held = root.group(group).into_iter().filter(|function| !is_bridge(function)).filter_map(|function| {
        let driver = function.driver().filter(|driver| !is_vfio(driver) && driver != "pci-stub")?;
        Some(format!("{} ({driver})", function.address))
    });
    held.collect()
}

/// vfio-pci, or one of its variants for one model.
fn is_vfio(driver: &str) -> bool {
    driver.contains("vfio")
}

fn shared_group(address: PciAddress, group: u32, others: &[String]) -> String {
    format!(
        "the function at {address} shares IOMMU group {group} with functions that the kernel drives: {}: \
         unbind those too, or put the drive into another slot",
        others.join(", ")
    )
}

/// Opens the group, once nobody has it. *Blocking*.
#[expect(
    clippy::disallowed_methods,
    reason = "never on a reactor; the kernel tells nobody when a group is free"
)]
pub(super) fn open_group(root: &Root, address: PciAddress, group: u32) -> Refused<Group> {
    let path = format!("/dev/vfio/{group}");
    let begun = Instant::now();
    let opened = loop {
        match open_device(root, &path) {
            Err(Errno::BUSY) if begun.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            Err(errno) => return Err(not_opened(root, address, &path, errno)),
            Ok(opened) => break Group::new(opened),
        }
    };
    match opened.is_viable() {
        Ok(true) => Ok(opened),
        Ok(false) => {
            let others = held_by_the_kernel(root, group);
            refuse(ErrorKind::Busy, shared_group(address, group, &others))
        }
        Err(errno) => Err(not_opened(root, address, &path, errno)),
    }
}

fn open_device(root: &Root, path: &str) -> Result<OwnedFd, Errno> {
    open(root.path(path), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Why a file of VFIO could not be opened.
fn not_opened(root: &Root, address: PciAddress, path: &str, errno: Errno) -> PciRefused {
    let (kind, why) = match errno {
        Errno::BUSY => {
            let holder = match root.holder(Path::new(path)) {
                Some((process, name)) => format!("process {process} ({name})"),
                None => "another process".into(),
            };
            (ErrorKind::Busy, format!("{path} is held by {holder}: stop it first"))
        }
        Errno::ACCESS | Errno::PERM => {
            let permissions = root.permissions(path).unwrap_or_default();
            let user = geteuid().as_raw();
            let why = format!(
                "user {user} may not open {path} ({permissions}): chown {user} {path}, or run as its owner"
            );
            (ErrorKind::PermissionDenied, why)
        }
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            let why = format!("{path} is not there: modprobe vfio-pci, and look at `reprise doctor`");
            (ErrorKind::Unsupported, why)
        }
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
            (ErrorKind::OutOfResources, format!("{path} cannot be opened: {errno}"))
        }
        _ => (ErrorKind::Io, format!("{path} cannot be opened: {errno}")),
    };
    PciRefused { kind, why: format!("the function at {address} cannot be used: {why}") }
}

/// Puts the group where the process's mappings are. *Blocking*.
pub(super) fn attach(root: &Root, address: PciAddress, dma: &HostDma, group: &Group) -> Refused<()> {
    let container = || {
        let opened = open_device(root, CONTAINER);
        let opened = opened.map_err(|errno| not_opened(root, address, CONTAINER, errno))?;
        Container::new(opened).map_err(|errno| PciRefused {
            kind: ErrorKind::Unsupported,
            why: format!(
                "the function at {address} cannot be used: the kernel's VFIO drives no IOMMU of type 1 ({errno}): \
                 modprobe vfio_iommu_type1"
            ),
        })
    };
    dma.attach(group, container).map_err(|why| not_attached(address, why))
}

fn not_attached(address: PciAddress, why: NotAttached) -> PciRefused {
    let (kind, why) = match why {
        NotAttached::NoContainer(refused) => return refused,
        NotAttached::NoIommu(Errno::PERM) => {
            let why = "its interrupts are not remapped, so that it could interrupt as anything: turn interrupt remapping \
                       on in the firmware (or, where every device is trusted, modprobe vfio_iommu_type1 \
                       allow_unsafe_interrupts=1)";
            (ErrorKind::Unsupported, why.into())
        }
        NotAttached::NoIommu(errno) => {
            (ErrorKind::Unsupported, format!("the kernel does not give it an IOMMU: {errno}"))
        }
        NotAttached::Group(Errno::BUSY) => {
            (ErrorKind::Busy, "its IOMMU group is in use by another process".into())
        }
        NotAttached::Group(errno) => {
            let why = format!("its IOMMU cannot map what is mapped already for other functions: {errno}");
            (ErrorKind::Unsupported, why)
        }
        NotAttached::Address(range) => {
            let why = format!(
                "its IOMMU cannot map the device addresses {:#x} to {:#x}, which are in use already: attach it first, \
                 before the other drives and the guests",
                range.start, range.end
            );
            (ErrorKind::Unsupported, why)
        }
        NotAttached::Map(error, why) => (error.kind, why),
    };
    PciRefused { kind, why: format!("the function at {address} cannot be used: {why}") }
}

/// Opens the function itself, of a group that is in the container. *Blocking*: the kernel resets it.
pub(super) fn open_device_of(group: &Group, address: PciAddress) -> Refused<Device> {
    let name = CString::new(address.to_string()).expect("an address has no zeroes");
    group.device(&name).map_err(|errno| {
        let kind = match errno {
            Errno::NODEV | Errno::NOENT | Errno::NXIO => ErrorKind::NotFound,
            Errno::BUSY => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        PciRefused { kind, why: format!("the kernel does not open the function at {address}: {errno}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A host's trees, built for a test.
    struct Built(tempfile::TempDir);

    impl Built {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn root(&self) -> Root {
            Root::at(self.0.path())
        }

        /// A function with its driver and group.
        fn function(self, address: &str, class: &str, driver: Option<&str>, group: Option<u32>) -> Self {
            let root = self.root();
            let directory = root.path(&format!("/sys/bus/pci/devices/{address}"));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("class"), format!("{class}\n")).unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../../../bus/pci/drivers/{driver}"), directory.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let members = root.path(&format!("/sys/kernel/iommu_groups/{group}/devices"));
                fs::create_dir_all(&members).unwrap();
                symlink(&directory, members.join(address)).unwrap();
                symlink(format!("../../../kernel/iommu_groups/{group}"), directory.join("iommu_group"))
                    .unwrap();
            }
            self
        }
    }

    const NVME: &str = "0x010802";
    const ADDRESS: &str = "0000:3b:00.0";

    fn address() -> PciAddress {
        ADDRESS.parse().unwrap()
    }

    fn refused(built: &Built) -> (ErrorKind, String) {
        let PciRefused { kind, why } = check(&built.root(), address()).expect_err("must be refused");
        assert!(why.contains(ADDRESS), "{why}");
        (kind, why)
    }

    #[test]
    fn a_function_that_is_free_is_found_with_its_group() {
        let built = Built::new().function(ADDRESS, NVME, Some("vfio-pci"), Some(7));
        assert_eq!(check(&built.root(), address()), Ok(7));
        // Bridges keep their driver, and what nobody drives disturbs nobody.
        let built = built.function("0000:00:1c.0", "0x060400", Some("pcieport"), Some(7));
        let built = built.function("0000:3b:00.1", NVME, None, Some(7));
        assert_eq!(check(&built.root(), address()), Ok(7));
    }

    #[test]
    fn what_stands_in_the_way_is_named_with_what_to_do() {
        let cases = [
            (Built::new(), ErrorKind::NotFound, &["device list"][..]),
            (
                Built::new().function(ADDRESS, NVME, Some("nvme"), None),
                ErrorKind::Unsupported,
                &["intel_iommu=on", "reprise doctor"],
            ),
            (
                Built::new().function(ADDRESS, NVME, Some("nvme"), Some(7)),
                ErrorKind::Busy,
                &["driver nvme", "reprise device bind 0000:3b:00.0"],
            ),
            (
                Built::new().function(ADDRESS, NVME, None, Some(7)),
                ErrorKind::Unsupported,
                &["no driver", "reprise device bind 0000:3b:00.0"],
            ),
            (
                Built::new()
                    .function(ADDRESS, NVME, Some("vfio-pci"), Some(7))
                    .function("0000:3b:00.1", "0x010601", Some("ahci"), Some(7))
                    .function("0000:3b:00.2", NVME, Some("vfio-pci"), Some(7)),
                ErrorKind::Busy,
                &["group 7", ": 0000:3b:00.1 (ahci): ", "another slot"],
            ),
        ];
        for (built, expected, words) in cases {
            let (kind, why) = refused(&built);
            assert_eq!(kind, expected, "{why}");
            for word in words {
                assert!(why.contains(word), "{word:?} is not in {why:?}");
            }
        }
    }

    #[test]
    fn a_file_of_vfio_that_cannot_be_opened_says_who_or_how() {
        let built = Built::new();
        let root = built.root();
        fs::create_dir_all(root.path("/proc/4711/fd")).unwrap();
        fs::write(root.path("/proc/4711/comm"), "reprise\n").unwrap();
        symlink("/dev/vfio/7", root.path("/proc/4711/fd/9")).unwrap();
        fs::create_dir_all(root.path("/dev/vfio")).unwrap();
        fs::write(root.path("/dev/vfio/7"), "").unwrap();
        let why = |group: u32, errno| {
            let refused = not_opened(&root, address(), &format!("/dev/vfio/{group}"), errno);
            (refused.kind, refused.why)
        };
        let (kind, text) = why(7, Errno::BUSY);
        assert!(kind == ErrorKind::Busy && text.contains("process 4711 (reprise)"), "{text}");
        let (kind, text) = why(8, Errno::BUSY);
        assert!(kind == ErrorKind::Busy && text.contains("another process"), "{text}");
        let (kind, text) = why(7, Errno::ACCESS);
        assert!(kind == ErrorKind::PermissionDenied && text.contains("mode 0"), "{text}");
        let refused = open_group(&root, address(), 9).expect_err("there is no such file");
        assert!(refused.kind == ErrorKind::Unsupported && refused.why.contains("modprobe"), "{refused:?}");
        // An ordinary file in its place is no group.
        let refused = open_group(&root, address(), 7).expect_err("it is no group");
        assert_eq!(refused.kind, ErrorKind::Io, "{refused:?}");
    }

    #[test]
    fn what_the_iommu_cannot_do_is_said_with_what_to_do() {
        for (why, kind, word) in [
            (NotAttached::NoIommu(Errno::PERM), ErrorKind::Unsupported, "allow_unsafe_interrupts"),
            (NotAttached::NoIommu(Errno::INVAL), ErrorKind::Unsupported, "IOMMU"),
            (NotAttached::Group(Errno::BUSY), ErrorKind::Busy, "another process"),
            (NotAttached::Group(Errno::INVAL), ErrorKind::Unsupported, "mapped already"),
            (NotAttached::Address(1 << 40..1 << 41), ErrorKind::Unsupported, "0x10000000000"),
        ] {
            let refused = not_attached(address(), why);
            assert!(refused.kind == kind && refused.why.contains(word), "{refused:?}");
        }
    }
}
