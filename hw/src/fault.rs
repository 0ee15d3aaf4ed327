//! What happens when shared memory is no longer there under an access (SIGBUS).
//!
//! A front-end may shrink the file of its memory while the target reads it. The kernel then raises SIGBUS in the thread
//! that made the access. If the address lies in a mapping of the [arena](crate::arena), the handler puts zeroed memory
//! in place of the whole mapping and marks the mapping lost; the access is made again and succeeds, and the stack, which
//! asks [`runtime::Memory::is_lost`], fails that one device. The same happens when the host reports a broken page of
//! memory under an access (BUS_MCEERR_AR). That it found one which nobody touches (BUS_MCEERR_AO, where the process or the
//! host asked to be told early) is no reason to do anything: whoever touches it later is told again. Accesses by the kernel on our behalf do not fault: their calls fail by EFAULT.
//!
//! An address of the arena where *nothing* is mapped is another matter: a window was used after its memory was let go,
//! or written through a read-only mapping. That is a bug of the target; reading zeroes there and going on could write
//! them to a disk. It is not healed: the process says so and dies by the signal, and recovers by being started again.
//! All other faults go to whoever handled them before, and a signal that a process sent kills as it does by default.
//!
//! The handler uses atomics and system calls only: it may run at any instruction, with any lock held.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Most mappings at a time: what the kernel allows a process by default (vm.max_map_count).
const MAPPINGS_MAX: usize = 65536;

/// One mapping of the arena, as the handler finds it.
struct Slot {
    /// First byte; 0: the slot is free. Written last when a mapping is entered and first when it leaves.
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

static SLOTS: [Slot; MAPPINGS_MAX] =
    [const { Slot { start: AtomicUsize::new(0), len: AtomicUsize::new(0), lost: AtomicBool::new(false) } };
        MAPPINGS_MAX];
/// Slots below this number were in use at some time: as far as the handler looks.
static SLOTS_USED: AtomicUsize = AtomicUsize::new(0);
/// Slots below [`SLOTS_USED`] that are free.
static FREE_SLOTS: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// The arena's addresses, written once, before the handlers are installed.
static ARENA_START: AtomicUsize = AtomicUsize::new(0);
static ARENA_LEN: AtomicUsize = AtomicUsize::new(0);

/// Who handled SIGBUS and SIGSEGV before.
static PREVIOUS_BUS: OnceLock<libc::sigaction> = OnceLock::new();
static PREVIOUS_SEGV: OnceLock<libc::sigaction> = OnceLock::new();

/// `si_code` of a SIGBUS on a page beyond its file's end, of one on broken memory (action required), and of one about broken
/// memory that nobody touched (action optional). Linux, asm-generic/siginfo.h.
const BUS_ADRERR: c_int = 2;
const BUS_MCEERR_AR: c_int = 4;
const BUS_MCEERR_AO: c_int = 5;

/// A mapping of the arena, known to the handler as long as this value lives.
#[derive(Debug)]
pub(crate) struct Watched(usize);

impl Watched {
    /// Makes a mapping known. `None` when there are [`MAPPINGS_MAX`] already.
    pub(crate) fn new(start: usize, len: usize) -> Option<Self> {
        let mut free = FREE_SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.pop().or_else(|| {
            let next = SLOTS_USED.load(Ordering::Relaxed);
            (next < MAPPINGS_MAX).then(|| {
                SLOTS_USED.store(next + 1, Ordering::Release);
                next
            })
        })?;
        let slot = &SLOTS[index];
        slot.lost.store(false, Ordering::Relaxed);
        slot.len.store(len, Ordering::Relaxed);
        // Pairs with the Acquire in the handler: whoever sees the start sees the length.
        slot.start.store(start, Ordering::Release);
        Some(Self(index))
    }

    /// Whether the memory below was lost.
    pub(crate) fn is_lost(&self) -> bool {
        SLOTS[self.0].lost.load(Ordering::Relaxed)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        SLOTS[self.0].start.store(0, Ordering::Release);
        FREE_SLOTS.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}

/// Installs the handlers for faults in the arena. Called once, with the arena's addresses.
pub(crate) fn watch(arena_start: usize, arena_len: usize) {
    ARENA_START.store(arena_start, Ordering::Relaxed);
    ARENA_LEN.store(arena_len, Ordering::Relaxed);
    for (signal, previous) in [(libc::SIGBUS, &PREVIOUS_BUS), (libc::SIGSEGV, &PREVIOUS_SEGV)] {
        // SAFETY: the structure is plain numbers, for which zeroes are a value. The old action is read before ours is
        // installed, so the handler always finds it; the handler keeps to what a signal handler may do.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &raw mut old);
            previous.get_or_init(|| old);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let installed = libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            assert_eq!(installed, 0, "the kernel takes a handler for SIGBUS and SIGSEGV");
        }
    }
}

/// The handler of both signals.
extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a valid siginfo; for a fault it holds the address. errno belongs to this thread.
    let (code, address, errno) =
        unsafe { ((*info).si_code, (*info).si_addr().addr(), *libc::__errno_location()) };
    let sent_by_a_process = code <= 0;
    if sent_by_a_process {
        // SAFETY: both calls are allowed in a handler. The signal is delivered when the handler has returned.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        return;
    }
    if signal == libc::SIGBUS && code == BUS_MCEERR_AO {
        complain("reprise: the host found a broken page of memory that is not in use at the moment\n");
        // SAFETY: as above; the interrupted code may be about to look at its errno.
        unsafe { *libc::__errno_location() = errno };
        return;
    }
    let offset = address.wrapping_sub(ARENA_START.load(Ordering::Relaxed));
    if offset >= ARENA_LEN.load(Ordering::Relaxed) {
        return pass_on(signal, info, context);
    }
    let slot = find(address);
    let is_loss = signal == libc::SIGBUS && matches!(code, BUS_ADRERR | BUS_MCEERR_AR);
    if let Some(slot) = slot.filter(|_| is_loss)
        && replace_by_zeroes(slot)
    {
        slot.lost.store(true, Ordering::Relaxed);
        // SAFETY: as above; the interrupted code may be about to look at its errno.
        unsafe { *libc::__errno_location() = errno };
        return;
    }
    complain(match (is_loss, slot.is_some()) {
        (true, true) => {
            "reprise: shared memory went away under an access, and the kernel gave no memory in its place\n"
        }
        (false, true) => "reprise: a bug: a store to shared memory that is mapped for reading only\n",
        (_, false) => "reprise: a bug: shared memory was used after it was let go\n",
    });
    pass_on(signal, info, context);
}

/// The mapping that holds an address.
fn find(address: usize) -> Option<&'static Slot> {
    SLOTS[..SLOTS_USED.load(Ordering::Acquire)].iter().find(|slot| {
        let start = slot.start.load(Ordering::Acquire);
        start != 0 && address.wrapping_sub(start) < slot.len.load(Ordering::Relaxed)
    })
}

/// Puts zeroed memory in place of the whole mapping. Doing it twice (two threads may fault at once) is harmless.
fn replace_by_zeroes(slot: &Slot) -> bool {
    let start = std::ptr::with_exposed_provenance_mut(slot.start.load(Ordering::Relaxed));
    // SAFETY: the addresses are a mapping of the arena, where no Rust object lives. An access under way was the reason for
    // being here, so its owner still holds it.
    let mapped = unsafe {
        libc::mmap(
            start,
            slot.len.load(Ordering::Relaxed),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped == start
}

/// Writes a line to standard error: the log cannot be used here.
fn complain(line: &str) {
    // SAFETY: the bytes are there. Nothing can be done about an error.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

/// Does what would have happened without this handler.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let previous = if signal == libc::SIGBUS { &PREVIOUS_BUS } else { &PREVIOUS_SEGV };
    // SAFETY: the action is what `sigaction` gave for this signal: either one of the two constants, or the address of a
    // function of the kind that its flags say, which is called as the kernel would have called it.
    unsafe {
        match previous.get() {
            Some(action) if action.sa_sigaction == libc::SIG_IGN => {}
            Some(action) if action.sa_sigaction != libc::SIG_DFL => {
                if action.sa_flags & libc::SA_SIGINFO != 0 {
                    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                        std::mem::transmute(action.sa_sigaction);
                    handler(signal, info, context);
                } else {
                    let handler: extern "C" fn(c_int) = std::mem::transmute(action.sa_sigaction);
                    handler(signal);
                }
            }
            _ => {
                // The faulting instruction runs again and the process dies there, which is what a core file should show.
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}
