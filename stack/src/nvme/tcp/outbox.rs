//! What a connection has to send, in order, and what of it the stream still looks at.
//!
//! A PDU is pieces of memory; many PDUs go with one call. Its memory stays as it is until the stream has released the call
//! that took its last byte.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use runtime::{Result, Segments, TcpStream, Window};

/// Most pieces of one call.
const PIECES_MAX: usize = 64;
/// Most bytes that one poll of a connection sends.
const BYTES_PER_POLL: u64 = 1 << 20;

/// A piece of a PDU; its last one names the PDU's owner.
struct Piece<W> {
    window: W,
    owner: Option<u16>,
}

/// The PDUs on their way out.
pub(super) struct Outbox<W> {
    pieces: VecDeque<Piece<W>>,
    /// Owners of PDUs that were sent, with the number of the call that took their last byte.
    sent: VecDeque<(u64, u16)>,
    calls: u64,
    /// The pieces of a call.
    call: Vec<W>,
}

impl<W: Window> Outbox<W> {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            pieces: VecDeque::with_capacity(4 * slots),
            sent: VecDeque::with_capacity(2 * slots),
            calls: 0,
            call: Vec::with_capacity(PIECES_MAX),
        }
    }

    /// Adds a piece; with an owner it is the last of its PDU.
    pub(super) fn push(&mut self, window: W, owner: Option<u16>) {
        self.pieces.push_back(Piece { window, owner });
    }

    /// Whether everything was sent.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Sends what the stream takes; how many bytes. Errors: those of the stream, but no `WouldBlock`.
    pub(super) fn flush<S: TcpStream<Window = W>>(&mut self, stream: &mut S) -> Result<u64> {
        let mut total = 0;
        while !self.pieces.is_empty() && total < BYTES_PER_POLL {
            self.call.clear();
            self.call.extend(self.pieces.iter().take(PIECES_MAX).map(|piece| piece.window));
            let sent = match stream.send(Segments(&self.call), self.calls) {
                Ok(sent) => sent,
                Err(error) if error.kind == runtime::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            total += sent;
            self.advance(sent);
            self.calls += 1;
        }
        Ok(total)
    }

    /// The current call took so many bytes.
    fn advance(&mut self, mut sent: u64) {
        while let Some(piece) = self.pieces.front_mut() {
            let len = piece.window.len();
            if sent < len {
                if sent > 0 {
                    piece.window = piece.window.slice(sent, len - sent).expect("a rest lies inside");
                }
                return;
            }
            sent -= len;
            if let Some(owner) = piece.owner {
                self.sent.push_back((self.calls, owner));
            }
            self.pieces.pop_front();
        }
    }

    /// The owner of a PDU that the stream does not look at any more, once the call `released` was released.
    pub(super) fn take_released(&mut self, released: u64) -> Option<u16> {
        let (_, owner) = self.sent.pop_front_if(|(call, _)| *call <= released)?;
        Some(owner)
    }
}
