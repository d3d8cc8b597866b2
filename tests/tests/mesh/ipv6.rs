//! IPv6: the same redirection, mTLS and reporting as over IPv4. One scene, the same expectations, three kinds of pods.

use std::{collections::BTreeMap, net::IpAddr};

use hauberk_lab::{Captured, Lab, Pod, PodOptions, ServiceOptions};
use hauberk_mesh::{Connection, Connections};

use crate::{
    common::{Server, exchange, give_back, identity},
    evidence::{assert_mtls_both_ends, assert_only_tls13, assert_unseen},
    streams::metric,
};

const APP: u16 = 7000;
const OPTED_OUT: u16 = 9000;
/// What is said where mTLS must hide it, and where nothing does.
const HIDDEN: [&str; 2] = ["said-to-a-service-a7e1", "said-to-a-pod-c03b"];
const OPEN: [&str; 5] = [
    "said-to-an-unmeshed-pod-5d92",
    "said-by-an-unmeshed-pod-18f6",
    "said-to-an-opted-out-port-e4b0",
    "said-to-an-unlisted-pod-72ca",
    "said-outside-the-cluster-b659",
];

/// What the two proxies must report, whatever the family: who to whom, at which endpoint, and how protected.
const REPORTED: [&str; 8] = [
    "client: outbound client to outside:7000: cleartext outside-cluster, from nobody to nobody",
    "client: outbound client to plain:7000 at plain:7000: cleartext peer-not-meshed, from nobody to nobody",
    "client: outbound client to server:7000 at server:7000: mtls, from client to server",
    "client: outbound client to unlisted:7000: cleartext unknown-in-cluster, from nobody to nobody",
    "client: outbound client to web:80 at server:7000: mtls, from client to server",
    "server: inbound client to server:7000: mtls, from client to server",
    "server: inbound client to server:7000: mtls, from client to server",
    "server: inbound plain to server:7000: cleartext unmeshed-client, from nobody to nobody",
];

/// Which addresses pods have, and which of them they use.
struct Family {
    pods: fn(PodOptions) -> PodOptions,
    is: fn(&IpAddr) -> bool,
    service: &'static str,
    outside: &'static str,
}

#[test]
fn ipv4_is_redirected_protected_and_reported() {
    show(&Family { pods: |pod| pod, is: IpAddr::is_ipv4, service: "10.2.0.10", outside: "192.0.2.7" });
}

#[test]
fn ipv6_only_pods_are_redirected_protected_and_reported_as_over_ipv4() {
    show(&Family { pods: PodOptions::ipv6_only, is: IpAddr::is_ipv6, service: "fd00:2::10", outside: "2001:db8::7" });
}

#[test]
fn dual_stack_pods_are_redirected_protected_and_reported_over_ipv6_as_over_ipv4() {
    show(&Family { pods: PodOptions::dual_stack, is: IpAddr::is_ipv6, service: "fd00:2::10", outside: "2001:db8::7" });
}

fn show(family: &Family) {
    let scene = Scene::new(family);
    let captured = scene.talk();
    assert_eq!(scene.reported(), REPORTED);
    let server = scene.at("server", APP);
    let ends = assert_mtls_both_ends(&scene.pods["client"], &scene.pods["server"], server);
    assert_only_tls13(&captured, &scene.pods["client"], &scene.pods["server"], ends.bytes());
    assert_unseen(&captured, &HIDDEN);
    for said in OPEN {
        assert!(captured.contains(said.as_bytes()), "the capture has what is said in the clear: {said}");
    }
    let plain = scene.at("plain", APP).to_string();
    let unmeshed = [("reason", "peer-not-meshed"), ("endpoint", plain.as_str()), ("peer_identity", "")];
    assert_eq!(metric(&scene.pods["client"], "hauberk_connections_opened_total", &unmeshed), 1.0);
    let pods = captured.flows.iter().filter(|flow| scene.is_of_pods(flow.client.ip(), flow.server.ip()));
    assert!(pods.clone().count() > 5 && pods.clone().all(|flow| (family.is)(&flow.client.ip())), "only of this family");
}

struct Scene<'a> {
    family: &'a Family,
    lab: Lab,
    pods: BTreeMap<&'static str, Pod>,
    _servers: Vec<Server>,
}

impl<'a> Scene<'a> {
    fn new(family: &'a Family) -> Self {
        let lab = Lab::new().expect("root and iproute2");
        let options = |name: &str| (family.pods)(PodOptions::new(name).namespace("shop").account(name));
        let skipped = OPTED_OUT.to_string();
        let pods = [
            ("client", options("client").meshed()),
            ("server", options("server").meshed().skip_inbound(&skipped)),
            ("plain", options("plain").unmeshed()),
            ("unlisted", options("unlisted").unlisted()),
            ("outside", options("outside").also_at(family.outside)),
        ];
        let pods: BTreeMap<_, _> =
            pods.into_iter().map(|(name, options)| (name, lab.pod(options).expect("a pod"))).collect();
        let web = ServiceOptions::new("web").namespace("shop").ip(family.service).port(80, APP).endpoints(["server"]);
        lab.service(web).expect("a service");
        lab.start_control_plane().expect("the control plane starts");
        ["client", "server"].iter().for_each(|name| lab.start_proxy(&pods[name]).expect("the proxy starts"));
        let mut scene = Self { family, lab, pods, _servers: Vec::new() };
        let places = [("server", APP), ("server", OPTED_OUT), ("plain", APP), ("unlisted", APP), ("outside", APP)];
        scene._servers = places.map(|(name, port)| scene.echo(name, port)).into();
        scene
    }

    fn echo(&self, name: &str, port: u16) -> Server {
        Server::listen(&self.pods[name], self.at(name, port), give_back)
    }

    /// Where `name` is to be dialled: a pod, the service, or outside.
    fn at(&self, name: &str, port: u16) -> std::net::SocketAddr {
        let ip = match name {
            "web" => self.family.service.parse().expect("an address"),
            "outside" => self.family.outside.parse().expect("an address"),
            pod => *self.pods[pod].ips().iter().find(|ip| (self.family.is)(ip)).expect("one of the family"),
        };
        (ip, port).into()
    }

    /// Everybody talks; returns what was captured once both proxies have closed their books.
    fn talk(&self) -> Captured {
        let capture = self.lab.capture().expect("tcpdump starts");
        for (from, to, port, said) in [
            ("client", "web", 80, HIDDEN[0]),
            ("client", "server", APP, HIDDEN[1]),
            ("client", "plain", APP, OPEN[0]),
            ("plain", "server", APP, OPEN[1]),
            ("plain", "server", OPTED_OUT, OPEN[2]),
            ("client", "unlisted", APP, OPEN[3]),
            ("client", "outside", APP, OPEN[4]),
        ] {
            let answer = exchange(&self.pods[from], self.at(to, port), said.as_bytes());
            assert_eq!(String::from_utf8(answer.expect("an answer")).as_deref(), Ok(said), "{from} to {to}:{port}");
        }
        for (name, records) in [("client", 5), ("server", 3)] {
            let closed = |all: &Connections| (all.live.is_empty() && all.closed.len() >= records).then_some(());
            self.pods[name].wait_connections("all connections have ended", closed).expect("they end");
        }
        capture.stop().expect("tcpdump ends")
    }

    /// The records of both proxies, with names for addresses, in the order of the alphabet.
    fn reported(&self) -> Vec<String> {
        let of = |name: &'static str| {
            let all = self.pods[name].connections().expect("the admin port answers").closed;
            all.into_iter().map(move |record| format!("{name}: {}", self.line(&record)))
        };
        let mut all: Vec<_> = of("client").chain(of("server")).collect();
        all.sort();
        all
    }

    fn line(&self, record: &Connection) -> String {
        let place = |addr: std::net::SocketAddr| format!("{}:{}", self.name(addr.ip()), addr.port());
        let endpoint = record.endpoint.map(|addr| format!(" at {}", place(addr))).unwrap_or_default();
        let state = record.state.map_or("unsettled", |state| state.as_str());
        let reason = record.reason.map(|reason| format!(" {reason}")).unwrap_or_default();
        let [from, to] = [&record.client_identity, &record.server_identity].map(|id| self.who(id.as_deref()));
        let (direction, client, target) = (record.direction, self.name(record.client.ip()), place(record.target));
        format!("{direction} {client} to {target}{endpoint}: {state}{reason}, from {from} to {to}")
    }

    /// The name of an address, of this family only.
    fn name(&self, ip: IpAddr) -> String {
        let names = self.pods.keys().copied().chain(["web"]);
        let name = names.into_iter().find(|name| self.at(name, 0).ip() == ip);
        name.map_or_else(|| ip.to_string(), str::to_owned)
    }

    fn who(&self, known: Option<&str>) -> String {
        let name = known.map(|known| self.pods.keys().find(|name| identity(name) == known).map_or(known, |name| name));
        name.unwrap_or("nobody").to_owned()
    }

    /// Whether both are applications' pods, not the control plane or the node.
    fn is_of_pods(&self, from: IpAddr, to: IpAddr) -> bool {
        let known =
            |ip: IpAddr| self.pods.values().any(|pod| pod.ips().contains(&ip)) || self.name(ip) != ip.to_string();
        known(from) && known(to)
    }
}
