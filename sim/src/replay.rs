//! Replay files: a failure, kept. What the seed drew of the scenario, and the faults that struck; a replay executes that
//! list and draws none, so that neither a changed scenario nor a changed way of drawing makes it another run. Deleting
//! from the list is allowed, by hand too: that is what shrinking does.
//!
//! A file may be of another version, damaged, or cut off: it is then refused, and never half understood.

use crate::faults::Fault;
use crate::plan::Plan;
use crate::report::Outcome;
use crate::scenario::{Refused, bad_toml};
use serde::{Deserialize, Serialize};

/// The version of the format.
const VERSION: i64 = 8;

/// What each version of the format changed.
const CHANGES: [(i64, &str); 8] = [
    (1, "the scenario's text and the seed, from which a replay draws its plan, and the faults"),
    (2, "the plan as it was drawn, in place of the scenario's text; an end mark"),
    (
        3,
        "hostile front-ends that also greet well and bring regions with one thing wrong; disks that are busy",
    ),
    (4, "rings that do not begin at 0, discards and zeroes of several segments, orderly stops, migrations"),
    (5, "in the plan, how many kicks and calls go by messages"),
    (6, "in the plan, which subjects draw other numbers than the seed's"),
    (7, "guests on NVMe drives, and what the operator does with those"),
    (
        8,
        "several targets, whose guests are whose, images between them, and how late messages between cores come",
    ),
];

/// The last line: without it the end of a list could be missing, and nobody would know.
const END: &str = "# end";

/// A replay file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    version: i64,
    /// The scenario's name, for people.
    pub scenario: String,
    /// What the scenario is, in a line.
    pub title: String,
    /// The checker that failed; empty where none did.
    #[serde(default)]
    pub checker: String,
    /// What it found.
    #[serde(default)]
    pub what: String,
    /// The trace of the run that is replayed; a file that was edited has another.
    #[serde(default)]
    pub trace: String,
    /// What the seed drew.
    pub plan: Plan,
    /// The faults.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
}

impl Replay {
    /// The replay of a run that has ended.
    #[must_use]
    pub fn of(scenario: &str, title: &str, plan: &Plan, outcome: &Outcome) -> Self {
        let failure = outcome.failure.as_ref();
        Self {
            version: VERSION,
            scenario: scenario.to_owned(),
            title: title.to_owned(),
            checker: failure.map_or_else(String::new, |failure| failure.checker.clone()),
            what: failure.map_or_else(String::new, |failure| failure.what.clone()),
            trace: format!("{:032x}", outcome.trace),
            plan: plan.clone(),
            faults: outcome.faults.clone(),
        }
    }

    /// The file's text.
    #[must_use]
    pub fn write(&self) -> String {
        let body = toml::to_string(self).expect("a replay is plain data");
        format!("# reprise-sim replay THIS_FILE\n{body}\n{END}\n")
    }

    /// Reads a file; `file` is what errors call it.
    ///
    /// # Errors
    /// Which version it has and what differs, or what is wrong with it, and where.
    pub fn read(file: &str, text: &str) -> Result<Self, Refused> {
        check_version(file, text)?;
        let replay: Self = toml::from_str(text).map_err(|error| bad_toml(file, text, &error))?;
        if text.trim_end().lines().next_back() != Some(END) {
            return Err(Refused(format!("{file}: is cut off: its last line is not `{END}`")));
        }
        replay.plan.check().map_err(|what| Refused(format!("{file}: plan.{what}")))?;
        Ok(replay)
    }
}

/// What a file of any version has.
#[derive(Deserialize)]
struct Versioned {
    version: Option<toml::Value>,
}

/// Looks at the version before anything else, whose meaning it decides.
fn check_version(file: &str, text: &str) -> Result<(), Refused> {
    let Versioned { version } = toml::from_str(text).map_err(|error| bad_toml(file, text, &error))?;
    let refused = match version.map(|version| version.as_integer()) {
        Some(Some(VERSION)) => return Ok(()),
        Some(Some(found)) if found > VERSION => {
            format!("version {found}, written by a newer program; this one replays version {VERSION}")
        }
        Some(Some(found)) => {
            let since: Vec<String> = CHANGES
                .iter()
                .filter(|(version, _)| *version >= found)
                .map(|(version, what)| format!("version {version} holds {what}"))
                .collect();
            format!("version {found}; this program replays version {VERSION}: {}", since.join("; "))
        }
        Some(None) | None => "is no replay file: it has no version; `reprise-sim run` writes one".into(),
    };
    Err(Refused(format!("{file}: {refused}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use crate::run::run;
    use crate::world::Detail;

    fn written() -> String {
        let named = catalog::find("kill-anywhere").unwrap_or_else(|refused| panic!("{refused}"));
        let plan = Plan::draw(&named.scenario, 5);
        let outcome = run(&plan, None, Detail::Nothing);
        Replay::of(&named.name, &named.scenario.title, &plan, &outcome).write()
    }

    #[test]
    fn numbers_of_all_64_bits_are_read_back() {
        let mut replay = Replay::read("a.toml", &written()).unwrap_or_else(|refused| panic!("{refused}"));
        (replay.plan.seed, replay.faults[0].parameter) = (u64::MAX, 1 << 63);
        let read = Replay::read("b.toml", &replay.write()).unwrap_or_else(|refused| panic!("{refused}"));
        assert_eq!((read.plan.seed, read.faults[0].parameter), (u64::MAX, 1 << 63));
    }

    fn refused(text: &str) -> String {
        Replay::read("a.toml", text).expect_err("this is wrong").0
    }

    #[test]
    fn what_was_written_is_read() {
        let text = written();
        let replay = Replay::read("a.toml", &text).unwrap_or_else(|refused| panic!("{refused}"));
        assert_eq!(replay.write(), text);
    }

    #[test]
    fn another_version_is_named_with_what_differs() {
        let text = written();
        assert_eq!(
            refused(&text.replacen("version = 8", "version = 9", 1)),
            "a.toml: version 9, written by a newer program; this one replays version 8"
        );
        let old = refused("version = 1\nscenario = \"x\"\nseed = 4\ntext = \"\"\n");
        assert!(
            old.starts_with("a.toml: version 1; this program replays version 8: version 1 holds"),
            "{old}"
        );
        assert!(old.contains("version 2 holds the plan as it was drawn"), "{old}");
        assert!(refused("title = \"t\"\n").starts_with("a.toml: is no replay file"));
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let text = written();
        for end in (0..text.len() - 1).rev().step_by(97).chain([text.len() - 2]) {
            assert!(Replay::read("a.toml", &text[..end]).is_err(), "cut off after {end} bytes");
        }
        assert!(refused(text.trim_end().trim_end_matches(END)).contains("is cut off"));
        let kind = refused(&text.replacen("kind = \"kill\"", "kind = \"kil\"", 1));
        assert!(kind.contains("kind: unknown variant `kil`, expected one of `kill`"), "{kind}");
        let impossible = refused(&text.replacen("cores = ", "cores = 1000 # ", 1));
        assert_eq!(impossible, "a.toml: plan.cores is 1000; allowed: 1 to 16");
        let listed = |request: &str| {
            refused(&text.replacen(
                "sectors-max = ",
                &format!("requests = [\"{request}\"]\nsectors-max = "),
                1,
            ))
        };
        let queue = listed("queue 64: read 1+1");
        assert!(
            queue.starts_with("a.toml: plan.guests[0].requests, `queue 64: read 1+1`: its queue is 64;"),
            "{queue}"
        );
        let beyond = listed("queue 0: read 1000000+1");
        assert!(
            beyond.contains("`queue 0: read 1000000+1`: its first sector is 1000000; allowed: 0 to "),
            "{beyond}"
        );
        assert!(listed("queue 0: erase 1+1").contains("is no request; allowed: `queue Q: KIND"));
    }
}
