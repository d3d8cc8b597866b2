//! What a change costs, and whom it wakes.

use super::*;
use crate::{hub::Subscription, index::Change};

fn listen(cluster: &Cluster, text: &str) -> Subscription {
    let topic = Query::parse(text, &TrustDomain::default()).expect("valid").topic();
    let mut subscription = cluster.hub.subscribe(topic);
    subscription.current();
    subscription
}

#[tokio::test]
async fn a_list_counts_when_it_is_whole_and_all_at_once() {
    let mut cluster = Cluster::new();
    cluster.service(cluster_ip("10.96.0.10"));
    cluster.slice("web-1", http(8080), json!([at("10.1.1.5"), at("10.1.1.6")]));
    cluster.pod(meshed("web-0", "10.1.1.5"));
    cluster.pod(meshed("web-1", "10.1.1.6"));
    let mut listening = listen(&cluster, "10.96.0.10:80");
    let both = cluster.ask("10.96.0.10:80");
    assert_eq!(both.len(), 2);
    let listed = |json: Value| {
        let pod = read_pod(json);
        Seen::Pod(Event::Listed(prune::name(&pod.metadata), prune::pod(&pod, &TrustDomain::default())))
    };
    cluster.see(Seen::Pod(Event::Begin));
    cluster.see(listed(meshed("web-0", "10.1.1.5")));
    assert_eq!(cluster.ask("10.96.0.10:80"), both, "the list is not whole");
    cluster.see(Seen::Pod(Event::Begin));
    cluster.see(listed(meshed("web-1", "10.1.1.6")));
    cluster.see(listed(meshed("web-0", "10.1.1.5")));
    cluster.see(Seen::Pod(Event::Done));
    assert_eq!(cluster.ask("10.96.0.10:80"), both);
    assert!(!now(listening.changed()), "nothing had changed");
    cluster.see(Seen::Pod(Event::Begin));
    cluster.see(listed(meshed("web-9", "10.1.1.6")));
    cluster.see(Seen::Pod(Event::Done));
    assert!(now(listening.changed()));
    assert_eq!(cluster.ask("10.96.0.10:80"), ["10.1.1.6:8080=web"]);
    assert_eq!(cluster.ask("10.1.1.5:80"), ["unknown"]);
}

fn now(future: impl Future<Output = ()>) -> bool {
    futures_util::FutureExt::now_or_never(future).is_some()
}

#[tokio::test]
async fn a_change_wakes_those_whom_it_concerns() {
    let mut cluster = Cluster::new();
    let mut spec = cluster_ip("10.96.0.10");
    spec["ports"][0]["nodePort"] = json!(30080);
    cluster.service(spec);
    cluster.slice("web-1", http(8080), json!([at("10.1.1.5"), at("10.1.1.6")]));
    cluster.pod(meshed("web-0", "10.1.1.5"));
    cluster.pod(meshed("web-1", "10.1.1.6"));
    cluster.pod(meshed("other", "10.1.1.7"));
    let texts =
        ["10.96.0.10:80", "172.18.0.3:30080", "web.shop", "10.1.1.5:1", "10.1.1.6:1", "10.1.1.7:1", "10.96.0.99:80"];
    let mut listening = texts.map(|text| listen(&cluster, text));
    let mut woken = || {
        listening.each_mut().map(|it| {
            let woken = now(it.changed());
            it.current();
            woken
        })
    };
    let leaving =
        |name: &str, ip: &str| with(meshed(name, ip), "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"));
    cluster.pod(leaving("web-0", "10.1.1.5"));
    assert_eq!(woken(), [true, true, true, true, false, false, false]);
    cluster.pod(leaving("other", "10.1.1.7"));
    assert_eq!(woken(), [false, false, false, false, false, true, false]);
    cluster.slice("web-1", http(8080), json!([at("10.1.1.5")]));
    assert_eq!(woken(), [true, true, true, false, false, false, false]);
    let ready = json!([{ "type": "Ready", "status": "True" }]);
    cluster.pod(with(meshed("web-1", "10.1.1.6"), "/status/conditions", ready));
    assert_eq!(woken(), [false; 7], "what is not kept changes nothing");
    cluster.service(cluster_ip("10.96.0.10"));
    assert!(woken()[1], "the node port is gone");
}

#[test]
fn a_change_costs_what_refers_to_it_and_not_the_cluster() {
    let mut cluster = Cluster::new();
    for i in 0..200 {
        let meta = json!({ "name": format!("other-{i}"), "namespace": "shop" });
        cluster.service_with(json!({ "metadata": meta, "spec": cluster_ip(&format!("10.96.1.{i}")) }));
        cluster.pod(meshed(&format!("pod-{i}"), &format!("10.1.1.{i}")));
    }
    cluster.service(cluster_ip("10.96.0.10"));
    cluster.slice("web-1", http(8080), json!([at("10.1.1.5")]));
    let leaving = with(meshed("pod-5", "10.1.1.5"), "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"));
    let pod = read_pod(leaving);
    let row = prune::pod(&pod, &TrustDomain::default());
    cluster.world.apply(Seen::Pod(Event::Set(prune::name(&pod.metadata), row)));
    let changes = cluster.world.flush();
    assert!(matches!(&changes[..], [Change::Pod(..), Change::Service(name, _)] if *name == shop("web")), "{changes:?}");
    assert!(cluster.world.flush().is_empty(), "said once");
}
