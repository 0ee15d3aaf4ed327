//! The nvme bdev: a namespace of a local NVMe controller, through the [driver](crate::nvme::driver).
//!
//! The driver does the work and the retries; here operations become its operations, and its failures those of a bdev. A
//! namespace that is gone, with its controller or from it, fails everything.

use super::statistics::{CHANNEL_DEPTH, Counted, Statistics};
use super::{Bdev, Channel, ChannelFull, Completion, Geometry, Io, IoError, Op};
use crate::nvme::bits::Status;
use crate::nvme::driver::{
    ControllerInfo, Ended, IoChannel, IoFailure, Link, Namespace, NamespaceState, Operation, Options, PciOf,
};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use runtime::{CoreId, ErrorKind, Instant, PciAddress, Platform};
use serde_json::{Map, Value, json};

/// A namespace as a disk.
pub struct NvmeBdev<P: Platform, X: PciOf<P>> {
    name: String,
    uuid: [u8; 16],
    namespace: Namespace,
    address: PciAddress,
    info: ControllerInfo,
    link: Link<P, X>,
    options: Options,
    after_loss: bool,
    statistics: Statistics,
}

impl<P: Platform, X: PciOf<P>> NvmeBdev<P, X> {
    /// The disk of a namespace of the controller that is called `controller`: `Nvme0n1` is namespace 1 of `Nvme0`.
    /// `after_loss`: the same disk was lost in this life of the target, perhaps with what its cache held.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "made in one place, of what a controller says of itself")]
    pub fn new(
        controller: &str,
        address: PciAddress,
        info: ControllerInfo,
        namespace: Namespace,
        link: Link<P, X>,
        options: Options,
        after_loss: bool,
        cores: u16,
    ) -> Self {
        Self {
            name: format!("{controller}n{}", namespace.id),
            uuid: namespace.unique_id.unwrap_or_else(|| identity(&info, namespace.id)),
            namespace,
            address,
            info,
            link,
            options,
            after_loss,
            statistics: Statistics::new(cores),
        }
    }

    /// What may change about the namespace.
    #[must_use]
    pub fn state(&self) -> &Arc<NamespaceState> {
        &self.namespace.state
    }
}

/// The identity of a namespace that has none of its own: made of the drive's, so that it is the same in every life.
fn identity(info: &ControllerInfo, namespace: u32) -> [u8; 16] {
    // FNV-1a of 64 bits, twice with different beginnings.
    let hash = |begin: u64| {
        let bytes = info.model.bytes().chain([0]).chain(info.serial.bytes()).chain(namespace.to_le_bytes());
        bytes.fold(begin, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    super::uuid::random([hash(0xcbf2_9ce4_8422_2325), hash(0x6c62_272e_07bb_0142)])
}

fn geometry(namespace: &Namespace) -> Geometry {
    let limits = namespace.abilities();
    Geometry {
        block_size: namespace.block_size,
        physical_block_size: namespace.physical_block_size,
        num_blocks: namespace.state.num_blocks(),
        read_only: namespace.read_only,
        volatile_cache: limits.volatile_cache,
        discard: limits.deallocate && !namespace.read_only,
        write_zeroes: limits.write_zeroes && !namespace.read_only,
    }
}

impl<P: Platform, X: PciOf<P>> Bdev<P> for NvmeBdev<P, X> {
    fn name(&self) -> &str {
        &self.name
    }

    fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    fn product_name(&self) -> &'static str {
        "NVMe disk"
    }

    fn geometry(&self) -> Geometry {
        geometry(&self.namespace)
    }

    fn channel(&self, platform: &P) -> runtime::Result<Box<dyn Channel<P>>> {
        let requests = CHANNEL_DEPTH as u32;
        let channel = NvmeChannel {
            channel: IoChannel::open(platform, &self.link, &self.namespace, self.options, requests)?,
            namespace: self.namespace.clone(),
            refused: Vec::with_capacity(CHANNEL_DEPTH),
            ended: Vec::with_capacity(CHANNEL_DEPTH),
            core: platform.here(),
            statistics: self.statistics.clone(),
            copied_bytes: 0,
            owes_failure: self.after_loss && self.namespace.abilities().volatile_cache,
        };
        Ok(Box::new(Counted::new(channel, platform.here(), self.statistics.clone())))
    }

    fn is_reached_by_devices(&self) -> bool {
        true
    }

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn driver_specific(&self) -> Map<String, Value> {
        // The keys are those of SPDK's module (bdev_nvme.c, `bdev_nvme_dump_info_json`).
        let ControllerInfo { serial, model, firmware, subnqn, vendor, id, version, .. } = &self.info;
        let address = format!("{}", self.address);
        let mut map = Map::new();
        map.insert(
            "nvme".into(),
            json!([{
                "pci_address": address,
                "trid": { "trtype": "PCIe", "traddr": address },
                "ctrlr_data": {
                    "cntlid": id,
                    "vendor_id": format!("0x{:04x}", vendor.0),
                    "model_number": model,
                    "serial_number": serial,
                    "firmware_revision": firmware,
                    "subnqn": subnqn,
                },
                "vs": { "nvme_version": format!("{}.{}", version.0, version.1) },
                "ns_data": { "id": self.namespace.id },
            }]),
        );
        map
    }
}

/// One core's channel. [`Counted`] keeps its tokens small and unique, as the driver wants them.
struct NvmeChannel<P: Platform, X: PciOf<P>> {
    channel: IoChannel<P, X>,
    namespace: Namespace,
    /// What ended without the driver.
    refused: Vec<Completion>,
    /// What the driver has just ended; kept for its memory.
    ended: Vec<Ended>,
    core: CoreId,
    statistics: Statistics,
    /// What of the driver's copied bytes was counted.
    copied_bytes: u64,
    /// Writes that were completed may have been lost with the drive that was there before: the next flush says so.
    owes_failure: bool,
}

impl<P: Platform, X: PciOf<P>> NvmeChannel<P, X> {
    fn check(&self, io: &Io<'_, P::Window>) -> Result<(), IoError> {
        let geometry = geometry(&self.namespace);
        if self.namespace.state.is_gone() {
            return Err(IoError::Medium(ErrorKind::NotFound));
        }
        if !geometry.contains(io.offset, io.len) {
            return Err(IoError::OutOfRange);
        }
        match io.op {
            Op::Read | Op::Write { .. } if io.segments.len() != io.len => {
                Err(IoError::Medium(ErrorKind::Invalid))
            }
            Op::Write { .. } | Op::Discard | Op::WriteZeroes { .. } if geometry.read_only => {
                Err(IoError::ReadOnly)
            }
            _ => Ok(()),
        }
    }
}

impl<P: Platform, X: PciOf<P>> Channel<P> for NvmeChannel<P, X> {
    fn submit(&mut self, now: Instant, io: &Io<'_, P::Window>, token: u64) -> Result<(), ChannelFull> {
        if let Err(error) = self.check(io) {
            self.refused.push(Completion { token, result: Err(error) });
            return Ok(());
        }
        if io.op == Op::Flush && core::mem::take(&mut self.owes_failure) {
            self.refused.push(Completion { token, result: Err(IoError::Medium(ErrorKind::Io)) });
            return Ok(());
        }
        let operation = match io.op {
            Op::Read => Operation::Read,
            Op::Write { fua } => Operation::Write { fua },
            Op::Flush => Operation::Flush,
            Op::Discard => Operation::Deallocate,
            Op::WriteZeroes { unmap, fua } => Operation::WriteZeroes { deallocate: unmap, fua },
        };
        let token = u32::try_from(token).expect("a counted channel's tokens are small");
        let lba = io.offset / u64::from(self.namespace.block_size);
        self.channel.submit(now, token, operation, lba, io.len, io.segments.0);
        Ok(())
    }

    fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> bool {
        let worked = self.channel.poll(now, &mut self.ended) || !self.refused.is_empty();
        completions.append(&mut self.refused);
        let copied_bytes = self.channel.copied_bytes();
        if copied_bytes != self.copied_bytes {
            self.statistics.record_copied(self.core, copied_bytes - self.copied_bytes);
            self.copied_bytes = copied_bytes;
        }
        completions.extend(self.ended.drain(..).map(|Ended { token, result }| Completion {
            token: u64::from(token),
            result: result.map_err(io_error),
        }));
        worked
    }

    fn wake_at(&self) -> Option<Instant> {
        if self.refused.is_empty() { self.channel.wake_at() } else { Some(Instant(0)) }
    }

    fn arm(&self, wakes: &mut P::Wakes) {
        self.channel.arm(wakes);
    }
}

/// A failure of the driver as a bdev's.
fn io_error(failure: IoFailure) -> IoError {
    match failure {
        IoFailure::Unsupported => IoError::Unsupported,
        IoFailure::Device => IoError::Medium(ErrorKind::NotFound),
        IoFailure::Status(status) => match status.code() {
            Status::LBA_OUT_OF_RANGE => IoError::OutOfRange,
            Status::WRITE_PROTECTED => IoError::ReadOnly,
            Status::CAPACITY_EXCEEDED => IoError::NoSpace,
            Status::INVALID_OPCODE => IoError::Unsupported,
            _ => IoError::Medium(ErrorKind::Io),
        },
    }
}
