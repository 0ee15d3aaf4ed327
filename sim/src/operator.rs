//! The operator: configures the target by RPC, lists what there is after each of its lives began, and holds that against
//! what was acknowledged (`check::state`).
//!
//! One call at a time. A call that a death cut off is settled by the next listing and made again if it was not done.

use crate::check::state::{Change, Objects};
use crate::process::{RPC_SOCKET, VHOST_DIR};
use crate::record::Record;
use crate::rng::Rng;
use crate::world::{self, Model, Step};
use runtime::{ErrorKind, Instant};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Longest wait before the operator calls again where nobody answered.
const RETRY_NS_MAX: u64 = 300_000;
/// Longest pause between two calls that nobody waits for.
const PAUSE_NS_MAX: u64 = 400_000;
/// Number of the stream that the operator draws from.
const STREAM: u64 = 50_000;

/// A call that changes the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A malloc bdev of so many sectors.
    CreateMalloc(String, u64),
    /// A null bdev of so many sectors.
    CreateNull(String, u64),
    /// A bdev on a disk: name, path, through AIO (else io_uring).
    CreateFile(String, String, bool),
    /// A controller on a bdev: its name, the bdev's, whether packed rings are offered.
    CreateController(String, String, bool),
    /// Removes a null bdev.
    DeleteNull(String),
    /// Looks at the size of a bdev on a disk again: name, through AIO.
    Rescan(String, bool),
}

impl Call {
    fn request(&self, id: u64) -> Vec<u8> {
        let (method, params) = match self {
            Self::CreateMalloc(name, sectors) => (
                "bdev_malloc_create",
                json!({"name": name, "num_blocks": sectors, "block_size": 512, "uuid": uuid_of(name)}),
            ),
            Self::CreateNull(name, sectors) => (
                "bdev_null_create",
                json!({"name": name, "num_blocks": sectors, "block_size": 512, "uuid": uuid_of(name)}),
            ),
            Self::CreateFile(name, path, aio) => (
                if *aio { "bdev_aio_create" } else { "bdev_uring_create" },
                json!({"name": name, "filename": path, "block_size": 512, "uuid": uuid_of(name)}),
            ),
            Self::CreateController(name, bdev, false) => {
                ("vhost_create_blk_controller", json!({"ctrlr": name, "dev_name": bdev}))
            }
            Self::CreateController(name, bdev, true) => {
                ("vhost_create_blk_controller", json!({"ctrlr": name, "dev_name": bdev, "packed_ring": true}))
            }
            Self::DeleteNull(name) => ("bdev_null_delete", json!({"name": name})),
            Self::Rescan(name, aio) => {
                (if *aio { "bdev_aio_rescan" } else { "bdev_uring_rescan" }, json!({"name": name}))
            }
        };
        request(id, method, &params)
    }

    /// What it changes of what a listing shows.
    fn change(&self) -> Option<Change> {
        let bdev = |name: &str, value: String| {
            let value = format!("{value}, {}", uuid_of(name));
            Some(Change::Put { object: format!("bdev {name}"), value })
        };
        match self {
            Self::CreateMalloc(name, sectors) => bdev(name, format!("Malloc disk of {sectors}")),
            Self::CreateNull(name, sectors) => bdev(name, format!("Null disk of {sectors}")),
            Self::CreateFile(name, _, aio) => {
                bdev(name, if *aio { "AIO disk" } else { "URING bdev" }.to_owned())
            }
            Self::CreateController(name, on, packed) => {
                Some(Change::Put { object: format!("controller {name}"), value: controller(on, *packed) })
            }
            Self::DeleteNull(name) => Some(Change::Remove { object: format!("bdev {name}") }),
            Self::Rescan(..) => None,
        }
    }

    /// Whether the configuration already is as the call would make it.
    fn is_done(&self, objects: &Objects) -> bool {
        match self.change() {
            Some(Change::Put { object, value }) => objects.get(&object) == Some(&value),
            Some(Change::Remove { object }) => !objects.contains_key(&object),
            None => false,
        }
    }
}

/// What a listing shows of a controller.
fn controller(bdev: &str, packed: bool) -> String {
    format!("on {bdev}{}", if packed { ", packed rings" } else { "" })
}

fn request(id: u64, method: &str, params: &Value) -> Vec<u8> {
    let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
    request.to_string().into_bytes()
}

/// An identity made of a name, so that a listing shows whether it survived.
fn uuid_of(name: &str) -> String {
    let word = name.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        word >> 32,
        word >> 16 & 0xffff,
        word & 0xfff,
        word >> 52,
        word & 0xffff_ffff
    )
}

/// What an answer is awaited for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Awaited {
    Nothing,
    Bdevs,
    Controllers,
    Call(Call),
}

/// The operator.
pub struct Operator {
    machine: u32,
    model: u32,
    record: Rc<RefCell<Record>>,
    rng: Rng,
    end: Option<u32>,
    received: Vec<u8>,
    awaited: Awaited,
    /// What was listed so far in this life; `None` once a whole listing was judged.
    listing: Option<Objects>,
    calls: VecDeque<Call>,
    /// Changes that nobody waits for.
    spare: VecDeque<Call>,
    next_at: Instant,
    id: u64,
}

/// The operator as everybody holds it.
pub type SharedOperator = Rc<RefCell<Operator>>;

struct OperatorModel(SharedOperator);

impl Model for OperatorModel {
    fn step(&mut self) -> Step {
        self.0.borrow_mut().step()
    }
}

impl Operator {
    /// An operator in the world, on the target's machine. `spare`: changes made beside the load.
    pub fn build(machine: u32, seed: u64, spare: u64, record: &Rc<RefCell<Record>>) -> SharedOperator {
        let mut rng = Rng::new(seed, STREAM);
        let mut names = Vec::new();
        let spare = (0..spare)
            .map(|number| {
                if names.len() > 2 && rng.chance(1, 2) {
                    let at = rng.below(names.len() as u64) as usize;
                    return Call::DeleteNull(names.swap_remove(at));
                }
                names.push(format!("spare{number}"));
                Call::CreateNull(format!("spare{number}"), 2048 + 8 * number)
            })
            .collect();
        let shared = Rc::new(RefCell::new(Self {
            machine,
            model: 0,
            record: Rc::clone(record),
            rng,
            end: None,
            received: Vec::new(),
            awaited: Awaited::Nothing,
            listing: Some(Objects::new()),
            calls: VecDeque::new(),
            spare,
            next_at: Instant(0),
            id: 0,
        }));
        let model = world::with(|world| world.add_model(Box::new(OperatorModel(Rc::clone(&shared))), false));
        shared.borrow_mut().model = model;
        shared
    }

    /// Where a controller listens.
    #[must_use]
    pub fn socket(controller: &str) -> String {
        format!("{VHOST_DIR}/{controller}")
    }

    /// Makes a call, after those asked for before.
    pub fn ask(&mut self, call: Call) {
        self.calls.push_back(call);
        let model = self.model;
        world::with(|world| world.wake_model(model));
    }

    /// Whether every call was answered, and the life that there is was listed.
    pub fn is_settled(&self) -> bool {
        self.end.is_some()
            && self.calls.is_empty()
            && self.awaited == Awaited::Nothing
            && self.listing.is_none()
    }

    /// Drops the changes that nobody waits for.
    pub fn finish(&mut self) {
        self.spare.clear();
    }

    fn step(&mut self) -> Step {
        let now = world::with(|world| world.now());
        let Some(end) = self.end else {
            if now < self.next_at {
                return Step::Idle { until: Some(self.next_at) };
            }
            let connected = world::with(|world| {
                let end = world.connect(self.machine, RPC_SOCKET).ok()?;
                world.wait_for_end(end, self.model);
                Some(end)
            });
            let Some(end) = connected else { return self.later(now, RETRY_NS_MAX) };
            self.end = Some(end);
            self.listing = Some(Objects::new());
            return Step::Worked;
        };
        let mut bytes = [0; 2048];
        match world::with(|world| world.receive_on(end, &mut bytes, &mut Vec::new())) {
            Ok(0) => return self.lost(now, end),
            Ok(got) => {
                self.received.extend_from_slice(&bytes[..got]);
                if let Ok(answer) = serde_json::from_slice::<Value>(&self.received) {
                    self.received.clear();
                    self.answered(&answer);
                }
                return Step::Worked;
            }
            Err(error) if error.kind == ErrorKind::WouldBlock => {}
            Err(_) => return self.lost(now, end),
        }
        if self.awaited != Awaited::Nothing {
            return Step::Idle { until: None };
        }
        let Some((awaited, request)) = self.next(now) else {
            let until = (!self.spare.is_empty()).then_some(self.next_at);
            return Step::Idle { until };
        };
        self.awaited = awaited;
        let mut left = &request[..];
        while !left.is_empty() {
            // One request is far smaller than what a socket holds.
            match world::with(|world| world.send_on(end, left, Vec::new())) {
                Ok(sent) => left = &left[sent..],
                Err(_) => return self.lost(now, end),
            }
        }
        Step::Worked
    }

    fn later(&mut self, now: Instant, max_ns: u64) -> Step {
        self.next_at = Instant(now.0 + 1 + self.rng.below(max_ns));
        Step::Idle { until: Some(self.next_at) }
    }

    fn lost(&mut self, now: Instant, end: u32) -> Step {
        world::with(|world| world.close_end(end));
        self.end = None;
        self.received.clear();
        if let Awaited::Call(call) = std::mem::replace(&mut self.awaited, Awaited::Nothing) {
            self.calls.push_front(call);
        }
        self.later(now, RETRY_NS_MAX)
    }

    /// What to say next.
    fn next(&mut self, now: Instant) -> Option<(Awaited, Vec<u8>)> {
        self.id += 1;
        if let Some(listing) = &self.listing {
            return Some(if listing.contains_key("bdevs listed") {
                (Awaited::Controllers, request(self.id, "vhost_get_controllers", &json!({})))
            } else {
                (Awaited::Bdevs, request(self.id, "bdev_get_bdevs", &json!({})))
            });
        }
        let call = match self.calls.pop_front() {
            Some(call) => call,
            None if now >= self.next_at => {
                let call = self.spare.pop_front()?;
                self.next_at = Instant(now.0 + 1 + self.rng.below(PAUSE_NS_MAX));
                call
            }
            None => return None,
        };
        let mut record = self.record.borrow_mut();
        if call.is_done(record.state.acknowledged()) {
            drop(record);
            return self.next(now);
        }
        if let Some(change) = call.change() {
            record.state.called(change);
        }
        let request = call.request(self.id);
        Some((Awaited::Call(call), request))
    }

    fn answered(&mut self, answer: &Value) {
        match std::mem::replace(&mut self.awaited, Awaited::Nothing) {
            Awaited::Nothing => {
                world::with(|world| {
                    world.fail("state", format!("an RPC answer that nobody asked for: {answer}"))
                });
            }
            Awaited::Bdevs => {
                let listing = self.listing.get_or_insert_default();
                for bdev in answer["result"].as_array().into_iter().flatten() {
                    let (name, product) = (text(&bdev["name"]), text(&bdev["product_name"]));
                    let value = match product {
                        "Malloc disk" | "Null disk" => format!("{product} of {}", bdev["num_blocks"]),
                        _ => product.to_owned(),
                    };
                    listing.insert(format!("bdev {name}"), format!("{value}, {}", text(&bdev["uuid"])));
                }
                listing.insert("bdevs listed".to_owned(), String::new());
            }
            Awaited::Controllers => {
                let mut listing = self.listing.take().unwrap_or_default();
                listing.remove("bdevs listed");
                for controller in answer["result"].as_array().into_iter().flatten() {
                    let block = &controller["backend_specific"]["block"];
                    let value = self::controller(text(&block["bdev"]), block["packed_ring"] == json!(true));
                    listing.insert(format!("controller {}", text(&controller["ctrlr"])), value);
                }
                let verdict = self.record.borrow_mut().state.listed(&listing);
                if let Err(what) = verdict {
                    world::with(|world| world.fail("state", what));
                }
            }
            Awaited::Call(call) => {
                let in_force = answer.get("error").is_none();
                self.record.borrow_mut().state.answered(in_force);
                if !in_force {
                    let may_refuse =
                        world::with(|world| world.faults().count(crate::faults::FaultKind::NoSpace) > 0);
                    if may_refuse {
                        self.calls.push_front(call);
                    } else {
                        let what = format!("the target refused {call:?}: {}", answer["error"]);
                        world::with(|world| world.fail("state", what));
                    }
                }
            }
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}
