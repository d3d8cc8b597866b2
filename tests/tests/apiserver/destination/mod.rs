//! Destination against a real API server, as its own ServiceAccount with the rights that `install` grants.

mod kube_proxy;
mod oracle;
mod relay;
mod relist;
mod services;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hauberk_destination::{Caller, Hub, KubernetesSource, Metrics, Place, Query, Told};
use hauberk_e2e::ControlPlane;
use hauberk_kubernetes::Readiness;
use hauberk_mesh::{CONTROL_NAMESPACE, DESTINATION_ACCOUNT, TrustDomain};
use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// Destination's source, following the cluster.
struct Following {
    hub: Arc<Hub>,
    metrics: Metrics,
    readiness: Readiness,
    _tasks: JoinSet<()>,
}

impl Following {
    async fn start(client: &Client) -> Self {
        let (metrics, readiness, stop) = (Metrics::default(), Readiness::default(), CancellationToken::new());
        let networks = "10.96.0.0/16,fd00:10:96::/112".parse().expect("valid");
        let domain = TrustDomain::default();
        let mut source = KubernetesSource::new(client, &domain, networks, metrics.clone(), &readiness);
        let hub = within("the first lists", source.first(&stop)).await.expect("it was not told to stop");
        let mut tasks = JoinSet::new();
        tasks.spawn(source.follow(hub.clone(), stop));
        Self { hub, metrics, readiness, _tasks: tasks }
    }

    /// What `text` is for who calls from that place.
    fn told(&self, text: &str, caller: &Caller) -> Arc<Told> {
        let domain = TrustDomain::default();
        let topic = Query::parse(text, &domain).expect("a valid query").topic();
        self.hub.subscribe(topic).current().told(caller, &domain)
    }

    /// Waits until `text` has exactly these endpoints.
    async fn becomes(&self, text: &str, expected: &[&str]) {
        let domain = TrustDomain::default();
        let expected: Vec<SocketAddr> = expected.iter().map(|it| it.parse().expect("an address")).collect();
        let mut subscription = self.hub.subscribe(Query::parse(text, &domain).expect("valid").topic());
        let reached = async {
            loop {
                let told = subscription.current().told(&Caller::default(), &domain);
                if told.answer().endpoints().into_keys().eq(expected.iter().copied()) {
                    return;
                }
                subscription.changed().await;
            }
        };
        within(text, reached).await;
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.unwrap_or_else(|_| panic!("{what}: not within {LONG:?}"))
}

fn at(node: &str, zone: &str, ip: &str) -> Caller {
    let place = Place { node: node.to_owned(), zone: Some(zone.to_owned()) };
    Caller { ip: ip.parse().ok(), place: Some(Arc::new(place)) }
}

/// A token of destination's account, which has its rights and no others.
async fn token(plane: &ControlPlane) -> String {
    plane.namespace(CONTROL_NAMESPACE, &[]).await.expect("a namespace");
    plane.service_account(CONTROL_NAMESPACE, DESTINATION_ACCOUNT).await.expect("an account");
    for object in hauberk_deploy::rbac(CONTROL_NAMESPACE) {
        if object["metadata"]["name"] == DESTINATION_ACCOUNT {
            create(plane, &object).await;
        }
    }
    plane.token(CONTROL_NAMESPACE, DESTINATION_ACCOUNT, None, None).await.expect("a token")
}

async fn create(plane: &ControlPlane, object: &Value) {
    let text = |field: &str| object[field].as_str().expect("a text").to_owned();
    let api_version = text("apiVersion");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version.as_str()));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &text("kind")));
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(plane.client(), namespace, &resource),
        None => Api::all_with(plane.client(), &resource),
    };
    let object = serde_json::from_value(object.clone()).expect("an object");
    api.create(&PostParams::default(), &object).await.unwrap_or_else(|error| panic!("{object:?}: {error}"));
}
