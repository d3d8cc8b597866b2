//! What may have to be deleted, and in which order. Pure.

use std::collections::BTreeMap;

use hauberk_kubernetes::MeshConfig;
use serde_json::{Value, json};

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlaceOf {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

impl PlaceOf {
    /// A namespace that somebody made for other things too has no label of ours; all else of these names is ours.
    pub(crate) fn is_ours(&self, labels: &BTreeMap<String, String>) -> bool {
        let part_of = labels.get("app.kubernetes.io/part-of").map(String::as_str);
        self.kind != "Namespace" || part_of == Some(hauberk_deploy::PART_OF)
    }
}

/// Everything that `install` may have made with these settings, and with others.
pub(crate) fn candidates(config: &MeshConfig) -> Vec<PlaceOf> {
    let most = MeshConfig { high_availability: true, ..config.clone() };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let place = |object: &Value| PlaceOf {
        api_version: text(&object["apiVersion"]),
        kind: text(&object["kind"]),
        namespace: object["metadata"]["namespace"].as_str().map(str::to_owned),
        name: text(&object["metadata"]["name"]),
    };
    hauberk_deploy::manifests(&most).iter().map(place).collect()
}

/// First the registration: from then on no pod waits for the webhook. Then what could make something again, then what
/// it made, then its rights, and last the namespace.
pub(crate) fn ordered(mut places: Vec<PlaceOf>) -> Vec<Value> {
    const ORDER: [&str; 10] = [
        "MutatingWebhookConfiguration",
        "Deployment",
        "PodDisruptionBudget",
        "Service",
        "Secret",
        "ConfigMap",
        "Lease",
        "ClusterRoleBinding",
        "ClusterRole",
        "RoleBinding",
    ];
    let rank = |place: &PlaceOf| match place.kind.as_str() {
        "Namespace" => usize::MAX,
        kind => ORDER.iter().position(|first| *first == kind).unwrap_or(ORDER.len()),
    };
    places.sort_by_key(rank);
    places.iter().map(PlaceOf::object).collect()
}

impl PlaceOf {
    fn object(&self) -> Value {
        let mut metadata = json!({ "name": self.name });
        if let Some(namespace) = &self.namespace {
            metadata["namespace"] = json!(namespace);
        }
        json!({ "apiVersion": self.api_version, "kind": self.kind, "metadata": metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registration_goes_first_and_the_namespace_last() {
        let objects = ordered(candidates(&MeshConfig::default()));
        let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap_or_default()).collect();
        assert_eq!(kinds.first(), Some(&"MutatingWebhookConfiguration"));
        assert_eq!(kinds.last(), Some(&"Namespace"));
        assert!(kinds.contains(&"PodDisruptionBudget"), "also what only --ha makes");
        assert_eq!(kinds.iter().position(|kind| *kind == "Deployment"), Some(1));
    }

    #[test]
    fn a_namespace_without_our_label_is_not_ours() {
        let place = |kind: &str| PlaceOf {
            api_version: "v1".into(),
            kind: kind.into(),
            namespace: None,
            name: "hauberk".into(),
        };
        assert!(!place("Namespace").is_ours(&BTreeMap::new()));
        assert!(place("Namespace").is_ours(&BTreeMap::from([("app.kubernetes.io/part-of".into(), "hauberk".into())])));
        assert!(place("ClusterRole").is_ours(&BTreeMap::new()));
    }
}
