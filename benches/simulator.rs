//! How fast worlds run: seeds of `kill-anywhere`, one at a time on one processor, and what happens in them.

use sim::catalog;
use sim::sweep::sweep;

use crate::table::{Bar, Table};
use crate::{Effort, median};

/// Seeds of one round.
const SEEDS: u64 = 100;
/// Seeds a second and core, at least.
const BAR: f64 = 50.0;

/// Prints seeds, steps and requests a second.
pub(crate) fn measure(effort: &Effort, table: &mut Table) {
    let scenarios = [catalog::find("kill-anywhere").unwrap_or_else(|refused| panic!("{}", refused.0))];
    let (mut seeds, mut ios, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..effort.rounds as u64 {
        let (totals, wall) = sweep(&scenarios, 1 + round * SEEDS, SEEDS, 1, |_| ());
        assert_eq!(totals.failed, 0, "a measurement is of a world that holds");
        let rate = |count: u64| count as f64 / wall.as_secs_f64();
        seeds.push(rate(totals.runs));
        ios.push(rate(totals.ios));
        steps.push(rate(totals.steps));
    }
    let seeds = median(seeds);
    table.row("kill-anywhere, one core, seeds", seeds, "1/s", Bar::at_least(BAR, seeds));
    table.row("kill-anywhere, one core, requests", median(ios), "1/s", None);
    table.row("kill-anywhere, one core, steps", median(steps), "1/s", None);
}
