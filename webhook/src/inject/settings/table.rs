//! The one table of labels and annotations `hauberk.dev/…`: where each may stand, what is valid, what it does.

use hauberk_kubernetes::PullPolicy;
use hauberk_mesh::{Limits, SidecarKind, TlsMode};

use super::{
    Effect, MOST_ITEMS, Place, Setting, accounts, covered, exceptions, image, limit, log, parse, request, set, switch,
    too_many,
};
use crate::inject::plan::Plan;

const NEVER: fn(&Plan, &Plan) -> bool = |_, _| false;
const QUANTITY: &str = "a quantity above 0, such as `100m`, `0.5` or `24Mi`";
/// Every setting, in the order of the documents.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "inject",
        namespace: Place::LabelOrAnnotation,
        pod: Place::LabelOrAnnotation,
        valid: "`enabled` or `disabled`; on a namespace `enabled` only as a label",
        default: "not injected",
        effect: Effect::Restart,
        says: "Whether pods join the mesh; `disabled` outweighs `enabled`, wherever it stands.",
        example: "disabled",
        counterexample: "true",
        apply: |plan, text| {
            let said = switch(text)?;
            plan.inject = Some(plan.inject.unwrap_or(true) && said);
            Ok(())
        },
        // A pod that says `disabled` never comes to this.
        loosens: NEVER,
    },
    Setting {
        name: "tls",
        namespace: Place::Label,
        pod: Place::Annotation,
        valid: "`optional`, `required` or `disabled`",
        default: "what the mesh was installed with (`optional`)",
        effect: Effect::Restart,
        says: "Whether peers without mTLS are served in plaintext, refused, or all are served without mTLS.",
        example: "required",
        counterexample: "strict",
        apply: |plan, text| set(&mut plan.tls, text),
        loosens: |_, pod| pod.tls != TlsMode::Required,
    },
    Setting {
        name: "egress",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: "`allow`, `tls-only` or `deny`",
        default: "`allow`",
        effect: Effect::Restart,
        says: "What a pod whose mode is `required` may send outside the cluster.",
        example: "tls-only",
        counterexample: "none",
        apply: |plan, text| set(&mut plan.egress, text),
        loosens: |base, pod| pod.egress < base.egress,
    },
    Setting {
        name: "allow-unmeshed-from",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: "networks, each with ports of the pod or without, spaces between: `10.1.0.0/16@5432,6379 fd00::/8`",
        default: "nobody",
        effect: Effect::Restart,
        says: "Who may come to a pod whose mode is `required` without mTLS.",
        example: "10.9.0.0/16@8080",
        counterexample: "10.9.0.0/16:8080",
        apply: |plan, text| {
            plan.allow_unmeshed_from = exceptions(text)?;
            Ok(())
        },
        loosens: |base, pod| !covered(&base.allow_unmeshed_from, &pod.allow_unmeshed_from),
    },
    Setting {
        name: "allow-unmeshed-to",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: "networks, each with ports of theirs or without, spaces between: `10.1.0.0/16@5432,6379 fd00::/8`",
        default: "nobody",
        effect: Effect::Restart,
        says: "Where in the cluster a pod whose mode is `required` may go without mTLS.",
        example: "10.9.0.0/16@5432",
        counterexample: "db.example",
        apply: |plan, text| {
            plan.allow_unmeshed_to = exceptions(text)?;
            Ok(())
        },
        loosens: |base, pod| !covered(&base.allow_unmeshed_to, &pod.allow_unmeshed_to),
    },
    Setting {
        name: "allow-uninjected",
        namespace: Place::Annotation,
        pod: Place::Nowhere,
        valid: "names of ServiceAccounts with commas between: `node-agent,legacy`",
        default: "none",
        effect: Effect::Restart,
        says: "ServiceAccounts whose pods may say `hauberk.dev/inject: disabled`, or belong to another mesh, in a namespace that requires mTLS.",
        example: "node-agent,legacy",
        counterexample: "node agent",
        apply: |plan, text| {
            plan.allow_uninjected = accounts(text)?;
            Ok(())
        },
        loosens: NEVER,
    },
    Setting {
        name: "skip-inbound-ports",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: "ports and ranges with commas between: `22,4000-4010`",
        default: "none",
        effect: Effect::Restart,
        says: "Ports of the pod that clients reach without the proxy, in plaintext.",
        example: "9000",
        counterexample: "http",
        apply: |plan, text| set(&mut plan.redirection.skip_inbound_ports, text),
        loosens: |base, pod| !base.redirection.skip_inbound_ports.includes(&pod.redirection.skip_inbound_ports),
    },
    Setting {
        name: "skip-outbound-ports",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: "ports and ranges with commas between: `25,587`",
        default: "none",
        effect: Effect::Restart,
        says: "Ports of others that the pod reaches without the proxy, in plaintext.",
        example: "25",
        counterexample: "0",
        apply: |plan, text| set(&mut plan.redirection.skip_outbound_ports, text),
        loosens: |base, pod| !base.redirection.skip_outbound_ports.includes(&pod.redirection.skip_outbound_ports),
    },
    Setting {
        name: "skip-subnets",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: "networks with commas between: `10.9.0.0/16,fd09::/64`",
        default: "none",
        effect: Effect::Restart,
        says: "Networks that the pod reaches, and that reach it, without the proxy, in plaintext.",
        example: "192.0.2.0/24",
        counterexample: "192.0.2.0/33",
        apply: |plan, text| {
            let most = text.split(',').count();
            if most > MOST_ITEMS { Err(too_many(most)) } else { set(&mut plan.redirection.skip_subnets, text) }
        },
        loosens: |base, pod| !base.redirection.skip_subnets.includes(&pod.redirection.skip_subnets),
    },
    Setting {
        name: "sidecar",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: "`native`, `plain` or `auto`",
        default: "`auto`: native where every kubelet is 1.29 or newer",
        effect: Effect::Restart,
        says: "Whether the proxy is an init container that goes on running, or a container beside the application's.",
        example: "plain",
        counterexample: "istio",
        apply: |plan, text| {
            plan.sidecar = match text {
                "auto" => None,
                "native" => Some(SidecarKind::Native),
                "plain" => Some(SidecarKind::Plain),
                _ => return Err("it is no kind of sidecar".to_owned()),
            };
            Ok(())
        },
        // What runs before hauberk-init in a pod with a plain sidecar is not meshed.
        loosens: |base, pod| pod.sidecar == Some(SidecarKind::Plain) && base.sidecar != Some(SidecarKind::Plain),
    },
    Setting {
        name: "proxy-image",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: "the name of an image, with tag or digest",
        default: "what the mesh was installed with",
        effect: Effect::Restart,
        says: "The image of proxy and init.",
        example: "registry.example/hauberk-proxy:debug",
        counterexample: "two words",
        apply: |plan, text| {
            plan.image = image(text)?;
            Ok(())
        },
        // Another program could be anything.
        loosens: |base, pod| pod.image != base.image,
    },
    Setting {
        name: "image-pull-policy",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: "`Always`, `IfNotPresent` or `Never`",
        default: "what the mesh was installed with (`IfNotPresent`)",
        effect: Effect::Restart,
        says: "When the image of proxy and init is pulled.",
        example: "Always",
        counterexample: "always",
        apply: |plan, text| {
            plan.pull_policy = match text {
                "Always" => PullPolicy::Always,
                "IfNotPresent" => PullPolicy::IfNotPresent,
                "Never" => PullPolicy::Never,
                _ => return Err("it is no pull policy".to_owned()),
            };
            Ok(())
        },
        loosens: NEVER,
    },
    Setting {
        name: "proxy-cpu-request",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: QUANTITY,
        default: "what the mesh was installed with (`10m`)",
        effect: Effect::Restart,
        says: "CPU that is set aside for the proxy; in a Guaranteed pod also its limit.",
        example: "50m",
        counterexample: "50 m",
        apply: |plan, text| request(&mut plan.cpu, text),
        loosens: NEVER,
    },
    Setting {
        name: "proxy-cpu-limit",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: QUANTITY,
        default: "what the mesh was installed with (none)",
        effect: Effect::Restart,
        says: "Most CPU that the proxy gets; in a Guaranteed pod also its request.",
        example: "2",
        counterexample: "two",
        apply: |plan, text| limit(&mut plan.cpu, text),
        loosens: NEVER,
    },
    Setting {
        name: "proxy-memory-request",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: QUANTITY,
        default: "what the mesh was installed with (`24Mi`)",
        effect: Effect::Restart,
        says: "Memory that is set aside for the proxy; in a Guaranteed pod also its limit.",
        example: "64Mi",
        counterexample: "64MB",
        apply: |plan, text| request(&mut plan.memory, text),
        loosens: NEVER,
    },
    Setting {
        name: "proxy-memory-limit",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: QUANTITY,
        default: "what the mesh was installed with (none)",
        effect: Effect::Restart,
        says: "Most memory that the proxy gets; in a Guaranteed pod also its request.",
        example: "256Mi",
        counterexample: "-1",
        apply: |plan, text| limit(&mut plan.memory, text),
        loosens: NEVER,
    },
    Setting {
        name: "proxy-ephemeral-storage-request",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: QUANTITY,
        default: "none",
        effect: Effect::Restart,
        says: "Disk that is set aside for the proxy, which writes nothing but its log.",
        example: "10Mi",
        counterexample: "10MiB",
        apply: |plan, text| request(&mut plan.ephemeral_storage, text),
        loosens: NEVER,
    },
    Setting {
        name: "proxy-ephemeral-storage-limit",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: QUANTITY,
        default: "none",
        effect: Effect::Restart,
        says: "Most disk that the proxy's log may take before kubelet evicts the pod; kubelet counts the whole pod against the sum of its containers' limits: set the application's too.",
        example: "100Mi",
        counterexample: "0",
        apply: |plan, text| limit(&mut plan.ephemeral_storage, text),
        loosens: NEVER,
    },
    Setting {
        name: "proxy-uid",
        namespace: Place::Annotation,
        pod: Place::Nowhere,
        valid: "a uid from 1 to 2147483647 that no application runs as",
        default: "2102",
        effect: Effect::Restart,
        says: "The uid of the proxy, whose traffic the redirection lets pass; for namespaces with a range of uids of their own.",
        example: "10021",
        counterexample: "0",
        apply: |plan, text| {
            let uid: u32 = parse(text)?;
            if uid == 0 || i32::try_from(uid).is_err() {
                return Err("it is no uid for a proxy: whatever runs as root would pass beside it".to_owned());
            }
            plan.redirection.proxy_uid = uid;
            Ok(())
        },
        loosens: NEVER,
    },
    Setting {
        name: "log",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: "`off`, `error`, `warn`, `info`, `debug` or `trace`, or several for modules with commas between: `info,hauberk_proxy=debug`",
        default: "`info`",
        effect: Effect::Restart,
        says: "What the proxy logs.",
        example: "info,hauberk_proxy=debug",
        counterexample: "verbose",
        apply: |plan, text| {
            plan.log = log(text)?;
            Ok(())
        },
        loosens: NEVER,
    },
    Setting {
        name: "limits",
        namespace: Place::Annotation,
        pod: Place::Annotation,
        valid: "`name=value` with commas between, such as `connect=2s,drain=30s`; the names and defaults are below",
        default: "see below",
        effect: Effect::Restart,
        says: "The proxy's waits and bounds by name; a name that is not given keeps what the wider place says.",
        example: "connect=2s,drain=30s",
        counterexample: "conect=3s",
        apply: |plan, text| {
            if text.len() > 2000 {
                return Err("it is longer than 2000 characters".to_owned());
            }
            let all = format!("{},{text}", plan.limits_text);
            plan.limits = Limits::parse(&all).map_err(|error| error.to_string())?;
            plan.limits_text = all;
            Ok(())
        },
        loosens: NEVER,
    },
];
