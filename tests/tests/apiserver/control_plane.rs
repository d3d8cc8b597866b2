//! The control plane that the other tests stand on.

use std::time::Instant;

use anyhow::Result;
use hauberk_e2e::ControlPlane;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewStatus},
    core::v1::{Namespace, Pod, Service},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

/// The audience of the tokens that are reviewed.
const AUDIENCE: &str = "tests.hauberk.dev";

fn pod(name: &str, account: &str) -> Pod {
    let spec = json!({ "serviceAccountName": account, "containers": [{ "name": "app", "image": "app" }] });
    serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).expect("a pod")
}

async fn review(client: Client, token: &str) -> Result<TokenReviewStatus> {
    let spec = json!({ "token": token, "audiences": [AUDIENCE] });
    let review: TokenReview = serde_json::from_value(json!({ "spec": spec }))?;
    let answer = Api::all(client).create(&PostParams::default(), &review).await?;
    Ok(answer.status.expect("a status"))
}

#[tokio::test]
async fn a_control_plane_creates_a_namespace_a_pod_and_a_token_bound_to_it() {
    let start = Instant::now();
    let plane = ControlPlane::start().await.expect("it starts");
    println!("a control plane: {:?}", start.elapsed());
    let start = Instant::now();
    plane.namespace("shop", &[("hauberk.dev/inject", "enabled")]).await.expect("a namespace");
    println!("a namespace: {:?}", start.elapsed());
    plane.service_account("shop", "web").await.expect("an account");
    let pods = Api::<Pod>::namespaced(plane.client(), "shop");
    let created = pods.create(&PostParams::default(), &pod("web-0", "web")).await.expect("a pod");
    let token = plane.token("shop", "web", Some(AUDIENCE), Some("web-0")).await.expect("a token");

    let status = review(plane.client(), &token).await.expect("a review");
    let user = status.user.expect("the API server knows it");
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:shop:web"));
    let extra = user.extra.expect("claims of the pod");
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["web-0"]);
    assert_eq!(Some(&extra["authentication.kubernetes.io/pod-uid"][0]), created.metadata.uid.as_ref());

    // The API server remembers for seconds what it said of a token: this one it has not seen.
    let token = plane.token("shop", "web", Some(AUDIENCE), Some("web-0")).await.expect("a token");
    // Without a kubelet nobody would confirm its end.
    pods.delete("web-0", &DeleteParams::default().grace_period(0)).await.expect("it is deleted");
    let status = review(plane.client(), &token).await.expect("a review");
    assert_ne!(status.authenticated, Some(true), "its pod is gone: {status:?}");
}

#[tokio::test]
async fn two_control_planes_side_by_side_are_strangers() {
    let (one, other) = tokio::try_join!(ControlPlane::start(), ControlPlane::start()).expect("both start");
    one.namespace("shop", &[]).await.expect("a namespace");
    let names = |list: Vec<Namespace>| list.into_iter().filter_map(|one| one.metadata.name).collect::<Vec<_>>();
    let seen = async |client: Client| names(Api::all(client).list(&ListParams::default()).await.expect("a list").items);
    assert!(seen(one.client()).await.contains(&"shop".to_owned()));
    assert!(!seen(other.client()).await.contains(&"shop".to_owned()));
    assert_ne!(one.ca_pem(), other.ca_pem());
}

#[tokio::test]
async fn several_api_servers_share_one_store_and_write_down_who_asked_for_what() {
    let plane = ControlPlane::options().api_servers(2).audit().start().await.expect("it starts");
    plane.namespace("shop", &[]).await.expect("a namespace");
    let seen = Api::<Namespace>::all(plane.client_of(1)).get("shop").await;
    assert!(seen.is_ok(), "the other API server knows it: {seen:?}");

    let eve = Api::<Pod>::namespaced(plane.client_as("eve", &["system:authenticated"]), "shop");
    let denied = eve.list(&ListParams::default()).await.expect_err("she has no rights");
    assert!(matches!(&denied, kube::Error::Api(status) if status.code == 403), "{denied:?}");
    let token = plane.token("shop", "default", None, None).await.expect("a token");
    let account = Api::<Pod>::namespaced(plane.client_with_token(&token), "shop");
    let denied = account.list(&ListParams::default()).await.expect_err("it has no rights").to_string();
    assert!(denied.contains("system:serviceaccount:shop:default"), "{denied}");

    let audit = plane.audit().expect("an audit log");
    let hers = audit.iter().find(|event| event["impersonatedUser"]["username"] == "eve").expect("she is in it");
    assert_eq!((&hers["verb"], &hers["objectRef"]["resource"]), (&json!("list"), &json!("pods")), "{hers}");
}

#[tokio::test]
async fn services_get_addresses_of_both_families() {
    let plane = ControlPlane::start().await.expect("it starts");
    let spec = json!({ "ipFamilyPolicy": "RequireDualStack", "ports": [{ "port": 80 }] });
    let service: Service = serde_json::from_value(json!({ "metadata": { "name": "web" }, "spec": spec })).expect("one");
    let services = Api::<Service>::namespaced(plane.client(), "default");
    let created = services.create(&PostParams::default(), &service).await.expect("it is created");
    let ips = created.spec.and_then(|spec| spec.cluster_ips).expect("addresses");
    assert!(ips.len() == 2 && ips[0].starts_with("10.96.") && ips[1].starts_with("fd00:10:96:"), "{ips:?}");
}
