//! What is kept of the cluster's objects: the fields that answers are made of, and no others.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use hauberk_mesh::Networks;
use ipnet::IpNet;

use super::coverage::{Injection, Unmeshed};
use crate::subject::{Hints, Pod, ServiceName, Way};

/// Namespace and name of an object of any kind.
pub(super) type ObjectName = ServiceName;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodRow {
    pub(super) pod: Arc<Pod>,
    /// Where it runs; its place is known once the node is.
    pub(super) node: Option<Arc<str>>,
    pub(super) uid: String,
    /// Seconds since 1970.
    pub(super) created: i64,
    /// Whether all its containers have ended, for good: its address may be another's.
    pub(super) ended: bool,
    /// Whether its address is its node's.
    pub(super) host_network: bool,
    pub(super) host_ports: Vec<HostPortRow>,
    /// Why it is not meshed; none where it is.
    pub(super) unmeshed: Option<Unmeshed>,
    /// What its own label says.
    pub(super) injection: Option<Injection>,
    /// What of its proxy cannot be read, or why it can have no identity.
    pub(super) fault: Option<String>,
}

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostPortRow {
    pub(super) port: u16,
    pub(super) target: u16,
    /// The one address of the node; none: all.
    pub(super) ip: Option<IpAddr>,
}

/// A Service; one of type ExternalName is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceRow {
    pub(super) ips: BTreeMap<Way, Vec<IpAddr>>,
    pub(super) ipv6: bool,
    /// Those of TCP.
    pub(super) ports: Vec<PortRow>,
    pub(super) affinity_seconds: Option<u32>,
    pub(super) node_local: bool,
    pub(super) balancer_sources: Networks,
}

/// A TCP port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortRow {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) node_port: Option<u16>,
    /// The number on the endpoints where the slice says "all ports".
    pub(super) target: u16,
}

/// An EndpointSlice of IP addresses that belongs to a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SliceRow {
    pub(super) service: ServiceName,
    pub(super) ipv6: bool,
    /// Those of TCP, by name; without a number: all.
    pub(super) ports: Vec<(String, Option<u16>)>,
    /// Those that are ready, or being deleted and serving.
    pub(super) endpoints: Vec<EndpointRow>,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndpointRow {
    pub(super) ip: IpAddr,
    pub(super) leaving: bool,
    pub(super) node: Option<Arc<str>>,
    pub(super) hostname: Option<Arc<str>>,
    pub(super) hints: Option<Arc<Hints>>,
    /// Whether the slice says that it is a pod. Not believed, but for what it takes away (`World::who`).
    pub(super) says_pod: bool,
}

/// A Node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct NodeRow {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) zone: Option<String>,
    pub(super) pod_networks: Vec<IpNet>,
}

/// A Namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct NamespaceRow {
    /// What its label says.
    pub(super) injection: Option<Injection>,
    /// When that label was set, as far as can be told. Seconds since 1970.
    pub(super) labelled: Option<i64>,
}
