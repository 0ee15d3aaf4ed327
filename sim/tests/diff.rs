//! Two runs compared: a run is itself, being followed changes nothing, and what was taken from a replay file shows as the
//! first step at which the two part.

use sim::diff::{Difference, diff};
use sim::faults::FaultKind;
use sim::follow::Kept;
use sim::run::run;
use sim::subject::Subject;
use sim::world::Detail;
use std::process::{Command, Output};

fn subject(text: &str) -> Subject {
    Subject::parse(text).unwrap_or_else(|refused| panic!("{refused}"))
}

fn reprise_sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reprise-sim"))
        .args(arguments)
        .output()
        .expect("the binary was built for this test")
}

#[test]
fn a_run_is_itself_and_being_followed_changes_nothing() {
    let seed = subject("power-loss:4");
    let plain = run(&seed.plan, None, Detail::Nothing);
    let (difference, outcomes) = diff(&seed, &seed, 5);
    assert!(matches!(difference, Difference::None(shared) if shared > plain.steps), "{difference:?}");
    assert_eq!([outcomes[0].trace, outcomes[1].trace], [plain.trace; 2]);
    // A replay of what struck is the same run, line by line.
    let replayed = Subject { script: Some(plain.faults), ..seed.clone() };
    assert!(matches!(diff(&seed, &replayed, 5).0, Difference::None(_)));
}

#[test]
fn a_death_taken_away_is_where_they_part() {
    let drawn = subject("kill-anywhere:5");
    let struck = run(&drawn.plan, None, Detail::Nothing).faults;
    let third = |fault: &sim::faults::Fault| fault.kind == FaultKind::Kill && fault.opportunity == 2;
    let fewer = Subject {
        script: Some(struck.iter().copied().filter(|fault| !third(fault)).collect()),
        ..drawn.clone()
    };
    let Difference::Parts(parting) = diff(&drawn, &fewer, 5).0 else { panic!("a death is missing") };
    assert!(parting.shared > 1000 && parting.before.len() == 5);
    assert!(parting.a.iter().any(|entry| matches!(entry.what, Kept::Fault(fault) if third(&fault))));
    assert!(!parting.b.iter().any(|entry| matches!(entry.what, Kept::Fault(_))));
}

#[test]
fn the_exit_codes_are_those_of_the_other_commands() {
    let same = reprise_sim(&["diff", "resize-and-cache:3", "resize-and-cache:3"]);
    assert_eq!(same.status.code(), Some(0), "{same:?}");
    assert!(String::from_utf8_lossy(&same.stdout).contains("the runs are the same: "));
    let differ = reprise_sim(&["diff", "resize-and-cache:3", "resize-and-cache:4", "--context", "3"]);
    assert_eq!(differ.status.code(), Some(1), "{differ:?}");
    let text = String::from_utf8_lossy(&differ.stdout).into_owned();
    assert!(text.contains("\nthen they part:\n\nA> ") && text.contains("\nB> "), "{text}");
    for bad in ["no-such-file", "no-such-scenario:3", "kill-anywhere:x"] {
        let output = reprise_sim(&["diff", bad, "kill-anywhere:1"]);
        assert_eq!(output.status.code(), Some(2), "{bad}: {output:?}");
    }
}
