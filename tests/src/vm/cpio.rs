//! A writer of `newc` cpio archives, the format of an initramfs (Linux: Documentation/driver-api/early-userspace/
//! buffer-format.rst). A file's directories must stand before it, in this archive or in one before.

/// The archive so far.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
}

/// Every header and every file's content begins at a multiple of this.
const ALIGNMENT: usize = 4;
/// The file type bits of a regular file, as in `st_mode`.
const REGULAR_FILE: u32 = 0o100_000;
/// Those of a directory.
const DIRECTORY: u32 = 0o040_000;
/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";

impl Archive {
    /// Adds a file; `permissions` are the low bits of its mode.
    pub(super) fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        self.entry(name, REGULAR_FILE | permissions, content);
    }

    /// Adds a directory.
    pub(super) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, &[]);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let file_size = u32::try_from(content.len()).expect("a file below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a short name");
        self.bytes.extend_from_slice(b"070701");
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        for field in [0, mode, 0, 0, 1, 0, file_size, 0, 0, 0, 0, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn headers_and_contents_are_aligned() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"12345");
        let bytes = archive.finish();
        // 110 bytes of header and "init\0" end at 115, so the content begins at 116; 5 bytes of it end at 121.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081ED");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..124], b"init\0\x0012345\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}
