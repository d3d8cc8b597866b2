//! D09, D17: what a connection that comes through the mesh can reach in a pod, and as whom; and what a pod reaches at
//! its own addresses.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use hauberk_lab::{Pod, ServiceOptions};
use hauberk_mesh::{
    ADMIN_PORT, CloseCause, Connection, Direction, INBOUND_PORT, LOCAL_ADMIN_PORT, MESH_PORT, OUTBOUND_PORT,
    PROBES_PORT, PROXY_PORTS, Reason, TransportState,
};

use crate::{
    common::{Server, closed, exchange, identity},
    peers::{FAILED, HAUBERK, LINKERD, connect},
    streams::{End, attempt, cause, inbound, lab_of, lab_with, meshed, only, rest},
};

const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// What a TLS server says to what is no TLS: the beginning of an alert in the clear.
const TLS_ALERT: [u8; 3] = [21, 3, 3];

fn at_each_address(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    let ips: [IpAddr; 2] = pod.ips().try_into().expect("one of each family");
    ips.map(|ip| SocketAddr::new(ip, port))
}

/// Tells every client who it is to the server.
fn tell_peer(pod: &Pod, addr: SocketAddr) -> Server {
    Server::listen(pod, addr, |mut stream| {
        let peer = stream.peer_addr().expect("connected");
        write!(stream, "{}", peer.ip()).expect("the client is there");
    })
}

fn ask(pod: &Pod, addr: SocketAddr) -> IpAddr {
    let answer = exchange(pod, addr, b"").expect("the server answers");
    String::from_utf8(answer).expect("text").parse().expect("an address")
}

#[test]
fn a_port_bound_to_loopback_cannot_be_reached_through_the_mesh() {
    let pods =
        [meshed("client").dual_stack(), meshed("server").dual_stack(), meshed("stranger").unmeshed().dual_stack()];
    let (_lab, [client, server, stranger]) = lab_of(pods);
    for (loopback, to) in LOOPBACKS.into_iter().zip(at_each_address(&server, 7000)) {
        let private = SocketAddr::new(loopback, 7000);
        let _private = Server::listen(&server, private, |mut stream| drop(stream.write_all(b"private")));
        for pod in [&client, &stranger] {
            let got = attempt(pod, to, b"").expect("the proxy accepts");
            assert_eq!(got, (vec![], End::Reset), "{to} from the {}", pod.name());
            let record = inbound_by(&server, to, pod.ips());
            let mtls = pod.is_meshed().then_some(TransportState::Mtls);
            assert_eq!((cause(&record), record.state), (CloseCause::ConnectRefused, mtls), "{record:#?}");
        }
        let record = only(&client, Direction::Outbound, to);
        assert_eq!((cause(&record), record.endpoint), (CloseCause::ConnectRefused, None), "{record:#?}");
        // It was there all the time, for the pod itself.
        assert_eq!(exchange(&server, private, b"").expect("an answer"), b"private");
    }
}

#[test]
fn the_app_sees_its_own_pods_address_as_its_peer_and_never_loopback() {
    let pods =
        [meshed("client").dual_stack(), meshed("server").dual_stack(), meshed("stranger").unmeshed().dual_stack()];
    let (_lab, [client, server, stranger]) = lab_of(pods);
    for to in at_each_address(&server, 7000) {
        let _server = tell_peer(&server, to);
        assert_eq!(ask(&client, to), to.ip(), "through the mesh");
        assert_eq!(ask(&stranger, to), to.ip(), "in plaintext");
        assert_eq!(ask(&server, to), to.ip(), "from the pod itself");
        assert_eq!(inbound_by(&server, to, client.ips()).state, Some(TransportState::Mtls));
        assert_eq!(inbound_by(&server, to, stranger.ips()).reason, Some(Reason::UnmeshedClient));
    }
}

fn inbound_by(server: &Pod, target: SocketAddr, clients: &[IpAddr]) -> Connection {
    closed(server, "a record", |record| record.target == target && clients.contains(&record.client.ip()))
}

#[test]
fn an_open_frame_that_names_a_port_of_the_proxy_or_a_skipped_one_is_denied() {
    const DENIED: u8 = 4;
    let pods = [meshed("rogue").unmeshed(), meshed("server").skip_inbound("9000-9001")];
    let (lab, [rogue, server]) = lab_of(pods);
    // They would answer.
    let _skipped = [9000, 9001].map(|port| Server::echo(&server, port));
    for port in PROXY_PORTS.into_iter().chain([9000, 9001]) {
        let mut peer = connect(&lab, &rogue, &server, HAUBERK);
        peer.open(port);
        assert_eq!(peer.expect(FAILED), [DENIED], "port {port}");
        assert_eq!(rest(&mut peer), (vec![], End::Clean), "and nothing more is served on the connection");
        let record = inbound(&server, server.at(port));
        assert_eq!(cause(&record), CloseCause::PortNotAllowed, "{record:#?}");
        assert_eq!(record.client_identity, Some(identity("rogue")));
    }
}

#[test]
fn a_transport_header_that_names_a_port_of_the_proxy_is_reset() {
    let (lab, [rogue, server]) = lab_of([meshed("rogue").unmeshed(), meshed("server")]);
    // Field 1, a varint: the low 7 bits first.
    let header = |port: u16| {
        [b"transport.l5d.io/v1\r\n\r\n\0\0\0\x03\x08".to_vec(), vec![port as u8 | 0x80, (port >> 7) as u8]].concat()
    };
    for port in PROXY_PORTS {
        let mut peer = connect(&lab, &rogue, &server, LINKERD);
        peer.write_all(&header(port)).expect("open");
        assert_eq!(rest(&mut peer), (vec![], End::Reset), "port {port}");
        assert_eq!(cause(&inbound(&server, server.at(port))), CloseCause::PortNotAllowed);
    }
}

#[test]
fn a_pod_calls_its_own_service_by_mtls() {
    let services = ["10.2.0.10", "fd00:2::10"];
    let service = ServiceOptions::new("web").namespace("shop").ip(services[0]).ip(services[1]);
    let service = service.port(80, 7000).endpoints(["web"]);
    let (lab, [pod]) = lab_with([meshed("web").dual_stack()], [service], |_| true);
    let capture = lab.capture().expect("tcpdump runs");
    for (own, service) in at_each_address(&pod, 7000).into_iter().zip(services) {
        let _server = tell_peer(&pod, own);
        let dialled = SocketAddr::new(service.parse().expect("an address"), 80);
        assert_eq!(ask(&pod, dialled), own.ip());
        let outbound = closed(&pod, "the outbound record", |record| record.target == dialled);
        let inbound = inbound(&pod, own);
        assert_eq!((outbound.direction, outbound.endpoint), (Direction::Outbound, Some(own)));
        assert_eq!(inbound.client.ip(), own.ip(), "over lo, from itself");
        for record in [outbound, inbound] {
            assert_eq!((record.state, record.reason), (Some(TransportState::Mtls), None), "{record:#?}");
            assert_eq!(record.client_identity, Some(identity("web")));
            assert_eq!(record.server_identity, Some(identity("web")));
            assert_eq!(cause(&record), CloseCause::Clean);
        }
    }
    let captured = capture.stop().expect("tcpdump ends");
    captured.check_whole().expect("no packet is missing");
    let ours = captured.flows.iter().filter(|flow| pod.ips().contains(&flow.client.ip()));
    let ours: Vec<_> = ours.filter(|flow| [80, 7000, MESH_PORT].contains(&flow.server.port())).collect();
    assert!(ours.is_empty(), "nothing left the pod: {ours:#?}");
}

#[test]
fn a_pod_calls_its_own_address_with_the_reason_loopback() {
    let (_lab, [pod]) = lab_of([meshed("web").dual_stack()]);
    for own in at_each_address(&pod, 7000) {
        let _server = tell_peer(&pod, own);
        assert_eq!(ask(&pod, own), own.ip());
        let record = closed(&pod, "a record", |record| record.target == own);
        let found = (record.direction, record.state, record.reason);
        assert_eq!(found, (Direction::Outbound, Some(TransportState::Cleartext), Some(Reason::Loopback)));
        let all = pod.connections().expect("the proxy answers");
        assert_eq!(all.closed.iter().filter(|record| record.target == own).count(), 1, "{all:#?}");
    }
}

#[test]
fn our_own_ports_are_refused_from_inside_the_pod() {
    let (_lab, [pod]) = lab_of([meshed("web").dual_stack()]);
    for port in PROXY_PORTS {
        for own in at_each_address(&pod, port) {
            let got = attempt(&pod, own, b"").expect("the proxy accepts");
            assert_eq!(got, (vec![], End::Reset), "{own}");
            assert_eq!(cause(&only(&pod, Direction::Outbound, own)), CloseCause::PortNotAllowed);
        }
    }
    // Past the redirection: the listeners themselves.
    for loopback in LOOPBACKS {
        for (port, direction) in [(OUTBOUND_PORT, Direction::Outbound), (INBOUND_PORT, Direction::Inbound)] {
            let listener = SocketAddr::new(loopback, port);
            let got = attempt(&pod, listener, b"").expect("it listens");
            assert_eq!(got, (vec![], End::Reset), "{listener}");
            assert_eq!(cause(&only(&pod, direction, listener)), CloseCause::PortNotAllowed);
        }
    }
}

#[test]
fn our_own_ports_are_refused_from_other_pods() {
    let pods =
        [meshed("client").dual_stack(), meshed("server").dual_stack(), meshed("stranger").unmeshed().dual_stack()];
    let (_lab, [client, server, stranger]) = lab_of(pods);
    for to in PROXY_PORTS.into_iter().flat_map(|port| at_each_address(&server, port)) {
        for pod in [&client, &stranger] {
            let refused = match to.port() {
                // They serve `/live`, `/ready`, `/metrics` and declared probes to everybody, and nothing else.
                ADMIN_PORT | PROBES_PORT => None,
                INBOUND_PORT => Some(CloseCause::PortNotAllowed),
                MESH_PORT => Some(CloseCause::HandshakeFailed),
                // Nobody listens there but on loopback.
                OUTBOUND_PORT | LOCAL_ADMIN_PORT => Some(CloseCause::ConnectRefused),
                port => panic!("{port} is new: say what it is"),
            };
            reach(pod, &server, to, refused);
        }
    }
}

/// Says something to `to`, and checks what comes back and what the proxies have on record.
fn reach(pod: &Pod, server: &Pod, to: SocketAddr, refused: Option<CloseCause>) {
    let what = format!("{to} from the {}", pod.name());
    let got = attempt(pod, to, b"GET /connections HTTP/1.0\r\n\r\n");
    let Some(refused) = refused else {
        let (answer, _) = got.expect("it serves");
        return assert!(answer.starts_with(b"HTTP/1.0 404"), "{what}: {}", answer.escape_ascii());
    };
    if refused == CloseCause::ConnectRefused && !pod.is_meshed() {
        let error = got.expect_err("nobody listens");
        return assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{what}");
    }
    let (answer, end) = got.expect("somebody listens");
    if refused == CloseCause::HandshakeFailed {
        assert!(answer.starts_with(&TLS_ALERT), "{what}: {}", answer.escape_ascii());
    } else {
        assert_eq!((answer, end), (vec![], End::Reset), "{what}");
    }
    let record = match refused {
        CloseCause::ConnectRefused => only(pod, Direction::Outbound, to),
        _ => inbound_by(server, to, pod.ips()),
    };
    assert_eq!(cause(&record), refused, "{what}: {record:#?}");
}
