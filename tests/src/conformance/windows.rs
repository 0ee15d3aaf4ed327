//! Windows and memory: values, bulk copies, bounds, and memory shared through its handle.

use super::{World, run};
use runtime::{Access, ErrorKind, Handle, Memory, Platform, Window};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// The types agree on the bytes, and a byte's bits are set in it alone.
pub fn values_are_little_endian_and_typed<W: World>() {
    run::<W, _>(1, |task| async move {
        let memory = task.platform.shared_memory("test", 64).unwrap();
        let window = memory.window();
        window.store_u64(0, 0x0807_0605_0403_0201, Release);
        assert_eq!(window.load_u32(4, Acquire), 0x0807_0605);
        assert_eq!(window.load_u16(2, Relaxed), 0x0403);
        assert_eq!(window.load_u8(1, Relaxed), 2);
        window.store_u8(0, 0x11, Relaxed);
        window.store_u16(2, 0xbbaa, Relaxed);
        window.store_u32(4, 0xffee_ddcc, Release);
        assert_eq!(window.fetch_or_u8(1, 0xf0), 2);
        assert_eq!(window.load_u64(0, Relaxed), 0xffee_ddcc_bbaa_f211);
    });
}

/// Reads, writes, fills and copies at every alignment.
pub fn bulk_operations_touch_their_bytes_and_no_other<W: World>() {
    run::<W, _>(1, |task| async move {
        let memories = [(); 2].map(|()| task.platform.shared_memory("test", 9000).unwrap());
        let [source, target] = memories.each_ref().map(Memory::window);
        let pattern: Vec<u8> = (0..9000u32).map(|at| (at * 7 % 251) as u8 + 1).collect();
        source.write(0, &pattern);
        for (len, from, to) in [(0, 3, 3), (1, 7, 8), (8, 8, 16), (63, 1, 2), (513, 5, 0), (4096, 3, 4099)] {
            let (start, end) = (to as usize, (to + len) as usize);
            let expected = &pattern[from as usize..(from + len) as usize];
            let check = |what: &str, expected: &[u8]| {
                let mut seen = vec![0; 9000];
                target.read(0, &mut seen);
                assert_eq!(&seen[start..end], expected, "{what} of {len} bytes");
                assert!(
                    seen[..start].iter().chain(&seen[end..]).all(|byte| *byte == 0),
                    "{what} of {len} bytes"
                );
                target.fill(0, 9000, 0);
            };
            target.copy_from(to, &source, from, len);
            check("a copy", expected);
            target.write(to, expected);
            check("a write", expected);
            target.fill(to, len, 0x5a);
            check("a fill", &vec![0x5a; len as usize]);
            let mut out = vec![0; len as usize];
            source.read(from, &mut out);
            assert_eq!(out, expected);
        }
    });
}

/// A part that does not lie inside is none.
pub fn parts_end_where_the_window_does<W: World>() {
    run::<W, _>(1, |task| async move {
        let memory = task.platform.shared_memory("test", 64).unwrap();
        let window = memory.window();
        assert_eq!(window.len(), 64);
        for (offset, len) in [(65, 0), (64, 1), (1, 64), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(window.slice(offset, len).is_none(), "{len} at {offset}");
        }
        assert!(window.slice(64, 0).unwrap().is_empty());
        let part = window.slice(4, 60).unwrap().slice(4, 8).unwrap();
        part.store_u64(0, 7, Relaxed);
        assert_eq!(window.load_u64(8, Relaxed), 7);
        assert!(window.is_aligned(4096) && part.is_aligned(8) && !part.is_aligned(16));
    });
}

/// The stack validates before it accesses; what slips through is a panic and never another's memory.
pub fn accesses_outside_or_misaligned_panic<W: World>() {
    run::<W, _>(1, |task| async move {
        let memory = task.platform.shared_memory("test", 64).unwrap();
        let window = memory.window();
        let part = window.slice(2, 16).unwrap();
        let accesses: [&dyn Fn(); 9] = [
            &|| _ = part.load_u32(14, Relaxed),
            &|| part.store_u16(u64::MAX, 1, Relaxed),
            &|| _ = window.load_u64(60, Relaxed),
            &|| _ = part.fetch_or_u8(16, 1),
            &|| part.read(10, &mut [0; 7]),
            &|| part.write(u64::MAX, &[1]),
            &|| part.fill(1, u64::MAX, 1),
            &|| part.copy_from(0, &window, 60, 5),
            // At 4 of the part, which is 6 in the memory.
            &|| _ = part.load_u32(4, Relaxed),
        ];
        for (number, access) in accesses.iter().enumerate() {
            assert!(catch_unwind(AssertUnwindSafe(access)).is_err(), "access {number}");
        }
        // 2 of the part is 4 in the memory.
        part.store_u32(2, 5, Relaxed);
        assert_eq!(window.load_u32(4, Relaxed), 5);
    });
}

/// Two mappings of one object are the same memory.
pub fn memory_is_shared_by_its_handle_at_any_offset<W: World>() {
    run::<W, _>(1, |task| async move {
        let memory = task.platform.shared_memory("test", 20_000).unwrap();
        let whole = memory.window();
        let handle = memory.handle().unwrap();
        for (offset, len) in [(0, 20_000), (8, 8), (4095, 2), (5000, 15_000)] {
            let part = handle.map(offset, len, Access::ReadWrite).unwrap();
            assert_eq!(part.window().len(), len);
            part.window().store_u8(len - 1, 9, Relaxed);
            assert_eq!(whole.load_u8(offset + len - 1, Relaxed), 9);
            whole.store_u8(offset + len - 1, 0, Relaxed);
            assert_eq!(part.window().load_u8(len - 1, Relaxed), 0);
            assert_eq!(part.window().is_aligned(16), offset % 16 == 0);
            assert!(!part.is_lost());
        }
        // The object outlives each of its mappings.
        whole.store_u64(0, 42, Relaxed);
        drop(memory);
        assert_eq!(handle.map(0, 8, Access::Read).unwrap().window().load_u64(0, Relaxed), 42);
    });
}

/// What is asked for must be there, and must be memory.
pub fn only_a_range_of_memory_is_mapped<W: World>() {
    run::<W, _>(1, |task| async move {
        let invalid = |result: runtime::Result<_>| {
            let result: runtime::Result<<W::Platform as Platform>::Memory> = result;
            assert_eq!(result.err().map(|error| error.kind), Some(ErrorKind::Invalid));
        };
        invalid(task.platform.shared_memory("test", 0));
        let handle = task.platform.shared_memory("test", 8192).unwrap().handle().unwrap();
        for (offset, len) in [(0, 0), (0, 8193), (8192, 1), (8191, 2), (u64::MAX, 1), (1, u64::MAX)] {
            invalid(handle.map(offset, len, Access::Read));
        }
        assert!(handle.map(8191, 1, Access::Read).is_ok());
        invalid(W::eventfd().0.map(0, 1, Access::Read));
    });
}
