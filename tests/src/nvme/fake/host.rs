//! What a test's process has mapped for functions: the memory that the small controller reaches, and no other.

use hw::HostWindow;
use runtime::{Access, Dma, ErrorKind, Result, Window};
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};

/// Most regions that are mapped at a time.
const REGIONS: usize = 16;

/// What the process has mapped, as the functions see it. Device addresses are the process's own.
#[derive(Default)]
pub struct Host {
    windows: Mutex<Vec<Option<HostWindow>>>,
    /// First and last address plus one of each region; 0 and 0: none. Read with no lock.
    bounds: [(AtomicU64, AtomicU64); REGIONS],
    count: AtomicUsize,
}

impl Host {
    pub(super) fn find(&self, address: u64, len: u64) -> Option<HostWindow> {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.iter().flatten().find_map(|window| {
            let offset = address.checked_sub(window.as_ptr() as u64)?;
            window.slice(offset, len)
        })
    }

    /// Reads memory at a device address; `None` where it is not mapped.
    #[must_use]
    pub fn read<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.find(address, N as u64)?.read(0, &mut bytes);
        Some(bytes)
    }
}

/// The mappings of the process.
#[derive(Clone)]
pub struct FakeDma(pub(super) Arc<Host>);

/// A mapping; ends when it is dropped.
pub struct FakeMapping {
    host: Arc<Host>,
    at: usize,
}

impl Dma for FakeDma {
    type Window = HostWindow;
    type Mapping = FakeMapping;

    fn map(&self, region: HostWindow, _: Access) -> Result<FakeMapping> {
        let mut windows = self.0.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let at = windows.iter().position(Option::is_none).unwrap_or(windows.len());
        if at == REGIONS {
            return Err(ErrorKind::OutOfResources.into());
        }
        if at == windows.len() {
            windows.push(None);
        }
        windows[at] = Some(region);
        let start = region.as_ptr() as u64;
        self.0.bounds[at].0.store(start, Relaxed);
        self.0.bounds[at].1.store(start + region.len(), Release);
        self.0.count.store(windows.len(), Release);
        Ok(FakeMapping { host: Arc::clone(&self.0), at })
    }

    fn address(&self, window: &HostWindow) -> Option<u64> {
        let start = window.as_ptr() as u64;
        let bounds = &self.0.bounds[..self.0.count.load(Relaxed)];
        bounds
            .iter()
            .any(|(first, end)| start >= first.load(Relaxed) && start + window.len() <= end.load(Relaxed))
            .then_some(start)
    }
}

impl Drop for FakeMapping {
    fn drop(&mut self) {
        self.host.windows.lock().unwrap_or_else(PoisonError::into_inner)[self.at] = None;
        self.host.bounds[self.at].1.store(0, Release);
        self.host.bounds[self.at].0.store(0, Release);
    }
}
