//! The bdevs of a target, by name, and who uses them.
//!
//! Belongs to the control path's core. A bdev is used by one front-end at a time unless each of its front-ends asked to
//! share it: two guests on one disk destroy a file system, so nobody gets there by mistake.

use super::{Bdev, FileBdev, MallocBdev, NullBdev, NvmeBdev, Snapshot};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use runtime::{CoreId, Platform};

/// A bdev of a kind that is known.
pub enum Disk<P: Platform> {
    /// A null bdev.
    Null(Arc<NullBdev>),
    /// A malloc bdev.
    Malloc(Arc<MallocBdev<P>>),
    /// A uring or aio bdev.
    File(Arc<FileBdev<P>>),
    /// A namespace of an NVMe controller.
    Nvme(Arc<NvmeBdev<P, P::Pci>>),
}

impl<P: Platform> Disk<P> {
    /// The bdev behind its trait.
    #[must_use]
    pub fn bdev(&self) -> Arc<dyn Bdev<P>> {
        match self {
            Self::Null(bdev) => bdev.clone(),
            Self::Malloc(bdev) => bdev.clone(),
            Self::File(bdev) => bdev.clone(),
            Self::Nvme(bdev) => bdev.clone(),
        }
    }
}

impl<P: Platform> Clone for Disk<P> {
    fn clone(&self) -> Self {
        match self {
            Self::Null(bdev) => Self::Null(bdev.clone()),
            Self::Malloc(bdev) => Self::Malloc(bdev.clone()),
            Self::File(bdev) => Self::File(bdev.clone()),
            Self::Nvme(bdev) => Self::Nvme(bdev.clone()),
        }
    }
}

/// Which of a bdev's counters begin anew after they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// None.
    Nothing,
    /// All.
    Everything,
    /// Least and greatest latencies.
    Extremes,
    /// Errors.
    Errors,
}

/// A claim that was refused: another front-end has the bdev.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRefused {
    /// The front-end that has it.
    pub holder: String,
    /// Whether that front-end would share it.
    pub holder_shares: bool,
}

/// The front-ends of one bdev: any number that share, or one that does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Claims(BTreeMap<String, bool>);

impl Claims {
    fn claim(&mut self, holder: &str, shared: bool) -> Result<(), ClaimRefused> {
        let mut others = self.0.iter().filter(|(other, _)| *other != holder);
        if let Some((other, &other_shares)) = others.find(|(_, other_shares)| !(shared && **other_shares)) {
            return Err(ClaimRefused { holder: other.clone(), holder_shares: other_shares });
        }
        self.0.insert(holder.into(), shared);
        Ok(())
    }
}

/// One bdev of the registry.
struct Entry<P: Platform> {
    disk: Disk<P>,
    claims: Claims,
    /// What was counted when the statistics were last reset, by core.
    baselines: BTreeMap<CoreId, Snapshot>,
}

/// The bdevs of a target.
pub struct Registry<P: Platform> {
    entries: Vec<Entry<P>>,
}

impl<P: Platform> Default for Registry<P> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<P: Platform> Registry<P> {
    fn entry(&self, name: &str) -> Option<&Entry<P>> {
        self.entries.iter().find(|entry| entry.disk.bdev().name() == name)
    }

    fn entry_mut(&mut self, name: &str) -> Option<&mut Entry<P>> {
        self.entries.iter_mut().find(|entry| entry.disk.bdev().name() == name)
    }

    /// Adds a bdev. Its name must be new.
    pub fn add(&mut self, disk: Disk<P>) {
        assert!(self.get(disk.bdev().name()).is_none(), "the name of a bdev is checked before it is made");
        self.entries.push(Entry { disk, claims: Claims::default(), baselines: BTreeMap::new() });
    }

    /// Takes a bdev out. It must have no claims.
    pub fn remove(&mut self, name: &str) -> Option<Disk<P>> {
        let index = self.entries.iter().position(|entry| entry.disk.bdev().name() == name)?;
        let entry = self.entries.remove(index);
        assert!(entry.claims.0.is_empty(), "a bdev is removed only when no front-end has it");
        Some(entry.disk)
    }

    /// Takes a bdev out that is gone, whoever has it: its front-ends keep what they hold, which fails everything.
    pub fn remove_gone(&mut self, name: &str) -> Option<Disk<P>> {
        let index = self.entries.iter().position(|entry| entry.disk.bdev().name() == name)?;
        Some(self.entries.remove(index).disk)
    }

    /// The bdev of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Disk<P>> {
        self.entry(name).map(|entry| &entry.disk)
    }

    /// All bdevs.
    pub fn iter(&self) -> impl Iterator<Item = &Disk<P>> + '_ {
        self.entries.iter().map(|entry| &entry.disk)
    }

    /// Gives the bdev `name`, which exists, to the front-end `holder`.
    pub fn claim(&mut self, name: &str, holder: &str, shared: bool) -> Result<(), ClaimRefused> {
        self.entry_mut(name).expect("the bdev was looked up").claims.claim(holder, shared)
    }

    /// Ends a claim; nothing where there was none.
    pub fn release(&mut self, name: &str, holder: &str) {
        if let Some(entry) = self.entry_mut(name) {
            entry.claims.0.remove(holder);
        }
    }

    /// The front-ends that have the bdev, sorted.
    #[must_use]
    pub fn holders(&self, name: &str) -> Vec<String> {
        self.entry(name).map(|entry| entry.claims.0.keys().cloned().collect()).unwrap_or_default()
    }

    /// Whether the bdev's front-ends share it; `None` when there is none.
    #[must_use]
    pub fn is_shared(&self, name: &str) -> Option<bool> {
        self.entry(name).and_then(|entry| entry.claims.0.values().next().copied())
    }

    /// What each core counted on the bdev since the last reset.
    #[must_use]
    pub fn statistics(&self, name: &str) -> Vec<(CoreId, Snapshot)> {
        let Some(entry) = self.entry(name) else { return Vec::new() };
        let none = Snapshot::default();
        let since =
            |(core, now): (CoreId, Snapshot)| (core, now.since(entry.baselines.get(&core).unwrap_or(&none)));
        entry.disk.bdev().statistics().by_core().map(since).collect()
    }

    /// Counts from here on.
    pub fn reset_statistics(&mut self, name: &str, reset: Reset) {
        let Some(entry) = self.entry_mut(name) else { return };
        let bdev = entry.disk.bdev();
        match reset {
            Reset::Nothing => return,
            Reset::Everything => entry.baselines = bdev.statistics().by_core().collect(),
            Reset::Errors => {
                for (core, now) in bdev.statistics().by_core() {
                    let baseline = entry.baselines.entry(core).or_default();
                    *baseline = baseline.with_errors_of(&now);
                }
                return;
            }
            Reset::Extremes => {}
        }
        bdev.statistics().restart_extremes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_front_end_has_a_bdev_unless_all_share() {
        let mut claims = Claims::default();
        claims.claim("a", false).expect("free");
        claims.claim("a", false).expect("its own");
        let refused =
            |holder: &str, holder_shares| Err(ClaimRefused { holder: holder.into(), holder_shares });
        assert_eq!(claims.claim("b", false), refused("a", false));
        assert_eq!(claims.claim("b", true), refused("a", false));
        claims.0.remove("a");
        claims.claim("a", true).expect("free");
        claims.claim("b", true).expect("shared by both");
        assert_eq!(claims.claim("c", false), refused("a", true));
        assert_eq!(claims.0.len(), 2);
    }
}
