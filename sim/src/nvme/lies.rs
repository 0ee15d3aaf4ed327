//! Wrong values in what a controller says of itself: a field of a register, of what Identify gives, or of a result is
//! replaced. The fault's parameter says which field and by what, so that it stands in the list of faults.

use crate::rng::Rng;
use stack::nvme::bits::Capabilities;

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Controller,
    Namespace,
    NvmController,
    NamespaceList,
    Descriptors,
    Log,
}

/// Offset and length of fields that somebody may believe.
const CONTROLLER: &[(usize, usize)] = &[
    (0, 2),
    (4, 20),
    (24, 40),
    (77, 1),
    (78, 2),
    (80, 4),
    (88, 4),
    (92, 4),
    (111, 1),
    (128, 6),
    (256, 2),
    (258, 1),
    (259, 1),
    (261, 1),
    (512, 1),
    (513, 1),
    (514, 2),
    (516, 4),
    (520, 2),
    (525, 1),
    (526, 2),
    (528, 2),
    (536, 4),
    (768, 256),
];
const NAMESPACE: &[(usize, usize)] = &[
    (0, 8),
    (8, 8),
    (24, 1),
    (25, 1),
    (26, 1),
    (28, 1),
    (29, 1),
    (33, 1),
    (34, 2),
    (36, 2),
    (40, 2),
    (42, 2),
    (44, 2),
    (46, 2),
    (64, 2),
    (99, 1),
    (104, 16),
    (120, 8),
    (128, 4),
    (130, 1),
    (132, 4),
];
const NVM_CONTROLLER: &[(usize, usize)] = &[(0, 1), (1, 1), (3, 1), (4, 4), (8, 8)];
const WORDS: &[(usize, usize)] = &[(0, 4), (4, 4), (8, 4), (0, 64), (16, 1), (1, 2), (4092, 4)];

/// Draws a parameter.
pub(super) fn draw(rng: &mut Rng) -> u64 {
    rng.word()
}

/// Puts a wrong value into what is said.
pub(super) fn distort(said: Said, bytes: &mut [u8], parameter: u64) {
    let fields = match said {
        Said::Controller => CONTROLLER,
        Said::Namespace => NAMESPACE,
        Said::NvmController => NVM_CONTROLLER,
        Said::NamespaceList | Said::Descriptors | Said::Log => WORDS,
    };
    let (at, len) = fields[(parameter & 0xff) as usize % fields.len()];
    let (manner, word) = (parameter >> 8 & 7, parameter >> 16);
    // What was asked for may be shorter than all there is.
    for (index, byte) in bytes.iter_mut().skip(at).take(len).enumerate() {
        let random = (word >> (8 * (index % 6))) as u8;
        *byte = match manner {
            0 => 0,
            1 => 0xff,
            2 => byte.wrapping_add(u8::from(index == 0)),
            3 => byte.wrapping_sub(u8::from(index == 0)),
            4 => *byte ^ (u8::from(index == (word >> 8) as usize % len) << (word & 7)),
            _ => random,
        };
    }
}

/// The longest time-out (CAP.TO and CRTO, in units of 500 ms) that a controller says falsely.
const TIMEOUT_MAX: u64 = 4;

/// Another value of CAP: one of its fields is wrong.
pub(super) fn capabilities(right: Capabilities, parameter: u64) -> Capabilities {
    let value = parameter >> 8;
    let said = match parameter & 7 {
        0 => right.with_mqes(value & 3),
        1 => right.with_to(if value & 1 == 0 { 0 } else { 255 }),
        2 => right.with_dstrd(value),
        3 => right.with_css(value),
        4 => right.with_mpsmin(value),
        5 => right.with_mpsmax(0).with_mpsmin(value & 1),
        6 => right.with_crwms(1).with_crims(value),
        _ => Capabilities(value.rotate_left(8) ^ value.rotate_left(40)),
    };
    // Two minutes are no lie: whoever is told that a controller takes so long has to wait.
    said.with_to(said.to().min(TIMEOUT_MAX))
}

/// Another value of CRTO, whose halves are time-outs.
pub(super) const fn ready_timeouts(right: u32, parameter: u64) -> u32 {
    const HALVES: u32 = (TIMEOUT_MAX as u32 - 1) * 0x1_0001;
    number(right, parameter) & HALVES
}

/// Another value of a number of 32 bits.
pub(super) const fn number(right: u32, parameter: u64) -> u32 {
    match parameter & 3 {
        0 => 0,
        1 => u32::MAX,
        2 => right ^ 1 << (parameter >> 8 & 31),
        _ => (parameter >> 8) as u32,
    }
}
