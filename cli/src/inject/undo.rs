//! Takes out of a pod's template what `inject --manual` put in: containers, volumes, and the detour of the probes, whose
//! declared form stands in the proxy's environment. Pure.

use anyhow::{Context, Result};
use hauberk_mesh::{INIT_CONTAINER, PROBES_PORT, PROXY_CONTAINER, Probe, ProbeAction, ProbeKind};
use serde_json::{Map, Value, json};

/// Volumes of ours.
const VOLUMES: [&str; 3] = ["hauberk-token", "hauberk-identity", "hauberk-empty"];
/// What kubectl's commands talk to; without it, the first container.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Whether the whole injection is written into a pod or template.
pub(crate) fn is_whole(pod: &Value) -> bool {
    lists(pod).any(|container| container["name"] == PROXY_CONTAINER)
}

/// Takes it out. An error names the container whose probe cannot be restored.
pub(crate) fn take_out(pod: &mut Value) -> Result<()> {
    let declared = declared(pod)?;
    let Some(spec) = pod["spec"].as_object_mut() else { return Ok(()) };
    drop_named(spec, "initContainers", &[INIT_CONTAINER, PROXY_CONTAINER]);
    drop_named(spec, "containers", &[PROXY_CONTAINER]);
    drop_named(spec, "volumes", &VOLUMES);
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            restore(container, &declared)?;
        }
    }
    drop_default_container(pod);
    Ok(())
}

fn lists(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().filter_map(|list| pod["spec"][list].as_array()).flatten()
}

fn declared(pod: &Value) -> Result<Vec<Probe>> {
    let proxy = lists(pod).filter(|container| container["name"] == PROXY_CONTAINER);
    let mut vars = proxy.filter_map(|container| container["env"].as_array()).flatten();
    let text = vars.find(|var| var["name"] == "HAUBERK_PROBES").and_then(|var| var["value"].as_str());
    serde_json::from_str(text.unwrap_or("[]")).context("HAUBERK_PROBES of its proxy cannot be read")
}

fn drop_named(spec: &mut Map<String, Value>, list: &str, names: &[&str]) {
    let Some(items) = spec.get_mut(list).and_then(Value::as_array_mut) else { return };
    let before = items.len();
    items.retain(|item| !names.iter().any(|name| item["name"] == *name));
    if items.is_empty() && before > 0 {
        spec.remove(list);
    }
}

fn restore(container: &mut Value, declared: &[Probe]) -> Result<()> {
    let name = container["name"].as_str().unwrap_or_default().to_owned();
    for kind in ProbeKind::ALL {
        let detour = json!(format!("/probe/{name}/{kind}"));
        let handler = match kind {
            ProbeKind::Readiness => container.get_mut("readinessProbe"),
            ProbeKind::Liveness => container.get_mut("livenessProbe"),
            ProbeKind::Startup => container.get_mut("startupProbe"),
            ProbeKind::PostStart => container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut("postStart")),
            ProbeKind::PreStop => container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut("preStop")),
        };
        let Some(handler) = handler.and_then(Value::as_object_mut) else { continue };
        let http = handler.get("httpGet").unwrap_or(&Value::Null);
        if http["path"] != detour || http["port"] != PROBES_PORT {
            continue;
        }
        let probe = declared.iter().find(|probe| probe.container == name && probe.kind == *kind);
        let probe = probe.with_context(|| {
            format!("container {name}: its proxy does not say what {kind} was declared: write it anew, and try again")
        })?;
        handler.remove("httpGet");
        let (key, action) = action(&probe.action);
        handler.insert(key.to_owned(), action);
        if !kind.is_hook() {
            handler.insert("timeoutSeconds".to_owned(), json!(probe.timeout_seconds));
        }
    }
    Ok(())
}

fn action(action: &ProbeAction) -> (&'static str, Value) {
    let with = |mut value: Value, key: &str, more: Option<Value>| {
        if let Some(more) = more {
            value[key] = more;
        }
        value
    };
    match action {
        ProbeAction::HttpGet { https, host, port, path, headers } => {
            let header = |(name, value): &(String, String)| json!({ "name": name, "value": value });
            let headers = (!headers.is_empty()).then(|| headers.iter().map(header).collect());
            let value = with(json!({ "path": path, "port": port }), "scheme", https.then(|| json!("HTTPS")));
            ("httpGet", with(with(value, "host", host.as_ref().map(|host| json!(host))), "httpHeaders", headers))
        }
        ProbeAction::TcpSocket { host, port } => {
            ("tcpSocket", with(json!({ "port": port }), "host", host.as_ref().map(|host| json!(host))))
        }
        ProbeAction::Grpc { port, service } => {
            ("grpc", with(json!({ "port": port }), "service", (!service.is_empty()).then(|| json!(service))))
        }
    }
}

/// Where it names the first container it says what holds without it, whoever wrote it.
fn drop_default_container(pod: &mut Value) {
    let first = pod["spec"]["containers"][0]["name"].clone();
    let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else { return };
    if annotations.get(DEFAULT_CONTAINER) == Some(&first) {
        annotations.remove(DEFAULT_CONTAINER);
    }
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
}
