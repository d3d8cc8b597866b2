//! Who a pod is, and who has an address.

use super::*;
use crate::subject::Mesh;

const WEB: &str = "10.1.1.5:8080";

fn one(json: Value) -> Vec<String> {
    let mut cluster = Cluster::new();
    cluster.pod(json);
    cluster.ask(WEB)
}

#[test]
fn a_pod_is_meshed_by_its_spec_and_account_alone() {
    let stripped = with(meshed("web-0", "10.1.1.5"), "/metadata/labels", Value::Null);
    assert_eq!(one(stripped), ["10.1.1.5:8080=web"], "by its account, not by what its proxy was told");
    let claims = json!({ "hauberk.dev/inject": "enabled", "hauberk.dev/tls": "required", "linkerd.io/x": "y" });
    let mut claiming = unmeshed("web-0", "10.1.1.5");
    claiming["metadata"]["labels"] = claims.clone();
    claiming["metadata"]["annotations"] = claims;
    assert_eq!(one(claiming), [WEB], "labels and annotations say nothing");
    let no_account = with(meshed("web-0", "10.1.1.5"), "/spec/serviceAccountName", Value::Null);
    assert_eq!(one(no_account), ["10.1.1.5:8080=default"]);
}

#[test]
fn a_proxy_that_cannot_be_read_is_a_proxy() {
    let mut pod = meshed("web-0", "10.1.1.5");
    let env = pod["spec"]["initContainers"][0]["env"].as_array_mut().expect("an array");
    env.push(json!({ "name": "HAUBERK_OF_NEXT_YEAR", "value": "1" }));
    let mut cluster = Cluster::new();
    cluster.pod(pod.clone());
    assert_eq!(cluster.ask(WEB), ["10.1.1.5:8080=web"]);
    let faults = cluster.world.take_faults();
    assert!(faults.len() == 1 && faults[0].contains("shop/web-0: HAUBERK_OF_NEXT_YEAR"), "{faults:?}");
    cluster.pod(with(pod, "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")));
    assert!(cluster.world.take_faults().is_empty(), "said once");
}

#[test]
fn a_disabled_proxy_and_skipped_ports_are_not_meshed() {
    let env = |name: &str, value: &str| {
        let mut pod = meshed("web-0", "10.1.1.5");
        let env = pod["spec"]["initContainers"][0]["env"].as_array_mut().expect("an array");
        env.retain(|var| var["name"] != name);
        env.push(json!({ "name": name, "value": value }));
        pod
    };
    assert_eq!(one(env("HAUBERK_TLS", "disabled")), [WEB]);
    assert_eq!(one(env("HAUBERK_SKIP_INBOUND_PORTS", "8080")), [WEB]);
    assert_eq!(one(env("HAUBERK_SKIP_INBOUND_PORTS", "9090")), ["10.1.1.5:8080=web"]);
}

#[test]
fn a_pod_without_a_name_for_certificates_is_left_out_and_counted() {
    let mut cluster = Cluster::new();
    let account = json!("a".repeat(64));
    cluster.pod(with(meshed("web-0", "10.1.1.5"), "/spec/serviceAccountName", account));
    assert_eq!(cluster.answer(WEB, ""), Answer::Pod(None));
    assert_eq!(cluster.world.nameless(), 1);
    cluster.no_pod("web-0");
    assert_eq!((cluster.world.nameless(), cluster.ask(WEB)), (0, vec!["unknown".to_owned()]));
}

#[test]
fn a_pod_has_its_identity_from_its_address_to_its_end() {
    let pod = || meshed("web-0", "10.1.1.5");
    for (json, expected) in [
        (with(pod(), "/status", json!({ "phase": "Pending" })), "unknown"),
        (with(pod(), "/status/phase", json!("Pending")), "10.1.1.5:8080=web"),
        (with(pod(), "/status/conditions", json!([{ "type": "Ready", "status": "False" }])), "10.1.1.5:8080=web"),
        (with(pod(), "/status/phase", json!("Unknown")), "10.1.1.5:8080=web"),
        (with(pod(), "/status/phase", json!("Succeeded")), "unknown"),
        (with(pod(), "/status/phase", json!("Failed")), "unknown"),
        (with(pod(), "/spec/hostNetwork", json!(true)), "unknown"),
    ] {
        assert_eq!(one(json.clone()), [expected], "{}", json["status"]);
    }
}

#[test]
fn a_pod_leaves_from_its_deletion_timestamp_on() {
    let mut cluster = Cluster::new();
    cluster.pod(with(meshed("web-0", "10.1.1.5"), "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")));
    let Answer::Pod(Some(endpoint)) = cluster.answer(WEB, "") else { panic!("it is there") };
    assert!(endpoint.pod.expect("a pod").terminating);
}

#[test]
fn an_address_goes_from_a_pod_that_ended_to_the_next() {
    let mut cluster = Cluster::new();
    cluster.pod(meshed("old", "10.1.1.5"));
    cluster.pod(with(meshed("old", "10.1.1.5"), "/status/phase", json!("Succeeded")));
    assert_eq!(cluster.ask(WEB), ["unknown"]);
    cluster.pod(unmeshed("new", "10.1.1.5"));
    assert_eq!(cluster.ask(WEB), [WEB]);
    cluster.no_pod("old");
    assert_eq!(cluster.ask(WEB), [WEB], "its end takes nothing from the next");
    cluster.no_pod("new");
    assert_eq!(cluster.ask(WEB), ["unknown"]);
}

#[test]
fn of_two_that_claim_an_address_the_meshed_the_staying_the_younger_has_it() {
    let leaving = |json| with(json, "/metadata/deletionTimestamp", json!("2026-01-03T00:00:00Z"));
    let younger = |json| with(json, "/metadata/creationTimestamp", json!("2026-01-02T00:00:00Z"));
    let account = |json, name: &str| with(json, "/spec/serviceAccountName", json!(name));
    let ip = "10.1.1.5";
    for (one, other, expected) in [
        (account(meshed("a", ip), "one"), account(younger(meshed("b", ip)), "two"), "10.1.1.5:8080=two"),
        (account(meshed("a", ip), "one"), leaving(account(younger(meshed("b", ip)), "two")), "10.1.1.5:8080=one"),
        (account(meshed("a", ip), "one"), younger(unmeshed("b", ip)), "10.1.1.5:8080=one"),
        (leaving(account(meshed("a", ip), "one")), younger(unmeshed("b", ip)), "10.1.1.5:8080=one"),
        (account(meshed("a", ip), "one"), account(meshed("b", ip), "two"), "10.1.1.5:8080=two"),
    ] {
        for order in [[&one, &other], [&other, &one]] {
            let mut cluster = Cluster::new();
            order.into_iter().for_each(|pod| cluster.pod(pod.clone()));
            assert_eq!(cluster.ask(WEB), [expected]);
        }
    }
}

#[test]
fn a_workload_is_told_by_labels_of_a_closed_list() {
    let owned = |kind: &str, name: &str| {
        let mut pod = unmeshed("web-0", "10.1.1.5");
        pod["metadata"]["labels"] = json!({ "pod-template-hash": "7f9c" });
        let owner = json!({ "apiVersion": "x/v1", "kind": kind, "name": name, "uid": "u", "controller": true });
        pod["metadata"]["ownerReferences"] = json!([owner]);
        let row = prune::pod(&read_pod(pod), &TrustDomain::default()).expect("a pod");
        row.pod.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    };
    assert_eq!(owned("ReplicaSet", "web-7f9c"), "deployment=web");
    assert_eq!(owned("ReplicaSet", "web"), "replicaset=web");
    assert_eq!(owned("StatefulSet", "db"), "statefulset=db");
    assert_eq!(owned("Anything", "x"), "");
}

#[test]
fn rows_keep_little_of_a_pod() {
    let row = prune::pod(&read_pod(meshed("web-0", "10.1.1.5")), &TrustDomain::default()).expect("a pod");
    assert!(matches!(row.pod.mesh, Mesh::Proxy { .. }));
    assert!(size_of::<crate::Pod>() + size_of_val(&row) < 512, "{}", size_of::<crate::Pod>() + size_of_val(&row));
}
