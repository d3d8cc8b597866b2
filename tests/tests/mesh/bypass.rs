//! What the rules let pass without the proxy is in no record, so it shows up in totals.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use hauberk_lab::{Pod, PodOptions, wait_for};
use hauberk_mesh::{Connection, Connections};

use crate::{
    common::{LIMIT, Server, dial},
    scene::{PORT, host_of, meshed, plain, prepared, scene},
    talk::{Samples, host},
};

/// Ports that the rules let pass: of the pod itself, and of others.
const IN: u16 = 7002;
const OUT: u16 = 7003;
const DATAGRAMS: usize = 5;

/// Totals by direction, protocol and port.
type Totals = Vec<(String, String, String, f64)>;

fn totals(pod: &Pod) -> Totals {
    let samples = Samples::of(pod);
    let found = samples.with("hauberk_bypassed_total", &[]).map(|sample| {
        let [direction, protocol, port] = ["direction", "protocol", "port"].map(|key| sample.label(key).to_owned());
        (direction, protocol, port, sample.value)
    });
    let mut found: Vec<_> = found.collect();
    found.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
    found
}

fn wait_totals(pod: &Pod, expected: &[(&str, &str, u16, usize)]) {
    let expected: Totals = expected
        .iter()
        .map(|(direction, protocol, port, count)| {
            ((*direction).to_owned(), (*protocol).to_owned(), port.to_string(), *count as f64)
        })
        .collect();
    wait_for("a sample", LIMIT, || {
        let found = totals(pod);
        Ok((found == expected).then_some(()).ok_or_else(|| format!("{found:?} instead of {expected:?}")))
    })
    .expect("all is counted, and nothing else");
}

fn sampling(name: &str) -> PodOptions {
    meshed(name).limits("bypass_sample=200ms")
}

/// Open connections, past any proxy or through one: each has heard who is there.
fn open(from: &Pod, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let open = (0..count).map(|_| dial(from, to).expect("it is accepted"));
    open.inspect(|stream| assert!(!host_of(stream).is_empty(), "{to}")).collect()
}

#[test]
fn skipped_ports_and_subnets_show_up_in_the_totals_each_connection_once_and_what_is_proxied_does_not() {
    let web = sampling("web").skip_inbound(&IN.to_string()).skip_outbound(&OUT.to_string());
    let pods = [web, meshed("peer"), plain("old"), plain("friend")];
    let (_lab, [web, peer, old, friend]) = prepared(pods, [], |[web, .., friend]| {
        let friend = friend.ip().to_string().parse().expect("a network");
        web.edit_spec(|spec| spec.redirection.skip_subnets = friend);
    });
    let listen = |pod: &Pod, ports: &[u16]| ports.iter().map(|port| host(pod, *port)).collect::<Vec<Server>>();
    let _hosts =
        [listen(&web, &[PORT, IN]), listen(&old, &[PORT, OUT]), listen(&friend, &[PORT]), listen(&peer, &[PORT])];
    let _proxied = [open(&web, old.at(PORT), 3), open(&web, peer.at(PORT), 3), open(&old, web.at(PORT), 3)];
    let skipped_in = open(&old, web.at(IN), 2);
    let _skipped_out = open(&web, old.at(OUT), 3);
    let _subnet = [open(&friend, web.at(PORT), 4), open(&web, friend.at(PORT), 5)];
    let expected = [
        ("inbound", "tcp", PORT, 4),
        ("inbound", "tcp", IN, 2),
        ("outbound", "tcp", PORT, 5),
        ("outbound", "tcp", OUT, 3),
    ];
    wait_totals(&web, &expected);

    // Others that come when the first have gone are counted too.
    drop(skipped_in);
    let _more = open(&old, web.at(IN), 1);
    wait_totals(
        &web,
        &expected.map(|(direction, protocol, port, count)| {
            (direction, protocol, port, if port == IN { count + 1 } else { count })
        }),
    );
    let passed = |it: &&Connection| {
        [IN, OUT].contains(&it.target.port()) || [it.target.ip(), it.client.ip()].contains(&friend.ip())
    };
    let Connections { live, closed, .. } = web.connections().expect("it answers");
    assert_eq!(live.iter().chain(&closed).find(passed), None, "the proxy saw none of them");
}

#[test]
fn datagrams_show_up_in_the_totals() {
    let (_lab, [web, old]) = scene([sampling("web").dual_stack(), plain("old").dual_stack()], []);
    let expected = |both: usize| [("inbound", "udp", 0, both), ("outbound", "udp", 0, both)];
    wait_totals(&web, &[]);
    for (round, ip) in web.ips().iter().enumerate() {
        let bind = |pod: &Pod, ip: IpAddr| {
            let socket = pod.enter(|| UdpSocket::bind((ip, PORT))).expect("it is free");
            socket.set_read_timeout(Some(LIMIT)).expect("valid");
            socket
        };
        let (here, there) = (bind(&web, *ip), bind(&old, old.ips()[round]));
        let (mut buf, to) = ([0; 16], there.local_addr().expect("bound"));
        for _ in 0..DATAGRAMS {
            here.send_to(b"ping", to).expect("sent");
            let (_, from) = there.recv_from(&mut buf).expect("it arrives");
            there.send_to(b"pong", from).expect("sent");
            here.recv_from(&mut buf).expect("it arrives");
        }
        wait_totals(&web, &expected(DATAGRAMS * (round + 1)));
    }
    let Connections { live, closed, .. } = web.connections().expect("it answers");
    assert_eq!((live, closed), (vec![], vec![]), "none is a connection");
}
