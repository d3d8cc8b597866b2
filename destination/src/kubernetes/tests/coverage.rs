//! Which pods count as unmeshed.

use super::*;

/// `reason=count` of those that are not 0.
fn counts(cluster: &Cluster) -> String {
    let counts = cluster.world.unmeshed().into_iter().filter(|(_, count)| *count > 0);
    counts.map(|(why, count)| format!("{}={count}", why.as_str())).collect::<Vec<_>>().join(",")
}

fn labelled(value: Value) -> Value {
    let fields = json!({ "f:metadata": { "f:labels": { "f:hauberk.dev/inject": {} } } });
    let entry = |time: &str, fields: Value| json!({ "manager": "m", "operation": "Update", "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1", "fieldsV1": fields });
    let other = json!({ "f:metadata": { "f:labels": { "f:team": {} } } });
    json!({ "metadata": {
        "name": "shop", "labels": { "hauberk.dev/inject": value },
        "managedFields": [entry("2026-01-02T00:00:00Z", fields), entry("2026-01-09T00:00:00Z", other)],
    } })
}

#[test]
fn each_reason_is_told_by_the_pod() {
    let old = || unmeshed("web-0", "10.1.1.5");
    let new = || with(old(), "/metadata/creationTimestamp", json!("2026-01-03T00:00:00Z"));
    for (pod, expected) in [
        (meshed("web-0", "10.1.1.5"), ""),
        (old(), "created-before=1"),
        (new(), "not-injected=1"),
        (with(new(), "/metadata/labels", json!({ "hauberk.dev/inject": "disabled" })), "opted-out=1"),
        (with(new(), "/metadata/annotations", json!({ "hauberk.dev/inject": "disabled" })), "opted-out=1"),
        (with(new(), "/spec/hostNetwork", json!(true)), "host-network=1"),
        (with(new(), "/spec/containers", json!([{ "name": "istio-proxy" }])), "other-mesh=1"),
        (with(new(), "/spec/os", json!({ "name": "windows" })), "windows=1"),
        (with(new(), "/metadata/annotations", json!({ "kubernetes.io/config.mirror": "x" })), "mirror=1"),
        (with(new(), "/status/phase", json!("Succeeded")), ""),
    ] {
        let mut cluster = Cluster::new();
        cluster.namespace(labelled(json!("enabled")));
        cluster.pod(pod);
        assert_eq!(counts(&cluster), expected);
        cluster.no_pod("web-0");
        assert_eq!(counts(&cluster), "");
    }
}

#[test]
fn only_who_is_wanted_in_the_mesh_counts() {
    let mut cluster = Cluster::new();
    cluster.pod(unmeshed("web-0", "10.1.1.5"));
    cluster.pod(with(unmeshed("web-1", "10.1.1.6"), "/metadata/labels", json!({ "hauberk.dev/inject": "enabled" })));
    assert_eq!(counts(&cluster), "not-injected=1", "who asks for it itself");
    cluster.namespace(labelled(json!("enabled")));
    assert_eq!(counts(&cluster), "created-before=2");
    cluster.namespace(labelled(json!("disabled")));
    assert_eq!(counts(&cluster), "not-injected=1");
    cluster.no_pod("web-1");
    assert_eq!(counts(&cluster), "");
}
