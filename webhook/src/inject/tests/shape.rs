//! What an injected pod looks like.

use super::*;

fn applied(pod: &Value) -> Value {
    patched(pod, decide_in(pod, &joined()))
}

#[test]
fn a_native_sidecar_is_the_second_init_container() {
    let pod = pod_of(json!({
        "containers": [{"name": "app", "image": "app:1"}],
        "initContainers": [{"name": "migrate", "image": "app:1"}],
    }));
    let after = applied(&pod);
    assert_eq!(names(&after, "initContainers"), ["hauberk-init", "hauberk-proxy", "migrate"]);
    assert_eq!(names(&after, "containers"), ["app"]);
    insta::assert_snapshot!(pretty(after));
}

#[test]
fn a_plain_sidecar_is_the_first_container_and_init_comes_last() {
    let mut pod =
        pod_with(&[], &[("sidecar", "plain"), ("skip-inbound-ports", "22,80-90"), ("skip-subnets", "192.0.2.0/24")]);
    pod["spec"]["initContainers"] = json!([{"name": "migrate", "image": "app:1"}]);
    let after = applied(&pod);
    assert_eq!(names(&after, "initContainers"), ["migrate", "hauberk-init"]);
    assert_eq!(names(&after, "containers"), ["hauberk-proxy", "app"]);
    insta::assert_snapshot!(pretty(after));
}

#[test]
fn the_patch_is_explicit_operations() {
    let pod = pod_of(json!({
        "containers": [{"name": "app", "livenessProbe": {"tcpSocket": {"port": 1}}}],
        "volumes": [{"name": "data", "emptyDir": {}}],
    }));
    let short = |operation: &json_patch::PatchOperation| {
        let operation = serde_json::to_value(operation).expect("JSON");
        let value = operation.get("value").map(|value| value.get("name").unwrap_or(value).to_string());
        let path = operation["path"].as_str().expect("a path").to_owned();
        format!("{} {path} {}", operation["op"].as_str().expect("a name"), value.unwrap_or_default())
    };
    let patch = injection(decide_in(&pod, &joined())).patch;
    insta::assert_snapshot!(patch.iter().map(short).collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_container_of_our_name_is_replaced_wherever_it_stands() {
    let ours = |name: &str| json!({"name": name, "image": "evil:1", "command": ["sh"], "env": [{"name": "HAUBERK_TLS", "value": "disabled"}]});
    let pod = pod_of(json!({
        "containers": [ours("hauberk-proxy"), {"name": "app", "image": "app:1"}],
        "initContainers": [{"name": "migrate"}, ours("hauberk-init")],
        "volumes": [{"name": "hauberk-token", "hostPath": {"path": "/"}}, {"name": "data", "emptyDir": {}}],
    }));
    let clean = pod_of(json!({
        "containers": [{"name": "app", "image": "app:1"}],
        "initContainers": [{"name": "migrate"}],
        "volumes": [{"name": "data", "emptyDir": {}}],
    }));
    assert_eq!(applied(&pod), applied(&clean));
    assert!(!applied(&pod).to_string().contains("evil"));
}

#[test]
fn our_containers_mount_an_empty_volume_where_the_api_token_would_be() {
    for pod in [pod(), pod_with(&[], &[("sidecar", "plain")])] {
        let after = applied(&pod);
        let lists = ["initContainers", "containers"].map(|list| after["spec"][list].as_array().expect("an array"));
        let ours: Vec<_> = lists.into_iter().flatten().filter(|it| it["name"] != "app").collect();
        assert_eq!(ours.len(), 2);
        for container in ours {
            let mounts = container["volumeMounts"].as_array().expect("mounts");
            let at = mounts.iter().find(|it| it["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount");
            assert_eq!(
                at,
                Some(
                    &json!({"name": "hauberk-empty", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true})
                )
            );
        }
        assert_eq!(by_name(&after, "volumes", "hauberk-empty")["emptyDir"]["medium"], "Memory");
    }
}

#[test]
fn the_default_container_is_the_application_s_first_unless_it_is_set() {
    let key = "kubectl.kubernetes.io/default-container";
    assert_eq!(applied(&pod())["metadata"]["annotations"][key], "app");
    let mut own = pod();
    own["metadata"]["annotations"] = json!({key: "other"});
    assert_eq!(applied(&own)["metadata"]["annotations"], json!({key: "other"}));
    let mut null = pod();
    null["metadata"] = json!(null);
    assert_eq!(applied(&null)["metadata"]["annotations"][key], "app");
}

type Annotations = &'static [(&'static str, &'static str)];

#[test]
fn requests_are_always_set_and_guaranteed_pods_stay_guaranteed() {
    let fixed = json!({"limits": {"cpu": 1, "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
    let only_limits = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
    let burst = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "0.5"}});
    let floor = json!({"limits": {"cpu": "100m", "memory": "64Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}});
    let table: [(Value, Annotations, Value); 6] = [
        (json!(null), &[], json!({"requests": {"cpu": "10m", "memory": "24Mi"}})),
        (burst, &[], json!({"requests": {"cpu": "10m", "memory": "24Mi"}})),
        (fixed.clone(), &[], floor.clone()),
        (only_limits, &[], floor),
        (
            fixed.clone(),
            &[("proxy-cpu-request", "50m"), ("proxy-memory-limit", "256Mi")],
            json!({"limits": {"cpu": "50m", "memory": "256Mi"}, "requests": {"cpu": "50m", "memory": "256Mi"}}),
        ),
        (
            json!({}),
            &[("proxy-cpu-limit", "5m"), ("proxy-ephemeral-storage-limit", "1Gi")],
            json!({"limits": {"cpu": "5m", "ephemeral-storage": "1Gi"}, "requests": {"cpu": "5m", "memory": "24Mi"}}),
        ),
    ];
    for (resources, annotations, expected) in table {
        let mut pod = pod_with(&[], annotations);
        pod["spec"]["containers"][0]["resources"] = resources;
        let after = applied(&pod);
        for name in ["hauberk-init", "hauberk-proxy"] {
            assert_eq!(by_name(&after, "initContainers", name)["resources"], expected, "{pod}");
        }
    }
    let above = pod_with(&[], &[("proxy-cpu-request", "2"), ("proxy-cpu-limit", "1500m")]);
    let refusal = refusal(decide_in(&above, &joined()));
    assert_eq!(refusal.reason, RefusalReason::Resources);
    assert!(refusal.message.contains("hauberk.dev/proxy-cpu-request"), "{refusal}");
    // A pod with a budget of its own: requests of ours could exceed it.
    let budget = pod_of(json!({"containers": [{"name": "app"}], "resources": {"requests": {"cpu": "1"}}}));
    let after = applied(&budget);
    assert_eq!(
        by_name(&after, "initContainers", "hauberk-proxy")["resources"],
        json!({"requests": {"memory": "24Mi"}})
    );
}

#[test]
fn a_token_that_becomes_unreadable_is_warned_of() {
    let with = |mode: u32, pod_context: Value| {
        pod_of(json!({
            "securityContext": pod_context,
            "containers": [{"name": "app"}],
            "volumes": [{"name": "vault", "projected": {"defaultMode": mode, "sources": [{"serviceAccountToken": {"path": "t"}}]}}],
        }))
    };
    for (pod, warned) in [
        (with(0o400, json!({"runAsUser": 1000})), true),
        (with(0o444, json!({"runAsUser": 1000})), false),
        (with(0o400, json!({"runAsUser": 1000, "fsGroup": 2000})), false),
        (with(0o400, json!({"runAsUser": 0})), false),
        (with(0o400, json!(null)), false),
    ] {
        let warnings = injection(decide_in(&pod, &joined())).warnings;
        assert_eq!(warnings.iter().any(|warning| warning.contains("volume vault")), warned, "{pod}");
    }
}
