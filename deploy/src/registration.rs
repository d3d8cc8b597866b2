//! The webhook's registration with the API server. Pure.

use hauberk_kubernetes::MeshConfig;
use hauberk_mesh::{WEBHOOK_ACCOUNT, WEBHOOK_CONFIGURATION};
use serde_json::{Value, json};

use crate::objects::{labels, metadata};

/// Without caBundle: the webhook's leader writes that, and applying this again never clears it.
pub(crate) fn registration(_config: &MeshConfig) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": metadata(WEBHOOK_CONFIGURATION, None, labels(WEBHOOK_ACCOUNT)),
        "webhooks": [],
    })
}
