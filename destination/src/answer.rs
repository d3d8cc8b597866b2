//! `Answer`: what is said of a subject to those who see it alike: who answers, how it is reached, and why not by mTLS.
//! Pure.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use hauberk_mesh::{IdentityName, PROXY_PORTS, Reason, TrustDomain};

use crate::{
    choice::{View, chosen},
    subject::{Backend, Front, Mesh, Pod, Subject},
};

/// What is known of what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nobody is known there.
    Unknown,
    /// A service. It may have no endpoint.
    Service {
        /// `name.namespace.svc.<domain>`.
        fqdn: String,
        /// Seconds for which a client stays with one endpoint.
        affinity_seconds: Option<u32>,
        /// By address.
        endpoints: BTreeMap<SocketAddr, Endpoint>,
    },
    /// A pod's own address; no endpoint where the pod is meshed and can have no identity.
    Pod(Option<Endpoint>),
}

/// One address that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Address and port.
    pub addr: SocketAddr,
    /// The pod; none where the address is no pod's.
    pub pod: Option<Arc<Pod>>,
    /// Who answers, by mTLS, or why there is none.
    pub identity: Result<IdentityName, Reason>,
}

impl Answer {
    /// What is said of `subject` to those with this view.
    pub(crate) fn of(subject: Option<&Subject>, view: &View, domain: &TrustDomain) -> Self {
        match subject {
            // A caller is asked about by nobody but ourselves.
            None | Some(Subject::Caller(_)) => Self::Unknown,
            Some(Subject::Pod(pod, addr)) => Self::Pod(of_pod(pod, *addr)),
            Some(Subject::Service(front)) => Self::Service {
                fqdn: fqdn(front, domain),
                affinity_seconds: front.service.affinity_seconds,
                endpoints: chosen(front, view).into_iter().filter_map(endpoint).map(|it| (it.addr, it)).collect(),
            },
        }
    }

    /// The endpoints, none or more.
    pub fn endpoints(&self) -> BTreeMap<SocketAddr, &Endpoint> {
        match self {
            Self::Unknown => BTreeMap::new(),
            Self::Service { endpoints, .. } => endpoints.iter().map(|(addr, endpoint)| (*addr, endpoint)).collect(),
            Self::Pod(endpoint) => endpoint.iter().map(|endpoint| (endpoint.addr, endpoint)).collect(),
        }
    }
}

fn fqdn(front: &Front, domain: &TrustDomain) -> String {
    let name = &front.service.name;
    let instance = front.instance.as_ref().map(|instance| format!("{instance}.")).unwrap_or_default();
    format!("{instance}{}.{}.svc.{}", name.name, name.namespace, domain.domain())
}

fn endpoint(backend: &Backend) -> Option<Endpoint> {
    match &backend.pod {
        Some(pod) => of_pod(pod, backend.addr),
        None => Some(Endpoint { addr: backend.addr, pod: None, identity: Err(Reason::PeerNotMeshed) }),
    }
}

/// None where the port is meshed and the pod can have no identity: without an endpoint nobody goes there in plaintext.
fn of_pod(pod: &Arc<Pod>, addr: SocketAddr) -> Option<Endpoint> {
    let port = addr.port();
    let identity = match &pod.mesh {
        Mesh::Absent => Err(Reason::PeerNotMeshed),
        Mesh::Disabled => Err(Reason::TlsDisabled),
        Mesh::Proxy { skip_inbound_ports, .. } if skip_inbound_ports.contains(port) || PROXY_PORTS.contains(&port) => {
            Err(Reason::PeerNotMeshed)
        }
        Mesh::Proxy { identity, .. } => Ok(identity.clone().ok()?),
    };
    Some(Endpoint { addr, pod: Some(pod.clone()), identity })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Index, Query, testing::MESH};
    use hauberk_mesh::MeshFile;

    fn ask(yaml: &str, text: &str) -> Answer {
        let domain = TrustDomain::default();
        let index = Index::from_mesh(&MeshFile::parse(yaml).expect("a valid mesh"), &domain);
        let query = Query::parse(text, &domain).expect("a valid query");
        Answer::of(index.subject(&query.topic()).as_ref(), &View::default(), &domain)
    }

    fn addrs(answer: &Answer) -> Vec<String> {
        answer.endpoints().keys().map(ToString::to_string).collect()
    }

    fn identity(answer: &Answer) -> Result<String, Reason> {
        let endpoint = *answer.endpoints().values().next().expect("an endpoint");
        endpoint.identity.as_ref().map(|name| name.service_account().to_owned()).map_err(|reason| *reason)
    }

    #[test]
    fn a_service_is_found_by_address_and_by_name() {
        for text in ["10.2.0.10:80", "web.shop:80", "web.shop", "web.shop.svc.cluster.local", "[fd02::10]:80"] {
            let answer = ask(MESH, text);
            assert_eq!(answer.endpoints().len(), 2, "{text}");
            let Answer::Service { fqdn, affinity_seconds, .. } = answer else { panic!("{text}: {answer:?}") };
            assert_eq!((fqdn.as_str(), affinity_seconds), ("web.shop.svc.cluster.local", Some(60)), "{text}");
        }
    }

    #[test]
    fn endpoints_have_the_family_that_was_asked_for_where_they_have_it() {
        assert_eq!(addrs(&ask(MESH, "10.2.0.10:80")), ["10.1.0.2:8080", "10.1.0.3:8080"]);
        assert_eq!(addrs(&ask(MESH, "[fd02::10]:80")), ["10.1.0.3:8080", "[fd01::2]:8080"]);
        assert_eq!(addrs(&ask(MESH, "web.shop:80")), ["10.1.0.2:8080", "10.1.0.3:8080"]);
    }

    #[test]
    fn unknown_and_empty_are_told_apart() {
        for text in ["10.2.0.99:80", "10.2.0.10:81", "no.shop", "web.shop:81", "10.1.0.99:80"] {
            assert_eq!(ask(MESH, text), Answer::Unknown, "{text}");
        }
        for text in ["10.2.0.11:80", "empty.shop"] {
            let answer = ask(MESH, text);
            assert!(matches!(answer, Answer::Service { .. }) && answer.endpoints().is_empty(), "{text}: {answer:?}");
        }
    }

    #[test]
    fn a_pod_is_meshed_by_its_proxy_and_port() {
        for (text, expected) in [
            ("10.1.0.2:8080", Ok("web")),
            ("[fd01::2]:1", Ok("web")),
            ("10.1.0.2:9000", Err(Reason::PeerNotMeshed)),
            ("10.1.0.2:4143", Err(Reason::PeerNotMeshed)),
            ("10.1.0.2:4191", Err(Reason::PeerNotMeshed)),
            ("10.1.0.3:8080", Err(Reason::PeerNotMeshed)),
            ("10.1.0.4:8080", Err(Reason::TlsDisabled)),
        ] {
            let answer = ask(MESH, text);
            assert_eq!(identity(&answer), expected.map(str::to_owned), "{text}");
            assert_eq!(addrs(&answer), [text]);
        }
    }

    #[test]
    fn a_meshed_pod_without_a_valid_identity_is_left_out_and_never_called_unmeshed() {
        let account = format!("serviceAccount: {}", "a".repeat(64));
        let yaml = MESH.replace("serviceAccount: web", &account);
        assert_eq!(ask(&yaml, "10.1.0.2:8080"), Answer::Pod(None));
        assert_eq!(addrs(&ask(&yaml, "10.2.0.10:80")), ["10.1.0.3:8080"]);
        assert_eq!(identity(&ask(&yaml, "10.1.0.2:9000")), Err(Reason::PeerNotMeshed), "a skipped port needs no name");
        let index = Index::from_mesh(&MeshFile::parse(&yaml).expect("valid"), &TrustDomain::default());
        let nameless = index.nameless();
        assert_eq!(nameless.iter().map(|(pod, _)| pod.name.as_str()).collect::<Vec<_>>(), ["web-0"], "once");
    }

    #[test]
    fn readiness_chooses_the_endpoints() {
        let first = "name: web-0\n    ";
        let second = "name: web-1\n    ";
        for (web_0, web_1, expected) in [
            ("ready: false", "ready: true", &["10.1.0.3:8080"][..]),
            ("ready: false", "ready: false", &[]),
            ("ended: true", "ready: true", &["10.1.0.3:8080"]),
            ("terminating: true", "ready: true", &["10.1.0.3:8080"]),
            ("terminating: true", "ready: false", &["10.1.0.2:8080"]),
            ("terminating: true", "terminating: true", &["10.1.0.2:8080", "10.1.0.3:8080"]),
            ("{terminating: true, ready: false}", "ready: false", &[]),
        ] {
            let fields = |text: &str| text.trim_matches(['{', '}']).replace(", ", "\n    ") + "\n    ";
            let yaml = MESH
                .replace(first, &format!("{first}{}", fields(web_0)))
                .replace(second, &format!("{second}{}", fields(web_1)));
            assert_eq!(addrs(&ask(&yaml, "10.2.0.10:80")), expected, "{web_0} / {web_1}");
        }
        let ended = MESH.replace(first, "name: web-0\n    ended: true\n    ");
        assert_eq!(ask(&ended, "10.1.0.2:8080"), Answer::Unknown, "a pod that has ended has no address");
        let not_ready = MESH.replace(first, "name: web-0\n    ready: false\n    ");
        assert_eq!(identity(&ask(&not_ready, "10.1.0.2:8080")), Ok("web".to_owned()), "known before it is ready");
    }

    #[test]
    fn an_endpoint_that_is_listed_twice_is_there_once() {
        let yaml = MESH.replace("endpoints: [web-0, web-1]", "endpoints: [web-0, shop/web-0, web-1, web-1]");
        assert_eq!(addrs(&ask(&yaml, "10.2.0.10:80")), ["10.1.0.2:8080", "10.1.0.3:8080"]);
    }

    #[test]
    fn known_addresses_outside_the_networks_are_listed() {
        let yaml = MESH.replace("ips: [10.2.0.11]", "ips: [10.2.0.11, 192.0.2.7]").replace("10.1.0.3", "10.9.0.3");
        let index = Index::from_mesh(&MeshFile::parse(&yaml).expect("valid"), &TrustDomain::default());
        let outside: Vec<_> = index.cluster_networks().outside.iter().map(ToString::to_string).collect();
        assert_eq!(outside, ["10.9.0.3", "192.0.2.7"]);
    }
}
