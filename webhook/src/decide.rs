//! From a request and what is known to an answer, and to what is told about it. Pure: the injector decides about the
//! pod; here is what happens where it cannot be asked, and how its decision reaches whoever makes the pod.

use hauberk_kubernetes::{Event, MeshConfig, Severity};
use hauberk_mesh::{RefusalReason, SkipReason};
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::Value;

use crate::{
    inject::{self, Cluster, Context, Namespace, Outcome},
    registration::Entry,
    review::{Answer, Request, Verdict},
};

/// The bounds that the API server sets on an object's name, and more than any kind has.
const NAME: usize = 253;

/// What became of a request: labels of the counter, and of the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Decided {
    /// The pod joins the mesh.
    Injected,
    /// It is left as it is.
    Skipped(SkipReason),
    /// It must not be made like this.
    Refused(RefusalReason),
    /// Nobody could decide; let in or refused by the entry.
    Undecided(Undecided),
    /// Not about making a pod.
    NotAPod,
}

/// Why nobody could decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Undecided {
    /// Settings, trust roots or addresses of the mesh are not known yet.
    Settings,
    /// The pod's namespace is not known, and the API server could not be asked.
    Namespace,
    /// Too much was asked at once.
    Busy,
    /// A bug.
    Fault,
}

impl Undecided {
    /// The spelling.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "settings-pending",
            Self::Namespace => "namespace-unknown",
            Self::Busy => "busy",
            Self::Fault => "fault",
        }
    }
}

impl Decided {
    /// What was decided.
    pub(crate) fn decision(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Skipped(_) => "skipped",
            Self::Refused(_) => "refused",
            Self::Undecided(_) => "undecided",
            Self::NotAPod => "not-a-pod",
        }
    }

    /// Why; empty where there is nothing to say.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Injected | Self::NotAPod => "",
            Self::Skipped(reason) => reason.as_str(),
            Self::Refused(reason) => reason.as_str(),
            Self::Undecided(why) => why.as_str(),
        }
    }
}

/// An answer and what is told about it. On a dry run only the answer leaves this process.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    /// For the counter.
    pub(crate) decided: Decided,
    /// For the API server.
    pub(crate) answer: Answer,
    /// For people who look at the workload.
    pub(crate) event: Option<Event>,
    /// For the log.
    pub(crate) message: String,
}

/// Decides about a pod that is to be made.
pub(crate) fn decide(
    request: &Request,
    pod: &Value,
    mesh: &MeshConfig,
    cluster: &Cluster,
    namespace: &Namespace,
) -> Decision {
    let context = Context { config: mesh, cluster, namespace, owner_kind: None };
    let (decided, verdict, message, mut warnings) = match inject::inject(pod, &context) {
        Outcome::Inject(injection) => {
            (Decided::Injected, Verdict::Allow(Some(injection.patch)), injection.summary, injection.warnings)
        }
        Outcome::Skip(skip) => (
            Decided::Skipped(skip.reason),
            Verdict::Allow(None),
            format!("not injected: {}", skip.message),
            skip.warnings,
        ),
        Outcome::Refuse(refusal) => {
            let message = refusal.to_string();
            (Decided::Refused(refusal.reason), Verdict::Refuse(format!("hauberk: {message}")), message, Vec::new())
        }
    };
    let (severity, reason) = match decided {
        Decided::Refused(_) => (Severity::Warning, "MeshRefused"),
        Decided::Skipped(reason) if deliberate(reason) => (Severity::Normal, "MeshSkipped"),
        Decided::Skipped(_) => {
            warnings.insert(0, message.clone());
            (Severity::Warning, "MeshSkipped")
        }
        _ => (Severity::Normal, "MeshInjected"),
    };
    let event = tell(request, pod, &namespace.name, severity, reason, &message);
    finish(decided, verdict, warnings, Some(event), message)
}

/// The answer where nobody could decide: by the entry that the request came by, the pod is let in as it is, or refused.
pub(crate) fn undecided(request: &Request, pod: &Value, entry: Entry, why: Undecided, detail: &str) -> Decision {
    let (verdict, message) = if entry.lets_in() {
        let message = format!("not injected, so without mTLS: {detail}. Make the pod anew once that is mended");
        (Verdict::Allow(None), message)
    } else {
        let message = format!("refused, as its namespace requires mTLS and nobody can inject it now: {detail}");
        (Verdict::Refuse(format!("hauberk: {message}")), message)
    };
    let warnings = if entry.lets_in() { vec![message.clone()] } else { Vec::new() };
    // No event about a namespace that may not exist.
    let namespace = request.namespace.as_deref().filter(|_| why != Undecided::Namespace);
    let event = namespace.map(|name| tell(request, pod, name, Severity::Warning, "MeshUndecided", &message));
    finish(Decided::Undecided(why), verdict, warnings, event, message)
}

/// The answer to what should not have been asked.
pub(crate) fn not_a_pod() -> Decision {
    let message = "only the making of pods is decided about here: register the webhook as `hauberk install` does";
    finish(Decided::NotAPod, Verdict::Allow(None), vec![message.to_owned()], None, message.to_owned())
}

/// The workload of a request: namespace and owner, for the log. A Deployment is known by its ReplicaSet's name, which
/// ends in the pod's `pod-template-hash`.
pub(crate) fn workload(request: &Request, pod: &Value) -> String {
    let namespace = request.namespace.as_deref().unwrap_or_default();
    let Some(owner) = owner(pod) else { return format!("{namespace}/pod {}", pod_name(request, pod)) };
    let hash = pod["metadata"]["labels"]["pod-template-hash"].as_str().unwrap_or_default();
    match owner.name.strip_suffix(hash).and_then(|name| name.strip_suffix('-')) {
        Some(deployment) if owner.kind == "ReplicaSet" && !hash.is_empty() => {
            format!("{namespace}/deployment {deployment}")
        }
        _ => format!("{namespace}/{} {}", owner.kind.to_lowercase(), owner.name),
    }
}

/// What somebody chose on purpose needs nobody's attention.
fn deliberate(reason: SkipReason) -> bool {
    use SkipReason::{
        HostNetwork, MirrorPod, NamespaceDisabled, NotSelected, OtherMesh, PodDisabled, SystemNamespace, Windows,
    };
    match reason {
        NotSelected | PodDisabled | NamespaceDisabled | SystemNamespace | MirrorPod => true,
        HostNetwork | Windows | OtherMesh => false,
    }
}

fn finish(
    decided: Decided,
    verdict: Verdict,
    warnings: Vec<String>,
    event: Option<Event>,
    message: String,
) -> Decision {
    let warnings = warnings.into_iter().map(|warning| format!("hauberk: {warning}")).collect();
    let mut audit = std::collections::BTreeMap::from([("decision", decided.decision().to_owned())]);
    if !decided.reason().is_empty() {
        audit.insert("reason", decided.reason().to_owned());
    }
    audit.insert("message", message.clone());
    Decision { decided, answer: Answer { verdict, warnings, audit }, event, message }
}

/// At the pod's controller where it has one: the pod is not there yet, and may never be.
fn tell(
    request: &Request,
    pod: &Value,
    namespace: &str,
    severity: Severity,
    reason: &'static str,
    message: &str,
) -> Event {
    let owner = owner(pod).unwrap_or_else(|| Owner {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod_name(request, pod).to_owned(),
        uid: None,
    });
    let regarding = ObjectReference {
        api_version: Some(owner.api_version),
        kind: Some(owner.kind),
        namespace: Some(namespace.to_owned()),
        name: Some(owner.name).filter(|name| !name.is_empty()),
        uid: owner.uid,
        ..ObjectReference::default()
    };
    Event { regarding, severity, reason, action: "Inject", note: message.to_owned() }
}

struct Owner {
    api_version: String,
    kind: String,
    name: String,
    uid: Option<String>,
}

fn owner(pod: &Value) -> Option<Owner> {
    let owners = pod["metadata"]["ownerReferences"].as_array()?;
    let controller = owners.iter().find(|owner| owner["controller"] == Value::Bool(true))?;
    let text = |key: &str| controller[key].as_str().filter(|text| !text.is_empty() && text.len() <= NAME);
    Some(Owner {
        api_version: text("apiVersion")?.to_owned(),
        kind: text("kind")?.to_owned(),
        name: text("name")?.to_owned(),
        uid: text("uid").map(str::to_owned),
    })
}

/// The name, or what it will begin with.
fn pod_name<'a>(request: &'a Request, pod: &'a Value) -> &'a str {
    let metadata = &pod["metadata"];
    let names = [request.name.as_deref(), metadata["name"].as_str(), metadata["generateName"].as_str()];
    let name = names.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or_default();
    &name[..name.floor_char_boundary(NAME)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request() -> Request {
        Request { uid: "u".to_owned(), namespace: Some("shop".to_owned()), ..Request::default() }
    }

    fn cluster() -> Cluster {
        let addr = |text: &str| text.parse().expect("an address");
        Cluster {
            trust_roots: "PEM".to_owned(),
            identity_addr: addr("10.96.0.2:8080"),
            destination_addr: addr("10.96.0.3:8086"),
            api_server: None,
            native_sidecars: true,
        }
    }

    fn decided(object: Value, labels: &[(&str, &str)]) -> Decision {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let namespace = Namespace { name: "shop".to_owned(), labels, ..Namespace::default() };
        decide(&request(), &object, &MeshConfig::default(), &cluster(), &namespace)
    }

    fn pod(metadata: Value, spec: Value) -> Value {
        let mut spec = spec;
        spec["containers"] = json!([{ "name": "app", "image": "app" }]);
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
    }

    fn owned() -> Value {
        json!({
            "generateName": "web-7d9-", "labels": { "pod-template-hash": "7d9" },
            "ownerReferences": [
                { "apiVersion": "v1", "kind": "ConfigMap", "name": "no-controller", "uid": "0" },
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9", "uid": "1", "controller": true },
            ],
        })
    }

    const ENABLED: &[(&str, &str)] = &[("hauberk.dev/inject", "enabled")];

    #[test]
    fn an_injection_is_a_patch_an_audit_annotation_and_an_event_at_the_owner() {
        let decision = decided(pod(owned(), json!({})), ENABLED);
        assert_eq!(decision.decided, Decided::Injected, "{}", decision.message);
        assert!(matches!(&decision.answer.verdict, Verdict::Allow(Some(patch)) if !patch.is_empty()));
        assert_eq!(decision.answer.audit["decision"], "injected");
        let event = decision.event.expect("told");
        let (kind, name, uid) = (event.regarding.kind, event.regarding.name, event.regarding.uid);
        assert_eq!(
            (kind.as_deref(), name.as_deref(), uid.as_deref()),
            (Some("ReplicaSet"), Some("web-7d9"), Some("1"))
        );
        assert_eq!((event.severity, event.reason), (Severity::Normal, "MeshInjected"));
        assert!(!event.note.contains("web-7d9-"), "the same for all pods of the workload");
    }

    #[test]
    fn what_keeps_a_pod_out_is_a_warning_unless_it_was_chosen() {
        let host = decided(pod(json!({ "generateName": "web-" }), json!({ "hostNetwork": true })), ENABLED);
        assert_eq!(host.decided, Decided::Skipped(SkipReason::HostNetwork));
        assert_eq!(host.answer.verdict, Verdict::Allow(None));
        assert!(host.answer.warnings[0].starts_with("hauberk: not injected: "), "{:?}", host.answer.warnings);
        assert_eq!(host.event.expect("told").regarding.name.as_deref(), Some("web-"));

        let chosen = decided(pod(json!({ "labels": { "hauberk.dev/inject": "disabled" } }), json!({})), ENABLED);
        assert_eq!(chosen.decided, Decided::Skipped(SkipReason::PodDisabled));
        assert!(chosen.answer.warnings.is_empty(), "{:?}", chosen.answer.warnings);
        assert_eq!(chosen.answer.audit["reason"], "pod-disabled");
    }

    #[test]
    fn a_refusal_says_why() {
        let decision = decided(pod(json!({ "annotations": { "hauberk.dev/tls": "maybe" } }), json!({})), ENABLED);
        assert_eq!(decision.decided, Decided::Refused(RefusalReason::InvalidSetting));
        let Verdict::Refuse(message) = &decision.answer.verdict else { panic!("{decision:?}") };
        assert!(message.starts_with("hauberk: ") && message.contains("maybe"), "{message}");
        assert_eq!(decision.event.expect("told").severity, Severity::Warning);
    }

    #[test]
    fn where_nobody_can_decide_the_entry_does() {
        let (request, pod) = (request(), pod(owned(), json!({})));
        for entry in Entry::ALL {
            let decision = undecided(&request, &pod, entry, Undecided::Settings, "trust roots are missing");
            let refused =
                matches!(&decision.answer.verdict, Verdict::Refuse(why) if why.contains("trust roots are missing"));
            assert_eq!(refused, !entry.lets_in(), "{entry:?}");
            assert_eq!(decision.answer.warnings.is_empty(), refused, "{entry:?}");
            assert_eq!(decision.decided.reason(), "settings-pending");
            assert!(undecided(&request, &pod, entry, Undecided::Namespace, "").event.is_none());
        }
    }

    #[test]
    fn the_log_names_the_deployment() {
        assert_eq!(workload(&request(), &pod(owned(), json!({}))), "shop/deployment web");
        let job = json!({ "ownerReferences": [
            { "apiVersion": "batch/v1", "kind": "Job", "name": "once", "uid": "1", "controller": true },
        ] });
        assert_eq!(workload(&request(), &pod(job, json!({}))), "shop/job once");
        assert_eq!(workload(&request(), &pod(json!({ "generateName": "x-" }), json!({}))), "shop/pod x-");
        for strange in [json!(null), json!({ "metadata": 1 }), json!({ "metadata": { "ownerReferences": [{}] } })] {
            assert_eq!(workload(&request(), &strange), "shop/pod ");
        }
    }
}
