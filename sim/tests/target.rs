//! The target answers calls in the simulated world, and its state outlives it.

use runtime::Instant;
use sim::faults::Faults;
use sim::process;
use sim::scheduler::{self, End};
use sim::world::{self, Model, Step, Temper};

/// Calls one method after another on a connection of its own, and ends the run after the last answer.
struct Operator {
    machine: u32,
    id: u32,
    calls: Vec<String>,
    end: Option<u32>,
    answer: Vec<u8>,
    waiting: bool,
    answers: std::rc::Rc<std::cell::RefCell<Vec<String>>>,
}

impl Model for Operator {
    fn step(&mut self) -> Step {
        world::with(|world| {
            let pause = Step::Idle { until: Some(Instant(world.now().0 + 50_000)) };
            let Some(end) = self.end else {
                self.end = world.connect(self.machine, process::RPC_SOCKET).ok();
                if let Some(end) = self.end {
                    world.wait_for_end(end, self.id);
                }
                return pause;
            };
            if !self.waiting {
                if self.calls.is_empty() {
                    world.finish();
                    return Step::Done;
                }
                let call = self.calls.remove(0);
                let mut bytes = call.as_bytes();
                while !bytes.is_empty() {
                    match world.send_on(end, bytes, Vec::new()) {
                        Ok(len) => bytes = &bytes[len..],
                        Err(error) => panic!("{error}"),
                    }
                }
                self.waiting = true;
            }
            let mut bytes = [0; 4096];
            match world.receive_on(end, &mut bytes, &mut Vec::new()) {
                Ok(0) => panic!("closed"),
                Ok(len) => self.answer.extend_from_slice(&bytes[..len]),
                Err(_) => return Step::Idle { until: None },
            }
            if serde_json::from_slice::<serde_json::Value>(&self.answer).is_ok() {
                self.answers.borrow_mut().push(String::from_utf8(std::mem::take(&mut self.answer)).unwrap());
                self.waiting = false;
            }
            Step::Worked
        })
    }
}

fn converse(machine: u32, calls: &[&str]) -> Vec<String> {
    let answers = std::rc::Rc::default();
    world::with(|world| {
        let operator = Operator {
            machine,
            id: 0,
            calls: calls.iter().map(|call| (*call).to_owned()).collect(),
            end: None,
            answer: Vec::new(),
            waiting: false,
            answers: std::rc::Rc::clone(&answers),
        };
        world.add_model(Box::new(operator), false);
    });
    let end = scheduler::run();
    assert_eq!(end, End::Finished, "{:?}", world::with(|world| world.failure().cloned()));
    answers.take()
}

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
