//! Parameters of a method, taken out one by one: each with its type and its bounds, and at the end none may be left.
//!
//! SPDK's client sends many parameters that mean nothing here, with their default values: those are taken and forgotten
//! ([`Params::ignored`]). Another value of theirs asks for something that would not happen, and is refused.

use super::error::{RpcError, RpcResult};
use crate::block::uuid;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use serde_json::{Map, Value};

/// Most characters of a name: a socket's path, into which names go, has little more.
pub const NAME_MAX: usize = 64;
/// Most characters of a path.
pub const PATH_MAX: usize = 4095;

/// The parameters of one call.
#[derive(Debug)]
pub struct Params {
    map: Map<String, Value>,
    /// The names that were asked for, to tell a caller what there is.
    known: Vec<&'static str>,
}

impl Params {
    /// The parameters as they came.
    #[must_use]
    pub fn new(map: Map<String, Value>) -> Self {
        Self { map, known: Vec::new() }
    }

    /// Takes a parameter; null is as good as none.
    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A text of 1 to `max` characters.
    pub fn text(&mut self, name: &'static str, max: usize) -> RpcResult<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() && text.len() <= max && !text.contains('\0') => {
                Ok(Some(text))
            }
            Some(found) => Err(refused(name, &found, &format!("a text of 1 to {max} bytes, none of them 0"))),
        }
    }

    /// A text that must be there.
    pub fn required_text(&mut self, name: &'static str, max: usize) -> RpcResult<String> {
        self.text(name, max)?.ok_or_else(|| missing(name))
    }

    /// A number inside a range.
    pub fn number(&mut self, name: &'static str, range: RangeInclusive<u64>) -> RpcResult<Option<u64>> {
        let Some(found) = self.take(name) else { return Ok(None) };
        found.as_u64().filter(|number| range.contains(number)).map(Some).ok_or_else(|| {
            refused(name, &found, &format!("a whole number from {} to {}", range.start(), range.end()))
        })
    }

    /// A number that must be there.
    pub fn required_number(&mut self, name: &'static str, range: RangeInclusive<u64>) -> RpcResult<u64> {
        self.number(name, range)?.ok_or_else(|| missing(name))
    }

    /// A power of two inside a range; 0 is as good as none, as SPDK has it.
    pub fn power_of_two(&mut self, name: &'static str, range: RangeInclusive<u32>) -> RpcResult<Option<u32>> {
        let Some(found) = self.take(name).filter(|found| *found != 0) else { return Ok(None) };
        found
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| number.is_power_of_two() && range.contains(number))
            .map(Some)
            .ok_or_else(|| {
                refused(name, &found, &format!("a power of two from {} to {}", range.start(), range.end()))
            })
    }

    /// True or false.
    pub fn boolean(&mut self, name: &'static str, default: bool) -> RpcResult<bool> {
        match self.take(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(value),
            Some(found) => Err(refused(name, &found, "true or false")),
        }
    }

    /// One of some words; the index of it.
    pub fn word(&mut self, name: &'static str, words: &[&str]) -> RpcResult<Option<usize>> {
        let Some(found) = self.take(name) else { return Ok(None) };
        words
            .iter()
            .position(|word| found == *word)
            .map(Some)
            .ok_or_else(|| refused(name, &found, &format!("one of {}", words.join(", "))))
    }

    /// A list of names, or of one name.
    pub fn names(&mut self, name: &'static str) -> RpcResult<Option<Vec<String>>> {
        let Some(found) = self.take(name) else { return Ok(None) };
        let names = found
            .as_array()
            .map(|list| list.iter().map(|item| item.as_str().map(String::from)).collect::<Option<Vec<_>>>());
        names.flatten().map(Some).ok_or_else(|| refused(name, &found, "a list of names"))
    }

    /// An object that must be there, with parameters of its own.
    pub fn object(&mut self, name: &'static str) -> RpcResult<Self> {
        match self.take(name) {
            None => Err(missing(name)),
            Some(Value::Object(map)) => Ok(Self::new(map)),
            Some(found) => Err(refused(name, &found, "an object")),
        }
    }

    /// An identity.
    pub fn uuid(&mut self, name: &'static str) -> RpcResult<Option<[u8; 16]>> {
        let Some(found) = self.take(name) else { return Ok(None) };
        found.as_str().and_then(uuid::parse).filter(|uuid| *uuid != [0; 16]).map(Some).ok_or_else(|| {
            refused(name, &found, "a UUID such as 8e1d2f3a-4b5c-4d6e-8f70-8192a3b4c5d6, not all zeroes")
        })
    }

    /// A parameter that SPDK knows and that changes nothing here: only its default is accepted.
    pub fn ignored(&mut self, name: &'static str, default: impl Into<Value>) -> RpcResult<()> {
        let default = default.into();
        match self.take(name) {
            Some(found) if found != default => Err(refused(
                name,
                &found,
                &format!("only its default {default}: what it asks for is not supported"),
            )),
            _ => Ok(()),
        }
    }

    /// The end: whatever is left is not a parameter of this method.
    pub fn finish(self) -> RpcResult<()> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(_) if self.known.is_empty() => {
                Err(RpcError::params("Invalid parameters: the method takes none"))
            }
            Some(unknown) => Err(RpcError::params(format!(
                "Invalid parameters: {unknown:?} is unknown; the method takes {}",
                self.known.join(", ")
            ))),
        }
    }
}

fn missing(name: &str) -> RpcError {
    RpcError::params(format!("Invalid parameters: {name} is missing"))
}

/// Longest piece of a wrong value that an error quotes, in characters.
const QUOTED_MAX: usize = 80;

fn refused(name: &str, found: &Value, allowed: &str) -> RpcError {
    let mut quoted = format!("{found}");
    if let Some((end, _)) = quoted.char_indices().nth(QUOTED_MAX) {
        quoted.truncate(end);
        quoted.push('…');
    }
    RpcError::params(format!("Invalid parameters: {name} is {quoted}; allowed: {allowed}"))
}

#[cfg(test)]
mod tests {
    use super::super::error::INVALID_PARAMS;
    use super::*;
    use serde_json::json;

    fn params(value: Value) -> Params {
        let Value::Object(map) = value else { panic!("an object") };
        Params::new(map)
    }

    fn message<T: core::fmt::Debug>(result: RpcResult<T>) -> String {
        let error = result.expect_err("refused");
        assert_eq!(error.code, INVALID_PARAMS);
        error.message
    }

    #[test]
    fn good_values_are_taken() {
        let mut given = params(json!({
            "name": "disk", "size": 8, "block": 4096, "on": true, "mode": "all", "names": ["a", "b"],
            "uuid": "8e1d2f3a-4b5c-4d6e-8f70-8192a3b4c5d6", "md_size": 0, "none": null,
        }));
        assert_eq!(given.required_text("name", 10).unwrap(), "disk");
        assert_eq!(given.required_number("size", 1..=8).unwrap(), 8);
        assert_eq!(given.power_of_two("block", 512..=65536).unwrap(), Some(4096));
        assert!(given.boolean("on", false).unwrap());
        assert_eq!(given.word("mode", &["none", "all"]).unwrap(), Some(1));
        assert_eq!(given.names("names").unwrap().unwrap(), ["a", "b"]);
        assert!(given.uuid("uuid").unwrap().is_some());
        given.ignored("md_size", 0).unwrap();
        assert_eq!(given.text("none", 9).unwrap(), None);
        assert_eq!(given.number("absent", 0..=1).unwrap(), None);
        given.finish().unwrap();
    }

    #[test]
    fn an_error_names_the_parameter_what_was_found_and_what_is_allowed() {
        let mut given =
            params(json!({ "name": "", "size": 9, "block": 1000, "on": 1, "mode": "x", "md_size": 8 }));
        let cases = [
            message(given.required_text("name", 10)),
            message(given.number("size", 1..=8)),
            message(given.power_of_two("block", 512..=65536)),
            message(given.boolean("on", false)),
            message(given.word("mode", &["none", "all"])),
            message(given.ignored("md_size", 0)),
            message(given.required_text("absent", 10)),
        ];
        let expected = [
            "name is \"\"; allowed: a text of 1 to 10 bytes, none of them 0",
            "size is 9; allowed: a whole number from 1 to 8",
            "block is 1000; allowed: a power of two from 512 to 65536",
            "on is 1; allowed: true or false",
            "mode is \"x\"; allowed: one of none, all",
            "md_size is 8; allowed: only its default 0: what it asks for is not supported",
            "absent is missing",
        ];
        for (found, expected) in cases.iter().zip(expected) {
            assert_eq!(*found, format!("Invalid parameters: {expected}"));
        }
    }

    #[test]
    fn a_parameter_that_nobody_knows_is_refused() {
        let mut given = params(json!({ "name": "a", "nmae": "b" }));
        given.required_text("name", 10).unwrap();
        assert_eq!(message(given.finish()), "Invalid parameters: \"nmae\" is unknown; the method takes name");
        assert_eq!(message(params(json!({ "x": 1 })).finish()), "Invalid parameters: the method takes none");
    }
}
