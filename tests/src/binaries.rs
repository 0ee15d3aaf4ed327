//! The programs under test, as cargo builds them with the profile of this test.
//!
//! `cargo test` does not promise to build the binaries of other packages, and one left from an earlier build may be
//! stale: so they are built once a test process (nothing to do costs a fraction of a second).

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder that `reprise` and `reprise-sim` are in.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let status = cargo(&["build", "--quiet", "--bins", "--package", "hw", "--package", "sim"])
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the programs under test do not build: {status}");
        profile()
    })
}

/// TARGET/PROFILE of this test.
fn profile() -> PathBuf {
    let test = std::env::current_exe().expect("this program's path");
    // A test is TARGET/PROFILE/deps/NAME; a benchmark or an example may lie in another folder of PROFILE.
    test.parent().and_then(Path::parent).expect("TARGET/PROFILE/deps").to_path_buf()
}

/// Cargo, with the folder and the profile of this test.
fn cargo(arguments: &[&str]) -> Command {
    let profile = profile();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).arg("--target-dir").arg(profile.parent().expect("TARGET/PROFILE"));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    cargo
}

/// A test of this package as a program, for another machine.
pub fn test_program(name: &str) -> PathBuf {
    let arguments = ["test", "--no-run", "--message-format=json", "--package", "tests", "--test", name];
    let built = cargo(&arguments).stderr(std::process::Stdio::inherit()).output().expect("cargo runs");
    assert!(built.status.success(), "the test {name} does not build: {}", built.status);
    let messages = String::from_utf8_lossy(&built.stdout).into_owned();
    let path =
        messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
            let is_it = message["target"]["name"] == name;
            message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
        });
    path.expect("cargo says where it is")
}

/// The target: `REPRISE_BIN`, or the one of this build.
pub fn reprise() -> PathBuf {
    std::env::var_os("REPRISE_BIN").map_or_else(|| folder().join("reprise"), PathBuf::from)
}

/// The simulator of this build.
pub fn reprise_sim() -> PathBuf {
    folder().join("reprise-sim")
}
