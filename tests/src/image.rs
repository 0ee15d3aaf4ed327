//! Disk images for the tests, in memory where the machine lets them be.
//!
//! A flush or a hole punched in a file on a busy disk takes 0.1 s and more, which would make a test of ten thousand verified
//! requests one of the disk. A tmpfs has holes and O_DIRECT as well; what needs a real disk (late writes after a kill) asks for
//! [`Image::on_disk`].

use std::path::{Path, PathBuf};

/// A tmpfs on every Linux that we run on.
const MEMORY: &str = "/dev/shm";

/// A file of zeroes that goes with its owner.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Image {
    /// In memory, or on disk where there is no tmpfs.
    pub fn in_memory(size_bytes: u64) -> Image {
        let mut builder = tempfile::Builder::new();
        let directory = builder.prefix("image-").tempdir_in(MEMORY).or_else(|_| builder.tempdir());
        Image::new(directory.expect("a directory for the image"), size_bytes)
    }

    /// On the disk that the temporary directory is on.
    pub fn on_disk(size_bytes: u64) -> Image {
        let directory = tempfile::Builder::new().prefix("image-").tempdir();
        Image::new(directory.expect("a directory for the image"), size_bytes)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path as the parameter of a call.
    pub fn name(&self) -> &str {
        self.path.to_str().expect("a path of the test's own")
    }

    /// Makes it larger or smaller.
    pub fn resize(&self, size_bytes: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(&self.path).expect("the image");
        file.set_len(size_bytes).expect("another size");
    }

    fn new(directory: tempfile::TempDir, size_bytes: u64) -> Image {
        let path = directory.path().join("disk");
        std::fs::File::create(&path).and_then(|file| file.set_len(size_bytes)).expect("an image");
        Image { path, _directory: directory }
    }
}
