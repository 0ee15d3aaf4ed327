//! What is done about a failure, and at the end: the rungs of the ladder.

use super::super::PciOf;
use super::super::failure::Failure;
use super::super::memory::DeviceMemory;
use super::super::messages::ToChannel;
use super::{Controller, Phase, Report, Rung, Stage, Then};
use crate::events::Kind;
use crate::nvme::bits::{Configuration, register};
use crate::reached::Reached;
use alloc::vec::Vec;
use core::time::Duration;
use runtime::{Instant, PciFunction, Platform, Registers};

/// How long a shutdown may take where the controller does not say (RTD3E), and the longest that it may claim.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
const SHUTDOWN_TIMEOUT_MAX: Duration = Duration::from_secs(60);

impl<P: Platform, X: PciOf<P>> Controller<P, X> {
    /// Something is wrong: the next rung of the ladder.
    pub(super) fn trouble(&mut self, why: Failure) {
        if self.closing {
            return self.quiet(Then::Release);
        }
        if matches!(why, Failure::Removed | Failure::Unsupported(_)) {
            return self.give_up(why);
        }
        // A controller that does not stop will not stop the next time either.
        let cannot_stop = matches!(self.phase, Phase::Disabling { .. });
        let then = match self.rung {
            Rung::Reset if !cannot_stop => {
                self.rung = Rung::ResetFunction;
                Then::Reset
            }
            Rung::Reset | Rung::ResetFunction => {
                self.rung = Rung::GiveUp;
                Then::ResetFunction
            }
            Rung::GiveUp => return self.give_up(why),
        };
        self.begin_reset(why, then);
    }

    pub(super) fn begin_reset(&mut self, why: Failure, then: Then) {
        why.reached().mark::<P::Window>();
        tracing::warn!(address = %self.address, %why, ?then, "an NVMe controller is reset");
        self.report(Report::Resetting(why));
        self.quiet(then);
    }

    /// Tells every channel that runs to be quiet; what comes then, comes when all are.
    pub(super) fn quiet(&mut self, then: Then) {
        let mut core = None;
        for remote in &mut self.remotes {
            match remote.stage {
                Stage::Running => {
                    if *core.get_or_insert(remote.core) != remote.core {
                        Reached::NvmeCoresQuieted.mark::<P::Window>();
                    }
                    remote.stage = Stage::Quieting;
                    remote.tell(ToChannel::BeQuiet);
                }
                Stage::Creating => remote.stage = Stage::Mapped,
                Stage::Unassigned | Stage::Mapping(_) | Stage::Mapped | Stage::Quieting => {}
            }
        }
        self.phase = Phase::Quieting(then);
    }

    pub(super) fn when_quiet(&mut self, now: Instant, then: Then) {
        match then {
            Then::Reset => {
                self.record(Kind::NvmeReset, 0, 0, 0);
                self.disable(now);
            }
            Then::ResetFunction => {
                self.record(Kind::NvmeFunctionReset, 0, 0, 0);
                let function = self.opened().function.clone();
                self.phase = Phase::ResettingFunction(self.platform.offload(move || function.reset()));
            }
            Then::ShutDown => {
                let us = self.info.as_ref().map_or(0, |info| u64::from(info.shutdown_us));
                let timeout = Duration::from_micros(us).max(SHUTDOWN_TIMEOUT).min(SHUTDOWN_TIMEOUT_MAX);
                let registers = self.registers();
                let configuration = Configuration(registers.load_u32(register::CC));
                registers.store_u32(register::CC, configuration.with_shn(Configuration::SHN_NORMAL).0);
                self.phase = Phase::ShuttingDown { until: now.after(timeout) };
            }
            Then::Release => self.release(),
        }
    }

    /// The controller is given up: it cannot reach memory any more, and its users are told.
    pub(super) fn give_up(&mut self, why: Failure) {
        if self.opened.is_some() {
            self.set_bus_master(false);
        }
        self.admin = None;
        why.reached().mark::<P::Window>();
        self.record(Kind::NvmeFailed, 0, 0, 0);
        tracing::error!(address = %self.address, %why, "an NVMe controller is given up");
        for remote in &self.remotes {
            remote.tell(ToChannel::Fail(why.clone()));
        }
        for namespace in &self.namespaces {
            namespace.set_gone();
        }
        self.report(Report::Failed(why.clone()));
        self.phase = Phase::Failed(why);
        if self.closing {
            self.quiet(Then::Release);
        }
    }

    /// Gives everything back. All channels are quiet.
    pub(super) fn release(&mut self) {
        if self.opened.is_some() {
            self.set_bus_master(false);
        }
        self.admin = None;
        for remote in self.remotes.drain(..) {
            remote.tell(ToChannel::Fail(Failure::Closed));
        }
        for namespace in self.namespaces.drain(..) {
            namespace.set_gone();
        }
        let opened = self.opened.take();
        let queues: Vec<DeviceMemory<P, X>> = self.queues.drain(..).filter_map(|slot| slot.memory).collect();
        self.notifier = None;
        // To unmap blocks.
        self.phase = Phase::Releasing(self.platform.offload(move || drop((queues, opened))));
    }
}
