//! The durable state under everything that can happen to it: an operator changes the target while it is killed at drawn
//! points, while the machine loses its power, and while the state directory finds no space. After each restart what was
//! acknowledged is in force, what was refused is not, and what was neither is there whole or not at all.

use runtime::Instant;
use serde_json::{Value, json};
use sim::faults::{FaultKind, Faults, Rate};
use sim::rng::Rng;
use sim::scheduler::{self, End};
use sim::world::{self, Model, Step, Temper};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use tests::operator::{Answer, Operator};

/// Draws of the operator: a stream that nobody else has.
const STREAM: u64 = 9_000;
/// Changes that are acknowledged or refused before the faults end.
const CHANGES: usize = 40;
/// Deaths before the faults end.
const DEATHS: usize = 6;
/// How long the operator waits before it looks again, in nanoseconds.
const PAUSE_NS: u64 = 20_000;

/// What the target shall be: the calls that make it, by subsystem and name.
type Shape = BTreeMap<(&'static str, String), Value>;

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tally {
    acknowledged: usize,
    refused_for_space: usize,
    kills: usize,
    power_losses: usize,
    /// Changes that were under way at a death and were found done, and found not done.
    found_done: usize,
    found_not_done: usize,
}

enum Stage {
    /// Connects, and then asks what there is.
    Connect,
    /// Was told what bdevs there are, if any.
    Look(Option<Value>),
    /// Changes something.
    Change { before: Shape, after: Shape },
    /// Waits for the orderly end.
    End,
}

struct Changer {
    machine: u32,
    process: u32,
    rng: Rng,
    operator: Operator,
    stage: Stage,
    /// What must be in force: one of these. More than one after a death in the middle of a change.
    allowed: Vec<Shape>,
    next_name: u32,
    /// The next step takes the machine's power.
    power_loss_due: bool,
    tally: Rc<RefCell<Tally>>,
}

impl Changer {
    fn deaths(&self) -> usize {
        let tally = self.tally.borrow();
        tally.kills + tally.power_losses
    }

    fn healing(&self) -> bool {
        let tally = self.tally.borrow();
        tally.acknowledged + tally.refused_for_space >= CHANGES && self.deaths() >= DEATHS
    }

    /// Starts the target and plans its death.
    fn start(&mut self) {
        let healing = self.healing();
        world::with(|world| {
            self.process = world.spawn(self.machine, &sim::process::target(), 2, None);
            if healing {
                world.faults().heal();
            } else {
                world.kill_after(self.process, self.rng.between(20, 300));
            }
        });
    }

    /// A change that is possible after `shape`: the method, its parameters, and what there is then. The identity of a new
    /// bdev is given, so that what there is can be foretold.
    fn draw_change(&mut self, shape: &Shape) -> (&'static str, Value, Shape) {
        let mut after = shape.clone();
        let of = |subsystem| {
            shape.keys().filter(move |(part, _)| *part == subsystem).map(|(_, name)| name.clone())
        };
        let (bdevs, controllers) = (of("bdev").collect::<Vec<_>>(), of("vhost_blk").collect::<Vec<_>>());
        let used = |bdev: &String| {
            controllers.iter().any(|name| shape[&("vhost_blk", name.clone())]["params"]["dev_name"] == **bdev)
        };
        let free = bdevs.iter().filter(|bdev| !used(bdev)).cloned().collect::<Vec<_>>();
        let pick = |rng: &mut Rng, names: &[String]| names[rng.below(names.len() as u64) as usize].clone();
        self.next_name += 1;
        match self.rng.below(6) {
            0 if !free.is_empty() => {
                let name = pick(&mut self.rng, &free);
                let call = after.remove(&("bdev", name.clone())).expect("it is there");
                let method = match call["method"].as_str() {
                    Some("bdev_null_create") => "bdev_null_delete",
                    Some("bdev_malloc_create") => "bdev_malloc_delete",
                    _ => "bdev_uring_delete",
                };
                (method, json!({ "name": name }), after)
            }
            1 if !controllers.is_empty() => {
                let name = pick(&mut self.rng, &controllers);
                after.remove(&("vhost_blk", name.clone()));
                ("vhost_delete_controller", json!({ "ctrlr": name }), after)
            }
            2 | 3 if !free.is_empty() => {
                let (name, bdev) = (format!("vhost.{}", self.next_name), pick(&mut self.rng, &free));
                let params = json!({ "ctrlr": name, "dev_name": bdev, "readonly": false });
                let mut saved = params.clone();
                saved["transport"] = json!("vhost_user_blk");
                let call = json!({ "method": "vhost_create_blk_controller", "params": saved });
                after.insert(("vhost_blk", name), call);
                ("vhost_create_blk_controller", params, after)
            }
            4 if bdevs.len() < 12 && !bdevs.iter().any(|name| name == "file") => {
                let params = json!({ "name": "file", "filename": "/disk", "uuid": self.draw_uuid() });
                after.insert(
                    ("bdev", "file".into()),
                    json!({ "method": "bdev_uring_create", "params": params }),
                );
                ("bdev_uring_create", params, after)
            }
            _ => {
                let method = if self.rng.chance(1, 2) { "bdev_null_create" } else { "bdev_malloc_create" };
                let name = format!("disk{}", self.next_name);
                let params = json!({
                    "name": name, "uuid": self.draw_uuid(), "num_blocks": 64, "block_size": 512,
                    "physical_block_size": 4096,
                });
                after.insert(("bdev", name), json!({ "method": method, "params": params }));
                (method, params, after)
            }
        }
    }

    fn draw_uuid(&mut self) -> String {
        stack::block::uuid::format(&stack::block::uuid::random([self.rng.word(), self.rng.word()]))
    }

    /// The target is dead or dying: starts it again, once it is gone.
    fn lost(&mut self) -> Step {
        let alive = world::with(|world| world.is_alive(self.process));
        if !alive {
            if !self.power_loss_due {
                self.tally.borrow_mut().kills += 1;
            }
            self.power_loss_due = false;
            self.start();
        }
        self.stage = Stage::Connect;
        self.pause()
    }

    fn pause(&self) -> Step {
        Step::Idle { until: Some(Instant(world::with(|world| world.now().0) + PAUSE_NS)) }
    }

    fn shape_of(bdevs: &Value, controllers: &Value) -> Shape {
        let mut shape = Shape::new();
        for (part, key, calls) in [("bdev", "name", bdevs), ("vhost_blk", "ctrlr", controllers)] {
            for call in calls.as_array().expect("a list of calls") {
                let name = call["params"][key].as_str().expect("a name").to_owned();
                assert!(shape.insert((part, name), call.clone()).is_none(), "twice: {call}");
            }
        }
        shape
    }

    /// The target tells what there is: it must be one of what is allowed.
    fn judge(&mut self, found: Shape) {
        let Some(which) = self.allowed.iter().position(|allowed| *allowed == found) else {
            let allowed = self.allowed.clone();
            world::with(|world| {
                world.fail("state", format!("found {found:#?}\nallowed {allowed:#?}"));
            });
            return;
        };
        if self.allowed.len() > 1 {
            let mut tally = self.tally.borrow_mut();
            if which == 0 { tally.found_not_done += 1 } else { tally.found_done += 1 }
        }
        self.allowed = vec![found];
    }

    fn answered(&mut self, answer: Answer) -> Step {
        match (std::mem::replace(&mut self.stage, Stage::Connect), answer) {
            (Stage::Change { before, after }, Answer::Lost) => {
                self.allowed = vec![before, after];
                return self.lost();
            }
            (_, Answer::Lost) => return self.lost(),
            (Stage::Look(None), Answer::Result(bdevs)) => {
                self.operator.call("framework_get_config", &json!({ "name": "vhost_blk" }));
                self.stage = Stage::Look(Some(bdevs));
            }
            (Stage::Look(Some(bdevs)), Answer::Result(controllers)) => {
                self.judge(Self::shape_of(&bdevs, &controllers));
                self.go_on();
            }
            (Stage::Change { after, .. }, Answer::Result(_)) => {
                self.tally.borrow_mut().acknowledged += 1;
                self.allowed = vec![after];
                self.look_or_go_on();
            }
            (Stage::Change { before, .. }, Answer::Refused(code, message)) => {
                // The faults here are of the state directory and of the machine's memory: ENOSPC and ENOMEM; and a malloc
                // bdev whose memory could not be had again after a power loss is waited for.
                assert!(matches!(code, -28 | -12) || message.contains("not there yet"), "{code}: {message}");
                self.tally.borrow_mut().refused_for_space += 1;
                self.allowed = vec![before];
                self.look_or_go_on();
            }
            (_, answer) => panic!("{answer:?}"),
        }
        Step::Worked
    }

    /// After a change: sometimes looks whether it is in force.
    fn look_or_go_on(&mut self) {
        if self.rng.chance(1, 4) {
            self.operator.call("framework_get_config", &json!({ "name": "bdev" }));
            self.stage = Stage::Look(None);
        } else {
            self.go_on();
        }
    }

    fn go_on(&mut self) {
        if self.healing() && world::with(|world| world.faults().is_healed()) {
            world::with(|world| world.request_stop(self.process));
            self.stage = Stage::End;
            return;
        }
        let before = self.allowed[0].clone();
        let (method, params, after) = self.draw_change(&before);
        self.operator.call(method, &params);
        self.stage = Stage::Change { before, after };
    }
}

impl Model for Changer {
    fn step(&mut self) -> Step {
        if let Stage::End = self.stage {
            if world::with(|world| world.has_exited(self.process)) {
                world::with(|world| world.finish());
                return Step::Done;
            }
            return self.pause();
        }
        if !self.healing() && self.rng.chance(1, 3_000) && world::with(|world| world.is_alive(self.process)) {
            self.power_loss_due = true;
            self.tally.borrow_mut().power_losses += 1;
            scheduler::power_loss(self.machine);
        }
        if let Stage::Connect = self.stage {
            if !world::with(|world| self.operator.connect(world)) {
                return self.lost();
            }
            self.operator.call("framework_get_config", &json!({ "name": "bdev" }));
            self.stage = Stage::Look(None);
        }
        match world::with(|world| self.operator.poll(world)) {
            Some(answer) => self.answered(answer),
            None => self.pause(),
        }
    }
}

fn run(seed: u64) -> Tally {
    let rates = |kind| match kind {
        FaultKind::NoSpace => Rate { of_65536: 1500, most: 20 },
        _ => Rate::default(),
    };
    let steps_max = 20_000_000;
    world::create(seed, Temper { steps_max, ..Temper::default() }, Faults::drawn(seed, rates));
    let tally = Rc::new(RefCell::new(Tally::default()));
    let machine = world::with(|world| {
        let machine = world.machine();
        world.create_disk(machine, "/disk", 64 << 10, 512, 512);
        machine
    });
    let mut changer = Changer {
        machine,
        process: 0,
        rng: Rng::new(seed, STREAM),
        operator: Operator::new(machine, 0),
        stage: Stage::Connect,
        allowed: vec![Shape::new()],
        next_name: 0,
        power_loss_due: false,
        tally: Rc::clone(&tally),
    };
    changer.start();
    world::with(|world| world.add_model(Box::new(changer), false));
    let end = scheduler::run();
    let failure = world::with(|world| world.failure().cloned());
    world::clear();
    assert_eq!(end, End::Finished, "seed {seed}: {failure:?}");
    tally.take()
}

#[test]
fn what_was_acknowledged_is_in_force_after_every_death() {
    let mut total = Tally::default();
    for seed in 0..60 {
        let tally = run(seed);
        total.acknowledged += tally.acknowledged;
        total.refused_for_space += tally.refused_for_space;
        total.kills += tally.kills;
        total.power_losses += tally.power_losses;
        total.found_done += tally.found_done;
        total.found_not_done += tally.found_not_done;
    }
    println!("{total:?}");
    let Tally { acknowledged, refused_for_space, kills, power_losses, found_done, found_not_done } = total;
    // What was to happen did happen; a check that never met its case proves nothing.
    for met in [acknowledged, refused_for_space, kills, power_losses, found_done, found_not_done] {
        assert!(met >= 20, "{total:?}");
    }
}
