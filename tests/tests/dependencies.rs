//! What `runtime` and `stack` may depend on, by name. Each crate more is a way for the host to get into code that must
//! run the same in the simulator, so a new one is a decision and not an accident.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crates that must not touch the world, and all that each may name in its manifest.
const ALLOWED: [(&str, &[&str]); 2] =
    [("runtime", &[]), ("stack", &["crc", "runtime", "serde", "serde_json", "tracing"])];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").into()
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(workspace())
        .output()
        .expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    metadata["packages"].as_array().expect("a list of packages").clone()
}

#[test]
fn the_stack_and_the_contract_depend_on_nothing_that_is_not_listed() {
    let packages = packages();
    for (name, allowed) in ALLOWED {
        let package =
            packages.iter().find(|package| package["name"] == name).expect("the crate is in the workspace");
        let dependencies = package["dependencies"].as_array().expect("a list of dependencies");
        let mut found = BTreeSet::new();
        // A dependency of the tests alone is never in the product; one of the build script is.
        for dependency in dependencies.iter().filter(|dependency| dependency["kind"] != "dev") {
            let dependency_name = dependency["name"].as_str().expect("a name");
            let own = dependency["path"].is_string();
            assert!(
                own || dependency["uses_default_features"] == false,
                "{name} takes {dependency_name} with its default features, which want std"
            );
            found.insert(dependency_name);
        }
        assert_eq!(found, allowed.iter().copied().collect(), "the dependencies of {name}");
    }
}

#[test]
fn the_stack_and_the_contract_have_neither_std_nor_unsafe_code() {
    for (name, _) in ALLOWED {
        let path = workspace().join(name).join("src/lib.rs");
        let text = std::fs::read_to_string(&path).expect("the crate's first file");
        for attribute in ["#![no_std]", "#![forbid(unsafe_code)]"] {
            assert!(text.lines().any(|line| line == attribute), "{} has no {attribute}", path.display());
        }
        let mut folders = vec![workspace().join(name).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).expect("a source file");
                // Tests have std; outside of them it would get in only through this line.
                let place = text.find("extern crate std");
                let in_tests = place.is_some_and(|place| text[..place].trim_end().ends_with("#[cfg(test)]"));
                assert!(place.is_none() || in_tests, "{} takes std", path.display());
            }
        }
    }
}
