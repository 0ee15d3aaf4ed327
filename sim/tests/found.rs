//! The failures that were found stay away: every replay file of `scenarios/found` holds.

use sim::run::run;
use sim::subject::Subject;
use sim::world::Detail;
use std::path::Path;

#[test]
fn what_was_found_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/found");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("a listed file").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} holds no replay file", folder.display());
    for file in files {
        let (subject, _) = Subject::replay(&file).unwrap_or_else(|refused| panic!("{refused}"));
        let outcome = run(&subject.plan, subject.script.as_deref(), Detail::Nothing);
        assert!(outcome.passed(), "{}: {:?}", file.display(), outcome.failure);
    }
}
