//! The injection before a real API server: what it makes of generated pods is valid where the pods were.

use anyhow::{Context as _, Result};
use futures_util::{StreamExt, stream};
use hauberk_e2e::ControlPlane;
use hauberk_kubernetes::MeshConfig;
use hauberk_webhook::inject::{
    Cluster, Context, Namespace, Outcome, inject,
    testing::{Sample, numbered},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PostParams},
};
use serde_json::{Value, json};

/// Where admission mounts the ServiceAccount's API token.
const API_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const OURS: [&str; 2] = ["hauberk-init", "hauberk-proxy"];

fn patched(pod: &Value, namespace: &Namespace, native_sidecars: bool) -> Option<Value> {
    let addr = |text: &str| text.parse().expect("an address");
    let cluster = Cluster {
        trust_roots: "PEM".to_owned(),
        identity_addr: addr("10.96.0.20:8080"),
        destination_addr: addr("10.96.0.21:8086"),
        api_server: Some(addr("10.96.0.1:443")),
        native_sidecars,
    };
    let config = MeshConfig::default();
    let context = Context { config: &config, cluster: &cluster, namespace, owner_kind: None };
    let Outcome::Inject(injection) = inject(pod, &context) else { return None };
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &injection.patch).expect("the patch fits the pod");
    Some(pod)
}

/// Untyped: our bindings must not drop what they do not know.
fn pods(client: Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client, namespace, &ApiResource::erase::<Pod>(&()))
}

async fn create(pods: &Api<DynamicObject>, pod: &Value, dry_run: bool) -> kube::Result<Value> {
    let pod: DynamicObject = serde_json::from_value(pod.clone()).expect("an object");
    let made = pods.create(&PostParams { dry_run, field_manager: None }, &pod).await?;
    Ok(serde_json::to_value(made).expect("an object"))
}

async fn plane() -> Result<ControlPlane> {
    let plane = ControlPlane::start().await?;
    plane.namespace("shop", &[]).await?;
    for account in ["web", "builder.v2"] {
        plane.service_account("shop", account).await?;
    }
    Ok(plane)
}

fn injectable(numbers: std::ops::Range<u64>) -> impl Iterator<Item = (Sample, Value)> {
    let samples = numbers.map(numbered).filter(|sample| sample.namespace.name == "shop");
    samples.filter_map(|sample| {
        let after = patched(&sample.pod, &sample.namespace, sample.native_sidecars)?;
        Some((sample, after))
    })
}

/// Whether the API server took the pod as it was, and as it is patched; or how the two differ.
async fn compare(pods: &Api<DynamicObject>, sample: &Sample, after: &Value) -> Result<bool> {
    let before = create(pods, &sample.pod, true).await;
    let after = create(pods, after, true).await;
    match (before, after) {
        (Ok(_), Ok(_)) => Ok(true),
        (Err(_), Err(_)) => Ok(false),
        (Ok(_), Err(error)) => Err(error).context(format!("valid before, refused after: {:#}", sample.pod)),
        (Err(error), Ok(_)) => Err(error).context(format!("refused before, valid after: {:#}", sample.pod)),
    }
}

#[tokio::test]
async fn an_injected_pod_is_valid_where_the_pod_was() {
    let plane = plane().await.expect("a control plane");
    let pods = pods(plane.client(), "shop");
    let all: Vec<_> = injectable(0..1000).collect();
    let compared = stream::iter(&all).map(|(sample, after)| compare(&pods, sample, after)).buffer_unordered(8);
    let compared: Vec<_> = compared.collect().await;
    let differing: Vec<_> = compared.iter().filter_map(|it| it.as_ref().err()).map(|it| format!("{it:#}")).collect();
    assert!(differing.is_empty(), "{} of {}:\n{}", differing.len(), all.len(), differing.join("\n"));
    let valid = compared.iter().filter(|it| matches!(it, Ok(true))).count();
    println!("{valid} of {} were valid, before and after", all.len());
    assert!(
        valid * 10 > all.len() * 7 && valid > 300,
        "too few of the generated pods are valid: {valid} of {}",
        all.len()
    );
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array().into_iter().flatten());
    lists.into_iter().flatten()
}

fn mounts_at<'a>(container: &'a Value, path: &str) -> Vec<&'a str> {
    let mounts = container["volumeMounts"].as_array().into_iter().flatten();
    mounts.filter(|mount| mount["mountPath"] == path).filter_map(|mount| mount["name"].as_str()).collect()
}

/// What kubelet would be told of one of our containers.
fn check_ours(pod: &Value) {
    let automount = pod["spec"]["automountServiceAccountToken"] != json!(false);
    let mut seen = 0;
    for container in containers(pod) {
        let at = mounts_at(container, API_TOKEN);
        if OURS.iter().any(|name| container["name"] == *name) {
            assert_eq!(at, ["hauberk-empty"], "{container:#}");
            let all = container["volumeMounts"].as_array().expect("mounts");
            assert!(all.iter().all(|it| it["name"].as_str().expect("a name").starts_with("hauberk-")), "{container:#}");
            seen += 1;
        } else if automount {
            // The positive control: admission did mount it where it should.
            assert!(matches!(at.as_slice(), [name] if name.starts_with("kube-api-access-")), "{container:#}");
        }
    }
    assert_eq!(seen, 2, "{pod:#}");
}

#[tokio::test]
async fn created_pods_have_no_api_token_in_our_containers_and_are_as_they_were_when_injected_again() {
    let plane = plane().await.expect("a control plane");
    let pods = pods(plane.client(), "shop");
    let mut made = 0;
    for (sample, after) in injectable(2000..2120) {
        let Ok(created) = create(&pods, &after, false).await else { continue };
        made += 1;
        check_ours(&created);
        // As another webhook's turn would find it: defaulted, and with what admission added.
        let mut again = patched(&created, &sample.namespace, sample.native_sidecars).expect("it was injected before");
        again["metadata"] = json!({"generateName": "again-", "annotations": again["metadata"]["annotations"]});
        let again = create(&pods, &again, true).await.expect("it is valid still");
        assert_eq!(sorted(&again["spec"]), sorted(&created["spec"]));
    }
    assert!(made >= 40, "only {made} pods were made");
}

/// Our volumes come last each time: what admission adds is before them the second time.
fn sorted(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let volumes = spec["volumes"].as_array_mut().expect("ours are there");
    volumes.sort_by_key(|volume| volume["name"].as_str().unwrap_or_default().to_owned());
    spec
}
