//! Streams, listeners, and the handles that ride along.

use super::{StreamOf, World, connection, ready, receive, run, send};
use runtime::{Access, ErrorKind, Handle, Listener, Memory, Notifier, Platform, Stream, Window};
use std::sync::atomic::Ordering::Relaxed;

/// More than fits into a socket, both ways, in whatever pieces it comes.
pub fn bytes_arrive_whole_and_in_order<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        let sent: Vec<u8> = (0..1_000_000u32).map(|at| (at / 7) as u8).collect();
        for _direction in 0..2 {
            let (mut done, mut got) = (0, Vec::new());
            while got.len() < sent.len() {
                let mut into = [0; 3001];
                let came = task
                    .poll("bytes", || {
                        if done < sent.len() {
                            let end = sent.len().min(done + 7001);
                            done += ready(ours.send(&sent[done..end], &[])).unwrap_or(0);
                        }
                        ready(theirs.recv(&mut into, &mut Vec::new()))
                    })
                    .await;
                got.extend_from_slice(&into[..came]);
            }
            assert!(got == sent, "the bytes differ");
            std::mem::swap(&mut ours, &mut theirs);
        }
    });
}

/// Handles come with the first byte that they were sent with, keep their order, and a call stops behind them.
pub fn handles_ride_on_their_bytes<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        let memory = task.platform.shared_memory("test", 4096).unwrap();
        let (bell, other_bell) = W::eventfd();
        let bell = bell.into_notifier().unwrap();
        let handle = memory.handle().unwrap();
        send::<W>(&task, &mut theirs, b"ab", &[&handle, &other_bell]).await;
        send::<W>(&task, &mut theirs, b"cd", &[&handle]).await;
        let (mut bytes, mut handles) = ([0; 16], Vec::new());
        let mut got = Vec::new();
        while handles.is_empty() {
            let len = task.poll("bytes", || ready(ours.recv(&mut bytes, &mut handles))).await;
            got.extend_from_slice(&bytes[..len]);
        }
        assert!(handles.len() == 2 && (1..=2).contains(&got.len()), "{} handles, {got:?}", handles.len());
        while got.len() < 4 {
            let len = task.poll("bytes", || ready(ours.recv(&mut bytes, &mut handles))).await;
            got.extend_from_slice(&bytes[..len]);
        }
        assert_eq!((&got[..], handles.len()), (&b"abcd"[..], 3));
        // They are the objects that were sent, whatever became of the sender's.
        drop((theirs, handle));
        handles.swap_remove(1).into_notifier().unwrap().ring();
        assert!(bell.take());
        let mapped = handles[0].map(0, 4096, Access::ReadWrite).unwrap();
        mapped.window().store_u64(8, 77, Relaxed);
        assert_eq!(memory.window().load_u64(8, Relaxed), 77);
    });
}

/// The most handles that a message may carry, in both directions.
pub fn as_many_handles_ride_as_the_contract_says<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        let memory = task.platform.shared_memory("test", 4096).unwrap();
        let many: Vec<_> = (0..StreamOf::<W>::MAX_HANDLES).map(|_| memory.handle().unwrap()).collect();
        let many: Vec<_> = many.iter().collect();
        for _direction in 0..2 {
            send::<W>(&task, &mut ours, b"x", &many).await;
            let mut handles = Vec::new();
            receive::<W>(&task, &mut theirs, &mut [0], &mut handles).await;
            assert_eq!(handles.len(), many.len());
            std::mem::swap(&mut ours, &mut theirs);
        }
    });
}

/// Nothing to receive, nobody to accept, and no room to send are not errors of the connection.
pub fn nothing_there_is_no_end<W: World>() {
    run::<W, _>(1, |task| async move {
        let path = W::socket_path();
        let mut listener = task.platform.listen(&path, &Default::default()).unwrap();
        assert!(listener.accept().unwrap().is_none());
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        let nothing = ours.recv(&mut [0; 4], &mut Vec::new());
        assert_eq!(nothing.map_err(|error| error.kind), Err(ErrorKind::WouldBlock));
        // Nobody receives, so at some time there is no room; and then all that was taken arrives.
        let mut sent = 0u64;
        let chunk = [9; 4096];
        task.poll("a full stream", || match ours.send(&chunk, &[]) {
            Ok(len) => {
                assert!((1..=chunk.len()).contains(&len));
                sent += len as u64;
                assert!(sent < 1 << 30, "a stream takes everything and holds it");
                None
            }
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::WouldBlock);
                Some(())
            }
        })
        .await;
        while sent > 0 {
            let mut into = [0; 8192];
            sent -= task.poll("bytes", || ready(theirs.recv(&mut into, &mut Vec::new()))).await as u64;
        }
    });
}

/// What was sent before the close is received before the end; sending to nobody is an error.
pub fn the_end_is_told_after_the_last_byte<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        send::<W>(&task, &mut theirs, b"last", &[]).await;
        drop(theirs);
        let mut bytes = [0; 4];
        receive::<W>(&task, &mut ours, &mut bytes, &mut Vec::new()).await;
        assert_eq!(&bytes, b"last");
        let end = task.poll("the end", || ready(ours.recv(&mut bytes, &mut Vec::new()))).await;
        assert_eq!(end, 0);
        let sent = ours.send(b"x", &[]);
        assert_eq!(sent.map_err(|error| error.kind), Err(ErrorKind::Closed));
    });
}

/// Whether the other end is there can be asked without receiving.
pub fn a_close_is_told_of_what_was_not_received<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        send::<W>(&task, &mut theirs, b"last", &[]).await;
        assert!(!ours.is_closed() && !theirs.is_closed());
        drop(theirs);
        task.poll("the close", || ours.is_closed().then_some(())).await;
        receive::<W>(&task, &mut ours, &mut [0; 4], &mut Vec::new()).await;
    });
}

/// One listener a path, and none after its end.
pub fn a_live_path_is_not_taken_and_a_free_one_is<W: World>() {
    run::<W, _>(1, |task| async move {
        let path = W::socket_path();
        for _life in 0..2 {
            let listener = task.platform.listen(&path, &Default::default()).unwrap();
            let second = task.platform.listen(&path, &Default::default());
            assert_eq!(second.err().map(|error| error.kind), Some(ErrorKind::AlreadyExists));
            assert!(W::connect(&path).is_ok());
            drop(listener);
            assert!(W::connect(&path).is_err());
        }
    });
}

/// A path may be 107 bytes long.
pub fn a_path_must_fit_a_socket<W: World>() {
    run::<W, _>(1, |task| async move {
        let path = format!("{:x<108}", W::socket_path());
        let refused = task.platform.listen(&path, &Default::default());
        assert_eq!(refused.err().map(|error| error.kind), Some(ErrorKind::Invalid));
        assert!(task.platform.listen(&path[..107], &Default::default()).is_ok());
    });
}

/// Memory and eventfds are none.
pub fn only_a_stream_becomes_a_stream<W: World>() {
    run::<W, _>(1, |task| async move {
        let memory = task.platform.shared_memory("test", 4096).unwrap();
        for handle in [memory.handle().unwrap(), W::eventfd().0] {
            let refused = handle.into_stream();
            assert_eq!(refused.err().map(|error| error.kind), Some(ErrorKind::Invalid));
        }
    });
}
