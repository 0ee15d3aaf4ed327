//! Property tests of vring inflight recovery: whatever a life of the device did, and wherever it died, recovery
//! included, the next life finds exactly the requests that were taken and not given back, in the order in which they
//! were taken, and in the end every request comes back once.
//!
//! Two readings of the specification face each other: the stack's algorithms on shared bytes, and in `model` lists of
//! requests that know nothing of regions. `enumerated` goes through all crash points of small histories, `drawn`
//! through drawn ones of larger, `refused` through regions that no algorithm left.

mod drawn;
mod enumerated;
mod model;
mod packed;
mod refused;
mod split;

use std::fmt::Debug;
use std::hash::Hash;

/// Bytes of the thread's memory: room for the areas and the region of a ring of 64.
const MEMORY_LEN: usize = 8192;

/// A request's name in a history: never used twice.
type Request = u32;

/// One layout of ring with its driver, its device and its inflight region, in the thread's flat memory. The value is
/// what the driver knows; what the device knows is its [`Layout::Life`], which dies with it.
trait Layout: Clone + Debug + Eq + Hash {
    /// What a life of the device knows.
    type Life;

    /// A ring of `size` places whose driver and device have `past` requests behind them, and a region never used.
    fn new(size: u16, past: u16) -> Self;

    /// The driver makes a request of so many descriptors available, if they find room.
    fn offer(&mut self, request: Request, descriptors: u16) -> bool;

    /// What the driver would find given back if it looked, in the order of the ring.
    fn visible(&self) -> Vec<Request>;

    /// The driver takes what was given back.
    fn reap(&mut self) -> Vec<Request>;

    /// A life begins: what it found in flight, in its order.
    fn begin(&self) -> (Self::Life, Vec<Request>);

    /// The device takes the next request.
    fn take(&self, life: &mut Self::Life) -> Option<Request>;

    /// The device gives requests back in one batch.
    fn give_back(&self, life: &mut Self::Life, batch: &[Request]);

    /// Whether a batch becomes visible all at once; else one request after the other.
    const BATCHES_ARE_ATOMIC: bool;
}
