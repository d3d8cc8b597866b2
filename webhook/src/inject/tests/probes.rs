//! Probes and hooks.

use super::*;

fn app(extra: Value) -> Value {
    let mut container = json!({"name": "app", "image": "app:1", "ports": [{"name": "web", "containerPort": 8080}]});
    for (key, value) in extra.as_object().expect("an object") {
        container[key] = value.clone();
    }
    pod_of(json!({"containers": [container]}))
}

#[test]
fn probes_and_hooks_are_led_to_the_proxy_which_is_told_what_was_declared() {
    let sidecar = json!({
        "name": "agent", "restartPolicy": "Always",
        "startupProbe": {"grpc": {"port": 9000, "service": "$(A)"}, "periodSeconds": 7},
    });
    let mut pod = app(json!({
        "readinessProbe": {
            "httpGet": {"port": "web", "scheme": "HTTPS", "path": "/ready?all#no", "host": "",
                        "httpHeaders": [{"name": "X", "value": "1"}, {"name": "X", "value": "2"}]},
            "timeoutSeconds": 4, "failureThreshold": 9, "x-unknown": null,
        },
        "livenessProbe": {"tcpSocket": {"port": 5432}, "terminationGracePeriodSeconds": 3},
        "startupProbe": {"exec": {"command": ["true"]}},
        "lifecycle": {
            "postStart": {"httpGet": {"port": 8080, "path": "start", "host": "hook.example"}},
            "preStop": {"sleep": {"seconds": 1}},
        },
    }));
    pod["spec"]["initContainers"] = json!([sidecar]);
    let outcome = decide_in(&pod, &joined());
    insta::assert_snapshot!(pretty(injection(outcome.clone()).spec.probes));
    let after = patched(&pod, outcome);
    let probes: Value = ["readinessProbe", "livenessProbe", "startupProbe", "lifecycle"]
        .map(|key| (key.to_owned(), by_name(&after, "containers", "app")[key].clone()))
        .into_iter()
        .chain([("agent".to_owned(), by_name(&after, "initContainers", "agent")["startupProbe"].clone())])
        .collect::<serde_json::Map<_, _>>()
        .into();
    insta::assert_snapshot!(pretty(probes));
}

#[test]
fn a_probe_that_cannot_be_led_is_refused_with_the_remedy() {
    for (probe, message) in [
        (json!({"httpGet": {"port": "nobody"}}), "readiness of container app names no port"),
        (json!({"httpGet": {"path": "/"}}), "names no port"),
        (json!({"tcpSocket": {"port": 0}}), "names no port"),
        (json!({"tcpSocket": {"port": 70000}}), "names no port"),
        (json!({"grpc": {"port": 4143}}), "asks port 4143, which is the proxy's own"),
        (json!({"httpGet": {"port": 4190, "path": "/x"}}), "asks port 4190"),
        (json!({"httpGet": {"port": 80, "scheme": "ftp"}}), "neither HTTP nor HTTPS"),
        (
            json!({"httpGet": {"port": 4190, "path": "/probe/app/readiness"}}),
            "nothing says what the application declared",
        ),
    ] {
        let refusal = refusal(decide_in(&app(json!({"readinessProbe": probe})), &joined()));
        assert_eq!(refusal.reason, RefusalReason::Probe);
        assert!(refusal.message.contains(message), "{refusal}");
    }
    // The API server refuses two handlers: what we do must not make them one.
    let two = app(json!({"readinessProbe": {"httpGet": {"port": 1}, "tcpSocket": {"port": 1}}}));
    let after = patched(&two, decide_in(&two, &joined()));
    assert_eq!(by_name(&after, "containers", "app"), &two["spec"]["containers"][0]);
}

#[test]
fn declared_probes_survive_a_second_injection_and_nothing_else_of_the_first_does() {
    let pod = app(json!({"readinessProbe": {"tcpSocket": {"port": "web"}}}));
    let first = injection(decide_in(&pod, &joined())).spec;
    let mut once = patched(&pod, decide_in(&pod, &joined()));
    // Somebody weakens the proxy, adds probes that nobody asks for, and one that is none of the pod's.
    let forged = json!([
        first.probes[0],
        {"container": "app", "kind": "liveness", "action": {"tcpSocket": {"port": 4143}}, "timeoutSeconds": 1},
        {"container": "other", "kind": "readiness", "action": {"tcpSocket": {"port": 1}}, "timeoutSeconds": 1},
    ]);
    for container in once["spec"]["initContainers"].as_array_mut().expect("ours") {
        container["env"] = json!([
            {"name": "HAUBERK_TLS", "value": "disabled"},
            {"name": "HAUBERK_PROBES", "value": forged.to_string()},
        ]);
        container["image"] = json!("evil:1");
    }
    let again = injection(decide_in(&once, &joined())).spec;
    assert_eq!(again, first);
    assert_eq!(patched(&once, decide_in(&once, &joined())), patched(&pod, decide_in(&pod, &joined())));

    // An entry that is asked for is checked like a declared probe.
    let bad = json!([{"container": "app", "kind": "readiness", "action": {"tcpSocket": {"port": 4143}}, "timeoutSeconds": 1}]);
    once["spec"]["initContainers"][1]["env"] = json!([{"name": "HAUBERK_PROBES", "value": bad.to_string()}]);
    let refused = refusal(decide_in(&once, &joined()));
    assert!(refused.message.contains("asks port 4143"), "{refused}");
}
