//! NVMe over Fabrics: its commands, which share one opcode and are told apart by their type, the data of Connect, and
//! the log page by which subsystems are found (NVMe base, section 6 and figure "Discovery Log Page").

use super::command::{Command, admin};
use super::layout::{bit_fields, structure};
use super::sgl::SglDescriptor;

/// Types of fabrics commands (section 6).
pub mod fctype {
    /// Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect.
    pub const CONNECT: u8 = 0x01;
    /// Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
    /// Authentication Send.
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    /// Authentication Receive.
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
    /// Disconnect.
    pub const DISCONNECT: u8 = 0x08;
}

/// The name of every discovery subsystem.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Most bytes of an NVMe Qualified Name, its ending zero not counted (section 4.5).
pub const NQN_MAX: usize = 223;
/// The controller that a host asks for when any will do (section 6.3, dynamic controllers).
pub const CNTLID_DYNAMIC: u16 = 0xffff;

/// A fabrics command holds its type where others hold a namespace, and its own fields from dword 10 on.
impl Command {
    /// The type of a fabrics command: [`fctype`].
    #[must_use]
    pub const fn fabrics_type(&self) -> u8 {
        self.nsid as u8
    }

    const fn fabrics(kind: u8, cdw10: [u32; 6]) -> Self {
        Self {
            opcode: admin::FABRICS,
            flags: super::PSDT_SGL << 6,
            id: 0,
            nsid: kind as u32,
            cdw2: [0; 2],
            mptr: 0,
            dptr: [0; 2],
            cdw10,
        }
    }

    /// Connect (section 6.3). The data is [`ConnectData`].
    #[must_use]
    pub const fn connect(fields: &Connect) -> Self {
        let Connect { record_format, queue, sq_size, attributes, keep_alive_ms } = *fields;
        let cdw10 = [
            record_format as u32 | (queue as u32) << 16,
            sq_size as u32 | (attributes as u32) << 16,
            keep_alive_ms,
            0,
            0,
            0,
        ];
        Self::fabrics(fctype::CONNECT, cdw10)
    }

    /// The fields of a Connect.
    #[must_use]
    pub const fn as_connect(&self) -> Connect {
        let [dword10, dword11, keep_alive_ms, ..] = self.cdw10;
        Connect {
            record_format: dword10 as u16,
            queue: (dword10 >> 16) as u16,
            sq_size: dword11 as u16,
            attributes: (dword11 >> 16) as u8,
            keep_alive_ms,
        }
    }

    /// Property Get (section 6.4) of a register of 4 or, if `wide`, 8 bytes.
    #[must_use]
    pub const fn property_get(register: u32, wide: bool) -> Self {
        Self::fabrics(fctype::PROPERTY_GET, [wide as u32, register, 0, 0, 0, 0])
    }

    /// Property Set (section 6.5), likewise.
    #[must_use]
    pub const fn property_set(register: u32, wide: bool, value: u64) -> Self {
        let value = [value as u32, (value >> 32) as u32];
        Self::fabrics(fctype::PROPERTY_SET, [wide as u32, register, value[0], value[1], 0, 0])
    }

    /// The size field of a Property Get or Set: 0 stands for 4 bytes, 1 for 8, others for nothing.
    #[must_use]
    pub const fn property_size(&self) -> u32 {
        self.cdw10[0] & 0x7
    }

    /// The register of a Property Get or Set: an offset in bytes.
    #[must_use]
    pub const fn property_offset(&self) -> u32 {
        self.cdw10[1]
    }

    /// The value of a Property Set; of 4 bytes the upper half means nothing.
    #[must_use]
    pub const fn property_value(&self) -> u64 {
        self.cdw10[2] as u64 | (self.cdw10[3] as u64) << 32
    }

    /// Disconnect (section 6.2) of the I/O queue that it is sent on.
    #[must_use]
    pub const fn disconnect() -> Self {
        Self::fabrics(fctype::DISCONNECT, [0; 6])
    }

    /// Keep Alive (section 5.18).
    #[must_use]
    pub const fn keep_alive() -> Self {
        Self {
            opcode: admin::KEEP_ALIVE,
            flags: super::PSDT_SGL << 6,
            id: 0,
            nsid: 0,
            cdw2: [0; 2],
            mptr: 0,
            dptr: [0; 2],
            cdw10: [0; 6],
        }
    }
}

/// The fields of a Connect command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connect {
    /// Record Format, 0.
    pub record_format: u16,
    /// Queue Identifier: 0 creates a controller and its admin queue, others are I/O queues of a controller.
    pub queue: u16,
    /// Submission Queue Size, entries, 0's based.
    pub sq_size: u16,
    /// Connect Attributes: [`Connect::NO_FLOW_CONTROL`].
    pub attributes: u8,
    /// Keep Alive Timeout, milliseconds; 0 none. Of an admin queue only.
    pub keep_alive_ms: u32,
}

impl Connect {
    /// CATTR: the host does not look at the submission queue's head.
    pub const NO_FLOW_CONTROL: u8 = 1 << 2;
}

structure! {
    /// The data of Connect (section 6.3).
    ConnectData: 1024 {
        /// Host Identifier.
        hostid: [u8; 16] = 0,
        /// Controller ID: [`CNTLID_DYNAMIC`] for an admin queue, the controller's for its I/O queues.
        cntlid: u16 = 16,
        /// NVM Subsystem NVMe Qualified Name, ended by zero.
        subnqn: [u8; 256] = 256,
        /// Host NVMe Qualified Name, ended by zero.
        hostnqn: [u8; 256] = 512,
    }
}

bit_fields! {
    /// Dword 0 of the completion of a Connect that went well.
    Connected: u32 {
        /// Controller ID.
        cntlid, with_cntlid = 0, 16;
        /// Authentication Transaction Required: before other commands.
        atr, with_atr = 17, 1;
        /// Authentication and Secure Channel Required: before other commands, and TLS made of it.
        ascr, with_ascr = 18, 1;
    }
}

bit_fields! {
    /// Dword 0 of the completion of a Connect with [`super::Status::CONNECT_INVALID_PARAMETERS`]: which one is wrong.
    InvalidParameter: u32 {
        /// Invalid Parameter Offset, bytes.
        ipo, with_ipo = 0, 16;
        /// Invalid Attributes: 0 an offset into the command, 1 into its data.
        iattr, with_iattr = 16, 1;
    }
}

structure! {
    /// The head of the discovery log page; [`DiscoveryEntry`] follows, one for each record.
    DiscoveryHeader: 1024 {
        /// Generation Counter: another number when the page has changed.
        genctr: u64 = 0,
        /// Number of Records.
        numrec: u64 = 8,
        /// Record Format, 0.
        recfmt: u16 = 16,
    }
}

structure! {
    /// One way to a subsystem.
    DiscoveryEntry: 1024 {
        /// Transport Type: [`DiscoveryEntry::TRTYPE_TCP`].
        trtype: u8 = 0,
        /// Address Family: [`DiscoveryEntry::ADRFAM_IPV4`] or [`DiscoveryEntry::ADRFAM_IPV6`].
        adrfam: u8 = 1,
        /// Subsystem Type: [`DiscoveryEntry::SUBTYPE_NVM`] and its neighbours.
        subtype: u8 = 2,
        /// Transport Requirements: secure channel in bits 1:0 (0 not specified, 1 required, 2 not required).
        treq: u8 = 3,
        /// Port ID.
        portid: u16 = 4,
        /// Controller ID: [`CNTLID_DYNAMIC`].
        cntlid: u16 = 6,
        /// Admin Max SQ Size, entries, at least 32.
        asqsz: u16 = 8,
        /// Entry Flags.
        eflags: u16 = 10,
        /// Transport Service Identifier, the port in decimal, ASCII padded with spaces.
        trsvcid: [u8; 32] = 32,
        /// NVM Subsystem Qualified Name, ended by zero.
        subnqn: [u8; 256] = 256,
        /// Transport Address, ASCII padded with spaces.
        traddr: [u8; 256] = 512,
        /// Transport Specific Address Subtype; of TCP the first byte: 0 no security, 1 TLS 1.2, 2 TLS 1.3.
        tsas: [u8; 256] = 768,
    }
}

impl DiscoveryEntry {
    /// TRTYPE: TCP.
    pub const TRTYPE_TCP: u8 = 3;
    /// ADRFAM: IPv4.
    pub const ADRFAM_IPV4: u8 = 1;
    /// ADRFAM: IPv6.
    pub const ADRFAM_IPV6: u8 = 2;
    /// SUBTYPE: a referral to another discovery subsystem.
    pub const SUBTYPE_REFERRAL: u8 = 1;
    /// SUBTYPE: an NVM subsystem.
    pub const SUBTYPE_NVM: u8 = 2;
    /// SUBTYPE: the discovery subsystem that gave the page.
    pub const SUBTYPE_CURRENT: u8 = 3;
}

/// Where a fabrics command's data is (section 4.1.2, "SGL Descriptor Type" and NVMe/TCP 3.3.2).
impl SglDescriptor {
    /// Identifier of data in the capsule, at an offset behind the command.
    pub const IN_CAPSULE: u8 = 0x01;
    /// Identifier of data that the transport moves on its own.
    pub const TRANSPORT: u8 = 0x5a;

    /// Data in the capsule, from its start.
    #[must_use]
    pub const fn in_capsule(len: u32) -> Self {
        Self { address: 0, len, reserved: [0; 3], identifier: Self::IN_CAPSULE }
    }

    /// Data that the transport moves on its own.
    #[must_use]
    pub const fn transport(len: u32) -> Self {
        Self { address: 0, len, reserved: [0; 3], identifier: Self::TRANSPORT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_has_its_fields_where_linux_was_seen_to_send_them() {
        let connect = Connect {
            queue: 1,
            sq_size: 31,
            attributes: Connect::NO_FLOW_CONTROL,
            keep_alive_ms: 5000,
            ..Default::default()
        };
        let command = Command::connect(&connect).with_sgl(SglDescriptor::in_capsule(1024));
        let mut bytes = [0; 64];
        command.encode(&mut bytes);
        assert_eq!((bytes[0], bytes[1], bytes[4]), (0x7f, 0x40, 0x01));
        assert_eq!((&bytes[32..36], bytes[39]), (&1024_u32.to_le_bytes()[..], 0x01));
        assert_eq!(bytes[40..52], [0, 0, 1, 0, 31, 0, 4, 0, 0x88, 0x13, 0, 0]);
        assert_eq!(Command::decode(&bytes).as_connect(), connect);
        assert_eq!(Command::decode(&bytes).fabrics_type(), fctype::CONNECT);
    }

    #[test]
    fn properties_are_named_by_offset_and_size() {
        let set = Command::property_set(0x14, false, 0x46_0001);
        assert_eq!((set.property_offset(), set.property_size(), set.property_value()), (0x14, 0, 0x46_0001));
        let get = Command::property_get(0, true);
        assert_eq!((get.fabrics_type(), get.property_size()), (fctype::PROPERTY_GET, 1));
    }
}
