//! Networks that lose packets, or nodes.

use std::{
    io::Write,
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use hauberk_lab::{Pod, WireOptions};
use hauberk_mesh::{CloseCause, Direction};

use super::row::{NOTHING, Row, Seen, next, try_echo};
use crate::{
    common::{Server, pair},
    scene::{PORT, at, meshed, scene, service},
    streams::{End, Port, last_outbound, only, pass, pattern, rest, take},
};

const SERVICE: &str = "10.2.0.10";
/// Longer than the kernel waits for an acknowledgement.
const LONG: Duration = Duration::from_secs(60);

/// The node of `pod` is gone: nothing comes from it any more and nothing gets there.
fn lose(pod: &Pod) {
    let rules = "table netdev gone { chain every { type filter hook ingress device eth0 priority 0; policy drop; }; }
                 table inet gone { chain out { type filter hook postrouting priority 0; oifname eth0 drop; }; }";
    pod.run("nft", [rules]).expect("nft");
}

/// It is back.
fn find(pod: &Pod) {
    pod.run("nft", ["delete table netdev gone; delete table inet gone"]).expect("nft");
}

/// Of the packets that come to either pod, `count` of a hundred are lost: where they arrive, for a kernel that drops its own
/// knows of it.
pub(super) fn lose_some<const N: usize>(pods: [&Pod; N], count: u32) {
    let rules = format!(
        "table netdev lossy {{ chain arriving {{ type filter hook ingress device eth0 priority 0; policy accept; \
         meta l4proto tcp numgen random mod 100 < {count} counter drop; }}; }}"
    );
    pods.iter().for_each(|pod| drop(pod.run("nft", [&rules]).expect("nft")));
}

/// Checks that some were.
pub(super) fn check_lost<const N: usize>(pods: [&Pod; N]) {
    for pod in pods {
        let counted = pod.run("nft", ["list", "table", "netdev", "lossy"]).expect("nft");
        assert!(!counted.contains("packets 0 "), "{}: packets were lost: {counted}", pod.name());
    }
}

#[test]
fn the_servers_node_is_gone_without_a_fin_while_the_client_sends() {
    let row = Row::of("the_servers_node_is_gone_without_a_fin_while_the_client_sends");
    let (_lab, client, server) = pair();
    let port = Port::listen(&server, PORT);
    let (mut at_client, at_server) = port.connection(&client);
    at_client.set_read_timeout(Some(LONG)).expect("not zero");
    pass(&at_client, &at_server, b"before");
    lose(&server);
    let begin = Instant::now();
    at_client.write_all(b"never acknowledged").expect("the proxy takes it");
    row.check(&next(&at_client, begin));
    row.check_cause(&only(&client, Direction::Outbound, port.addr()));
    drop(port);
    let _echo = Server::echo(&server, PORT);
    find(&server);
    row.check_recovery(&client, server.at(PORT));
}

#[test]
fn the_servers_node_is_gone_without_a_fin_while_the_client_waits() {
    let row = Row::of("the_servers_node_is_gone_without_a_fin_while_the_client_waits");
    let (_lab, client, server) = pair();
    let port = Port::listen(&server, PORT);
    let (at_client, at_server) = port.connection(&client);
    at_client.set_read_timeout(Some(LONG)).expect("not zero");
    pass(&at_client, &at_server, b"before");
    lose(&server);
    row.check(&next(&at_client, Instant::now()));
    row.check_cause(&only(&client, Direction::Outbound, port.addr()));
    drop(port);
    let _echo = Server::echo(&server, PORT);
    find(&server);
    row.check_recovery(&client, server.at(PORT));
}

#[test]
fn a_new_connection_to_a_node_that_is_gone() {
    let row = Row::of("a_new_connection_to_a_node_that_is_gone");
    let (_lab, client, server) = pair();
    let _echo = Server::echo(&server, PORT);
    lose(&server);
    row.check(&try_echo(&client, server.at(PORT), b"anybody?"));
    row.check_cause(&last_outbound(&client, server.at(PORT)));
    find(&server);
    row.check_recovery(&client, server.at(PORT));
}

#[test]
fn a_new_connection_over_an_idle_one_to_a_node_that_is_gone() {
    let row = Row::of("a_new_connection_over_an_idle_one_to_a_node_that_is_gone");
    let (_lab, client, server) = pair();
    let _echo = Server::echo(&server, PORT);
    // Several idle ones: the first that is asked in vain says what the others are worth.
    let open: Vec<_> =
        (0..4).map(|_| crate::common::dial(&client, server.at(PORT)).expect("the proxy accepts")).collect();
    for mut stream in open {
        stream.write_all(b"x").expect("open");
        take(&mut stream, 1);
        stream.shutdown(Shutdown::Write).expect("open");
        assert_eq!(rest(&mut stream), (vec![], End::Clean));
    }
    last_outbound(&client, server.at(PORT));
    lose(&server);
    row.check(&try_echo(&client, server.at(PORT), b"anybody?"));
    row.check_cause(&last_outbound(&client, server.at(PORT)));
    try_echo(&client, server.at(PORT), b"anybody?");
    let again = last_outbound(&client, server.at(PORT)).close.expect("closed").cause;
    assert_eq!(again, CloseCause::ConnectTimeout, "the other idle ones to that node are given up at once");
    find(&server);
    row.check_recovery(&client, server.at(PORT));
}

#[test]
fn a_node_is_gone_and_its_service_has_another_endpoint() {
    let row = Row::of("a_node_is_gone_and_its_service_has_another_endpoint");
    let pods = [meshed("client"), meshed("other"), meshed("victim").weight(1000)];
    let (_lab, [client, other, victim]) = scene(pods, [service(SERVICE, ["other", "victim"])]);
    let _echos = [&other, &victim].map(|pod| Server::echo(pod, PORT));
    lose(&victim);
    row.check(&try_echo(&client, at(SERVICE), b"anybody?"));
    let record = last_outbound(&client, at(SERVICE));
    assert_eq!(record.endpoint, Some(other.at(PORT)));
    row.check_cause(&record);
    let later = try_echo(&client, at(SERVICE), b"and now?");
    assert_eq!(later.what, NOTHING);
    find(&victim);
    row.check_recovery(&client, at(SERVICE));
}

#[test]
fn a_network_loses_five_of_a_hundred_packets() {
    const SIZE: usize = 4_000_000;
    let row = Row::of("a_network_loses_five_of_a_hundred_packets");
    // With a wire between, packets are as small as on a real network; without, few of 64 KiB.
    let client = meshed("client").wire(WireOptions::default());
    let (_lab, [client, server]) = scene([client, meshed("server")], []);
    let port = Port::listen(&server, PORT);
    let (mut at_client, mut at_server) = port.connection(&client);
    lose_some([&client, &server], 5);
    let begin = Instant::now();
    for stream in [&at_client, &at_server] {
        stream.set_read_timeout(Some(LONG)).expect("not zero");
    }
    let sent = pattern(SIZE);
    thread::scope(|scope| {
        scope.spawn(|| {
            at_client.write_all(&sent).expect("open");
            at_client.shutdown(Shutdown::Write).expect("open");
        });
        let (got, end) = rest(&mut at_server);
        assert!(got == sent && end == End::Clean, "{} bytes, {end:?}", got.len());
    });
    row.check(&Seen { what: NOTHING, after: begin.elapsed() });
    check_lost([&client, &server]);
    drop(at_server);
    drop(at_client);
    row.check_cause(&only(&client, Direction::Outbound, port.addr()));
}

#[test]
fn the_first_packet_of_a_connection_is_lost() {
    let row = Row::of("the_first_packet_of_a_connection_is_lost");
    let (_lab, client, server) = pair();
    let _echo = Server::echo(&server, PORT);
    let rules = format!(
        "table netdev first {{ chain arriving {{ type filter hook ingress device eth0 priority 0; policy accept; \
         ip saddr {} tcp flags & (syn | ack) == syn numgen inc mod 1000000 == 0 counter drop; }}; }}",
        client.ip()
    );
    server.run("nft", [rules]).expect("nft");
    let seen = try_echo(&client, server.at(PORT), b"said once");
    row.check(&seen);
    assert!(seen.after >= Duration::from_secs(1), "the kernel says it again after 1 s: {seen:?}");
    let lost = server.run("nft", ["list", "table", "netdev", "first"]).expect("nft");
    assert!(lost.contains("packets 1 "), "{lost}");
    row.check_cause(&last_outbound(&client, server.at(PORT)));
}

#[test]
fn a_full_conntrack_table_in_the_servers_pod() {
    // The size of the table is one setting for the whole machine. The rule does what the kernel does when a table is
    // full, to this pod alone: the first packet of a new connection is dropped, known ones pass.
    const FULL: &str = "table inet full { chain incoming { type filter hook prerouting priority 0; \
                        iifname eth0 ct state new drop; }; }";
    let row = Row::of("a_full_conntrack_table_in_the_servers_pod");
    let (_lab, client, server) = pair();
    let port = Port::listen(&server, PORT);
    let _echo = Server::echo(&server, PORT + 1);
    let (at_client, at_server) = port.connection(&client);
    server.run("nft", [FULL]).expect("nft");
    let to = server.at(PORT + 1);
    row.check(&try_echo(&client, to, b"anybody?"));
    row.check_cause(&last_outbound(&client, to));
    pass(&at_client, &at_server, b"what is open goes on");
    server.run("nft", ["delete table inet full"]).expect("nft");
    row.check_recovery(&client, to);
}
