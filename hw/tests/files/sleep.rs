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
        for turn in 0..300 {
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
        assert!(sleeps > 10, "{engine:?}: the test never slept");
        assert!(begin.elapsed() < PATIENCE);
    }
}

#[test]
fn an_idle_channel_wakes_nobody() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let window = fixture.window(0, 4 * KIB);
        for _ in 0..3 {
            fixture.channel.submit(FileOp::Read, 0, 4 * KIB, &[window], 1).unwrap();
            fixture.channel.submit(FileOp::Discard, 64 * KIB, 4 * KIB, &[], 1).unwrap();
            // Without sleeping in between, so that whatever was rung is still there.
            wait(&mut fixture.channel, 2);
            // Each operation may leave two wake-ups too many behind: the kernel raises its flag and rings after the
            // completion can be seen, as the discard's thread does. Never a stream of them.
            let woken = (0..10).filter(|_| {
                let woken = sleep(&[&fixture.channel], Duration::from_millis(10));
                fixture.channel.poll(&mut Vec::new());
                woken
            });
            assert!(woken.count() <= 4, "{engine:?}");
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
