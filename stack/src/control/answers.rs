//! What the methods that only ask give back, in the shapes of SPDK's target (`lib/bdev/bdev_rpc.c`,
//! `lib/vhost/vhost_rpc.c`, `lib/event/app_rpc.c`, `lib/init/subsystem_rpc.c` and `lib/rpc/rpc.c` there). Times are in
//! ticks of a nanosecond. What SPDK tells of its host's processes and numa nodes is left out.

use super::calls::{TRANSPORT, method_names};
use super::config::{Config, ControllerConfig, DriveConfig, Subsystem};
use super::error::{RpcError, RpcResult};
use crate::block::{Bdev, Kind, KindSnapshot, Registry, Snapshot, uuid};
use crate::nvme::bits::Health;
use crate::nvme::driver::ControllerInfo;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use runtime::{Instant, Platform, ReactorTimes};
use serde_json::{Map, Value, json};

/// Ticks in a second.
const TICK_RATE: u64 = 1_000_000_000;

/// SPDK's names of the I/O types that a bdev may support, and which of them this one does.
fn supported_io_types(read_only: bool, discard: bool) -> Value {
    let writable = !read_only;
    json!({
        "read": true,
        "write": writable,
        "unmap": discard,
        "flush": true,
        "reset": false,
        "nvme_admin": false,
        "nvme_io": false,
        "nvme_io_md": false,
        "write_zeroes": writable,
        "zcopy": false,
        "get_zone_info": false,
        "zone_management": false,
        "zone_append": false,
        "compare": false,
        "compare_and_write": false,
        "abort": false,
        "seek_hole": false,
        "seek_data": false,
        "copy": false,
        "nvme_iov_md": false,
    })
}

/// One entry of `bdev_get_bdevs`.
#[must_use]
pub fn bdev<P: Platform>(bdev: &dyn Bdev<P>, holders: &[String], shared: Option<bool>) -> Value {
    let geometry = bdev.geometry();
    let mut entry = json!({
        "name": bdev.name(),
        "aliases": [uuid::format(&bdev.uuid())],
        "product_name": bdev.product_name(),
        "block_size": geometry.block_size,
        "physical_block_size": geometry.physical_block_size,
        "num_blocks": geometry.num_blocks,
        "uuid": uuid::format(&bdev.uuid()),
        "assigned_rate_limits": {
            "rw_ios_per_sec": 0,
            "rw_mbytes_per_sec": 0,
            "r_mbytes_per_sec": 0,
            "w_mbytes_per_sec": 0,
        },
        "claimed": !holders.is_empty(),
        "zoned": false,
        "supported_io_types": supported_io_types(geometry.read_only, geometry.discard),
        "driver_specific": bdev.driver_specific(),
    });
    if let Some(shared) = shared {
        // SPDK's words for a claim that keeps other writers out, and for one that does not.
        entry["claim_type"] = if shared { "read_many_write_shared" } else { "exclusive_write" }.into();
        entry["claimed_by"] = json!(holders);
    }
    entry
}

/// The counters of one bdev, of all cores or of one.
fn statistics(snapshot: &Snapshot) -> Map<String, Value> {
    let mut entry = Map::new();
    let mut put = |key: String, value: u64| entry.insert(key, value.into());
    let kinds = [
        (Kind::Read, "read", "bytes_read", "num_read_ops"),
        (Kind::Write, "write", "bytes_written", "num_write_ops"),
        (Kind::Discard, "unmap", "bytes_unmapped", "num_unmap_ops"),
    ];
    for (kind, word, bytes, ops) in kinds {
        let counted = snapshot.kind(kind);
        put(bytes.into(), counted.bytes);
        put(ops.into(), counted.ops);
        put(format!("{word}_latency_ticks"), counted.latency_ns);
        put(format!("max_{word}_latency_ticks"), counted.latency_ns_max);
        put(format!("min_{word}_latency_ticks"), least(counted));
    }
    // There is no copy operation; SPDK's clients look for its counters.
    for key in [
        "bytes_copied",
        "num_copy_ops",
        "copy_latency_ticks",
        "max_copy_latency_ticks",
        "min_copy_latency_ticks",
    ] {
        put(key.into(), 0);
    }
    // Beyond SPDK's: what it does not count.
    put("num_flush_ops".into(), snapshot.kind(Kind::Flush).ops);
    put("payload_bytes_copied".into(), snapshot.copied_bytes());
    put("num_write_zeroes_ops".into(), snapshot.kind(Kind::WriteZeroes).ops);
    put("bytes_zeroed".into(), snapshot.kind(Kind::WriteZeroes).bytes);
    let mut errors = Map::new();
    if snapshot.errors() > 0 {
        errors.insert("failed".into(), snapshot.errors().into());
        for kind in Kind::ALL.into_iter().filter(|kind| snapshot.kind(*kind).errors > 0) {
            errors.insert(format!("failed_{}", word(kind)), snapshot.kind(kind).errors.into());
        }
    }
    entry.insert("io_error".into(), errors.into());
    let histograms =
        Kind::ALL.into_iter().map(|kind| (word(kind).to_string(), histogram(snapshot.kind(kind))));
    entry.insert("latency_histogram".into(), histograms.collect::<Map<_, _>>().into());
    entry
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Read => "read",
        Kind::Write => "write",
        Kind::Discard => "unmap",
        Kind::WriteZeroes => "write_zeroes",
        Kind::Flush => "flush",
    }
}

fn least(counted: &KindSnapshot) -> u64 {
    if counted.latency_ns_min == u64::MAX { 0 } else { counted.latency_ns_min }
}

/// The buckets that are not empty: `[ticks below which the latencies were, how many]`.
fn histogram(counted: &KindSnapshot) -> Value {
    let filled = counted.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
    filled.map(|(bucket, count)| json!([1_u64 << bucket, count])).collect::<Vec<_>>().into()
}

/// `bdev_get_iostat` of the bdevs named, which exist.
#[must_use]
pub fn iostat<P: Platform>(
    registry: &Registry<P>,
    names: &[String],
    per_channel: bool,
    now: Instant,
) -> Value {
    if let (true, [name]) = (per_channel, names) {
        let channels = registry.statistics(name).into_iter().filter(|(_, counted)| !counted.is_empty());
        let channels = channels.map(|(core, counted)| {
            let mut entry = statistics(&counted);
            entry.insert("thread_id".into(), core.0.into());
            Value::from(entry)
        });
        let channels = channels.collect::<Vec<_>>();
        return json!({ "tick_rate": TICK_RATE, "ticks": now.0, "name": name, "channels": channels });
    }
    let bdevs = names.iter().map(|name| {
        let cores = registry.statistics(name);
        let mut entry =
            statistics(&cores.iter().fold(Snapshot::default(), |total, (_, core)| total.plus(core)));
        entry.insert("name".into(), name.clone().into());
        Value::from(entry)
    });
    json!({ "tick_rate": TICK_RATE, "ticks": now.0, "bdevs": bdevs.collect::<Vec<_>>() })
}

/// What is told of one controller.
#[derive(Clone, Debug)]
pub struct ControllerView<'a> {
    /// What it was asked to be.
    pub config: &'a ControllerConfig,
    /// The processor that it runs on.
    pub processor: u32,
    /// Where it listens, or will.
    pub socket: String,
    /// Its front-ends, as the controller tells of them.
    pub sessions: Value,
    /// Whether its bdev is there.
    pub has_bdev: bool,
    /// Where it stands, in a word, and why, where it does not serve.
    pub standing: (&'static str, Option<&'a str>),
}

/// One entry of `vhost_get_controllers`.
#[must_use]
pub fn controller(view: &ControllerView<'_>) -> Value {
    let ControllerConfig { name, bdev, read_only, packed_ring, shared, .. } = view.config;
    let (standing, reason) = view.standing;
    let mut entry = json!({
        "ctrlr": name,
        "cpumask": mask_of(view.processor),
        "delay_base_us": 0,
        "iops_threshold": 60_000,
        "socket": view.socket,
        "sessions": view.sessions,
        "state": standing,
        "backend_specific": {
            "block": {
                "readonly": read_only,
                "bdev": if view.has_bdev { json!(bdev) } else { Value::Null },
                "transport": TRANSPORT,
                "packed_ring": packed_ring,
                "shared": shared,
            },
        },
    });
    if let Some(reason) = reason {
        entry["reason"] = reason.into();
    }
    entry
}

/// What is told of one NVMe controller.
#[derive(Clone, Debug)]
pub struct DriveView<'a> {
    /// What was attached.
    pub config: &'a DriveConfig,
    /// Where it stands, in SPDK's words where there is one.
    pub state: &'static str,
    /// Why, where it does not serve.
    pub reason: Option<&'a str>,
    /// What it said of itself, while it is there.
    pub info: Option<&'a ControllerInfo>,
    /// Namespaces that cannot be used, and why.
    pub unusable: &'a [(u32, String)],
}

/// One entry of `bdev_nvme_get_controllers`.
#[must_use]
pub fn drive(view: &DriveView<'_>) -> Value {
    let mut controller = json!({
        "state": view.state,
        "trid": { "trtype": "PCIe", "traddr": view.config.address.to_string() },
        "cntlid": view.info.map_or(0, |info| info.id),
        "host": { "nqn": "", "addr": "", "svcid": "" },
    });
    if let Some(reason) = view.reason {
        controller["reason"] = reason.into();
    }
    let unusable = view.unusable.iter().map(|(id, why)| json!({ "nsid": id, "reason": why }));
    let unusable = unusable.collect::<Vec<_>>();
    if !unusable.is_empty() {
        controller["unusable_namespaces"] = unusable.into();
    }
    json!({ "name": view.config.name, "ctrlrs": [controller] })
}

/// `bdev_nvme_get_controller_health_info`.
#[must_use]
pub fn health(drive: &DriveConfig, info: Option<&ControllerInfo>, health: &Health) -> Value {
    let text = |of: fn(&ControllerInfo) -> &String| info.map_or("", |info| of(info).as_str());
    // Counters have 128 bits, of which a program that reads JSON takes 64.
    let number = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
    json!({
        "model_number": text(|info| &info.model),
        "serial_number": text(|info| &info.serial),
        "firmware_revision": text(|info| &info.firmware),
        "traddr": drive.address.to_string(),
        "critical_warning": health.critical_warning,
        "temperature_celsius": i32::from(health.temperature) - 273,
        "available_spare_percentage": health.available_spare,
        "available_spare_threshold_percentage": health.available_spare_threshold,
        "percentage_used": health.percentage_used,
        "data_units_read": number(health.data_units_read),
        "data_units_written": number(health.data_units_written),
        "host_read_commands": number(health.host_read_commands),
        "host_write_commands": number(health.host_write_commands),
        "controller_busy_time": number(health.controller_busy_time),
        "power_cycles": number(health.power_cycles),
        "power_on_hours": number(health.power_on_hours),
        "unsafe_shutdowns": number(health.unsafe_shutdowns),
        "media_errors": number(health.media_errors),
        "num_err_log_entries": number(health.error_log_entries),
        "warning_temperature_time_minutes": health.warning_temperature_time,
        "critical_composite_temperature_time_minutes": health.critical_temperature_time,
    })
}

/// The hexadecimal mask of one processor.
fn mask_of(processor: u32) -> String {
    let digit = 1 << (processor % 4);
    let zeroes = (processor / 4) as usize;
    format!("0x{digit:x}{}", "0".repeat(zeroes))
}

/// `framework_get_reactors`; `threads` names what lives on each core, in the order of the reactors.
#[must_use]
pub fn reactors(reactors: &[ReactorTimes], threads: &[Vec<String>]) -> Value {
    let reactors = reactors.iter().zip(threads).map(|(times, threads)| {
        let mask = mask_of(times.processor);
        let threads = threads.iter().map(|name| json!({ "name": name, "cpumask": mask })).collect::<Vec<_>>();
        json!({
            "lcore": times.processor,
            "busy": times.busy_ns,
            "idle": times.idle_ns,
            "lw_threads": threads,
        })
    });
    json!({ "tick_rate": TICK_RATE, "reactors": reactors.collect::<Vec<_>>() })
}

/// `framework_get_subsystems`.
#[must_use]
pub fn subsystems() -> Value {
    let entry = |part: Subsystem| json!({ "subsystem": part.name(), "depends_on": part.depends_on() });
    json!(Subsystem::ALL.map(entry))
}

/// `framework_get_config`.
pub fn config(config: &Config, subsystem: &str) -> RpcResult<Value> {
    let Some(part) = Subsystem::ALL.into_iter().find(|part| part.name() == subsystem) else {
        let names = Subsystem::ALL.map(Subsystem::name).join(", ");
        return Err(RpcError::params(format!("Subsystem '{subsystem}' not found; allowed: {names}")));
    };
    Ok(part.calls(config).into())
}

/// `rpc_get_methods`.
#[must_use]
pub fn methods() -> Value {
    method_names().collect::<Vec<_>>().into()
}

/// `spdk_get_version`, for a version such as `0.1.0`.
#[must_use]
pub fn version(version: &str) -> Value {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse::<u64>().unwrap_or(0));
    let mut number = || numbers.next().unwrap_or(0);
    let fields = json!({ "major": number(), "minor": number(), "patch": number(), "suffix": "" });
    json!({ "version": format!("Reprise v{version}"), "fields": fields })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_one_processor() {
        assert_eq!([0, 1, 3, 4, 9].map(mask_of), ["0x1", "0x2", "0x8", "0x10", "0x200"]);
    }

    #[test]
    fn versions() {
        let told = version("1.22.3-rc1");
        assert_eq!(told["version"], "Reprise v1.22.3-rc1");
        assert_eq!(told["fields"], json!({ "major": 1, "minor": 22, "patch": 3, "suffix": "" }));
    }

    #[test]
    fn the_counters_have_the_keys_that_spdk_s_clients_read() {
        let entry = statistics(&Snapshot::default());
        for key in [
            "bytes_read",
            "num_write_ops",
            "bytes_unmapped",
            "min_copy_latency_ticks",
            "max_read_latency_ticks",
        ] {
            assert_eq!(entry[key], 0, "{key}");
        }
        assert_eq!(entry["io_error"], json!({}));
        assert_eq!(entry["latency_histogram"]["read"], json!([]));
    }

    #[test]
    fn a_subsystem_that_is_none_is_refused_with_what_there_is() {
        let error = config(&Config::default(), "iscsi").expect_err("there is none");
        assert!(error.message.contains("bdev, vhost_blk, nvmf"), "{}", error.message);
    }
}
