//! What all objects of the control plane have in common. Pure.

use serde_json::{Map, Value, json};

/// Labels of an object of the part `name`.
pub(crate) fn labels(name: &str) -> Value {
    json!({
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/part-of": PART_OF,
        "app.kubernetes.io/version": env!("CARGO_PKG_VERSION"),
    })
}

/// Labels by which Services and Deployments find the pods of a part: never the version, for selectors cannot change.
pub(crate) fn selector(name: &str) -> Value {
    json!({ "app.kubernetes.io/name": name, "app.kubernetes.io/part-of": PART_OF })
}

/// Metadata of an object; without a namespace where it belongs to the cluster.
pub(crate) fn metadata(name: &str, namespace: Option<&str>, labels: Value) -> Value {
    let mut metadata = Map::from_iter([("name".to_owned(), json!(name)), ("labels".to_owned(), labels)]);
    if let Some(namespace) = namespace {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    Value::Object(metadata)
}

/// Value of `app.kubernetes.io/part-of` of whatever is ours.
pub const PART_OF: &str = "hauberk";
