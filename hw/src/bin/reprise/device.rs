//! `reprise device`: the host's NVMe drives, and whose they are: the kernel's, or a process's by way of vfio-pci.

use crate::Failure;
use crate::arguments::{Device, DeviceCommand};
use crate::usage::{disks, users};
use hw::pci::sysfs::{PciFacts, Root};
use runtime::PciAddress;
use rustix::process::geteuid;
use serde_json::{Value, json};
use std::fmt::Write;

/// Class code of an NVMe I/O controller (PCIe 3.8.1.5).
const CLASS_NVME: u32 = 0x01_08_02;
/// The kernel's driver that gives functions to processes.
const VFIO_DRIVER: &str = "vfio-pci";

/// Does what was asked.
pub(crate) fn run(arguments: &Device) -> Result<(), Failure> {
    let root = arguments.root.clone().map_or_else(Root::default, Root::at);
    match &arguments.command {
        DeviceCommand::List { json } => {
            print!("{}", if *json { list_json(&root) } else { list(&root) });
            Ok(())
        }
        DeviceCommand::Bind { address } => bind(&root, *address).map(|done| println!("{done}")),
        DeviceCommand::Unbind { address } => unbind(&root, *address).map(|done| println!("{done}")),
    }
}

fn drives(root: &Root) -> Vec<PciFacts> {
    root.functions().into_iter().filter(|function| function.class() == Some(CLASS_NVME)).collect()
}

/// What it calls itself, which only the kernel's driver has asked; else its vendor and device.
fn model(function: &PciFacts) -> String {
    let controllers = function.names("nvme");
    let asked = controllers.first().and_then(|controller| function.text(&format!("nvme/{controller}/model")));
    let id = |name| function.number(name).unwrap_or(0);
    asked.unwrap_or_else(|| format!("{:04x}:{:04x}", id("vendor"), id("device")))
}

/// A line a drive, in columns.
fn list(root: &Root) -> String {
    let or_none = |number: Option<u32>| number.map_or("-".into(), |number: u32| number.to_string());
    let mut rows = vec![["ADDRESS", "MODEL", "DRIVER", "GROUP", "NODE", "DISKS", "USE"].map(String::from)];
    for function in drives(root) {
        let (disks, users) = (disks(root, &function), users(root, &function));
        rows.push([
            function.address.to_string(),
            model(&function),
            function.driver().unwrap_or_else(|| "-".into()),
            or_none(function.group()),
            or_none(function.numa_node()),
            if disks.is_empty() { "-".into() } else { disks.join(",") },
            if users.is_empty() { "free".into() } else { users.join("; ") },
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut table = String::new();
    for row in &rows {
        let line: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(table, "{}", line.join("  ").trim_end()).expect("a text takes all");
    }
    table
}

fn list_json(root: &Root) -> String {
    let drive = |function: PciFacts| {
        let users = users(root, &function);
        json!({
            "address": function.address.to_string(),
            "model": model(&function),
            "driver": function.driver(),
            "iommu_group": function.group(),
            "numa_node": function.numa_node(),
            "disks": disks(root, &function),
            "free": users.is_empty(),
            "users": users,
        })
    };
    let drives: Vec<Value> = drives(root).into_iter().map(drive).collect();
    format!("{:#}\n", Value::from(drives))
}

/// The drive at an address.
fn drive(root: &Root, address: PciAddress) -> Result<PciFacts, Failure> {
    let function = root.function(address);
    match function.class() {
        Some(CLASS_NVME) => Ok(function),
        Some(class) => Err(Failure::refused(format!(
            "the function at {address} is no NVMe controller: its class code is {class:06x}, not 010802"
        ))),
        None => Err(Failure::refused(format!(
            "there is no PCI function at {address}: `reprise device list` shows those of NVMe"
        ))),
    }
}

/// Gives a drive to vfio-pci.
fn bind(root: &Root, address: PciAddress) -> Result<String, Failure> {
    let function = drive(root, address)?;
    let Some(group) = function.group() else {
        return Err(Failure::refused(format!(
            "{address} is in no IOMMU group, so that no process may drive it: see `reprise doctor`"
        )));
    };
    if function.driver().as_deref() == Some(VFIO_DRIVER) {
        return Ok(format!("{address} has the driver {VFIO_DRIVER} already: /dev/vfio/{group}"));
    }
    refuse_in_use(root, &function)?;
    if !root.path(&format!("/sys/bus/pci/drivers/{VFIO_DRIVER}")).is_dir() {
        return Err(Failure::refused(format!(
            "the kernel has no driver {VFIO_DRIVER}: modprobe {VFIO_DRIVER}"
        )));
    }
    let moved = move_to(root, &function, Some(VFIO_DRIVER));
    if let Err(failure) = moved {
        // As it was, as far as the kernel lets us.
        let _ = move_to(root, &function, None);
        return Err(failure);
    }
    Ok(format!("{address} has the driver {VFIO_DRIVER}: /dev/vfio/{group}"))
}

/// Gives a drive back to the kernel's own driver.
fn unbind(root: &Root, address: PciAddress) -> Result<String, Failure> {
    let function = drive(root, address)?;
    match function.driver() {
        Some(driver) if driver == VFIO_DRIVER => {}
        driver => {
            let driver = driver.unwrap_or_else(|| "none".into());
            return Err(Failure::refused(format!(
                "{address} does not have the driver {VFIO_DRIVER} but {driver}: there is nothing to take back"
            )));
        }
    }
    // The kernel would wait for the process, for ever.
    refuse_in_use(root, &function)?;
    move_to(root, &function, None)?;
    Ok(match function.driver() {
        Some(driver) => format!("{address} has the driver {driver}"),
        None => format!("{address} has no driver: the kernel has none that wants it (modprobe nvme)"),
    })
}

fn refuse_in_use(root: &Root, function: &PciFacts) -> Result<(), Failure> {
    let users = users(root, function);
    if users.is_empty() {
        return Ok(());
    }
    Err(Failure::refused(format!("{} is in use: {}", function.address, users.join("; "))))
}

/// Takes a function away from its driver and gives it to another: a named one, or whichever wants it.
fn move_to(root: &Root, function: &PciFacts, driver: Option<&str>) -> Result<(), Failure> {
    let address = function.address.to_string();
    let store = |path: std::path::PathBuf, text: &str| {
        std::fs::write(&path, text).map_err(|error| {
            let path = path.display();
            let user = geteuid().as_raw();
            let hint = if error.kind() == std::io::ErrorKind::PermissionDenied {
                format!(" by user {user}: run as root")
            } else {
                String::new()
            };
            Failure::refused(format!("{path} cannot be written{hint}: {error}"))
        })
    };
    store(function.path("driver_override"), &format!("{}\n", driver.unwrap_or("")))?;
    if let Some(before) = function.driver() {
        store(root.path(&format!("/sys/bus/pci/drivers/{before}/unbind")), &address)?;
    }
    store(root.path("/sys/bus/pci/drivers_probe"), &address)?;
    match (driver, function.driver()) {
        (Some(wanted), found) if found.as_deref() != Some(wanted) => Err(Failure::refused(format!(
            "the kernel did not give {address} to {wanted}, which says more in its log (dmesg)"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built::{ADDRESS, Built};

    fn address() -> PciAddress {
        ADDRESS.parse().unwrap()
    }

    fn refused<T>(result: Result<T, Failure>) -> String {
        match result {
            Err(Failure { code: 1, reason }) => reason,
            Err(Failure { code, reason }) => panic!("code {code}: {reason}"),
            Ok(_) => panic!("it was done"),
        }
    }

    #[test]
    fn drives_are_listed_with_their_use() {
        let built = Built::drive()
            .file("/sys/bus/pci/devices/0000:00:1f.2/class", "0x010601\n")
            .file("/proc/swaps", "/dev/nvme0n1p1 partition 1 0 -2\n");
        let table = list(&built.root());
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 2, "{table}");
        assert_eq!(
            lines[1].split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect::<Vec<_>>(),
            [ADDRESS, "QEMU NVMe Ctrl", "nvme", "7", "1", "nvme0n1", "nvme0n1p1 is swap"]
        );
        let listed: Value = serde_json::from_str(&list_json(&built.root())).unwrap();
        assert_eq!(
            listed,
            json!([{
                "address": ADDRESS, "model": "QEMU NVMe Ctrl", "driver": "nvme", "iommu_group": 7, "numa_node": 1,
                "disks": ["nvme0n1"], "free": false, "users": ["nvme0n1p1 is swap"],
            }])
        );
        let built =
            Built::function(None, None).file(&format!("/sys/bus/pci/devices/{ADDRESS}/numa_node"), "-1\n");
        let listed: Value = serde_json::from_str(&list_json(&built.root())).unwrap();
        assert_eq!(
            listed,
            json!([{
                "address": ADDRESS, "model": "1b36:0010", "driver": null, "iommu_group": null, "numa_node": null,
                "disks": [], "free": true, "users": [],
            }])
        );
        assert_eq!(list(&Built::new().root()).lines().count(), 1);
    }

    #[test]
    fn a_drive_that_is_in_use_keeps_its_driver() {
        let built = Built::drive().file("/proc/swaps", "/dev/nvme0n1p1 partition 1 0 -2\n");
        assert_eq!(
            refused(bind(&built.root(), address())),
            format!("{ADDRESS} is in use: nvme0n1p1 is swap")
        );
        assert_eq!(built.text("/sys/bus/pci/drivers/nvme/unbind"), "");

        let built = Built::function(Some("vfio-pci"), Some(7))
            .file("/dev/vfio/7", "")
            .file("/proc/77/comm", "reprise\n")
            .link("/proc/77/fd/5", "/dev/vfio/7");
        assert!(refused(unbind(&built.root(), address())).contains("process 77 (reprise)"));
        assert_eq!(built.text("/sys/bus/pci/drivers/vfio-pci/unbind"), "");
    }

    #[test]
    fn what_cannot_be_moved_is_refused_with_the_reason() {
        let other = "0000:00:1f.2".parse().unwrap();
        let built = Built::drive().file("/sys/bus/pci/devices/0000:00:1f.2/class", "0x010601\n");
        assert!(refused(bind(&built.root(), other)).contains("its class code is 010601"));
        assert!(refused(bind(&Built::new().root(), address())).contains("there is no PCI function"));
        assert!(refused(unbind(&built.root(), address())).contains("but nvme"));
        let built = Built::function(Some("nvme"), None);
        assert!(refused(bind(&built.root(), address())).contains("no IOMMU group"));
        let built = Built::function(Some("vfio-pci"), Some(7));
        assert!(bind(&built.root(), address()).is_ok_and(|said| said.contains("already")));
    }

    #[test]
    fn a_drive_is_moved_by_override_unbind_and_probe() {
        // Nobody moves a built tree's link, so that the kernel seems to have refused; all is taken back then.
        let built = Built::drive();
        assert!(refused(bind(&built.root(), address())).contains("did not give"));
        let at = |name: &str| built.text(&format!("/sys/bus/pci/devices/{ADDRESS}/{name}"));
        assert_eq!(at("driver_override"), "\n");
        assert_eq!(built.text("/sys/bus/pci/drivers/nvme/unbind"), ADDRESS);
        assert_eq!(built.text("/sys/bus/pci/drivers_probe"), ADDRESS);

        let built = Built::function(Some("vfio-pci"), Some(7));
        assert!(unbind(&built.root(), address()).is_ok());
        assert_eq!(built.text("/sys/bus/pci/drivers/vfio-pci/unbind"), ADDRESS);
        assert_eq!(built.text(&format!("/sys/bus/pci/devices/{ADDRESS}/driver_override")), "\n");
    }
}
