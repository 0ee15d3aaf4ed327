//! What a run came to, for people and for programs.

use crate::catalog::Named;
use crate::coverage::Feature;
use crate::faults::{Fault, FaultKind};
use crate::plan::{GuestPlan, Plan};
use crate::scenario::Switch;
use crate::shrink::Case;
use crate::totals::{Count, Swarm, Totals};
use crate::world::{Failure, Judged, Line};
use serde_json::{Map, Value, json};
use stack::reached::{By, Reached};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// A run that has ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// The hash of everything that happened.
    pub trace: u128,
    /// Requests made, firmwares' and verifying reads among them.
    pub requests: u64,
    /// Requests completed.
    pub ios: u64,
    /// Lives ended by force.
    pub kills: u64,
    /// Requests found in an inflight region and submitted again.
    pub replayed: u64,
    /// The faults that struck.
    pub faults: Vec<Fault>,
    /// Evaluations, by checker.
    pub checks: BTreeMap<&'static str, u64>,
    /// How often each point of the stack was reached, of those that were.
    pub reached: Vec<(Reached, u64)>,
    /// What a search may have been looking for.
    pub features: Vec<Feature>,
    /// Steps of all actors.
    pub steps: u64,
    /// Simulated time.
    pub virtual_ns: u64,
    /// The log, as detailed as was asked for.
    pub log: Vec<Line>,
}

impl Outcome {
    /// Whether all held.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failure.is_none()
    }

    /// Whether nothing is wrong but that the run did less than its scenario asks for.
    #[must_use]
    pub fn did_too_little(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| failure.checker == Judged::COVERAGE)
    }

    /// How often each kind of fault struck, by name.
    #[must_use]
    pub fn faults_by_kind(&self) -> Vec<(&'static str, u64)> {
        let mut counts: Vec<(&'static str, u64)> = Vec::new();
        for fault in &self.faults {
            let name = fault.kind.name();
            match counts.iter_mut().find(|(kind, _)| *kind == name) {
                Some((_, count)) => *count += 1,
                None => counts.push((name, 1)),
            }
        }
        counts.sort_unstable();
        counts
    }

    /// The object of `--json`.
    #[must_use]
    pub fn to_json(&self, scenario: &str, plan: &Plan, wall_ns: u64) -> Value {
        let object = |pairs: Vec<(&'static str, u64)>| {
            pairs.into_iter().map(|(name, count)| (name.to_owned(), json!(count))).collect::<Map<_, _>>()
        };
        json!({
            "scenario": scenario,
            "seed": if plan.numbers.are_plain() { json!(plan.seed) } else { json!(plan.seed_text()) },
            "verdict": if self.passed() { "pass" } else { "fail" },
            "checker": self.failure.as_ref().map(|failure| &failure.checker),
            "what": self.failure.as_ref().map(|failure| &failure.what),
            "trace": format!("{:032x}", self.trace),
            "ios": self.ios,
            "kills": self.kills,
            "replayed": self.replayed,
            "faults": object(self.faults_by_kind()),
            "checks": object(self.checks.iter().map(|(name, count)| (*name, *count)).collect()),
            "reached": object(self.reached.iter().map(|(point, count)| (point.name(), *count)).collect()),
            "steps": self.steps,
            "virtual_ns": self.virtual_ns,
            "wall_ns": wall_ns,
        })
    }

    /// The verdict as a person reads it: what happened when, in order, what was checked, and what was found.
    #[must_use]
    pub fn verdict(&self, scenario: &str, about: &str, seed: &str, wall_ns: u64) -> String {
        let mut text = format!("{scenario}, seed {seed}: {about}\n\n");
        for line in &self.log {
            let _ = writeln!(text, "{}", self::line(line));
        }
        let _ = writeln!(
            text,
            "\n{} requests completed, {} kills, {} requests replayed; {} steps, {:.3} ms simulated in {:.1} ms",
            self.ios,
            self.kills,
            self.replayed,
            self.steps,
            self.virtual_ns as f64 / 1e6,
            wall_ns as f64 / 1e6
        );
        let list = |pairs: &[(&str, u64)]| {
            pairs.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        let faults = self.faults_by_kind();
        let _ = writeln!(text, "faults:  {}", if faults.is_empty() { "none".into() } else { list(&faults) });
        let checks: Vec<(&str, u64)> = self.checks.iter().map(|(name, count)| (*name, *count)).collect();
        let _ = writeln!(text, "checked: {}", list(&checks));
        let reached: Vec<(&str, u64)> =
            self.reached.iter().map(|(point, count)| (point.name(), *count)).collect();
        let _ = writeln!(text, "reached: {}", list(&reached));
        let _ = writeln!(text, "trace:   {:032x}", self.trace);
        match &self.failure {
            None => text.push_str("verdict: pass, all held\n"),
            Some(failure) => {
                let at = time(failure.at_ns);
                let _ =
                    writeln!(text, "verdict: FAIL, {} at {}: {}", failure.checker, at.trim(), failure.what);
            }
        }
        text
    }
}

/// What a sweep came to, as people read it: which faults were on, and which points were reached.
#[must_use]
pub fn sweep(totals: &Totals, scenarios: &[Named]) -> String {
    let mut text = String::new();
    for Named { name, scenario, .. } in scenarios {
        let Some(swarm) = totals.swarms.get(name).filter(|swarm| !swarm.on.is_empty()) else { continue };
        let on: Vec<String> = swarm.on.iter().map(|(kind, runs)| format!("{} {runs}", kind.name())).collect();
        let (met, possible) = (swarm.combinations.len(), Swarm::possible(scenario));
        let text_of = format!(
            "faults on in {name}, of {} seeds: {}; {met} of {possible} combinations",
            swarm.runs,
            on.join(", ")
        );
        wrap(&mut text, &text_of);
    }
    let reached: Vec<String> = totals
        .reached
        .iter()
        .map(|(point, count)| format!("{} {} ({})", point.name(), count.times, count.runs))
        .collect();
    wrap(&mut text, &format!("points reached, times (seeds): {}", reached.join(", ")));
    let never = names(&totals.never(scenarios));
    wrap(&mut text, &format!("points never reached: {}", if never.is_empty() { "none" } else { &never }));
    text
}

/// The same as tables (Markdown): each kind of fault that is on in these scenarios, and each point that they come to, with
/// how often it was.
#[must_use]
pub fn tables(totals: &Totals, scenarios: &[Named]) -> String {
    let mut faults: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
    for Named { name, scenario, .. } in scenarios {
        for kind in FaultKind::ALL {
            if scenario.rate(*kind).is_none_or(|rate| rate.on == Switch::Off) {
                continue;
            }
            let times = totals.faults.get(&(name.clone(), kind.name())).copied().unwrap_or(0);
            let sum = faults.entry(kind.name()).or_default();
            *sum = (sum.0 + times, sum.1 + u64::from(times > 0));
        }
    }
    let mut text = String::from("| fault | times struck | in scenarios |\n| --- | ---: | ---: |\n");
    for (name, (times, in_scenarios)) in faults {
        let _ = writeln!(text, "| `{name}` | {times} | {in_scenarios} |");
    }
    text.push_str("\n| point | what happens | times reached | in seeds |\n| --- | --- | ---: | ---: |\n");
    let groups = |group: &str| scenarios.iter().any(|named| named.group == group);
    for point in Reached::ALL.iter().filter(|point| matches!(point.by(), By::Group(group) if groups(group))) {
        let Count { times, runs } = totals.reached.get(point).copied().unwrap_or_default();
        let _ = writeln!(text, "| `{}` | {} | {times} | {runs} |", point.name(), point.about());
    }
    text.push('\n');
    text
}

/// The same as an object.
#[must_use]
pub fn sweep_json(totals: &Totals, scenarios: &[Named], wall: Duration) -> Value {
    let swarms = scenarios.iter().filter_map(|Named { name, scenario, .. }| {
        let swarm = totals.swarms.get(name)?;
        let on: Map<_, _> =
            swarm.on.iter().map(|(kind, runs)| (kind.name().to_owned(), json!(runs))).collect();
        let (met, possible) = (swarm.combinations.len(), Swarm::possible(scenario));
        let value = json!({ "seeds": swarm.runs, "on": on, "combinations": met, "possible": possible });
        Some((name.clone(), value))
    });
    let reached = totals.reached.iter().map(|(point, count)| {
        (point.name().to_owned(), json!({ "times": count.times, "seeds": count.runs }))
    });
    let list = |points: Vec<Reached>| points.into_iter().map(Reached::name).collect::<Vec<_>>();
    json!({
        "sweep": {
            "seeds": totals.runs,
            "failed": totals.failed,
            "ios": totals.ios,
            "kills": totals.kills,
            "replayed": totals.replayed,
            "steps": totals.steps,
            "virtual_ns": totals.virtual_ns,
            "faults": swarms.collect::<Map<_, _>>(),
            "reached": reached.collect::<Map<_, _>>(),
            "never": list(totals.never(scenarios)),
            "wall_ns": wall.as_nanos() as u64,
        }
    })
}

/// What is wrong with the points that a sweep reached: some are missing, or the list of them is wrong.
#[must_use]
pub fn points_amiss(totals: &Totals, scenarios: &[Named]) -> Vec<String> {
    let never = totals.never(scenarios).into_iter().map(|point| {
        let (name, about) = (point.name(), point.about());
        format!("the point `{name}` was never reached: {about}")
    });
    let unforeseen = totals.unforeseen.iter().map(|point| {
        format!("the point `{}` was reached, and the list says that no scenario does", point.name())
    });
    never.chain(unforeseen).collect()
}

fn names(points: &[Reached]) -> String {
    points.iter().map(|point| point.name()).collect::<Vec<_>>().join(", ")
}

/// Adds a paragraph in lines of a terminal's width, all but the first indented.
fn wrap(text: &mut String, paragraph: &str) {
    const WIDTH: usize = 118;
    let mut column = 0;
    for word in paragraph.split(' ') {
        if column > 0 && column + word.len() >= WIDTH {
            text.push_str("\n   ");
            column = 3;
        }
        if column > 0 {
            text.push(' ');
        }
        text.push_str(word);
        column += word.len() + 1;
    }
    text.push('\n');
}

/// What shrinking came to, as people read it: what there was and what is left, in numbers, and then all of what is left.
#[must_use]
pub fn shrunk(from: &Case, to: &Case, outcome: &Outcome) -> String {
    let mut text = format!("{:24}{:>8}{:>8}\n", "", "before", "after");
    let guests = |case: &Case| case.plan.guests.len() as u64;
    let most = |case: &Case, of: fn(&GuestPlan) -> u64| case.plan.guests.iter().map(of).max().unwrap_or(0);
    let rows: [(&str, u64, u64); 7] = [
        ("operations", from.operations, to.operations),
        ("faults", from.faults.len() as u64, to.faults.len() as u64),
        ("guests", guests(from), guests(to)),
        ("queues", most(from, |guest| guest.queues.into()), most(to, |guest| guest.queues.into())),
        (
            "depth",
            most(from, |guest| guest.workload.depth.into()),
            most(to, |guest| guest.workload.depth.into()),
        ),
        ("cores", from.plan.cores.into(), to.plan.cores.into()),
        ("steps", from.steps, to.steps),
    ];
    for (name, before, after) in rows {
        let _ = writeln!(text, "{name:24}{before:>8}{after:>8}");
    }
    text.push('\n');
    for (number, guest) in to.plan.guests.iter().enumerate() {
        for listed in guest.requests.iter().flatten() {
            let _ = writeln!(text, "guest {number}, {listed}");
        }
    }
    for Fault { kind, opportunity, parameter } in &to.faults {
        let _ = writeln!(text, "fault {}: opportunity {opportunity}, parameter {parameter}", kind.name());
    }
    if let Some(failure) = &outcome.failure {
        let _ = writeln!(text, "\nfails {}: {}", failure.checker, failure.what);
    }
    text
}

/// A line of a log as people read it.
#[must_use]
pub fn line(line: &Line) -> String {
    format!("{}  {}", time(line.at_ns), line.text)
}

/// A line of a log as an object.
#[must_use]
pub fn line_json(line: &Line) -> Value {
    json!({ "at_ns": line.at_ns, "event": line.text })
}

/// A moment, in milliseconds with the nanoseconds behind the point.
pub(crate) fn time(at_ns: u64) -> String {
    format!("{:>6}.{:06} ms", at_ns / 1_000_000, at_ns % 1_000_000)
}
