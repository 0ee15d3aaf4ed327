//! Shrinking: a late failure among hundreds of requests becomes the one request and the one fault that it takes, always
//! the same; the small file replays; what does not fail is refused.
//!
//! The failure is no bug of the target: the scenario allows less time than a slow disk takes.

use sim::faults::FaultKind;
use sim::plan::Plan;
use sim::replay::Replay;
use sim::run::run;
use sim::scenario::Scenario;
use sim::shrink::{Case, shrink};
use sim::world::Detail;
use std::path::Path;
use std::process::{Command, Output};

/// One request at a time, on a disk that takes up to 20 ms, where 15 ms without progress are a failure.
const IMPATIENT: &str = r#"
title = "impatient"
about = "A disk that is slower than this scenario allows."
bound-ms = 3
[guest]
bdev = ["uring"]
queues = [1, 2]
depth = 1
requests = [600, 800]
[fault.disk-slow]
one-in = 400
most = 100
[fault.disk-again]
one-in = 50
most = 100
[fault.kill]
most = [1, 2]
range = [500, 3000]
"#;

/// The plan of a seed that fails late, and its replay file.
fn late_failure() -> (Plan, String) {
    let scenario = Scenario::parse("impatient.toml", IMPATIENT).unwrap_or_else(|refused| panic!("{refused}"));
    let late = (1..100).map(|seed| Plan::draw(&scenario, seed)).find_map(|plan| {
        let outcome = run(&plan, None, Detail::Nothing);
        let fails = outcome.failure.as_ref().is_some_and(|failure| failure.checker == "stuck");
        (fails && outcome.requests > 400).then_some((plan, outcome))
    });
    let (plan, outcome) = late.expect("one of a hundred seeds is slow late");
    let text = Replay::of("impatient", "impatient", &plan, &outcome).write();
    (plan, text)
}

fn reprise_sim(arguments: &[&str], directory: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reprise-sim"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("the binary was built for this test")
}

#[test]
fn what_does_not_matter_goes_and_the_same_checker_fails() {
    let (plan, text) = late_failure();
    let replay = Replay::read("late", &text).unwrap_or_else(|refused| panic!("{refused}"));
    let case = Case::new(plan, replay.faults);
    let mut last = 0;
    let shrunk = shrink(&case, |progress| last = progress.tried).expect("it fails");
    assert_eq!(last, shrunk.tried, "each world tried is shown");
    assert!(shrunk.from.operations > 400 && shrunk.to.operations <= 2, "{shrunk:?}");
    // With one that is a little shorter than the bound another fault may have to come.
    let slow = shrunk.to.faults.iter().filter(|fault| fault.kind == FaultKind::DiskSlow).count();
    assert!(slow == 1 && shrunk.to.faults.len() <= 2, "{shrunk:?}");
    let plan = &shrunk.to.plan;
    assert_eq!((plan.cores, plan.guests.len(), plan.guests[0].queues), (1, 1, 1));
    assert_eq!(shrunk.to.run().failure.expect("it still fails").checker, "stuck");
    let again = shrink(&case, |_| {}).expect("it fails");
    assert_eq!((again.to, again.tried), (shrunk.to, shrunk.tried), "the same file shrinks to the same one");
}

#[test]
fn the_command_writes_a_file_that_replays() {
    let directory = std::env::temp_dir().join("reprise-sim-test-shrink");
    std::fs::create_dir_all(&directory).expect("a writable directory");
    std::fs::write(directory.join("late.toml"), late_failure().1).expect("room");
    let shrunk = reprise_sim(&["shrink", "late.toml", "-o", "small.toml"], &directory);
    assert_eq!(shrunk.status.code(), Some(0), "{shrunk:?}");
    let text = String::from_utf8_lossy(&shrunk.stdout).into_owned();
    assert!(text.contains("guest 0, queue 0: ") && text.contains("fault disk-slow: "), "{text}");
    let replayed = reprise_sim(&["replay", "small.toml"], &directory);
    assert_eq!(replayed.status.code(), Some(1), "{replayed:?}");
    let error = String::from_utf8_lossy(&replayed.stderr).into_owned();
    assert!(error.contains("the trace is that of the recorded run"), "{error}");

    let small = std::fs::read_to_string(directory.join("small.toml")).expect("it was written");
    let held =
        small.split("[[fault]]").next().expect("what comes before the faults").to_owned() + "\n# end\n";
    std::fs::write(directory.join("held.toml"), held).expect("room");
    let refused = reprise_sim(&["shrink", "held.toml", "-o", "smaller.toml"], &directory);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nothing fails"), "{refused:?}");
    let _ = std::fs::remove_dir_all(directory);
}
