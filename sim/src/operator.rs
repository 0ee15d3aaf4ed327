//! The operator: configures the target by RPC, lists what there is after each of its lives began, and holds that against
//! what was acknowledged (`check::state`).
//!
//! One call at a time. A call that a death cut off is settled by the next listing and made again if it was not done.

use crate::check::state::{Change, Objects, State};
use crate::faults::FaultKind;
use crate::process::{rpc_socket, vhost_dir};
use crate::record::Record;
use crate::rng::Rng;
use crate::world::{self, Model, Step};
use runtime::{ErrorKind, Instant, PciAddress};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Longest wait before the operator calls again where nobody answered.
const RETRY_NS_MAX: u64 = 300_000;
/// Pause before a call that a fault made fail is made again.
const AGAIN_NS: u64 = 20_000_000;
/// Longest pause between two calls that nobody waits for.
const PAUSE_NS_MAX: u64 = 400_000;
/// What a target answers that was asked to stop.
const STOPPING: i64 = -1;
/// Spare bdevs at once, where controllers and bdevs come and go.
const CHURNED: u64 = 4;
/// Sectors of a mebibyte.
const MIB_SECTORS: u64 = 2048;
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
    /// Gives a null bdev so many sectors.
    ResizeNull(String, u64),
    /// Removes a controller; with the name of its bdev and whether packed rings are offered it is made again at once.
    DeleteController(String, Option<(String, bool)>),
    /// Looks at the size of a bdev on a disk again: name, through AIO.
    Rescan(String, bool),
    /// How NVMe drives are driven.
    SetNvmeOptions {
        /// Microseconds for an I/O command.
        timeout_us: u64,
        /// Microseconds for an admin command.
        admin_timeout_us: u64,
        /// Late commands are aborted first.
        aborts: bool,
        /// How often a command is tried again.
        retries: u64,
    },
    /// An NVMe drive: its name, and where it sits.
    AttachDrive(String, PciAddress),
    /// Lets an NVMe drive go that nobody uses.
    DetachDrive(String),
    /// Tries to let one go that is in use: that must be refused, and nothing happen.
    DetachUsedDrive(String),
    /// Resets an NVMe drive.
    ResetDrive(String),
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
            Self::ResizeNull(name, sectors) => {
                ("bdev_null_resize", json!({"name": name, "new_size": sectors / MIB_SECTORS}))
            }
            Self::DeleteController(name, _) => ("vhost_delete_controller", json!({"ctrlr": name})),
            Self::SetNvmeOptions { timeout_us, admin_timeout_us, aborts, retries } => (
                "bdev_nvme_set_options",
                json!({"timeout_us": timeout_us, "timeout_admin_us": admin_timeout_us,
                    "action_on_timeout": if *aborts { "abort" } else { "reset" }, "bdev_retry_count": retries}),
            ),
            Self::AttachDrive(name, address) => (
                "bdev_nvme_attach_controller",
                json!({"name": name, "trtype": "PCIe", "traddr": address.to_string()}),
            ),
            Self::DetachDrive(name) | Self::DetachUsedDrive(name) => {
                ("bdev_nvme_detach_controller", json!({"name": name}))
            }
            Self::ResetDrive(name) => ("bdev_nvme_reset_controller", json!({"name": name})),
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
            Self::CreateNull(name, sectors) | Self::ResizeNull(name, sectors) => {
                bdev(name, format!("Null disk of {sectors}"))
            }
            Self::CreateFile(name, _, aio) => {
                bdev(name, if *aio { "AIO disk" } else { "URING bdev" }.to_owned())
            }
            Self::CreateController(name, on, packed) => {
                Some(Change::Put { object: format!("controller {name}"), value: controller(on, *packed) })
            }
            Self::DeleteNull(name) => Some(Change::Remove { object: format!("bdev {name}") }),
            Self::DeleteController(name, _) => Some(Change::Remove { object: format!("controller {name}") }),
            Self::AttachDrive(name, address) => {
                Some(Change::Put { object: format!("drive {name}"), value: address.to_string() })
            }
            Self::DetachDrive(name) => Some(Change::Remove { object: format!("drive {name}") }),
            Self::Rescan(..)
            | Self::SetNvmeOptions { .. }
            | Self::DetachUsedDrive(_)
            | Self::ResetDrive(_) => None,
        }
    }

    /// Whether it is about one of these bdevs.
    fn is_on(&self, images: &BTreeMap<String, String>) -> bool {
        match self {
            Self::CreateFile(bdev, ..) | Self::CreateController(_, bdev, _) | Self::Rescan(bdev, _) => {
                images.contains_key(bdev)
            }
            _ => false,
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

/// How often a small file failed, or found no room: what is taken back after the one may meet the other.
fn medium_failures() -> u64 {
    let kinds = [FaultKind::FileError, FaultKind::NoSpace];
    world::with(|world| kinds.iter().map(|kind| world.faults().count(*kind)).sum())
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
    Drives,
    Controllers,
    /// Whether all drives serve, and then whether all controllers do.
    DrivesServe,
    ControllersServe,
    /// How many payload bytes were copied on their way to drives.
    Copies,
    Call(Call),
}

/// The operator.
pub struct Operator {
    /// The target, and its machine.
    target: u16,
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
    /// Bdevs on disks that another target may hold, and their controllers.
    images: BTreeMap<String, String>,
    /// Changes that nobody waits for.
    spare: VecDeque<Call>,
    next_at: Instant,
    /// No call that somebody waits for is made before: the last one was refused.
    calls_at: Instant,
    /// Whether it is asked for that all drives and controllers serve; and whether they do, as far as is known.
    mends: bool,
    mended: bool,
    /// Payload bytes that were copied, when that was asked for after the mending.
    copies: Option<u64>,
    /// Failures of the medium when the last call went out.
    medium_failures: u64,
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
    /// An operator in the world, of a target on this machine. `spare`: changes made beside the load.
    pub fn build(
        target: u16,
        machine: u32,
        seed: u64,
        spare: u64,
        record: &Rc<RefCell<Record>>,
    ) -> SharedOperator {
        let mut rng = Rng::new(seed, STREAM + u64::from(target));
        record.borrow_mut().states.push(State::default());
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
            target,
            machine,
            model: 0,
            record: Rc::clone(record),
            rng,
            end: None,
            received: Vec::new(),
            awaited: Awaited::Nothing,
            listing: Some(Objects::new()),
            calls: VecDeque::new(),
            images: BTreeMap::new(),
            spare,
            next_at: Instant(0),
            calls_at: Instant(0),
            mends: false,
            mended: false,
            copies: None,
            medium_failures: 0,
            id: 0,
        }));
        let model = world::with(|world| world.add_model(Box::new(OperatorModel(Rc::clone(&shared))), false));
        shared.borrow_mut().model = model;
        shared
    }

    /// Changes of drives that nobody waits for, among the others: resets of the drives in use, attachments and detachments of
    /// the spare one, and attempts to detach one in use.
    pub fn add_drive_changes(&mut self, used: &[String], resets: u64, swaps: u64, spare: (&str, PciAddress)) {
        let mut changes: Vec<Call> = self.spare.drain(..).collect();
        let one = |rng: &mut Rng| used[rng.below(used.len() as u64) as usize].clone();
        for _ in 0..resets {
            let at = self.rng.below(changes.len() as u64 + 1) as usize;
            changes.insert(at, Call::ResetDrive(one(&mut self.rng)));
        }
        let mut at = 0;
        for number in 0..swaps {
            at += self.rng.below((changes.len() - at) as u64 + 1) as usize;
            let call = match number % 3 {
                0 => Call::AttachDrive(spare.0.to_owned(), spare.1),
                1 => Call::DetachUsedDrive(one(&mut self.rng)),
                _ => Call::DetachDrive(spare.0.to_owned()),
            };
            changes.insert(at, call);
            at += 1;
        }
        self.spare = changes.into();
    }

    /// Asks for drives and controllers until all serve.
    pub fn mend(&mut self) {
        (self.mends, self.mended) = (true, false);
        let model = self.model;
        world::with(|world| world.wake_model(model));
    }

    /// Whether all drives and controllers served when they were last asked for.
    pub fn is_mended(&self) -> bool {
        self.mended
    }

    /// Payload bytes that were copied on their way to drives, once it is known.
    pub fn copies(&self) -> Option<u64> {
        self.copies
    }

    /// What was copied was held against what may be.
    pub fn judged_copies(&self) {
        self.record.borrow_mut().zero_copies += 1;
    }

    /// Asks for those bytes anew.
    pub fn count_copies(&mut self) {
        self.copies = None;
        let model = self.model;
        world::with(|world| world.wake_model(model));
    }

    /// Where a controller of its target listens.
    #[must_use]
    pub fn socket(&self, controller: &str) -> String {
        format!("{}/{controller}", vhost_dir(self.target))
    }

    /// The disk of this bdev, with a controller on it, is that of a bdev of another target too.
    pub fn shares(&mut self, bdev: &str, controller: &str) {
        self.images.insert(bdev.to_owned(), controller.to_owned());
    }

    /// Makes a call, after those asked for before.
    pub fn ask(&mut self, call: Call) {
        self.calls.push_back(call);
        let model = self.model;
        world::with(|world| world.wake_model(model));
    }

    /// Makes a call before those asked for earlier, which may be refused until it is made.
    pub fn ask_first(&mut self, call: Call) {
        self.calls.push_front(call);
        let model = self.model;
        world::with(|world| world.wake_model(model));
    }

    /// Whether every call was answered, but those that another target may be in the way of for as long as it lives, and the
    /// life that there is was listed.
    pub fn is_settled(&self) -> bool {
        let awaits = match &self.awaited {
            Awaited::Nothing => false,
            Awaited::Call(call) => !call.is_on(&self.images),
            _ => true,
        };
        self.end.is_some()
            && self.calls.iter().all(|call| call.is_on(&self.images))
            && !awaits
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
                let end = world.connect(self.machine, &rpc_socket(self.target)).ok()?;
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
            let spare = (!self.spare.is_empty() && self.calls.is_empty()).then_some(self.next_at);
            let asks = self.mends && !(self.mended && self.copies.is_some());
            let calls = (!self.calls.is_empty() || asks).then_some(self.calls_at);
            return Step::Idle { until: spare.into_iter().chain(calls).min() };
        };
        self.awaited = awaited;
        if self.send(&request) { Step::Worked } else { self.lost(now, end) }
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
            return Some(if listing.contains_key("drives listed") {
                (Awaited::Controllers, request(self.id, "vhost_get_controllers", &json!({})))
            } else if listing.contains_key("bdevs listed") {
                (Awaited::Drives, request(self.id, "bdev_nvme_get_controllers", &json!({})))
            } else {
                (Awaited::Bdevs, request(self.id, "bdev_get_bdevs", &json!({})))
            });
        }
        let may_call = now >= self.calls_at;
        let call = match if may_call { self.calls.pop_front() } else { None } {
            Some(call) => call,
            None if self.mends && !self.mended && may_call => {
                return Some((
                    Awaited::DrivesServe,
                    request(self.id, "bdev_nvme_get_controllers", &json!({})),
                ));
            }
            None if self.mended && self.copies.is_none() && may_call => {
                return Some((Awaited::Copies, request(self.id, "bdev_get_iostat", &json!({}))));
            }
            None if now >= self.next_at && self.calls.is_empty() => {
                let call = self.spare.pop_front()?;
                self.next_at = Instant(now.0 + 1 + self.rng.below(PAUSE_NS_MAX));
                call
            }
            None => return None,
        };
        let mut record = self.record.borrow_mut();
        let state = &mut record.states[usize::from(self.target)];
        if call.is_done(state.acknowledged()) {
            drop(record);
            self.made(&call);
            return self.next(now);
        }
        if let Some(change) = call.change().filter(|_| !call.is_on(&self.images)) {
            state.called(change);
            self.medium_failures = medium_failures();
        }
        let request = call.request(self.id);
        Some((Awaited::Call(call), request))
    }

    fn answered(&mut self, answer: &Value) {
        let awaited = std::mem::replace(&mut self.awaited, Awaited::Nothing);
        match awaited {
            Awaited::Nothing => {
                world::with(|world| {
                    world.fail("state", format!("an RPC answer that nobody asked for: {answer}"))
                });
            }
            Awaited::Bdevs => {
                let listing = self.listing.get_or_insert_default();
                for bdev in answer["result"].as_array().into_iter().flatten() {
                    // Namespaces come and go with their drives, which are listed by themselves.
                    if bdev["product_name"] == "NVMe disk" {
                        continue;
                    }
                    let (name, product) = (text(&bdev["name"]), text(&bdev["product_name"]));
                    let value = match product {
                        "Malloc disk" | "Null disk" => format!("{product} of {}", bdev["num_blocks"]),
                        _ => product.to_owned(),
                    };
                    listing.insert(format!("bdev {name}"), format!("{value}, {}", text(&bdev["uuid"])));
                }
                listing.insert("bdevs listed".to_owned(), String::new());
            }
            Awaited::Drives => {
                let listing = self.listing.get_or_insert_default();
                for drive in answer["result"].as_array().into_iter().flatten() {
                    let address = text(&drive["ctrlrs"][0]["trid"]["traddr"]).to_owned();
                    listing.insert(format!("drive {}", text(&drive["name"])), address);
                }
                listing.insert("drives listed".to_owned(), String::new());
            }
            Awaited::DrivesServe | Awaited::ControllersServe => self.served(answer, &awaited),
            Awaited::Copies => {
                let bdevs = answer["result"]["bdevs"].as_array().into_iter().flatten();
                self.copies = Some(bdevs.filter_map(|bdev| bdev["payload_bytes_copied"].as_u64()).sum());
            }
            Awaited::Controllers => {
                let mut listing = self.listing.take().unwrap_or_default();
                listing.remove("bdevs listed");
                listing.remove("drives listed");
                for controller in answer["result"].as_array().into_iter().flatten() {
                    let block = &controller["backend_specific"]["block"];
                    let object = format!("controller {}", text(&controller["ctrlr"]));
                    let known = self.state(|state| state.acknowledged().get(&object).cloned());
                    let value = match known {
                        // Its drive is away: what it is on is not told.
                        Some(known) if block["bdev"].is_null() => known,
                        _ => self::controller(text(&block["bdev"]), block["packed_ring"] == json!(true)),
                    };
                    listing.insert(object, value);
                }
                // What is on an image is shown by the target that holds it: that is no matter of the configuration.
                for (bdev, controller) in &self.images {
                    listing.remove(&format!("bdev {bdev}"));
                    listing.remove(&format!("controller {controller}"));
                }
                let verdict = self.state(|state| state.listed(&listing));
                if let Err(what) = verdict {
                    world::with(|world| world.fail("state", what));
                }
            }
            Awaited::Call(call) => {
                let in_force = answer.get("error").is_none();
                if call.is_on(&self.images) {
                    return self.answered_on_image(call, answer);
                }
                if answer["error"]["code"] == STOPPING {
                    // The next life is asked.
                    self.state(|state| state.answered(false, false));
                    self.calls.push_front(call);
                    let now = world::with(|world| world.now());
                    self.calls_at = Instant(now.0 + AGAIN_NS);
                    return;
                }
                let failures = medium_failures() - self.medium_failures;
                self.state(|state| state.answered(in_force, failures > 1));
                if in_force {
                    self.made(&call);
                }
                if let Call::DetachUsedDrive(name) = &call {
                    if answer["error"]["code"] != -16 {
                        let what =
                            format!("{name} was to be detached under its users, and the answer is {answer}");
                        world::with(|world| world.fail("state", what));
                    }
                } else if !in_force {
                    let may_refuse = world::with(|world| {
                        let small = [FaultKind::NoSpace, FaultKind::FileError];
                        small.iter().any(|kind| world.faults().count(*kind) > 0)
                            || world.faults().struck().iter().any(|fault| fault.kind.touches_drives())
                    });
                    if matches!(call, Call::ResetDrive(_)) && may_refuse {
                        // It is being reset already, or is away.
                    } else if may_refuse {
                        // Behind what may mend it.
                        let mending = |call: &&Call| matches!(call, Call::ResetDrive(_));
                        let at = self.calls.iter().take_while(mending).count();
                        self.calls.insert(at, call);
                        let now = world::with(|world| world.now());
                        self.calls_at = Instant(now.0 + AGAIN_NS);
                    } else {
                        let what = format!("the target refused {call:?}: {}", answer["error"]);
                        world::with(|world| world.fail("state", what));
                    }
                }
            }
        }
    }
}

impl Operator {
    /// What follows on a call that was made.
    fn made(&mut self, call: &Call) {
        if let Call::DeleteController(name, Some((bdev, packed))) = call {
            self.calls.push_front(Call::CreateController(name.clone(), bdev.clone(), *packed));
        }
    }

    /// Changes of controllers and bdevs that nobody waits for, among the others: spare ones come, grow and go, and those of
    /// `guests` (with their bdevs, and whether packed rings are offered) are removed and made again.
    pub fn add_churn(&mut self, count: u64, guests: &[(String, String, bool)]) {
        let mut changes: Vec<Call> = self.spare.drain(..).collect();
        // Of each spare bdev: its name, MiB, and whether it has a controller.
        let mut spares: Vec<(String, u64, bool)> = Vec::new();
        let mut at = 0;
        for number in 0..count {
            let call = self.draw_churn(number, &mut spares, guests);
            at += self.rng.below((changes.len() - at) as u64 + 1) as usize;
            changes.insert(at, call);
            at += 1;
        }
        self.spare = changes.into();
    }

    fn draw_churn(
        &mut self,
        number: u64,
        spares: &mut Vec<(String, u64, bool)>,
        guests: &[(String, String, bool)],
    ) -> Call {
        if !guests.is_empty() && self.rng.chance(1, 6) {
            let (controller, bdev, packed) = guests[self.rng.below(guests.len() as u64) as usize].clone();
            return Call::DeleteController(controller, Some((bdev, packed)));
        }
        let at = self.rng.below(CHURNED) as usize;
        let Some((name, mib, has_controller)) = spares.get_mut(at) else {
            spares.push((format!("churn{number}"), 1, false));
            return Call::CreateNull(format!("churn{number}"), MIB_SECTORS);
        };
        let controller = format!("of.{name}");
        if self.rng.chance(1, 3) {
            *mib += 1;
            return Call::ResizeNull(name.clone(), *mib * MIB_SECTORS);
        }
        if !*has_controller && self.rng.chance(1, 4) {
            let (name, ..) = spares.remove(at);
            return Call::DeleteNull(name);
        }
        *has_controller = !*has_controller;
        if *has_controller {
            Call::CreateController(controller, name.clone(), false)
        } else {
            Call::DeleteController(controller, None)
        }
    }

    /// Uses the checker of its target's configuration.
    fn state<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.record.borrow_mut().states[usize::from(self.target)])
    }

    /// Takes the answer to a call about a bdev whose disk another target may hold: it is refused until that one lets go, and
    /// one that a death cut off may have been done.
    fn answered_on_image(&mut self, call: Call, answer: &Value) {
        let refused = text(&answer["error"]["message"]);
        if answer.get("error").is_none() || refused.starts_with("File exists") {
            if let Call::CreateController(name, ..) = call {
                self.record.borrow_mut().on_images.insert(name);
            }
            return;
        }
        if matches!(call, Call::Rescan(..)) {
            return;
        }
        // Behind what nobody is in the way of.
        self.calls.push_back(call);
        let now = world::with(|world| world.now());
        self.calls_at = Instant(now.0 + AGAIN_NS);
    }

    /// Takes an answer on whether all drives, or all controllers, serve.
    fn served(&mut self, answer: &Value, asked: &Awaited) {
        let entries = answer["result"].as_array().into_iter().flatten();
        if *asked == Awaited::DrivesServe {
            let serve = entries.into_iter().all(|drive| drive["ctrlrs"][0]["state"] == "enabled");
            if serve {
                self.awaited = Awaited::ControllersServe;
                self.id += 1;
                self.send(&request(self.id, "vhost_get_controllers", &json!({})));
                return;
            }
        } else {
            let serves = |entry: &Value| {
                entry["state"] == "serving" && !entry["backend_specific"]["block"]["bdev"].is_null()
            };
            self.mended = entries.into_iter().all(serves);
        }
        let now = world::with(|world| world.now());
        self.calls_at = Instant(now.0 + AGAIN_NS);
    }

    /// Sends a request; whether the target is still there.
    fn send(&mut self, request: &[u8]) -> bool {
        let Some(end) = self.end else { return false };
        let mut left = request;
        while !left.is_empty() {
            // One request is far smaller than what a socket holds.
            match world::with(|world| world.send_on(end, left, Vec::new())) {
                Ok(sent) => left = &left[sent..],
                Err(_) => return false,
            }
        }
        true
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}
