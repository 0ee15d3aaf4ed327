//! What the parts of the target share: what it was asked to be, what there is of it, and how the one becomes the other.

use super::Options;
use super::controllers::{Controllers, Standing};
use super::drives::{Change, Drives, Entry};
use super::nvmf::Nvmf;
use super::pending::Pending;
use crate::block::{ClaimRefused, Disk, FileBdev, FileParameters, MallocBdev, NullBdev, Registry};
use crate::control::config::{BdevConfig, BdevKind, Config, ControllerConfig};
use crate::control::cpumask;
use crate::control::error::{Errno, RpcError, RpcResult};
use crate::control::state::PlatformState;
use crate::events::Kind;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use runtime::{CoreId, Directory, Event, FileInfo, Platform};

/// The shared part of the target. Lives on the first core.
pub(super) struct Inventory<P: Platform> {
    pub(super) platform: P,
    pub(super) options: Options,
    /// What was acknowledged, and is in the state directory.
    pub(super) config: Config,
    /// The state directory; `None` while a job has it.
    pub(super) state: Option<PlatformState<P>>,
    /// The bdevs that are there.
    pub(super) registry: Registry<P>,
    /// The bdevs that are in the state directory and not there yet.
    pub(super) pending: Pending<P>,
    pub(super) controllers: Controllers<P>,
    /// The NVMe controllers that are wanted, there or not.
    pub(super) drives: Drives<P>,
    /// What is served over NVMe/TCP.
    pub(super) nvmf: Nvmf<P>,
}

/// What [`Inventory::begin_save`] gives: the state directory comes back with the outcome.
pub(super) type SaveJob<P> = <P as Platform>::Job<(PlatformState<P>, runtime::Result<()>)>;

/// What making the machine's memory gives, and whether it was there with its content.
pub(super) type MemoryJob<P> =
    <P as Platform>::Job<runtime::Result<(<<P as Platform>::Directory as Directory>::Memory, bool)>>;

impl<P: Platform> Inventory<P> {
    /// Writes an event of the control path to the flight recorder.
    pub(super) fn record(&self, kind: Kind, detail: u16, a: u64, b: u64) {
        let at_ns = self.platform.now().0;
        self.platform.record(Event { at_ns, kind: kind as u16, detail, a, b, ..Event::default() });
    }

    /// Writes an event about the whole of a state.
    pub(super) fn record_state(&self, kind: Kind, detail: u16, config: &Config) {
        self.record(kind, detail, config.bdevs.len() as u64, config.controllers.len() as u64);
    }

    /// Starts to make `config` the durable one. Only one save is under way at a time.
    pub(super) fn begin_save(&mut self, config: &Config) -> SaveJob<P> {
        let mut state = self.state.take().expect("changes are made one after the other");
        let config = config.clone();
        self.platform.offload(move || {
            let saved = state.save(&config);
            (state, saved)
        })
    }

    /// Two random words for an identity that no bdev has.
    pub(super) fn new_uuid(&self) -> [u8; 16] {
        crate::block::uuid::random([self.platform.random(), self.platform.random()])
    }

    /// The disk of a null bdev.
    pub(super) fn null_disk(&self, bdev: &BdevConfig) -> Option<Disk<P>> {
        let BdevKind::Null(block) = bdev.kind else { return None };
        let disk = NullBdev::new(
            bdev.name.clone(),
            bdev.uuid,
            block.block_size,
            block.physical_block_size,
            block.num_blocks,
            self.platform.cores(),
        );
        Some(Disk::Null(Arc::new(disk)))
    }

    /// Starts to make the memory of a new malloc bdev, or to find again that of one that was.
    pub(super) fn begin_memory(&self, uuid: &[u8; 16], len: u64, is_new: bool) -> MemoryJob<P> {
        let (directory, name) = (self.platform.directory(), self.config.memory_name(uuid));
        self.platform.offload(move || {
            if is_new {
                // What a bdev of that identity may have left is not the new one's content.
                directory.remove_machine_memory(&name)?;
            }
            directory.machine_memory(&name, len)
        })
    }

    /// The disk of a malloc bdev in its memory.
    pub(super) fn malloc_disk(&self, bdev: &BdevConfig, memory: P::Memory) -> Disk<P> {
        let BdevKind::Malloc(block) = bdev.kind else { unreachable!("memory is made for malloc bdevs") };
        let disk = MallocBdev::new(
            bdev.name.clone(),
            bdev.uuid,
            block.block_size,
            block.physical_block_size,
            block.num_blocks,
            memory,
            self.platform.cores(),
        );
        Disk::Malloc(Arc::new(disk))
    }

    /// The disk of a uring or aio bdev in its file, whose lock is held.
    pub(super) fn file_disk(&self, bdev: &BdevConfig, file: P::File, info: FileInfo) -> RpcResult<Disk<P>> {
        let BdevKind::File { engine, path, block_size, read_only } = bdev.kind.clone() else {
            unreachable!("files are opened for file bdevs")
        };
        let (name, uuid) = (bdev.name.clone(), bdev.uuid);
        let parameters = FileParameters { name, uuid, path, engine, block_size, read_only };
        FileBdev::new(parameters, file, info, self.platform.cores())
            .map(|disk| Disk::File(Arc::new(disk)))
            .map_err(|what| RpcError::errno(Errno::Invalid, what))
    }

    /// The name of the bdev that is in the file with this identity.
    pub(super) fn owner_of(&self, identity: (u64, u64)) -> Option<String> {
        self.registry.iter().find_map(|disk| match disk {
            Disk::File(file) if file.identity() == identity => Some(disk.bdev().name().into()),
            _ => None,
        })
    }

    /// A core for a controller: of those that its mask allows, the one with the fewest controllers.
    pub(super) fn place(&self, controller: &ControllerConfig) -> RpcResult<CoreId> {
        let allowed = match &controller.cpumask {
            None => None,
            Some(mask) => Some(cpumask::parse(mask).map_err(RpcError::params)?),
        };
        let reactors = self.platform.reactors();
        let on_mask = |processor: u32| allowed.as_ref().is_none_or(|allowed| allowed.contains(&processor));
        let cores = reactors.iter().filter(|reactor| on_mask(reactor.processor)).map(|reactor| reactor.core);
        cores.min_by_key(|core| (self.controllers.on_core(*core), *core)).ok_or_else(|| {
            let processors = reactors.iter().map(|reactor| reactor.processor).collect::<BTreeSet<_>>();
            RpcError::vhost(
                Errno::Invalid,
                format!(
                    "cpumask is {:?}; allowed: at least one of the target's processors, {processors:?}",
                    controller.cpumask.as_deref().unwrap_or_default()
                ),
            )
        })
    }

    /// Gives a controller its bdev. The bdev exists.
    pub(super) fn claim(&mut self, controller: &ControllerConfig) -> RpcResult<()> {
        let ControllerConfig { name, bdev, shared, .. } = controller;
        self.registry.claim(bdev, name, *shared).map_err(|ClaimRefused { holder, holder_shares }| {
            let advice = match (shared, holder_shares) {
                (true, false) => format!("{holder} was made without shared=true"),
                _ => String::from("two front-ends share a bdev only if each was made with shared=true"),
            };
            RpcError::vhost(Errno::Busy, format!("bdev {bdev} is in use by controller {holder}; {advice}"))
        })
    }

    /// Starts a controller that was added, on its bdev. One whose bdev is not there waits for it; it may have had it.
    pub(super) fn start_controller(&mut self, name: &str) {
        let Some(entry) = self.controllers.get_mut(name) else { return };
        let config = entry.config.clone();
        let Some(bdev) = self.registry.get(&config.bdev).map(Disk::bdev) else {
            entry.standing = Standing::Waiting(String::from("its bdev is gone"), None);
            return;
        };
        if let Err(error) = self.claim(&config) {
            tracing::error!(controller = %name, error = %error.message, "cannot start");
            return;
        }
        let path = self.socket_path(name);
        self.controllers.start(&self.platform, name, bdev, path, self.options.vhost_socket.clone());
    }

    /// Starts the controllers of a bdev that has just come.
    pub(super) fn start_controllers_on(&mut self, bdev: &str) {
        self.nvmf_bdev_changed(bdev);
        let waiting = self.controllers.iter().filter(|entry| entry.config.bdev == bdev);
        let waiting = waiting.filter(|entry| matches!(entry.standing, Standing::Waiting(..)));
        let names = waiting.map(|entry| entry.config.name.clone()).collect::<Vec<_>>();
        // Those that run do it on one that was there before and is gone.
        let running = self.controllers.iter().filter(|entry| entry.config.bdev == bdev);
        let running =
            running.filter(|entry| matches!(entry.standing, Standing::Starting | Standing::Serving));
        let configs = running.map(|entry| entry.config.clone()).collect::<Vec<_>>();
        for name in names {
            self.start_controller(&name);
        }
        let Some(disk) = self.registry.get(bdev).map(Disk::bdev) else { return };
        for config in configs {
            match self.claim(&config) {
                Ok(()) => self.controllers.rebind(&config.name, disk.clone()),
                Err(error) => {
                    tracing::error!(controller = %config.name, error = %error.message, "keeps a dead bdev")
                }
            }
        }
    }

    /// Takes over what became of the bdevs of NVMe controllers. Whether anything did.
    pub(super) fn settle_drives(&mut self) -> bool {
        let changes = self.drives.changes(self.platform.cores());
        let any = !changes.is_empty();
        for change in changes {
            match change {
                Change::Came(disk) => {
                    let name = String::from(disk.bdev().name());
                    tracing::info!(bdev = %name, "the bdev is there");
                    self.registry.add(disk);
                    self.start_controllers_on(&name);
                }
                Change::Went(name) => {
                    let holders = self.registry.holders(&name);
                    tracing::warn!(bdev = %name, ?holders, "the bdev is gone");
                    drop(self.registry.remove_gone(&name));
                    self.nvmf_bdev_changed(&name);
                }
                Change::Resized(name) => {
                    tracing::info!(bdev = %name, "the bdev was resized");
                    self.controllers.resized(&name);
                    self.nvmf_bdev_changed(&name);
                }
            }
        }
        any
    }

    /// Where a controller listens.
    pub(super) fn socket_path(&self, name: &str) -> String {
        format!("{}/{name}", self.options.vhost_dir)
    }

    /// A bdev that must be there, for a bdev method.
    pub(super) fn bdev(&self, name: &str) -> RpcResult<&Disk<P>> {
        self.registry.get(name).ok_or_else(|| self.no_bdev(name))
    }

    /// The error for a bdev that is not there.
    pub(super) fn no_bdev(&self, name: &str) -> RpcError {
        RpcError::errno(Errno::NoSuchDevice, self.why_no_bdev(name))
    }

    /// Why a bdev is not there.
    pub(super) fn why_no_bdev(&self, name: &str) -> String {
        let drive = self.drives.iter().find(|entry| entry.kept && entry.config.owns(name));
        match self.pending.reason(name).map(String::from).or_else(|| drive.map(Entry::reason)) {
            Some(reason) => format!("bdev {name} is not there yet: {reason}"),
            None => format!("no bdev is named {name}; bdev_get_bdevs lists those that there are"),
        }
    }
}
