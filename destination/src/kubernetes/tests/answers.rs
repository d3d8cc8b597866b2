//! Every address that a Service answers on, and who answers there.

use super::*;

const WEB: &str = "10.96.0.10:80";

/// `web` with one meshed pod at 10.1.1.5 and one unmeshed at 10.1.1.6.
fn web(spec: Value) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.pod(meshed("web-0", "10.1.1.5"));
    cluster.pod(unmeshed("web-1", "10.1.1.6"));
    cluster.service(spec);
    cluster.slice("web-1", http(8080), json!([at("10.1.1.5"), at("10.1.1.6")]));
    cluster
}

const BOTH: [&str; 2] = ["10.1.1.5:8080=web", "10.1.1.6:8080"];

#[test]
fn every_address_of_a_service_leads_to_its_endpoints() {
    let mut spec = cluster_ip("10.96.0.10");
    spec["type"] = json!("LoadBalancer");
    spec["externalIPs"] = json!(["192.0.2.1"]);
    spec["ports"][0]["nodePort"] = json!(30080);
    let mut cluster = web(json!({ "clusterIP": "10.96.0.10" }));
    let ingress = json!([
        { "ip": "192.0.2.2" }, { "ip": "192.0.2.3", "ipMode": "Proxy" }, { "ip": "192.0.2.4", "ipMode": "VIP" },
        { "hostname": "web.example" },
    ]);
    cluster.service_with(json!({
        "metadata": { "name": "web", "namespace": "shop" },
        "spec": spec, "status": { "loadBalancer": { "ingress": ingress } },
    }));
    for text in [
        WEB,
        "192.0.2.1:80",
        "192.0.2.2:80",
        "192.0.2.4:80",
        "172.18.0.2:30080",
        "172.18.0.3:30080",
        "web.shop",
        "web.shop:80",
        "web.shop.svc.cluster.local:80",
    ] {
        assert_eq!(cluster.ask(text), BOTH, "{text}");
    }
    for text in ["10.96.0.10:8080", "192.0.2.3:80", "172.18.0.2:80", "172.18.0.9:30080", "10.96.0.10:30080"] {
        assert_eq!(cluster.ask(text), ["unknown"], "{text}");
    }
    let outside = cluster.hub.networks().borrow().outside.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(outside, ["192.0.2.1", "192.0.2.2", "192.0.2.4"]);
    cluster.service(cluster_ip("10.96.0.10"));
    for text in ["192.0.2.1:80", "192.0.2.2:80", "172.18.0.2:30080"] {
        assert_eq!(cluster.ask(text), ["unknown"], "{text}");
    }
    assert!(cluster.hub.networks().borrow().outside.is_empty());
}

#[test]
fn services_may_share_an_external_address_and_none_takes_a_pods() {
    let mut cluster =
        web(with(cluster_ip("10.96.0.10"), "/externalIPs", json!(["192.0.2.1", "10.1.1.5", "10.96.0.11"])));
    let spec = json!({
        "clusterIP": "10.96.0.11", "externalIPs": ["192.0.2.1"],
        "ports": [{ "port": 443, "protocol": "TCP" }, { "name": "other", "port": 80, "protocol": "TCP" }],
    });
    cluster.service_with(json!({ "metadata": { "name": "zzz", "namespace": "shop" }, "spec": spec }));
    assert_eq!(cluster.ask("192.0.2.1:80"), BOTH);
    assert!(cluster.ask("192.0.2.1:443").is_empty(), "of the other");
    assert_eq!(cluster.ask("10.1.1.5:80"), ["10.1.1.5:80=web"], "a pod's address is its own");
    assert!(cluster.ask("10.96.0.11:80").is_empty(), "and a cluster address is its service's");
}

#[test]
fn a_port_of_the_node_leads_to_the_pod_that_asked_for_it() {
    let mut cluster = Cluster::new();
    let port = |host_ip: &str| {
        let ports = json!([{ "containerPort": 8080, "hostPort": 9000, "hostIP": host_ip, "protocol": "TCP" }]);
        with(meshed("web-0", "10.1.1.5"), "/spec/containers", json!([{ "name": "app", "ports": ports }]))
    };
    for (host_ip, ask, expected) in [
        ("", "172.18.0.2:9000", "10.1.1.5:8080=web"),
        ("0.0.0.0", "172.18.0.2:9000", "10.1.1.5:8080=web"),
        ("172.18.0.2", "172.18.0.2:9000", "10.1.1.5:8080=web"),
        ("172.18.0.99", "172.18.0.2:9000", "unknown"),
        ("127.0.0.1", "172.18.0.2:9000", "unknown"),
        ("", "172.18.0.3:9000", "unknown"),
        ("", "172.18.0.2:8080", "unknown"),
    ] {
        cluster.pod(port(host_ip));
        assert_eq!(cluster.ask(ask), [expected], "{host_ip} {ask}");
    }
    cluster.node("a", "172.18.0.7", "10.1.1.0/24", "z1");
    assert_eq!(
        (cluster.ask("172.18.0.7:9000"), cluster.ask("172.18.0.2:9000")),
        (vec!["10.1.1.5:8080=web".to_owned()], vec!["unknown".to_owned()])
    );
    cluster.no_pod("web-0");
    assert_eq!(cluster.ask("172.18.0.7:9000"), ["unknown"]);
}

#[test]
fn ports_are_joined_by_name_and_differ_by_slice() {
    let mut cluster = web(json!({
        "clusterIP": "10.96.0.10",
        "ports": [
            { "name": "http", "port": 80, "targetPort": "web" },
            { "name": "admin", "port": 81, "targetPort": 9000 },
            { "name": "dns", "port": 53, "protocol": "UDP" },
        ],
    }));
    let ports = json!([{ "name": "http", "port": 8081 }, { "name": "admin" }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
    cluster.slice("web-2", ports, json!([at("10.9.0.7")]));
    assert_eq!(cluster.ask(WEB), ["10.1.1.5:8080=web", "10.1.1.6:8080", "10.9.0.7:8081"]);
    assert_eq!(cluster.ask("10.96.0.10:81"), ["10.9.0.7:9000"], "no number: all ports");
    assert_eq!(cluster.ask("10.96.0.10:53"), ["unknown"]);
    cluster.service(json!({ "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] }));
    cluster.slice("web-3", json!([{ "port": 8082 }]), json!([at("10.9.0.8")]));
    assert_eq!(cluster.ask(WEB), ["10.9.0.8:8082"], "no name is a name too");
}

#[test]
fn readiness_is_as_the_slice_says_and_nothing_is_ready() {
    for (conditions, expected) in [
        (json!({}), true),
        (Value::Null, true),
        (json!({ "ready": true }), true),
        (json!({ "ready": false }), false),
        (json!({ "ready": false, "serving": true, "terminating": true }), true),
        (json!({ "ready": false, "terminating": true }), true),
        (json!({ "ready": false, "serving": false, "terminating": true }), false),
        (json!({ "ready": false, "serving": true, "terminating": false }), false),
    ] {
        let mut cluster = web(cluster_ip("10.96.0.10"));
        cluster.slice("web-1", http(8080), json!([with(at("10.1.1.5"), "/conditions", conditions.clone())]));
        assert_eq!(cluster.ask(WEB).len(), usize::from(expected), "{conditions}");
    }
    let leaving = with(at("10.1.1.5"), "/conditions", json!({ "ready": false, "serving": true, "terminating": true }));
    let mut cluster = web(cluster_ip("10.96.0.10"));
    cluster.slice("web-1", http(8080), json!([leaving, at("10.1.1.6")]));
    assert_eq!(cluster.ask(WEB), ["10.1.1.6:8080"], "who leaves answers only if nobody else does");
    cluster.slice("web-2", http(8080), json!([at("10.1.1.5")]));
    assert_eq!(cluster.ask(WEB), BOTH, "twice, and once ready: once, ready");
}

#[test]
fn families_have_their_own_slices_and_names_are_not_addresses() {
    let mut spec = cluster_ip("10.96.0.10");
    spec["clusterIPs"] = json!(["10.96.0.10", "fd00:10:96::10"]);
    spec["externalIPs"] = json!(["fd00:9::9"]);
    let mut cluster = web(spec.clone());
    cluster.slice_of("web-6", "IPv6", http(8080), json!([at("fd00:1::5")]));
    cluster.slice_of("web-f", "FQDN", http(8080), json!([at("web.example")]));
    assert_eq!(
        (cluster.ask(WEB), cluster.ask("web.shop")),
        (BOTH.map(String::from).into(), BOTH.map(String::from).into())
    );
    assert_eq!(cluster.ask("[fd00:10:96::10]:80"), ["[fd00:1::5]:8080"]);
    assert_eq!(cluster.ask("[fd00:9::9]:80"), ["[fd00:1::5]:8080"]);
    cluster.service(with(spec, "/clusterIPs", json!(["fd00:10:96::10", "10.96.0.10"])));
    assert_eq!(cluster.ask("web.shop"), ["[fd00:1::5]:8080"]);
}

#[test]
fn a_headless_service_and_its_instances_answer_by_name() {
    let mut spec = cluster_ip("None");
    spec["externalIPs"] = json!(["192.0.2.1"]);
    let mut cluster = web(spec);
    let named = with(at("10.1.1.5"), "/hostname", json!("web-0"));
    cluster.slice("web-1", http(8080), json!([named, at("10.1.1.6")]));
    assert_eq!(cluster.ask("web.shop.svc.cluster.local:80"), BOTH);
    assert_eq!(cluster.ask("web-0.web.shop.svc.cluster.local:80"), ["10.1.1.5:8080=web"]);
    assert!(cluster.ask("web-1.web.shop:80").is_empty());
    assert_eq!(cluster.ask("web-0.nobody.shop:80"), ["unknown"]);
    assert_eq!(cluster.ask("192.0.2.1:80"), ["unknown"], "kube-proxy does not serve it either");
    match cluster.answer("web-0.web.shop:80", "") {
        Answer::Service { fqdn, .. } => assert_eq!(fqdn, "web-0.web.shop.svc.cluster.local"),
        other => panic!("{other:?}"),
    }
    cluster.service(json!({ "type": "ExternalName", "externalName": "example.com", "ports": [{ "port": 80 }] }));
    assert_eq!(cluster.ask("web.shop:80"), ["unknown"]);
}

#[test]
fn a_node_local_service_is_served_on_the_node_of_the_pod_that_calls() {
    let mut spec = cluster_ip("10.96.0.10");
    spec["internalTrafficPolicy"] = json!("Local");
    spec["externalTrafficPolicy"] = json!("Local");
    spec["ports"][0]["nodePort"] = json!(30080);
    let mut cluster = web(spec);
    cluster.slice("web-1", http(8080), json!([at("10.1.1.5"), with(at("10.1.1.6"), "/nodeName", json!("b"))]));
    cluster.pod(meshed("client-a", "10.1.1.20"));
    cluster.pod(with(meshed("client-b", "10.1.2.20"), "/spec/nodeName", json!("b")));
    cluster.pod(with(meshed("client-c", "10.1.3.20"), "/spec/nodeName", json!("c")));
    assert_eq!(cluster.ask_from(WEB, "10.1.1.20"), ["10.1.1.5:8080=web"]);
    assert_eq!(cluster.ask_from("web.shop:80", "10.1.2.20"), ["10.1.1.6:8080"]);
    for nowhere in ["10.1.3.20", "10.1.9.9", ""] {
        let answer = cluster.answer(WEB, nowhere);
        assert!(matches!(answer, Answer::Service { .. }) && answer.endpoints().is_empty(), "{nowhere}: {answer:?}");
    }
    assert_eq!(cluster.ask_from("172.18.0.3:30080", "10.1.3.20"), BOTH, "as if it came back from a load balancer");
}

#[test]
fn zone_hints_are_for_the_zone_of_the_callers_node() {
    let mut cluster = web(cluster_ip("10.96.0.10"));
    let hint = |ip: &str, zone: &str| with(at(ip), "/hints", json!({ "forZones": [{ "name": zone }] }));
    cluster.slice("web-1", http(8080), json!([hint("10.1.1.5", "z1"), hint("10.1.1.6", "z2")]));
    cluster.pod(meshed("client", "10.1.1.20"));
    assert_eq!(cluster.ask_from(WEB, "10.1.1.20"), ["10.1.1.5:8080=web"]);
    cluster.node("a", "172.18.0.2", "10.1.1.0/24", "z2");
    assert_eq!(cluster.ask_from(WEB, "10.1.1.20"), ["10.1.1.6:8080"], "the node's zone is what it is now");
    cluster.node("a", "172.18.0.2", "10.1.1.0/24", "z3");
    assert_eq!(cluster.ask_from(WEB, "10.1.1.20"), BOTH);
    cluster.slice("web-2", http(8080), json!([at("10.9.0.1")]));
    assert_eq!(cluster.ask_from(WEB, "10.1.1.20").len(), 3);
}

#[test]
fn whom_a_load_balancer_bars_is_barred() {
    let mut cluster = web(cluster_ip("10.96.0.10"));
    let mut ask = |ranges: Value, ip: &str| {
        let spec = with(cluster_ip("10.96.0.10"), "/loadBalancerSourceRanges", ranges);
        let ingress = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.2" }] } });
        let meta = json!({ "name": "web", "namespace": "shop" });
        cluster.service_with(json!({ "metadata": meta, "spec": spec, "status": ingress }));
        assert_eq!(cluster.ask_from(WEB, ip), BOTH);
        cluster.ask_from("192.0.2.2:80", ip).len()
    };
    assert_eq!(ask(json!(["10.1.1.0/24"]), "10.1.1.20"), 2);
    assert_eq!(ask(json!(["10.1.1.0/24"]), "10.1.2.20"), 0);
    assert_eq!(ask(json!(["10.1.1.0/24", " 0.0.0.0/0"]), "10.1.2.20"), 2);
}

#[test]
fn affinity_is_told() {
    let seconds = |spec: Value| match web(spec).answer(WEB, "") {
        Answer::Service { affinity_seconds, .. } => affinity_seconds,
        other => panic!("{other:?}"),
    };
    let spec = || with(cluster_ip("10.96.0.10"), "/sessionAffinity", json!("ClientIP"));
    assert_eq!(seconds(cluster_ip("10.96.0.10")), None);
    assert_eq!(seconds(spec()), Some(10800));
    assert_eq!(
        seconds(with(spec(), "/sessionAffinityConfig", json!({ "clientIP": { "timeoutSeconds": 7 } }))),
        Some(7)
    );
}

#[test]
fn an_address_in_a_slice_is_whose_the_pods_say_and_not_what_the_slice_says() {
    let mut cluster = web(cluster_ip("10.96.0.10"));
    let named =
        |ip: &str, pod: &str| with(at(ip), "/targetRef", json!({ "kind": "Pod", "namespace": "shop", "name": pod }));
    cluster.slice("web-1", http(8080), json!([named("10.1.1.6", "web-0"), named("10.1.1.5", "web-1")]));
    assert_eq!(cluster.ask(WEB), BOTH, "by address");
    cluster.slice("web-1", http(8080), json!([named("172.18.0.2", "web-0"), at("192.0.2.9"), at("172.18.0.50")]));
    assert_eq!(cluster.ask(WEB), ["172.18.0.2:8080", "172.18.0.50:8080", "192.0.2.9:8080"], "nodes, and others");
}

#[test]
fn an_endpoint_whose_pod_is_not_seen_yet_is_not_called_unmeshed() {
    let mut cluster = web(cluster_ip("10.96.0.10"));
    let named = with(at("10.5.0.1"), "/targetRef", json!({ "kind": "Pod", "namespace": "shop", "name": "web-8" }));
    cluster.slice("web-1", http(8080), json!([at("10.1.1.6"), at("10.1.1.77"), named]));
    assert_eq!(cluster.ask(WEB), ["10.1.1.6:8080"]);
    cluster.pod(meshed("web-7", "10.1.1.77"));
    cluster.pod(meshed("web-8", "10.5.0.1"));
    assert_eq!(cluster.ask(WEB), ["10.1.1.6:8080", "10.1.1.77:8080=web", "10.5.0.1:8080=web"]);
    cluster.slice("web-2", http(8080), json!([at("10.6.0.1")]));
    assert_eq!(cluster.ask(WEB).len(), 4, "outside of what is for pods it is somebody else's");
    cluster.node("c", "172.18.0.4", "10.6.0.0/24", "z1");
    assert_eq!(cluster.ask(WEB).len(), 3, "and is not any more");
}
