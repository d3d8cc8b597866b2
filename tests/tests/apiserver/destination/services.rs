//! Services and their slices, generated: every field that decides who answers, in all combinations that the API takes.

use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};

/// Endpoints that the slices of one Service choose from.
const POOL: usize = 6;

/// A Service, and two states of its slices.
#[derive(Debug)]
pub(super) struct Generated {
    pub(super) name: String,
    pub(super) service: Value,
    pub(super) status: Value,
    pub(super) slices: [Vec<Value>; 2],
}

/// The same each time.
pub(super) fn generate(count: usize) -> Vec<Generated> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, b"hauberk: services and endpoints!");
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..count).map(|i| draw(&mut runner, &drawn()).build(i)).collect()
}

fn draw<S: Strategy>(runner: &mut TestRunner, strategy: &S) -> S::Value {
    strategy.new_tree(runner).expect("nothing is rejected").current()
}

#[derive(Debug, Clone)]
struct Drawn {
    kind: &'static str,
    dual: bool,
    internal_local: bool,
    external_local: bool,
    affinity: bool,
    external_ips: usize,
    balancer: Option<&'static str>,
    sources: Option<&'static str>,
    udp: Vec<bool>,
    hinted: bool,
    states: [Vec<Member>; 2],
    slices: [Vec<Slice>; 2],
}

/// An endpoint. Wherever a Service's slices list it, they say the same of it.
#[derive(Debug, Clone)]
struct Member {
    conditions: Value,
    node: Option<&'static str>,
    zones: Vec<&'static str>,
    nodes: Vec<&'static str>,
}

#[derive(Debug, Clone)]
struct Slice {
    ipv6: bool,
    members: u8,
    /// For each port of the Service: its number here, if it is here.
    ports: Vec<Option<u16>>,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let kind = prop_oneof![Just("ClusterIP"), Just("NodePort"), Just("LoadBalancer")];
    let policies = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let balancer = prop_oneof![Just(None), Just(Some("VIP")), Just(Some("VIP")), Just(Some("Proxy"))];
    let sources = prop_oneof![3 => Just(None), 1 => Just(Some("10.244.0.0/16")), 1 => Just(Some("203.0.113.0/24"))];
    let udp = vec(prop::bool::weighted(0.2), 1..4);
    let states = [vec(member(), POOL), vec(member(), POOL)];
    let slices = [vec(slice(), 0..4), vec(slice(), 0..4)];
    (kind, policies, 0..3usize, balancer, sources, udp, any::<bool>(), states, slices).prop_map(
        |(
            kind,
            (dual, internal_local, external_local, affinity),
            external_ips,
            balancer,
            sources,
            udp,
            hinted,
            states,
            slices,
        )| {
            Drawn {
                kind,
                dual,
                internal_local,
                external_local,
                affinity,
                external_ips,
                balancer,
                sources,
                udp,
                hinted,
                states,
                slices,
            }
        },
    )
}

fn member() -> impl Strategy<Value = Member> {
    let leaving = json!({ "ready": false, "serving": true, "terminating": true });
    let conditions = prop_oneof![
        2 => Just(json!({})),
        4 => Just(json!({ "ready": true, "serving": true, "terminating": false })),
        2 => Just(json!({ "ready": false, "serving": false, "terminating": false })),
        3 => Just(leaving),
        1 => Just(json!({ "ready": false, "serving": false, "terminating": true })),
        1 => Just(json!({ "ready": false, "terminating": true })),
    ];
    let node = prop_oneof![2 => Just(Some("a")), 2 => Just(Some("b")), 1 => Just(None)];
    let zones = prop_oneof![Just(vec!["z1"]), Just(vec!["z2"]), Just(vec!["z1", "z2"])];
    let nodes = prop_oneof![3 => Just(vec![]), 1 => Just(vec!["a"]), 1 => Just(vec!["b"])];
    (conditions, node, zones, nodes).prop_map(|(conditions, node, zones, nodes)| Member {
        conditions,
        node,
        zones,
        nodes,
    })
}

fn slice() -> impl Strategy<Value = Slice> {
    let number = prop_oneof![1 => Just(None), 4 => (8000u16..8004).prop_map(Some)];
    (prop::bool::weighted(0.3), any::<u8>(), vec(number, 3)).prop_map(|(ipv6, members, ports)| Slice {
        ipv6,
        members,
        ports,
    })
}

impl Drawn {
    fn build(&self, number: usize) -> Generated {
        let name = format!("web-{number}");
        let outward = self.kind != "ClusterIP";
        let protocol = |udp: &bool| if *udp { "UDP" } else { "TCP" };
        let ports = self.udp.iter().enumerate().map(|(i, udp)| {
            json!({ "name": format!("p{i}"), "port": 80 + i, "protocol": protocol(udp), "targetPort": 9000 })
        });
        let external: Vec<String> = (0..self.external_ips).map(|i| format!("192.0.{}.{number}", 2 + i)).collect();
        let mut spec = json!({
            "type": self.kind, "ports": ports.collect::<Vec<_>>(), "externalIPs": external,
            "ipFamilyPolicy": if self.dual { "RequireDualStack" } else { "SingleStack" },
            "internalTrafficPolicy": if self.internal_local { "Local" } else { "Cluster" },
            "sessionAffinity": if self.affinity { "ClientIP" } else { "None" },
        });
        let mut status = Value::Null;
        if outward {
            spec["externalTrafficPolicy"] = json!(if self.external_local { "Local" } else { "Cluster" });
        }
        if self.kind == "LoadBalancer" {
            if let Some(mode) = self.balancer {
                let ingress =
                    json!([{ "ip": format!("198.51.100.{number}"), "ipMode": mode }, { "hostname": "web.example" }]);
                status = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
            }
            if let Some(sources) = self.sources {
                spec["loadBalancerSourceRanges"] = json!([sources]);
            }
        }
        let meta = json!({ "name": name, "namespace": "shop" });
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec });
        let slices = [0, 1].map(|state| {
            let slices = self.slices[state].iter().enumerate();
            slices.map(|(i, slice)| self.slice(number, state, i, slice)).collect()
        });
        Generated { name, service, status, slices }
    }

    fn slice(&self, number: usize, state: usize, i: usize, slice: &Slice) -> Value {
        let ports = self.udp.iter().enumerate().filter_map(|(port, udp)| {
            let protocol = if *udp { "UDP" } else { "TCP" };
            Some(json!({ "name": format!("p{port}"), "port": slice.ports[port]?, "protocol": protocol }))
        });
        let members = (0..POOL).filter(|member| slice.members & (1 << member) != 0);
        let endpoints = members.map(|member| {
            let ip = if slice.ipv6 {
                format!("fd00:10:244::{number}:{member}")
            } else {
                format!("10.244.{number}.{member}")
            };
            let Member { conditions, node, zones, nodes } = &self.states[state][member];
            let mut endpoint = json!({ "addresses": [ip], "conditions": conditions });
            if let Some(node) = node {
                endpoint["nodeName"] = json!(node);
            }
            // One in seven lacks hints where the others have them.
            if self.hinted && !(number + member).is_multiple_of(7) {
                let names = |names: &[&str]| names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>();
                endpoint["hints"] = json!({ "forZones": names(zones) });
                if number.is_multiple_of(3) {
                    endpoint["hints"]["forNodes"] =
                        json!(names(if nodes.is_empty() { &["a", "b"][..] } else { nodes }));
                }
            }
            endpoint
        });
        slice_of(
            &format!("web-{number}"),
            &format!("web-{number}-{state}-{i}"),
            slice.ipv6,
            ports.collect(),
            endpoints.collect(),
        )
    }
}

/// An EndpointSlice.
pub(super) fn slice_of(service: &str, name: &str, ipv6: bool, ports: Vec<Value>, endpoints: Vec<Value>) -> Value {
    let labels = json!({ "kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "tests" });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "namespace": "shop", "labels": labels },
        "addressType": if ipv6 { "IPv6" } else { "IPv4" }, "ports": ports, "endpoints": endpoints,
    })
}
