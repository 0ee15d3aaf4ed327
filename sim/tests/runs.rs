//! A seed is a run: the same trace again and again, from a replay file too, and `reprise-sim` says so by its exit code.

use sim::catalog;
use sim::faults::FaultKind;
use sim::plan::Plan;
use sim::replay::Replay;
use sim::report::Outcome;
use sim::run::run;
use sim::world::Detail;
use std::process::{Command, Output};

fn reprise_sim(arguments: &[&str]) -> Output {
    let directory = std::env::temp_dir();
    Command::new(env!("CARGO_BIN_EXE_reprise-sim"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("the binary was built for this test")
}

fn outcome(name: &str, seed: u64, detail: Detail) -> Outcome {
    let named = catalog::find(name).unwrap_or_else(|refused| panic!("{refused}"));
    run(&Plan::draw(&named.scenario, seed), None, detail)
}

#[test]
fn a_seed_is_a_run_in_every_scenario() {
    for named in catalog::all().unwrap_or_else(|refused| panic!("{refused}")) {
        let first = run(&Plan::draw(&named.scenario, 1), None, Detail::Nothing);
        assert!(first.passed(), "{}: {:?}", named.name, first.failure);
        assert_eq!(
            outcome(&named.name, 1, Detail::Nothing).trace,
            first.trace,
            "{}: the same seed twice",
            named.name
        );
        assert_ne!(
            outcome(&named.name, 2, Detail::Nothing).trace,
            first.trace,
            "{}: another seed",
            named.name
        );
        assert_eq!(
            outcome(&named.name, 1, Detail::Everything).trace,
            first.trace,
            "{}: being watched changes nothing",
            named.name
        );
    }
}

#[test]
fn a_replay_is_the_run_and_less_of_it_is_another() {
    let named = catalog::find("kill-anywhere").unwrap_or_else(|refused| panic!("{refused}"));
    let plan = Plan::draw(&named.scenario, 5);
    let drawn = run(&plan, None, Detail::Nothing);
    let text = Replay::of(&named.name, &named.scenario.title, &plan, &drawn).write();
    let replay = Replay::read("a.toml", &text).unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!((&replay.plan, &replay.faults), (&plan, &drawn.faults));
    let again = run(&replay.plan, Some(&replay.faults), Detail::Nothing);
    assert_eq!((again.trace, again.kills, again.ios), (drawn.trace, drawn.kills, drawn.ios));
    let fewer: Vec<_> = replay
        .faults
        .iter()
        .copied()
        .filter(|fault| fault.kind != FaultKind::Kill || fault.opportunity < 2)
        .collect();
    let shrunk = run(&plan, Some(&fewer), Detail::Nothing);
    assert!(shrunk.passed(), "{:?}", shrunk.failure);
    assert_eq!(shrunk.kills, 2);
}

#[test]
fn two_processes_see_the_same_trace() {
    let of = |seed: &str| {
        let output = reprise_sim(&["run", "kill-anywhere", "--seed", seed, "--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert_eq!(object["verdict"], "pass");
        for field in [
            "scenario",
            "seed",
            "ios",
            "kills",
            "replayed",
            "faults",
            "checks",
            "steps",
            "virtual_ns",
            "wall_ns",
        ] {
            assert!(!object[field].is_null(), "{field} is there");
        }
        object["trace"].as_str().expect("a hash").to_owned()
    };
    let here = format!("{:032x}", outcome("kill-anywhere", 9, Detail::Nothing).trace);
    assert_eq!((of("9"), of("9")), (here.clone(), here));
}

#[test]
fn bad_input_is_named_and_exits_with_2() {
    let file = std::env::temp_dir().join(format!("reprise-bad-scenario-{}.toml", env!("CARGO_PKG_VERSION")));
    std::fs::write(&file, "title = \"t\"\nabout = \"a\"\n[guest]\nqueues = 0\n")
        .expect("a writable directory");
    let path = file.to_str().expect("a plain path");
    for (arguments, said) in [
        (vec!["run", path, "--seed", "1"], ":4: guest.queues is 0; allowed: 1 to 64"),
        (vec!["run", "no-such-scenario", "--seed", "1"], "neither a listed scenario nor a file"),
        (vec!["replay", path], "is no replay file: it has no version"),
        (vec!["sweep", "kill-anywhere", "--seeds", "0"], "0 is not in 1.."),
    ] {
        let output = reprise_sim(&arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    let _ = std::fs::remove_file(file);
}

/// Runs a scenario in a folder of its own: its exit code, what it said on the side, and whether it left a replay file.
fn run_in_folder(folder: &str, scenario: &str) -> (Option<i32>, String, bool) {
    let directory = std::env::temp_dir().join(folder);
    std::fs::create_dir_all(&directory).expect("a writable directory");
    let text = format!("title = \"t\"\nabout = \"a\"\n{scenario}");
    std::fs::write(directory.join("mine.toml"), text).expect("room");
    let output = Command::new(env!("CARGO_BIN_EXE_reprise-sim"))
        .args(["run", "mine.toml", "--seed", "1"])
        .current_dir(&directory)
        .output()
        .expect("the binary was built for this test");
    let left = directory.join("mine-1.replay.toml").exists();
    let _ = std::fs::remove_dir_all(directory);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned(), left)
}

#[test]
fn a_run_that_fails_ends_with_1_and_leaves_a_replay_file() {
    // Pauses so long that nothing seems to happen any more.
    let scenario = "bound-ms = 1\n[guest]\npauses = 256\npause-us = 10000000\n";
    let (code, said, left) = run_in_folder("reprise-sim-test-stuck", scenario);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("replay with: reprise-sim replay mine-1.replay.toml") && left, "{said}");
}

#[test]
fn a_run_that_only_did_too_little_ends_with_1_and_leaves_none() {
    let scenario = "[guest]\nrequests = 20\n[at-least]\nkills = 1\n";
    let (code, said, left) = run_in_folder("reprise-sim-test-coverage", scenario);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no replay file") && !left, "{said}");
}

#[test]
fn output_that_cannot_be_written_is_said() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a device that is full");
    let output = Command::new(env!("CARGO_BIN_EXE_reprise-sim"))
        .args(["run", "ring-alone", "--seed", "1", "--json"])
        .stdout(full)
        .output()
        .expect("the binary was built for this test");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"), "{output:?}");
}
