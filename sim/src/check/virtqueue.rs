//! The virtqueue protocol, as far as a driver can see it (virtio 2.7.8, 2.8.8, 5.2.6).
//!
//! Judged: the used index never runs past what is out, and nothing is used in a packed ring while nothing is out; a packed
//! ring's used descriptor says that something was written exactly where its length does; a completed request has a status that the specification has,
//! and a used length that says what was written (data and status of a read that went well, the status alone of what
//! writes no data, never more than the chain offers, never nothing); an error only where one can have a cause; one
//! serial for the life of the device, over restarts too.

use super::Verdict;
use super::observation::{Kind, Observation, Status};

/// Bytes of the answer to VIRTIO_BLK_T_GET_ID (virtio 5.2.6: a 20-byte string, zero padded).
const ID_BYTES: u32 = 20;

/// Bytes of the status.
const STATUS_BYTES: u32 = 1;

/// Bytes of a sector.
const SECTOR_BYTES: u32 = 512;

/// The checker.
#[derive(Debug, Default)]
pub struct Virtqueue {
    /// By queue: requests that the device has.
    out: Vec<u16>,
    /// The device's serial, as its first answer to GET_ID had it.
    serial: Option<Vec<u8>>,
    evaluations: u64,
    /// Requests that a back-end left to its next one, in split and in packed rings.
    inherited: [u64; 2],
}

impl Virtqueue {
    pub(super) fn observe(&mut self, observation: &Observation<'_>) -> Verdict {
        match *observation {
            Observation::QueueReady { queue, .. } => {
                let queue = usize::from(queue);
                if self.out.len() <= queue {
                    self.out.resize(queue + 1, 0);
                }
                self.out[queue] = 0;
            }
            Observation::Submitted { queue, .. } => self.out[usize::from(queue)] += 1,
            Observation::Used { queue, index, waiting, len, written, .. } => {
                self.evaluations += 1;
                let out = &mut self.out[usize::from(queue)];
                if waiting > *out {
                    return Err(format!(
                        "queue {queue}: {waiting} used elements wait from element {index} on, but only {out} requests \
                         are out"
                    ));
                }
                if written.is_some_and(|written| written != (len > 0)) {
                    return Err(format!(
                        "queue {queue}, used element {index}: its length is {len}, and its flags say the opposite"
                    ));
                }
                *out -= 1;
            }
            Observation::Completed { id, queue, kind, sectors, status, len, writable, may_fail, .. } => {
                self.evaluations += 1;
                let who = || format!("queue {queue}, request {id} ({})", kind.name());
                match status {
                    Status::Ok => {
                        let written = STATUS_BYTES
                            + match kind {
                                Kind::Read => sectors * SECTOR_BYTES,
                                Kind::GetId => ID_BYTES,
                                Kind::Write | Kind::Flush | Kind::Discard | Kind::WriteZeroes => 0,
                            };
                        if len != written {
                            return Err(format!(
                                "{}: used length {len} where {written} bytes were written",
                                who()
                            ));
                        }
                    }
                    Status::IoError | Status::Unsupported => {
                        if !may_fail {
                            return Err(format!("{}: {status:?} though nothing failed below", who()));
                        }
                        if len < STATUS_BYTES || len > writable {
                            return Err(format!(
                                "{}: used length {len} of an answer that has a status and at most {writable} bytes",
                                who()
                            ));
                        }
                    }
                    Status::Untouched => return Err(format!("{}: used without a status", who())),
                    Status::Unknown(byte) => {
                        return Err(format!("{}: status {byte} is none of 0, 1, 2", who()));
                    }
                }
            }
            Observation::Identity { id, bytes } => {
                self.evaluations += 1;
                let serial = self.serial.get_or_insert_with(|| bytes.to_vec());
                if serial != bytes {
                    return Err(format!(
                        "request {id}: the device's serial was {serial:02x?}, and is {bytes:02x?} now"
                    ));
                }
            }
            Observation::Inherited { packed, requests } => {
                self.inherited[usize::from(packed)] += u64::from(requests);
            }
            Observation::DeviceReset | Observation::PowerLost => self.out.clear(),
            _ => {}
        }
        Ok(())
    }

    /// Used elements and statuses judged.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }

    /// Requests that a back-end left to its next one, in split and in packed rings.
    pub(super) fn inherited(&self) -> [u64; 2] {
        self.inherited
    }
}
