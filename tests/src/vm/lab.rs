//! The directory that `tests/vm/setup` makes: two QEMUs, a kernel, and the guest's files.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The lab, known to be complete.
#[derive(Debug)]
pub struct Lab {
    directory: PathBuf,
}

/// Which QEMU a guest runs in. The two differ in what they send: 11.1 asks for a reply to messages that 7.2 never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qemu {
    /// Debian 12's own, 7.2.
    Debian12,
    /// Debian 13's backport, 11.1 or newer.
    Debian13Backports,
}

impl Lab {
    /// The lab in `REPRISE_VM_LAB`, or where `tests/vm/setup` makes it without being told: `target/vm-lab`. Panics with
    /// what to do if it is not there or not complete: a test that needs it cannot be said to have passed.
    pub fn open() -> Lab {
        let directory = std::env::var_os("REPRISE_VM_LAB").map_or_else(default_directory, PathBuf::from);
        let lab = Lab { directory };
        for needed in
            [lab.kernel(), lab.guest_files(), lab.qemu(Qemu::Debian12), lab.qemu(Qemu::Debian13Backports)]
        {
            assert!(
                needed.exists(),
                "{} is missing; make the lab: tests/vm/setup --qemu11",
                needed.display()
            );
        }
        lab
    }

    /// Where the lab is; a guest's own files are made below it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The uncompressed guest kernel.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    /// The initramfs without init.
    pub fn guest_files(&self) -> PathBuf {
        self.directory.join("base.cpio")
    }

    /// The emulator.
    pub fn qemu(&self, which: Qemu) -> PathBuf {
        self.directory.join(match which {
            Qemu::Debian12 => "qemu",
            Qemu::Debian13Backports => "qemu11",
        })
    }

    /// QEMU's own storage daemon, a vhost-user-blk back-end without inflight tracking.
    pub fn storage_daemon(&self) -> PathBuf {
        self.directory.join("qemu-storage-daemon")
    }

    /// The emulator's version, major and minor.
    pub(super) fn qemu_version(&self, which: Qemu) -> (u32, u32) {
        let output = Command::new(self.qemu(which)).arg("--version").output().expect("QEMU can be started");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        parse_version(&printed).unwrap_or_else(|| panic!("QEMU's version cannot be read from {printed:?}"))
    }
}

fn default_directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    target.join("vm-lab")
}

/// `QEMU emulator version 7.2.22 (Debian …)`.
fn parse_version(printed: &str) -> Option<(u32, u32)> {
    let mut numbers = printed.split_once("version ")?.1.split(['.', ' ', '\n']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright"), Some((7, 2)));
        assert_eq!(parse_version("QEMU emulator version 11.1\n"), Some((11, 1)));
        assert_eq!(parse_version("something else"), None);
    }
}
