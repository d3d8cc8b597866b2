//! D11: an application that is down behind a live proxy is a failed endpoint. Another one serves, the client sees
//! nothing of it, and what it had said arrives once.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    ops::RangeInclusive,
    sync::mpsc::{Receiver, channel},
    thread,
};

use hauberk_lab::{Lab, Pod, ServiceOptions};
use hauberk_mesh::{CloseCause, ClosedBy, Direction, FirstBytes, TransportState};

use crate::{
    common::{LIMIT, Server, dial, identity},
    streams::{End, attempt, lab_with, last_outbound, meshed, metric, only, pattern, rest, take},
};

const GREETING: &[u8] = b"at your service\r\n";
/// As much as a client's proxy keeps to say it again.
const KEPT: usize = 15_996;

/// A service of two endpoints. Every connection goes first to the one whose application is down, because of its weight.
struct Shop {
    client: Pod,
    up: Pod,
    down: Pod,
    _lab: Lab,
}

/// What the applications listen on.
const PORTS: RangeInclusive<u16> = 7000..=7007;

/// The service in front of `port`.
fn service_of(port: u16) -> SocketAddr {
    let [_, low] = (port - PORTS.start() + 10).to_be_bytes();
    SocketAddr::from(([10, 2, 0, low], 80))
}

impl Shop {
    fn new() -> Self {
        // The answers that a proxy gets are in its log only.
        let client = meshed("client").proxy_env("RUST_LOG", "hauberk_proxy=debug");
        // Endpoints that failed are remembered by service: each port has its own.
        let services = PORTS.map(|port| {
            let service = ServiceOptions::new(&format!("s{port}")).namespace("shop").port(80, port);
            service.ip(&service_of(port).ip().to_string()).endpoints(["up", "down"])
        });
        let pods = [client, meshed("up"), meshed("down").weight(1000)];
        let (lab, [client, up, down]) = lab_with(pods, services, |_| true);
        Self { client, up, down, _lab: lab }
    }

    /// How often the client's proxy has read FAILED.
    fn failed_answers(&self) -> usize {
        let log = self.client.with_proxy(|proxy| Ok(proxy.log())).expect("it runs");
        log.matches("the peer's proxy says: refused").count()
    }
}

/// Greets, gives back every byte, and tells what it has got of each connection.
fn listen(pod: &Pod, port: u16) -> (Server, Receiver<Vec<u8>>) {
    let (sender, got) = channel();
    let server = Server::start(pod, port, move |mut stream| {
        let mut all = Vec::new();
        stream.write_all(GREETING).expect("the client is there");
        let mut buf = [0; 65_536];
        while let count @ 1.. = stream.read(&mut buf).expect("a clean end") {
            all.extend_from_slice(&buf[..count]);
            stream.write_all(&buf[..count]).expect("the client is there");
        }
        // The test may have ended meanwhile.
        let _ = sender.send(all);
    });
    (server, got)
}

/// Says `first` at once, and ends at once if asked to; what comes back.
fn talk(client: &Pod, to: SocketAddr, first: &[u8], end: bool) -> Vec<u8> {
    let mut stream = dial(client, to).expect("the proxy accepts");
    let mut writer = stream.try_clone().expect("descriptors are free");
    thread::scope(|scope| {
        let saying = scope.spawn(move || {
            writer.write_all(first).expect("open");
            if end {
                writer.shutdown(Shutdown::Write).expect("open");
            }
        });
        assert_eq!(take(&mut stream, GREETING.len()), GREETING);
        let mut answer = take(&mut stream, first.len());
        saying.join().expect("said");
        finish(&mut stream, end, &mut answer);
        answer
    })
}

fn finish(stream: &mut TcpStream, ended: bool, answer: &mut Vec<u8>) {
    if !ended {
        stream.shutdown(Shutdown::Write).expect("open");
    }
    let (more, end) = rest(stream);
    assert_eq!(end, End::Clean);
    answer.extend(more);
}

#[test]
fn a_failed_open_goes_to_another_endpoint_and_first_bytes_arrive_once() {
    let shop = Shop::new();
    let cases =
        [(0, false), (0, true), (5, false), (5, true), (KEPT, false), (KEPT, true), (KEPT + 1, true), (500_000, true)];
    for ((size, end), port) in cases.into_iter().zip(PORTS) {
        let what = format!("{size} bytes, end at once: {end}");
        let (_server, got) = listen(&shop.up, port);
        let first = pattern(size);
        let answer = talk(&shop.client, service_of(port), &first, end);
        assert!(answer == first, "{what}: {} bytes came back", answer.len());
        assert!(got.recv_timeout(LIMIT).expect("a connection") == first, "{what}: once");
        assert!(got.try_recv().is_err(), "{what}: one connection");

        let record = last_outbound(&shop.client, service_of(port));
        assert_eq!(record.endpoint, Some(shop.up.at(port)), "{what}");
        assert_eq!(record.close.map(|close| close.cause), Some(CloseCause::Clean), "{what}");
        assert_eq!((record.bytes_to_server, record.state), (size as u64, Some(TransportState::Mtls)), "{what}");
        let refused = only(&shop.down, Direction::Inbound, shop.down.at(port));
        let close = refused.close.expect("closed");
        assert_eq!((close.cause, close.by), (CloseCause::ConnectRefused, ClosedBy::Proxy), "{what}");
        assert_eq!(
            (refused.bytes_to_server, refused.first_bytes),
            (0, FirstBytes::None),
            "{what}: nothing was delivered"
        );
        assert_eq!(refused.client_identity, Some(identity("client")), "{what}");
        assert_eq!(shop.failed_answers(), usize::from(port - 7000 + 1), "{what}: one FAILED was read");
    }
    assert_eq!(cases.len(), PORTS.len());
    check_metrics(&shop, cases.len());
}

fn check_metrics(shop: &Shop, cases: usize) {
    const CLOSED: &str = "hauberk_connections_closed_total";
    let (client, cases) = (identity("client"), cases as f64);
    let inbound = [("direction", "inbound"), ("peer_identity", client.as_str())];
    let refused = [("cause", "connect-refused"), ("state", "mtls"), ("first_bytes", "none")];
    assert_eq!(metric(&shop.down, CLOSED, &inbound), cases);
    assert_eq!(metric(&shop.down, CLOSED, &[inbound, [refused[0], refused[1]]].concat()), cases);
    assert_eq!(metric(&shop.down, CLOSED, &[&inbound[..], &refused].concat()), cases);
    assert_eq!(metric(&shop.down, "hauberk_bytes_to_server_total", &inbound), 0.0);
    let up = identity("up");
    let outbound = ("direction", "outbound");
    assert_eq!(metric(&shop.client, CLOSED, &[outbound]), cases, "a connection that went on elsewhere is one");
    assert_eq!(metric(&shop.client, CLOSED, &[outbound, ("peer_identity", &up), ("cause", "clean")]), cases);
}

#[test]
fn many_clients_at_once_see_nothing_of_an_endpoint_that_is_down() {
    const CLIENTS: usize = 32;
    let shop = Shop::new();
    let (_server, got) = listen(&shop.up, 7000);
    let service = service_of(7000);
    let said: Vec<_> = (0..CLIENTS).map(|number| format!("client {number:02}").into_bytes()).collect();
    thread::scope(|scope| {
        let talking = said.iter().map(|first| (first, scope.spawn(|| talk(&shop.client, service, first, false))));
        for (first, talking) in talking.collect::<Vec<_>>() {
            assert_eq!(&talking.join().expect("no error"), first, "its own answer");
        }
    });
    let mut got: Vec<_> = (0..CLIENTS).map(|_| got.recv_timeout(LIMIT).expect("a connection")).collect();
    got.sort();
    assert_eq!(got, said, "each once");
    assert!(shop.failed_answers() > 0);
}

#[test]
fn where_every_endpoint_is_down_the_client_is_reset() {
    let shop = Shop::new();
    let service = service_of(7000);
    let got = attempt(&shop.client, service, b"anybody?").expect("the proxy accepts");
    assert_eq!(got, (vec![], End::Reset));
    let record = only(&shop.client, Direction::Outbound, service);
    let close = record.close.expect("closed");
    assert_eq!((close.cause, close.by), (CloseCause::ConnectRefused, ClosedBy::Server));
    assert_eq!(shop.failed_answers(), 2, "each was asked once");
}
