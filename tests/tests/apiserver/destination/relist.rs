//! Lists read again: the watch that was cut asks for what etcd has compacted away.

use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::api::{core::v1::ConfigMap, discovery::v1::EndpointSlice};
use kube::{
    Api, Config,
    api::{Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};

use super::*;
use relay::Relay;

const WEB: &str = "10.96.0.201:80";

fn slice(hosts: &[u8]) -> EndpointSlice {
    let endpoints: Vec<Value> = hosts.iter().map(|host| json!({ "addresses": [format!("192.0.2.{host}")] })).collect();
    serde_json::from_value(json!({
        "metadata": { "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    }))
    .expect("a slice")
}

/// A client with `token` that comes to the API server over `relay`.
fn over(relay: &Relay, plane: &ControlPlane, token: String) -> Client {
    let url = format!("https://{}", relay.at);
    let mut config = Config::new(url.parse().expect("a URL"));
    config.root_cert = Some(vec![der(plane.ca_pem())]);
    config.tls_server_name = Some(server(plane).ip().to_string());
    config.auth_info.token = Some(token.into());
    Client::try_from(config).expect("a client")
}

fn server(plane: &ControlPlane) -> SocketAddr {
    plane.url().trim_start_matches("https://").trim_end_matches('/').parse().expect("an address")
}

fn der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate").to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_read_again_after_the_watch_expired_sends_no_empty_interval() {
    // Without its cache the API server answers from etcd, whose history it cuts off each second.
    let options = ControlPlane::options().api_server_flag("--watch-cache=false");
    let plane = options.api_server_flag("--etcd-compaction-interval=1s").start().await.expect("it starts");
    plane.namespace("shop", &[]).await.expect("a namespace");
    let spec = json!({ "clusterIP": "10.96.0.201", "ports": [{ "port": 80 }] });
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "shop" }, "spec": spec });
    create(&plane, &service).await;
    let slices = Api::<EndpointSlice>::namespaced(plane.client(), "shop");
    let first = slices.create(&PostParams::default(), &slice(&[1, 2])).await.expect("a slice");

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let relay = Relay::start(listener, server(&plane)).expect("a relay");
    let token = token(&plane).await;
    let following = Following::start(&over(&relay, &plane, token)).await;
    assert!(following.readiness.pending().is_empty(), "all has been listed");
    following.becomes(WEB, &["192.0.2.1:8080", "192.0.2.2:8080"]).await;

    // Every state that a reader who keeps up is told of.
    let domain = TrustDomain::default();
    let mut subscription = following.hub.subscribe(Query::parse(WEB, &domain).expect("valid").topic());
    let (seen, mut reader) = (Arc::new(std::sync::Mutex::new(Vec::new())), JoinSet::new());
    let states = seen.clone();
    reader.spawn(async move {
        loop {
            let told = subscription.current().told(&Caller::default(), &domain);
            states.lock().expect("not poisoned").push(told.answer().endpoints().len());
            subscription.changed().await;
        }
    });

    relay.cut();
    slices.patch("web-1", &PatchParams::default(), &Patch::Merge(slice(&[2, 3]))).await.expect("changed");
    expired(&plane, &first.metadata.resource_version.expect("it has one")).await;
    assert_eq!(following.told(WEB, &Caller::default()).answer().endpoints().len(), 2, "what is known goes on counting");
    relay.mend();
    following.becomes(WEB, &["192.0.2.2:8080", "192.0.2.3:8080"]).await;
    let text = following.metrics.text();
    let failures = "hauberk_destination_watch_failures_total{resource=\"endpointslices\"}";
    assert!(text.contains(failures), "{text}");
    // Later changes come again.
    slices.patch("web-1", &PatchParams::default(), &Patch::Merge(slice(&[4]))).await.expect("changed");
    following.becomes(WEB, &["192.0.2.4:8080"]).await;
    reader.shutdown().await;
    let seen = seen.lock().expect("not poisoned");
    assert!(!seen.contains(&0), "no moment without an endpoint: {seen:?}");
}

/// Waits until nobody can watch from `version` on any more.
async fn expired(plane: &ControlPlane, version: &str) {
    let maps = Api::<ConfigMap>::namespaced(plane.client(), "shop");
    let slices = Api::<EndpointSlice>::namespaced(plane.client(), "shop");
    let compacted = async {
        for number in 0.. {
            // Without writes there is nothing to compact.
            let map =
                serde_json::from_value(json!({ "metadata": { "name": format!("map-{number}") } })).expect("a map");
            maps.create(&PostParams::default(), &map).await.expect("a map");
            let params = WatchParams::default().timeout(1);
            let mut watch = slices.watch(&params, version).await.expect("a watch").boxed();
            while let Some(event) = watch.next().await {
                match event {
                    Ok(WatchEvent::Error(status)) if status.code == 410 => return,
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 410 => return,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    within("etcd compacts", compacted).await;
}
