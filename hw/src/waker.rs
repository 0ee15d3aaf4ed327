//! Waking a core that sleeps, and never paying for one that does not.
//!
//! Whoever has something for a core publishes it and then calls [`Waker::wake`], which costs a fence and a load while
//! the core is awake. A wake-up is not lost because each side writes before it reads, with a fence between:
//!
//! | core, before it sleeps | waker |
//! | --- | --- |
//! | `asleep = true` | publishes (a message, a result, a flag) |
//! | fence (A) | fence (B) |
//! | looks at everything that may be published | looks at `asleep`, and if it was set, clears it and rings |
//!
//! One of the two fences comes first. If it is A, the waker sees `asleep`; if it is B, the core sees what was published.

use crate::error::from_errno;
use runtime::Result;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// One core's.
#[derive(Debug)]
pub(crate) struct Waker {
    asleep: AtomicBool,
    event: OwnedFd,
}

impl Waker {
    /// For a core that is awake. Errors: `OutOfResources`.
    pub(crate) fn new() -> Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(from_errno)?;
        Ok(Self { asleep: AtomicBool::new(false), event })
    }

    /// After something was published for the core. From any thread.
    #[inline]
    pub(crate) fn wake(&self) {
        // Fence B; pairs with fence A in `fall_asleep`.
        fence(Ordering::SeqCst);
        self.wake_fenced();
    }

    /// As [`Waker::wake`], for a caller that has put fence B after its publication already.
    #[inline]
    pub(crate) fn wake_fenced(&self) {
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // Can fail only on a full counter, which wakes as well.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// By the core: from now on it is woken. What may wake it has to be looked at after this call.
    pub(crate) fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        // Fence A; pairs with fence B in `wake`.
        fence(Ordering::SeqCst);
    }

    /// By the core: it is awake, for whatever reason. A ring that comes late is taken at the end of the next sleep, which
    /// it ends at once.
    pub(crate) fn stay_awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// By the core: takes the rings, after a sleep that they ended.
    pub(crate) fn take(&self) {
        // EAGAIN when there was none, which does not matter.
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::sync::atomic::AtomicU64;

    const ROUNDS: u64 = 300_000;
    /// Longest delay before a sleep, in turns of an empty loop: the time in which a store reaches the other processor.
    const DELAY_TURNS: u64 = 600;
    /// A sleep that lasts so long was slept through a wake-up.
    const LOST: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

    #[test]
    fn no_wake_up_is_lost_however_close_it_comes_to_the_sleep() {
        let waker = Waker::new().unwrap();
        let (published, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    // So that the sleep begins at any moment around the next wake-up.
                    for turn in 0..round * 7 % DELAY_TURNS {
                        std::hint::black_box(turn);
                    }
                    while published.load(Ordering::Relaxed) < round {
                        waker.fall_asleep();
                        if published.load(Ordering::Relaxed) < round {
                            let ready = poll(&mut [PollFd::new(&waker, PollFlags::IN)], Some(&LOST)).unwrap();
                            if ready == 0 {
                                // The other thread waits for the answer.
                                answered.store(u64::MAX, Ordering::Relaxed);
                                panic!("the wake-up of round {round} was lost");
                            }
                            waker.take();
                        }
                        waker.stay_awake();
                    }
                    answered.store(round, Ordering::Relaxed);
                }
            });
            for round in 1..=ROUNDS {
                published.store(round, Ordering::Relaxed);
                waker.wake();
                let mut turns = 0u32;
                while answered.load(Ordering::Relaxed) < round {
                    turns += 1;
                    // The machine may have one processor to spare.
                    if turns.is_multiple_of(1000) { std::thread::yield_now() } else { std::hint::spin_loop() }
                }
            }
        });
    }
}
