//! `docs/annotations.md`, made from the table of settings.

use hauberk_mesh::Limits;

use super::{Place, SETTINGS};

/// The document, whole.
pub fn annotations() -> String {
    let mut text = String::from(HEAD);
    for setting in SETTINGS {
        text += &format!(
            "| `{}` | {} | {} | {} | {} | {} | {} |\n",
            setting.name,
            place(setting.namespace),
            place(setting.pod),
            setting.says,
            setting.valid,
            setting.default,
            setting.effect,
        );
    }
    text += REST;
    let limits = Limits::default().entries();
    text += &limits.iter().map(|(name, default)| format!("`{name}={default}`")).collect::<Vec<_>>().join(", ");
    text + ".\n"
}

fn place(place: Place) -> &'static str {
    match place {
        Place::Nowhere => "",
        Place::Label => "label",
        Place::Annotation => "annotation",
        Place::LabelOrAnnotation => "label or annotation",
    }
}

const HEAD: &str = "\
# Labels and annotations

Made from `webhook/src/inject/settings/table.rs` by `cargo run -p hauberk-webhook --example annotations`; a test holds the two equal.

Each is set as `hauberk.dev/NAME`. The narrowest place wins: pod, then namespace, then what the mesh was installed with. \"restart\"
means: pods that are made from then on have it, so restart the workload (`kubectl rollout restart`). \"live\" would mean at once, in
pods that run; none is.

| name | on a namespace | on a pod | what it does | valid | default | takes effect |
| ---- | -------------- | -------- | ------------ | ----- | ------- | ------------ |
";

const REST: &str = "
## What is refused

- A value that is not valid: the pod is refused, with the reason and what is valid. No default is put in its place.
- A label or annotation `hauberk.dev/…` of a pod that is none of these, with the name that is nearest to it. On a namespace it is a
  warning, so that keys of a newer version do not keep an older one from letting pods in.
- One of these where it does not belong: `hauberk.dev/tls` as an annotation of a namespace, for example, would do nothing.
- Where the namespace (or the mesh) says `tls: required`, whatever a pod sets that would loosen it: another mode, a wider `egress`,
  exceptions, skipped ports and subnets that the namespace does not list, a plain sidecar, another image of the proxy. Also
  `hauberk.dev/inject: disabled`, and containers of another mesh, unless the namespace lists the pod's ServiceAccount in
  `hauberk.dev/allow-uninjected`.

## Which pods are injected

A pod is injected if its namespace has the label `hauberk.dev/inject=enabled`, or the pod has; if its namespace has the label
`hauberk.dev/tls=required`, every pod is. `disabled` on the namespace or on the pod, as label or annotation, outweighs that. On a
namespace `enabled` must be a label: the API server chooses by labels which pods the webhook sees at all.

Left as they are, with the reason: pods with the node's network, on Windows, static pods, pods of another mesh, pods of `kube-system`
and of the mesh's own namespace.

## Resources

Both our containers always have requests for CPU and memory. If all containers of a pod have limits equal to requests (Guaranteed),
so have ours: the limit that is set, else the request that is set, else 100m and 64Mi. If the pod as a whole has resources
(`spec.resources`), ours come out of them, and none are set unless an annotation does.

## Probes

httpGet, tcpSocket and grpc probes and httpGet hooks are led to the proxy (port 4190), which does what was declared and answers alike;
kubelet waits one second longer than declared. exec probes, periods, thresholds and grace periods stay as they are.

## Limits

All names for `hauberk.dev/limits`, with their defaults: ";

#[cfg(test)]
mod tests {
    #[test]
    fn the_document_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/annotations.md");
        let document = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            document == super::annotations(),
            "docs/annotations.md is not what the table says. Run:\n\
             cargo run -p hauberk-webhook --example annotations > docs/annotations.md"
        );
    }
}
