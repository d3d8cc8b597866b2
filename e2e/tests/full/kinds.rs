//! Every kind of pod that needs care runs with a proxy, and speaks mTLS.

use hauberk_e2e::Images;
use hauberk_mesh::{INIT_CONTAINER, PROXY_CONTAINER};
use serde_json::{Value, json};

use crate::scene::{Scene, account, pod};

/// Where the cluster's DNS answers.
const RESOLVER: &str = "10.96.0.10";

/// What is special about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    NativeSidecar,
    PlainSidecar,
    Job,
    InitContainerWithNetwork,
    PlainInitContainerWithoutProxy,
    DnsPolicyNone,
    DnsPolicyDefault,
    /// Who owns the token's file depends on both.
    Users {
        fs_group: Option<u32>,
        user: Option<u32>,
    },
    RunAsNonRoot,
    AutomountFalse,
    ImagePullSecrets,
    Guaranteed,
    LimitRange,
}

const ALL: [Kind; 18] = [
    Kind::NativeSidecar,
    Kind::PlainSidecar,
    Kind::Job,
    Kind::InitContainerWithNetwork,
    Kind::PlainInitContainerWithoutProxy,
    Kind::DnsPolicyNone,
    Kind::DnsPolicyDefault,
    Kind::Users { fs_group: None, user: None },
    Kind::Users { fs_group: None, user: Some(0) },
    Kind::Users { fs_group: None, user: Some(1000) },
    Kind::Users { fs_group: Some(3000), user: None },
    Kind::Users { fs_group: Some(3000), user: Some(0) },
    Kind::Users { fs_group: Some(3000), user: Some(1000) },
    Kind::RunAsNonRoot,
    Kind::AutomountFalse,
    Kind::ImagePullSecrets,
    Kind::Guaranteed,
    Kind::LimitRange,
];

impl Kind {
    /// Its name, that of its account, and what it asks the server for.
    fn name(self) -> String {
        let number = |id: Option<u32>| id.map_or_else(|| "unset".to_owned(), |id| id.to_string());
        match self {
            Self::Users { fs_group, user } => format!("fs-group-{}-user-{}", number(fs_group), number(user)),
            _ => format!("{self:?}").chars().fold(String::new(), |name, next| match next.is_uppercase() {
                true if name.is_empty() => next.to_lowercase().collect(),
                true => format!("{name}-{}", next.to_lowercase()),
                false => name + &next.to_string(),
            }),
        }
    }

    /// What `kubectl wait` waits for.
    fn goal(self) -> (&'static str, &'static str) {
        match self {
            Self::Job => ("job", "condition=Complete"),
            _ => ("pod", "condition=Ready"),
        }
    }

    fn object(self, web: &str) -> Value {
        let name = self.name();
        let url = match self {
            // Knows nothing of the cluster's names.
            Self::DnsPolicyDefault => format!("http://{web}/{name}"),
            _ => format!("http://web/{name}"),
        };
        let ask = format!("until curl -sS --fail --max-time 5 {url}; do sleep 0.2; done");
        match self {
            Self::Job => {
                let mut template = pod(&name, json!({ "command": ["sh", "-c", ask] }), |_| {});
                template["spec"]["restartPolicy"] = json!("Never");
                let spec = json!({ "template": { "spec": template["spec"] } });
                json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name }, "spec": spec })
            }
            // Its init container asks, before the application is there.
            Self::InitContainerWithNetwork => pod(&name, resting(""), |pod| {
                pod["spec"]["initContainers"] = json!([asker(&ask)]);
            }),
            _ => pod(&name, resting(&ask), |pod| self.edit(pod)),
        }
    }

    fn edit(self, pod: &mut Value) {
        let container = pod["spec"]["containers"][0].take();
        let spec = &mut pod["spec"];
        spec["containers"] = json!([container]);
        match self {
            Self::PlainSidecar => pod["metadata"]["annotations"] = json!({ "hauberk.dev/sidecar": "plain" }),
            // What runs before a plain sidecar does without it: it must not be redirected to nobody.
            Self::PlainInitContainerWithoutProxy => {
                spec["initContainers"] =
                    json!([asker("until curl -sS --fail --max-time 5 http://web/early; do sleep 0.2; done")]);
                pod["metadata"]["annotations"] = json!({ "hauberk.dev/sidecar": "plain" });
            }
            Self::DnsPolicyNone => {
                spec["dnsPolicy"] = json!("None");
                let search = spec["serviceAccountName"].as_str().map(|_| "kinds.svc.cluster.local");
                spec["dnsConfig"] = json!({ "nameservers": [RESOLVER], "searches": [search] });
            }
            Self::DnsPolicyDefault => spec["dnsPolicy"] = json!("Default"),
            Self::Users { fs_group, user } => {
                spec["securityContext"] = json!({ "fsGroup": fs_group, "runAsUser": user });
                spec["securityContext"].as_object_mut().expect("an object").retain(|_, value| !value.is_null());
            }
            Self::RunAsNonRoot => spec["securityContext"] = json!({ "runAsNonRoot": true, "runAsUser": 1000 }),
            Self::AutomountFalse => spec["automountServiceAccountToken"] = json!(false),
            Self::ImagePullSecrets => spec["imagePullSecrets"] = json!([{ "name": "pull" }]),
            Self::Guaranteed => {
                let amounts = json!({ "cpu": "50m", "memory": "32Mi" });
                spec["containers"][0]["resources"] = json!({ "requests": amounts, "limits": amounts });
            }
            _ => {}
        }
    }

    /// What else must be true of the pod as the API server has it.
    fn check(self, pod: &Value) -> Result<(), String> {
        let spec = &pod["spec"];
        let names = |list: &str| -> Vec<&str> {
            spec[list].as_array().into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
        };
        let right = match self {
            Self::PlainSidecar => {
                names("initContainers") == [INIT_CONTAINER] && names("containers") == [PROXY_CONTAINER, "app"]
            }
            Self::PlainInitContainerWithoutProxy => names("initContainers") == ["early", INIT_CONTAINER],
            Self::InitContainerWithNetwork => names("initContainers") == [INIT_CONTAINER, PROXY_CONTAINER, "early"],
            Self::AutomountFalse => {
                let mounts = spec["containers"][0]["volumeMounts"].as_array();
                mounts.is_none_or(Vec::is_empty)
            }
            Self::ImagePullSecrets => spec["imagePullSecrets"][0]["name"] == "pull",
            Self::Guaranteed => pod["status"]["qosClass"] == "Guaranteed",
            Self::LimitRange => spec["initContainers"][1]["resources"]["limits"]["cpu"] == "400m",
            _ => names("initContainers") == [INIT_CONTAINER, PROXY_CONTAINER],
        };
        if right { Ok(()) } else { Err(format!("{}: {pod}", self.name())) }
    }
}

/// A container that does something, then is ready and rests.
fn resting(first: &str) -> Value {
    let script = format!("{first}\ntouch /tmp/ready\nexec sleep 1000000");
    let probe = json!({ "exec": { "command": ["test", "-e", "/tmp/ready"] }, "periodSeconds": 1 });
    json!({ "command": ["sh", "-c", script], "readinessProbe": probe })
}

/// An init container that does something.
fn asker(script: &str) -> Value {
    json!({ "name": "early", "image": Images::APPS, "imagePullPolicy": "Never", "command": ["sh", "-c", script] })
}

#[test]
fn every_kind_of_pod_runs_and_speaks_mtls() {
    let scene = Scene::meshed("kinds", &[]);
    let limited = Scene::meshed("limited", &[]);
    scene.web();
    limited.web();
    scene.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "pull" }, "type": "kubernetes.io/dockerconfigjson",
        "stringData": { ".dockerconfigjson": "{\"auths\":{}}" },
    }));
    // Limits for whoever sets none, as small as allowed for whoever does.
    limited.apply(&json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": { "name": "usual" },
        "spec": { "limits": [{
            "type": "Container",
            "default": { "cpu": "400m", "memory": "256Mi" }, "defaultRequest": { "cpu": "20m", "memory": "32Mi" },
            "max": { "cpu": "1", "memory": "512Mi" },
        }] },
    }));
    let web = scene.kind.get(&["service", "-n", scene.namespace, "web"]).expect("a service");
    let web = web["spec"]["clusterIP"].as_str().expect("an address");
    let of = |kind| if kind == Kind::LimitRange { &limited } else { &scene };
    for kind in ALL {
        of(kind).apply(&account(&kind.name()));
        of(kind).apply(&kind.object(web));
    }
    let mut wrong = Vec::new();
    for kind in ALL {
        let (scene, name) = (of(kind), kind.name());
        let run = || -> anyhow::Result<()> {
            let (object, condition) = kind.goal();
            scene.kind.wait(scene.namespace, &[object, &name], condition)?;
            scene.spoke(&name, "web")?;
            if object == "pod" {
                let pod = scene.kind.get(&["pod", "-n", scene.namespace, &name])?;
                kind.check(&pod).map_err(anyhow::Error::msg)?;
            }
            Ok(())
        };
        match run() {
            Ok(()) => println!("{name}: runs and speaks mTLS"),
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
