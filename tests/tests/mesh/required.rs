//! Mode `required`: each cell of the table in `design/kubernetes.md` that needs no Kubernetes, and how it is refused.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use hauberk_lab::{Lab, NODE_V4, Pod, PodOptions};
use hauberk_mesh::{CloseCause, Direction, Egress, Reason, TlsMode, TransportState};

use crate::{
    common::{Server, closed, identity},
    scene::{PORT, at, meshed, outbound, plain, prepared, scene, service},
    talk::{
        HELLO, Visit, assert_refused, client_hello, host_anywhere, record, serve_as, socket, tell, tell_by, tell_from,
        tell_slowly,
    },
};

/// Another port, which the same servers answer on.
const OTHER: u16 = 7001;
/// One that the peer's rules let pass.
const SKIPPED: u16 = 7002;
const DNS: u16 = 53;
const API: u16 = 6443;
const OUTSIDE: &str = "192.0.2.7";
const ELSEWHERE: &str = "192.0.2.8";

/// Said where a refusal is expected: on the wire it would be seen.
const SECRET: &[u8] = b"not without mTLS";
const REFUSED_NAME: &str = "refused.example";
const PASSED_NAME: &str = "passed.example";

/// What becomes of a connection.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// By mTLS to that account.
    Mtls(&'static str),
    /// As it came.
    Passed(Reason),
    Refused(CloseCause, Reason),
}
use Fate::{Mtls, Passed, Refused};

/// What a client says: cleartext, or TLS of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Words {
    Clear,
    Tls,
}

impl Words {
    const BOTH: &[Self] = &[Self::Clear, Self::Tls];

    fn said(self, fate: Fate) -> Vec<u8> {
        let refused = matches!(fate, Refused(..));
        match self {
            Self::Clear => if refused { SECRET } else { HELLO }.to_vec(),
            Self::Tls => client_hello(if refused { REFUSED_NAME } else { PASSED_NAME }),
        }
    }

    fn state(self) -> TransportState {
        if self == Self::Tls { TransportState::OwnTls } else { TransportState::Cleartext }
    }
}

pub(crate) fn required(name: &str) -> PodOptions {
    meshed(name).tls(TlsMode::Required)
}

fn listen(pods: &[&Pod], ports: &[u16]) -> Vec<Server> {
    pods.iter().flat_map(|pod| ports.iter().map(|port| host_anywhere(pod, *port))).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Sends a client of `pod` to `to` and compares what became of it with `fate`.
fn go(pod: &Pod, to: SocketAddr, words: Words, fate: Fate) {
    let what = format!("{} to {to}, {words:?}", pod.name());
    let visit = tell(pod, to, &words.said(fate));
    if let Refused(cause, reason) = fate {
        return assert_refused(pod, Direction::Outbound, &visit, (cause, Some(reason)), &what);
    }
    assert!(!visit.host().is_empty(), "{what}");
    let record = outbound(pod, &visit);
    match fate {
        Mtls(account) => {
            assert_eq!((record.state, record.reason), (Some(TransportState::Mtls), None), "{what}");
            assert_eq!(record.server_identity, Some(identity(account)), "{what}");
        }
        Passed(reason) => {
            assert_eq!((record.state, record.reason), (Some(words.state()), Some(reason)), "{what}");
            let sni = (words == Words::Tls).then_some(PASSED_NAME);
            assert_eq!((record.sni.as_deref(), record.tls.is_none()), (sni, true), "{what}");
        }
        Refused(..) => unreachable!("checked above"),
    }
}

#[test]
fn a_required_pod_reaches_mesh_peers_by_mtls_and_nothing_else_in_the_cluster_but_its_exceptions() {
    const MIXED: &str = "10.2.0.10";
    const PLAIN_ONLY: &str = "10.2.0.11";
    const FRIENDLY: &str = "10.2.0.12";
    const EXCEPTED: &str = "10.2.0.13";
    let pods = [
        required("strict").allow_unmeshed_to(&format!("{EXCEPTED}@80")),
        meshed("peer").skip_inbound(&SKIPPED.to_string()),
        meshed("off").tls(TlsMode::Disabled),
        plain("old"),
        plain("friend"),
        plain("api"),
        plain("dns"),
        plain("nobody").unlisted(),
    ];
    let services = [
        service(MIXED, ["peer", "old"]),
        service(PLAIN_ONLY, ["old"]),
        service(FRIENDLY, ["friend"]),
        service(EXCEPTED, ["old"]),
    ];
    let (lab, [strict, peer, off, old, friend, api, dns, nobody]) = prepared(pods, services, |pods| {
        let [strict, _, _, _, friend, api, dns, _] = pods;
        strict.edit_spec(|spec| {
            let friend = format!("{}/32@{PORT}", friend.ip());
            spec.allow_unmeshed_to.push(friend.parse().expect("an exception"));
            spec.api_server = Some(api.at(API));
            spec.resolvers = vec![dns.ip()];
        });
    });
    let _hosts = [
        listen(&[&strict, &old, &off, &friend, &nobody, &api, &dns], &[PORT]),
        listen(&[&peer], &[PORT, SKIPPED]),
        listen(&[&friend], &[OTHER]),
        listen(&[&api], &[API]),
        listen(&[&dns], &[DNS]),
    ];
    let refused = |reason| Refused(CloseCause::Refused, reason);
    let capture = lab.capture().expect("captures");
    for (to, fate) in [
        (peer.at(PORT), Mtls("peer")),
        (at(MIXED), Mtls("peer")),
        (peer.at(SKIPPED), refused(Reason::PeerNotMeshed)),
        (old.at(PORT), refused(Reason::PeerNotMeshed)),
        (at(PLAIN_ONLY), refused(Reason::PeerNotMeshed)),
        (off.at(PORT), refused(Reason::TlsDisabled)),
        (nobody.at(PORT), refused(Reason::UnknownInCluster)),
        (api.at(API), Passed(Reason::Exception)),
        (api.at(PORT), refused(Reason::PeerNotMeshed)),
        (dns.at(DNS), Passed(Reason::Exception)),
        (dns.at(PORT), refused(Reason::PeerNotMeshed)),
        (friend.at(PORT), Passed(Reason::Exception)),
        (friend.at(OTHER), refused(Reason::PeerNotMeshed)),
        (at(FRIENDLY), Passed(Reason::Exception)),
        (at(EXCEPTED), Passed(Reason::Exception)),
        (strict.at(PORT), Passed(Reason::Loopback)),
    ] {
        Words::BOTH.iter().for_each(|words| go(&strict, to, *words, fate));
    }
    // However often: chance never leads to the endpoint of the service that has no proxy.
    (0..20).for_each(|_| go(&strict, at(MIXED), Words::Clear, Mtls("peer")));
    let captured = capture.stop().expect("stops");
    captured.check_whole().expect("whole");
    assert!(!captured.contains(SECRET) && !captured.contains(REFUSED_NAME.as_bytes()), "not a byte left the pod");
    assert!(captured.contains(HELLO) && captured.contains(PASSED_NAME.as_bytes()), "what was to pass did");
}

#[test]
fn outside_the_cluster_a_required_pod_goes_as_its_egress_policy_says() {
    let pods = [
        required("allow"),
        required("tls-only").egress(Egress::TlsOnly).allow_unmeshed_to(&format!("{OUTSIDE}@{OTHER}")),
        required("deny").egress(Egress::Deny).allow_unmeshed_to(&format!("{OUTSIDE}@{OTHER}")),
        plain("outside").unlisted().also_at(OUTSIDE).also_at(ELSEWHERE),
    ];
    let [out, other, elsewhere] =
        [(OUTSIDE, PORT), (OUTSIDE, OTHER), (ELSEWHERE, OTHER)].map(|(at, port)| (ip(at), port).into());
    let [api, dns] = [(OUTSIDE, API), (OUTSIDE, DNS)].map(|(at, port)| SocketAddr::new(ip(at), port));
    let (lab, [allow, tls_only, deny, outside]) = prepared(pods, [], |[allow, tls_only, deny, _]| {
        for pod in [allow, tls_only, deny] {
            pod.edit_spec(|spec| (spec.api_server, spec.resolvers) = (Some(api), vec![ip(OUTSIDE)]));
        }
    });
    let _hosts = listen(&[&outside], &[PORT, OTHER, API, DNS]);
    let (passed, exception) = (Passed(Reason::OutsideCluster), Passed(Reason::Exception));
    let denied = Refused(CloseCause::EgressDenied, Reason::OutsideCluster);
    let capture = lab.capture().expect("captures");
    for (pod, to, clear, tls) in [
        (&allow, out, passed, passed),
        (&tls_only, out, denied, passed),
        (&tls_only, elsewhere, denied, passed),
        (&tls_only, other, exception, exception),
        (&tls_only, api, exception, exception),
        (&tls_only, dns, exception, exception),
        (&deny, out, denied, denied),
        (&deny, elsewhere, denied, denied),
        (&deny, other, exception, exception),
        (&deny, api, exception, exception),
        (&deny, dns, exception, exception),
    ] {
        go(pod, to, Words::Clear, clear);
        go(pod, to, Words::Tls, tls);
    }
    let captured = capture.stop().expect("stops");
    captured.check_whole().expect("whole");
    assert!(!captured.contains(SECRET) && !captured.contains(REFUSED_NAME.as_bytes()), "not a byte left the pod");
    assert!(captured.contains(HELLO) && captured.contains(PASSED_NAME.as_bytes()), "what was to pass did");
}

#[test]
fn tls_only_holds_back_the_server_until_the_client_has_sent_a_client_hello() {
    let pods = [required("client").egress(Egress::TlsOnly), plain("outside").unlisted().also_at(OUTSIDE)];
    let (_lab, [client, outside]) = scene(pods, []);
    let (reached, served) = (Arc::new(AtomicUsize::new(0)), serve_as(&outside));
    let counter = reached.clone();
    let out = SocketAddr::new(ip(OUTSIDE), PORT);
    // It speaks first.
    let _host = Server::listen(&outside, out, move |stream| {
        counter.fetch_add(1, Relaxed);
        served(stream);
    });
    let hello = client_hello(PASSED_NAME);
    let bytes: Vec<&[u8]> = hello.chunks(hello.len() / 5).collect();
    let denied = (CloseCause::EgressDenied, Some(Reason::OutsideCluster));
    let almost = hello.iter().map(|byte| if *byte == 3 { 4 } else { *byte }).collect::<Vec<_>>();
    let cases: [(&str, &[&[u8]], bool); 7] = [
        ("in pieces", &bytes, true),
        ("late", &[&hello], true),
        ("its first byte, then the rest", &[&hello[..1], &hello[1..]], true),
        ("nothing", &[b""], false),
        ("half of it", &[&hello[..20]], false),
        ("another version", &[&almost], false),
        ("the first byte, then cleartext", &[&hello[..1], SECRET], false),
    ];
    for (what, pieces, passes) in cases {
        let visit = tell_slowly(&client, out, pieces);
        if passes {
            assert_eq!(visit.host(), "outside", "{what}");
            assert_eq!(outbound(&client, &visit).state, Some(TransportState::OwnTls), "{what}");
        } else {
            assert_refused(&client, Direction::Outbound, &visit, denied, what);
        }
    }
    let passed = cases.iter().filter(|(_, _, passes)| *passes).count();
    assert_eq!(reached.load(Relaxed), passed, "the server saw none that was refused");
}

#[test]
fn a_required_pod_lets_in_mesh_peers_and_its_exceptions_only() {
    let pods = [
        required("strict"),
        meshed("peer"),
        plain("old"),
        plain("friend"),
        plain("api"),
        plain("outside").unlisted().also_at(OUTSIDE).also_at(ELSEWHERE),
    ];
    let (lab, [strict, peer, old, friend, api, outside]) = prepared(pods, [], |[strict, _, _, friend, api, _]| {
        strict.edit_spec(|spec| {
            let exceptions =
                [format!("{}/32@{PORT}", friend.ip()), format!("{}@{OTHER}", api.ip()), ELSEWHERE.to_owned()];
            spec.allow_unmeshed_from = exceptions.iter().map(|text| text.parse().expect("an exception")).collect();
            spec.api_server = Some(api.at(API));
        });
    });
    let (let_in, served) = (Arc::new(AtomicUsize::new(0)), serve_as(&strict));
    let _hosts = [PORT, OTHER].map(|port| {
        let (served, let_in) = (served.clone(), let_in.clone());
        Server::start(&strict, port, move |stream| {
            let_in.fetch_add(1, Relaxed);
            served(stream);
        })
    });
    let refused = Refused(CloseCause::Refused, Reason::UnmeshedClient);
    let exception = Passed(Reason::Exception);
    let from = |pod: &Pod, from: IpAddr, port, words: &[u8]| tell_from(pod, from, strict.at(port), words);
    type Client<'a> = &'a dyn Fn(u16, &[u8]) -> Visit;
    let clients: [(&str, Client<'_>, Fate, Fate); 6] = [
        ("unmeshed", &|port, words| from(&old, old.ip(), port, words), refused, refused),
        ("friend", &|port, words| from(&friend, friend.ip(), port, words), exception, refused),
        ("API server", &|port, words| from(&api, api.ip(), port, words), refused, exception),
        ("outside", &|port, words| from(&outside, ip(OUTSIDE), port, words), refused, refused),
        ("elsewhere", &|port, words| from(&outside, ip(ELSEWHERE), port, words), exception, exception),
        ("node", &|port, words| from_node(&lab, strict.at(port), words), refused, refused),
    ];
    let mut expected = 0;
    for (name, client, main, other) in clients {
        for (port, fate) in [(PORT, main), (OTHER, other)] {
            for words in Words::BOTH {
                let visit = client(port, &words.said(fate));
                expected += come(&strict, &visit, *words, fate, &format!("{name} to port {port}, {words:?}"));
            }
        }
    }
    for words in Words::BOTH {
        go(&peer, strict.at(PORT), *words, Mtls("strict"));
        expected += 1;
    }
    let peers = closed(&strict, "the peer's", |it| it.client_identity == Some(identity("peer")));
    assert_eq!((peers.state, peers.reason), (Some(TransportState::Mtls), None));
    assert_eq!(let_in.load(Relaxed), expected, "the application saw none that was refused");
}

fn from_node(lab: &Lab, to: SocketAddr, words: &[u8]) -> Visit {
    tell_by(lab.enter(|| socket(to)), NODE_V4.into(), to, words)
}

/// Compares what became of a visit to `pod` with `fate`; how many connections the application saw.
fn come(pod: &Pod, visit: &Visit, words: Words, fate: Fate, what: &str) -> usize {
    match fate {
        Refused(cause, reason) => {
            assert_refused(pod, Direction::Inbound, visit, (cause, Some(reason)), what);
            0
        }
        Passed(reason) => {
            assert_eq!(visit.host(), pod.name(), "{what}");
            let record = record(pod, Direction::Inbound, visit.local);
            assert_eq!((record.state, record.reason), (Some(words.state()), Some(reason)), "{what}");
            1
        }
        Mtls(_) => unreachable!("these clients have no proxy"),
    }
}
