//! What each sector of a device may hold: the writes that a guest made, and the order that it could see among them.
//!
//! Shared by `reads` and `durability`, which judge by it. Moments are counted in requests: a request's moment of
//! submission is its own id, and a completion's moment is the highest id submitted until then, so that *x completed
//! before y was submitted* is `x.completed < y.id`. A write is *superseded* from the moment at which a later one is
//! known to lie over it:
//!
//! - a write that completed well supersedes everything that had completed before it was submitted;
//! - a read that returned one write supersedes every other that had completed before the read was submitted.
//!
//! What a failed write, a discard or a write cut off by a reset leaves is open: it may show or not. With power loss in
//! the run, superseded writes are kept until something durable lies over them, since they may come back.

use super::observation::{CacheMode, Content, Kind, Observation, RequestId, Status};
use crate::guest::stamp;
use std::collections::VecDeque;

/// A moment that never comes.
const NEVER: u64 = u64::MAX;

/// Versions of one sector beyond which what can no longer be seen is thrown away.
const TIDY_ABOVE: usize = 3;

/// One write, as one sector knows it.
#[derive(Clone, Copy, Debug)]
struct Version {
    /// Its request's id, 0 for what was there at the start.
    id: u64,
    /// When it completed, [`NEVER`] while it is out.
    completed: u64,
    /// From when on a read cannot return it.
    superseded: u64,
    /// The stamp that it carries; unused when `zero`.
    version: u32,
    /// It leaves zeroes.
    zero: bool,
    /// It may have left the sector as it was, so nothing below it is hidden by it.
    optional: bool,
    /// It ended without an answer, perhaps in the middle of a sector.
    cut: bool,
    /// A power loss does not take it away.
    durable: bool,
    /// A power loss took it away, or it was never there: it does not come back.
    gone: bool,
    /// It was out when the disk last lost its power, the guest not, and may have been done since: that a read brings it
    /// says nothing of what survived.
    redone: bool,
}

#[derive(Clone, Debug)]
struct Sector {
    versions: Vec<Version>,
    /// The power was lost since this sector was last read: the moment.
    lost_power: Option<u64>,
    /// Listed in [`History::dirty`].
    dirty: bool,
}

/// What each sector may hold.
#[derive(Debug)]
pub struct History {
    sectors: Vec<Sector>,
    /// The highest id submitted.
    now: u64,
    /// Reads that are out, by id, and whether they have ended; the first one has not.
    reads: VecDeque<(u64, bool)>,
    /// Sectors that have completed writes which a power loss may take.
    dirty: Vec<u64>,
    /// Whether the power may be lost in this run.
    power_loss: bool,
}

impl History {
    /// A device of `sectors` sectors of zeroes. `power_loss`: whether the run has any.
    pub(super) fn new(sectors: u64, power_loss: bool) -> Self {
        let first = Version {
            id: 0,
            completed: 0,
            superseded: NEVER,
            version: 0,
            zero: true,
            optional: false,
            cut: false,
            durable: true,
            gone: false,
            redone: false,
        };
        let sector = Sector { versions: vec![first], lost_power: None, dirty: false };
        Self {
            sectors: vec![sector; usize::try_from(sectors).expect("a simulated disk fits into memory")],
            now: 0,
            reads: VecDeque::new(),
            dirty: Vec::new(),
            power_loss,
        }
    }

    /// Whether the run has power losses.
    pub(super) fn knows_power_loss(&self) -> bool {
        self.power_loss
    }

    /// Whether nobody read this sector since the power was lost.
    pub(super) fn lost_power(&self, sector: u64) -> bool {
        self.sector(sector).lost_power.is_some()
    }

    /// Whether the read `id` may have found `content` in `sector`; if not, what it could have found.
    pub(super) fn judge(&self, id: RequestId, sector: u64, content: Content<'_>) -> Result<(), String> {
        let block = self.sector(sector);
        let may_show = |zero: bool, version: u32| {
            block
                .versions
                .iter()
                .any(|v| v.superseded >= id.0 && v.zero == zero && (zero || v.version == version))
        };
        let good = match content {
            Content::Zero => may_show(true, 0),
            Content::Whole(version) => may_show(false, version),
            // Only a write that is out while the read is, or one that was cut off, can be seen in part.
            Content::Mixed(parts) => {
                parts.iter().all(|&part| may_show(part == 0, part))
                    && block.versions.iter().any(|v| {
                        v.superseded >= id.0
                            && (v.completed >= id.0 || v.cut)
                            && parts.contains(if v.zero { &0 } else { &v.version })
                    })
            }
            Content::Torn { disk, bytes } => block.may_be_torn(id, disk, sector, bytes),
        };
        if good { Ok(()) } else { Err(self.explain(id, sector, content)) }
    }

    fn explain(&self, id: RequestId, sector: u64, content: Content<'_>) -> String {
        let found = match content {
            Content::Zero => "zeroes".to_owned(),
            Content::Whole(version) => format!("write {version}"),
            Content::Mixed(parts) => format!("words of writes {parts:?} (0: zeroes)"),
            Content::Torn { .. } => {
                "bytes that nobody wrote to this sector, or not in this mixture".to_owned()
            }
        };
        let may: Vec<String> = self
            .sector(sector)
            .versions
            .iter()
            .filter(|v| v.superseded >= id.0)
            .map(|v| {
                let what = if v.zero { "zeroes".to_owned() } else { format!("write {}", v.version) };
                match v.completed {
                    NEVER => format!("{what} (request #{}, out)", v.id),
                    _ if v.id == 0 => format!("{what} (as at the start)"),
                    _ if v.optional => format!("{what} (request #{}, ended without success)", v.id),
                    _ => format!("{what} (request #{}, acknowledged)", v.id),
                }
            })
            .collect();
        format!("read {id} found in sector {sector} {found}; it may find {}", may.join(" or "))
    }

    fn sector(&self, sector: u64) -> &Sector {
        &self.sectors[usize::try_from(sector).expect("a sector of the device")]
    }

    pub(super) fn observe(&mut self, observation: &Observation<'_>) {
        match *observation {
            Observation::Submitted { id, kind, sector, sectors, version, .. } => {
                self.now = id.0;
                if kind == Kind::Read {
                    self.reads.push_back((id.0, false));
                }
                if kind.changes_content() {
                    let out = Version {
                        id: id.0,
                        completed: NEVER,
                        superseded: NEVER,
                        version,
                        zero: kind != Kind::Write,
                        optional: kind == Kind::Discard,
                        cut: false,
                        durable: false,
                        gone: false,
                        redone: false,
                    };
                    for block in self.range(sector, sectors) {
                        block.versions.push(out);
                    }
                }
            }
            Observation::Completed { id, kind, sector, sectors, status, cache, .. } => match kind {
                Kind::Read => self.read_ended(id),
                Kind::Flush if status == Status::Ok && self.power_loss => self.flushed(id),
                _ if kind.changes_content() => {
                    self.write_ended(id, sector, sectors, status == Status::Ok, cache);
                }
                _ => {}
            },
            Observation::Read { id, sector, content } => self.narrow(id, sector, content),
            Observation::DeviceReset => self.cut_off(true),
            Observation::PowerLost => self.lose_power(),
            _ => {}
        }
    }

    /// The sectors of a request; a request beyond the end has none, since the device must refuse it whole.
    fn range(&mut self, sector: u64, sectors: u32) -> &mut [Sector] {
        let first = usize::try_from(sector).unwrap_or(usize::MAX);
        let end = first.saturating_add(sectors as usize);
        self.sectors.get_mut(first..end).unwrap_or_default()
    }

    fn read_ended(&mut self, id: RequestId) {
        if let Ok(at) = self.reads.binary_search_by_key(&id.0, |&(id, _)| id) {
            self.reads[at].1 = true;
        }
        while self.reads.front().is_some_and(|&(_, ended)| ended) {
            self.reads.pop_front();
        }
    }

    fn write_ended(&mut self, id: RequestId, sector: u64, sectors: u32, well: bool, cache: CacheMode) {
        let now = self.now;
        let oldest_read = self.reads.front().map_or(NEVER, |&(id, _)| id);
        let power_loss = self.power_loss;
        let mut newly_dirty = Vec::new();
        for (index, block) in self.range(sector, sectors).iter_mut().enumerate() {
            let Some(own) = block.versions.iter_mut().find(|v| v.id == id.0) else { continue };
            own.completed = now;
            own.optional |= !well;
            own.durable = well && !own.optional && cache == CacheMode::Writethrough;
            let (hides, durable) = (!own.optional, own.durable);
            if hides {
                for v in &mut block.versions {
                    if v.completed < id.0 {
                        v.superseded = v.superseded.min(now);
                    }
                }
            }
            if power_loss {
                if durable {
                    block.forget_below(id.0, oldest_read);
                } else if !block.dirty {
                    block.dirty = true;
                    newly_dirty.push(sector + index as u64);
                }
            } else if block.versions.len() > TIDY_ABOVE {
                block.versions.retain(|v| v.superseded >= oldest_read);
            }
        }
        self.dirty.append(&mut newly_dirty);
    }

    /// A flush that was submitted at `flush` went well: what had completed before it stays over a power loss.
    fn flushed(&mut self, flush: RequestId) {
        let oldest_read = self.reads.front().map_or(NEVER, |&(id, _)| id);
        let sectors = &mut self.sectors;
        self.dirty.retain(|&sector| {
            let block = &mut sectors[usize::try_from(sector).expect("a sector of the device")];
            let mut newest_durable = 0;
            let mut still_dirty = false;
            // What a power loss took away hides nothing, however young it is.
            for v in block.versions.iter_mut().filter(|v| !v.gone) {
                if v.completed < flush.0 {
                    v.durable = true;
                    if !v.optional {
                        newest_durable = newest_durable.max(v.id);
                    }
                } else if v.completed != NEVER {
                    still_dirty = true;
                }
            }
            block.forget_below(newest_durable, oldest_read);
            block.dirty = still_dirty;
            still_dirty
        });
    }

    /// A read that was judged good tells which write lies on top.
    fn narrow(&mut self, id: RequestId, sector: u64, content: Content<'_>) {
        let now = self.now;
        let block = &mut self.sectors[usize::try_from(sector).expect("a sector of the device")];
        // A read that was out when the disk lost its power tells nothing of what is left.
        if block.lost_power.is_some_and(|moment| id.0 <= moment) {
            return;
        }
        let is_it = |v: &Version| match content {
            Content::Zero => v.zero,
            Content::Whole(version) => !v.zero && v.version == version,
            Content::Mixed(_) | Content::Torn { .. } => false,
        };
        let mut candidates = block.versions.iter().filter(|v| v.superseded >= id.0 && is_it(v));
        let (Some((top, redone)), None) = (candidates.next().map(|v| (v.id, v.redone)), candidates.next())
        else {
            return;
        };
        if let Some(moment) = block.lost_power.take()
            && top <= moment
            && !redone
        {
            // What survived a power loss is on the medium, and what it hides or took does not come back.
            // (What is out while the read is may still come: only the disk lost its power, and the guest goes on.)
            for v in
                block.versions.iter_mut().filter(|v| v.id <= moment && (v.completed < id.0 || v.id == top))
            {
                v.durable = v.id == top;
                v.gone = v.id != top;
                v.superseded = if v.gone { v.superseded.min(now) } else { v.superseded };
            }
            return;
        }
        for v in &mut block.versions {
            if v.id != top && v.completed < id.0 && !v.optional {
                v.superseded = v.superseded.min(now);
            }
        }
    }

    /// Requests that are out never complete: their writes happened, or did not, or in part (`torn`).
    fn cut_off(&mut self, torn: bool) {
        let now = self.now;
        for v in self.sectors.iter_mut().flat_map(|block| &mut block.versions) {
            if v.completed == NEVER {
                v.completed = now;
                v.optional = true;
                v.cut = torn;
            }
        }
        self.reads.clear();
    }

    /// The disk lost its power, and the guest goes on: what was out then may be lost even if it is acknowledged later.
    pub(super) fn disk_loses_power(&mut self) {
        for v in self.sectors.iter_mut().flat_map(|block| &mut block.versions) {
            v.redone = v.completed == NEVER;
            v.optional |= v.redone;
        }
        self.take_back();
    }

    fn lose_power(&mut self) {
        // A disk never tears a sector: its atomic unit is at least that.
        self.cut_off(false);
        for v in self.sectors.iter_mut().flat_map(|block| &mut block.versions) {
            v.redone = false;
        }
        self.take_back();
    }

    /// What is not durable may be lost, and what it hid may show again.
    fn take_back(&mut self) {
        let now = self.now;
        let oldest_read = self.reads.front().map(|&(id, _)| id);
        for block in &mut self.sectors {
            // A read that was out when a disk alone lost its power may have been done before.
            block.versions.retain(|v| !v.gone || oldest_read.is_some_and(|read| v.superseded >= read));
            block.lost_power = Some(now);
            block.dirty = false;
            for v in block.versions.iter_mut().filter(|v| !v.gone) {
                v.superseded = NEVER;
            }
        }
        self.dirty.clear();
    }
}

impl Sector {
    /// Whether each byte is of a write that the read may see, one of them out while the read was, or cut off. Slow, and
    /// rarely asked: a sector is torn inside of its words only where memory was stored to in odd pieces.
    fn may_be_torn(&self, id: RequestId, disk: u16, sector: u64, bytes: &[u8]) -> bool {
        let mut explained = vec![false; bytes.len()];
        let mut partial = false;
        let mut stamp = vec![0; bytes.len()];
        for v in self.versions.iter().filter(|v| v.superseded >= id.0) {
            if v.zero {
                stamp.fill(0);
            } else {
                stamp::write(disk, sector, v.version, &mut stamp);
            }
            partial |= v.completed >= id.0 || v.cut;
            for ((explained, stamp), byte) in explained.iter_mut().zip(&stamp).zip(bytes) {
                *explained |= stamp == byte;
            }
        }
        partial && explained.into_iter().all(|explained| explained)
    }

    /// Forgets what had completed before the durable write `id` was submitted, unless a read that is out since before
    /// may still bring it.
    fn forget_below(&mut self, id: u64, oldest_read: u64) {
        self.versions.retain(|v| v.completed >= id || v.superseded >= oldest_read);
        // Hidden by it and kept for such a read alone: no power loss brings it back. (What an earlier power loss may have
        // left on top was not hidden by it.)
        let completed = self.versions.iter().find(|v| v.id == id).map_or(0, |v| v.completed);
        for v in self.versions.iter_mut().filter(|v| v.completed < id && v.superseded <= completed) {
            v.gone = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Content, History, NEVER, RequestId, Sector, Version};

    /// A write that was submitted as `id`, completed at `completed` and is hidden since `superseded`.
    fn write(id: u64, completed: u64, superseded: u64) -> Version {
        Version {
            id,
            completed,
            superseded,
            version: id as u32,
            zero: false,
            optional: false,
            cut: false,
            durable: false,
            gone: false,
            redone: false,
        }
    }

    /// What is left of `versions` once the write `id` is durable: ids, and whether a power loss may not bring it back.
    fn left(versions: &[Version], id: u64, oldest_read: u64) -> Vec<(u64, bool)> {
        let mut sector = Sector { versions: versions.to_vec(), lost_power: None, dirty: false };
        sector.forget_below(id, oldest_read);
        sector.versions.iter().map(|v| (v.id, v.gone)).collect()
    }

    /// Power-loss seed 196 read write #4 after a loss that had taken #8, flushed, lost its power again, and read #4.
    #[test]
    fn a_flush_does_not_bring_back_what_a_power_loss_took() {
        let mut history = History::new(1, true);
        let taken = Version { gone: true, superseded: 10, ..write(8, 9, NEVER) };
        let lost = write(13, 14, NEVER);
        history.sectors[0] =
            Sector { versions: vec![write(4, 6, NEVER), taken, lost], lost_power: None, dirty: true };
        history.dirty.push(0);
        history.flushed(RequestId(12));
        let left: Vec<_> = history.sectors[0].versions.iter().map(|v| (v.id, v.durable)).collect();
        assert_eq!(left, [(4, true), (8, false), (13, false)]);
    }

    /// Seed 207 of nvme-all-faults: a read was done, a write over what it had found was acknowledged and flushed, the drive
    /// was pulled out, and only then the read's completion was seen.
    #[test]
    fn a_read_from_before_a_disks_loss_may_bring_what_was_hidden_since() {
        let mut history = History::new(1, true);
        let hidden = Version { gone: true, ..write(4, 6, 12) };
        let durable = Version { durable: true, ..write(10, 12, NEVER) };
        history.sectors[0].versions = vec![hidden, durable];
        history.now = 13;
        history.reads.push_back((11, false));
        history.disk_loses_power();
        assert!(history.judge(RequestId(11), 0, Content::Whole(4)).is_ok());
        assert!(history.judge(RequestId(14), 0, Content::Whole(4)).is_err());
        assert!(history.judge(RequestId(14), 0, Content::Whole(10)).is_ok());
    }

    /// Seed 1083 of nvme-removal: a write was out when its drive was pulled out, was done on the drive when that was back,
    /// read, and lost with the drive's power once more.
    #[test]
    fn a_write_that_was_out_when_its_disk_lost_its_power_has_not_survived_that() {
        let mut history = History::new(1, true);
        history.sectors[0].versions.push(write(2, NEVER, NEVER));
        history.now = 3;
        history.disk_loses_power();
        history.now = 4;
        assert!(history.judge(RequestId(4), 0, Content::Whole(2)).is_ok());
        history.narrow(RequestId(4), 0, Content::Whole(2));
        history.disk_loses_power();
        history.now = 5;
        assert!(history.judge(RequestId(5), 0, Content::Zero).is_ok());
        assert!(history.judge(RequestId(5), 0, Content::Whole(2)).is_ok());
    }

    #[test]
    fn a_durable_write_ends_what_it_hid_and_nothing_else() {
        // Completed before the durable write #10 was submitted, and hidden by it: forgotten, or gone while a read that is
        // out since before may still return it.
        let hidden = write(4, 6, 12);
        let durable = write(10, 12, NEVER);
        assert_eq!(left(&[hidden, durable], 10, NEVER), [(10, false)]);
        assert_eq!(left(&[hidden, durable], 10, 11), [(4, true), (10, false)]);
        // Out together with the durable write: either may lie on top, so it may come back.
        assert_eq!(left(&[write(8, 10, NEVER), durable], 10, NEVER), [(8, false), (10, false)]);
        assert_eq!(left(&[write(8, 11, 12), durable], 10, NEVER), [(8, false), (10, false)]);
        // Completed before it, and yet not hidden by it but by something later: what an earlier power loss may have left on
        // top. A read that is out may return it, and so may a power loss.
        assert_eq!(left(&[write(4, 6, 13), durable], 10, 11), [(4, false), (10, false)]);
        assert_eq!(left(&[write(4, 6, NEVER), durable], 10, 11), [(4, false), (10, false)]);
    }
}
