//! `hauberk install`: prints the control plane's manifests. What they are is decided in `hauberk-deploy`; here the
//! settings come from flags and from the cluster. Changes nothing: `kubectl apply -f -` does.

mod facts;
mod networks;
mod settings;

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use hauberk_kubernetes::MeshConfig;
use hauberk_mesh::{Networks, TlsMode};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::ConfigMap};
use kube::Api;

use crate::cluster::{Cluster, ClusterArgs, block_on, find};
use settings::Setting;

/// Prints the manifests of the control plane.
///
/// Nothing in the cluster is changed. The same settings give the same bytes: no keys and no times are in them.
///
///   hauberk install | kubectl apply -f -
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, after_long_help = settings::help())]
pub(crate) struct Options {
    /// The mode of namespaces that say nothing: optional, required or disabled.
    #[arg(long, value_name = "MODE")]
    tls: Option<TlsMode>,
    /// One setting; may be given several times, and wins over the other flags. See the list below (--help).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<Setting>,
    /// Where both images are: REGISTRY/hauberk-proxy and REGISTRY/hauberk-controller, of this version.
    #[arg(long, value_name = "REGISTRY")]
    registry: Option<String>,
    /// Image of proxy and init.
    #[arg(long, value_name = "IMAGE")]
    proxy_image: Option<String>,
    /// Image of identity, destination and webhook.
    #[arg(long, value_name = "IMAGE")]
    controller_image: Option<String>,
    /// The trust domain, also that of service names.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// The namespace of the control plane.
    #[arg(long, value_name = "NAMESPACE")]
    control_namespace: Option<String>,
    /// Networks of pods, Services and nodes, with commas between; found in the cluster if not given.
    #[arg(long, value_name = "CIDR,…")]
    networks: Option<Networks>,
    /// Three replicas of each part, and budgets that keep two of them.
    #[arg(long)]
    ha: bool,
    /// Do not look at a cluster: --networks has to be given then.
    #[arg(long, conflicts_with_all = ["context", "kubeconfig"])]
    ignore_cluster: bool,
    /// Print although the cluster has a mesh already: applied, it changes the settings of that one.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Prints the manifests, or says why not.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let mut config = options.config()?;
    block_on(options.complete(&mut config))?;
    print!("{}", hauberk_deploy::stream(&hauberk_deploy::manifests(&config)));
    Ok(true)
}

impl Options {
    /// What the flags say.
    fn config(&self) -> Result<MeshConfig> {
        let mut config = MeshConfig::default();
        let version = env!("CARGO_PKG_VERSION");
        if let Some(registry) = self.registry.as_deref().map(|registry| registry.trim_end_matches('/')) {
            config.proxy_image = format!("{registry}/hauberk-proxy:{version}");
            config.controller_image = format!("{registry}/hauberk-controller:{version}");
        }
        config.tls = self.tls.unwrap_or(config.tls);
        config.high_availability = self.ha;
        let given = [
            (&self.proxy_image, &mut config.proxy_image),
            (&self.controller_image, &mut config.controller_image),
            (&self.trust_domain, &mut config.trust_domain),
            (&self.control_namespace, &mut config.control_namespace),
        ];
        for (flag, field) in given {
            field.clone_from(flag.as_ref().unwrap_or(&field.clone()));
        }
        config.networks = self.networks.clone().unwrap_or_default();
        for setting in &self.set {
            setting.apply(&mut config)?;
        }
        config.domain()?;
        Ok(config)
    }

    /// What only the cluster knows.
    async fn complete(&self, config: &mut MeshConfig) -> Result<()> {
        if self.ignore_cluster {
            if config.networks.is_empty() {
                bail!("--ignore-cluster finds no networks: give --networks, those of pods, Services and nodes");
            }
            return Ok(());
        }
        let cluster = self.cluster.connect().await?;
        if !self.force {
            refuse_over_a_mesh(&cluster, &config.control_namespace).await?;
        }
        if config.networks.is_empty() {
            let found = networks::networks(&facts::gather(&cluster).await?)?;
            eprintln!("networks: {} (from {})", found.networks, found.sources.join(", "));
            config.networks = found.networks;
        }
        if config.resolvers.is_empty() {
            config.resolvers = resolvers(&cluster).await?;
        }
        Ok(())
    }
}

async fn refuse_over_a_mesh(cluster: &Cluster, namespace: &str) -> Result<()> {
    let registrations: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let settings: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let registered = find("the webhook's registration", registrations.get(hauberk_mesh::WEBHOOK_CONFIGURATION)).await?;
    let configured = find("the mesh's settings", settings.get(hauberk_mesh::CONFIG_MAP)).await?;
    if registered.is_none() && configured.is_none() {
        return Ok(());
    }
    bail!(
        "this cluster has a mesh already. Change its settings with `hauberk install --force`, which prints the manifests \
         all the same, or take it away first: `hauberk uninstall | kubectl delete -f -`"
    )
}

/// The addresses of the cluster's DNS: DNS over TCP to them is always forwarded.
async fn resolvers(cluster: &Cluster) -> Result<Vec<IpAddr>> {
    let found = facts::resolvers(cluster).await?;
    if found.is_empty() {
        eprintln!(
            "warning: kube-system has no Service labelled k8s-app=kube-dns: in `required` namespaces DNS over TCP is \
             refused unless --set resolvers=IP,… names the resolvers"
        );
    }
    found
        .iter()
        .map(|ip| ip.parse().with_context(|| format!("{ip:?}, which the cluster's DNS Service has, is no address")))
        .collect()
}
