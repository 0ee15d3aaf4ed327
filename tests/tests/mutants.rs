//! The planted bugs of `tests/mutants` still fit the code. Whether the simulator finds them is what `tests/mutants/run`
//! says; here only a patch that the code has moved away from is found, before somebody needs it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn patches(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("a listed file").path();
        if path.is_dir() {
            found.extend(patches(&path));
        } else if path.extension().is_some_and(|ending| ending == "patch") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_planted_bug_says_what_it_is_and_applies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let patches = patches(&root.join("tests/mutants"));
    assert!(!patches.is_empty(), "no bug is planted");
    let mut wrong = Vec::new();
    for patch in &patches {
        let text = std::fs::read_to_string(patch).expect("a patch is text");
        let header = text.split("diff --git").next().unwrap_or_default();
        if !header.contains("Bug: ") || !header.contains("Meant for: ") {
            wrong.push(format!("{}: no line `Bug:`, or no line `Meant for:`", patch.display()));
        }
        let checked = Command::new("git")
            .args(["apply", "--check"])
            .arg(patch)
            .current_dir(root)
            .output()
            .expect("git is there");
        if !checked.status.success() {
            wrong.push(format!("{}: {}", patch.display(), String::from_utf8_lossy(&checked.stderr).trim()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), patches.len(), wrong.join("\n"));
}

#[test]
fn the_page_of_planted_bugs_has_a_row_for_each() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let folder = root.join("tests/mutants");
    let page = std::fs::read_to_string(root.join("docs/planted-bugs.md")).expect("the page is there");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(bug, _)| bug));
    let mut rows: Vec<_> = rows.filter(|bug| bug.contains('/')).map(str::to_owned).collect();
    rows.sort();
    let named = |patch: &PathBuf| {
        let bug = patch.strip_prefix(&folder).expect("it is in the folder").with_extension("");
        bug.to_str().expect("a name").to_owned()
    };
    let mut planted: Vec<_> = patches(&folder).iter().map(named).collect();
    planted.sort();
    assert_eq!(rows, planted);
}
