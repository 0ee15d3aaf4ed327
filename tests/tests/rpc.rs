//! Every method of the JSON-RPC over its real socket: what it does, what it answers, and how it refuses.
//!
//! The shapes are SPDK's; whether SPDK's own client is content with them is `spdk_rpc.rs`'s business.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use stack::control::server::CONNECTIONS_MAX;
use tests::client::frontend::{Frontend, Options};
use tests::client::load::kind;
use tests::client::request::Requester;
use tests::image::Image;
use tests::target::{RpcError, Target, processor_time};

/// Bytes of the disks.
const DISK: u64 = 8 << 20;
const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const ENOENT: i64 = -2;
const EBUSY: i64 = -16;
const EEXIST: i64 = -17;
const ENODEV: i64 = -19;

/// The code and the message of a call that must be refused.
fn refused(target: &Target, method: &str, params: Value) -> (i64, String) {
    match target.rpc(method, params.clone()) {
        Err(RpcError::Refused { code, message }) => (code, message),
        other => panic!("{method} {params} should have been refused: {other:?}"),
    }
}

/// Sends bytes and returns what comes back within a moment, as far as it is JSON.
fn raw(target: &Target, bytes: &[u8]) -> Vec<Value> {
    let mut stream = UnixStream::connect(target.rpc_socket()).expect("the RPC socket");
    stream.write_all(bytes).expect("sending");
    stream.shutdown(std::net::Shutdown::Write).expect("the end of what is sent");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let mut text = Vec::new();
    // A reset connection has given all that it will.
    let _ = stream.read_to_end(&mut text);
    serde_json::Deserializer::from_slice(&text).into_iter().map_while(Result::ok).collect()
}

fn find<'a>(list: &'a Value, key: &str, name: &str) -> &'a Value {
    let entries = list.as_array().unwrap_or_else(|| panic!("not a list: {list}"));
    entries.iter().find(|entry| entry[key] == name).unwrap_or_else(|| panic!("{name} is not in {list}"))
}

#[test]
fn every_method_that_is_listed_is_there_and_the_promised_ones_are_listed() {
    let target = Target::start();
    let methods = target.call("rpc_get_methods", json!({"current": false, "include_aliases": false}));
    let methods: Vec<&str> =
        methods.as_array().expect("a list").iter().map(|name| name.as_str().expect("a name")).collect();
    for promised in [
        "bdev_null_create",
        "bdev_malloc_create",
        "bdev_uring_create",
        "bdev_aio_create",
        "bdev_null_delete",
        "bdev_malloc_delete",
        "bdev_uring_delete",
        "bdev_aio_delete",
        "bdev_get_bdevs",
        "bdev_get_iostat",
        "bdev_null_resize",
        "bdev_uring_rescan",
        "bdev_aio_rescan",
        "vhost_create_blk_controller",
        "vhost_get_controllers",
        "vhost_delete_controller",
        "framework_get_reactors",
        "framework_get_subsystems",
        "framework_get_config",
        "rpc_get_methods",
        "spdk_get_version",
    ] {
        assert!(methods.contains(&promised), "{promised} is not in {methods:?}");
    }
    for method in methods {
        if let Err(RpcError::Refused { code, message }) = target.rpc(method, Value::Null) {
            assert_eq!(code, INVALID_PARAMS, "{method} without parameters: {message}");
        }
    }
    let version = target.call("spdk_get_version", Value::Null);
    assert!(version["version"].is_string() && version["fields"]["major"].is_u64(), "{version}");
}

#[test]
fn bdevs_of_every_kind_are_made_shown_counted_and_deleted() {
    let image = [Image::in_memory(DISK), Image::in_memory(DISK)];
    let target = Target::start();
    let blocks = json!({"num_blocks": DISK / 4096, "block_size": 4096});
    let with = |base: &Value, more: Value| {
        let mut params = base.clone();
        params.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        params
    };
    assert_eq!(target.call("bdev_null_create", with(&blocks, json!({"name": "null"}))), "null");
    let uuid = "3f3ea9ea-5b7b-4d3e-9c3e-0d8d0c3f6a11";
    let malloc = with(&blocks, json!({"name": "malloc", "uuid": uuid}));
    assert_eq!(target.call("bdev_malloc_create", malloc), "malloc");
    let unnamed = target.call("bdev_malloc_create", blocks.clone());
    let uring = json!({"name": "uring", "filename": image[0].name(), "block_size": 512});
    assert_eq!(target.call("bdev_uring_create", uring), "uring");
    let aio = json!({"name": "aio", "filename": image[1].name(), "block_size": 4096, "readonly": false,
        "fallocate": false, "nowait": false});
    assert_eq!(target.call("bdev_aio_create", aio), "aio");

    let all = target.call("bdev_get_bdevs", json!({}));
    assert_eq!(all.as_array().expect("a list").len(), 5);
    for name in ["null", "malloc", "uring", "aio", unnamed.as_str().expect("a name")] {
        let one = target.call("bdev_get_bdevs", json!({"name": name}));
        assert_eq!(one[0], *find(&all, "name", name), "alone and among all");
        let bytes =
            one[0]["num_blocks"].as_u64().expect("blocks") * one[0]["block_size"].as_u64().expect("bytes");
        assert_eq!(bytes, DISK, "{name}");
        assert_eq!(one[0]["claimed"], false, "{name}");
    }
    assert_eq!(find(&all, "name", "malloc")["uuid"], uuid);

    let socket = target.serve("uring", "vhost.0");
    let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
    let requester = Requester::new(&mut frontend, 1, 8192).expect("buffers");
    for sector in [0, 8, 16] {
        requester.send(&mut frontend, 0, kind::OUT, sector, &[1; 8192]).expect("a write");
    }
    requester.fetch(&mut frontend, 0, kind::IN, 0, 4096).expect("a read");
    let counted = target.call("bdev_get_iostat", json!({"name": "uring"}));
    let counted = &counted["bdevs"][0];
    assert_eq!(counted["num_write_ops"], 3, "{counted}");
    assert_eq!(counted["bytes_written"], 3 * 8192, "{counted}");
    assert_eq!(counted["num_read_ops"], 1, "{counted}");
    assert_eq!(counted["bytes_read"], 4096, "{counted}");
    assert!(counted["write_latency_ticks"].as_u64() > Some(0), "{counted}");

    let (code, message) = refused(&target, "bdev_uring_delete", json!({"name": "uring"}));
    assert_eq!(code, EBUSY, "{message}");
    assert!(message.contains("vhost.0"), "the message names who has it: {message}");
    drop(frontend);
    target.call("vhost_delete_controller", json!({"ctrlr": "vhost.0"}));
    assert!(!socket.exists(), "the socket of a deleted controller is still there");
    let (code, message) = refused(&target, "bdev_null_delete", json!({"name": "malloc"}));
    assert_eq!(code, ENODEV, "a malloc bdev by the null method: {message}");
    for (kind, name) in [("null", "null"), ("malloc", "malloc"), ("uring", "uring"), ("aio", "aio")] {
        assert_eq!(target.call(&format!("bdev_{kind}_delete"), json!({"name": name})), true);
    }
    assert_eq!(target.call("bdev_get_bdevs", json!({})).as_array().expect("a list").len(), 1);
}

#[test]
fn mistakes_are_answered_precisely_and_change_nothing() {
    let image = Image::in_memory(DISK);
    let small = Image::in_memory(100);
    let target = Target::start();
    target.call("bdev_null_create", json!({"name": "disk", "num_blocks": 8, "block_size": 512}));
    target.call("bdev_uring_create", json!({"name": "uring", "filename": image.name()}));
    target.serve("disk", "vhost.0");
    let before = (
        target.call("framework_get_config", json!({"name": "bdev"})),
        target.call("vhost_get_controllers", json!({})),
    );
    // SPDK's vhost methods answer every failure with INVALID_PARAMS and the errno's text; its bdev methods with the errno.
    for (method, params, expected, words) in [
        ("bdev_daos_create", json!({}), METHOD_NOT_FOUND, "bdev_daos_create"),
        ("bdev_null_create", json!({"num_blocks": 8, "block_size": 512}), INVALID_PARAMS, "name"),
        (
            "bdev_null_create",
            json!({"name": "x", "num_blocks": "8", "block_size": 512}),
            INVALID_PARAMS,
            "num_blocks",
        ),
        (
            "bdev_null_create",
            json!({"name": "x", "num_blocks": 8, "block_size": 500}),
            INVALID_PARAMS,
            "block_size",
        ),
        (
            "bdev_null_create",
            json!({"name": "x", "num_blocks": 8, "block_size": 512, "colour": 3}),
            INVALID_PARAMS,
            "colour",
        ),
        ("bdev_null_create", json!({"name": "disk", "num_blocks": 8, "block_size": 512}), EEXIST, "disk"),
        ("bdev_uring_create", json!({"name": "x", "filename": "/nowhere/disk"}), ENOENT, "/nowhere/disk"),
        ("bdev_uring_create", json!({"name": "x", "filename": image.name()}), EBUSY, image.name()),
        ("bdev_aio_create", json!({"name": "x", "filename": image.name()}), EBUSY, image.name()),
        ("bdev_null_delete", json!({"name": "nobody"}), ENODEV, "nobody"),
        ("bdev_null_resize", json!({"name": "nobody", "new_size": 1}), ENODEV, "nobody"),
        ("bdev_null_resize", json!({"name": "uring", "new_size": 1}), ENODEV, "uring"),
        ("bdev_get_bdevs", json!({"name": "nobody"}), ENODEV, "nobody"),
        ("bdev_get_iostat", json!({"name": "nobody"}), ENODEV, "nobody"),
        (
            "vhost_create_blk_controller",
            json!({"ctrlr": "vhost.0", "dev_name": "uring"}),
            INVALID_PARAMS,
            "vhost.0",
        ),
        (
            "vhost_create_blk_controller",
            json!({"ctrlr": "vhost.1", "dev_name": "nobody"}),
            INVALID_PARAMS,
            "nobody",
        ),
        (
            "vhost_create_blk_controller",
            json!({"ctrlr": "vhost.1", "dev_name": "disk"}),
            INVALID_PARAMS,
            "vhost.0",
        ),
        (
            "vhost_create_blk_controller",
            json!({"ctrlr": "../x", "dev_name": "uring"}),
            INVALID_PARAMS,
            "../x",
        ),
        (
            "vhost_create_blk_controller",
            json!({"ctrlr": "v", "dev_name": "uring", "cpumask": "0x0"}),
            INVALID_PARAMS,
            "0x0",
        ),
        ("vhost_delete_controller", json!({"ctrlr": "nobody"}), INVALID_PARAMS, "nobody"),
        ("vhost_get_controllers", json!({"name": "nobody"}), ENODEV, "nobody"),
        ("framework_get_config", json!({"name": "nobody"}), INVALID_PARAMS, "nobody"),
    ] {
        let (code, message) = refused(&target, method, params.clone());
        assert_eq!(code, expected, "{method} {params}: {message}");
        assert!(message.contains(words), "{method} {params}: {message:?} does not say {words:?}");
    }
    let (code, message) =
        refused(&target, "bdev_uring_create", json!({"name": "x", "filename": small.name()}));
    assert!(code < 0 && message.contains(small.name()), "a disk smaller than one block: {code} {message}");
    let after = (
        target.call("framework_get_config", json!({"name": "bdev"})),
        target.call("vhost_get_controllers", json!({})),
    );
    assert_eq!(before, after, "a refused call changed something");
}

#[test]
fn clients_that_wait_and_leave_cost_nothing_and_keep_nobody_out() {
    let target = Target::start();
    let wait = || {
        let mut stream = UnixStream::connect(target.rpc_socket()).expect("the RPC socket");
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "bdev_get_bdevs",
            "params": {"name": "none", "timeout": 60_000}});
        stream.write_all(request.to_string().as_bytes()).expect("sending");
        stream
    };
    for leave in [false, true] {
        let clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| wait()).collect();
        if leave {
            drop(clients);
        } else {
            std::mem::forget(clients);
        }
        std::thread::sleep(Duration::from_millis(300));
        let before = processor_time(target.process_id());
        std::thread::sleep(Duration::from_millis(500));
        let spent = processor_time(target.process_id()) - before;
        assert!(
            spent < Duration::from_millis(100),
            "{spent:?} of 500 ms, nobody being served (left: {leave})"
        );
        let begun = std::time::Instant::now();
        target.call("spdk_get_version", Value::Null);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[test]
fn the_wire_is_json_rpc() {
    let target = Target::start();
    let code = |bytes: &[u8]| raw(&target, bytes).first().map(|answer| answer["error"]["code"].as_i64());
    assert_eq!(code(b"{\"jsonrpc\": oops}"), Some(Some(PARSE_ERROR)));
    assert_eq!(code(b"\xff\xfe\x00"), Some(Some(PARSE_ERROR)));
    assert_eq!(code(b"{\"jsonrpc\":\"2.0\",\"id\":1}"), Some(Some(INVALID_REQUEST)));
    assert_eq!(code(b"[1]"), Some(Some(INVALID_REQUEST)));
    assert_eq!(code(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"nobody\"}"), Some(Some(METHOD_NOT_FOUND)));
    assert_eq!(code(b"{\"id\":1,\"method\":\"bdev_get_bdevs\",\"params\":7}"), Some(Some(INVALID_REQUEST)));
    let ask = |id: Value| json!({"jsonrpc": "2.0", "id": id, "method": "spdk_get_version"}).to_string();
    // Several requests in one piece, without anything between them, answered in order with their own ids.
    let answers = raw(&target, [ask(json!(7)), ask(json!("eight")), ask(json!(9))].concat().as_bytes());
    let ids: Vec<&Value> = answers.iter().map(|answer| &answer["id"]).collect();
    assert_eq!(ids, [&json!(7), &json!("eight"), &json!(9)]);

    // One request in single bytes.
    let mut stream = UnixStream::connect(target.rpc_socket()).expect("the RPC socket");
    for byte in ask(json!(1)).bytes() {
        stream.write_all(&[byte]).expect("a byte");
        std::thread::sleep(Duration::from_micros(200));
    }
    let answer = serde_json::Deserializer::from_reader(&stream).into_iter::<Value>().next();
    assert_eq!(answer.expect("an answer").expect("JSON")["id"], 1);

    // Endless and hostile requests end their connection; everybody else is answered as before.
    let deep = "[".repeat(200_000);
    raw(&target, deep.as_bytes());
    let mut endless = UnixStream::connect(target.rpc_socket()).expect("the RPC socket");
    endless.set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let piece = vec![b' '; 1 << 20];
    let sent = (0..256).take_while(|_| endless.write_all(&piece).is_ok()).count();
    let endless_name = [b"{\"method\":\"".as_slice(), &vec![b'x'; 64 << 20]].concat();
    let mut stream = UnixStream::connect(target.rpc_socket()).expect("the RPC socket");
    stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let swallowed = stream.write_all(&endless_name).is_ok();
    assert!(!swallowed, "a request of 64 MiB was taken in (and {sent} MiB of spaces)");
    let idle: Vec<UnixStream> =
        (0..20).filter_map(|_| UnixStream::connect(target.rpc_socket()).ok()).collect();
    target.call("spdk_get_version", Value::Null);
    drop(idle);
}

#[test]
fn controllers_and_reactors_tell_what_goes_on() {
    let target = Target::start();
    target.call("bdev_malloc_create", json!({"name": "disk", "num_blocks": 8192, "block_size": 512}));
    let socket = target.serve("disk", "vhost.0");
    let controllers = target.call("vhost_get_controllers", json!({}));
    let entry = find(&controllers, "ctrlr", "vhost.0");
    assert_eq!(entry["socket"], socket.to_str().expect("a path"));
    assert_eq!(entry["backend_specific"]["block"]["bdev"], "disk");
    assert_eq!(entry["sessions"], json!([]));
    assert_eq!(target.call("vhost_get_controllers", json!({"name": "vhost.0"}))[0], *entry);

    let frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
    let entry = &target.call("vhost_get_controllers", json!({"name": "vhost.0"}))[0];
    assert_eq!(entry["sessions"].as_array().map(Vec::len), Some(1), "{entry}");
    drop(frontend);

    let reactors = target.call("framework_get_reactors", Value::Null);
    let rate = reactors["tick_rate"].as_u64().expect("a rate");
    let reactor = &reactors["reactors"][0];
    let lived = reactor["busy"].as_u64().expect("ticks") + reactor["idle"].as_u64().expect("ticks");
    assert!(rate > 0 && lived > 0, "{reactors}");
    std::thread::sleep(Duration::from_millis(500));
    let later = &target.call("framework_get_reactors", Value::Null)["reactors"][0];
    let passed = later["busy"].as_u64().expect("ticks") + later["idle"].as_u64().expect("ticks") - lived;
    let passed = Duration::from_secs_f64(passed as f64 / rate as f64);
    assert!(
        passed >= Duration::from_millis(450) && passed < Duration::from_secs(10),
        "busy and idle grew by {passed:?} in half a second"
    );
}

/// What save_config does, and that its answer can be fed to a new target.
#[test]
fn the_configuration_can_be_carried_to_another_target() {
    let target = Target::start();
    target.call("bdev_null_create", json!({"name": "n", "num_blocks": 2048, "block_size": 512}));
    target.call("bdev_malloc_create", json!({"name": "m", "num_blocks": 2048, "block_size": 512}));
    target.call("bdev_null_resize", json!({"name": "n", "new_size": 4}));
    target.serve("n", "vhost.n");
    target
        .call("vhost_create_blk_controller", json!({"ctrlr": "vhost.m", "dev_name": "m", "readonly": true}));
    let save = |target: &Target| {
        let subsystems = target.call("framework_get_subsystems", Value::Null);
        let names: Vec<String> = subsystems
            .as_array()
            .expect("a list")
            .iter()
            .map(|entry| entry["subsystem"].as_str().expect("a name").to_owned())
            .collect();
        names
            .iter()
            .map(|name| (name.clone(), target.call("framework_get_config", json!({ "name": name }))))
            .collect::<Vec<_>>()
    };
    let saved = save(&target);
    let other = Target::start();
    for (_, calls) in &saved {
        for call in calls.as_array().into_iter().flatten() {
            other.call(call["method"].as_str().expect("a method"), call["params"].clone());
        }
    }
    assert_eq!(save(&other), saved);
}
