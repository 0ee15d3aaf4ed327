//! What a controller says of itself and of its namespaces (section 5.17), from its profile.

use super::{Controller, Namespace, lies};
use crate::faults::FaultKind;
use crate::world::World;
use lies::Said;
use stack::nvme::bits::{
    AsyncEventConfig, Command, IDENTIFY_LEN, IdDescriptor, IdentifyController, IdentifyNamespace,
    IdentifyNvmController, LbaFormat, Status, Version, cns,
};

/// PCI vendor and device: those of QEMU's controller.
pub(super) const VENDOR: u16 = 0x1b36;
/// The device.
pub(super) const DEVICE: u16 = 0x0010;
/// Firmware revision.
pub(super) const FIRMWARE: &[u8; 8] = b"8.2.1   ";

/// Text padded with spaces.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [b' '; N];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

/// A namespace's identifier that is its own in the world.
fn unique<const N: usize>(drive: u32, nsid: u32) -> [u8; N] {
    let mut bytes = [0x5a; N];
    bytes[0] = drive as u8;
    bytes[N - 1] = nsid as u8;
    bytes
}

impl Controller {
    fn describe_controller(&self, world: &World) -> IdentifyController {
        let profile = &self.profile;
        let bit = |is: bool, bit: u16| if is { bit } else { 0 };
        let (major, minor, tertiary) = profile.version;
        let version =
            Version::default().with_mjr(major.into()).with_mnr(minor.into()).with_ter(tertiary.into());
        let mut subnqn = [0; 256];
        let name = format!("nqn.2014-08.org.nvmexpress:uuid:5a5a5a5a-0000-4000-8000-{:012x}", self.drive);
        subnqn[..name.len()].copy_from_slice(name.as_bytes());
        IdentifyController {
            vid: VENDOR,
            ssvid: 0x1af4,
            sn: padded(&format!("SIM{:05}", self.drive)),
            mn: padded("Simulated NVMe Controller"),
            fr: *FIRMWARE,
            mdts: profile.mdts,
            ver: version.0,
            rtd3e: (profile.ready_ns.1 / 1000) as u32,
            oaes: AsyncEventConfig::default().with_namespace_attribute(1).with_firmware_activation(1).0,
            cntrltype: u8::from(profile.version >= (1, 4, 0)),
            crdt: profile.retry_delays,
            oacs: bit(self.has_shadow(), IdentifyController::OACS_DOORBELL_BUFFER),
            acl: profile.aborts - 1,
            aerl: profile.events - 1,
            elpe: 7,
            sqes: 0x66,
            cqes: 0x44,
            nn: world.nvme(self.drive).namespaces.len() as u32,
            oncs: bit(profile.compare, IdentifyController::ONCS_COMPARE)
                | bit(profile.deallocate, IdentifyController::ONCS_DATASET_MANAGEMENT)
                | bit(profile.write_zeroes, IdentifyController::ONCS_WRITE_ZEROES),
            vwc: if profile.write_cache { IdentifyController::VWC_PRESENT } else { 0 },
            awun: profile.atomic - 1,
            awupf: profile.atomic_power_fail - 1,
            sgls: profile.sgls,
            subnqn,
            ..IdentifyController::default()
        }
    }

    fn describe_namespace(&self, nsid: u32, namespace: &Namespace) -> IdentifyNamespace {
        let profile = &namespace.profile;
        let own = profile.atomic_power_fail;
        let mut described = IdentifyNamespace {
            nsze: profile.blocks,
            ncap: profile.blocks,
            nuse: profile.blocks,
            nsfeat: if own.is_some() { IdentifyNamespace::NSFEAT_ATOMIC } else { 0 },
            dlfeat: if profile.deallocated_is_zero { 1 } else { 0 },
            nawun: own.map_or(0, |own| own.max(self.profile.atomic) - 1),
            nawupf: own.map_or(0, |own| own - 1),
            nabsn: own.map_or(0, |_| profile.atomic_boundary.saturating_sub(1)),
            nabspf: own.map_or(0, |_| profile.atomic_boundary.saturating_sub(1)),
            nabo: own.map_or(0, |_| profile.atomic_offset),
            noiob: profile.boundary,
            dps: profile.protection as u8,
            nsattr: if profile.read_only { IdentifyNamespace::NSATTR_WRITE_PROTECTED } else { 0 },
            nguid: unique(self.drive, nsid),
            eui64: unique(self.drive, nsid),
            ..IdentifyNamespace::default()
        };
        described.lbaf[0] =
            LbaFormat::default().with_lbads(profile.block_size.ilog2()).with_ms(profile.metadata.into()).0;
        described
    }

    /// Identify: the structure asked for.
    pub(super) fn identify(&self, world: &mut World, command: &Command) -> Result<Vec<u8>, Status> {
        let mut bytes = vec![0; IDENTIFY_LEN];
        let count = world.nvme(self.drive).namespaces.len() as u32;
        let nsid = command.nsid;
        let namespace = || {
            let there = (1..=count).contains(&nsid);
            there
                .then(|| &world.nvme(self.drive).namespaces[nsid as usize - 1])
                .ok_or(Status::INVALID_NAMESPACE.with_dnr(1))
        };
        let said = match command.cdw10[0] as u8 {
            cns::NAMESPACE => {
                let namespace = namespace()?;
                // An inactive one is described by zeroes.
                if namespace.attached {
                    self.describe_namespace(nsid, namespace).encode(&mut bytes);
                }
                Said::Namespace
            }
            cns::CONTROLLER => {
                self.describe_controller(world).encode(&mut bytes);
                Said::Controller
            }
            cns::ACTIVE_NAMESPACES => {
                let namespaces = &world.nvme(self.drive).namespaces;
                let active = (1..=count).filter(|id| *id > nsid && namespaces[*id as usize - 1].attached);
                for (index, id) in active.take(IDENTIFY_LEN / 4).enumerate() {
                    bytes[4 * index..4 * index + 4].copy_from_slice(&id.to_le_bytes());
                }
                Said::NamespaceList
            }
            cns::NAMESPACE_DESCRIPTORS if self.profile.version >= (1, 3, 0) => {
                namespace()?;
                let uuid: [u8; 16] = unique(self.drive, nsid);
                let at = IdDescriptor { nidt: IdDescriptor::UUID, nid: &uuid }.encode(&mut bytes);
                IdDescriptor { nidt: IdDescriptor::CSI, nid: &[0] }.encode(&mut bytes[at..]);
                Said::Descriptors
            }
            cns::COMMAND_SET_CONTROLLER
                if self.profile.version >= (2, 0, 0) && command.cdw10[1] >> 24 == 0 =>
            {
                let limits = IdentifyNvmController {
                    wzsl: self.profile.write_zeroes_limit,
                    dmrsl: self.profile.range_limit,
                    ..IdentifyNvmController::default()
                };
                limits.encode(&mut bytes);
                Said::NvmController
            }
            _ => return Err(Status::INVALID_FIELD.with_dnr(1)),
        };
        self.maybe_lie(world, said, &mut bytes);
        Ok(bytes)
    }

    /// Perhaps a wrong value gets into what is said.
    pub(super) fn maybe_lie(&self, world: &mut World, said: Said, bytes: &mut [u8]) {
        if let Some(parameter) = world.faults.strike(FaultKind::NvmeLie, lies::draw) {
            lies::distort(said, bytes, parameter);
        }
    }
}
