//! The register file and a controller's life: disabled, getting ready, ready, stopping; shut down or not (section 3.5).

use super::{Controller, lies};
use crate::faults::FaultKind;
use crate::world::World;
use runtime::Instant;
use stack::nvme::bits::{
    AdminQueueAttributes, Capabilities, Configuration, ControllerStatus, DOORBELLS, NSSR_RESET, PAGE,
    ReadyTimeouts, Version, register,
};

/// Longest additional time of a slow enable, in nanoseconds.
const SLOW_NS_MAX: u64 = 3_000_000_000;

/// Where a controller is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// CC.EN is 0, CSTS.RDY is 0.
    Disabled,
    /// CC.EN is 1, CSTS.RDY is 0; it becomes 1 then (`None`: never).
    Enabling(Option<Instant>),
    /// Both are 1.
    Ready,
    /// CC.EN is 0, CSTS.RDY is 1; it becomes 0 then (`None`: never).
    Disabling(Option<Instant>),
}

/// The registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct RegisterFile {
    pub(super) life: Life,
    pub(super) configuration: Configuration,
    pub(super) status: ControllerStatus,
    pub(super) admin: AdminQueueAttributes,
    pub(super) submissions: u64,
    pub(super) completions: u64,
    /// A shutdown goes on until then.
    pub(super) shutdown: Option<Instant>,
}

impl RegisterFile {
    pub(super) fn new() -> Self {
        Self {
            life: Life::Disabled,
            configuration: Configuration::default(),
            status: ControllerStatus::default(),
            admin: AdminQueueAttributes::default(),
            submissions: 0,
            completions: 0,
            shutdown: None,
        }
    }
}

/// A half of a word, or all of it.
const fn part(word: u64, offset: u64, len: u8) -> u64 {
    if len == 8 { word } else { word >> (8 * (offset % 8)) & 0xffff_ffff }
}

/// A word of which a half, or all, is replaced.
const fn with_part(word: u64, offset: u64, len: u8, value: u64) -> u64 {
    match (len, offset % 8) {
        (8, _) => value,
        (_, 0) => word >> 32 << 32 | value,
        _ => word & 0xffff_ffff | value << 32,
    }
}

impl Controller {
    fn capabilities(&self) -> Capabilities {
        let profile = &self.profile;
        Capabilities::default()
            .with_mqes(u64::from(profile.queue_entries_max) - 1)
            .with_cqr(1)
            .with_to(profile.timeout.into())
            .with_dstrd(profile.dstrd.into())
            .with_css(Capabilities::CSS_NVM)
            .with_mpsmax(profile.page_size_max.into())
            .with_crwms((profile.version.0 >= 2).into())
    }

    /// What a load gives.
    pub(super) fn load_register(&self, world: &mut World, offset: u64, len: u8) -> u64 {
        let profile = &self.profile;
        let aligned = offset & !7;
        let mut lie = |right: u64, of: fn(u64, u64) -> u64| {
            world
                .faults
                .strike(FaultKind::NvmeLie, lies::draw)
                .map_or(right, |parameter| of(right, parameter))
        };
        let number: fn(u64, u64) -> u64 = |right, parameter| lies::number(right as u32, parameter).into();
        let file = &self.registers;
        match aligned {
            register::CAP => {
                let of = |right, parameter| lies::capabilities(Capabilities(right), parameter).0;
                part(lie(self.capabilities().0, of), offset, len)
            }
            _ if offset == register::VS => {
                let (major, minor, tertiary) = profile.version;
                let version = Version::default()
                    .with_mjr(major.into())
                    .with_mnr(minor.into())
                    .with_ter(tertiary.into());
                lie(version.0.into(), number)
            }
            _ if offset == register::CC => file.configuration.0.into(),
            _ if offset == register::CSTS => file.status.0.into(),
            _ if offset == register::AQA => file.admin.0.into(),
            register::ASQ => part(file.submissions, offset, len),
            register::ACQ => part(file.completions, offset, len),
            _ if offset == register::CRTO && profile.version.0 >= 2 => {
                let timeouts = ReadyTimeouts::default().with_crwmt(profile.timeout.into());
                let of = |right, parameter| lies::ready_timeouts(right as u32, parameter).into();
                lie(timeouts.0.into(), of)
            }
            _ => 0,
        }
    }

    /// What a store does.
    pub(super) fn store_register(&mut self, world: &mut World, offset: u64, len: u8, value: u64) {
        if offset >= DOORBELLS {
            self.ring(world, offset - DOORBELLS, value as u32);
            return;
        }
        match offset & !7 {
            _ if offset == register::CC => self.configure(world, Configuration(value as u32)),
            _ if offset == register::NSSR && value as u32 == NSSR_RESET => {}
            _ if offset == register::AQA => self.registers.admin.0 = value as u32,
            register::ASQ => {
                self.registers.submissions = with_part(self.registers.submissions, offset, len, value);
            }
            register::ACQ => {
                self.registers.completions = with_part(self.registers.completions, offset, len, value);
            }
            _ => {}
        }
    }

    fn configure(&mut self, world: &mut World, new: Configuration) {
        let before = std::mem::replace(&mut self.registers.configuration, new);
        let (low, high) = self.profile.ready_ns;
        match (before.en(), new.en()) {
            (0, 1) => {
                let late = Self::fails_to_change(world, FaultKind::NvmeEnable);
                let time = world.streams.device.between(low, high);
                self.registers.life = Life::Enabling(late.map(|late| Instant(world.now.0 + time + late)));
                if !self.can_begin() {
                    self.fatal(world);
                }
            }
            (1, 0) => {
                let late = Self::fails_to_change(world, FaultKind::NvmeDisable);
                let time = world.streams.device.between(low, high);
                self.registers.life = Life::Disabling(late.map(|late| Instant(world.now.0 + time + late)));
            }
            _ => {}
        }
        if before.shn() == 0 && new.shn() != 0 {
            self.registers.status = self.registers.status.with_shst(ControllerStatus::SHST_OCCURRING);
            let time = world.streams.device.between(low, high);
            self.registers.shutdown = Some(Instant(world.now.0 + time));
        }
    }

    /// A change of state takes longer than it would, or never ends (`None`). Parameter: the time, 0 never.
    fn fails_to_change(world: &mut World, kind: FaultKind) -> Option<u64> {
        match world.faults.strike(kind, |rng| rng.below(4) * rng.below(SLOW_NS_MAX)) {
            None => Some(0),
            Some(0) => None,
            late => late,
        }
    }

    /// Whether what was configured is something that it can work with.
    fn can_begin(&self) -> bool {
        let RegisterFile { configuration, admin, submissions, completions, .. } = self.registers;
        admin.asqs() > 0
            && admin.acqs() > 0
            && configuration.mps() == 0
            && configuration.css() == 0
            && configuration.ams() == 0
            && (submissions | completions).is_multiple_of(PAGE)
    }

    /// Controller Fatal Status: it does nothing more until it is reset.
    pub(super) fn fatal(&mut self, world: &mut World) {
        self.registers.status = self.registers.status.with_cfs(1);
        world.changed();
    }

    /// Whether commands are worked on.
    pub(super) fn runs(&self) -> bool {
        let status = self.registers.status;
        self.registers.life == Life::Ready
            && status.cfs() == 0
            && status.shst() == ControllerStatus::SHST_NORMAL
    }

    /// The next moment at which its life goes on by itself.
    pub(super) fn life_due(&self) -> Option<Instant> {
        let change = match self.registers.life {
            Life::Enabling(at) | Life::Disabling(at) => at,
            Life::Disabled | Life::Ready => None,
        };
        [change, self.registers.shutdown].into_iter().flatten().min()
    }

    /// Its life goes on, if its moment has come; whether it did.
    pub(super) fn live(&mut self, world: &mut World) -> bool {
        let now = world.now;
        if self.registers.shutdown.is_some_and(|at| at <= now) {
            self.registers.shutdown = None;
            self.flush_all(world);
            self.registers.status = self.registers.status.with_shst(ControllerStatus::SHST_COMPLETE);
            world.changed();
            return true;
        }
        match self.registers.life {
            Life::Enabling(Some(at)) if at <= now && self.registers.status.cfs() == 0 => {
                self.registers.life = Life::Ready;
                self.registers.status = self.registers.status.with_rdy(1);
                self.begin();
            }
            Life::Disabling(Some(at)) if at <= now => {
                self.forget(world);
                let file = &mut self.registers;
                file.life = Life::Disabled;
                (file.status, file.shutdown) = (ControllerStatus::default(), None);
            }
            _ => return false,
        }
        world.changed();
        true
    }
}
