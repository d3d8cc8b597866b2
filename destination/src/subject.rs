//! What discovery knows of pods and services, and what a stream may ask about. Plain values; sources make them, the
//! index holds them. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hauberk_mesh::{IdentityName, InvalidIdentity, Networks, PortSet};

/// What a stream asks about: two streams with the same topic are told of the same changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Whoever answers at this address.
    Addr(SocketAddr),
    /// A service by its name.
    Name {
        /// Which one.
        service: ServiceName,
        /// One of its instances, such as `web-0`.
        instance: Option<String>,
        /// Without: its only one, or 80.
        port: Option<u16>,
    },
    /// The pod that has this address, as a caller: where it runs decides some answers.
    Caller(IpAddr),
}

/// Who a topic is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A pod, and where it is reached: at its own address, also if a port of its node was asked for.
    Pod(Arc<Pod>, SocketAddr),
    /// A port of a service.
    Service(Front),
    /// Who asks.
    Caller(Arc<Pod>),
}

/// A port of a service, and how it is come by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    /// The service.
    pub service: Arc<Service>,
    /// Its port; it has one of this number.
    pub port: u16,
    /// By which kind of address.
    pub way: Way,
    /// Whether it is IPv6.
    pub ipv6: bool,
    /// Only this instance.
    pub instance: Option<String>,
}

/// The kinds of a service's addresses. They differ in which policies apply. In order of precedence: cluster addresses
/// are given out by the cluster, the others can be claimed by whoever may write a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// By a cluster address, or by name.
    Internal,
    /// By the address of a load balancer.
    Balancer,
    /// By an external address, or by a port of a node.
    External,
}

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

/// A pod that has addresses: it has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The account that it runs as.
    pub service_account: String,
    /// Its addresses, the preferred one first.
    pub ips: Vec<IpAddr>,
    /// What its proxy is.
    pub mesh: Mesh,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Share of connections, at least 1.
    pub weight: u32,
    /// Labels for metrics.
    pub labels: BTreeMap<String, String>,
    /// Where it runs, where that is known.
    pub place: Option<Arc<Place>>,
}

/// Where a pod runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: String,
    /// The node's zone.
    pub zone: Option<String>,
}

/// What the proxy of a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mesh {
    /// The pod has none.
    Absent,
    /// It takes no mTLS.
    Disabled,
    /// It takes mTLS, but for the skipped ports.
    Proxy {
        /// The name in its certificate, or why its account can have none.
        identity: Result<IdentityName, InvalidIdentity>,
        /// Ports that its rules let pass.
        skip_inbound_ports: PortSet,
    },
}

/// A service and who may answer for it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// Every address that it answers on, by kind, the preferred family first.
    pub ips: BTreeMap<Way, Vec<IpAddr>>,
    /// Whether its name stands for IPv6 addresses.
    pub ipv6: bool,
    /// By port of the service.
    pub ports: BTreeMap<u16, Port>,
    /// Seconds for which a client stays with one endpoint.
    pub affinity_seconds: Option<u32>,
    /// Whether callers that come by a cluster address are served on their own node only.
    pub node_local: bool,
    /// Who may come by the address of a load balancer; none: everybody.
    pub balancer_sources: Networks,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Port {
    /// The port of every node that leads here.
    pub node_port: Option<u16>,
    /// Who answers who comes by IPv4.
    pub v4: Backends,
    /// Who answers who comes by IPv6.
    pub v6: Backends,
}

/// Who may answer at a port: ready, or being deleted and still serving. By address, each once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backends {
    all: Vec<Backend>,
    nodes_hinted: bool,
    zones_hinted: bool,
}

/// One address behind a port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Address and port.
    pub addr: SocketAddr,
    /// The pod that has the address; none where it is no pod's.
    pub pod: Option<Arc<Pod>>,
    /// Being deleted: answers only where nobody is ready.
    pub leaving: bool,
    /// Its node.
    pub node: Option<Arc<str>>,
    /// The name of the instance.
    pub hostname: Option<Arc<str>>,
    /// Which callers it is meant for; nearly always nobody in particular.
    pub hints: Option<Arc<Hints>>,
}

/// Which callers an endpoint is meant for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hints {
    /// Those of these nodes.
    pub nodes: BTreeSet<String>,
    /// Those of these zones.
    pub zones: BTreeSet<String>,
}

/// A pod behind a port of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The port on the pod.
    pub port: u16,
    /// The one address of the node that leads there; none: all.
    pub ip: Option<IpAddr>,
}

/// What lies inside the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterNetworks {
    /// Pod, Service and node networks.
    pub networks: Networks,
    /// Known addresses outside of them.
    pub outside: BTreeSet<IpAddr>,
}

impl Service {
    /// All addresses, with their kinds.
    pub fn addresses(&self) -> impl Iterator<Item = (Way, IpAddr)> {
        self.ips.iter().flat_map(|(way, ips)| ips.iter().map(|ip| (*way, ip.to_canonical())))
    }
}

impl Port {
    /// Who answers who comes by this family.
    pub fn backends(&self, ipv6: bool) -> &Backends {
        if ipv6 { &self.v6 } else { &self.v4 }
    }
}

impl Backends {
    /// Whether hints by node count: every ready endpoint has some.
    pub(crate) fn nodes_hinted(&self) -> bool {
        self.nodes_hinted
    }

    /// Whether hints by zone count: every ready endpoint has some.
    pub(crate) fn zones_hinted(&self) -> bool {
        self.zones_hinted
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Backend> {
        self.all.iter()
    }
}

impl FromIterator<Backend> for Backends {
    /// Of two with one address the ready one counts.
    fn from_iter<I: IntoIterator<Item = Backend>>(backends: I) -> Self {
        let mut all: Vec<Backend> = backends.into_iter().collect();
        all.sort_by_key(|backend| (backend.addr, backend.leaving));
        all.dedup_by_key(|backend| backend.addr);
        let mut ready = all.iter().filter(|backend| !backend.leaving).peekable();
        let some = ready.peek().is_some();
        let hinted = |of: fn(&Hints) -> &BTreeSet<String>| {
            let has = |backend: &Backend| backend.hints.as_ref().is_some_and(|hints| !of(hints).is_empty());
            some && all.iter().filter(|backend| !backend.leaving).all(has)
        };
        let (nodes_hinted, zones_hinted) = (hinted(|hints| &hints.nodes), hinted(|hints| &hints.zones));
        Self { all, nodes_hinted, zones_hinted }
    }
}
