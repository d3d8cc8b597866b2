//! `Told`: the events of the identity server. A refusal stands with the pod only if the token proved that it is that
//! pod's: what strangers say of themselves makes no events in other people's namespaces.

use hauberk_kubernetes::{Event, Events, Severity};
use hauberk_mesh::{IDENTITY_ACCOUNT, ISSUER_SECRET};
use k8s_openapi::api::core::v1::ObjectReference;

use crate::server::{Proven, Refusal};

/// Tells people. Clones tell together.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    events: Events,
    namespace: String,
}

impl Told {
    pub(crate) fn new(events: Events, control_namespace: &str) -> Self {
        Self { events, namespace: control_namespace.to_owned() }
    }

    /// Something about the CA itself.
    pub(crate) fn authority(&self, severity: Severity, reason: &'static str, action: &'static str, note: String) {
        let regarding = object("Secret", &self.namespace, ISSUER_SECRET, None);
        self.events.tell(Event { regarding, severity, reason, action, note });
    }

    /// A certificate was refused; `proven` is whose token it was, if anybody vouched for it.
    pub(crate) fn refused(&self, refusal: &Refusal, proven: Option<&Proven>) {
        // Of the moment, and nobody's mistake.
        if matches!(refusal, Refusal::Busy | Refusal::Unavailable(_)) {
            return;
        }
        let (regarding, note) = match proven {
            Some(Proven { namespace, pod, .. }) => {
                (object("Pod", namespace, &pod.name, Some(&pod.uid)), refusal.to_string())
            }
            // As many different events as there are reasons: who asked stands in the log.
            None => (
                object("ServiceAccount", &self.namespace, IDENTITY_ACCOUNT, None),
                format!("a certificate was refused to somebody unproven: {}; see the log", refusal.reason()),
            ),
        };
        let (severity, reason, action) = (Severity::Warning, "CertificateRefused", "Certify");
        self.events.tell(Event { regarding, severity, reason, action, note });
    }
}

fn object(kind: &str, namespace: &str, name: &str, uid: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: uid.map(str::to_owned),
        ..ObjectReference::default()
    }
}
