//! Who has an address, as pods live and end on real nodes: what discovery makes of what kubelet writes.

use std::net::IpAddr;

use hauberk_mesh::{Connection, Direction, Reason, TransportState, TrustDomain};
use serde_json::json;

use crate::scene::{Scene, nginx, with_nginx_config};

#[test]
fn a_pod_is_known_from_its_address_on_until_it_has_ended_and_on_the_hosts_network_never() {
    let scene = Scene::meshed("known", &[]);
    scene.web();
    scene.pod("client", json!({ "command": ["sleep", "1000000"] }), |_| {});
    scene.ready("client");
    let mut never_ready = nginx();
    never_ready["readinessProbe"] = json!({ "exec": { "command": ["false"] }, "periodSeconds": 1 });
    scene.pod("unready", never_ready, with_nginx_config);
    let once = json!({ "command": ["true"] });
    scene.pod("ended", once, |pod| pod["spec"]["restartPolicy"] = json!("Never"));
    scene.pod("host", nginx(), |pod| {
        with_nginx_config(pod);
        pod["spec"]["hostNetwork"] = json!(true);
    });
    let started = "jsonpath={.status.containerStatuses[?(@.name==\"app\")].started}=true";
    scene.kind.wait(scene.namespace, &["pod", "unready"], started).expect("its application runs");
    scene.kind.wait(scene.namespace, &["pod", "ended"], "jsonpath={.status.phase}=Succeeded").expect("it ends");
    scene.ready("host");

    let address = |pod: &str| scene.kind.ip(scene.namespace, pod).expect("an address");
    let ask = |ip: IpAddr| {
        let url = format!("http://{ip}:8080/hello");
        scene.kind.exec(scene.namespace, "client", "app", &["curl", "-sS", "--fail", "--max-time", "20", &url])
    };
    let record = |ip: IpAddr| -> Connection {
        let to_it = |it: &Connection| it.direction == Direction::Outbound && it.target.ip() == ip && it.close.is_some();
        scene.records("client", "it speaks with the address", to_it).expect("a record").remove(0)
    };

    let unready = address("unready");
    assert_eq!(ask(unready).expect("an answer"), "/hello\n");
    let server = TrustDomain::default().identity("unready", scene.namespace).expect("valid").to_string();
    let found = record(unready);
    assert_eq!((found.state, found.server_identity.as_ref()), (Some(TransportState::Mtls), Some(&server)), "{found:?}");

    let ended = address("ended");
    assert!(ask(ended).is_err(), "nobody is there");
    let found = record(ended);
    assert_eq!((found.reason, &found.server_identity), (Some(Reason::UnknownInCluster), &None), "{found:?}");

    let host = address("host");
    assert_eq!(ask(host).expect("an answer"), "/hello\n");
    let found = record(host);
    assert_eq!((found.state, &found.server_identity), (Some(TransportState::Cleartext), &None), "{found:?}");
    assert_eq!(found.reason, Some(Reason::UnknownInCluster), "a node's address is no pod's: {found:?}");
}
