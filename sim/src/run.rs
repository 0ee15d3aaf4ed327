//! One run: what a seed drew of a scenario (and, in a replay, the list of faults) to a verdict.

use crate::check::{DeviceCheckers, Observation, ladder};
use crate::faults::{Fault, FaultKind};
use crate::follow::Follower;
use crate::guest::Witness;
use crate::guest::vm::{Vm, VmOptions};
use crate::guest::workload::{Mix, Offer, Workload};
use crate::hostile::front_end::HostileFrontEnd;
use crate::hostile::guest::HostileGuest;
use crate::hostile::{self, Blind};
use crate::operator::{Call, Operator};
use crate::plan::{DrivesPlan, GuestPlan, Plan};
use crate::record::{Ear, Eye, Record};
use crate::report::Outcome;
use crate::rng::Numbers;
use crate::scenario::{BdevKind, Manners, RETRIES};
use crate::scheduler::{self, End};
use crate::supervisor::{Guest, Parts, Supervisor, TargetParts};
use crate::vmm::message::protocol;
use crate::vmm::order;
use crate::vmm::{LogReader, Vmm, VmmOptions};
use crate::world::{self, Detail, Judged, World};
use runtime::PciAddress;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// Bytes of a sector.
const SECTOR_BYTES: u64 = 512;
/// Number of the drive that no guest uses.
const SPARE_DRIVE: usize = 100;
/// Entries of its rings.
const HOSTILE_RING: u16 = 64;
/// Block size and atomic unit of the simulated disks.
const DISK_BLOCK: u32 = 512;

/// Runs a plan in this thread's world. With a `script` exactly those faults strike (a replay), else they are drawn.
/// `detail` is how much of a log is kept.
#[must_use]
pub fn run(plan: &Plan, script: Option<&[Fault]>, detail: Detail) -> Outcome {
    plan.numbers.set();
    world::create(plan.seed, plan.temper, plan.faults(script));
    world::with(|world| world.keep_log(detail));
    run_created(plan, script)
}

/// The same run, with somebody who follows it.
pub fn run_followed(plan: &Plan, script: Option<&[Fault]>, follower: Box<dyn Follower>) -> Outcome {
    plan.numbers.set();
    world::create(plan.seed, plan.temper, plan.faults(script));
    world::with(|world| world.follow(follower));
    run_created(plan, script)
}

/// Runs the world that was made for a plan.
fn run_created(plan: &Plan, script: Option<&[Fault]>) -> Outcome {
    let record = Rc::new(RefCell::new(Record::default()));
    world::with(|world| world.only_faults_ail_drives = true);
    let guests = build(plan, script, &record);
    let end = catch_unwind(AssertUnwindSafe(scheduler::run));
    if let Err(payload) = end {
        let text = scheduler::panic_text(&*payload);
        world::with(|world| world.fail("simulator", text));
    } else if end.is_ok_and(|end| end == End::Finished) {
        check_memory_of_devices();
        check_boundaries_of_drives();
        if script.is_none() {
            check_coverage(plan, &guests);
        }
    }
    let ios = guests.iter().map(|vm| vm.borrow().device.completed).sum();
    let requests = guests.iter().map(|vm| vm.borrow().device.made()).sum();
    let outcome = world::with(|world| Outcome {
        failure: world.failure().cloned(),
        trace: world.trace().finish(),
        requests,
        ios,
        kills: world.kills(),
        replayed: world.replayed(),
        faults: world.faults().struck().to_vec(),
        checks: all_checks(plan, world, &record.borrow()),
        reached: world.coverage.reached(),
        features: world.coverage.features(),
        steps: world.steps(),
        virtual_ns: world.now().0,
        log: world.take_log(),
    });
    world::clear();
    Numbers::default().set();
    outcome
}

/// What was checked how often: by the checkers, by the world itself, and by the IOMMU.
fn all_checks(plan: &Plan, world: &mut World, record: &Record) -> BTreeMap<&'static str, u64> {
    let mut checks = record.checks();
    checks.extend(world.judged.counts().into_iter().filter(|(_, count)| *count > 0));
    if plan.drives.is_some() {
        checks.insert("iommu", world.device_accesses());
        checks.insert("boundaries", world.nvme_total(|counts| counts.commands));
        if ladder::is_judge(world.faults().struck()) {
            checks.insert("ladder", world.nvme_total(|counts| counts.commands));
        }
    }
    checks
}

/// The driver never lets a drive touch what is not mapped for it. (One that ends commands before it has done them goes on to
/// touch their memory, whatever the driver does.)
fn check_memory_of_devices() {
    world::with(|world| {
        let refused = world.refused_accesses();
        let betrayed = world.faults().struck().iter().any(crate::faults::Fault::betrays);
        if refused > 0 && !betrayed {
            world
                .fail("iommu", format!("{refused} accesses of drives to memory that is not mapped for them"));
        }
    });
}

/// No command lies across a boundary of its namespace, unless the drive said another one.
fn check_boundaries_of_drives() {
    world::with(|world| {
        let crossed = world.nvme_total(|counts| counts.crossed);
        let betrayed = world.faults().struck().iter().any(crate::faults::Fault::betrays);
        if crossed > 0 && !betrayed {
            world.fail("boundaries", format!("{crossed} transfers across a boundary of their namespaces"));
        }
    });
}

/// A run that did too little proves nothing.
fn check_coverage(plan: &Plan, guests: &[crate::guest::vm::Shared]) {
    let wanted = plan.at_least;
    let ios: u64 = guests.iter().map(|vm| vm.borrow().device.completed).sum();
    world::with(|world| {
        world.judged.coverage += 1;
        let (kills, replayed) = (world.kills(), world.replayed());
        if ios < wanted.ios || kills < wanted.kills || replayed < wanted.replayed {
            let what = format!(
                "{ios} requests, {kills} deaths and {replayed} replayed requests, where the scenario wants at least {}, \
                 {} and {}",
                wanted.ios, wanted.kills, wanted.replayed
            );
            world.fail(Judged::COVERAGE, what);
        }
    });
}

/// Puts everything into the world.
fn build(
    plan: &Plan,
    script: Option<&[Fault]>,
    record: &Rc<RefCell<Record>>,
) -> Vec<crate::guest::vm::Shared> {
    let targets: Vec<TargetParts> = (0..=plan.other_targets)
        .map(|number| {
            let machine = plan.machine_of(number);
            if number == 0 || plan.apart {
                world::with(world::World::machine);
            }
            let operator = Operator::build(number, machine, plan.seed, plan.changes, record);
            TargetParts { machine, operator }
        })
        .collect();
    world::set_observer(Box::new(Ear(Rc::clone(record))));
    let power_loss = plan.may_strike(script, FaultKind::PowerLoss);
    let unplug = plan.fault(FaultKind::Unplug).is_some();
    let migrates = plan.fault(FaultKind::Migrate).is_some();
    let disk_may_fail = [FaultKind::DiskError, FaultKind::DiskBadRange, FaultKind::DiskBusy]
        .iter()
        .any(|&kind| plan.fault(kind).is_some());
    if let Some(orders) = &plan.drives {
        let DrivesPlan { timeout_us, admin_timeout_us, aborts, retries, .. } = *orders;
        let call = Call::SetNvmeOptions { timeout_us, admin_timeout_us, aborts, retries };
        targets[0].operator.borrow_mut().ask(call);
    }
    let mut guests = Vec::new();
    let mut machines = Vec::new();
    let mut on_images = Vec::new();
    let mut plugged_drives = BTreeMap::new();
    for (number, guest) in plan.guests.iter().enumerate() {
        let TargetParts { machine, operator } = &targets[usize::from(guest.target)];
        let machine = *machine;
        let (sectors, in_band) = (guest.sectors_max, guest.in_band > 0);
        let pulled = guest.drive.is_some() && plan.may_strike(script, FaultKind::NvmeRemoval);
        let checkers = DeviceCheckers::new(sectors, power_loss || pulled, unplug, in_band, plan.bound_ns);
        let mut eye = Eye::new(record, checkers);
        // Bdevs of several targets have the same names and identities: what tells them apart is whose they are.
        let rank = plan.guests[..number].iter().filter(|other| other.target == guest.target).count();
        let bdev = if guest.image { format!("image{number}") } else { format!("bdev{rank}") };
        let (path, controller) = (format!("/dev/bdev{number}"), format!("disk.{number}"));
        let mut drive = None;
        let (bdev, disk) = match plan.namespace_of(number) {
            Some((owner, nsid)) => {
                let name = drive_name(owner);
                if let Some(profile) = plan.drive_of(number) {
                    let address = drive_address(number);
                    let plugged = world::with(|world| world.plug_nvme(machine, address, profile));
                    operator.borrow_mut().ask(Call::AttachDrive(name.clone(), address));
                    plugged_drives.insert(number, plugged);
                }
                let plugged = plugged_drives[&owner];
                drive = Some((plugged, nsid));
                eye.watch_drive(plugged);
                let disk = world::with(|world| world.nvme(plugged).namespaces[nsid as usize - 1].disk);
                (format!("{name}n{nsid}"), Some(disk))
            }
            None => {
                let operator = &mut operator.borrow_mut();
                let disk = create_bdev(machine, guest.bdev, guest.sectors, (&bdev, &path), operator);
                (bdev, disk)
            }
        };
        operator.borrow_mut().ask(Call::CreateController(controller.clone(), bdev.clone(), guest.packed));
        let mut paths = vec![operator.borrow().socket(&controller)];
        if guest.image {
            let others = targets.iter().filter(|other| !Rc::ptr_eq(&other.operator, operator));
            paths.extend(others.map(|other| other.operator.borrow().socket(&controller)));
            on_images.push((guest, bdev.clone(), path, controller.clone()));
        }
        let options = VmOptions {
            number: number as u16,
            queues: guest.queues,
            regions: guest.regions,
            ring_size_max: guest.ring_sizes.iter().copied().max().unwrap_or(0),
            first_index: guest.first_index,
            workload: guest.workload,
            offer: Offer {
                capacity: guest.sectors,
                block_sectors: guest.block_sectors(),
                flush: false,
                discard: false,
                write_zeroes: false,
                read_only: false,
            },
        };
        let vm = Vm::build(&options, plan.seed, &eye);
        if let Some(requests) = &guest.requests {
            vm.borrow_mut().device.list(requests, guest.queues);
        }
        let calm = plan.faults.is_empty() && plan.guest_attacks + plan.front_end_attacks == 0;
        if calm || plan.is_undisturbed(script, guest) {
            // A world without faults need not heal: every request is bounded.
            eye.clone().saw(&Observation::Healed);
        }
        // One that is reset more often than a command is tried again fails commands, however well it is.
        let gives_up = plan.drives.as_ref().is_some_and(|orders| orders.retries < orders.resets.min(RETRIES));
        let drive_may_fail = gives_up
            || FaultKind::ALL.iter().any(|kind| kind.touches_drives() && plan.may_strike(script, *kind));
        vm.borrow_mut().device.disk_may_fail = match guest.bdev {
            BdevKind::Malloc => false,
            BdevKind::Uring | BdevKind::Aio => disk_may_fail,
            BdevKind::Nvme => drive_may_fail,
        };
        let options = VmmOptions {
            machine,
            paths,
            manners: match guest.manners {
                Manners::Qemu7 => order::Manners::Qemu7,
                Manners::Qemu11 => order::Manners::Qemu11,
                Manners::CloudHypervisor => order::Manners::CloudHypervisor,
                Manners::Any => order::Manners::Any,
            },
            protocol_features: protocol_features(guest, plan.seed),
            features: u64::MAX,
            in_band: guest.in_band,
            ring_sizes: guest.ring_sizes.clone(),
            seed: plan.seed,
        };
        let vmm = Vmm::build(options, Rc::clone(&vm), eye.clone());
        if migrates {
            LogReader::build(&vmm, number as u64, plan.seed);
        }
        machines.push(Rc::clone(&vm));
        guests.push(Guest::new(vm, vmm, eye, guest.clone(), disk, drive, bdev));
    }
    // The other targets come to an image after what is theirs: they may have to wait for it.
    for (guest, bdev, path, controller) in on_images {
        for (number, target) in targets.iter().enumerate() {
            let operator = &mut target.operator.borrow_mut();
            operator.shares(&bdev, &controller);
            if number != usize::from(guest.target) {
                operator.ask(Call::CreateFile(bdev.clone(), path.clone(), guest.bdev == BdevKind::Aio));
                operator.ask(Call::CreateController(controller.clone(), bdev.clone(), guest.packed));
            }
        }
    }
    for (number, target) in targets.iter().enumerate().filter(|_| plan.churn > 0) {
        let its: Vec<_> = guests
            .iter()
            .enumerate()
            .filter(|(_, guest)| usize::from(guest.plan.target) == number && !guest.plan.image)
            .map(|(at, guest)| (format!("disk.{at}"), guest.bdev.clone(), guest.plan.packed))
            .collect();
        target.operator.borrow_mut().add_churn(plan.churn, &its);
    }
    let TargetParts { machine, operator } = &targets[0];
    let machine = *machine;
    let mut drives: Vec<u32> = plugged_drives.values().copied().collect();
    if let Some(orders) = &plan.drives {
        let used: Vec<String> = plugged_drives.keys().map(|number| drive_name(*number)).collect();
        let address = drive_address(SPARE_DRIVE);
        if orders.swaps > 0 {
            drives.push(world::with(|world| world.plug_nvme(machine, address, orders.spare.clone())));
        }
        operator.borrow_mut().add_drive_changes(&used, orders.resets, orders.swaps, ("Spare", address));
    }
    let neighbours = build_neighbours(machine, plan, &mut operator.borrow_mut());
    let count = |script: &[Fault], kind| script.iter().filter(|fault| fault.kind == kind).count() as u64;
    Supervisor::build(Parts {
        plan: plan.clone(),
        targets,
        guests,
        neighbours,
        drives,
        script: script.map(|script| (count(script, FaultKind::Kill), count(script, FaultKind::PowerLoss))),
    });
    machines
}

/// What the operator calls the drive of a guest.
pub(crate) fn drive_name(number: usize) -> String {
    format!("Nvme{number}")
}

/// Where a drive sits.
fn drive_address(number: usize) -> PciAddress {
    PciAddress { domain: 0, bus: 1 + number as u8, device: 0, function: 0 }
}

/// Puts the hostile neighbours into the world.
fn build_neighbours(machine: u32, plan: &Plan, operator: &mut Operator) -> Vec<Rc<Cell<bool>>> {
    let mut neighbours = Vec::new();
    let mut controller = |name: &str| {
        let bdev = format!("{name}-bdev");
        let path = format!("/dev/{bdev}");
        create_bdev(machine, plan.hostile_bdev, hostile::SECTORS, (&bdev, &path), operator);
        operator.ask(Call::CreateController(name.to_owned(), bdev, plan.hostile_packed));
        operator.socket(name)
    };
    if plan.guest_attacks > 0 {
        let path = controller("hostile-guest");
        let mix = Mix { read: 1, write: 0, flush: 0, get_id: 0, discard: 0, write_zeroes: 0 };
        let workload = Workload {
            requests: 0,
            depth: 32,
            sectors_max: 8,
            mix,
            think_ns_max: 0,
            think: 0,
            odd_layout: 0,
            indirect: 0,
        };
        let offer = Offer {
            capacity: hostile::SECTORS,
            block_sectors: 1,
            flush: false,
            discard: false,
            write_zeroes: false,
            read_only: false,
        };
        let number = plan.guests.len() as u16;
        let options = VmOptions {
            number,
            queues: 2,
            regions: 2,
            ring_size_max: HOSTILE_RING,
            first_index: 0,
            workload,
            offer,
        };
        let vm = Vm::build(&options, plan.seed, &Blind);
        let options = VmmOptions {
            machine,
            paths: vec![path],
            manners: order::Manners::Any,
            protocol_features: protocol::MQ
                | protocol::REPLY_ACK
                | protocol::CONFIG
                | protocol::INFLIGHT_SHMFD,
            features: u64::MAX,
            in_band: 0,
            ring_sizes: vec![HOSTILE_RING; 2],
            seed: plan.seed,
        };
        let vmm = Vmm::build(options, Rc::clone(&vm), Blind);
        neighbours.push(HostileGuest::build(vm, vmm, plan.guest_attacks, plan.hostile_packed, plan.seed));
    }
    if plan.front_end_attacks > 0 {
        let path = controller("hostile-front-end");
        neighbours.push(HostileFrontEnd::build(
            machine,
            path,
            plan.front_end_attacks,
            plan.hostile_packed,
            plan.seed,
        ));
    }
    neighbours
}

/// Asks for a bdev, and makes the disk below it at this path, if it has one.
fn create_bdev(
    machine: u32,
    kind: BdevKind,
    sectors: u64,
    (name, path): (&str, &str),
    operator: &mut Operator,
) -> Option<u32> {
    if matches!(kind, BdevKind::Malloc | BdevKind::Nvme) {
        // A hostile neighbour needs no drive of its own.
        operator.ask(Call::CreateMalloc(name.to_owned(), sectors));
        return None;
    }
    let len = sectors * SECTOR_BYTES;
    let disk = world::with(|world| world.create_disk(machine, path, len, DISK_BLOCK, DISK_BLOCK));
    operator.ask(Call::CreateFile(name.to_owned(), path.to_owned(), kind == BdevKind::Aio));
    Some(disk)
}

/// What a front-end of these manners speaks: QEMU 7.2 and its elders know no memory slots for some back-ends, and none
/// but newer ones know the status. Whoever can migrate a machine has a dirty log.
fn protocol_features(guest: &GuestPlan, seed: u64) -> u64 {
    let mut features = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::INFLIGHT_SHMFD;
    let bits = crate::rng::Rng::new(seed, 70_000).word();
    for (bit, also) in [
        (0, protocol::BACKEND_REQ | protocol::BACKEND_SEND_FD),
        (1, protocol::CONFIGURE_MEM_SLOTS),
        (2, protocol::STATUS),
        (3, protocol::LOG_SHMFD),
    ] {
        if bits >> bit & 1 == 1 || guest.manners == Manners::Qemu11 {
            features |= also;
        }
    }
    // QEMU resets a virtio-blk device through its rings; others may use the message.
    if guest.manners == Manners::Any && bits >> 4 & 1 == 1 {
        features |= protocol::RESET_DEVICE;
    }
    if guest.in_band > 0 {
        features |= protocol::INBAND_NOTIFICATIONS | protocol::BACKEND_REQ;
    }
    features
}
