//! Why a connection is not mTLS: every reason of the closed list, mode `disabled`, and addresses that nobody knows.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use hauberk_lab::Pod;
use hauberk_mesh::{Connection, Connections, Direction, MESH_PORT, Reason, TlsMode, TransportState};

use crate::{
    common::{closed, dial, identity},
    scene::{PORT, meshed, outbound, plain, prepared, scene},
    talk::{HELLO, Samples, host_anywhere, record, visit},
};

const OUTSIDE: &str = "192.0.2.7";

fn outside() -> SocketAddr {
    SocketAddr::new(OUTSIDE.parse().expect("an address"), PORT)
}

#[test]
fn every_reason_of_the_closed_list_is_given() {
    let pods = [
        meshed("web"),
        meshed("off").tls(TlsMode::Disabled),
        plain("old"),
        plain("api"),
        plain("nobody").unlisted(),
        plain("outside").unlisted().also_at(OUTSIDE),
    ];
    let (_lab, [web, off, old, api, nobody, out]) = prepared(pods, [], |[web, _, _, api, ..]| {
        web.edit_spec(|spec| spec.api_server = Some(api.at(PORT)));
    });
    let _hosts = [&web, &off, &old, &api, &nobody, &out].map(|pod| host_anywhere(pod, PORT));
    for reason in Reason::ALL {
        use Direction::{Inbound, Outbound};
        // The pod whose proxy says it, and the connection.
        let (pod, direction, visit) = match reason {
            Reason::PeerNotMeshed => (&web, Outbound, visit(&web, old.at(PORT))),
            Reason::UnknownInCluster => (&web, Outbound, visit(&web, nobody.at(PORT))),
            Reason::OutsideCluster => (&web, Outbound, visit(&web, outside())),
            Reason::TlsDisabled => (&off, Outbound, visit(&off, web.at(PORT))),
            Reason::Loopback => (&web, Outbound, visit(&web, web.at(PORT))),
            Reason::UnmeshedClient => (&web, Inbound, visit(&old, web.at(PORT))),
            Reason::Exception => (&web, Outbound, visit(&web, api.at(PORT))),
        };
        assert!(!visit.host().is_empty(), "{reason}");
        assert_plain(&record(pod, direction, visit.local), *reason, reason.as_str());
        let labels = [("direction", direction.as_str()), ("reason", reason.as_str()), ("state", "cleartext")];
        let bytes = Samples::of(pod).sum("hauberk_bytes_to_server_total", &labels);
        assert!(bytes >= HELLO.len() as f64, "{reason}: the metrics say so too");
    }
}

fn assert_plain(record: &Connection, reason: Reason, what: &str) {
    assert_eq!((record.state, record.reason), (Some(TransportState::Cleartext), Some(reason)), "{what}: {record:?}");
    assert_eq!((&record.client_identity, &record.server_identity, &record.tls), (&None, &None, &None), "{what}");
}

#[test]
fn a_disabled_pod_does_no_mtls_either_way_says_so_and_needs_no_control_plane() {
    let pods = [
        meshed("off").tls(TlsMode::Disabled),
        meshed("peer"),
        plain("old"),
        plain("nobody").unlisted(),
        plain("outside").unlisted().also_at(OUTSIDE),
    ];
    let (lab, [off, peer, old, nobody, out]) = scene(pods, []);
    let _hosts = [&off, &peer, &old, &nobody, &out].map(|pod| host_anywhere(pod, PORT));
    let from_peer = visit(&peer, off.at(PORT));
    assert_plain(&outbound(&peer, &from_peer), Reason::TlsDisabled, "the peer knows");

    lab.stop_identity().expect("it ran");
    lab.stop_destination().expect("it ran");
    off.restart_proxy().expect("it is ready");
    for to in [peer.at(PORT), old.at(PORT), nobody.at(PORT), outside()] {
        let visit = visit(&off, to);
        assert!(!visit.host().is_empty(), "{to}");
        assert_plain(&outbound(&off, &visit), Reason::TlsDisabled, &to.to_string());
        if to == peer.at(PORT) {
            let inbound = inbound_from(&peer, &off);
            assert_plain(&inbound, Reason::UnmeshedClient, "the peer sees no identity");
        }
    }
    let own = visit(&off, off.at(PORT));
    assert_plain(&outbound(&off, &own), Reason::Loopback, "itself");
    let incoming = visit(&old, off.at(PORT));
    assert_eq!(incoming.host(), "off");
    assert_plain(&record(&off, Direction::Inbound, incoming.local), Reason::TlsDisabled, "from a client");
    assert_eq!(visit(&old, off.at(MESH_PORT)).broken, Some(ErrorKind::ConnectionRefused), "it has no mesh port");
    let samples = Samples::of(&off);
    assert_eq!(samples.sum("hauberk_handshakes_total", &[]), 0.0);
    let opened = |direction| samples.sum("hauberk_connections_opened_total", &[("reason", "tls-disabled"), direction]);
    assert_eq!([("direction", "outbound"), ("direction", "inbound")].map(opened), [4.0, 1.0]);
}

/// The record of the connection from `client`.
fn inbound_from(pod: &Pod, client: &Pod) -> Connection {
    closed(pod, "from it", |it| it.direction == Direction::Inbound && it.client.ip() == client.ip())
}

/// An address inside the cluster that `mesh.yaml` does not have.
const UNKNOWN: &str = "10.1.99.7";
const AS_UNKNOWN: &str = "10.1.99.8";

fn unknown(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), PORT)
}

/// Says hello, and does not wait for an answer.
fn begin(pod: &Pod, to: SocketAddr) -> TcpStream {
    let mut stream = dial(pod, to).expect("the proxy accepts");
    stream.write_all(HELLO).and_then(|()| stream.shutdown(Shutdown::Write)).expect("the proxy takes it");
    stream
}

/// The name of the pod that answers.
fn answer(mut stream: TcpStream) -> String {
    let mut host = String::new();
    stream.read_to_string(&mut host).expect("somebody answers");
    host
}

/// Waits until so many connections to `to` wait.
fn wait_waiting(pod: &Pod, to: SocketAddr, count: usize) {
    let waiting = |it: &&Connection| it.target == to && it.state.is_none() && it.reason.is_none();
    let find = |all: &Connections| (all.live.iter().filter(waiting).count() == count).then_some(());
    pod.wait_connections("connections that wait", find).expect("they wait");
}

#[test]
fn connections_to_an_address_that_nobody_knows_wait_and_are_mtls_as_soon_as_it_is_known() {
    let pods = [meshed("client").limits("unknown_in_cluster=1h"), meshed("late").also_at(UNKNOWN)];
    let (lab, [client, late]) = scene(pods, []);
    let _host = host_anywhere(&late, PORT);
    let waiting = [(); 3].map(|()| begin(&client, unknown(UNKNOWN)));
    wait_waiting(&client, unknown(UNKNOWN), waiting.len());
    let key = late.key();
    let ip = UNKNOWN.parse().expect("an address");
    lab.edit(|mesh| mesh.pods.get_mut(&key).expect("listed").ips.push(ip)).expect("valid");
    for stream in waiting {
        let local = stream.local_addr().expect("connected");
        assert_eq!(answer(stream), "late");
        let record = record(&client, Direction::Outbound, local);
        assert_eq!((record.state, record.reason), (Some(TransportState::Mtls), None));
        assert_eq!(record.server_identity, Some(identity("late")));
    }
}

#[test]
fn an_address_that_nobody_knows_is_waited_for_once() {
    let nobody = plain("nobody").unlisted().also_at(UNKNOWN).also_at(AS_UNKNOWN);
    let (_lab, [client, nobody]) = scene([meshed("client").limits("unknown_in_cluster=5s"), nobody], []);
    let _host = host_anywhere(&nobody, PORT);
    let first = visit(&client, unknown(UNKNOWN));
    assert_plain(&outbound(&client, &first), Reason::UnknownInCluster, "after its time");
    // While another address has its time, the first has had it.
    let other = begin(&client, unknown(AS_UNKNOWN));
    wait_waiting(&client, unknown(AS_UNKNOWN), 1);
    let again = visit(&client, unknown(UNKNOWN));
    assert_plain(&outbound(&client, &again), Reason::UnknownInCluster, "at once");
    wait_waiting(&client, unknown(AS_UNKNOWN), 1);
    assert_eq!(answer(other), "nobody");
}
