//! `Index`: all that discovery knows at one moment, by address and by name. A source makes it, and changes it piece by
//! piece: each change says which topics it touches. Pure.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hauberk_mesh::{InvalidIdentity, Networks};

use crate::subject::{ClusterNetworks, Front, HostPort, Mesh, Pod, Service, ServiceName, Subject, Topic, Way};

/// The port of a service name that was asked for without one, where the service has several.
const DEFAULT_PORT: u16 = 80;

/// One state of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    networks: Networks,
    /// Known addresses that no network holds.
    outside: BTreeSet<IpAddr>,
    pods: HashMap<IpAddr, Arc<Pod>>,
    services: HashMap<ServiceName, Arc<Service>>,
    /// External addresses may be shared by services of different ports.
    fronts: HashMap<IpAddr, BTreeSet<(Way, ServiceName)>>,
    node_ports: HashMap<u16, BTreeSet<ServiceName>>,
    nodes: HashMap<IpAddr, Arc<str>>,
    addresses_of_nodes: HashMap<Arc<str>, BTreeSet<IpAddr>>,
    host_ports: HashMap<(Arc<str>, u16), Vec<HostPort>>,
}

/// One step from a state to the next.
#[derive(Debug, Clone)]
pub enum Change {
    /// Who has an address of pods.
    Pod(IpAddr, Option<Arc<Pod>>),
    /// What a service is.
    Service(ServiceName, Option<Arc<Service>>),
    /// The node that has an address.
    Node(IpAddr, Option<Arc<str>>),
    /// The pods behind a port of a node, the one that counts first.
    HostPort {
        /// The node.
        node: Arc<str>,
        /// Its port.
        port: u16,
        /// Several only where each has one of the node's addresses.
        pods: Vec<HostPort>,
    },
    /// Pod, Service and node networks.
    Networks(Networks),
}

/// What changes touched.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// All topics at these addresses.
    pub(crate) ips: BTreeSet<IpAddr>,
    /// The topics of these.
    pub(crate) addrs: BTreeSet<SocketAddr>,
    /// The topics of these ports, at any address.
    pub(crate) ports: BTreeSet<u16>,
    /// All topics of these names.
    pub(crate) names: BTreeSet<ServiceName>,
    /// What lies inside the cluster.
    pub(crate) networks: bool,
}

impl Index {
    /// An index of these. Where two claim an address the later one has it; sources refuse that before.
    pub fn new(
        networks: Networks,
        pods: impl IntoIterator<Item = Arc<Pod>>,
        services: impl IntoIterator<Item = Arc<Service>>,
    ) -> Self {
        let mut index = Self { networks, ..Self::default() };
        for pod in pods {
            for ip in &pod.ips {
                index.apply(Change::Pod(*ip, Some(pod.clone())), &mut Touched::default());
            }
        }
        for service in services {
            index.apply(Change::Service(service.name.clone(), Some(service)), &mut Touched::default());
        }
        index
    }

    /// An empty index after these changes.
    pub fn of(changes: impl IntoIterator<Item = Change>) -> Self {
        let mut index = Self::default();
        changes.into_iter().for_each(|change| index.apply(change, &mut Touched::default()));
        index
    }

    /// Takes one step, and notes in `touched` whom it may concern.
    pub(crate) fn apply(&mut self, change: Change, touched: &mut Touched) {
        match change {
            Change::Pod(ip, pod) => {
                let ip = ip.to_canonical();
                set(&mut self.pods, ip, pod);
                self.note(ip, touched);
            }
            Change::Service(name, service) => self.service(name, service, touched),
            Change::Node(ip, node) => {
                let ip = ip.to_canonical();
                if let Some(before) = self.nodes.get(&ip) {
                    take(&mut self.addresses_of_nodes, before, &ip);
                }
                if let Some(node) = &node {
                    self.addresses_of_nodes.entry(node.clone()).or_default().insert(ip);
                }
                set(&mut self.nodes, ip, node);
                self.note(ip, touched);
            }
            Change::HostPort { node, port, pods } => {
                let ips = self.addresses_of_nodes.get(&node).into_iter().flatten();
                touched.addrs.extend(ips.map(|ip| SocketAddr::new(*ip, port)));
                set(&mut self.host_ports, (node, port), Some(pods).filter(|pods| !pods.is_empty()));
            }
            Change::Networks(networks) => {
                self.networks = networks;
                let known = self.pods.keys().chain(self.fronts.keys()).chain(self.nodes.keys());
                self.outside = known.copied().filter(|ip| !self.networks.contains(*ip)).collect();
                touched.networks = true;
            }
        }
    }

    /// Who it is, if anybody.
    pub fn subject(&self, topic: &Topic) -> Option<Subject> {
        match topic {
            Topic::Addr(addr) => self.at(SocketAddr::new(addr.ip().to_canonical(), addr.port())),
            Topic::Caller(ip) => self.pods.get(&ip.to_canonical()).cloned().map(Subject::Caller),
            Topic::Name { service, instance, port } => {
                let service = self.services.get(service)?;
                let only = || service.ports.keys().next().copied().filter(|_| service.ports.len() == 1);
                let port = port.or_else(only).unwrap_or(DEFAULT_PORT);
                front(service, port, Way::Internal, service.ipv6, instance.clone())
            }
        }
    }

    /// The cluster's networks, and what is known outside of them: pods too, or a wrong list of networks would have
    /// meshed pods reached as if they were strangers.
    pub fn cluster_networks(&self) -> ClusterNetworks {
        ClusterNetworks { networks: self.networks.clone(), outside: self.outside.clone() }
    }

    /// Pods that have a proxy and can have no identity, and why: their meshed ports are in no answer.
    pub fn nameless(&self) -> Vec<(Arc<Pod>, InvalidIdentity)> {
        let pods = self.pods.iter().filter(|(ip, pod)| pod.ips.first().map(IpAddr::to_canonical) == Some(**ip));
        let mut nameless: Vec<_> = pods
            .filter_map(|(_, pod)| match &pod.mesh {
                Mesh::Proxy { identity: Err(why), .. } => Some((pod.clone(), why.clone())),
                _ => None,
            })
            .collect();
        nameless.sort_by(|(a, _), (b, _)| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        nameless
    }

    /// In this order: nobody can take a pod's own address from it by writing a Service, and what kube-proxy translates
    /// comes before what the network plugin does.
    fn at(&self, addr: SocketAddr) -> Option<Subject> {
        let (ip, port) = (addr.ip(), addr.port());
        if let Some(pod) = self.pods.get(&ip) {
            return Some(Subject::Pod(pod.clone(), addr));
        }
        let claims = self.fronts.get(&ip).into_iter().flatten();
        let by_address = claims.filter_map(|(way, name)| Some((self.services.get(name)?, *way)));
        let mut found = by_address.filter_map(|(service, way)| front(service, port, way, ip.is_ipv6(), None));
        found.next().or_else(|| self.at_node(addr))
    }

    fn at_node(&self, addr: SocketAddr) -> Option<Subject> {
        let node = self.nodes.get(&addr.ip())?;
        let services = self.node_ports.get(&addr.port()).into_iter().flatten();
        let mut by_port = services.filter_map(|name| {
            let service = self.services.get(name)?;
            let (port, _) = service.ports.iter().find(|(_, port)| port.node_port == Some(addr.port()))?;
            front(service, *port, Way::External, addr.is_ipv6(), None)
        });
        by_port.next().or_else(|| {
            let pods = self.host_ports.get(&(node.clone(), addr.port()))?;
            let host = pods.iter().find(|host| host.ip.is_none_or(|ip| ip == addr.ip()))?;
            let ip = host.pod.ips.iter().find(|ip| ip.is_ipv6() == addr.is_ipv6())?;
            Some(Subject::Pod(host.pod.clone(), SocketAddr::new(*ip, host.port)))
        })
    }

    fn service(&mut self, name: ServiceName, service: Option<Arc<Service>>, touched: &mut Touched) {
        let before = self.services.get(&name).cloned();
        let addresses = |service: &Option<Arc<Service>>| -> BTreeSet<(Way, IpAddr)> {
            service.iter().flat_map(|service| service.addresses()).collect()
        };
        let ports = |service: &Option<Arc<Service>>| -> BTreeSet<u16> {
            service.iter().flat_map(|service| service.ports.values().filter_map(|port| port.node_port)).collect()
        };
        let (old, new) = (addresses(&before), addresses(&service));
        for (way, ip) in old.difference(&new) {
            take(&mut self.fronts, ip, &(*way, name.clone()));
        }
        for (way, ip) in new.difference(&old) {
            self.fronts.entry(*ip).or_default().insert((*way, name.clone()));
        }
        let (old_ports, new_ports) = (ports(&before), ports(&service));
        for port in old_ports.difference(&new_ports) {
            take(&mut self.node_ports, port, &name);
        }
        for port in new_ports.difference(&old_ports) {
            self.node_ports.entry(*port).or_default().insert(name.clone());
        }
        set(&mut self.services, name.clone(), service);
        old.union(&new).for_each(|(_, ip)| self.note(*ip, touched));
        touched.ports.extend(old_ports.union(&new_ports));
        touched.names.insert(name);
    }

    /// Notes that `ip` is touched, and whether it is known.
    fn note(&mut self, ip: IpAddr, touched: &mut Touched) {
        touched.ips.insert(ip);
        let known = self.pods.contains_key(&ip) || self.fronts.contains_key(&ip) || self.nodes.contains_key(&ip);
        touched.networks |= match known && !self.networks.contains(ip) {
            true => self.outside.insert(ip),
            false => self.outside.remove(&ip),
        };
    }
}

fn front(service: &Arc<Service>, port: u16, way: Way, ipv6: bool, instance: Option<String>) -> Option<Subject> {
    let front = || Front { service: service.clone(), port, way, ipv6, instance };
    service.ports.contains_key(&port).then(|| Subject::Service(front()))
}

fn set<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

/// Takes one value out of the set of `key`; empty sets are not kept.
fn take<K: std::hash::Hash + Eq, V: Ord>(map: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}
