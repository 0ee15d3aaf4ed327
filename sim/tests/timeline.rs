//! Timelines: what is drawn of a run, the trace events, and the page in a real browser.
//!
//! The failing run is no bug of the target: the scenario allows less time than a slow disk takes.

use serde_json::Value;
use sim::plan::Plan;
use sim::run::run;
use sim::scenario::Scenario;
use sim::subject::Subject;
use sim::timeline::{self, Group, Timeline, page, perfetto};
use sim::world::Detail;
use std::path::{Path, PathBuf};
use std::process::Command;

const IMPATIENT: &str = r#"
title = "impatient </script><script>console.error('escaped')</script>"
about = "A disk that is slower than this scenario allows."
bound-ms = 3
[guest]
bdev = ["uring"]
queues = 2
depth = 4
requests = [200, 300]
[fault.disk-slow]
one-in = 20
most = 100
[fault.kill]
most = 2
range = [500, 3000]
"#;

fn of_seed(text: &str) -> Timeline {
    let subject = Subject::parse(text).unwrap_or_else(|refused| panic!("{refused}"));
    let (timeline, outcome) = timeline::of(&subject);
    assert_eq!(outcome.trace, run(&subject.plan, None, Detail::Nothing).trace, "being drawn changes nothing");
    timeline
}

/// A run that was killed and fails.
fn failing() -> Timeline {
    let scenario = Scenario::parse("impatient.toml", IMPATIENT).unwrap_or_else(|refused| panic!("{refused}"));
    let title = scenario.title.clone();
    let drawn = (1..200).map(|seed| {
        timeline::of(&Subject {
            scenario: "impatient".into(),
            title: title.clone(),
            plan: Plan::draw(&scenario, seed),
            script: None,
        })
    });
    let mut late =
        drawn.filter(|(_, outcome)| outcome.failure.is_some() && outcome.kills > 0 && outcome.ios > 50);
    late.next().expect("one of two hundred seeds is slow late").0
}

#[test]
fn every_request_life_and_death_is_drawn() {
    let outcome =
        run(&Subject::seed("kill-anywhere", "7").expect("it is listed").plan, None, Detail::Nothing);
    let Timeline { lanes, bars, marks, .. } = of_seed("kill-anywhere:7");
    let of_group = |group| {
        let lanes = &lanes;
        bars.iter().filter(move |bar| lanes[bar.lane].group == group)
    };
    assert_eq!(of_group(Group::Queues).count() as u64, outcome.requests);
    assert!(of_group(Group::Queues).all(|bar| bar.from_ns <= bar.to_ns && bar.request.is_some()));
    assert_eq!(of_group(Group::Lives).count() as u64, outcome.kills + 1);
    // The identity is answered without a bdev.
    assert!(of_group(Group::Cores).all(|bar| bar.request.is_some()));
    assert!(of_group(Group::Cores).count() as u64 > outcome.ios * 9 / 10);
    let marked = |kind| marks.iter().filter(|mark| mark.kind == kind).count() as u64;
    assert_eq!((marked("crash"), marked("replay")), (outcome.kills, outcome.replayed));
    assert_eq!(marked("fault"), outcome.faults.len() as u64);
    // Bars of a row do not overlap.
    let mut free_at = std::collections::BTreeMap::new();
    for bar in &bars {
        let free_at = free_at.entry((bar.lane, bar.row)).or_insert(0);
        assert!(*free_at <= bar.from_ns, "{bar:?}");
        *free_at = bar.to_ns;
    }
}

#[test]
fn disks_and_fences_are_drawn() {
    let timeline = of_seed("late-writes:3");
    let disks = timeline.bars.iter().filter(|bar| timeline.lanes[bar.lane].group == Group::Disks).count();
    assert!(disks > 300, "{disks}");
    assert!(timeline.marks.iter().any(|mark| mark.kind == "fence"));
}

#[test]
fn trace_events_are_what_viewers_read() {
    let timeline = failing();
    let document = perfetto::document(&timeline);
    let events = document["traceEvents"].as_array().expect("a list");
    let of_phase = |phase: &'static str| events.iter().filter(move |event| event["ph"] == phase);
    assert_eq!(of_phase("X").count(), timeline.bars.len());
    assert_eq!(of_phase("i").count(), timeline.marks.len());
    let threads: Vec<&Value> = of_phase("M").filter(|event| event["name"] == "thread_name").collect();
    for event in of_phase("X") {
        assert!(event["dur"].as_f64().is_some_and(|micros| micros >= 0.0), "{event}");
        assert!(
            threads.iter().any(|thread| (&thread["tid"], &thread["pid"]) == (&event["tid"], &event["pid"]))
        );
    }
    assert!(of_phase("i").any(|event| event["cat"] == "failure" && event["s"] == "g"));
}

#[test]
fn a_page_needs_nothing_else_and_stays_small() {
    let scenario = IMPATIENT.replace("[200, 300]", "5000").replace("bound-ms = 3", "bound-ms = 50");
    let scenario = Scenario::parse("large.toml", &scenario).unwrap_or_else(|refused| panic!("{refused}"));
    let plan = Plan::draw(&scenario, 1);
    let (timeline, outcome) =
        timeline::of(&Subject { scenario: "large".into(), title: "large".into(), plan, script: None });
    assert!(outcome.requests >= 5000, "{}", outcome.requests);
    let page = page::page(&timeline);
    assert!(page.len() < 5_000_000, "{} bytes", page.len());
    for outside in ["src=\"", "href=\"http", "url(http", "@import", "fetch("] {
        assert!(!page.contains(outside), "the page asks for {outside}");
    }
}

#[test]
fn the_command_names_what_it_cannot_draw() {
    let reprise_sim = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reprise-sim"));
        command
            .args(arguments)
            .current_dir(std::env::temp_dir())
            .output()
            .expect("it was built for this test")
    };
    for (arguments, code, said) in [
        (vec!["timeline", "sleep", "-o", "x.html"], 2, "sleep is a scenario: which --seed of it?"),
        (vec!["timeline", "no-such-file", "-o", "x.html"], 2, "no-such-file: cannot be read"),
        (vec!["timeline", "sleep", "--seed", "1", "-o", "/no/such/x.html"], 2, "cannot be written"),
        (vec!["timeline", "sleep", "--seed", "1", "-o", "x.json", "--format", "perfetto"], 0, ""),
    ] {
        let output = reprise_sim(&arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}

/// What a browser makes of a page: the document after its script has run, and what it said on the console.
struct Browsed {
    document: String,
    console: String,
}

impl Browsed {
    /// Opens a page from disk. `fragment` is what stands behind the `#` of its address.
    fn open(file: &Path, fragment: &str) -> Self {
        let address = format!("file://{}#{fragment}", file.display());
        let options =
            ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"];
        let output =
            Command::new("chromium").args(options).arg(address).output().expect("chromium is installed");
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let console = said.lines().filter(|line| line.contains(":CONSOLE")).collect::<Vec<_>>().join("\n");
        Self { document: String::from_utf8_lossy(&output.stdout).into_owned(), console }
    }

    /// Elements of these classes, in the order of the attribute.
    fn count(&self, class: &str) -> usize {
        self.document.matches(&format!("class=\"{class}")).count()
    }
}

#[test]
#[ignore = "needs a browser; run: tests/browser/run"]
fn a_browser_shows_lanes_bars_filters_and_the_failed_check() {
    let timeline = failing();
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("timeline.html");
    std::fs::write(&file, page::page(&timeline)).expect("a writable directory");
    let browsed = Browsed::open(&file, "");
    assert_eq!(browsed.console, "", "nothing on the console");
    assert_eq!(browsed.count("lane\""), timeline.lanes.len());
    assert!(browsed.count("bar read") > 5 && browsed.count("bar write") > 5 && browsed.count("bar life") > 1);
    assert!(browsed.count("moment crash") > 0 && browsed.count("moment failure") == 1);
    assert!(browsed.document.contains("fails stuck"), "the verdict is told");
    assert_eq!(browsed.count("line failed"), 1, "the failed check is the highlighted line of the last ones");
    assert!(browsed.document.contains("impatient &lt;/script&gt;"), "a text stays a text");

    // One queue's requests stay bright, and the count says so.
    let of_queue = timeline
        .bars
        .iter()
        .filter(|bar| timeline.lanes[bar.lane].group == Group::Queues && bar.queue == Some(1));
    let filtered = Browsed::open(&file, "queue=0/1");
    assert!(filtered.document.contains(&format!(">{} of ", of_queue.count())), "the count of the filter");
    assert!(filtered.count("bar read dim") > 0 && filtered.console.is_empty(), "{}", filtered.console);
    let one = Browsed::open(&file, "request=7");
    assert!(one.document.contains(">1 of "), "one request");
    let bright = |browsed: &Browsed| browsed.count("bar read\"") + browsed.count("bar write\"");
    assert!(bright(&one) < bright(&filtered) && bright(&filtered) < bright(&browsed));
    let block = Browsed::open(&file, "block=3");
    assert!(block.count("bar write dim") > 0 && block.console.is_empty());
}

#[test]
#[ignore = "needs a browser; run: tests/browser/run"]
fn requests_that_the_failed_check_names_stand_out() {
    let mut timeline = failing();
    let failure = timeline.failure.as_mut().expect("it fails");
    failure.what = "read #7 found what write #5 had replaced".into();
    assert_eq!(timeline.accused(), [7, 5]);
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("accused.html");
    std::fs::write(&file, page::page(&timeline)).expect("a writable directory");
    let browsed = Browsed::open(&file, "failure");
    assert_eq!(browsed.console, "");
    assert_eq!(browsed.document.matches(" accused\"").count(), 2);
}
