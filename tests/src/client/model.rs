//! What each sector of the disk may hold, and the judge of what a read returned.
//!
//! Every written sector carries its number and a generation, expanded to 512 bytes that can't be confused with any other
//! sector's or generation's. Writes to one sector follow one another (the load never has two out at once), so its contents
//! form a line: a read must return the newest content that was acknowledged when it was submitted, or a later one that was
//! submitted before it completed. That is the promise across a kill -9 too: what was acknowledged stays.

use std::collections::VecDeque;

use super::{ClientError, Result, mix};

/// Bytes of one sector: the unit of virtio-blk, and the only one whose atomicity is relied on.
pub const SECTOR: usize = 512;

/// What a write puts into a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Zeroes: a new disk, or WRITE_ZEROES.
    Zeroes,
    /// The stamp of a generation.
    Stamp(u64),
    /// A discard: zeroes, or what was there before it.
    Discarded {
        /// The generation before, if it was a stamp.
        before: Option<u64>,
    },
}

/// The line of contents of one sector.
#[derive(Debug)]
struct Line {
    /// Contents, oldest first; the newest acknowledged one and what may still be read are kept.
    contents: VecDeque<Content>,
    /// Number of the first of `contents` on the line.
    first: u64,
    /// Number of the newest acknowledged content.
    acknowledged: u64,
    /// True while a write is out.
    writing: bool,
    /// Reads that are out.
    reads: u32,
}

/// The model of a whole disk.
#[derive(Debug)]
pub struct Model {
    lines: Vec<Line>,
    generation: u64,
    compared: u64,
}

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// OUT.
    Write,
    /// WRITE_ZEROES.
    WriteZeroes,
    /// DISCARD.
    Discard,
}

impl Model {
    /// A disk of zeroes.
    pub fn zeroed(sectors: u64) -> Model {
        let line = || Line {
            contents: VecDeque::from([Content::Zeroes]),
            first: 0,
            acknowledged: 0,
            writing: false,
            reads: 0,
        };
        Model { lines: (0..sectors).map(|_| line()).collect(), generation: 0, compared: 0 }
    }

    /// Sectors of the disk.
    pub fn sectors(&self) -> u64 {
        self.lines.len() as u64
    }

    /// Sectors that were compared with what they may hold: a run in which this is 0 has proven nothing.
    pub fn compared(&self) -> u64 {
        self.compared
    }

    /// True when a change of this range may be submitted: none of its sectors has one out.
    pub fn may_change(&self, sector: u64, count: u64) -> bool {
        self.range(sector, count).all(|line| !line.writing)
    }

    /// A change is submitted. For a write, `payload` (whole sectors) is filled with what must be written.
    pub fn begin_change(&mut self, change: Change, sector: u64, count: u64, payload: &mut [u8]) {
        self.generation += 1;
        let generation = self.generation;
        for offset in 0..count {
            let line = &mut self.lines[(sector + offset) as usize];
            assert!(!line.writing, "the load asks may_change first");
            let content = match change {
                Change::Write => Content::Stamp(generation),
                Change::WriteZeroes => Content::Zeroes,
                Change::Discard => match line.contents.back().expect("a line is never empty") {
                    Content::Zeroes => Content::Zeroes,
                    Content::Stamp(before) => Content::Discarded { before: Some(*before) },
                    Content::Discarded { before } => Content::Discarded { before: *before },
                },
            };
            line.writing = true;
            line.contents.push_back(content);
        }
        if change == Change::Write {
            for (offset, bytes) in payload.chunks_exact_mut(SECTOR).enumerate() {
                stamp(sector + offset as u64, generation, bytes);
            }
        }
    }

    /// A change was acknowledged.
    pub fn end_change(&mut self, sector: u64, count: u64) {
        for line in &mut self.lines[sector as usize..(sector + count) as usize] {
            assert!(line.writing, "a change ends once");
            line.writing = false;
            line.acknowledged = line.first + line.contents.len() as u64 - 1;
            line.forget();
        }
    }

    /// A read is submitted. The returned numbers go back to [`Model::end_read`].
    pub fn begin_read(&mut self, sector: u64, count: u64) -> Vec<u64> {
        self.lines[sector as usize..(sector + count) as usize]
            .iter_mut()
            .map(|line| {
                line.reads += 1;
                line.acknowledged
            })
            .collect()
    }

    /// A read completed with `payload`.
    pub fn end_read(&mut self, sector: u64, oldest: &[u64], payload: &[u8]) -> Result<()> {
        for (offset, (oldest, bytes)) in oldest.iter().zip(payload.chunks_exact(SECTOR)).enumerate() {
            let number = sector + offset as u64;
            let line = &mut self.lines[number as usize];
            self.compared += 1;
            let skip = (oldest - line.first) as usize;
            if !line.contents.iter().skip(skip).any(|content| content.is(number, bytes)) {
                let allowed: Vec<Content> = line.contents.iter().skip(skip).copied().collect();
                return Err(ClientError::Violation(format!(
                    "sector {number} holds {}, but may hold only {allowed:?} (newest acknowledged is number {}, \
                     the list begins at {oldest})",
                    describe(number, bytes, &allowed),
                    line.acknowledged,
                )));
            }
            line.reads -= 1;
            line.forget();
        }
        Ok(())
    }

    /// A read that was begun is not submitted after all.
    pub fn cancel_read(&mut self, sector: u64, count: u64) {
        for line in &mut self.lines[sector as usize..(sector + count) as usize] {
            line.reads -= 1;
            line.forget();
        }
    }

    /// The disk went away with its contents, as a memory disk does when its process is killed: all sectors are zeroes again.
    /// Nothing may be out.
    pub fn forget_everything(&mut self) {
        *self = Model { compared: self.compared, ..Model::zeroed(self.sectors()) };
    }

    fn range(&self, sector: u64, count: u64) -> impl Iterator<Item = &Line> {
        self.lines[sector as usize..(sector + count) as usize].iter()
    }
}

impl Line {
    /// Drops contents that no read may return any more.
    fn forget(&mut self) {
        while self.reads == 0 && self.first < self.acknowledged {
            self.contents.pop_front();
            self.first += 1;
        }
    }
}

impl Content {
    fn is(self, sector: u64, bytes: &[u8]) -> bool {
        match self {
            Content::Zeroes => bytes.iter().all(|byte| *byte == 0),
            Content::Stamp(generation) => is_stamp(sector, generation, bytes),
            Content::Discarded { before } => {
                Content::Zeroes.is(sector, bytes)
                    || before.is_some_and(|generation| is_stamp(sector, generation, bytes))
            }
        }
    }
}

/// Word `index` of a sector: the number and the generation in clear, then words that only they give.
fn word(sector: u64, generation: u64, index: u64) -> u64 {
    match index {
        0 => sector,
        1 => generation,
        _ => mix(mix(sector ^ (generation << 32)) ^ index),
    }
}

/// Fills one sector with the stamp of a generation.
pub fn stamp(sector: u64, generation: u64, bytes: &mut [u8]) {
    for (index, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(&word(sector, generation, index as u64).to_le_bytes());
    }
}

/// True when a sector holds exactly the stamp of a generation.
pub fn is_stamp(sector: u64, generation: u64, bytes: &[u8]) -> bool {
    bytes
        .chunks_exact(8)
        .enumerate()
        .all(|(index, chunk)| chunk == word(sector, generation, index as u64).to_le_bytes())
}

/// What a sector looks like, for a message to a person: whose it is, or which of its words are whose.
fn describe(number: u64, bytes: &[u8], allowed: &[Content]) -> String {
    let word_at = |index: usize| u64::from_le_bytes(bytes[index * 8..][..8].try_into().expect("eight bytes"));
    let (sector, generation) = (word_at(0), word_at(1));
    if bytes.iter().all(|byte| *byte == 0) {
        return "zeroes".into();
    }
    if is_stamp(sector, generation, bytes) {
        return format!("sector {sector}'s generation {generation}, whole");
    }
    let mut stamps = vec![(sector, generation)];
    stamps.extend(allowed.iter().filter_map(|content| match content {
        Content::Stamp(generation) => Some((number, *generation)),
        Content::Zeroes | Content::Discarded { .. } => None,
    }));
    let whose = |index: usize| {
        let found = word_at(index);
        match stamps.iter().find(|(sector, generation)| found == word(*sector, *generation, index as u64)) {
            Some((sector, generation)) => format!("sector {sector}'s generation {generation}"),
            None if found == 0 => "zeroes".into(),
            None => format!("something else ({found:#x} first)"),
        }
    };
    let mut parts = Vec::new();
    let mut begin = 0;
    while begin < bytes.len() / 8 {
        let owner = whose(begin);
        let is_else = owner.starts_with("something");
        let same =
            |index: &usize| whose(*index) == owner || is_else && whose(*index).starts_with("something");
        let end = (begin..bytes.len() / 8).take_while(same).last().unwrap_or(begin) + 1;
        parts.push(format!("words {begin} to {} of {owner}", end - 1));
        begin = end;
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_may_return_what_is_out_but_nothing_older_than_acknowledged() {
        let mut model = Model::zeroed(2);
        let mut first = vec![0; SECTOR];
        model.begin_change(Change::Write, 1, 1, &mut first);
        let oldest = model.begin_read(1, 1);
        model.end_read(1, &oldest, &vec![0; SECTOR]).expect("the write is still out");
        let oldest = model.begin_read(1, 1);
        model.end_read(1, &oldest, &first).expect("or already done");
        model.end_change(1, 1);
        let oldest = model.begin_read(1, 1);
        assert!(model.end_read(1, &oldest, &vec![0; SECTOR]).is_err(), "the acknowledged write is lost");
    }

    #[test]
    fn a_torn_or_misplaced_sector_is_found() {
        let mut model = Model::zeroed(2);
        let mut bytes = vec![0; 2 * SECTOR];
        model.begin_change(Change::Write, 0, 2, &mut bytes);
        model.end_change(0, 2);
        let oldest = model.begin_read(0, 1);
        assert!(model.end_read(0, &oldest, &bytes[SECTOR..]).is_err(), "the other sector's bytes");
        bytes[SECTOR - 1] ^= 1;
        let oldest = model.begin_read(0, 1);
        assert!(model.end_read(0, &oldest, &bytes[..SECTOR]).is_err(), "one flipped bit");
    }
}
