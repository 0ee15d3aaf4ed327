//! `reprise-sim`: runs seeded failure scenarios of the target, and replays those that failed.

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use sim::catalog::{self, Named};
use sim::diff::{self, Difference};
use sim::guided::{self, Guided};
use sim::import;
use sim::plan::Plan;
use sim::replay::Replay;
use sim::report::{self, Outcome};
use sim::run;
use sim::scenario::Refused;
use sim::shrink::{self, Case, Progress, Shrunk};
use sim::subject::Subject;
use sim::sweep::{Ended, sweep};
use sim::timeline;
use sim::world::Detail;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Everything held.
const HELD: u8 = 0;
/// A checker failed; a replay file was written.
const FAILED: u8 = 1;
/// The input was bad.
const BAD_INPUT: u8 = 2;

#[derive(Parser)]
#[command(
    name = "reprise-sim",
    version,
    about = "Runs the Reprise target in a deterministic world drawn from a seed."
)]
#[command(
    after_help = "Exit codes: 0 all held, 1 a checker failed (a replay file was written), 2 the input was bad."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the scenarios that are built in.
    List {
        /// One JSON object a scenario.
        #[arg(long)]
        json: bool,
    },
    /// Run one seed of a scenario and print a verdict.
    Run {
        /// A listed name, or the path of a scenario file.
        scenario: String,
        /// The seed: the same seed is the same run. A neighbour of 7 is 7.schedule3.faults9.
        #[arg(long)]
        seed: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
        /// Print every event, message and request.
        #[arg(long)]
        log: bool,
    },
    /// Run many seeds of the scenarios named, or of all.
    Sweep {
        /// Listed names, groups of them, or paths; none: all that are listed.
        scenarios: Vec<String>,
        /// Seeds of each scenario.
        #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        /// The first seed.
        #[arg(long, value_name = "N", default_value_t = 1)]
        from: u64,
        /// Worlds at once; one a processor unless said.
        #[arg(long, value_name = "N")]
        jobs: Option<usize>,
        /// Fail also when a point of the stack that these scenarios come to was never reached: docs/points.md.
        #[arg(long)]
        all_points: bool,
        /// Print tables of how often each fault struck and each point was reached.
        #[arg(long, conflicts_with = "json")]
        tables: bool,
        /// Prefer neighbours of runs that came to something new: half of the runs are those.
        #[arg(long)]
        guided: bool,
        /// Print one JSON object a run, and one of their sum.
        #[arg(long)]
        json: bool,
    },
    /// Print what a target's flight recorders kept as the log of a run.
    Import {
        /// recorder-CORE of a state directory, or recorder-CORE.previous of the life before; one for each core.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// One JSON object an event.
        #[arg(long)]
        json: bool,
    },
    /// Show the first step at which two runs part: 0 they are the same, 1 they differ.
    Diff {
        /// SCENARIO:SEED, or the path of a replay file.
        a: String,
        /// The other, likewise.
        b: String,
        /// Lines and records shown before and after.
        #[arg(long, value_name = "N", default_value_t = 20)]
        context: usize,
    },
    /// Make a failure small: fewer operations, faults, queues, guests; the same checker fails.
    Shrink {
        /// The file that a failed run wrote.
        file: PathBuf,
        /// Where to write the small one.
        #[arg(short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Draw a run as a page that a browser opens, or as trace events.
    Timeline {
        /// A replay file; or, with --seed, a listed name or the path of a scenario file.
        run: String,
        /// The seed of a scenario.
        #[arg(long)]
        seed: Option<String>,
        /// Where to write it.
        #[arg(short, value_name = "FILE")]
        output: PathBuf,
        /// A page of its own, or Chrome trace events for Perfetto and the like.
        #[arg(long, value_enum, default_value_t = Format::Page)]
        format: Format,
    },
    /// Run what a replay file holds.
    Replay {
        /// The file that a failed run wrote.
        file: PathBuf,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
        /// Print every event, message and request.
        #[arg(long)]
        log: bool,
    },
}

/// What a timeline is written as.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// One HTML page.
    Page,
    /// Chrome trace events, as JSON.
    Perfetto,
}

fn main() -> ExitCode {
    let code = match Cli::parse().command {
        Command::List { json } => list(json),
        Command::Run { scenario, seed, json, log } => run_one(&scenario, &seed, json, log),
        Command::Sweep { scenarios, seeds, from, jobs, all_points, tables, guided, json } => {
            run_many(&scenarios, seeds, from, jobs, Manner { all_points, tables, guided, json })
        }
        Command::Diff { a, b, context } => diff(&a, &b, context),
        Command::Import { files, json } => import_recordings(&files, json),
        Command::Shrink { file, output } => shrink(&file, &output),
        Command::Timeline { run, seed, output, format } => timeline(&run, seed.as_deref(), &output, format),
        Command::Replay { file, json, log } => replay(&file, json, log),
    };
    ExitCode::from(code.unwrap_or_else(|Refused(why)| {
        eprintln!("reprise-sim: {why}");
        BAD_INPUT
    }))
}

/// Prints; a reader that has gone away (`| head`) is no error, a file that takes no more ends the process.
fn print(text: &str) {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("reprise-sim: the output cannot be written: {error}");
            std::process::exit(BAD_INPUT.into());
        }
        _ => {}
    }
}

fn import_recordings(files: &[PathBuf], json: bool) -> Result<u8, Refused> {
    let read = |file: &PathBuf| {
        let name = file.display().to_string();
        match std::fs::read(file) {
            Ok(bytes) => Ok((name, bytes)),
            Err(error) => Err(Refused(format!("{name}: cannot be read: {error}"))),
        }
    };
    let recordings = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    for line in import::log_of(&recordings)? {
        print(&if json {
            format!("{}\n", report::line_json(&line))
        } else {
            format!("{}\n", report::line(&line))
        });
    }
    Ok(HELD)
}

fn list(json: bool) -> Result<u8, Refused> {
    for Named { name, group, scenario, .. } in catalog::all()? {
        if json {
            let entry = serde_json::json!({
                "scenario": name, "group": group, "title": scenario.title, "about": scenario.about,
            });
            print(&format!("{entry}\n"));
        } else {
            print(&format!("{group:6} {name:28} {}\n", scenario.title));
        }
    }
    Ok(HELD)
}

fn detail(json: bool, log: bool) -> Detail {
    match (json, log) {
        (_, true) => Detail::Everything,
        (true, false) => Detail::Nothing,
        (false, false) => Detail::Headlines,
    }
}

/// Runs with the time that it took.
#[expect(clippy::disallowed_methods, reason = "times a run; no clock reaches the world")]
fn timed<T>(act: impl FnOnce() -> T) -> (T, u64) {
    let begun = std::time::Instant::now();
    let outcome = act();
    (outcome, begun.elapsed().as_nanos() as u64)
}

/// Runs, and prints what it came to; the exit code, too.
fn run_subject(subject: &Subject, json: bool, log: bool) -> (u8, Outcome) {
    let Subject { scenario, title, plan, script } = subject;
    let (outcome, wall_ns) = timed(|| run::run(plan, script.as_deref(), detail(json, log)));
    if json {
        if log {
            for line in &outcome.log {
                print(&format!("{}\n", report::line_json(line)));
            }
        }
        print(&format!("{}\n", outcome.to_json(scenario, plan, wall_ns)));
    } else {
        print(&outcome.verdict(scenario, title, &plan.seed_text(), wall_ns));
    }
    (if outcome.passed() { HELD } else { FAILED }, outcome)
}

fn run_one(scenario: &str, seed: &str, json: bool, log: bool) -> Result<u8, Refused> {
    let subject = Subject::seed(scenario, seed)?;
    let (code, outcome) = run_subject(&subject, json, log);
    if !outcome.passed() {
        keep(&subject.scenario, &subject.title, &subject.plan, &outcome)?;
    }
    Ok(code)
}

/// Writes the replay file of a failed run beside the caller, and says how to use it. A run that only did too little has
/// none: of a list of faults nothing is asked.
fn keep(name: &str, title: &str, plan: &Plan, outcome: &Outcome) -> Result<(), Refused> {
    if outcome.did_too_little() {
        eprintln!(
            "no replay file: nothing is wrong but that seed {} of {name} did too little",
            plan.seed_text()
        );
        return Ok(());
    }
    let file = format!("{name}-{}.replay.toml", plan.seed_text());
    let replay = Replay::of(name, title, plan, outcome).write();
    write(Path::new(&file), replay)?;
    eprintln!("replay file: {file}\nreplay with: reprise-sim replay {file}");
    Ok(())
}

/// How a sweep is made and told.
#[derive(Clone, Copy)]
struct Manner {
    all_points: bool,
    tables: bool,
    guided: bool,
    json: bool,
}

fn run_many(
    names: &[String],
    seeds: u64,
    from: u64,
    jobs: Option<usize>,
    manner: Manner,
) -> Result<u8, Refused> {
    let Manner { all_points, tables, guided, json } = manner;
    let scenarios: Vec<Named> = if names.is_empty() {
        catalog::all()?
    } else {
        names.iter().map(|name| catalog::find_all(name)).collect::<Result<Vec<_>, _>>()?.concat()
    };
    if from.checked_add(seeds).is_none() {
        return Err(Refused(format!("--from {from} --seeds {seeds}: the last seed is beyond 2^64")));
    }
    let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let bar = ProgressBar::new(seeds * scenarios.len() as u64);
    bar.set_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {elapsed} {msg}")
            .expect("a good template"),
    );
    let mut kept = Ok(());
    let each = |ended: &Ended<'_>| {
        let Ended { named, plan, outcome, wall } = ended;
        if json {
            print(&format!("{}\n", outcome.to_json(&named.name, plan, wall.as_nanos() as u64)));
        }
        if let Some(failure) = &outcome.failure {
            bar.suspend(|| {
                eprintln!("{} seed {}: {}: {}", named.name, plan.seed_text(), failure.checker, failure.what);
                if kept.is_ok() {
                    kept = keep(&named.name, &named.scenario.title, plan, outcome);
                }
            });
        }
        bar.inc(1);
    };
    let (totals, wall) = if guided {
        let Guided { totals, wall, features, news: (new, neighbours) } =
            guided::search(&scenarios, from, seeds, jobs, each);
        if !json {
            print(&format!(
                "guided: {features} different things done; {new} runs did something new, {neighbours} of them neighbours\n"
            ));
        }
        (totals, wall)
    } else {
        sweep(&scenarios, from, seeds, jobs, each)
    };
    bar.finish_and_clear();
    kept?;
    if json {
        print(&format!("{}\n", report::sweep_json(&totals, &scenarios, wall)));
    } else if tables {
        print(&report::tables(&totals, &scenarios));
    } else {
        print(&report::sweep(&totals, &scenarios));
    }
    let mut idle = totals.idle(&scenarios);
    if all_points {
        idle.extend(report::points_amiss(&totals, &scenarios));
    }
    for what in &idle {
        eprintln!("the sweep tested too little: {what}");
    }
    let verdict = match (totals.failed, idle.is_empty()) {
        (0, true) => "verdict: all held".to_owned(),
        (0, false) => "verdict: FAIL, something was never tested".to_owned(),
        (failed, _) => format!("verdict: FAIL, {failed} seeds failed"),
    };
    let line = totals.line(wall, &verdict);
    if json {
        eprintln!("{line}");
    } else {
        print(&format!("{line}\n"));
    }
    Ok(if totals.failed == 0 && idle.is_empty() { HELD } else { FAILED })
}

fn diff(a: &str, b: &str, context: usize) -> Result<u8, Refused> {
    let (a, b) = (Subject::parse(a)?, Subject::parse(b)?);
    let (difference, outcomes) = diff::diff(&a, &b, context);
    for (name, subject, outcome) in [("A", &a, &outcomes[0]), ("B", &b, &outcomes[1])] {
        let Subject { scenario, plan, script, .. } = subject;
        let faults =
            script.as_ref().map_or("faults as drawn".into(), |script| format!("{} faults", script.len()));
        let verdict = outcome
            .failure
            .as_ref()
            .map_or("all held".into(), |failure| format!("fails {}", failure.checker));
        print(&format!("{name}: {scenario}, seed {}, {faults}: {verdict}\n", plan.seed_text()));
    }
    Ok(match difference {
        Difference::None(shared) => {
            print(&format!("the runs are the same: {shared} lines and records\n"));
            HELD
        }
        Difference::Parts(parting) => {
            print(&parting.text());
            FAILED
        }
    })
}

fn timeline(run: &str, seed: Option<&str>, output: &Path, format: Format) -> Result<u8, Refused> {
    let subject = match seed {
        Some(seed) => Subject::seed(run, seed)?,
        None if catalog::all()?.iter().any(|named| named.name == run) => {
            return Err(Refused(format!("{run} is a scenario: which --seed of it?")));
        }
        None => Subject::replay(Path::new(run))?.0,
    };
    let (timeline, outcome) = timeline::of(&subject);
    let text = match format {
        Format::Page => timeline::page::page(&timeline),
        Format::Perfetto => timeline::perfetto::document(&timeline).to_string(),
    };
    write(output, text)?;
    print(&match &outcome.failure {
        None => "all held\n".into(),
        Some(failure) => format!("fails {}: {}\n", failure.checker, failure.what),
    });
    print(&format!("{} operations, {} bars: {}\n", outcome.requests, timeline.bars.len(), output.display()));
    Ok(HELD)
}

/// Writes a file that was asked for.
fn write(file: &Path, text: String) -> Result<(), Refused> {
    std::fs::write(file, text)
        .map_err(|error| Refused(format!("{}: cannot be written: {error}", file.display())))
}

fn shrink(file: &Path, output: &Path) -> Result<u8, Refused> {
    let (subject, replay) = Subject::replay(file)?;
    let original = Case::new(subject.plan, replay.faults);
    let bar = ProgressBar::new(1);
    bar.set_style(ProgressStyle::with_template("{bar:40} {elapsed} {msg}").expect("a good template"));
    // A failure may be a panic of the target; it is shown once, and not for each of a thousand tries.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let (shrunk, wall_ns) = timed(|| {
        shrink::shrink(&original, |progress: Progress| {
            bar.set_length(progress.steps_max);
            bar.set_position(progress.steps);
            let Progress { tried, operations, faults, .. } = progress;
            bar.set_message(format!("{tried} worlds tried, {operations} operations, {faults} faults"));
        })
    });
    std::panic::set_hook(hook);
    bar.finish_and_clear();
    let Some(Shrunk { from, to, tried }) = shrunk else {
        return Err(Refused(format!("{}: nothing fails, so there is nothing to shrink", file.display())));
    };
    let outcome = to.run();
    let text = Replay::of(&replay.scenario, &replay.title, &to.plan, &outcome).write();
    write(output, text)?;
    print(&report::shrunk(&from, &to, &outcome));
    let seconds = wall_ns as f64 / 1e9;
    print(&format!(
        "{tried} worlds tried in {seconds:.1} s; replay with: reprise-sim replay {}\n",
        output.display()
    ));
    Ok(HELD)
}

fn replay(file: &Path, json: bool, log: bool) -> Result<u8, Refused> {
    let (subject, replay) = Subject::replay(file)?;
    let (code, outcome) = run_subject(&subject, json, log);
    if format!("{:032x}", outcome.trace) == replay.trace {
        eprintln!("the trace is that of the recorded run");
    } else if !replay.trace.is_empty() {
        eprintln!("the trace differs from the recorded run's: the code or the file has changed since");
    }
    Ok(code)
}
