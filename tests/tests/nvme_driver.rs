//! The NVMe driver against a small controller in memory: how it comes up, what it sends, and how it climbs when the
//! controller fails.

use hw::HostWindow;
use runtime::{ErrorKind, Memory, Segments, Window};
use stack::block::{Bdev, Io, IoError, Kind, NvmeBdev, Op};
use stack::nvme::bits::{
    AsyncEvent, Capabilities, Command, LbaFormat, LogPage, Status, admin, event, io, log,
};
use stack::nvme::driver::{Ended, Failure, IoFailure, Operation, Options, Report, Standing};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tests::core::on_core;
use tests::nvme::fake::{Disk, Fake, State};
use tests::nvme::rig::Rig;

/// A ready rig, after `prepare` changed the controller.
fn with(
    prepare: impl FnOnce(&mut State) + Send + 'static,
    options: Options,
    act: impl FnOnce(Rig) + Send + 'static,
) {
    on_core(None, move |platform| {
        let fake = Arc::new(Fake::default());
        prepare(&mut fake.state());
        let mut rig = Rig::new(&platform, fake, options);
        rig.ready();
        act(rig);
    });
}

/// Why a controller is given up, after `prepare` changed it.
fn refusal(prepare: impl FnOnce(&mut State) + Send + 'static) -> String {
    on_core(None, move |platform| {
        let fake = Arc::new(Fake::default());
        prepare(&mut fake.state());
        let mut rig = Rig::new(&platform, fake, Options::default());
        let why = rig.failed();
        assert_eq!(rig.fake.state().config[4] & 4, 0, "bus mastering is off");
        rig.end();
        why
    })
}

fn no_shadow() -> Options {
    Options { shadow_doorbells: false, ..Options::default() }
}

/// A small generator of numbers: the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

#[test]
fn a_controller_comes_up_and_tells_of_its_namespaces() {
    let prepare = |state: &mut State| {
        state.disks.insert(2, Disk::new(12, 100));
        let mut with_metadata = Disk::new(9, 100);
        with_metadata.identity.lbaf[0] = LbaFormat::default().with_lbads(9).with_ms(8).0;
        state.disks.insert(5, with_metadata);
    };
    with(prepare, Options::default(), |mut rig| {
        let info = rig.driver.info().expect("it is ready");
        assert_eq!((info.model.as_str(), info.serial.as_str()), ("Small disk", "FAKE"));
        let found: Vec<_> = rig.driver.namespaces().iter().map(|ns| (ns.id, ns.block_size)).collect();
        assert_eq!(found, [(1, 512), (2, 4096)]);
        assert_eq!(rig.driver.namespaces()[1].unique_id, Some([12; 16]));
        let (id, why) = &rig.driver.unusable_namespaces()[0];
        assert!(*id == 5 && why.contains("metadata"), "{why}");
        assert!(rig.driver.has_shadow_doorbells());
        assert_eq!(rig.driver.take_report(), Some(Report::Ready));
        let fake = Arc::clone(&rig.fake);
        rig.end();
        assert_eq!(fake.state().shutdowns, 1, "the end is orderly");
    });
}

#[test]
fn what_cannot_be_driven_is_refused_in_a_sentence() {
    assert!(refusal(|state| state.orders.held = true).contains("held by the kernel"));
    assert!(refusal(|state| state.config[10] = 6).contains("010602"));
    assert!(refusal(|state| state.capabilities = state.capabilities.with_mpsmin(2)).contains("16 KiB"));
    assert!(
        refusal(|state| state.capabilities = state.capabilities.with_css(Capabilities::CSS_NONE))
            .contains("NVM command set")
    );
    assert!(refusal(|state| state.capabilities = state.capabilities.with_dstrd(15)).contains("doorbells"));
    assert!(refusal(|state| state.identity.cntrltype = 2).contains("type 2"));
    assert!(refusal(|state| state.orders.removed = true).contains("removed"));
    assert!(
        refusal(|state| (state.orders.never_ready, state.orders.no_function_reset) = (true, true))
            .contains("function")
    );
    assert!(refusal(|state| state.orders.hold_admin = true).contains("answer an admin command"));
    let refused = Some((admin::IDENTIFY, Status::INTERNAL_ERROR));
    assert!(refusal(move |state| state.orders.refuse_admin = refused).contains("internal error"));
}

/// Windows of a random shape, of `len` bytes together, in memory: pieces between `unit` bytes and a few pages, at places
/// that are multiples of `unit`, none overlapping.
fn shape(memory: HostWindow, numbers: &mut Numbers, len: u64, unit: u64) -> Vec<HostWindow> {
    let (mut windows, mut left, mut at) = (Vec::new(), len, unit * numbers.below(64));
    while left > 0 {
        let piece = (unit * (1 + numbers.below(12288 / unit))).min(left);
        windows.push(memory.slice(at, piece).expect("there is room"));
        left -= piece;
        at += piece + unit * numbers.below(3) * numbers.below(4);
        if numbers.below(3) == 0 {
            at = at.next_multiple_of(4096);
        }
    }
    windows
}

/// Random writes, reads, compares and zeroes against a copy of the disk.
fn workload(rig: &mut Rig, unit: u64, rounds: usize) -> u64 {
    let mut channel = rig.channel(0);
    let (memory, _mapping) = rig.memory(8 << 20);
    let block = u64::from(rig.driver.namespaces()[0].block_size);
    let blocks = rig.driver.namespaces()[0].state.num_blocks();
    let mut copy = vec![0xee; (blocks * block) as usize];
    let mut numbers = Numbers(unit);
    for round in 0..rounds {
        let count = 1 + numbers.below(600);
        let lba = numbers.below(blocks - count);
        let (start, len) = (lba * block, count * block);
        let range = start as usize..(start + len) as usize;
        let windows = shape(memory, &mut numbers, len, unit);
        match numbers.below(5) {
            0 | 1 => {
                let mut done = range.start;
                for (index, window) in windows.iter().enumerate() {
                    let byte = (round * 31 + index * 7) as u8;
                    window.fill(0, window.len(), byte);
                    copy[done..done + window.len() as usize].fill(byte);
                    done += window.len() as usize;
                }
                let fua = numbers.below(2) == 0;
                assert_eq!(rig.run(&mut channel, Operation::Write { fua }, lba, len, &windows), Ok(()));
            }
            2 => {
                assert_eq!(rig.run(&mut channel, Operation::Read, lba, len, &windows), Ok(()));
                let mut done = range.start;
                for window in &windows {
                    let mut bytes = vec![0; window.len() as usize];
                    window.read(0, &mut bytes);
                    assert!(bytes == copy[done..done + bytes.len()], "round {round}: wrong data at {done}");
                    done += bytes.len();
                }
                assert_eq!(rig.run(&mut channel, Operation::Compare, lba, len, &windows), Ok(()));
                windows[0].store_u8(0, !copy[range.start], Relaxed);
                let differs = rig.run(&mut channel, Operation::Compare, lba, len, &windows);
                assert_eq!(differs, Err(IoFailure::Status(Status::COMPARE_FAILURE)));
            }
            3 => {
                let operation = Operation::WriteZeroes { deallocate: numbers.below(2) == 0, fua: false };
                assert_eq!(rig.run(&mut channel, operation, lba, len, &[]), Ok(()));
                copy[range].fill(0);
            }
            _ => {
                assert_eq!(rig.run(&mut channel, Operation::Deallocate, lba, len, &[]), Ok(()));
                if rig.fake.state().identity.oncs & 4 != 0 {
                    copy[range].fill(0);
                }
                assert_eq!(rig.run(&mut channel, Operation::Flush, 0, 0, &[]), Ok(()));
            }
        }
    }
    assert!(rig.fake.state().disks[&1].bytes == copy, "the disk is what was written");
    channel.counters().copied_bytes
}

#[test]
fn data_of_any_shape_arrives_whatever_the_controller_takes() {
    type Prepare = fn(&mut State);
    let variants: [(&str, u64, bool, Prepare); 7] = [
        ("pages", 4096, true, |_| ()),
        ("sectors, no SGLs", 512, false, |_| ()),
        ("dwords, SGLs", 4, true, |state| state.identity.sgls = 2),
        ("bytes, SGLs of any alignment", 1, true, |state| state.identity.sgls = 1),
        ("bytes, no SGLs", 1, false, |_| ()),
        ("a boundary and small transfers", 512, false, |state| {
            state.identity.mdts = 1;
            state.disks.get_mut(&1).expect("it is there").identity.noiob = 24;
        }),
        ("no optional command but Compare", 4096, true, |state| state.identity.oncs = 1),
    ];
    for (name, unit, direct, prepare) in variants {
        for shadow_doorbells in [true, false] {
            let options = Options { shadow_doorbells, queue_entries: 8, ..Options::default() };
            with(prepare, options, move |mut rig| {
                let copied = workload(&mut rig, unit, 120);
                assert!(!direct || copied == 0, "{name}: {copied} bytes were copied");
                rig.end();
            });
        }
    }
}

#[test]
fn memory_that_is_not_mapped_is_copied_and_counted() {
    with(
        |_| (),
        Options::default(),
        |mut rig| {
            let mut channel = rig.channel(0);
            let memory = rig.unmapped_memory(96 << 10);
            let window = memory.window();
            window.fill(0, window.len(), 0x5a);
            assert_eq!(
                rig.run(&mut channel, Operation::Write { fua: false }, 8, 96 << 10, &[window]),
                Ok(())
            );
            window.fill(0, window.len(), 0);
            assert_eq!(rig.run(&mut channel, Operation::Read, 8, 96 << 10, &[window]), Ok(()));
            assert_eq!(window.load_u64((96 << 10) - 8, Relaxed), 0x5a5a_5a5a_5a5a_5a5a);
            assert_eq!(channel.counters().copied_bytes, 192 << 10);
            drop(channel);
            rig.end();
        },
    );
}

#[test]
fn a_queue_wraps_full_again_and_again() {
    for shadow_doorbells in [true, false] {
        let options = Options { queue_entries: 4, shadow_doorbells, ..Options::default() };
        with(
            |_| (),
            options,
            |mut rig| {
                let mut channel = rig.channel(0);
                let (memory, _mapping) = rig.memory(1 << 20);
                let mut ended: Vec<Ended> = Vec::new();
                for round in 0..20 {
                    for token in 0..50 {
                        let window = memory.slice(u64::from(token) * 4096, 4096).expect("inside");
                        channel.submit(
                            rig.now,
                            token,
                            Operation::Read,
                            u64::from(token) * 8,
                            4096,
                            &[window],
                        );
                    }
                    ended.append(&mut rig.drain(&mut channel, 50));
                    assert_eq!(ended.len(), 50 * (round + 1));
                }
                assert!(ended.iter().all(|ended| ended.result.is_ok()));
                assert_eq!(channel.counters().commands, 1000);
                drop(channel);
                rig.end();
            },
        );
    }
}

#[test]
fn a_controller_that_polls_its_shadow_is_hardly_ever_rung() {
    let writes = |shadow_doorbells| {
        on_core(None, move |platform| {
            let fake = Arc::new(Fake::default());
            fake.state().orders.polls_shadow = true;
            let mut rig = Rig::new(&platform, fake, Options { shadow_doorbells, ..Options::default() });
            rig.ready();
            let mut channel = rig.channel(0);
            let (memory, _mapping) = rig.memory(4096);
            for _ in 0..1024 {
                assert_eq!(rig.run(&mut channel, Operation::Read, 0, 4096, &[memory]), Ok(()));
            }
            let writes = channel.counters().doorbell_writes;
            drop(channel);
            rig.end();
            writes
        })
    };
    assert_eq!(writes(false), 2048, "tail and head, each time");
    let shadowed = writes(true);
    assert!(shadowed < 1100, "{shadowed} writes: heads, and a tail at each wrap of the queue");
}

#[test]
fn what_may_be_tried_again_is_and_what_may_not_is_not() {
    with(
        |_| (),
        no_shadow(),
        |mut rig| {
            let mut channel = rig.channel(0);
            let (memory, _mapping) = rig.memory(4096);
            let mut read = |rig: &mut Rig, statuses: &[Status]| {
                rig.fake.state().orders.statuses.extend(statuses);
                let before = channel.counters().commands;
                let result = rig.run(&mut channel, Operation::Read, 0, 4096, &[memory]);
                rig.fake.state().orders.statuses.clear();
                (result, channel.counters().commands - before)
            };
            let transient = Status::COMMAND_INTERRUPTED;
            assert_eq!(read(&mut rig, &[transient]), (Ok(()), 2));
            assert_eq!(read(&mut rig, &[Status::UNRECOVERED_READ_ERROR; 4]), (Ok(()), 5));
            let failed = Status::UNRECOVERED_READ_ERROR;
            assert_eq!(read(&mut rig, &[failed; 9]), (Err(IoFailure::Status(failed)), 5));
            let never = failed.with_dnr(1);
            assert_eq!(read(&mut rig, &[never]), (Err(IoFailure::Status(never)), 1));
            let out = Status::LBA_OUT_OF_RANGE;
            assert_eq!(read(&mut rig, &[out]), (Err(IoFailure::Status(out)), 1));
            drop(channel);
            rig.end();
        },
    );
}

/// A channel with `count` reads out, of which the controller answers none.
fn stuck(rig: &mut Rig, count: u32) -> (tests::nvme::rig::Channel, Box<dyn std::any::Any>) {
    let mut channel = rig.channel(0);
    let (memory, mapping) = rig.memory(1 << 20);
    assert_eq!(
        rig.run(&mut channel, Operation::Read, 0, 4096, &[memory.slice(0, 4096).expect("inside")]),
        Ok(())
    );
    rig.fake.state().orders.hold_io = true;
    for token in 0..count {
        let window = memory.slice(u64::from(token) * 4096, 4096).expect("inside");
        channel.submit(rig.now, token, Operation::Read, 0, 4096, &[window]);
    }
    channel.poll(rig.now, &mut Vec::new());
    (channel, mapping)
}

#[test]
fn a_command_that_takes_too_long_is_aborted_and_tried_again() {
    with(
        |_| (),
        Options::default(),
        |mut rig| {
            let (mut channel, _mapping) = stuck(&mut rig, 1);
            let mut ended = Vec::new();
            rig.until("an abort", |rig| {
                channel.poll(rig.now, &mut ended);
                rig.fake.state().aborts == 1
            });
            rig.fake.state().orders.hold_io = false;
            assert_eq!(rig.drain(&mut channel, 1), [Ended { token: 0, result: Ok(()) }]);
            assert!(ended.is_empty());
            assert_eq!((rig.fake.state().enables, channel.counters().retries), (1, 1));
            drop(channel);
            rig.end();
        },
    );
}

#[test]
fn an_abort_that_loses_the_race_changes_nothing() {
    with(
        |_| (),
        Options::default(),
        |mut rig| {
            rig.fake.state().orders.abort_nothing = true;
            let (mut channel, _mapping) = stuck(&mut rig, 3);
            rig.until("an abort", |rig| {
                channel.poll(rig.now, &mut Vec::new());
                rig.fake.state().aborts > 0
            });
            rig.fake.let_go();
            let ended = rig.drain(&mut channel, 3);
            assert!(ended.iter().all(|ended| ended.result.is_ok()));
            assert_eq!((rig.fake.state().enables, channel.counters().retries), (1, 0));
            drop(channel);
            rig.end();
        },
    );
}

#[test]
fn a_queue_that_is_stuck_means_a_reset_after_which_everything_is_done() {
    with(
        |_| (),
        Options::default(),
        |mut rig| {
            rig.fake.state().orders.abort_nothing = true;
            let (mut channel, _mapping) = stuck(&mut rig, 40);
            let mut ended = Vec::new();
            rig.until("a reset", |rig| {
                channel.poll(rig.now, &mut ended);
                rig.fake.state().enables == 2
            });
            assert!(ended.is_empty(), "nothing is completed before the reset");
            rig.fake.state().orders.hold_io = false;
            let ended = rig.drain(&mut channel, 40);
            assert!(ended.iter().all(|ended| ended.result.is_ok()));
            assert_eq!(channel.counters().retries, 40);
            assert_eq!(rig.fake.state().function_resets, 0);
            drop(channel);
            rig.end();
        },
    );
}

#[test]
fn a_controller_that_does_not_stop_has_its_function_reset() {
    with(
        |_| (),
        Options::default(),
        |mut rig| {
            (rig.fake.state().orders.abort_nothing, rig.fake.state().orders.never_stops) = (true, true);
            let (mut channel, _mapping) = stuck(&mut rig, 5);
            rig.until("a function reset", |rig| {
                channel.poll(rig.now, &mut Vec::new());
                rig.fake.state().function_resets == 1
            });
            rig.fake.state().orders.hold_io = false;
            assert!(rig.drain(&mut channel, 5).iter().all(|ended| ended.result.is_ok()));
            drop(channel);
            rig.end();
        },
    );
}

#[test]
fn a_controller_that_nothing_helps_is_cut_off_before_its_users_are_told() {
    with(
        |_| (),
        Options::default(),
        |mut rig| {
            {
                let mut state = rig.fake.state();
                let orders = &mut state.orders;
                (orders.abort_nothing, orders.never_stops, orders.no_function_reset) = (true, true, true);
            }
            let (mut channel, _mapping) = stuck(&mut rig, 5);
            let mut ended = Vec::new();
            rig.until("the end of all requests", |rig| {
                channel.poll(rig.now, &mut ended);
                assert!(ended.is_empty() || rig.fake.state().config[4] & 4 == 0, "told too early");
                ended.len() == 5
            });
            assert!(ended.iter().all(|ended| ended.result == Err(IoFailure::Device)));
            assert!(matches!(rig.driver.standing(), Standing::Failed(Failure::World { .. })));
            assert!(rig.driver.namespaces()[0].state.is_gone());
            channel.submit(rig.now, 9, Operation::Read, 0, 0, &[]);
            assert_eq!(rig.drain(&mut channel, 1), [Ended { token: 9, result: Err(IoFailure::Device) }]);
            drop(channel);
            rig.end();
        },
    );
}

#[test]
fn a_controller_that_is_pulled_out_fails_its_users() {
    with(
        |_| (),
        Options::default(),
        |mut rig| {
            let (mut channel, _mapping) = stuck(&mut rig, 5);
            rig.fake.state().orders.removed = true;
            assert!(rig.drain(&mut channel, 5).iter().all(|ended| ended.result == Err(IoFailure::Device)));
            assert_eq!(rig.driver.standing(), Standing::Failed(Failure::Removed));
            drop(channel);
            rig.end();
        },
    );
}

#[test]
fn a_controller_that_lies_in_a_completion_is_reset() {
    let lies: [fn(&mut State); 3] = [
        |state| state.orders.complete_twice = true,
        |state| state.orders.wrong_id = Some(0x3ff),
        |state| state.orders.wrong_id = Some(0),
    ];
    for lie in lies {
        with(
            |_| (),
            Options::default(),
            move |mut rig| {
                let mut channel = rig.channel(0);
                let (memory, _mapping) = rig.memory(4096);
                assert_eq!(rig.run(&mut channel, Operation::Read, 0, 4096, &[memory]), Ok(()));
                lie(&mut rig.fake.state());
                assert_eq!(rig.run(&mut channel, Operation::Read, 0, 4096, &[memory]), Ok(()));
                rig.until("a reset", |rig| {
                    channel.poll(rig.now, &mut Vec::new());
                    rig.fake.state().enables == 2 && rig.driver.standing() == Standing::Ready
                });
                assert_eq!(rig.run(&mut channel, Operation::Read, 0, 4096, &[memory]), Ok(()));
                drop(channel);
                rig.end();
            },
        );
    }
}

#[test]
fn a_fatal_status_is_noticed_and_a_reset_that_was_asked_for_is_done() {
    with(
        |_| (),
        Options::default(),
        |mut rig| {
            let mut channel = rig.channel(0);
            let (memory, _mapping) = rig.memory(4096);
            assert_eq!(rig.run(&mut channel, Operation::Read, 0, 4096, &[memory]), Ok(()));
            rig.driver.reset();
            rig.until("a reset", |rig| {
                channel.poll(rig.now, &mut Vec::new());
                rig.fake.state().enables == 2
            });
            assert_eq!(rig.run(&mut channel, Operation::Read, 0, 4096, &[memory]), Ok(()));
            rig.fake.state().orders.fatal = true;
            rig.until("a function reset", |rig| {
                channel.poll(rig.now, &mut Vec::new());
                rig.fake.state().function_resets == 1
            });
            assert_eq!(rig.run(&mut channel, Operation::Read, 0, 4096, &[memory]), Ok(()));
            drop(channel);
            rig.end();
        },
    );
}

#[test]
fn channels_come_and_go_and_there_are_only_so_many_queues() {
    with(
        |state| state.queues = 2,
        Options::default(),
        |mut rig| {
            let (memory, _mapping) = rig.memory(4096);
            for _ in 0..5 {
                let (mut first, mut second, mut third) = (rig.channel(0), rig.channel(0), rig.channel(0));
                assert_eq!(rig.run(&mut first, Operation::Read, 0, 4096, &[memory]), Ok(()));
                assert_eq!(rig.run(&mut second, Operation::Read, 0, 4096, &[memory]), Ok(()));
                assert_eq!(rig.run(&mut third, Operation::Read, 0, 4096, &[memory]), Err(IoFailure::Device));
                drop((first, second, third));
                // One that goes while its queue is being created.
                for _ in 0..rig.now.0 % 7 {
                    rig.turn();
                }
                drop(rig.channel(0));
                for _ in 0..20 {
                    rig.turn();
                }
            }
            rig.end();
        },
    );
}

#[test]
fn events_are_heard_and_namespaces_grow_come_and_go() {
    with(
        |_| (),
        Options::default(),
        |mut rig| {
            let changed = || {
                AsyncEvent::default()
                    .with_kind(event::NOTICE)
                    .with_information(event::NAMESPACE_ATTRIBUTE)
                    .with_log_page(u32::from(log::CHANGED_NAMESPACES))
            };
            let await_report = |rig: &mut Rig, wanted: fn(&Report) -> bool| {
                let mut found = None;
                rig.until("a report", |rig| {
                    found = rig.driver.take_report().filter(wanted);
                    found.is_some()
                });
                found.expect("it was found")
            };
            let first = rig.driver.namespaces()[0].clone();
            {
                let mut state = rig.fake.state();
                state.disks.get_mut(&1).expect("it is there").identity.nsze = 8192;
                state.disks.insert(7, Disk::new(12, 10));
            }
            rig.fake.happen(changed());
            await_report(&mut rig, |report| *report == Report::NamespacesChanged);
            assert_eq!((first.state.num_blocks(), rig.driver.namespaces().len()), (8192, 2));
            rig.fake.state().disks.remove(&1);
            rig.fake.happen(changed());
            await_report(&mut rig, |report| *report == Report::NamespacesChanged);
            assert!(first.state.is_gone() && rig.driver.namespaces()[0].id == 7);

            let hot = AsyncEvent::default()
                .with_kind(event::HEALTH)
                .with_information(1)
                .with_log_page(u32::from(log::HEALTH));
            rig.fake.happen(hot);
            await_report(&mut rig, |report| matches!(report, Report::Event(_)));
            let report = await_report(&mut rig, |report| matches!(report, Report::Log(..)));
            let Report::Log(LogPage::Health, Ok(bytes)) = report else { panic!("{report:?}") };
            assert_eq!(stack::nvme::bits::Health::decode(&bytes).media_errors, 5);
            rig.end();
        },
    );
}

#[test]
fn fua_and_deallocation_are_said_to_the_controller() {
    with(
        |_| (),
        Options::default(),
        |mut rig| {
            let mut channel = rig.channel(0);
            let (memory, _mapping) = rig.memory(4096);
            assert_eq!(rig.run(&mut channel, Operation::Write { fua: true }, 0, 4096, &[memory]), Ok(()));
            let zeroes = Operation::WriteZeroes { deallocate: true, fua: true };
            assert_eq!(rig.run(&mut channel, zeroes, 0, 4096, &[]), Ok(()));
            let taken: Vec<(u8, u32)> = rig
                .fake
                .state()
                .taken
                .iter()
                .map(|command| (command.opcode, command.cdw10[2] >> 16 << 16))
                .collect();
            assert_eq!(taken, [(io::WRITE, Command::FUA), (io::WRITE_ZEROES, Command::FUA | Command::DEAC)]);
            drop(channel);
            rig.end();
        },
    );
}

#[test]
fn a_namespace_is_a_bdev() {
    let prepare = |state: &mut State| {
        state.disks.insert(3, Disk::new(12, 100));
        state.disks.get_mut(&3).expect("it is there").identity.nsattr = 1;
        state.disks.get_mut(&1).expect("it is there").uuid = [0; 16];
    };
    with(prepare, Options::default(), |mut rig| {
        let info = rig.driver.info().expect("it is ready").clone();
        let bdev = |rig: &Rig, at: usize| {
            let (namespace, link) = (rig.driver.namespaces()[at].clone(), rig.driver.link().clone());
            let options = Options::default();
            NvmeBdev::new("Nvme0", rig.driver.address(), info.clone(), namespace, link, options, false, 1)
        };
        let (disk, protected) = (bdev(&rig, 0), bdev(&rig, 1));
        assert_eq!((disk.name(), protected.name()), ("Nvme0n1", "Nvme0n3"));
        assert_eq!((disk.uuid(), protected.uuid()), (bdev(&rig, 0).uuid(), [12; 16]));
        assert!(disk.uuid() != [0; 16], "a namespace without an identity gets the same one each time");
        let geometry = disk.geometry();
        assert_eq!((geometry.block_size, geometry.num_blocks, geometry.read_only), (512, 4096, false));
        assert!(geometry.volatile_cache && geometry.discard && geometry.write_zeroes);
        assert!(protected.geometry().read_only && !protected.geometry().discard);
        assert_eq!(disk.driver_specific()["nvme"][0]["pci_address"], "0000:01:00.0");

        let (memory, _mapping) = rig.memory(8192);
        let run = |rig: &mut Rig, bdev: &NvmeBdev<_, _>, op: Op, offset: u64, len: u64| {
            let mut channel = bdev.channel(rig.platform()).expect("a channel");
            let windows = [memory.slice(0, len).expect("inside")];
            let segments =
                Segments(if matches!(op, Op::Read | Op::Write { .. }) { &windows[..] } else { &[] });
            channel.submit(rig.now, &Io { op, offset, len, segments }, 77).expect("there is room");
            let mut completions = Vec::new();
            rig.until("a completion", |rig| {
                channel.poll(rig.now, &mut completions);
                !completions.is_empty()
            });
            assert_eq!(completions[0].token, 77);
            completions[0].result
        };
        memory.fill(0, 8192, 0x77);
        let write = Op::Write { fua: true };
        assert_eq!(run(&mut rig, &disk, write, 1024, 8192), Ok(()));
        assert_eq!(rig.fake.state().disks[&1].bytes[1024..9216], [0x77; 8192]);
        assert_eq!(run(&mut rig, &disk, Op::Read, 0, 4096), Ok(()));
        assert_eq!(memory.load_u64(0, Relaxed), 0xeeee_eeee_eeee_eeee);
        assert_eq!(run(&mut rig, &disk, Op::Discard, 0, 1024), Ok(()));
        assert_eq!(run(&mut rig, &disk, Op::WriteZeroes { unmap: false, fua: true }, 4096, 4096), Ok(()));
        assert_eq!(run(&mut rig, &disk, Op::Flush, 0, 0), Ok(()));
        assert_eq!(rig.fake.state().disks[&1].bytes[4096..8192], [0; 4096]);
        assert_eq!(run(&mut rig, &disk, Op::Read, 4096 * 512, 512), Err(IoError::OutOfRange));
        assert_eq!(run(&mut rig, &protected, write, 0, 4096), Err(IoError::ReadOnly));
        let dead = Status::UNRECOVERED_READ_ERROR.with_dnr(1);
        rig.fake.state().orders.statuses.push_back(dead);
        assert_eq!(run(&mut rig, &disk, Op::Read, 0, 512), Err(IoError::Medium(ErrorKind::Io)));
        rig.fake.state().orders.removed = true;
        rig.failed();
        assert_eq!(run(&mut rig, &disk, Op::Read, 0, 512), Err(IoError::Medium(ErrorKind::NotFound)));
        let counted = disk.statistics().total();
        assert_eq!((counted.kind(Kind::Read).ops, counted.errors()), (1, 3));
        rig.end();
    });
}

/// Whatever a controller says of itself, it is driven or given up, and nothing panics.
#[test]
fn whatever_a_controller_says_of_itself_is_survived() {
    on_core(None, |platform| {
        let mut numbers = Numbers(7);
        let (mut driven, mut given_up) = (0, 0);
        for _ in 0..400 {
            let fake = Arc::new(Fake::default());
            {
                let mut state = fake.state();
                scramble(&mut state, &mut numbers);
            }
            let options = Options { admin_timeout: Duration::from_secs(2), ..Options::default() };
            let mut rig = Rig::new(&platform, fake, options);
            rig.until("an end", |rig| !matches!(rig.driver.standing(), Standing::Starting));
            if rig.driver.standing() == Standing::Ready {
                driven += 1;
                if !rig.driver.namespaces().is_empty() {
                    let mut channel = rig.channel(0);
                    let (memory, _mapping) = rig.memory(1 << 20);
                    let block = u64::from(rig.driver.namespaces()[0].block_size);
                    let _ = rig.run(
                        &mut channel,
                        Operation::Read,
                        0,
                        64 * block,
                        &[memory.slice(0, 64 * block).expect("inside")],
                    );
                    let _ = rig.run(
                        &mut channel,
                        Operation::WriteZeroes { deallocate: true, fua: false },
                        0,
                        block,
                        &[],
                    );
                }
            } else {
                given_up += 1;
            }
            rig.driver.close();
            rig.until("the end", |rig| rig.driver.standing() == Standing::Closed);
        }
        assert!(driven > 50 && given_up > 50, "{driven} driven, {given_up} given up");
    });
}

/// Changes some of the bytes that the controller says of itself.
fn scramble(state: &mut State, numbers: &mut Numbers) {
    let mut bytes = vec![0; 4096];
    for _ in 0..numbers.below(3) {
        let bit = 1_u64 << numbers.below(64);
        if bit & (1 << 36 | 0xf << 48) == 0 || numbers.below(8) == 0 {
            state.capabilities.0 ^= bit;
        }
    }
    state.identity.encode(&mut bytes);
    for _ in 0..numbers.below(4) {
        let places = [77, 111, 256, 257, 258, 259, 512, 513, 520, 525, 536, 128];
        bytes[places[numbers.below(12) as usize]] = numbers.below(256) as u8;
    }
    state.identity = stack::nvme::bits::IdentifyController::decode(&bytes);
    state.nvm_identity.wzsl = numbers.below(256) as u8;
    state.nvm_identity.dmrsl = numbers.below(3) as u32;
    let disk = state.disks.get_mut(&1).expect("it is there");
    disk.identity.encode(&mut bytes);
    for _ in 0..numbers.below(4) {
        bytes[numbers.below(132) as usize] = numbers.below(256) as u8;
    }
    disk.identity = stack::nvme::bits::IdentifyNamespace::decode(&bytes);
    if numbers.below(8) == 0 {
        let statuses = [Status::INVALID_OPCODE, Status::INTERNAL_ERROR, Status(0x7ff)];
        let opcode = [2, 5, 1, 6, 9, 0x0c, 0x7c][numbers.below(7) as usize];
        state.orders.refuse_admin = Some((opcode, statuses[numbers.below(3) as usize]));
    }
}
