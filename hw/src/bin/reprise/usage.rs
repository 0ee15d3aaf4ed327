//! Who uses an NVMe drive: what has it open or built upon, by all that the kernel tells.

use hw::pci::sysfs::{PciFacts, Root};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::path::Path;

/// The disks that the kernel's driver made of a function's namespaces, such as `nvme0n1`.
pub(crate) fn disks(root: &Root, function: &PciFacts) -> Vec<String> {
    let controllers = function.names("nvme");
    let mut disks: Vec<String> = controllers
        .iter()
        .flat_map(|controller| function.names(&format!("nvme/{controller}")))
        .map(|name| disk_of(&name))
        .filter(|disk| root.path(&format!("/sys/block/{disk}")).is_dir())
        .collect();
    disks.sort_unstable();
    disks.dedup();
    disks
}

/// The disk of a path: `nvme0c1n2`, controller 1's way to it, is one of `nvme0n2`'s.
fn disk_of(name: &str) -> String {
    match name.split_once('c') {
        Some((subsystem, rest)) => match rest.split_once('n') {
            Some((_, namespace)) => format!("{subsystem}n{namespace}"),
            None => name.to_owned(),
        },
        None => name.to_owned(),
    }
}

/// Who uses a function, a phrase each; nobody: it can be taken away from its driver.
pub(crate) fn users(root: &Root, function: &PciFacts) -> Vec<String> {
    let mut users = Vec::new();
    for disk in disks(root, function) {
        let directory = format!("/sys/block/{disk}");
        let parts = root.names(&directory);
        let parts = parts.iter().filter(|part| root.path(&format!("{directory}/{part}/partition")).exists());
        users.extend(users_of(root, &disk, &directory));
        for part in parts {
            users.extend(users_of(root, part, &format!("{directory}/{part}")));
        }
    }
    if let Some(group) =
        function.group().filter(|_| function.driver().is_some_and(|name| name.contains("vfio")))
    {
        let file = format!("/dev/vfio/{group}");
        users.extend(holder(root, &file, OFlags::RDWR));
    }
    users.dedup();
    users
}

/// Who uses a disk or a part of one.
fn users_of(root: &Root, name: &str, directory: &str) -> Vec<String> {
    let device = format!("/dev/{name}");
    let number = root.text(&format!("{directory}/dev")).unwrap_or_default();
    let mut users = Vec::new();
    for line in root.text("/proc/self/mountinfo").unwrap_or_default().lines() {
        // ID, parent's ID, device, root, mount point, options, …, -, type, source, options (proc(5)).
        let words: Vec<_> = line.split(' ').collect();
        let source = words.iter().position(|word| *word == "-").and_then(|dash| words.get(dash + 2));
        let is_it = words.get(2) == Some(&number.as_str()) || source == Some(&device.as_str());
        if let Some(place) = words.get(4).filter(|_| is_it) {
            users.push(format!("{name} is mounted at {place}"));
        }
    }
    let swaps = root.text("/proc/swaps").unwrap_or_default();
    if swaps.lines().any(|line| line.split_whitespace().next() == Some(&device)) {
        users.push(format!("{name} is swap"));
    }
    for holder in root.names(&format!("{directory}/holders")) {
        let mapped = root.text(&format!("/sys/block/{holder}/dm/name"));
        let what = mapped.map_or_else(|| holder.clone(), |name| format!("{name} ({holder})"));
        users.push(format!("{name} is part of {what}"));
    }
    if users.is_empty() {
        // Nobody of the above, who all would be in the way here too.
        users.extend(holder(root, &device, OFlags::RDONLY | OFlags::EXCL));
    }
    users
}

/// The process that has a file of /dev open, or keeps others from opening it so.
fn holder(root: &Root, file: &str, how: OFlags) -> Option<String> {
    if let Some((process, name)) = root.holder(Path::new(file)) {
        return Some(format!("{file} is open in process {process} ({name})"));
    }
    match open(root.path(file), how | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::BUSY) => Some(format!("{file} is in use")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built::{ADDRESS, Built};

    fn users_in(built: &Built) -> Vec<String> {
        users(&built.root(), &built.root().function(ADDRESS.parse().unwrap()))
    }

    #[test]
    fn a_drive_that_nobody_uses_has_no_users() {
        let built = Built::drive();
        assert_eq!(users_in(&built), Vec::<String>::new());
        assert_eq!(disks(&built.root(), &built.root().function(ADDRESS.parse().unwrap())), ["nvme0n1"]);
    }

    #[test]
    fn every_user_is_named() {
        let mount = "29 1 259:1 / /data rw,relatime shared:1 - xfs /dev/nvme0n1p1 rw\n";
        // A file system over several disks has a number of its own.
        let pool = "30 1 0:41 /@ /pool rw - btrfs /dev/nvme0n1 rw\n";
        let other = "31 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
        for (path, text, expected) in [
            ("/proc/self/mountinfo", mount, "nvme0n1p1 is mounted at /data"),
            ("/proc/self/mountinfo", pool, "nvme0n1 is mounted at /pool"),
            (
                "/proc/swaps",
                "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2\n",
                "nvme0n1p1 is swap",
            ),
            ("/sys/block/nvme0n1/holders/md127/x", "", "nvme0n1 is part of md127"),
        ] {
            let built = Built::drive().file("/proc/self/mountinfo", other).file(path, text);
            assert_eq!(users_in(&built), [expected]);
        }
        let built = Built::drive()
            .file("/sys/block/nvme0n1/nvme0n1p1/holders/dm-3/x", "")
            .file("/sys/block/dm-3/dm/name", "vg0-root\n");
        assert_eq!(users_in(&built), ["nvme0n1p1 is part of vg0-root (dm-3)"]);
        let built = Built::drive().file("/proc/77/comm", "reprise\n").link("/proc/77/fd/5", "/dev/nvme0n1");
        assert_eq!(users_in(&built), ["/dev/nvme0n1 is open in process 77 (reprise)"]);
    }

    #[test]
    fn the_process_that_drives_it_is_named() {
        let built = Built::function(Some("vfio-pci"), Some(7))
            .file("/dev/vfio/7", "")
            .file("/proc/77/comm", "reprise\n")
            .link("/proc/77/fd/5", "/dev/vfio/7");
        assert_eq!(users_in(&built), ["/dev/vfio/7 is open in process 77 (reprise)"]);
    }

    #[test]
    fn a_path_is_a_way_to_its_disk() {
        assert_eq!(disk_of("nvme0c1n2"), "nvme0n2");
        assert_eq!(disk_of("nvme12n1"), "nvme12n1");
    }
}
