//! `hauberk install`: what it prints is what a real API server takes, and what it is for.

use std::{collections::BTreeSet, pin::pin, time::Duration};

use futures_util::TryStreamExt as _;
use hauberk_deploy::{RIGHTS, Rule};
use hauberk_e2e::ControlPlane;
use hauberk_kubernetes::MeshConfig;
use hauberk_mesh::{CONFIG_KEY, CONFIG_MAP, CONTROL_NAMESPACE, WEBHOOK_CONFIGURATION};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        core::v1::{ConfigMap, Node, Pod, Secret, Service},
        rbac::v1::{ClusterRole, PolicyRule, Role},
    },
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;

use crate::cli::{NETWORKS, hauberk, kubectl};

/// For what the controller-manager makes.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_same_bytes_twice_and_kubectl_applies_all_at_the_first_go() {
    let plane = ControlPlane::start().await.expect("it starts");
    let printed = hauberk(&plane, &["install", NETWORKS]).printed();
    assert_eq!(hauberk(&plane, &["install", NETWORKS]).printed(), printed);

    let applied = kubectl(&plane, &["apply", "-f", "-"], &printed);
    assert!(!applied.stderr.contains("Warning"), "{}", applied.stderr);
    let lines: Vec<_> = applied.printed().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), printed.matches("---\n").count());
    assert!(lines.iter().all(|line| line.ends_with(" created")), "{lines:?}");

    // Pod Security `restricted` holds in the namespace: what it refuses never becomes a pod.
    let pods: Api<Pod> = Api::namespaced(plane.client(), CONTROL_NAMESPACE);
    let all_three = async {
        let mut pods = pin!(watcher(pods, watcher::Config::default()).applied_objects());
        let mut parts = BTreeSet::new();
        while parts.len() < 3 {
            let pod = pods.try_next().await.expect("a watch").expect("it goes on");
            parts.extend(pod.labels().get("app.kubernetes.io/name").cloned());
        }
    };
    tokio::time::timeout(PATIENCE, all_three).await.expect("each part has a pod");
    let privileged = kubectl(&plane, &["run", "x", "-n", CONTROL_NAMESPACE, "--image=x", "--privileged"], "");
    assert!(privileged.refused().contains("violates PodSecurity \"restricted"), "the namespace enforces it");
}

#[tokio::test]
async fn server_side_apply_takes_it_too_and_the_settings_are_read_back() {
    let plane = ControlPlane::start().await.expect("it starts");
    let args = [
        "install",
        NETWORKS,
        "--tls=required",
        "--registry=registry.example.org/mesh/",
        "--set",
        "resolvers=10.96.0.10",
        "--ha",
    ];
    let printed = hauberk(&plane, &args).printed();
    kubectl(&plane, &["apply", "--server-side", "--field-manager=hauberk-install", "-f", "-"], &printed).printed();

    let maps: Api<ConfigMap> = Api::namespaced(plane.client(), CONTROL_NAMESPACE);
    let map = maps.get(CONFIG_MAP).await.expect("the settings");
    let config = MeshConfig::parse(&map.data.expect("data")[CONFIG_KEY]).expect("valid");
    assert_eq!((config.tls.as_str(), config.high_availability), ("required", true));
    assert_eq!(config.networks.to_string(), "10.244.0.0/16,10.96.0.0/16");
    assert_eq!(config.proxy_image, format!("registry.example.org/mesh/hauberk-proxy:{}", env!("CARGO_PKG_VERSION")));

    let registrations: Api<MutatingWebhookConfiguration> = Api::all(plane.client());
    let registered = registrations.get(WEBHOOK_CONFIGURATION).await.expect("registered");
    let names: Vec<_> = registered.webhooks.iter().flatten().map(|webhook| webhook.name.as_str()).collect();
    let entries = hauberk_webhook::registration::Entry::of(config.tls);
    assert_eq!(names, entries.iter().map(|entry| entry.name()).collect::<Vec<_>>());
}

#[tokio::test]
async fn refuses_over_a_mesh_and_applying_again_keeps_the_webhooks_ca() {
    let plane = ControlPlane::start().await.expect("it starts");
    let printed = hauberk(&plane, &["install", NETWORKS]).printed();
    for apply in [&["apply", "-f", "-"][..], &["apply", "--server-side", "--force-conflicts", "-f", "-"]] {
        kubectl(&plane, apply, &printed).printed();
        let refused = hauberk(&plane, &["install", NETWORKS]).refused();
        assert!(refused.contains("has a mesh already") && refused.contains("hauberk uninstall"), "{refused}");

        // As the webhook's leader does.
        let registrations: Api<MutatingWebhookConfiguration> = Api::all(plane.client());
        let mut registered = registrations.get(WEBHOOK_CONFIGURATION).await.expect("registered");
        for webhook in registered.webhooks.iter_mut().flatten() {
            webhook.client_config.ca_bundle = Some(ByteString(plane.ca_pem().as_bytes().to_vec()));
        }
        let webhooks: Vec<_> = registered.webhooks.iter().flatten().map(|webhook| {
            json!({ "name": webhook.name, "clientConfig": { "caBundle": webhook.client_config.ca_bundle } })
        }).collect();
        let patch = json!({ "webhooks": webhooks });
        registrations
            .patch(WEBHOOK_CONFIGURATION, &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .expect("patched");

        let again = hauberk(&plane, &["install", NETWORKS, "--force"]).printed();
        assert_eq!(again, printed);
        kubectl(&plane, apply, &again).printed();
        let after = registrations.get(WEBHOOK_CONFIGURATION).await.expect("registered");
        for webhook in after.webhooks.expect("entries") {
            let ca = webhook.client_config.ca_bundle.expect("it is still there");
            assert_eq!(ca.0, plane.ca_pem().as_bytes(), "{}", webhook.name);
        }
    }
}

#[tokio::test]
async fn networks_and_resolvers_are_found_in_the_cluster_or_asked_for() {
    let plane = ControlPlane::start().await.expect("it starts");
    let refused = hauberk(&plane, &["install"]).refused();
    assert!(refused.contains("cannot find the network of the cluster's pods: give --networks"), "{refused}");

    let node: Node = serde_json::from_value(json!({
        "metadata": { "name": "one" },
        "spec": { "podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24", "fd00:10:244::/64"] },
    }))
    .expect("a node");
    Api::all(plane.client()).create(&PostParams::default(), &node).await.expect("created");
    let dns: Service = serde_json::from_value(json!({
        "metadata": { "name": "kube-dns", "labels": { "k8s-app": "kube-dns" } },
        "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 53 }] },
    }))
    .expect("a Service");
    Api::namespaced(plane.client(), "kube-system").create(&PostParams::default(), &dns).await.expect("created");

    let ran = hauberk(&plane, &["install"]);
    assert!(ran.stderr.contains("(from Nodes, ServiceCIDRs)"), "{}", ran.stderr);
    let printed = ran.printed();
    for found in ["10.244.3.0/24", "fd00:10:244::/64", "10.96.0.0/", "fd00:10:96::/", "10.96.0.10"] {
        assert!(printed.contains(found), "{found} in {printed}");
    }
}

#[tokio::test]
async fn rights_in_the_cluster_are_those_of_the_list_and_no_more() {
    let plane = ControlPlane::start().await.expect("it starts");
    let printed = hauberk(&plane, &["install", NETWORKS]).printed();
    kubectl(&plane, &["apply", "-f", "-"], &printed).printed();

    let roles: Api<Role> = Api::namespaced(plane.client(), CONTROL_NAMESPACE);
    let cluster_roles: Api<ClusterRole> = Api::all(plane.client());
    let ours = ListParams::default().labels("app.kubernetes.io/part-of=hauberk");
    let expected = |rules: &[Rule]| {
        rules
            .iter()
            .map(|rule| {
                let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
                PolicyRule {
                    api_groups: Some(vec![rule.group.to_owned()]),
                    resources: Some(texts(rule.resources)),
                    resource_names: (!rule.names.is_empty()).then(|| texts(rule.names)),
                    verbs: texts(rule.verbs),
                    non_resource_urls: None,
                }
            })
            .collect::<Vec<_>>()
    };
    let found = cluster_roles.list(&ours).await.expect("a list").items;
    assert_eq!(found.len(), RIGHTS.iter().filter(|rights| !rights.cluster.is_empty()).count());
    for role in found {
        let rights = RIGHTS.iter().find(|rights| rights.account == role.name_any()).expect("one of ours");
        assert_eq!(role.rules.unwrap_or_default(), expected(rights.cluster), "{}", rights.account);
    }
    let found = roles.list(&ListParams::default()).await.expect("a list").items;
    assert_eq!(found.len(), RIGHTS.iter().filter(|rights| !rights.own.is_empty()).count());
    for role in found {
        let rights = RIGHTS.iter().find(|rights| rights.account == role.name_any()).expect("one of ours");
        assert_eq!(role.rules.unwrap_or_default(), expected(rights.own), "{}", rights.account);
    }

    // And they are in force: each account as itself.
    for rights in RIGHTS {
        let user = format!("system:serviceaccount:{CONTROL_NAMESPACE}:{}", rights.account);
        let client = plane.client_as(&user, &["system:serviceaccounts", "system:authenticated"]);
        let denied =
            |result: kube::Result<()>| matches!(result, Err(kube::Error::Api(status)) if status.is_forbidden());
        let secrets: Api<Secret> = Api::all(client.clone());
        assert!(denied(secrets.list(&ListParams::default()).await.map(drop)), "{user} reads no Secrets of others");
        let own: Api<Secret> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
        assert!(denied(own.list(&ListParams::default()).await.map(drop)), "{user} reads no Secrets but its own");
        let root = own.get_opt(hauberk_mesh::ROOT_SECRET).await.map(drop);
        assert_eq!(denied(root), rights.account != hauberk_mesh::IDENTITY_ACCOUNT, "{user} and the root's key");
        let pods: Api<Pod> = Api::all(client);
        let listed = pods.list(&ListParams::default()).await.map(drop);
        assert_eq!(denied(listed), rights.account != hauberk_mesh::DESTINATION_ACCOUNT, "{user} and pods");
    }
}
