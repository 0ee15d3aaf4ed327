//! SPDK's own command line client from PyPI, in an old and a new version, against our RPC socket: its words, its defaults,
//! and what it makes of our answers.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tests::client::blkio::{Blkio, Options as BlkioOptions};
use tests::client::model::Model;
use tests::image::Image;
use tests::target::Target;

/// Bytes of the disks.
const DISK: u64 = 4 << 20;

/// `spdk-rpc` of one version, pointed at a target.
struct Client<'a> {
    program: PathBuf,
    target: &'a Target,
}

impl Client<'_> {
    /// Runs one command. Ok is what it printed, Err what it complained of.
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.program)
            .arg("-s")
            .arg(self.target.rpc_socket())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| {
                panic!("{} (tests/spdk-rpc/run installs it): {error}", self.program.display())
            });
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stdout) + &text(output.stderr))
        }
    }

    /// A command that must succeed.
    fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).unwrap_or_else(|error| panic!("spdk-rpc {arguments:?}: {error}"))
    }

    /// A command that must succeed and print JSON.
    fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.ok(arguments);
        serde_json::from_str(&printed)
            .unwrap_or_else(|error| panic!("spdk-rpc {arguments:?}: {error}: {printed}"))
    }
}

/// A day in the life of an operator, in the client's own words.
fn drives_the_target(version: &str) {
    let folder = std::env::var_os("REPRISE_SPDK_RPC").expect("REPRISE_SPDK_RPC is set by tests/spdk-rpc/run");
    let program = PathBuf::from(folder).join(version).join("bin/spdk-rpc");
    let images = [Image::in_memory(DISK), Image::in_memory(DISK)];
    let mut target = Target::start();
    {
        let client = Client { program: program.clone(), target: &target };
        assert!(client.json(&["spdk_get_version"])["version"].is_string());
        let methods = client.json(&["rpc_get_methods"]);
        assert!(methods.as_array().expect("a list").contains(&json!("vhost_create_blk_controller")));
        assert_eq!(client.ok(&["bdev_malloc_create", "-b", "Malloc0", "4", "512"]).trim(), "Malloc0");
        assert_eq!(
            client.ok(&["bdev_malloc_create", "4", "4096"]).trim(),
            "Malloc1",
            "SPDK's next free name"
        );
        assert_eq!(client.ok(&["bdev_null_create", "Null0", "4", "512"]).trim(), "Null0");
        assert_eq!(client.ok(&["bdev_uring_create", images[0].name(), "Uring0", "512"]).trim(), "Uring0");
        assert_eq!(client.ok(&["bdev_aio_create", images[1].name(), "Aio0", "512"]).trim(), "Aio0");
        client.ok(&["vhost_create_blk_controller", "vhost.0", "Malloc0"]);
        client.ok(&["vhost_create_blk_controller", "--cpumask", "0x1", "vhost.1", "Uring0"]);
        client.ok(&["vhost_create_blk_controller", "-r", "vhost.2", "Aio0"]);
        client.ok(&["bdev_null_resize", "Null0", "8"]);
        assert_eq!(client.json(&["bdev_get_bdevs"]).as_array().map(Vec::len), Some(5));
        assert_eq!(client.json(&["bdev_get_bdevs", "-b", "Null0"])[0]["num_blocks"], (8 << 20) / 512);
        images[0].resize(2 * DISK);
        client.ok(&["bdev_uring_rescan", "Uring0"]);
        assert_eq!(client.json(&["bdev_get_bdevs", "-b", "Uring0"])[0]["num_blocks"], 2 * DISK / 512);
        images[1].resize(2 * DISK);
        client.ok(&["bdev_aio_rescan", "Aio0"]);
        assert_eq!(client.json(&["bdev_get_bdevs", "-b", "Aio0"])[0]["num_blocks"], 2 * DISK / 512);
        assert_eq!(client.json(&["vhost_get_controllers"]).as_array().map(Vec::len), Some(3));

        let mut disk = Blkio::open(&target.path("vhost").join("vhost.0"), BlkioOptions::default())
            .expect("a connection");
        let mut model = Model::zeroed(DISK / 512);
        disk.verified_load(&mut model, 5, 500).unwrap_or_else(|error| panic!("{error}"));
        // The newer client asks for several bdevs at once.
        let one = if version == "25.5" { "-b" } else { "--names" };
        let counted = client.json(&["bdev_get_iostat", one, "Malloc0"]);
        assert!(counted["bdevs"][0]["num_read_ops"].as_u64() > Some(0), "{counted}");
        assert!(client.json(&["bdev_get_iostat"])["bdevs"].as_array().map(Vec::len) == Some(5));
        assert!(client.json(&["framework_get_reactors"])["reactors"][0]["busy"].is_u64());

        let complaint = client.run(&["bdev_malloc_delete", "Malloc0"]).expect_err("a bdev in use");
        assert!(complaint.contains("vhost.0"), "{complaint}");
        let complaint = client.run(&["bdev_null_delete", "nobody"]).expect_err("no such bdev");
        assert!(complaint.contains("-19"), "{complaint}");
        let complaint = client.run(&["iscsi_get_portal_groups"]).expect_err("not ours");
        assert!(complaint.contains("-32601"), "{complaint}");
    }

    let saved = Client { program: program.clone(), target: &target }.json(&["save_config"]);
    let methods: Vec<&str> = saved["subsystems"]
        .as_array()
        .expect("subsystems")
        .iter()
        .flat_map(|subsystem| subsystem["config"].as_array().into_iter().flatten())
        .map(|call| call["method"].as_str().expect("a method"))
        .collect();
    assert_eq!(
        methods.iter().filter(|method| **method == "vhost_create_blk_controller").count(),
        3,
        "{methods:?}"
    );
    target.kill9();
    target.restart();
    let client = Client { program: program.clone(), target: &target };
    assert_eq!(client.json(&["save_config"]), saved, "the same after a kill");
    for controller in ["vhost.0", "vhost.1", "vhost.2"] {
        client.ok(&["vhost_delete_controller", controller]);
    }
    client.ok(&["bdev_malloc_delete", "Malloc0"]);
    client.ok(&["bdev_malloc_delete", "Malloc1"]);
    client.ok(&["bdev_null_delete", "Null0"]);
    client.ok(&["bdev_uring_delete", "Uring0"]);
    client.ok(&["bdev_aio_delete", "Aio0"]);
    assert_eq!(client.json(&["bdev_get_bdevs"]), json!([]));

    // load_config takes what save_config gave, on a target that has nothing.
    let other = Target::start();
    let file = other.path("saved.json");
    std::fs::write(&file, saved.to_string()).expect("a file");
    drop(target);
    let client = Client { program, target: &other };
    client.ok(&["load_config", "-j", file.to_str().expect("a path")]);
    assert_eq!(client.json(&["save_config"]), saved);
}

#[test]
#[ignore = "needs the package spdk 25.5 of PyPI; run: tests/spdk-rpc/run"]
fn the_old_client_drives_the_target() {
    drives_the_target("25.5");
}

#[test]
#[ignore = "needs the package spdk 26.9 of PyPI; run: tests/spdk-rpc/run"]
fn the_new_client_drives_the_target() {
    drives_the_target("26.9");
}
