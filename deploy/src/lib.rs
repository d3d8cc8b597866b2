//! The control plane's manifests: one source, from which `hauberk install` prints and tests take theirs. The mesh's
//! settings in, objects out, in the order in which a plain `kubectl apply -f -` needs them. Pure: no keys, no times,
//! the same for the same settings.

mod objects;
mod rights;
mod workloads;
mod yaml;

use hauberk_kubernetes::MeshConfig;
use hauberk_mesh::{CONFIG_KEY, CONFIG_MAP, INJECT_KEY};
use serde_json::{Value, json};

pub use objects::PART_OF;
pub use rights::{RIGHTS, Rights, Rule, rbac, rights_page};
pub use yaml::{document, stream};

use objects::{labels, metadata};

/// Every object of the control plane. The webhook's registration comes last: what it asks is there by then.
pub fn manifests(config: &MeshConfig) -> Vec<Value> {
    let mut objects = vec![namespace(config)];
    objects.extend(workloads::accounts(config));
    objects.extend(rbac(&config.control_namespace));
    objects.push(settings(config));
    objects.extend(workloads::services(config));
    objects.extend(workloads::deployments(config));
    objects.extend(workloads::budgets(config));
    objects.push(registration(config));
    objects
}

/// The control namespace: its own pods keep to Pod Security `restricted`, and are never injected.
fn namespace(config: &MeshConfig) -> Value {
    let mut labels = labels(PART_OF);
    for mode in ["enforce", "audit", "warn"] {
        labels[format!("pod-security.kubernetes.io/{mode}")] = json!("restricted");
    }
    labels[INJECT_KEY] = json!("disabled");
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata(&config.control_namespace, None, labels) })
}

/// Without caBundle: the webhook's leader writes that, and applying this again never clears it.
fn registration(config: &MeshConfig) -> Value {
    let mut object = json!(hauberk_webhook::registration::configuration(config));
    let ours = labels(hauberk_mesh::WEBHOOK_ACCOUNT);
    object["metadata"]["labels"] = ours;
    object
}

fn settings(config: &MeshConfig) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(CONFIG_MAP, Some(&config.control_namespace), labels(PART_OF)),
        "data": { CONFIG_KEY: config.to_text() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hauberk_mesh::TlsMode;

    fn config() -> MeshConfig {
        MeshConfig {
            networks: "10.244.0.0/16,10.96.0.0/16".parse().expect("networks"),
            resolvers: vec!["10.96.0.10".parse().expect("an address")],
            ..MeshConfig::default()
        }
    }

    #[test]
    fn the_manifests_are_these() {
        insta::assert_snapshot!("manifests", stream(&manifests(&config())));
    }

    #[test]
    fn high_availability_adds_replicas_and_budgets_and_nothing_else() {
        let plain = manifests(&config());
        let config = MeshConfig { high_availability: true, ..config() };
        let mut with = manifests(&config);
        with.retain(|object| object["kind"] != "PodDisruptionBudget");
        assert_eq!(with.len() + 3, manifests(&config).len());
        for (one, other) in plain.iter().zip(&with) {
            let mut expected = one.clone();
            if one["kind"] == "Deployment" {
                expected["spec"]["replicas"] = json!(3);
            }
            if one["kind"] == "ConfigMap" {
                expected["data"][CONFIG_KEY] = json!(config.to_text());
            }
            assert_eq!(&expected, other);
        }
    }

    #[test]
    fn the_registration_never_holds_a_ca_and_never_reaches_the_control_plane() {
        for tls in TlsMode::ALL {
            let config = MeshConfig { tls: *tls, control_namespace: "mesh".to_owned(), ..config() };
            let object = manifests(&config).pop().expect("the last");
            assert_eq!(object["kind"], "MutatingWebhookConfiguration");
            for webhook in object["webhooks"].as_array().expect("entries") {
                assert_eq!(webhook["clientConfig"].get("caBundle"), None);
                assert_eq!(webhook["clientConfig"]["service"]["namespace"], "mesh");
                let selector = webhook["namespaceSelector"].to_string();
                assert!(
                    selector.contains("kubernetes.io/metadata.name") && selector.contains("\"mesh\""),
                    "{selector}"
                );
            }
        }
    }
}
