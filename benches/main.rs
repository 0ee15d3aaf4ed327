//! Everything that is measured, in one command and one table.
//!
//!     cargo bench -p tests [-- [stack] [nvme] [peer] [neighbours] [restart] [simulator] [--seconds S] [--rounds N]]
//!
//! Without a name all six parts run. Every figure is a median of rounds, and what is compared is measured in turn, so that
//! what drifts drifts for all. A program that is not installed costs its own column only, and is named with the command that
//! installs it. The figures say something on a quiet machine with at least two processors.

mod neighbours;
mod nvme;
mod peer;
mod restart;
mod simulator;
mod stack;
mod table;

use std::time::Duration;

use table::Table;

/// Measures, and prints rows.
type Part = fn(&Effort, &mut Table);

/// The parts by name, in the order in which they run.
const PARTS: [(&str, Part); 6] = [
    ("stack", stack::measure),
    ("nvme", nvme::measure),
    ("peer", peer::measure),
    ("neighbours", neighbours::measure),
    ("restart", restart::measure),
    ("simulator", simulator::measure),
];

/// How much is measured.
struct Effort {
    /// How long a round of the comparison with the peer runs.
    duration: Duration,
    /// Rounds of the comparison with the peer, and of what else has no number of its own.
    rounds: usize,
}

/// What the command line asks for; an error is a sentence.
fn parse(arguments: impl Iterator<Item = String>) -> Result<(Vec<String>, Effort), String> {
    let (mut names, mut effort) = (Vec::new(), Effort { duration: Duration::from_secs(1), rounds: 5 });
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a number"));
        match argument.as_str() {
            // Cargo says this to every benchmark.
            "--bench" => {}
            "--seconds" => {
                let seconds =
                    value()?.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                effort.duration =
                    seconds.filter(|seconds| !seconds.is_zero()).ok_or("--seconds: more than 0")?;
            }
            "--rounds" => {
                let rounds = value()?.parse().ok().filter(|rounds| *rounds > 0);
                effort.rounds = rounds.ok_or("--rounds: a whole number, at least 1")?;
            }
            name if PARTS.iter().any(|(part, _)| *part == name) => names.push(argument),
            other => {
                return Err(format!(
                    "{other}: one of stack, nvme, peer, neighbours, restart, simulator, --seconds S, --rounds N"
                ));
            }
        }
    }
    Ok((names, effort))
}

/// The middle one, or the upper of the two; there must be one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    if stack::run_counted() || nvme::run_counted() {
        return;
    }
    let (names, effort) = parse(std::env::args().skip(1)).unwrap_or_else(|why| {
        eprintln!("{why}");
        std::process::exit(2);
    });
    let mut table = Table::begin();
    for (name, measure) in PARTS {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            table.part(name);
            // On a thread of its own: a part pins its threads.
            std::thread::scope(|scope| {
                let part = scope.spawn(|| measure(&effort, &mut table));
                part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        }
    }
    table.end();
}
