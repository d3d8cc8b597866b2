//! D13: Linkerd's transport header, both ways, against bytes that another encoder has written, between a real proxy
//! and a hand-written peer that speaks nothing else. The end of a direction is TLS' close_notify.

use std::{io::Write, net::Shutdown};

use hauberk_mesh::{CloseCause, ClosedBy, Connection, Direction, TransportState};

use crate::{
    common::{dial, identity},
    peers::{LINKERD, MeshPort, Tls, connect},
    streams::{End, Port, inbound, lab_of, lab_with, last_outbound, meshed, only, pattern, reset, rest, take},
};

/// The header for each port: preface, length, and the message as in `proxy/src/linkerd.rs`, where it says by what it
/// was written.
const HEADERS: [(u16, &[u8]); 3] = [
    (6379, b"transport.l5d.io/v1\r\n\r\n\0\0\0\x03\x08\xeb\x31"),
    (80, b"transport.l5d.io/v1\r\n\r\n\0\0\0\x02\x08\x50"),
    (65535, b"transport.l5d.io/v1\r\n\r\n\0\0\0\x04\x08\xff\xff\x03"),
];
/// Of the same encoder, to port 80: they name what the client dialled, which asks to be led on to somewhere else.
const NAMED: [&[u8]; 2] = [
    b"transport.l5d.io/v1\r\n\r\n\0\0\0\x0c\x08\x50\x12\x04\x61\x3a\x38\x30\x1a\x02\x12\0",
    b"transport.l5d.io/v1\r\n\r\n\0\0\0\x1f\x08\x90\x3f\x12\x1a\x77\x65\x62\x2e\x73\x68\x6f\x70\x2e\x73\x76\x63\x2e\
      \x63\x6c\x75\x73\x74\x65\x72\x2e\x6c\x6f\x63\x61\x6c",
];

const LARGE: usize = 1_000_000;

/// The record is of mTLS by Linkerd's protocol between `client` and `server`, and ended so.
fn check(record: &Connection, cause: CloseCause, by: ClosedBy) {
    let close = record.close.as_ref().expect("closed");
    assert_eq!((close.cause, close.by), (cause, by), "{record:#?}");
    assert_eq!(record.state, Some(TransportState::Mtls));
    assert_eq!(record.tls.as_ref().map(|tls| tls.protocol.as_str()), Some(LINKERD));
    assert_eq!(record.client_identity, Some(identity("client")));
    assert_eq!(record.server_identity, Some(identity("server")));
}

/// Both directions carry data at once and each ends by itself: the peer's first, then the application's.
fn check_stream(peer: &mut Tls, app: &mut std::net::TcpStream) {
    let large = pattern(LARGE);
    std::thread::scope(|scope| {
        let mut writer = app.try_clone().expect("descriptors are free");
        let large = &large;
        let sending = scope.spawn(move || {
            assert!(take(&mut writer, LARGE) == *large);
            assert_eq!(rest(&mut writer), (vec![], End::Clean), "close_notify is an end of file");
            writer.write_all(large).expect("the other direction is open");
            writer.shutdown(Shutdown::Write).expect("open");
        });
        peer.write_all(large).expect("open");
        peer.close_notify();
        let (got, end) = rest(peer);
        assert!(got == *large, "{} bytes", got.len());
        assert_eq!(end, End::Clean, "an end of file is close_notify");
        sending.join().expect("sent");
    });
}

#[test]
fn a_client_that_sends_the_header_is_served() {
    let (lab, [client, server]) = lab_of([meshed("client").unmeshed(), meshed("server")]);
    for (number, header) in HEADERS {
        let port = Port::listen(&server, number);
        let mut peer = connect(&lab, &client, &server, LINKERD);
        peer.write_all(header).expect("open");
        let mut app = port.accept();
        check_stream(&mut peer, &mut app);
        check(&inbound(&server, port.addr()), CloseCause::Clean, ClosedBy::Client);
    }
}

#[test]
fn a_header_in_pieces_and_bytes_that_come_with_it_are_understood() {
    let (lab, [client, server]) = lab_of([meshed("client").unmeshed(), meshed("server")]);
    let port = Port::listen(&server, 6379);
    let with_more = [HEADERS[0].1, b"*1\r\n$4\r\nPING\r\n"].concat();
    for size in [1, 24, with_more.len()] {
        let mut peer = connect(&lab, &client, &server, LINKERD);
        // Each piece is a TLS record.
        with_more.chunks(size).for_each(|piece| peer.write_all(piece).expect("open"));
        let mut app = port.accept();
        assert_eq!(take(&mut app, 14), b"*1\r\n$4\r\nPING\r\n", "pieces of {size}");
        app.write_all(b"+PONG\r\n").expect("open");
        assert_eq!(take(&mut peer, 7), b"+PONG\r\n");
    }
}

#[test]
fn a_header_that_names_where_to_go_on_to_is_refused() {
    let (lab, [client, server]) = lab_of([meshed("client").unmeshed(), meshed("server")]);
    let ports = [80, 8080].map(|number| Port::listen(&server, number));
    for header in NAMED {
        let mut peer = connect(&lab, &client, &server, LINKERD);
        peer.write_all(header).expect("open");
        assert_eq!(rest(&mut peer), (vec![], End::Reset));
    }
    assert!(ports.iter().all(Port::is_quiet));
}

#[test]
fn our_client_sends_the_header_to_a_server_that_speaks_nothing_else() {
    let (lab, [client, server]) = lab_with([meshed("client"), meshed("server")], [], |pod| pod.name() == "client");
    let mesh = MeshPort::listen(&lab, &server, LINKERD);
    for (port, header) in HEADERS {
        let mut app = dial(&client, server.at(port)).expect("the proxy accepts");
        let mut peer = mesh.accept();
        assert_eq!(take(&mut peer, header.len()), header, "at once: the application has said nothing");
        check_stream(&mut peer, &mut app);
        check(&only(&client, Direction::Outbound, server.at(port)), CloseCause::Clean, ClosedBy::Server);
    }
    assert!(mesh.is_quiet(), "one connection for each stream");
}

/// How a Linkerd-like peer breaks off. Gives the connection back if it is still held.
type Break = fn(Tls) -> Option<Tls>;

const BREAKS: [(&str, Break, CloseCause); 2] = [
    (
        "FIN without close_notify",
        |peer| {
            peer.fin();
            Some(peer)
        },
        CloseCause::Truncated,
    ),
    (
        "TCP reset",
        |peer| {
            peer.reset();
            None
        },
        CloseCause::Reset,
    ),
];

#[test]
fn an_end_without_close_notify_is_a_reset_to_the_client() {
    let (lab, [client, server]) = lab_with([meshed("client"), meshed("server")], [], |pod| pod.name() == "client");
    let mesh = MeshPort::listen(&lab, &server, LINKERD);
    let (port, header) = HEADERS[0];
    for (what, breaks, cause) in BREAKS {
        let mut app = dial(&client, server.at(port)).expect("the proxy accepts");
        let mut peer = mesh.accept();
        take(&mut peer, header.len());
        peer.write_all(b"half of").expect("open");
        assert_eq!(take(&mut app, 7), b"half of");
        let _held = breaks(peer);
        assert_eq!(rest(&mut app), (vec![], End::Reset), "{what}");
        check(&last_outbound(&client, server.at(port)), cause, ClosedBy::Server);
    }
    // And the application's reset is one to the peer.
    let app = dial(&client, server.at(port)).expect("the proxy accepts");
    let mut peer = mesh.accept();
    take(&mut peer, header.len());
    reset(app);
    assert_eq!(rest(&mut peer), (vec![], End::Reset));
}

#[test]
fn an_end_without_close_notify_is_a_reset_to_the_server() {
    let (lab, [client, server]) = lab_of([meshed("client").unmeshed(), meshed("server")]);
    for ((what, breaks, cause), (number, header)) in BREAKS.into_iter().zip(HEADERS) {
        let port = Port::listen(&server, number);
        let mut peer = connect(&lab, &client, &server, LINKERD);
        peer.write_all(&[header, b"half of"].concat()).expect("open");
        let mut app = port.accept();
        assert_eq!(take(&mut app, 7), b"half of");
        let _held = breaks(peer);
        assert_eq!(rest(&mut app), (vec![], End::Reset), "{what}");
        check(&inbound(&server, port.addr()), cause, ClosedBy::Client);
    }
    // And the application's reset is one to the peer.
    let (number, header) = HEADERS[2];
    let port = Port::listen(&server, number);
    let mut peer = connect(&lab, &client, &server, LINKERD);
    peer.write_all(&[header, b"half of"].concat()).expect("open");
    let mut app = port.accept();
    assert_eq!(take(&mut app, 7), b"half of");
    reset(app);
    assert_eq!(rest(&mut peer), (vec![], End::Reset));
    check(&inbound(&server, port.addr()), CloseCause::Reset, ClosedBy::Server);
}
