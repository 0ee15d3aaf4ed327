//! TCP between two hosts.

use super::sleeping::finds;
use super::{NetOf, Task, TcpStreamOf, World, ready, run, spawn};
use runtime::{
    CoreId, ErrorKind, Interest, Memory, Net, Platform, Receiver, Segments, Sender, TcpListener, TcpStream,
    Wakes, Window,
};
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

/// Long enough for the other core to be asleep.
const A_WHILE: Duration = Duration::from_millis(2);
/// More than fits into two sockets' buffers in the simulator.
const LARGE: usize = 400_000;

type ListenerOf<W> = <NetOf<W> as Net>::Listener;
type MemoryOf<W> = <<W as World>::Platform as Platform>::Memory;

/// A listener at a free port of the process's host.
fn listen<W: World>(task: &Task<W::Platform>, is_ipv6: bool) -> ListenerOf<W> {
    task.platform.net().listen(SocketAddr::new(W::host_address(is_ipv6), 0)).expect("there is a free port")
}

/// The other host connects to a listener: the process's end, and the other.
async fn connect<W: World>(
    task: &Task<W::Platform>,
    listener: &mut ListenerOf<W>,
) -> (TcpStreamOf<W>, TcpStreamOf<W>) {
    let mut theirs = W::another_host(&task.platform).connect(listener.address(), None).expect("it begins");
    let ours = task.poll("a connection", || listener.accept().expect("accept does not fail")).await;
    is_made::<W>(task, &mut theirs).await;
    (ours, theirs)
}

async fn is_made<W: World>(task: &Task<W::Platform>, stream: &mut TcpStreamOf<W>) {
    task.poll("the connection", || stream.is_connected().expect("nobody refuses").then_some(())).await;
}

/// A connection: the process's end, and the other host's.
async fn connection<W: World>(task: &Task<W::Platform>) -> (TcpStreamOf<W>, TcpStreamOf<W>) {
    let mut listener = listen::<W>(task, false);
    connect::<W>(task, &mut listener).await
}

/// Shared memory with some bytes in it.
fn memory<W: World>(task: &Task<W::Platform>, bytes: &[u8]) -> MemoryOf<W> {
    let memory = task.platform.shared_memory("test", bytes.len() as u64).expect("there is memory");
    memory.window().write(0, bytes);
    memory
}

/// Bytes of which no two neighbourhoods are alike.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

/// Sends all of some bytes, and waits until their memory is released.
async fn send<W: World>(task: &Task<W::Platform>, stream: &mut TcpStreamOf<W>, bytes: &[u8]) {
    let memory = memory::<W>(task, bytes);
    let (mut done, mut sends) = (0, 0);
    while done < bytes.len() as u64 {
        let rest = memory.window().slice(done, bytes.len() as u64 - done).expect("inside");
        done += task.poll("room to send", || ready(stream.send(Segments(&[rest]), sends))).await;
        sends += 1;
    }
    for token in 0..sends {
        assert_eq!(task.poll("a release", || stream.released()).await, token);
    }
}

/// Receives so many bytes.
async fn receive<W: World>(task: &Task<W::Platform>, stream: &mut TcpStreamOf<W>, len: usize) -> Vec<u8> {
    let memory = memory::<W>(task, &vec![0; len]);
    let mut done = 0;
    while done < len as u64 {
        let rest = memory.window().slice(done, len as u64 - done).expect("inside");
        let received = task.poll("bytes", || ready(stream.recv_into(Segments(&[rest])))).await;
        assert!(received > 0, "the other end closed");
        done += received;
    }
    let mut bytes = vec![0; len];
    memory.window().read(0, &mut bytes);
    bytes
}

/// What comes next: bytes (their number), the end (0), or an error.
async fn next<W: World>(task: &Task<W::Platform>, stream: &mut TcpStreamOf<W>) -> Result<usize, ErrorKind> {
    task.poll("something to receive", || match stream.peek(1) {
        Ok(bytes) => Some(Ok(bytes.len())),
        Err(error) if error.kind == ErrorKind::WouldBlock => None,
        Err(error) => Some(Err(error.kind)),
    })
    .await
}

/// Each end knows both addresses, and bytes go both ways.
pub fn hosts_connect_over_both_families<W: World>() {
    run::<W, _>(1, |task| async move {
        for is_ipv6 in [false, true] {
            let mut listener = listen::<W>(&task, is_ipv6);
            assert_eq!(listener.address().ip(), W::host_address(is_ipv6));
            let (mut ours, mut theirs) = connect::<W>(&task, &mut listener).await;
            assert_eq!((ours.local(), theirs.peer()), (listener.address(), listener.address()));
            assert_eq!(ours.peer(), theirs.local());
            send::<W>(&task, &mut ours, b"to the other").await;
            assert_eq!(receive::<W>(&task, &mut theirs, 12).await, b"to the other");
            send::<W>(&task, &mut theirs, b"back").await;
            assert_eq!(receive::<W>(&task, &mut ours, 4).await, b"back");
            // The same host, at all its addresses, from one of its own.
            let any: IpAddr = if is_ipv6 { [0; 16].into() } else { [0; 4].into() };
            let mut listener = task.platform.net().listen(SocketAddr::new(any, 0)).unwrap();
            let to = SocketAddr::new(W::host_address(is_ipv6), listener.address().port());
            let mut mine = task.platform.net().connect(to, Some(W::host_address(is_ipv6))).unwrap();
            let accepted = task.poll("a connection", || listener.accept().unwrap()).await;
            is_made::<W>(&task, &mut mine).await;
            assert_eq!((accepted.local(), accepted.peer().ip()), (to, W::host_address(is_ipv6)));
        }
    });
}

/// Where nobody listens, and where nobody does any more.
pub fn nobody_listening_refuses<W: World>() {
    run::<W, _>(1, |task| async move {
        let listener = listen::<W>(&task, false);
        let address = listener.address();
        drop(listener);
        for net in [W::another_host(&task.platform), task.platform.net()] {
            let refused = match net.connect(address, None) {
                Err(error) => error.kind,
                Ok(mut stream) => {
                    let ask = || match stream.is_connected() {
                        Ok(false) => None,
                        Ok(true) => panic!("it is connected to nobody"),
                        Err(error) => Some(error.kind),
                    };
                    let kind = task.poll("a refusal", ask).await;
                    // It says so again.
                    assert_eq!(stream.peek(1).err().map(|error| error.kind), Some(kind));
                    kind
                }
            };
            assert_eq!(refused, ErrorKind::Refused);
        }
    });
}

/// One listener a port, at addresses that are the host's.
pub fn a_taken_port_is_refused<W: World>() {
    run::<W, _>(1, |task| async move {
        let net = task.platform.net();
        for _life in 0..2 {
            let listener = listen::<W>(&task, false);
            let taken = net.listen(listener.address()).err().map(|error| error.kind);
            assert_eq!(taken, Some(ErrorKind::AlreadyExists));
            // At another family the port is another one, and is free or is not; at all addresses it is taken.
            let all = net.listen(SocketAddr::new([0; 4].into(), listener.address().port()));
            assert_eq!(all.err().map(|error| error.kind), Some(ErrorKind::AlreadyExists));
        }
        let elsewhere = SocketAddr::new([203, 0, 113, 1].into(), 4420);
        assert_eq!(net.listen(elsewhere).err().map(|error| error.kind), Some(ErrorKind::NotFound));
        let from = Some(elsewhere.ip());
        let to = SocketAddr::new(W::host_address(false), 4420);
        assert_eq!(net.connect(to, from).err().map(|error| error.kind), Some(ErrorKind::NotFound));
    });
}

/// A process that starts again listens where it did, whatever became of the connections of its last life.
pub fn a_port_is_free_while_connections_of_its_last_listener_live<W: World>() {
    run::<W, _>(1, |task| async move {
        let mut listener = listen::<W>(&task, false);
        let address = listener.address();
        let (mut living, mut living_peer) = connect::<W>(&task, &mut listener).await;
        let (closed, _closed_peer) = connect::<W>(&task, &mut listener).await;
        drop((listener, closed));
        let mut listener = task.platform.net().listen(address).expect("the port is free");
        let (mut ours, mut theirs) = connect::<W>(&task, &mut listener).await;
        send::<W>(&task, &mut ours, b"new").await;
        send::<W>(&task, &mut living, b"old").await;
        assert_eq!(receive::<W>(&task, &mut theirs, 3).await, b"new");
        assert_eq!(receive::<W>(&task, &mut living_peer, 3).await, b"old");
    });
}

/// They were connected, as far as the other host could see.
pub fn what_nobody_accepted_ends_with_the_listener<W: World>() {
    run::<W, _>(1, |task| async move {
        let listener = listen::<W>(&task, false);
        let mut theirs = W::another_host(&task.platform).connect(listener.address(), None).unwrap();
        is_made::<W>(&task, &mut theirs).await;
        drop(listener);
        let end = next::<W>(&task, &mut theirs).await;
        assert!(matches!(end, Ok(0) | Err(ErrorKind::Closed)), "{end:?}");
    });
}

/// Nobody to accept, nothing to receive, nothing released, are no errors.
pub fn nothing_there_is_no_end<W: World>() {
    run::<W, _>(1, |task| async move {
        let mut listener = listen::<W>(&task, false);
        assert!(listener.accept().unwrap().is_none());
        let (mut ours, _theirs) = connect::<W>(&task, &mut listener).await;
        assert!(listener.accept().unwrap().is_none());
        assert_eq!(ours.peek(1).map(<[u8]>::len).map_err(|error| error.kind), Err(ErrorKind::WouldBlock));
        let memory = memory::<W>(&task, &[7; 4]);
        let received = ours.recv_into(Segments(&[memory.window()]));
        assert_eq!(received.map_err(|error| error.kind), Err(ErrorKind::WouldBlock));
        assert_eq!(ours.released(), None);
    });
}

/// Much more than fits, both ways at the same time, in many pieces of memory.
pub fn bytes_cross_whole_and_in_order_both_ways<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        let bytes = pattern(LARGE);
        let source = memory::<W>(&task, &bytes);
        let sinks = [memory::<W>(&task, &vec![0; LARGE]), memory::<W>(&task, &vec![0; LARGE])];
        let (mut sent, mut received) = ([0; 2], [0; 2]);
        let (mut sends, mut releases) = (0, 0);
        task.poll("all bytes", || {
            for (end, stream) in [&mut ours, &mut theirs].into_iter().enumerate() {
                // Three windows of uneven lengths, one of them empty.
                let rest = LARGE as u64 - sent[end];
                let lens = [rest.min(3001), 0, rest.saturating_sub(3001).min(70_001)];
                let mut at = sent[end];
                let windows = lens.map(|len| {
                    at += len;
                    source.window().slice(at - len, len).expect("inside")
                });
                if rest > 0
                    && let Some(taken) = ready(stream.send(Segments(&windows), 0))
                {
                    assert!((1..=rest).contains(&taken));
                    sent[end] += taken;
                    sends += 1;
                }
                while stream.released().is_some() {
                    releases += 1;
                }
                let rest = LARGE as u64 - received[end];
                let room = [rest.min(5), rest.saturating_sub(5).min(9000)];
                let first = sinks[end].window().slice(received[end], room[0]).expect("inside");
                let second = sinks[end].window().slice(received[end] + room[0], room[1]).expect("inside");
                if rest > 0
                    && let Some(came) = ready(stream.recv_into(Segments(&[first, second])))
                {
                    assert!((1..=rest).contains(&came), "the other end closed");
                    received[end] += came;
                }
            }
            (received == [LARGE as u64; 2] && sends == releases).then_some(())
        })
        .await;
        for sink in &sinks {
            let mut got = vec![0; LARGE];
            sink.window().read(0, &mut got);
            assert!(got == bytes, "the bytes differ");
        }
    });
}

/// Records of a header and a payload of the length that the header says, as protocols have them.
pub fn headers_are_peeked_at_and_payload_goes_where_it_belongs<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        let payload = pattern(20_000);
        let lens = [1, 0, 5, 20_000, 0, 0, 4096, 129, 7, 19_999];
        let mut wire = Vec::new();
        for len in lens {
            wire.extend((len as u32).to_le_bytes());
            wire.extend(&payload[..len]);
        }
        let wire = memory::<W>(&task, &wire);
        let sink = memory::<W>(&task, &[0; 20_000]);
        let (mut sent, mut at, mut left) = (0, 0, None);
        task.poll("all records", || {
            if sent < wire.window().len() {
                let rest = wire.window().slice(sent, wire.window().len() - sent).expect("inside");
                sent += ready(theirs.send(Segments(&[rest]), 0)).unwrap_or(0);
            }
            let Some(rest) = left else {
                let header = ready(ours.peek(4).map(|bytes| bytes[..4].try_into().expect("four bytes")))?;
                // Looking again shows the same.
                assert_eq!(ready(ours.peek(4).map(|bytes| bytes[..4] == header)), Some(true));
                ours.consume(4);
                assert_eq!(u32::from_le_bytes(header) as usize, lens[at]);
                left = Some(lens[at] as u64);
                return None;
            };
            if rest > 0 {
                let room = sink.window().slice(lens[at] as u64 - rest, rest).expect("inside");
                left = Some(rest - ready(ours.recv_into(Segments(&[room])))?);
                return None;
            }
            let mut got = vec![0; lens[at]];
            sink.window().read(0, &mut got);
            assert!(got == payload[..lens[at]], "record {at} differs");
            sink.window().fill(0, 20_000, 0);
            (at, left) = (at + 1, None);
            (at == lens.len()).then_some(())
        })
        .await;
    });
}

/// A peek that cannot be satisfied shows what there is, once it is known that nothing more comes.
pub fn fewer_bytes_than_asked_for_are_the_last<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        send::<W>(&task, &mut theirs, b"abc").await;
        assert_eq!(receive::<W>(&task, &mut ours, 1).await, b"a");
        // The rest is on its way, and no more.
        let until = task.platform.now().after(A_WHILE);
        task.poll("a while", || {
            assert_eq!(ours.peek(3).map(<[u8]>::len).map_err(|error| error.kind), Err(ErrorKind::WouldBlock));
            (task.platform.now() > until).then_some(())
        })
        .await;
        drop(theirs);
        let last = task.poll("the end", || ready(ours.peek(3).map(<[u8]>::to_vec))).await;
        assert_eq!(last, b"bc");
        ours.consume(2);
        assert_eq!(ours.peek(1), Ok(&[][..]));
        assert_eq!(ours.recv_into(Segments(&[memory::<W>(&task, &[0]).window()])), Ok(0));
    });
}

/// Nobody receives, so at some time there is no room; and then all that was taken arrives.
pub fn a_full_stream_takes_no_more_and_loses_nothing<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        let chunk = memory::<W>(&task, &[9; 50_000]);
        let mut sent = 0;
        // Full is a stream that takes nothing for a while: what has left makes room.
        let mut refused_since = task.platform.now();
        task.poll("a full stream", || {
            while let Some(taken) = ready(ours.send(Segments(&[chunk.window()]), 0)) {
                sent += taken;
                assert!(sent < 1 << 30, "a stream takes everything and holds it");
                refused_since = task.platform.now();
            }
            (task.platform.now() > refused_since.after(A_WHILE * 10)).then_some(())
        })
        .await;
        let sink = memory::<W>(&task, &[0; 3000]);
        while sent > 0 {
            let came = task.poll("bytes", || ready(theirs.recv_into(Segments(&[sink.window()])))).await;
            assert!((0..came).all(|at| sink.window().load_u8(at, std::sync::atomic::Ordering::Relaxed) == 9));
            sent -= came;
        }
        let nothing = theirs.peek(1).map(<[u8]>::len).map_err(|error| error.kind);
        assert_eq!(nothing, Err(ErrorKind::WouldBlock));
    });
}

/// Whoever receives slowly only delays it.
pub fn memory_is_released_once_in_the_order_of_the_sends<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        let chunk = memory::<W>(&task, &[1; 1000]);
        let sink = memory::<W>(&task, &[0; 700]);
        let (mut sends, mut releases) = (0, 0);
        task.poll("all releases", || {
            if sends < 301 && ready(ours.send(Segments(&[chunk.window()]), sends)).is_some() {
                sends += 1;
            }
            // Several at once, too.
            while sends % 7 == 0
                && let Some(token) = ours.released()
            {
                assert_eq!(token, releases);
                releases += 1;
            }
            assert!(releases <= sends);
            let _received = ready(theirs.recv_into(Segments(&[sink.window()])));
            (releases == 301).then_some(())
        })
        .await;
        assert_eq!(ours.released(), None);
    });
}

/// A half-closed connection.
pub fn one_way_ends_and_the_other_goes_on<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        send::<W>(&task, &mut theirs, b"question").await;
        theirs.finish().unwrap();
        assert_eq!(receive::<W>(&task, &mut ours, 8).await, b"question");
        assert_eq!(next::<W>(&task, &mut ours).await, Ok(0));
        let answer = pattern(LARGE);
        let source = memory::<W>(&task, &answer);
        let (mut sent, mut got) = (0, Vec::new());
        task.poll("the answer", || {
            if sent < LARGE as u64 {
                let rest = source.window().slice(sent, LARGE as u64 - sent).expect("inside");
                sent += ready(ours.send(Segments(&[rest]), 0)).unwrap_or(0);
            }
            let came = ready(theirs.peek(1).map(<[u8]>::to_vec))?;
            theirs.consume(came.len());
            got.extend(came);
            (got.len() == LARGE).then_some(())
        })
        .await;
        assert!(got == answer, "the bytes differ");
        drop(ours);
        assert_eq!(next::<W>(&task, &mut theirs).await, Ok(0));
    });
}

/// What was sent before the close is received before the end; sending to nobody is an error, sooner or later.
pub fn the_end_comes_after_the_last_byte<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        let bytes = pattern(30_000);
        send::<W>(&task, &mut theirs, &bytes).await;
        drop(theirs);
        assert!(receive::<W>(&task, &mut ours, 30_000).await == bytes, "the bytes differ");
        assert_eq!(next::<W>(&task, &mut ours).await, Ok(0));
        closes_when_sending::<W>(&task, &mut ours).await;
    });
}

async fn closes_when_sending<W: World>(task: &Task<W::Platform>, stream: &mut TcpStreamOf<W>) {
    let chunk = memory::<W>(task, &[1; 1000]);
    let ask = || match stream.send(Segments(&[chunk.window()]), 0) {
        Ok(_) => None,
        Err(error) if error.kind == ErrorKind::WouldBlock => None,
        Err(error) => Some(error.kind),
    };
    assert_eq!(task.poll("an error", ask).await, ErrorKind::Closed);
    // Both ways, and for good.
    let after = stream.peek(1).map(<[u8]>::len).map_err(|error| error.kind);
    assert_eq!(after, Err(ErrorKind::Closed));
}

/// An end that goes without having received everything, as one does whose process is killed.
pub fn what_was_not_read_breaks_the_connection<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        send::<W>(&task, &mut ours, &[3; 5000]).await;
        assert_eq!(receive::<W>(&task, &mut theirs, 1).await, [3]);
        // More than any buffer of the stream's own holds is in the socket then.
        let chunk = memory::<W>(&task, &[3; 50_000]);
        let until = task.platform.now().after(A_WHILE * 20);
        task.poll("a while", || {
            let _taken = ready(ours.send(Segments(&[chunk.window()]), 0));
            (task.platform.now() > until).then_some(())
        })
        .await;
        drop(theirs);
        closes_when_sending::<W>(&task, &mut ours).await;
    });
}

/// Does something on core 1 after a while.
fn later<P: Platform>(platform: &P, act: impl FnOnce() + Send + 'static) {
    spawn(platform, CoreId(1), move |task: Task<P>| async move {
        task.sleep_until(task.platform.now().after(A_WHILE)).await;
        act();
    });
}

/// Lets the core sleep on a stream until `ask` has something.
async fn sleep_on<W: World, T>(
    task: &Task<W::Platform>,
    stream: &Rc<RefCell<TcpStreamOf<W>>>,
    interest: Interest,
    what: &str,
    mut ask: impl FnMut(&mut TcpStreamOf<W>) -> Option<T>,
) -> T {
    let armed = stream.clone();
    let arm = move |wakes: &mut _| Wakes::<W::Platform>::tcp_stream(wakes, &*armed.borrow(), interest);
    task.sleep(what, || ask(&mut stream.borrow_mut()), arm).await
}

/// A connection to accept.
pub fn a_listener_wakes<W: World>() {
    run::<W, _>(2, |task| async move {
        let listener = Rc::new(RefCell::new(listen::<W>(&task, false)));
        let address = listener.borrow().address();
        spawn(&task.platform, CoreId(1), move |task: Task<W::Platform>| async move {
            task.sleep_until(task.platform.now().after(A_WHILE)).await;
            std::mem::forget(W::another_host(&task.platform).connect(address, None).expect("it begins"));
        });
        let armed = listener.clone();
        let arm = move |wakes: &mut _| Wakes::<W::Platform>::tcp_listener(wakes, &*armed.borrow());
        task.sleep("a connection", || listener.borrow_mut().accept().unwrap(), arm).await;
    });
}

/// That it is there, and that it is refused.
pub fn the_making_of_a_connection_wakes<W: World>() {
    run::<W, _>(1, |task| async move {
        let listener = listen::<W>(&task, false);
        let address = listener.address();
        let theirs = W::another_host(&task.platform).connect(address, None).unwrap();
        let theirs = Rc::new(RefCell::new(theirs));
        let made = |stream: &mut TcpStreamOf<W>| stream.is_connected().unwrap().then_some(());
        sleep_on::<W, _>(&task, &theirs, Interest::Receive, "the connection", made).await;
        drop(listener);
        if let Ok(theirs) = W::another_host(&task.platform).connect(address, None) {
            let theirs = Rc::new(RefCell::new(theirs));
            let refused = |stream: &mut TcpStreamOf<W>| stream.is_connected().err();
            let error = sleep_on::<W, _>(&task, &theirs, Interest::Receive, "a refusal", refused).await;
            assert_eq!(error.kind, ErrorKind::Refused);
        }
    });
}

/// Bytes, also those behind others that were looked at.
pub fn bytes_wake<W: World>() {
    run::<W, _>(2, |task| async move {
        let (ours, mut theirs) = connection::<W>(&task).await;
        let ours = Rc::new(RefCell::new(ours));
        let mut kept = Vec::new();
        for count in 1..5 {
            let byte = memory::<W>(&task, b"x");
            let (back, mut came_back) = task.platform.mailbox(1);
            later(&task.platform, move || {
                assert_eq!(theirs.send(Segments(&[byte.window()]), 0), Ok(1));
                assert!(back.send((theirs, byte)).is_ok());
            });
            let all = |stream: &mut TcpStreamOf<W>| ready(stream.peek(count).map(<[u8]>::len));
            assert_eq!(sleep_on::<W, _>(&task, &ours, Interest::Receive, "a byte", all).await, count);
            let (stream, byte) = task.poll("the stream", || came_back.receive()).await;
            theirs = stream;
            // Until it is released.
            kept.push(byte);
        }
    });
}

/// Room in a full stream, for who waits for it.
pub fn room_wakes<W: World>() {
    run::<W, _>(2, |task| async move {
        let (mut ours, mut theirs) = connection::<W>(&task).await;
        let chunk = Rc::new(memory::<W>(&task, &[0; 50_000]));
        let mut refused_since = task.platform.now();
        task.poll("a full stream", || {
            while ready(ours.send(Segments(&[chunk.window()]), 0)).is_some() {
                refused_since = task.platform.now();
            }
            while ours.released().is_some() {}
            (task.platform.now() > refused_since.after(A_WHILE * 10)).then_some(())
        })
        .await;
        let ours = Rc::new(RefCell::new(ours));
        let (done, mut is_done) = task.platform.mailbox::<()>(1);
        spawn(&task.platform, CoreId(1), move |task| async move {
            task.sleep_until(task.platform.now().after(A_WHILE)).await;
            task.poll("the end of the test", || {
                if let Some(len) = ready(theirs.peek(1).map(<[u8]>::len)) {
                    theirs.consume(len);
                }
                is_done.receive()
            })
            .await;
        });
        sleep_on::<W, _>(&task, &ours, Interest::ReceiveAndSend, "room", |stream| {
            while stream.released().is_some() {}
            ready(stream.send(Segments(&[chunk.window()]), 0))
        })
        .await;
        done.send(()).expect("there is room");
    });
}

/// The release of what was sent.
pub fn a_release_wakes<W: World>() {
    run::<W, _>(1, |task| async move {
        let (ours, _theirs) = connection::<W>(&task).await;
        let ours = Rc::new(RefCell::new(ours));
        let chunk = memory::<W>(&task, &[0; 5]);
        for token in 0..20 {
            assert_eq!(
                ours.borrow_mut().send(Segments(&[chunk.window().slice(0, 1).unwrap()]), token),
                Ok(1)
            );
            let released = |stream: &mut TcpStreamOf<W>| stream.released();
            let release = sleep_on::<W, _>(&task, &ours, Interest::Receive, "a release", released).await;
            assert_eq!(release, token);
        }
    });
}

/// The end of a connection.
pub fn the_end_wakes<W: World>() {
    run::<W, _>(2, |task| async move {
        let (ours, theirs) = connection::<W>(&task).await;
        let ours = Rc::new(RefCell::new(ours));
        later(&task.platform, move || drop(theirs));
        let end = |stream: &mut TcpStreamOf<W>| ready(stream.peek(1).map(<[u8]>::len));
        assert_eq!(sleep_on::<W, _>(&task, &ours, Interest::Receive, "the end", end).await, 0);
    });
}

/// Level-triggered: what is there already when the core arms keeps it awake.
pub fn what_came_before_the_sleep_ends_it<W: World>() {
    run::<W, _>(1, |task| async move {
        let (mut ours, theirs) = connection::<W>(&task).await;
        let bytes = memory::<W>(&task, b"x");
        assert_eq!(ours.send(Segments(&[bytes.window()]), 0), Ok(1));
        // On its way, or there.
        finds(&task, A_WHILE * 50, move |wakes| wakes.tcp_stream(&theirs, Interest::Receive)).await;
        finds(&task, A_WHILE * 50, move |wakes| wakes.tcp_stream(&ours, Interest::ReceiveAndSend)).await;
        let listener = listen::<W>(&task, false);
        let mut waiting = W::another_host(&task.platform).connect(listener.address(), None).unwrap();
        is_made::<W>(&task, &mut waiting).await;
        finds(&task, A_WHILE * 50, move |wakes| wakes.tcp_listener(&listener)).await;
    });
}
