//! Which networks are the cluster's, from what the cluster says of itself. Pure.
//!
//! No one place says it on every cluster, so all are asked and what they say is joined. What is found has to hold the
//! addresses of the pods that run: some networks do not give pods the addresses that their nodes were assigned.

use std::net::IpAddr;

use hauberk_mesh::Networks;
use ipnet::IpNet;

/// What the cluster says of itself; empty where it says nothing.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// `podCIDRs` of the Nodes.
    pub(crate) node_networks: Vec<String>,
    /// Internal addresses of the Nodes.
    pub(crate) node_addresses: Vec<String>,
    /// ServiceCIDR objects.
    pub(crate) service_networks: Vec<String>,
    /// `ClusterConfiguration` in ConfigMap `kubeadm-config`.
    pub(crate) kubeadm: Option<String>,
    /// Arguments of the API server's and controller manager's pods.
    pub(crate) arguments: Vec<String>,
    /// What the API server said to a Service with an address that no Service can have.
    pub(crate) refusal: Option<String>,
    /// Pods that run, by `namespace/name`, with their addresses: not those in the node's network.
    pub(crate) pods: Vec<(String, String)>,
}

/// What was found, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) networks: Networks,
    pub(crate) sources: Vec<&'static str>,
}

/// Why nothing was found that can be relied on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotFound {
    #[error(
        "cannot find the network of the cluster's {0}: give --networks, those of pods, Services and nodes, with commas between"
    )]
    Nowhere(&'static str),
    #[error(
        "pod {pod} has the address {ip}, which is in none of the networks that the cluster names ({networks}): give \
         --networks, those of pods, Services and nodes, with commas between"
    )]
    Pod { pod: String, ip: String, networks: String },
}

/// Nodes' addresses travel to every proxy: with more of them than this they are left to what discovery tells later.
const MOST_NODE_NETWORKS: usize = 64;

/// The networks of pods, Services and nodes.
pub(crate) fn networks(facts: &Facts) -> Result<Found, NotFound> {
    let arguments = |flag: &str| -> Vec<String> {
        let values = facts.arguments.iter().filter_map(|argument| argument.strip_prefix(flag)?.strip_prefix('='));
        values.map(str::to_owned).collect()
    };
    let kubeadm = |key: &str| -> Vec<String> {
        let lines = facts.kubeadm.iter().flat_map(|text| text.lines());
        let values = lines.filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':'));
        values.map(|value| value.trim().trim_matches(['"', '\'']).to_owned()).collect()
    };
    let mut found = Collected::default();
    found.add("kubeadm-config", &kubeadm("podSubnet"));
    found.add("the controller manager's arguments", &arguments("--cluster-cidr"));
    found.add("Nodes", &facts.node_networks);
    if found.networks.is_empty() {
        return Err(NotFound::Nowhere("pods"));
    }
    let pods = found.networks.len();
    found.add("ServiceCIDRs", &facts.service_networks);
    found.add("kubeadm-config", &kubeadm("serviceSubnet"));
    found.add("the API server's arguments", &arguments("--service-cluster-ip-range"));
    if found.networks.len() == pods {
        found.add("a refused Service", &facts.refusal.as_deref().map(valid_range).unwrap_or_default());
    }
    if found.networks.len() == pods {
        return Err(NotFound::Nowhere("Services"));
    }
    let nodes = IpNet::aggregate(&parse(&facts.node_addresses));
    if nodes.len() <= MOST_NODE_NETWORKS {
        found.networks.extend(nodes);
    }
    let networks: Networks = IpNet::aggregate(&found.networks).into_iter().collect();
    let stranger = facts.pods.iter().find(|(_, ip)| ip.parse::<IpAddr>().is_ok_and(|ip| !networks.contains(ip)));
    if let Some((pod, ip)) = stranger {
        return Err(NotFound::Pod { pod: pod.clone(), ip: ip.clone(), networks: networks.to_string() });
    }
    Ok(Found { networks, sources: found.sources })
}

#[derive(Default)]
struct Collected {
    networks: Vec<IpNet>,
    sources: Vec<&'static str>,
}

impl Collected {
    fn add(&mut self, source: &'static str, texts: &[String]) {
        let networks = parse(texts);
        if !networks.is_empty() && !self.sources.contains(&source) {
            self.sources.push(source);
        }
        self.networks.extend(networks);
    }
}

/// Each text holds networks or addresses with commas between; what is none is not ours to judge.
fn parse(texts: &[String]) -> Vec<IpNet> {
    let items = texts.iter().flat_map(|text| text.split(','));
    items
        .filter_map(|item| item.trim().parse::<Networks>().ok())
        .flat_map(|nets| nets.iter().copied().collect::<Vec<_>>())
        .collect()
}

/// "… The range of valid IPs is 10.96.0.0/12".
fn valid_range(message: &str) -> Vec<String> {
    const BEFORE: &str = "range of valid IPs is ";
    let rest = message.split_once(BEFORE).map(|(_, rest)| rest).unwrap_or_default();
    let range = rest.split(|c: char| !(c.is_ascii_hexdigit() || ".:/,".contains(c))).next().unwrap_or_default();
    vec![range.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn found(facts: &Facts) -> (String, String) {
        let found = networks(facts).expect("found");
        (found.networks.to_string(), found.sources.join(", "))
    }

    #[test]
    fn a_kubeadm_cluster_says_it_in_several_places() {
        let facts = Facts {
            node_networks: strings(&["10.244.0.0/24", "10.244.1.0/24"]),
            node_addresses: strings(&["172.18.0.2", "172.18.0.3"]),
            service_networks: strings(&["10.96.0.0/16"]),
            kubeadm: Some("kind: ClusterConfiguration\nnetworking:\n  podSubnet: 10.244.0.0/16\n  serviceSubnet: \"10.96.0.0/16\"\n".to_owned()),
            arguments: strings(&["kube-apiserver", "--service-cluster-ip-range=10.96.0.0/16", "--cluster-cidr=10.244.0.0/16"]),
            pods: vec![("shop/web".to_owned(), "10.244.1.7".to_owned())],
            ..Facts::default()
        };
        assert_eq!(
            found(&facts),
            (
                "10.96.0.0/16,10.244.0.0/16,172.18.0.2/31".to_owned(),
                "kubeadm-config, the controller manager's arguments, Nodes, ServiceCIDRs, the API server's arguments"
                    .to_owned()
            )
        );
    }

    #[test]
    fn a_hosted_cluster_says_it_by_nodes_and_by_a_refusal() {
        let message = "Service \"hauberk\" is invalid: spec.clusterIPs: Invalid value: [\"203.0.113.1\"]: failed to allocate IP \
                       203.0.113.1: the provided IP (203.0.113.1) is not in the valid range. The range of valid IPs is 10.100.0.0/16";
        let facts =
            Facts { node_networks: strings(&["10.1.0.0/24"]), refusal: Some(message.to_owned()), ..Facts::default() };
        assert_eq!(found(&facts), ("10.1.0.0/24,10.100.0.0/16".to_owned(), "Nodes, a refused Service".to_owned()));
    }

    #[test]
    fn both_families_are_found() {
        let facts = Facts {
            arguments: strings(&["--cluster-cidr=10.244.0.0/16,fd00:10:244::/56"]),
            service_networks: strings(&["10.96.0.0/16", "fd00:10:96::/112"]),
            ..Facts::default()
        };
        assert_eq!(found(&facts).0, "10.96.0.0/16,10.244.0.0/16,fd00:10:96::/112,fd00:10:244::/56");
    }

    #[test]
    fn thousands_of_nodes_are_not_listed_one_by_one() {
        let facts = Facts {
            node_networks: strings(&["10.244.0.0/24", "10.244.1.0/24"]),
            service_networks: strings(&["10.96.0.0/16"]),
            node_addresses: (0..1000).map(|i| format!("172.{}.{}.1", i / 256, i % 256)).collect(),
            ..Facts::default()
        };
        assert_eq!(found(&facts).0, "10.96.0.0/16,10.244.0.0/23");
    }

    #[test]
    fn what_is_not_found_or_not_true_is_refused_with_the_flag_to_give() {
        let nothing = networks(&Facts::default()).expect_err("nothing");
        let nodes = Facts { node_networks: strings(&["10.244.0.0/24"]), ..Facts::default() };
        let no_services = networks(&nodes).expect_err("no Services");
        let elsewhere = Facts {
            service_networks: strings(&["10.96.0.0/16"]),
            pods: vec![("shop/web".to_owned(), "192.168.7.7".to_owned())],
            ..nodes
        };
        let stranger = networks(&elsewhere).expect_err("a pod elsewhere");
        for (error, what) in
            [(nothing, "pods"), (no_services, "Services"), (stranger, "pod shop/web has the address 192.168.7.7")]
        {
            let text = error.to_string();
            assert!(text.contains(what) && text.contains("--networks"), "{text}");
        }
    }
}
