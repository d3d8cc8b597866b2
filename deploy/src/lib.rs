//! The control plane's manifests: one source, from which `hauberk install` prints and tests take theirs. The mesh's
//! settings in, objects out, in the order in which a plain `kubectl apply -f -` needs them. Pure: no keys, no times,
//! the same for the same settings.

mod objects;
mod registration;
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
    objects.push(registration::registration(config));
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

fn settings(config: &MeshConfig) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(CONFIG_MAP, Some(&config.control_namespace), labels(PART_OF)),
        "data": { CONFIG_KEY: config.to_text() },
    })
}
