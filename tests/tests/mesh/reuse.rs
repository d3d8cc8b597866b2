//! D12: a mesh connection is used again after a clean end, never after anything else, nor under other certificates.

use std::{
    io::{ErrorKind, Read as _, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, SystemTime},
};

use hauberk_identity::server::{Lifetimes, rotation};
use hauberk_lab::{ControlOptions, Lab, wait_for};
use hauberk_mesh::{CloseCause, Direction, HandshakeKind, MESH_PORT};

use crate::{
    common::{LIMIT, Server, exchange, pair},
    idle::{Scene, request},
    peers::{DATA, END, FAILED, HAUBERK, OPENED, RESET, Tls, connect},
    streams::{End, Port, cause, handshake, lab_of, meshed, metric, only, pass, reset, rest, take},
};

#[test]
fn after_a_clean_end_the_connection_is_used_again() {
    const STREAMS: u16 = 9;
    let (lab, client, server) = pair();
    let capture = lab.capture().expect("tcpdump runs");
    for number in 0..STREAMS {
        let port = Port::listen(&server, 7000 + number);
        let (mut at_client, mut at_server) = port.connection(&client);
        pass(&at_client, &at_server, b"there");
        pass(&at_server, &at_client, b"and back");
        // Whoever ends first.
        let (first, second) =
            if number % 2 == 0 { (&mut at_client, &mut at_server) } else { (&mut at_server, &mut at_client) };
        first.shutdown(Shutdown::Write).expect("open");
        assert_eq!(rest(second), (vec![], End::Clean));
        second.shutdown(Shutdown::Write).expect("open");
        assert_eq!(rest(first), (vec![], End::Clean));
        let expected = if number == 0 { HandshakeKind::Full } else { HandshakeKind::Reused };
        for (pod, direction) in [(&client, Direction::Outbound), (&server, Direction::Inbound)] {
            let record = only(pod, direction, port.addr());
            assert_eq!((cause(&record), handshake(&record)), (CloseCause::Clean, expected), "{number} {direction}");
        }
    }
    let captured = capture.stop().expect("tcpdump ends");
    captured.check_whole().expect("no packet is missing");
    let mesh = captured.between(client.ip(), server.ip()).filter(|flow| flow.server.port() == MESH_PORT);
    assert_eq!(mesh.count(), 1, "one connection on the wire");
    // It is counted once it closes.
    client.stop_proxy().expect("it runs");
    wait_for("the connection is counted", LIMIT, || {
        let count =
            |what| metric(&server, &format!("hauberk_streams_per_connection_{what}"), &[("direction", "inbound")]);
        let found = (count("count"), count("sum"));
        Ok(if found == (1.0, f64::from(STREAMS)) { Ok(()) } else { Err(format!("{found:?}")) })
    })
    .expect("one connection of all streams");
}

/// What happens to a stream, or to the idle connection after it. Gives the connection back if it is still held.
type Ending = (&'static str, fn(&Scene) -> Option<Tls>);

/// A stream that is open, with a byte each way: the peer's end, and the application's.
fn open(scene: &Scene) -> (Tls, TcpStream) {
    let app = scene.dial();
    let mut peer = scene.mesh.accept();
    peer.expect_open();
    peer.send(OPENED, &[]);
    peer.send(DATA, b"<");
    assert_eq!(take(&mut &app, 1), b"<");
    (&app).write_all(b">").expect("open");
    assert_eq!(peer.expect_data(1), b">");
    (peer, app)
}

/// The peer does `ends` to an open stream, which resets the application.
fn broken(scene: &Scene, ends: impl FnOnce(Tls) -> Option<Tls>) -> Option<Tls> {
    let (peer, mut app) = open(scene);
    let held = ends(peer);
    assert_eq!(rest(&mut app), (vec![], End::Reset));
    assert_ne!(scene.closed(), CloseCause::Clean);
    held
}

/// The peer does `ends` to an idle connection.
fn idle_and(scene: &Scene, ends: impl FnOnce(&mut Tls)) -> Option<Tls> {
    let mut peer = scene.idle();
    ends(&mut peer);
    scene.await_arrival(&peer);
    Some(peer)
}

const NOT_CLEAN: [Ending; 11] = [
    ("the application's reset", |scene| {
        let (mut peer, app) = open(scene);
        reset(app);
        peer.expect(RESET);
        Some(peer)
    }),
    ("the application's reset after its end", |scene| {
        let (mut peer, app) = open(scene);
        app.shutdown(Shutdown::Write).expect("open");
        peer.expect(END);
        reset(app);
        peer.expect(RESET);
        Some(peer)
    }),
    ("RESET", |scene| {
        broken(scene, |mut peer| {
            peer.send(RESET, &[]);
            Some(peer)
        })
    }),
    ("FIN in a stream", |scene| {
        broken(scene, |peer| {
            peer.fin();
            Some(peer)
        })
    }),
    ("close_notify in a stream", |scene| {
        broken(scene, |mut peer| {
            peer.close_notify();
            Some(peer)
        })
    }),
    ("TCP reset in a stream", |scene| {
        broken(scene, |peer| {
            peer.reset();
            None
        })
    }),
    ("FAILED", |scene| {
        const REFUSED: u8 = 1;
        let mut app = scene.dial();
        let mut peer = scene.mesh.accept();
        peer.expect_open();
        peer.send(FAILED, &[REFUSED]);
        assert_eq!(rest(&mut app), (vec![], End::Reset));
        assert_eq!(scene.closed(), CloseCause::ConnectRefused);
        Some(peer)
    }),
    ("a byte after the end, with it", |scene| {
        let mut app = scene.dial();
        let mut peer = scene.mesh.accept();
        peer.expect_open();
        app.shutdown(Shutdown::Write).expect("open");
        peer.expect(END);
        // OPENED, END, and the first byte of a frame that nobody asked for: one TLS record.
        peer.write_all(&[OPENED, 0, 0, 0, END, 0, 0, 0, DATA]).expect("open");
        assert_eq!(rest(&mut app), (vec![], End::Clean));
        assert_eq!(scene.closed(), CloseCause::Clean);
        Some(peer)
    }),
    ("a byte while it is idle", |scene| idle_and(scene, |peer| peer.write_all(&[DATA]).expect("open"))),
    ("close_notify while it is idle", |scene| idle_and(scene, Tls::close_notify)),
    ("FIN while it is idle", |scene| idle_and(scene, |peer| peer.fin())),
];

#[test]
fn after_anything_but_a_clean_end_it_is_never_used_again() {
    let scene = Scene::new();
    // That it would be: the same connection, idle, serves the next stream.
    let mut peer = scene.idle();
    let mut app = scene.dial();
    scene.serve(&mut peer, &mut app);
    assert!(scene.mesh.is_quiet());
    scene.end_idle(peer);
    for (what, ends) in NOT_CLEAN {
        let held = ends(&scene);
        let mut app = scene.dial();
        let mut fresh = scene.mesh.accept();
        scene.serve(&mut fresh, &mut app);
        if let Some(mut old) = held {
            assert!(old.frame().is_err(), "{what}: not a frame more");
        }
        let record = scene.record();
        assert_ne!(handshake(&record), HandshakeKind::Reused, "{what}");
        assert!(scene.mesh.is_quiet(), "{what}");
        // The next case begins with nothing idle.
        scene.end_idle(fresh);
    }
}

/// What the hand-written client of a server's proxy does with an open stream. Gives the application's end back, which
/// must not end by itself, if it is still there.
type Misuse = (&'static str, fn(&mut Tls, TcpStream) -> Option<TcpStream>);

/// The client has ended its direction, and the application knows.
fn client_ended(peer: &mut Tls, mut app: TcpStream) -> TcpStream {
    peer.send(END, &[]);
    assert_eq!(rest(&mut app), (vec![], End::Clean));
    app
}

const MISUSES: [Misuse; 4] = [
    ("RESET", |peer, mut app| {
        peer.send(RESET, &[]);
        assert_eq!(rest(&mut app), (vec![], End::Reset));
        Some(app)
    }),
    ("RESET after END", |peer, app| {
        let app = client_ended(peer, app);
        peer.send(RESET, &[]);
        Some(app)
    }),
    ("DATA after END", |peer, app| {
        let app = client_ended(peer, app);
        peer.send(DATA, b"more");
        Some(app)
    }),
    ("the application's reset", |peer, app| {
        reset(app);
        peer.expect(RESET);
        None
    }),
];

#[test]
fn a_servers_proxy_too_serves_again_only_after_a_clean_end() {
    let (lab, [client, server]) = lab_of([meshed("client").unmeshed(), meshed("server")]);
    let open = |port: &Port, peer: &mut Tls| {
        peer.open(port.addr().port());
        peer.expect(OPENED);
        port.accept()
    };
    let next = Port::listen(&server, 6999);
    for ((what, misuse), number) in MISUSES.into_iter().zip(7000..) {
        let port = Port::listen(&server, number);
        let mut peer = connect(&lab, &client, &server, HAUBERK);
        // A clean end, and another stream.
        let app = open(&port, &mut peer);
        drop(client_ended(&mut peer, app));
        peer.expect(END);
        let app = open(&port, &mut peer);
        let _held = misuse(&mut peer, app);
        // The proxy may have closed already.
        let [high, low] = next.addr().port().to_be_bytes();
        let _ = peer.write_all(&[1, 0, 0, 3, high, low, 0]);
        assert!(peer.frame().is_err(), "{what}: no answer");
    }
    let (mut peer, port) = (connect(&lab, &client, &server, HAUBERK), 7999);
    peer.open(port);
    assert_eq!(peer.expect(FAILED), [1], "nobody listens on {port}");
    let _ = peer.write_all(&[1, 0, 0, 3, 0x1b, 0x57, 0]);
    assert!(peer.frame().is_err(), "after FAILED: no answer");
    assert!(next.is_quiet(), "no second stream was opened");
}

#[test]
fn whoever_ends_an_idle_connection_keeps_no_port_for_it() {
    let (lab, [client, server]) = lab_of([meshed("client").unmeshed(), meshed("server")]);
    let port = Port::listen(&server, 7000);
    let ends: [fn(&mut Tls); 2] = [|peer| peer.fin(), Tls::close_notify];
    for end in ends {
        let mut peer = connect(&lab, &client, &server, HAUBERK);
        peer.open(port.addr().port());
        peer.expect(OPENED);
        drop(client_ended(&mut peer, port.accept()));
        peer.expect(END);
        end(&mut peer);
        let end = peer.read(&mut [0]).expect_err("no orderly end");
        assert_eq!(end.kind(), ErrorKind::ConnectionReset, "{end}");
    }
}

#[test]
fn a_new_trust_bundle_ends_reuse() {
    let (lab, client, server) = pair();
    let _echo = Server::echo(&server, 7000);
    assert_eq!(request(&client, server.at(7000)), HandshakeKind::Full);
    assert_eq!(request(&client, server.at(7000)), HandshakeKind::Reused);
    rotation::publish_next_root(&lab.identity_dir(), &Lifetimes::default(), SystemTime::now())
        .expect("the CA is there");
    wait_for("the client's proxy has the new bundle", LIMIT, || {
        let generation = metric(&client, "hauberk_trust_generation", &[]);
        Ok(if generation >= 2.0 { Ok(()) } else { Err(format!("generation {generation}")) })
    })
    .expect("the bundle arrives");
    assert_eq!(request(&client, server.at(7000)), HandshakeKind::Full, "nor is the session resumed");
    assert_eq!(request(&client, server.at(7000)), HandshakeKind::Reused);
}

#[test]
fn a_new_certificate_ends_reuse() {
    let lab = Lab::new().expect("root and iproute2");
    let [client, server] = ["client", "server"].map(|name| lab.pod(meshed(name)).expect("a pod"));
    let lifetime = Duration::from_secs(20);
    let options = ControlOptions { leaf_lifetime: lifetime, ..ControlOptions::default() };
    lab.start_control_plane_with(options).expect("the control plane starts");
    for pod in [&client, &server] {
        lab.start_proxy(pod).expect("the proxy starts");
    }
    let _echo = Server::echo(&server, 7000);
    let generation = || metric(&client, "hauberk_certificate_generation", &[]);
    let first = generation();
    let mut kinds = Vec::new();
    while generation() == first {
        kinds.push(request(&client, server.at(7000)));
    }
    assert!(kinds.contains(&HandshakeKind::Reused), "{kinds:?}");
    // The change came during the last request, which then was the first with the new certificate, or after it.
    let last = kinds.pop();
    let next = request(&client, server.at(7000));
    assert!([last, Some(next)].contains(&Some(HandshakeKind::Full)), "{last:?}, then {next}");
    assert!(!exchange(&client, server.at(7000), b"goes on").expect("an answer").is_empty());
}
