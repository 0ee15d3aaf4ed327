//! The core mask: which of the host's processors the reactors run on.

use rustix::thread::{CpuSet, sched_getaffinity};
use std::collections::BTreeSet;

/// Reads a core mask: hexadecimal (`0x3`) or a list of processors (`0,2-3`, also in brackets), all of which must be
/// available to this process. Errors: a sentence that says what was asked and what is allowed here.
pub fn parse(mask: &str) -> Result<Vec<u32>, String> {
    let available = available();
    let wanted = read(mask).ok_or_else(|| {
        format!(
            "core mask {mask:?} is malformed, empty, or names a processor above {}; give a hexadecimal mask such as 0x3, or a list such as 0,2-3; {}",
            CpuSet::MAX_CPU - 1,
            allowed(&available)
        )
    })?;
    let missing: Vec<_> = wanted.difference(&available).map(u32::to_string).collect();
    if !missing.is_empty() {
        return Err(format!(
            "core mask {mask:?} names processors that this process may not run on: {}; {}",
            missing.join(", "),
            allowed(&available)
        ));
    }
    Ok(wanted.into_iter().collect())
}

/// The core mask when none was given: the first processor that is available.
#[must_use]
pub fn default_processors() -> Vec<u32> {
    available().into_iter().take(1).collect()
}

/// The processors that this process may run on.
#[must_use]
pub fn available() -> BTreeSet<u32> {
    // Fails only for a process that does not exist.
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU)
        .filter(|processor| set.is_set(*processor))
        .map(|processor| processor as u32)
        .collect()
}

fn allowed(available: &BTreeSet<u32>) -> String {
    let names: Vec<_> = available.iter().map(u32::to_string).collect();
    format!("allowed on this host: {}", names.join(", "))
}

/// The processors of a mask; `None` when it is malformed or empty.
fn read(mask: &str) -> Option<BTreeSet<u32>> {
    let mask = mask.trim();
    let processors = match mask.strip_prefix("0x").or_else(|| mask.strip_prefix("0X")) {
        Some(digits) => read_hexadecimal(digits),
        None => {
            let inner = mask.strip_prefix('[').map(|list| list.strip_suffix(']'));
            read_list(inner.unwrap_or(Some(mask))?)
        }
    };
    processors.filter(|set| !set.is_empty())
}

fn read_hexadecimal(digits: &str) -> Option<BTreeSet<u32>> {
    let mut processors = BTreeSet::new();
    for (place, digit) in digits.chars().rev().enumerate() {
        let bits = digit.to_digit(16)?;
        for bit in (0..4).filter(|bit| bits & 1 << bit != 0) {
            processors.insert(processor(u32::try_from(place).ok()?.checked_mul(4)? + bit)?);
        }
    }
    Some(processors)
}

fn read_list(list: &str) -> Option<BTreeSet<u32>> {
    let mut processors = BTreeSet::new();
    for item in list.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (processor(first.trim().parse().ok()?)?, processor(last.trim().parse().ok()?)?);
        if first > last {
            return None;
        }
        processors.extend(first..=last);
    }
    Some(processors)
}

/// A processor's number, when the kernel's sets can hold it.
fn processor(number: u32) -> Option<u32> {
    (number < CpuSet::MAX_CPU as u32).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let processors = |mask| read(mask).map(|set| set.into_iter().collect::<Vec<_>>());
        assert_eq!(processors("0x3"), Some(vec![0, 1]));
        assert_eq!(processors("0X100000000"), Some(vec![32]));
        assert_eq!(processors("3"), Some(vec![3]));
        assert_eq!(processors("0,2-3"), Some(vec![0, 2, 3]));
        assert_eq!(processors("[0, 2-3,2]"), Some(vec![0, 2, 3]));
        for bad in
            ["", "0x", "0x0", "[0", "0]", "3-2", "a", "0,,1", "-1", "1024", "0-99999999", "0xg", "0x1\u{660}"]
        {
            assert_eq!(processors(bad), None, "{bad}");
        }
        assert_eq!(processors(&format!("0x1{}", "0".repeat(300))), None);
    }

    #[test]
    fn a_refused_mask_says_what_is_allowed() {
        let own = default_processors()[0];
        assert_eq!(parse(&own.to_string()), Ok(vec![own]));
        let error = parse("1023").unwrap_err();
        assert!(error.contains("may not run on: 1023; allowed on this host: "), "{error}");
        let error = parse("0x").unwrap_err();
        assert!(error.contains("malformed") && error.contains(&format!("host: {own}")), "{error}");
    }
}
