//! `hauberk identity`: the certificates that proxies use now. A handshake with the proxy itself shows them: nothing is
//! believed that the proxy does not prove.

mod certificate;
mod handshake;

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hauberk_identity::TrustBundle;
use hauberk_kubernetes::proxy_of;
use hauberk_mesh::{CONTROL_NAMESPACE, IdentityName, MESH_PORT, TRUST_MAP, TRUST_ROOTS_KEY};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Api, ResourceExt, api::ListParams};
use rustls::pki_types::UnixTime;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, ClusterArgs, block_on, read},
    output::{Format, table},
};
use certificate::{Certificate, judge};

/// Shows the certificates that pods' proxies use.
///
/// The proxy itself is asked, and proves that it has the key: whose it is, until when, and whether the mesh trusts it.
/// The exit code is 1 if one of them is not as it must be, or a proxy does not answer.
///
///   hauberk identity web-0 -n shop
///   hauberk identity --all -A -o json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Pods.
    #[arg(value_name = "POD", required_unless_present_any = ["all", "all_namespaces", "selector"])]
    pods: Vec<String>,
    /// All pods of the namespace that have a proxy.
    #[arg(long, conflicts_with = "pods")]
    all: bool,
    /// The pods' namespace; else that of the context.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "pods"])]
    all_namespaces: bool,
    /// Only pods with these labels.
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "pods")]
    selector: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// The namespace of the control plane.
    #[arg(long, value_name = "NAMESPACE", default_value = CONTROL_NAMESPACE)]
    control_namespace: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The way through API server and kubelet, and the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What is known of one pod's proxy.
struct Row {
    namespace: String,
    pod: String,
    certificate: Result<Certificate, String>,
}

/// Prints the certificates; whether all were as they must be.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let rows = block_on(options.rows())?;
    let value = Value::Array(rows.iter().map(Row::value).collect());
    print!("{}", options.output.render(&value, || people(&rows)));
    Ok(rows.iter().all(|row| row.certificate.as_ref().is_ok_and(|certificate| certificate.fault.is_none())))
}

impl Options {
    async fn rows(&self) -> Result<Vec<Row>> {
        let cluster = self.cluster.connect().await?;
        let roots = trust(&cluster, &self.control_namespace).await?;
        let mut rows = Vec::new();
        for (pod, identity) in self.meshed(&cluster).await? {
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            let chain = tokio::time::timeout(HANDSHAKE, ask(&cluster, &namespace, &name, &identity)).await;
            let chain = chain.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", HANDSHAKE.as_secs())));
            let certificate = chain.and_then(|chain| judge(&chain, &roots, &identity, UnixTime::now()));
            rows.push(Row { namespace, pod: name, certificate: certificate.map_err(|error| format!("{error:#}")) });
        }
        Ok(rows)
    }

    /// The pods that were asked for, with who their proxies were told to be.
    async fn meshed(&self, cluster: &Cluster) -> Result<Vec<(Pod, IdentityName)>> {
        let namespace = self.namespace.as_deref().unwrap_or(&cluster.namespace);
        let api: Api<Pod> = if self.all_namespaces {
            Api::all(cluster.client.clone())
        } else {
            Api::namespaced(cluster.client.clone(), namespace)
        };
        let told = |pod: &Pod| pod.spec.as_ref().and_then(proxy_of);
        let mut found = Vec::new();
        for name in &self.pods {
            let name = name.strip_prefix("pod/").or(name.strip_prefix("pods/")).unwrap_or(name);
            let pod = read(&format!("pod {namespace}/{name}"), api.get(name)).await?;
            let spec =
                told(&pod).ok_or_else(|| anyhow!("pod {namespace}/{name} has no proxy: it is not in the mesh"))?;
            let spec = spec.with_context(|| format!("pod {namespace}/{name}: its proxy's settings"))?;
            found.push((pod, spec.identity));
        }
        if self.pods.is_empty() {
            let selector = ListParams { label_selector: self.selector.clone(), ..ListParams::default() };
            let live = selector.fields("status.phase=Running");
            for pod in read("pods", api.list(&live)).await? {
                if let Some(spec) = told(&pod) {
                    let spec = spec.with_context(|| format!("pod {}: its proxy's settings", pod.name_any()))?;
                    found.push((pod, spec.identity));
                }
            }
            if found.is_empty() {
                bail!("no pod with a proxy runs there");
            }
        }
        Ok(found)
    }
}

async fn trust(cluster: &Cluster, namespace: &str) -> Result<TrustBundle> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let what = format!("ConfigMap {namespace}/{TRUST_MAP}, the trust roots of the mesh");
    let map = read(&what, maps.get(TRUST_MAP)).await?;
    let pem = map.data.and_then(|mut data| data.remove(TRUST_ROOTS_KEY)).unwrap_or_default();
    TrustBundle::from_pem(0, pem.as_bytes()).with_context(|| what)
}

async fn ask(cluster: &Cluster, namespace: &str, pod: &str, identity: &IdentityName) -> Result<handshake::Chain> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let mut forward = api.portforward(pod, &[MESH_PORT]).await.context("cannot forward a port to the pod")?;
    let stream = forward.take_stream(MESH_PORT).context("the API server gave no stream")?;
    let failed = forward.take_error(MESH_PORT);
    let chain = handshake::chain(stream, identity).await;
    forward.abort();
    match chain {
        Ok(chain) => Ok(chain),
        Err(error) => {
            // What the kubelet has to say is there by now or never.
            let said = match failed {
                Some(failed) => tokio::time::timeout(Duration::from_millis(200), failed).await.ok().flatten(),
                None => None,
            };
            Err(said.map_or(error, |said| anyhow!(said)))
        }
    }
}

impl Row {
    fn value(&self) -> Value {
        let mut value = match &self.certificate {
            Ok(certificate) => certificate.value(),
            Err(error) => json!({ "error": error }),
        };
        value["namespace"] = json!(self.namespace);
        value["pod"] = json!(self.pod);
        value
    }
}

fn people(rows: &[Row]) -> String {
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let [identity, from, until, serial, issuer, state] = match &row.certificate {
                Ok(certificate) => certificate.cells(),
                Err(error) => ["", "", "", "", "", error].map(str::to_owned),
            };
            [row.namespace.clone(), row.pod.clone(), identity, from, until, serial, issuer, state]
        })
        .collect();
    table(["NAMESPACE", "POD", "IDENTITY", "VALID FROM", "UNTIL", "SERIAL", "ISSUER", "STATE"], &cells)
}

#[cfg(test)]
mod tests;
