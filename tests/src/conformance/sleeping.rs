//! A core that sleeps is woken by what it armed. A wake-up that is lost shows as a wait in vain: the test's own limit is
//! the next moment at which the core would be polled again.

use super::{World, connection, ready, run, send, spawn};
use runtime::{CoreId, Handle, Interest, Job, Listener, Notifier, Platform, Receiver, Sender, Stream, Wakes};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Long enough for the other core to be asleep.
const A_WHILE: Duration = Duration::from_millis(2);

/// Does something on core 1 after a while.
fn later<P: Platform>(platform: &P, act: impl FnOnce() + Send + 'static) {
    spawn(platform, CoreId(1), move |task: super::Task<P>| async move {
        task.sleep_until(task.platform.now().after(A_WHILE)).await;
        act();
    });
}

/// A ring by another core.
pub fn a_notifier_wakes<W: World>() {
    run::<W, _>(2, |task| async move {
        let (one, other) = W::eventfd();
        let one = Rc::new(one.into_notifier().unwrap());
        let other = other.into_notifier().unwrap();
        later(&task.platform, move || other.ring());
        let armed = one.clone();
        task.sleep("a ring", || one.take().then_some(()), move |wakes| wakes.notifier(&armed)).await;
    });
}

/// Bytes.
pub fn a_stream_wakes<W: World>() {
    run::<W, _>(2, |task| async move {
        let (ours, mut theirs) = connection::<W>(&task).await;
        let ours = Rc::new(RefCell::new(ours));
        later(&task.platform, move || {
            theirs.send(b"x", &[]).expect("there is room");
            // The end must not be what wakes.
            std::mem::forget(theirs);
        });
        let armed = ours.clone();
        let mut into = [0; 4];
        let ask = || ready(ours.borrow_mut().recv(&mut into, &mut Vec::new()));
        let arm =
            move |wakes: &mut _| Wakes::<W::Platform>::stream(wakes, &*armed.borrow(), Interest::Receive);
        assert_eq!(task.sleep("a byte", ask, arm).await, 1);
    });
}

/// Room in a full stream, for who waits for it.
pub fn room_to_send_wakes<W: World>() {
    run::<W, _>(2, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        let mut full = false;
        while !full {
            full = task.poll("a full stream", || Some(ready(ours.send(&[0; 4096], &[])).is_none())).await;
        }
        let ours = Rc::new(RefCell::new(ours));
        let (done, mut is_done) = task.platform.mailbox::<()>(1);
        spawn(&task.platform, CoreId(1), move |task| async move {
            task.sleep_until(task.platform.now().after(A_WHILE)).await;
            let mut into = vec![0; 65536];
            task.poll("the end of the test", || {
                let _drained = ready(theirs.recv(&mut into, &mut Vec::new()));
                is_done.receive()
            })
            .await;
        });
        let armed = ours.clone();
        let ask = || ready(ours.borrow_mut().send(b"x", &[]));
        let arm = move |wakes: &mut _| {
            Wakes::<W::Platform>::stream(wakes, &*armed.borrow(), Interest::ReceiveAndSend)
        };
        assert_eq!(task.sleep("room", ask, arm).await, 1);
        done.send(()).expect("there is room");
    });
}

/// The end of a connection.
pub fn the_other_ends_close_wakes<W: World>() {
    run::<W, _>(2, |task| async move {
        let (ours, theirs) = connection::<W>(&task).await;
        let ours = Rc::new(RefCell::new(ours));
        later(&task.platform, move || drop(theirs));
        let armed = ours.clone();
        let ask = || ready(ours.borrow_mut().recv(&mut [0; 4], &mut Vec::new()));
        let arm =
            move |wakes: &mut _| Wakes::<W::Platform>::stream(wakes, &*armed.borrow(), Interest::Receive);
        assert_eq!(task.sleep("the end", ask, arm).await, 0);
    });
}

/// The end of a connection that has bytes which nobody receives, and which do not wake.
pub fn a_close_wakes_who_does_not_receive<W: World>() {
    run::<W, _>(2, |task| async move {
        let (ours, mut theirs) = connection::<W>(&task).await;
        send::<W>(&task, &mut theirs, b"unheard", &[]).await;
        let ours = Rc::new(ours);
        later(&task.platform, move || drop(theirs));
        let armed = ours.clone();
        let arm = move |wakes: &mut _| Wakes::<W::Platform>::stream(wakes, &armed, Interest::Close);
        task.sleep("the close", || ours.is_closed().then_some(()), arm).await;
    });
}

/// A connection to accept.
pub fn a_listener_wakes<W: World>() {
    run::<W, _>(2, |task| async move {
        let path = W::socket_path();
        let listener = Rc::new(RefCell::new(task.platform.listen(&path, &Default::default()).unwrap()));
        later(&task.platform, move || std::mem::forget(W::connect(&path).expect("somebody listens")));
        let armed = listener.clone();
        let ask = || listener.borrow_mut().accept().unwrap();
        let arm = move |wakes: &mut _| Wakes::<W::Platform>::listener(wakes, &*armed.borrow());
        task.sleep("a connection", ask, arm).await;
    });
}

/// A message of another core.
pub fn a_message_wakes<W: World>() {
    run::<W, _>(2, |task| async move {
        let (sender, receiver) = task.platform.mailbox(1);
        let receiver = Rc::new(RefCell::new(receiver));
        later(&task.platform, move || sender.send(7).expect("there is room"));
        let armed = receiver.clone();
        let arm = move |wakes: &mut _| Wakes::<W::Platform>::mailbox(wakes, &*armed.borrow());
        assert_eq!(task.sleep("a message", || receiver.borrow_mut().receive(), arm).await, 7);
    });
}

/// The end of a job.
pub fn a_job_wakes<W: World>() {
    run::<W, _>(1, |task| async move {
        for _ in 0..20 {
            let job = Rc::new(RefCell::new(task.platform.offload(|| 7)));
            let armed = job.clone();
            let arm = move |wakes: &mut _| Wakes::<W::Platform>::job(wakes, &*armed.borrow());
            assert_eq!(task.sleep("the job", || job.borrow_mut().take(), arm).await, 7);
        }
    });
}

/// The moment that a poller gave, not before it.
pub fn a_moment_wakes<W: World>() {
    run::<W, _>(1, |task| async move {
        for _ in 0..10 {
            let moment = task.platform.now().after(A_WHILE);
            task.sleep_until(moment).await;
            assert!(task.platform.now() >= moment);
        }
    });
}

/// Level-triggered: what is there already when the core arms keeps it awake, of every kind.
pub fn what_came_before_the_sleep_ends_it<W: World>() {
    run::<W, _>(1, |task| async move {
        let (one, other) = W::eventfd();
        other.into_notifier().unwrap().ring();
        let one = one.into_notifier().unwrap();
        finds(&task, A_WHILE, move |wakes| wakes.notifier(&one)).await;

        let (ours, mut theirs) = connection::<W>(&task).await;
        send::<W>(&task, &mut theirs, b"x", &[]).await;
        finds(&task, A_WHILE, move |wakes| wakes.stream(&ours, Interest::Receive)).await;
        finds(&task, A_WHILE, move |wakes| wakes.stream(&theirs, Interest::ReceiveAndSend)).await;

        let path = W::socket_path();
        let listener = task.platform.listen(&path, &Default::default()).unwrap();
        let _waiting = W::connect(&path).unwrap();
        finds(&task, A_WHILE, move |wakes| wakes.listener(&listener)).await;

        let (sender, receiver) = task.platform.mailbox(1);
        sender.send(7).unwrap();
        finds(&task, A_WHILE, move |wakes| wakes.mailbox(&receiver)).await;

        let (sender, mut receiver) = task.platform.mailbox(1);
        let job = task.platform.offload(move || sender.send(7));
        // The job has all but ended when its message is there.
        task.poll("the job's message", || receiver.receive()).await;
        finds(&task, A_WHILE, move |wakes| wakes.job(&job)).await;
    });
}

/// Lets the core sleep with one thing armed, which is there or comes within `within`. Returns once it was woken, or after
/// that time where the world never sleeps.
pub(super) async fn finds<P: Platform>(
    task: &super::Task<P>,
    within: Duration,
    mut arm: impl FnMut(&mut P::Wakes) + 'static,
) {
    let has_armed = Rc::new(Cell::new(false));
    let told = has_armed.clone();
    let limit = task.platform.now().after(within);
    let ask = || (has_armed.get() || task.platform.now() >= limit).then_some(());
    let arm = move |wakes: &mut P::Wakes| {
        arm(wakes);
        told.set(true);
    };
    task.sleep("what was there before", ask, arm).await;
    assert!(task.platform.now() < limit.after(A_WHILE * 500), "the core slept over what was there before");
}

/// Two cores that answer each other, each asleep or about to be when the other's message comes.
pub fn no_message_of_a_long_exchange_is_slept_through<W: World>() {
    const ROUNDS: u64 = 3_000;
    run::<W, _>(2, |task| async move {
        let (ping, pings) = task.platform.mailbox::<u64>(1);
        let (pong, pongs) = task.platform.mailbox::<u64>(1);
        spawn(&task.platform, CoreId(1), move |task| async move {
            let pings = Rc::new(RefCell::new(pings));
            for round in 0..ROUNDS {
                let armed = pings.clone();
                let arm = move |wakes: &mut _| Wakes::<W::Platform>::mailbox(wakes, &*armed.borrow());
                assert_eq!(task.sleep("a ping", || pings.borrow_mut().receive(), arm).await, round);
                pong.send(round).expect("there is room");
            }
        });
        let pongs = Rc::new(RefCell::new(pongs));
        for round in 0..ROUNDS {
            // From at once to well asleep, and most often at about the time at which a core falls asleep.
            let delay = Duration::from_nanos(task.platform.random() % 60_000);
            let moment = task.platform.now().after(delay);
            task.poll("a moment", || (task.platform.now() >= moment).then_some(())).await;
            ping.send(round).expect("there is room");
            let armed = pongs.clone();
            let arm = move |wakes: &mut _| Wakes::<W::Platform>::mailbox(wakes, &*armed.borrow());
            assert_eq!(task.sleep("a pong", || pongs.borrow_mut().receive(), arm).await, round);
        }
    });
}
