//! Drawn histories: up to four lives, rings of 2 to 64, deaths anywhere, indices that wrap.

use super::Layout;
use super::model::{Step, World};
use super::packed::Packed;
use super::split::Split;
use proptest::prelude::*;

/// How many descriptors requests have, in turn.
const PATTERNS: &[&[u16]] = &[&[1], &[2, 1], &[3, 1, 2], &[1, 5]];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let patterns = prop::sample::select(PATTERNS);
    let step = prop_oneof![
        patterns.prop_map(Step::Fill),
        (1_usize..9).prop_map(Step::Take),
        prop::collection::vec(any::<usize>(), 1..9).prop_map(Step::Give),
    ];
    prop::collection::vec(step, 1..24)
}

fn lives() -> impl Strategy<Value = Vec<(Vec<Step>, u64)>> {
    prop::collection::vec((steps(), 0_u64..400), 1..5)
}

fn run<L: Layout>(size: u16, past: u16, requests: u32, lives: &[(Vec<Step>, u64)]) {
    let mut world = World::<L>::new(size, past, requests);
    world.fill(&[1]);
    for (steps, death) in lives {
        world.live(steps, Some(*death));
    }
    world.drain();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn split(
        size_log in 1_u32..7,
        past in prop_oneof![Just(0_u16), 65_530_u16..=65_535, any::<u16>()],
        requests in 1_u32..120,
        lives in lives(),
    ) {
        run::<Split>(1 << size_log, past, requests, &lives);
    }

    #[test]
    fn packed(size in 5_u16..=64, past in 0_u16..200, requests in 1_u32..120, lives in lives()) {
        run::<Packed>(size, past, requests, &lives);
    }
}
