//! Every test that a plain run leaves out says which command runs it, and `.ci/run` runs that command: a test that
//! nobody runs has not passed.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All Rust files of the workspace's packages.
fn sources() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        ["runtime", "stack", "hw", "sim", "tests", "benches"].map(|package| root().join(package)).into();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("a folder").path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "rs" => found.push(path),
                _ => {}
            }
        }
    }
    found
}

/// The reasons in a source: `#[ignore = "…"]` and `ignore = "…"` of a macro; an `#[ignore]` without one is an empty
/// reason.
fn reasons(source: &str) -> Vec<String> {
    let given = source.lines().map(str::trim).filter_map(|line| {
        let line = line.strip_prefix("#[").unwrap_or(line).strip_prefix("ignore")?;
        match line.strip_prefix(" = \"") {
            Some(reason) => Some(reason.rsplit_once('"')?.0.to_owned()),
            None => (line == "]").then(String::new),
        }
    });
    given.collect()
}

/// What is wrong with a reason, if anything is.
fn judge(reason: &str, ci: &str, all_tests: &str) -> Option<String> {
    let Some((why, command)) = reason.split_once("; run: ") else {
        return Some("it does not end in `; run: COMMAND`".into());
    };
    if why.is_empty() {
        return Some("it does not say why".into());
    }
    let stage = ci.lines().any(|line| {
        line.trim_start().starts_with("stage ") && {
            let first = command.split(' ').next().unwrap_or_default();
            // A script takes the names of its tests; of cargo's commands the whole must be there.
            let wanted = if first == "cargo" { command } else { first };
            line.contains(&format!(" {wanted}"))
        }
    });
    if !stage {
        return Some(format!("no stage of .ci/run is `{command}`"));
    }
    let mut words = command.split(' ');
    let script = words.next().filter(|first| *first != "cargo")?;
    match std::fs::metadata(root().join(script)) {
        Ok(found) if found.permissions().mode() & 0o111 != 0 => {}
        _ => return Some(format!("{script} is no program")),
    }
    words
        .find(|name| {
            !all_tests.lines().any(|line| line.trim_start().starts_with("fn ") && line.contains(name))
        })
        .map(|name| format!("no test has {name} in its name"))
}

#[test]
fn every_ignored_test_is_run_by_a_stage() {
    let ci = text(".ci/run");
    let sources: Vec<(PathBuf, String)> = sources()
        .into_iter()
        .map(|path| {
            let source = std::fs::read_to_string(&path).expect("a source");
            (path, source)
        })
        .collect();
    let all: String = sources.iter().map(|(_, source)| source.as_str()).collect();
    let mut judged = 0;
    let mut wrong = Vec::new();
    for (path, source) in &sources {
        for reason in reasons(source) {
            judged += 1;
            if let Some(what) = judge(&reason, &ci, &all) {
                wrong.push(format!("{}: \"{reason}\": {what}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(judged > 30, "only {judged} reasons were found");
}

#[test]
fn a_reason_that_leads_nowhere_is_found() {
    let ci = "# stage tests/spdk-rpc/run\nstage auditor cargo ambient\n    stage \"vms\" tests/vm/run\n";
    let tests = "    fn nvme_survives() {\n";
    let judged = |reason| judge(reason, ci, tests);
    for good in ["rare; run: cargo ambient", "rare; run: tests/vm/run", "rare; run: tests/vm/run nvme_surv"] {
        assert_eq!(judged(good), None, "{good}");
    }
    for bad in [
        "",
        "slow",
        "; run: cargo ambient",
        "rare; run: cargo test -p hw -- --ignored",
        "rare; run: tests/spdk-rpc/run",
        "rare; run: tests/vm/run no_such_test",
    ] {
        assert!(judged(bad).is_some(), "{bad}");
    }
    assert_eq!(
        reasons("#[ignore]\n  #[ignore = \"why\"]\n    ignore = \"macro\"\nignored\n"),
        ["", "why", "macro"]
    );
}
