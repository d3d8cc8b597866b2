//! The table of settings, and inheritance by it.

use super::*;
use crate::inject::settings::nearest;

/// What `pod` becomes, or why not: all that a setting can change.
fn effect(pod: &Value, namespace: &Namespace) -> String {
    // The setting itself is no effect.
    match decide_in(pod, namespace) {
        Outcome::Inject(injection) => {
            let change: Vec<_> = injection.patch.iter().filter(|it| !it.to_string().contains("/metadata/")).collect();
            format!("{change:?}")
        }
        other => class(&other),
    }
}

#[test]
fn every_setting_changes_what_is_injected_wherever_it_may_stand() {
    let plain = effect(&pod(), &joined());
    for setting in SETTINGS {
        let (name, value) = (setting.name, setting.example);
        let (mut labels, mut pod, mut before) = (vec![("inject", "enabled")], pod(), plain.clone());
        if name == "allow-uninjected" {
            // It is about pods that would stay out.
            labels.push(("tls", "required"));
            pod = pod_with(&[("inject", "disabled")], &[]);
            pod["spec"]["serviceAccountName"] = json!("legacy");
            before = effect(&pod, &namespace(&labels, &[]));
        }
        let mut tried = 0;
        if setting.namespace == Place::Label {
            labels.push((name, value));
            assert_ne!(effect(&pod, &namespace(&labels, &[])), before, "{name} as a label of the namespace");
            tried += 1;
        } else if setting.namespace != Place::Nowhere {
            assert_ne!(
                effect(&pod, &namespace(&labels, &[(name, value)])),
                before,
                "{name} as an annotation of the namespace"
            );
            tried += 1;
        }
        if setting.pod != Place::Nowhere {
            assert_ne!(
                effect(&pod_with(&[], &[(name, value)]), &joined()),
                before,
                "{name} as an annotation of the pod"
            );
            tried += 1;
        }
        assert!(tried > 0, "{name}");
    }
}

#[test]
fn every_invalid_value_is_refused_with_what_is_valid() {
    for setting in SETTINGS {
        let (name, value) = (setting.name, setting.counterexample);
        let mut outcomes = Vec::new();
        if setting.namespace == Place::Label {
            outcomes.push(decide_in(&pod(), &namespace(&[("inject", "enabled"), (name, value)], &[])));
        } else if setting.namespace != Place::Nowhere {
            outcomes.push(decide_in(&pod(), &namespace(&[("inject", "enabled")], &[(name, value)])));
        }
        if setting.pod != Place::Nowhere {
            outcomes.push(decide_in(&pod_with(&[], &[(name, value)]), &joined()));
        }
        for outcome in outcomes {
            let refusal = refusal(outcome);
            assert_eq!(refusal.reason, RefusalReason::InvalidSetting, "{name}");
            for part in [setting.valid, value, &setting.key()] {
                assert!(refusal.message.contains(part), "{name}: {refusal} lacks {part}");
            }
        }
    }
}

#[test]
fn a_setting_where_it_does_not_belong_is_refused_with_where_it_does() {
    for setting in SETTINGS {
        let (name, value) = (setting.name, setting.example);
        let mut wrong = Vec::new();
        match setting.namespace {
            Place::Label => wrong.push((pod(), namespace(&[("inject", "enabled")], &[(name, value)]))),
            Place::Annotation => wrong.push((pod(), namespace(&[("inject", "enabled"), (name, value)], &[]))),
            _ => {}
        }
        if setting.pod == Place::Nowhere {
            wrong.push((pod_with(&[], &[(name, value)]), joined()));
        }
        if setting.pod != Place::LabelOrAnnotation {
            wrong.push((pod_with(&[(name, value)], &[]), joined()));
        }
        for (pod, namespace) in wrong {
            let refusal = refusal(decide_in(&pod, &namespace));
            assert_eq!(refusal.reason, RefusalReason::MisplacedSetting, "{name}");
            assert!(refusal.message.contains(&setting.places()), "{refusal}");
        }
    }
}

#[test]
fn a_misspelled_key_is_refused_on_a_pod_and_warned_of_on_a_namespace() {
    for (key, meant) in [
        ("skip-inbound-port", "hauberk.dev/skip-inbound-ports"),
        ("tsl", "hauberk.dev/tls"),
        ("proxy-cpu-requests", "hauberk.dev/proxy-cpu-request"),
        ("loglevel", "hauberk.dev/log"),
    ] {
        let refusal = refusal(decide_in(&pod_with(&[], &[(key, "1")]), &joined()));
        assert_eq!(refusal.reason, RefusalReason::UnknownSetting);
        assert!(refusal.message.contains(&format!("did you mean {meant}?")), "{refusal}");
        let warnings = injection(decide_in(&pod(), &namespace(&[("inject", "enabled")], &[(key, "1")]))).warnings;
        assert!(warnings[0].contains(meant), "{warnings:?}");
    }
    assert_eq!(nearest("hauberk.dev/inject"), "hauberk.dev/inject");
}

#[test]
fn the_narrowest_place_wins() {
    let mut config = MeshConfig::default();
    let set = |config: &mut MeshConfig, key: &str, value: &str| {
        config.defaults.insert(format!("hauberk.dev/{key}"), value.to_owned());
    };
    set(&mut config, "skip-inbound-ports", "1");
    set(&mut config, "limits", "connect=2s,drain=10s");
    let of = |pod: &Value, namespace: &Namespace| injection(decide_with(pod, namespace, &config)).spec;
    let space = namespace(&[("inject", "enabled")], &[("skip-inbound-ports", "2"), ("limits", "drain=20s,open=9s")]);
    let own = pod_with(&[], &[("skip-inbound-ports", " 3\n"), ("limits", "open=8s")]);
    let ports = |spec: &ProxySpec| spec.redirection.skip_inbound_ports.to_string();
    let limits = |spec: &ProxySpec| spec.limits.to_text();

    let mesh = of(&pod(), &joined());
    assert_eq!((ports(&mesh).as_str(), limits(&mesh).as_str()), ("1", "connect=2s,drain=10s"));
    let spaced = of(&pod(), &space);
    assert_eq!((ports(&spaced).as_str(), limits(&spaced).as_str()), ("2", "connect=2s,open=9s,drain=20s"));
    let narrow = of(&own, &space);
    assert_eq!((ports(&narrow).as_str(), limits(&narrow).as_str()), ("3", "connect=2s,open=8s,drain=20s"));
    let none = of(&pod_with(&[], &[("skip-inbound-ports", "")]), &space);
    assert_eq!(ports(&none), "");

    set(&mut config, "limits", "conect=1s");
    let wrong = refusal(decide_with(&pod(), &joined(), &config));
    assert_eq!(wrong.reason, RefusalReason::MeshConfig);
    assert!(wrong.message.contains("the mesh's default hauberk.dev/limits"), "{wrong}");
}

#[test]
fn a_pod_may_tighten_what_its_namespace_says_and_never_loosen_required() {
    let lists = [
        ("skip-inbound-ports", "20-30"),
        ("skip-subnets", "10.9.0.0/16"),
        ("allow-unmeshed-from", "10.9.0.0/16@80,81"),
        ("egress", "tls-only"),
    ];
    let required = namespace(&[("inject", "enabled"), ("tls", "required")], &lists);
    let plain =
        namespace(&[("inject", "enabled"), ("tls", "required")], &[("sidecar", "plain"), ("proxy-image", "a:1")]);
    let table = [
        (&required, "tls", "optional", false),
        (&required, "tls", "disabled", false),
        (&required, "tls", "required", true),
        (&required, "skip-inbound-ports", "22", true),
        (&required, "skip-inbound-ports", "", true),
        (&required, "skip-inbound-ports", "22,31", false),
        (&required, "skip-outbound-ports", "22", false),
        (&required, "skip-subnets", "10.9.1.0/24", true),
        (&required, "skip-subnets", "10.0.0.0/8", false),
        (&required, "allow-unmeshed-from", "10.9.1.1@80", true),
        (&required, "allow-unmeshed-from", "10.9.1.1", false),
        (&required, "allow-unmeshed-to", "10.9.1.1@80", false),
        (&required, "egress", "deny", true),
        (&required, "egress", "allow", false),
        (&required, "sidecar", "plain", false),
        (&required, "sidecar", "native", true),
        (&required, "proxy-image", "evil:1", false),
        (&required, "log", "debug", true),
        (&plain, "sidecar", "plain", true),
        (&plain, "proxy-image", "a:1", true),
        (&plain, "proxy-image", "b:1", false),
    ];
    for (namespace, key, value, allowed) in table {
        let outcome = decide_in(&pod_with(&[], &[(key, value)]), namespace);
        let expected = if allowed { "injected" } else { "refuse loosens-required" };
        assert_eq!(class(&outcome), expected, "{key}={value}: {outcome:?}");
        if let Outcome::Refuse(refusal) = outcome {
            assert!(refusal.message.contains(&format!("hauberk.dev/{key}")), "{refusal}");
        }
    }
    let tightened = decide_in(&pod_with(&[], &[("tls", "required"), ("skip-inbound-ports", "22")]), &joined());
    assert_eq!(injection(tightened).spec.tls, TlsMode::Required);
    let loosened = decide_in(&pod_with(&[], &[("tls", "disabled")]), &joined());
    assert_eq!(injection(loosened).spec.tls, TlsMode::Disabled);
}

#[test]
fn a_long_value_makes_a_short_message() {
    for (key, value) in
        [("skip-subnets", "x,".repeat(50_000)), ("limits", "a".repeat(50_000)), ("tls", "t".repeat(50_000))]
    {
        let refusal = refusal(decide_in(&pod_with(&[], &[(key, value.as_str())]), &joined()));
        assert!(refusal.message.len() < 900, "{}: {}", key, refusal.message.len());
    }
}
