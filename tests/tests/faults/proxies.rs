//! Proxies that die, or that say nothing.

use std::{io::Write, time::Instant};

use hauberk_mesh::Direction;

use super::row::{REFUSED, RESET, Row, next, try_echo};
use crate::{
    common::{Server, pair},
    idle::Scene,
    scene::PORT,
    streams::{Port, inbound, last_outbound, only, pass},
};

#[test]
fn the_clients_own_proxy_is_killed() {
    let row = Row::of("the_clients_own_proxy_is_killed");
    let (_lab, client, server) = pair();
    let port = Port::listen(&server, PORT);
    let (at_client, mut at_server) = port.connection(&client);
    pass(&at_client, &at_server, b"to");
    let begin = Instant::now();
    client.kill_proxy().expect("it runs");
    row.check(&next(&at_client, begin));
    assert_eq!(next(&mut at_server, begin).what, RESET, "to the other side it is never an end");
    row.check_cause(&inbound(&server, port.addr()));
    assert_eq!(try_echo(&client, port.addr(), b"new").what, REFUSED, "new connections are refused, never in plaintext");
    drop(port);
    let _echo = Server::echo(&server, PORT);
    client.restart_proxy().expect("it finds its certificate in its volume");
    row.check_recovery(&client, server.at(PORT));
}

#[test]
fn the_servers_proxy_is_killed() {
    let row = Row::of("the_servers_proxy_is_killed");
    let (_lab, client, server) = pair();
    let port = Port::listen(&server, PORT);
    let (at_client, _at_server) = port.connection(&client);
    let begin = Instant::now();
    server.kill_proxy().expect("it runs");
    row.check(&next(&at_client, begin));
    row.check_cause(&only(&client, Direction::Outbound, port.addr()));
    assert_eq!(try_echo(&client, port.addr(), b"new").what, RESET, "never in plaintext");
    drop(port);
    let _echo = Server::echo(&server, PORT);
    server.restart_proxy().expect("it finds its certificate in its volume");
    row.check_recovery(&client, server.at(PORT));
}

#[test]
fn the_servers_proxy_is_frozen() {
    let row = Row::of("the_servers_proxy_is_frozen");
    let (_lab, client, server) = pair();
    let _echo = Server::echo(&server, PORT);
    row.check_recovery(&client, server.at(PORT));
    last_outbound(&client, server.at(PORT));
    let freeze = |signal| server.with_proxy(|proxy| proxy.signal(signal)).expect("it runs");
    freeze(hauberk_lab::Signal::SIGSTOP);
    row.check(&try_echo(&client, server.at(PORT), b"anybody?"));
    row.check_cause(&last_outbound(&client, server.at(PORT)));
    freeze(hauberk_lab::Signal::SIGCONT);
    row.check_recovery(&client, server.at(PORT));
}

#[test]
fn the_servers_proxy_never_answers_an_open() {
    let row = Row::of("the_servers_proxy_never_answers_an_open");
    let scene = Scene::new();
    let begin = Instant::now();
    let mut app = scene.dial();
    app.write_all(b"anybody?").expect("open");
    let mut peer = scene.mesh.accept();
    assert_eq!(peer.expect_open(), 7000);
    row.check(&next(&app, begin));
    row.check_cause(&scene.record());
}
