//! The simulated network: what becomes of connections whose process dies or whose machine loses its power, and of memory
//! that is used too early.

mod common;

use common::net::{ask, begin, exchange, seen};
use common::{Does, create, fail, finish, program, spawn};
use runtime::{Instant, Memory, Net, Platform, Poll, Segments, TcpListener, TcpStream, Window};
use sim::memory::SimMemory;
use sim::net::address_of;
use sim::scheduler;
use sim::world::{self, Step, Temper};
use std::net::SocketAddr;

#[test]
fn a_seed_is_the_same_exchange_again() {
    assert_eq!(exchange(1), exchange(1));
    assert_ne!(exchange(1), exchange(2));
}

/// Does something when the questions are answered, then something else `later_ms` later, and ends the run as long after that.
fn then(later_ms: u64, first: impl Fn() + 'static, second: impl Fn() + 'static) {
    let mut done = 0;
    let model = Does(move || {
        if seen().is_empty() {
            return Step::Idle { until: Some(Instant(common::now_ns() + 100_000)) };
        }
        match done {
            0 => first(),
            1 => second(),
            _ => world::with(|world| world.finish()),
        }
        done += 1;
        Step::Idle { until: Some(Instant(common::now_ns() + later_ms * 1_000_000)) }
    });
    world::with(|world| world.add_model(Box::new(model), false));
    finish();
    world::clear();
}

#[test]
fn the_peer_of_a_killed_process_finds_the_end() {
    for seed in 0..10 {
        let process = begin(seed);
        then(200, move || scheduler::kill(process), || assert_eq!(seen(), ["answered", "end"]));
    }
}

#[test]
fn a_machine_without_power_says_nothing_until_it_is_sent_to() {
    for seed in 0..10 {
        begin(seed);
        let second = || {
            assert_eq!(seen(), ["answered"]);
            ask();
        };
        then(500, || scheduler::power_loss(0), second);
        assert_eq!(seen(), ["answered", "closed"], "seed {seed}");
    }
}

/// Sends a byte of some memory, and then does something with that memory. Which checker speaks.
fn sends_and(act: fn(&mut Option<SimMemory>)) -> String {
    let machine = create(1, Temper::default());
    let program = program(move |platform| {
        let address = SocketAddr::new(address_of(0, false), 4420);
        let listener = platform.net().listen(address).unwrap();
        let mut stream = platform.net().connect(address, None).unwrap();
        let mut memory = Some(platform.shared_memory("test", 4).unwrap());
        let mut sent = false;
        move || {
            assert_eq!(listener.address(), address);
            if !sent && stream.is_connected().unwrap() {
                let window = memory.as_ref().unwrap().window();
                assert_eq!(stream.send(Segments(&[window.slice(1, 1).unwrap()]), 7), Ok(1));
                act(&mut memory);
                sent = true;
            }
            Poll::Idle { until: None }
        }
    });
    spawn(machine, &program);
    let checker = fail();
    world::clear();
    checker
}

#[test]
fn memory_that_is_used_before_its_release_is_seen() {
    assert_eq!(sends_and(|memory| memory.as_ref().unwrap().window().write(0, &[0, 1])), "net");
    assert_eq!(sends_and(|memory| *memory = None), "net");
    // Beside what was sent there is nothing to see, and nothing more happens.
    assert_eq!(sends_and(|memory| memory.as_ref().unwrap().window().write(2, &[1])), "stuck");
}
