//! Pod Security: what it keeps out, and that the control plane itself needs nothing that it forbids.

use hauberk_e2e::ControlPlane;
use hauberk_kubernetes::MeshConfig;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use serde_json::{Value, json};

use super::scene::{Scene, create, injected, pod};

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_enforces_baseline_gets_no_pod_that_it_would_refuse_and_is_told_why() {
    let (scene, replica) = Scene::running().await;
    for level in ["baseline", "restricted", "privileged"] {
        let labels = [("hauberk.dev/inject", "enabled"), (ENFORCE, level)];
        scene.plane.namespace(level, &labels).await.expect("a namespace");
    }
    for level in ["baseline", "restricted"] {
        let made = create(scene.plane.client(), level, &pod(json!({ "generateName": "web-" }))).await;
        let why = made.expect_err("refused").to_string();
        let sentence = format!("namespace {level} enforces the Pod Security level {level}, which forbids NET_ADMIN");
        assert!(why.contains(&sentence), "{why}");
        assert!(why.contains(r#"admission webhook "namespace.hauberk.dev" denied the request"#), "{why}");
    }
    let made = create(scene.plane.client(), "privileged", &pod(json!({ "generateName": "web-" }))).await;
    assert!(injected(&made.expect("let in")));
    // What is not injected is none of ours.
    let disabled = json!({ "generateName": "web-", "labels": { "hauberk.dev/inject": "disabled" } });
    assert!(!injected(&create(scene.plane.client(), "baseline", &pod(disabled)).await.expect("let in")));
    replica.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_planes_own_pods_pass_restricted() {
    let plane = ControlPlane::start().await.expect("it starts");
    plane.namespace("strict", &[(ENFORCE, "restricted")]).await.expect("a namespace");
    let pods = kube::Api::<Pod>::namespaced(plane.client(), "strict");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let refused = pods.create(&dry, &pod(json!({ "generateName": "web-" }))).await.expect_err("enforced").to_string();
    assert!(refused.contains("violates PodSecurity \"restricted"), "{refused}");

    let mut deployments = 0;
    for mesh in [MeshConfig::default(), MeshConfig { high_availability: true, ..MeshConfig::default() }] {
        for object in hauberk_deploy::manifests(&mesh) {
            if object["kind"] != "Deployment" {
                continue;
            }
            deployments += 1;
            let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
            if !plane_has(&plane, &name).await {
                plane.service_account("strict", &name).await.expect("an account");
            }
            let mut made: Value = object["spec"]["template"].clone();
            made["metadata"]["generateName"] = json!(format!("{name}-"));
            let made: Pod = serde_json::from_value(made).expect("a pod");
            pods.create(&dry, &made).await.unwrap_or_else(|error| panic!("{name} under restricted: {error}"));
        }
    }
    assert_eq!(deployments, 6);
}

async fn plane_has(plane: &ControlPlane, account: &str) -> bool {
    let accounts = kube::Api::<k8s_openapi::api::core::v1::ServiceAccount>::namespaced(plane.client(), "strict");
    accounts.get_opt(account).await.expect("asked").is_some()
}
