//! What a front-end says: the message of each [`Op`], and where it asks for an acknowledgement.

use super::Vmm;
use super::message::{self, Bytes, feature, protocol, request};
use super::order::{Manners, Op};
use crate::check::Observation;
use crate::guest::Witness;
use crate::unix::SimHandle;
use crate::world;
use runtime::{Instant, Notifier};

impl<W: Witness> Vmm<W> {
    /// Whether an acknowledgement is asked for.
    fn wants_reply(&mut self, op: Op) -> bool {
        if !self.has(protocol::REPLY_ACK) {
            return false;
        }
        if matches!(op, Op::Kick(queue) if self.in_band.kicks(queue)) {
            // As the specification asks for.
            return self.options.manners != Manners::Any || self.rng.chance(3, 4);
        }
        let about_memory = matches!(
            op,
            Op::SetMemTable
                | Op::AddRegion(_)
                | Op::RemoveRegion(_)
                | Op::SetWriteback(_)
                | Op::SetBackendReqFd
        );
        match self.options.manners {
            Manners::Qemu7 | Manners::CloudHypervisor => about_memory,
            Manners::Qemu11 => {
                about_memory || matches!(op, Op::Call(_) | Op::Error(_) | Op::Kick(_) | Op::Enable(_, _))
            }
            Manners::Any => about_memory || self.rng.chance(1, 3),
        }
    }

    /// Says one thing, or does what stands between two of them.
    pub(super) fn perform(&mut self, op: Op) {
        if let Some((bytes, handles, always)) = self.compose(op) {
            let asked = message::u32_at(&bytes.0, 0);
            let mut bytes = bytes.0;
            let need = !always && self.wants_reply(op);
            if need {
                bytes[4..8].copy_from_slice(&(message::VERSION | message::NEED_REPLY).to_le_bytes());
            }
            world::with(|world| {
                world.say(|| format!("front-end: {op:?}{}", if need { " (acknowledge)" } else { "" }))
            });
            self.script.awaited = (always || need).then_some((op, asked));
            self.link().put(bytes, handles);
            match op {
                Op::Kick(queue) => self.kicked(queue),
                Op::Stop(queue) => self.in_band.stop(queue),
                Op::ResetDevice => self.in_band.stop_all(),
                _ => {}
            }
        } else {
            self.effect(op);
        }
    }

    /// A ring is given its kick. Where that was a message, the target does not hear the doorbell: the front-end does, and
    /// says so.
    fn kicked(&mut self, queue: u16) {
        self.suspended = false;
        if self.in_band.kicks(queue)
            && self.in_band.start(queue)
            && let Some(model) = self.model
        {
            let doorbell = self.vm.borrow().queues[usize::from(queue)].bells().0.0;
            world::with(|world| world.wait_for_eventfd(doorbell, model));
        }
    }

    /// A queue whose doorbell was rung, which the front-end has to say.
    pub(super) fn take_kick(&mut self) -> Option<u16> {
        let started = self.in_band.started();
        let first = if started.is_empty() { return None } else { self.rng.below(started.len() as u64) };
        let (before, after) = started.split_at(first as usize);
        let vm = self.vm.borrow();
        after.iter().chain(before).copied().find(|&queue| vm.queues[usize::from(queue)].bells().0.take())
    }

    /// The message of an op, the handles with it, and whether it is answered in any case.
    fn compose(&mut self, op: Op) -> Option<(Bytes, Vec<SimHandle>, bool)> {
        let vm = self.vm.borrow();
        let plain = |request: u32| Bytes::new(request, 0);
        let state = |request: u32, queue: u16, value: u32| plain(request).u32(queue.into()).u32(value);
        let said = |bytes| Some((bytes, Vec::new(), false));
        let asked = |bytes| Some((bytes, Vec::new(), true));
        let eventfd = |request: u32, queue: u16, eventfd: u32| {
            Some((plain(request).u64(queue.into()), vec![SimHandle::eventfd(eventfd)], false))
        };
        let status = self.protocol & protocol::STATUS != 0;
        match op {
            Op::GetFeatures => asked(plain(request::GET_FEATURES)),
            Op::GetProtocolFeatures => asked(plain(request::GET_PROTOCOL_FEATURES)),
            Op::SetProtocolFeatures => said(plain(request::SET_PROTOCOL_FEATURES).u64(self.protocol)),
            Op::GetQueueNum => asked(plain(request::GET_QUEUE_NUM)),
            Op::GetMaxMemSlots if self.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 => {
                asked(plain(request::GET_MAX_MEM_SLOTS))
            }
            Op::SetBackendReqFd if self.protocol & protocol::BACKEND_REQ != 0 => {
                let link = self.link.as_mut().expect("connected");
                let full_until = self.in_band.unread_ns().map(|ns| world::with(|world| world.now().0 + ns));
                let far = link.open_backend(self.model, full_until.map(Instant));
                Some((plain(request::SET_BACKEND_REQ_FD), vec![far], false))
            }
            Op::SetOwner => said(plain(request::SET_OWNER)),
            Op::GetConfig if self.protocol & protocol::CONFIG != 0 => asked(
                plain(request::GET_CONFIG)
                    .u32(0)
                    .u32(message::CONFIG_BYTES)
                    .u32(0)
                    .bytes(&[0; message::CONFIG_BYTES as usize]),
            ),
            Op::SetWriteback(writeback) => said(
                plain(request::SET_CONFIG)
                    .u32(message::CONFIG_WRITEBACK)
                    .u32(1)
                    .u32(0)
                    .bytes(&[u8::from(writeback)]),
            ),
            Op::SetFeatures => {
                let driver = self.driver.map_or(0, |driver| driver.features);
                said(plain(request::SET_FEATURES).u64(driver | self.offered & feature::PROTOCOL_FEATURES))
            }
            Op::LogFeatures => {
                let driver = self.driver.map_or(0, |driver| driver.features) | feature::LOG_ALL;
                said(plain(request::SET_FEATURES).u64(driver | self.offered & feature::PROTOCOL_FEATURES))
            }
            Op::SetLogBase => {
                let log = self.log.as_ref()?;
                let bytes = plain(request::SET_LOG_BASE).u64(log.len).u64(0);
                Some((bytes, vec![SimHandle::memory(log.object)], true))
            }
            Op::ResetDevice => said(plain(request::RESET_DEVICE)),
            Op::GetInflight => {
                let queues = vm.queues.len() as u16;
                let size = self.options.ring_sizes.iter().copied().max().unwrap_or(0);
                asked(
                    plain(request::GET_INFLIGHT_FD)
                        .u64(0)
                        .u64(0)
                        .u32(u32::from(size) << 16 | u32::from(queues))
                        .u32(0),
                )
            }
            Op::SetInflight => {
                let inflight = self.inflight.as_ref()?;
                let shape = u32::from(inflight.queue_size) << 16 | u32::from(inflight.queues);
                let bytes =
                    plain(request::SET_INFLIGHT_FD).u64(inflight.size).u64(inflight.offset).u32(shape).u32(0);
                Some((bytes, vec![SimHandle::memory(inflight.object)], false))
            }
            Op::SetMemTable => {
                let plugged: Vec<_> = vm.backings.iter().filter(|backing| backing.plugged).collect();
                let mut bytes = plain(request::SET_MEM_TABLE).u32(plugged.len() as u32).u32(0);
                for backing in &plugged {
                    bytes = bytes
                        .u64(backing.address)
                        .u64(backing.len)
                        .u64(backing.user_address)
                        .u64(backing.offset);
                }
                let handles = plugged.iter().map(|backing| SimHandle::memory(backing.object)).collect();
                Some((bytes, handles, false))
            }
            Op::AddRegion(region) | Op::RemoveRegion(region) => {
                let backing = vm.backings[region];
                let adds = matches!(op, Op::AddRegion(_));
                if !adds {
                    self.witness.saw(&Observation::RemovalAsked { outstanding: vm.outstanding() });
                }
                let request = if adds { request::ADD_MEM_REG } else { request::REM_MEM_REG };
                if let Some(link) = &mut self.link {
                    link.added.retain(|&other| other != region);
                    link.added.extend(adds.then_some(region));
                }
                let bytes = plain(request)
                    .u64(0)
                    .u64(backing.address)
                    .u64(backing.len)
                    .u64(backing.user_address)
                    .u64(if adds { backing.offset } else { 0 });
                Some((bytes, if adds { vec![SimHandle::memory(backing.object)] } else { Vec::new() }, false))
            }
            Op::Num(queue) => {
                let size = vm.queues[usize::from(queue)].ring().map_or(0, |ring| ring.size());
                said(state(request::SET_VRING_NUM, queue, size.into()))
            }
            Op::Base(queue) => {
                // What QEMU does: the base that the stop gave, or after a back-end's death the used index; of a packed
                // ring what it knew last, since nothing in memory tells it more.
                let base = self.bases.get(usize::from(queue)).copied().unwrap_or(0);
                said(state(request::SET_VRING_BASE, queue, base))
            }
            Op::Address(queue) | Op::LogAddress(queue) => {
                let addresses = vm.queues[usize::from(queue)].ring()?.addresses();
                said(
                    plain(request::SET_VRING_ADDR)
                        .u32(queue.into())
                        .u32(matches!(op, Op::LogAddress(_)).into())
                        .u64(vm.user_address(addresses.desc))
                        .u64(vm.user_address(addresses.used))
                        .u64(vm.user_address(addresses.avail))
                        .u64(addresses.used),
                )
            }
            Op::Kick(queue) if self.in_band.kicks(queue) => said(state(request::VRING_KICK, queue, 0)),
            Op::Call(queue) | Op::Error(queue) if self.in_band.calls(queue) => None,
            Op::Kick(queue) => {
                eventfd(request::SET_VRING_KICK, queue, vm.queues[usize::from(queue)].bells().0.0)
            }
            Op::Call(queue) => {
                eventfd(request::SET_VRING_CALL, queue, vm.queues[usize::from(queue)].bells().1.0)
            }
            Op::Error(queue) => eventfd(request::SET_VRING_ERR, queue, world::with(world::World::eventfd)),
            Op::Enable(queue, on) => said(state(request::SET_VRING_ENABLE, queue, on.into())),
            Op::Stop(queue) => asked(state(request::GET_VRING_BASE, queue, 0)),
            Op::GetStatus if status => asked(plain(request::GET_STATUS)),
            Op::SetStatus(value) if status => said(plain(request::SET_STATUS).u64(value)),
            _ => None,
        }
    }
}
