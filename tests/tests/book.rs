//! The book's examples run: the `sh` blocks of each page, in order, in one shell, in an empty folder, with the built
//! binaries on the PATH. A block marked otherwise (`text`, `toml`, or none) is for reading.

use std::path::Path;
use std::process::Command;

fn script_of(page: &str) -> String {
    let mut script = String::from("set -euo pipefail\n");
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
    if script.lines().count() == 1 {
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
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("docs");
    let mut pages: Vec<_> = std::fs::read_dir(docs)
        .expect("docs")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    assert!(!pages.is_empty());
    for page in pages {
        run_page(&page);
    }
}

#[test]
fn only_marked_blocks_are_run() {
    let page = "text\n```sh\ntrue\n```\n```text\nfalse\n```\n    false\n";
    assert_eq!(script_of(page), "set -euo pipefail\ntrue\n");
}
