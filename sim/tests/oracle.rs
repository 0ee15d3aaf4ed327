//! The judge of `tests/mutants/cargo-mutants`: a quick sweep of every scenario, and nothing else. Whatever a mutant changes
//! is caught if one run fails.

use sim::catalog;
use sim::plan::Plan;
use sim::run::run;
use sim::world::Detail;

/// Seeds of each scenario, unless REPRISE_ORACLE_SEEDS says otherwise.
const SEEDS: u64 = 15;

#[test]
#[ignore = "a sweep, and so for a release build; run: cargo test --release -p sim --test oracle -- --ignored"]
fn a_quick_sweep_holds() {
    let seeds = std::env::var("REPRISE_ORACLE_SEEDS").map_or(SEEDS, |seeds| seeds.parse().expect("a number"));
    let scenarios = catalog::all().unwrap_or_else(|refused| panic!("{refused}"));
    for seed in 1..=seeds {
        for named in &scenarios {
            let outcome = run(&Plan::draw(&named.scenario, seed), None, Detail::Nothing);
            assert!(outcome.passed(), "{} seed {seed}: {:?}", named.name, outcome.failure);
        }
    }
}
