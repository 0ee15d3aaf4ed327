//! The bdevs that the state directory tells of and that are not there yet: those that are being made as the target
//! starts, and those that cannot be made now (a file that is missing, or that a live process holds).
//!
//! One that cannot be made does not hold up the others: it is tried again and again, and only its controllers do not
//! listen until it comes.

use super::inventory::{Inventory, MemoryJob};
use super::opening::{Opened, Opening};
use crate::block::Disk;
use crate::control::config::{BdevConfig, BdevKind};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use runtime::{FileOptions, Instant, Job, Platform, Wakes};

/// How long a bdev that could not be made is left alone before the next try.
const RETRY: Duration = Duration::from_millis(500);

/// The bdevs that are waited for, in order of creation.
pub(super) struct Pending<P: Platform>(Vec<Waiting<P>>);

struct Waiting<P: Platform> {
    config: BdevConfig,
    attempt: Attempt<P>,
    /// What went wrong last.
    reason: Option<String>,
}

enum Attempt<P: Platform> {
    /// At the next poll.
    Due,
    Memory(MemoryJob<P>),
    Opening(Opening<P>),
    /// Not before then.
    Paused(Instant),
}

/// How an attempt ended.
enum Outcome<P: Platform> {
    Goes(Attempt<P>),
    Came(Disk<P>),
    Failed(String),
}

impl<P: Platform> Pending<P> {
    /// These are to be made.
    pub(super) fn new(bdevs: &[BdevConfig]) -> Self {
        let waiting =
            |config: &BdevConfig| Waiting { config: config.clone(), attempt: Attempt::Due, reason: None };
        Self(bdevs.iter().map(waiting).collect())
    }

    /// Why a bdev is not there yet; `None`: it is not waited for.
    pub(super) fn reason(&self, name: &str) -> Option<&str> {
        let waiting = self.0.iter().find(|waiting| waiting.config.name == name)?;
        Some(waiting.reason.as_deref().unwrap_or("it is being opened"))
    }

    /// Whether each was made, or was found to be impossible for now.
    pub(super) fn all_tried(&self) -> bool {
        self.0.iter().all(|waiting| waiting.reason.is_some())
    }

    /// Whether none is waited for.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// No longer waits for a bdev.
    pub(super) fn forget(&mut self, name: &str) {
        self.0.retain(|waiting| waiting.config.name != name);
    }

    pub(super) fn arm(&self, wakes: &mut P::Wakes) {
        for waiting in &self.0 {
            match &waiting.attempt {
                Attempt::Memory(job) => wakes.job(job),
                Attempt::Opening(opening) => opening.arm(wakes),
                Attempt::Due | Attempt::Paused(_) => {}
            }
        }
    }
}

/// Goes on with all of them. Whether there was work; `until` becomes the next time to look.
pub(super) fn poll<P: Platform>(
    inventory: &mut Inventory<P>,
    now: Instant,
    until: &mut Option<Instant>,
) -> bool {
    let mut worked = false;
    let mut index = 0;
    while index < inventory.pending.0.len() {
        let config = inventory.pending.0[index].config.clone();
        let attempt = core::mem::replace(&mut inventory.pending.0[index].attempt, Attempt::Due);
        match go_on(inventory, &config, attempt, now, until, &mut worked) {
            Outcome::Goes(attempt) => inventory.pending.0[index].attempt = attempt,
            Outcome::Failed(reason) => {
                worked = true;
                let waiting = &mut inventory.pending.0[index];
                // The same complaint twice a second helps nobody.
                if waiting.reason.as_ref() != Some(&reason) {
                    tracing::error!(bdev = %config.name, %reason, "the bdev is not there; it is tried again");
                }
                waiting.reason = Some(reason);
                waiting.attempt = Attempt::Paused(now.after(RETRY));
            }
            Outcome::Came(disk) => {
                worked = true;
                tracing::info!(bdev = %config.name, kind = config.kind.noun(), "the bdev is there");
                inventory.pending.0.remove(index);
                inventory.registry.add(disk);
                inventory.start_controllers_on(&config.name);
                continue;
            }
        }
        index += 1;
    }
    worked
}

fn go_on<P: Platform>(
    inventory: &Inventory<P>,
    config: &BdevConfig,
    attempt: Attempt<P>,
    now: Instant,
    until: &mut Option<Instant>,
    worked: &mut bool,
) -> Outcome<P> {
    let mut earlier = |moment: Instant| *until = Some(until.map_or(moment, |until| until.min(moment)));
    match attempt {
        Attempt::Paused(moment) if now < moment => {
            earlier(moment);
            Outcome::Goes(Attempt::Paused(moment))
        }
        Attempt::Due | Attempt::Paused(_) => {
            *worked = true;
            match &config.kind {
                BdevKind::Null(_) => Outcome::Came(inventory.null_disk(config).expect("it is a null bdev")),
                BdevKind::Malloc(block) => Outcome::Goes(Attempt::Memory(inventory.begin_memory(
                    &config.uuid,
                    block.capacity(),
                    false,
                ))),
                BdevKind::File { engine, path, read_only, .. } => {
                    let options = FileOptions { engine: *engine, read_only: *read_only };
                    Outcome::Goes(Attempt::Opening(Opening::begin(&inventory.platform, path, options)))
                }
            }
        }
        Attempt::Memory(mut job) => match job.take() {
            None => Outcome::Goes(Attempt::Memory(job)),
            Some(Err(error)) => Outcome::Failed(format!("its memory cannot be had: {error}")),
            Some(Ok((memory, was_there))) => {
                if !was_there {
                    tracing::warn!(bdev = %config.name, "the machine was off since: the malloc bdev begins with zeroes");
                }
                Outcome::Came(inventory.malloc_disk(config, memory))
            }
        },
        Attempt::Opening(mut opening) => {
            match opening.poll(&inventory.platform, now, |identity| inventory.owner_of(identity)) {
                Opened::Waiting => Outcome::Goes(Attempt::Opening(opening)),
                Opened::Until(moment) => {
                    earlier(moment);
                    Outcome::Goes(Attempt::Opening(opening))
                }
                Opened::Failed(error) => Outcome::Failed(error.message),
                Opened::Held(file, info) => match inventory.file_disk(config, file, info) {
                    Ok(disk) => Outcome::Came(disk),
                    Err(error) => Outcome::Failed(error.message),
                },
            }
        }
    }
}
