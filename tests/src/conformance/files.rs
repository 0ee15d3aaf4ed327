//! Files: small ones and directories, memory of the machine, payload files with their channels and their lock.

use super::{Task, World, run, spawn};
use runtime::{
    CoreId, Directory, ErrorKind, File, FileChannel, FileCompletion, FileEngine, FileLock, FileOp,
    FileOptions, Full, Job, Memory, Platform, Sender, Wakes, Window,
};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const KIB: u64 = 1024;
/// Size of the payload files.
const FILE_BYTES: u64 = 256 * KIB;
const ENGINES: [FileEngine; 2] = [FileEngine::Uring, FileEngine::Aio];

type DirectoryOf<W> = <<W as World>::Platform as Platform>::Directory;
type FileOf<W> = <<W as World>::Platform as Platform>::File;
type ChannelOf<W> = <<W as World>::Platform as Platform>::Channel;
type WindowOf<W> = <<W as World>::Platform as Platform>::Window;
type MemoryOf<W> = <<W as World>::Platform as Platform>::Memory;

/// Does something with the directory where blocking is allowed.
async fn on_disk<W: World, T: Send + 'static>(
    task: &Task<W::Platform>,
    act: impl FnOnce(DirectoryOf<W>) -> T + Send + 'static,
) -> T
where
    DirectoryOf<W>: Send,
{
    let directory = task.platform.directory();
    let mut job = task.platform.offload(move || act(directory));
    task.poll("a job", || job.take()).await
}

fn kind<T>(result: runtime::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind)
}

/// Written, replaced, renamed, listed, removed; each with what it says when the name is not there.
pub fn small_files_and_their_names<W: World>() {
    run::<W, _>(1, |task| async move {
        let place = W::directory();
        let root = place.path.clone();
        on_disk::<W, _>(&task, move |files| {
            let path = |name: &str| format!("{root}/{name}");
            assert_eq!(kind(files.list(&root)), Some(ErrorKind::NotFound));
            files.create_directory(&root).unwrap();
            assert_eq!(files.list(&root).unwrap(), Vec::<String>::new());
            files.write(&path("state"), b"a longer first content").unwrap();
            files.write(&path("state"), b"second").unwrap();
            assert_eq!(files.read(&path("state"), 6).unwrap(), b"second");
            assert_eq!(kind(files.read(&path("state"), 5)), Some(ErrorKind::Invalid));
            files.sync(&path("state")).unwrap();
            files.sync_directory(&root).unwrap();
            files.write(&path("empty"), b"").unwrap();
            assert_eq!(files.read(&path("empty"), 0).unwrap(), b"");

            // Over another, which is then gone.
            files.write(&path("new"), b"third").unwrap();
            files.rename(&path("new"), &path("state")).unwrap();
            assert_eq!(files.read(&path("state"), 100).unwrap(), b"third");
            assert_eq!(files.list(&root).unwrap(), ["empty", "state"]);
            files.remove(&path("empty")).unwrap();
            assert_eq!(files.list(&root).unwrap(), ["state"]);

            let missing = path("missing");
            assert_eq!(kind(files.read(&missing, 1)), Some(ErrorKind::NotFound));
            assert_eq!(kind(files.sync(&missing)), Some(ErrorKind::NotFound));
            assert_eq!(kind(files.remove(&missing)), Some(ErrorKind::NotFound));
            assert_eq!(kind(files.rename(&missing, &path("x"))), Some(ErrorKind::NotFound));
            assert_eq!(kind(files.list(&missing)), Some(ErrorKind::NotFound));
            assert_eq!(kind(files.sync_directory(&missing)), Some(ErrorKind::NotFound));
            assert_eq!(kind(files.write(&path("missing/file"), b"")), Some(ErrorKind::NotFound));
            assert_eq!(kind(files.rename(&path("state"), &path("missing/x"))), Some(ErrorKind::NotFound));
            assert_eq!(files.read(&path("state"), 100).unwrap(), b"third");

            files.create_directory(&path("one/two")).unwrap();
            files.create_directory(&path("one/two")).unwrap();
            files.write(&path("one/two/file"), b"x").unwrap();
            assert_eq!(files.list(&path("one/two")).unwrap(), ["file"]);
            assert_eq!(files.list(&path("one")).unwrap(), ["two"]);
            assert_eq!(files.list(&root).unwrap(), ["one", "state"]);
        })
        .await;
    });
}

/// Held once, until it is dropped.
pub fn a_small_files_lock_is_held_once<W: World>() {
    run::<W, _>(1, |task| async move {
        let place = W::directory();
        let root = place.path.clone();
        on_disk::<W, _>(&task, move |files| {
            files.create_directory(&root).unwrap();
            let path = format!("{root}/lock");
            let held = files.lock(&path).unwrap();
            assert_eq!(files.list(&root).unwrap(), ["lock"], "it is made if it is not there");
            assert_eq!(kind(files.lock(&path)), Some(ErrorKind::Busy));
            let _another = files.lock(&format!("{root}/another")).unwrap();
            drop(held);
            let _again = files.lock(&path).unwrap();
            assert_eq!(kind(files.lock(&path)), Some(ErrorKind::Busy));
            assert_eq!(kind(files.lock(&format!("{root}/missing/lock"))), Some(ErrorKind::NotFound));
        })
        .await;
    });
}

/// It stays when it is unmapped, with its content, and goes when it is removed.
pub fn machine_memory_outlives_its_mapping<W: World>() {
    run::<W, _>(1, |task| async move {
        let name = format!("conformance-{:016x}", task.platform.random());
        on_disk::<W, _>(&task, move |files| {
            let (memory, existed) = files.machine_memory(&name, 5000).unwrap();
            assert!(!existed);
            assert_eq!(memory.window().len(), 5000);
            assert_eq!(memory.window().load_u64(4088, Relaxed), 0);
            memory.window().store_u64(4088, 42, Relaxed);
            drop(memory);
            let (memory, existed) = files.machine_memory(&name, 5000).unwrap();
            assert!(existed);
            assert_eq!(memory.window().load_u64(4088, Relaxed), 42);
            assert_eq!(kind(files.machine_memory(&name, 5001)), Some(ErrorKind::Invalid));
            assert_eq!(kind(files.machine_memory("no/name", 5000)), Some(ErrorKind::Invalid));
            assert_eq!(kind(files.machine_memory("", 5000)), Some(ErrorKind::Invalid));
            files.remove_machine_memory(&name).unwrap();
            files.remove_machine_memory(&name).unwrap();
            // Who maps it keeps it.
            assert_eq!(memory.window().load_u64(4088, Relaxed), 42);
            let (memory, existed) = files.machine_memory(&name, 8000).unwrap();
            assert!(!existed);
            assert_eq!(memory.window().load_u64(4088, Relaxed), 0);
            files.remove_machine_memory(&name).unwrap();
        })
        .await;
    });
}

/// A payload file, its lock held, with a channel and payload memory.
struct Payload<W: World> {
    task: Task<W::Platform>,
    place: super::Place,
    file: FileOf<W>,
    channel: ChannelOf<W>,
    memory: MemoryOf<W>,
}

impl<W: World> Payload<W> {
    async fn new(task: Task<W::Platform>, engine: FileEngine) -> Self {
        let place = W::payload_file(FILE_BYTES);
        let file = open::<W>(&task, &place.path, engine, false).await;
        assert_eq!(file.try_lock(), Ok(FileLock::Held));
        let channel = task.platform.channel(&file).unwrap();
        let memory = task.platform.shared_memory("payload", 2 * FILE_BYTES).unwrap();
        Self { task, place, file, channel, memory }
    }

    fn window(&self, offset: u64, len: u64) -> WindowOf<W> {
        self.memory.window().slice(offset, len).unwrap()
    }

    /// One operation, from its submission to its end.
    async fn run(&mut self, op: FileOp, offset: u64, segments: &[WindowOf<W>]) -> runtime::Result<u64> {
        let len = segments.iter().map(Window::len).sum();
        self.run_range(op, offset, len, segments).await
    }

    async fn run_range(
        &mut self,
        op: FileOp,
        offset: u64,
        len: u64,
        segments: &[WindowOf<W>],
    ) -> runtime::Result<u64> {
        self.channel.submit(op, offset, len, segments, 77).unwrap();
        let ended = wait(&self.task, &mut self.channel, 1).await;
        assert_eq!(ended[0].token, 77);
        ended[0].result
    }
}

async fn open<W: World>(
    task: &Task<W::Platform>,
    path: &str,
    engine: FileEngine,
    read_only: bool,
) -> FileOf<W> {
    let path = path.to_owned();
    on_disk::<W, _>(task, move |files| files.open(&path, FileOptions { engine, read_only })).await.unwrap()
}

/// Polls until `count` operations have ended.
async fn wait<P: Platform>(
    task: &Task<P>,
    channel: &mut impl FileChannel,
    count: usize,
) -> Vec<FileCompletion> {
    let mut ended = Vec::new();
    task.poll("the end of an operation", || {
        let before = ended.len();
        assert_eq!(channel.poll(&mut ended), ended.len() > before);
        (ended.len() >= count).then_some(())
    })
    .await;
    assert_eq!(ended.len(), count);
    ended
}

/// Words that tell their own place.
fn put(window: &impl Window, seed: u64) {
    for at in (0..window.len()).step_by(8) {
        window.write(at, &(seed << 32 | at).to_le_bytes());
    }
}

fn words(window: &impl Window) -> Vec<u64> {
    let mut bytes = vec![0; window.len() as usize];
    window.read(0, &mut bytes);
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

fn expected(seed: u64, len: u64) -> Vec<u64> {
    (0..len).step_by(8).map(|at| seed << 32 | at).collect()
}

/// Whatever the layout of the memory, and nothing beside it.
pub fn what_is_written_is_read_in_any_layout<W: World>() {
    for engine in ENGINES {
        run::<W, _>(1, move |task| async move {
            let mut payload = Payload::<W>::new(task, engine).await;
            let whole = payload.window(0, 16 * KIB);
            assert_eq!(payload.run(FileOp::Read, 0, &[whole]).await, Ok(16 * KIB));
            assert!(words(&whole).iter().all(|word| *word == 0));
            put(&whole, 1);
            // Backwards: the last of the memory first.
            let parts = [12, 8, 4, 0].map(|at| payload.window(at * KIB, 4 * KIB));
            let op = FileOp::Write { fua: false };
            assert_eq!(payload.run(op, 32 * KIB, &parts).await, Ok(16 * KIB));
            let guard = payload.window(FILE_BYTES, 64 * KIB);
            guard.fill(0, 64 * KIB, 0xee);
            let into = guard.slice(16 * KIB, 24 * KIB).unwrap();
            assert_eq!(payload.run(FileOp::Read, 28 * KIB, &[into]).await, Ok(24 * KIB));
            let mut wanted = vec![0; 512];
            for at in [12, 8, 4, 0] {
                wanted.extend((0..4 * KIB).step_by(8).map(|word| 1 << 32 | (at * KIB + word)));
            }
            wanted.extend(vec![0; 512]);
            assert_eq!(words(&into), wanted);
            for (at, len) in [(0, 16 * KIB), (40 * KIB, 24 * KIB)] {
                let beside = words(&guard.slice(at, len).unwrap());
                assert!(beside.iter().all(|word| *word == u64::from_le_bytes([0xee; 8])));
            }
            put(&whole, 2);
            assert_eq!(payload.run(FileOp::Write { fua: true }, 0, &[whole]).await, Ok(16 * KIB));
            assert_eq!(payload.run_range(FileOp::Flush, 0, 0, &[]).await, Ok(0));
            let into = payload.window(FILE_BYTES, 16 * KIB);
            assert_eq!(payload.run(FileOp::Read, 0, &[into]).await, Ok(16 * KIB));
            assert_eq!(words(&into), expected(2, 16 * KIB));
        });
    }
}

/// A guest may have its payload anywhere.
pub fn misaligned_memory_is_no_hindrance<W: World>() {
    for engine in ENGINES {
        run::<W, _>(1, move |task| async move {
            let mut payload = Payload::<W>::new(task, engine).await;
            let odd = [payload.window(1, 1023), payload.window(3001, 7), payload.window(5000, 3066)];
            for (segment, byte) in odd.iter().zip(1..) {
                segment.fill(0, segment.len(), byte);
            }
            assert_eq!(payload.run(FileOp::Write { fua: false }, 8 * KIB, &odd).await, Ok(4 * KIB));
            let back = [payload.window(FILE_BYTES + 5, 4000), payload.window(FILE_BYTES + 9000, 96)];
            assert_eq!(payload.run(FileOp::Read, 8 * KIB, &back).await, Ok(4 * KIB));
            let mut bytes = vec![0; 4096];
            back[0].read(0, &mut bytes[..4000]);
            back[1].read(0, &mut bytes[4000..]);
            let wanted = [vec![1; 1023], vec![2; 7], vec![3; 3066]].concat();
            assert!(bytes == wanted, "{engine:?}");
        });
    }
}

/// The length says how much arrived. The memory of the rest may hold anything: Linux zeroes it when the file ends in a
/// hole.
pub fn a_read_over_the_end_is_short<W: World>() {
    for engine in ENGINES {
        run::<W, _>(1, move |task| async move {
            let mut payload = Payload::<W>::new(task, engine).await;
            let window = payload.window(0, 16 * KIB);
            window.fill(0, 16 * KIB, 0xee);
            assert_eq!(payload.run(FileOp::Read, FILE_BYTES - 4 * KIB, &[window]).await, Ok(4 * KIB));
            assert!(words(&window)[..512].iter().all(|word| *word == 0));
            assert_eq!(payload.run(FileOp::Read, FILE_BYTES, &[window]).await, Ok(0));
        });
    }
}

/// Zeroed ranges are zero, discarded ones zero or as they were, and their neighbours as they were.
pub fn ranges_are_zeroed_and_discarded<W: World>() {
    for engine in ENGINES {
        run::<W, _>(1, move |task| async move {
            let mut payload = Payload::<W>::new(task, engine).await;
            let info = payload.file.info().unwrap();
            let window = payload.window(0, 24 * KIB);
            for (op, possible) in [
                (FileOp::WriteZeroes { unmap: false }, info.can_write_zeroes),
                (FileOp::WriteZeroes { unmap: true }, info.can_write_zeroes),
                (FileOp::Discard, info.can_discard),
            ] {
                put(&window, 1);
                let written = payload.run(FileOp::Write { fua: false }, 64 * KIB, &[window]).await;
                assert_eq!(written, Ok(24 * KIB));
                let result = payload.run_range(op, 72 * KIB, 8 * KIB, &[]).await;
                if !possible && kind(result) == Some(ErrorKind::Unsupported) {
                    continue;
                }
                assert_eq!(result, Ok(8 * KIB), "{engine:?} {op:?}");
                assert_eq!(payload.run(FileOp::Read, 64 * KIB, &[window]).await, Ok(24 * KIB));
                let (before, found) = (expected(1, 24 * KIB), words(&window));
                assert_eq!(found[..1024], before[..1024], "{engine:?} {op:?}");
                assert_eq!(found[2048..], before[2048..], "{engine:?} {op:?}");
                let as_before = op == FileOp::Discard && found[1024..2048] == before[1024..2048];
                assert!(as_before || found[1024..2048].iter().all(|word| *word == 0), "{engine:?} {op:?}");
                assert_eq!(payload.file.info().unwrap().len, FILE_BYTES);
            }
        });
    }
}

/// Each of many operations ends once; a channel that is full takes more when some have ended.
pub fn every_operation_of_many_ends_once<W: World>() {
    for engine in ENGINES {
        run::<W, _>(1, move |task| async move {
            let mut payload = Payload::<W>::new(task, engine).await;
            let (mut ended, mut begun, mut was_full) = (Vec::new(), 0, false);
            while begun < 3000 {
                let block = begun % (FILE_BYTES / (4 * KIB));
                let window = payload.window(block * 4 * KIB, 4 * KIB);
                match payload.channel.submit(FileOp::Read, block * 4 * KIB, 4 * KIB, &[window], begun) {
                    Ok(()) => begun += 1,
                    Err(Full) => {
                        was_full = true;
                        let before = ended.len();
                        let (channel, ended) = (&mut payload.channel, &mut ended);
                        payload
                            .task
                            .poll("room in the channel", || {
                                channel.poll(ended);
                                (ended.len() > before).then_some(())
                            })
                            .await;
                    }
                }
            }
            assert!(was_full, "{engine:?}: a channel without bound");
            let rest = 3000 - ended.len();
            ended.extend(wait(&payload.task, &mut payload.channel, rest).await);
            assert!(ended.iter().all(|completion| completion.result == Ok(4 * KIB)));
            let tokens: BTreeSet<u64> = ended.iter().map(|completion| completion.token).collect();
            assert_eq!(tokens.len(), 3000);
        });
    }
}

/// Two channels of one core on one file do not get each other's completions.
pub fn completions_go_to_their_channel<W: World>() {
    for engine in ENGINES {
        run::<W, _>(1, move |task| async move {
            let mut payload = Payload::<W>::new(task, engine).await;
            let mut second = payload.task.platform.channel(&payload.file).unwrap();
            for turn in 0..20 {
                let window = payload.window(0, 4 * KIB);
                for token in 0..8 {
                    payload.channel.submit(FileOp::Read, 0, 4 * KIB, &[window], token).unwrap();
                    second.submit(FileOp::Read, 0, 4 * KIB, &[window], 100 + token).unwrap();
                }
                let channels: [(&mut ChannelOf<W>, u64); 2] = if turn % 2 == 0 {
                    [(&mut payload.channel, 0), (&mut second, 100)]
                } else {
                    [(&mut second, 100), (&mut payload.channel, 0)]
                };
                for (channel, first) in channels {
                    let ended = wait(&payload.task, channel, 8).await;
                    let tokens: BTreeSet<u64> = ended.iter().map(|completion| completion.token).collect();
                    assert_eq!(tokens, (first..first + 8).collect());
                }
            }
        });
    }
}

/// It says what it is, and is the same object by every open.
pub fn a_payload_file_says_what_it_is<W: World>() {
    for engine in ENGINES {
        run::<W, _>(1, move |task| async move {
            let place = W::payload_file(FILE_BYTES);
            let other = W::payload_file(2 * FILE_BYTES);
            let file = open::<W>(&task, &place.path, engine, false).await;
            let again = open::<W>(&task, &place.path, engine, true).await;
            let other = open::<W>(&task, &other.path, engine, false).await;
            let info = file.info().unwrap();
            assert_eq!((info.len, info.is_block_device), (FILE_BYTES, false));
            assert!(info.block_size.is_power_of_two() && (512..=65536).contains(&info.block_size));
            assert!(info.physical_block_size >= info.block_size);
            assert_eq!(again.info().unwrap().identity, info.identity);
            assert_ne!(other.info().unwrap().identity, info.identity);
            assert_eq!(other.info().unwrap().len, 2 * FILE_BYTES);
            let missing = format!("{}-missing", place.path);
            let missing = on_disk::<W, _>(&task, move |files| {
                files.open(&missing, FileOptions { engine, read_only: true })
            })
            .await;
            assert_eq!(kind(missing), Some(ErrorKind::NotFound));
        });
    }
}

/// One open file holds it; clones and channels keep it, and the last of them ends it.
pub fn one_open_file_holds_the_lock<W: World>() {
    for engine in ENGINES {
        run::<W, _>(2, move |task| async move {
            let payload = Payload::<W>::new(task, engine).await;
            let Payload { task, place, file, mut channel, memory } = payload;
            assert_eq!(file.try_lock(), Ok(FileLock::Held), "again");
            assert_eq!(file.clone().try_lock(), Ok(FileLock::Held), "by a clone");
            let other = open::<W>(&task, &place.path, engine, false).await;
            assert_eq!(other.try_lock(), Ok(FileLock::HeldElsewhere));
            let reader = open::<W>(&task, &place.path, engine, true).await;
            assert_eq!(reader.try_lock(), Ok(FileLock::HeldElsewhere), "reading needs it too");
            drop(reader);

            // A clone on another core.
            let clone = file.clone();
            let (sender, mut receiver) = task.platform.mailbox(1);
            spawn(&task.platform, CoreId(1), move |_| {
                assert_eq!(clone.try_lock(), Ok(FileLock::Held));
                drop(clone);
                sender.send(()).expect("there is room");
                async {}
            });
            task.poll("the other core", || runtime::Receiver::receive(&mut receiver)).await;
            drop(file);
            assert_eq!(other.try_lock(), Ok(FileLock::HeldElsewhere), "the channel keeps it");
            let window = memory.window().slice(0, 4 * KIB).unwrap();
            channel.submit(FileOp::Write { fua: false }, 0, 4 * KIB, &[window], 1).unwrap();
            assert_eq!(wait(&task, &mut channel, 1).await[0].result, Ok(4 * KIB));
            drop(channel);
            assert_eq!(other.try_lock(), Ok(FileLock::Held), "{engine:?}");
        });
    }
}

/// A core that sleeps is woken by each completion.
pub fn a_completion_wakes<W: World>() {
    for engine in ENGINES {
        run::<W, _>(1, move |task| async move {
            let Payload { task, channel, memory, file: _file, place: _place } =
                Payload::<W>::new(task, engine).await;
            let channel = Rc::new(RefCell::new(channel));
            let window = memory.window().slice(0, 4 * KIB).unwrap();
            for turn in 0..200 {
                let (op, segments) = match turn % 4 {
                    0 => (FileOp::Write { fua: true }, &[window][..]),
                    1 => (FileOp::WriteZeroes { unmap: true }, &[][..]),
                    _ => (FileOp::Read, &[window][..]),
                };
                channel.borrow_mut().submit(op, 0, 4 * KIB, segments, turn).unwrap();
                let armed = channel.clone();
                let mut ended = Vec::new();
                let ask = || channel.borrow_mut().poll(&mut ended).then_some(());
                let arm = move |wakes: &mut _| Wakes::<W::Platform>::channel(wakes, &*armed.borrow());
                task.sleep("a completion", ask, arm).await;
                assert_eq!((ended.len(), ended[0].token), (1, turn));
            }
            // One that has ended before the core sleeps keeps it awake.
            channel.borrow_mut().submit(FileOp::Read, 0, 4 * KIB, &[window], 1).unwrap();
            let mut ended = Vec::new();
            channel.borrow_mut().poll(&mut ended);
            task.sleep_until(task.platform.now().after(Duration::from_millis(5))).await;
            let armed = channel.clone();
            let ask = || (!ended.is_empty() || channel.borrow_mut().poll(&mut ended)).then_some(());
            let arm = move |wakes: &mut _| Wakes::<W::Platform>::channel(wakes, &*armed.borrow());
            task.sleep("a completion", ask, arm).await;
        });
    }
}
