//! Pods that are made through the API server come back in the mesh, however they are made.

use std::collections::BTreeMap;

use hauberk_kubernetes::proxy_of;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod, events::v1::Event};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::scene::{Scene, create, injected, pod, until};

async fn events(scene: &Scene) -> Vec<Event> {
    let api = Api::<Event>::namespaced(scene.plane.client(), "shop");
    let all = api.list(&ListParams::default()).await.expect("events").items;
    all.into_iter().filter(|event| event.reporting_controller.as_deref() == Some("hauberk.dev/webhook")).collect()
}

fn regards(event: &Event, kind: &str, name: &str) -> bool {
    let regarding = event.regarding.as_ref().expect("set");
    regarding.kind.as_deref() == Some(kind) && regarding.name.as_deref() == Some(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_back_mutated_and_valid_however_they_are_made() {
    let (scene, replica) = Scene::running().await;
    scene.plane.namespace("shop", &[("hauberk.dev/inject", "enabled")]).await.expect("a namespace");
    let pods = scene.pods("shop");
    let series = r#"hauberk_webhook_reviews_total{entry="namespace.hauberk.dev",decision="injected",reason=""}"#;
    assert_eq!(replica.metric(series).await, 0.0, "what was asked by dry run so far is not counted");

    // A dry run: mutated, and nothing left behind. That its event never comes is known once a later one is there.
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let asked = pods.create(&dry, &pod(json!({ "name": "dry" }))).await.expect("valid");
    assert!(injected(&asked));

    let named = pods.create(&PostParams::default(), &pod(json!({ "name": "named" }))).await.expect("valid");
    let told = proxy_of(named.spec.as_ref().expect("a spec")).expect("a proxy").expect("a valid one");
    assert_eq!(told.identity.to_string(), "default.shop.serviceaccount.identity.hauberk.cluster.local");
    assert_eq!(told.api_server, Some("10.96.0.1:443".parse().expect("an address")));

    let generated = create(scene.plane.client(), "shop", &pod(json!({ "generateName": "made-" }))).await;
    let generated = generated.expect("valid");
    assert!(injected(&generated) && generated.metadata.name.as_ref().is_some_and(|name| name.len() > 5));

    let applied = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "applied" },
        "spec": { "containers": [{ "name": "app", "image": "app" }] },
    });
    let apply = async || pods.patch("applied", &PatchParams::apply("kubectl"), &Patch::Apply(&applied)).await;
    let first = apply().await.expect("valid");
    assert!(injected(&first));
    let again = apply().await.expect("what was applied can be applied again");
    assert_eq!((&again.spec, &again.metadata.resource_version), (&first.spec, &first.metadata.resource_version));

    until("events are told", async || {
        let events = events(&scene).await;
        ["named", "made-", "applied"].iter().all(|name| events.iter().any(|event| regards(event, "Pod", name)))
    })
    .await;
    let events = events(&scene).await;
    assert!(!events.iter().any(|event| regards(event, "Pod", "dry")), "{events:#?}");
    assert!(events.iter().all(|event| event.reason.as_deref() == Some("MeshInjected")), "{events:#?}");
    assert_eq!(replica.metric(series).await, 3.0);

    let audit = scene.plane.audit().expect("an audit log");
    let annotations = audit.iter().filter_map(|event| event["annotations"].as_object());
    let decisions: Vec<_> = annotations.filter_map(|all| all.get("namespace.hauberk.dev/decision")).collect();
    assert!(decisions.contains(&&json!("injected")), "{decisions:?}");
    replica.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_deployment_are_injected_and_told_about_once_at_their_owner() {
    let (scene, replica) = Scene::running().await;
    scene.plane.namespace("shop", &[("hauberk.dev/inject", "enabled")]).await.expect("a namespace");
    let labels = BTreeMap::from([("app", "web")]);
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": { "name": "web" },
        "spec": {
            "replicas": 3, "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "app", "image": "app" }] } },
        },
    }))
    .expect("a deployment");
    let deployments = Api::<Deployment>::namespaced(scene.plane.client(), "shop");
    deployments.create(&PostParams::default(), &deployment).await.expect("created");
    let pods = scene.pods("shop");
    until("three pods are there", async || pods.list(&ListParams::default()).await.expect("pods").items.len() == 3)
        .await;
    let made = pods.list(&ListParams::default()).await.expect("pods").items;
    assert!(made.iter().all(injected));
    until("an event is told", async || !events(&scene).await.is_empty()).await;
    let owner = made[0].metadata.owner_references.as_ref().expect("owned")[0].clone();
    let events = events(&scene).await;
    assert_eq!(events.len(), 1, "{events:#?}");
    assert!(regards(&events[0], "ReplicaSet", &owner.name), "{events:#?}");
    assert_eq!(events[0].regarding.as_ref().and_then(|owner| owner.uid.clone()), Some(owner.uid));
    replica.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_follows_its_namespaces_label_at_once_is_injected() {
    let (scene, replica) = Scene::running().await;
    // The API server and the webhook see a label at different times: here the pod comes as fast as it can.
    for number in 0..20 {
        let name = format!("quick-{number}");
        scene.plane.namespace(&name, &[]).await.expect("a namespace");
        let labels: Value = json!({ "metadata": { "labels": { "hauberk.dev/inject": "enabled" } } });
        let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(scene.plane.client());
        namespaces.patch(&name, &PatchParams::default(), &Patch::Merge(&labels)).await.expect("labelled");
        // The API server's own view of the label may be late too; then it does not ask, and the pod is not counted.
        let asked = "hauberk_webhook_review_seconds_count";
        let before = replica.metric(asked).await;
        let made: Pod =
            create(scene.plane.client(), &name, &pod(json!({ "generateName": "web-" }))).await.expect("valid");
        if replica.metric(asked).await > before {
            assert!(injected(&made), "{name}: the API server asked, and the pod was not injected");
        }
    }
    replica.end().await;
}
