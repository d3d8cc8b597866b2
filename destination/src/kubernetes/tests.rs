//! Objects of the API in, answers out: each rule as a table.

mod answers;
mod changes;
mod coverage;
mod pods;

use std::{net::IpAddr, sync::Arc};

use hauberk_mesh::{ProxySpec, TrustDomain};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};

use super::{
    prune,
    relist::Event,
    rows::ObjectName,
    world::{Seen, World},
};
use crate::{
    answer::Answer,
    choice::Caller,
    hub::Hub,
    index::Index,
    query::Query,
    subject::{Subject, Topic},
};

/// A cluster, as the watches of its objects tell it.
struct Cluster {
    world: World,
    hub: Arc<Hub>,
}

impl Cluster {
    /// Two nodes in two zones; nobody else.
    fn new() -> Self {
        let mut world = World::new("10.96.0.0/16,172.18.0.0/16".parse().expect("valid"));
        world.flush();
        let mut cluster = Self { world, hub: Hub::new(Index::default()) };
        cluster.node("a", "172.18.0.2", "10.1.1.0/24", "z1");
        cluster.node("b", "172.18.0.3", "10.1.2.0/24", "z2");
        cluster
    }

    fn see(&mut self, seen: Seen) {
        self.world.apply(seen);
        let changes = self.world.flush();
        self.hub.update(changes);
    }

    fn node(&mut self, name: &str, ip: &str, pods: &str, zone: &str) {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "topology.kubernetes.io/zone": zone } },
            "spec": { "podCIDR": pods, "podCIDRs": [pods] },
            "status": { "addresses": [{ "type": "Hostname", "address": name }, { "type": "InternalIP", "address": ip }] },
        }))
        .expect("a node");
        self.see(Seen::Node(Event::Set(prune::name(&node.metadata), Some(prune::node(&node)))));
    }

    fn pod(&mut self, json: Value) {
        let pod = read_pod(json);
        let row = prune::pod(&pod, &TrustDomain::default());
        self.see(Seen::Pod(Event::Set(prune::name(&pod.metadata), row)));
    }

    fn no_pod(&mut self, name: &str) {
        self.see(Seen::Pod(Event::Set(shop(name), None)));
    }

    fn service(&mut self, spec: Value) {
        self.service_with(json!({ "metadata": { "name": "web", "namespace": "shop" }, "spec": spec }));
    }

    fn service_with(&mut self, json: Value) {
        let service: Service = serde_json::from_value(json).expect("a service");
        self.see(Seen::Service(Event::Set(prune::name(&service.metadata), prune::service(&service))));
    }

    fn slice(&mut self, name: &str, ports: Value, endpoints: Value) {
        self.slice_of(name, "IPv4", ports, endpoints);
    }

    fn slice_of(&mut self, name: &str, family: &str, ports: Value, endpoints: Value) {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {
                "name": name, "namespace": "shop", "labels": { "kubernetes.io/service-name": "web" },
            },
            "addressType": family, "ports": ports, "endpoints": endpoints,
        }))
        .expect("a slice");
        self.see(Seen::Slice(Event::Set(prune::name(&slice.metadata), prune::slice(&slice))));
    }

    fn namespace(&mut self, json: Value) {
        let namespace: Namespace = serde_json::from_value(json).expect("a namespace");
        self.see(Seen::Namespace(Event::Set(prune::name(&namespace.metadata), Some(prune::namespace(&namespace)))));
    }

    /// The answer to `text` for whoever calls from `ip`.
    fn answer(&self, text: &str, ip: &str) -> Answer {
        let domain = TrustDomain::default();
        let topic = Query::parse(text, &domain).expect("a valid query").topic();
        let ip: Option<IpAddr> = ip.parse().ok();
        let pod = ip.and_then(|ip| self.hub.subscribe(Topic::Caller(ip)).current().subject().cloned());
        let place = match pod {
            Some(Subject::Caller(pod)) => pod.place.clone(),
            _ => None,
        };
        let told = self.hub.subscribe(topic).current().told(&Caller { ip, place }, &domain);
        told.answer().clone()
    }

    /// What [`Cluster::answer`] is made of: each address, and `=account` if it is meshed.
    fn ask_from(&self, text: &str, ip: &str) -> Vec<String> {
        let answer = self.answer(text, ip);
        if answer == Answer::Unknown {
            return vec!["unknown".to_owned()];
        }
        let line = |(addr, endpoint): (_, &crate::Endpoint)| match &endpoint.identity {
            Ok(name) => format!("{addr}={}", name.service_account()),
            Err(_) => format!("{addr}"),
        };
        answer.endpoints().into_iter().map(line).collect()
    }

    fn ask(&self, text: &str) -> Vec<String> {
        self.ask_from(text, "")
    }
}

fn shop(name: &str) -> ObjectName {
    ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn read_pod(json: Value) -> Pod {
    serde_json::from_value(json).expect("a pod")
}

/// A meshed pod of account `web` on node a.
fn meshed(name: &str, ip: &str) -> Value {
    let identity = TrustDomain::default().identity("anybody", "shop").expect("valid");
    let addr = "10.96.0.2:8080".parse().expect("an address");
    let told = ProxySpec::new(identity, addr, addr, "PEM".to_owned());
    let env: Vec<Value> =
        told.to_env().into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    let mut pod = unmeshed(name, ip);
    pod["spec"]["initContainers"] = json!([{ "name": "hauberk-proxy", "restartPolicy": "Always", "env": env }]);
    pod
}

/// An unmeshed pod of account `web` on node a.
fn unmeshed(name: &str, ip: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "shop", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "nodeName": "a", "serviceAccountName": "web", "containers": [{ "name": "app" }] },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] },
    })
}

/// An endpoint that is ready, on node a.
fn at(ip: &str) -> Value {
    json!({ "addresses": [ip], "nodeName": "a", "conditions": { "ready": true, "serving": true } })
}

fn http(number: u16) -> Value {
    json!([{ "name": "http", "port": number, "protocol": "TCP" }])
}

/// A Service with one port, http: 80.
fn cluster_ip(ip: &str) -> Value {
    json!({ "clusterIP": ip, "clusterIPs": [ip], "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }] })
}

/// `json` with `field` (a pointer) set to `value`.
fn with(mut json: Value, field: &str, value: Value) -> Value {
    let (parent, key) = field.rsplit_once('/').expect("a pointer");
    let parent = json.pointer_mut(parent).expect("it is there");
    parent[key] = value;
    json
}
