//! A core that sleeps until a channel has something: no wake-up is lost, and none comes for nothing.

use crate::support::{ENGINES, Fixture, KIB, MIB, PATIENCE, wait};
use hw::files::{HostChannel, Wake};
use runtime::{FileChannel, FileCompletion, FileOp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::time::{Duration, Instant};

/// Sleeps on what the channels armed, as a reactor does; whether something woke it.
fn sleep(channels: &[&HostChannel], at_most: Duration) -> bool {
    let mut descriptors = Vec::new();
    for channel in channels {
        match channel.arm() {
            Wake::Ready => return true,
            Wake::Wait(descriptor) => descriptors.push(PollFd::from_borrowed_fd(descriptor, PollFlags::IN)),
        }
    }
    poll(&mut descriptors, Some(&Timespec::try_from(at_most).unwrap())).unwrap() > 0
}

#[test]
fn a_sleeping_core_is_woken_by_every_completion() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let mut second = fixture.core.channel(&fixture.file).unwrap();
        let mut completions: Vec<FileCompletion> = Vec::new();
        let (begin, mut sleeps) = (Instant::now(), 0);
        // On a busy machine much ends before anybody could sleep: until enough was slept.
        for turn in 0.. {
            if turn >= 300 && sleeps > 10 {
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "{engine:?}: {sleeps} sleeps in {turn} turns");
            let window = fixture.window(0, 4 * KIB);
            fixture.channel.submit(FileOp::Read, 0, 4 * KIB, &[window], turn).unwrap();
            if turn % 3 == 0 {
                second.submit(FileOp::Flush, 0, 0, &[], turn).unwrap();
            }
            if turn % 10 == 0 {
                // Not in the ring: in a thread that blocks, for AIO.
                second.submit(FileOp::Discard, 64 * KIB, 4 * KIB, &[], turn).unwrap();
            }
            let expected = 1 + usize::from(turn % 3 == 0) + usize::from(turn % 10 == 0);
            completions.clear();
            while completions.len() < expected {
                let worked = fixture.channel.poll(&mut completions) | second.poll(&mut completions);
                if !worked {
                    assert!(sleep(&[&fixture.channel, &second], PATIENCE), "{engine:?}: slept through");
                    sleeps += 1;
                }
            }
            assert!(completions.iter().all(|completion| completion.token == turn));
        }
    }
}

#[test]
fn an_idle_channel_wakes_nobody() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let window = fixture.window(0, 4 * KIB);
        let mut woken = 0;
        for turn in 1..=3 {
            fixture.channel.submit(FileOp::Read, 0, 4 * KIB, &[window], 1).unwrap();
            fixture.channel.submit(FileOp::Discard, 64 * KIB, 4 * KIB, &[], 1).unwrap();
            // Without sleeping in between, so that whatever was rung is still there.
            wait(&mut fixture.channel, 2);
            // Each operation may leave two wake-ups too many behind: the kernel raises its flag and rings after the
            // completion can be seen, as the discard's thread does; on a busy machine that may be in the next turn. Never a
            // stream of them.
            for _ in 0..10 {
                woken += usize::from(sleep(&[&fixture.channel], Duration::from_millis(10)));
                fixture.channel.poll(&mut Vec::new());
            }
            assert!(woken <= 4 * turn, "{engine:?}: {woken} wake-ups in turn {turn}");
        }
    }
}

#[test]
fn what_was_queued_or_has_ended_forbids_the_sleep() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let window = fixture.window(0, 4 * KIB);
        fixture.channel.submit(FileOp::Read, 0, 4 * KIB, &[window], 1).unwrap();
        assert!(matches!(fixture.channel.arm(), Wake::Ready), "{engine:?}: queued and not sent");
        wait(&mut fixture.channel, 1);
        fixture.channel.submit(FileOp::Read, 0, 0, &[], 1).unwrap();
        assert!(matches!(fixture.channel.arm(), Wake::Ready), "{engine:?}: ended without the kernel");
        wait(&mut fixture.channel, 1);

        // Found by another channel's poll.
        let mut second = fixture.core.channel(&fixture.file).unwrap();
        second.submit(FileOp::Read, 0, 4 * KIB, &[window], 2).unwrap();
        let mut own = Vec::new();
        second.poll(&mut own);
        let begin = Instant::now();
        while own.is_empty() && matches!(second.arm(), Wake::Wait(_)) {
            fixture.channel.submit(FileOp::Read, 0, 4 * KIB, &[window], 1).unwrap();
            wait(&mut fixture.channel, 1);
            assert!(begin.elapsed() < PATIENCE, "{engine:?}");
        }
        own.extend(if own.is_empty() { wait(&mut second, 1) } else { Vec::new() });
        assert_eq!(own[0].token, 2);
    }
}
