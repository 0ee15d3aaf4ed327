//! Shared memory that goes away under an access, and windows that are used after their memory: real signals, some in a
//! process of their own.

use hw::HostHandle;
use runtime::{Access, Handle, Memory, Window};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::Ordering::Relaxed;

const MIB: u64 = 1 << 20;
/// Set in a child process of these tests, to the name of what it shall do.
const CHILD: &str = "REPRISE_TEST_CHILD";

fn guest_memory(len: u64) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    fd
}

fn map(fd: &OwnedFd, len: u64) -> hw::HostMemory {
    HostHandle::from(fd.try_clone().unwrap()).map(0, len, Access::ReadWrite).unwrap()
}

#[test]
fn memory_that_shrinks_reads_as_zeroes_and_is_marked_and_nothing_else_is() {
    let (guest, other) = (guest_memory(4 * MIB), guest_memory(4 * MIB));
    let (memory, other_memory) = (map(&guest, 4 * MIB), map(&other, 4 * MIB));
    let (window, other_window) = (memory.window(), other_memory.window());
    for at in (0..4 * MIB).step_by(4096) {
        window.store_u64(at, 1 + at, Relaxed);
        other_window.store_u64(at, 1 + at, Relaxed);
    }
    assert!(!memory.is_lost());
    ftruncate(&guest, MIB).unwrap();
    assert!(!memory.is_lost(), "nobody looked yet");
    assert_eq!(window.load_u64(2 * MIB, Relaxed), 0);
    assert!(memory.is_lost());
    // All of it, not only what was cut off; and stores go nowhere.
    assert_eq!(window.load_u64(0, Relaxed), 0);
    window.store_u64(3 * MIB, 5, Relaxed);
    window.fill(0, 4 * MIB, 0xff);
    let again = map(&guest, MIB);
    assert_eq!(again.window().load_u64(4096, Relaxed), 4097);
    assert!(!other_memory.is_lost() && !again.is_lost());
    assert_eq!(other_window.load_u64(3 * MIB, Relaxed), 3 * MIB + 1);
    // The addresses of the lost one serve again.
    drop(memory);
    let next = map(&other, 4 * MIB);
    assert!(!next.is_lost());
    assert_eq!(next.window().load_u64(3 * MIB, Relaxed), 3 * MIB + 1);
}

#[test]
fn every_kind_of_access_survives_the_loss_in_many_threads_at_once() {
    for turn in 0..50u64 {
        let guest = guest_memory(2 * MIB);
        let memory = map(&guest, 2 * MIB);
        let source = map(&guest_memory(2 * MIB), 2 * MIB);
        let (window, source_window) = (memory.window(), source.window());
        std::thread::scope(|scope| {
            let memory = &memory;
            scope.spawn(move || {
                while !memory.is_lost() {
                    window.write(turn, &[7; 5000]);
                    window.fill(MIB, MIB, 1);
                }
            });
            scope.spawn(move || {
                let mut bytes = [0; 700];
                while !memory.is_lost() {
                    window.read(2 * MIB - 700, &mut bytes);
                    window.copy_from(0, &source_window, 0, 2 * MIB);
                    window.fetch_or_u8(2 * MIB - 1, 4);
                    window.load_u16(2 * MIB - 2, Relaxed);
                }
            });
            ftruncate(&guest, 0).unwrap();
        });
        assert!(memory.is_lost() && !source.is_lost());
    }
}

#[test]
fn the_kernel_is_not_killed_by_lost_memory_either() {
    let guest = guest_memory(MIB);
    let memory = map(&guest, MIB);
    ftruncate(&guest, 0).unwrap();
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    // SAFETY: the kernel writes to shared memory in which no Rust object lives, or finds that it cannot.
    let read = unsafe {
        libc::pread(std::os::fd::AsRawFd::as_raw_fd(&file), memory.window().as_ptr().cast(), 4096, 0)
    };
    assert_eq!((read, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)));
}

/// Sends the calling thread a SIGBUS as the kernel does for broken memory.
fn report_broken_memory(code: i32, address: *const u8) {
    // SAFETY: the structure is plain numbers; the kernel reads it, and the address in it stands where a fault's does
    // (asm-generic/siginfo.h: after three numbers and padding). The signal is the calling thread's own.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        (info.si_signo, info.si_code) = (libc::SIGBUS, code);
        (&raw mut info).cast::<*const u8>().add(2).write(address);
        assert_eq!(info.si_addr().cast_const().cast(), address);
        let (process, thread) = (libc::getpid(), libc::gettid());
        let sent = libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, libc::SIGBUS, &raw const info);
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }
}

#[test]
fn broken_memory_is_lost_when_it_is_touched_and_not_before() {
    const NAME: &str = "broken_memory_is_lost_when_it_is_touched_and_not_before";
    /// linux, asm-generic/siginfo.h
    const BUS_MCEERR_AR: i32 = 4;
    const BUS_MCEERR_AO: i32 = 5;
    if is_child(NAME) {
        let memory = map(&guest_memory(MIB), MIB);
        let window = memory.window();
        window.store_u64(0, 7, Relaxed);
        report_broken_memory(BUS_MCEERR_AO, window.as_ptr());
        report_broken_memory(BUS_MCEERR_AO, Box::new(1_u8).as_ref());
        assert!(!memory.is_lost() && window.load_u64(0, Relaxed) == 7, "nobody touched it");
        report_broken_memory(BUS_MCEERR_AR, window.as_ptr());
        assert!(memory.is_lost() && window.load_u64(0, Relaxed) == 0);
        // Memory of the process's own cannot be replaced.
        report_broken_memory(BUS_MCEERR_AR, Box::new(1_u8).as_ref());
        report_broken_memory(BUS_MCEERR_AR, Box::new(1_u8).as_ref());
        return;
    }
    let (signal, said) = child(NAME);
    assert_eq!(signal, Some(libc::SIGBUS), "{said}");
    assert_eq!(said.matches("a broken page of memory that is not in use").count(), 2, "{said}");
    assert!(!said.contains("panicked") && !said.contains("a bug"), "{said}");
}

/// Runs a test of this file as a process of its own, and gives what it ended by and what it said.
fn child(test: &str) -> (Option<i32>, String) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1", test])
        .env(CHILD, test)
        .output()
        .unwrap();
    (output.status.signal(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn is_child(test: &str) -> bool {
    std::env::var(CHILD).is_ok_and(|child| child == test)
}

#[test]
fn a_window_used_after_its_memory_ends_the_process_and_says_why() {
    const NAME: &str = "a_window_used_after_its_memory_ends_the_process_and_says_why";
    if is_child(NAME) {
        let window = map(&guest_memory(MIB), MIB).window();
        window.load_u8(0, Relaxed);
        return;
    }
    let (signal, said) = child(NAME);
    assert_eq!(signal, Some(libc::SIGSEGV), "{said}");
    assert!(said.contains("shared memory was used after it was let go"), "{said}");
}

#[test]
fn a_store_to_read_only_memory_ends_the_process_and_says_why() {
    const NAME: &str = "a_store_to_read_only_memory_ends_the_process_and_says_why";
    if is_child(NAME) {
        let memory = HostHandle::from(guest_memory(MIB)).map(0, MIB, Access::Read).unwrap();
        memory.window().store_u8(0, 1, Relaxed);
        return;
    }
    let (signal, said) = child(NAME);
    assert_eq!(signal, Some(libc::SIGSEGV), "{said}");
    assert!(said.contains("mapped for reading only"), "{said}");
}

#[test]
fn a_fault_elsewhere_goes_to_whoever_handled_it_before() {
    const NAME: &str = "a_fault_elsewhere_goes_to_whoever_handled_it_before";
    if is_child(NAME) {
        let _arena_is_watched = map(&guest_memory(MIB), MIB);
        recurse(0);
        return;
    }
    // A stack overflow is told by the language's own handler, which stood before ours.
    let (signal, said) = child(NAME);
    assert_eq!(signal, Some(libc::SIGABRT), "{said}");
    assert!(said.contains("overflowed its stack"), "{said}");
}

#[test]
fn a_limit_of_addresses_is_lived_with_or_told_at_the_start() {
    const NAME: &str = "a_limit_of_addresses_is_lived_with_or_told_at_the_start";
    const GIB: u64 = 1 << 30;
    if is_child(NAME) {
        let limit = std::env::var("LIMIT_GIB").unwrap().parse::<u64>().unwrap() * GIB;
        setrlimit(Resource::As, Rlimit { current: Some(limit), maximum: Some(limit) }).unwrap();
        let options = hw::Options {
            processors: hw::cores::default_processors(),
            poll: false,
            memory_directory: "/dev/shm".into(),
            recorder_directory: None,
        };
        if let Err(error) = hw::Process::new(&options) {
            eprintln!("refused: {error}");
            return;
        }
        map(&guest_memory(GIB), GIB).window().store_u8(GIB - 1, 1, Relaxed);
        eprintln!("mapped");
        return;
    }
    for (limit, expected) in [("100", "mapped"), ("10", "refused: cannot reserve 16 GiB of addresses")] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--test-threads=1", NAME])
            .env(CHILD, NAME)
            .env("LIMIT_GIB", limit)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains(expected), "{limit} GiB: {said}");
    }
}

#[expect(unconditional_recursion, reason = "a stack overflow is what the test is about")]
fn recurse(depth: u64) -> u64 {
    std::hint::black_box([depth; 64])[1] + recurse(std::hint::black_box(depth + 1))
}

#[test]
fn a_signal_sent_by_somebody_ends_the_process_as_it_would_have() {
    const NAME: &str = "a_signal_sent_by_somebody_ends_the_process_as_it_would_have";
    if is_child(NAME) {
        let _arena_is_watched = map(&guest_memory(MIB), MIB);
        // SAFETY: a signal to this process.
        unsafe { libc::raise(libc::SIGBUS) };
        return;
    }
    let (signal, said) = child(NAME);
    assert_eq!(signal, Some(libc::SIGBUS), "{said}");
}
