//! `hauberk inject` and `uninject`: what they print is what a real API server takes, for every kind of workload.

use std::{collections::BTreeMap, fs};

use hauberk_e2e::ControlPlane;
use serde_json::Value;

use crate::cli::{NETWORKS, hauberk, hauberk_reads, kubectl};

/// A namespace and one of each workload, in many styles.
const SHOP: &str = include_str!("../../../cli/src/inject/testdata/shop.yaml");

/// Of each object, whether the pods that it makes are labelled.
fn labels(plane: &ControlPlane) -> BTreeMap<String, Option<String>> {
    const KINDS: &str = "deploy,sts,ds,rs,rc,job,cronjob,pod";
    let listed = kubectl(plane, &["get", KINDS, "-A", "-o", "json"], "").printed();
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let items = listed["items"].as_array().expect("a list").iter();
    // What controllers made of it has an owner.
    let own = items.filter(|item| item["metadata"].get("ownerReferences").is_none());
    own.map(|item| {
        let template = match item["kind"].as_str() {
            Some("Pod") => item,
            Some("CronJob") => &item["spec"]["jobTemplate"]["spec"]["template"],
            _ => &item["spec"]["template"],
        };
        let label = template["metadata"]["labels"]["hauberk.dev/inject"].as_str().map(str::to_owned);
        (
            format!(
                "{}/{}",
                item["kind"].as_str().unwrap_or_default(),
                item["metadata"]["name"].as_str().unwrap_or_default()
            ),
            label,
        )
    })
    .collect()
}

#[tokio::test]
async fn every_kind_of_workload_is_labelled_and_unlabelled_on_a_real_api_server() {
    let plane = ControlPlane::start().await.expect("it starts");
    let injected = hauberk_reads(&plane, &["inject", "-"], SHOP).printed();
    kubectl(&plane, &["apply", "-f", "-"], &injected).printed();
    let enabled = Some("enabled".to_owned());
    let expected = [
        ("CronJob/nightly", enabled.clone()),
        ("DaemonSet/agent", None),
        ("Deployment/web", enabled.clone()),
        ("Job/once", enabled.clone()),
        ("Pod/shell", enabled.clone()),
        ("ReplicaSet/old", Some("disabled".to_owned())),
        ("ReplicationController/ancient", enabled.clone()),
        ("StatefulSet/db", enabled.clone()),
    ];
    let expected: BTreeMap<_, _> = expected.into_iter().map(|(name, label)| (name.to_owned(), label)).collect();
    assert_eq!(labels(&plane), expected);
    let shop = kubectl(&plane, &["get", "ns", "shop", "-o", "jsonpath={.metadata.labels}"], "").printed();
    assert!(shop.contains("\"hauberk.dev/inject\":\"enabled\""), "{shop}");

    // From the cluster and back to it, as with other meshes.
    let live = kubectl(&plane, &["get", "deploy", "web", "-n", "shop", "-o", "yaml"], "").printed();
    let without = hauberk_reads(&plane, &["uninject", "-"], &live).printed();
    kubectl(&plane, &["apply", "-f", "-"], &without).printed();
    assert_eq!(labels(&plane)["Deployment/web"], None);
    let live = kubectl(&plane, &["get", "deploy,sts", "-n", "shop", "-o", "json"], "").printed();
    let with = hauberk_reads(&plane, &["inject", "--tls=required", "-"], &live).printed();
    kubectl(&plane, &["apply", "-f", "-"], &with).printed();
    assert_eq!(labels(&plane)["Deployment/web"], enabled);
    let path = "jsonpath={.spec.template.metadata.annotations.hauberk\\.dev/tls}";
    assert_eq!(kubectl(&plane, &["get", "deploy", "web", "-n", "shop", "-o", path], "").printed(), "required");
    assert_eq!(hauberk_reads(&plane, &["uninject", "-"], &injected).printed(), SHOP);
}

#[tokio::test]
async fn files_directories_and_standard_input_are_read_as_kubectl_reads_them() {
    let plane = ControlPlane::start().await.expect("it starts");
    let dir = plane.dir().join("manifests");
    fs::create_dir_all(dir.join("deep")).expect("made");
    let pod = |name: &str| {
        format!(
            "# {name}\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: x\n    image: x\n"
        )
    };
    fs::write(dir.join("b.yaml"), pod("b")).expect("written");
    fs::write(dir.join("a.yml"), pod("a")).expect("written");
    fs::write(dir.join("c.json"), r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}"#).expect("written");
    fs::write(dir.join("deep/d.yaml"), pod("d")).expect("written");
    let path = dir.to_str().expect("text");

    let of_directory = hauberk(&plane, &["inject", "-f", path]).printed();
    assert!(of_directory.contains("# a\n") && of_directory.contains("# b\n") && !of_directory.contains("# d\n"));
    let deep = hauberk(&plane, &["inject", "-R", "-f", path]).printed();
    kubectl(&plane, &["apply", "-f", "-"], &deep).printed();
    let enabled: Vec<_> =
        labels(&plane).into_iter().filter(|(_, label)| label.is_some()).map(|(name, _)| name).collect();
    assert_eq!(enabled, ["Pod/a", "Pod/b", "Pod/c", "Pod/d"]);

    let file = dir.join("b.yaml");
    let file = file.to_str().expect("text");
    let of_file = hauberk(&plane, &["inject", file]).printed();
    assert_eq!(hauberk_reads(&plane, &["inject", "-f", "-"], &pod("b")).printed(), of_file);
    let both = hauberk_reads(&plane, &["inject", "-f", file, "-"], &pod("e")).printed();
    assert_eq!(both.matches("hauberk.dev/inject: enabled").count(), 2);

    let refused = hauberk_reads(&plane, &["inject", "-f", file, "-"], "a: [").refused();
    assert!(refused.contains("standard input: document 1"), "{refused}");
}

#[tokio::test]
async fn the_whole_injection_is_written_with_what_the_cluster_knows_and_is_taken() {
    let plane = ControlPlane::start().await.expect("it starts");
    let refused = hauberk_reads(&plane, &["inject", "--manual", "-"], SHOP).refused();
    assert!(refused.contains("hauberk-config") && refused.contains("is the mesh installed"), "{refused}");

    let printed = hauberk(&plane, &["install", NETWORKS, "--set", "proxyResources.cpuRequest=7m"]).printed();
    kubectl(&plane, &["apply", "-f", "-"], &printed).printed();
    // As identity publishes them.
    let roots = format!("--from-literal=ca-bundle.pem={}", plane.ca_pem());
    kubectl(&plane, &["create", "configmap", "-n", "hauberk", "hauberk-trust", &roots], "").printed();
    let injected = hauberk_reads(&plane, &["inject", "--manual", "--tls=required", "-"], SHOP).printed();
    // The webhook that is registered does not run: pods of the namespace would be let in without it, and these have all.
    kubectl(&plane, &["apply", "-f", "-"], &injected).printed();

    let live = kubectl(&plane, &["get", "deploy", "web", "-n", "shop", "-o", "json"], "").printed();
    let live: Value = serde_json::from_str(&live).expect("JSON");
    let spec = serde_json::from_value(live["spec"]["template"]["spec"].clone()).expect("a pod's spec");
    let told = hauberk_kubernetes::proxy_of(&spec).expect("a proxy").expect("that can be read");
    assert_eq!((told.tls.as_str(), told.identity.namespace()), ("required", "shop"));
    assert_eq!(told.networks.to_string(), "10.244.0.0/16,10.96.0.0/16");
    assert_eq!(told.trust_roots.trim(), plane.ca_pem().trim());
    let ip =
        kubectl(&plane, &["get", "svc", "-n", "hauberk", "hauberk-identity", "-o", "jsonpath={.spec.clusterIP}"], "")
            .printed();
    assert_eq!(told.identity_addr.to_string(), format!("{ip}:8080"));
    let cpu = &live["spec"]["template"]["spec"]["initContainers"][1]["resources"]["requests"]["cpu"];
    assert_eq!(cpu, "7m");

    let without = hauberk_reads(&plane, &["uninject", "-"], &injected).printed();
    assert!(!without.contains("hauberk-proxy") && !without.contains("hauberk.dev/inject: enabled"), "{without}");
    kubectl(&plane, &["create", "--dry-run=client", "-f", "-"], &without).printed();
}
