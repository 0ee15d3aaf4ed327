//! A request that a replay makes in place of a drawn one, as its file writes it: `queue 1: write 8+2` (sectors from, how
//! many), `queue 0: flush`.

use crate::check::Kind;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A request of a guest's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Listed {
    /// The queue that makes it.
    pub queue: u16,
    /// What it asks.
    pub kind: Kind,
    /// First sector; 0 where the kind has none.
    pub sector: u64,
    /// Sectors; 0 where the kind has none.
    pub sectors: u32,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {}: {}", self.queue, self.kind.name())?;
        if self.sectors > 0 {
            write!(f, " {}+{}", self.sector, self.sectors)?;
        }
        Ok(())
    }
}

impl FromStr for Listed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| {
            let kinds = Kind::ALL.map(Kind::name).join(", ");
            format!("`{text}` is no request; allowed: `queue Q: KIND SECTOR+SECTORS`, KIND one of {kinds}")
        })
    }
}

fn parse(text: &str) -> Option<Listed> {
    let (queue, rest) = text.strip_prefix("queue ")?.split_once(": ")?;
    let (kind, place) = rest.split_once(' ').map_or((rest, None), |(kind, place)| (kind, Some(place)));
    let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
    let (sector, sectors) = match place {
        Some(place) => {
            let (sector, sectors) = place.split_once('+')?;
            (sector.parse().ok()?, sectors.parse().ok().filter(|&sectors| sectors > 0)?)
        }
        None => (0, 0),
    };
    let has_place = !matches!(kind, Kind::Flush | Kind::GetId);
    (has_place == place.is_some()).then_some(Listed { queue: queue.parse().ok()?, kind, sector, sectors })
}

impl From<Listed> for String {
    fn from(listed: Listed) -> Self {
        listed.to_string()
    }
}

impl TryFrom<String> for Listed {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::Listed;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        for text in ["queue 0: read 3+2", "queue 12: write-zeroes 100+16", "queue 1: flush"] {
            let listed: Listed = text.parse().unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(listed.to_string(), text);
        }
        for text in ["queue 0: read", "queue 0: flush 1+1", "queue 0: read 1+0", "queue x: flush", "read 1+1"]
        {
            let refused = text.parse::<Listed>().expect_err("this is wrong");
            assert!(refused.contains("is no request; allowed: `queue Q: KIND"), "{refused}");
        }
    }
}
