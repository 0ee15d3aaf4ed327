//! A neighbour of a seed is a run that can be made again, and differs in nothing but what was drawn anew; a guided sweep is
//! the same for any number of threads.

use sim::catalog::{self, Named};
use sim::guided::search;
use sim::plan::Plan;
use sim::replay::Replay;
use sim::report::Outcome;
use sim::run::run;
use sim::world::Detail;

fn scenario(name: &str) -> Named {
    catalog::find(name).unwrap_or_else(|refused| panic!("{refused}"))
}

fn plan(seed: &str) -> Plan {
    Plan::draw_text(&scenario("kill-anywhere").scenario, seed).unwrap_or_else(|why| panic!("{why}"))
}

fn outcome(seed: &str) -> Outcome {
    run(&plan(seed), None, Detail::Nothing)
}

#[test]
fn a_seed_is_read_as_it_is_written() {
    for seed in ["7", "7.schedule3", "0.load1", "18446744073709551615.schedule1.device2.faults3.load999999"] {
        assert_eq!(plan(seed).seed_text(), seed);
    }
    for wrong in ["", "x", "7.", "7.plan3", "7.schedule", "7.schedulex", "7.schedule-1", "-7"] {
        let read = Plan::draw_text(&scenario("kill-anywhere").scenario, wrong);
        assert_eq!(read.is_ok(), wrong == "7.", "{wrong}: {read:?}");
    }
}

#[test]
fn each_subject_draws_anew_and_the_plan_stays() {
    // A seed whose guests have disks, that draw.
    let plain = outcome("3");
    let mut seen = vec![plain.trace];
    for subject in ["schedule", "device", "faults", "load"] {
        let seed = format!("3.{subject}5");
        assert_eq!(Plan { numbers: plan("3").numbers, ..plan(&seed) }, plan("3"), "{seed}");
        let neighbour = outcome(&seed);
        assert!(!seen.contains(&neighbour.trace), "{seed} is a run of its own");
        assert_eq!(outcome(&seed).trace, neighbour.trace, "{seed} twice");
        seen.push(neighbour.trace);
    }
    assert_eq!(outcome("3").trace, plain.trace, "nothing is left of a neighbour");
}

#[test]
fn faults_stay_where_only_other_subjects_are_drawn_anew() {
    // When each life dies is the faults' draw: it depends on nobody else's.
    let deaths = |seed: &str| {
        let outcome = outcome(seed);
        let kills = outcome.faults.into_iter().filter(|fault| fault.kind == sim::faults::FaultKind::Kill);
        kills.take(3).collect::<Vec<_>>()
    };
    assert_eq!(deaths("7.schedule5"), deaths("7"));
    assert_ne!(deaths("7.faults5"), deaths("7"));
}

#[test]
fn a_replay_file_of_a_neighbour_is_that_run() {
    let (plan, drawn) = (plan("9.schedule3.faults2"), outcome("9.schedule3.faults2"));
    let text = Replay::of("kill-anywhere", "t", &plan, &drawn).write();
    let replay = Replay::read("a.toml", &text).unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(replay.plan, plan);
    assert_eq!(run(&replay.plan, Some(&replay.faults), Detail::Nothing).trace, drawn.trace);
}

#[test]
fn a_search_is_the_same_for_any_number_of_threads_and_tries_neighbours() {
    let scenarios = [scenario("sleep"), scenario("hostile-guest")];
    let made = |jobs| {
        let mut runs = Vec::new();
        let guided = search(&scenarios, 1, 24, jobs, |ended| {
            runs.push((ended.named.name.clone(), ended.plan.seed_text(), ended.outcome.trace));
        });
        (runs, guided.features, guided.news)
    };
    let one = made(1);
    assert_eq!(one, made(3));
    assert_eq!(one.0.len(), 48);
    let neighbours = one.0.iter().filter(|(_, seed, _)| seed.contains('.')).count();
    assert!((8..40).contains(&neighbours), "{neighbours} of 48 are neighbours");
}
