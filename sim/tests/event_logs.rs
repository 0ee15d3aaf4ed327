//! Three small event logs, kept whole: what a first connection looks like, a death whose request is replayed, and a power
//! loss. A change here is a change of what the target does; look at it, then accept it (`cargo insta review`).
//!
//! Times are left out: what a step costs is drawn, and is nobody's promise.

use sim::plan::Plan;
use sim::run::run;
use sim::scenario::Scenario;
use sim::world::Detail;

/// A world as plain as can be: one core that polls, one queue, one request at a time.
const PLAIN: &str = r#"
title = "small"
about = "A small guest."
[world]
cores = 1
sleep = "off"
interleave-every = 0
cut-streams = 0
message-delay-us = 0
store-buffers = "off"
[guest]
queues = 1
ring-size-log2 = 4
depth = 1
requests = 2
firmware = "off"
regions = 1
front-end = ["qemu7"]
packed = "off"
event-idx = "on"
indirect = "off"
"#;

/// The run's log without times, up to the moment at which the faults stop; the messages of the connection only if asked.
fn log_of(additions: &str, seed: u64, messages: bool) -> String {
    let text = format!("{PLAIN}{additions}");
    let scenario = Scenario::parse("small.toml", &text).unwrap_or_else(|refused| panic!("{}", refused.0));
    let outcome = run(&Plan::draw(&scenario, seed), None, Detail::Everything);
    assert!(outcome.passed(), "{:?}", outcome.failure);
    let is_message =
        |text: &str| ["front-end: ", ": message-", ": Answer "].iter().any(|part| text.contains(part));
    let lines = outcome.log.into_iter().map(|line| line.text);
    lines
        .take_while(|text| !text.starts_with("the faults stop"))
        .filter(|text| messages || !is_message(text))
        .map(|text| text + "\n")
        .collect()
}

/// The lines around the first that contains `moment`.
fn around(log: &str, moment: &str) -> String {
    let lines: Vec<&str> =
        log.lines().filter(|line| !line.contains(" read sector ") || line.contains("submitted")).collect();
    let at = lines.iter().position(|line| line.contains(moment)).expect("it happened");
    lines[at.saturating_sub(6)..lines.len().min(at + 24)].iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_first_connection_and_two_requests() {
    insta::assert_snapshot!(log_of("bdev = [\"malloc\"]\n", 1, true));
}

#[test]
fn a_death_and_a_replayed_request() {
    let kill = "bdev = [\"uring\"]\n[fault.kill]\nmost = 1\nrange = 180\n";
    let log = (1..200).map(|seed| log_of(kill, seed, false)).find(|log| log.contains("request-replayed"));
    let log = log.expect("one of two hundred lives dies with a request out");
    insta::assert_snapshot!(around(&log, "is killed"));
}

#[test]
fn a_power_loss() {
    let loss = "bdev = [\"uring\"]\n[fault.power-loss]\nmost = 1\nrange = [4000, 7000]\n";
    let log = (1..200).map(|seed| log_of(loss, seed, false)).find(|log| {
        let until_loss = log.split("without power").next().unwrap_or_default();
        log.contains("without power") && until_loss.contains("request-submitted")
    });
    let log = log.expect("one of two hundred machines loses its power under load");
    insta::assert_snapshot!(around(&log, "without power"));
}
