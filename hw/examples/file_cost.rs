//! What a file channel costs: 4 KiB random reads at depth 128 through a channel of each engine, and through the bare
//! `io-uring` crate in the same shape, in interleaved rounds.
//!
//! ```text
//! cargo run --release -p hw --example file_cost -- FILE [SECONDS]
//! ```
//!
//! FILE is made (256 MiB) if it is not there. On a memory file system (`/dev/shm/x`) every read ends inside its
//! submission, and the whole figure is processor time: the kernel's, the copy's and the channel's; the difference
//! between the two ways is the channel alone. On a disk the loops wait for the disk, asleep (`ppoll` on the channel's
//! descriptor, `io_uring_enter` for the bare ring), and the figure is the thread's processor time over the reads.

use hw::files::{CoreFiles, HostDirectory, Wake};
use io_uring::{IoUring, opcode, types};
use runtime::{Directory, FileChannel, FileCompletion, FileEngine, FileOp, FileOptions, Memory, Window};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, clock_gettime};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const FILE_BYTES: u64 = 256 << 20;
const BLOCK: u64 = 4096;
const DEPTH: u64 = 128;
const ROUNDS: usize = 5;

/// Reads done, processor nanoseconds spent and nanoseconds passed.
struct Cost {
    reads: u64,
    processor_ns: u64,
    passed_ns: u64,
}

impl Cost {
    fn of(run: impl FnOnce() -> u64) -> Self {
        let processor = || {
            let now = clock_gettime(ClockId::ThreadCPUTime);
            now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
        };
        let (begin, processor_begin) = (Instant::now(), processor());
        let reads = run();
        let processor_ns = processor() - processor_begin;
        Self { reads, processor_ns, passed_ns: begin.elapsed().as_nanos() as u64 }
    }

    fn processor_ns_per_read(&self) -> u64 {
        self.processor_ns / self.reads
    }
}

/// Offsets that look random and cost nothing.
struct Offsets(u64);

impl Offsets {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % (FILE_BYTES / BLOCK) * BLOCK
    }
}

fn through_a_channel(path: &str, engine: FileEngine, time: Duration) -> Cost {
    let file = HostDirectory::new(Path::new("/dev/shm"))
        .open(path, FileOptions { engine, read_only: true })
        .expect("the file opens for direct I/O");
    let core = CoreFiles::new();
    let mut channel = core.channel(&file).expect("a channel");
    let memory = hw::memory::shared_memory("payload", DEPTH * BLOCK).expect("payload memory");
    let windows: Vec<_> =
        (0..DEPTH).map(|token| memory.window().slice(token * BLOCK, BLOCK).expect("inside")).collect();
    let mut offsets = Offsets(1);
    let mut completions: Vec<FileCompletion> = Vec::new();
    Cost::of(|| {
        let (begin, mut reads, mut in_flight) = (Instant::now(), 0, DEPTH);
        for token in 0..DEPTH {
            let window = &windows[token as usize..=token as usize];
            channel.submit(FileOp::Read, offsets.next(), BLOCK, window, token).expect("room");
        }
        while in_flight > 0 {
            if !channel.poll(&mut completions) {
                if let Wake::Wait(descriptor) = channel.arm() {
                    let _ = poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], None);
                }
                continue;
            }
            let go_on = begin.elapsed() < time;
            for completion in completions.drain(..) {
                assert_eq!(completion.result, Ok(BLOCK));
                reads += 1;
                if go_on {
                    let token = completion.token;
                    let window = &windows[token as usize..=token as usize];
                    channel.submit(FileOp::Read, offsets.next(), BLOCK, window, token).expect("room");
                } else {
                    in_flight -= 1;
                }
            }
        }
        reads
    })
}

fn through_a_bare_ring(path: &str, time: Duration) -> Cost {
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("opens");
    let mut ring = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .build(1024)
        .expect("a ring");
    ring.submitter().register_files(&[file.as_raw_fd()]).expect("a registered file");
    let memory = hw::memory::shared_memory("payload", DEPTH * BLOCK).expect("payload memory");
    let start = memory.window().as_ptr();
    let mut offsets = Offsets(1);
    let mut read = |ring: &mut IoUring, token: u64| {
        let buffer = start.wrapping_add((token * BLOCK) as usize);
        let entry = opcode::Read::new(types::Fixed(0), buffer, BLOCK as u32)
            .offset(offsets.next())
            .build()
            .user_data(token);
        // SAFETY: the buffer lies in `memory`, which stays until every read has ended.
        unsafe { ring.submission().push(&entry).expect("room") };
    };
    let mut ended = Vec::new();
    Cost::of(|| {
        let (begin, mut reads, mut in_flight) = (Instant::now(), 0, DEPTH);
        for token in 0..DEPTH {
            read(&mut ring, token);
        }
        while in_flight > 0 {
            ring.submit_and_wait(1).expect("submits");
            ended.extend(ring.completion().map(|entry| (entry.user_data(), entry.result())));
            let go_on = begin.elapsed() < time;
            for (token, result) in ended.drain(..) {
                assert_eq!(result, BLOCK as i32);
                reads += 1;
                if go_on {
                    read(&mut ring, token);
                } else {
                    in_flight -= 1;
                }
            }
        }
        reads
    })
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("usage: file_cost FILE [SECONDS]");
    let seconds = arguments.next().map_or(1, |seconds| seconds.parse().expect("SECONDS is a whole number"));
    let time = Duration::from_secs(seconds);
    if !Path::new(&path).exists() {
        std::fs::write(&path, vec![1; FILE_BYTES as usize]).expect("FILE can be made");
    }
    let ways: [(&str, &dyn Fn() -> Cost); 3] = [
        ("bare io_uring", &|| through_a_bare_ring(&path, time)),
        ("uring channel", &|| through_a_channel(&path, FileEngine::Uring, time)),
        ("aio channel", &|| through_a_channel(&path, FileEngine::Aio, time)),
    ];
    let mut costs: [Vec<Cost>; 3] = Default::default();
    for _ in 0..ROUNDS {
        for ((_, run), costs) in ways.iter().zip(&mut costs) {
            costs.push(run());
        }
    }
    println!("{:<16}{:>22}{:>14}{:>10}", "way", "processor ns a read", "reads/s", "(median)");
    for ((name, _), costs) in ways.iter().zip(&mut costs) {
        costs.sort_by_key(Cost::processor_ns_per_read);
        let median = &costs[ROUNDS / 2];
        let rate = u128::from(median.reads) * 1_000_000_000 / u128::from(median.passed_ns);
        println!("{name:<16}{:>22}{rate:>14}", median.processor_ns_per_read());
    }
}
