//! Tables and snapshots.

use serde_json::{Value, json};

use super::*;

pub(super) fn cluster() -> Cluster {
    let addr = |text: &str| text.parse().expect("an address");
    Cluster {
        trust_roots: "-----BEGIN CERTIFICATE-----\nroots\n-----END CERTIFICATE-----\n".to_owned(),
        identity_addr: addr("10.96.0.20:8080"),
        destination_addr: addr("10.96.0.21:8086"),
        api_server: Some(addr("10.96.0.1:443")),
        native_sidecars: true,
    }
}

/// A namespace that has joined, with more labels.
pub(super) fn namespace(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Namespace {
    let map = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| (format!("hauberk.dev/{key}"), (*value).to_owned())).collect()
    };
    Namespace { name: "shop".to_owned(), labels: map(labels), annotations: map(annotations) }
}

pub(super) fn decide_in(pod: &Value, namespace: &Namespace) -> Outcome {
    let (config, cluster) = (MeshConfig::default(), cluster());
    inject(pod, &Context { config: &config, cluster: &cluster, namespace, owner_kind: None })
}

fn pod() -> Value {
    json!({"metadata": {"generateName": "web-"}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}})
}

fn patched(pod: &Value, outcome: Outcome) -> Value {
    let Outcome::Inject(injection) = outcome else { panic!("not injected: {outcome:?}") };
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &injection.patch).expect("the patch fits");
    pod
}

#[test]
fn a_pod_joins_with_a_native_sidecar_and_twice_is_once() {
    let namespace = namespace(&[("inject", "enabled")], &[]);
    let once = patched(&pod(), decide_in(&pod(), &namespace));
    let names: Vec<_> =
        once["spec"]["initContainers"].as_array().expect("there").iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["hauberk-init", "hauberk-proxy"]);
    let Outcome::Inject(again) = decide_in(&once, &namespace) else { panic!("not injected") };
    assert_eq!(again.patch, Patch::default());
}
