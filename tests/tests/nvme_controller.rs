//! The controller that the target plays, without a transport: properties, admin commands, events, time, and what becomes
//! of I/O commands.

use runtime::Instant;
use sim::platform::SimPlatform;
use stack::block::{Bdev, Geometry, IoError, NullBdev, Op};
use stack::nvme::bits::{
    AsyncEvent, AsyncEventConfig, Capabilities, Command, Configuration, ControllerStatus, DISCOVERY_NQN,
    DiscoveryEntry, DiscoveryHeader, DsmRange, IDENTIFY_LEN, IdDescriptor, IdDescriptors, IdentifyController,
    IdentifyNamespace, LogPage, NSID_ALL, QueueCount, SglDescriptor, Status, admin, cns, event, feature, io,
    log, register,
};
use stack::nvme::controller::{
    Answer, Association, Controller, Direction, Directory, Executed, Hosts, Limits, Namespace, Plan, Port,
    Subsystem, deallocation, decode, direction, failure, nqn_is_valid, refused,
};
use std::sync::Arc;
use std::time::Duration;

type P = SimPlatform;

const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
const NQN: &str = "nqn.2026-11.io.reprise:disks";
const LIMITS: Limits =
    Limits { queue_entries: 128, io_queues: 4, transfer_bytes: 128 << 10, capsule_bytes: 8192 };

fn namespace(id: u32, version: u64) -> Namespace<P> {
    let disk = NullBdev::new(format!("disk{id}"), [id as u8; 16], 512, 4096, 1000, 1);
    Namespace {
        id,
        version,
        bdev: Some(Arc::new(disk) as Arc<dyn Bdev<P>>),
        uuid: [7; 16],
        nguid: [8; 16],
        eui64: [0; 8],
    }
}

fn subsystem(hosts: Hosts, namespaces: Vec<Namespace<P>>) -> Subsystem<P> {
    Subsystem {
        nqn: NQN.into(),
        number: 1,
        serial: "S3RIAL".into(),
        model: "Reprise".into(),
        firmware: "0.1.0",
        hosts,
        namespaces,
        namespaces_max: 32,
    }
}

fn directory(generation: u64, hosts: Hosts, namespaces: Vec<Namespace<P>>) -> Arc<Directory<P>> {
    let address = "10.0.0.1:4420".parse().unwrap();
    Arc::new(Directory {
        generation,
        log_generation: generation,
        subsystems: vec![Arc::new(subsystem(hosts, namespaces))],
        ports: vec![Port { subnqn: NQN.into(), address, advertised: address, id: 1 }],
    })
}

fn two_disks() -> Arc<Directory<P>> {
    directory(5, Hosts::Any, vec![namespace(1, 1), namespace(3, 1)])
}

/// A controller of a directory's subsystem (1) or of discovery (0), and its association.
fn controller(
    subsystem: u64,
    directory: Arc<Directory<P>>,
    keep_alive_ms: u32,
) -> (Controller<P>, Arc<Association>) {
    let nqn = if subsystem == 0 { DISCOVERY_NQN } else { NQN };
    let association = Arc::new(Association::new(9, nqn.into(), subsystem, HOST.into(), [6; 16]));
    let controller =
        Controller::new(association.clone(), directory, LIMITS, "0.1.0", keep_alive_ms, Instant(0));
    (controller, association)
}

fn at(ms: u64) -> Instant {
    Instant(0).after(Duration::from_millis(ms))
}

fn run(controller: &mut Controller<P>, command: Command) -> Answer {
    let command = command.with_sgl(SglDescriptor::transport(IDENTIFY_LEN as u32));
    match controller.execute(at(0), &command, IDENTIFY_LEN as u64) {
        Executed::Answered(answer) => answer,
        Executed::Waits => panic!("it waits"),
    }
}

fn good(controller: &mut Controller<P>, command: Command) -> Answer {
    let answer = run(controller, command);
    assert!(answer.status.is_success(), "{command:?}: {}", answer.status);
    answer
}

fn configure(controller: &mut Controller<P>, cc: Configuration) {
    good(controller, Command::property_set(register::CC as u32, false, cc.0.into()));
}

fn status(controller: &mut Controller<P>) -> ControllerStatus {
    ControllerStatus(good(controller, Command::property_get(register::CSTS as u32, false)).result as u32)
}

fn enabled() -> Configuration {
    Configuration(0).with_en(1).with_iosqes(6).with_iocqes(4)
}

/// One that works, as a host finds it after its first steps.
fn working(subsystem: u64, directory: Arc<Directory<P>>) -> (Controller<P>, Arc<Association>) {
    let (mut controller, association) = controller(subsystem, directory, 0);
    configure(&mut controller, enabled());
    (controller, association)
}

#[test]
fn names_are_what_the_specification_calls_names() {
    for good in [HOST, NQN, DISCOVERY_NQN, "nqn.2016-06.io.spdk:cnode1"] {
        assert!(nqn_is_valid(good), "{good}");
    }
    let long = format!("nqn.2016-06.io:{}", "x".repeat(209));
    for bad in [
        "",
        "nqn.",
        "nqn.2016-06",
        "nqn.16-06.io",
        "iqn.2016-06.io",
        "nqn.2016-06.",
        "nqn.2016-06.a\0",
        &long,
    ] {
        assert!(!nqn_is_valid(bad), "{bad:?}");
    }
}

#[test]
fn a_controller_begins_to_work_and_is_reset_and_shut_down() {
    let (mut controller, association) = controller(1, two_disks(), 0);
    let cap = good(&mut controller, Command::property_get(register::CAP as u32, true)).result;
    assert_eq!((Capabilities(cap).mqes(), Capabilities(cap).cqr()), (127, 1));
    assert_eq!(status(&mut controller).rdy(), 0);
    let early = run(&mut controller, Command::identify(cns::CONTROLLER, 0));
    assert_eq!(early.status, refused(Status::SEQUENCE_ERROR));
    assert!(!association.is_ready());

    configure(&mut controller, enabled());
    assert_eq!(status(&mut controller).rdy(), 1);
    assert!(association.is_ready());
    assert!(association.join(1) && !association.join(1));

    // It is not quiet before its queue is gone.
    let epoch = association.epoch();
    configure(&mut controller, enabled().with_en(0));
    assert!(!controller.poll(at(1)));
    assert_eq!(status(&mut controller).rdy(), 1);
    assert!(association.epoch() != epoch && !association.is_ready());
    association.leave(1);
    assert!(controller.poll(at(2)));
    assert_eq!(status(&mut controller).rdy(), 0);

    configure(&mut controller, enabled());
    configure(&mut controller, enabled().with_shn(Configuration::SHN_NORMAL));
    assert_eq!(status(&mut controller).shst(), ControllerStatus::SHST_OCCURRING);
    assert!(controller.poll(at(3)));
    assert_eq!(status(&mut controller).shst(), ControllerStatus::SHST_COMPLETE);
    drop(controller);
    assert!(association.is_over());
}

#[test]
fn what_cannot_be_configured_is_fatal_and_what_is_no_property_is_refused() {
    let (mut controller, association) = controller(1, two_disks(), 0);
    configure(&mut controller, enabled().with_mps(1));
    assert_eq!((status(&mut controller).cfs(), status(&mut controller).rdy()), (1, 0));
    assert!(!association.is_ready());
    for command in [
        Command::property_get(register::CAP as u32, false),
        Command::property_get(register::VS as u32, true),
        Command::property_get(0x1000, false),
        Command::property_set(register::CSTS as u32, false, 0),
        Command::property_set(register::CC as u32, true, 0),
    ] {
        assert_eq!(run(&mut controller, command).status, refused(Status::INVALID_FIELD), "{command:?}");
    }
    let connect = Command::connect(&Default::default());
    assert_eq!(run(&mut controller, connect).status, refused(Status::SEQUENCE_ERROR));
    assert_eq!(run(&mut controller, Command::disconnect()).status, refused(Status::INVALID_QUEUE_TYPE));
}

#[test]
fn a_controller_says_what_it_is() {
    let (mut controller, _) = working(1, two_disks());
    let told = good(&mut controller, Command::identify(cns::CONTROLLER, 0));
    let told = IdentifyController::decode(&told.data);
    assert_eq!((told.cntlid, told.mdts, told.nn, told.cntrltype), (9, 5, 32, IdentifyController::TYPE_IO));
    assert_eq!((&told.sn[..7], &told.subnqn[..NQN.len()]), (&b"S3RIAL "[..], NQN.as_bytes()));
    assert_eq!((told.ioccsz, told.iorcsz, told.sqes, told.cqes), (516, 1, 0x66, 0x44));
    // Linux refuses a controller without keep alive or SGLs.
    assert!(told.kas > 0 && told.sgls & 3 == 1 && told.maxcmd == 128 && told.ctratt & 1 == 1);
    let short = Command::identify(cns::CONTROLLER, 0).with_sgl(SglDescriptor::transport(4095));
    let Executed::Answered(answer) = controller.execute(at(0), &short, 4095) else { panic!("it waits") };
    assert_eq!(answer.status, refused(Status::SGL_LENGTH_INVALID));
}

#[test]
fn namespaces_are_listed_and_described() {
    let (mut controller, _) = working(1, two_disks());
    let mut list = |above| good(&mut controller, Command::identify(cns::ACTIVE_NAMESPACES, above)).data;
    assert_eq!(list(0)[..12], [1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(list(1)[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
    assert!(list(3).iter().all(|byte| *byte == 0));

    let told = good(&mut controller, Command::identify(cns::NAMESPACE, 3));
    let told = IdentifyNamespace::decode(&told.data);
    assert_eq!((told.nsze, told.lbaf[0], told.nguid, told.npwg), (1000, 9 << 16, [8; 16], 7));
    let absent = good(&mut controller, Command::identify(cns::NAMESPACE, 2));
    assert!(absent.data.iter().all(|byte| *byte == 0), "an inactive one is all zeroes");

    let told = good(&mut controller, Command::identify(cns::NAMESPACE_DESCRIPTORS, 1)).data;
    let kinds = IdDescriptors(&told).map(|one| (one.nidt, one.nid.to_vec())).collect::<Vec<_>>();
    let nguid = (IdDescriptor::NGUID, vec![8; 16]);
    // The command set's number is 0, one byte; the descriptor is there.
    assert_eq!(kinds, [nguid, (IdDescriptor::UUID, vec![7; 16]), (IdDescriptor::CSI, vec![0])]);

    for (what, nsid, expected) in [
        (cns::NAMESPACE, 0, Status::INVALID_NAMESPACE),
        (cns::NAMESPACE, 33, Status::INVALID_NAMESPACE),
        (cns::NAMESPACE, NSID_ALL, Status::INVALID_NAMESPACE),
        (cns::NAMESPACE_DESCRIPTORS, 2, Status::INVALID_NAMESPACE),
        (cns::ACTIVE_NAMESPACES, NSID_ALL, Status::INVALID_NAMESPACE),
        (0x15, 0, Status::INVALID_FIELD),
    ] {
        let answer = run(&mut controller, Command::identify(what, nsid));
        assert_eq!(answer.status, refused(expected), "{what} {nsid}");
    }
}

#[test]
fn features_are_negotiated() {
    let (mut controller, association) = working(1, two_disks());
    let asked = QueueCount(0).with_submission(7).with_completion(1);
    let given =
        good(&mut controller, Command::set_features(feature::NUMBER_OF_QUEUES, asked.0)).result as u32;
    assert_eq!((QueueCount(given).submission(), association.granted()), (1, 2));
    let asked = QueueCount(0).with_submission(99).with_completion(99);
    good(&mut controller, Command::set_features(feature::NUMBER_OF_QUEUES, asked.0));
    assert_eq!(association.granted(), 4, "no more than the transport has");
    assert!(association.join(2));
    let late = run(&mut controller, Command::set_features(feature::NUMBER_OF_QUEUES, asked.0));
    assert_eq!(late.status, refused(Status::SEQUENCE_ERROR));

    good(&mut controller, Command::set_features(feature::KEEP_ALIVE_TIMER, 1500));
    let told = good(&mut controller, Command::get_features(feature::KEEP_ALIVE_TIMER)).result;
    assert_eq!(told, 2000, "in whole seconds");
    let host =
        Command { cdw10: [feature::HOST_IDENTIFIER.into(), 1, 0, 0, 0, 0], ..Command::get_features(0) };
    assert_eq!(good(&mut controller, host).data, [6; 16]);
    for (command, expected) in [
        (Command::set_features(feature::HOST_IDENTIFIER, 0), Status::SEQUENCE_ERROR),
        (Command::set_features(feature::VOLATILE_WRITE_CACHE, 0), Status::FEATURE_NOT_CHANGEABLE),
        (Command::set_features(0x7f, 0), Status::INVALID_FIELD),
        (Command::set_features(feature::ASYNC_EVENT_CONFIG, 1 << 31), Status::INVALID_FIELD),
        (Command::set_features(feature::NUMBER_OF_QUEUES, 0xffff), Status::INVALID_FIELD),
        (Command::get_features(0x7f), Status::INVALID_FIELD),
        (Command::get_log_page(log::DISCOVERY, 0, 1024), Status::INVALID_LOG_PAGE),
        (Command { opcode: 0x80, ..Command::abort(0, 0) }, Status::INVALID_OPCODE),
    ] {
        if command == Command::set_features(feature::NUMBER_OF_QUEUES, 0xffff) {
            association.leave(2);
        }
        assert_eq!(run(&mut controller, command).status, refused(expected), "{command:?}");
    }
}

#[test]
fn a_silent_host_loses_its_controller() {
    let (mut controller, association) = controller(1, two_disks(), 1000);
    assert!(!controller.poll(at(999)));
    assert_eq!(controller.wake_at(at(999)), Some(at(1000)));
    let keep_alive = Command::keep_alive().with_sgl(SglDescriptor::transport(0));
    controller.execute(at(999), &keep_alive, 0);
    assert!(!controller.poll(at(1998)) && !association.is_over());
    assert!(controller.poll(at(1999)) && association.is_over());
    assert_eq!(controller.wake_at(at(1999)), None);
}

#[test]
fn a_change_of_namespaces_is_told_once_until_its_log_was_read() {
    let (mut controller, _) = working(1, two_disks());
    let wanted = AsyncEventConfig(0).with_namespace_attribute(1);
    good(&mut controller, Command::set_features(feature::ASYNC_EVENT_CONFIG, wanted.0));
    let wait = |controller: &mut Controller<P>, id| {
        let request = Command { id, ..Command::async_event_request() }.with_sgl(SglDescriptor::transport(0));
        controller.execute(at(0), &request, 0)
    };
    for id in 0..4 {
        assert_eq!(wait(&mut controller, id), Executed::Waits);
    }
    assert_eq!(wait(&mut controller, 4), Executed::Answered(refused(Status::EVENT_LIMIT_EXCEEDED).into()));
    assert!(controller.withdraw(1) && !controller.withdraw(1));
    assert_eq!(controller.take_event(), None);

    // 1 is another size, 3 is gone, 4 is new.
    controller.reconfigured(directory(6, Hosts::Any, vec![namespace(1, 2), namespace(4, 1)]));
    let told = AsyncEvent(0)
        .with_kind(event::NOTICE)
        .with_information(event::NAMESPACE_ATTRIBUTE)
        .with_log_page(log::CHANGED_NAMESPACES.into());
    assert_eq!(controller.take_event(), Some((0, Ok(told))));
    controller.reconfigured(directory(7, Hosts::Any, vec![namespace(1, 3), namespace(4, 1)]));
    assert_eq!(controller.take_event(), None, "the log was not read yet");
    let page = LogPage::ChangedNamespaces;
    let looked = Command::get_log_page(page.id(), 0, page.bytes());
    let kept = Command { cdw10: [looked.cdw10[0] | Command::RAE, looked.cdw10[1], 0, 0, 0, 0], ..looked };
    assert_eq!(good(&mut controller, kept).data[..12], [1, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(controller.take_event(), None, "it was only looked at");
    assert_eq!(good(&mut controller, looked).data[..12], [1, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(good(&mut controller, looked).data[..4], [0; 4]);
    controller.reconfigured(directory(8, Hosts::Any, vec![namespace(1, 3)]));
    assert_eq!(controller.take_event(), Some((2, Ok(told))));

    // What waits when it is reset, waits for nothing.
    configure(&mut controller, enabled().with_en(0));
    assert_eq!(controller.take_event(), Some((3, Err(Status::ABORTED_SQ_DELETION))));
    assert_eq!(controller.take_event(), None);
}

#[test]
fn a_host_that_may_not_stay_is_sent_away() {
    let (mut controller, association) = working(1, two_disks());
    controller.reconfigured(directory(6, Hosts::Named([HOST.into()].into()), vec![]));
    assert!(!association.is_over());
    controller.reconfigured(directory(7, Hosts::Named([NQN.into()].into()), vec![]));
    assert!(association.is_over());
}

#[test]
fn discovery_tells_each_host_what_it_may_use() {
    let others = Hosts::Named([NQN.into()].into());
    let (mut controller, _) = working(0, directory(5, others, vec![]));
    let page = good(&mut controller, Command::get_log_page(log::DISCOVERY, 0, 2048)).data;
    let header = DiscoveryHeader::decode(&page);
    assert_eq!((header.genctr, header.numrec), (5, 0));

    let wanted = AsyncEventConfig(0).with_discovery_change(1);
    good(&mut controller, Command::set_features(feature::ASYNC_EVENT_CONFIG, wanted.0));
    let request = Command { id: 3, ..Command::async_event_request() }.with_sgl(SglDescriptor::transport(0));
    assert_eq!(controller.execute(at(0), &request, 0), Executed::Waits);
    controller.reconfigured(two_disks());
    assert_eq!(controller.take_event(), None, "the same generation");
    controller.reconfigured(directory(6, Hosts::Any, vec![]));
    let (id, told) = controller.take_event().expect("the page changed");
    assert_eq!((id, told.unwrap().information()), (3, event::DISCOVERY_CHANGE));

    let page = good(&mut controller, Command::get_log_page(log::DISCOVERY, 0, 2048)).data;
    assert_eq!((DiscoveryHeader::decode(&page).genctr, DiscoveryHeader::decode(&page).numrec), (6, 1));
    let entry = DiscoveryEntry::decode(&page[1024..]);
    assert_eq!((entry.trtype, entry.adrfam, entry.subtype, entry.cntlid), (3, 1, 2, 0xffff));
    assert_eq!((&entry.traddr[..9], &entry.trsvcid[..5]), (&b"10.0.0.1 "[..], &b"4420 "[..]));
    assert_eq!(&entry.subnqn[..NQN.len() + 1], [NQN.as_bytes(), &[0]].concat());

    // In parts, as hosts read it that do not know how long it is.
    let mut part = Command::get_log_page(log::DISCOVERY, 0, 1024);
    part.cdw10[2] = 1024;
    assert_eq!(good(&mut controller, part).data, page[1024..]);
    part.cdw10[2] = 4096;
    assert_eq!(run(&mut controller, part).status, refused(Status::INVALID_FIELD));
    // Nobody makes the target hold gigabytes.
    let huge =
        Command::get_log_page(log::DISCOVERY, 0, 0xffff_fffc).with_sgl(SglDescriptor::transport(u32::MAX));
    let Executed::Answered(answer) = controller.execute(at(0), &huge, u64::MAX) else { panic!("it waits") };
    assert_eq!(answer.status, refused(Status::SGL_LENGTH_INVALID));
    let told = good(&mut controller, Command::identify(cns::CONTROLLER, 0));
    assert_eq!(IdentifyController::decode(&told.data).cntrltype, IdentifyController::TYPE_DISCOVERY);
    assert_eq!(
        run(&mut controller, Command::identify(cns::NAMESPACE, 1)).status,
        refused(Status::INVALID_FIELD)
    );
}

const GEOMETRY: Geometry = Geometry {
    block_size: 512,
    physical_block_size: 512,
    num_blocks: 1000,
    read_only: false,
    volatile_cache: true,
    discard: true,
    write_zeroes: true,
};

fn plan(command: Command, geometry: &Geometry) -> Result<Plan, Status> {
    decode(&command.with_sgl(SglDescriptor::transport(512)), geometry, LIMITS.transfer_bytes)
}

#[test]
fn io_commands_become_operations_inside_the_disk() {
    let read = Plan::Io { op: Op::Read, offset: 999 * 512, len: 512 };
    assert_eq!(plan(Command::on_range(io::READ, 1, 999, 1, 0), &GEOMETRY), Ok(read));
    let write = Plan::Io { op: Op::Write { fua: true }, offset: 0, len: 131_072 };
    assert_eq!(plan(Command::on_range(io::WRITE, 1, 0, 256, Command::FUA), &GEOMETRY), Ok(write));
    assert_eq!((write.transfer_bytes(), read.transfer_bytes()), (131_072, 512));
    let zeroes = Plan::Io { op: Op::WriteZeroes { unmap: true, fua: false }, offset: 0, len: 512_000 };
    assert_eq!(plan(Command::on_range(io::WRITE_ZEROES, 1, 0, 1000, Command::DEAC), &GEOMETRY), Ok(zeroes));
    let flush = Plan::Io { op: Op::Flush, offset: 0, len: 0 };
    assert_eq!(plan(Command::flush(1), &GEOMETRY), Ok(flush));
    assert_eq!(plan(Command::deallocate(1, 256), &GEOMETRY), Ok(Plan::Deallocate(256)));
    let no_discard = Geometry { discard: false, ..GEOMETRY };
    assert_eq!(plan(Command::deallocate(1, 1), &no_discard), Ok(Plan::Nothing), "it is advice");
    let directions = [io::FLUSH, io::WRITE, io::READ, io::DATASET_MANAGEMENT, admin::IDENTIFY].map(direction);
    use Direction::{FromHost, Nothing, ToHost};
    assert_eq!(directions, [Nothing, FromHost, ToHost, FromHost, ToHost]);
}

#[test]
fn io_commands_that_cannot_be_are_refused() {
    let read_only = Geometry { read_only: true, ..GEOMETRY };
    let fused = Command { flags: 1, ..Command::on_range(io::READ, 1, 0, 1, 0) };
    for (command, geometry, expected) in [
        (Command::on_range(io::READ, 1, 1000, 1, 0), GEOMETRY, Status::LBA_OUT_OF_RANGE),
        (Command::on_range(io::READ, 1, 999, 2, 0), GEOMETRY, Status::LBA_OUT_OF_RANGE),
        (Command::on_range(io::WRITE, 1, u64::MAX, 2, 0), GEOMETRY, Status::LBA_OUT_OF_RANGE),
        (Command::on_range(io::WRITE_ZEROES, 1, 1, 1000, 0), GEOMETRY, Status::LBA_OUT_OF_RANGE),
        (Command::on_range(io::READ, 1, 0, 257, 0), GEOMETRY, Status::INVALID_FIELD),
        (Command::on_range(io::WRITE, 1, 0, 1, 0), read_only, Status::WRITE_PROTECTED),
        (Command::on_range(io::WRITE_ZEROES, 1, 0, 1, 0), read_only, Status::WRITE_PROTECTED),
        (Command::deallocate(1, 1), read_only, Status::WRITE_PROTECTED),
        (Command::on_range(io::COMPARE, 1, 0, 1, 0), GEOMETRY, Status::INVALID_OPCODE),
        (fused, GEOMETRY, Status::INVALID_FIELD),
    ] {
        assert_eq!(plan(command, &geometry), Err(refused(expected)), "{command:?}");
    }
    let prps = Command::on_range(io::READ, 1, 0, 1, 0);
    assert_eq!(decode(&prps, &GEOMETRY, 4096), Err(refused(Status::INVALID_FIELD)));
}

#[test]
fn ranges_are_deallocated_inside_the_disk() {
    let mut ranges = [0; 48];
    DsmRange { blocks: 10, slba: 990, ..Default::default() }.encode(&mut ranges);
    DsmRange { blocks: 11, slba: 990, ..Default::default() }.encode(&mut ranges[16..]);
    DsmRange { blocks: 0, slba: 5, ..Default::default() }.encode(&mut ranges[32..]);
    assert_eq!(deallocation(&ranges, 0, &GEOMETRY), Ok(Some((990 * 512, 5120))));
    assert_eq!(deallocation(&ranges, 1, &GEOMETRY), Err(refused(Status::LBA_OUT_OF_RANGE)));
    assert_eq!(deallocation(&ranges, 2, &GEOMETRY), Ok(None));
}

#[test]
fn a_failed_disk_is_told_so_that_hosts_do_the_right_thing() {
    use runtime::ErrorKind::{Io, NotFound};
    assert_eq!(failure(io::READ, IoError::Medium(Io)), Status::UNRECOVERED_READ_ERROR);
    assert_eq!(failure(io::WRITE, IoError::Medium(Io)), Status::WRITE_FAULT);
    assert_eq!(failure(io::READ, IoError::Medium(NotFound)), Status::INTERNAL_PATH_ERROR);
    assert_eq!(failure(io::WRITE, IoError::NoSpace).dnr(), 0, "room may come");
    assert_eq!(failure(io::WRITE, IoError::ReadOnly), refused(Status::WRITE_PROTECTED));
}
