//! Which pods are not meshed although they should be, and why. Counted here, never decided. Pure.

use hauberk_mesh::INJECT_KEY;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::rows::{NamespaceRow, PodRow};

/// Containers of other meshes: with one, ours is not injected.
const OTHERS: [&str; 4] = ["linkerd-proxy", "linkerd-init", "istio-proxy", "istio-init"];
/// The annotation of pods that kubelet made from a file on its node.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What a label of namespace or pod says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Injection {
    Enabled,
    Disabled,
}

/// Why a pod is not meshed that its namespace or its own label wants to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unmeshed {
    /// The pod says so itself.
    OptedOut,
    /// It shares its node's network.
    HostNetwork,
    /// It has the proxy of another mesh.
    OtherMesh,
    /// It runs on Windows.
    Windows,
    /// Kubelet made it from a file: no webhook was asked.
    Mirror,
    /// It was made before the namespace was labelled: it has to be made anew.
    CreatedBefore,
    /// The webhook was away, or refused, or something took the proxy out again.
    NotInjected,
}

impl Unmeshed {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::OptedOut,
        Self::HostNetwork,
        Self::OtherMesh,
        Self::Windows,
        Self::Mirror,
        Self::CreatedBefore,
        Self::NotInjected,
    ];

    /// As metrics name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::OptedOut => "opted-out",
            Self::HostNetwork => "host-network",
            Self::OtherMesh => "other-mesh",
            Self::Windows => "windows",
            Self::Mirror => "mirror",
            Self::CreatedBefore => "created-before",
            Self::NotInjected => "not-injected",
        }
    }
}

/// Why a pod without a proxy of ours has none, as far as the pod itself shows.
pub(super) fn of_pod(pod: &Pod) -> Unmeshed {
    let spec = pod.spec.as_ref();
    let containers = || {
        let init = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        init.chain(spec.iter().flat_map(|spec| &spec.containers))
    };
    let named = |name: &str| containers().any(|container| container.name == name);
    let annotations = pod.metadata.annotations.as_ref();
    let says_no = annotations.and_then(|it| it.get(INJECT_KEY)).is_some_and(|value| value == "disabled");
    let windows = spec.and_then(|spec| spec.os.as_ref()).is_some_and(|os| os.name == "windows");
    if says_no || injection(&pod.metadata) == Some(Injection::Disabled) {
        Unmeshed::OptedOut
    } else if spec.and_then(|spec| spec.host_network) == Some(true) {
        Unmeshed::HostNetwork
    } else if OTHERS.into_iter().any(named) {
        Unmeshed::OtherMesh
    } else if windows {
        Unmeshed::Windows
    } else if annotations.is_some_and(|it| it.contains_key(MIRROR)) {
        Unmeshed::Mirror
    } else {
        Unmeshed::NotInjected
    }
}

/// What the label of a namespace or pod says.
pub(super) fn injection(meta: &ObjectMeta) -> Option<Injection> {
    match meta.labels.as_ref()?.get(INJECT_KEY)?.as_str() {
        "enabled" => Some(Injection::Enabled),
        "disabled" => Some(Injection::Disabled),
        _ => None,
    }
}

/// When who set the label last wrote the namespace: no later write of others moves it.
pub(super) fn labelled(meta: &ObjectMeta) -> Option<i64> {
    let label = format!("f:{INJECT_KEY}");
    let sets = |fields: &serde_json::Value| fields["f:metadata"]["f:labels"].get(&label).is_some();
    let entries = meta.managed_fields.iter().flatten();
    let setting = entries.filter(|entry| entry.fields_v1.as_ref().is_some_and(|fields| sets(&fields.0)));
    setting.filter_map(|entry| Some(entry.time.as_ref()?.0.as_second())).max()
}

/// Why `pod` counts as unmeshed, in its namespace; none if it does not.
pub(super) fn counts(pod: &PodRow, namespace: Option<&NamespaceRow>) -> Option<Unmeshed> {
    let why = pod.unmeshed.filter(|_| !pod.ended)?;
    let wanted = namespace.and_then(|it| it.injection) == Some(Injection::Enabled);
    if !wanted && pod.injection != Some(Injection::Enabled) {
        return None;
    }
    let labelled = namespace.filter(|_| wanted).and_then(|it| it.labelled);
    let before = labelled.is_some_and(|labelled| pod.created < labelled);
    Some(if why == Unmeshed::NotInjected && before { Unmeshed::CreatedBefore } else { why })
}
