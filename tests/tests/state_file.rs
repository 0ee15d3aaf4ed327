//! The state file of a real target when something is wrong with it: torn, of a newer release, and without room for the
//! next one. Each has its precise answer; a file that is not understood is left as it is, a change that could not be
//! kept is refused, and what was acknowledged is in force after the next start.
//!
//! The simulator asks the same of every moment (`state.rs`); here it is the binary, its exit code and real file
//! systems.

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use tests::target::Target;

/// What a target with its disks says of them.
fn acknowledged(target: &Target) -> Value {
    json!([
        target.call("framework_get_config", json!({"name": "bdev"})),
        target.call("framework_get_config", json!({"name": "vhost_blk"})),
    ])
}

/// A target that was told to have two disks and a controller.
fn with_disks() -> Target {
    let target = Target::start();
    for disk in ["disk0", "disk1"] {
        target.call("bdev_null_create", json!({"name": disk, "num_blocks": 64, "block_size": 512}));
    }
    target.serve("disk0", "vhost.0");
    target
}

/// Runs `serve` on the state of a target that does not run; it must not begin. Its exit code, and what it says.
fn refused(target: &Target) -> (Option<i32>, String) {
    let option = |name: &str, path: &Path| [name.to_owned(), path.to_str().expect("a plain path").to_owned()];
    let output = Command::new(tests::binaries::reprise())
        .arg("serve")
        .args(option("--rpc-socket", &target.rpc_socket()))
        .args(option("--vhost-dir", &target.path("vhost")))
        .args(option("--state", &target.path("state")))
        .stdin(Stdio::null())
        .output()
        .expect("the target runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Each of these contents is refused with a sentence that has `expected` in it, and is still there afterwards; with
/// what was there before, everything is back.
fn is_refused_and_kept(contents: impl Fn(&[u8]) -> Vec<(Vec<u8>, &'static str)>) {
    let mut target = with_disks();
    let before = acknowledged(&target);
    target.kill9();
    let file = target.path("state/config.json");
    let good = std::fs::read(&file).expect("the state file");
    for (bad, expected) in contents(&good) {
        std::fs::write(&file, &bad).expect("another content");
        let (code, said) = refused(&target);
        let name = file.to_str().expect("a plain path");
        // Not 2: with the file mended the same command line will do, and the unit goes on trying.
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(name) && said.contains(expected), "{said}");
        assert!(std::fs::read(&file).expect("the state file") == bad, "what was not understood was changed");
    }
    std::fs::write(&file, &good).expect("the good content");
    target.restart();
    assert_eq!(acknowledged(&target), before);
}

#[test]
fn a_torn_state_file_is_refused_and_left_as_it_is() {
    is_refused_and_kept(|good| {
        let torn = |len: usize| good[..len].to_vec();
        let mut zeroed = good.to_vec();
        zeroed[good.len() / 2..].fill(0);
        [torn(0), torn(1), torn(good.len() / 2), torn(good.len() - 3), zeroed, b"[]".to_vec()]
            .into_iter()
            .map(|bad| (bad, "is damaged: "))
            .collect()
    });
}

#[test]
fn a_newer_release_s_state_file_is_refused_and_left_as_it_is() {
    is_refused_and_kept(|good| {
        let mut newer: Value = serde_json::from_slice(good).expect("JSON");
        let version = newer["version"].as_u64().expect("a version");
        newer["version"] = json!(version + 1);
        newer["a field of the future"] = json!({"subsystems": 1});
        vec![(newer.to_string().into_bytes(), "start the newer release that wrote it")]
    });
}

/// A mounted file system, until the value goes.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Lazily: after a failure a target may still be in there.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// Bytes of the small file system: two lives' flight recorders, and some room.
const SMALL: &str = "size=16m";

#[test]
#[ignore = "needs root, to mount a small file system; run: tests/root/run"]
fn a_full_state_directory_refuses_changes_and_loses_none() {
    let mut target = Target::start();
    assert!(target.stop().success());
    let state = target.path("state");
    let mount = ["-t", "tmpfs", "-o", SMALL, "none", state.to_str().expect("a plain path")];
    assert!(Command::new("mount").args(mount).status().expect("mount").success());
    let _mounted = Mounted(&state);
    let filler = state.join("filler");
    let fill = || {
        let mut source = std::fs::File::open("/dev/zero").expect("/dev/zero");
        let full = std::fs::File::create(&filler).and_then(|mut file| std::io::copy(&mut source, &mut file));
        assert_eq!(full.expect_err("it is full").kind(), std::io::ErrorKind::StorageFull);
    };
    target.restart();
    let disk = |name: &str| json!({"name": name, "num_blocks": 64, "block_size": 512});
    target.call("bdev_null_create", disk("disk0"));
    let kept = acknowledged(&target);

    // Full: refused, not in force, and the room that an attempt had begun to take is given back.
    fill();
    for _ in 0..3 {
        for (method, parameters) in [
            ("bdev_null_create", disk("disk1")),
            ("bdev_null_delete", json!({"name": "disk0"})),
            ("vhost_create_blk_controller", json!({"ctrlr": "vhost.0", "dev_name": "disk0"})),
        ] {
            let error = target.rpc(method, parameters).expect_err("there is no room to keep it").to_string();
            assert!(error.contains("-28") && error.contains("No space left on device"), "{method}: {error}");
        }
        assert_eq!(acknowledged(&target), kept);
        assert!(!target.path("vhost").join("vhost.0").exists() && !state.join("config.json.next").exists());
    }

    // A target that dies is back on the full disk, with everything, though there is no room for another recorder.
    for _ in 0..3 {
        target.kill9();
        target.restart();
        assert_eq!(acknowledged(&target), kept);
        fill();
    }
    assert!(state.join("recorder-0").exists(), "the life that last had room for a recording has left none");

    // With room again, changes are kept again.
    std::fs::remove_file(&filler).expect("the filler goes");
    target.call("bdev_null_create", disk("disk1"));
    let changed = acknowledged(&target);
    assert_ne!(changed, kept);
    target.kill9();
    target.restart();
    assert_eq!(acknowledged(&target), changed);
    assert!(target.stop().success());
}
