//! `Index`: all that discovery knows at one moment, by address and by name. Immutable; a source (`mesh.yaml` here,
//! Kubernetes later) makes a new one for each state. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use hauberk_mesh::{IdentityName, InvalidIdentity, Networks, PortSet};

/// One state of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    networks: Networks,
    by_ip: BTreeMap<IpAddr, Subject>,
    by_name: BTreeMap<ServiceName, Arc<Service>>,
}

/// Who answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A pod, at its own address.
    Pod(Arc<Pod>),
    /// A service, at one of its addresses or by its name.
    Service(Arc<Service>),
}

/// What a stream asks about: two streams with the same topic are told of the same changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Whoever has this address.
    Ip(IpAddr),
    /// The service of this name.
    Name(ServiceName),
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

/// A service and who answers for it now: the choice by readiness has been made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// Every address that it answers on.
    pub ips: Vec<IpAddr>,
    /// By port of the service.
    pub ports: BTreeMap<u16, Vec<Backend>>,
    /// Seconds for which a client stays with one endpoint.
    pub affinity_seconds: Option<u32>,
}

/// One pod behind one port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The port on the pod.
    pub port: u16,
}

/// What lies inside the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterNetworks {
    /// Pod, Service and node networks.
    pub networks: Networks,
    /// Known addresses outside of them.
    pub outside: BTreeSet<IpAddr>,
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
            index.by_ip.extend(pod.ips.iter().map(|ip| (ip.to_canonical(), Subject::Pod(pod.clone()))));
        }
        for service in services {
            index.by_ip.extend(service.ips.iter().map(|ip| (ip.to_canonical(), Subject::Service(service.clone()))));
            index.by_name.insert(service.name.clone(), service);
        }
        index
    }

    /// Who it is, if anybody.
    pub fn subject(&self, topic: &Topic) -> Option<Subject> {
        match topic {
            Topic::Ip(ip) => self.by_ip.get(&ip.to_canonical()).cloned(),
            Topic::Name(name) => self.by_name.get(name).cloned().map(Subject::Service),
        }
    }

    /// The cluster's networks, and what is known outside of them: pods too, or a wrong list of networks would have
    /// meshed pods reached as if they were strangers.
    pub fn cluster_networks(&self) -> ClusterNetworks {
        let outside = self.by_ip.keys().copied().filter(|ip| !self.networks.contains(*ip)).collect();
        ClusterNetworks { networks: self.networks.clone(), outside }
    }

    /// Pods that have a proxy and can have no identity, and why: their meshed ports are in no answer.
    pub fn nameless(&self) -> Vec<(Arc<Pod>, InvalidIdentity)> {
        let pods = self.by_ip.iter().filter_map(|(ip, subject)| match subject {
            Subject::Pod(pod) if pod.ips.first().map(IpAddr::to_canonical) == Some(*ip) => Some(pod),
            _ => None,
        });
        pods.filter_map(|pod| match &pod.mesh {
            Mesh::Proxy { identity: Err(why), .. } => Some((pod.clone(), why.clone())),
            _ => None,
        })
        .collect()
    }
}
