//! Identities of bdevs: 16 bytes, written as RFC 9562 section 4 writes them. A guest finds its disk again by them, so
//! they are kept in the state directory and never made twice.

use alloc::string::String;
use core::fmt::Write;

/// A random identity (version 4) from two random words.
#[must_use]
pub fn random(words: [u64; 2]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&words[0].to_le_bytes());
    uuid[8..].copy_from_slice(&words[1].to_le_bytes());
    // RFC 9562, sections 4.1 and 4.2: variant 10, version 4.
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// The written form, lower case.
#[must_use]
pub fn format(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Reads the written form, in either case.
#[must_use]
pub fn parse(text: &str) -> Option<[u8; 16]> {
    let bytes = text.as_bytes();
    if bytes.len() != 36 || [8, 13, 18, 23].iter().any(|&at| bytes[at] != b'-') {
        return None;
    }
    let mut digits =
        bytes.iter().enumerate().filter(|(at, _)| !matches!(at, 8 | 13 | 18 | 23)).map(|(_, byte)| byte);
    let mut uuid = [0; 16];
    for byte in &mut uuid {
        for _ in 0..2 {
            let digit = char::from(*digits.next()?).to_digit(16)?;
            *byte = *byte << 4 | u8::try_from(digit).ok()?;
        }
    }
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_again() {
        let uuid = random([0x0123_4567_89ab_cdef, u64::MAX]);
        let text = format(&uuid);
        assert_eq!(text, "efcdab89-6745-4301-bfff-ffffffffffff");
        assert_eq!(parse(&text), Some(uuid));
        assert_eq!(parse(&text.to_uppercase()), Some(uuid));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in
            ["", "efcdab89", "efcdab89-6745-4301-bfff-fffffffffff", "efcdab89-6745-4301-bfff-fffffffffffg"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("efcdab8967454301-bfff-ffffffffffff---"), None);
        assert_eq!(parse("é0123456-6745-4301-bfff-ffffffffffff"), None);
    }
}
