//! All that is configured, as cores share it, and the log page by which hosts find subsystems (section 5.16.1.23).

use super::Subsystem;
use crate::nvme::bits::{CNTLID_DYNAMIC, DISCOVERY_NQN, DiscoveryEntry, DiscoveryHeader};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use runtime::Platform;

/// Entries of an admin queue that the log page promises.
const ADMIN_QUEUE_ENTRIES: u16 = 32;

/// Where a subsystem can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The subsystem's name.
    pub subnqn: String,
    /// Where the target listens for it.
    pub address: SocketAddr,
    /// What hosts are told to dial; as a rule the same.
    pub advertised: SocketAddr,
    /// Its number, for hosts.
    pub id: u16,
}

/// Everything that is configured. Never changed: another one takes its place, with another generation.
pub struct Directory<P: Platform> {
    /// Another number whenever anything changed.
    pub generation: u64,
    /// Another number whenever the log page changed, for some host.
    pub log_generation: u64,
    /// The subsystems.
    pub subsystems: Vec<Arc<Subsystem<P>>>,
    /// Where they are reached.
    pub ports: Vec<Port>,
}

impl<P: Platform> Directory<P> {
    /// The subsystem of a name.
    #[must_use]
    pub fn subsystem(&self, nqn: &str) -> Option<&Arc<Subsystem<P>>> {
        self.subsystems.iter().find(|subsystem| subsystem.nqn == nqn)
    }

    /// The subsystem of a number, as it is now.
    #[must_use]
    pub fn numbered(&self, number: u64) -> Option<&Arc<Subsystem<P>>> {
        self.subsystems.iter().find(|subsystem| subsystem.number == number)
    }

    /// Whether a subsystem, or discovery, is reached at an address that the target listens at.
    #[must_use]
    pub fn is_reached(&self, nqn: &str, at: SocketAddr) -> bool {
        nqn == DISCOVERY_NQN || self.ports.iter().any(|port| port.subnqn == nqn && port.address == at)
    }

    /// The discovery log page for a host: it sees what it may use.
    #[must_use]
    pub(super) fn log_page(&self, hostnqn: &str) -> Vec<u8> {
        let may = |port: &&Port| {
            self.subsystem(&port.subnqn).is_some_and(|subsystem| subsystem.hosts.allow(hostnqn))
        };
        let ports = self.ports.iter().filter(may).collect::<Vec<_>>();
        let mut page = vec![0; DiscoveryHeader::LEN + ports.len() * DiscoveryEntry::LEN];
        let header = DiscoveryHeader {
            genctr: self.log_generation,
            numrec: ports.len() as u64,
            ..DiscoveryHeader::default()
        };
        header.encode(&mut page);
        for (port, entry) in ports.iter().zip(page[DiscoveryHeader::LEN..].chunks_mut(DiscoveryEntry::LEN)) {
            record(port).encode(entry);
        }
        page
    }
}

fn record(port: &Port) -> DiscoveryEntry {
    let Port { subnqn, advertised, id, .. } = port;
    DiscoveryEntry {
        trtype: DiscoveryEntry::TRTYPE_TCP,
        adrfam: if advertised.is_ipv4() { DiscoveryEntry::ADRFAM_IPV4 } else { DiscoveryEntry::ADRFAM_IPV6 },
        subtype: DiscoveryEntry::SUBTYPE_NVM,
        portid: *id,
        cntlid: CNTLID_DYNAMIC,
        asqsz: ADMIN_QUEUE_ENTRIES,
        trsvcid: padded(&format!("{}", advertised.port()), b' '),
        subnqn: padded(subnqn, 0),
        traddr: padded(&advertised.ip().to_string(), b' '),
        ..DiscoveryEntry::default()
    }
}

/// The bytes of a text, cut or filled to a field's length.
pub(super) fn padded<const N: usize>(text: &str, fill: u8) -> [u8; N] {
    let mut field = [fill; N];
    let len = text.len().min(N);
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    field
}
