//! Channels and their queues: attached, created, deleted.

use super::super::admin::Purpose;
use super::super::channel::{BOUNCE_LEN, BOUNCES};
use super::super::doorbell::Doorbell;
use super::super::failure::Failure;
use super::super::memory::{DeviceMemory, Part};
use super::super::messages::{ChannelId, Queue, ToChannel, ToController};
use super::super::queue::{completions_len, submissions_len};
use super::super::transfer::LIST_LEN;
use super::super::{PciOf, RegistersOf};
use super::{Controller, Phase, QueueSlot, Remote, Stage};
use crate::nvme::bits::{Command, PAGE, doorbell};
use crate::reached::Reached;
use alloc::boxed::Box;
use core::time::Duration;
use runtime::{Instant, Job, Platform, Sender, Window};

/// When memory for a queue that could not be mapped is tried again, and how often before its channel's requests fail: what
/// stands in the way (the limit of locked memory) may go with whoever locked it, and requests wait meanwhile.
const MAP_RETRY: Duration = Duration::from_millis(100);
const MAP_TRIES: u8 = 50;

impl<P: Platform, X: PciOf<P>> Controller<P, X> {
    /// The slot of queue `index + 1`, made with those before it where it is not there.
    pub(super) fn queue_slot(&mut self, index: usize) -> &mut QueueSlot<P, X> {
        while self.queues.len() <= index {
            self.queues.push(QueueSlot { taken: false, memory: None, notifier: None });
        }
        &mut self.queues[index]
    }

    pub(super) fn hear(&mut self, now: Instant, message: ToController<P, X>) {
        match message {
            ToController::Attach { channel, core, nsid, to } => {
                tracing::debug!(address = %self.address, channel = channel.0, %core, nsid, "a channel attaches");
                if let Phase::Failed(why) = &self.phase {
                    let _ = to.send(ToChannel::Fail(why.clone()));
                } else if self.closing {
                    let _ = to.send(ToChannel::Fail(Failure::Closed));
                } else {
                    self.remotes.push(Remote {
                        id: channel,
                        core,
                        nsid,
                        to,
                        queue: None,
                        refusals: 0,
                        retry_at: Instant(0),
                        stage: Stage::Unassigned,
                    });
                }
            }
            ToController::Quiet { channel } => {
                if let Some(remote) = self.remote(channel)
                    && matches!(remote.stage, Stage::Quieting)
                {
                    remote.stage = Stage::Mapped;
                }
            }
            ToController::Late { channel, id } => self.abort(now, channel, id),
            ToController::Stuck { channel, why } => {
                let runs = self.remote(channel).is_some_and(|remote| matches!(remote.stage, Stage::Running));
                if runs && matches!(self.phase, Phase::Running) {
                    self.trouble(why);
                }
            }
            ToController::Detach { channel, notifier } => self.detach(now, channel, notifier),
        }
    }

    pub(super) fn remote(&mut self, channel: ChannelId) -> Option<&mut Remote<P, X>> {
        self.remotes.iter_mut().find(|remote| remote.id == channel)
    }

    /// A channel is gone, with nothing in flight: its queue is deleted, where there is one.
    pub(super) fn detach(&mut self, now: Instant, channel: ChannelId, notifier: Option<P::Notifier>) {
        let Some(at) = self.remotes.iter().position(|remote| remote.id == channel) else { return };
        let Remote { queue, stage, .. } = self.remotes.swap_remove(at);
        let Some(queue) = queue else { return };
        let slot = &mut self.queues[usize::from(queue) - 1];
        if notifier.is_some() {
            slot.notifier = notifier;
        }
        match stage {
            Stage::Running if matches!(self.phase, Phase::Running) => {
                self.submit(now, Command::delete_sq(queue), Purpose::DeleteSubmissions(queue));
            }
            // Its creation is on its way, and finds nobody at its end.
            Stage::Creating if matches!(self.phase, Phase::Running) => {}
            // A job that maps its memory lets go of it at its end. A reset deletes every queue.
            _ => slot.taken = false,
        }
    }

    /// Assigns queues to channels that have none, and creates those whose memory is there. Whether there was work.
    pub(super) fn create_queues(&mut self, now: Instant) -> bool {
        let mut worked = false;
        for at in 0..self.remotes.len() {
            let unassigned = matches!(self.remotes[at].stage, Stage::Unassigned);
            if unassigned && self.frees_a_queue() {
                Reached::NvmeQueueNotFree.mark::<P::Window>();
                continue;
            }
            if unassigned && now < self.remotes[at].retry_at {
                continue;
            }
            match &mut self.remotes[at].stage {
                Stage::Unassigned => {
                    worked = true;
                    if !self.assign(at) {
                        // The list has changed under the loop; what is left of it comes next time.
                        return true;
                    }
                }
                Stage::Mapping(job) => match job.take() {
                    None => {}
                    Some(Err(why)) => {
                        let remote = &mut self.remotes[at];
                        let queue = remote.queue.take().expect("memory is mapped for a queue");
                        self.queues[usize::from(queue) - 1].taken = false;
                        if remote.refusals == 0 {
                            tracing::warn!(address = %self.address, queue, %why, "a channel waits for its queue");
                        }
                        if remote.refusals == MAP_TRIES {
                            Reached::NvmeQueueRefused.mark::<P::Window>();
                            remote.tell(ToChannel::Refuse(why));
                        }
                        Reached::NvmeQueueNotMapped.mark::<P::Window>();
                        remote.refusals = remote.refusals.saturating_add(1);
                        remote.retry_at = now.after(MAP_RETRY);
                        remote.stage = Stage::Unassigned;
                        worked = true;
                    }
                    Some(Ok(memory)) => {
                        worked = true;
                        let remote = &mut self.remotes[at];
                        remote.stage = Stage::Mapped;
                        let queue = remote.queue.expect("memory is mapped for a queue");
                        self.queues[usize::from(queue) - 1].memory = Some(memory);
                    }
                },
                Stage::Mapped => {
                    worked = true;
                    self.create_completions(now, at);
                }
                Stage::Creating | Stage::Running | Stage::Quieting => {}
            }
        }
        worked
    }

    /// Whether no queue is free, and one will be soon: whoever had it is gone.
    fn frees_a_queue(&self) -> bool {
        let usable = self.queues.iter().take(usize::from(self.granted));
        let mut taken = usable.zip(1..).map(|(slot, id)| (slot.taken, id));
        let all_taken = taken.clone().all(|(taken, _)| taken);
        all_taken && taken.any(|(_, id)| self.user_of(id).is_none())
    }

    /// Gives a channel a queue. `false`: there is none, and the channel is gone from the list.
    pub(super) fn assign(&mut self, at: usize) -> bool {
        let usable = self.queues.iter().take(usize::from(self.granted));
        let Some(free) = usable.map(|slot| slot.taken).position(|taken| !taken) else {
            let remote = self.remotes.swap_remove(at);
            remote.tell(ToChannel::Fail(Failure::NoQueue { queues: self.granted }));
            return false;
        };
        let slot = &mut self.queues[free];
        slot.taken = true;
        self.remotes[at].queue = Some(free as u16 + 1);
        self.remotes[at].stage = if slot.memory.is_some() {
            Stage::Mapped
        } else {
            let memory = self.platform.shared_memory("reprise-nvme", QueueMemory::new(self.entries).len);
            let dma = self.opened().dma.clone();
            Stage::Mapping(self.platform.offload(move || {
                let mapped = memory.and_then(|memory| DeviceMemory::map(memory, &dma));
                mapped.map_err(|error| Failure::World { what: "memory for an I/O queue", error })
            }))
        };
        true
    }

    /// The channel that was to have a queue cannot have it.
    pub(super) fn refuse_channel(&mut self, queue: u16, why: Failure) {
        if let Some(at) = self.user_of(queue) {
            self.remotes.swap_remove(at).tell(ToChannel::Fail(why));
        }
    }

    /// Where in the list the channel is that has a queue.
    pub(super) fn user_of(&self, queue: u16) -> Option<usize> {
        self.remotes.iter().position(|remote| remote.queue == Some(queue))
    }

    pub(super) fn create_completions(&mut self, now: Instant, at: usize) {
        let remote = &mut self.remotes[at];
        let queue = remote.queue.expect("a channel with memory has a queue");
        remote.stage = Stage::Creating;
        if let Some(pages) = &self.shadow {
            for completion in [false, true] {
                let slot = doorbell(queue, completion, self.capabilities.dstrd());
                Doorbell::<P::Window, RegistersOf<X>>::clear(pages, slot);
            }
        }
        let memory = self.queue_memory(queue);
        let layout = QueueMemory::new(self.entries);
        let completions = memory.part(layout.completions, completions_len(self.entries));
        // What an older queue left there has the phase of new entries.
        completions.window.fill(0, completions.window.len(), 0);
        let vector = (queue < self.vectors).then_some(queue);
        let command = Command::create_cq(queue, self.entries, completions.address, vector);
        self.submit(now, command, Purpose::CreateCompletions(queue));
    }

    pub(super) fn queue_memory(&self, queue: u16) -> Part<P::Window> {
        let memory = self.queues[usize::from(queue) - 1].memory.as_ref();
        memory.expect("a queue that is created has memory").whole()
    }

    pub(super) fn create_submissions(&mut self, now: Instant, queue: u16) {
        if self.user_of(queue).is_none() {
            return self.submit(now, Command::delete_cq(queue), Purpose::DeleteCompletions(queue));
        }
        let submissions = self.queue_memory(queue).part(0, submissions_len(self.entries));
        let command = Command::create_sq(queue, self.entries, submissions.address);
        self.submit(now, command, Purpose::CreateSubmissions(queue));
    }

    /// A queue is there: its channel begins, or goes on.
    pub(super) fn start_channel(&mut self, now: Instant, id: u16) {
        let user = self.user_of(id).map(|at| (at, self.remotes[at].nsid));
        let found = user.and_then(|(at, nsid)| {
            let namespace = self.namespaces.iter().find(|namespace| namespace.id == nsid)?;
            Some((at, nsid, namespace.limits))
        });
        let Some((at, nsid, limits)) = found else {
            let why = "the namespace is not there any more, or cannot be used";
            self.refuse_channel(id, Failure::Unsupported(why.into()));
            return self.submit(now, Command::delete_sq(id), Purpose::DeleteSubmissions(id));
        };
        let memory = self.queue_memory(id);
        let layout = QueueMemory::new(self.entries);
        let opened = self.opened();
        let queue = Queue {
            id,
            entries: self.entries,
            submissions: memory.part(0, submissions_len(self.entries)),
            completions: memory.part(layout.completions, completions_len(self.entries)),
            lists: memory.part(layout.lists, u64::from(self.entries) * LIST_LEN),
            bounces: memory.part(layout.bounces, u64::from(BOUNCES) * BOUNCE_LEN),
            zeroes: self.page(0).address,
            registers: opened.registers.clone(),
            dstrd: self.capabilities.dstrd(),
            shadow: self.shadow,
            dma: opened.dma.clone(),
            nsid,
            limits,
            notifier: self.queues[usize::from(id) - 1].notifier.take(),
        };
        if self
            .remotes
            .iter()
            .any(|other| matches!(other.stage, Stage::Running) && other.core != self.remotes[at].core)
        {
            Reached::NvmeSeveralCores.mark::<P::Window>();
        }
        let remote = &mut self.remotes[at];
        remote.stage = Stage::Running;
        remote.tell(ToChannel::Start(Box::new(queue)));
    }
}

/// Where the parts of an I/O queue's memory lie; each begins a page.
struct QueueMemory {
    completions: u64,
    lists: u64,
    bounces: u64,
    len: u64,
}

impl QueueMemory {
    const fn new(entries: u16) -> Self {
        let completions = submissions_len(entries).next_multiple_of(PAGE);
        let lists = completions + completions_len(entries).next_multiple_of(PAGE);
        let bounces = lists + (entries as u64 * LIST_LEN).next_multiple_of(PAGE);
        Self { completions, lists, bounces, len: bounces + BOUNCES as u64 * BOUNCE_LEN }
    }
}
