//! One entry of the flight recorder.

/// An event as the flight recorder keeps it: fixed size, no payload, no host address. The stack gives the numbers
/// their meaning (`stack::events`); the platform only stores them: in a mapped file that survives `kill -9` on a real
/// host, in the run's log in the simulator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// When, in nanoseconds of the machine's clock ([`crate::Instant`]).
    pub at_ns: u64,
    /// What happened: a number of `stack::events`; 0 is never used, so that an unwritten slot is recognised.
    pub kind: u16,
    /// The controller or bdev that it happened to, numbered by the target in order of creation.
    pub device: u16,
    /// The virtqueue, where there is one.
    pub queue: u16,
    /// A small detail: an operation, a status, a message's number.
    pub detail: u16,
    /// First operand: usually the request (descriptor head and sequence number).
    pub a: u64,
    /// Second operand: usually the byte offset on the device.
    pub b: u64,
}

const _: () = assert!(core::mem::size_of::<Event>() == 32);
