//! What an operator configured: a subsystem, its namespaces, and the hosts that may use it.

use crate::block::Bdev;
use crate::nvme::bits::NQN_MAX;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use runtime::Platform;

/// The hosts that may use a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// All.
    Any,
    /// Those of these names.
    Named(BTreeSet<String>),
}

impl Hosts {
    /// Whether the host of a name may come.
    #[must_use]
    pub fn allow(&self, hostnqn: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Named(names) => names.contains(hostnqn),
        }
    }
}

/// A disk, as cores share it.
pub type Disk<P> = Arc<dyn Bdev<P>>;

/// A namespace: a bdev under a number. A host finds its disk again by its identifiers, which stay over restarts.
pub struct Namespace<P: Platform> {
    /// Its identifier in the subsystem, from 1.
    pub id: u32,
    /// Another number whenever what Identify tells of it has changed.
    pub version: u64,
    /// The disk; `None` while it is not there.
    pub bdev: Option<Disk<P>>,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its NGUID; zeroes for none.
    pub nguid: [u8; 16],
    /// Its EUI-64; zeroes for none.
    pub eui64: [u8; 8],
}

impl<P: Platform> Clone for Namespace<P> {
    fn clone(&self) -> Self {
        let Self { id, version, bdev, uuid, nguid, eui64 } = self;
        Self { id: *id, version: *version, bdev: bdev.clone(), uuid: *uuid, nguid: *nguid, eui64: *eui64 }
    }
}

/// A subsystem as it is configured now. Never changed: another one takes its place.
pub struct Subsystem<P: Platform> {
    /// Its name.
    pub nqn: String,
    /// Tells it from one of the same name that was there before.
    pub number: u64,
    /// Serial number, ASCII, at most 20 characters.
    pub serial: String,
    /// Model number, ASCII, at most 40 characters.
    pub model: String,
    /// Firmware revision: the release, of which 8 characters are shown.
    pub firmware: &'static str,
    /// The hosts that may use it.
    pub hosts: Hosts,
    /// The namespaces, by ascending identifier.
    pub namespaces: Vec<Namespace<P>>,
    /// The highest identifier that a namespace may have.
    pub namespaces_max: u32,
}

impl<P: Platform> Subsystem<P> {
    /// The namespace of an identifier whose disk is there.
    #[must_use]
    pub fn namespace(&self, id: u32) -> Option<(&Namespace<P>, &Disk<P>)> {
        let at = self.namespaces.binary_search_by_key(&id, |namespace| namespace.id).ok()?;
        let namespace = &self.namespaces[at];
        namespace.bdev.as_ref().map(|bdev| (namespace, bdev))
    }

    /// The identifiers of the namespaces whose disk is there.
    pub fn active(&self) -> impl Iterator<Item = u32> + '_ {
        self.namespaces.iter().filter(|namespace| namespace.bdev.is_some()).map(|namespace| namespace.id)
    }
}

/// Whether a text is an NVMe Qualified Name (section 4.5): `nqn.`, a year and month, a dot, the naming authority, and what
/// that chose.
#[must_use]
pub fn nqn_is_valid(nqn: &str) -> bool {
    let Some(rest) = nqn.strip_prefix("nqn.") else { return false };
    let Some((date, name)) = rest.split_once('.') else { return false };
    let date_is_good = matches!(date.as_bytes(), [a, b, c, d, b'-', e, f]
        if [a, b, c, d, e, f].iter().all(|digit| digit.is_ascii_digit()));
    let ends = |part: &str| part.starts_with(['.', '-', ':']) || part.is_empty();
    date_is_good && !ends(name) && nqn.len() <= NQN_MAX && !nqn.chars().any(char::is_control)
}
