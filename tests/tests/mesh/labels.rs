//! D06: the label of a connection depends on what its client says first, never on when or in what pieces.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use hauberk_lab::{Pod, Signal};
use hauberk_mesh::{Connection, Direction, FirstBytes, TransportState};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs};

use crate::{
    common::{Server, dial, exchange},
    streams::{lab_of, last_outbound, meshed, metric, take},
};

const GREETING: &[u8] = b"220 who speaks first\r\n";
/// Longer than any wait for first bytes that a proxy could have.
const LATE: Duration = Duration::from_millis(100);

struct Protocol {
    name: &'static str,
    first: Vec<u8>,
    label: FirstBytes,
}

/// When the client's first bytes come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timing {
    /// Right after the connect.
    Immediate,
    /// Before the server's side has answered.
    Early,
    /// After the server has spoken, and then some.
    Late,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pieces {
    Whole,
    OneByOne,
}

const TIMINGS: [Timing; 3] = [Timing::Immediate, Timing::Early, Timing::Late];
const PIECES: [Pieces; 2] = [Pieces::Whole, Pieces::OneByOne];

fn protocols() -> [Protocol; 8] {
    use FirstBytes::{Http1, Http2, Other, Tls};
    [
        ("http1", &b"GET /cart?id=7 HTTP/1.1\r\nHost: shop\r\n\r\n"[..], Http1),
        ("http2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", Http2),
        ("tls", &client_hello(), Tls),
        ("redis-resp", b"*2\r\n$3\r\nGET\r\n$4\r\nkeys\r\n", Other),
        ("redis-inline", b"GET keys\r\n", Other),
        ("sip", b"OPTIONS sip:bob@example.com SIP/2.0\r\n\r\n", Other),
        ("nats", b"CONNECT {\"verbose\":false,\"lang\":\"HTTP/1.1\"}\r\n", Other),
        ("mysql", b"\x20\0\0\x01\x85\xa6\xff\x01\0\0\0\x01\x21\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", Other),
    ]
    .map(|(name, first, label)| Protocol { name, first: first.to_vec(), label })
}

/// What rustls sends first. Only the classic key share, which makes it short.
fn client_hello() -> Vec<u8> {
    let provider = rustls::crypto::CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = "db.shop.svc".try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a vector takes all");
    bytes
}

/// Each protocol and timing has a port of its own, so that both proxies' records tell them apart.
fn port(protocol: usize, timing: Timing) -> u16 {
    7000 + u16::try_from(protocol).expect("few") * 10 + timing as u16
}

/// Gives back every byte as it comes; speaks first if asked to.
fn serve(mut stream: TcpStream, greets: bool) {
    if greets {
        stream.write_all(GREETING).expect("the client is there");
    }
    let mut reader = stream.try_clone().expect("descriptors are free");
    std::io::copy(&mut reader, &mut stream).expect("a clean end");
}

/// One cell: its connection, open, with the first bytes sent and come back.
fn speak(client: &Pod, server: &Pod, to: SocketAddr, first: &[u8], timing: Timing, pieces: Pieces) -> TcpStream {
    match timing {
        Timing::Immediate => {
            let mut stream = dial(client, to).expect("the proxy accepts");
            answered(&mut stream, first, pieces);
            stream
        }
        Timing::Early => early(client, server, to, first, pieces),
        Timing::Late => {
            let mut stream = dial(client, to).expect("the proxy accepts");
            assert_eq!(take(&mut stream, GREETING.len()), GREETING, "although the client says nothing");
            thread::sleep(LATE);
            answered(&mut stream, first, pieces);
            stream
        }
    }
}

/// Sends piece by piece; each comes back before the next goes out, so that no proxy can see two of them as one.
fn answered(stream: &mut TcpStream, first: &[u8], pieces: Pieces) {
    for piece in chunks(first, pieces) {
        stream.write_all(piece).expect("open");
        assert_eq!(take(stream, piece.len()), piece);
    }
}

/// Sends piece by piece while the server's proxy cannot answer; each reaches the client's proxy before the next goes
/// out. A mesh connection must be idle: the stream is asked for on it.
fn early(client: &Pod, server: &Pod, to: SocketAddr, first: &[u8], pieces: Pieces) -> TcpStream {
    server.with_proxy(|proxy| proxy.signal(Signal::SIGSTOP)).expect("it runs");
    let mut stream = dial(client, to).expect("the client's proxy accepts");
    let mut sent = 0;
    // Not settled yet: nobody has answered.
    let has_come =
        |record: &&Connection, sent| record.target == to && record.bytes_to_server == sent && record.state.is_none();
    for piece in chunks(first, pieces) {
        stream.write_all(piece).expect("open");
        sent += piece.len() as u64;
        client
            .wait_connections("the piece has come", |all| {
                all.live.iter().find(|record| has_come(record, sent)).map(drop)
            })
            .expect("the proxy reads before there is an answer");
    }
    server.with_proxy(|proxy| proxy.signal(Signal::SIGCONT)).expect("it is stopped");
    assert_eq!(take(&mut stream, first.len()), first);
    stream
}

fn chunks(first: &[u8], pieces: Pieces) -> std::slice::Chunks<'_, u8> {
    first.chunks(if pieces == Pieces::Whole { first.len() } else { 1 })
}

/// Both proxies label the open connection so, and go on to do so when it has closed.
fn check_cell(client: &Pod, server: &Pod, mut stream: TcpStream, protocol: &Protocol, cell: &str) {
    let to = stream.peer_addr().expect("connected");
    for pod in [client, server] {
        check_record(&live(pod, |record| record.target == to), protocol, cell);
    }
    stream.shutdown(Shutdown::Write).expect("open");
    assert_eq!(stream.read(&mut [0]).expect("a clean end"), 0);
    check_record(&last_outbound(client, to), protocol, cell);
}

/// The only open connection that `wanted` accepts.
fn live(pod: &Pod, wanted: impl Fn(&Connection) -> bool) -> Connection {
    let all = pod.connections().expect("the proxy answers").live;
    let found: Vec<_> = all.iter().filter(|record| wanted(record)).collect();
    assert_eq!(found.len(), 1, "open at the {}: {all:#?}", pod.name());
    found[0].clone()
}

fn check_record(record: &Connection, protocol: &Protocol, cell: &str) {
    assert_eq!(record.first_bytes, protocol.label, "{cell}: {record:#?}");
    assert_eq!(record.state, Some(TransportState::Mtls), "{cell}");
    let sni = (protocol.label == FirstBytes::Tls).then(|| "db.shop.svc".to_owned());
    assert_eq!(record.sni, sni, "{cell}");
    assert_eq!(record.bytes_to_server, protocol.first.len() as u64, "{cell}");
}

#[test]
fn the_label_of_8_protocols_is_the_same_late_early_immediate_whole_and_one_byte_at_a_time() {
    // The server's proxy is stopped for as long as a slow machine takes to send a hello byte by byte.
    let (_lab, [client, server]) = lab_of([meshed("client").limits("open=120s"), meshed("server")]);
    let protocols = protocols();
    let numbered: Vec<_> = protocols.iter().enumerate().collect();
    let _servers: Vec<_> = numbered
        .iter()
        .flat_map(|(number, _)| TIMINGS.map(|timing| (port(*number, timing), timing == Timing::Late)))
        .map(|(port, greets)| Server::start(&server, port, move |stream| serve(stream, greets)))
        .collect();
    // The idle mesh connection that the early ones need; from then on there is always one.
    let _warm = Server::echo(&server, 6999);
    exchange(&client, server.at(6999), b"warm").expect("the echo answers");

    let mut cells = 0;
    for (number, protocol) in &numbered {
        for timing in TIMINGS {
            for pieces in PIECES {
                let cell = format!("{} {timing:?} {pieces:?}", protocol.name);
                let to = server.at(port(*number, timing));
                let stream = speak(&client, &server, to, &protocol.first, timing, pieces);
                check_cell(&client, &server, stream, protocol, &cell);
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 8 * 3 * 2);
    check_all_records(&client, &server, &numbered);
    check_metrics(&client, &server, &numbered);
}

/// Every cell has left its closed record at both proxies, with the label.
fn check_all_records(client: &Pod, server: &Pod, protocols: &[(usize, &Protocol)]) {
    for (pod, direction) in [(client, Direction::Outbound), (server, Direction::Inbound)] {
        let found = pod
            .wait_connections("all cells have closed", |all| {
                let cells = all.closed.iter().filter(|record| record.direction == direction);
                let cells: Vec<_> = cells.filter(|record| record.target.port() >= 7000).cloned().collect();
                (cells.len() == 48).then_some(cells)
            })
            .expect("48 records");
        for (number, protocol) in protocols {
            for timing in TIMINGS {
                let ours = found.iter().filter(|record| record.target.port() == port(*number, timing));
                let labels: Vec<_> = ours.map(|record| record.first_bytes).collect();
                assert_eq!(labels, [protocol.label; 2], "{} {timing:?} at the {}", protocol.name, pod.name());
            }
        }
    }
}

fn check_metrics(client: &Pod, server: &Pod, protocols: &[(usize, &Protocol)]) {
    const CLOSED: &str = "hauberk_connections_closed_total";
    let mtls = ("state", "mtls");
    for (number, protocol) in protocols {
        for timing in TIMINGS {
            let endpoint = server.at(port(*number, timing)).to_string();
            let of = [("direction", "outbound"), ("endpoint", endpoint.as_str()), mtls];
            let labelled = [&of[..], &[("first_bytes", protocol.label.as_str())]].concat();
            assert_eq!(metric(client, CLOSED, &of), 2.0, "{} {timing:?}", protocol.name);
            assert_eq!(metric(client, CLOSED, &labelled), 2.0, "{} {timing:?}", protocol.name);
        }
    }
    // The server's metrics do not tell ports apart; `warm` is one more of the others.
    let is = |label: FirstBytes| protocols.iter().filter(|(_, protocol)| protocol.label == label).count() * 6;
    for label in FirstBytes::ALL {
        let expected = is(*label) + usize::from(*label == FirstBytes::Other);
        let of = [("direction", "inbound"), mtls, ("first_bytes", label.as_str())];
        assert_eq!(metric(server, CLOSED, &of), expected as f64, "{label}");
    }
}

#[test]
fn an_unmeshed_clients_first_bytes_are_labelled_as_they_pass_too() {
    let (_lab, [client, server]) = lab_of([meshed("client").unmeshed(), meshed("server")]);
    let _echo = Server::echo(&server, 7000);
    for (protocol, pieces) in protocols().iter().flat_map(|protocol| PIECES.map(|pieces| (protocol, pieces))) {
        let mut stream = dial(&client, server.at(7000)).expect("the proxy accepts");
        answered(&mut stream, &protocol.first, pieces);
        let from = stream.local_addr().expect("connected");
        let record = live(&server, |record| record.client == from);
        let tls = protocol.label == FirstBytes::Tls;
        let state = if tls { TransportState::OwnTls } else { TransportState::Cleartext };
        assert_eq!((record.first_bytes, record.state), (protocol.label, Some(state)), "{} {pieces:?}", protocol.name);
    }
}
