//! The target answers calls in the simulated world, and its state outlives it.

mod common;

use common::calls::converse;
use sim::faults::Faults;
use sim::process;
use sim::world::{self, Temper};

fn run(seed: u64) -> (u128, Vec<String>) {
    world::create(seed, Temper::default(), Faults::none(seed));
    let machine = world::with(|world| {
        let machine = world.machine();
        world.spawn(machine, &process::target(), 2, None);
        machine
    });
    let answers = converse(
        machine,
        &[
            r#"{"jsonrpc":"2.0","id":1,"method":"bdev_malloc_create","params":{"num_blocks":2048,"block_size":512,"name":"Malloc0"}}"#,
            r#"{"jsonrpc":"2.0","id":2,"method":"vhost_create_blk_controller","params":{"ctrlr":"disk.0","dev_name":"Malloc0"}}"#,
            r#"{"jsonrpc":"2.0","id":3,"method":"vhost_get_controllers"}"#,
        ],
    );
    let trace = world::with(|world| world.trace().finish());
    world::clear();
    (trace, answers)
}

#[test]
fn the_target_answers_and_a_seed_is_a_run() {
    let (trace, answers) = run(1);
    println!("{answers:#?}");
    assert_eq!(answers.len(), 3);
    assert!(answers[2].contains("disk.0"));
    assert_eq!(run(1).0, trace);
    assert_ne!(run(2).0, trace);
}

/// Set in the environment of a process that prints the trace of this seed and does nothing else.
const SEED: &str = "REPRISE_TEST_SEED";

#[test]
fn a_seed_is_the_same_run_in_every_process() {
    if let Ok(seed) = std::env::var(SEED) {
        println!("trace {:032x}", run(seed.parse().expect("a number")).0);
        return;
    }
    for seed in [1, 2, 3] {
        let program = std::env::current_exe().expect("this test's own binary");
        let output = std::process::Command::new(program)
            .args(["--exact", "a_seed_is_the_same_run_in_every_process", "--nocapture"])
            .env(SEED, seed.to_string())
            .output()
            .expect("it runs");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.contains(&format!("trace {:032x}", run(seed).0)), "{text}");
    }
}
