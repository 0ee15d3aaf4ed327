//! The determinism auditor. Each scenario is run plainly, and then again inside madsim runtimes with several seeds of
//! their own: there the wall clock, the host's entropy and the hash seeds differ from runtime to runtime, and a thread
//! cannot be spawned. If anything ambient reached a world, in our code or in a dependency's, its trace would differ.
//!
//! The auditor itself is audited: leaks planted for the purpose must be seen.

/// Why the audit is not part of a plain `cargo test`.
#[cfg(not(madsim))]
#[test]
#[ignore = "needs the flag --cfg madsim, which rebuilds everything; run: cargo ambient"]
fn every_scenario_is_the_same_in_every_madsim_runtime() {}

#[cfg(madsim)]
mod common;

#[cfg(madsim)]
mod audit {
    use crate::common::net::exchange;
    use madsim::Config;
    use madsim::runtime::Runtime;
    use sim::catalog;
    use sim::faults::Faults;
    use sim::plan::Plan;
    use sim::report::Outcome;
    use sim::run::run;
    use sim::world::Detail;
    use sim::world::{self, Temper};
    use std::collections::{HashMap, HashSet};
    use std::process::Command;

    /// Seeds of the runtimes around the world; the world's own seed is another thing.
    const AMBIENT_SEEDS: [u64; 3] = [1, 2, 0xfeed];
    /// Scenarios that cannot run inside a runtime, each with the reason.
    const NOT_HERE: [(&str, &str); 0] = [];
    /// Seeds of the worlds.
    const WORLD_SEEDS: std::ops::Range<u64> = 1..4;

    fn inside<T: 'static>(ambient_seed: u64, act: impl FnOnce() -> T + 'static) -> T {
        Runtime::with_seed_and_config(ambient_seed, Config::default()).block_on(async move { act() })
    }

    #[test]
    fn every_scenario_is_the_same_in_every_madsim_runtime() {
        let scenarios = catalog::all().expect("good scenarios");
        let mut audited_scenarios = 0;
        for named in &scenarios {
            if let Some((name, why)) = NOT_HERE.iter().find(|(name, _)| *name == named.name) {
                println!("{name}: not audited: {why}");
                continue;
            }
            audited_scenarios += 1;
            for seed in WORLD_SEEDS {
                let plain = run(&Plan::draw(&named.scenario, seed), None, Detail::Nothing);
                for ambient_seed in AMBIENT_SEEDS {
                    let plan = Plan::draw(&named.scenario, seed);
                    let audited: Outcome = inside(ambient_seed, move || run(&plan, None, Detail::Nothing));
                    assert_eq!(
                        plain.trace, audited.trace,
                        "{} seed {seed} differs inside madsim runtime {ambient_seed}",
                        named.name
                    );
                }
            }
            println!(
                "{}: {} seeds alike in {} runtimes",
                named.name,
                WORLD_SEEDS.count(),
                AMBIENT_SEEDS.len()
            );
        }
        let list = Command::new(env!("CARGO_BIN_EXE_reprise-sim")).arg("list").output();
        let listed = String::from_utf8(list.expect("the binary runs").stdout).expect("text").lines().count();
        println!("{audited_scenarios} scenarios audited of {listed} that `reprise-sim list` has");
        assert_eq!(audited_scenarios + NOT_HERE.len(), listed);
        assert!(listed > 0);
    }

    #[test]
    fn a_network_is_the_same_in_every_madsim_runtime() {
        for seed in WORLD_SEEDS {
            let plain = exchange(seed);
            for ambient_seed in AMBIENT_SEEDS {
                let audited = inside(ambient_seed, move || exchange(seed));
                assert_eq!(plain, audited, "seed {seed} differs inside madsim runtime {ambient_seed}");
            }
        }
    }

    /// The trace, in each runtime, of a world into which something leaks.
    fn seen_by(leak: fn() -> u64) -> Vec<u128> {
        let trace = move || {
            world::create(1, Temper::default(), Faults::none(1));
            let trace = world::with(|world| {
                world.note(leak(), 0);
                world.trace().finish()
            });
            world::clear();
            trace
        };
        AMBIENT_SEEDS.iter().map(|seed| inside(*seed, trace)).collect()
    }

    fn nothing() -> u64 {
        7
    }

    fn hash_order() -> u64 {
        let map: HashMap<u64, ()> = (0..64).map(|key| (key, ())).collect();
        map.keys().fold(0, |order, key| order.wrapping_mul(31).wrapping_add(*key))
    }

    fn set_order() -> u64 {
        let set: HashSet<&str> = ["read", "write", "flush", "discard", "zeroes", "identity"].into();
        set.iter().fold(0, |order, word| order.wrapping_mul(31).wrapping_add(word.len() as u64))
    }

    fn wall_clock() -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("after 1970").as_nanos() as u64
    }

    fn entropy() -> u64 {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(0)
    }

    #[test]
    fn planted_leaks_are_seen() {
        let still = seen_by(nothing);
        assert!(still.windows(2).all(|pair| pair[0] == pair[1]), "without a leak nothing differs: {still:?}");
        let leaks: [(&str, fn() -> u64); 4] = [
            ("order of a hash map", hash_order),
            ("order of a hash set", set_order),
            ("wall clock", wall_clock),
            ("entropy", entropy),
        ];
        for (name, leak) in leaks {
            let seen = seen_by(leak);
            assert!(
                seen.windows(2).any(|pair| pair[0] != pair[1]),
                "{name} is the same in every runtime: {seen:?}"
            );
            println!("caught: {name}");
        }
        let spawned = std::panic::catch_unwind(|| {
            inside(1, || std::thread::spawn(|| ()).join().is_ok());
        });
        assert!(spawned.is_err(), "a thread was spawned inside a runtime");
        println!("caught: a spawned thread");
    }
}
