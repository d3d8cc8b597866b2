//! D12: an idle mesh connection that has died is replaced unseen, whatever the client has said meanwhile; but what may
//! have been delivered is never sent a second time.

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
};

use hauberk_mesh::{CloseCause, Direction, HandshakeKind, MESH_PORT};

use crate::{
    common::{Server, dial, pair},
    idle::{Scene, request},
    peers::{DATA, END, OPENED, Tls},
    streams::{End, Port, cause, handshake, only, rest, take},
};

#[test]
fn an_idle_connection_whose_peer_was_restarted_is_replaced_unseen() {
    let (_lab, client, server) = pair();
    let _echo = Server::echo(&server, 7000);
    assert_eq!(request(&client, server.at(7000)), HandshakeKind::Full);
    assert_eq!(request(&client, server.at(7000)), HandshakeKind::Reused);
    server.restart_proxy().expect("it finds its certificate in its volume");
    assert_ne!(request(&client, server.at(7000)), HandshakeKind::Reused);
    assert_eq!(request(&client, server.at(7000)), HandshakeKind::Reused);
}

#[test]
fn an_idle_connection_whose_end_was_lost_on_the_way_is_replaced_unseen() {
    const NO_FIN: &str = "table inet lost { chain out { type filter hook output priority 0; \
                          tcp sport 4143 tcp flags & fin == fin drop; }; }";
    let (lab, client, server) = pair();
    let port = Port::listen(&server, 7000);
    let _echo = Server::echo(&server, 7001);
    request(&client, server.at(7001));
    let capture = lab.capture().expect("tcpdump runs");
    server.run("nft", [NO_FIN]).expect("nft");
    server.restart_proxy().expect("it finds its certificate in its volume");
    // The client's proxy still believes in the connection, asks on it, and is answered by a TCP reset.
    let mut app = dial(&client, port.addr()).expect("the proxy accepts");
    app.write_all(b"once").expect("open");
    app.shutdown(Shutdown::Write).expect("open");
    let mut served = port.accept();
    assert_eq!(rest(&mut served), (b"once".to_vec(), End::Clean));
    served.write_all(b"and answered").expect("open");
    drop(served);
    assert_eq!(rest(&mut app), (b"and answered".to_vec(), End::Clean));
    let record = only(&client, Direction::Outbound, port.addr());
    assert_eq!(cause(&record), CloseCause::Clean);
    assert_ne!(handshake(&record), HandshakeKind::Reused);
    assert!(port.is_quiet(), "the application was asked once");

    let captured = capture.stop().expect("tcpdump ends");
    captured.check_whole().expect("no packet is missing");
    let mesh = captured.between(client.ip(), server.ip()).filter(|flow| flow.server.port() == MESH_PORT);
    let mesh: Vec<_> = mesh.map(|flow| (flow.syn_seen, flow.reset, !flow.to_server.bytes.is_empty())).collect();
    assert_eq!(mesh[0], (false, true, true), "the old one: asked on, and reset");
    assert!(mesh[1].0 && mesh[1].2, "the new one");
    assert_eq!(mesh.len(), 2);
}

/// What the hand-written server does instead of an answer.
type Act = fn(Tls);

/// What a client says before there is an answer.
const EARLY: [(&[u8], bool); 4] = [(b"", false), (b"", true), (b"first bytes", false), (b"first bytes", true)];

/// A client that says `early` at once.
fn say(scene: &Scene, early: (&[u8], bool)) -> TcpStream {
    let mut app = scene.dial();
    app.write_all(early.0).expect("open");
    if early.1 {
        app.shutdown(Shutdown::Write).expect("open");
    }
    app
}

/// Reads OPEN and what came with it.
fn hear(peer: &mut Tls, early: (&[u8], bool)) {
    assert_eq!(peer.expect_open(), 7000);
    assert_eq!(peer.expect_data(early.0.len()), early.0);
    if early.1 {
        peer.expect(END);
    }
}

#[test]
fn an_open_that_crosses_with_the_servers_close_is_sent_again_unseen() {
    let closes: [(&str, Act); 3] = [
        ("close_notify", |mut peer| {
            peer.close_notify();
            peer.fin();
        }),
        ("FIN", |peer| peer.fin()),
        ("TCP reset", Tls::reset),
    ];
    let scene = Scene::new();
    for ((what, close), early) in closes.into_iter().flat_map(|close| EARLY.map(|early| (close, early))) {
        let peer = scene.idle();
        let mut app = say(&scene, early);
        peer.await_bytes();
        close(peer);
        let mut fresh = scene.mesh.accept();
        hear(&mut fresh, early);
        fresh.send(OPENED, &[]);
        fresh.send(DATA, b"served");
        assert_eq!(take(&mut app, 6), b"served", "{what} {early:?}");
        let _ = app.shutdown(Shutdown::Write);
        if !early.1 {
            fresh.expect(END);
        }
        fresh.send(END, &[]);
        assert_eq!(rest(&mut app), (vec![], End::Clean));
        assert_eq!(scene.closed(), CloseCause::Clean);
        assert!(scene.mesh.is_quiet());
        scene.end_idle(fresh);
    }
}

#[test]
fn what_may_have_been_delivered_is_not_sent_again() {
    let answers: [(&str, Act, CloseCause); 3] = [
        ("FIN", |peer| peer.fin(), CloseCause::Truncated),
        ("TCP reset", Tls::reset, CloseCause::Reset),
        ("a frame that may not come", |mut peer| peer.send(DATA, b"no answer"), CloseCause::ProtocolError),
    ];
    let scene = Scene::new();
    let early: (&[u8], bool) = (b"first bytes", false);
    for (what, answer, cause) in answers {
        // On a fresh connection nothing but an answer says that nothing was delivered.
        let mut app = say(&scene, early);
        let mut peer = scene.mesh.accept();
        hear(&mut peer, early);
        answer(peer);
        assert_eq!(rest(&mut app), (vec![], End::Reset), "{what}");
        assert_eq!(scene.closed(), cause, "{what}");
        assert!(scene.mesh.is_quiet(), "{what}: it was asked once");
    }
    // Nor on one that was used before, if what comes is no end.
    let mut peer = scene.idle();
    let mut app = say(&scene, early);
    hear(&mut peer, early);
    peer.send(DATA, b"no answer");
    assert_eq!(rest(&mut app), (vec![], End::Reset));
    assert_eq!(scene.closed(), CloseCause::ProtocolError);
    assert!(scene.mesh.is_quiet(), "it was asked once");
}
