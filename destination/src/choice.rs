//! Which of a port's endpoints a caller gets: what kube-proxy on the caller's node would choose from. Pure.

use std::net::IpAddr;

use crate::subject::{Backend, Backends, Front, Hints, Place, Subject, Way};

/// Who asks, as far as answers may depend on it.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// The address that it calls from.
    pub ip: Option<IpAddr>,
    /// Where the pod at that address runs, if the caller proved to be that pod.
    pub place: Option<std::sync::Arc<Place>>,
}

/// What of a caller an answer does depend on: callers with the same view share an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct View {
    node: Option<String>,
    zone: Option<String>,
    barred: bool,
}

impl View {
    /// How `caller` sees `subject`.
    pub(crate) fn of(subject: Option<&Subject>, caller: &Caller) -> Self {
        let Some(Subject::Service(front)) = subject else { return Self::default() };
        let Some(port) = front.service.ports.get(&front.port) else { return Self::default() };
        let backends = port.backends(front.ipv6);
        let local = is_local(front);
        let place = caller.place.as_deref();
        let sources = &front.service.balancer_sources;
        Self {
            node: place.filter(|_| local || backends.nodes_hinted()).map(|place| place.node.clone()),
            zone: place.filter(|_| !local && backends.zones_hinted()).and_then(|place| place.zone.clone()),
            barred: front.way == Way::Balancer
                && !sources.is_empty()
                && !caller.ip.is_some_and(|ip| sources.contains(ip)),
        }
    }
}

/// Who answers at `front` for callers with this view.
pub(crate) fn chosen<'a>(front: &'a Front, view: &View) -> Vec<&'a Backend> {
    let Some(port) = front.service.ports.get(&front.port) else { return Vec::new() };
    if view.barred {
        return Vec::new();
    }
    let backends = port.backends(front.ipv6);
    let of_instance = |backend: &&Backend| front.instance.is_none() || backend.hostname.as_deref() == front.instance();
    if is_local(front) {
        let node = view.node.as_deref();
        let here = |backend: &&Backend| node.is_some() && backend.node.as_deref() == node;
        return ready_or_leaving(backends.iter().filter(of_instance).filter(here));
    }
    match hinted(backends, view) {
        Some(meant) if front.instance.is_none() => meant,
        _ => ready_or_leaving(backends.iter().filter(of_instance)),
    }
}

impl Front {
    fn instance(&self) -> Option<&str> {
        self.instance.as_deref()
    }
}

/// `internalTrafficPolicy: Local` is about cluster addresses. By the others a pod is served as if it had gone up to the
/// load balancer and come back: from the whole cluster, also under `externalTrafficPolicy: Local`.
fn is_local(front: &Front) -> bool {
    front.way == Way::Internal && front.service.node_local
}

fn ready_or_leaving<'a>(backends: impl Iterator<Item = &'a Backend>) -> Vec<&'a Backend> {
    let mut all: Vec<_> = backends.collect();
    if all.iter().any(|backend| !backend.leaving) {
        all.retain(|backend| !backend.leaving);
    }
    all
}

/// Those that are meant for the caller, if hints count: all who are ready have them, and some name the caller's node,
/// or else zone.
fn hinted<'a>(backends: &'a Backends, view: &View) -> Option<Vec<&'a Backend>> {
    let meant = |named: &dyn Fn(&Hints) -> bool| -> Option<Vec<&'a Backend>> {
        let ready = backends.iter().filter(|backend| !backend.leaving);
        let meant: Vec<_> = ready.filter(|backend| backend.hints.as_deref().is_some_and(named)).collect();
        (!meant.is_empty()).then_some(meant)
    };
    let node = view.node.as_ref().filter(|_| backends.nodes_hinted());
    let zone = view.zone.as_ref().filter(|_| backends.zones_hinted());
    node.and_then(|node| meant(&|hints| hints.nodes.contains(node)))
        .or_else(|| zone.and_then(|zone| meant(&|hints| hints.zones.contains(zone))))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

    use super::*;
    use crate::subject::{Port, Service, ServiceName};

    /// `r` ready or `l` leaving, the node, then hints: `web@a z1 n:b`.
    fn backend(host: u8, text: &str) -> Backend {
        let mut words = text.split(' ');
        let (kind, node) = words.next().and_then(|word| word.split_once('@')).expect("kind@node");
        let mut hints = Hints::default();
        for word in words {
            match word.strip_prefix("n:") {
                Some(node) => hints.nodes.insert(node.to_owned()),
                None => hints.zones.insert(word.to_owned()),
            };
        }
        Backend {
            addr: SocketAddr::from(([10, 1, 0, host], 8080)),
            pod: None,
            leaving: kind == "l",
            node: (!node.is_empty()).then(|| node.into()),
            hostname: Some(format!("web-{host}").into()),
            hints: (hints != Hints::default()).then(|| Arc::new(hints)),
        }
    }

    fn front(backends: &[&str], way: Way, node_local: bool) -> Front {
        let v4 = backends.iter().enumerate().map(|(i, text)| backend(i as u8, text)).collect();
        let port = Port { v4, ..Port::default() };
        let service = Service {
            name: ServiceName { namespace: "shop".to_owned(), name: "web".to_owned() },
            ips: BTreeMap::new(),
            ipv6: false,
            ports: [(80, port)].into(),
            affinity_seconds: None,
            node_local,
            balancer_sources: "10.3.0.0/16".parse().expect("valid"),
        };
        Front { service: Arc::new(service), port: 80, way, ipv6: false, instance: None }
    }

    fn choose(front: &Front, place: Option<(&str, &str)>, ip: &str) -> Vec<u8> {
        let place = place.map(|(node, zone)| {
            let zone = (!zone.is_empty()).then(|| zone.to_owned());
            Arc::new(Place { node: node.to_owned(), zone })
        });
        let caller = Caller { ip: ip.parse().ok(), place };
        let view = View::of(Some(&Subject::Service(front.clone())), &caller);
        let last = |backend: &&Backend| match backend.addr.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => unreachable!("all are IPv4"),
        };
        chosen(front, &view).iter().map(last).collect()
    }

    #[test]
    fn leaving_endpoints_answer_only_where_nobody_is_ready() {
        for (backends, expected) in [(&["r@a", "l@a", "r@b"][..], &[0, 2][..]), (&["l@a", "l@b"], &[0, 1]), (&[], &[])]
        {
            assert_eq!(choose(&front(backends, Way::Internal, false), None, ""), expected, "{backends:?}");
        }
    }

    #[test]
    fn a_node_local_service_is_local_by_its_cluster_address_alone() {
        let backends = ["r@a", "l@a", "r@b", "l@c", "r@"];
        let internal = front(&backends, Way::Internal, true);
        for (node, expected) in [("a", &[0][..]), ("b", &[2]), ("c", &[3]), ("d", &[])] {
            assert_eq!(choose(&internal, Some((node, "")), ""), expected, "{node}");
        }
        assert_eq!(choose(&internal, None, ""), [0u8; 0], "a caller that is nowhere has nobody beside it");
        assert_eq!(choose(&front(&backends, Way::External, true), Some(("d", "")), ""), [0, 2, 4]);
    }

    #[test]
    fn hints_count_only_if_all_who_are_ready_have_them_and_the_caller_is_named() {
        for (backends, place, expected) in [
            (&["r@a z1", "r@b z2", "l@a"][..], Some(("a", "z1")), &[0][..]),
            (&["r@a z1", "r@b z2"], Some(("a", "z3")), &[0, 1]),
            (&["r@a z1", "r@b z2"], Some(("a", "")), &[0, 1]),
            (&["r@a z1", "r@b z2"], None, &[0, 1]),
            (&["r@a z1", "r@b"], Some(("a", "z1")), &[0, 1]),
            (&["r@a z1 z2", "r@b z2"], Some(("a", "z2")), &[0, 1]),
            (&["l@a z1", "l@b z2"], Some(("a", "z1")), &[0, 1]),
            (&["r@a z1 n:a", "r@b z1 n:b"], Some(("b", "z1")), &[1]),
            (&["r@a z1 n:a", "r@b z2 n:b"], Some(("c", "z1")), &[0]),
            (&["r@a z1 n:a", "r@b z1"], Some(("a", "z1")), &[0, 1]),
        ] {
            assert_eq!(choose(&front(backends, Way::Internal, false), place, ""), expected, "{backends:?} {place:?}");
        }
        let local = front(&["r@a z2", "r@b z1"], Way::Internal, true);
        assert_eq!(choose(&local, Some(("a", "z1")), ""), [0], "on the caller's node hints do not count");
    }

    #[test]
    fn whom_a_load_balancer_bars_gets_nobody_there() {
        for (way, ip, expected) in [
            (Way::Balancer, "10.3.0.1", &[0][..]),
            (Way::Balancer, "10.4.0.1", &[]),
            (Way::Balancer, "", &[]),
            (Way::External, "10.4.0.1", &[0]),
            (Way::Internal, "10.4.0.1", &[0]),
        ] {
            assert_eq!(choose(&front(&["r@a"], way, false), None, ip), expected, "{way:?} {ip}");
        }
    }

    #[test]
    fn an_instance_is_one_of_them() {
        let mut front = front(&["r@a", "r@b", "l@b"], Way::Internal, false);
        for (instance, expected) in [("web-1", &[1][..]), ("web-2", &[2]), ("web-9", &[])] {
            front.instance = Some(instance.to_owned());
            assert_eq!(choose(&front, None, ""), expected, "{instance}");
        }
    }

    #[test]
    fn callers_share_a_view_unless_where_they_are_matters() {
        let view = |backends: &[&str], node_local| {
            let subject = Subject::Service(front(backends, Way::Internal, node_local));
            let at = |node: &str| {
                let place = Some(Arc::new(Place { node: node.to_owned(), zone: Some("z1".to_owned()) }));
                View::of(Some(&subject), &Caller { ip: None, place })
            };
            at("a") == at("b")
        };
        assert!(view(&["r@a", "r@b z1 n:a"], false));
        assert!(view(&["r@a z1", "r@b z2"], false), "the same zone");
        assert!(!view(&["r@a n:a", "r@b n:b"], false));
        assert!(!view(&["r@a"], true));
    }
}
