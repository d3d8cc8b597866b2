//! Networks on which packets are long on their way, or overtake each other: the client's link is a wire of the lab's.

use std::{
    fs,
    io::Write,
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use hauberk_lab::{Lab, Pod, WireOptions};
use hauberk_mesh::{Connection, Direction};

use super::{
    network::{check_lost, lose_some},
    row::{NOTHING, Row, Seen},
};
use crate::{
    common::{LIMIT, Server, dial},
    scene::{PORT, meshed, scene},
    streams::{End, pattern, rest, take},
};

const MS: Duration = Duration::from_millis(1);
/// What a frame takes at least, each way.
const DELAY: Duration = Duration::from_millis(50);
/// How many connections there are at once.
const CONNECTIONS: usize = 4;
/// Longer than the slowest of these networks takes.
const LONG: Duration = Duration::from_secs(60);

/// Client and server with a wire between them, over which the client's proxy has become ready.
fn behind(wire: WireOptions) -> (Lab, Pod, Pod) {
    let (lab, [client, server]) = scene([meshed("client").wire(wire), meshed("server")], []);
    (lab, client, server)
}

/// Several new connections to the server's echo, all at once; each has been answered.
fn open(client: &Pod, server: &Pod) -> Vec<TcpStream> {
    let dialled = (0..CONNECTIONS).map(|_| {
        let mut stream = dial(client, server.at(PORT)).expect("the proxy accepts");
        stream.set_read_timeout(Some(LONG)).expect("not zero");
        stream.set_write_timeout(Some(LONG)).expect("not zero");
        stream.write_all(b"!").expect("open");
        stream
    });
    let mut dialled: Vec<_> = dialled.collect();
    dialled.iter_mut().for_each(|stream| assert_eq!(take(stream, 1), b"!"));
    dialled
}

/// Says `size` bytes over each, all at once, ends it, and checks that these bytes and the end come back.
fn exchange_bulk(open: Vec<TcpStream>, size: usize) {
    thread::scope(|scope| {
        for (number, stream) in open.into_iter().enumerate() {
            scope.spawn(move || {
                // No two connections say the same.
                let words = &pattern((number + 1) * size)[number * size..];
                let (back, end) = thread::scope(|both| {
                    both.spawn(|| {
                        (&stream).write_all(words).expect("open");
                        stream.shutdown(Shutdown::Write).expect("open");
                    });
                    rest(&mut &stream)
                });
                assert!(back == words && end == End::Clean, "connection {number}: {} bytes, {end:?}", back.len());
            });
        }
    });
}

/// All went well, and took so long.
fn well(begin: Instant) -> Seen {
    Seen { what: NOTHING, after: begin.elapsed() }
}

/// The records of all connections to the server's echo, once they have closed.
fn records(client: &Pod, server: &Pod) -> Vec<Connection> {
    let wanted = |record: &&Connection| record.direction == Direction::Outbound && record.target == server.at(PORT);
    let all = client.wait_connections("all connections close", |all| {
        let closed: Vec<_> = all.closed.iter().filter(wanted).cloned().collect();
        (closed.len() == CONNECTIONS).then_some(closed)
    });
    all.expect("records")
}

/// The shortest of several times that the kernels alone take for a new connection: the pod's answers the node's.
fn round_trip(lab: &Lab, client: &Pod) -> Duration {
    let connect = || {
        let begin = Instant::now();
        lab.enter(|| TcpStream::connect_timeout(&client.at(PORT), LIMIT)).expect("the proxy accepts");
        begin.elapsed()
    };
    (0..5).map(|_| connect()).min().expect("five")
}

/// A counter of the pod's kernel: `name` of `group` in `/proc/net/`(`file`).
fn counter(pod: &Pod, file: &str, group: &str, name: &str) -> u64 {
    let text = pod.enter(|| fs::read_to_string(format!("/proc/thread-self/net/{file}"))).expect("readable");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(of, _)| *of == name).unwrap_or_else(|| panic!("{file} has no {name}"));
    value.parse().expect("a number")
}

/// Checks that a good share of the segments that the pod's kernel has seen came before earlier ones, and that it heard the
/// same of those it sent. Loss alone makes segments come early too, but the kernel tells both apart: a segment that was
/// overtaken arrives without being sent again. Among all seen are those between proxy and application, in order.
fn check_overtaken(pod: &Pod) {
    let tcp = |name| counter(pod, "netstat", "TcpExt", name);
    let (early, overtaken, all) = (tcp("TCPOFOQueue"), tcp("TCPSACKReorder"), counter(pod, "snmp", "Tcp", "InSegs"));
    assert!(
        early * 20 >= all && overtaken >= 20,
        "{}: of {all} segments {early} came before earlier ones; {overtaken} times one that it sent was overtaken",
        pod.name()
    );
}

#[test]
fn a_network_delays_every_packet_by_fifty_milliseconds() {
    let row = Row::of("a_network_delays_every_packet_by_fifty_milliseconds");
    let (lab, client, server) = behind(WireOptions { delay: DELAY, jitter: MS * 5, ..WireOptions::default() });
    let _echo = Server::echo(&server, PORT);
    let kernels = round_trip(&lab, &client);
    assert!(kernels >= 2 * DELAY, "there and back takes {kernels:?}");
    let begin = Instant::now();
    exchange_bulk(open(&client, &server), 2_000_000);
    row.check(&well(begin));
    records(&client, &server).iter().for_each(|record| row.check_cause(record));
    let mut stream = dial(&client, server.at(PORT)).expect("the proxy accepts");
    for word in [b"opens it", b"is there"] {
        let begin = Instant::now();
        stream.write_all(word).expect("open");
        assert_eq!(take(&mut stream, word.len()), word);
        assert!(begin.elapsed() >= 2 * DELAY, "there and back through the mesh takes {:?}", begin.elapsed());
    }
}

#[test]
fn a_network_lets_packets_overtake_each_other() {
    let row = Row::of("a_network_lets_packets_overtake_each_other");
    let wire = WireOptions { delay: MS * 5, late: 10, lateness: MS * 5, ..WireOptions::default() };
    let (_lab, client, server) = behind(wire);
    let _echo = Server::echo(&server, PORT);
    let begin = Instant::now();
    exchange_bulk(open(&client, &server), 2_000_000);
    row.check(&well(begin));
    [&client, &server].into_iter().for_each(check_overtaken);
    records(&client, &server).iter().for_each(|record| row.check_cause(record));
}

#[test]
fn a_network_delays_reorders_and_loses_packets() {
    let row = Row::of("a_network_delays_reorders_and_loses_packets");
    let wire = WireOptions { delay: DELAY, jitter: MS * 5, late: 10, lateness: MS * 10 };
    let (lab, client, server) = behind(wire);
    let _echo = Server::echo(&server, PORT);
    let kernels = round_trip(&lab, &client);
    assert!(kernels >= 2 * DELAY, "there and back takes {kernels:?}");
    let opened = open(&client, &server);
    lose_some([&client, &server], 1);
    let begin = Instant::now();
    exchange_bulk(opened, 500_000);
    row.check(&well(begin));
    check_lost([&client, &server]);
    [&client, &server].into_iter().for_each(check_overtaken);
    records(&client, &server).iter().for_each(|record| row.check_cause(record));
}
