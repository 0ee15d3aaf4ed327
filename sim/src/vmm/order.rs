//! In which order front-ends say what they have to say: as QEMU 7.2 and 11.1 were seen to, as cloud-hypervisor does,
//! and in any order that the specification allows.

use crate::rng::Rng;

/// Whose manners a front-end has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manners {
    /// QEMU 7.2: acknowledgements only for what changes memory or configuration; ENABLE sent twice.
    Qemu7,
    /// QEMU 11.1: acknowledgements for everything about rings too.
    Qemu11,
    /// cloud-hypervisor: ring sizes before the inflight region.
    CloudHypervisor,
    /// Any order that is allowed, acknowledgements asked for at will.
    Any,
}

/// One thing that a front-end says, or does between two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// GET_FEATURES.
    GetFeatures,
    /// GET_PROTOCOL_FEATURES.
    GetProtocolFeatures,
    /// SET_PROTOCOL_FEATURES.
    SetProtocolFeatures,
    /// GET_QUEUE_NUM.
    GetQueueNum,
    /// GET_MAX_MEM_SLOTS, where slots were negotiated.
    GetMaxMemSlots,
    /// SET_BACKEND_REQ_FD, where that was negotiated.
    SetBackendReqFd,
    /// SET_OWNER.
    SetOwner,
    /// GET_CONFIG of the whole space.
    GetConfig,
    /// SET_CONFIG of the write cache.
    SetWriteback(bool),
    /// SET_FEATURES.
    SetFeatures,
    /// GET_INFLIGHT_FD.
    GetInflight,
    /// SET_INFLIGHT_FD.
    SetInflight,
    /// SET_MEM_TABLE of all plugged regions.
    SetMemTable,
    /// ADD_MEM_REG of a region.
    AddRegion(usize),
    /// REM_MEM_REG of a region.
    RemoveRegion(usize),
    /// SET_VRING_NUM of a queue.
    Num(u16),
    /// SET_VRING_BASE of a queue.
    Base(u16),
    /// SET_VRING_ADDR of a queue.
    Address(u16),
    /// SET_VRING_KICK of a queue, or VRING_KICK where it is kicked by messages.
    Kick(u16),
    /// SET_VRING_CALL of a queue, unless it is told by messages.
    Call(u16),
    /// SET_VRING_ERR of a queue, unless it is told by messages.
    Error(u16),
    /// SET_VRING_ENABLE of a queue.
    Enable(u16, bool),
    /// GET_VRING_BASE of a queue.
    Stop(u16),
    /// GET_STATUS, where that was negotiated.
    GetStatus,
    /// SET_STATUS, where that was negotiated.
    SetStatus(u64),
    /// SET_LOG_BASE with a new log.
    SetLogBase,
    /// SET_FEATURES with LOG_ALL.
    LogFeatures,
    /// SET_VRING_ADDR of a running queue, with its device area logged.
    LogAddress(u16),
    /// RESET_DEVICE.
    ResetDevice,
    /// The front-end is through with the greeting.
    Greeted,
    /// The rings are handed over.
    Started,
    /// The rings are stopped.
    Stopped,
    /// A region is the target's no more.
    Unplugged(usize),
    /// A region is the target's again.
    Plugged(usize),
    /// The write cache is as asked.
    CacheSet(bool),
    /// The target logs.
    Logging,
}

/// What a hand-over of rings is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover<'a> {
    /// Queues that the front-end has.
    pub queues: u16,
    /// Queues that the driver started, from 0.
    pub started: u16,
    /// Ask for a new inflight region (a driver's start), or pass the one that there is (a reconnect).
    pub fresh_inflight: bool,
    /// Inflight tracking was negotiated.
    pub inflight: bool,
    /// Memory goes region by region, and which regions; else it goes as a table.
    pub regions: Option<&'a [usize]>,
}

/// The greeting: features, queues, the channel back.
#[must_use]
pub fn greeting(queues: u16, first: bool) -> Vec<Op> {
    let mut ops = vec![
        Op::GetFeatures,
        Op::GetProtocolFeatures,
        Op::SetProtocolFeatures,
        Op::GetQueueNum,
        Op::GetMaxMemSlots,
        Op::SetBackendReqFd,
        Op::SetOwner,
        Op::GetFeatures,
    ];
    for queue in 0..queues {
        ops.extend([Op::Call(queue), Op::Error(queue)]);
    }
    if first {
        ops.push(Op::GetConfig);
    }
    ops.push(Op::Greeted);
    ops
}

/// The hand-over of rings.
pub fn handover(manners: Manners, about: &Handover<'_>, rng: &mut Rng) -> Vec<Op> {
    let mut ops = vec![Op::SetFeatures, Op::GetStatus, Op::SetStatus(super::message::STATUS_FEATURES_OK)];
    if about.inflight && about.fresh_inflight {
        ops.push(Op::GetInflight);
    }
    let memory: Vec<Op> = match about.regions {
        Some(regions) => regions.iter().map(|&region| Op::AddRegion(region)).collect(),
        None => vec![Op::SetMemTable],
    };
    let inflight = about.inflight.then_some(Op::SetInflight);
    let all = 0..about.queues;
    let started = 0..about.started;
    match manners {
        Manners::Qemu7 | Manners::Qemu11 => {
            ops.extend(inflight);
            ops.extend(all.clone().map(Op::Call));
            ops.extend([Op::SetFeatures, Op::GetStatus]);
            ops.extend(memory);
            for queue in started {
                ops.extend([Op::Num(queue), Op::Base(queue), Op::Address(queue), Op::Kick(queue)]);
            }
            for _ in 0..if manners == Manners::Qemu7 { 2 } else { 1 } {
                ops.extend(all.clone().map(|queue| Op::Enable(queue, true)));
            }
        }
        Manners::CloudHypervisor => {
            ops.extend(memory);
            ops.extend(started.clone().map(Op::Num));
            ops.extend(inflight);
            for queue in started.clone() {
                ops.extend([Op::Address(queue), Op::Base(queue), Op::Call(queue), Op::Kick(queue)]);
            }
            ops.extend(started.map(|queue| Op::Enable(queue, true)));
        }
        Manners::Any => ops.extend(any_order(about, &memory, inflight, rng)),
    }
    ops.extend([Op::GetStatus, Op::SetStatus(super::message::STATUS_DRIVER_OK), Op::Started]);
    ops
}

/// Draws an order in which a ring's addresses come after the memory that they lie in, and its kick after all that a
/// ring needs to start.
fn any_order(about: &Handover<'_>, memory: &[Op], inflight: Option<Op>, rng: &mut Rng) -> Vec<Op> {
    let mut left: Vec<Op> = memory.iter().copied().chain(inflight).collect();
    left.push(Op::SetFeatures);
    for queue in 0..about.queues {
        left.extend([Op::Call(queue), Op::Enable(queue, true)]);
    }
    for queue in 0..about.started {
        left.extend([Op::Num(queue), Op::Base(queue), Op::Address(queue), Op::Kick(queue)]);
    }
    let is_memory = |op: &Op| matches!(op, Op::SetMemTable | Op::AddRegion(_));
    let mut ops = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let pick = rng.below(left.len() as u64) as usize;
        let must_wait = match left[pick] {
            Op::Address(_) => left.iter().any(is_memory),
            Op::Kick(queue) => left.iter().any(|op| {
                is_memory(op)
                    || *op == Op::SetInflight
                    || *op == Op::SetFeatures
                    || matches!(op, Op::Num(of) | Op::Base(of) | Op::Address(of) if *of == queue)
            }),
            _ => false,
        };
        if !must_wait {
            ops.push(left.swap_remove(pick));
        }
    }
    ops
}

/// The rings are taken back: the guest resets its device, or the machine is paused. QEMU says the status first.
#[must_use]
pub fn takeback(queues: u16, started: u16) -> Vec<Op> {
    let mut ops = vec![Op::SetStatus(0)];
    ops.extend((0..queues).map(|queue| Op::Enable(queue, false)));
    ops.extend((0..started).map(Op::Stop));
    ops.push(Op::Stopped);
    ops
}

/// The driver resets its device by one message (RESET_DEVICE); the answer to the next says that it was carried out.
#[must_use]
pub fn reset() -> Vec<Op> {
    vec![Op::ResetDevice, Op::GetFeatures, Op::Stopped]
}

/// A live migration begins: the log, and what is to be logged; the answer to the last says that all of it is.
#[must_use]
pub fn migration(started: u16) -> Vec<Op> {
    let mut ops = vec![Op::SetLogBase, Op::LogFeatures];
    ops.extend((0..started).map(Op::LogAddress));
    ops.extend([Op::GetFeatures, Op::Logging]);
    ops
}

#[cfg(test)]
mod tests {
    use super::{Handover, Manners, Op, handover};
    use crate::rng::Rng;

    #[test]
    fn any_order_keeps_what_must_come_first() {
        let about =
            Handover { queues: 4, started: 3, fresh_inflight: true, inflight: true, regions: Some(&[0, 1]) };
        for seed in 0..200 {
            let ops = handover(Manners::Any, &about, &mut Rng::new(seed, 0));
            let at =
                |op| ops.iter().position(|other| *other == op).unwrap_or_else(|| panic!("{op:?} in {ops:?}"));
            assert!(at(Op::GetInflight) < at(Op::SetInflight));
            for queue in 0..3 {
                assert!(at(Op::Address(queue)) > at(Op::AddRegion(0)).max(at(Op::AddRegion(1))));
                let needs = [Op::Num(queue), Op::Base(queue), Op::Address(queue), Op::SetInflight];
                assert!(needs.into_iter().all(|op| at(op) < at(Op::Kick(queue))));
            }
        }
    }
}
