//! The webhook's CA and certificate change under load, and nobody notices.

use std::time::{Duration, Instant};

use hauberk_kubernetes::MeshConfig;
use hauberk_mesh::{CONTROL_NAMESPACE, WEBHOOK_CONFIGURATION, WEBHOOK_SECRET};
use hauberk_webhook::{Lifetimes, Limits};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, task::JoinSet};

use super::{
    bytes::handshake,
    scene::{LIFETIMES, Replica, Scene, create, injected, pod, until, until_within},
};

/// Of each API server.
const AT_ONCE: usize = 40;
const BETWEEN: Duration = Duration::from_millis(700);

/// What was seen of pods that were made.
#[derive(Debug, Default)]
struct Seen {
    made: usize,
    uninjected: usize,
    refused: Vec<String>,
}

/// Makes pods, by one API server, until `stop`.
async fn make_pods(client: Client, mut stop: watch::Receiver<bool>) -> Seen {
    let mut seen = Seen::default();
    while !*stop.borrow() {
        let mut lot = JoinSet::new();
        for number in 0..AT_ONCE {
            let client = client.clone();
            // Of two namespaces: in one a review that failed would let the pod in, in the other refuse it.
            let namespace = if number % 2 == 0 { "shop" } else { "bank" };
            lot.spawn(async move { create(client, namespace, &pod(json!({ "generateName": "web-" }))).await });
        }
        while let Some(made) = lot.join_next().await {
            seen.made += 1;
            match made.expect("no panic") {
                Ok(pod) => seen.uninjected += usize::from(!injected(&pod)),
                Err(error) => seen.refused.push(error.to_string()),
            }
        }
        let _ = tokio::time::timeout(BETWEEN, stop.wait_for(|stop| *stop)).await;
    }
    seen
}

struct Load {
    stop: watch::Sender<bool>,
    makers: JoinSet<Seen>,
}

impl Load {
    async fn start(scene: &Scene, api_servers: u16) -> Self {
        scene.plane.namespace("shop", &[("hauberk.dev/inject", "enabled")]).await.expect("a namespace");
        scene.plane.namespace("bank", &[("hauberk.dev/tls", "required")]).await.expect("a namespace");
        let (stop, stopped) = watch::channel(false);
        let mut makers = JoinSet::new();
        for number in 0..api_servers {
            makers.spawn(make_pods(scene.plane.client_of(number), stopped.clone()));
        }
        Self { stop, makers }
    }

    async fn check(mut self, least: usize) {
        self.stop.send_replace(true);
        while let Some(seen) = self.makers.join_next().await {
            let seen = seen.expect("no panic");
            println!("{} pods, {} uninjected, {} refused", seen.made, seen.uninjected, seen.refused.len());
            assert!(seen.made >= least, "the load was no load: {} pods", seen.made);
            assert!(
                seen.uninjected == 0 && seen.refused.is_empty(),
                "{} uninjected, {:?}",
                seen.uninjected,
                seen.refused
            );
        }
    }
}

async fn secret(scene: &Scene) -> Option<Secret> {
    Api::<Secret>::namespaced(scene.plane.client(), CONTROL_NAMESPACE).get_opt(WEBHOOK_SECRET).await.expect("asked")
}

async fn value(scene: &Scene, key: &str) -> Option<String> {
    let data = secret(scene).await?.data?;
    Some(String::from_utf8(data.get(key)?.0.clone()).expect("text"))
}

/// Every review comes over a connection of its own, so that the API server verifies the certificate each time.
async fn three(scene: &Scene, lifetimes: Lifetimes) -> [Replica; 3] {
    let limits = Limits { keep_alive: false, drain: Duration::ZERO, ..Limits::default() };
    [
        scene.replica_with("webhook-0", lifetimes, limits).await,
        scene.replica_with("webhook-1", lifetimes, limits).await,
        scene.replica_with("webhook-2", lifetimes, limits).await,
    ]
}

/// Whether a client that believes `bundle` gets through the TLS handshake of every replica.
async fn all_are_believed(replicas: &[Replica; 3], bundle: &str) -> bool {
    for replica in replicas {
        if !handshake(replica.reviews, bundle).await {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_and_its_ca_rotate_by_themselves_while_two_api_servers_make_pods() {
    let lifetimes =
        Lifetimes { ca: Duration::from_secs(60), leaf: Duration::from_secs(15), settle: Duration::from_secs(2) };
    let scene = Scene::new(2, MeshConfig::default()).await;
    scene.publish_trust();
    let replicas = three(&scene, lifetimes).await;
    scene.register();
    scene.serving(&replicas.each_ref()).await;
    let first = scene.bundle().await.expect("registered");
    assert!(all_are_believed(&replicas, &first).await);
    let started = Instant::now();
    let load = Load::start(&scene, 2).await;

    until_long("the next CA is in the registration, beside the first", async || {
        scene.bundle().await.is_some_and(|bundle| bundle.starts_with(&first) && bundle.len() > first.len())
    })
    .await;
    println!("published after {:?}", started.elapsed());
    let both = scene.bundle().await.expect("registered");
    let next = both.strip_prefix(&first).expect("after the first").to_owned();
    until_long("the next CA signs", async || value(&scene, "ca.crt").await.as_ref() == Some(&next)).await;
    println!("adopted after {:?}", started.elapsed());
    until("every replica serves what it signed", async || all_are_believed(&replicas, &next).await).await;
    assert!(all_are_believed(&replicas, &first).await, "who has not heard of the next CA is led to the first");
    until_long("the first CA is gone", async || scene.bundle().await.as_ref() == Some(&next)).await;
    println!("dropped after {:?}", started.elapsed());
    assert!(all_are_believed(&replicas, &next).await);

    load.check(500).await;
    for replica in replicas {
        replica.end().await;
    }
}

/// The lifetimes are a minute.
async fn until_long(what: &str, holds: impl AsyncFnMut() -> bool) {
    until_within(Duration::from_secs(180), what, holds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_deletes_the_secret_rotates_and_no_pod_is_missed() {
    let scene = Scene::new(2, MeshConfig::default()).await;
    scene.publish_trust();
    let replicas = three(&scene, LIFETIMES).await;
    scene.register();
    scene.serving(&replicas.each_ref()).await;
    let first = scene.bundle().await.expect("registered");
    let load = Load::start(&scene, 2).await;
    let secrets = Api::<Secret>::namespaced(scene.plane.client(), CONTROL_NAMESPACE);
    secrets.delete(WEBHOOK_SECRET, &DeleteParams::default()).await.expect("deleted");
    until("another CA signs", async || value(&scene, "ca.crt").await.is_some_and(|ca| ca != first)).await;
    let next = value(&scene, "ca.crt").await.expect("there");
    until("every replica serves what it signed", async || all_are_believed(&replicas, &next).await).await;
    assert_eq!(scene.bundle().await, Some(format!("{first}{next}")), "what is still valid is still believed");
    load.check(50).await;

    // Another replica goes on from what the Secret says.
    let [first_replica, second, third] = replicas;
    first_replica.end().await;
    second.end().await;
    third.end().await;
    let late = scene.replica("webhook-3", LIFETIMES).await;
    scene.serving(&[&late]).await;
    assert_eq!(value(&scene, "ca.crt").await, Some(next));
    late.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bundle_comes_back_when_somebody_clears_it_and_installing_again_does_not_touch_it() {
    let (scene, replica) = Scene::running().await;
    let bundle = scene.bundle().await.expect("registered");
    let before = scene.registration().await.metadata.resource_version;
    scene.register();
    assert_eq!(scene.registration().await.metadata.resource_version, before, "nothing to change");

    let api = Api::<MutatingWebhookConfiguration>::all(scene.plane.client());
    let cleared = json!({ "webhooks": [{ "name": "pod.hauberk.dev", "clientConfig": { "caBundle": null } }] });
    api.patch(WEBHOOK_CONFIGURATION, &PatchParams::default(), &Patch::Strategic(cleared)).await.expect("cleared");
    until("it is back", async || scene.bundle().await.as_ref() == Some(&bundle)).await;

    // Registered anew, as after an uninstall.
    api.delete(WEBHOOK_CONFIGURATION, &DeleteParams::default()).await.expect("deleted");
    assert!(api.get_opt(WEBHOOK_CONFIGURATION).await.expect("asked").is_none());
    scene.register();
    until("it is there", async || scene.bundle().await.as_ref() == Some(&bundle)).await;
    assert_eq!(value(&scene, "ca.crt").await, Some(bundle));
    replica.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_broken_is_mended_and_what_was_served_is_served_on() {
    let (scene, replica) = Scene::running().await;
    let first = scene.bundle().await.expect("registered");
    let secrets = Api::<Secret>::namespaced(scene.plane.client(), CONTROL_NAMESPACE);
    let broken = json!({ "stringData": { "tls.key": "no key" } });
    secrets.patch(WEBHOOK_SECRET, &PatchParams::default(), &Patch::Merge(&broken)).await.expect("broken");
    until("it is mended", async || value(&scene, "tls.key").await.is_some_and(|key| key != "no key")).await;
    assert!(handshake(replica.reviews, &first).await);
    assert!(replica.metric(r#"hauberk_webhook_certificate_changes_total{result="bad"}"#).await >= 1.0);
    replica.end().await;
}
