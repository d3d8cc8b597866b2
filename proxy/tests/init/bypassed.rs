//! What the kernel lets pass shows up in the totals; what the proxy carries does not.

use std::net::{TcpStream, UdpSocket};

use hauberk_mesh::{
    Direction::{Inbound, Outbound},
    Redirection,
};
use hauberk_proxy::bypass::{Bypassed, BypassedProtocol, Sampler};

use crate::{
    netns::{Pair, first_line},
    run,
};

const APP: u32 = 1000;
const PROXY: u32 = 2102;

fn found(pair: &Pair, sampler: &mut Sampler) -> Vec<Bypassed> {
    pair.pod.enter(|| sampler.sample().expect("a sample"))
}

fn tcp(direction: hauberk_mesh::Direction, port: u16, count: u64) -> Bypassed {
    Bypassed { direction, protocol: BypassedProtocol::Tcp, port, count }
}

#[test]
fn bypassed_ports_and_subnets_show_up_by_port() {
    let pair = Pair::dual_stack();
    let rules = Redirection {
        skip_inbound_ports: "2222".parse().expect("valid"),
        skip_outbound_ports: "2525".parse().expect("valid"),
        skip_subnets: "10.79.0.0/24,fd79::/64".parse().expect("valid"),
        ..Redirection::default()
    };
    run(
        &pair.pod,
        &["--skip-inbound-ports=2222", "--skip-outbound-ports=2525", "--skip-subnets=10.79.0.0/24,fd79::/64"],
    );
    let _pod = pair.pod.listen(&["127.0.0.1:4140", "0.0.0.0:4141", "0.0.0.0:2222", "[::]:2222", "0.0.0.0:8080"]);
    let _peer = pair.peer.listen(&["0.0.0.0:80", "0.0.0.0:2525", "[::]:2525", "[::]:80"]);
    let mut sampler = Sampler::new(rules);
    assert_eq!(found(&pair, &mut sampler), []);

    // What the listener says shows that both sides are open.
    let open = |stream: std::io::Result<TcpStream>| {
        let stream = stream.expect("a connection");
        first_line(&stream);
        stream
    };
    let out = |uid, target: &str| open(pair.pod.dial(uid, None, target.parse().expect("an address")));
    let into = |source: Option<&str>, target: &str| {
        let source = source.map(|ip| ip.parse().expect("an address"));
        open(pair.peer.dial(0, source, target.parse().expect("an address")))
    };
    let carried = [
        out(APP, "10.77.0.1:80"),
        out(PROXY, "10.77.0.1:2525"),
        out(APP, "127.0.0.1:2222"),
        out(APP, "10.77.0.2:2222"),
        into(None, "10.77.0.2:8080"),
    ];
    assert_eq!(found(&pair, &mut sampler), [], "carried by the proxy, sent by it, or never on the wire");

    let bypassing = [
        out(APP, "10.77.0.1:2525"),
        out(APP, "10.77.0.1:2525"),
        out(APP, "[fd77::1]:2525"),
        out(APP, "10.79.0.1:80"),
        out(APP, "[fd79::1]:80"),
        into(None, "10.77.0.2:2222"),
        into(None, "[fd77::2]:2222"),
        into(Some("10.79.0.1"), "10.77.0.2:8080"),
    ];
    let expected = [tcp(Inbound, 2222, 2), tcp(Inbound, 8080, 1), tcp(Outbound, 80, 2), tcp(Outbound, 2525, 3)];
    assert_eq!(found(&pair, &mut sampler), expected);
    assert_eq!(found(&pair, &mut sampler), [], "each counts once");
    drop((carried, bypassing));
    assert_eq!(found(&pair, &mut sampler), [], "and not again when it closes");
}

#[test]
fn datagrams_and_pings_show_up_in_the_totals() {
    let pair = Pair::dual_stack();
    run(&pair.pod, &[]);
    let mut sampler = Sampler::new(Redirection::default());
    found(&pair, &mut sampler);
    for (client, server) in [("10.77.0.2:0", "10.77.0.1:53"), ("[fd77::2]:0", "[fd77::1]:53")] {
        let there = pair.peer.enter(|| UdpSocket::bind(server).expect("a socket"));
        let here = pair.pod.enter(|| UdpSocket::bind(client).expect("a socket"));
        there.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a timeout");
        here.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a timeout");
        let mut buffer = [0; 16];
        for _ in 0..3 {
            here.send_to(b"question", server).expect("sent");
            let (_, from) = there.recv_from(&mut buffer).expect("not redirected");
            there.send_to(b"answer", from).expect("sent");
            here.recv_from(&mut buffer).expect("an answer");
        }
    }
    let udp = |direction| Bypassed { direction, protocol: BypassedProtocol::Udp, port: 0, count: 6 };
    assert_eq!(found(&pair, &mut sampler), [udp(Inbound), udp(Outbound)]);
}
