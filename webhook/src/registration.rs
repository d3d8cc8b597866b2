//! How the webhook is registered: which pods the API server sends, where to, and what it does when nobody answers.
//! Pure; `hauberk install` writes the object, the leader of the webhook puts the CA into it.

use hauberk_kubernetes::MeshConfig;
use hauberk_mesh::{INJECT_KEY, TLS_KEY, TlsMode, WEBHOOK_ACCOUNT, WEBHOOK_CONFIGURATION};
use k8s_openapi::{
    api::admissionregistration::v1::{
        MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations, ServiceReference, WebhookClientConfig,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta},
};

/// Every object of ours has it.
const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "hauberk");
/// The API server sets it on every namespace, and lets nobody change it.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
const SYSTEM_NAMESPACE: &str = "kube-system";
/// Of one review, in seconds. Whoever creates the pod waits for it.
pub const TIMEOUT_SECONDS: i32 = 5;

/// Which entry of the configuration a review came by: each has a path of its own, as a review does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entry {
    /// The namespace asks for injection.
    Namespace,
    /// The namespace says nothing; the pod asks.
    Pod,
    /// The namespace requires mTLS.
    Required,
    /// The mesh requires mTLS, the namespace asks for injection and says nothing of mTLS.
    RequiredByDefault,
}

impl Entry {
    /// Every entry there can be.
    pub const ALL: [Self; 4] = [Self::Namespace, Self::Pod, Self::Required, Self::RequiredByDefault];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace.hauberk.dev",
            Self::Pod => "pod.hauberk.dev",
            Self::Required => "required.hauberk.dev",
            Self::RequiredByDefault => "required-by-default.hauberk.dev",
        }
    }

    /// Where the API server sends its reviews.
    pub fn path(self) -> &'static str {
        match self {
            Self::Namespace => "/mutate/namespace",
            Self::Pod => "/mutate/pod",
            Self::Required => "/mutate/required",
            Self::RequiredByDefault => "/mutate/required-by-default",
        }
    }

    /// Whether a pod may run without injection when the webhook cannot decide.
    pub fn lets_in(self) -> bool {
        matches!(self, Self::Namespace | Self::Pod)
    }

    /// The entry of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|entry| entry.name() == name)
    }

    /// Those of a mesh of this default mode.
    pub fn of(default: TlsMode) -> &'static [Self] {
        if default == TlsMode::Required { &Self::ALL } else { &Self::ALL[..3] }
    }
}

/// The whole configuration, without `caBundle`: who applies it (server-side) never takes away what the webhook put there.
pub fn configuration(mesh: &MeshConfig) -> MutatingWebhookConfiguration {
    MutatingWebhookConfiguration {
        metadata: ObjectMeta {
            name: Some(WEBHOOK_CONFIGURATION.to_owned()),
            labels: Some(labels()),
            ..ObjectMeta::default()
        },
        webhooks: Some(Entry::of(mesh.tls).iter().map(|entry| webhook(*entry, mesh)).collect()),
    }
}

pub(crate) fn labels() -> std::collections::BTreeMap<String, String> {
    [("app.kubernetes.io/name", WEBHOOK_ACCOUNT), PART_OF].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn webhook(entry: Entry, mesh: &MeshConfig) -> MutatingWebhook {
    let (namespaces, pods) = selectors(entry, mesh);
    MutatingWebhook {
        name: entry.name().to_owned(),
        admission_review_versions: vec!["v1".to_owned()],
        client_config: WebhookClientConfig {
            service: Some(ServiceReference {
                name: WEBHOOK_ACCOUNT.to_owned(),
                namespace: mesh.control_namespace.clone(),
                path: Some(entry.path().to_owned()),
                port: Some(443),
            }),
            ..WebhookClientConfig::default()
        },
        failure_policy: Some(if entry.lets_in() { "Ignore" } else { "Fail" }.to_owned()),
        match_policy: Some("Equivalent".to_owned()),
        namespace_selector: Some(selector(namespaces)),
        object_selector: Some(selector(pods)),
        // What another webhook adds after us is seen again: a container with a port of ours, a probe.
        reinvocation_policy: Some("IfNeeded".to_owned()),
        rules: Some(vec![RuleWithOperations {
            api_groups: Some(vec![String::new()]),
            api_versions: Some(vec!["v1".to_owned()]),
            operations: Some(vec!["CREATE".to_owned()]),
            resources: Some(vec!["pods".to_owned()]),
            scope: Some("Namespaced".to_owned()),
        }]),
        side_effects: "NoneOnDryRun".to_owned(),
        timeout_seconds: Some(TIMEOUT_SECONDS),
        match_conditions: None,
    }
}

/// Of namespaces and of pods. A value that is not valid is never among those that are left out, so that it reaches the
/// webhook, which refuses it.
fn selectors(entry: Entry, mesh: &MeshConfig) -> (Vec<LabelSelectorRequirement>, Vec<LabelSelectorRequirement>) {
    let required = mesh.tls == TlsMode::Required;
    let (mut namespaces, pods) = match entry {
        // Where the mesh requires mTLS, only namespaces that say otherwise are left to this entry.
        Entry::Namespace if required => {
            (vec![one_of(INJECT_KEY, &["enabled"]), one_of(TLS_KEY, &["optional", "disabled"])], not_disabled())
        }
        Entry::Namespace => (vec![one_of(INJECT_KEY, &["enabled"]), none_of(TLS_KEY, &["required"])], not_disabled()),
        Entry::Pod => (
            vec![none_of(INJECT_KEY, &["enabled", "disabled"]), none_of(TLS_KEY, &["required"])],
            vec![one_of(INJECT_KEY, &["enabled"])],
        ),
        Entry::Required => (vec![none_of(INJECT_KEY, &["disabled"]), one_of(TLS_KEY, &["required"])], Vec::new()),
        Entry::RequiredByDefault => (
            vec![one_of(INJECT_KEY, &["enabled"]), none_of(TLS_KEY, &["optional", "required", "disabled"])],
            Vec::new(),
        ),
    };
    // The cluster and the mesh start without the webhook.
    namespaces.push(none_of(NAMESPACE_NAME, &[SYSTEM_NAMESPACE, &mesh.control_namespace]));
    (namespaces, pods)
}

fn not_disabled() -> Vec<LabelSelectorRequirement> {
    vec![none_of(INJECT_KEY, &["disabled"])]
}

fn one_of(key: &str, values: &[&str]) -> LabelSelectorRequirement {
    requirement(key, "In", values)
}

/// Also where the label is absent.
fn none_of(key: &str, values: &[&str]) -> LabelSelectorRequirement {
    requirement(key, "NotIn", values)
}

fn requirement(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
    LabelSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
    }
}

fn selector(requirements: Vec<LabelSelectorRequirement>) -> LabelSelector {
    LabelSelector { match_expressions: Some(requirements).filter(|all| !all.is_empty()), match_labels: None }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Labels = BTreeMap<String, String>;

    fn labelled(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// As the API server matches.
    fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
        selector.match_expressions.iter().flatten().all(|requirement| {
            let listed = labels
                .get(&requirement.key)
                .is_some_and(|value| requirement.values.as_ref().is_some_and(|values| values.contains(value)));
            (requirement.operator == "In") == listed
        })
    }

    fn reached(mesh: &MeshConfig, name: &str, namespace: &[(&str, &str)], pod: &[(&str, &str)]) -> Vec<Entry> {
        let (mut namespace, pod) = (labelled(namespace), labelled(pod));
        namespace.insert(NAMESPACE_NAME.to_owned(), name.to_owned());
        let webhooks = configuration(mesh).webhooks.expect("some");
        let matching = webhooks.iter().filter(|webhook| {
            matches(webhook.namespace_selector.as_ref().expect("set"), &namespace)
                && matches(webhook.object_selector.as_ref().expect("set"), &pod)
        });
        matching.map(|webhook| Entry::named(&webhook.name).expect("ours")).collect()
    }

    const VALUES: [Option<&str>; 4] = [None, Some("enabled"), Some("disabled"), Some("ture")];
    const MODES: [Option<&str>; 5] = [None, Some("optional"), Some("required"), Some("disabled"), Some("requierd")];

    /// Every combination of labels against the rule, written a second time.
    fn expected(mesh: TlsMode, inject: Option<&str>, tls: Option<&str>, pod: Option<&str>) -> Vec<Entry> {
        if inject == Some("disabled") {
            return vec![];
        }
        if tls == Some("required") {
            return vec![Entry::Required];
        }
        if inject == Some("enabled") {
            let marked_otherwise = matches!(tls, Some("optional" | "disabled"));
            if mesh == TlsMode::Required && !marked_otherwise {
                return vec![Entry::RequiredByDefault];
            }
            return if pod == Some("disabled") { vec![] } else { vec![Entry::Namespace] };
        }
        if pod == Some("enabled") { vec![Entry::Pod] } else { vec![] }
    }

    #[test]
    fn every_combination_of_labels_reaches_at_most_one_entry_and_the_right_one() {
        for tls in [TlsMode::Optional, TlsMode::Required, TlsMode::Disabled] {
            let mesh = MeshConfig { tls, ..MeshConfig::default() };
            for (inject, mode, pod) in VALUES.iter().flat_map(|inject| {
                MODES.iter().flat_map(move |mode| VALUES.iter().map(move |pod| (*inject, *mode, *pod)))
            }) {
                let namespace: Vec<_> = [inject.map(|value| (INJECT_KEY, value)), mode.map(|value| (TLS_KEY, value))]
                    .into_iter()
                    .flatten()
                    .collect();
                let labels: Vec<_> = pod.map(|value| (INJECT_KEY, value)).into_iter().collect();
                let wanted = expected(tls, inject, mode, pod);
                assert_eq!(reached(&mesh, "shop", &namespace, &labels), wanted, "{tls:?} {namespace:?} {labels:?}");
                for excluded in ["kube-system", &mesh.control_namespace] {
                    assert_eq!(reached(&mesh, excluded, &namespace, &labels), [], "{excluded}");
                }
            }
        }
    }

    #[test]
    fn names_and_paths_lead_back_to_their_entry() {
        for entry in Entry::ALL {
            assert_eq!(Entry::named(entry.name()), Some(entry));
            assert!(entry.path().starts_with("/mutate/"));
            assert_eq!(Entry::ALL.iter().filter(|other| other.path() == entry.path()).count(), 1);
        }
    }

    #[test]
    fn the_configuration_holds_no_certificate_and_fails_only_where_mtls_is_required() {
        let mesh = MeshConfig { control_namespace: "mesh".to_owned(), tls: TlsMode::Required, ..MeshConfig::default() };
        for webhook in configuration(&mesh).webhooks.expect("some") {
            let service = webhook.client_config.service.expect("by Service");
            assert_eq!((service.name.as_str(), service.namespace.as_str()), ("hauberk-webhook", "mesh"));
            assert!(webhook.client_config.ca_bundle.is_none());
            let policy = if webhook.name.starts_with("required") { "Fail" } else { "Ignore" };
            assert_eq!(webhook.failure_policy.as_deref(), Some(policy), "{}", webhook.name);
        }
    }
}
