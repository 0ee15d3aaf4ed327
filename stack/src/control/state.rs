//! The state directory: what survives the process.
//!
//! One file, `config.json`, holds what the target was asked to be. It is replaced as a whole: the new text goes to a
//! file beside it, that file is made durable, renamed over the old one, and the directory is made durable. A process or
//! a machine that dies in between leaves the old file or the new one, never a mixture. A change is acknowledged only
//! after the last step. What may go wrong: no room (the old file stays, the change is refused), a file of a newer
//! release, a file that is not what was written. A second process on the directory is kept out by a lock.
//!
//! Everything here blocks: only inside offloaded jobs.

use super::config::{Config, DecodeError, VERSION};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use runtime::{Directory, Error, ErrorKind, Platform};

/// Longest state file that is read: some ten thousand bdevs.
const FILE_MAX: u64 = 16 << 20;

/// The names in the state directory.
#[derive(Clone, Debug)]
pub struct StatePaths {
    directory: String,
    config: String,
    /// The file beside it that becomes it.
    next: String,
    lock: String,
}

impl StatePaths {
    /// The names in `directory`, an absolute path.
    #[must_use]
    pub fn new(directory: &str) -> Self {
        Self {
            directory: directory.into(),
            config: format!("{directory}/config.json"),
            next: format!("{directory}/config.json.next"),
            lock: format!("{directory}/lock"),
        }
    }
}

/// The state directory, opened: nobody else has it while this lives.
pub struct State<D: Directory> {
    directory: D,
    paths: StatePaths,
    /// What the file is known to hold; `None`: there is no file.
    current: Option<Vec<u8>>,
    /// Held as long as this lives.
    _lock: D::Lock,
}

/// The state directory of a platform.
pub type PlatformState<P> = State<<P as Platform>::Directory>;

impl<D: Directory> State<D> {
    /// Makes the directory if it is not there, locks it and reads what the target was asked to be. A target that has no
    /// `instance` yet gets this one. Blocking. Errors: a sentence that says which file, what is wrong with it and what to
    /// do.
    pub fn open(directory: D, paths: StatePaths, instance: [u8; 16]) -> Result<(Self, Config), String> {
        let StatePaths { directory: path, config: file, next, lock } = &paths;
        directory
            .create_directory(path)
            .map_err(|error| format!("cannot make the state directory {path}: {error}"))?;
        let lock = directory.lock(lock).map_err(|error| match error.kind {
            ErrorKind::Busy => {
                format!("the state directory {path} is in use by another reprise serve: stop it, or give another --state")
            }
            _ => format!("cannot lock {lock}: {error}"),
        })?;
        let current = match directory.read(file, FILE_MAX) {
            Ok(text) => Some(text),
            Err(Error { kind: ErrorKind::NotFound, .. }) => None,
            Err(error) => return Err(format!("cannot read the state file {file}: {error}")),
        };
        let mut config = match &current {
            None => Config::default(),
            Some(text) => Config::decode(text).map_err(|error| match error {
                DecodeError::Newer(version) => format!(
                    "the state file {file} is of version {version}, this release reads up to {VERSION}: start the newer release that wrote it, or move the file away to begin with nothing"
                ),
                DecodeError::Damaged(what) => format!(
                    "the state file {file} is damaged: {what}; bring it back from a copy, mend it, or move it away to begin with nothing"
                ),
            })?,
        };
        // What a dead process was writing when it died was never acknowledged.
        match directory.remove(next) {
            Ok(()) | Err(Error { kind: ErrorKind::NotFound, .. }) => {}
            Err(error) => return Err(format!("cannot remove {next}: {error}")),
        }
        // A process that died between the last two steps of a change left a file that is seen and not durable. Whoever
        // sees its content from now on must not see it vanish with the machine's power.
        if current.is_some() {
            let durable = directory.sync(file).and_then(|()| directory.sync_directory(path));
            durable.map_err(|error| format!("cannot make the state file {file} durable: {error}"))?;
        }
        let mut state = Self { directory, paths, current, _lock: lock };
        if config.instance == [0; 16] {
            config.instance = instance;
            // A file that somebody wrote by hand may ask for malloc bdevs, whose memory is found again by it. A target that
            // has no file yet writes it with its first change.
            if state.current.is_some() {
                let saved = state.save(&config);
                saved.map_err(|error| {
                    format!("cannot write the state file {}: {error}", state.paths.config)
                })?;
            }
        }
        Ok((state, config))
    }

    /// Makes `config` the durable one. Blocking. After an error the old one is in force, also on the next start, unless
    /// the medium fails even to keep what it had.
    pub fn save(&mut self, config: &Config) -> runtime::Result<()> {
        let text = config.encode();
        let replaced = self.replace(&text);
        match replaced {
            Ok(()) => {
                self.current = Some(text);
                Ok(())
            }
            Err((error, renamed)) => {
                // Nothing more can be done about a second failure: the change is refused either way.
                let _ = match (&self.current, renamed) {
                    (_, false) => self.directory.remove(&self.paths.next),
                    (Some(old), true) => {
                        let old = old.clone();
                        self.replace(&old).map_err(|(error, _)| error)
                    }
                    (None, true) => self.directory.remove(&self.paths.config),
                };
                Err(error)
            }
        }
    }

    /// Replaces the file. After an error, the flag says whether the new text is already seen under the file's name.
    fn replace(&self, text: &[u8]) -> Result<(), (Error, bool)> {
        let StatePaths { directory: path, config, next, .. } = &self.paths;
        let before = |error| (error, false);
        self.directory.write(next, text).map_err(before)?;
        // The content before the name: a power loss must not find the name on an empty file.
        self.directory.sync(next).map_err(before)?;
        self.directory.rename(next, config).map_err(before)?;
        self.directory.sync_directory(path).map_err(|error| (error, true))
    }
}
