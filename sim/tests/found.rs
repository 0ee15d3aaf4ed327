//! The failures that were found stay away: every replay file of `scenarios/found` holds, and does what it was kept for:
//! each fault that it lists strikes. A file whose world has moved on below it guards nothing, and has to be recorded anew.

use sim::faults::FaultKind;
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
        let script = subject.script.unwrap_or_default();
        let missed: Vec<_> = script.iter().filter(|fault| !outcome.faults.contains(fault)).collect();
        assert!(
            missed.is_empty(),
            "{} no longer does what it was kept for, and is to be recorded anew: of its {} faults these strike no \
             more: {missed:?}",
            file.display(),
            script.len()
        );
        let deaths = script.iter().filter(|fault| fault.kind == FaultKind::Kill).count() as u64;
        assert_eq!(
            outcome.kills,
            deaths,
            "{} no longer does what it was kept for, and is to be recorded anew: of its deaths only these fall",
            file.display()
        );
    }
}
