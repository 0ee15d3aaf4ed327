//! What a command is asked to run: a replay file, or a seed of a scenario.

use crate::catalog::{self, Named};
use crate::faults::Fault;
use crate::plan::Plan;
use crate::replay::Replay;
use crate::scenario::Refused;
use std::path::Path;

/// A run to be made.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The scenario's name.
    pub scenario: String,
    /// What the scenario is, in a line.
    pub title: String,
    /// What the seed drew.
    pub plan: Plan,
    /// The faults, where they are not drawn.
    pub script: Option<Vec<Fault>>,
}

impl Subject {
    /// A seed of a scenario.
    ///
    /// # Errors
    /// What is wrong with the scenario or the seed.
    pub fn seed(scenario: &str, seed: &str) -> Result<Self, Refused> {
        let Named { name, scenario, .. } = catalog::find(scenario)?;
        let plan = Plan::draw_text(&scenario, seed).map_err(Refused)?;
        Ok(Self { scenario: name, title: scenario.title, plan, script: None })
    }

    /// What a replay file holds.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn replay(file: &Path) -> Result<(Self, Replay), Refused> {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file)
            .map_err(|error| Refused(format!("{name}: cannot be read: {error}")))?;
        let replay = Replay::read(&name, &text)?;
        let Replay { scenario, title, plan, faults, .. } = replay.clone();
        Ok((Self { scenario, title, plan, script: Some(faults) }, replay))
    }

    /// `SCENARIO:SEED`, or the path of a replay file.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        match text.rsplit_once(':') {
            Some((scenario, seed)) if seed.starts_with(|first: char| first.is_ascii_digit()) => {
                Self::seed(scenario, seed)
            }
            _ if Path::new(text).exists() => Ok(Self::replay(Path::new(text))?.0),
            _ => Err(Refused(format!("{text}: neither SCENARIO:SEED nor a replay file that exists"))),
        }
    }
}
