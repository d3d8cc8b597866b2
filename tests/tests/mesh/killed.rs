//! A proxy that is killed takes nobody with it unnoticed: the applications of its own pod, too, get a reset and never an
//! end of file that they could take for the end of what they read.

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    thread,
};

use hauberk_lab::{Pod, PodOptions};

use crate::streams::{End, Port, lab_of, meshed, pass, pattern, rest, take};

/// What both ends of a connection see after `dies` was killed.
fn assert_reset(dies: &Pod, (client, server): (TcpStream, TcpStream), what: &str) {
    dies.kill_proxy().expect("it runs");
    for (mut end, whose) in [(client, "client"), (server, "server")] {
        assert_eq!(rest(&mut end), (vec![], End::Reset), "{what}, the {whose}");
    }
}

#[test]
fn every_application_whose_proxy_is_killed_gets_a_reset() {
    let old = PodOptions::new("old").namespace("shop");
    let (_lab, [client, server, old]) = lab_of([meshed("client"), meshed("server"), old]);
    let (at_server, at_old) = (Port::listen(&server, 7000), Port::listen(&old, 7000));
    for (from, port, dies, what) in [
        (&client, &at_server, &client, "by mTLS, the client's proxy"),
        (&client, &at_server, &server, "by mTLS, the server's proxy"),
        (&old, &at_server, &server, "from an unmeshed client"),
        (&client, &at_old, &client, "to an unmeshed server"),
    ] {
        let (to_client, to_server) = port.connection(from);
        pass(&to_client, &to_server, b"to and");
        pass(&to_server, &to_client, b"fro");
        assert_reset(dies, (to_client, to_server), what);
        dies.restart_proxy().expect("it starts again");
    }
}

#[test]
fn what_was_sent_before_a_clean_end_arrives_though_the_connection_would_have_been_reset_until_then() {
    const LARGE: usize = 4_000_000;
    let (_lab, [client, server]) = lab_of([meshed("client"), meshed("server")]);
    let port = Port::listen(&server, 7000);
    let bytes = pattern(LARGE);
    for round in 0..5 {
        let (mut to_client, mut to_server) = port.connection(&client);
        to_client.shutdown(Shutdown::Write).expect("open");
        assert_eq!(rest(&mut to_server), (vec![], End::Clean));
        thread::scope(|scope| {
            // All of it and the end are with the proxies before the client reads the rest.
            scope.spawn(|| {
                to_server.write_all(&bytes).expect("open");
                to_server.shutdown(Shutdown::Both).expect("open");
            });
            let first = take(&mut to_client, 1000);
            assert!(first == bytes[..1000]);
            let (got, end) = rest(&mut to_client);
            assert!(got == bytes[1000..], "round {round}: {} of {LARGE}", got.len());
            assert_eq!(end, End::Clean);
        });
    }
}
