//! All crash points of small histories. Every life of every script is killed at each of its stores; from each state
//! that this can leave, every second life again at each of its stores; and from each of those, every third one inside
//! its recovery. Between two lives the driver does nothing, or takes what came back and fills the ring.
//!
//! What a death leaves is memory and what the driver knows, so equal states are gone on from once.

use super::Layout;
use super::model::{Step, World};
use super::packed::Packed;
use super::split::Split;
use std::collections::HashSet;
use tests::flat;

/// How far one enumeration goes.
struct Scope {
    size: u16,
    /// Requests that the ring has behind it when tracking begins: its index, or its position, is not at the beginning.
    past: u16,
    /// Requests of the whole history.
    requests: u32,
    /// Descriptors of the requests, in turn.
    pattern: &'static [u16],
    /// Longest scripts of the first and of the second life.
    steps: [usize; 2],
}

/// A world and the memory that it stands on.
type State<L> = (World<L>, Vec<u8>);

struct Enumeration<L> {
    scope: Scope,
    /// Lives run, the whole ones that counted their stores included.
    lives: u64,
    _layout: std::marker::PhantomData<L>,
}

impl<L: Layout> Enumeration<L> {
    /// What a life can do: take one or all, and give back one of the first three, some, or all, in and out of order.
    fn alphabet(&self) -> Vec<Step> {
        let size = usize::from(self.scope.size);
        let mut gives = vec![vec![0], vec![1], vec![2], vec![0, 0], vec![1, 0], vec![1, 1, 0]];
        gives.extend([vec![0; size], (0..size).rev().collect()]);
        gives.retain(|picks| picks.len() <= size && picks[0] < size);
        gives.sort_unstable();
        gives.dedup();
        [Step::Fill(self.scope.pattern), Step::Take(1), Step::Take(size)]
            .into_iter()
            .chain(gives.into_iter().map(Step::Give))
            .collect()
    }

    /// All scripts of at most `steps` steps that are not the beginning of a longer one.
    fn scripts(&self, steps: usize) -> Vec<Vec<Step>> {
        let mut scripts = vec![Vec::new()];
        for _ in 0..steps {
            scripts = scripts
                .iter()
                .flat_map(|script: &Vec<Step>| {
                    self.alphabet().into_iter().map(move |step| {
                        let mut longer = script.clone();
                        longer.push(step);
                        longer
                    })
                })
                .collect();
        }
        scripts
    }

    /// What every death of every life from `states` leaves, the driver's turn after it included.
    fn deaths(&mut self, states: &HashSet<State<L>>, scripts: &[Vec<Step>]) -> HashSet<State<L>> {
        let mut left = HashSet::new();
        for (world, memory) in states {
            for script in scripts {
                flat::restore(memory);
                let (stores, _) = flat::count_stores(|| world.clone().live(script, None));
                self.lives += stores + 1;
                for store in 0..stores {
                    flat::restore(memory);
                    let mut dead = world.clone();
                    assert!(!dead.live(script, Some(store)), "the life has {stores} stores");
                    left.insert((dead.clone(), flat::snapshot()));
                    dead.fill(self.scope.pattern);
                    left.insert((dead, flat::snapshot()));
                }
            }
        }
        left
    }

    fn run(scope: Scope) -> String {
        let name = format!("{:>4} {:>5} {:>8} {:?}", scope.size, scope.past, scope.requests, scope.pattern);
        let mut this = Self { scope, lives: 0, _layout: std::marker::PhantomData };
        let Scope { size, past, requests, pattern, steps } = this.scope;
        let mut world = World::<L>::new(size, past, requests);
        world.fill(pattern);
        let start = HashSet::from([(world, flat::snapshot())]);
        let first = this.deaths(&start, &this.scripts(steps[0]));
        let second = this.deaths(&first, &this.scripts(steps[1]));
        let third = this.deaths(&second, &[Vec::new()]);
        let mut last = HashSet::new();
        for state in first.iter().chain(&second).chain(&third) {
            if last.insert(state) {
                let (mut world, memory) = state.clone();
                flat::restore(&memory);
                world.drain();
            }
        }
        format!("{name:<28} {:>8} {:>8} {:>9} {:>10}", first.len(), second.len(), third.len(), this.lives)
    }
}

const HEADER: &str = "size  past requests descriptors     one dead      two     three      lives";

#[test]
fn every_store_of_a_split_ring() {
    println!("split\n{HEADER}");
    for (size, past, requests, steps) in [(2, 65_535, 6, [4, 2]), (4, 65_534, 8, [4, 1]), (8, 0, 12, [3, 1])]
    {
        println!("{}", Enumeration::<Split>::run(Scope { size, past, requests, pattern: &[1], steps }));
    }
}

#[test]
fn every_store_of_a_packed_ring() {
    println!("packed\n{HEADER}");
    for (size, past, requests, steps, pattern) in [
        (2, 1, 6, [4, 2], &[1][..]),
        (2, 0, 5, [3, 2], &[2]),
        (3, 2, 6, [3, 2], &[1, 2]),
        (4, 3, 8, [4, 1], &[2, 1]),
        (8, 6, 10, [3, 1], &[3, 1, 2]),
    ] {
        println!("{}", Enumeration::<Packed>::run(Scope { size, past, requests, pattern, steps }));
    }
}
