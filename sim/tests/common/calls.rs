//! Calls of the target, made one after the other.

use runtime::Instant;
use sim::process;
use sim::scheduler::{self, End};
use sim::world::{self, Model, Step};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Calls one method after another on a connection of its own, and ends the run after the last answer.
struct Caller {
    machine: u32,
    /// Its number among the models.
    id: Rc<Cell<u32>>,
    calls: Vec<String>,
    end: Option<u32>,
    answer: Vec<u8>,
    waiting: bool,
    /// It has ended the run, and does not end the next one.
    through: bool,
    answers: Rc<RefCell<Vec<String>>>,
}

impl Model for Caller {
    fn step(&mut self) -> Step {
        world::with(|world| {
            let pause = Step::Idle { until: Some(Instant(world.now().0 + 50_000)) };
            let Some(end) = self.end else {
                self.end = world.connect(self.machine, process::RPC_SOCKET).ok();
                if let Some(end) = self.end {
                    world.wait_for_end(end, self.id.get());
                }
                return pause;
            };
            if !self.waiting {
                if self.calls.is_empty() {
                    if !std::mem::replace(&mut self.through, true) {
                        world.finish();
                    }
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

/// Makes these calls on a target of the machine, one after the other; their answers.
pub fn converse(machine: u32, calls: &[&str]) -> Vec<String> {
    let answers = Rc::default();
    let id = Rc::new(Cell::new(0));
    world::with(|world| {
        let caller = Caller {
            machine,
            id: Rc::clone(&id),
            calls: calls.iter().map(|call| (*call).to_owned()).collect(),
            end: None,
            answer: Vec::new(),
            waiting: false,
            through: false,
            answers: Rc::clone(&answers),
        };
        id.set(world.add_model(Box::new(caller), false));
    });
    let end = scheduler::run();
    assert_eq!(end, End::Finished, "{:?}", world::with(|world| world.failure().cloned()));
    answers.take()
}
