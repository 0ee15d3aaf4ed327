//! The programs under test, as cargo builds them with the profile of this test.
//!
//! `cargo test` does not promise to build the binaries of other packages, and one left from an earlier build may be
//! stale: so they are built once a test process (nothing to do costs a fraction of a second).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder that `reprise` and `reprise-sim` are in.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let test = std::env::current_exe().expect("this program's path");
        // A test is TARGET/PROFILE/deps/NAME; a benchmark or an example may lie in another folder of PROFILE.
        let profile = test.parent().and_then(Path::parent).expect("TARGET/PROFILE/deps");
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--bins", "--package", "hw", "--package", "sim", "--target-dir"]);
        build.arg(profile.parent().expect("TARGET/PROFILE"));
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().expect("cargo runs");
        assert!(status.success(), "the programs under test do not build: {status}");
        profile.to_path_buf()
    })
}

/// The target: `REPRISE_BIN`, or the one of this build.
pub fn reprise() -> PathBuf {
    std::env::var_os("REPRISE_BIN").map_or_else(|| folder().join("reprise"), PathBuf::from)
}

/// The simulator of this build.
pub fn reprise_sim() -> PathBuf {
    folder().join("reprise-sim")
}
