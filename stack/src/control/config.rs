//! What the target was asked to be: its bdevs and controllers, as they are kept in the state directory and given out by
//! `framework_get_config`.
//!
//! The file is one that SPDK's `load_config` could read, too: a list of subsystems, each a list of the calls that make
//! it. Reading it back is therefore the same as being called, and nothing can be in the file that could not be asked
//! for. What may go wrong with the file: it is of a newer version (an older release was started), or it is not what was
//! written (torn, edited badly). Either is told with the place and what to do, and nothing is guessed.

use super::calls::{Call, parse};
use super::cpumask;
use super::nvmf::{self, NvmfConfig};
use crate::block::uuid;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use runtime::{FileEngine, PciAddress};
use serde_json::{Map, Value, json};

/// The version of the file that this release writes, and the newest that it reads.
pub const VERSION: u64 = 1;

/// What a bdev was asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BdevConfig {
    /// Its name.
    pub name: String,
    /// Its identity; all zeroes until it was given one.
    pub uuid: [u8; 16],
    /// What it is made of.
    pub kind: BdevKind,
}

/// What a bdev is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BdevKind {
    /// Nothing.
    Null(BlockConfig),
    /// The machine's memory.
    Malloc(BlockConfig),
    /// A file or a block device.
    File {
        /// What carries its I/O.
        engine: FileEngine,
        /// Where it is.
        path: String,
        /// Bytes in a block; `None`: the file's own.
        block_size: Option<u32>,
        /// Writes are refused.
        read_only: bool,
    },
}

/// The size of a bdev that has none by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Bytes in a block.
    pub block_size: u32,
    /// Bytes in a block of the medium that it plays.
    pub physical_block_size: u32,
    /// Number of blocks.
    pub num_blocks: u64,
}

impl BlockConfig {
    /// Bytes in total.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.num_blocks * u64::from(self.block_size)
    }
}

impl BdevKind {
    /// The method that makes one.
    #[must_use]
    pub const fn create_method(&self) -> &'static str {
        match self {
            Self::Null(_) => "bdev_null_create",
            Self::Malloc(_) => "bdev_malloc_create",
            Self::File { engine: FileEngine::Uring, .. } => "bdev_uring_create",
            Self::File { engine: FileEngine::Aio, .. } => "bdev_aio_create",
        }
    }

    /// What people call it.
    #[must_use]
    pub const fn noun(&self) -> &'static str {
        match self {
            Self::Null(_) => "null bdev",
            Self::Malloc(_) => "malloc bdev",
            Self::File { engine: FileEngine::Uring, .. } => "uring bdev",
            Self::File { engine: FileEngine::Aio, .. } => "aio bdev",
        }
    }
}

/// An NVMe controller that was attached. Its bdevs are its namespaces, whatever those are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveConfig {
    /// Its name; that of namespace 1 as a bdev is `Nvme0n1` if it is `Nvme0`.
    pub name: String,
    /// Where it sits.
    pub address: PciAddress,
}

impl DriveConfig {
    /// Whether a bdev of that name can only be one of its namespaces.
    #[must_use]
    pub fn owns(&self, bdev: &str) -> bool {
        let number = bdev.strip_prefix(self.name.as_str()).and_then(|rest| rest.strip_prefix('n'));
        number.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()))
    }
}

/// What is done about an NVMe I/O command that takes too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    /// It is aborted; when that does not end it either, the controller is reset.
    Abort,
    /// The controller is reset.
    Reset,
}

impl OnTimeout {
    /// SPDK's word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Reset => "reset",
        }
    }
}

/// How NVMe controllers are driven that are attached from now on; what is `None` stays as the driver has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvmeOptions {
    /// How long an I/O command may take.
    pub timeout_us: Option<u64>,
    /// How long an admin command may take.
    pub timeout_admin_us: Option<u64>,
    /// What is done then.
    pub action_on_timeout: Option<OnTimeout>,
    /// How often a command is tried again.
    pub bdev_retry_count: Option<u8>,
}

/// What a controller was asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// Its name, and its socket's in the directory of sockets.
    pub name: String,
    /// The bdev that it serves.
    pub bdev: String,
    /// Writes are refused.
    pub read_only: bool,
    /// Packed rings are offered to drivers.
    pub packed_ring: bool,
    /// It shares the bdev with other controllers that share it, too.
    pub shared: bool,
    /// The processors that it may run on, as they were asked for.
    pub cpumask: Option<String>,
}

/// What the target was asked to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Tells the memory of this target's malloc bdevs from that of other targets of the machine, which may have been given
    /// the same bdevs; all zeroes until it was drawn.
    pub instance: [u8; 16],
    /// How NVMe controllers are driven.
    pub nvme_options: NvmeOptions,
    /// The NVMe controllers, in order of attachment.
    pub drives: Vec<DriveConfig>,
    /// The bdevs, in order of creation.
    pub bdevs: Vec<BdevConfig>,
    /// The controllers, in order of creation.
    pub controllers: Vec<ControllerConfig>,
    /// NVMe over Fabrics.
    pub nvmf: NvmfConfig,
    /// Names of machine memory that may be there and belongs to no bdev: written before the memory is made and before it
    /// is given back, so that a process that dies in between leaves nothing behind for good.
    pub reclaim: BTreeSet<String>,
}

impl Config {
    /// The bdev of that name.
    #[must_use]
    pub fn bdev(&self, name: &str) -> Option<&BdevConfig> {
        self.bdevs.iter().find(|bdev| bdev.name == name)
    }

    /// The NVMe controller of that name.
    #[must_use]
    pub fn drive(&self, name: &str) -> Option<&DriveConfig> {
        self.drives.iter().find(|drive| drive.name == name)
    }

    /// The NVMe controller that a bdev of that name can only be a namespace of.
    #[must_use]
    pub fn drive_of(&self, bdev: &str) -> Option<&DriveConfig> {
        self.drives.iter().find(|drive| drive.owns(bdev))
    }

    /// The names of the controllers and subsystems on bdevs that `chosen` says yes to.
    #[must_use]
    pub fn users(&self, chosen: impl Fn(&str) -> bool) -> Vec<&str> {
        let users = self.controllers.iter().filter(|controller| chosen(&controller.bdev));
        let subsystems = self.nvmf.namespaces().filter(|(_, namespace)| chosen(&namespace.bdev));
        users.map(|controller| controller.name.as_str()).chain(subsystems.map(|(nqn, _)| nqn)).collect()
    }

    /// The controller of that name.
    #[must_use]
    pub fn controller(&self, name: &str) -> Option<&ControllerConfig> {
        self.controllers.iter().find(|controller| controller.name == name)
    }

    /// The name of the machine's memory for this target's malloc bdev with an identity.
    #[must_use]
    pub fn memory_name(&self, uuid: &[u8; 16]) -> String {
        let [target, bdev] = [&self.instance, uuid].map(uuid::format);
        // The first group tells targets apart, and leaves the name short enough to be read.
        format!("malloc-{}-{bdev}", &target[..8])
    }

    /// The text of the state file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let subsystem =
            |subsystem: Subsystem| json!({ "subsystem": subsystem.name(), "config": subsystem.calls(self) });
        let mut file = json!({
            "version": VERSION,
            "instance": uuid::format(&self.instance),
            "subsystems": Subsystem::ALL.map(subsystem),
        });
        if !self.reclaim.is_empty() {
            file["reclaim"] = json!(self.reclaim);
        }
        let mut text = serde_json::to_string_pretty(&file).expect("a JSON value can be written").into_bytes();
        text.push(b'\n');
        text
    }

    /// Reads the text of the state file. Errors: a sentence on what is wrong with it.
    pub fn decode(text: &[u8]) -> Result<Self, DecodeError> {
        let damaged = |what: String| DecodeError::Damaged(what);
        let file: Value =
            serde_json::from_slice(text).map_err(|error| damaged(format!("it is no JSON: {error}")))?;
        let version = file["version"].as_u64().ok_or_else(|| damaged("it has no version".into()))?;
        if version > VERSION {
            return Err(DecodeError::Newer(version));
        }
        if version == 0 {
            return Err(damaged("version 0 never was".into()));
        }
        let mut config = Self::default();
        if let Some(instance) = file.get("instance") {
            let instance = instance.as_str().and_then(uuid::parse);
            config.instance = instance.ok_or_else(|| damaged("its instance is no uuid".into()))?;
        }
        let subsystems =
            file["subsystems"].as_array().ok_or_else(|| damaged("it has no list of subsystems".into()))?;
        for subsystem in subsystems {
            let name = subsystem["subsystem"].as_str().unwrap_or("?");
            let calls = subsystem["config"].as_array();
            for (index, call) in calls.into_iter().flatten().enumerate() {
                config
                    .replay(call)
                    .map_err(|what| damaged(format!("subsystem {name}, entry {index}: {what}")))?;
            }
        }
        if let Some(reclaim) = file["reclaim"].as_array() {
            config.reclaim = reclaim.iter().filter_map(Value::as_str).map(String::from).collect();
        }
        Ok(config)
    }

    /// Takes one call of the file.
    fn replay(&mut self, call: &Value) -> Result<(), String> {
        let method = call["method"].as_str().ok_or("it names no method")?;
        let params = call["params"].as_object().cloned().unwrap_or_default();
        match parse(method, params).map_err(|error| error.message)? {
            Call::SetNvmeOptions(options) => self.nvme_options = options,
            Call::AttachDrive(drive) => {
                let taken = |other: &DriveConfig| other.name == drive.name || other.address == drive.address;
                if self.drives.iter().any(taken) {
                    return Err(format!(
                        "the name or the address of NVMe controller {} is there twice",
                        drive.name
                    ));
                }
                self.drives.push(drive);
            }
            Call::CreateBdev(bdev) => {
                if bdev.name.is_empty() || bdev.uuid == [0; 16] {
                    return Err(format!("{method} needs a name and a uuid here"));
                }
                if self.bdevs.iter().any(|other| other.name == bdev.name || other.uuid == bdev.uuid) {
                    return Err(format!("the name or the uuid of bdev {} is there twice", bdev.name));
                }
                self.bdevs.push(bdev);
            }
            Call::CreateController(controller) => {
                if self.controller(&controller.name).is_some() {
                    return Err(format!("controller {} is there twice", controller.name));
                }
                if self.bdev(&controller.bdev).is_none() && self.drive_of(&controller.bdev).is_none() {
                    return Err(format!(
                        "controller {} is on bdev {}, which is not there",
                        controller.name, controller.bdev
                    ));
                }
                let sharers = self.controllers.iter().filter(|other| other.bdev == controller.bdev);
                if sharers.into_iter().any(|other| !(other.shared && controller.shared)) {
                    return Err(format!("bdev {} has two controllers that do not share it", controller.bdev));
                }
                if let Some(mask) = &controller.cpumask {
                    cpumask::parse(mask)?;
                }
                self.controllers.push(controller);
            }
            Call::Nvmf(change) => {
                let uuid = |_: &str| None;
                if let nvmf::NvmfChange::AddNamespace(nqn, namespace) = &change
                    && !self.users(|bdev| bdev == namespace.bdev).is_empty()
                {
                    return Err(format!("bdev {} is in use before subsystem {nqn} has it", namespace.bdev));
                }
                change.apply(&mut self.nvmf, uuid).map_err(|error| error.message)?;
            }
            _ => return Err(format!("{method} makes nothing")),
        }
        Ok(())
    }
}

/// Why a state file was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// It is of this version, which is newer than [`VERSION`].
    Newer(u64),
    /// It is not what any release writes, for this reason.
    Damaged(String),
}

/// A part of the target, as SPDK divides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subsystem {
    /// The bdevs.
    Bdev,
    /// The vhost-user-blk controllers.
    VhostBlk,
    /// NVMe over Fabrics.
    Nvmf,
}

impl Subsystem {
    /// All of them, each after those that it needs.
    pub const ALL: [Self; 3] = [Self::Bdev, Self::VhostBlk, Self::Nvmf];

    /// SPDK's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bdev => "bdev",
            Self::VhostBlk => "vhost_blk",
            Self::Nvmf => "nvmf",
        }
    }

    /// The names of those that it needs.
    #[must_use]
    pub const fn depends_on(self) -> &'static [&'static str] {
        match self {
            Self::Bdev => &[],
            Self::VhostBlk | Self::Nvmf => &["bdev"],
        }
    }

    /// The calls that make this part of `config`.
    #[must_use]
    pub fn calls(self, config: &Config) -> Vec<Value> {
        match self {
            Self::Bdev => {
                let options =
                    (config.nvme_options != NvmeOptions::default()).then(|| nvme_call(&config.nvme_options));
                let drives = config.drives.iter().map(drive_call);
                options.into_iter().chain(drives).chain(config.bdevs.iter().map(bdev_call)).collect()
            }
            Self::VhostBlk => config.controllers.iter().map(controller_call).collect(),
            Self::Nvmf => nvmf::calls(&config.nvmf),
        }
    }
}

fn nvme_call(options: &NvmeOptions) -> Value {
    let NvmeOptions { timeout_us, timeout_admin_us, action_on_timeout, bdev_retry_count } = options;
    let mut params = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            params.insert(name.into(), value);
        }
    };
    put("timeout_us", timeout_us.map(Value::from));
    put("timeout_admin_us", timeout_admin_us.map(Value::from));
    put("action_on_timeout", action_on_timeout.map(|action| action.word().into()));
    put("bdev_retry_count", bdev_retry_count.map(Value::from));
    json!({ "method": "bdev_nvme_set_options", "params": params })
}

fn drive_call(drive: &DriveConfig) -> Value {
    let DriveConfig { name, address } = drive;
    let params = json!({ "name": name, "trtype": "PCIe", "traddr": address.to_string() });
    json!({ "method": "bdev_nvme_attach_controller", "params": params })
}

fn bdev_call(bdev: &BdevConfig) -> Value {
    let mut params = Map::new();
    params.insert("name".into(), bdev.name.clone().into());
    params.insert("uuid".into(), uuid::format(&bdev.uuid).into());
    match &bdev.kind {
        BdevKind::Null(block) | BdevKind::Malloc(block) => {
            params.insert("num_blocks".into(), block.num_blocks.into());
            params.insert("block_size".into(), block.block_size.into());
            params.insert("physical_block_size".into(), block.physical_block_size.into());
        }
        BdevKind::File { engine, path, block_size, read_only } => {
            params.insert("filename".into(), path.clone().into());
            if let Some(block_size) = block_size {
                params.insert("block_size".into(), (*block_size).into());
            }
            if *engine == FileEngine::Aio {
                params.insert("readonly".into(), (*read_only).into());
            }
        }
    }
    json!({ "method": bdev.kind.create_method(), "params": params })
}

fn controller_call(controller: &ControllerConfig) -> Value {
    let mut params = Map::new();
    params.insert("ctrlr".into(), controller.name.clone().into());
    params.insert("dev_name".into(), controller.bdev.clone().into());
    params.insert("readonly".into(), controller.read_only.into());
    params.insert("transport".into(), super::calls::TRANSPORT.to_string().into());
    if let Some(mask) = &controller.cpumask {
        params.insert("cpumask".into(), mask.clone().into());
    }
    if controller.packed_ring {
        params.insert("packed_ring".into(), true.into());
    }
    // Not SPDK's: there only where it was asked for.
    if controller.shared {
        params.insert("shared".into(), true.into());
    }
    json!({ "method": "vhost_create_blk_controller", "params": params })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Config {
        let block = BlockConfig { block_size: 512, physical_block_size: 4096, num_blocks: 2048 };
        let file = |engine, block_size, read_only| BdevKind::File {
            engine,
            path: "/srv/disk.img".into(),
            block_size,
            read_only,
        };
        let kinds = [
            BdevKind::Null(block),
            BdevKind::Malloc(block),
            file(FileEngine::Uring, None, false),
            file(FileEngine::Aio, Some(4096), true),
        ];
        let bdevs = kinds.into_iter().enumerate().map(|(index, kind)| BdevConfig {
            name: format!("disk{index}"),
            uuid: uuid::random([index as u64, 7]),
            kind,
        });
        let drive = |name: &str, address: &str| DriveConfig {
            name: name.into(),
            address: address.parse().expect("an address"),
        };
        let controller = |name: &str, bdev: &str, shared, cpumask: Option<&str>| ControllerConfig {
            name: name.into(),
            bdev: bdev.into(),
            read_only: shared,
            packed_ring: shared,
            shared,
            cpumask: cpumask.map(String::from),
        };
        Config {
            instance: [5; 16],
            bdevs: bdevs.collect(),
            nvme_options: NvmeOptions {
                timeout_us: Some(5_000_000),
                action_on_timeout: Some(OnTimeout::Reset),
                ..NvmeOptions::default()
            },
            drives: [drive("Nvme0", "0000:3b:00.0"), drive("Nvme1", "10000:01:00.0")].into(),
            controllers: [
                controller("vhost.0", "disk1", true, None),
                controller("vhost.1", "disk1", true, Some("0x3")),
                controller("vhost.2", "Nvme0n1", false, None),
            ]
            .into(),
            nvmf: nvmf(),
            reclaim: [String::from("malloc-x")].into(),
        }
    }

    fn nvmf() -> NvmfConfig {
        let namespace = |nsid, bdev: &str, eui64| nvmf::NamespaceConfig {
            nsid,
            bdev: bdev.into(),
            uuid: [nsid as u8; 16],
            nguid: [0xab; 16],
            eui64,
        };
        let disks = nvmf::SubsystemConfig {
            nqn: "nqn.2026-11.com.example:disks".into(),
            serial: "S3RIAL".into(),
            model: "Reprise".into(),
            max_namespaces: 5,
            allow_any_host: true,
            hosts: ["nqn.2026-11.com.example:host".into()].into(),
            namespaces: [namespace(2, "disk0", [0; 8]), namespace(5, "disk2", [7; 8])].into(),
            listeners: ["10.0.0.1:4420", "[::1]:8009"].map(|one| one.parse().expect("an address")).into(),
        };
        let empty = nvmf::SubsystemConfig {
            nqn: "nqn.2026-11.com.example:empty".into(),
            allow_any_host: false,
            hosts: BTreeSet::new(),
            namespaces: Vec::new(),
            listeners: Vec::new(),
            ..disks.clone()
        };
        NvmfConfig { has_tcp: true, subsystems: [disks, empty].into() }
    }

    #[test]
    fn what_was_written_is_read_again() {
        for config in [Config::default(), example()] {
            assert_eq!(Config::decode(&config.encode()), Ok(config));
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let text = example().encode();
        for len in 0..text.len() - 1 {
            // The last two bytes are the closing bracket and a newline; only without the newline it is whole.
            if len < text.len() - 1 {
                assert!(matches!(Config::decode(&text[..len]), Err(DecodeError::Damaged(_))), "{len}");
            }
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let newer = br#"{"version": 2, "anything": [1]}"#;
        assert_eq!(Config::decode(newer), Err(DecodeError::Newer(2)));
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let text = String::from_utf8(example().encode()).expect("text");
        let damaged = |from: &str, to: &str| match Config::decode(text.replacen(from, to, 1).as_bytes()) {
            Err(DecodeError::Damaged(what)) => what,
            other => panic!("{from} -> {to}: {other:?}"),
        };
        assert!(damaged("\"disk1\"", "\"disk0\"").contains("entry 4: the name or the uuid of bdev disk0"));
        assert!(damaged("\"num_blocks\": 2048", "\"num_blocks\": -1").contains("num_blocks is -1"));
        assert!(
            damaged("\"dev_name\": \"disk1\"", "\"dev_name\": \"gone\"")
                .contains("bdev gone, which is not there")
        );
        assert!(damaged("\"shared\": true", "\"shared\": false").contains("do not share it"));
        assert!(damaged("bdev_null_create", "bdev_null_delete").contains("entry 3"));
        assert!(damaged("10000:01:00.0", "0000:3b:00.0").contains("the address of NVMe controller Nvme1"));
        assert!(damaged("\"version\"", "\"verzion\"").contains("no version"));
        assert!(damaged("0x3", "zz").contains("cpumask"));
        assert!(
            damaged("\"bdev_name\": \"disk2\"", "\"bdev_name\": \"disk1\"")
                .contains("in use before subsystem")
        );
        assert!(
            damaged("\"bdev_name\": \"disk2\"", "\"bdev_name\": \"disk0\"")
                .contains("in use before subsystem")
        );
        assert!(damaged("\"nsid\": 5", "\"nsid\": 6").contains("allowed: 1 to 5"));
        assert!(damaged("nvmf_create_transport", "nvmf_get_transports").contains("makes nothing"));
        assert!(damaged("05050505-", "").contains("instance"));
    }
}
