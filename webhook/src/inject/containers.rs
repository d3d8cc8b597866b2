//! Our containers and volumes, and their places in the pod.

use hauberk_kubernetes::PullPolicy;
use hauberk_mesh::{
    ADMIN_PORT, INIT_CONTAINER, MESH_PORT, PROBES_PORT, PROXY_CONTAINER, ProxySpec, SidecarKind, TOKEN_AUDIENCE,
};
use serde_json::{Value, json};

use super::{
    patch::Patcher,
    plan::Plan,
    view::{CONTAINERS, INIT_CONTAINERS, View},
};

const TOKEN_VOLUME: &str = "hauberk-token";
const IDENTITY_VOLUME: &str = "hauberk-identity";
const EMPTY_VOLUME: &str = "hauberk-empty";
/// Volumes of ours: nobody else may mount them.
pub(super) const OUR_VOLUMES: [&str; 3] = [TOKEN_VOLUME, IDENTITY_VOLUME, EMPTY_VOLUME];

/// The proxy's ports that others reach, and their names.
pub(super) const OUR_PORTS: [(&str, u16); 3] =
    [("hauberk-mesh", MESH_PORT), ("hauberk-probes", PROBES_PORT), ("hauberk-admin", ADMIN_PORT)];

/// kubelet renews a token at 80 % of this; the proxy reads the file for each certificate.
const TOKEN_SECONDS: u32 = 3600;
/// Key, chain and bundle are a few kilobytes; a bundle in rotation has three roots.
const IDENTITY_SIZE: &str = "1Mi";
/// The proxy waits for its first certificate however long identity is away: a restart would only make it wait longer.
const STARTUP_SECONDS: u32 = 3600;
/// Where admission would otherwise mount the application's API token.
const API_TOKEN_DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// iptables-legacy wants a lock it can write; every container's /dev/shm is in memory and writable.
const XTABLES_LOCK: &str = "/dev/shm/hauberk-xtables.lock";
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Puts our containers and volumes in their places; whatever stood under our names goes.
pub(super) fn write(patcher: &mut Patcher<'_>, plan: &Plan, told: &ProxySpec, resources: &Value) {
    let mut init = init_container(plan, told, resources);
    let mut proxy = proxy_container(plan, told, resources);
    for container in [&mut init, &mut proxy] {
        keep_limits_of_admission(patcher, container);
    }
    for list in [INIT_CONTAINERS, CONTAINERS] {
        patcher.remove_named(list, &[INIT_CONTAINER, PROXY_CONTAINER]);
    }
    patcher.remove_named("volumes", &OUR_VOLUMES);
    patcher.ensure(&["spec", INIT_CONTAINERS], json!([]));
    match told.sidecar {
        SidecarKind::Native => {
            patcher.add(&["spec", INIT_CONTAINERS, "0"], init);
            patcher.add(&["spec", INIT_CONTAINERS, "1"], proxy);
        }
        // Init containers of the application come first: with the redirection set and no proxy yet they would hang. The
        // proxy is the first of the containers, which are started in order.
        SidecarKind::Plain => {
            patcher.add(&["spec", INIT_CONTAINERS, "-"], init);
            patcher.add(&["spec", CONTAINERS, "0"], proxy);
        }
    }
    patcher.ensure(&["spec", "volumes"], json!([]));
    for volume in volumes(told) {
        patcher.add(&["spec", "volumes", "-"], volume);
    }
}

/// Between two calls for one pod, a LimitRange gives our containers the limits that it demands, and it is not asked again
/// after the second. Where the container is what we injected, limits stay that we say nothing of.
fn keep_limits_of_admission(patcher: &Patcher<'_>, ours: &mut Value) {
    let of_our_name = |list| {
        let items = patcher.at(&["spec", list]).and_then(Value::as_array);
        items.into_iter().flatten().find(|item| item.get("name") == ours.get("name"))
    };
    let Some(there) = [INIT_CONTAINERS, CONTAINERS].into_iter().find_map(of_our_name) else { return };
    if ["image", "args", "env"].into_iter().any(|key| there.get(key) != ours.get(key)) {
        return;
    }
    for (resource, limit) in there.pointer("/resources/limits").and_then(Value::as_object).into_iter().flatten() {
        // One that equals its request is ours, from when the pod was Guaranteed.
        let made_by_us = there.pointer(&format!("/resources/requests/{resource}")) == Some(limit);
        if !made_by_us && ours["resources"]["limits"].get(resource).is_none() {
            ours["resources"]["limits"][resource] = limit.clone();
        }
    }
}

/// `kubectl logs` and `exec` go on meaning the application.
pub(super) fn write_default_container(patcher: &mut Patcher<'_>, view: &View) {
    let Some(first) = view.spec().main_containers().next() else { return };
    if view.annotation(DEFAULT_CONTAINER).is_none() {
        patcher.ensure(&["metadata"], json!({}));
        patcher.ensure(&["metadata", "annotations"], json!({}));
        patcher.add(&["metadata", "annotations", DEFAULT_CONTAINER], json!(first.name));
    }
}

fn init_container(plan: &Plan, told: &ProxySpec, resources: &Value) -> Value {
    let redirection = &told.redirection;
    let flags = [
        ("--proxy-uid", redirection.proxy_uid.to_string()),
        ("--skip-inbound-ports", redirection.skip_inbound_ports.to_string()),
        ("--skip-outbound-ports", redirection.skip_outbound_ports.to_string()),
        ("--skip-subnets", redirection.skip_subnets.to_string()),
    ];
    let flags = flags.into_iter().filter(|(_, value)| !value.is_empty()).map(|(flag, value)| format!("{flag}={value}"));
    json!({
        "name": INIT_CONTAINER,
        "image": plan.image,
        "imagePullPolicy": pull_policy(plan.pull_policy),
        "args": std::iter::once("init".to_owned()).chain(flags).collect::<Vec<_>>(),
        "env": [
            {"name": "RUST_LOG", "value": plan.log},
            {"name": "XTABLES_LOCKFILE", "value": XTABLES_LOCK},
        ],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [no_api_token()],
    })
}

fn proxy_container(plan: &Plan, told: &ProxySpec, resources: &Value) -> Value {
    let settings = told.to_env().into_iter().map(|(name, value)| json!({"name": name, "value": value}));
    let env: Vec<_> = settings.chain([json!({"name": "RUST_LOG", "value": plan.log})]).collect();
    let ports = OUR_PORTS.map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"}));
    let mut container = json!({
        "name": PROXY_CONTAINER,
        "image": plan.image,
        "imagePullPolicy": pull_policy(plan.pull_policy),
        "args": ["run"],
        "env": env,
        "ports": ports,
        "livenessProbe": probe("/live", 10, 5, 6),
        "readinessProbe": probe("/ready", 5, 2, 3),
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": told.redirection.proxy_uid,
            "runAsNonRoot": true,
            "runAsUser": told.redirection.proxy_uid,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": TOKEN_VOLUME, "mountPath": directory(&told.token_file), "readOnly": true},
            {"name": IDENTITY_VOLUME, "mountPath": told.identity_dir},
            no_api_token(),
        ],
    });
    // What comes after a native sidecar starts once this has succeeded.
    container["startupProbe"] = probe("/ready", 1, 1, STARTUP_SECONDS);
    if told.sidecar == SidecarKind::Native {
        container["restartPolicy"] = json!("Always");
    }
    container
}

fn probe(path: &str, period: u32, timeout: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": path, "port": ADMIN_PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    })
}

fn no_api_token() -> Value {
    json!({"name": EMPTY_VOLUME, "mountPath": API_TOKEN_DIRECTORY, "readOnly": true})
}

/// In memory all three: a volume on disk would keep the cluster's autoscaler from moving the pod. The token may be read by
/// all because kubelet gives it to the pod's fsGroup or to root, and the proxy is neither; only our container mounts it.
fn volumes(told: &ProxySpec) -> [Value; 3] {
    let file = told.token_file.rsplit('/').next().unwrap_or_default();
    let token = json!({"audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": file});
    [
        json!({"name": TOKEN_VOLUME, "projected": {"defaultMode": 0o644, "sources": [{"serviceAccountToken": token}]}}),
        json!({"name": IDENTITY_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": IDENTITY_SIZE}}),
        json!({"name": EMPTY_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "4Ki"}}),
    ]
}

fn directory(file: &str) -> &str {
    file.rsplit_once('/').map_or("/", |(directory, _)| directory)
}

fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
}
