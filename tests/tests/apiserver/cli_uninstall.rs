//! `hauberk uninstall`: refuses while it would hurt, and then leaves nothing.

use std::collections::BTreeSet;

use hauberk_e2e::ControlPlane;
use hauberk_mesh::{CONTROL_NAMESPACE, ProxySpec, TrustDomain};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod, Secret},
};
use kube::{Api, api::PostParams};
use serde_json::json;

use crate::cli::{NETWORKS, hauberk, kubectl};

/// Every object of the cluster. Events come and go by themselves.
fn everything(plane: &ControlPlane) -> BTreeSet<String> {
    let kinds = kubectl(plane, &["api-resources", "--verbs=list", "-o", "name"], "").printed();
    let kinds: Vec<_> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let columns = "-o=custom-columns=:kind,:metadata.namespace,:metadata.name";
    let objects = kubectl(plane, &["get", "-A", "--ignore-not-found", columns, &kinds.join(",")], "").printed();
    objects.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join("/")).collect()
}

/// What the parts make when they run.
async fn as_the_controllers_do(plane: &ControlPlane) {
    for name in [hauberk_mesh::ROOT_SECRET, hauberk_mesh::ISSUER_SECRET, hauberk_mesh::WEBHOOK_SECRET] {
        let secret: Secret = serde_json::from_value(json!({ "metadata": { "name": name } })).expect("a Secret");
        Api::namespaced(plane.client(), CONTROL_NAMESPACE)
            .create(&PostParams::default(), &secret)
            .await
            .expect("created");
    }
    let map: ConfigMap =
        serde_json::from_value(json!({ "metadata": { "name": hauberk_mesh::TRUST_MAP } })).expect("one");
    Api::namespaced(plane.client(), CONTROL_NAMESPACE).create(&PostParams::default(), &map).await.expect("created");
    for name in [hauberk_mesh::IDENTITY_ACCOUNT, hauberk_mesh::WEBHOOK_ACCOUNT] {
        let lease: Lease = serde_json::from_value(json!({ "metadata": { "name": name } })).expect("a Lease");
        Api::namespaced(plane.client(), CONTROL_NAMESPACE)
            .create(&PostParams::default(), &lease)
            .await
            .expect("created");
    }
}

fn meshed() -> Pod {
    let identity = TrustDomain::default().identity("web", "default").expect("valid");
    let addr = |text: &str| text.parse().expect("an address");
    let spec = ProxySpec::new(identity, addr("10.96.0.2:8080"), addr("10.96.0.3:8086"), "PEM".to_owned());
    let env: Vec<_> = spec.to_env().into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    let proxy = json!({ "name": "hauberk-proxy", "image": "proxy", "restartPolicy": "Always", "env": env });
    let spec = json!({ "initContainers": [proxy], "containers": [{ "name": "web", "image": "web" }] });
    serde_json::from_value(json!({ "metadata": { "name": "web" }, "spec": spec })).expect("a pod")
}

#[tokio::test]
async fn uninstall_leaves_nothing() {
    let plane = ControlPlane::start().await.expect("it starts");
    let before = everything(&plane);
    for flags in [&[][..], &["--ha"]] {
        let printed = hauberk(&plane, &[&["install", NETWORKS], flags].concat()).printed();
        kubectl(&plane, &["apply", "-f", "-"], &printed).printed();
        as_the_controllers_do(&plane).await;
        assert!(everything(&plane).len() > before.len() + 20, "a mesh is there");

        let printed = hauberk(&plane, &["uninstall"]).printed();
        let first = printed.lines().find(|line| line.starts_with("kind: "));
        assert_eq!(first, Some("kind: MutatingWebhookConfiguration"), "from then on no pod waits for the webhook");
        assert!(printed.contains(hauberk_mesh::ROOT_SECRET), "people see that the keys go");
        kubectl(&plane, &["delete", "-f", "-"], &printed).printed();
        let after = everything(&plane);
        assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
        assert_eq!(before.difference(&after).collect::<Vec<_>>(), Vec::<&String>::new(), "and takes nothing of others");
    }
    let refused = hauberk(&plane, &["uninstall"]).refused();
    assert!(refused.contains("namespace hauberk holds no mesh"), "{refused}");
}

#[tokio::test]
async fn refuses_while_meshed_pods_run_unless_forced_and_spares_what_is_not_ours() {
    let plane = ControlPlane::start().await.expect("it starts");
    let printed = hauberk(&plane, &["install", NETWORKS]).printed();
    kubectl(&plane, &["apply", "-f", "-"], &printed).printed();
    let pods: Api<Pod> = Api::namespaced(plane.client(), "default");
    pods.create(&PostParams::default(), &meshed()).await.expect("created");
    let refused = hauberk(&plane, &["uninstall"]).refused();
    assert!(refused.contains("default/web") && refused.contains("--force"), "{refused}");

    let all = hauberk(&plane, &["uninstall", "--force"]).printed();
    assert!(all.contains("kind: Namespace\n"));
    let stranger = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "stranger", "namespace": CONTROL_NAMESPACE },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "runAsUser": 1, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{ "name": "x", "image": "x", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
            } }],
        },
    });
    kubectl(&plane, &["apply", "-f", "-"], &stranger.to_string()).printed();
    let ran = hauberk(&plane, &["uninstall", "--force"]);
    assert!(ran.stderr.contains("stays") && ran.stderr.contains("stranger"), "{}", ran.stderr);
    assert!(!ran.printed().contains("kind: Namespace\n"));
}
