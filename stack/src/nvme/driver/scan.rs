//! A look at a controller's namespaces: which there are, and what each of them is.

use super::admin::Purpose;
use super::failure::Failure;
use super::identity::{ControllerInfo, Namespace};
use crate::nvme::bits::{Command, IdentifyNamespace, NAMESPACE_LIST_ENTRIES, NSID_MAX, Status, cns};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Most namespaces of a controller that are looked at; a list of identifiers that the controller gives at once holds more.
const NAMESPACES_MAX: usize = 256;
const _: () = assert!(NAMESPACES_MAX < NAMESPACE_LIST_ENTRIES);

/// A scan that goes on.
pub(super) struct Scan {
    /// Identifiers that are still to be looked at, the next one last; `None` before the list is there.
    left: Option<Vec<u32>>,
    /// The one that is being looked at.
    current: u32,
    /// What it is, when only its descriptors are missing.
    described: Option<Namespace>,
    found: Vec<Namespace>,
    unusable: Vec<(u32, String)>,
    /// Something changed since it began.
    again: bool,
    /// The controller failed to say what one is.
    failed: bool,
}

/// What comes next.
pub(super) enum ScanEnd {
    /// A command.
    Ask(Command, Purpose),
    /// Nothing: this was found. `again`: namespaces changed meanwhile. `failed`: the controller failed to say what one is.
    Done { found: Vec<Namespace>, unusable: Vec<(u32, String)>, again: bool, failed: bool },
}

impl Scan {
    /// A scan whose list of active namespaces, from the first on, is being asked for.
    pub(super) fn new() -> Self {
        Self {
            left: None,
            current: 0,
            described: None,
            found: Vec::new(),
            unusable: Vec::new(),
            again: false,
            failed: false,
        }
    }

    /// Namespaces changed: another scan follows this one.
    pub(super) fn again(&mut self) {
        self.again = true;
    }

    /// Takes what the last command gave. Errors: the controller says what cannot be.
    pub(super) fn next(
        &mut self,
        controller: &ControllerInfo,
        data: Result<&[u8], Status>,
    ) -> Result<ScanEnd, Failure> {
        if self.left.is_none() {
            self.left = Some(identifiers(data.unwrap_or(&[]))?);
        } else if let Some(mut namespace) = self.described.take() {
            // A controller before NVMe 1.3 has no descriptors; what was identified is good without.
            if let Ok(data) = data {
                namespace.describe(data);
            }
            self.found.push(namespace);
        } else {
            self.failed |= data.is_err();
            let judged = match data {
                Ok(data) => Namespace::new(self.current, &IdentifyNamespace::decode(data), controller),
                Err(status) => Err(status.to_string()),
            };
            match judged {
                Ok(namespace) => {
                    self.described = Some(namespace);
                    let command = Command::identify(cns::NAMESPACE_DESCRIPTORS, self.current);
                    return Ok(ScanEnd::Ask(command, Purpose::NamespaceDescriptors));
                }
                Err(why) => self.unusable.push((self.current, why)),
            }
        }
        if let Some(next) = self.left.as_mut().and_then(Vec::pop) {
            self.current = next;
            return Ok(ScanEnd::Ask(Command::identify(cns::NAMESPACE, next), Purpose::Namespace));
        }
        Ok(ScanEnd::Done {
            found: core::mem::take(&mut self.found),
            unusable: core::mem::take(&mut self.unusable),
            again: self.again,
            failed: self.failed,
        })
    }
}

/// The identifiers in a list, the first one last. They ascend, or the list is no list.
fn identifiers(data: &[u8]) -> Result<Vec<u32>, Failure> {
    let mut identifiers = Vec::new();
    let mut before = 0;
    for bytes in data.chunks_exact(4).take(NAMESPACES_MAX) {
        let id = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if id == 0 {
            break;
        }
        if id <= before || id > NSID_MAX {
            return Err(Failure::Broken("its list of namespaces does not ascend"));
        }
        before = id;
        identifiers.push(id);
    }
    identifiers.reverse();
    Ok(identifiers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ascends_and_ends_at_zero() {
        let list = |ids: &[u32]| -> Vec<u8> { ids.iter().flat_map(|id| id.to_le_bytes()).collect() };
        assert_eq!(identifiers(&list(&[1, 5, 9, 0, 7])).unwrap(), [9, 5, 1]);
        assert!(identifiers(&list(&[0; 1024])).unwrap().is_empty());
        for wrong in [[2, 2], [2, 1], [1, u32::MAX]] {
            assert!(identifiers(&list(&wrong)).is_err(), "{wrong:?}");
        }
        let many: Vec<u32> = (1..=1024).collect();
        assert_eq!(identifiers(&list(&many)).unwrap().len(), NAMESPACES_MAX);
    }
}
