//! The control path of a simulated target: what its calls give back, and what is refused, with which number and which
//! words. The same calls are made by real clients of a real target in other tests; here each bad case is cheap to make.

use runtime::ErrorKind;
use serde_json::{Value, json};
use sim::{process, scheduler, world};
use stack::control::server::CONNECTIONS_MAX;
use tests::console::Console;
use tests::operator::Answer;

/// A second, in nanoseconds.
const SECOND_NS: u64 = 1_000_000_000;
/// The codes that SPDK's target would answer with.
const NO_SUCH_FILE: i64 = -2;
const BUSY: i64 = -16;
const EXISTS: i64 = -17;
const NO_SUCH_DEVICE: i64 = -19;
const INVALID: i64 = -22;
const INVALID_PARAMS: i64 = -32602;

/// Runs a test in several worlds: the order of things differs in each.
fn in_each_world(test: impl Fn(Console)) {
    for seed in 0..8 {
        let mut console = Console::new(seed, 2);
        console.start();
        test(console);
    }
}

fn null(console: &Console, name: &str) -> Value {
    console.call("bdev_null_create", json!({ "name": name, "num_blocks": 4096, "block_size": 512 }))
}

/// A disk of `len` bytes at a path.
fn disk(console: &Console, path: &str, len: u64, block_size: u32) -> u32 {
    world::with(|world| world.create_disk(console.machine, path, len, block_size, block_size))
}

fn contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn bdevs_come_are_told_of_and_go() {
    in_each_world(|console| {
        assert_eq!(null(&console, "Null0"), "Null0");
        let malloc = json!({ "num_blocks": 64, "block_size": 4096 });
        assert_eq!(console.call("bdev_malloc_create", malloc.clone()), "Malloc0");
        assert_eq!(console.call("bdev_malloc_create", malloc), "Malloc1");
        disk(&console, "/disk", 1 << 20, 512);
        assert_eq!(console.call("bdev_uring_create", json!({ "name": "u", "filename": "/disk" })), "u");
        let bdevs = console.call("bdev_get_bdevs", json!({}));
        let told = bdevs.as_array().expect("a list").iter();
        let told = told.map(|bdev| (bdev["name"].as_str().unwrap(), bdev["product_name"].as_str().unwrap()));
        let expected = [
            ("Null0", "Null disk"),
            ("Malloc0", "Malloc disk"),
            ("Malloc1", "Malloc disk"),
            ("u", "URING bdev"),
        ];
        assert_eq!(told.collect::<Vec<_>>(), expected);
        let one = &console.call("bdev_get_bdevs", json!({ "name": "u" }))[0];
        assert_eq!((&one["block_size"], &one["num_blocks"]), (&json!(512), &json!(2048)));
        assert_eq!(one["driver_specific"]["uring"]["filename"], "/disk");
        assert_eq!(one["claimed"], false);
        assert_eq!(one["supported_io_types"]["flush"], true);
        assert_eq!(console.call("bdev_uring_delete", json!({ "name": "u" })), true);
        assert_eq!(console.call("bdev_malloc_delete", json!({ "name": "Malloc0" })), true);
        console.refused("bdev_get_bdevs", json!({ "name": "u" }), NO_SUCH_DEVICE);
        // The file is free again, and the name too.
        console.call(
            "bdev_aio_create",
            json!({ "name": "u", "filename": "/disk", "block_size": 4096, "readonly": true }),
        );
        let one = &console.call("bdev_get_bdevs", json!({ "name": "u" }))[0];
        assert_eq!((&one["block_size"], &one["num_blocks"]), (&json!(4096), &json!(256)));
        assert_eq!(one["supported_io_types"]["write"], false);
    });
}

#[test]
fn bdevs_that_cannot_be_are_refused_in_words() {
    in_each_world(|console| {
        null(&console, "Null0");
        let uuid = console.call("bdev_get_bdevs", json!({ "name": "Null0" }))[0]["uuid"].clone();
        let size = json!({ "num_blocks": 8, "block_size": 512 });
        let with = |more: Value| {
            let mut params = size.clone();
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            params
        };
        let taken = console.refused("bdev_malloc_create", with(json!({ "name": "Null0" })), EXISTS);
        contains(&taken, &["File exists", "Null0"]);
        let taken = console.refused("bdev_null_create", with(json!({ "name": "b", "uuid": uuid })), EXISTS);
        contains(&taken, &["Null0", "uuid"]);
        console.refused("bdev_null_create", with(json!({ "name": "b", "md_size": 8 })), INVALID_PARAMS);
        let wrong = console.refused("bdev_malloc_delete", json!({ "name": "Null0" }), NO_SUCH_DEVICE);
        contains(&wrong, &["null bdev", "malloc bdev"]);
        console.refused("bdev_null_delete", json!({ "name": "none" }), NO_SUCH_DEVICE);

        let uring = |console: &Console, name: &str, path: &str, code| {
            console.refused("bdev_uring_create", json!({ "name": name, "filename": path }), code)
        };
        contains(&uring(&console, "u", "/none", NO_SUCH_FILE), &["No such file", "/none"]);
        disk(&console, "/small", 512, 512);
        let small = json!({ "name": "u", "filename": "/small", "block_size": 4096 });
        contains(
            &console.refused("bdev_uring_create", small, INVALID),
            &["512 bytes", "less than one block of 4096"],
        );
        disk(&console, "/odd", 4096 + 512, 512);
        let odd = json!({ "name": "u", "filename": "/odd", "block_size": 4096 });
        contains(&console.refused("bdev_uring_create", odd, INVALID), &["no multiple", "4096"]);
        disk(&console, "/large-blocks", 1 << 20, 4096);
        let fine = json!({ "name": "u", "filename": "/large-blocks", "block_size": 512 });
        contains(&console.refused("bdev_uring_create", fine, INVALID), &["512 is smaller", "4096"]);
        disk(&console, "/disk", 1 << 20, 512);
        console.call("bdev_uring_create", json!({ "name": "first", "filename": "/disk" }));
        contains(&uring(&console, "second", "/disk", BUSY), &["/disk", "bdev first"]);
        // Nothing of all that was kept.
        assert_eq!(console.call("bdev_get_bdevs", json!({})).as_array().unwrap().len(), 2);
    });
}

#[test]
fn controllers_come_are_told_of_and_go() {
    in_each_world(|console| {
        null(&console, "Null0");
        let create = |ctrlr: &str, more: Value| {
            let mut params = json!({ "ctrlr": ctrlr, "dev_name": "Null0" });
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            params
        };
        assert_eq!(console.call("vhost_create_blk_controller", create("c0", json!({}))), true);
        let told = console.call("vhost_get_controllers", json!({ "name": "c0" }));
        let one = &told[0];
        assert_eq!(one["ctrlr"], "c0");
        assert_eq!(
            one["backend_specific"]["block"],
            json!({
                "readonly": false, "bdev": "Null0", "transport": "vhost_user_blk", "packed_ring": false,
                "shared": false,
            })
        );
        assert_eq!((&one["sessions"], &one["state"]), (&json!([]), &json!("serving")));
        assert!(one["socket"].as_str().unwrap().ends_with("/c0"));
        assert_eq!(console.call("bdev_get_bdevs", json!({ "name": "Null0" }))[0]["claimed"], true);

        let refused = |params, code| console.refused("vhost_create_blk_controller", params, code);
        contains(&refused(create("c0", json!({})), INVALID_PARAMS), &["File exists", "c0"]);
        contains(
            &refused(create("c1", json!({})), INVALID_PARAMS),
            &["busy", "in use by controller c0", "shared=true"],
        );
        contains(
            &refused(create("c1", json!({ "shared": true })), INVALID_PARAMS),
            &["c0 was made without shared"],
        );
        contains(
            &refused(json!({ "ctrlr": "c1", "dev_name": "x" }), INVALID_PARAMS),
            &["No such device", "named x"],
        );
        contains(
            &refused(create("c1", json!({ "cpumask": "[900]" })), INVALID_PARAMS),
            &["cpumask", "at least one of"],
        );
        contains(&console.refused("bdev_null_delete", json!({ "name": "Null0" }), BUSY), &["controller c0"]);
        contains(
            &console.refused("vhost_delete_controller", json!({ "ctrlr": "x" }), INVALID_PARAMS),
            &["No such device"],
        );
        console.refused("vhost_get_controllers", json!({ "name": "x" }), NO_SUCH_DEVICE);

        assert_eq!(console.call("vhost_delete_controller", json!({ "ctrlr": "c0" })), true);
        for ctrlr in ["c1", "c2"] {
            console.call("vhost_create_blk_controller", create(ctrlr, json!({ "shared": true })));
        }
        // Two controllers, two cores: one on each.
        let told = console.call("vhost_get_controllers", json!({}));
        let masks = told.as_array().unwrap().iter().map(|one| one["cpumask"].clone()).collect::<Vec<_>>();
        assert_ne!(masks[0], masks[1], "{masks:?}");
        for ctrlr in ["c1", "c2"] {
            console.call("vhost_delete_controller", json!({ "ctrlr": ctrlr }));
        }
        assert_eq!(console.call("bdev_null_delete", json!({ "name": "Null0" })), true);
    });
}

#[test]
fn sizes_change() {
    in_each_world(|console| {
        null(&console, "Null0");
        let blocks =
            |name: &str| console.call("bdev_get_bdevs", json!({ "name": name }))[0]["num_blocks"].clone();
        assert_eq!(console.call("bdev_null_resize", json!({ "name": "Null0", "new_size": 3 })), true);
        assert_eq!(blocks("Null0"), 3 * 2048);
        let shrunk = console.refused("bdev_null_resize", json!({ "name": "Null0", "new_size": 1 }), INVALID);
        contains(&shrunk, &["1 MiB", "3 MiB"]);
        let file = disk(&console, "/disk", 1 << 20, 512);
        console.call("bdev_uring_create", json!({ "name": "u", "filename": "/disk" }));
        console.call("vhost_create_blk_controller", json!({ "ctrlr": "c", "dev_name": "u" }));
        world::with(|world| world.resize_disk(file, 2 << 20));
        assert_eq!(blocks("u"), 2048);
        assert_eq!(console.call("bdev_uring_rescan", json!({ "name": "u" })), true);
        assert_eq!(blocks("u"), 4096);
        console.refused("bdev_aio_rescan", json!({ "name": "u" }), NO_SUCH_DEVICE);
        world::with(|world| world.resize_disk(file, 1 << 20));
        let shrunk = console.refused("bdev_uring_rescan", json!({ "name": "u" }), BUSY);
        contains(&shrunk, &["4096", "2048"]);
    });
}

#[test]
fn a_target_started_again_is_what_it_was() {
    in_each_world(|mut console| {
        null(&console, "Null0");
        console.call("bdev_null_resize", json!({ "name": "Null0", "new_size": 9 }));
        console.call("bdev_malloc_create", json!({ "name": "m", "num_blocks": 8, "block_size": 512 }));
        disk(&console, "/disk", 1 << 20, 512);
        console.call("bdev_uring_create", json!({ "name": "u", "filename": "/disk" }));
        console
            .call("vhost_create_blk_controller", json!({ "ctrlr": "c", "dev_name": "u", "readonly": true }));
        let what = |console: &Console| {
            ["bdev_get_bdevs", "vhost_get_controllers"].map(|method| console.call(method, json!({})))
        };
        let before = what(&console);
        for orderly in [false, true, false] {
            if orderly {
                world::with(|world| world.request_stop(console.process));
                console.wait_ns(SECOND_NS);
                assert!(world::with(|world| world.has_exited(console.process)));
            } else {
                scheduler::kill(console.process);
            }
            console.start();
            assert_eq!(what(&console), before);
        }
    });
}

#[test]
fn a_missing_disk_holds_up_its_own_controllers_only() {
    in_each_world(|mut console| {
        null(&console, "Null0");
        disk(&console, "/disk", 1 << 20, 512);
        console.call("bdev_uring_create", json!({ "name": "u", "filename": "/disk" }));
        for (ctrlr, bdev) in [("c0", "Null0"), ("c1", "u")] {
            console.call("vhost_create_blk_controller", json!({ "ctrlr": ctrlr, "dev_name": bdev }));
        }
        scheduler::kill(console.process);
        world::with(|world| world.remove_disk(console.machine, "/disk"));
        console.start();
        let states = |console: &Console| {
            let told = console.call("vhost_get_controllers", json!({}));
            told.as_array().unwrap().iter().map(|one| one["state"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(states(&console), ["serving", "waiting"]);
        let missing = console.refused("bdev_get_bdevs", json!({ "name": "u" }), NO_SUCH_DEVICE);
        contains(&missing, &["not there yet", "/disk", "not found"]);
        // It is still what the target was asked to be, and cannot be made twice.
        let config = console.call("framework_get_config", json!({ "name": "bdev" }));
        assert_eq!(config.as_array().unwrap().len(), 2);
        console.refused("bdev_uring_create", json!({ "name": "u", "filename": "/disk" }), EXISTS);
        disk(&console, "/disk", 1 << 20, 512);
        let told = console.call("bdev_get_bdevs", json!({ "name": "u", "timeout": 5000 }));
        assert_eq!(told[0]["num_blocks"], 2048);
        console.wait_ns(SECOND_NS);
        assert_eq!(states(&console), ["serving", "serving"]);
    });
}

#[test]
fn waiting_for_a_bdev_ends() {
    in_each_world(|console| {
        let before = world::with(|world| world.now().0);
        console.refused("bdev_get_bdevs", json!({ "name": "late", "timeout": 300 }), NO_SUCH_DEVICE);
        let waited_ms = (world::with(|world| world.now().0) - before) / 1_000_000;
        assert!((300..400).contains(&waited_ms), "{waited_ms} ms");
    });
}

#[test]
fn clients_that_only_send_hold_up_nobody() {
    in_each_world(|console| {
        null(&console, "Null0");
        let connect = || world::with(|world| world.connect(console.machine, process::RPC_SOCKET));
        let deaf = connect().expect("the target listens");
        let requests = br#"{"jsonrpc":"2.0","id":1,"method":"rpc_get_methods"}"#.repeat(10_000);
        let mut sent = 0;
        let send = |from: usize| world::with(|world| world.send_on(deaf, &requests[from..], Vec::new()));
        for _ in 0..200 {
            // As much as there is room for, over and over, and not a byte of the answers read.
            while let Ok(len) = send(sent) {
                sent += len;
                assert!(sent < requests.len(), "everything is taken and kept, without a bound");
            }
            console.wait_ns(100_000);
        }
        assert!(sent > 64 << 10, "{sent} bytes were taken");
        assert_eq!(console.call("bdev_get_bdevs", json!({})).as_array().unwrap().len(), 1);
        // What is kept for it is bounded: its socket and one buffer are full, and no more is taken.
        console.wait_ns(SECOND_NS / 10);
        assert_eq!(send(sent).expect_err("no room").kind, ErrorKind::WouldBlock, "after {sent} bytes");
        world::with(|world| world.close_end(deaf));
        console.call("bdev_null_delete", json!({ "name": "Null0" }));
    });
}

#[test]
fn more_clients_than_there_is_room_for_take_the_place_of_the_quietest() {
    in_each_world(|console| {
        null(&console, "Null0");
        let mut ends = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX {
            let end = world::with(|world| world.connect(console.machine, process::RPC_SOCKET));
            ends.push(end.expect("the target listens and accepts"));
            console.wait_ns(50_000);
        }
        console.wait_ns(SECOND_NS / 10);
        let open = ends.iter().filter(|end| world::with(|world| world.is_connected(**end))).count();
        assert_eq!(open, CONNECTIONS_MAX);
        assert!(world::with(|world| world.is_connected(*ends.last().unwrap())), "the last one was accepted");
        // The console was the quietest of all, and comes back.
        assert_eq!(console.try_call("bdev_get_bdevs", json!({})), Answer::Lost);
        assert_eq!(console.call("bdev_get_bdevs", json!({})).as_array().unwrap().len(), 1);
    });
}

/// Clients that ask for a bdev which is not there, and wait for it: as many as there is room for.
fn wait_in_vain(console: &Console) -> Vec<u32> {
    let request =
        br#"{"jsonrpc":"2.0","id":1,"method":"bdev_get_bdevs","params":{"name":"none","timeout":9000}}"#;
    let ask = |_| {
        let end =
            world::with(|world| world.connect(console.machine, process::RPC_SOCKET)).expect("it listens");
        let mut sent = 0;
        while sent < request.len() {
            sent += world::with(|world| world.send_on(end, &request[sent..], Vec::new())).expect("room");
        }
        console.wait_ns(100_000);
        end
    };
    (0..CONNECTIONS_MAX).map(ask).collect()
}

fn connected(ends: &[u32]) -> usize {
    ends.iter().filter(|end| world::with(|world| world.is_connected(**end))).count()
}

#[test]
fn the_longest_wait_gives_way_to_a_new_client() {
    in_each_world(|console| {
        null(&console, "Null0");
        let ends = wait_in_vain(&console);
        console.wait_ns(SECOND_NS / 10);
        // The console was the quietest of all.
        assert_eq!(
            (console.try_call("bdev_get_bdevs", json!({})), connected(&ends)),
            (Answer::Lost, ends.len())
        );
        let before = world::with(|world| world.now().0);
        assert_eq!(console.call("bdev_get_bdevs", json!({})).as_array().unwrap().len(), 1);
        let waited_ms = (world::with(|world| world.now().0) - before) / 1_000_000;
        assert!(waited_ms < 100, "{waited_ms} ms");
        assert_eq!((connected(&ends[1..]), connected(&ends[..1])), (ends.len() - 1, 0));
        let mut answer = Vec::new();
        loop {
            let mut piece = [0; 4096];
            match world::with(|world| world.receive_on(ends[0], &mut piece, &mut Vec::new())) {
                Ok(0) | Err(_) => break,
                Ok(len) => answer.extend_from_slice(&piece[..len]),
            }
        }
        let answer: Value = serde_json::from_slice(&answer).expect("an answer");
        assert_eq!(answer["error"]["code"], BUSY, "{answer}");
    });
}

#[test]
fn a_question_goes_with_its_client() {
    in_each_world(|console| {
        null(&console, "Null0");
        let ends = wait_in_vain(&console);
        for end in ends {
            world::with(|world| world.close_end(end));
        }
        console.wait_ns(SECOND_NS / 10);
        // The console may have been lost meanwhile, as the quietest of all, and comes back.
        let _ = console.try_call("rpc_get_methods", json!({}));
        console.call("rpc_get_methods", json!({}));
        // Nobody's place is taken: these are idle, and the first that would have to give way.
        let connect = |_| world::with(|world| world.connect(console.machine, process::RPC_SOCKET));
        let idle: Vec<_> = (0..CONNECTIONS_MAX - 1).map(|at| connect(at).expect("it listens")).collect();
        console.wait_ns(SECOND_NS / 10);
        assert_ne!(console.try_call("rpc_get_methods", json!({})), Answer::Lost);
        assert_eq!(connected(&idle), idle.len());
    });
}

#[test]
fn a_second_target_on_the_state_directory_is_refused() {
    in_each_world(|console| {
        null(&console, "Null0");
        let second = world::with(|world| world.spawn(console.machine, &sim::process::target(), 1, None));
        world::with(|world| world.resume());
        assert_eq!(scheduler::run(), scheduler::End::Failed);
        let failure = world::with(|world| world.failure().cloned()).expect("the second one's");
        contains(&failure.what, &["in use by another", "--state"]);
        assert!(!world::with(|world| world.is_ready(second)));
    });
}

#[test]
fn what_the_target_tells_of_itself() {
    in_each_world(|console| {
        null(&console, "Null0");
        let subsystems = console.call("framework_get_subsystems", json!({}));
        assert_eq!(
            subsystems,
            json!([
                { "subsystem": "bdev", "depends_on": [] },
                { "subsystem": "vhost_blk", "depends_on": ["bdev"] },
                { "subsystem": "nvmf", "depends_on": ["bdev"] },
            ])
        );
        let config = console.call("framework_get_config", json!({ "name": "bdev", "with_batches": false }));
        assert_eq!(config[0]["method"], "bdev_null_create");
        assert_eq!(config[0]["params"]["num_blocks"], 4096);
        contains(
            &console.refused("framework_get_config", json!({ "name": "x" }), INVALID_PARAMS),
            &["'x' not found"],
        );
        let methods = console.call("rpc_get_methods", json!({ "current": false, "include_aliases": false }));
        assert!(methods.as_array().unwrap().contains(&json!("bdev_aio_rescan")));
        assert_eq!(console.call("spdk_get_version", json!({}))["fields"]["minor"], 1);
        let reactors = console.call("framework_get_reactors", json!({}));
        assert_eq!(reactors["tick_rate"], SECOND_NS);
        assert_eq!(reactors["reactors"].as_array().unwrap().len(), 2);
        let iostat = console.call("bdev_get_iostat", json!({ "name": "Null0" }));
        assert_eq!(iostat["bdevs"][0]["num_read_ops"], 0);
        let channels = console.call("bdev_get_iostat", json!({ "name": "Null0", "per_channel": true }));
        assert_eq!((&channels["name"], &channels["channels"]), (&json!("Null0"), &json!([])));
        console.refused("bdev_get_iostat", json!({ "per_channel": true }), INVALID);
        console.refused("bdev_get_iostat", json!({ "names": ["Null0", "x"] }), NO_SUCH_DEVICE);
        console.refused("iscsi_create_portal_group", json!({}), -32601);
    });
}
