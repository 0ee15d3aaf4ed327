//! A simulated target that a test talks to, one call after the other, as it would to a real one.

use crate::operator::{Answer, Operator};
use runtime::Instant;
use serde_json::Value;
use sim::faults::Faults;
use sim::scheduler::{self, End};
use sim::world::{self, Model, Step, Temper};
use std::cell::RefCell;
use std::rc::Rc;

/// How long the console waits before it tries again to connect, in nanoseconds.
const PAUSE_NS: u64 = 20_000;
/// Steps of a whole test.
const STEPS_MAX: u64 = 50_000_000;

#[derive(Default)]
struct Slot {
    /// What is to be called.
    call: Option<(String, Value)>,
    answer: Option<Answer>,
    /// The connection belongs to a life of the target that is over.
    hang_up: bool,
    /// Until when the world runs on with nothing called.
    until: Option<Instant>,
}

/// The target, its machine and the operator's console. One at a time in a thread.
pub struct Console {
    /// The machine.
    pub machine: u32,
    /// The target's present life.
    pub process: u32,
    cores: u16,
    slot: Rc<RefCell<Slot>>,
}

struct Typist {
    operator: Operator,
    calling: bool,
    slot: Rc<RefCell<Slot>>,
}

impl Model for Typist {
    fn step(&mut self) -> Step {
        let now = world::with(|world| world.now());
        let pause = Step::Idle { until: Some(Instant(now.0 + PAUSE_NS)) };
        let mut slot = self.slot.borrow_mut();
        if let Some(until) = slot.until {
            if now < until {
                return Step::Idle { until: Some(until) };
            }
            slot.until = None;
            world::with(|world| world.finish());
            return Step::Idle { until: None };
        }
        if std::mem::take(&mut slot.hang_up) {
            world::with(|world| self.operator.hang_up(world));
        }
        if slot.call.is_some() && !world::with(|world| self.operator.connect(world)) {
            return pause;
        }
        if let Some((method, params)) = slot.call.take() {
            self.operator.call(&method, &params);
            self.calling = true;
        }
        if !self.calling {
            return Step::Idle { until: None };
        }
        match world::with(|world| self.operator.poll(world)) {
            None => pause,
            Some(answer) => {
                slot.answer = Some(answer);
                self.calling = false;
                world::with(|world| world.finish());
                Step::Idle { until: None }
            }
        }
    }
}

impl Console {
    /// A new world with a machine and nothing on it: see [`Console::start`].
    #[must_use]
    pub fn new(seed: u64, cores: u16) -> Self {
        world::create(seed, Temper { steps_max: STEPS_MAX, ..Temper::default() }, Faults::none(seed));
        let machine = world::with(|world| world.machine());
        let slot = Rc::new(RefCell::new(Slot::default()));
        let typist = Typist { operator: Operator::new(machine, 0), calling: false, slot: Rc::clone(&slot) };
        world::with(|world| world.add_model(Box::new(typist), false));
        Self { machine, process: 0, cores, slot }
    }

    /// Starts the target, again after it has ended or was killed.
    pub fn start(&mut self) {
        self.slot.borrow_mut().hang_up = true;
        self.process =
            world::with(|world| world.spawn(self.machine, &sim::process::target(), self.cores, None));
    }

    fn run(&self) {
        world::with(|world| {
            world.resume();
            world.wake_model(0);
        });
        let end = scheduler::run();
        assert_eq!(end, End::Finished, "{:?}", world::with(|world| world.failure().cloned()));
    }

    /// Calls a method, waiting until the target listens.
    pub fn try_call(&self, method: &str, params: Value) -> Answer {
        self.slot.borrow_mut().call = Some((method.into(), params));
        self.run();
        self.slot.borrow_mut().answer.take().expect("the run ends with the answer")
    }

    /// Calls a method that must be done.
    ///
    /// # Panics
    /// When it is not.
    pub fn call(&self, method: &str, params: Value) -> Value {
        match self.try_call(method, params.clone()) {
            Answer::Result(result) => result,
            other => panic!("{method} {params}: {other:?}"),
        }
    }

    /// Calls a method that must be refused with this code; the message.
    ///
    /// # Panics
    /// When it is not.
    pub fn refused(&self, method: &str, params: Value, code: i64) -> String {
        match self.try_call(method, params.clone()) {
            Answer::Refused(found, message) if found == code => message,
            other => panic!("{method} {params} should be refused with {code}: {other:?}"),
        }
    }

    /// Lets time pass.
    pub fn wait_ns(&self, nanoseconds: u64) {
        let until = Instant(world::with(|world| world.now().0) + nanoseconds);
        self.slot.borrow_mut().until = Some(until);
        self.run();
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        world::clear();
    }
}
