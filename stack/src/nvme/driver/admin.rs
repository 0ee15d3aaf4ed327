//! The admin queue: a small queue pair, a page of data for each command, and what each command was sent for.

use super::commands::{COMMANDS_MAX, Commands};
use super::doorbell::Doorbell;
use super::failure::Failure;
use super::memory::Part;
use super::queue::{QueuePair, completions_len, submissions_len};
use crate::nvme::bits::{Command, Completion, DOORBELLS, LogPage, PAGE, doorbell};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;
use runtime::{Instant, Registers, Window};

/// Entries of the admin queues.
pub(super) const ENTRIES: u16 = 32;
/// Bytes of memory that the admin queue needs: each queue begins a page, then come the data pages.
pub(super) const MEMORY_LEN: u64 = PAGE * (2 + ENTRIES as u64 - 1);
const _: () = assert!(submissions_len(ENTRIES) <= PAGE && completions_len(ENTRIES) <= PAGE);

/// What an admin command was sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Identify Controller.
    Controller,
    /// What the NVM command set adds to it.
    NvmController,
    /// Number of Queues.
    QueueCount,
    /// Asynchronous Event Configuration.
    Events,
    /// Doorbell Buffer Config.
    DoorbellBuffers,
    /// The list of active namespaces.
    NamespaceList,
    /// A namespace of the scan that goes on.
    Namespace,
    /// Its identification descriptors.
    NamespaceDescriptors,
    /// I/O completion queue of that number.
    CreateCompletions(u16),
    /// I/O submission queue of that number.
    CreateSubmissions(u16),
    /// I/O submission queue whose channel is gone.
    DeleteSubmissions(u16),
    /// Its completion queue.
    DeleteCompletions(u16),
    /// A command that takes too long.
    Abort,
    /// An Asynchronous Event Request. It may stay out for ever.
    Event,
    /// A log page.
    Log(LogPage),
}

impl Purpose {
    /// The command's name, for people.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Controller | Self::NvmController => "Identify Controller",
            Self::QueueCount => "Set Features (Number of Queues)",
            Self::Events => "Set Features (Asynchronous Event Configuration)",
            Self::DoorbellBuffers => "Doorbell Buffer Config",
            Self::NamespaceList => "Identify (active namespaces)",
            Self::Namespace | Self::NamespaceDescriptors => "Identify Namespace",
            Self::CreateCompletions(_) => "Create I/O Completion Queue",
            Self::CreateSubmissions(_) => "Create I/O Submission Queue",
            Self::DeleteSubmissions(_) => "Delete I/O Submission Queue",
            Self::DeleteCompletions(_) => "Delete I/O Completion Queue",
            Self::Abort => "Abort",
            Self::Event => "Asynchronous Event Request",
            Self::Log(_) => "Get Log Page",
        }
    }

    /// Whether the controller writes data, to the command's page.
    const fn has_data(self) -> bool {
        matches!(
            self,
            Self::Controller
                | Self::NvmController
                | Self::NamespaceList
                | Self::Namespace
                | Self::NamespaceDescriptors
                | Self::Log(_)
        )
    }
}

#[derive(Clone, Copy, Debug)]
struct Out {
    purpose: Purpose,
    since: Instant,
}

/// A command that has come back.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) purpose: Purpose,
    pub(super) completion: Completion,
    /// Its data, read once; empty where it has none.
    pub(super) data: Vec<u8>,
}

/// The admin queue of an enabled controller.
pub(super) struct AdminQueue<W, R> {
    pair: QueuePair<W, R>,
    commands: Commands<Out>,
    data: Part<W>,
    backlog: VecDeque<(Command, Purpose)>,
}

impl<W: Window, R: Registers> AdminQueue<W, R> {
    /// A new queue in `memory` of [`MEMORY_LEN`] bytes. It has no shadow doorbells: what it would save is nothing.
    pub(super) fn new(memory: &Part<W>, registers: &R, dstrd: u64) -> Self {
        let bell =
            |completion| Doorbell::new(registers.clone(), DOORBELLS + doorbell(0, completion, dstrd), None);
        let pair = QueuePair::new(
            ENTRIES,
            &memory.part(0, submissions_len(ENTRIES)),
            &memory.part(PAGE, completions_len(ENTRIES)),
            bell(false),
            bell(true),
        );
        let data = memory.part(2 * PAGE, MEMORY_LEN - 2 * PAGE);
        Self { pair, commands: Commands::new(ENTRIES - 1), data, backlog: VecDeque::new() }
    }

    /// Submits a command, now or as soon as there is room.
    pub(super) fn submit(&mut self, now: Instant, command: Command, purpose: Purpose) {
        let Some(place) = self.commands.next_place() else {
            self.backlog.push_back((command, purpose));
            return;
        };
        let mut command = command;
        if purpose.has_data() {
            let page = self.page(place);
            // What a command that writes less than it should leaves must not be an older command's data.
            page.window.fill(0, PAGE, 0);
            command = command.with_prps(page.address, 0);
        }
        command.id = self.commands.put(Out { purpose, since: now });
        self.pair.push(&command);
        self.pair.announce();
    }

    fn page(&self, place: u16) -> Part<W> {
        self.data.part(u64::from(place) * PAGE, PAGE)
    }

    /// Takes the next command that has come back.
    pub(super) fn poll(&mut self, now: Instant) -> Result<Option<Answer>, Failure> {
        let Some(completion) = self.pair.next() else { return Ok(None) };
        self.pair.release();
        let ours = completion.sq_id == 0;
        let Some(out) = ours.then(|| self.commands.take(completion.id)).flatten() else {
            return Err(Failure::Broken("it completed an admin command that is not out"));
        };
        let mut data = Vec::new();
        if out.purpose.has_data() {
            data.resize(PAGE as usize, 0);
            self.page(completion.id & (COMMANDS_MAX - 1)).window.read(0, &mut data);
        }
        if let Some((command, purpose)) = self.backlog.pop_front() {
            self.submit(now, command, purpose);
        }
        Ok(Some(Answer { purpose: out.purpose, completion, data }))
    }

    /// A command that takes longer than `timeout`, by its name.
    pub(super) fn late(&mut self, now: Instant, timeout: Duration) -> Option<&'static str> {
        let timeout_ns = Instant(0).after(timeout).0;
        let is_late = |out: &Out| out.purpose != Purpose::Event && now.since_ns(out.since) >= timeout_ns;
        self.commands.iter_mut().find(|(_, out)| is_late(out)).map(|(_, out)| out.purpose.name())
    }
}
