//! The simulated network: TCP between machines.
//!
//! The TCP is turmoil's (`turmoil-net`: handshake, segments, windows, retransmission), one host of it a machine; it has no
//! clock, and this world's scheduler says when each packet leaves and arrives.
//!
//! Fault model. Every packet takes a drawn time. One may be lost, late (others overtake it), or held with all that come
//! behind it, as by a cable that is pulled for a moment. A stream's sends and receives are cut to any drawn length, and
//! segments are as small as the drawn MTU makes them. A send's memory is released after a drawn time, and what then differs
//! from what was sent fails the run. A process that dies closes its ends at once, as its kernel does: the peer finds the end
//! of the stream, or where the dead one had not read everything, that the connection broke. A machine that loses its power
//! says nothing: its peers wait, until they send and are told that nobody knows them. A process may lack the handle for a
//! connection, which then waits.
//!
//! Never: bytes lost, doubled, changed or reordered inside of a connection that goes on; a packet with nothing but an
//! acknowledgment lost or late, since turmoil's TCP does not acknowledge twice, and what a lost one delays, the time of
//! the packets delays as well; anything at all between two ends on one machine.

mod packets;
mod sockets;

pub(crate) use packets::Packets;
pub(crate) use sockets::{Sockets, forget_woken};

use crate::memory::SimWindow;
use crate::world;
use runtime::{ErrorKind, Net, Result, Segments, TcpListener, TcpStream};
use std::net::{IpAddr, SocketAddr};

/// Machines that a network reaches: 10.0.0.1 and fd00::1 is the first one's.
pub const MACHINES_MAX: u32 = 8;

/// The address of a machine.
#[must_use]
pub fn address_of(machine: u32, is_ipv6: bool) -> IpAddr {
    assert!(machine < MACHINES_MAX, "machine {machine} has no address");
    let number = machine as u8 + 1;
    if is_ipv6 {
        return IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)]);
    }
    IpAddr::from([10, 0, 0, number])
}

/// A machine's TCP.
#[derive(Clone, Debug)]
pub struct SimNet {
    machine: u32,
}

impl SimNet {
    /// The TCP of a machine, for whoever acts.
    #[must_use]
    pub fn of(machine: u32) -> Self {
        Self { machine }
    }
}

impl Net for SimNet {
    type Listener = SimTcpListener;
    type Stream = SimTcpStream;

    fn listen(&self, address: SocketAddr) -> Result<SimTcpListener> {
        world::with(|world| {
            world.crash_point();
            if world.is_fenced() {
                return Err(ErrorKind::Closed.into());
            }
            let listener = world.tcp_listen(self.machine, address)?;
            Ok(SimTcpListener { listener, address: world.tcp_address(listener) })
        })
    }

    fn connect(&self, to: SocketAddr, from: Option<IpAddr>) -> Result<SimTcpStream> {
        world::with(|world| {
            world.crash_point();
            if world.is_fenced() {
                return Err(ErrorKind::Closed.into());
            }
            if from.is_some_and(|from| from != address_of(self.machine, to.is_ipv6())) {
                return Err(ErrorKind::NotFound.into());
            }
            let end = world.tcp_connect(self.machine, to)?;
            Ok(SimTcpStream::new(end, to))
        })
    }
}

/// A process's listening TCP socket.
#[derive(Debug)]
pub struct SimTcpListener {
    pub(crate) listener: u32,
    address: SocketAddr,
}

impl Drop for SimTcpListener {
    fn drop(&mut self) {
        world::try_with(|world| {
            if !world.is_fenced() {
                world.tcp_stop_listening(self.listener);
            }
        });
    }
}

impl TcpListener for SimTcpListener {
    type Stream = SimTcpStream;

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn accept(&mut self) -> Result<Option<SimTcpStream>> {
        world::with(|world| {
            if world.is_fenced() || !world.tcp_has_connection(self.listener) {
                return Ok(None);
            }
            world.crash_point();
            let end = world.tcp_accept(self.listener)?;
            Ok(end.map(|(end, peer)| SimTcpStream::new(end, peer)))
        })
    }
}

/// A process's end of a TCP connection, with the process's receive buffer.
#[derive(Debug)]
pub struct SimTcpStream {
    pub(crate) end: u32,
    peer: SocketAddr,
    /// What was received and not consumed, from `start` on.
    buffer: Vec<u8>,
    start: usize,
}

impl SimTcpStream {
    fn new(end: u32, peer: SocketAddr) -> Self {
        Self { end, peer, buffer: Vec::new(), start: 0 }
    }

    /// Receives a drawn part of what is there, at most `most` bytes. An empty one is the end of the stream.
    fn receive(&self, most: usize) -> Result<Vec<u8>> {
        world::with(|world| {
            if world.is_fenced() {
                return Err(ErrorKind::WouldBlock.into());
            }
            let received = world.tcp_receive(self.end, most)?;
            if !received.is_empty() {
                world.crash_point();
            }
            Ok(received)
        })
    }
}

/// Most bytes that one look at a stream brings into the process.
const RECEIVED_AT_ONCE: usize = 16 << 10;

impl Drop for SimTcpStream {
    fn drop(&mut self) {
        world::try_with(|world| {
            if !world.is_fenced() {
                world.tcp_close(self.end);
            }
        });
    }
}

impl TcpStream for SimTcpStream {
    type Window = SimWindow;

    fn local(&self) -> SocketAddr {
        world::with(|world| world.tcp_local(self.end))
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn is_connected(&mut self) -> Result<bool> {
        world::with(|world| if world.is_fenced() { Ok(false) } else { world.tcp_is_connected(self.end) })
    }

    fn peek(&mut self, least: usize) -> Result<&[u8]> {
        assert!((1..=Self::PEEK_MAX).contains(&least), "{least} bytes to peek at");
        while self.buffer.len() - self.start < least {
            let received = self.receive(RECEIVED_AT_ONCE)?;
            if received.is_empty() {
                break;
            }
            self.buffer.drain(..std::mem::take(&mut self.start));
            self.buffer.extend_from_slice(&received);
        }
        Ok(&self.buffer[self.start..])
    }

    fn consume(&mut self, len: usize) {
        assert!(len <= self.buffer.len() - self.start, "{len} bytes were never shown");
        self.start += len;
    }

    fn recv_into(&mut self, into: Segments<'_, SimWindow>) -> Result<u64> {
        assert!(!into.is_empty(), "something is received into some room");
        let wanted = usize::try_from(into.len()).unwrap_or(usize::MAX);
        let buffered = self.buffer.len() - self.start;
        if buffered > 0 {
            let taken = buffered.min(wanted);
            into.write(0, &self.buffer[self.start..self.start + taken]);
            self.start += taken;
            return Ok(taken as u64);
        }
        let received = self.receive(wanted.min(RECEIVED_AT_ONCE))?;
        into.write(0, &received);
        Ok(received.len() as u64)
    }

    fn send(&mut self, from: Segments<'_, SimWindow>, token: u64) -> Result<u64> {
        assert!(!from.is_empty(), "a stream sends at least one byte");
        assert!(from.0.len() <= Self::MAX_SEGMENTS, "too many segments");
        let fenced = world::with(|world| {
            world.crash_point();
            // To send is a system call: what was stored before has reached memory.
            world.drain_acting();
            world.is_fenced()
        });
        if fenced {
            return Ok(from.len());
        }
        let mut bytes = vec![0; from.len().min(sockets::SENT_AT_ONCE) as usize];
        from.read(0, &mut bytes);
        world::with(|world| {
            let sent = world.tcp_send(self.end, &bytes)?;
            bytes.truncate(sent);
            world.tcp_hold(self.end, from.range(0, sent as u64).collect(), bytes, token);
            Ok(sent as u64)
        })
    }

    fn released(&mut self) -> Option<u64> {
        world::with(|world| if world.is_fenced() { None } else { world.tcp_released(self.end) })
    }

    fn finish(&mut self) -> Result<()> {
        world::with(|world| {
            world.crash_point();
            if world.is_fenced() { Ok(()) } else { world.tcp_finish(self.end) }
        })
    }
}
