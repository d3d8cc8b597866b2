//! Pod Security admission: who refuses what, and the control plane under its strictest level.

use hauberk_mesh::CONTROL_NAMESPACE;
use serde_json::json;

use crate::scene::{Scene, account, pod};

#[test]
fn a_namespace_that_enforces_baseline_is_told_why_its_pods_cannot_be_meshed() {
    let scene = Scene::meshed("baseline", &[("pod-security.kubernetes.io/enforce", "baseline")]);
    scene.apply(&account("app"));
    let app = pod("app", json!({ "command": ["sleep", "1000000"] }), |_| {});
    let refusal = scene.try_apply(&app).expect_err("NET_ADMIN is not allowed there").to_string();
    assert!(refusal.contains("hauberk") && refusal.contains("NET_ADMIN") && refusal.contains("baseline"), "{refusal}");
}

#[test]
fn the_control_plane_runs_under_restricted() {
    let scene = Scene::meshed("onlooker", &[]);
    let namespace = scene.kind.get(&["namespace", CONTROL_NAMESPACE]).expect("a namespace");
    let level = &namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
    assert_eq!(level, "restricted", "nothing else is let in: {namespace}");
    scene.kind.wait(CONTROL_NAMESPACE, &["pod", "--all"], "condition=Ready").expect("all of it runs");
    let pods = scene.kind.get(&["pods", "-n", CONTROL_NAMESPACE]).expect("pods");
    assert!(pods["items"].as_array().is_some_and(|pods| pods.len() >= 3), "all of it is there: {pods}");
}
