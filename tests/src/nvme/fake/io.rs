//! The small controller's I/O commands (NVM 3.2), and how the data of any command come and go.

use super::host::Host;
use super::{Said, State, transfer};
use runtime::Window;
use stack::nvme::bits::{Command, DsmRange, PAGE, Status, io};

impl State {
    pub(super) fn put(&mut self, host: &Host, command: &Command, bytes: &[u8]) -> Status {
        let pieces = match transfer::pieces(host, command, bytes.len() as u64) {
            Ok(pieces) => pieces,
            Err(status) => return status,
        };
        let mut bytes = bytes.to_vec();
        self.lie(Said::Data, &mut bytes);
        let mut done = 0;
        for (address, len) in pieces {
            let Some(window) = host.find(address, len) else {
                self.wrong(format!("{len} bytes at {address:#x}, which are not mapped"));
                return Status::DATA_TRANSFER_ERROR;
            };
            window.write(0, &bytes[done..done + len as usize]);
            done += len as usize;
        }
        Status::SUCCESS
    }

    fn get(&mut self, host: &Host, command: &Command, len: u64) -> std::result::Result<Vec<u8>, Status> {
        let mut bytes = Vec::new();
        for (address, len) in transfer::pieces(host, command, len)? {
            let Some(window) = host.find(address, len) else {
                self.wrong(format!("{len} bytes at {address:#x}, which are not mapped"));
                return Err(Status::DATA_TRANSFER_ERROR);
            };
            let at = bytes.len();
            bytes.resize(at + len as usize, 0);
            window.read(0, &mut bytes[at..]);
        }
        Ok(bytes)
    }
    pub(super) fn transfer(&mut self, host: &Host, number: u16, command: &Command) {
        self.taken.push(*command);
        if self.orders.hold_io {
            self.held.push((number, command.id));
            return;
        }
        let status = match self.orders.statuses.pop_front() {
            Some(status) if !status.is_success() => status,
            _ => self.execute(host, command),
        };
        self.complete(host, number, command.id, status, 0);
    }

    fn execute(&mut self, host: &Host, command: &Command) -> Status {
        let Some(disk) = self.disks.get(&command.nsid) else { return Status::INVALID_NAMESPACE.with_dnr(1) };
        let block = disk.block_size();
        let (size, boundary) = (disk.bytes.len() as u64, u64::from(disk.identity.noiob));
        let range = |slba: u64, blocks: u64| {
            let (start, len) = (slba.checked_mul(block)?, blocks * block);
            (start.checked_add(len)? <= size).then_some(start as usize..(start + len) as usize)
        };
        if command.opcode == io::FLUSH {
            return Status::SUCCESS;
        }
        if command.opcode == io::DATASET_MANAGEMENT {
            let count = u64::from(command.cdw10[0] & 0xff) + 1;
            let bytes = match self.get(host, command, 16 * count) {
                Ok(bytes) => bytes,
                Err(status) => return status,
            };
            for bytes in bytes.chunks_exact(DsmRange::LEN) {
                let DsmRange { blocks, slba, .. } = DsmRange::decode(bytes);
                let Some(range) = range(slba, u64::from(blocks)) else { return Status::LBA_OUT_OF_RANGE };
                let disk = self.disks.get_mut(&command.nsid).expect("looked at before");
                disk.bytes[range].fill(0);
            }
            return Status::SUCCESS;
        }
        let blocks = u64::from(command.blocks());
        let Some(range) = range(command.slba(), blocks) else { return Status::LBA_OUT_OF_RANGE.with_dnr(1) };
        let transfers = matches!(command.opcode, io::READ | io::WRITE | io::COMPARE);
        let mdts = self.identity.mdts;
        if transfers && mdts > 0 && blocks * block > PAGE.checked_shl(u32::from(mdts)).unwrap_or(u64::MAX) {
            self.wrong(format!("a transfer of {} bytes, more than MDTS", blocks * block));
        }
        if transfers && boundary > 0 && command.slba() % boundary + blocks > boundary {
            self.wrong(format!("{blocks} blocks at {} cross the boundary", command.slba()));
        }
        match command.opcode {
            io::READ => {
                let bytes = self.disks[&command.nsid].bytes[range].to_vec();
                self.put(host, command, &bytes)
            }
            io::WRITE | io::COMPARE => match self.get(host, command, blocks * block) {
                Ok(bytes) => {
                    let disk = self.disks.get_mut(&command.nsid).expect("looked at before");
                    if command.opcode == io::WRITE {
                        disk.bytes[range].copy_from_slice(&bytes);
                    } else if disk.bytes[range] != bytes {
                        return Status::COMPARE_FAILURE;
                    }
                    Status::SUCCESS
                }
                Err(status) => status,
            },
            io::WRITE_ZEROES => {
                let disk = self.disks.get_mut(&command.nsid).expect("looked at before");
                disk.bytes[range].fill(0);
                Status::SUCCESS
            }
            _ => Status::INVALID_OPCODE.with_dnr(1),
        }
    }
}
