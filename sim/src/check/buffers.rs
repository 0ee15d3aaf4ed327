//! Nobody below the guest touches memory that is not theirs at that moment.
//!
//! Readable for the device: the descriptor table, the available ring, and the readable pieces of requests that are out.
//! Writable: the used ring, and the writable pieces of requests that are out. Of a packed ring's descriptors, those that
//! are available and not given back are both, and of all others the device may read the flags alone. Everything else is the guest's own, from
//! the moment at which it took a completion from the used ring, and a region that was removed is nobody's. A late
//! write of a dead process's disk into a buffer that was completed since shows here as well.
//!
//! Ownership is kept by granule: the guests of the simulator never let two owners share one.

use super::Verdict;
use super::observation::{Agent, Buffer, Observation};
use std::ops::Range;

/// Bytes of a granule. Small enough that a header, a status and an event index have their own.
pub const GRANULE: u64 = 16;

/// The device may load.
const LOAD: u8 = 1;
/// The device may store (and load what it stored).
const STORE: u8 = 2;
/// The device may load the flags of a packed ring's descriptor, which has a granule of its own.
const LOOK: u8 = 4;
/// Where the flags stand in it.
const FLAGS: u64 = 14;

/// The rights of which an access needs one, in each of its granules.
#[inline]
fn needed(address: u64, granules: usize, store: bool) -> u8 {
    match store {
        true => STORE,
        false if address % GRANULE >= FLAGS && granules == 1 => LOAD | LOOK,
        false => LOAD,
    }
}

#[derive(Debug)]
struct Region {
    address: u64,
    /// What the device may do, a byte a granule.
    rights: Vec<u8>,
    present: bool,
}

/// The checker.
#[derive(Debug, Default)]
pub struct Buffers {
    regions: Vec<Region>,
    evaluations: u64,
    removals: u64,
}

impl Buffers {
    pub(super) fn observe(&mut self, observation: &Observation<'_>) -> Verdict {
        match *observation {
            Observation::RegionAdded { address, len } => {
                let granules =
                    usize::try_from(len.div_ceil(GRANULE)).expect("simulated memory fits into memory");
                self.regions.retain(|region| region.address != address);
                self.regions.push(Region { address, rights: vec![0; granules], present: true });
            }
            Observation::RemovalAsked { outstanding } => self.removals += u64::from(outstanding > 0),
            Observation::RegionRemoved { address, .. } => {
                for region in self.regions.iter_mut().filter(|region| region.address == address) {
                    region.present = false;
                    region.rights.fill(0);
                }
            }
            Observation::QueueReady { place, .. } => {
                self.set(place.desc.0, place.desc.1, if place.packed { LOOK } else { LOAD });
                self.set(place.avail.0, place.avail.1, LOAD);
                self.set(place.used.0, place.used.1, LOAD | STORE);
            }
            Observation::Places { address, len, lent } => {
                self.set(address, len, if lent { LOAD | STORE } else { LOOK });
            }
            Observation::Submitted { buffers, .. } => {
                for buffer in buffers {
                    self.set(buffer.address, buffer.len.into(), Self::rights_of(buffer));
                }
            }
            Observation::Completed { buffers, .. } => {
                for buffer in buffers {
                    self.set(buffer.address, buffer.len.into(), 0);
                }
            }
            Observation::DeviceReset | Observation::PowerLost => {
                for region in &mut self.regions {
                    region.rights.fill(0);
                }
            }
            Observation::Access { agent, address, len, store } if !self.allows(address, len, store) => {
                return Err(self.objection(agent, address, len, store));
            }
            _ => {}
        }
        Ok(())
    }

    fn rights_of(buffer: &Buffer) -> u8 {
        if buffer.writable { LOAD | STORE } else { LOAD }
    }

    /// The region that a range lies in, and its granules there.
    #[inline]
    fn find(&self, address: u64, len: u64) -> Option<(usize, Range<usize>)> {
        self.regions.iter().enumerate().find_map(|(number, region)| {
            let first = address.checked_sub(region.address)?;
            let (first, end) = (first / GRANULE, (first + len).div_ceil(GRANULE));
            (end <= region.rights.len() as u64).then_some((number, first as usize..end as usize))
        })
    }

    fn set(&mut self, address: u64, len: u64, rights: u8) {
        if let Some((region, granules)) = self.find(address, len) {
            match &mut self.regions[region].rights[granules] {
                [granule] => *granule = rights,
                granules => granules.fill(rights),
            }
        }
    }

    /// Judges an access to guest memory: whether it may be.
    #[inline]
    pub(super) fn allows(&mut self, address: u64, len: u64, store: bool) -> bool {
        self.evaluations += 1;
        let Some((region, granules)) = self.find(address, len) else { return false };
        let Region { rights, present, .. } = &self.regions[region];
        let needed = needed(address, granules.len(), store);
        *present
            && match &rights[granules] {
                [granule] => granule & needed != 0,
                // What is needed of more than one granule is one right.
                granules => granules.iter().fold(u8::MAX, |all, rights| all & rights) & needed != 0,
            }
    }

    /// What an access breaks that may not be.
    #[cold]
    pub(super) fn objection(&self, agent: Agent, address: u64, len: u64, store: bool) -> String {
        let who = match agent {
            Agent::Target => "the target",
            Agent::Disk => "a disk",
        };
        let did = if store { "stored to" } else { "loaded from" };
        let Some((region, granules)) = self.find(address, len) else {
            return format!("{who} {did} {len} bytes at {address:#x}, where the guest has no memory");
        };
        let region = &self.regions[region];
        if !region.present {
            return format!("{who} {did} {len} bytes at {address:#x}, in a region that was removed");
        }
        let needed = needed(address, granules.len(), store);
        let first = granules.start as u64 * GRANULE + region.address;
        let at = region.rights[granules].iter().position(|&rights| rights & needed == 0).unwrap_or(0);
        format!(
            "{who} {did} {len} bytes at {address:#x}; the guest has not lent those at {:#x} for that",
            first + at as u64 * GRANULE
        )
    }

    /// Accesses judged.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }

    /// Removals of a region that were asked for while requests were out.
    pub(super) fn removals(&self) -> u64 {
        self.removals
    }
}
