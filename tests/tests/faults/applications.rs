//! Applications and endpoints that are not there.

use std::{io::Write, time::Instant};

use hauberk_lab::PodOptions;
use hauberk_mesh::Direction;

use super::row::{NOTHING, Row, next, try_echo};
use crate::{
    common::{Server, dial, pair},
    scene::{PORT, at, meshed, scene, service},
    streams::{last_outbound, only, take},
};

const SERVICE: &str = "10.2.0.10";

#[test]
fn the_application_behind_a_live_proxy_is_down() {
    let row = Row::of("the_application_behind_a_live_proxy_is_down");
    let (_lab, client, server) = pair();
    let to = server.at(PORT);
    row.check(&try_echo(&client, to, b"anybody?"));
    row.check_cause(&only(&client, Direction::Outbound, to));
    row.check_cause(&only(&server, Direction::Inbound, to));
    let _echo = Server::echo(&server, PORT);
    row.check_recovery(&client, to);
}

#[test]
fn an_application_that_accepts_no_more_connections() {
    let row = Row::of("an_application_that_accepts_no_more_connections");
    let (_lab, client, server) = pair();
    let to = server.at(PORT);
    // Its queue holds one connection, and nobody takes any: further ones get no answer from the kernel.
    let full = server.enter(|| {
        let socket = crate::talk::socket(to);
        // As its successor does: connections that have ended may still have the address.
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&to.into()).expect("the port is free");
        socket.listen(0).expect("it listens");
        let held = [(), ()].map(|()| std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(200)));
        (socket, held)
    });
    row.check(&try_echo(&client, to, b"anybody?"));
    row.check_cause(&last_outbound(&client, to));
    drop(full);
    let _echo = Server::echo(&server, PORT);
    row.check_recovery(&client, to);
}

#[test]
fn an_endpoint_is_killed_under_its_connections() {
    let row = Row::of("an_endpoint_is_killed_under_its_connections");
    let pods = [meshed("client"), meshed("other"), meshed("victim").weight(1000)];
    let (_lab, [client, other, victim]) = scene(pods, [service(SERVICE, ["other", "victim"])]);
    let _other = Server::echo(&other, PORT);
    let application = Server::echo(&victim, PORT);
    let mut open = dial(&client, at(SERVICE)).expect("the proxy accepts");
    open.write_all(b"to the victim").expect("open");
    assert_eq!(take(&mut open, 13), b"to the victim");
    drop(application);
    let begin = Instant::now();
    victim.kill_proxy().expect("it runs");
    row.check(&next(&open, begin));
    let record = last_outbound(&client, at(SERVICE));
    assert_eq!(record.endpoint, Some(victim.at(PORT)));
    row.check_cause(&record);
    for _ in 0..10 {
        // The other endpoint serves, at once.
        assert_eq!(try_echo(&client, at(SERVICE), b"and now?").what, NOTHING);
    }
    let _application = Server::echo(&victim, PORT);
    victim.restart_proxy().expect("it finds its certificate in its volume");
    row.check_recovery(&client, at(SERVICE));
}

#[test]
fn the_address_is_one_that_no_pod_has() {
    let row = Row::of("the_address_is_one_that_no_pod_has");
    let (lab, client, _server) = pair();
    let to = "10.1.200.200:7000".parse().expect("an address");
    row.check(&try_echo(&client, to, b"anybody?"));
    row.check_cause(&only(&client, Direction::Outbound, to));
    drop(lab);
}

#[test]
fn a_service_has_no_endpoint() {
    let row = Row::of("a_service_has_no_endpoint");
    let pods = [meshed("client"), PodOptions::new("server").namespace("shop").account("server").meshed()];
    let (lab, [client, server]) = scene(pods, [service(SERVICE, [])]);
    let _echo = Server::echo(&server, PORT);
    row.check(&try_echo(&client, at(SERVICE), b"anybody?"));
    row.check_cause(&last_outbound(&client, at(SERVICE)));
    crate::scene::set_endpoints(&lab, SERVICE, &["server"]);
    row.check_recovery(&client, at(SERVICE));
}
