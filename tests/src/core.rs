//! A core of a process of our own, where there is a platform to measure and to test on.

use hw::{HostPlatform, Options, Process};
use runtime::{Instant, Platform, Poll, Poller};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Ends at once.
struct Once;

impl Poller<HostPlatform> for Once {
    fn poll(&mut self, _: Instant) -> Poll {
        Poll::Done
    }
    fn arm(&mut self, _: Instant, _: &mut <HostPlatform as Platform>::Wakes) -> Poll {
        Poll::Done
    }
}

/// Runs something on the one core of a process, which ends with it. The flight recorder's file lies in `recorder`, if it
/// is to be on.
pub fn on_core<T: Send + 'static>(
    recorder: Option<PathBuf>,
    act: impl FnOnce(HostPlatform) -> T + Send + 'static,
) -> T {
    let options = Options {
        processors: hw::cores::available().into_iter().take(1).collect(),
        poll: true,
        memory_directory: "/dev/shm".into(),
        recorder_directory: recorder,
    };
    let result = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&result);
    let first = Box::new(move |platform: HostPlatform| {
        *slot.lock().expect("one thread") = Some(act(platform));
        Box::new(Once) as Box<dyn Poller<HostPlatform>>
    });
    Process::new(&options).expect("a process").run(first).expect("it ends");
    result.lock().expect("one thread").take().expect("it ran")
}
