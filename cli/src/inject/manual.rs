//! `hauberk inject --manual`: the whole injection written into the manifest, decided by the function that the webhook
//! decides by. Pure: what only the cluster knows comes in.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use hauberk_kubernetes::MeshConfig;
use hauberk_webhook::inject::{self, Cluster, Context, Namespace};
use serde_json::Value;

use super::plan::{Changed, Outcome};
use crate::manifest::{Kind, at, parse, split, targets};

/// What only the cluster knows.
#[derive(Debug)]
pub(crate) struct Known {
    /// The mesh's settings.
    pub(crate) config: MeshConfig,
    /// Addresses and trust roots.
    pub(crate) cluster: Cluster,
    /// By name; those that a manifest names and the cluster does not have are taken as without labels.
    pub(crate) namespaces: BTreeMap<String, Namespace>,
    /// Of objects that name none.
    pub(crate) default_namespace: String,
}

/// Injects every pod and template of a labelled manifest. An error names the object and what to do.
pub(crate) fn inject_all(manifest: &str, known: &Known) -> Result<Changed> {
    let mut changed = Changed { text: String::new(), outcomes: Vec::new() };
    for document in split(manifest) {
        changed.text += &document.separator;
        let mut value = parse(&document.text).map_err(|why| anyhow!(why))?;
        let mut touched = false;
        for target in targets(&value).into_iter().filter(|target| target.kind == Kind::Pod) {
            let Some(pod) = at(&mut value, &target.path) else { continue };
            let namespace = target.namespace.as_deref().unwrap_or(&known.default_namespace);
            let (what, patched) =
                one(pod, namespace, &target.owner, known).map_err(|why| anyhow!("{}: {why}", target.name))?;
            touched |= patched;
            changed.outcomes.push(Outcome { name: target.name, what });
        }
        changed.text += &if touched { hauberk_deploy::document(&value) } else { document.text };
    }
    Ok(changed)
}

/// Namespaces that the manifest's objects are in.
pub(crate) fn namespaces(manifest: &str, default: &str) -> Vec<String> {
    let documents = split(manifest).into_iter().filter_map(|document| parse(&document.text).ok());
    let targets = documents.flat_map(|value| targets(&value));
    let mut names: Vec<_> = targets.map(|target| target.namespace.unwrap_or_else(|| default.to_owned())).collect();
    names.sort();
    names.dedup();
    names
}

fn one(pod: &mut Value, namespace: &str, owner: &str, known: &Known) -> Result<(String, bool)> {
    let unknown = Namespace { name: namespace.to_owned(), ..Namespace::default() };
    let context = Context {
        config: &known.config,
        cluster: &known.cluster,
        namespace: known.namespaces.get(namespace).unwrap_or(&unknown),
        owner_kind: Some(owner),
    };
    match inject::inject(pod, &context) {
        inject::Outcome::Inject(injection) => {
            json_patch::patch(pod, &injection.patch).map_err(|error| anyhow!("the patch does not fit: {error}"))?;
            let warnings = injection.warnings.iter().map(|warning| format!("; warning: {warning}")).collect::<String>();
            Ok((format!("injected: {}{warnings}", injection.summary), true))
        }
        inject::Outcome::Skip(skip) => Ok((format!("left as it is: {}", skip.message), false)),
        inject::Outcome::Refuse(refusal) => Err(anyhow!(refusal.message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inject::plan::{Wish, change};

    fn known() -> Known {
        let addr = |text: &str| text.parse().expect("an address");
        Known {
            config: MeshConfig {
                networks: "10.244.0.0/16,10.96.0.0/16".parse().expect("networks"),
                ..MeshConfig::default()
            },
            cluster: Cluster {
                trust_roots: "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n".to_owned(),
                identity_addr: addr("10.96.0.2:8080"),
                destination_addr: addr("10.96.0.3:8086"),
                api_server: Some(addr("10.96.0.1:443")),
                native_sidecars: true,
            },
            namespaces: BTreeMap::new(),
            default_namespace: "default".to_owned(),
        }
    }

    #[test]
    fn every_workload_gets_the_proxy_and_twice_is_once() {
        let labelled = change(include_str!("testdata/shop.yaml"), &Wish::Join { tls: None }).expect("valid").text;
        let injected = inject_all(&labelled, &known()).expect("injected");
        assert_eq!(injected.text.matches("name: hauberk-proxy\n").count(), 6, "{}", injected.text);
        let again = inject_all(&injected.text, &known()).expect("injected");
        assert_eq!(again.text, injected.text);
        let lines: Vec<_> = injected.outcomes.iter().map(ToString::to_string).collect();
        assert!(lines.contains(&"deployment/web: injected: a native sidecar, tls optional, identity default.shop.serviceaccount.identity.hauberk.cluster.local".to_owned()), "{lines:?}");
        assert!(
            injected.text.contains("kind: ConfigMap\nmetadata:\n  name: page\n"),
            "what is no workload stays as it is"
        );
    }

    #[test]
    fn taking_it_out_again_leaves_what_was_there() {
        let before = parse(include_str!("testdata/probes.yaml")).expect("valid");
        let labelled = change(include_str!("testdata/probes.yaml"), &Wish::Join { tls: None }).expect("valid").text;
        let injected = inject_all(&labelled, &known()).expect("injected").text;
        assert_eq!(injected.matches("port: 4190\n").count(), 4, "{injected}");
        let without = change(&injected, &Wish::Leave).expect("valid");
        assert_eq!(parse(&without.text), Ok(before));
        assert_eq!(without.outcomes[0].to_string(), "deployment/web: proxy removed, label removed");
        let error = change(&injected.replace("HAUBERK_PROBES", "HAUBERK_LIMITS"), &Wish::Leave).expect_err("not known");
        assert!(
            format!("{error:#}").contains("deployment/web: container sidecar: its proxy does not say"),
            "{error:#}"
        );
    }

    #[test]
    fn a_refusal_names_the_object_and_prints_nothing() {
        let manifest = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels:\n    hauberk.dev/inject: enabled\n  annotations:\n    hauberk.dev/tls: strict\nspec:\n  containers:\n  - name: x\n    image: x\n";
        let error = inject_all(manifest, &known()).expect_err("not a mode").to_string();
        assert!(error.starts_with("pod/web: ") && error.contains("strict"), "{error}");
    }

    #[test]
    fn the_namespaces_of_a_manifest_are_found() {
        assert_eq!(namespaces(include_str!("testdata/shop.yaml"), "here"), ["here", "shop"]);
    }
}
