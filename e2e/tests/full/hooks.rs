//! Lifecycle hooks reach the application through the proxy.

use std::{process::Stdio, time::Duration};

use hauberk_lab::wait_for;
use serde_json::json;

use crate::scene::{Scene, nginx, nginx_config, with_nginx_config};

/// From the request to delete a pod to the end of its containers.
const END_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn post_start_and_pre_stop_requests_reach_the_application() {
    let scene = Scene::meshed("hooks", &[]);
    scene.apply(&nginx_config());
    let hook = |path: &str| json!({ "httpGet": { "path": path, "port": 8080 } });
    scene.pod("hooked", nginx(), |pod| {
        with_nginx_config(pod);
        // nginx ends only after its own; but the first request of its own would come while it starts, so that one is
        // another container's, which starts later.
        pod["spec"]["containers"][0]["lifecycle"] = json!({ "preStop": hook("/pre-stop") });
        let mut second = pod["spec"]["containers"][0].clone();
        second["name"] = json!("second");
        second["command"] = json!(["sleep", "1000000"]);
        second["lifecycle"] = json!({ "postStart": hook("/post-start") });
        for what in ["ports", "volumeMounts"] {
            second.as_object_mut().expect("an object").remove(what);
        }
        pod["spec"]["containers"].as_array_mut().expect("a list").push(second);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(20);
    });
    scene.ready("hooked");
    let log = scene.kind.kubectl(&["logs", "-n", scene.namespace, "hooked", "-c", "app"]).expect("a log");
    assert!(log.contains("GET /post-start"), "{log}");

    let mut follow = scene.kind.command(hauberk_e2e::find_binary("kubectl").expect("it is built"));
    follow.args(["logs", "-n", scene.namespace, "hooked", "-c", "app", "--follow"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().expect("kubectl runs");
    let grace = format!("--timeout={}s", END_LIMIT.as_secs());
    scene.kind.kubectl(&["delete", "pod", "-n", scene.namespace, "hooked", &grace]).expect("it is deleted");
    wait_for("the log ends", END_LIMIT, || Ok(follow.try_wait()?.ok_or_else(|| "it goes on".to_owned())))
        .expect("it does");
    let log = std::io::read_to_string(follow.stdout.take().expect("it is piped")).expect("text");
    assert!(log.contains("GET /pre-stop"), "{log}");
}
