//! Peers that break the protocol at the mesh port: no stream comes of it, within a limit, and others are served.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use hauberk_lab::{Lab, Pod};
use hauberk_mesh::{Connection, Connections, Direction, MESH_PORT};

use super::row::{END, NOTHING, RESET, Row, Seen, try_echo};
use crate::{
    common::{LIMIT, Server, dial},
    peers::{HAUBERK, LINKERD, Tls, connect},
    scene::PORT,
    streams::{Port, lab_of, meshed},
};

/// A real server's proxy, and two hand-written clients' places.
struct Scene {
    lab: Lab,
    stranger: Pod,
    server: Pod,
    port: Port,
}

impl Scene {
    fn new() -> Self {
        let (lab, [stranger, server]) = lab_of([meshed("stranger").unmeshed(), meshed("server")]);
        let port = Port::listen(&server, PORT);
        Self { lab, stranger, server, port }
    }

    fn tls(&self, alpn: &str) -> Tls {
        connect(&self.lab, &self.stranger, &self.server, alpn)
    }

    /// Holds what became of a broken opening to the row.
    fn check(&self, row: &Row, what: &str, begin: Instant, mut tls: impl Read) {
        let seen = match tls.read(&mut [0; 16]) {
            Ok(0) => END,
            Ok(_) => panic!("{what}: an answer"),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => END,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => RESET,
            Err(error) => panic!("{what}: {error}"),
        };
        // Either says that nothing was opened; which one comes depends on what was still unread.
        assert!([END, RESET].contains(&seen), "{what}: {seen}");
        row.check(&Seen { what: "end of the connection", after: begin.elapsed() });
        row.check_cause(&self.record(what));
        assert!(self.port.is_quiet(), "{what}: the application knows nothing of it");
    }

    /// The record of the stranger's last connection.
    fn record(&self, what: &str) -> Connection {
        let from = |it: &Connection| it.direction == Direction::Inbound && it.client.ip() == self.stranger.ip();
        let last = |all: &Connections| match all.live.iter().any(from) {
            true => None,
            false => all.closed.iter().rfind(|it| from(it)).cloned(),
        };
        self.server.wait_connections(what, last).expect("a record")
    }
}

/// A header of Linkerd's that announces a message of `length` bytes, with the message.
fn header(length: u32, message: &[u8]) -> Vec<u8> {
    [&b"transport.l5d.io/v1\r\n\r\n"[..], &length.to_be_bytes(), message].concat()
}

#[test]
fn a_peers_opening_frame_is_truncated() {
    let row = Row::of("a_peers_opening_frame_is_truncated");
    let scene = Scene::new();
    let open = [1, 0, 0, 3, 0x1b, 0x58, 0];
    for count in 1..open.len() {
        let begin = Instant::now();
        let mut tls = scene.tls(HAUBERK);
        tls.write_all(&open[..count]).expect("open");
        tls.close_notify();
        tls.fin();
        scene.check(&row, &format!("{count} bytes"), begin, tls);
    }
}

#[test]
fn a_peers_opening_frame_is_oversized_or_none() {
    let row = Row::of("a_peers_opening_frame_is_oversized_or_none");
    let scene = Scene::new();
    for frame in [[1, 0, 1, 1], [1, 0xff, 0xff, 0xff], [1, 0, 0, 2], [4, 0, 0, 1], [9, 0, 0, 0]] {
        let begin = Instant::now();
        let mut tls = scene.tls(HAUBERK);
        tls.write_all(&frame).expect("open");
        scene.check(&row, &format!("{frame:?}"), begin, tls);
    }
}

#[test]
fn a_peers_opening_frame_is_slow() {
    let row = Row::of("a_peers_opening_frame_is_slow");
    let scene = Scene::new();
    for part in [&[][..], &[1], &[1, 0, 0, 3, 0x1b]] {
        let begin = Instant::now();
        let mut tls = scene.tls(HAUBERK);
        tls.write_all(part).expect("open");
        scene.check(&row, &format!("{part:?}"), begin, tls);
    }
}

#[test]
fn a_linkerd_header_is_truncated() {
    let row = Row::of("a_linkerd_header_is_truncated");
    let scene = Scene::new();
    let whole = header(3, &[8, 0xd8, 0x36]);
    for count in [1, 22, 25, whole.len() - 1] {
        let begin = Instant::now();
        let mut tls = scene.tls(LINKERD);
        tls.write_all(&whole[..count]).expect("open");
        tls.close_notify();
        tls.fin();
        scene.check(&row, &format!("{count} bytes"), begin, tls);
    }
}

#[test]
fn a_linkerd_header_is_oversized_or_none() {
    let row = Row::of("a_linkerd_header_is_oversized_or_none");
    let scene = Scene::new();
    for bytes in [header(4097, &[]), header(u32::MAX, &[]), header(2, &[8, 0x80]), b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let begin = Instant::now();
        let mut tls = scene.tls(LINKERD);
        tls.write_all(&bytes).expect("open");
        scene.check(&row, &format!("{bytes:?}"), begin, tls);
    }
}

#[test]
fn a_linkerd_header_is_slow() {
    let row = Row::of("a_linkerd_header_is_slow");
    let scene = Scene::new();
    for count in [0, 1, 26] {
        let begin = Instant::now();
        let mut tls = scene.tls(LINKERD);
        tls.write_all(&header(3, &[])[..count]).expect("open");
        scene.check(&row, &format!("{count} bytes"), begin, tls);
    }
}

#[test]
fn a_handshake_at_the_mesh_port_is_slow() {
    let row = Row::of("a_handshake_at_the_mesh_port_is_slow");
    let scene = Scene::new();
    for part in [&[][..], &[22, 3, 1, 2, 0, 1]] {
        let begin = Instant::now();
        let mut tcp = dial(&scene.stranger, scene.server.at(MESH_PORT)).expect("the mesh port accepts");
        tcp.write_all(part).expect("open");
        scene.check(&row, &format!("{part:?}"), begin, tcp);
    }
}

#[test]
fn a_flood_of_strangers_at_the_mesh_port() {
    let row = Row::of("a_flood_of_strangers_at_the_mesh_port");
    let strangers: [_; 9] = std::array::from_fn(|i| meshed(&format!("stranger-{i}")).unmeshed());
    // 16 may be in handshake, 4 of one address: each stranger takes what it gets, and they are more than fit.
    let server = meshed("server").limits("handshakes=16,handshake=1h,open=1h");
    let [a, b, c, d, e, f, g, h, i] = strangers;
    let (_lab, [peer, server, strangers @ ..]) = lab_of([meshed("peer"), server, a, b, c, d, e, f, g, h, i]);
    let _echo = Server::echo(&server, PORT);
    let flood = |each: usize| -> Vec<TcpStream> {
        let streams = strangers.iter().flat_map(|pod| (0..each).map(move |_| pod));
        // Who is refused may be told so while it still connects.
        streams.filter_map(|pod| dial(pod, server.at(MESH_PORT)).ok()).collect()
    };
    let _held = flood(8);
    hauberk_lab::wait_for("the flood has arrived", LIMIT, || {
        let refused = crate::streams::metric(&server, "hauberk_limit_reached_total", &[("listener", "mesh")]);
        Ok(if refused >= 36.0 { Ok(()) } else { Err(format!("{refused} refused")) })
    })
    .expect("strangers are refused");
    row.check(&try_echo(&peer, server.at(PORT), b"a peer"));
    let _more = flood(2);
    assert_eq!(try_echo(&peer, server.at(PORT), b"another connection").what, NOTHING);
    assert_eq!(server.admin("/ready").expect("probes are answered"), "ready\n");
    row.check_cause(&crate::streams::last_outbound(&peer, server.at(PORT)));
}
