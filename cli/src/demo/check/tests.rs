//! A demo in which all is well, and then one thing after the other is not.

use hauberk_lab::Stream;
use hauberk_mesh::{
    Close, CloseCause, ClosedBy, FirstBytes, HandshakeKind, MESH_PORT, TlsDetails, TransportState, TrustDomain,
};

use super::*;

const CLIENT: IpAddr = ip(1);
const SERVER: IpAddr = ip(2);
const STRANGER: IpAddr = ip(3);
const CONTROL: IpAddr = ip(4);
const NODE: IpAddr = ip(9);
const SERVICE: (IpAddr, u16) = (ip(100), 80);

const fn ip(last: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, last))
}

/// A meshed client that talks to a meshed server and to a stranger, who talks to the server.
fn good() -> Evidence {
    let [client, server] =
        ["client", "server"].map(|name| TrustDomain::default().identity(name, "shop").expect("valid").to_string());
    let mtls = |direction, addrs| record(direction, addrs, Some((client.clone(), server.clone())), None);
    let plain = |direction, addrs, reason| record(direction, addrs, None, Some(reason));
    let outbound = vec![
        mtls(Direction::Outbound, (CLIENT, SERVICE, Some((SERVER, 8080)))),
        plain(Direction::Outbound, (CLIENT, (STRANGER, 81), Some((STRANGER, 81))), Reason::PeerNotMeshed),
    ];
    let inbound = vec![
        mtls(Direction::Inbound, (CLIENT, (SERVER, 8080), None)),
        plain(Direction::Inbound, (STRANGER, (SERVER, 82), None), Reason::UnmeshedClient),
    ];
    let meshed = |ip, identity: &String, closed| PodFacts {
        ip,
        identity: Some(identity.clone()),
        connections: Some(Connections { identity: Some(identity.clone()), live: vec![], closed }),
        tls_port: None,
    };
    let stranger = PodFacts { ip: STRANGER, identity: None, connections: None, tls_port: None };
    let control = PodFacts { ip: CONTROL, tls_port: Some(8080), ..stranger.clone() };
    let tls = tls_session(&server);
    let clear = [b"hello".repeat(20), b"answer".repeat(20)];
    Evidence {
        pods: [
            ("client", meshed(CLIENT, &client, outbound)),
            ("server", meshed(SERVER, &server, inbound)),
            ("stranger", stranger),
            ("control", control),
        ]
        .into(),
        node: NODE,
        exchanges: vec![
            Exchange::between("client", "server", "HTTP", SERVICE, 8080).saying(&["secret"], &Ok(())),
            Exchange::between("client", "stranger", "HTTP", (STRANGER, 81), 81)
                .saying(&["hello"], &Ok(()))
                .in_the_clear(Direction::Outbound, Reason::PeerNotMeshed, "no proxy"),
            Exchange::between("stranger", "server", "HTTP", (SERVER, 82), 82)
                .saying(&["answer"], &Ok(()))
                .in_the_clear(Direction::Inbound, Reason::UnmeshedClient, "no proxy"),
        ],
        flows: vec![
            flow(CLIENT, (SERVER, MESH_PORT), tls.clone()),
            flow(CLIENT, (STRANGER, 81), clear.clone()),
            flow(STRANGER, (SERVER, 82), clear),
            flow(CLIENT, (CONTROL, 8080), tls),
            flow(NODE, (SERVER, 4191), [b"GET /ready".to_vec(), vec![]]),
        ],
        dropped: 0,
        seen: ["hello", "answer"].into(),
    }
}

type Addrs = (IpAddr, (IpAddr, u16), Option<(IpAddr, u16)>);

fn record(
    direction: Direction,
    (client, target, endpoint): Addrs,
    identities: Option<(String, String)>,
    reason: Option<Reason>,
) -> Connection {
    let (client_identity, server_identity) = identities.unzip();
    let tls = reason.is_none().then(|| TlsDetails {
        version: "TLSv1_3".to_owned(),
        cipher: "TLS13_AES_128_GCM_SHA256".to_owned(),
        group: "X25519MLKEM768".to_owned(),
        protocol: "hauberk/1".to_owned(),
        handshake: HandshakeKind::Full,
    });
    Connection {
        id: 1,
        direction,
        client: (client, 40_000).into(),
        target: target.into(),
        service: None,
        endpoint: endpoint.map(Into::into),
        client_identity,
        server_identity,
        state: Some(if reason.is_none() { TransportState::Mtls } else { TransportState::Cleartext }),
        reason,
        tls,
        first_bytes: FirstBytes::Http1,
        sni: None,
        bytes_to_server: 30,
        bytes_to_client: 40,
        opened_at_ms: 0,
        close: Some(Close { cause: CloseCause::Clean, by: ClosedBy::Client, at_ms: 1 }),
    }
}

fn flow(client: IpAddr, server: (IpAddr, u16), [to_server, to_client]: [Vec<u8>; 2]) -> Flow {
    let stream = |bytes| Stream { bytes, gap: None, ended: true };
    Flow {
        client: (client, 50_000).into(),
        server: server.into(),
        syn_seen: true,
        accepted: true,
        reset: false,
        to_server: stream(to_server),
        to_client: stream(to_client),
    }
}

/// Hellos that choose TLS 1.3, and an encrypted record each.
fn tls_session(server_name: &str) -> [Vec<u8>; 2] {
    let long = |bytes: &[u8]| [&u16::try_from(bytes.len()).expect("short").to_be_bytes()[..], bytes].concat();
    let extension = |number: u8, body: &[u8]| [&[0, number][..], &long(body)].concat();
    let name = long(&[&[0][..], &long(server_name.as_bytes())].concat());
    let hello = |kind: u8, before: &[u8], extensions: Vec<u8>| {
        let body = [&[3, 3][..], &[7; 32], before, &long(&extensions)].concat();
        let message = [&[kind, 0][..], &long(&body)].concat();
        let encrypted = [&[23, 3, 3][..], &long(&[9; 100])].concat();
        [&[22, 3, 3][..], &long(&message), &encrypted].concat()
    };
    [hello(1, &[0, 0, 2, 19, 1, 1, 0], extension(0, &name)), hello(2, &[0, 19, 1, 0], extension(43, &[3, 4]))]
}

/// Every failure, with the row it belongs to.
fn failures(evidence: &Evidence) -> Vec<String> {
    let report = check(evidence);
    let rows = report.rows.iter().enumerate();
    let rows = rows.flat_map(|(number, row)| row.failures.iter().map(move |failure| format!("{number}: {failure}")));
    let all: Vec<_> = rows.chain(report.failures.iter().cloned()).collect();
    assert_eq!(report.passed(), all.is_empty());
    all
}

#[test]
fn all_is_well_when_both_proxies_and_the_wire_agree() {
    assert_eq!(failures(&good()), [""; 0]);
    let report = check(&good());
    let [mtls, outbound, inbound] = &report.rows[..] else { panic!("three rows") };
    assert_eq!((mtls.secured.as_str(), mtls.bytes, mtls.plaintext.as_str()), ("mtls", 70, "none"));
    assert_eq!(mtls.identities, "client.shop → server.shop");
    assert_eq!((outbound.secured.as_str(), outbound.identities.as_str()), ("cleartext", ""));
    assert_eq!(outbound.plaintext, "yes, as expected: hello");
    assert_eq!(inbound.why, "unmeshed-client: no proxy");
}

/// What to break, and what must be said of it.
type Break = (fn(&mut Evidence), &'static [&'static str]);

#[test]
fn whatever_is_not_as_it_must_be_fails() {
    let table: [Break; 23] = [
        (|all| all.exchanges[0].failed = Some("refused".to_owned()), &["0: the client failed: refused"]),
        (|all| all.dropped = 3, &["the capture missed 3 packets"]),
        (|all| assert!(all.seen.insert("secret")), &["0: in the clear on the wire: secret"]),
        (|all| assert!(all.seen.remove("hello")), &["1: the capture would not have shown plaintext: it lacks hello"]),
        (|all| closed(all, "client").clear(), &["0: the client's proxy has 0 such connections, the server's 1"]),
        (|all| drop(closed(all, "client").remove(1)), &["1: the outbound proxy has no such connection"]),
        (
            |all| drop(closed(all, "server").remove(0)),
            &["0: the client's proxy has 1 such connections, the server's 0"],
        ),
        (|all| drop(closed(all, "server").remove(1)), &["2: the inbound proxy has no such connection"]),
        (|all| closed(all, "client")[0].state = None, &["0: the outbound proxy says nothing, TLSv1_3"]),
        (|all| closed(all, "server")[0].tls = None, &["0: the inbound proxy says mtls, no TLS"]),
        (|all| closed(all, "server")[0].client_identity = None, &["0: the inbound proxy names (None, Some("]),
        (|all| other_name(&mut closed(all, "client")[0].server_identity), &["0: the outbound proxy names"]),
        (
            |all| closed(all, "server")[0].bytes_to_client += 1,
            &["0: the client's proxy reports 70 bytes, the server's 71"],
        ),
        (|all| closed(all, "client")[1].reason = None, &["1: the outbound proxy says cleartext, no reason; not"]),
        (|all| closed(all, "client")[1].state = Some(TransportState::OwnTls), &["1: the outbound proxy says own-tls,"]),
        (
            |all| closed(all, "client")[1].target = (ip(77), 1).into(),
            &["1: the outbound", "client has a connection that nobody expected"],
        ),
        (
            |all| all.flows[0].to_server.bytes[0] = b'G',
            &["client (10.1.0.1:50000) to server (10.1.0.2:4143): the client does not speak"],
        ),
        (|all| all.flows[0].to_client.bytes.push(23), &["the last 1 bytes of the server are no whole record"]),
        (|all| all.flows[0].to_client.gap = Some(5), &["the capture lacks bytes at 5"]),
        (|all| all.flows[0].syn_seen = false, &["it was open before the capture began"]),
        (
            |all| all.flows[0].to_server.bytes = tls_session("someone.else")[0].clone(),
            &["the client asked for Some(\"someone.else\")"],
        ),
        (
            |all| all.flows[3].to_server.bytes = b"in the clear".to_vec(),
            &["client (10.1.0.1:50000) to control (10.1.0.4:8080): the client does not speak"],
        ),
        (
            |all| all.flows[4].client = (STRANGER, 5).into(),
            &["stranger (10.1.0.3:5) to server (10.1.0.2:4191): a connection on the wire that nobody"],
        ),
    ];
    for (number, (change, expected)) in table.into_iter().enumerate() {
        let mut evidence = good();
        change(&mut evidence);
        let said = failures(&evidence);
        for what in expected {
            assert!(said.iter().any(|failure| failure.contains(what)), "{number}: {what}: {said:#?}");
        }
    }
}

#[test]
fn too_few_bytes_on_the_wire_fail() {
    let mut evidence = good();
    evidence.flows.truncate(1);
    let Flow { to_server, to_client, .. } = &mut evidence.flows[0];
    to_server.bytes.clear();
    to_client.bytes.clear();
    assert_eq!(
        failures(&evidence),
        [
            "0: 0 bytes on the wire, but the proxies report 70",
            "1: 0 bytes on the wire, but the proxy reports 70",
            "2: 0 bytes on the wire, but the proxy reports 70",
        ]
    );
}

#[test]
fn a_hole_in_the_redirection_fails_on_every_side() {
    let mut evidence = good();
    evidence.flows.push(flow(CLIENT, (SERVER, 8080), [b"secret".to_vec(), vec![]]));
    evidence.seen.insert("secret");
    closed(&mut evidence, "client").remove(0);
    let leaked = record(Direction::Inbound, (CLIENT, (SERVER, 8080), None), None, Some(Reason::UnmeshedClient));
    closed(&mut evidence, "server")[0] = leaked;
    insta::assert_snapshot!(failures(&evidence).join("\n"));
    assert_eq!(check(&evidence).rows[0].plaintext, "YES: secret");
}

fn closed<'a>(evidence: &'a mut Evidence, pod: &str) -> &'a mut Vec<Connection> {
    &mut evidence.pods.get_mut(pod).and_then(|pod| pod.connections.as_mut()).expect("meshed").closed
}

fn other_name(identity: &mut Option<String>) {
    *identity = Some("other.shop.serviceaccount.identity.hauberk.cluster.local".to_owned());
}
