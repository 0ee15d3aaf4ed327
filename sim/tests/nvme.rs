//! The fake NVMe controller, driven by a small driver of its own: what it does when nothing goes wrong, whatever controller
//! was drawn, and what each fault does to it.

mod common;

use common::nvme::{Nvme, pause, rang, script, small, until, world_with};
use common::{Does, finish, spawn};
use runtime::{Instant, Platform, Registers, Window};
use sim::faults::FaultKind;
use sim::memory::SimWindow;
use sim::nvme::{Counts, NamespaceProfile, Profile, ShadowStyle};
use sim::rng::Rng;
use sim::scheduler;
use sim::world::{self, Step};
use stack::nvme::bits::{
    AsyncEvent, AsyncEventConfig, Command, Configuration, ControllerStatus, DsmRange, IdDescriptors,
    IdentifyController, IdentifyNamespace, PAGE, QueueCount, SglDescriptor, Status, cns, event, feature, io,
    log, register,
};
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

/// Runs a test on a controller, with one kind of fault or none; what the controller did.
fn on<F: Future<Output = ()> + 'static>(
    seed: u64,
    profile: Profile,
    faults: &[(FaultKind, u32, u64)],
    act: impl Fn(Nvme) -> F + Send + Sync + 'static,
) -> Counts {
    let (machine, drive) = world_with(seed, profile, faults);
    let act = Arc::new(act);
    let program = script(move |platform| {
        let act = Arc::clone(&act);
        async move { act(Nvme::begin(&platform).await).await }
    });
    spawn(machine, &program);
    finish();
    let counts = world::with(|world| world.nvme(drive).counts);
    world::clear();
    counts
}

/// Content of a block, in which every word says which block and which version it is.
fn pattern(lba: u64, blocks: u64, block_size: u64, version: u64) -> Vec<u8> {
    (0..blocks * block_size / 8)
        .flat_map(|word| (version << 32 | (lba + word * 8 / block_size) << 16 | (word % 64)).to_le_bytes())
        .collect()
}

/// A command on a range with its data at `offset` of `window`, described by PRPs, or by SGLs cut at odd places.
fn with_data(nvme: &Nvme, command: Command, window: &SimWindow, len: u64, sgl: bool) -> Command {
    let address = nvme.address(window);
    if sgl {
        let list = nvme.pages(1);
        let cut = (len / 3) & !3;
        let descriptors = [
            SglDescriptor::data_block(address, cut as u32),
            SglDescriptor::data_block(address + cut, (len - cut) as u32),
        ];
        for (index, descriptor) in descriptors.iter().enumerate() {
            for (word, value) in descriptor.words().into_iter().enumerate() {
                list.store_u64(16 * index as u64 + 8 * word as u64, value, Relaxed);
            }
        }
        return command.with_sgl(SglDescriptor::last_segment(nvme.address(&list), 32));
    }
    let first = PAGE - address % PAGE;
    if len <= first {
        return command.with_prps(address, 0);
    }
    if len <= first + PAGE {
        return command.with_prps(address, address + first);
    }
    // The list begins near the end of its page, so that it goes on in another.
    let (list, more) = (nvme.pages(1), nvme.pages(1));
    let entries: Vec<u64> =
        (0..(len - first).div_ceil(PAGE)).map(|page| address + first + page * PAGE).collect();
    let store = |window: &SimWindow, at: u64, value| {
        window.store_u64(at, value, Relaxed);
    };
    let at = PAGE - 16;
    store(&list, at, entries[0]);
    if entries.len() == 2 {
        store(&list, at + 8, entries[1]);
    } else {
        store(&list, at + 8, nvme.address(&more));
        for (index, entry) in entries[1..].iter().enumerate() {
            store(&more, 8 * index as u64, *entry);
        }
    }
    command.with_prps(address, nvme.address(&list) + at)
}

/// Brings a drawn controller up and does everything once; what must hold of any legal one.
async fn everything(mut nvme: Nvme) {
    let controller =
        IdentifyController::decode(&nvme.identify(cns::CONTROLLER, 0).await.expect("identified"));
    assert_eq!((controller.sqes, controller.cqes, controller.nn), (0x66, 0x44, 2));
    let list = nvme.identify(cns::ACTIVE_NAMESPACES, 0).await.expect("identified");
    assert_eq!(list[..12], [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    if controller.ver >= 0x0001_0300 {
        let bytes = nvme.identify(cns::NAMESPACE_DESCRIPTORS, 1).await.expect("identified");
        assert_eq!(IdDescriptors(&bytes).count(), 2);
    }
    let refused = nvme.identify(cns::NAMESPACE, 3).await.expect_err("there are two");
    assert_eq!(refused.code(), Status::INVALID_NAMESPACE);
    let asked = QueueCount::default().with_submission(1).with_completion(1).0;
    let given = nvme.admin(Command::set_features(feature::NUMBER_OF_QUEUES, asked)).await;
    assert!(given.status.is_success());
    let config = AsyncEventConfig::default().with_namespace_attribute(1).0;
    assert!(nvme.admin(Command::set_features(feature::ASYNC_EVENT_CONFIG, config)).await.status.is_success());
    let kept = nvme.admin(Command::get_features(feature::ASYNC_EVENT_CONFIG)).await;
    assert!(kept.status.is_success() && kept.result == config, "a result is there with its completion");
    nvme.shadow_doorbells().await;
    let entries = nvme.capabilities.mqes().min(15) as u16 + 1;
    let mut pair = nvme.create(1, entries, Some(0)).await;
    for nsid in [1, 2] {
        let namespace = nvme.identify(cns::NAMESPACE, nsid).await.expect("identified");
        let namespace = IdentifyNamespace::decode(&namespace);
        let block = 1 << stack::nvme::bits::LbaFormat(namespace.lbaf[0]).lbads();
        let most = if controller.mdts == 0 { 8 * PAGE } else { (PAGE << controller.mdts).min(8 * PAGE) };
        let data = nvme.pages(9);
        for (version, len) in [(1, block), (2, most), (3, PAGE.max(block))] {
            for sgl in [false, true] {
                if sgl && controller.sgls & 3 == 0 {
                    continue;
                }
                let (lba, blocks) = (version, len / block);
                let content = pattern(lba, blocks, block, version);
                let window = data.slice(8 * (version & 1), len).expect("inside");
                window.write(0, &content);
                let fua = if version == 2 { Command::FUA } else { 0 };
                let write = Command::on_range(io::WRITE, nsid, lba, blocks as u32, fua);
                let status = nvme.run(&mut pair, with_data(&nvme, write, &window, len, sgl)).await.status;
                assert!(status.is_success(), "{status}");
                window.fill(0, len, 0xee);
                let read = Command::on_range(io::READ, nsid, lba, blocks as u32, 0);
                let status = nvme.run(&mut pair, with_data(&nvme, read, &window, len, sgl)).await.status;
                assert!(status.is_success(), "{status}");
                let mut seen = vec![0; len as usize];
                window.read(0, &mut seen);
                assert!(seen == content, "what was written is read");
                if controller.oncs & IdentifyController::ONCS_COMPARE != 0 {
                    let compare = Command::on_range(io::COMPARE, nsid, lba, blocks as u32, 0);
                    let compare = with_data(&nvme, compare, &window, len, sgl);
                    assert!(nvme.run(&mut pair, compare).await.status.is_success());
                    window.write(0, &[1]);
                    let status = nvme.run(&mut pair, compare).await.status;
                    assert_eq!(status.code(), Status::COMPARE_FAILURE);
                }
            }
        }
        assert!(nvme.run(&mut pair, Command::flush(nsid)).await.status.is_success());
        let beyond =
            Command::on_range(io::READ, nsid, namespace.nsze, 1, 0).with_prps(nvme.address(&data), 0);
        assert_eq!(nvme.run(&mut pair, beyond).await.status.code(), Status::LBA_OUT_OF_RANGE);
        if controller.oncs & IdentifyController::ONCS_WRITE_ZEROES != 0 {
            let zeroes = Command::on_range(io::WRITE_ZEROES, nsid, 2, 1, 0);
            assert!(nvme.run(&mut pair, zeroes).await.status.is_success());
        }
        if controller.oncs & IdentifyController::ONCS_DATASET_MANAGEMENT != 0 {
            let mut range = [0; DsmRange::LEN];
            DsmRange { attributes: 0, blocks: 2, slba: 3 }.encode(&mut range);
            data.write(0, &range);
            let command = Command::deallocate(nsid, 1).with_prps(nvme.address(&data), 0);
            assert!(nvme.run(&mut pair, command).await.status.is_success());
        }
    }
    assert!(nvme.admin(Command::delete_sq(1)).await.status.is_success());
    assert!(nvme.admin(Command::delete_cq(1)).await.status.is_success());
    let shutdown = Configuration(nvme.registers.load_u32(register::CC)).with_shn(Configuration::SHN_NORMAL);
    nvme.registers.store_u32(register::CC, shutdown.0);
    let complete = || nvme.status().shst() == ControllerStatus::SHST_COMPLETE;
    assert!(until(&nvme.platform, 1_000_000_000, complete).await);
    nvme.end();
}

fn drawn(seed: u64) -> Profile {
    let namespaces = vec![NamespaceProfile::plain(256, 512), NamespaceProfile::plain(64, 4096)];
    Profile::draw(namespaces, &mut Rng::new(seed, 77))
}

#[test]
fn any_controller_does_what_the_specification_says() {
    let mut sum = Counts::default();
    for seed in 0..80 {
        let counts = on(seed, drawn(seed), &[], everything);
        sum.shadow_moves += counts.shadow_moves;
        sum.armed += counts.armed;
        sum.full_queues += counts.full_queues;
    }
    assert!(sum.shadow_moves > 0 && sum.armed > 0 && sum.full_queues > 0, "{sum:?}");
}

#[test]
fn one_seed_is_one_run() {
    let run = |seed| {
        let (machine, _) = world_with(seed, drawn(seed), &[(FaultKind::NvmeSlow, 4, 9)]);
        spawn(machine, &script(|platform| async move { everything(Nvme::begin(&platform).await).await }));
        finish();
        let trace = world::with(|world| world.trace().finish());
        world::clear();
        trace
    };
    for seed in 0..4 {
        assert_eq!(run(seed), run(seed));
    }
    assert_ne!(run(0), run(1));
}

/// Keeps a queue of sixteen entries busy with flushes, eighty of them, over shadow doorbells: whether all came back. At the
/// queue's wrap a driver always writes the register, which mends what was lost: it is rare.
fn busy(seed: u64, style: Option<ShadowStyle>, fenced: bool) -> bool {
    let done = Arc::new(Mutex::new(false));
    let tells = Arc::clone(&done);
    on(seed, Profile { shadow: style, latency_ns: (100, 3_000), ..small() }, &[], move |mut nvme| {
        let tells = Arc::clone(&tells);
        async move {
            assert_eq!(nvme.shadow_doorbells().await, style.is_some());
            nvme.fenced = fenced;
            let mut pair = nvme.create(1, 16, None).await;
            let (mut out, mut left, mut ids) = (0, 80, BTreeSet::new());
            let mut last = nvme.platform.now();
            while out + left > 0 && nvme.platform.now().0 - last.0 < 10_000_000 {
                if left > 0 && out < 3 {
                    ids.insert(nvme.submit(&mut pair, Command::flush(1)));
                    (out, left) = (out + 1, left - 1);
                }
                while let Some(completion) = nvme.next(&mut pair) {
                    assert!(completion.status.is_success() && ids.remove(&completion.id), "once each");
                    out -= 1;
                    last = nvme.platform.now();
                }
                pause().await;
            }
            *tells.lock().expect("one thread") = out + left == 0;
            nvme.end();
        }
    });
    *done.lock().expect("one thread")
}

#[test]
fn shadow_doorbells_lose_nothing_to_a_driver_that_fences_and_something_to_one_that_does_not() {
    let styles = [false, true].into_iter().flat_map(|mirrors| {
        [0, 1].into_iter().map(move |looks| ShadowStyle { mirrors, zeroes: mirrors, looks })
    });
    for style in styles {
        for seed in 0..40 {
            assert!(busy(seed, Some(style), true), "seed {seed}, {style:?}");
        }
        let lost = (0..400).any(|seed| !busy(seed, Some(style), false));
        assert!(lost, "without the fence some seeds lose a doorbell: {style:?}");
    }
    assert!((0..40).all(|seed| busy(seed, None, true)));
}

#[test]
fn a_full_completion_queue_waits_for_its_head() {
    for (seed, style) in (0..60).map(|seed| {
        let style = ShadowStyle { mirrors: seed % 2 == 0, zeroes: true, looks: (seed % 3) as u8 };
        (seed, (seed % 4 > 1).then_some(style))
    }) {
        let profile = Profile { shadow: style, latency_ns: (100, 3_000), ..small() };
        let counts = on(seed, profile, &[], |mut nvme| async move {
            nvme.shadow_doorbells().await;
            let mut pair = nvme.create(1, 4, None).await;
            for round in 0..5_u16 {
                for _ in 0..3 {
                    nvme.submit(&mut pair, Command::flush(1));
                }
                // Longer than they take: the queue is full when the first is taken.
                until(&nvme.platform, 400_000, || false).await;
                let mut taken = BTreeSet::new();
                until(&nvme.platform, 10_000_000, || {
                    taken.extend(nvme.next(&mut pair).map(|completion| completion.id));
                    taken.len() == 3
                })
                .await;
                assert_eq!(taken, (3 * round..3 * round + 3).collect());
            }
            nvme.end();
        });
        assert!(counts.full_queues >= 5, "{counts:?}");
    }
}

#[test]
fn commands_overtake_each_other() {
    let overtaken: u64 = (0..10)
        .map(|seed| {
            let counts = on(seed, small(), &[], |mut nvme| async move {
                let mut pair = nvme.create(1, 64, None).await;
                for _ in 0..60 {
                    nvme.submit(&mut pair, Command::flush(1));
                }
                let mut order = Vec::new();
                while order.len() < 60 {
                    order.extend(nvme.next(&mut pair).map(|completion| completion.id));
                    pause().await;
                }
                assert!(!order.is_sorted());
                nvme.end();
            });
            counts.overtaken
        })
        .sum();
    assert!(overtaken > 0);
}

#[test]
fn memory_that_is_not_mapped_is_not_reached() {
    on(1, small(), &[], |mut nvme| async move {
        let mut pair = nvme.create(1, 8, None).await;
        let nowhere = 0x12_3456_7000;
        for command in [
            Command::on_range(io::READ, 1, 0, 1, 0).with_prps(nowhere, 0),
            Command::on_range(io::WRITE, 1, 0, 1, 0).with_prps(nowhere, 0),
            Command::on_range(io::READ, 1, 0, 32, 0).with_prps(nvme.address(&nvme.pages(1)), nowhere),
        ] {
            let status = nvme.run(&mut pair, command).await.status;
            assert_eq!(status.code(), Status::DATA_TRANSFER_ERROR, "{status}");
        }
        assert_eq!(world::with(|world| world.refused_accesses()), 3);
        nvme.end();
    });
}

#[test]
fn an_event_is_reported_once_until_its_log_page_is_read() {
    on(1, small(), &[], |mut nvme| async move {
        let config = AsyncEventConfig::default().with_namespace_attribute(1).0;
        assert!(
            nvme.admin(Command::set_features(feature::ASYNC_EVENT_CONFIG, config)).await.status.is_success()
        );
        let (first, second) = (
            nvme.submit_admin(Command::async_event_request()),
            nvme.submit_admin(Command::async_event_request()),
        );
        let change = |blocks| world::with(|world| world.change_namespace(0, 1, blocks, true));
        let platform = nvme.platform.clone();
        change(300);
        let mut seen = None;
        until(&platform, 1_000_000, || {
            seen = seen.or(nvme.next_admin());
            seen.is_some()
        })
        .await;
        let reported = seen.expect("an event");
        let event = AsyncEvent(reported.result);
        assert_eq!(reported.id, first);
        assert_eq!((event.kind(), event.information()), (event::NOTICE, event::NAMESPACE_ATTRIBUTE));
        change(400);
        assert!(!until(&platform, 1_000_000, || nvme.next_admin().is_some()).await, "masked");
        let page = nvme.pages(1);
        let read = Command::get_log_page(log::CHANGED_NAMESPACES, u32::MAX, 4096);
        nvme.submit_admin(read.with_prps(nvme.address(&page), 0));
        let mut ids = BTreeSet::new();
        until(&platform, 1_000_000, || {
            ids.extend(nvme.next_admin().map(|completion| completion.id));
            ids.len() == 2
        })
        .await;
        assert!(ids.contains(&second), "the second change is reported");
        let mut list = [0; 8];
        page.read(0, &mut list);
        assert_eq!(list, [1, 0, 0, 0, 0, 0, 0, 0]);
        let namespace = nvme.identify(cns::NAMESPACE, 1).await;
        assert_eq!(IdentifyNamespace::decode(&namespace.expect("identified")).nsze, 400);
        nvme.end();
    });
}

/// The status of one write of four blocks under a fault that always strikes, and the content it left.
fn write_under(kind: FaultKind, seed: u64) -> (Status, Vec<u8>) {
    let seen = Arc::new(Mutex::new(None));
    let tells = Arc::clone(&seen);
    on(seed, small(), &[(kind, 1, u64::MAX)], move |mut nvme| {
        let tells = Arc::clone(&tells);
        async move {
            let mut pair = nvme.create(1, 8, None).await;
            let data = nvme.pages(1);
            data.fill(0, 2048, 7);
            let write = Command::on_range(io::WRITE, 1, 0, 4, 0).with_prps(nvme.address(&data), 0);
            let status = nvme.run(&mut pair, write).await.status;
            let content = world::with(|world| {
                let disk = world.nvme(0).namespaces[0].disk;
                world.disk_content(disk).iter().step_by(512).take(4).copied().collect()
            });
            *tells.lock().expect("one thread") = Some((status, content));
            nvme.end();
        }
    });
    let mut seen = seen.lock().expect("one thread");
    seen.take().expect("it ended")
}

#[test]
fn commands_fail_as_their_faults_say() {
    assert_eq!(write_under(FaultKind::NvmeSlow, 1), (Status::SUCCESS, vec![7; 4]));
    let failed: BTreeSet<_> = (0..20)
        .map(|seed| {
            let (status, content) = write_under(FaultKind::NvmeMediaError, seed);
            assert_eq!((status.code(), content), (Status::WRITE_FAULT, vec![0; 4]));
            status.dnr()
        })
        .collect();
    assert_eq!(failed, BTreeSet::from([0, 1]));
    let transient: BTreeSet<_> = (0..60)
        .map(|seed| {
            let (status, content) = write_under(FaultKind::NvmeTransient, seed);
            assert_eq!((status.dnr(), content), (0, vec![0; 4]));
            (status.code().0, status.crd())
        })
        .collect();
    assert!(transient.len() > 8, "{transient:?}");
    let torn: BTreeSet<_> =
        (0..20).map(|seed| write_under(FaultKind::NvmeTornWrite, seed)).map(|(_, content)| content).collect();
    assert_eq!(torn, BTreeSet::from([vec![7, 0, 0, 0], vec![7, 7, 0, 0], vec![7, 7, 7, 0]]));
}

#[test]
fn a_command_that_is_held_is_aborted_or_the_abort_comes_too_late() {
    for late in [false, true] {
        let mut faults = vec![(FaultKind::NvmeHeld, 1, 1)];
        if late {
            faults.push((FaultKind::NvmeAbortLate, 1, 1));
        }
        let (machine, drive) = world_with(1, small(), &faults);
        let program = script(move |platform| async move {
            let mut nvme = Nvme::begin(&platform).await;
            // An Asynchronous Event Request is held, and aborted like any command.
            let held = nvme.submit_admin(Command::async_event_request());
            let platform = nvme.platform.clone();
            assert!(!until(&platform, 5_000_000, || nvme.next_admin().is_some()).await);
            let abort = nvme.submit_admin(Command::abort(0, held));
            let mut ended = Vec::new();
            until(&platform, 5_000_000, || {
                ended.extend(nvme.next_admin());
                false
            })
            .await;
            let of = |id| ended.iter().find(|completion| completion.id == id);
            assert_eq!(of(abort).expect("the abort ends").result, u32::from(late));
            let status = of(held).map(|completion| completion.status.code());
            assert_eq!(status, (!late).then_some(Status::ABORT_REQUESTED), "late: it goes on");
            nvme.end();
        });
        spawn(machine, &program);
        finish();
        assert_eq!(world::with(|world| world.nvme(drive).counts.aborted), u64::from(!late));
        world::clear();
    }
}

#[test]
fn a_controller_may_stay_where_it_is() {
    let begins = |kind: FaultKind, seed: u64| {
        let seen = Arc::new(Mutex::new((false, 0)));
        let tells = Arc::clone(&seen);
        let (machine, _) = world_with(seed, Profile { timeout: 4, ..small() }, &[(kind, 1, 1)]);
        let program = script(move |platform| {
            let tells = Arc::clone(&tells);
            async move {
                let mut nvme = Nvme::open(&platform);
                let mut tries = 0;
                loop {
                    tries += 1;
                    if nvme.disable().await && nvme.enable().await && nvme.disable().await {
                        break;
                    }
                    nvme.reset_function().await.expect("reset");
                    nvme.master();
                }
                *tells.lock().expect("one thread") = (true, tries);
                nvme.end();
            }
        });
        spawn(machine, &program);
        finish();
        world::clear();
        *seen.lock().expect("one thread")
    };
    for kind in [FaultKind::NvmeEnable, FaultKind::NvmeDisable] {
        let tries: BTreeSet<_> = (0..30).map(|seed| begins(kind, seed)).collect();
        assert_eq!(
            tries,
            BTreeSet::from([(true, 1), (true, 2)]),
            "{kind:?}: late within the time-out, or beyond"
        );
    }
}

#[test]
fn a_queue_that_is_stuck_and_a_controller_that_is_fatal_need_a_reset() {
    for kind in [FaultKind::NvmeQueueStuck, FaultKind::NvmeFatal] {
        for seed in 0..10 {
            let (machine, _) = world_with(seed, small(), &[(kind, 30, 1)]);
            let program = script(move |platform| async move {
                let mut nvme = Nvme::begin(&platform).await;
                let mut resets = 0;
                'again: loop {
                    let mut pair = {
                        let created = nvme.try_create(1, 8, None).await;
                        let Some(pair) = created else {
                            assert_eq!(nvme.status().cfs(), 1);
                            resets += 1;
                            assert!(nvme.disable().await && nvme.enable().await);
                            continue;
                        };
                        pair
                    };
                    for _ in 0..40 {
                        if nvme.attempt(&mut pair, Command::flush(1)).await.is_none() {
                            assert_eq!(nvme.status().cfs() == 1, kind == FaultKind::NvmeFatal);
                            resets += 1;
                            assert!(nvme.disable().await && nvme.enable().await);
                            continue 'again;
                        }
                    }
                    break;
                }
                assert_eq!(resets, world::with(|world| world.faults().count(kind)));
                nvme.end();
            });
            spawn(machine, &program);
            finish();
            world::clear();
        }
    }
}

#[test]
fn a_drive_that_is_pulled_out_is_all_ones_and_comes_back_with_its_media() {
    for seed in 0..10 {
        on(seed, small(), &[], |mut nvme| async move {
            let mut pair = nvme.create(1, 8, None).await;
            let data = nvme.pages(1);
            data.fill(0, 512, 7);
            let write = Command::on_range(io::WRITE, 1, 0, 1, Command::FUA).with_prps(nvme.address(&data), 0);
            assert!(nvme.run(&mut pair, write).await.status.is_success());
            nvme.submit(&mut pair, Command::flush(1));
            world::with(|world| world.unplug(world.nvme(0).function));
            assert_eq!(nvme.registers.load_u32(register::CSTS), u32::MAX);
            let platform = nvme.platform.clone();
            drop(nvme);
            world::with(|world| world.plug_drive(0));
            let mut nvme = Nvme::begin(&platform).await;
            let mut pair = nvme.create(1, 8, None).await;
            let data = nvme.pages(1);
            let read = Command::on_range(io::READ, 1, 0, 1, 0).with_prps(nvme.address(&data), 0);
            assert!(nvme.run(&mut pair, read).await.status.is_success());
            assert_eq!(data.load_u8(511, Relaxed), 7);
            nvme.end();
        });
    }
}

/// Interrupts of twenty flushes, one after the other: how many were seen.
fn interrupts(kind: Option<FaultKind>, coalesced: u32) -> u64 {
    let faults: Vec<_> = kind.map(|kind| (kind, 1, u64::MAX)).into_iter().collect();
    let counts = on(3, small(), &faults, move |mut nvme| async move {
        let vectors = nvme.vectors(2);
        assert!(nvme.admin(Command::set_features(8, coalesced)).await.status.is_success());
        let mut pair = nvme.create(1, 8, Some(1)).await;
        let mut seen = 0;
        for _ in 0..20 {
            assert!(nvme.run(&mut pair, Command::flush(1)).await.status.is_success());
            until(&nvme.platform, 100_000, || {
                seen += u32::from(rang(&vectors[1..]));
                false
            })
            .await;
        }
        match (kind, coalesced) {
            (Some(FaultKind::NvmeInterruptLost), _) => assert_eq!(seen, 0),
            (_, 0) => assert_eq!(seen, 20),
            _ => assert!((1..20).contains(&seen), "{seen}"),
        }
        nvme.end();
    });
    counts.interrupts
}

#[test]
fn interrupts_come_are_coalesced_lost_or_too_many() {
    let plain = interrupts(None, 0);
    assert!(interrupts(None, 0x4004) < plain);
    assert_eq!(interrupts(Some(FaultKind::NvmeInterruptLost), 0), 0);
    assert!(interrupts(Some(FaultKind::NvmeInterruptExtra), 0) > plain);
}

#[test]
fn an_entry_in_two_halves_is_whole_when_its_phase_says_so() {
    for seed in 0..40 {
        // The driver asserts the identifiers of each completion that it takes.
        on(seed, drawn(seed), &[(FaultKind::NvmeSplitCompletion, 1, u64::MAX)], everything);
    }
}

#[test]
fn nothing_happens_to_memory_or_media_after_a_reset() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..40 {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let tells = Arc::clone(&seen);
        let by_function = seed % 2 == 0;
        on(seed, Profile { latency_ns: (1_000, 3_000_000), ..small() }, &[], move |mut nvme| {
            let tells = Arc::clone(&tells);
            async move {
                let mut pair = nvme.create(1, 16, None).await;
                let (data, reads) = (nvme.pages(1), nvme.pages(8));
                data.fill(0, PAGE, 7);
                for lba in 0..8 {
                    let write = Command::on_range(io::WRITE, 1, lba, 1, 0);
                    nvme.submit(&mut pair, write.with_prps(nvme.address(&data), 0));
                    let read = Command::on_range(io::READ, 1, 100, 1, 0);
                    let page = reads.slice(lba * PAGE, PAGE).expect("inside");
                    page.fill(0, PAGE, 0xee);
                    nvme.submit(&mut pair, read.with_prps(nvme.address(&page), 0));
                }
                until(&nvme.platform, 1_000_000, || false).await;
                let looks = || {
                    let mut memory = vec![0; 8 * PAGE as usize];
                    reads.read(0, &mut memory);
                    let media = world::with(|world| {
                        let disk = world.nvme(0).namespaces[0].disk;
                        world.disk_content(disk).to_vec()
                    });
                    (memory, media)
                };
                if by_function {
                    nvme.reset_function().await.expect("reset");
                } else {
                    assert!(nvme.disable().await);
                }
                let after = looks();
                until(&nvme.platform, 10_000_000, || false).await;
                assert!(looks() == after, "nothing changes");
                // Nor when it is ready again.
                nvme.master();
                assert!(nvme.enable().await);
                until(&nvme.platform, 10_000_000, || false).await;
                assert!(looks() == after, "nothing is left of what it was told");
                let written = after.1.iter().step_by(512).filter(|byte| **byte == 7).count();
                tells.lock().expect("one thread").push(written);
                nvme.end();
            }
        });
        outcomes.extend(seen.lock().expect("one thread").iter().copied());
    }
    assert!(outcomes.len() > 3, "some had happened, some had not: {outcomes:?}");
}

/// Writes with and without FUA and a flush, and loses the power; the first byte of each block afterwards.
fn after_power_loss(seed: u64) -> Vec<u8> {
    let mut profile = small();
    (profile.atomic, profile.atomic_power_fail) = (8, 4);
    let (machine, drive) = world_with(seed, profile, &[]);
    let program = script(move |platform| async move {
        let mut nvme = Nvme::begin(&platform).await;
        let mut pair = nvme.create(1, 8, None).await;
        let data = nvme.pages(2);
        data.fill(0, 2 * PAGE, 7);
        let [first, second] = [0, PAGE].map(|at| nvme.address(&data.slice(at, PAGE).expect("inside")));
        let write =
            |lba, blocks, fua| Command::on_range(io::WRITE, 1, lba, blocks, fua).with_prps(first, second);
        // Durable by flush, durable by FUA, within the atomic unit at an odd place, beyond it.
        for command in
            [write(0, 2, 0), Command::flush(1), write(2, 2, Command::FUA), write(5, 4, 0), write(16, 16, 0)]
        {
            assert!(nvme.run(&mut pair, command).await.status.is_success());
        }
        nvme.end();
    });
    spawn(machine, &program);
    finish();
    scheduler::power_loss(machine);
    let content = world::with(|world| {
        let disk = world.nvme(drive).namespaces[0].disk;
        world.disk_content(disk).iter().step_by(512).take(32).copied().collect()
    });
    world::clear();
    content
}

#[test]
fn power_loss_keeps_what_is_durable_and_tears_only_beyond_the_atomic_unit() {
    let all: BTreeSet<_> = (0..60).map(after_power_loss).collect();
    for content in &all {
        assert_eq!(content[..4], [7; 4], "flushed, or with FUA");
        assert!(matches!(content[5..9], [0, 0, 0, 0] | [7, 7, 7, 7]), "within the atomic unit: {content:?}");
    }
    let torn = |content: &&Vec<u8>| content[16..].contains(&0) && content[16..].contains(&7);
    assert!(all.iter().any(|content| torn(&content)), "beyond it some are torn");
}

/// A life that writes is killed; the next one resets the controller and looks. What was on the media at the reset, and
/// whether anything came later.
fn lives(seed: u64) -> (usize, bool, u64) {
    let faults = [(FaultKind::LateWrite, 1, u64::MAX), (FaultKind::LateDma, 1, u64::MAX)];
    let (machine, drive) = world_with(seed, Profile { latency_ns: (1_000, 300_000), ..small() }, &faults);
    let out = Arc::new(Mutex::new(false));
    let tells = Arc::clone(&out);
    let first = script(move |platform| {
        let tells = Arc::clone(&tells);
        async move {
            let mut nvme = Nvme::begin(&platform).await;
            let mut pair = nvme.create(1, 16, None).await;
            let data = nvme.pages(1);
            data.fill(0, PAGE, 7);
            for lba in 0..8 {
                let write = Command::on_range(io::WRITE, 1, lba, 1, 0);
                nvme.submit(&mut pair, write.with_prps(nvme.address(&data), 0));
            }
            until(&nvme.platform, 100_000, || false).await;
            *tells.lock().expect("one thread") = true;
            until(&nvme.platform, u64::MAX >> 2, || false).await;
        }
    });
    let written = move || {
        world::with(|world| {
            let disk = world.nvme(drive).namespaces[0].disk;
            world.disk_content(disk).iter().step_by(512).filter(|byte| **byte == 7).count()
        })
    };
    let seen = Arc::new(Mutex::new((0, false)));
    let tells = Arc::clone(&seen);
    let second = script(move |platform| {
        let tells = Arc::clone(&tells);
        async move {
            let nvme = Nvme::begin(&platform).await;
            let at_reset = written();
            until(&nvme.platform, 20_000_000, || false).await;
            *tells.lock().expect("one thread") = (at_reset, written() != at_reset);
            nvme.end();
        }
    });
    let process = spawn(machine, &first);
    let supervisor = Does(move || {
        if *out.lock().expect("one thread") {
            scheduler::kill(process);
            spawn(machine, &second);
            return Step::Done;
        }
        Step::Idle { until: Some(Instant(common::now_ns() + 2_000)) }
    });
    world::with(|world| world.add_model(Box::new(supervisor), false));
    finish();
    let late = world::with(|world| world.nvme(drive).counts.late_writes);
    world::clear();
    let (at_reset, later) = *seen.lock().expect("one thread");
    (at_reset, later, late)
}

#[test]
fn a_dead_process_s_writes_come_until_the_controller_is_reset_and_never_after() {
    // The next life is quick: of a hundred worlds, one has a write that comes between the death and the reset.
    let outcomes: Vec<_> = (0..600).map(lives).collect();
    assert!(outcomes.iter().all(|(_, later, _)| !later), "{outcomes:?}");
    assert!(outcomes.iter().any(|(.., late)| *late > 0), "some come after the death: {outcomes:?}");
    let written: BTreeSet<_> = outcomes.iter().map(|(written, ..)| *written).collect();
    assert!(written.len() > 3, "{written:?}");
}

#[test]
fn whatever_it_lies_about_is_said() {
    let mut different = 0;
    for seed in 0..40 {
        let (machine, _) = world_with(seed, small(), &[(FaultKind::NvmeLie, 2, u64::MAX)]);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let tells = Arc::clone(&seen);
        let program = script(move |platform| {
            let tells = Arc::clone(&tells);
            async move {
                let mut nvme = Nvme::open(&platform);
                nvme.capabilities = nvme.capabilities.with_dstrd(0).with_to(10);
                assert!(nvme.disable().await && nvme.enable().await);
                let mut said = nvme.identify(cns::CONTROLLER, 0).await.expect("identified").to_vec();
                said.extend(nvme.identify(cns::NAMESPACE, 1).await.expect("identified"));
                said.extend(nvme.registers.load_u64(register::CAP).to_le_bytes());
                *tells.lock().expect("one thread") = said;
                nvme.end();
            }
        });
        spawn(machine, &program);
        finish();
        let lies = world::with(|world| world.faults().count(FaultKind::NvmeLie));
        world::clear();
        different += u64::from(lies > 0);
        assert_eq!(seen.lock().expect("one thread").len(), 2 * 4096 + 8);
    }
    assert!(different > 30);
}
