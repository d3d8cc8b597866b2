//! The injector's decision: a pod and what is known about its namespace and the mesh in; a patch, a skip or a refusal
//! out. Pure: no I/O, no clock, no logging. The webhook's server and `hauberk inject --manual` call the same function.

mod checks;
mod containers;
pub mod documents;
mod patch;
mod plan;
mod probes;
mod quantity;
mod resources;
mod settings;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod view;

use std::{collections::BTreeMap, net::SocketAddr};

use hauberk_kubernetes::MeshConfig;
use hauberk_mesh::{ProxySpec, RefusalReason, SidecarKind, SkipReason};
use json_patch::Patch;
use serde_json::Value;

use plan::Plan;
pub use settings::{Effect, Place, SETTINGS, Setting};
use view::View;

/// What is known about the pod's namespace. The request names it; the pod itself may not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// What a proxy must be told that only the running cluster knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Trust roots, PEM, as `hauberk-trust` holds them.
    pub trust_roots: String,
    /// ClusterIP and port of identity.
    pub identity_addr: SocketAddr,
    /// ClusterIP and port of destination.
    pub destination_addr: SocketAddr,
    /// ClusterIP and port of the API server.
    pub api_server: Option<SocketAddr>,
    /// Whether every kubelet knows native sidecars: the oldest is 1.29 or newer.
    pub native_sidecars: bool,
}

/// All that is decided by, besides the pod.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The mesh's effective values.
    pub config: &'a MeshConfig,
    /// The running cluster.
    pub cluster: &'a Cluster,
    /// The pod's namespace.
    pub namespace: &'a Namespace,
    /// Kind of the workload, where the pod's `ownerReferences` cannot tell: the command line has its template only.
    pub owner_kind: Option<&'a str>,
}

/// What is to be done with a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It joins the mesh.
    Inject(Box<Injection>),
    /// It is left as it is.
    Skip(Skip),
    /// It must not be made like this.
    Refuse(Refusal),
}

/// How a pod joins the mesh.
#[derive(Debug, Clone, PartialEq)]
pub struct Injection {
    /// Operations on the pod; none where it is already as it should be.
    pub patch: Patch,
    /// What its proxy is told.
    pub spec: ProxySpec,
    /// One sentence for people: kind of sidecar, mode, identity.
    pub summary: String,
    /// What the pod's author should know.
    pub warnings: Vec<String>,
}

/// Why a pod is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// One of the closed list.
    pub reason: SkipReason,
    /// One sentence for people.
    pub message: String,
    /// What the pod's author should know.
    pub warnings: Vec<String>,
}

/// Why a pod must not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// One of the closed list.
    pub reason: RefusalReason,
    /// Names the input and the remedy.
    pub message: String,
}

impl Refusal {
    fn new(reason: RefusalReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    fn unreadable(why: &str) -> Self {
        let why = plan::shorten(why, 200);
        Self::new(RefusalReason::Unreadable, format!("the pod is not of the form of a v1 Pod: {why}"))
    }
}

impl Skip {
    fn new(reason: SkipReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), warnings: Vec::new() }
    }
}

/// Decides about `pod`: the object as the API server sends it (or a template's `metadata` and `spec`), unknown fields
/// and all.
pub fn inject(pod: &Value, context: &Context<'_>) -> Outcome {
    match decide(pod, context) {
        Ok(Ok(injection)) => Outcome::Inject(Box::new(injection)),
        Ok(Err(skip)) => Outcome::Skip(skip),
        Err(refusal) => Outcome::Refuse(refusal),
    }
}

/// Whether namespace and pod ask for the mesh, whatever else may keep the pod out of it.
pub fn wants(pod: &Value, namespace: &Namespace, config: &MeshConfig) -> bool {
    View::read(pod).is_ok_and(|view| selected(&view, namespace, config).is_ok_and(|selected| selected.is_ok()))
}

/// What keeps a pod out of the mesh before anything else is looked at, or the settings it has there.
fn selected(view: &View, namespace: &Namespace, config: &MeshConfig) -> Result<Result<Plan, Skip>, Refusal> {
    if view.annotation("kubernetes.io/config.mirror").is_some() {
        return Ok(Err(Skip::new(SkipReason::MirrorPod, "a static pod is what its node's file says")));
    }
    if [KUBE_SYSTEM, &config.control_namespace].contains(&namespace.name.as_str()) {
        let message = format!("pods of namespace {} are never injected", namespace.name);
        return Ok(Err(Skip::new(SkipReason::SystemNamespace, message)));
    }
    let base = Plan::of_namespace(config, namespace)?;
    if base.inject == Some(false) {
        let message = format!("namespace {} says hauberk.dev/inject: disabled", namespace.name);
        return Ok(Err(Skip::new(SkipReason::NamespaceDisabled, message)));
    }
    let required = base.requires_every_pod(namespace);
    let listed = base.allow_uninjected.iter().any(|account| account == view.service_account());
    match plan::asks(view)? {
        Some(false) if required && !listed => Err(left_out(view, namespace, "says hauberk.dev/inject: disabled")),
        Some(false) => Ok(Err(Skip::new(SkipReason::PodDisabled, "the pod says hauberk.dev/inject: disabled"))),
        None if base.inject.is_none() && !required => {
            let message =
                format!("neither namespace {} nor the pod has the label hauberk.dev/inject=enabled", namespace.name);
            Ok(Err(Skip::new(SkipReason::NotSelected, message)))
        }
        _ => match view.other_mesh(&namespace.labels) {
            Some(sign) if required && !listed => {
                Err(left_out(view, namespace, &format!("belongs to another mesh ({sign})")))
            }
            Some(sign) => {
                let message = format!("the pod belongs to another mesh ({sign}): two would take each other's traffic");
                Ok(Err(Skip::new(SkipReason::OtherMesh, message)))
            }
            None => Ok(view.cannot_be_meshed(required).map_or_else(|| Ok(base), Err)),
        },
    }
}

fn left_out(view: &View, namespace: &Namespace, why: &str) -> Refusal {
    let (name, account) = (&namespace.name, view.service_account());
    Refusal::new(
        RefusalReason::UninjectedInRequired,
        format!(
            "namespace {name} requires mTLS of every pod, and this one {why}: it would be without a proxy. Remove what \
             it says, or list its ServiceAccount in the namespace's annotation hauberk.dev/allow-uninjected: {account}"
        ),
    )
}

fn decide(pod: &Value, context: &Context<'_>) -> Result<Result<Injection, Skip>, Refusal> {
    let view = View::read(pod)?;
    let base = match selected(&view, context.namespace, context.config)? {
        Ok(base) => base,
        Err(skip) => return Ok(Err(skip)),
    };
    let plan = base.of_pod(&view)?;
    checks::pod_security(context.namespace)?;
    let spec = view.spec();
    checks::clashes(spec, plan.redirection.proxy_uid)?;
    let sidecar = plan.sidecar_of(context.cluster, context.owner_kind.or_else(|| view.owner_kind()))?;
    let probes = probes::repoint(spec)?;
    let resources = resources::ours(&plan, spec)?;
    let told = told(&plan, &view, context, sidecar, probes.iter().map(|probe| probe.declared.clone()).collect())?;

    let mut patcher = patch::Patcher::new(pod);
    probes.iter().for_each(|probe| probe.write(&mut patcher));
    containers::write(&mut patcher, &plan, &told, &resources);
    containers::write_default_container(&mut patcher, &view);
    let mut warnings = plan.warnings.clone();
    warnings.extend(checks::warnings(spec, sidecar));
    let kind = if sidecar == SidecarKind::Native { "a native" } else { "a plain" };
    let summary = format!("{kind} sidecar, tls {}, identity {}", told.tls, told.identity);
    Ok(Ok(Injection { patch: patcher.finish()?, spec: told, summary, warnings }))
}

fn told(
    plan: &Plan,
    view: &View,
    context: &Context<'_>,
    sidecar: SidecarKind,
    probes: Vec<hauberk_mesh::Probe>,
) -> Result<ProxySpec, Refusal> {
    let Context { config, cluster, namespace, .. } = context;
    let domain = config.domain().map_err(|error| Refusal::new(RefusalReason::MeshConfig, error.to_string()))?;
    let identity = domain.identity(view.service_account(), &namespace.name).map_err(|error| {
        let account = view.service_account();
        let message = format!("ServiceAccount {account:?} of namespace {:?}: {error}", namespace.name);
        Refusal::new(RefusalReason::Identity, message)
    })?;
    let mut spec =
        ProxySpec::new(identity, cluster.identity_addr, cluster.destination_addr, cluster.trust_roots.clone());
    spec.tls = plan.tls;
    spec.egress = plan.egress;
    spec.allow_unmeshed_from = plan.allow_unmeshed_from.clone();
    spec.allow_unmeshed_to = plan.allow_unmeshed_to.clone();
    spec.redirection = plan.redirection.clone();
    spec.networks = config.networks.clone();
    spec.resolvers = config.resolvers.clone();
    spec.api_server = cluster.api_server;
    spec.sidecar = sidecar;
    spec.probes = probes;
    spec.limits = plan.limits.clone();
    Ok(spec)
}

const KUBE_SYSTEM: &str = "kube-system";

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
