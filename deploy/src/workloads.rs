//! Deployments and Services of identity, destination and webhook. Pure.
//!
//! The pods pass Pod Security `restricted`. Memory and CPU are requested, never limited: what a limit would have to be
//! depends on the cluster's size, and one that is too low takes the control plane away when it is needed most. No
//! priority class is set: some clusters admit the system's classes in kube-system only, and then no pod would start.

use hauberk_kubernetes::MeshConfig;
use hauberk_mesh::{
    CONTROL_ADMIN_PORT, DESTINATION_ACCOUNT, DESTINATION_PORT, IDENTITY_ACCOUNT, IDENTITY_PORT, PROXY_UID,
    TOKEN_AUDIENCE, TRUST_MAP, WEBHOOK_ACCOUNT, WEBHOOK_PORT,
};
use serde_json::{Value, json};

use crate::objects::{labels, metadata, selector};

/// Where destination finds the trust roots that identity published.
const TRUST_DIR: &str = "/var/run/hauberk/trust";
/// Where destination keeps its key and certificate.
const IDENTITY_DIR: &str = "/var/run/hauberk/identity";
/// Where destination finds its token.
const TOKEN_DIR: &str = "/var/run/secrets/hauberk";

struct Part {
    account: &'static str,
    /// Port of the Service, port of the pod, and what is spoken there.
    port: (u16, u16, &'static str),
    args: Vec<String>,
    /// Variables of the environment beside the pod's name.
    env: Vec<Value>,
    /// Whether the addresses of the namespace's Services are in the environment.
    service_links: bool,
    mounts: Value,
    volumes: Value,
    memory: &'static str,
}

fn parts(config: &MeshConfig) -> [Part; 3] {
    let plain = |account, port, memory| Part {
        account,
        port,
        args: Vec::new(),
        env: Vec::new(),
        service_links: false,
        mounts: json!([]),
        volumes: json!([]),
        memory,
    };
    [
        plain(IDENTITY_ACCOUNT, (IDENTITY_PORT, IDENTITY_PORT, "grpc"), "48Mi"),
        Part {
            args: vec![
                format!("--networks={}", config.networks),
                format!("--trust-roots={TRUST_DIR}/{}", hauberk_mesh::TRUST_ROOTS_KEY),
                format!("--token-file={TOKEN_DIR}/token"),
                format!("--identity-dir={IDENTITY_DIR}"),
            ],
            // The address, not a name: nothing of the mesh waits for the cluster's DNS.
            env: vec![json!({ "name": "HAUBERK_IDENTITY_ADDR", "value": identity_address(config) })],
            service_links: true,
            mounts: json!([
                { "name": "trust", "mountPath": TRUST_DIR, "readOnly": true },
                { "name": "token", "mountPath": TOKEN_DIR, "readOnly": true },
                { "name": "identity", "mountPath": IDENTITY_DIR },
            ]),
            volumes: json!([
                // Not optional: destination starts when identity has published whom to trust.
                { "name": "trust", "configMap": { "name": TRUST_MAP } },
                { "name": "token", "projected": { "sources": [{
                    "serviceAccountToken": { "audience": TOKEN_AUDIENCE, "expirationSeconds": 86400, "path": "token" },
                }] } },
                { "name": "identity", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
            ]),
            ..plain(DESTINATION_ACCOUNT, (DESTINATION_PORT, DESTINATION_PORT, "grpc"), "64Mi")
        },
        plain(WEBHOOK_ACCOUNT, (443, WEBHOOK_PORT, "https"), "48Mi"),
    ]
}

/// Where identity answers; kubelet puts the address of its Service into the text when it starts the container.
fn identity_address(config: &MeshConfig) -> String {
    let variable = format!("$({}_SERVICE_HOST)", IDENTITY_ACCOUNT.to_uppercase().replace('-', "_"));
    // Services have the family that the cluster's DNS has.
    let ipv6 = match config.resolvers.first() {
        Some(resolver) => resolver.is_ipv6(),
        None => !config.networks.is_empty() && config.networks.iter().all(|network| network.addr().is_ipv6()),
    };
    if ipv6 { format!("[{variable}]:{IDENTITY_PORT}") } else { format!("{variable}:{IDENTITY_PORT}") }
}

/// ServiceAccounts of the parts. Their pods ask for the token; nobody else who runs as them gets it by itself.
pub(crate) fn accounts(config: &MeshConfig) -> Vec<Value> {
    let account = |name: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(name, Some(&config.control_namespace), labels(name)),
            "automountServiceAccountToken": false,
        })
    };
    [IDENTITY_ACCOUNT, DESTINATION_ACCOUNT, WEBHOOK_ACCOUNT].map(account).into()
}

/// Services of the parts.
pub(crate) fn services(config: &MeshConfig) -> Vec<Value> {
    let service = |part: Part| {
        let (port, target, name) = part.port;
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(part.account, Some(&config.control_namespace), labels(part.account)),
            "spec": {
                "ports": [{ "name": name, "port": port, "targetPort": target, "protocol": "TCP" }],
                "selector": selector(part.account),
                "type": "ClusterIP",
            },
        })
    };
    parts(config).map(service).into()
}

/// Deployments of the parts.
pub(crate) fn deployments(config: &MeshConfig) -> Vec<Value> {
    parts(config).map(|part| deployment(part, config)).into()
}

/// Budgets that keep two of three replicas: only where there are three, for one that kept the only replica would
/// keep its node from being drained.
pub(crate) fn budgets(config: &MeshConfig) -> Vec<Value> {
    if !config.high_availability {
        return Vec::new();
    }
    let budget = |part: Part| {
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(part.account, Some(&config.control_namespace), labels(part.account)),
            "spec": { "maxUnavailable": 1, "selector": { "matchLabels": selector(part.account) } },
        })
    };
    parts(config).map(budget).into()
}

fn deployment(part: Part, config: &MeshConfig) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(part.account, Some(&config.control_namespace), labels(part.account)),
        "spec": {
            "replicas": if config.high_availability { 3 } else { 1 },
            "revisionHistoryLimit": 3,
            "selector": { "matchLabels": selector(part.account) },
            // Never fewer than were there before.
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": {
                "metadata": { "labels": labels(part.account) },
                "spec": pod(&part, config),
            },
        },
    })
}

fn pod(part: &Part, config: &MeshConfig) -> Value {
    json!({
        "serviceAccountName": part.account,
        "automountServiceAccountToken": true,
        // Services named hauberk-… set variables that look like settings of the programs.
        "enableServiceLinks": part.service_links,
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "affinity": { "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [
            spread(part.account, 100, "kubernetes.io/hostname"),
            spread(part.account, 50, "topology.kubernetes.io/zone"),
        ] } },
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": PROXY_UID,
            "runAsGroup": PROXY_UID,
            "fsGroup": PROXY_UID,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container(part, config)],
        "volumes": part.volumes,
    })
}

fn spread(account: &str, weight: u8, topology: &str) -> Value {
    json!({
        "weight": weight,
        "podAffinityTerm": { "labelSelector": { "matchLabels": selector(account) }, "topologyKey": topology },
    })
}

fn container(part: &Part, config: &MeshConfig) -> Value {
    let probe = |path: &str, period: u8| {
        json!({
            "httpGet": { "path": path, "port": CONTROL_ADMIN_PORT },
            "periodSeconds": period,
            "timeoutSeconds": 3,
            "failureThreshold": 3,
        })
    };
    let mut args = vec![
        "--kubernetes".to_owned(),
        format!("--control-namespace={}", config.control_namespace),
        format!("--trust-domain={}", config.trust_domain),
    ];
    args.extend(part.args.iter().cloned());
    let pod_name = json!({ "fieldRef": { "fieldPath": "metadata.name" } });
    let mut env = vec![json!({ "name": "HAUBERK_POD_NAME", "valueFrom": pod_name })];
    env.extend(part.env.iter().cloned());
    json!({
        "name": part.account,
        "image": config.controller_image,
        "imagePullPolicy": config.image_pull_policy,
        "command": [part.account],
        "args": args,
        "env": env,
        "ports": [
            { "name": part.port.2, "containerPort": part.port.1, "protocol": "TCP" },
            { "name": "admin", "containerPort": CONTROL_ADMIN_PORT, "protocol": "TCP" },
        ],
        "livenessProbe": probe("/live", 10),
        "readinessProbe": probe("/ready", 2),
        "resources": { "requests": { "cpu": "50m", "memory": part.memory } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": part.mounts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_identity_is_written_in_the_familys_way() {
        let of = |networks: &str, resolver: Option<&str>| {
            identity_address(&MeshConfig {
                networks: networks.parse().expect("networks"),
                resolvers: resolver.iter().map(|ip| ip.parse().expect("an address")).collect(),
                ..MeshConfig::default()
            })
        };
        assert_eq!(of("10.0.0.0/8,fd00::/8", None), "$(HAUBERK_IDENTITY_SERVICE_HOST):8080");
        assert_eq!(of("10.0.0.0/8,fd00::/8", Some("fd00::a")), "[$(HAUBERK_IDENTITY_SERVICE_HOST)]:8080");
        assert_eq!(of("fd00::/8", None), "[$(HAUBERK_IDENTITY_SERVICE_HOST)]:8080");
    }
}
