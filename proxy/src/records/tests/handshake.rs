//! The handover from rustls: nothing that comes behind the handshake is lost, nothing before it is trusted.

use std::io::Write as _;

use proptest::prelude::*;
use rustls::{
    ClientConfig, ClientConnection, Connection, Error, ServerConfig, ServerConnection,
    client::UnbufferedClientConnection, server::UnbufferedServerConnection,
};

use super::pair::{Ours, SUITES, any_suite, configs, server_name, turn, written};
use crate::records::{
    RecordError,
    handshake::{Handshake, Side},
    inbox::Inbox,
};

/// Shakes hands in pieces of `piece` bytes with rustls, which says `early` as soon as it can: all that we get of it.
fn handed_over<S: Side>(mut ours: Handshake<S>, mut theirs: Connection, piece: usize, early: &[u8]) -> Vec<u8> {
    theirs.writer().write_all(early).expect("room");
    let (mut to_us, mut to_them) = (written(&mut theirs), turn(&mut ours, &[]).expect("in order"));
    while !to_us.is_empty() || !to_them.is_empty() {
        let mut answer = Vec::new();
        for piece in to_us.chunks(piece) {
            answer.extend(turn(&mut ours, piece).expect("in order"));
        }
        let mut wire = &std::mem::take(&mut to_them)[..];
        while !wire.is_empty() {
            theirs.read_tls(&mut wire).expect("a slice gives it");
            theirs.process_new_packets().expect("in order");
        }
        (to_us, to_them) = (written(&mut theirs), answer);
    }
    let (session, negotiated, received) = ours.finish().expect("the handshake is over");
    Ours { session, inbox: Inbox::new(received), negotiated }.receive(&[], 50).data
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_comes_right_behind_the_handshake_is_kept_through_pieces_of_any_size(
        suite in any_suite(),
        piece in prop_oneof![1..30usize, 1..5000usize],
        fragment in prop_oneof![Just(None), (32..300usize).prop_map(Some)],
        early in proptest::collection::vec(any::<u8>(), 0..20_000),
    ) {
        let configs = configs(suite);
        let client = Handshake::client(&configs.client, server_name()).expect("a client");
        let mut config = ServerConfig::clone(&configs.server);
        (config.send_half_rtt_data, config.max_fragment_size) = (true, fragment);
        let server = ServerConnection::new(config.into()).expect("a server");
        prop_assert!(handed_over(client, server.into(), piece, &early) == early, "to the client");

        let server = Handshake::server(&configs.server).expect("a server");
        let mut config = ClientConfig::clone(&configs.client);
        config.max_fragment_size = fragment;
        let client = ClientConnection::new(config.into(), server_name()).expect("a client");
        prop_assert!(handed_over(server, client.into(), piece, &early) == early, "to the server");
    }

    #[test]
    fn no_bytes_panic_the_handshake(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        piece in 1..300usize,
    ) {
        let mut client = client();
        let mut hello = turn(&mut client, &[]).expect("a hello");
        let mut answer = turn(&mut server(), &hello).expect("in order");
        for wire in [&mut hello, &mut answer] {
            for (at, byte) in &changes {
                *at.get_mut(wire) = *byte;
            }
            wire.extend(&bytes);
        }
        feed(server(), &bytes, piece);
        feed(server(), &hello, piece);
        feed(client, &answer, piece);
    }
}

fn feed<S: Side>(mut handshake: Handshake<S>, wire: &[u8], piece: usize) {
    for piece in wire.chunks(piece) {
        if turn(&mut handshake, piece).is_err() {
            break;
        }
    }
}

fn client() -> Handshake<UnbufferedClientConnection> {
    Handshake::client(&configs(SUITES[0]).client, server_name()).expect("a client")
}

fn server() -> Handshake<UnbufferedServerConnection> {
    Handshake::server(&configs(SUITES[0]).server).expect("a server")
}

#[test]
fn what_is_not_tls_is_refused_by_its_first_bytes() {
    for first in [b"GET /", b"SSH-2", &[0; 5]] {
        let mut server = server();
        let error = turn(&mut server, first).expect_err("not TLS");
        assert!(matches!(error, Error::InvalidMessage(_)), "{error}");
        assert_eq!(server.outgoing[..2], [21, 3], "an alert says so");
    }
}

#[test]
fn a_hello_that_never_ends_is_refused_within_bounds() {
    let mut server = server();
    let mut wire = vec![22, 3, 1, 0, 4, 1, 0, 0xff, 0xf0];
    let mut fed = 0;
    while turn(&mut server, &wire).is_ok() {
        fed += wire.len();
        assert!(fed < 100_000, "{fed} bytes are held");
        wire = [22, 3, 1, 0, 1, 0].repeat(100);
    }
    assert!(fed > 50_000, "refused for something else after {fed} bytes");
}

#[test]
fn a_client_says_nothing_before_it_has_the_servers_whole_flight() {
    let (mut client, mut server) = (client(), server());
    let hello = turn(&mut client, &[]).expect("a hello");
    let flight = turn(&mut server, &hello).expect("in order");
    let (most, rest) = flight.split_at(flight.len() - 100);
    assert_eq!(turn(&mut client, most), Ok(Vec::new()));
    let last = turn(&mut client, rest).expect("in order");
    turn(&mut server, &last).expect("in order");
    assert!(client.finish().is_ok() && server.finish().is_ok());
}

#[test]
fn a_configuration_that_keeps_its_secrets_is_named() {
    let configs = configs(SUITES[0]);
    let mut config = ClientConfig::clone(&configs.client);
    config.enable_secret_extraction = false;
    let mut client = Handshake::client(&config, server_name()).expect("a client");
    let mut server = Handshake::server(&configs.server).expect("a server");
    let hello = turn(&mut client, &[]).expect("a hello");
    let answer = turn(&mut server, &hello).expect("in order");
    turn(&mut client, &answer).expect("in order");
    let error = client.finish().err().expect("no secrets");
    assert!(matches!(&error, RecordError::Tls(Error::General(why)) if why.contains("ecret")), "{error}");
}
