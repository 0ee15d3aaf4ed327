//! What the host says of its PCI functions: in /sys, /proc and /dev, below a root that tests put a built tree at.
//!
//! All of it may change under the reader: a function is pulled out, a driver lets go. What cannot be read is absent.

use runtime::PciAddress;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the host's trees are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Default for Root {
    /// The host's own.
    fn default() -> Self {
        Self("/".into())
    }
}

impl Root {
    /// Trees below a directory.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// A path of the host, such as `/proc/meminfo`.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// The text of a file, without what is white at its ends.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        read_trimmed(&self.path(path))
    }

    /// Names of what is in a directory, sorted; none where there is no such directory.
    #[must_use]
    pub fn names(&self, directory: &str) -> Vec<String> {
        names(&self.path(directory))
    }

    /// All functions, in order.
    #[must_use]
    pub fn functions(&self) -> Vec<PciFacts> {
        let mut addresses: Vec<PciAddress> =
            self.names("/sys/bus/pci/devices").iter().filter_map(|name| name.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.into_iter().map(|address| self.function(address)).collect()
    }

    /// One of them, there or not.
    #[must_use]
    pub fn function(&self, address: PciAddress) -> PciFacts {
        PciFacts { address, directory: self.path("/sys/bus/pci/devices").join(address.to_string()) }
    }

    /// The functions of an IOMMU group.
    #[must_use]
    pub fn group(&self, group: u32) -> Vec<PciFacts> {
        let names = self.names(&format!("/sys/kernel/iommu_groups/{group}/devices"));
        names.iter().filter_map(|name| Some(self.function(name.parse().ok()?))).collect()
    }

    /// The process that has a file of /dev open: its number and name. Whose files we may not look at is not found.
    #[must_use]
    pub fn holder(&self, device: &Path) -> Option<(u32, String)> {
        self.names("/proc").iter().filter_map(|name| name.parse().ok()).find_map(|process: u32| {
            let descriptors = self.path(&format!("/proc/{process}/fd"));
            let holds = names(&descriptors).iter().any(|descriptor| {
                fs::read_link(descriptors.join(descriptor)).is_ok_and(|path| path == device)
            });
            holds.then(|| (process, self.text(&format!("/proc/{process}/comm")).unwrap_or_default()))
        })
    }

    /// Who may open a file: its permissions and owners, for people.
    #[must_use]
    pub fn permissions(&self, path: &str) -> Option<String> {
        let facts = fs::metadata(self.path(path)).ok()?;
        Some(format!("mode {:04o}, user {}, group {}", facts.mode() & 0o7777, facts.uid(), facts.gid()))
    }
}

/// A function's directory in sysfs.
#[derive(Clone, Debug)]
pub struct PciFacts {
    /// Where the function sits.
    pub address: PciAddress,
    directory: PathBuf,
}

impl PciFacts {
    /// Whether there is such a function.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.directory.is_dir()
    }

    /// A file or directory of it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The text of one of its files.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        read_trimmed(&self.path(name))
    }

    /// The number in one of its files, hexadecimal with 0x in front or decimal.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u32> {
        let text = self.text(name)?;
        match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    }

    /// The driver that has it.
    #[must_use]
    pub fn driver(&self) -> Option<String> {
        self.link("driver")
    }

    /// Its IOMMU group.
    #[must_use]
    pub fn group(&self) -> Option<u32> {
        self.link("iommu_group")?.parse().ok()
    }

    /// Its NUMA node, where the host has nodes.
    #[must_use]
    pub fn numa_node(&self) -> Option<u32> {
        self.text("numa_node")?.parse().ok()
    }

    /// Base class, subclass and programming interface.
    #[must_use]
    pub fn class(&self) -> Option<u32> {
        self.number("class")
    }

    /// Names in one of its directories.
    #[must_use]
    pub fn names(&self, directory: &str) -> Vec<String> {
        names(&self.path(directory))
    }

    /// The last name of what a link of it leads to.
    fn link(&self, name: &str) -> Option<String> {
        Some(fs::read_link(self.path(name)).ok()?.file_name()?.to_str()?.to_owned())
    }
}

fn read_trimmed(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}
