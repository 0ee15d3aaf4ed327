//! Configuration: after a restart every acknowledged change is in force, and no half of one.
//!
//! The operator changes the target by RPC, one call at a time, and after each start of a process lists what there is.
//! A call that was acknowledged must show; a call that got no answer shows whole or not at all, and what it shows at
//! the first listing stays so. A call that was refused must not show, unless the medium failed twice under it: the change
//! and the taking back. This holds over `kill -9` and over a power loss.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A configured object and what is configured of it, as the operator compares it.
pub type Objects = BTreeMap<String, String>;

/// One change of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object is there from now on, configured like this (new, or changed).
    Put {
        /// Its kind and name, e.g. `bdev Malloc0`.
        object: String,
        /// Its configuration.
        value: String,
    },
    /// The object is there no more.
    Remove {
        /// Its kind and name.
        object: String,
    },
}

impl Change {
    fn apply(&self, objects: &mut Objects) {
        match self {
            Self::Put { object, value } => {
                objects.insert(object.clone(), value.clone());
            }
            Self::Remove { object } => {
                objects.remove(object);
            }
        }
    }
}

/// The checker.
#[derive(Debug, Default)]
pub struct State {
    acknowledged: Objects,
    /// The call that is out, or was when the target died.
    open: Option<Change>,
    /// Refused calls that the medium may have kept all the same, until it takes another.
    kept: Vec<Change>,
    evaluations: u64,
}

impl State {
    /// A call goes out.
    ///
    /// # Panics
    /// When another one is open and nothing was listed since: the operator makes one call at a time.
    pub fn called(&mut self, change: Change) {
        assert!(self.open.is_none(), "the operator makes one call at a time and lists after a restart");
        self.open = Some(change);
    }

    /// The call that is out was answered: in force, or refused; `kept`: the medium failed so often under it that it may
    /// have kept what was refused.
    pub fn answered(&mut self, in_force: bool, kept: bool) {
        let Some(change) = self.open.take() else { return };
        if in_force {
            change.apply(&mut self.acknowledged);
            self.kept.clear();
        } else if kept {
            self.kept.push(change);
        }
    }

    /// A target that is ready lists what there is.
    ///
    /// # Errors
    /// What is missing, too much or half there.
    pub fn listed(&mut self, found: &Objects) -> Result<(), String> {
        self.evaluations += 1;
        let with = |change: &Change| {
            let mut with = self.acknowledged.clone();
            change.apply(&mut with);
            with
        };
        if *found != self.acknowledged
            && !self.open.iter().chain(&self.kept).any(|change| *found == with(change))
        {
            return Err(self.explain(found));
        }
        self.acknowledged.clone_from(found);
        self.open = None;
        self.kept.clear();
        Ok(())
    }

    fn explain(&self, found: &Objects) -> String {
        let mut text = String::from("after a restart the configuration is not what was acknowledged:");
        for (object, value) in &self.acknowledged {
            match found.get(object) {
                Some(there) if there == value => {}
                Some(there) => {
                    let _ = write!(text, " {object} is `{there}`, acknowledged was `{value}`;");
                }
                None => {
                    let _ = write!(text, " {object} is missing;");
                }
            }
        }
        for object in found.keys().filter(|object| !self.acknowledged.contains_key(*object)) {
            let _ = write!(text, " {object} is there and was never acknowledged;");
        }
        match &self.open {
            Some(change) => {
                let _ = write!(text, " the open call is {change:?}");
            }
            None => text.push_str(" no call is open"),
        }
        text
    }

    /// Whether an object that was acknowledged is to stay: no call to remove it is open.
    #[must_use]
    pub fn keeps(&self, object: &str) -> bool {
        let removed = matches!(&self.open, Some(Change::Remove { object: removed }) if removed == object);
        !removed && self.acknowledged.contains_key(object)
    }

    /// What must be in force.
    #[must_use]
    pub fn acknowledged(&self) -> &Objects {
        &self.acknowledged
    }

    /// Listings judged.
    #[must_use]
    pub fn evaluations(&self) -> u64 {
        self.evaluations
    }
}
