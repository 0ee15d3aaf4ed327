//! NVMe drives as a part of the target: attached, asked, reset, detached and refused, by call, and back after a death. (That
//! they are back with all that was acknowledged after deaths at any store is held in every scenario of `scenarios/nvme`.)

mod common;

use common::calls::converse;
use runtime::PciAddress;
use serde_json::{Value, json};
use sim::faults::Faults;
use sim::nvme::{NamespaceProfile, Profile};
use sim::pci::{Device, Shape};
use sim::process;
use sim::scheduler;
use sim::world::{self, Step, Temper, World};

const DRIVE: &str = "0000:3b:00.0";

/// A function that is no drive.
struct Nothing;

impl Device for Nothing {
    fn load(&mut self, _: &mut World, _: u64, _: u8) -> u64 {
        0
    }
    fn store(&mut self, _: &mut World, _: u64, _: u8, _: u64) {}
    fn step(&mut self, _: &mut World) -> Step {
        Step::Idle { until: None }
    }
    fn reset(&mut self, _: &mut World) {}
    fn power_loss(&mut self, _: &mut World) {}
}

fn address(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

/// A machine with a drive of two namespaces, a function that is no drive, and the target.
fn machine() -> u32 {
    machine_with(vec![NamespaceProfile::plain(2048, 512), NamespaceProfile::plain(64, 4096)])
}

/// The same with these namespaces.
fn machine_with(namespaces: Vec<NamespaceProfile>) -> u32 {
    world::create(7, Temper::default(), Faults::none(7));
    world::with(|world| {
        let machine = world.machine();
        world.plug_nvme(machine, address(DRIVE), Profile::plain(namespaces));
        let shape = Shape { ids: (1, 2), class: 0x02_00_00, registers_len: 16 << 10, vectors: 0, wide: true };
        world.plug(machine, address("0000:02:00.0"), shape, |_| Box::new(Nothing));
        world.spawn(machine, &process::target(), 2, None);
        machine
    })
}

/// Makes calls, and gives each one's result, or its error's code and message.
fn call(machine: u32, calls: &[(&str, Value)]) -> Vec<Result<Value, (i64, String)>> {
    let requests: Vec<String> = calls
        .iter()
        .enumerate()
        .map(|(id, (method, params))| {
            json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
        })
        .collect();
    let answers = converse(machine, &requests.iter().map(String::as_str).collect::<Vec<_>>());
    let read = |answer: &String| {
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        match answer.get("error") {
            None => Ok(answer["result"].clone()),
            Some(error) => {
                let message = error["message"].as_str().expect("a text").to_owned();
                Err((error["code"].as_i64().expect("a number"), message))
            }
        }
    };
    answers.iter().map(read).collect()
}

fn attach(name: &str, address: &str) -> (&'static str, Value) {
    ("bdev_nvme_attach_controller", json!({"name": name, "trtype": "PCIe", "traddr": address}))
}

#[test]
fn a_drive_is_attached_asked_reset_and_let_go() {
    let machine = machine();
    let named = |name: &str| json!({ "name": name });
    let answers = call(
        machine,
        &[
            ("bdev_nvme_set_options", json!({"timeout_us": 50_000, "action_on_timeout": "reset"})),
            attach("Nvme0", DRIVE),
            ("bdev_get_bdevs", json!({})),
            ("bdev_nvme_get_controllers", named("Nvme0")),
            ("bdev_nvme_get_controller_health_info", named("Nvme0")),
            ("bdev_nvme_reset_controller", named("Nvme0")),
            ("framework_get_config", json!({"name": "bdev"})),
            ("bdev_nvme_detach_controller", named("Nvme0")),
            ("bdev_get_bdevs", json!({})),
            attach("again", DRIVE),
        ],
    );
    let answers: Vec<Value> = answers.into_iter().map(|answer| answer.expect("it is done")).collect();
    assert_eq!(answers[1], json!(["Nvme0n1", "Nvme0n2"]));
    let sizes = |bdev: &Value| (bdev["block_size"].clone(), bdev["num_blocks"].clone());
    assert_eq!(sizes(&answers[2][0]), (json!(512), json!(2048)));
    assert_eq!(sizes(&answers[2][1]), (json!(4096), json!(64)));
    assert_eq!(answers[3][0]["ctrlrs"][0]["state"], "enabled");
    assert_eq!(answers[4]["temperature_celsius"], 37);
    assert_eq!(answers[5], true);
    let options = json!({"timeout_us": 50_000, "action_on_timeout": "reset"});
    assert_eq!(answers[6][0], json!({"method": "bdev_nvme_set_options", "params": options}));
    assert_eq!(answers[6][1]["method"], "bdev_nvme_attach_controller");
    assert_eq!((&answers[7], &answers[8]), (&json!(true), &json!([])));
    assert_eq!(answers[9], json!(["againn1", "againn2"]));
    world::clear();
}

#[test]
fn what_cannot_be_attached_is_refused_with_its_reason_and_leaves_nothing() {
    let machine = machine();
    let vhost = |name: &str| ("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": name}));
    let detach = |params: Value| ("bdev_nvme_detach_controller", params);
    let null = json!({"name": "Nvme0n7", "num_blocks": 8, "block_size": 512});
    let answers = call(
        machine,
        &[
            attach("Nvme0", "0000:99:00.0"),
            attach("Nvme0", "0000:02:00.0"),
            attach("Nvme0", DRIVE),
            attach("Nvme0", "0000:02:00.0"),
            attach("Nvme1", DRIVE),
            ("bdev_null_create", null),
            ("bdev_nvme_set_options", json!({})),
            vhost("Nvme0n9"),
            vhost("Nvme0n1"),
            detach(json!({"name": "Nvme0"})),
            detach(json!({"name": "Nvme0", "traddr": "0000:99:00.0"})),
            detach(json!({"name": "Nvme7"})),
            ("bdev_nvme_reset_controller", json!({"name": "Nvme7"})),
            ("bdev_nvme_get_controllers", json!({})),
        ],
    );
    let expected = [
        (0, -19, "no PCI function at 0000:99:00.0"),
        (1, -19, "its class code is 020000"),
        (3, -17, "NVMe controller Nvme0 is attached at 0000:3b:00.0"),
        (4, -17, "NVMe controller Nvme0 is attached at 0000:3b:00.0"),
        (5, -17, "a namespace of NVMe controller Nvme0"),
        (6, -1, "Nvme0 is: detach it first"),
        (7, -32602, "has no such namespace"),
        (9, -16, "in use by controller c"),
        (10, -19, "is at 0000:3b:00.0, not at 0000:99:00.0"),
        (11, -19, "no NVMe controller is named Nvme7"),
        (12, -19, "no NVMe controller is named Nvme7"),
    ];
    for (at, code, words) in expected {
        let (found, message) = answers[at].clone().expect_err(words);
        assert!(found == code && message.contains(words), "{at}: {found} {message}");
    }
    assert_eq!(answers[8], Ok(json!(true)));
    let there = answers[13].as_ref().expect("a list");
    assert_eq!((there.as_array().map(Vec::len), &there[0]["name"]), (Some(1), &json!("Nvme0")));
    world::clear();
}

#[test]
fn formats_that_cannot_be_used_are_refused_with_their_reason() {
    let plain = NamespaceProfile::plain(2048, 512);
    let refused = [
        (NamespaceProfile { metadata: 8, ..plain }, "has 8 bytes of metadata a block"),
        (NamespaceProfile { protection: 1, ..plain }, "protection information of type 1"),
        (NamespaceProfile { block_size: 1024, ..plain }, "its blocks have 2^10 bytes"),
    ];
    for (namespace, words) in refused {
        let machine = machine_with(vec![namespace]);
        let nothing = [attach("Nvme0", DRIVE), ("bdev_nvme_get_controllers", json!({}))];
        let answers = call(machine, &nothing);
        let (code, message) = answers[0].clone().expect_err(words);
        let says = [DRIVE, "no namespace", words].iter().all(|words| message.contains(words));
        assert!(code == -95 && says, "{code} {message}");
        assert_eq!(answers[1], Ok(json!([])), "it leaves nothing behind");
        world::clear();
    }
    // Beside one that can be used, it is left out, and whoever asks for it hears why.
    let machine = machine_with(vec![NamespaceProfile { metadata: 8, ..plain }, plain]);
    let vhost = ("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "Nvme0n1"}));
    let answers = call(machine, &[attach("Nvme0", DRIVE), vhost]);
    assert_eq!(answers[0], Ok(json!(["Nvme0n2"])));
    let (_, message) = answers[1].clone().expect_err("a namespace with metadata");
    assert!(message.contains("has 8 bytes of metadata a block"), "{message}");
    world::clear();
}

#[test]
fn a_drive_is_back_after_a_death_without_a_call() {
    let machine = machine();
    let answers = call(machine, &[attach("Nvme0", DRIVE)]);
    assert_eq!(answers[0], Ok(json!(["Nvme0n1", "Nvme0n2"])));
    scheduler::kill(0);
    world::with(|world| {
        world.resume();
        world.spawn(machine, &process::target(), 2, None);
    });
    let answers = call(machine, &[("bdev_get_bdevs", json!({})), ("bdev_nvme_get_controllers", json!({}))]);
    let named = |answer: &Result<Value, _>| -> Vec<String> {
        let list = answer.as_ref().expect("a list").as_array().expect("a list").clone();
        list.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(named(&answers[0]), ["Nvme0n1", "Nvme0n2"]);
    assert_eq!(named(&answers[1]), ["Nvme0"]);
    assert_eq!(answers[1].as_ref().expect("a list")[0]["ctrlrs"][0]["state"], "enabled");
    world::clear();
}
