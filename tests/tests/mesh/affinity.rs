//! `sessionAffinity: ClientIP`: a pod stays with one endpoint of a service.

use std::{collections::BTreeSet, net::TcpStream, thread, time::Duration};

use hauberk_lab::{Lab, Pod, wait_for};

use crate::{
    common::{LIMIT, Server, dial},
    scene::{PORT, at, host_of, meshed, scene, service, set_endpoints},
    talk::{host, visit},
};

const WEB: &str = "10.2.0.10";
const SHOP: &str = "10.2.0.11";
const SPREAD: &str = "10.2.0.12";
const BRIEF: &str = "10.2.0.13";
/// Longer than any test.
const LONG: u32 = 600;
const HOSTS: [&str; 3] = ["one", "two", "three"];
/// That chance alone leads so many connections to one of three endpoints does not happen.
const MANY: usize = 40;

/// A client; three hosts, each with its server; in front of all: two services with affinity, one without, and one whose
/// affinity lasts a second.
fn hosts() -> (Lab, Pod, Vec<(Pod, Server)>) {
    let [one, two, three] = HOSTS.map(meshed);
    let services = [
        service(WEB, HOSTS).affinity(LONG),
        service(SHOP, HOSTS).affinity(LONG),
        service(SPREAD, HOSTS),
        service(BRIEF, HOSTS).affinity(1),
    ];
    let (lab, [client, pods @ ..]) = scene([meshed("client"), one, two, three], services);
    let hosts = pods.map(|pod: Pod| (pod.clone(), host(&pod, PORT)));
    (lab, client, hosts.into())
}

/// Who answers at `service`, on so many connections that none ends before the last has begun.
fn answering(client: &Pod, service: &str, connections: usize) -> (BTreeSet<String>, Vec<TcpStream>) {
    let open: Vec<_> = (0..connections).map(|_| dial(client, at(service)).expect("the proxy accepts")).collect();
    (open.iter().map(host_of).collect(), open)
}

/// The one who answers there.
fn only(client: &Pod, service: &str) -> String {
    let (hosts, _) = answering(client, service, MANY);
    assert_eq!(hosts.len(), 1, "{service}: {hosts:?}");
    hosts.into_iter().next().expect("one")
}

#[test]
fn with_affinity_a_pod_stays_with_one_endpoint_of_each_service_while_it_lives() {
    let (lab, client, mut hosts) = hosts();
    let (spread, open) = answering(&client, SPREAD, MANY);
    assert_eq!(spread.len(), 3, "without affinity chance leads to all of them");
    let (first, other) = (only(&client, WEB), only(&client, SHOP));
    drop(open);

    // It leaves the service: the pod stays with the next one then.
    let staying: Vec<_> = HOSTS.into_iter().filter(|name| *name != first).collect();
    set_endpoints(&lab, WEB, &staying);
    let next = wait_for("another answers", LIMIT, || {
        let host = visit(&client, at(WEB)).host();
        Ok(if host == first { Err(host) } else { Ok(host) })
    });
    let next = next.expect("the edit is seen");
    assert_eq!(only(&client, WEB), next, "{first} is gone");

    // It dies: the pod goes to another without seeing that, and stays there.
    hosts.retain(|(pod, _)| pod.name() != next);
    let last = visit(&client, at(WEB)).host();
    assert_ne!(last, next);
    assert_eq!(only(&client, WEB), last);
    if other != next {
        assert_eq!(only(&client, SHOP), other, "each service has its own");
    }
}

#[test]
fn affinity_ends_when_its_time_is_over() {
    let (_lab, client, _hosts) = hosts();
    let (before, open) = answering(&client, BRIEF, 1);
    thread::sleep(Duration::from_millis(1100));
    // The one before has a connection open: without affinity it is the worst choice.
    let (after, _open) = answering(&client, BRIEF, 1);
    assert!(after.is_disjoint(&before), "{before:?}, then {after:?}");
    drop(open);
}
