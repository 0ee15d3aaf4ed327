//! Replay files: a failure, kept. The scenario's own text, the seed, and the faults that struck; a replay executes that
//! list and draws none. Deleting from the list by hand is allowed: that is what shrinking does.

use crate::faults::{Fault, FaultKind};
use crate::report::Outcome;
use crate::scenario::{Refused, Scenario, bad_toml, kind_named};
use serde::{Deserialize, Serialize};

/// The version of the format.
const VERSION: u32 = 1;

/// The names of all kinds of fault.
fn names() -> String {
    FaultKind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

/// A replay file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    version: u32,
    /// The scenario's name, for people.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// The checker that failed; empty where none did.
    #[serde(default)]
    pub checker: String,
    /// What it found.
    #[serde(default)]
    pub what: String,
    /// The trace of the run that is replayed, where it was not edited since.
    #[serde(default)]
    pub trace: String,
    /// The scenario's file.
    text: String,
    /// The faults.
    #[serde(default)]
    fault: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kind: String,
    opportunity: u64,
    parameter: u64,
}

impl Replay {
    /// The replay of a run that has ended.
    #[must_use]
    pub fn of(scenario: &str, text: &str, seed: u64, outcome: &Outcome) -> Self {
        let failure = outcome.failure.as_ref();
        Self {
            version: VERSION,
            scenario: scenario.to_owned(),
            seed,
            checker: failure.map_or_else(String::new, |failure| failure.checker.clone()),
            what: failure.map_or_else(String::new, |failure| failure.what.clone()),
            trace: format!("{:032x}", outcome.trace),
            text: text.to_owned(),
            fault: outcome
                .faults
                .iter()
                .map(|fault| Entry {
                    kind: fault.kind.name().to_owned(),
                    opportunity: fault.opportunity,
                    parameter: fault.parameter,
                })
                .collect(),
        }
    }

    /// The file's text.
    #[must_use]
    pub fn write(&self) -> String {
        let body = toml::to_string(self).expect("a replay is plain data");
        format!("# reprise-sim replay THIS_FILE\n{body}")
    }

    /// Reads a file; `file` is what errors call it.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn read(file: &str, text: &str) -> Result<Self, Refused> {
        let replay: Self = toml::from_str(text).map_err(|error| bad_toml(file, text, &error))?;
        if replay.version != VERSION {
            let found = replay.version;
            return Err(Refused(format!("{file}: version {found}; this program replays version {VERSION}")));
        }
        Ok(replay)
    }

    /// The scenario and the faults of it.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn parts(&self, file: &str) -> Result<(Scenario, Vec<Fault>), Refused> {
        let scenario = Scenario::parse(&format!("{file}, its scenario"), &self.text)?;
        let faults = self.fault.iter().map(|entry| {
            let Entry { kind, opportunity, parameter } = entry;
            let kind = kind_named(kind).ok_or_else(|| {
                Refused(format!("{file}: fault.kind `{kind}` is no kind of fault; allowed: {}", names()))
            })?;
            Ok(Fault { kind, opportunity: *opportunity, parameter: *parameter })
        });
        Ok((scenario, faults.collect::<Result<_, _>>()?))
    }
}
