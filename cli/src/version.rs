//! `hauberk version`: this command's, and those of the control plane that runs.

use anyhow::Result;
use hauberk_mesh::CONTROL_NAMESPACE;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use crate::{
    cluster::{ClusterArgs, block_on, read},
    output::{Format, table},
};

/// Prints the version of this command and of the control plane.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only that of this command: no cluster is asked.
    #[arg(long)]
    client: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// The namespace of the control plane.
    #[arg(long, value_name = "NAMESPACE", default_value = CONTROL_NAMESPACE)]
    control_namespace: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Prints the versions. That of this command is printed also where there is no cluster to ask; that is an error then.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let server = if options.client { Ok(None) } else { block_on(options.server()).map(Some) };
    let mut versions = json!({ "client": env!("CARGO_PKG_VERSION") });
    if let Ok(Some(server)) = &server {
        versions["server"] = json!(server);
    }
    print!("{}", options.output.render(&versions, || people(&versions)));
    server.map(|_| true)
}

impl Options {
    async fn server(&self) -> Result<Vec<Value>> {
        let cluster = self.cluster.connect().await?;
        let api: Api<Deployment> = Api::namespaced(cluster.client, &self.control_namespace);
        let ours = ListParams::default().labels(&format!("app.kubernetes.io/part-of={}", hauberk_deploy::PART_OF));
        Ok(read("Deployments of the control plane", api.list(&ours)).await?.iter().map(part).collect())
    }
}

fn part(deployment: &Deployment) -> Value {
    let template = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let image = template.and_then(|pod| pod.containers.first()).and_then(|container| container.image.as_deref());
    json!({
        "name": deployment.name_any(),
        "version": deployment.labels().get("app.kubernetes.io/version"),
        "image": image,
        "ready": deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0),
        "replicas": deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
    })
}

fn people(versions: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let mut rows = vec![["client".to_owned(), text(&versions["client"]), String::new(), String::new()]];
    for part in versions["server"].as_array().into_iter().flatten() {
        let ready = format!("{}/{}", part["ready"], part["replicas"]);
        rows.push([text(&part["name"]), text(&part["version"]), ready, text(&part["image"])]);
    }
    let mut text = table(["PART", "VERSION", "READY", "IMAGE"], &rows);
    if versions["server"].as_array().is_some_and(Vec::is_empty) {
        text += "There is no control plane in the cluster.\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_a_table() {
        let part =
            json!({ "name": "hauberk-webhook", "version": "0.1.0", "image": "a/b:c", "ready": 1, "replicas": 3 });
        let versions = json!({ "client": "0.2.0", "server": [part] });
        insta::assert_snapshot!(people(&versions), @r"
        PART              VERSION   READY   IMAGE
        client            0.2.0
        hauberk-webhook   0.1.0     1/3     a/b:c
        ");
        assert!(people(&json!({ "client": "0.2.0", "server": [] })).contains("no control plane"));
    }
}
