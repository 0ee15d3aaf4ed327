//! NVMe/TCP of a whole target, by its calls: what is asked for serves, is back after a kill, and is gone when it is taken
//! away.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use stack::nvme::bits::{CNTLID_DYNAMIC, Command, Completion, Connect, ConnectData, SglDescriptor, Status};
use tests::target::{RpcError, Target};

const NQN: &str = "nqn.2026-11.com.example:disks";
const HOST: &str = "nqn.2026-11.com.example:host";

/// A host's admin queue: connects, and says how that ended. Nothing when the target closes before.
fn connect(to: SocketAddr) -> Option<Status> {
    let mut stream = TcpStream::connect(to).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut request = [0; 128];
    (request[2], request[4]) = (128, 128);
    stream.write_all(&request).ok()?;
    stream.read_exact(&mut request).ok()?;
    let connect = Command::connect(&Connect { sq_size: 31, ..Connect::default() });
    let mut capsule = vec![0; 72 + 1024];
    capsule[..4].copy_from_slice(&[4, 0, 72, 72]);
    capsule[4..8].copy_from_slice(&1096_u32.to_le_bytes());
    connect.with_sgl(SglDescriptor::in_capsule(1024)).encode(&mut capsule[8..]);
    let mut data =
        ConnectData { hostid: [1; 16], cntlid: CNTLID_DYNAMIC, subnqn: [0; 256], hostnqn: [0; 256] };
    data.subnqn[..NQN.len()].copy_from_slice(NQN.as_bytes());
    data.hostnqn[..HOST.len()].copy_from_slice(HOST.as_bytes());
    data.encode(&mut capsule[72..]);
    stream.write_all(&capsule).ok()?;
    let mut response = [0; 24];
    stream.read_exact(&mut response).ok()?;
    Some(Completion::decode(&response[8..]).status)
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn refused(result: Result<Value, RpcError>) -> (i64, String) {
    match result {
        Err(RpcError::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_asked_for_serves_and_is_back_after_a_kill() {
    let address = free_port();
    let mut target = Target::start();
    let listen = json!({ "trtype": "tcp", "traddr": "127.0.0.1", "trsvcid": address.port().to_string() });
    target.call("bdev_malloc_create", json!({ "name": "disk", "num_blocks": 2048, "block_size": 512 }));
    target.call("nvmf_create_transport", json!({ "trtype": "TCP" }));
    target.call("nvmf_create_subsystem", json!({ "nqn": NQN, "serial_number": "S3RIAL" }));
    let added = json!({ "nqn": NQN, "namespace": { "bdev_name": "disk" } });
    assert_eq!(target.call("nvmf_subsystem_add_ns", added.clone()), json!(1));
    assert_eq!(connect(address), None, "nobody listens yet");
    target.call("nvmf_subsystem_add_listener", json!({ "nqn": NQN, "listen_address": listen }));
    assert_eq!(connect(address), Some(Status::CONNECT_INVALID_HOST));
    target.call("nvmf_subsystem_add_host", json!({ "nqn": NQN, "host": HOST }));
    assert_eq!(connect(address), Some(Status::SUCCESS));

    let (code, message) = refused(target.rpc("bdev_malloc_delete", json!({ "name": "disk" })));
    assert!(code == -16 && message.contains(NQN), "{message}");
    let (code, message) =
        refused(target.rpc("vhost_create_blk_controller", json!({ "ctrlr": "v", "dev_name": "disk" })));
    assert!(code == -32602 && message.contains(NQN), "{message}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let elsewhere = json!({ "trtype": "tcp", "traddr": "127.0.0.1", "trsvcid": port });
    let (code, message) = refused(
        target.rpc("nvmf_subsystem_add_listener", json!({ "nqn": NQN, "listen_address": elsewhere })),
    );
    assert!(code == -17 && message.contains(&port), "{message}");

    let before = target.call("nvmf_get_subsystems", json!({}));
    let config = target.call("framework_get_config", json!({ "name": "nvmf" }));
    target.kill9();
    target.restart();
    assert_eq!(target.call("nvmf_get_subsystems", json!({})), before);
    assert_eq!(target.call("framework_get_config", json!({ "name": "nvmf" })), config);
    assert_eq!(connect(address), Some(Status::SUCCESS), "it listens before it answers calls");

    target.call("nvmf_subsystem_remove_ns", json!({ "nqn": NQN, "nsid": 1 }));
    target.call("bdev_malloc_delete", json!({ "name": "disk" }));
    target.call("nvmf_subsystem_remove_listener", json!({ "nqn": NQN, "listen_address": listen }));
    assert_eq!(connect(address), None);
    target.call("nvmf_delete_subsystem", json!({ "nqn": NQN }));
    assert_eq!(target.call("nvmf_get_subsystems", json!({})).as_array().map(Vec::len), Some(1), "discovery");
}
