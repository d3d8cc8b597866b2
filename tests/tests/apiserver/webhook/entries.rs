//! The entries of the registration: which pods reach the webhook, and what happens to them when nobody answers.

use std::collections::BTreeMap;

use hauberk_kubernetes::MeshConfig;
use hauberk_mesh::{TRUST_MAP, TlsMode};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::cli::hauberk;

use super::scene::{LIFETIMES, Scene, create, injected, pod, until};

type Labels = &'static [(&'static str, &'static str)];

const ENABLED: (&str, &str) = ("hauberk.dev/inject", "enabled");
const DISABLED: (&str, &str) = ("hauberk.dev/inject", "disabled");
const REQUIRED: (&str, &str) = ("hauberk.dev/tls", "required");
const OPTIONAL: (&str, &str) = ("hauberk.dev/tls", "optional");

/// What becomes of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Injected,
    LetIn,
    Refused,
}
use Fate::{Injected, LetIn, Refused};

/// Namespace, pod, fate with the webhook, fate without.
type Case = (Labels, Labels, Fate, Fate);

const OPTIONAL_MESH: &[Case] = &[
    (&[ENABLED], &[], Injected, LetIn),
    (&[ENABLED], &[ENABLED], Injected, LetIn),
    (&[ENABLED], &[DISABLED], LetIn, LetIn),
    (&[], &[], LetIn, LetIn),
    (&[], &[ENABLED], Injected, LetIn),
    (&[], &[DISABLED], LetIn, LetIn),
    (&[REQUIRED], &[], Injected, Refused),
    (&[ENABLED, REQUIRED], &[], Injected, Refused),
    (&[REQUIRED], &[DISABLED], Refused, Refused),
    (&[DISABLED], &[ENABLED], LetIn, LetIn),
    (&[DISABLED, REQUIRED], &[ENABLED], LetIn, LetIn),
    // What is misspelled reaches the webhook where somebody asked for it, and is refused there.
    (&[ENABLED], &[("hauberk.dev/inject", "ture")], Refused, LetIn),
    (&[ENABLED, ("hauberk.dev/tls", "requierd")], &[], Refused, LetIn),
];

const REQUIRED_MESH: &[Case] = &[
    (&[ENABLED], &[], Injected, Refused),
    (&[ENABLED], &[DISABLED], Refused, Refused),
    (&[ENABLED, OPTIONAL], &[], Injected, LetIn),
    (&[ENABLED, REQUIRED], &[], Injected, Refused),
    (&[REQUIRED], &[], Injected, Refused),
    (&[], &[], LetIn, LetIn),
    (&[], &[ENABLED], Injected, LetIn),
];

async fn fates(scene: &Scene, cases: &[Case]) -> Vec<(Fate, String)> {
    let mut fates = Vec::new();
    for (number, (_, labels, ..)) in cases.iter().enumerate() {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let pod = pod(json!({ "generateName": "web-", "labels": labels }));
        fates.push(match create(scene.plane.client(), &format!("case-{number}"), &pod).await {
            Ok(pod) => (if injected(&pod) { Injected } else { LetIn }, String::new()),
            Err(error) => (Refused, error.to_string()),
        });
    }
    fates
}

async fn walk(tls: TlsMode, cases: &[Case]) {
    let scene = Scene::new(1, MeshConfig { tls, ..MeshConfig::default() }).await;
    scene.publish_trust();
    for (number, (labels, ..)) in cases.iter().enumerate() {
        scene.plane.namespace(&format!("case-{number}"), labels).await.expect("a namespace");
    }
    let replica = scene.replica("webhook-0", LIFETIMES).await;
    scene.register();
    scene.serving(&[&replica]).await;
    for ((fate, why), case) in fates(&scene, cases).await.iter().zip(cases) {
        assert_eq!(*fate, case.2, "with the webhook, {case:?}: {why}");
        assert!(*fate != Refused || why.contains("hauberk: "), "the webhook says why: {why}");
    }
    // Where the webhook itself runs, nobody has to be asked: else it could not start.
    for system in ["hauberk", "kube-system"] {
        let namespaces = Api::<Namespace>::all(scene.plane.client());
        let labels = json!({ "metadata": { "labels": BTreeMap::from([ENABLED, REQUIRED]) } });
        namespaces.patch(system, &PatchParams::default(), &Patch::Merge(&labels)).await.expect("labelled");
    }
    let restricted = restricted_pod();
    replica.end().await;
    for system in ["hauberk", "kube-system"] {
        let made = create(scene.plane.client(), system, &restricted).await.expect("let in");
        assert!(!injected(&made), "{system}");
    }
    for ((fate, why), case) in fates(&scene, cases).await.iter().zip(cases) {
        assert_eq!(*fate, case.3, "without the webhook, {case:?}: {why}");
        assert!(*fate != Refused || why.contains("failed calling webhook"), "{why}");
    }
    // The first case asks for the mesh: one pod came by the webhook, one while it was away.
    let ran = hauberk(&scene.plane, &["coverage", "-n", "case-0", "-o", "json"]);
    let found: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"));
    let let_in = usize::from(cases[0].3 == LetIn);
    let missing: Vec<_> = found["missing"].as_array().into_iter().flatten().collect();
    assert_eq!((found["meshed"].as_u64(), missing.len(), ran.ok), (Some(1), let_in, let_in == 0), "{ran:?}");
    assert!(missing.iter().all(|it| it["reason"] == "not-injected"), "{ran:?}");
}

/// The control namespace takes no other.
fn restricted_pod() -> k8s_openapi::api::core::v1::Pod {
    serde_json::from_value(json!({
        "metadata": { "generateName": "web-" },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "app", "image": "app",
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    }))
    .expect("a pod")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_entry_sends_what_it_should_and_without_the_webhook_only_required_refuses() {
    walk(TlsMode::Optional, OPTIONAL_MESH).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_mesh_requires_mtls_labelled_namespaces_refuse_without_the_webhook() {
    walk(TlsMode::Required, REQUIRED_MESH).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_meshs_settings_a_pod_is_let_in_or_refused_by_its_entry_and_told_why() {
    let scene = Scene::new(1, MeshConfig::default()).await;
    for (name, labels) in [("shop", &[ENABLED]), ("bank", &[REQUIRED])] {
        scene.plane.namespace(name, labels).await.expect("a namespace");
    }
    // Identity has not published its trust roots.
    let replica = scene.replica("webhook-0", LIFETIMES).await;
    scene.register();
    until("the registration holds the CA", async || scene.bundle().await.is_some()).await;
    assert!(replica.ask("/ready").await.contains("pending: trust-roots\n"), "{}", replica.ask("/ready").await);
    let series = r#"hauberk_webhook_reviews_total{entry="namespace.hauberk.dev",decision="undecided",reason="settings-pending"}"#;
    until("the API server asks", async || {
        let made = create(scene.plane.client(), "shop", &pod(json!({ "generateName": "web-" }))).await.expect("let in");
        assert!(!injected(&made));
        replica.metric(series).await > 0.0
    })
    .await;
    let refused = create(scene.plane.client(), "bank", &pod(json!({ "generateName": "web-" }))).await;
    let why = refused.expect_err("refused").to_string();
    assert!(why.contains("hauberk: refused") && why.contains("trust-roots not known yet"), "{why}");

    scene.publish_trust();
    scene.serving(&[&replica]).await;
    let made = create(scene.plane.client(), "bank", &pod(json!({ "generateName": "web-" }))).await.expect("let in");
    assert!(injected(&made));

    // What was known stays in force when it is taken away.
    let maps = Api::<ConfigMap>::namespaced(scene.plane.client(), "hauberk");
    maps.delete(TRUST_MAP, &Default::default()).await.expect("deleted");
    let series = r#"hauberk_webhook_input_valid{input="trust-roots"}"#;
    until("the webhook sees it", async || replica.metric(series).await == 0.0).await;
    let made = create(scene.plane.client(), "bank", &pod(json!({ "generateName": "web-" }))).await.expect("let in");
    assert!(injected(&made));
    replica.end().await;
}
