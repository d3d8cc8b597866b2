//! Tables and snapshots.

mod decision;
mod probes;
mod settings;
mod shape;

use hauberk_mesh::TlsMode;
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

/// A namespace with labels and annotations `hauberk.dev/…`.
fn namespace(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Namespace {
    let map = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| (format!("hauberk.dev/{key}"), (*value).to_owned())).collect()
    };
    Namespace { name: "shop".to_owned(), labels: map(labels), annotations: map(annotations) }
}

/// One that has joined, and says no more.
fn joined() -> Namespace {
    namespace(&[("inject", "enabled")], &[])
}

fn decide_with(pod: &Value, namespace: &Namespace, config: &MeshConfig) -> Outcome {
    inject(pod, &Context { config, cluster: &cluster(), namespace, owner_kind: None })
}

fn decide_in(pod: &Value, namespace: &Namespace) -> Outcome {
    decide_with(pod, namespace, &MeshConfig::default())
}

fn pod() -> Value {
    json!({"metadata": {"generateName": "web-"}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}})
}

fn pod_with(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Value {
    let namespace = namespace(labels, annotations);
    let mut pod = pod();
    pod["metadata"]["labels"] = json!(namespace.labels);
    pod["metadata"]["annotations"] = json!(namespace.annotations);
    pod
}

/// The pod with `spec` in place of its own.
fn pod_of(spec: Value) -> Value {
    json!({"metadata": {"generateName": "web-"}, "spec": spec})
}

fn injection(outcome: Outcome) -> Injection {
    match outcome {
        Outcome::Inject(injection) => *injection,
        other => panic!("not injected: {other:?}"),
    }
}

fn refusal(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refuse(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn patched(pod: &Value, outcome: Outcome) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &injection(outcome).patch).expect("the patch fits");
    pod
}

fn by_name<'a>(pod: &'a Value, list: &str, name: &str) -> &'a Value {
    let items = pod["spec"][list].as_array().expect("an array");
    items.iter().find(|item| item["name"] == name).expect("it is there")
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let items = pod["spec"][list].as_array().into_iter().flatten();
    items.map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

/// For snapshots: the order of keys is that of the alphabet.
fn pretty(value: impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).expect("JSON");
    serde_json::to_string_pretty(&value).expect("JSON")
}

/// `injected`, or the reason.
fn class(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Inject(_) => "injected".to_owned(),
        Outcome::Skip(skip) => format!("skip {}", skip.reason),
        Outcome::Refuse(refusal) => format!("refuse {}", refusal.reason),
    }
}
