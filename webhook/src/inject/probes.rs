//! Probes and hooks: kubelet is led to the proxy's probe listener, and the proxy told what the application declared.
//!
//! Under redirection a TCP probe would always succeed, and nothing tells kubelet from a stranger on the node; so httpGet,
//! tcpSocket and grpc probes and httpGet hooks all become an httpGet of `/probe/<container>/<kind>`.

use hauberk_mesh::{PROBES_PORT, PROXY_CONTAINER, Probe, ProbeAction, ProbeKind, RefusalReason};
use serde_json::json;

use super::{
    Refusal, checks,
    patch::Patcher,
    view::{At, Container, Handler, HttpGet, PortRef, Spec},
};

/// A probe or hook that is led to the proxy.
#[derive(Debug)]
pub(super) struct Repointed {
    at: At,
    pub(super) declared: Probe,
    /// The handler that stands there.
    handler: &'static str,
    timeout: Option<i64>,
}

/// Finds all probes and hooks of the application that are led to the proxy.
///
/// On a later call they point to the proxy already, and what was declared stands in the environment of the container that
/// the earlier call made. Anybody may have written that; so an entry counts only for a probe that points to it, and is
/// checked like a declared one: it can say nothing that the pod's author could not have declared.
pub(super) fn repoint(spec: &Spec) -> Result<Vec<Repointed>, Refusal> {
    let earlier = earlier(spec);
    let mut found = Vec::new();
    for (at, container) in spec.applications() {
        let lifecycle = container.lifecycle.as_ref();
        let handlers = [
            (ProbeKind::Readiness, container.readiness_probe.as_ref()),
            (ProbeKind::Liveness, container.liveness_probe.as_ref()),
            (ProbeKind::Startup, container.startup_probe.as_ref()),
            (ProbeKind::PostStart, lifecycle.and_then(|lifecycle| lifecycle.post_start.as_ref())),
            (ProbeKind::PreStop, lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref())),
        ];
        for (kind, handler) in handlers {
            if let Some(handler) = handler {
                found.extend(repoint_one(at, container, kind, handler, &earlier)?);
            }
        }
    }
    Ok(found)
}

fn earlier(spec: &Spec) -> Vec<Probe> {
    let proxies = spec.ours().filter(|container| container.name == PROXY_CONTAINER);
    let vars = proxies.flat_map(|container| container.env.iter().flatten());
    let texts = vars.filter(|var| var.name.as_deref() == Some("HAUBERK_PROBES")).filter_map(|var| var.value.as_deref());
    texts.filter_map(|text| serde_json::from_str::<Vec<Probe>>(text).ok()).flatten().collect()
}

fn repoint_one(
    at: At,
    container: &Container,
    kind: ProbeKind,
    handler: &Handler,
    earlier: &[Probe],
) -> Result<Option<Repointed>, Refusal> {
    let is_hook = is_hook(kind);
    // Two handlers are refused by the API server, as they should be.
    let others = handler.exec.is_some() || handler.sleep.is_some();
    let (name, action) = match (&handler.http_get, &handler.tcp_socket, &handler.grpc) {
        (Some(http), None, None) if !others => match repointed_before(container, kind, http, earlier) {
            Some(declared) => {
                let mut declared = declared?;
                check_port(container, kind, declared.action.port())?;
                declared.timeout_seconds = if is_hook { 0 } else { declared.timeout_seconds.max(1) };
                return Ok(Some(Repointed { at, declared, handler: "httpGet", timeout: handler.timeout_seconds }));
            }
            None => ("httpGet", http_get(container, kind, http)?),
        },
        (None, Some(tcp), None) if !others && !is_hook => {
            let port = resolve(container, kind, tcp.port.as_ref())?;
            ("tcpSocket", ProbeAction::TcpSocket { host: host(tcp.host.as_deref()), port })
        }
        (None, None, Some(grpc)) if !others && !is_hook => {
            let port = resolve(container, kind, grpc.port.as_ref())?;
            ("grpc", ProbeAction::Grpc { port, service: grpc.service.clone().unwrap_or_default() })
        }
        _ => return Ok(None),
    };
    check_port(container, kind, action.port())?;
    let seconds = handler.timeout_seconds.unwrap_or(1).clamp(1, i32::MAX.into());
    let timeout_seconds = if is_hook { 0 } else { u32::try_from(seconds).expect("clamped") };
    let declared = Probe { container: container.name.clone(), kind, action, timeout_seconds };
    Ok(Some(Repointed { at, declared, handler: name, timeout: handler.timeout_seconds }))
}

/// What was declared for a probe that an earlier call led to the proxy.
fn repointed_before(
    container: &Container,
    kind: ProbeKind,
    http: &HttpGet,
    earlier: &[Probe],
) -> Option<Result<Probe, Refusal>> {
    let path = path_of(&container.name, kind);
    let to_us = matches!(http.port, Some(PortRef::Number(port)) if port == i64::from(PROBES_PORT))
        && http.path.as_deref() == Some(&path)
        && http.host.as_deref().is_none_or(str::is_empty);
    if !to_us {
        return None;
    }
    let declared = earlier.iter().find(|probe| probe.container == container.name && probe.kind == kind);
    Some(declared.cloned().ok_or_else(|| {
        refusal(
            container,
            kind,
            "points to the proxy already, and nothing says what the application declared: \
                 declare the application's own, as it was before the injection",
        )
    }))
}

fn http_get(container: &Container, kind: ProbeKind, http: &HttpGet) -> Result<ProbeAction, Refusal> {
    let https = match http.scheme.as_deref() {
        None | Some("" | "HTTP") => false,
        Some("HTTPS") => true,
        Some(_) => {
            return Err(refusal(container, kind, "has a scheme that is neither HTTP nor HTTPS: use one of them"));
        }
    };
    let path = http.path.as_deref().unwrap_or_default();
    // What follows # is never sent.
    let path = path.split('#').next().unwrap_or_default();
    let headers = http.http_headers.iter().flatten();
    Ok(ProbeAction::HttpGet {
        https,
        host: host(http.host.as_deref()),
        port: resolve(container, kind, http.port.as_ref())?,
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        headers: headers
            .map(|header| (header.name.clone().unwrap_or_default(), header.value.clone().unwrap_or_default()))
            .collect(),
    })
}

fn host(host: Option<&str>) -> Option<String> {
    host.filter(|host| !host.is_empty()).map(str::to_owned)
}

/// By number, or by the name of one of the container's ports, as kubelet does.
fn resolve(container: &Container, kind: ProbeKind, port: Option<&PortRef>) -> Result<u16, Refusal> {
    let number = match port {
        Some(PortRef::Number(number)) => Some(*number),
        Some(PortRef::Name(name)) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_ref() == Some(name));
            named.map_or_else(|| name.parse().ok(), |port| port.container_port)
        }
        None => None,
    };
    number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0).ok_or_else(|| {
        refusal(
            container,
            kind,
            "names no port: write a number from 1 to 65535, or the name of one of the container's ports",
        )
    })
}

fn check_port(container: &Container, kind: ProbeKind, port: u16) -> Result<(), Refusal> {
    if checks::is_proxy_port(port.into()) {
        let why = format!("asks port {port}, which is the proxy's own: ask a port of the application's");
        return Err(refusal(container, kind, &why));
    }
    Ok(())
}

fn refusal(container: &Container, kind: ProbeKind, why: &str) -> Refusal {
    Refusal::new(RefusalReason::Probe, format!("{kind} of container {} {why}", container.name))
}

fn is_hook(kind: ProbeKind) -> bool {
    matches!(kind, ProbeKind::PostStart | ProbeKind::PreStop)
}

fn path_of(container: &str, kind: ProbeKind) -> String {
    format!("/probe/{container}/{kind}")
}

impl Repointed {
    /// Leads kubelet to the proxy. All but handler and timeout stays: periods, thresholds, grace.
    pub(super) fn write(&self, patcher: &mut Patcher<'_>) {
        let index = self.at.index.to_string();
        let kind = self.declared.kind;
        let (outer, inner) = match kind {
            ProbeKind::Readiness => ("readinessProbe", None),
            ProbeKind::Liveness => ("livenessProbe", None),
            ProbeKind::Startup => ("startupProbe", None),
            ProbeKind::PostStart => ("lifecycle", Some("postStart")),
            ProbeKind::PreStop => ("lifecycle", Some("preStop")),
        };
        let container = ["spec", self.at.list, index.as_str()];
        let path: Vec<_> = container.into_iter().chain([outer]).chain(inner).collect();
        let under = |key: &'static str| path.iter().copied().chain([key]).collect::<Vec<_>>();
        let wanted = (self.declared.timeout_seconds > 0).then(|| {
            // The declared one must be the first to run out of time, so that the proxy can answer for it.
            i64::from(self.declared.timeout_seconds).saturating_add(1).min(i32::MAX.into())
        });
        let timeout = wanted.filter(|wanted| self.timeout != Some(*wanted));
        let name: Vec<_> = container.into_iter().chain(["name"]).collect();
        patcher.test(&name, json!(self.declared.container));
        if self.handler != "httpGet" {
            patcher.remove(&under(self.handler));
        }
        let target = json!({"path": self.declared.path(), "port": PROBES_PORT, "scheme": "HTTP"});
        if patcher.at(&under("httpGet")) != Some(&target) {
            patcher.add(&under("httpGet"), target);
        }
        if let Some(timeout) = timeout {
            patcher.add(&under("timeoutSeconds"), json!(timeout));
        }
    }
}
