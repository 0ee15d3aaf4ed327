//! What a channel does with payload: every operation, every layout of memory, many in flight, several channels.

use crate::support::{ENGINES, Fixture, KIB, MIB, bytes, let_pass, pattern, submit, wait};
use runtime::{File, FileChannel, FileOp, Window};
use std::collections::BTreeSet;
use std::time::Duration;

#[test]
fn a_read_and_a_write_move_what_was_asked_and_nothing_else() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let window = fixture.window(4 * KIB, 8 * KIB);
        fixture.memory_guard();
        assert_eq!(fixture.run(FileOp::Read, 64 * KIB, &[window]), Ok(8 * KIB), "{engine:?}");
        assert_eq!(bytes(window), pattern(1, 64 * KIB, 8 * KIB));
        fixture.check_memory_guard(4 * KIB, 8 * KIB);

        window.write(0, &pattern(2, 0, 8 * KIB));
        assert_eq!(fixture.run(FileOp::Write { fua: false }, 16 * KIB, &[window]), Ok(8 * KIB));
        assert_eq!(fixture.content(16 * KIB, 8 * KIB), pattern(2, 0, 8 * KIB));
        assert_eq!(fixture.content(0, 16 * KIB), pattern(1, 0, 16 * KIB));
        assert_eq!(fixture.content(24 * KIB, MIB - 24 * KIB), pattern(1, 24 * KIB, MIB - 24 * KIB));
        assert_eq!(fixture.channel.bounced_bytes(), 0);
    }
}

impl Fixture {
    fn memory_guard(&self) {
        self.window(0, 64 * KIB).fill(0, 64 * KIB, 0xee);
    }

    fn check_memory_guard(&self, offset: u64, len: u64) {
        let around = bytes(self.window(0, 64 * KIB));
        let (before, rest) = around.split_at(offset as usize);
        assert!(before.iter().chain(&rest[len as usize..]).all(|byte| *byte == 0xee));
    }
}

#[test]
fn scattered_payload_is_gathered_in_order() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, 4 * MIB);
        let block = u64::from(fixture.file.info().unwrap().block_size);
        // As many as may be, lying backwards in memory, one to three blocks each.
        let (mut segments, mut at) = (Vec::new(), 8 * MIB);
        for number in 0..512 {
            let len = block * (1 + number % 3);
            at -= len + block;
            segments.push(fixture.window(at, len));
        }
        let len: u64 = segments.iter().map(Window::len).sum();
        assert_eq!(fixture.run(FileOp::Read, block, &segments), Ok(len), "{engine:?}");
        let read: Vec<u8> = segments.iter().flat_map(|segment| bytes(*segment)).collect();
        assert_eq!(read, pattern(1, block, len));

        let mut offset = 0;
        for segment in &segments {
            segment.write(0, &pattern(3, offset, segment.len()));
            offset += segment.len();
        }
        assert_eq!(fixture.run(FileOp::Write { fua: true }, 2 * MIB, &segments), Ok(len));
        assert_eq!(fixture.content(2 * MIB, len), pattern(3, 0, len));
        assert_eq!(fixture.channel.bounced_bytes(), 0);
    }
}

#[test]
fn misaligned_payload_is_bounced_and_counted_and_arrives() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        fixture.memory_guard();
        // An address that no medium takes, and segments of odd lengths that together are whole blocks.
        let segments = [fixture.window(1, 1023), fixture.window(2048 + 7, 3), fixture.window(4096, 7166)];
        let len = 8 * KIB;
        assert_eq!(fixture.run(FileOp::Read, 32 * KIB, &segments), Ok(len), "{engine:?}");
        let read: Vec<u8> = segments.iter().flat_map(|segment| bytes(*segment)).collect();
        assert_eq!(read, pattern(1, 32 * KIB, len));
        assert_eq!(fixture.channel.bounced_bytes(), len);
        let around = bytes(fixture.window(0, 16 * KIB));
        assert!([0, 1024, 2048 + 6, 2048 + 10, 4096 + 7166].iter().all(|at| around[*at] == 0xee));

        assert_eq!(fixture.run(FileOp::Write { fua: false }, 512 * KIB, &segments), Ok(len));
        assert_eq!(fixture.content(512 * KIB, len), pattern(1, 32 * KIB, len));
        assert_eq!(fixture.channel.bounced_bytes(), 2 * len);

        // Aligned addresses and odd lengths; then the other way round.
        for segments in [
            [fixture.window(0, 1000), fixture.window(4096, 3096)],
            [fixture.window(8200, 3072), fixture.window(12296, 1024)],
        ] {
            let before = fixture.channel.bounced_bytes();
            assert_eq!(fixture.run(FileOp::Read, 32 * KIB, &segments), Ok(4 * KIB), "{engine:?}");
            let read: Vec<u8> = segments.iter().flat_map(|segment| bytes(*segment)).collect();
            assert_eq!(read, pattern(1, 32 * KIB, 4 * KIB));
            assert_eq!(fixture.channel.bounced_bytes(), before + 4 * KIB);
        }
    }
}

#[test]
fn a_long_misaligned_payload_is_done_in_part() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, 4 * MIB);
        let window = fixture.window(3, 2 * MIB);
        let (mut done, mut turns) = (0, 0);
        while done < window.len() {
            let rest = window.slice(done, window.len() - done).unwrap();
            let some = fixture.run(FileOp::Read, MIB + done, &[rest]).unwrap();
            assert!(some > 0 && some.is_multiple_of(64 * KIB), "{engine:?}: {some} bytes");
            done += some;
            turns += 1;
        }
        assert!(turns > 1, "the whole of it was bounced at once");
        assert_eq!(bytes(window), pattern(1, MIB, 2 * MIB));
    }
}

#[test]
fn more_misaligned_payloads_than_bounce_buffers_are_full_and_then_done() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let windows: Vec<_> = (0..200).map(|at| fixture.window(at * 8 * KIB + 1, 4 * KIB)).collect();
        let mut refused = 0;
        let mut completions = Vec::new();
        for (token, window) in (0..).zip(&windows) {
            let read = (FileOp::Read, token * 4 * KIB, std::slice::from_ref(window), token);
            refused += submit(&mut fixture.channel, read, &mut completions);
        }
        completions.extend(wait(&mut fixture.channel, windows.len() - completions.len()));
        assert!(refused > 0, "{engine:?}: nothing bounds the bounce buffers");
        assert!(completions.iter().all(|completion| completion.result == Ok(4 * KIB)));
        for (at, window) in (0..).zip(windows) {
            assert_eq!(bytes(window), pattern(1, at * 4 * KIB, 4 * KIB), "{engine:?}");
        }
    }
}

#[test]
fn a_read_over_the_end_is_short() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, 64 * KIB);
        let window = fixture.window(0, 16 * KIB);
        assert_eq!(fixture.run(FileOp::Read, 56 * KIB, &[window]), Ok(8 * KIB), "{engine:?}");
        assert_eq!(bytes(window.slice(0, 8 * KIB).unwrap()), pattern(1, 56 * KIB, 8 * KIB));
        assert_eq!(fixture.run(FileOp::Read, 64 * KIB, &[window]), Ok(0));
        let halves = [fixture.window(0, 8 * KIB), fixture.window(32 * KIB, 8 * KIB)];
        assert_eq!(fixture.run(FileOp::Read, 60 * KIB, &halves), Ok(4 * KIB));
        // Misaligned: only what arrived is copied.
        fixture.memory_guard();
        let odd = fixture.window(1, 16 * KIB);
        assert_eq!(fixture.run(FileOp::Read, 60 * KIB, &[odd]), Ok(4 * KIB));
        fixture.check_memory_guard(1, 4 * KIB);
    }
}

#[test]
fn flush_discard_and_zeroes() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        assert_eq!(fixture.run_range(FileOp::Flush, 0, 0, &[]), Ok(0), "{engine:?}");
        let info = fixture.file.info().unwrap();
        assert!(
            info.can_discard && info.can_write_zeroes,
            "the build lies on a file system that punches no holes"
        );
        let allocated = |fixture: &Fixture| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(&fixture.path).unwrap().blocks() * 512
        };
        let before = allocated(&fixture);
        for (op, offset, gives_back) in [
            (FileOp::WriteZeroes { unmap: false }, 0, 0),
            (FileOp::WriteZeroes { unmap: true }, 256 * KIB, 128 * KIB),
            (FileOp::Discard, 512 * KIB, 128 * KIB),
        ] {
            let allocated_before = allocated(&fixture);
            assert_eq!(fixture.run_range(op, offset, 128 * KIB, &[]), Ok(128 * KIB), "{engine:?} {op:?}");
            assert!(fixture.content(offset, 128 * KIB).iter().all(|byte| *byte == 0), "{engine:?} {op:?}");
            let next = offset + 128 * KIB;
            assert_eq!(fixture.content(next, 128 * KIB), pattern(1, next, 128 * KIB), "{engine:?} {op:?}");
            assert_eq!(allocated_before - allocated(&fixture), gives_back, "{engine:?} {op:?}");
        }
        assert!(allocated(&fixture) < before);
        assert_eq!(fixture.file.info().unwrap().len, MIB, "the size stays");
        // Over the end, too.
        let op = FileOp::WriteZeroes { unmap: false };
        assert_eq!(fixture.run_range(op, MIB - 4 * KIB, 8 * KIB, &[]), Ok(8 * KIB));
        assert_eq!(fixture.file.info().unwrap().len, MIB);
    }
}

#[test]
fn nothing_is_asked_of_the_kernel_for_nothing() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, 64 * KIB);
        for op in [FileOp::Read, FileOp::Write { fua: true }, FileOp::Discard] {
            assert_eq!(fixture.run_range(op, 0, 0, &[]), Ok(0), "{engine:?} {op:?}");
        }
    }
}

/// A small generator, so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn many_operations_in_flight_each_end_once() {
    const BLOCKS: u64 = 2048;
    const DEPTH: u64 = 256;
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, BLOCKS * 4 * KIB);
        let mut random = Random(7);
        // What each block of the file holds; a block is in at most one operation at a time.
        let mut seeds = vec![1_u64; BLOCKS as usize];
        let mut in_flight: Vec<Option<(bool, u64)>> = vec![None; DEPTH as usize];
        let mut busy = BTreeSet::new();
        let mut completions = Vec::new();
        let mut begun = 0;
        while begun < 20_000 || !busy.is_empty() {
            for token in 0..DEPTH {
                if begun == 20_000 || in_flight[token as usize].is_some() {
                    continue;
                }
                let block = random.below(BLOCKS);
                if !busy.insert(block) {
                    continue;
                }
                let write = random.below(2) == 0;
                let window = fixture.window(token * 8 * KIB, 4 * KIB);
                if write {
                    seeds[block as usize] = begun + 2;
                    window.write(0, &pattern(begun + 2, block * 4 * KIB, 4 * KIB));
                }
                let op = if write { FileOp::Write { fua: begun % 512 == 0 } } else { FileOp::Read };
                submit(&mut fixture.channel, (op, block * 4 * KIB, &[window], token), &mut completions);
                in_flight[token as usize] = Some((write, block));
                begun += 1;
            }
            fixture.channel.poll(&mut completions);
            for completion in completions.drain(..) {
                let (write, block) = in_flight[completion.token as usize].take().expect("ended twice");
                assert_eq!(completion.result, Ok(4 * KIB), "{engine:?}");
                if !write {
                    let window = fixture.window(completion.token * 8 * KIB, 4 * KIB);
                    let expected = pattern(seeds[block as usize], block * 4 * KIB, 4 * KIB);
                    assert!(bytes(window) == expected, "{engine:?}: block {block}");
                }
                busy.remove(&block);
            }
        }
        for (block, seed) in (0..).zip(seeds) {
            let expected = pattern(seed, block * 4 * KIB, 4 * KIB);
            assert!(fixture.content(block * 4 * KIB, 4 * KIB) == expected, "{engine:?}: block {block}");
        }
    }
}

#[test]
fn a_channel_takes_what_it_can_and_says_when_it_is_full() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let window = fixture.window(0, 4 * KIB);
        let mut taken = 0;
        while fixture.channel.submit(FileOp::Read, 0, 4 * KIB, &[window], taken).is_ok() {
            taken += 1;
            assert!(taken < 100_000, "{engine:?}: no bound");
        }
        assert!(taken >= 256, "{engine:?}: only {taken}");
        let completions = wait(&mut fixture.channel, taken as usize);
        let tokens: BTreeSet<_> = completions.iter().map(|completion| completion.token).collect();
        assert_eq!(tokens.len() as u64, taken);
        assert_eq!(fixture.channel.submit(FileOp::Read, 0, 4 * KIB, &[window], 0), Ok(()));
        wait(&mut fixture.channel, 1);
    }
}

#[test]
fn more_segments_than_a_batch_holds_wait_for_the_next() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let block = u64::from(fixture.file.info().unwrap().block_size);
        let segments: Vec<_> = (0..512).map(|number| fixture.window(number * 2 * block, block)).collect();
        let (mut completions, mut refused) = (Vec::new(), 0);
        for token in 0..100 {
            let read = (FileOp::Read, 0, &segments[..], token);
            refused += submit(&mut fixture.channel, read, &mut completions);
        }
        completions.extend(wait(&mut fixture.channel, 100 - completions.len()));
        assert!(refused > 0, "{engine:?}: nothing bounds the segments of a batch");
        assert!(completions.iter().all(|completion| completion.result == Ok(512 * block)), "{engine:?}");
        let read: Vec<u8> = segments.iter().flat_map(|segment| bytes(*segment)).collect();
        assert_eq!(read, pattern(1, 0, 512 * block));
    }
}

#[test]
fn a_channel_refused_because_of_another_makes_its_own_room() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let window = fixture.window(0, 4 * KIB);
        let mut second = fixture.core.channel(&fixture.file).unwrap();
        let mut taken = 0;
        while fixture.channel.submit(FileOp::Read, 0, 4 * KIB, &[window], taken).is_ok() {
            taken += 1;
        }
        if second.submit(FileOp::Read, 0, 4 * KIB, &[window], 1).is_err() {
            assert!(!second.poll(&mut Vec::new()));
            assert_eq!(second.submit(FileOp::Read, 0, 4 * KIB, &[window], 1), Ok(()), "{engine:?}");
        }
        wait(&mut second, 1);
        wait(&mut fixture.channel, taken as usize);
    }
}

#[test]
fn completions_go_to_the_channel_that_submitted_whoever_polls() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        // On the same file, so that nothing but the channel tells them apart.
        let mut second = fixture.core.channel(&fixture.file).unwrap();
        let mut third = fixture.core.channel(&fixture.file).unwrap();
        for turn in 0..50 {
            for token in 0..32 {
                let window = fixture.window(token * 4 * KIB, 4 * KIB);
                for (number, channel) in (0..).zip([&mut fixture.channel, &mut second, &mut third]) {
                    channel.submit(FileOp::Read, 0, 4 * KIB, &[window], 1000 * number + token).unwrap();
                }
            }
            // Until nothing can be left in the kernel, only one of them polls.
            let poller = turn % 3;
            let channels = [&mut fixture.channel, &mut second, &mut third];
            let own = wait(channels[poller], 32);
            let_pass(Duration::from_millis(1));
            let mut stray = Vec::new();
            channels[poller].poll(&mut stray);
            assert!(stray.is_empty());
            for (number, channel) in (0..).zip(channels) {
                let ended = if number == poller as u64 { own.clone() } else { wait(channel, 32) };
                let tokens: BTreeSet<_> = ended.iter().map(|completion| completion.token).collect();
                assert_eq!(tokens, (0..32).map(|token| 1000 * number + token).collect(), "{engine:?}");
            }
        }
    }
}

#[test]
fn channels_come_and_go_while_others_work() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, MIB);
        let window = fixture.window(0, 4 * KIB);
        for turn in 0..100 {
            fixture.channel.submit(FileOp::Read, 0, 4 * KIB, &[window], turn).unwrap();
            let mut other = fixture.core.channel(&fixture.file).unwrap();
            other.submit(FileOp::Flush, 0, 0, &[], 9).unwrap();
            assert_eq!(wait(&mut other, 1)[0].token, 9);
            drop(other);
            assert_eq!(wait(&mut fixture.channel, 1)[0].token, turn, "{engine:?}");
        }
    }
}

#[test]
fn more_channels_than_registered_files_work() {
    let fixture = Fixture::new(runtime::FileEngine::Uring, MIB);
    let mut channels: Vec<_> = (0..300).map(|_| fixture.core.channel(&fixture.file).unwrap()).collect();
    for (number, channel) in (0..).zip(&mut channels) {
        let window = fixture.window(number * 4 * KIB, 4 * KIB);
        channel.submit(FileOp::Read, number % 256 * 4 * KIB, 4 * KIB, &[window], number).unwrap();
    }
    for (number, channel) in (0..).zip(&mut channels) {
        assert_eq!(wait(channel, 1)[0].token, number);
        let window = fixture.window(number * 4 * KIB, 4 * KIB);
        assert_eq!(bytes(window), pattern(1, number % 256 * 4 * KIB, 4 * KIB));
    }
}

#[test]
fn a_channel_dropped_with_operations_in_flight_waits_for_them() {
    for engine in ENGINES {
        let mut fixture = Fixture::new(engine, 8 * MIB);
        let mut other = fixture.core.channel(&fixture.file).unwrap();
        for token in 0..64 {
            let window = fixture.window(token * 64 * KIB, 64 * KIB);
            fixture.channel.submit(FileOp::Read, token * 64 * KIB, 64 * KIB, &[window], token).unwrap();
        }
        fixture.channel.submit(FileOp::Flush, 0, 0, &[], 64).unwrap();
        fixture.channel.submit(FileOp::WriteZeroes { unmap: true }, 0, 4 * KIB, &[], 65).unwrap();
        let window = fixture.window(6 * MIB, 4 * KIB);
        other.submit(FileOp::Read, 4 * MIB, 4 * KIB, &[window], 7).unwrap();
        fixture.channel.poll(&mut Vec::new());
        let Fixture { channel, memory, core: _core, file: _file, directory: _directory, .. } = fixture;
        drop(channel);
        // From here on nobody may write: the kernel would.
        let first = memory_window(&memory, 0, 4 * MIB);
        first.fill(0, 4 * MIB, 0x55);
        let_pass(Duration::from_millis(100));
        assert!(
            bytes(first).iter().all(|byte| *byte == 0x55),
            "{engine:?}: written after the channel was gone"
        );
        let completions = wait(&mut other, 1);
        assert_eq!(
            (completions[0].token, completions[0].result),
            (7, Ok(4 * KIB)),
            "{engine:?}: hit as well"
        );
    }
}

fn memory_window(memory: &hw::HostMemory, offset: u64, len: u64) -> hw::HostWindow {
    runtime::Memory::window(memory).slice(offset, len).unwrap()
}
