//! `hauberk uninstall`: prints what to delete, in the order in which to delete it. Changes nothing: `kubectl delete
//! -f -` does, as people know it from other meshes, and they see before what will go.

mod plan;

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use hauberk_kubernetes::{MeshConfig, proxy_of};
use hauberk_mesh::{CONFIG_KEY, CONFIG_MAP, CONTROL_NAMESPACE};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod, Secret},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use serde_json::Value;

use crate::cluster::{Cluster, ClusterArgs, block_on, find, read};
use plan::{PlaceOf, candidates, ordered};

/// Prints what kubectl has to delete to take the mesh away.
///
/// Nothing in the cluster is changed. The webhook's registration comes first, and what the control plane made itself
/// (keys, the trust bundle, leases) is in the list.
/// Refuses while pods run with a proxy: without the control plane their certificates end, and then their connections.
///
///   hauberk uninstall | kubectl delete -f -
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Print although pods run with a proxy.
    #[arg(long)]
    force: bool,
    /// The namespace of the control plane.
    #[arg(long, value_name = "NAMESPACE", default_value = CONTROL_NAMESPACE)]
    control_namespace: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// As many pods are named in an error.
const NAMED: usize = 5;

/// Prints what to delete, or says why not.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let objects = block_on(options.objects())?;
    print!("{}", hauberk_deploy::stream(&objects));
    Ok(true)
}

impl Options {
    async fn objects(&self) -> Result<Vec<Value>> {
        let cluster = self.cluster.connect().await?;
        if !self.force {
            refuse_while_meshed(&cluster).await?;
        }
        let namespace = &self.control_namespace;
        let mut found = Vec::new();
        for place in candidates(&config(&cluster, namespace).await?) {
            if exists(&cluster, &place).await? {
                found.push(place);
            }
        }
        found.extend(made_by_controllers(&cluster, namespace).await?);
        if found.is_empty() {
            bail!("namespace {namespace} holds no mesh: give --control-namespace if it was installed elsewhere");
        }
        let strangers = strangers(&cluster, namespace).await?;
        if !strangers.is_empty() {
            eprintln!(
                "warning: namespace {namespace} stays, for it also holds pods that are not ours: {}",
                some_of(&strangers)
            );
            found.retain(|place| place.kind != "Namespace");
        }
        Ok(ordered(found))
    }
}

async fn refuse_while_meshed(cluster: &Cluster) -> Result<()> {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let live = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    let pods = read("pods", pods.list(&live)).await?;
    let meshed = pods.iter().filter(|pod| pod.spec.as_ref().and_then(proxy_of).is_some());
    let meshed: BTreeSet<_> =
        meshed.map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())).collect();
    if meshed.is_empty() {
        return Ok(());
    }
    bail!(
        "{} pods still run with a proxy: {}. Take the label hauberk.dev/inject off their namespaces and workloads, \
         restart them, and try again; or --force, and their connections end with their certificates",
        meshed.len(),
        some_of(&meshed)
    )
}

/// Pods in the control namespace that are not of the mesh.
async fn strangers(cluster: &Cluster, namespace: &str) -> Result<BTreeSet<String>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let others = ListParams::default().labels(&format!("app.kubernetes.io/part-of!={}", hauberk_deploy::PART_OF));
    Ok(read("pods", pods.list(&others)).await?.iter().map(ResourceExt::name_any).collect())
}

fn some_of(names: &BTreeSet<String>) -> String {
    let more = if names.len() > NAMED { ", …" } else { "" };
    names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ") + more
}

/// The settings that the mesh was installed with; the defaults where they are gone already.
async fn config(cluster: &Cluster, namespace: &str) -> Result<MeshConfig> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let map = find("the mesh's settings", maps.get(CONFIG_MAP)).await?;
    let text = map.and_then(|map| map.data?.remove(CONFIG_KEY));
    let mut config = MeshConfig { control_namespace: namespace.to_owned(), ..MeshConfig::default() };
    if let Some(text) = text {
        let read = MeshConfig::parse(&text).with_context(|| format!("ConfigMap {namespace}/{CONFIG_MAP}"))?;
        config = MeshConfig { control_namespace: namespace.to_owned(), ..read };
    }
    Ok(config)
}

async fn exists(cluster: &Cluster, place: &PlaceOf) -> Result<bool> {
    let (group, version) = place.api_version.split_once('/').unwrap_or(("", &place.api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &place.kind));
    let api: Api<DynamicObject> = match &place.namespace {
        Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
        None => Api::all_with(cluster.client.clone(), &resource),
    };
    let what = format!("{} {}", place.kind, place.name);
    Ok(find(&what, api.get(&place.name)).await?.is_some_and(|object| place.is_ours(object.labels())))
}

/// What no manifest has: keys, bundle, leases.
async fn made_by_controllers(cluster: &Cluster, namespace: &str) -> Result<Vec<PlaceOf>> {
    let mut found = Vec::new();
    found.extend(named_like_ours::<Secret>(cluster, namespace).await?);
    found.extend(
        named_like_ours::<ConfigMap>(cluster, namespace).await?.into_iter().filter(|place| place.name != CONFIG_MAP),
    );
    found.extend(named_like_ours::<Lease>(cluster, namespace).await?);
    Ok(found)
}

async fn named_like_ours<K>(cluster: &Cluster, namespace: &str) -> Result<Vec<PlaceOf>>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(cluster.client.clone(), namespace);
    let kind = K::kind(&());
    let list = read(&format!("{kind}s of namespace {namespace}"), api.list_metadata(&ListParams::default())).await?;
    let ours = list.iter().map(ResourceExt::name_any).filter(|name| name.starts_with("hauberk-"));
    let place = |name| PlaceOf {
        api_version: K::api_version(&()).into_owned(),
        kind: kind.to_string(),
        namespace: Some(namespace.to_owned()),
        name,
    };
    Ok(ours.map(place).collect())
}
