//! NVMe over Fabrics, seen from the target: the front on this core, what it was told to serve, and what became of that.
//!
//! All that is served is told as a whole, whenever anything of it changes: an operator's change, a bdev that came, went, or
//! has another size. The front is started with the transport and lives as long as the target.

use super::inventory::Inventory;
use crate::block::{Disk, Registry};
use crate::control::nvmf::{NvmfConfig, SubsystemConfig};
use crate::nvme::controller::{Hosts, Namespace, Port, Subsystem};
use crate::nvme::tcp::{ArenaSizes, Front, Order, Report, Wanted};
use crate::outbox::Outbox;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;
use runtime::{Instant, Platform, Receiver, Wakes};

/// Messages that wait for the front, and for the target.
const MESSAGES_MAX: usize = 16;
/// When an address where nobody could listen is tried again.
const LISTEN_RETRY: Duration = Duration::from_secs(1);

/// The front's standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It does what it is told.
    Serving,
    /// It was told to end.
    Stopping,
    /// It is no more.
    Gone,
}

struct Link<P: Platform> {
    orders: Outbox<P, Order<P>>,
    reports: P::Receiver<Report>,
    standing: Standing,
}

/// What the target has of NVMe over Fabrics.
pub(super) struct Nvmf<P: Platform> {
    /// Once there is a transport.
    link: Option<Link<P>>,
    /// The newest that was told, and the newest that is in force.
    told: u64,
    settled: u64,
    /// Addresses where nobody could listen, of what is in force.
    refused: Vec<(SocketAddr, runtime::Error)>,
    /// When those are tried again.
    retry_at: Option<Instant>,
    /// Numbers of subsystems, by name: another one when the name is used again.
    numbers: BTreeMap<String, u64>,
    next_number: u64,
    /// Counts what namespaces on a bdev cannot see of it: sizes.
    versions: BTreeMap<String, u64>,
}

impl<P: Platform> Default for Nvmf<P> {
    fn default() -> Self {
        Self {
            link: None,
            told: 0,
            settled: 0,
            refused: Vec::new(),
            retry_at: None,
            numbers: BTreeMap::new(),
            next_number: 1,
            versions: BTreeMap::new(),
        }
    }
}

impl<P: Platform> Nvmf<P> {
    fn start(&mut self, platform: &P, version: &'static str) {
        let (orders, order) = platform.mailbox(MESSAGES_MAX);
        let (report, reports) = platform.mailbox(MESSAGES_MAX);
        let constructor = move |platform: P| -> Box<dyn runtime::Poller<P>> {
            Box::new(Front::new(platform, order, report, ArenaSizes::default(), version))
        };
        platform.start(platform.here(), Box::new(constructor));
        self.link = Some(Link { orders: Outbox::new(orders), reports, standing: Standing::Serving });
    }

    /// Serves what `config` says, as far as its bdevs are there. The number by which it is in force.
    pub(super) fn want(
        &mut self,
        platform: &P,
        version: &'static str,
        config: &NvmfConfig,
        registry: &mut Registry<P>,
    ) -> u64 {
        self.told += 1;
        if self.link.is_none() {
            if !config.has_tcp {
                self.settled = self.told;
                return self.told;
            }
            self.start(platform, version);
        }
        self.numbers.retain(|nqn, _| config.subsystem(nqn).is_some());
        let mut ids = 0..=u16::MAX;
        let mut ports = Vec::new();
        for subsystem in &config.subsystems {
            for address in &subsystem.listeners {
                let id = ids.next().unwrap_or(0);
                ports.push(Port {
                    subnqn: subsystem.nqn.clone(),
                    address: *address,
                    advertised: *address,
                    id,
                });
            }
        }
        let subsystems = config.subsystems.iter().map(|one| self.subsystem(one, registry, version)).collect();
        if let Some(link) = &mut self.link {
            link.orders.push(Order::Want(Wanted { version: self.told, subsystems, ports }));
        }
        self.told
    }

    fn subsystem(
        &mut self,
        config: &SubsystemConfig,
        registry: &mut Registry<P>,
        version: &'static str,
    ) -> Subsystem<P> {
        let next = &mut self.next_number;
        let number = *self.numbers.entry(config.nqn.clone()).or_insert_with(|| {
            *next += 1;
            *next - 1
        });
        let namespaces = config.namespaces.iter().map(|namespace| {
            let is_there = registry.get(&namespace.bdev).is_some();
            let bdev = match is_there.then(|| registry.claim(&namespace.bdev, &config.nqn, false)) {
                Some(Ok(())) => registry.get(&namespace.bdev).map(Disk::bdev),
                Some(Err(refused)) => {
                    let holder = &refused.holder;
                    tracing::error!(subsystem = %config.nqn, bdev = %namespace.bdev, %holder, "the bdev is in use");
                    None
                }
                None => None,
            };
            Namespace {
                id: namespace.nsid,
                version: self.versions.get(&namespace.bdev).copied().unwrap_or(0),
                bdev,
                uuid: namespace.uuid,
                nguid: namespace.nguid,
                eui64: namespace.eui64,
            }
        });
        Subsystem {
            nqn: config.nqn.clone(),
            number,
            serial: config.serial.clone(),
            model: config.model.clone(),
            firmware: version,
            hosts: if config.allow_any_host { Hosts::Any } else { Hosts::Named(config.hosts.clone()) },
            namespaces: namespaces.collect(),
            namespaces_max: config.max_namespaces,
        }
    }

    /// A bdev is not what it was: its namespaces tell their hosts with the next order.
    pub(super) fn bdev_changed(&mut self, bdev: &str) {
        *self.versions.entry(bdev.into()).or_default() += 1;
    }

    /// Whether what was told by that number is in force.
    pub(super) fn is_settled(&self, number: u64) -> bool {
        self.settled >= number
    }

    /// Whether everything that was told is in force.
    pub(super) fn is_quiet(&self) -> bool {
        self.settled == self.told
    }

    /// Whether anything was ever told.
    pub(super) fn was_told(&self) -> bool {
        self.told > 0
    }

    /// Why nobody listens at an address.
    pub(super) fn refused(&self, address: SocketAddr) -> Option<runtime::Error> {
        self.refused.iter().find(|(other, _)| *other == address).map(|(_, error)| *error)
    }

    /// Sends and hears. Whether there was work.
    pub(super) fn poll(&mut self, now: Instant) -> bool {
        let Some(link) = &mut self.link else { return false };
        let mut worked = link.orders.flush();
        while let Some(report) = link.reports.receive() {
            worked = true;
            match report {
                Report::Settled { version, refused } => {
                    self.settled = self.settled.max(version);
                    self.retry_at = (!refused.is_empty()).then(|| now.after(LISTEN_RETRY));
                    self.refused = refused;
                }
                Report::GroupDied(_) => {}
                Report::Stopped | Report::Died => {
                    if link.standing == Standing::Serving {
                        tracing::error!(
                            "NVMe over Fabrics died with a panic; only a restart of the target brings it back"
                        );
                    }
                    link.standing = Standing::Gone;
                    self.settled = self.told;
                }
            }
        }
        worked
    }

    /// Whether addresses shall be tried again now.
    pub(super) fn take_retry(&mut self, now: Instant) -> bool {
        let due = self.retry_at.is_some_and(|at| now >= at);
        if due {
            self.retry_at = None;
        }
        due
    }

    /// When to poll again though nothing changed.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let sends = self.link.as_ref().and_then(|link| link.orders.retry_at(now));
        sends.into_iter().chain(self.retry_at).min()
    }

    /// Ends it; whether it is gone.
    pub(super) fn stop(&mut self) -> bool {
        let Some(link) = &mut self.link else { return true };
        if link.standing == Standing::Serving {
            link.standing = Standing::Stopping;
            link.orders.push(Order::Stop);
            link.orders.flush();
        }
        self.retry_at = None;
        link.standing == Standing::Gone
    }

    pub(super) fn arm(&self, wakes: &mut P::Wakes) {
        if let Some(link) = &self.link {
            wakes.mailbox(&link.reports);
        }
    }
}

impl<P: Platform> Inventory<P> {
    /// Serves over NVMe/TCP what the configuration says now, on the bdevs that are there now.
    pub(super) fn serve_nvmf(&mut self) {
        let config = self.config.nvmf.clone();
        self.want_nvmf(&config);
    }

    /// Serves over NVMe/TCP what a configuration says; the number by which that is in force.
    pub(super) fn want_nvmf(&mut self, config: &NvmfConfig) -> u64 {
        let Self { nvmf, platform, options, registry, .. } = self;
        nvmf.want(platform, options.version, config, registry)
    }

    /// A bdev came, went, or has another size: its namespaces are told, if it has any and they are served already.
    pub(super) fn nvmf_bdev_changed(&mut self, bdev: &str) {
        if self.nvmf.was_told() && self.config.nvmf.namespaces().any(|(_, namespace)| namespace.bdev == bdev)
        {
            self.nvmf.bdev_changed(bdev);
            self.serve_nvmf();
        }
    }
}
