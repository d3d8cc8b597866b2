//! The CA bundle in the webhook's registration: whether it is there, and the patch that puts it there. Pure.

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use serde_json::{Value, json};

use crate::registration::Entry;

/// Whether the registration's entries hold `bundle`.
pub(crate) fn holds(registration: &MutatingWebhookConfiguration, bundle: &str) -> bool {
    ours(registration).all(|webhook| has(webhook, bundle))
}

/// The strategic merge patch that gives every entry of ours `bundle`, and touches nothing else; none if they hold it.
/// It fails with a conflict if the registration has changed since it was read.
pub(crate) fn patch(registration: &MutatingWebhookConfiguration, bundle: &str) -> Option<Value> {
    let entry = |webhook: &MutatingWebhook| {
        let bundle = k8s_openapi::ByteString(bundle.as_bytes().to_vec());
        json!({ "name": webhook.name, "clientConfig": { "caBundle": bundle } })
    };
    let entries: Vec<_> = ours(registration).filter(|webhook| !has(webhook, bundle)).map(entry).collect();
    let version = &registration.metadata.resource_version;
    (!entries.is_empty()).then(|| json!({ "metadata": { "resourceVersion": version }, "webhooks": entries }))
}

fn ours(registration: &MutatingWebhookConfiguration) -> impl Iterator<Item = &MutatingWebhook> {
    registration.webhooks.iter().flatten().filter(|webhook| Entry::named(&webhook.name).is_some())
}

fn has(webhook: &MutatingWebhook, bundle: &str) -> bool {
    webhook.client_config.ca_bundle.as_ref().is_some_and(|held| held.0 == bundle.as_bytes())
}

#[cfg(test)]
mod tests {
    use hauberk_kubernetes::MeshConfig;
    use k8s_openapi::ByteString;

    use super::*;
    use crate::registration::configuration;

    #[test]
    fn only_entries_of_ours_that_lack_the_bundle_are_patched() {
        let mut registration = configuration(&MeshConfig::default());
        registration.metadata.resource_version = Some("7".to_owned());
        let webhooks = registration.webhooks.as_mut().expect("some");
        webhooks[0].client_config.ca_bundle = Some(ByteString(b"CA".to_vec()));
        webhooks.push(MutatingWebhook { name: "somebody.example".to_owned(), ..MutatingWebhook::default() });
        let patch = patch(&registration, "CA").expect("two entries lack it");
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let names: Vec<_> = patch["webhooks"].as_array().expect("a list").iter().map(|entry| &entry["name"]).collect();
        assert_eq!(names, ["pod.hauberk.dev", "required.hauberk.dev"]);
        assert_eq!(patch["webhooks"][0], json!({ "name": "pod.hauberk.dev", "clientConfig": { "caBundle": "Q0E=" } }));
        assert!(!holds(&registration, "CA"));
    }

    #[test]
    fn where_all_hold_it_nothing_is_patched() {
        let mut registration = configuration(&MeshConfig::default());
        for webhook in registration.webhooks.as_mut().expect("some") {
            webhook.client_config.ca_bundle = Some(ByteString(b"CA".to_vec()));
        }
        assert!(holds(&registration, "CA") && patch(&registration, "CA").is_none());
        assert!(patch(&MutatingWebhookConfiguration::default(), "CA").is_none());
    }
}
