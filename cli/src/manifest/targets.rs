//! Which objects of a document decide about injection: pods, the templates of workloads, namespaces. Pure.

use serde_json::Value;

/// An object of a document that labels can be set on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// `deployment/web`, for people.
    pub(crate) name: String,
    /// Pod or namespace.
    pub(crate) kind: Kind,
    /// What makes the pods: `Job`, `Pod`, ….
    pub(crate) owner: String,
    /// The namespace that the object names.
    pub(crate) namespace: Option<String>,
    /// Where the object with `metadata` (and `spec`) stands: keys, and indices of sequences.
    pub(crate) path: Vec<String>,
}

/// What a label is set on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A pod, or the template of one.
    Pod,
    /// A namespace.
    Namespace,
}

/// API group, kind, and where the template of its pods stands. Of other kinds nothing is known.
const KINDS: [(&str, &str, &[&str]); 9] = [
    ("", "Pod", &[]),
    ("", "Namespace", &[]),
    ("", "ReplicationController", &["spec", "template"]),
    ("apps", "Deployment", &["spec", "template"]),
    ("apps", "StatefulSet", &["spec", "template"]),
    ("apps", "DaemonSet", &["spec", "template"]),
    ("apps", "ReplicaSet", &["spec", "template"]),
    ("batch", "Job", &["spec", "template"]),
    ("batch", "CronJob", &["spec", "jobTemplate", "spec", "template"]),
];

/// Lists in lists are no manifests.
const DEEPEST: usize = 4;

/// All of them, in the order of the text; also those in lists.
pub(crate) fn targets(document: &Value) -> Vec<Target> {
    let mut found = Vec::new();
    collect(document, Vec::new(), &mut found);
    found
}

/// What stands at a path.
pub(crate) fn at<'a>(document: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(document, |value, step| match value {
        Value::Array(items) => items.get_mut(step.parse::<usize>().ok()?),
        other => other.get_mut(step),
    })
}

fn collect(object: &Value, path: Vec<String>, found: &mut Vec<Target>) {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let (group, kind) = (text("apiVersion").split_once('/').map_or("", |(group, _)| group), text("kind"));
    if let (true, Some(items)) = (kind.ends_with("List"), object["items"].as_array()) {
        for (i, item) in items.iter().enumerate().filter(|_| path.len() < DEEPEST) {
            collect(item, [path.clone(), vec!["items".to_owned(), i.to_string()]].concat(), found);
        }
    }
    let Some((_, _, template)) = KINDS.iter().find(|(g, k, _)| (*g, *k) == (group, kind)) else { return };
    if !template.iter().try_fold(object, |object, key| object.get(key)).is_some_and(Value::is_object) {
        return;
    }
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or("(without a name)");
    found.push(Target {
        name: format!("{}/{name}", kind.to_ascii_lowercase()),
        kind: if kind == "Namespace" { Kind::Namespace } else { Kind::Pod },
        owner: kind.to_owned(),
        namespace: metadata["namespace"].as_str().map(str::to_owned),
        path: path.into_iter().chain(template.iter().map(|key| (*key).to_owned())).collect(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_has_its_template_and_others_none() {
        for (group, kind, template) in KINDS {
            let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
            let mut object = json!({ "apiVersion": version, "kind": kind, "metadata": { "name": "web" } });
            if !template.is_empty() {
                assert_eq!(targets(&object), [], "{kind} without a template");
                let inner = template.iter().rev().fold(json!({}), |inner, key| json!({ *key: inner }));
                object["spec"] = inner["spec"].clone();
            }
            let found = targets(&object);
            assert_eq!(found.len(), 1, "{kind}");
            assert_eq!(
                (found[0].name.clone(), &found[0].path[..]),
                (
                    format!("{}/web", kind.to_lowercase()),
                    &template.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>()[..]
                )
            );
            object["apiVersion"] = json!("example.org/v1");
            assert_eq!(targets(&object), [], "{kind} of somebody else");
        }
    }

    #[test]
    fn lists_are_looked_into() {
        let pod = |name: &str| json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name } });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [pod("a"), { "kind": "Service" }, pod("b")] });
        let paths: Vec<_> = targets(&list).into_iter().map(|target| target.path.join(".")).collect();
        assert_eq!(paths, ["items.0", "items.2"]);
    }
}
