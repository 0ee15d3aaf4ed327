//! Mailboxes, pollers on other cores, and jobs.

use super::{World, run, spawn};
use runtime::{CoreId, Job, Platform, Receiver, Sender};

/// A full box hands the message back.
pub fn messages_come_once_in_order_and_no_more_than_fit<W: World>() {
    run::<W, _>(1, |task| async move {
        let (sender, mut receiver) = task.platform.mailbox::<u32>(3);
        assert_eq!(receiver.receive(), None);
        for message in 0..3 {
            assert_eq!(sender.clone().send(message), Ok(()));
        }
        assert_eq!(sender.send(3), Err(3));
        let first = task.poll("a message", || receiver.receive()).await;
        assert_eq!(first, 0);
        assert_eq!(sender.send(4), Ok(()));
        let mut rest = Vec::new();
        while rest.len() < 3 {
            rest.push(task.poll("a message", || receiver.receive()).await);
        }
        assert_eq!((rest, receiver.receive()), (vec![1, 2, 4], None));
    });
}

/// Nothing is sent to nobody, and what waited in the box ends with it.
pub fn a_box_without_receiver_hands_back<W: World>() {
    run::<W, _>(1, |task| async move {
        let (sender, receiver) = task.platform.mailbox(3);
        let counted = std::sync::Arc::new(());
        assert!(sender.send(counted.clone()).is_ok());
        drop(receiver);
        assert_eq!(std::sync::Arc::strong_count(&counted), 1);
        assert!(sender.send(counted.clone()).is_err());
    });
}

/// From every core to one, each sender's messages in its order.
pub fn messages_cross_cores<W: World>() {
    const MESSAGES: u32 = 500;
    run::<W, _>(3, |task| async move {
        let (sender, mut receiver) = task.platform.mailbox::<(CoreId, u32)>(8);
        for core in [1, 2, 2].map(CoreId) {
            let sender = sender.clone();
            spawn(&task.platform, core, move |task| async move {
                for message in 0..MESSAGES {
                    let message = (task.platform.here(), message);
                    task.poll("room in the box", || sender.send(message).ok()).await;
                }
            });
        }
        let mut next = [[0; 3]; 2];
        for _ in 0..3 * MESSAGES {
            let (core, message) = task.poll("a message", || receiver.receive()).await;
            assert!((1..=2).contains(&core.0));
            // Two senders share core 2: each of its messages comes twice, and each sender's in order.
            let seen = &mut next[usize::from(core.0) - 1];
            let place = seen.iter().position(|expected| *expected == message);
            let place = place.unwrap_or_else(|| panic!("{message} of core {core} after {seen:?}"));
            seen[place] += 1;
        }
        assert_eq!(next[0][0], MESSAGES);
        assert_eq!((next[1][0], next[1][1]), (MESSAGES, MESSAGES));
    });
}

/// Constructors run there, in the order in which they were given.
pub fn pollers_start_in_order_on_their_core<W: World>() {
    run::<W, _>(2, |task| async move {
        assert_eq!((task.platform.here(), task.platform.cores()), (CoreId(0), 2));
        let (sender, mut receiver) = task.platform.mailbox(64);
        for number in 0..10 {
            let core = CoreId(number % 2);
            let sender = sender.clone();
            spawn(&task.platform, core, move |task| {
                // Already in the constructor.
                sender.send((task.platform.here(), number)).expect("there is room");
                async {}
            });
        }
        let mut seen = [Vec::new(), Vec::new()];
        for _ in 0..10 {
            let (core, number) = task.poll("a message", || receiver.receive()).await;
            assert_eq!(core, CoreId(number % 2));
            seen[usize::from(core.0)].push(number);
        }
        assert_eq!(seen, [vec![0, 2, 4, 6, 8], vec![1, 3, 5, 7, 9]]);
        let reactors = task.platform.reactors();
        assert_eq!(reactors.iter().map(|times| times.core.0).collect::<Vec<_>>(), [0, 1]);
    });
}

/// A job runs though it is not waited for, and its result is taken once.
pub fn a_job_gives_its_result_once<W: World>() {
    run::<W, _>(1, |task| async move {
        let (sender, mut receiver) = task.platform.mailbox(1);
        drop(task.platform.offload(move || sender.send("ran")));
        let mut job = task.platform.offload(|| String::from("result"));
        assert_eq!(task.poll("the job", || job.take()).await, "result");
        assert_eq!(job.take(), None);
        assert_eq!(task.poll("the job that was dropped", || receiver.receive()).await, "ran");
    });
}
