//! Programs of this machine inside a guest: with their own libraries and loader, whatever the guest has.

use super::cpio::Archive;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where they are in a guest.
const FOLDER: &str = "programs";

/// Puts programs into an archive. A guest's script runs each by its file's name, as far as the first `-`.
pub(super) fn add(archive: &mut Archive, programs: &[PathBuf]) {
    if programs.is_empty() {
        return;
    }
    archive.directory(FOLDER);
    let mut libraries: Vec<PathBuf> = programs.iter().flat_map(|program| libraries(program)).collect();
    libraries.sort_unstable();
    libraries.dedup();
    for library in &libraries {
        archive.file(&format!("{FOLDER}/{}", name(library)), 0o755, &read(library));
    }
    let loader = libraries.iter().map(|library| name(library)).find(|name| name.starts_with("ld-linux"));
    let loader = loader.expect("a program has a loader");
    for program in programs {
        // Cargo ends a test's name in a hash.
        let name = name(program);
        let name = name.split('-').next().unwrap_or_default();
        archive.file(&format!("{FOLDER}/{name}.program"), 0o755, &read(program));
        let start = format!(
            "#!/bin/sh\nexec /{FOLDER}/{loader} --library-path /{FOLDER} /{FOLDER}/{name}.program \"$@\"\n"
        );
        archive.file(&format!("bin/{name}"), 0o755, start.as_bytes());
    }
}

/// The loader and the libraries of a program.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = Command::new("ldd").arg(program).output().expect("ldd can be run");
    assert!(listed.status.success(), "ldd {}: {listed:?}", program.display());
    // `libc.so.6 => /lib/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

fn name(path: &Path) -> String {
    path.file_name().expect("a file").to_str().expect("a plain name").to_owned()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}
