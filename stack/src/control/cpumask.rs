//! Sets of processors as SPDK writes them: hexadecimal (`0x3`, `3`) or a list in brackets (`[0,2-3]`).

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;

/// Highest processor number that a mask may name.
const PROCESSOR_MAX: u32 = 1023;

/// The processors of a mask. Errors: a sentence that names the parameter.
pub fn parse(mask: &str) -> Result<BTreeSet<u32>, String> {
    let processors = match mask.strip_prefix('[').and_then(|list| list.strip_suffix(']')) {
        Some(list) => parse_list(list),
        None => parse_hexadecimal(mask),
    };
    processors.filter(|set| !set.is_empty()).ok_or_else(|| {
        format!("cpumask is {mask:?}; allowed: a hexadecimal mask such as 0x3, or a list such as [0,2-3], not empty, up to processor {PROCESSOR_MAX}")
    })
}

fn parse_list(list: &str) -> Option<BTreeSet<u32>> {
    let mut processors = BTreeSet::new();
    for item in list.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
        if first > last || last > PROCESSOR_MAX {
            return None;
        }
        processors.extend(first..=last);
    }
    Some(processors)
}

fn parse_hexadecimal(mask: &str) -> Option<BTreeSet<u32>> {
    let digits = mask.strip_prefix("0x").or_else(|| mask.strip_prefix("0X")).unwrap_or(mask);
    // The kernel's form: commas between groups of 32 processors.
    if digits.split(',').skip(1).any(|group| group.len() != 8) {
        return None;
    }
    let mut processors = BTreeSet::new();
    for (place, digit) in digits.chars().rev().filter(|digit| *digit != ',').enumerate() {
        let digit = digit.to_digit(16)?;
        for bit in (0..4).filter(|bit| digit & 1 << bit != 0) {
            let processor = u32::try_from(place).ok()? * 4 + bit;
            if processor > PROCESSOR_MAX {
                return None;
            }
            processors.insert(processor);
        }
    }
    Some(processors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn masks() {
        let list = |mask: &str| parse(mask).map(|set| set.into_iter().collect::<Vec<_>>()).ok();
        assert_eq!(list("0x3"), Some([0, 1].into()));
        assert_eq!(list("10"), Some([4].into()));
        assert_eq!(list("[0,2-3]"), Some([0, 2, 3].into()));
        assert_eq!(list("ffff,00000001").map(|set| set.len()), Some(17));
        for bad in ["", "0x", "0", "0xg", "[]", "[3-2]", "[a]", "[0", "[0-2000]", "-1", "1,1", ",1"] {
            assert_eq!(list(bad), None, "{bad}");
        }
    }
}
