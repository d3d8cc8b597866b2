//! A Service and its slices, joined by the names of their ports. Pure.

use std::{net::SocketAddr, sync::Arc};

use super::rows::{EndpointRow, ServiceRow, SliceRow};
use crate::subject::{Backend, Backends, Pod, Port, Service, ServiceName};

/// Whose an endpoint's address is.
#[derive(Debug, Clone)]
pub(super) enum Who {
    /// This pod's.
    Pod(Arc<Pod>),
    /// No pod's: a node's, or outside the cluster.
    Stranger,
    /// A pod's that has not been seen yet. To call it unmeshed could be wrong.
    Unseen,
}

/// The service of `name`, answered for by those of `slices` that are known.
pub(super) fn join(
    name: &ServiceName,
    row: &ServiceRow,
    slices: &[&SliceRow],
    who: impl Fn(&EndpointRow) -> Who,
) -> Service {
    let ports = row.ports.iter().map(|port| {
        let backends = |ipv6| -> Backends {
            let of_family = slices.iter().filter(|slice| slice.ipv6 == ipv6);
            let joined = of_family.flat_map(|slice| {
                let numbers = slice.ports.iter().filter(|(name, _)| *name == port.name);
                numbers.map(move |(_, number)| (slice, number.unwrap_or(port.target)))
            });
            let all = joined.flat_map(|(slice, number)| slice.endpoints.iter().map(move |it| (it, number)));
            all.filter_map(|(endpoint, number)| backend(endpoint, number, who(endpoint))).collect()
        };
        (port.port, Port { node_port: port.node_port, v4: backends(false), v6: backends(true) })
    });
    Service {
        name: name.clone(),
        ips: row.ips.clone(),
        ipv6: row.ipv6,
        ports: ports.collect(),
        affinity_seconds: row.affinity_seconds,
        node_local: row.node_local,
        balancer_sources: row.balancer_sources.clone(),
    }
}

fn backend(endpoint: &EndpointRow, port: u16, who: Who) -> Option<Backend> {
    let pod = match who {
        Who::Pod(pod) => Some(pod),
        Who::Stranger => None,
        Who::Unseen => return None,
    };
    Some(Backend {
        addr: SocketAddr::new(endpoint.ip, port),
        pod,
        leaving: endpoint.leaving,
        node: endpoint.node.clone(),
        hostname: endpoint.hostname.clone(),
        hints: endpoint.hints.clone(),
    })
}
