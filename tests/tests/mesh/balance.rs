//! Which endpoint of a service gets a connection, and that each connection verifies the endpoint that it got.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hauberk_lab::{Lab, Pod, ServiceOptions, wait_for};
use hauberk_mesh::{CloseCause, Connection, Direction, Reason, TransportState};

use crate::{
    common::{LIMIT, dial, identity},
    scene::{PORT, at, host_of, meshed, outbound, plain, scene, service, set_endpoints},
    talk::{HELLO, Samples, assert_refused, host, host_anywhere, record, tell, visit},
};

/// Balancing is by chance: that none of so many connections goes to one of three equal endpoints does not happen.
const MANY: usize = 100;

#[test]
fn each_connection_to_a_service_verifies_its_own_endpoint() {
    const WEB: &str = "10.2.0.10";
    let pods = [meshed("client"), meshed("alpha"), meshed("beta"), plain("old")];
    let (_lab, [client, a, b, c]) = scene(pods, [service(WEB, ["alpha", "beta", "old"])]);
    let _hosts = [&a, &b, &c].map(|pod| host(pod, PORT));
    let mut visits: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..MANY {
        let visit = visit(&client, at(WEB));
        let record = outbound(&client, &visit);
        let pod = [&a, &b, &c].into_iter().find(|pod| pod.name() == visit.host()).expect("one of them");
        assert_eq!(record.endpoint, Some(pod.at(PORT)), "{record:?}");
        assert_eq!(record.service.as_deref(), Some("at-10-2-0-10.shop.svc.cluster.local"));
        let identities = (record.client_identity.as_deref(), record.server_identity.as_deref());
        if pod.is_meshed() {
            let expected = (identity("client"), identity(pod.account()));
            assert_eq!(identities, (Some(expected.0.as_str()), Some(expected.1.as_str())), "{record:?}");
            assert_eq!((record.state, record.reason), (Some(TransportState::Mtls), None), "{record:?}");
        } else {
            assert_eq!(identities, (None, None), "{record:?}");
            let expected = (Some(TransportState::Cleartext), Some(Reason::PeerNotMeshed));
            assert_eq!((record.state, record.reason), expected, "{record:?}");
        }
        *visits.entry(visit.host()).or_default() += 1;
    }
    assert_eq!(visits.len(), 3, "{visits:?}");
    for pod in [&a, &b] {
        let of_client = |it: &&Connection| it.client_identity == Some(identity("client"));
        let seen = pod.wait_connections("all visits", |all| {
            let count = all.closed.iter().filter(of_client).count();
            (count == visits[pod.name()]).then(|| all.closed.clone())
        });
        for record in seen.expect("all visits") {
            assert_eq!(record.server_identity, Some(identity(pod.account())), "the other end says the same");
        }
    }
}

/// An endpoint that is not who it should be, alone behind a service and beside others. Where it is not cooling after a
/// failure, its weight makes it the choice over any one other.
struct Impostor {
    name: &'static str,
    alone: &'static str,
    with_plain: &'static str,
    with_good: &'static str,
    with_both: &'static str,
}

const HEAVIEST: u32 = 1_000_000;
const HEAVY: u32 = 1000;
const SECRET: &[u8] = b"for the right pod only";

impl Impostor {
    fn services(&self) -> [ServiceOptions; 4] {
        [
            service(self.alone, [self.name]),
            service(self.with_plain, [self.name, "old"]),
            service(self.with_good, [self.name, "good"]),
            service(self.with_both, [self.name, "old", "good"]),
        ]
    }

    /// While it still is who it should be.
    fn visit_before(&self, client: &Pod) {
        let visit = tell(client, at(self.alone), SECRET);
        assert_eq!(visit.host(), self.name);
        assert_eq!(outbound(client, &visit).server_identity, Some(identity(self.name)));
    }

    /// From the moment on that the client's proxy sees it.
    fn visit(&self, client: &Pod) {
        wait_for("the proxy sees it", LIMIT, || {
            let visit = tell(client, at(self.alone), SECRET);
            Ok(visit.broken.map(drop).ok_or_else(|| "served".to_owned()))
        })
        .expect("it is refused");
        for (what, service) in [("alone", self.alone), ("the only meshed one", self.with_plain)] {
            let visit = tell(client, at(service), SECRET);
            let what = format!("{}, {what}", self.name);
            assert_refused(client, Direction::Outbound, &visit, (CloseCause::IdentityMismatch, None), &what);
        }
        let before = refused_handshakes(client);
        let record = outbound(client, &tell(client, at(self.with_good), SECRET));
        assert_eq!(record.server_identity, Some(identity("good")), "{record:?}");
        assert_eq!(refused_handshakes(client), before + 1.0, "{} was tried first", self.name);
        self.visit_both(client);
    }

    /// Chance may choose among the others first, so this goes on until the impostor was tried.
    fn visit_both(&self, client: &Pod) {
        wait_for("the impostor is tried", LIMIT, || {
            let before = refused_handshakes(client);
            let record = outbound(client, &visit(client, at(self.with_both)));
            if refused_handshakes(client) == before {
                return Ok(Err("others came first".to_owned()));
            }
            assert_eq!(record.server_identity, Some(identity("good")), "the next meshed one: {record:?}");
            Ok(Ok(()))
        })
        .expect("it is tried");
    }
}

fn refused_handshakes(client: &Pod) -> f64 {
    let labels = [("direction", "outbound"), ("result", "failed"), ("fault", "peer")];
    Samples::of(client).sum("hauberk_handshakes_total", &labels)
}

#[test]
fn an_endpoint_with_another_identity_is_refused_never_plaintext_and_the_next_meshed_one_is_tried() {
    let impostors = [
        Impostor {
            name: "liar",
            alone: "10.2.1.1",
            with_plain: "10.2.1.2",
            with_good: "10.2.1.3",
            with_both: "10.2.1.4",
        },
        Impostor {
            name: "robbed",
            alone: "10.2.2.1",
            with_plain: "10.2.2.2",
            with_good: "10.2.2.3",
            with_both: "10.2.2.4",
        },
    ];
    let pods = [
        meshed("client"),
        meshed("liar").weight(HEAVIEST),
        meshed("robbed").weight(HEAVIEST),
        meshed("thief"),
        meshed("good"),
        plain("old").weight(HEAVY),
    ];
    let services = impostors.iter().flat_map(Impostor::services);
    let (lab, [client, liar, robbed, thief, good, old]) = scene(pods, services);
    let _hosts = [&liar, &robbed, &thief, &good, &old].map(|pod| host_anywhere(pod, PORT));
    let capture = lab.capture().expect("captures");
    impostors.iter().for_each(|impostor| impostor.visit_before(&client));

    // mesh.yaml names another account than the certificate of the first has,
    let key = liar.key();
    let lie = lab.edit(|mesh| mesh.pods.get_mut(&key).expect("listed").service_account = "somebody-else".to_owned());
    lie.expect("valid");
    // and at the address of the second there is now another pod of the mesh.
    let addr = format!("{}/16", robbed.ip());
    robbed.run("ip", ["addr", "del", &addr, "dev", "eth0"]).expect("it has the address");
    thief.run("ip", ["addr", "add", &addr, "dev", "eth0"]).expect("it is free");
    client.run("ip", ["neigh", "flush", "all"]).expect("the client forgets who had it");

    impostors.iter().for_each(|impostor| impostor.visit(&client));
    assert_eq!(visit(&client, old.at(PORT)).host(), "old");
    let captured = capture.stop().expect("stops");
    captured.check_whole().expect("whole");
    assert!(!captured.contains(SECRET), "it was never on the wire in the clear");
    assert!(captured.contains(HELLO), "what the plain endpoint was told was");
}

#[test]
fn a_slow_endpoint_gets_fewer_connections_than_fast_ones() {
    const WEB: &str = "10.2.0.10";
    let pods = [meshed("client"), meshed("slow"), meshed("fast"), meshed("faster")];
    let (_lab, [client, slow, fast, faster]) = scene(pods, [service(WEB, ["slow", "fast", "faster"])]);
    let _hosts = [&slow, &fast, &faster].map(|pod| host(pod, PORT));
    // Whoever gets to the slow endpoint is kept there to the end.
    let mut kept = Vec::new();
    let mut visits = BTreeMap::<String, usize>::new();
    for _ in 0..MANY {
        let stream = dial(&client, at(WEB)).expect("the proxy accepts");
        let (host, local) = (host_of(&stream), stream.local_addr().expect("connected"));
        if host == slow.name() {
            kept.push(stream);
        } else {
            drop(stream);
            record(&client, Direction::Outbound, local);
        }
        *visits.entry(host).or_default() += 1;
    }
    // The proxy of the client knew of no open connection to the others: the slow one had none but its first.
    assert_eq!(visits["slow"], 1, "{visits:?}");
    assert!(visits["fast"] > 1 && visits["faster"] > 1, "{visits:?}");
}

#[test]
fn a_new_endpoint_gets_connections_within_a_second_of_the_edit_and_a_removed_one_none() {
    const WEB: &str = "10.2.0.10";
    /// One edit may fall into a moment when the machine is busy elsewhere; half of them do not.
    const EDITS: usize = 5;
    let pods = [meshed("client"), meshed("staying"), meshed("coming").weight(HEAVIEST)];
    let (lab, [client, staying, coming]) = scene(pods, [service(WEB, ["staying"])]);
    let _hosts = [&staying, &coming].map(|pod| host(pod, PORT));
    let (mut until_first, mut until_none) = (Vec::new(), Vec::new());
    for _ in 0..EDITS {
        // While it is known its weight brings it every connection.
        until_first.push(first_visit_after(&lab, &client, &["staying", "coming"], "coming"));
        until_none.push(first_visit_after(&lab, &client, &["staying"], "staying"));
        for _ in 0..MANY / EDITS {
            assert_eq!(visit(&client, at(WEB)).host(), "staying", "the other has been removed");
        }
    }
    for (what, mut times) in [("new", until_first), ("removed", until_none)] {
        times.sort_unstable();
        println!("{what}: {times:?}");
        assert!(times[EDITS / 2] <= Duration::from_secs(1), "{what}: {times:?}");
    }
}

/// Edits the endpoints of the service and visits it until `host` answers; how long after the edit its connection came.
fn first_visit_after(lab: &Lab, client: &Pod, endpoints: &[&str], host: &str) -> Duration {
    let edited = SystemTime::now();
    set_endpoints(lab, "10.2.0.10", endpoints);
    let found = wait_for(&format!("a visit to {host}"), LIMIT, || {
        let visit = visit(client, at("10.2.0.10"));
        Ok(if visit.host() == host { Ok(visit) } else { Err(visit.host()) })
    });
    let came = outbound(client, &found.expect("the edit is seen")).opened_at_ms;
    let edited = edited.duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    Duration::from_millis(came.saturating_sub(u64::try_from(edited).expect("before 2554")))
}
