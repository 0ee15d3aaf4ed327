//! `reprise doctor`: whether this host has what the target needs, and the command that mends what it lacks.

use crate::Failure;
use crate::arguments::Doctor;
use hw::pci::sysfs::Root;
use rustix::fs::{Access, access};
use rustix::process::geteuid;
use serde_json::{Value, json};
use std::fmt::Write;

/// In CAP_*: lock any amount of memory. Linux, uapi/linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;
/// Less locked memory than this is not enough for one guest.
const MEMLOCK_MIN: u64 = 1 << 30;

/// How a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// As it should be.
    Good,
    /// The target works, and would work better.
    Advice,
    /// Something does not work.
    Missing,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Advice => "advice",
            Self::Missing => "missing",
        }
    }
}

/// Something that was looked at.
#[derive(Debug)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    /// The command that mends it.
    mend: Option<String>,
}

fn good(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, state: State::Good, found: found.into(), mend: None }
}

fn bad(what: &'static str, state: State, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { what, state, found: found.into(), mend: Some(mend.into()) }
}

/// Prints the findings. Fails when something is missing.
pub(crate) fn run(arguments: &Doctor) -> Result<(), Failure> {
    let root = arguments.root.clone().map_or_else(Root::default, Root::at);
    let findings = examine(&root);
    print!("{}", if arguments.json { as_json(&findings) } else { as_text(&findings) });
    let missing = findings.iter().filter(|finding| finding.state == State::Missing).count();
    match missing {
        0 => Ok(()),
        _ => Err(Failure::refused(format!("{missing} of {} things are missing", findings.len()))),
    }
}

fn as_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { what, state, found, mend } in findings {
        writeln!(text, "{:8} {what}: {found}", state.name()).expect("a text takes all");
        if let Some(mend) = mend {
            writeln!(text, "         -> {mend}").expect("a text takes all");
        }
    }
    text
}

fn as_json(findings: &[Finding]) -> String {
    let finding = |Finding { what, state, found, mend }: &Finding| json!({"what": what, "state": state.name(), "found": found, "mend": mend});
    let findings: Vec<Value> = findings.iter().map(finding).collect();
    format!("{:#}\n", Value::from(findings))
}

fn examine(root: &Root) -> Vec<Finding> {
    let mut findings = vec![iommu(root), modules(root), container(root)];
    findings.extend(groups(root));
    findings.extend([locked_memory(root), hugepages(root), io_uring(root), shared_memory(root)]);
    findings
}

fn iommu(root: &Root) -> Finding {
    let what = "IOMMU";
    let (units, groups) = (root.names("/sys/class/iommu"), root.names("/sys/kernel/iommu_groups"));
    if !units.is_empty() && !groups.is_empty() {
        return good(what, format!("{}, {} groups", units.join(", "), groups.len()));
    }
    let is_amd = root.text("/proc/cpuinfo").is_some_and(|text| text.contains("AuthenticAMD"));
    let (technique, argument) = if is_amd { ("AMD-Vi", "amd_iommu=on") } else { ("VT-d", "intel_iommu=on") };
    let found = "none is on, so that no process may drive a PCI function";
    let mend = format!(
        "turn {technique} on in the firmware, add {argument} to GRUB_CMDLINE_LINUX in /etc/default/grub, update-grub, reboot"
    );
    bad(what, State::Missing, found, mend)
}

fn modules(root: &Root) -> Finding {
    let what = "VFIO modules";
    let has = |module: &str| root.path(&format!("/sys/module/{module}")).is_dir();
    let absent: Vec<_> = ["vfio_pci", "vfio_iommu_type1"].into_iter().filter(|module| !has(module)).collect();
    if absent.is_empty() {
        return good(what, "vfio_pci, vfio_iommu_type1");
    }
    bad(
        what,
        State::Missing,
        format!("{} not there", absent.join(", ")),
        format!("modprobe -a {}", absent.join(" ")),
    )
}

/// Whether a file may be read and written by us; else what to say and do.
fn permission(root: &Root, what: &'static str, path: &str) -> Finding {
    if access(root.path(path), Access::READ_OK | Access::WRITE_OK).is_ok() {
        return good(what, format!("{path} can be opened"));
    }
    let user = geteuid().as_raw();
    match root.permissions(path) {
        Some(permissions) => {
            let found = format!("user {user} may not open {path} ({permissions})");
            bad(what, State::Missing, found, format!("chown {user} {path}"))
        }
        None => bad(what, State::Missing, format!("{path} is not there"), "modprobe vfio-pci"),
    }
}

fn container(root: &Root) -> Finding {
    permission(root, "VFIO container", "/dev/vfio/vfio")
}

/// The groups of the functions that vfio-pci has.
fn groups(root: &Root) -> Vec<Finding> {
    let functions = root.functions();
    let ours =
        functions.iter().filter(|function| function.driver().is_some_and(|driver| driver == "vfio-pci"));
    let mut groups: Vec<u32> = ours.filter_map(|function| function.group()).collect();
    groups.sort_unstable();
    groups.dedup();
    groups.iter().map(|group| permission(root, "IOMMU group", &format!("/dev/vfio/{group}"))).collect()
}

fn locked_memory(root: &Root) -> Finding {
    let what = "locked memory";
    // CapEff: the capabilities in hexadecimal; Max locked memory: the soft limit, the hard one, and the unit (proc(5)).
    let status = root.text("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    if capabilities >> CAP_IPC_LOCK & 1 == 1 {
        return good(what, "no limit for who has CAP_IPC_LOCK");
    }
    let limits = root.text("/proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let limit = limit.and_then(|text| text.split_whitespace().next()).unwrap_or("unknown");
    match limit.parse::<u64>() {
        Err(_) if limit == "unlimited" => good(what, "no limit"),
        Ok(bytes) if bytes >= MEMLOCK_MIN => {
            let found = format!("up to {} MiB (RLIMIT_MEMLOCK): all guests' memory must fit", bytes >> 20);
            good(what, found)
        }
        _ => bad(
            what,
            State::Missing,
            format!("up to {limit} bytes (RLIMIT_MEMLOCK), and drives need all guests' memory locked"),
            "LimitMEMLOCK=infinity in the systemd unit, or ulimit -l unlimited",
        ),
    }
}

fn hugepages(root: &Root) -> Finding {
    let what = "huge pages";
    let meminfo = root.text("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let (total, free, size_kib) = (field("HugePages_Total"), field("HugePages_Free"), field("Hugepagesize"));
    if total > 0 {
        return good(what, format!("{free} of {total} free, {size_kib} KiB each"));
    }
    bad(what, State::Advice, "none: guests whose memory has them are faster", "sysctl vm.nr_hugepages=1024")
}

fn io_uring(root: &Root) -> Finding {
    let what = "io_uring";
    match root.text("/proc/sys/kernel/io_uring_disabled").as_deref() {
        // Kernels before 6.6 do not know the switch.
        None | Some("0") => good(what, "allowed"),
        Some("1") => bad(
            what,
            State::Advice,
            "only for CAP_SYS_ADMIN and the group of kernel.io_uring_group: others have bdev_aio_create alone",
            "sysctl kernel.io_uring_disabled=0",
        ),
        Some(_) => bad(
            what,
            State::Missing,
            "turned off: bdev_uring_create is refused, bdev_aio_create works",
            "sysctl kernel.io_uring_disabled=0",
        ),
    }
}

fn shared_memory(root: &Root) -> Finding {
    let what = "named memory";
    match access(root.path("/dev/shm"), Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => good(what, "/dev/shm"),
        Err(_) => bad(
            what,
            State::Missing,
            "/dev/shm cannot be used",
            "mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm (or another --memory-dir)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built::Built;

    /// A host that lacks nothing.
    fn whole() -> Built {
        Built::function(Some("vfio-pci"), Some(7))
            .file("/sys/class/iommu/dmar0/x", "")
            .file("/sys/module/vfio_pci/x", "")
            .file("/sys/module/vfio_iommu_type1/x", "")
            .file("/dev/vfio/vfio", "")
            .file("/dev/vfio/7", "")
            .file("/dev/shm/x", "")
            .file("/proc/self/status", "Name:\tx\nCapEff:\t0000000000004000\n")
            .file(
                "/proc/meminfo",
                "HugePages_Total:     512\nHugePages_Free:  500\nHugepagesize:    2048 kB\n",
            )
            .file("/proc/sys/kernel/io_uring_disabled", "0\n")
    }

    fn wrong(built: &Built) -> Vec<(&'static str, State)> {
        let findings = examine(&built.root());
        assert!(findings.iter().all(|finding| finding.mend.is_some() == (finding.state != State::Good)));
        let wrong = findings.iter().filter(|finding| finding.state != State::Good);
        wrong.map(|finding| (finding.what, finding.state)).collect()
    }

    #[test]
    fn a_host_that_lacks_nothing_is_well() {
        let built = whole();
        assert_eq!(wrong(&built), []);
        assert!(run(&Doctor { json: false, root: Some(built.root().path("/")) }).is_ok());
    }

    #[test]
    fn an_empty_host_lacks_nearly_all() {
        let missing =
            ["IOMMU", "VFIO modules", "VFIO container", "locked memory"].map(|what| (what, State::Missing));
        let mut expected = missing.to_vec();
        expected.extend([("huge pages", State::Advice), ("named memory", State::Missing)]);
        let built = Built::new();
        assert_eq!(wrong(&built), expected);
        let Err(failure) = run(&Doctor { json: true, root: Some(built.root().path("/")) }) else {
            panic!("much is missing")
        };
        assert_eq!((failure.code, failure.reason.as_str()), (1, "5 of 7 things are missing"));
    }

    #[test]
    fn each_thing_that_is_wrong_is_found() {
        let limits = |limit: &str| {
            format!(
                "Limit Soft Hard Units\nMax locked memory         {limit}              8388608              bytes\n"
            )
        };
        let status = "CapEff:\t0000000000000000\n";
        for (path, text, what, state) in [
            ("/proc/sys/kernel/io_uring_disabled", "2\n", "io_uring", State::Missing),
            ("/proc/sys/kernel/io_uring_disabled", "1\n", "io_uring", State::Advice),
            ("/proc/meminfo", "HugePages_Total:       0\n", "huge pages", State::Advice),
            ("/proc/self/status", status, "locked memory", State::Missing),
        ] {
            assert_eq!(wrong(&whole().file(path, text)), [(what, state)], "{text}");
        }
        let unlocked = whole().file("/proc/self/status", status);
        let unlocked = unlocked.file("/proc/self/limits", &limits("8388608"));
        assert_eq!(wrong(&unlocked), [("locked memory", State::Missing)]);
        for enough in ["unlimited", "2147483648"] {
            let built = whole().file("/proc/self/status", status).file("/proc/self/limits", &limits(enough));
            assert_eq!(wrong(&built), [], "{enough}");
        }
        let built = Built::function(Some("vfio-pci"), Some(7));
        assert!(wrong(&built).contains(&("IOMMU group", State::Missing)));
    }

    #[test]
    fn findings_are_read_by_people_and_by_programs() {
        let findings = [good("a", "b"), bad("c", State::Missing, "d", "e")];
        assert_eq!(as_text(&findings), "ok       a: b\nmissing  c: d\n         -> e\n");
        let read: Value = serde_json::from_str(&as_json(&findings)).unwrap();
        assert_eq!(read[1], json!({"what": "c", "state": "missing", "found": "d", "mend": "e"}));
    }
}
