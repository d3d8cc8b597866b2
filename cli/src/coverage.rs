//! `hauberk coverage`: the pods that should be in the mesh and are not, each with the reason. What should be is decided
//! by the webhook's own function; what is, is read from the pods' specs.

use std::collections::BTreeMap;

use anyhow::Result;
use hauberk_kubernetes::proxy_of;
use hauberk_mesh::{CONTROL_NAMESPACE, INJECT_KEY, TLS_KEY};
use hauberk_webhook::inject::{Context, Namespace, Outcome, inject};
use k8s_openapi::api::core::v1::{Namespace as Object, Pod};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use crate::{
    cluster::{ClusterArgs, block_on, read},
    inject::gather,
    output::{Format, table},
};

/// Names the pods that should be in the mesh and are not, and says why.
///
/// Pods that ended are not counted, nor those of whom nobody asked that they join. The exit code is 1 if there is one.
///
///   hauberk coverage -n shop
///   hauberk coverage -A -o json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// The pods' namespace; else that of the context.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// The namespace of the control plane.
    #[arg(long, value_name = "NAMESPACE", default_value = CONTROL_NAMESPACE)]
    control_namespace: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The reason of pods that would be injected if they were made now.
const NOT_INJECTED: &str = "not-injected";

/// What was found: how many pods are in the mesh, and who should be.
#[derive(Debug, Default, PartialEq, Eq)]
struct Coverage {
    meshed: usize,
    missing: Vec<Missing>,
}

/// A pod that should be in the mesh.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    namespace: String,
    pod: String,
    reason: &'static str,
    message: String,
}

/// Prints who is missing; whether nobody is.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let coverage = block_on(options.coverage())?;
    print!("{}", options.output.render(&coverage.value(), || coverage.people()));
    Ok(coverage.missing.is_empty())
}

impl Options {
    async fn coverage(&self) -> Result<Coverage> {
        let cluster = self.cluster.connect().await?;
        let known = gather(&cluster, &self.control_namespace, &cluster.namespace, &[]).await?;
        let all = Api::<Object>::all(cluster.client.clone());
        let namespaces: BTreeMap<_, _> = read("namespaces", all.list(&ListParams::default()))
            .await?
            .into_iter()
            .map(|object| {
                let (labels, annotations) = (object.labels().clone(), object.annotations().clone());
                (object.name_any(), Namespace { name: object.name_any(), labels, annotations })
            })
            .collect();
        let pods: Api<Pod> = match &self.namespace {
            _ if self.all_namespaces => Api::all(cluster.client.clone()),
            Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
            None => Api::namespaced(cluster.client.clone(), &cluster.namespace),
        };
        let mut coverage = Coverage::default();
        for pod in read("pods", pods.list(&ListParams::default())).await? {
            // A namespace that was made since is one of the next look.
            if let Some(namespace) = pod.namespace().and_then(|name| namespaces.get(&name)) {
                let context = Context { config: &known.config, cluster: &known.cluster, namespace, owner_kind: None };
                coverage.count(&pod, &context)?;
            }
        }
        Ok(coverage)
    }
}

impl Coverage {
    fn count(&mut self, pod: &Pod, context: &Context<'_>) -> Result<()> {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return Ok(());
        }
        if pod.spec.as_ref().and_then(proxy_of).is_some() {
            self.meshed += 1;
            return Ok(());
        }
        let (reason, message) = match inject(&serde_json::to_value(pod)?, context) {
            Outcome::Inject(_) => (
                NOT_INJECTED,
                "made before it was asked for, or while the webhook did not answer: restart its workload".to_owned(),
            ),
            Outcome::Refuse(refusal) => (refusal.reason.as_str(), refusal.message),
            Outcome::Skip(skip) if asks(context.namespace) => (skip.reason.as_str(), skip.message),
            Outcome::Skip(_) => return Ok(()),
        };
        let (namespace, pod) = (context.namespace.name.clone(), pod.name_any());
        self.missing.push(Missing { namespace, pod, reason, message });
        Ok(())
    }

    fn value(&self) -> Value {
        let missing = self
            .missing
            .iter()
            .map(|it| json!({ "namespace": it.namespace, "pod": it.pod, "reason": it.reason, "message": it.message }));
        json!({ "meshed": self.meshed, "missing": missing.collect::<Vec<_>>() })
    }

    fn people(&self) -> String {
        let total = self.meshed + self.missing.len();
        let summary = format!("{} of {total} pods that should be in the mesh are.\n", self.meshed);
        if self.missing.is_empty() {
            return summary;
        }
        let cells = self
            .missing
            .iter()
            .map(|it| [it.namespace.clone(), it.pod.clone(), it.reason.to_owned(), it.message.clone()]);
        table(["NAMESPACE", "POD", "REASON", "WHAT TO KNOW"], &cells.collect::<Vec<_>>()) + "\n" + &summary
    }
}

/// Whether the namespace asks for the mesh: then who is left out is worth a line.
fn asks(namespace: &Namespace) -> bool {
    let label = |key, value| namespace.labels.get(key).is_some_and(|found: &String| found == value);
    label(INJECT_KEY, "enabled") || label(TLS_KEY, "required")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hauberk_kubernetes::MeshConfig;
    use hauberk_webhook::inject::Cluster;

    fn pod(name: &str, more: Value) -> Pod {
        let mut pod = json!({
            "metadata": { "name": name, "namespace": "shop" },
            "spec": { "containers": [{ "name": "app", "image": "app" }] },
            "status": { "phase": "Running" },
        });
        json_patch::merge(&mut pod, &more);
        serde_json::from_value(pod).expect("a pod")
    }

    fn found(labels: &[(&str, &str)], pods: &[Pod]) -> Vec<(String, &'static str)> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let namespace = Namespace { name: "shop".to_owned(), labels, annotations: BTreeMap::new() };
        let cluster = Cluster {
            trust_roots: "PEM".to_owned(),
            identity_addr: "10.2.0.2:8080".parse().expect("an address"),
            destination_addr: "10.2.0.3:8086".parse().expect("an address"),
            api_server: None,
            native_sidecars: true,
        };
        let config = MeshConfig::default();
        let context = Context { config: &config, cluster: &cluster, namespace: &namespace, owner_kind: None };
        let mut coverage = Coverage::default();
        pods.iter().for_each(|pod| coverage.count(pod, &context).expect("counted"));
        coverage.missing.into_iter().map(|it| (it.pod, it.reason)).collect()
    }

    #[test]
    fn those_who_should_be_meshed_and_are_not_are_named_with_the_reason() {
        let pods = [
            pod("old", json!({})),
            pod("host", json!({ "spec": { "hostNetwork": true } })),
            pod("out", json!({ "metadata": { "labels": { "hauberk.dev/inject": "disabled" } } })),
            pod("odd", json!({ "metadata": { "annotations": { "hauberk.dev/tls": "strict" } } })),
            pod("ended", json!({ "status": { "phase": "Succeeded" } })),
        ];
        let names = |found: Vec<(String, &'static str)>| found.into_iter().map(|(pod, _)| pod).collect::<Vec<_>>();
        let asked = found(&[("hauberk.dev/inject", "enabled")], &pods);
        assert_eq!(asked[0], ("old".to_owned(), NOT_INJECTED));
        assert!(asked[1..].iter().all(|(_, reason)| *reason != NOT_INJECTED), "{asked:?}");
        assert_eq!(names(asked), ["old", "host", "out", "odd"]);
        assert!(found(&[], &pods[..3]).is_empty(), "nobody asked");
    }
}
