//! The small controller's admin commands (section 5), and the events that it reports.

use super::host::Host;
use super::{Queue, State};
use stack::nvme::bits::{
    Command, Health, IDENTIFY_LEN, IdDescriptor, PAGE, QueueCount, Status, admin, cns, feature, log,
};

impl State {
    pub(super) fn report_events(&mut self, host: &Host) -> bool {
        let mut worked = false;
        while !self.events.is_empty() && !self.pending_events.is_empty() {
            let (id, event) = (self.events.remove(0), self.pending_events.pop_front().expect("there is one"));
            self.complete(host, 0, id, Status::SUCCESS, event.0);
            worked = true;
        }
        worked
    }
    pub(super) fn administer(&mut self, host: &Host, command: &Command) {
        if self.orders.hold_admin {
            return;
        }
        if let Some((opcode, status)) = self.orders.refuse_admin
            && opcode == command.opcode
        {
            return self.complete(host, 0, command.id, status, 0);
        }
        let [d10, d11, ..] = command.cdw10;
        let mut result = 0;
        let status = match command.opcode {
            admin::IDENTIFY => self.identify(host, command),
            admin::SET_FEATURES => {
                if d10 as u8 == feature::NUMBER_OF_QUEUES {
                    let count = u32::from(self.queues) - 1;
                    result = QueueCount::default().with_submission(count).with_completion(count).0;
                }
                Status::SUCCESS
            }
            admin::CREATE_CQ | admin::CREATE_SQ => self.create(command, d10, d11),
            admin::DELETE_SQ => {
                let there = self.submissions.remove(&(d10 as u16)).is_some();
                if there { Status::SUCCESS } else { Status::INVALID_QUEUE_ID }
            }
            admin::DELETE_CQ => match self.submissions.contains_key(&(d10 as u16)) {
                true => Status::INVALID_QUEUE_DELETION,
                false if self.completions.remove(&(d10 as u16)).is_some() => Status::SUCCESS,
                false => Status::INVALID_QUEUE_ID,
            },
            admin::DOORBELL_BUFFER_CONFIG => {
                let [shadow, event] = command.dptr;
                if shadow.is_multiple_of(PAGE) && event.is_multiple_of(PAGE) && shadow != event {
                    self.shadow = Some((shadow, event));
                    Status::SUCCESS
                } else {
                    Status::INVALID_FIELD
                }
            }
            admin::ASYNC_EVENT_REQUEST => {
                if self.events.len() > usize::from(self.identity.aerl) {
                    Status::EVENT_LIMIT_EXCEEDED
                } else {
                    self.events.push(command.id);
                    return;
                }
            }
            admin::ABORT => {
                self.aborts += 1;
                let victim = (d10 as u16, (d10 >> 16) as u16);
                let held = self.held.iter().position(|held| *held == victim);
                result = 1;
                if let Some(at) = held.filter(|_| !self.orders.abort_nothing) {
                    self.held.remove(at);
                    self.complete(host, victim.0, victim.1, Status::ABORT_REQUESTED, 0);
                    result = 0;
                }
                Status::SUCCESS
            }
            admin::GET_LOG_PAGE => {
                let len = (u64::from(d10 >> 16 | d11 << 16) + 1) * 4;
                let mut bytes = vec![0; len as usize];
                if d10 as u8 == log::HEALTH {
                    Health { temperature: 300, media_errors: 5, ..Default::default() }.encode(&mut bytes);
                }
                self.put(host, command, &bytes)
            }
            _ => Status::INVALID_OPCODE.with_dnr(1),
        };
        self.complete(host, 0, command.id, status, result);
    }

    fn identify(&mut self, host: &Host, command: &Command) -> Status {
        let mut bytes = [0; IDENTIFY_LEN];
        let disk = self.disks.get(&command.nsid);
        match command.cdw10[0] as u8 {
            cns::CONTROLLER => self.identity.encode(&mut bytes),
            cns::COMMAND_SET_CONTROLLER => self.nvm_identity.encode(&mut bytes),
            cns::ACTIVE_NAMESPACES => {
                let after = self.disks.keys().filter(|id| **id > command.nsid);
                for (at, id) in after.enumerate() {
                    bytes[4 * at..4 * at + 4].copy_from_slice(&id.to_le_bytes());
                }
            }
            cns::NAMESPACE => match disk {
                Some(disk) => disk.identity.encode(&mut bytes),
                None => return Status::INVALID_NAMESPACE.with_dnr(1),
            },
            cns::NAMESPACE_DESCRIPTORS => match disk {
                Some(disk) => {
                    IdDescriptor { nidt: IdDescriptor::UUID, nid: &disk.uuid }.encode(&mut bytes);
                }
                None => return Status::INVALID_NAMESPACE.with_dnr(1),
            },
            _ => return Status::INVALID_FIELD.with_dnr(1),
        }
        self.put(host, command, &bytes)
    }

    fn create(&mut self, command: &Command, d10: u32, d11: u32) -> Status {
        let (number, entries) = (d10 as u16, (d10 >> 16) as u16 + 1);
        if number == 0 || number > self.queues {
            return Status::INVALID_QUEUE_ID.with_dnr(1);
        }
        if d11 & 1 == 0 || !command.dptr[0].is_multiple_of(PAGE) {
            return Status::INVALID_FIELD.with_dnr(1);
        }
        if u64::from(entries) > self.capabilities.mqes() + 1 || entries < 2 {
            return Status::INVALID_QUEUE_SIZE.with_dnr(1);
        }
        let completion = command.opcode == admin::CREATE_CQ;
        let vector = (completion && d11 & 2 != 0).then_some((d11 >> 16) as u16);
        if vector.is_some_and(|vector| usize::from(vector) >= self.bells.len()) {
            return Status::INVALID_VECTOR.with_dnr(1);
        }
        let queue =
            Queue { base: command.dptr[0], entries, head: 0, tail: 0, phase: true, vector, awake: true };
        if !completion && (d11 >> 16) as u16 != number {
            return Status::CQ_INVALID.with_dnr(1);
        }
        if !completion && !self.completions.contains_key(&number) {
            return Status::CQ_INVALID.with_dnr(1);
        }
        let queues = if completion { &mut self.completions } else { &mut self.submissions };
        match queues.insert(number, queue) {
            None => Status::SUCCESS,
            Some(_) => Status::INVALID_QUEUE_ID.with_dnr(1),
        }
    }
}
