//! Changes of the target: one call of an operator's at a time, from its checks to its answer.
//!
//! The order within a change is what makes it whole. What can fail without leaving a trace is done first (opening,
//! locking, listening); then the new state is made durable; only then is the change seen by other calls, and answered.
//! What was done before a save that failed is undone. A process that dies in the middle leaves the old state or the new
//! one; memory of the machine that it may leave behind is named in the state before it is made (`Config::reclaim`).

use super::controllers::{Standing, Told};
use super::drives::Heard;
use super::inventory::{Inventory, MemoryJob, SaveJob};
use super::not_listening;
use super::opening::{Opened, Opening};
use crate::block::{Bdev, Disk};
use crate::control::calls::{BdevFamily, Call};
use crate::control::config::{BdevConfig, BdevKind, Config, ControllerConfig, DriveConfig, NvmeOptions};
use crate::control::error::{Errno, INVALID_STATE, RpcError, RpcResult};
use crate::control::nvmf::{NvmfChange, NvmfConfig};
use crate::events::Kind;
use crate::nvme::driver::Failure;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;
use runtime::{Directory, ErrorKind, FileOptions, Instant, Job, PciAddress, Platform, Wakes};
use serde_json::{Value, json};

/// A change under way.
pub(super) struct Change<P: Platform>(Step<P>);

/// What is waited for.
enum Step<P: Platform> {
    /// A new file bdev's file and its lock.
    Open { bdev: BdevConfig, opening: Opening<P> },
    /// The note that a new malloc bdev's memory may be there.
    Note { bdev: BdevConfig, job: SaveJob<P>, noted: Config },
    /// A new malloc bdev's memory.
    Memory { bdev: BdevConfig, job: MemoryJob<P> },
    /// A new controller's first word.
    Start { controller: ControllerConfig },
    /// The new state.
    Save { job: SaveJob<P>, config: Config, then: Then<P> },
    /// The end of a controller that is deleted, or whose making could not be saved.
    End { name: String, answer: RpcResult<Value> },
    /// A new NVMe controller.
    Attach { drive: DriveConfig },
    /// The reset of an NVMe controller.
    Reset { name: String },
    /// The end of an NVMe controller that is detached, or could not be attached.
    Detach { name: String, answer: RpcResult<Value> },
    /// The end of memory that nobody needs any more.
    Free { name: String, job: P::Job<runtime::Result<()>> },
    /// NVMe over Fabrics as it shall be, in force; then it is saved. A new listener must have got its address.
    Serve { number: u64, nvmf: NvmfConfig, listener: Option<SocketAddr>, answer: Value },
    /// NVMe over Fabrics as it was, in force again, or what is left of a change: then the answer.
    Served { number: u64, answer: RpcResult<Value> },
    /// Nothing: this is the answer.
    Answer(RpcResult<Value>),
}

/// What a change does once it is durable.
enum Then<P: Platform> {
    /// A new bdev is there.
    Add(Disk<P>),
    /// A bdev is gone.
    Remove(String),
    /// A null bdev has this many blocks.
    Resize(String, u64),
    /// A new controller is kept; if it cannot be saved it is stopped again.
    Keep(String),
    /// A controller is stopped.
    Stop(String),
    /// An NVMe controller is kept; if it cannot be saved it is let go again.
    KeepDrive(String),
    /// An NVMe controller is let go.
    LetGo(String),
    /// Nothing: what was saved is in force.
    Nothing,
    /// NVMe over Fabrics is in force as it was saved; bdevs that are no namespaces any more are let go.
    KeepNvmf(Value),
}

impl<P: Platform> Change<P> {
    /// Begins a change that was called for.
    pub(super) fn begin(inventory: &mut Inventory<P>, call: Call) -> Self {
        let step = match call {
            Call::CreateBdev(bdev) => create_bdev(inventory, bdev),
            Call::DeleteBdev { family, name } => delete_bdev(inventory, family, name),
            Call::ResizeNull { name, mebibytes } => resize_null(inventory, name, mebibytes),
            Call::Rescan { family, name } => {
                rescan(inventory, family, &name).map(|()| Step::Answer(Ok(json!(true))))
            }
            Call::SetNvmeOptions(options) => set_nvme_options(inventory, options),
            Call::AttachDrive(drive) => attach_drive(inventory, drive),
            Call::DetachDrive { name, address } => detach_drive(inventory, name, address),
            Call::ResetDrive { name } => reset_drive(inventory, name),
            Call::CreateController(controller) => create_controller(inventory, controller),
            Call::DeleteController { name } => delete_controller(inventory, name),
            Call::Nvmf(change) => change_nvmf(inventory, change),
            _ => Err(RpcError::new(INVALID_STATE, "not a change")),
        };
        Self(step.unwrap_or_else(|error| Step::Answer(Err(error))))
    }

    /// Goes on. `Ok` is the answer; `Err` says whether there was work.
    pub(super) fn poll(
        &mut self,
        inventory: &mut Inventory<P>,
        now: Instant,
        told: &[(String, Told)],
        heard: &[(String, Heard)],
        until: &mut Option<Instant>,
    ) -> Result<RpcResult<Value>, bool> {
        let step = core::mem::replace(&mut self.0, Step::Answer(Ok(Value::Null)));
        let (step, worked) = go_on(inventory, step, now, told, heard, until);
        if let Step::Answer(answer) = step {
            return Ok(answer);
        }
        self.0 = step;
        Err(worked)
    }

    /// Registers what the change waits for.
    pub(super) fn arm(&self, wakes: &mut P::Wakes) {
        match &self.0 {
            Step::Open { opening, .. } => opening.arm(wakes),
            Step::Note { job, .. } | Step::Save { job, .. } => wakes.job(job),
            Step::Memory { job, .. } => wakes.job(job),
            Step::Free { job, .. } => wakes.job(job),
            Step::Start { .. }
            | Step::End { .. }
            | Step::Attach { .. }
            | Step::Reset { .. }
            | Step::Detach { .. }
            | Step::Serve { .. }
            | Step::Served { .. }
            | Step::Answer(_) => {}
        }
    }
}

/// Starts to save a new state.
fn save<P: Platform>(inventory: &mut Inventory<P>, config: Config, then: Then<P>) -> Step<P> {
    Step::Save { job: inventory.begin_save(&config), config, then }
}

/// What the operator is told when the state directory did not take a change.
fn not_saved<P: Platform>(inventory: &Inventory<P>, error: runtime::Error) -> RpcError {
    let directory = &inventory.options.state_dir;
    RpcError::errno(
        Errno::of(error.kind),
        format!("the change was not made: the state directory {directory} cannot be written: {error}"),
    )
}

fn create_bdev<P: Platform>(inventory: &mut Inventory<P>, mut bdev: BdevConfig) -> RpcResult<Step<P>> {
    if bdev.name.is_empty() {
        // Malloc bdevs may go without one; SPDK calls them Malloc0, Malloc1 and so on.
        let free = (0_u64..)
            .map(|number| format!("Malloc{number}"))
            .find(|name| inventory.config.bdev(name).is_none());
        bdev.name = free.expect("numbers do not end");
    }
    if inventory.config.bdev(&bdev.name).is_some() {
        return Err(RpcError::errno(Errno::Exists, format!("a bdev named {} is there already", bdev.name)));
    }
    if let Some(drive) = inventory.config.drive_of(&bdev.name) {
        let what = format!("{} is the name of a namespace of NVMe controller {}", bdev.name, drive.name);
        return Err(RpcError::errno(Errno::Exists, what));
    }
    if bdev.uuid == [0; 16] {
        bdev.uuid = inventory.new_uuid();
    }
    if let Some(other) = inventory.config.bdevs.iter().find(|other| other.uuid == bdev.uuid) {
        return Err(RpcError::errno(Errno::Exists, format!("bdev {} has that uuid already", other.name)));
    }
    match bdev.kind.clone() {
        BdevKind::Null(_) => {
            let disk = inventory.null_disk(&bdev).expect("it is a null bdev");
            Ok(save_new_bdev(inventory, bdev, disk))
        }
        BdevKind::Malloc(_) => {
            let mut noted = inventory.config.clone();
            noted.reclaim.insert(noted.memory_name(&bdev.uuid));
            let job = inventory.begin_save(&noted);
            Ok(Step::Note { bdev, job, noted })
        }
        BdevKind::File { engine, path, read_only, .. } => {
            let opening = Opening::begin(&inventory.platform, &path, FileOptions { engine, read_only });
            Ok(Step::Open { bdev, opening })
        }
    }
}

/// Saves a state with a bdev whose disk is ready.
fn save_new_bdev<P: Platform>(inventory: &mut Inventory<P>, bdev: BdevConfig, disk: Disk<P>) -> Step<P> {
    let mut config = inventory.config.clone();
    config.reclaim.remove(&config.memory_name(&bdev.uuid));
    config.bdevs.push(bdev);
    save(inventory, config, Then::Add(disk))
}

/// The bdev that a method of one kind is about.
fn bdev_of<P: Platform>(inventory: &Inventory<P>, family: BdevFamily, name: &str) -> RpcResult<BdevConfig> {
    let bdev = inventory.config.bdev(name).ok_or_else(|| inventory.no_bdev(name))?;
    if !family.contains(&bdev.kind) {
        let what = format!("bdev {name} is a {}, no {}", bdev.kind.noun(), family.noun());
        return Err(RpcError::errno(Errno::NoSuchDevice, what));
    }
    Ok(bdev.clone())
}

fn delete_bdev<P: Platform>(
    inventory: &mut Inventory<P>,
    family: BdevFamily,
    name: String,
) -> RpcResult<Step<P>> {
    let bdev = bdev_of(inventory, family, &name)?;
    let users = inventory.config.users(|bdev| bdev == name);
    if !users.is_empty() {
        let what = format!("bdev {name} is in use by controller {}: delete that first", users.join(", "));
        return Err(RpcError::errno(Errno::Busy, what));
    }
    let mut config = inventory.config.clone();
    config.bdevs.retain(|other| other.name != name);
    if let BdevKind::Malloc(_) = bdev.kind {
        config.reclaim.insert(config.memory_name(&bdev.uuid));
    }
    Ok(save(inventory, config, Then::Remove(name)))
}

fn resize_null<P: Platform>(
    inventory: &mut Inventory<P>,
    name: String,
    mebibytes: u64,
) -> RpcResult<Step<P>> {
    let mut bdev = bdev_of(inventory, BdevFamily::Null, &name)?;
    let BdevKind::Null(block) = &mut bdev.kind else { return Err(inventory.no_bdev(&name)) };
    if mebibytes < block.capacity() >> 20 {
        let what = format!(
            "new_size is {mebibytes} MiB, and bdev {name} has {} MiB: it can only grow",
            block.capacity() >> 20
        );
        return Err(RpcError::errno(Errno::Invalid, what));
    }
    block.num_blocks = (mebibytes << 20) / u64::from(block.block_size);
    let num_blocks = block.num_blocks;
    let mut config = inventory.config.clone();
    for other in config.bdevs.iter_mut().filter(|other| other.name == name) {
        *other = bdev.clone();
    }
    Ok(save(inventory, config, Then::Resize(name, num_blocks)))
}

/// Takes over the size that a file has now. The size is the file's, so there is nothing to save.
fn rescan<P: Platform>(inventory: &mut Inventory<P>, family: BdevFamily, name: &str) -> RpcResult<()> {
    bdev_of(inventory, family, name)?;
    let Disk::File(disk) = inventory.bdev(name)?.clone() else { return Err(inventory.no_bdev(name)) };
    let path = &disk.parameters().path;
    let num_blocks = disk.rescan().map_err(|error| {
        RpcError::errno(Errno::of(error.kind), format!("cannot tell the size of {path}: {error}"))
    })?;
    let before = Bdev::<P>::geometry(&*disk).num_blocks;
    if num_blocks == 0 {
        return Err(RpcError::errno(Errno::Invalid, format!("{path} holds less than one block now")));
    }
    if num_blocks < before && !inventory.registry.holders(name).is_empty() {
        let what = format!("{path} shrank from {before} to {num_blocks} blocks, and a front-end uses it");
        return Err(RpcError::errno(Errno::Busy, what));
    }
    if num_blocks != before {
        tracing::info!(bdev = name, before, num_blocks, "the bdev was resized");
        disk.resize(num_blocks);
        inventory.controllers.resized(name);
        inventory.nvmf_bdev_changed(name);
    }
    Ok(())
}

fn create_controller<P: Platform>(
    inventory: &mut Inventory<P>,
    controller: ControllerConfig,
) -> RpcResult<Step<P>> {
    let ControllerConfig { name, bdev, .. } = &controller;
    if inventory.config.controller(name).is_some() {
        return Err(RpcError::vhost(Errno::Exists, format!("a controller named {name} is there already")));
    }
    if inventory.registry.get(bdev).is_none() {
        return Err(RpcError::vhost(Errno::NoSuchDevice, inventory.why_no_bdev(bdev)));
    }
    let place = inventory.place(&controller)?;
    inventory.claim(&controller)?;
    inventory.controllers.add(controller.clone(), place, String::from("it is being made"));
    inventory.start_controller(name);
    Ok(Step::Start { controller })
}

fn delete_controller<P: Platform>(inventory: &mut Inventory<P>, name: String) -> RpcResult<Step<P>> {
    if inventory.config.controller(&name).is_none() {
        let what = format!("no controller is named {name}; vhost_get_controllers lists those that there are");
        return Err(RpcError::vhost(Errno::NoSuchDevice, what));
    }
    let mut config = inventory.config.clone();
    config.controllers.retain(|other| other.name != name);
    Ok(save(inventory, config, Then::Stop(name)))
}

fn set_nvme_options<P: Platform>(inventory: &mut Inventory<P>, options: NvmeOptions) -> RpcResult<Step<P>> {
    if let Some(drive) = inventory.config.drives.first() {
        let what = format!(
            "options are taken before the first NVMe controller is attached, and {} is: detach it first",
            drive.name
        );
        return Err(RpcError::errno(Errno::NotPermitted, what));
    }
    let mut config = inventory.config.clone();
    config.nvme_options = options;
    Ok(save(inventory, config, Then::Nothing))
}

fn attach_drive<P: Platform>(inventory: &mut Inventory<P>, drive: DriveConfig) -> RpcResult<Step<P>> {
    let DriveConfig { name, address } = &drive;
    if let Some(other) =
        inventory.config.drives.iter().find(|other| other.name == *name || other.address == *address)
    {
        let what = format!("NVMe controller {} is attached at {} already", other.name, other.address);
        return Err(RpcError::errno(Errno::Exists, what));
    }
    if let Some(bdev) = inventory.config.bdevs.iter().find(|bdev| drive.owns(&bdev.name)) {
        let what =
            format!("bdev {} has a name of this controller's namespaces: choose another name", bdev.name);
        return Err(RpcError::errno(Errno::Exists, what));
    }
    inventory.drives.add(drive.clone(), &inventory.config.nvme_options);
    let Inventory { drives, platform, .. } = inventory;
    drives.start(platform, name);
    Ok(Step::Attach { drive })
}

/// The error for an NVMe controller that is not attached.
pub(super) fn no_drive(name: &str) -> RpcError {
    let what =
        format!("no NVMe controller is named {name}; bdev_nvme_get_controllers lists those that there are");
    RpcError::errno(Errno::NoSuchDevice, what)
}

fn detach_drive<P: Platform>(
    inventory: &mut Inventory<P>,
    name: String,
    address: Option<PciAddress>,
) -> RpcResult<Step<P>> {
    let drive = inventory.config.drive(&name).ok_or_else(|| no_drive(&name))?;
    if let Some(asked) = address.filter(|asked| *asked != drive.address) {
        let what = format!("NVMe controller {name} is at {}, not at {asked}", drive.address);
        return Err(RpcError::errno(Errno::NoSuchDevice, what));
    }
    let users = inventory.config.users(|bdev| drive.owns(bdev));
    if !users.is_empty() {
        let what = format!("its namespaces are in use by controller {}: delete that first", users.join(", "));
        return Err(RpcError::errno(Errno::Busy, what));
    }
    let mut config = inventory.config.clone();
    config.drives.retain(|other| other.name != name);
    Ok(save(inventory, config, Then::LetGo(name)))
}

fn reset_drive<P: Platform>(inventory: &mut Inventory<P>, name: String) -> RpcResult<Step<P>> {
    let Some(entry) = inventory.drives.get(&name) else { return Err(no_drive(&name)) };
    let not_ready = entry.reason();
    if !inventory.drives.reset(&name) {
        return Err(RpcError::errno(
            Errno::Busy,
            format!("the controller is not ready to be reset: {not_ready}"),
        ));
    }
    Ok(Step::Reset { name })
}

/// What an operator is told of a controller that cannot be used.
fn drive_failed(drive: &DriveConfig, why: &Failure) -> RpcError {
    let errno = match why {
        Failure::Refused(refused) if refused.kind == ErrorKind::NotFound => Errno::NoSuchDevice,
        Failure::Refused(refused) => Errno::of(refused.kind),
        Failure::NotNvme { .. } => Errno::NoSuchDevice,
        Failure::World { error, .. } => Errno::of(error.kind),
        Failure::Unsupported(_) => Errno::Unsupported,
        Failure::Removed => Errno::NoSuchDevice,
        _ => Errno::InputOutput,
    };
    RpcError::errno(
        errno,
        format!("cannot attach NVMe controller {} at {}: {why}", drive.name, drive.address),
    )
}

/// Lets an NVMe controller go and goes on to `answer` when it is gone.
fn let_go<P: Platform>(inventory: &mut Inventory<P>, name: String, answer: RpcResult<Value>) -> Step<P> {
    inventory.drives.close(&name);
    inventory.settle_drives();
    Step::Detach { name, answer }
}

/// Looks whether a new NVMe controller is ready.
fn attached<P: Platform>(
    inventory: &mut Inventory<P>,
    drive: DriveConfig,
    heard: &[(String, Heard)],
) -> (Step<P>, bool) {
    let mut words = heard.iter().filter(|(who, _)| *who == drive.name).map(|(_, word)| word);
    let failed = words.find_map(|word| match word {
        Heard::Failed(why) => Some(drive_failed(&drive, why)),
        Heard::Gone => {
            Some(RpcError::errno(Errno::InputOutput, "the driver died as the controller was attached"))
        }
        _ => None,
    });
    let found = inventory.drives.get(&drive.name).and_then(|entry| entry.found.as_ref());
    // A drive of which nothing can be used is refused, with the reason.
    let unusable = found.filter(|found| found.namespaces.is_empty()).and_then(|found| found.unusable.first());
    let unusable = unusable.map(|(id, why)| {
        let what = format!("no namespace of the controller at {} can be used; {id}: {why}", drive.address);
        RpcError::errno(Errno::Unsupported, what)
    });
    if let Some(error) = failed.or(unusable) {
        return (let_go(inventory, drive.name, Err(error)), true);
    }
    if found.is_none() {
        return (Step::Attach { drive }, false);
    }
    let mut config = inventory.config.clone();
    let name = drive.name.clone();
    config.drives.push(drive);
    (save(inventory, config, Then::KeepDrive(name)), true)
}

/// Takes a controller that is gone out of everything.
fn forget_controller<P: Platform>(inventory: &mut Inventory<P>, name: &str) {
    if let Some(entry) = inventory.controllers.get(name) {
        let bdev = entry.config.bdev.clone();
        inventory.controllers.remove(name);
        inventory.registry.release(&bdev, name);
    }
}

/// Stops a controller and goes on to `answer` when it is gone.
fn end_controller<P: Platform>(
    inventory: &mut Inventory<P>,
    name: String,
    answer: RpcResult<Value>,
) -> Step<P> {
    if inventory.controllers.stop(&name) {
        return Step::End { name, answer };
    }
    forget_controller(inventory, &name);
    Step::Answer(answer)
}

fn go_on<P: Platform>(
    inventory: &mut Inventory<P>,
    step: Step<P>,
    now: Instant,
    told: &[(String, Told)],
    heard: &[(String, Heard)],
    until: &mut Option<Instant>,
) -> (Step<P>, bool) {
    match step {
        Step::Open { bdev, mut opening } => {
            match opening.poll(&inventory.platform, now, |identity| inventory.owner_of(identity)) {
                Opened::Waiting => (Step::Open { bdev, opening }, false),
                Opened::Until(moment) => {
                    *until = Some(until.map_or(moment, |until| until.min(moment)));
                    (Step::Open { bdev, opening }, false)
                }
                Opened::Failed(error) => (Step::Answer(Err(error)), true),
                Opened::Held(file, info) => match inventory.file_disk(&bdev, file, info) {
                    Ok(disk) => (save_new_bdev(inventory, bdev, disk), true),
                    Err(error) => (Step::Answer(Err(error)), true),
                },
            }
        }
        Step::Note { bdev, mut job, noted } => match job.take() {
            None => (Step::Note { bdev, job, noted }, false),
            Some((state, saved)) => {
                inventory.state = Some(state);
                inventory.record_state(Kind::StateSaved, saved.is_err().into(), &noted);
                match saved {
                    Err(error) => (Step::Answer(Err(not_saved(inventory, error))), true),
                    Ok(()) => {
                        inventory.config = noted;
                        let BdevKind::Malloc(block) = bdev.kind else {
                            unreachable!("noted for malloc bdevs")
                        };
                        let job = inventory.begin_memory(&bdev.uuid, block.capacity(), true);
                        (Step::Memory { bdev, job }, true)
                    }
                }
            }
        },
        Step::Memory { bdev, mut job } => match job.take() {
            None => (Step::Memory { bdev, job }, false),
            Some(Ok((memory, _))) => {
                let disk = inventory.malloc_disk(&bdev, memory);
                (save_new_bdev(inventory, bdev, disk), true)
            }
            Some(Err(error)) => {
                // The note in the state stays until the next change, and is harmless.
                let name = inventory.config.memory_name(&bdev.uuid);
                inventory.config.reclaim.remove(&name);
                let what = format!("the machine has no memory for bdev {}: {error}", bdev.name);
                (Step::Answer(Err(RpcError::errno(Errno::OutOfMemory, what))), true)
            }
        },
        Step::Start { controller } => started(inventory, controller, told),
        Step::Save { mut job, config, then } => match job.take() {
            None => (Step::Save { job, config, then }, false),
            Some((state, saved)) => {
                inventory.state = Some(state);
                inventory.record_state(Kind::StateSaved, saved.is_err().into(), &config);
                let step = match saved {
                    Ok(()) => {
                        inventory.config = config;
                        apply(inventory, then)
                    }
                    Err(error) => {
                        let answer = Err(not_saved(inventory, error));
                        match then {
                            Then::Keep(name) => end_controller(inventory, name, answer),
                            Then::KeepDrive(name) => let_go(inventory, name, answer),
                            Then::KeepNvmf(_) => serve_as_before(inventory, answer),
                            Then::Add(Disk::Malloc(disk)) => {
                                let name = inventory.config.memory_name(&Bdev::<P>::uuid(&*disk));
                                drop(disk);
                                // It is named in the state still; the next start gives back what is not given back now.
                                drop(free(inventory, name));
                                Step::Answer(answer)
                            }
                            _ => Step::Answer(answer),
                        }
                    }
                };
                (step, true)
            }
        },
        Step::End { name, answer } => {
            let ended = |what: &Told| matches!(what, Told::Stopped | Told::Died | Told::Started(Err(_)));
            if told.iter().any(|(who, what)| *who == name && ended(what)) {
                forget_controller(inventory, &name);
                return (Step::Answer(answer), true);
            }
            (Step::End { name, answer }, false)
        }
        Step::Attach { drive } => attached(inventory, drive, heard),
        Step::Reset { name } => {
            let words = heard.iter().filter(|(who, _)| *who == name);
            let answer = words.into_iter().find_map(|(_, word)| match word {
                Heard::Ready => Some(Ok(json!(true))),
                Heard::NotReady => {
                    Some(Err(RpcError::errno(Errno::Busy, "the controller is being reset already")))
                }
                Heard::Failed(why) => {
                    let what = format!("the controller did not outlive its reset: {why}");
                    Some(Err(RpcError::errno(Errno::InputOutput, what)))
                }
                Heard::Gone => Some(Err(RpcError::errno(Errno::InputOutput, "its driver died"))),
                Heard::Health(_) => None,
            });
            match answer {
                Some(answer) => (Step::Answer(answer), true),
                None => (Step::Reset { name }, false),
            }
        }
        Step::Detach { name, answer } => {
            if inventory.drives.get(&name).is_none_or(|entry| entry.is_gone()) {
                inventory.drives.remove(&name);
                return (Step::Answer(answer), true);
            }
            (Step::Detach { name, answer }, false)
        }
        Step::Free { name, mut job } => match job.take() {
            None => (Step::Free { name, job }, false),
            Some(freed) => {
                match freed {
                    Ok(()) => {
                        inventory.config.reclaim.remove(&name);
                    }
                    Err(error) => {
                        tracing::warn!(%name, %error, "memory is given back at the next start only")
                    }
                }
                (Step::Answer(Ok(json!(true))), true)
            }
        },
        Step::Serve { number, nvmf, listener, answer } => {
            if !inventory.nvmf.is_settled(number) {
                return (Step::Serve { number, nvmf, listener, answer }, false);
            }
            if let Some((address, error)) =
                listener.and_then(|address| Some((address, inventory.nvmf.refused(address)?)))
            {
                let what = format!("cannot listen at {address}: {error}");
                let answer = Err(RpcError::errno(Errno::of(error.kind), what));
                return (serve_as_before(inventory, answer), true);
            }
            let mut config = inventory.config.clone();
            config.nvmf = nvmf;
            (save(inventory, config, Then::KeepNvmf(answer)), true)
        }
        Step::Served { number, answer } => {
            if !inventory.nvmf.is_settled(number) {
                return (Step::Served { number, answer }, false);
            }
            release_bdevs(inventory);
            (Step::Answer(answer), true)
        }
        Step::Answer(answer) => (Step::Answer(answer), true),
    }
}

/// Changes NVMe over Fabrics: first in force, then durable, so that what cannot be is refused and leaves nothing.
fn change_nvmf<P: Platform>(inventory: &mut Inventory<P>, change: NvmfChange) -> RpcResult<Step<P>> {
    let mut nvmf = inventory.config.nvmf.clone();
    let mut listener = None;
    match &change {
        NvmfChange::AddNamespace(nqn, namespace) => {
            let bdev = &namespace.bdev;
            inventory.bdev(bdev)?;
            let holders = inventory.registry.holders(bdev);
            if let Some(holder) = holders.iter().find(|holder| *holder != nqn) {
                return Err(RpcError::errno(Errno::Busy, format!("bdev {bdev} is in use by {holder}")));
            }
        }
        NvmfChange::AddListener(_, address) => listener = Some(*address),
        _ => {}
    }
    let uuid = |name: &str| inventory.registry.get(name).map(|disk| disk.bdev().uuid());
    let answer = change.apply(&mut nvmf, uuid)?;
    let number = inventory.want_nvmf(&nvmf);
    Ok(Step::Serve { number, nvmf, listener, answer })
}

/// A change of NVMe over Fabrics was not made: what was there before is in force again before the answer.
fn serve_as_before<P: Platform>(inventory: &mut Inventory<P>, answer: RpcResult<Value>) -> Step<P> {
    let nvmf = inventory.config.nvmf.clone();
    Step::Served { number: inventory.want_nvmf(&nvmf), answer }
}

/// Lets bdevs go that a subsystem had and has no more.
fn release_bdevs<P: Platform>(inventory: &mut Inventory<P>) {
    let names = inventory.registry.iter().map(|disk| String::from(disk.bdev().name())).collect::<Vec<_>>();
    for name in names {
        for holder in inventory.registry.holders(&name) {
            let is_controller = inventory.config.controller(&holder).is_some()
                || inventory.controllers.get(&holder).is_some();
            let mut namespaces = inventory.config.nvmf.namespaces();
            let is_used = namespaces.any(|(nqn, namespace)| nqn == holder && namespace.bdev == name);
            drop(namespaces);
            if !is_controller && !is_used {
                inventory.registry.release(&name, &holder);
            }
        }
    }
}

/// Looks whether a new controller listens.
fn started<P: Platform>(
    inventory: &mut Inventory<P>,
    controller: ControllerConfig,
    told: &[(String, Told)],
) -> (Step<P>, bool) {
    let word = told.iter().filter(|(who, _)| *who == controller.name).find_map(|(_, what)| match what {
        Told::Started(Ok(())) => Some(Ok(())),
        Told::Started(Err(error)) => {
            let path = inventory.socket_path(&controller.name);
            Some(Err(RpcError::vhost(
                Errno::of(error.kind),
                format!("cannot listen at {path}: {}", not_listening(error)),
            )))
        }
        Told::Died => Some(Err(RpcError::vhost(Errno::InputOutput, "the controller died as it was made"))),
        Told::Described(..) | Told::Stopped => None,
    });
    match word {
        None => (Step::Start { controller }, false),
        Some(Err(error)) => {
            forget_controller(inventory, &controller.name);
            (Step::Answer(Err(error)), true)
        }
        Some(Ok(())) => {
            let mut config = inventory.config.clone();
            let name = controller.name.clone();
            config.controllers.push(controller);
            (save(inventory, config, Then::Keep(name)), true)
        }
    }
}

/// Starts to give memory of the machine back.
pub(super) fn free<P: Platform>(inventory: &Inventory<P>, name: String) -> P::Job<runtime::Result<()>> {
    let directory = inventory.platform.directory();
    inventory.platform.offload(move || directory.remove_machine_memory(&name))
}

/// Does what has become durable.
fn apply<P: Platform>(inventory: &mut Inventory<P>, then: Then<P>) -> Step<P> {
    match then {
        Then::Add(disk) => {
            let name = json!(disk.bdev().name());
            inventory.registry.add(disk);
            Step::Answer(Ok(name))
        }
        Then::Remove(name) => {
            inventory.pending.forget(&name);
            match inventory.registry.remove(&name) {
                Some(Disk::Malloc(disk)) => {
                    let memory = inventory.config.memory_name(&Bdev::<P>::uuid(&*disk));
                    drop(disk);
                    let job = free(inventory, memory.clone());
                    Step::Free { name: memory, job }
                }
                _ => Step::Answer(Ok(json!(true))),
            }
        }
        Then::Resize(name, num_blocks) => {
            if let Some(Disk::Null(disk)) = inventory.registry.get(&name) {
                disk.resize(num_blocks);
            }
            inventory.controllers.resized(&name);
            inventory.nvmf_bdev_changed(&name);
            Step::Answer(Ok(json!(true)))
        }
        Then::Keep(name) => match inventory.controllers.get(&name).map(|entry| &entry.standing) {
            // It died while it was saved; it is kept, as it would be had it died a moment later.
            Some(Standing::Dead) | None => {
                let what = format!("controller {name} died as it was made");
                Step::Answer(Err(RpcError::vhost(Errno::InputOutput, what)))
            }
            Some(_) => Step::Answer(Ok(json!(true))),
        },
        Then::Stop(name) => end_controller(inventory, name, Ok(json!(true))),
        Then::KeepDrive(name) => {
            if let Some(entry) = inventory.drives.get_mut(&name) {
                entry.kept = true;
            }
            inventory.settle_drives();
            // One that failed as it was saved is kept, as it would be had it failed a moment later.
            let owned = |disk: &&Disk<P>| {
                inventory.config.drive_of(disk.bdev().name()).is_some_and(|of| of.name == name)
            };
            let names = inventory.registry.iter().filter(owned).map(|disk| json!(disk.bdev().name()));
            Step::Answer(Ok(names.collect()))
        }
        Then::LetGo(name) => let_go(inventory, name, Ok(json!(true))),
        Then::Nothing => Step::Answer(Ok(json!(true))),
        Then::KeepNvmf(answer) => {
            release_bdevs(inventory);
            Step::Answer(Ok(answer))
        }
    }
}
