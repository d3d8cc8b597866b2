//! What is redirected and what passes, cell by cell.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use crate::{
    init, ip6tables_works,
    netns::{Netns, Pair, Reached, first_line},
    run,
};

const APP: u32 = 1000;
const ROOT: u32 = 0;
const PROXY: u32 = 2102;

const SKIPS: [&str; 3] = [
    "--skip-inbound-ports=2222,5000-5010",
    "--skip-outbound-ports=2525,6000-6010",
    "--skip-subnets=10.79.0.0/24,fd79::/64",
];

struct Addresses {
    pod: IpAddr,
    peer: IpAddr,
    /// In the skipped subnet.
    skipped: IpAddr,
    loopback: IpAddr,
    any: &'static str,
}

fn addresses(ipv6: bool) -> Addresses {
    let [pod, peer, skipped, loopback] = if ipv6 {
        ["fd77::2", "fd77::1", "fd79::1", "::1"]
    } else {
        ["10.77.0.2", "10.77.0.1", "10.79.0.1", "127.0.0.1"]
    }
    .map(|ip| ip.parse().expect("an address"));
    Addresses { pod, peer, skipped, loopback, any: if ipv6 { "[::]" } else { "0.0.0.0" } }
}

/// Sets the rules with `backend` and dials every cell of the table, in both families that can be.
fn redirects_and_passes(backend: &str) {
    let ipv6 = backend == "nft" || ip6tables_works(backend);
    let pair = if ipv6 { Pair::dual_stack() } else { Pair::ipv4_only() };
    run(&pair.pod, &[&["--backend", backend], SKIPS.as_slice()].concat());
    each_cell(&pair, &addresses(false));
    if ipv6 {
        each_cell(&pair, &addresses(true));
    }
}

fn each_cell(pair: &Pair, a: &Addresses) {
    let on_any = |port: u16| format!("{}:{port}", a.any);
    let proxy = [SocketAddr::new(a.loopback, 4140).to_string(), on_any(4141), on_any(4143), on_any(4191)];
    let apps = [8080, 2222, 5005, 5011].map(on_any);
    let in_pod: Vec<_> = proxy.iter().chain(&apps).map(String::as_str).collect();
    let at_peer = [80, 2525, 6005, 6011].map(on_any);
    let _pod = pair.pod.listen(&in_pod);
    let _peer = pair.peer.listen(&at_peer.each_ref().map(String::as_str));

    use Reached::{Port, Redirected};
    let to = SocketAddr::new;
    for (name, uid, target, expected) in [
        ("an application", APP, to(a.peer, 80), Redirected(4140, to(a.peer, 80))),
        ("an application that runs as root", ROOT, to(a.peer, 80), Redirected(4140, to(a.peer, 80))),
        ("the proxy", PROXY, to(a.peer, 80), Port(80)),
        ("to a skipped port", APP, to(a.peer, 2525), Port(2525)),
        ("to a skipped range", APP, to(a.peer, 6005), Port(6005)),
        ("beside a skipped range", APP, to(a.peer, 6011), Redirected(4140, to(a.peer, 6011))),
        ("to a skipped subnet", APP, to(a.skipped, 80), Port(80)),
        ("to the own address", APP, to(a.pod, 8080), Redirected(4140, to(a.pod, 8080))),
        ("to the mesh port of the own address", APP, to(a.pod, 4143), Redirected(4140, to(a.pod, 4143))),
        ("the proxy to the application", PROXY, to(a.pod, 8080), Port(8080)),
        ("the proxy to its own mesh port", PROXY, to(a.pod, 4143), Port(4143)),
        ("over loopback", APP, to(a.loopback, 8080), Port(8080)),
        ("a port that is skipped inbound only", APP, to(a.peer, 2222), Redirected(4140, to(a.peer, 2222))),
    ] {
        assert_eq!(pair.pod.ask(uid, target), expected, "outbound, {name}: {target}");
    }
    for (name, source, port, expected) in [
        ("to an application", None, 8080, Redirected(4141, to(a.pod, 8080))),
        ("to a port where nobody listens", None, 9, Redirected(4141, to(a.pod, 9))),
        ("to the mesh port", None, 4143, Port(4143)),
        ("to the admin port", None, 4191, Port(4191)),
        ("to the outbound port", None, 4140, Reached::Refused),
        ("to a skipped port", None, 2222, Port(2222)),
        ("to a skipped range", None, 5005, Port(5005)),
        ("beside a skipped range", None, 5011, Redirected(4141, to(a.pod, 5011))),
        ("to a port that is skipped outbound only", None, 2525, Redirected(4141, to(a.pod, 2525))),
        ("from a skipped subnet", Some(a.skipped), 8080, Port(8080)),
    ] {
        assert_eq!(pair.peer.ask_from(ROOT, source, to(a.pod, port)), expected, "inbound, {name}");
    }
}

#[test]
fn nft_redirects_what_it_should_and_nothing_else() {
    redirects_and_passes("nft");
}

#[test]
fn iptables_nft_redirects_what_it_should_and_nothing_else() {
    redirects_and_passes("iptables-nft");
}

#[test]
fn iptables_legacy_redirects_what_it_should_and_nothing_else() {
    redirects_and_passes("iptables-legacy");
}

#[test]
fn link_local_ipv6_passes_on_its_way_out_and_is_redirected_on_its_way_in() {
    for backend in crate::BACKENDS.into_iter().filter(|backend| *backend == "nft" || ip6tables_works(backend)) {
        let pair = Pair::dual_stack();
        pair.pod.sh("ip addr add fe80::2/64 dev eth0 nodad");
        pair.peer.sh("ip addr add fe80::1/64 dev eth0 nodad");
        run(&pair.pod, &["--backend", backend]);
        let _listeners = (pair.pod.listen(&["[::1]:4140", "[::]:4141"]), pair.peer.listen(&["[::]:80"]));
        let to = |from: &Netns, ip: &str, port| -> SocketAddr {
            let scope = from.sh("ip -o link show eth0 | cut -d: -f1").trim().parse().expect("an index");
            SocketAddrV6::new(ip.parse().expect("an address"), port, 0, scope).into()
        };
        let (peer, pod) = (to(&pair.pod, "fe80::1", 80), to(&pair.peer, "fe80::2", 8080));
        assert_eq!(pair.pod.ask(APP, peer), Reached::Port(80), "{backend}");
        let reached = pair.peer.ask(ROOT, pod);
        let Reached::Redirected(4141, original) = reached else { panic!("{backend}: {reached:?}") };
        assert_eq!((original.ip(), original.port()), (pod.ip(), 8080), "{backend}");
    }
}

#[test]
fn without_rules_nothing_is_redirected() {
    let pair = Pair::dual_stack();
    let _peer = pair.peer.listen(&["0.0.0.0:80", "[::]:80"]);
    for a in [addresses(false), addresses(true)] {
        assert_eq!(pair.pod.ask(APP, SocketAddr::new(a.peer, 80)), Reached::Port(80));
    }
}

#[test]
fn a_process_of_the_proxys_uid_passes_and_another_does_not() {
    let pair = Pair::ipv4_only();
    run(&pair.pod, &["--proxy-uid=7777"]);
    let _listeners = (pair.pod.listen(&["127.0.0.1:4140"]), pair.peer.listen(&["10.77.0.1:80"]));
    let reached = |uid: u32| {
        let script =
            format!("setpriv --reuid {uid} --clear-groups bash -c 'exec 3<>/dev/tcp/10.77.0.1/80; head -n1 <&3'");
        Reached::parse(&pair.pod.sh(&script))
    };
    assert_eq!(reached(7777), Reached::Port(80));
    assert_eq!(reached(2102), Reached::Redirected(4140, "10.77.0.1:80".parse().expect("an address")));
}

#[test]
fn the_variables_of_the_proxy_set_the_rules_too() {
    let pair = Pair::ipv4_only();
    let output = pair.pod.output(init(&[]).env("HAUBERK_PROXY_UID", "7777").env("HAUBERK_SKIP_OUTBOUND_PORTS", "81"));
    assert!(output.status.success(), "{}", crate::stderr(&output));
    let _listeners = (pair.pod.listen(&["127.0.0.1:4140"]), pair.peer.listen(&["10.77.0.1:80", "10.77.0.1:81"]));
    assert_eq!(pair.pod.ask(APP, "10.77.0.1:81".parse().expect("an address")), Reached::Port(81));
    assert_eq!(pair.pod.ask(7777, "10.77.0.1:80".parse().expect("an address")), Reached::Port(80));
}

#[test]
fn what_the_pod_only_forwards_is_not_redirected() {
    for backend in crate::BACKENDS {
        let ipv6 = backend == "nft" || ip6tables_works(backend);
        let pair = if ipv6 { Pair::dual_stack() } else { Pair::ipv4_only() };
        let inner = Netns::new();
        pair.pod.sh(&format!(
            "ip link add inner type veth peer name eth0 netns {}; ip link set inner up
             ip addr add 10.88.0.1/24 dev inner; echo 1 > /proc/sys/net/ipv4/ip_forward",
            inner.path()
        ));
        inner.sh("ip link set eth0 up; ip addr add 10.88.0.2/24 dev eth0; ip route add default via 10.88.0.1");
        pair.peer.sh("ip route add 10.88.0.0/24 via 10.77.0.2");
        let _listeners = (pair.pod.listen(&["0.0.0.0:4141", "[::]:4141"]), inner.listen(&["0.0.0.0:80", "[::]:80"]));
        run(&pair.pod, &["--backend", backend]);
        assert_eq!(pair.peer.ask(ROOT, "10.88.0.2:80".parse().expect("an address")), Reached::Port(80), "{backend}");
        if ipv6 {
            pair.pod.sh("ip addr add fd88::1/64 dev inner nodad; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
            inner.sh("ip addr add fd88::2/64 dev eth0 nodad; ip route add default via fd88::1");
            pair.peer.sh("ip route add fd88::/64 via fd77::2");
            assert_eq!(
                pair.peer.ask(ROOT, "[fd88::2]:80".parse().expect("an address")),
                Reached::Port(80),
                "{backend}"
            );
        }
    }
}

/// Which is what the kernel tracks. Cleanup promises nothing: with the last NAT rule, NAT itself ends.
#[test]
fn an_open_connection_goes_on_when_rules_are_set_again_also_by_another_backend() {
    use std::io::{BufRead, BufReader, Write};
    for (backend, other) in [("nft", "iptables-nft"), ("iptables-nft", "iptables-legacy"), ("iptables-legacy", "nft")] {
        let pair = Pair::ipv4_only();
        run(&pair.pod, &["--backend", backend]);
        let _pod = pair.pod.listen(&["127.0.0.1:4140", "10.77.0.2:4141"]);
        let _peer = pair.peer.listen(&["10.77.0.1:80"]);
        let dial = |netns: &Netns, uid, target: &str| {
            let stream = netns.dial(uid, None, target.parse().expect("an address")).expect("a connection");
            (first_line(&stream), stream)
        };
        let open = [
            (dial(&pair.pod, APP, "10.77.0.1:80"), "4140 10.77.0.1:80\n"),
            (dial(&pair.pod, PROXY, "10.77.0.1:80"), "80 -\n"),
            (dial(&pair.peer, ROOT, "10.77.0.2:8080"), "4141 10.77.0.2:8080\n"),
        ];
        for backend in [backend, other] {
            run(&pair.pod, &["--backend", backend, "--skip-outbound-ports=80", "--skip-inbound-ports=8080"]);
            for ((reached, stream), expected) in &open {
                assert_eq!(reached, expected);
                let mut echo = String::new();
                let exchange = (&*stream).write_all(b"still here\n");
                let exchange = exchange.and_then(|()| BufReader::new(stream).read_line(&mut echo));
                exchange.unwrap_or_else(|error| panic!("{backend}, {expected}: {error}"));
                assert_eq!(echo, "still here\n", "{backend}, {expected}");
            }
        }
    }
}
