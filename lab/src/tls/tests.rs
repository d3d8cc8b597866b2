//! Sessions of rustls, whole and broken, and what only older versions show.

use std::{io::Write, sync::Arc};

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::*;

const MARKER: &[u8] = b"what the application says";

/// Both directions of a session of rustls, which speaks TLS 1.3 only here; both say `MARKER` twice.
fn session() -> [Vec<u8>; 2] {
    let key = rcgen::generate_simple_self_signed(["web.shop".to_owned()]).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(key.cert.der().clone()).expect("a root");
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"hauberk/1".to_vec(), b"other".to_vec()];
    let name = "web.shop".try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let private = key.signing_key.serialize_der().try_into().expect("a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![key.cert.der().clone()], private);
    let mut server = ServerConnection::new(Arc::new(config.expect("a server's settings"))).expect("a server");
    for side in [client.writer().write_all(MARKER), server.writer().write_all(MARKER)] {
        side.expect("is buffered");
    }
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let from = to_server.len();
        while client.wants_write() {
            client.write_tls(&mut to_server).expect("a vector takes all");
        }
        server.read_tls(&mut &to_server[from..]).expect("reads");
        server.process_new_packets().expect("valid");
        let from = to_client.len();
        while server.wants_write() {
            server.write_tls(&mut to_client).expect("a vector takes all");
        }
        client.read_tls(&mut &to_client[from..]).expect("reads");
        client.process_new_packets().expect("valid");
    }
    client.writer().write_all(MARKER).expect("is buffered");
    client.write_tls(&mut to_server).expect("a vector takes all");
    [to_server, to_client]
}

fn offence(stream: &[u8]) -> String {
    inspect(stream).offence.expect("an offence").to_string()
}

/// Offsets at which records begin.
fn records(stream: &[u8]) -> Vec<usize> {
    let mut at = vec![0];
    while *at.last().expect("one") < stream.len() {
        let last = *at.last().expect("one");
        at.push(last + 5 + usize::from(u16::from_be_bytes([stream[last + 3], stream[last + 4]])));
    }
    at
}

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("small").to_be_bytes();
    [&[kind, 3, 3], &length[..], body].concat()
}

#[test]
fn a_session_of_rustls_is_only_tls13() {
    let [to_server, to_client] = session().map(|stream| inspect(&stream));
    assert!(to_server.only_tls13() && to_client.only_tls13(), "{to_server:?} {to_client:?}");
    assert_eq!(to_server.server_name.as_deref(), Some("web.shop"));
    assert_eq!(to_server.alpn, ["hauberk/1", "other"]);
    assert!(to_client.chose_tls13 && to_client.encrypted_records > 2);
    assert!(to_server.encrypted_bytes > 2 * MARKER.len() as u64);
}

#[test]
fn a_byte_in_the_clear_is_found_wherever_it_is() {
    for stream in session() {
        for at in records(&stream) {
            let mut broken = stream.clone();
            broken.splice(at..at, *b"G");
            assert_eq!(offence(&broken), format!("at byte {at}: byte 0x47 where a record should begin"));
        }
    }
}

#[test]
fn a_changed_length_is_found() {
    for stream in session() {
        for at in records(&stream).into_iter().filter(|at| *at < stream.len()) {
            let mut broken = stream.clone();
            broken[at + 4] ^= 1;
            assert!(!inspect(&broken).only_tls13(), "record at {at}");
        }
    }
}

#[test]
fn every_cut_in_a_record_is_told() {
    for stream in session() {
        let whole = records(&stream);
        for end in (0..=stream.len()).step_by(7).chain(whole.clone()) {
            assert_eq!(inspect(&stream[..end]).only_tls13(), whole.contains(&end), "{end}");
        }
    }
}

#[test]
fn what_only_older_versions_show_is_told_apart() {
    let [to_server, _] = session();
    let hello = &to_server[..records(&to_server)[1]];
    let older = [&[SERVER_HELLO, 0, 0, 38, 3, 3][..], &[7; 32], &[0, 0xc0, 0x2f, 0]].concat();
    assert_eq!(offence(&record(HANDSHAKE, &older)), "at byte 0: a server that chose an older version than TLS 1.3");
    let key_exchange = [hello, &record(HANDSHAKE, &[16, 0, 0, 1, 0])].concat();
    assert!(offence(&key_exchange).ends_with("handshake message 16 in the clear"));
    let finished = [hello, &record(CHANGE_CIPHER_SPEC, &[1]), &record(HANDSHAKE, &[0x9c; 40])].concat();
    assert!(offence(&finished).ends_with("handshake message 156 in the clear"));
    assert!(offence(&[hello, &record(21, &[2, 40])].concat()).ends_with("an alert in the clear"));
}

#[test]
fn records_out_of_place_or_size_are_told() {
    let [to_server, _] = session();
    let hello = &to_server[..records(&to_server)[1]];
    let data = record(APPLICATION_DATA, &[9; 40]);
    for (stream, what) in [
        (data.clone(), "a record of type 23 before a whole hello"),
        (record(CHANGE_CIPHER_SPEC, &[1]), "a record of type 20 before a whole hello"),
        ([hello, &data, hello].concat(), "a record of type 22 after encrypted ones"),
        ([hello, &data, &record(CHANGE_CIPHER_SPEC, &[1])].concat(), "a record of type 20 after encrypted ones"),
        ([hello, &record(APPLICATION_DATA, &[9; 16])].concat(), "a record of type 23 and 16 bytes"),
        ([hello, &record(APPLICATION_DATA, &[9; 16641])].concat(), "a record of type 23 and 16641 bytes"),
        ([hello, &record(CHANGE_CIPHER_SPEC, &[2])].concat(), "a change of cipher that is none"),
        ([hello, &[23, 3, 1, 0, 40][..]].concat(), "a record of version 0x0301"),
        (b"GET / HTTP/1.1\r\n".to_vec(), "byte 0x47 where a record should begin"),
    ] {
        assert!(offence(&stream).ends_with(what), "{what}: {}", offence(&stream));
    }
}

#[test]
fn a_hello_in_several_records_is_read() {
    let [to_server, _] = session();
    let end = records(&to_server)[1];
    let parts = to_server[5..end].chunks(100).flat_map(|part| record(HANDSHAKE, part));
    let stream: Vec<u8> = parts.chain(to_server[end..].iter().copied()).collect();
    assert_eq!(inspect(&stream), inspect(&to_server));
    assert!(!inspect(&stream[..105]).only_tls13());
}

proptest! {
    #[test]
    fn no_bytes_panic_it(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..600, flip: u8) {
        let _ = inspect(&bytes);
        let _ = inspect(&record(HANDSHAKE, &bytes));
        let [mut stream, _] = session();
        if let Some(byte) = stream.get_mut(at) {
            *byte ^= flip;
        }
        let _ = inspect(&stream);
    }
}
