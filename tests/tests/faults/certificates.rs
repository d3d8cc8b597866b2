//! Certificates that nobody should believe, and those that nobody renews.

use std::{
    io::Read,
    time::{Duration, Instant, SystemTime},
};

use hauberk_identity::{
    Credentials,
    server::{Ca, Lifetimes},
};
use hauberk_lab::{ControlOptions, Lab, Pod, wait_for};
use hauberk_mesh::{Direction, TrustDomain};

use super::row::{NOTHING, RESET, Row, Seen, next, try_echo};
use crate::{
    common::{LIMIT, Server, closed, dial},
    peers::{HAUBERK, MeshPort, Tls, connect_as, identity_of, lab_ca},
    scene::PORT,
    streams::{lab_of, lab_with, last_outbound, meshed, metric, pass},
};

/// A certificate of the lab's CA for `pod` that has ended.
fn ended(lab: &Lab, pod: &Pod) -> Credentials {
    let lifetimes = Lifetimes { leaf: Duration::from_secs(2), ..Lifetimes::default() };
    let made = lab_ca(lab, lifetimes).credentials(&identity_of(pod), 1, SystemTime::now()).expect("a valid name");
    // Certificates count in whole seconds.
    let over = made.not_after() + Duration::from_secs(1);
    let is_over = || Ok(if SystemTime::now() > over { Ok(()) } else { Err(String::new()) });
    wait_for("the certificate ends", LIMIT, is_over).expect("it does");
    made
}

/// One for `pod` of a CA that nobody knows.
fn foreign(pod: &Pod) -> Credentials {
    let ca = Ca::in_memory(Lifetimes::default()).expect("a CA can be made");
    ca.credentials(&identity_of(pod), 1, SystemTime::now()).expect("a valid name")
}

/// One of the lab's CA for another account.
fn anothers(lab: &Lab) -> Credentials {
    let name = TrustDomain::default().identity("another", "shop").expect("valid");
    lab_ca(lab, Lifetimes::default()).credentials(&name, 1, SystemTime::now()).expect("a valid name")
}

/// A client's proxy meets a server that has such a certificate.
fn check_server(row: &Row, certificate: impl FnOnce(&Lab, &Pod) -> Credentials) {
    let pods = [meshed("client"), meshed("server")];
    let (lab, [client, server]) = lab_with(pods, [], |pod| pod.name() == "client");
    let credentials = certificate(&lab, &server);
    let mesh = MeshPort::listen_as(&credentials, &server, HAUBERK);
    let begin = Instant::now();
    let app = dial(&client, server.at(PORT)).expect("the proxy accepts");
    mesh.accept_in_vain();
    row.check(&next(&app, begin));
    let record = last_outbound(&client, server.at(PORT));
    row.check_cause(&record);
    assert_eq!((record.bytes_to_server, record.state), (0, None), "nothing was sent, least of all in plaintext");
    assert!(mesh.is_quiet());
}

#[test]
fn the_servers_certificate_has_expired() {
    check_server(&Row::of("the_servers_certificate_has_expired"), ended);
}

#[test]
fn the_servers_certificate_is_of_another_ca() {
    // It believes the client, so that it is the client who refuses.
    check_server(&Row::of("the_servers_certificate_is_of_another_ca"), |_, server| foreign(server));
}

#[test]
fn the_server_has_anothers_certificate() {
    check_server(&Row::of("the_server_has_anothers_certificate"), |lab, _| anothers(lab));
}

/// A hand-written client with such a certificate comes to a server's proxy.
fn check_client(row: &Row, certificate: impl FnOnce(&Lab, &Pod) -> Credentials) {
    let (lab, [client, server]) = lab_of([meshed("client").unmeshed(), meshed("server")]);
    let credentials = certificate(&lab, &client);
    let begin = Instant::now();
    // With TLS 1.3 a client has finished before the server has looked at its certificate.
    let mut tls: Tls = connect_as(&credentials, &client, &server, HAUBERK);
    tls.open(PORT);
    tls.read(&mut [0; 1]).expect_err("an alert or a reset");
    row.check(&Seen { what: RESET, after: begin.elapsed() });
    row.check_cause(&closed(&server, "the record", |it| it.direction == Direction::Inbound));
}

#[test]
fn a_clients_certificate_has_expired() {
    check_client(&Row::of("a_clients_certificate_has_expired"), ended);
}

#[test]
fn the_own_certificate_has_expired_with_identity_gone() {
    let row = Row::of("the_own_certificate_has_expired_with_identity_gone");
    let lab = Lab::new().expect("root and iproute2");
    let [client, server] = [meshed("client"), meshed("server")].map(|options| lab.pod(options).expect("a pod"));
    let leaf_lifetime = Duration::from_secs(8);
    lab.start_control_plane_with(ControlOptions { leaf_lifetime, ..ControlOptions::default() }).expect("it starts");
    [&client, &server].into_iter().for_each(|pod| lab.start_proxy(pod).expect("it starts"));
    let port = crate::streams::Port::listen(&server, PORT);
    let (at_client, at_server) = port.connection(&client);
    pass(&at_client, &at_server, b"before");
    let _echo = Server::echo(&server, PORT + 1);
    let to = server.at(PORT + 1);
    assert_eq!(try_echo(&client, to, b"before").what, NOTHING);
    lab.stop_identity().expect("it ran");
    // Certificates count in whole seconds; a renewal that was under way may have come.
    wait_for("the last certificate ends", LIMIT, || {
        let end = metric(&client, "hauberk_certificate_expiry_timestamp_seconds", &[]) + 1.0;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
        Ok(if now > end { Ok(()) } else { Err(format!("it still counts for {} s", end - now)) })
    })
    .expect("it does");
    let seen = try_echo(&client, to, b"too late");
    row.check(&seen);
    row.check_cause(&last_outbound(&client, to));
    pass(&at_client, &at_server, b"what was open goes on");
    lab.start_identity().expect("it starts");
    row.check_recovery(&client, to);
}
