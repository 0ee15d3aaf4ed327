//! NVMe over Fabrics as an operator asks for it: subsystems, their namespaces, hosts and listeners, and the changes of
//! them. Names, parameters, defaults and answers are those of SPDK's target (`lib/nvmf/nvmf_rpc.c` and
//! `schema/schema.yaml` there).
//!
//! A change is a step from one whole configuration to the next ([`NvmfChange::apply`]): calls, and the state file that is
//! read back, go the same way, so that nothing can be in the file that could not be asked for.

use super::calls::Call;
use super::error::{Errno, RpcError, RpcResult};
use super::params::{NAME_MAX, Params};
use crate::block::uuid;
use crate::nvme::bits::{DISCOVERY_NQN, NQN_MAX};
use crate::nvme::controller::nqn_is_valid;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;
use core::net::{IpAddr, SocketAddr};
use serde_json::{Map, Value, json};

/// Most namespaces of a subsystem where nothing else is asked for, as in SPDK.
const NAMESPACES_DEFAULT: u32 = 32;
/// Most namespaces of a subsystem.
const NAMESPACES_MAX: u32 = 1024;
/// Most hosts of a subsystem, and most listeners.
const NAMED_MAX: usize = 1024;
/// Characters of a serial number and of a model (section 5.17.2.1).
const SERIAL_MAX: usize = 20;
const MODEL_MAX: usize = 40;
/// SPDK's serial number where none is asked for.
const SERIAL_DEFAULT: &str = "00000000000000000000";
/// What a subsystem is where no model is asked for.
const MODEL_DEFAULT: &str = "Reprise";
/// The port of NVMe/TCP.
const PORT_DEFAULT: &str = "4420";

/// A namespace as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// Its identifier; 0: the next that is free.
    pub nsid: u32,
    /// Its bdev.
    pub bdev: String,
    /// Its UUID; zeroes: the bdev's.
    pub uuid: [u8; 16],
    /// Its NGUID; zeroes: made of the UUID.
    pub nguid: [u8; 16],
    /// Its EUI-64; zeroes: none.
    pub eui64: [u8; 8],
}

/// A subsystem as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemConfig {
    /// Its name.
    pub nqn: String,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// The highest identifier of a namespace.
    pub max_namespaces: u32,
    /// Hosts need not be named.
    pub allow_any_host: bool,
    /// The hosts that are named.
    pub hosts: BTreeSet<String>,
    /// By ascending identifier.
    pub namespaces: Vec<NamespaceConfig>,
    /// Where it is reached, in order of addition.
    pub listeners: Vec<SocketAddr>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NvmfConfig {
    /// TCP was asked for.
    pub has_tcp: bool,
    /// In order of creation.
    pub subsystems: Vec<SubsystemConfig>,
}

/// A change of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NvmfChange {
    /// `nvmf_create_transport`.
    CreateTransport,
    /// `nvmf_create_subsystem`.
    CreateSubsystem(SubsystemConfig),
    /// `nvmf_delete_subsystem`.
    DeleteSubsystem(String),
    /// `nvmf_subsystem_add_ns`.
    AddNamespace(String, NamespaceConfig),
    /// `nvmf_subsystem_remove_ns`.
    RemoveNamespace(String, u32),
    /// `nvmf_subsystem_add_listener`.
    AddListener(String, SocketAddr),
    /// `nvmf_subsystem_remove_listener`.
    RemoveListener(String, SocketAddr),
    /// `nvmf_subsystem_add_host`.
    AddHost(String, String),
    /// `nvmf_subsystem_remove_host`.
    RemoveHost(String, String),
    /// `nvmf_subsystem_allow_any_host`.
    AllowAnyHost(String, bool),
}

fn exists(what: impl core::fmt::Display) -> RpcError {
    RpcError::errno(Errno::Exists, what)
}

impl NvmfConfig {
    /// The subsystem of a name.
    #[must_use]
    pub fn subsystem(&self, nqn: &str) -> Option<&SubsystemConfig> {
        self.subsystems.iter().find(|subsystem| subsystem.nqn == nqn)
    }

    fn subsystem_mut(&mut self, nqn: &str) -> RpcResult<&mut SubsystemConfig> {
        self.subsystems.iter_mut().find(|subsystem| subsystem.nqn == nqn).ok_or_else(|| no_subsystem(nqn))
    }

    /// The namespaces of all subsystems, each with its subsystem's name.
    pub fn namespaces(&self) -> impl Iterator<Item = (&str, &NamespaceConfig)> + '_ {
        self.subsystems.iter().flat_map(|subsystem| {
            subsystem.namespaces.iter().map(|namespace| (subsystem.nqn.as_str(), namespace))
        })
    }
}

/// The error for a subsystem that is not there.
#[must_use]
pub fn no_subsystem(nqn: &str) -> RpcError {
    let what = format!("no subsystem is named {nqn}; nvmf_get_subsystems lists those that there are");
    RpcError::errno(Errno::NoSuchDevice, what)
}

impl NvmfChange {
    /// Makes the change in `config`; the answer to the call. `bdev_uuid`: the identity of a bdev, if it is there.
    pub fn apply(
        self,
        config: &mut NvmfConfig,
        bdev_uuid: impl Fn(&str) -> Option<[u8; 16]>,
    ) -> RpcResult<Value> {
        match self {
            Self::CreateTransport if config.has_tcp => {
                return Err(exists("the TCP transport is there already"));
            }
            Self::CreateTransport => config.has_tcp = true,
            Self::CreateSubsystem(subsystem) => {
                if config.subsystem(&subsystem.nqn).is_some() {
                    return Err(exists(format!("a subsystem named {} is there already", subsystem.nqn)));
                }
                config.subsystems.push(subsystem);
            }
            Self::DeleteSubsystem(nqn) => {
                config.subsystem_mut(&nqn)?;
                config.subsystems.retain(|subsystem| subsystem.nqn != nqn);
            }
            Self::AddNamespace(nqn, namespace) => {
                return add_namespace(config, &nqn, namespace, bdev_uuid).map(Value::from);
            }
            Self::RemoveNamespace(nqn, nsid) => {
                let subsystem = config.subsystem_mut(&nqn)?;
                let before = subsystem.namespaces.len();
                subsystem.namespaces.retain(|namespace| namespace.nsid != nsid);
                if subsystem.namespaces.len() == before {
                    let what = format!("subsystem {nqn} has no namespace {nsid}");
                    return Err(RpcError::errno(Errno::NoSuchDevice, what));
                }
            }
            Self::AddListener(nqn, address) => {
                if !config.has_tcp {
                    let what = "there is no TCP transport: call nvmf_create_transport first";
                    return Err(RpcError::errno(Errno::NoSuchDevice, what));
                }
                let subsystem = config.subsystem_mut(&nqn)?;
                if subsystem.listeners.contains(&address) {
                    return Err(exists(format!("subsystem {nqn} is reached at {address} already")));
                }
                full(subsystem.listeners.len())?;
                subsystem.listeners.push(address);
            }
            Self::RemoveListener(nqn, address) => {
                let subsystem = config.subsystem_mut(&nqn)?;
                let Some(at) = subsystem.listeners.iter().position(|other| *other == address) else {
                    let what = format!("subsystem {nqn} is not reached at {address}");
                    return Err(RpcError::errno(Errno::NoSuchDevice, what));
                };
                subsystem.listeners.remove(at);
            }
            Self::AddHost(nqn, host) => {
                let subsystem = config.subsystem_mut(&nqn)?;
                full(subsystem.hosts.len())?;
                if !subsystem.hosts.insert(host.clone()) {
                    return Err(exists(format!("subsystem {nqn} allows {host} already")));
                }
            }
            Self::RemoveHost(nqn, host) => {
                let subsystem = config.subsystem_mut(&nqn)?;
                if !subsystem.hosts.remove(&host) {
                    let what = format!("subsystem {nqn} does not name {host}");
                    return Err(RpcError::errno(Errno::NoSuchDevice, what));
                }
            }
            Self::AllowAnyHost(nqn, allow) => config.subsystem_mut(&nqn)?.allow_any_host = allow,
        }
        Ok(json!(true))
    }
}

fn full(len: usize) -> RpcResult<()> {
    if len < NAMED_MAX {
        return Ok(());
    }
    Err(RpcError::errno(Errno::NoSpace, format!("a subsystem has at most {NAMED_MAX} of them")))
}

fn add_namespace(
    config: &mut NvmfConfig,
    nqn: &str,
    mut namespace: NamespaceConfig,
    bdev_uuid: impl Fn(&str) -> Option<[u8; 16]>,
) -> RpcResult<u32> {
    if let Some((other, _)) = config.namespaces().find(|(_, other)| other.bdev == namespace.bdev) {
        let what = format!("bdev {} is a namespace of subsystem {other} already", namespace.bdev);
        return Err(RpcError::errno(Errno::Busy, what));
    }
    let subsystem = config.subsystem_mut(nqn)?;
    let is_free = |nsid: u32| subsystem.namespaces.iter().all(|other| other.nsid != nsid);
    let max = subsystem.max_namespaces;
    if namespace.nsid == 0 {
        namespace.nsid = (1..=max).find(|nsid| is_free(*nsid)).ok_or_else(|| {
            RpcError::errno(Errno::NoSpace, format!("subsystem {nqn} has its {max} namespaces"))
        })?;
    }
    if namespace.nsid > max {
        return Err(RpcError::params(format!(
            "Invalid parameters: nsid is {}; allowed: 1 to {max}",
            namespace.nsid
        )));
    }
    if !is_free(namespace.nsid) {
        return Err(exists(format!("subsystem {nqn} has a namespace {} already", namespace.nsid)));
    }
    if namespace.uuid == [0; 16] {
        namespace.uuid = bdev_uuid(&namespace.bdev).ok_or_else(|| {
            RpcError::errno(Errno::NoSuchDevice, format!("no bdev is named {}", namespace.bdev))
        })?;
    }
    if namespace.nguid == [0; 16] {
        namespace.nguid = namespace.uuid;
    }
    let nsid = namespace.nsid;
    let at = subsystem.namespaces.partition_point(|other| other.nsid < nsid);
    subsystem.namespaces.insert(at, namespace);
    Ok(nsid)
}

/// A name that must be there.
fn nqn(params: &mut Params, name: &'static str) -> RpcResult<String> {
    let nqn = params.required_text(name, NQN_MAX)?;
    if !nqn_is_valid(&nqn) {
        return Err(RpcError::params(format!(
            "Invalid parameters: {name} is {nqn:?}; allowed: an NVMe Qualified Name such as \
             nqn.2026-11.com.example:disks"
        )));
    }
    Ok(nqn)
}

fn subsystem_nqn(params: &mut Params) -> RpcResult<String> {
    let nqn = nqn(params, "nqn")?;
    params.ignored("tgt_name", "nvmf_tgt")?;
    if nqn == DISCOVERY_NQN {
        return Err(RpcError::params("Invalid parameters: nqn is discovery's own, which is always there"));
    }
    Ok(nqn)
}

/// Whether TCP was asked for, in any case of letters.
fn tcp(params: &mut Params) -> RpcResult<()> {
    match params.word("trtype", &["tcp", "TCP", "Tcp"])? {
        Some(_) => Ok(()),
        None => Err(RpcError::params("Invalid parameters: trtype is missing")),
    }
}

pub(super) fn create_transport(params: &mut Params) -> RpcResult<Call> {
    tcp(params)?;
    params.ignored("tgt_name", "nvmf_tgt")?;
    // How SPDK shares its buffers and queues among controllers: they are another's here.
    for sized in [
        "max_queue_depth",
        "max_io_qpairs_per_ctrlr",
        "in_capsule_data_size",
        "max_io_size",
        "io_unit_size",
        "max_aq_depth",
        "num_shared_buffers",
        "buf_cache_size",
        "iobuf_small_cache_size",
        "iobuf_large_cache_size",
        "num_cqe",
        "max_srq_depth",
        "sock_priority",
        "acceptor_backlog",
        "abort_timeout_sec",
        "control_msg_num",
        "acceptor_poll_rate",
        "ack_timeout",
        "data_wr_pool_size",
        "kas",
        "min_kato",
    ] {
        params.number(sized, 0..=u64::from(u32::MAX))?;
    }
    // Of other transports, or done in another way here with the same effect for hosts.
    for way in [
        "zcopy",
        "no_srq",
        "c2h_success",
        "no_wr_batching",
        "disable_mappable_bar0",
        "disable_adaptive_irq",
        "disable_shadow_doorbells",
        "disable_command_passthru",
    ] {
        params.boolean(way, false)?;
    }
    params.ignored("dif_insert_or_strip", false)?;
    Ok(Call::Nvmf(NvmfChange::CreateTransport))
}

pub(super) fn create_subsystem(params: &mut Params) -> RpcResult<Call> {
    let nqn = subsystem_nqn(params)?;
    let mut ascii = |name, max, default: &str| {
        let text = params.text(name, max)?.unwrap_or_else(|| default.into());
        if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Ok(text);
        }
        Err(RpcError::params(format!("Invalid parameters: {name} is {text:?}; allowed: printable ASCII")))
    };
    let serial = ascii("serial_number", SERIAL_MAX, SERIAL_DEFAULT)?;
    let model = ascii("model_number", MODEL_MAX, MODEL_DEFAULT)?;
    // 0 is SPDK's word for its default.
    let asked = params.number("max_namespaces", 0..=u64::from(NAMESPACES_MAX))?.filter(|max| *max > 0);
    let max_namespaces = asked.and_then(|max| u32::try_from(max).ok()).unwrap_or(NAMESPACES_DEFAULT);
    let allow_any_host = params.boolean("allow_any_host", false)?;
    for off in ["ana_reporting", "passthrough", "enable_nssr"] {
        params.ignored(off, false)?;
    }
    params.ignored("min_cntlid", 1)?;
    params.ignored("max_cntlid", 0xffef)?;
    for bound in ["max_discard_size_kib", "max_write_zeroes_size_kib", "dmrsl", "wzsl"] {
        params.ignored(bound, 0)?;
    }
    Ok(Call::Nvmf(NvmfChange::CreateSubsystem(SubsystemConfig {
        nqn,
        serial,
        model,
        max_namespaces,
        allow_any_host,
        hosts: BTreeSet::new(),
        namespaces: Vec::new(),
        listeners: Vec::new(),
    })))
}

pub(super) fn delete_subsystem(params: &mut Params) -> RpcResult<Call> {
    Ok(Call::Nvmf(NvmfChange::DeleteSubsystem(subsystem_nqn(params)?)))
}

pub(super) fn add_ns(params: &mut Params) -> RpcResult<Call> {
    let nqn = subsystem_nqn(params)?;
    let mut inner = params.object("namespace")?;
    let namespace = NamespaceConfig {
        nsid: inner.number("nsid", 0..=u64::from(NAMESPACES_MAX))?.unwrap_or(0) as u32,
        bdev: inner.required_text("bdev_name", NAME_MAX)?,
        uuid: inner.uuid("uuid")?.unwrap_or_default(),
        nguid: hexadecimal(&mut inner, "nguid")?,
        eui64: hexadecimal(&mut inner, "eui64")?,
    };
    for off in ["no_auto_visible", "hide_metadata"] {
        inner.ignored(off, false)?;
    }
    inner.finish()?;
    Ok(Call::Nvmf(NvmfChange::AddNamespace(nqn, namespace)))
}

/// An identifier in hexadecimal; zeroes where there is none.
fn hexadecimal<const N: usize>(params: &mut Params, name: &'static str) -> RpcResult<[u8; N]> {
    let Some(text) = params.text(name, 2 * N)? else { return Ok([0; N]) };
    let mut bytes = [0; N];
    let digits = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<Vec<_>>>();
    let digits = digits.filter(|digits| digits.len() == 2 * N).ok_or_else(|| {
        RpcError::params(format!(
            "Invalid parameters: {name} is {text:?}; allowed: {} hexadecimal digits",
            2 * N
        ))
    })?;
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = (pair[0] << 4 | pair[1]) as u8;
    }
    Ok(bytes)
}

fn hexadecimal_of(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02X}");
        text
    })
}

pub(super) fn remove_ns(params: &mut Params) -> RpcResult<Call> {
    let nqn = subsystem_nqn(params)?;
    let nsid = params.required_number("nsid", 1..=u64::from(NAMESPACES_MAX))? as u32;
    Ok(Call::Nvmf(NvmfChange::RemoveNamespace(nqn, nsid)))
}

fn listen_address(params: &mut Params) -> RpcResult<SocketAddr> {
    let mut inner = params.object("listen_address")?;
    tcp(&mut inner)?;
    let text = inner.required_text("traddr", NAME_MAX)?;
    let address = text.parse::<IpAddr>().map_err(|_| {
        RpcError::params(format!("Invalid parameters: traddr is {text:?}; allowed: an IP address"))
    })?;
    let port = inner.text("trsvcid", 5)?.unwrap_or_else(|| PORT_DEFAULT.into());
    let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(|| {
        RpcError::params(format!("Invalid parameters: trsvcid is {port:?}; allowed: a port, 1 to 65535"))
    })?;
    let family = inner.word("adrfam", &["ipv4", "ipv6", "IPv4", "IPv6"])?;
    if family.is_some_and(|family| (family % 2 == 0) != address.is_ipv4()) {
        return Err(RpcError::params("Invalid parameters: adrfam is not the family of traddr"));
    }
    inner.finish()?;
    Ok(SocketAddr::new(address, port))
}

pub(super) fn add_listener(params: &mut Params) -> RpcResult<Call> {
    let nqn = subsystem_nqn(params)?;
    let address = listen_address(params)?;
    params.ignored("secure_channel", false)?;
    params.word("ana_state", &["optimized"])?;
    params.word("sock_impl", &["posix", "uring"])?;
    Ok(Call::Nvmf(NvmfChange::AddListener(nqn, address)))
}

pub(super) fn remove_listener(params: &mut Params) -> RpcResult<Call> {
    let nqn = subsystem_nqn(params)?;
    Ok(Call::Nvmf(NvmfChange::RemoveListener(nqn, listen_address(params)?)))
}

pub(super) fn add_host(params: &mut Params) -> RpcResult<Call> {
    let subsystem = subsystem_nqn(params)?;
    Ok(Call::Nvmf(NvmfChange::AddHost(subsystem, nqn(params, "host")?)))
}

pub(super) fn remove_host(params: &mut Params) -> RpcResult<Call> {
    let subsystem = subsystem_nqn(params)?;
    let host = nqn(params, "host")?;
    params.ignored("timeout_ms", 0)?;
    Ok(Call::Nvmf(NvmfChange::RemoveHost(subsystem, host)))
}

pub(super) fn allow_any_host(params: &mut Params) -> RpcResult<Call> {
    let nqn = subsystem_nqn(params)?;
    // 25.05 has two commands for it, and leaves one of the values out.
    Ok(Call::Nvmf(NvmfChange::AllowAnyHost(nqn, params.boolean("allow_any_host", true)?)))
}

pub(super) fn get_subsystems(params: &mut Params) -> RpcResult<Call> {
    let nqn = params.text("nqn", NQN_MAX)?;
    params.ignored("tgt_name", "nvmf_tgt")?;
    Ok(Call::GetNvmfSubsystems { nqn })
}

pub(super) fn get_transports(params: &mut Params) -> RpcResult<Call> {
    params.ignored("tgt_name", "nvmf_tgt")?;
    params.word("trtype", &["tcp", "TCP"])?;
    Ok(Call::GetNvmfTransports)
}

fn address(address: &SocketAddr) -> Value {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "trtype": "TCP",
        "adrfam": family,
        "traddr": address.ip().to_string(),
        "trsvcid": address.port().to_string(),
    })
}

fn namespace(namespace: &NamespaceConfig) -> Map<String, Value> {
    let NamespaceConfig { nsid, bdev, uuid, nguid, eui64 } = namespace;
    let mut entry = Map::new();
    entry.insert("nsid".into(), (*nsid).into());
    entry.insert("bdev_name".into(), bdev.clone().into());
    entry.insert("nguid".into(), hexadecimal_of(nguid).into());
    if *eui64 != [0; 8] {
        entry.insert("eui64".into(), hexadecimal_of(eui64).into());
    }
    entry.insert("uuid".into(), uuid::format(uuid).into());
    entry
}

/// One entry of `nvmf_get_subsystems`.
fn subsystem(subsystem: &SubsystemConfig) -> Value {
    let namespaces = subsystem.namespaces.iter().map(|one| {
        let mut entry = namespace(one);
        entry.insert("name".into(), one.bdev.clone().into());
        entry
    });
    json!({
        "nqn": subsystem.nqn,
        "subtype": "NVMe",
        "listen_addresses": subsystem.listeners.iter().map(address).collect::<Vec<_>>(),
        "allow_any_host": subsystem.allow_any_host,
        "hosts": subsystem.hosts.iter().map(|host| json!({ "nqn": host })).collect::<Vec<_>>(),
        "serial_number": subsystem.serial,
        "model_number": subsystem.model,
        "max_namespaces": subsystem.max_namespaces,
        "min_cntlid": 1,
        "max_cntlid": 0xffef,
        "namespaces": namespaces.collect::<Vec<_>>(),
    })
}

/// `nvmf_get_subsystems`.
pub fn subsystems(config: &NvmfConfig, nqn: Option<&str>) -> RpcResult<Value> {
    if let Some(nqn) = nqn.filter(|nqn| *nqn != DISCOVERY_NQN && config.subsystem(nqn).is_none()) {
        return Err(no_subsystem(nqn));
    }
    let discovery = json!({
        "nqn": DISCOVERY_NQN,
        "subtype": "Discovery",
        "listen_addresses": [],
        "allow_any_host": true,
        "hosts": [],
    });
    let all = core::iter::once(discovery).chain(config.subsystems.iter().map(subsystem));
    Ok(all.filter(|entry| nqn.is_none_or(|nqn| entry["nqn"] == nqn)).collect::<Vec<_>>().into())
}

/// `nvmf_get_transports`.
#[must_use]
pub fn transports(config: &NvmfConfig) -> Value {
    if config.has_tcp { json!([{ "trtype": "TCP" }]) } else { json!([]) }
}

/// The calls that make it.
pub(super) fn calls(config: &NvmfConfig) -> Vec<Value> {
    let call = |method: &str, params: Value| json!({ "method": method, "params": params });
    let mut calls = Vec::new();
    if config.has_tcp {
        calls.push(call("nvmf_create_transport", json!({ "trtype": "TCP" })));
    }
    for subsystem in &config.subsystems {
        let nqn = &subsystem.nqn;
        calls.push(call(
            "nvmf_create_subsystem",
            json!({
                "nqn": nqn,
                "allow_any_host": subsystem.allow_any_host,
                "serial_number": subsystem.serial,
                "model_number": subsystem.model,
                "max_namespaces": subsystem.max_namespaces,
            }),
        ));
        for host in &subsystem.hosts {
            calls.push(call("nvmf_subsystem_add_host", json!({ "nqn": nqn, "host": host })));
        }
        for one in &subsystem.namespaces {
            let params = json!({ "nqn": nqn, "namespace": namespace(one) });
            calls.push(call("nvmf_subsystem_add_ns", params));
        }
        for listener in &subsystem.listeners {
            let params = json!({ "nqn": nqn, "listen_address": address(listener) });
            calls.push(call("nvmf_subsystem_add_listener", params));
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    const NQN: &str = "nqn.2026-11.com.example:disks";

    /// Makes the change that a call asks for; the answer.
    fn call(config: &mut NvmfConfig, method: &str, params: Value) -> RpcResult<Value> {
        let Value::Object(params) = params else { panic!("an object") };
        match super::super::calls::parse(method, params)? {
            Call::Nvmf(change) => {
                let mut next = config.clone();
                let answer = change.apply(&mut next, |bdev| bdev.starts_with("disk").then_some([3; 16]))?;
                *config = next;
                Ok(answer)
            }
            other => panic!("{method} is no change of NVMe over Fabrics: {other:?}"),
        }
    }

    fn code(config: &mut NvmfConfig, method: &str, params: Value) -> i32 {
        let before = config.clone();
        let code = call(config, method, params.clone()).expect_err(method).code;
        assert_eq!(*config, before, "a refused {method} changes nothing");
        code
    }

    #[test]
    fn what_spdk_s_client_sends_is_taken() {
        let mut config = NvmfConfig::default();
        // As the clients of 25.05 and 26.09 were seen to send them.
        let transport = json!({
            "trtype": "TCP", "max_io_size": 2_097_152, "io_unit_size": 2_097_152, "zcopy": false, "no_srq": false,
            "c2h_success": true, "dif_insert_or_strip": false, "no_wr_batching": false,
            "disable_mappable_bar0": false, "disable_adaptive_irq": false, "disable_shadow_doorbells": false,
            "disable_command_passthru": false,
        });
        call(&mut config, "nvmf_create_transport", transport).unwrap();
        let subsystem = json!({
            "nqn": NQN, "serial_number": "S", "model_number": "M", "allow_any_host": true, "ana_reporting": false,
            "passthrough": false, "enable_nssr": false,
        });
        call(&mut config, "nvmf_create_subsystem", subsystem).unwrap();
        let namespace = |bdev: &str| {
            let inner = json!({ "bdev_name": bdev, "no_auto_visible": false, "hide_metadata": false });
            json!({ "nqn": NQN, "namespace": inner })
        };
        assert_eq!(call(&mut config, "nvmf_subsystem_add_ns", namespace("disk1")), Ok(json!(1)));
        assert_eq!(call(&mut config, "nvmf_subsystem_add_ns", namespace("disk2")), Ok(json!(2)));
        let listener = json!({
            "nqn": NQN, "secure_channel": false,
            "listen_address": { "trtype": "tcp", "traddr": "127.0.0.1", "trsvcid": "4420" },
        });
        call(&mut config, "nvmf_subsystem_add_listener", listener.clone()).unwrap();
        let [subsystem] = &config.subsystems[..] else { panic!("one subsystem") };
        assert_eq!((subsystem.namespaces[0].uuid, subsystem.namespaces[0].nguid), ([3; 16], [3; 16]));
        assert_eq!(subsystem.listeners, ["127.0.0.1:4420".parse().unwrap()]);
        let told = subsystems(&config, Some(NQN)).unwrap();
        assert_eq!(told[0]["namespaces"][1]["name"], "disk2");
        assert_eq!(told[0]["listen_addresses"][0]["trsvcid"], "4420");
        call(&mut config, "nvmf_subsystem_remove_ns", json!({ "nqn": NQN, "nsid": 1 })).unwrap();
        assert_eq!(
            call(&mut config, "nvmf_subsystem_add_ns", namespace("disk3")),
            Ok(json!(1)),
            "it is free"
        );
        let address = json!({ "nqn": NQN, "listen_address": listener["listen_address"] });
        call(&mut config, "nvmf_subsystem_remove_listener", address).unwrap();
        call(&mut config, "nvmf_delete_subsystem", json!({ "nqn": NQN })).unwrap();
        assert!(config.subsystems.is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let mut config = NvmfConfig::default();
        let listener = |traddr: &str, port: &str| json!({ "nqn": NQN, "listen_address": { "trtype": "tcp", "traddr": traddr, "trsvcid": port } });
        let namespace = |inner: Value| json!({ "nqn": NQN, "namespace": inner });
        call(&mut config, "nvmf_create_subsystem", json!({ "nqn": NQN, "max_namespaces": 1 })).unwrap();
        let exists = Errno::Exists.code();
        let missing = Errno::NoSuchDevice.code();
        let invalid = super::super::error::INVALID_PARAMS;
        let other = "nqn.2026-11.com.example:other";
        assert_eq!(code(&mut config, "nvmf_subsystem_add_listener", listener("127.0.0.1", "1")), missing);
        call(&mut config, "nvmf_create_transport", json!({ "trtype": "tcp" })).unwrap();
        call(&mut config, "nvmf_subsystem_add_listener", listener("127.0.0.1", "1")).unwrap();
        call(&mut config, "nvmf_subsystem_add_ns", namespace(json!({ "bdev_name": "disk" }))).unwrap();
        for (method, params, expected) in [
            ("nvmf_create_transport", json!({ "trtype": "tcp" }), exists),
            ("nvmf_create_transport", json!({ "trtype": "rdma" }), invalid),
            ("nvmf_create_transport", json!({ "trtype": "tcp", "dif_insert_or_strip": true }), invalid),
            ("nvmf_create_subsystem", json!({ "nqn": NQN }), exists),
            ("nvmf_create_subsystem", json!({ "nqn": "disks" }), invalid),
            ("nvmf_create_subsystem", json!({ "nqn": DISCOVERY_NQN }), invalid),
            ("nvmf_create_subsystem", json!({ "nqn": other, "serial_number": "é" }), invalid),
            ("nvmf_create_subsystem", json!({ "nqn": other, "ana_reporting": true }), invalid),
            ("nvmf_delete_subsystem", json!({ "nqn": other }), missing),
            ("nvmf_subsystem_add_listener", listener("127.0.0.1", "1"), exists),
            ("nvmf_subsystem_add_listener", listener("localhost", "1"), invalid),
            ("nvmf_subsystem_add_listener", listener("127.0.0.1", "65536"), invalid),
            ("nvmf_subsystem_remove_listener", listener("127.0.0.1", "2"), missing),
            ("nvmf_subsystem_add_ns", namespace(json!({ "bdev_name": "disk9" })), Errno::NoSpace.code()),
            ("nvmf_subsystem_add_ns", namespace(json!({ "bdev_name": "disk" })), Errno::Busy.code()),
            ("nvmf_subsystem_add_ns", namespace(json!({ "bdev_name": "disk9", "nsid": 1 })), exists),
            ("nvmf_subsystem_add_ns", namespace(json!({ "bdev_name": "disk9", "nsid": 2 })), invalid),
            ("nvmf_subsystem_add_ns", namespace(json!({ "bdev_name": "disk9", "nguid": "12" })), invalid),
            ("nvmf_subsystem_add_ns", namespace(json!({ "bdev_name": "disk9", "ptpl_file": "x" })), invalid),
            ("nvmf_subsystem_add_ns", json!({ "nqn": NQN, "namespace": 1 }), invalid),
            ("nvmf_subsystem_remove_ns", json!({ "nqn": NQN, "nsid": 7 }), missing),
            ("nvmf_subsystem_remove_host", json!({ "nqn": NQN, "host": other }), missing),
            ("nvmf_subsystem_allow_any_host", json!({ "nqn": other }), missing),
        ] {
            assert_eq!(code(&mut config, method, params.clone()), expected, "{method} {params}");
        }
    }
}
