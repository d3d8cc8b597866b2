//! The real kube-proxy, in a network namespace of its own, and what its rules do with a connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use hauberk_e2e::{ControlPlane, find_binary};
use hauberk_lab::{Lab, Process};
use ipnet::IpNet;
use serde_json::Value;

use super::relay::Relay;

/// A running kube-proxy of node `a`.
pub(super) struct KubeProxy {
    lab: Lab,
    _relay: Relay,
    process: Process,
}

/// Its rules for one family.
pub(super) struct Rules {
    chains: BTreeMap<String, Vec<Vec<Value>>>,
    maps: BTreeMap<String, BTreeMap<String, String>>,
}

impl KubeProxy {
    pub(super) fn start(plane: &ControlPlane, pod_networks: &str) -> Self {
        let lab = Lab::new().expect("a namespace");
        let server: SocketAddr = plane.url().trim_start_matches("https://").parse().expect("an address");
        // At the same address as outside, so that kubeconfig and certificate fit.
        let listener = lab.enter(|| std::net::TcpListener::bind(server)).expect("nobody has it in here");
        let relay = Relay::start(listener, server).expect("a relay");
        let mut command = lab.command(find_binary("kube-proxy").expect("it is built").to_str().expect("a path"));
        command.arg(format!("--kubeconfig={}", plane.kubeconfig().display()));
        command.arg(format!("--cluster-cidr={pod_networks}"));
        command.args(["--hostname-override=a", "--proxy-mode=nftables", "--oom-score-adj=0"]);
        command.args(["--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249"]);
        // The machine's table of connections is not the namespace's to size.
        command.args(["--conntrack-max-per-core=0", "--conntrack-min=0"]);
        command.args(["--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"]);
        let process = lab.spawn("kube-proxy", &mut command).expect("it starts");
        Self { lab, _relay: relay, process }
    }

    /// The rules now.
    pub(super) fn rules(&self, ipv6: bool) -> Rules {
        self.process.check_running().expect("kube-proxy runs");
        let mut nft = self.lab.command("nft");
        let output = nft.args(["-j", "list", "table", if ipv6 { "ip6" } else { "ip" }, "kube-proxy"]).output();
        let output = output.expect("nft runs");
        let empty = Value::Null;
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let mut rules = Rules { chains: BTreeMap::new(), maps: BTreeMap::new() };
        for object in listed["nftables"].as_array().into_iter().flatten() {
            if let Some(rule) = object.get("rule") {
                let chain = rules.chains.entry(text(&rule["chain"])).or_default();
                chain.push(rule["expr"].as_array().cloned().unwrap_or_default());
            } else if let Some(map) = object.get("map") {
                let elements = map.get("elem").unwrap_or(&empty).as_array().into_iter().flatten();
                let verdict = |it: &Value| Some((key(&it[0]), text(&it[1]["goto"]["target"])));
                rules.maps.insert(text(&map["name"]), elements.filter_map(verdict).collect());
            }
        }
        rules
    }
}

impl Rules {
    /// Where a connection from a pod at `source` to this address goes.
    pub(super) fn endpoints(&self, source: IpAddr, to: SocketAddr) -> BTreeSet<SocketAddr> {
        let port = to.port().to_string();
        let barred = self.verdict("firewall-ips", &format!("{} tcp {port}", to.ip()));
        if barred.is_some_and(|chain| self.walk(&chain, source, to).is_none()) {
            return BTreeSet::new();
        }
        self.lead("service-ips", &format!("{} tcp {port}", to.ip()), source, to)
    }

    /// Where a connection from a pod at `source` to this port of a node goes.
    pub(super) fn node_port(&self, source: IpAddr, to: SocketAddr) -> BTreeSet<SocketAddr> {
        self.lead("service-nodeports", &format!("tcp {}", to.port()), source, to)
    }

    fn lead(&self, map: &str, key: &str, source: IpAddr, to: SocketAddr) -> BTreeSet<SocketAddr> {
        let chain = self.verdict(map, key);
        chain.and_then(|chain| self.walk(&chain, source, to)).unwrap_or_default()
    }

    fn verdict(&self, map: &str, key: &str) -> Option<String> {
        self.maps.get(map)?.get(key).cloned()
    }

    /// What a chain translates to; none if it drops. An empty set: it does neither.
    fn walk(&self, chain: &str, source: IpAddr, to: SocketAddr) -> Option<BTreeSet<SocketAddr>> {
        'rules: for rule in self.chains.get(chain).into_iter().flatten() {
            for expression in rule {
                let target = |verdict: &str| expression[verdict]["target"].as_str();
                if let Some(condition) = expression.get("match") {
                    if !fits(condition, source, to) {
                        continue 'rules;
                    }
                } else if let Some(next) = target("goto") {
                    return self.walk(next, source, to);
                } else if let Some(choice) = expression.get("vmap") {
                    let pairs = choice["data"]["set"].as_array().into_iter().flatten();
                    let chains = pairs.filter_map(|pair| pair[1]["goto"]["target"].as_str());
                    return Some(chains.flat_map(|next| self.walk(next, source, to).unwrap_or_default()).collect());
                } else if let Some(to) = expression.get("dnat") {
                    let ip = to["addr"].as_str().and_then(|ip| ip.parse().ok()).expect("an address");
                    let port = to["port"].as_u64().and_then(|port| port.try_into().ok()).expect("a port");
                    return Some([SocketAddr::new(ip, port)].into());
                } else if expression.get("drop").is_some() {
                    return None;
                }
            }
        }
        Some(BTreeSet::new())
    }
}

/// Whether a packet from `source` to `to` fits. What it is not about (marks, affinity of earlier connections) does not.
fn fits(condition: &Value, source: IpAddr, to: SocketAddr) -> bool {
    let left = &condition["left"];
    let held = match left["payload"]["field"].as_str() {
        Some("saddr") => is_in(&condition["right"], source),
        Some("daddr") => is_in(&condition["right"], to.ip()),
        _ if left.get("meta").is_some() => return true,
        // A pod's address is not one of the node's.
        _ => false,
    };
    let negated = condition["op"].as_str() == Some("!=");
    held != negated
}

fn is_in(right: &Value, ip: IpAddr) -> bool {
    if let Some(all) = right["set"].as_array() {
        return all.iter().any(|one| is_in(one, ip));
    }
    let prefix = &right["prefix"];
    let written = match prefix["addr"].as_str() {
        Some(addr) => format!("{addr}/{}", prefix["len"]),
        None => text(right),
    };
    written.parse::<IpNet>().is_ok_and(|net| net.contains(&ip)) || written.parse::<IpAddr>().is_ok_and(|it| it == ip)
}

/// The key of a map's element, with or without a comment: words with spaces between.
fn key(element: &Value) -> String {
    let value = element["elem"].get("val").unwrap_or(element);
    value["concat"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(" ")
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
