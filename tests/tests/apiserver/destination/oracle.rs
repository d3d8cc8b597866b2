//! K14: who answers is whom kube-proxy would choose from, at every address of every generated Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::anyhow;
use hauberk_destination::Answer;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::*;
use kube_proxy::{KubeProxy, Rules};
use services::{generate, slice_of};

const SERVICES: usize = 120;
const POD_NETWORKS: &str = "10.244.0.0/16,fd00:10:244::/56";
const CALLER: [&str; 2] = ["10.244.250.9", "fd00:10:244::fa:9"];
const NODE: [&str; 2] = ["172.18.0.2", "fd00:172:18::2"];
/// Where the last Service of all is.
const LAST: [&str; 2] = ["10.96.0.200:80", "[fd00:10:96::200]:80"];

/// How often each thing was compared: what was never there was not tested.
#[derive(Debug, Default)]
struct Seen(BTreeMap<&'static str, usize>);

impl Seen {
    fn note(&mut self, what: &'static str, holds: bool) {
        *self.0.entry(what).or_default() += usize::from(holds);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_address_the_endpoints_are_those_of_kube_proxy() {
    let plane = ControlPlane::start().await.expect("it starts");
    plane.namespace("shop", &[]).await.expect("a namespace");
    for (name, zone, ips) in [("a", "z1", NODE), ("b", "z2", ["172.18.0.3", "fd00:172:18::3"])] {
        let meta =
            json!({ "name": name, "labels": { "topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": name } });
        create(&plane, &json!({ "apiVersion": "v1", "kind": "Node", "metadata": meta })).await;
        let addresses = ips.map(|ip| json!({ "type": "InternalIP", "address": ip }));
        let status = json!({ "status": { "addresses": addresses } });
        let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(plane.client());
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.expect("a node");
    }
    let kube_proxy = KubeProxy::start(&plane, POD_NETWORKS);
    let token = token(&plane).await;
    let following = Following::start(&plane.client_with_token(&token)).await;

    let generated = generate(SERVICES);
    let services = Api::<Service>::namespaced(plane.client(), "shop");
    let slices = Api::<EndpointSlice>::namespaced(plane.client(), "shop");
    for one in &generated {
        create(&plane, &one.service).await;
        if !one.status.is_null() {
            services
                .patch_status(&one.name, &PatchParams::default(), &Patch::Merge(&one.status))
                .await
                .expect("a status");
        }
    }
    let ips = LAST.map(|at| at.parse::<SocketAddr>().expect("an address").ip());
    let spec = json!({ "ipFamilyPolicy": "RequireDualStack", "clusterIPs": ips, "clusterIP": ips[0], "ports": [{ "port": 80 }] });
    let meta = json!({ "name": "last", "namespace": "shop" });
    create(&plane, &json!({ "apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec })).await;

    let mut seen = Seen::default();
    for state in [0, 1] {
        for one in &generated {
            for slice in &one.slices[state] {
                create(&plane, slice).await;
            }
        }
        let ips: [IpAddr; 2] = [
            Ipv4Addr::new(192, 0, 2, 200 + state as u8).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x200 + state as u16).into(),
        ];
        for ip in ips {
            let (name, port) =
                (format!("last-{state}-{}", ip.is_ipv6()), json!({ "name": "", "port": 80, "protocol": "TCP" }));
            let last = slice_of("last", &name, ip.is_ipv6(), vec![port], vec![json!({ "addresses": [ip] })]);
            create(&plane, &last).await;
        }
        let rules = all_is_seen(&following, &kube_proxy, ips.map(|ip| SocketAddr::new(ip, 80))).await;
        for service in services.list(&ListParams::default()).await.expect("a list") {
            compare(&following, &rules, &service, &mut seen);
        }
        for slice in slices.list(&ListParams::default()).await.expect("a list") {
            let name = slice.metadata.name.expect("it has one");
            slices.delete(&name, &DeleteParams::default()).await.expect("deleted");
        }
    }
    println!("{seen:?}");
    for (what, count) in &seen.0 {
        assert!(*count >= 10, "{what} was compared {count} times only");
    }
}

/// Waits until both have seen the last slice of each family: they have seen all before it.
async fn all_is_seen(following: &Following, kube_proxy: &KubeProxy, last: [SocketAddr; 2]) -> [Rules; 2] {
    for (at, last) in LAST.into_iter().zip(last) {
        following.becomes(at, &[&last.to_string()]).await;
    }
    let rules = async |family: usize| {
        let (caller, to) = (CALLER[family].parse().expect("valid"), LAST[family].parse().expect("valid"));
        let asked = hauberk_e2e::until("kube-proxy has seen all", LONG, async || {
            let rules = kube_proxy.rules(family == 1);
            let seen = rules.endpoints(caller, to) == BTreeSet::from([last[family]]);
            Ok(if seen { Ok(rules) } else { Err(anyhow!("it has not")) })
        });
        asked.await.expect("it follows")
    };
    [rules(0).await, rules(1).await]
}

fn compare(following: &Following, rules: &[Rules; 2], service: &Service, seen: &mut Seen) {
    let (spec, name) = (service.spec.as_ref().expect("a spec"), service.metadata.name.as_ref().expect("a name"));
    let ingress = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
    let ingress = ingress.flat_map(|balancer| balancer.ingress.iter().flatten());
    let proxied =
        |ip: &str| ingress.clone().any(|it| it.ip.as_deref() == Some(ip) && it.ip_mode.as_deref() == Some("Proxy"));
    let balancers = ingress.clone().filter_map(|it| it.ip.as_ref());
    for port in spec.ports.iter().flatten().filter(|port| port.protocol.as_deref() == Some("TCP")) {
        let number = u16::try_from(port.port).expect("a port");
        let mut ways: Vec<(&'static str, String, u16)> = Vec::new();
        ways.extend(spec.cluster_ips.iter().flatten().map(|ip| ("cluster", ip.clone(), number)));
        ways.extend(spec.external_ips.iter().flatten().map(|ip| ("external", ip.clone(), number)));
        ways.extend(balancers.clone().map(|ip| ("balancer", ip.clone(), number)));
        if let Some(node_port) = port.node_port.and_then(|port| u16::try_from(port).ok()) {
            let families = spec.ip_families.iter().flatten().map(|family| usize::from(family == "IPv6"));
            ways.extend(families.map(|family| ("node", NODE[family].to_owned(), node_port)));
        }
        for (way, ip, number) in ways {
            let to = SocketAddr::new(ip.parse().expect("an address"), number);
            let family = usize::from(to.is_ipv6());
            let source: IpAddr = CALLER[family].parse().expect("valid");
            let theirs = match way {
                "node" => rules[family].node_port(source, to),
                _ => rules[family].endpoints(source, to),
            };
            let told = following.told(&to.to_string(), &at("a", "z1", CALLER[family]));
            let ours: BTreeSet<SocketAddr> = told.answer().endpoints().into_keys().collect();
            let shown = serde_json::to_string_pretty(service).expect("JSON");
            assert_eq!(ours, theirs, "{name} by {way} at {to}: ours, kube-proxy's\n{shown}");
            let by_proxy = way == "balancer" && proxied(&ip);
            assert_eq!(*told.answer() == Answer::Unknown, by_proxy, "{name} by {way} at {to}");
            seen.note(way, !ours.is_empty());
            seen.note("nobody", ours.is_empty());
            seen.note("ipv6", family == 1 && !ours.is_empty());
            let policy = |policy: &Option<String>| policy.as_deref() == Some("Local");
            let all = following.told(&to.to_string(), &Caller::default());
            let narrowed = all.answer().endpoints().len() > ours.len();
            seen.note("narrowed by hints", narrowed && !policy(&spec.internal_traffic_policy));
            seen.note("node-local", way == "cluster" && policy(&spec.internal_traffic_policy) && !ours.is_empty());
            seen.note(
                "external policy local",
                way != "cluster" && policy(&spec.external_traffic_policy) && !ours.is_empty(),
            );
        }
    }
}
