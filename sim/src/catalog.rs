//! The scenarios that this program knows by name: those of `scenarios/`, built in, so that the binary alone is enough.

use crate::scenario::{Refused, Scenario};
use include_dir::{Dir, include_dir};

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../scenarios");

/// A scenario with its name.
#[derive(Clone, Debug)]
pub struct Named {
    /// Its name: the file's, without the ending.
    pub name: String,
    /// Its group: the folder.
    pub group: String,
    /// What it says.
    pub scenario: Scenario,
}

/// Every built-in scenario, by group and name. Replay files (`scenarios/found`) are no scenarios.
///
/// # Errors
/// What is wrong with a file; a built-in one is a bug, which a test finds.
pub fn all() -> Result<Vec<Named>, Refused> {
    let mut found = Vec::new();
    for folder in FILES.dirs() {
        let group = folder.path().to_string_lossy().into_owned();
        if group == "found" {
            continue;
        }
        for file in folder.files() {
            let path = file.path().to_string_lossy().into_owned();
            let Some(name) = file.path().file_stem().filter(|_| path.ends_with(".toml")) else { continue };
            let text = file.contents_utf8().unwrap_or_default();
            let scenario = Scenario::parse(&format!("scenarios/{path}"), text)?;
            let name = name.to_string_lossy().into_owned();
            found.push(Named { name, group: group.clone(), scenario });
        }
    }
    found.sort_by(|a, b| (&a.group, &a.name).cmp(&(&b.group, &b.name)));
    Ok(found)
}

/// The scenario of a listed name or at a path.
///
/// # Errors
/// That there is none, or what is wrong with it.
pub fn find(name_or_path: &str) -> Result<Named, Refused> {
    let listed = all()?;
    if let Some(named) = listed.iter().find(|named| named.name == name_or_path) {
        return Ok(named.clone());
    }
    let text = std::fs::read_to_string(name_or_path).map_err(|error| {
        let names: Vec<_> = listed.iter().map(|named| named.name.as_str()).collect();
        Refused(format!(
            "{name_or_path}: neither a listed scenario nor a file that can be read ({error}); listed are {}",
            names.join(", ")
        ))
    })?;
    let scenario = Scenario::parse(name_or_path, &text)?;
    let path = std::path::Path::new(name_or_path);
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Named { name, group: "file".into(), scenario })
}

/// All scenarios of the group of this name, or the one that [`find`] finds.
///
/// # Errors
/// As for [`find`].
pub fn find_all(group_or_one: &str) -> Result<Vec<Named>, Refused> {
    let mut group = all()?;
    group.retain(|named| named.group == group_or_one);
    if group.is_empty() { find(group_or_one).map(|named| vec![named]) } else { Ok(group) }
}

#[cfg(test)]
mod tests {
    use super::all;
    use crate::faults::FaultKind;
    use crate::scenario::Switch;

    /// Nothing that a scenario runs has TCP yet: `sim/tests/net.rs` and the conformance suite turn these on.
    const OF_A_NETWORK: [FaultKind; 3] =
        [FaultKind::PacketLost, FaultKind::PacketLate, FaultKind::PacketHeld];

    #[test]
    fn every_kind_of_fault_is_on_in_some_scenario() {
        let listed = all().unwrap_or_else(|refused| panic!("{refused}"));
        let is_on = |kind: &&FaultKind| {
            listed.iter().any(|named| named.scenario.rate(**kind).is_some_and(|rate| rate.on != Switch::Off))
        };
        let off: Vec<_> = FaultKind::ALL
            .iter()
            .filter(|kind| !is_on(kind) && !OF_A_NETWORK.contains(kind))
            .map(|kind| kind.name())
            .collect();
        assert!(
            off.is_empty(),
            "on in no scenario of the list, so that no sweep counts them: {}",
            off.join(", ")
        );
    }

    #[test]
    fn every_built_in_scenario_is_good() {
        let listed = all().unwrap_or_else(|refused| panic!("{refused}"));
        assert!(!listed.is_empty());
        for named in listed {
            assert!(
                !named.scenario.title.contains('\n') && named.scenario.title.len() < 80,
                "{}",
                named.name
            );
        }
    }
}
