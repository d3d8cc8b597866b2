//! What makes a pod impossible to inject, and what its author should be warned of.

use std::collections::BTreeMap;

use hauberk_mesh::{PROXY_PORTS, RefusalReason, SidecarKind};

use super::{
    Namespace, Refusal,
    containers::{OUR_PORTS, OUR_VOLUMES},
    view::{Container, Spec, is_ours},
};

/// The label by which a namespace sets its Pod Security level.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// `hauberk-init` needs NET_ADMIN, which `baseline` and `restricted` forbid.
pub(super) fn pod_security(namespace: &Namespace) -> Result<(), Refusal> {
    match namespace.labels.get(ENFORCE).map(String::as_str) {
        Some(level @ ("baseline" | "restricted")) => Err(Refusal::new(
            RefusalReason::PodSecurity,
            format!(
                "namespace {} enforces the Pod Security level {level}, which forbids NET_ADMIN, and hauberk-init needs it to \
                 set the redirection: set the namespace's label {ENFORCE} to privileged, or give the pod the label \
                 hauberk.dev/inject=disabled",
                namespace.name
            ),
        )),
        _ => Ok(()),
    }
}

/// Refuses what the proxy and the application cannot both have.
pub(super) fn clashes(spec: &Spec, proxy_uid: u32) -> Result<(), Refusal> {
    if spec.main_containers().next().is_none() {
        let message = "the pod has no container of its own: add the application's";
        return Err(Refusal::new(RefusalReason::NoContainers, message));
    }
    if let Some(container) = spec.debug_containers().find(|container| is_ours(&container.name)) {
        let message = format!("{} is a name of the proxy's containers: rename the debug container", container.name);
        return Err(Refusal::new(RefusalReason::ContainerName, message));
    }
    spec.applications().try_for_each(|(_, container)| {
        uid(container, spec, proxy_uid)?;
        ports(container)?;
        volumes(container)
    })
}

fn uid(container: &Container, spec: &Spec, proxy_uid: u32) -> Result<(), Refusal> {
    if container.uid(spec.security_context.as_ref()) != Some(proxy_uid.into()) {
        return Ok(());
    }
    let message = format!(
        "container {} runs as uid {proxy_uid}, the proxy's: its traffic would pass beside the proxy. Set another runAsUser \
         (of the container or of the pod), or another hauberk.dev/proxy-uid on the namespace",
        container.name
    );
    Err(Refusal::new(RefusalReason::ProxyUid, message))
}

fn ports(container: &Container) -> Result<(), Refusal> {
    for port in container.ports.iter().flatten() {
        let number = port.container_port.unwrap_or_default();
        let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP" || protocol.is_empty());
        if tcp && is_proxy_port(number) {
            let message = format!(
                "container {} has port {number}, which is the proxy's own ({}): let the application listen elsewhere",
                container.name,
                PROXY_PORTS.map(|port| port.to_string()).join(", ")
            );
            return Err(Refusal::new(RefusalReason::Port, message));
        }
        if let Some(name) = port.name.as_deref().filter(|name| OUR_PORTS.iter().any(|(ours, _)| ours == name)) {
            let message = format!(
                "container {} has a port named {name}, as the proxy has: a Service that names it would lead to either. \
                 Rename it",
                container.name
            );
            return Err(Refusal::new(RefusalReason::Port, message));
        }
    }
    Ok(())
}

pub(super) fn is_proxy_port(number: i64) -> bool {
    PROXY_PORTS.iter().any(|port| i64::from(*port) == number)
}

/// Key, certificate and token are the proxy's alone.
fn volumes(container: &Container) -> Result<(), Refusal> {
    let mut mounted = container.volume_mounts.iter().flatten().chain(container.volume_devices.iter().flatten());
    let ours = mounted.find_map(|mount| mount.name.as_deref().filter(|name| OUR_VOLUMES.contains(name)));
    ours.map_or(Ok(()), |name| {
        let message = format!(
            "container {} mounts volume {name}, which is the proxy's alone: rename the application's volume, or remove the \
             mount",
            container.name
        );
        Err(Refusal::new(RefusalReason::Volume, message))
    })
}

/// What works, but perhaps not as its author thinks.
pub(super) fn warnings(spec: &Spec, sidecar: SidecarKind) -> Vec<String> {
    let ends = spec.restart_policy.as_deref().is_some_and(|policy| policy != "Always");
    let mut warnings = Vec::new();
    if sidecar == SidecarKind::Plain && ends {
        warnings.push(
            "the plain sidecar hauberk-proxy goes on when the application has ended: use a native one".to_owned(),
        );
    }
    warnings.extend(unreadable_tokens(spec));
    warnings
}

/// Where all containers run as one uid, kubelet gives projected tokens to that uid. hauberk-init runs as root, so it no
/// longer does, and a token that only its owner may read is then root's.
fn unreadable_tokens(spec: &Spec) -> Option<String> {
    let pod = spec.security_context.as_ref();
    let mut uids = spec.applications().map(|(_, container)| container.uid(pod));
    let one = uids.next().flatten().filter(|uid| *uid != 0)?;
    if uids.any(|uid| uid != Some(one)) || pod.is_some_and(|pod| pod.fs_group.is_some()) {
        return None;
    }
    let holds_token = |sources: &Vec<BTreeMap<String, serde_json::Value>>| {
        sources.iter().any(|source| source.get("serviceAccountToken").is_some_and(|token| !token.is_null()))
    };
    let volume = spec.volumes.iter().flatten().find(|volume| {
        let projected = volume.projected.as_ref();
        let name = volume.name.as_deref().unwrap_or_default();
        !OUR_VOLUMES.contains(&name)
            && projected.is_some_and(|it| it.default_mode.is_some_and(|mode| mode & 0o004 == 0))
            && projected.and_then(|it| it.sources.as_ref()).is_some_and(holds_token)
    })?;
    Some(format!(
        "volume {}: uid {one} cannot read its token beside hauberk-init; set fsGroup, or defaultMode 0444",
        volume.name.as_deref().unwrap_or_default()
    ))
}
