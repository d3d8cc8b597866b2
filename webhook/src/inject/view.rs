//! What the decision reads of a pod, and nothing else: the patch is made from the pod's own JSON, so that fields unknown
//! here survive. Absent, null and empty are alike; of the form of values only what is read is checked.

use std::collections::BTreeMap;

use hauberk_mesh::{INIT_CONTAINER, PROXY_CONTAINER, SkipReason};
use serde::Deserialize;
use serde_json::Value;

use super::{Refusal, Skip};

type Map<V> = Option<BTreeMap<String, V>>;

#[derive(Debug, Deserialize)]
pub(super) struct View {
    #[serde(default)]
    metadata: Option<Metadata>,
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    labels: Map<Option<String>>,
    annotations: Map<Option<String>>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: Option<String>,
    controller: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
    pub(super) volumes: Option<Vec<Volume>>,
    host_network: Option<bool>,
    os: Option<Os>,
    node_selector: Map<Option<String>>,
    service_account_name: Option<String>,
    service_account: Option<String>,
    pub(super) security_context: Option<SecurityContext>,
    pub(super) restart_policy: Option<String>,
    pub(super) resources: Option<Resources>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Os {
    name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct SecurityContext {
    pub(super) run_as_user: Option<i64>,
    pub(super) fs_group: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Resources {
    pub(super) requests: Map<Value>,
    pub(super) limits: Map<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Volume {
    pub(super) name: Option<String>,
    pub(super) projected: Option<Projected>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Projected {
    pub(super) default_mode: Option<i64>,
    pub(super) sources: Option<Vec<BTreeMap<String, Value>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) ports: Option<Vec<ContainerPort>>,
    pub(super) env: Option<Vec<EnvVar>>,
    pub(super) volume_mounts: Option<Vec<Named>>,
    pub(super) volume_devices: Option<Vec<Named>>,
    pub(super) security_context: Option<SecurityContext>,
    pub(super) resources: Option<Resources>,
    pub(super) liveness_probe: Option<Handler>,
    pub(super) readiness_probe: Option<Handler>,
    pub(super) startup_probe: Option<Handler>,
    pub(super) lifecycle: Option<Lifecycle>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ContainerPort {
    pub(super) name: Option<String>,
    pub(super) container_port: Option<i64>,
    pub(super) protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EnvVar {
    pub(super) name: Option<String>,
    pub(super) value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    pub(super) name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Lifecycle {
    pub(super) post_start: Option<Handler>,
    pub(super) pre_stop: Option<Handler>,
}

/// A probe, or a hook, which has no timeout.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Handler {
    pub(super) http_get: Option<HttpGet>,
    pub(super) tcp_socket: Option<TcpSocket>,
    pub(super) grpc: Option<Grpc>,
    pub(super) exec: Option<Value>,
    pub(super) sleep: Option<Value>,
    pub(super) timeout_seconds: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct HttpGet {
    pub(super) scheme: Option<String>,
    pub(super) host: Option<String>,
    pub(super) port: Option<PortRef>,
    pub(super) path: Option<String>,
    pub(super) http_headers: Option<Vec<EnvVar>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TcpSocket {
    pub(super) host: Option<String>,
    pub(super) port: Option<PortRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Grpc {
    pub(super) port: Option<PortRef>,
    pub(super) service: Option<String>,
}

/// A port by number or by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum PortRef {
    Number(i64),
    Name(String),
}

impl View {
    pub(super) fn read(pod: &Value) -> Result<Self, Refusal> {
        Self::deserialize(pod).map_err(|error| Refusal::unreadable(&error.to_string()))
    }

    pub(super) fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(super) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(self.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref()))
    }

    pub(super) fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(self.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref()))
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.labels().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    pub(super) fn service_account(&self) -> &str {
        let spec = self.spec();
        let named = [&spec.service_account_name, &spec.service_account];
        named.into_iter().flatten().map(String::as_str).find(|name| !name.is_empty()).unwrap_or("default")
    }

    pub(super) fn owner_kind(&self) -> Option<&str> {
        let owners = self.metadata.as_ref()?.owner_references.as_ref()?;
        owners.iter().find(|owner| owner.controller == Some(true)).or(owners.first())?.kind.as_deref()
    }

    /// What cannot be meshed whatever it says.
    pub(super) fn cannot_be_meshed(&self, required: bool) -> Option<Skip> {
        let spec = self.spec();
        let os = spec.os.as_ref().and_then(|os| os.name.as_deref());
        let node_os = spec.node_selector.as_ref().and_then(|labels| labels.get("kubernetes.io/os")?.as_deref());
        let mut skip = if [os, node_os].contains(&Some("windows")) {
            Skip::new(SkipReason::Windows, "the pod runs on Windows, the proxy does not")
        } else if spec.host_network == Some(true) {
            let message = "the pod has the node's network: redirection would take the node's own traffic";
            Skip::new(SkipReason::HostNetwork, message)
        } else {
            return None;
        };
        if required {
            let warning = format!("{}. Its namespace requires mTLS: meshed pods there refuse it", skip.message);
            skip.warnings.push(warning);
        }
        Some(skip)
    }

    /// What shows that another mesh has, or will have, the pod's traffic.
    pub(super) fn other_mesh(&self, namespace: &BTreeMap<String, String>) -> Option<String> {
        let spec = self.spec();
        if let Some((_, container)) = spec.applications().find(|(_, it)| OTHER_MESHES.contains(&it.name.as_str())) {
            return Some(format!("container {}", container.name));
        }
        let mode = self.label(AMBIENT).or_else(|| namespace.get(AMBIENT).map(String::as_str));
        (mode == Some("ambient")).then(|| format!("label {AMBIENT}=ambient"))
    }
}

/// Containers that other meshes add.
const OTHER_MESHES: [&str; 10] = [
    "istio-proxy",
    "istio-init",
    "istio-validation",
    "linkerd-proxy",
    "linkerd-init",
    "linkerd-network-validator",
    "kuma-sidecar",
    "kuma-init",
    "consul-dataplane",
    "consul-connect-inject-init",
];

/// Label of pods and namespaces whose traffic Istio's node proxies take.
const AMBIENT: &str = "istio.io/dataplane-mode";

fn pairs(map: Option<&BTreeMap<String, Option<String>>>) -> impl Iterator<Item = (&str, &str)> {
    map.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_deref().unwrap_or_default()))
}

/// Which array of the spec a container stands in, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    pub(super) list: &'static str,
    pub(super) index: usize,
}

pub(super) const CONTAINERS: &str = "containers";
pub(super) const INIT_CONTAINERS: &str = "initContainers";

impl Spec {
    fn all(&self) -> impl Iterator<Item = (At, &Container)> {
        let lists = [(INIT_CONTAINERS, &self.init_containers), (CONTAINERS, &self.containers)];
        lists.into_iter().flat_map(|(list, containers)| {
            let numbered = containers.iter().flatten().enumerate();
            numbered.map(move |(index, container)| (At { list, index }, container))
        })
    }

    /// All containers that are not ours, init containers first.
    pub(super) fn applications(&self) -> impl Iterator<Item = (At, &Container)> {
        self.all().filter(|(_, container)| !is_ours(&container.name))
    }

    /// The application's containers proper.
    pub(super) fn main_containers(&self) -> impl Iterator<Item = &Container> {
        self.applications().filter(|(at, _)| at.list == CONTAINERS).map(|(_, container)| container)
    }

    /// What stands under our names: an earlier injection, or somebody's own.
    pub(super) fn ours(&self) -> impl Iterator<Item = &Container> {
        self.all().filter(|(_, container)| is_ours(&container.name)).map(|(_, container)| container)
    }

    pub(super) fn debug_containers(&self) -> impl Iterator<Item = &Container> {
        self.ephemeral_containers.iter().flatten()
    }
}

impl Container {
    /// The uid it is told to run as; none where the image decides.
    pub(super) fn uid(&self, pod: Option<&SecurityContext>) -> Option<i64> {
        self.security_context.as_ref().and_then(|own| own.run_as_user).or(pod.and_then(|pod| pod.run_as_user))
    }
}

/// Whether a container of this name is one of ours.
pub(super) fn is_ours(name: &str) -> bool {
    [INIT_CONTAINER, PROXY_CONTAINER].contains(&name)
}
