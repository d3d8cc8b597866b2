//! Asks the cluster what it says of its networks. What may not be read, or is not there, is said on stderr and left out:
//! whether the rest suffices is decided in `networks`.

use std::future::Future;

use anyhow::Result;
use k8s_openapi::api::{
    core::v1::{ConfigMap, Node, Pod, Service, ServiceSpec},
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Error,
    api::{ListParams, ObjectMeta, PostParams},
};

use super::networks::Facts;
use crate::cluster::{Cluster, find};

/// As many pods as are looked at: enough to see that addresses come from elsewhere.
const PODS: u32 = 500;
/// No Service can have it: it is set aside for documents.
const IMPOSSIBLE: &str = "203.0.113.1";

/// Everything that [`super::networks`] decides by.
pub(crate) async fn gather(cluster: &Cluster) -> Result<Facts> {
    let client = || cluster.client.clone();
    let (nodes, service_cidrs): (Api<Node>, Api<ServiceCIDR>) = (Api::all(client()), Api::all(client()));
    let pods: Api<Pod> = Api::all(client());
    let (system_pods, system_maps): (Api<Pod>, Api<ConfigMap>) =
        (Api::namespaced(client(), "kube-system"), Api::namespaced(client(), "kube-system"));
    let all = ListParams::default();
    let components = ListParams::default().labels("component in (kube-apiserver, kube-controller-manager)");
    let running = ListParams::default().fields("status.phase=Running,spec.hostNetwork=false").limit(PODS);

    let nodes = lenient("Nodes", nodes.list(&all)).await.map(|list| list.items).unwrap_or_default();
    let service_cidrs =
        lenient("ServiceCIDRs", service_cidrs.list(&all)).await.map(|list| list.items).unwrap_or_default();
    let kubeadm = lenient("ConfigMap kube-system/kubeadm-config", system_maps.get("kubeadm-config")).await;
    let components = lenient("Pods of kube-system", system_pods.list(&components)).await;
    let running = lenient("Pods", pods.list(&running)).await;

    let containers =
        components.into_iter().flat_map(|list| list.items).filter_map(|pod| pod.spec).flat_map(|spec| spec.containers);
    Ok(Facts {
        node_networks: nodes.iter().filter_map(|node| node.spec.as_ref()).flat_map(networks_of).collect(),
        node_addresses: nodes.iter().flat_map(addresses_of).collect(),
        service_networks: service_cidrs.into_iter().filter_map(|object| object.spec?.cidrs).flatten().collect(),
        kubeadm: kubeadm.and_then(|map| map.data?.remove("ClusterConfiguration")),
        arguments: containers.flat_map(|container| [container.command, container.args]).flatten().flatten().collect(),
        refusal: refusal(cluster).await,
        pods: running.into_iter().flat_map(|list| list.items).filter_map(place).collect(),
    })
}

/// The cluster's DNS resolvers.
pub(crate) async fn resolvers(cluster: &Cluster) -> Result<Vec<String>> {
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "kube-system");
    let dns =
        find("the Service of the cluster's DNS", services.list(&ListParams::default().labels("k8s-app=kube-dns")))
            .await?;
    let addresses =
        dns.into_iter().flat_map(|list| list.items).filter_map(|service| service.spec?.cluster_ips).flatten();
    let mut addresses: Vec<_> = addresses.filter(|ip| ip != "None").collect();
    addresses.sort();
    Ok(addresses)
}

async fn lenient<T>(what: &str, answer: impl Future<Output = kube::Result<T>>) -> Option<T> {
    find(what, answer).await.unwrap_or_else(|error| {
        eprintln!("note: {error:#}");
        None
    })
}

fn networks_of(spec: &k8s_openapi::api::core::v1::NodeSpec) -> Vec<String> {
    spec.pod_cidrs.clone().or_else(|| Some(vec![spec.pod_cidr.clone()?])).unwrap_or_default()
}

fn addresses_of(node: &Node) -> Vec<String> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses.filter(|address| address.type_ == "InternalIP").map(|address| address.address.clone()).collect()
}

fn place(pod: Pod) -> Option<(String, String)> {
    let name = format!("{}/{}", pod.metadata.namespace?, pod.metadata.name?);
    Some((name, pod.status?.pod_ip?))
}

/// What the API server says to a Service with an address that no Service can have: it names those it could. Nothing is
/// made: it is a dry run.
async fn refusal(cluster: &Cluster) -> Option<String> {
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "default");
    let service = Service {
        metadata: ObjectMeta { name: Some("hauberk-asks".to_owned()), ..ObjectMeta::default() },
        spec: Some(ServiceSpec {
            cluster_ip: Some(IMPOSSIBLE.to_owned()),
            ports: Some(vec![k8s_openapi::api::core::v1::ServicePort { port: 1, ..Default::default() }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    match services.create(&PostParams { dry_run: true, ..PostParams::default() }, &service).await {
        Err(Error::Api(status)) => Some(status.message.clone()),
        _ => None,
    }
}
