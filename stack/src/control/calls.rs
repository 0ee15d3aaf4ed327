//! The methods, by name: their parameters read into a typed call. What a call does is the target's business.
//!
//! Names, parameters and defaults are SPDK's (`schema/schema.yaml` there, and what its Python client of 25.05 and 26.09
//! was seen to send). What a method of SPDK's takes and this target has no use for is accepted with its default value.

use super::config::{
    BdevConfig, BdevKind, BlockConfig, ControllerConfig, DriveConfig, NvmeOptions, OnTimeout,
};
use super::cpumask;
use super::error::{METHOD_NOT_FOUND, RpcError, RpcResult};
use super::nvmf::{self, NvmfChange};
use super::params::{NAME_MAX, PATH_MAX, Params};
use crate::block::Reset;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use runtime::{FileEngine, PciAddress};
use serde_json::{Map, Value};

/// The only transport of virtio-blk controllers, SPDK's default.
pub const TRANSPORT: &str = "vhost_user_blk";
/// Block sizes that a bdev may have (see [`crate::block::Geometry::block_size`]).
const BLOCK_SIZES: RangeInclusive<u32> = 512..=65536;
/// Most bytes of a bdev, so that no sum of an offset and a length can overflow.
const CAPACITY_MAX: u64 = 1 << 62;
/// Shortest time that an NVMe command is given: what an ordinary command may take.
const NVME_TIMEOUT_US_MIN: u64 = 1000;
/// Longest time: an hour.
const NVME_TIMEOUT_US_MAX: u64 = 3_600_000_000;
/// Longest wait for a bdev to appear, in milliseconds: a day.
const TIMEOUT_MS_MAX: u64 = 86_400_000;

/// The kinds of bdev that a method can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BdevFamily {
    /// Null bdevs.
    Null,
    /// Malloc bdevs.
    Malloc,
    /// Uring or aio bdevs.
    File(FileEngine),
}

impl BdevFamily {
    /// Whether a bdev is one of them.
    #[must_use]
    pub fn contains(self, kind: &BdevKind) -> bool {
        match (self, kind) {
            (Self::Null, BdevKind::Null(_)) | (Self::Malloc, BdevKind::Malloc(_)) => true,
            (Self::File(asked), BdevKind::File { engine, .. }) => asked == *engine,
            _ => false,
        }
    }

    /// What people call one of them.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Null => "null bdev",
            Self::Malloc => "malloc bdev",
            Self::File(FileEngine::Uring) => "uring bdev",
            Self::File(FileEngine::Aio) => "aio bdev",
        }
    }
}

/// A call whose parameters are good by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `bdev_{null,malloc,uring,aio}_create`. Name (of a malloc bdev) and identity may still have to be found.
    CreateBdev(BdevConfig),
    /// `bdev_{null,malloc,uring,aio}_delete`.
    DeleteBdev {
        /// The kind that the method is for.
        family: BdevFamily,
        /// Which one.
        name: String,
    },
    /// `bdev_null_resize`.
    ResizeNull {
        /// Which one.
        name: String,
        /// Its new size.
        mebibytes: u64,
    },
    /// `bdev_uring_rescan` and `bdev_aio_rescan`.
    Rescan {
        /// The kind that the method is for.
        family: BdevFamily,
        /// Which one.
        name: String,
    },
    /// `bdev_nvme_set_options`.
    SetNvmeOptions(NvmeOptions),
    /// `bdev_nvme_attach_controller`.
    AttachDrive(DriveConfig),
    /// `bdev_nvme_detach_controller`.
    DetachDrive {
        /// Which one.
        name: String,
        /// Where it must sit, if the caller says.
        address: Option<PciAddress>,
    },
    /// `bdev_nvme_reset_controller`.
    ResetDrive {
        /// Which one.
        name: String,
    },
    /// `bdev_nvme_get_controllers`.
    GetDrives {
        /// Which one; `None`: all.
        name: Option<String>,
    },
    /// `bdev_nvme_get_controller_health_info`.
    GetDriveHealth {
        /// Which one.
        name: String,
    },
    /// `bdev_get_bdevs`.
    GetBdevs {
        /// Which one; `None`: all.
        name: Option<String>,
        /// How long to wait for it to appear.
        timeout_ms: u64,
    },
    /// `bdev_get_iostat`.
    GetIostat {
        /// Which ones; `None`: all.
        names: Option<Vec<String>>,
        /// Each core's counters apart.
        per_channel: bool,
        /// What begins anew afterwards.
        reset: Reset,
    },
    /// `vhost_create_blk_controller`.
    CreateController(ControllerConfig),
    /// `vhost_get_controllers`.
    GetControllers {
        /// Which one; `None`: all.
        name: Option<String>,
    },
    /// `vhost_delete_controller`.
    DeleteController {
        /// Which one.
        name: String,
    },
    /// A change of NVMe over Fabrics.
    Nvmf(NvmfChange),
    /// `nvmf_get_subsystems`.
    GetNvmfSubsystems {
        /// Which one; `None`: all.
        nqn: Option<String>,
    },
    /// `nvmf_get_transports`.
    GetNvmfTransports,
    /// `framework_get_reactors`.
    GetReactors,
    /// `framework_get_subsystems`.
    GetSubsystems,
    /// `framework_get_config`.
    GetConfig {
        /// Of which subsystem.
        subsystem: String,
    },
    /// `rpc_get_methods`.
    GetMethods,
    /// `spdk_get_version`.
    GetVersion,
}

impl Call {
    /// Whether the call changes the target. Changes are made one after the other; questions are answered at once.
    #[must_use]
    pub const fn is_change(&self) -> bool {
        matches!(
            self,
            Self::CreateBdev(_)
                | Self::DeleteBdev { .. }
                | Self::ResizeNull { .. }
                | Self::Rescan { .. }
                | Self::SetNvmeOptions(_)
                | Self::AttachDrive(_)
                | Self::DetachDrive { .. }
                | Self::ResetDrive { .. }
                | Self::CreateController(_)
                | Self::DeleteController { .. }
                | Self::Nvmf(_)
        )
    }
}

type Parser = fn(&mut Params) -> RpcResult<Call>;

/// Every method there is, sorted by name.
const METHODS: &[(&str, Parser)] = &[
    ("bdev_aio_create", |params| file_create(params, FileEngine::Aio)),
    ("bdev_aio_delete", |params| bdev_delete(params, BdevFamily::File(FileEngine::Aio))),
    ("bdev_aio_rescan", |params| rescan(params, FileEngine::Aio)),
    ("bdev_get_bdevs", get_bdevs),
    ("bdev_get_iostat", get_iostat),
    ("bdev_malloc_create", malloc_create),
    ("bdev_malloc_delete", |params| bdev_delete(params, BdevFamily::Malloc)),
    ("bdev_null_create", null_create),
    ("bdev_null_delete", |params| bdev_delete(params, BdevFamily::Null)),
    ("bdev_null_resize", null_resize),
    ("bdev_nvme_attach_controller", nvme_attach),
    ("bdev_nvme_detach_controller", nvme_detach),
    ("bdev_nvme_get_controller_health_info", |params| {
        Ok(Call::GetDriveHealth { name: params.required_text("name", NAME_MAX)? })
    }),
    ("bdev_nvme_get_controllers", |params| Ok(Call::GetDrives { name: params.text("name", NAME_MAX)? })),
    ("bdev_nvme_reset_controller", nvme_reset),
    ("bdev_nvme_set_options", nvme_set_options),
    ("bdev_uring_create", |params| file_create(params, FileEngine::Uring)),
    ("bdev_uring_delete", |params| bdev_delete(params, BdevFamily::File(FileEngine::Uring))),
    ("bdev_uring_rescan", |params| rescan(params, FileEngine::Uring)),
    ("framework_get_config", get_config),
    ("framework_get_reactors", |_| Ok(Call::GetReactors)),
    ("framework_get_subsystems", |_| Ok(Call::GetSubsystems)),
    ("nvmf_create_subsystem", nvmf::create_subsystem),
    ("nvmf_create_transport", nvmf::create_transport),
    ("nvmf_delete_subsystem", nvmf::delete_subsystem),
    ("nvmf_get_subsystems", nvmf::get_subsystems),
    ("nvmf_get_transports", nvmf::get_transports),
    ("nvmf_subsystem_add_host", nvmf::add_host),
    ("nvmf_subsystem_add_listener", nvmf::add_listener),
    ("nvmf_subsystem_add_ns", nvmf::add_ns),
    ("nvmf_subsystem_allow_any_host", nvmf::allow_any_host),
    ("nvmf_subsystem_remove_host", nvmf::remove_host),
    ("nvmf_subsystem_remove_listener", nvmf::remove_listener),
    ("nvmf_subsystem_remove_ns", nvmf::remove_ns),
    ("rpc_get_methods", get_methods),
    ("spdk_get_version", |_| Ok(Call::GetVersion)),
    ("vhost_create_blk_controller", controller_create),
    ("vhost_delete_controller", controller_delete),
    ("vhost_get_controllers", get_controllers),
];

/// The names of all methods.
pub fn method_names() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|(name, _)| *name)
}

/// Reads a call.
pub fn parse(method: &str, params: Map<String, Value>) -> RpcResult<Call> {
    let Some((_, parser)) = METHODS.iter().find(|(name, _)| *name == method) else {
        let message = format!("Method not found: {method:?}; rpc_get_methods lists what there is");
        return Err(RpcError::new(METHOD_NOT_FOUND, message));
    };
    let mut params = Params::new(params);
    let call = parser(&mut params)?;
    params.finish()?;
    Ok(call)
}

/// The size of a null or malloc bdev, and SPDK's metadata options, of which none is supported.
fn block_config(params: &mut Params) -> RpcResult<BlockConfig> {
    let num_blocks = params.required_number("num_blocks", 1..=CAPACITY_MAX)?;
    let block_size = params.power_of_two("block_size", BLOCK_SIZES)?;
    let block_size =
        block_size.ok_or_else(|| RpcError::params("Invalid parameters: block_size is missing"))?;
    let physical_block_size = params.power_of_two("physical_block_size", BLOCK_SIZES)?.unwrap_or(block_size);
    if physical_block_size < block_size {
        return Err(RpcError::params(format!(
            "Invalid parameters: physical_block_size is {physical_block_size}; allowed: at least block_size, {block_size}"
        )));
    }
    if num_blocks > CAPACITY_MAX / u64::from(block_size) {
        return Err(RpcError::params(format!(
            "Invalid parameters: num_blocks is {num_blocks}; allowed: at most {} of {block_size} bytes",
            CAPACITY_MAX / u64::from(block_size)
        )));
    }
    for zero in ["md_size", "dif_type", "dif_pi_format"] {
        params.ignored(zero, 0)?;
    }
    params.ignored("dif_is_head_of_md", false)?;
    Ok(BlockConfig { block_size, physical_block_size, num_blocks })
}

fn null_create(params: &mut Params) -> RpcResult<Call> {
    let name = params.required_text("name", NAME_MAX)?;
    let uuid = params.uuid("uuid")?.unwrap_or_default();
    let block = block_config(params)?;
    for zero in [
        "preferred_write_alignment",
        "preferred_write_granularity",
        "optimal_write_size",
        "preferred_unmap_alignment",
        "preferred_unmap_granularity",
    ] {
        params.ignored(zero, 0)?;
    }
    Ok(Call::CreateBdev(BdevConfig { name, uuid, kind: BdevKind::Null(block) }))
}

fn malloc_create(params: &mut Params) -> RpcResult<Call> {
    let name = params.text("name", NAME_MAX)?.unwrap_or_default();
    let uuid = params.uuid("uuid")?.unwrap_or_default();
    let block = block_config(params)?;
    params.ignored("optimal_io_boundary", 0)?;
    params.ignored("md_interleave", false)?;
    params.ignored("numa_id", -1)?;
    Ok(Call::CreateBdev(BdevConfig { name, uuid, kind: BdevKind::Malloc(block) }))
}

fn file_create(params: &mut Params, engine: FileEngine) -> RpcResult<Call> {
    let path = params.required_text("filename", PATH_MAX)?;
    if !path.starts_with('/') {
        // A relative path would lead somewhere else after a restart.
        return Err(RpcError::params(format!(
            "Invalid parameters: filename is {path:?}; allowed: an absolute path"
        )));
    }
    let name = params.required_text("name", NAME_MAX)?;
    let block_size = params.power_of_two("block_size", BLOCK_SIZES)?;
    let uuid = params.uuid("uuid")?.unwrap_or_default();
    let read_only = match engine {
        FileEngine::Uring => false,
        FileEngine::Aio => {
            // Discard and zeroes go through fallocate wherever the file can; the option asks for no less.
            params.boolean("fallocate", false)?;
            params.ignored("nowait", false)?;
            params.boolean("readonly", false)?
        }
    };
    let kind = BdevKind::File { engine, path, block_size, read_only };
    Ok(Call::CreateBdev(BdevConfig { name, uuid, kind }))
}

fn bdev_delete(params: &mut Params, family: BdevFamily) -> RpcResult<Call> {
    Ok(Call::DeleteBdev { family, name: params.required_text("name", NAME_MAX)? })
}

fn null_resize(params: &mut Params) -> RpcResult<Call> {
    let name = params.required_text("name", NAME_MAX)?;
    let mebibytes = params.required_number("new_size", 1..=CAPACITY_MAX >> 20)?;
    Ok(Call::ResizeNull { name, mebibytes })
}

fn rescan(params: &mut Params, engine: FileEngine) -> RpcResult<Call> {
    Ok(Call::Rescan { family: BdevFamily::File(engine), name: params.required_text("name", NAME_MAX)? })
}

/// SPDK's word for the transport of local drives; its client writes it in either case.
fn pcie(params: &mut Params) -> RpcResult<bool> {
    Ok(params.word("trtype", &["PCIe", "pcie", "PCIE"])?.is_some())
}

fn pci_address(params: &mut Params) -> RpcResult<Option<PciAddress>> {
    let Some(text) = params.text("traddr", NAME_MAX)? else { return Ok(None) };
    // SPDK's scripts write 0000.3b.00.0 where a colon would be in the way.
    let parsed = text.parse().or_else(|error| text.replacen('.', ":", 2).parse().map_err(|_| error));
    let refused =
        |error| RpcError::params(format!("Invalid parameters: traddr is {text:?}; allowed: {error}"));
    parsed.map(Some).map_err(refused)
}

fn nvme_attach(params: &mut Params) -> RpcResult<Call> {
    let name = params.required_text("name", NAME_MAX)?;
    if !pcie(params)? {
        return Err(RpcError::params("Invalid parameters: trtype is missing"));
    }
    let address = pci_address(params)?;
    let address = address.ok_or_else(|| RpcError::params("Invalid parameters: traddr is missing"))?;
    for off in ["prchk_reftag", "prchk_guard", "hdgst", "ddgst", "allow_unrecognized_csi"] {
        params.ignored(off, false)?;
    }
    // SPDK's ways to several paths: a name is given to one controller here.
    params.word("multipath", &["disable"])?;
    for zero in ["ctrlr_loss_timeout_sec", "reconnect_delay_sec", "fast_io_fail_timeout_sec"] {
        params.ignored(zero, 0)?;
    }
    Ok(Call::AttachDrive(DriveConfig { name, address }))
}

fn nvme_detach(params: &mut Params) -> RpcResult<Call> {
    let name = params.required_text("name", NAME_MAX)?;
    pcie(params)?;
    Ok(Call::DetachDrive { name, address: pci_address(params)? })
}

fn nvme_reset(params: &mut Params) -> RpcResult<Call> {
    let name = params.required_text("name", NAME_MAX)?;
    params.ignored("cntlid", 0)?;
    Ok(Call::ResetDrive { name })
}

fn nvme_set_options(params: &mut Params) -> RpcResult<Call> {
    let mut timeout = |name| -> RpcResult<Option<u64>> {
        let given = params.number(name, 0..=NVME_TIMEOUT_US_MAX)?.filter(|given| *given != 0);
        match given {
            Some(given) if given < NVME_TIMEOUT_US_MIN => Err(RpcError::params(format!(
                "Invalid parameters: {name} is {given}; allowed: 0 (the driver's own), {NVME_TIMEOUT_US_MIN} to \
                 {NVME_TIMEOUT_US_MAX}"
            ))),
            given => Ok(given),
        }
    };
    let (timeout_us, timeout_admin_us) = (timeout("timeout_us")?, timeout("timeout_admin_us")?);
    let action_on_timeout = match params.word("action_on_timeout", &["none", "abort", "reset"])? {
        None | Some(0) => None,
        Some(1) => Some(OnTimeout::Abort),
        Some(_) => Some(OnTimeout::Reset),
    };
    let retries = params.number("bdev_retry_count", 0..=255)?;
    let bdev_retry_count = retries.and_then(|count| u8::try_from(count).ok());
    for zero in [
        "arbitration_burst",
        "low_priority_weight",
        "medium_priority_weight",
        "high_priority_weight",
        "ctrlr_loss_timeout_sec",
        "reconnect_delay_sec",
        "fast_io_fail_timeout_sec",
    ] {
        params.ignored(zero, 0)?;
    }
    params.ignored("transport_retry_count", 4)?;
    params.ignored("delay_cmd_submit", true)?;
    Ok(Call::SetNvmeOptions(NvmeOptions {
        timeout_us,
        timeout_admin_us,
        action_on_timeout,
        bdev_retry_count,
    }))
}

fn get_bdevs(params: &mut Params) -> RpcResult<Call> {
    let name = params.text("name", NAME_MAX)?;
    let timeout_ms = params.number("timeout", 0..=TIMEOUT_MS_MAX)?.unwrap_or(0);
    Ok(Call::GetBdevs { name, timeout_ms })
}

fn get_iostat(params: &mut Params) -> RpcResult<Call> {
    // 25.05 asks for one by name, 26.09 for several by names.
    let (name, names) = (params.text("name", NAME_MAX)?, params.names("names")?);
    let names = match (name, names) {
        (Some(_), Some(_)) => {
            return Err(RpcError::params(
                "Invalid parameters: name and names are both there; allowed: one of them",
            ));
        }
        (Some(name), None) => Some([name].into()),
        (None, names) => names,
    };
    let per_channel = params.boolean("per_channel", false)?;
    let reset = match params.word("reset_mode", &["none", "all", "maxmin", "error"])? {
        None | Some(0) => Reset::Nothing,
        Some(1) => Reset::Everything,
        Some(2) => Reset::Extremes,
        Some(_) => Reset::Errors,
    };
    Ok(Call::GetIostat { names, per_channel, reset })
}

fn controller_create(params: &mut Params) -> RpcResult<Call> {
    let name = controller_name(params)?;
    let bdev = params.required_text("dev_name", NAME_MAX)?;
    let read_only = params.boolean("readonly", false)?;
    let cpumask = params.text("cpumask", PATH_MAX)?;
    if let Some(mask) = &cpumask {
        cpumask::parse(mask).map_err(|error| RpcError::params(format!("Invalid parameters: {error}")))?;
    }
    let packed_ring = params.boolean("packed_ring", false)?;
    params.ignored("transport", TRANSPORT)?;
    let shared = params.boolean("shared", false)?;
    Ok(Call::CreateController(ControllerConfig { name, bdev, read_only, packed_ring, shared, cpumask }))
}

/// The name of a new controller, which becomes a file's name.
fn controller_name(params: &mut Params) -> RpcResult<String> {
    let name = params.required_text("ctrlr", NAME_MAX)?;
    if name.contains('/') || name == "." || name == ".." {
        return Err(RpcError::params(format!(
            "Invalid parameters: ctrlr is {name:?}; allowed: the name of a socket in the vhost directory, without /"
        )));
    }
    Ok(name)
}

fn controller_delete(params: &mut Params) -> RpcResult<Call> {
    Ok(Call::DeleteController { name: params.required_text("ctrlr", NAME_MAX)? })
}

fn get_controllers(params: &mut Params) -> RpcResult<Call> {
    Ok(Call::GetControllers { name: params.text("name", NAME_MAX)? })
}

fn get_config(params: &mut Params) -> RpcResult<Call> {
    let subsystem = params.required_text("name", NAME_MAX)?;
    // There are no batches to keep or to flatten.
    params.boolean("with_batches", false)?;
    Ok(Call::GetConfig { subsystem })
}

fn get_methods(params: &mut Params) -> RpcResult<Call> {
    // Every method may be called at any time, and none has an alias.
    params.boolean("current", false)?;
    params.boolean("include_aliases", false)?;
    Ok(Call::GetMethods)
}

#[cfg(test)]
mod tests {
    use super::super::error::INVALID_PARAMS;
    use super::*;
    use serde_json::json;

    fn call(method: &str, params: Value) -> RpcResult<Call> {
        let Value::Object(map) = params else { panic!("an object") };
        parse(method, map)
    }

    #[test]
    fn what_the_real_client_was_seen_to_send_is_taken() {
        let malloc = json!({"num_blocks":131_072,"block_size":512,"name":"Malloc0","md_interleave":false,
            "dif_is_head_of_md":false});
        let aio = json!({"filename":"/d","name":"a","block_size":512,"readonly":false,"fallocate":false,"nowait":false});
        for (method, params) in [
            ("bdev_malloc_create", malloc),
            (
                "bdev_null_create",
                json!({"num_blocks":8,"block_size":512,"name":"n","dif_is_head_of_md":false}),
            ),
            ("bdev_aio_create", aio),
            ("bdev_uring_create", json!({"filename":"/d","name":"u","block_size":512})),
            (
                "vhost_create_blk_controller",
                json!({"ctrlr":"vhost.1","dev_name":"Nvme0n1","readonly":false,"packed_ring":false}),
            ),
            (
                "bdev_nvme_attach_controller",
                json!({"name":"Nvme0","trtype":"pcie","traddr":"0000:60:00.0","prchk_reftag":false,
                    "prchk_guard":false,"hdgst":false,"ddgst":false}),
            ),
            ("bdev_nvme_attach_controller", json!({"name":"Nvme0","trtype":"PCIe","traddr":"0000.60.00.0"})),
            ("bdev_nvme_detach_controller", json!({"name":"Nvme0"})),
            (
                "bdev_nvme_set_options",
                json!({"action_on_timeout":"none","timeout_us":0,"bdev_retry_count":3}),
            ),
            ("rpc_get_methods", json!({"current":false,"include_aliases":false})),
            ("framework_get_config", json!({"name":"bdev","with_batches":false})),
            ("bdev_get_iostat", json!({"per_channel":false})),
            ("bdev_get_iostat", json!({"name":"a","per_channel":true,"reset_mode":"maxmin"})),
        ] {
            call(method, params.clone()).unwrap_or_else(|error| panic!("{method} {params}: {error:?}"));
        }
    }

    #[test]
    fn methods_are_sorted_and_each_is_there_once() {
        let names = method_names().collect::<Vec<_>>();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    }

    #[test]
    fn what_is_asked_for_wrongly_is_refused() {
        let block = |num_blocks: u64, block_size: u32, more: Value| {
            let mut params = json!({"name":"n","num_blocks":num_blocks,"block_size":block_size});
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            params
        };
        for (method, params) in [
            ("bdev_null_create", block(0, 512, json!({}))),
            ("bdev_null_create", block(8, 520, json!({}))),
            ("bdev_null_create", block(1 << 61, 512, json!({}))),
            ("bdev_null_create", block(8, 4096, json!({"physical_block_size":512}))),
            ("bdev_null_create", block(8, 512, json!({"md_size":8}))),
            ("bdev_null_create", block(8, 512, json!({"uuid":"x"}))),
            ("bdev_malloc_create", block(8, 512, json!({"numa_id":0}))),
            ("bdev_uring_create", json!({"filename":"disk","name":"u"})),
            ("bdev_uring_create", json!({"filename":"/d","name":"u","readonly":true})),
            ("bdev_aio_create", json!({"filename":"/d","name":"a","nowait":true})),
            ("vhost_create_blk_controller", json!({"ctrlr":"../x","dev_name":"n"})),
            ("vhost_create_blk_controller", json!({"ctrlr":"x","dev_name":"n","cpumask":"q"})),
            ("vhost_create_blk_controller", json!({"ctrlr":"x","dev_name":"n","transport":"vfiouser"})),
            ("bdev_get_iostat", json!({"name":"a","names":["a"]})),
            ("bdev_nvme_attach_controller", json!({"name":"n","trtype":"tcp","traddr":"10.0.0.1"})),
            ("bdev_nvme_attach_controller", json!({"name":"n","trtype":"pcie","traddr":"60:00"})),
            ("bdev_nvme_attach_controller", json!({"name":"n","trtype":"pcie"})),
            ("bdev_nvme_attach_controller", json!({"name":"n","traddr":"60:00.0"})),
            ("bdev_nvme_set_options", json!({"timeout_us":10})),
            ("bdev_nvme_set_options", json!({"bdev_retry_count":-1})),
            ("bdev_nvme_set_options", json!({"no_such_option":1})),
        ] {
            let error = call(method, params.clone()).expect_err(method);
            assert_eq!(error.code, INVALID_PARAMS, "{method} {params}");
        }
        assert_eq!(call("bdev_daos_create", json!({})).expect_err("unknown").code, METHOD_NOT_FOUND);
    }
}
