//! What Identify gives (section 5.17): of the controller, of its namespaces, and lists of them.

use super::discovery::padded;
use super::properties::VERSION;
use super::{Association, EVENT_REQUESTS_MAX, Limits, Namespace, Subsystem, refused};
use crate::block::{Bdev, Geometry};
use crate::nvme::bits::{
    AsyncEventConfig, Command, DISCOVERY_NQN, IDENTIFY_LEN, IdDescriptor, IdentifyController,
    IdentifyNamespace, IndependentNamespace, LbaFormat, NAMESPACE_LIST_ENTRIES, NSID_MAX, PAGE, Status, cns,
};
use alloc::vec;
use alloc::vec::Vec;
use runtime::Platform;

/// The command set of namespaces here (CSI): NVM.
const CSI_NVM: u8 = 0;
/// The keep alive timer's grain: a second, in 100 ms.
const KEEP_ALIVE_GRAIN: u16 = 10;
/// CTRATT bit 0: host identifiers of 128 bits, which fabrics want.
const CTRATT_HOST_ID_128: u32 = 1 << 0;
/// FRMW: one slot, which is read-only.
const FRMW_ONE_SLOT: u8 = 1 << 1 | 1 << 0;
/// SGLS bit 18: a descriptor may be longer than what is transferred.
const SGLS_LONGER: u32 = 1 << 18;

/// The events that an I/O controller, or a discovery controller, tells.
pub(super) fn events_known(is_discovery: bool) -> AsyncEventConfig {
    let none = AsyncEventConfig(0);
    if is_discovery { none.with_discovery_change(1) } else { none.with_namespace_attribute(1) }
}

/// What both kinds of controller say.
fn controller(association: &Association, limits: &Limits, is_discovery: bool) -> IdentifyController {
    IdentifyController {
        cmic: IdentifyController::CMIC_PORTS | IdentifyController::CMIC_CONTROLLERS,
        mdts: (u64::from(limits.transfer_bytes) / PAGE).ilog2() as u8,
        cntlid: association.cntlid,
        ver: VERSION.0,
        oaes: events_known(is_discovery).0,
        ctratt: CTRATT_HOST_ID_128,
        aerl: EVENT_REQUESTS_MAX as u8 - 1,
        lpa: IdentifyController::LPA_EXTENDED,
        kas: KEEP_ALIVE_GRAIN,
        maxcmd: limits.queue_entries,
        sgls: IdentifyController::SGLS_ANY_ALIGNMENT
            | SGLS_LONGER
            | IdentifyController::SGLS_OFFSET
            | IdentifyController::SGLS_TRANSPORT,
        subnqn: padded(&association.subnqn, 0),
        ioccsz: (64 + limits.capsule_bytes) / 16,
        iorcsz: 1,
        msdbd: 1,
        ..IdentifyController::default()
    }
}

/// Identify Controller of a discovery controller.
pub(super) fn discovery(association: &Association, limits: &Limits, firmware: &str) -> Vec<u8> {
    let identity = IdentifyController {
        fr: padded(firmware, b' '),
        sn: padded("0", b' '),
        mn: padded("Reprise discovery", b' '),
        cntrltype: IdentifyController::TYPE_DISCOVERY,
        subnqn: padded(DISCOVERY_NQN, 0),
        ..controller(association, limits, true)
    };
    encoded(|bytes| identity.encode(bytes))
}

/// Identify of an I/O controller.
pub(super) fn identify<P: Platform>(
    command: &Command,
    association: &Association,
    limits: &Limits,
    subsystem: &Subsystem<P>,
) -> Result<Vec<u8>, Status> {
    let (what, csi) = (command.cdw10[0] as u8, (command.cdw10[1] >> 24) as u8);
    let of_command_set = matches!(
        what,
        cns::COMMAND_SET_NAMESPACE | cns::COMMAND_SET_CONTROLLER | cns::COMMAND_SET_ACTIVE_NAMESPACES
    );
    if of_command_set && csi != CSI_NVM {
        return Err(refused(Status::INVALID_FIELD));
    }
    match what {
        cns::CONTROLLER => Ok(io_controller(association, limits, subsystem)),
        // No limits but those of Identify Controller, and nothing that the NVM command set does not say already.
        cns::COMMAND_SET_CONTROLLER => Ok(vec![0; IDENTIFY_LEN]),
        cns::COMMAND_SETS => Ok(encoded(|bytes| bytes[0] = 1 << CSI_NVM)),
        cns::ACTIVE_NAMESPACES | cns::COMMAND_SET_ACTIVE_NAMESPACES => list(command.nsid, subsystem),
        cns::NAMESPACE => namespace(command.nsid, subsystem, |namespace, bdev, bytes| {
            nvm_namespace(namespace, &bdev.geometry()).encode(bytes);
        }),
        cns::COMMAND_SET_NAMESPACE => namespace(command.nsid, subsystem, |_, _, _| {}),
        cns::INDEPENDENT_NAMESPACE => namespace(command.nsid, subsystem, |_, bdev, bytes| {
            let nsattr = write_protected(&bdev.geometry());
            let nmic = IdentifyNamespace::NMIC_SHARED;
            let nstat = IndependentNamespace::NSTAT_READY;
            IndependentNamespace { nmic, nsattr, nstat, ..Default::default() }.encode(bytes);
        }),
        cns::NAMESPACE_DESCRIPTORS => {
            if subsystem.namespace(command.nsid).is_none() {
                return Err(refused(Status::INVALID_NAMESPACE));
            }
            namespace(command.nsid, subsystem, |namespace, _, bytes| descriptors(namespace, bytes))
        }
        _ => Err(refused(Status::INVALID_FIELD)),
    }
}

fn encoded(encode: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = vec![0; IDENTIFY_LEN];
    encode(&mut bytes);
    bytes
}

fn io_controller<P: Platform>(
    association: &Association,
    limits: &Limits,
    subsystem: &Subsystem<P>,
) -> Vec<u8> {
    let common = controller(association, limits, false);
    let identity = IdentifyController {
        sn: padded(&subsystem.serial, b' '),
        mn: padded(&subsystem.model, b' '),
        fr: padded(subsystem.firmware, b' '),
        cntrltype: IdentifyController::TYPE_IO,
        acl: 3,
        frmw: FRMW_ONE_SLOT,
        lpa: common.lpa | IdentifyController::LPA_EFFECTS,
        sqes: 0x66,
        cqes: 0x44,
        nn: subsystem.namespaces_max,
        mnan: subsystem.namespaces_max,
        oncs: IdentifyController::ONCS_DATASET_MANAGEMENT | IdentifyController::ONCS_WRITE_ZEROES,
        // Whatever the disks have now: one that needs to be flushed may come.
        vwc: IdentifyController::VWC_PRESENT | IdentifyController::VWC_FLUSH_ALL_REFUSED,
        ofcs: IdentifyController::OFCS_DISCONNECT,
        ..common
    };
    encoded(|bytes| identity.encode(bytes))
}

/// The identifiers above one of the active namespaces (section 5.17.2.2).
fn list<P: Platform>(above: u32, subsystem: &Subsystem<P>) -> Result<Vec<u8>, Status> {
    if above >= NSID_MAX {
        return Err(refused(Status::INVALID_NAMESPACE));
    }
    let ids = subsystem.active().filter(|id| *id > above).take(NAMESPACE_LIST_ENTRIES);
    Ok(encoded(|bytes| {
        for (entry, id) in bytes.chunks_exact_mut(4).zip(ids) {
            entry.copy_from_slice(&id.to_le_bytes());
        }
    }))
}

/// A structure about one namespace: zeroes for one that is not active, an error for one that cannot be (section 5.17.2.1).
fn namespace<P: Platform>(
    id: u32,
    subsystem: &Subsystem<P>,
    encode: impl FnOnce(&Namespace<P>, &dyn Bdev<P>, &mut [u8]),
) -> Result<Vec<u8>, Status> {
    if id == 0 || id > subsystem.namespaces_max {
        return Err(refused(Status::INVALID_NAMESPACE));
    }
    Ok(encoded(|bytes| {
        if let Some((namespace, bdev)) = subsystem.namespace(id) {
            encode(namespace, &**bdev, bytes);
        }
    }))
}

fn write_protected(geometry: &Geometry) -> u8 {
    if geometry.read_only { IdentifyNamespace::NSATTR_WRITE_PROTECTED } else { 0 }
}

fn nvm_namespace<P: Platform>(namespace: &Namespace<P>, geometry: &Geometry) -> IdentifyNamespace {
    let mut lbaf = [0; 64];
    lbaf[0] = LbaFormat::default().with_lbads(geometry.block_size.ilog2()).0;
    // Preferred sizes, where the medium's blocks are larger (0's based).
    let preferred = geometry.physical_block_size / geometry.block_size;
    let prefers = preferred > 1;
    let npwg = if prefers { u16::try_from(preferred - 1).unwrap_or(u16::MAX) } else { 0 };
    IdentifyNamespace {
        nsze: geometry.num_blocks,
        ncap: geometry.num_blocks,
        nuse: geometry.num_blocks,
        nsfeat: if prefers { IdentifyNamespace::NSFEAT_PREFERRED } else { 0 },
        nmic: IdentifyNamespace::NMIC_SHARED,
        dlfeat: if geometry.write_zeroes { IdentifyNamespace::DLFEAT_DEAC } else { 0 },
        npwg,
        npwa: npwg,
        nsattr: write_protected(geometry),
        nguid: namespace.nguid,
        eui64: namespace.eui64,
        lbaf,
        ..IdentifyNamespace::default()
    }
}

fn descriptors<P: Platform>(namespace: &Namespace<P>, bytes: &mut [u8]) {
    let Namespace { uuid, nguid, eui64, .. } = namespace;
    let all: [(u8, &[u8]); 4] = [
        (IdDescriptor::EUI64, eui64),
        (IdDescriptor::NGUID, nguid),
        (IdDescriptor::UUID, uuid),
        (IdDescriptor::CSI, &[CSI_NVM]),
    ];
    let mut at = 0;
    for (nidt, nid) in all {
        if nidt == IdDescriptor::CSI || nid.iter().any(|byte| *byte != 0) {
            at += IdDescriptor { nidt, nid }.encode(&mut bytes[at..]);
        }
    }
}
