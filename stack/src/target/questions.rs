//! Calls that ask and cannot be answered at once: what the controllers tell of themselves from their cores, and bdevs
//! that shall be waited for. Any number is under way at a time, one a client.

use super::change::no_drive;
use super::controllers::{Standing, Told};
use super::drives::{self, Heard};
use super::inventory::Inventory;
use crate::block::Disk;
use crate::control::answers::{self, ControllerView};
use crate::control::calls::Call;
use crate::control::error::{Errno, RpcError, RpcResult};
use crate::control::nvmf;
use crate::control::server::ConnectionId;
use crate::nvme::bits::{Health, Status};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use runtime::{Instant, Platform};
use serde_json::{Value, json};

/// How long a controller's answer is waited for. A core that takes longer hangs; its controller is shown without
/// sessions.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);

/// The questions under way.
#[derive(Default)]
pub(super) struct Questions {
    waiting: Vec<Question>,
    next_number: u64,
}

struct Question {
    from: ConnectionId,
    until: Instant,
    what: Waiting,
}

enum Waiting {
    /// These controllers' sessions; those that have not told yet have none.
    Sessions { number: u64, names: Vec<String>, told: BTreeMap<String, Value>, awaited: Vec<String> },
    /// This bdev.
    Bdev(String),
    /// The health of this NVMe controller.
    Health(String),
}

impl Questions {
    /// Answers a call that asks, or keeps it.
    pub(super) fn ask<P: Platform>(
        &mut self,
        inventory: &mut Inventory<P>,
        from: ConnectionId,
        call: Call,
        now: Instant,
    ) -> Option<RpcResult<Value>> {
        Some(match call {
            Call::GetBdevs { name: None, .. } => Ok(bdev_names(inventory)
                .iter()
                .filter_map(|name| bdev(inventory, name))
                .collect::<Vec<_>>()
                .into()),
            Call::GetBdevs { name: Some(name), timeout_ms } => match bdev(inventory, &name) {
                Some(entry) => Ok(json!([entry])),
                None if timeout_ms == 0 => Err(inventory.no_bdev(&name)),
                None => {
                    let until = now.after(Duration::from_millis(timeout_ms));
                    self.waiting.push(Question { from, until, what: Waiting::Bdev(name) });
                    return None;
                }
            },
            Call::GetIostat { names, per_channel, reset } => {
                if per_channel && names.as_ref().is_none_or(|names| names.len() != 1) {
                    let what = "per_channel tells of one bdev: name it";
                    return Some(Err(RpcError::errno(Errno::Invalid, what)));
                }
                let names: Vec<String> = names.unwrap_or_else(|| bdev_names(inventory));
                if let Some(missing) = names.iter().find(|name| inventory.registry.get(name).is_none()) {
                    return Some(Err(inventory.no_bdev(missing)));
                }
                let told = answers::iostat(&inventory.registry, &names, per_channel, now);
                for name in &names {
                    inventory.registry.reset_statistics(name, reset);
                }
                Ok(told)
            }
            Call::GetControllers { name } => return self.ask_controllers(inventory, from, name, now),
            Call::GetDrives { name } => {
                if let Some(name) = name.as_ref().filter(|name| inventory.config.drive(name).is_none()) {
                    return Some(Err(no_drive(name)));
                }
                let wanted = |entry: &&drives::Entry<P>| {
                    // One that is let go because the target stops is still configured.
                    inventory.config.drives.contains(&entry.config)
                        && name.as_ref().is_none_or(|name| *name == entry.config.name)
                };
                Ok(inventory.drives.iter().filter(wanted).map(drive).collect::<Vec<_>>().into())
            }
            Call::GetDriveHealth { name } => {
                let Some(entry) = inventory.drives.get(&name).filter(|entry| entry.kept) else {
                    return Some(Err(no_drive(&name)));
                };
                let reason = entry.reason();
                if !inventory.drives.read_health(&name) {
                    return Some(Err(RpcError::errno(Errno::Busy, reason)));
                }
                let until = now.after(ANSWER_WAIT_MAX);
                self.waiting.push(Question { from, until, what: Waiting::Health(name) });
                return None;
            }
            Call::GetNvmfSubsystems { nqn } => nvmf::subsystems(&inventory.config.nvmf, nqn.as_deref()),
            Call::GetNvmfTransports => Ok(nvmf::transports(&inventory.config.nvmf)),
            Call::GetReactors => {
                let reactors = inventory.platform.reactors();
                let threads = reactors.iter().map(|reactor| {
                    let here = inventory.controllers.iter().filter(|entry| entry.core == reactor.core);
                    here.map(|entry| entry.config.name.clone()).collect()
                });
                Ok(answers::reactors(&reactors, &threads.collect::<Vec<_>>()))
            }
            Call::GetSubsystems => Ok(answers::subsystems()),
            Call::GetConfig { subsystem } => answers::config(&inventory.config, &subsystem),
            Call::GetMethods => Ok(answers::methods()),
            Call::GetVersion => Ok(answers::version(inventory.options.version)),
            Call::CreateBdev(_)
            | Call::DeleteBdev { .. }
            | Call::ResizeNull { .. }
            | Call::Rescan { .. }
            | Call::SetNvmeOptions(_)
            | Call::AttachDrive(_)
            | Call::DetachDrive { .. }
            | Call::ResetDrive { .. }
            | Call::CreateController(_)
            | Call::DeleteController { .. }
            | Call::Nvmf(_) => unreachable!("changes are made, not asked"),
        })
    }

    fn ask_controllers<P: Platform>(
        &mut self,
        inventory: &mut Inventory<P>,
        from: ConnectionId,
        name: Option<String>,
        now: Instant,
    ) -> Option<RpcResult<Value>> {
        // What is not acknowledged yet is not shown yet.
        let names = inventory.config.controllers.iter().map(|controller| controller.name.clone());
        let names = names.filter(|known| name.as_ref().is_none_or(|name| name == known)).collect::<Vec<_>>();
        if let (Some(name), true) = (name, names.is_empty()) {
            return Some(Err(RpcError::errno(Errno::NoSuchDevice, format!("no controller is named {name}"))));
        }
        let number = self.next_number;
        self.next_number += 1;
        let awaited = names
            .iter()
            .filter(|name| inventory.controllers.describe(name, number))
            .cloned()
            .collect::<Vec<_>>();
        let told = BTreeMap::new();
        if awaited.is_empty() {
            return Some(Ok(controllers(inventory, &names, &told)));
        }
        let what = Waiting::Sessions { number, names, told, awaited };
        self.waiting.push(Question { from, until: now.after(ANSWER_WAIT_MAX), what });
        None
    }

    /// Takes what was told, and answers what can be answered. Whether there was work.
    pub(super) fn poll<P: Platform>(
        &mut self,
        inventory: &Inventory<P>,
        now: Instant,
        told: &[(String, Told)],
        heard: &[(String, Heard)],
        answers: &mut Vec<(ConnectionId, RpcResult<Value>)>,
    ) -> bool {
        let before = self.waiting.len();
        self.waiting.retain_mut(|question| {
            let late = now >= question.until;
            let answer = match &mut question.what {
                Waiting::Bdev(name) => match bdev(inventory, name) {
                    Some(entry) => Some(Ok(json!([entry]))),
                    None => late.then(|| Err(inventory.no_bdev(name))),
                },
                Waiting::Health(name) => {
                    let page = heard.iter().find_map(|(who, word)| match word {
                        Heard::Health(page) if who == name => Some(page),
                        _ => None,
                    });
                    match page {
                        Some(page) => Some(health(inventory, name, page)),
                        None => late.then(|| {
                            let what = format!("NVMe controller {name} did not give its health in time");
                            Err(RpcError::errno(Errno::InputOutput, what))
                        }),
                    }
                }
                Waiting::Sessions { number, names, told: heard, awaited } => {
                    for (who, what) in told {
                        match what {
                            Told::Described(answered, sessions) if answered == number => {
                                heard.insert(who.clone(), sessions.clone());
                                awaited.retain(|name| name != who);
                            }
                            Told::Stopped | Told::Died => awaited.retain(|name| name != who),
                            Told::Described(..) | Told::Started(_) => {}
                        }
                    }
                    (awaited.is_empty() || late).then(|| Ok(controllers(inventory, names, heard)))
                }
            };
            match answer {
                None => true,
                Some(answer) => {
                    answers.push((question.from, answer));
                    false
                }
            }
        });
        self.waiting.len() != before
    }

    /// Gives up the questions of all connections but those that still wait.
    pub(super) fn retain(&mut self, waits: impl Fn(ConnectionId) -> bool) {
        self.waiting.retain(|question| waits(question.from));
    }

    /// When to look again though nothing changed.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.waiting.iter().map(|question| question.until).min()
    }
}

/// The bdevs that there are, in order of creation (after a restart they come in any order).
fn bdev_names<P: Platform>(inventory: &Inventory<P>) -> Vec<String> {
    let there = inventory.config.bdevs.iter().filter(|bdev| inventory.registry.get(&bdev.name).is_some());
    let namespaces = inventory.registry.iter().filter(|disk| matches!(disk, Disk::Nvme(_)));
    let mut namespaces = namespaces.map(|disk| String::from(disk.bdev().name())).collect::<Vec<_>>();
    namespaces.sort_unstable();
    there.map(|bdev| bdev.name.clone()).chain(namespaces).collect()
}

/// One entry of `bdev_nvme_get_controllers`.
fn drive<P: Platform>(entry: &drives::Entry<P>) -> Value {
    let (state, reason) = match &entry.standing {
        drives::Standing::Ready => ("enabled", None),
        drives::Standing::Resetting(why) => ("resetting", Some(why.as_str())),
        drives::Standing::Starting => ("starting", None),
        drives::Standing::Closing(Some(why)) | drives::Standing::Waiting(why, _) => {
            ("failed", Some(why.as_str()))
        }
        drives::Standing::Closing(None) => ("deleting", None),
    };
    let found = entry.found.as_ref();
    answers::drive(&answers::DriveView {
        config: &entry.config,
        state,
        reason,
        info: found.map(|found| &found.info),
        unusable: found.map_or(&[], |found| &found.unusable),
    })
}

/// `bdev_nvme_get_controller_health_info`, from the log page.
fn health<P: Platform>(
    inventory: &Inventory<P>,
    name: &str,
    page: &Result<Vec<u8>, Status>,
) -> RpcResult<Value> {
    let page = page.as_ref().map_err(|status| {
        RpcError::errno(
            Errno::InputOutput,
            format!("NVMe controller {name} refused its health log: {status}"),
        )
    })?;
    let entry = inventory.drives.get(name).ok_or_else(|| no_drive(name))?;
    let info = entry.found.as_ref().map(|found| &found.info);
    Ok(answers::health(&entry.config, info, &Health::decode(page)))
}

/// One entry of `bdev_get_bdevs`, if the bdev is there.
fn bdev<P: Platform>(inventory: &Inventory<P>, name: &str) -> Option<Value> {
    let bdev = inventory.registry.get(name)?.bdev();
    Some(answers::bdev(&*bdev, &inventory.registry.holders(name), inventory.registry.is_shared(name)))
}

/// The entries of `vhost_get_controllers`.
fn controllers<P: Platform>(
    inventory: &Inventory<P>,
    names: &[String],
    told: &BTreeMap<String, Value>,
) -> Value {
    let reactors = inventory.platform.reactors();
    let entries = names.iter().filter_map(|name| inventory.controllers.get(name)).map(|entry| {
        let processor =
            reactors.iter().find(|reactor| reactor.core == entry.core).map_or(0, |one| one.processor);
        let standing = match &entry.standing {
            Standing::Waiting(reason, _) => ("waiting", Some(reason.as_str())),
            Standing::Starting => ("starting", None),
            Standing::Serving => ("serving", None),
            Standing::Stopping => ("stopping", None),
            Standing::Dead => ("dead", Some("it died; delete it, or start the target again")),
        };
        answers::controller(&ControllerView {
            config: &entry.config,
            processor,
            socket: inventory.socket_path(&entry.config.name),
            sessions: told.get(&entry.config.name).cloned().unwrap_or_else(|| json!([])),
            has_bdev: inventory.registry.get(&entry.config.bdev).is_some(),
            standing,
        })
    });
    entries.collect::<Vec<_>>().into()
}
