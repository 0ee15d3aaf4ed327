//! A host's /sys, /proc and /dev, built for a test.

use hw::pci::sysfs::Root;
use std::fs;
use std::os::unix::fs::symlink;

/// Where its NVMe function sits.
pub(crate) const ADDRESS: &str = "0000:3b:00.0";

/// The trees.
pub(crate) struct Built(tempfile::TempDir);

impl Built {
    /// Nothing.
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub(crate) fn root(&self) -> Root {
        Root::at(self.0.path())
    }

    pub(crate) fn file(self, path: &str, text: &str) -> Self {
        let path = self.root().path(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
        fs::write(path, text).expect("a file");
        self
    }

    pub(crate) fn link(self, path: &str, to: &str) -> Self {
        let path = self.root().path(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
        symlink(to, path).expect("a link");
        self
    }

    pub(crate) fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root().path(path)).unwrap_or_default()
    }

    /// An NVMe function with its driver and IOMMU group.
    pub(crate) fn function(driver: Option<&str>, group: Option<u32>) -> Self {
        let at = |name: &str| format!("/sys/bus/pci/devices/{ADDRESS}/{name}");
        let mut built = Self::new()
            .file(&at("class"), "0x010802\n")
            .file(&at("vendor"), "0x1b36\n")
            .file(&at("device"), "0x0010\n")
            .file(&at("numa_node"), "1\n")
            .file(&at("driver_override"), "(null)\n")
            .file("/sys/bus/pci/drivers_probe", "")
            .file("/sys/bus/pci/drivers/vfio-pci/unbind", "");
        if let Some(driver) = driver {
            built = built
                .file(&format!("/sys/bus/pci/drivers/{driver}/unbind"), "")
                .link(&at("driver"), &format!("../../drivers/{driver}"));
        }
        if let Some(group) = group {
            let members = format!("/sys/kernel/iommu_groups/{group}/devices/{ADDRESS}");
            built = built
                .link(&at("iommu_group"), &format!("../../../../kernel/iommu_groups/{group}"))
                .link(&members, &format!("../../../../bus/pci/devices/{ADDRESS}"));
        }
        built
    }

    /// One that the kernel drives, with a disk that has a part.
    pub(crate) fn drive() -> Self {
        let controller = format!("/sys/bus/pci/devices/{ADDRESS}/nvme/nvme0");
        Self::function(Some("nvme"), Some(7))
            .file(&format!("{controller}/model"), "QEMU NVMe Ctrl                          \n")
            .file(&format!("{controller}/serial"), "S1\n")
            .file(&format!("{controller}/nvme0n1/x"), "")
            .file("/sys/block/nvme0n1/dev", "259:0\n")
            .file("/sys/block/nvme0n1/nvme0n1p1/dev", "259:1\n")
            .file("/sys/block/nvme0n1/nvme0n1p1/partition", "1\n")
    }
}
