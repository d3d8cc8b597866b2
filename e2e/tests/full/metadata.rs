//! What makes a peer meshed is nothing that can be edited while the pod runs.

use hauberk_mesh::{Direction, TransportState, TrustDomain};
use serde_json::{Value, json};

use crate::scene::Scene;

#[test]
fn a_pod_without_any_metadata_is_still_reached_by_mtls_only() {
    let scene = Scene::meshed("stripped", &[]);
    scene.web();
    scene.pod("client", json!({ "command": ["sleep", "1000000"] }), |_| {});
    scene.ready("client");
    let ip = scene.kind.ip(scene.namespace, "web").expect("an address");
    let ask = |path: &str| {
        let url = format!("http://{ip}:8080/{path}");
        let answer = scene.kind.exec(scene.namespace, "client", "app", &["curl", "-sS", "--fail", &url]);
        assert_eq!(answer.expect("an answer"), format!("/{path}\n"));
    };
    ask("before");

    let pod = scene.kind.get(&["pod", "-n", scene.namespace, "web"]).expect("the pod");
    let keys = |what: &str| -> Vec<String> {
        let all = pod["metadata"][what].as_object();
        all.into_iter().flatten().map(|(key, _): (&String, &Value)| key.clone()).collect()
    };
    assert!(!keys("labels").is_empty() && !keys("annotations").is_empty(), "there is something to take away: {pod}");
    let gone = |keys: Vec<String>| keys.into_iter().map(|key| (key, Value::Null)).collect::<serde_json::Map<_, _>>();
    let patch = json!({ "metadata": { "labels": gone(keys("labels")), "annotations": gone(keys("annotations")) } });
    let args = ["patch", "pod", "web", "-n", scene.namespace, "--type=merge", "-p", &patch.to_string()];
    scene.kind.kubectl(&args).expect("anybody with `edit` may");
    let pod = scene.kind.get(&["pod", "-n", scene.namespace, "web"]).expect("the pod");
    assert!(pod["metadata"].get("labels").is_none() && pod["metadata"].get("annotations").is_none(), "{pod}");

    for number in 0..5 {
        ask(&format!("after-{number}"));
    }
    let server = TrustDomain::default().identity("web", scene.namespace).expect("valid").to_string();
    let records = scene.records("client", "it speaks with the pod", |record| {
        record.direction == Direction::Outbound && record.target.ip() == ip && record.close.is_some()
    });
    let records = records.expect("there are some");
    for record in &records {
        assert_eq!(
            (record.state, record.server_identity.as_ref()),
            (Some(TransportState::Mtls), Some(&server)),
            "{record:?}"
        );
    }
}
