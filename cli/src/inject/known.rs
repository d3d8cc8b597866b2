//! Asks the cluster what `--manual` needs to know: settings, trust roots, addresses, namespaces.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context, Result, anyhow};
use hauberk_kubernetes::MeshConfig;
use hauberk_mesh::{
    CONFIG_KEY, CONFIG_MAP, DESTINATION_ACCOUNT, DESTINATION_PORT, IDENTITY_ACCOUNT, IDENTITY_PORT, TRUST_MAP,
    TRUST_ROOTS_KEY,
};
use hauberk_webhook::inject::{Cluster as Facts, Namespace};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace as Object, Node, Service};
use kube::{Api, ResourceExt, api::ListParams};

use super::manual::Known;
use crate::cluster::{Cluster, find, read};

/// The first minor version of kubelets that know native sidecars.
const NATIVE_SIDECARS: u32 = 29;

/// Everything; an error says what the cluster lacks.
pub(crate) async fn gather(cluster: &Cluster, control: &str, default: &str, names: &[String]) -> Result<Known> {
    let config = config(cluster, control).await?;
    let mut namespaces = BTreeMap::new();
    for name in names {
        let api: Api<Object> = Api::all(cluster.client.clone());
        if let Some(object) = find(&format!("namespace {name}"), api.get(name)).await? {
            let known = Namespace {
                name: name.clone(),
                labels: object.labels().clone(),
                annotations: object.annotations().clone(),
            };
            namespaces.insert(name.clone(), known);
        }
    }
    Ok(Known {
        config,
        cluster: Facts {
            trust_roots: entry(cluster, control, TRUST_MAP, TRUST_ROOTS_KEY).await?,
            identity_addr: address(cluster, control, IDENTITY_ACCOUNT, IDENTITY_PORT).await?,
            destination_addr: address(cluster, control, DESTINATION_ACCOUNT, DESTINATION_PORT).await?,
            api_server: Some(address(cluster, "default", "kubernetes", 443).await?),
            native_sidecars: native_sidecars(cluster).await?,
        },
        namespaces,
        default_namespace: default.to_owned(),
    })
}

async fn config(cluster: &Cluster, control: &str) -> Result<MeshConfig> {
    let text = entry(cluster, control, CONFIG_MAP, CONFIG_KEY).await?;
    MeshConfig::parse(&text).with_context(|| format!("ConfigMap {control}/{CONFIG_MAP}"))
}

async fn entry(cluster: &Cluster, namespace: &str, map: &str, key: &str) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let what = format!("ConfigMap {namespace}/{map}; is the mesh installed, and in this namespace?");
    let found = read(&what, maps.get(map)).await?;
    found
        .data
        .and_then(|mut data| data.remove(key))
        .ok_or_else(|| anyhow!("ConfigMap {namespace}/{map} has no key {key}"))
}

async fn address(cluster: &Cluster, namespace: &str, name: &str, port: u16) -> Result<SocketAddr> {
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    let service = read(&format!("Service {namespace}/{name}"), services.get(name)).await?;
    let ip = service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
    let ip = ip.parse().map_err(|_| anyhow!("Service {namespace}/{name} has no ClusterIP but {ip:?}"))?;
    Ok(SocketAddr::new(ip, port))
}

/// Whether every kubelet knows them. A cluster without nodes will get new ones.
async fn native_sidecars(cluster: &Cluster) -> Result<bool> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let nodes = read("nodes", nodes.list(&ListParams::default())).await?;
    let versions = nodes.items.into_iter().filter_map(|node| node.status?.node_info.map(|info| info.kubelet_version));
    Ok(versions.map(|version| minor(&version)).all(|minor| minor.is_some_and(|minor| minor >= NATIVE_SIDECARS)))
}

/// `v1.34.4+k3s1` is 34.
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("v1.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kubelets_are_read() {
        assert_eq!(minor("v1.34.4"), Some(34));
        assert_eq!(minor("v1.29.0-eks-a5ec690"), Some(29));
        assert_eq!(minor("devel"), None);
    }
}
