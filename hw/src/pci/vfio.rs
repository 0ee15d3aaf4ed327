//! What the kernel's VFIO is asked, one function a call (Linux, uapi/linux/vfio.h): containers, groups, devices.
//!
//! Structures and numbers are those of `vfio-bindings`. The calls are made here, and not by `vfio-ioctls`: that crate has
//! no answer to a reset that failed, maps no memory for reading alone, does not ask which device addresses are reserved,
//! loses most error numbers, and panics when a device is dropped whose place in sysfs went away.

use rustix::io::Errno;
use std::ffi::{CStr, c_void};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_TYPE, VFIO_TYPE1v2_IOMMU, vfio_device_info, vfio_group_status,
    vfio_info_cap_header, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info,
    vfio_irq_info, vfio_irq_set, vfio_region_info,
};

/// The calls, by their numbers behind `VFIO_BASE`. Some stand for two calls, of a container and of a device.
const GET_API_VERSION: u32 = 0;
const CHECK_EXTENSION: u32 = 1;
const SET_IOMMU: u32 = 2;
const GROUP_GET_STATUS: u32 = 3;
const GROUP_SET_CONTAINER: u32 = 4;
const GROUP_UNSET_CONTAINER: u32 = 5;
const GROUP_GET_DEVICE_FD: u32 = 6;
const DEVICE_GET_INFO: u32 = 7;
const DEVICE_GET_REGION_INFO: u32 = 8;
const DEVICE_GET_IRQ_INFO: u32 = 9;
const DEVICE_SET_IRQS: u32 = 10;
const DEVICE_RESET: u32 = 11;
const IOMMU_GET_INFO: u32 = 12;
const IOMMU_MAP_DMA: u32 = 13;
const IOMMU_UNMAP_DMA: u32 = 14;

/// Most bytes of an answer with capabilities behind it.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Asks the kernel.
///
/// # Safety
///
/// `argument` is what the call takes on that descriptor, and lives as long as the call.
unsafe fn ask(descriptor: impl AsFd, call: u32, argument: *mut c_void) -> Result<i32, Errno> {
    let request = u32::from(VFIO_TYPE) << 8 | (VFIO_BASE + call);
    let descriptor = descriptor.as_fd().as_raw_fd();
    // SAFETY: as the caller vouches.
    let answer = unsafe { libc::ioctl(descriptor, request as libc::Ioctl, argument) };
    if answer < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(answer)
}

/// Asks with a plain number.
fn ask_number(descriptor: impl AsFd, call: u32, number: usize) -> Result<i32, Errno> {
    // SAFETY: the calls that are made by this take a number, or nothing.
    unsafe { ask(descriptor, call, std::ptr::without_provenance_mut(number)) }
}

/// Asks with a structure that the kernel reads or fills in.
///
/// # Safety
///
/// `argument` is the structure of that call, whole.
unsafe fn ask_about<T>(descriptor: impl AsFd, call: u32, argument: &mut T) -> Result<i32, Errno> {
    // SAFETY: as the caller vouches.
    unsafe { ask(descriptor, call, std::ptr::from_mut(argument).cast()) }
}

/// The size of a structure, as it is told to the kernel.
const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// Asks for a structure and what lies behind it, as bytes: `words` is what to ask with; its first four bytes are made the
/// length.
///
/// # Safety
///
/// The words are the structure of that call, whole.
unsafe fn ask_all(descriptor: impl AsFd, call: u32, words: &[u64]) -> Result<Vec<u8>, Errno> {
    let mut answer = words.to_vec();
    loop {
        let len = answer.len() * size_of::<u64>();
        answer[0] = answer[0] & !u64::from(u32::MAX) | len as u64;
        // SAFETY: as the caller vouches; the length is that of the buffer, which the kernel does not exceed.
        unsafe { ask(descriptor.as_fd(), call, answer.as_mut_ptr().cast()) }?;
        let wanted = (answer[0] & u64::from(u32::MAX)) as usize;
        if wanted <= len {
            return Ok(answer.iter().flat_map(|word| word.to_ne_bytes()).collect());
        }
        if wanted > ANSWER_BYTES_MAX {
            return Err(Errno::TOOBIG);
        }
        answer = words.to_vec();
        answer.resize(wanted.div_ceil(size_of::<u64>()), 0);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Where in an answer a capability begins, by its number; `first`: where the first one does.
fn capability(answer: &[u8], first: u32, wanted: u32) -> Option<usize> {
    let mut at = first as usize;
    // Each is longer than its header, so there are no more than these many.
    for _ in 0..answer.len() / size_of::<vfio_info_cap_header>() {
        if at == 0 {
            return None;
        }
        let word = u32_at(answer, at)?;
        if word & 0xffff == wanted {
            return Some(at);
        }
        at = u32_at(answer, at + 4)? as usize;
    }
    None
}

/// Two numbers each of a list that stands in a capability: how many there are, four unused bytes, the pairs.
fn pairs(answer: &[u8], capability: usize) -> Option<Vec<(u64, u64)>> {
    let header = size_of::<vfio_info_cap_header>();
    let count = u32_at(answer, capability + header)? as usize;
    let first = capability + header + 8;
    (0..count)
        .map(|at| Some((u64_at(answer, first + 16 * at)?, u64_at(answer, first + 16 * at + 8)?)))
        .collect()
}

/// The device addresses that may be mapped (first and last of each range), in the answer to `IOMMU_GET_INFO`. `None`: the
/// kernel does not say.
fn address_ranges(answer: &[u8]) -> Option<Vec<(u64, u64)>> {
    let flags = u32_at(answer, std::mem::offset_of!(vfio_iommu_type1_info, flags))?;
    if flags & VFIO_IOMMU_INFO_CAPS == 0 {
        return None;
    }
    let first = u32_at(answer, std::mem::offset_of!(vfio_iommu_type1_info, cap_offset))?;
    pairs(answer, capability(answer, first, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)?)
}

/// A process's IOMMU mappings, which the functions of all groups in it share.
#[derive(Debug)]
pub(crate) struct Container(OwnedFd);

impl Container {
    /// What was opened, if it is a container of the one kind that is used here. Errors: `NOTSUP`.
    pub(crate) fn new(opened: OwnedFd) -> Result<Self, Errno> {
        let version = ask_number(&opened, GET_API_VERSION, 0)?;
        let knows_type1 = ask_number(&opened, CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU as usize)?;
        if version as u32 != VFIO_API_VERSION || knows_type1 == 0 {
            return Err(Errno::NOTSUP);
        }
        Ok(Self(opened))
    }

    /// Turns the IOMMU on for the first group.
    pub(crate) fn set_iommu(&self) -> Result<(), Errno> {
        ask_number(&self.0, SET_IOMMU, VFIO_TYPE1v2_IOMMU as usize).map(drop)
    }

    /// Device addresses that may be mapped, first and last of each range; `None`: the kernel is too old to say.
    pub(crate) fn address_ranges(&self) -> Result<Option<Vec<(u64, u64)>>, Errno> {
        let words = [0; size_of::<vfio_iommu_type1_info>() / size_of::<u64>()];
        // SAFETY: the words are as many as the structure has.
        let answer = unsafe { ask_all(&self.0, IOMMU_GET_INFO, &words) }?;
        Ok(address_ranges(&answer))
    }

    /// Maps memory for the functions and holds its pages.
    ///
    /// # Safety
    ///
    /// The addresses are of the [arena](crate::arena), in which no Rust object lives.
    pub(crate) unsafe fn map(
        &self,
        memory: (usize, usize),
        address: u64,
        writable: bool,
    ) -> Result<(), Errno> {
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size::<vfio_iommu_type1_dma_map>(),
            flags: VFIO_DMA_MAP_FLAG_READ | if writable { VFIO_DMA_MAP_FLAG_WRITE } else { 0 },
            vaddr: memory.0 as u64,
            iova: address,
            size: memory.1 as u64,
        };
        // SAFETY: it is the structure of this call; that a function writes the memory is what the caller vouches for.
        unsafe { ask_about(&self.0, IOMMU_MAP_DMA, &mut map) }.map(drop)
    }

    /// Ends a mapping.
    pub(crate) fn unmap(&self, address: u64, len: usize) -> Result<(), Errno> {
        let mut unmap = vfio_iommu_type1_dma_unmap {
            argsz: size::<vfio_iommu_type1_dma_unmap>(),
            iova: address,
            size: len as u64,
            ..Default::default()
        };
        // SAFETY: it is the structure of this call.
        unsafe { ask_about(&self.0, IOMMU_UNMAP_DMA, &mut unmap) }.map(drop)
    }
}

/// The functions that the IOMMU cannot tell apart. One process has it open at a time.
#[derive(Debug)]
pub(crate) struct Group(OwnedFd);

impl Group {
    pub(crate) fn new(opened: OwnedFd) -> Self {
        Self(opened)
    }

    /// Whether all its functions are out of the kernel's hands.
    pub(crate) fn is_viable(&self) -> Result<bool, Errno> {
        let mut status = vfio_group_status { argsz: size::<vfio_group_status>(), flags: 0 };
        // SAFETY: it is the structure of this call.
        unsafe { ask_about(&self.0, GROUP_GET_STATUS, &mut status) }?;
        Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
    }

    /// Puts the group into a container.
    pub(crate) fn enter(&self, container: &Container) -> Result<(), Errno> {
        let mut descriptor = container.0.as_raw_fd();
        // SAFETY: the call takes a pointer to a descriptor.
        unsafe { ask_about(&self.0, GROUP_SET_CONTAINER, &mut descriptor) }.map(drop)
    }

    /// Takes it out again. With the last one all mappings of the container go.
    pub(crate) fn leave(&self) -> Result<(), Errno> {
        ask_number(&self.0, GROUP_UNSET_CONTAINER, 0).map(drop)
    }

    /// Opens a function of the group by its name.
    pub(crate) fn device(&self, name: &CStr) -> Result<Device, Errno> {
        // SAFETY: the call takes a text that ends in a zero and only reads it.
        let opened = unsafe { ask(&self.0, GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut().cast()) }?;
        // SAFETY: the kernel gave a new descriptor, and nobody else knows it.
        Ok(Device(File::from(unsafe { OwnedFd::from_raw_fd(opened) })))
    }
}

/// A region of a device: configuration space, or the memory of a base address register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceRegion {
    /// Bytes; 0: there is none.
    pub(crate) len: u64,
    /// Where it lies in the device's descriptor.
    pub(crate) offset: u64,
    /// VFIO_REGION_INFO_FLAG_*
    pub(crate) flags: u32,
    /// The parts that may be mapped, where not all of it may: offset in the region and length.
    pub(crate) parts: Option<Vec<(u64, u64)>>,
}

/// An open function. To be kept no longer than its group is in its container.
#[derive(Debug)]
pub(crate) struct Device(pub(super) File);

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Device {
    /// VFIO_DEVICE_FLAGS_*
    pub(crate) fn flags(&self) -> Result<u32, Errno> {
        let mut info = vfio_device_info { argsz: size::<vfio_device_info>(), ..Default::default() };
        // SAFETY: it is the structure of this call.
        unsafe { ask_about(&self.0, DEVICE_GET_INFO, &mut info) }?;
        Ok(info.flags)
    }

    /// A region by its number.
    pub(crate) fn region(&self, index: u32) -> Result<DeviceRegion, Errno> {
        let mut words = [0; size_of::<vfio_region_info>() / size_of::<u64>()];
        words[std::mem::offset_of!(vfio_region_info, index) / 8] = u64::from(index);
        // SAFETY: the words are as many as the structure has.
        let answer = unsafe { ask_all(&self.0, DEVICE_GET_REGION_INFO, &words) }?;
        read_region(&answer).ok_or(Errno::IO)
    }

    /// How many interrupts of a kind there are.
    pub(crate) fn interrupts(&self, kind: u32) -> Result<u32, Errno> {
        let mut info = vfio_irq_info { argsz: size::<vfio_irq_info>(), index: kind, ..Default::default() };
        // SAFETY: it is the structure of this call.
        unsafe { ask_about(&self.0, DEVICE_GET_IRQ_INFO, &mut info) }?;
        Ok(info.count)
    }

    /// Turns the first interrupts of a kind on, an eventfd each; all others off when there are none.
    pub(crate) fn set_interrupts(&self, kind: u32, eventfds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let data = if eventfds.is_empty() { VFIO_IRQ_SET_DATA_NONE } else { VFIO_IRQ_SET_DATA_EVENTFD };
        let header = size_of::<vfio_irq_set>() / size_of::<u32>();
        // argsz, flags, index, start, count, and the descriptors behind it.
        let len = (header + eventfds.len()) * size_of::<u32>();
        let mut words = vec![len as u32, data | VFIO_IRQ_SET_ACTION_TRIGGER, kind, 0, eventfds.len() as u32];
        words.extend(eventfds.iter().map(|eventfd| eventfd.as_raw_fd() as u32));
        // SAFETY: the words are the structure of this call, with as many descriptors behind it as it says.
        unsafe { ask(&self.0, DEVICE_SET_IRQS, words.as_mut_ptr().cast()) }.map(drop)
    }

    /// Resets the function.
    pub(crate) fn reset(&self) -> Result<(), Errno> {
        ask_number(&self.0, DEVICE_RESET, 0).map(drop)
    }
}

/// A region of the answer to `DEVICE_GET_REGION_INFO`.
fn read_region(answer: &[u8]) -> Option<DeviceRegion> {
    let flags = u32_at(answer, std::mem::offset_of!(vfio_region_info, flags))?;
    let first = u32_at(answer, std::mem::offset_of!(vfio_region_info, cap_offset))?;
    let parts = match capability(answer, first, VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
        Some(at) if flags & VFIO_REGION_INFO_FLAG_CAPS != 0 => Some(pairs(answer, at)?),
        _ => None,
    };
    Some(DeviceRegion {
        len: u64_at(answer, std::mem::offset_of!(vfio_region_info, size))?,
        offset: u64_at(answer, std::mem::offset_of!(vfio_region_info, offset))?,
        flags,
        parts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of an answer, from its words.
    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// An answer to IOMMU_GET_INFO: the capability of another kind comes first, the ranges at 32.
    fn info(count: u32) -> Vec<u8> {
        let mut words = vec![88, VFIO_IOMMU_INFO_CAPS, 0x1000, 0, 24, 0];
        words.extend([1 << 16 | 3, 32, 1 << 16 | VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 0, count, 0]);
        words.extend([0, 0, 0xfedf_ffff, 0, 0xfef0_0000, 0, 0xffff_ffff, 0x7f]);
        bytes(&words)
    }

    #[test]
    fn the_addresses_that_may_be_mapped_are_read_from_the_answer() {
        assert_eq!(address_ranges(&info(2)), Some(vec![(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]));
        assert_eq!(address_ranges(&info(0)), Some(vec![]));
        let mut without = info(2);
        without[4] = 0;
        assert_eq!(address_ranges(&without), None);
    }

    #[test]
    fn an_answer_that_is_cut_or_goes_in_circles_is_no_answer() {
        for len in 0..info(2).len() {
            assert_eq!(address_ranges(&info(2)[..len]), None, "{len} bytes");
        }
        assert_eq!(address_ranges(&info(3)), None);
        assert_eq!(address_ranges(&info(u32::MAX)), None);
        // The first capability is followed by itself.
        let mut circle = info(2);
        circle[28..32].copy_from_slice(&24u32.to_ne_bytes());
        assert_eq!(address_ranges(&circle), None);
    }

    #[test]
    fn a_region_says_which_of_its_parts_may_be_mapped() {
        let mut words = vec![72, VFIO_REGION_INFO_FLAG_CAPS | 7, 0, 32, 0x4000, 0, 0x1000, 1];
        let plain = DeviceRegion { len: 0x4000, offset: 0x1_0000_1000, flags: 15, parts: None };
        assert_eq!(read_region(&bytes(&words)), Some(plain.clone()), "what is said to be there is not");
        assert_eq!(read_region(&bytes(&words[..7])), None);
        words.extend([1 << 16 | VFIO_REGION_INFO_CAP_SPARSE_MMAP, 0, 2, 0]);
        words.extend([0, 0, 0x2000, 0, 0x3000, 0, 0x1000, 0]);
        let parts = Some(vec![(0, 0x2000), (0x3000, 0x1000)]);
        assert_eq!(read_region(&bytes(&words)), Some(DeviceRegion { parts, ..plain }));
    }
}
