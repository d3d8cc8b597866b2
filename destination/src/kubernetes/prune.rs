//! Objects of the API as rows. What cannot be read in an object is left out, never guessed. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use hauberk_kubernetes::proxy_of;
use hauberk_mesh::{InvalidSpec, Networks, PortSet, TlsMode, TrustDomain};
use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, PodSpec, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{
    coverage,
    rows::{EndpointRow, HostPortRow, NamespaceRow, NodeRow, ObjectName, PodRow, PortRow, ServiceRow, SliceRow},
};
use crate::subject::{self, Hints, Mesh, Way};

/// The label that says which Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The API server's own default of `sessionAffinity: ClientIP`.
const AFFINITY_SECONDS: u32 = 10_800;
/// Kinds of owners that labels tell of: their names are labels' keys, so the list is closed.
const OWNERS: [(&str, &str); 5] = [
    ("DaemonSet", "daemonset"),
    ("Job", "job"),
    ("ReplicaSet", "replicaset"),
    ("ReplicationController", "replicationcontroller"),
    ("StatefulSet", "statefulset"),
];

/// Namespace and name; of a Node or Namespace only the name.
pub(super) fn name(meta: &ObjectMeta) -> ObjectName {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    ObjectName { namespace: text(&meta.namespace), name: text(&meta.name) }
}

/// A pod. What it is to the mesh is read from its spec and from nothing else.
pub(super) fn pod(pod: &Pod, domain: &TrustDomain) -> Option<PodRow> {
    let (spec, status, meta) = (pod.spec.as_ref()?, pod.status.as_ref(), &pod.metadata);
    let ObjectName { namespace, name } = self::name(meta);
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let (mesh, fault) = mesh(spec, account, &namespace, domain);
    let phase = status.and_then(|status| status.phase.as_deref());
    let row = PodRow {
        node: spec.node_name.as_deref().map(Arc::from),
        uid: meta.uid.clone().unwrap_or_default(),
        created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        ended: matches!(phase, Some("Succeeded" | "Failed")),
        host_network: spec.host_network == Some(true),
        host_ports: host_ports(spec),
        unmeshed: (mesh == Mesh::Absent).then(|| coverage::of_pod(pod)),
        injection: coverage::injection(meta),
        fault,
        pod: Arc::new(subject::Pod {
            labels: owner(meta),
            name,
            namespace,
            service_account: account.to_owned(),
            ips: pod_ips(pod),
            mesh,
            terminating: meta.deletion_timestamp.is_some(),
            weight: 1,
            place: None,
        }),
    };
    Some(row)
}

/// A Service, unless it is only another name for something outside.
pub(super) fn service(service: &Service) -> Option<ServiceRow> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let single = spec.cluster_ip.iter().filter(|_| spec.cluster_ips.is_none());
    let cluster: Vec<IpAddr> = addresses(spec.cluster_ips.iter().flatten().chain(single));
    // What is in front of no cluster address kube-proxy does not serve at its other addresses either.
    let headless = cluster.is_empty();
    let ingress = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
    let ingress = ingress.flat_map(|balancer| balancer.ingress.iter().flatten());
    // A balancer that proxies is not short-circuited: it may do more than balance.
    let short = ingress.filter(|it| it.ip_mode.as_deref() != Some("Proxy")).filter_map(|it| it.ip.as_ref());
    let others = [(Way::Balancer, addresses(short)), (Way::External, addresses(spec.external_ips.iter().flatten()))];
    let families = spec.ip_families.iter().flatten().next().is_some_and(|family| family == "IPv6");
    let ipv6 = cluster.first().map_or(families, IpAddr::is_ipv6);
    let others = others.into_iter().filter(|(_, ips)| !headless && !ips.is_empty());
    let ports = spec.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
    let client_ip = spec.session_affinity.as_deref() == Some("ClientIP");
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| u32::try_from(config.timeout_seconds?).ok()).unwrap_or(AFFINITY_SECONDS);
    Some(ServiceRow {
        ips: others.chain((!headless).then_some((Way::Internal, cluster))).collect(),
        ipv6,
        ports: ports.filter_map(|port| self::port(port, headless)).collect(),
        affinity_seconds: client_ip.then_some(seconds),
        node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        balancer_sources: sources(spec.load_balancer_source_ranges.iter().flatten()),
    })
}

/// A slice of IP addresses.
pub(super) fn slice(slice: &EndpointSlice) -> Option<SliceRow> {
    let ipv6 = match slice.address_type.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        _ => return None,
    };
    let namespace = slice.metadata.namespace.clone().unwrap_or_default();
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?.clone();
    let ports = slice.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
    let ports = ports.filter_map(|port| {
        let number = port.port.map(number).map_or(Some(None), |number| number.map(Some))?;
        Some((port.name.clone().unwrap_or_default(), number))
    });
    Some(SliceRow {
        service: ObjectName { namespace, name },
        ipv6,
        ports: ports.collect(),
        endpoints: slice.endpoints.iter().filter_map(|it| endpoint(it, ipv6)).collect(),
    })
}

/// A Node.
pub(super) fn node(node: &Node) -> NodeRow {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let ips = addresses.filter(|it| matches!(it.type_.as_str(), "InternalIP" | "ExternalIP")).map(|it| &it.address);
    let spec = node.spec.as_ref();
    let single = spec.and_then(|spec| spec.pod_cidr.as_ref().filter(|_| spec.pod_cidrs.is_none()));
    let networks = spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten()).chain(single);
    NodeRow {
        addresses: self::addresses(ips),
        zone: node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).cloned(),
        pod_networks: networks.filter_map(|text| text.parse::<IpNet>().ok()).map(|net| net.trunc()).collect(),
    }
}

/// A Namespace.
pub(super) fn namespace(namespace: &Namespace) -> NamespaceRow {
    let meta = &namespace.metadata;
    NamespaceRow { injection: coverage::injection(meta), labelled: coverage::labelled(meta) }
}

/// The proxy, by what it was told; the name by the account, as identity reads it off the token.
fn mesh(spec: &PodSpec, account: &str, namespace: &str, domain: &TrustDomain) -> (Mesh, Option<String>) {
    let identity = || domain.identity(account, namespace);
    let (skip_inbound_ports, fault) = match proxy_of(spec) {
        None => return (Mesh::Absent, None),
        Some(Ok(told)) if told.tls == TlsMode::Disabled => return (Mesh::Disabled, None),
        Some(Ok(told)) => (told.redirection.skip_inbound_ports, identity().err().map(|why| why.to_string())),
        // It has a proxy, newer than this process or broken: what it does not say is no reason for plaintext.
        Some(Err(why)) => (PortSet::default(), Some(InvalidSpec::to_string(&why))),
    };
    (Mesh::Proxy { identity: identity(), skip_inbound_ports }, fault)
}

fn pod_ips(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let single = status.pod_ip.iter().filter(|_| status.pod_ips.is_none());
    addresses(status.pod_ips.iter().flatten().map(|it| &it.ip).chain(single))
}

fn host_ports(spec: &PodSpec) -> Vec<HostPortRow> {
    if spec.host_network == Some(true) {
        return Vec::new();
    }
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = sidecars.chain(&spec.containers).flat_map(|container| container.ports.iter().flatten());
    let tcp = ports.filter(|port| is_tcp(port.protocol.as_deref()));
    tcp.filter_map(|it| {
        let (port, target) = (number(it.host_port?)?, number(it.container_port)?);
        let ip = it.host_ip.as_deref().filter(|ip| !ip.is_empty()).map(str::parse::<IpAddr>);
        match ip {
            None => Some(HostPortRow { port, target, ip: None }),
            Some(Ok(ip)) if ip.is_unspecified() => Some(HostPortRow { port, target, ip: None }),
            // The node's own loopback is no way in for pods.
            Some(Ok(ip)) if !ip.is_loopback() => Some(HostPortRow { port, target, ip: Some(ip.to_canonical()) }),
            Some(_) => None,
        }
    })
    .collect()
}

/// The workload, as a label. A ReplicaSet's Deployment is known by the hash that it put behind its own name.
fn owner(meta: &ObjectMeta) -> BTreeMap<String, String> {
    let owners = meta.owner_references.iter().flatten();
    let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) else { return BTreeMap::new() };
    let Some((_, kind)) = OWNERS.iter().find(|(kind, _)| *kind == owner.kind) else { return BTreeMap::new() };
    let hash = meta.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match deployment {
        Some(name) if *kind == "replicaset" => [("deployment".to_owned(), name.to_owned())].into(),
        _ => [((*kind).to_owned(), owner.name.clone())].into(),
    }
}

fn port(port: &ServicePort, headless: bool) -> Option<PortRow> {
    let own = number(port.port)?;
    let target = match &port.target_port {
        Some(IntOrString::Int(target)) => number(*target).unwrap_or(own),
        _ => own,
    };
    let node_port = port.node_port.and_then(number).filter(|_| !headless);
    Some(PortRow { name: port.name.clone().unwrap_or_default(), port: own, node_port, target })
}

fn endpoint(endpoint: &Endpoint, ipv6: bool) -> Option<EndpointRow> {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|it| it.ready).unwrap_or(true);
    let serving = conditions.and_then(|it| it.serving).unwrap_or(true);
    let terminating = conditions.and_then(|it| it.terminating).unwrap_or(false);
    let leaving = serving && terminating;
    if !ready && !leaving {
        return None;
    }
    // All addresses of an endpoint are one; whoever uses slices may use the first.
    let ip = endpoint.addresses.first()?.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv6() == ipv6)?;
    let hints = endpoint.hints.as_ref().map(|hints| Hints {
        nodes: hints.for_nodes.iter().flatten().map(|it| it.name.clone()).collect::<BTreeSet<_>>(),
        zones: hints.for_zones.iter().flatten().map(|it| it.name.clone()).collect(),
    });
    Some(EndpointRow {
        ip: ip.to_canonical(),
        leaving: !ready,
        node: endpoint.node_name.as_deref().map(Arc::from),
        hostname: endpoint.hostname.as_deref().map(Arc::from),
        hints: hints.filter(|hints| *hints != Hints::default()).map(Arc::new),
        says_pod: endpoint.target_ref.as_ref().and_then(|target| target.kind.as_deref()) == Some("Pod"),
    })
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    texts.filter_map(|text| text.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical()).collect()
}

/// A network of everything is as good as none.
fn sources<'a>(texts: impl Iterator<Item = &'a String>) -> Networks {
    let nets: Vec<IpNet> = texts.filter_map(|text| text.trim().parse::<IpNet>().ok()).map(|net| net.trunc()).collect();
    if nets.iter().any(|net| net.prefix_len() == 0) { Networks::default() } else { nets.into_iter().collect() }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

fn number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}
