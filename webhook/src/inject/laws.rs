//! Laws that hold for every pod.

use std::collections::BTreeMap;

use hauberk_mesh::PROBES_PORT;
use json_patch::PatchOperation;
use proptest::{collection::vec, prelude::*, test_runner::Config};
use serde_json::{Value, json};

use super::{
    testing::{Sample, numbered, sample, sprinkle},
    tests::cluster,
    *,
};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..1500)
}

fn decide_sample(sample: &Sample, pod: &Value) -> Outcome {
    let config = MeshConfig::default();
    let cluster = Cluster { native_sidecars: sample.native_sidecars, ..cluster() };
    inject(pod, &Context { config: &config, cluster: &cluster, namespace: &sample.namespace, owner_kind: None })
}

/// The pod as the patch leaves it, where there is one.
fn patched(pod: &Value, outcome: &Outcome) -> Option<Value> {
    let Outcome::Inject(injection) = outcome else { return None };
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &injection.patch).expect("the patch fits the pod");
    Some(pod)
}

/// What is left of a pod when ours is taken out, by a way of its own.
fn without_ours(pod: &Value) -> Value {
    let mut pod = pod.clone();
    let spec = pod["spec"].as_object_mut().expect("a spec");
    for (list, names) in [
        ("containers", &["hauberk-init", "hauberk-proxy"][..]),
        ("initContainers", &["hauberk-init", "hauberk-proxy"]),
        ("volumes", &["hauberk-token", "hauberk-identity", "hauberk-empty"]),
    ] {
        let Some(items) = spec.get_mut(list) else { continue };
        if let Some(items) = items.as_array_mut() {
            items.retain(|item| !item["name"].as_str().is_some_and(|name| names.contains(&name)));
            for container in items {
                without_handlers(container);
            }
        }
        // These arrays are made where they are needed.
        if spec[list].is_null() || spec[list] == json!([]) {
            spec.remove(list);
        }
    }
    if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
        annotations.remove("kubectl.kubernetes.io/default-container");
        if annotations.is_empty() {
            pod["metadata"].as_object_mut().expect("has annotations").remove("annotations");
        }
    }
    if pod["metadata"]["annotations"].is_null() {
        pod["metadata"].as_object_mut().map(|metadata| metadata.remove("annotations"));
    }
    pod
}

fn without_handlers(container: &mut Value) {
    let places = ["/readinessProbe", "/livenessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
    for place in places {
        if let Some(Value::Object(probe)) = container.pointer_mut(place) {
            for key in ["httpGet", "tcpSocket", "grpc", "timeoutSeconds"] {
                probe.remove(key);
            }
        }
    }
}

fn path_of(operation: &PatchOperation) -> String {
    match operation {
        PatchOperation::Test(it) => it.path.to_string(),
        PatchOperation::Add(it) => it.path.to_string(),
        PatchOperation::Remove(it) => it.path.to_string(),
        other => panic!("no operation of ours: {other:?}"),
    }
}

proptest! {
    #![proptest_config(Config::with_cases(512))]

    #[test]
    fn injecting_twice_is_once(bytes in bytes()) {
        let sample = sample(&bytes);
        if let Some(once) = patched(&sample.pod, &decide_sample(&sample, &sample.pod)) {
            match decide_sample(&sample, &once) {
                Outcome::Inject(again) => prop_assert_eq!(again.patch, Patch::default()),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn containers_that_another_webhook_adds_are_injected_too(bytes in bytes(), others in bytes(), at in 0usize..4) {
        let (sample, other) = (sample(&bytes), sample(&others));
        let Some(mut between) = patched(&sample.pod, &decide_sample(&sample, &sample.pod)) else { return Ok(()) };
        let Some(mut added) = other.pod["spec"]["containers"].as_array().and_then(|all| all.first()).cloned() else { return Ok(()) };
        added["name"] = json!("added");
        added["volumeMounts"] = json!([]);
        let mut whole = sample.pod.clone();
        // In front of ours, between them, or behind.
        let init = between["spec"]["initContainers"].as_array_mut().expect("ours are there");
        let at = at.min(init.len());
        let before = init[..at].iter().filter(|it| !view::is_ours(it["name"].as_str().unwrap_or_default())).count();
        init.insert(at, added.clone());
        let original = &mut whole["spec"]["initContainers"];
        if original.is_null() {
            *original = json!([]);
        }
        let kept = original.as_array_mut().expect("an array");
        kept.retain(|it| !view::is_ours(it["name"].as_str().unwrap_or_default()));
        kept.insert(before, added);
        let (again, straight) = (decide_sample(&sample, &between), decide_sample(&sample, &whole));
        prop_assert_eq!(patched(&between, &again), patched(&whole, &straight));
    }

    #[test]
    fn all_but_ours_survives_at_any_depth(bytes in bytes(), odd in bytes()) {
        let mut sample = sample(&bytes);
        sprinkle(&mut sample.pod, &odd);
        if let Some(after) = patched(&sample.pod, &decide_sample(&sample, &sample.pod)) {
            prop_assert_eq!(without_ours(&after), without_ours(&sample.pod));
        }
    }

    #[test]
    fn no_operation_touches_more_than_it_must(bytes in bytes()) {
        let sample = sample(&bytes);
        let Outcome::Inject(injection) = decide_sample(&sample, &sample.pod) else { return Ok(()) };
        let made = |path: &str, key: &str| path == key && sample.pod.pointer(key).is_none_or(Value::is_null);
        for operation in injection.patch.iter() {
            let path = path_of(operation);
            let parts: Vec<_> = path.split('/').skip(1).collect();
            let fine = match parts.as_slice() {
                ["spec", "initContainers" | "volumes"] | ["metadata", "annotations"] => made(&path, &path),
                ["spec", "initContainers" | "containers", _] | ["spec", "volumes", _] => true,
                ["spec", _, _, "name"] => matches!(operation, PatchOperation::Test(_)),
                ["spec", _, _, "readinessProbe" | "livenessProbe" | "startupProbe", "httpGet" | "tcpSocket" | "grpc" | "timeoutSeconds"] => true,
                ["spec", _, _, "lifecycle", "postStart" | "preStop", "httpGet"] => true,
                ["metadata", "annotations", "kubectl.kubernetes.io~1default-container"] => true,
                _ => false,
            };
            prop_assert!(fine, "{}", operation);
        }
    }

    #[test]
    fn every_probe_but_exec_asks_the_proxy_and_the_proxy_knows_what_to_do(bytes in bytes()) {
        let sample = sample(&bytes);
        let outcome = decide_sample(&sample, &sample.pod);
        let (Some(after), Outcome::Inject(injection)) = (patched(&sample.pod, &outcome), &outcome) else { return Ok(()) };
        let mut asked = Vec::new();
        for list in ["initContainers", "containers"] {
            for container in after["spec"][list].as_array().into_iter().flatten() {
                if view::is_ours(container["name"].as_str().unwrap_or_default()) { continue }
                for place in ["/readinessProbe", "/livenessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"] {
                    let Some(handler) = container.pointer(place) else { continue };
                    prop_assert!(handler["tcpSocket"].is_null() && handler["grpc"].is_null());
                    if handler["httpGet"].is_object() {
                        prop_assert_eq!(&handler["httpGet"]["port"], &json!(PROBES_PORT));
                        let path = handler["httpGet"]["path"].as_str().expect("a path").to_owned();
                        let declared = injection.spec.probes.iter().find(|probe| probe.path() == path).expect("the proxy knows it");
                        if let Some(timeout) = handler["timeoutSeconds"].as_i64() {
                            prop_assert!(timeout > declared.timeout_seconds.into() || timeout == i64::from(i32::MAX));
                        } else {
                            prop_assert_eq!(declared.timeout_seconds, 0);
                        }
                        asked.push(path);
                    }
                }
            }
        }
        prop_assert_eq!(asked.len(), injection.spec.probes.len());
    }

    #[test]
    fn what_the_pod_tells_its_proxy_is_what_was_decided(bytes in bytes()) {
        let sample = sample(&bytes);
        let outcome = decide_sample(&sample, &sample.pod);
        let (Some(after), Outcome::Inject(injection)) = (patched(&sample.pod, &outcome), &outcome) else { return Ok(()) };
        let spec = serde_json::from_value(after["spec"].clone()).expect("a PodSpec");
        prop_assert_eq!(hauberk_kubernetes::proxy_of(&spec), Some(Ok(injection.spec.clone())));
    }

    #[test]
    fn no_json_panics(text in "[\\[\\]{}:,\"a-z0-9]{0,60}", bytes in bytes(), odd in bytes()) {
        let mut sample = sample(&bytes);
        if let Ok(pod) = serde_json::from_str(&text) {
            decide_sample(&sample, &pod);
        }
        mangle(&mut sample.pod, &mut odd.iter().copied());
        let outcome = decide_sample(&sample, &sample.pod);
        patched(&sample.pod, &outcome);
    }
}

/// Puts something of another type in places.
fn mangle(value: &mut Value, bytes: &mut impl Iterator<Item = u8>) {
    match bytes.next() {
        Some(0..=3) => *value = json!([]),
        Some(4..=5) => *value = json!({}),
        Some(6..=7) => *value = json!(-1),
        Some(8) => *value = json!("text"),
        Some(9) => *value = json!([["a"], {}]),
        _ => match value {
            Value::Array(items) => items.iter_mut().for_each(|item| mangle(item, bytes)),
            Value::Object(map) => map.values_mut().for_each(|item| mangle(item, bytes)),
            _ => {}
        },
    }
}

#[test]
fn generated_pods_are_patched_skipped_and_refused_for_every_reason() {
    const SAMPLES: u64 = 6000;
    let mut classes: BTreeMap<String, u32> = BTreeMap::new();
    let mut count = |class: String| *classes.entry(class).or_default() += 1;
    for number in 0..SAMPLES {
        let sample = numbered(number);
        match decide_sample(&sample, &sample.pod) {
            Outcome::Inject(injection) => {
                count("patched".to_owned());
                count(format!("patched {:?}", injection.spec.sidecar));
            }
            Outcome::Skip(skip) => {
                count("skipped".to_owned());
                count(format!("skipped {}", skip.reason));
            }
            Outcome::Refuse(refusal) => {
                count("refused".to_owned());
                count(format!("refused {}", refusal.reason));
            }
        }
    }
    let skips = SkipReason::ALL.iter().map(|reason| (format!("skipped {reason}"), 5));
    // Settings of the mesh are not generated, and the pods are pods.
    let other = [RefusalReason::MeshConfig, RefusalReason::Unreadable];
    let refusals = RefusalReason::ALL.iter().filter(|reason| !other.contains(reason));
    let refusals = refusals.map(|reason| (format!("refused {reason}"), 5));
    let floors =
        [("patched", 2000), ("patched Native", 1500), ("patched Plain", 200), ("skipped", 500), ("refused", 1000)];
    let floors = floors.map(|(class, least)| (class.to_owned(), least));
    for (class, least) in floors.into_iter().chain(skips).chain(refusals) {
        let found = classes.get(&class).copied().unwrap_or_default();
        assert!(found >= least, "{class}: {found}, at least {least} expected of {SAMPLES}: {classes:#?}");
    }
}
