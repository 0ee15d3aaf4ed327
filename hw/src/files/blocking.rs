//! File operations that the kernel has only in a blocking form: `BLKDISCARD` on a block device, and for kernel AIO
//! every discard and write-zeroes. A few threads, started when first needed, do them for all channels of the process.
//!
//! What waits here is bounded by the channels' own depths. A result goes to the channel's [`Replies`] and rings the
//! eventfd that its core sleeps on. A request holds the open file, so that its lock cannot pass to another process
//! while the request may still run.

use super::file::OpenFile;
use runtime::FileOp;
use rustix::fs::{FallocateFlags, fallocate};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Most threads of the process that do nothing else.
const THREADS_MAX: usize = 4;

/// One operation, and where its result goes.
struct Request {
    file: Arc<OpenFile>,
    op: FileOp,
    offset: u64,
    len: u64,
    slot: u32,
    replies: Arc<Replies>,
}

/// Results on their way back to one channel.
pub(super) struct Replies {
    ended: Mutex<Vec<(u32, i64)>>,
    arrived: Condvar,
    /// Length of `ended`, to be asked without the lock.
    count: AtomicUsize,
    /// Operations handed over and not yet taken back.
    outstanding: AtomicUsize,
    /// The eventfd that the channel's core sleeps on.
    event: OwnedFd,
}

impl Replies {
    /// For a channel whose core sleeps on `event`.
    pub(super) fn new(event: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            ended: Mutex::new(Vec::new()),
            arrived: Condvar::new(),
            count: AtomicUsize::new(0),
            outstanding: AtomicUsize::new(0),
            event,
        })
    }

    /// The eventfd that a result rings.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Whether there is nothing to take.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Takes what has ended: slot, and 0 or a negated `errno`.
    pub(super) fn take(&self, mut each: impl FnMut(u32, i64)) {
        if self.is_empty() {
            return;
        }
        let mut ended = lock(&self.ended);
        self.count.store(0, Ordering::Relaxed);
        self.outstanding.fetch_sub(ended.len(), Ordering::Relaxed);
        ended.drain(..).for_each(|(slot, result)| each(slot, result));
    }

    /// Blocks until every operation handed over has ended, and takes the results.
    pub(super) fn wait_for_all(&self, mut each: impl FnMut(u32, i64)) {
        while self.outstanding.load(Ordering::Relaxed) > 0 {
            let mut ended = lock(&self.ended);
            while ended.is_empty() {
                ended = self.arrived.wait(ended).unwrap_or_else(PoisonError::into_inner);
            }
            drop(ended);
            self.take(&mut each);
        }
    }

    fn push(&self, slot: u32, result: i64) {
        {
            let mut ended = lock(&self.ended);
            ended.push((slot, result));
            self.count.store(ended.len(), Ordering::Release);
            self.arrived.notify_all();
        }
        // A full counter is a ring as well.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }
}

/// Hands one discard or write-zeroes over; its result arrives at `replies` under `slot`.
pub(super) fn submit(
    replies: &Arc<Replies>,
    file: &Arc<OpenFile>,
    op: FileOp,
    offset: u64,
    len: u64,
    slot: u32,
) {
    replies.outstanding.fetch_add(1, Ordering::Relaxed);
    let request = Request { file: Arc::clone(file), op, offset, len, slot, replies: Arc::clone(replies) };
    static THREADS: OnceLock<Threads> = OnceLock::new();
    THREADS.get_or_init(Threads::default).submit(request);
}

/// The queue of the threads, and how many there are.
#[derive(Default)]
struct Threads {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Request>,
    threads: usize,
    idle: usize,
}

impl Threads {
    fn submit(&'static self, request: Request) {
        let mut state = lock(&self.state);
        state.queue.push_back(request);
        if state.idle >= state.queue.len() || state.threads == THREADS_MAX {
            self.work.notify_one();
            return;
        }
        match std::thread::Builder::new().name("file-blocking".into()).spawn(|| self.run()) {
            Ok(_) => state.threads += 1,
            Err(_) if state.threads > 0 => self.work.notify_one(),
            // Nobody would ever do it.
            Err(_) => {
                if let Some(request) = state.queue.pop_back() {
                    drop(state);
                    request.replies.push(request.slot, -i64::from(libc::ENOMEM));
                }
            }
        }
    }

    fn run(&self) {
        leave_the_reactors_processor();
        let mut state = lock(&self.state);
        loop {
            if let Some(request) = state.queue.pop_front() {
                drop(state);
                request.run();
                state = lock(&self.state);
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

impl Request {
    fn run(self) {
        let Self { file, op, offset, len, slot, replies } = self;
        let result = perform(&file, op, offset, len);
        // Before the reply: whoever sees the last one may count on the file being closed with its last owner.
        drop(file);
        replies.push(slot, result);
    }
}

/// The flags of the `fallocate` that stands for an operation, on a regular file and on a block device.
pub(super) fn fallocate_mode(op: FileOp) -> FallocateFlags {
    match op {
        FileOp::Discard | FileOp::WriteZeroes { unmap: true } => {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        }
        FileOp::WriteZeroes { unmap: false } => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        FileOp::Read | FileOp::Write { .. } | FileOp::Flush => unreachable!("{op:?} allocates nothing"),
    }
}

fn perform(file: &OpenFile, op: FileOp, offset: u64, len: u64) -> i64 {
    if op == FileOp::Discard && file.is_block_device() {
        /// `_IO(0x12, 119)`, linux/fs.h. A hole punched into a device promises zeroes, which a discard need not give.
        const BLKDISCARD: libc::c_ulong = 0x1277;
        let range = [offset, len];
        // SAFETY: the request reads two u64, first byte and length, from the address, and `range` has two.
        let result = unsafe { libc::ioctl(file.fd().as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        return if result == 0 { 0 } else { last_error() };
    }
    loop {
        match fallocate(file.fd(), fallocate_mode(op), offset, len) {
            Ok(()) => return 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return -i64::from(errno.raw_os_error()),
        }
    }
}

fn last_error() -> i64 {
    -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// A thread is born with its parent's processors, and the parent is a pinned reactor: a blocking thread there would
/// take the time of the I/O that it was made for. Failure leaves it there, slow and right.
fn leave_the_reactors_processor() {
    // SAFETY: a `cpu_set_t` is a plain bit array; zero is its empty set.
    let mut all: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for processor in 0..libc::CPU_SETSIZE as usize {
        // SAFETY: `processor` is below the set's size.
        unsafe { libc::CPU_SET(processor, &mut all) };
    }
    // SAFETY: the set is initialised and its size is given. The kernel intersects it with what the thread may have.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const all) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that runs under these locks can leave their data half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
