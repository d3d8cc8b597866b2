//! Who is injected.

use super::*;

#[test]
fn labels_and_annotations_decide_and_disabled_outweighs() {
    type Pairs<'a> = &'a [(&'a str, &'a str)];
    let table: &[(Pairs<'_>, Pairs<'_>, Pairs<'_>, Pairs<'_>, &str)] = &[
        // Namespace: labels, annotations. Pod: labels, annotations.
        (&[], &[], &[], &[], "skip not-selected"),
        (&[("inject", "enabled")], &[], &[], &[], "injected"),
        (&[], &[], &[("inject", "enabled")], &[], "injected"),
        (&[], &[], &[], &[("inject", "enabled")], "injected"),
        (&[("inject", "enabled")], &[], &[("inject", "disabled")], &[], "skip pod-disabled"),
        (&[("inject", "enabled")], &[], &[], &[("inject", "disabled")], "skip pod-disabled"),
        (&[("inject", "enabled")], &[], &[("inject", "enabled")], &[("inject", "disabled")], "skip pod-disabled"),
        (&[("inject", "disabled")], &[], &[("inject", "enabled")], &[], "skip namespace-disabled"),
        (&[("inject", "enabled")], &[("inject", "disabled")], &[], &[], "skip namespace-disabled"),
        (&[("tls", "optional")], &[], &[], &[], "skip not-selected"),
        (&[("tls", "required")], &[], &[], &[], "injected"),
        (&[("tls", "required")], &[], &[("inject", "disabled")], &[], "refuse uninjected-in-required"),
        (
            &[("tls", "required")],
            &[("allow-uninjected", "a, default")],
            &[("inject", "disabled")],
            &[],
            "skip pod-disabled",
        ),
        (&[("tls", "required"), ("inject", "disabled")], &[], &[], &[], "skip namespace-disabled"),
        (&[("inject", "enabled")], &[], &[("inject", "yes")], &[], "refuse invalid-setting"),
        (&[("inject", "on")], &[], &[], &[], "refuse invalid-setting"),
        (&[], &[("inject", "enabled")], &[], &[], "refuse misplaced-setting"),
        (&[("tls", "requierd")], &[], &[], &[], "refuse invalid-setting"),
    ];
    for (labels, annotations, pod_labels, pod_annotations, expected) in table {
        let namespace = namespace(labels, annotations);
        let pod = pod_with(pod_labels, pod_annotations);
        let outcome = decide_in(&pod, &namespace);
        assert_eq!(&class(&outcome), expected, "{namespace:?} {pod}: {outcome:?}");
        let wanted = wants(&pod, &namespace, &MeshConfig::default());
        assert_eq!(wanted, *expected == "injected", "{namespace:?} {pod}");
    }
}

#[test]
fn a_mesh_installed_as_required_requires_it_of_namespaces_that_joined() {
    let config = MeshConfig { tls: TlsMode::Required, ..MeshConfig::default() };
    let out = pod_with(&[("inject", "disabled")], &[]);
    let table = [
        (joined(), "refuse uninjected-in-required"),
        (namespace(&[("inject", "enabled"), ("tls", "optional")], &[]), "skip pod-disabled"),
        (namespace(&[], &[]), "skip pod-disabled"),
    ];
    for (namespace, expected) in table {
        assert_eq!(class(&decide_with(&out, &namespace, &config)), expected, "{namespace:?}");
    }
    assert_eq!(injection(decide_with(&pod(), &joined(), &config)).spec.tls, TlsMode::Required);
    let outside = namespace(&[], &[]);
    assert_eq!(class(&decide_with(&pod(), &outside, &config)), "skip not-selected");
}

#[test]
fn what_cannot_be_meshed_is_skipped_and_another_mesh_is_no_way_round_required() {
    let with = |spec: Value| {
        let mut pod = pod();
        for (key, value) in spec.as_object().expect("an object") {
            pod["spec"][key] = value.clone();
        }
        pod
    };
    let mut mirror = pod();
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "abc"});
    let mut ambient = pod();
    ambient["metadata"]["labels"] = json!({"istio.io/dataplane-mode": "ambient"});
    let istio = with(json!({"initContainers": [{"name": "istio-init"}]}));
    let required = namespace(&[("inject", "enabled"), ("tls", "required")], &[]);
    let table = [
        (with(json!({"hostNetwork": true})), "skip host-network", "skip host-network"),
        (with(json!({"os": {"name": "windows"}})), "skip windows", "skip windows"),
        (with(json!({"nodeSelector": {"kubernetes.io/os": "windows"}})), "skip windows", "skip windows"),
        (mirror, "skip mirror-pod", "skip mirror-pod"),
        (ambient, "skip other-mesh", "refuse uninjected-in-required"),
        (istio, "skip other-mesh", "refuse uninjected-in-required"),
    ];
    for (pod, optional, strict) in table {
        assert_eq!(class(&decide_in(&pod, &joined())), optional, "{pod}");
        assert_eq!(class(&decide_in(&pod, &required)), strict, "{pod}");
    }
    let Outcome::Skip(skip) = decide_in(&with(json!({"hostNetwork": true})), &required) else { panic!("not skipped") };
    assert!(skip.warnings[0].contains("refuse it"), "{skip:?}");
}

#[test]
fn neither_the_cluster_s_own_pods_nor_the_mesh_s_are_injected() {
    for name in ["kube-system", "hauberk"] {
        let namespace = Namespace { name: name.to_owned(), ..joined() };
        assert_eq!(class(&decide_in(&pod(), &namespace)), "skip system-namespace");
    }
}

#[test]
fn pod_security_that_forbids_net_admin_is_refused_with_that_sentence() {
    for (level, expected) in [("baseline", "refuse"), ("restricted", "refuse"), ("privileged", "injected")] {
        let mut namespace = joined();
        namespace.labels.insert("pod-security.kubernetes.io/enforce".to_owned(), level.to_owned());
        let outcome = decide_in(&pod(), &namespace);
        assert!(class(&outcome).starts_with(expected), "{level}: {outcome:?}");
        if expected == "refuse" {
            let message = refusal(outcome).message;
            assert!(message.contains(level) && message.contains("forbids NET_ADMIN"), "{message}");
        }
    }
}

#[test]
fn what_application_and_proxy_cannot_both_have_is_refused_with_the_remedy() {
    let app = |extra: Value| {
        let mut container = json!({"name": "app", "image": "app:1"});
        for (key, value) in extra.as_object().expect("an object") {
            container[key] = value.clone();
        }
        json!({"containers": [container]})
    };
    let uid_of_pod = json!({"securityContext": {"runAsUser": 2102}, "containers": [{"name": "app"}]});
    let uid_overruled = json!({
        "securityContext": {"runAsUser": 2102},
        "containers": [{"name": "app", "securityContext": {"runAsUser": 1}}],
    });
    let init = json!({"containers": [{"name": "app"}], "initContainers": [{"name": "in", "ports": [{"containerPort": 4143}]}]});
    let debug = json!({"containers": [{"name": "app"}], "ephemeralContainers": [{"name": "hauberk-init"}]});
    let table = [
        (app(json!({"ports": [{"containerPort": 4140}]})), "refuse port", "4140"),
        (app(json!({"ports": [{"containerPort": 4140, "protocol": "UDP"}]})), "injected", ""),
        (app(json!({"ports": [{"containerPort": 1, "name": "hauberk-admin"}]})), "refuse port", "Rename it"),
        (init, "refuse port", "container in has port 4143"),
        (app(json!({"securityContext": {"runAsUser": 2102}})), "refuse proxy-uid", "Set another runAsUser"),
        (uid_of_pod, "refuse proxy-uid", "container app"),
        (uid_overruled, "injected", ""),
        (
            app(json!({"volumeMounts": [{"name": "hauberk-identity", "mountPath": "/x"}]})),
            "refuse volume",
            "hauberk-identity",
        ),
        (
            app(json!({"volumeDevices": [{"name": "hauberk-token", "devicePath": "/x"}]})),
            "refuse volume",
            "hauberk-token",
        ),
        (debug, "refuse container-name", "rename"),
        (json!({"containers": []}), "refuse no-containers", "add the application's"),
        (json!({"containers": [{"name": "hauberk-proxy"}]}), "refuse no-containers", ""),
        (json!({"containers": "none"}), "refuse unreadable", "v1 Pod"),
    ];
    for (spec, expected, message) in table {
        let outcome = decide_in(&pod_of(spec.clone()), &joined());
        assert_eq!(class(&outcome), expected, "{spec}: {outcome:?}");
        if let Outcome::Refuse(refusal) = outcome {
            assert!(refusal.message.contains(message), "{refusal}");
        }
    }
    for pod in [json!(null), json!([]), json!({}), json!({"spec": null}), json!({"spec": [], "metadata": []})] {
        assert!(matches!(decide_in(&pod, &joined()), Outcome::Refuse(_)), "{pod}");
    }
}

#[test]
fn an_account_whose_name_gives_no_identity_is_refused_with_the_reason() {
    let account = |name: String| pod_of(json!({"containers": [{"name": "app"}], "serviceAccountName": name}));
    let told = injection(decide_in(&account("web.v2".to_owned()), &joined())).spec;
    assert_eq!(told.identity.to_string(), "web.v2.shop.serviceaccount.identity.hauberk.cluster.local");
    let long = refusal(decide_in(&account("a".repeat(64)), &joined()));
    assert_eq!(long.reason, RefusalReason::Identity);
    assert!(long.message.contains("1 to 63"), "{long}");
    let longer = vec!["abcdefgh"; 25].join(".");
    let longer = refusal(decide_in(&account(longer), &joined()));
    assert!(longer.message.contains("a DNS name at most 253"), "{longer}");
}

#[test]
fn a_plain_sidecar_is_for_old_nodes_and_no_job() {
    let (config, namespace) = (MeshConfig::default(), joined());
    let old = Cluster { native_sidecars: false, ..cluster() };
    let decide = |pod: &Value, cluster: &Cluster, owner_kind: Option<&str>| {
        inject(pod, &Context { config: &config, cluster, namespace: &namespace, owner_kind })
    };
    let (plain, native) = (pod_with(&[], &[("sidecar", "plain")]), pod_with(&[], &[("sidecar", "native")]));
    let mut job = pod();
    job["metadata"]["ownerReferences"] = json!([{"kind": "Job", "name": "once", "controller": true}]);
    let table = [
        (&pod(), &cluster(), None, "Native"),
        (&pod(), &old, None, "Plain"),
        (&plain, &cluster(), None, "Plain"),
        (&native, &old, None, "only"),
        (&job, &cluster(), None, "Native"),
        (&job, &old, None, "only"),
        (&pod(), &old, Some("Job"), "only"),
        (&plain, &cluster(), Some("Job"), "only"),
        (&plain, &cluster(), Some("ReplicaSet"), "Plain"),
    ];
    for (pod, cluster, owner, expected) in table {
        match decide(pod, cluster, owner) {
            Outcome::Inject(injection) => assert_eq!(format!("{:?}", injection.spec.sidecar), expected, "{pod}"),
            other => assert_eq!((class(&other).as_str(), expected), ("refuse sidecar", "only"), "{pod}: {other:?}"),
        }
    }
    let mut ends = plain.clone();
    ends["spec"]["restartPolicy"] = json!("Never");
    let warnings = injection(decide(&ends, &cluster(), None)).warnings;
    assert!(warnings[0].contains("goes on when the application has ended"), "{warnings:?}");
}
