//! A `mesh.yaml` as an [`Index`]: which pods may stand behind which service now. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hauberk_mesh::{MeshFile, Networks, PodProxy, TlsMode, TrustDomain};

use crate::{
    index::Index,
    subject::{Backend, Mesh, Pod, Port, Service, ServiceName, Way},
};

impl Index {
    /// What the file describes, in the mesh of `domain`. Pods that have ended are not in it.
    pub fn from_mesh(file: &MeshFile, domain: &TrustDomain) -> Self {
        let live = file.pods.iter().filter(|(_, pod)| !pod.ended);
        let pods: BTreeMap<&str, Arc<Pod>> = live.map(|(key, it)| (key.as_str(), Arc::new(pod(it, domain)))).collect();
        let services = file.services.values().map(|service| Arc::new(self::service(service, file, &pods)));
        Self::new(file.networks.clone(), pods.values().cloned(), services)
    }
}

fn pod(pod: &hauberk_mesh::Pod, domain: &TrustDomain) -> Pod {
    let mesh = match &pod.proxy {
        None => Mesh::Absent,
        Some(PodProxy { tls: TlsMode::Disabled, .. }) => Mesh::Disabled,
        Some(proxy) => Mesh::Proxy {
            identity: domain.identity(&pod.service_account, &pod.namespace),
            skip_inbound_ports: proxy.skip_inbound_ports.clone(),
        },
    };
    Pod {
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        service_account: pod.service_account.clone(),
        ips: pod.ips.iter().map(|ip| ip.to_canonical()).collect(),
        mesh,
        terminating: pod.terminating,
        weight: pod.weight,
        labels: pod.labels.clone(),
        place: None,
    }
}

fn service(service: &hauberk_mesh::Service, file: &MeshFile, pods: &BTreeMap<&str, Arc<Pod>>) -> Service {
    let ready = ready(service, file, pods);
    let ips: Vec<IpAddr> = service.ips.iter().map(|ip| ip.to_canonical()).collect();
    let ports = service.ports.iter().map(|port| {
        let target = port.target.unwrap_or(port.port);
        let backends = |ipv6| ready.values().filter_map(|pod| backend(pod, ipv6, target)).collect();
        (port.port, Port { node_port: None, v4: backends(false), v6: backends(true) })
    });
    Service {
        name: ServiceName { namespace: service.namespace.clone(), name: service.name.clone() },
        ports: ports.collect(),
        ipv6: ips.first().is_some_and(IpAddr::is_ipv6),
        ips: [(Way::Internal, ips)].into(),
        affinity_seconds: service.affinity_seconds,
        node_local: false,
        balancer_sources: Networks::default(),
    }
}

/// At the pod's address of the family that is asked for, or else at its preferred one.
fn backend(pod: &Arc<Pod>, ipv6: bool, port: u16) -> Option<Backend> {
    let ip = pod.ips.iter().find(|ip| ip.is_ipv6() == ipv6).or(pod.ips.first())?;
    let (addr, leaving) = (SocketAddr::new(*ip, port), pod.terminating);
    Some(Backend { addr, pod: Some(pod.clone()), leaving, node: None, hostname: None, hints: None })
}

/// The ready pods, each once.
fn ready<'a>(
    service: &hauberk_mesh::Service,
    file: &MeshFile,
    pods: &'a BTreeMap<&str, Arc<Pod>>,
) -> BTreeMap<String, &'a Arc<Pod>> {
    let ready = service.pod_keys().filter(|key| file.pods.get(key).is_some_and(|pod| pod.ready));
    ready.filter_map(|key| pods.get(key.as_str()).map(|pod| (key, pod))).collect()
}
