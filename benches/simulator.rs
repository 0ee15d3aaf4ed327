//! How fast worlds run, one at a time on one processor: seeds of `kill-anywhere` and what happens in them, seeds of
//! `ring-recovery`, requests of `ring-alone`, in which nothing disturbs, and simulated beside real time in `idle`.

use sim::catalog;
use sim::sweep::sweep;

use crate::table::{Bar, Table};
use crate::{Effort, median};

/// Seeds of one round.
const SEEDS: u64 = 100;
/// Seeds a second and core, at least.
const BAR: f64 = 50.0;
/// The same of the scenario of ring recovery.
const BAR_RECOVERY: f64 = 200.0;
/// Requests a second and core of a ring that nothing disturbs, at least.
const BAR_REQUESTS: f64 = 1e6;
/// Simulated time in parts of real time where little happens, at least.
const BAR_IDLE: f64 = 1000.0;

/// Prints seeds, steps and requests a second.
pub(crate) fn measure(effort: &Effort, table: &mut Table) {
    let [seeds, ios, steps, _] = rates(effort, "kill-anywhere", SEEDS);
    table.row("kill-anywhere, one core, seeds", seeds, "1/s", Bar::at_least(BAR, seeds));
    table.row("kill-anywhere, one core, requests", ios, "1/s", None);
    table.row("kill-anywhere, one core, steps", steps, "1/s", None);
    let [seeds, ..] = rates(effort, "ring-recovery", 2 * SEEDS);
    table.row("ring-recovery, one core, seeds", seeds, "1/s", Bar::at_least(BAR_RECOVERY, seeds));
    let [_, ios, ..] = rates(effort, "ring-alone", SEEDS / 4);
    table.row("ring-alone, one core, requests", ios, "1/s", Bar::at_least(BAR_REQUESTS, ios));
    let [.., idle] = rates(effort, "idle", SEEDS / 4);
    table.row("idle, simulated time in parts of real time", idle, "", Bar::at_least(BAR_IDLE, idle));
}

/// Runs, requests, steps and simulated seconds a second of real time: medians over the rounds, each of so many seeds.
fn rates(effort: &Effort, name: &str, seeds: u64) -> [f64; 4] {
    let scenarios = [catalog::find(name).unwrap_or_else(|refused| panic!("{}", refused.0))];
    let mut rounds: [Vec<f64>; 4] = Default::default();
    for round in 0..effort.rounds as u64 {
        let (totals, wall) = sweep(&scenarios, 1 + round * seeds, seeds, 1, |_| ());
        assert_eq!(totals.failed, 0, "a measurement is of a world that holds");
        let counts =
            [totals.runs as f64, totals.ios as f64, totals.steps as f64, totals.virtual_ns as f64 / 1e9];
        for (rates, count) in rounds.iter_mut().zip(counts) {
            rates.push(count / wall.as_secs_f64());
        }
    }
    rounds.map(median)
}
