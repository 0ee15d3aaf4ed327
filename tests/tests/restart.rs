//! Stop, kill and start again: everything acknowledged is back without a call, no socket listens before it can answer, and a
//! state directory has one owner.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::frontend::{Frontend, Options, REPLY_WAIT};
use tests::client::load::{Load, LoadOptions, STATUS_OK, kind};
use tests::client::raw;
use tests::client::request::Requester;
use tests::image::Image;
use tests::message::request;
use tests::target::{RpcError, Target};

/// Bytes of the disks.
const DISK: u64 = 8 << 20;
const WAIT: Duration = Duration::from_secs(20);

/// What a target tells of itself that must not change over a restart.
fn told(target: &Target) -> (Value, Value, Value) {
    let mut bdevs = target.call("bdev_get_bdevs", json!({}));
    let mut controllers = target.call("vhost_get_controllers", json!({}));
    // Who is connected just now may change.
    for controller in controllers.as_array_mut().into_iter().flatten() {
        controller["sessions"].take();
    }
    let by_name = |list: &mut Value, key: &str| {
        let entries = list.as_array_mut().expect("a list");
        entries.sort_by_key(|entry| entry[key].as_str().map(str::to_owned));
    };
    by_name(&mut bdevs, "name");
    by_name(&mut controllers, "ctrlr");
    (bdevs, controllers, target.call("framework_get_config", json!({"name": "bdev"})))
}

fn populate(target: &Target, images: &[Image; 2]) {
    target.call("bdev_null_create", json!({"name": "null", "num_blocks": 2048, "block_size": 4096}));
    target.call("bdev_malloc_create", json!({"name": "malloc", "num_blocks": DISK / 512, "block_size": 512}));
    target.call("bdev_uring_create", json!({"name": "uring", "filename": images[0].name()}));
    target.call("bdev_aio_create", json!({"name": "aio", "filename": images[1].name(), "readonly": true}));
    target.call("bdev_null_create", json!({"name": "gone", "num_blocks": 8, "block_size": 512}));
    target.call("bdev_null_delete", json!({"name": "gone"}));
    target.call("bdev_null_resize", json!({"name": "null", "new_size": 16}));
    for bdev in ["null", "malloc", "uring"] {
        target.serve(bdev, &format!("vhost.{bdev}"));
    }
    let read_only = json!({"ctrlr": "vhost.aio", "dev_name": "aio", "readonly": true});
    target.call("vhost_create_blk_controller", read_only);
}

/// The other end of the fence: a lock that a dead process left is waited for, one that a live process holds is not.
#[test]
fn a_disk_that_another_live_process_uses_is_refused_after_a_second_and_said_which() {
    let image = Image::in_memory(DISK);
    let holder = std::fs::File::open(image.name()).expect("the disk");
    rustix::fs::flock(&holder, rustix::fs::FlockOperation::LockExclusive).expect("nobody else has it");
    let target = Target::start();
    for method in ["bdev_uring_create", "bdev_aio_create"] {
        let parameters = json!({"name": "held", "filename": image.name(), "block_size": 512});
        let asked = Instant::now();
        let refused = target.rpc(method, parameters);
        let waited = asked.elapsed();
        assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&waited), "{waited:?}");
        let Err(RpcError::Refused { code: -16, message }) = refused else { panic!("{refused:?}") };
        let expected = format!("{} has been held by another process for 1 s", image.name());
        assert!(message.contains(&expected), "{message}");
    }
    rustix::fs::flock(&holder, rustix::fs::FlockOperation::Unlock).expect("it was held");
    target.call("bdev_uring_create", json!({"name": "held", "filename": image.name()}));
}

#[test]
fn everything_acknowledged_is_back_after_a_kill_and_after_a_stop() {
    let images = [Image::in_memory(DISK), Image::in_memory(DISK)];
    let mut target = Target::start();
    populate(&target, &images);
    let before = told(&target);
    let data = |target: &Target, write: bool| {
        for bdev in ["malloc", "uring"] {
            let socket = target.path("vhost").join(format!("vhost.{bdev}"));
            let mut frontend =
                Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
            let requester = Requester::new(&mut frontend, 1, 4096).expect("buffers");
            if write {
                let answer = requester.send(&mut frontend, 0, kind::OUT, 8, &[0x77; 4096]).expect("a write");
                assert_eq!(answer.status, STATUS_OK);
            }
            let answer = requester.fetch(&mut frontend, 0, kind::IN, 8, 4096).expect("a read");
            assert_eq!(answer.data, [0x77; 4096], "{bdev}");
        }
    };
    data(&target, true);
    for round in 0..5 {
        target.kill9();
        target.restart();
        assert_eq!(told(&target), before, "after kill {round}");
        data(&target, false);
        let status = target.stop();
        assert!(status.success(), "SIGTERM ends with {status}");
        let sockets = std::fs::read_dir(target.path("vhost")).expect("the vhost directory").count();
        assert_eq!(sockets, 0, "an orderly stop leaves sockets behind");
        target.restart();
        assert_eq!(told(&target), before, "after stop {round}");
        data(&target, false);
    }
}

/// A change that was acknowledged a moment before the kill is there; one that was not is there whole or not at all.
#[test]
fn changes_survive_a_kill_the_moment_they_are_acknowledged() {
    let mut target = Target::start();
    for round in 0..10 {
        let name = format!("disk{round}");
        target.call("bdev_malloc_create", json!({"name": name, "num_blocks": 64, "block_size": 512}));
        let socket = target.serve(&name, &format!("vhost.{round}"));
        // One more change is under way when the kill comes.
        let rpc_socket = target.rpc_socket();
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "bdev_null_create",
            "params": {"name": format!("half{round}"), "num_blocks": 8, "block_size": 512}});
        let mut stream = UnixStream::connect(rpc_socket).expect("the RPC socket");
        std::io::Write::write_all(&mut stream, request.to_string().as_bytes()).expect("sending");
        target.kill9();
        target.restart();
        let (bdevs, controllers, _) = told(&target);
        let count = |list: &Value, key: &str, name: &str| {
            list.as_array().expect("a list").iter().filter(|entry| entry[key] == name).count()
        };
        for made in 0..=round {
            assert_eq!(count(&bdevs, "name", &format!("disk{made}")), 1, "after kill {round}");
            assert_eq!(count(&controllers, "ctrlr", &format!("vhost.{made}")), 1, "after kill {round}");
        }
        assert!(count(&bdevs, "name", &format!("half{round}")) <= 1);
        Frontend::connect_and_start(&socket, Options::default()).expect("the controller serves again");
    }
}

/// A front-end that connects the moment there is a socket is answered: none listens before it can.
#[test]
fn no_socket_listens_before_it_can_answer() {
    let mut target = Target::start();
    target.call("bdev_malloc_create", json!({"name": "disk", "num_blocks": 8192, "block_size": 512}));
    let socket = target.serve("disk", "vhost.0");
    let rpc_socket = target.rpc_socket();
    for round in 0..10 {
        target.kill9();
        let ready = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let ask = scope.spawn(|| {
                while !ready.load(Ordering::Relaxed) {
                    if let Ok(stream) = UnixStream::connect(&socket) {
                        stream.set_read_timeout(Some(REPLY_WAIT)).expect("a timeout");
                        raw::ask(&stream, request::GET_FEATURES, &[]).unwrap_or_else(|error| {
                            panic!("accepted and not answered in round {round}: {error}")
                        });
                        return true;
                    }
                }
                false
            });
            let version = scope.spawn(|| {
                loop {
                    let Ok(mut stream) = UnixStream::connect(&rpc_socket) else { continue };
                    stream.set_read_timeout(Some(REPLY_WAIT)).expect("a timeout");
                    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "vhost_get_controllers"});
                    std::io::Write::write_all(&mut stream, request.to_string().as_bytes()).expect("sending");
                    let answer = serde_json::Deserializer::from_reader(&stream).into_iter::<Value>().next();
                    let answer = answer.expect("accepted and not answered").expect("JSON");
                    // Whoever can call can also see everything that was acknowledged.
                    assert_eq!(answer["result"][0]["ctrlr"], "vhost.0", "{answer}");
                    return;
                }
            });
            target.restart();
            ready.store(!socket.exists(), Ordering::Relaxed);
            version.join().expect("the RPC client");
            assert!(ask.join().expect("the front-end"), "the controller's socket is not there");
        });
    }
}

#[test]
fn a_stop_under_load_finishes_every_request_and_the_next_start_goes_on() {
    let image = Image::in_memory(DISK);
    let mut target = Target::start();
    target.call("bdev_uring_create", json!({"name": "disk", "filename": image.name()}));
    let socket = target.serve("disk", "vhost.0");
    let mut frontend = Frontend::connect_and_start(&socket, Options::default()).expect("a connection");
    let load = LoadOptions { sectors: DISK / 512, ..LoadOptions::default() };
    let mut load = Load::new(&mut frontend, load).expect("a load");
    for round in 0..5 {
        load.run(&mut frontend, 300, WAIT).unwrap_or_else(|error| panic!("{error}"));
        load.submit(&mut frontend).expect("requests under way");
        let status = target.stop();
        assert!(status.success(), "SIGTERM under load ends with {status} in round {round}");
        load.reap(&mut frontend).unwrap_or_else(|error| panic!("{error}"));
        target.restart();
        frontend.reconnect(WAIT).unwrap_or_else(|error| panic!("{error}"));
    }
    load.drain(&mut frontend, WAIT).unwrap_or_else(|error| panic!("{error}"));
    load.verify_all(&mut frontend, WAIT).unwrap_or_else(|error| panic!("{error}"));
}

/// Runs `reprise` to its end and returns whether it succeeded, with what it said.
fn run(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(tests::binaries::reprise())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_second_target_on_the_same_state_is_refused() {
    let target = Target::start();
    let directory = tempfile::tempdir().expect("a directory");
    let text = |name: &str| directory.path().join(name).to_str().expect("a path").to_owned();
    let state = target.path("state");
    let state = state.to_str().expect("a path");
    std::fs::create_dir(text("vhost")).expect("a directory");
    let (ok, said) =
        run(&["serve", "--rpc-socket", &text("rpc"), "--vhost-dir", &text("vhost"), "--state", state]);
    assert!(!ok && said.contains(state), "{said}");
    let in_use = ["in use", "another", "already", "locked"].iter().any(|word| said.contains(word));
    assert!(in_use, "the message does not say why: {said}");
    target.call("spdk_get_version", Value::Null);
}

#[test]
fn wrong_arguments_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = |name: &str| directory.path().join(name).to_str().expect("a path").to_owned();
    for name in ["state", "vhost"] {
        std::fs::create_dir(text(name)).expect("a directory");
    }
    std::fs::write(text("file"), "not a socket").expect("a file");
    let (rpc, vhost, state) = (text("rpc"), text("vhost"), text("state"));
    let serve = ["serve", "--rpc-socket", &rpc, "--vhost-dir", &vhost, "--state", &state];
    for (more, named) in [
        (vec!["--cores", "0x0"], "0x0"),
        (vec!["--cores", "many"], "many"),
        (vec!["--cores", "0x80000000000000000000000000000000"], "0x8000"),
        (vec!["--colour"], "--colour"),
    ] {
        let (ok, said) = run(&[&serve[..], &more].concat());
        assert!(!ok && said.contains(named), "{more:?}: {said}");
    }
    let file = text("file");
    for (index, named) in [(2, "file"), (4, "file"), (6, "file")] {
        let mut arguments = serve;
        arguments[index] = &file;
        let (ok, said) = run(&arguments);
        assert!(!ok && said.contains(named), "{arguments:?}: {said}");
    }
    assert_eq!(std::fs::read(text("file")).expect("the file"), b"not a socket", "a file was replaced");
    let (ok, said) = run(&["--version"]);
    assert!(ok && said.contains("reprise"), "{said}");
    let (ok, said) = run(&["serve", "--help"]);
    assert!(
        ok && ["--rpc-socket", "--vhost-dir", "--state", "--cores", "--poll"]
            .iter()
            .all(|flag| said.contains(flag)),
        "{said}"
    );
    let (ok, said) = run(&["rpc", "--rpc-socket", &rpc, "spdk_get_version"]);
    assert!(!ok && said.contains(&rpc), "no target there: {said}");
}

/// A socket that a dead process left behind does not stand in the way; a living process's does.
#[test]
fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let mut target = Target::start();
    target.call("bdev_null_create", json!({"name": "a", "num_blocks": 8, "block_size": 512}));
    target.call("bdev_null_create", json!({"name": "b", "num_blocks": 8, "block_size": 512}));
    let socket = target.serve("a", "vhost.a");
    target.kill9();
    assert!(std::fs::metadata(&socket).expect("left behind").file_type().is_socket());
    target.restart();
    Frontend::connect_and_start(&socket, Options::default()).expect("the stale socket was replaced");

    let taken = target.path("vhost").join("vhost.b");
    let _living = std::os::unix::net::UnixListener::bind(&taken).expect("somebody else's socket");
    let answer = target.rpc("vhost_create_blk_controller", json!({"ctrlr": "vhost.b", "dev_name": "b"}));
    let message = answer.expect_err("the path is taken").to_string();
    assert!(message.contains("vhost.b"), "{message}");
}
