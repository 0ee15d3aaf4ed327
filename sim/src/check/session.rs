//! The vhost-user back-end's side of a session, as far as a good front-end can see it: every answer is the one that was
//! asked for, has version 1 and the reply bit, the size and the handles that its request wants, and does not refuse; a
//! stopped ring has nothing left that it took, and so has a target that ended in order; a living target never closes the connection of a front-end that did
//! nothing wrong.

use super::Verdict;
use super::observation::Observation;
use crate::vmm::message::{self, backend_request, request};

/// The checker.
#[derive(Debug, Default)]
pub struct Session {
    evaluations: u64,
    calls: u64,
}

impl Session {
    pub(super) fn observe(&mut self, observation: &Observation<'_>) -> Verdict {
        match *observation {
            Observation::Answer { asked, request, flags, size, handles, value } => {
                self.evaluations += 1;
                let Some(asked) = asked else {
                    return Err(format!("an answer to request {request}, and nothing was asked"));
                };
                if request != asked {
                    return Err(format!("an answer to request {request} where {asked} was asked"));
                }
                if flags != message::VERSION | message::REPLY {
                    return Err(format!(
                        "the answer to request {request} has flags {flags:#x}, expected 0x5"
                    ));
                }
                let (expected, handles_expected) = match request {
                    request::GET_CONFIG => (12 + message::CONFIG_BYTES, 0),
                    request::GET_INFLIGHT_FD => (24, 1),
                    request::SET_LOG_BASE => (16, 0),
                    _ => (8, 0),
                };
                // The inflight message's last four bytes are padding, which some leave out.
                let size_good = size == expected || request == request::GET_INFLIGHT_FD && size == 20;
                if !size_good || handles != handles_expected {
                    return Err(format!(
                        "the answer to request {request} has {size} bytes and {handles} handles, expected {expected} \
                         and {handles_expected}"
                    ));
                }
                if value != 0 && is_acknowledged(request) {
                    return Err(format!(
                        "the target refused request {request} of a good front-end with {value}"
                    ));
                }
                Ok(())
            }
            Observation::BackendMessage { request, good } => {
                self.evaluations += 1;
                self.calls += u64::from(request == backend_request::VRING_CALL);
                if good { Ok(()) } else { Err(format!("a malformed message {request} on the channel back")) }
            }
            Observation::RingStopped { queue, base, drained, pausing } => {
                self.evaluations += 1;
                if pausing && base != drained {
                    return Err(format!(
                        "queue {queue} was stopped at base {base:#x}, where one with nothing taken and not given back is \
                         at {drained:#x}"
                    ));
                }
                Ok(())
            }
            Observation::EndedInOrder { queue, tracked } => {
                self.evaluations += 1;
                if tracked > 0 {
                    return Err(format!(
                        "the target ended in order and left {tracked} requests of queue {queue} to its next life"
                    ));
                }
                Ok(())
            }
            Observation::ClosedByTarget => {
                self.evaluations += 1;
                Err("the target lives and closed the connection of a front-end that did nothing wrong"
                    .to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Messages by which the target told of a ring.
    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    /// Answers and messages judged.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations
    }
}

/// Whether a request's answer is an acknowledgement, of which 0 says that it was done.
fn is_acknowledged(request: u32) -> bool {
    !matches!(
        request,
        request::GET_FEATURES
            | request::GET_PROTOCOL_FEATURES
            | request::GET_QUEUE_NUM
            | request::GET_CONFIG
            | request::GET_INFLIGHT_FD
            | request::GET_MAX_MEM_SLOTS
            | request::GET_VRING_BASE
            | request::GET_STATUS
            | request::SET_LOG_BASE
    )
}
