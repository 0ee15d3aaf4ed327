//! The guest and the checkers on the test double: a right device passes, and each way of being wrong is found by the
//! checker that is there for it.

use super::double::{Plant, run};
use std::collections::BTreeMap;

const SEEDS: u64 = 40;

#[test]
fn a_right_device_passes() {
    let mut checks = BTreeMap::new();
    for seed in 0..SEEDS {
        let (violation, completed, checkers) = run(seed, Plant::Nothing);
        assert_eq!(violation, None, "seed {seed}");
        assert!(completed > 300, "seed {seed}: {completed} requests");
        checkers.count_into(&mut checks);
    }
    // The double speaks no vhost-user.
    checks.remove("session");
    for (checker, evaluations) in checks {
        assert!(evaluations > 0, "{checker} judged nothing");
    }
}

#[test]
fn each_wrong_device_is_found_by_its_checker() {
    for (plant, checkers) in [
        (Plant::CompletesTwice, &["exactly_once", "virtqueue"][..]),
        (Plant::WrongId, &["exactly_once", "virtqueue"]),
        (Plant::WrongLen, &["virtqueue"]),
        (Plant::NoStatus, &["virtqueue"]),
        (Plant::LosesWrite, &["reads", "durability"]),
        (Plant::LateWrite, &["reads", "durability"]),
        (Plant::StaleRead, &["reads", "durability"]),
        (Plant::SwapsSectors, &["reads", "durability"]),
        (Plant::TouchesAfterCompletion, &["buffers"]),
        (Plant::TouchesRing, &["buffers"]),
        (Plant::ForgetsRequest, &["progress"]),
        (Plant::LosesInterrupt, &["progress"]),
        (Plant::IndexRunsAhead, &["virtqueue"]),
        (Plant::LosesFlushedWrite, &["durability"]),
        (Plant::ErrorWithoutCause, &["virtqueue"]),
    ] {
        let mut found = 0;
        for seed in 0..SEEDS {
            if let Some(violation) = run(seed, plant).0 {
                assert!(checkers.contains(&violation.checker), "{plant:?}, seed {seed}: {violation:?}");
                found += 1;
            }
        }
        assert!(found > 0, "{plant:?} was found in none of {SEEDS} seeds");
        println!("{plant:?}: found in {found} of {SEEDS} seeds");
    }
}
