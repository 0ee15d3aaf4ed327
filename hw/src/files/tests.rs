//! Channels as they are on other hosts: rings without the newest flags or without registered files, an AIO ring of an
//! unknown layout, io_uring forbidden. What a channel does on this host is tested from outside, in `tests/files`.

use super::uring::{CoreRing, SET_UPS, UringChannel, build};
use super::{AioChannel, HostChannel, HostFile, Wake};
use crate::memory::shared_memory;
use runtime::{ErrorKind, FileChannel, FileCompletion, FileEngine, FileOp, FileOptions, Memory, Window};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cell::RefCell;
use std::rc::Rc;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 256;

fn file(engine: FileEngine) -> (tempfile::NamedTempFile, HostFile) {
    // On the file system of the sources: direct I/O is not for every /tmp.
    let path = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    path.as_file().set_len(BLOCKS * BLOCK).unwrap();
    let file =
        HostFile::open(path.path().to_str().unwrap(), FileOptions { engine, read_only: false }).unwrap();
    (path, file)
}

/// Polls until `count` operations have ended, asleep whenever the channel allows it.
fn wait(channel: &mut HostChannel, count: usize) -> Vec<FileCompletion> {
    let mut ended = Vec::new();
    while ended.len() < count {
        if channel.poll(&mut ended) {
            continue;
        }
        if let Wake::Wait(descriptor) = channel.arm() {
            let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
            let woken = poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], Some(&patience));
            assert_eq!(woken, Ok(1), "slept through the end of an operation");
        }
    }
    ended
}

/// Every block written, flushed and read, many at a time, and a lone operation again and again.
fn exercise(channel: &mut HostChannel) {
    let memory = shared_memory("payload", 2 * BLOCKS * BLOCK).unwrap();
    let window = |at: u64, len: u64| memory.window().slice(at, len).unwrap();
    for block in 0..BLOCKS {
        let payload = window(block * BLOCK, BLOCK);
        payload.fill(0, BLOCK, block as u8);
        channel
            .submit(FileOp::Write { fua: block % 16 == 0 }, block * BLOCK, BLOCK, &[payload], block)
            .unwrap();
    }
    assert!(wait(channel, BLOCKS as usize).iter().all(|ended| ended.result == Ok(BLOCK)));
    for turn in 0..50 {
        channel.submit(FileOp::Flush, 0, 0, &[], turn).unwrap();
        assert_eq!(wait(channel, 1), [FileCompletion { token: turn, result: Ok(0) }]);
        // Two segments each, the second half before the first.
        let (low, high) = (window(BLOCKS * BLOCK, BLOCK), window((BLOCKS + 1) * BLOCK, BLOCK));
        channel.submit(FileOp::Read, turn * BLOCK, 2 * BLOCK, &[high, low], turn).unwrap();
        assert_eq!(wait(channel, 1), [FileCompletion { token: turn, result: Ok(2 * BLOCK) }]);
        let mut bytes = [0; 2 * BLOCK as usize];
        window(BLOCKS * BLOCK, 2 * BLOCK).read(0, &mut bytes);
        assert!(bytes[..BLOCK as usize].iter().all(|byte| u64::from(*byte) == turn + 1));
        assert!(bytes[BLOCK as usize..].iter().all(|byte| u64::from(*byte) == turn));
    }
    channel.submit(FileOp::WriteZeroes { unmap: true }, 0, BLOCK, &[], 7).unwrap();
    assert_eq!(wait(channel, 1), [FileCompletion { token: 7, result: Ok(BLOCK) }]);
}

#[test]
fn rings_of_older_kernels_do_the_same() {
    for set_up in SET_UPS {
        let (_path, file) = file(FileEngine::Uring);
        let ring = Rc::new(RefCell::new(CoreRing::over(build(set_up).unwrap()).unwrap()));
        exercise(&mut HostChannel::Uring(UringChannel::new(ring, &file).unwrap()));
    }
}

#[test]
fn a_ring_without_registered_files_does_the_same() {
    let (_path, file) = file(FileEngine::Uring);
    let ring = Rc::new(RefCell::new(CoreRing::new().unwrap()));
    ring.borrow_mut().forget_registered_files();
    exercise(&mut HostChannel::Uring(UringChannel::new(ring, &file).unwrap()));
}

/// What a core does that has nothing to do: it polls and goes to sleep. Whether it is woken at once.
fn is_kept_awake(channel: &mut HostChannel) -> bool {
    assert!(!channel.poll(&mut Vec::new()));
    let Wake::Wait(descriptor) = channel.arm() else { return true };
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], Some(&at_once)) != Ok(0)
}

/// The threads that do what the kernel only has in a blocking form ring after they have put down the result, which a core
/// that is awake may take before.
#[test]
fn a_ring_that_comes_late_wakes_a_core_once() {
    for engine in [FileEngine::Uring, FileEngine::Aio] {
        let (_path, file) = file(engine);
        let ring = Rc::new(RefCell::new(CoreRing::new().unwrap()));
        let mut channel = match engine {
            FileEngine::Uring => HostChannel::Uring(UringChannel::new(ring, &file).unwrap()),
            FileEngine::Aio => HostChannel::Aio(AioChannel::new(&file).unwrap()),
        };
        let Wake::Wait(descriptor) = channel.arm() else { panic!("nothing is in flight") };
        rustix::io::write(descriptor, &1_u64.to_ne_bytes()).unwrap();
        assert!(!is_kept_awake(&mut channel), "{engine:?}");
    }
}

#[test]
fn a_channel_that_goes_leaves_nothing_that_wakes_the_others() {
    let (_path, file) = file(FileEngine::Uring);
    let ring = Rc::new(RefCell::new(CoreRing::new().unwrap()));
    let memory = shared_memory("payload", BLOCK).unwrap();
    let mut other = HostChannel::Uring(UringChannel::new(ring.clone(), &file).unwrap());
    let mut channel = HostChannel::Uring(UringChannel::new(ring.clone(), &file).unwrap());
    channel.submit(FileOp::Read, 0, BLOCK, &[memory.window()], 1).unwrap();
    channel.poll(&mut Vec::new());
    other.arm();
    channel.arm();
    drop(channel);
    assert!(!ring.borrow().is_armed(), "the kernel rings for a core that is awake");
    assert!(!is_kept_awake(&mut other));
    exercise(&mut other);
}

#[test]
fn an_aio_ring_of_unknown_layout_is_left_to_the_kernel() {
    let (_path, file) = file(FileEngine::Aio);
    let mut channel = AioChannel::new(&file).unwrap();
    channel.forget_the_ring();
    exercise(&mut HostChannel::Aio(channel));
}

#[test]
fn where_io_uring_is_forbidden_the_open_says_so_and_aio_works() {
    // A thread of its own: a system call filter is for a thread, and cannot be taken back.
    std::thread::spawn(|| {
        let (path, file) = file(FileEngine::Aio);
        forbid(libc::SYS_io_uring_setup);
        let options = FileOptions { engine: FileEngine::Uring, read_only: false };
        let refused = HostFile::open(path.path().to_str().unwrap(), options).err().unwrap();
        assert_eq!(refused.kind, ErrorKind::Unsupported);
        assert_eq!(CoreRing::new().err().unwrap().kind, ErrorKind::Unsupported);
        exercise(&mut HostChannel::Aio(AioChannel::new(&file).unwrap()));
        forbid(libc::SYS_io_setup);
        assert_eq!(AioChannel::new(&file).err().unwrap().kind, ErrorKind::Unsupported);
    })
    .join()
    .unwrap();
}

/// Has a system call of this thread answer EPERM, as container runtimes do.
fn forbid(number: libc::c_long) {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        // The number is the first word of what a filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: both calls change what the calling thread may do; the program is read from the address.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}
