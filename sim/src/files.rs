//! Simulated files: small ones with the semantics of a directory over power loss, and payload files ([`crate::disk`]).
//!
//! Fault model. What was not synced may be lost with the power: a file's content is then the synced one, the new one, or
//! the new one cut short or zeroed; a name is the synced one, or any prefix of what was done to names since; content and
//! names fare apart. A write may find no space, and leaves an empty file then; a sync or a rename may fail, and has done
//! nothing then. A process may die at each call, and in the middle of a write, which leaves a part of the bytes.
//!
//! Never: something synced lost, a rename half done, a lock held by a process that is gone and has no I/O left.

use crate::disk::{Disk, Operation};
use crate::faults::FaultKind;
use crate::memory::SimMemory;
use crate::trace::Record;
use crate::world::{self, World};
use runtime::{Directory, ErrorKind, FileEngine, FileOptions, Result};
use std::collections::{BTreeMap, BTreeSet};

/// A small file's content: what readers see, and what survives.
#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
}

/// What was done to the names of a machine and is not durable yet.
#[derive(Clone)]
enum NameChange {
    Created(String, u32),
    Renamed(String, String),
    Removed(String),
}

/// One machine's small files.
#[derive(Default)]
struct Names {
    now: BTreeMap<String, u32>,
    synced: BTreeMap<String, u32>,
    pending: Vec<NameChange>,
    directories: BTreeSet<String>,
    locks: BTreeMap<String, u32>,
    memory: BTreeMap<String, u32>,
    disks: BTreeMap<String, u32>,
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u32>) {
        match self {
            Self::Created(path, content) => {
                names.insert(path.clone(), *content);
            }
            Self::Renamed(from, to) => {
                if let Some(content) = names.remove(from) {
                    names.insert(to.clone(), content);
                }
            }
            Self::Removed(path) => {
                names.remove(path);
            }
        }
    }

    fn is_in(&self, directory: &str) -> bool {
        let path = match self {
            Self::Created(path, _) | Self::Removed(path) | Self::Renamed(_, path) => path,
        };
        parent(path) == directory
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Everything that machines store.
#[derive(Default)]
pub(crate) struct Storage {
    machines: Vec<Names>,
    contents: Vec<Content>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) opens: Vec<Open>,
    pub(crate) channels: Vec<crate::disk::ChannelState>,
    pub(crate) operations: Vec<Option<Operation>>,
    pub(crate) free_operations: Vec<u32>,
}

/// An open file description of a payload file.
pub(crate) struct Open {
    pub(crate) disk: u32,
    pub(crate) process: u32,
    pub(crate) read_only: bool,
    /// Handles onto it: the file's clones and its channels.
    pub(crate) handles: u32,
    pub(crate) in_flight: u32,
}

impl Storage {
    pub(crate) fn add_machine(&mut self) {
        self.machines.push(Names::default());
    }
}

impl World {
    /// Puts a payload file at a path of a machine: zeroed, of `len` bytes in blocks of `block_size`, torn by power loss
    /// at `atomic_bytes`.
    pub fn create_disk(
        &mut self,
        machine: u32,
        path: &str,
        len: u64,
        block_size: u32,
        atomic_bytes: u32,
    ) -> u32 {
        let disk = self.add_disk(Disk::new(len, block_size, atomic_bytes));
        self.storage.machines[machine as usize].disks.insert(path.to_owned(), disk);
        disk
    }

    /// Adds a disk that has no name.
    pub(crate) fn add_disk(&mut self, disk: Disk) -> u32 {
        self.storage.disks.push(disk);
        self.storage.disks.len() as u32 - 1
    }

    /// Removes the name of a payload file; whoever has it open keeps it.
    pub fn remove_disk(&mut self, machine: u32, path: &str) {
        self.storage.machines[machine as usize].disks.remove(path);
    }

    /// A small file's content as a reader of the running machine sees it.
    #[must_use]
    pub fn small_file(&self, machine: u32, path: &str) -> Option<&[u8]> {
        let content = *self.storage.machines[machine as usize].now.get(path)?;
        Some(&self.storage.contents[content as usize].now)
    }

    /// The machine loses its power: its processes die, memory and everything unsynced is gone or torn, as drawn.
    /// The caller has told the guests, and buries the processes.
    pub(crate) fn power_loss_of_storage(&mut self, machine: u32) {
        let names = &mut self.storage.machines[machine as usize];
        names.memory.clear();
        names.locks.clear();
        let pending = std::mem::take(&mut names.pending);
        let kept = self.streams.device.below(pending.len() as u64 + 1) as usize;
        for change in &pending[..kept] {
            change.apply(&mut names.synced);
        }
        names.now = names.synced.clone();
        let disks: Vec<u32> = names.disks.values().copied().collect();
        let contents: Vec<u32> = names.now.values().copied().collect();
        for content in contents {
            let choice = self.streams.device.below(4);
            let content = &mut self.storage.contents[content as usize];
            if content.now != content.synced {
                let cut = self.streams.device.below(content.now.len() as u64 + 1) as usize;
                content.synced = match choice {
                    0 => std::mem::take(&mut content.synced),
                    1 => content.now.clone(),
                    2 => content.now[..cut].to_vec(),
                    _ => vec![0; content.now.len()],
                };
            }
            content.now = content.synced.clone();
        }
        for disk in disks {
            self.disk_power_loss(disk);
        }
        self.trace.add(Record::Life, u64::from(machine), 3);
    }

    /// A process died: its locks on small files are free, its open files close when their last I/O has ended.
    pub(crate) fn files_of_dead(&mut self, process: u32) {
        let machine = self.processes[process as usize].machine;
        self.storage.machines[machine as usize].locks.retain(|_, holder| *holder != process);
        self.operations_of_dead(process);
        for open in 0..self.storage.opens.len() as u32 {
            if self.storage.opens[open as usize].process == process {
                self.storage.opens[open as usize].handles = 0;
                self.close_if_done(open);
            }
        }
    }

    /// An open file description with no handle and no I/O is gone, and its lock with it.
    pub(crate) fn close_if_done(&mut self, open: u32) {
        let state = &self.storage.opens[open as usize];
        if state.handles == 0 && state.in_flight == 0 {
            let disk = &mut self.storage.disks[state.disk as usize];
            if disk.lock == Some(open) {
                disk.lock = None;
            }
        }
    }

    fn names(&mut self, process: u32) -> &mut Names {
        let machine = self.processes[process as usize].machine;
        &mut self.storage.machines[machine as usize]
    }
}

/// The blocking file operations of one process.
#[derive(Clone, Debug)]
pub struct SimDirectory {
    process: u32,
}

impl SimDirectory {
    pub(crate) fn new(process: u32) -> Self {
        Self { process }
    }

    /// One call: a crash point, and nothing at all for a dead process.
    fn call<T>(&self, act: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        world::with(|world| {
            world.crash_point();
            if !world.is_alive(self.process) {
                return Err(ErrorKind::Io.into());
            }
            act(world)
        })
    }

    /// A call that makes something durable or renames: it may fail.
    fn fallible<T>(&self, act: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        self.call(|world| {
            if world.faults.strike(FaultKind::FileError, |_| 0).is_some() {
                return Err(ErrorKind::Io.into());
            }
            act(world)
        })
    }

    fn content(&self, world: &mut World, path: &str) -> Result<u32> {
        world.names(self.process).now.get(path).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// The content of a file that is made, empty, if it is not there.
    fn content_or_new(&self, world: &mut World, path: &str) -> Result<u32> {
        self.directory(world, parent(path))?;
        if let Ok(content) = self.content(world, path) {
            return Ok(content);
        }
        let content = world.storage.contents.len() as u32;
        world.storage.contents.push(Content::default());
        let names = world.names(self.process);
        names.now.insert(path.to_owned(), content);
        names.pending.push(NameChange::Created(path.to_owned(), content));
        Ok(content)
    }

    /// Whether there is a directory by that path.
    fn directory(&self, world: &mut World, path: &str) -> Result<()> {
        let there = world.names(self.process).directories.contains(path);
        if there { Ok(()) } else { Err(ErrorKind::NotFound.into()) }
    }
}

impl Directory for SimDirectory {
    type Memory = SimMemory;
    type File = SimFile;
    type Lock = SimLock;

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        self.call(|world| {
            let content = self.content(world, path)?;
            let bytes = &world.storage.contents[content as usize].now;
            if bytes.len() as u64 > limit { Err(ErrorKind::Invalid.into()) } else { Ok(bytes.clone()) }
        })
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.call(|world| {
            let content = self.content_or_new(world, path)?;
            // First the file is there and empty, then it has a part of the bytes, then all of them.
            world.storage.contents[content as usize].now = Vec::new();
            world.crash_point();
            if world.faults.strike(FaultKind::NoSpace, |_| 0).is_some() {
                return Err(ErrorKind::NoSpace.into());
            }
            let part = world.streams.process.below(bytes.len() as u64 + 1) as usize;
            world.storage.contents[content as usize].now = bytes[..part].to_vec();
            world.crash_point();
            world.storage.contents[content as usize].now = bytes.to_vec();
            Ok(())
        })
    }

    fn sync(&self, path: &str) -> Result<()> {
        self.fallible(|world| {
            let content = self.content(world, path)?;
            let content = &mut world.storage.contents[content as usize];
            content.synced = content.now.clone();
            Ok(())
        })
    }

    fn sync_directory(&self, path: &str) -> Result<()> {
        self.fallible(|world| {
            let path = path.trim_end_matches('/');
            self.directory(world, path)?;
            let names = world.names(self.process);
            let (here, elsewhere): (Vec<_>, Vec<_>) =
                std::mem::take(&mut names.pending).into_iter().partition(|change| change.is_in(path));
            names.pending = elsewhere;
            for change in here {
                change.apply(&mut names.synced);
            }
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.fallible(|world| {
            self.content(world, from)?;
            self.directory(world, parent(to))?;
            let names = world.names(self.process);
            let change = NameChange::Renamed(from.to_owned(), to.to_owned());
            change.apply(&mut names.now);
            names.pending.push(change);
            Ok(())
        })
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.call(|world| {
            self.content(world, path)?;
            let names = world.names(self.process);
            let change = NameChange::Removed(path.to_owned());
            change.apply(&mut names.now);
            names.pending.push(change);
            Ok(())
        })
    }

    fn list(&self, path: &str) -> Result<Vec<String>> {
        self.call(|world| {
            let path = path.trim_end_matches('/');
            self.directory(world, path)?;
            let names = world.names(self.process);
            let inside = names.now.keys().chain(&names.directories).filter(|name| parent(name) == path);
            let mut inside: Vec<String> =
                inside.filter_map(|name| name.rsplit_once('/').map(|(_, last)| last.to_owned())).collect();
            inside.sort_unstable();
            Ok(inside)
        })
    }

    fn create_directory(&self, path: &str) -> Result<()> {
        self.call(|world| {
            // Directories are durable at once here: the state directory's own creation is not what is tested.
            let mut path = path.trim_end_matches('/');
            let names = world.names(self.process);
            while !path.is_empty() {
                names.directories.insert(path.to_owned());
                path = parent(path);
            }
            Ok(())
        })
    }

    fn lock(&self, path: &str) -> Result<SimLock> {
        self.call(|world| {
            let process = self.process;
            self.content_or_new(world, path)?;
            let names = world.names(process);
            if names.locks.contains_key(path) {
                return Err(ErrorKind::Busy.into());
            }
            names.locks.insert(path.to_owned(), process);
            Ok(SimLock { process, path: path.to_owned() })
        })
    }

    fn open(&self, path: &str, options: FileOptions) -> Result<SimFile> {
        self.call(|world| {
            let FileOptions { engine: FileEngine::Uring | FileEngine::Aio, read_only } = options;
            let disk = *world.names(self.process).disks.get(path).ok_or(ErrorKind::NotFound)?;
            let open = world.storage.opens.len() as u32;
            world.storage.opens.push(Open {
                disk,
                process: self.process,
                read_only,
                handles: 1,
                in_flight: 0,
            });
            Ok(SimFile { open })
        })
    }

    fn machine_memory(&self, name: &str, len: u64) -> Result<(SimMemory, bool)> {
        self.call(|world| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if name.is_empty() || !name.bytes().all(known) {
                return Err(ErrorKind::Invalid.into());
            }
            if let Some(object) = world.names(self.process).memory.get(name).copied() {
                if world.memory.object_len(object) != len {
                    return Err(ErrorKind::Invalid.into());
                }
                return Ok((SimMemory::new(world, object, 0, len), true));
            }
            if world.faults.strike(FaultKind::NoSpace, |_| 0).is_some() {
                return Err(ErrorKind::NoSpace.into());
            }
            let object = world.memory.object(len);
            world.names(self.process).memory.insert(name.to_owned(), object);
            Ok((SimMemory::new(world, object, 0, len), false))
        })
    }

    fn remove_machine_memory(&self, name: &str) -> Result<()> {
        self.call(|world| {
            world.names(self.process).memory.remove(name);
            Ok(())
        })
    }
}

/// A lock on a small file.
#[derive(Debug)]
pub struct SimLock {
    process: u32,
    path: String,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        world::try_with(|world| {
            if world.is_alive(self.process) {
                let path = std::mem::take(&mut self.path);
                world.names(self.process).locks.remove(&path);
            }
        });
    }
}

/// An open payload file.
#[derive(Debug)]
pub struct SimFile {
    pub(crate) open: u32,
}

impl SimFile {
    pub(crate) fn another(open: u32) -> Self {
        world::with(|world| world.storage.opens[open as usize].handles += 1);
        Self { open }
    }
}

impl Clone for SimFile {
    fn clone(&self) -> Self {
        Self::another(self.open)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        world::try_with(|world| {
            let process = world.storage.opens[self.open as usize].process;
            if world.is_alive(process) {
                world.storage.opens[self.open as usize].handles -= 1;
                world.close_if_done(self.open);
            }
        });
    }
}
