//! A `mesh.yaml` as an [`Index`]: which pods stand behind which service now. Pure.

use std::{collections::BTreeMap, sync::Arc};

use hauberk_mesh::{MeshFile, PodProxy, TlsMode, TrustDomain};

use crate::index::{Backend, Index, Mesh, Pod, Service, ServiceName};

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
    }
}

fn service(service: &hauberk_mesh::Service, file: &MeshFile, pods: &BTreeMap<&str, Arc<Pod>>) -> Service {
    let chosen = chosen(service, file, pods);
    let ports = service.ports.iter().map(|port| {
        let target = port.target.unwrap_or(port.port);
        (port.port, chosen.iter().map(|pod| Backend { pod: pod.clone(), port: target }).collect())
    });
    Service {
        name: ServiceName { namespace: service.namespace.clone(), name: service.name.clone() },
        ips: service.ips.iter().map(|ip| ip.to_canonical()).collect(),
        ports: ports.collect(),
        affinity_seconds: service.affinity_seconds,
    }
}

/// The ready pods, each once; those being deleted only where there is no other.
fn chosen(service: &hauberk_mesh::Service, file: &MeshFile, pods: &BTreeMap<&str, Arc<Pod>>) -> Vec<Arc<Pod>> {
    let ready: BTreeMap<String, &Arc<Pod>> = service
        .pod_keys()
        .filter(|key| file.pods.get(key).is_some_and(|pod| pod.ready))
        .filter_map(|key| pods.get(key.as_str()).map(|pod| (key, pod)))
        .collect();
    let staying = ready.values().any(|pod| !pod.terminating);
    ready.into_values().filter(|pod| pod.terminating != staying).cloned().collect()
}
