//! What joining or leaving the mesh changes in a manifest. Pure.

use std::fmt;

use anyhow::{Context, Result, anyhow};
use hauberk_mesh::{INJECT_KEY, TLS_KEY, TlsMode};
use serde_json::Value;

use super::undo;
use crate::manifest::{Change, Kind, Target, at, edit, parse, split, targets};

/// What the workloads of a manifest are to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Be injected, in this mode if one is given.
    Join { tls: Option<TlsMode> },
    /// Not be injected any more.
    Leave,
}

/// What was done to an object, as people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) what: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.what)
    }
}

/// A manifest after the change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) text: String,
    pub(crate) outcomes: Vec<Outcome>,
}

/// Changes every document of a manifest; an error names the document that cannot be read.
pub(crate) fn change(manifest: &str, wish: &Wish) -> Result<Changed> {
    let mut changed = Changed { text: String::new(), outcomes: Vec::new() };
    for (i, document) in split(manifest).into_iter().enumerate() {
        changed.text += &document.separator;
        let mut value = parse(&document.text).map_err(|why| anyhow!("document {}: {why}", i + 1))?;
        let (mut changes, mut rewritten) = (Vec::new(), false);
        for target in targets(&value) {
            let Some(object) = at(&mut value, &target.path) else { continue };
            let (what, of_target) = decide(&target, object, wish);
            let whole = *wish == Wish::Leave && target.kind == Kind::Pod && undo::is_whole(object);
            if whole {
                undo::take_out(object).with_context(|| target.name.clone())?;
                rewritten = true;
            }
            let what = if whole { format!("proxy removed, {what}") } else { what };
            changed.outcomes.push(Outcome { name: target.name.clone(), what });
            changes.extend(of_target);
        }
        let text = if rewritten { hauberk_deploy::document(&value) } else { document.text };
        let edited = edit(&text, &changes).map_err(|why| anyhow!("document {}: {why}", i + 1))?;
        if edited.anew {
            let what = "written anew, without its comments: its style cannot be edited in place".to_owned();
            changed.outcomes.push(Outcome { name: format!("document {}", i + 1), what });
        }
        changed.text += &edited.text;
    }
    Ok(changed)
}

/// Puts a manifest behind another as a document of its own.
pub(crate) fn join(all: &mut String, text: &str) {
    if !all.is_empty() {
        if !all.ends_with('\n') {
            all.push('\n');
        }
        if !text.starts_with("---") {
            all.push_str("---\n");
        }
    }
    all.push_str(text);
}

fn decide(target: &Target, object: &Value, wish: &Wish) -> (String, Vec<Change>) {
    let set = |field: &'static str, key: &'static str| object["metadata"][field][key].as_str();
    let change = |field, key, value: Option<&str>| Change {
        path: target.path.clone(),
        field,
        key,
        value: value.map(str::to_owned),
    };
    // The mode of a namespace is a label, for the API server selects by it; that of a pod is an annotation.
    let mode = if target.kind == Kind::Namespace { "labels" } else { "annotations" };
    match wish {
        Wish::Join { .. } if object["spec"]["hostNetwork"] == true => {
            ("left as it is: pods in the network of their node cannot join the mesh".to_owned(), Vec::new())
        }
        Wish::Join { .. }
            if ["labels", "annotations"].iter().any(|field| set(field, INJECT_KEY) == Some("disabled")) =>
        {
            (format!("left as it is: it says {INJECT_KEY}: disabled"), Vec::new())
        }
        Wish::Join { tls } => {
            let mut changes = vec![change("labels", INJECT_KEY, Some("enabled"))];
            changes.extend(tls.map(|tls| change(mode, TLS_KEY, Some(tls.as_str()))));
            (
                if set("labels", INJECT_KEY) == Some("enabled") { "labelled already" } else { "labelled" }.to_owned(),
                changes,
            )
        }
        Wish::Leave if set("labels", INJECT_KEY) == Some("disabled") => {
            (format!("left as it is: it says {INJECT_KEY}: disabled"), Vec::new())
        }
        Wish::Leave => {
            let changes = vec![change("labels", INJECT_KEY, None), change(mode, TLS_KEY, None)];
            (if set("labels", INJECT_KEY).is_some() { "label removed" } else { "had no label" }.to_owned(), changes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOIN: Wish = Wish::Join { tls: None };

    fn outcomes(manifest: &str, wish: &Wish) -> Vec<String> {
        change(manifest, wish).expect("valid").outcomes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_manifest_keeps_all_that_is_not_the_label() {
        let manifest = include_str!("testdata/shop.yaml");
        let injected = change(manifest, &Wish::Join { tls: Some(TlsMode::Required) }).expect("valid");
        insta::assert_snapshot!("shop_injected", injected.text);
        assert_eq!(change(&injected.text, &Wish::Leave).expect("valid").text, manifest);
        let again = change(&injected.text, &Wish::Join { tls: Some(TlsMode::Required) }).expect("valid");
        assert_eq!(again.text, injected.text);
        assert!(injected.outcomes.iter().all(|outcome| !outcome.what.contains("anew")), "{:?}", injected.outcomes);
    }

    #[test]
    fn people_are_told_what_was_done_to_each_object() {
        let manifest = include_str!("testdata/shop.yaml");
        insta::assert_snapshot!(outcomes(manifest, &JOIN).join("\n"), @"
        namespace/shop: labelled
        deployment/web: labelled
        statefulset/db: labelled
        daemonset/agent: left as it is: pods in the network of their node cannot join the mesh
        replicaset/old: left as it is: it says hauberk.dev/inject: disabled
        job/once: labelled
        cronjob/nightly: labelled
        pod/shell: labelled
        replicationcontroller/ancient: labelled
        ");
    }

    #[test]
    fn an_anchor_that_others_use_is_not_changed_for_them() {
        let manifest = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  selector:\n    matchLabels: &app\n      app: web\n  template:\n    metadata:\n      labels: *app\n    spec: {}\n";
        let changed = change(manifest, &JOIN).expect("valid");
        let value = parse(&changed.text).expect("valid");
        assert_eq!(value["spec"]["selector"]["matchLabels"], serde_json::json!({ "app": "web" }));
        assert_eq!(value["spec"]["template"]["metadata"]["labels"][INJECT_KEY], "enabled");
        assert!(
            changed.outcomes[1].to_string().contains("document 1: written anew, without its comments"),
            "{:?}",
            changed.outcomes
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = change("a: 1\n---\nb: [\n", &JOIN).expect_err("open bracket").to_string();
        assert!(error.starts_with("document 2: "), "{error}");
    }

    #[test]
    fn manifests_are_joined_as_documents() {
        let mut all = String::new();
        for text in ["a: 1", "---\nb: 2\n", "c: 3\n"] {
            join(&mut all, text);
        }
        assert_eq!(all, "a: 1\n---\nb: 2\n---\nc: 3\n");
    }
}
