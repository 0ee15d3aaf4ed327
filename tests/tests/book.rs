//! The examples of the book and of the README run: the `sh` blocks of each page, in order, in one shell, in an empty folder, with the built
//! binaries on the PATH. A block marked otherwise (`text`, `toml`, or none) is for reading. And the page of all calls is
//! complete: each method of the target has a section, and each section every parameter, by the target's own word.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::target::{RpcError, Target};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("docs")
}

/// What comes before the commands of a page: the first that fails ends the script, and all that it has started.
const PRELUDE: &str = "set -euo pipefail\ntrap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT\n";

fn script_of(page: &str) -> String {
    let mut script = String::from(PRELUDE);
    let mut inside = false;
    for line in page.lines() {
        match (inside, line.trim_end()) {
            (false, "```sh") => inside = true,
            (true, "```") => inside = false,
            (true, command) => {
                script.push_str(command);
                script.push('\n');
            }
            _ => {}
        }
    }
    script
}

fn run_page(path: &Path) {
    let page = std::fs::read_to_string(path).expect("a page");
    let script = script_of(&page);
    if script == PRELUDE {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let binaries = tests::binaries::folder();
    let found = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(folder.path())
        .env("PATH", format!("{}:{found}", binaries.display()))
        .env("REPRISE_SOURCE", root)
        .output()
        .expect("bash");
    assert!(
        output.status.success(),
        "{}: {}\n--- script\n{script}\n--- stdout\n{}\n--- stderr\n{}",
        path.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_page_of_the_book_runs() {
    let mut pages: Vec<_> = std::fs::read_dir(docs())
        .expect("docs")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    assert!(!pages.is_empty());
    pages.push(docs().join("../README.md"));
    for page in pages {
        run_page(&page);
    }
}

/// The sections of the page of calls: each method with what is written about it.
fn sections(page: &str) -> Vec<(&str, &str)> {
    let sections =
        page.split("\n### `").skip(1).map(|section| section.split_once('`').expect("a method's name"));
    sections.map(|(method, text)| (method, text.split("\n## ").next().unwrap_or(text))).collect()
}

/// The parameters of a section, from the first column of its table.
fn documented(section: &str) -> Vec<&str> {
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').nth(1).expect("a first column"));
    let mut names: Vec<_> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    names.sort_unstable();
    names
}

/// The parameters of a section's example, in which only what the shell would expand is not itself.
fn example(method: &str, section: &str) -> Value {
    let call = format!("call {method}");
    let line = section.lines().find_map(|line| line.split_once(call.as_str()));
    let (_, rest) = line.unwrap_or_else(|| panic!("{method} has no example"));
    let words = rest.split(['|', ')']).next().unwrap_or_default();
    // A value with spaces stands in single quotes.
    let mut outside = true;
    let words = words.split(|letter| {
        outside ^= letter == '\'';
        outside && letter == ' '
    });
    let pairs = words.filter_map(|word| word.split_once('='));
    let value = |text: &str| {
        let text = text.trim_matches('\'').trim_matches('"').replace("$PWD", "/nonexistent");
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    };
    pairs.map(|(key, text)| (key.to_owned(), value(text))).collect::<serde_json::Map<_, _>>().into()
}

#[test]
fn the_page_of_calls_has_every_method_with_every_parameter() {
    let page = std::fs::read_to_string(docs().join("rpc.md")).expect("the page");
    let sections = sections(&page);
    let target = Target::start();
    let mut methods: Vec<_> = sections.iter().map(|(method, _)| *method).collect();
    methods.sort_unstable();
    assert_eq!(json!(methods), target.call("rpc_get_methods", Value::Null));
    for (method, section) in sections {
        // A parameter that nobody knows is refused, before anything is done, with those that are known.
        let mut params = example(method, section);
        params["no_such_parameter"] = json!(1);
        let known = match target.rpc(method, params.clone()) {
            Err(RpcError::Refused { code: -32602, message }) => message,
            other => panic!("{method} {params}: {other:?}"),
        };
        let known = known.split_once("the method takes ").unwrap_or_else(|| panic!("{method}: {known}")).1;
        let mut known: Vec<_> = if known == "none" { Vec::new() } else { known.split(", ").collect() };
        known.sort_unstable();
        assert_eq!(documented(section), known, "{method}");
        assert!(section.contains("\nAnswer"), "{method} has no answer");
    }
}

#[test]
fn only_marked_blocks_are_run() {
    let page = "text\n```sh\ntrue\n```\n```text\nfalse\n```\n    false\n";
    assert_eq!(script_of(page), format!("{PRELUDE}true\n"));
}
