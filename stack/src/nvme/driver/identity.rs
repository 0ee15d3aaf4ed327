//! What a controller and its namespaces say of themselves, judged: every number that comes out of here has a bound that
//! stands here, and what the driver cannot work with is refused in a sentence.

use super::transfer::{Sgls, TRANSFER_MAX};
use crate::nvme::bits::{
    Capabilities, DOORBELLS, IdDescriptor, IdDescriptors, IdentifyController, IdentifyNamespace,
    IdentifyNvmController, LbaFormat, PAGE, doorbell,
};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Most blocks of a command on a range (NLB is 16 bits, 0's based).
const RANGE_BLOCKS_MAX: u32 = 1 << 16;
/// Most bytes of a namespace: offsets on a bdev are bytes in 64 bits, and leave room for sums.
const NAMESPACE_BYTES_MAX: u64 = 1 << 62;
/// Largest physical block that is reported, in bytes.
const PHYSICAL_BLOCK_MAX: u64 = 64 << 10;

/// What is known of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Serial number; printable ASCII without the padding, as the next two.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// NVM subsystem's qualified name.
    pub subnqn: String,
    /// PCI vendor and subsystem vendor.
    pub vendor: (u16, u16),
    /// Controller ID.
    pub id: u16,
    /// Version: major, minor, tertiary.
    pub version: (u16, u8, u8),
    /// Asynchronous events that it can report, as [`crate::nvme::bits::AsyncEventConfig`].
    pub(super) events: u32,
    /// How many Asynchronous Event Requests it takes.
    pub(super) event_requests: u16,
    /// How many Abort commands it takes.
    pub(super) aborts: u16,
    /// It has Doorbell Buffer Config.
    pub(super) doorbell_buffers: bool,
    /// How long a normal shutdown may take, in microseconds.
    pub(super) shutdown_us: u32,
    limits: Limits,
    /// Most bytes of one Write Zeroes; 0: it is not there.
    write_zeroes_bytes: u64,
    /// Atomic Write Unit Power Fail, in blocks.
    atomic_blocks: u32,
}

/// What commands on a namespace must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes in a block: 512 or 4096, 2^`block_shift`.
    pub(super) block_size: u32,
    pub(super) block_shift: u32,
    /// Most bytes of one transfer, a multiple of the block size.
    pub(super) transfer_max: u32,
    /// Commands do not cross multiples of so many blocks; 0: no boundary.
    pub(super) boundary: u64,
    /// Writes do not cross these either: what crosses one is not atomic, however short it is (NVM 2.1.4.4).
    pub(super) atomic: AtomicBoundaries,
    pub(super) sgls: Sgls,
    /// There is a volatile write cache.
    pub(super) volatile_cache: bool,
    /// Most blocks of one deallocated range; 0: Dataset Management is not there.
    pub(super) deallocate_max: u32,
    /// Most blocks of one Write Zeroes; 0: it is not there.
    pub(super) write_zeroes_max: u32,
    /// Write Zeroes may deallocate.
    pub(super) write_zeroes_deallocates: bool,
    /// Compare is there.
    pub(super) compare: bool,
    /// Command Retry Delay Times 1 to 3, in 100 ms.
    pub(super) retry_delays: [u16; 3],
}

/// Where a namespace's atomic boundaries lie: in normal operation (NABSN) and over a power failure (NABSPF), each so many
/// blocks from the last, the first of both at one offset (NABO).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AtomicBoundaries {
    /// Blocks; 0: none.
    sizes: [u64; 2],
    offset: u64,
}

impl AtomicBoundaries {
    fn new(identified: &IdentifyNamespace) -> Self {
        if identified.nsfeat & IdentifyNamespace::NSFEAT_ATOMIC == 0 {
            return Self { sizes: [0; 2], offset: 0 };
        }
        // 0 stands for no boundary, every other value for one block more.
        let size = |field: u16| if field == 0 { 0 } else { u64::from(field) + 1 };
        Self { sizes: [size(identified.nabsn), size(identified.nabspf)], offset: u64::from(identified.nabo) }
    }

    /// Blocks from `lba` to the next boundary; `None` where there is none.
    #[inline]
    pub(super) fn blocks_left(&self, lba: u64) -> Option<u64> {
        if self.sizes == [0; 2] {
            return None;
        }
        let left = |size: u64| {
            // Boundaries lie before the first one too, where that is not the namespace's first block.
            let into = (lba + size - self.offset % size) % size;
            size - into
        };
        self.sizes.into_iter().filter(|size| *size > 0).map(left).min()
    }

    /// Whether units of so many blocks never lie across one.
    fn keep_whole(&self, blocks: u32) -> bool {
        let is_whole = |size: u64| size.is_multiple_of(blocks.into());
        self.offset.is_multiple_of(blocks.into()) && self.sizes.into_iter().all(is_whole)
    }
}

/// Printable ASCII without the padding; what is not printable shows as a question mark.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let shown = bytes[..end].iter().map(|byte| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '?',
    });
    String::from(shown.collect::<String>().trim())
}

/// Checks what the controller's registers, of which there are `registers_len` bytes, say before it is enabled.
pub(super) fn check_capabilities(capabilities: Capabilities, registers_len: u64) -> Result<(), String> {
    if capabilities.css() & Capabilities::CSS_NVM == 0 {
        return Err(format!(
            "the controller has no NVM command set (CAP.CSS is {:02x}h): a disk is what is looked for here",
            capabilities.css()
        ));
    }
    if capabilities.mpsmin() > 0 {
        return Err(format!(
            "the controller's smallest page is {} KiB (CAP.MPSMIN): only pages of 4 KiB can be used",
            4 << capabilities.mpsmin()
        ));
    }
    if capabilities.mqes() == 0 {
        return Err("the controller's queues have one entry (CAP.MQES is 0), and a queue needs two".into());
    }
    let stride = capabilities.dstrd();
    if DOORBELLS + doorbell(1, true, stride) + 4 > registers_len {
        return Err(format!(
            "the controller's {registers_len} bytes of registers have no room for the doorbells of an I/O queue, at \
             {} bytes each (CAP.DSTRD)",
            4_u64 << stride
        ));
    }
    Ok(())
}

impl ControllerInfo {
    /// Judges what the controller says of itself.
    pub(super) fn new(identified: &IdentifyController) -> Result<Self, String> {
        let IdentifyController { cntrltype, sqes, cqes, mdts, oncs, sgls, ver, .. } = *identified;
        // 0: not reported, as before NVMe 1.4.
        if cntrltype > IdentifyController::TYPE_IO {
            return Err(format!("the controller is of type {cntrltype} (CNTRLTYPE), which has no I/O"));
        }
        for (name, sizes, wanted) in [("SQES", sqes, 6), ("CQES", cqes, 4)] {
            if sizes & 0xf > wanted || sizes >> 4 < wanted {
                return Err(format!(
                    "the controller's queue entries ({name} {sizes:02x}h) do not include 2^{wanted} bytes"
                ));
            }
        }
        let transfer_max = match mdts {
            0 => TRANSFER_MAX,
            _ => 1_u64
                .checked_shl(u32::from(mdts))
                .map_or(TRANSFER_MAX, |pages| pages.saturating_mul(PAGE).min(u64::from(TRANSFER_MAX)) as u32),
        };
        let has = |bit| oncs & bit != 0;
        let limits = Limits {
            block_size: 0,
            block_shift: 0,
            transfer_max,
            boundary: 0,
            atomic: AtomicBoundaries::default(),
            sgls: match sgls & 3 {
                IdentifyController::SGLS_ANY_ALIGNMENT => Sgls::Any,
                IdentifyController::SGLS_DWORD_ALIGNMENT => Sgls::Dword,
                _ => Sgls::No,
            },
            volatile_cache: identified.vwc & IdentifyController::VWC_PRESENT != 0,
            deallocate_max: if has(IdentifyController::ONCS_DATASET_MANAGEMENT) { u32::MAX } else { 0 },
            write_zeroes_max: 0,
            write_zeroes_deallocates: false,
            compare: has(IdentifyController::ONCS_COMPARE),
            retry_delays: identified.crdt,
        };
        Ok(Self {
            serial: text(&identified.sn),
            model: text(&identified.mn),
            firmware: text(&identified.fr),
            subnqn: text(&identified.subnqn),
            vendor: (identified.vid, identified.ssvid),
            id: identified.cntlid,
            version: ((ver >> 16) as u16, (ver >> 8) as u8, ver as u8),
            events: identified.oaes,
            event_requests: u16::from(identified.aerl) + 1,
            aborts: u16::from(identified.acl) + 1,
            doorbell_buffers: identified.oacs & IdentifyController::OACS_DOORBELL_BUFFER != 0,
            shutdown_us: identified.rtd3e,
            limits,
            write_zeroes_bytes: if has(IdentifyController::ONCS_WRITE_ZEROES) { u64::MAX } else { 0 },
            atomic_blocks: u32::from(identified.awupf) + 1,
        })
    }

    /// Narrows the limits by what the NVM command set adds.
    pub(super) fn narrow(&mut self, added: &IdentifyNvmController) {
        if added.wzsl > 0 {
            // A limit that leaves 64 bits is none.
            let bytes = 1_u64.checked_shl(u32::from(added.wzsl)).and_then(|pages| pages.checked_mul(PAGE));
            self.write_zeroes_bytes = self.write_zeroes_bytes.min(bytes.unwrap_or(u64::MAX));
        }
        if added.dmrsl > 0 {
            self.limits.deallocate_max = self.limits.deallocate_max.min(added.dmrsl);
        }
    }
}

/// What of a namespace may change while it is used; shared by all cores.
#[derive(Debug)]
pub struct NamespaceState {
    num_blocks: AtomicU64,
    gone: AtomicBool,
}

impl NamespaceState {
    /// Blocks now.
    #[must_use]
    pub fn num_blocks(&self) -> u64 {
        self.num_blocks.load(Relaxed)
    }

    /// Whether it was detached, or became what cannot be used: its I/O fails, and whoever offers it should stop.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }
}

/// What a namespace has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Writes may be lost with power until a flush.
    pub volatile_cache: bool,
    /// Deallocating does something.
    pub deallocate: bool,
    /// Zeroes are written without being sent.
    pub write_zeroes: bool,
}

/// A namespace that can be used.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its identifier.
    pub id: u32,
    /// What may change.
    pub state: Arc<NamespaceState>,
    /// Bytes in a block: 512 or 4096.
    pub block_size: u32,
    /// Bytes that are written whole over a power failure, and cheaply: a power of two, at least the block size.
    pub physical_block_size: u32,
    /// It is write protected.
    pub read_only: bool,
    /// Its UUID, or NGUID, or EUI-64 behind zeroes: whatever it has that is unique in the world.
    pub unique_id: Option<[u8; 16]>,
    pub(super) limits: Limits,
}

impl Namespace {
    /// Judges what the controller says of a namespace. `Err`: it cannot be used, and why.
    pub(super) fn new(
        id: u32,
        identified: &IdentifyNamespace,
        controller: &ControllerInfo,
    ) -> Result<Self, String> {
        let index = identified.format_index();
        if index > identified.nlbaf || usize::from(index) >= identified.lbaf.len() {
            return Err(format!(
                "its format {index} (FLBAS) is none of the {} that it has (NLBAF)",
                u16::from(identified.nlbaf) + 1
            ));
        }
        let format = LbaFormat(identified.lbaf[usize::from(index)]);
        let block_size = match format.lbads() {
            9 => 512,
            12 => 4096,
            shift => {
                return Err(format!(
                    "its blocks have 2^{shift} bytes (LBADS): only 512 and 4096 can be used"
                ));
            }
        };
        if format.ms() > 0 {
            return Err(format!(
                "its format has {} bytes of metadata a block: format it without (nvme format --lbaf)",
                format.ms()
            ));
        }
        if identified.dps & 7 != 0 {
            return Err(format!(
                "it is formatted with protection information of type {} (DPS)",
                identified.dps & 7
            ));
        }
        let size = identified.nsze;
        if size == 0 || size.checked_mul(block_size).is_none_or(|bytes| bytes > NAMESPACE_BYTES_MAX) {
            return Err(format!("its size of {size} blocks (NSZE) cannot be"));
        }
        let block_size = block_size as u32;
        let mut limits = Limits {
            block_size,
            block_shift: block_size.ilog2(),
            boundary: u64::from(identified.noiob),
            atomic: AtomicBoundaries::new(identified),
            ..controller.limits
        };
        let zeroes_blocks = controller.write_zeroes_bytes / u64::from(block_size);
        limits.write_zeroes_max = zeroes_blocks.min(u64::from(RANGE_BLOCKS_MAX)) as u32;
        limits.write_zeroes_deallocates = identified.dlfeat & IdentifyNamespace::DLFEAT_DEAC != 0;
        Ok(Self {
            id,
            state: Arc::new(NamespaceState {
                num_blocks: AtomicU64::new(size),
                gone: AtomicBool::new(false),
            }),
            block_size,
            physical_block_size: physical_block_size(identified, block_size, controller),
            read_only: identified.nsattr & IdentifyNamespace::NSATTR_WRITE_PROTECTED != 0,
            unique_id: unique_id(identified),
            limits,
        })
    }

    /// What may be done with it at no more cost than that of doing it.
    #[must_use]
    pub fn abilities(&self) -> Abilities {
        Abilities {
            volatile_cache: self.limits.volatile_cache,
            deallocate: self.limits.deallocate_max > 0,
            write_zeroes: self.limits.write_zeroes_max > 0,
        }
    }

    /// Takes the UUID out of the identification descriptors, where there is one.
    pub(super) fn describe(&mut self, descriptors: &[u8]) {
        let uuid = IdDescriptors(descriptors).find(|descriptor| descriptor.nidt == IdDescriptor::UUID);
        if let Some(Ok(uuid)) = uuid.map(|descriptor| <[u8; 16]>::try_from(descriptor.nid))
            && uuid != [0; 16]
        {
            self.unique_id = Some(uuid);
        }
    }

    /// Whether a later look at the namespace found the same disk, but for its size. One that may be written now, and could
    /// not before, is another one to its users, and so is the reverse.
    pub(super) fn is_same_disk(&self, later: &Self) -> bool {
        let lasting = |namespace: &Self| {
            let Self { id, block_size, read_only, unique_id, .. } = namespace;
            (*id, *block_size, *read_only, *unique_id)
        };
        lasting(self) == lasting(later)
    }

    pub(super) fn set_num_blocks(&self, num_blocks: u64) {
        self.state.num_blocks.store(num_blocks, Relaxed);
    }

    pub(super) fn set_gone(&self) {
        self.state.gone.store(true, Relaxed);
    }
}

/// What is written whole over a power failure and at no more cost than needed: the atomic unit, as far as blocks of that
/// size are atomic wherever they begin, and the preferred granularity.
fn physical_block_size(identified: &IdentifyNamespace, block_size: u32, controller: &ControllerInfo) -> u32 {
    let own = identified.nsfeat & IdentifyNamespace::NSFEAT_ATOMIC != 0;
    let atomic = if own { u32::from(identified.nawupf) + 1 } else { controller.atomic_blocks };
    let preferred = identified.nsfeat & IdentifyNamespace::NSFEAT_PREFERRED != 0;
    let granularity = if preferred { u32::from(identified.npwg) + 1 } else { atomic };
    let bytes = (u64::from(atomic.min(granularity)) * u64::from(block_size)).min(PHYSICAL_BLOCK_MAX);
    let whole = 1 << bytes.ilog2();
    if AtomicBoundaries::new(identified).keep_whole(whole / block_size) { whole } else { block_size }
}

fn unique_id(identified: &IdentifyNamespace) -> Option<[u8; 16]> {
    if identified.nguid != [0; 16] {
        return Some(identified.nguid);
    }
    let mut id = [0; 16];
    id[8..].copy_from_slice(&identified.eui64);
    (identified.eui64 != [0; 8]).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller() -> IdentifyController {
        IdentifyController { sqes: 0x66, cqes: 0x44, mdts: 7, ..Default::default() }
    }

    fn namespace() -> IdentifyNamespace {
        let mut namespace = IdentifyNamespace { nsze: 1 << 20, ..Default::default() };
        namespace.lbaf[0] = LbaFormat::default().with_lbads(9).0;
        namespace
    }

    #[test]
    fn numbers_of_a_controller_are_bounded() {
        let info = ControllerInfo::new(&controller()).unwrap();
        assert_eq!(info.limits.transfer_max, 128 * 4096);
        for mdts in [0, 9, 63, 64, 255] {
            let info = ControllerInfo::new(&IdentifyController { mdts, ..controller() }).unwrap();
            assert_eq!(info.limits.transfer_max, TRANSFER_MAX, "MDTS {mdts}");
        }
        for wrong in [
            IdentifyController { sqes: 0x77, ..controller() },
            IdentifyController { cqes: 0x33, ..controller() },
            IdentifyController { cntrltype: 2, ..controller() },
        ] {
            assert!(ControllerInfo::new(&wrong).is_err());
        }
        let mut odd = controller();
        odd.sn[..6].copy_from_slice(b" A\x1bB\0C");
        assert_eq!(ControllerInfo::new(&odd).unwrap().serial, "A?B");
    }

    #[test]
    fn limits_of_the_command_set_only_narrow() {
        let limits = |oncs, added: IdentifyNvmController| {
            let mut info = ControllerInfo::new(&IdentifyController { oncs, ..controller() }).unwrap();
            info.narrow(&added);
            let limits = Namespace::new(1, &namespace(), &info).unwrap().limits;
            (limits.write_zeroes_max, limits.deallocate_max)
        };
        for (wzsl, blocks) in [(0, 65536), (1, 16), (5, 256), (20, 65536), (61, 65536), (255, 65536)] {
            let added = IdentifyNvmController { wzsl, dmrsl: 7, ..Default::default() };
            assert_eq!(limits(0xffff, added), (blocks, 7), "WZSL {wzsl}");
            assert_eq!(limits(0, added), (0, 0), "what is not there has no limit");
        }
    }

    #[test]
    fn a_namespace_that_cannot_be_used_is_refused_in_a_sentence() {
        let info = ControllerInfo::new(&controller()).unwrap();
        let format = |lbads, ms| LbaFormat::default().with_lbads(lbads).with_ms(ms).0;
        let with = |change: &dyn Fn(&mut IdentifyNamespace)| {
            let mut changed = namespace();
            change(&mut changed);
            Namespace::new(1, &changed, &info).map(|namespace| namespace.block_size)
        };
        assert_eq!(with(&|_| ()), Ok(512));
        assert_eq!(with(&|ns| ns.lbaf[0] = format(12, 0)), Ok(4096));
        type Change<'a> = (&'a str, &'a dyn Fn(&mut IdentifyNamespace));
        let refused: [Change<'_>; 8] = [
            ("metadata", &|ns| ns.lbaf[0] = format(9, 8)),
            ("2^13 bytes", &|ns| ns.lbaf[0] = format(13, 0)),
            ("2^0 bytes", &|ns| ns.lbaf[0] = format(0, 0)),
            ("format 3", &|ns| ns.flbas = 3),
            ("format 127", &|ns| (ns.flbas, ns.nlbaf) = (0xff, 255)),
            ("protection information of type 1", &|ns| ns.dps = 1),
            ("size of 0 blocks", &|ns| ns.nsze = 0),
            ("cannot be", &|ns| ns.nsze = u64::MAX),
        ];
        for (what, change) in refused {
            let why = with(change).expect_err(what);
            assert!(why.contains(what) || what == "format 127", "{why}");
        }
    }

    #[test]
    fn the_physical_block_is_a_power_of_two_that_is_written_whole() {
        let info = |awupf| ControllerInfo::new(&IdentifyController { awupf, ..controller() }).unwrap();
        let of =
            |ns: IdentifyNamespace, awupf| Namespace::new(1, &ns, &info(awupf)).unwrap().physical_block_size;
        assert_eq!(of(namespace(), 0), 512);
        assert_eq!(of(namespace(), 7), 4096);
        assert_eq!(of(namespace(), 9), 4096, "ten blocks hold eight");
        assert_eq!(of(namespace(), u16::MAX), 65536);
        let own = IdentifyNamespace { nsfeat: IdentifyNamespace::NSFEAT_ATOMIC, nawupf: 1, ..namespace() };
        assert_eq!(of(own, 7), 1024);
        assert_eq!(of(IdentifyNamespace { nabo: 1, ..own }, 7), 512);
        assert_eq!(of(IdentifyNamespace { nabsn: 7, nabspf: 3, ..own }, 7), 1024);
        assert_eq!(
            of(IdentifyNamespace { nabsn: 7, nabspf: 2, ..own }, 7),
            512,
            "three blocks hold no two twos"
        );
    }

    #[test]
    fn writes_end_at_the_nearer_atomic_boundary() {
        let boundaries = |nabsn, nabspf, nabo| {
            let nsfeat = IdentifyNamespace::NSFEAT_ATOMIC;
            AtomicBoundaries::new(&IdentifyNamespace { nsfeat, nabsn, nabspf, nabo, ..namespace() })
        };
        let left = |boundaries: AtomicBoundaries, lba| boundaries.blocks_left(lba).unwrap_or(0);
        for (lba, blocks) in [(0, 2), (1, 1), (2, 4), (5, 1), (6, 4), (1 << 40, 2)] {
            assert_eq!(left(boundaries(7, 3, 2), lba), blocks, "at {lba}");
        }
        assert_eq!(left(boundaries(7, 0, 2), 2), 8);
        assert_eq!(left(boundaries(0, 0, 0), 2), 0, "none");
        // What does not fit together is harmless: a boundary is a block ahead at least.
        assert_eq!(left(boundaries(1, 0, u16::MAX), 0), 1);
        let uncounted = IdentifyNamespace { nabsn: 7, ..namespace() };
        assert_eq!(
            AtomicBoundaries::new(&uncounted).blocks_left(0),
            None,
            "NSFEAT does not say that it counts"
        );
    }
}
